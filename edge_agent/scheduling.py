"""Schedules that an agent keeps: they fire whether there is a network or not.

Interval schedules count real seconds, whatever is done to the clock. Those that name a time of
day wait until the clock can be right, and are worked out anew when it is set.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from fp_async import triggers
from fp_async.errors import FlowerPowerError
from fp_async.firing import Firing
from fp_async.jobs import Schedule, Template
from fp_async.messages import DeleteSchedule, PutSchedule, ScheduleState
from fp_async.trigger_times import Interval, first_fire

if TYPE_CHECKING:
    from edge_agent.agent import Agent

log = logging.getLogger("fp_async.agent")
_POLL = 30.0
_ERROR = 500  # characters
_ROUNDING = 1e-4  # seconds
_BUILT = datetime(2026, 11, 1, tzinfo=UTC).timestamp()  # a clock that shows less is wrong
_SYNCHRONIZED = Path("/run/systemd/timesync/synchronized")
_TIMESYNCD = Path("/run/systemd/timesync")
ORIGIN = "center"


def origin(revision: int) -> str:
    """What the row of a schedule says that came from the center."""
    return f"{ORIGIN}#{revision}"


def revision_of(row: Schedule) -> int | None:
    """The center's revision of a schedule; None for one of the agent's own."""
    kind, _, number = row.origin.partition("#")
    return int(number) if kind == ORIGIN and number.isdigit() else None


async def change(agent: Agent, asked: PutSchedule | DeleteSchedule) -> ScheduleState:
    """Put or delete; the answer. The same again changes nothing."""
    old = await agent.store.schedule(asked.id)
    if isinstance(asked, DeleteSchedule):
        if old is not None and (revision_of(old) or 0) > asked.revision:
            return _state(old, revision_of(old) or 0)  # said before it was put again
        await agent.store.delete(asked.id)
        return ScheduleState(id=asked.id, revision=asked.revision, gone=True)
    if old is not None and (revision_of(old) or 0) >= asked.revision:
        return _state(old, asked.revision)
    if why := agent.refusal(asked.pipeline, None, strict=False):
        return ScheduleState(id=asked.id, revision=asked.revision, error=why)
    try:
        row = _row(asked, time.time())
    except (FlowerPowerError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return ScheduleState(id=asked.id, revision=asked.revision, error=str(error)[:_ERROR])
    stored = await agent.store.put(row)
    agent.backend.hub.publish("schedules")
    return _state(stored, asked.revision)


def _row(asked: PutSchedule, now: float) -> Schedule:
    spec = triggers.decode(bytes(asked.trigger))
    msgspec.json.decode(asked.policy, type=triggers.Policy)
    msgspec.json.decode(asked.template, type=Template)
    return Schedule(
        id=asked.id,
        pipeline=asked.pipeline,
        trigger=bytes(asked.trigger),
        policy=bytes(asked.policy),
        template=bytes(asked.template),
        paused=asked.paused,
        next_fire_time=first_fire(spec, now),
        origin=origin(asked.revision),
    )


def _state(row: Schedule, revision: int) -> ScheduleState:
    return ScheduleState(id=row.id, revision=revision, next_fire_time=row.next_fire_time)


async def fire(agent: Agent, step: float) -> None:
    """Fire until cancelled. `step`: the clock was set while no agent ran."""
    clock = Clock(float(await agent.rows.fact("time") or 0.0))
    firing = Firing(
        agent.store, agent.backend.hub, _POLL, agent=agent.settings.name, may=_may(agent, clock)
    )
    if step:
        await _moved(agent, step)
    agent.house.clock_moved.append(lambda step: agent.soon(_moved(agent, step)))
    await firing.run()


def _may(agent: Agent, clock: Clock) -> Callable[[Schedule], bool]:
    def may(row: Schedule) -> bool:
        if agent.house.full:
            agent.house.skipped(f"schedule '{row.id}': {agent.house.full}")
            return False
        return clock.is_right() or isinstance(triggers.decode(row.trigger), Interval)

    return may


class Clock:
    """Whether the time of day can be right: not before the program was made, nor before a time
    that the agent has noted, and synchronised where the system can say so.
    """

    def __init__(self, noted: float) -> None:
        self._least = max(noted, _BUILT)
        self._told = False

    def is_right(self, *, tell: bool = True) -> bool:
        """Once it was synchronised it is taken as right until the next boot."""
        if _TIMESYNCD.is_dir():  # it knows better than what was noted, maybe by a wrong clock
            right = _SYNCHRONIZED.exists() and time.time() >= _BUILT
        else:
            right = time.time() >= self._least
        if not right and tell and not self._told:
            self._told = True
            now = datetime.now(UTC).isoformat(timespec="seconds")
            log.warning("the clock (%s) is not right yet; schedules by time of day wait", now)
        return right


async def _moved(agent: Agent, step: float) -> None:
    """The clock was set by `step` seconds: intervals go on as they were, the rest from now."""
    now = time.time()
    for row in await agent.store.schedules():
        with suppress(FlowerPowerError):
            await agent.store.put(after_step(row, step, now))
    agent.backend.hub.publish("schedules")


def after_step(row: Schedule, step: float, now: float) -> Schedule:
    """A schedule as it is when the clock, which shows `now`, was set by `step` seconds.

    An interval goes on with the seconds that were left, unless the clock was so wrong that they
    mean nothing. Its end stays: it is a date.
    """
    spec = triggers.decode(row.trigger)
    left = None if row.next_fire_time is None else row.next_fire_time - (now - step)
    if not isinstance(spec, Interval) or left is None or abs(left) > spec.seconds:
        return replace(row, next_fire_time=first_fire(spec, now))
    after = now + left
    moved = replace(spec, start=min(spec.start + (after - spec.start) % spec.seconds, after))
    encoded = msgspec.json.encode(moved)
    # Asked of the trigger, or rounding would make of one time two.
    return replace(row, trigger=encoded, next_fire_time=first_fire(moved, after - _ROUNDING))
