"""Text of the command line: `name=value,name=value`, JSON, files; its quotes and brackets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from fp_async.errors import FileAccessError, UsageError

QUOTES = "'\""
_BRACKETS = {"[": "]", "{": "}", "(": ")"}
_CLOSING = frozenset(_BRACKETS.values())


class Text(str):
    """A value that was written as text (on a command line, in a variable, in an MQTT payload),
    which still has to get the type of its annotation.
    """

    __slots__ = ()
    quoted = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Quoted if self.quoted else Text, (str(self),)


class Quoted(Text):
    """A text that its author put in quotes: where a text is wanted, too, it is that."""

    __slots__ = ()
    quoted = True


class Numeral(Text):
    """A number of JSON whose digits a float would not keep: 1.10, 12345678901234567890.12. A
    Decimal is made of all of them; everybody else gets the float that it is.
    """

    __slots__ = ()


class UnclosedError(ValueError):
    """A quote or a bracket that is not closed; the text says which."""


def parse_assignments(text: str, option: str) -> dict[str, Any]:
    """`k=v,k=v`, a JSON object, `@file.json` or `@-` (stdin), as a mapping; values of pairs stay
    text.

    Commas inside quotes or brackets belong to the value. Raises UsageError, FileAccessError.
    """
    if text.startswith("@"):
        return _json_object(_read(text[1:], option), option, _source(text[1:]))
    if text.lstrip().startswith("{"):
        return _json_object(text.encode(), option, "the value")
    result: dict[str, Any] = {}
    try:
        parts = split(text)
    except UnclosedError as error:
        hint = 'close it, or put the value in quotes: name="..."'
        raise UsageError(f"{option}: cannot read '{text}': {error}; {hint}") from None
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            hint = 'write name=value,name=value, a JSON object, or @file.json; quote "a,b"'
            raise UsageError(f"{option}: cannot read '{part.strip() or text}': {hint}")
        if name.strip() in result:
            raise UsageError(f"{option}: '{name.strip()}' is given twice in '{text}'")
        result[name.strip()] = unquoted(value)
    return result


def _source(name: str) -> str:
    return "stdin" if name == "-" else name


def _read(name: str, option: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileAccessError(f"{option}: cannot read {_source(name)}: {reason}") from error


def _json_object(data: bytes, option: str, what: str) -> dict[str, Any]:
    from fp_async.values.mismatch import json_problem  # an agent has no use for it

    try:
        value = exact_json(_utf8(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{option}: {what} is not valid JSON: {json_problem(data)}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{option}: {what} must be a JSON object of names and values")
    return value


def _utf8(data: bytes) -> bytes:
    """JSON as UTF-8: Windows writes it with a byte order mark, or as UTF-16."""
    import json

    encoding = json.detect_encoding(data)
    return data if encoding == "utf-8" else data.decode(encoding).encode()


def number(text: str) -> float | Numeral:
    """A number with a point or an exponent, as JSON has it. Raises ValueError beyond all floats."""
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return value if repr(value) == text else Numeral(text)


_EXACT_JSON = msgspec.json.Decoder(float_hook=number)


def exact_json(data: bytes) -> Any:
    """JSON in which no digit is lost. Raises msgspec.DecodeError, UnicodeDecodeError,
    RecursionError.
    """
    return _EXACT_JSON.decode(data)


_JSON = msgspec.json.Decoder(float_hook=Text)


def from_json(text: str) -> Any:
    """JSON that stands in a text. Its numbers with a point stay text, as a Decimal has digits that
    a float loses. Raises msgspec.DecodeError, RecursionError.
    """
    return _JSON.decode(text.encode())


def split(text: str, by: str = ",", *, pairs: bool = False) -> list[str]:
    """The parts of a text between commas (`by`) that stand in no quotes and no brackets.

    A quote counts only where a value begins, of `pairs` (`key: value`) after the colon, too.
    Raises UnclosedError.
    """
    parts: list[str] = []
    opened: list[str] = []
    start = index = 0
    while index < len(text):
        char = text[index]
        if char in QUOTES and _may_begin(text, start, index, opened, pairs=pairs):
            index = _end_of_quoted(text, index, ",:]})" if opened or pairs else by)
        elif char in _BRACKETS:
            opened.append(char)
        elif opened and char in _CLOSING:
            if _BRACKETS[opened.pop()] != char:
                raise UnclosedError(f"'{char}' closes no bracket")
        elif char == by and not opened:
            parts.append(text[start:index])
            start = index + 1
        index += 1
    if opened:
        raise UnclosedError(f"the bracket {opened[-1]} is not closed")
    return [*parts, text[start:]]


def _may_begin(text: str, start: int, index: int, opened: list[str], *, pairs: bool) -> bool:
    """Return whether a value begins at `index`, in the part of the text that begins at `start`."""
    before = index - 1
    while before >= start and text[before].isspace():
        before -= 1
    if before < start:
        return True
    char = text[before]
    if char == ":":
        return opened[-1] == "{" if opened else pairs
    if opened:
        return char in _BRACKETS or char == ","
    return char == "=" and "=" not in text[start:before]


def _end_of_quoted(text: str, start: int, ends: str) -> int:
    """The index of the quote that closes the one at `start`: the text or a value ends there."""
    quote, index = text[start], start
    while (index := text.find(quote, index + 1)) > 0:
        after = index + 1
        while after < len(text) and text[after].isspace():
            after += 1
        if after == len(text) or text[after] in ends:
            return index
    raise UnclosedError(f"the quote {quote} is not closed")


def unquoted(text: str) -> Text:
    """A value without the quotes around it, and without the blanks around them."""
    text = text.strip()
    if len(text) > 1 and text[0] in QUOTES and _closes_at_the_end(text):
        return Quoted(text[1:-1])
    return Text(text)


def _closes_at_the_end(text: str) -> bool:
    try:
        return _end_of_quoted(text, 0, "") == len(text) - 1
    except UnclosedError:
        return False


def inside(text: str, opening: str) -> str | None:
    """What stands in the one pair of brackets around a text, if that opens with one of these."""
    if len(text) < 2 or text[0] not in opening or text[-1] != _BRACKETS[text[0]]:
        return None
    try:
        split(text[1:-1], pairs=text[0] == "{")
    except UnclosedError:
        return None
    return text[1:-1]
