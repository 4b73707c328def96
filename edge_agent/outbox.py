"""Which outcomes to tell next: what has just ended, and what has waited since the network went.

Pure. While a backlog drains both have a half of the window, so that nothing new waits behind a
backlog, and no backlog is starved by what is new. What is not acknowledged in time is told again.
"""

from __future__ import annotations

from collections.abc import Iterable

_MOST_HELD = 2_000  # more of them are told again sooner
WINDOW = 400  # outcomes that are under way and not acknowledged
_FIRST_PATIENCE, _LONGEST_PATIENCE = 5.0, 60.0


class Outbox:
    """Times are seconds of one monotonic clock. `backlog` says that old rows may be waiting."""

    def __init__(self, window: int = WINDOW) -> None:
        self.backlog = True
        self._window = window
        self._live: dict[str, None] = {}
        self._taken: set[str] = set()  # of the live ones: to be told now
        self._under_way: dict[str, float] = {}
        self._old: set[str] = set()  # of those under way: from the backlog
        self._tried: dict[str, int] = {}
        self._held: dict[str, float] = {}  # the center has no room for these, until then

    def __repr__(self) -> str:
        return f"<Outbox live={len(self._live)} under_way={len(self._under_way)}>"

    @property
    def under_way(self) -> frozenset[str]:
        """Told and not acknowledged yet, or not to be told now."""
        return frozenset(self._under_way) | self._held.keys()

    @property
    def held(self) -> int:
        """The number of outcomes that the center has no room for."""
        return len(self._held)

    @property
    def waits(self) -> bool:
        """Whether something may be told now."""
        live = bool(self._live) and self.room(live=True) > 0
        return live or (self.backlog and self.room(live=False) > 0)

    def reset(self) -> None:
        """A new connection: what was under way may be lost."""
        for each in (self._under_way, self._tried, self._old, self._taken, self._held):
            each.clear()
        self.backlog = True

    def ended(self, ids: Iterable[str]) -> None:
        """These have come to an end just now."""
        for id in ids:
            if id not in self._under_way:
                self._live[id] = None
        if len(self._live) > 4 * self._window:  # they are rows: the backlog finds them
            self._live.clear()
            self.backlog = True

    def room(self, *, live: bool) -> int:
        """How many more may be under way of what is new, or of the backlog."""
        half, old = self._window // 2, len(self._old)
        if not live:
            return max(half - old, 0)
        new = len(self._under_way) - old
        return max(self._window - (half if self.backlog else old) - new, 0)

    def take_live(self) -> list[str]:
        """The ids to look up and tell next, of those that have just ended."""
        ids = list(self._live)[: self.room(live=True)]
        for id in ids:
            del self._live[id]
        self._taken = set(ids)
        return ids

    def told(self, id: str, now: float) -> None:
        """It is under way from now on."""
        if id not in self._taken:
            self._old.add(id)
        self._live.pop(id, None)
        tries = self._tried.get(id, 0)
        self._tried[id] = tries + 1
        patience = min(_FIRST_PATIENCE * 2.0 ** min(tries, 10), _LONGEST_PATIENCE)
        self._under_way[id] = now + patience

    def acknowledged(self, ids: Iterable[str]) -> None:
        """They are stored where they belong."""
        for id in ids:
            self._under_way.pop(id, None)
            self._old.discard(id)
            self._tried.pop(id, None)
            self._live.pop(id, None)
            self._held.pop(id, None)

    def again(self) -> None:
        """Tell again all that is under way, as the center has not heard it."""
        self._under_way.clear()
        self._old.clear()
        self.backlog = True

    def hold(self, ids: Iterable[str], until: float) -> None:
        """Tell these no more until then."""
        for id in ids:
            self._under_way.pop(id, None)
            self._old.discard(id)
            self._live.pop(id, None)
            if len(self._held) < _MOST_HELD:
                self._held[id] = until
        self.backlog = True  # what stood behind them

    def overdue(self, now: float) -> bool:
        """Take back what was not acknowledged in time; whether there was something."""
        late = [id for id, until in self._under_way.items() if until <= now]
        for id in late:
            del self._under_way[id]
            self._old.discard(id)
        freed = [id for id, until in self._held.items() if until <= now]
        for id in freed:
            del self._held[id]
        self.backlog = self.backlog or bool(late or freed)
        return bool(late or freed)

    def next_due(self) -> float | None:
        """When something has to be told again, unless it is acknowledged before."""
        soonest = (min(each.values()) for each in (self._under_way, self._held) if each)
        return min(soonest, default=None)
