"""Relative paths among values. They mean the project, wherever the process is."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import msgspec


def mentions(kind: Any) -> bool:
    """Whether an annotation says `Path`, also within containers, unions and fields of classes."""
    seen: list[Any] = []
    pending = [kind]
    while pending:
        each = pending.pop()
        if any(each is known for known in seen):
            continue
        seen.append(each)
        if isinstance(each, type) and issubclass(each, PurePath):
            return True
        pending += [*typing.get_args(each), *_fields(each)]
    return False


def _fields(kind: Any) -> list[Any]:
    """The annotations of a class's fields, if it is one that is made of them."""
    made = isinstance(kind, type) and (
        dataclasses.is_dataclass(kind)
        or issubclass(kind, msgspec.Struct)
        or hasattr(kind, "_fields")
        or hasattr(kind, "model_fields")
        or typing.is_typeddict(kind)
    )
    try:
        return list(typing.get_type_hints(kind).values()) if made else []
    except Exception:  # a name that is imported for type checkers only
        return []


def relative(value: Any) -> list[Path]:
    """The relative paths in a value."""
    found: list[Path] = []

    def note(path: Path) -> Path:
        found.append(path)
        return path

    _mapped(value, note)
    return found


def below(value: Any, root: Path) -> Any:
    """The value with its relative paths below `root`; itself where there is none."""
    return _mapped(value, lambda path: root / path)


def _mapped(value: Any, change: Callable[[Path], Path]) -> Any:
    if isinstance(value, Path):
        return value if value.is_absolute() else change(value)
    if isinstance(value, str | bytes | int | float | None):
        return value
    if isinstance(value, Mapping) and type(value) is dict:
        pairs = {_mapped(k, change): _mapped(v, change) for k, v in value.items()}
        return pairs if _differ(value, pairs) else value
    if type(value) in (list, tuple, set, frozenset):
        items = [_mapped(item, change) for item in value]
        same = all(a is b for a, b in zip(items, value, strict=True))
        return value if same else type(value)(items)
    return _with_fields(value, change)


def _differ(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> bool:
    pairs = zip(old.items(), new.items(), strict=False)
    return len(old) != len(new) or any(a is not c or b is not d for (a, b), (c, d) in pairs)


class _Way(NamedTuple):
    """How objects of a kind give their fields, and are made again with others."""

    names: Callable[[Any], list[str]]
    replaced: Callable[..., Any]


def _way(value: Any) -> _Way | None:
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind) if field.init]
        return _Way(lambda _: names, dataclasses.replace)
    if isinstance(value, msgspec.Struct):
        return _Way(lambda each: list(each.__struct_fields__), msgspec.structs.replace)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return _Way(lambda each: list(each._fields), lambda each, **new: each._replace(**new))
    if hasattr(kind, "model_fields") and hasattr(kind, "model_copy"):
        return _Way(
            lambda _: list(kind.model_fields), lambda each, **new: each.model_copy(update=new)
        )
    return None


def _with_fields(value: Any, change: Callable[[Path], Path]) -> Any:
    way = _way(value)
    if way is None:
        return value
    changes: dict[str, Any] = {}
    for name in way.names(value):
        old = getattr(value, name)
        new = _mapped(old, change)
        if new is not old:
            changes[name] = new
    return way.replaced(value, **changes) if changes else value
