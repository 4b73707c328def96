"""The end of a process: the command ends as Python ends a script."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

LEAVES_WORK = """
    import atexit
    import threading
    import time
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    OUT = Path(__file__).parent.parent / "out.txt"

    def _note(text):
        with OUT.open("a") as file:
            file.write(f"{text}\\n")

    def _later(gate, text):
        gate.wait(0.3)
        _note(text)

    def registered() -> int:
        atexit.register(_note, "atexit")
        return 1

    def threaded() -> bool:
        thread = threading.Thread(target=_later, args=(threading.Event(), "thread"))
        thread.start()
        return thread.daemon

    def pooled() -> int:
        pool = ThreadPoolExecutor(1)
        for number in range(2):
            pool.submit(_later, threading.Event(), f"pool {number}")
        return 1

    async def awaited() -> bool:
        thread = threading.Thread(target=_later, args=(threading.Event(), "coroutine's"))
        thread.start()
        return thread.daemon
"""


def flowerpower(project, *arguments, **options):
    command = [sys.executable, "-m", "fp_async", *arguments]
    return subprocess.Popen(
        command, cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("executor", ["threadpool", "local", "hamilton"])
def test_b7_run_waits_for_threads_and_pools_and_calls_exit_functions(make_project, executor):
    project = make_project(flow=LEAVES_WORK)
    process = flowerpower(project, "run", "flow", "--executor", executor, "--output", "json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert '"threaded": false' in out
    assert '"awaited": false' in out
    lines = (project.root / "out.txt").read_text().splitlines()
    assert sorted(lines) == ["atexit", "coroutine's", "pool 0", "pool 1", "thread"]
    assert lines[-1] == "atexit"


HANGS = """
    import threading
    import time

    def started() -> int:
        threading.Thread(target=time.sleep, args=(600,), name="endless").start()
        return 1
"""


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_b7_a_signal_ends_the_waiting(make_project, number, code, word):
    project = make_project(flow=HANGS)
    process = flowerpower(project, "run", "flow", "--output", "json", "--quiet")
    assert process.stdout.readline() == "{\n"  # the result is out before anything is waited for
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert word in err


def test_b7_the_command_says_which_threads_it_waits_for(make_project):
    process = flowerpower(make_project(flow=HANGS), "run", "flow", "--quiet")
    assert "waiting for 1 thread(s) of the pipeline: endless" in process.stderr.readline()
    process.kill()
    process.communicate(timeout=60)


def test_b7_an_abandoned_node_holds_nothing_up(make_project):
    project = make_project(
        "run: {flow: {dev: {timeout: 0.2}}}",
        flow="import time\ndef slow() -> int:\n    time.sleep(600)\n    return 1\n",
    )
    process = flowerpower(project, "run", "flow")
    process.communicate(timeout=60)
    assert process.returncode == 124


def test_a_thread_of_nodes_is_a_daemon_whose_own_threads_are_none():
    from fp_async.runtime.node_thread import NodeThread
    from fp_async.runtime.process_exit import waited_for

    seen, gate = [], threading.Event()
    child = None

    def work():
        nonlocal child
        child = threading.Thread(target=gate.wait, name="started-by-a-node")
        child.start()
        seen.append(child.daemon)
        gate.wait()

    thread = NodeThread(target=work, name="a-node")
    assert thread.daemon
    thread.start()
    while not seen:
        thread.join(0.01)
    assert seen == [False]
    assert "started-by-a-node" in waited_for()
    assert "a-node" not in waited_for()
    gate.set()
    thread.join()
    child.join()


POOLED = """
    import atexit
    import os
    import threading
    import time
    from pathlib import Path

    OUT = Path(__file__).parent.parent / "out.txt"

    def _note(text):
        with OUT.open("a") as file:
            file.write(f"{text}\\n")

    def _later():
        time.sleep(0.3)
        _note("thread")

    def a() -> str:
        atexit.register(_note, "atexit")
        threading.Thread(target=_later).start()
        os.environ["LEFT"] = "1"
        return os.environ.get("LEFT", "")

    def b(a: str) -> str:
        return os.environ.get("LEFT", "")
"""


def test_b7_processes_of_a_pool_end_as_python_does(make_project):
    project = make_project(
        "run: {flow: {dev: {executor: {type: processpool, max_workers: 1}}}}", flow=POOLED
    )
    process = flowerpower(project, "run", "flow", "--output", "json", "--quiet")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert (project.root / "out.txt").read_text().splitlines() == ["thread", "atexit"]
    assert '"b": ""' in out, "C12: what a node leaves in its process the next one does not find"


async def test_b7_a_pools_process_that_does_not_end_is_killed_in_an_application(make_project):
    source = POOLED.replace("time.sleep(0.3)", "time.sleep(600)")
    project = make_project(flow=source)
    project.flows._patience = 0.3
    await project.run("flow", executor="processpool")
    assert not (project.root / "out.txt").exists()
