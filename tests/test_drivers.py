"""What Hamilton's own drivers execute, the types of inputs, and how errors around them read."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import os
import subprocess
import sys
import threading
import typing
from typing import Annotated, Any, NewType, TypedDict

import pytest
from hamilton import htypes
from hamilton.lifecycle import base as lifecycle_base
from ids import plain

from fp_async import NodeError, UsageError
from fp_async.build_errors import hint
from fp_async.errors import GraphError, RunTimeoutError
from fp_async.pictures import tree
from fp_async.values.coerce import fits

CHAIN = """
    def a(x: int) -> int:
        return x + 1
    async def n(a: int) -> int:
        return a * 2
    def c(a: int, n: int) -> int:
        return a + n
"""
FAN_OUT = """
    from hamilton.htypes import Collect, Parallelizable
    def items(x: int) -> Parallelizable[int]:
        yield from range(x)
    {kind} square(items: int, started: object, release: object) -> int:
        {body}
    def total(square: Collect[int]) -> int:
        return sum(square)
"""
CACHED = "run: {flow: {dev: {cache: CACHE}}}"


class GraphHooks(lifecycle_base.BasePreGraphExecute, lifecycle_base.BasePostGraphExecute):
    def __init__(self) -> None:
        self.told: list[str] = []

    def pre_graph_execute(self, **told):
        self.told.append("start")

    def post_graph_execute(self, **told):
        self.told.append("end")


class AsyncGraphHooks(
    lifecycle_base.BasePreGraphExecuteAsync, lifecycle_base.BasePostGraphExecuteAsync
):
    def __init__(self) -> None:
        self.told: list[str] = []

    async def ainit(self):
        self.told.append("init")

    async def pre_graph_execute(self, **told):
        self.told.append("start")

    async def post_graph_execute(self, **told):
        self.told.append("end")


class BrokenBefore(lifecycle_base.BasePreNodeExecute):
    def pre_node_execute(self, *, node_, **told):
        if node_.name == "n":
            raise KeyError("hook")


class BrokenBeforeAsync(lifecycle_base.BasePreNodeExecuteAsync):
    async def pre_node_execute(self, *, node_, **told):
        if node_.name == "n":
            raise KeyError("hook")


class BrokenAfter(lifecycle_base.BasePostNodeExecute):
    def post_node_execute(self, *, node_, **told):
        if node_.name == "n":
            raise KeyError("hook")


class Remote(lifecycle_base.BaseDoRemoteExecute):
    def do_remote_execute(self, *, node, execute_lifecycle_for_node, **kwargs) -> Any:
        return execute_lifecycle_for_node(**kwargs)


async def test_executor_hamilton_tells_of_the_run_once(make_project):
    sync, awaited = GraphHooks(), AsyncGraphHooks()
    project = make_project(flow=CHAIN)
    await project.run("flow", {"x": 1}, adapters=[sync, awaited], executor="hamilton")
    assert sync.told == ["start", "end"]
    assert awaited.told == ["init", "start", "end"]


async def test_executor_hamilton_keeps_the_order_of_the_results(make_project):
    result = await make_project(flow=CHAIN).run(
        "flow", {"x": 1}, ["c", "a", "n"], executor="hamilton"
    )
    assert list(result.items()) == [("c", 6), ("a", 2), ("n", 4)]


@pytest.mark.parametrize("executor", ["local", "threadpool", "hamilton"])
@pytest.mark.parametrize("broken", [BrokenBefore, BrokenBeforeAsync])
async def test_a_hook_that_fails_before_its_node_names_it(make_project, executor, broken):
    project = make_project(flow=CHAIN)
    with pytest.raises(NodeError, match=r"node 'n'.*KeyError") as caught:
        await project.run("flow", {"x": 1}, adapters=[broken()], executor=executor)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("broken", [BrokenBefore, BrokenAfter])
async def test_a_failing_hook_names_its_node_under_the_sync_driver_too(make_project, broken):
    project = make_project(flow=CHAIN)
    with pytest.raises(NodeError, match=r"node 'n'.*KeyError"):
        await project.run("flow", {"x": 1}, adapters=[Remote(), broken()])


@pytest.mark.parametrize("cache", [True, False])
async def test_a_nodes_error_is_its_own_with_cache_and_remote_adapter(
    make_project, tmp_path, cache
):
    config = CACHED.replace("CACHE", str(tmp_path / "kept")) if cache else ""
    project = make_project(config, flow="def a(x: int) -> int:\n    raise ValueError('no')\n")
    with pytest.raises(NodeError, match="node 'a'.*ValueError: no") as caught:
        await project.run("flow", {"x": 1}, adapters=[] if cache else [Remote()])
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("cache", [True, False])
async def test_a_coroutine_that_cancels_itself_fails_its_node(make_project, tmp_path, cache):
    config = CACHED.replace("CACHE", str(tmp_path / "kept")) if cache else ""
    source = "import asyncio\nasync def a() -> int:\n    raise asyncio.CancelledError\n"
    with pytest.raises(NodeError, match="node 'a'.*CancelledError"):
        await make_project(config, flow=source).run("flow", adapters=[] if cache else [Remote()])


# Cutting a run -----------------------------------------------------------------------------


class Ended:
    """Set when a coroutine function has begun; knows how many have ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.count = 0


WAITING = FAN_OUT.format(
    kind="async def",
    body="""
        import asyncio
        try:
            started.begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            started.count += 1
    """,
)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_coroutines_under_the_sync_driver_have_ended_when_the_cut_leaves(make_project, how):
    ended = Ended()
    inputs = {"x": 1, "started": ended, "release": None}
    timeout = 0.5 if how == "timeout" else None
    task = asyncio.ensure_future(make_project(flow=WAITING).run("flow", inputs, timeout=timeout))
    await ended.begun.wait()
    if how == "cancel":
        task.cancel()
    with pytest.raises(RunTimeoutError if timeout else asyncio.CancelledError) as caught:
        await task
    assert ended.count == 1
    assert getattr(caught.value, "running", ()) == ()


BLOCKED = FAN_OUT.format(
    kind="def", body="started.set()\n        release.wait()\n        return items"
)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_sync_nodes_left_behind_by_the_sync_driver_are_named(make_project, caplog, how):
    begun, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class Started:
        def set(self) -> None:
            loop.call_soon_threadsafe(begun.set)

    inputs = {"x": 1, "started": Started(), "release": release}
    timeout = 0.5 if how == "timeout" else None
    task = asyncio.ensure_future(make_project(flow=BLOCKED).run("flow", inputs, timeout=timeout))
    await begun.wait()
    if how == "cancel":
        task.cancel()
    with pytest.raises(RunTimeoutError if timeout else asyncio.CancelledError) as caught:
        await task
    release.set()
    if timeout:
        assert caught.value.running == ("square",)
        assert "square" in str(caught.value)
    else:
        assert "abandoned in threads: ('square',)" in caplog.text


# Progress ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cache", "remote", "hamilton"])
async def test_progress_hears_of_hamiltons_drivers(make_project, tmp_path, how):
    config = CACHED.replace("CACHE", str(tmp_path / "kept")) if how == "cache" else ""
    for _ in range(2):  # the second time, all values come from the cache
        events: list[Any] = []
        where: set[int] = set()

        def heard(event, events=events, where=where):
            events.append((event.node, event.status, event.seconds >= 0, event.error))
            where.add(threading.get_ident())

        await make_project(config, flow=CHAIN).run(
            "flow",
            {"x": 1},
            adapters=[Remote()] if how == "remote" else [],
            executor="hamilton" if how == "hamilton" else None,
            progress=heard,
        )
        statuses = ("started", "succeeded")
        assert sorted(events) == sorted((n, s, True, "") for n in "anc" for s in statuses)
        assert where == {threading.get_ident()}


@pytest.mark.parametrize("executor", ["threadpool", "hamilton"])
async def test_progress_hears_of_failures(make_project, executor):
    heard: list[Any] = []
    project = make_project(flow="def a() -> int:\n    raise ValueError('no')\n")
    adapters = [Remote()] if executor == "threadpool" else []
    with pytest.raises(NodeError):
        await project.run("flow", adapters=adapters, executor=executor, progress=heard.append)
    assert [event.status for event in heard] == ["started", "failed"]
    assert heard[1].error == "ValueError: no"


async def test_progress_hears_of_each_item(make_project):
    heard: list[Any] = []
    flow = FAN_OUT.format(kind="def", body="return items")
    inputs = {"x": 3, "started": 1, "release": 1}
    assert await make_project(flow=flow).run("flow", inputs, progress=heard.append) == {"total": 3}
    done = sorted(event.node for event in heard if event.status == "succeeded")
    assert done == ["items", "square", "square", "square", "total"]


# Errors that are no node's -----------------------------------------------------------------


async def test_a_chain_too_deep_for_hamilton_says_so(make_project):
    lines = ["def n0(x: int) -> int:\n    return x\n"]
    for i in range(1, 6000):
        lines.append(f"def n{i}(n{i - 1}: int) -> int:\n    return n{i - 1}\n")
    project = make_project(flow="".join(lines))
    with pytest.raises(GraphError, match="too deep for Hamilton") as caught:
        await project.run("flow", {"x": 1}, executor="hamilton")
    assert str(sys.getrecursionlimit()) in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_node_that_recurses_too_deep_is_a_nodes_error(make_project):
    project = make_project(flow="def a() -> int:\n    def f(): return f()\n    return f()\n")
    with pytest.raises(NodeError, match="RecursionError"):
        await project.run("flow", adapters=[Remote()])


@pytest.mark.parametrize("executor", ["processpool", "hamilton"])
async def test_executors_that_cannot_refuse_remote_adapters(make_project, executor):
    project = make_project(flow=CHAIN)
    text = f"cannot run with executor '{executor}': .*do_remote_execute"
    with pytest.raises(UsageError, match=text):
        await project.run("flow", {"x": 3}, executor=executor, adapters=[Remote()])


@pytest.mark.parametrize("executor", ["local", "threadpool"])
async def test_fan_out_with_cache(make_project, tmp_path, executor):
    flow = FAN_OUT.format(kind="async def", body="return items")
    config = CACHED.replace("CACHE", str(tmp_path / "kept"))
    inputs = {"x": 3, "started": 1, "release": 1}
    for _ in range(2):
        project = make_project(config, flow=flow)
        assert await project.run("flow", inputs, executor=executor) == {"total": 3}


# Annotations -------------------------------------------------------------------------------

UserId = NewType("UserId", int)


class Options(TypedDict):
    n: int


class Runs(typing.Protocol):
    def run(self) -> None: ...


T = typing.TypeVar("T")


class Box(typing.Generic[T]):
    pass


async def _agen():
    yield 1


FITTING: list[tuple[Any, Any]] = [
    (collections.abc.Mapping[str, int], {"a": 1}),
    (dict[str, int], collections.OrderedDict(a=1)),
    (tuple[int, ...], (1, 2)),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], [1, 2]),
    (list[UserId], (1,)),
    (collections.abc.Callable[..., int], len),
    (collections.abc.AsyncIterator[int], _agen()),
    (UserId, 1),
    (UserId | None, 1),
    (Annotated[int, "positive"] | None, 1),
    (typing.Union[Annotated[UserId, "x"], None], 1),  # noqa: UP007
    (Options, {"n": 1}),
    (type[int], bool),
    (type[int | str], str),
    (typing.Type, int),  # noqa: UP006
    (typing.Literal["a", "b"], "a"),
    (Runs, 1),
    (Box, Box()),
    (Box[int], Box()),
    (T, 1),
    (typing.Any, 1),
    (object, 1),
    ("Unknown", 1),
    (typing.LiteralString, "a"),
    (float, 1),
    (int, True),
    (collections.abc.Sequence[float], [1]),
    (htypes.Collect[int], [1]),
]
WRONG: list[tuple[Any, Any]] = [
    (int, "1"),
    (str, 1),
    (int, 1.0),
    (bool, 1),
    (UserId, "1"),
    (UserId | None, "1"),
    (Annotated[int, "positive"] | None, "1"),
    (collections.abc.Mapping[str, int], [1]),
    (tuple[int, ...], 1),
    (tuple[int, ...], ["a"]),
    (collections.abc.Callable[..., int], 1),
    (collections.abc.AsyncIterator[int], [1]),
    (Options, 1),
    (type[int], 1),
    (typing.Literal["a"], "b"),
    (list[int], ("a",)),
    (dict[str, int], [1]),
    (Box[int], 1),
]


@pytest.mark.parametrize(("kind", "value"), FITTING, ids=plain)
def test_values_that_fit(kind, value):
    assert fits(value, kind)


@pytest.mark.parametrize(("kind", "value"), WRONG, ids=plain)
def test_values_that_do_not_fit(kind, value):
    assert not fits(value, kind)
    with contextlib.suppress(TypeError):
        assert not htypes.check_input_type(kind, value)  # we refuse nothing that Hamilton takes


def test_a_class_is_compared_with_the_class_asked_for():
    assert not fits(str, type[int])  # Hamilton takes any class


def test_an_iterator_keeps_its_first_item():
    items = iter([1, 2])
    assert fits(items, collections.abc.Iterable[int])
    assert list(items) == [1, 2]


# Building and drawing ----------------------------------------------------------------------


def test_the_unknown_frame_has_a_way_out():
    text = hint(
        "Error <function frame at 0x7f00> does not output a type we know about. "
        "Is it a dataframe type we support? "
    )
    assert text == (
        "Error function frame does not output a type we know about; "
        "import the library of that type in the pipeline's module"
    )
    assert hint(text) == text
    assert hint("another <function f.<locals>.g at 0x1>") == "another function f.<locals>.g"


OWN_CODE = """
import asyncio, os, sys
import fp_async
from fp_async import run

print(asyncio.run(run("flow", project=".")))
assert "HAMILTON_AUTOLOAD_EXTENSIONS" not in os.environ
assert "polars" not in sys.modules

import polars as pl
from hamilton import ad_hoc_utils, driver
from hamilton.function_modifiers import extract_columns
from hamilton.io.materialization import to

@extract_columns("q")
def frame() -> pl.DataFrame:
    return pl.DataFrame({"q": [1, 2]})

def total(q: pl.Series) -> int:
    return q.sum()

module = ad_hoc_utils.create_temporary_module(frame, total)
print(to.csv is not None, driver.Builder().with_modules(module).build().execute(["total"]))
"""


def test_h12_loaders_of_any_library_and_the_programs_own_hamilton_code(make_project, tmp_path):
    flow = """
        from hamilton.function_modifiers import load_from, save_to, value
        @load_from.yaml(path=value("in.yml"))
        def size(loaded: dict) -> int:
            return len(loaded)
        @save_to.yaml(path=value("out.yml"))
        def kept(size: int) -> dict:
            return {"size": size}
    """
    root = make_project(flow=flow).root
    (root / "in.yml").write_text("a: 1\nb: 2\n")
    environ = {n: v for n, v in os.environ.items() if n != "HAMILTON_AUTOLOAD_EXTENSIONS"}
    done = subprocess.run(
        [sys.executable, "-c", OWN_CODE], cwd=root, capture_output=True, text=True, env=environ
    )
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert "kept" in first
    assert second == "True {'total': 3}"


def test_a_deep_tree_stays_narrow(make_project):
    lines = ["def n0() -> int:\n    return 1\n"]
    for i in range(1, 300):
        lines.append(f"def n{i}(n{i - 1}: int) -> int:\n    return n{i - 1}\n")
    drawn = tree(make_project(flow="".join(lines)).flow("flow").graph).splitlines()
    assert len(drawn) == 300
    assert max(map(len, drawn)) < 110
    assert drawn[20].endswith("└── n279: int")
    assert drawn[299].strip() == "… 299: n0: int"


async def test_values_given_to_a_subdag_are_no_results(make_project):
    project = make_project(
        flow="""
        from hamilton.function_modifiers import subdag, value
        def part(y: int) -> int:
            return y
        @subdag(part, inputs={"y": value(2), "unused": value(3)}, config={"zz": 1})
        def sub(part: int) -> int:
            return part
        """
    )
    assert "sub.zz" not in project.flow("flow").graph.leaves
    assert (await project.run("flow", {"y": 1}))["sub"] == 2
    assert await project.run("flow", {"y": 1}, ["sub.zz"]) == {"sub.zz": 1}
