"""The agent: a worker over a file on the device, and a link that tells the center about it.

Its tasks share the store and wake-ups, nothing else. Without a network, and without a center, it
runs what it has, and keeps what came of it until somebody acknowledges that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent import permitting, telling
from edge_agent.config import AgentSettings
from edge_agent.housekeeping import Housekeeping
from edge_agent.identity import Identity
from edge_agent.outbox import Outbox
from edge_agent.problems import Problems
from edge_agent.store import AgentStore
from fp_async import __version__, json_logs, messages, processes, versions
from fp_async.backend import Backend, Nearby
from fp_async.config import DataStore, EventBroker, WorkerSettings
from fp_async.errors import StoreError
from fp_async.events import Hub
from fp_async.jobs import Job, Report
from fp_async.messages import AgentState, Message, Status
from fp_async.runner import ProcessRunner
from fp_async.stores.sqlite import SqliteStore
from fp_async.worker import Worker

if TYPE_CHECKING:
    from edge_agent.session import Session

log = logging.getLogger("fp_async.agent")
QUEUE = "default"
_PAGE = 1024  # bytes: a commit writes whole pages, mostly for a few hundred bytes each
_POLL = 60.0  # everything that happens is heard of in this process


class Agent:
    """One device. `open` before anything else; `run` works until cancelled or drained."""

    def __init__(self, settings: AgentSettings) -> None:
        self.settings = settings
        self.root = Path(settings.project)
        self.outbox = Outbox()
        self.notices: dict[str, Message] = {}
        self.noticed = asyncio.Event()
        self.n = 0
        self.overtaken = 0  # times that a later start of the same store was heard of
        self.status: Status = "ready"
        self.problems = Problems()
        self.connected = False
        self.hears = False  # the broker of its triggers, where it has some
        self.gateway = False
        self.session: Session | None = None
        store = DataStore(type="sqlite", uri=f"sqlite:///{settings.store}")  # four slashes in all
        self.backend = Backend(self.root, store, EventBroker())
        self.backend.hub = Hub()
        self.backend.nearby = _Watched(self)
        self.worker = self._worker()
        assert isinstance(self.backend.store, SqliteStore)
        self.store = self.backend.store
        self.store.units.page_size = _PAGE
        self.store.units.reopen = False  # what the agent has in mind is of the file that it opened
        self.rows = AgentStore(self.store)
        self.house = Housekeeping(settings, self.rows)
        self.identity = Identity("", 0)
        self._group: asyncio.TaskGroup | None = None
        self._clock_step = 0.0

    def _worker(self) -> Worker:
        settings = _worker_settings(self.settings)
        relay, level = json_logs.installed(), self.settings.log_level
        runner = ProcessRunner(self.root, settings, relay=relay, log_level=level)
        return Worker(self.backend, settings, runner, None, seen=False)

    async def open(self) -> None:
        """Open the store, or set a corrupt one aside; count this start. Raises StoreError."""
        await self.house.open(self.store)
        self.identity = await self.rows.begin()
        self._clock_step = await self.house.set_clock()
        await self.house.look()
        await self.house.begin_anew(self.problems)
        self.problems.note("name", await self.rows.renamed(self.settings.name))

    async def close(self) -> None:
        """Note that this was a clean end, if that can be noted, and let go of the store."""
        with contextlib.suppress(StoreError):
            await self.house.save(self.problems)
            await self.rows.note("ended", repr(time.time()))
        await self.store.close()

    async def run(self) -> None:
        """Work until cancelled or drained. Unfinished jobs are given back to the own store."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self.house.clock_moved.append(self._look_again)
            others = [
                group.create_task(self.house.run(self.problems), name="fp-housekeeping"),
                group.create_task(self._watch_schedules(), name="fp-schedules"),
            ]
            try:
                await self.worker.run()
            finally:
                for task in others:
                    task.cancel()

    def soon(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done beside the rest."""
        assert self._group is not None
        self._group.create_task(work)

    def _look_again(self, _: float) -> None:
        """What waits for its time was moved with the clock, and may be due."""
        self.backend.hub.publish(f"later:{QUEUE}")

    # What the link needs ----------------------------------------------------------------------

    def state(self, status: Status | None = None) -> AgentState:
        """What the agent says of itself under its present connection."""
        return AgentState(
            status=status or self.status,
            store=self.identity.store,
            starts=self.identity.starts,
            n=self.n,
            life=self.identity.life,
            boot=processes.boot_id(),
            version=__version__,
            tags=self.settings.tags,
            pipelines=permitting.pipelines(self.settings),
            slots=self.settings.slots,
            window=self.settings.credit,
            clock=time.time(),
        )

    async def overtake(self, starts: int) -> None:
        """Count on from a later start of this store, of which the store knows nothing."""
        before = self.identity
        self.identity = before._replace(starts=await self.rows.overtake(starts))
        self.overtaken += 1
        log.warning(
            "the store is an older backup, or a copy of it runs elsewhere: it counts %d starts, "
            "and start %d was heard of; this one is start %d now",
            before.starts,
            starts,
            self.identity.starts,
        )

    @property
    def free(self) -> int:
        """Slots without a job."""
        return max(self.settings.slots - self.worker.running, 0)

    def notice(self, id: str, message: Message) -> None:
        """Tell this soon; of one job the latest is enough."""
        self.notices[id] = message
        self.noticed.set()

    def take_notices(self) -> list[Message]:
        """All that is to be told."""
        told, self.notices = list(self.notices.values()), {}
        return told

    def refusal(self, pipeline: str, spec_version: str | None, *, strict: bool) -> str | None:
        """Why a job of a pipeline can never run here; None where it can."""
        own = versions.recent(self.root, pipeline)
        if own is None:
            known = ", ".join(versions.names(self.root)) or "none"
            return f"this agent has no pipeline '{pipeline}'; it has: {known}"
        if strict and own != spec_version:
            return f"version {own} of pipeline '{pipeline}' is here, and {spec_version} is required"
        return None

    # Schedules --------------------------------------------------------------------------------

    async def _watch_schedules(self) -> None:
        """Fire schedules as soon as there is one: an agent without any never loads triggers."""
        with self.backend.hub.listen("schedules") as listener:
            step = self._clock_step
            while not await self.store.schedules():
                await listener.wait()
                step = 0.0  # what comes now has never known another clock
        from edge_agent.scheduling import fire

        await fire(self, step)


class _Watched(Nearby):
    """Hears what the worker claims, and puts back: the center is told that it has begun, or not."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self._agent = agent

    def claimed(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if job.offer is not None:
                self._agent.notice(job.id, telling.started(job))
        super().claimed(jobs)

    def reported(self, job: Job, report: Report) -> None:
        if job.offer is not None and report.event == "release":
            self._agent.notice(job.id, telling.waits(job, report.reason))
        super().reported(job, report)


def _worker_settings(settings: AgentSettings) -> WorkerSettings:
    return WorkerSettings(
        queues=[QUEUE],
        concurrency=settings.slots,
        poll_interval=_POLL,
        grace=settings.grace,
        idle_timeout=settings.idle_timeout,
        memory_limit=settings.memory_limit,
        max_jobs_per_child=settings.max_jobs_per_child,
        max_result_size=messages.RESULT_BYTES,
        schedules=False,
    )
