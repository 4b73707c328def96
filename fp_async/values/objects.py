"""Objects of classes with fields, from mappings of their fields."""

from __future__ import annotations

import contextlib
import functools
from collections import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from fp_async.errors import suggestion
from fp_async.values.annotations import type_name
from fp_async.values.containers import pairs_of, parts_of
from fp_async.values.converter import NOTHING, Converter, convert, part
from fp_async.values.misfit import MisfitError
from fp_async.values.records import Field, Shape, complaint
from fp_async.values.text import Text, from_json


class Record:
    """A class whose fields have annotations, from a mapping of them."""

    def __init__(self, kind: Any, shape: Shape, compiled: Callable[[Any], Converter]) -> None:
        self._kind = kind
        self._shape = shape
        self._compiled = compiled
        self.atoms: frozenset[Any] | frozenset[type] = (
            NOTHING if shape.is_mapping else frozenset({shape.made})
        )

    @functools.cached_property
    def _fields(self) -> dict[str, tuple[Field, Converter]]:
        """By key; compiled when the first value comes, as a class may have itself as a field."""
        return {each.key: (each, self._compiled(each.kind)) for each in self._shape.fields()}

    def data(self, value: Any) -> Any:
        shape = self._shape
        if not shape.is_mapping and isinstance(value, shape.made):
            return value
        if shape.positional and isinstance(value, list | tuple) and not shape.is_mapping:
            return self._of_list(value)
        if not isinstance(value, abc.Mapping):
            return self._whole(value)
        return self._of_mapping(value)

    def text(self, text: Text, level: int) -> Any:
        pairs = pairs_of(text)
        if pairs is None:
            if not self._shape.positional or (parts := parts_of(text, "[(", level)) is None:
                raise MisfitError(self._kind, text)
            return self._of_list(parts)
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            return self.data(from_json(text))
        return self._of_mapping(pairs)

    def _whole(self, value: Any) -> Any:
        """A model that is no mapping says itself what it takes."""
        if self._shape.whole is None:
            raise MisfitError(self._kind, value)
        return self._built(self._shape.whole, value)

    def _of_list(self, value: Sequence[Any]) -> Any:
        keys = list(self._fields)
        if len(value) > len(keys):
            problem = f"expected {len(keys)} values, got {len(value)}"
            raise MisfitError(self._kind, value, problem)
        return self._of_mapping(dict(zip(keys, value, strict=False)))

    def _of_mapping(self, value: Mapping[Any, Any]) -> Any:
        fields, shape = self._fields, self._shape
        given = shape.untagged(value)
        if given is None:
            raise MisfitError(self._kind, value)
        made, problems = {}, {}
        for key, item in given.items():
            if str(key) not in fields:
                if shape.closed:
                    text = f"unknown key{suggestion(str(key), fields)}"
                    raise MisfitError(self._kind, value, text, (str(key),))
                made[str(key)] = convert(item, self._compiled(Any))
                continue
            field, to = fields[str(key)]
            try:
                made[field.name] = part(str(key), item, to)
            except MisfitError as error:
                if not shape.judges:
                    raise
                problems[field.name] = error
                made[field.name] = self._compiled(Any).data(item)
        for key, (field, _) in fields.items():
            if field.required and field.name not in made:
                problem = f"is missing ({type_name(field.kind)})"
                raise MisfitError(self._kind, value, problem, (key,))
        if shape.is_mapping and all(made[k] is v for k, v in given.items()):
            return value
        return self._built(shape.build, made, problems)

    def _built(
        self,
        build: Callable[[Any], Any],
        made: Any,
        problems: Mapping[str, MisfitError] | None = None,
    ) -> Any:
        try:
            return build(made)
        except Exception as error:  # whatever the class's own __init__ says of the values
            place, text = complaint(error)
            if place and problems and place[0] in problems:
                raise problems[str(place[0])] from None
            raise MisfitError(self._kind, made, text, place) from error
