"""What nodes open with `keep_open`, and when the run closes it."""

from __future__ import annotations

import asyncio
import logging

import anyio
import pytest

from fp_async import NodeError, Project, RunTimeoutError, UsageError, keep_open

FLOW = """
import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager

from fp_async import keep_open

told = []
go_on = threading.Event()


@contextmanager
def _kept(name, breaks=False):
    told.append(f"open {name}")
    try:
        yield name
    except BaseException as error:
        told.append(f"{type(error).__name__} {name}")
        raise
    finally:
        told.append(f"close {name}")
    if breaks:
        raise OSError(f"commit of {name}")


@asynccontextmanager
async def _kept_async(name):
    with _kept(name):
        yield name
        await asyncio.sleep(0)


def first(breaks: bool = False) -> str:
    return keep_open(_kept("first", breaks))


async def second(first: str) -> str:
    return await keep_open(_kept_async("second"))


def third(second: str) -> str:
    return keep_open(_kept("third"))


def used(third: str) -> str:
    told.append("used")
    return third


def fails(third: str) -> str:
    raise KeyError("no")


async def hangs(third: str) -> str:
    await asyncio.Event().wait()


def stuck(third: str) -> str:
    go_on.wait()
    return keep_open(_kept("late"))
"""
OPENED = ["open first", "open second", "open third"]
CLOSED = ["close third", "close second", "close first"]


@pytest.fixture
def project(make_project):
    return make_project(flow=FLOW)


def told(project):
    return project.flow("flow").graph.modules[0].told


@pytest.mark.parametrize("executor", ["threadpool", "local", "hamilton"])
async def test_d11_it_is_closed_when_the_run_has_ended_the_latest_first(project, executor):
    assert await project.run("flow", final_vars=["used"], executor=executor) == {"used": "third"}
    assert told(project) == [*OPENED, "used", *CLOSED]


async def test_d11_it_is_told_of_the_error_of_the_run(project):
    with pytest.raises(NodeError, match="node 'fails'"):
        await project.run("flow", final_vars=["fails"])
    names = ("third", "second", "first")
    left = [text for name in names for text in (f"NodeError {name}", f"close {name}")]
    assert told(project) == [*OPENED, *left]


async def test_d11_a_run_that_is_cut_off_closes_it(project):
    with pytest.raises(RunTimeoutError):
        await project.run("flow", final_vars=["hangs"], timeout=0.3)
    assert told(project)[-1] == "close first"
    told(project).clear()
    task = asyncio.create_task(project.run("flow", final_vars=["hangs"]))
    with anyio.fail_after(10):
        while len(told(project)) < 3:
            await anyio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told(project)[-2:] == ["CancelledError first", "close first"]


async def test_d11_what_an_abandoned_node_opens_is_closed_at_once(project):
    with pytest.raises(RunTimeoutError, match="stuck"):
        await project.run("flow", final_vars=["stuck"], timeout=0.3)
    assert "open late" not in told(project)
    project.flow("flow").graph.modules[0].go_on.set()
    with anyio.fail_after(10):
        while told(project)[-2:] != ["open late", "close late"]:
            await anyio.sleep(0.01)


async def test_d11_a_closing_that_fails_fails_a_run_that_went_well(project):
    with pytest.raises(NodeError, match="node 'first' of pipeline 'flow' raised OSError: commit"):
        await project.run("flow", {"breaks": True}, final_vars=["used"])
    assert told(project)[-3:] == CLOSED


async def test_d11_and_of_one_that_has_failed_is_logged(make_project, caplog):
    source = """
    from contextlib import contextmanager
    from fp_async import keep_open


    @contextmanager
    def _kept():
        try:
            yield 1
        finally:
            raise OSError("closing")


    def a() -> int:
        return keep_open(_kept())


    def b(a: int) -> int:
        raise KeyError("the first")
    """
    caplog.set_level(logging.ERROR, "fp_async")
    with pytest.raises(NodeError, match="the first"):
        await make_project(flow=source).run("flow", final_vars="b")
    assert "what 'a' keeps open could not be closed" in caplog.text


async def test_d11_runs_side_by_side_close_their_own(project):
    await asyncio.gather(*(project.run("flow", final_vars=["used"]) for _ in range(5)))
    for name in ("first", "second", "third"):
        assert told(project).count(f"open {name}") == told(project).count(f"close {name}") == 5


async def test_d11_a_job_closes_it_too(project):
    async with Project(project.root, worker=True) as opened:
        assert await opened.run_job("flow", final_vars=["used"]) == {"used": "third"}


async def test_d11_without_a_run_it_is_refused(project):
    with pytest.raises(UsageError, match="there is no run here"):
        keep_open(anyio.CancelScope())


@pytest.mark.slow
async def test_d11_in_another_process_it_is_refused(project):
    with pytest.raises(NodeError, match="process of the run"):
        await project.run("flow", final_vars=["first"], executor="processpool")
