"""What is logged of jobs, and from which level on."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from stores_kit import job

from fp_async import json_logs
from fp_async.job_lines import log_end, log_fire
from fp_async.jobs import Failure, Fire, Report

COMMAND = Path(sys.executable).parent / "flowerpower"
LOG = logging.getLogger("fp_async.tests")
ERROR = msgspec.json.encode(Failure("ValueError", "no\nnot at all"))
TALKING = """
    import logging
    log = logging.getLogger(__name__)

    def number() -> int:
        log.debug("in detail")
        log.info("it is %d", 7)
        log.warning("careful")
        return 7
"""
BROKEN = "def broken() -> int:\n    raise ValueError('no')\n"


@pytest.mark.parametrize(
    ("report", "text", "outcome", "level"),
    [
        ({"event": "succeed"}, "succeeded in 0.250 s, attempt 3", "succeeded", "INFO"),
        ({"event": "fail"}, "failed in 0.250 s, attempt 3: no", "failed", "WARNING"),
        (
            {"event": "retry", "retry_in": 90.0},
            "failed in 0.250 s and is tried again in 90 s, attempt 3: no",
            "retried",
            "WARNING",
        ),
        ({"event": "crash"}, "crashed after 0.250 s, attempt 3: no", "crashed", "WARNING"),
        (
            {"event": "give_back", "error": None, "reason": "its worker was ended"},
            "was given back after 0.250 s, attempt 3: its worker was ended",
            "given back",
            "WARNING",
        ),
        (
            {"event": "confirm_cancel", "error": None},
            "was cancelled after 0.250 s, attempt 3",
            "cancelled",
            "INFO",
        ),
    ],
)
def test_d3_the_end_of_an_attempt_is_one_line(caplog, report, text, outcome, level):
    caplog.set_level(logging.INFO)
    row = job(attempt=3)
    log_end(LOG, row, Report(id=row.id, attempt=3, **{"error": ERROR, **report}), 0.25, "pi-7")
    (record,) = caplog.records
    assert record.getMessage() == f"agent 'pi-7': job {row.id} of 'flow' {text}"
    assert record.levelname == level
    line = json.loads(json_logs.Formatter().format(record))
    about = ("job", "pipeline", "attempt", "agent", "outcome", "seconds")
    assert [line[name] for name in about] == [row.id, "flow", 3, "pi-7", outcome, 0.25]


def test_d3_a_report_that_ends_nothing_is_no_line(caplog):
    caplog.set_level(logging.DEBUG)
    for event in ("accept", "start", "release"):
        log_end(LOG, job(), Report(id="x", attempt=1, event=event), 0.0)
    assert not caplog.records


def test_d3_a_fire_says_what_it_has_added(caplog):
    caplog.set_level(logging.INFO)
    rows = [job(id=f"j{n}") for n in range(4)]
    fire = {"id": "s", "revision": 1, "expected": 1.0, "next_fire_time": 2.0}
    for number, added in ((1, 1), (2, 2), (4, 4), (1, 0), (0, 0)):
        whole = Fire(**fire, last_fire_time=1.0, jobs=rows[:number])
        log_fire(LOG, whole, [row.id for row in rows[:added]])
    assert [
        record.getMessage().removeprefix("schedule 's' fires: ") for record in caplog.records
    ] == [
        "job j0",
        "jobs j0, j1",
        "4 jobs",
        "no job: the one before still runs",
        "no job: its time was missed",
    ]


async def test_d3_a_worker_logs_that_jobs_start_and_end(make_project, caplog):
    caplog.set_level(logging.INFO)
    project = make_project(talking=TALKING, broken=BROKEN)
    (project.root / "conf").mkdir()
    (project.root / "conf" / "scheduler.yml").write_text("data_store: {type: memory}\n")
    async with project:
        assert await project.run_job("talking") == {"number": 7}
        id = await project.add_job("broken")
        with pytest.raises(Exception, match="no"):
            await project.get_result(id, wait=20)
        told = [r for r in caplog.records if r.name == "fp_async" and hasattr(r, "attempt")]
    shown = [(r.pipeline, r.attempt, getattr(r, "outcome", None)) for r in told]
    assert shown == [
        ("talking", 1, None),
        ("talking", 1, "succeeded"),
        ("broken", 1, None),
        ("broken", 1, "failed"),
    ]
    assert told[2].job == id


# What `run` shows -------------------------------------------------------------------------------


def _stderr(project, *arguments):
    command = [COMMAND, "run", *arguments]
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_d4_run_shows_what_a_pipeline_logs_from_info_on(make_project):
    project = make_project(talking=TALKING)
    lines = _stderr(project, "talking")
    assert lines[:2] == ["INFO talking: it is 7", "WARNING talking: careful"]
    assert "✓ number" in lines[2]
    assert _stderr(project, "talking", "--quiet") == ["WARNING talking: careful"]
    assert "DEBUG talking: in detail" in _stderr(
        project, "talking", "-v", "--executor", "processpool"
    )


def test_d4_a_pipeline_that_sets_logging_up_has_its_way(make_project):
    own = "    logging.basicConfig(format='own: %(message)s', level='DEBUG')\n    log = "
    project = make_project(talking=TALKING.replace("    log = ", own, 1))
    lines = _stderr(project, "talking", "--quiet")
    assert lines == ["own: in detail", "own: it is 7", "own: careful"]


def test_d13_retries_of_a_run_say_that_they_pause_and_for_how_long(make_project):
    flaky = """
        from pathlib import Path
        def number(path: Path) -> int:
            path.open("a").write("x")
            if path.stat().st_size < 2:
                raise ConnectionError("not yet")
            return 7
    """
    conf = "run: {flaky: {dev: {retry: {max_attempts: 2, backoff: 0.01, jitter: 0}}}}\n"
    project = make_project(conf, flaky=flaky)
    shown = _stderr(project, "flaky", "--inputs", f"path={project.root / 'tries'}")
    (told,) = [line for line in shown if "tried again" in line]
    assert told.startswith("warning: 'flaky' failed and is tried again in 0.010 s, attempt 1")


async def test_d3_debug_says_what_a_worker_waits_for(make_project, caplog):
    caplog.set_level(logging.DEBUG, logger="fp_async")
    project = make_project(talking=TALKING)
    (project.root / "conf").mkdir()
    (project.root / "conf" / "scheduler.yml").write_text("data_store: {type: memory}\n")
    async with project:
        await project.run_job("talking")
    told = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
    assert any(text.startswith("claimed 1 of at most") for text in told)
    assert any(text.startswith("looks again when something is heard") for text in told)
