"""From rows of the agent's store to what the gateway is told. Pure."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator

from msgspec import UNSET
from msgspec.structs import replace

from fp_async import messages, wire
from fp_async.jobs import Job, Record
from fp_async.lifecycle import TERMINAL
from fp_async.messages import Accepted, Finished, Message, Origin, ResultChunk, Started

_LATE = 10.0  # seconds after its end from which on an outcome is called late
_ERROR_CHARACTERS = 16_384


def standing(job: Job) -> Message | None:
    """What to answer to an offer of a job that is known; None where its end is told anyway."""
    assert job.offer is not None
    if job.pruned:
        return lost_value(job)
    if job.state == "running" and job.started_at is not None:
        return started(job)
    if job.state in TERMINAL:
        return None
    return Accepted(id=job.id, attempt=job.offer)


def started(job: Job) -> Started:
    """It has begun."""
    now = time.time()
    assert job.offer is not None
    return Started(id=job.id, attempt=job.offer, at=job.started_at or now, sent_at=now)


def finished(job: Job, version: str | None) -> Iterator[Message]:
    """How it ended, with what is too large for one message before it, in parts."""
    chunks = _chunks(job) if job.result and len(job.result) > messages.INLINE_BYTES else []
    yield from chunks
    body = without_value(job, version)
    if job.result is None:
        yield body
    elif chunks:
        digest = hashlib.sha256(job.result).hexdigest()
        yield replace(body, chunks=len(chunks), sha256=digest)
    else:
        yield replace(body, result=wire.to_wire(job.result))


def without_value(job: Job, version: str | None = None) -> Finished:
    """How it ended, without what it returned."""
    now = time.time()
    ended = job.ended_at or now
    return Finished(
        id=job.id,
        attempt=job.offer or 1,
        outcome=job.state,  # type: ignore[arg-type]
        ended_at=ended,
        sent_at=now,
        started_at=job.started_at,
        reason=job.reason,
        result=UNSET,
        error=job.failure,
        record=_record(job, now - ended, version),
        tries=job.attempt,
        errors=job.errors,
        crashes=job.crashes,
        origin=_origin(job) if job.offer is None else None,
    )


def lost_value(job: Job) -> Finished:
    """Of a job that was told and pruned only the outcome is known."""
    return replace(without_value(job), record=None, dropped=job.state == "succeeded")


def shrunk(body: Finished) -> Finished:
    """The outcome alone, for a broker that takes no more."""
    return replace(body, result=UNSET, chunks=0, sha256="", record=None, dropped=True)


def _record(job: Job, age: float, version: str | None) -> Record:
    trace = job.trace
    warnings = list(trace.warnings)
    wanted = job.rules.version
    if wanted is not None and version is not None and version != wanted:
        warnings.append(f"the device runs version {version} of '{job.pipeline}', not {wanted}")
    late = round(age, 3) if age > _LATE else 0.0
    log = trace.log[-messages.LOG_CHARACTERS :]
    return replace(trace, log=log, warnings=warnings, late=late)


def _origin(job: Job) -> Origin:
    return Origin(
        pipeline=job.pipeline,
        created_at=job.created_at,
        inputs=wire.to_wire(job.inputs),
        spec=job.rules,
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
            attempt=job.offer or 1,
            index=index,
            data=base64.b64encode(result[start : start + size]).decode(),
        )
        for index, start in enumerate(range(0, len(result), size))
    ]
