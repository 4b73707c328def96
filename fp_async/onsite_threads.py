"""The threads in which a cluster's worker runs nodes: interrupting them, and what they write.

Python can raise an exception in another thread, which the thread meets when it is back in Python
code: a node that sleeps or computes in C goes on until then.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fp_async.nodes import AttemptTimeoutError
from fp_async.runtime.node_thread import NodeThread

GRACE = 1.0  # seconds that an interrupted node gets to end
_LOG_KEPT = 65_536  # characters

_here = threading.local()
_threads: dict[str, int] = {}  # which thread the nodes of an errand run in, by its token
_loops: dict[int, asyncio.AbstractEventLoop] = {}  # those that run now, by thread
_lock = threading.Lock()


class InterruptedNodeError(BaseException):
    """Raised in a node's thread when its run was cancelled."""


class StuckError(AttemptTimeoutError):
    """A node took longer than its timeout and did not hear of it."""


class Interruptible:
    """In this block the errand can be interrupted by its token; nothing is left of it after."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __enter__(self) -> None:
        with _lock:
            _threads[self._token] = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        with _lock:
            del _threads[self._token]
        _raise_in(threading.get_ident(), None)


async def interrupt(token: str) -> bool:
    """Raise InterruptedNodeError in an errand's node, if it runs here; whether it runs on."""
    with _lock:
        if token not in _threads:
            return False
        _raise_in(_threads[token], InterruptedNodeError)
    deadline = time.monotonic() + GRACE
    while token in _threads and time.monotonic() < deadline:  # noqa: ASYNC110 - another thread's
        await asyncio.sleep(0.02)
    return token in _threads


def within(work: Callable[[], Any], timeout: float, token: str) -> Any:
    """In a thread of its own, which is interrupted after `timeout` seconds.

    Raises AttemptTimeoutError, StuckError.
    """
    outcome: list[tuple[Any, BaseException | None]] = []
    listener = getattr(_here, "log", None)

    def run() -> None:
        _here.log = listener
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))
        finally:
            if hasattr(_here, "loop"):
                _here.loop.close()

    context = contextvars.copy_context()
    thread = NodeThread(target=context.run, args=(run,), name="fp-node")
    thread.start()
    _wait(thread, timeout, token)
    if not outcome:
        _raise_in(thread.ident or 0, AttemptTimeoutError)
        thread.join(GRACE)
        kind = StuckError if thread.is_alive() else AttemptTimeoutError
        raise kind(f"took longer than its timeout of {timeout:g} s")
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def _wait(thread: threading.Thread, timeout: float, token: str) -> None:
    outer = threading.get_ident()
    with _lock:
        _threads[token] = thread.ident or outer
    try:
        thread.join(timeout)
    finally:
        with _lock:
            _threads[token] = outer


def awaited(value: Any) -> Any:
    """Await a value in the event loop of this thread, which is kept for what is bound to it."""
    loop: asyncio.AbstractEventLoop | None = getattr(_here, "loop", None)
    if loop is None:
        loop = _here.loop = asyncio.new_event_loop()
    _loops[threading.get_ident()] = loop
    task = loop.create_task(_await(value))
    try:
        return loop.run_until_complete(task)
    except BaseException:
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
        raise
    finally:
        del _loops[threading.get_ident()]


async def _await(value: Any) -> Any:
    return await value


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    error = None if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)
    if kind is not None and thread in _loops:
        with suppress(RuntimeError):
            _loops[thread].call_soon_threadsafe(bool)  # it sleeps until something happens


# What nodes print and log ---------------------------------------------------------------------


class Log:
    """What one errand has written, up to a bound."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int, str]] = []
        self._left = _LOG_KEPT

    def write(self, name: str, level: int, text: str) -> None:
        if self._left > 0:
            self.lines.append((name, level, text[: self._left]))
            self._left -= len(text)


class Listening:
    """In this block what this thread prints and logs goes into `log`."""

    def __init__(self, log: Log, level: int) -> None:
        self._log = log
        self._level = level

    def __enter__(self) -> None:
        _listen(self._level)
        _here.log = self._log

    def __exit__(self, *_: object) -> None:
        _here.log = None


class _Stream:
    """A standard stream that knows whose thread writes."""

    def __init__(self, name: str, stream: Any) -> None:
        self._name = name
        self._stream = stream

    def write(self, text: str) -> int:
        log: Log | None = getattr(_here, "log", None)
        if log is None:
            self._stream.write(text)
        else:
            log.write(self._name, 0, text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log: Log | None = getattr(_here, "log", None)
        if log is not None:
            log.write(record.name, record.levelno, self.format(record))


_handler = _Handler()


def _listen(level: int) -> None:
    root = logging.getLogger()
    if _handler not in root.handlers:
        root.addHandler(_handler)
    if level < root.level:
        root.setLevel(level)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Stream):
            setattr(sys, name, _Stream(name, stream))
