"""Arrays and frames of numpy, polars and pyarrow as tagged data, for `codec`.

No library is imported here until there is a value of it, or stored data that needs it. Arrays are
their bytes and a checked dtype; polars and pyarrow are Arrow IPC streams. Those are checked before
a library sees them: sizes, and no compression, behind which a few bytes can ask for any amount of
memory.
"""

from __future__ import annotations

import importlib
import io
import math
import re
import struct
from collections.abc import Callable
from typing import Any

from fp_async.codec_reading import Read, Reader, checked
from fp_async.codec_values import Tagged, UnwritableError, Writer
from fp_async.errors import EncodingError, describe

_DTYPE = re.compile(r"[<>|][biufcmMSUV]\d{1,9}(\[\w{1,20}\])?")
_EMPTY_ROWS = 2**24  # rows that need no bytes, as those of a column of nulls
_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2  # of Arrow's MessageHeader


def load(name: str) -> Any:
    """A library by one of the fixed names below. Raises EncodingError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EncodingError(f"this one needs {name}, here: pip install {name}") from error


# numpy


def _describe_dtype(dtype: Any) -> Any:
    if dtype.subdtype:
        return {"base": _describe_dtype(dtype.subdtype[0]), "shape": list(dtype.subdtype[1])}
    if dtype.names is None:
        return dtype.str
    parts = [dtype.fields[name] for name in dtype.names]
    return {
        "names": list(dtype.names),
        "formats": [_describe_dtype(part[0]) for part in parts],
        "offsets": [part[1] for part in parts],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
    }


def _dtype(data: Any) -> Any:
    np = load("numpy")
    if isinstance(data, str):
        if not _DTYPE.fullmatch(data):
            raise EncodingError(f"the stored array has the dtype {data:.40}")
        return np.dtype(data)
    if "base" in data:
        return np.dtype((_dtype(data["base"]), tuple(data["shape"])))
    fields = {name: data[name] for name in ("names", "offsets", "itemsize")}
    fields["formats"] = [_dtype(part) for part in data["formats"]]
    return np.dtype(fields, align=checked(data["aligned"], bool))


def _write_numpy(writer: Writer, value: Any) -> Tagged:
    np = load("numpy")
    if isinstance(value, np.generic):
        return _write_scalar(writer, value)
    if type(value) is not np.ndarray:
        raise UnwritableError(value, "turn it into a plain array with numpy.asarray(...)")
    if value.dtype.hasobject or value.dtype.kind not in "biufcmMSUV":
        raise UnwritableError(value, reason=f"an array of dtype {value.dtype}; use .tolist()")
    order = "F" if value.flags.fnc else "C"
    return {
        "$": "numpy.array",
        "dtype": _describe_dtype(value.dtype),
        "shape": list(value.shape),
        "order": order,
        "v": writer.blob(value.tobytes(order)),
    }


def _is_simple(dtype: Any) -> bool:
    """Whether a scalar can be a readable JSON value: longdouble and dates cannot."""
    return dtype.kind == "U" or (dtype.kind in "biuf" and dtype.itemsize <= 8)


def _write_scalar(writer: Writer, value: Any) -> Tagged:
    if value.dtype.hasobject:
        raise UnwritableError(value, "it contains objects")
    simple = _is_simple(value.dtype)
    data = writer.write(value.item()) if simple else writer.blob(value.tobytes())
    return {"$": "numpy.scalar", "dtype": _describe_dtype(value.dtype), "v": data}


def _read_array(reader: Reader, data: Tagged) -> Any:
    np = load("numpy")
    blob, dtype = reader.blob(data), _dtype(data["dtype"])
    shape = [checked(size, int) for size in data["shape"]]
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(blob):
        raise EncodingError(f"the stored array has {len(blob)} bytes for {shape} of {dtype}")
    order = "F" if data["order"] == "F" else "C"
    return np.ndarray(tuple(shape), dtype, bytearray(blob) or None, order=order)


def _read_scalar(reader: Reader, data: Tagged) -> Any:
    np = load("numpy")
    dtype = _dtype(data["dtype"])
    if _is_simple(dtype):
        return dtype.type(reader.read(data["v"]))
    return np.ndarray((), dtype, bytearray(_sized(reader.blob(data), dtype.itemsize)))[()]


def _sized(blob: bytes, size: int) -> bytes:
    if len(blob) != size:
        raise EncodingError(f"the stored scalar has {len(blob)} bytes, not {size}")
    return blob


# Arrow: pyarrow and polars


def _write_polars(writer: Writer, value: Any) -> Tagged:
    pl = load("polars")
    if isinstance(value, pl.LazyFrame):
        raise UnwritableError(value, "collect it: .collect()")
    if type(value) not in (pl.DataFrame, pl.Series):
        raise UnwritableError(value)
    sink = io.BytesIO()
    (value if isinstance(value, pl.DataFrame) else value.to_frame()).write_ipc_stream(sink)
    return {"$": f"polars.{type(value).__name__}", "v": writer.blob(sink.getvalue())}


def _read_polars(reader: Reader, data: Tagged) -> Any:
    pl, blob = load("polars"), reader.blob(data)
    _check_stream(blob)
    try:
        frame = pl.read_ipc_stream(io.BytesIO(blob))
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ != "PanicException":
            raise
        raise EncodingError(f"the stored frame cannot be read: {error}") from None
    return frame.to_series() if data["$"] == "polars.Series" else frame


def _write_pyarrow(writer: Writer, value: Any) -> Tagged:
    pa = load("pyarrow")
    kinds = {pa.Table: "Table", pa.RecordBatch: "RecordBatch", pa.ChunkedArray: "ChunkedArray"}
    kind = kinds.get(type(value)) or ("Array" if isinstance(value, pa.Array) else None)
    if kind is None:
        raise UnwritableError(value)
    return {"$": f"pyarrow.{kind}", "v": writer.blob(stream(pa, value))}


def stream(pa: Any, value: Any) -> bytes:
    if not isinstance(value, (pa.Table, pa.RecordBatch)):
        value = pa.table([value], names=[""])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, value.schema) as stream:
        stream.write(value)
    return bytes(sink.getvalue().to_pybytes())


def table(blob: bytes) -> Any:
    pa = load("pyarrow")
    if int(pa.__version__.partition(".")[0]) < 15:  # older ones unpickle extension types
        raise EncodingError("this value needs a newer pyarrow: pip install 'pyarrow>=15'")
    _check_stream(blob)
    read = pa.ipc.open_stream(pa.py_buffer(blob)).read_all()
    read.validate(full=True)  # offsets may point anywhere before this
    return read


def _read_pyarrow(reader: Reader, data: Tagged) -> Any:
    whole = table(reader.blob(data))
    if data["$"] == "pyarrow.Table":
        return whole
    if data["$"] == "pyarrow.ChunkedArray":
        return whole.column(0)
    if data["$"] == "pyarrow.RecordBatch":
        batches = whole.to_batches()
        return batches[0] if batches else load("pyarrow").RecordBatch.from_pylist([], whole.schema)
    return whole.column(0).combine_chunks()


def _check_stream(blob: bytes) -> None:
    """An Arrow IPC stream has to keep within its bytes, and be uncompressed."""
    at, size = 0, 1
    while size:
        mark, size = struct.unpack_from("<II", blob, at)
        body = _body_length(blob[at + 8 : at + 8 + size], len(blob)) if size else 0
        at += 8 + size + body
        if mark != 0xFFFFFFFF or body < 0 or at > len(blob):
            raise EncodingError("the stored Arrow stream is malformed")


def _body_length(message: bytes, total: int) -> int:
    """The length of a message's body, from its flatbuffer."""
    root = _follow(message, 0)
    kind, header, length = (_field(message, root, slot) for slot in (1, 2, 3))
    body = _long(message, length) if length else 0
    header_type = message[kind] if kind else 0
    if header_type in (_RECORD_BATCH, _DICTIONARY_BATCH):
        batch = _follow(message, header)
        if header_type == _DICTIONARY_BATCH:
            batch = _follow(message, _field(message, batch, 1))
        _check_batch(message, batch, body, 8 * total + _EMPTY_ROWS)
    return body


def _check_batch(message: bytes, batch: int, body: int, most_rows: int) -> None:
    """Asked for the memory that a buffer falsely claims, polars aborts the process."""
    rows, nodes, buffers, compression = (_field(message, batch, slot) for slot in range(4))
    if compression:
        raise EncodingError("the stored Arrow stream is compressed")
    lengths = [_long(message, rows)] if rows else []
    lengths += [length for length, _ in _vector_of_pairs(message, nodes)]
    if any(not 0 <= length <= most_rows for length in lengths):
        raise EncodingError("the stored Arrow stream claims more rows than it can have")
    for offset, length in _vector_of_pairs(message, buffers):
        if offset < 0 or length < 0 or offset + length > body:
            raise EncodingError("the stored Arrow stream claims more bytes than it has")


def _vector_of_pairs(message: bytes, at: int) -> list[tuple[int, int]]:
    """FieldNodes (rows, nulls) or Buffers (offset, length)."""
    if not at:
        return []
    start = _follow(message, at)
    (count,) = struct.unpack_from("<I", message, start)
    if start + 4 + 16 * count > len(message):
        raise EncodingError("the stored Arrow stream is malformed")
    return [struct.unpack_from("<qq", message, start + 4 + 16 * i) for i in range(count)]


def _long(message: bytes, at: int) -> int:
    return int(struct.unpack_from("<q", message, at)[0])


def _follow(message: bytes, at: int) -> int:
    return at + int(struct.unpack_from("<I", message, at)[0])


def _field(message: bytes, table: int, slot: int) -> int:
    """Where a field of a flatbuffer's table is; 0 if it is absent."""
    vtable = table - struct.unpack_from("<i", message, table)[0]
    (size,) = struct.unpack_from("<H", message, vtable)
    if 4 + 2 * slot >= size:
        return 0
    (offset,) = struct.unpack_from("<H", message, vtable + 4 + 2 * slot)
    return table + offset if offset else 0


def guarded(write: Callable[[Writer, Any], Tagged]) -> Callable[[Writer, Any], Tagged]:
    """A library's refusal becomes ours, which knows the place."""

    def refuse(writer: Writer, value: Any) -> Tagged:
        try:
            return write(writer, value)
        except UnwritableError:
            raise
        except Exception as error:
            lacks = isinstance(error, EncodingError)  # raised by `load`
            hint = str(error) if lacks else describe(error)
            raise UnwritableError(value, hint, lacks=lacks) from error

    return refuse


LIBRARIES: dict[str, Callable[[Writer, Any], Tagged]] = {
    "numpy": guarded(_write_numpy),
    "polars": guarded(_write_polars),
    "pyarrow": guarded(_write_pyarrow),
}
READERS: dict[str, Read] = {
    "numpy.array": _read_array,
    "numpy.scalar": _read_scalar,
    "polars.DataFrame": _read_polars,
    "polars.Series": _read_polars,
    "pyarrow.Table": _read_pyarrow,
    "pyarrow.RecordBatch": _read_pyarrow,
    "pyarrow.ChunkedArray": _read_pyarrow,
    "pyarrow.Array": _read_pyarrow,
}
