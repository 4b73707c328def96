"""Schedules that agents keep: what the center wants is compared with what an agent has.

A schedule with `offline` fires on the agents that its target means, and never here. Deleted ones
are remembered for as long as an agent may come back with them.
"""

from __future__ import annotations

import time

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from fp_async import presence
from fp_async.jobs import Member, Schedule, Template
from fp_async.messages import DeleteSchedule, PutSchedule, ScheduleState
from fp_async.presence import Known
from fp_async.stores import Store

REMEMBERED = 400 * 86_400.0
REMOVED = "removed-schedule"
_SECONDS = 1.0
_REASON = 500
_TOLD = "agent-schedule"


class Copy(msgspec.Struct, frozen=True):
    """What an agent said of a schedule: the revision that it keeps, or in `error` why it does not,
    and when it fires next there (seconds since 1970, by the agent's clock).
    """

    agent: str
    schedule: str
    revision: int
    error: str | None = None
    next_fire_time: float | None = None


def is_offline(row: Schedule) -> bool:
    """Whether it fires on agents."""
    return _templates.decode(row.template).offline


_templates = msgspec.json.Decoder(Template)


async def removed(store: Store, row: Schedule) -> None:
    """Remember that agents have to forget it."""
    info = msgspec.json.encode({"revision": row.revision})
    await store.saw(Member(kind=REMOVED, name=row.id, info=info), REMEMBERED)


async def revived(store: Store, row: Schedule) -> Schedule:
    """A new schedule, newer than one of this id that agents may still have."""
    if not is_offline(row):
        return row
    found = [member.info for member in await store.members(REMOVED) if member.name == row.id]
    revisions = [msgspec.json.decode(info)["revision"] for info in found]
    return replace(row, revision=1 + max(revisions, default=0))


async def kept_elsewhere(store: Store) -> dict[str, int]:
    """The revisions of the schedules that agents keep, and of those that they have to forget."""
    wanted = {row.id: row.revision for row in await store.schedules() if is_offline(row)}
    gone = {f"-{member.name}": 0 for member in await store.members(REMOVED)}
    return {**gone, **wanted}


class Kept:
    """What agents have to keep and to forget, as the store had it a second ago at most.

    A whole fleet comes back at once, and each of its agents asks.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._until = 0.0
        self._rows: list[tuple[Schedule, str]] = []  # with the target
        self._ours: set[str] = set()  # ids that agents have from us, if at all
        self._ttls: dict[str, float] = {}
        self._changes = 0

    def changed(self) -> None:
        """Look again before the next answer."""
        self._changes += 1
        self._until = 0.0

    async def differences(
        self, name: str, known: Known, revisions: dict[str, int]
    ) -> list[PutSchedule | DeleteSchedule]:
        """What to say to an agent that has these revisions of schedules."""
        await self.look()
        said: list[PutSchedule | DeleteSchedule] = []
        wanted = set[str]()
        for row, target in self._rows:
            if _is_for(target, name, known):
                wanted.add(row.id)
                if revisions.get(row.id) != row.revision:
                    said.append(put(row))
        for id, revision in revisions.items():
            if id not in wanted and id in self._ours:
                said.append(DeleteSchedule(id=id, revision=revision))
        return said

    async def knows(self, id: str) -> bool:
        """Return whether agents have had a schedule of this id from here."""
        await self.look()
        return id in self._ours

    async def is_foreign(self, id: str, name: str, known: Known | None) -> bool:
        """Return whether a schedule is here, and not for that agent to fire."""
        await self.look()
        return id in self._ttls and not any(
            row.id == id and known is not None and _is_for(target, name, known)
            for row, target in self._rows
        )

    def longest(self, id: str) -> float:
        """Return how long the outcomes of a schedule are kept; 0 for one that is not there."""
        return self._ttls.get(id, 0.0)

    async def look(self) -> None:
        """Have what the store had a second ago at most."""
        if time.monotonic() >= self._until:
            await self._look()

    async def _look(self) -> None:
        changes = self._changes
        found = await self._store.schedules()
        rows = [(row, _templates.decode(row.template)) for row in found]
        self._ttls = {row.id: each.result_ttl for row, each in rows}
        self._rows = [(row, each.target or "") for row, each in rows if each.offline]
        removed = {member.name for member in await self._store.members(REMOVED)}
        self._ours = removed | {row.id for row in found}
        if changes == self._changes:
            self._until = time.monotonic() + _SECONDS


def _is_for(target: str, name: str, known: Known) -> bool:
    return presence.matches(target, name, known.state.tags)


def put(row: Schedule) -> PutSchedule:
    """The schedule as an agent is told it."""
    return PutSchedule(
        id=row.id,
        revision=row.revision,
        pipeline=row.pipeline,
        trigger=Raw(row.trigger),
        policy=Raw(row.policy),
        template=Raw(row.template),
        paused=row.paused,
    )


async def heard(store: Store, name: str, told: ScheduleState) -> None:
    """Note what an agent says of a schedule."""
    error = None if told.error is None else told.error[:_REASON]
    copy = Copy(name, told.id, told.revision, error, told.next_fire_time)
    seconds = 0.0 if told.gone else REMEMBERED
    member = Member(kind=_TOLD, name=f"{told.id}@{name}", info=msgspec.json.encode(copy))
    await store.saw(member, seconds)


async def copies(store: Store, id: str) -> list[Copy]:
    """Return what agents said of a schedule, by their names."""
    found = [msgspec.json.decode(m.info, type=Copy) for m in await store.members(_TOLD)]
    return [each for each in found if each.schedule == id]
