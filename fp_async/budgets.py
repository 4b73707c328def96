"""How much one agent may ask of a gateway and its store, so that none hurts the others. Pure.

A budget is a bucket: so much at once, then so much a second. What is above it is dropped where an
agent says it again by itself or it makes no row, and waits on the device otherwise. Times are
seconds of one monotonic clock.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, NamedTuple

What = Literal[
    "messages",
    "signs",
    "bytes",
    "outcomes",
    "strays",
    "letters",
    "letter bytes",
    "progress",
    "states",
    "schedules",
    "pings",
    "versions",
]


class Rate(NamedTuple):
    """So much at once, then so much a second."""

    burst: float
    second: float


# An outbox of a device (64 MiB, and of small outcomes as many as fit into it) may come at once.
RATES: dict[What, Rate] = {
    "messages": Rate(2_000, 1_000.0),  # each has many outcomes where many wait
    "signs": Rate(2_000, 2_000.0),  # of life and of progress, at QoS 0: they may be lost
    "bytes": Rate(80 * 2**20, 4.0 * 2**20),
    "outcomes": Rate(200_000, 500.0),  # of jobs that began on the device: each makes a row
    "strays": Rate(2_000, 20.0),  # of jobs that it neither has nor began
    "letters": Rate(1_000, 100 / 3_600.0),  # what a backup of the center does not know, say
    "letter bytes": Rate(8 * 2**20, 8 * 2**20 / 86_400.0),
    "progress": Rate(500, 50.0),
    "states": Rate(50, 2.0),  # who it is
    "schedules": Rate(2_000, 10.0),  # states of them, pages of what it holds
    "pings": Rate(20, 2.0),
    "versions": Rate(1, 1 / 3_600.0),  # letters about messages of another version of the protocol
}
PENDING_BYTES = 12 * 2**20  # parts of results whose outcome has not come
_PARTS = 64  # results of which there are some
_AGENTS = 20_000  # of which something is remembered
_TOLD_AGAIN = 3_600.0
COMPARISON = 50  # states of schedules that a comparison of all of them counts as


class Bucket:
    """What is left of one budget."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate, self._left, self._at = rate, rate.burst, now

    def take(self, number: float, now: float) -> bool:
        """Return whether so much is left, which then is taken. More than there can be is taken
        from a full bucket, which is empty for so much longer.
        """
        self._fill(now)
        if self._left < min(number, self._rate.burst):
            return False
        self._left -= number
        return True

    def wait(self, number: float, now: float) -> float:
        """Return the seconds until so much is there."""
        self._fill(now)
        return max(min(number, self._rate.burst) - self._left, 0.0) / self._rate.second

    def _fill(self, now: float) -> None:
        gained = max(now - self._at, 0.0) * self._rate.second
        self._left, self._at = min(self._left + gained, self._rate.burst), now


class Budgets:
    """The budgets of all agents, by name."""

    def __init__(self, rates: dict[What, Rate] | None = None) -> None:
        self._rates = RATES | (rates or {})
        self._of: OrderedDict[str, dict[What, Bucket]] = OrderedDict()
        self._told: OrderedDict[tuple[str, str], float] = OrderedDict()

    def take(self, agent: str, what: What, now: float, number: float = 1) -> bool:
        """Return whether an agent may have so much more, which then counts."""
        return self._bucket(agent, what, now).take(number, now)

    def wait(self, agent: str, what: What, now: float, number: float = 1) -> float:
        """Return the seconds after which an agent may have so much."""
        return self._bucket(agent, what, now).wait(number, now)

    def _bucket(self, agent: str, what: What, now: float) -> Bucket:
        own = self._of.get(agent)
        if own is None:
            own = self._of[agent] = {}
            if len(self._of) > _AGENTS:
                self._of.popitem(last=False)
        else:
            self._of.move_to_end(agent)
        if what not in own:
            own[what] = Bucket(self._rates[what], now)
        return own[what]

    def is_news(self, agent: str, what: str, now: float, every: float = _TOLD_AGAIN) -> bool:
        """Return whether it was not told for so long that an agent is above a budget."""
        last = self._told.get((agent, what))
        if last is not None and now - last < every:
            return False
        self._told[agent, what] = now
        self._told.move_to_end((agent, what))
        if len(self._told) > _AGENTS:
            self._told.popitem(last=False)
        return True


class Parts:
    """The parts of results that one agent has sent and whose outcomes have not come."""

    def __init__(self, most: int = PENDING_BYTES) -> None:
        self._most = most
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def add(self, id: str, size: int) -> list[str]:
        """Note a part; return the ids of results to forget for it, the oldest first."""
        self._sizes[id] = self._sizes.get(id, 0) + size
        self._sizes.move_to_end(id)
        gone: list[str] = []
        while sum(self._sizes.values()) > self._most or len(self._sizes) > _PARTS:
            gone.append(self._sizes.popitem(last=False)[0])
        return gone

    def forget(self, id: str) -> None:
        """Note that none of a result's parts are kept any more."""
        self._sizes.pop(id, None)
