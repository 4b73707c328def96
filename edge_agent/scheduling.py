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

from edge_agent import permitting
from fp_async import triggers
from fp_async.errors import FlowerPowerError, MessageError
from fp_async.firing import Firing
from fp_async.jobs import Schedule, Template
from fp_async.messages import DeleteSchedule, PutSchedule, ScheduleState
from fp_async.moved_schedules import after_step
from fp_async.trigger_times import Interval, first_fire
from fp_async.values import mismatch

if TYPE_CHECKING:
    from edge_agent.agent import Agent
    from edge_agent.config import AgentSettings

log = logging.getLogger("fp_async.agent")
_POLL = 30.0
_ERROR = 500  # characters
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
        row = _row(agent.settings, asked, time.time())
    except FlowerPowerError as error:
        return ScheduleState(id=asked.id, revision=asked.revision, error=str(error)[:_ERROR])
    stored = await agent.store.put(row)
    agent.backend.hub.publish("schedules")
    return _state(stored, asked.revision)


async def drop_forbidden(agent: Agent) -> None:
    """Forget what agent.yml allows no more; the center puts it again, and hears why not."""
    for row in await agent.store.schedules():
        if revision_of(row) is None:
            continue
        spec = mismatch.decoded(row.template, Template, _wrong_part("template")).spec
        if (why := permitting.against(agent.settings, row.pipeline, spec)) is not None:
            log.warning("schedule '%s' is dropped: %s", row.id, why)
            await agent.store.delete(row.id)


def _row(settings: AgentSettings, asked: PutSchedule, now: float) -> Schedule:
    spec = triggers.decode(bytes(asked.trigger))
    mismatch.decoded(bytes(asked.policy), triggers.Policy, _wrong_part("policy"))
    template = mismatch.decoded(bytes(asked.template), Template, _wrong_part("template"))
    if (why := permitting.against(settings, asked.pipeline, template.spec)) is not None:
        raise MessageError(why)
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


def _wrong_part(name: str) -> Callable[[str], MessageError]:
    return lambda why: MessageError(f"{name}: {why}")


def _state(row: Schedule, revision: int) -> ScheduleState:
    return ScheduleState(id=row.id, revision=revision, next_fire_time=row.next_fire_time)


async def fire(agent: Agent, step: float) -> None:
    """Fire until cancelled. `step`: the clock was set while no agent ran."""
    clock = Clock(float(await agent.rows.fact("time") or 0.0))
    firing = Firing(
        agent.store, agent.backend.hub, _POLL, agent=agent.settings.name, may=_may(agent, clock)
    )
    await drop_forbidden(agent)
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
