"""procrastinate on PostgreSQL: the client of the benchmark, and what its worker imports.

It has no call that waits for a job and keeps no return value: the client looks for the state.
"""

from __future__ import annotations

import asyncio
import time

import procrastinate
import psycopg
from common import TASK, async_latency, drained, option, postgres_count, tell, worker

app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(conninfo=TASK["uri"], **option("pool", {}))
)
_DONE = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"
_STATE = "SELECT status FROM procrastinate_jobs WHERE id = %s"


@app.task(name="noop")
async def noop() -> int:
    return 1


async def fill(total: int) -> float:
    """Jobs/s, at most ten at a time: as many as its pool has connections."""
    began = time.perf_counter()
    for _ in range(total // 10):
        await asyncio.gather(*(noop.defer_async() for _ in range(10)))
    return total / (time.perf_counter() - began)


async def measure() -> None:
    arguments = ("--app", "procrastinate_peer.app", "worker", *option("worker", ()))
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        if TASK["measure"] == "drain":
            added = await fill(TASK["jobs"])
            with worker("procrastinate", *arguments):
                tell({"add": added, **drained(postgres_count(TASK["uri"], _DONE), TASK["jobs"])})
            return
        looking = await psycopg.AsyncConnection.connect(TASK["uri"], autocommit=True)

        async def state(id: int) -> str:
            rows = await looking.execute(_STATE, (id,))
            return (await rows.fetchone())[0]

        async def add_and_wait() -> None:
            id = await noop.defer_async()
            while await state(id) != "succeeded":  # noqa: ASYNC110
                await asyncio.sleep(0.001)

        with worker("procrastinate", *arguments):
            tell(await async_latency(add_and_wait))
        await looking.close()


def main() -> None:
    asyncio.run(measure())
