"""Notices that a clock was set: by a network that came late, a battery that went flat, by hand.

Pure, but for the two clocks. `moved_schedules` says what becomes of schedules.
"""

from __future__ import annotations

import time

import msgspec

from fp_async import processes

STEP = 60.0  # seconds; by less the clock is not set, but follows


class Reading(msgspec.Struct, frozen=True):
    """The wall clock, and how much more it shows than the one that counts from the boot."""

    boot: str
    wall: float
    ahead: float


def read() -> Reading:
    """Return both clocks, now."""
    wall = time.time()
    return Reading(processes.boot_id(), wall, wall - processes.lease_clock())


def step(before: Reading, now: Reading) -> float:
    """Return by how many seconds the clock was set between two readings, as far as that is known.

    Within a boot it is known. Across a reboot it is known only that time does not go backwards:
    a clock that shows less than before was set back by the difference at least.
    """
    moved = now.ahead - before.ahead if now.boot == before.boot else min(now.wall - before.wall, 0)
    return moved if abs(moved) > STEP else 0.0


class Watch:
    """Notices that a clock was set while it is asked again and again."""

    def __init__(self) -> None:
        self._ahead: float | None = None

    def step(self, now: float) -> float:
        """Return by how much the clock, which shows `now`, was set since it was asked last."""
        ahead = now - processes.lease_clock()
        before, self._ahead = self._ahead, ahead
        moved = 0.0 if before is None else ahead - before
        return moved if abs(moved) > STEP else 0.0

    def forget(self) -> None:
        """Begin anew: what is there from now on has known no other clock."""
        self._ahead = None
