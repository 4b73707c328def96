"""What is shown of a value: its type, and a little of it. Never more work than a few lines.

Nothing of the value's own code is called but for types that are known: `len` of a frame of a
distributed library would compute it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

_TEXT = 200  # characters of one text
_BUDGET = 600  # characters of all that is shown of a value
_ITEMS = 20
_SCALARS = (bool, int, float, str, type(None))


class _TooLargeError(Exception):
    """There is more of the value than is shown."""


def summary(value: Any) -> str:
    """JSON of `{"type": ..., "value": ...}`, of about 1,000 characters at most.

    `value` is the value itself where it is small and plain, else an object that describes it
    (rows, columns, length), and missing where only its type can be said.
    """
    told: dict[str, Any] = {"type": _name(type(value))}
    try:
        shown = _shown(value)
        if shown is not _NOTHING:
            told["value"] = shown
        text = _json(told)
    except Exception:  # a value may do anything when it is looked at
        return _json({"type": told["type"]})
    return text if len(text) <= 4 * _BUDGET else _json({"type": told["type"]})


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def brief(value: Any) -> Any:
    """As `summary`, as plain data without the type where the value itself is shown."""
    told = msgspec.json.decode(summary(value))
    return told["value"] if "value" in told else told["type"]


_NOTHING = object()


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{_top(kind)}.{kind.__name__}"


def _top(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _shown(value: Any) -> Any:
    known = _KNOWN.get((_top(type(value)), type(value).__name__))
    if known is not None:
        return known(value)
    if (_top(type(value)), type(value).__name__) in _TEXTS:
        return str(value)[:_TEXT]
    try:
        return _plain(value, [_BUDGET])
    except _TooLargeError:
        return _described(value)


def _plain(value: Any, left: list[int]) -> Any:
    """A copy, as long as the budget in `left` lasts."""
    if isinstance(value, _SCALARS):
        return _scalar(value, left)
    if isinstance(value, dict):
        _spend(left, 2)
        return {_key(key): _plain(item, left) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        _spend(left, 2)
        return [_plain(item, left) for item in value]
    raise _TooLargeError


def _scalar(value: Any, left: list[int]) -> Any:
    if isinstance(value, str):
        shown = value if len(value) <= _TEXT else f"{value[:_TEXT]}..."
        _spend(left, len(shown) + 2)
        return str(shown)
    if isinstance(value, float) and not math.isfinite(value):  # JSON has no word for it
        return str(value)
    if isinstance(value, int) and value.bit_length() > 63:
        return str(value) if value.bit_length() < 200 else "a large integer"
    _spend(left, 8)
    return value


def _spend(left: list[int], characters: int) -> None:
    left[0] -= characters
    if left[0] < 0:
        raise _TooLargeError


def _key(key: Any) -> str:
    if not isinstance(key, _SCALARS):
        raise _TooLargeError
    return str(key)[:_TEXT]


def _described(value: Any) -> Any:
    """The length and the first items of a large collection."""
    if isinstance(value, dict):
        return {"length": len(value), "keys": _first(value, _key)}
    if isinstance(value, list | tuple):
        return {"length": len(value), "first": _first(value, _item)}
    if isinstance(value, set | frozenset | bytes | bytearray):
        return {"length": len(value)}
    return _NOTHING


def _first(items: Iterable[Any], show: Callable[[Any], Any]) -> list[Any]:
    found = []
    left = [_BUDGET]
    try:
        for item in items:
            found.append(_scalar(show(item), left))
            if len(found) == _ITEMS:
                break
    except _TooLargeError:
        pass
    return found


def _item(item: Any) -> Any:
    return item if isinstance(item, _SCALARS) else _name(type(item))


_TEXTS = {
    *(("datetime", name) for name in ("date", "datetime", "time", "timedelta")),
    ("decimal", "Decimal"),
    ("uuid", "UUID"),
    ("pathlib", "PosixPath"),
}


# Types of libraries -------------------------------------------------------------------------


def _columns(pairs: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    named = [(str(name)[:_TEXT], str(kind)[:_TEXT]) for name, kind in pairs]
    return dict(named[:_ITEMS])


def _frame(value: Any) -> dict[str, Any]:
    kinds = value.schema if _top(type(value)) == "polars" else value.dtypes
    rows, columns = value.shape
    return {"rows": rows, "columns": columns, "types": _columns(kinds.items())}


def _series(value: Any) -> dict[str, Any]:
    return {"rows": len(value), "name": str(value.name), "dtype": str(value.dtype)}


def _array(value: Any) -> dict[str, Any]:
    return {"shape": list(value.shape), "dtype": str(value.dtype)}


def _table(value: Any) -> dict[str, Any]:
    kinds = ((field.name, field.type) for field in value.schema)
    return {"rows": value.num_rows, "columns": value.num_columns, "types": _columns(kinds)}


_KNOWN: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("pandas", "DataFrame"): _frame,
    ("pandas", "Series"): _series,
    ("polars", "DataFrame"): _frame,
    ("polars", "Series"): _series,
    ("numpy", "ndarray"): _array,
    ("pyarrow", "Table"): _table,
}
