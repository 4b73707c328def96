"""Jobs and schedules as users hold them: values. The rows that stores keep stay inside."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from fp_async import codec, triggers
from fp_async import jobs as rows
from fp_async.errors import (
    JobCancelledError,
    JobError,
    JobExpiredError,
    JobFailedError,
    JobNotFinishedError,
    JobTimeoutError,
    ResultLostError,
    UsageError,
)
from fp_async.jobs import Failure, NodeTiming, Record, Template
from fp_async.lifecycle import State

_templates = msgspec.json.Decoder(Template)


def moment(seconds: float | None) -> datetime | None:
    """Return a time of a row as a datetime in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


class Job:
    """A job as it was when it was read. All times are aware datetimes in UTC.

    `inputs`, `result` and what the latest attempt has left (`nodes`, `log`, `worker`, `version`,
    `warnings`) are there for jobs of `get_job` and `watch`; for those of `list_jobs` they raise
    UsageError, because lists are read without them.
    """

    __slots__ = ("_row", "_whole")

    def __init__(self, row: rows.Job, *, whole: bool = True) -> None:
        self._row = row
        self._whole = whole

    def __repr__(self) -> str:
        took = "" if self.duration is None else f" in {self.duration:.3g} s"
        return f"<Job {self.id} of {self.pipeline}: {self.state}{took}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and self._row == other._row

    def __hash__(self) -> int:
        return hash((self.id, self._row.attempt, self.state))

    # What was asked for ---------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The job's id: the same in every attempt."""
        return self._row.id

    @property
    def pipeline(self) -> str:
        """The name of the pipeline."""
        return self._row.pipeline

    @property
    def environment(self) -> str:
        """The environment of the configuration that it runs in."""
        return self._row.rules.environment

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs that were given. Raises EncodingError where they cannot be read here."""
        return codec.decode(self._blob("inputs")) if self._blob("inputs") else {}

    @property
    def options(self) -> dict[str, Any]:
        """The options that it was added with, as plain data; without those left at the default."""
        options: dict[str, Any] = msgspec.to_builtins(self._row.rules)
        return options

    @property
    def queue(self) -> str:
        """The queue whose workers may take it; without meaning for jobs on agents."""
        return self._row.queue

    @property
    def priority(self) -> int:
        """The priority: higher is sooner."""
        return self._row.priority

    @property
    def key(self) -> str | None:
        """The key that at most one active job bears."""
        return self._row.key

    @property
    def on(self) -> str | None:
        """The agents that may run it, as given; None for a job of the workers."""
        return self._row.target

    @property
    def agent(self) -> str | None:
        """The agent that has it or ran it."""
        return self._row.agent

    @property
    def group_id(self) -> str | None:
        """The id of the group, for a job that was added with `on="all:..."`."""
        return self._row.group_id

    @property
    def schedule_id(self) -> str | None:
        """The schedule that added it."""
        return self._row.schedule_id

    @property
    def trigger(self) -> str | None:
        """The trigger of `conf/mqtt.yml` that added it."""
        return self._row.trigger

    @property
    def retried_from(self) -> str | None:
        """The id of the job that it repeats."""
        return self._row.retried_from

    # How far it is --------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """queued, offered, accepted, running, or an outcome: succeeded, failed, cancelled,
        expired, rejected.
        """
        return self._row.state

    @property
    def finished(self) -> bool:
        """Return whether the job has an outcome."""
        return self._row.finished

    @property
    def reason(self) -> str | None:
        """Why it waits, was cancelled, rejected or given up, in words."""
        return self._row.reason

    @property
    def misconfigured(self) -> bool:
        """Return whether the job waits for a worker's configuration; `reason` says for what."""
        return self._row.misconfigured

    @property
    def attempt(self) -> int:
        """The number of the latest attempt; 0 before the first."""
        return self._row.attempt

    @property
    def errors(self) -> int:
        """The number of attempts in which the pipeline raised or timed out."""
        return self._row.errors

    @property
    def crashes(self) -> int:
        """The number of attempts whose process or machine died."""
        return self._row.crashes

    @property
    def created_at(self) -> datetime:
        """The time when it was added."""
        return datetime.fromtimestamp(self._row.created_at, UTC)

    @property
    def run_at(self) -> datetime:
        """The time before which it does not start."""
        return datetime.fromtimestamp(self._row.run_at, UTC)

    @property
    def nominal_at(self) -> datetime | None:
        """The time of its schedule that it stands for."""
        return moment(self._row.nominal_at)

    @property
    def expires_at(self) -> datetime | None:
        """The time by which it must have started."""
        return moment(self._row.expires_at)

    @property
    def cancel_at(self) -> datetime | None:
        """The time when somebody asked for its end."""
        return moment(self._row.cancel_at)

    @property
    def started_at(self) -> datetime | None:
        """The time when the latest attempt began."""
        return moment(self._row.started_at)

    @property
    def ended_at(self) -> datetime | None:
        """The time of its outcome."""
        return moment(self._row.ended_at)

    @property
    def duration(self) -> float | None:
        """Seconds that the latest attempt took; None until it has an outcome."""
        start, end = self._row.started_at, self._row.ended_at
        return None if start is None or end is None else max(end - start, 0.0)

    # What has come of it --------------------------------------------------------------------

    @property
    def result(self) -> Any:
        """The final variables by name; None unless it succeeded. See `get_result`."""
        found = self._blob("result")
        return None if self.state != "succeeded" or found is None else codec.decode_value(found)

    @property
    def error(self) -> JobError | None:
        """The exception that `get_result` raises for its outcome; None for a success, and before
        there is an outcome.
        """
        return error_of(self._row) if self.finished and self.state != "succeeded" else None

    @property
    def failure(self) -> Failure | None:
        """The class, message and traceback of the latest error, also of one that is tried again."""
        return self._row.failure

    @property
    def nodes(self) -> list[NodeTiming]:
        """The nodes of the latest attempt that have ended, with status and seconds."""
        return self._record.nodes

    @property
    def log(self) -> str:
        """The end of what the latest attempt has logged and printed."""
        return self._record.log

    @property
    def worker(self) -> str | None:
        """The worker or agent that the latest attempt ran on."""
        return self._record.worker or None

    @property
    def version(self) -> str | None:
        """The version of the pipeline that ran on an agent."""
        return self._record.version or None

    @property
    def warnings(self) -> list[str]:
        """Return the warnings of the agent that ran the job."""
        return self._record.warnings

    @property
    def _record(self) -> Record:
        self._blob("record")
        return self._row.trace

    def _blob(self, name: str) -> Any:
        if not self._whole:
            raise UsageError(
                f"job {self.id} was read by list_jobs(), without inputs, result and log: read it "
                "with get_job(job.id)"
            )
        return getattr(self._row, name)


class JobEvent(msgspec.Struct, frozen=True):
    """A change of a job since the event before: nodes that have ended, and more of its log."""

    id: str
    state: State
    attempt: int
    nodes: list[NodeTiming]
    log: str
    job: Job


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that made no job, and why; of its payload only the beginning is kept."""

    id: str
    topic: str
    reason: str
    payload: bytes
    at: datetime

    @classmethod
    def of(cls, row: rows.Letter) -> DeadLetter:
        """Return the value of a row."""
        at = datetime.fromtimestamp(row.at, UTC)
        return cls(row.id, row.topic, row.reason, row.payload, at)


class Schedule:
    """A schedule as it was when it was read. All times are aware datetimes in UTC."""

    __slots__ = ("_row",)

    def __init__(self, row: rows.Schedule) -> None:
        self._row = row

    def __repr__(self) -> str:
        return f"<Schedule {self.id} of {self.pipeline}: {self.trigger}, {self.state}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self._row == other._row

    def __hash__(self) -> int:
        return hash((self.id, self._row.revision))

    @property
    def id(self) -> str:
        """The schedule's id."""
        return self._row.id

    @property
    def pipeline(self) -> str:
        """The name of the pipeline."""
        return self._row.pipeline

    @property
    def trigger(self) -> str:
        """The trigger in words: every 15 min, cron 0 3 * * 1-5."""
        return triggers.describe(triggers.decode(self._row.trigger))

    @property
    def state(self) -> str:
        """active, paused, over, or "on agents", which fire it themselves."""
        return schedule_state(self._row)

    @property
    def paused(self) -> bool:
        """Return whether the schedule is paused, until `resume_schedule`."""
        return self._row.paused

    @property
    def environment(self) -> str:
        """The environment of its jobs."""
        return self._template.spec.environment

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs of its jobs. Raises EncodingError where they cannot be read here."""
        return codec.decode(self._template.inputs) if self._template.inputs else {}

    @property
    def options(self) -> dict[str, Any]:
        """The options of its jobs, as plain data; without those left at the default."""
        options: dict[str, Any] = msgspec.to_builtins(self._template.spec)
        return options

    @property
    def queue(self) -> str:
        """The queue of its jobs."""
        return self._template.queue

    @property
    def on(self) -> str | None:
        """The agents that run its jobs; None for workers."""
        return self._template.target

    @property
    def next_fire_time(self) -> datetime | None:
        """The next time; None where there is none, or where agents know it."""
        return moment(self._row.next_fire_time)

    @property
    def last_fire_time(self) -> datetime | None:
        """The latest time that it has fired for."""
        return moment(self._row.last_fire_time)

    @property
    def created_at(self) -> datetime:
        """The time when it was added."""
        return datetime.fromtimestamp(self._row.created_at, UTC)

    @property
    def fired(self) -> int:
        """The number of jobs that it has added."""
        return self._row.fired

    @property
    def skipped(self) -> int:
        """The number of times that made no job."""
        return self._row.skipped

    @property
    def revision(self) -> int:
        """The number of changes by people, from 1 on."""
        return self._row.revision

    @property
    def origin(self) -> str:
        """`conf` for one of `conf/pipelines.yml`, else `api`."""
        return self._row.origin

    @property
    def _template(self) -> Template:
        return template_of(self._row)


def template_of(row: rows.Schedule) -> Template:
    """Return the decoded template."""
    return _templates.decode(row.template)


def schedule_state(row: rows.Schedule) -> str:
    """Return active, paused, over, or "on agents" for one that these fire themselves."""
    if row.paused:
        return "paused"
    if template_of(row).offline:
        return "on agents"
    return "over" if row.next_fire_time is None else "active"


# Outcomes -----------------------------------------------------------------------------------


def result_of(job: rows.Job) -> Any:
    """Return the decoded result of a job, or raise the error that stands for its outcome."""
    if job.state == "succeeded":
        if job.result is None:  # what a pipeline returns is never that, not even None
            raise ResultLostError(job.id, job.state, job.reason or "its result is not there")
        return codec.decode_value(job.result)
    if not job.finished:
        raise JobNotFinishedError(f"job {job.id} of pipeline '{job.pipeline}' is {job.state}")
    raise error_of(job)


_ERRORS: dict[str, type[JobError]] = {
    "cancelled": JobCancelledError,
    "expired": JobExpiredError,
    "failed": JobFailedError,
    "rejected": JobFailedError,
}
_TIMEOUTS = ("RunTimeoutError", "NodeTimeoutError")


def error_of(job: rows.Job) -> JobError:
    """Return the exception for a job that ended otherwise than well."""
    failure = job.failure
    kind = failure.kind if failure else ""
    reason, message = job.reason or "", failure.message if failure else ""
    texts = [reason, message if message not in reason else ""]
    default = "somebody asked for it" if job.cancel_at is not None else "no reason was given"
    text = "; ".join(text for text in texts if text) or default
    raised = JobTimeoutError if job.state == "failed" and kind in _TIMEOUTS else _ERRORS[job.state]
    return raised(job.id, job.state, text, kind=kind)
