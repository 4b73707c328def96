"""What the gateway logs of agents that come and go, of jobs that wait there, and of dead letters.

One line each, and one for many of a kind that come at once.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator

from fp_async.jobs import Letter

log: logging.Logger = logging.getLogger("fp_async.gateway")
_SINGLY = 5  # of a kind at once


class GatewayLog:
    """Lines that are to be logged, until `tell` does so."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._changes: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        self._waits: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        self._letters: list[Letter] = []

    def knew(self, name: str, state: str) -> None:
        """Note the state in which this gateway or another one last heard an agent."""
        self._states[name] = state

    def sees(self, name: str, state: str) -> None:
        """Note the present state of an agent."""
        before = self._states.get(name, "unknown")
        if before != state:
            self._states[name] = state
            self._changes[before, state].append(name)

    def forgets(self, name: str) -> None:
        """Note that an agent was forgotten."""
        if (before := self._states.pop(name, None)) is not None:
            self._changes[before, "forgotten"].append(name)

    def waits(self, agent: str, id: str, reason: str) -> None:
        """A job waits on an agent, and why."""
        self._waits[agent, reason].append(id)

    def buried(self, letters: Iterable[Letter]) -> None:
        """Messages of which nothing is made."""
        self._letters += letters

    def tell(self) -> None:
        """Log all of it."""
        for text in self.lines():
            log.info("%s", text)

    def lines(self) -> Iterator[str]:
        """Yield the lines to be logged, and forget them."""
        yield from self._moved()
        for (agent, reason), ids in self._waits.items():
            jobs = f"job {ids[0]} waits" if len(ids) == 1 else f"{len(ids)} jobs wait"
            yield f"agent '{agent}': {jobs}: {reason}"
        self._waits.clear()
        for letter in self._letters[:_SINGLY]:
            yield f"dead letter on {letter.topic}: {letter.reason}"
        if (more := len(self._letters) - _SINGLY) > 0:
            yield f"{more} more dead letters; see: flowerpower letters"
        self._letters.clear()

    def _moved(self) -> Iterator[str]:
        for (before, after), names in self._changes.items():
            if len(names) <= _SINGLY:
                yield from (f"agent '{name}' is {after} (was {before})" for name in names)
            else:
                first = ", ".join(names[:_SINGLY])
                yield f"{len(names)} agents are {after} (were {before}): {first} ..."
        self._changes.clear()
