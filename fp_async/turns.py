"""Queues of which each has its turn: what many say over one connection. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """A bounded queue for each name, and one item of each in its turn.

    `each_bytes` and `each` bound the queue of one name, `all_bytes` all of them together.
    """

    def __init__(self, each: int, each_bytes: int, all_bytes: int) -> None:
        self._each, self._each_bytes, self._all_bytes = each, each_bytes, all_bytes
        self._queues: OrderedDict[str, deque[tuple[T, int]]] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._size = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __repr__(self) -> str:
        return f"<Turns {len(self)} items of {len(self._queues)} names, {self._size:,} bytes>"

    def put(self, name: str, item: T, size: int, *, bounded: bool = True) -> bool:
        """Put it last in the queue of a name; return whether there was room for it.

        What must not be refused is not `bounded`, but counts.
        """
        if bounded and not self._has_room(name, size):
            return False
        self._queues.setdefault(name, deque()).append((item, size))
        self._sizes[name] = self._sizes.get(name, 0) + size
        self._size += size
        return True

    def _has_room(self, name: str, size: int) -> bool:
        queue = self._queues.get(name)
        if queue is None:  # the first of a name waits behind nothing of its own
            return self._size < self._all_bytes
        own = self._sizes[name] + size
        return (
            len(queue) < self._each
            and own <= self._each_bytes
            and self._size + size <= self._all_bytes
        )

    def take(self, most: int, most_bytes: int) -> list[T]:
        """Take up to so many items of each name, one of each in its turn, until together they have
        so many bytes; one at least, where there is one. Who was not asked is asked first next time.
        """
        found: list[T] = []
        size = 0
        for _ in range(most):
            for name in list(self._queues):
                own = self._queues[name][0][1]
                if found and size + own > most_bytes:
                    return found
                size += own
                found.append(self._next(name))
            if not self._queues:
                break
        return found

    def _next(self, name: str) -> T:
        queue = self._queues[name]
        item, size = queue.popleft()
        self._size -= size
        self._sizes[name] -= size
        if queue:
            self._queues.move_to_end(name)
        else:
            del self._queues[name], self._sizes[name]
        return item
