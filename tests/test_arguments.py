"""What Python callers give that cannot be meant: an error that says so, and nothing is done."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

import fp_async
from fp_async import codec, triggers
from fp_async.cli import shown
from fp_async.config import ExecutorSettings, Retry, WorkerSettings
from fp_async.errors import TriggerError, UnknownNameError, UsageError
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


def test_the_inputs_of_a_job_are_among_its_details():
    inputs = {"city": "a", "at": datetime(2026, 1, 31, tzinfo=UTC), "odd": 1j, "rows": [{"n": 1}]}
    job = Job(id="a", pipeline="flow", inputs=codec.encode(inputs, what="input"))
    shown_inputs = {
        "city": "a",
        "at": "2026-01-31T00:00:00Z",
        "odd": "1j",
        "rows": [{"n": 1}],
    }
    assert shown.job_details(job)["inputs"] == shown_inputs
    assert shown.job_details(Job(id="a", pipeline="flow"))["inputs"] == {}
    unreadable = Job(id="a", pipeline="flow", inputs=b"of another version")
    assert shown.job_details(unreadable)["inputs"] is None


# Types --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": 5}, "the name of a pipeline is a text, not 5"),
        ({"name": ["flow"]}, r"the name of a pipeline is a text, not \['flow'\]"),
        ({"environment": 5}, "environment is a text, not 5"),
        ({"inputs": [1]}, r"inputs is a mapping of names, not \[1\]"),
        ({"inputs": {1: 2}}, "inputs is a mapping of names, and 1 is none"),
        ({"final_vars": 5}, "final_vars is a list, not 5"),
        ({"final_vars": [5]}, "final_vars is a name, or a list of names, and 5 is none"),
        ({"overrides": 5}, "overrides is a mapping of names, not 5"),
        ({"config": [1]}, r"config is a mapping of names, not \[1\]"),
        ({"params": [1]}, r"params is a mapping of names, not \[1\]"),
        ({"params": {"doubled": 0.5}}, "params of 'doubled' is a mapping of names, not 0.5"),
        ({"adapters": 5}, "adapters is a list, not 5"),
        ({"materializers": 5}, "materializers is a list, not 5"),
        ({"progress": 5}, "progress is a function of one argument, not 5"),
        ({"on_success": 5}, "on_success is a function of one argument, or several, not 5"),
        ({"on_failure": "foo"}, "on_failure is a function of one argument, .* not 'foo'"),
        ({"on_retry": ["foo"]}, "on_retry is a function of one argument, .* not 'foo'"),
    ],
)
async def test_a_run_says_what_an_argument_is(project, arguments, says):
    with pytest.raises(UsageError, match=f"^{says}$"):
        await project.run(**{"name": "flow", **RUN, **arguments})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": 5}, "the name of a pipeline is a text, not 5"),
        ({"inputs": [1]}, "inputs is a mapping of names"),
        ({"inputs": {1: 2}}, "inputs is a mapping of names, and 1 is none"),
        ({"final_vars": [5]}, "final_vars"),
        ({"params": [1]}, r"params is a mapping of names, not \[1\]"),
        ({"params": {"doubled": 0.5}}, "params of 'doubled' is a mapping of names, not 0.5"),
        ({"config": 5}, "config is a mapping of names, not 5"),
    ],
)
async def test_a_job_says_what_an_argument_is(project, arguments, says):
    with pytest.raises(UsageError, match=says):
        await project.add_job(**{"name": "flow", **RUN, **arguments})


def test_a_project_says_what_an_argument_is(project):
    with pytest.raises(UsageError, match="worker is True, False or WorkerSettings, not 5"):
        fp_async.Project(project.root, worker=5)
    with pytest.raises(UsageError, match="worker: grace: expected float"):
        fp_async.Project(project.root, worker=WorkerSettings(grace="soon"))
    with pytest.raises(UsageError, match="on_success is a function"):
        fp_async.Project(project.root, on_success="foo")
    with pytest.raises(UsageError, match="a project is a Project or the path .* not 5"):
        fp_async.Project(5)


async def test_a_plain_function_says_what_a_project_is():
    with pytest.raises(UsageError, match="a project is a Project or the path .* not 5"):
        await fp_async.run("flow", project=5)


# Names --------------------------------------------------------------------------------------

PARAMETRIZED = """
    from fp_async import load_params
    from hamilton.function_modifiers import parameterize
    PARAMS = load_params(__file__)
    EXTRA = PARAMS.value.extra if "value" in PARAMS else 0
    @parameterize(**PARAMS.scaled)
    def scaled(count: int, factor: int) -> int:
        return count * factor
    def value(count: int) -> int:
        return count + EXTRA
"""
SCALED = "params: {flow: {scaled: {factor: 2}}}"


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"scald": {"factor": 3}}, "unknown function 'scald' in params; did you mean 'scaled'"),
        (
            {"value": {"extra": 4, "extar": 3}},
            "unknown argument 'extar' of function 'value' in params; did you mean 'extra'",
        ),
    ],
)
async def test_params_for_what_a_pipeline_does_not_have_are_refused(make_project, params, says):
    project = make_project(SCALED, flow=PARAMETRIZED)
    with pytest.raises(UnknownNameError, match=says):
        await project.run("flow", **RUN, params=params)
    with pytest.raises(UnknownNameError, match=says):
        await project.add_job("flow", **RUN, params=params)
    with pytest.raises(UnknownNameError, match=says):
        await project.schedule("flow", "interval", seconds=30, **RUN, params=params)


async def test_params_that_only_the_module_asks_for_are_taken(make_project):
    project = make_project(SCALED, flow=PARAMETRIZED)
    params = {"scaled": {"factor": 3}, "value": {"extra": 4}}
    assert await project.run("flow", **RUN, params=params) == {"scaled": 9, "value": 7}
    await project.add_job("flow", **RUN, params=params)


async def test_params_of_a_pipeline_that_cannot_be_loaded_here_are_taken(make_project):
    project = make_project(flow="import only_on_the_worker\n")
    await project.add_job("flow", params={"scaled": {"factor": 3}})


# Queries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2**63, 1_000_001, 0, -1, "5", True, 2.5])
async def test_a_limit_that_no_store_has_is_refused(project, limit):
    with pytest.raises(UsageError, match="limit is a number from 1 to 1,000,000, not "):
        await project.list_jobs(limit=limit)
    with pytest.raises(UsageError, match="limit is a number from 1 to 1,000,000, not "):
        await project.list_letters(limit)


async def test_a_query_says_what_an_argument_is(project):
    await project.add_job("flow", **RUN)
    assert len(await project.list_jobs(states="queued", pipeline=None, limit=1_000_000)) == 1
    with pytest.raises(UsageError, match="states is a name, or a list of names, and 5 is none"):
        await project.list_jobs(states=[5])
    with pytest.raises(UsageError, match=r"list_jobs\(\): queue: expected str"):
        await project.list_jobs(queue=5)


@pytest.mark.parametrize("queues", [["a,b"], [""]])
async def test_a_worker_of_queues_without_a_name_is_refused(project, queues):
    with pytest.raises(UsageError, match=r"worker: queues\.0: '.*' is not the name of one queue"):
        await project.start_worker(queues=queues)
