"""Executes a compiled plan on the event loop and in worker threads.

Two queues hold what may start now. `_ready` (coroutine functions, and inline sync nodes) is
emptied by walkers on the event loop, `_queued` (sync nodes) by drainers in worker threads; both
go on with whatever they have just made ready, so that a chain of nodes costs one task or one
thread hop. A walker or drainer that is about to be busy while more is ready recruits another
one first; trivial nodes are finished before the recruit begins, slow ones run side by side.

Waking a second thread costs more than a hundred trivial nodes. So where all nodes are sync, one
thread takes them in the plan's order, without queue or counts, until a timer on the loop finds
that they are not trivial and shares out what it has not begun.

Tasks belong to an `asyncio.TaskGroup` (anyio's costs 15 us a task here against 4); the walker
that the caller's own task runs is the only one in most runs.

Loop and threads share a `Frontier`, whose operations are atomic; `_lock` guards the rest, which is
touched when a thread begins, fails, hands something over, or is no longer alone.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from fp_async.awaitables import PLAIN, awaitable, close
from fp_async.frontier import Frontier
from fp_async.nodes import Caller, Setup
from fp_async.plan import Plan

_NOTHING = -1
_TRIVIAL = 0.0002  # seconds within which one thread is faster alone


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
        values = [given[name] for name in plan.names[: plan.given]]
        values += [None] * (len(plan.names) - plan.given)
        self._caller = caller = Caller(plan, setup, values)
        self._begin = caller.chosen()
        alone = caller.straight or (caller.all_to_thread and caller.plain)
        self._frontier = Frontier(plan, values, caller.to_thread, alone=alone)
        self._handed: deque[tuple[int, Awaitable[Any]]] = deque()  # from threads to the loop
        self._places: set[_Place] = set()
        self._lock = threading.Lock()
        self._recruits = 0  # walkers created that have not begun
        self._hires = 0  # drainers submitted that have not begun
        self._stopped = False  # start nothing any more
        self._closing = False  # the task group takes no more tasks
        self._error: BaseException | None = None
        self._waking = False  # _woken is on its way to the loop

    @property
    def running(self) -> tuple[str, ...]:
        """Names of the nodes that are running now; after a cut, of those in threads."""
        slots = {place.slot for place in tuple(self._places)} | set(self._caller.aside.values())
        slots.discard(_NOTHING)
        return tuple(sorted(self._plan.names[slot] for slot in slots))

    async def run(self) -> dict[str, Any]:
        """Run to the end and return the final variables' values, in the order asked for.

        A node's error cancels its siblings and leaves when they have ended. Cancelling this
        cancels the nodes on the loop, awaits them, and abandons sync nodes in threads: their
        results are discarded and `running` names them.
        """
        self._loop = asyncio.get_running_loop()
        self._caller.attach(self._loop)
        if self._caller.straight:
            return await self._run_straight()
        self._context = contextvars.copy_context()
        self._leader = asyncio.current_task()
        self._finished: asyncio.Future[None] = self._loop.create_future()
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
        return self._caller.given_out(self._frontier.results())

    def _end(self) -> None:
        with self._lock:
            self._stopped = True
            while self._handed:
                close(self._handed.popleft()[1])
        self._caller.close()
        self._frontier.end()

    async def _run_straight(self) -> dict[str, Any]:
        """One pass over the plan's order, with nothing to decide or to count."""
        begin, advance, slot = self._begin, self._frontier.advance, _NOTHING
        try:
            for slot in self._plan.order:
                value = begin(slot)
                if type(value) not in PLAIN and hasattr(type(value), "__await__"):
                    value = await value
                advance(slot, value)
                del value
        except BaseException as error:
            if _is_cut(error):
                raise
            raise self._failed(slot, error)  # noqa: B904 - its cause is set, and trimmed
        finally:
            self._caller.close()
        return self._caller.given_out(self._frontier.results())

    async def _lead(self) -> None:
        watch: asyncio.TimerHandle | None = None
        try:
            if self._frontier.alone:
                watch = self._loop.call_later(_TRIVIAL, self._reinforce)
                self._submit(self._drain_alone)
            elif self._frontier.queued:
                self._hire()
            if self._frontier.ready:
                await self._walk()
            if self._frontier.unfinished:
                await self._finished
        except BaseException:
            self._stopped = self._closing = True
            self._frontier.alone = False
            raise
        finally:
            if watch is not None:
                watch.cancel()

    def _reinforce(self) -> None:
        """The nodes are not trivial: have more threads."""
        with self._lock:
            self._frontier.share()
        if self._frontier.queued and not self._hires and not self._stopped:
            self._hire()

    def _failed(self, slot: int, error: BaseException) -> BaseException:
        """Remember the first error as a NodeError; later ones are its consequences."""
        self._stopped = True
        if self._error is None:
            self._error = self._fail(self._plan.names[slot], self._caller.kwargs(slot), error)
        return self._error

    # On the event loop ----------------------------------------------------------------------

    async def _walk(self) -> None:
        """Take ready nodes until there is none, and go on with what each one makes ready."""
        ready, place = self._frontier.ready, _Place()
        begin, complete = self._begin, self._frontier.complete
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
                if self._frontier.queued and not self._hires:
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
        self._frontier.complete(slot, result)
        del result, value
        if self._frontier.queued and not self._hires:
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
        if not self._frontier.unfinished and not self._finished.done():
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
        elif self._frontier.ready and not self._recruits and not self._stopped:
            self._recruit()
        else:
            self._check_end()

    async def _abort(self, error: BaseException) -> None:
        raise error

    # In worker threads ----------------------------------------------------------------------

    def _submit(self, drain: Callable[[], None]) -> None:
        assert self._threads is not None
        self._threads.submit(partial(self._context.copy().run, drain))

    def _hire(self) -> None:
        with self._lock:
            self._hires += 1
        self._submit(self._drain)

    def _drain_alone(self) -> None:
        """Take all nodes in the plan's order, as long as nobody shares them out."""
        frontier, begin, place = self._frontier, self._begin, _Place()
        values, last_uses, done = frontier.values, self._plan.last_uses, frontier.done
        self._places.add(place)
        slot = _NOTHING
        try:
            for slot in self._plan.order:
                place.slot = slot
                values[slot] = value = begin(slot)
                if type(value) not in PLAIN and hasattr(type(value), "__await__"):
                    break
                del value  # or it would live on while the next node runs
                done.append(slot)  # from here on `Frontier.advance`, without the call
                if not frontier.alone:
                    break
                for source in last_uses[slot]:
                    values[source] = None
            else:
                frontier.unfinished = False
        except BaseException as error:
            self._fail_from_thread(slot, error)
            return
        finally:
            self._places.discard(place)
        if frontier.unfinished:
            self._go_on(slot)
        else:
            self._on_loop(self._woken)

    def _go_on(self, slot: int) -> None:
        """From here on this thread is one of several drainers; `slot` is what it did last."""
        frontier, order = self._frontier, self._plan.order
        with self._lock:
            if self._stopped:
                if awaitable(frontier.values[slot]):
                    close(frontier.values[slot])
                return
            frontier.share()
            self._hires += 1
        assert frontier.shared is not None
        mine = order[frontier.shared] if frontier.shared < len(order) else _NOTHING
        if mine == _NOTHING:
            frontier.unfinished = False
            self._on_loop(self._woken)
        elif mine != slot:  # left to this thread as begun, and it is not
            frontier.queued.appendleft(mine)
        elif awaitable(frontier.values[slot]):
            self._hand_over(slot, frontier.values[slot])
        else:
            frontier.complete(slot, frontier.values[slot])
            self._wake_if_needed()
        self._drain()

    def _wake_if_needed(self) -> None:
        if (self._frontier.ready or not self._frontier.unfinished) and not self._waking:
            self._waking = True
            self._on_loop(self._woken)

    def _fail_from_thread(self, slot: int, error: BaseException) -> None:
        with self._lock:
            stopped = self._stopped
            self._failed(slot, error)
        if not stopped:
            self._on_loop(self._woken)

    def _drain(self) -> None:
        """Take queued nodes until there is none, and go on with what each one makes ready."""
        with self._lock:
            self._hires -= 1
        queued, ready, place, done = self._frontier.queued, self._frontier.ready, _Place(), False
        begin, complete = self._begin, self._frontier.complete
        self._places.add(place)
        try:
            while not self._stopped:
                try:
                    slot = place.slot = queued.popleft()
                except IndexError:  # another thread was faster
                    return
                if queued and not self._hires:
                    self._hire()
                value = begin(slot)
                if type(value) not in PLAIN and hasattr(type(value), "__await__"):
                    self._hand_over(slot, value)
                    return
                complete(slot, value)
                del value
                if not self._frontier.unfinished:
                    done = True
                    return
                if ready:
                    self._wake_if_needed()
        except BaseException as error:  # sys.exit() in a node must not end a thread silently
            self._fail_from_thread(place.slot, error)
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
        if self._frontier.queued and not self._hires:
            self._hire()

    def _take_over(self) -> None:
        if not self._closing:
            self._tasks.create_task(self._adopt())

    def _on_loop(self, function: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            self._stopped = True  # the loop is closed: an abandoned node outlived it


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
