"""Calls single nodes: plainly, watched by hooks and events, or with everything around them.

How a node is begun is chosen once for a run, as lightly as the run allows: a plain call, a call
with sync hooks and events around it (`_observe`), or a coroutine that also does async hooks,
timeout, retry and calls in another place (`_supervise`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping
from functools import partial
from typing import Any

import anyio
import msgspec

from fp_async import current
from fp_async.awaitables import awaitable, close
from fp_async.config import NodePolicy
from fp_async.errors import describe
from fp_async.node_events import NodeEvent, NodeObserver, ended
from fp_async.plan import Plan
from fp_async.spans import Spans
from fp_async.threads import Threads, in_thread

_HOOK_GRACE = 5.0  # seconds that async hooks get to hear of a cancelled node

log = logging.getLogger("fp_async")


class AttemptTimeoutError(TimeoutError):
    """A node took longer than its own timeout."""


class Hooks(msgspec.Struct, frozen=True):
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


class Setup(msgspec.Struct, frozen=True):
    """How to execute: where sync nodes run, and what watches.

    With `threads` None sync nodes run inline, on the loop. `remote`, where given, runs a sync
    node elsewhere, from its name and kwargs. Those in `plainly` are called without hooks and
    events: what is no node of the user's.
    """

    threads: Threads | None = None
    remote: Callable[[str, dict[str, Any]], Awaitable[Any]] | None = None
    hooks: Hooks | None = None
    progress: Callable[[NodeEvent], None] | None = None
    policies: Mapping[str, NodePolicy] = {}
    spans: Spans | None = None
    observer: NodeObserver | None = None
    plainly: frozenset[str] = frozenset()


class Caller:
    """Begins the nodes of one run: by `chosen()`, which takes a slot and gives the node's value, or
    what to await for it. It is not kept in here, where it would be a cycle: what runs leave behind
    is gone at once, and gives the garbage collector no work.

    `to_thread` says which nodes threads may take by themselves; the others begin on the loop.
    `plain` is true where every node is merely called, `all_to_thread` where threads may take every
    node, `straight` where one after the other is all that can be done: a single coroutine function,
    or nodes that are sync, inline and merely called.
    """

    def __init__(self, plan: Plan, setup: Setup, values: list[Any]) -> None:
        self._plan = plan
        self._setup = setup
        self._values = values
        self._events: deque[NodeEvent] = deque()
        self._flushing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self.aside: dict[object, int] = {}  # the slots of what `_aside` has in threads
        self._told = setup.observer.tell if setup.observer else None
        self._progress = setup.progress
        self.watched = self._progress is not None or self._told is not None
        self.straight = self.plain = self.all_to_thread = False
        self.to_thread = self._threaded()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell where events are delivered: on this loop, whose thread calls this."""
        self._loop = loop
        self._thread = threading.get_ident()

    def kwargs(self, slot: int) -> dict[str, Any]:
        """The arguments of a node whose inputs are there, by name, in the function's order."""
        values = self._values
        return {name: values[source] for name, source in self._plan.arguments[slot]}

    # How ------------------------------------------------------------------------------------

    def _threaded(self) -> tuple[bool, ...]:
        """Which nodes threads take by themselves; the rest begins on the loop."""
        plan, setup = self._plan, self._setup
        if setup.threads is None or setup.remote is not None or self._awaits_hooks:
            return (False,) * len(plan.names)
        if not setup.policies:
            self.all_to_thread = plan.all_sync
            return plan.is_sync
        return tuple(
            sync and name not in setup.policies
            for sync, name in zip(plan.is_sync, plan.names, strict=True)
        )

    @property
    def _awaits_hooks(self) -> bool:
        hooks = self._setup.hooks
        return hooks is not None and bool(hooks.before_async or hooks.after_async)

    def chosen(self) -> Callable[[int], Any]:
        """How a node is begun: as lightly as hooks, events, policies and place allow.

        To be called once, before `plain` and `straight` are read.
        """
        setup, call = self._setup, self._plain()
        if setup.plainly:
            return partial(self._begin_or_call, self._chosen(call), call)
        return self._chosen(call)

    def _begin_or_call(self, begin: Callable[[int], Any], call: Any, slot: int) -> Any:
        return (call if self._plan.names[slot] in self._setup.plainly else begin)(slot)

    def _chosen(self, call: Callable[[int], Any]) -> Callable[[int], Any]:
        setup = self._setup
        if self._awaits_hooks:
            return self._supervise
        observed = setup.hooks or self.watched or setup.spans
        begin = self._observe if observed else call
        if setup.remote is not None or not setup.policies.keys().isdisjoint(self._plan.names):
            return partial(self._begin_special, begin)
        self.plain = begin is call
        order = self._plan.order
        alone = len(order) == 1 and self._plan.is_async[order[0]]
        self.straight = alone or (self.plain and setup.threads is None and self._plan.all_sync)
        return begin

    def _begin_special(self, begin: Callable[[int], Any], slot: int) -> Any:
        plan, setup = self._plan, self._setup
        away = setup.remote is not None and not plan.is_async[slot]
        return (self._supervise if away or plan.names[slot] in setup.policies else begin)(slot)

    def _plain(self) -> Callable[[int], Any]:
        """The bare call, with all that it needs in its cells."""
        values, calls, arguments = self._values, self._plan.calls, self._plan.arguments

        def call(slot: int) -> Any:
            named = arguments[slot]
            if not named:
                return calls[slot]()  # type: ignore[misc]
            if len(named) == 1:  # a comprehension costs as much as the rest of this
                ((name, source),) = named
                return calls[slot](**{name: values[source]})  # type: ignore[misc]
            return calls[slot](**{name: values[source] for name, source in named})  # type: ignore[misc]

        return call

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
        if awaitable(value):
            return _Rest(watch, value)
        watch.after(value, None)
        return value

    async def _supervise(self, slot: int) -> Any:
        """Call a node with everything around it: async hooks, timeout, retry, another place."""
        watch = _Watch(self, slot)
        current.node.set(watch.name)
        hooks = self._setup.hooks or Hooks()
        if hooks.before:
            await self._aside(slot, watch.before)
            watch.enter()
        else:
            watch.before()
        if hooks.before_async:
            await hooks.before_async(watch.name, watch.kwargs)
        try:
            value = await self._attempts(slot, watch)
        except BaseException as error:
            with anyio.move_on_after(_HOOK_GRACE, shield=True):
                await self._tell_end(slot, watch, None, error)
            raise
        await self._tell_end(slot, watch, value, None)
        return value

    async def _tell_end(
        self, slot: int, watch: _Watch, value: Any, error: BaseException | None
    ) -> None:
        hooks = self._setup.hooks or Hooks()
        after = partial(watch.after, value, error)
        if hooks.after:
            await self._aside(slot, after)
        else:
            after()
        if hooks.after_async:
            await hooks.after_async(watch.name, watch.kwargs, value, error)

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
                return await value if awaitable(value) else value
        except TimeoutError:
            if scope.expired():
                raise AttemptTimeoutError(
                    f"took longer than its timeout of {timeout:g} s"
                ) from None
            raise

    async def _aside(self, slot: int, function: Callable[[], Any]) -> Any:
        """Call `function` where the node's own code runs: in a thread, or here.

        Cancelling abandons the thread; what it still returns or raises is discarded.
        """
        if self._plan.is_async[slot] or self._setup.threads is None:
            return function()
        call = object()
        self.aside[call] = slot

        def work() -> Any:
            try:
                return function()
            finally:
                del self.aside[call]

        return await in_thread(self._setup.threads, work)

    # Telling --------------------------------------------------------------------------------

    def emit(self, event: NodeEvent) -> None:
        """Tell the observer; queue the event for the progress callback, which is always called
        on the loop.
        """
        if self._told is not None:
            self._told(event)
        if self._progress is None:
            return
        self._events.append(event)
        if not self._flushing:
            self._flushing = True
            self._schedule_flush()

    def _schedule_flush(self) -> None:
        try:
            if self._loop is None:
                return
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self.flush)  # a wake-up through a socket costs 20 us
            else:
                self._loop.call_soon_threadsafe(self.flush)
        except RuntimeError:  # the loop is closed: an abandoned node outlived it
            self._events.clear()

    def flush(self) -> None:
        """Deliver the events that are waiting."""
        self._flushing = False
        while self._events and self._progress is not None:
            event = self._events.popleft()
            try:
                self._progress(event)
            except Exception:
                log.exception("the progress callback failed; the run goes on without events")
                self._events.clear()
                self._progress = None
                self.watched = self._told is not None


class _Watch:
    """What is told about one node: sync hooks and events, before and after."""

    __slots__ = ("_caller", "_hooks", "_span", "_started", "kwargs", "name")

    def __init__(self, caller: Caller, slot: int) -> None:
        self.name = caller._plan.names[slot]
        self.kwargs = caller.kwargs(slot)
        self._caller = caller
        self._hooks = caller._setup.hooks
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def enter(self) -> None:
        """The calling context is another one than that of `before`."""
        spans = self._caller._setup.spans
        if spans is not None:
            spans.enter(self._span)

    def before(self) -> None:
        current.node.set(self.name)
        spans = self._caller._setup.spans
        self._span = None if spans is None else spans.begin(self.name)
        if self._caller.watched:
            at = time.time() if self._caller._setup.observer else 0.0
            self._caller.emit(NodeEvent(self.name, "started", at=at))
        if self._hooks and self._hooks.before:
            try:
                self._hooks.before(self.name, self.kwargs)
            except BaseException as error:
                if self._caller.watched:
                    self._caller.emit(self._ended(None, error))
                raise

    def after(self, value: Any, error: BaseException | None) -> None:
        current.node.set(None)
        spans = self._caller._setup.spans
        if spans is not None:
            spans.end(self._span, error)
        if self._caller.watched:
            self._caller.emit(self._ended(value, error))
        if self._hooks and self._hooks.after:
            self._hooks.after(self.name, self.kwargs, value, error)

    def _ended(self, value: Any, error: BaseException | None) -> NodeEvent:
        return ended(self.name, self.seconds, value, error, self._caller._setup.observer)


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
        close(self._value)
