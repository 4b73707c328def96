"""The command for jobs, schedules and workers: real processes, a store in a SQLite file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import fp_async
from fp_async.cli.shown import ago, span
from fp_async.codec_values import Record

COMMAND = str(Path(sys.executable).parent / "flowerpower")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\n")
SECONDS = 60
WAIT = SECONDS - 10

GATED = """
    import logging, time
    from pathlib import Path
    def waited(gate: Path, started: Path) -> str:
        logging.getLogger("gated").warning("waiting")
        started.touch()
        while not gate.exists():
            time.sleep(0.01)
        return "through"
"""
ODD = """
    import dataclasses
    @dataclasses.dataclass
    class Owner:
        name: str
        age: int
    def owner() -> Owner:
        return Owner("Ann", 3)
    def rows() -> list:
        return [{"n": 1}, {"n": 2}]
    def broken(n: int) -> int:
        return 1 // n
"""


def flowerpower(*arguments, cwd, code=0):
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def as_json(*arguments, cwd):
    return json.loads(flowerpower(*arguments, "--output", "json", cwd=cwd).stdout)


def make(root, scheduler=""):
    import textwrap

    fp_async.init(root)
    project = fp_async.Project(root)
    project.new("my_flow")
    for name, source in {"gated": GATED, "odd": ODD}.items():
        (root / "pipelines" / f"{name}.py").write_text(textwrap.dedent(source))
    with (root / "conf" / "scheduler.yml").open("a") as conf:
        conf.write(scheduler)
    return root


class Process:
    """A command in the background, whose stderr is read line by line."""

    def __init__(self, *arguments, cwd, seconds=SECONDS):
        self.arguments = arguments
        self.cwd = cwd
        self.lines = []
        self.seconds = seconds

    def __enter__(self):
        self.process = subprocess.Popen(
            [COMMAND, *map(str, self.arguments)],
            cwd=self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.watchdog = threading.Timer(self.seconds, self.process.kill)
        self.watchdog.start()
        return self

    def __exit__(self, *_):
        self.watchdog.cancel()
        self.process.kill()
        self.process.communicate()

    def until(self, pattern):
        """Read stderr up to a line in which the pattern is found."""
        for line in self.process.stderr:
            self.lines.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"{pattern!r} is not in {self.lines}")

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        """(exit code, the rest of stderr)"""
        out, rest = self.process.communicate(timeout=SECONDS)
        self.out = out
        return self.process.returncode, rest


def worker(*arguments, cwd, seconds=SECONDS):
    return Process("start-worker", *arguments, cwd=cwd, seconds=seconds)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A project with a worker."""
    root = make(tmp_path_factory.mktemp("jobs") / "shop")
    with worker("--concurrency", "2", cwd=root, seconds=900) as process:
        process.until("queues default")
        yield root
        process.signal(signal.SIGTERM)
        code, rest = process.end()
        assert code == 0, rest


@pytest.fixture
def idle(tmp_path):
    """A project without a worker."""
    return make(tmp_path / "idle", "\nworker:\n  grace: 0.2\n")


def gates(folder, name):
    """The inputs of a job of `gated`, and its two files."""
    gate, started = folder / f"{name}.gate", folder / f"{name}.started"
    return f"gate={gate},started={started}", gate, started


def wait_for(path):
    import time

    deadline = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.01)


# The document -------------------------------------------------------------------------------


def test_the_document_run_job(shop):
    done = flowerpower("run-job", "my_flow", cwd=shop)
    assert done.stdout == "total  110\n"
    assert re.findall(r"✓ (\w+)  \d", done.stderr) == ["numbers", "scaled", "total"]


def test_the_document_add_job(shop):
    id = flowerpower("add-job", "my_flow", cwd=shop).stdout
    assert UUID.fullmatch(id)
    for _ in range(2):
        done = flowerpower("result", id.strip(), "--wait", WAIT, cwd=shop)
        assert done.stdout == "total  110\n"


SCHEDULES = {
    "schedule my_flow --type interval --interval-params seconds=30": "every 30 s",
    "schedule my_flow --type date --date-params year=2022,month=1,day=1,hour=0,minute=0,second=0": "once at 2022-01-01 00:00",
    "schedule my_flow --type cron --cron-params second=0,minute=0,hour=0,day=1,month=1,day_of_week=0": "cron month=1 day=1 day_of_week=0 hour=0 minute=0 second=0",
    'schedule my_flow --type cron --crontab "0 0 1 1 0"': "crontab 0 0 1 1 0",
}


@pytest.mark.parametrize(("line", "words"), SCHEDULES.items())
def test_the_document_schedule(idle, line, words):
    text = flowerpower(*shlex.split(line), cwd=idle).stdout
    assert words in text
    (row,) = as_json("schedules", cwd=idle)
    assert text.startswith(f"{row['id']}  my_flow  ")
    if "date" in line:
        assert "will not fire" in text
        assert "--now" in text
        assert row["state"] == "over"
    else:
        assert len(re.findall(r"next  \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d  in ", text)) == 3
    assert flowerpower(*shlex.split(line), cwd=idle).stdout.splitlines()[0] == text.splitlines()[0]
    assert len(as_json("schedules", cwd=idle)) == 1


# Jobs ---------------------------------------------------------------------------------------


def test_inputs_are_typed_as_those_of_run(shop):
    arguments = ("--inputs", "count=3", "--param", "scaled.factor=5", "-q", "--output", "json")
    done = flowerpower("run-job", "my_flow", *arguments, cwd=shop)
    assert json.loads(done.stdout) == {"total": 30}
    assert done.stderr == ""


def test_results_that_hold_a_class_of_the_pipeline(shop, tmp_path):
    arguments = ("run-job", "odd", "-q", "--final-vars", "owner")
    assert flowerpower(*arguments, cwd=shop).stdout == "owner  Owner(name='Ann', age=3)\n"
    assert as_json(*arguments, cwd=shop) == {"owner": {"name": "Ann", "age": 3}}
    file = tmp_path / "rows.csv"
    flowerpower("run-job", "odd", "-q", "--final-vars", "rows", "--output", file, cwd=shop)
    assert file.read_text() == "n\n1\n2\n"


def test_a_job_that_fails(shop):
    given = ("--inputs", "n=0", "--final-vars", "broken")
    done = flowerpower("run-job", "odd", *given, "--traceback", cwd=shop, code=1)
    assert "ZeroDivisionError" in done.stderr
    assert "return 1 // n" in done.stderr
    id = re.search(r"^job (\S+)$", done.stderr, re.MULTILINE)[1]
    assert "Traceback" not in flowerpower("result", id, cwd=shop, code=1).stderr
    assert "Traceback" in flowerpower("result", id, "--traceback", cwd=shop, code=1).stderr
    details = as_json("job", id, cwd=shop)
    assert (details["state"], details["error"]["kind"]) == ("failed", "ZeroDivisionError")
    assert details["nodes"][-1]["status"] == "failed"
    assert "Traceback" in flowerpower("job", id, cwd=shop).stdout
    assert "failed" in flowerpower("job", id, "--follow", cwd=shop, code=1).stdout


def test_retry_prints_the_new_id(shop):
    old = flowerpower("add-job", "my_flow", "--inputs", "count=2", cwd=shop).stdout.strip()
    flowerpower("result", old, "--wait", WAIT, cwd=shop)
    new = flowerpower("retry", old, cwd=shop).stdout
    assert UUID.fullmatch(new)
    assert new.strip() != old
    assert flowerpower("result", new.strip(), "--wait", WAIT, cwd=shop).stdout == "total  6\n"
    assert as_json("job", new.strip(), cwd=shop)["retried_from"] == old


def test_follow_tells_what_happens_until_the_end(shop, tmp_path):
    inputs, gate, started = gates(tmp_path, "follow")
    id = flowerpower("add-job", "gated", "--inputs", inputs, cwd=shop).stdout.strip()
    with Process("job", id, "--follow", cwd=shop) as following:
        wait_for(started)
        assert "running" in following.process.stdout.readline()
        assert "waiting" in following.process.stdout.readline()
        flowerpower("result", id, cwd=shop, code=75)
        (row,) = as_json("top", cwd=shop)["running"]
        assert (row["id"], row["attempt"]) == (id, 1)
        gate.touch()
        code, rest = following.end()
    assert code == 0, rest
    assert re.search(r"✓ waited  \d", following.out)
    assert re.search(r"succeeded in \d", following.out.splitlines()[-1])
    lines = flowerpower("job", id, "--follow", "--output", "json", cwd=shop).stdout.splitlines()
    assert json.loads(lines[-1])["state"] == "succeeded"


def test_a_running_job_is_cancelled(shop, tmp_path):
    inputs, _, started = gates(tmp_path, "cancel")
    id = flowerpower("add-job", "gated", "--inputs", inputs, cwd=shop).stdout.strip()
    wait_for(started)
    assert "asked to end" in flowerpower("cancel", id, "--reason", "enough", cwd=shop).stdout
    done = flowerpower("result", id, "--wait", WAIT, cwd=shop, code=1)
    assert "cancelled" in done.stderr
    assert "enough" in done.stderr


def test_ctrl_c_ends_the_waiting_and_not_the_job(shop, tmp_path):
    inputs, gate, started = gates(tmp_path, "interrupt")
    with Process("run-job", "gated", "--inputs", inputs, cwd=shop) as running:
        id = running.until(r"^job ").split()[1]
        wait_for(started)
        running.signal(signal.SIGINT)
        code, rest = running.end()
    assert code == 130
    assert f"the job goes on; for its result: flowerpower result {id}" in rest
    gate.touch()
    done = flowerpower("result", id, "--wait", WAIT, cwd=shop)
    assert done.stdout == "waited  through\n"


def test_run_job_says_that_there_is_no_worker(idle):
    done = flowerpower("run-job", "my_flow", "--queue", "other", cwd=idle, code=75)
    assert "no worker serves queue 'other'" in done.stderr
    (job,) = as_json("jobs", cwd=idle)
    assert (job["state"], job["queue"]) == ("queued", "other")


def test_options_of_a_job_are_kept(idle):
    options = (
        "--queue big --priority 7 --key one --expires 900 --retry 4 --on-crash fail "
        "--max-crashes 2 --concurrency 3 --timeout 60 --run-at 2999-01-01T00:00:00+00:00"
    )
    id = flowerpower("add-job", "my_flow", *options.split(), cwd=idle).stdout.strip()
    job = as_json("job", id, cwd=idle)
    assert (job["queue"], job["priority"], job["key"], job["concurrency"]) == ("big", 7, "one", 3)
    assert (job["options"]["retry"]["max_attempts"], job["options"]["timeout"]) == (4, 60)
    assert (job["options"]["on_crash"], job["options"]["max_crashes"]) == ("fail", 2)
    assert job["run_at"].startswith(("2999-01-01", "2998-12-31"))
    assert flowerpower("add-job", "my_flow", "--key", "one", cwd=idle).stdout.strip() == id
    assert "due" in flowerpower("jobs", cwd=idle).stdout
    assert flowerpower("cancel", id, cwd=idle).stdout == f"job {id}: cancelled\n"


def test_jobs_are_filtered(idle):
    ids = [
        flowerpower("add-job", "my_flow", "--queue", queue, cwd=idle).stdout.strip()
        for queue in ("a", "b")
    ]
    flowerpower("cancel", ids[0], cwd=idle)

    def found(*filters):
        return [row["id"] for row in as_json("jobs", *filters, cwd=idle)]

    assert found() == ids[::-1]
    assert found("--limit", "1") == ids[1:]
    assert found("--state", "cancelled,failed") == ids[:1]
    assert found("--queue", "b", "--pipeline", "my_flow") == ids[1:]
    assert found("--schedule", "none") == []
    text = flowerpower("jobs", cwd=idle).stdout
    assert all(id in text for id in ids)


# Schedules ----------------------------------------------------------------------------------


def test_a_schedule_is_paused_resumed_and_removed(idle):
    options = "--crontab '0 3 * * *' --id nightly --paused --timezone Europe/Berlin --now"
    text = flowerpower("schedule", "my_flow", *shlex.split(options), cwd=idle).stdout
    assert "flowerpower schedules resume nightly" in text
    job = re.search(r"job   (\S+)", text)[1]
    assert as_json("job", job, cwd=idle)["state"] == "queued"
    states = []
    for verb in ("resume", "pause", "resume"):
        assert flowerpower("schedules", verb, "nightly", cwd=idle).stdout.startswith("nightly ")
        states.append(as_json("schedules", cwd=idle)[0]["state"])
    assert states == ["active", "paused", "active"]
    assert "crontab 0 3 * * *" in flowerpower("schedules", cwd=idle).stdout
    flowerpower("schedules", "remove", "nightly", cwd=idle)
    assert as_json("schedules", cwd=idle) == []


def test_the_schedules_of_the_configuration_are_applied(idle):
    (idle / "conf" / "pipelines.yml").write_text(
        "run: {my_flow: {dev: {schedule: {type: interval, params: {hours: 1}}}}}\n"
    )
    rows = as_json("schedule", "--all", cwd=idle)
    assert [row["id"] for row in rows] == ["my_flow.dev"]
    done = flowerpower("schedules", "remove", "my_flow.dev", cwd=idle)
    assert "conf/pipelines.yml has it" in done.stdout
    rows = as_json("schedule", "--all", cwd=idle)
    assert len(rows[0]["next_fire_times"]) == 3
    (idle / "conf" / "pipelines.yml").write_text("run: {my_flow: {dev: {}}}\n")
    assert as_json("schedule", "--all", cwd=idle) == []
    assert as_json("schedules", cwd=idle) == []


def test_check_finds_the_schedule_that_a_worker_leaves_out(idle):
    (idle / "conf" / "pipelines.yml").write_text(
        "run: {my_flow: {dev: {schedule: [{type: interval, params: {hours: 1}},"
        " {type: interval, params: {hour: 1}}]}}}\n"
    )
    where = "run.my_flow.dev.schedule[1]"
    problems = json.loads(flowerpower("check", "--output", "json", cwd=idle, code=2).stdout)
    (found,) = [p for p in problems["problems"] if p["where"] == where]
    assert found["level"] == "error"
    assert "did you mean 'hours'" in found["message"]
    with worker(cwd=idle) as process:
        process.until(re.escape(where))


def test_a_file_of_something_else_is_left_alone(idle):
    path = idle / "flowerpower.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE jobs (x)")
    before = path.read_bytes()
    assert "database of something else" in flowerpower("jobs", cwd=idle, code=3).stderr
    assert path.read_bytes() == before


def test_a_schedule_is_fired_by_a_scheduler_and_run_by_a_worker(idle):
    given = "schedule my_flow --id often --type interval --interval-params seconds=0.2"
    flowerpower(*given.split(), "--inputs", "count=1", cwd=idle)
    with Process("start-scheduler", cwd=idle) as scheduler:
        scheduler.until("scheduler")
        with worker("--no-schedules", cwd=idle) as process:
            process.until("schedules no")
            facts = as_json("top", cwd=idle)
            assert len(facts["workers"]) == len(facts["schedulers"]) == 1
            job = {"state": ""}
            while job["state"] != "succeeded":
                jobs = as_json("jobs", "--schedule", "often", "--limit", "50", cwd=idle)
                job = jobs[-1] if jobs else job
        scheduler.signal(signal.SIGTERM)
        assert scheduler.end()[0] == 0
    assert job["nominal_at"] is not None
    assert as_json("top", cwd=idle)["schedulers"] == []
    assert flowerpower("result", job["id"], cwd=idle).stdout.startswith("total  ")


# Workers and signals ------------------------------------------------------------------------


def test_the_first_signal_lets_jobs_end(idle, tmp_path):
    (idle / "conf" / "scheduler.yml").write_text("worker: {grace: 50}\n")
    inputs, gate, started = gates(tmp_path, "drain")
    id = flowerpower("add-job", "gated", "--inputs", inputs, cwd=idle).stdout.strip()
    with worker(cwd=idle) as process:
        wait_for(started)
        process.signal(signal.SIGTERM)
        assert "waiting for 1 job to end, at most 50 s" in process.until("waiting")
        gate.touch()
        code, rest = process.end()
    assert (code, rest.count("has ended")) == (0, 1)
    assert flowerpower("result", id, cwd=idle).stdout == "waited  through\n"


def test_what_does_not_end_is_given_back_and_run_by_another(idle, tmp_path):
    inputs, gate, started = gates(tmp_path, "back")
    id = flowerpower("add-job", "gated", "--inputs", inputs, cwd=idle).stdout.strip()
    with worker(cwd=idle) as process:
        wait_for(started)
        process.signal(signal.SIGTERM)
        assert process.end()[0] == 0
    job = as_json("job", id, cwd=idle)
    assert (job["state"], job["attempt"], job["crashes"]) == ("queued", 1, 0)
    gate.touch()
    with worker(cwd=idle):
        flowerpower("result", id, "--wait", WAIT, cwd=idle)
    assert as_json("job", id, cwd=idle)["attempt"] == 2


def test_the_second_signal_gives_back_at_once(idle, tmp_path):
    (idle / "conf" / "scheduler.yml").write_text("worker: {grace: 50}\n")
    inputs, _, started = gates(tmp_path, "second")
    id = flowerpower("add-job", "gated", "--inputs", inputs, cwd=idle).stdout.strip()
    with worker(cwd=idle) as process:
        wait_for(started)
        process.signal(signal.SIGINT)
        process.until("waiting")
        process.signal(signal.SIGINT)
        code, rest = process.end()
    assert (code, "giving back" in rest, "has ended" in rest) == (130, True, True)
    assert as_json("job", id, cwd=idle)["state"] == "queued"


def test_the_options_of_a_worker(idle):
    arguments = "--queues a,b --concurrency 5 --runner inline --no-schedules".split()
    with worker(*arguments, cwd=idle) as process:
        line = process.until("worker")
        assert "queues a,b, runner inline, schedules no; data store sqlite" in line
        while not (members := as_json("top", cwd=idle)["workers"]):
            pass
        (member,) = members
        assert (member["queues"], member["concurrency"]) == (["a", "b"], 5)
        done = flowerpower("run-job", "my_flow", "--queue", "b", "-q", cwd=idle)
        assert done.stdout == "total  110\n"
        process.signal(signal.SIGINT)
        assert process.end()[0] == 0
    assert as_json("top", cwd=idle)["workers"] == []


UNREACHABLE = "data_store: {type: postgres, uri: 'postgresql://user:s3cret@127.0.0.1:1/x'}\n"


@pytest.mark.parametrize("command", ["start-worker", "start-scheduler"])
def test_a_daemon_waits_for_the_data_store(idle, command):
    pytest.importorskip("asyncpg")
    (idle / "conf" / "scheduler.yml").write_text(UNREACHABLE)
    with Process(command, cwd=idle) as process:
        assert "s3cret" not in process.until("unavailable, trying again")
        process.signal(signal.SIGTERM)
        assert process.end() == (0, "")


@pytest.mark.parametrize("line", ["add-job my_flow", "run-job my_flow", "jobs", "top"])
def test_a_command_does_not_wait_for_the_data_store(idle, line):
    pytest.importorskip("asyncpg")
    (idle / "conf" / "scheduler.yml").write_text(UNREACHABLE)
    done = flowerpower(*line.split(), cwd=idle, code=3)
    assert done.stdout == ""
    assert "127.0.0.1:1" in done.stderr
    assert "s3cret" not in done.stderr


def test_a_store_in_memory(idle):
    (idle / "conf" / "scheduler.yml").write_text("data_store: {type: memory}\n")
    assert flowerpower("run-job", "my_flow", "-q", cwd=idle).stdout == "total  110\n"
    done = flowerpower("run-job", "my_flow", "-q", "--queue", "other", cwd=idle, code=75)
    assert "the worker of this process has to (worker.queues)" in done.stderr
    for line in ("add-job my_flow", "schedule my_flow --crontab @daily", "start-scheduler"):
        done = flowerpower(*line.split(), cwd=idle, code=2)
        assert "memory" in done.stderr
        assert done.stdout == ""


# top and store ------------------------------------------------------------------------------


def test_top_is_text_in_a_pipe(shop):
    id = flowerpower("add-job", "my_flow", cwd=shop).stdout.strip()
    flowerpower("result", id, "--wait", WAIT, cwd=shop)
    text = flowerpower("top", "--once", cwd=shop).stdout
    assert re.search(r"^queues +queued +running", text, re.MULTILINE)
    assert re.search(r"^default +\d+", text, re.MULTILINE)
    assert re.search(r"of 2 +process", text)
    assert "\x1b" not in text


def test_top_is_live_on_a_terminal(shop):
    import pty

    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "top"],
        cwd=shop,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(terminal)
    seen = b""
    try:
        while chunk := os.read(master, 4096):
            seen += chunk
            if b"queues" in seen and process.poll() is None:
                process.send_signal(signal.SIGINT)
    except OSError:
        pass  # the terminal's other end is closed: the process has ended
    os.close(master)
    assert process.wait(timeout=SECONDS) == 0
    assert b"\x1b[?1049h" in seen
    assert seen.rindex(b"\x1b[?1049l") > seen.rindex(b"queues")


def test_store(idle):
    id = flowerpower("add-job", "my_flow", "--result-ttl", "0.001", cwd=idle).stdout.strip()
    flowerpower("cancel", id, cwd=idle)
    facts = as_json("store", "info", cwd=idle)
    assert (facts["type"], facts["jobs"]) == ("sqlite", 1)
    assert "flowerpower.db" in flowerpower("store", "info", cwd=idle).stdout
    assert flowerpower("store", "prune", cwd=idle).stdout == "1 job removed\n"
    assert flowerpower("store", "prune", cwd=idle).stdout == "0 jobs removed\n"
    assert flowerpower("store", "vacuum", cwd=idle).stdout.startswith("bytes  ")


# Bad input ----------------------------------------------------------------------------------

INTERVAL = "--type interval --interval-params seconds=30"
BAD = {
    "add-job my_flw": "did you mean 'my_flow'",
    "add-job my_flow --inputs cnt=3": "did you mean 'count'",
    "add-job my_flow --inputs count=many": "expected int",
    "add-job my_flow --final-vars totl": "did you mean 'total'",
    "add-job my_flow --run-at tomorrow": "2027-01-31T08:00:00",
    "add-job my_flow --delay -1": "--delay",
    "add-job my_flow --delay soon": "--delay",
    "add-job my_flow --delay 1 --run-at 2999-01-01": "not both",
    "add-job my_flow --queue ''": "queue is a text",
    "add-job my_flow --retry 0": "--retry",
    "add-job my_flow --concurrency 99999999999999999999": "concurrency: expected int <= 2147483647",
    "schedule my_flow --type cron": "cron: when? give some of year",
    "schedule my_flow --type interval": "interval: when? give some of weeks",
    "schedule my_flow --crontab '* * * * *' --id ''": "id is a text",
    "add-job my_flow --executor warp": "warp",
    "schedule my_flow --type hourly": "unknown trigger 'hourly'",
    "schedule my_flow --type interval --interval-params second=3": "did you mean 'seconds'",
    "schedule my_flow --type interval --interval-params priority=3": "has no argument 'priority'",
    "schedule my_flow --crontab '0 61 * * *'": "61",
    "schedule my_flow --type cron --interval-params seconds=3": "not for --type cron",
    "schedule my_flow": "say when",
    "schedule": "--all",
    f"schedule my_flow --all {INTERVAL}": "--all",
    f"schedule my_flow {INTERVAL} --delay 3": "for single jobs",
    f"schedule my_flow {INTERVAL} --timezone Mars": "Mars",
    f"schedule my_flow {INTERVAL} --inputs cnt=3": "did you mean 'count'",
    "schedules pause nightly": "unknown schedule 'nightly'",
    "schedules resume nightly": "unknown schedule 'nightly'",
    "schedules remove nightly": "unknown schedule 'nightly'",
    "jobs --state queud": "did you mean 'queued'",
    "result 0190-no-such-id": "unknown job",
    "job 0190-no-such-id": "unknown job",
    "job 0190-no-such-id --follow": "unknown job",
    "cancel 0190-no-such-id": "unknown job",
    "retry 0190-no-such-id": "unknown job",
    "start-worker --queues ,": "--queues",
    "start-worker --concurrency 0": "--concurrency",
    "start-worker --runner fast": "--runner",
}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    root = make(tmp_path_factory.mktemp("bad") / "shop")
    yield root
    assert as_json("jobs", cwd=root) == as_json("schedules", cwd=root) == []


@pytest.mark.parametrize(("line", "hint"), BAD.items())
def test_bad_input_is_refused_and_stores_nothing(untouched, line, hint):
    done = flowerpower(*shlex.split(line), cwd=untouched, code=2)
    assert hint in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_only_a_job_that_has_ended_is_retried(idle):
    id = flowerpower("add-job", "my_flow", cwd=idle).stdout.strip()
    assert "is queued" in flowerpower("retry", id, cwd=idle, code=2).stderr
    done = flowerpower("result", id, cwd=idle, code=75)
    assert "is queued" in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        *(
            "run",
            "show",
            "run-job",
            "add-job",
            "result",
            "jobs",
            "job",
            "cancel",
            "retry",
            "schedule",
        ),
        *("schedules", "schedules pause", "schedules resume", "schedules remove"),
        *("start-worker", "start-scheduler", "top", "store", "store info", "store prune"),
    ],
)
def test_every_command_has_help(tmp_path, line):
    text = flowerpower(*line.split(), "--help", cwd=tmp_path).stdout
    assert text.startswith("Usage:")
    assert "\\b" not in text


def test_the_help_of_schedule_tells_crontab_from_cron(tmp_path):
    text = flowerpower("schedule", "--help", cwd=tmp_path).stdout
    assert "0 (Sunday)" in text
    assert "0 is Monday" in text


# What is printed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "0.012 s"),
        (45.2, "45 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (86_400, "1 d"),
        (90_000, "1 d 1 h"),
        (60 * 86_400 + 7200, "60 d"),
    ],
)
def test_spans(seconds, text):
    assert span(seconds) == text


def test_ages():
    assert [ago(moment, 100.0) for moment in (100.4, 97, 40, 130, None)] == [
        "now",
        "3 s ago",
        "1 min ago",
        "in 30 s",
        "",
    ]


def test_records_with_fields_like_methods(capsys):
    from fp_async.cli.output import show_result

    record = Record("shop.Head", {"head": 1, "shape": (2,), "tolist": 3})
    show_result({"value": record}, "json")
    assert json.loads(capsys.readouterr().out) == {"value": {"head": 1, "shape": [2], "tolist": 3}}
    show_result({"value": record}, "table")
    assert capsys.readouterr().out == "value  Head(head=1, shape=(2,), tolist=3)\n"


# Several at once, and since when ----------------------------------------------------------------


def test_d13_several_jobs_are_cancelled_and_retried_at_once(idle):
    ids = [flowerpower("add-job", "my_flow", cwd=idle).stdout.strip() for _ in range(2)]
    done = flowerpower("cancel", *ids, "00000000", ids[0], cwd=idle, code=2)
    assert done.stdout.splitlines() == [f"job {id}: cancelled" for id in ids]
    assert "unknown job '00000000'" in done.stderr
    retried = flowerpower("retry", *ids, cwd=idle).stdout.splitlines()
    rows = as_json("jobs", "--since", "10min", "--state", "queued", cwd=idle)
    assert sorted(row["id"] for row in rows) == sorted(retried)
    assert {row["retried_from"] for row in rows} == set(ids)
    assert as_json("jobs", "--since", "2099-01-01", cwd=idle) == []
