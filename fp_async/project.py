"""What the user holds: a project.

Held open, it keeps modules, DAGs and plans between runs, and, inside `async with`, warm child
processes.
"""

from __future__ import annotations

import asyncio
import builtins
import random
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fp_async import config as configs
from fp_async import executors, scaffold
from fp_async.child import Children
from fp_async.errors import (
    NodeError,
    NotAvailableError,
    ProjectNotFoundError,
    UnknownNameError,
    UsageError,
)
from fp_async.flow import Flow, Progress, Request

if TYPE_CHECKING:
    from fp_async.checking import Report

_KEPT_FLOWS = 64
_Loop = asyncio.AbstractEventLoop
Params = Mapping[str, Mapping[str, Any]]


class Project:
    """The project at `path`, or the one that the working directory lies in.

    Raises ProjectNotFoundError where there is none.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.root = find_root(path)
        self._flows: OrderedDict[Hashable, Flow] = OrderedDict()
        self._stamps: dict[Path, tuple[int, int]] = {}
        self._file: configs.PipelinesFile | None = None
        self._children: weakref.WeakKeyDictionary[_Loop, dict[int | None, Children]] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.RLock()  # a project may be used from several threads
        self._open = False
        weakref.finalize(self, _unload, self._flows).atexit = False

    async def __aenter__(self) -> Self:
        self._open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open = False
        await self.aclose()

    async def aclose(self) -> None:
        """End the child processes that this event loop's runs have used."""
        for children in self._children.pop(asyncio.get_running_loop(), {}).values():
            children.close()

    def __repr__(self) -> str:
        return f"<Project {self.root} flows={len(self._flows)}{' open' if self._open else ''}>"

    # Running --------------------------------------------------------------------------------

    async def run(
        self,
        name: str,
        inputs: Mapping[str, Any] | None = None,
        final_vars: Sequence[str] | str | None = None,
        config: Mapping[str, Any] | None = None,
        environment: str = configs.DEFAULT_ENVIRONMENT,
        executor: str | configs.ExecutorSettings | None = None,
        params: Params | None = None,
        with_tracker: bool | None = None,
        timeout: float | None = None,
        overrides: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        adapters: Sequence[Any] = (),
        materializers: Sequence[Any] = (),
    ) -> Any:
        """Run a pipeline and return its final variables by name.

        What is given here is laid over the settings of `environment`. `progress` is called on
        the event loop with every `NodeEvent`. Cancelling cancels and awaits the nodes on the
        loop, kills child processes and abandons sync nodes in threads. Raises InputError,
        UnknownNameError, ConfigError, GraphError and PipelineImportError before anything has
        started, NodeError and RunTimeoutError afterwards.
        """
        flow = self.flow(
            name,
            environment=environment,
            config=config,
            params=params,
            adapters=adapters,
            materializers=materializers,
        )
        if flow.settings.with_tracker if with_tracker is None else with_tracker:
            raise UsageError("with_tracker: tracking is not part of this version yet")
        request = self._request(flow, inputs, final_vars, overrides, executor, timeout, progress)
        try:
            return await self._run(flow, request)
        finally:
            if not flow.kept:
                flow.namespace.unload()

    def _request(
        self,
        flow: Flow,
        inputs: Mapping[str, Any] | None,
        final_vars: Sequence[str] | str | None,
        overrides: Mapping[str, Any] | None,
        executor: str | configs.ExecutorSettings | None,
        timeout: float | None,
        progress: Progress | None,
    ) -> Request:
        settings = flow.settings
        wanted = final_vars or settings.final_vars or ()
        return Request(
            inputs=inputs or {},
            final_vars=(wanted,) if isinstance(wanted, str) else tuple(wanted),
            overrides=overrides or {},
            executor=executors.resolve(executor or settings.executor),
            timeout=settings.timeout if timeout is None else _seconds(timeout),
            progress=progress,
        )

    async def _run(self, flow: Flow, request: Request) -> Any:
        if request.executor.type != "processpool":
            return await _retried(flow, request, None)
        children = self._pool(request.executor.max_workers)
        children.users += 1
        try:
            return await _retried(flow, request, children)
        finally:
            children.users -= 1
            if not children.users and not self._open:
                await self.aclose()

    def _pool(self, workers: int | None) -> Children:
        pools = self._children.setdefault(asyncio.get_running_loop(), {})
        if workers not in pools:
            pools[workers] = Children(workers)
        return pools[workers]

    async def run_job(self, name: str, **options: Any) -> Any:
        """Run a pipeline as a job. Not part of this version: raises NotAvailableError."""
        raise NotAvailableError("run_job", name, options)

    async def add_job(self, name: str, **options: Any) -> Any:
        """Queue a pipeline as a job. Not part of this version: raises NotAvailableError."""
        raise NotAvailableError("add_job", name, options)

    async def schedule(self, name: str, *trigger: Any, **options: Any) -> Any:
        """Schedule a pipeline. Not part of this version: raises NotAvailableError."""
        raise NotAvailableError("schedule", name, trigger, options)

    async def start_worker(self, **options: Any) -> Any:
        """Work on jobs. Not part of this version: raises NotAvailableError."""
        raise NotAvailableError("start_worker", options)

    # Pipelines ------------------------------------------------------------------------------

    def flow(
        self,
        name: str,
        *,
        environment: str = configs.DEFAULT_ENVIRONMENT,
        config: Mapping[str, Any] | None = None,
        params: Params | None = None,
        adapters: Sequence[Any] = (),
        materializers: Sequence[Any] = (),
    ) -> Flow:
        """The pipeline, loaded; cached as long as its arguments can be compared."""
        arguments = (name, environment, config or {}, params or {}, adapters, materializers)
        try:
            key = _key(*arguments)
        except TypeError:  # a value that cannot be hashed: build it anew
            return self._load(*arguments)
        with self._lock:
            if key in self._flows:
                self._flows.move_to_end(key)
                return self._flows[key]
            flow = self._load(*arguments)
            flow.kept = True
            self._flows[key] = flow
            if len(self._flows) > _KEPT_FLOWS:
                self._flows.popitem(last=False)[1].namespace.unload()
            return flow

    def _load(
        self,
        name: str,
        environment: str,
        extra_config: Mapping[str, Any],
        extra_params: Params,
        adapters: Sequence[Any],
        materializers: Sequence[Any],
    ) -> Flow:
        from fp_async import dag, modules
        from fp_async.params import Params as PipelineParams

        values = configs.merged(self.parameters(name, environment), extra_params, 2)
        settings = configs.run_settings(self.configuration, name, environment)
        folder = self.root / "pipelines"
        names = settings.modules or [name]
        for module in names:
            if not modules.exists(folder, module):
                where = f" in {folder} (run.{name}.{environment}.modules)"
                raise UnknownNameError("module", module, self.list(), where=where)
        libraries = modules.libraries(folder, names)
        dag.load_extensions(libraries)
        params = PipelineParams(name, values)
        namespace = modules.Namespace(folder, name, params, identity=repr(values))
        try:
            graph = dag.Graph(
                name,
                dag.load_modules(namespace, names),
                configs.given(configs.merged(settings.config or {}, extra_config)),
                adapters=adapters,
                materializers=materializers,
                allow_overrides=bool(settings.module_overrides),
            )
            return Flow(name, folder, settings, namespace, graph, values, libraries)
        except BaseException:
            namespace.unload()
            raise

    def parameters(self, name: str, environment: str) -> dict[str, Any]:
        """The configured parameters of a pipeline in an environment, by function."""
        self._require(name)
        base = (self.configuration.params or {}).get(name) or {}
        over = configs.run_settings(self.configuration, name, environment).params or {}
        return configs.merged(base, over, 2)

    def planned(self, flow: Flow, **options: Any) -> tuple[builtins.list[str], builtins.list[str]]:
        """The nodes that a run with these options would compute, and the final ones among them.

        Raises as `run` would.
        """
        defaults = dict.fromkeys(
            ("inputs", "final_vars", "overrides", "executor", "timeout", "progress")
        )
        plan = flow.plan(self._request(flow, **{**defaults, **options}))
        return [*plan.names[plan.given :]], [name for name, _ in plan.finals]

    def _require(self, name: str) -> None:
        names = self.list()
        if name not in names:
            raise UnknownNameError("pipeline", name, names, where=f" in {self.root / 'pipelines'}")

    @property
    def configuration(self) -> configs.PipelinesFile:
        """`conf/pipelines.yml`, read once. Raises ConfigError."""
        if self._file is None:
            self._file = configs.read(self.root, "pipelines.yml")
        return self._file

    def reload(self) -> None:
        """Forget modules, DAGs and configuration; the next run reads the files again."""
        with self._lock:
            _unload(self._flows)
            self._flows.clear()
            self._file = None

    def refresh(self) -> None:
        """Reload what was edited since it was loaded."""
        from fp_async.modules import stamp

        conf = self.root / "conf" / "pipelines.yml"
        with self._lock:
            if self._stamps.get(conf, now := stamp(conf)) != now:
                self.reload()
            self._stamps[conf] = now
            for key in [key for key, flow in self._flows.items() if flow.namespace.changed()]:
                self._flows.pop(key).namespace.unload()

    def new(self, name: str, *, overwrite: bool = False) -> Path:
        """Write a pipeline that runs at once; returns its file. See `scaffold`."""
        path = scaffold.create_pipeline(self.root, name, overwrite=overwrite)
        self.reload()
        return path

    add = new

    def delete(self, name: str) -> builtins.list[Path]:
        """Remove a pipeline's file and configuration; returns the files changed."""
        changed = scaffold.delete_pipeline(self.root, name)
        self.reload()
        return changed

    def list(self) -> builtins.list[str]:
        """The names of the pipelines, sorted."""
        return scaffold.pipeline_names(self.root)

    def show(
        self, name: str, format: str = "tree", environment: str = configs.DEFAULT_ENVIRONMENT
    ) -> str | bytes:
        """A picture of the DAG: tree, mermaid or dot as text; svg or png as bytes."""
        from fp_async import pictures

        return pictures.draw(self.flow(name, environment=environment), format)

    def check(self) -> Report:
        """Validate every file and pipeline; see `checking.Report`."""
        from fp_async import checking

        return checking.check(self)


def find_root(path: str | Path | None) -> Path:
    """The folder of the project: `path`, or the nearest at or above the working directory."""
    start = Path(path or ".").expanduser().resolve()
    for folder in (start, *(start.parents if path is None else ())):
        if (folder / "conf" / "pipelines.yml").is_file() or (folder / "pipelines").is_dir():
            return folder
    hint = "create one with: flowerpower init my-project"
    raise ProjectNotFoundError(
        f"{start} is no project: no conf/pipelines.yml and no pipelines/; {hint}"
    )


def _seconds(timeout: float) -> float:
    if not isinstance(timeout, int | float) or not timeout > 0:
        raise UsageError(f"timeout is a number of seconds, more than 0, not {timeout!r}")
    return timeout


def _key(
    name: str,
    environment: str,
    config: Mapping[str, Any],
    params: Params,
    adapters: Sequence[Any],
    materializers: Sequence[Any],
) -> Hashable:
    objects = (tuple(map(id, adapters)), tuple(map(id, materializers)))  # the flow holds them
    given = (_frozen(config), _frozen(params)) if config or params else ()
    return (name, environment, given, *objects)


def _frozen(value: Any) -> Hashable:
    """A hashable image of plain data; raises TypeError for what has none."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return tuple((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, builtins.list | tuple):
        return tuple(_frozen(item) for item in value)
    hash(value)
    return (type(value), value)


async def _retried(flow: Flow, request: Request, children: Children | None) -> Any:
    """Run, and run again as the pipeline's `retry` says."""
    retry = flow.settings.retry
    if retry is None:
        return await flow.run(request, children)
    failures = 0
    while True:
        try:
            return await flow.run(request, children)
        except (NodeError, TimeoutError) as error:
            failures += 1
            cause = error.__cause__ if isinstance(error, NodeError) else error
            if cause is None or not retry.wants(cause, failures):
                raise
        await asyncio.sleep(retry.delay(failures, random.random()))


def _unload(flows: OrderedDict[Hashable, Flow]) -> None:
    for flow in flows.values():
        flow.namespace.unload()
