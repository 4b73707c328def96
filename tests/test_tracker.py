"""Runs in the Hamilton UI: the real one from PyPI, asked over its REST API."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request

import edge_kit
import psutil
import pytest
import services
from fleet import COMMAND, fleet
from ui_kit import USER, HamiltonUI, forgetful

from fp_async import Project, tracker_setup
from fp_async.errors import ConfigError, JobError, NodeError, UsageError
from fp_async.tracker import tracker

FLOW = '''
import asyncio
import os
import pathlib
import time


def numbers(count: int) -> list[int]:
    """The first numbers."""
    return list(range(count))


async def total(numbers: list[int]) -> int:
    return sum(numbers)


def report(total: int) -> dict:
    return {"total": total, "of": "numbers"}


def failing(total: int) -> int:
    raise KeyError("no such thing")


def after(failing: int) -> int:
    return failing


async def waiting(gate: str, total: int) -> int:
    pathlib.Path(gate + ".begun").touch()
    while not os.path.exists(gate):
        await asyncio.sleep(0.01)
    return total


def blocking(seconds: float) -> int:
    time.sleep(seconds)
    return 1


def dying(total: int) -> int:
    time.sleep(0.3)
    os.kill(os.getpid(), 9)
'''
SQLITE = "data_store:\n  type: sqlite\n  uri: sqlite:///jobs.db\n"
ENDED = {"numbers": "SUCCESS", "total": "SUCCESS"}


@pytest.fixture(scope="module")
def ui():
    with HamiltonUI() as server:
        yield server


@pytest.fixture
def project(ui, tmp_path):
    """A project whose pipeline `flow` has a project of its own in the UI."""
    return made(tmp_path / "project", ui)


def made(root, ui):
    (root / "pipelines").mkdir(parents=True)
    (root / "conf").mkdir()
    (root / "pipelines" / "flow.py").write_text(FLOW)
    (root / "conf" / "scheduler.yml").write_text(SQLITE)
    name = ui.uri
    done = tracker_setup.setup(root, "flow", username=USER, api_url=name)
    project = Project(root)
    project.id = done.project_id
    return project


@pytest.fixture(autouse=True)
def _own_project(request, monkeypatch):
    """Every test has a project of its own, though all pipelines have one name."""
    name = f"{request.node.name}-{time.time_ns()}"
    real = tracker_setup._project
    monkeypatch.setattr(
        tracker_setup, "_project", lambda s, _, known, user: real(s, name, known, user)
    )


def track(project, **entries):
    """Lay entries over those of the pipeline in conf/tracker.yml."""
    from fp_async import scaffold

    def change(data):
        data["pipeline"]["flow"].update(entries)

    scaffold.edit_file(project.root, "tracker.yml", change)


# A run in this process ------------------------------------------------------------------------


async def test_a_run_is_shown_with_its_nodes_code_and_values(ui, project):
    track(project, tags={"environment": "test", "version": 1.0}, dag_name="named")
    result = await project.run("flow", {"count": 4}, ["report"], with_tracker=True)
    assert result["report"]["total"] == 6
    assert tracker().flush(10) == 0
    shown = ui.until(project.id)
    assert (shown.status, shown.outcome) == ("SUCCESS", "succeeded")
    assert shown.nodes == {**ENDED, "report": "SUCCESS"}
    assert shown.tags["environment"] == "test"
    assert shown.tags["version"] == "1.0"
    assert shown.found["inputs"] == {"count": 4}
    assert shown.found["outputs"] == ["report"]
    assert shown.attributes["numbers"]["result_summary"]["value"] == [0, 1, 2, 3]
    assert shown.attributes["total"]["result_summary"] == {"type": "int", "value": "6"}
    assert shown.attributes["report"]["result_summary"]["value"] == {"total": 6, "of": "numbers"}
    assert shown.times("numbers") <= shown.times("total") <= shown.times("report")
    template = ui.template(shown.found["dag_template"])
    assert template["name"] == "named"
    nodes = {node["name"]: node for node in template["nodes"]}
    assert nodes["report"]["dependencies"] == ["total"]
    assert nodes["count"]["classifications"] == ["input"]
    assert nodes["numbers"]["documentation"] == "The first numbers."
    (file,) = template["code"]["files"]
    assert (file["path"], file["contents"]) == ("pipelines/flow.py", FLOW)
    (code,) = [c for c in template["code_artifacts"] if c["name"] == "flow.numbers"]
    lines = FLOW.splitlines()[code["start"] : code["end"]]
    assert lines[0].startswith("def numbers")
    assert lines[-1].startswith("    return list")
    _, address = tracker().addresses[-1]
    assert address == f"{ui.uri}/dashboard/project/{project.id}/runs/{shown.id}"


SDK = """
import asyncio
import sys

from hamilton_sdk import adapters

from fp_async import NodeError, Project


async def main(kind, executor, project_id, user, uri):
    for node in ("report", "failing"):
        options = {"hamilton_api_url": uri, "hamilton_ui_url": uri}
        adapter = getattr(adapters, kind)(int(project_id), user, "flow", {"node": node}, **options)
        if hasattr(adapter, "ainit"):
            await adapter.ainit()
        run = Project().run("flow", {"count": 4}, [node], executor=executor, adapters=[adapter])
        try:
            print(await run)
        except NodeError as error:
            print(error.node, "failed")
    print("end", flush=True)
    await asyncio.to_thread(sys.stdin.read)  # what was told is sent meanwhile


asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("executor", ["local", "threadpool", "hamilton"])
@pytest.mark.parametrize("kind", ["HamiltonTracker", "AsyncHamiltonTracker"])
def test_the_sdks_own_tracker_as_an_adapter(ui, project, executor, kind):
    """What users of Hamilton's SDK have in their drivers shows the same with our executors. In a
    process of its own, as the SDK leaves threads and tasks behind.
    """
    pytest.importorskip("hamilton_sdk")
    command = [sys.executable, "-c", SDK, kind, executor, str(project.id), USER, ui.uri]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=project.root, **pipes) as process:
        assert process.stdout.readline() == "{'report': {'total': 6, 'of': 'numbers'}}\n"
        assert process.stdout.readline() == "failing failed\n"
        for node, status in (("report", "SUCCESS"), ("failing", "FAILURE")):
            deadline, wanted = time.monotonic() + 20, {**ENDED, node: status}
            while not wanted.items() <= (shown := ui.until(project.id, node=node)).nodes.items():
                assert time.monotonic() < deadline, shown.nodes  # nodes come after their run
                time.sleep(0.1)
            assert shown.status == status
            assert shown.attributes["total"]["result_summary"]["value"] == 6
        process.communicate()


async def test_the_same_code_is_one_template_and_other_code_another(ui, project):
    for _ in range(2):
        await project.run("flow", {"count": 1}, ["total"], with_tracker=True)
    file = project.root / "pipelines" / "flow.py"
    file.write_text(f"{FLOW}\n\ndef more(total: int) -> int:\n    return total\n")
    project.refresh()
    await project.run("flow", {"count": 1}, ["total"], with_tracker=True)
    assert tracker().flush(10) == 0
    first, second, third = (run["dag_template"] for run in ui.runs(project.id))
    assert first == second != third


async def test_a_failed_run_says_which_node_and_why(ui, project):
    with pytest.raises(NodeError):
        await project.run("flow", {"count": 4}, ["after", "report"], with_tracker=True)
    tracker().flush(10)
    shown = ui.until(project.id)
    assert (shown.status, shown.outcome) == ("FAILURE", "failed")
    assert {**ENDED, "failing": "FAILURE", "after": "UNINITIALIZED"}.items() <= shown.nodes.items()
    assert "no such thing" in shown.tags["error"]
    assert 'raise KeyError("no such thing")' in shown.error("failing")


async def test_a_cancelled_run_is_shown_as_that(ui, project, tmp_path):
    inputs = {"count": 4, "gate": str(tmp_path / "gate")}
    run = asyncio.create_task(
        project.run("flow", inputs, ["waiting"], with_tracker=True), name="tracked"
    )
    while not (tmp_path / "gate.begun").exists():
        await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    tracker().flush(10)
    shown = ui.until(project.id)
    assert (shown.status, shown.outcome) == ("FAILURE", "cancelled")
    assert shown.nodes == {**ENDED, "waiting": "FAILURE"}
    assert shown.error("waiting") == "cancelled"


async def test_what_goes_on_is_shown_as_running(ui, project, tmp_path):
    inputs = {"count": 4, "gate": str(tmp_path / "gate")}
    run = asyncio.create_task(project.run("flow", inputs, ["waiting"], with_tracker=True))
    deadline = time.monotonic() + 20
    while not (found := await asyncio.to_thread(ui.runs, project.id)):
        assert time.monotonic() < deadline
    while (shown := ui.run(found[0]["id"])).nodes.get("waiting") != "RUNNING":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert shown.status == "RUNNING"
    (tmp_path / "gate").touch()
    await run
    tracker().flush(10)
    assert ui.until(project.id).nodes["waiting"] == "SUCCESS"


@pytest.mark.parametrize("executor", ["local", "threadpool", "processpool", "hamilton"])
async def test_every_executor_is_tracked(ui, project, executor):
    progress = []
    await project.run(
        "flow",
        {"count": 3},
        ["report"],
        executor=executor,
        with_tracker=True,
        progress=progress.append,
    )
    await project.aclose()
    tracker().flush(10)
    shown = ui.until(project.id)
    assert shown.nodes == {**ENDED, "report": "SUCCESS"}
    assert shown.attributes["total"]["result_summary"]["value"] == "3"
    assert {event.node for event in progress} == {"numbers", "total", "report"}


async def test_parallelizable_nodes_are_shown_once(ui, project):
    (project.root / "pipelines" / "flow.py").write_text(
        textwrap.dedent("""
            from hamilton.htypes import Collect, Parallelizable
            def item(count: int) -> Parallelizable[int]:
                yield from range(count)
            def squared(item: int) -> int:
                return item * item
            def summed(squared: Collect[int]) -> int:
                return sum(squared)
        """)
    )
    assert await project.run("flow", {"count": 4}, with_tracker=True) == {"summed": 14}
    tracker().flush(10)
    shown = ui.until(project.id)
    assert shown.nodes == dict.fromkeys(["item", "squared", "summed"], "SUCCESS")


async def test_each_attempt_of_a_retried_run_is_shown(ui, project, tmp_path):
    (project.root / "conf" / "pipelines.yml").write_text(
        "run:\n  flow:\n    dev:\n      with_tracker: true\n"
        "      retry: {max_attempts: 2, backoff: 0.01}\n"
    )
    with pytest.raises(NodeError):
        await project.run("flow", {"count": 1}, ["failing"])
    tracker().flush(10)
    ui.until(project.id, attempt="2")
    assert [run["tags"]["attempt"] for run in ui.runs(project.id)] == ["1", "2"]


# Configuration --------------------------------------------------------------------------------


async def test_what_tracking_needs_is_said_before_anything_starts(tmp_path):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "flow.py").write_text(FLOW)
    project = Project(tmp_path)
    with pytest.raises(ConfigError, match="`username`"):
        await project.run("flow", {"count": 1}, ["total"], with_tracker=True)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "tracker.yml").write_text("username: me\n")
    with pytest.raises(ConfigError, match="flowerpower tracker setup flow"):
        await project.add_job("flow", inputs={"count": 1}, with_tracker=True)
    assert await project.run("flow", {"count": 1}, ["total"]) == {"total": 0}


def test_check_finds_mistakes_in_tracker_yml(tmp_path):
    from fp_async.checking import check

    (tmp_path / "pipelines").mkdir()
    (tmp_path / "conf").mkdir()
    (tmp_path / "pipelines" / "flow.py").write_text(FLOW)
    (tmp_path / "conf" / "pipelines.yml").write_text(
        "run:\n  flow:\n    dev: {with_tracker: true, final_vars: [report]}\n"
    )
    file = tmp_path / "conf" / "tracker.yml"
    file.write_text("username: me\napi_url: localhost:8241\npipeline:\n  flo: {project_id: 0}\n")
    report = check(Project(tmp_path))
    errors = "\n".join(problem.message for problem in report.errors)
    assert "conf/tracker.yml:2: api_url" in errors
    assert "conf/tracker.yml:4: pipeline.flo.project_id" in errors
    assert "`pipeline.flow.project_id`" in errors
    assert any("pipelines/flo.py" in warning.message for warning in report.warnings)
    file.write_text("username: me\napi_key:\npipeline:\n  flow: {project_id: 1}\n")
    assert not check(Project(tmp_path)).errors


def test_setup_finds_its_project_again_and_keeps_comments(ui, project):
    file = project.root / "conf" / "tracker.yml"
    text = f"# mine\n{file.read_text()}"
    file.write_text(text)
    again = tracker_setup.setup(project.root, "flow")
    assert (again.project_id, again.made) == (project.id, False)
    assert again.address == f"{ui.uri}/dashboard/project/{project.id}"
    assert file.read_text() == text
    file.write_text(text.replace(f"project_id: {project.id}", "project_id: 999999"))
    assert tracker_setup.setup(project.root, "flow").project_id == project.id  # by its name
    assert f"project_id: {project.id}" in file.read_text()


def test_setup_asks_for_a_user(tmp_path):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "flow.py").write_text(FLOW)
    with pytest.raises(UsageError, match="--username"):
        tracker_setup.setup(tmp_path, "flow")


# The commands ---------------------------------------------------------------------------------


def test_the_ui_listens_on_localhost_only(ui):
    owners = [psutil.Process(ui.process.pid), *psutil.Process(ui.process.pid).children()]
    found = [c.laddr for p in owners for c in p.net_connections() if c.status == "LISTEN"]
    assert [(address.ip, address.port) for address in found] == [("127.0.0.1", ui.port)]
    with urllib.request.urlopen(ui.uri, timeout=10) as page:
        assert b"<html" in page.read()
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    request = urllib.request.Request(ui.uri, headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 400
    assert b"Traceback" not in refused.value.read()


def test_a_port_that_is_taken_is_an_error(ui, tmp_path):
    done = flowerpower(tmp_path, "hamilton-ui", "--no-open", "--port", ui.port, code=2)
    assert f"cannot listen on 127.0.0.1:{ui.port}" in done.stderr


def test_the_command_shows_the_address(ui, project):
    arguments = ("run", "flow", "--inputs", "count=3", "--final-vars", "report", "--with-tracker")
    done = flowerpower(project.root, *arguments)
    shown = ui.until(project.id)
    address = f"{ui.uri}/dashboard/project/{project.id}/runs/{shown.id}"
    assert f"tracked: {address}" in done.stderr
    assert shown.outcome == "succeeded"
    done = flowerpower(project.root, *arguments, "--quiet")
    assert "tracked" not in done.stderr


def flowerpower(root, *arguments, code=0):
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


# Jobs on a worker -----------------------------------------------------------------------------


@pytest.mark.parametrize("runner", ["process", "inline"])
async def test_jobs_on_a_worker_are_shown(ui, project, tmp_path, runner):
    gate = str(tmp_path / "gate")

    async def ended(**options):
        id = await project.add_job("flow", with_tracker=True, **options)
        with contextlib.suppress(JobError):
            await project.get_result(id, 60)
        return await asyncio.to_thread(ui.until, project.id, job=id)

    with fleet(project.root) as flock:
        flock.start("worker", "start-worker", "--runner", runner)
        well = await ended(inputs={"count": 4}, final_vars=["report"])
        assert (well.status, well.outcome) == ("SUCCESS", "succeeded")
        assert well.nodes == {**ENDED, "report": "SUCCESS"}
        assert well.found["inputs"] == {"count": 4}
        assert well.attributes["total"]["result_summary"]["value"] == "6"

        failed = await ended(inputs={"count": 4}, final_vars=["after"])
        assert (failed.status, failed.outcome) == ("FAILURE", "failed")
        assert failed.nodes == {**ENDED, "failing": "FAILURE", "after": "UNINITIALIZED"}
        assert "raise KeyError" in failed.error("failing")

        id = await project.add_job(
            "flow", inputs={"count": 4, "gate": gate}, final_vars=["waiting"], with_tracker=True
        )
        while not (tmp_path / "gate.begun").exists():
            await asyncio.sleep(0.02)
        await project.cancel_job(id)
        cancelled = await asyncio.to_thread(ui.until, project.id, job=id)
        assert (cancelled.status, cancelled.outcome) == ("FAILURE", "cancelled")
        assert cancelled.nodes == {**ENDED, "waiting": "FAILURE"}
        assert cancelled.error("waiting") == "cancelled"

        late = await ended(inputs={"seconds": 10}, final_vars=["blocking"], timeout=6)
        assert (late.status, late.outcome) == ("FAILURE", "timed out")
        assert late.nodes == {"blocking": "FAILURE"}
        if runner == "process":
            dead = await ended(inputs={"count": 2}, final_vars=["dying"], on_crash="fail")
            assert (dead.status, dead.outcome) == ("FAILURE", "crashed")
            assert dead.nodes["dying"] == "FAILURE"
            assert "crashed" in dead.error("dying")


async def test_a_worker_that_died_leaves_no_run_that_runs_for_ever(ui, project, tmp_path):
    gate = tmp_path / "gate"
    inputs = {"count": 4, "gate": str(gate)}
    with fleet(project.root) as flock:
        flock.start("first", "start-worker")
        id = await project.add_job("flow", inputs=inputs, final_vars=["waiting"], with_tracker=True)
        while not await asyncio.to_thread(ui.runs, project.id):
            await asyncio.sleep(0.05)
        flock.kill("first")
        gate.touch()
        flock.start("second", "start-worker")
        assert (await project.get_result(id, 60))["waiting"] == 6
        await asyncio.to_thread(ui.until, project.id, job=id, attempt="2")
    outcomes = [run["tags"].get("outcome") for run in ui.runs(project.id)]
    assert outcomes == ["crashed", "succeeded"]


async def test_a_worker_without_a_place_to_tell_runs_the_job(ui, project):
    id = await project.add_job("flow", inputs={"count": 4}, final_vars=["total"], with_tracker=True)
    (project.root / "conf" / "tracker.yml").write_text("username: me\n")
    with fleet(project.root) as flock:
        flock.start("worker", "start-worker")
        assert await project.get_result(id, 60) == {"total": 6}
        flock.stop("worker")
        assert "jobs of 'flow' are not tracked" in (project.root / "fleet.log").read_text()
    assert not ui.runs(project.id)


# Jobs on an agent -----------------------------------------------------------------------------


async def test_jobs_on_an_agent_are_shown_by_the_gateway(ui, project, tmp_path):
    with edge_kit.Broker() as broker, edge_kit.edge_fleet(project.root) as flock:
        (project.root / "conf" / "mqtt.yml").write_text(edge_kit.conf(broker.port))
        flock.start_gateway("gateway")
        flock.start_agent("pi", broker.port)
        await edge_kit.until_known(project, "pi")

        async def added(**options):
            return await project.add_job("flow", on="agent:pi", with_tracker=True, **options)

        well = await added(inputs={"count": 4}, final_vars=["report"])
        failed = await added(inputs={"count": 4}, final_vars=["failing"])
        gate = {"count": 4, "gate": str(tmp_path / "gate")}
        cancelled = await added(inputs=gate, final_vars=["waiting"])
        while not (tmp_path / "gate.begun").exists():
            await asyncio.sleep(0.02)
        await project.cancel_job(cancelled)

        shown = await asyncio.to_thread(ui.until, project.id, job=well)
        assert (shown.status, shown.outcome) == ("SUCCESS", "succeeded")
        assert shown.tags["agent"] == "pi"
        assert shown.nodes == {**ENDED, "report": "SUCCESS"}
        assert shown.found["inputs"] == {"count": 4}
        assert shown.attributes["total"]["result_summary"]["value"] == "6"
        template = ui.template(shown.found["dag_template"])
        assert template["code"]["files"][0]["contents"] == FLOW
        shown = await asyncio.to_thread(ui.until, project.id, job=failed)
        assert (shown.status, shown.outcome) == ("FAILURE", "failed")
        assert shown.nodes == {**ENDED, "failing": "FAILURE"}
        assert "raise KeyError" in shown.error("failing")
        shown = await asyncio.to_thread(ui.until, project.id, job=cancelled)
        assert (shown.status, shown.outcome) == ("FAILURE", "cancelled")


# A UI that is not there -----------------------------------------------------------------------


async def test_a_ui_that_is_killed_hears_of_it_when_it_is_back(tmp_path, caplog):
    with HamiltonUI() as ui:
        project = made(tmp_path / "project", ui)
        inputs = {"count": 4, "gate": str(tmp_path / "gate")}
        run = asyncio.create_task(project.run("flow", inputs, ["waiting"], with_tracker=True))
        while not await asyncio.to_thread(ui.runs, project.id):
            await asyncio.sleep(0.02)
        ui.kill()
        (tmp_path / "gate").touch()
        assert (await run)["waiting"] == 6
        assert (await project.run("flow", {"count": 2}, ["total"], with_tracker=True))["total"] == 1
        began = time.monotonic()
        assert await asyncio.to_thread(tracker().flush) == 2
        assert time.monotonic() - began < 5
        assert caplog.text.count("does not answer") == 1
        ui.start()
        second = await asyncio.to_thread(ui.until, project.id, timeout=40, outcome="succeeded")
        assert tracker().flush(20) == 0
        first, second = (ui.run(run["id"]) for run in ui.runs(project.id))
        assert first.nodes == {**ENDED, "waiting": "SUCCESS"}
        assert second.nodes == ENDED


async def test_a_lost_answer_makes_nothing_twice(ui, project, monkeypatch):
    monkeypatch.setattr("fp_async.tracker._FIRST_PAUSE", 0.1)
    with forgetful(ui) as (address, lost):
        text = (project.root / "conf" / "tracker.yml").read_text().replace(ui.uri, address)
        (project.root / "conf" / "tracker.yml").write_text(text)
        with pytest.raises(NodeError):
            await project.run("flow", {"count": 4}, ["failing", "report"], with_tracker=True)
        deadline = time.monotonic() + 40
        while await asyncio.to_thread(tracker().flush, 1):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
    assert {method for method, _ in lost} == {"GET", "POST", "PUT"}
    (run,) = ui.runs(project.id)
    shown = ui.run(run["id"])
    assert (shown.status, shown.outcome) == ("FAILURE", "failed")
    assert {**ENDED, "failing": "FAILURE"}.items() <= shown.nodes.items()
    assert 'raise KeyError("no such thing")' in shown.error("failing")


@pytest.mark.parametrize("server", ["dead", "hanging", "babbling"])
async def test_a_bad_server_neither_fails_nor_holds_up_a_process(tmp_path, server):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "conf").mkdir()
    (tmp_path / "pipelines" / "flow.py").write_text(FLOW)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(bad_server(server))
        (tmp_path / "conf" / "tracker.yml").write_text(
            f"username: me\napi_url: http://127.0.0.1:{port}\npipeline: {{flow: {{project_id: 1}}}}\n"
        )
        arguments = ("run", "flow", "--inputs", "count=4", "--final-vars", "total")
        began = time.monotonic()
        done = await asyncio.to_thread(flowerpower, tmp_path, *arguments, "--with-tracker")
        assert time.monotonic() - began < 20
        assert "total  6" in done.stdout
        program = """
            import asyncio
            from fp_async import run
            print(asyncio.run(run("flow", {"count": 4}, ["total"], with_tracker=True)))
        """
        began = time.monotonic()
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", textwrap.dedent(program)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert time.monotonic() - began < 20
        assert (done.returncode, done.stdout) == (0, "{'total': 6}\n")
        assert done.stderr.count("tracking: ") == 1


@contextlib.contextmanager
def bad_server(kind):
    """The port of a server that is not there, or takes connections and never answers, or answers
    something else.
    """
    if kind == "dead":
        yield services.free_port()
        return
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        if kind == "hanging":
            yield port
            return
        command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
        listening.close()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as web:
            while not services.answers(port):
                time.sleep(0.02)
            yield port
            web.kill()
