"""Who looks on while jobs are fired, claimed and reported: metrics and traces.

Observers are called on the event loop, after the store has it, and must neither wait nor raise.
Where there are none, nothing is spent on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fp_async.jobs import Fire, Job, Report

# How an attempt ended, by the event that is reported of it.
OUTCOMES = {
    "succeed": "succeeded",
    "fail": "failed",
    "retry": "retried",
    "crash": "crashed",
    "give_back": "given_back",
    "release": "released",
    "confirm_cancel": "cancelled",
    "expire": "expired",
    "refuse": "rejected",
    "lose": "lost",
}


class Observer(Protocol):
    """What may be seen of a store's jobs from one process. Times are seconds."""

    def claimed(self, jobs: Sequence[Job]) -> None:
        """A worker of this process has begun these."""

    def trace(self, job: Job) -> str | None:
        """The trace context (W3C `traceparent`) that the attempt goes on in, if it has one."""

    def reported(self, job: Job, report: Report, seconds: float) -> None:
        """What became of an attempt, by a worker here or told by an agent, is stored."""

    def lost(self, job: Job) -> None:
        """An attempt of a worker here is over, and no outcome of it was stored."""

    def adopted(self, job: Job) -> None:
        """A job that an agent began by itself, and its outcome, are stored."""

    def fired(self, fire: Fire, late: float) -> None:
        """A schedule has fired, so many seconds after its time."""
