"""Agents, as whoever hands in jobs sees them: who is known, who is there, who may get jobs."""

from __future__ import annotations

import time
from collections.abc import Container
from datetime import datetime
from typing import NamedTuple

import msgspec

from fp_async import (
    admission,
    admission_rows,
    gateway_schedules,
    hearing,
    presence,
    strangers,
    topics,
    watching,
)
from fp_async.admission import Admitted
from fp_async.board import BOUND, when_lost
from fp_async.config import AdmittedAgent
from fp_async.errors import JobNotFinishedError, UnknownNameError, UsageError
from fp_async.job_values import moment
from fp_async.jobs import Find, Job, Member, Report, Schedule
from fp_async.lifecycle import Event
from fp_async.presence import Known
from fp_async.stores import Store
from fp_async.strangers import Stranger

_LONG = 400 * 86_400.0


class AgentInfo(msgspec.Struct, frozen=True):
    """One agent. `state`: ready, draining, away, new, quarantined. Times are datetimes in UTC;
    `seen_at` is None for one that was never seen, `clock_offset` is in seconds.
    `dropped` is how often it was above a budget of the gateway, by budget. An agent in the state
    "unadmitted" was known before there was a list of agents without it. `window` is how many jobs
    it may have at once; `ignored` are tags that it says, and may not bear by that list.
    """

    name: str
    state: str
    seen_at: datetime | None
    away_since: datetime | None
    tags: dict[str, str]
    pipelines: dict[str, str]
    slots: int
    free: int | None
    jobs: int
    untold: int
    disk_free: int | None
    clock_offset: float
    version: str
    store: str
    problem: str | None = None
    dropped: dict[str, int] = {}
    window: int = 0
    ignored: dict[str, str] = {}


async def agents(store: Store) -> list[AgentInfo]:
    """All that are known, by name."""
    known = await _known(store)
    drained = {member.name for member in await store.members("drained")}
    rows = await store.find(Find(states=BOUND, bound=True, limit=1_000_000))
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.agent or ""] = counts.get(row.agent or "", 0) + 1
    listed = await admission_rows.admitted(store)
    return [
        _info(name, each, counts.get(name, 0), _state(name, each, drained, listed))
        for name, each in known.items()
    ]


def _state(name: str, known: Known, drained: Container[str], listed: Admitted) -> str:
    admitted = admission.admits(listed, name)
    return presence.describe(known, drained=name in drained, now=time.time(), admitted=admitted)


def _info(name: str, known: Known, count: int, state: str) -> AgentInfo:
    beat, said = known.beat, known.state
    return AgentInfo(
        name=name,
        state=state,
        seen_at=moment(known.seen_at or None),
        away_since=moment(known.away_since),
        tags=said.tags,
        pipelines=said.pipelines,
        slots=said.slots,
        free=None if beat is None else beat.free,
        jobs=count,
        untold=0 if beat is None else beat.outbox,
        disk_free=None if beat is None else beat.disk_free,
        clock_offset=round(known.clock_offset, 3),
        version=said.version,
        store=said.store,
        problem=known.quarantine,
        dropped=known.dropped,
        window=said.window,
        ignored=known.ignored,
    )


async def gateway_trouble(store: Store) -> str | None:
    """Why what is known of agents is not of now; None where an active gateway hears them."""
    active = [each for each in await watching.alive(store, "gateway") if each.get("active")]
    if not active:
        return "no gateway is running; start one with: flowerpower start-gateway"
    if any(each.get("connected", True) for each in active):  # earlier releases do not say
        return None
    return f"the gateway cannot reach its broker {active[0].get('broker')}"


async def _known(store: Store) -> dict[str, Known]:
    return {
        member.name: msgspec.json.decode(member.info, type=Known)
        for member in await store.members("agent")
    }


async def meant(store: Store, target: str) -> list[str]:
    """The admitted agents that an `all:` or `any:` target means, present or not, by name."""
    return list(await _meant(store, target))


async def _meant(store: Store, target: str) -> dict[str, Known]:
    listed = await admission_rows.admitted(store)
    return {
        name: known
        for name, known in (await _known(store)).items()
        if admission.admits(listed, name) and presence.matches(target, name, known.state.tags)
    }


async def own_job(store: Store, told: str) -> str | None:
    """Return the id here of a job that an agent began by itself, by the id that it has there."""
    agents = [member.name for member in await store.members("agent")]
    found = await store.ids([hearing.own_id(name, told) for name in agents], 1)
    return next((ids[0] for ids in found if ids), None)


async def check_served(store: Store, job: Job) -> None:
    """Raise JobNotFinishedError where nobody is there who would run a job that is queued."""
    if job.state != "queued" or job.target is None:
        return
    gateways = await watching.alive(store, "gateway")
    if not any(gateway.get("active") for gateway in gateways):
        raise JobNotFinishedError(
            f"no gateway is running: job {job.id} stays queued; start one with: "
            "flowerpower start-gateway"
        )
    found = await _meant(store, job.target)
    drained = {member.name for member in await store.members("drained")}
    if any(presence.may_work(each) and name not in drained for name, each in found.items()):
        return
    if not found:
        names = ", ".join(await _known(store)) or "none"
        why = f"no agent is known that '{job.target}' means (known: {names})"
    else:
        listed = await admission_rows.admitted(store)
        states = ", ".join(f"{n}: {_state(n, k, drained, listed)}" for n, k in found.items())
        why = f"nobody is there who could run it ({states})"
    raise JobNotFinishedError(f"{why}: job {job.id} stays queued")


async def drain(store: Store, name: str, *, drained: bool) -> None:
    """Offer nothing to an agent any more, or again. Raises UnknownNameError."""
    await _require(store, name)
    await store.saw(Member(kind="drained", name=name), _LONG if drained else 0.0)


async def readmit(store: Store, name: str) -> None:
    """Believe an agent again that was quarantined. Raises UnknownNameError."""
    known = presence.readmitted(await _require(store, name))
    await store.saw(Member(kind="agent", name=name, info=msgspec.json.encode(known)), _LONG)
    await store.saw(Member(kind="readmitted", name=name), _LONG)  # until a gateway has seen it


async def admit(store: Store, name: str, grant: AdmittedAgent) -> None:
    """Put an agent on the list of those that belong to the fleet. Raises UsageError."""
    await admission_rows.tell(store, topics.checked_name("agent", name), grant)


async def bar(store: Store, name: str) -> list[str]:
    """Take an agent from the list; return the names that are left. An empty list admits all.

    Raises UnknownNameError, and UsageError for one that conf/mqtt.yml names.
    """
    listed = await admission_rows.admitted(store)
    if name not in listed:
        raise UnknownNameError("admitted agent", name, listed)
    left = await admission_rows.tell(store, name, None)
    if name in left:
        text = f"agent '{name}' stands under `agents:` in conf/mqtt.yml: take it out there"
        raise UsageError(text)
    return list(left)


async def strange(store: Store) -> list[Stranger]:
    """Return the clients that have spoken as agents of late and are not admitted, by name."""
    return await strangers.known(store, await admission_rows.admitted(store))


class Forgotten(NamedTuple):
    """The ids of a forgotten agent's open jobs, by their end."""

    failed: list[str]
    queued: list[Job]  # for another agent


async def forget(store: Store, name: str) -> Forgotten:
    """Know nothing of an agent any more, and give up what it has: `on_lost: reassign` applies, all
    else has failed. Cut off, it can be called again. Raises UnknownNameError, and UsageError for
    one that is there.
    """
    known = await _require(store, name)
    if known.away_since is None:
        state = presence.describe(known, drained=False, now=time.time())
        raise UsageError(
            f"agent '{name}' is {state}, and would be known again at once: stop it first, or take "
            "its rights at the broker, and wait until it is away"
        )
    jobs = await store.find(Find(states=BOUND, agent=name, bound=True, limit=1_000_000))
    reports = [_given_up(job, name) for job in jobs]
    ended = await store.finish(reports) if reports else []
    mine = [job for job, stored in zip(jobs, ended, strict=True) if stored]
    await store.saw(Member(kind="forgotten", name=name), _LONG)  # until a gateway has seen it
    for member in await store.members("agent-schedule"):
        if msgspec.json.decode(member.info)["agent"] == name:
            await store.saw(member, 0)
    for kind in ("drained", "readmitted", "agent"):
        await store.saw(Member(kind=kind, name=name), 0)
    again = [job for job in mine if when_lost(job) == "reassign"]
    return Forgotten([job.id for job in mine if when_lost(job) != "reassign"], again)


def _given_up(job: Job, name: str) -> Report:
    event: Event = "lose" if when_lost(job) == "reassign" else "fail"
    reason = f"agent '{name}' was forgotten, and had not told its end"
    return Report(id=job.id, attempt=job.attempt, event=event, reason=reason)


async def _require(store: Store, name: str) -> Known:
    known = await _known(store)
    if name not in known:
        raise UnknownNameError("agent", name, known)
    return known[name]


async def remember_removed(store: Store, row: Schedule) -> None:
    """Agents have to forget a schedule that they keep."""
    await gateway_schedules.removed(store, row)


async def revived(store: Store, row: Schedule) -> Schedule:
    """A schedule that is new here, as agents that have kept an earlier one of its id take it."""
    return await gateway_schedules.revived(store, row)
