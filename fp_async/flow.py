"""A pipeline that is ready to run: its settings, its modules, its DAG."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
import pickle
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from fp_async import executors, frames, tracing
from fp_async.child import Children
from fp_async.config import ExecutorSettings, RunSettings, given
from fp_async.errors import (
    FileAccessError,
    InputError,
    NodeCrashedError,
    NodeError,
    NodeTimeoutError,
    RunTimeoutError,
    UnknownNameError,
    UsageError,
)
from fp_async.execution import Execution
from fp_async.node_events import NodeEvent, NodeObserver
from fp_async.nodes import AttemptTimeoutError, Hooks, Setup
from fp_async.params import entries_read
from fp_async.remote import GraphSpec, ProcessDiedError, RemoteTracebackError
from fp_async.threads import in_thread
from fp_async.typed import coerce

if TYPE_CHECKING:
    from fp_async.dag import Graph
    from fp_async.hooks import RunHooks
    from fp_async.modules import Namespace
    from fp_async.plan import Plan

log = logging.getLogger("fp_async")
Progress = Callable[[NodeEvent], None]
_HOOK_GRACE = 5.0  # seconds that hooks get to hear that a run was cancelled


class Request(msgspec.Struct, frozen=True):
    """What one run asks for, on top of the pipeline's settings."""

    inputs: Mapping[str, Any]
    final_vars: tuple[str, ...]
    overrides: Mapping[str, Any]
    executor: ExecutorSettings
    timeout: float | None
    progress: Progress | None
    observer: NodeObserver | None = None


class Flow:
    """One pipeline of a project, loaded for one environment, parameter set and configuration."""

    def __init__(
        self,
        name: str,
        folder: Path,
        settings: RunSettings,
        namespace: Namespace,
        graph: Graph,
        params: Mapping[str, Any],
        libraries: Collection[str],
    ) -> None:
        self.name = name
        self.folder = folder
        self.settings = settings
        self.namespace = namespace
        self.graph = graph
        self.params = params
        self._libraries = tuple(sorted(libraries))
        self.configured = self.coerced(given(settings.inputs))
        for node in settings.nodes or {}:
            if node not in graph.nodes:
                raise UnknownNameError("node", node, graph.nodes, where=f" in run.{name}.*.nodes")
        self.kept = False  # whether its project keeps it for other runs
        self._blocking: Any = None
        self._warned = False  # that the blocking graph runs in threads only
        self._child_spec: GraphSpec | None = None
        self._cluster_spec: GraphSpec | None = None

    @property
    def functions(self) -> list[str]:
        """What parameters may be for: the modules' functions, and what they ask `PARAMS` for."""
        modules = self.graph.modules
        names = [n for m in modules for n, f in vars(m).items() if inspect.isfunction(f)]
        return list(dict.fromkeys([*names, *entries_read(self.namespace.params)]))

    def coerced(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs as they come from text or YAML, with the types that the annotations say."""
        types = self.graph.inputs
        return {name: coerce(value, types.get(name, Any)) for name, value in inputs.items()}

    def plan(self, request: Request) -> Plan:
        """The plan of a run, after all that can be checked before it starts."""
        inputs = {**self.configured, **request.inputs}
        plan = self.graph.plan(
            request.final_vars, inputs, request.overrides, strict=tuple(request.inputs)
        )
        self.graph.check_types(inputs, plan.names[: plan.given])
        return plan

    async def run(self, request: Request, children: Children | None = None) -> Any:
        """Run once and return the final variables by name.

        Cancelling cancels the nodes on the loop and awaits them, kills child processes, and
        abandons sync nodes in threads, naming them in the log. Raises InputError and
        UnknownNameError before anything has started, then NodeError and RunTimeoutError.
        """
        with self.graph.quietly():
            if tracing.active() is None:
                return await self._run(request, children)
            with tracing.run(self.name):
                return await self._run(request, children)

    async def _run(self, request: Request, children: Children | None) -> Any:
        plan = self.plan(request)
        hooks = self.graph.hooks()
        values = {**self.graph.config, **self.configured, **request.inputs, **request.overrides}
        if hooks is None:
            return await self._timed(plan, request, values, None, children)
        await self.graph.prepare()
        if self._driven(plan, request):  # Hamilton's drivers call the hooks themselves
            return await self._timed(plan, request, values, hooks, children)
        await self._tell_start(hooks, plan, request)
        try:
            outputs = await self._timed(plan, request, values, hooks, children)
        except BaseException as error:
            with anyio.move_on_after(_HOOK_GRACE, shield=True):
                await self._tell_end(hooks, request, None, error)
            raise
        await self._tell_end(hooks, request, outputs, None)
        return hooks.result(outputs)

    async def _timed(
        self,
        plan: Plan,
        request: Request,
        values: Mapping[str, Any],
        hooks: RunHooks | None,
        children: Children | None,
    ) -> Any:
        if request.executor.type in executors.CLUSTERS:
            return await self._run_clustered(plan, request, values, hooks)
        if self._driven(plan, request):
            return await self._run_driver(plan, request)
        execution = Execution(plan, values, self._setup(request, hooks, children), self._fail)
        return await self._limited(execution.run, request.timeout, lambda: execution.running)

    async def _limited(
        self,
        run: Callable[[], Any],
        timeout: float | None,
        running: Callable[[], tuple[str, ...]],
    ) -> Any:
        """Run within `timeout` seconds; whatever still runs in a thread afterwards is named."""
        try:
            if timeout is None:
                return await run()
            async with asyncio.timeout(timeout) as scope:
                return await run()
        except asyncio.CancelledError:
            if left := running():
                log.warning("run of '%s' was cancelled; abandoned in threads: %s", self.name, left)
            raise
        except TimeoutError as error:
            if not scope.expired():
                raise
            left = running()
            still = f"; abandoned in threads: {', '.join(left)}" if left else ""
            text = f"run of pipeline '{self.name}' took longer than its timeout of {timeout:g} s"
            raise RunTimeoutError(text + still, left) from error.__cause__

    # Executing ------------------------------------------------------------------------------

    def _needs_driver(self, plan: Plan) -> bool:
        graph = self.graph
        return bool(self.settings.cache) or graph.wants_driver() or graph.dynamic(plan.names)

    def _driven(self, plan: Plan, request: Request) -> bool:
        if request.executor.type in executors.CLUSTERS:
            return False
        return request.executor.type == "hamilton" or self._needs_driver(plan)

    def _setup(self, request: Request, hooks: RunHooks | None, children: Children | None) -> Setup:
        node_hooks = hooks.for_nodes() if hooks else None
        executor = request.executor
        threads = None
        if executor.type == "threadpool":
            threads = executors.threads(executor.max_workers)
        remote = None
        if executor.type == "processpool":
            if node_hooks and node_hooks.execute:
                raise UsageError(
                    "an adapter executes nodes itself (do_node_execute), which executor "
                    "'processpool' cannot honour; use 'threadpool' or 'local'"
                )
            if children is None:
                raise UsageError("executor 'processpool' needs the project's child processes")
            remote = partial(children.call, self._spec_for_children())
        policies, spans = self.settings.nodes or {}, tracing.spans()
        progress, observer = request.progress, request.observer
        return Setup(threads, remote, node_hooks, progress, policies, spans, observer)

    async def _run_driver(self, plan: Plan, request: Request) -> Any:
        """Through Hamilton's own drivers, with the inputs that the plan found to be needed."""
        from fp_async import drivers
        from fp_async.bridge import Bridge

        if (spans := tracing.spans()) is not None:
            request = msgspec.structs.replace(request, progress=spans.told(request.progress))
        known = {**self.configured, **request.inputs}
        inputs = {name: known[name] for name in plan.names[: plan.given] if name in known}
        finals = [name for name, _ in plan.finals]
        given = (finals, inputs, request.overrides)
        if not self._needs_driver(plan):
            bridge = Bridge(asyncio.get_running_loop(), request.progress)
            tell = bridge.deliver if request.progress else None
            run = partial(
                drivers.run_async_driver, self.graph, *given, self._fail, tell, request.observer
            )
            return await self._limited(run, request.timeout, lambda: ())
        if request.executor.type == "hamilton" or self._refuses_policies(plan):
            raise UsageError(
                f"pipeline '{self.name}' needs Hamilton's sync driver (Parallelizable, cache or a "
                "remote adapter), which has neither executor 'hamilton' nor node retry or timeout"
            )
        blocking = self._blocking_graph(request)
        local = request.executor.type == "local"
        threads = None if local else executors.threads(request.executor.max_workers)
        blocked = drivers.BlockingRun(
            blocking, self._fail, threads, request.progress, request.observer
        )
        return await self._limited(
            partial(blocked.run, *given), request.timeout, lambda: blocked.running
        )

    def _blocking_graph(self, request: Request) -> Any:
        from fp_async import drivers

        if self._blocking is None:
            try:
                self._blocking = drivers.BlockingGraph(self.graph, self.settings.cache)
            except OSError as error:
                raise FileAccessError(f"cannot use cache: {error}") from error
        if request.executor.type == "processpool" and not self._warned:
            self._warned = True
            log.warning(
                "pipeline '%s' needs Hamilton's sync driver (Parallelizable, cache or a remote "
                "adapter), which runs its nodes in threads of this process: executor "
                "'processpool' has no effect",
                self.name,
            )
        return self._blocking

    def _refuses_policies(self, plan: Plan) -> bool:
        return any(name in plan.names for name in self.settings.nodes or {})

    async def _run_clustered(
        self, plan: Plan, request: Request, values: Mapping[str, Any], hooks: RunHooks | None
    ) -> Any:
        from fp_async import clustered, engines

        if (spans := tracing.spans()) is not None:
            request = msgspec.structs.replace(request, progress=spans.told(request.progress))
        if request.observer is not None:
            progress = request.observer.before(request.progress)
            request = msgspec.structs.replace(request, progress=progress)
        node_hooks = hooks.for_nodes() if hooks else None
        self._refuse_on_cluster(plan, request, node_hooks)
        client = getattr(request.executor, "client", None)

        async def run() -> dict[str, Any]:
            async with engines.connected(request.executor, client) as engine:
                run = clustered.ClusterRun(
                    engine,
                    self._spec_for_cluster(),
                    plan,
                    self.graph.roles,
                    request.executor,
                    self.settings.nodes or {},
                    node_hooks,
                    request.progress,
                    self._failure,
                )
                return await run.run(values)

        return await self._limited(run, request.timeout, lambda: ())

    def _refuse_on_cluster(self, plan: Plan, request: Request, hooks: Hooks | None) -> None:
        reason = ""
        if self.settings.cache:
            reason = "cache is Hamilton's own, in this process"
        elif self.graph.wants_driver():
            reason = "an adapter executes nodes elsewhere by itself (do_remote_execute)"
        elif hooks and hooks.execute:
            reason = "an adapter executes nodes itself (do_node_execute)"
        elif hooks and self.graph.dynamic(plan.names):
            reason = "adapters with hooks around nodes cannot watch those of a Parallelizable"
        if reason:
            raise UsageError(
                f"pipeline '{self.name}' cannot run with executor '{request.executor.type}': "
                f"{reason}; use 'threadpool' or 'local'"
            )

    def _fail(self, node: str, kwargs: dict[str, Any], error: BaseException) -> NodeError:
        inputs = {name: type(value).__name__ for name, value in kwargs.items()}
        return self._failure(node, inputs, error)

    def _failure(self, node: str, inputs: dict[str, str], error: BaseException) -> NodeError:
        cause = error.__cause__
        line = cause.line if isinstance(cause, RemoteTracebackError) else ""
        kind = NodeError
        if isinstance(error, ProcessDiedError):
            kind = NodeCrashedError
        elif isinstance(error, AttemptTimeoutError):
            kind = NodeTimeoutError
        failure = kind(self.name, node, error, inputs, line or frames.user_line(error, self.folder))
        failure.__cause__ = frames.trim(error)
        return failure

    def _spec_for_cluster(self) -> GraphSpec:
        """As for child processes, and with the sources: a worker need not have the folder."""
        from fp_async.modules import sources

        if self._cluster_spec is None:
            spec, found = self._spec_for_children(), tuple(sources(self.folder).items())
            path = tuple(entry for entry in sys.path if entry)
            self._cluster_spec = dataclasses.replace(spec, sources=found, path=path)
        return self._cluster_spec

    def _spec_for_children(self) -> GraphSpec:
        if self._child_spec is None:
            graph = self.graph
            prefix = len(self.namespace.package) + 1
            try:
                config = pickle.dumps(graph.config)
                materializers = pickle.dumps(graph.materializers)
            except Exception as error:
                raise InputError(
                    f"config or materializers cannot be sent to a process: {error}"
                ) from error
            self._child_spec = GraphSpec(
                folder=self.folder,
                flow=self.name,
                package=self.namespace.package,
                modules=tuple(module.__name__[prefix:] for module in graph.modules),
                params=pickle.dumps(self.params),
                config=config,
                materializers=materializers,
                allow_overrides=graph.allow_overrides,
                libraries=self._libraries,
            )
        return self._child_spec

    # Hooks around the run -------------------------------------------------------------------

    async def _tell_start(self, hooks: RunHooks, plan: Plan, request: Request) -> None:
        told = ([name for name, _ in plan.finals], {**self.configured, **request.inputs})
        if hooks.has_sync("pre_graph_execute"):
            await self._aside(request, partial(hooks.started, *told, request.overrides))
        await hooks.started_async(*told, request.overrides)

    async def _tell_end(
        self, hooks: RunHooks, request: Request, outputs: Any, error: BaseException | None
    ) -> None:
        if hooks.has_sync("post_graph_execute"):
            await self._aside(request, partial(hooks.ended, outputs, error))
        await hooks.ended_async(outputs, error)

    async def _aside(self, request: Request, function: Callable[[], Any]) -> Any:
        if request.executor.type == "local":
            return function()
        return await in_thread(executors.threads(None), function)
