"""Clients that speak as agents and are not admitted: `flowerpower agents --unknown` shows them.

Bounded: what is not shown of a flood of names is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from fp_async.job_values import moment
from fp_async.jobs import Member
from fp_async.messages import AgentState

if TYPE_CHECKING:
    from fp_async.stores import Store

_KIND = "stranger"
_MOST = 200
_TAGS = 20
_LETTERS = 64
_DAY = 86_400.0
_OFTEN = 60.0  # seconds after which one that goes on speaking is written again


class Stranger(msgspec.Struct, frozen=True):
    """A client that speaks as an agent and is not admitted. `messages` were heard since
    `first_seen_at`; version and tags are what it says of itself. Times are datetimes in UTC.
    """

    name: str
    first_seen_at: datetime | None
    seen_at: datetime | None
    messages: int
    version: str
    tags: dict[str, str]


class _Heard(msgspec.Struct):
    """One of them as a member of the store keeps it; times are seconds since 1970."""

    first: float
    last: float
    messages: int = 0
    version: str = ""
    tags: dict[str, str] = {}


class Strangers:
    """The clients without admission that a gateway has heard within a day."""

    def __init__(self) -> None:
        self._heard: dict[str, _Heard] = {}
        self._written: dict[str, float] = {}

    def note(self, name: str, now: float, said: AgentState | None = None) -> bool:
        """Note a message of one; return whether its name is new, and kept."""
        new = name not in self._heard
        if new and len(self._heard) >= _MOST and not self._made_room(now):
            return False  # one that takes another name for each message fills no store and no log
        each = self._heard.setdefault(name, _Heard(now, now))
        each.last, each.messages = now, each.messages + 1
        if said is not None:
            each.version, each.tags = said.version[:_LETTERS], _some(said.tags)
        return new

    def _made_room(self, now: float) -> bool:
        oldest = min(self._heard, key=lambda each: self._heard[each].last)
        if now - self._heard[oldest].last < _DAY:
            return False
        del self._heard[oldest]
        self._written.pop(oldest, None)
        return True

    def forget(self, admitted: Mapping[str, object]) -> None:
        """Forget the names that are admitted; all of them, where nothing is listed."""
        for name in [each for each in self._heard if not admitted or each in admitted]:
            del self._heard[name]
            self._written.pop(name, None)

    def changed(self) -> list[Member]:
        """Return the rows that are to be written; they count as written then."""
        due = [
            name
            for name, each in self._heard.items()
            if each.last - self._written.get(name, 0.0) > _OFTEN
        ]
        for name in due:
            self._written[name] = self._heard[name].last
        return [
            Member(kind=_KIND, name=name, info=msgspec.json.encode(self._heard[name]))
            for name in due
        ]


def _some(tags: dict[str, str]) -> dict[str, str]:
    return {tag[:_LETTERS]: value[:_LETTERS] for tag, value in list(tags.items())[:_TAGS]}


async def write(store: Store, rows: list[Member]) -> None:
    """Write the rows, which expire after a day."""
    for row in rows:
        await store.saw(row, _DAY)


async def known(store: Store, admitted: Mapping[str, object]) -> list[Stranger]:
    """Return the clients of the last day that are not admitted, by name."""
    found = []
    for member in await store.members(_KIND):
        if admitted and member.name not in admitted:
            each = msgspec.json.decode(member.info, type=_Heard)
            times = moment(each.first), moment(each.last)
            found.append(Stranger(member.name, *times, each.messages, each.version, each.tags))
    return found
