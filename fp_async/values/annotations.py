"""Annotations as a person writes them, and whether a value is right for one that is no data.

As loose as Hamilton's `check_input_type`, and without its gaps: an annotation that cannot be
checked lets everything pass.
"""

from __future__ import annotations

import re
import types
import typing
from typing import Any

_QUALIFIER = re.compile(r"\b(?:[A-Za-z_]\w*\.)+")
_MADE_UP = re.compile(r"^fp_pipelines_\w+_[0-9a-f]{8}(_\d+)?\.")  # the package of a flow's modules


def shown(value: Any) -> str:
    """A value's type, and the value where it is short text or a number."""
    kind = "str" if isinstance(value, str) else type_name(type(value))
    short = isinstance(value, str | int | float) and len(repr(value)) < 60
    return f"{kind} {value!r}" if short else kind


def type_name(kind: Any) -> str:
    """An annotation as a person would write it: `int`, `list[int]`, `DataFrame`."""
    if kind is None or kind is type(None):
        return "None"
    if typing.get_origin(kind) is typing.Annotated:
        return type_name(typing.get_args(kind)[0])
    if typing.get_origin(kind) is not None or not hasattr(kind, "__name__"):
        return _QUALIFIER.sub("", str(kind))
    return str(kind.__name__)


def qualified(kind: type) -> str:
    """The name of a class with its module, as its author knows it."""
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    return _MADE_UP.sub("", name)


def bare(kind: Any) -> Any:
    """An annotation without `NewType`, `Required`, `type X = ...` and the like around it."""
    while True:
        if isinstance(kind, typing.NewType):
            kind = kind.__supertype__
        elif typing.get_origin(kind) in (typing.Required, typing.NotRequired, typing.Final):
            kind = typing.get_args(kind)[0]
        elif type(kind).__name__ == "TypeAliasType":  # Python 3.12
            kind = kind.__value__
        else:
            return kind


def is_union(kind: Any) -> bool:
    """Return whether an annotation is a union, in whatever spelling."""
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value is an instance of an annotation, as far as that can be seen."""
    origin = typing.get_origin(kind)
    if origin is type:
        return isinstance(value, type) and all(_derives(value, a) for a in typing.get_args(kind))
    try:
        return isinstance(value, origin or kind)
    except TypeError:  # a protocol, a TypeVar, a name in quotes
        return True


def _derives(value: type, kind: Any) -> bool:
    kind = bare(kind)
    if is_union(kind):
        return any(_derives(value, argument) for argument in typing.get_args(kind))
    try:
        return issubclass(value, typing.get_origin(kind) or kind)
    except TypeError:
        return True
