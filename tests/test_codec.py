"""Values as bytes and back: exact types, readable text, clear refusals, hostile bytes."""

# ruff: noqa: DTZ001, DTZ901 (naive times are among the values)
from __future__ import annotations

import collections
import dataclasses
import enum
import math
import pickle
import random
import subprocess
import sys
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp_async.codec import Record, decode, decode_value, encode, encode_value
from fp_async.errors import EncodingError
from fp_async.values.text import Text


class Color(enum.Enum):
    RED = (1, "r")


class Level(enum.IntEnum):
    HIGH = 3


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: object


class Body(msgspec.Struct):
    name: str
    parts: list = []


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    name: str
    since: date
    length: int = dataclasses.field(init=False, default=0)


@dataclasses.dataclass
class Checked:
    size: int

    def __post_init__(self):
        if self.size < 0:
            raise ValueError("negative")


CLASSES = {
    f"{kind.__module__}.{kind.__qualname__}": kind
    for kind in (Color, Level, Right, Point, Body, Owner, Checked)
}


def same(a, b):
    """Equal, of the same types all the way down, NaN and the sign of zero included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return repr(a) == repr(b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, Decimal):
        return str(a) == str(b)
    if isinstance(a, (list, tuple, collections.deque)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, (set, frozenset)):
        return sorted(map(repr, a)) == sorted(map(repr, b))
    if isinstance(a, (datetime, time)):
        return (repr(a), a.fold) == (repr(b), b.fold)
    return a == b


def back(value):
    return decode(encode({"it": value}), CLASSES)["it"]


BERLIN = ZoneInfo("Europe/Berlin")
DEEP = None
for _ in range(98):
    DEEP = [DEEP]

VALUES = [
    None, True, False, 0, -1, 2**53 + 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**5000, -(10**5000),
    0.0, -0.0, 1.5, 5e-324, 1e16, math.nan, math.inf, -math.inf,
    "", 'ä€😀\0"', "\ud800", "a\udcff", {"\ud800": 1}, ["\ud800\udc00"], Text("4"),
    [], [1, [2, [3.5, "x"]]], (), (1, (2,)), [(1, 2)], set(), {1, "a", (2, 3)}, frozenset({1}), {frozenset({1})},
    {}, {"a": {"b": [1]}}, {1: 2, "1": 3, None: 4, (1, 2): 5, 1.5: 6}, {"$": "date", "v": 1}, {"$": {"$": []}},
    {"a": {"$": "b", "c": (1,)}}, collections.OrderedDict(b=1, a=2), collections.Counter("abca"),
    collections.deque([1, (2,)], maxlen=5), collections.deque([1]),
    b"", b"abc", b"x" * 5000, bytearray(b"abc"), bytearray(b"y" * 5000), [b"x" * 2000, b"y" * 3000],
    datetime(2026, 1, 31, 12, 30, 1, 5), datetime(2026, 10, 25, 2, 30, fold=1), datetime(1, 1, 1),
    datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=-3, seconds=7))),
    datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1), "Mars")),
    datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN), datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
    datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN), datetime(1800, 1, 1, tzinfo=BERLIN), datetime.max,
    date(2026, 1, 31), date.min, time(1, 2, 3, 4), time(1, tzinfo=UTC), time(1, tzinfo=BERLIN, fold=1),
    timedelta(days=-3, microseconds=1), timedelta.max, timedelta.min,
    Decimal("1.10"), Decimal("NaN"), Decimal("sNaN12"), Decimal("-Infinity"), Decimal("1E+30"),
    uuid.UUID(int=7), Path("/a/b"), Path("a\udcff"), PurePosixPath("x"), PureWindowsPath(r"c:\x"),
    1 + 2j, complex(-0.0, math.nan), Color.RED, Level.HIGH, Right.READ, Right.READ | Right.WRITE, Right(0),
    Point(1, (2,)), Body("n", [(1,), Body("m")]), Owner("o", date(2026, 1, 1)), [Owner("o", date.min)], {Point(1, 2): Color.RED},
    DEEP,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_python_values_come_back_exactly(value):
    assert same(back(value), value)
    assert same(decode_value(encode_value(value), CLASSES), value)


def test_many_at_once_come_back_exactly():
    assert same(back(VALUES[:-1]), VALUES[:-1])


ARRAYS = [
    *(np.arange(6).astype(code) for code in "?bBhHiIlLqQefdgFDG"),
    *(np.arange(6).astype(code) for code in (">i4", "<u8", ">f8", ">c16", "M8[ns]", ">M8[D]", "m8[us]", "M8[25s]", "S3", "U3", ">U5", "V4")),
    np.array(["NaT", "2026-01-01"], "M8[s]"), np.array([math.nan, -0.0, math.inf]), np.array(7), np.array("x"),
    np.zeros((0, 3)), np.zeros((2, 0)), np.arange(24).reshape(2, 3, 4), np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.arange(20).reshape(4, 5)[::2, ::-2], np.broadcast_to(np.arange(3), (2, 3)), np.arange(10_000.0),
    np.array([(1, "a", [1, 2])], [("n", ">i2"), ("s", "U4"), ("v", "f4", (2,))]),
    np.array([(1, (2.0, 3))], np.dtype([("a", "i1"), ("b", [("c", "f8"), ("d", "i1")])], align=True)),
]  # fmt: skip


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}-{a.shape}")
def test_numpy_arrays_come_back_exactly(array):
    got = back(array)
    assert type(got) is np.ndarray
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    assert got.tobytes() == array.tobytes()
    assert got.flags.fnc == array.flags.fnc
    assert got.flags.writeable


@pytest.mark.parametrize(
    "array", [a for a in ARRAYS if a.size], ids=lambda a: f"{a.dtype}-{a.shape}"
)
def test_numpy_scalars_come_back_exactly(array):
    for value in (array.flat[0], array.flat[-1]):
        got = back(value)
        assert isinstance(got, np.generic)
        assert got.dtype == value.dtype  # numpy.longlong is another class for the same dtype
        assert repr(got) == repr(value)  # not the bytes: a longdouble has padding


def moments(**options):
    return pd.date_range("2026-03-28", periods=4, freq="D", **options)


INDEXES = [
    pd.RangeIndex(2, 10, 2, name="r"), pd.Index([1, 2], name=("a", 1)), pd.Index(["a", None], name="s"),
    pd.Index([1, "a", (2, 3)], dtype=object), pd.Index([1.5, math.nan]), pd.Index([True, False]), moments(),
    moments(tz="Europe/Berlin"), moments()[[0, 2, 3]], pd.timedelta_range("1D", periods=3),
    pd.MultiIndex.from_tuples([("a", 1), ("b", 2), ("a", 2)], names=["x", None]), pd.CategoricalIndex(["a", "b"]),
    pd.period_range("2026-01", periods=3, freq="M"), pd.interval_range(0, 3), pd.Index([], dtype=object),
]  # fmt: skip


@pytest.mark.parametrize("index", INDEXES, ids=lambda i: type(i).__name__)
def test_pandas_indexes_come_back_exactly(index):
    pd.testing.assert_index_equal(back(index), index, exact=True)
    assert getattr(back(index), "freq", None) == getattr(index, "freq", None)


COLUMNS = {
    "int8": pd.array([1, 2], "int8"), "float": np.array([1.5, math.nan]), "bool": np.array([True, False]),
    "complex": np.array([1j, 2]), "text": pd.Series(["a", None]), "string": pd.array(["a", None], "string[python]"),
    "arrow string": pd.array(["a", None], "string[pyarrow]"), "object": pd.Series(["a", None], dtype=object),
    "mixed": pd.Series([1, math.nan], dtype=object), "nested": pd.Series([[1, 2], [3, 4]], dtype=object),
    "decimal": pd.Series([Decimal("1.1"), date(2026, 1, 1)], dtype=object), "ints": pd.Series([1, None], dtype=object),
    "category": pd.Categorical(["b", None], categories=["b", "a"], ordered=True), "naive": moments()[:2],
    "seconds": moments(unit="s")[:2], "aware": moments(tz="Europe/Berlin")[:2], "fixed": moments(tz="+01:00")[:2],
    "span": pd.to_timedelta([1, None], unit="s"), "Int64": pd.array([1, None], "Int64"), "boolean": pd.array([True, None], "boolean"),
    "Float32": pd.array([1.5, None], "Float32"), "period": pd.period_range("2026-01", periods=2, freq="M"),
    "interval": pd.interval_range(0, 2), "arrow": pd.array([1, None], "int64[pyarrow]"),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_pandas_columns_come_back_exactly(name):
    series = pd.Series(COLUMNS[name], name=name)
    pd.testing.assert_series_equal(back(series), series, check_exact=True)
    assert list(map(type, back(series))) == list(map(type, series))


def test_pandas_frames_come_back_exactly():
    frame = pd.DataFrame(COLUMNS, index=pd.Index(["x", "y"], name="i"))
    frame.attrs = {"unit": ("m", 1)}
    for one in (
        frame,
        frame.iloc[:0],
        pd.DataFrame(),
        pd.DataFrame(index=range(3)),
        pd.DataFrame(np.ones((2, 3)), columns=[1, "a", 1]),
        pd.DataFrame(np.ones((400, 2)), index=pd.MultiIndex.from_product([range(20), range(20)])),
        pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])),
    ):
        got = back(one)
        pd.testing.assert_frame_equal(got, one, check_exact=True, check_column_type="exact")
        assert got.attrs == one.attrs


@pytest.mark.parametrize(
    "value",
    [
        pd.Timestamp("2026-01-01 00:00:00.123456789"),
        pd.Timestamp("2026-01-01").as_unit("s"),
        pd.Timestamp("2026-10-25 00:30Z").tz_convert("Europe/Berlin"),
        pd.Timestamp("2026-10-25 01:30Z").tz_convert("Europe/Berlin"),
        pd.Timestamp("2026-01-01T00:00:00+01:00"),
        pd.Timestamp("9999-01-01"),
        pd.Timedelta(1, "ns"),
        pd.Timedelta(-3, "D"),
    ],
    ids=str,
)
def test_pandas_scalars_come_back_exactly(value):
    got = back(value)
    assert (type(got), repr(got), got.unit) == (type(value), repr(value), value.unit)
    assert got == value


def test_missing_values_of_pandas_are_the_same_objects():
    assert back(pd.NaT) is pd.NaT
    assert back(pd.NA) is pd.NA


def test_polars_comes_back_exactly():
    frame = pl.DataFrame(
        {
            "i": [1, None],
            "s": ["a", None],
            "d": [Decimal("1.10"), None],
            "l": [[1], []],
            "t": [datetime(2026, 1, 1), None],
            "st": [{"a": 1}, {"a": 2}],
        }
    ).with_columns(c=pl.col("s").cast(pl.Categorical), e=pl.col("s").cast(pl.Enum(["a"])))
    for one in (frame, frame.clear(), pl.DataFrame()):
        got = back(one)
        assert got.schema == one.schema
        assert got.equals(one)
    series = pl.Series("x", range(1000))
    assert back(series).equals(series, check_names=True, check_dtypes=True)


def test_pyarrow_comes_back_exactly():
    table = pa.table(
        {"a": [1, None], "s": pa.array(["x", "y"]).dictionary_encode()}
    ).replace_schema_metadata({"k": "v"})
    values = [
        table,
        table.slice(1),
        table.slice(0, 0),
        table.to_batches()[0],
        table.to_batches()[0].slice(0, 0),
        pa.array([[1], None]),
        pa.array([], "int8"),
        pa.chunked_array([[1], [2]]),
    ]
    for value in values:
        got = back(value)
        assert type(got) is type(value)
        assert got.equals(value)
        if isinstance(value, (pa.Table, pa.RecordBatch)):
            assert got.schema.equals(value.schema, check_metadata=True)


def test_unknown_classes_come_back_as_records():
    data = encode({"o": Owner("x", date(2026, 1, 1)), "c": Color.RED, "p": Point(1, [2])})
    got = decode(data)
    assert got["o"].name == got["o"]["name"] == "x"
    assert got["o"]._asdict() == {"name": "x", "since": date(2026, 1, 1), "length": 0}
    assert got["o"]._kind == f"{__name__}.Owner"
    assert "since" in got["o"]
    assert got["c"].value == (1, "r")
    assert got["p"].y == [2]
    assert decode(encode(got), CLASSES) == decode(data, CLASSES)
    assert pickle.loads(pickle.dumps(got["o"])) == got["o"]
    with pytest.raises(AttributeError, match="no field 'nme'"):
        got["o"].nme
    with pytest.raises(AttributeError, match="frozen"):
        got["o"].name = 1
    with pytest.raises(TypeError, match="_asdict"):
        list(got["o"])


def test_known_classes_may_be_a_function():
    assert decode(encode({"c": Level.HIGH}), CLASSES.get) == {"c": Level.HIGH}


def test_a_record_that_no_longer_fits_its_class_is_an_error():
    name = f"{__name__}.Checked"
    for fields in ({"size": -1}, {}, {"size": 1, "more": 2}):
        with pytest.raises(EncodingError, match="does not fit its class"):
            decode(encode({"r": Record(name, fields)}), CLASSES)
    with pytest.raises(EncodingError, match="no dataclass"):
        decode(
            encode({"r": Record("os.system", {"command": "true"})}), {"os.system": subprocess.Popen}
        )


def cycle():
    value = {"a": [1]}
    value["a"].append(value)
    return value


def too_deep():
    value = []
    for _ in range(101):
        value = [value]
    return value


class Custom:
    pass


class MyDict(dict):
    pass


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda: 1, "function"),
        ((i for i in ()), "generator.*list"),
        (sys.stdout, "its content or its path"),
        (Custom(), "test_codec.Custom"),
        (MyDict(), r"MyDict.*dict\(\.\.\.\)"),
        (collections.defaultdict(list), r"defaultdict.*dict\(\.\.\.\)"),
        (np.array([1, None]), "dtype object.*tolist"),
        (np.ma.masked_array([1]), r"numpy.asarray"),
        (pl.LazyFrame(), "collect it"),
        (pd.Series([Custom()], dtype=object), "test_codec.Custom"),
        (cycle(), "cycle"),
        (too_deep(), "nested deeper than 100 levels"),
        (int, "type"),
        (ValueError("x"), "ValueError"),
        (memoryview(b""), "memoryview"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_stored_is_refused_by_name(value, words):
    with pytest.raises(
        EncodingError,
        match=f"(?s)result 'model' cannot be stored: .*{words}.*return JSON.*final_vars",
    ):
        encode({"fine": 1, "model": value})


def test_the_error_names_the_place():
    scores = [0, 1, 2, Owner(Custom(), date.min)]
    with pytest.raises(EncodingError, match=r"result 'scores' .*: scores\[3\]\.name is a .*Custom"):
        encode({"scores": scores})
    with pytest.raises(
        EncodingError, match=r"input 'a' .*: a\[\(1, 2\)\]\['x y'\] is a .*; give JSON"
    ):
        encode({"a": {(1, 2): {"x y": Custom()}}}, what="input")
    with pytest.raises(EncodingError, match=r"result cannot be stored: \[1\] is a"):
        encode_value([1, Custom()])
    with pytest.raises(EncodingError, match="name 1 is not a text"):
        encode({1: 2})


def test_a_foreign_time_zone_is_refused():
    class Zone(timezone.__base__):
        def utcoffset(self, when):
            return timedelta(0)

    with pytest.raises(EncodingError, match="use zoneinfo"):
        encode({"t": datetime(2026, 1, 1, tzinfo=Zone())})


def test_the_limit_names_the_largest():
    values = {"small": 1, "big": "x" * 1000, "frame": np.zeros(1000)}
    size = len(encode(values))
    assert encode(values, limit=size) == encode(values)
    with pytest.raises(
        EncodingError,
        match=rf"result too large: {size:,} bytes, limit 500; largest: 'frame' 8,.*'big' 1,0.*path",
    ):
        encode(values, limit=500)
    with pytest.raises(EncodingError, match="too large"):
        encode_value("x" * 100, limit=50)


GOLDEN = [
    ({"a": [1, 2.5, "ä", None]}, b'{"v":1,"plain":{"a":[1,2.5,"\xc3\xa4",null]}}'),
    ({"a": (1,)}, b'{"v":1,"tagged":{"a":{"$":"tuple","v":[1]}}}'),
    ({"a": {"$": 1, 2: math.nan}}, b'{"v":1,"tagged":{"a":{"$":"dict","v":[["$",1],[2,{"$":"float","v":"nan"}]]}}}'),
    ({"a": datetime(2026, 1, 1, tzinfo=BERLIN)}, b'{"v":1,"tagged":{"a":{"$":"datetime","v":"2026-01-01T00:00:00+01:00","zone":"Europe/Berlin"}}}'),
    ({"a": b"ab", "b": 2**64}, b'{"v":1,"tagged":{"a":{"$":"bytes","v":"YWI="},"b":{"$":"int","v":"0x10000000000000000"}}}'),
    ({"a": b"x" * 1025}, b'\x89FP1\0\0\0\0\0\0\0\x3d{"v":1,"tagged":{"a":{"$":"bytes","v":0}},"files":[1025]}' + b"x" * 1025),
    ({"a": np.float32(0.5)}, b'{"v":1,"tagged":{"a":{"$":"numpy.scalar","dtype":"<f4","v":0.5}}}'),
    ({"a": Record("m.C", {"x": 1})}, b'{"v":1,"tagged":{"a":{"$":"record","of":"m.C","v":{"x":1}}}}'),
]  # fmt: skip


@pytest.mark.parametrize(("value", "data"), GOLDEN)
def test_the_format_stays(value, data):
    if data[:1] == b"\x89":
        text = data[12:-1025]
        data = data[:4] + len(text).to_bytes(8, "big") + data[12:]
    assert encode(value) == data
    assert same(decode(data), value)


TAGGED = [
    '{"$":"nope","v":1}', '{"$":["x"]}', '{"$":"tuple"}', '{"$":"tuple","v":"ab"}', '{"$":"set","v":[[1]]}', '{"$":"dict","v":[[1]]}',
    '{"$":"bytes","v":0}', '{"$":"bytes","v":"#"}', '{"$":"date","v":"x"}', '{"$":"datetime","v":"2026-01-01","zone":"../../etc/passwd"}',
    '{"$":"datetime","v":"2026-01-01","zone":"Europe"}', '{"$":"int","v":"x"}', '{"$":"timedelta","v":[1e300]}', '{"$":"complex","v":[1]}',
    '{"$":"numpy.array","dtype":"O","shape":[0],"order":"C","v":""}', '{"$":"numpy.array","dtype":"|O8","shape":[1],"order":"C","v":"AAAAAAAAAAA="}',
    '{"$":"numpy.array","dtype":"<f8","shape":[1000000000],"order":"C","v":""}', '{"$":"numpy.array","dtype":"<f8","shape":[-1,-1],"order":"C","v":"AAAAAAAAAAA="}',
    '{"$":"numpy.array","dtype":{"names":["a"],"formats":["|O8"],"offsets":[0],"itemsize":8,"aligned":false},"shape":[1],"order":"C","v":"AAAAAAAAAAA="}',
    '{"$":"pandas.RangeIndex","v":["x"],"name":null}', '{"$":"pandas.arrow","dtype":"int64[pyarrow]","v":"AAAA"}', '{"$":"record","of":1,"v":{}}',
    '{"$":"pyarrow.Table","v":"AAAA"}', '{"$":"polars.DataFrame","v":"AAAA"}', "[" * 150 + "]" * 150,
]  # fmt: skip


@pytest.mark.parametrize("tagged", TAGGED)
def test_hostile_tags_are_errors(tagged):
    with pytest.raises(EncodingError, match="stored"):
        decode(f'{{"v":1,"tagged":{{"a":{tagged}}}}}'.encode())


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"null", b"\x89FP1", b"\x80\x04.", b'{"v":2,"plain":{}}', b'{"v":1}', b'{"v":1,"plain":1,"tagged":2}', b'{"v":1,"plain":[]}', b'{"v":1,"plain":{},"new":1}', b'{"v":1,"plain":' + b"[" * 100_000, b'{"v":1,"plain":{},"files":[1]}'],
)  # fmt: skip
def test_malformed_documents_are_errors(data):
    with pytest.raises(EncodingError):
        decode(data)


def test_an_attachment_serves_once_and_has_its_size():
    good = encode({"a": b"x" * 2000})
    for bad in (good[:-1], good + b"x", good[:40], good[:4] + b"\xff" * 8 + good[12:]):
        with pytest.raises(EncodingError):
            decode(bad)
    twice = b'{"v":1,"tagged":[{"$":"bytes","v":0},{"$":"bytes","v":0}],"files":[1]}'
    unused = b'{"v":1,"tagged":[],"files":[1]}'
    for text in (twice, unused):
        with pytest.raises(EncodingError):
            decode_value(b"\x89FP1" + len(text).to_bytes(8, "big") + text + b"x")


def test_a_buffer_larger_than_its_stream_is_refused():
    data = encode({"f": pl.DataFrame({"i": range(300)})})
    claim = (2400).to_bytes(8, "little")
    assert data.count(claim) >= 1
    with pytest.raises(EncodingError, match="more bytes than it has|malformed|cannot be read"):
        decode(data.replace(claim, (2**55).to_bytes(8, "little")))


@pytest.mark.parametrize("library", ["pyarrow", "polars"])
def test_a_compressed_stream_is_refused(library):
    table = pa.table({"a": np.zeros(100_000)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as stream:
        stream.write(table)
    blob = sink.getvalue().to_pybytes()
    tag = {"pyarrow": "pyarrow.Table", "polars": "polars.DataFrame"}[library]
    text = f'{{"v":1,"tagged":{{"$":"{tag}","v":0}},"files":[{len(blob)}]}}'.encode()
    with pytest.raises(EncodingError, match="compressed"):
        decode_value(b"\x89FP1" + len(text).to_bytes(8, "big") + text + blob)


FUZZED = {
    "python": {"a": (1, b"x" * 2000), "b": datetime(2026, 1, 1, tzinfo=BERLIN), "c": {1: Color.RED}, "d": [2**70]},
    "numpy": {"a": np.array([(1, "a")], [("n", ">i2"), ("s", "U4")]), "b": np.arange(300), "c": np.float32(1)},
    "pandas": {"f": pd.DataFrame({k: COLUMNS[k] for k in ("int8", "text", "category", "aware", "Int64", "period")})},
    "polars": {"f": pl.DataFrame({"i": [1, None], "s": ["ab", "c" * 30], "l": [[1], []]})},
    "pyarrow": {"t": pa.table({"a": [1, None], "s": ["xy", "z"], "l": [[1], []]})},
}  # fmt: skip


def mutated(data, chance):
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data))
        act = chance.randrange(3)
        if act == 0:
            data[at] = chance.choice(
                [0, 1, 255, data[at] ^ (1 << chance.randrange(8)), 48 + chance.randrange(10)]
            )
        elif act == 1:
            del data[at : at + chance.randint(1, 8)]
        else:
            data[at:at] = data[at : at + chance.randint(1, 20)]
        data = data or bytearray(b"x")
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FUZZED)
def test_mutated_bytes_only_raise_our_error(name):
    chance = random.Random(name)
    data = encode(FUZZED[name])
    for _ in range(600):
        try:
            repr(decode(mutated(data, chance), CLASSES))
        except EncodingError:
            pass


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary(max_size=2000)
    | st.datetimes(timezones=st.none() | st.just(BERLIN) | st.just(UTC))
    | st.dates()
    | st.timedeltas()
    | st.decimals()
    | st.complex_numbers()
    | st.uuids()
)
keys = st.none() | st.integers() | st.text() | st.just("$")
nested = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner) | st.dictionaries(keys, inner) | st.builds(Point, st.integers(), inner) | st.frozensets(st.integers()),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(), nested))
def test_any_nesting_comes_back_exactly(values):
    assert same(decode(encode(values), CLASSES), values)


@settings(max_examples=150, deadline=None)
@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_only_raise_our_error(data):
    for one in (data, b'{"v":1,"tagged":' + data + b"}", b"\x89FP1" + data):
        try:
            decode_value(one)
        except EncodingError:
            pass


def test_without_pyarrow_the_error_says_what_to_install(monkeypatch):
    data = encode({"a": pd.array([1, None], "Int64")})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for act in (lambda: encode({"a": pd.array([1, None], "Int64")}), lambda: decode(data)):
        with pytest.raises(EncodingError, match="pip install pyarrow"):
            act()
    assert back(pd.DataFrame({"a": [1.5]})).a[0] == 1.5


def test_importing_and_plain_values_load_no_library():
    code = """
import sys
from fp_async.codec import decode, encode
decode(encode({"a": (1, {2})}))
print({"numpy", "pandas", "polars", "pyarrow", "pickle", "zoneinfo"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_record_and_an_error_name_the_class_as_its_author_knows_it():
    kind = "fp_pipelines_my_flow_0a1b2c3d_2.pipelines.my_flow.Point"
    point = Record(kind, {"x": 1})
    assert repr(point) == "<pipelines.my_flow.Point x=1>"
    with pytest.raises(AttributeError, match="^pipelines.my_flow.Point has no field 'y'"):
        _ = point.y
