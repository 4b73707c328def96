"""A connection to an MQTT broker: publish, subscribe, receive, acknowledge; and to keep one.

A connection that has ended raises BrokerError wherever it is used. `connected` is one
connection, `serve` connects again for ever. MQTT 5 is tried first, then 3.1.1, unless the
link says which.

Brokers lie: Mosquitto grants a subscription that its access list denies, and then delivers
nothing; it takes a message of QoS 1 and drops it when a queue is full or when it is killed.
Whatever matters is a row that is sent again until it is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, Literal

import msgspec

from fp_async.errors import (
    BrokerError,
    ConnectRefusedError,
    PublishRefusedError,
    SessionTakenError,
    describe,
)
from fp_async.link_limits import Limit
from fp_async.link_packets import publish_properties
from fp_async.link_session import (
    OtherVersionError,
    Session,
    SilentError,
    code_of,
    subscribe_options,
)
from fp_async.link_socket import open_stream
from fp_async.link_values import Link, Message, Will

__all__ = ["Connection", "Link", "Message", "Retained", "Will", "connected", "serve"]

STEADY_SECONDS = 5.0  # after which a loss is a first failure again
FIRST_PAUSE = 1.0
REASONS = 20  # of one outage that are logged: a text may hold a number that never comes again
REFUSED = 0x80
OLD = 4  # MQTT 3.1.1, as CONNECT says it

Retained = Literal["always", "new", "never"]
_RETAIN_HANDLING = {"always": 0, "new": 1, "never": 2}

log: logging.Logger = logging.getLogger("fp_async")


class Connection:
    """An open connection. `version` is 5, or 4 for MQTT 3.1.1.

    `session_present`: the broker had kept the session, with its subscriptions.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._link = session.link
        self.version: int = session.version
        self.session_present: bool = session.session_present

    @property
    def link(self) -> Link:
        """The link that was asked for: its address and options."""
        return self._link

    @property
    def largest(self) -> int | None:
        """Largest message that the broker takes, by its announcement or by its hanging up;
        what is larger raises TooLargeError.
        """
        return self._session.largest

    @property
    def lost(self) -> BrokerError | None:
        """Why the connection ended, or None. SessionTakenError: by another with our client id.

        Only MQTT 5 has a word for that, and Mosquitto 2.0 closes without it: who must not fight
        for a session needs a lease besides.
        """
        return self._session.lost

    async def wait_lost(self) -> BrokerError:
        """Wait until the connection has ended; why. Cancelling does nothing to it."""
        await asyncio.wait((self._session.ended,))
        assert self._session.lost is not None
        return self._session.lost

    async def subscribe(
        self,
        topic: str,
        qos: int = 0,
        *,
        own: bool = True,
        retained: Retained = "always",
        number: int | None = None,
    ) -> None:
        """Ask for the messages of a topic filter; see `subscribe_all`."""
        await self.subscribe_all(((topic, qos),), own=own, retained=retained, number=number)

    async def subscribe_all(
        self,
        topics: Iterable[tuple[str, int]],
        *,
        own: bool = True,
        retained: Retained = "always",
        number: int | None = None,
    ) -> None:
        """Ask for the messages of (topic filter, QoS 0 or 1) in one packet.

        In MQTT 5 only: without `own` not for those that we publish ourselves; `retained` are
        the messages that the broker keeps: `always` sent, only for a `new` subscription, `never`;
        `number` (from 1) comes back in the `subscriptions` of the messages, where the broker can.
        Raises BrokerError when the broker says no. Some say yes and then deliver nothing: what
        must be known to work has to be tried. Cancelled, the broker may have subscribed all the
        same.
        """
        asked = list(topics)
        handling = _RETAIN_HANDLING[retained]
        wanted: list[tuple[str, Any]] = list(asked)
        if self.version == 5:
            wanted = [(topic, subscribe_options(qos, own, handling)) for topic, qos in asked]
        with _told(self._link):
            granted = await self._session.subscribe_to(wanted, number, self._link.timeout)
        for (topic, _), code in zip(asked, granted, strict=False):
            if code_of(code) >= REFUSED:
                raise BrokerError(f"{self._link}: no right to subscribe to '{topic}'")

    def unsubscribe_soon(self, topics: Iterable[str]) -> None:
        """End subscriptions, without waiting for anything. Raises BrokerError as `publish_soon`."""
        if asked := list(topics):
            self._session.unsubscribe_from(asked)

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        timeout: float | None = None,
        expiry: int | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        user_properties: Iterable[tuple[str, str]] = (),
        content_type: str | None = None,
    ) -> None:
        """Send a message: at QoS 0 until the system has it, at QoS 1 until the broker has it.

        `expiry` is in seconds; it and what follows exist in MQTT 5 and are left out in 3.1.1.
        Raises PublishRefusedError when the broker refuses it (which only MQTT 5 tells), its
        TooLargeError for what is larger than the broker takes, and BrokerError when `send_queue`
        is full, after `timeout` seconds (the link's own by default), or when the connection
        breaks. After the last two, and after a cancellation, the broker may have it all the same.
        """
        extra = (expiry, response_topic, correlation, user_properties, content_type)
        wait = self._link.timeout if timeout is None else timeout
        packet = self._send(topic, payload, qos, retain, extra)
        if not qos:
            await self._session.drain(wait)
            return
        code = await self._session.confirmed(packet, wait)
        if code >= REFUSED:
            text = f"{self._link}: refused a message for '{topic}' (reason {code:#x})"
            raise PublishRefusedError(text, code)

    def publish_soon(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        expiry: int | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        user_properties: Iterable[tuple[str, str]] = (),
        content_type: str | None = None,
    ) -> None:
        """As `publish`, without waiting for anything: for what is sent again if nobody answers.

        Raises BrokerError when the connection is known to be lost and when `send_queue` is full
        (a broker or a network that is slower than the program: yield, or wait in a `publish`).
        A refusal, and a loss that is noticed later, are not told.
        """
        extra = (expiry, response_topic, correlation, user_properties, content_type)
        self._send(topic, payload, qos, retain, extra)

    def _send(
        self, topic: str, payload: bytes, qos: int, retain: bool, extra: tuple[Any, ...]
    ) -> int:
        with_extra = self.version == 5 and extra != _NO_EXTRA
        try:
            properties = publish_properties(*extra) if with_extra else b""
            return self._session.send(topic, payload, qos, retain, properties)
        except ValueError as error:
            raise BrokerError(f"{self._link}: {error}") from error

    async def receive(self, limit: int = 1_000) -> list[Message]:
        """Wait for a message; all that have come by now, at most `limit`, in their order.

        Raises BrokerError when the connection has ended and all that came before was taken.
        Cancelling loses nothing.
        """
        session = self._session
        arrived = session.arrived
        while not arrived:
            session.check()
            session.news.clear()
            await session.news.wait()
        if len(arrived) > limit:
            return [arrived.popleft() for _ in range(limit)]
        messages = list(arrived)
        arrived.clear()
        return messages

    async def __aiter__(self) -> AsyncIterator[Message]:
        """The messages one by one, until the connection ends: BrokerError."""
        while True:
            for message in await self.receive(1):
                yield message

    def acknowledge(self, message: Message) -> None:
        """Tell the broker, on a link with `manual_ack`, not to deliver a QoS 1 message again.

        Again, and at QoS 0, it does nothing. In the order of arrival, says MQTT. Raises
        BrokerError when the connection that brought the message has ended: then the broker
        delivers it again, if it keeps the session.
        """
        if message.qos:
            self._session.acknowledge(message)

    def __repr__(self) -> str:
        return f"<Connection to {self._link}, {self.lost or 'open'}>"


_NO_EXTRA = (None, None, None, (), None)


@contextlib.contextmanager
def _told(link: Link) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise BrokerError(f"{link}: {str(error) or describe(error)}") from error


@contextlib.asynccontextmanager
async def connected(link: Link, limit: Limit | None = None) -> AsyncIterator[Connection]:
    """Connect, in MQTT 5 or else in 3.1.1; leaving says goodbye and takes half a second at most.

    A broker that leaves a CONNECT of MQTT 5 unanswered is asked in 3.1.1, and once more in 5,
    because it may have been slow only. Raises BrokerError with the reason: unreachable, no answer,
    refused. Cancelling leaves nothing behind. What `publish_soon` took at QoS 1 and
    `max_inflight` kept here is dropped. `limit` is what earlier connections have learned.
    """
    session = await _enter(link, limit)
    try:
        yield Connection(session)
    finally:
        await session.leave()


async def _enter(link: Link, limit: Limit | None) -> Session:
    limit = limit or Limit()
    if link.version is not None:
        return await _only(link, 5 if link.version == 5 else OLD, limit)
    try:
        return await (_try(link, OLD, limit) if limit.deaf else _find_out(link, limit))
    except (ConnectRefusedError, SilentError):  # there may be another broker by now
        limit.deaf = False
        raise


async def _only(link: Link, version: int, limit: Limit) -> Session:
    try:
        return await _try(link, version, limit)
    except OtherVersionError as error:
        text = f"{link}: it does not take MQTT {link.version}, which `version` asks for ({error})"
        raise BrokerError(text) from error


async def _find_out(link: Link, limit: Limit) -> Session:
    try:
        return await _try(link, 5, limit)
    except OtherVersionError:
        return await _try(link, OLD, limit)
    except SilentError:
        await _ask_in_old(link)
    try:
        return await _try(link, 5, limit)
    except SilentError:
        limit.deaf = True
        text = "%s: it does not answer MQTT 5, only 3.1.1; `version: 311` connects without waiting"
        log.warning(text, link)
        return await _try(link, OLD, limit)


async def _ask_in_old(link: Link) -> None:
    """Raise BrokerError where a CONNECT of 3.1.1 is not answered, either. It takes no message."""
    session = await _try(msgspec.structs.replace(link, will=None, manual_ack=True), OLD, Limit())
    await session.leave()


async def _try(link: Link, version: int, limit: Limit | None) -> Session:
    with _told(link):
        stream = await open_stream(link)
        try:
            session = Session(link, version, stream, limit)
        except BaseException:
            stream.close()
            raise
        await session.connect()
        return session


async def serve(
    link: Link | Callable[[], Link],
    body: Callable[[Connection], Awaitable[None]],
    *,
    longest: float = 60.0,
    told: Callable[[BrokerError | None], object] | None = None,
) -> None:
    """Run `body(connection)` inside a connection, and in another one whenever that is lost.

    Ends when `body` returns. When the connection is lost `body` is cancelled, wherever it waits.
    BrokerError, from it or from connecting, means again, after a random pause of up to 1 s, 2 s,
    4 s ... `longest`; after a connection of five seconds it begins at 1 s again. Any other error
    is raised, and so is SessionTakenError: to connect again would kick off who took the session.

    A function instead of a link is called for every attempt, for a new will. `told` hears None
    when connected, and the error of every attempt that failed; the log has one line for each
    different reason of an outage, and one for its end. A message on
    which the broker hangs up three times in a row, soon after it was sent, is too large for it.
    Cancelling cancels `body`, then leaves as `connected` does.
    """
    outage, limit = _Outage(told), Limit()
    failures = 0
    while True:
        try:
            await _apart(_visit(link() if callable(link) else link, body, outage, limit))
        except (BrokerError, BaseExceptionGroup) as raised:
            outage.go_on(_broker_error(raised))
        else:
            return
        failures = 0 if time.monotonic() - outage.since > STEADY_SECONDS else failures
        await asyncio.sleep(pause(failures, longest))
        failures += 1


async def _visit(
    link: Link, body: Callable[[Connection], Awaitable[None]], outage: _Outage, limit: Limit
) -> None:
    outage.since = float("inf")
    async with connected(link, limit) as connection:
        outage.end(connection)
        await _until_lost(connection, body)


async def _apart(work: Coroutine[Any, Any, None]) -> None:
    """Await it in a task of its own. A task group in it whose child fails in the moment in which
    it is cancelled raises the failure alone (Python 3.11 and 3.12), and it would go on for ever.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        while not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # once more: it is in a hurry
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # of no interest any more
        raise
    task.result()


class _Outage:
    """Tells every failure to `told`; to the log each different reason once, and the recovery."""

    def __init__(self, told: Callable[[BrokerError | None], object] | None) -> None:
        self._told = told or (lambda _: None)
        self._logged: set[str] = set()  # of this outage
        self._began = 0.0
        self.since = float("inf")  # connected

    def go_on(self, error: BrokerError) -> None:
        text = str(error)
        if not self._logged:
            self._began = time.monotonic()
        if text not in self._logged and len(self._logged) < REASONS:
            log.warning("%s; trying again", text)
            self._logged.add(text)
        self._told(error)

    def end(self, connection: Connection) -> None:
        self.since = time.monotonic()
        if self._logged:
            lasted = self.since - self._began
            log.warning("%s: connected again after %.0f s", connection._link, lasted)
        self._logged.clear()
        self._told(None)


async def _until_lost(
    connection: Connection, body: Callable[[Connection], Awaitable[None]]
) -> None:
    """Await `body`, which a loss cancels: as `asyncio.timeout` does it, in this very task."""
    ended = connection._session.ended
    limit = asyncio.timeout(None)

    def end(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the body ended at the same moment
            limit.reschedule(0.0)

    try:
        async with limit:
            ended.add_done_callback(end)
            try:
                await body(connection)
            finally:
                ended.remove_done_callback(end)
    except TimeoutError:
        if limit.expired():
            connection._session.check()
        raise


def _broker_error(raised: BrokerError | BaseExceptionGroup[BaseException]) -> BrokerError:
    """The error of a lost connection, also out of a task group; raises what is anything else."""
    errors = list(_leaves(raised))
    for error in errors:
        if not isinstance(error, BrokerError):
            raise raised
        if isinstance(error, SessionTakenError):
            raise error
    first = errors[0]
    assert isinstance(first, BrokerError)
    return first


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for inner in error.exceptions:
        yield from _leaves(inner)


def pause(failures: int, longest: float) -> float:
    """Seconds before the next attempt: anything up to a limit that doubles (full jitter)."""
    return random.uniform(0.0, min(longest, FIRST_PAUSE * 2.0 ** min(failures, 32)))
