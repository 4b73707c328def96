"""What callers in Python give, as what it is meant to be. A UsageError says what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fp_async.errors import UsageError

_MOST_ROWS = 1_000_000


def text(what: str, value: Any) -> str:
    """A text. Raises UsageError."""
    if not isinstance(value, str):
        raise UsageError(f"{what} is a text, not {value!r}")
    return value


def mapping(what: str, value: Any) -> Mapping[str, Any]:
    """A mapping whose keys are names; None is an empty one. Raises UsageError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{what} is a mapping of names, not {value!r}")
    for name in value:
        if not isinstance(name, str):
            raise UsageError(f"{what} is a mapping of names, and {name!r} is none")
    return value


def nested(what: str, value: Any) -> Mapping[str, Any]:
    """A mapping of functions to mappings of their arguments. Raises UsageError."""
    found = mapping(what, value)
    for function, values in found.items():
        mapping(f"{what} of '{function}'", values)
    return found


def names(what: str, value: Any) -> tuple[str, ...]:
    """A name, or several. Raises UsageError."""
    found = (value,) if isinstance(value, str) else several(what, value)
    for name in found:
        if not isinstance(name, str):
            raise UsageError(f"{what} is a name, or a list of names, and {name!r} is none")
    return found


def several(what: str, value: Any) -> tuple[Any, ...]:
    """A list; None is an empty one. Raises UsageError."""
    if value is None:
        return ()
    if type(value) is tuple:  # before the checks, which take longer
        return value
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise UsageError(f"{what} is a list, not {value!r}")
    return tuple(value)


def limit(value: Any) -> int:
    """How many rows to list. Raises UsageError."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST_ROWS:
        raise UsageError(f"limit is a number from 1 to {_MOST_ROWS:,}, not {value!r}")
    return value
