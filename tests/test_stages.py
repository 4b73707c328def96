"""How a plan is divided into stages, values on their way, and threads that are interrupted."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp_async import copies, onsite_threads, parcels, remote
from fp_async.errors import GraphError
from fp_async.nodes import AttemptTimeoutError
from fp_async.onsite import cut
from fp_async.parcels import Parcel
from fp_async.plan import NodeSpec, compile_plan
from fp_async.stages import check_blocks, divide


def stages_of(nodes, finals, *, inputs=("x",), awaited=(), roles=None, alone=()):
    """`nodes` maps a name to what it reads."""
    specs = {name: NodeSpec(name, (), None) for name in inputs}
    for name, reads in nodes.items():
        parameters = tuple((read, True) for read in reads)
        specs[name] = NodeSpec(name, parameters, lambda **_: None, name in awaited)
    return divide(compile_plan(specs, finals, inputs), roles or {}, alone)


def names(stages):
    return sorted(tuple(name for name, _ in stage.nodes) for stage in stages)


def test_a_chain_is_one_stage():
    stages = stages_of({"a": ["x"], "b": ["a", "x"], "c": ["b"]}, ["c"])
    assert names(stages) == [("a", "b", "c")]
    assert (stages[0].sources, stages[0].outputs) == (("x",), ("c",))


def test_what_could_run_side_by_side_is_not_joined():
    nodes = {"a": ["x"], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
    assert names(stages_of(nodes, ["d"])) == [("a",), ("b",), ("c",), ("d",)]
    nodes = {"a": ["x"], "slow": ["x"], "b": ["a", "slow"]}
    assert names(stages_of(nodes, ["b"])) == [("a",), ("b",), ("slow",)]


def test_a_final_variable_and_a_node_apart_end_a_chain():
    nodes = {"a": ["x"], "b": ["a"], "c": ["b"]}
    assert names(stages_of(nodes, ["a", "c"])) == [("a",), ("b", "c")]
    assert names(stages_of(nodes, ["c"], alone=["b"])) == [("a",), ("b",), ("c",)]


def test_coroutine_functions_stay():
    stages = stages_of({"a": ["x"], "b": ["a"], "c": ["b"]}, ["c"], awaited=["b"])
    assert names(stages) == [("a",), ("b",), ("c",)]
    assert [stage.name for stage in stages if stage.local] == ["b"]


FAN = {"e": ["x"], "p": ["e", "y"], "q": ["p"], "all": ["q", "z"], "also": ["p"], "end": ["all"]}
ROLES = {"e": "expand", "all": "collect", "also": "collect"}


def test_a_block_runs_for_each_item_and_leaves_what_is_collected():
    found = stages_of(FAN, ["end", "also"], inputs=("x", "y", "z"), awaited=["e", "q"], roles=ROLES)
    stages = {stage.name: stage for stage in found}
    block = stages["e@each"]
    assert [name for name, _ in block.nodes] == ["p", "q"]
    assert (block.item, block.sources) == ("e", ("y",))
    assert sorted(block.outputs) == ["p", "q"]
    assert stages["e"].expands
    assert stages["end"].gathers == ("e@each", "q")
    assert stages["end"].sources == ("z",)
    assert stages["also"].gathers == ("e@each", "p")
    assert not any(stage.local for stage in found)


@pytest.mark.parametrize(
    ("nodes", "roles"),
    [
        ({"e": ["x"], "f": ["e"], "c": ["f"]}, {"e": "expand", "f": "expand", "c": "collect"}),
        ({"e": ["x"], "f": ["x"], "p": ["e", "f"], "c": ["p"]}, {"e": "expand", "f": "expand"}),
        ({"e": ["x"], "p": ["e"], "c": ["p", "e"]}, {"e": "expand", "c": "collect"}),
    ],
    ids=["within", "of two", "an item beside what is collected"],
)
def test_blocks_within_each_other_are_refused(nodes, roles):
    collected = {"c": nodes["c"]} if roles.get("c") == "collect" else {}
    expands = {name for name, role in roles.items() if role == "expand"}
    with pytest.raises(GraphError):
        check_blocks(nodes, collected, expands)


@given(st.data())
def test_every_node_is_in_one_stage_after_what_it_reads(data):
    count = data.draw(st.integers(1, 12))
    nodes = {
        f"n{i}": [f"n{j}" for j in range(i) if data.draw(st.booleans())] or ["x"]
        for i in range(count)
    }
    awaited = [name for name in nodes if data.draw(st.booleans())]
    finals = [name for name in nodes if data.draw(st.booleans())] or [f"n{count - 1}"]
    stages = stages_of(nodes, finals, awaited=awaited)
    found = [name for stage in stages for name, _ in stage.nodes]
    assert len(found) == len(set(found))
    assert set(finals) <= set(found)
    left = {output for stage in stages for output in stage.outputs}
    assert set(finals) <= left
    for stage in stages:
        known = set(stage.sources)
        assert known <= left | {"x"}
        for name, arguments in stage.nodes:
            assert {source for _, source in arguments} <= known
            known.add(name)


# Values ---------------------------------------------------------------------------------------


class Loud:
    def __reduce__(self):
        raise TypeError("not this one")


def test_a_parcel_is_the_value_itself_until_it_travels():
    value = object()
    assert Parcel(value).open() is value
    copy = pickle.loads(pickle.dumps(Parcel([1, 2])))
    again = pickle.loads(pickle.dumps(copy))
    assert (again.open(), copy.open()) == ([1, 2], [1, 2])
    assert copy.open() is copy.open()


def test_the_memory_of_arrays_is_not_copied_and_can_be_written_to():
    import numpy as np

    array = np.arange(1000.0)
    buffers = []
    data = pickle.dumps(Parcel(array), protocol=5, buffer_callback=buffers.append)
    assert len(data) < 1000
    frozen = [bytes(buffer.raw()) for buffer in buffers]
    parcel = pickle.loads(data, buffers=frozen)
    assert parcel.size > 8000
    opened = parcel.open()
    opened += 1
    assert opened.sum() == array.sum() + 1000


def test_what_cannot_be_packed_says_so(monkeypatch):
    with pytest.raises(TypeError, match="not this one"):
        Parcel(Loud()).packed()
    monkeypatch.setattr(parcels, "_dumps", [pickle.dumps, lambda value, **_: b"by the other"])
    assert Parcel(lambda: 1).packed().size == len(b"by the other")


@given(st.lists(st.integers(), max_size=30), st.integers(1, 10))
def test_cut_keeps_all_items_in_order(items, most):
    chunks = cut(items, most)
    assert [item for chunk in chunks for item in chunk.open()] == items
    assert len(chunks) <= most


# Threads --------------------------------------------------------------------------------------


def spin():
    while True:
        time.sleep(0.005)


def test_python_code_is_ended_after_its_timeout():
    with pytest.raises(AttemptTimeoutError) as caught:
        onsite_threads.within(spin, 0.05, "token")
    assert not isinstance(caught.value, onsite_threads.StuckError)
    assert onsite_threads.within(lambda: 3, 5.0, "token") == 3


def test_a_coroutine_is_ended_after_its_timeout():
    ended = []

    async def wait():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(AttemptTimeoutError):
        onsite_threads.within(lambda: onsite_threads.awaited(wait()), 0.05, "token")
    assert ended == [True]


def test_what_does_not_hear_is_stuck(monkeypatch):
    monkeypatch.setattr(onsite_threads, "GRACE", 0.05)
    with pytest.raises(onsite_threads.StuckError):
        onsite_threads.within(lambda: time.sleep(0.5), 0.05, "token")


async def test_interrupting_by_token():
    outcome = []
    began = threading.Event()

    def work():
        try:
            with onsite_threads.Interruptible("mine"):
                began.set()
                spin()
        except onsite_threads.InterruptedNodeError:
            outcome.append("interrupted")

    thread = threading.Thread(target=work)
    thread.start()
    began.wait()
    assert await onsite_threads.interrupt("another's") is False
    assert await onsite_threads.interrupt("mine") is False
    thread.join(5)
    assert outcome == ["interrupted"]


def test_two_threads_write_apart(capsys):
    log = onsite_threads.Log()
    with onsite_threads.Listening(log, 30):
        other = threading.Thread(target=print, args=("not mine",))
        other.start()
        other.join()
        print("mine")
    print("later")
    assert "".join(text for _, _, text in log.lines) == "mine\n"
    assert capsys.readouterr().out == "not mine\nlater\n"


# The pipeline ---------------------------------------------------------------------------------


def spec(sources, config=None):
    return remote.GraphSpec(
        folder=Path("/nowhere/at/all/pipelines"),
        flow="flow",
        environment="dev",
        modules=("flow",),
        params=pickle.dumps({}),
        config=pickle.dumps(config or {}),
        materializers=pickle.dumps(()),
        allow_overrides=False,
        sources=tuple((name, text.encode()) for name, text in sources.items()),
    )


SENT = {
    "flow.py": """
import helper
from pipelines.deeper import inside
from . import helper as same

class Own:
    pass

def a() -> int:
    import helper as late
    assert late is helper is same
    return helper.ONE + inside.TWO

def b() -> object:
    return Own()

def c(a: int) -> float:
    return a / 0
""",
    "helper.py": "ONE = 1\n",
    "deeper/inside.py": "TWO = 2\n",
}


def test_a_pipeline_is_loaded_from_what_was_sent():
    loaded = remote.loaded(spec(SENT))
    graph = loaded.graph
    with loaded.running():
        assert graph.nodes["a"].call() == 3
        own = graph.nodes["b"].call()
        assert type(pickle.loads(copies.dumps(own))) is type(own)
    assert remote.loaded(spec(SENT)).graph is graph


def test_an_edited_pipeline_takes_the_place_of_the_older_one():
    remote.loaded(spec(SENT))
    newer = remote.loaded(spec({**SENT, "helper.py": "ONE = 10\n"})).graph
    assert newer.nodes["a"].call() == 12
    assert remote.loaded(spec(SENT)).graph.nodes["a"].call() == 3


def test_an_error_shows_lines_that_are_only_in_memory():
    graph = remote.loaded(spec(SENT)).graph
    try:
        graph.nodes["c"].call(a=1)
    except ZeroDivisionError as error:
        failure = remote.failure(error, Path("/nowhere/at/all/pipelines"))
    assert failure.line == "pipelines/flow.py:18: return a / 0"
    error = remote.raised(failure, "a worker")
    assert "in c" in str(error.__cause__)
    assert "return a / 0" in str(error.__cause__)
