"""Python values as JSON data with tags: what `codec` writes; `codec_reading` is the way back.

Exact for None, bool, int, float, str, list, tuple, set, frozenset, dict, deque, OrderedDict,
Counter, bytes, bytearray, date and time types, Decimal, UUID, paths and complex. Structs,
dataclasses, NamedTuples and Enum members are records: a qualified name and the fields. Other
subclasses are refused rather than silently turned into their base.
"""

from __future__ import annotations

import binascii
import dataclasses
import enum
import math
import re
import sys
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import msgspec

from fp_async.values.secret import Secret
from fp_async.values.text import Text

MAX_DEPTH = 100
TOO_DEEP = f"its value is nested deeper than {MAX_DEPTH} levels, or contains itself"
_MANY = 16  # items, from which on looking at all their types at once is faster
_DEEP = "nested too deep"
_INLINE = 1024  # bytes: a smaller binary is base64 in the text, so that the whole stays text
_MADE_UP = re.compile(r"^fp_pipelines_\w+_[0-9a-f]{8}(_\d+)?\.")  # as of earlier releases
_LOWEST, _HIGHEST = -(2**63), 2**64 - 1
_ATOMS = frozenset({type(None), bool, str})
_STR = frozenset({str})

Tagged = dict[str, Any]


class Record:
    """A Struct, dataclass, NamedTuple or Enum member whose class the reader does not know.

    `record.owner` and `record["owner"]` give a field, `_asdict()` all of them, `_kind` the
    qualified name of the class. Frozen; an Enum member has the fields `name` and `value`, and its
    text as `_member`, which is None for anything else. `_names` are the fields' names in JSON
    where the class has others there (a Struct with `rename`), else None.
    """

    __slots__ = ("_fields", "_kind", "_member", "_names")
    _fields: dict[str, Any]
    _kind: str
    _member: str | None
    _names: tuple[str, ...] | None

    def __init__(
        self,
        kind: str,
        fields: Mapping[str, Any],
        member: str | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_fields", dict(fields))
        object.__setattr__(self, "_member", member)
        object.__setattr__(self, "_names", None if names is None else tuple(names))

    def _asdict(self) -> dict[str, Any]:
        return dict(self._fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._fields:
            raise AttributeError(f"{shown(self._kind)} has no field '{name}'")
        return self._fields[name]

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[Any]:
        # Names or values? A NamedTuple would give values, a mapping names.
        raise TypeError("a Record cannot be iterated: use _asdict()")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Record is frozen: {name}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return self._kind == other._kind and self._fields == other._fields

    def __hash__(self) -> int:
        return hash((self._kind, tuple(self._fields.items())))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self._fields.items())
        return f"<{shown(self._kind)} {fields}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, (self._kind, self._fields, self._member, self._names)


class UnwritableError(Exception):
    """A value that has no form as data; `reason` names its type, `trail` leads to it. `lacks`: it
    would have one if a library was installed.
    """

    def __init__(
        self, value: Any, hint: str = "", *, reason: str = "", lacks: bool = False
    ) -> None:
        self.lacks = lacks
        self.reason: str = (
            reason or f"a {shown(type_name(type(value)))}{f' ({hint})' if hint else ''}"
        )
        self.trail: list[tuple[Any, int]] = []
        super().__init__(self.reason)

    def place(self) -> tuple[str, str]:
        """The name of the outermost entry, and the path, as `scores[3].owner`."""
        steps = [step for step, _ in reversed(self.trail) if step is not None]
        path = "".join(map(_step, steps[:12])).removeprefix(".")
        name = steps[0] if steps and isinstance(steps[0], str) else ""
        return name, path + ("..." if len(steps) > 12 else "")


def _step(step: Any) -> str:
    if isinstance(step, str) and step.isidentifier():
        return f".{step}"
    return f"[{_short(step)}]"


def _short(step: Any) -> str:
    try:
        return f"{step!r:.40}"
    except Exception:  # a key of the user's, with a mistake in its __repr__
        return f"<{type(step).__name__}>"


def type_name(kind: type) -> str:
    """`module.QualifiedName`; built-in types without the module."""
    module = kind.__module__
    if (copies := sys.modules.get("fp_async.copies")) is not None:  # else there are none
        module = copies.plainly(module)
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def shown(name: str) -> str:
    """A class's name as its author knows it."""
    return _MADE_UP.sub("", name)


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether JSON itself gives back exactly this value (texts are not looked into)."""
    kind = type(value)
    if kind is int:
        return bool(_LOWEST <= value <= _HIGHEST)
    if kind is float:
        return math.isfinite(value)
    if kind is dict:
        return _STR.issuperset(map(type, value)) and _are_plain(value.values(), depth)
    return kind in _ATOMS or (kind is list and _are_plain(value, depth))


def _are_plain(items: Collection[Any], depth: int) -> bool:
    if depth >= MAX_DEPTH:
        return False
    if len(items) > _MANY and _is_flat(items):
        return True
    for item in items:  # noqa: SIM110  # atoms are seen here, for most inputs are a few scalars
        if type(item) not in _ATOMS and not is_plain(item, depth + 1):
            return False
    return True


def _is_flat(items: Collection[Any]) -> bool:
    """Fast for the usual cases: nothing but texts, but floats, or but integers."""
    if _ATOMS.issuperset(map(type, items)):
        return True
    kinds = set(map(type, items))
    if kinds == {float}:
        return all(map(math.isfinite, items))
    return kinds == {int} and min(items) >= _LOWEST and max(items) <= _HIGHEST


class Writer:
    """Turns one value into JSON data and `blobs`, the attachments.

    `libraries` has a function for the types of each foreign package. `careful` looks into each
    text for what UTF-8 has not.
    """

    def __init__(
        self, libraries: Mapping[str, Callable[[Writer, Any], Tagged]], *, careful: bool = False
    ) -> None:
        self.blobs: list[bytes] = []
        self.careful = careful
        self._libraries = libraries
        self._depth = 0

    def write(self, value: Any, step: Any = None) -> Any:
        """`value` as JSON data; `step` is its key, field or index in what contains it."""
        kind = type(value)
        if kind in _ATOMS and not (self.careful and kind is str):
            return value
        self._depth += 1
        try:
            return self._writer(value)(self, value)
        except UnwritableError as error:
            error.trail.append((step, id(value)))
            if error.reason == _DEEP and self._depth == 1:
                error.reason = _why_too_deep(error)
            raise
        finally:
            self._depth -= 1

    def blob(self, data: bytes) -> str | int:
        """Where the bytes are: base64 if they are few, else the number of the attachment."""
        if len(data) <= _INLINE:
            return binascii.b2a_base64(data, newline=False).decode()
        self.blobs.append(data)
        return len(self.blobs) - 1

    def _writer(self, value: Any) -> Callable[[Writer, Any], Any]:
        if self._depth > MAX_DEPTH + 1:
            raise UnwritableError(value, reason=_DEEP)
        return _WRITERS.get(type(value)) or self._special(value)

    def _special(self, value: Any) -> Callable[[Writer, Any], Any]:
        kind = type(value)
        library = self._libraries.get(kind.__module__.partition(".")[0])
        if library:
            return library
        if isinstance(value, Text):
            return _WRITERS[Text]
        if isinstance(value, Record):
            return _write_record
        if fields := _fields(value):
            more = _more(value)
            return lambda writer, _: {**_record(writer, type_name(kind), fields()), **more}
        raise UnwritableError(value, _hint(value))


def _why_too_deep(error: UnwritableError) -> str:
    places = [place for _, place in error.trail]
    if len(set(places)) < len(places):
        return "a value that contains itself (a cycle)"
    return f"nested deeper than {MAX_DEPTH} levels"


def _hint(value: Any) -> str:
    for base in (dict, list, tuple, set, str, bytes, int, float):
        if isinstance(value, base):
            return f"turn it into a plain one with {base.__name__}(...)"
    if hasattr(value, "model_dump"):
        return "use .model_dump()"
    if hasattr(value, "read"):
        return "use its content or its path"
    return "turn it into a list" if hasattr(value, "__next__") else ""


def _fields(value: Any) -> Callable[[], dict[str, Any]] | None:
    kind = type(value)
    if isinstance(value, enum.Enum):
        return lambda: {"name": value.name, "value": value.value}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return lambda: dict(zip(kind._fields, value, strict=True))
    names = getattr(kind, "__struct_fields__", None) if isinstance(value, msgspec.Struct) else None
    if names is None and dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
    if names is None:
        return None
    return lambda: {name: getattr(value, name) for name in names if hasattr(value, name)}


def _record(writer: Writer, kind: str, fields: Mapping[str, Any]) -> Tagged:
    data = {name: writer.write(value, name) for name, value in fields.items()}
    return {"$": "record", "of": kind, "v": data}


def _write_record(writer: Writer, value: Record) -> Tagged:
    return {**_record(writer, value._kind, value._fields), **_marks(value._member, value._names)}


def _more(value: Any) -> Tagged:
    """Return the marks by which a reader without the class writes the value as one with it."""
    if isinstance(value, enum.Enum):
        return _marks(member_text(value), None)
    if isinstance(value, msgspec.Struct):
        fields, names = value.__struct_fields__, value.__struct_encode_fields__
        return _marks(None, None if fields == names else names)
    return {}


def _marks(member: str | None, names: Sequence[str] | None) -> Tagged:
    # Readers of earlier releases take no notice of either.
    marks: Tagged = {} if member is None else {"member": storable(member)}
    return marks if names is None else {**marks, "as": list(names)}


def member_text(value: enum.Enum) -> str:
    """The text of an Enum member, whatever its class's own `__str__` does."""
    try:
        return str(value)
    except Exception:  # of the user's code
        return f"{type(value).__name__}.{value.name}"


def storable(text: str) -> str:
    """A text that UTF-8 can hold."""
    return text if _is_utf8(text) else text.encode(errors="backslashreplace").decode()


def _write_float(_: Writer, value: float) -> Any:
    return value if math.isfinite(value) else {"$": "float", "v": str(value)}


def _write_int(_: Writer, value: int) -> Any:
    return value if _LOWEST <= value <= _HIGHEST else {"$": "int", "v": hex(value)}


def _write_str(_: Writer, value: str) -> Any:
    if _is_utf8(value):
        return value
    data = binascii.b2a_base64(value.encode("utf-8", "surrogatepass"), newline=False)
    return {"$": "str", "v": data.decode()}


def _is_utf8(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _write_list(writer: Writer, value: list[Any]) -> list[Any]:
    if not writer.careful and _is_flat(value):
        return value
    return [writer.write(item, index) for index, item in enumerate(value)]


def _write_dict(writer: Writer, value: dict[Any, Any]) -> Tagged:
    names = {str}.issuperset(map(type, value)) and "$" not in value
    if names and (not writer.careful or all(map(_is_utf8, value))):
        return {name: writer.write(item, name) for name, item in value.items()}
    return {"$": "dict", "v": _pairs(writer, value)}


def _pairs(writer: Writer, value: Mapping[Any, Any]) -> list[Any]:
    return [[writer.write(key, key), writer.write(item, key)] for key, item in value.items()]


def _items(tag: str) -> Callable[[Writer, Any], Tagged]:
    return lambda writer, value: {"$": tag, "v": _write_list(writer, list(value))}


def _text(tag: str, form: Callable[[Any], str] = str) -> Callable[[Writer, Any], Tagged]:
    return lambda writer, value: {"$": tag, "v": writer.write(form(value))}


def zone(value: datetime | time, zone: tzinfo | None) -> Tagged:
    """What the text of a time does not say about its zone: a name, or the second fold."""
    more: Tagged = {"fold": 1} if value.fold else {}
    if isinstance(zone, timezone):
        if zone.tzname(None) != timezone(zone.utcoffset(None)).tzname(None):
            more["name"] = zone.tzname(None)
    elif zone is not None:
        if type(zone).__module__.partition(".")[0] != "zoneinfo" or not getattr(zone, "key", None):
            hint = f"its zone is a {type_name(type(zone))}: use zoneinfo or datetime.timezone"
            raise UnwritableError(value, hint)
        more["zone"] = getattr(zone, "key", None)
    return more


def _moment(tag: str) -> Callable[[Writer, Any], Tagged]:
    return lambda _, value: {"$": tag, "v": value.isoformat(), **zone(value, value.tzinfo)}


_WRITERS: dict[type, Callable[[Writer, Any], Any]] = {
    str: _write_str,
    float: _write_float,
    int: _write_int,
    list: _write_list,
    dict: _write_dict,
    tuple: _items("tuple"),
    set: _items("set"),
    frozenset: _items("frozenset"),
    OrderedDict: lambda writer, value: {"$": "OrderedDict", "v": _pairs(writer, value)},
    Counter: lambda writer, value: {"$": "Counter", "v": _pairs(writer, value)},
    deque: lambda writer, value: {**_items("deque")(writer, value), "max": value.maxlen},
    bytes: lambda writer, value: {"$": "bytes", "v": writer.blob(value)},
    bytearray: lambda writer, value: {"$": "bytearray", "v": writer.blob(bytes(value))},
    datetime: _moment("datetime"),
    time: _moment("time"),
    date: _text("date"),
    timedelta: lambda _, value: {
        "$": "timedelta",
        "v": [value.days, value.seconds, value.microseconds],
    },
    Decimal: _text("decimal"),
    uuid.UUID: _text("uuid"),
    Secret: _text("secret", Secret.reveal),
    type(Path()): _text("path"),
    PurePosixPath: _text("posixpath"),
    PureWindowsPath: _text("windowspath"),
    Text: _text("text", str.__str__),
    complex: lambda writer, value: {
        "$": "complex",
        "v": [writer.write(value.real), writer.write(value.imag)],
    },
}
