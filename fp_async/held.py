"""An attempt as the worker that runs it holds it, and what it says of its failure."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from fp_async.attempt import Outcome, Trail
from fp_async.jobs import Failure, Job, Report
from fp_async.keeper import Why

log = logging.getLogger("fp_async")
Heard = Callable[[Report], None]


class Attempt:
    """A job that the worker holds; `why` says who ended it before its time.

    `over`: it runs no more, and its outcome is on the way into the store.
    """

    def __init__(self, job: Job, worker: str) -> None:
        self.job = job
        self.worker = worker
        self.trail = Trail(worker)
        self.why: Why | None = None
        self.over = False
        self.stored = False  # so is its outcome
        self.outcome: Outcome | None = None
        self.heard: Heard | None = None  # what wants to know of its end
        self.began = time.monotonic()
        self.seconds = 0.0
        self.task: asyncio.Task[None] | None = None

    def stop(self, why: Why) -> None:
        """End it, unless somebody has already. What is over has an outcome, which counts if the
        attempt is the latest one still: the store knows, however late it hears of it.
        """
        if self.why is None and not self.over and self.task is not None:
            self.why = why
            self.task.cancel()


Watch = Callable[[Attempt], Heard | None]


def log_failure(job: Job, report: Report) -> None:
    """One line in the worker's own log; the job's has the rest."""
    if report.event in ("fail", "crash", "retry") and report.error is not None:
        failure = msgspec.json.decode(report.error, type=Failure)
        text = failure.message.partition("\n")[0]
        what = {"fail": "failed", "crash": "crashed", "retry": "is tried again"}[report.event]
        about = {"job": job.id, "pipeline": job.pipeline, "attempt": job.attempt}
        log.warning("job %s of '%s' %s: %s", job.id, job.pipeline, what, text, extra=about)
