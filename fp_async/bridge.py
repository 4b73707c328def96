"""Between Hamilton's threads and the caller's event loop, during one run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from fp_async import node_events
from fp_async.awaitables import awaitable, close
from fp_async.node_events import NodeEvent, NodeObserver

log = logging.getLogger("fp_async")
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
        self._raised: list[BaseException] = []
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

    def note(self, error: BaseException) -> None:
        """A node has raised `error`."""
        self._raised.append(error)

    def raised(self, error: BaseException) -> bool:
        """Whether it was a node that raised `error`."""
        return any(error is noted for noted in self._raised)

    def tell(self, event: NodeEvent) -> None:
        """Have the progress callback called on the loop."""
        with self._lock:
            if not self._stopped:
                self._loop.call_soon_threadsafe(self.deliver, event)

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


class Teller:
    """Tells of nodes what Hamilton's drivers do: an observer at once, and `tell`."""

    def __init__(self, tell: Tell | None, observer: NodeObserver | None) -> None:
        self._tell = tell
        self._observer = observer

    def started(self, name: str) -> float:
        """A node begins, at the time that is returned."""
        self._emit(NodeEvent(name, "started", at=time.time() if self._observer else 0.0))
        return time.perf_counter()

    def ended(self, name: str, since: float, value: Any, error: BaseException | None) -> None:
        """A node that began at `since` has come to an end."""
        if isinstance(error, StopError):
            error = error.carried
        seconds = time.perf_counter() - since
        self._emit(node_events.ended(name, seconds, value, error, self._observer))

    def _emit(self, event: NodeEvent) -> None:
        if self._observer is not None and self._observer.tell is not None:
            self._observer.tell(event)
        if self._tell is not None:
            self._tell(event)


def watched(name: str, call: Callable[..., Any], teller: Teller | None) -> Callable[..., Any]:
    """A node for the AsyncDriver: what it hides is awaited, what it raises is told."""

    async def told(**kwargs: Any) -> Any:
        try:
            value = call(**kwargs)
            return await value if awaitable(value) else value
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, Exception | KeyboardInterrupt | GeneratorExit):
                raise
            if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                raise
            raise StopError(error) from error

    async def telling(teller: Teller, kwargs: dict[str, Any]) -> Any:
        since = teller.started(name)
        try:
            value = await told(**kwargs)
        except BaseException as error:
            teller.ended(name, since, None, error)
            raise
        teller.ended(name, since, value, None)
        return value

    async def node(**kwargs: Any) -> Any:
        return await (told(**kwargs) if teller is None else telling(teller, kwargs))

    return node


def is_hamiltons(error: RecursionError) -> bool:
    """Whether it was Hamilton that called itself too often, as against a node."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    hamiltons = [f for f in frames if str(f.f_globals.get("__name__")).startswith("hamilton.")]
    return 2 * len(hamiltons) > len(frames)
