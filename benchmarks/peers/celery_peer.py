"""Celery on Redis: the client of the benchmark, and what `celery worker` imports."""

from __future__ import annotations

import time

import redis
from celery import Celery
from common import TASK, drained, latency, option, tell, worker

URI = TASK["uri"]
app = Celery("celery_peer", broker=f"{URI}/0", backend=f"{URI}/1")
app.conf.update(broker_connection_retry_on_startup=True, **option("conf", {}))


@app.task
def noop() -> int:
    return 1


def main() -> None:
    arguments = ("-A", "celery_peer:app", "worker", *option("worker", ()))
    if TASK["measure"] == "latency":
        with worker("celery", *arguments):
            tell(latency(lambda: noop.delay().get(timeout=30)))
        return
    began = time.perf_counter()
    for _ in range(TASK["jobs"]):
        noop.delay()
    added = TASK["jobs"] / (time.perf_counter() - began)
    results = redis.Redis.from_url(f"{URI}/1")
    with worker("celery", *arguments):
        tell({"add": added, **drained(results.dbsize, TASK["jobs"])})
