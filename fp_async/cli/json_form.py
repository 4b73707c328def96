"""The JSON form of values: objects, arrays, texts and numbers, of everything that has one.

Nothing is lost in silence: where two names become one text, a frame is written as columns and rows
and a mapping is refused; what JSON has no number for is said (`Form.notes`).
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import ipaddress
import math
import re
import types
import uuid
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import PurePath
from typing import Any

import msgspec

from fp_async.cli.text_form import in_order, stood_in
from fp_async.codec_values import Record
from fp_async.errors import UsageError
from fp_async.values.secret import Secret

_LEAVES = (dt.datetime, dt.date, dt.time, dt.timedelta, uuid.UUID, decimal.Decimal)
_TEXTS = (
    *(Secret, PurePath, fractions.Fraction, zoneinfo.ZoneInfo, dt.tzinfo),
    *(ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network),
    *(ipaddress.IPv4Interface, ipaddress.IPv6Interface),
)
_AS_TEXT = ("Period", "Interval", "BaseOffset")  # pandas' own, by the name of a base class
_MISSING = ("NaTType", "NAType")
# Of polars, pyarrow, pandas and others: the first that an object has gives its form.
_METHODS = ("to_dicts", "to_pylist", "isoformat", "to_list", "tolist", "as_py")


class Form:
    """Makes the forms of one result. `notes` are what has to be said of them."""

    def __init__(self) -> None:
        self.notes: dict[str, None] = {}
        self._missing = False  # whether NaN stands for a value that is missing, as in a frame

    def of(self, value: Any) -> Any:
        """What stands for a value in JSON. Raises TypeError for what has no form, ValueError."""
        kind = type(value)
        if value is None or kind in (str, bool, int):
            return value
        if kind is float:
            return self._float(value)
        if (bare := value_of_member(value)) is not value:
            return self.of(bare)
        if (fields := fields_of(value)) is not None:
            return self._mapping(fields)
        for kinds, form in _FORMS:
            if isinstance(value, kinds):
                return form(self, value)
        return self._foreign(value)

    def _float(self, value: float) -> float | None:
        if math.isinf(value) or (math.isnan(value) and not self._missing):
            self.notes["JSON has no infinite numbers and no NaN: they are written as null"] = None
        return value

    def _mapping(self, value: Mapping[Any, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        keys: dict[str, Any] = {}
        for key, item in value.items():
            text = label(key)
            if text in found:
                raise ValueError(
                    f"the keys {keys[text]!r} and {key!r} of a mapping are the same text in JSON"
                )
            keys[text], found[text] = key, self.of(item)
        return found

    def _items(self, value: Iterable[Any]) -> list[Any]:
        return [self.of(item) for item in value]

    def _set(self, value: AbstractSet[Any]) -> list[Any]:
        """In one order in every process: that of the values, else of their JSON."""
        items = in_order(map(value_of_member, value), encoded)
        return self._items(items)

    def _foreign(self, value: Any) -> Any:
        """Of objects of other libraries, which are known by what they can do."""
        for known, form in _KNOWN:
            if known(value):
                return form(self, value)
        for method in _METHODS:
            if hasattr(value, method):
                return self.of(getattr(value, method)())
        raise TypeError(f"a value of type {type(value).__name__} has no JSON form")

    def _numpy(self, value: Any) -> Any:
        """Arrays and their scalars; a time by itself would give a count of nanoseconds."""
        if value.dtype.names:
            rows = value.tolist() if value.ndim else [value.item()]
            if value.ndim > 1:
                return self._items(list(value))
            found = [self._mapping(dict(zip(value.dtype.names, r, strict=True))) for r in rows]
            return found if value.ndim else found[0]
        if value.dtype.kind not in ("m", "M"):
            return self.of(value.tolist())
        if value.ndim:
            return self._items(list(value))
        if str(value) == "NaT":
            return None
        return str(value) if value.dtype.kind == "M" else value.astype("timedelta64[us]").item()

    def _pandas(self, value: Any) -> Any:
        """A frame as records, a series as values; an index that says something goes along.

        A series with one is an object from label to value, or records where labels repeat.
        """
        if hasattr(value, "columns"):
            frame = value if has_plain_index(value) else with_index(value)
            return self._records(
                [*frame.columns], [frame.iloc[:, i] for i in range(frame.shape[1])]
            )
        if has_plain_index(value):
            return self._cells(value.to_list())
        labels = [label(each) for each in value.index]
        if value.index.nlevels == 1 and len(set(labels)) == len(value):
            return dict(zip(labels, self._cells(value.to_list()), strict=True))
        name = "value" if value.name is None else value.name
        return self._pandas(with_index(value.to_frame(name)).reset_index(drop=True))

    def _cells(self, values: Iterable[Any]) -> list[Any]:
        """Those of a column, where NaN is how a missing one is written."""
        before, self._missing = self._missing, True
        try:
            return self._items(values)
        finally:
            self._missing = before

    def _records(self, names: list[Any], columns: list[Any]) -> Any:
        """A list of objects; columns and rows where two names are one text."""
        texts = [label(name) for name in names]
        values = [self._cells(_listed(column)) for column in columns]
        rows = zip(*values, strict=True)
        if len(set(texts)) == len(texts):
            if not texts and columns == []:
                return []
            return [dict(zip(texts, row, strict=True)) for row in rows]
        twice = next(text for text in texts if texts.count(text) > 1)
        self.notes[f"the column name '{twice}' is there twice: written as columns and data"] = None
        return {"columns": self._items(names), "data": [list(row) for row in rows]}


def _text(_: Form, value: Any) -> str:
    return str(value)


def _number(form: Form, value: Any) -> Any:
    return form.of(bool(value) if isinstance(value, bool) else _base(value)(value))


def _base(value: Any) -> type:
    return next(kind for kind in (int, float, str) if isinstance(value, kind))


def _complex(_: Form, value: complex) -> str:
    return str(value).strip("()")


def _encoded(_: Form, value: Any) -> Any:
    return msgspec.to_builtins(bytes(value))


def _leaf(_: Form, value: Any) -> Any:
    if type(value).__module__.partition(".")[0] == "pandas":  # with nanoseconds, and NaT
        return value.isoformat() if str(value) != "NaT" else None
    return msgspec.to_builtins(value) if type(value) in _LEAVES else _plain_leaf(value)


def _plain_leaf(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _nothing(_: Form, value: Any) -> Any:
    raise TypeError(f"a value of type {type(value).__name__} has no JSON form")


_FORMS: tuple[tuple[Any, Callable[[Form, Any], Any]], ...] = (
    (type | types.FunctionType | types.ModuleType | types.BuiltinFunctionType, _nothing),
    (re.Pattern, lambda _, value: value.pattern),
    (_LEAVES, _leaf),
    (_TEXTS, _text),
    (Mapping, Form._mapping),
    (AbstractSet, Form._set),
    (complex, _complex),
    (bytes | bytearray | memoryview, _encoded),
    (list | tuple | range | collections.deque | type({}.keys()) | type({}.values()), Form._items),
)


_KNOWN: tuple[tuple[Callable[[Any], Any], Callable[[Form, Any], Any]], ...] = (
    (lambda value: type(value).__name__ in _MISSING, lambda *_: None),
    (lambda value: {base.__name__ for base in type(value).__mro__} & {*_AS_TEXT}, _text),
    (lambda value: hasattr(value, "to_dict") and hasattr(value, "index"), Form._pandas),
    (
        lambda value: columns_of(value) is not None,
        lambda form, value: form._records(*columns_of(value) or ()),
    ),
    (
        lambda value: hasattr(value, "tobytes") and getattr(value, "dtype", None) is not None,
        Form._numpy,
    ),
    (lambda value: bool(is_lazy(value)), lambda form, value: form.of(value.collect())),
)


def fields_of(value: Any) -> Mapping[str, Any] | None:
    """The fields of a record of any kind, by name: a dataclass's, a named tuple's, a model's."""
    kind = type(value)
    if isinstance(value, Record):
        found = value._asdict()
        return dict(zip(value._names or tuple(found), found.values(), strict=True))
    if hasattr(kind, "model_dump"):  # pydantic
        found = value.model_dump(mode="json")
        return found if isinstance(found, Mapping) else None
    names = _field_names(kind)
    return None if names is None else {shown: getattr(value, name) for shown, name in names}


def value_of_member(value: Any) -> Any:
    """The value of an Enum member, also of one whose class is not known here; else `value`."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Record) and value._member is not None:
        return value._asdict().get("value")
    return value


def _field_names(kind: type) -> list[tuple[str, str]] | None:
    """Of a class of records the names of the fields: as they are shown, and as attributes."""
    if issubclass(kind, msgspec.Struct):
        return list(zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True))
    if dataclasses.is_dataclass(kind):
        return [(field.name, field.name) for field in dataclasses.fields(kind)]
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return [(name, name) for name in kind._fields]
    attributes = getattr(kind, "__attrs_attrs__", None)
    return None if attributes is None else [(field.name, field.name) for field in attributes]


def is_lazy(value: Any) -> bool:
    """Return whether it is a frame of polars that is not computed yet."""
    return hasattr(value, "collect_schema") and hasattr(value, "collect")


def label(key: Any) -> str:
    """A key, a column's name or a label, as the text that it is in JSON."""
    if isinstance(key, str) and type(key) is str:
        return key
    if key is None or type(key).__name__ in _MISSING:
        return "null"
    if isinstance(key, bool):
        return str(key).lower()
    if isinstance(key, tuple):
        return str(stood_in(key))
    found = Form().of(key)
    return found if isinstance(found, str) else msgspec.json.encode(found).decode()


def has_plain_index(frame: Any) -> bool:
    """Return whether the index only counts from 0."""
    index = frame.index
    if type(index).__name__ != "RangeIndex":
        return False
    return index.name is None and getattr(index, "start", 0) == 0 and getattr(index, "step", 1) == 1


def with_index(frame: Any) -> Any:
    """A frame with its index as its first columns, under names that no column has."""
    taken = {label(name) for name in frame.columns}
    names = []
    for level, name in enumerate(frame.index.names):
        several = frame.index.nlevels > 1
        found = name if name is not None else f"level_{level}" if several else "index"
        while label(found) in taken:
            found = f"{label(found)}_index" if name is not None else f"{found}_"
        taken.add(label(found))
        names.append(found)
    plain = frame.reset_index(drop=True)
    for level, name in enumerate(names):
        wide = (name, *("",) * (plain.columns.nlevels - 1)) if plain.columns.nlevels > 1 else name
        plain.insert(level, wide, frame.index.get_level_values(level))
    return plain


def columns_of(value: Any) -> tuple[list[str], list[Any]] | None:
    """Names and columns of a table of pyarrow or polars; None for anything else."""
    top = type(value).__module__.partition(".")[0]
    if top == "pyarrow" and hasattr(value, "column_names"):
        return list(value.column_names), list(value.columns)
    if top == "polars" and hasattr(value, "get_columns"):
        return list(value.columns), list(value.get_columns())
    return None


def _listed(column: Any) -> list[Any]:
    for method in ("to_pylist", "to_list", "tolist"):
        if hasattr(column, method):
            found: list[Any] = getattr(column, method)()
            return found
    return list(column)


def encoded(value: Any, form: Form | None = None) -> bytes:
    """A value as JSON. Raises UsageError for what has no form."""
    try:
        return msgspec.json.encode((form or Form()).of(value))
    except (TypeError, ValueError, OverflowError, NotImplementedError, RecursionError) as error:
        raise UsageError(f"--output json: {error}; choose --final-vars or a FILE.csv") from error
