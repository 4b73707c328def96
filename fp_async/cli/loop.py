"""An event loop for a command: Ctrl-C and SIGTERM cancel what runs in it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, Literal

from fp_async import log_levels
from fp_async.cli import fail, fail_at_once

_GRACE = 3.0  # seconds that what the signal has ended gets to end
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def run_until_signalled(main: Coroutine[Any, Any, Any], finish: Callable[[Any], None]) -> None:
    """`asyncio.run(main)`, then `finish` with what it returns.

    The first signal cancels `main` or breaks `finish` off, so that both clean up, and ends the
    process with 128 + its number; the second ends it at once.
    """
    log_levels.show_ours()
    signals = _Signals()
    for number in _WORDS:
        signal.signal(number, signals)
    try:
        result = asyncio.run(signals.cancelling(main))
        signals.begin_breaking_off()
        finish(result)
    except (asyncio.CancelledError, _BrokenOffError):
        if signals.received is None:
            raise
        broken_off = signals.phase == "break off"
        signals.phase = "leave"
        # what is broken off may have filled a pipe: `fail` would wait to write the rest of it
        leave = fail_at_once if broken_off else fail
        leave(*_words(signals.received))
    finally:
        signals.phase = "leave"


class _BrokenOffError(BaseException):
    """A signal has come; like KeyboardInterrupt, no error that anything may handle."""


class _Signals:
    """The handler of the signals: what they do depends on what the process is at."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.phase: Literal["leave", "cancel", "break off"] = "leave"
        self._cancel: Callable[[], Any] = lambda: None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None or self.phase == "leave":
            fail_at_once(*_words(number))
        self.received = number
        late = threading.Timer(_GRACE, self._leave_late, (number,))
        late.daemon = True
        late.start()
        if self.phase == "break off":
            raise _BrokenOffError
        self._cancel()

    def _leave_late(self, number: int) -> None:
        """What takes so long may be the leaving itself, when all has been said."""
        if self.phase == "leave":
            os._exit(128 + number)
        fail_at_once(*_words(number))

    async def cancelling(self, main: Coroutine[Any, Any, Any]) -> Any:
        """Await `main`, which a signal cancels."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def cancel() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)

        self._cancel, self.phase = cancel, "cancel"
        return await main

    def begin_breaking_off(self) -> None:
        """The loop has ended. A signal that came too late to cancel anything still counts."""
        self.phase = "break off"
        if self.received is not None:
            raise _BrokenOffError


def _words(number: int) -> tuple[str, int]:
    return _WORDS[signal.Signals(number)], 128 + number
