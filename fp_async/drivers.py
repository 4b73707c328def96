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
import threading
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
from hamilton.lifecycle.base import BasePostNodeExecute, BasePostNodeExecuteAsync

from fp_async.dag import Graph
from fp_async.errors import UsageError
from fp_async.hooks import RunHooks
from fp_async.nodes import awaitable
from fp_async.threads import Threads, in_thread

Fail = Callable[[str, dict[str, Any], BaseException], Exception]

# Hamilton's loop occupies a thread for a whole run; taken from the nodes' threads it could
# starve the tasks that it waits for.
_controllers = Threads(limit=1000)


class _Memory:
    """Remembers which node failed first, with which inputs."""

    failed: tuple[str, dict[str, Any], BaseException] | None = None

    def remember(self, told: Mapping[str, Any]) -> None:
        if told["error"] is not None and self.failed is None:
            error: BaseException = told["error"]
            if isinstance(error, StopError):
                error = error.carried
            self.failed = (told["node_"].name, dict(told["kwargs"]), error)


class Witness(_Memory, BasePostNodeExecute):
    """The memory as a hook of the sync executors."""

    def post_node_execute(self, **told: Any) -> None:
        self.remember(told)


class AsyncWitness(_Memory, BasePostNodeExecuteAsync):
    """The memory as a hook of the AsyncDriver."""

    async def post_node_execute(self, **told: Any) -> None:
        self.remember(told)


def _error(witness: _Memory, error: BaseException, fail: Fail) -> BaseException:
    """A NodeError where a node raised `error`, else the error itself."""
    return fail(*witness.failed) if witness.failed else error


async def run_async_driver(
    graph: Graph,
    final_vars: Sequence[str],
    inputs: Mapping[str, Any],
    overrides: Mapping[str, Any],
    fail: Fail,
) -> dict[str, Any]:
    """Run through Hamilton's `AsyncDriver`: sync functions block the loop, as they do there."""
    if graph.materializers:
        raise UsageError("executor 'hamilton' cannot materialize; use another executor")
    witness = AsyncWitness()
    builder = async_driver.Builder().with_modules(*graph.modules).with_config(graph.config)
    if graph.allow_overrides:
        builder = builder.allow_module_overrides()
    driver = await builder.with_adapters(*graph.adapters, witness).build()
    for node in driver.graph.nodes.values():
        if not node.user_defined:
            node._callable = _told(node.callable)
    try:
        result: dict[str, Any] = await driver.execute(
            list(final_vars), overrides=dict(overrides), inputs=dict(inputs)
        )
    except Exception as error:
        raise _error(witness, error, fail) from error.__cause__
    return result


class StopError(Exception):
    """Carries past Hamilton what a node raised that is no Exception: it only handles those."""

    def __init__(self, carried: BaseException) -> None:
        super().__init__(repr(carried))
        self.carried = carried


def _told(call: Callable[..., Any]) -> Callable[..., Any]:
    """A node for the AsyncDriver: what it hides is awaited, what it raises is told."""

    async def told(**kwargs: Any) -> Any:
        try:
            value = call(**kwargs)
            return await value if awaitable(value) else value
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, Exception | KeyboardInterrupt | GeneratorExit):
                raise
            if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                raise
            raise StopError(error) from error

    return told


class BlockingGraph:
    """A second build of a graph, for Hamilton's sync executors, which change its nodes."""

    def __init__(self, graph: Graph, cache: bool | str | None = None) -> None:
        self.witness: ContextVar[Witness] = ContextVar("fp_async_witness")
        builder = graph.builder()
        if cache:
            builder = (
                builder.with_cache(path=cache) if isinstance(cache, str) else (builder.with_cache())
            )
        built = builder.build()
        self._dynamic = graph.dynamic(graph.nodes)
        self.function_graph = built.graph
        self._adapters = built.adapter
        for node in self.function_graph.nodes.values():
            if not node.user_defined:
                node._callable = partial(_call_and_wait, node.callable)

    async def run(
        self,
        final_vars: Sequence[str],
        inputs: Mapping[str, Any],
        overrides: Mapping[str, Any],
        fail: Fail,
        threads: Threads | None,
    ) -> Any:
        """Run in a thread; fan-out in `threads`, or one after the other where that is None.

        Cancelling returns at once: what runs is abandoned, nothing more is started.
        """
        witness = Witness()
        adapters = type(self._adapters)(*self._adapters.adapters, witness)
        hooks = RunHooks(adapters, self.function_graph, _new_id())
        bridge = _Bridge(asyncio.get_running_loop())
        executor = self._executor(adapters, bridge, threads)

        def work() -> Any:
            _bridge.set(bridge)
            return _execute(hooks, executor, self.function_graph, final_vars, inputs, overrides)

        try:
            return await in_thread(_controllers, work)
        except Exception as error:
            raise _error(witness, error, fail) from error.__cause__
        finally:
            bridge.stop()

    def _executor(self, adapters: Any, bridge: _Bridge, threads: Threads | None) -> Any:
        if not self._dynamic:
            return DefaultGraphExecutor(adapters)
        local = SynchronousLocalTaskExecutor()
        remote = _WaitingExecutor(threads, bridge) if threads else SynchronousLocalTaskExecutor()
        manager = DefaultExecutionManager(local_executor=local, remote_executor=remote)
        return TaskBasedGraphExecutor(manager, GroupByRepeatableBlocks(), adapters)


def _new_id() -> str:
    import uuid

    return str(uuid.uuid4())


def _execute(
    hooks: RunHooks,
    executor: Any,
    function_graph: Any,
    final_vars: Sequence[str],
    inputs: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> Any:
    hooks.started(final_vars, inputs, overrides)
    results, failure = None, None
    try:
        results = executor.execute(
            function_graph, list(final_vars), dict(overrides), dict(inputs), hooks.run_id
        )
    except BaseException as error:
        failure = error
        raise
    finally:
        hooks.ended(results, failure)
    return hooks.result(results)


class _Bridge:
    """Lets Hamilton's threads await on the caller's loop, until the run is over."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: set[concurrent.futures.Future[Any]] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def wait(self, value: Any) -> Any:
        with self._lock:
            self.check()
            future = asyncio.run_coroutine_threadsafe(_await(value), self._loop)
            self._waiting.add(future)
        try:
            return future.result()
        finally:
            with self._lock:
                self._waiting.discard(future)

    def check(self) -> None:
        if self.stopped:
            raise concurrent.futures.CancelledError

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            for future in self._waiting:
                future.cancel()


_bridge: ContextVar[_Bridge] = ContextVar("fp_async_bridge")


async def _await(value: Any) -> Any:
    return await value


def _call_and_wait(call: Callable[..., Any], /, **kwargs: Any) -> Any:
    _bridge.get().check()
    try:
        value = call(**kwargs)
        return _bridge.get().wait(value) if awaitable(value) else value
    except (Exception, concurrent.futures.CancelledError):
        raise
    except BaseException as error:  # Hamilton only tells hooks of an Exception
        raise StopError(error) from error


class _WaitingExecutor(TaskExecutor):
    """Runs Hamilton's tasks in our threads; its polling questions wait for an answer.

    Hamilton's loop asks "can I submit?" and "is it done?" as fast as it can. The first waits
    for a free place. The second waits when it is asked again with nothing new in between.
    """

    def __init__(self, threads: Threads, bridge: _Bridge) -> None:
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
