"""Child processes: `executor: processpool` with real processes and real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

from fp_async import ExecutorSettings, NodeCrashedError, NodeError, Project, RunTimeoutError
from fp_async.remote import ProcessDiedError, RemoteTracebackError

SOURCE = """
    import os, signal, sys, time
    from pathlib import Path

    def pid() -> int:
        return os.getpid()
    def shouting() -> int:
        print("to stdout")
        os.write(1, b"to fd 1")
        return 1
    def stuck(marker: Path) -> int:
        marker.write_text(str(os.getpid()))
        time.sleep(600)
    def killed() -> int:
        os.kill(os.getpid(), signal.SIGKILL)
    def leaving() -> int:
        os._exit(7)
    def raising(text: str) -> int:
        raise LookupError(text)
    class Odd(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a} and {b}")
    def raising_unpicklable() -> int:
        raise Odd(1, 2)
    def unpicklable() -> object:
        return lambda: 1
    def big(n: int) -> bytes:
        return b"x" * n
    def ones(n: int) -> object:
        import numpy
        return numpy.ones(n)
    def array(ones: object) -> object:
        return ones
    async def on_loop() -> int:
        return os.getpid()
"""


@pytest.fixture
async def project(make_project):
    async with make_project(flow=SOURCE) as project:
        yield project


def run(project, final_vars, executor="processpool", **options):
    return project.run("flow", final_vars=final_vars, executor=executor, **options)


def children() -> set[psutil.Process]:
    """The processes of these tests: others of the same pytest may hold an engine's open."""
    ours = [each for each in psutil.Process().children() if each not in _others]
    return {*ours, *(below for each in ours for below in each.children(recursive=True))}


_others: set[psutil.Process] = set()


@pytest.fixture(autouse=True, scope="module")
def _processes_of_other_tests():
    _others.update(psutil.Process().children())


@pytest.fixture
def marker(tmp_path):
    """A pipe that a node writes its pid to; reading waits for it."""
    path = tmp_path / "marker"
    os.mkfifo(path)
    return path


async def written(marker) -> int:
    async with asyncio.timeout(60):
        return int(await asyncio.to_thread(marker.read_text))


async def test_sync_nodes_run_in_children_and_coroutines_here(project):
    result = await run(project, ["pid", "on_loop"])
    assert result["pid"] != os.getpid()
    assert result["on_loop"] == os.getpid()


async def test_what_a_node_prints_goes_to_stderr(make_project, tmp_path):
    root = make_project(flow=SOURCE).root
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fp_async",
            "run",
            "flow",
            "-q",
            "--final-vars",
            "shouting",
            "--executor",
            "processpool",
        ],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "shouting  1\n"
    assert "to stdout" in done.stderr
    assert "to fd 1" in done.stderr


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_cutting_a_run_kills_its_child(project, marker, how):
    await run(project, "pid")  # a child is ready: starting one may take longer than the timeout
    timeout = 3 if how == "timeout" else None
    await run(project, "pid")  # on a busy machine a process starts late
    task = asyncio.create_task(run(project, "stuck", inputs={"marker": marker}, timeout=timeout))
    pid = await written(marker)
    if how == "cancel":
        task.cancel()
    with pytest.raises(asyncio.CancelledError if how == "cancel" else RunTimeoutError):
        await task
    assert not psutil.pid_exists(pid)
    assert children() == set()


async def test_a_run_without_a_held_project_leaves_no_child(make_project):
    project = make_project(flow=SOURCE)
    await run(project, "pid")
    assert children() == set()


@pytest.mark.parametrize(
    ("node", "how"), [("killed", "killed by SIGKILL"), ("leaving", "exit code 7")]
)
async def test_a_child_that_dies_is_a_crash_of_its_node(project, node, how):
    with pytest.raises(NodeCrashedError, match=f"node '{node}'.*its process died.*{how}") as raised:
        await run(project, node)
    assert isinstance(raised.value.__cause__, ProcessDiedError)
    assert (await run(project, "pid"))["pid"]  # another child takes its place


async def test_a_childs_error_keeps_its_type_line_and_traceback(project):
    with pytest.raises(NodeError, match="LookupError: gone") as raised:
        await run(project, "raising", inputs={"text": "gone"})
    error = raised.value
    assert isinstance(error.__cause__, LookupError)
    assert "flow.py" in error.line
    assert "raise LookupError(text)" in error.line
    remote = error.__cause__.__cause__
    assert isinstance(remote, RemoteTracebackError)
    assert "raise LookupError(text)" in str(remote)


async def test_an_error_that_cannot_be_pickled_keeps_its_text(project):
    with pytest.raises(NodeError, match="Odd: 1 and 2"):
        await run(project, "raising_unpicklable")


async def test_values_that_cannot_cross_say_so(project):
    with pytest.raises(NodeError, match=r"its value \(function\) cannot leave its process"):
        await run(project, "unpicklable")
    with pytest.raises(NodeError, match="its inputs cannot be sent to a process"):
        await run(project, "raising", inputs={"text": _Unpicklable("x")})


class _Unpicklable(str):
    def __reduce__(self):
        raise TypeError("stays here")


async def test_large_values_cross(project):
    size = 64 * 2**20
    assert len((await run(project, "big", inputs={"n": size}))["big"]) == size


async def test_no_more_children_than_allowed(project):
    executor = ExecutorSettings(type="processpool", max_workers=2)
    results = await asyncio.gather(*(run(project, "pid", executor) for _ in range(8)))
    assert len({result["pid"] for result in results}) <= 2


async def test_children_die_with_a_parent_that_is_killed(make_project, marker):
    project: Project = make_project(flow=SOURCE)
    script = f"""
        import asyncio, pathlib
        from fp_async import Project
        project = Project({str(project.root)!r})
        asyncio.run(project.run("flow", final_vars="stuck", executor="processpool",
                                inputs={{"marker": pathlib.Path({str(marker)!r})}}))
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    pid = await written(marker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    gone, alive = psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 10)
    assert not alive


async def test_runs_that_share_children_leave_none(make_project):
    project = make_project(
        flow="import time\ndef a(s: float) -> float:\n    time.sleep(s)\n    return s\n"
    )
    runs = [project.run("flow", {"s": s}, executor="processpool") for s in (0.0, 0.1, 0.3)]
    assert len(await asyncio.gather(*runs)) == 3
    assert children() == set()


async def test_a_run_that_outlives_its_project_leaves_no_child(make_project, marker):
    source = SOURCE.replace("time.sleep(600)", "time.sleep(0.2); return 1")
    async with make_project(flow=source) as project:
        task = asyncio.create_task(run(project, "stuck", inputs={"marker": marker}))
        await written(marker)
    assert await task == {"stuck": 1}
    assert children() == set()


def test_a_project_in_several_event_loops(make_project):
    from concurrent.futures import ThreadPoolExecutor

    project = make_project(flow=SOURCE)
    with ThreadPoolExecutor(3) as pool:
        pids = list(pool.map(lambda _: asyncio.run(run(project, "pid"))["pid"], range(6)))
    assert os.getpid() not in pids
    assert children() == set()


@pytest.mark.alone
async def test_large_values_do_not_hold_the_loop_up(project):
    loop, gaps = asyncio.get_running_loop(), []

    async def ticker():
        last = loop.time()
        while True:
            await asyncio.sleep(0.005)
            gaps.append(loop.time() - last)
            last = loop.time()

    await run(project, "pid")
    ticking = asyncio.create_task(ticker())
    size = 32 * 2**20
    assert (await run(project, "array", inputs={"n": size}))["array"].sum() == size
    ticking.cancel()
    assert max(gaps) < 0.5  # pickling alone takes longer than that where it blocks
