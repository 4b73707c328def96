"""APScheduler 4.0.0a6 on SQLite or PostgreSQL, embedded: client and worker are one process."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from apscheduler import AsyncScheduler
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from common import (
    FOLDER,
    TASK,
    async_latency,
    drained,
    option,
    postgres_count,
    sqlite_count,
    tell,
)
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

ON_POSTGRES = option("store") == "postgres"
FILE = FOLDER / "apscheduler.db"


async def noop() -> int:
    return 1


def scheduler() -> AsyncScheduler:
    """With the store that the row wants; `wal` gives SQLite its write-ahead log, still FULL."""
    if not ON_POSTGRES:
        engine = create_async_engine(f"sqlite+aiosqlite:///{FILE}")
        if option("wal"):
            event.listen(engine.sync_engine, "connect", _write_ahead)
        return AsyncScheduler(SQLAlchemyDataStore(engine))
    pool = {"pool_size": 20} if option("wal") else {}
    uri = TASK["uri"].replace("postgresql:", "postgresql+asyncpg:")
    engine = create_async_engine(uri, **pool)
    return AsyncScheduler(SQLAlchemyDataStore(engine))


def _write_ahead(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


async def measure() -> None:
    async with scheduler() as made:
        await made.configure_task("noop", func=noop, **option("task", {}))

        async def add() -> Any:
            return await made.add_job("noop", result_expiration_time=3600)

        async def add_and_wait() -> None:
            await made.get_job_result(await add())

        if TASK["measure"] == "latency":
            await made.start_in_background()
            tell(await async_latency(add_and_wait))
            return
        began = time.perf_counter()
        for _ in range(TASK["jobs"]):
            await add()
        added = TASK["jobs"] / (time.perf_counter() - began)
        sql = "SELECT count(*) FROM job_results"
        count = postgres_count(TASK["uri"], sql) if ON_POSTGRES else sqlite_count(FILE, sql)
        await made.start_in_background()
        tell({"add": added, **await asyncio.to_thread(drained, count, TASK["jobs"])})


def main() -> None:
    asyncio.run(measure())
