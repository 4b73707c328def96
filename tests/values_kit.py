"""The table of docs/values.md, and examples that are made of it: types within types, with values
that fit and values that do not. What each becomes is known from the table, not from the code.
"""

from __future__ import annotations

import random
import re
import string
import uuid
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from values_kinds import NAMES

TABLE = Path(__file__).parent.parent / "docs/values.md"
REFUSED = object()


class Row(NamedTuple):
    kind: Any
    text: str
    of_text: Any
    data: Any
    of_data: Any
    no_text: str
    no_data: str  # an expression, or nothing


def table() -> dict[str, Row]:
    rows = {}
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) != 7 or not cells[0].startswith("`"):
            continue
        name, text, of_text, data, of_data, no_text, no_data = (
            cell.strip("`").replace("\\|", "|") for cell in cells
        )
        made = [eval(each, NAMES) for each in (name, of_text, data, of_data)]
        rows[name] = Row(made[0], text, made[1], made[2], made[3], no_text, no_data)
    return rows


ROWS = table()


class Example(NamedTuple):
    """A value for an annotation (`kind`, its source), given as text or as data; and what it is, or
    REFUSED.
    """

    kind: str
    given: Any
    value: Any
    is_text: bool

    @property
    def fits(self) -> bool:
        return self.value is not REFUSED


def _letters(chance: random.Random) -> str:
    """A text that is no number, date, null or anything else but a text."""
    letters = string.ascii_letters + "äöü ß€日本🙂-_/%&+;!?#@"
    return "q" + "".join(chance.choices(letters, k=chance.randrange(12))).strip() + "z"


def _moment(chance: random.Random) -> datetime:
    micros = chance.choice((0, chance.randrange(1_000_000)))
    return datetime.fromordinal(719_164) + timedelta(
        seconds=chance.randrange(4_000_000_000), microseconds=micros
    )


def _day(chance: random.Random) -> date:
    return date.fromordinal(chance.randrange(1, date.max.toordinal()))


def _while(chance: random.Random) -> timedelta:
    return timedelta(seconds=chance.randrange(86_400), microseconds=chance.randrange(1_000_000))


def _decimal(chance: random.Random) -> Decimal:
    digits = "".join(chance.choices(string.digits, k=chance.randrange(1, 30)))
    return Decimal(f"{chance.choice(('', '-'))}{chance.randrange(1000)}.{digits}")


def _number(chance: random.Random) -> int:
    return chance.choice((1, -1)) * chance.getrandbits(chance.choice((1, 8, 31, 63)))


def _fraction(chance: random.Random) -> float:
    return chance.choice((chance.random(), chance.uniform(-1e300, 1e300), chance.random() / 1e300))


# type -> what makes a value of it; whose `str` is its text; and whether data has a form for it
_DRAWN: dict[str, tuple[Callable[[random.Random], Any], bool]] = {
    "int": (_number, True),
    "float": (_fraction, True),
    "str": (_letters, True),
    "Decimal": (_decimal, False),
    "datetime": (_moment, False),
    "date": (_day, False),
    "timedelta": (_while, False),
    "UUID": (lambda chance: uuid.UUID(int=chance.getrandbits(128)), False),
}


def _plain(chance: random.Random) -> Example:
    """A value of a type of the table, as it stands there, or drawn, or one that does not fit."""
    name = chance.choice(list(ROWS))
    row = ROWS[name]
    is_text = chance.random() < 0.5
    if chance.random() < 0.25 and (wrong := row.no_text if is_text else row.no_data):
        return Example(name, wrong if is_text else eval(wrong, NAMES), REFUSED, is_text)
    if name in _DRAWN and chance.random() < 0.8:
        draw, has_form = _DRAWN[name]
        value = draw(chance)
        return Example(name, value if has_form and not is_text else str(value), value, is_text)
    return Example(
        name, row.text if is_text else row.data, row.of_text if is_text else row.of_data, is_text
    )


def _optional(made: Example, chance: random.Random) -> Example:
    kind = chance.choice((f"Optional[{made.kind}]", f"Union[None, {made.kind}]"))
    if chance.random() < 0.2:
        return Example(kind, "null" if made.is_text else None, None, made.is_text)
    return made._replace(kind=kind)


def _or_text(made: Example, chance: random.Random) -> Example:
    """`str | T`: a text stays one as data; written, it is a T where T reads it."""
    kind = chance.choice((f"Union[str, {made.kind}]", f"Union[{made.kind}, str]"))
    if isinstance(made.given, str) and (
        not made.is_text or not made.fits or type(made.value) is bytes
    ):
        return made._replace(kind=kind, value=made.given)
    return made._replace(kind=kind)


def _item(text: str, chance: random.Random) -> str:
    """A text within brackets: one with commas has to be quoted, unless it has brackets itself."""
    if text[:1] in "[{(":
        return text
    return f'"{text}"' if "," in text else text


def _listed(kind: str, opening: str, closing: str, make: Callable[[Any], Any]) -> Any:
    def within(made: Example, chance: random.Random) -> Example:
        count = 1 if isinstance(made.value, set) else chance.choice((1, 1, 2, 3))
        value = make([made.value] * count) if made.fits else REFUSED
        if not made.is_text:
            return Example(kind.format(made.kind), [made.given] * count, value, False)
        text = ", ".join([_item(made.given, chance)] * count)
        return Example(kind.format(made.kind), f"{opening}{text}{closing}", value, True)

    return within


def _mapped(made: Example, chance: random.Random) -> Example:
    value = {"k": made.value} if made.fits else REFUSED
    kind = f"dict[str, {made.kind}]"
    if not made.is_text:
        return Example(kind, {"k": made.given}, value, False)
    return Example(kind, "{k: " + _item(made.given, chance) + "}", value, True)


_list = _listed("list[{}]", "[", "]", list)
_tuple = _listed("tuple[{}, ...]", "(", ")", tuple)
_WITHIN = (_optional, _or_text, _list, _tuple, _mapped)


def example(chance: random.Random) -> Example:
    """One example: a type of the table, within none, one or two others."""
    made = _plain(chance)
    for _ in range(chance.choice((0, 1, 1, 2))):
        made = chance.choice(_WITHIN)(made, chance)
    return made


def examples(chance: random.Random, count: int) -> Iterator[Example]:
    return (example(chance) for _ in range(count))
