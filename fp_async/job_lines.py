"""The log lines of workers, gateways and agents for jobs that start and end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from fp_async.errors import headline
from fp_async.jobs import Failure, Fire, Job, Report
from fp_async.lifecycle import Event, State


class _Kind(NamedTuple):
    """The end of an attempt: its name in JSON, its words, and the level of the line."""

    outcome: str
    words: str
    level: int = logging.WARNING


_ENDS: dict[Event, _Kind] = {
    "succeed": _Kind("succeeded", "succeeded in {took}", logging.INFO),
    "fail": _Kind("failed", "failed in {took}"),
    "retry": _Kind("retried", "failed in {took} and is tried again in {pause}"),
    "crash": _Kind("crashed", "crashed after {took}"),
    "give_back": _Kind("given back", "was given back after {took}"),
    "confirm_cancel": _Kind("cancelled", "was cancelled after {took}", logging.INFO),
    "refuse": _Kind("rejected", "was rejected"),
    "lose": _Kind("lost", "was lost"),
}


def log_start(log: logging.Logger, job: Job, agent: str = "") -> None:
    """Log that an attempt begins, on an agent or here."""
    if log.isEnabledFor(logging.INFO):
        text = "%sjob %s of '%s' starts, attempt %d"
        _write(log, logging.INFO, text, _about(job, agent), job.attempt)


def log_end(log: logging.Logger, job: Job, report: Report, seconds: float, agent: str = "") -> None:
    """Log how an attempt has ended, which took `seconds`, on an agent or here."""
    kind = _ENDS.get(report.event)
    if kind is None or not log.isEnabledFor(kind.level):
        return
    words = kind.words.format(took=spelled(seconds), pause=spelled(report.retry_in))
    about = {**_about(job, agent), "outcome": kind.outcome, "seconds": round(seconds, 6)}
    why = _why(report)
    rest = (words, job.attempt, f": {why}" if why else "")
    _write(log, kind.level, "%sjob %s of '%s' %s, attempt %d%s", about, *rest)


_LAST: dict[State, Event] = {
    "succeeded": "succeed",
    "failed": "fail",
    "cancelled": "confirm_cancel",
    "rejected": "refuse",
}


def log_adopted(log: logging.Logger, job: Job, agent: str) -> None:
    """Log how a job has ended that an agent began by itself."""
    if (event := _LAST.get(job.state)) is not None:
        took = (job.ended_at or 0.0) - (job.started_at or job.ended_at or 0.0)
        told = Report(
            id=job.id, attempt=job.attempt, event=event, reason=job.reason, error=job.error
        )
        log_end(log, job, told, max(took, 0.0), agent)


def log_fire(log: logging.Logger, fire: Fire, added: list[str]) -> None:
    """Log that a schedule has fired, and which jobs that has added."""
    jobs = f"jobs {', '.join(added)}" if 1 < len(added) <= 3 else f"{len(added)} jobs"
    told = f"job {added[0]}" if len(added) == 1 else jobs
    if not added:
        told = "no job: the one before still runs" if fire.jobs else "no job: its time was missed"
    about = {"job": added[0]} if len(added) == 1 else {}
    log.info("schedule '%s' fires: %s", fire.id, told, extra=about)


def _write(
    log: logging.Logger, level: int, text: str, about: Mapping[str, object], *rest: object
) -> None:
    """Log as `Logger.log` does, but for the search for the line of code that logs: it takes longer
    than everything else, and a worker logs two lines a job.
    """
    said = (_place(about.get("agent", "")), about["job"], about["pipeline"], *rest)
    log.handle(log.makeRecord(log.name, level, __file__, 0, text, said, None, extra=about))


def _about(job: Job, agent: str) -> dict[str, object]:
    about: dict[str, object] = {"job": job.id, "pipeline": job.pipeline, "attempt": job.attempt}
    return {**about, "agent": agent} if agent else about


def _place(agent: object) -> str:
    return f"agent '{agent}': " if agent else ""


def _why(report: Report) -> str:
    """Return the first line of the error, or the reason that was given."""
    if report.event != "succeed" and report.error is not None:
        return headline(msgspec.json.decode(report.error, type=Failure).message)
    return report.reason or ""


def spelled(seconds: float) -> str:
    """Return a time in words: 0.250 s, 90 s."""
    return f"{seconds:.3f} s" if seconds < 10 else f"{seconds:.0f} s"
