"""What is measured of FlowerPower itself: jobs, schedules, idle workers. Times in seconds.

Every function works on a project of its own in a new folder. Rates of drained jobs are taken from
the rows themselves, from the first outcome to the last, so that no looking disturbs them.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import psutil

from fp_async import Project, orders
from fp_async.backend import Backend, connected
from fp_async.config import WorkerSettings
from fp_async.errors import JobNotFinishedError
from fp_async.firing import Firing
from fp_async.jobs import Find

INLINE = WorkerSettings(runner="inline")
SQLITE = "data_store:\n  type: sqlite\n"
_POSTGRES = "data_store:\n  type: postgres\n  uri: {}\nevent_broker:\n  type: postgres\n"
_PATIENCE = 90.0
_ACTIVE = Find(states=("queued", "running"), limit=1)


def postgres_conf(uri: str) -> str:
    """conf/scheduler.yml for PostgreSQL, whose LISTEN/NOTIFY wakes worker and client."""
    return _POSTGRES.format(uri)


def project(folder: Path, scheduler: str) -> Path:
    """A new project with the pipeline `noop`; its root."""
    (folder / "pipelines").mkdir(parents=True)
    (folder / "conf").mkdir()
    (folder / "pipelines" / "noop.py").write_text("async def done() -> int:\n    return 1\n")
    (folder / "conf" / "scheduler.yml").write_text(scheduler)
    return folder


@contextmanager
def command(root: Path, *arguments: str) -> Iterator[psutil.Process]:
    """`flowerpower <arguments>` as a process of its own, until the block ends."""
    program = str(Path(sys.executable).with_name("flowerpower"))
    with (root / "command.log").open("ab") as log:
        process = psutil.Popen(
            [program, *arguments, "--base-dir", str(root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@asynccontextmanager
async def worked(root: Path, runner: str) -> AsyncIterator[Project]:
    """An open project and a worker for it: `embedded`, or `start-worker --runner <runner>`."""
    if runner == "embedded":
        async with Project(root, worker=INLINE) as held:
            yield held
        return
    with command(root, "start-worker", "--runner", runner):
        async with Project(root) as held:
            yield held


# Jobs ---------------------------------------------------------------------------------------


async def added(root: Path, count: int) -> float:
    """Jobs added per second, by concurrent calls of `add_job` with no worker about."""
    async with Project(root) as held:
        held.flow("noop")
        await held.list_jobs(limit=1)  # connects
        began = time.perf_counter()
        await asyncio.gather(*(held.add_job("noop") for _ in range(count)))
        return count / (time.perf_counter() - began)


async def drained(root: Path, count: int, runner: str) -> float:
    """Jobs per second through a worker that starts when all of them are there."""
    async with worked(root, runner), asyncio.timeout(_PATIENCE), connected(root) as backend:
        while await backend.store.find(_ACTIVE):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        jobs = await backend.store.find(Find(limit=count + 1))
    assert len(jobs) == count
    assert all(job.state == "succeeded" for job in jobs)
    ended = [job.ended_at for job in jobs if job.ended_at is not None]
    first, last = min(ended), max(ended)
    return sum(at > first for at in ended) / (last - first)


async def latencies(root: Path, rounds: int, runner: str) -> list[float]:
    """`run_job` with an idle worker, one after another."""
    times = []
    async with worked(root, runner) as held:
        await _warm(held)
        for _ in range(rounds):
            began = time.perf_counter()
            await held.run_job("noop")
            times.append(time.perf_counter() - began)
    return times


async def _warm(held: Project) -> None:
    """Twenty jobs; the first waits until the worker is there."""
    deadline = time.monotonic() + _PATIENCE
    for _ in range(20):
        while True:
            try:
                await held.run_job("noop")
                break
            except JobNotFinishedError:
                if time.monotonic() > deadline:
                    raise


async def concurrent(root: Path, count: int) -> float:
    """Durable runs per second, all awaited at once."""
    async with Project(root, worker=INLINE) as held:
        await _warm(held)
        began = time.perf_counter()
        await asyncio.gather(*(held.run_job("noop") for _ in range(count)))
        return count / (time.perf_counter() - began)


# Idle workers -------------------------------------------------------------------------------


async def idle(roots: dict[str, Path], seconds: float, repeat: int) -> dict[str, list[float]]:
    """CPU share (1 is a core) of idle workers by runner, with their children, side by side."""
    shares: dict[str, list[float]] = {name: [] for name in roots}
    async with _workers(roots) as processes:
        await asyncio.sleep(3)
        for _ in range(repeat):
            before = {name: _cpu(process) for name, process in processes.items()}
            began = time.perf_counter()
            await asyncio.sleep(seconds)
            took = time.perf_counter() - began
            for name, process in processes.items():
                shares[name].append((_cpu(process) - before[name]) / took)
    return shares


@asynccontextmanager
async def _workers(roots: dict[str, Path]) -> AsyncIterator[dict[str, psutil.Process]]:
    """A worker for each root, each having done some jobs."""
    with ExitStack() as stack:
        processes = {}
        for name, root in roots.items():
            arguments = ("start-worker", "--runner", name.split()[-1])
            processes[name] = stack.enter_context(command(root, *arguments))
            async with Project(root) as held:
                await _warm(held)
        yield processes


def _cpu(process: psutil.Process) -> float:
    """Seconds of it and its children, those that have ended since included."""
    family = [process, *process.children(recursive=True)]
    return sum(sum(member.cpu_times()[:4]) for member in family)


# Schedules ----------------------------------------------------------------------------------


async def due_at_once(root: Path, count: int) -> tuple[float, list[float]]:
    """Seconds from the start of a scheduler until `count` schedules that have just become due
    have added their jobs, and how late each was.
    """
    async with Project(root) as held, connected(root) as backend:
        due = time.time() + 2 + count / 2000
        await _put(held, backend, [due] * count, 3600)
        await asyncio.sleep(due - time.time())
        firing = Firing(backend.store, backend.hub, 1.0)
        began = time.perf_counter()
        while await firing.fire_due() <= 0:
            pass
        took = time.perf_counter() - began
        return took, await _lateness(backend, count)


async def fires(root: Path, rate: int, seconds: int) -> list[float]:
    """How late the jobs are of `rate` schedules of one second each, evenly spread."""
    async with Project(root) as held, connected(root) as backend:
        first = time.time() + 1 + rate / 1000
        await _put(held, backend, [first + i / rate for i in range(rate)], 1)
        task = asyncio.create_task(Firing(backend.store, backend.hub, 1.0).run())
        await asyncio.sleep(first - time.time() + seconds)
        task.cancel()
        await asyncio.wait([task])
        late = await _lateness(backend, 2 * rate * seconds)
    if len(late) < 0.95 * rate * seconds:
        raise AssertionError(f"only {len(late)} of {rate * seconds} fires: it cannot keep up")
    return late


async def _put(held: Project, backend: Backend, times: list[float], seconds: float) -> None:
    """Schedules of that interval, whose first times are these."""
    rows = [
        orders.schedule(
            *(held.flows, "noop", "interval", ()),
            {"id": f"s{number}", "seconds": seconds},
            at - seconds,
        )
        for number, at in enumerate(times)
    ]
    await asyncio.gather(*(backend.store.put(row) for row in rows))


async def _lateness(backend: Backend, limit: int) -> list[float]:
    """`created_at - nominal_at` of every job: the row is on disk one commit later."""
    jobs = await backend.store.find(Find(limit=limit))
    return [job.created_at - job.nominal_at for job in jobs if job.nominal_at is not None]
