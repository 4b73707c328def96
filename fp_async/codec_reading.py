"""JSON data with tags as Python values again: the way back from `codec_values`.

Whatever the data says, nothing is imported by name: a tag picks a function from a table, and a
record becomes an instance only of a class that the caller knows.
"""

from __future__ import annotations

import binascii
import dataclasses
import enum
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

import msgspec

from fp_async.codec_values import MAX_DEPTH, Record, Tagged, shown
from fp_async.errors import EncodingError, describe
from fp_async.values.secret import Secret
from fp_async.values.text import Text

Known = Mapping[str, type] | Callable[[str], type | None] | None
Read = Callable[["Reader", Tagged], Any]
_T = TypeVar("_T")


class Reader:
    """Turns JSON data and its attachments into values; `readers` has a function for each tag."""

    def __init__(self, files: list[bytes], readers: Mapping[str, Read], known: Known) -> None:
        self.unused: dict[int, bytes] = dict(enumerate(files))
        self._readers = readers
        self._known = known
        self._depth = 0

    def read(self, data: Any) -> Any:
        """One value. Raises EncodingError for an unknown tag and for too deep a nesting."""
        kind = type(data)
        if kind is not dict and kind is not list:
            return data
        self._depth += 1
        if self._depth > MAX_DEPTH + 1:
            raise EncodingError(f"the stored value is nested deeper than {MAX_DEPTH} levels")
        value = self._read_list(data) if kind is list else self._read_dict(data)
        self._depth -= 1
        return value

    def _read_list(self, data: list[Any]) -> list[Any]:
        return [self.read(item) for item in data]

    def _read_dict(self, data: Tagged) -> Any:
        if "$" not in data:
            return {name: self.read(item) for name, item in data.items()}
        reader = self._readers.get(data["$"])
        if reader is None:
            raise EncodingError(f"the stored value has the unknown tag {data['$']!r:.40}")
        return reader(self, data)

    def items(self, data: Tagged, name: str = "v") -> list[Any]:
        """The values of the list at `name`."""
        return self._read_list(checked(data[name], list))

    def pairs(self, data: Tagged) -> list[tuple[Any, Any]]:
        """The keys and values of a mapping."""
        return [(self.read(key), self.read(item)) for key, item in checked(data["v"], list)]

    def blob(self, data: Tagged) -> bytes:
        """The bytes at `v`. An attachment serves once, or few bytes could ask for much memory."""
        where = data["v"]
        if type(where) is int:
            return self.unused.pop(where)
        return binascii.a2b_base64(checked(where, str), strict_mode=True)

    def known(self, name: str) -> type | None:
        """The class of that qualified name, if the caller knows it."""
        if self._known is None:
            return None
        name = shown(name)
        return self._known(name) if callable(self._known) else self._known.get(name)


def checked(value: Any, kind: type[_T]) -> _T:
    """`value`, which has to be of exactly this type."""
    if type(value) is not kind:
        raise EncodingError(f"the stored value has a {type(value).__name__} for a {kind.__name__}")
    return value


def _record(reader: Reader, data: Tagged) -> Any:
    name = checked(data["of"], str)
    fields = {field: reader.read(item) for field, item in checked(data["v"], dict).items()}
    kind = reader.known(name)
    if kind is None:
        return Record(name, fields, _member(data), _names(data, fields))
    try:
        return _instance(kind, fields)
    except Exception as error:  # the class's own __init__ may refuse what is stored
        raise EncodingError(
            f"the stored {name} does not fit its class: {describe(error)}"
        ) from error


def _member(data: Tagged) -> str | None:
    return checked(data["member"], str) if "member" in data else None


def _names(data: Tagged, fields: Mapping[str, Any]) -> list[str] | None:
    if "as" not in data:
        return None
    names = [checked(name, str) for name in checked(data["as"], list)]
    if len(names) != len(fields):
        raise EncodingError("the stored value has other names than fields")
    return names


def _instance(kind: type, fields: dict[str, Any]) -> Any:
    if issubclass(kind, enum.Flag):
        return kind(fields["value"])  # a combination of members has no name of its own
    if issubclass(kind, enum.Enum):
        return kind[fields["name"]]
    if issubclass(kind, msgspec.Struct) or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return kind(**fields)
    if not dataclasses.is_dataclass(kind):
        raise EncodingError("it is no dataclass, Struct, NamedTuple or Enum")
    later = {field.name for field in dataclasses.fields(kind) if not field.init} & fields.keys()
    made = kind(**{name: value for name, value in fields.items() if name not in later})
    for name in later:
        object.__setattr__(made, name, fields[name])
    return made


def in_zone(data: Tagged, value: Any) -> Any:
    """`value` with the zone and fold that `zone` noted."""
    place = value.tzinfo
    if "zone" in data:
        from zoneinfo import ZoneInfo

        place = ZoneInfo(data["zone"])
    elif "name" in data:
        place = timezone(value.utcoffset(), data["name"])
    return value.replace(tzinfo=place, fold=data.get("fold", 0))


def _text(make: Callable[[str], Any]) -> Read:
    return lambda reader, data: make(checked(reader.read(data["v"]), str))


def _moment(make: Callable[[str], Any]) -> Read:
    return lambda _, data: in_zone(data, make(checked(data["v"], str)))


def _surrogates(_: Reader, data: Tagged) -> str:
    return binascii.a2b_base64(checked(data["v"], str)).decode("utf-8", "surrogatepass")


def _counter(reader: Reader, data: Tagged) -> Counter[Any]:
    counter: Counter[Any] = Counter()
    for key, count in reader.pairs(data):
        counter[key] = count
    return counter


def _complex(reader: Reader, data: Tagged) -> complex:
    real, imaginary = reader.items(data)
    return complex(checked(real, float), checked(imaginary, float))


READERS: dict[str, Read] = {
    "float": _text(float),
    "int": _text(lambda text: int(text, 16)),
    "str": _surrogates,
    "dict": lambda reader, data: dict(reader.pairs(data)),
    "tuple": lambda reader, data: tuple(reader.items(data)),
    "set": lambda reader, data: set(reader.items(data)),
    "frozenset": lambda reader, data: frozenset(reader.items(data)),
    "OrderedDict": lambda reader, data: OrderedDict(reader.pairs(data)),
    "Counter": _counter,
    "deque": lambda reader, data: deque(reader.items(data), data["max"]),
    "bytes": lambda reader, data: reader.blob(data),
    "bytearray": lambda reader, data: bytearray(reader.blob(data)),
    "datetime": _moment(datetime.fromisoformat),
    "time": _moment(time.fromisoformat),
    "date": _text(date.fromisoformat),
    "timedelta": lambda _, data: timedelta(*checked(data["v"], list)),
    "decimal": _text(Decimal),
    "uuid": _text(uuid.UUID),
    "secret": _text(Secret),
    "path": _text(Path),
    "posixpath": _text(PurePosixPath),
    "windowspath": _text(PureWindowsPath),
    "text": _text(Text),
    "complex": _complex,
    "record": _record,
}
