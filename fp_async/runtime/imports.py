"""Heavy imports that do not hold an event loop up."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
import threading


async def imported(name: str) -> None:
    """Import a module in a thread, if this process has not: Hamilton, with pandas, takes a second.

    An import that fails is not reported here but by the `import` statement that comes after, in
    the words of its place. Cancelling leaves the import to end by itself; the interpreter waits
    for it, as one that is broken off in C code may crash.
    """
    if _is_there(name):
        return
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def work() -> None:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=work, name=f"fp-import {name}").start()
    await done.wait()


def _is_there(name: str) -> bool:
    """Return whether a module is imported, and no other thread is still at it."""
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)
