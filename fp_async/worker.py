"""The worker: claims jobs in batches, has them run, and stores what became of them.

What it holds is in the store before it begins, and what came out of it is there before anybody
hears of it. If the store cannot be reached it waits; if it is told to end, it gives back what it
could not finish.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import msgspec

from fp_async import processes, rules
from fp_async.attempt import Outcome, Trail, cancelled_itself, capture, order
from fp_async.backend import Backend
from fp_async.config import WorkerSettings
from fp_async.config_files import Trouble
from fp_async.ending import Ending
from fp_async.errors import StoreError, describe
from fp_async.held import Attempt, Watch
from fp_async.job_lines import log_start
from fp_async.jobs import LEASE, UNREADABLE, Failure, Job, Member, Report
from fp_async.keeper import Keeper, KeeperThread, Why
from fp_async.misconfigured_jobs import MisconfiguredJobs
from fp_async.patience import Patience
from fp_async.rescuing import rescue
from fp_async.runner import Runner
from fp_async.stores import Store

log: logging.Logger = logging.getLogger("fp_async")
_NOTE = 1.0
_PRESENCE = 10.0
_GIVE_BACK = 10.0  # seconds that giving back may take
_LEAST = 1.0  # seconds that warm processes get to end, however long jobs have taken
_BATCH = 100
_INLINE = 200  # jobs at once on the worker's own loop: one batch runs while the next is claimed


class Worker:
    """Works on the queues of `settings` until cancelled or drained.

    `connect` makes a store for the thread that keeps leases; None where no thread is needed.
    Without `seen` it does not show up among the members: nobody else looks into an agent's
    store, and a write every few seconds wears a device's flash out. `watch` is told of every
    attempt, and gives what wants to hear of its end.
    """

    def __init__(
        self,
        backend: Backend,
        settings: WorkerSettings,
        runner: Runner,
        connect: Callable[[], Store] | None,
        *,
        seen: bool = True,
        watch: Watch | None = None,
    ) -> None:
        self.name: str = f"{socket.gethostname()}-{os.getpid()}"
        self.owner: str = processes.owner("worker")
        self._store = backend.store
        self._hub = backend.hub
        self._nearby = backend.nearby
        self._observers = backend.observers
        self._settings = settings
        self._runner = runner
        self._connect = connect
        self._seen = seen
        self._watch = watch
        self._limit = _limit(settings)
        self._largest = settings.max_result_size
        self._attempts: dict[str, Attempt] = {}
        self._troubled = False  # whether the last claim had jobs that the configuration keeps
        self.misconfigured: MisconfiguredJobs = MisconfiguredJobs(runner.stamps)
        self._over = 0
        self._patience = Patience()
        self._keeper = Keeper(self.owner, self._held, self._stop_from_anywhere, self._patience)
        self._room = asyncio.Event()
        self._ending = Ending(backend, runner, self._patience, self._room.set)
        self._busy = asyncio.Event()  # set at a claim, cleared by who finds that nothing runs
        self._between_claims = asyncio.Event()
        self._between_claims.set()
        self._draining = False
        self._deadline: float | None = None  # of the grace time
        self._loop = asyncio.get_running_loop()
        self._main: asyncio.Task[None] | None = None
        self._began = time.time()

    # The whole ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled or drained. Unfinished jobs are given back then, within 10 s.

        Raises StoreError for what waiting does not mend.
        """
        self._main = asyncio.current_task()
        release = capture()
        self._nearby.workers += 1
        background = [
            asyncio.create_task(loop(), name=f"fp-worker-{loop.__name__}") for loop in self._loops()
        ]
        working = asyncio.create_task(self._work(), name="fp-worker-claim")
        try:
            await asyncio.wait([working, *background], return_when=asyncio.FIRST_COMPLETED)
        finally:
            try:
                await self._end(working)
            finally:
                await _cancelled(background)
                self._nearby.workers -= 1
                await self._leave()
                release()
        for task in [working, *background]:
            if not task.cancelled() and (error := task.exception()):
                raise error

    def _loops(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        loops = [self._rescue, self._note, self._listen]
        if self._seen:
            loops.append(self._appear)
        if self._connect is None:
            loops.append(lambda: self._keeper.run(self._store))
        else:
            loops.append(self._keep_aside)
        if self._settings.schedules:
            loops.append(self._fire)
        return loops

    @property
    def grace(self) -> float:
        """Seconds that running jobs have to end in after `drain`."""
        return self._settings.grace

    @property
    def running(self) -> int:
        """How many jobs run at the moment."""
        return len(self._attempts) - self._over

    def trail(self, id: str) -> Trail | None:
        """What a job that runs here has left behind so far."""
        held = self._attempts.get(id)
        return None if held is None else held.trail

    def offer(self, id: str) -> int | None:
        """The attempt under which the center knows a job that runs here."""
        held = self._attempts.get(id)
        return None if held is None else held.job.offer

    def drain(self) -> None:
        """Claim no more; `run` returns when what runs has ended, or its grace time is over."""
        self._draining = True
        self._deadline = time.monotonic() + self._settings.grace
        self._room.set()
        self._hub.publish(f"work:{self._settings.queues[0]}")

    async def _end(self, working: asyncio.Task[None]) -> None:
        """Stop claiming, and give back what still runs. A claim that is on its way is awaited:
        nobody would have what it takes.
        """
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_GIVE_BACK):
                await self._between_claims.wait()
        await _cancelled([working])
        for attempt in list(self._attempts.values()):
            attempt.stop("drain")
        tasks = [attempt.task for attempt in self._attempts.values() if attempt.task]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_GIVE_BACK)
            await _cancelled(list(late))
        await self._ending.end(_GIVE_BACK)
        await self._runner.close(self._left_to_processes())

    def _left_to_processes(self) -> float:
        """Seconds that warm processes get to end: what is left of the grace time; none where it is
        cut off.
        """
        if self._deadline is None:
            return self._settings.grace
        return 0.0 if self._is_cancelled() else max(self._deadline - time.monotonic(), _LEAST)

    async def _leave(self) -> None:
        if not self._seen:
            return
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._store.saw(Member(kind="worker", name=self.name), 0)

    # Claiming -------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Claim what there is, then wait. `work:` says that a queue has something to claim,
        `later:` that it has something whose time will come; whatever else is heard may be both.
        """
        topics = [
            f"{what}:{queue}" for what in ("work", "later") for queue in self._settings.queues
        ]
        heard: frozenset[str] = frozenset()
        next_at: float | None = None
        with self._hub.listen(*topics) as listener:  # subscribe first, then look, then wait
            while not self._draining:
                free = self._free()
                if free <= 0:
                    self._room.clear()
                    await self._room.wait()
                    continue
                claimed = await self._claim(free)
                if not all(topic.startswith("work:") for topic in heard or "?"):
                    next_at = await self._next_run_at()
                if len(claimed) < free and not self._draining:
                    seconds = self._until(next_at)
                    log.debug("looks again when something is heard, or in %.3f s", seconds)
                    heard = await listener.wait(seconds)
        await self._emptied()

    def _free(self) -> int:
        """How many more may run. What is over leaves its place at once, so that the next claim
        and its outcome share a commit; but no more than run wait for the store.
        """
        over = min(self._over, self._limit)
        return min(self._limit - (len(self._attempts) - over) - self._ending.going_on, _BATCH)

    async def _claim(self, limit: int) -> list[Job]:
        """Claim and begin up to `limit` jobs. After some that cannot begin, look at more at once:
        there may be many of them before the next that can.
        """
        wanted = _BATCH if self._troubled else limit
        jobs = await self._patience(lambda: self._claimed(wanted))
        log.debug("claimed %d of at most %d jobs", len(jobs), wanted)
        self._nearby.claimed(jobs)
        attempts = [Attempt(job, self.name) for job in jobs]
        self._sort_out(attempts, limit)
        for attempt in attempts:
            self._attempts[attempt.job.id] = attempt
            attempt.task = self._loop.create_task(self._attempt(attempt))
        if jobs:
            begun = [attempt.job for attempt in attempts if attempt.begins]
            for each in self._observers if begun else ():
                each.claimed(begun)
            for job in begun:
                log_start(log, job)
            self._busy.set()
            self._keeper.begin()
        return jobs

    def _sort_out(self, attempts: list[Attempt], limit: int) -> None:
        """Which do not begin: those with trouble, and all others beyond the limit."""
        for attempt in attempts:
            attempt.trouble = self._runner.trouble(attempt.job)
            attempt.surplus = limit <= 0
            limit -= attempt.trouble is None
        self._troubled = any(attempt.trouble for attempt in attempts)

    async def _claimed(self, limit: int) -> list[Job]:
        self._between_claims.clear()
        try:
            left = self.misconfigured.left(time.monotonic())
            if left:  # whose release may be stored without our knowing
                left = [*left, *self._attempts]
            return await self._store.claim(self.owner, self._settings.queues, limit, LEASE, left)
        finally:
            self._between_claims.set()

    async def _next_run_at(self) -> float | None:
        """On this process's monotonic clock."""
        left = self.misconfigured.known()
        at = await self._patience(lambda: self._store.next_run_at(self._settings.queues, left))
        if at is None:
            return None
        return time.monotonic() + at - await self._patience(self._store.now)

    def _until(self, next_at: float | None) -> float:
        poll = self._settings.poll_interval
        if (again := self.misconfigured.next(time.monotonic())) is not None:
            poll = min(poll, again + 0.001)
        if next_at is None:
            return poll
        left = next_at - time.monotonic()
        return poll if left <= 0 else min(poll, left + 0.001)

    async def _emptied(self) -> None:
        """Wait for what runs, at most for the grace time."""
        deadline = time.monotonic() + self._settings.grace
        while self._attempts and (left := deadline - time.monotonic()) > 0:
            self._room.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._room.wait()

    # Attempts -------------------------------------------------------------------------------

    async def _attempt(self, attempt: Attempt) -> None:
        try:
            report = await self._outcome(attempt)
            if attempt.heard:
                attempt.heard(report)
            attempt.over = True
            attempt.seconds = time.monotonic() - attempt.began
            self._over += 1
            self._room.set()
            await self._ending.report(attempt, report)
        finally:
            del self._attempts[attempt.job.id]
            self._over -= attempt.over
            self._room.set()
            if not attempt.stored:
                for each in self._observers:
                    each.lost(attempt.job)

    async def _outcome(self, attempt: Attempt) -> Report:
        job, trail = attempt.job, attempt.trail
        if job.rules is UNREADABLE:
            failure = Failure("UnreadableRules", "this release cannot read what the job asks for")
            attempt.outcome = Outcome("failed", failure=failure)
            return rules.verdict(job, attempt.outcome, trail.record(), 0.0)
        if not attempt.begins:
            return self._released(attempt)
        try:
            if self._watch:
                attempt.heard = self._watch(attempt)
            trace = next(filter(None, (each.trace(job) for each in self._observers)), None)
            outcome = await self._runner.run(order(job, self._largest, trace, trail), trail)
            trail.traced = outcome.traced
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            while task.cancelling():
                task.uncancel()
            why = attempt.why or ("drain" if self._is_cancelled() else None)
            if why is not None:
                return rules.stopped(job, why, trail.record())
            outcome = cancelled_itself()
        except Exception as error:
            log.exception("job %s could not be started", job.id)
            outcome = Outcome("crashed", reason=f"it could not be started: {describe(error)}")
        attempt.outcome = outcome
        if outcome.status == "misconfigured":
            attempt.trouble = Trouble(outcome.reason or "", outcome.missing)
            return self._released(attempt)
        self.misconfigured.begun(job, attempt.began)
        return rules.verdict(job, outcome, trail.record(), random.random())

    def _released(self, attempt: Attempt) -> Report:
        """The job goes back as if it had not been claimed."""
        job, trouble = attempt.job, attempt.trouble
        if trouble is None:
            return rules.put_back(job, self.owner)
        self.misconfigured.add(job, trouble.message, time.monotonic())
        return rules.released(job, trouble.message, trouble.missing, self.owner, time.time())

    def _is_cancelled(self) -> bool:  # by `asyncio.run`, in the end
        return self._main is None or self._main.cancelling() > 0

    # Leases ---------------------------------------------------------------------------------

    def _held(self) -> list[tuple[str, int]]:
        return [(held.job.id, held.job.attempt) for held in list(self._attempts.values())]

    def _stop_from_anywhere(self, id: str, attempt: int, why: Why) -> None:
        with suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._stop, id, attempt, why)

    def _stop(self, id: str, attempt: int, why: Why) -> None:
        held = self._attempts.get(id)
        if held is not None and held.job.attempt == attempt:
            held.stop(why)

    async def _keep_aside(self) -> None:
        assert self._connect is not None
        thread = KeeperThread(self._keeper, self._connect)
        thread.start()
        try:
            await asyncio.Event().wait()
        finally:
            await thread.stop()

    async def _listen(self) -> None:
        """Look at once when somebody wants a job of ours cancelled."""
        with self._hub.listen("cancel:*") as listener:
            while True:
                topics = await listener.wait()
                if any(topic.removeprefix("cancel:") in self._attempts for topic in topics):
                    self._keeper.look()

    # The rest -------------------------------------------------------------------------------

    async def _rescue(self) -> None:
        busy = None if self._seen else self._busy
        await rescue(self._store, self._hub, self._patience, busy, self._ending.rescued)

    async def _note(self) -> None:
        """Store what running jobs have logged and done so far, for those who watch."""
        while True:
            await self._busy.wait()
            await asyncio.sleep(_NOTE)
            changed = [held for held in self._attempts.values() if held.trail.changed]
            if changed:
                records = [(h.job.id, h.job.attempt, h.trail.record()) for h in changed]
                await self._patience(lambda: self._store.note(records))  # noqa: B023
                self._hub.publish(*(f"job:{held.job.id}" for held in changed))
            if not self._attempts:
                self._busy.clear()

    async def _appear(self) -> None:
        while True:
            await self._patience(lambda: self._store.saw(self._member(), 3 * _PRESENCE))
            await asyncio.sleep(_PRESENCE)

    def _member(self) -> Member:
        info = {
            "queues": self._settings.queues,
            "concurrency": self._limit,
            "running": self.running,
            "runner": self._settings.runner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "owner": self.owner,
            "started_at": self._began,
            "draining": self._draining,
        }
        return Member(kind="worker", name=self.name, info=msgspec.json.encode(info))

    async def _fire(self) -> None:
        from fp_async.firing import Firing  # with the triggers of APScheduler: only where needed

        poll, observers = self._settings.poll_interval, self._observers
        await Firing(self._store, self._hub, poll, self._patience, observers=observers).run()


def _limit(settings: WorkerSettings) -> int:
    default = _INLINE if settings.runner == "inline" else os.cpu_count() or 1
    return settings.concurrency or default


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
