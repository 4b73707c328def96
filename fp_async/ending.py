"""Stores what became of a worker's attempts, however long that takes; then tells who waits."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from fp_async.aftermath import Aftermath
from fp_async.backend import Backend
from fp_async.errors import StoreError, StoreUnavailableError
from fp_async.held import Attempt
from fp_async.job_lines import log_end
from fp_async.jobs import Failure, Job, Report
from fp_async.patience import Patience
from fp_async.runner import Runner

log: logging.Logger = logging.getLogger("fp_async")


class Ending:
    """Of one worker. `room` is called when something of it makes room for jobs."""

    def __init__(
        self, backend: Backend, runner: Runner, patience: Patience, room: Callable[[], None]
    ) -> None:
        self._store = backend.store
        self._hub = backend.hub
        self._nearby = backend.nearby
        self._observers = backend.observers
        self._patience = patience
        self._aftermath = Aftermath(runner, self._read, room)

    @property
    def going_on(self) -> int:
        """How many jobs' places are taken by the user's functions that are told."""
        return len(self._aftermath)

    def rescued(self, job: Job) -> None:
        """A job was taken from a worker that has died."""
        self._aftermath.rescued(job)

    async def end(self, within: float) -> None:
        """Wait `within` seconds for what still goes on."""
        await self._aftermath.end(within)

    async def report(self, attempt: Attempt, report: Report) -> None:
        """Store it. Raises StoreUnavailableError where waiting does not mend that."""
        job = attempt.job
        try:
            await self._finish(attempt, report)
        except StoreUnavailableError:
            raise
        except StoreError as error:
            failure = Failure("StoreError", f"the outcome could not be stored: {error}")
            refused = Report(
                id=job.id,
                attempt=job.attempt,
                event="fail",
                error=msgspec.json.encode(failure),
            )
            try:
                await self._finish(attempt, refused)
            except StoreError:  # then its lease ends, and another attempt begins
                log.exception("job %s: its outcome could not be stored", job.id)
                return
        topics = [f"job:{job.id}"]
        if report.event in ("retry", "crash", "give_back", "release") or job.slot or job.lane_held:
            topics.append(f"{'later' if report.retry_in else 'work'}:{job.queue}")
        self._hub.publish(*topics)

    async def _finish(self, attempt: Attempt, report: Report) -> None:
        (stored,) = await self._patience(lambda: self._store.finish([report]))
        if not stored:
            return
        attempt.stored = True
        job = attempt.job
        if attempt.begins or report.event != "release":
            log_end(log, job, report, attempt.seconds)
        self._nearby.reported(job, report)
        for each in self._observers if attempt.begins else ():
            each.reported(job, report, attempt.seconds)
        self._aftermath.reported(job, report, attempt.outcome, attempt.seconds)

    async def _read(self, id: str) -> Job | None:
        return await self._patience(lambda: self._store.get(id))
