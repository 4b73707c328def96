"""A connection to an MQTT broker. The only importer of aiomqtt, and of paho beneath it.

What aiomqtt 2.5.1 does not do is done here: connecting can be cancelled and never blocks in a
thread, a refusal has its reason, a broken connection ends what waits on it at once, leaving is
quick whatever the network does, and a broker that only speaks MQTT 3.1.1 is spoken to in it.
There is no reconnect: leave the context and enter it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, ClassVar, NamedTuple, Self
from urllib.parse import unquote, urlsplit

import aiomqtt
import anyio
import msgspec
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from fp_async.errors import BrokerError, describe

GOODBYE_SECONDS = 0.5
UNSUPPORTED_VERSION = {0x84, 0x01}  # in MQTT 5 and in 3.1.1

_quiet = logging.getLogger("fp_async.mqtt")
_quiet.setLevel(logging.CRITICAL)  # a flood would fill the log line by line; errors are raised


class Link(msgspec.Struct, frozen=True):
    """How to reach a broker. `keepalive` and `timeout` (of every answer) are in seconds.

    An empty `client_id` lets the broker choose. Without `clean_start` the broker keeps the
    session of `client_id` for `session_expiry` seconds. `receive_queue` bounds the messages that
    wait here, 0 is without limit: what does not fit is acknowledged and lost.
    """

    host: str = "localhost"
    port: int = 1883
    username: str | None = None
    password: str | None = None
    tls: bool = False
    ca_file: str | None = None
    client_id: str = ""
    clean_start: bool = True
    session_expiry: int = 0
    keepalive: int = 30
    timeout: float = 10.0
    receive_queue: int = 0

    schemes: ClassVar[tuple[str, ...]] = ("mqtt", "mqtts", "tcp", "ssl")

    @classmethod
    def of(
        cls,
        uri: str | None,
        *,
        host: str | None = None,
        port: int | None = None,
        username: str | None = None,
        password: str | None = None,
        **settings: Any,
    ) -> Self:
        """From `mqtt://user:password@host:1883` or `mqtts://`; what is given besides counts more.

        Raises ValueError for a port that is no number.
        """
        parts = urlsplit(uri or "mqtt://")
        tls = parts.scheme in {"mqtts", "ssl"}
        return cls(
            host=host or parts.hostname or "localhost",
            port=port or parts.port or (8883 if tls else 1883),
            username=username or _decoded(parts.username),
            password=password or _decoded(parts.password),
            tls=tls,
            **settings,
        )

    def __str__(self) -> str:
        return f"MQTT broker at {self.host}:{self.port}"


def _decoded(text: str | None) -> str | None:
    return None if text is None else unquote(text)


class Message(NamedTuple):
    """What came in on a topic. `retained`: the broker had kept it from before we subscribed."""

    topic: str
    payload: bytes
    retained: bool


class Connection:
    """An open connection; iterate over it for messages. Its end raises BrokerError everywhere."""

    def __init__(self, client: aiomqtt.Client, link: Link, version: int) -> None:
        self.version = version
        self._client = client
        self._link = link

    async def subscribe(self, topic: str, qos: int = 0, *, own: bool = True) -> None:
        """Ask for messages; without `own` (MQTT 5 only) not for those that we publish ourselves.

        Raises BrokerError when the broker says no. Some say yes and then deliver nothing.
        """
        options = SubscribeOptions(qos=qos, noLocal=not own) if self.version == 5 else None
        with _told(self._link):
            # paho takes the QoS from one of the two only
            asking = self._client.subscribe(topic, 0 if options else qos, options)
            granted = await self._until_lost(asking)
        if any(code_of(code) >= 0x80 for code in granted):
            raise BrokerError(f"{self._link}: no right to subscribe to '{topic}'")

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Send a message: at QoS 0 until it is in the socket, at QoS 1 until the broker has it.

        Raises BrokerError after `timeout` seconds (the link's own by default) or when the
        connection breaks; the broker may have it all the same, also after a cancellation.
        """
        wait = self._link.timeout if timeout is None else timeout
        with _told(self._link):
            await self._until_lost(self._client.publish(topic, payload, qos, retain, timeout=wait))

    async def __aiter__(self) -> AsyncIterator[Message]:
        with _told(self._link):
            async for message in self._client.messages:
                payload = message.payload if isinstance(message.payload, bytes) else b""
                yield Message(message.topic.value, payload, message.retain)

    async def _until_lost(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The outcome of `work`; aiomqtt lets it wait its full time after the connection broke."""
        lost = self._client._disconnected
        task = await _ended(work, lost)
        if task.cancelled():
            raise aiomqtt.MqttError("the connection was lost") from lost.exception()
        return task.result()


async def _ended(work: Coroutine[Any, Any, Any], *ends: asyncio.Future[Any]) -> asyncio.Task[Any]:
    """A task that did `work`, or was cancelled because one of `ends` came first.

    A task of its own, because aiomqtt waits with `asyncio.wait_for`: until Python 3.12 that
    forgets a cancellation which comes together with the answer.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait((task, *ends), return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # or asyncio complains that nobody has asked
    return task


def code_of(reason: Any) -> int:
    """The number of a reason code, which is a plain number in MQTT 3.1.1."""
    return int(getattr(reason, "value", reason))


@contextlib.contextmanager
def _told(link: Link) -> Iterator[None]:
    try:
        yield
    except (aiomqtt.MqttError, OSError, ValueError) as error:
        cause = f" ({error.__cause__})" if isinstance(error.__cause__, aiomqtt.MqttError) else ""
        raise BrokerError(f"{link}: {str(error) or describe(error)}{cause}") from error


@contextlib.asynccontextmanager
async def connected(link: Link) -> AsyncIterator[Connection]:
    """Connect, in MQTT 5 or else in 3.1.1; leaving says goodbye and takes half a second at most.

    Raises BrokerError with the reason: unreachable, no answer, refused. Cancelling leaves
    nothing behind.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(_open(link, 5))
        except _OtherVersionError:
            connection = await stack.enter_async_context(_open(link, 4))
        yield connection


class _OtherVersionError(Exception):
    """The broker does not speak the version that was tried."""


@contextlib.asynccontextmanager
async def _open(link: Link, version: int) -> AsyncIterator[Connection]:
    with _told(link):
        sock = await _socket(link)
        client = _client(link, version, sock)
        try:
            await _enter(client, version)
        except BaseException:
            client._client._sock_close()
            sock.close()
            raise
    try:
        yield Connection(client, link, version)
    finally:
        with anyio.CancelScope(shield=True):
            await _leave(client)


async def _enter(client: aiomqtt.Client, version: int) -> None:
    """Say CONNECT and wait for the answer."""
    client._client_connect()  # the socket is open, so this only writes; in a thread it would stay
    client._client_connect = lambda: None  # type: ignore[method-assign]
    try:
        (await _ended(client.__aenter__())).result()
    except aiomqtt.MqttCodeError as error:
        if version == 5 and code_of(error.rc) in UNSUPPORTED_VERSION:
            raise _OtherVersionError(str(error)) from error
        raise
    except _NoAnswerError as error:
        if version == 5:  # some brokers hang up instead of refusing
            raise _OtherVersionError(str(error)) from error
        raise


class _NoAnswerError(aiomqtt.MqttError):
    """The broker closed the connection instead of answering CONNECT."""


async def _leave(client: aiomqtt.Client) -> None:
    client.timeout = GOODBYE_SECONDS
    with contextlib.suppress(aiomqtt.MqttError, OSError, ValueError):
        await client.__aexit__(None, None, None)
    client._client._sock_close()
    lost = client._disconnected
    if lost.done() and not lost.cancelled():
        lost.exception()  # or asyncio complains that nobody has asked
    await asyncio.sleep(0)  # aiomqtt's own task ends


def _client(link: Link, version: int, sock: socket.socket) -> aiomqtt.Client:
    client = aiomqtt.Client(
        link.host,
        link.port,
        username=link.username,
        password=link.password,
        identifier=link.client_id or None,
        protocol=aiomqtt.ProtocolVersion(version),
        keepalive=link.keepalive,
        timeout=link.timeout,
        max_queued_incoming_messages=link.receive_queue,
        logger=_quiet,
        **(_session_5(link) if version == 5 else {"clean_session": link.clean_start}),
    )
    paho = client._client
    paho._create_socket_connection = lambda: sock  # type: ignore[method-assign]
    paho.on_disconnect = functools.partial(_on_disconnect, client)
    return client


def _session_5(link: Link) -> dict[str, Any]:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = link.session_expiry
    return {"clean_start": link.clean_start, "properties": properties}


def _on_disconnect(client: aiomqtt.Client, *event: Any) -> None:
    """Aiomqtt waits its full time for an answer that cannot come any more."""
    if not client._connected.done():
        text = "the broker closed the connection without an answer"
        client._connected.set_exception(_NoAnswerError(text))
    elif not client._connected.cancelled():
        client._on_disconnect(*event)


async def _socket(link: Link) -> socket.socket:
    """A connected socket, with TLS where the link has it. Raises OSError."""
    loop = asyncio.get_running_loop()
    problem = OSError(f"no address for '{link.host}'")
    for family, kind, _, _, place in await loop.getaddrinfo(
        link.host, link.port, type=socket.SOCK_STREAM
    ):
        try:
            return await _reach(link, socket.socket(family, kind), place)
        except OSError as error:
            problem = error
    raise problem


async def _reach(link: Link, sock: socket.socket, place: Any) -> socket.socket:
    try:
        sock.setblocking(False)
        async with asyncio.timeout(link.timeout):
            await asyncio.get_running_loop().sock_connect(sock, place)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if link.tls:
                sock = await _with_tls(link, sock)
    except TimeoutError:
        sock.close()
        raise TimeoutError(f"no answer within {link.timeout:g} s") from None
    except BaseException:
        sock.close()
        raise
    return sock


async def _with_tls(link: Link, sock: socket.socket) -> ssl.SSLSocket:
    """The socket after a TLS handshake; on an error it is closed."""
    wrapped = _tls_context(link.ca_file).wrap_socket(
        sock, server_hostname=link.host, do_handshake_on_connect=False
    )
    try:
        await _shake_hands(wrapped)
    except BaseException:
        wrapped.close()
        raise
    return wrapped


async def _shake_hands(sock: ssl.SSLSocket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            await _ready(sock, loop.add_reader, loop.remove_reader)
        except ssl.SSLWantWriteError:
            await _ready(sock, loop.add_writer, loop.remove_writer)


async def _ready(
    sock: socket.socket, add: Callable[..., object], remove: Callable[..., object]
) -> None:
    ready = asyncio.Event()
    add(sock, ready.set)
    try:
        await ready.wait()
    finally:
        remove(sock)


@functools.cache
def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)
