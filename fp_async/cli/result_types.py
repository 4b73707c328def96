"""Types of nodes whose values can be written neither as a table nor as JSON, whatever they are."""

from __future__ import annotations

import collections.abc
import datetime as dt
import decimal
import enum
import io
import types
import typing
import uuid
from pathlib import PurePath
from typing import Any

_NO_TABLE = (
    *(str, bytes, bytearray, int, float, complex, type(None), enum.Enum, PurePath),
    *(dt.date, dt.time, dt.timedelta, decimal.Decimal, uuid.UUID),
    *(collections.abc.Mapping, collections.abc.Set, range),
)
_NO_JSON = (
    *(types.FunctionType, types.ModuleType, type, io.IOBase),
    *(collections.abc.Generator, collections.abc.AsyncIterator, collections.abc.Coroutine),
)


def never_table(kind: Any) -> bool:
    """Return whether no value of the type is a table."""
    if (members := _members(kind)) is not None:
        return all(map(never_table, members))
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (list, tuple, collections.abc.Sequence) and arguments:
        rows = [each for each in arguments if each is not ...]
        return all(
            _is(each, _NO_TABLE) and not _is(each, (collections.abc.Mapping,)) for each in rows
        )
    return _is(kind, _NO_TABLE) or never_json(kind)


def never_json(kind: Any) -> bool:
    """Return whether no value of the type has a JSON form."""
    if (members := _members(kind)) is not None:
        return all(map(never_json, members))
    return (
        kind is collections.abc.Callable
        or _is(kind, _NO_JSON)
        or (typing.get_origin(kind) is collections.abc.Callable)
    )


def _members(kind: Any) -> tuple[Any, ...] | None:
    """The members of a union, or the one type within `Annotated`; None for any other type."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return typing.get_args(kind)[:1]
    if origin in (typing.Union, types.UnionType):
        return typing.get_args(kind)
    return (kind.__supertype__,) if isinstance(kind, typing.NewType) else None


def _is(kind: Any, classes: tuple[type, ...]) -> bool:
    origin = typing.get_origin(kind) or kind
    return isinstance(origin, type) and origin is not object and issubclass(origin, classes)
