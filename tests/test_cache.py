"""The cache of nodes' values: what is changed is computed anew, and nothing else."""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime as dt
import decimal
import enum
import pathlib
import pickle
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pandas as pd
import pytest

from fp_async import ConfigError, NodeError, UsageError
from fp_async.errors import FileAccessError
from fp_async.fingerprints import UnknownValueError, fingerprint
from fp_async.node_code import NodeCode

CACHED = "run: {flow: {dev: {cache: true}}}\n"


@pytest.fixture
def counted(make_project, tmp_path):
    """Runs a pipeline and gives its result, and the names of the nodes that were computed: those
    that call `told(name)`.
    """
    log = tmp_path / "log"
    told = f"""
        def told(name):
            with open({str(log)!r}, "a") as file:
                file.write(name + " ")
    """

    async def run(flow, inputs=None, finals=None, config=CACHED, files=None, **options):
        log.write_text("")
        project = make_project(config, flow=flow, note=told, **(files or {}))
        result = await project.run("flow", inputs or {}, finals, **options)
        return result, log.read_text().split()

    return run


# Parameters -------------------------------------------------------------------------------

PARAMS = """
    from fp_async import load_params
    from hamilton.function_modifiers import extract_fields, inject, parameterize, value
    from hamilton.function_modifiers import pipe_input, step
    from note import told
    import helper
    PARAMS = load_params(__file__)
    K = PARAMS.b.k
    TABLE = {"k": [PARAMS.b.k]}
    B = PARAMS["b"]

    class Held:
        k = PARAMS.b.k
        def of(self) -> int:
            return self.k

    HELD = Held()
    READ = [lambda: PARAMS.b.k]

    def a(x: int) -> int:
        told("a")
        return x
    def body(a: int) -> int:
        return a * PARAMS.b.k
    def subscript(a: int) -> int:
        return a * PARAMS["b"].k
    def whole(a: int) -> int:
        params = PARAMS
        return a * params.b.k
    def entry(a: int) -> int:
        return a * B.k
    def by_name(a: int) -> int:
        return a * getattr(PARAMS, "b").k
    def inner(a: int) -> int:
        return sum(a * PARAMS.b.k for _ in range(1))
    def constant(a: int) -> int:
        return a * K
    def table(a: int) -> int:
        return a * TABLE["k"][0]
    def default(a: int, m: int = PARAMS.b.k) -> int:
        return a * m
    def keyword(a: int, *, m: int = PARAMS.b.k) -> int:
        return a * m
    def of_class(a: int) -> int:
        return a * Held.k
    def of_object(a: int) -> int:
        return a * HELD.of()
    def by_lambda(a: int) -> int:
        return a * READ[0]()
    def _called(a: int) -> int:
        return a * PARAMS.b.k
    def by_function(a: int) -> int:
        return _called(a)
    def by_helper(a: int) -> int:
        return helper.times(a)
    def by_constant(a: int) -> int:
        return a * helper.K
    def by_import(a: int) -> int:
        from helper import K as found
        return a * found
    @parameterize(**PARAMS.b)
    def b(a: int, k: int) -> int:
        return a * k
    @inject(k=value(PARAMS.b.k))
    def injected(a: int, k: int) -> int:
        return a * k
    def _step(v: int, k: int) -> int:
        return v * k
    @pipe_input(step(_step, k=value(PARAMS.b.k)))
    def piped(a: int) -> int:
        return a
    @extract_fields({"field": int})
    def fields(a: int) -> dict:
        return {"field": a * PARAMS.b.k}
    async def awaited(a: int) -> int:
        return a * PARAMS.b.k
"""
HELPER = """
    from fp_async import load_params
    PARAMS = load_params(__file__)
    K = PARAMS.b.k
    def times(a):
        return a * K
"""
USES = [
    *("body", "subscript", "whole", "entry", "by_name", "inner", "constant", "table", "default"),
    *("keyword", "of_class", "of_object", "by_lambda", "by_function", "by_helper", "by_constant"),
    *("by_import", "b", "injected", "piped", "field", "awaited"),
]
BOTH = """
    run: {flow: {dev: {cache: true}, big: {cache: true, params: {b: {k: 100}}}}}
    params: {flow: {b: {k: 1}, other: {n: NUMBER}}}
"""


@pytest.mark.parametrize("executor", ["local", "threadpool", "processpool"])
async def test_a5_h1_a_changed_parameter_is_seen_in_every_use(counted, executor):
    given = {"finals": USES, "files": {"helper": HELPER}, "executor": executor}
    conf = BOTH.replace("NUMBER", "1")

    async def run(config=conf, **options):
        result, nodes = await counted(PARAMS, {"x": 3}, config=config, **given, **options)
        return set(result.values()), nodes

    assert await run() == ({3}, ["a"])
    assert await run() == ({3}, [])
    assert await run(params={"b": {"k": 10}}) == ({30}, [])  # `a` reads no parameter
    assert await run(environment="big") == ({300}, [])
    assert await run(conf.replace("k: 1}", "k: 7}")) == ({21}, [])
    assert await run() == ({3}, [])
    assert await run(BOTH.replace("NUMBER", "2")) == ({3}, [])


async def test_a5_h1_parameters_change_within_one_process(make_project):
    project = make_project(
        BOTH.replace("NUMBER", "1"), flow=PARAMS, helper=HELPER, note="told = print"
    )
    for k in (1, 2, 3, 1):
        result = await project.run("flow", {"x": 3}, USES, params={"b": {"k": k}})
        assert set(result.values()) == {3 * k}


async def test_a5_only_the_nodes_that_read_a_parameter_are_computed_anew(counted):
    flow = """
        from fp_async import load_params
        from note import told
        PARAMS = load_params(__file__)
        def early(x: int, k: int = 0) -> int:
            told("early")
            return x * PARAMS.early.k
        def late(early: int, k: int = 0) -> int:
            told("late")
            return early * PARAMS.late.k
    """
    conf = f"{CACHED}params: {{flow: {{early: {{k: 1}}, late: {{k: 1}}}}}}\n"
    assert await counted(flow, {"x": 2}, config=conf) == ({"late": 2}, ["early", "late"])
    more = {"params": {"late": {"k": 5}}}
    assert await counted(flow, {"x": 2}, config=conf, **more) == ({"late": 10}, ["late"])
    more = {"params": {"early": {"k": 5}}}
    assert await counted(flow, {"x": 2}, config=conf, **more) == ({"late": 10}, ["early", "late"])


async def test_a5_the_configuration_is_part_of_the_key(counted):
    flow = """
        from hamilton.function_modifiers import config, parameterize, resolve, ResolveAt, value
        @config.when(kind="one")
        def a__one(x: int) -> int:
            return x
        @config.when(kind="two")
        def a__two(x: int) -> int:
            return x * 2
        def b(a: int, factor: int) -> int:
            return a * factor
        @resolve(
            when=ResolveAt.CONFIG_AVAILABLE,
            decorate_with=lambda factor: parameterize(c={"by": value(factor)}),
        )
        def resolved(a: int, by: int) -> int:
            return a * by
    """
    conf = "run: {flow: {dev: {cache: true, config: {hamilton.enable_power_user_mode: true}}}}"
    for kind, one in (("one", 3), ("two", 6), ("one", 3)):
        for factor in (1, 10):
            given = {"config": conf, "finals": ["b", "c"]}
            project, _ = await counted(
                flow.replace("FLOW", ""),
                {"x": 3},
                given["finals"],
                conf.replace("config: {", f"config: {{kind: {kind}, factor: {factor}, "),
            )
            assert project == {"b": one * factor, "c": one * factor}


# Code -------------------------------------------------------------------------------------

EDITED = """
    import helper
    from note import told
    {extra}
    def a(x: int) -> int:
        told("a")
        return x + {a}
    def b(a: int) -> int:  # {comment}
        told("b")
        return helper.f(a) + {b}
    def c(b: int) -> int:
        told("c")
        return b * 2
"""


async def test_a5_an_edit_computes_what_depends_on_it(counted):
    start = {"extra": "", "a": 1, "b": 1, "comment": "", "helper": "def f(a):\n    return a\n"}

    async def run(**changes):
        values = start | changes
        helper = values.pop("helper")
        return await counted(EDITED.format(**values), {"x": 1}, "c", files={"helper": helper})

    assert await run() == ({"c": 6}, ["a", "b", "c"])
    assert await run() == ({"c": 6}, [])
    assert await run(comment="a comment") == ({"c": 6}, [])
    assert await run(b=2) == ({"c": 8}, ["b", "c"])
    assert await run(a="2 - 1") == ({"c": 6}, ["a"])  # other code, the same value
    assert await run(helper="def f(a):\n    return a * 5\n") == ({"c": 22}, ["a", "b", "c"])
    helper = "FACTOR = 5\ndef f(a):\n    return a * FACTOR\n"
    assert await run(helper=helper) == ({"c": 22}, ["a", "b", "c"])
    assert await run(helper=helper.replace("5", "6")) == ({"c": 26}, ["a", "b", "c"])
    assert await run() == ({"c": 6}, [])
    extra = "def helps(x: int) -> int:\n        return x"
    assert await run(extra=extra) == ({"c": 6}, [])  # a node more


async def test_a5_an_edit_beside_pipelines_and_deep_in_a_package_is_seen(
    make_project, tmp_path, monkeypatch
):
    """In a process of its own each time, as the command: a package is loaded once in a process."""
    project = make_project(
        CACHED, flow="from own.deep import f\ndef a(x: int) -> int:\n    return f(x)\n"
    )
    package = project.root / "own"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "deep": "from own.value import V\ndef f(x): return x * V\n",
    }.items():
        (package / f"{name}.py").write_text(text)
    for number in (1, 2, 1):
        (package / "value.py").write_text(f"V = {number}\n")
        done = subprocess.run(
            [
                sys.executable,
                "-B",
                "-m",
                "fp_async",
                "run",
                "flow",
                "--inputs",
                "x=5",
                "--quiet",
                "--output",
                "json",
            ],
            cwd=project.root,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout.split(), done.stderr) == (["{", '"a":', str(5 * number), "}"], "")


async def test_a5_a_file_edited_after_it_was_loaded_spoils_no_key(make_project):
    """The code that runs is the one that was loaded, whatever the file says by now."""
    project = make_project(CACHED, flow="def a(x: int) -> int:\n    return x\n")
    flow = project.flow("flow")
    project = make_project(flow="def a(x: int) -> int:\n    return -x * 1\n")
    assert await flow.run(project.flows.request(flow, {"x": 1}, None, None, None, None, None)) == {
        "a": 1
    }
    assert await project.run("flow", {"x": 1}) == {"a": -1}


# Values -----------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Point:
    x: object
    y: object


class Bare:
    def __init__(self, inner):
        self.inner = inner


class Slots:
    __slots__ = ("inner",)

    def __init__(self, inner):
        self.inner = inner


Pair = collections.namedtuple("Pair", "x y")  # noqa: PYI024
SIX = np.arange(6.0)
FRAME = pd.DataFrame({"a": [1, 2], "b": [3, 4]})
ATTRS = FRAME.copy()
ATTRS.attrs["unit"] = "m"
DEEP = {"a": [{"b": [{"c": [{"d": [{"e": [{"f": 1}]}]}]}]}]}
DEEPER = copy.deepcopy(DEEP)
DEEPER["a"][0]["b"][0]["c"][0]["d"][0]["e"][0]["f"] = 2
CATEGORIES = pd.Series(["a", "b"], dtype="category")
OTHERS = pd.Series(["a", "b"], dtype=pd.CategoricalDtype(["b", "a"]))
CONFUSED = {
    "shape": (SIX.reshape(2, 3), SIX.reshape(3, 2)),  # hamilton#1616 and its kind
    "dtype": (SIX.astype("i8").view("f8"), SIX.astype("i8")),
    "byte order": (np.array([1], "<i4"), np.array([1 << 24], ">i4")),
    "memory order": (SIX.reshape(2, 3), np.asfortranarray(SIX.reshape(2, 3))),
    "no dimension": (np.array(1.0), np.array([1.0])),
    "empty shapes": (np.zeros((0, 2)), np.zeros((2, 0))),
    "object array": (np.array([1, "a"], object), np.array(["1", "a"], object)),
    "objects within": (np.array([[1], [2]], object), np.array([1, 2], object)),
    "mask": (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0])),
    "fields": (np.array([(1,)], [("a", "i8")]), np.array([(1,)], [("b", "i8")])),
    "scalar": (np.float32(1), np.float64(1)),
    "datetime unit": (np.datetime64("2020", "D"), np.datetime64("2020", "s")),
    "column names": (FRAME, FRAME.rename(columns={"a": "c"})),
    "columns swapped": (FRAME, FRAME[["b", "a"]]),
    "column type": (FRAME, FRAME.astype({"a": float})),
    "small type": (FRAME, FRAME.astype({"a": "int8"})),
    "index": (FRAME, FRAME.set_axis([1, 0])),
    "index name": (FRAME, FRAME.rename_axis("n")),
    "columns' name": (FRAME, FRAME.rename_axis(columns="n")),
    "rows swapped": (FRAME, FRAME.iloc[::-1]),
    "attrs": (FRAME, ATTRS),
    "categories": (CATEGORIES, OTHERS),
    "ordered": (CATEGORIES, CATEGORIES.cat.as_ordered()),
    "category or text": (CATEGORIES, pd.Series(["a", "b"])),
    "name of a series": (pd.Series([1]), pd.Series([1], name="a")),
    "series or frame": (pd.Series([1], name="a"), pd.DataFrame({"a": [1]})),
    "series or index": (pd.Series([1]), pd.Index([1])),
    "time zone": (pd.to_datetime(["2020"]), pd.to_datetime(["2020"]).tz_localize("UTC")),
    "frequency": (
        pd.period_range("2020", periods=1, freq="D"),
        pd.period_range("2020", periods=1, freq="h"),
    ),
    "missing": (pd.Series([1, None], dtype="Int64"), pd.Series([1, 0], dtype="Int64")),
    "levels": (
        pd.MultiIndex.from_tuples([(1, 2)]),
        pd.MultiIndex.from_tuples([(1, 2)], names=["a", "b"]),
    ),
    "a name twice": (FRAME.set_axis(["a", "a"], axis=1), FRAME),
    "text or number": (1, "1"),
    "text or bytes": ("a", b"a"),
    "bool or number": (True, 1),
    "float or int": (1.0, 1),
    "sign of zero": (0.0, -0.0),
    "list or tuple": ([1], (1,)),
    "nested list": ([[1], [2]], [[1, 2]]),
    "empty containers": ([], {}),
    "deep": (DEEP, DEEPER),
    "key's type": ({1: "a"}, {"1": "a"}),
    "order of keys": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "keys and values": ({"a": "b"}, {"b": "a"}),
    "set": ({1, 2}, {1, 3}),
    "set or frozen": ({1}, frozenset({1})),
    "dataclass": (Point(1, 2), Point(2, 1)),
    "nested dataclass": (Point(1, {"a": [1]}), Point(1, {"a": [2]})),
    "object": (Bare([1]), Bare([2])),
    "slots": (Slots([1]), Slots([2])),
    "class": (Bare(1), Slots(1)),
    "named tuple": (Pair(1, 2), (1, 2)),
    "enum": (Colour.RED, Colour.BLUE),
    "enum's value": (Colour.RED, 1),
    "deque": (collections.deque([1], 2), collections.deque([1], 3)),
    "ordered dict": (collections.OrderedDict(a=1), {"a": 1}),
    "decimal": (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
    "path": (pathlib.Path("a"), "a"),
    "date": (dt.date(2020, 1, 1), dt.datetime(2020, 1, 1)),  # noqa: DTZ001
    "aware": (dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, tzinfo=dt.UTC)),  # noqa: DTZ001
    "range": (range(3), range(0, 3, 2)),
    "class itself": (Bare, Slots),
    "function": (len, max),
}


def _with_libraries() -> dict[str, tuple[object, object]]:
    pl, pa = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    frame = pl.DataFrame({"a": [1, 2]})
    return {
        "polars names": (frame, frame.rename({"a": "b"})),
        "polars types": (frame, frame.cast(pl.Int32)),
        "polars rows": (frame, frame.reverse()),
        "polars series": (frame["a"], frame["a"].alias("b")),
        "polars lazy": (frame.lazy(), frame.lazy().filter(pl.col("a") > 1)),
        "arrow names": (pa.table({"a": [1]}), pa.table({"b": [1]})),
        "arrow types": (pa.table({"a": [1]}), pa.table({"a": pa.array([1], pa.int8())})),
        "arrow metadata": (
            pa.table({"a": [1]}),
            pa.table({"a": [1]}).replace_schema_metadata({"k": "v"}),
        ),
    }


@pytest.mark.parametrize("case", CONFUSED)
def test_a5_values_that_differ_have_other_fingerprints(case):
    one, other = CONFUSED[case]
    assert fingerprint(one) != fingerprint(other)
    for value in (one, other):
        again = copy.deepcopy(value)
        assert fingerprint(again) == fingerprint(value)


def test_a5_frames_of_other_libraries_have_other_fingerprints():
    for case, (one, other) in _with_libraries().items():
        assert fingerprint(one) != fingerprint(other), case
        again = pickle.loads(pickle.dumps(one))
        assert fingerprint(again) == fingerprint(one), case


@pytest.mark.parametrize(
    "make",
    [
        threading.Lock,
        lambda: lambda: 1,
        lambda: (i for i in ()),
        lambda: sys.stdout,
    ],
    ids=["lock", "lambda", "generator", "file"],
)
def test_a5_what_has_no_pickle_has_no_fingerprint(make):
    for value in (make(), [make()], {"a": make()}, Bare(make()), np.array([make()], object)):
        with pytest.raises(UnknownValueError):
            fingerprint(value)


def test_a5_equal_values_have_one_fingerprint_in_every_process():
    code = textwrap.dedent("""
        import numpy, pandas
        from fp_async.fingerprints import fingerprint
        frame = pandas.DataFrame({"a": [1.5, None], "b": ["x", "y"]}).set_index("b")
        words = {"one", "two", "three", ("four", 5)}
        values = [words, frozenset(words), {"k": words}, frame, numpy.eye(3), ["a" * 2, "aa"]]
        print([fingerprint(value).hex() for value in values])
    """)
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_a5_cycles_and_shared_objects():
    one: list[object] = []
    one.append(one)
    other: list[object] = [[]]
    other[0].append(other)  # type: ignore[attr-defined]
    assert fingerprint(one) != fingerprint(other)
    inner = [1]
    assert fingerprint([inner, inner]) == fingerprint([[1], [1]])


READS = """
    from note import told
    def seen(value: object) -> str:
        told("seen")
        return repr(value)
"""


@pytest.mark.parametrize(
    "case", ["shape", "column names", "index", "object array", "deep", "categories", "attrs"]
)
@pytest.mark.parametrize("how", ["inputs", "overrides"])
async def test_a5_an_input_that_differs_is_computed_anew(counted, case, how):
    flow = READS if how == "inputs" else READS + "\n    def value() -> object:\n        return 0\n"
    one, other = CONFUSED[case]
    for value, nodes in ((one, ["seen"]), (other, ["seen"]), (one, []), (copy.deepcopy(other), [])):
        given = {"inputs": {"value": value}} if how == "inputs" else {"overrides": {"value": value}}
        assert await counted(flow, given.pop("inputs", None), "seen", **given) == (
            {"seen": repr(value)},
            nodes,
        )


async def test_a5_a_node_of_another_shape_is_seen_by_its_readers(counted, tmp_path):
    """hamilton#1616: the bytes are the same."""
    flow = """
        import pathlib
        import numpy as np
        from hamilton.function_modifiers import cache
        @cache(behavior="recompute")
        def array(file: str) -> np.ndarray:
            return np.arange(6).reshape(*map(int, pathlib.Path(file).read_text().split()))
        def shape(array: np.ndarray) -> tuple:
            return array.shape
        def first(shape: tuple) -> int:
            return shape[0]
    """
    file = tmp_path / "shape"
    for shape in ("2 3", "3 2", "6", "1 6"):
        file.write_text(shape)
        result, _ = await counted(flow, {"file": str(file)}, ["shape", "first"])
        assert result["shape"] == tuple(map(int, shape.split()))
        assert result["first"] == result["shape"][0]


@pytest.mark.parametrize("executor", ["local", "threadpool", "processpool"])
async def test_a5_a_value_without_a_pickle_is_computed_with_all_that_reads_it(counted, executor):
    flow = """
        import threading
        from note import told
        def x() -> int:
            told("x")
            return 1
        async def lock(x: int) -> object:
            told("lock")
            return threading.Lock()
        async def reads(lock: object) -> int:
            told("reads")
            return 5
    """
    for nodes in (["x", "lock", "reads"], ["lock", "reads"]):
        assert await counted(flow, executor=executor) == ({"reads": 5}, nodes)


async def test_a5_results_from_the_cache_are_copies(make_project):
    project = make_project(CACHED, flow="def a(x: int) -> list:\n    return [x]\n")
    for _ in range(3):
        result = await project.run("flow", {"x": 1})
        assert result == {"a": [1]}
        result["a"].append(2)


# What Hamilton's decorators say --------------------------------------------------------------

BEHAVIORS = """
    from note import told
    from hamilton.function_modifiers import cache
    @cache(behavior="{behavior}")
    def a(x: int) -> int:
        told("a")
        return x
    def b(a: int) -> int:
        told("b")
        return a + 1
"""


@pytest.mark.parametrize(
    ("behavior", "again", "other"),
    [
        ("default", [], ["a", "b"]),
        ("recompute", ["a"], ["a", "b"]),
        ("disable", ["a", "b"], ["a", "b"]),
        ("ignore", ["a"], ["a"]),
    ],
)
async def test_behaviors(counted, behavior, again, other):
    flow = BEHAVIORS.format(behavior=behavior)
    assert await counted(flow, {"x": 1}) == ({"b": 2}, ["a", "b"])
    assert await counted(flow, {"x": 1}) == ({"b": 2}, again)
    result, nodes = await counted(flow, {"x": 2})
    assert (result["b"], nodes) == (2 if behavior == "ignore" else 3, other)


async def test_loaders_read_and_savers_write_in_every_run(counted, tmp_path):
    flow = """
        from note import told
        from hamilton.function_modifiers import load_from, save_to, source
        @load_from.json(path=source("path"))
        def n(data: dict) -> int:
            told("n")
            return data["n"]
        @save_to.json(path=source("to"), output_name_="saved")
        def out(n: int) -> dict:
            told("out")
            return {"n": n * 2}
    """
    path, to = tmp_path / "in.json", tmp_path / "out.json"
    for text, nodes in (("1", ["n", "out"]), ("1", []), ("2", ["n", "out"]), ("1", [])):
        path.write_text(f'{{"n": {text}}}')
        to.unlink(missing_ok=True)
        result, computed = await counted(flow, {"path": str(path), "to": str(to)}, ["n", "saved"])
        assert (result["n"], computed) == (int(text), nodes)
        assert to.read_text().replace(" ", "") == f'{{"n":{int(text) * 2}}}'


async def test_nodes_of_one_function_have_keys_of_their_own(counted):
    flow = """
        from hamilton.function_modifiers import parameterize, value, subdag
        from note import told
        @parameterize(one={"by": value(1)}, two={"by": value(2)})
        def made(x: int, by: int) -> int:
            told("made")
            return x * by
        def both(one: int, two: int) -> list:
            return [one, two]
    """
    for x, nodes in ((1, 2), (1, 0), (2, 2)):
        result, computed = await counted(flow, {"x": x})
        assert (result, len(computed)) == ({"both": [x, 2 * x]}, nodes)


# Asking for it, and not --------------------------------------------------------------------


async def test_cache_in_python(counted, tmp_path):
    flow = BEHAVIORS.format(behavior="default")
    assert await counted(flow, {"x": 1}, cache=False) == ({"b": 2}, ["a", "b"])
    assert await counted(flow, {"x": 1}, cache=False) == ({"b": 2}, ["a", "b"])
    assert await counted(flow, {"x": 1}, cache=tmp_path / "there") == ({"b": 2}, ["a", "b"])
    assert await counted(flow, {"x": 1}) == ({"b": 2}, ["a", "b"])
    assert await counted(flow, {"x": 1}, cache=True) == ({"b": 2}, [])
    with pytest.raises(UsageError, match="cache is True, False or a folder"):
        await counted(flow, {"x": 1}, cache=1.5)


@pytest.mark.parametrize("word", ["no", "Off", "y", "None", "''"])
async def test_a_word_for_a_switch_is_no_folder(counted, tmp_path, word):
    config = f"run: {{flow: {{dev: {{cache: {word}}}}}}}"
    with pytest.raises(
        ConfigError, match=r"pipelines.yml:1: run.flow.dev.cache: .* is not a folder"
    ):
        await counted("def a() -> int: return 1\n", config=config)
    with pytest.raises(UsageError, match="True, False or a folder"):
        await counted("def a() -> int: return 1\n", config="run: {}", cache=word.strip("'"))
    await counted("def a() -> int: return 1\n", config=config.replace(word, "./no"))
    assert (tmp_path / "project/no").is_dir()


def test_no_cache_on_the_command(make_project):
    source = "def a(x: int) -> int:\n    print('computed')\n    return x\n"
    project = make_project(CACHED, flow=source)
    command = [sys.executable, "-m", "fp_async", "run", "flow", "--inputs", "x=1", "--quiet"]

    def run(*more):
        return subprocess.run(
            [*command, *more], cwd=project.root, capture_output=True, text=True, check=True
        ).stdout

    assert [run("--no-cache").count("computed") for _ in range(2)] == [1, 1]
    assert [run().count("computed") for _ in range(2)] == [1, 0]
    assert run("--no-cache").count("computed") == 1
    assert run().count("computed") == 0


async def test_a_folder_that_cannot_be_used_is_an_error_before_the_run(counted, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileAccessError, match=r"cannot use the cache in .*file"):
        await counted(READS, {"value": 1}, cache=tmp_path / "file")


async def test_damaged_entries_are_computed_anew(counted, tmp_path):
    flow = BEHAVIORS.format(behavior="default")
    folder = tmp_path / "kept"
    for spoil in (
        lambda data: b"",
        lambda data: data[:-3],
        lambda data: data[:5] + b"?" + data[6:],
    ):
        assert (await counted(flow, {"x": 1}, cache=folder))[0] == {"b": 2}
        assert await counted(flow, {"x": 1}, cache=folder) == ({"b": 2}, [])
        for entry in folder.rglob("*"):
            if entry.is_file():
                entry.write_bytes(spoil(entry.read_bytes()))
        assert await counted(flow, {"x": 1}, cache=folder) == ({"b": 2}, ["a", "b"])
    assert not list(folder.rglob("*.part"))


async def test_what_a_node_raises_is_not_kept(counted):
    flow = "from note import told\ndef a(x: int) -> int:\n    told('a')\n    return 1 // x\n"
    for _ in range(2):
        with pytest.raises(NodeError, match="node 'a'.*ZeroDivisionError"):
            await counted(flow, {"x": 0})


async def test_retry_timeout_and_progress_work_with_the_cache(counted):
    flow = """
        from note import told
        calls = []
        def a(x: int) -> int:
            told("a")
            calls.append(x)
            if len(calls) == 1:
                raise OSError
            return x
    """
    conf = (
        "run: {flow: {dev: {cache: true, nodes: {a: {retry: {max_attempts: 2, backoff: 0.001}}}}}}"
    )
    heard = []
    assert await counted(flow, {"x": 1}, config=conf, progress=heard.append) == (
        {"a": 1},
        ["a", "a"],
    )
    assert [event.status for event in heard] == ["started", "retrying", "succeeded"]
    assert await counted(flow, {"x": 1}, config=conf) == ({"a": 1}, [])


@pytest.mark.alone
async def test_independent_nodes_still_run_side_by_side(make_project):
    flow = """
        import threading
        BARRIER = threading.Barrier(2, timeout=20)
        def a(x: int) -> int:
            BARRIER.wait()
            return x
        def b(x: int) -> int:
            BARRIER.wait()
            return x
    """
    project = make_project(CACHED, flow=flow)
    assert await project.run("flow", {"x": 1}) == {"a": 1, "b": 1}


async def test_clusters_and_executor_hamilton_refuse_the_cache(make_project):
    project = make_project(CACHED, flow="def a(x: int) -> int:\n    return x\n")
    with pytest.raises(UsageError, match="--no-cache"):
        await project.run("flow", {"x": 1}, executor="hamilton")
    with pytest.raises(UsageError, match="--no-cache"):
        await project.run("flow", {"x": 1}, executor="ray")
    assert await project.run("flow", {"x": 1}, executor="hamilton", cache=False) == {"a": 1}


@pytest.mark.alone
async def test_a_cached_run_costs_little_beside_the_nodes(make_project):
    """100 cached nodes take less than the tenth of a second that one slow node would."""
    lines = ["def n0(x: int) -> int:\n    return x\n"]
    lines += [f"def n{i}(n{i - 1}: int) -> int:\n    return n{i - 1} + 1\n" for i in range(1, 100)]
    project = make_project(CACHED, flow="".join(lines))
    await project.run("flow", {"x": 1})
    took = []
    for _ in range(5):
        begun = time.process_time()
        assert await project.run("flow", {"x": 1}) == {"n99": 100}
        took.append(time.process_time() - begun)
    assert min(took) < 0.1


def test_every_node_has_a_fingerprint_that_is_the_same_in_every_process(make_project):
    project = make_project(
        BOTH.replace("NUMBER", "1"), flow=PARAMS, helper=HELPER, note="told = print"
    )
    code = textwrap.dedent(f"""
        from fp_async import Project
        flow = Project({str(project.root)!r}).flow("flow")
        code = flow._node_code()
        print([(n, code.of(n).hex()) for n in flow.graph.cache_behaviors])
    """)
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1
    assert NodeCode.__doc__


# Globals of every kind --------------------------------------------------------------------

GLOBALS = {
    "a built-in module": ("import time", "time.sleep(0)"),
    "a module of C": ("import sys", "sys.maxsize"),
    "an object of a built-in module": ("import itertools", "list(itertools.chain([1]))"),
    "a namespace package": ("import plain", "plain"),
    "a frozen module": ("import os, zipimport", "zipimport"),
    "a module without a file": ("import types\nM = types.ModuleType('M')", "M"),
    "a module that raises": (
        "import types\nclass M(types.ModuleType):\n def __getattr__(self, name): raise OSError\nm = M('m')",
        "m",
    ),
    "a proxy outside of its context": (
        "class Proxy:\n    def __getattr__(self, name): raise RuntimeError(name)\nP = Proxy()",
        "P",
    ),
    "an object that has every attribute": (
        "class Any:\n def __getattr__(self, name): return Any()\n def __call__(self, *_): return self\nA = Any()",
        "A.b",
    ),
    "a mock": ("from unittest import mock\nM = mock.MagicMock()\nC = mock.call.a", "(M, C)"),
    "an array that compares as an array": (
        "import numpy as np\nclass A(np.ndarray): pass\nV = np.zeros(2, object).view(A)",
        "V",
    ),
    "a lock": ("import threading\nL = threading.Lock()", "L"),
    "a generator": ("G = (each for each in ())", "G"),
}


@pytest.mark.parametrize("name", GLOBALS)
async def test_a_node_that_reads_any_global_runs_and_sees_an_edit(counted, tmp_path, name):
    head, read = GLOBALS[name]
    (tmp_path / "project/pipelines/plain").mkdir(parents=True)

    def flow(factor):
        return f"from note import told\n{head}\ndef a(x: int) -> int:\n    told('a')\n    ({read})\n    return x * {factor}\n"

    for factor in (2, 3):
        result, computed = await counted(flow(factor), {"x": 1})
        assert (result, computed) == ({"a": factor}, ["a"])
