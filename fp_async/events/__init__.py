"""Wake-ups: "there is work in queue X", "job Y ended". Hints, never truth.

A process has one `Hub` for each data store. Whoever waits listens first, then looks into the
store, then waits; a wake-up that is lost costs one `poll_interval`, never a job. All processes
that share a store share one channel of the broker, and filter here.

A `Transport` carries wake-ups between processes. It may lose, repeat and reorder them. After
every connect all listeners hear `*`: something may have been missed, so everybody looks.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import anyio

from fp_async import addresses
from fp_async.config import EventBroker
from fp_async.errors import BrokerError, ConfigError, UsageError, describe
from fp_async.events.outbox import EVERYTHING, WAITING_LIMIT, Outbox, unpacked

FIRST_PAUSE = 0.05
LOCAL_PATIENCE = 5.0
REMOTE_PATIENCE = 60.0
STEADY = 5.0  # seconds of connection after which a loss is a first failure again

Part = Callable[[], Coroutine[Any, Any, object]]
log: logging.Logger = logging.getLogger("fp_async")


class Transport(Protocol):
    """A connection to other processes; `patience` is the longest pause before a reconnect."""

    patience: float

    async def serve(
        self, hear: Callable[[bytes | str], None], outbox: Outbox, up: Callable[[], None]
    ) -> None:
        """Connect, subscribe, call `up`, then carry messages until the connection breaks.

        Raises BrokerError with the reason. Cancelling closes the connection, in under a second.
        """


class Listener:
    """Hears topics from `with` on; `wait` is for one task at a time."""

    def __init__(self, hub: Hub, topics: tuple[str, ...]) -> None:
        self._hub = hub
        self._topics = topics
        self._heard: set[str] = set()
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self, timeout: float | None = None) -> frozenset[str]:
        """The topics heard since the last wait, at once if there are any.

        Empty after `timeout` seconds. `*` means that anything may have happened. Cancelling
        loses nothing: what was heard is there for the next wait.
        """
        if not self._heard:
            await self._wake(timeout)
        heard = frozenset(self._heard)
        self._heard.clear()
        return heard

    async def _wake(self, timeout: float | None) -> None:
        if self._waiter is not None:
            raise UsageError("a listener can be waited on by one task at a time")
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = None if timeout is None else loop.call_later(timeout, _settle, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _hear(self, topic: str) -> None:
        heard = self._heard
        heard.add(topic)
        if len(heard) > WAITING_LIMIT:
            heard.clear()
            heard.add(EVERYTHING)
        if self._waiter is not None:
            _settle(self._waiter)

    def __enter__(self) -> Self:
        for listening, topic in map(self._hub._place, self._topics):
            listening.setdefault(topic, set()).add(self)
        return self

    def __exit__(self, *_: object) -> None:
        for listening, topic in map(self._hub._place, self._topics):
            others = listening.get(topic, set())
            others.discard(self)
            if not others:
                listening.pop(topic, None)


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Hub:
    """The wake-ups of one process for one data store. All of it belongs to one event loop."""

    def __init__(self, transport: Transport | None = None) -> None:
        self.problem: str = ""
        self._transport = transport
        self._outbox = Outbox()
        self._exact: dict[str, set[Listener]] = {}
        self._prefixes: dict[str, set[Listener]] = {}
        self._up = asyncio.Event()
        self._cancellations = 0
        if transport is None:
            self._up.set()

    def publish(self, *topics: str) -> None:
        """Wake this process's listeners now, and other processes soon. Never blocks or raises."""
        self._wake(topics)
        if self._transport is not None:
            self._outbox.put(topics)

    def publish_here(self, *topics: str) -> None:
        """Wake this process's listeners only."""
        self._wake(topics)

    def listen(self, *topics: str) -> Listener:
        """A listener for exact topics, for `prefix*`, or for `*`; it hears inside its `with`."""
        return Listener(self, topics)

    def _place(self, topic: str) -> tuple[dict[str, set[Listener]], str]:
        """Where listeners for `topic` are kept, and under which key."""
        return (self._prefixes, topic[:-1]) if topic.endswith("*") else (self._exact, topic)

    def _wake(self, topics: Iterable[str]) -> None:
        for topic in topics:
            if topic == EVERYTHING:
                self._wake_all()
                continue
            for listener in self._exact.get(topic, ()):
                listener._hear(topic)
            # Exact topics come and go with jobs; prefixes are a handful.
            for prefix, listeners in self._prefixes.items():
                if topic.startswith(prefix):
                    for listener in listeners:
                        listener._hear(topic)

    def _wake_all(self) -> None:
        for listeners in (*self._exact.values(), *self._prefixes.values()):
            for listener in listeners:
                listener._hear(EVERYTHING)

    @property
    def connected(self) -> bool:
        """Whether other processes hear us now; always, where there is nobody to connect to."""
        return self._up.is_set()

    async def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait for the connection; False after `timeout` seconds."""
        return await _within(timeout, self._up.wait())

    async def flush(self, timeout: float) -> bool:
        """Wait until the broker has all that was published; False after `timeout` seconds."""
        return await _within(timeout, self._outbox.emptied())

    async def run(self) -> None:
        """Keep the connection to other processes, for ever; cancelling closes it.

        Whatever breaks it is told by `problem` and one line in the log. Pauses between attempts
        are random, and double up to the transport's patience.
        """
        task = asyncio.current_task()
        self._cancellations = task.cancelling() if task is not None else 0
        failures = 0
        while self._transport is not None:
            steady = await self._connection(self._transport)
            failures = 1 if steady else failures + 1
            await anyio.sleep(pause(failures - 1, self._transport.patience))
        await anyio.sleep_forever()

    async def _connection(self, transport: Transport) -> bool:
        """One connection, to its end; whether it was there for long."""
        self._outbox.restore()
        began = time.monotonic()
        try:
            await transport.serve(self._hear, self._outbox, self._connect)
            self._lose("the broker ended the connection")
        except BrokerError as error:
            self._lose(str(error))
        except Exception as error:  # a defect of a client library must not end the wake-ups
            self._lose(describe(error))
            log.debug("event broker: unexpected error", exc_info=True)
        finally:
            was_up = self._up.is_set()
            self._up.clear()
        self._stop_if_cancelled()
        return was_up and time.monotonic() - began > STEADY

    def _hear(self, message: bytes | str) -> None:
        self._wake(unpacked(message, self._outbox.sender))

    def _stop_if_cancelled(self) -> None:
        """Client libraries lose cancellations: `asyncio.wait_for` does, until Python 3.12."""
        task = asyncio.current_task()
        if task is not None and task.cancelling() > self._cancellations:
            raise asyncio.CancelledError

    def _connect(self) -> None:
        self._stop_if_cancelled()
        if self.problem:
            log.warning("event broker: connected again")
        self.problem = ""
        self._up.set()
        self._wake_all()

    def _lose(self, problem: str) -> None:
        if not self.problem:
            log.warning("event broker: %s; jobs are found by polling until it is back", problem)
        self.problem = problem

    def __repr__(self) -> str:
        state = "connected" if self.connected else self.problem or "not connected"
        return f"<Hub {state}, {len(self._outbox)} to send>"


def pause(failures: int, patience: float) -> float:
    """Seconds before the next attempt: anything up to a limit that doubles (full jitter)."""
    return random.uniform(0.0, min(patience, FIRST_PAUSE * 2.0 ** min(failures, 32)))


async def _within(timeout: float | None, condition: Coroutine[Any, Any, object]) -> bool:
    with anyio.move_on_after(timeout):
        await condition
        return True
    return False


async def until_one_ends(*parts: Part) -> None:
    """Run the parts of a connection until one ends, which cancels the others, or raises."""

    async def run(part: Part) -> None:
        await part()
        group.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as group:
            for part in parts:
                group.start_soon(run, part)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def patience_for(host: str | None) -> float:
    """A broker on this machine is looked for every few seconds, one elsewhere every minute."""
    local = not host or host in {"localhost", "::1"} or host.startswith(("127.", "/"))
    return LOCAL_PATIENCE if local else REMOTE_PATIENCE


def transport(
    settings: EventBroker, namespace: str, *, folder: Path | None = None, uri: str | None = None
) -> Transport | None:
    """The transport that `event_broker` asks for; None where one process is alone.

    `namespace` names the data store. `folder` is the SQLite file that processes share (`memory`).
    `uri` is an address to fall back on where the settings have neither `uri` nor `host`. Raises
    MissingExtraError for a client library that is not installed, ConfigError for a bad address.
    """
    if settings.type == "memory":
        if folder is None:
            return None
        from fp_async.events.sockets import SocketTransport

        return SocketTransport(folder)
    module = importlib.import_module(f"fp_async.events.{settings.type}")  # one of four literals
    try:
        made: Transport = module.make(settings, namespace, uri)
    except ValueError as error:
        raise ConfigError(f"event_broker.uri: {error}") from error
    return made


def address(settings: EventBroker, fallback: str | None, *schemes: str) -> str | None:
    """The URI to connect to; None means host and port, or the usual place on this machine.

    Raises ConfigError for a URI of another scheme; `postgresql+asyncpg` counts as `postgresql`.
    """
    try:
        uri = settings.uri and addresses.normal(settings.uri)
    except ValueError as error:
        raise ConfigError(f"event_broker.uri: {error}") from None
    if uri is None:
        return fallback if fallback and not settings.host and _has(fallback, schemes) else None
    if not _has(uri, schemes):
        valid = ", ".join(f"{scheme}://" for scheme in schemes)
        raise ConfigError(f"event_broker.uri: not an address of {settings.type}; valid: {valid}")
    return uri


def _has(uri: str, schemes: tuple[str, ...]) -> bool:
    return urlsplit(uri).scheme.partition("+")[0] in schemes
