"""Where data does not fit a type, and why, in words of our own.

msgspec decides whether data fits. Its messages are worded differently from release to release, and
write `[...]` for the keys of mappings. So none is read: after a refusal the data is walked along
the type, mappings and lists here, scalars by msgspec once more as a yes or no.
"""

from __future__ import annotations

import enum
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from fp_async.errors import UsageError, suggestion

KeyPath = tuple[str | int, ...]
T = TypeVar("T")
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # raised by decoders
_ANYTHING = (Any, object, msgspec.Raw)
_LISTS = (list, tuple, set, frozenset)
_NOT_GIVEN = (type(None), msgspec.UnsetType)
_SHOWN = 60  # characters of a wrong value


class Mismatch(msgspec.Struct, frozen=True):
    """The first place where data does not fit a type.

    `value` is what stands there, `missing` the name of a key that should.
    """

    path: KeyPath
    problem: str
    missing: str = ""
    value: Any = None

    def __str__(self) -> str:
        where = ".".join(map(str, self.path))
        return f"{where}: {self.problem}" if where else self.problem

    def below(self, key: str | int) -> Mismatch:
        """The same mismatch, seen from the container that holds its data at `key`."""
        return msgspec.structs.replace(self, path=(key, *self.path))


def converted(values: Any, kind: type[T], what: str) -> T:
    """Return a caller's values as `kind`; a UsageError says what of `what` is wrong."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{what}: {explain(values, kind)}") from error


def decoded(payload: bytes, kind: type[T], refusal: Callable[[str], Exception]) -> T:
    """Return JSON as `kind`; raise `refusal` of the reason if it is none, or does not fit."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except UNREADABLE as error:
        raise refusal(str(explain_json(payload, kind))) from error


def explain(data: Any, kind: Any, *, strict: bool = True) -> Mismatch:
    """Return where `data` does not fit, after `msgspec.convert` or a decoder refused it."""
    fallback = Mismatch((), f"does not fit {_name(kind)}")
    try:
        return find(data, kind, strict=strict) or fallback
    except RecursionError:
        return Mismatch((), "nested too deeply")


def explain_json(payload: bytes, kind: Any) -> Mismatch:
    """Return why a decoder of JSON refused `payload`: no JSON, or data that does not fit."""
    try:
        data = msgspec.json.decode(payload)
    except UNREADABLE:
        return Mismatch((), f"not valid JSON: {json_problem(payload)}")
    return explain(data, kind)


def json_problem(payload: bytes) -> str:
    """Return what is wrong in `payload`, which msgspec refused as JSON, with the place."""
    import json  # knows the place, as numbers; agents never load it

    try:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            msgspec.json.decode(payload)
        text = payload.decode()
        json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_number)
    except UnicodeDecodeError as error:
        return f"no UTF-8 at byte {error.start}"
    except RecursionError:
        return "nested too deeply"
    except json.JSONDecodeError as error:
        if error.pos >= len(error.doc.rstrip()):
            return "truncated" if error.doc.strip() else "empty"
        found = error.doc[error.pos : error.pos + 12]
        return f"malformed at line {error.lineno}, column {error.colno}: {found!r}"
    except ValueError as error:  # of _number
        return str(error)
    return "half a surrogate pair"  # the only thing left that msgspec refuses


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:12]} is no finite number")
    return number


def find(data: Any, kind: Any, *, strict: bool = True) -> Mismatch | None:
    """Return the first place where `data` does not fit `kind`; None if it fits."""
    kind, limits = _bare(kind)
    if any(member in _ANYTHING for member in _members(kind)):
        return None
    walk = _walk_of(kind)
    wrong = walk(data, kind, strict)
    if wrong or not limits:
        return wrong
    return _beyond(data if walk is not _of_scalar else _read(data, kind, strict), limits)


def _walk_of(kind: Any) -> Callable[[Any, Any, bool], Mismatch | None]:
    origin = typing.get_origin(kind) or kind
    if origin in (typing.Union, types.UnionType):
        return _of_union
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _of_struct
    if origin is dict:
        return _of_mapping
    return _of_sequence if origin in _LISTS else _of_scalar


def _bare(kind: Any) -> tuple[Any, list[msgspec.Meta]]:
    """A type without `Annotated`, and the limits that stood in it."""
    if typing.get_origin(kind) is not Annotated:
        return kind, []
    inner, *extras = typing.get_args(kind)
    return inner, [extra for extra in extras if isinstance(extra, msgspec.Meta)]


def _members(kind: Any) -> tuple[Any, ...]:
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


# Containers -----------------------------------------------------------------------------------


def _of_struct(data: Any, kind: type[msgspec.Struct], strict: bool) -> Mismatch | None:
    if isinstance(data, kind):
        return None
    if not isinstance(data, Mapping):
        return _wrong_kind(data, kind)
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for key, value in data.items():
        if key not in fields:
            wrong = _of_other_key(key, value, kind, list(fields))
        elif wrong := find(value, fields[key].type, strict=strict):
            wrong = wrong.below(key)
        if wrong:
            return wrong
    absent = (name for name, field in fields.items() if field.required and name not in data)
    return next((_missing(name) for name in absent), None)


def _of_other_key(
    key: Any, value: Any, kind: type[msgspec.Struct], names: list[str]
) -> Mismatch | None:
    """The tag of the Struct, or a key that it does not have."""
    if key == kind.__struct_config__.tag_field:
        return _of_tag(value, {kind.__struct_config__.tag: kind}, key)
    if not kind.__struct_config__.forbid_unknown_fields:
        return None
    return Mismatch((str(key),), f"unknown key{suggestion(str(key), names)}")


def _of_tag(tag: Any, known: Mapping[Any, type], field: str) -> Mismatch | None:
    if isinstance(tag, str | int) and tag in known:
        return None
    return Mismatch((field,), _unknown(tag, known), value=tag)


def _missing(name: str) -> Mismatch:
    return Mismatch((), f"the key '{name}' is missing", missing=name)


def _of_mapping(data: Any, kind: Any, strict: bool) -> Mismatch | None:
    if not isinstance(data, Mapping):
        return _wrong_kind(data, kind)
    names, values = typing.get_args(kind) or (Any, Any)
    for key, value in data.items():
        if wrong := find(key, names, strict=strict):
            return Mismatch((), f"as a key: {wrong.problem}").below(key)
        if wrong := find(value, values, strict=strict):
            return wrong.below(key)
    return None


def _of_sequence(data: Any, kind: Any, strict: bool) -> Mismatch | None:
    if not isinstance(data, _LISTS):
        return _wrong_kind(data, kind)
    args = typing.get_args(kind) or (Any,)
    fixed = (
        (typing.get_origin(kind) or kind) is tuple and args[-1] is not Ellipsis and args != (Any,)
    )
    if fixed and len(data) != len(args):
        return Mismatch((), f"expected {len(args)} items, got {len(data)}")
    for index, item in enumerate(data):
        if wrong := find(item, args[index if fixed else 0], strict=strict):
            return wrong.below(index)
    return None


# Unions ---------------------------------------------------------------------------------------


def _of_union(data: Any, kind: Any, strict: bool) -> Mismatch | None:
    shape = _shape_of_data(data)
    alike = [member for member in _members(kind) if _shape(member) == shape]
    if shape == "scalar" and _fits(data, kind, strict):
        return None
    if shape == "mapping" and (tagged := _tagged(alike)):
        return _of_tagged(data, tagged, strict)
    found = [(find(data, member, strict=strict), member) for member in alike]
    if any(wrong is None for wrong, _ in found):
        return None
    whole = _wrong_kind(data, kind)
    return next((w for w, member in found if w != _wrong_kind(data, member)), whole)


def _tagged(members: list[Any]) -> dict[Any, type[msgspec.Struct]]:
    structs = (m for m in members if isinstance(m, type) and issubclass(m, msgspec.Struct))
    return {m.__struct_config__.tag: m for m in structs if m.__struct_config__.tag is not None}


def _of_tagged(
    data: Mapping[Any, Any], tagged: dict[Any, type[msgspec.Struct]], strict: bool
) -> Mismatch | None:
    field = str(next(iter(tagged.values())).__struct_config__.tag_field)
    if field not in data:
        return _missing(field)
    return _of_tag(data[field], tagged, field) or find(data, tagged[data[field]], strict=strict)


def _shape(kind: Any) -> str:
    walk = _walk_of(_bare(kind)[0])
    if walk in (_of_struct, _of_mapping):
        return "mapping"
    return "list" if walk is _of_sequence else "scalar"


def _shape_of_data(data: Any) -> str:
    if isinstance(data, Mapping | msgspec.Struct):
        return "mapping"
    return "list" if isinstance(data, _LISTS) else "scalar"


# Scalars --------------------------------------------------------------------------------------


def _of_scalar(data: Any, kind: Any, strict: bool) -> Mismatch | None:
    if _fits(data, kind, strict):
        return None
    if isinstance(data, str | int) and (choices := _choices(kind)):
        return Mismatch((), _unknown(data, choices), value=data)
    if isinstance(data, str) and kind not in (bool, int, float, str, *_NOT_GIVEN):
        return Mismatch((), f"{_shown(data)} is no {_name(kind)}")
    return _wrong_kind(data, kind)


def _fits(data: Any, kind: Any, strict: bool) -> bool:
    try:
        _read(data, kind, strict)
    except (msgspec.ValidationError, TypeError):
        return False
    return True


def _read(data: Any, kind: Any, strict: bool) -> Any:
    return msgspec.convert(data, kind, strict=strict)


def _beyond(value: Any, limits: list[msgspec.Meta]) -> Mismatch | None:
    """The limit that a value of the right kind is beyond."""
    problems = (problem for limit in limits for problem in _problems(value, limit))
    return next((Mismatch((), problem) for problem in problems), None)


def _problems(value: Any, limit: msgspec.Meta) -> Iterator[str]:
    for sign, bound, holds in (
        (">", limit.gt, operator.gt),
        (">=", limit.ge, operator.ge),
        ("<", limit.lt, operator.lt),
        ("<=", limit.le, operator.le),
    ):
        if bound is not None and not holds(value, bound):
            yield f"expected {type(value).__name__} {sign} {bound}"
    if limit.multiple_of is not None and value % limit.multiple_of:
        yield f"expected a multiple of {limit.multiple_of}"
    if limit.pattern is not None and not re.search(limit.pattern, value):
        words = f"is not {limit.description}" if limit.description else "is not of this form"
        yield f"{_shown(value)} {words}"
    if limit.min_length is not None and len(value) < limit.min_length:
        yield f"expected at least {limit.min_length} {_items(value)}, got {len(value)}"
    if limit.max_length is not None and len(value) > limit.max_length:
        yield f"expected at most {limit.max_length} {_items(value)}, got {len(value)}"


# Words ----------------------------------------------------------------------------------------


def _wrong_kind(data: Any, kind: Any) -> Mismatch:
    return Mismatch((), f"expected {_name(kind)}, got {_got(data)}", value=data)


def _unknown(value: Any, valid: Iterable[Any]) -> str:
    return f"unknown value {_shown(value)}{suggestion(str(value), map(str, valid))}"


def _choices(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return tuple(member.value for member in kind)
    return ()


def _name(kind: Any) -> str:
    """A type in words; null and absence go without saying."""
    names = [_plain_name(m) for m in _members(_bare(kind)[0]) if m not in _NOT_GIVEN]
    return " or ".join(dict.fromkeys(names)) or "null"


def _plain_name(kind: Any) -> str:
    inner = _bare(kind)[0]
    if choices := _choices(inner):
        return " or ".join(dict.fromkeys(type(choice).__name__ for choice in choices))
    return _SHAPES.get(_shape(inner)) or str(getattr(inner, "__name__", inner))


_SHAPES = {"mapping": "a mapping", "list": "a list"}


def _got(data: Any) -> str:
    if data is None:
        return "null"
    return _SHAPES.get(_shape_of_data(data)) or type(data).__name__


def _items(value: Any) -> str:
    return "characters" if isinstance(value, str) else "items"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
