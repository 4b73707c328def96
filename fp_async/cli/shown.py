"""Jobs and schedules as a person reads them in a table, and as JSON."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import msgspec

from fp_async import orders, triggers
from fp_async.errors import FlowerPowerError
from fp_async.jobs import Job, Schedule

_SPANS = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s"))

_NO_DATE = (OverflowError, ValueError, OSError)  # before the year 1, or after 9999: epoch seconds


def local(moment: float | None) -> str:
    """Local time, to the second: 2026-01-31T08:00:00. Empty for no time."""
    if moment is None:
        return ""
    try:
        return datetime.fromtimestamp(moment).isoformat(timespec="seconds")  # noqa: DTZ006
    except _NO_DATE:
        return f"{moment:.12g}"


def stamp(moment: float | None) -> str | None:
    """Local time with its offset, to the millisecond, for programs."""
    if moment is None:
        return None
    try:
        return datetime.fromtimestamp(moment).astimezone().isoformat(timespec="milliseconds")
    except _NO_DATE:
        return f"{moment:.12g}"


def span(seconds: float) -> str:
    """How long something took or takes: 0.012 s, 45 s, 3 min 20 s, 2 h 5 min, 4 d."""
    if seconds < 60:
        return f"{max(seconds, 0.0):.3f} s" if seconds < 10 else f"{seconds:.0f} s"
    for unit, name, part, part_name in _SPANS:
        if seconds >= unit:
            rest = int(seconds % unit // part)
            whole = f"{int(seconds // unit)} {name}"
            return f"{whole} {rest} {part_name}" if rest and seconds < 10 * 86_400 else whole
    raise AssertionError


def ago(moment: float | None, now: float | None = None) -> str:
    """How long ago that was, or when it will be: 5 s ago, in 3 min."""
    if moment is None:
        return ""
    seconds = (time.time() if now is None else now) - moment
    if abs(seconds) < 1:
        return "now"
    text = span(float(round(abs(seconds)))).replace(".000", "")
    return f"{text} ago" if seconds > 0 else f"in {text}"


def took(job: Job) -> str:
    """How long the latest attempt took, or has been running."""
    if job.started_at is None or job.state == "queued":
        return ""
    return span((job.ended_at or time.time()) - job.started_at)


# Jobs ---------------------------------------------------------------------------------------


def job_row(job: Job) -> dict[str, Any]:
    """A job's line in a table."""
    waits = job.state == "queued" and job.run_at > time.time() + 1
    return {
        "id": job.id,
        "pipeline": job.pipeline,
        "state": job.state,
        "queue": job.queue if job.target is None else job.agent or job.target,
        "added": ago(job.created_at),
        "took": f"due {ago(job.run_at)}" if waits else took(job),
        "attempt": job.attempt or "",
    }


_TIMES = ("created_at", "run_at", "expires_at", "started_at", "ended_at", "nominal_at", "cancel_at")
_PLAIN = (
    *("id", "pipeline", "state", "reason", "queue", "priority", "attempt", "errors", "crashes"),
    *("key", "concurrency", "schedule_id", "retried_from", "owner"),
    *("target", "agent", "group_id", "trigger"),
)


def job_json(job: Job) -> dict[str, Any]:
    """A job's entry in a list."""
    plain = {name: getattr(job, name) for name in _PLAIN}
    return plain | {name: stamp(getattr(job, name)) for name in _TIMES}


def job_details(job: Job) -> dict[str, Any]:
    """All that is stored of a job, but for its result."""
    trace, failure = job.trace, job.failure
    return {
        **job_json(job),
        "options": msgspec.to_builtins(job.rules),
        "inputs": _inputs(job),
        "worker": trace.worker or None,
        "nodes": msgspec.to_builtins(trace.nodes),
        "log": trace.log,
        "error": None if failure is None else msgspec.to_builtins(failure),
    }


def _inputs(job: Job) -> dict[str, Any] | None:
    """As JSON, or as Python writes them; None where they cannot be read here."""
    from fp_async import codec
    from fp_async.cli.output import plain

    try:
        values = codec.decode(job.inputs) if job.inputs else {}
    except FlowerPowerError:
        return None
    return {name: plain(value) for name, value in values.items()}


# Schedules ----------------------------------------------------------------------------------


def words(row: Schedule) -> str:
    """The trigger in words."""
    return triggers.describe(triggers.decode(row.trigger))


def state(row: Schedule) -> str:
    """Whether a schedule fires: active, paused, over, or on agents, which fire it themselves."""
    if row.paused:
        return "paused"
    if orders.template_of(row).offline:
        return "on agents"
    return "over" if row.next_fire_time is None else "active"


def schedule_row(row: Schedule) -> dict[str, Any]:
    """A schedule's line in a table."""
    return {
        "id": row.id,
        "pipeline": row.pipeline,
        "trigger": words(row),
        "next": local(row.next_fire_time) if state(row) == "active" else state(row),
        "last": local(row.last_fire_time),
        "fired": f"{row.fired}, {row.skipped} skipped" if row.skipped else row.fired,
    }


def schedule_json(row: Schedule) -> dict[str, Any]:
    """A schedule's entry in a list."""
    return {
        "id": row.id,
        "pipeline": row.pipeline,
        "trigger": words(row),
        "trigger_data": msgspec.json.decode(row.trigger),
        "state": state(row),
        "next_fire_time": stamp(row.next_fire_time),
        "last_fire_time": stamp(row.last_fire_time),
        "fired": row.fired,
        "skipped": row.skipped,
        "created_at": stamp(row.created_at),
        "origin": row.origin,
    }


def next_times(row: Schedule, count: int = 3) -> list[float]:
    """The next few fire times of a schedule."""
    first = row.next_fire_time
    if first is None or row.paused:
        return []
    spec = triggers.decode(row.trigger)
    return [first, *triggers.fire_times(spec, first, float("inf"), count - 1)]
