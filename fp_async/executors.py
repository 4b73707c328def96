"""Where sync nodes run: which executors there are, and what each needs.

`local` runs them on the event loop (for trivial nodes, and for code bound to the loop's
thread), `threadpool` in worker threads, `processpool` in child processes, `hamilton` through
Hamilton's own AsyncDriver. Coroutine functions always run on the event loop.
"""

from __future__ import annotations

import functools

from fp_async.config import ExecutorSettings
from fp_async.errors import MissingExtraError, UnknownNameError
from fp_async.threads import Threads

DEFAULT = "threadpool"
NAMES = ("local", "threadpool", "processpool", "hamilton")
EXTRAS = ("ray", "dask")


def resolve(executor: str | ExecutorSettings | None) -> ExecutorSettings:
    """The settings of an executor given by name or in full.

    Raises UnknownNameError for a name that does not exist, MissingExtraError for one whose
    engine is not there.
    """
    if not isinstance(executor, ExecutorSettings):
        executor = ExecutorSettings(type=executor or DEFAULT)
    if executor.type in EXTRAS:
        raise MissingExtraError(f"executor '{executor.type}'", executor.type)
    if executor.type not in NAMES:
        raise UnknownNameError("executor", executor.type, (*NAMES, *EXTRAS))
    return executor


@functools.cache
def threads(max_workers: int | None) -> Threads:
    """The process-wide threads with this limit; runs share them."""
    return Threads(max_workers)
