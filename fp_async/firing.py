"""Fires schedules: adds their jobs when their times have come. Any number may do it at once.

The job's id follows from the schedule and the nominal time, and the schedule moves on in the
same step of the store: whoever crashes or comes second, there is one job per nominal time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from fp_async import clock_steps, job_values, moved_schedules, orders, processes, targets, triggers
from fp_async.events import Hub
from fp_async.job_lines import log_fire
from fp_async.jobs import Fire, Job, Schedule, Template, identity
from fp_async.patience import Patience
from fp_async.stores import Store

if TYPE_CHECKING:
    from fp_async.observing import Observer

log: logging.Logger = logging.getLogger("fp_async")
_BATCH = 500
_TURN = 0.005  # seconds
_FORBIDDEN = 5.0
_ROLE = "clock"  # of the one process that moves schedules when the clock was set


class Firing:
    """Fires the schedules of one store. `poll_interval` seconds is the longest it does not look.

    An `agent` fires its own: its jobs are its own, and the center has to hear of them. Schedules
    that `may` forbids stay due.
    """

    def __init__(
        self,
        store: Store,
        hub: Hub,
        poll_interval: float,
        patience: Patience | None = None,
        agent: str | None = None,
        may: Callable[[Schedule], bool] | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._store = store
        self._hub = hub
        self._poll = poll_interval
        self._patience = patience or Patience()
        self._agent = agent
        self._may = may
        self._observers = observers
        self._clock = clock_steps.Watch()
        self._owner = processes.owner("firing")

    async def run(self) -> None:
        """Until cancelled, which may be at any moment: what was fired then is fired, or not."""
        with self._hub.listen("schedules") as listener:
            while True:
                wait = await self._patience(self.fire_due)
                if wait > 0:
                    log.debug("no schedule is due for %.3f s", wait)
                    await listener.wait(min(wait, self._poll))

    async def fire_due(self) -> float:
        """Fire what is due; the seconds until more may be."""
        store = self._store
        after = await store.next_due()
        if after is None:
            self._clock.forget()
            return self._poll
        now = await store.now()
        if self._agent is None and (step := self._clock.step(now)):
            await self._follow(step, now)
            return 0.0
        if after > now:
            return after - now
        due = await store.due(now, _BATCH)
        allowed = due if self._may is None else [row for row in due if self._may(row)]
        fires = [await spread(store, fire) async for fire in self._fires(allowed, now)]
        added = await store.fire(fires)
        made = [fire for fire, ids in zip(fires, added, strict=True) if ids]
        for fire, ids in zip(fires, added, strict=True):
            if ids is not None:
                log_fire(log, fire, ids)
        for each in self._observers:
            for fire in made:
                each.fired(fire, now - (fire.expected or now))
        self._hub.publish(*topics([job for fire in made for job in fire.jobs], now))
        return 0.0 if allowed else _FORBIDDEN

    async def _follow(self, step: float, now: float) -> None:
        """The store's clock was set: move its schedules, unless another process does."""
        if not await self._store.fleet.lead(_ROLE, self._owner, 2 * clock_steps.STEP):
            return
        log.warning("the clock of the data store was set by %+.0f s; intervals go on", step)
        for row in await self._store.schedules():
            moved = moved_schedules.on_workers(row, step, now)
            if moved != row:
                await self._store.put(moved)

    async def _fires(self, due: list[Schedule], now: float) -> AsyncIterator[Fire]:
        """After a long outage a cron schedule may need milliseconds; others get their turns."""
        turn = time.perf_counter()
        for row in due:
            if fire := await self._fire(row, now):
                yield fire
            if time.perf_counter() - turn > _TURN:
                await asyncio.sleep(0)
                turn = time.perf_counter()

    async def _fire(self, row: Schedule, now: float) -> Fire | None:
        try:
            return decide(row, now, self._agent)
        except Exception as error:  # one schedule that cannot be read must not stop the others
            log.exception("schedule '%s' is paused: it cannot be fired: %s", row.id, error)  # noqa: TRY401
            await self._store.pause(row.id, paused=True, next_fire_time=row.next_fire_time)
            return None


async def spread(store: Store, fire: Fire) -> Fire:
    """Return the firing with a job for each agent that an `all:` target means."""
    if not any((job.target or "").startswith("all:") for job in fire.jobs):
        return fire
    from fp_async import fleet  # what only this needs

    jobs: list[Job] = []
    for each in fire.jobs:
        agents = await fleet.meant(store, each.target or "")
        jobs += targets.spread(each, agents) if agents else []
    return msgspec.structs.replace(fire, jobs=jobs)


def topics(jobs: Sequence[Job], now: float) -> set[str]:
    """Return what to publish so that whoever may run these jobs looks at once."""
    late = {f"later:{job.queue}" for job in jobs if job.run_at > now}
    elsewhere = {f"on:{job.target}" for job in jobs if job.target is not None}
    return {*late, *elsewhere, *(f"work:{job.queue}" for job in jobs)}


def by_hand(row: Schedule, now: float) -> Fire:
    """Return what fires a schedule at `now`, whatever its trigger says; its next time stays."""
    last = row.last_fire_time
    nominal = now if last is None else max(now, math.nextafter(last, math.inf))
    made = job(row, job_values.template_of(row), nominal, 0.0, now)
    return Fire(
        id=row.id,
        revision=row.revision,
        expected=None,
        next_fire_time=None,
        last_fire_time=nominal,
        jobs=[msgspec.structs.replace(made, run_at=now)],
    )


def decide(row: Schedule, now: float, agent: str | None = None) -> Fire:
    """What firing a due schedule at `now` adds, and when it is due next."""
    assert row.next_fire_time is not None
    spec, policy, template = _decoded(row.trigger, row.policy, row.template)
    decision = triggers.decide(policy, spec, row.next_fire_time, now)
    most = triggers.max_jitter(policy, spec)
    return Fire(
        id=row.id,
        revision=row.revision,
        expected=row.next_fire_time,
        next_fire_time=decision.next,
        last_fire_time=decision.fires[-1] if decision.fires else row.last_fire_time,
        jobs=[job(row, template, nominal, most, now, agent) for nominal in decision.fires],
        skipped=decision.skipped,
    )


def job(
    row: Schedule,
    template: Template,
    nominal: float,
    jitter: float,
    now: float,
    agent: str | None = None,
) -> Job:
    """The job of one nominal time; jitter delays its start and leaves the nominal time alone."""
    late = triggers.jitter(row.id, nominal, jitter) if jitter else 0.0
    parts = (row.id, repr(nominal), *([] if agent is None else [agent]))
    made = orders.from_template(template, identity(*parts), row.pipeline, nominal + late, now)
    mark = f"schedule:{row.id}"
    return msgspec.structs.replace(
        made,
        schedule_id=row.id,
        nominal_at=nominal,
        identity=True,
        key=mark if template.overlap == "skip" else template.key,
        lane=mark if template.overlap == "queue" else None,
        target=None if agent else made.target,
        unreported=agent is not None,
    )


@lru_cache(maxsize=4096)
def _decoded(
    trigger: bytes, policy: bytes, template: bytes
) -> tuple[Any, triggers.Policy, Template]:
    return (
        triggers.decode(trigger),
        msgspec.json.decode(policy, type=triggers.Policy),
        msgspec.json.decode(template, type=Template),
    )


async def serve(
    store: Store, hub: Hub, poll_interval: float, observers: Sequence[Observer] = ()
) -> None:
    """Fire until cancelled: what `start-scheduler` runs."""
    await Firing(store, hub, poll_interval, observers=observers).run()
