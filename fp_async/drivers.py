"""What Hamilton's own drivers execute: the oracle, and what only they can do.

`AsyncDriver` is `executor: hamilton`. The sync graph executors carry `Parallelizable` and
`Collect`, caching, and adapters that execute nodes elsewhere; they run in a thread of their
own, coroutine functions included (awaited on the caller's loop), and without Hamilton's busy
loop: its polling calls block until something has happened.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import sys
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

from hamilton import async_driver
from hamilton.driver import DefaultGraphExecutor, TaskBasedGraphExecutor
from hamilton.execution.executors import (
    DefaultExecutionManager,
    SynchronousLocalTaskExecutor,
    TaskExecutor,
    TaskFuture,
    TaskFutureWrappingPythonFuture,
    base_execute_task,
)
from hamilton.execution.grouping import GroupByRepeatableBlocks
from hamilton.execution.state import TaskState
from hamilton.lifecycle.base import (
    BasePostNodeExecute,
    BasePostNodeExecuteAsync,
    BasePreNodeExecute,
)
from hamilton.node import NodeType

from fp_async.awaitables import awaitable
from fp_async.bridge import Bridge, StopError, Tell, Teller, is_hamiltons, watched
from fp_async.dag import Graph
from fp_async.errors import FlowerPowerError, GraphError, UsageError, describe
from fp_async.hooks import RunHooks, guard
from fp_async.node_events import NodeObserver
from fp_async.threads import Threads, in_thread

Fail = Callable[[str, dict[str, Any], BaseException], Exception]

# Hamilton's loop occupies a thread for a whole run; taken from the nodes' threads it could
# starve the tasks that it waits for.
_controllers = Threads(limit=1000)


class _Memory:
    """Remembers which node failed first, with which inputs.

    `ours` says of an error whether a node or one of the user's hooks raised it.
    """

    def __init__(self, ours: Callable[[BaseException], bool] = lambda _: True) -> None:
        self.failed: tuple[str, dict[str, Any], BaseException] | None = None
        self._ours = ours

    def remember(self, told: Mapping[str, Any]) -> None:
        if told["error"] is None or self.failed is not None or not self._ours(told["error"]):
            return
        self.remember_hook(told)

    def remember_hook(self, told: Mapping[str, Any]) -> None:
        error: BaseException = told["error"]
        if isinstance(error, StopError):
            error = error.carried
        self.failed = self.failed or (told["node_"].name, dict(told["kwargs"]), error)


class Witness(_Memory, BasePostNodeExecute):
    """The memory as a hook of the sync executors."""

    def post_node_execute(self, **told: Any) -> None:
        self.remember(told)


class AsyncWitness(_Memory, BasePostNodeExecuteAsync):
    """The memory as a hook of the AsyncDriver."""

    async def post_node_execute(self, **told: Any) -> None:
        self.remember(told)


class _Teller(BasePreNodeExecute, BasePostNodeExecute):
    """Tells the progress callback what the sync executors do; a value from the cache counts."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller
        self._since: dict[tuple[str, str | None], float] = {}

    def pre_node_execute(self, **told: Any) -> None:
        name = told["node_"].name
        self._since[name, told["task_id"]] = self._teller.started(name)

    def post_node_execute(self, **told: Any) -> None:
        name = told["node_"].name
        since = self._since.pop((name, told["task_id"]))
        self._teller.ended(name, since, told["result"], told["error"])


# Hamilton's AsyncDriver ---------------------------------------------------------------------


async def run_async_driver(
    graph: Graph,
    final_vars: Sequence[str],
    inputs: Mapping[str, Any],
    overrides: Mapping[str, Any],
    fail: Fail,
    tell: Tell | None = None,
    observer: NodeObserver | None = None,
) -> Any:
    """Run through Hamilton's `AsyncDriver`: sync functions block the loop, as they do there.

    It calls the adapters' hooks; that they were initialised is up to the caller.
    """
    if graph.materializers:
        raise UsageError("executor 'hamilton' cannot materialize; use another executor")
    witness = AsyncWitness()
    builder = async_driver.Builder().with_modules(*graph.modules).with_config(graph.config)
    if graph.allow_overrides:
        builder = builder.allow_module_overrides()
    driver = builder.with_adapters(*graph.adapters, witness).build_without_init()
    teller = Teller(tell, observer) if tell or observer else None
    for node in driver.graph.nodes.values():
        if not node.user_defined:
            node._callable = watched(node.name, node.callable, teller)
    inner = [a.adapter for a in driver.adapter.adapters if hasattr(a, "adapter")]
    for adapters in (driver.adapter, *inner):
        guard(adapters, graph.adapters, witness.remember_hook)
    try:
        results = await driver.raw_execute(
            list(final_vars), overrides=dict(overrides), inputs=dict(inputs)
        )
    except Exception:
        if witness.failed is None:
            raise
        failure = fail(*witness.failed)
        raise failure from failure.__cause__
    hooks = graph.hooks()
    outputs = {name: results[name] for name in final_vars}
    return hooks.result(outputs) if hooks else outputs


# Hamilton's sync executors ------------------------------------------------------------------


class BlockingGraph:
    """A second build of a graph, for Hamilton's sync executors, which change its nodes."""

    def __init__(self, graph: Graph, cache: bool | str | None = None) -> None:
        builder = graph.builder()
        if cache:
            builder = (
                builder.with_cache(path=cache) if isinstance(cache, str) else (builder.with_cache())
            )
        built = builder.build()
        self.flow = graph.flow
        self.cache = cache
        self.dynamic = graph.dynamic(graph.nodes)
        self._users = graph.adapters
        self._function_graph = built.graph
        self._adapters = built.adapter
        for node in built.graph.nodes.values():
            if not node.user_defined:
                call = node.callable
                if node.node_role is NodeType.EXPAND:
                    call = partial(_listed, call)
                node._callable = partial(_call_and_wait, node.name, call)

    def for_run(self, *watching: Any, remember_hook: Callable[[Any], None]) -> Any:
        """A view of the graph with these adapters too; Hamilton knows adapters by graph only."""
        adapters = type(self._adapters)(*self._adapters.adapters, *watching)
        guard(adapters, self._users, remember_hook)
        graph = self._function_graph
        return type(graph)(graph.nodes, graph.config, adapters)


class BlockingRun:
    """One run through Hamilton's sync executors; `running` names the sync nodes in threads."""

    def __init__(
        self,
        graph: BlockingGraph,
        fail: Fail,
        threads: Threads | None,
        progress: Tell | None,
        observer: NodeObserver | None = None,
    ) -> None:
        self._graph = graph
        self._fail = fail
        self._bridge = Bridge(asyncio.get_running_loop(), progress)
        # The cache executes the nodes, so what it raises itself looks like a node's error.
        self._witness = Witness(self._bridge.raised) if graph.cache else Witness()
        teller = Teller(self._bridge.tell if progress else None, observer)
        watching = (self._witness, *([_Teller(teller)] if progress or observer else ()))
        self._view = graph.for_run(*watching, remember_hook=self._witness.remember_hook)
        self._executor = self._chosen(threads)

    @property
    def running(self) -> tuple[str, ...]:
        """The nodes whose code occupies a thread now."""
        return self._bridge.running

    async def run(
        self, final_vars: Sequence[str], inputs: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> Any:
        """Run in a thread of its own.

        An error, cancelling too, leaves when the coroutine functions have been cancelled and
        have ended; sync nodes are abandoned, nothing more is started.
        """
        hooks = RunHooks(self._view.adapter, self._view, _new_id())

        def work() -> Any:
            _bridge.set(self._bridge)
            return self._execute(hooks, final_vars, inputs, overrides)

        try:
            return await in_thread(_controllers, work)
        finally:
            await self._bridge.stop()

    def _execute(
        self,
        hooks: RunHooks,
        final_vars: Sequence[str],
        inputs: Mapping[str, Any],
        overrides: Mapping[str, Any],
    ) -> Any:
        hooks.started(final_vars, inputs, overrides)
        results, failure = None, None
        try:
            results = self._executor.execute(
                self._view, list(final_vars), dict(overrides), dict(inputs), hooks.run_id
            )
        except BaseException as error:
            failure = error
            if not isinstance(error, Exception):
                raise
            meaning = self._meaning(error)
            raise meaning from meaning.__cause__
        finally:
            hooks.ended(results, failure)
        return hooks.result(results)

    def _meaning(self, error: Exception) -> BaseException:
        """What to raise for an error of the executor: the node's, or what happened around it."""
        flow = f"pipeline '{self._graph.flow}'"
        if isinstance(error, RecursionError) and is_hamiltons(error):
            limit = sys.getrecursionlimit()
            return GraphError(
                f"{flow} is too deep for Hamilton's own driver, which Parallelizable, cache and "
                f"remote adapters need: it recurses along a chain of nodes, and Python's limit is "
                f"{limit} calls; run it without them, split the pipeline, or raise the limit with "
                "sys.setrecursionlimit()"
            )
        if self._witness.failed:
            return self._fail(*self._witness.failed)
        if isinstance(error, FlowerPowerError | concurrent.futures.CancelledError):
            return error
        text = f"Hamilton's driver failed in {flow}: {describe(error)}"
        if self._graph.cache:
            folder = self._graph.cache if isinstance(self._graph.cache, str) else ".hamilton_cache"
            text = (
                f"the cache of {flow} failed: {describe(error)}; if '{folder}' is damaged or holds "
                "values of classes that are gone, delete it"
            )
        failure = FlowerPowerError(text)
        failure.__cause__ = error
        return failure

    def _chosen(self, threads: Threads | None) -> Any:
        """Fan-out runs in `threads`, or one after the other where that is None."""
        adapters = self._view.adapter
        if not self._graph.dynamic:
            return DefaultGraphExecutor(adapters)
        local = SynchronousLocalTaskExecutor()
        remote = (
            _WaitingExecutor(threads, self._bridge) if threads else SynchronousLocalTaskExecutor()
        )
        manager = DefaultExecutionManager(local_executor=local, remote_executor=remote)
        return TaskBasedGraphExecutor(manager, GroupByRepeatableBlocks(), adapters)


def _new_id() -> str:
    import uuid

    return str(uuid.uuid4())


_bridge: ContextVar[Bridge] = ContextVar("fp_async_bridge")


def _listed(call: Callable[..., Any], **kwargs: Any) -> Any:
    """A generator's items now: they belong to its node, and Hamilton would only ask later."""
    value = call(**kwargs)
    return value if awaitable(value) else list(value)


def _call_and_wait(name: str, call: Callable[..., Any], /, **kwargs: Any) -> Any:
    bridge = _bridge.get()
    bridge.check()
    try:
        with bridge.occupied(name):
            value = call(**kwargs)
        return bridge.wait(value) if awaitable(value) else value
    except Exception as error:
        bridge.note(error)
        raise
    except BaseException as error:  # Hamilton only tells hooks of an Exception
        stop = StopError(error)
        bridge.note(stop)
        raise stop from error


class _WaitingExecutor(TaskExecutor):
    """Runs Hamilton's tasks in our threads; its polling questions wait for an answer.

    Hamilton's loop asks "can I submit?" and "is it done?" as fast as it can. The first waits
    for a free place. The second waits when it is asked again with nothing new in between.
    """

    def __init__(self, threads: Threads, bridge: Bridge) -> None:
        self._threads = threads
        self._bridge = bridge
        self._active: set[concurrent.futures.Future[Any]] = set()
        self._asked: set[concurrent.futures.Future[Any]] = set()

    def init(self) -> None:
        self._active.clear()

    def finalize(self) -> None:
        self._asked.clear()

    def can_submit_task(self) -> bool:
        if len(self._active) >= self._threads.limit:
            self._wait()
        return True

    def submit_task(self, task: Any) -> TaskFuture:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                self._bridge.check()
                future.set_result(context.run(base_execute_task, task))
            except BaseException as error:
                future.set_exception(error)

        self._active.add(future)
        self._asked.clear()
        self._threads.submit(work)
        return _WaitingFuture(future, self)

    def polled(self, future: concurrent.futures.Future[Any]) -> None:
        self._bridge.check()
        if future in self._asked and not future.done():
            self._wait()
        self._asked.add(future)

    def _wait(self) -> None:
        _, self._active = concurrent.futures.wait(
            self._active, return_when=concurrent.futures.FIRST_COMPLETED
        )
        self._asked.clear()


class _WaitingFuture(TaskFutureWrappingPythonFuture):
    def __init__(self, future: concurrent.futures.Future[Any], owner: _WaitingExecutor) -> None:
        super().__init__(future)
        self._owner = owner

    def get_state(self) -> TaskState:
        self._owner.polled(self.future)
        state: TaskState = super().get_state()
        return state
