"""Clusters that stages run on: `executor: ray` and `executor: dask`.

An engine takes stages whose inputs are already on the cluster, and gives references to what comes
out; only reports, and what is asked for, come back. A process connects to a cluster, or starts its
own, once; runs on any event loop share it, and it is ended with the process.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from fp_async.config import ExecutorSettings
from fp_async.errors import ClusterError, FlowerPowerError, UsageError, describe
from fp_async.onsite import Errand, Report
from fp_async.parcels import Parcel

SMALL = 65_536  # bytes that travel with a task instead of on their own
_ENDING = 10.0  # seconds that a cluster gets to end with the process

log: logging.Logger = logging.getLogger("fp_async")


class Task(Protocol):
    """A stage on a cluster. `outputs` are references to what its nodes leave there."""

    @property
    def outputs(self) -> Sequence[Any]:
        """As many as the stage has outputs."""

    async def report(self) -> Report:
        """How it went. Raises ProcessDiedError where that got lost, ClusterError."""

    async def cancel(self) -> None:
        """End it and what it runs, within a bound."""


class Engine(Protocol):
    """A cluster. References are what `submit` takes as inputs."""

    name: str
    private: bool  # whether a worker's process runs one task at a time
    ends_stuck: bool  # whether a node that nothing else ends takes its process with it
    packs: bool  # whether all that a task gives is packed at once
    has: dict[str, float] | None  # the most of each resource that a task can ever get, if known

    def alive(self) -> bool:
        """Whether it can still be used."""

    def send(self, parcel: Parcel) -> Any:
        """A reference to a packed value. May block for as long as copying it takes."""

    async def fetch(self, reference: Any) -> Parcel:
        """The value behind a reference."""

    def submit(
        self,
        errand: Errand,
        inputs: Sequence[Any],
        *,
        resources: dict[str, float] | None,
        retries: int,
    ) -> Task:
        """Have a stage run as soon as there is room; `retries` times again if its worker dies."""

    def close(self) -> None:
        """End what was started, or the connection to what was not."""


class _Connection:
    """An engine and the thread that it belongs to: Linux ends what a thread has started with it."""

    def __init__(
        self, start: Callable[[], Engine], name: str, before: _Connection | None = None
    ) -> None:
        self.engine: concurrent.futures.Future[Engine] = concurrent.futures.Future()
        self.runs = 0  # that use it
        self._start = start
        self._before = before  # what it takes the place of
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"fp-{name}", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        self.engine.set_running_or_notify_cancel()
        try:
            if self._before is not None:
                self._before.close()
                self._before = None
            engine = self._start()
        except BaseException as error:
            self.engine.set_exception(error)
            return
        self.engine.set_result(engine)
        self._end.wait()
        try:
            engine.close()
        except Exception:
            log.warning("the cluster did not end cleanly", exc_info=True)

    def usable(self) -> bool:
        """Whether it is starting, or runs."""
        if not self.engine.done():
            return True
        return self.engine.exception() is None and self.engine.result().alive()

    def close(self) -> None:
        self._end.set()
        self._thread.join(_ENDING)


_connections: dict[str, _Connection] = {}
on_connect: list[Callable[[], None]] = []  # called in the loop's thread before the first one
_lock = threading.Lock()


@asynccontextmanager
async def connected(settings: ExecutorSettings, client: Any = None) -> AsyncIterator[Engine]:
    """The engine for these settings, started or connected to if it is not yet, to run something.

    `client` is a connection of the user's own, which stays the user's. Cancelling waits no
    longer; the cluster goes on starting for the next run. Raises ClusterError, UsageError.
    """
    if client is not None:
        from fp_async.engines.dask import attached

        yield attached(client)
        return
    with _lock:
        connection = _connection(settings)
        connection.runs += 1
    try:
        yield await _established(connection, settings)
    finally:
        with _lock:
            connection.runs -= 1


async def _established(connection: _Connection, settings: ExecutorSettings) -> Engine:
    try:
        return await asyncio.wrap_future(connection.engine)
    except FlowerPowerError:
        raise
    except Exception as error:
        where = f" at {settings.address}" if settings.address else ""
        raise ClusterError(f"no connection to {settings.type}{where}: {describe(error)}") from error


def _connection(settings: ExecutorSettings) -> _Connection:
    key = _key(settings)
    found = _connections.get(key)
    if found is not None and found.usable():
        return found
    if not _connections:
        atexit.register(shutdown)
        for told in on_connect:
            told()
    before = found or (_other_ray(key) if settings.type == "ray" else None)
    _connections[key] = connection = _Connection(_starter(settings), settings.type, before)
    return connection


def _key(settings: ExecutorSettings) -> str:
    if settings.type == "dask":
        return f"dask {settings.address} {settings.max_workers} {settings.options}"
    return f"ray {settings.address or ''}"


def _other_ray(key: str) -> _Connection | None:
    """The one to be ended: a process is connected to one Ray at a time. Raises UsageError."""
    others = [k for k, c in _connections.items() if k.startswith("ray ") and k != key]
    for other in others:
        if _connections[other].runs and _connections[other].usable():
            raise UsageError(
                f"this process runs something on {_where(other)}: it can use one cluster of Ray "
                f"at a time, not {_where(key)} beside it"
            )
    return _connections.pop(others[0]) if others else None


def _where(key: str) -> str:
    return key.replace("ray ", "Ray at ") if key != "ray " else "a Ray of its own"


def _starter(settings: ExecutorSettings) -> Callable[[], Engine]:
    def start() -> Engine:
        if settings.type == "ray":
            from fp_async.engines import ray

            return ray.start(settings)
        from fp_async.engines import dask

        return dask.start(settings)

    return start


def shutdown() -> None:
    """End the clusters that this process has started, and its connections to others.

    Done by itself when the interpreter ends.
    """
    with _lock:
        ending = list(_connections.values())
        _connections.clear()
    for connection in ending:
        connection.close()
