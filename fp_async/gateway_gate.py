"""What the gateway hears next, and what it does not hear: one connection carries all agents.

What is above the budget of an agent is dropped before it is read, and the agent is told to be slow:
an outcome is a row there, and is told again. What is left waits in a queue for each agent, and each
queue has its turn. All is acknowledged to the broker in the order in which it came.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fp_async import wire
from fp_async.link import Message as Heard
from fp_async.messages import PAGE, Slow
from fp_async.turns import Turns

if TYPE_CHECKING:
    from fp_async.budgets import What
    from fp_async.gateway import Gateway
    from fp_async.link import Connection

log: logging.Logger = logging.getLogger("fp_async.gateway")
_READ = 500  # messages at once
_EACH = 500  # messages that wait of one agent, which sends one and waits for the broker's answer
_EACH_BYTES = 8 * 2**20
_ALL_BYTES = 32 * 2**20
_TURNS = 100  # messages of one agent in a batch
_BATCH_BYTES = 262_144
_SHORTEST, _LONGEST = 1.0, 60.0  # seconds that an agent is told to wait
_AGENTS = 20_000
_TRIGGERS = ""  # the queue of all that no agent says


class Gate:
    """What has come over one connection and is not handled yet."""

    def __init__(self, gateway: Gateway, connection: Connection) -> None:
        self._gateway = gateway
        self._connection = connection
        self._turns: Turns[Heard] = Turns(_EACH, _EACH_BYTES, _ALL_BYTES)
        self._order: dict[int, tuple[Heard, bool]] = {}  # by packet, and whether it is handled
        self._news = asyncio.Event()
        self._unseen: set[str] = set()  # of whom a state was dropped
        self._slow_until: dict[str, float] = {}

    async def read(self) -> None:
        """Take what comes, until the connection is lost."""
        while True:
            for message in await self._connection.receive(_READ):
                self._enter(message, time.monotonic())
            self._acknowledge()
            self._news.set()
            await asyncio.sleep(0)  # more may have come: others have their turn all the same

    async def batch(self) -> Sequence[Heard]:
        """Wait for messages; some of each agent that has sent any."""
        while not self._turns:
            self._news.clear()
            await self._news.wait()
        return self._turns.take(_TURNS, _BATCH_BYTES)

    def handled(self, messages: Sequence[Heard]) -> None:
        """Note that all of these is in the store: the broker need not deliver it again."""
        for message in messages:
            self._done(message)
        self._acknowledge()

    def _done(self, message: Heard) -> None:
        if message.qos:
            self._order[message.packet] = message, True

    def _acknowledge(self) -> None:
        while self._order:
            packet = next(iter(self._order))
            message, done = self._order[packet]
            if not done:
                return
            del self._order[packet]
            self._connection.acknowledge(message)

    # Letting in -------------------------------------------------------------------------------

    def _enter(self, message: Heard, now: float) -> None:
        if message.qos:
            self._order[message.packet] = message, False
        size = len(message.payload)
        match self._gateway.topics.parsed(message.topic):
            case ("agent", name, "report"):
                let_in = self._may_report(name, size, message, now)
            case ("agent", name, "state") if message.payload and not message.retained:
                let_in = self._may_show(name, now) and self._put(name, message)
            case ("agent", name, "state"):
                let_in = self._put(name, message)
            case _:  # never told again: what bounds it is what the broker may send at once
                let_in = self._turns.put(_TRIGGERS, message, size, bounded=not message.qos)
        if not let_in:
            self._done(message)

    def _may_report(self, name: str, size: int, message: Heard, now: float) -> bool:
        if not message.qos:
            return self._may(name, "signs", now) and self._put(name, message)
        if not (self._may(name, "messages", now) and self._may(name, "bytes", now, size)):
            budgets = self._gateway.budgets
            left = max(budgets.wait(name, "messages", now), budgets.wait(name, "bytes", now, size))
            self.slow(name, left, "it sends too much")
            return False
        if self._put(name, message):
            return True
        self._gateway.drop(name, "queued", now)
        self.slow(name, _SHORTEST, "it sends faster than the center stores it")
        return False

    def _may_show(self, name: str, now: float) -> bool:
        if self._may(name, "states", now):
            return True
        if len(self._unseen) < _AGENTS:
            self._unseen.add(name)
        return False

    def is_unseen(self, name: str) -> bool:
        """Return whether a state of an agent was dropped, and one more can be heard now: once."""
        if name not in self._unseen or self._gateway.budgets.wait(name, "states", time.monotonic()):
            return False
        self._unseen.discard(name)
        return True

    def _put(self, name: str, message: Heard) -> bool:
        return self._turns.put(name or "?", message, len(message.payload))

    def _may(self, name: str, what: What, now: float, number: float = 1) -> bool:
        return self._gateway.may(name, what, now, number)

    # Answering --------------------------------------------------------------------------------

    def slow(self, name: str, seconds: float, why: str) -> None:
        """Have an agent wait with all that it tells, unless it does so already."""
        now = time.monotonic()
        if now < self._slow_until.get(name, 0.0):
            return
        if len(self._slow_until) >= _AGENTS:
            self._slow_until.clear()
        seconds = min(max(seconds, _SHORTEST), _LONGEST)
        self._slow_until[name] = now + seconds
        self._tell(name, Slow(seconds=round(seconds, 1), reason=why))

    def hold(self, name: str, ids: Sequence[str], seconds: float, why: str) -> None:
        """Have an agent keep these outcomes for so long, and tell the others."""
        seconds = round(max(seconds, _LONGEST), 1)
        for start in range(0, len(ids), PAGE):
            self._tell(name, Slow(seconds=seconds, ids=list(ids[start : start + PAGE]), reason=why))

    def _tell(self, name: str, body: Slow) -> None:
        topic = self._gateway.topics.agent(name, "do")
        self._connection.publish_soon(topic, wire.encode(body), qos=1, expiry=60)
