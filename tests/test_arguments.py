"""What Python callers give that cannot be meant: an error that says so, and nothing is done."""

from __future__ import annotations

import pytest

from fp_async.config import ExecutorSettings, Retry, WorkerSettings
from fp_async.errors import UsageError

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
