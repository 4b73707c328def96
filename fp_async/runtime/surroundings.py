"""What belongs to a process and a job may change: the next job finds it as it was.

What modules change while they are imported stays, since they are not imported again: the
environment variables of a library, the handlers of a logging configuration. What changes while
nodes run is put back. Not put back: globals of modules and options of libraries (pandas, numpy's
error state), threads, open files, what was registered with `atexit`.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, fifty times as fast
import ctypes
import gc
import locale
import logging
import os
import random
import resource
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

_Item = tuple[Callable[[], Any], Callable[[Any], object]]  # what reads it, what puts it back
_LIMITED = ("AS", "CORE", "CPU", "DATA", "FSIZE", "NOFILE", "NPROC", "STACK")
_LIMITS = [getattr(resource, f"RLIMIT_{name}") for name in _LIMITED]
_SIGNALS = sorted(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
_MT19937 = 624 * 4 + 4  # bytes: its key and its place in that
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


class Surroundings:
    """The surroundings of the jobs of this process.

    `keep` before nodes run, `settle` once they have, `restore` when nobody waits for it any more.
    """

    def __init__(self) -> None:
        self._folder = Path.cwd()
        self._streams = (sys.stdout, sys.stderr)
        self._files = [os.fstat(number) for number in (1, 2)]
        self._kept: list[Any] = []
        self._modules = 0  # that were imported when all was kept
        self.cluster = False  # which changes what it likes, for as long as it is connected
        self.keep()

    def keep(self) -> None:
        """Remember what is to be restored: after modules were imported, before nodes run."""
        if self._modules == len(sys.modules):  # nothing else than `.env` can have changed it
            self._kept[_ENVIRONMENT] = _environment()
            return
        self._modules = len(sys.modules)
        self._kept = [read() for read, _ in _ITEMS]

    def settle(self) -> bool:
        """Put back what may fail, and write what was printed; False where that cannot be."""
        try:
            if not self.cluster:
                self._put_back(_FAILING)
            return self._restore_place()
        except (OSError, ValueError):  # a folder that is gone, a limit that was lowered for good
            return False

    def restore(self) -> None:
        """Put back the rest, as far as it has changed."""
        if self.cluster:
            return
        for number in range(len(_ITEMS)):
            self._put_back(number)
        # A seed of one job must not make the next one's numbers known. Entropy would cost 16 us.
        random.seed(time.time_ns() ^ os.getpid() << 64)

    def _put_back(self, number: int) -> None:
        read, put_back = _ITEMS[number]
        if read() != self._kept[number]:
            put_back(self._kept[number])
            self._kept[number] = read()  # the same, but of generators of random numbers

    def _restore_place(self) -> bool:
        os.chdir(self._folder)
        sys.stdout, sys.stderr = self._streams
        for stream in self._streams:
            stream.flush()
        return all(map(os.path.samestat, self._files, map(os.fstat, (1, 2))))


def _environment() -> dict[Any, Any]:
    return dict(os.environ._data)  # type: ignore[attr-defined]  # as bytes: nothing is decoded


def _set_environment(kept: dict[Any, Any]) -> None:
    now = _environment()
    for key in now.keys() - kept.keys():
        del os.environ[os.fsdecode(key)]
    for key, value in kept.items():
        if now.get(key) != value:
            os.environ[os.fsdecode(key)] = os.fsdecode(value)
    if now.get(b"TZ") != kept.get(b"TZ"):
        time.tzset()


def _mask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _loggers() -> list[Any]:
    root = logging.getLogger()
    named = [each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    return [
        (root.manager.disable, logging.raiseExceptions),
        *((each, _of_logger(each)) for each in (root, *named)),
    ]


def _of_logger(each: logging.Logger) -> tuple[Any, ...]:
    return each.level, each.propagate, each.disabled, list(each.handlers), list(each.filters)


def _set_loggers(kept: list[Any]) -> None:
    (disable, logging.raiseExceptions), *loggers = kept
    logging.disable(disable)
    known = {id(each) for each, _ in loggers}
    for each, (level, propagate, disabled, handlers, filters) in loggers:
        if _of_logger(each) != (level, propagate, disabled, handlers, filters):
            each.setLevel(level)
            each.propagate, each.disabled = propagate, disabled
            each.handlers[:], each.filters[:] = handlers, filters
    for name, each in logging.getLogger().manager.loggerDict.items():
        if isinstance(each, logging.Logger) and id(each) not in known and name not in sys.modules:
            each.setLevel(logging.NOTSET)  # made by a node, not by a library that it has imported
            each.propagate, each.disabled = True, False
            each.handlers.clear()
            each.filters.clear()


def _handlers() -> list[Any]:
    return [_signal.getsignal(number) for number in _SIGNALS]


def _set_handlers(kept: list[Any]) -> None:
    for number, handler in zip(_SIGNALS, kept, strict=True):
        if handler is not None and _signal.getsignal(number) != handler:
            signal.signal(number, handler)


def _set_timers(_: Any) -> None:
    for timer in _TIMERS:
        signal.setitimer(timer, 0.0)


def _limits() -> list[tuple[int, int]]:
    return [resource.getrlimit(which) for which in _LIMITS]


def _set_limits(kept: list[tuple[int, int]]) -> None:
    for which, limits in zip(_LIMITS, kept, strict=True):
        resource.setrlimit(which, limits)  # ValueError where the hard one was lowered


def _set_warnings(kept: list[Any]) -> None:
    warnings.filters[:] = kept  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _set_collecting(kept: tuple[bool, tuple[int, int, int]]) -> None:
    (gc.enable if kept[0] else gc.disable)()
    gc.set_threshold(*kept[1])


def _set_path(kept: list[str]) -> None:
    sys.path[:] = kept


def _random_of_numpy() -> Any:
    """Return the state of numpy's global generator; None where numpy is not loaded."""
    numpy = sys.modules.get("numpy.random")
    if numpy is None or not hasattr(numpy, "get_bit_generator"):
        return None
    generator = numpy.get_bit_generator()
    if type(generator).__name__ != "MT19937":  # set by the program: nothing is known of it
        return None
    return ctypes.string_at(generator.ctypes.state_address, _MT19937)  # 2 us; `get_state` takes 80


def _forget_seed_of_numpy(_: Any) -> None:
    sys.modules["numpy.random"].seed()


_ENVIRONMENT, _FAILING = 0, 1  # places in what follows
_ITEMS: tuple[_Item, ...] = (
    (_environment, _set_environment),
    (_limits, _set_limits),
    (_mask, os.umask),
    (_loggers, _set_loggers),
    (_handlers, _set_handlers),
    (lambda: [signal.getitimer(timer) for timer in _TIMERS], _set_timers),
    (lambda: locale.setlocale(locale.LC_ALL), lambda kept: locale.setlocale(locale.LC_ALL, kept)),
    (lambda: list(warnings.filters), _set_warnings),
    (lambda: list(sys.path), _set_path),
    (lambda: (gc.isenabled(), gc.get_threshold()), _set_collecting),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    (_random_of_numpy, _forget_seed_of_numpy),
)
