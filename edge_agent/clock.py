"""What is done when a device's clock is set: by a network that came late, a battery that went flat.

The times in an agent's store are those of its wall clock; when that is set, they are set with it.
So what waits goes on waiting as long as it would have, and "two minutes ago" stays that. Pure. The
schedules follow by `fp_async.moved_schedules`.
"""

from __future__ import annotations

# A time, and the one that tells by which clock it was written: a job that has ended since the
# clock was set has one time of each.
_TIMES = {
    "created_at": "created_at",
    "expires_at": "created_at",
    "run_at": "run_at",
    "started_at": "started_at",
    "ended_at": "ended_at",
    "prune_at": "ended_at",
}


def moves(step: float, wall: float, unseen: float) -> str:
    """What an UPDATE of jobs sets when the clock, which shows `wall`, was set by `step` seconds.

    For up to `unseen` seconds nobody may have noticed: what is written since stays as it is.
    """
    if not unseen:
        return ", ".join(f"{name} = {name} + {step!r}" for name in _TIMES)
    return ", ".join(
        f"{name} = CASE WHEN {_older(by, step, wall, unseen)} THEN {name} + {step!r} "
        f"ELSE {name} END"
        for name, by in _TIMES.items()
    )


def _older(name: str, step: float, wall: float, unseen: float) -> str:
    """Whether a time was written before. Nothing is said of the future but when to run again."""
    before = f"{name} < {wall - unseen!r}"
    if step > 0:
        return before
    return f"({before} OR {name} > {wall + (-step / 2 if name == 'run_at' else 0.0)!r})"
