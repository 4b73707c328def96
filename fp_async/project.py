"""What the user holds: a project.

Held open, it keeps modules, DAGs and plans between runs, and, inside `async with`, warm child
processes, the connection to the data store, and a worker where one is wanted.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from fp_async import callbacks, retrying, scaffold
from fp_async import config as configs
from fp_async.callbacks import Given
from fp_async.errors import ProjectNotFoundError, UsageError
from fp_async.flow import Flow, Progress
from fp_async.flows import Flows, Params
from fp_async.job_verbs import JobVerbs

if TYPE_CHECKING:
    from fp_async.checking import Report
    from fp_async.client import JobClient
    from fp_async.job_values import Schedule
    from fp_async.options import WorkerOptions


class Project(JobVerbs):
    """The project at `path`, or the one that the working directory lies in.

    Inside `async with` it stays connected to its data store. `worker=True` has a worker in the
    background, in this process, as `worker:` of `conf/scheduler.yml` says but for the runner: its
    jobs run in this event loop. Settings given as `worker` stand for themselves. `on_success`,
    `on_failure` and `on_retry` are functions, sync or async, that are called in this process with
    a `RunEvent` for every run of this project's and every job of its workers here. Raises
    ProjectNotFoundError where there is none, UsageError.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        worker: bool | configs.WorkerSettings = False,
        on_success: Given = None,
        on_failure: Given = None,
        on_retry: Given = None,
    ) -> None:
        self.root: Path = find_root(path)
        self.flows: Flows = Flows(self.root)
        self.flows.callbacks = callbacks.given(on_success, on_failure, on_retry)
        self._worker = _worker(worker)
        self._held: AsyncExitStack | None = None

    async def __aenter__(self) -> Self:
        from fp_async.client import held

        self.flows.held = True
        async with AsyncExitStack() as stack:
            stack.enter_context(self.flows.files.kept())
            await stack.enter_async_context(held(self.flows, self._worker))
            self._held = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        held, self._held = self._held, None
        self.flows.held = False
        if held is not None:
            await held.__aexit__(kind, error, traceback)
        await self.aclose()

    async def aclose(self) -> None:
        """End the child processes that this event loop's runs have used."""
        await self.flows.aclose()

    def __repr__(self) -> str:
        state = " open" if self._held else ""
        return f"<Project {self.root} flows={len(self.flows)}{state}>"

    # Running --------------------------------------------------------------------------------

    async def run(
        self,
        name: str,
        inputs: Mapping[str, Any] | None = None,
        final_vars: Sequence[str] | str | None = None,
        config: Mapping[str, Any] | None = None,
        environment: str = configs.DEFAULT_ENVIRONMENT,
        executor: str | Mapping[str, Any] | configs.ExecutorSettings | None = None,
        params: Params | None = None,
        with_tracker: bool | None = None,
        timeout: float | None = None,
        overrides: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        adapters: Sequence[Any] = (),
        materializers: Sequence[Any] = (),
        on_success: Given = None,
        on_failure: Given = None,
        on_retry: Given = None,
        cache: bool | str | Path | None = None,
    ) -> Any:
        """Run a pipeline and return its final variables by name.

        What is given here is laid over the settings of `environment`; `cache` is a folder, True
        for the usual one, False for none. `progress` is called on
        the event loop with every `NodeEvent`. The functions `on_...` are called with a `RunEvent`
        before this returns, after those of the project and before those of the configuration; a
        cancelled run calls none. Cancelling cancels and awaits the nodes on the
        loop, kills child processes and abandons sync nodes in threads. Raises InputError,
        UnknownNameError, ConfigError, GraphError and PipelineImportError before anything has
        started, NodeError and RunTimeoutError afterwards.
        """
        await self.flows.prepared()
        flow = self.flow(
            name,
            environment=environment,
            config=config,
            params=params,
            adapters=adapters,
            materializers=materializers,
        )
        place = None
        if flow.settings.with_tracker if with_tracker is None else with_tracker:
            from fp_async import tracked_places

            place = tracked_places.place(self.root, name)
        request = self.flows.request(
            flow, inputs, final_vars, overrides, executor, timeout, progress, cache
        )
        try:
            hearing = self.flows.callbacks.then(callbacks.given(on_success, on_failure, on_retry))
            return await retrying.run(self.flows, flow, request, environment, hearing, place)
        finally:
            if not flow.kept:
                flow.namespace.release()

    # Jobs -----------------------------------------------------------------------------------

    def _client(self) -> JobClient:
        from fp_async.client import JobClient

        return JobClient.of(self.flows)

    async def apply_schedules(self) -> builtins.list[Schedule]:
        """Put the `schedule:` entries of conf/pipelines.yml, and remove those that are gone."""
        return await self._schedules(self._client().apply_schedules())

    async def start_gateway(self) -> None:
        """Move jobs between the data store and the agents, until cancelled.

        Any number may run for a site; one is active. Waits for store and broker, for ever.
        """
        from fp_async.gateway_serving import serve

        await serve(self.flows)

    async def start_worker(
        self, settings: configs.WorkerSettings | None = None, **changes: Unpack[WorkerOptions]
    ) -> None:
        """Work on jobs and fire schedules, until cancelled; then unfinished jobs are given back.

        `changes` are laid over `settings`, else over `worker` in conf/scheduler.yml: queues=,
        concurrency=, runner="process" or "inline", and so on (`WorkerSettings`).
        """
        from fp_async.client import work

        await work(self.flows, settings, changes)

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
        """The pipeline, loaded. See `Flows.flow`."""
        return self.flows.flow(
            name,
            environment=environment,
            config=config,
            params=params,
            adapters=adapters,
            materializers=materializers,
        )

    def parameters(self, name: str, environment: str) -> dict[str, Any]:
        """The configured parameters of a pipeline in an environment, by function."""
        return self.flows.parameters(name, environment)

    def planned(
        self,
        flow: Flow,
        *,
        inputs: Mapping[str, Any] | None = None,
        final_vars: Sequence[str] | str | None = None,
        overrides: Mapping[str, Any] | None = None,
        executor: str | Mapping[str, Any] | configs.ExecutorSettings | None = None,
        timeout: float | None = None,
        cache: bool | str | Path | None = None,
    ) -> tuple[builtins.list[str], builtins.list[str]]:
        """The nodes that a run would compute, and the final ones. See `Flows.planned`."""
        return self.flows.planned(
            flow,
            inputs=inputs,
            final_vars=final_vars,
            overrides=overrides,
            executor=executor,
            timeout=timeout,
            cache=cache,
        )

    @property
    def configuration(self) -> configs.PipelinesFile:
        """The whole of `conf/pipelines.yml`. Raises MisconfiguredError for the first mistake."""
        return self.flows.pipelines.whole()

    def reload(self) -> None:
        """Forget modules, DAGs and configuration; the next run reads the files again."""
        self.flows.reload()

    def refresh(self) -> None:
        """Reload what was edited since it was loaded."""
        self.flows.refresh()

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
        return self.flows.names()

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


def _worker(given: Any) -> configs.WorkerSettings | bool:
    """The settings of the worker in the background; True for those of `conf/scheduler.yml`, False
    for no worker. Raises UsageError.
    """
    if given is None or isinstance(given, bool):
        return bool(given)
    if not isinstance(given, configs.WorkerSettings):
        raise UsageError(f"worker is True, False or WorkerSettings, not {given!r}")
    from fp_async.client import changed

    return changed(given, {})


def find_root(path: str | Path | None) -> Path:
    """The folder of the project: `path`, or the nearest at or above the working directory."""
    if path is not None and not isinstance(path, str | Path):
        raise UsageError(f"a project is a Project or the path of its folder, not {path!r}")
    start = Path(path or ".").expanduser().resolve()
    for folder in (start, *(start.parents if path is None else ())):
        if (folder / "conf" / "pipelines.yml").is_file() or (folder / "pipelines").is_dir():
            return folder
    hint = "create one with: flowerpower init my-project"
    raise ProjectNotFoundError(
        f"{start} is no project: no conf/pipelines.yml and no pipelines/; {hint}"
    )
