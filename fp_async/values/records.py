"""Classes with fields, in one form: dataclasses, NamedTuples, TypedDicts, msgspec Structs, attrs
classes and pydantic models.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from fp_async.errors import describe
from fp_async.values.annotations import bare


class Field(typing.NamedTuple):
    """A field: its key in data, its name as an argument of the class, its annotation."""

    key: str
    name: str
    kind: Any
    required: bool


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a class is made of. `closed`: other keys are mistakes; `positional`: a list will do;
    `judges`: the class itself looks at the values, too, and says what is wrong with them; `whole`
    makes it of what is no mapping.
    """

    made: type
    fields: Callable[[], list[Field]]
    build: Callable[[Mapping[str, Any]], Any]
    closed: bool = True
    positional: bool = False
    is_mapping: bool = False
    judges: bool = False
    whole: Callable[[Any], Any] | None = None
    tag: tuple[str, Any] | None = None

    def untagged(self, value: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
        """The mapping without the tag of the Struct; None where it is the tag of another one."""
        if self.tag is None or self.tag[0] not in value:
            return value
        if value[self.tag[0]] != self.tag[1]:
            return None
        return {key: item for key, item in value.items() if key != self.tag[0]}


def shape(kind: Any, origin: type, arguments: tuple[Any, ...]) -> Shape | None:
    """The shape of a class that has fields."""
    if issubclass(origin, msgspec.Struct):
        return _struct(origin, kind)
    if hasattr(origin, "model_validate") and hasattr(origin, "model_fields"):
        return _pydantic(origin)
    makers = (
        (typing.is_typeddict(origin), _typed_dict),
        (issubclass(origin, tuple) and hasattr(origin, "_fields"), _named_tuple),
        (hasattr(origin, "__attrs_attrs__"), _attrs),
        (dataclasses.is_dataclass(origin), _dataclass),
    )
    return next((make(origin, arguments) for is_one, make in makers if is_one), None)


def _hints(kind: type, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """The annotations of a class, with the parameters of a generic one put in.

    One that cannot be resolved (a name that is there for type checkers only) is anything.
    """
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except Exception:  # whatever the evaluation of a user's annotation raises
        return {}
    put = dict(zip(getattr(kind, "__parameters__", ()), arguments, strict=False))
    return {name: _with_parameters(hint, put) for name, hint in hints.items()} if put else hints


def _with_parameters(hint: Any, put: Mapping[Any, Any]) -> Any:
    if hint in put:
        return put[hint]
    open_ = getattr(hint, "__parameters__", ())
    return hint[tuple(put.get(each, each) for each in open_)] if open_ else hint


def _typed_dict(kind: Any, arguments: tuple[Any, ...]) -> Shape:
    def fields() -> list[Field]:
        hints = _hints(kind, arguments) or dict.fromkeys(kind.__annotations__, Any)
        needed = kind.__required_keys__  # which do not see `Required` in postponed annotations
        said = {typing.Required: True, typing.NotRequired: False}
        return [
            Field(n, n, bare(hint), said.get(typing.get_origin(hint), n in needed))
            for n, hint in hints.items()
        ]

    return Shape(dict, fields, dict, is_mapping=True)


def _named_tuple(kind: Any, arguments: tuple[Any, ...]) -> Shape:
    def fields() -> list[Field]:
        hints, defaults = _hints(kind, arguments), kind._field_defaults
        return [Field(n, n, hints.get(n, Any), n not in defaults) for n in kind._fields]

    return Shape(kind, fields, lambda made: kind(**made), positional=True)


def _struct(kind: Any, whole: Any) -> Shape:
    def fields() -> list[Field]:
        found = msgspec.structs.fields(whole)
        return [Field(f.encode_name, f.name, f.type, f.required) for f in found]

    def build(made: Mapping[str, Any]) -> Any:
        return kind(**made)

    config = kind.__struct_config__
    tag = None if config.tag is None else (config.tag_field, config.tag)
    return Shape(kind, fields, build, positional=config.array_like, tag=tag)


def _dataclass(kind: Any, arguments: tuple[Any, ...]) -> Shape:
    def fields() -> list[Field]:
        hints = _hints(kind, arguments)
        return [
            Field(each.name, each.name, _init_var(hints.get(each.name, Any)), _needed(each))
            for each in kind.__dataclass_fields__.values()
            if each.init
            and hints.get(each.name) is not typing.ClassVar
            and typing.get_origin(hints.get(each.name)) is not typing.ClassVar
        ]

    return Shape(kind, fields, lambda made: kind(**made))


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _init_var(hint: Any) -> Any:
    return hint.type if isinstance(hint, dataclasses.InitVar) else hint


def _attrs(kind: Any, arguments: tuple[Any, ...]) -> Shape:
    def fields() -> list[Field]:
        hints = _hints(kind, arguments)
        nothing = object()
        return [
            Field(
                each.name,
                each.alias or each.name,
                hints.get(each.name, Any),
                repr(getattr(each, "default", nothing)) == "NOTHING",
            )
            for each in kind.__attrs_attrs__
            if each.init
        ]

    return Shape(kind, fields, lambda made: kind(**made))


def _pydantic(kind: Any) -> Shape:
    """Its own validators judge what it is given; they are told to be as strict as we are."""

    def fields() -> list[Field]:
        return [
            Field(_alias(name, field), _alias(name, field), field.annotation, field.is_required())
            for name, field in kind.model_fields.items()
        ]

    def build(made: Any) -> Any:
        return kind.model_validate(made, strict=True)

    closed = kind.model_config.get("extra") in (None, "forbid")
    root = list(kind.model_fields) == ["root"]
    return Shape(
        kind,
        fields,
        build,
        closed=closed and not root,
        judges=True,
        whole=build if root else None,
    )


def _alias(name: str, field: Any) -> str:
    alias = field.validation_alias or field.alias
    return alias if isinstance(alias, str) else name


def complaint(error: Exception) -> tuple[tuple[str | int, ...], str]:
    """(place, text) of what a class says of the values it was to be made of."""
    if hasattr(error, "errors") and hasattr(error, "error_count"):
        first = error.errors()[0]
        return tuple(first["loc"]), str(first["msg"])
    return (), f"the class refuses it: {describe(error)}"
