"""A project whose jobs leave a trace outside of every store, and the processes that work on it.

Each start of a job is one fsynced line in `starts`: job id, attempt, number, and the worker it ran
under. `kills` are the workers that were killed. What a store says is checked against both.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fp_async import Project
from fp_async.errors import StoreUnavailableError

PIPELINE = """
import os
import time

from fp_async import current_job


def value(number: int, seconds: float, starts: str) -> int:
    job = current_job()
    line = f"{job.id} {job.attempt} {number} {os.getppid()}\\n".encode()
    descriptor = os.open(starts, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line)
    os.fsync(descriptor)
    os.close(descriptor)
    time.sleep(seconds)
    return number * 2
"""

COMMAND = str(Path(sys.executable).with_name("flowerpower"))


def make(root: Path, scheduler: str) -> Project:
    """A project with that pipeline and this conf/scheduler.yml."""
    (root / "pipelines").mkdir(parents=True)
    (root / "conf").mkdir()
    (root / "pipelines" / "work.py").write_text(PIPELINE)
    (root / "conf" / "scheduler.yml").write_text(scheduler)
    return Project(root)


class Fleet:
    """Workers and schedulers as separate processes, started by the installed command."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.killed: set[int] = set()
        self.processes: dict[str, subprocess.Popen] = {}
        self.log = (root / "fleet.log").open("ab")

    def start(self, name: str, *arguments: str) -> subprocess.Popen:
        """Start `flowerpower <arguments>` under a name of the test's own."""
        process = subprocess.Popen(
            [COMMAND, *arguments, "--base-dir", str(self.root)],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        self.processes[name] = process
        return process

    def kill(self, name: str) -> int:
        """kill -9 the process alone: what it has started must go by itself."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.killed.add(process.pid)
        return process.pid

    def stop(self, name: str, timeout: float = 20) -> int:
        """SIGTERM, and its exit code."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout)

    def close(self) -> None:
        for name in list(self.processes):
            self.kill(name)
        self.log.close()

    @property
    def starts(self) -> Path:
        return self.root / "starts"

    def lines(self) -> list[tuple[str, int, int, int]]:
        """(job id, attempt, number, worker's pid) of every start so far."""
        if not self.starts.exists():
            return []
        rows = [line.split() for line in self.starts.read_text().splitlines()]
        return [(id, int(attempt), int(number), int(pid)) for id, attempt, number, pid in rows]

    def inputs(self, number: int, seconds: float = 0.0) -> dict:
        return {"number": number, "seconds": seconds, "starts": str(self.starts)}


@contextmanager
def fleet(root: Path) -> Iterator[Fleet]:
    """Nothing of it is left afterwards."""
    made = Fleet(root)
    try:
        yield made
    except BaseException:
        made.log.flush()
        print((root / "fleet.log").read_text(errors="replace")[-4000:])
        raise
    finally:
        made.close()


def scale(full: int) -> int:
    """How many: all of it for scripts/chaos, else a tenth. FP_CHAOS=1 asks for all."""
    return full if os.environ.get("FP_CHAOS") == "1" else max(full // 10, 1)


def seeded() -> random.Random:
    """Chance that can be repeated: the seed is printed, and FP_SEED sets it."""
    seed = int(os.environ.get("FP_SEED") or time.time_ns() % 1_000_000)
    print(f"FP_SEED={seed}")
    return random.Random(seed)


async def until_ended(project: Project, count: int, timeout: float) -> dict:
    """Wait until no job is active, and there are at least so many; jobs by id."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            jobs = {job.id: job for job in await project.list_jobs(limit=10 * count + 1000)}
        except StoreUnavailableError:
            jobs = {}
        if len(jobs) >= count and all(job.finished for job in jobs.values()):
            return jobs
        if time.monotonic() > deadline:
            states = defaultdict(int)
            for job in jobs.values():
                states[job.state] += 1
            raise AssertionError(f"not all jobs have ended in {timeout:.0f} s: {dict(states)}")
        await asyncio.sleep(0.5)


def check(jobs: dict, fleet: Fleet, *, given_back: bool = False) -> dict:
    """One outcome each, no attempt twice, and every further start explained by a kill."""
    starts = defaultdict(list)
    for id, attempt, _, pid in fleet.lines():
        starts[id].append((attempt, pid))
    assert starts.keys() <= jobs.keys(), "a job ran that is in no store"
    for id, job in jobs.items():
        began = starts[id]
        attempts = [attempt for attempt, _ in began]
        assert began, f"{id} has an outcome and never ran"
        assert len(attempts) == len(set(attempts)), f"{id} used an attempt number twice: {began}"
        assert max(attempts) <= job.attempt
        if not given_back:
            assert job.attempt == job.crashes + 1, (id, job.attempt, job.crashes)
            unexplained = [pid for _, pid in sorted(began)[:-1] if pid not in fleet.killed]
            assert not unexplained, f"{id} ran again though {unexplained} lived: {began}"
    reruns = sum(len(began) - 1 for began in starts.values())
    return {"jobs": len(jobs), "kills": len(fleet.killed), "second starts": reruns}
