"""One contract for Hamilton's adapters at every executor: the table of docs/guide.md.

Each question has one test, over all executors. Clusters are started once for the module.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from contextvars import ContextVar
from functools import partial
from importlib.util import find_spec
from itertools import groupby
from typing import Any

import pytest
import services
from hamilton import base, driver, lifecycle
from hamilton.lifecycle import base as lb
from hamilton.lifecycle import default
from hamilton.plugins.h_threadpool import FutureAdapter

from fp_async import (
    AdapterError,
    ExecutorSettings,
    NodeError,
    RunTimeoutError,
    UsageError,
    check,
    engines,
)

HERE = ["local", "threadpool", "hamilton"]
EXECUTORS: dict[str, Any] = {
    **{name: name for name in (*HERE, "processpool")},
    "ray": ExecutorSettings(
        type="ray", max_workers=1, options={"object_store_memory": 100_000_000}
    ),
    "dask": ExecutorSettings(type="dask", max_workers=1),
}
MARK: ContextVar[str] = ContextVar("mark", default="nobody")
FLOW = """
    import threading
    def a(x: int) -> int:
        return x + 1
    async def b(a: int) -> int:
        return a * 2
    def c(a: int, b: int) -> int:
        return a + b
    def bad(c: int) -> int:
        return c // 0
    def after(bad: int) -> int:
        return bad
"""
ITEMS = """
    from hamilton.htypes import Collect, Parallelizable
    def item(x: int) -> Parallelizable[int]:
        yield from range(x)
    def each(item: int) -> int:
        return item * 10
    def total(each: Collect[int]) -> int:
        return sum(each)
"""
# The functions of FLOW with what they see of the context, for executors that call them here.
SEEN = """
    from contextvars import copy_context
    def mark() -> str:
        return next(v for k, v in copy_context().items() if k.name == "mark")
    def a() -> str:
        return mark()
    async def b(a: str) -> str:
        return mark()
    def c(b: str) -> str:
        return mark()
"""


@pytest.fixture(scope="module")
def clusters():
    yield
    engines.shutdown()


@pytest.fixture(params=EXECUTORS)
def executor(request):
    package = {"ray": "ray", "dask": "distributed"}.get(request.param)
    if package:
        if find_spec(package) is None:
            services.missing(f"fp-async[{request.param}] is not installed")
        request.getfixturevalue("clusters")
    return EXECUTORS[request.param]


def name(executor: Any) -> str:
    return getattr(executor, "type", executor)


class Recorder(
    lb.BasePreDoAnythingHook,
    lb.BasePostGraphConstruct,
    lb.BasePreGraphExecute,
    lb.BasePreNodeExecute,
    lb.BasePostNodeExecute,
    lb.BasePostGraphExecute,
):
    """What a sync adapter hears, with the thread of each call."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.told: list[dict[str, Any]] = []
        self.threads: list[int] = []

    def hear(self, call: str, **told: Any) -> None:
        self.calls.append(call)
        self.told.append(told)
        self.threads.append(threading.get_ident())

    def pre_do_anything(self):
        self.hear("anything")

    def post_graph_construct(self, *, graph, modules, config):
        self.hear("construct", graph=graph)

    def pre_graph_execute(self, **told):
        self.hear("start", **told)

    def pre_node_execute(self, **told):
        self.hear(f"before {told['node_'].name}", **told)

    def post_node_execute(self, **told):
        self.hear(f"after {told['node_'].name}", **told)

    def post_graph_execute(self, **told):
        self.hear("end", **told)

    def of(self, call: str) -> dict[str, Any]:
        return self.told[self.calls.index(call)]


class AsyncRecorder(
    lb.BasePreGraphExecuteAsync,
    lb.BasePreNodeExecuteAsync,
    lb.BasePostNodeExecuteAsync,
    lb.BasePostGraphExecuteAsync,
):
    """The same of async hooks, told to a sync one under other names."""

    def __init__(self, of: Recorder) -> None:
        self.of = of

    async def pre_graph_execute(self, **told):
        self.of.hear("start async", **told)

    async def pre_node_execute(self, **told):
        self.of.hear(f"before {told['node_'].name} async", **told)

    async def post_node_execute(self, **told):
        self.of.hear(f"after {told['node_'].name} async", **told)

    async def post_graph_execute(self, **told):
        self.of.hear("end async", **told)


# Which, how often, in which order -----------------------------------------------------------


async def test_h20_which_hooks_are_called_and_in_which_order(make_project, executor):
    heard, adapters = Recorder(), []
    adapters += [AsyncRecorder(heard), heard]
    project = make_project(flow=FLOW)
    for _ in range(2):
        found = await project.run("flow", {"x": 1}, "c", executor=executor, adapters=adapters)
        assert found == {"c": 6}
    node = ["before {} async", "before {}", "after {}", "after {} async"]
    run = ["start", "start async"]
    run += [call.format(name) for name in "abc" for call in node]
    run += ["end", "end async"]
    assert heard.calls == ["anything", "construct", *run, *run]


async def test_h20_what_hooks_are_told(make_project, executor):
    heard = Recorder()
    project = make_project(flow=FLOW)
    await project.run("flow", {"x": 1}, "c", executor=executor, adapters=[heard])
    start = heard.of("start")
    assert (start["final_vars"], start["inputs"], start["overrides"]) == (["c"], {"x": 1}, {})
    after = heard.of("after c")
    assert (after["kwargs"], after["success"], after["result"]) == ({"a": 2, "b": 4}, True, 6)
    assert heard.of("end")["results"] == {"c": 6}
    assert len({told["run_id"] for told in heard.told if "run_id" in told}) == 1


@pytest.mark.parametrize("flow", [FLOW, ITEMS], ids=["plain", "items"])
async def test_h6_the_graph_is_the_one_that_was_announced(make_project, executor, flow):
    class Graphs(lb.BasePostGraphConstruct, lb.BasePreGraphExecute, lb.BasePostGraphExecute):
        def __init__(self) -> None:
            self.announced: list[Any] = []
            self.seen: list[Any] = []

        def post_graph_construct(self, *, graph, **_):
            self.announced.append(graph)

        def pre_graph_execute(self, *, graph, **_):
            self.seen.append(graph)

        def post_graph_execute(self, *, graph, **_):
            self.seen.append(graph)

    adapter = Graphs()
    project = make_project(flow=flow)
    final = "c" if flow is FLOW else "total"
    run = project.run("flow", {"x": 3}, final, executor=executor, adapters=[adapter])
    if flow is ITEMS and name(executor) == "hamilton":
        with pytest.raises(UsageError):
            await run
        return
    await run
    (graph,) = adapter.announced
    assert [each is graph for each in adapter.seen] == [True, True]


@pytest.mark.parametrize("executor", ["local", "threadpool", "processpool"])
async def test_h20_items_are_told_apart_as_by_hamiltons_driver(make_project, executor):
    class Tasks(lb.BasePostNodeExecute):
        def __init__(self) -> None:
            self.told: list[tuple[str, str, Any]] = []

        def post_node_execute(self, *, node_, task_id, result, **_):
            value = list(result) if node_.name == "item" else result
            self.told.append((node_.name, task_id, value))

    oracle, ours = Tasks(), Tasks()
    project = make_project(flow=ITEMS + "    def last(total: int) -> int:\n        return total\n")
    module = project.flow("flow").graph.modules[0]
    builder = driver.Builder().with_modules(module).with_adapters(oracle)
    built = builder.enable_dynamic_execution(allow_experimental_mode=True).build()
    expected = built.execute(["last"], inputs={"x": 3})
    assert await project.run("flow", {"x": 3}, executor=executor, adapters=[ours]) == expected
    assert sorted(ours.told) == sorted(oracle.told)


# Errors ------------------------------------------------------------------------------------


async def test_h14_hooks_hear_raw_errors(make_project, executor):
    heard = Recorder()
    adapters = [heard, AsyncRecorder(heard)]
    project = make_project(flow=FLOW)
    with pytest.raises(NodeError, match="node 'bad'"):
        await project.run("flow", {"x": 1}, "after", executor=executor, adapters=adapters)
    calls = ["after bad", "after bad async", "end", "end async"]
    assert heard.calls[-4:] == calls
    for call in calls:
        assert type(heard.of(call)["error"]) is ZeroDivisionError
        assert heard.of(call)["success"] is False


def broken(hook: str, kind: Any) -> Any:
    def fails(self, **_):
        raise KeyError(hook)

    async def fails_async(self, **_):
        raise KeyError(hook)

    function = fails_async if kind.__name__.endswith("Async") else fails
    return type("Broken", (kind,), {hook: function})()


AFTER = [
    ("post_node_execute", lb.BasePostNodeExecute),
    ("post_node_execute", lb.BasePostNodeExecuteAsync),
    ("post_graph_execute", lb.BasePostGraphExecute),
    ("post_graph_execute", lb.BasePostGraphExecuteAsync),
]


@pytest.mark.parametrize(("hook", "kind"), AFTER, ids=lambda value: str(value)[-30:])
async def test_h14_an_error_of_a_hook_hides_no_error_of_a_node(
    make_project, executor, hook, kind, caplog
):
    project = make_project(flow="def bad(x: int) -> int:\n    return x // 0\n")
    with pytest.raises(NodeError, match="node 'bad'.*ZeroDivisionError"):
        await project.run("flow", {"x": 1}, executor=executor, adapters=[broken(hook, kind)])
    assert any("KeyError" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("hook", "kind"),
    [
        ("pre_graph_execute", lb.BasePreGraphExecute),
        ("pre_graph_execute", lb.BasePreGraphExecuteAsync),
        *AFTER[2:],
    ],
    ids=lambda value: str(value)[-30:],
)
async def test_h14_an_error_of_a_hook_around_the_run(make_project, executor, hook, kind):
    project = make_project(flow=FLOW)
    text = f"adapter Broken of pipeline 'flow': {hook} raised KeyError"
    with pytest.raises(AdapterError, match=text) as caught:
        await project.run("flow", {"x": 1}, "a", executor=executor, adapters=[broken(hook, kind)])
    assert isinstance(caught.value.__cause__, KeyError)


async def test_h14_an_error_of_a_result_builder(make_project, executor):
    class Builds(lifecycle.ResultBuilder):
        def build_result(self, **outputs: Any) -> Any:
            raise KeyError("built")

    heard = Recorder()
    project = make_project(flow=FLOW)
    with pytest.raises(AdapterError, match="adapter Builds .*do_build_result raised KeyError"):
        await project.run("flow", {"x": 1}, "a", executor=executor, adapters=[Builds(), heard])
    assert heard.of("end")["success"] is False


# Context and thread ------------------------------------------------------------------------


class Marks(
    lb.BasePreGraphExecute,
    lb.BasePreNodeExecute,
    lb.BasePostNodeExecute,
    lb.BasePostGraphExecute,
):
    """Writes down what it finds in the context, and adds to it."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, what: str) -> None:
        self.found.append(MARK.get())
        MARK.set(f"{MARK.get()} {what}")

    def pre_graph_execute(self, **_):
        MARK.set("run")

    def pre_node_execute(self, *, node_, **_):
        self.add(node_.name)

    def post_node_execute(self, *, node_, **_):
        self.add(f"/{node_.name}")

    def post_graph_execute(self, **_):
        self.found.append(MARK.get())


class AsyncMarks(
    lb.BasePreGraphExecuteAsync,
    lb.BasePreNodeExecuteAsync,
    lb.BasePostNodeExecuteAsync,
    lb.BasePostGraphExecuteAsync,
):
    def __init__(self) -> None:
        self.marks = Marks()
        self.found = self.marks.found

    async def pre_graph_execute(self, **told):
        await asyncio.sleep(0)
        self.marks.pre_graph_execute(**told)

    async def pre_node_execute(self, **told):
        self.marks.pre_node_execute(**told)

    async def post_node_execute(self, **told):
        await asyncio.sleep(0)
        self.marks.post_node_execute(**told)

    async def post_graph_execute(self, **told):
        self.marks.post_graph_execute(**told)


@pytest.mark.parametrize("kind", [Marks, AsyncMarks])
async def test_h7_what_hooks_set_is_there_for_what_follows(make_project, executor, kind):
    marks = kind()
    project = make_project(flow=FLOW)
    await project.run("flow", {"x": 1}, "b", executor=executor, adapters=[marks])
    assert marks.found == [
        "run",
        "run a",
        "run a /a",
        "run a /a b",
        "run a /a b /b",
    ]
    assert MARK.get() == "nobody"  # the caller's is its own


POLICIES = (
    "run: {flow: {dev: {nodes: {a: {timeout: 9}, b: {timeout: 9}, c: {retry: {max_attempts: 2}}}}}}"
)


@pytest.mark.parametrize("executor", HERE)
@pytest.mark.parametrize("config", ["", POLICIES], ids=["plain", "policies"])
@pytest.mark.parametrize("awaited", [False, True])
async def test_h7_and_for_the_nodes(make_project, executor, config, awaited):
    adapters: list[Any] = [Marks()]
    if awaited:
        adapters.append(AsyncRecorder(Recorder()))
    project = make_project(config, flow=SEEN)
    found = await project.run("flow", {}, ["a", "b", "c"], executor=executor, adapters=adapters)
    a, b = "run a", "run a /a b"
    assert found == {"a": a, "b": b, "c": f"{b} /b c"}


async def test_h7_side_by_side_nodes_have_contexts_of_their_own(make_project):
    flow = """
        from contextvars import copy_context
        import threading
        def mark(meet: object) -> str:
            meet.wait(5)
            return next(v for k, v in copy_context().items() if k.name == "mark")
        def a(meet: object) -> str:
            return mark(meet)
        def b(meet: object) -> str:
            return mark(meet)
        def both(a: str, b: str) -> str:
            return next(v for k, v in copy_context().items() if k.name == "mark")
    """
    project = make_project(flow=flow.replace("def mark", "def _mark").replace(" mark(", " _mark("))
    inputs = {"meet": threading.Barrier(2)}
    found = await project.run("flow", inputs, ["a", "b", "both"], adapters=[Marks()])
    assert (found["a"], found["b"]) == ("run a", "run b")
    assert found["both"] in ("run a /a both", "run b /b both")


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("config", ["", POLICIES], ids=["plain", "policies"])
async def test_h7_a_node_and_its_sync_hooks_share_a_thread(make_project, config, awaited):
    heard = Recorder()
    adapters: list[Any] = [heard]
    if awaited:
        adapters.append(AsyncRecorder(Recorder()))
    flow = "import threading\n" + "".join(
        f"def {n}() -> int:\n    return threading.get_ident()\n" for n in "ac"
    )
    project = make_project(config.replace("b: {timeout: 9}, ", ""), flow=flow)
    found = await project.run("flow", {}, ["a", "c"], adapters=adapters)
    for node, thread in found.items():
        threads = {
            heard.threads[heard.calls.index(f"{when} {node}")] for when in ("before", "after")
        }
        assert threads == {thread}
        assert thread != threading.get_ident()


async def test_hooks_of_nodes_elsewhere_hold_no_loop_up(make_project, executor):
    """Where nodes run in other processes, sync hooks around them run in threads of this one."""
    heard = Recorder()
    project = make_project(flow=FLOW)
    await project.run("flow", {"x": 1}, "a", executor=executor, adapters=[heard])
    threads = dict(zip(heard.calls, heard.threads, strict=True))
    inline = name(executor) in ("local", "hamilton")
    assert (threads["before a"] == threading.get_ident()) is inline
    assert (threads["start"] == threading.get_ident()) is (name(executor) == "local")


async def test_a_node_that_takes_too_long_is_told_of_once(make_project):
    left = threading.Event()
    heard = Recorder()
    config = "run: {flow: {dev: {nodes: {slow: {timeout: 0.05}}}}}"
    project = make_project(config, flow="def slow(left: object) -> int:\n    left.wait(9)\n")
    with pytest.raises(NodeError, match="longer than its timeout"):
        await project.run("flow", {"left": left}, adapters=[heard])
    left.set()
    assert heard.calls[-3:] == ["before slow", "after slow", "end"]
    assert heard.of("after slow")["success"] is False


# Who executes a node, and what shapes the graph ----------------------------------------------


class PlusOne(lb.BaseDoNodeExecute):
    def do_node_execute(self, *, run_id, node_, kwargs, task_id=None) -> Any:
        return node_.callable(**kwargs) + 1


class Inline(lb.BaseDoRemoteExecute):
    def do_remote_execute(self, *, node, execute_lifecycle_for_node, **kwargs) -> Any:
        return execute_lifecycle_for_node(**kwargs)


ELSEWHERE = ("processpool", "ray", "dask")


async def test_h8_h10_node_executors_get_values_or_are_refused(make_project, executor):
    project = make_project(flow=FLOW)
    run = project.run("flow", {"x": 1}, "c", executor=executor, adapters=[PlusOne()])
    if name(executor) in ELSEWHERE:
        text = f"cannot run with executor '{name(executor)}': an adapter executes nodes itself"
        with pytest.raises(UsageError, match=text):
            await run
        return
    assert await run == {"c": 11}  # (3 + (3 * 2 + 1)) + 1


async def test_h10_graceful_errors_of_coroutine_functions(make_project, executor):
    adapter = default.GracefulErrorAdapter(error_to_catch=Exception, sentinel_value="none")
    flow = "async def a(x: int) -> int:\n    return 1 // 0\ndef b(a: int) -> int:\n    return a\n"
    project = make_project(flow=flow)
    run = project.run("flow", {"x": 1}, ["a", "b"], executor=executor, adapters=[adapter])
    if name(executor) in ELSEWHERE:
        with pytest.raises(UsageError, match="do_node_execute"):
            await run
        return
    assert await run == {"a": "none", "b": "none"}


@pytest.mark.parametrize("executor", ["local", "threadpool", "processpool"])
async def test_graceful_errors_of_items(make_project, executor):
    adapter = default.GracefulErrorAdapter(error_to_catch=ZeroDivisionError)
    flow = ITEMS.replace("yield from range(x)", "yield 1 // x").replace(
        "sum(each)", "len([each for each in each if each is None])"
    )
    run = make_project(flow=flow).run("flow", {"x": 0}, executor=executor, adapters=[adapter])
    if executor == "processpool":
        with pytest.raises(UsageError, match="do_node_execute"):
            await run
        return
    assert await run == {"total": 1}


LEGACY = [base.DefaultAdapter, base.SimplePythonGraphAdapter]


@pytest.mark.parametrize("legacy", LEGACY)
async def test_h15_hamiltons_former_defaults_execute_nothing(make_project, executor, legacy):
    project = make_project(flow=FLOW)
    found = await project.run("flow", {"x": 1}, "c", executor=executor, adapters=[legacy()])
    assert found == {"c": 6}


async def test_h9_adapters_that_shape_the_graph(make_project, executor):
    project = make_project(
        flow="def a(x: int) -> int:\n    return x\ndef b(a: str) -> str:\n    return repr(a)\n"
    )
    adapter = default.NoEdgeAndInputTypeChecking()
    assert await project.run("flow", {"x": 1}, executor=executor, adapters=[adapter]) == {"b": "1"}


@pytest.mark.parametrize("adapter", [Inline, FutureAdapter])
async def test_h3_nodes_that_an_adapter_executes_elsewhere(make_project, executor, adapter):
    heard = Recorder()
    project = make_project(flow=FLOW)
    adapters = [adapter(), heard]
    run = project.run("flow", {"x": 1}, ["c", "b"], executor=executor, adapters=adapters)
    if name(executor) in (*ELSEWHERE, "hamilton"):
        text = f"cannot run with executor '{name(executor)}': an adapter executes nodes elsewhere"
        with pytest.raises(UsageError, match=text):
            await run
        return
    assert await run == {"c": 6, "b": 4}
    assert sorted(heard.calls[3:-1]) == sorted(
        f"{w} {n}" for w in ("before", "after") for n in "abc"
    )
    assert heard.of("after c")["result"] == 6


@pytest.mark.parametrize("adapter", [Inline, FutureAdapter])
async def test_h3_an_error_elsewhere_is_its_nodes(make_project, adapter):
    heard, events = Recorder(), []
    project = make_project(flow=FLOW)
    with pytest.raises(NodeError, match="node 'bad'.*ZeroDivisionError") as caught:
        await project.run(
            "flow", {"x": 1}, "after", adapters=[adapter(), heard], progress=events.append
        )
    assert caught.value.node == "bad"
    assert type(heard.of("end")["error"]) is ZeroDivisionError
    assert [e.status for e in events if e.node == "bad"] == ["started", "failed"]


async def test_h3_a_run_with_nodes_elsewhere_has_a_timeout(make_project):
    release = threading.Event()
    project = make_project(
        flow="def a(release: object) -> int:\n    release.wait(30)\n    return 1\n"
    )
    with pytest.raises(RunTimeoutError):
        await project.run("flow", {"release": release}, adapters=[FutureAdapter()], timeout=0.1)
    release.set()


@pytest.mark.parametrize(
    ("adapters", "config", "text"),
    [
        ([Inline], "run: {flow: {dev: {cache: true}}}", "beside a cache"),
        ([PlusOne], "run: {flow: {dev: {cache: true}}}", "beside a cache"),
        ([Inline], "run: {flow: {dev: {nodes: {a: {timeout: 1}}}}}", "node retry or timeout"),
    ],
)
async def test_what_adapters_cannot_have_beside_them(make_project, adapters, config, text):
    project = make_project(config, flow=FLOW)
    with pytest.raises(UsageError, match=f"cannot run with executor 'threadpool': .*{text}"):
        await project.run("flow", {"x": 1}, "c", adapters=[each() for each in adapters])


# Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "flow", "text"),
    [
        ("executor: hamilton", ITEMS, "a Parallelizable, which executor 'hamilton' has not"),
        ("executor: hamilton, cache: true", FLOW, "a cache, which executor 'hamilton' has not"),
        ("executor: ray, cache: true", FLOW, "a cache, which executor 'ray' has not"),
        ("executor: dask, cache: true", FLOW, "a cache, which executor 'dask' has not"),
    ],
)
async def test_check_refuses_in_the_same_words(make_project, config, flow, text):
    project = make_project(f"run: {{flow: {{dev: {{{config}}}}}}}", flow=flow)
    with pytest.raises(UsageError, match=text) as caught:
        await project.run("flow", {"x": 1})
    found = [
        problem for problem in check(project=project.root).problems if problem.level == "error"
    ]
    assert [(p.where, p.message) for p in found] == [("run.flow.dev", str(caught.value))]


# Hamilton's own adapters ---------------------------------------------------------------------


async def test_h4_opentelemetry_tracer(make_project, executor, caplog):
    pytest.importorskip("opentelemetry.sdk")
    from hamilton.plugins.h_opentelemetry import OpenTelemetryTracer
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    adapter = OpenTelemetryTracer(tracer=provider.get_tracer("test"))
    project = make_project(flow=FLOW)
    await project.run("flow", {"x": 1}, "c", executor=executor, adapters=[adapter])
    spans = {span.name: span for span in exporter.get_finished_spans()}
    root = next(span for span in spans.values() if span.parent is None)
    assert {spans[n].parent.span_id for n in "abc"} == {root.context.span_id}
    with pytest.raises(NodeError):
        await project.run("flow", {"x": 1}, "bad", executor=executor, adapters=[adapter])
    assert not [r for r in caplog.records if "detach" in r.getMessage()]


async def test_h7_logging_adapters_name_the_node(make_project, executor, caplog):
    from hamilton.plugins.h_logging import AsyncLoggingAdapter, LoggingAdapter

    for adapter in (LoggingAdapter("told"), AsyncLoggingAdapter("told")):
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "told"):
            await make_project(flow=FLOW).run(
                "flow", {"x": 1}, "c", executor=executor, adapters=[adapter]
            )
        lines = [r.getMessage() for r in caplog.records if r.name == "told"]
        for node in "abc":
            told = [line for line in lines if line.startswith(f"Node '{node}' - ")]
            assert len(told) == 2, lines


LINEAGE = """
    from pathlib import Path
    from hamilton.function_modifiers import dataloader, datasaver
    @dataloader()
    def loaded(path: str) -> tuple[str, dict]:
        found = Path(path).read_text()
        return found, {"file_metadata": {"path": path}}
    @datasaver()
    def saved(loaded: str, path: str) -> dict:
        Path(path + ".out").write_text(loaded * 2)
        return {"file_metadata": {"path": path + ".out"}}
    def bad(loaded: str) -> int:
        raise ValueError("no number in it")
"""


async def test_openlineage_adapter(make_project, executor, tmp_path):
    pytest.importorskip("openlineage.client")
    from hamilton.plugins.h_openlineage import OpenLineageAdapter
    from openlineage.client import OpenLineageClient
    from openlineage.client.transport.file import FileConfig, FileTransport

    told, data = tmp_path / "told.json", tmp_path / "data.txt"
    data.write_text("12")
    client = OpenLineageClient(transport=FileTransport(FileConfig(str(told), append=True)))
    adapter = OpenLineageAdapter(client, "plant", "report")
    project = make_project(flow=LINEAGE)
    run = partial(project.run, "flow", {"path": str(data)}, executor=executor, adapters=[adapter])
    await run("saved")
    with pytest.raises(NodeError, match="no number in it"):
        await run("bad")
    events = [json.loads(line) for line in told.read_text().splitlines()]
    first, second = (list(each) for _, each in groupby(events, lambda e: e["run"]["runId"]))
    assert [each["eventType"] for each in first] == ["START", "RUNNING", "RUNNING", "COMPLETE"]
    assert first[1]["inputs"][0]["facets"]["dataSource"]["uri"] == str(data)
    assert first[2]["outputs"][0]["name"] == f"{data}.out"
    assert [each["eventType"] for each in second] == ["START", "RUNNING", "FAIL"]
    assert second[-1]["run"]["facets"]["errorMessage"]["message"] == "no number in it"


def small(tmp_path: Any) -> dict[str, Any]:
    """Hamilton's other adapters, as far as they are installed."""
    found: dict[str, Any] = {
        "PrintLn": lambda: default.PrintLn(print_fn=lambda _: None),
        "FunctionInputOutputTypeChecker": default.FunctionInputOutputTypeChecker,
        "SlowDownYouMoveTooFast": lambda: default.SlowDownYouMoveTooFast(0.0, 0.0),
        "CacheAdapter": lambda: default.CacheAdapter(cache_path=str(tmp_path / "kept")),
    }
    for key, module, kind, needs in (
        ("DiskCacheAdapter", "h_diskcache", "DiskCacheAdapter", "diskcache"),
        ("ProgressBar", "h_tqdm", "ProgressBar", "tqdm"),
        ("RichProgressBar", "h_rich", "RichProgressBar", "rich"),
        ("SchemaValidator", "h_schema", "SchemaValidator", "pyarrow"),
        ("NarwhalsAdapter", "h_narwhals", "NarwhalsAdapter", "narwhals"),
        ("DDOGTracer", "h_ddog", "DDOGTracer", "ddtrace"),
    ):
        if find_spec(needs) is not None:
            found[key] = (module, kind)
    return found


@pytest.mark.parametrize(
    "kind",
    [
        "PrintLn",
        "FunctionInputOutputTypeChecker",
        "SlowDownYouMoveTooFast",
        "CacheAdapter",
        "DiskCacheAdapter",
        "ProgressBar",
        "RichProgressBar",
        "SchemaValidator",
        "NarwhalsAdapter",
        "DDOGTracer",
    ],
)
async def test_hamiltons_other_adapters(make_project, executor, kind, tmp_path, monkeypatch):
    import importlib

    monkeypatch.chdir(tmp_path)
    found = small(tmp_path).get(kind)
    if found is None:
        pytest.skip("not installed")
    if isinstance(found, tuple):
        try:
            module = importlib.import_module(f"hamilton.plugins.{found[0]}")
        except ImportError as error:  # it wants another release of its library
            pytest.skip(str(error))
        options: dict[str, Any] = {
            "ProgressBar": {"desc": "run"},
            "DDOGTracer": {"root_name": "run"},
            "SchemaValidator": {"schema_dir": str(tmp_path / "schemas")},
        }.get(kind, {})
        adapter = getattr(module, found[1])(**options)
    else:
        adapter = found()
    project = make_project(flow=FLOW)
    executes = isinstance(adapter, lb.BaseDoNodeExecute)
    for _ in range(2):
        run = project.run("flow", {"x": 1}, "c", executor=executor, adapters=[adapter])
        if executes and name(executor) in ELSEWHERE:
            with pytest.raises(UsageError, match="do_node_execute"):
                await run
            return
        assert await run == {"c": 6}


async def test_h3_ray_graph_adapter(make_project):
    """In processes of Ray's, which import the pipeline by what travels with its nodes."""
    if find_spec("ray") is None:
        services.missing("fp-async[ray] is not installed")
    import ray
    from hamilton.plugins.h_ray import RayGraphAdapter

    engines.shutdown()
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100_000_000)
    try:
        project = make_project(flow=FLOW)
        adapters = [RayGraphAdapter(base.DictResult())]
        assert await project.run("flow", {"x": 1}, ["c", "b"], adapters=adapters) == {
            "c": 6,
            "b": 4,
        }
        with pytest.raises(NodeError, match="node 'bad'.*ZeroDivisionError") as caught:
            await project.run("flow", {"x": 1}, "after", adapters=adapters)
        assert "pipelines/flow.py" in caught.value.line
    finally:
        ray.shutdown()


@pytest.mark.parametrize("processes", [False, True])
async def test_h3_dask_graph_adapter(make_project, processes):
    if find_spec("distributed") is None:
        services.missing("fp-async[dask] is not installed")
    from distributed import Client, LocalCluster
    from hamilton.plugins.h_dask import DaskGraphAdapter

    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(processes=processes, **options) as cluster, Client(cluster) as client:
        project = make_project(flow=FLOW)
        adapters = [DaskGraphAdapter(client, base.DictResult())]
        assert await project.run("flow", {"x": 1}, ["c", "b"], adapters=adapters) == {
            "c": 6,
            "b": 4,
        }
        with pytest.raises(NodeError, match="node 'bad'.*ZeroDivisionError"):
            await project.run("flow", {"x": 1}, "after", adapters=adapters)
