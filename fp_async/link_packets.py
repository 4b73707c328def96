"""PUBLISH packets as bytes, without the dozen objects that paho makes of each."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from fp_async.link_values import Message

FORMAT, EXPIRY, CONTENT_TYPE, RESPONSE_TOPIC, CORRELATION = 1, 2, 3, 8, 9
SUBSCRIPTION, TOPIC_ALIAS, USER_PROPERTY = 11, 35, 38
_TEXTS = {CONTENT_TYPE, RESPONSE_TOPIC}
_FIXED = {FORMAT: 1, EXPIRY: 4, TOPIC_ALIAS: 2}


def publish_properties(
    expiry: int | None = None,
    response_topic: str | None = None,
    correlation: bytes | None = None,
    user_properties: Iterable[tuple[str, str]] = (),
    content_type: str | None = None,
) -> bytes:
    """The properties of PUBLISH with their length. Raises ValueError for what does not fit."""
    body = b""
    if expiry is not None:
        body += bytes((EXPIRY,)) + max(0, min(expiry, 0xFFFFFFFF)).to_bytes(4, "big")
    if content_type is not None:
        body += bytes((CONTENT_TYPE,)) + _sized_text(content_type)
    if response_topic is not None:
        body += bytes((RESPONSE_TOPIC,)) + _sized_text(response_topic)
    if correlation is not None:
        body += bytes((CORRELATION,)) + _sized(correlation)
    for name, value in user_properties:
        body += bytes((USER_PROPERTY,)) + _sized_text(name) + _sized_text(value)
    return _varint(len(body)) + body


def _sized_text(text: str) -> bytes:
    if "\0" in text:  # brokers hang up for it
        raise ValueError("a property of a message has a NUL character")
    return _sized(text.encode())


def _sized(data: bytes) -> bytes:
    if len(data) > 0xFFFF:
        raise ValueError("a property of a message is longer than 65,535 bytes")
    return len(data).to_bytes(2, "big") + data


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def read_publish(header: int, body: bytes | bytearray, version: int, connection: int) -> Message:
    """The message in a PUBLISH packet. Raises ValueError when it is none."""
    try:
        return _read(header, body, version, connection)
    except (IndexError, struct.error) as error:
        raise ValueError("a malformed PUBLISH packet") from error


def _read(header: int, body: bytes | bytearray, version: int, connection: int) -> Message:
    qos = header >> 1 & 3
    at = 2 + (body[0] << 8 | body[1])
    topic = str(body[2:at], "utf-8", "replace")
    packet = 0
    if qos:
        packet = body[at] << 8 | body[at + 1]
        at += 2
    properties: dict[int, Any] = {}
    if version == 5:
        length, at = _read_varint(body, at)
        if length:
            properties = _read_properties(body, at, at + length)
            at += length
    if at > len(body):
        raise ValueError("a PUBLISH packet that is too short")
    retained, duplicate = bool(header & 1), bool(header & 8)
    plain = (topic, bytes(body[at:]), retained, qos, duplicate, packet, connection)
    if not properties:
        return Message(*plain)
    return Message(
        *plain,
        response_topic=properties.get(RESPONSE_TOPIC),
        correlation=properties.get(CORRELATION),
        user_properties=tuple(properties.get(USER_PROPERTY, ())),
        content_type=properties.get(CONTENT_TYPE),
        expiry=properties.get(EXPIRY),
        subscriptions=tuple(properties.get(SUBSCRIPTION, ())),
    )


def _read_properties(body: bytes | bytearray, at: int, end: int) -> dict[int, Any]:
    found: dict[int, Any] = {}
    while at < end:
        kind = body[at]
        at += 1
        if kind == USER_PROPERTY:
            name, at = _read_sized(body, at)
            value, at = _read_sized(body, at)
            found.setdefault(kind, []).append((_text(name), _text(value)))
        elif kind in _TEXTS or kind == CORRELATION:
            data, at = _read_sized(body, at)
            found[kind] = data if kind == CORRELATION else _text(data)
        elif kind in _FIXED:
            width = _FIXED[kind]
            found[kind] = int.from_bytes(body[at : at + width], "big")
            at += width
        elif kind == SUBSCRIPTION:
            number, at = _read_varint(body, at)
            found.setdefault(kind, []).append(number)
        else:
            raise ValueError(f"a message with the unknown property {kind}")
    if at != end:
        raise ValueError("the properties of a message do not fit their length")
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _read_sized(body: bytes | bytearray, at: int) -> tuple[bytes, int]:
    start = at + 2
    end = start + (body[at] << 8 | body[at + 1])
    return bytes(body[start:end]), end


def _read_varint(body: bytes | bytearray, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        digit = body[at]
        at += 1
        number |= (digit & 127) << shift
        if digit < 128:
            return number, at
        shift += 7
        if shift > 21:
            raise ValueError("a length of more than four bytes")
