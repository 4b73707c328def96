"""Jobs whose pipelines run on Ray or Dask, and processes that end with a cluster of their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec

import psutil
import pytest
import services

from fp_async import JobCancelledError, Project, WorkerSettings

SOURCE = """
    import os
    import time
    from pathlib import Path

    from fp_async import current_job

    def here(x: int) -> tuple:
        print("printed there")
        job = current_job()
        return job.id, job.attempt, os.getpid()
    def ticking(file: str) -> int:
        for tick in range(400):
            Path(file).write_text(str(tick))
            time.sleep(0.05)
        return tick
"""
CONFIG = """
    run:
      flow:
        dev:
          inputs: {x: 1}
          executor: {type: ENGINE, max_workers: 1, options: OPTIONS}
"""
OPTIONS = {"ray": "{object_store_memory: 200000000}", "dask": "{}"}


@pytest.fixture(params=["dask", "ray"])
def engine(request):
    if find_spec({"ray": "ray", "dask": "distributed"}[request.param]) is None:
        services.missing(f"fp-async[{request.param}] is not installed")
    return request.param


def marked(mark):
    """The processes that have inherited an environment variable."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FP_TEST_MARK") == mark and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


async def gone(mark, seconds=10.0):
    deadline = time.monotonic() + seconds
    while (found := marked(mark)) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    return not found


async def test_jobs_of_a_worker(engine, make_project, tmp_path, monkeypatch):
    monkeypatch.setenv("FP_TEST_MARK", str(tmp_path))
    config = CONFIG.replace("ENGINE", engine).replace("OPTIONS", OPTIONS[engine])
    root = make_project(config, flow=SOURCE).root
    settings = WorkerSettings(runner="process", concurrency=1)
    async with Project(root, worker=settings) as project:
        ids = [await project.add_job("flow", final_vars="here") for _ in range(2)]
        results = [(await project.get_result(id, wait=60))["here"] for id in ids]
        assert [(id, attempt) for id, attempt, _ in results] == [(id, 1) for id in ids]
        assert results[0][2] == results[1][2]  # the cluster is kept: its one worker
        job = await project.get_job(ids[0])
        assert [bool(node.place) for node in job.nodes] == [True]
        assert "printed there" in job.log

        file = tmp_path / "tick"
        id = await project.add_job(
            "flow", inputs={"file": str(file)}, final_vars="ticking", executor=engine
        )
        while not file.exists():
            await asyncio.sleep(0.02)
        await project.cancel_job(id)
        with pytest.raises(JobCancelledError):
            await project.get_result(id, wait=30)
        ended = file.read_text()
        await asyncio.sleep(0.2)
        assert file.read_text() == ended
    assert await gone(str(tmp_path))


async def test_a_script_without_a_guard_ends_with_its_cluster(make_project, tmp_path):
    """`multiprocessing` would run it again in each worker."""
    if find_spec("distributed") is None:
        services.missing("fp-async[dask] is not installed")
    root = make_project(flow="def a(x: int) -> int:\n    return x + 1\n").root
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import asyncio
            from fp_async import ExecutorSettings, run
            executor = ExecutorSettings(type="dask", max_workers=1)
            for x in range(2):
                print(asyncio.run(run("flow", {{"x": x}}, executor=executor, project={str(root)!r})))
            """
        )
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "FP_TEST_MARK": str(tmp_path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "{'a': 1}\n{'a': 2}\n", "")
    assert await gone(str(tmp_path))
