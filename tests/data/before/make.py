"""Writes what the tests open: run by the release that is to be kept, `python make.py FOLDER`.

`FOLDER/project` is a project with its data store, `FOLDER/device` the copy that an agent runs, with the
agent's store. Some jobs have ended in each way, some wait, and one outcome is still on the device.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path
from typing import Self

BIN = Path(sys.executable).parent
TEN_YEARS = 315_360_000
PORT = "18911"

FILES = {
    "conf/pipelines.yml": f"""
        params:
          etl:
            scaled: {{factor: 2}}
        run:
          etl:
            dev:
              inputs: {{count: 3}}
              final_vars: [total]
              result_ttl: {TEN_YEARS}
              retry: {{max_attempts: 2, backoff: 0.1, on: [ConnectionError]}}
              schedule:
                - {{id: weekdays, type: crontab, crontab: "30 6 * * 1-5", timezone: Europe/Berlin}}
            prod:
              params: {{scaled: {{factor: 10}}}}
              timeout: 60
          kinds:
            dev: {{result_ttl: {TEN_YEARS}}}
          cached:
            dev: {{cache: cache, result_ttl: {TEN_YEARS}}}
          broken:
            dev: {{result_ttl: {TEN_YEARS}}}
        """,
    "conf/scheduler.yml": """
        data_store: {type: sqlite, uri: sqlite:///flowerpower.db}
        worker: {queues: [default, reports], poll_interval: 0.2}
        """,
    "conf/mqtt.yml": f"""
        broker: {{uri: "mqtt://127.0.0.1:{PORT}"}}
        run: {{etl: {{on: "any:site=berlin"}}}}
        """,
    "conf/tracker.yml": "username: me@example.com\npipeline: {etl: {project_id: 1}}\n",
    "pipelines/etl.py": """
        from fp_async import load_params
        from hamilton.function_modifiers import parameterize

        PARAMS = load_params(__file__)


        def numbers(count: int) -> list[int]:
            return list(range(1, count + 1))


        @parameterize(**PARAMS.scaled)
        def scaled(numbers: list[int], factor: int) -> list[int]:
            return [number * factor for number in numbers]


        def total(scaled: list[int]) -> int:
            print("adding", len(scaled))
            return sum(scaled)
        """,
    "pipelines/shapes.py": """
        import dataclasses


        @dataclasses.dataclass
        class Point:
            x: int
            y: float
        """,
    "pipelines/kinds.py": """
        import datetime
        import decimal
        import pathlib
        import pickle
        import uuid

        import numpy as np
        import pandas as pd
        import polars as pl
        import pyarrow as pa
        from shapes import Point


        def point() -> Point:
            return Point(1, 2.5)


        def plain() -> dict:
            return {
                "none": None, "float": 1.5, "bytes": b"\\x00\\xff", "tuple": (1, "two"), "set": {1, 2},
                3: "int key", "when": datetime.datetime(2026, 11, 30, 12, tzinfo=datetime.UTC),
                "day": datetime.date(2026, 11, 30), "decimal": decimal.Decimal("1.10"),
                "uuid": uuid.UUID(int=7), "path": pathlib.PurePosixPath("a/b"), "big": 2**70,
            }


        def array() -> np.ndarray:
            return np.arange(12, dtype="int16").reshape(3, 4)


        def frame() -> pd.DataFrame:
            return pd.DataFrame({"a": [1, 2], "b": ["x", None]}, index=pd.Index([5, 6], name="i"))


        def lazy() -> pl.DataFrame:
            return pl.DataFrame({"a": [1, 2], "t": [datetime.timedelta(hours=1), None]})


        def table() -> pa.Table:
            return pa.table({"a": [1, 2], "b": [["x"], []]})


        def long() -> str:
            return "x" * 100_000


        def pickled(path: str = "point.pickle") -> str:
            pathlib.Path(path).write_bytes(pickle.dumps(Point(3, 4.5)))
            return path
        """,
    "pipelines/cached.py": """
        def squares(count: int = 4) -> list[int]:
            return [number * number for number in range(count)]


        def most(squares: list[int]) -> int:
            return max(squares)
        """,
    "pipelines/broken.py": """
        def fails(count: int = 1) -> int:
            raise ValueError(f"no {count} for anyone")


        def slow(seconds: float = 60.0) -> float:
            import time

            time.sleep(seconds)
            return seconds
        """,
}


def command(*arguments: str, where: Path, code: int = 0) -> str:
    done = subprocess.run(
        [BIN / arguments[0], *arguments[1:]], cwd=where, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return done.stdout.strip()


class Started:
    """A command in the background, until the block ends."""

    def __init__(self, *arguments: str, where: Path, ready: str = "") -> None:
        self.log = where / f".{arguments[1]}.log"
        self.process = subprocess.Popen(
            [BIN / arguments[0], *arguments[1:]],
            cwd=where,
            stderr=self.log.open("w"),
            stdout=subprocess.DEVNULL,
        )
        until(lambda: ready in self.log.read_text(), f"{arguments}: {ready}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.log.unlink()


def until(condition, what: str, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def state(root: Path, id: str) -> str:
    with closing(sqlite3.connect(root / "flowerpower.db")) as db:
        return db.execute("SELECT state FROM jobs WHERE id = ?", (id,)).fetchone()[0]


def jobs(root: Path) -> None:
    """One in each state, with values of many kinds."""

    def fp(*arguments: str, code: int = 0) -> str:
        return command("flowerpower", *arguments, where=root, code=code)

    with Started("flowerpower", "start-worker", "--concurrency", "2", where=root, ready="worker"):
        fp("run-job", "etl", "--inputs", "count=4", "--quiet")
        fp("run-job", "etl", "--environment", "prod", "--param", "scaled.factor=3", "--quiet")
        fp("run-job", "kinds", "--quiet", "--inputs", "path=point.pickle")
        fp("run", "kinds", "--quiet", "--final-vars", "pickled")
        fp("run", "cached", "--quiet")
        fp("run-job", "broken", "--final-vars", "fails", "--quiet", code=1)
        fp("run-job", "broken", "--final-vars", "slow", "--timeout", "0.5", "--quiet", code=124)
        slow = fp("add-job", "broken", "--final-vars", "slow")
        until(lambda: state(root, slow) == "running", "slow runs")
        fp("cancel", slow)
        until(lambda: state(root, slow) == "cancelled", "slow is cancelled")
        late = fp("add-job", "etl", "--queue", "nobody", "--expires", "0.1")
        until(lambda: state(root, late) == "expired", "late has expired")
        fp("schedule", "--all")
        hours = ("--type", "interval", "--interval-params", "hours=6")
        fp("schedule", "etl", "--id", "paused", *hours, "--result-ttl", str(TEN_YEARS))
        fp("schedules", "pause", "paused")
    waits = {"inputs": {"count": 5}, "result_ttl": TEN_YEARS}
    script = f"""
        import asyncio, datetime
        from fp_async import Project

        async def main():
            async with Project() as project:
                key = {{"key": "waiting", "priority": 5}}
                await project.add_job("etl", **{waits}, **key)
                when = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
                await project.add_job("etl", run_at=when, **{waits})
                await project.add_job("etl", inputs={{"count": 2}}, queue="elsewhere", concurrency=2)

        asyncio.run(main())
        """
    (root / ".script.py").write_text(textwrap.dedent(script))
    command("python", ".script.py", where=root)
    (root / ".script.py").unlink()


def fleet(root: Path, device: Path) -> None:
    """A job of an agent that has ended, one that waits for it, and one that only it knows of."""

    def fp(*arguments: str, code: int = 0) -> str:
        return command("flowerpower", *arguments, where=root, code=code)

    agent = ("fp-agent", "run", "--broker", f"mqtt://127.0.0.1:{PORT}", "--name", "pi-7")
    agent += ("--tag", "site=berlin", "--heartbeat", "2")
    with Started("flowerpower", "broker", "--dev", "--port", PORT, where=root, ready="broker"):
        with Started(*agent, where=device, ready=""):
            with Started("flowerpower", "start-gateway", where=root):
                fp("run-job", "etl", "--on", "any:site=berlin", "--quiet")
                hourly = ("--type", "interval", "--interval-params", "hours=1")
                fp("schedule", "etl", "--id", "hourly", *hourly, "--on", "agent:pi-7", "--offline")
                until(lambda: offline(device) == 1, "the agent has its schedule")
                untold = fp(
                    "add-job",
                    "broken",
                    "--final-vars",
                    "slow",
                    "--inputs",
                    "seconds=3",
                    "--on",
                    "agent:pi-7",
                )
                until(lambda: state(root, untold) == "running", "untold runs")
            until(lambda: ended(device, untold), "the job has ended on the device")
        fp("add-job", "etl", "--inputs", "count=6", "--on", "agent:pi-7")


def offline(device: Path) -> int:
    with closing(sqlite3.connect(device / "fp-agent.db")) as db:
        return db.execute("SELECT count(*) FROM schedules").fetchone()[0]


def ended(device: Path, id: str) -> bool:
    with closing(sqlite3.connect(device / "fp-agent.db")) as db:
        row = db.execute("SELECT state, unreported FROM jobs WHERE id = ?", (id,)).fetchone()
    return row == ("succeeded", 1)


def settle(path: Path) -> None:
    """One file: nothing is left in a write-ahead log."""
    db = sqlite3.connect(path)
    for pragma in ("wal_checkpoint(TRUNCATE)", "journal_mode=DELETE"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    db.execute("VACUUM")
    db.close()


def main(folder: Path) -> None:
    root, device = folder / "project", folder / "device"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(textwrap.dedent(text).lstrip("\n"))
    device.mkdir()
    shutil.copytree(root / "conf", device / "conf")
    shutil.copytree(root / "pipelines", device / "pipelines")
    jobs(root)
    fleet(root, device)
    settle(root / "flowerpower.db")
    settle(device / "fp-agent.db")


if __name__ == "__main__":
    os.environ["PATH"] = f"{BIN}:{os.environ['PATH']}"
    main(Path(sys.argv[1]).resolve())
