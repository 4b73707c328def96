"""The end of a process as Python has it, short of taking the interpreter down.

At the end of a script Python waits for threads that are no daemons, calls what was registered
with `atexit`, and destroys all objects. Our processes do the first two, then call `os._exit`: the
third takes a tenth of a second with pandas, and crashes where an abandoned node is in C code.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable

from fp_async.runtime.node_thread import NodeThread

_SLOW = 2.0


def wait_for_threads(tell: Callable[[list[str]], object]) -> None:
    """Wait for pools with work and for threads that are no daemons, as long as that takes.

    `tell` gets their names if that takes longer than two seconds.
    """
    slow = threading.Timer(_SLOW, lambda: tell(waited_for()))
    slow.daemon = True
    if waited_for():
        slow.start()
    threading._shutdown()  # type: ignore[attr-defined]
    slow.cancel()


def waited_for() -> list[str]:
    """Return the names of the threads that the end of this process waits for."""
    return [each.name for each in threading.enumerate() if _is_waited_for(each)]


def _is_waited_for(thread: threading.Thread) -> bool:
    ours = thread is threading.main_thread() or isinstance(thread, NodeThread)
    return not ours and not thread.daemon


def at_work(before: frozenset[threading.Thread] = frozenset()) -> list[str]:
    """Return the names of the threads which `waited_for` names and which have work: those of pools
    where a pool has work, the others unless they are of `before`.
    """
    threads = [each for each in threading.enumerate() if _is_waited_for(each)]
    return [each.name for each in threads if _has_work(each, before)]


def _has_work(thread: threading.Thread, before: frozenset[threading.Thread]) -> bool:
    pending = getattr(thread, "pending_work_items", None)  # of a pool of processes, or of joblib
    if pending is not None:
        return bool(pending)
    pools = sys.modules.get("concurrent.futures.thread")
    if pools is None or (work := pools._threads_queues.get(thread)) is None:
        return thread not in before
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None or frame.f_code is not pools._worker.__code__:
        return True
    return not work.empty() or "work_item" in frame.f_locals  # else it waits for some


def call_exit_functions() -> None:
    """Call what was registered with `atexit`, the latest first. Python prints their errors."""
    atexit._run_exitfuncs()


def end_within(seconds: float, code: Callable[[], int]) -> None:
    """End this process `seconds` from now with `code()`, if it still lives."""

    def end() -> None:
        os._exit(code())

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
