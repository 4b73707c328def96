"""What is told of nodes: to progress displays, to traces, and to the Hamilton UI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from fp_async.errors import describe


class NodeEvent(msgspec.Struct, frozen=True):
    """Something that happened to a node, for progress displays.

    `status` is started, succeeded, failed, cancelled or retrying; `seconds` since its start, which
    was `at` (epoch seconds; 0 where that is not known). For an observer, `summary` is a text about
    its value; `place` is where it ran, if on a cluster.
    """

    node: str
    status: str
    seconds: float = 0.0
    error: str = ""
    at: float = 0.0
    summary: str = ""
    place: str = ""


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
