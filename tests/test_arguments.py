"""What Python callers give that cannot be meant: an error that says so, and nothing is done."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from fp_async import triggers
from fp_async.cli import shown
from fp_async.config import ExecutorSettings, Retry, WorkerSettings
from fp_async.errors import TriggerError, UsageError
from fp_async.jobs import Job, Schedule

INF = float("inf")
FLOW = """
    def doubled(count: int) -> int:
        return count * 2
"""
RUN = {"inputs": {"count": 3}}


@pytest.fixture
def project(make_project):
    return make_project(flow=FLOW)


# Numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"retry": Retry(backoff=INF)}, "retry.backoff: expected float < 1"),
        ({"retry": {"max_backoff": 1e300}}, "retry.max_backoff: expected float < 1"),
        ({"retry": {"max_attempts": 2**64}}, "retry.max_attempts: expected int <= 2147483647"),
        ({"executor": ExecutorSettings(max_workers=2**64)}, "max_workers: expected int <="),
    ],
)
async def test_a_number_that_cannot_be_kept_is_refused(project, options, says):
    with pytest.raises(UsageError, match=says):
        await project.add_job("flow", **RUN, **options)
    assert await project.list_jobs() == []


async def test_a_jitter_that_cannot_be_kept_is_refused(project):
    with pytest.raises(UsageError, match="max_jitter: expected float < 1"):
        await project.schedule("flow", "interval", seconds=30, max_jitter=INF, **RUN)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"memory_limit": 2**64}, "memory_limit: expected int <= 2147483647"),
        ({"settings": WorkerSettings(grace=INF)}, "grace: expected float < 1"),
        ({"concurrency": "four"}, "concurrency: expected int"),
    ],
)
async def test_a_worker_of_settings_that_cannot_be_meant_is_refused(project, changes, says):
    with pytest.raises(UsageError, match=f"worker: {says}"):
        await project.start_worker(**changes)


async def test_a_run_for_ever_has_no_timeout(project):
    with pytest.raises(UsageError, match="timeout is a number of seconds, more than 0, not inf"):
        await project.run("flow", **RUN, timeout=INF)


# Times --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "at",
    [
        "9999-12-31T23:59:59-08:00",
        "0001-01-01T00:00:00+12:00",
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, tzinfo=UTC),
    ],
)
async def test_a_time_that_is_no_date_in_every_zone_is_refused(project, at):
    with pytest.raises(UsageError, match="run_at is a time of the years 1970 to 5138, not"):
        await project.add_job("flow", **RUN, run_at=at)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("date", {"run_date": "9999-12-31T23:59:59", "timezone": "America/Los_Angeles"}),
        ("date", {"run_date": "0001-01-01T00:00:00+12:00"}),
        ("calendarinterval", {"years": 1, "start_date": "9999-12-31", "timezone": "-12:00"}),
        ("or", {"triggers": [{"type": "date", "run_date": "9999-12-31"}]}),
    ],
)
async def test_a_schedule_for_a_time_that_is_no_date_is_refused(project, kind, arguments):
    with pytest.raises(TriggerError, match="a time of a schedule is one of the years 68 to 8941"):
        await project.schedule("flow", kind, **arguments, **RUN)


def test_what_shows_times_survives_a_row_without_a_date():
    job = Job(id="a", pipeline="flow", run_at=253402329599.0, expires_at=-1e12)
    assert shown.job_json(job)["run_at"] == "253402329599"
    assert shown.job_json(job)["expires_at"] == "-1e+12"
    assert shown.job_row(job)["took"].startswith("due in ")
    row = Schedule(
        id="a",
        pipeline="flow",
        trigger=triggers.encode(triggers.Date(at=253402329599.0, timezone="+01:00")).encode(),
        next_fire_time=253402329599.0,
    )
    assert shown.schedule_row(row)["next"] == "253402329599"
    assert shown.schedule_json(row)["next_fire_time"] == "253402329599"
    assert shown.words(row) == "once at 253402329599 s since 1970 UTC"
