"""Ray and Dask: real clusters of two workers on this machine, killed workers included."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import msgspec
import psutil
import pytest
import services
from hamilton.lifecycle import base as lifecycle_base

from fp_async import (
    ClusterError,
    ExecutorSettings,
    GraphError,
    NodeCrashedError,
    NodeError,
    NodeTimeoutError,
    Project,
    RunTimeoutError,
    UsageError,
    engines,
)
from fp_async.onsite import cut
from fp_async.remote import RemoteTracebackError

EXAMPLES = Path(__file__).parent.parent / "examples"
SETTINGS = {
    "ray": ExecutorSettings(
        type="ray", max_workers=2, retries=1, options={"object_store_memory": 200_000_000}
    ),
    "dask": ExecutorSettings(type="dask", max_workers=2, retries=1),
}
SOURCE = """
    import logging
    import os
    import signal
    import threading
    import time
    from pathlib import Path

    from hamilton.htypes import Collect, Parallelizable

    class Own:
        def __init__(self, value):
            self.value = value

    def first(x: int) -> int:
        print("printed there")
        logging.getLogger("flow").warning("logged there")
        return x + 1
    def own(first: int) -> object:
        return Own(first)
    async def here(own: object) -> int:
        return os.getpid() if isinstance(own, Own) else 0
    def there(own: object, here: int) -> tuple:
        import helper
        assert isinstance(own, Own)
        return helper.double(own.value), here, os.getpid()

    def items(n: int) -> Parallelizable[int]:
        yield from range(n)
    def square(items: int, x: int) -> int:
        return items * items + x
    async def sooner(square: int) -> int:
        return square - 1
    def squares(square: Collect[int]) -> list:
        return list(square)
    def total(sooner: Collect[int], n: int) -> int:
        return sum(sooner)

    def broken(first: int) -> int:
        return first // 0
    def broken_item(items: int) -> int:
        return 1 // (items - 2)
    def gathered(broken_item: Collect[int]) -> int:
        return sum(broken_item)

    def ticking(file: str) -> int:
        for tick in range(400):
            Path(file).write_text(str(tick))
            time.sleep(0.05)
        return tick
    def stuck(file: str) -> int:
        with open(file, "a") as log:
            print(os.getpid(), file=log)
        time.sleep(60)
        return 0
    def flaky(file: str) -> int:
        with open(file, "a") as log:
            log.write("x")
        if len(Path(file).read_text()) < 3:
            raise OSError("not yet")
        return len(Path(file).read_text())
    def before(first: int) -> int:
        return first
    def killed_once(before: int, file: str) -> int:
        if not Path(file).exists():
            Path(file).write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return before
    def killer(before: int, file: str) -> int:
        with open(file, "a") as log:
            log.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
        return 0
    def lock() -> object:
        return threading.Lock()
    def nap(lock: object) -> int:
        return 1
    def napping() -> int:
        time.sleep(0.8)
        return 1
"""
HELPER = "def double(x):\n    return 2 * x\n"


@pytest.fixture(scope="module", params=["dask", "ray"])
def executor(request):
    if find_spec({"ray": "ray", "dask": "distributed"}[request.param]) is None:
        services.missing(f"fp-async[{request.param}] is not installed")
    before = processes()
    yield SETTINGS[request.param]
    engines.shutdown()
    assert not left(before)


def processes():
    """Those that this one has started, and theirs; Ray's workers have another parent."""
    found = psutil.Process().children(recursive=True)
    return {p.pid for p in found if "resource_tracker" not in " ".join(p.cmdline())}


def left(before, seconds=5.0):
    """What is left of the processes of a cluster."""
    deadline = time.monotonic() + seconds
    while (found := processes() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


@pytest.fixture
def project(make_project):
    return make_project(flow=SOURCE, helper=HELPER)


async def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def gone(file):
    """Wait until the one process that noted itself in a file has ended."""
    (pid,) = map(int, file.read_text().split())
    await until(lambda: not psutil.pid_exists(pid))
    assert file.read_text().split() == [str(pid)]


# Results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sales_etl", "sensor_window", "scheduled_report", "checkouts"])
async def test_examples_give_what_they_give_here_twice_at_once(
    executor, name, monkeypatch, tmp_path
):
    shutil.copytree(EXAMPLES / name, tmp_path / name)
    monkeypatch.chdir(tmp_path / name)
    project = Project()
    (pipeline,) = project.list()
    expected = await project.run(pipeline)
    runs = [project.run(pipeline, executor=executor) for _ in range(2)]
    for result in await asyncio.gather(*runs):
        assert repr(result) == repr(expected)
        assert list(result) == list(expected)


async def test_classes_helpers_and_coroutine_functions(executor, project):
    result = await project.run("flow", {"x": 1}, ["there", "own"], executor=executor)
    doubled, here, there = result["there"]
    assert doubled == 4
    assert here == os.getpid() != there
    assert result["own"].value == 2


async def test_fan_out(executor, project):
    inputs = {"n": 5, "x": 1}
    expected = await project.run("flow", inputs, ["total", "first"])
    assert await project.run("flow", inputs, ["total", "first"], executor=executor) == expected
    both = await project.run("flow", inputs, ["squares", "total"], executor=executor)
    assert both == {"squares": [1, 2, 5, 10, 17], "total": 30}
    none = await project.run("flow", {"n": 0, "x": 1}, ["squares"], executor=executor)
    assert none == {"squares": []}


async def test_more_items_than_tasks(executor, project, monkeypatch):
    monkeypatch.setattr("fp_async.clustered.cut", partial(cut, most=3))
    overrides = {"items": list(range(10))}  # cut here, not on the cluster
    result = await project.run(
        "flow", {"x": 0}, ["squares"], overrides=overrides, executor=executor
    )
    assert result == {"squares": [i * i for i in range(10)]}


async def test_large_arrays_can_be_written_to(executor, make_project):
    project = make_project(
        flow="""
        import numpy as np
        def doubled(given: np.ndarray) -> np.ndarray:
            given *= 2
            return given
        def once_more(doubled: np.ndarray, given: np.ndarray) -> np.ndarray:
            doubled += given
            return doubled
        """
    )
    import numpy as np

    for size in (10, 20_000, 2_000_000):
        given = np.ones(size)
        result = await project.run("flow", {"given": given}, ["once_more"], executor=executor)
        assert given.sum() == size
        result["once_more"] += 1
        assert result["once_more"].sum() in (4 * size, 5 * size)  # shared in one worker, or not


# Telling --------------------------------------------------------------------------------------


async def test_events_say_where_and_logs_come_back(executor, project, capsys, caplog):
    events = []
    await project.run("flow", {"x": 1}, "there", executor=executor, progress=events.append)
    told = {(event.node, event.status) for event in events}
    assert told == {
        (node, status)
        for node in ("first", "own", "here", "there")
        for status in ("started", "succeeded")
    }
    places = {event.node: event.place for event in events if event.status == "succeeded"}
    assert places["here"] == ""
    assert places["there"]
    assert "printed there" in capsys.readouterr().out
    assert [record.getMessage() for record in caplog.records if record.name == "flow"] == [
        "logged there"
    ]


async def test_an_error_names_the_node_and_keeps_the_remote_traceback(executor, project):
    with pytest.raises(NodeError) as caught:
        await project.run("flow", {"x": 1}, "broken", executor=executor)
    error = caught.value
    assert error.node == "broken"
    assert error.inputs == {"first": "int"}
    assert "return first // 0" in error.line
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert isinstance(error.__cause__.__cause__, RemoteTracebackError)
    assert f"a worker of {executor.type}" in str(error.__cause__.__cause__)
    assert "in broken" in str(error.__cause__.__cause__)


async def test_a_value_that_cannot_travel_names_its_node(executor, project):
    cannot = r"node 'lock' .* its value \(lock\) cannot leave its process"
    with pytest.raises(NodeError, match=cannot):
        await project.run("flow", final_vars="lock", executor=executor)
    with pytest.raises(NodeError, match=cannot):
        await project.run(
            "flow", final_vars="nap", overrides={"lock": threading.Lock()}, executor=executor
        )
    own = {"lock": lambda: 3}  # what only this script has can travel
    assert await project.run("flow", final_vars="nap", overrides=own, executor=executor)


async def test_what_a_worker_lacks_is_said_with_its_place(executor, make_project, monkeypatch):
    monkeypatch.setitem(sys.modules, "only_here", ModuleType("only_here"))
    project = make_project(flow="import only_here\ndef a() -> int:\n    return 1\n")
    text = f"a worker of {executor.type} .* cannot run the pipeline: .* No module named 'only_here'"
    with pytest.raises(ClusterError, match=text):
        await project.run("flow", executor=executor)


async def test_an_error_of_one_item(executor, project):
    with pytest.raises(NodeError, match="node 'broken_item' .* ZeroDivisionError"):
        await project.run("flow", {"n": 4}, "gathered", executor=executor)


class Watching(lifecycle_base.BasePreNodeExecute, lifecycle_base.BasePostNodeExecute):
    def __init__(self):
        self.seen = []

    def pre_node_execute(self, *, node_, kwargs, **told):
        self.seen.append((node_.name, kwargs))

    def post_node_execute(self, *, node_, success, result, **told):
        self.seen.append((node_.name, success, result))


class Executing(lifecycle_base.BaseDoNodeExecute):
    def do_node_execute(self, *, node_, kwargs, **told):
        return node_.callable(**kwargs)


async def test_hooks_run_here_with_the_values(executor, project):
    watching = Watching()
    await project.run("flow", {"x": 1}, "before", executor=executor, adapters=[watching])
    assert watching.seen == [
        ("first", {"x": 1}),
        ("first", True, 2),
        ("before", {"first": 2}),
        ("before", True, 2),
    ]
    watching = Watching()
    with pytest.raises(NodeError, match="node 'broken'"):
        await project.run("flow", {"x": 1}, "broken", executor=executor, adapters=[watching])
    assert watching.seen[-1] == ("broken", False, None)


@pytest.mark.parametrize(
    ("adapter", "final"), [(Executing, "first"), (Watching, "total")], ids=lambda value: str(value)
)
async def test_what_cannot_work_there_is_refused(executor, project, adapter, final):
    inputs = {"x": 1, "n": 2} if final == "total" else {"x": 1}
    with pytest.raises(UsageError, match=f"cannot run with executor '{executor.type}'"):
        await project.run("flow", inputs, final, executor=executor, adapters=[adapter()])


@pytest.mark.alone
async def test_waiting_costs_nothing_here(executor, project):
    await project.run("flow", {"x": 1}, "first", executor=executor)
    before = time.process_time()
    await project.run("flow", final_vars="napping", executor=executor)
    assert time.process_time() - before < 0.3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_wokers": 2}, "TypeError: .* 'n_wokers'"),
        ({"memory_limit": "abc"}, "ValueError: Could not interpret 'abc' as a byte unit"),
    ],
)
async def test_wrong_options_are_told_in_a_line(executor, project, options, said, capfd):
    if executor.type != "dask":
        pytest.skip("LocalCluster's")
    settings = ExecutorSettings(type="dask", options=options)
    with pytest.raises(ClusterError, match=f"^Dask did not start: {said}$"):
        await project.run("flow", {"x": 1}, "first", executor=settings)
    assert capfd.readouterr().err == ""


# Ending ---------------------------------------------------------------------------------------


async def test_cancelling_reaches_the_cluster(executor, project, tmp_path):
    file = tmp_path / "tick"
    run = asyncio.ensure_future(
        project.run("flow", {"file": str(file)}, "ticking", executor=executor)
    )
    await until(lambda: file.exists() and file.read_text() > "2")
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    ended = file.read_text()
    await asyncio.sleep(0.3)
    assert file.read_text() == ended


async def test_a_timeout_ends_what_sleeps(executor, project, tmp_path):
    file = tmp_path / "pid"
    await project.run("flow", {"x": 1}, "first", executor=executor)
    with pytest.raises(RunTimeoutError):
        await project.run("flow", {"file": str(file)}, "stuck", executor=executor, timeout=0.6)
    await gone(file)
    assert (await project.run("flow", {"x": 1}, "first", executor=executor)) == {"first": 2}


NODES = """
    run:
      flow:
        dev:
          nodes:
            ticking: {timeout: 0.4}
            stuck: {timeout: 0.4}
            flaky: {retry: {max_attempts: 3, backoff: 0.01, on: [OSError]}}
"""


@pytest.mark.parametrize("node", ["ticking", "stuck"])
async def test_a_nodes_own_timeout(executor, make_project, tmp_path, node):
    project = make_project(NODES, flow=SOURCE)
    with pytest.raises(NodeTimeoutError, match=f"node '{node}' .* its timeout of 0.4 s"):
        await project.run("flow", {"file": str(tmp_path / "file")}, node, executor=executor)
    if node == "stuck":
        await gone(tmp_path / "file")


async def test_a_nodes_own_retry(executor, make_project, tmp_path):
    project = make_project(NODES, flow=SOURCE)
    events = []
    result = await project.run(
        "flow", {"file": str(tmp_path / "x")}, "flaky", executor=executor, progress=events.append
    )
    assert result == {"flaky": 3}
    statuses = [event.status for event in events]
    assert statuses == ["started", "retrying", "retrying", "succeeded"]


async def test_a_killed_worker_is_made_up_for(executor, project, tmp_path):
    inputs = {"x": 1, "file": str(tmp_path / "killed")}
    async with asyncio.timeout(30):
        result = await project.run("flow", inputs, ["killed_once", "first"], executor=executor)
    assert result == {"killed_once": 2, "first": 2}


async def test_what_kills_every_worker_is_an_error(executor, project, tmp_path):
    file = tmp_path / "killed"
    inputs = {"x": 1, "file": str(file)}
    async with asyncio.timeout(40):
        with pytest.raises(NodeCrashedError, match=r"node '.*killer' .* worker died"):
            await project.run("flow", inputs, "killer", executor=executor)
    # Dask counts a death against every task that was handed to the worker, begun or not.
    least = 1 if executor.type == "dask" else 1 + executor.retries
    assert least <= len(file.read_text()) <= 1 + executor.retries
    assert (await project.run("flow", {"x": 1}, "first", executor=executor)) == {"first": 2}


# Clusters that are there already --------------------------------------------------------------


async def address_of(executor):
    async with engines.connected(executor) as engine:
        if executor.type == "dask":
            return engine.client.scheduler.address
    import ray

    return ray.get_runtime_context().gcs_address


async def test_a_command_uses_a_cluster_by_its_address(executor, project):
    address = await address_of(executor)
    command = [sys.executable, "-m", "fp_async", "run", "flow", "--quiet"]
    command += ["--inputs", "n=3,x=0", "--final-vars", "squares,first"]
    command += ["--executor", executor.type, "--executor-option", f"address={address}"]
    command += ["--executor-option", "resources.num_cpus=0.5"] if executor.type == "ray" else []
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=project.root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "printed there\nsquares  [0, 1, 4]\nfirst    1\n"
    assert done.stderr == "WARNING flow: logged there\n"
    assert await project.run("flow", {"x": 1}, "first", executor=executor) == {"first": 2}


async def test_a_process_has_one_ray_at_a_time(executor, project, tmp_path):
    if executor.type != "ray":
        pytest.skip("of Dask it may have several")
    address = await address_of(executor)
    file = tmp_path / "tick"
    run = asyncio.ensure_future(
        project.run("flow", {"file": str(file)}, "ticking", executor=executor)
    )
    await until(file.exists)
    with pytest.raises(UsageError, match=f"something on a Ray of its own: .* Ray at {address}"):
        await project.run("flow", {"x": 1}, "first", executor=f"ray:{address}")
    run.cancel()
    await asyncio.wait([run])
    assert (await project.run("flow", {"x": 1}, "first", executor=executor)) == {"first": 2}


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_client_of_the_users(executor, project, tmp_path, asynchronous):
    if executor.type != "dask":
        pytest.skip("a process has one Ray, which is used if it is there")
    import distributed

    address = await address_of(executor)
    if asynchronous:
        client = await distributed.Client(address, asynchronous=True, set_as_default=False)
    else:
        client = distributed.Client(address, set_as_default=False)
    inputs = {"n": 3, "x": 0}
    result = await project.run("flow", inputs, ["squares", "first"], executor=client)
    assert result == {"squares": [0, 1, 4], "first": 1}
    file = tmp_path / "tick"
    with pytest.raises(RunTimeoutError):
        await project.run("flow", {"file": str(file)}, "ticking", executor=client, timeout=0.5)
    ended = file.read_text()
    await asyncio.sleep(0.2)
    assert file.read_text() == ended
    assert client.status == "running"
    if asynchronous:
        await client.close()
    else:
        client.close()


async def test_a_cluster_that_is_not_there(executor, project, monkeypatch):
    monkeypatch.setattr(f"fp_async.engines.{executor.type}._CONNECTING", 0.5)
    with pytest.raises(ClusterError, match=f"no connection to {executor.type} at 127.0.0.1:1: "):
        await project.run("flow", {"x": 1}, "first", executor=f"{executor.type}:127.0.0.1:1")


async def test_what_no_worker_has_is_said_at_once(executor, project):
    settings = msgspec.structs.replace(executor, resources={"num_gpus": 1})
    with pytest.raises(UsageError, match="can ever get num_gpus 1: there is 0"):
        await project.run("flow", {"x": 1}, "first", executor=settings)


async def test_resources_of_a_node(executor, make_project, tmp_path):
    if executor.type != "ray":
        pytest.skip("the workers of LocalCluster have none by themselves")
    config = "run: {flow: {dev: {nodes: {tick: {resources: {num_cpus: 2}}}}}}"
    source = """
    import time
    from hamilton.htypes import Collect, Parallelizable
    def items() -> Parallelizable[int]:
        yield from range(2)
    def tick(items: int) -> tuple:
        began = time.time()
        time.sleep(0.1)
        return began, time.time()
    def ticks(tick: Collect[tuple]) -> list:
        return sorted(tick)
    """
    project = make_project(config, flow=source)
    (_, first), (second, _) = (await project.run("flow", executor=executor))["ticks"]
    assert second >= first


async def test_within_each_other_is_refused(executor, make_project):
    project = make_project(
        flow="""
        from hamilton.htypes import Collect, Parallelizable
        def outer(n: int) -> Parallelizable[int]:
            yield from range(n)
        def inner(outer: int) -> Parallelizable[int]:
            yield from range(outer)
        def gathered(inner: Collect[int]) -> int:
            return sum(inner)
        """
    )
    with pytest.raises(GraphError, match="within each other"):
        await project.run("flow", {"n": 2}, executor=executor)
