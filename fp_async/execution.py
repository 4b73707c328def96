"""Executes a compiled plan on the event loop and in worker threads.

Two queues hold what may start now. `_ready` (coroutine functions, and inline sync nodes) is
emptied by walkers on the event loop, `_queued` (sync nodes) by drainers in worker threads; both
go on with whatever they have just made ready, so that a chain of nodes costs one task or one
thread hop. A walker or drainer that is about to be busy while more is ready recruits another
one first. Trivial nodes are finished before the recruit wakes up, slow ones run side by side.

Tasks belong to an `asyncio.TaskGroup` (anyio's costs 15 us a task here against 4); the walker
that the caller's own task runs is the only one in most runs.

Shared between loop and threads, and guarded by `_lock`: the queues, the counters, `running`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio

from fp_async.config import NodePolicy
from fp_async.errors import describe
from fp_async.plan import Plan
from fp_async.threads import Threads, in_thread

_NOTHING = -1
_HOOK_GRACE = 5.0  # seconds that async hooks get to hear of a cancelled node

log = logging.getLogger("fp_async")


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """Something that happened to a node, for progress displays.

    `status` is started, succeeded, failed, cancelled or retrying; `seconds` since its start.
    """

    node: str
    status: str
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What is called around every node, each with (node name, kwargs, ...).

    Sync ones are called where the node runs: in its thread, or on the loop for a coroutine
    function. `execute` replaces the call of the node itself.
    """

    before: Callable[[str, dict[str, Any]], None] | None = None
    after: Callable[[str, dict[str, Any], Any, BaseException | None], None] | None = None
    before_async: Callable[[str, dict[str, Any]], Awaitable[None]] | None = None
    after_async: (
        Callable[[str, dict[str, Any], Any, BaseException | None], Awaitable[None]] | None
    ) = None
    execute: Callable[[str, dict[str, Any]], Any] | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """How to execute: where sync nodes run, and what watches.

    With `threads` None sync nodes run inline, on the loop. `remote`, where given, runs a sync
    node elsewhere, from its name and kwargs.
    """

    threads: Threads | None = None
    remote: Callable[[str, dict[str, Any]], Awaitable[Any]] | None = None
    hooks: Hooks | None = None
    progress: Callable[[NodeEvent], None] | None = None
    policies: Mapping[str, NodePolicy] = field(default_factory=dict)


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
        self._setup = setup
        self._fail = fail
        self._values = [given[name] for name in plan.names[: plan.given]]
        self._values += [None] * (len(plan.names) - plan.given)
        self._waiting = list(plan.waiting)
        self._uses = list(plan.uses)
        self._unfinished = plan.sinks
        self._ready: deque[int] = deque()
        self._queued: deque[int] = deque()
        self._handed: deque[tuple[int, Awaitable[Any]]] = deque()  # from threads to the loop
        self._places: set[_Place] = set()
        self._lock = threading.Lock()
        self._recruits = 0  # walkers created that have not begun
        self._hires = 0  # drainers submitted that have not begun
        self._stopped = False  # start nothing any more
        self._closing = False  # the task group takes no more tasks
        self._error: BaseException | None = None
        self._waking = False  # _woken is on its way to the loop
        self._events: deque[NodeEvent] = deque()
        self._flushing = False
        self.watched = setup.progress is not None
        self._straight = False
        self._to_thread = self._threaded()
        call, self._complete = self._bind()
        self._begin = self._chosen(call)

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
        if self._straight:
            return await self._run_straight()
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._finished: asyncio.Future[None] = self._loop.create_future()
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
                _close(self._handed.popleft()[1])
        self._flush()

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
                if hasattr(type(value), "__await__"):
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
        try:
            if self._queued:
                self._hire()
            await self._walk()
            if self._unfinished:
                await self._finished
        except BaseException:
            self._stopped = self._closing = True
            raise

    # Deciding what is next ------------------------------------------------------------------

    def _threaded(self) -> tuple[bool, ...]:
        """Which nodes threads take by themselves; the rest begins on the loop."""
        plan, setup = self._plan, self._setup
        if setup.threads is None or setup.remote is not None or self._awaits_hooks:
            return (False,) * len(plan.names)
        if not setup.policies:
            return plan.is_sync
        return tuple(
            sync and name not in setup.policies
            for sync, name in zip(plan.is_sync, plan.names, strict=True)
        )

    @property
    def _awaits_hooks(self) -> bool:
        hooks = self._setup.hooks
        return hooks is not None and bool(hooks.before_async or hooks.after_async)

    def _chosen(self, call: Callable[[int], Any]) -> Callable[[int], Any]:
        """How a node is begun: as lightly as hooks, events, policies and place allow."""
        setup = self._setup
        if self._awaits_hooks:
            return self._supervise
        begin = self._observe if setup.hooks or self.watched else call
        if setup.remote is not None or not setup.policies.keys().isdisjoint(self._plan.names):
            return partial(self._begin_special, begin)
        self._straight = begin is call and setup.threads is None and not any(self._plan.is_async)
        return begin

    def _begin_special(self, begin: Callable[[int], Any], slot: int) -> Any:
        plan, setup = self._plan, self._setup
        away = setup.remote is not None and not plan.is_async[slot]
        return (self._supervise if away or plan.names[slot] in setup.policies else begin)(slot)

    def _enqueue(self, slot: int) -> None:
        if self._to_thread[slot]:
            self._queued.append(slot)
        elif self._plan.is_async[slot]:
            self._ready.appendleft(slot)  # what waits starts before what computes inline
        else:
            self._ready.append(slot)

    def _bind(self) -> tuple[Callable[[int], Any], Callable[[int, Any], None]]:
        """The two functions called for every node, with all that they need in their cells."""
        plan, values, queued, to_thread = self._plan, self._values, self._queued, self._to_thread
        calls, arguments, counted = plan.calls, plan.arguments, plan.counted
        follows, sole_uses = plan.follows, plan.sole_uses

        def call(slot: int) -> Any:
            named = arguments[slot]
            if not named:
                return calls[slot]()  # type: ignore[misc]
            return calls[slot](**{name: values[source] for name, source in named})  # type: ignore[misc]

        def complete(slot: int, value: Any) -> None:
            values[slot] = value
            for source in sole_uses[slot]:
                values[source] = None
            for dependent in follows[slot]:
                if to_thread[dependent]:
                    queued.append(dependent)
                else:
                    self._enqueue(dependent)
            if counted[slot]:
                with self._lock:
                    self._count(slot)

        return call, complete

    def _count(self, slot: int) -> None:
        """The part of completing a node that other threads may be at too."""
        plan, uses, waiting = self._plan, self._uses, self._waiting
        for source in plan.shared_uses[slot]:
            uses[source] -= 1
            if not uses[source]:
                self._values[source] = None
        joins = plan.joins[slot]
        for dependent in joins:
            waiting[dependent] -= 1
            if not waiting[dependent]:
                self._enqueue(dependent)
        if not joins and not plan.follows[slot]:
            self._unfinished -= 1

    def _kwargs(self, slot: int) -> dict[str, Any]:
        values = self._values
        return {name: values[source] for name, source in self._plan.arguments[slot]}

    def _failed(self, slot: int, error: BaseException) -> BaseException:
        """Remember the first error as a NodeError; later ones are its consequences."""
        self._stopped = True
        if self._error is None:
            self._error = self._fail(self._plan.names[slot], self._kwargs(slot), error)
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
                if hasattr(type(value), "__await__"):
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
        """Raise the NodeError for an error of the node; leave our own cancellation alone."""
        self._closing = True
        if not _is_cut(error):
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
        assert self._setup.threads is not None
        with self._lock:
            self._hires += 1
        self._setup.threads.submit(partial(self._context.copy().run, self._drain))

    def _drain(self) -> None:
        """Take queued nodes until there is none, and go on with what each one makes ready."""
        with self._lock:
            self._hires -= 1
        queued, ready, place = self._queued, self._ready, _Place()
        begin, complete = self._begin, self._complete
        self._places.add(place)
        try:
            while not self._stopped:
                try:
                    slot = place.slot = queued.popleft()
                except IndexError:  # another thread was faster
                    return None
                if queued and not self._hires:
                    self._hire()
                value = begin(slot)
                if hasattr(type(value), "__await__"):
                    return self._hand_over(slot, value)
                complete(slot, value)
                del value
                if (ready or not self._unfinished) and not self._waking:
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

    def _hand_over(self, slot: int, value: Awaitable[Any]) -> None:
        with self._lock:
            if self._stopped:
                return _close(value)
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

    # Calling a node -------------------------------------------------------------------------

    def _execute(self, slot: int, kwargs: dict[str, Any]) -> Any:
        hooks = self._setup.hooks
        if hooks and hooks.execute:
            return hooks.execute(self._plan.names[slot], kwargs)
        return self._plan.calls[slot](**kwargs)  # type: ignore[misc]

    def _observe(self, slot: int) -> Any:
        """Call a node with sync hooks and events around it."""
        watch = _Watch(self, slot)
        watch.before()
        try:
            value = self._execute(slot, watch.kwargs)
        except BaseException as error:
            watch.after(None, error)
            raise
        if hasattr(type(value), "__await__"):
            return _Rest(watch, value)
        watch.after(value, None)
        return value

    async def _supervise(self, slot: int) -> Any:
        """Call a node with everything around it: async hooks, timeout, retry, another place."""
        watch = _Watch(self, slot)
        hooks = self._setup.hooks or Hooks()
        await self._aside(slot, watch.before)
        if hooks.before_async:
            await hooks.before_async(watch.name, watch.kwargs)
        try:
            value = await self._attempts(slot, watch)
        except BaseException as error:
            with anyio.move_on_after(_HOOK_GRACE, shield=True):
                await self._aside(slot, partial(watch.after, None, error))
                if hooks.after_async:
                    await hooks.after_async(watch.name, watch.kwargs, None, error)
            raise
        await self._aside(slot, partial(watch.after, value, None))
        if hooks.after_async:
            await hooks.after_async(watch.name, watch.kwargs, value, None)
        return value

    async def _attempts(self, slot: int, watch: _Watch) -> Any:
        policy = self._setup.policies.get(watch.name) or NodePolicy()
        failures = 0
        while True:
            try:
                return await self._attempt(slot, watch.kwargs, policy.timeout)
            except Exception as error:
                failures += 1
                if policy.retry is None or not policy.retry.wants(error, failures):
                    raise
                if self.watched:
                    self.emit(NodeEvent(watch.name, "retrying", watch.seconds, describe(error)))
            await asyncio.sleep(policy.retry.delay(failures, random.random()))

    async def _attempt(self, slot: int, kwargs: dict[str, Any], timeout: float | None) -> Any:
        try:
            async with asyncio.timeout(timeout) as scope:
                if self._setup.remote is not None and not self._plan.is_async[slot]:
                    return await self._setup.remote(self._plan.names[slot], kwargs)
                value = await self._aside(slot, partial(self._execute, slot, kwargs))
                return await value if hasattr(type(value), "__await__") else value
        except TimeoutError:
            if scope.expired():
                raise TimeoutError(f"took longer than its timeout of {timeout:g} s") from None
            raise

    async def _aside(self, slot: int, function: Callable[[], Any]) -> Any:
        """Call `function` where the node's own code runs: in a thread, or here.

        Cancelling abandons the thread; what it still returns or raises is discarded.
        """
        if self._plan.is_async[slot] or self._setup.threads is None:
            return function()
        return await in_thread(self._setup.threads, function)

    # Telling --------------------------------------------------------------------------------

    def emit(self, event: NodeEvent) -> None:
        """Queue an event for the progress callback, which is always called on the loop."""
        self._events.append(event)
        if not self._flushing:
            self._flushing = True
            self._on_loop(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        while self._events and self._setup.progress is not None:
            event = self._events.popleft()
            try:
                self._setup.progress(event)
            except Exception:
                log.exception("the progress callback failed; the run goes on without events")
                self._events.clear()
                self.watched = False


class _Watch:
    """What is told about one node: sync hooks and events, before and after."""

    __slots__ = ("_execution", "_hooks", "_started", "kwargs", "name")

    def __init__(self, execution: Execution, slot: int) -> None:
        self.name = execution._plan.names[slot]
        self.kwargs = execution._kwargs(slot)
        self._execution = execution
        self._hooks = execution._setup.hooks
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def before(self) -> None:
        if self._execution.watched:
            self._execution.emit(NodeEvent(self.name, "started"))
        if self._hooks and self._hooks.before:
            self._hooks.before(self.name, self.kwargs)

    def after(self, value: Any, error: BaseException | None) -> None:
        if self._execution.watched:
            self._execution.emit(self._ended(error))
        if self._hooks and self._hooks.after:
            self._hooks.after(self.name, self.kwargs, value, error)

    def _ended(self, error: BaseException | None) -> NodeEvent:
        status, text = "succeeded", ""
        if error is not None:
            cut = isinstance(error, asyncio.CancelledError)
            status, text = ("cancelled", "") if cut else ("failed", describe(error))
        return NodeEvent(self.name, status, self.seconds, text)


class _Rest:
    """The rest of a watched node that gave an awaitable; can be closed without being awaited."""

    __slots__ = ("_value", "_watch")

    def __init__(self, watch: _Watch, value: Awaitable[Any]) -> None:
        self._watch = watch
        self._value = value

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            result = yield from self._value.__await__()
        except BaseException as error:
            self._watch.after(None, error)
            raise
        self._watch.after(result, None)
        return result

    def close(self) -> None:
        _close(self._value)


class _Place:
    """Where a walker or a drainer is."""

    __slots__ = ("slot",)

    def __init__(self, slot: int = _NOTHING) -> None:
        self.slot = slot


def _close(value: Any) -> None:
    """A coroutine that nobody will await says so to itself, not to the user."""
    if hasattr(value, "close"):
        value.close()


def _is_cut(error: BaseException) -> bool:
    """Whether the walker's task was cancelled or interrupted, as against a node that raised.

    A node may raise CancelledError by itself (a task that it awaited was cancelled); asyncio
    would take that for a quiet end of the task.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return isinstance(error, KeyboardInterrupt | GeneratorExit)
