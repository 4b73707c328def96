"""The surroundings of one node's call: its context, events, span, and sync hooks."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from fp_async import current
from fp_async.awaitables import close
from fp_async.contexts import Scope
from fp_async.errors import describe
from fp_async.node_events import NodeEvent, NodeObserver, ended
from fp_async.spans import Spans

log: logging.Logger = logging.getLogger("fp_async")


class Hooks(msgspec.Struct, frozen=True):
    """The hooks around every node, each called with (node name, kwargs, ...).

    Async ones are called on the loop, around the sync ones, and these around the node, where it
    runs: in its thread, or on the loop for a coroutine function. `execute` replaces the call of
    the node itself; `waits` where it may wait for a thread, or for the loop. `elsewhere` has an
    adapter do it all, hooks too, by calling its second argument with its first one where and when
    it likes.
    """

    before: Callable[[str, dict[str, Any]], None] | None = None
    after: Callable[[str, dict[str, Any], Any, BaseException | None], None] | None = None
    before_async: Callable[[str, dict[str, Any]], Awaitable[None]] | None = None
    after_async: (
        Callable[[str, dict[str, Any], Any, BaseException | None], Awaitable[None]] | None
    ) = None
    execute: Callable[[str, dict[str, Any]], Any] | None = None
    waits: bool = False
    elsewhere: Callable[[Watch, Callable[[Watch], Any]], Any] | None = None


class Audience(Protocol):
    """Who is told of the nodes of a run."""

    watched: bool
    hooks: Hooks | None
    spans: Spans | None
    observer: NodeObserver | None

    def emit(self, event: NodeEvent) -> None:
        """Tell of something that has happened to a node."""

    def left(self, slot: int, scope: Scope) -> None:
        """A node has ended, and its context is this one."""


class Watch:
    """One node, told of before and after. `scope` is its context, None where the calling one is."""

    __slots__ = (
        "_audience",
        "_heard",
        "_opened",
        "_span",
        "_started",
        "failed_hook",
        "kwargs",
        "name",
        "scope",
        "slot",
        "turn",
    )

    def __init__(
        self, audience: Audience, slot: int, name: str, kwargs: dict[str, Any], scope: Scope | None
    ) -> None:
        self.slot: int = slot
        self.name: str = name
        self.kwargs: dict[str, Any] = kwargs
        self.scope: Scope | None = scope
        self.failed_hook: BaseException | None = None
        self.turn: object = None  # another one when a thread that was in it is abandoned
        self._audience = audience
        self._opened = False  # the hooks before have been called
        self._heard = False  # those after, too
        self._span: Any = None
        self._started = time.perf_counter()

    def within(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the node's context."""
        return function(*args) if self.scope is None else self.scope.call(function, *args)

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._started

    @property
    def is_awaited(self) -> bool:
        """Return whether sync hooks after the node wait to be called."""
        hooks = self._audience.hooks
        return hooks is not None and hooks.after is not None and not self._heard

    # In the node's context -------------------------------------------------------------------

    def begin(self) -> None:
        """Tell that it begins."""
        current.node.set(self.name)
        audience = self._audience
        if audience.spans is not None:
            within = audience.hooks is not None
            self._span = audience.spans.begin(self.name, within=within)
        if audience.watched:
            at = time.time() if audience.observer else 0.0
            audience.emit(NodeEvent(self.name, "started", at=at))

    def before(self) -> None:
        """Call the sync hooks before, once."""
        hooks = self._audience.hooks
        if self._opened or hooks is None or hooks.before is None:
            return
        self._opened = True
        try:
            hooks.before(self.name, self.kwargs)
        except BaseException as error:
            self.failed_hook, self._heard = error, True
            raise

    def after(self, value: Any, error: BaseException | None) -> None:
        """Call the sync hooks after, once. One that fails does not hide that the node has."""
        if not self.is_awaited:
            return
        self._heard, hooks = True, self._audience.hooks
        assert hooks is not None
        assert hooks.after is not None
        try:
            hooks.after(self.name, self.kwargs, value, error)
        except BaseException as failed:
            self.failed_hook = failed
            if error is None:
                raise
            tell_of_hook(self.name, failed)

    def end(self, value: Any, error: BaseException | None) -> None:
        """Tell that it has ended."""
        current.node.set(None)
        audience = self._audience
        if audience.spans is not None:
            audience.spans.end(self._span, error)
        if audience.watched:
            event = ended(self.name, self.elapsed, value, error, audience.observer)
            audience.emit(event)

    def finish(self, value: Any, error: BaseException | None) -> None:
        """Both, where the node has ended by itself."""
        try:
            self.after(value, error)
        except BaseException as failed:
            self.end(None, failed)
            raise
        self.end(value, error)

    def settle(self, status: str, error: BaseException | None) -> None:
        """Tell that it has ended, in another process, at some time until now."""
        audience = self._audience
        if audience.spans is not None:
            audience.spans.end(self._span, error)
        if audience.watched:
            text = describe(error) if error is not None and status == "failed" else ""
            audience.emit(NodeEvent(self.name, status, self.elapsed, text))

    # From outside of it -----------------------------------------------------------------------

    def leave(self) -> None:
        """Leave the context to what follows."""
        if self.scope is not None:
            self._audience.left(self.slot, self.scope)


def tell_of_hook(node: str, error: BaseException) -> None:
    """Say that a hook has failed where the run fails by something else."""
    log.error("a hook after node '%s', which had failed, failed too: %s", node, describe(error))


class Rest:
    """The rest of a watched node that gave an awaitable; can be closed without being awaited."""

    __slots__ = ("_value", "_watch")

    def __init__(self, watch: Watch, value: Awaitable[Any]) -> None:
        self._watch = watch
        self._value = value

    def __await__(self) -> Generator[Any, Any, Any]:
        watch = self._watch
        if watch.scope is None:
            return (yield from self._finished())
        result = yield from watch.scope.steps(self._finished())
        watch.leave()
        return result

    def _finished(self) -> Generator[Any, Any, Any]:
        """In the node's context: what it still does, and what comes after it."""
        try:
            result = yield from self._value.__await__()
        except BaseException as error:
            self._watch.finish(None, error)
            raise
        self._watch.finish(result, None)
        return result

    def close(self) -> None:
        close(self._value)


class Held(NamedTuple):
    """The stand-in that an adapter has given for a node elsewhere: it is not to be awaited."""

    value: Any


def unheld(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with what adapters have given as it is."""
    return {n: value.value if type(value) is Held else value for n, value in values.items()}
