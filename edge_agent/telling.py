"""From rows of the agent's store to what the gateway is told. Pure."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator

from msgspec import UNSET, Raw
from msgspec.structs import replace

from edge_agent import fitting
from fp_async import messages, wire
from fp_async.jobs import Job, Record
from fp_async.lifecycle import TERMINAL
from fp_async.messages import Accepted, Finished, Message, Origin, ResultChunk, Started

_LATE = 10.0  # seconds after its end from which on an outcome is called late
_REASON = 2048  # bytes
_BORN_INLINE = 16_384  # of a result, beside the inputs of a job that began here
_NO_INPUTS = b'{"v":1,"plain":{}}'


def standing(job: Job) -> Message | None:
    """What to answer to an offer of a job that is known; None where its end is told anyway."""
    assert job.offer is not None
    if job.pruned:
        return lost_value(job)
    if job.state == "running" and job.started_at is not None:
        return started(job)
    if job.state in TERMINAL:
        return None
    return waits(job, job.reason) if job.misconfigured else Accepted(id=job.id, attempt=job.offer)


def waits(job: Job, reason: str | None) -> Accepted:
    """It has not begun, because of its configuration here, or of that of others before it."""
    assert job.offer is not None
    return Accepted(id=job.id, attempt=job.offer, reason=fitting.head(reason or "", _REASON))


def started(job: Job) -> Started:
    """It has begun."""
    now = time.time()
    assert job.offer is not None
    return Started(id=job.id, attempt=job.offer, at=job.started_at or now, sent_at=now)


def finished(job: Job, version: str | None) -> Iterator[Message]:
    """How it ended, with what is too large for one message before it, in parts.

    No message is larger than `messages.PACKET_BYTES`, whatever the job has left behind.
    """
    result = job.result
    inline = _BORN_INLINE if job.offer is None else messages.INLINE_BYTES
    body = without_value(job, version)
    if result is None:
        yield body
    elif len(result) <= inline:
        yield replace(body, result=wire.to_wire(result))
    elif len(result) > messages.RESULT_BYTES:
        most = messages.RESULT_BYTES
        why = f"it has {len(result):,} bytes, {most:,} are the most"
        yield replace(body, dropped=True, reason=_unsent(body, why))
    else:
        yield from (chunks := _chunks(job))
        digest = hashlib.sha256(result).hexdigest()
        yield replace(body, chunks=len(chunks), sha256=digest)


def without_value(job: Job, version: str | None = None) -> Finished:
    """How it ended, without what it returned."""
    now = time.time()
    ended = now if job.ended_at is None else job.ended_at
    return Finished(
        id=job.id,
        attempt=1 if job.offer is None else job.offer,
        outcome=job.state,  # type: ignore[arg-type]
        ended_at=ended,
        sent_at=now,
        started_at=job.started_at,
        reason=None if job.reason is None else fitting.head(job.reason, _REASON),
        result=UNSET,
        error=None if job.failure is None else fitting.failure(job.failure),
        record=_record(job, now - ended, version),
        tries=job.attempt,
        errors=job.errors,
        crashes=job.crashes,
        origin=_origin(job) if job.offer is None else None,
    )


def lost_value(job: Job) -> Finished:
    """Of a job that was told and pruned only the outcome is known."""
    told = replace(without_value(job), record=None)
    if job.state != "succeeded":
        return told
    why = "the device had told it before, and does not keep it"
    return replace(told, dropped=True, reason=_unsent(told, why))


def shrunk(body: Finished) -> Finished:
    """The outcome alone, for a broker that takes no more."""
    had_value = body.result is not UNSET or bool(body.chunks)
    error = None if body.error is None else fitting.failure(body.error, 1024)
    small = replace(body, result=UNSET, chunks=0, sha256="", record=None, error=error)
    origin = None if body.origin is None else replace(body.origin, inputs=Raw(_NO_INPUTS))
    why = (
        _unsent(body, "the broker takes no message as large as that") if had_value else body.reason
    )
    return replace(small, origin=origin, dropped=had_value or body.dropped, reason=why)


def _unsent(body: Finished, why: str) -> str:
    """Return the reason of an outcome without its result, behind a reason that it has already."""
    text = f"its result could not be sent: {why}"
    return f"{body.reason}; {text}" if body.reason else text


def _record(job: Job, age: float, version: str | None) -> Record:
    record = fitting.record(job.trace)
    warnings = list(record.warnings)
    wanted = job.rules.version
    if wanted is not None and version is not None and version != wanted:
        warnings.append(f"the device runs version {version} of '{job.pipeline}', not {wanted}")
    if job.offer is None and len(job.inputs) > messages.INPUT_BYTES:
        warnings.append(f"its inputs ({len(job.inputs):,} bytes) are too large to be told")
    late = round(age, 3) if age > _LATE else 0.0
    return replace(record, warnings=warnings, late=late, version=version or "")


def _origin(job: Job) -> Origin:
    told = len(job.inputs) <= messages.INPUT_BYTES
    return Origin(
        pipeline=job.pipeline,
        created_at=job.created_at,
        inputs=wire.to_wire(job.inputs) if told else Raw(_NO_INPUTS),
        spec=fitting.rules(messages.rules(job.rules)),
        schedule_id=job.schedule_id,
        nominal_at=job.nominal_at,
        trigger=job.trigger,
        result_ttl=job.result_ttl,
    )


def _chunks(job: Job) -> list[ResultChunk]:
    result, size = job.result or b"", messages.CHUNK_BYTES
    return [
        ResultChunk(
            id=job.id,
            attempt=1 if job.offer is None else job.offer,
            index=index,
            data=base64.b64encode(result[start : start + size]).decode(),
        )
        for index, start in enumerate(range(0, len(result), size))
    ]
