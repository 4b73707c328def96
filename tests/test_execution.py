"""How a run behaves in time: side by side, structured, cancelled, abandoned, retried."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import threading
import time
import tracemalloc
import weakref
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fp_async
from fp_async import executors
from fp_async.errors import NodeError, RunTimeoutError
from fp_async.execution import Execution
from fp_async.node_events import NodeEvent
from fp_async.nodes import Setup
from fp_async.plan import NodeSpec, compile_plan
from fp_async.threads import Threads, in_thread

TWO_SLEEPERS = """
    import time
    def left() -> int:
        time.sleep(1); return 1
    def right() -> int:
        time.sleep(1); return 2
    def both(left: int, right: int) -> int:
        return left + right
"""


class Gate:
    """Lets a node in a thread say that it runs, and holds it until the test opens."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.left = threading.Event()

    def __call__(self) -> int:
        self.entered.set()
        self.opened.wait(30)
        self.left.set()
        return 1

    async def wait_entered(self) -> None:
        await asyncio.to_thread(self.entered.wait, 30)


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.opened.set()


def spec(name, call, *parents, is_async=False):
    return NodeSpec(name, tuple((parent, True) for parent in parents), call, is_async)


def failed(name, kwargs, error):
    return NodeError("test", name, error, {key: type(v).__name__ for key, v in kwargs.items()}, "")


def execution(nodes, final_vars, setup=None, given=None):
    plan = compile_plan({node.name: node for node in nodes}, final_vars, given or {})
    return Execution(plan, given or {}, setup or Setup(Threads()), failed)


@pytest.mark.alone
async def test_two_independent_one_second_nodes_take_one_second(make_project):
    project = make_project(flow=TWO_SLEEPERS)
    project.flow("flow")
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await project.run("flow") == {"both": 3}
    assert loop.time() - began < 1.1


@pytest.mark.alone
async def test_a_sync_node_never_blocks_the_loop(make_project):
    project = make_project(flow="import time\ndef slow() -> int:\n    time.sleep(2); return 1\n")
    project.flow("flow")
    loop = asyncio.get_running_loop()
    gaps = []

    async def ticker() -> None:
        last = loop.time()
        while True:
            await asyncio.sleep(0.01)
            gaps.append(loop.time() - last - 0.01)
            last = loop.time()

    task = asyncio.create_task(ticker())
    await project.run("flow")
    task.cancel()
    assert len(gaps) > 100
    assert max(gaps) < 0.05


async def test_a_failing_node_cancels_its_siblings_and_waits_for_them():
    events = []

    async def sibling():
        events.append("started")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # cleaning up takes a turn of the loop
            events.append("cleaned up")
            raise

    async def failing():
        while not events:
            await asyncio.sleep(0)
        raise ValueError("no")

    nodes = [
        spec("sibling", sibling, is_async=True),
        spec("failing", failing, is_async=True),
    ]
    with pytest.raises(NodeError, match="node 'failing'") as raised:
        await execution(nodes, ["sibling", "failing"]).run()
    assert events == ["started", "cleaned up"]
    assert "raised ValueError: no" in str(raised.value)


async def test_a_failing_thread_cancels_coroutines_on_the_loop():
    started, cancelled = threading.Event(), []

    async def sibling():
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    def failing():
        started.wait(30)
        raise ValueError("no")

    nodes = [spec("sibling", sibling, is_async=True), spec("failing", failing)]
    with pytest.raises(NodeError, match="node 'failing'"):
        await execution(nodes, ["sibling", "failing"]).run()
    assert cancelled == [True]


async def test_nothing_is_started_after_a_failure():
    calls = []

    def boom():
        raise ValueError

    nodes = [spec("boom", boom), spec("after", lambda boom: calls.append(boom), "boom")]
    for setup in (Setup(), Setup(Threads())):
        with pytest.raises(NodeError):
            await execution(nodes, ["after"], setup).run()
    assert calls == []


@pytest.mark.parametrize("how", ["asyncio", "anyio"])
async def test_cancelling_a_run_cancels_its_coroutines_and_leaves_no_task(how):
    started, begun, ended = asyncio.Event(), [], []

    async def waits():
        begun.append(True)
        try:
            if len(begun) == 2:
                started.set()
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    nodes = [spec("a", waits, is_async=True), spec("b", waits, is_async=True)]
    before = asyncio.all_tasks()
    run = execution(nodes, ["a", "b"]).run
    if how == "asyncio":
        task = asyncio.create_task(run())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await started.wait()
            group.cancel_scope.cancel()
    assert ended == [True, True]
    assert asyncio.all_tasks() == before


async def test_cancelling_abandons_a_node_in_a_thread_at_once_and_names_it(gate):
    threads = Threads(1)
    running = execution([spec("stuck", gate)], ["stuck"], Setup(threads))
    task = asyncio.create_task(running.run())
    await gate.wait_entered()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not gate.left.is_set()
    assert running.running == ("stuck",)
    later = asyncio.create_task(in_thread(threads, lambda: "free"))
    await asyncio.sleep(0)
    assert not later.done()  # the only slot is busy until the abandoned node has ended
    gate.opened.set()
    assert await later == "free"
    assert running.running == ()


async def test_a_timeout_names_what_was_abandoned(make_project, gate, caplog):
    project = make_project(flow="def stuck(gate: object) -> object:\n    return gate()\n")
    with pytest.raises(RunTimeoutError, match="longer than its timeout of 0.05 s") as raised:
        await project.run("flow", {"gate": gate}, timeout=0.05)
    assert raised.value.running == ("stuck",)
    assert "abandoned in threads: stuck" in str(raised.value)
    assert not gate.left.is_set()


@pytest.mark.parametrize("how", ["policy", "async hook"])
async def test_abandoned_nodes_are_named_whatever_is_around_them(make_project, gate, how):
    from hamilton.lifecycle import base

    class Hook(base.BasePreNodeExecuteAsync):
        async def pre_node_execute(self, *, run_id, node_, kwargs, task_id=None):
            pass

    config = "run: {flow: {dev: {nodes: {stuck: {timeout: 100}}}}}" if how == "policy" else "{}"
    project = make_project(config, flow="def stuck(gate: object) -> object:\n    return gate()\n")
    adapters = [] if how == "policy" else [Hook()]
    with pytest.raises(RunTimeoutError) as raised:
        await project.run("flow", {"gate": gate}, timeout=0.05, adapters=adapters)
    assert raised.value.running == ("stuck",)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "5"])
async def test_a_timeout_is_a_number_of_seconds(make_project, timeout):
    project = make_project(flow="def a() -> int:\n    return 1\n")
    with pytest.raises(fp_async.UsageError, match="timeout is a number of seconds"):
        await project.run("flow", timeout=timeout)


async def test_cancelling_logs_what_was_abandoned(make_project, gate, caplog):
    caplog.set_level(logging.WARNING, "fp_async")
    project = make_project(flow="def stuck(gate: object) -> object:\n    return gate()\n")
    task = asyncio.create_task(project.run("flow", {"gate": gate}))
    await gate.wait_entered()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "stuck" in caplog.text


async def test_a_node_that_raises_cancelled_error_fails_the_run():
    async def raises():
        raise asyncio.CancelledError("from within")

    def raises_in_thread():
        raise asyncio.CancelledError("from within")

    for node in (spec("odd", raises, is_async=True), spec("odd", raises_in_thread)):
        with pytest.raises(NodeError, match="CancelledError"):
            await execution([node], ["odd"]).run()


async def test_a_node_that_cancels_its_own_task_fails_the_run():
    async def fine():
        await asyncio.sleep(0)

    async def suicidal():
        await asyncio.sleep(0)
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    nodes = [spec("fine", fine, is_async=True), spec("suicidal", suicidal, is_async=True)]
    with pytest.raises((NodeError, asyncio.CancelledError)):
        async with asyncio.timeout(10):
            await execution(nodes, ["fine", "suicidal"]).run()
    asyncio.current_task().uncancel()


@pytest.mark.parametrize(
    ("error", "threads"),
    [
        (SystemExit(3), True),
        (SystemExit(3), False),
        (StopIteration("x"), True),
        (StopIteration("x"), False),
        (GeneratorExit(), True),  # inline it means that the run itself is being closed
    ],
)
async def test_odd_exceptions_of_a_node_are_its_failure(error, threads):
    def odd():
        raise error

    with pytest.raises(NodeError, match=type(error).__name__):
        await execution([spec("odd", odd)], ["odd"], Setup(Threads() if threads else None)).run()


async def test_nodes_see_the_callers_context():
    import contextvars

    variable = contextvars.ContextVar("variable", default="outside")
    variable.set("inside")

    async def on_loop():
        return variable.get()

    nodes = [spec("loop", on_loop, is_async=True), spec("thread", variable.get)]
    assert await execution(nodes, ["loop", "thread"]).run() == {
        "loop": "inside",
        "thread": "inside",
    }


async def test_a_chain_of_sync_nodes_takes_one_hop():
    idents = []
    nodes = [spec("n0", threading.get_ident)]
    for i in range(1, 50):
        call = lambda i=i, **kw: idents.append(threading.get_ident())  # noqa: E731
        nodes.append(spec(f"n{i}", call, f"n{i - 1}"))
    await execution(nodes, ["n49"]).run()
    assert len(set(idents)) == 1
    assert idents[0] != threading.get_ident()


@pytest.mark.parametrize("setup", [Setup(), Setup(Threads())], ids=["local", "threads"])
async def test_five_thousand_nodes_deep_and_wide(setup):
    deep = [spec("n0", lambda: 0)]
    deep += [
        spec(f"n{i}", lambda i=i, **kw: kw[f"n{i - 1}"] + 1, f"n{i - 1}") for i in range(1, 5000)
    ]
    assert await execution(deep, ["n4999"], setup).run() == {"n4999": 4999}
    wide = [spec(f"n{i}", lambda: 1) for i in range(5000)]
    wide.append(spec("total", lambda **kw: sum(kw.values()), *[node.name for node in wide]))
    assert await execution(wide, ["total"], setup).run() == {"total": 5000}


@pytest.mark.parametrize("setup", [Setup(), Setup(Threads())], ids=["local", "threads"])
async def test_values_are_dropped_when_no_later_node_needs_them(setup):
    class Big:
        pass

    references = []

    def make(**_):
        value = Big()
        references.append(weakref.ref(value))
        return value

    def count_alive(**_):
        gc.collect()
        return sum(reference() is not None for reference in references)

    nodes = [spec("a", make), spec("b", make, "a"), spec("c", make, "b")]
    nodes.append(spec("alive", lambda c: count_alive(), "c"))
    assert await execution(nodes, ["alive"], setup).run() == {"alive": 1}


async def test_a_chain_of_large_arrays_peaks_like_the_sync_driver(make_project):
    from hamilton import driver

    size = 2_000_000
    source = "import numpy as np\nArray = np.ndarray\n"
    source += f"def n0() -> Array:\n    return np.ones({size})\n"
    for i in range(1, 10):
        source += f"def n{i}(n{i - 1}: Array) -> Array:\n    return n{i - 1} + 1\n"
    project = make_project(flow=source)
    module = project.flow("flow").graph.modules[0]
    sync_driver = driver.Builder().with_modules(module).build()

    def peak(of) -> int:
        gc.collect()
        tracemalloc.start()
        of()
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    expected = peak(lambda: sync_driver.execute(["n9"]))
    for executor in ("local", "threadpool"):
        await project.run("flow", executor=executor)
        tracemalloc.start()
        await project.run("flow", executor=executor)
        measured = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert measured <= 1.2 * expected


async def test_progress_events_tell_each_node_in_order_on_the_loop(make_project):
    events: list[NodeEvent] = []
    threads = set()

    def progress(event: NodeEvent) -> None:
        threads.add(threading.get_ident())
        events.append(event)

    project = make_project(
        flow="""
        def a() -> int:
            return 1
        async def b(a: int) -> int:
            return a + 1
        """
    )
    await project.run("flow", progress=progress)
    told = [(event.node, event.status) for event in events]
    assert told == [("a", "started"), ("a", "succeeded"), ("b", "started"), ("b", "succeeded")]
    assert threads == {threading.get_ident()}
    assert all(event.seconds >= 0 for event in events)


async def test_a_failing_progress_callback_does_not_change_the_outcome(make_project, caplog):
    def progress(event: NodeEvent) -> None:
        raise ValueError("my display is broken")

    project = make_project(flow="def a() -> int:\n    return 1\n")
    assert await project.run("flow", progress=progress) == {"a": 1}
    assert "my display is broken" in caplog.text


RETRIED = """
    run:
      flow:
        dev:
          nodes:
            flaky:
              timeout: {timeout}
              retry: {{max_attempts: 3, backoff: 0, on: [{on}]}}
"""
FLAKY = """
    calls = []
    {define} flaky(errors: list) -> int:
        calls.append(1)
        if len(calls) <= len(errors):
            raise errors[len(calls) - 1]
        return len(calls)
"""


@pytest.mark.parametrize("define", ["def", "async def"])
@pytest.mark.parametrize("executor", ["local", "threadpool"])
async def test_node_retry(make_project, define, executor):
    config = RETRIED.format(timeout=5, on="ConnectionError")
    events: list[NodeEvent] = []
    for errors, outcome in (
        ([ConnectionResetError()] * 2, 3),  # a subclass of what `on` names
        ([ConnectionResetError()] * 3, ConnectionResetError),
        ([ValueError()], ValueError),
    ):
        project = make_project(config, flow=FLAKY.format(define=define))
        project.reload()
        run = project.run("flow", {"errors": errors}, executor=executor, progress=events.append)
        if isinstance(outcome, int):
            assert await run == {"flaky": outcome}
        else:
            with pytest.raises(NodeError) as raised:
                await run
            assert isinstance(raised.value.__cause__, outcome)
    assert [event.status for event in events].count("retrying") == 2 + 2


async def test_node_timeout_of_a_coroutine_and_of_a_thread(make_project, gate):
    config = "run: {flow: {dev: {nodes: {slow: {timeout: 0.05}}}}}"
    source = "import asyncio\nasync def slow() -> int:\n    await asyncio.sleep(60)\n    return 1\n"
    project = make_project(config, flow=source)
    with pytest.raises(NodeError, match="node 'slow'.*timeout of 0.05 s"):
        await project.run("flow")
    source = "def slow(gate: object) -> object:\n    return gate()\n"
    project = make_project(config, folder="threaded", flow=source)
    with pytest.raises(NodeError, match="node 'slow'.*timeout of 0.05 s"):
        await project.run("flow", {"gate": gate})
    assert not gate.left.is_set()


async def test_run_retry_repeats_the_whole_run(make_project):
    config = "run: {flow: {dev: {retry: {max_attempts: 2, backoff: 0}}}}"
    project = make_project(
        config,
        flow="""
        calls = []
        def flaky() -> int:
            calls.append(1)
            if len(calls) < 2:
                raise ValueError
            return len(calls)
        """,
    )
    assert await project.run("flow") == {"flaky": 2}


async def test_many_runs_of_one_project_at_once(make_project):
    project = make_project(
        flow="""
        import asyncio
        def a(x: int) -> int:
            return x
        async def b(a: int) -> int:
            await asyncio.sleep(0)
            return a * 2
        def c(a: int, b: int) -> int:
            return a + b
        """
    )
    results = await asyncio.gather(*(project.run("flow", {"x": x}) for x in range(200)))
    assert results == [{"c": 3 * x} for x in range(200)]


async def test_a_run_inside_a_node(make_project):
    project = make_project(
        inner="def doubled(x: int) -> int:\n    return 2 * x\n",
        outer="async def outer(project: object) -> int:\n"
        "    return (await project.run('inner', {'x': 4}))['doubled']\n",
    )
    assert await project.run("outer", {"project": project}) == {"outer": 8}


# Any DAG, any mixture: the value and the error are those of a plain recursive evaluation ------


@st.composite
def dags(draw):
    size = draw(st.integers(1, 14))
    nodes = []
    for i in range(size):
        parents = draw(st.lists(st.integers(0, i - 1), unique=True, max_size=4)) if i else []
        kind = draw(st.sampled_from(["sync", "async", "hidden", "suspending"]))
        nodes.append((parents, kind, draw(st.integers(0, 15)) == 0))
    return nodes


def build(dag, calls):
    def node(i, parents, kind, fails):
        def value(kwargs):
            calls.append(i)
            if fails:
                raise ArithmeticError(i)
            return (i, *(kwargs[f"n{p}"] for p in parents))

        async def coroutine(**kwargs):
            if kind == "suspending":
                await asyncio.sleep(0)
            return value(kwargs)

        call = (lambda **kwargs: value(kwargs)) if kind == "sync" else coroutine
        if kind == "hidden":
            call = lambda **kwargs: coroutine(**kwargs)  # noqa: E731
        is_async = kind in ("async", "suspending")
        return spec(f"n{i}", call, *[f"n{p}" for p in parents], is_async=is_async)

    return [node(i, *entry) for i, entry in enumerate(dag)]


def expected(dag):
    values = []
    for i, (parents, _, _) in enumerate(dag):
        values.append((i, *(values[p] for p in parents)))
    return values


SETUPS = {
    "local": Setup(),
    "threads": Setup(executors.threads(None)),
    "watched": Setup(executors.threads(None), progress=lambda event: None),
}


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(dag=dags())
def test_any_dag_gives_the_values_of_plain_evaluation(setup, dag):
    calls: list[int] = []
    nodes = build(dag, calls)
    finals = [node.name for node in nodes]
    if any(fails for _, _, fails in dag):
        with pytest.raises(NodeError, match="ArithmeticError"):
            asyncio.run(execution(nodes, finals, setup).run())
        assert len(calls) == len(set(calls))
    else:
        result = asyncio.run(execution(nodes, finals, setup).run())
        assert list(result.values()) == expected(dag)
        assert sorted(calls) == list(range(len(dag)))


def test_public_run_is_the_projects_run(make_project):
    project = make_project(flow="def a() -> int:\n    return 1\n")
    assert asyncio.run(fp_async.run("flow", project=project.root)) == {"a": 1}


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(dag=dags(), pauses=st.lists(st.integers(0, 14), max_size=3))
def test_sharing_at_any_moment_gives_the_values_of_plain_evaluation(monkeypatch, dag, pauses):
    from fp_async import execution as module

    monkeypatch.setattr(module, "_TRIVIAL", 0.0)  # the loop shares as soon as it comes to it
    calls: list[int] = []
    dag = [(parents, "hidden" if kind == "async" else "sync", False) for parents, kind, _ in dag]
    nodes = build(dag, calls)
    for i in pauses:
        if i < len(nodes) and dag[i][1] == "sync":
            plain = nodes[i].call
            call = lambda plain=plain, **kwargs: (os.sched_yield(), time.sleep(0), plain(**kwargs))[
                2
            ]
            nodes[i] = NodeSpec(nodes[i].name, nodes[i].parameters, call)
    finals = [node.name for node in nodes]
    result = asyncio.run(execution(nodes, finals, Setup(executors.threads(None))).run())
    assert list(result.values()) == expected(dag)
    assert sorted(calls) == list(range(len(dag)))


async def test_h18_a_coroutine_that_an_abandoned_node_gives_is_closed(make_project, gate):
    flow = """
        async def _later() -> int:
            return 1
        def stuck(gate: object, made: list) -> int:
            gate()
            made.append(_later())
            return made[0]
    """
    made: list[Any] = []
    config = "run: {flow: {dev: {nodes: {stuck: {timeout: 0.05}}}}}"
    with pytest.raises(NodeError, match="longer than its timeout"):
        await make_project(config, flow=flow).run("flow", {"gate": gate, "made": made})
    gate.opened.set()
    async with asyncio.timeout(5):
        while not made or inspect.getcoroutinestate(made[0]) != inspect.CORO_CLOSED:
            await asyncio.sleep(0.001)
