"""Messages as bytes, and back: sizes are looked at before anything is decoded."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec
from msgspec import Raw

from fp_async.errors import MessageError
from fp_async.messages import (
    BATCH_BYTES,
    PACKET_BYTES,
    VERSION,
    AgentState,
    Do,
    GatewayState,
    Message,
    Report,
    Reports,
    RunRequest,
)

encode = msgspec.json.Encoder().encode
T = TypeVar("T")
_do: msgspec.json.Decoder[Do] = msgspec.json.Decoder(Do)
_report: msgspec.json.Decoder[Report | Reports] = msgspec.json.Decoder(Report | Reports)
_agent_state = msgspec.json.Decoder(AgentState)
_gateway_state = msgspec.json.Decoder(GatewayState)
_run_request = msgspec.json.Decoder(RunRequest)


def do(payload: bytes) -> Do:
    """What the gateway asks of an agent. Raises MessageError."""
    return _decoded(_do, payload)


def reports(payload: bytes) -> list[Report]:
    """What an agent tells, in its order. Raises MessageError."""
    found = _decoded(_report, payload)
    return found.reports if isinstance(found, Reports) else [found]


def agent_state(payload: bytes) -> AgentState:
    """Raises MessageError."""
    return _decoded(_agent_state, payload)


def gateway_state(payload: bytes) -> GatewayState:
    """Raises MessageError."""
    return _decoded(_gateway_state, payload)


def run_request(payload: bytes) -> RunRequest:
    """An empty payload asks for a run as configured. Raises MessageError."""
    return _decoded(_run_request, payload) if payload.strip() else RunRequest()


def _decoded(decoder: msgspec.json.Decoder[T], payload: bytes) -> T:
    """The size is looked at before anything else."""
    if len(payload) > PACKET_BYTES:
        raise MessageError(f"{len(payload):,} bytes are too many: {PACKET_BYTES:,} is the limit")
    try:
        found = decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(str(error) or type(error).__name__) from error
    version = getattr(found, "v", VERSION)
    if version != VERSION:
        raise MessageError(f"version {version} of the protocol, and this program knows {VERSION}")
    return found


def batches(said: Iterable[Message]) -> Iterator[bytes]:
    """The reports as messages of up to 64 KiB; one that is larger goes by itself."""
    head, tail = b'{"type":"Reports","v":%d,"reports":[' % VERSION, b"]}"
    parts: list[bytes] = []
    size = 0
    for each in map(encode, said):
        if parts and size + len(each) > BATCH_BYTES:
            yield parts[0] if len(parts) == 1 else head + b",".join(parts) + tail
            parts, size = [], 0
        parts.append(each)
        size += len(each) + 1
    if parts:
        yield parts[0] if len(parts) == 1 else head + b",".join(parts) + tail


def to_wire(data: bytes) -> Raw:
    """`codec` bytes as a part of a body: JSON as it is, anything else in base64."""
    if data[:1] == b"{":
        return Raw(data)
    return Raw(b'"' + base64.b64encode(data) + b'"')


def from_wire(raw: Raw) -> bytes:
    """The `codec` bytes of `to_wire`. Raises MessageError."""
    data = bytes(raw)
    if data[:1] != b'"':
        return data
    try:
        return base64.b64decode(data[1:-1], validate=True)
    except binascii.Error as error:
        raise MessageError(f"no base64: {error}") from error
