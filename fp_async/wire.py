"""Messages as bytes, and back: sizes are looked at before anything is decoded."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

import msgspec
from msgspec import Raw

from fp_async.errors import MessageError, suggestion
from fp_async.messages import (
    BATCH_BYTES,
    PACKET_BYTES,
    VERSION,
    AgentState,
    Count,
    Do,
    GatewayState,
    Id,
    Message,
    Report,
    Reports,
    RunRequest,
)

encode = msgspec.json.Encoder().encode
T = TypeVar("T")
_do: msgspec.json.Decoder[Do] = msgspec.json.Decoder(Do)
_report: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)
_reports: msgspec.json.Decoder[Report | Reports] = msgspec.json.Decoder(Report | Reports)
_agent_state = msgspec.json.Decoder(AgentState)
_gateway_state = msgspec.json.Decoder(GatewayState)
_run_request = msgspec.json.Decoder(RunRequest)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`( - at .*)?", re.DOTALL)
_VERSION = re.compile(r"(?:Invalid enum value (\S+)|Expected.*) - at `\$(?:\.\w+\[\d+\])?\.v`")


class Unreadable(msgspec.Struct, frozen=True):
    """A report among others that cannot be read: why, and as much of it as can."""

    why: str = ""
    type: str = ""
    id: Id | None = None
    attempt: Count = 0


def unreadable(report: Report, why: str) -> Unreadable:
    """A report that could be read, and makes no sense."""
    id, attempt = getattr(report, "id", None), getattr(report, "attempt", 0)
    return Unreadable(why=why, type=type(report).__name__, id=id, attempt=attempt)


class _Several(msgspec.Struct):
    """A message of reports that have not been read yet, or a single one without any."""

    v: Literal[1] = VERSION
    reports: list[Raw] = []


_several = msgspec.json.Decoder(_Several)
_unreadable = msgspec.json.Decoder(Unreadable)


def do(payload: bytes) -> Do:
    """What the gateway asks of an agent. Raises MessageError."""
    return _decoded(_do, payload)


def reports(payload: bytes) -> list[Report | Unreadable]:
    """What an agent tells, in its order. Raises MessageError.

    A report that cannot be read spoils none of those that came with it: agents are upgraded one
    after the other, and tell the same again until it is acknowledged.
    """
    try:
        found = _decoded(_reports, payload)
    except MessageError:
        if len(payload) > PACKET_BYTES:
            raise
        parts = _parts(payload)
        if not parts:
            raise
        return [_one(part) for part in parts]
    return list(found.reports) if isinstance(found, Reports) else [found]


def _parts(payload: bytes) -> list[Raw]:
    """The reports that a message consists of: none, where not even that can be told."""
    try:
        parts = _several.decode(payload).reports
        return parts or [Raw(payload)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []


def _one(part: Raw) -> Report | Unreadable:
    try:
        return _decoded(_report, part)
    except MessageError as error:
        return msgspec.structs.replace(_head(part), why=str(error))


def _head(part: Raw) -> Unreadable:
    try:
        return _unreadable.decode(part)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Unreadable()


def agent_state(payload: bytes) -> AgentState:
    """Raises MessageError."""
    return _decoded(_agent_state, payload)


def gateway_state(payload: bytes) -> GatewayState:
    """Raises MessageError."""
    return _decoded(_gateway_state, payload)


def run_request(payload: bytes) -> RunRequest:
    """An empty payload asks for a run as configured. Raises MessageError."""
    return _decoded(_run_request, payload) if payload.strip() else RunRequest()


def _decoded(decoder: msgspec.json.Decoder[T], payload: bytes | Raw) -> T:
    """The size is looked at before anything else."""
    if len(payload) > PACKET_BYTES:
        raise MessageError(f"{len(payload):,} bytes are too many: {PACKET_BYTES:,} is the limit")
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(_explained(error)) from error


def _explained(error: Exception) -> str:
    """The decoder's message, said for whoever sent it."""
    text = str(error) or type(error).__name__
    if unknown := _UNKNOWN.fullmatch(text):
        return f"unknown field '{unknown[1]}'{suggestion(unknown[1], _REQUEST_FIELDS)}"
    if other := _VERSION.fullmatch(text):
        version = other[1] or "that is no number"
        return f"version {version} of the protocol, and this program knows {VERSION}"
    return text


_REQUEST_FIELDS = RunRequest.__struct_fields__  # of no other type unknown fields are refused


_HEAD, _TAIL = b'{"type":"Reports","v":%d,"reports":[' % VERSION, b"]}"


def batches(said: Iterable[Message]) -> Iterator[bytes]:
    """The reports as messages of up to 64 KiB; one that is larger goes by itself."""
    parts: list[bytes] = []
    empty = len(_HEAD) + len(_TAIL)
    size = empty
    for each in map(encode, said):
        if parts and size + len(each) > BATCH_BYTES:
            yield _together(parts)
            parts, size = [], empty
        parts.append(each)
        size += len(each) + 1
    if parts:
        yield _together(parts)


def _together(parts: list[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else _HEAD + b",".join(parts) + _TAIL


def to_wire(data: bytes) -> Raw:
    """`codec` bytes as a part of a body: JSON as it is, anything else in base64."""
    if data[:1] == b"{":
        return Raw(data)
    return Raw(b'"' + base64.b64encode(data) + b'"')


def from_wire(raw: Raw) -> bytes:
    """The `codec` bytes of `to_wire`. Raises MessageError."""
    data = bytes(raw)
    if data[:1] == b"{":
        return _text(data)
    if data[:1] != b'"':
        raise MessageError(f"a value is an object, or a text of base64, not {_kind(data)}")
    try:
        return base64.b64decode(data[1:-1], validate=True)
    except binascii.Error as error:
        raise MessageError(f"no base64: {error}") from error


def _text(data: bytes) -> bytes:
    """The decoder passes over the texts in a part that it leaves as it is."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise MessageError(f"no UTF-8: {error}") from error
    return data


def _kind(data: bytes) -> str:
    return {b"[": "a list", b"n": "null", b"t": "true", b"f": "false"}.get(data[:1], "a number")
