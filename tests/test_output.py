"""What `--output` writes: nothing is lost in silence, and what cannot be written is said before."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NewType, Optional, Union

import msgspec
import numpy as np
import pandas as pd
import pytest

from fp_async import codec
from fp_async.cli.output import show_result
from fp_async.cli.result_types import never_json, never_table
from fp_async.errors import UsageError


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


@dataclasses.dataclass
class Point:
    x: int
    y: Any


class Row(NamedTuple):
    a: int
    b: str


class Named(msgspec.Struct, rename="camel"):
    long_name: int


FRAME = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
PERIODS = pd.period_range("2020", periods=2, freq="D")


@pytest.fixture
def written(tmp_path, capsys):
    """What a value is as `output`, and what is said of it."""

    def write(value, output):
        path = tmp_path / f"out.{output}"
        show_result({"value": value}, output if output == "json" else str(path))
        said = capsys.readouterr()
        if output == "json":
            return json.loads(said.out)["value"], said.err
        found = path.read_text() if output == "csv" else pd.read_parquet(path)
        return found, said.err.replace(f"wrote {path}\n", "")

    return write


JSON = {
    "multi index columns": (
        pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")])),
        [{"('a', 'x')": 1, "('a', 'y')": 2}],
    ),
    "a slice keeps its index": (FRAME.iloc[1:], [{"index": 1, "a": 2, "b": None}]),
    "an index named as a column": (
        FRAME.set_axis(pd.Index([5, 6], name="a")),
        [{"a_index": 5, "a": 1, "b": "x"}, {"a_index": 6, "a": 2, "b": None}],
    ),
    "an index beside a column index": (
        pd.DataFrame({"index": [1]}, index=[7]),
        [{"index_": 7, "index": 1}],
    ),
    "levels": (
        pd.DataFrame({"a": [1]}, index=pd.MultiIndex.from_tuples([(1, 2)], names=["n", None])),
        [{"n": 1, "level_1": 2, "a": 1}],
    ),
    "periods": (pd.DataFrame({"p": PERIODS}), [{"p": "2020-01-01"}, {"p": "2020-01-02"}]),
    "an index of periods": (pd.Series([1, 2], PERIODS), {"2020-01-01": 1, "2020-01-02": 2}),
    "intervals": (pd.Series(pd.interval_range(0, 1)), ["(0, 1]"]),
    "cut": (pd.DataFrame({"i": pd.cut([1], [0, 1])}), [{"i": "(0, 1]"}]),
    "a boolean index": (pd.Series([1, 2], index=[True, False]), {"true": 1, "false": 2}),
    "labels that are one text": (
        pd.Series([1, 2], index=["1", 1]),
        [{"index": "1", "value": 1}, {"index": 1, "value": 2}],
    ),
    "missing label": (pd.Series([1], index=[None]), {"null": 1}),
    "categories": (pd.Series(["a"], dtype="category"), ["a"]),
    "nested cells": (pd.DataFrame({"a": [{"b": {1: (2,)}}]}), [{"a": {"b": {"1": [2]}}}]),
    "numbers as columns": (pd.DataFrame([[1, 2]]), [{"0": 1, "1": 2}]),
    "index": (pd.Index([1, 2]), [1, 2]),
    "structured array": (np.array([(1, 2.5)], [("a", "i8"), ("b", "f8")]), [{"a": 1, "b": 2.5}]),
    "masked array": (np.ma.array([1, 2], mask=[0, 1]), [1, None]),
    "complex": ([1 + 2j, np.complex128(1j)], ["1+2j", "1j"]),
    "numpy's scalars": (
        [np.int8(1), np.float32(1.5), np.bool_(True), np.str_("a")],
        [1, 1.5, True, "a"],
    ),
    "set": ({3, 1, 2}, [1, 2, 3]),
    "frozenset in a dict": ({"a": frozenset({1})}, {"a": [1]}),
    "decimal": (decimal.Decimal("1.10"), "1.10"),
    "uuid": (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "path": ([Path("a/b")], ["a/b"]),
    "fraction": (fractions.Fraction(1, 3), "1/3"),
    "dataclass": (Point(1, {2: Point(3, None)}), {"x": 1, "y": {"2": {"x": 3, "y": None}}}),
    "named tuple": ([Row(1, "x")], [{"a": 1, "b": "x"}]),
    "struct": (Named(1), {"longName": 1}),
    "enum": ([Colour.RED, Colour.PAIR], ["red", [1, 2]]),
    "enum as key": ({Colour.RED: 1}, {"red": 1}),
    "bytes": (b"ab", "YWI="),
    "timedelta": (dt.timedelta(days=1), "P1D"),
    "datetime": (dt.datetime(2020, 1, 1, tzinfo=dt.UTC), "2020-01-01T00:00:00Z"),
    "date as key": ({dt.date(2020, 1, 2): 1}, {"2020-01-02": 1}),
    "tuple as key": ({(1, "a"): 2}, {"(1, 'a')": 2}),
    "None as key": ({None: 1}, {"null": 1}),
    "True as key": ({True: 1}, {"true": 1}),
    "nan in a frame": (pd.DataFrame({"a": [float("nan"), 1.5]}), [{"a": None}, {"a": 1.5}]),
    "deque": (collections.deque([1]), [1]),
    "range": (range(2), [0, 1]),
    "counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
    "large": (2**70, 2**70),
}


@pytest.mark.parametrize("case", JSON)
def test_c7_json_of_every_common_type(written, case):
    value, expected = JSON[case]
    assert written(value, "json") == (expected, "")


def test_c7_json_of_frames_of_other_libraries_and_models(written):
    pl, pa = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    pydantic = pytest.importorskip("pydantic")
    frame = pl.DataFrame({"a": [1], "d": [dt.timedelta(1)], "l": [[1, 2]], "s": [{"q": 1}]})
    expected = [{"a": 1, "d": "P1D", "l": [1, 2], "s": {"q": 1}}]
    model = pydantic.create_model("Model", a=(int, ...), b=(dt.date, ...))
    cases = [
        (frame, expected),
        (frame.lazy(), expected),
        (frame["a"], [1]),
        (pa.table({"a": [1, 2], "b": ["x", None]}), [{"a": 1, "b": "x"}, {"a": 2, "b": None}]),
        (pa.record_batch({"a": [1]}), [{"a": 1}]),
        (pa.chunked_array([[1], [2]]), [1, 2]),
        (pa.scalar(1), 1),
        ([model(a=1, b=dt.date(2020, 1, 1))], [{"a": 1, "b": "2020-01-01"}]),
    ]
    for value, wanted in cases:
        assert written(value, "json") == (wanted, "")


def test_a7_column_names_that_are_one_text_lose_nothing(written):
    pa = pytest.importorskip("pyarrow")
    for frame, columns in (
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), ["a", "a"]),
        (pd.DataFrame([[1, 2]], columns=["1", 1]), ["1", 1]),
        (pa.table([[1], [2]], names=["a", "a"]), ["a", "a"]),
    ):
        found, said = written(frame, "json")
        assert found == {"columns": columns, "data": [[1, 2]]}
        assert f"the column name '{columns[0]}' is there twice" in said
        assert written(frame, "csv")[0] == f"{columns[0]},{columns[1]}\n1,2\n"
        with pytest.raises(UsageError, match="Parquet has one column of a name"):
            written(frame, "parquet")


def test_a7_keys_that_are_one_text_are_an_error(written):
    for value in ({1: 2, "1": 3}, {"a": [{None: 1, "null": 2}]}, {True: 1, "true": 2}):
        with pytest.raises(UsageError, match="are the same text in JSON"):
            written(value, "json")
    with pytest.raises(UsageError, match="same text"):
        written([{1: 2, "1": 3}], "csv")


def test_a7_infinite_numbers_are_null_and_said(written):
    for value in (float("inf"), [np.float64("-inf")], pd.DataFrame({"a": [float("inf")]})):
        assert "no infinite numbers" in written(value, "json")[1]


def test_e10_nan_is_null_and_said_where_it_does_not_stand_for_what_is_missing(written):
    for value in (float("nan"), [float("nan"), 1.5], {"a": np.array([np.nan])}):
        found, said = written(value, "json")
        assert found == json.loads(json.dumps(found))
        assert "no NaN: they are written as null" in said
    assert written(pd.Series([1.5, None]), "json") == ([1.5, None], "")


class Text(str, enum.Enum):  # noqa: UP042
    RED = "red"


class Code(enum.IntEnum):
    LOW = 2
    HIGH = 10


class Word(enum.StrEnum):
    RED = "red"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass(frozen=True)
class Item:
    """Has the fields of an Enum member, and is none."""

    name: str
    value: Any


def _stored(value):
    """As a reader gets it who does not know the classes."""
    return codec.decode(codec.encode({"value": value}))["value"]


MEMBERS = [
    Colour.RED,
    Colour.PAIR,
    Text.RED,
    Code.HIGH,
    Word.RED,
    Right.READ | Right.WRITE,
    Right(0),
]
BARE = [
    *MEMBERS, Item("a", 1), Item("a", Colour.RED), Point(1, [Colour.RED, Row(1, "x")]), Row(1, "x"), Named(1),
    {"a": [Colour.RED]}, {Colour.RED: 1, Word.RED.value + "2": Code.LOW}, {(Colour.RED, 1): 2},
    {Code.HIGH, Code.LOW}, {Colour.RED, Colour.PAIR}, {Item("b", 1), Item("a", 2)}, {"b", "a"}, {frozenset({1}), frozenset({2})},
    dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.date(2026, 1, 1), dt.time(1), dt.timedelta(hours=1.5),
    decimal.Decimal("1.10"), uuid.UUID(int=1), Path("a/b"), 1 + 2j, b"ab", bytearray(b"ab"),
    collections.deque([1]), collections.Counter("aab"), collections.OrderedDict(a=1), 2**70,
    np.int8(1), np.float32(0.5), np.bool_(True), np.datetime64("2026-01-01"), np.timedelta64(90, "s"), np.array([1.5, 2]),
    np.array([(1, "x")], [("a", "i8"), ("b", "U1")]), pd.Timestamp("2026-01-01", tz="UTC"), pd.Timedelta("1h"), pd.NaT,
]  # fmt: skip
TABLES = [
    [{"colour": Colour.RED, "code": Code.LOW, "word": Word.RED, "text": Text.RED}],
    [Item("a", Colour.RED), Item("b", Colour.RED)],
    [Row(1, "x")], [Named(1)], [Point(1, Path("a"))], [Point(1, uuid.UUID(int=1)), Point(1, None)], [Point(1, dt.timedelta(1))],
    [Point(Row(1, "x"), [Colour.RED])], [{Colour.RED: 1}], [{"s": {"b", "a"}, "d": decimal.Decimal("1.10"), "b": b"ab"}],
    [{"t": dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "n": np.float64(1.5), "x": 1 + 2j}],
    pd.DataFrame({"colour": [Colour.RED, None], "code": [Code.LOW, 1], "text": [Text.RED, "a"]}),
    pd.DataFrame({"row": [Row(1, "x")], "point": [Point(1, Colour.RED)], "list": [[Colour.RED]], "set": [{"b", "a", Word.RED}]}),
    pd.DataFrame({"a": [1]}, index=pd.Index([Colour.RED])), pd.DataFrame({Colour.RED: [1]}), pd.Series([Colour.RED], name="a"),
    pd.DataFrame({"a": pd.Series([Colour.RED, Colour.RED], dtype="category")}),
    pd.DataFrame({"a": [1.5, None], "p": [Path("a"), Path("b")], "n": [[1, "a"], {"k": (1,)}]}),
]  # fmt: skip


@pytest.mark.parametrize("output", ["json", "table"])
@pytest.mark.parametrize("value", [*BARE, *TABLES], ids=lambda value: type(value).__name__)
def test_e1_a_result_is_printed_as_run_prints_it(capsys, value, output):
    show_result({"value": value}, output)
    ran = capsys.readouterr()
    show_result({"value": _stored(value)}, output)
    assert capsys.readouterr() == ran
    assert "object at 0x" not in ran.out


@pytest.mark.parametrize("ending", ["csv", "parquet", "json"])
@pytest.mark.parametrize("value", TABLES, ids=lambda value: type(value).__name__)
def test_e1_a_result_is_written_as_run_writes_it(tmp_path, capsys, value, ending):
    files = [tmp_path / f"{name}.{ending}" for name in ("run", "result")]
    said = []
    for file, each in zip(files, (value, _stored(value)), strict=True):
        show_result({"value": each}, str(file))
        said.append(capsys.readouterr().err.replace(str(file), "FILE"))
    assert said[0] == said[1]
    if ending == "parquet":
        pd.testing.assert_frame_equal(*map(pd.read_parquet, files))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_e1_a_member_is_its_value_and_a_record_of_such_fields_is_none(written):
    rows = [{"colour": Colour.RED, "code": Code.LOW, "text": Text.RED}]
    for value in (rows, _stored(rows), pd.DataFrame(rows), _stored(pd.DataFrame(rows))):
        assert written(value, "json")[0] == [{"colour": "red", "code": 2, "text": "red"}]
        assert written(value, "csv")[0] == "colour,code,text\nred,2,red\n"
        assert written(value, "parquet")[0].to_dict("records") == [
            {"colour": "red", "code": 2, "text": "red"}
        ]
    for value in (Item("a", 1), _stored(Item("a", 1))):
        assert written(value, "json")[0] == {"name": "a", "value": 1}


def test_e1_cells_that_parquet_lacks_are_texts_in_rows_of_records_too(written):
    found, said = written([Point(1, 1 + 2j), Point(2, 2j)], "parquet")
    assert found.to_dict("records") == [{"x": 1, "y": "1+2j"}, {"x": 2, "y": "2j"}]
    assert "column 'y' is written as text" in said


def test_a7_an_index_is_kept(written):
    assert written(FRAME.iloc[1:], "csv")[0] == ",a,b\n1,2,\n"
    assert written(FRAME, "csv")[0] == "a,b\n1,x\n2,\n"
    assert list(written(FRAME.iloc[1:], "parquet")[0].index) == [1]


def test_c6_durations_and_intervals_are_written(written):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"d": [dt.timedelta(1)], "l": [[1, 2]], "n": [None]})
    text, said = written(frame, "csv")
    assert text == 'd,l,n\nP1D,"[1,2]",\n'
    assert "cells that CSV cannot hold" in said
    cut = pd.DataFrame({"i": pd.cut([1, float("nan")], [0, 1]), "n": [1, 2]})
    found, said = written(cut, "parquet")
    assert found["i"].fillna("?").to_list() == ["(0, 1]", "?"]
    assert found["n"].to_list() == [1, 2]
    assert "column 'i' is written as text" in said
    mixed, said = written(pd.DataFrame({"m": [1, "x", {"a": 1}]}), "parquet")
    assert mixed["m"].to_list() == ["1", "x", '{"a":1}']
    assert "column 'm'" in said


def test_c7_tables_of_every_kind(written):
    pa = pytest.importorskip("pyarrow")
    model = pytest.importorskip("pydantic").create_model("Model", a=(int, ...), b=(str, ...))
    for table in (
        FRAME.fillna("y"),
        pa.table({"a": [1, 2], "b": ["x", "y"]}),
        pa.record_batch({"a": [1, 2], "b": ["x", "y"]}),
        [Row(1, "x"), Row(2, "y")],
        [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
        [model(a=1, b="x"), model(a=2, b="y")],
        np.array([(1, "x"), (2, "y")], [("a", "i8"), ("b", "U1")]),
    ):
        text, said = written(table, "csv")
        assert (text.split(), said) == (["a,b", "1,x", "2,y"], "")
        found, said = written(table, "parquet")
        assert (found.to_dict("records"), said) == ([{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], "")
    text, _ = written([{"a": 1}, {"b": [1]}], "csv")
    assert text.split() == ["a,b", "1,", ",[1]"]
    assert written([], "csv")[0].strip() == ""


@pytest.mark.parametrize(
    "value", [lambda: 1, object(), (i for i in ()), [object()], {"a": object()}]
)
def test_c7_what_has_no_json_form_is_named(written, value):
    with pytest.raises(UsageError, match="has no JSON form"):
        written(value, "json")


@pytest.mark.parametrize(
    "kind",
    [int, str, float, bool, bytes, Path, dt.date, dt.timedelta, decimal.Decimal, uuid.UUID, Colour]
    + [dict, dict[str, int], set[int], Optional[int], Union[int, str], int | None, list[int]]  # noqa: UP007, UP045
    + [
        tuple[str, ...],
        Annotated[Path, "x"],
        NewType("Id", int),
        type(None),
        collections.abc.Callable,
    ],
)
def test_c7_types_that_are_no_table(kind):
    assert never_table(kind)


@pytest.mark.parametrize(
    "kind",
    [
        Any,
        object,
        pd.DataFrame,
        pd.Series,
        np.ndarray,
        list,
        list[dict],
        list[Row],
        list[Point],
        list[Any],
    ]
    + [pd.DataFrame | None, Optional[pd.DataFrame], int | pd.DataFrame, tuple, Point],  # noqa: UP045
)
def test_c7_types_that_may_be_tables(kind):
    assert not never_table(kind)
    assert not never_json(kind)


FLOW = """
    from collections.abc import Callable, Generator
    from pathlib import Path
    import pandas as pd
    def ran() -> int:
        print("ran")
        return 1
    def path(ran: int) -> Path:
        return Path("a")
    def number(ran: int) -> int:
        return ran
    def call(ran: int) -> Callable:
        return len
    def steps(ran: int) -> Generator[int, None, None]:
        yield 1
    def frame(ran: int) -> pd.DataFrame:
        return pd.DataFrame({"a": [1]})
"""


@pytest.mark.parametrize(
    ("final", "output", "said"),
    [
        ("path", "x.csv", "'path' is Path, which is no table; use json"),
        ("number", "x.parquet", "'number' is int, which is no table; use json"),
        ("call", "json", "'call' is Callable, which has no JSON form"),
        ("call", "x.json", "has no JSON form"),
        ("steps", "json", "has no JSON form"),
        ("frame,number", "x.csv", "a table holds one value; choose one with --final-vars"),
        ("", "x.csv", "a table holds one value; choose one with --final-vars"),
    ],
)
@pytest.mark.parametrize("command", ["run", "run-job"])
def test_c7_what_the_annotation_tells_is_refused_before_the_run(
    make_project, command, final, output, said
):
    project = make_project(flow=FLOW)
    options = ["--final-vars", final] if final else []
    done = subprocess.run(
        [sys.executable, "-m", "fp_async", command, "flow", *options, "--output", output],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "ran" not in done.stdout.split()
    assert not list(project.root.glob("x.*"))


def test_d6_result_has_the_option_that_it_names(make_project):
    project = make_project(flow=FLOW)
    options = {"cwd": project.root, "capture_output": True, "text": True, "check": False}
    command = [sys.executable, "-m", "fp_async"]
    added = subprocess.run([*command, "add-job", "flow", "--final-vars", "number,frame"], **options)
    code = "import asyncio, sys; from fp_async import Project\nasync def go():\n    async with Project('.', worker=True) as p: await p.get_result(sys.argv[1], wait=60)\nasyncio.run(go())"
    id = added.stdout.split()[-1]
    assert subprocess.run([sys.executable, "-c", code, id], **options).returncode == 0
    done = subprocess.run([*command, "result", id, "--output", "r.csv"], **options)
    assert (done.returncode, "choose one with --final-vars: number, frame" in done.stderr) == (
        2,
        True,
    )
    done = subprocess.run(
        [*command, "result", id, "--output", "r.csv", "--final-vars", "frame"], **options
    )
    assert (done.returncode, (project.root / "r.csv").read_text()) == (0, "a\n1\n")
    done = subprocess.run([*command, "result", id, "--final-vars", "nmber"], **options)
    assert (done.returncode, "did you mean 'number'" in done.stderr) == (2, True)
