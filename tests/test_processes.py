"""Processes of jobs: what they leave behind, what is killed with them, how they end."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import subprocess
import sys

import anyio
import psutil
import pytest
from fleet import fleet, make
from test_workers import ended, gone, until_gone, until_written

from fp_async.errors import JobCancelledError, JobFailedError, JobTimeoutError
from fp_async.processes import kill
from fp_async.runtime import process_tree

CONF = "data_store:\n  type: sqlite\nworker:\n  grace: {grace}\n  concurrency: 1\n"

FLOW = '''
import atexit
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

os.environ["SET_AT_IMPORT"] = "1"
logging.getLogger("imported").setLevel(logging.ERROR)
POOL = ThreadPoolExecutor(2)
SLEEP = [sys.executable, "-c", "import time; time.sleep(3600)"]
DAEMON = """
import os, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\\\n")
time.sleep(3600)
"""


def _note(path, text):
    with open(path, "a") as file:
        file.write(f"{text}\\n")


def pid() -> int:
    return os.getpid()


def ours(path: str) -> int:
    """A subprocess in a session of its own, and a daemon of it."""
    child = subprocess.Popen(SLEEP, start_new_session=True, env={})
    subprocess.run([sys.executable, "-c", DAEMON, path], env={}, check=True)
    while not os.path.exists(path):
        time.sleep(0.01)
    _note(path, child.pid)
    return child.pid


def stuck(ours: int) -> int:
    time.sleep(3600)
    return 1


async def stuck_on_the_loop(ours: int) -> int:
    import asyncio
    await asyncio.sleep(3600)
    return 1


def crashed(ours: int) -> int:
    os.kill(os.getpid(), 9)
    return 1


def registered(path: str) -> int:
    atexit.register(_note, path, "atexit")
    atexit.register(print, "said at exit")
    return os.getpid()


def threaded(path: str) -> bool:
    def work():
        time.sleep(0.5)
        _note(path, "thread")
    thread = threading.Thread(target=work)
    thread.start()
    return thread.daemon


def pooled(path: str) -> int:
    def work():
        time.sleep(0.5)
        _note(path, "pool")
    POOL.submit(work)
    return os.getpid()


def endless() -> int:
    threading.Thread(target=time.sleep, args=(3600,), name="endless").start()
    return os.getpid()


def hanging_at_exit() -> int:
    atexit.register(time.sleep, 3600)
    return os.getpid()


def found() -> dict:
    mask = os.umask(0)
    os.umask(mask)
    root = logging.getLogger()
    return {
        "LEFT": os.environ.get("LEFT"),
        "PATH": "PATH" in os.environ,
        "SET_AT_IMPORT": os.environ.get("SET_AT_IMPORT"),
        "timezone": time.tzname[0],
        "umask": mask,
        "root": (root.level, len(root.handlers), logging.root.manager.disable),
        "own": (logging.getLogger("own").level, len(logging.getLogger("own").handlers)),
        "imported": logging.getLogger("imported").level,
        "SIGUSR1": signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL,
        "timer": signal.getitimer(signal.ITIMER_REAL),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "warnings": any(each[0] == "error" for each in warnings.filters),
        "path": "/left" in sys.path,
        "recursion": sys.getrecursionlimit(),
    }


def changing() -> int:
    os.environ["LEFT"] = "1"
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    del os.environ["PATH"]
    os.environ["SET_AT_IMPORT"] = "2"
    os.umask(0o077)
    logging.getLogger().handlers.clear()
    logging.disable(logging.CRITICAL)
    logging.getLogger("own").addHandler(logging.StreamHandler())
    logging.getLogger("own").setLevel(1)
    logging.getLogger("imported").setLevel(1)
    signal.setitimer(signal.ITIMER_REAL, 3000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    warnings.simplefilter("error")
    sys.path.append("/left")
    sys.setrecursionlimit(500)
    return os.getpid()


async def handling() -> int:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    return os.getpid()


async def lowering() -> int:
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
    return os.getpid()


def seeded() -> float:
    random.seed(1)
    return random.random()


def drawn() -> float:
    return random.random()
'''


@pytest.fixture
def grace():
    return 30


@pytest.fixture
def project(tmp_path, grace):
    made = make(tmp_path / "project", CONF.format(grace=grace))
    (made.root / "pipelines" / "flow.py").write_text(FLOW)
    return made


@pytest.fixture
def flock(project):
    with fleet(project.root) as started:
        yield started


@pytest.fixture
def strangers():
    """A process of nobody's job, in a session of its own."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, start_new_session=True)
    yield process
    assert process.poll() is None
    process.kill()
    process.communicate()


async def begin(flock, *arguments):
    """Start a worker, and wait until it is at work: on a busy machine that takes a while."""
    worker = flock.start("w", *arguments)
    with anyio.fail_after(120):
        while "queues default" not in (flock.root / "fleet.log").read_text():
            await anyio.sleep(0.05)
    return worker


async def one(project, node, **options):
    return (await project.run_job("flow", final_vars=[node], **options))[node]


# B8: what is killed with a job ------------------------------------------------------------------


@pytest.mark.parametrize("node", ["stuck", "stuck_on_the_loop"])
async def test_b8_a_timeout_kills_sessions_and_daemons_too(
    project, flock, tmp_path, node, strangers
):
    await begin(flock, "start-worker")
    path = tmp_path / "pids"
    await one(project, "pid")
    with pytest.raises(JobTimeoutError):
        await one(project, node, inputs={"path": str(path)}, timeout=5)
    await until_gone(*await until_written(path, 2))
    assert isinstance(await one(project, "pid"), int)


async def test_b8_a_cancel_kills_them_and_nothing_of_other_jobs(
    project, flock, tmp_path, strangers
):
    await begin(flock, "start-worker", "--concurrency", "2")
    other, path = tmp_path / "others", tmp_path / "pids"
    kept = await project.add_job("flow", inputs={"path": str(other)}, final_vars=["stuck"])
    others = await until_written(other, 2)
    id = await project.add_job("flow", inputs={"path": str(path)}, final_vars=["stuck"])
    pids = await until_written(path, 2)
    await project.cancel_job(id)
    with pytest.raises(JobCancelledError):
        await project.get_result(id, wait=20)
    await until_gone(*pids)
    assert not any(map(gone, others))
    assert (await project.get_job(kept)).state == "running"
    await project.cancel_job(kept)
    await until_gone(*others)


async def test_b8_a_crash_kills_them(project, flock, tmp_path, strangers):
    worker = await begin(flock, "start-worker")
    path = tmp_path / "pids"
    with pytest.raises(JobFailedError):
        await one(project, "crashed", inputs={"path": str(path)}, on_crash="fail")
    await until_gone(*await until_written(path, 2))
    assert isinstance(await one(project, "pid"), int)
    zombies = [each.status() for each in psutil.Process(worker.pid).children()]
    assert psutil.STATUS_ZOMBIE not in zombies  # what it adopts it reaps


async def test_b8_what_a_job_that_succeeds_leaves_behind_lives_on(project, flock, tmp_path):
    await begin(flock, "start-worker", "--max-jobs-per-child", "1")
    path = tmp_path / "pids"
    await one(project, "ours", inputs={"path": str(path)})
    pids = await until_written(path, 2)
    crash = tmp_path / "others"
    with pytest.raises(JobFailedError):
        await one(project, "crashed", inputs={"path": str(crash)}, on_crash="fail")
    await until_gone(*await until_written(crash, 2))
    assert not any(map(gone, pids))
    await asyncio.to_thread(flock.stop, "w")
    assert not any(map(gone, pids))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_b8_a_number_that_was_given_away_is_not_killed(strangers):
    child = subprocess.Popen([sys.executable, "-c", "pass"], start_new_session=True)
    child.wait()
    child.pid = strangers.pid  # what a number that was reaped and given to another one looks like
    kill(child)
    assert strangers.poll() is None


def test_b8_a_process_is_no_subreaper_unless_it_is_a_workers():
    code = (
        "import ctypes, fp_async.project, fp_async.worker, fp_async.runner\n"
        "flag = ctypes.c_int()\n"
        "ctypes.CDLL(None).prctl(37, ctypes.byref(flag), 0, 0, 0)\n"
        "print(flag.value)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_children_are_found_with_and_without_the_kernels_list():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in process_tree._listed(os.getpid())
        assert child.pid in process_tree._searched(os.getpid())
        assert child.pid in process_tree.descendants(os.getpid())
    finally:
        child.kill()
        child.communicate()


# B7: how the process of jobs ends ---------------------------------------------------------------


async def test_b7_a_process_that_is_recycled_ends_as_python_does(project, flock, tmp_path):
    await begin(flock, "start-worker", "--max-jobs-per-child", "1")
    path = tmp_path / "out"
    id = await project.add_job("flow", inputs={"path": str(path)}, final_vars=["registered"])
    job = await ended(project, id)
    assert path.read_text() == "atexit\n"
    assert "said at exit" in job.log
    assert await one(project, "pid") != await one(project, "pid")


async def test_b7_a_worker_that_ends_lets_its_processes_end(project, flock, tmp_path):
    await begin(flock, "start-worker")
    path = tmp_path / "out"
    pid = await one(project, "registered", inputs={"path": str(path)})
    assert await one(project, "pid") == pid
    assert not path.exists()
    assert await asyncio.to_thread(flock.stop, "w") == 0
    assert path.read_text() == "atexit\n"
    assert "said at exit" in (flock.root / "fleet.log").read_text()


async def test_b7_threads_and_pools_of_a_job_are_waited_for(project, flock, tmp_path):
    await begin(flock, "start-worker")
    first, second = tmp_path / "first", tmp_path / "second"
    pid = await one(project, "pid")
    assert await one(project, "threaded", inputs={"path": str(first)}) is False
    assert first.read_text() == "thread\n"
    for count in (1, 2):  # its idle threads are waited for by none
        assert await one(project, "pooled", inputs={"path": str(second)}) == pid
        assert second.read_text() == count * "pool\n"
    assert await one(project, "pid") == pid


@pytest.mark.parametrize("grace", [0.5])
async def test_b7_after_grace_it_is_killed_and_the_job_says_so(project, flock, grace):
    await begin(flock, "start-worker")
    id = await project.add_job("flow", final_vars=["endless"])
    job = await ended(project, id)
    assert job.state == "succeeded"
    assert "threads still run 0.5 s after the job, its process is killed: endless" in job.log
    await until_gone((await project.get_result(id))["endless"])
    pid = await one(project, "hanging_at_exit")
    await asyncio.to_thread(flock.stop, "w")
    await until_gone(pid)
    assert "had not ended within" in (flock.root / "fleet.log").read_text()


# C12: what a job finds --------------------------------------------------------------------------


@pytest.mark.parametrize("node", ["changing", "handling"])
async def test_c12_a_job_finds_its_process_as_the_first_one_did(project, flock, node):
    await begin(flock, "start-worker")
    before = await one(project, "found")
    assert before["SET_AT_IMPORT"] == "1"
    assert before["imported"] == 40
    pid = await one(project, node)
    assert await one(project, "found") == before
    assert await one(project, "pid") == pid  # in the same process


async def test_c12_what_cannot_be_put_back_ends_the_process(project, flock):
    await begin(flock, "start-worker")
    before = await one(project, "found")
    pid = await one(project, "lowering")
    assert await one(project, "found") == before
    assert await one(project, "pid") != pid


async def test_c12_a_seed_is_the_jobs_own(project, flock):
    await begin(flock, "start-worker")
    assert await one(project, "seeded") == await one(project, "seeded")
    assert await one(project, "drawn") != await one(project, "drawn")
    await one(project, "seeded")
    assert await one(project, "drawn") != 0.8474337369372327  # what comes next after that seed


def test_c12_a_seed_of_numpy_is_forgotten_and_only_then_costs_something():
    from fp_async.runtime.surroundings import Surroundings

    numbers = importlib.import_module("numpy.random")
    surroundings = Surroundings()
    numbers.seed(1)
    first, then = numbers.rand(2)
    surroundings.restore()
    numbers.seed(1)
    assert numbers.rand() == first
    surroundings.restore()
    assert numbers.rand() != then
    surroundings.restore()
    before = numbers.get_state()[1].tolist()
    surroundings.restore()
    assert numbers.get_state()[1].tolist() == before


async def test_c12_max_jobs_per_child_of_the_configuration(project, flock):
    conf = project.root / "conf" / "scheduler.yml"
    conf.write_text(conf.read_text() + "  max_jobs_per_child: 2\n")
    await begin(flock, "start-worker")
    first, second, third = [await one(project, "pid") for _ in range(3)]
    assert first == second != third
