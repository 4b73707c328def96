"""B11: the clock of a store is set under schedulers and workers."""

from __future__ import annotations

import pytest
from stores_kit import KINDS

from fp_async import processes, triggers
from fp_async.clock_steps import Watch
from fp_async.events import Hub
from fp_async.firing import Firing
from fp_async.jobs import Find, Schedule, Template
from fp_async.moved_schedules import after_step, on_workers

EVERY = 60.0


class Clock:
    """The time of a store, and the machine's time since the boot, as a test wants them."""

    def __init__(self, monkeypatch) -> None:
        self.wall, self.boot = 1.8e9, 1000.0
        monkeypatch.setattr(processes, "lease_clock", lambda: self.boot)

    def of(self, store):
        async def now() -> float:
            return self.wall

        store.now = now
        return store

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.boot += seconds


def schedule(now, kind="interval", **arguments) -> Schedule:
    import msgspec

    spec = triggers.parse(kind, arguments or {"seconds": EVERY}, now=now, timezone="UTC")
    return Schedule(
        id="s",
        pipeline="flow",
        trigger=msgspec.json.encode(spec),
        policy=msgspec.json.encode(triggers.Policy()),
        template=msgspec.json.encode(Template()),
        next_fire_time=triggers.first_fire(spec, now),
    )


async def fired(store) -> int:
    return len(await store.find(Find(limit=1000)))


async def until_quiet(*firings) -> None:
    for each in firings:
        while await each.fire_due() == 0.0:
            pass


@pytest.mark.parametrize("place", KINDS, indirect=True)
@pytest.mark.parametrize("step", [-3600.0, 3600.0, -86_400.0 * 365, -3599.5])
async def test_b11_intervals_go_on_when_the_clock_is_set(place, monkeypatch, step):
    clock = Clock(monkeypatch)
    store = clock.of(await place.opened())
    both = [Firing(store, Hub(), 1.0) for _ in range(2)]  # two processes, one of which moves them
    await store.put(schedule(clock.wall))
    for _ in range(3):
        await until_quiet(*both)
        clock.pass_(EVERY)
    await until_quiet(*both)
    assert await fired(store) == 3
    clock.pass_(EVERY / 2)
    await until_quiet(*both)
    clock.wall += step
    for count in (4, 5, 6):
        await until_quiet(*both)
        clock.pass_(EVERY / 2 + 0.01)
        await until_quiet(*both)
        assert await fired(store) == count, "half a minute was left, and no time comes twice"
        clock.pass_(EVERY / 2 - 0.01)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
async def test_b11_a_small_correction_moves_nothing(place, monkeypatch):
    clock = Clock(monkeypatch)
    store = clock.of(await place.opened())
    each = Firing(store, Hub(), 1.0)
    before = await store.put(schedule(clock.wall))
    await until_quiet(each)
    clock.wall -= 50
    await until_quiet(each)
    assert await store.schedule("s") == before


def test_b11_times_of_day_are_those_of_the_clock():
    now = 1.8e9 + 3600  # nine o'clock
    row = schedule(now, "cron", hour=10)
    back = on_workers(row, -86_400.0, now - 86_400)
    assert back.next_fire_time == row.next_fire_time - 86_400
    assert on_workers(row, 7200.0, now + 7200) == row, "ten o'clock was missed, and fires"


def test_b11_what_agents_fire_or_nobody_stays():
    import msgspec

    row = msgspec.structs.replace(schedule(1.8e9), next_fire_time=None)
    assert on_workers(row, -3600.0, 1.8e9) is row
    paused = msgspec.structs.replace(schedule(1.8e9), paused=True)
    assert on_workers(paused, -3600.0, 1.8e9) is paused


def test_b11_no_time_comes_again_where_the_step_is_so_many_intervals():
    row = schedule(1.8e9)
    moved = after_step(row, -3600.0, 1.8e9 - 3600)
    old = {row.next_fire_time - n * EVERY for n in range(100)}
    assert moved.next_fire_time not in old
    assert moved.next_fire_time == pytest.approx(row.next_fire_time - 3600, abs=1e-3)


def test_a_watch_sees_steps_and_no_slow_drift(monkeypatch):
    clock, watch = Clock(monkeypatch), Watch()
    assert watch.step(clock.wall) == 0.0
    for _ in range(10):
        clock.pass_(10)
        clock.wall += 30
        assert watch.step(clock.wall) == 0.0
    clock.wall -= 3600
    assert watch.step(clock.wall) == pytest.approx(-3600)
    assert watch.step(clock.wall) == 0.0
    watch.forget()
    clock.wall += 3600
    assert watch.step(clock.wall) == 0.0
