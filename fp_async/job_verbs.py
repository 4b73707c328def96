"""What can be done with the jobs and schedules of a data store; and `Client`, which needs nothing
else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

if TYPE_CHECKING:
    from fp_async.backend import Backend
    from fp_async.client import JobClient
    from fp_async.fleet import AgentInfo
    from fp_async.flow import Progress
    from fp_async.job_values import DeadLetter, Job, JobEvent, Schedule
    from fp_async.jobs import Schedule as ScheduleRow
    from fp_async.options import JobOptions, JobQuery, ScheduleArguments
    from fp_async.strangers import Stranger


class JobVerbs(ABC):
    """The jobs and schedules of a data store. Each call connects, unless it is held open."""

    @abstractmethod
    def _client(self) -> JobClient:
        """Return what reads and writes the rows."""

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

        A `Client` knows no project: it takes no defaults from a configuration, and whether pipeline
        and inputs are right is found when the job starts.
        """
        return await self._client().add(name, options)

    async def get_job(self, id: str) -> Job:
        """Read a job, with inputs, result and log. Raises UnknownNameError."""
        from fp_async.job_values import Job

        return Job(await self._client().get(id))

    async def get_result(self, id: str, wait: float | bool | None = None) -> Any:
        """The result of a job, any number of times; `wait` so many seconds for it, or True.

        Raises JobNotFinishedError, or what `run_job` raises for a job that did not succeed.
        """
        return await self._client().result(id, wait)

    async def cancel_job(self, id: str, reason: str | None = None) -> Job:
        """Ask for a job's end. One that nobody has is cancelled at once; otherwise the first
        outcome that is stored wins, success included. Raises UnknownNameError.
        """
        from fp_async.job_values import Job

        return Job(await self._client().cancel(id, reason))

    async def retry_job(self, id: str) -> str:
        """Add a job like one that has ended; its id. Raises UnknownNameError, UsageError."""
        return await self._client().retry(id)

    async def list_jobs(self, **query: Unpack[JobQuery]) -> list[Job]:
        """Read the newest jobs, without inputs, results and logs: `limit` (50) of those with one
        of `states`, of a `pipeline`, `queue`, `schedule_id`, `group_id`, `owner` or `agent`,
        `bound` to any agent, added `since` then (a datetime, ISO text or epoch seconds) or within
        that time (a timedelta). Raises UnknownNameError, UsageError.
        """
        from fp_async.job_values import Job

        return [Job(row, whole=False) for row in await self._client().find(query)]

    async def watch(self, id: str) -> AsyncIterator[JobEvent]:
        """Yield the events of a job, from now until its outcome."""
        from fp_async.job_values import Job, JobEvent

        async for change in self._client().watch(id):
            told = (change.id, change.state, change.attempt, change.nodes, change.log)
            yield JobEvent(*told, Job(change.job))

    # Schedules ------------------------------------------------------------------------------

    async def schedule(
        self, name: str, trigger: object = None, *args: Any, **options: Unpack[ScheduleArguments]
    ) -> Schedule:
        """Run a pipeline as a job whenever a trigger says: "interval", "cron", "crontab",
        "date", "calendarinterval", "and", "or", or an APScheduler 3.11 trigger.

        Beside the trigger's arguments: `id`, `paused`, `overlap` ("allow", "skip", "queue"),
        `misfire_grace_time` (seconds), `coalesce` ("latest", "earliest", "all"),
        `max_catch_up`, `max_jitter` (seconds), `timezone`, and the options of `add_job`. With
        `on` and `offline=True` the agents keep it, and fire it without a network, too. The
        same schedule again changes nothing. Raises TriggerError, and what `add_job` raises.
        """
        return await self._schedule(self._client().schedule(name, trigger, args, options))

    async def list_schedules(self) -> list[Schedule]:
        """All schedules, by id."""
        return await self._schedules(self._client().schedules())

    async def pause_schedule(self, id: str) -> Schedule:
        """Fire no more until `resume_schedule`. Raises UnknownNameError."""
        return await self._schedule(self._client().pause(id))

    async def resume_schedule(self, id: str) -> Schedule:
        """Fire again, from the next time after now. Raises UnknownNameError."""
        return await self._schedule(self._client().resume(id))

    async def fire_schedule(self, id: str) -> list[str]:
        """Fire it now as well, paused or not, whatever its trigger says; its next time stays.

        The ids of the jobs added: none where `overlap="skip"` and its job before still runs.
        Raises UnknownNameError.
        """
        return await self._client().fire(id)

    async def remove_schedule(self, id: str) -> None:
        """Forget a schedule; its jobs stay. Raises UnknownNameError."""
        await self._client().remove(id)

    async def _schedule(self, read: Coroutine[Any, Any, ScheduleRow]) -> Schedule:
        from fp_async.job_values import Schedule

        return Schedule(await read)

    async def _schedules(self, read: Coroutine[Any, Any, list[ScheduleRow]]) -> list[Schedule]:
        from fp_async.job_values import Schedule

        return [Schedule(row) for row in await read]

    # Agents ---------------------------------------------------------------------------------

    async def agents(self) -> list[AgentInfo]:
        """The agents that are known, present or not, by name."""
        from fp_async import fleet

        async with self._client().connected() as backend:
            return await fleet.agents(backend.store)

    async def drain_agent(self, name: str, *, drained: bool = True) -> None:
        """Offer an agent no more jobs, or again; what it has it ends. Raises UnknownNameError."""
        from fp_async import fleet

        async with self._client().connected() as backend:
            await fleet.drain(backend.store, name, drained=drained)
            backend.hub.publish("agents")

    async def forget_agent(self, name: str) -> None:
        """Know nothing of an agent any more that is away for good: its open jobs go to others where
        `on_lost` is "reassign", and have failed otherwise. One that comes under its name is new.

        Raises UnknownNameError, UsageError for one that is there.
        """
        from fp_async import fleet

        async with self._client().connected() as backend:
            gone = await fleet.forget(backend.store, name)
            topics = [f"job:{id}" for id in (*gone.failed, *(job.id for job in gone.queued))]
            topics += [f"on:{job.target}" for job in gone.queued]
            backend.hub.publish("agents", *topics)

    async def readmit_agent(self, name: str) -> None:
        """Offer jobs again to an agent that was quarantined. Raises UnknownNameError."""
        from fp_async import fleet

        async with self._client().connected() as backend:
            await fleet.readmit(backend.store, name)
            backend.hub.publish("agents")

    async def admit_agent(
        self, name: str, *, tags: Mapping[str, str] | None = None, window: int | None = None
    ) -> None:
        """Put an agent on the list of those that belong to the fleet, or change what it may: the
        `tags` that it may bear ("*" for any value; None: all) and the most jobs at once (None: as
        many as it asks for). With a list, others get no jobs, and what they say counts for nothing.

        What conf/mqtt.yml says of the same agent counts more. Raises UsageError.
        """
        from fp_async import admission, fleet

        grant = admission.grant(tags, window)
        async with self._client().connected() as backend:
            await fleet.admit(backend.store, name, grant)
            backend.hub.publish("agents")

    async def bar_agent(self, name: str) -> list[str]:
        """Take an agent from that list; return the names that are left. An empty list means an
        open fleet. Raises UnknownNameError, and UsageError for one that conf/mqtt.yml names.
        """
        from fp_async import fleet

        async with self._client().connected() as backend:
            left = await fleet.bar(backend.store, name)
            backend.hub.publish("agents")
            return left

    async def unknown_agents(self) -> list[Stranger]:
        """Return the clients that have spoken as agents within a day and are not admitted."""
        from fp_async import fleet

        async with self._client().connected() as backend:
            return await fleet.strange(backend.store)

    async def list_letters(self, limit: int = 50) -> list[DeadLetter]:
        """Messages that made no job, and why; late outcomes too. The newest first.

        Raises UsageError.
        """
        from fp_async.job_values import DeadLetter
        from fp_async.values import arguments

        count = arguments.limit(limit)
        async with self._client().connected() as backend:
            return [DeadLetter.of(row) for row in await backend.store.fleet.letters(count)]


class Client(JobVerbs):
    """The jobs and schedules in the data store at a URI, without the project that they are of.

    `store` is what `data_store.uri` of `conf/scheduler.yml` may be: postgresql://, mysql://,
    mongodb:// or sqlite:///FILE. `event_broker` is the URI of the workers' event broker, so that
    they start on a new job at once, and not when they look next (`poll_interval`, 1 s). Inside
    `async with` it stays connected. Raises UsageError for a URI of something else.
    """

    def __init__(self, store: str, *, event_broker: str | None = None) -> None:
        from fp_async.backend import address

        self._address = address(store, event_broker)
        self._held: AsyncExitStack | None = None

    def _client(self) -> JobClient:
        from fp_async.client import JobClient

        return JobClient(self._address)

    async def __aenter__(self) -> Self:
        from fp_async import backend

        stack = AsyncExitStack()
        await stack.enter_async_context(backend.kept(self._address, _nothing_more))
        self._held = stack
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        held, self._held = self._held, None
        if held is not None:
            await held.__aexit__(kind, error, traceback)

    def __repr__(self) -> str:
        return f"<Client {self._address}{' open' if self._held else ''}>"


@asynccontextmanager
async def _nothing_more(_: Backend) -> AsyncIterator[None]:
    yield
