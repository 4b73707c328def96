"""What the user holds: a project.

Held open, it keeps modules, DAGs and plans between runs, and, inside `async with`, warm child
processes, the connection to the data store, and a worker where one is wanted.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from fp_async import arguments, callbacks, retrying, scaffold
from fp_async import config as configs
from fp_async.callbacks import Given
from fp_async.errors import ProjectNotFoundError, UsageError
from fp_async.flow import Flow, Progress
from fp_async.flows import Flows, Params

if TYPE_CHECKING:
    from fp_async.checking import Report
    from fp_async.client import Client, JobOptions
    from fp_async.fleet import AgentInfo
    from fp_async.jobs import Job, Letter, Schedule
    from fp_async.watching import JobEvent


class Project:
    """The project at `path`, or the one that the working directory lies in.

    Inside `async with` it stays connected to its data store. `worker=True`, or the settings of
    one, has a worker in the background, in this process: its jobs run in this event loop unless
    the settings say `runner="process"`. `on_success`, `on_failure` and `on_retry` are functions,
    sync or async, that are called in this process with a `RunEvent` for every run of this
    project's and every job of its workers here. Raises ProjectNotFoundError where there is none,
    UsageError.
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
        self.root = find_root(path)
        self.flows = Flows(self.root)
        self.flows.callbacks = callbacks.given(on_success, on_failure, on_retry)
        self._worker = _worker(worker)
        self._held: AsyncExitStack | None = None

    async def __aenter__(self) -> Self:
        from fp_async.client import held

        self.flows.held = True
        async with AsyncExitStack() as stack:
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
    ) -> Any:
        """Run a pipeline and return its final variables by name.

        What is given here is laid over the settings of `environment`. `progress` is called on
        the event loop with every `NodeEvent`. The functions `on_...` are called with a `RunEvent`
        before this returns, after those of the project and before those of the configuration; a
        cancelled run calls none. Cancelling cancels and awaits the nodes on the
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
        place = None
        if flow.settings.with_tracker if with_tracker is None else with_tracker:
            from fp_async import tracked_places

            place = tracked_places.place(self.root, name)
        request = self.flows.request(
            flow, inputs, final_vars, overrides, executor, timeout, progress
        )
        try:
            hearing = self.flows.callbacks.then(callbacks.given(on_success, on_failure, on_retry))
            return await retrying.run(self.flows, flow, request, environment, hearing, place)
        finally:
            if not flow.kept:
                flow.namespace.unload()

    # Jobs -----------------------------------------------------------------------------------

    def _client(self) -> Client:
        from fp_async.client import Client

        return Client(self.flows)

    async def run_job(
        self,
        name: str,
        *,
        progress: Progress | None = None,
        **options: Unpack[JobOptions],
    ) -> Any:
        """Add a job, wait for its outcome, and return its result.

        With the memory store a worker in this process runs it. `options` are those of
        `add_job`; with `on="all:..."` the result is an async iterator of (agent, result or
        error), as they arrive. Raises JobFailedError, JobTimeoutError, JobCancelledError,
        JobExpiredError, and JobNotFinishedError where nobody is there who would run it.
        Cancelling leaves the job be.
        """
        return await self._client().run(name, progress, options)

    async def add_job(self, name: str, **options: Unpack[JobOptions]) -> str:
        """Store a job and return its id (a UUID); it is on disk when this returns.

        `options`: inputs, final_vars, config, environment, executor, params and with_tracker as
        for `run`; `run_at` (datetime, ISO text or epoch seconds) or `delay` (seconds);
        `priority` (higher is sooner); `key`: at most one active job bears it, and adding another
        returns that one's id; `timeout` (seconds, each attempt); `retry`; `on_crash` ("retry" or
        "fail"); `max_crashes`; `concurrency` (of this pipeline at once); `expires` (seconds
        until it must have started); `queue`; `result_ttl` (seconds).

        `on` says which agent: "agent:pi-7", any one that bears a tag ("any:gpu=yes"), or all of
        them ("all:site=berlin": the id is then that of the group). `on_lost` is what happens when
        the agent stays away ("wait", "fail", for any: "reassign"), after `lost_after` seconds;
        `require_version` makes another version of the pipeline on the agent an error. Raises
        UnknownNameError, UsageError, EncodingError, StoreError.
        """
        return await self._client().add(name, options)

    async def get_job(self, id: str) -> Job:
        """The job as it is stored. Raises UnknownNameError."""
        return await self._client().get(id)

    async def get_result(self, id: str, wait: float | bool | None = None) -> Any:
        """The result of a job, any number of times; `wait` so many seconds for it, or True.

        Raises JobNotFinishedError, or what `run_job` raises for a job that did not succeed.
        """
        return await self._client().result(id, wait)

    async def cancel_job(self, id: str, reason: str | None = None) -> Job:
        """Ask for a job's end. One that nobody has is cancelled at once; otherwise the first
        outcome that is stored wins, success included. Raises UnknownNameError.
        """
        return await self._client().cancel(id, reason)

    async def retry_job(self, id: str) -> str:
        """Add a job like one that has ended; its id. Raises UnknownNameError, UsageError."""
        return await self._client().retry(id)

    async def list_jobs(self, **query: Any) -> builtins.list[Job]:
        """The newest jobs, without inputs and results: states=, pipeline=, queue=,
        schedule_id=, limit=. Raises UnknownNameError, UsageError.
        """
        return await self._client().find(query)

    def watch(self, id: str) -> AsyncIterator[JobEvent]:
        """What happens to a job, from now until its outcome."""
        return self._client().watch(id)

    async def schedule(
        self, name: str, trigger: Any = None, *args: Any, **options: Any
    ) -> Schedule:
        """Run a pipeline as a job whenever a trigger says: "interval", "cron", "crontab",
        "date", "calendarinterval", "and", "or", or an APScheduler 3.11 trigger.

        Beside the trigger's arguments: `id`, `paused`, `overlap` ("allow", "skip", "queue"),
        `misfire_grace_time` (seconds), `coalesce` ("latest", "earliest", "all"),
        `max_catch_up`, `max_jitter` (seconds), `timezone`, and the options of `add_job`. With
        `on` and `offline=True` the agents keep it, and fire it without a network, too. The
        same schedule again changes nothing. Raises TriggerError, and what `add_job` raises.
        """
        return await self._client().schedule(name, trigger, args, options)

    async def apply_schedules(self) -> builtins.list[Schedule]:
        """Put the `schedule:` entries of conf/pipelines.yml, and remove those that are gone."""
        return await self._client().apply_schedules()

    async def list_schedules(self) -> builtins.list[Schedule]:
        """All schedules, by id."""
        return await self._client().schedules()

    async def pause_schedule(self, id: str) -> Schedule:
        """Fire no more until `resume_schedule`. Raises UnknownNameError."""
        return await self._client().pause(id)

    async def resume_schedule(self, id: str) -> Schedule:
        """Fire again, from the next time after now. Raises UnknownNameError."""
        return await self._client().resume(id)

    async def remove_schedule(self, id: str) -> None:
        """Forget a schedule; its jobs stay. Raises UnknownNameError."""
        await self._client().remove(id)

    async def agents(self) -> builtins.list[AgentInfo]:
        """The agents that are known, present or not, by name."""
        from fp_async import fleet
        from fp_async.backend import connected

        async with connected(self.root) as backend:
            return await fleet.agents(backend.store)

    async def drain_agent(self, name: str, *, drained: bool = True) -> None:
        """Offer an agent no more jobs, or again; what it has it ends. Raises UnknownNameError."""
        from fp_async import fleet
        from fp_async.backend import connected

        async with connected(self.root) as backend:
            await fleet.drain(backend.store, name, drained=drained)
            backend.hub.publish("agents")

    async def readmit_agent(self, name: str) -> None:
        """Offer jobs again to an agent that was quarantined. Raises UnknownNameError."""
        from fp_async import fleet
        from fp_async.backend import connected

        async with connected(self.root) as backend:
            await fleet.readmit(backend.store, name)
            backend.hub.publish("agents")

    async def list_letters(self, limit: int = 50) -> builtins.list[Letter]:
        """Messages that made no job, and why; late outcomes too. The newest first.

        Raises UsageError.
        """
        from fp_async.backend import connected

        count = arguments.limit(limit)
        async with connected(self.root) as backend:
            return await backend.store.fleet.letters(count)

    async def start_gateway(self) -> None:
        """Move jobs between the data store and the agents, until cancelled.

        Any number may run for a site; one is active. Waits for store and broker, for ever.
        """
        from fp_async.gateway_serving import serve

        await serve(self.flows)

    async def start_worker(
        self, settings: configs.WorkerSettings | None = None, **changes: Any
    ) -> None:
        """Work on jobs and fire schedules, until cancelled; then unfinished jobs are given back.

        `changes` are laid over `settings`, else over `worker` in conf/scheduler.yml: queues=,
        concurrency=, runner="process" or "inline", and so on (`WorkerSettings`).
        """
        from fp_async.client import work

        await work(self.flows, settings, changes)

    # Pipelines ------------------------------------------------------------------------------

    def flow(
        self, name: str, *, environment: str = configs.DEFAULT_ENVIRONMENT, **options: Any
    ) -> Flow:
        """The pipeline, loaded. See `Flows.flow`."""
        return self.flows.flow(name, environment=environment, **options)

    def parameters(self, name: str, environment: str) -> dict[str, Any]:
        """The configured parameters of a pipeline in an environment, by function."""
        return self.flows.parameters(name, environment)

    def planned(self, flow: Flow, **options: Any) -> tuple[builtins.list[str], builtins.list[str]]:
        """The nodes that a run would compute, and the final ones. See `Flows.planned`."""
        return self.flows.planned(flow, **options)

    @property
    def configuration(self) -> configs.PipelinesFile:
        """`conf/pipelines.yml`, read once. Raises ConfigError."""
        return self.flows.configuration

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


def _worker(given: Any) -> configs.WorkerSettings | None:
    """The settings of the worker in the background, if there is to be one. Raises UsageError."""
    if given is None or given is False:
        return None
    if given is True:
        return configs.WorkerSettings(runner="inline")
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
