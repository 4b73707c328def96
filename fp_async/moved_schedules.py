"""What becomes of schedules when their clock is set (`clock_steps`). Pure.

Their times are those of a wall clock, the store's. Interval schedules count real seconds, so they
are moved with it; a time of day stays what it is.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from fp_async import triggers
from fp_async.jobs import Schedule
from fp_async.trigger_times import Interval, first_fire

_ROUNDING = 1e-4  # seconds
_APART = 5e-4  # seconds; a time that was fired before would make no job again


def after_step(row: Schedule, step: float, now: float) -> Schedule:
    """Return a schedule as it is when the clock, which shows `now`, was set by `step` seconds.

    An interval goes on with the seconds that were left, unless the clock was so wrong that they
    mean nothing. Its end stays: it is a date.
    """
    spec = triggers.decode(row.trigger)
    left = None if row.next_fire_time is None else row.next_fire_time - (now - step)
    if not isinstance(spec, Interval) or left is None or abs(left) > spec.seconds:
        return replace(row, next_fire_time=first_fire(spec, now))
    after = now + left
    if step < 0 and _is_near(after - spec.start, spec.seconds):
        after += _APART
    moved = replace(spec, start=min(spec.start + (after - spec.start) % spec.seconds, after))
    encoded = msgspec.json.encode(moved)
    # Asked of the trigger, or rounding would make of one time two.
    return replace(row, trigger=encoded, next_fire_time=first_fire(moved, after - _ROUNDING))


def _is_near(seconds: float, length: float) -> bool:
    """Whether it is a multiple of that length, so that the times of the schedule come again."""
    rest = seconds % length
    return min(rest, length - rest) < _ROUNDING


def on_workers(row: Schedule, step: float, now: float) -> Schedule:
    """As `after_step`, where clocks are right but for a jump: a time of day that it has skipped is
    one that was missed, and fires.
    """
    if row.paused or row.next_fire_time is None:
        return row  # fired by nobody, or by agents
    if step > 0 and not isinstance(triggers.decode(row.trigger), Interval):
        return row
    return after_step(row, step, now)
