"""Waiting for a job: subscribe first, then look, then wait."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, Self

import msgspec

from fp_async import processes
from fp_async.backend import Backend
from fp_async.errors import UnknownNameError
from fp_async.jobs import Job, NodeTiming, Record
from fp_async.lifecycle import State
from fp_async.stores import Store


class Change(msgspec.Struct, frozen=True):
    """A change of a job since the one before: nodes that came to an end, more log."""

    id: str
    state: State
    attempt: int
    nodes: list[NodeTiming]
    log: str
    job: Job


class Waiter:
    """Waits for one job; listens from `with` on, which may be before the job is added."""

    def __init__(self, backend: Backend, id: str) -> None:
        self._backend = backend
        self._listener = backend.hub.listen(f"job:{id}")
        self.id = id

    def __enter__(self) -> Self:
        self._listener.__enter__()
        self._backend.nearby.awaited.setdefault(self.id, None)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.__exit__()
        self._backend.nearby.awaited.pop(self.id, None)

    async def outcome(self, seconds: float | None, *, look: bool = True) -> Job:
        """The job as soon as it has an outcome, or as it is after `seconds`.

        Without `look` it is known to have none yet. Raises UnknownNameError where there is no
        such job.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        poll = self._backend.poll_interval
        while True:
            if look:
                job = await self._look()
                if job.finished or (deadline is not None and time.monotonic() >= deadline):
                    return job
            left = poll if deadline is None else deadline - time.monotonic()
            await self._listener.wait(max(min(poll, left), 0.0))
            look = True

    async def _look(self) -> Job:
        job = self._backend.nearby.awaited.get(self.id) or await self._backend.store.get(self.id)
        if job is None:
            raise unknown(self.id)
        return job


async def changes(backend: Backend, id: str) -> AsyncIterator[Change]:
    """Every change of a job that is seen, from its present state to its outcome."""
    seen: tuple[str, int] | None = None
    record = Record()
    with backend.hub.listen(f"job:{id}") as listener:
        while True:
            job = await backend.store.get(id)
            if job is None:
                raise unknown(id)
            if seen is None or seen[1] != job.attempt:
                record = Record()
            trace = job.trace
            nodes, log = trace.nodes[len(record.nodes) :], _more(record.log, trace.log)
            if (job.state, job.attempt) != seen or nodes or log:
                yield Change(id, job.state, job.attempt, nodes, log, job)
            seen, record = (job.state, job.attempt), trace
            if job.finished:
                return
            await listener.wait(backend.poll_interval)


def _more(before: str, now: str) -> str:
    """What was added to a log of which only the end is kept."""
    if now.startswith(before):
        return now[len(before) :]
    overlap = before[-200:]
    position = now.find(overlap)
    return now if position < 0 else now[position + len(overlap) :]


async def alive(store: Store, kind: str) -> list[dict[str, Any]]:
    """What members say of themselves, but for those that are known to have died."""
    members = [
        {"name": m.name, "seen_at": m.seen_at, **msgspec.json.decode(m.info)}
        for m in await store.members(kind)
    ]
    return [member for member in members if not processes.has_died(member.get("owner", ""))]


def unknown(id: str) -> UnknownNameError:
    """There is no such job, or it was pruned."""
    return UnknownNameError("job", id, (), where=" (jobs are removed after their result_ttl)")
