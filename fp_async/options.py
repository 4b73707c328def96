"""Keyword options of the public functions, typed, so that an editor completes and checks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Literal, TypedDict

from fp_async import jobs
from fp_async.callbacks import Given
from fp_async.config import ExecutorSettings, Queue, Retry
from fp_async.flow import Progress
from fp_async.lifecycle import State

Params = Mapping[str, Mapping[str, Any]]
Executor = str | Mapping[str, Any] | ExecutorSettings


class MoreRunOptions(TypedDict, total=False):
    """Arguments of `run` that have no position. See `Project.run`."""

    adapters: Sequence[Any]
    materializers: Sequence[Any]
    on_success: Given
    on_failure: Given
    on_retry: Given
    cache: bool | str | Path | None


class RunOptions(MoreRunOptions, total=False):
    """Options of a run beside its pipeline and inputs. See `Project.run`."""

    final_vars: Sequence[str] | str | None
    config: Mapping[str, Any] | None
    environment: str
    executor: Executor | None
    params: Params | None
    with_tracker: bool | None
    timeout: float | None
    overrides: Mapping[str, Any] | None
    progress: Progress | None


class JobOptions(TypedDict, total=False):
    """Options of a job beside its pipeline. See `Project.add_job`."""

    inputs: Mapping[str, Any] | None
    final_vars: Sequence[str] | str | None
    config: Mapping[str, Any] | None
    environment: str
    executor: Executor | None
    params: Params | None
    with_tracker: bool | None
    cache: bool | None
    run_at: datetime | str | float | None
    delay: float | timedelta | None
    priority: int | None
    key: str | None
    timeout: float | None
    retry: Retry | Mapping[str, Any] | None
    on_crash: jobs.OnCrash | None
    max_crashes: int | None
    concurrency: int | None
    expires: float | timedelta | None
    queue: str | None
    result_ttl: float | timedelta | None
    on: str | None
    on_lost: jobs.OnLost | None
    lost_after: float | timedelta | None
    require_version: bool | None


class ScheduleOptions(JobOptions, total=False):
    """Options of a schedule beside its trigger. See `Project.schedule`."""

    id: str | None
    paused: bool
    overlap: Literal["allow", "skip", "queue"]
    misfire_grace_time: float | timedelta | None
    coalesce: Literal["latest", "earliest", "all"]
    max_catch_up: int
    max_jitter: float
    timezone: str | tzinfo | None
    offline: bool


class TriggerOptions(TypedDict, total=False):
    """The arguments of all kinds of triggers. See `Project.schedule`."""

    years: int
    months: int
    weeks: float
    days: float
    hours: float
    minutes: float
    seconds: float
    year: int | str
    month: int | str
    day: int | str
    week: int | str
    day_of_week: int | str
    hour: int | str
    minute: int | str
    second: int | str
    start_date: datetime | date | str | float | None
    end_date: datetime | date | str | float | None
    start_time: datetime | date | str | float | None
    end_time: datetime | date | str | float | None
    jitter: float | None
    crontab: str
    run_date: datetime | date | str | float
    triggers: Sequence[Any]


class ScheduleArguments(ScheduleOptions, TriggerOptions, total=False):
    """Both: what `schedule` takes by name."""


class JobQuery(TypedDict, total=False):
    """Conditions on the jobs to list. See `Project.list_jobs`."""

    states: Sequence[State] | State | None
    pipeline: str | None
    queue: str | None
    schedule_id: str | None
    group_id: str | None
    owner: str | None
    agent: str | None
    bound: bool
    since: datetime | timedelta | str | float | None
    limit: int


class WorkerOptions(TypedDict, total=False):
    """Changes to the settings of a worker. See `WorkerSettings`."""

    queues: Sequence[Queue] | None
    concurrency: int | None
    runner: Literal["process", "inline"] | None
    poll_interval: float | None
    grace: float | None
    idle_timeout: float | None
    memory_limit: int | None
    max_jobs_per_child: int | None
    max_result_size: int | None
    schedules: bool | None
