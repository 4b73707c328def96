"""huey on SQLite: the client of the benchmark, and what `huey_consumer` imports."""

from __future__ import annotations

import time

from common import FOLDER, TASK, drained, latency, option, sqlite_count, tell, worker
from huey import SqliteHuey

app = SqliteHuey(filename=str(FOLDER / "huey.db"), fsync=option("fsync"))


@app.task()
def noop() -> int:
    return 1


def add_and_wait() -> None:
    result = noop()
    if not option("look"):
        result.get(blocking=True, timeout=30)
        return
    while result.get() is None:
        time.sleep(option("look"))


def main() -> None:
    with_arguments = ("huey_peer.app", *option("consumer", ()))
    if TASK["measure"] == "latency":
        with worker("huey_consumer", *with_arguments):
            tell(latency(add_and_wait))
        return
    began = time.perf_counter()
    for _ in range(TASK["jobs"]):
        noop()
    added = TASK["jobs"] / (time.perf_counter() - began)
    with worker("huey_consumer", *with_arguments):
        count = sqlite_count(FOLDER / "huey.db", "SELECT count(*) FROM kv")
        tell({"add": added, **drained(count, TASK["jobs"])})
