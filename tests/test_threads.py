"""The nodes' threads: nested runs, forks, a system without threads, many event loops."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fp_async import FlowerPowerError, Project
from fp_async.threads import Threads, in_thread

NESTED = """
    import asyncio
    from fp_async import Project
    def outer(project: Project, n: int) -> int:
        return asyncio.run(project.run("inner", {"n": n}))["doubled"]
"""


async def test_work_is_done_by_no_more_threads_than_allowed():
    threads, seen, together = Threads(3), set(), threading.Barrier(3)

    def work():
        seen.add(threading.get_ident())
        together.wait(30)

    await asyncio.gather(*(in_thread(threads, work) for _ in range(12)))
    assert len(seen) == 3


async def test_idle_threads_end():
    threads = Threads(2, idle_seconds=0.01)
    before = threading.active_count()
    thread = await in_thread(threads, threading.current_thread)
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()
    assert threading.active_count() <= before + 1
    assert await in_thread(threads, lambda: 7) == 7


async def test_runs_inside_nodes_get_threads_of_their_own(make_project):
    project = make_project(outer=NESTED, inner="def doubled(n: int) -> int:\n    return 2 * n\n")
    project.flow("inner")
    runs = [project.run("outer", {"project": project, "n": n}) for n in range(60)]
    async with asyncio.timeout(60):
        results = await asyncio.gather(*runs)
    assert [result["outer"] for result in results] == [2 * n for n in range(60)]


def _run_in_child(root, connection):
    connection.send(asyncio.run(Project(root).run("flow")))


def test_a_forked_child_has_threads(make_project):
    project = make_project(flow="def a() -> int:\n    return 1\n")
    assert asyncio.run(project.run("flow")) == {"a": 1}
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        mine, its = context.Pipe()
        process = context.Process(target=_run_in_child, args=(project.root, its))
        process.start()
        assert mine.poll(60), "the child hangs"
        assert mine.recv() == {"a": 1}
        process.join(30)


async def test_a_system_without_threads_is_an_error_and_no_hang(monkeypatch):
    threads = Threads(2)

    def refuse(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            with pytest.raises(FlowerPowerError, match="no thread can be started"):
                await in_thread(threads, lambda: 1)
    assert await in_thread(threads, lambda: 1) == 1


def test_one_project_in_many_threads_at_once(make_project):
    project = make_project(
        "params: {flow: {scaled: {factor: 1}}}",
        flow="""
        from hamilton.function_modifiers import parameterize
        from fp_async import load_params
        PARAMS = load_params(__file__)
        @parameterize(**PARAMS.scaled)
        def scaled(n: int, factor: int) -> int:
            return n * factor
        """,
    )

    def work(n):
        runs = []
        for i in range(10):
            params = {"scaled": {"factor": n * 10 + i}}
            runs.append(asyncio.run(project.run("flow", {"n": 2}, params=params))["scaled"])
            project.refresh()
        return runs

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert results == [[2 * (n * 10 + i) for i in range(10)] for n in range(8)]
