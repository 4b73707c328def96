"""A project, its store and an agent's store, as an earlier release left them (`data/before/make.py`)."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import pathlib
import sqlite3
import subprocess
import sys
import tarfile
import time
import uuid
from pathlib import Path

import pytest
from edge_kit import Broker, conf, edge_fleet, until_known

from fp_async import Project
from fp_async.errors import JobCancelledError, JobExpiredError, JobFailedError, JobTimeoutError

KEPT = sorted((Path(__file__).parent / "data" / "before").glob("*.tar.xz"))
COMMAND = str(Path(sys.executable).with_name("flowerpower"))


@pytest.fixture(params=KEPT, ids=lambda path: path.name.partition(".")[0])
def before(request, tmp_path):
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def flowerpower(*arguments, cwd):
    done = subprocess.run([COMMAND, *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_project_runs_as_it_is(before):
    root = before / "project"
    flowerpower("check", cwd=root)
    assert flowerpower("run", "etl", "--quiet", cwd=root).split() == ["adding", "3", "total", "12"]
    prod = flowerpower("run", "etl", "--environment", "prod", "--output", "json", "-q", cwd=root)
    assert '"total": 60' in prod
    assert flowerpower("run", "cached", "--quiet", cwd=root).split() == ["most", "9"]
    assert "etl" in flowerpower("list", cwd=root)


async def test_results_are_read(before):
    async with Project(before / "project") as project:
        jobs = list(reversed(await project.list_jobs()))
        assert [job.state for job in jobs] == (
            ["succeeded"] * 3
            + ["failed"] * 2
            + ["cancelled", "expired"]
            + ["queued"] * 3
            + ["succeeded", "running", "queued"]
        )
        assert await project.get_result(jobs[0].id) == {"total": 20}
        assert await project.get_result(jobs[1].id) == {"total": 18}
        check_kinds(await project.get_result(jobs[2].id))
        errors = (JobFailedError, JobTimeoutError, JobCancelledError, JobExpiredError)
        for job, error in zip(jobs[3:7], errors, strict=True):
            with pytest.raises(error):
                await project.get_result(job.id)
        assert "no 1 for anyone" in (await project.get_job(jobs[3].id)).failure.message


def check_kinds(result):
    assert result["plain"] == {
        "none": None,
        "float": 1.5,
        "bytes": b"\x00\xff",
        "tuple": (1, "two"),
        "set": {1, 2},
        3: "int key",
        "when": datetime.datetime(2026, 11, 30, 12, tzinfo=datetime.UTC),
        "day": datetime.date(2026, 11, 30),
        "decimal": decimal.Decimal("1.10"),
        "uuid": uuid.UUID(int=7),
        "path": pathlib.PurePosixPath("a/b"),
        "big": 2**70,
    }
    assert (result["point"].x, result["point"].y) == (1, 2.5)
    assert result["array"].dtype == "int16"
    assert result["array"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert result["frame"]["a"].to_list() == [1, 2]
    assert result["frame"]["b"].isna().to_list() == [False, True]
    assert (list(result["frame"].index), result["frame"].index.name) == ([5, 6], "i")
    assert result["lazy"]["t"].to_list() == [datetime.timedelta(hours=1), None]
    assert result["table"].to_pylist() == [{"a": 1, "b": ["x"]}, {"a": 2, "b": []}]
    assert result["long"] == "x" * 100_000


async def test_what_waited_is_run_and_schedules_go_on(before):
    root = before / "project"
    async with Project(root, worker=True) as project:
        waiting = [job for job in await project.list_jobs() if job.key == "waiting"]
        assert await project.get_result(waiting[0].id, wait=20) == {"total": 30}
        again = await project.retry_job((await project.list_jobs(pipeline="etl"))[-1].id)
        assert await project.get_result(again, wait=20) == {"total": 20}
        schedules = {each.id: each for each in await project.list_schedules()}
        assert {id: each.paused for id, each in schedules.items()} == {
            "hourly": False,
            "paused": True,
            "weekdays": False,
        }
        assert schedules["weekdays"].next_fire_time.timestamp() > time.time()
        resumed = await project.resume_schedule("paused")
        assert resumed.next_fire_time.timestamp() > time.time()


async def test_a_device_goes_on_with_its_store(before):
    root, device = before / "project", before / "devices" / "pi-7"
    device.parent.mkdir()
    (before / "device").rename(device)
    (root / "pipelines" / "broken.py").touch()
    with Broker() as broker, edge_fleet(root) as flock:
        (root / "conf" / "mqtt.yml").write_text(conf(broker.port))
        flock.start_gateway("gateway")
        store = ("--store", str(device / "fp-agent.db"), "--tag", "site=berlin")
        flock.start_agent("pi-7", broker.port, *store)
        async with Project(root) as project:
            await until_known(project, "pi-7")
            rows = list(reversed(await project.list_jobs()))
            untold, queued = rows[-2:]
            assert await project.get_result(untold.id, wait=30) == {"slow": 3.0}
            assert await project.get_result(queued.id, wait=30) == {"total": 42}
            fresh = await project.run_job("etl", on="any:site=berlin", inputs={"count": 1})
            assert fresh == {"total": 2}
            await until_told(device / "fp-agent.db")
    with sqlite3.connect(device / "fp-agent.db") as store:
        assert store.execute("SELECT id FROM schedules").fetchall() == [("hourly",)]


async def until_told(path):
    """Until the agent knows that all its outcomes have arrived."""
    async with asyncio.timeout(30):
        while True:
            with sqlite3.connect(path) as store:
                query = "SELECT count(*) FROM jobs WHERE unreported = 1"
                if store.execute(query).fetchall() == [(0,)]:
                    return
            await asyncio.sleep(0.05)
