"""Between Hamilton's threads and the caller's event loop, during one run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from fp_async.awaitables import close
from fp_async.node_events import NodeEvent

log: logging.Logger = logging.getLogger("fp_async")
Tell = Callable[[NodeEvent], None]
_Future = concurrent.futures.Future[Any]


class StopError(Exception):
    """Carries past Hamilton what a node raised that is no Exception: it only handles those."""

    def __init__(self, carried: BaseException) -> None:
        super().__init__(repr(carried))
        self.carried = carried


class Bridge:
    """Lets Hamilton's threads await on the caller's loop, and tells it what they do.

    After `stop` nothing is begun any more: whoever asks gets CancelledError.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, progress: Tell | None = None) -> None:
        self._loop = loop
        self._progress = progress
        self._tasks: set[asyncio.Task[Any]] = set()
        self._places: dict[object, str] = {}
        self._lock = threading.Lock()
        self._stopped = False

    # In threads -----------------------------------------------------------------------------

    def check(self) -> None:
        if self._stopped:
            raise concurrent.futures.CancelledError

    def wait(self, value: Any) -> Any:
        """The outcome of an awaitable, which is awaited on the loop."""
        future: _Future = concurrent.futures.Future()
        with self._lock:  # after `stop` the loop may be closed
            if self._stopped:
                close(value)
            self.check()
            self._loop.call_soon_threadsafe(self._begin, value, future)
        return future.result()

    @contextmanager
    def occupied(self, name: str) -> Iterator[None]:
        """In this block the code of a node occupies this thread."""
        place = object()
        self._places[place] = name
        try:
            yield
        finally:
            del self._places[place]

    @property
    def is_here(self) -> bool:
        """Return whether the calling thread is the loop's, which must not wait."""
        return asyncio._get_running_loop() is self._loop

    @property
    def running(self) -> tuple[str, ...]:
        """The nodes whose code occupies a thread."""
        return tuple(sorted(set(self._places.values())))

    # On the loop ----------------------------------------------------------------------------

    def _begin(self, value: Any, future: _Future) -> None:
        if self._stopped:
            close(value)
            future.set_exception(concurrent.futures.CancelledError())
            return
        task = self._loop.create_task(_await(value))
        self._tasks.add(task)
        task.add_done_callback(partial(self._settle, value, future))

    def _settle(self, value: Any, future: _Future, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            if inspect.iscoroutine(value):  # cancelled before it had begun
                value.close()
            future.set_exception(concurrent.futures.CancelledError())
        elif error := task.exception():
            future.set_exception(error)
        else:
            future.set_result(task.result())

    def deliver(self, event: NodeEvent) -> None:
        """Call the progress callback; one that fails is not called again."""
        if self._progress is None:
            return
        try:
            self._progress(event)
        except Exception:
            log.exception("the progress callback failed; the run goes on without events")
            self._progress = None

    async def stop(self) -> None:
        """Cancel what is awaited here, and wait for its end, even when cancelled again."""
        with self._lock:
            self._stopped = True
        for task in self._tasks:
            task.cancel()
        again: asyncio.CancelledError | None = None
        while self._tasks:
            try:
                await asyncio.wait(self._tasks)
            except asyncio.CancelledError as error:
                again = error
        if again is not None:
            raise again


async def _await(value: Any) -> Any:
    try:
        return await value
    except SystemExit as error:  # asyncio would end the loop with it
        raise StopError(error) from error


def is_hamiltons(error: RecursionError) -> bool:
    """Whether it was Hamilton that called itself too often, as against a node."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    hamiltons = [f for f in frames if str(f.f_globals.get("__name__")).startswith("hamilton.")]
    return 2 * len(hamiltons) > len(frames)
