"""Who looks on while jobs are fired, claimed and reported: metrics and traces.

Observers are called on the event loop, after the store has it, and must neither wait nor raise.
Where there are none, nothing is spent on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fp_async.jobs import Fire, Job, Report


class Observer(Protocol):
    """What may be seen of a store's jobs from one process. Times are seconds."""

    def claimed(self, jobs: Sequence[Job]) -> None:
        """A worker of this process has begun these."""

    def reported(self, job: Job, report: Report, seconds: float) -> None:
        """What became of an attempt, by a worker here or told by an agent, is stored."""

    def adopted(self, job: Job) -> None:
        """A job that an agent began by itself, and its outcome, are stored."""

    def fired(self, fire: Fire, late: float) -> None:
        """A schedule has fired, so many seconds after its time."""
