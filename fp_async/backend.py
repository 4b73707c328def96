"""The data store and the event broker of a project, connected once for each event loop.

Whoever needs them holds them; the first connects, the last closes. So a plain `await add_job()`
inside an open project, or beside a worker in the same process, uses what is connected already,
and wakes that worker without a detour.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from fp_async import addresses, config_files, events, rules, stores, tracing
from fp_async.config import DataStore, EventBroker, WorkerSettings
from fp_async.errors import MisconfiguredError, UsageError
from fp_async.jobs import Job, Report
from fp_async.runtime.imports import imported
from fp_async.values import arguments

if TYPE_CHECKING:
    from fp_async.observing import Observer

T = TypeVar("T")
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

    def reported(self, job: Job, report: Report) -> None:
        """Give the stored outcome of a worker in this process to the waiters here, which need not
        read the row.
        """
        if job.id in self.awaited:
            changes = rules.reported(job, report, time.time())
            if changes and report.event in ("succeed", "fail"):
                self.awaited[job.id] = msgspec.structs.replace(job, **changes)


class Address(msgspec.Struct, frozen=True):
    """A data store and an event broker that belong to no project here."""

    store: DataStore
    broker: EventBroker = EventBroker()

    def __repr__(self) -> str:
        return addresses.place(self.store.uri or "")


Where = Path | Address  # a project's folder, whose conf/scheduler.yml says where the store is
_BROKERS: dict[str, Literal["postgres", "redis", "mqtt"]] = {
    "postgresql": "postgres",
    "postgres": "postgres",
    "redis": "redis",
    "rediss": "redis",
    "unix": "redis",
    "mqtt": "mqtt",
    "mqtts": "mqtt",
    "ws": "mqtt",
    "wss": "mqtt",
}


def address(store: str, broker: str | None = None) -> Address:
    """Return the address that the URIs of a data store and of an event broker make.

    A relative SQLite path is relative to the working directory. Raises UsageError.
    """
    try:
        kind, uri = stores.kind_of(arguments.text("the URI of the data store", store))
    except ValueError as error:
        raise UsageError(f"the data store: {error}") from None
    if kind == "sqlite":
        path = stores.sqlite_path(uri, Path.cwd())
        if path is None:
            raise UsageError("the data store: one in memory belongs to its process; use Project")
        uri = f"sqlite:///{path}"
    return Address(DataStore(type="sqlalchemy", uri=uri), _broker(broker))


def _broker(uri: str | None) -> EventBroker:
    if uri is None:
        return EventBroker()
    arguments.text("the URI of event_broker", uri)
    found = _BROKERS.get(uri.partition("://")[0].partition("+")[0])
    if found is None or "://" not in uri:
        valid = ", ".join(_BROKERS)
        raise UsageError(f"event_broker: begin the URI with one of: {valid}")
    return EventBroker(type=found, uri=uri)


class Backend:
    """A connected store with its wake-ups. `users` counts who holds it."""

    def __init__(self, where: Where, store: DataStore, broker: EventBroker) -> None:
        self.where = where
        self._settings = store
        self.broker = broker
        self.replaced: list[Callable[[], object]] = []
        self.store: stores.Store = stores.connect(store, _folder(where), self._was_replaced)
        self.hub: events.Hub = events.Hub(_transport(where, store, broker))
        self.nearby: Nearby = Nearby()
        self.observers: list[Observer] = tracing.observers()
        self.users: int = 0
        self._hub_task: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()

    @cached_property
    def worker(self) -> WorkerSettings:
        """`worker` of conf/scheduler.yml. Raises ConfigError."""
        if isinstance(self.where, Address):
            return WorkerSettings()
        return _section(self.where, "worker", WorkerSettings)

    @property
    def poll_interval(self) -> float:
        """Seconds after which those who wait look again, whatever is wrong with `worker`."""
        try:
            return self.worker.poll_interval
        except MisconfiguredError:
            return WorkerSettings().poll_interval

    def _was_replaced(self) -> None:
        """Tell those who have something to put into the new store, and those who fire from it."""
        for tell in list(self.replaced):
            tell()
        self.hub.publish("schedules")

    def another_store(self) -> stores.Store:
        """One more connection to the same store, not opened yet: for another thread."""
        return stores.connect(self._settings, _folder(self.where))

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


def _folder(where: Where) -> Path:
    """Return the folder that relative paths mean; those of an address are absolute."""
    return where if isinstance(where, Path) else Path("/")


def check(root: Path) -> None:
    """What cannot be connected to, however well it is: ConfigError, MissingExtraError."""
    settings, broker = _places(root)
    stores.connect(settings, root)
    _transport(root, settings, broker)


def _places(where: Where) -> tuple[DataStore, EventBroker]:
    if isinstance(where, Address):
        return where.store, where.broker
    root = where
    return _section(root, "data_store", DataStore), _section(root, "event_broker", EventBroker)


def _section(root: Path, name: str, kind: type[T]) -> T:
    """A section of conf/scheduler.yml, which the others do not concern."""
    return config_files.section(root, "scheduler.yml", name, kind) or kind()


def _transport(where: Where, store: DataStore, broker: EventBroker) -> events.Transport | None:
    kind, uri = stores.backend(store)
    root = _folder(where)
    return events.transport(
        broker,
        stores.namespace(store, root),
        folder=_file(where, store),
        uri=uri if kind == "postgres" else None,
    )


def _file(where: Where, store: DataStore) -> Path | None:
    kind, uri = stores.backend(store)
    return stores.sqlite_path(uri, _folder(where)) if kind == "sqlite" else None


def file_of(where: Where) -> Path | None:
    """Return the file that a SQLite store is, whether it exists or not; None for other stores.

    Raises MisconfiguredError, FileAccessError, ConfigError.
    """
    return _file(where, _places(where)[0])


_Key = tuple[Where, asyncio.AbstractEventLoop]
More = Callable[[Backend], AbstractAsyncContextManager[Any]]


class Keep:
    """What an open project keeps connected, from the first call that needs it.

    `more` is entered then too: the worker in the background, say.
    """

    def __init__(self, more: More) -> None:
        self._more = more
        self._stack = AsyncExitStack()
        self.filled: bool = False
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
    """The backend of a project or address, shared by all that hold it on this event loop.

    Raises ConfigError, MissingExtraError, StoreError. A class, because every job that is added
    goes through it: the generator of `@asynccontextmanager` costs four times as much.
    """

    __slots__ = ("_backend", "_key")

    def __init__(self, where: Where) -> None:
        self._key = (where, asyncio.get_running_loop())

    async def __aenter__(self) -> Backend:
        key = self._key
        backend = _backends.get(key)
        if backend is None:
            places = _places(key[0])
            await imported(stores.module(places[0]))
            backend = _backends.get(key) or Backend(key[0], *places)
            _backends[key] = backend
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
async def kept(where: Where, more: More) -> AsyncIterator[None]:
    """Whatever is connected for `where` within the block stays so until its end."""
    key = (where, asyncio.get_running_loop())
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
    return bool(_keeps.get((backend.where, asyncio.get_running_loop())))


def check_kept(backend: Backend) -> None:
    """Refuse to store in a memory that is about to go: nobody else in this process holds it."""
    if not backend.store.shared and backend.users < 2:
        raise UsageError(
            "the data store is of type memory, and nothing holds it: what is added would be "
            "lost at once; use `async with Project(...)`, run `start_worker()` in the same event "
            "loop, or set another data_store in conf/scheduler.yml"
        )
