"""The file of a SQLite store is removed, replaced or out of reach while it is open."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from fleet import fleet, make
from stores_kit import job
from test_workers import until_gone, until_logged, until_written

from fp_async.errors import StoreError, StoreUnavailableError
from fp_async.stores.sqlite import SqliteStore
from fp_async.stores.units import translated


@contextlib.asynccontextmanager
async def opened(path: Path, *told):
    store = SqliteStore(path, *told)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def files(path: Path) -> list[Path]:
    return [path.with_name(path.name + tail) for tail in ("", "-wal", "-shm")]


async def ids(path: Path) -> set[str]:
    """What another process sees."""
    async with opened(path) as other:
        from fp_async.jobs import Find

        return {row.id for row in await other.find(Find())}


def sound(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_b5_a_file_that_was_removed_is_made_anew(tmp_path, caplog):
    path, told = tmp_path / "jobs.db", []
    async with opened(path, lambda: told.append(1)) as store:
        await store.add([job(id="old")])
        for each in files(path):
            each.unlink()
        assert await store.get("old") is None
        await asyncio.gather(*(store.add([job(id=f"new {n}")]) for n in range(20)))
        assert await ids(path) == {f"new {n}" for n in range(20)}
    assert told == [1]
    assert "was removed under this process" in caplog.text
    assert sound(path)


async def test_b5_a_file_that_was_replaced_is_opened_and_its_log_left_alone(tmp_path, caplog):
    path, spare = tmp_path / "jobs.db", tmp_path / "spare.db"
    async with opened(path) as store:
        await store.add([job(id="old")])
        async with opened(spare) as other:
            await other.add([job(id="theirs")])
        for each in files(path)[1:]:
            each.unlink()
        spare.replace(path)
        async with opened(path) as other:
            await other.add([job(id="in the log")])  # which SQLite removes by name when it closes
            assert await store.get("theirs") is not None
            assert await store.get("in the log") is not None
            await store.add([job(id="ours")])
            assert await other.get("ours") is not None
    assert await ids(path) == {"theirs", "in the log", "ours"}
    assert "was replaced under this process" in caplog.text
    assert sound(path)


async def test_b5_a_log_that_was_removed_is_written_back(tmp_path):
    path = tmp_path / "jobs.db"
    async with opened(path) as store:
        await store.add([job(id="one")])
        path.with_name("jobs.db-wal").unlink()
        path.with_name("jobs.db-shm").unlink()
        await store.add([job(id="two")])
        assert await ids(path) == {"one", "two"}
    assert sound(path)


OTHER = """
import asyncio, os, sys
from pathlib import Path
from fp_async.jobs import Job
from fp_async.stores.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    await store.add([Job(id="theirs", pipeline="flow")])
    os._exit(0)  # without closing: its log stays

asyncio.run(main())
"""


async def test_b5_a_log_that_was_replaced_is_not_written_over(tmp_path):
    path = tmp_path / "jobs.db"
    async with opened(path) as first:
        await first.add([job(id="kept")])
    async with opened(path) as store:
        await store.add([job(id="in the removed log")])
        path.with_name("jobs.db-wal").unlink()
        path.with_name("jobs.db-shm").unlink()
        done = subprocess.run([sys.executable, "-c", OTHER, str(path)], check=False)
        assert done.returncode == 0
        for _ in range(2):
            with pytest.raises(StoreError, match="end this process, and start it again"):
                await store.add([job(id="ours")])
    assert await ids(path) >= {"kept", "theirs"}
    assert sound(path)


async def test_b5_a_folder_that_has_gone_is_waited_for(tmp_path):
    path = tmp_path / "folder" / "jobs.db"
    path.parent.mkdir()
    async with opened(path) as store:
        await store.add([job(id="old")])
        shutil.rmtree(path.parent)
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match=f"there is no folder {path.parent}"):
                await store.add([job(id="lost")])
        path.parent.mkdir()
        await store.add([job(id="new")])
        assert await ids(path) == {"new"}


async def test_b5_another_programs_file_in_its_place_is_an_error(tmp_path):
    path = tmp_path / "jobs.db"
    async with opened(path) as store:
        await store.add([job(id="old")])
        for each in files(path):
            each.unlink()
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE theirs (a)")
        with pytest.raises(StoreError, match="SQLite database of something else"):
            await store.add([job()])


async def test_b5_an_agents_store_fails_for_good(tmp_path):
    path = tmp_path / "jobs.db"
    async with opened(path) as store:
        store.units.reopen = False
        await store.add([job(id="old")])
        path.unlink()
        for _ in range(2):
            with pytest.raises(StoreError, match="its file was removed or replaced") as raised:
                await store.add([job(id="lost")])
            assert not isinstance(raised.value, StoreUnavailableError)
        assert not path.exists()


def test_b5_a_store_that_may_only_be_read_says_so(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as db:
        db.execute("CREATE TABLE t (a)")
    readable = sqlite3.connect(f"file:{tmp_path}/x.db?mode=ro", uri=True)
    with contextlib.closing(readable), pytest.raises(sqlite3.OperationalError) as raised:
        readable.execute("INSERT INTO t VALUES (1)")
    error = translated(raised.value, tmp_path / "x.db")
    assert "the file or its folder may only be read" in str(error)
    assert not isinstance(error, StoreUnavailableError)


CONF = """
data_store:
  type: sqlite
"""
PIPELINES = """
run:
  flow:
    dev: {}
schedules:
  flow:
    often:
      type: interval
      seconds: 3600
"""
FLOW = """
import os
import time

def stuck(path: str) -> int:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(3600)
    return 1

def quick() -> int:
    return 7
"""


async def test_b5_a_worker_goes_on_with_the_file_that_is_there(tmp_path):
    project = make(tmp_path / "project", CONF)
    (project.root / "pipelines" / "flow.py").write_text(FLOW)
    pids = tmp_path / "pids"
    with fleet(project.root) as flock:
        flock.start("w", "start-worker", "--concurrency", "2")
        await project.schedule("flow", "interval", id="old", seconds=1, final_vars=["quick"])
        await project.add_job("flow", inputs={"path": str(pids)}, final_vars=["stuck"])
        running = await until_written(pids)
        for each in files(project.root / "flowerpower.db"):
            each.unlink()
        await until_logged(flock, "was removed under this process")
        assert await project.run_job("flow", final_vars=["quick"]) == {"quick": 7}
        await until_gone_within(20, running)
        jobs = await project.list_jobs()
        assert {row.schedule_id for row in jobs} == {None}
        assert await project.list_schedules() == []


async def until_gone_within(seconds, pids):
    with anyio.fail_after(seconds):
        while True:
            try:
                await until_gone(*pids)
                return
            except TimeoutError:
                continue


async def test_b5_the_agent_ends_and_says_why(tmp_path):
    from edge_agent.agent import Agent
    from edge_agent.config import AgentSettings

    (tmp_path / "pipelines").mkdir()
    settings = AgentSettings(name="a", project=str(tmp_path), store=str(tmp_path / "a.db"))
    agent = Agent(settings)
    await agent.open()
    try:
        (tmp_path / "a.db").unlink()
        with pytest.raises(StoreError, match="its file was removed or replaced"):
            await agent.rows.begin()
    finally:
        await agent.close()
