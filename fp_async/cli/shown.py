"""Jobs and schedules as a person reads them in a table, and as JSON."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from fp_async import crontab, job_values, triggers
from fp_async.cli.columns import Column
from fp_async.errors import FlowerPowerError, headline
from fp_async.jobs import Job, Schedule

_SPANS = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s"))

_OF_NODE = re.compile(r"^node '([^']+)' of pipeline '[^']+' raised ")
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_BRIEF = 60  # characters of a value in a line
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


def roughly(moment: float | None) -> str:
    """Return how long ago that was, in one unit: 5 s ago, 3 min ago; in 2 h. Empty for no time."""
    if moment is None:
        return ""
    seconds = time.time() - moment
    if abs(seconds) < 1:
        return "now"
    size, unit = next((size, unit) for size, unit in _UNITS if abs(seconds) >= size)
    text = f"{int(abs(seconds) // size)} {unit}"
    return f"{text} ago" if seconds > 0 else f"in {text}"


def took(job: Job) -> str:
    """Return a job's time since its first start as text; empty where it has not started."""
    if job.started_at is None or job.state == "queued":
        return ""
    return span((job.ended_at or time.time()) - job.started_at)


# Jobs ---------------------------------------------------------------------------------------


def waits_for(job: Job) -> str:
    """What a queued job waits for, if that is its configuration, as what follows its state."""
    return f": {job.reason}" if job.misconfigured else ""


JOB_COLUMNS = (
    Column("id"),
    Column("pipeline", cut=16),
    Column("state"),
    Column("queue", rank=4),
    Column("added"),
    Column("took"),
    Column("attempt", rank=5),
    Column("env", rank=3),
    Column("trigger", rank=2, cut=16),
    Column("error", rank=1, cut=16),
)


def job_row(job: Job, length: int | None = None) -> dict[str, Any]:
    """A job's line in a table, with so many characters of its id; None for all."""
    waits = job.state == "queued" and job.run_at > time.time() + 1
    return {
        "id": job.id[:length],
        "pipeline": job.pipeline,
        "state": job.state,
        "queue": job.queue if job.target is None else job.agent or job.target,
        "added": roughly(job.created_at),
        "took": f"due {roughly(job.run_at)}" if waits else took(job),
        "attempt": job.attempt or "",
        "env": job.rules.environment,
        "trigger": _trigger(job, length),
        "error": _problem(job),
    }


def _trigger(job: Job, length: int | None) -> str:
    """Return the schedule, trigger or job that has added a job; empty for a caller."""
    again = "" if job.retried_from is None else f"retry of {job.retried_from[:length]}"
    return job.schedule_id or job.trigger or again


def _problem(job: Job) -> str:
    """Why a job waits, was ended, or failed or is tried again, in a line."""
    if job.misconfigured or job.failure is None:
        return job.reason or ""
    line = headline(job.failure.message)
    return _OF_NODE.sub(r"\1: ", line, count=1)


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
        "inputs": _plain(_values(job.inputs)),
        "worker": trace.worker or None,
        "version": trace.version or None,
        "warnings": trace.warnings,
        "nodes": msgspec.to_builtins(trace.nodes),
        "log": trace.log,
        "error": None if failure is None else msgspec.to_builtins(failure),
    }


def _values(inputs: bytes) -> dict[str, Any] | None:
    """Stored inputs; None where they cannot be read here."""
    from fp_async import codec

    try:
        return codec.decode(inputs) if inputs else {}
    except FlowerPowerError:
        return None


def _plain(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Values as JSON, or as Python writes them."""
    from fp_async.cli.output import plain

    return None if values is None else {name: plain(value) for name, value in values.items()}


def inputs_in(stored: bytes) -> str:
    """Stored inputs in a line."""
    values = _values(stored)
    return "cannot be read by this release" if values is None else pairs(values)


# Schedules ----------------------------------------------------------------------------------


def words(row: Schedule) -> str:
    """The trigger in words."""
    return triggers.describe(triggers.decode(row.trigger))


def state(row: Schedule) -> str:
    """Whether a schedule fires: active, paused, over, or on agents, which fire it themselves."""
    if row.paused:
        return "paused"
    if job_values.template_of(row).offline:
        return "on agents"
    return "over" if row.next_fire_time is None else "active"


def zone(row: Schedule) -> str:
    """The name of the zone in which a schedule counts; of several parts that of the first."""
    spec: Any = triggers.decode(row.trigger)
    while not hasattr(spec, "timezone"):
        spec = spec.triggers[0]
    return str(spec.timezone)


def in_zone(moment: float | None, row: Schedule) -> str:
    """A time as the clocks of a schedule's zone show it: 2027-01-31T08:00:00+01:00."""
    if moment is None:
        return ""
    try:
        at = datetime.fromtimestamp(moment, crontab.zone(zone(row)))
    except _NO_DATE:
        return f"{moment:.12g}"
    return at.isoformat(timespec="seconds")


SCHEDULE_COLUMNS = (
    Column("id", cut=24),
    Column("pipeline", rank=2, cut=16),
    Column("trigger", cut=20),
    Column("next"),
    Column("last", rank=7),
    Column("fired", rank=8),
    Column("zone", rank=4),
    Column("env", rank=3),
    Column("target", rank=5, cut=20),
    Column("inputs", rank=6, cut=20),
)


def schedule_row(row: Schedule) -> dict[str, Any]:
    """A schedule's line in a table."""
    template = job_values.template_of(row)
    return {
        "id": row.id,
        "pipeline": row.pipeline,
        "trigger": words(row),
        "next": in_zone(row.next_fire_time, row) if state(row) == "active" else state(row),
        "last": in_zone(row.last_fire_time, row),
        "fired": f"{row.fired}, {row.skipped} skipped" if row.skipped else row.fired,
        "zone": zone(row),
        "env": template.spec.environment,
        "target": template.target or "",
        "inputs": pairs(_values(template.inputs) or {}),
    }


def pairs(values: Mapping[str, Any]) -> str:
    """Values by name as a person would give them: count=3, name=text."""
    return ", ".join(f"{name}={_brief(value)}" for name, value in values.items())


def _brief(value: Any) -> str:
    """A value in a line, as JSON where it has parts; long ones are cut."""
    from fp_async.cli.output import plain

    made = plain(value)
    text = made if isinstance(made, str) else msgspec.json.encode(made).decode()
    line = " ".join(text.split())
    return line if len(line) <= _BRIEF else f"{line[:_BRIEF]}…"


def schedule_json(row: Schedule) -> dict[str, Any]:
    """A schedule's entry in a list."""
    template = job_values.template_of(row)
    return {
        "id": row.id,
        "pipeline": row.pipeline,
        "trigger": words(row),
        "timezone": zone(row),
        "trigger_data": msgspec.json.decode(row.trigger),
        "state": state(row),
        "next_fire_time": stamp(row.next_fire_time),
        "last_fire_time": stamp(row.last_fire_time),
        "fired": row.fired,
        "skipped": row.skipped,
        "created_at": stamp(row.created_at),
        "origin": row.origin,
        "environment": template.spec.environment,
        "inputs": _plain(_values(template.inputs)),
        "target": template.target,
        "queue": template.queue,
        "options": msgspec.to_builtins(template.spec),
        "policy": msgspec.json.decode(row.policy),
        "overlap": template.overlap,
        "offline": template.offline,
    }


def next_times(row: Schedule, count: int = 3) -> list[float]:
    """The next few fire times of a schedule."""
    first = row.next_fire_time
    if first is None or row.paused:
        return []
    spec = triggers.decode(row.trigger)
    return [first, *triggers.fire_times(spec, first, float("inf"), count - 1)]
