"""From what agents tell to what changes in the store. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from fp_async import jobs, messages, wire
from fp_async.errors import MessageError
from fp_async.jobs import Chunk, Job, Report, Spec
from fp_async.lifecycle import Event
from fp_async.link_values import Message as Heard
from fp_async.messages import Finished, ResultChunk, Started

_REASON = 500  # characters
_EVENTS: dict[str, Event] = {
    "succeeded": "succeed",
    "failed": "fail",
    "cancelled": "confirm_cancel",
    "expired": "expire",
    "rejected": "refuse",
}


def in_parts(heard: Sequence[Heard], most: int) -> Iterator[Sequence[Heard]]:
    """Messages in pieces of so many bytes, or of one that is larger: each may be hundreds of
    outcomes, and nothing else is done while a piece is looked at.
    """
    start = size = 0
    for index, message in enumerate(heard):
        if size and size + len(message.payload) > most:
            yield heard[start:index]
            start, size = index, 0
        size += len(message.payload)
    yield heard[start:]


def started(told: Started, now: float) -> Report:
    """A start, by the center's clock."""
    at = now - max(told.sent_at - told.at, 0.0)
    return Report(id=told.id, attempt=told.attempt, event="start", started_at=at)


def finished(told: Finished, agent: str, now: float, result: bytes | None) -> Report:
    """An outcome, by the center's clock. Raises MessageError for a value that cannot be read."""
    record = told.record or jobs.Record()
    return Report(
        id=told.id,
        attempt=told.attempt,
        event=_EVENTS[told.outcome],
        reason=told.reason or _dropped(told),
        started_at=_by_our_clock(told, told.started_at, now),
        result=result if result is not None else value(told),
        error=None if told.error is None else msgspec.json.encode(told.error),
        record=msgspec.json.encode(replace(record, worker=agent)),
        errors=told.errors or None,
        crashes=told.crashes or None,
    )


def adopted(told: Finished, agent: str, now: float) -> Job:
    """The row of a job that an agent began by itself. Raises MessageError."""
    origin, report = told.origin, finished(told, agent, now, None)
    assert origin is not None
    ended = _by_our_clock(told, told.ended_at, now)
    return Job(
        id=told.id,
        pipeline=origin.pipeline,
        state=told.outcome,
        reason=report.reason,
        target=f"agent:{agent}",
        agent=agent,
        created_at=_by_our_clock(told, origin.created_at, now) or now,
        run_at=origin.nominal_at or origin.created_at,
        started_at=report.started_at,
        ended_at=ended,
        attempt=told.attempt,
        errors=told.errors,
        crashes=told.crashes,
        schedule_id=origin.schedule_id,
        nominal_at=origin.nominal_at,
        trigger=origin.trigger,
        identity=True,
        result_ttl=origin.result_ttl or jobs.RESULT_TTL,
        spec=msgspec.json.encode(origin.spec),
        inputs=wire.from_wire(origin.inputs),
        error=report.error,
        result=report.result,
        record=report.record,
    )


def value(told: Finished) -> bytes | None:
    """The result that is in the message. Raises MessageError."""
    return None if told.result is UNSET else wire.from_wire(told.result)


def chunk(told: ResultChunk) -> Chunk:
    """A part of a result. Raises MessageError."""
    most = messages.RESULT_BYTES // messages.CHUNK_BYTES
    if not 0 <= told.index < most or len(told.data) > 2 * messages.CHUNK_BYTES:
        raise MessageError(f"part {told.index} of a result: there are {most} of at most 32 KiB")
    try:
        data = base64.b64decode(told.data, validate=True)
    except binascii.Error as error:
        raise MessageError(f"no base64: {error}") from error
    return Chunk(told.id, told.attempt, told.index, data)


def put_together(told: Finished, parts: Sequence[Chunk]) -> bytes | list[int]:
    """The result of its parts, or the numbers of those that are missing.

    All of them, if what they give is not what was sent.
    """
    known = {part.index: part.data for part in parts}
    missing = [index for index in range(told.chunks) if index not in known]
    if missing:
        return missing
    whole = b"".join(known[index] for index in range(told.chunks))
    if hashlib.sha256(whole).hexdigest() != told.sha256:
        return list(range(told.chunks))
    return whole


def _dropped(told: Finished) -> str | None:
    return "its result could not be sent" if told.dropped else None


def _by_our_clock(told: Finished, at: float | None, now: float) -> float | None:
    """A time of the device's clock, of which only the distance from its `sent_at` is believed."""
    return None if at is None else now - max(told.sent_at - at, 0.0)


def plain(spec: Spec) -> Spec:
    """The rules of a job without what only the center applies."""
    return replace(spec, on_lost=None, lost_after=None)


def refused(report: Report, why: str) -> Report:
    """An outcome that the store does not take: without its value it has failed."""
    failure = jobs.Failure("StoreError", f"the outcome could not be stored: {why}"[:_REASON])
    return Report(
        id=report.id,
        attempt=report.attempt,
        event="fail" if report.event == "succeed" else report.event,
        error=msgspec.json.encode(failure),
    )


def without_value(job: Job, why: str) -> Job:
    """As `refused`, for a job that an agent began by itself."""
    failure = jobs.Failure("StoreError", f"the outcome could not be stored: {why}"[:_REASON])
    error = msgspec.json.encode(failure)
    return replace(job, state="failed", result=None, record=None, error=error)
