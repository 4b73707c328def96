"""What becomes of jobs, for whoever handed them in: results, or errors that stand for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fp_async import codec
from fp_async.backend import Backend, connected
from fp_async.errors import (
    JobCancelledError,
    JobError,
    JobExpiredError,
    JobFailedError,
    JobNotFinishedError,
    JobTimeoutError,
)
from fp_async.jobs import Find, Job


def result(job: Job) -> Any:
    """The decoded result of a job, or the error that stands for its outcome."""
    if job.state == "succeeded":
        return codec.decode_value(job.result or b"")
    if not job.finished:
        raise JobNotFinishedError(f"job {job.id} of pipeline '{job.pipeline}' is {job.state}")
    raise error_of(job)


class GroupResults:
    """The results of a job on many agents, as they arrive: (agent, its result or its error).

    Iterate over it once. Cancelling an iteration leaves the jobs be.
    """

    def __init__(self, root: Path, id: str, rows: Sequence[Job]) -> None:
        self.id = id
        self.agents = [(row.target or "").partition(":")[2] for row in rows]
        self._root = root
        self._waiting = dict(zip((row.id for row in rows), self.agents, strict=True))

    def __repr__(self) -> str:
        return f"<GroupResults {self.id}, {len(self._waiting)} of {len(self.agents)} outstanding>"

    async def __aiter__(self) -> AsyncIterator[tuple[str, Any]]:
        async with connected(self._root) as backend:
            with backend.hub.listen("job:*") as listener:
                while self._waiting:
                    for job in await self._ended(backend):
                        yield self._waiting.pop(job.id), _outcome(job)
                    if self._waiting:
                        await listener.wait(backend.worker.poll_interval)

    async def _ended(self, backend: Backend) -> list[Job]:
        rows = await backend.store.find(Find(group_id=self.id, limit=len(self.agents)))
        ended = [row.id for row in rows if row.finished and row.id in self._waiting]
        found = [await backend.store.get(id) for id in ended]
        return [job for job in found if job is not None]


def _outcome(job: Job) -> Any:
    """Its result, or the error that stands for its outcome."""
    return codec.decode_value(job.result or b"") if job.state == "succeeded" else error_of(job)


_ERRORS: dict[str, type[JobError]] = {
    "cancelled": JobCancelledError,
    "expired": JobExpiredError,
    "failed": JobFailedError,
    "rejected": JobFailedError,
}
_TIMEOUTS = ("RunTimeoutError", "NodeTimeoutError")


def error_of(job: Job) -> JobError:
    """The exception for a job that ended otherwise than well."""
    failure = job.failure
    kind = failure.kind if failure else ""
    reason, message = job.reason or "", failure.message if failure else ""
    texts = [reason, message if message not in reason else ""]
    text = "; ".join(text for text in texts if text) or "no reason was given"
    raised = JobTimeoutError if job.state == "failed" and kind in _TIMEOUTS else _ERRORS[job.state]
    return raised(job.id, job.state, text, kind=kind)
