"""Tables that fit the terminal: of their columns those that there is room for, one line a row."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fp_async.cli.saying import echo, plain, style
from fp_async.escapes import escaped, in_line

_GAP = 2
_LEAST = 8  # cells that are left of a column that is cut
_ELLIPSIS = "…"


class Column(NamedTuple):
    """A column by its name. The higher the `rank`, the sooner it is left out where the terminal is
    narrow; 0 stays. `cut`: so many cells of its texts are enough to begin with; 0 for all of them.
    """

    name: str
    rank: int = 0
    cut: int = 0


LETTER_COLUMNS = (
    Column("at"),
    Column("topic", cut=20),
    Column("reason", cut=24),
    Column("payload", rank=1, cut=12),
)


def echo_columns(rows: Sequence[Mapping[str, object]], columns: Sequence[Column]) -> None:
    """Print the rows. In a pipe all columns are printed, and as long as they are."""
    from fp_async.cli.output import console

    head, *lines = lines_of(rows, columns, console().width)
    echo(style(head, bold=True))
    for line in lines:
        echo(line)


def lines_of(
    rows: Sequence[Mapping[str, object]], columns: Sequence[Column], room: int
) -> list[str]:
    """Return the head and the rows as lines of at most `room` cells, if that can be."""
    cells = {each.name: [_line(row[each.name]) for row in rows] for each in columns}
    filled = [each for each in columns if each.rank == 0 or any(cells[each.name])]
    natural = {each.name: max(map(_width, [each.name, *cells[each.name]])) for each in filled}
    widths = fitted(filled, natural, room)
    head = _joined({name: _line(name) for name in widths}, widths)
    numbers = range(len(rows))
    return [head, *(_joined({n: cells[n][i] for n in widths}, widths) for i in numbers)]


def echo_facts(facts: Mapping[str, str]) -> None:
    """Print names and values, one below the other; what is empty is left out."""
    from fp_async.cli.output import console

    given = {name: escaped(text) for name, text in facts.items() if text}
    width = max(map(len, given), default=0)
    room = max(console().width - width - 2 * _GAP, 2 * _LEAST)
    for name, text in given.items():
        first, *more = textwrap.wrap(text, room, break_on_hyphens=False) or [text]
        echo(f"{' ' * _GAP}{name.ljust(width)}{' ' * _GAP}{first}")
        for line in more:
            echo(" " * (width + 2 * _GAP) + line)


def one_line(text: str, room: int | None = None) -> str:
    """Return a text that fits into one line of `room` cells, by default of what stdout is: its end
    is cut, in a pipe nothing.
    """
    from fp_async.cli.output import console

    bare = plain(text)
    room = room or console().width
    return text if _width(bare) <= room else _fit(bare, room)


def fitted(columns: Sequence[Column], natural: Mapping[str, int], room: int) -> dict[str, int]:
    """Return the columns to show with their widths, given how wide each would like to be.

    Columns go by their rank until the others fit, where those that may be cut are taken for
    as short as they may be; then the one that is longest beyond that is cut, cell by cell.
    """
    shown = list(columns)
    while _needed(shown, natural) > room and any(each.rank for each in shown):
        shown.remove(max(shown, key=lambda each: each.rank))
    widths = {each.name: natural[each.name] for each in shown}
    cut = {each.name: each.cut for each in shown if each.cut}
    while sum(widths.values()) + _GAP * (len(widths) - 1) > room:
        longest = max(
            cut, key=lambda name: (widths[name] > _LEAST, widths[name] - cut[name]), default=None
        )
        if longest is None or widths[longest] <= _LEAST:
            break
        widths[longest] -= 1
    return widths


def _needed(columns: Sequence[Column], natural: Mapping[str, int]) -> int:
    widths = (min(natural[c.name], c.cut or natural[c.name]) for c in columns)
    return sum(widths) + _GAP * (len(columns) - 1)


def _joined(cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
    return (" " * _GAP).join(_fit(cells[name], width) for name, width in widths.items()).rstrip()


def _fit(text: str, width: int) -> str:
    from rich.cells import set_cell_size

    if _width(text) <= width:
        return text + " " * (width - _width(text))
    return str(set_cell_size(text, width - 1)) + _ELLIPSIS


def _width(text: str) -> int:
    from rich.cells import cell_len

    return int(cell_len(text))


def _line(value: object) -> str:
    """Return a value as the text of a cell: in one line, with nothing that a terminal obeys."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    line = in_line(text.replace("\n", " ").replace("\t", " "))
    return "".join(c if c.isprintable() else " " for c in line)
