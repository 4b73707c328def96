"""Values as text for people: a record looks as an object of its class would, if it were known."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Callable, Iterable
from typing import Any

from fp_async.codec_values import Record

_COMPARABLE = (str, int, float, bool, dt.datetime, dt.date, dt.timedelta, decimal.Decimal)


class _StandIn:
    """Something that has the texts of another object."""

    def __init__(self, text: str, representation: str) -> None:
        self._text = text
        self._representation = representation

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._representation


def stood_in(value: Any) -> Any:
    """The value with a stand-in for each record in it, whose texts are those of its class."""
    kind = type(value)
    if kind is Record:
        return _stand_in(value)
    if kind is dict:
        return {stood_in(key): stood_in(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return _StandIn(str(value), repr(value))  # a frame would show it as a plain tuple
    if kind in (list, tuple):
        return kind(map(stood_in, value))
    return _set(value) if kind in (set, frozenset) and value else value


def _set(value: set[Any] | frozenset[Any]) -> _StandIn:
    text = f"{{{', '.join(map(repr, in_order(map(stood_in, value))))}}}"
    text = text if type(value) is set else f"frozenset({text})"
    return _StandIn(text, text)


def in_order(items: Iterable[Any], text: Callable[[Any], Any] = repr) -> list[Any]:
    """The items of a set in one order in every process: by their values, else by their texts."""
    found = list(items)
    kinds = set(map(type, found))
    by_value = len(kinds) == 1 and kinds <= {*_COMPARABLE}
    try:
        return sorted(found) if by_value else sorted(found, key=text)
    except TypeError:  # times with a zone and without
        return sorted(found, key=text)


def _stand_in(record: Record) -> _StandIn:
    fields, name = record._asdict(), record._kind.rpartition(".")[2]
    if record._member is None:
        text = ", ".join(f"{field}={stood_in(item)!r}" for field, item in fields.items())
        return _StandIn(f"{name}({text})", f"{name}({text})")
    dotted = "" if fields.get("name") is None else f".{fields['name']}"
    return _StandIn(record._member, f"<{name}{dotted}: {stood_in(fields.get('value'))!r}>")
