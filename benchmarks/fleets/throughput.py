"""Jobs through one gateway and one agent, and what the agent grows by; a backlog of outcomes."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import Any

import msgspec
from fleets.places import Mosquitto, Place, Shares, private, rss, until

from edge_agent.store import AgentStore
from fp_async import Project
from fp_async.jobs import Job, Record
from fp_async.stores import tables
from fp_async.stores.sqlite import SqliteStore

WARM = 200
_PATIENCE = 170.0
_ENDED = "state IN ('succeeded','failed','cancelled','expired','rejected')"
Figures = dict[str, Any]


def read(path: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Rows of a store that others write."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as db:
        return db.execute(sql, values).fetchall()


def _ended(root: Path) -> int:
    return int(read(root / "jobs.db", f"SELECT count(*) FROM jobs WHERE {_ENDED}")[0][0])


async def _add(root: Path, count: int, on: str = "agent:pi") -> list[str]:
    """Hand in jobs by concurrent calls, at most 1,000 at once."""
    room = asyncio.Semaphore(1000)
    async with Project(root) as project:

        async def one() -> str:
            async with room:
                return await project.add_job("noop", on=on)

        return list(await asyncio.gather(*(one() for _ in range(count))))


def _through(root: Path, count: int) -> float:
    """Hand in jobs; seconds from the first call until the last outcome."""
    before, began = _ended(root), time.perf_counter()
    asyncio.run(_add(root, count))
    until(lambda: _ended(root) >= before + count, "all jobs have ended", _PATIENCE, 0.02)
    return time.perf_counter() - began


def jobs_per_second(folder: Path, count: int, *arguments: str) -> Figures:
    """All at work: from the first `add_job` to the last outcome; then of waiting ones, drained."""
    with Mosquitto(folder / "broker") as broker, Place(folder / "fleet", broker) as place:
        gateway, agent = place.gateway(), place.agent("pi", *arguments)
        _through(place.root, WARM)
        with Shares(gateway=gateway, agent=agent, broker=broker.process) as live:
            took = _through(place.root, count)
        gateway.suspend()
        _, ids = time.sleep(0.1), set(asyncio.run(_add(place.root, count)))
        with Shares(gateway=gateway, agent=agent, broker=broker.process) as drain:
            gateway.resume()
            wanted = WARM + 2 * count
            until(lambda: _ended(place.root) >= wanted, "all are drained", _PATIENCE)
        states = read(place.root / "jobs.db", "SELECT DISTINCT state FROM jobs")
        assert states == [("succeeded",)], states
        rows = read(place.root / "jobs.db", "SELECT id, ended_at FROM jobs ORDER BY ended_at")
    ends = [at for id, at in rows if id in ids]
    rate = sum(at > ends[0] for at in ends) / (ends[-1] - ends[0])
    return {"live": count / took, "shares": live.shares, "drain": rate, "drained": drain.shares}


def growth(folder: Path, count: int, *arguments: str) -> Figures:
    """MiB that the agent has grown by after `count` jobs; a tenth runs before the first look."""
    batch = min(count, 5000)
    with Mosquitto(folder / "broker") as broker, Place(folder / "fleet", broker) as place:
        place.gateway()
        agent = place.agent("pi", *arguments)
        _through(place.root, count // 10)
        before, began = (rss(agent), private(agent)), time.perf_counter()
        sizes = []
        for _ in range(count // batch):
            _through(place.root, batch)
            sizes.append(round(private(agent), 2))
        took = time.perf_counter() - began
        after = rss(agent), private(agent)
    figures = {"rss": after[0] - before[0], "private": after[1] - before[1], "seconds": took}
    return {**figures, "sizes": sizes, "jobs": count}


# A backlog ----------------------------------------------------------------------------------


def _outcome(number: int, now: float) -> Job:
    """A job that the device has begun by itself a while ago."""
    record = msgspec.json.encode(Record([], "", "pi"))
    return Job(
        id=f"backlog-{number:06d}",
        pipeline="noop",
        state="succeeded",
        created_at=now,
        run_at=now,
        nominal_at=now,
        started_at=now,
        ended_at=now,
        attempt=1,
        identity=True,
        unreported=True,
        trigger="local",
        result=b'{"v":1,"plain":{"done":1}}',
        record=record,
        inputs=b'{"v":1,"plain":{}}',
    )


async def _prepare(path: Path, count: int) -> None:
    store = SqliteStore(path)
    await store.open()
    try:
        await AgentStore(store).begin()
        first = time.time() - count / 100 - 60
        rows = [tables.whole(_outcome(i, first + i / 100)) for i in range(count)]
        await store.units.write(lambda db: db.executemany(tables.INSERT_WHOLE, rows).rowcount)
    finally:
        await store.close()


def backlog(folder: Path, count: int) -> Figures:
    """A device comes back with `count` outcomes, and runs jobs meanwhile."""
    with Mosquitto(folder / "broker") as broker, Place(folder / "fleet", broker) as place:
        asyncio.run(_prepare(place.device("pi") / "fp-agent.db", count))
        gateway = place.gateway()
        agent = place.agent("pi")
        until(lambda: _arrived(place.root) > 0, "the first outcome arrives")
        with Shares(gateway=gateway, agent=agent, broker=broker.process) as shares:
            live = asyncio.run(_live(place.root, count))
        alone = asyncio.run(_rounds(place.root, 50))
        _check_backlog(place.root, count)
        figures = {"rate": _arrival_rate(place.root), "live": live, "alone": alone}
        waiting = "SELECT count(*) FROM jobs WHERE unreported = 1"
        path = place.device("pi") / "fp-agent.db"
        until(lambda: read(path, waiting) == [(0,)], "all are acknowledged")
        return {**figures, "shares": shares.shares, "agent_mib": rss(agent)}


def _arrived(root: Path) -> int:
    sql = "SELECT count(*) FROM jobs WHERE \"trigger\" = 'local'"
    return int(read(root / "jobs.db", sql)[0][0])


async def _live(root: Path, count: int) -> list[float]:
    """Seconds of each job that was run while the backlog came in."""
    times: list[float] = []
    async with asyncio.timeout(_PATIENCE), Project(root) as project:
        await _timed(project, 1)  # which starts a child
        while not times or _arrived(root) < count:
            times += await _timed(project, 5)
    return times


def _arrival_rate(root: Path) -> float:
    """Per second, from the first to the last: a row is kept for so long from when it arrived."""
    sql = "SELECT prune_at - result_ttl FROM jobs WHERE \"trigger\" = 'local'"
    times = sorted(at for (at,) in read(root / "jobs.db", sql))
    return sum(at > times[0] for at in times) / (times[-1] - times[0])


async def _rounds(root: Path, rounds: int) -> list[float]:
    async with Project(root) as project:
        return await _timed(project, rounds)


async def _timed(project: Project, rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        await project.run_job("noop", on="agent:pi")
        times.append(time.perf_counter() - began)
    return times


def _check_backlog(root: Path, count: int) -> None:
    """Each was recorded once, the oldest first."""
    sql = "SELECT nominal_at FROM jobs WHERE \"trigger\" = 'local' ORDER BY seq"
    times = [at for (at,) in read(root / "jobs.db", sql)]
    assert len(times) == len(set(times)) == count, f"{len(times):,} rows, {len(set(times)):,} times"
    assert times == sorted(times), "they did not come oldest first"
