"""What the gateway believes of an agent: who speaks under its name, and whether it is there. Pure.

Presence never changes a job. It says to whom jobs may be offered, and since when an agent is away.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec
from msgspec.structs import replace

from fp_async.messages import AgentState, Heartbeat

ANSWER = 10.0  # seconds in which an agent that is there answers a ping
CONTEST = 60.0  # seconds in which the device that was there before may contradict a new one
_GONE = ("lost", "offline")
_LIVES = 8  # processes that are remembered
_Pair = tuple[int, int]  # `starts` and `n` of a state


class Known(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One agent, as it is kept among the members of the store. Times are the center's.

    `before` is the store that spoke under this name until a new one came at `came_at`, and
    `before_said` the last that was believed of it. Without `quarantine`, and when `came_at` is
    over, jobs may be offered. `anyone`: the next store that speaks is believed as the first one is.
    `asked_at`: the center has asked whether it is there, and has heard nothing since. `seen_at` is
    0 for one that has never been heard of but by what a broker kept. `clock_offset` is what the
    center's clock shows more. `lives` are the processes that spoke before this one, from its store.
    `dropped` is what of it was above a budget. `state` is within what the list of admitted agents
    allows; `ignored` are the tags that it says beyond that, `wanted` the window that it asks for.
    """

    state: AgentState
    seen_at: float = 0.0
    away_since: float | None = None
    before: str | None = None
    before_said: _Pair = (0, 0)
    came_at: float | None = None
    quarantine: str | None = None
    anyone: bool = False
    asked_at: float | None = None
    beat: Heartbeat | None = None
    clock_offset: float = 0.0
    lives: tuple[str, ...] = ()
    dropped: dict[str, int] = {}
    ignored: dict[str, str] = {}
    wanted: int = 0


def heard(
    known: Known | None, said: AgentState, now: float, *, retained: bool = False
) -> Known | None:
    """Return the belief after a state was heard; None where it is not believed, or known already.

    One that the broker had kept (`retained`) tells who was there, and is no sign of life.
    """
    if retained and known is not None and (known.anyone or said == known.state):
        return None
    if known is None or known.anyone:
        return _after(Known(state=said), said, now, retained=retained)
    if said.store != known.state.store:
        return _another(known, said, now, retained=retained)
    old = _is_old(said, known.state)
    new = known if old else _after(_succeeded(known, said), said, now, retained=retained)
    if _are_two(known, said, old=old):
        why = f"two devices use the same store ({said.store}): give the copy one of its own"
        return replace(new, quarantine=why)
    return None if old else new


def _succeeded(known: Known, said: AgentState) -> Known:
    """Remember the process that spoke before, where another one does."""
    before = known.state.life
    if not before or said.life == before:
        return known
    return replace(known, lives=(*known.lives, before)[-_LIVES:])


def _are_two(known: Known, said: AgentState, *, old: bool) -> bool:
    """Return whether one store is in use on two devices: both count the same start, or a process
    speaks again that another one has followed. Nobody starts on a store that is in use.
    """
    if said.starts == known.state.starts and _boots_differ(said, known.state):
        return True
    return not old and bool(said.life) and said.life in known.lives


def is_behind(known: Known | None, said: AgentState, *, retained: bool) -> bool:
    """Return whether a process that lives counts no more starts than the one before it on the same
    store: the store was restored from a backup, or is a copy.
    """
    if known is None or retained or said.status in _GONE:
        return False
    before = known.state
    same = said.store == before.store and said.life not in ("", before.life)
    return same and said.starts <= before.starts


def is_doubtful(known: Known | None, said: AgentState, *, retained: bool) -> bool:
    """Return whether an agent has to be asked if it is there, after that state was heard of it: the
    broker had kept it, or it is the end of a connection that nobody knew.
    """
    if retained:
        return said.status not in _GONE
    if known is None or said.status != "lost" or known.away_since is not None:
        return False
    before = known.state
    return (said.store, said.starts) == (before.store, before.starts) and said.n < before.n


def _is_old(said: AgentState, before: AgentState) -> bool:
    """A message that was overtaken, or the will of a connection long gone. A connection that has
    ended says no more: its number is not used again.
    """
    if _pair(said) != _pair(before):
        return _pair(said) < _pair(before)
    return before.status in _GONE and said.status not in _GONE


def _pair(said: AgentState) -> _Pair:
    return said.starts, said.n


def _another(known: Known, said: AgentState, now: float, *, retained: bool) -> Known | None:
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
    return _after(fresh, said, now, retained=retained)


def _boots_differ(said: AgentState, before: AgentState) -> bool:
    return bool(said.boot and before.boot and said.boot != before.boot)


def _after(known: Known, said: AgentState, now: float, *, retained: bool) -> Known:
    """Its clock is not compared: a broker delivers what was said long ago. A will is the broker's
    word, and the agent is not seen by it.
    """
    if said.status in _GONE:
        seen = now if said.status == "offline" and not retained else known.seen_at
        away = known.away_since or now
        return replace(known, state=said, seen_at=seen, away_since=away, asked_at=None)
    if retained:
        return replace(known, state=said, away_since=known.away_since or _unseen(known, now))
    return replace(known, state=said, seen_at=now, away_since=None, asked_at=None)


def _unseen(known: Known, now: float) -> float | None:
    return None if known.seen_at else now


def asked(known: Known, now: float) -> Known:
    """Return the belief once a ping was sent: whether the agent is there is unknown."""
    return known if known.away_since is not None else replace(known, asked_at=now)


def answered(known: Known, clock: float, now: float) -> Known:
    """Return the belief after the agent told its clock's time, which no broker keeps."""
    return replace(known, seen_at=now, away_since=None, asked_at=None, clock_offset=now - clock)


def beaten(known: Known, beat: Heartbeat, now: float) -> Known:
    """Return the belief after a heartbeat of the agent."""
    return replace(answered(known, beat.clock, now), beat=beat)


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
    """An agent that has missed its heartbeats, or has not answered; None where it is well, or
    known to be away. While nobody was there to hear it, it has missed nothing: then it is away
    since it was asked.
    """
    since, patience = known.seen_at, away_after
    if known.asked_at is not None:
        since, patience = known.asked_at, min(ANSWER, away_after)
    if known.away_since is not None or now - since <= patience:
        return None
    return replace(known, away_since=since, asked_at=None)


def may_work(known: Known) -> bool:
    """Whether jobs may be offered to it now."""
    there = known.away_since is None and known.asked_at is None
    ready = known.state.status == "ready" and there
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


def describe(known: Known, *, drained: bool, now: float, admitted: bool = True) -> str:
    """One word for its state."""
    if not admitted:
        return "unadmitted"
    if known.quarantine:
        return "quarantined"
    if known.away_since is not None:
        return "away"
    if known.came_at is not None and now - known.came_at < CONTEST:
        return "new"
    return "draining" if drained else known.state.status
