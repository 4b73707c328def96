"""Jobs and schedules as values, and reading and adding them without a project's folder."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime, timedelta

import anyio
import msgspec
import pytest
import stores_kit
from stores_kit import A, Q, report, shared

import fp_async
from fp_async import Client, Project, WorkerSettings, backend, codec
from fp_async.errors import (
    ConfigError,
    JobCancelledError,
    JobFailedError,
    ResultLostError,
    StoreUnavailableError,
    UsageError,
)
from fp_async.jobs import Letter, Member
from fp_async.messages import AgentState
from fp_async.outcomes import GroupResults
from fp_async.presence import Known

FLOW = """
import logging


def doubled(count: int) -> int:
    logging.getLogger("mine").warning("counted %d", count)
    return count * 2


def failing(count: int) -> int:
    raise KeyError("no such thing")
"""
ONE = {"inputs": {"count": 3}, "final_vars": ["doubled"]}


@pytest.fixture
def project(make_project):
    return make_project(flow=FLOW)


@pytest.fixture
async def working(project):
    async with Project(project.root, worker=WorkerSettings(runner="inline")) as opened:
        yield opened


# Values -------------------------------------------------------------------------------------


async def test_d9_a_job_is_a_value(working):
    before = datetime.now(UTC) - timedelta(seconds=1)
    id = await working.add_job("flow", **ONE, timeout=60, environment="dev")
    assert await working.get_result(id, wait=20) == {"doubled": 6}
    job = await working.get_job(id)
    assert (job.inputs, job.result, job.error) == ({"count": 3}, {"doubled": 6}, None)
    assert (job.state, job.finished, job.attempt, job.errors) == ("succeeded", True, 1, 0)
    assert (job.environment, job.options["timeout"]) == ("dev", 60)
    assert before < job.created_at <= job.started_at <= job.ended_at < before + timedelta(minutes=1)
    assert job.created_at.utcoffset() == timedelta(0)
    assert job.duration == pytest.approx((job.ended_at - job.started_at).total_seconds(), abs=1e-5)
    assert "counted 3" in job.log
    assert [node.node for node in job.nodes] == ["doubled"]
    assert repr(job).startswith(f"<Job {id} of flow: succeeded in ")
    assert len(repr(job)) < 90
    assert job == await working.get_job(id)
    assert pickle.loads(pickle.dumps(job)) == copy.copy(job) == job


async def test_d9_the_error_of_a_job_is_what_its_result_raises(working):
    id = await working.add_job("flow", inputs={"count": 3}, final_vars=["failing"])
    with pytest.raises(JobFailedError) as raised:
        await working.get_result(id, wait=20)
    job = await working.get_job(id)
    assert (str(job.error), job.error.kind) == (str(raised.value), "KeyError")
    assert 'raise KeyError("no such thing")' in job.failure.traceback
    assert job.result is None


async def test_e17_a_lost_result_is_an_error_with_its_reason(project):
    why = "its result could not be sent: too large"
    lost = stores_kit.job(
        id="1234", state="succeeded", reason=why, ended_at=1e9, group_id="g", target="agent:pi"
    )
    async with project, backend.connected(project.root) as held:
        await held.store.fleet.adopt([lost])
        with pytest.raises(ResultLostError, match=f"job 1234 succeeded: {why}") as raised:
            await project.get_result("1234")
        (pair,) = [pair async for pair in GroupResults(project.root, "g", [lost])]
    assert raised.value.exit_code == 74
    assert (pair[0], type(pair[1]), pair[1].error) == ("pi", ResultLostError, why)


@pytest.mark.parametrize(("key", "advice"), [(None, "with a `key` adding"), ("k", "the key 'k'")])
async def test_e30_a_job_that_may_be_stored_says_so(project, monkeypatch, key, advice):
    async with project, backend.connected(project.root) as held:

        async def lost(jobs):
            raise StoreUnavailableError("the connection was lost")

        monkeypatch.setattr(held.store, "add", lost)
        with pytest.raises(StoreUnavailableError) as plain:
            await project.add_job("flow", key=key, **ONE)
        assert str(plain.value) == "the connection was lost"  # SQLite has stored nothing
        monkeypatch.setattr(held.store, "joins", False)
        with pytest.raises(StoreUnavailableError, match="may be stored all the same") as unclear:
            await project.add_job("flow", key=key, **ONE)
        assert advice in str(unclear.value)


async def test_d9_what_a_list_has_not_read_is_said(project):
    id = await project.add_job("flow", **ONE, delay=60)
    (job,) = await project.list_jobs()
    assert (job.id, job.ended_at, job.duration) == (id, None, None)
    for name in ("inputs", "result", "log", "nodes", "worker", "warnings", "version"):
        with pytest.raises(UsageError, match=r"list_jobs\(\).*get_job"):
            getattr(job, name)


async def test_d9_jobs_since_then(project):
    id = await project.add_job("flow", **ONE)
    at = (await project.get_job(id)).created_at
    hour = timedelta(hours=1)
    for since in (hour, at, at.isoformat(), at.timestamp() - 1, None):
        assert [job.id for job in await project.list_jobs(since=since)] == [id]
    assert await project.list_jobs(since=at + hour) == []
    for wrong in ("yesterday", -hour, [1]):
        with pytest.raises(UsageError, match="since"):
            await project.list_jobs(since=wrong)


async def test_d9_a_schedule_is_a_value(project):
    one = await project.schedule("flow", "interval", minutes=15, **ONE, queue="q")
    assert one.next_fire_time - one.created_at == pytest.approx(
        timedelta(minutes=15), abs=timedelta(seconds=5)
    )
    assert (one.trigger, one.state, one.inputs) == ("every 15 min", "active", {"count": 3})
    assert (one.queue, one.environment, one.paused, one.last_fire_time) == ("q", "dev", False, None)
    assert repr(one) == f"<Schedule {one.id} of flow: every 15 min, active>"
    paused = await project.pause_schedule(one.id)
    assert (paused.state, paused == one) == ("paused", False)


async def test_d9_events_have_the_job_as_a_value(working):
    id = await working.add_job("flow", **ONE)
    events = [event async for event in working.watch(id)]
    assert events[-1].job.result == {"doubled": 6}
    assert isinstance(events[-1].job, fp_async.Job)


# Without a project --------------------------------------------------------------------------


@shared
async def test_d9_a_client_adds_and_reads_by_a_uri(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = await place.opened()
    async with Client(place.settings.uri) as client:
        id = await client.add_job("flow", inputs={"count": 3}, timeout=60, key="k")
        assert await client.add_job("flow", key="k") == id
        (job,) = await store.claim(A, Q, 1, 60)
        assert (job.id, codec.decode(job.inputs), job.rules.timeout) == (id, {"count": 3}, 60)
        result = codec.encode_value({"doubled": 6})
        await store.finish([report(job, result=result)])
        assert await client.get_result(id) == {"doubled": 6}
        other = await client.add_job("flow", delay=60)
        assert (await client.cancel_job(other, "no")).state == "cancelled"
        with pytest.raises(JobCancelledError):
            await client.get_result(other)
        assert {job.id for job in await client.list_jobs(pipeline="flow")} == {id, other}
        schedule = await client.schedule("flow", "crontab", "0 3 * * *", timezone="UTC")
        assert await client.list_schedules() == [schedule]
        again = await client.retry_job(id)
    assert (await Client(place.settings.uri).get_job(again)).retried_from == id
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} <= {"jobs"}, "no project"


async def test_d9_workers_run_what_a_client_adds_with_what_the_project_says(working, monkeypatch):
    """It knows neither the pipeline nor its types: whoever runs the job does."""
    monkeypatch.chdir(working.root / "pipelines")
    client = Client("sqlite:///../flowerpower.db")
    assert await client.run_job("flow", **ONE) == {"doubled": 6}
    with pytest.raises(JobFailedError, match="count"):
        await client.run_job("flow", inputs={"count": "many"}, final_vars=["doubled"])


@pytest.mark.parametrize(
    "uri", ["sqlite:///:memory:", "sqlite://", "http://host/db", "flowerpower.db", "", 5, None]
)
def test_d9_a_client_of_no_store_is_refused(uri):
    with pytest.raises(UsageError, match="data store") as raised:
        Client(uri)
    assert "conf/" not in str(raised.value)


@pytest.mark.parametrize("broker", ["kafka://host", "redis", 5])
def test_d9_a_client_of_no_broker_is_refused(broker):
    with pytest.raises(UsageError, match="event_broker"):
        Client("sqlite:///a.db", event_broker=broker)


async def test_d9_what_needs_the_project_says_so(tmp_path):
    client = Client(f"sqlite:///{tmp_path}/a.db")
    with pytest.raises(UsageError, match="Project"):
        await client.add_job("flow", on="agent:pi", require_version=True)
    with pytest.raises(UsageError, match="the name of a pipeline"):
        await client.add_job("")
    assert not hasattr(client, "apply_schedules")


async def test_d9_a_client_hides_its_password():
    client = Client("postgresql://me:hunter2@127.0.0.1:1/db")
    with pytest.raises(StoreUnavailableError) as raised:
        await client.list_jobs()
    assert "hunter2" not in repr(client) + str(raised.value) + repr(raised.value)


def test_d9_the_type_of_a_configuration_must_fit_its_uri(make_project):
    project = make_project(flow=FLOW)
    text = "data_store: {type: mysql, uri: 'sqlite:///a.db'}"
    (project.root / "conf").mkdir(exist_ok=True)
    (project.root / "conf" / "scheduler.yml").write_text(text)
    with pytest.raises(ConfigError, match=r"conf/scheduler\.yml.*does not fit"):
        backend.check(project.root)


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("redis://h:6379", "redis"),
        ("rediss://h", "redis"),
        ("mqtt://h", "mqtt"),
        ("wss://h/mqtt", "mqtt"),
        ("postgresql+asyncpg://h/d", "postgres"),
    ],
)
def test_d9_the_event_broker_of_a_client_is_known_by_its_uri(uri, kind):
    found = backend.address("postgresql://h/d", uri)
    assert (found.broker.type, found.broker.uri) == (kind, uri)


async def test_d9_a_client_wakes_the_worker_by_its_event_broker(project, databases):
    """Which would look only after a minute by itself."""
    stores_kit.need("postgres")
    uri = databases("postgres")
    (project.root / "conf").mkdir(exist_ok=True)
    (project.root / "conf" / "scheduler.yml").write_text(
        f"data_store: {{type: postgres, uri: '{uri}'}}\nevent_broker: {{type: postgres}}\n"
        "worker: {runner: inline, poll_interval: 60}\n"
    )
    async with Project(project.root, worker=True) as opened:
        await opened.list_jobs()
        async with Client(uri, event_broker=uri) as client:
            with anyio.fail_after(20):
                assert await client.run_job("flow", **ONE) == {"doubled": 6}
    place = stores_kit.Place("postgres", uri)
    await place.clear()


async def test_d9_agents_and_dead_letters_have_datetimes(project):
    at = datetime(2026, 1, 31, 8, tzinfo=UTC)
    async with backend.connected(project.root) as held:
        letter = Letter(id="l", topic="t", reason="r", payload=b"p", at=at.timestamp())
        await held.store.fleet.bury([letter])
        state = AgentState(status="ready", store="A", starts=1, n=1)
        for name, seen_at in (("pi-7", at.timestamp()), ("new", 0.0)):
            info = msgspec.json.encode(Known(state=state, seen_at=seen_at))
            await held.store.saw(Member(kind="agent", name=name, info=info), 60)
        (found,) = await project.list_letters()
        new, agent = await project.agents()
    assert (found.topic, found.reason, found.payload, found.at) == ("t", "r", b"p", at)
    assert (agent.seen_at, agent.away_since) == (at, None)
    assert new.seen_at is None
