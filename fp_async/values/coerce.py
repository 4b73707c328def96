"""Values as annotations want them: the one set of rules for every way by which a value comes in.

*Text* (`Text`: the command line, a variable, an MQTT payload of text) is read by the annotation.
*Data* (YAML, JSON, msgpack, Python) keeps its types: a string is no int, bool or list, and becomes
only what data has no form for (a path, a date, an Enum). `docs/values.md` is the table.

`converter(annotation)` is compiled once and kept by those who have the annotation: unions that
differ only in their order are equal, so that a cache of annotations would mix them up.
"""

from __future__ import annotations

import collections
import contextlib
import datetime as dt
import enum
import re
import typing
from pathlib import PurePath
from typing import Any

import msgspec

from fp_async.values import annotations as annotated
from fp_async.values import foreign, mismatch, records
from fp_async.values.alternatives import Choice, Union
from fp_async.values.annotations import bare, is_union
from fp_async.values.containers import CONTAINERS, MAPPINGS, Entries, Items, Places
from fp_async.values.converter import NOTHING, Converter, convert
from fp_async.values.misfit import MisfitError
from fp_async.values.objects import Record
from fp_async.values.scalars import EXACT, LAST, LOOSE, SCALARS, Scalar
from fp_async.values.text import Text, inside


def converted(value: Any, kind: Any) -> Any:
    """As `convert`, for an annotation that is used once."""
    return convert(value, converter(kind))


def coerce(value: Any, kind: Any) -> Any:
    """As `converted`; what does not fit is given back for others to refuse."""
    try:
        return converted(value, kind)
    except MisfitError:
        return value


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value fits an annotation, or can be made to."""
    try:
        converted(value, kind)
    except MisfitError:
        return False
    return True


def converter(kind: Any) -> Converter:
    """What makes values fit an annotation."""
    kind = bare(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _annotated(kind, arguments)
    if kind in (None, typing.LiteralString):
        return SCALARS[type(None) if kind is None else str]
    if kind in (Any, object) or isinstance(kind, typing.TypeVar | str):
        return Anything()
    if is_union(kind):
        return Union(kind, [converter(each) for each in arguments])
    if origin is typing.Literal:
        return Choice(kind, arguments)
    return _of_class(kind, origin or kind, arguments)


def _of_class(kind: Any, origin: Any, arguments: tuple[Any, ...]) -> Converter:
    if origin in SCALARS:
        return SCALARS[origin]
    if origin in CONTAINERS:
        return _container(kind, origin, arguments)
    if origin in MAPPINGS:
        return _entries(kind, origin, arguments)
    if isinstance(origin, type) and origin is not type:
        return _of_plain_class(kind, origin, arguments)
    return Instance(kind)


def _of_plain_class(kind: Any, origin: type, arguments: tuple[Any, ...]) -> Converter:
    if issubclass(origin, enum.Enum):
        return Choice(kind, tuple(origin))
    single = _path(origin) if issubclass(origin, PurePath) else foreign.scalar(origin)
    if single is not None:
        return single
    shape = records.shape(kind, origin, arguments)
    return Instance(kind) if shape is None else Record(kind, shape, converter)


def _entries(kind: Any, origin: Any, arguments: tuple[Any, ...]) -> Converter:
    key, value = arguments if len(arguments) == 2 else (Any, Any)
    if origin is collections.Counter:
        key, value = arguments[0] if arguments else Any, int
    return Entries(kind, origin, converter(key), converter(value))


def _container(kind: Any, origin: Any, arguments: tuple[Any, ...]) -> Converter:
    if origin is tuple and arguments and arguments[-1] is not ...:
        places = () if arguments == ((),) else arguments
        return Places(kind, [converter(each) for each in places])
    if origin is tuple and kind is not tuple and not arguments and kind is not typing.Tuple:  # noqa: UP006
        return Places(kind, [])
    return Items(kind, origin, converter(arguments[0] if arguments else Any))


def _path(kind: type[PurePath]) -> Scalar:
    def read(text: str, level: int) -> PurePath:
        if level == EXACT:
            raise ValueError(text)
        return kind(text)

    return Scalar(kind, read, (str,), kind)


def _annotated(kind: Any, arguments: tuple[Any, ...]) -> Converter:
    inner = converter(arguments[0])
    if any(isinstance(each, msgspec.Meta) for each in arguments[1:]):
        return Limited(kind, inner)
    return inner


# Anything, and one of several ------------------------------------------------------------------


class Anything:
    """An annotation that takes every value: text is JSON, or else text."""

    atoms: frozenset[type] = frozenset({int, float, str, bool, type(None), bytes})

    def data(self, value: Any) -> Any:
        return plain(value)

    def text(self, text: Text, level: int) -> Any:
        if level < LAST:
            raise MisfitError(Any, text)
        return guess(text)


def guess(text: Text) -> Any:
    """What a text means where no annotation says it: JSON, else the text itself."""
    if not text.quoted:
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            return msgspec.json.decode(text.encode())
        if inside(text, "[") is not None:
            return converter(list).text(text, LAST)
    return str(text)


_GUIDES: dict[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int, float),
    float: (float,),
    list: (list,),
    dict: (dict,),
    dt.date: (dt.date, dt.datetime),
    dt.datetime: (dt.datetime,),
}


def guided(value: Any, example: Any) -> Any:
    """Data in which no text is left to be read; a text is read like the example, if it can be.

    Nothing is refused: where an int is known, 2.5 is a float, and "many" a text.
    """
    if not isinstance(value, Text) or value.quoted or type(example) is str:
        return plain(value) if not isinstance(value, Text) else str(value)
    for kind in _GUIDES.get(type(example), ()):
        with contextlib.suppress(MisfitError):
            return SCALARS[kind].text(value, LOOSE) if kind in SCALARS else _listed(value, kind)
    return guess(value)


def _listed(text: Text, kind: type) -> Any:
    return converter(kind).text(text, LOOSE)


def plain(value: Any) -> Any:
    """Data in which no text is left to be read."""
    if isinstance(value, Text):
        return guess(value)
    if type(value) is list:
        return _unless_same(value, [plain(item) for item in value])
    if type(value) is dict:
        return _unless_same(value, {key: plain(item) for key, item in value.items()})
    return value


def as_data(value: Any) -> Any:
    """A value as JSON data, of which its annotation makes the value again. Raises TypeError."""
    return msgspec.to_builtins(value, str_keys=True, enc_hook=_written)


def _written(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, re.Pattern):
        return value.pattern
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if type(value).__module__.partition(".")[0] == "numpy" and getattr(value, "ndim", 1) == 0:
        return value.item()
    if isinstance(value, PurePath) or type(value) in SCALARS:
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def _unless_same(value: Any, made: Any) -> Any:
    """`value` itself where nothing in it was changed."""
    old, new = (value.values(), made.values()) if type(value) is dict else (value, made)
    same = all(a is b for a, b in zip(old, new, strict=True))
    return value if same else made


class Limited:
    """An annotation with limits of msgspec's (`Annotated[int, Meta(ge=1)]`)."""

    atoms = NOTHING

    def __init__(self, kind: Any, inner: Converter) -> None:
        self._kind = kind
        self._inner = inner

    def data(self, value: Any) -> Any:
        return self._checked(convert(value, self._inner))

    def text(self, text: Text, level: int) -> Any:
        return self._checked(self._inner.text(text, level))

    def _checked(self, value: Any) -> Any:
        try:
            msgspec.convert(value, self._kind)
        except msgspec.ValidationError:
            problem = str(mismatch.explain(value, self._kind))
            raise MisfitError(self._kind, value, problem) from None
        return value


class Instance:
    """An annotation that is no data: values are instances of it, no text is one."""

    atoms = NOTHING

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def data(self, value: Any) -> Any:
        if not annotated.fits(value, self._kind):
            raise MisfitError(self._kind, value)
        return value

    def text(self, text: Text, level: int) -> Any:  # noqa: ARG002
        if self._kind is type or not annotated.fits(str(text), self._kind):
            raise MisfitError(self._kind, text)
        return str(text)
