"""What is told of nodes: to progress displays, to traces, and to the Hamilton UI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from fp_async.errors import describe


class NodeEvent(msgspec.Struct, frozen=True):
    """Something that happened to a node, for progress displays.

    `status` is started, succeeded, failed, cancelled or retrying; `seconds` since its start, which
    was `at` (epoch seconds; 0 where that is not known). For an observer, `summary` is a text about
    its value; `place` is where it ran, if on a cluster.

    Of a node that runs for each of `items` items (0: that is not known) `item` is the number of
    this one, from 0; `count` are the ends that a summary stands for (`Repeats`). `cached` of its
    values were taken from the cache.
    """

    node: str
    status: str
    seconds: float = 0.0
    error: str = ""
    at: float = 0.0
    summary: str = ""
    place: str = ""
    pause: float | None = None  # seconds before one that is retrying is tried again
    item: int | None = None
    items: int | None = None
    count: int = 1
    cached: int = 0


Tell = Callable[[NodeEvent], None]


class Repeats:
    """Sums up the ends of nodes that run once for each item: one event for all that succeeded, one
    for all that were cancelled. What failed, or is tried again, is told by itself, as is the end of
    any other node.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._sums: dict[str, dict[str, NodeEvent]] = {}  # by node and status
        self._failed: dict[str, int] = {}

    def __call__(self, event: NodeEvent) -> None:
        """Take an event; the sums of a node follow when all of its items have ended."""
        if event.items is None or event.status in ("started", "retrying"):
            self._tell(event)
            return
        sums = self._sums.setdefault(event.node, {})
        if event.status == "failed":
            self._tell(event)
            self._failed[event.node] = self._failed.get(event.node, 0) + 1
        else:
            known = sums.get(event.status)
            sums[event.status] = event if known is None else _sum(known, event)
        ended = self._failed.get(event.node, 0) + sum(each.count for each in sums.values())
        if ended == event.items:
            self._flush(event.node)

    def flush(self) -> None:
        """Tell the sums of what was cut."""
        for node in list(self._sums):
            self._flush(node)

    def _flush(self, node: str) -> None:
        self._failed.pop(node, None)
        for each in self._sums.pop(node).values():
            self._tell(replace(each, item=None))


def _sum(some: NodeEvent, more: NodeEvent) -> NodeEvent:
    """From the first begin to the last end."""
    began = min(some.at, more.at)
    ended = max(some.at + some.seconds, more.at + more.seconds)
    count, cached = some.count + more.count, some.cached + more.cached
    return replace(some, at=began, seconds=ended - began, count=count, cached=cached)


class NodeObserver(msgspec.Struct, frozen=True):
    """Has events say when nodes began, and something of their values (`describe`).

    `tell` is called with each where it happens, in whatever thread that is, and must not raise:
    waking the loop for each costs more than a small node.
    """

    describe: Callable[[Any], str]
    tell: Callable[[NodeEvent], None] | None = None

    def before(
        self, others: Callable[[NodeEvent], None] | None
    ) -> Callable[[NodeEvent], None] | None:
        """`tell` and then others, where nodes are called elsewhere and only told of."""
        tell = self.tell
        if tell is None or others is None:
            return tell or others

        def both(event: NodeEvent) -> None:
            tell(event)
            others(event)

        return both


def ended(
    name: str,
    seconds: float,
    value: Any,
    error: BaseException | None,
    observer: NodeObserver | None,
) -> NodeEvent:
    """The event for the end of a node."""
    status, text = "succeeded", ""
    if error is not None:
        cut = isinstance(error, asyncio.CancelledError)
        status, text = ("cancelled", "") if cut else ("failed", describe(error))
    summary = observer.describe(value) if observer and error is None else ""
    return NodeEvent(name, status, seconds, text, time.time() - seconds, summary)
