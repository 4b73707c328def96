"""What changes in a job's row, and when: plain functions over values, used by every store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec
from msgspec.structs import replace

from fp_async.errors import TransitionError
from fp_async.jobs import (
    CANCEL_DEADLINE,
    IDENTITY_TTL,
    MISCONFIGURED,
    MISSING_TTL,
    Changes,
    Failure,
    Fire,
    Job,
    Offer,
    Report,
    Schedule,
)
from fp_async.lifecycle import STALE, State, step

_UNBOUND: Changes = {"owner": None, "lease_until": None, "slot": None, "lane_held": None}


class Outcome(Protocol):
    """How an attempt ended; see `attempt.Outcome`."""

    @property
    def status(self) -> str: ...
    @property
    def result(self) -> bytes | None: ...
    @property
    def failure(self) -> Failure | None: ...
    @property
    def reason(self) -> str | None: ...


def added(job: Job, now: float) -> Job:
    """A new job as it is stored: `run_at` 0 means now."""
    return replace(job, created_at=now, run_at=job.run_at or now, active_key=job.key)


def ended(job: Job, state: State, now: float, reason: str | None = None) -> Changes:
    """What a row changes by when the job ends."""
    return {
        "state": state,
        "reason": reason,
        "ended_at": now,
        "prune_at": now + job.result_ttl,
        "active_key": None,
        **_UNBOUND,
    }


def queued_again(run_at: float, reason: str | None) -> Changes:
    """What a row changes by when the job goes back to the queue."""
    return {"state": "queued", "reason": reason, "run_at": run_at, "agent": None, **_UNBOUND}


def offered(job: Job, offer: Offer) -> Changes | None:
    """What an offer changes in the row; None where somebody else was quicker."""
    if job.state != "queued" or job.attempt != offer.attempt:
        return None
    after = step(job.state, "offer")
    return {"state": after, "agent": offer.agent, "attempt": job.attempt + 1, "reason": None}


def adopted(job: Job, now: float) -> Job:
    """A job that an agent began and ended by itself, as it is stored when that is heard of.

    Raises TransitionError for one that has not ended.
    """
    if not job.finished:
        raise TransitionError(f"a job that is {job.state} cannot be adopted: it has not ended")
    prune_at = now + job.result_ttl
    kept = replace(job, prune_at=prune_at, identity=True, active_key=None, unreported=False)
    return replace(kept, **_UNBOUND)


def fired_elsewhere(jobs: Iterable[Job]) -> dict[str, tuple[int, float]]:
    """Count each schedule's fires by agents, with their last time, in jobs that are new here."""
    found: dict[str, tuple[int, float]] = {}
    for job in jobs:
        if job.schedule_id is not None:
            count, last = found.get(job.schedule_id, (0, 0.0))
            found[job.schedule_id] = count + 1, max(last, job.created_at)
    return dict(sorted(found.items()))


def reported(job: Job, report: Report, now: float) -> Changes | None:
    """What a report changes in the row; None where it is stale: the attempt was taken away."""
    held = job.state != "queued"  # given back, even the latest attempt is over
    own = report.agent in (None, job.agent)  # nobody speaks for another agent, or for a worker
    if report.owner is not None or report.event == "release":
        own = own and report.owner == job.owner
    current = held and own and report.attempt == job.attempt
    after = step(job.state, report.event, current=current)
    if after is STALE or (report.event == "wait" and job.agent is None):
        return None  # only an agent has a job that waits
    if report.event == "crash":
        return {**crashed(job, now, report.reason), "record": report.record, **_error(report)}
    if report.event == "release":
        return _released(job, report, now)
    if report.event in ("accept", "start", "wait"):
        return {"state": after, **_begun(job, report, now)}
    if report.event in ("retry", "give_back", "lose"):
        changes = _again_unless_cancelled(job, now, now + report.retry_in, report.reason)
        if report.event == "retry":
            changes["errors"] = job.errors + 1
        return {**changes, "record": report.record, **_error(report)}
    reason = job.reason if report.event == "confirm_cancel" else None  # why it was asked for
    changes = {**ended(job, after, now, report.reason or reason), **_told_by_agent(job, report)}
    if report.event == "fail" and report.errors is None:
        changes["errors"] = job.errors + 1
    return {**changes, "result": report.result, "record": report.record, **_error(report)}


def _released(job: Job, report: Report, now: float) -> Changes:
    """As if it had not been claimed: it keeps its place in the queue, and its numbers.

    Its attempt number comes again; the owner says which release is meant.
    """
    if job.cancel_at is not None:
        return ended(job, "cancelled", now, job.reason)
    began = {} if job.attempt > 1 else {"started_at": None, "record": None}
    changes = queued_again(job.run_at, report.reason)
    return {**changes, **began, "attempt": job.attempt - 1, "error": report.error}


def _begun(job: Job, report: Report, now: float) -> Changes:
    """Return the other changes when an agent has a job, begins it, or waits and why. Of a job that
    somebody wants cancelled the reason of that is kept.
    """
    if report.event == "accept":
        return {}
    begins = report.event == "start"
    told = job.cancel_at is None and report.reason != job.reason
    why: Changes = {"reason": report.reason} if told else {}
    return {**why, "started_at": (job.started_at or report.started_at or now) if begins else None}


def _told_by_agent(job: Job, report: Report) -> Changes:
    told: Changes = {"started_at": report.started_at} if job.started_at is None else {}
    if report.tries is not None:  # under one number: it has ended, and needs no fence any more
        told["attempt"] = job.attempt + max(report.tries - 1, 0)
    if report.ended_at is not None:  # late, perhaps: how long it is kept counts from its arrival
        told["ended_at"] = max(report.ended_at, job.started_at or report.started_at or 0.0)
    for name in ("errors", "crashes"):
        if (count := getattr(report, name)) is not None:
            told[name] = count
    return told


def _error(report: Report) -> Changes:
    return {} if report.error is None and report.event == "give_back" else {"error": report.error}


def _again_unless_cancelled(job: Job, now: float, run_at: float, reason: str | None) -> Changes:
    """A job that somebody wants cancelled is not begun again."""
    if job.cancel_at is not None:
        return ended(job, "cancelled", now, job.reason)
    return queued_again(run_at, reason)


def verdict(job: Job, outcome: Outcome, record: bytes, chance: float) -> Report:
    """What a worker reports of an attempt; `chance` in [0, 1) spreads the pause of a retry."""
    report = Report(id=job.id, attempt=job.attempt, event="succeed", record=record)
    if outcome.status == "succeeded":
        return replace(report, result=outcome.result)
    if outcome.status == "crashed":
        failure = Failure("Crashed", outcome.reason or "its process died")
        error = msgspec.json.encode(failure)
        return replace(report, event="crash", reason=outcome.reason, error=error)
    failure = outcome.failure or Failure("Unknown", "no reason was given")
    report = replace(report, event="fail", error=msgspec.json.encode(failure))
    retry, failures = job.rules.retry, job.errors + 1
    if retry is None or not retry.allows(failure.kinds, failures):
        return report
    return replace(report, event="retry", retry_in=retry.delay(failures, chance))


def put_back(job: Job, owner: str) -> Report:
    """What a worker reports of a job that it has no use for: as if it had not been claimed."""
    return Report(id=job.id, attempt=job.attempt, event="release", owner=owner, error=job.error)


def released(job: Job, text: str, missing: bool, owner: str, now: float) -> Report:
    """What a worker reports of a job for which its configuration is wrong: it stays queued.

    What does not exist (`missing`) for 15 minutes is not waited for any longer.
    """
    before = job.failure
    since = (before.since if before else 0.0) or now
    failure = Failure("MisconfiguredError", text, since=since)
    report = Report(
        id=job.id,
        attempt=job.attempt,
        event="release",
        owner=owner,
        reason=MISCONFIGURED + text,
        error=msgspec.json.encode(failure),
    )
    if missing and now - since >= MISSING_TTL:
        return replace(report, event="refuse", reason=f"{text}; nor did it 15 minutes before")
    return report


def stopped(job: Job, why: str, record: bytes) -> Report:
    """What a worker reports of an attempt that was ended from outside: somebody wants it
    cancelled ("cancel"), the worker ends ("drain"), or its lease was not renewed ("lost").
    """
    report = Report(id=job.id, attempt=job.attempt, event="give_back", record=record)
    if why == "cancel":
        return replace(report, event="confirm_cancel", reason=job.reason)
    reason = "its worker was ended" if why == "drain" else "its lease could not be renewed"
    if job.rules.on_crash == "retry":
        return replace(report, reason=reason)
    error = msgspec.json.encode(Failure("Interrupted", reason))  # it must not begin again
    return replace(report, event="crash", reason=reason, error=error)


def crashed(job: Job, now: float, reason: str | None) -> Changes:
    """What a row changes by when the process that ran the job has died."""
    crashes = job.crashes + 1
    rules = job.rules
    if job.cancel_at is None and rules.on_crash == "fail":
        return {**ended(job, "failed", now, reason), "crashes": crashes}
    if job.cancel_at is None and crashes >= rules.max_crashes:
        text = f"crashed {crashes} times, the last time: {reason}"
        return {**ended(job, "failed", now, text), "crashes": crashes}
    return {**_again_unless_cancelled(job, now, now, reason), "crashes": crashes}


def rescued(job: Job, now: float, *, dead: bool) -> Changes | None:
    """What a row needs that nobody looks after; None where it is well.

    `dead` says that the worker which holds it has died, or has let its lease expire.
    """
    if job.state == "queued" and job.expires_at is not None and job.expires_at <= now:
        started = job.started_at is not None
        return None if started else ended(job, "expired", now, "not started in time")
    if job.state == "running" and dead:
        return {**crashed(job, now, "its worker died"), "error": _DIED}
    late = job.cancel_at is not None and job.cancel_at + CANCEL_DEADLINE <= now
    if late and job.state in ("running", "offered", "accepted"):
        return ended(job, "cancelled", now, "unconfirmed")
    return None


_DIED = msgspec.json.encode(Failure("WorkerDied", "the worker that ran it died"))


def cancelled(job: Job, now: float, reason: str | None) -> Changes | None:
    """What asking for a cancel changes; None where the job has ended, or was asked before."""
    after = step(job.state, "cancel")
    if after is STALE or (job.cancel_at is not None and after == job.state):
        return None
    if after == "cancelled":
        return {**ended(job, "cancelled", now, reason), "cancel_at": now}
    return {"cancel_at": now, "reason": reason}


def claimed(job: Job, owner: str, now: float, lease_until: float) -> Changes:
    """What a claim changes; the caller adds `slot` and `lane_held` where the job needs them."""
    step(job.state, "claim")
    return {
        "state": "running",
        "reason": None,
        "owner": owner,
        "lease_until": lease_until,
        "attempt": job.attempt + 1,
        "started_at": job.started_at or now,
    }


def may_fire(schedule: Schedule, fire: Fire) -> bool:
    """Return whether a schedule is still as the firing expects it."""
    if fire.revision != schedule.revision:
        return False
    if fire.expected is not None:
        return not schedule.paused and schedule.next_fire_time == fire.expected
    last = schedule.last_fire_time
    return last is None or (fire.last_fire_time is not None and last < fire.last_fire_time)


def fired(schedule: Schedule, fire: Fire) -> Schedule:
    """Return the schedule after a firing, but for what it counts."""
    after = schedule.next_fire_time if fire.expected is None else fire.next_fire_time
    return replace(schedule, next_fire_time=after, last_fire_time=fire.last_fire_time)


class Places:
    """The places that running jobs hold: `limit` of their pipeline, one of their schedule.

    `taken` looks up what is held now; it is called when the first job needs it. `pipelines` and
    `lanes` have been found full.
    """

    def __init__(self, taken: Callable[[], set[str]]) -> None:
        self.pipelines: set[str] = set()
        self.lanes: set[str] = set()
        self._look = taken
        self._taken: set[str] | None = None

    def take(self, job: Job) -> Changes | None:
        """What the job holds while it runs; None where there is no place for it."""
        if job.concurrency is None and job.lane is None:
            return {}
        taken = self._taken = self._look() if self._taken is None else self._taken
        if job.lane is not None and job.lane in taken:
            self.lanes.add(job.lane)
            return None
        slot = None if job.concurrency is None else self._slot(job, taken)
        if job.concurrency is not None and slot is None:
            self.pipelines.add(job.pipeline)
            return None
        taken.update(name for name in (slot, job.lane) if name is not None)
        return {"slot": slot, "lane_held": job.lane}

    @staticmethod
    def _slot(job: Job, taken: set[str]) -> str | None:
        names = (f"{job.pipeline}#{i}" for i in range(job.concurrency or 0))
        return next((name for name in names if name not in taken), None)


def pruned(now: float) -> Changes:
    """What is left of a pruned job that has an identity: its id, so that it never comes again."""
    return {
        "pruned": True,
        "prune_at": now + IDENTITY_TTL,
        "spec": b"{}",
        "inputs": b"",
        "result": None,
        "error": None,
        "record": None,
    }
