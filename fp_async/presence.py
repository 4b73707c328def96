"""What the gateway believes of an agent: who speaks under its name, and whether it is there. Pure.

Presence never changes a job. It says to whom jobs may be offered, and since when an agent is away.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec
from msgspec.structs import replace

from fp_async.messages import AgentState, Heartbeat

CONTEST = 60.0  # seconds in which the device that was there before may contradict a new one
_GONE = ("lost", "offline")
_Pair = tuple[int, int]  # `starts` and `n` of a state


class Known(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One agent, as it is kept among the members of the store. Times are the center's.

    `before` is the store that spoke under this name until a new one came at `came_at`, and
    `before_said` the last that was believed of it. Without `quarantine`, and when `came_at` is
    over, jobs may be offered. `anyone`: the next store that speaks is believed as the first one is.
    `clock_offset` is what the center's clock shows more.
    """

    state: AgentState
    seen_at: float = 0.0
    away_since: float | None = None
    before: str | None = None
    before_said: _Pair = (0, 0)
    came_at: float | None = None
    quarantine: str | None = None
    anyone: bool = False
    beat: Heartbeat | None = None
    clock_offset: float = 0.0


def heard(known: Known | None, said: AgentState, now: float) -> Known | None:
    """What is believed after a state was heard; None where it is not believed."""
    if known is None or known.anyone:
        return _present(Known(state=said), said, now)
    if said.store != known.state.store:
        return _another(known, said, now)
    old = _is_old(said, known.state)
    if said.starts == known.state.starts and _boots_differ(said, known.state):
        why = f"two devices use the same store ({said.store}): give the copy one of its own"
        return replace(known if old else _present(known, said, now), quarantine=why)
    return None if old else _present(known, said, now)


def _is_old(said: AgentState, before: AgentState) -> bool:
    """A message that was overtaken, or the will of a connection long gone. A connection that has
    ended says no more: its number is not used again.
    """
    if _pair(said) != _pair(before):
        return _pair(said) < _pair(before)
    return before.status in _GONE and said.status not in _GONE


def _pair(said: AgentState) -> _Pair:
    return said.starts, said.n


def _another(known: Known, said: AgentState, now: float) -> Known | None:
    """A store that was not known under this name: a new device, or two that share the name."""
    if said.status in _GONE:
        return None
    if said.store == known.before:
        if _pair(said) <= known.before_said:
            return None  # it said that before it was replaced
        if known.came_at is not None:
            why = f"two devices use this name, with the stores {known.state.store} and {said.store}"
            return replace(known, quarantine=why)
    fresh = Known(
        state=said,
        before=known.state.store,
        before_said=_pair(known.state),
        came_at=now,
        quarantine=known.quarantine,
    )
    return _present(fresh, said, now)


def _boots_differ(said: AgentState, before: AgentState) -> bool:
    return bool(said.boot and before.boot and said.boot != before.boot)


def _present(known: Known, said: AgentState, now: float) -> Known:
    """Its clock is not compared: a broker delivers what was said long ago."""
    away = (known.away_since or now) if said.status in _GONE else None
    return replace(known, state=said, seen_at=now, away_since=away)


def beaten(known: Known, beat: Heartbeat, now: float) -> Known:
    """What is believed after a heartbeat, which no broker keeps: its clock is that of now."""
    return replace(known, seen_at=now, beat=beat, away_since=None, clock_offset=now - beat.clock)


def readmitted(known: Known) -> Known:
    """What is believed after a person has said that all is well: whoever speaks next, whichever
    of the two that is.
    """
    return replace(known, quarantine=None, came_at=None, before=None, anyone=True)


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


def doubt(name: str, known: Known, now: float) -> str:
    """Why it is not certain who speaks under that name, and what ends that; empty where it is."""
    if known.quarantine:
        return f"{known.quarantine}; when that is mended: flowerpower agent {name} --readmit"
    if known.came_at is not None and now - known.came_at < CONTEST:
        return f"its store is new under this name: it is believed {CONTEST:g} s after it came"
    return ""


def matches(target: str, name: str, tags: dict[str, str]) -> bool:
    """Whether an agent is meant by `agent:NAME`, `any:tag=value,...` or `all:tag=value,...`.

    `any:*` and `all:*` mean every agent; a tag without a value has to be there.
    """
    kind, _, rest = target.partition(":")
    if kind == "agent":
        return rest == name
    return all(
        tag in tags if value is None else tags.get(tag) == value for tag, value in terms(target)
    )


@lru_cache(1024)
def terms(target: str) -> tuple[tuple[str, str | None], ...]:
    """The tags of an `any:` or `all:` target with their values; none where every agent is meant."""
    rest = target.partition(":")[2]
    if rest == "*":
        return ()
    parts = (term.partition("=") for term in rest.split(","))
    return tuple((tag, value if equals else None) for tag, equals, value in parts)


def describe(known: Known, *, drained: bool, now: float) -> str:
    """One word for its state."""
    if known.quarantine:
        return "quarantined"
    if known.away_since is not None:
        return "away"
    if known.came_at is not None and now - known.came_at < CONTEST:
        return "new"
    return "draining" if drained else known.state.status
