"""The results of jobs on many agents, for those who handed them in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fp_async.backend import Backend, Where, connected
from fp_async.errors import JobError
from fp_async.job_values import result_of
from fp_async.jobs import Find, Job


class GroupResults:
    """The results of a job on many agents, as they arrive: (agent, its result or its error).

    Iterate over it once. Cancelling an iteration leaves the jobs be.
    """

    def __init__(self, where: Where, id: str, rows: Sequence[Job]) -> None:
        self.id = id
        self.warnings: dict[str, list[str]] = {}  # of those that have come, by agent
        self.agents: list[str] = [(row.target or "").partition(":")[2] for row in rows]
        self._where = where
        self._waiting = dict(zip((row.id for row in rows), self.agents, strict=True))

    def __repr__(self) -> str:
        return f"<GroupResults {self.id}, {len(self._waiting)} of {len(self.agents)} outstanding>"

    async def __aiter__(self) -> AsyncIterator[tuple[str, Any]]:
        async with connected(self._where) as backend:
            with backend.hub.listen("job:*") as listener:
                while self._waiting:
                    for job in await self._ended(backend):
                        agent = self._waiting.pop(job.id)
                        self.warnings[agent] = job.trace.warnings
                        yield agent, _outcome(job)
                    if self._waiting:
                        await listener.wait(backend.poll_interval)

    async def _ended(self, backend: Backend) -> list[Job]:
        rows = await backend.store.find(Find(group_id=self.id, limit=len(self.agents)))
        ended = [row.id for row in rows if row.finished and row.id in self._waiting]
        found = [await backend.store.get(id) for id in ended]
        return [job for job in found if job is not None]


def _outcome(job: Job) -> Any:
    """Its result, or the error that stands for its outcome."""
    try:
        return result_of(job)
    except JobError as error:
        return error
