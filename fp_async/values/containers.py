"""Containers of values: lists, sets, tuples, mappings, and their abstract classes."""

from __future__ import annotations

import collections
import contextlib
from collections import abc
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from fp_async.values.converter import NOTHING, Converter, convert, part
from fp_async.values.misfit import MisfitError
from fp_async.values.scalars import LAST
from fp_async.values.text import Numeral, Text, UnclosedError, from_json, inside, split, unquoted

_LISTED = (abc.Sequence, abc.Set)
# annotation -> what it is made as, what it takes, what of that passes as it is
CONTAINERS: dict[Any, tuple[Any, tuple[Any, ...], Any]] = {
    list: (list, (abc.Sequence,), list),
    tuple: (tuple, (abc.Sequence,), tuple),
    set: (set, _LISTED, set),
    frozenset: (frozenset, _LISTED, frozenset),
    collections.deque: (collections.deque, (abc.Sequence,), collections.deque),
    abc.Sequence: (list, (abc.Sequence,), abc.Sequence),
    abc.MutableSequence: (list, (abc.Sequence,), abc.MutableSequence),
    abc.Set: (set, _LISTED, abc.Set),
    abc.MutableSet: (set, _LISTED, abc.MutableSet),
    abc.Collection: (list, (abc.Collection,), abc.Collection),
    abc.Iterable: (list, (abc.Iterable,), abc.Iterable),
    abc.Container: (list, (abc.Container,), abc.Container),
    abc.Reversible: (list, (abc.Reversible,), abc.Reversible),
}
MAPPINGS: dict[Any, Callable[[Any], Any]] = {
    dict: dict,
    collections.OrderedDict: collections.OrderedDict,
    collections.Counter: collections.Counter,
    abc.Mapping: dict,
    abc.MutableMapping: dict,
}
_REMADE = (list, tuple, set, frozenset, collections.deque)


class Items:
    """A container whose items are all of one kind."""

    atoms = NOTHING

    def __init__(self, kind: Any, origin: Any, item: Converter) -> None:
        self._kind = kind
        self._made, self._takes, self._passes = CONTAINERS[origin]
        self._item = item

    def data(self, value: Any) -> Any:
        if isinstance(value, str) or not isinstance(value, self._takes):
            raise MisfitError(self._kind, value)
        if isinstance(value, bytes | bytearray) and not isinstance(value, self._passes):
            raise MisfitError(self._kind, value)
        passes = isinstance(value, self._passes)
        if not isinstance(value, _REMADE):
            if passes:
                self._look(value)
                return value
            value = list(value)
        items = self._items(value)
        if items is value and passes:
            return value
        return self._of(items, type(value) if passes else self._made)

    def text(self, text: Text, level: int) -> Any:
        if (parts := parts_of(text, "[({", level)) is None:
            raise MisfitError(self._kind, text)
        with contextlib.suppress(msgspec.DecodeError, RecursionError, MisfitError):
            return self.data(from_json(text))
        items = [part(index, item, self._item) for index, item in enumerate(parts)]
        return self._of(items, self._made)

    def _look(self, value: Any) -> None:
        """At the first item of what is not remade; an iterator would lose it."""
        if isinstance(value, abc.Collection):
            for item in value:
                convert(item, self._item)
                break

    def _items(self, value: Any) -> Any:
        if self._item.atoms.issuperset(map(type, value)):
            return value
        items = [part(index, item, self._item) for index, item in enumerate(value)]
        return value if all(a is b for a, b in zip(value, items, strict=True)) else items

    def _of(self, items: Any, made: Callable[[Any], Any]) -> Any:
        try:
            return made(items)
        except TypeError:  # what cannot be hashed is in no set
            raise MisfitError(self._kind, items) from None


class Places:
    """A tuple of a fixed length."""

    atoms = NOTHING

    def __init__(self, kind: Any, places: Sequence[Converter]) -> None:
        self._kind = kind
        self._places = places

    def data(self, value: Any) -> Any:
        if isinstance(value, str | bytes) or not isinstance(value, abc.Sequence):
            raise MisfitError(self._kind, value)
        made = self._filled(value)
        same = isinstance(value, tuple) and all(a is b for a, b in zip(value, made, strict=True))
        return value if same else made

    def text(self, text: Text, level: int) -> Any:
        if (parts := parts_of(text, "[(", level)) is None:
            raise MisfitError(self._kind, text)
        with contextlib.suppress(msgspec.DecodeError, RecursionError, MisfitError):
            return self.data(from_json(text))
        return self._filled(parts)

    def _filled(self, values: Sequence[Any]) -> tuple[Any, ...]:
        if len(values) != len(self._places):
            problem = f"expected {len(self._places)} values, got {len(values)}"
            raise MisfitError(self._kind, values, problem)
        pairs = enumerate(zip(values, self._places, strict=True))
        return tuple(part(index, value, place) for index, (value, place) in pairs)


class Entries:
    """A mapping whose keys are of one kind, and its values of another."""

    atoms = NOTHING

    def __init__(self, kind: Any, origin: Any, key: Converter, value: Converter) -> None:
        self._kind = kind
        self._origin = origin
        self._made = MAPPINGS[origin]
        self._key = key
        self._value = value

    def data(self, value: Any) -> Any:
        if not isinstance(value, abc.Mapping):
            raise MisfitError(self._kind, value)
        passes = isinstance(value, self._origin)
        if (
            passes
            and self._key.atoms.issuperset(map(type, value))
            and self._value.atoms.issuperset(map(type, value.values()))
        ):
            return value
        made = {
            self._read_key(key): part(_step(key), item, self._value) for key, item in value.items()
        }
        same = passes and all(
            a is b and value[a] is made[b] for a, b in zip(value, made, strict=True)
        )
        return value if same else self._made(made)

    def _read_key(self, key: Any) -> Any:
        """A key; those of JSON and YAML are always text, so that they are read as such."""
        if type(key) is str and str not in self._key.atoms:
            return part(_step(key), Text(key), self._key)
        return part(_step(key), key, self._key)

    def text(self, text: Text, level: int) -> Any:  # noqa: ARG002 - exact or not at all
        pairs = pairs_of(text)
        if pairs is None:
            raise MisfitError(self._kind, text)
        with contextlib.suppress(msgspec.DecodeError, RecursionError, MisfitError):
            return self.data(from_json(text))
        return self._made(
            {
                part(str(key), key, self._key): part(str(key), item, self._value)
                for key, item in pairs.items()
            }
        )


def _step(key: Any) -> str | int:
    return key if isinstance(key, str | int) else repr(key)


def parts_of(text: Text, opening: str, level: int) -> list[Text] | None:
    """The items of a text in brackets; without them, as the last resort, between commas."""
    if isinstance(text, Numeral):
        return None
    inner = inside(text, opening)
    if inner is None:
        if level < LAST or text.quoted:
            return None
        inner = str(text)
    if not inner.strip():
        return []
    try:
        return [unquoted(part) for part in split(inner)]
    except UnclosedError:
        return None


def pairs_of(text: Text) -> dict[Text, Text] | None:
    """`{key: value, ...}` as texts."""
    inner = inside(text, "{")
    if inner is None:
        return None
    parts = [split(part, ":", pairs=True) for part in split(inner, pairs=True) if part.strip()]
    if any(len(part) < 2 for part in parts):
        return None
    return {unquoted(key): unquoted(":".join(rest)) for key, *rest in parts}
