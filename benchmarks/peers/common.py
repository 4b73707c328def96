"""What the scripts of the peers share. They run in their own environments: standard library only.

What to do comes as JSON in FP_PEER, to client and worker alike; figures leave as one line of
JSON on standard output.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TASK: dict[str, Any] = json.loads(os.environ["FP_PEER"])
FOLDER = Path(TASK["folder"])
_PAUSE = 0.01


def option(name: str, default: Any = None) -> Any:
    """One of the settings of this row of the table."""
    return TASK["options"].get(name, default)


def tell(figures: dict[str, Any]) -> None:
    print(json.dumps(figures), flush=True)


@contextmanager
def worker(program: str, *arguments: str) -> Iterator[None]:
    """The peer's own command, from its environment, until the block ends."""
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    with (FOLDER / "worker.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def drained(count: Callable[[], int], total: int) -> dict[str, Any]:
    """Jobs/s from the first outcome that is seen to the last; start-up does not count."""
    deadline = time.monotonic() + TASK["limit"]
    while not (first := count()):
        if time.monotonic() > deadline:
            return {"error": f"no outcome within {TASK['limit']:.0f} s"}
        time.sleep(_PAUSE / 10)
    began, done = time.perf_counter(), first
    while done < total and time.monotonic() < deadline:
        time.sleep(_PAUSE)
        done = count()
    took = time.perf_counter() - began
    if done == first:
        return {"error": f"all {done} jobs ended between two looks: give it more"}
    return {"drain": (done - first) / took, "jobs": done}


def percentiles(times: list[float]) -> dict[str, Any]:
    times.sort()
    return {
        "p50": statistics.median(times),
        "p99": times[min(int(len(times) * 0.99), len(times) - 1)],
        "rounds": len(times),
    }


def latency(call: Callable[[], Any]) -> dict[str, Any]:
    """Seconds from add to result of jobs one after another, after some to warm up."""
    deadline = time.monotonic() + TASK["limit"] * 0.8
    times: list[float] = []
    for turn in range(TASK["rounds"] + 5):
        began = time.perf_counter()
        call()
        if turn >= 5:
            times.append(time.perf_counter() - began)
        if times and time.monotonic() > deadline:
            break
    return percentiles(times)


async def async_latency(call: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
    """As `latency`."""
    deadline = time.monotonic() + TASK["limit"] * 0.8
    times: list[float] = []
    for turn in range(TASK["rounds"] + 5):
        began = time.perf_counter()
        await call()
        if turn >= 5:
            times.append(time.perf_counter() - began)
        if times and time.monotonic() > deadline:
            break
    return percentiles(times)


def sqlite_count(path: Path, sql: str) -> Callable[[], int]:
    """Counts rows of a SQLite file over a connection of its own, from any thread."""
    db = sqlite3.connect(path, check_same_thread=False, timeout=10)

    def count() -> int:
        try:
            return int(db.execute(sql).fetchone()[0])
        except sqlite3.OperationalError:  # locked, or no such table yet
            return 0

    return count


def postgres_count(uri: str, sql: str) -> Callable[[], int]:
    """Counts rows in PostgreSQL over a connection of its own."""
    import psycopg

    db = psycopg.connect(uri, autocommit=True)
    return lambda: int(db.execute(sql).fetchone()[0])
