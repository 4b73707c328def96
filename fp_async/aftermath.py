"""After an attempt, once its outcome is stored: the user's functions are told how it went.

At most once: if the worker dies between the two, nobody is told.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from fp_async import callbacks, rules
from fp_async.attempt import Call, Outcome, order
from fp_async.callbacks import Kind
from fp_async.jobs import Failure, Job, Report
from fp_async.runner import Runner

Read = Callable[[str], Awaitable[Job | None]]
log: logging.Logger = logging.getLogger("fp_async")


class Aftermath:
    """What goes on of it. Each takes the place of a job: so no more pile up than can be done.

    `read` finds a job in the store, and `done` is called whenever such a place is free again.
    """

    def __init__(self, runner: Runner, read: Read, done: Callable[[], None]) -> None:
        self._runner = runner
        self._read = read
        self._done = done
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def reported(self, job: Job, report: Report, outcome: Outcome | None, seconds: float) -> None:
        """An outcome that has just been stored; None where the attempt had none of its own."""
        kind = what(job, report)
        if kind is None or not self._heard(kind, outcome):
            return
        call = Call(
            order(job, None),
            kind,
            round(seconds, 6),
            result=report.result,
            failure=_failure(report.error),
            retry_in=report.retry_in if kind == "retry" else None,
        )
        self._start(self._tell(call))

    def rescued(self, job: Job) -> None:
        """A job that was taken from a worker that has died, as it is now, without its inputs."""
        kind = _after(job.state)
        if kind is not None:
            self._start(self._tell_rescued(job.id, kind))

    async def end(self, within: float) -> None:
        """Wait for what goes on, `within` seconds, then cancel it."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=within)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    def _heard(self, kind: Kind, outcome: Outcome | None) -> bool:
        hears = None if outcome is None else outcome.hears
        return hears is None or kind in hears or bool(self._runner.callbacks.of(kind))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        # not the job's own context: what is logged from now on is not the job's
        task = asyncio.create_task(work, name="fp-aftermath", context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._done()

    async def _tell_rescued(self, id: str, kind: Kind) -> None:
        job = await self._read(id)
        if job is not None:
            ran = 0.0 if job.started_at is None else max(time.time() - job.started_at, 0.0)
            pause = 0.0 if kind == "retry" else None
            failure = _failure(job.error)
            await self._tell(Call(order(job, None), kind, ran, failure=failure, retry_in=pause))

    async def _tell(self, call: Call) -> None:
        try:
            callbacks.report(await self._runner.hear(call))
        except Exception:
            log.exception("job %s: on_%s could not be called", call.order.id, call.kind)


def what(job: Job, report: Report) -> Kind | None:
    """What users are told of a report; nothing where a job was cancelled, or given back."""
    if report.event == "succeed":
        return "success"
    if report.event not in ("fail", "retry", "crash"):
        return None
    return _after((rules.reported(job, report, time.time()) or {}).get("state"))


def _after(state: str | None) -> Kind | None:
    if state == "failed":
        return "failure"
    return "retry" if state == "queued" else None


def _failure(error: bytes | None) -> Failure | None:
    return None if error is None else msgspec.json.decode(error, type=Failure)
