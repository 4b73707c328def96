"""Worker processes of the installed command: how they die, end, and look after each other."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import psutil
import pytest
import services
from fleet import fleet, make

from fp_async import Project
from fp_async.errors import (
    JobCancelledError,
    JobFailedError,
    JobNotFinishedError,
    JobTimeoutError,
)
from fp_async.jobs import LEASE
from fp_async.processes import has_died, owner

SQLITE = "data_store:\n  type: sqlite\n"

FLOW = """
import asyncio
import ctypes
import os
import subprocess
import sys
import time


def pid() -> int:
    return os.getpid()


def stuck(path: str) -> int:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\\n")
        file.flush()
    time.sleep(3600)
    return 1


def stuck_with_child(path: str) -> int:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    with open(path, "a") as file:
        file.write(f"{child.pid}\\n")
        file.flush()
    time.sleep(3600)
    return 1


def killed() -> int:
    print("about to go", flush=True)
    os.kill(os.getpid(), 9)
    return 1


def segfault() -> int:
    return ctypes.string_at(0)


def left() -> int:
    os._exit(7)


def greedy() -> int:
    return len(bytearray(4 * 2**30))


def printed() -> int:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    return 1


def short(seconds: float) -> int:
    time.sleep(seconds)
    return 1


def folder() -> str:
    return os.getcwd()


def elsewhere() -> int:
    os.chdir("/")
    sys.stdout = None
    return 1


def closing() -> int:
    sys.stdout.close()
    os.close(2)
    return 1


def not_utf8() -> int:
    print("\\udcff")
    raise ValueError("\\udcff bad " + "x" * 100_000)


async def suicidal() -> int:
    asyncio.current_task().cancel()
    await asyncio.sleep(1)
    return 1


async def blocking(path: str) -> int:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\\n")
        file.flush()
    time.sleep(13)
    return 1
"""


@pytest.fixture
def project(tmp_path) -> Project:
    made = make(tmp_path / "project", SQLITE)
    (made.root / "pipelines" / "flow.py").write_text(FLOW)
    return made


@pytest.fixture
def flock(project):
    with fleet(project.root) as started:
        yield started


async def until_written(path: Path, count: int = 1) -> list[int]:
    """The numbers in a file, once there are so many."""
    with anyio.fail_after(20):
        while not path.exists() or len(path.read_text().split()) < count:
            await anyio.sleep(0.01)
    return [int(word) for word in path.read_text().split()]


async def ended(project, id, seconds=30):
    with anyio.fail_after(seconds):
        async for event in project.watch(id):
            last = event
    return last.job


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until_gone(*pids: int) -> None:
    with anyio.fail_after(5):
        while not all(map(gone, pids)):
            await anyio.sleep(0.01)


# Runner processes --------------------------------------------------------------------------------


async def test_jobs_run_in_processes_that_are_kept_warm(project, flock):
    worker = flock.start("w", "start-worker", "--concurrency", "1")
    pids = {(await project.run_job("flow", final_vars=["pid"]))["pid"] for _ in range(3)}
    assert len(pids) == 1
    assert pids.isdisjoint({worker.pid, os.getpid()})


@pytest.mark.parametrize(
    ("node", "text"),
    [("killed", "SIGKILL"), ("segfault", "SIGSEGV"), ("left", "exit code 7")],
)
async def test_a_process_that_dies_is_a_crash_and_is_replaced(project, flock, node, text):
    flock.start("w", "start-worker", "--concurrency", "1")
    id = await project.add_job("flow", final_vars=[node], max_crashes=2)
    job = await ended(project, id)
    assert (job.state, job.attempt, job.crashes, job.errors) == ("failed", 2, 2, 0)
    assert "crashed 2 times" in job.reason
    assert text in job.reason
    if node == "killed":
        assert "about to go" in job.log
    assert "pid" in await project.run_job("flow", final_vars=["pid"])


async def test_a_job_leaves_its_process_as_it_was_or_takes_it_along(project, flock):
    flock.start("w", "start-worker", "--concurrency", "1")
    before = await project.run_job("flow", final_vars=["folder", "pid"])
    await project.run_job("flow", final_vars=["elsewhere"])
    assert await project.run_job("flow", final_vars=["folder", "pid"]) == before
    for _ in range(2):
        id = await project.add_job("flow", final_vars=["closing"])
        job = await ended(project, id)
        assert (job.state, job.attempt) == ("succeeded", 1)
    after = await project.run_job("flow", final_vars=["folder", "pid", "printed"])
    assert after["folder"] == before["folder"]
    assert after["pid"] != before["pid"]


@pytest.mark.parametrize("runner", ["process", "inline"])
async def test_odd_ends_fail_the_job_once_and_nothing_else(project, flock, runner):
    flock.start("w", "start-worker", "--concurrency", "1", "--runner", runner)
    id = await project.add_job("flow", final_vars=["not_utf8"])
    job = await ended(project, id)
    assert (job.state, job.attempt, job.failure.kind) == ("failed", 1, "ValueError")
    assert "\\udcff bad" in job.failure.message
    assert len(job.failure.message) < 5000
    id = await project.add_job("flow", final_vars=["suicidal"])
    job = await ended(project, id)
    assert (job.state, job.attempt, job.failure.kind) == ("failed", 1, "CancelledError")
    assert "pid" in await project.run_job("flow", final_vars=["pid"])
    await until_logged(flock, "attempt 1: the pipeline cancelled the task")


async def test_on_crash_fail_never_runs_twice(project, flock):
    flock.start("w", "start-worker")
    with pytest.raises(JobFailedError, match="SIGKILL"):
        await project.run_job("flow", final_vars=["killed"], on_crash="fail")
    (job,) = await project.list_jobs()
    assert (job.attempt, job.crashes) == (1, 1)


async def test_a_timeout_kills_sync_code_and_all_that_it_started(project, flock, tmp_path):
    flock.start("w", "start-worker", "--concurrency", "1")
    path = tmp_path / "pids"
    await project.run_job("flow", final_vars=["pid"])  # on a busy machine a process starts late
    with pytest.raises(JobTimeoutError, match="timeout of 0.5 s; killed with its process: stuck"):
        await project.run_job(
            "flow", inputs={"path": str(path)}, final_vars=["stuck_with_child"], timeout=0.5
        )
    await until_gone(*await until_written(path))
    assert "pid" in await project.run_job("flow", final_vars=["pid"])


async def test_cancelling_kills_sync_code(project, flock, tmp_path):
    flock.start("w", "start-worker")
    path = tmp_path / "pids"
    id = await project.add_job("flow", inputs={"path": str(path)}, final_vars=["stuck"])
    pids = await until_written(path)
    await project.cancel_job(id)
    with pytest.raises(JobCancelledError):
        await project.get_result(id, wait=10)
    await until_gone(*pids)


async def test_memory_is_limited(project, flock):
    flock.start("w", "start-worker", "--memory-limit", "1024")
    with pytest.raises(JobFailedError, match="MemoryError"):
        await project.run_job("flow", final_vars=["greedy"])


async def test_what_a_job_prints_is_in_its_log(project, flock):
    flock.start("w", "start-worker")
    id = await project.add_job("flow", final_vars=["printed"])
    job = await ended(project, id)
    assert "to stdout\n" in job.log
    assert "to stderr\n" in job.log


async def test_an_edited_pipeline_runs_as_it_is_now(project, flock):
    flock.start("w", "start-worker", "--concurrency", "1")
    await project.run_job("flow", final_vars=["pid"])
    (project.root / "pipelines" / "flow.py").write_text("def pid() -> int:\n    return -1\n")
    assert await project.run_job("flow", final_vars=["pid"]) == {"pid": -1}


async def test_processes_die_with_their_worker(project, flock, tmp_path):
    flock.start("w", "start-worker")
    path = tmp_path / "pids"
    await project.add_job("flow", inputs={"path": str(path)}, final_vars=["stuck"])
    pids = await until_written(path)
    flock.kill("w")
    await until_gone(*pids)


# A worker that dies ------------------------------------------------------------------------------


async def test_a_restarted_worker_runs_its_predecessors_job_within_a_second(
    project, flock, tmp_path
):
    flock.start("w", "start-worker", "--concurrency", "1")
    path = tmp_path / "pids"
    await project.add_job("flow", inputs={"path": str(path)}, final_vars=["stuck"])
    await until_written(path)
    flock.kill("w")
    flock.start("w", "start-worker", "--concurrency", "1")
    async with project:
        id = (await project.list_jobs())[0].id
        with anyio.fail_after(20):
            async for event in project.watch(id):
                if event.attempt == 2:
                    break
        member = await alive_since(project)
    job = await project.get_job(id)
    assert (job.state, job.crashes) == ("running", 1)
    assert time.time() - member < 5.0  # it was not the lease that ended


async def alive_since(project) -> float:
    import msgspec

    from fp_async.backend import connected

    async with connected(project.root) as backend:
        with anyio.fail_after(5):
            while not (members := await backend.store.members("worker")):
                await anyio.sleep(0.01)
    return max(msgspec.json.decode(member.info)["started_at"] for member in members)


async def test_another_worker_takes_a_dead_ones_job_within_the_lease(project, flock, tmp_path):
    flock.start("w1", "start-worker", "--concurrency", "1")
    path = tmp_path / "pids"
    id = await project.add_job("flow", inputs={"path": str(path)}, final_vars=["stuck"])
    await until_written(path)
    flock.start("w2", "start-worker", "--concurrency", "1")
    flock.kill("w1")
    killed = time.monotonic()
    await until_written(path, 2)
    assert time.monotonic() - killed < 15
    assert (await project.get_job(id)).attempt == 2


async def test_a_frozen_worker_loses_its_job_and_cannot_report_it(project, flock, tmp_path):
    """As on another machine: it lives, so only its lease tells."""
    first = flock.start("w1", "start-worker", "--concurrency", "1")
    path = tmp_path / "pids"
    id = await project.add_job("flow", inputs={"path": str(path)}, final_vars=["stuck"])
    await until_written(path)
    os.kill(first.pid, signal.SIGSTOP)
    frozen = time.monotonic()
    flock.start("w2", "start-worker", "--concurrency", "1")
    await until_written(path, 2)
    assert LEASE - 3 < time.monotonic() - frozen < 15
    os.kill(first.pid, signal.SIGCONT)
    pids = await until_written(path, 2)
    with anyio.fail_after(10):  # it finds that the job is lost, and kills its attempt
        while not gone(pids[0]):
            await anyio.sleep(0.05)
    job = await project.get_job(id)
    assert (job.state, job.attempt) == ("running", 2)


async def test_on_crash_fail_ends_a_dead_workers_job(project, flock, tmp_path):
    flock.start("w1", "start-worker")
    path = tmp_path / "pids"
    id = await project.add_job(
        "flow", inputs={"path": str(path)}, final_vars=["stuck"], on_crash="fail"
    )
    await until_written(path)
    flock.kill("w1")
    flock.start("w2", "start-worker")
    with pytest.raises(JobFailedError, match="its worker died"):
        await project.get_result(id, wait=20)


@pytest.mark.slow
async def test_code_that_blocks_the_loop_does_not_lose_its_lease(project, flock, tmp_path):
    flock.start("w1", "start-worker", "--runner", "inline")
    path = tmp_path / "pids"
    id = await project.add_job("flow", inputs={"path": str(path)}, final_vars=["blocking"])
    await until_written(path)
    flock.start("w2", "start-worker", "--runner", "inline")
    job = await ended(project, id)
    assert (job.state, job.attempt) == ("succeeded", 1)
    assert len(await until_written(path)) == 1


# A worker that is told to end --------------------------------------------------------------------


async def test_sigterm_lets_running_jobs_end_and_takes_no_more(project, flock):
    flock.start("w", "start-worker", "--concurrency", "1")
    id = await project.add_job("flow", inputs={"seconds": 1.0}, final_vars=["short"])
    async for event in project.watch(id):
        if event.state == "running":
            break
    later = await project.add_job("flow", inputs={"seconds": 0.0}, final_vars=["short"])
    assert await asyncio.to_thread(flock.stop, "w") == 0
    assert (await project.get_job(id)).state == "succeeded"
    assert (await project.get_job(later)).state == "queued"


async def test_a_second_signal_gives_back_at_once_and_counts_nothing(project, flock, tmp_path):
    worker = flock.start("w", "start-worker")
    path = tmp_path / "pids"
    id = await project.add_job("flow", inputs={"path": str(path)}, final_vars=["stuck"])
    pids = await until_written(path)
    worker.send_signal(signal.SIGTERM)
    await anyio.sleep(0.3)  # so that the two signals are two
    worker.send_signal(signal.SIGTERM)
    await asyncio.to_thread(worker.wait, 10)
    job = await project.get_job(id)
    assert (job.state, job.attempt, job.errors, job.crashes) == ("queued", 1, 0, 0)
    await until_gone(*pids)


async def test_the_grace_time_has_an_end(project, flock, tmp_path):
    (project.root / "conf" / "scheduler.yml").write_text(SQLITE + "worker:\n  grace: 0.5\n")
    flock.start("w", "start-worker")
    path = tmp_path / "pids"
    id = await project.add_job("flow", inputs={"path": str(path)}, final_vars=["stuck"])
    await until_written(path)
    await asyncio.to_thread(flock.stop, "w")
    job = await project.get_job(id)
    assert (job.state, job.errors, job.crashes) == ("queued", 0, 0)


async def test_what_must_not_run_twice_is_not_given_back(project, flock, tmp_path):
    (project.root / "conf" / "scheduler.yml").write_text(SQLITE + "worker:\n  grace: 0.5\n")
    flock.start("w", "start-worker")
    path = tmp_path / "pids"
    inputs = {"path": str(path)}
    id = await project.add_job("flow", inputs=inputs, final_vars=["stuck"], on_crash="fail")
    await until_written(path)
    await asyncio.to_thread(flock.stop, "w")
    job = await project.get_job(id)
    assert (job.state, job.attempt, job.failure.kind) == ("failed", 1, "Interrupted")
    assert job.reason == "its worker was ended"


async def test_run_job_sees_at_once_that_the_only_worker_has_died(project, flock):
    flock.start("w", "start-worker")
    await project.run_job("flow", final_vars=["pid"])
    flock.kill("w")
    with anyio.fail_after(8), pytest.raises(JobNotFinishedError, match="no worker serves"):
        await project.run_job("flow", final_vars=["pid"])


# Who lives ---------------------------------------------------------------------------------------


def test_an_owner_is_known_to_live_or_to_have_died():
    mine = owner("worker")
    assert not has_died(mine)
    name, boot, space, pid, started = mine.split("/")
    assert has_died("/".join((name, boot, space, pid, str(int(started) + 1))))
    assert has_died(f"{name}/{boot}/{space}/4194304/{started}")
    assert not has_died(f"{name}/another-boot/{space}/4194304/{started}")
    assert not has_died(f"{name}/{boot}/1/4194304/{started}")
    assert not has_died("nonsense")


HIDDEN = """
import os, sys
from fp_async.processes import has_died
[has_died(name) for name in sys.argv[1:]]  # what is imported late: Python may not be ours to read
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
assert not os.path.exists(f"/proc/{os.getppid()}/stat"), "it is not hidden"
print([has_died(name) for name in sys.argv[1:]])
"""


def test_a_process_that_is_hidden_has_not_died():
    """As under hidepid=2, or a unit's ProtectProc=invisible."""
    mine = owner("worker")
    gone = mine.split("/")
    gone[3] = "4194304"
    mount = 'mount -t proc -o hidepid=2 proc /proc && exec "$0" "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, sys.executable, "-c", HIDDEN]
    done = subprocess.run([*command, mine, "/".join(gone)], capture_output=True, text=True)
    if done.returncode and "not permitted" in done.stderr:
        services.missing("/proc cannot be mounted: that needs rights")
    assert done.stdout == "[False, True]\n", done.stderr


async def test_a_worker_waits_for_a_store_that_is_not_there_yet(tmp_path, flock, project):

    with services.Postgres(started=False) as server:
        server_uri = server.uri
        (project.root / "conf" / "scheduler.yml").write_text(
            f"data_store:\n  type: postgres\n  uri: {server_uri}\n"
        )
        flock.start("w", "start-worker", "--concurrency", "1")
        await until_logged(flock, "unavailable, trying again")
        await asyncio.to_thread(server.start)
        assert "pid" in await project.run_job("flow", final_vars=["pid"])


async def until_logged(flock, text: str) -> None:
    with anyio.fail_after(20):
        while text not in (flock.root / "fleet.log").read_text(errors="replace"):
            await anyio.sleep(0.05)
