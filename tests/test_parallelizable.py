"""A6: `Parallelizable` and `Collect` give the same with every executor, or the same refusal before.

Ray and Dask run all shapes in one test each: what takes long is their start.
"""

from __future__ import annotations

import asyncio
import re
import threading

import pytest
from hamilton.lifecycle import base as lifecycle_base

from fp_async import JobFailedError, JobNotFinishedError, NodeError, UsageError, codec
from fp_async.attempt import Order
from fp_async.attempting import attempt
from fp_async.cli.live import Progress
from fp_async.errors import FlowerPowerError, GraphError, InputError
from fp_async.jobs import Spec

HERE = ["local", "threadpool", "processpool"]
HEAD = """
from hamilton.htypes import Collect, Parallelizable
def item(x: int) -> Parallelizable[int]:
    yield from range(x)
"""
EACH = """
def each(item: int) -> int:
    return item * 10
"""
TOTAL = "def total(each: Collect[int]) -> list:\n    return list(each)\n"

# name: (source after HEAD, final variables, inputs, overrides, result)
SHAPES = {
    "one collect": (EACH + TOTAL, ["total"], {"x": 3}, {}, {"total": [0, 10, 20]}),
    "no items": (EACH + TOTAL, ["total"], {"x": 0}, {}, {"total": []}),
    "one item": (EACH + TOTAL, ["total"], {"x": 1}, {}, {"total": [0]}),
    "many items": (
        EACH + TOTAL,
        ["total"],
        {"x": 300},
        {},
        {"total": [10 * i for i in range(300)]},
    ),
    "read directly": (  # hamilton#1030
        "def total(item: Collect[int]) -> list:\n    return list(item)\n",
        *(["total"], {"x": 3}, {}, {"total": [0, 1, 2]}),
    ),
    "directly and by a node": (
        EACH + TOTAL + "def items(item: Collect[int]) -> list:\n    return list(item)\n",
        *(["total", "items"], {"x": 3}, {}, {"total": [0, 10, 20], "items": [0, 1, 2]}),
    ),
    "two collects of one node": (  # hamilton#301
        EACH + TOTAL + "def number(each: Collect[int]) -> int:\n    return len(list(each))\n",
        *(["total", "number"], {"x": 3}, {}, {"total": [0, 10, 20], "number": 3}),
    ),
    "two collects of two nodes": (
        EACH
        + TOTAL
        + "def other(item: int, each: int) -> int:\n    return each + item\n"
        + "def others(other: Collect[int]) -> int:\n    return sum(other)\n",
        *(["total", "others"], {"x": 3}, {}, {"total": [0, 10, 20], "others": 33}),
    ),
    "a collect of a collect": (
        EACH
        + TOTAL
        + "def again(total: list) -> Parallelizable[int]:\n    yield from total\n"
        + "def half(again: int) -> int:\n    return again // 2\n"
        + "def halves(half: Collect[int], total: list) -> list:\n    return [*half, len(total)]\n",
        *(["halves"], {"x": 3}, {}, {"halves": [0, 5, 10, 3]}),
    ),
    "side by side": (
        EACH
        + TOTAL
        + "def word(w: str) -> Parallelizable[str]:\n    yield from w\n"
        + "def twice(word: str) -> str:\n    return word * 2\n"
        + "def words(twice: Collect[str], total: list) -> list:\n    return [*twice, *total]\n",
        *(["words"], {"x": 2, "w": "ab"}, {}, {"words": ["aa", "bb", 0, 10]}),
    ),
    "sources from outside": (
        (
            "def each(item: int, y: int, z: int) -> int:\n    return item * y + z\n"
            "def z(y: int) -> int:\n    return y + 1\n"
            "def total(each: Collect[int], z: int) -> list:\n    return [*each, z]\n"
        ),
        *(["total"], {"x": 3, "y": 2}, {}, {"total": [3, 5, 7, 3]}),
    ),
    "coroutine functions": (
        (
            "import asyncio\nasync def each(item: int) -> int:\n    await asyncio.sleep(0)\n    return item\n"
            "async def total(each: Collect[int]) -> list:\n    return list(each)\n"
        ),
        *(["total"], {"x": 3}, {}, {"total": [0, 1, 2]}),
    ),
    "a list of a coroutine function": (
        "async def thing(x: int) -> Parallelizable[int]:\n    return [x, x]\n"
        "def each(thing: int) -> int:\n    return thing\n" + TOTAL,
        *(["total"], {"x": 3}, {}, {"total": [3, 3]}),
    ),
    "an override of the items": (
        EACH + TOTAL,
        ["total"],
        {},
        {"item": [5, 6]},
        {"total": [50, 60]},
    ),
    "an override in the block": (
        EACH
        + "def more(each: int, item: int) -> list:\n    return [each, item]\n"
        + "def total(more: Collect[list]) -> list:\n    return list(more)\n",
        *(["total"], {"x": 2}, {"each": 7}, {"total": [[7, 0], [7, 1]]}),
    ),
    "an override of what collects": (EACH + TOTAL, ["total"], {"x": 2}, {"total": 1}, {"total": 1}),
    "a list as input": (
        "def total(given: Collect[int]) -> list:\n    return list(given)\n",
        *(["total"], {"given": [1, 2]}, {}, {"total": [1, 2]}),
    ),
    "not needed": (
        EACH + TOTAL + "def a(x: int) -> int:\n    return x\n",
        ["a"],
        {"x": 1},
        {},
        {"a": 1},
    ),
    "None as items": (
        (
            "def each(item: int) -> object:\n    return None\n"
            "def total(each: Collect[object]) -> list:\n    return list(each)\n"
        ),
        *(["total"], {"x": 2}, {}, {"total": [None, None]}),
    ),
}

OTHER = "def other(item: int) -> int:\n    return item\n"
REFUSED = {
    "one collect of two": (
        EACH + OTHER + "def total(each: Collect[int], other: Collect[int]) -> int:\n    return 1\n",
        "node 'total' collects each, other: a node has one Collect",
    ),
    "a collect beside an item": (
        EACH + "def total(each: Collect[int], item: int) -> int:\n    return 1\n",
        "node 'total' collects each, item: a node has one Collect",
    ),
    "nested": (
        (
            "def sub(item: int) -> Parallelizable[int]:\n    yield from range(item)\n"
            "def each(sub: int) -> int:\n    return sub\n"
            "def inner(each: Collect[int]) -> int:\n    return sum(each)\n"
            "def total(inner: Collect[int]) -> int:\n    return sum(inner)\n"
        ),
        "node 'sub' lies in the block of a Parallelizable (item) and reads or begins another",
    ),
    "of two blocks": (
        "def other(x: int) -> Parallelizable[int]:\n    yield x\n"
        "def each(item: int, other: int) -> int:\n    return item\n" + TOTAL,
        "node 'each' lies in the block of a Parallelizable (item, other)",
    ),
    "collects and begins": (
        EACH + "def total(each: Collect[int]) -> Parallelizable[int]:\n    yield from each\n",
        "node 'total' collects one block and begins another",
    ),
    "an async generator": (
        "async def thing(x: int) -> Parallelizable[int]:\n    yield x\n",
        "node 'thing' of pipeline 'flow' is an async generator",
    ),
}


async def all_shapes(make_project, executor):
    for name, (source, finals, inputs, overrides, expected) in SHAPES.items():
        project = make_project(folder=name.replace(" ", "_"), flow=HEAD + source)
        result = await project.run("flow", inputs, finals, overrides=overrides, executor=executor)
        assert result == expected, name


@pytest.mark.parametrize("executor", HERE)
@pytest.mark.parametrize("shape", SHAPES)
async def test_a6_shapes(make_project, executor, shape):
    source, finals, inputs, overrides, expected = SHAPES[shape]
    project = make_project(flow=HEAD + source)
    assert (
        await project.run("flow", inputs, finals, overrides=overrides, executor=executor)
        == expected
    )


@pytest.mark.parametrize("engine", ["dask", "ray"])
async def test_a6_shapes_on_clusters(make_project, engine):
    pytest.importorskip({"dask": "distributed"}.get(engine, engine))
    await all_shapes(make_project, {"type": engine, "max_workers": 2})


@pytest.mark.parametrize("shape", SHAPES)
async def test_a6_executor_hamilton_refuses_before_the_run(make_project, shape):
    source, finals, inputs, overrides, expected = SHAPES[shape]
    project = make_project(flow=HEAD + source)
    run = project.run("flow", inputs, finals, overrides=overrides, executor="hamilton")
    if shape in ("not needed", "an override of what collects"):
        assert await run == expected
        return
    with pytest.raises(UsageError, match="has a Parallelizable, which executor 'hamilton' has not"):
        await run


@pytest.mark.parametrize("shape", REFUSED)
async def test_a6_shapes_that_there_are_not_are_refused_by_all_and_by_check(make_project, shape):
    source, text = REFUSED[shape]
    project = make_project(flow=HEAD + source)
    for executor in [*HERE, "hamilton", "dask", "ray"]:
        with pytest.raises(GraphError) as caught:
            await project.run("flow", {"x": 2}, executor=executor)
        assert text in str(caught.value)
    assert [text in error.message for error in project.check().errors] == [True]


@pytest.mark.parametrize("executor", [*HERE, "hamilton", "dask", "ray"])
async def test_a6_what_has_a_value_for_each_item_is_no_single_value(make_project, executor):
    project = make_project(flow=HEAD + EACH + TOTAL)
    for final in ("item", "each"):
        with pytest.raises(InputError, match=f"'{final}'.* cannot be a final variable"):
            await project.run("flow", {"x": 2}, [final], executor=executor)
    with pytest.raises(InputError, match="'each'.* no one value can replace"):
        await project.run("flow", {"x": 2}, overrides={"each": 1}, executor=executor)


@pytest.mark.parametrize("executor", HERE)
@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a6_what_a_node_in_the_block_raises_is_its_own(make_project, executor, kind):
    source = HEAD + f"{kind} each(item: int) -> int:\n    return 1 // (item - 1)\n" + TOTAL
    with pytest.raises(
        NodeError, match="node 'each' of pipeline 'flow' raised ZeroDivision"
    ) as caught:
        await make_project(flow=source).run("flow", {"x": 5}, executor=executor)
    assert caught.value.inputs == {"item": "int"}
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("executor", HERE)
async def test_a6_a_generator_that_raises_midway_fails_its_node(make_project, executor):
    source = HEAD.replace("yield from range(x)", "yield 1\n    raise OSError('mid')") + EACH + TOTAL
    with pytest.raises(NodeError, match="node 'item' of pipeline 'flow' raised OSError: mid"):
        await make_project(flow=source).run("flow", {"x": 5}, executor=executor)


@pytest.mark.alone
async def test_a6_items_run_side_by_side(make_project):
    source = (
        HEAD
        + "import threading\nBARRIER = threading.Barrier(3, timeout=20)\n"
        + "def each(item: int) -> int:\n    BARRIER.wait()\n    return item\n"
        + TOTAL
    )
    project = make_project(flow=source)
    executor = {"type": "threadpool", "max_workers": 3}
    assert await project.run("flow", {"x": 6}, executor=executor) == {"total": [*range(6)]}


@pytest.mark.parametrize("executor", HERE)
async def test_a6_retries_and_timeouts_of_nodes_in_a_block(make_project, tmp_path, executor):
    source = (
        HEAD
        + f"""
from pathlib import Path
def each(item: int) -> int:
    seen = Path({str(tmp_path)!r}) / str(item)
    if not seen.exists():
        seen.write_text("")
        raise OSError
    return item
"""
        + TOTAL
    )
    conf = "run: {flow: {dev: {nodes: {each: {timeout: 60, retry: {max_attempts: 2, backoff: 0.001}}}}}}"
    project = make_project(conf, flow=source)
    assert await project.run("flow", {"x": 3}, executor=executor) == {"total": [0, 1, 2]}


@pytest.mark.parametrize("executor", HERE)
async def test_a6_the_cache_knows_each_item(make_project, tmp_path, executor):
    log = tmp_path / "log"
    source = (
        HEAD
        + f"""
def each(item: int) -> int:
    with open({str(log)!r}, "a") as file:
        file.write(str(item))
    return item * 10
def total(each: Collect[int]) -> list:
    with open({str(log)!r}, "a") as file:
        file.write("t")
    return list(each)
def items(item: Collect[int]) -> list:
    return list(item)
"""
    )
    project = make_project("run: {flow: {dev: {cache: true}}}", flow=source)
    for x, told in ((3, "012t"), (3, ""), (4, "3t"), (3, "")):
        log.write_text("")
        result = await project.run("flow", {"x": x}, executor=executor)
        assert result == {"total": [10 * i for i in range(x)], "items": [*range(x)]}
        assert "".join(sorted(log.read_text())) == told


async def test_a6_the_order_of_the_items_is_part_of_the_key(make_project):
    source = HEAD.replace("x: int", "x: list").replace("range(x)", "x") + EACH + TOTAL
    project = make_project("run: {flow: {dev: {cache: true}}}", flow=source)
    for x in ([1, 2], [2, 1], [1, 2]):
        assert await project.run("flow", {"x": x}) == {"total": [10 * i for i in x]}


class Hooks(lifecycle_base.BasePreNodeExecute, lifecycle_base.BasePostNodeExecute):
    def __init__(self) -> None:
        self.told: list[str] = []

    def pre_node_execute(self, *, node_, **told):
        pass

    def post_node_execute(self, *, node_, result, **told):
        self.told.append(f"{node_.name}={result}")


@pytest.mark.parametrize("executor", HERE)
async def test_a6_hooks_and_progress_hear_of_each_item(make_project, executor):
    hooks, heard = Hooks(), []
    project = make_project(flow=HEAD + EACH + TOTAL)
    await project.run("flow", {"x": 2}, executor=executor, adapters=[hooks], progress=heard.append)
    assert sorted(hooks.told) == ["each=0", "each=10", "item=[0, 1]", "total=[0, 10]"]
    done = sorted(event.node for event in heard if event.status == "succeeded")
    assert done == ["each", "each", "item", "total"]


class Remote(lifecycle_base.BaseDoRemoteExecute):
    def do_remote_execute(self, *, node, execute_lifecycle_for_node, **kwargs):
        return execute_lifecycle_for_node(**kwargs)


@pytest.mark.parametrize("shape", SHAPES)
async def test_a6_a_remote_adapter_that_waits_has_all_shapes(make_project, shape):
    source, finals, inputs, overrides, expected = SHAPES[shape]
    project = make_project(flow=HEAD + source)
    found = await project.run("flow", inputs, finals, overrides=overrides, adapters=[Remote()])
    assert found == expected


async def test_a6_a_run_within_a_node_of_a_block(make_project):
    inner = "def n(item: int) -> int:\n    return item + 1\n"
    source = (
        HEAD
        + "from fp_async import run\n"
        + "async def each(item: int) -> int:\n"
        + "    return (await run('inner', {'item': item}, project=ROOT))['n']\n"
        + TOTAL
    )
    project = make_project(flow=HEAD, inner=inner)
    project = make_project(flow=source.replace("ROOT", repr(str(project.root))))
    assert await project.run("flow", {"x": 3}) == {"total": [1, 2, 3]}


async def test_a6_a_failing_item_ends_the_others(make_project):
    begun, ended = asyncio.Event(), []
    source = (
        HEAD
        + """
async def each(item: int, wait: object) -> int:
    await wait(item)
    return item
"""
        + TOTAL
    )

    async def wait(item):
        if item == 1:
            await begun.wait()
            raise ValueError(item)
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(item)

    with pytest.raises(NodeError, match="ValueError: 1"):
        await make_project(flow=source).run("flow", {"x": 2, "wait": wait})
    assert ended == [0]
    assert threading.active_count() < 200
    assert issubclass(NodeError, FlowerPowerError)


# What is told of it ---------------------------------------------------------------------------

FANNED = (
    HEAD
    + "def each(item: int) -> int:\n    if item == 7:\n        raise ValueError('seven')\n    return item\n"
    + TOTAL
)


def shown(lines):
    return [re.sub(r"\d+\.\d+ s", "T s", line).strip() for line in lines.splitlines()]


@pytest.mark.parametrize("executor", HERE)
async def test_e5_a_block_is_one_line_whatever_the_number_of_its_items(
    make_project, capsys, executor
):
    project = make_project(flow=HEAD + EACH + TOTAL)
    with Progress("flow [dev]", ["item", "each", "total"]) as progress:
        await project.run("flow", {"x": 300}, executor=executor, progress=progress)
    await project.aclose()
    assert shown(capsys.readouterr().err) == [
        "✓ item  T s",
        "✓ each \N{MULTIPLICATION SIGN}300  T s",
        "✓ total  T s",
        "✓ flow [dev]: 3 of 3 nodes in T s",
    ]


async def test_e5_an_item_that_failed_is_named_by_its_number(make_project, capsys):
    project = make_project(flow=FANNED)
    with (
        pytest.raises(NodeError, match=r"item: 7 of 300, counted from 0"),
        Progress("flow [dev]", ["item", "each", "total"]) as progress,
    ):
        await project.run("flow", {"x": 300}, executor="local", progress=progress)
    assert shown(capsys.readouterr().err) == [
        "✓ item  T s",
        "✗ each[7]  T s  ValueError: seven",
        "✓ each \N{MULTIPLICATION SIGN}7  T s",
        "✗ flow [dev]: 2 of 3 nodes in T s",
    ]


async def test_e5_a_job_keeps_a_block_as_one_node_and_what_comes_after_it(make_project):
    project = make_project(flow=HEAD + EACH + TOTAL)
    told = []
    spec = Spec(final_vars=["total"])
    order = Order("id", 1, "flow", spec, codec.encode({"x": 1500}))
    outcome = await attempt(project.flows, order, told.append)
    assert outcome.status == "succeeded"
    assert [(each.node, each.count, each.item) for each in told] == [
        ("item", 1, None),
        ("each", 1500, None),
        ("total", 1, None),
    ]


async def test_e13_values_from_the_cache_are_said_to_be(make_project, capsys):
    project = make_project("run: {flow: {dev: {cache: true}}}", flow=HEAD + EACH + TOTAL)
    for x in (3, 3, 5):
        with Progress("flow [dev]", []) as progress:
            await project.run("flow", {"x": x}, progress=progress)
    lines = [line for line in shown(capsys.readouterr().err) if "each" in line or "total" in line]
    each = "✓ each \N{MULTIPLICATION SIGN}"
    assert lines == [
        f"{each}3  T s",
        "✓ total  T s",
        f"{each}3  T s  from the cache",
        "✓ total  T s  from the cache",
        f"{each}5  T s  3 from the cache",
        "✓ total  T s",
    ]


@pytest.mark.parametrize(
    ("error", "summary"),
    [
        (asyncio.CancelledError(), False),
        (JobNotFinishedError("no worker"), False),
        (JobFailedError("id", "failed", "it broke"), True),
    ],
)
def test_e4_a_job_that_goes_on_without_us_has_no_summary(capsys, error, summary):
    with pytest.raises(type(error)), Progress("slow [dev]", ["a", "b"], goes_on=True):
        raise error
    assert ("✗ slow [dev]: 0 of 2 nodes" in capsys.readouterr().err) is summary
