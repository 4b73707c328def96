"""Context managers that nodes enter and the end of their run leaves."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, TypeVar, overload

import anyio

from fp_async.errors import UsageError

T = TypeVar("T")
_PATIENCE = 30.0  # seconds that all of it gets to be closed
log: logging.Logger = logging.getLogger("fp_async")
Aside = Callable[[Callable[[], Any]], Awaitable[Any]]


class _Entered(NamedTuple):
    """Something that was entered by the function `by`, and how it is left."""

    by: str
    leave: Callable[..., Any]
    awaited: bool


class ClosingError(Exception):
    """A resource that the function `by` keeps open could not be closed, because of `cause`."""

    def __init__(self, by: str, cause: Exception) -> None:
        self.by = by
        self.cause = cause
        super().__init__(by)


class KeptOpen:
    """The context managers that nodes of one run have entered. May be used from several threads."""

    def __init__(self) -> None:
        self._entered: list[_Entered] = []
        self._lock = threading.Lock()
        self._closed = False

    def add(self, entered: _Entered) -> bool:
        """Remember it; False where the run has ended, as it has for an abandoned node."""
        with self._lock:
            if not self._closed:
                self._entered.append(entered)
            return not self._closed

    def end(self) -> bool:
        """Take no more; return whether there is something to close."""
        with self._lock:
            self._closed = True
        return bool(self._entered)

    async def close(self, error: BaseException | None, aside: Aside) -> None:
        """Leave all of it, the latest first, with the error of the run, or of what was left before.

        Sync ones are called by `aside`. Cancelling does not cut it off; what takes longer than
        30 s is given up. Raises ClosingError for the first that fails after a run without an error.
        """
        if not self.end():
            return
        failed: ClosingError | None = None
        with anyio.move_on_after(_PATIENCE, shield=True) as scope:
            failed = await _left(self._entered[::-1], error, aside)
        if scope.cancelled_caught:
            log.warning("what nodes keep open is not closed within %g s", _PATIENCE)
        if failed is not None:
            raise failed


async def _left(
    entered: list[_Entered], error: BaseException | None, aside: Aside
) -> ClosingError | None:
    failed: ClosingError | None = None
    for each in entered:
        told = (None, None, None) if error is None else (type(error), error, error.__traceback__)
        try:
            if each.awaited:
                await each.leave(*told)
            else:
                await aside(partial(each.leave, *told))
        except Exception as raised:
            if error is not None:
                log.exception("what '%s' keeps open could not be closed", each.by)
                continue
            error, failed = raised, ClosingError(each.by, raised)
    return failed


current: ContextVar[KeptOpen | None] = ContextVar("fp_kept_open", default=None)


@overload
def keep_open(manager: AbstractContextManager[T, Any]) -> T: ...
@overload
def keep_open(manager: AbstractAsyncContextManager[T, Any]) -> Awaitable[T]: ...
def keep_open(manager: Any) -> Any:
    """Enter a context manager in a node; it is left when the run has ended, the latest first.

    Returns what it gives; for an async one, what to await for that. It is told of the error by
    which the run ends, and cannot swallow it. If it fails after a run that went well, the run
    fails. Raises UsageError outside of a run, and in a node that runs in another process.
    """
    kept, by = current.get(), sys._getframe(1).f_code.co_name
    if kept is None:
        raise UsageError(
            "keep_open: there is no run here that would close it: call it in a node that runs in "
            "the process of the run (not with executor processpool, ray or dask)"
        )
    if hasattr(type(manager), "__aenter__"):
        return _enter_async(kept, by, manager)
    value = manager.__enter__()
    if not kept.add(_Entered(by, manager.__exit__, awaited=False)):
        manager.__exit__(None, None, None)
        raise _over(by)
    return value


async def _enter_async(kept: KeptOpen, by: str, manager: Any) -> Any:
    value = await manager.__aenter__()
    if not kept.add(_Entered(by, manager.__aexit__, awaited=True)):
        await manager.__aexit__(None, None, None)
        raise _over(by)
    return value


def _over(by: str) -> UsageError:
    return UsageError(f"keep_open: the run has ended without '{by}', and what it opened is closed")
