"""Frames, series, indexes and scalars of pandas as tagged data, for `codec`.

A frame is its index and its columns one by one, so that dtypes, names, duplicate and mixed labels
and object columns come back exactly, which pyarrow's own conversion does not promise: numbers and
times are numpy arrays, texts and objects are lists, extension types are Arrow streams.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fp_async.codec_arrays import guarded, load, stream, table
from fp_async.codec_reading import Read, Reader, checked, in_zone
from fp_async.codec_values import Tagged, UnwritableError, Writer, zone
from fp_async.errors import EncodingError


def _write_pandas(writer: Writer, value: Any) -> Tagged:
    pd = load("pandas")
    if value is pd.NaT or value is pd.NA:
        return {"$": "pandas.missing", "v": "NaT" if value is pd.NaT else "NA"}
    forms: dict[type, Callable[[Writer, Any], Tagged]] = {
        pd.DataFrame: _frame,
        pd.Series: _series,
        pd.RangeIndex: _range_index,
        pd.MultiIndex: _multi_index,
        pd.Timestamp: _timestamp,
        pd.Timedelta: lambda _, value: {
            "$": "pandas.Timedelta",
            "v": int(value.asm8.view("i8")),
            "unit": value.unit,
        },
    }
    form = forms.get(type(value)) or (_index if isinstance(value, pd.Index) else None)
    if form is None and isinstance(value, pd.api.extensions.ExtensionArray):
        form = _column
    if form is None:
        raise UnwritableError(value)
    return form(writer, value)


def _frame(writer: Writer, value: Any) -> Tagged:
    columns = [_column(writer, value.iloc[:, at].array) for at in range(value.shape[1])]
    return {
        "$": "pandas.DataFrame",
        "columns": writer.write(value.columns, "columns"),
        "index": writer.write(value.index, "index"),
        "attrs": writer.write(value.attrs, "attrs"),
        "v": columns,
    }


def _series(writer: Writer, value: Any) -> Tagged:
    return {
        "$": "pandas.Series",
        "name": writer.write(value.name, "name"),
        "index": writer.write(value.index, "index"),
        "attrs": writer.write(value.attrs, "attrs"),
        "v": _column(writer, value.array),
    }


def _range_index(writer: Writer, value: Any) -> Tagged:
    bounds = [value.start, value.stop, value.step]
    return {"$": "pandas.RangeIndex", "v": bounds, "name": writer.write(value.name, "name")}


def _multi_index(writer: Writer, value: Any) -> Tagged:
    return {
        "$": "pandas.MultiIndex",
        "levels": [writer.write(level) for level in value.levels],
        "codes": [writer.write(load("numpy").asarray(codes)) for codes in value.codes],
        "names": writer.write(list(value.names), "names"),
    }


def _index(writer: Writer, value: Any) -> Tagged:
    data = {
        "$": "pandas.Index",
        "name": writer.write(value.name),
        "v": _column(writer, value.array),
    }
    if value.dtype.kind in "mM" and value.freq is not None:
        data["freq"] = value.freqstr
    return data


def _timestamp(_: Writer, value: Any) -> Tagged:
    more = zone(value, value.tzinfo)
    return {"$": "pandas.Timestamp", "v": value.isoformat(), "unit": value.unit, **more}


def _column(writer: Writer, values: Any) -> Any:
    """The values of one column, by their dtype."""
    pd, np = load("pandas"), load("numpy")
    if type(values) is pd.arrays.NumpyExtensionArray:  # a StringArray is a subclass of it
        values = values.to_numpy()
    dtype = values.dtype
    if isinstance(dtype, np.dtype):
        plain = np.asarray(values)
        objects = dtype.kind == "O"
        return (
            {"$": "pandas.objects", "v": writer.write(plain.tolist())}
            if objects
            else writer.write(plain)
        )
    if isinstance(dtype, pd.CategoricalDtype):
        data = {"codes": writer.write(values.codes), "ordered": bool(values.ordered)}
        return {"$": "pandas.Categorical", "categories": writer.write(values.categories), **data}
    if isinstance(dtype, pd.DatetimeTZDtype):
        moments = writer.write(np.asarray(values.view("i8")).view(f"M8[{dtype.unit}]"))
        return {"$": "pandas.moments", "dtype": _dtype_name(values), "v": moments}
    if isinstance(dtype, pd.StringDtype):
        texts = values.to_numpy(dtype=object, na_value=None).tolist()
        nan = getattr(dtype, "na_value", pd.NA) is not pd.NA
        return {
            "$": "pandas.strings",
            "storage": dtype.storage,
            "nan": nan,
            "v": writer.write(texts),
        }
    blob = stream(load("pyarrow"), load("pyarrow").array(values))
    return {"$": "pandas.arrow", "dtype": _dtype_name(values), "v": writer.blob(blob)}


def _dtype_name(values: Any) -> str:
    name = str(values.dtype)
    if load("pandas").api.types.pandas_dtype(name) != values.dtype:
        raise UnwritableError(values, reason=f"a column of dtype {values.dtype!r}")
    return name


def _read_objects(reader: Reader, data: Tagged) -> Any:
    items = reader.items(data)
    values = load("numpy").empty(len(items), dtype=object)
    for at, item in enumerate(items):  # not values[:], which takes nested lists apart
        values[at] = item
    return values


def _read_categorical(reader: Reader, data: Tagged) -> Any:
    categories, codes = reader.read(data["categories"]), reader.read(data["codes"])
    ordered = checked(data["ordered"], bool)
    return load("pandas").Categorical.from_codes(codes, categories=categories, ordered=ordered)


def _read_moments(reader: Reader, data: Tagged) -> Any:
    pd = load("pandas")
    dtype = pd.api.types.pandas_dtype(checked(data["dtype"], str))
    moments = pd.DatetimeIndex(reader.read(data["v"])).tz_localize("UTC").tz_convert(dtype.tz)
    return moments.array


def _read_strings(reader: Reader, data: Tagged) -> Any:
    pd = load("pandas")
    storage = checked(data["storage"], str)
    missing = {"na_value": math.nan} if checked(data["nan"], bool) else {}
    if storage != "python" and not _has_pyarrow():
        storage = "python"  # the same texts; else no frame of such a program could be read here
    return pd.array(reader.items(data), dtype=pd.StringDtype(storage, **missing))


def _has_pyarrow() -> bool:
    try:
        load("pyarrow")
    except EncodingError:
        return False
    return True


def _read_extension(reader: Reader, data: Tagged) -> Any:
    dtype = load("pandas").api.types.pandas_dtype(checked(data["dtype"], str))
    return dtype.__from_arrow__(table(reader.blob(data)).column(0))


def _read_index(reader: Reader, data: Tagged) -> Any:
    pd, values = load("pandas"), reader.read(data["v"])
    index = pd.Index(values, dtype=values.dtype, name=reader.read(data["name"]))
    if "freq" in data:
        index.freq = checked(data["freq"], str)
    return index


def _read_multi_index(reader: Reader, data: Tagged) -> Any:
    parts = {name: reader.items(data, name) for name in ("levels", "codes")}
    return load("pandas").MultiIndex(**parts, names=reader.read(data["names"]))


def _read_range_index(reader: Reader, data: Tagged) -> Any:
    return load("pandas").RangeIndex(*checked(data["v"], list), name=reader.read(data["name"]))


def _read_frame(reader: Reader, data: Tagged) -> Any:
    columns, index = reader.read(data["columns"]), reader.read(data["index"])
    frame = load("pandas").DataFrame(dict(enumerate(reader.items(data))), index=index)
    frame.columns = columns
    frame.attrs = checked(reader.read(data["attrs"]), dict)
    return frame


def _read_series(reader: Reader, data: Tagged) -> Any:
    name, index, values = (reader.read(data[part]) for part in ("name", "index", "v"))
    series = load("pandas").Series(values, index=index, name=name, dtype=values.dtype)
    series.attrs = checked(reader.read(data["attrs"]), dict)
    return series


def _read_timestamp(_: Reader, data: Tagged) -> Any:
    moment = load("pandas").Timestamp(checked(data["v"], str)).as_unit(checked(data["unit"], str))
    return in_zone(data, moment)


def _read_timedelta(_: Reader, data: Tagged) -> Any:
    span = load("numpy").timedelta64(checked(data["v"], int), checked(data["unit"], str))
    return load("pandas").Timedelta(span)


def _read_missing(_: Reader, data: Tagged) -> Any:
    return load("pandas").NaT if data["v"] == "NaT" else load("pandas").NA


LIBRARIES: dict[str, Callable[[Writer, Any], Tagged]] = {"pandas": guarded(_write_pandas)}
READERS: dict[str, Read] = {
    "pandas.DataFrame": _read_frame,
    "pandas.Series": _read_series,
    "pandas.Index": _read_index,
    "pandas.MultiIndex": _read_multi_index,
    "pandas.RangeIndex": _read_range_index,
    "pandas.objects": _read_objects,
    "pandas.Categorical": _read_categorical,
    "pandas.moments": _read_moments,
    "pandas.strings": _read_strings,
    "pandas.arrow": _read_extension,
    "pandas.Timestamp": _read_timestamp,
    "pandas.Timedelta": _read_timedelta,
    "pandas.missing": _read_missing,
}
