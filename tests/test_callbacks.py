"""`on_success`, `on_failure`, `on_retry`: who is told what, and that nothing comes of it."""

from __future__ import annotations

import asyncio
import json
import logging
import os

import anyio
import pytest
from fleet import fleet

from fp_async import (
    FlowerPowerError,
    NodeError,
    Project,
    RunEvent,
    UsageError,
    WorkerSettings,
    callbacks,
)
from fp_async.log_levels import _OnStderr

PIPELINE = """
import os
from pathlib import Path

def value(number: int, folder: str) -> int:
    left = Path(folder, "failures")
    count = int(left.read_text() or 0) if left.exists() else 0
    if count:
        left.write_text(str(count - 1))
        raise ValueError(f"{count} left")
    if number == -1:
        os._exit(3)
    if number < 0:
        raise KeyError("negative")
    return number * 2
"""

HEARS = """
import json
import os
from pathlib import Path


def note(event):
    line = {
        "kind": event.kind, "pipeline": event.pipeline, "job": event.job_id,
        "attempt": event.attempt, "result": event.result, "pause": event.retry_in,
        "error": event.error and event.error.message, "number": event.inputs.get("number"),
        "pid": os.getpid(), "took": event.seconds >= 0,
    }
    with Path(__file__).with_name("heard").open("a") as file:
        file.write(json.dumps(line) + "\\n")


async def later(event):
    note(event)


def broken(event):
    print("about to break")
    raise RuntimeError("no such channel")


def hangs(event):
    import time
    time.sleep(3600)


def dies(event):
    os._exit(1)
"""

CONF = """
run:
  work:
    dev:
      inputs: {{folder: {folder}}}
      retry: {{max_attempts: 3, backoff: 0.0}}
      on_success: hears:note
      on_failure: [hears:broken, hears:later]
      on_retry: hears:note
"""


@pytest.fixture
def project(make_project, tmp_path):
    """One with functions that write down what they hear."""
    return make_project(CONF.format(folder=tmp_path), work=PIPELINE, hears=HEARS)


def heard(project):
    file = project.root / "pipelines" / "heard"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def kinds(project):
    return [each["kind"] for each in heard(project)]


async def until_heard(project, count):
    with anyio.fail_after(20):
        while len(heard(project)) < count:
            await anyio.sleep(0.02)


# Runs ---------------------------------------------------------------------------------------


async def test_a_run_is_told_of_before_it_returns(project, tmp_path):
    (tmp_path / "failures").write_text("2")
    assert await project.run("work", {"number": 4}) == {"value": 8}
    told = heard(project)
    assert [(e["kind"], e["attempt"], e["result"], e["pause"]) for e in told] == [
        ("retry", 1, None, 0.0),
        ("retry", 2, None, 0.0),
        ("success", 3, {"value": 8}, None),
    ]
    assert [e["error"] and e["error"].splitlines()[0] for e in told] == [
        "node 'value' of pipeline 'work' raised ValueError: 2 left",
        "node 'value' of pipeline 'work' raised ValueError: 1 left",
        None,
    ]
    assert all(e["number"] == 4 and e["job"] is None and e["took"] for e in told)


async def test_a_failure_is_told_and_raised_and_a_broken_function_changes_nothing(project, caplog):
    with pytest.raises(NodeError, match="negative"):
        await project.run("work", {"number": -2})
    assert kinds(project) == ["retry", "retry", "failure"]
    assert "on_failure broken, run of 'work': RuntimeError: no such channel" in caplog.text


async def test_functions_from_code_come_after_those_of_the_project(make_project):
    told = []

    async def on_project(event):
        await asyncio.sleep(0)
        told.append(("project", event.kind))

    project = make_project(p="def x() -> int:\n    return 1\n")
    project = Project(project.root, on_success=on_project)
    await project.run("p", on_success=[lambda e: told.append(("run", e.kind)), told.append])
    assert told[:2] == [("project", "success"), ("run", "success")]
    assert told[2] == RunEvent(
        kind="success", pipeline="p", seconds=told[2].seconds, result={"x": 1}
    )
    with pytest.raises(UsageError, match="on_retry is a function"):
        await project.run("p", on_retry=["alerts"])


async def test_a_cancelled_run_calls_nobody(make_project):
    told = []
    source = "import asyncio\nasync def x() -> int:\n    await asyncio.sleep(60)\n    return 1\n"
    project = make_project(p=source)
    with anyio.move_on_after(0.1):
        await project.run("p", on_success=told.append, on_failure=told.append)
    assert told == []


async def test_a_function_that_takes_too_long_is_left(make_project, monkeypatch, caplog):
    monkeypatch.setattr(callbacks, "LIMIT", 0.05)
    project = make_project(p="def x() -> int:\n    return 1\n")

    async def hangs(event):
        await asyncio.Event().wait()

    async def quits(event):
        raise asyncio.CancelledError

    def leaves(event):
        raise SystemExit(3)

    result = await project.run("p", on_success=[hangs, quits, leaves])
    assert result == {"x": 1}
    assert "hangs, run of 'p': took longer than 0.05 s" in caplog.text
    assert "CancelledError" in caplog.text
    assert "SystemExit: 3" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hears:nope", "unknown function 'nope' in pipelines/hears.py (run.work.dev.on_success)"),
        ("haers:note", "unknown module 'haers'"),
        ("note", "'note' is not module:function (run.work.dev.on_success)"),
        ("bad:note", "cannot import pipeline module 'bad'"),
    ],
)
async def test_a_function_that_is_not_there_is_said_and_checked(project, caplog, name, text):
    (project.root / "pipelines" / "bad.py").write_text("import no_such_thing\n")
    conf = project.root / "conf" / "pipelines.yml"
    conf.write_text(conf.read_text().replace("on_success: hears:note", f"on_success: {name}"))
    project.reload()
    assert await project.run("work", {"number": 1}) == {"value": 2}
    assert text in caplog.text
    assert any(text in problem.message for problem in project.check().errors)


async def test_a_wrong_name_silences_no_other_and_hooks_are_no_pipelines(project, caplog):
    conf = project.root / "conf" / "pipelines.yml"
    text = conf.read_text().replace("on_retry: hears:note", "on_retry: [gone:y, hears:nope]")
    conf.write_text(text.replace("[hears:broken,", "[nope:x,"))
    (project.root / "pipelines" / "hears.py").write_text(HEARS + "\ndef plain(event): ...\n")
    project.reload()
    with pytest.raises(NodeError):
        await project.run("work", {"number": -2})
    assert kinds(project) == ["failure"]
    assert "unknown module 'nope'" in caplog.text
    report = project.check()
    assert report.pipelines == ["work"]
    assert len(report.errors) == 3


async def test_e9_what_was_refused_before_anything_began_is_told_to_the_caller_alone(project):
    refusals = (
        {"inputs": {"nubmer": 1}},
        {"inputs": {"number": "x"}},
        {"inputs": {"number": 1}, "final_vars": ["vaule"]},
        {"inputs": {"number": 1}, "cache": True, "executor": "hamilton"},
        {"inputs": {"number": 1}, "config": {"nothing": 1}},
    )
    told = []
    for options in refusals:
        with pytest.raises(FlowerPowerError) as raised:
            await project.run("work", on_failure=told.append, **options)
        assert raised.value.exit_code == 2
    assert (told, kinds(project)) == ([], [])


def test_e9_what_is_wrong_with_a_function_is_a_warning_of_the_command(capsys):
    handler = _OnStderr()
    for name, level in (("fp_async", 30), ("fp_async.cli", 40), ("my_flow", 30)):
        handler.emit(logging.LogRecord(name, level, "f", 1, "it is %s", ("so",), None))
    assert capsys.readouterr().err.splitlines() == [
        "warning: it is so",
        "it is so",
        "it is so",
    ]


# Jobs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", ["inline", "process"])
async def test_jobs_are_told_of_by_their_worker(project, tmp_path, runner, caplog):
    caplog.set_level(logging.INFO)
    own = []
    settings = WorkerSettings(runner=runner, concurrency=1)
    (tmp_path / "failures").write_text("1")
    held = Project(project.root, worker=settings, on_success=own.append, on_failure=own.append)
    async with held:
        assert await held.run_job("work", inputs={"number": 3}) == {"value": 6}
        await until_heard(project, 2)
        id = await held.add_job("work", inputs={"number": -5}, retry={"max_attempts": 1})
        await until_heard(project, 3)
    first, second, third = heard(project)
    assert first["kind"] == "retry"
    assert "raised ValueError: 1 left" in first["error"]
    assert (second["kind"], second["attempt"], second["result"]) == ("success", 2, {"value": 6})
    assert (third["kind"], third["job"], third["number"]) == ("failure", id, -5)
    assert (first["pid"] == os.getpid()) is (runner == "inline")
    assert [(e.kind, e.result) for e in own] == [("success", {"value": 6}), ("failure", None)]
    assert own[1].error.kind == "KeyError"
    assert "no such channel" in caplog.text
    if runner == "process":
        assert f"on_failure of job {id}: about to break" in caplog.text


async def test_a_crash_is_told_by_another_process(project):
    settings = WorkerSettings(runner="process", concurrency=1)
    async with Project(project.root, worker=settings) as held:
        id = await held.add_job("work", inputs={"number": -1}, max_crashes=2)
        await until_heard(project, 2)
        assert (await held.get_job(id)).state == "failed"
    assert [(e["kind"], e["job"]) for e in heard(project)] == [("retry", id), ("failure", id)]
    assert "died" in heard(project)[1]["error"]


@pytest.mark.parametrize("what", ["hangs", "dies"])
async def test_a_function_that_takes_its_process_along_harms_nothing(
    project, caplog, monkeypatch, what
):
    monkeypatch.setattr("fp_async.runner._LONGEST_CALL", 0.5)
    conf = project.root / "conf" / "pipelines.yml"
    conf.write_text(conf.read_text().replace("on_success: hears:note", f"on_success: hears:{what}"))
    settings = WorkerSettings(runner="process", concurrency=1)
    async with Project(project.root, worker=settings) as held:
        for number in range(2):
            assert await held.run_job("work", inputs={"number": number}) == {"value": 2 * number}
    text = {"hangs": "takes too long", "dies": "its process died"}[what]
    assert caplog.text.count(text) == 2


async def test_a_pipeline_that_cannot_be_imported_is_told(project):
    (project.root / "pipelines" / "work.py").write_text("import no_such_thing\n")
    async with Project(project.root, worker=True) as held:
        id = await held.add_job("work", inputs={"number": 1}, retry={"max_attempts": 1})
        await until_heard(project, 1)
    (told,) = heard(project)
    assert (told["kind"], told["job"]) == ("failure", id)
    assert "no_such_thing" in told["error"]


async def test_a_job_whose_worker_was_killed_is_told_by_the_one_that_rescues_it(project):
    work = project.root / "pipelines" / "work.py"
    work.write_text("import time\n" + PIPELINE.replace("os._exit(3)", "time.sleep(60)"))
    with fleet(project.root) as crew:
        crew.start("w1", "start-worker")
        id = await project.add_job("work", inputs={"number": -1}, on_crash="fail")
        with anyio.fail_after(20):
            while (await project.get_job(id)).state != "running":
                await anyio.sleep(0.05)
        crew.kill("w1")
    async with Project(project.root, worker=True):
        await until_heard(project, 1)
    (told,) = heard(project)
    assert (told["kind"], told["job"], told["number"]) == ("failure", id, -1)
    assert "died" in told["error"]
