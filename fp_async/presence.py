"""What the gateway believes of an agent: who speaks under its name, and whether it is there. Pure.

Presence never changes a job. It says to whom jobs may be offered, and since when an agent is away.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from fp_async.messages import AgentState, Heartbeat

CONTEST = 60.0  # seconds in which the device that was there before may contradict a new one


class Known(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One agent, as it is kept among the members of the store. Times are the center's.

    `before` is the store that spoke under this name until a new one came at `came_at`. Without
    `quarantine`, and when `came_at` is over, jobs may be offered. `drained` is a person's wish.
    """

    state: AgentState
    seen_at: float = 0.0
    away_since: float | None = None
    before: str | None = None
    came_at: float | None = None
    quarantine: str | None = None
    beat: Heartbeat | None = None
    clock_offset: float = 0.0


def heard(known: Known | None, said: AgentState, now: float) -> Known | None:
    """What is believed after a state was heard; None where it is not believed."""
    if known is None:
        return _present(Known(state=said), said, now)
    if said.store != known.state.store:
        return _another(known, said, now)
    if (said.starts, said.n) < (known.state.starts, known.state.n):
        return None  # an old message, or the will of a connection long gone
    if said.starts == known.state.starts and _boots_differ(said, known.state):
        why = f"two devices use the same store ({said.store}): give the copy one of its own"
        return replace(_present(known, said, now), quarantine=why)
    return _present(known, said, now)


def _another(known: Known, said: AgentState, now: float) -> Known | None:
    """A store that was not known under this name: a new device, or two that share the name."""
    if said.status in ("lost", "offline"):
        return None
    if said.store == known.before and known.came_at is not None:
        why = f"two devices use this name, with the stores {known.state.store} and {said.store}"
        return replace(known, quarantine=why)
    fresh = Known(state=said, before=known.state.store, came_at=now, quarantine=known.quarantine)
    return _present(fresh, said, now)


def _boots_differ(said: AgentState, before: AgentState) -> bool:
    return bool(said.boot and before.boot and said.boot != before.boot)


def _present(known: Known, said: AgentState, now: float) -> Known:
    gone = said.status in ("lost", "offline")
    return replace(
        known,
        state=said,
        seen_at=now,
        away_since=(known.away_since or now) if gone else None,
        clock_offset=now - said.clock if said.clock and not gone else known.clock_offset,
    )


def beaten(known: Known, beat: Heartbeat, now: float) -> Known:
    """What is believed after a heartbeat."""
    return replace(known, seen_at=now, beat=beat, away_since=None, clock_offset=now - beat.clock)


def readmitted(known: Known) -> Known:
    """What is believed after a person has said that all is well."""
    return replace(known, quarantine=None, came_at=None, before=None)


def settled(known: Known, now: float) -> Known | None:
    """A new device that nobody has contradicted for a minute: its predecessor's jobs are gone.

    None where there is nothing to settle.
    """
    if known.came_at is None or known.quarantine or now - known.came_at < CONTEST:
        return None
    return replace(known, came_at=None)


def silent(known: Known, now: float, away_after: float) -> Known | None:
    """An agent that has missed its heartbeats; None where it is well, or known to be away."""
    if known.away_since is not None or now - known.seen_at <= away_after:
        return None
    return replace(known, away_since=known.seen_at)


def may_work(known: Known) -> bool:
    """Whether jobs may be offered to it now."""
    ready = known.state.status == "ready" and known.away_since is None
    return ready and known.quarantine is None and known.came_at is None


def matches(target: str, name: str, tags: dict[str, str]) -> bool:
    """Whether an agent is meant by `agent:NAME`, `any:tag=value,...` or `all:tag=value,...`.

    `any:*` and `all:*` mean every agent; a tag without a value has to be there.
    """
    kind, _, rest = target.partition(":")
    if kind == "agent":
        return rest == name
    if rest == "*":
        return True
    for term in rest.split(","):
        tag, equals, value = term.partition("=")
        if tag not in tags or (equals and tags[tag] != value):
            return False
    return True


def describe(known: Known, *, drained: bool, now: float) -> str:
    """One word for its state."""
    if known.quarantine:
        return "quarantined"
    if known.away_since is not None:
        return "away"
    if known.came_at is not None and now - known.came_at < CONTEST:
        return "new"
    return "draining" if drained else known.state.status
