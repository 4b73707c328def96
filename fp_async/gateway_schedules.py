"""Schedules that agents keep: what the center wants is compared with what an agent has.

A schedule with `offline` fires on the agents that its target means, and never here. Deleted ones
are remembered for as long as an agent may come back with them.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from fp_async import presence
from fp_async.jobs import Member, Schedule, Template
from fp_async.messages import DeleteSchedule, PutSchedule, ScheduleState
from fp_async.presence import Known
from fp_async.stores import Store

REMEMBERED = 400 * 86_400.0
REMOVED = "removed-schedule"


def is_offline(row: Schedule) -> bool:
    """Whether it fires on agents."""
    return _templates.decode(row.template).offline


_templates = msgspec.json.Decoder(Template)


async def removed(store: Store, row: Schedule) -> None:
    """Remember that agents have to forget it."""
    info = msgspec.json.encode({"revision": row.revision})
    await store.saw(Member(kind=REMOVED, name=row.id, info=info), REMEMBERED)


async def kept_elsewhere(store: Store) -> dict[str, int]:
    """The revisions of the schedules that agents keep, and of those that they have to forget."""
    wanted = {row.id: row.revision for row in await store.schedules() if is_offline(row)}
    gone = {f"-{member.name}": 0 for member in await store.members(REMOVED)}
    return {**gone, **wanted}


async def differences(
    store: Store, name: str, known: Known, revisions: dict[str, int]
) -> list[PutSchedule | DeleteSchedule]:
    """What to say to an agent that has these revisions of schedules."""
    said: list[PutSchedule | DeleteSchedule] = []
    wanted = set[str]()
    for row in await store.schedules():
        template = _templates.decode(row.template)
        if not template.offline or not _is_for(template.target or "", name, known):
            continue
        wanted.add(row.id)
        if revisions.get(row.id) != row.revision:
            said.append(put(row))
    gone = {member.name: member for member in await store.members(REMOVED)}
    for id, revision in revisions.items():
        if id not in wanted and id in gone:
            said.append(DeleteSchedule(id=id, revision=revision))
    return said


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
    """Note what an agent says of a schedule, for whoever asks."""
    info = msgspec.json.encode(
        {
            "agent": name,
            "schedule": told.id,
            "revision": told.revision,
            "error": told.error,
            "next_fire_time": told.next_fire_time,
        }
    )
    seconds = 0.0 if told.gone else REMEMBERED
    await store.saw(Member(kind="agent-schedule", name=f"{told.id}@{name}", info=info), seconds)
