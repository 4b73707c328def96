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
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import anyio
import msgspec

from fp_async.awaitables import awaitable
from fp_async.config import NodePolicy, Retry
from fp_async.contexts import Scope, Scopes
from fp_async.errors import describe
from fp_async.node_events import NodeEvent, NodeObserver
from fp_async.node_watch import Held, Hooks, Rest, Watch, tell_of_hook, unheld
from fp_async.plan import Plan
from fp_async.spans import Spans
from fp_async.threads import Threads, in_thread

_HOOK_GRACE = 5.0  # seconds that async hooks get to hear of a cancelled node

log: logging.Logger = logging.getLogger("fp_async")


class AttemptTimeoutError(TimeoutError):
    """A node took longer than its own timeout."""


class Setup(msgspec.Struct, frozen=True):
    """How to execute: where sync nodes run, and what watches.

    With `threads` None sync nodes run inline, on the loop. `remote`, where given, runs a sync
    node elsewhere, from its name and kwargs. `aside` are the threads for hooks and adapters that
    have none of a node: around one that runs elsewhere, or that execute a coroutine function.
    Those in `plainly` are called without hooks and events: what is no node of the user's.
    """

    threads: Threads | None = None
    aside: Threads | None = None
    remote: Callable[[str, dict[str, Any]], Awaitable[Any]] | None = None
    hooks: Hooks | None = None
    progress: Callable[[NodeEvent], None] | None = None
    policies: Mapping[str, NodePolicy] = {}
    spans: Spans | None = None
    observer: NodeObserver | None = None
    plainly: frozenset[str] = frozenset()
    item: tuple[int, int] | None = None  # the number of the item that it is for, and how many
    cached: Callable[[str], bool] | None = None  # whether a node's value was in the cache

    @property
    def marks(self) -> bool:
        """Return whether it has to be said of events whose they are."""
        return self.item is not None or self.cached is not None

    def marked(self, event: NodeEvent) -> NodeEvent:
        """Return an event with the number of the item, and whether it was in the cache."""
        number, items = self.item or (None, None)
        hit = event.status == "succeeded" and self.cached is not None and self.cached(event.node)
        return msgspec.structs.replace(event, item=number, items=items, cached=int(hit))


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
        self.aside: dict[object, int] = {}  # the slots of what `_there` has in threads
        self.hooks: Hooks | None = setup.hooks
        self.spans: Spans | None = setup.spans
        self.observer: NodeObserver | None = setup.observer
        self._scopes = Scopes() if setup.hooks else None
        self._tell = setup.observer.tell if setup.observer else None
        self._progress = setup.progress
        self.watched: bool = self._progress is not None or self._tell is not None
        self.straight: bool = False
        self.plain: bool = False
        self.all_to_thread: bool = False
        self.to_thread: tuple[bool, ...] = self._threaded()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell where events are delivered: on this loop, whose thread calls this."""
        self._loop = loop
        self._thread = threading.get_ident()

    def close(self) -> None:
        """Deliver the last events; leave to the calling context what the nodes have set."""
        self.flush()
        if self._scopes is not None:
            self._scopes.close()

    def kwargs(self, slot: int) -> dict[str, Any]:
        """The arguments of a node whose inputs are there, by name, in the function's order."""
        values = self._values
        kwargs = {name: values[source] for name, source in self._plan.arguments[slot]}
        return self.given_out(kwargs)

    def given_out(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values as nodes and callers know them."""
        return unheld(values) if self._elsewhere else values

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
        return self.hooks is not None and bool(self.hooks.before_async or self.hooks.after_async)

    @property
    def _executes(self) -> bool:
        """Return whether an adapter executes nodes by a function that may wait: not on the loop."""
        hooks = self.hooks
        return hooks is not None and bool(hooks.elsewhere or (hooks.execute and hooks.waits))

    @property
    def _elsewhere(self) -> Any:
        return self.hooks and self.hooks.elsewhere

    def chosen(self) -> Callable[[int], Any]:
        """How a node is begun: as lightly as hooks, events, policies and place allow.

        To be called once, before `plain` and `straight` are read.
        """
        setup, call = self._setup, self._plain()
        if setup.plainly:
            return partial(self._begin_or_call, self._chosen(call), call)
        return self._chosen(call)

    def _begin_or_call(self, begin: Callable[[int], Any], call: Any, slot: int) -> Any:
        if self._plan.names[slot] not in self._setup.plainly:
            return begin(slot)
        return call(slot) if self._scopes is None else self._scoped(slot)

    def _chosen(self, call: Callable[[int], Any]) -> Callable[[int], Any]:
        setup = self._setup
        if self._awaits_hooks:
            return self._supervise
        observed = setup.hooks or self.watched or setup.spans
        begin = self._observe if observed else call
        if self._elsewhere:
            return self._begin_elsewhere
        policies = not setup.policies.keys().isdisjoint(self._plan.names)
        if setup.remote is not None or policies or self._executes:
            return partial(self._begin_special, begin)
        self.plain = begin is call
        order = self._plan.order
        alone = len(order) == 1 and self._plan.is_async[order[0]]
        self.straight = alone or (self.plain and setup.threads is None and self._plan.all_sync)
        return begin

    def _begin_special(self, begin: Callable[[int], Any], slot: int) -> Any:
        plan, setup = self._plan, self._setup
        away = self._executes if plan.is_async[slot] else setup.remote is not None
        return (self._supervise if away or plan.names[slot] in setup.policies else begin)(slot)

    def _begin_elsewhere(self, slot: int) -> Any:
        if not self._plan.is_async[slot]:
            return self._hand_out(slot)
        assert self._setup.aside is not None
        return in_thread(self._setup.aside, partial(self._hand_out, slot))

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

    def _watch(self, slot: int) -> Watch:
        name, kwargs = self._plan.names[slot], self.kwargs(slot)
        return Watch(self, slot, name, kwargs, self._scope(slot))

    def _scope(self, slot: int) -> Scope | None:
        if self._scopes is None:
            return None
        return self._scopes.begin(self._plan.arguments[slot])

    def left(self, slot: int, scope: Scope) -> None:
        """See `Audience`."""
        if self._scopes is not None:
            self._scopes.end(slot, scope)

    async def _scoped(self, slot: int) -> Any:
        """Call what is no node of the user's in a context between those of nodes."""
        scope, call = self._scope(slot), self._plan.calls[slot]
        assert scope is not None
        assert call is not None
        value = await scope.awaited(call(**self.kwargs(slot)))
        self.left(slot, scope)
        return value

    def _execute(self, watch: Watch) -> Any:
        if self.hooks and self.hooks.execute:
            return self.hooks.execute(watch.name, watch.kwargs)
        return self._plan.calls[watch.slot](**watch.kwargs)  # type: ignore[misc]

    def _observe(self, slot: int) -> Any:
        """Call a node with sync hooks and events around it, in a context of its own if there are
        hooks.
        """
        watch = self._watch(slot)
        value = watch.within(self._observed, watch)
        if type(value) is not Rest:
            watch.leave()
        return value

    def _observed(self, watch: Watch) -> Any:
        watch.begin()
        try:
            watch.before()
            value = self._execute(watch)
        except BaseException as error:
            watch.finish(None, error)
            raise
        if awaitable(value):
            return Rest(watch, value)
        watch.finish(value, None)
        return value

    def _hand_out(self, slot: int) -> Any:
        """Have an adapter execute a node elsewhere; what it gives may be no value yet."""
        watch = self._watch(slot)
        assert self.hooks is not None
        assert self.hooks.elsewhere is not None
        return Held(watch.within(self.hooks.elsewhere, watch, self._observed))

    async def _supervise(self, slot: int) -> Any:
        """Call a node with everything around it: async hooks, timeout, retry, another place."""
        watch, hooks = self._watch(slot), self.hooks or Hooks()
        scope = watch.scope = watch.scope or Scope()
        scope.call(watch.begin)
        try:
            if hooks.before_async:
                await scope.awaited(hooks.before_async(watch.name, watch.kwargs))
            value = await self._told(watch, hooks, scope)
        except BaseException as error:
            scope.call(watch.end, None, error)
            raise
        scope.call(watch.end, value, None)
        watch.leave()
        return value

    async def _told(self, watch: Watch, hooks: Hooks, scope: Scope) -> Any:
        """Make the attempts, and tell the hooks after of their outcome."""
        try:
            value = await self._attempts(watch, scope)
            if watch.is_awaited:
                await self._there(watch, scope, partial(watch.after, value, None))
        except BaseException as error:
            with anyio.move_on_after(_HOOK_GRACE, shield=True):
                await self._tell_error(watch, hooks, scope, error)
            raise
        if hooks.after_async:
            await scope.awaited(hooks.after_async(watch.name, watch.kwargs, value, None))
        return value

    async def _tell_error(
        self, watch: Watch, hooks: Hooks, scope: Scope, error: BaseException
    ) -> None:
        if watch.is_awaited:
            await self._there(watch, scope, partial(watch.after, None, error))
        if hooks.after_async:
            try:
                await scope.awaited(hooks.after_async(watch.name, watch.kwargs, None, error))
            except Exception as failed:
                tell_of_hook(watch.name, failed)

    async def _attempts(self, watch: Watch, scope: Scope) -> Any:
        policy = self._setup.policies.get(watch.name) or NodePolicy()
        failures = 0
        while True:
            again = partial(_is_retried, watch, policy.retry, failures + 1)
            try:
                return await self._attempt(watch, scope, policy.timeout, again)
            except Exception as error:
                failures += 1
                if policy.retry is None or not again(error):
                    raise
                pause = policy.retry.delay(failures, random.random())
                if self.watched:
                    told = (watch.name, "retrying", watch.elapsed, describe(error))
                    self.emit(NodeEvent(*told, pause=pause))
            await asyncio.sleep(pause)

    async def _attempt(
        self, watch: Watch, scope: Scope, timeout: float | None, again: Callable[[Exception], bool]
    ) -> Any:
        try:
            async with asyncio.timeout(timeout) as limit:
                if self._setup.remote is not None and not self._plan.is_async[watch.slot]:
                    await self._there(watch, scope, watch.before)
                    return await self._setup.remote(watch.name, watch.kwargs)
                value = await self._there(watch, scope, partial(self._once, watch, again))
                return await scope.awaited(value) if awaitable(value) else value
        except TimeoutError:
            if limit.expired():
                text = f"took longer than its timeout of {timeout:g} s"
                raise AttemptTimeoutError(text) from None
            raise

    def _once(self, watch: Watch, again: Callable[[Exception], bool]) -> Any:
        """One attempt, with the hooks before if it is the first one, after if it is the last."""
        turn = watch.turn
        watch.before()
        try:
            value = self._execute(watch)
        except Exception as error:
            if turn is watch.turn and not again(error):
                watch.after(None, error)
            raise
        if turn is watch.turn and not awaitable(value):
            watch.after(value, None)
        return value

    async def _there(self, watch: Watch, scope: Scope, function: Callable[[], Any]) -> Any:
        """Call `function` where the node's own code runs: in a thread, or here.

        Cancelling abandons the thread; what it still returns or raises is discarded.
        """
        threads = self._threads_of(watch.slot)
        if threads is None:
            return scope.call(function)
        call = object()
        self.aside[call] = watch.slot

        def work() -> Any:
            try:
                return function()
            finally:
                del self.aside[call]

        try:
            return await scope.in_thread(threads, work)
        except asyncio.CancelledError:
            watch.turn = object()
            raise

    def _threads_of(self, slot: int) -> Threads | None:
        setup = self._setup
        if self._plan.is_async[slot]:
            return setup.aside if self._executes else None
        return setup.threads if setup.remote is None else setup.aside

    # Telling --------------------------------------------------------------------------------

    def emit(self, event: NodeEvent) -> None:
        """Tell the observer; queue the event for the progress callback, which is always called
        on the loop.
        """
        if self._setup.marks:
            event = self._setup.marked(event)
        if self._tell is not None:
            self._tell(event)
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
                self.watched = self._tell is not None


def _is_retried(watch: Watch, retry: Retry | None, failures: int, error: Exception) -> bool:
    return retry is not None and error is not watch.failed_hook and retry.wants(error, failures)
