"""Messages as bytes, and back: sizes are looked at before anything is decoded."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Raw

from fp_async.errors import MessageError, OtherVersionError
from fp_async.messages import (
    BATCH_BYTES,
    PACKET_BYTES,
    REPORTS,
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
from fp_async.values.text import Numeral, number


def _written(value: Any) -> Raw:
    """A number that was read with all its digits, with all of them."""
    if isinstance(value, Numeral):
        return Raw(str(value).encode())
    raise NotImplementedError(f"a message has no {type(value).__name__}")


encode = msgspec.json.Encoder(enc_hook=_written).encode
T = TypeVar("T")
_do: msgspec.json.Decoder[Do] = msgspec.json.Decoder(Do)
_report: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)
_reports: msgspec.json.Decoder[Report | Reports] = msgspec.json.Decoder(Report | Reports)
_agent_state = msgspec.json.Decoder(AgentState)
_gateway_state = msgspec.json.Decoder(GatewayState)
_run_request = msgspec.json.Decoder(RunRequest, float_hook=number)
_UNSAID = "it cannot be read"
_EXPLAINED = 5  # reports of one message
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Unreadable(msgspec.Struct, frozen=True):
    """A report among others that cannot be read: why, and as much of it as can."""

    why: str = ""
    type: str = ""
    id: Id | None = None
    attempt: Count = 0
    v: Any = VERSION


def unreadable(report: Report, why: str) -> Unreadable:
    """A report that could be read, and makes no sense."""
    id, attempt = getattr(report, "id", None), getattr(report, "attempt", 0)
    return Unreadable(why=why, type=type(report).__name__, id=id, attempt=attempt)


class _Several(msgspec.Struct):
    """A message of reports that have not been read yet, or a single one without any."""

    v: Literal[1] = VERSION
    reports: list[Raw] = []


class _Marked(msgspec.Struct):
    """Of a message the version of the protocol alone."""

    v: Any = VERSION


_marked = msgspec.json.Decoder(_Marked)
_several = msgspec.json.Decoder(_Several)
_unreadable = msgspec.json.Decoder(Unreadable)


def do(payload: bytes) -> Do:
    """What the gateway asks of an agent. Raises MessageError."""
    return _decoded(_do, payload)


def reports(payload: bytes, *, explain: bool = True) -> list[Report | Unreadable]:
    """What an agent tells, in its order. Raises MessageError, its OtherVersionError for a message
    of another version of the protocol; to say why takes longer than to read.

    A report that cannot be read spoils none of those that came with it: agents are upgraded one
    after the other, and tell the same again until it is acknowledged.
    """
    _check_size(payload)
    try:
        found = _reports.decode(payload)
    except _UNREADABLE as error:
        parts = _parts(payload)
        if not parts:
            _check_version(payload)
            raise _explained(payload, _reports) if explain else MessageError(_UNSAID) from error
        _check_number(parts)
        return list(_each(parts, explain=explain))
    told: list[Report | Unreadable]
    told = list(found.reports) if isinstance(found, Reports) else [found]
    _check_number(told)
    return told


def _check_version(payload: bytes) -> None:
    try:
        version = _marked.decode(payload).v
    except _UNREADABLE:
        return
    if version != VERSION:
        raise _other_version(version)


def _other_version(version: object) -> OtherVersionError:
    text = f"version {version!r:.20} of the protocol, and this program knows {VERSION}"
    return OtherVersionError(text)


def _check_number(told: Sized) -> None:
    if len(told) > REPORTS:
        raise MessageError(f"{len(told):,} reports in one message are too many: {REPORTS:,}")


def _each(parts: Iterable[Raw], *, explain: bool) -> Iterator[Report | Unreadable]:
    left = _EXPLAINED if explain else 0
    for part in parts:
        one = _one(part, explain=left > 0)
        left -= isinstance(one, Unreadable)
        yield one


def _parts(payload: bytes) -> list[Raw]:
    """The reports that a message consists of: none, where not even that can be told."""
    try:
        parts = _several.decode(payload).reports
        return parts or [Raw(payload)]
    except _UNREADABLE:
        return []


def _one(part: Raw, *, explain: bool) -> Report | Unreadable:
    try:
        return _decoded(_report, part) if explain else _report.decode(part)
    except MessageError as error:
        return msgspec.structs.replace(_head(part), why=str(error))
    except _UNREADABLE:
        return msgspec.structs.replace(_head(part), why=_UNSAID)


def _head(part: Raw) -> Unreadable:
    try:
        return _unreadable.decode(part)
    except _UNREADABLE:
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
    _check_size(payload)
    try:
        return decoder.decode(payload)
    except _UNREADABLE as error:
        raise _explained(payload, decoder) from error


def _check_size(payload: bytes | Raw) -> None:
    if len(payload) > PACKET_BYTES:
        raise MessageError(f"{len(payload):,} bytes are too many: {PACKET_BYTES:,} is the limit")


def _explained(payload: bytes | Raw, decoder: msgspec.json.Decoder[Any]) -> MessageError:
    """Why the decoder refused it, said for whoever sent it."""
    from fp_async.values import mismatch  # an agent that is spoken to properly never loads it

    wrong = mismatch.explain_json(bytes(payload), decoder.type)
    if wrong.path[-1:] == ("v",):
        return _other_version(wrong.value)
    return MessageError(str(wrong))


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
