"""The contexts of runs with hooks: what a hook sets with a `ContextVar` is there for what follows.

A run has one, and each node one of its own, begun with what the nodes that it reads have left.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextvars import Context
from typing import Any

from fp_async.awaitables import close
from fp_async.threads import Threads, in_thread

_NONE = object()


class Scope:
    """A context that calls, threads and awaitables enter, one after the other.

    A thread that was abandoned may be in it for ever: then a copy takes its place.
    """

    __slots__ = ("_context", "_lent")

    def __init__(self, context: Context | None = None) -> None:
        self._context = context or contextvars.copy_context()
        self._lent = False

    @property
    def context(self) -> Context:
        """The context, where nobody is in it."""
        if self._lent:
            self._context, self._lent = self._context.copy(), False
        return self._context

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the context."""
        return self.context.run(function, *args)

    async def in_thread(self, threads: Threads, function: Callable[[], Any]) -> Any:
        """Call a function in the context and in a thread. Cancelling abandons it there."""
        context, self._lent = self.context, True

        def work() -> Any:
            try:
                return context.run(function)
            finally:
                if self._context is context:
                    self._lent = False

        return await in_thread(threads, work)

    def awaited(self, value: Awaitable[Any]) -> Awaitable[Any]:
        """The awaitable, each of whose steps is made in the context."""
        return _Within(self, value)

    def steps(self, inner: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Step through an awaiting generator in the context; yield what it yields to the loop."""
        sent: Any = None
        error: BaseException | None = None
        while True:
            try:
                if error is None:
                    waits_for = self.context.run(inner.send, sent)
                else:
                    waits_for = self.context.run(inner.throw, error)
            except StopIteration as stop:
                return stop.value
            finally:
                error = None
            try:
                sent = yield waits_for
            except GeneratorExit:
                self.call(inner.close)
                raise
            except BaseException as raised:
                error = raised


class _Within:
    """An awaitable in a scope; can be closed without being awaited."""

    __slots__ = ("_scope", "_value")

    def __init__(self, scope: Scope, value: Awaitable[Any]) -> None:
        self._scope = scope
        self._value = value

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._scope.steps(self._scope.call(self._value.__await__))

    def close(self) -> None:
        close(self._value)


class Scopes:
    """Those of the nodes of one execution, which belongs to the context that makes this."""

    def __init__(self) -> None:
        self._run = contextvars.copy_context()
        self._left: dict[int, Context] = {}
        self._read: set[int] = set()

    def begin(self, reads: Sequence[tuple[str, int]]) -> Scope:
        """The scope of a node that reads these, by argument."""
        context: Context | None = None
        for _, source in reads:
            left = self._left.get(source)
            if left is None:
                continue
            self._read.add(source)
            if context is None:
                context = left.copy()
            else:
                self._add(context, left)
        return Scope(self._run.copy() if context is None else context)

    def end(self, node: int, scope: Scope) -> None:
        """The node has ended, and leaves this to those that read it."""
        self._left[node] = scope.context

    def close(self) -> None:
        """Leave to the calling context what the last nodes have left."""
        for node, left in self._left.items():
            if node not in self._read:
                adopt(left, self._run)
        self._left.clear()

    def _add(self, context: Context, left: Context) -> None:
        context.run(adopt, left, self._run)


def adopt(left: Context, before: Context) -> None:
    """Set in the calling context what `left` has and `before` had not."""
    for variable, value in left.items():
        if before.get(variable, _NONE) is not value:
            variable.set(value)
