"""taskiq on Redis: the client of the benchmark, and what `taskiq worker` imports."""

from __future__ import annotations

import asyncio
import time

import redis
from common import TASK, async_latency, drained, option, tell, worker
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

URI = TASK["uri"]
_kind = ListQueueBroker if option("broker") == "list" else RedisStreamBroker
_settings = {"xread_count": option("prefetch")} if option("prefetch") else {}
broker = _kind(f"{URI}/0", **_settings).with_result_backend(RedisAsyncResultBackend(f"{URI}/1"))


@broker.task
async def noop() -> int:
    return 1


async def fill(total: int) -> float:
    """Jobs/s, a hundred at a time."""
    began = time.perf_counter()
    for _ in range(total // 100):
        await asyncio.gather(*(noop.kiq() for _ in range(100)))
    return total / (time.perf_counter() - began)


async def add_and_wait() -> None:
    task = await noop.kiq()
    if option("look"):
        await task.wait_result(check_interval=option("look"), timeout=30)
    else:
        await task.wait_result(timeout=30)


async def measure() -> None:
    await broker.startup()
    arguments = ("worker", "taskiq_peer:broker", "--log-level", "WARNING", *option("worker", ()))
    if TASK["measure"] == "latency":
        with worker("taskiq", *arguments):
            tell(await async_latency(add_and_wait))
    else:
        added = await fill(TASK["jobs"])
        with worker("taskiq", *arguments):
            tell({"add": added, **drained(redis.Redis.from_url(f"{URI}/1").dbsize, TASK["jobs"])})
    await broker.shutdown()


def main() -> None:
    asyncio.run(measure())
