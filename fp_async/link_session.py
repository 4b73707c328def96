"""aiomqtt's client, made ready for daemons. With `link*.py` the only importers of it and of paho.

What aiomqtt 2.5.1 does not do is done here: connecting never blocks in a thread, the end of a
connection ends what waits on it at once and has its reason, a publish that is refused is an
error, messages are acknowledged by hand, a silent network is noticed in 1.5 keepalives, and an
idle connection wakes four times a keepalive instead of every second. Much of it is done in
private names of both libraries, so their versions are pinned.
"""

from __future__ import annotations

import asyncio
import collections
import copy
import itertools
import logging
import time
from typing import Any

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from fp_async.errors import (
    BrokerError,
    ConnectRefusedError,
    SessionTakenError,
    TooLargeError,
    describe,
)
from fp_async.link_limits import LEAST, Limit
from fp_async.link_packets import read_publish
from fp_async.link_socket import CLOSED, Stream
from fp_async.link_values import Link, Message

GOODBYE_SECONDS = 0.5
UNSUPPORTED_VERSION = {0x84, 0x01}  # in MQTT 5 and in 3.1.1
SESSION_TAKEN, TOO_LARGE = 0x8E, 0x95
FIXED_SIZE = 9  # of a PUBLISH at most: header, length, two more of the topic's and the packet id
PING_AFTER, LOST_AFTER, LOOK_EVERY = 0.75, 0.4, 0.25  # in keepalives

log: logging.Logger = logging.getLogger("fp_async")
_quiet = logging.getLogger("fp_async.mqtt")
_quiet.setLevel(logging.CRITICAL)  # errors are raised, and a flood would fill the log
_numbers = itertools.count(1)


class OtherVersionError(Exception):
    """The broker does not speak the version that was tried."""


class SilentError(BrokerError):
    """CONNECT was sent, and nothing came back in time."""


class Packed:
    """Properties that are bytes already: all that paho asks of its own is `pack`."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def pack(self) -> bytes:
        return self._data


class Session(aiomqtt.Client):
    """One connection, from CONNECT to its end. All of it belongs to one event loop."""

    def __init__(
        self, link: Link, version: int, stream: Stream, limit: Limit | None = None
    ) -> None:
        super().__init__(
            link.host,
            link.port,
            username=link.username,
            password=link.password,
            identifier=link.client_id or None,
            protocol=aiomqtt.ProtocolVersion(version),
            keepalive=link.keepalive,
            max_queued_outgoing_messages=link.send_queue,
            max_inflight_messages=link.max_inflight,
            will=_will(link),
            logger=_quiet,
            **(_session_5(link) if version == 5 else {"clean_session": link.clean_start}),
        )
        self._paho: Any = self._client  # whose private names are used
        self.link = link
        self.version = version
        self.stream = stream
        self.number: int = next(_numbers)
        self.lost: BrokerError | None = None
        self.session_present: bool = False
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.news = asyncio.Event()
        self.written = asyncio.Event()
        self.arrived: collections.deque[Message] = collections.deque()
        self.unacknowledged: set[int] = set()
        self._answer: asyncio.Future[Any] = self._loop.create_future()
        self._confirmations: dict[int, asyncio.Future[int | BrokerError | None]] = {}
        self._announced: int | None = None  # the largest message that the broker takes
        self._limit = limit or Limit()
        self._large: dict[int, tuple[int, float]] = {}  # by packet: unconfirmed, and when sent
        self._numbers = False  # whether the broker takes subscription identifiers
        self._watching = self._blocked = self._leaving = False
        self._pinged_at = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._adapt_paho()

    def _adapt_paho(self) -> None:
        paho = self._paho
        paho.disable_logger()
        paho.on_publish = None
        paho._create_socket = lambda: self.stream
        paho._handle_publish = self._receive
        paho._handle_pubackcomp = self._confirm

    # Connecting and leaving

    async def connect(self) -> None:
        """Say CONNECT and wait for the answer. On any error all is closed.

        Raises BrokerError, OtherVersionError, OSError, ValueError.
        """
        try:
            self._client_connect()  # the stream is open, so this only writes
            async with asyncio.timeout(self.link.timeout):
                outcome = await self._answer
        except TimeoutError:
            self.close()
            raise SilentError(f"{self.link}: CONNECT timed out") from None
        except BaseException:
            self.close()
            raise
        if outcome is not None:
            self.close()
            raise outcome
        self._look_after()

    async def leave(self) -> None:
        """Send what waits for half a second at most, and say goodbye. Cancelling only hurries."""
        try:
            if self.lost is None:
                await self.drain(GOODBYE_SECONDS)
        except BrokerError:
            pass  # what has not been sent by now is not
        finally:
            self._leaving = True
            if self.lost is None and self._paho.disconnect() == 0:
                self._write()
            self.close()

    def close(self) -> None:
        """Close the socket, and end what waits."""
        self._lose(BrokerError(f"{self.link}: the connection was closed"))

    def _lose(self, error: BrokerError) -> None:
        if self.lost is not None:
            return
        self.lost = error
        if self.stream.hung_up and not self._leaving:
            self._blame(said=False)
        self._paho._sock_close()
        self.stream.close()
        if self._timer is not None:
            self._timer.cancel()
        waiting: list[asyncio.Future[Any]] = [self.ended, *self._confirmations.values()]
        for answer in (*waiting, *self._pending_subscribes.values()):
            _settle(answer, None)
        self.news.set()
        self.written.set()

    def _blame(self, *, said: bool) -> None:
        """The broker has hung up: for what was sent last, perhaps."""
        sent, self._large = dict(self._large.values()), {}
        if not sent and said:
            return
        most = self._limit.lost(sent, time.monotonic(), said=said)
        if most is not None:
            text = "%s hangs up on messages of %s bytes: for an hour none above %s is sent"
            log.warning(text, self.link, f"{max(sent):,}", f"{most:,}")

    @property
    def largest(self) -> int | None:
        """The size that no message may exceed, as far as that is known."""
        return self._limit.at_most(self._announced, time.monotonic())

    def check(self) -> None:
        """Raise BrokerError with the reason, if the connection has ended."""
        if self.lost is not None:
            raise copy.copy(self.lost)  # or its traceback would grow with each

    # Sending

    def send(self, topic: str, payload: bytes, qos: int, retain: bool, properties: bytes) -> int:
        """Queue a message, which is sent when the loop comes to it; its packet id.

        Raises BrokerError when it is lost, full, or too much for the broker; ValueError.
        """
        self.check()
        if not topic or "\0" in topic or qos not in {0, 1}:
            raise ValueError(f"not a topic or a QoS: '{topic}', {qos}")
        size = len(topic.encode()) + len(payload) + len(properties) + FIXED_SIZE
        most = self.largest
        if most is not None and size > most:
            raise TooLargeError(f"{self.link}: '{topic}'", size, most)
        paho = self._paho
        packed = Packed(properties) if properties else None
        if len(paho._out_packet) < self.link.send_queue:
            info = paho.publish(topic, payload, qos, retain, packed)
            if not info.rc:
                if qos and size > LEAST:
                    self._large[int(info.mid)] = size, time.monotonic()
                return int(info.mid)
        raise BrokerError(f"{self.link}: {self.link.send_queue} messages wait to be sent")

    async def drain(self, timeout: float) -> None:
        """Wait until the system has taken all that was sent."""
        try:
            async with asyncio.timeout(timeout):
                if self._paho._out_packet or self._blocked:
                    await self.written.wait()
        except TimeoutError:
            raise BrokerError(f"{self.link}: sending timed out after {timeout:g} s") from None
        self.check()

    async def confirmed(self, packet: int, timeout: float) -> int:
        """The reason code of a packet's PUBACK."""
        code: int = await self._answered(self._confirmations, packet, timeout)
        return code

    async def subscribe_to(
        self, topics: list[tuple[str, Any]], number: int | None, timeout: float
    ) -> list[Any]:
        """The reason code of each; options instead of the QoS in MQTT 5."""
        self.check()
        properties = _numbered(number) if number is not None and self._numbers else None
        failed, packet = self._paho.subscribe(topics, properties=properties)
        if failed or packet is None:
            raise BrokerError(f"{self.link}: cannot subscribe")
        granted: list[Any] = await self._answered(self._pending_subscribes, packet, timeout)
        return granted

    def unsubscribe_from(self, topics: list[str]) -> None:
        """Ask for no more of their messages. The answer is of no interest."""
        self.check()
        self._paho.unsubscribe(topics)

    async def _answered(self, waiting: dict[int, Any], packet: int, timeout: float) -> Any:
        answer: asyncio.Future[Any] = self._loop.create_future()
        waiting[packet] = answer
        text = f"{self.link}: no answer within {timeout:g} s, timed out"
        timer = self._loop.call_later(timeout, _settle, answer, BrokerError(text))
        try:
            outcome = await answer
        finally:
            timer.cancel()
            if waiting.get(packet) is answer:
                del waiting[packet]
        if isinstance(outcome, BrokerError):
            raise outcome
        if outcome is None:
            self.check()
        return outcome

    def acknowledge(self, message: Message) -> None:
        """PUBACK. Raises BrokerError when the message came over another connection."""
        self.check()
        if message.connection != self.number:
            raise BrokerError(f"{self.link}: the connection that brought the message has ended")
        if message.packet in self.unacknowledged:
            self.unacknowledged.remove(message.packet)
            self._paho._send_puback(message.packet)

    # What paho calls

    def _receive(self) -> int:
        packet = self._paho._in_packet
        message = read_publish(packet["command"], packet["packet"], self.version, self.number)
        if message.qos and self.link.manual_ack:
            self.unacknowledged.add(message.packet)
        elif message.qos:
            self._paho._send_puback(message.packet)
        elif 0 < self.link.receive_queue <= len(self.arrived):
            return 0
        self.arrived.append(message)
        self.news.set()
        return 0

    def _confirm(self, _kind: str) -> int:
        paho = self._paho
        body = paho._in_packet["packet"]
        packet = body[0] << 8 | body[1]
        if paho._out_messages.pop(packet, None) is None:
            return 0
        paho._inflight_messages -= 1
        if packet in self._large:
            self._limit.took(self._large.pop(packet)[0])
        if packet in self._confirmations:
            _settle(self._confirmations[packet], body[2] if len(body) > 2 else 0)
        if len(paho._out_messages) == paho._inflight_messages:
            return 0
        return int(paho._update_inflight())  # looks at all that is in flight

    def _on_connect(
        self, _client: Any, _data: Any, flags: Any, reason: Any, properties: Any = None
    ) -> None:
        if code_of(reason):
            _settle(self._answer, self._refusal(reason))
            return
        self.session_present = bool(flags.session_present)
        self._announced = getattr(properties, "MaximumPacketSize", None)
        can = getattr(properties, "SubscriptionIdentifierAvailable", 1)
        self._numbers = self.version == 5 and bool(can)
        window = getattr(properties, "ReceiveMaximum", 65_535)  # paho does not look at it
        self._paho._max_inflight_messages = min(self.link.max_inflight, window)
        _settle(self._answer, None)

    def _refusal(self, reason: Any) -> Exception:
        if self.version == 5 and code_of(reason) in UNSUPPORTED_VERSION:
            return OtherVersionError(str(reason))
        return ConnectRefusedError(f"{self.link}: {reason}", code_of(reason))

    def _on_disconnect(
        self, _client: Any, _data: Any, flags: Any, reason: Any, _properties: Any = None
    ) -> None:
        said = str(reason) if flags.is_disconnect_packet_from_server else ""
        why = said or self.stream.problem or str(reason)
        if self._leaving:
            return
        if not self._answer.done():
            text = f"the broker closed the connection without an answer ({why})"
            # some brokers hang up instead of refusing the version
            may_be_old = self.version == 5 and self.stream.problem == CLOSED
            kind = OtherVersionError if may_be_old else BrokerError
            _settle(self._answer, kind(f"{self.link}: {text}"))
        taken = SessionTakenError if said and code_of(reason) == SESSION_TAKEN else BrokerError
        if said and code_of(reason) == TOO_LARGE and self.lost is None:
            self._blame(said=True)
        self._lose(taken(f"{self.link}: the connection was lost ({why})"))

    def _on_socket_open(self, _client: Any, _data: Any, _stream: Any) -> None:
        self._loop.add_reader(self.stream, self._read)
        self._watching = True

    def _on_socket_close(self, _client: Any, _data: Any, _stream: Any) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self.stream)
            self._loop.remove_writer(self.stream)

    def _on_socket_register_write(self, _client: Any, _data: Any, _stream: Any) -> None:
        self._loop.call_soon(self._write)  # once for all that is sent until then

    def _on_socket_unregister_write(self, _client: Any, _data: Any, _stream: Any) -> None:
        """`_write` knows by itself when there is nothing left."""

    # What the loop calls

    def _read(self) -> None:
        try:
            self._paho.loop_read()
            while self.lost is None and self.stream.pending():
                self._paho.loop_read()
        except Exception as error:  # a broker that sends nonsense
            self._break(describe(error))

    def _write(self) -> None:
        try:
            self._paho.loop_write()
            while self._watching and self.stream.flush() and self._paho.want_write():
                self._paho.loop_write()
        except Exception as error:
            self._read()  # the broker may have said why before it hung up
            self._break(describe(error))
        if self._watching:
            self._wait_for_room(bool(self.stream.unsent() or self._paho.want_write()))

    def _wait_for_room(self, blocked: bool) -> None:
        if blocked and not self._blocked:
            self._loop.add_writer(self.stream, self._write)
        elif self._blocked and not blocked:
            self._loop.remove_writer(self.stream)
        self._blocked = blocked
        if not blocked:
            self.written.set()
            self.written = asyncio.Event()  # what is sent from now on waits for the next time

    def _look_after(self) -> None:
        """Ping when it has been quiet; a ping that nothing follows is the end."""
        keepalive = self._paho.keepalive  # the broker may have chosen another
        if not keepalive or self.lost is not None:
            return
        now = self._loop.time()
        if self.stream.heard >= self._pinged_at:
            self._pinged_at = float("inf")
        if now - self._pinged_at >= LOST_AFTER * keepalive:
            self._break(f"nothing was heard for {now - self.stream.heard:.1f} s")
            return
        if now - min(self.stream.heard, self.stream.said) >= PING_AFTER * keepalive:
            self._paho._send_pingreq()
            self._pinged_at = min(self._pinged_at, now)
        self._timer = self._loop.call_later(LOOK_EVERY * keepalive, self._look_after)

    def _break(self, why: str) -> None:
        error = BrokerError(f"{self.link}: the connection was lost ({why})")
        _settle(self._answer, error)
        self._lose(error)


def code_of(reason: Any) -> int:
    """The number of a reason code, which is a plain number in MQTT 3.1.1."""
    return int(getattr(reason, "value", reason))


def subscribe_options(qos: int, own: bool, retained: int) -> SubscribeOptions:
    """`retained` is the retain handling: 0 sends what the broker keeps, 1 once, 2 never."""
    return SubscribeOptions(qos=qos, noLocal=not own, retainHandling=retained)


def _numbered(number: int) -> Properties:
    properties = Properties(PacketTypes.SUBSCRIBE)  # type: ignore[no-untyped-call]
    properties.SubscriptionIdentifier = number
    return properties


def _settle(answer: asyncio.Future[Any], outcome: Any) -> None:
    if not answer.done():
        answer.set_result(outcome)


def _will(link: Link) -> aiomqtt.Will | None:
    will = link.will
    if will is None:
        return None
    return aiomqtt.Will(will.topic, will.payload, will.qos, will.retain)


def _session_5(link: Link) -> dict[str, Any]:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = link.session_expiry
    properties.ReceiveMaximum = link.receive_maximum
    if link.packet_bytes is not None:
        properties.MaximumPacketSize = link.packet_bytes
    return {"clean_start": link.clean_start, "properties": properties}
