"""The data store and the event broker of a project, connected once for each event loop.

Whoever needs them holds them; the first connects, the last closes. So a plain `await add_job()`
inside an open project, or beside a worker in the same process, uses what is connected already,
and wakes that worker without a detour.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp_async import config as configs
from fp_async import events, stores, tracing
from fp_async.config import DataStore, EventBroker, SchedulerFile, WorkerSettings
from fp_async.errors import UsageError
from fp_async.jobs import Job

if TYPE_CHECKING:
    from fp_async.observing import Observer

_FLUSH = 1.0  # seconds that a process about to end gives its wake-ups to leave


class Nearby:
    """What workers and callers in one process tell each other beside the store, to be quick.

    `adding` are jobs on their way into the store, and whether a worker here has claimed them by
    now; `awaited` are jobs that somebody waits for, and their outcome, once that is stored.
    """

    def __init__(self) -> None:
        self.workers = 0
        self.adding: dict[str, bool] = {}
        self.awaited: dict[str, Job | None] = {}

    def claimed(self, jobs: Iterable[Job]) -> None:
        """A worker here has these."""
        for job in jobs:
            if job.id in self.adding:
                self.adding[job.id] = True


class Backend:
    """A connected store with its wake-ups. `users` counts who holds it."""

    def __init__(self, root: Path, file: SchedulerFile) -> None:
        settings = file.data_store or DataStore()
        self.root = root
        self._settings = settings
        self.worker = file.worker or WorkerSettings()
        self.store = stores.connect(settings, root)
        self.hub = events.Hub(_transport(root, settings, file.event_broker or EventBroker()))
        self.nearby = Nearby()
        self.observers: list[Observer] = tracing.observers()
        self.users = 0
        self._hub_task: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()

    def another_store(self) -> stores.Store:
        """One more connection to the same store, not opened yet: for another thread."""
        return stores.connect(self._settings, self.root)

    async def acquire(self) -> None:
        """Connect, unless somebody has. Raises StoreError, StoreUnavailableError."""
        self.users += 1
        if self._hub_task is not None:
            return
        try:
            async with self._opening:
                if self._hub_task is None:
                    await self.store.open()
                    self._hub_task = asyncio.create_task(self.hub.run(), name="fp-wake-ups")
        except BaseException:
            self.users -= 1
            raise

    async def release(self) -> None:
        """Let go; the last one closes."""
        self.users -= 1
        if self.users:
            return
        async with self._opening:
            task = self._hub_task
            if self.users or task is None:  # somebody has come while we waited, or has closed
                return
            self._hub_task = None
            try:
                await self.hub.flush(_FLUSH)
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                await self.store.close()


def check(root: Path, file: SchedulerFile) -> None:
    """What cannot be connected to, however well it is: ConfigError, MissingExtraError."""
    settings = file.data_store or DataStore()
    stores.connect(settings, root)
    _transport(root, settings, file.event_broker or EventBroker())


def _transport(root: Path, store: DataStore, broker: EventBroker) -> events.Transport | None:
    kind, uri = stores.backend(store)
    path = stores.sqlite_path(uri, root) if kind == "sqlite" else None
    return events.transport(
        broker, stores.namespace(store, root), folder=path, uri=uri if kind == "postgres" else None
    )


_Key = tuple[Path, asyncio.AbstractEventLoop]
More = Callable[[Backend], AbstractAsyncContextManager[Any]]


class Keep:
    """What an open project keeps connected, from the first call that needs it.

    `more` is entered then too: the worker in the background, say.
    """

    def __init__(self, more: More) -> None:
        self._more = more
        self._stack = AsyncExitStack()
        self.filled = False
        self._lock = asyncio.Lock()

    async def fill(self, backend: Backend) -> None:
        """Hold the backend as well, once."""
        async with self._lock:
            if self.filled:
                return
            await backend.acquire()
            self._stack.push_async_callback(backend.release)
            await self._stack.enter_async_context(self._more(backend))
            self.filled = True

    async def close(self, error: BaseException | None) -> None:
        """Let go of everything; `error` is what it all ends by, if it does."""
        kind, traceback = (type(error), error.__traceback__) if error else (None, None)
        await self._stack.__aexit__(kind, error, traceback)


_backends: dict[_Key, Backend] = {}
_keeps: dict[_Key, list[Keep]] = {}


class connected:  # noqa: N801 - a context manager, called as functions are
    """The backend of the project at `root`, shared with whoever holds it on this event loop.

    Raises ConfigError, MissingExtraError, StoreError. A class, because every job that is added
    goes through it: the generator of `@asynccontextmanager` costs four times as much.
    """

    __slots__ = ("_backend", "_key")

    def __init__(self, root: Path) -> None:
        self._key = (root, asyncio.get_running_loop())

    async def __aenter__(self) -> Backend:
        key = self._key
        backend = _backends.get(key)
        if backend is None:
            backend = _backends[key] = Backend(key[0], configs.read(key[0], "scheduler.yml"))
        self._backend = backend
        try:
            await backend.acquire()
        except BaseException:
            _forget(key, backend)
            raise
        try:
            for keep in _keeps.get(key, ()):
                if not keep.filled:
                    await keep.fill(backend)
        except BaseException:
            await self.__aexit__()
            raise
        return backend

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._backend.release()
        finally:
            _forget(self._key, self._backend)


@asynccontextmanager
async def kept(root: Path, more: More) -> AsyncIterator[None]:
    """Whatever is connected for `root` within the block stays so until its end."""
    key = (root, asyncio.get_running_loop())
    keep = Keep(more)
    _keeps.setdefault(key, []).append(keep)
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        _keeps[key].remove(keep)
        if not _keeps[key]:
            del _keeps[key]
        backend = _backends.get(key)
        await keep.close(error)
        if backend is not None:
            _forget(key, backend)


def _forget(key: _Key, backend: Backend) -> None:
    if not backend.users and _backends.get(key) is backend:
        del _backends[key]


def is_kept(backend: Backend) -> bool:
    """Whether an open project on this event loop holds it."""
    return bool(_keeps.get((backend.root, asyncio.get_running_loop())))


def check_kept(backend: Backend) -> None:
    """Refuse to store in a memory that is about to go: nobody else in this process holds it."""
    if not backend.store.shared and backend.users < 2:
        raise UsageError(
            "the data store is of type memory, and nothing holds it: what is added would be "
            "lost at once; use `async with Project(...)`, run `start_worker()` in the same event "
            "loop, or set another data_store in conf/scheduler.yml"
        )
