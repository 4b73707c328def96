"""As much MQTT 5 as a simulated agent needs, in as little memory and CPU as Python allows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

KEEPALIVE = 60
_CONNACK, _PUBLISH, _PUBACK, _SUBACK, _DISCONNECT = 2, 3, 4, 9, 14
_PING = b"\xc0\x00"
Hear = Callable[[str, bytes, bool], None]


class Client(asyncio.Protocol):
    """One connection; `lost` ends when it does. Answers are awaited in the order of asking."""

    def __init__(self, hear: Hear) -> None:
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._hear, self._loop = hear, loop
        self._in = bytearray()
        self._packet = 0
        self._answers: dict[int, asyncio.Future[None]] = {}

    @classmethod
    async def connect(
        cls, address: tuple[int, str], name: str, hear: Hear, will: tuple[str, bytes]
    ) -> Self:
        """Raises OSError and TimeoutError."""
        port, source = address
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            _, client = await loop.create_connection(
                lambda: cls(hear), "127.0.0.1", port, local_addr=(source, 0)
            )
            topic, payload = will
            flags = 0x02 | 0x04 | 0x08 | 0x20  # clean start, a will of QoS 1, retained
            head = _text("MQTT") + bytes((5, flags)) + KEEPALIVE.to_bytes(2, "big") + b"\0"
            body = head + _text(name) + b"\0" + _text(topic) + _sized(payload)
            await client._ask(0, 0x10, body)
        client._loop.call_later(0.75 * KEEPALIVE, client._ping)
        return client

    async def subscribe(self, topic: str) -> None:
        packet = self._next()
        body = packet.to_bytes(2, "big") + b"\0" + _text(topic) + b"\x01"
        async with asyncio.timeout(10):
            await self._ask(packet, 0x82, body)

    async def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """At QoS 1, until the broker has it."""
        packet = self._next()
        body = _text(topic) + packet.to_bytes(2, "big") + b"\0" + payload
        async with asyncio.timeout(10):
            await self._ask(packet, 0x33 if retain else 0x32, body)

    def publish_soon(self, topic: str, payload: bytes, qos: int) -> None:
        packet = self._next().to_bytes(2, "big") if qos else b""
        self._send(0x30 | qos << 1, _text(topic) + packet + b"\0" + payload)

    async def _ask(self, packet: int, kind: int, body: bytes) -> None:
        answer = self._answers[packet] = self._loop.create_future()
        self._send(kind, body)
        await answer
        if self.lost.done():
            raise ConnectionResetError

    def _send(self, kind: int, body: bytes) -> None:
        if not self.lost.done():
            self._transport.write(bytes((kind,)) + _length(len(body)) + body)

    def _next(self) -> int:
        self._packet = self._packet % 65_535 + 1
        return self._packet

    def _ping(self) -> None:
        if not self.lost.done():
            self._transport.write(_PING)
            self._loop.call_later(0.75 * KEEPALIVE, self._ping)

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _error: Exception | None) -> None:
        for answer in (self.lost, *self._answers.values()):
            if not answer.done():
                answer.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._in += data
        at = 0
        while (found := _packet_at(self._in, at)) is not None:
            start, end = found
            self._take(self._in[at], bytes(self._in[start:end]))
            at = end
        del self._in[:at]

    def _take(self, head: int, body: bytes) -> None:
        kind = head >> 4
        if kind == _PUBLISH:
            self._take_message(head, body)
        elif kind in (_PUBACK, _SUBACK, _CONNACK):
            packet = 0 if kind == _CONNACK else int.from_bytes(body[:2], "big")
            answer = self._answers.pop(packet, None)
            if answer is not None and not answer.done():
                answer.set_result(None)
        elif kind == _DISCONNECT:
            self._transport.close()

    def _take_message(self, head: int, body: bytes) -> None:
        at = 2 + int.from_bytes(body[:2], "big")
        topic = body[2:at].decode()
        if head & 0x06:
            self._send(0x40, body[at : at + 2])
            at += 2
        at += 1 + body[at]  # properties of less than 128 bytes
        self._hear(topic, body[at:], bool(head & 1))


def _packet_at(data: bytearray, at: int) -> tuple[int, int] | None:
    """Where the body of the packet at `at` begins and ends; None while it is not all there."""
    length = shift = 0
    place = at + 1
    while place < len(data):
        digit = data[place]
        length |= (digit & 127) << shift
        place, shift = place + 1, shift + 7
        if digit < 128:
            end = place + length
            return (place, end) if end <= len(data) else None
    return None


def _length(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _text(text: str) -> bytes:
    return _sized(text.encode())
