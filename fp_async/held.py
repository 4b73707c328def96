"""An attempt as the worker that runs it holds it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fp_async.attempt import Outcome, Trail
from fp_async.config_files import Trouble
from fp_async.jobs import Job, Report
from fp_async.keeper import Why

Heard = Callable[[Report], None]


class Attempt:
    """A job that the worker holds; `why` says who ended it before its time.

    `over`: it runs no more, and its outcome is on the way into the store.
    """

    def __init__(self, job: Job, worker: str) -> None:
        self.job = job
        self.worker = worker
        self.trail: Trail = Trail(worker)
        self.why: Why | None = None
        self.trouble: Trouble | None = None  # for which it does not begin
        self.surplus = False  # claimed only to see whether there is trouble
        self.over = False
        self.stored = False  # so is its outcome
        self.outcome: Outcome | None = None
        self.heard: Heard | None = None  # what wants to know of its end
        self.began: float = time.monotonic()
        self.seconds: float = 0.0
        self.task: asyncio.Task[None] | None = None

    @property
    def begins(self) -> bool:
        """Return whether it is more than a look at the job."""
        return self.trouble is None and not self.surplus

    def stop(self, why: Why) -> None:
        """End it, unless somebody has already. What is over has an outcome, which counts if the
        attempt is the latest one still: the store knows, however late it hears of it.
        """
        if self.why is None and not self.over and self.task is not None:
            self.why = why
            self.task.cancel()


Watch = Callable[[Attempt], Heard | None]
