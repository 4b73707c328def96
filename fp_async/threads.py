"""Worker threads for sync nodes: cheap to hand work to, and never in the way of an exit.

Not `concurrent.futures` and not `anyio.to_thread`: both join their threads when the interpreter
ends, so that one abandoned node that hangs would keep the process alive; and a hop through
either costs a future and a context per call, where a run needs one per chain of nodes.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

from fp_async.awaitables import awaitable, close
from fp_async.errors import FlowerPowerError
from fp_async.runtime.node_thread import NodeThread

Work = Callable[[], None]
_here = threading.local()


def default_limit() -> int:
    """As `concurrent.futures` has it: enough for waiting nodes on a small machine."""
    return min(32, (os.cpu_count() or 1) + 4)


class Threads:
    """At most `limit` daemon threads that take work in order and end when idle.

    Work must not raise: whoever submits it handles its own errors.
    """

    def __init__(self, limit: int | None = None, *, idle_seconds: float = 10.0) -> None:
        self.limit: int = limit or default_limit()
        self._idle_seconds = idle_seconds
        self._work: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._alive = 0
        self._free = 0  # threads that wait, less the work that they have been promised to
        _all.add(self)

    def submit(self, work: Work) -> None:
        """Have `work` called in a thread, as soon as one of the `limit` is free.

        A run inside a node gets a thread beyond the limit: its own thread waits for it. Raises
        FlowerPowerError where the system has no thread left to give.
        """
        with self._lock:
            if self._free <= 0 and (self._alive < self.limit or _waits_here()):
                self._start()
            self._free -= 1
            self._work.put(work)  # under the lock, or the thread counted on may retire before it

    def _start(self) -> None:
        try:
            NodeThread(target=self._serve, name="fp-node").start()
        except RuntimeError as error:
            if not self._alive:
                raise FlowerPowerError(f"no thread can be started: {error}") from error
            return  # those that are there will come to it
        self._alive += 1
        self._free += 1

    def forget(self) -> None:
        """Begin anew in a forked child, to which no thread has come along."""
        self._work = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._alive = self._free = 0

    def _serve(self) -> None:
        _here.serves = True
        while True:
            try:
                work = self._work.get(timeout=self._idle_seconds)
            except queue.Empty:
                if self._retire():
                    return
                continue
            work()
            del work
            with self._lock:
                self._free += 1

    def _retire(self) -> bool:
        """Leave unless work was put at this very moment."""
        with self._lock:
            if not self._work.empty():
                return False
            self._alive -= 1
            self._free -= 1
            return True

    def __repr__(self) -> str:
        return f"<Threads alive={self._alive} free={self._free} limit={self.limit}>"


_all: weakref.WeakSet[Threads] = weakref.WeakSet()


def _forget_all() -> None:
    for threads in _all:
        threads.forget()


os.register_at_fork(after_in_child=_forget_all)


def _waits_here() -> bool:
    """Whether this is a worker thread in which a node runs an event loop of its own."""
    return hasattr(_here, "serves") and asyncio._get_running_loop() is not None


async def in_thread(threads: Threads, function: Callable[[], Any]) -> Any:
    """Call `function` in a thread, in a copy of this context, and await its outcome.

    Cancelling abandons the thread: its outcome is discarded, its slot is busy until it ends.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: Any, error: BaseException | None) -> None:
        if outcome.done():
            if awaitable(value):  # nobody will await it
                close(value)
            return
        if isinstance(error, StopIteration):  # a future refuses it
            error = RuntimeError(f"raised {error!r}")
        if error is None:
            outcome.set_result(value)
        else:
            outcome.set_exception(error)

    def work() -> None:
        try:
            value, error = context.run(function), None
        except BaseException as raised:
            value, error = None, raised
        try:
            loop.call_soon_threadsafe(settle, value, error)
        except RuntimeError:  # the loop is closed: nobody waits any more
            if awaitable(value):
                close(value)

    threads.submit(work)
    return await outcome
