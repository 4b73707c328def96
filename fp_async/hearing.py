"""From what agents tell to what changes in the store. Pure."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from fp_async import jobs, messages, wire
from fp_async.board import Open
from fp_async.errors import MessageError
from fp_async.jobs import Chunk, Failure, Job, Letter, NodeTiming, Record, Report, Spec
from fp_async.lifecycle import Event
from fp_async.messages import Accepted, Finished, ResultChunk, Started

_REASON = 500  # characters
_TEXT = 65_536  # characters of a log, a message, a traceback
_NODES = 1000
_SUMMARY = 4096
_WARNINGS = 20
_VERSION = 64
_LETTER_BYTES = 4096
_OUTCOME_BYTES = messages.INLINE_BYTES  # of a result that no row takes
_SAME_RUN = 60.0  # seconds between two tellings of one start, whose clock may have been set
_NO_OUTCOMES = ("give_back", "refuse")
_KINDS = 50
_OLDEST = 10 * 365 * 86_400.0  # seconds
_EVENTS: dict[str, Event] = {
    "succeeded": "succeed",
    "failed": "fail",
    "cancelled": "confirm_cancel",
    "expired": "expire",
    "rejected": "refuse",
}


def started(told: Started, now: float) -> Report:
    """A start, by the center's clock."""
    at = now - _age(told.sent_at, told.at)
    return Report(id=told.id, attempt=told.attempt, event="start", started_at=at)


def accepted(told: Accepted) -> Report:
    """It is there, and may wait for something."""
    if told.reason is None:
        return Report(id=told.id, attempt=told.attempt, event="accept")
    why = clean(told.reason) or None
    return Report(id=told.id, attempt=told.attempt, event="wait", reason=why)


def finished(told: Finished, agent: str, now: float, result: bytes | None) -> Report:
    """An outcome, by the center's clock. Raises MessageError for a value that cannot be read."""
    return Report(
        id=told.id,
        attempt=told.attempt,
        event=_EVENTS[told.outcome],
        reason=_reason(told),
        started_at=_by_our_clock(told, told.started_at, now),
        ended_at=_by_our_clock(told, told.ended_at, now),
        result=result if result is not None else value(told),
        error=None if told.error is None else msgspec.json.encode(_bounded(told.error)),
        record=msgspec.json.encode(_record(told, agent, now)),
        errors=told.errors or None,
        crashes=told.crashes or None,
        tries=told.tries if told.tries > 1 else None,
    )


def own_id(agent: str, told: str) -> str:
    """Return the id here of a job that an agent began by itself: each agent has its own, so that
    none can take one that another job will have.
    """
    return jobs.identity("own job", agent, told)  # no schedule has a name with a space


def _fired_id(told: Finished, agent: str) -> str | None:
    """Return the id of the job that the agent's schedule fires then; None for other jobs."""
    origin = told.origin
    if origin is None or origin.schedule_id is None or origin.nominal_at is None:
        return None
    return jobs.identity(origin.schedule_id, repr(origin.nominal_at), agent)


def adopted(told: Finished, agent: str, now: float) -> Job:
    """The row of a job that an agent began by itself. Raises MessageError.

    Its id is of this agent alone: what a schedule fires on it has such a one there already.
    """
    origin, report = told.origin, finished(told, agent, now, None)
    assert origin is not None
    created = _by_our_clock(told, origin.created_at, now)
    return Job(
        id=told.id if told.id == _fired_id(told, agent) else own_id(agent, told.id),
        pipeline=origin.pipeline,
        state=told.outcome,
        reason=report.reason,
        target=f"agent:{agent}",
        agent=agent,
        created_at=now if created is None else created,
        run_at=origin.created_at if origin.nominal_at is None else origin.nominal_at,
        started_at=report.started_at,
        ended_at=_by_our_clock(told, told.ended_at, now),
        attempt=max(told.attempt, told.tries),
        errors=told.errors,
        crashes=told.crashes,
        schedule_id=origin.schedule_id,
        nominal_at=origin.nominal_at,
        trigger=origin.trigger,
        identity=True,
        result_ttl=jobs.RESULT_TTL if origin.result_ttl is None else origin.result_ttl,
        spec=msgspec.json.encode(origin.spec),
        inputs=wire.from_wire(origin.inputs),
        error=report.error,
        result=report.result,
        record=report.record,
    )


def value(told: Finished) -> bytes | None:
    """The result that is in the message. Raises MessageError."""
    return None if told.result is UNSET else wire.from_wire(told.result)


def parts_of(id: str, agent: str) -> str:
    """Return the id under which parts of a result are kept: each agent's own, whatever it says."""
    return jobs.identity("parts", agent, id)


def may_send(each: Open | None, told: ResultChunk | Finished, agent: str) -> bool:
    """Return whether an agent may send that part: not of a job that another was offered. What it
    had before that one, or began by itself, it may.
    """
    return each is None or each.agent == agent or told.attempt < each.job.attempt


def chunk(told: ResultChunk, agent: str) -> Chunk:
    """A part of a result. Raises MessageError."""
    try:
        data = base64.b64decode(told.data, validate=True)
    except ValueError as error:  # also of a text that is not ASCII
        raise MessageError(f"part {told.index} of a result: no base64: {error}") from error
    return Chunk(parts_of(told.id, agent), told.attempt, told.index, data)


def clean(text: str) -> str:
    """A reason as every store can keep it: not too long, and without NUL."""
    return text[:_REASON].replace("\0", "\N{REPLACEMENT CHARACTER}")


def _bounded(error: Failure) -> Failure:
    return Failure(
        kind=error.kind[:_REASON],
        message=error.message[:_TEXT],
        traceback=error.traceback[-_TEXT:],
        kinds=[kind[:_REASON] for kind in error.kinds[:_KINDS]],
    )


def _record(told: Finished, agent: str, now: float) -> Record:
    record = told.record or jobs.Record()
    nodes = [_node(told, each, now) for each in record.nodes[:_NODES]]
    return replace(
        record,
        nodes=nodes,
        log=record.log[-_TEXT:],
        worker=agent,
        warnings=[clean(text) for text in record.warnings[:_WARNINGS]],
        version=clean(record.version)[:_VERSION],
    )


def warnings(record: bytes | None) -> list[str]:
    """Return what an agent warns of beside an outcome, from its stored record."""
    if not record or b'"warnings"' not in record:  # hardly ever: not worth reading it for
        return []
    return msgspec.json.decode(record, type=Record).warnings


def _node(told: Finished, timing: NodeTiming, now: float) -> NodeTiming:
    at = now - _age(told.sent_at, timing.at) if timing.at else 0.0
    summary = timing.summary if len(timing.summary) <= _SUMMARY else ""
    return replace(timing, at=at, summary=summary)


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


def _reason(told: Finished) -> str | None:
    if told.reason:
        return clean(told.reason)
    return "its result could not be sent" if told.dropped else None


def _by_our_clock(told: Finished, at: float | None, now: float) -> float | None:
    """A time of the device's clock, of which only the distance from its `sent_at` is believed."""
    return None if at is None else now - _age(told.sent_at, at)


def _age(sent_at: float, at: float) -> float:
    """How long ago it was; a clock that was set in between must not make that centuries."""
    return min(max(sent_at - at, 0.0), _OLDEST)


def plain(spec: Spec) -> messages.Rules:
    """The rules of a job without what only the center applies."""
    return replace(messages.rules(spec), on_lost=None, lost_after=None)


def refused(report: Report, why: str) -> Report:
    """An outcome that the store does not take: without its value it has failed."""
    return Report(
        id=report.id,
        attempt=report.attempt,
        event="fail" if report.event == "succeed" else report.event,
        agent=report.agent,
        error=_failure("StoreError", f"the outcome could not be stored: {why}"),
    )


def without_value(job: Job, why: str) -> Job:
    """As `refused`, for a job that an agent began by itself."""
    error = _failure("StoreError", f"the outcome could not be stored: {why}")
    return replace(job, state="failed", result=None, record=None, error=error)


def unreadable(id: str, attempt: int, why: str) -> Report:
    """An outcome that cannot be read: its job has failed for that, or it would be told for ever,
    and its job would never end.
    """
    error = _failure("MessageError", f"the outcome could not be read: {why}")
    return Report(id=id, attempt=attempt, event="fail", error=error)


def letter(topic: str, why: str, payload: bytes) -> Letter:
    """A message of which nothing is made, as it is kept; the reason has the size of a large one."""
    size = f" (its {len(payload):,} bytes are kept up to {_LETTER_BYTES:,})"
    reason = clean(why)
    if len(payload) > _LETTER_BYTES:
        reason = reason[: _REASON - len(size)] + size
    return Letter(
        id=jobs.new_id(), topic=topic[:_REASON], reason=reason, payload=payload[:_LETTER_BYTES]
    )


def unplaced(report: Report, job: Job | None, agent: str, topic: str) -> Letter | None:
    """Return an outcome that no row takes, as it is kept; None where the row has it already, or
    nothing has come of the attempt. Told again it is the same letter.
    """
    why = _why_unplaced(report, job, agent)
    if not why:
        return None
    return Letter(
        id=jobs.identity("late", report.id, report.attempt, agent, report.started_at),
        topic=topic,
        reason=f"late: attempt {report.attempt} of job {report.id} ended with "
        f"'{report.event}', and {why}",
        payload=(report.result or b"")[:_OUTCOME_BYTES],
    )


def ran_again(told: Job, row: Job, agent: str, topic: str) -> Letter | None:
    """Return the outcome of a job that an agent began by itself, and whose id is taken, as it is
    kept; None where the row tells of the same run.
    """
    if not _ran_again(told, row):
        return None
    return Letter(
        id=jobs.identity("late", told.id, told.attempt, agent, told.started_at),
        topic=topic,
        reason=f"late: job {told.id} ended with '{told.state}', and the agent had run it before: "
        "its store is an older backup",
        payload=(told.result or b"")[:_OUTCOME_BYTES],
    )


def _why_unplaced(report: Report, job: Job | None, agent: str) -> str:
    if report.event in _NO_OUTCOMES:
        return ""
    if job is None:
        return "there is no such job here"
    if job.attempt != report.attempt:
        return f"attempt {job.attempt} counts"
    if job.agent != agent:
        return f"the job is one of agent '{job.agent}'" if job.agent else "no agent has the job"
    if job.finished and _ran_again(report, job):
        return "the agent had run it before: its store is an older backup"
    return ""


def _ran_again(report: Report | Job, job: Job) -> bool:
    """Return whether an outcome is of another run than that which the row tells of."""
    began = report.started_at, job.started_at
    return None not in began and abs((began[0] or 0.0) - (began[1] or 0.0)) > _SAME_RUN


def _failure(kind: str, text: str) -> bytes:
    return msgspec.json.encode(Failure(kind, text[:_REASON]))
