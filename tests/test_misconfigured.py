"""Configuration that is broken while workers are at work: what it stops, and what it does not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter

import pytest

from edge_agent import config
from fp_async import documents, rules
from fp_async.config import WorkerSettings
from fp_async.errors import ConfigError, JobFailedError, MisconfiguredError
from fp_async.jobs import Job
from fp_async.misconfigured_jobs import MisconfiguredJobs
from fp_async.stores.sqlite import SqliteStore

GOOD = "def a() -> int:\n    return 1\n"
BAD = "def b(pw: str) -> str:\n    return pw\n"
UNSET = "run:\n  bad:\n    dev:\n      inputs: {pw: '${FP_NOPE}'}\n"
SET = "run:\n  bad:\n    dev:\n      inputs: {pw: x}\n"
BROKEN = "run: [\n"
INLINE = WorkerSettings(runner="inline", concurrency=2)
PROCESS = WorkerSettings(runner="process", concurrency=1)


def write(project, text, name="conf/pipelines.yml"):
    path = project.root / name
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


@contextlib.asynccontextmanager
async def at_work(project, settings):
    task = asyncio.create_task(project.start_worker(settings))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(look, seconds=30.0):
    """What `look` gives, as soon as that is something."""
    async with asyncio.timeout(seconds):
        while not (found := await look()):
            await asyncio.sleep(0.02)
    return found


async def waiting(project, id):
    """The job, when a worker has released it."""

    async def look():
        job = await project.get_job(id)
        return job if (job.reason or "").startswith("configuration: ") else None

    return await until(look)


async def test_b1_a_thousand_broken_jobs_hold_up_no_good_one_and_are_not_lost(
    make_project, monkeypatch
):
    claims = []
    claim = SqliteStore.claim

    async def counted(self, *args, **more):
        claims.append(time.monotonic())
        return await claim(self, *args, **more)

    monkeypatch.setattr(SqliteStore, "claim", counted)
    project = make_project(SET, good=GOOD, bad=BAD)
    async with project:
        await asyncio.gather(*(project.add_job("bad") for _ in range(1000)))
        good = [await project.add_job("good") for _ in range(10)]
        write(project, UNSET)
        async with at_work(project, INLINE):
            for id in good:
                assert await project.get_result(id, wait=60) == {"a": 1}
            looks = len(claims)
            jobs = await project.list_jobs(pipeline="bad", limit=2000)
            told = Counter((j.state, j.reason, j.attempt, j.errors, j.crashes) for j in jobs)
            ((state, reason, *counts),) = told
            assert (state, counts) == ("queued", [0, 0, 0])
            assert "pipelines.yml:4: run.bad.dev.inputs.pw: environment variable FP_NOPE" in reason
            assert looks < 60, "a hundred are looked at together"
            write(project, SET)

            async def done():
                jobs = await project.list_jobs(pipeline="bad", limit=2000)
                return {job.state for job in jobs} == {"succeeded"} and jobs

            jobs = await until(done, 90.0)
            assert {job.attempt for job in jobs} == {1}


async def test_b1_an_idle_worker_with_a_broken_job_does_not_spin(make_project, monkeypatch):
    claims = []
    claim = SqliteStore.claim

    async def counted(self, *args, **more):
        claims.append(args)
        return await claim(self, *args, **more)

    monkeypatch.setattr(SqliteStore, "claim", counted)
    project = make_project(UNSET, good=GOOD, bad=BAD)
    async with project:
        write(project, SET)
        id = await project.add_job("bad")
        write(project, UNSET)
        async with at_work(project, INLINE):
            await waiting(project, id)
            before = len(claims)
            later = await project.add_job("good", delay=2.5)
            assert await project.get_result(later, wait=30) == {"a": 1}
            assert len(claims) - before < 15
            job = await project.get_job(later)
            assert (job.started_at - job.run_at).total_seconds() < 2.0, (
                "the one that waits makes nobody sleep longer"
            )


async def test_b1_a_child_process_tells_what_its_files_lack(make_project, monkeypatch):
    """An agent's worker reads no configuration: its child does."""
    from fp_async import runner

    monkeypatch.setattr(runner.ProcessRunner, "trouble", lambda *_: None)
    project = make_project(SET, bad=BAD)
    async with project:
        id = await project.add_job("bad")
        write(project, UNSET)
        async with at_work(project, PROCESS):
            job = await waiting(project, id)
            assert (job.attempt, job.errors, job.crashes, job.started_at) == (0, 0, 0, None)
            write(project, "FP_NOPE=12345\n", ".env")
            assert await project.get_result(id, wait=60) == {"b": "12345"}
    assert (await project.get_job(id)).attempt == 1


@pytest.mark.parametrize("settings", [INLINE, PROCESS], ids=["inline", "process"])
async def test_b1_a_worker_goes_on_with_the_last_good_file_and_says_so_once(
    make_project, caplog, settings
):
    project = make_project(SET, bad=BAD, good=GOOD)
    async with project:
        async with at_work(project, settings):
            first = await project.add_job("bad")
            assert await project.get_result(first, wait=60) == {"b": "x"}
            write(project, BROKEN)
            ids = [await project.add_job(name) for name in ("bad", "good", "bad")]
            project.refresh()
            results = [await project.get_result(id, wait=60) for id in ids]
            assert results == [{"b": "x"}, {"a": 1}, {"b": "x"}]
            assert caplog.text.count("going on with what conf/pipelines.yml said before") == 1
            write(project, SET.replace("pw: x", "pw: y"))

            async def look():
                return (await project.run("bad"))["b"] == "y"

            project.refresh()
            await until(look)
            assert caplog.text.count("conf/pipelines.yml can be read again") == 1


async def test_b1_a_child_that_begins_while_a_file_is_broken_knows_what_it_said(make_project):
    project = make_project(SET, bad=BAD)
    settings = WorkerSettings(runner="process", concurrency=2, max_jobs_per_child=1)
    async with project, at_work(project, settings):
        assert await project.get_result(await project.add_job("bad"), wait=60) == {"b": "x"}
        write(project, BROKEN)
        for _ in range(3):
            assert await project.get_result(await project.add_job("bad"), wait=60) == {"b": "x"}


async def test_b1_a_worker_that_begins_with_a_broken_file_waits_with_its_jobs(make_project, caplog):
    project = make_project(SET, bad=BAD)
    id = await project.add_job("bad")
    write(project, BROKEN)
    again = type(project)(project.root)
    again.flows.files._sources["pipelines.yml"].text = None  # as in a process that has just begun
    async with at_work(again, PROCESS):
        job = await waiting(project, id)
        assert job.reason.startswith("configuration: conf/pipelines.yml:2:1: not valid YAML")
        assert "schedules stay as they were: conf/pipelines.yml:2:1" in caplog.text
        write(project, SET)
        assert await project.get_result(id, wait=60) == {"b": "x"}


async def test_b1_what_does_not_exist_is_waited_for_and_then_rejected(make_project, monkeypatch):
    project = make_project(SET, bad=BAD, gone=GOOD)
    async with project:
        id = await project.add_job("gone")
        (project.root / "pipelines" / "gone.py").unlink()
        async with at_work(project, INLINE):
            job = await waiting(project, id)
            assert "unknown pipeline 'gone'" in job.reason
            assert job.failure.since > 0
            monkeypatch.setattr(rules, "MISSING_TTL", 0.0)
            with pytest.raises(JobFailedError) as raised:
                await project.get_result(id, wait=60)
            assert raised.value.outcome == "rejected"
            assert (await project.get_job(id)).attempt == 1


@pytest.mark.parametrize(
    "entry",
    [
        "modules: [bda]",
        "final_vars: [bb]",
        "nodes: {bb: {timeout: 1}}",
        "timeout: soon",
        "timeuot: 5",
    ],
)
async def test_b1_whatever_is_wrong_with_the_entry_no_job_fails_for_it(make_project, entry):
    project = make_project(SET, bad=BAD)
    async with project:
        id = await project.add_job("bad")
        write(project, f"{SET}      {entry}\n")
        async with at_work(project, INLINE):
            job = await waiting(project, id)
            assert job.reason.startswith("configuration: ")
            write(project, SET)
            assert await project.get_result(id, wait=60) == {"b": "x"}


async def test_b1_a_configured_input_that_does_not_fit_fails_no_job(make_project, monkeypatch):
    monkeypatch.setenv("FP_TEXT", "many")
    project = make_project(SET.replace("pw: x", "pw: 3"), bad=BAD.replace("str", "int"))
    async with project:
        id = await project.add_job("bad")
        write(project, SET.replace("pw: x", "pw: '${FP_TEXT}'"))
        async with at_work(project, INLINE):
            job = await waiting(project, id)
            assert "run.bad.dev.inputs: pw: expected int, got str 'many'" in job.reason
            write(project, SET.replace("pw: x", "pw: 4"))
            assert await project.get_result(id, wait=60) == {"b": 4}


# Entries ----------------------------------------------------------------------------------------


def test_b1_an_unset_variable_of_one_environment_stops_only_that(make_project):
    """B1, A9: `prod` of one pipeline needs a variable that this machine does not have."""
    project = make_project(
        """
        run:
          one:
            dev: {inputs: {pw: a}}
            prod: {inputs: {pw: "${FP_NOPE:-${FP_NOR}}"}}
            test: {inputs: {pw: c}}
          two: {dev: {timeout: soon}}
        """,
        one=BAD,
        two=GOOD,
        three=GOOD,
    )
    flows = project.flows
    assert flows.settings("one", "dev").inputs == {"pw": "a"}
    assert flows.settings("one", "test").inputs == {"pw": "c"}
    assert flows.settings("three", "dev").inputs is None
    with pytest.raises(
        MisconfiguredError, match=r"yml:5: run\.one\.prod\.inputs\.pw: .*FP_NOR is not"
    ):
        flows.settings("one", "prod")
    with pytest.raises(MisconfiguredError, match=r"yml:7: run\.two\.dev\.timeout: expected"):
        flows.settings("two", "dev")
    assert sorted(p.where for p in project.check().errors) == ["run.one.prod", "run.two.dev"]


def test_b1_what_an_environment_sets_itself_dev_need_not_have(make_project):
    project = make_project(
        """
        run:
          one:
            dev: {inputs: {pw: "${FP_NOPE}"}, timeout: soon}
            prod: {inputs: {pw: p}, timeout: 5}
        """,
        one=BAD,
    )
    settings = project.flows.settings("one", "prod")
    assert (settings.inputs, settings.timeout) == ({"pw": "p"}, 5.0)


def test_b9_a_variable_is_text_and_read_by_the_type_of_its_key(make_project, monkeypatch):
    """B9: `password: ${PW}` with PW=12345."""
    from fp_async import config_files

    monkeypatch.setenv("FP_N", "12345")
    monkeypatch.setenv("FP_T", "true")
    project = make_project(
        "run: {one: {dev: {timeout: '${FP_N}', with_tracker: '${FP_T}'}}}", one=GOOD
    )
    write(
        project,
        "event_broker:\n  type: mqtt\n  port: ${FP_N}\n  username: '${FP_N}'\n  password: ${FP_N}\n",
        "conf/scheduler.yml",
    )
    broker = config_files.read(project.root, "scheduler.yml").event_broker
    assert (broker.port, broker.username, broker.password) == (12345, "12345", "12345")
    settings = project.flows.settings("one", "dev")
    assert (settings.timeout, settings.with_tracker) == (12345.0, True)


def test_b1_the_rest_of_scheduler_yml_does_not_stop_whoever_adds_jobs(make_project):
    from fp_async import backend

    project = make_project(good=GOOD)
    write(project, "worker: {concurrency: '${FP_NOPE}'}\n", "conf/scheduler.yml")
    backend.check(project.root)
    assert [p.message[:35] for p in project.check().errors] == [
        "conf/scheduler.yml:1: worker.concur"
    ]


def test_c11_x_keys_are_there_for_anchors_in_all_files(make_project):
    project = make_project(
        "x-all: &all {timeout: 5, inputs: {pw: '${FP_NOPE}'}}\nrun: {one: {dev: {<<: *all, inputs: {pw: a}}}}",
        one=BAD,
    )
    for name in ("scheduler", "tracker", "mqtt"):
        write(project, "x-any: {thing: [1]}\n", f"conf/{name}.yml")
    assert project.flows.settings("one", "dev").timeout == 5.0
    assert project.check().errors == []


def test_c11_a_yaml_bomb_is_refused_at_once(make_project):
    bomb = "x-a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"x-a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    project = make_project(bomb, one=GOOD)
    began = time.process_time()
    with pytest.raises(ConfigError, match="yml:5: its aliases .* come to 1.23e\\+12 values"):
        project.flows.settings("one", "dev")
    assert time.process_time() - began < 1.0


def test_e22_a_bomb_is_refused_by_file_and_line_in_every_file(make_project, tmp_path):
    bomb = "x-a0: &a0 {k: [x, x, x, x, x, x, x, x, x, x]}\n" + "".join(
        f"x-a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12)
    )
    project = make_project(one=GOOD)
    for name in ("pipelines", "scheduler", "tracker", "mqtt"):
        write(project, bomb, f"conf/{name}.yml")
    errors = [each for each in project.check().errors if "its aliases" in each.message]
    assert len(errors) == 4
    (tmp_path / "agent.yml").write_text(bomb)
    with pytest.raises(ConfigError, match=r"agent\.yml:5: its aliases"):
        config.read(tmp_path / "agent.yml", {}, {})


@pytest.mark.parametrize(
    ("scalar", "kind"),
    [
        ("9" * 6000, "int"),
        ("2020-13-45", "timestamp"),
        ("!!bool perhaps", "bool"),
        ("!!float x", "float"),
        ("!!timestamp x", "timestamp"),
    ],
)
def test_e22_a_scalar_that_cannot_be_read_is_named(scalar, kind):
    with pytest.raises(ConfigError, match=f"^f.yml:2:4: not valid YAML: this is no {kind};"):
        documents.parse(f"b: 1\na: {scalar}\n", "f.yml", {})


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("ConectionError", "ConnectionError"),
        ("flow.Mien", "flow.Mine"),
        ("dict", None),
        ("json.JSONDecodeErr", "json.decoder.JSONDecodeError"),
        *((name, "") for name in ("OSError", "Mine", "flow.Mine", "json.JSONDecodeError")),
        *((name, "") for name in ("NodeTimeoutError", "fp_async.NodeError", "Exception")),
    ],
)
def test_c11_a_class_in_retry_on_that_does_not_exist_is_a_warning(make_project, name, near):
    source = (
        "import json\n\n\nclass Mine(Exception):\n    pass\n\n\ndef a() -> int:\n    return 1\n"
    )
    conf = f"run: {{flow: {{dev: {{retry: {{on: [{name}]}}}}}}}}"
    found = [p.message for p in make_project(conf, flow=source).check().warnings]
    if near == "":
        assert found == []
        return
    (text,) = found
    assert text.startswith(f"no class of errors is called '{name}'")
    assert near is None or near.rpartition(".")[2] in text


def test_c11_a_dotted_name_in_retry_on_means_a_class_of_that_package():
    import json

    from fp_async.config import Retry

    error = json.JSONDecodeError("x", "", 0)
    assert Retry(on=["json.JSONDecodeError"]).wants(error, 1)
    assert Retry(on=["json.decoder.JSONDecodeError"]).wants(error, 1)
    assert Retry(on=["builtins.ValueError"]).wants(error, 1)
    assert not Retry(on=["requests.JSONDecodeError"]).wants(error, 1)


def test_the_value_of_a_secret_variable_is_in_no_message(make_project, monkeypatch):
    monkeypatch.setenv("FP_SECRET", "hunter2")
    monkeypatch.setenv("FP_PLAIN", "shown")
    project = make_project(
        "run: {a: {dev: {on_crash: '${FP_SECRET}'}}, b: {dev: {on_crash: '${FP_PLAIN}'}}}",
        a=GOOD,
        b=GOOD,
    )
    text = " ".join(problem.message for problem in project.check().errors)
    assert "hunter2" not in text
    assert "the value of ${FP_SECRET}" in text
    assert "'shown'" in text


def test_the_value_of_a_secret_input_is_in_no_message(make_project, monkeypatch):
    monkeypatch.setenv("FP_SECRET", "hunter2")
    conf = "run: {bad: {dev: {inputs: {pw: '${FP_SECRET}'}}}}"
    project = make_project(conf, bad=BAD.replace("str", "int"))
    text = " ".join(problem.message for problem in project.check().problems)
    assert "hunter2" not in text
    assert "pw: the value of ${FP_SECRET} is of the wrong type" in text


# Schedules --------------------------------------------------------------------------------------

SCHEDULES = """
run:
  good:
    dev:
      schedule:
        - {type: interval, params: {hours: 1}, id: hourly}
        - {type: cron, params: {houre: 4}, id: typo}
        - {type: interval, params: {seconds: "${FP_NOPE}"}, id: unset}
        - {type: interval, params: {hours: "${FP_HOURS:-2}"}, id: text}
    prod:
      timeout: soon
      schedule: {type: interval, params: {hours: 3}}
"""


async def test_b10_a_bad_schedule_is_left_out_loudly_and_the_queue_is_served(make_project, caplog):
    project = make_project(SCHEDULES, good=GOOD)
    found = [problem.where for problem in project.check().errors]
    assert found == ["run.good.dev.schedule[1]", "run.good.dev.schedule[2]", "run.good.prod"]
    async with project, at_work(project, INLINE):
        assert await project.get_result(await project.add_job("good"), wait=60) == {"a": 1}
        ids = [row.id for row in await project.list_schedules()]
        assert ids == ["hourly", "text"]
        for id in ("typo", "unset", "good.prod"):
            assert f"schedule '{id}' is left out: conf/pipelines.yml" in caplog.text
        right = SCHEDULES.replace("houre", "hour").replace("soon", "5").replace("${FP_NOPE}", "9")
        write(project, right.replace('"9"', "9"))

        async def all_of_them():
            return len(await project.list_schedules()) == 5

        await until(all_of_them)
        write(project, SCHEDULES)
    with pytest.raises(ConfigError, match="has no argument 'houre'"):
        await project.apply_schedules()
    assert len(await project.list_schedules()) == 5, "those whose entries broke stay as they were"


async def test_b10_schedules_follow_the_file_while_a_worker_runs(make_project, caplog):
    text = "run: {good: {dev: {schedule: {type: interval, params: {hours: 1}, id: s}}}}"
    project = make_project(text, good=GOOD)

    async def hours():
        return [row.trigger for row in await project.list_schedules()]

    async def is_every(wanted):
        return await hours() == [f"every {wanted} h"]

    async def is_said(words):
        return words in caplog.text

    async with project, at_work(project, INLINE):
        await until(lambda: is_every(1))
        for changed in (2, 3):
            write(project, text.replace("hours: 1", f"hours: {changed}"))
            await until(lambda wanted=changed: is_every(wanted))
        write(project, text.replace("hours: 1", "houres: 4"))
        await until(lambda: is_said("schedule 's' stays as it was: conf/pipelines.yml"))
        (project.root / "conf/scheduler.yml").write_text("worker: {concurrency: 3}\n")
        await until(lambda: is_said("conf/scheduler.yml was changed"))
        assert await is_every(3)


# What a worker leaves alone ---------------------------------------------------------------------


def released(id, environment=b'{"environment": "prod"}'):
    return Job(id=id, pipeline="p", spec=environment)


def test_b1_one_of_those_that_wait_is_tried_after_1_s_doubling_to_60():
    found = MisconfiguredJobs(lambda: 0)
    for n in range(3):
        found.add(released(str(n)), "no", 100.0)
    assert list(found.left(100.9)) == ["0", "1", "2"]
    now, pauses = 100.0, []
    for _ in range(9):
        pause = found.next(now)
        pauses.append(pause)
        now += pause
        (probe,) = {"0", "1", "2"} - {*found.left(now)}
        found.add(released(probe), "no", now)
        assert sorted(found.left(now)) == ["0", "1", "2"]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_b1_environments_wait_apart_and_what_begins_frees_the_others():
    found = MisconfiguredJobs(lambda: 0)
    found.add(released("a"), "no", 100.0)
    found.add(released("b", b"{}"), "no", 100.0)
    found.begun(released("c"), 99.0)
    assert sorted(found.left(100.5)) == ["a", "b"], "it was claimed before"
    found.begun(released("c"), 100.2)
    assert list(found.left(100.5)) == ["b"]


def test_b1_changed_files_free_all():
    stamps = [0]
    found = MisconfiguredJobs(lambda: stamps[0])
    found.add(released("a"), "no", 100.0)
    stamps[0] = 1
    assert list(found.left(100.1)) == []
    assert found.next(100.1) is None


def test_e12_jobs_that_run_again_after_a_change_are_said_to_once(caplog):
    stamps = [0]
    found = MisconfiguredJobs(lambda: stamps[0])
    found.add(released("a"), "no", 100.0)
    stamps[0] = 1
    found.left(100.1)
    found.begun(released("z"), 100.0)  # claimed before the files were changed
    assert "run again" not in caplog.text
    for id in ("a", "b"):
        found.begun(released(id), 100.2)
    assert caplog.text.count("jobs of 'p' (prod) run again") == 1
    found.add(released("c"), "no", 101.0)
    stamps[0] = 2
    found.left(101.1)
    found.add(released("c"), "still no", 101.2)
    assert caplog.text.count("run again") == 1
