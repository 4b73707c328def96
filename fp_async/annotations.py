"""Whether a value is right for an annotation, and how to write one down.

As loose as Hamilton's `check_input_type` (of a container, at most the first item is looked at),
and without its gaps: an annotation that cannot be checked lets everything pass.
"""

from __future__ import annotations

import collections.abc
import itertools
import re
import types
import typing
from typing import Any

_QUALIFIER = re.compile(r"\b(?:[A-Za-z_]\w*\.)+")
_ITEMS = (set, collections.abc.Iterable)
_SEQUENCES = (list, tuple, collections.abc.Sequence)


def shown(value: Any) -> str:
    """A value's type, and the value where it is short text or a number."""
    kind = type(value).__name__
    short = isinstance(value, str | int | float) and len(repr(value)) < 60
    return f"{kind} {value!r}" if short else kind


def type_name(kind: Any) -> str:
    """An annotation as a person would write it: `int`, `list[int]`, `DataFrame`."""
    if typing.get_origin(kind) is not None or not hasattr(kind, "__name__"):
        return _QUALIFIER.sub("", str(kind))
    return str(kind.__name__)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is right for an annotation; an int is a float."""
    kind = _bare(kind)
    if isinstance(value, int) and kind in (float, complex):
        return True
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is type:
        return isinstance(value, type) and all(_derives(value, a) for a in arguments)
    return _fits_plain(value, kind) if origin is None else _fits_generic(value, origin, arguments)


def _fits_plain(value: Any, kind: Any) -> bool:
    if typing.is_typeddict(kind):
        return isinstance(value, dict)
    return kind is None or _instance(value, kind)


def _fits_generic(value: Any, origin: Any, arguments: tuple[Any, ...]) -> bool:
    if typing.is_typeddict(origin):
        return isinstance(value, dict)
    if type(value) is origin:
        return True
    if origin in _SEQUENCES:
        return isinstance(value, collections.abc.Sequence) and _first_fits(value, arguments)
    if origin in _ITEMS:
        return isinstance(value, collections.abc.Iterable) and _first_fits(value, arguments)
    return _instance(value, origin)


def _bare(kind: Any) -> Any:
    """Without `Annotated`, `NewType` and `type X = ...`."""
    while True:
        if typing.get_origin(kind) is typing.Annotated:
            kind = typing.get_args(kind)[0]
        elif isinstance(kind, typing.NewType):
            kind = kind.__supertype__
        elif type(kind).__name__ == "TypeAliasType":  # Python 3.12
            kind = kind.__value__
        else:
            return kind


def _instance(value: Any, kind: Any) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol, a TypeVar, Any, a name in quotes
        return True


def _derives(value: type, kind: Any) -> bool:
    kind = _bare(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_derives(value, argument) for argument in typing.get_args(kind))
    try:
        return issubclass(value, typing.get_origin(kind) or kind)
    except TypeError:
        return True


def _first_fits(value: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether the first item fits; an iterator would lose its first item if it were asked."""
    if not arguments or not isinstance(value, collections.abc.Collection):
        return True
    return all(fits(item, arguments[0]) for item in itertools.islice(value, 1))
