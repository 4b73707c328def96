"""Workers, schedulers, servers and brokers killed at random: what was accepted is never lost.

A tenth of it by default; `scripts/chaos` runs all. Workers and schedulers are processes of the
installed command; a server that is killed is the test's own.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import ExitStack

import pytest
import services
from fleet import check, fleet, make, scale, seeded, until_ended

from fp_async.errors import StoreUnavailableError

JOBS = 2000
WORKERS = ("w1", "w2", "w3")
SCHEDULERS = ("s1", "s2")
TIMEOUT = 240.0


def begin(fleet, name) -> None:
    if name in WORKERS:
        fleet.start(name, "start-worker", "--concurrency", "4", "--no-schedules")
    else:
        fleet.start(name, "start-scheduler")


async def kills(fleet, rng, done: asyncio.Event) -> None:
    """One of them every second, and it is started again."""
    while not done.is_set():
        try:
            async with asyncio.timeout(1.0):
                await done.wait()
        except TimeoutError:
            name = rng.choice((*WORKERS, *WORKERS, *SCHEDULERS))
            fleet.kill(name)
            begin(fleet, name)


async def storm(project, flock, rng, *, meanwhile=None, given_back=False) -> dict:
    """All jobs, half of them from a schedule's point of view, while things are killed."""
    count = scale(JOBS)
    for name in (*WORKERS, *SCHEDULERS):
        begin(flock, name)
    done = asyncio.Event()
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        group.create_task(kills(flock, rng, done))
        async with project:
            row = await project.schedule(
                "work",
                "interval",
                seconds=0.25,
                coalesce="all",
                max_crashes=100,
                inputs=flock.inputs(-1),
            )
            if meanwhile is not None:
                group.create_task(meanwhile(began))
            numbers = {}
            for number in range(count):
                inputs = flock.inputs(number, rng.random() * 0.02)
                id = await added(project, inputs, key=f"job-{number}")
                numbers[id] = number
            await gone_through(project, row.id, 8)
            await project.pause_schedule(row.id)
            jobs = await until_ended(project, count, TIMEOUT)
            values = {id: await project.get_result(id) for id in numbers}
        done.set()
    assert numbers.keys() <= jobs.keys()
    assert {job.state for job in jobs.values()} == {"succeeded"}
    assert values == {id: {"value": 2 * number} for id, number in numbers.items()}
    nominal = Counter(job.nominal_at for job in jobs.values() if job.schedule_id == row.id)
    assert nominal
    assert set(nominal.values()) == {1}, "a nominal time has fired twice"
    figures = check(jobs, flock, given_back=given_back)
    return {**figures, "fires": len(nominal), "seconds": round(time.monotonic() - began, 1)}


async def added(project, inputs, key) -> str:
    """Added, however often the store is away; the key makes trying again safe."""
    while True:
        try:
            return await project.add_job("work", inputs=inputs, key=key, max_crashes=100)
        except StoreUnavailableError:
            await asyncio.sleep(0.2)


async def gone_through(project, schedule, count) -> None:
    while True:
        try:
            if len(await project.list_jobs(schedule_id=schedule)) >= count:
                return
        except StoreUnavailableError:
            pass
        await asyncio.sleep(0.2)


# Alone: processes that are killed every second need that second to begin to work.
pytestmark = pytest.mark.alone


@pytest.fixture
def stack():
    with ExitStack() as opened:
        yield opened


def data_store(kind: str, stack: ExitStack) -> str:
    if kind == "sqlite":
        return "data_store:\n  type: sqlite\n  uri: sqlite+aiosqlite:///jobs.db\n"
    if kind == "mongodb":
        import os

        uri = os.environ.get("FP_MONGODB_URI") or pytest.skip("counts on a real MongoDB only")
        return f"data_store:\n  type: mongodb\n  uri: {uri}\n"
    services.require(kind)
    fresh = services.fresh_postgres if kind == "postgres" else services.fresh_mysql
    return f"data_store:\n  type: {kind}\n  uri: {stack.enter_context(fresh())}\n"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mysql", "mongodb"])
async def test_workers_and_schedulers_are_killed_every_second(kind, tmp_path, stack, capsys):
    project = make(tmp_path / "project", data_store(kind, stack))
    with fleet(project.root) as flock:
        figures = await storm(project, flock, seeded())
    with capsys.disabled():
        print(f"\n  {kind}: {figures}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgres", "mysql"])
async def test_the_database_is_killed_in_the_middle(kind, tmp_path, stack, capsys):
    server = stack.enter_context((services.Postgres if kind == "postgres" else services.MariaDB)())
    uri = server.uri
    if kind == "mysql":
        services.mysql(uri, "CREATE DATABASE jobs")
        uri = f"{uri}/jobs"
    project = make(tmp_path / "project", f"data_store:\n  type: {kind}\n  uri: {uri}\n")

    async def restart(began: float) -> None:
        await asyncio.sleep(3)
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(2)
        await asyncio.to_thread(server.start)

    with fleet(project.root) as flock:
        figures = await storm(project, flock, seeded(), meanwhile=restart, given_back=True)
    with capsys.disabled():
        print(f"\n  {kind}, server killed: {figures}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["redis", "mqtt"])
async def test_the_event_broker_is_killed_in_the_middle(kind, tmp_path, stack, capsys):
    server = stack.enter_context((services.Redis if kind == "redis" else services.Mosquitto)())
    scheduler = data_store("sqlite", stack)
    scheduler += f"event_broker:\n  type: {kind}\n  uri: {server.uri}\n"
    project = make(tmp_path / "project", scheduler)

    async def kill(began: float) -> None:
        await asyncio.sleep(2)
        await asyncio.to_thread(server.kill)

    with fleet(project.root) as flock:
        figures = await storm(project, flock, seeded(), meanwhile=kill)
    with capsys.disabled():
        print(f"\n  {kind}, broker killed: {figures}")
