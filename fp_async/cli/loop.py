"""An event loop for a command: Ctrl-C and SIGTERM cancel what runs in it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any

from fp_async.cli import fail

_GRACE = 3.0  # seconds that a node which blocks the loop gets after the signal
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def run_until_signalled(main: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run`, but a signal cancels `main` and ends the process with 128 + its number."""
    received: list[int] = []

    async def body() -> Any:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            received.append(number)
            loop.call_soon_threadsafe(task.cancel)
            late = threading.Timer(_GRACE, _fail, (number,))
            late.daemon = True
            late.start()

        for number in _WORDS:
            signal.signal(number, stop)
        return await main

    try:
        return asyncio.run(body())
    except asyncio.CancelledError:
        if not received:
            raise
        return _fail(received[0])


def _fail(number: int) -> None:
    fail(_WORDS[signal.Signals(number)], 128 + number)
