"""Executes a compiled plan on the event loop and in worker threads.

Two queues hold what may start now. `_ready` (coroutine functions, and inline sync nodes) is
emptied by walkers on the event loop, `_queued` (sync nodes) by drainers in worker threads; both
go on with whatever they have just made ready, so that a chain of nodes costs one task or one
thread hop. A walker or drainer that is about to be busy while more is ready recruits another
one first; trivial nodes are finished before the recruit begins, slow ones run side by side. In
its first moments a run keeps to one thread, because waking a second one costs more than many
trivial nodes; a timer on the loop, or the drainer between two nodes, sees that they are not.

Tasks belong to an `asyncio.TaskGroup` (anyio's costs 15 us a task here against 4); the walker
that the caller's own task runs is the only one in most runs.

Loop and threads share the queues (deques) and counts (`_completer`), whose operations are atomic;
`_lock` guards the rest, which is touched when a thread begins, fails or hands something over.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from fp_async.nodes import PLAIN, Caller, Setup, close
from fp_async.plan import Plan

_NOTHING = -1
_TRIVIAL = 0.0002  # seconds within which one thread is faster alone: waking another costs 50 us


class Execution:
    """One execution of a plan. `running` names the nodes that have started and not ended."""

    def __init__(
        self,
        plan: Plan,
        given: Mapping[str, Any],
        setup: Setup,
        fail: Callable[[str, dict[str, Any], BaseException], Exception],
    ) -> None:
        self._plan = plan
        self._threads = setup.threads
        self._fail = fail
        self._values = [given[name] for name in plan.names[: plan.given]]
        self._values += [None] * (len(plan.names) - plan.given)
        self._unfinished = bool(plan.order)
        self._ready: deque[int] = deque()
        self._queued: deque[int] = deque()
        self._handed: deque[tuple[int, Awaitable[Any]]] = deque()  # from threads to the loop
        self._places: set[_Place] = set()
        self._lock = threading.Lock()
        self._recruits = 0  # walkers created that have not begun
        self._hires = 0  # drainers submitted that have not begun
        self._eager_at = 0.0  # from when on drainers recruit others
        self._stopped = False  # start nothing any more
        self._closing = False  # the task group takes no more tasks
        self._error: BaseException | None = None
        self._waking = False  # _woken is on its way to the loop
        self._caller = Caller(plan, setup, self._values)
        self._begin = self._caller.begin
        self._complete = self._completer()

    @property
    def running(self) -> tuple[str, ...]:
        """Names of the nodes that are running now; after a cut, of those in threads."""
        slots = {place.slot for place in tuple(self._places)} - {_NOTHING}
        return tuple(sorted(self._plan.names[slot] for slot in slots))

    async def run(self) -> dict[str, Any]:
        """Run to the end and return the final variables' values, in the order asked for.

        A node's error cancels its siblings and leaves when they have ended. Cancelling this
        cancels the nodes on the loop, awaits them, and abandons sync nodes in threads: their
        results are discarded and `running` names them.
        """
        if self._caller.straight:
            return await self._run_straight()
        self._loop = asyncio.get_running_loop()
        self._caller.attach(self._loop)
        self._context = contextvars.copy_context()
        self._leader = asyncio.current_task()
        self._finished: asyncio.Future[None] = self._loop.create_future()
        if self._caller.all_to_thread:
            self._queued.extend(self._plan.roots)
        else:
            for slot in self._plan.roots:
                self._enqueue(slot)
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self._lead()
        except BaseExceptionGroup:
            if self._error is None:
                raise
        finally:
            self._end()
        if self._error is not None:
            raise self._error
        return self._results()

    def _end(self) -> None:
        with self._lock:
            self._stopped = True
            while self._handed:
                close(self._handed.popleft()[1])
        self._caller.flush()

    def _results(self) -> dict[str, Any]:
        return {name: self._values[slot] for name, slot in self._plan.finals}

    async def _run_straight(self) -> dict[str, Any]:
        """All nodes are sync and inline: one pass, with nothing to decide or to count."""
        plan, values = self._plan, self._values
        calls, arguments, last_uses = plan.calls, plan.arguments, plan.last_uses
        slot = _NOTHING
        try:
            for slot in plan.order:
                kwargs = {name: values[source] for name, source in arguments[slot]}
                value = calls[slot](**kwargs)  # type: ignore[misc]
                del kwargs
                if type(value) not in PLAIN and hasattr(type(value), "__await__"):
                    value = await value
                values[slot] = value
                del value
                for source in last_uses[slot]:
                    values[source] = None
        except BaseException as error:
            if _is_cut(error):
                raise
            raise self._failed(slot, error)  # noqa: B904 - its cause is set, and trimmed
        return self._results()

    async def _lead(self) -> None:
        watch: asyncio.TimerHandle | None = None
        try:
            if self._queued:
                self._hire()
                self._eager_at = time.perf_counter() + _TRIVIAL
                watch = self._loop.call_later(_TRIVIAL, self._reinforce)
            if self._ready:
                await self._walk()
            if self._unfinished:
                await self._finished
        except BaseException:
            self._stopped = self._closing = True
            raise
        finally:
            if watch is not None:
                watch.cancel()

    def _reinforce(self) -> None:
        """The nodes are not trivial: have more threads."""
        self._eager_at = 0.0
        if self._queued and not self._hires and not self._stopped:
            self._hire()

    # Deciding what is next ------------------------------------------------------------------

    def _enqueue(self, slot: int) -> None:
        if self._caller.to_thread[slot]:
            self._queued.append(slot)
        elif self._plan.is_async[slot]:
            self._ready.appendleft(slot)  # what waits starts before what computes inline
        else:
            self._ready.append(slot)

    def _completer(self) -> Callable[[int, Any], None]:  # noqa: C901 - one call a node, no more
        """The function called after every node, with all that it needs in its cells.

        What loop and threads count together are lists of tokens: `pop` is atomic, and gives True
        to the last who comes, and to nobody else.
        """
        plan, values, queued = self._plan, self._values, self._queued
        to_thread, enqueue = self._caller.to_thread, self._enqueue
        effects = plan.effects
        waiting = {slot: _tokens(number) for slot, number in plan.waiting}
        uses = {slot: _tokens(number) for slot, number in plan.uses}
        left = _tokens(plan.sinks)

        def complete(slot: int, value: Any) -> None:  # noqa: C901, PLR0912
            """Store a value, drop those it was the last to use, enqueue what waited for it."""
            values[slot] = value
            sole_uses, shared_uses, follows, joins = effects[slot]
            if sole_uses:
                for source in sole_uses:
                    values[source] = None
            if shared_uses:
                for source in shared_uses:
                    if uses[source].pop():
                        values[source] = None
            if follows:
                for dependent in follows:
                    if to_thread[dependent]:
                        queued.append(dependent)
                    else:
                        enqueue(dependent)
            if joins:
                for dependent in joins:
                    if waiting[dependent].pop():
                        enqueue(dependent)
            elif not follows and left.pop():
                self._unfinished = False

        return complete

    def _failed(self, slot: int, error: BaseException) -> BaseException:
        """Remember the first error as a NodeError; later ones are its consequences."""
        self._stopped = True
        if self._error is None:
            self._error = self._fail(self._plan.names[slot], self._caller.kwargs(slot), error)
        return self._error

    # On the event loop ----------------------------------------------------------------------

    async def _walk(self) -> None:
        """Take ready nodes until there is none, and go on with what each one makes ready."""
        ready, place = self._ready, _Place()
        begin, complete = self._begin, self._complete
        self._places.add(place)
        try:
            while ready and not self._stopped:
                slot = place.slot = ready.popleft()
                if ready and self._recruits < 2:
                    self._recruit()
                value = begin(slot)
                if type(value) not in PLAIN and hasattr(type(value), "__await__"):
                    value = await value
                complete(slot, value)
                del value
                if self._queued and not self._hires:
                    self._hire()
        except BaseException as error:
            self._give_up(place.slot, error)
            raise
        finally:
            self._places.discard(place)
        self._check_end()

    async def _adopt(self) -> None:
        """Go on with a node whose sync function, called in a thread, gave an awaitable.

        A decorator around a coroutine function can hide that it is one.
        """
        slot, value = self._handed.popleft()
        place = _Place(slot)
        self._places.add(place)
        try:
            result = await value
        except BaseException as error:
            self._give_up(slot, error)
            raise
        finally:
            self._places.discard(place)
        self._complete(slot, result)
        del result, value
        if self._queued and not self._hires:
            self._hire()
        await self._walk()

    def _give_up(self, slot: int, error: BaseException) -> None:
        """Raise the NodeError for an error of the node; leave our own cancellation alone.

        A recruited walker that is cancelled before anything was stopped was cancelled by its
        node (`asyncio.current_task().cancel()`): that is a failure too.
        """
        ours = self._stopped or asyncio.current_task() is self._leader
        self._closing = True
        if not _is_cut(error) or (isinstance(error, asyncio.CancelledError) and not ours):
            with self._lock:
                raise self._failed(slot, error)

    def _check_end(self) -> None:
        if not self._unfinished and not self._finished.done():
            self._finished.set_result(None)

    def _recruit(self) -> None:
        self._recruits += 1
        self._tasks.create_task(self._recruited())

    async def _recruited(self) -> None:
        self._recruits -= 1
        await self._walk()

    def _woken(self) -> None:
        """Called on the loop when a thread has finished, failed or made loop nodes ready."""
        self._waking = False
        if self._finished.done() or self._closing:
            return
        if self._error is not None:
            self._tasks.create_task(self._abort(self._error))
        elif self._ready and not self._recruits and not self._stopped:
            self._recruit()
        else:
            self._check_end()

    async def _abort(self, error: BaseException) -> None:
        raise error

    # In worker threads ----------------------------------------------------------------------

    def _hire(self) -> None:
        assert self._threads is not None
        with self._lock:
            self._hires += 1
        self._threads.submit(partial(self._context.copy().run, self._drain))

    def _drain(self) -> None:
        """Take queued nodes until there is none, and go on with what each one makes ready."""
        with self._lock:
            self._hires -= 1
        queued, ready, place, done = self._queued, self._ready, _Place(), False
        begin, complete = self._begin, self._complete
        self._places.add(place)
        try:
            while not self._stopped:
                try:
                    slot = place.slot = queued.popleft()
                except IndexError:  # another thread was faster
                    return
                if queued and not self._hires and time.perf_counter() > self._eager_at:
                    self._hire()
                value = begin(slot)
                if type(value) not in PLAIN and hasattr(type(value), "__await__"):
                    self._hand_over(slot, value)
                    return
                complete(slot, value)
                del value
                if not self._unfinished:
                    done = True
                    return
                if ready and not self._waking:
                    self._waking = True
                    self._on_loop(self._woken)
        except BaseException as error:  # sys.exit() in a node must not end a thread silently
            with self._lock:
                stopped = self._stopped
                self._failed(place.slot, error)
            if not stopped:
                self._on_loop(self._woken)
        finally:
            self._places.discard(place)
            if done:  # last of all: the loop and this thread share one interpreter lock
                self._on_loop(self._woken)

    def _hand_over(self, slot: int, value: Awaitable[Any]) -> None:
        with self._lock:
            if self._stopped:
                close(value)
                return
            self._handed.append((slot, value))
        self._on_loop(self._take_over)
        if self._queued and not self._hires:
            self._hire()

    def _take_over(self) -> None:
        if not self._closing:
            self._tasks.create_task(self._adopt())

    def _on_loop(self, function: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            self._stopped = True  # the loop is closed: an abandoned node outlived it


def _tokens(number: int) -> list[bool]:
    return [True] + [False] * (number - 1)


class _Place:
    """Where a walker or a drainer is."""

    __slots__ = ("slot",)

    def __init__(self, slot: int = _NOTHING) -> None:
        self.slot = slot


def _is_cut(error: BaseException) -> bool:
    """Whether the walker's task was cancelled or interrupted, as against a node that raised.

    A node may raise CancelledError by itself (a task that it awaited was cancelled); asyncio
    would take that for a quiet end of the task.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return isinstance(error, KeyboardInterrupt | GeneratorExit)
