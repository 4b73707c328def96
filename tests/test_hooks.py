"""Hamilton's lifecycle adapters: called where its drivers call them, with real values."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from hamilton import base, driver, lifecycle
from hamilton.lifecycle import base as lifecycle_base

from fp_async import InputError, NodeError, Pipeline, UsageError
from fp_async.errors import GraphError

SOURCE = """
    def a(x: int) -> int:
        return x + 1
    async def b(a: int) -> int:
        return a * 2
    def c(a: int, b: int) -> int:
        return a + b
"""
SYNC_SOURCE = SOURCE.replace("async ", "")


class Recorder(
    lifecycle_base.BasePreGraphExecute,
    lifecycle_base.BasePreNodeExecute,
    lifecycle_base.BasePostNodeExecute,
    lifecycle_base.BasePostGraphExecute,
):
    """Everything that a sync adapter is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.errors: list[Any] = []

    def pre_graph_execute(self, *, run_id, graph, final_vars, inputs, overrides):
        self.told.append(("start", tuple(final_vars), dict(inputs or {}), dict(overrides or {})))

    def pre_node_execute(self, *, run_id, node_, kwargs, task_id=None):
        self.told.append(("before", node_.name, dict(kwargs)))

    def post_node_execute(self, *, run_id, node_, kwargs, success, error, result, task_id=None):
        self.errors.append(error)
        self.told.append(("after", node_.name, dict(kwargs), success, result))

    def post_graph_execute(self, *, run_id, graph, success, error, results):
        self.errors.append(error)
        self.told.append(("end", success, results))


class AsyncRecorder(
    lifecycle_base.BasePreGraphExecuteAsync,
    lifecycle_base.BasePreNodeExecuteAsync,
    lifecycle_base.BasePostNodeExecuteAsync,
    lifecycle_base.BasePostGraphExecuteAsync,
    lifecycle_base.BasePostGraphConstructAsync,
):
    """The same for an async adapter; counts its initialisations too."""

    def __init__(self) -> None:
        self.sync = Recorder()
        self.initialised = 0
        self.constructed = 0

    async def ainit(self):
        self.initialised += 1

    async def post_graph_construct(self, *, graph, modules, config):
        self.constructed += 1

    async def pre_graph_execute(self, **told):
        await asyncio.sleep(0)
        self.sync.pre_graph_execute(**told)

    async def pre_node_execute(self, **told):
        await asyncio.sleep(0)
        self.sync.pre_node_execute(**told)

    async def post_node_execute(self, **told):
        await asyncio.sleep(0)
        self.sync.post_node_execute(**told)

    async def post_graph_execute(self, **told):
        await asyncio.sleep(0)
        self.sync.post_graph_execute(**told)


EXECUTORS = pytest.mark.parametrize("executor", ["local", "threadpool", "processpool"])


@EXECUTORS
async def test_sync_hooks_hear_what_hamiltons_sync_driver_tells(make_project, executor):
    oracle, ours = Recorder(), Recorder()
    project = make_project(flow=SOURCE, twin=SYNC_SOURCE)
    module = project.flow("twin").graph.modules[0]
    built = driver.Builder().with_modules(module).with_adapters(oracle).build()
    expected = built.execute(["c"], inputs={"x": 1})
    assert await project.run("flow", {"x": 1}, executor=executor, adapters=[ours]) == expected
    assert ours.told == oracle.told


@EXECUTORS
async def test_async_hooks_hear_the_same(make_project, executor):
    recorder = AsyncRecorder()
    oracle = Recorder()
    project = make_project(flow=SOURCE)
    await project.run("flow", {"x": 1}, executor=executor, adapters=[oracle])
    pipeline = Pipeline("flow", project, adapters=[recorder])
    await pipeline.run({"x": 1}, executor=executor)
    await pipeline.run({"x": 1}, executor=executor)
    assert recorder.sync.told == oracle.told * 2
    assert (recorder.initialised, recorder.constructed) == (1, 1)


async def test_sync_hooks_run_in_the_thread_of_their_node(make_project):
    threads: dict[str, set[int]] = {}

    class Where(lifecycle_base.BasePreNodeExecute):
        def pre_node_execute(self, *, run_id, node_, kwargs, task_id=None):
            threads.setdefault(node_.name, set()).add(threading.get_ident())

    project = make_project(
        flow="""
        import threading
        def sync() -> int:
            return threading.get_ident()
        async def on_loop() -> int:
            return threading.get_ident()
        """
    )
    result = await project.run("flow", adapters=[Where()])
    assert threads == {name: {ident} for name, ident in result.items()}


@pytest.mark.parametrize("recorder", [Recorder, AsyncRecorder])
async def test_hooks_hear_of_failures(make_project, recorder):
    adapter = recorder()
    project = make_project(
        flow="def a() -> int:\n    raise ValueError('no')\ndef b(a: int) -> int:\n    return a\n"
    )
    with pytest.raises(NodeError):
        await project.run("flow", adapters=[adapter])
    heard = getattr(adapter, "sync", adapter)
    assert [entry[0] for entry in heard.told] == ["start", "before", "after", "end"]
    assert heard.errors[0] is heard.errors[1]
    assert isinstance(heard.errors[1], ValueError)


@pytest.mark.parametrize("recorder", [Recorder, AsyncRecorder])
async def test_hooks_hear_the_truth_about_cancelled_nodes(make_project, recorder):
    adapter = recorder()
    started = asyncio.Event()
    project = make_project(
        flow="""
        import asyncio
        async def waits(started: object) -> int:
            started.set()
            await asyncio.sleep(60)
            return 1
        """
    )
    task = asyncio.create_task(project.run("flow", {"started": started}, adapters=[adapter]))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    heard = getattr(adapter, "sync", adapter)
    assert heard.told[2][3] is False  # success of the node
    assert heard.told[3][1] is False  # success of the run
    assert all(isinstance(error, asyncio.CancelledError) for error in heard.errors)


async def test_result_builder_input_validator_and_node_executor_are_honoured(make_project):
    class Doubling(lifecycle_base.BaseDoNodeExecute):
        def do_node_execute(self, *, run_id, node_, kwargs, task_id=None) -> Any:
            return node_.callable(**kwargs) * 2

    class AnyInput(lifecycle_base.BaseDoValidateInput):
        def do_validate_input(self, *, node_type: type, input_value: Any) -> bool:
            return input_value != 13

    project = make_project(flow="def a(x: int) -> int:\n    return x\n")
    assert await project.run("flow", {"x": 2}, adapters=[Doubling()]) == {"a": 4}
    assert await project.run("flow", {"x": "ab"}, adapters=[AnyInput()]) == {"a": "ab"}
    with pytest.raises(InputError, match="x: expected int"):
        await project.run("flow", {"x": 13}, adapters=[AnyInput()])
    built = await project.run("flow", {"x": 2}, adapters=[base.PandasDataFrameResult()])
    assert list(built["a"]) == [2]
    with pytest.raises(UsageError, match="do_node_execute"):
        await project.run("flow", {"x": 2}, adapters=[Doubling()], executor="processpool")


async def test_an_async_node_executor_is_awaited(make_project):
    class Later(lifecycle_base.BaseDoNodeExecuteAsync):
        async def do_node_execute(self, *, run_id, node_, kwargs, task_id=None) -> Any:
            await asyncio.sleep(0)
            return ("later", node_.callable(**kwargs))

    project = make_project(flow="def a(x: int) -> int:\n    return x\n")
    assert await project.run("flow", {"x": 2}, adapters=[Later()]) == {"a": ("later", 2)}


async def test_validators_refuse_a_graph(make_project):
    class NoSecrets(lifecycle.NodeExecutionHook, lifecycle_base.BaseValidateNode):
        def run_before_node_execution(self, **told):
            pass

        def run_after_node_execution(self, **told):
            pass

        def validate_node(self, *, created_node) -> tuple[bool, str | None]:
            return "secret" not in created_node.name, "nodes must not be secret"

    project = make_project(flow="def secret() -> int:\n    return 1\n")
    with pytest.raises(GraphError, match="nodes must not be secret"):
        await project.run("flow", adapters=[NoSecrets()])


async def test_a_remote_execution_adapter_executes_the_nodes(make_project):
    executed = []

    class Remote(lifecycle_base.BaseDoRemoteExecute):
        def do_remote_execute(self, *, node, execute_lifecycle_for_node, **kwargs) -> Any:
            executed.append(node.name)
            return execute_lifecycle_for_node(**kwargs)

    recorder = Recorder()
    project = make_project(flow=SOURCE)
    result = await project.run("flow", {"x": 1}, adapters=[Remote(), recorder])
    assert result == {"c": 6}
    assert executed == ["a", "b", "c"]
    assert [entry[0] for entry in recorder.told].count("start") == 1


async def test_a_failing_hook_fails_the_run_and_names_its_node(make_project):
    class Broken(lifecycle_base.BasePostNodeExecute):
        def post_node_execute(self, **told):
            raise KeyError("hook")

    project = make_project(flow="def a() -> int:\n    return 1\n")
    with pytest.raises(NodeError, match=r"node 'a'.*KeyError"):
        await project.run("flow", adapters=[Broken()])
