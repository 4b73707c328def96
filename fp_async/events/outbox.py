"""What is on its way to other processes, and the messages it goes in."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Iterator

EVERYTHING = "*"
MESSAGE_LIMIT = 4_000  # bytes; PostgreSQL takes 7,999
TOPIC_LIMIT = 500  # bytes
WAITING_LIMIT = 10_000  # topics that wait to be sent, or to be heard by one listener
_MARK = "fp-wake-1 "


class Outbox:
    """Topics on their way to the broker: in order, each once, at most `WAITING_LIMIT`.

    Beyond that `*` stands for all of them. `take` hands out one message; `done` says that the
    broker has it; what was taken and never done is sent again by the next connection.
    """

    def __init__(self, sender: str = "") -> None:
        self.sender: str = sender or secrets.token_hex(8)
        self._waiting: dict[str, None] = {}
        self._taken: list[str] = []
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()

    def put(self, topics: Iterable[str]) -> None:
        """Add topics. Never blocks."""
        if EVERYTHING in self._waiting:
            return
        self._waiting.update(dict.fromkeys(topics))
        if len(self._waiting) > WAITING_LIMIT or EVERYTHING in self._waiting:
            self._waiting = {EVERYTHING: None}
        if self._waiting:
            self._filled.set()
            self._emptied.clear()

    async def take(self) -> str:
        """Wait for topics and join the oldest of them to one message."""
        await self._filled.wait()
        self._taken = list(batch(self._waiting, MESSAGE_LIMIT - 64))
        for topic in self._taken:
            del self._waiting[topic]
        if not self._waiting:
            self._filled.clear()
        return packed(self.sender, self._taken)

    def done(self) -> None:
        """What was taken is with the broker."""
        self._taken = []
        if not self._waiting:
            self._emptied.set()

    def restore(self) -> None:
        """What was taken is not with the broker: it waits again, as the oldest."""
        later, self._waiting = self._waiting, {}
        taken, self._taken = self._taken, []
        self.put((*taken, *later))

    async def emptied(self) -> None:
        """Wait until the broker has everything."""
        await self._emptied.wait()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._taken)


def batch(topics: Iterable[str], limit: int) -> Iterator[str]:
    """The first of `topics` that fit into `limit` bytes, at least one."""
    size = 0
    for topic in topics:
        size += min(len(topic.encode(errors="replace")), TOPIC_LIMIT) + 1
        if size > limit:
            return
        yield topic


def packed(sender: str, topics: Iterable[str]) -> str:
    """One message. A topic that no peer would accept is sent as `*`."""
    lines = (topic if acceptable(topic) else EVERYTHING for topic in topics)
    return "\n".join((_MARK + sender, *dict.fromkeys(lines)))


def unpacked(message: bytes | str, own: str) -> list[str]:
    """The topics of a peer's message; nothing for one of our own, or one that is malformed."""
    if len(message) > MESSAGE_LIMIT:
        return []
    try:
        text = message if isinstance(message, str) else message.decode()
    except UnicodeDecodeError:
        return []
    head, *topics = text.split("\n")
    if not head.startswith(_MARK) or head == _MARK + own or not all(map(acceptable, topics)):
        return []
    return topics


def acceptable(topic: str) -> bool:
    """Whether a topic is short, printable and not empty."""
    return topic.isprintable() and 0 < len(topic.encode()) <= TOPIC_LIMIT
