"""A pipeline that is ready to run: its settings, its modules, its DAG."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import pickle
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping
from concurrent.futures import BrokenExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from fp_async import codec, copies, executors, frames, kept_open, tracing
from fp_async.child import Children
from fp_async.config import ExecutorSettings, RunSettings, given
from fp_async.copies import Current
from fp_async.errors import (
    ABANDONED,
    AdapterError,
    EncodingError,
    FlowerPowerError,
    InputError,
    MisconfiguredError,
    NodeCrashedError,
    NodeError,
    NodeTimeoutError,
    RunTimeoutError,
    UnknownEntryError,
    UsageError,
)
from fp_async.execution import Execution
from fp_async.kept_open import ClosingError, KeptOpen
from fp_async.node_events import NodeEvent, NodeObserver
from fp_async.nodes import AttemptTimeoutError, Setup
from fp_async.param_names import Known
from fp_async.param_types import portable
from fp_async.remote import GraphSpec, ProcessDiedError, RemoteTracebackError, failed_node
from fp_async.threads import in_thread
from fp_async.values import paths, secret
from fp_async.values.text import Text

if TYPE_CHECKING:
    from fp_async.cache import RunCache
    from fp_async.dag import Graph
    from fp_async.hooks import RunHooks
    from fp_async.modules import Namespace
    from fp_async.node_code import NodeCode
    from fp_async.plan import Plan

log: logging.Logger = logging.getLogger("fp_async")
Progress = Callable[[NodeEvent], None]
Run = Callable[[], Awaitable[dict[str, Any]]]
Running = Callable[[], tuple[str, ...]]
_TAKES_ALL = frozenset({"local", "threadpool", "processpool"})
_HERE = "use 'threadpool' or 'local'"
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
    cache: bool | str | None = None  # in place of the pipeline's setting


class _Running:
    """The block of one run; a class, as a generator would cost each run twice the time."""

    __slots__ = ("_current", "_token")

    def __init__(self, current: Current) -> None:
        self._current = current

    def __enter__(self) -> None:
        current = self._current
        self._token = copies.current.set(current)
        try:
            current.namespace.runs.begin(current.environment)
        except BaseException:
            copies.current.reset(self._token)
            raise

    def __exit__(self, *_: object) -> None:
        current = self._current
        current.namespace.runs.end(current.environment)
        copies.current.reset(self._token)


class Flow:
    """One pipeline of a project, loaded for one environment, parameter set and configuration."""

    def __init__(
        self,
        name: str,
        folder: Path,
        settings: RunSettings,
        namespace: Namespace,
        graph: Graph,
        known: Known,
        environment: str,
    ) -> None:
        self.name = name
        self.folder = folder
        self.settings = settings
        self.namespace = namespace
        self.graph = graph
        self.known = known
        self.environment = environment
        self._running = Current(namespace, environment)
        self._paths = {name for name, kind in graph.inputs.items() if paths.mentions(kind)}
        values = given(settings.inputs)
        configured, unfit = graph.converted(values)
        self.unfit: dict[str, str] = {
            name: _without_secret(name, values[name], why) for name, why in unfit.items()
        }
        self.configured: dict[str, Any] = self._located(configured)
        for node in settings.nodes or {}:
            if node not in graph.nodes:
                raise UnknownEntryError("node", node, graph.nodes, where=f" in run.{name}.*.nodes")
        self.kept = False  # whether its project keeps it for other runs
        self._second: Any = None  # for executor 'hamilton'
        self._child_spec: GraphSpec | None = None
        self._cluster_spec: GraphSpec | None = None
        self._code: NodeCode | None = None

    def converted(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs as the annotations want them. Raises InputError."""
        made, wrong = self.graph.converted(inputs)
        if wrong:
            raise self.graph.misfits(wrong.values())
        return made

    def stored(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs of a job as it keeps them: data as it was given, text as what it means, and still
        as text where that has no form that can be stored. What is a Secret by its annotation is
        kept as one. Raises InputError.
        """
        made = self.converted(inputs)
        return {
            name: made[name] if _is_stored_as_made(value, made[name]) else value
            for name, value in inputs.items()
        }

    def _located(self, inputs: Mapping[str, Any], *, everywhere: bool = False) -> dict[str, Any]:
        """Inputs with relative paths below the project, unless the process is in its folder."""
        if not self._paths or (self.namespace.library.settled and not everywhere):
            return dict(inputs)
        root = self.folder.parent
        return {
            name: paths.below(value, root) if name in self._paths else value
            for name, value in inputs.items()
        }

    def check_final_vars(self) -> None:
        """Raises UnknownEntryError for a configured final variable that the DAG does not have."""
        wanted = self.settings.final_vars or ()
        for name in (wanted,) if isinstance(wanted, str) else wanted:
            if name not in self.graph.nodes:
                where = f" in run.{self.name}.{self.environment}.final_vars"
                raise UnknownEntryError("final variable", name, self.graph.nodes, where=where)

    def plan(self, request: Request) -> Plan:
        """The plan of a run, after all that can be checked before it starts."""
        inputs = {**self.configured, **request.inputs}
        plan = self.graph.plan(
            request.final_vars, inputs, request.overrides, strict=tuple(request.inputs)
        )
        if self.unfit and (wrong := self._misfits(plan, request.inputs)):
            raise self.graph.misfits(wrong)
        return plan

    def check_configured(self, request: Request) -> None:
        """Raises MisconfiguredError for a configured input that a run needs and that does not fit.

        Where a run would say so as an InputError, a job can wait until the entry is right.
        """
        if self.unfit:
            inputs = {**self.configured, **request.inputs}
            plan = self.graph.plan(request.final_vars, inputs, request.overrides)
            if wrong := self._misfits(plan, request.inputs):
                where = f"conf/pipelines.yml: run.{self.name}.{self.environment}.inputs"
                raise MisconfiguredError(f"{where}: {'; '.join(wrong)}")

    def _misfits(self, plan: Plan, instead: Collection[str]) -> list[str]:
        """What is wrong with the configured inputs that a plan needs."""
        needed = plan.names[: plan.given]
        return [self.unfit[name] for name in needed if name in self.unfit.keys() - instead]

    async def run(self, request: Request, children: Children | None = None) -> Any:
        """Run once and return the final variables by name.

        Cancelling cancels the nodes on the loop and awaits them, kills child processes, and
        abandons sync nodes in threads, naming them in the log. Raises InputError and
        UnknownNameError before anything has started, then NodeError and RunTimeoutError.
        """
        with self.graph.quietly(), self.running():
            if tracing.active() is None:
                return await self._run_and_close(request, children)
            with tracing.run(self.name):
                return await self._run_and_close(request, children)

    async def _run_and_close(self, request: Request, children: Children | None) -> Any:
        """Run, and close afterwards what nodes keep open."""
        kept = KeptOpen()
        token = kept_open.current.set(kept)
        try:
            result = await self._run(request, children)
        except BaseException as error:
            await kept.close(error, partial(self._left, request))
            raise
        finally:
            kept_open.current.reset(token)
        if kept.end():
            try:
                await kept.close(None, partial(self._left, request))
            except ClosingError as error:
                raise self._fail(error.by, {}, error.cause)  # noqa: B904 - its cause is set
        return result

    async def _left(self, request: Request, leave: Callable[[], Any]) -> None:
        if self._is_inline(request):
            leave()
        else:
            await in_thread(executors.threads(None), leave)

    def running(self) -> _Running:
        """In this block, and in what is begun in it, modules are those of this pipeline."""
        return _Running(self._running)

    async def _run(self, request: Request, children: Children | None) -> Any:
        if self._paths:
            distant = request.executor.type in executors.CLUSTERS
            configured = {n: v for n, v in self.configured.items() if distant and n in self._paths}
            located = self._located({**configured, **request.inputs}, everywhere=distant)
            request = msgspec.structs.replace(request, inputs=located)
        plan = self.plan(request)
        if refusal := self.refusal(plan, request):
            raise UsageError(refusal)
        hooks = self.graph.hooks(self._spec_for_cluster, plan)
        values = {**self.graph.config, **self.configured, **request.inputs, **request.overrides}
        if hooks is None:
            return await self._timed(plan, request, values, None, children)
        await self.graph.prepare()
        return await self._hooked(plan, request, values, hooks, children)

    async def _hooked(
        self,
        plan: Plan,
        request: Request,
        values: Mapping[str, Any],
        hooks: RunHooks,
        children: Children | None,
    ) -> Any:
        """Run with the hooks of adapters around it, all of it in one context."""
        failure: BaseException | None = None
        try:
            await self._tell_start(hooks, plan, request)
            try:
                run = self._timed(plan, request, values, hooks, children)
                result = await hooks.scope.awaited(run)
            except BaseException as error:
                with anyio.move_on_after(_HOOK_GRACE, shield=True):
                    await self._tell_error(hooks, request, error)
                raise
            await self._tell_end(hooks, request, result, None)
        except BaseException as error:
            failure = error
            raise
        finally:
            await hooks.close(failure)
        return result

    async def _timed(
        self,
        plan: Plan,
        request: Request,
        values: Mapping[str, Any],
        hooks: RunHooks | None,
        children: Children | None,
    ) -> Any:
        """Run within the timeout, and build the result."""
        run, running = self._prepared(plan, request, values, hooks, children)
        if hooks is None or not hooks.builds:
            return await self._limited(run, request.timeout, running)
        built = partial(self._built, run, request, hooks)
        return await self._limited(
            built, request.timeout, lambda: (*running(), *hooks.bridge.running)
        )

    async def _built(self, run: Run, request: Request, hooks: RunHooks) -> Any:
        outputs = await run()
        try:
            if self._is_inline(request):
                return hooks.result(outputs)
            return await self._aside(request, hooks, partial(hooks.result, outputs))
        except Exception as error:
            if isinstance(error, FlowerPowerError):
                raise
            raise self._fail("", {}, error)  # noqa: B904 - its cause is set, and trimmed

    def _prepared(
        self,
        plan: Plan,
        request: Request,
        values: Mapping[str, Any],
        hooks: RunHooks | None,
        children: Children | None,
    ) -> tuple[Run, Running]:
        """Return the function that runs the plan, and one that names the running nodes."""
        if request.executor.type in executors.CLUSTERS:
            return self._clustered(plan, request, values, hooks)
        setup = self._setup(request, hooks, children)
        if request.executor.type == "hamilton":
            return self._driven(plan, request, values, setup)
        cache = self._cache(request, values)
        if self._dynamic(plan):
            return self._fan_out(plan, request, values, setup, cache)
        if cache is not None:
            remote = setup.remote and cache.elsewhere(plan, setup.remote)
            setup = msgspec.structs.replace(setup, remote=remote, cached=cache.hit)
            plan = cache.plan(plan)
        execution = Execution(plan, values, setup, self._fail)
        return execution.run, lambda: execution.running

    def _fan_out(
        self,
        plan: Plan,
        request: Request,
        values: Mapping[str, Any],
        setup: Setup,
        cache: RunCache | None,
    ) -> tuple[Run, Running]:
        """Return the function that runs a plan with `Parallelizable` and `Collect` in it."""
        from fp_async import fan_out

        width = 1
        if setup.threads is not None:
            width = setup.threads.limit
        elif setup.remote is not None:
            width = request.executor.max_workers or os.cpu_count() or 1
        divided = fan_out.blocks(plan, self.graph.roles)
        run = fan_out.FanOut(divided, setup, self._fail, width, cache)
        return partial(run.run, values), lambda: run.running

    async def _limited(
        self,
        run: Callable[[], Any],
        timeout: float | None,
        running: Running,
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
            still = f"{ABANDONED}{', '.join(left)}" if left else ""
            text = f"run of pipeline '{self.name}' took longer than its timeout of {timeout:g} s"
            raise RunTimeoutError(text + still, left) from error.__cause__

    # Executing ------------------------------------------------------------------------------

    def _dynamic(self, plan: Plan) -> bool:
        return self.graph.dynamic(plan.names[plan.given :])

    def _setup(self, request: Request, hooks: RunHooks | None, children: Children | None) -> Setup:
        node_hooks = hooks.for_nodes() if hooks else None
        executor = request.executor
        threads = None
        if executor.type == "threadpool":
            threads = executors.threads(executor.max_workers)
        remote = None
        if executor.type == "processpool":
            if children is None:
                raise UsageError("executor 'processpool' needs the project's child processes")
            remote = partial(children.call, self._spec_for_children())
        return Setup(
            threads=threads,
            aside=executors.threads(None) if node_hooks else None,
            remote=remote,
            hooks=node_hooks,
            progress=request.progress,
            policies=self.settings.nodes or {},
            spans=tracing.spans(),
            observer=request.observer,
        )

    def _driven(
        self, plan: Plan, request: Request, values: Mapping[str, Any], setup: Setup
    ) -> tuple[Run, Running]:
        """Return the function that has Hamilton's AsyncDriver run the plan."""
        from fp_async import drivers

        if self._second is None:
            self._second = drivers.SecondOpinion(self.graph)
        run = drivers.DriverRun(self._second, plan, values, setup, self._fail, request.overrides)
        return run.run, lambda: ()

    def refusal(self, plan: Plan, request: Request) -> str:
        """Why the executor cannot run the plan with this around it; empty if it can."""
        if not self.graph.adapters and request.executor.type in _TAKES_ALL:
            return ""
        why = self._cannot(plan, request)
        if not why:
            return ""
        return (
            f"pipeline '{self.name}' cannot run with executor '{request.executor.type}': {why[0]}; "
            f"{why[1]}"
        )

    def _cannot(self, plan: Plan, request: Request) -> tuple[str, str] | None:
        """Return what the executor cannot do, and the way out."""
        executor = request.executor.type
        adapted = self.graph.adapted
        distant, hamilton = executor in executors.CLUSTERS, executor == "hamilton"
        away, without = distant or executor == "processpool", f"which executor '{executor}' has not"
        if self._cache_setting(request) and (distant or hamilton):
            return f"it has a cache, {without}", "run it without (--no-cache)"
        if hamilton and self._dynamic(plan):
            return f"it has a Parallelizable, {without}", _HERE
        if adapted.elsewhere and (away or hamilton):
            return f"an adapter executes nodes elsewhere (do_remote_execute), {without}", _HERE
        if adapted.executes and away:
            return f"an adapter executes nodes itself (do_node_execute), {without}", _HERE
        if distant and adapted.watches_nodes and self._dynamic(plan):
            return f"adapters have hooks around nodes of a Parallelizable, {without}", _HERE
        return self._cannot_beside(plan, request)

    def _cannot_beside(self, plan: Plan, request: Request) -> tuple[str, str] | None:
        """The same of adapters, with every executor."""
        adapted = self.graph.adapted
        if self._cache_setting(request) and (adapted.executes or adapted.elsewhere):
            what = "do_node_execute" if adapted.executes else "do_remote_execute"
            return f"an adapter executes nodes itself ({what}) beside a cache", (
                "use one of them (--no-cache)"
            )
        if adapted.elsewhere and any(name in plan.names for name in self.settings.nodes or {}):
            text = "node retry or timeout beside an adapter that executes nodes elsewhere"
            return f"{text} (do_remote_execute)", "use one of them"
        if adapted.elsewhere and adapted.watches_nodes_async:
            text = "async hooks around nodes that an adapter executes elsewhere"
            return f"{text} (do_remote_execute)", "use sync ones"
        return None

    # The cache ------------------------------------------------------------------------------

    def _cache_setting(self, request: Request) -> bool | str:
        asked = self.settings.cache if request.cache is None else request.cache
        return asked or False

    def _cache(self, request: Request, values: Mapping[str, Any]) -> RunCache | None:
        """The cache of a run that has one. Raises FileAccessError."""
        if not (setting := self._cache_setting(request)):
            return None
        from fp_async import cache

        folder = Path(cache.FOLDER if setting is True else setting).expanduser()
        store = cache.Store(self.folder.parent / folder)
        return cache.RunCache(store, self._node_code(), self.graph.cache_behaviors, values)

    def _node_code(self) -> NodeCode:
        from fp_async.node_code import NodeCode

        if self._code is None:
            namespace, graph = self.namespace, self.graph
            self._code = NodeCode(
                self.folder,
                graph.modules,
                namespace.params,
                graph.hamilton,
                lambda: not namespace.changed(),
            )
        return self._code

    def _clustered(
        self, plan: Plan, request: Request, values: Mapping[str, Any], hooks: RunHooks | None
    ) -> tuple[Run, Running]:
        from fp_async import clustered, engines

        if (spans := tracing.spans()) is not None:
            request = msgspec.structs.replace(request, progress=spans.told(request.progress))
        if request.observer is not None:
            progress = request.observer.before(request.progress)
            request = msgspec.structs.replace(request, progress=progress)
        node_hooks = hooks.for_nodes() if hooks else None
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

        return run, lambda: ()

    def _fail(
        self,
        node: str,
        kwargs: dict[str, Any],
        error: BaseException,
        item: tuple[int, int] | None = None,
    ) -> NodeError:
        inputs = {name: type(value).__name__ for name, value in kwargs.items()}
        if self.graph.adapted.defers and (failed := failed_node(error)):
            return self._failure(*failed, item=item)
        return self._failure(node, inputs, error, item=item)

    def _failure(
        self,
        node: str,
        inputs: dict[str, str],
        error: BaseException,
        line: str = "",
        item: tuple[int, int] | None = None,
    ) -> NodeError:
        cause = error.__cause__
        line = cause.line if isinstance(cause, RemoteTracebackError) else line
        kind = NodeError
        if isinstance(error, ProcessDiedError):
            kind = NodeCrashedError
        elif isinstance(error, AttemptTimeoutError):
            kind = NodeTimeoutError
        line = line or frames.user_line(error, self.folder)
        where = () if item is None else (f"item: {item[0]} of {item[1]}, counted from 0",)
        reason = "\n  ".join(filter(None, (*where, self._reason(error))))
        failure = kind(self.name, node, error, inputs, line, reason)
        failure.__cause__ = frames.trim(error)
        return failure

    def _reason(self, error: BaseException) -> str:
        """Why a pool of a node's own is broken, as far as that is about our modules: the library
        that runs the pool says only that a process has ended or could not read its task.
        """
        if not isinstance(error, BrokenExecutor):
            return ""
        return copies.told(error) or self.namespace.runs.doubt(self.environment)

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
            try:
                config = copies.dumps(graph.config)
                materializers = copies.dumps(graph.materializers)
            except Exception as error:
                raise InputError(
                    f"config or materializers cannot be sent to a process: {error}"
                ) from error
            self._child_spec = GraphSpec(
                folder=self.folder,
                flow=self.name,
                environment=self.environment,
                modules=tuple(copies.plainly(module.__name__) for module in graph.modules),
                params=pickle.dumps(portable(self.namespace.params)),
                config=config,
                materializers=materializers,
                allow_overrides=graph.allow_overrides,
                code=repr(sorted(self.namespace.files.items())),
            )
        return self._child_spec

    # Hooks around the run -------------------------------------------------------------------

    async def _tell_start(self, hooks: RunHooks, plan: Plan, request: Request) -> None:
        told = ([name for name, _ in plan.finals], {**self.configured, **request.inputs})
        if hooks.has_sync("pre_graph_execute"):
            started = partial(hooks.started, *told, request.overrides)
            await self._aside(request, hooks, started)
        if hooks.has_async("pre_graph_execute"):
            await hooks.scope.awaited(hooks.started_async(*told, request.overrides))

    async def _tell_end(
        self, hooks: RunHooks, request: Request, result: Any, error: BaseException | None
    ) -> None:
        if hooks.has_sync("post_graph_execute"):
            await self._aside(request, hooks, partial(hooks.ended, result, error))
        if hooks.has_async("post_graph_execute"):
            await hooks.scope.awaited(hooks.ended_async(result, error))

    async def _tell_error(self, hooks: RunHooks, request: Request, error: BaseException) -> None:
        """Tell of an error, which no error of a hook hides."""
        try:
            await self._tell_end(hooks, request, None, error)
        except AdapterError as failed:
            log.error("%s; the run had failed before", failed)  # noqa: TRY400 - the text says it

    async def _aside(self, request: Request, hooks: RunHooks, function: Callable[[], Any]) -> Any:
        """Call what is around the run in its context, which nobody is in now."""
        if self._is_inline(request):
            return hooks.scope.call(function)
        return await hooks.scope.in_thread(executors.threads(None), function)

    def _is_inline(self, request: Request) -> bool:
        return request.executor.type == "local" and not self.graph.adapted.defers


def _without_secret(name: str, value: Any, why: str) -> str:
    """Why an input does not fit, without its value where that came from a secret variable."""
    template = getattr(value, "template", None)
    if template is None or not template.secret:
        return why
    return f"{name}: the value of {template} is of the wrong type"


def _is_stored_as_made(given: Any, made: Any) -> bool:
    return secret.within(made) or (isinstance(given, Text) and _is_storable(made))


def _is_storable(value: Any) -> bool:
    try:
        codec.encode_value(value)
    except EncodingError:
        return False
    return True
