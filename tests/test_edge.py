"""Jobs on agents, end to end: gateways and agents are processes of the installed commands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

import anyio
import fleet
import msgspec
import pytest
import services
from edge_kit import AGENT, Broker, check, conf, edge_fleet, until_gateway, until_known
from faults import Proxy
from fleet import COMMAND, make, until_ended

from edge_agent import control
from fp_async import backend, link, versions
from fp_async.errors import JobCancelledError, JobFailedError, JobNotFinishedError, UsageError
from fp_async.link import Link
from fp_async.topics import Topics

TOPICS = Topics()
SQLITE = "data_store:\n  type: sqlite\n  uri: sqlite:///jobs.db\n"
GATEWAY = "gateway:\n  away_after: 6\n"
FLOW = """
import os
import time

import numpy as np


def doubled(count: int) -> int:
    return 2 * count


def summed(doubled: int) -> int:
    return doubled + 1


def slow(seconds: float, path: str) -> int:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(seconds)
    return os.getppid()


def failing() -> int:
    print("about to fail")
    raise KeyError("no such thing")


def flaky(path: str) -> int:
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) < 3:
        raise ConnectionError("not yet")
    return os.path.getsize(path)


def large(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


def array(size: int) -> np.ndarray:
    return np.arange(size)


def reading(value: float, sensor: str) -> dict:
    return {"sensor": sensor, "value": value}
"""


class Edge:
    """A broker, a project with its gateway, and agents."""

    def __init__(self, broker, project, flock):
        self.broker, self.project, self.flock = broker, project, flock

    async def agent(self, name, *arguments):
        self.flock.start_agent(name, self.broker.port, *arguments)
        await until_known(self.project, name)

    def device(self, name):
        return self.flock.device(name)


@pytest.fixture
async def edge(tmp_path, request):
    with Broker(lines=getattr(request, "param", ())) as broker:
        project = make(tmp_path / "center", SQLITE)
        (project.root / "pipelines" / "flow.py").write_text(FLOW)
        (project.root / "conf" / "mqtt.yml").write_text(conf(broker.port, GATEWAY))
        with edge_fleet(project.root) as flock:
            flock.start_gateway("g1")
            async with project:
                yield Edge(broker, project, flock)


async def state(project, id, wanted, timeout=20):
    with anyio.fail_after(timeout):
        while (job := await project.get_job(id)).state != wanted:
            await anyio.sleep(0.05)
        return job


async def written(path, lines=1, timeout=20):
    with anyio.fail_after(timeout):
        while not path.exists() or len(path.read_text().splitlines()) < lines:
            await anyio.sleep(0.02)
        return path.read_text().splitlines()


# Jobs ---------------------------------------------------------------------------------------


async def test_a_job_runs_on_the_agent_that_was_asked_for(edge):
    await edge.agent("pi-7", "--tag", "site=berlin")
    await edge.agent("pi-8")
    seen = []
    result = await edge.project.run_job(
        "flow", on="agent:pi-8", inputs={"count": 4}, final_vars=["summed"], progress=seen.append
    )
    assert result == {"summed": 9}
    (job,) = await edge.project.list_jobs()
    assert (job.state, job.agent, job.attempt) == ("succeeded", "pi-8", 1)
    whole = await edge.project.get_job(job.id)
    assert {node.node for node in whole.nodes} == {"doubled", "summed"}
    assert whole.worker == "pi-8"
    assert {event.node for event in seen} == {"doubled", "summed"}


PLACES = """
from pathlib import Path

from fp_async import load_params

PARAMS = load_params(__file__)


def read(source: Path, default: Path = Path("data/x.txt")) -> list:
    return [source.read_text(), default.read_text()]


def of_params(where: Path = PARAMS.of_params.where) -> str:
    return where.read_text()


def opened(source: Path) -> str:
    Path("written.txt").write_text("by the node")
    with open("data/x.txt") as file:
        return file.read()
"""


async def test_b2_relative_paths_mean_the_folder_of_the_device(edge):
    """The agent is started elsewhere; the center has files of these names with other content."""
    center, device = edge.project.root, edge.device("pi-7")
    for root, text in ((center, "of the center"), (device, "of the device")):
        (root / "pipelines" / "places.py").write_text(PLACES)
        (root / "conf").mkdir(exist_ok=True)
        (root / "conf" / "pipelines.yml").write_text(
            "params: {places: {of_params: {where: data/x.txt}}}"
        )
        (root / "data").mkdir()
        (root / "data" / "x.txt").write_text(text)
    (center / "deep").mkdir()
    for folder in (center / "deep", device):
        (folder / "only.txt").write_text(f"of {folder.name}")
    await edge.agent("pi-7")
    assert Path.cwd() not in (device, *device.parents)
    for source in ("data/x.txt", Path("data/x.txt")):
        result = await edge.project.run_job("places", inputs={"source": source}, on="agent:pi-7")
        assert result == {
            "read": ["of the device"] * 2,
            "of_params": "of the device",
            "opened": "of the device",
        }
    assert (device / "written.txt").exists()
    assert not (center / "written.txt").exists()
    command = [COMMAND, "run-job", "places", "--on", "agent:pi-7", "--output", "json", "-q"]
    for given in (("--inputs", "source=only.txt"), ("--param", "of_params.where=only.txt")):
        final = "read" if given[0] == "--inputs" else "of_params"
        done = await anyio.run_process(
            [*command, *given, "--final-vars", final], cwd=center / "deep", check=False
        )
        assert b"of pi-7" in done.stdout, done.stderr


async def test_any_and_all_choose_by_tags(edge):
    await edge.agent("pi-7", "--tag", "site=berlin", "--tag", "gpu=yes")
    await edge.agent("pi-8", "--tag", "site=berlin")
    ask = {"inputs": {"count": 1}, "final_vars": ["doubled"]}
    assert await edge.project.run_job("flow", on="any:gpu=yes", **ask) == {"doubled": 2}
    (job,) = await edge.project.list_jobs()
    assert job.agent == "pi-7"
    found = {}
    async for agent, result in await edge.project.run_job("flow", on="all:site=berlin", **ask):
        found[agent] = result
    assert found == {"pi-7": {"doubled": 2}, "pi-8": {"doubled": 2}}
    await groups_from_the_command(edge)
    with pytest.raises(UsageError, match="no agent is known that 'all:site=rome' means"):
        await edge.project.add_job("flow", on="all:site=rome", **ask)


async def groups_from_the_command(edge):
    async def command(*arguments, code=0):
        done = await anyio.run_process(
            [fleet.COMMAND, *arguments, "--base-dir", str(edge.project.root)], check=False
        )
        assert done.returncode == code, done.stderr
        return done.stdout.decode() + done.stderr.decode()

    ask = ("flow", "--on", "all:site=berlin", "--final-vars")
    told = await command("run-job", *ask, "doubled", "--inputs", "count=4", "--output", "json")
    assert json.loads(told[: told.rindex("}") + 1]) == {
        "pi-7": {"doubled": 8},
        "pi-8": {"doubled": 8},
    }
    assert "pi-7: done" in told
    assert "no such thing" in await command("run-job", *ask, "failing", code=1)
    group = (await command("add-job", *ask, "doubled", "--inputs", "count=4")).strip()
    assert f"flowerpower jobs --group {group}" in await command("result", group, code=2)
    listed = await command("jobs", "--group", group)
    assert "pi-7" in listed
    assert "pi-8" in listed


async def test_an_error_comes_back_with_the_users_traceback_and_log(edge):
    await edge.agent("pi-7")
    with pytest.raises(JobFailedError, match="no such thing") as raised:
        await edge.project.run_job("flow", on="agent:pi-7", final_vars=["failing"])
    job = await edge.project.get_job(raised.value.job_id)
    assert job.failure.kind == "KeyError"
    assert 'raise KeyError("no such thing")' in job.failure.traceback
    assert "about to fail" in job.log
    assert job.errors == 1


async def test_the_agent_applies_the_retry_policy_by_itself(edge, tmp_path):
    await edge.agent("pi-7")
    id = await edge.project.add_job(
        "flow",
        on="agent:pi-7",
        inputs={"path": str(tmp_path / "tries")},
        final_vars=["flaky"],
        retry={"max_attempts": 5, "backoff": 0.05, "on": ["ConnectionError"]},
    )
    assert await edge.project.get_result(id, wait=30) == {"flaky": 3}
    job = await edge.project.get_job(id)
    assert (job.attempt, job.errors) == (3, 2)


async def test_large_results_come_in_parts_and_too_large_ones_fail(edge):
    await edge.agent("pi-7")
    for size in (70_000, 3_000_000):
        inputs = {"size": size // 256 * 256}
        result = await edge.project.run_job(
            "flow", on="agent:pi-7", inputs=inputs, final_vars=["large"]
        )
        assert result["large"] == bytes(range(256)) * (size // 256)
    with pytest.raises(JobFailedError, match="result too large"):
        await edge.project.run_job(
            "flow", on="agent:pi-7", inputs={"size": 9_000_000}, final_vars=["large"]
        )
    with pytest.raises(Exception, match="input.*too large|too large.*input"):
        await edge.project.add_job("flow", on="agent:pi-7", inputs={"size": "x" * 70_000})


async def test_an_array_survives_the_way(edge):
    await edge.agent("pi-7")
    result = await edge.project.run_job(
        "flow", on="agent:pi-7", inputs={"size": 50_000}, final_vars=["array"]
    )
    assert (result["array"] == range(50_000)).all()


async def test_a_running_job_is_cancelled_on_the_agent(edge, tmp_path):
    await edge.agent("pi-7")
    path = tmp_path / "pids"
    inputs = {"seconds": 60.0, "path": str(path)}
    id = await edge.project.add_job("flow", on="agent:pi-7", inputs=inputs, final_vars=["slow"])
    (pid,) = await written(path)
    await state(edge.project, id, "running")
    await edge.project.cancel_job(id, "enough")
    with pytest.raises(JobCancelledError, match="enough"):
        await edge.project.get_result(id, wait=10)
    with anyio.fail_after(5):
        while Path(f"/proc/{pid}").exists():
            await anyio.sleep(0.02)


async def test_a_job_waits_for_an_agent_that_is_away(edge):
    await edge.agent("pi-7")
    edge.flock.stop("pi-7")
    await until_known(edge.project, "pi-7", state="away")
    ask = {"inputs": {"count": 1}, "final_vars": ["doubled"]}
    with pytest.raises(JobNotFinishedError, match="pi-7: away"):
        await edge.project.run_job("flow", on="agent:pi-7", **ask)
    (job,) = await edge.project.list_jobs()
    await edge.agent("pi-7")
    assert await edge.project.get_result(job.id, wait=20) == {"doubled": 2}


async def test_without_anybody_run_job_says_who_is_missing(edge):
    await until_gateway(edge.project)
    with pytest.raises(JobNotFinishedError, match="no agent is known.*known: none"):
        await edge.project.run_job("flow", on="agent:pi-9", inputs={"count": 1})
    edge.flock.stop("g1")
    with pytest.raises(JobNotFinishedError, match="start-gateway"):
        await edge.project.run_job("flow", on="agent:pi-9", inputs={"count": 1})


async def test_an_agent_without_the_pipeline_refuses_it(edge):
    device = edge.device("pi-7")
    (device / "pipelines" / "flow.py").unlink()
    await edge.agent("pi-7")
    with pytest.raises(JobFailedError, match="has no pipeline 'flow'; it has: work"):
        await edge.project.run_job("flow", on="agent:pi-7", inputs={"count": 1})
    (job,) = await edge.project.list_jobs()
    assert job.state == "rejected"
    await edge.agent("pi-8")
    ask = {"inputs": {"count": 1}, "final_vars": ["doubled"]}
    assert await edge.project.run_job("flow", on="any:*", **ask) == {"doubled": 2}


async def test_g4_an_agent_that_gets_the_pipeline_gets_its_jobs(edge):
    """It refused, and somebody else who is away may take it."""
    for name in ("pi-7", "pi-8"):
        (edge.device(name) / "pipelines" / "flow.py").unlink()
    await edge.agent("pi-8")
    edge.flock.stop("pi-8")
    await edge.agent("pi-7", "--heartbeat", "1")
    ask = {"inputs": {"count": 1}, "final_vars": ["doubled"]}
    id = await edge.project.add_job("flow", on="any:*", **ask)
    with anyio.fail_after(10):
        while "has no pipeline" not in ((await edge.project.get_job(id)).reason or ""):
            await anyio.sleep(0.05)
    source = edge.project.root / "pipelines" / "flow.py"
    shutil.copy(source, edge.device("pi-7") / "pipelines" / "flow.py")
    assert await edge.project.get_result(id, wait=10) == {"doubled": 2}


async def test_g3_a_job_that_waits_for_its_configuration_on_the_device_says_so(edge):
    device = edge.device("pi-7")
    (device / "conf").mkdir()
    settings = device / "conf" / "pipelines.yml"
    settings.write_text("run: {flow: {dev: {final_vars: ['${WANTED}']}}}\n")
    await edge.agent("pi-7")
    id = await edge.project.add_job("flow", on="agent:pi-7", inputs={"count": 1})
    with anyio.fail_after(10):
        while not (job := await edge.project.get_job(id)).misconfigured:
            await anyio.sleep(0.05)
    assert (job.state, job.started_at) == ("accepted", None)
    assert "WANTED" in job.reason
    log = edge.project.root / "fleet.log"
    with anyio.fail_after(5):
        while "agent 'pi-7': job" not in log.read_text():
            await anyio.sleep(0.05)
    settings.write_text("run: {flow: {dev: {final_vars: [doubled]}}}\n")
    assert await edge.project.get_result(id, wait=20) == {"doubled": 2}
    ended = await edge.project.get_job(id)
    assert (ended.state, ended.reason, ended.attempt) == ("succeeded", None, 1)


async def test_another_version_is_a_warning_or_an_error(edge):
    device = edge.device("pi-7")
    with (device / "pipelines" / "flow.py").open("a") as file:
        file.write("\n# changed on the device\n")
    await edge.agent("pi-7")
    ask = {"on": "agent:pi-7", "inputs": {"count": 1}, "final_vars": ["doubled"]}
    assert await edge.project.run_job("flow", **ask) == {"doubled": 2}
    (job,) = await edge.project.list_jobs()
    (warning,) = (await edge.project.get_job(job.id)).warnings
    assert "the device runs version" in warning
    with pytest.raises(JobFailedError, match="is required"):
        await edge.project.run_job("flow", require_version=True, **ask)


async def command(root, *arguments):
    """What a command of the project says on its two streams."""
    process = await asyncio.create_subprocess_exec(
        COMMAND, *arguments, "--base-dir", str(root), stdout=-1, stderr=-1
    )
    out, err = await process.communicate()
    return out.decode(), err.decode()


async def test_a10_what_runs_another_version_says_so_wherever_its_outcome_is_shown(edge):
    with (edge.device("pi-7") / "pipelines" / "flow.py").open("a") as file:
        file.write("\n# changed on the device\n")
    await edge.agent("pi-7")
    root = edge.project.root
    ran = versions.recent(edge.device("pi-7"), "flow")
    wanted = versions.recent(root, "flow")
    text = f"the device runs version {ran} of 'flow', not {wanted}"

    options = ("--inputs", "count=1", "--final-vars", "doubled")
    out, err = await command(root, "run-job", "flow", "--on", "agent:pi-7", *options, "--quiet")
    assert out.split() == ["doubled", "2"]
    assert err == f"warning: {text}\n"
    _, err = await command(root, "run-job", "flow", "--on", "all:*", *options, "--quiet")
    assert f"warning: pi-7: {text}" in err
    job = (await edge.project.list_jobs())[-1]
    _, err = await command(root, "result", job.id)
    assert err == f"warning: {text}\n"
    shown, _ = await command(root, "job", job.id)
    assert f"{ran} ran, {wanted} was wanted" in shown
    assert text in shown
    found = json.loads((await command(root, "job", job.id, "--output", "json"))[0])
    assert (found["version"], found["warnings"]) == (ran, [text])
    assert f"agent 'pi-7', job {job.id}: {text}" in (root / "fleet.log").read_text()


# Without a network --------------------------------------------------------------------------


async def test_what_ends_without_a_network_arrives_later_once(edge, tmp_path):
    await edge.agent("pi-7", "--slots", "1")
    ids = [
        await edge.project.add_job("work", on="agent:pi-7", inputs=edge.flock.inputs(n, 0.3))
        for n in range(5)
    ]
    await state(edge.project, ids[4], "accepted")
    edge.broker.kill()
    with anyio.fail_after(20):
        while len(edge.flock.lines()) < 5:
            await anyio.sleep(0.1)
    assert (await edge.project.get_job(ids[4])).state in ("accepted", "offered")
    edge.broker.start()
    jobs = await until_ended(edge.project, 5, 90)
    assert {job.state for job in jobs.values()} == {"succeeded"}
    assert [await edge.project.get_result(id) for id in ids] == [{"value": 2 * n} for n in range(5)]
    check(jobs, edge.flock)


async def test_a_killed_agent_begins_its_job_again_within_a_second(edge, tmp_path):
    await edge.agent("pi-7")
    path = tmp_path / "pids"
    inputs = {"seconds": 2.0, "path": str(path)}
    id = await edge.project.add_job("flow", on="agent:pi-7", inputs=inputs, final_vars=["slow"])
    await written(path)
    edge.flock.kill("pi-7")
    began = time.monotonic()
    edge.flock.start_agent("pi-7", edge.broker.port)
    await written(path, 2)
    assert time.monotonic() - began < 8
    await edge.project.get_result(id, wait=20)
    assert (await edge.project.get_job(id)).crashes == 1


async def test_another_gateway_takes_over(edge):
    edge.flock.start_gateway("g2")
    await edge.agent("pi-7")
    edge.flock.kill("g1")
    began = time.monotonic()
    id = await edge.project.add_job(
        "flow", on="agent:pi-7", inputs={"count": 1}, final_vars=["doubled"]
    )
    assert await edge.project.get_result(id, wait=30) == {"doubled": 2}
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("edge", [["max_packet_size 20000"]], indirect=True)
async def test_a_result_whose_parts_the_broker_refuses_is_left_out(edge):
    """They would be asked for again and again."""
    await edge.agent("pi-7")
    for size in (300_000, 1000, 300_000):
        ask = {"inputs": {"size": size}, "final_vars": ["large"], "on": "agent:pi-7"}
        job = await state(edge.project, await edge.project.add_job("flow", **ask), "succeeded")
        why = "its result could not be sent: the broker takes no message as large as that"
        assert job.reason == (why if size > 1000 else None)


# Schedules and triggers ---------------------------------------------------------------------


async def test_a_schedule_that_agents_keep_fires_without_a_network(edge):
    await edge.agent("pi-7")
    row = await edge.project.schedule(
        "flow",
        "interval",
        seconds=0.5,
        on="agent:pi-7",
        offline=True,
        id="tick",
        inputs={"count": 1},
        final_vars=["doubled"],
    )
    assert row.next_fire_time is None

    async def arrived(count):
        with anyio.fail_after(40):
            while len(rows := await edge.project.list_jobs(schedule_id="tick")) < count:
                await anyio.sleep(0.1)
        return rows

    await arrived(2)
    root = edge.project.root
    shown, _ = await command(root, "schedules", "show", "tick")
    assert re.search(r"^ *pi-7 +next 2", shown, re.MULTILINE), shown
    told = json.loads((await command(root, "schedules", "show", "tick", "--output", "json"))[0])
    (copy,) = told["agents"]
    assert (copy["agent"], copy["revision"], copy["error"]) == ("pi-7", row._row.revision, None)
    edge.broker.kill()
    await anyio.sleep(3)  # time for it to fire: nothing tells that it has
    edge.broker.start()
    rows = await arrived(8)
    assert len({row.nominal_at for row in rows}) == len(rows)
    assert {row.agent for row in rows} == {"pi-7"}
    assert {row.state for row in rows} == {"succeeded"}
    await edge.project.remove_schedule("tick")
    store = edge.device("pi-7") / "fp-agent.db"

    with anyio.fail_after(20):
        while True:
            with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as db:
                if not db.execute("SELECT count(*) FROM schedules").fetchone()[0]:
                    break
            await anyio.sleep(0.1)


async def test_a_topic_runs_a_pipeline_on_the_device(edge):
    device = edge.device("pi-7")
    (device / "agent.yml").write_text(
        "triggers:\n"
        "  readings:\n"
        "    topic: sensors/+/temperature\n"
        "    pipeline: flow\n"
        "    final_vars: [reading]\n"
        "    inputs: {value: $payload.value, sensor: $topic.1}\n"
    )
    await edge.agent("pi-7", "--config", str(device / "agent.yml"))
    publish(edge, "sensors/s3/temperature", '{"value": 21.5}')
    publish(edge, "sensors/s3/temperature", "nonsense")
    with anyio.fail_after(20):
        while not (rows := await edge.project.list_jobs(states=("succeeded",))):
            await anyio.sleep(0.1)
    (row,) = rows
    assert (row.agent, row.trigger) == ("pi-7", "readings")
    assert await edge.project.get_result(row.id) == {"reading": {"sensor": "s3", "value": 21.5}}


def publish(edge, topic, payload, *options):
    services.run(
        [
            services.program("mosquitto_pub"),
            "-p",
            str(edge.broker.port),
            "-q",
            "1",
            "-t",
            topic,
            "-m",
            payload,
            *options,
        ]
    )


@pytest.fixture
async def triggered(edge):
    extra = (
        GATEWAY
        + "run:\n  flow: {on: 'agent:pi-7', overrides: [inputs, key, final_vars], targets: ['agent:*']}\n"
        + "triggers:\n  doors: {topic: doors/+/open, pipeline: flow, final_vars: [reading], on: 'any:*',\n"
        + "          inputs: {value: $payload, sensor: $topic.1}, key: $user.id}\n"
        + "  far: {topic: far/+, pipeline: flow, final_vars: [reading], on: $payload.to}\n"
    )
    (edge.project.root / "conf" / "mqtt.yml").write_text(conf(edge.broker.port, extra))
    edge.flock.stop("g1")
    edge.flock.start_gateway("g1")
    await edge.agent("pi-7")
    return edge


async def test_mosquitto_pub_and_sub_alone_run_a_pipeline_and_read_its_outcome(triggered):
    edge = triggered
    place = ["-p", str(edge.broker.port)]
    sub = await asyncio.create_subprocess_exec(
        *("stdbuf", "-oL", services.program("mosquitto_sub"), *place, "-d"),
        *("-q", "1", "-C", "1", "-W", "20"),
        *("-t", "fp/v1/main/run/flow/outcome"),
        stdout=subprocess.PIPE,
    )
    while b"SUBACK" not in (line := await sub.stdout.readline()):
        assert line
    body = {"inputs": {"count": 21}, "final_vars": ["doubled"], "key": "order-1"}
    publish(edge, "fp/v1/main/run/flow", json.dumps(body))
    lines = (await sub.communicate())[0].decode().splitlines()
    (told,) = [json.loads(line) for line in lines if line.startswith("{")]
    assert (told["outcome"], told["result"], told["key"]) == (
        "succeeded",
        {"doubled": 42},
        "order-1",
    )
    publish(edge, "fp/v1/main/run/flow", json.dumps(body))
    await anyio.sleep(1)  # nothing must come of it: the key is known
    assert len(await edge.project.list_jobs()) == 1


_NPM = """
const client = require("mqtt").connect(process.argv[2], {protocolVersion: 5});
client.on("connect", () => client.subscribe("from/npm", {qos: 1}, () => {
  const properties = {responseTopic: "from/npm", correlationData: Buffer.from("no-7")};
  const body = JSON.stringify({inputs: {count: 21}, final_vars: ["doubled"]});
  client.publish("fp/v1/main/run/flow", body, {qos: 1, properties});
}));
client.on("message", (topic, payload, packet) => {
  if (JSON.parse(payload).type !== "JobOutcome") return;
  console.log(String(packet.properties.correlationData), String(payload));
  client.end();
});
setTimeout(() => process.exit(3), 20000).unref();
"""


@pytest.fixture(scope="module")
def npm(tmp_path_factory):
    """A folder in which `mqtt` of npm is installed."""
    node, program = shutil.which("node"), shutil.which("npm")
    if node is None or program is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("npm")
    done = subprocess.run(
        [program, "install", "--no-audit", "--no-fund", "mqtt@5.16.0"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        pytest.skip(f"npm cannot install mqtt: {done.stderr[-300:]}")
    (folder / "ask.js").write_text(_NPM)
    return folder


async def test_the_mqtt_client_of_npm_runs_a_pipeline_and_is_answered(triggered, npm):
    answer = await anyio.to_thread.run_sync(
        lambda: services.run(["node", str(npm / "ask.js"), triggered.broker.uri])
    )
    mark, told = answer.split(" ", 1)
    assert mark == "no-7"
    assert json.loads(told)["outcome"] == "succeeded"
    assert json.loads(told)["result"] == {"doubled": 42}


async def test_g6_a_running_gateway_hears_new_triggers_and_no_old_ones(edge):
    path = edge.project.root / "conf" / "mqtt.yml"
    entry = "triggers:\n  t: {{topic: {}/+, pipeline: flow, inputs: {{}}, key: $topic.1}}\n"

    async def until_job(topic, number):
        with anyio.fail_after(30):
            while len(jobs := await edge.project.list_jobs()) < number:
                publish(edge, topic, "{}")
                await anyio.sleep(0.2)
        return jobs

    path.write_text(conf(edge.broker.port, GATEWAY + entry.format("new")))
    await until_job("new/1", 1)
    path.write_text(conf(edge.broker.port, GATEWAY + entry.format("newer")))
    await until_job("newer/2", 2)
    publish(edge, "new/3", "{}")
    path.write_text("broker: [")
    jobs = await until_job("newer/4", 3)
    assert {job.key for job in jobs} == {"t:1", "t:2", "t:4"}


async def test_triggers_with_overlapping_topics_run_once_each(triggered):
    """The broker sends a copy for each subscription."""
    edge = triggered
    one = "pipeline: flow, final_vars: [reading], on: 'any:*', inputs: {value: 1, sensor: $topic}"
    triggers = (
        f"triggers:\n  all: {{topic: 'doors/#', {one}}}\n  some: {{topic: 'doors/+', {one}}}\n"
        f"  firsts: {{topic: '+/d1', {one}}}\n"  # covers none, and is covered by none
    )
    (edge.project.root / "conf" / "mqtt.yml").write_text(conf(edge.broker.port, GATEWAY + triggers))
    edge.flock.stop("g1")
    edge.flock.start_gateway("g1")
    await until_online(edge)
    publish(edge, "doors/d1", "{}")
    publish(edge, "doors/d1/last", "{}")  # its job comes after all jobs of the first message
    with anyio.fail_after(20):
        while True:
            rows = await edge.project.list_jobs(states=("succeeded",))
            results = [await edge.project.get_result(row.id) for row in rows]
            if {"reading": {"sensor": "doors/d1/last", "value": 1}} in results:
                break
            await anyio.sleep(0.05)
    jobs = await edge.project.list_jobs()
    assert sorted(job.trigger for job in jobs) == ["all", "all", "firsts", "some"]


async def test_what_a_kept_session_heard_before_brings_no_second_copy(triggered):
    """Filters that the file had when the gateway last ran, and those of earlier releases."""
    edge = triggered
    await until_online(edge)
    edge.flock.stop("g1")
    same = Link(
        host="127.0.0.1",
        port=edge.broker.port,
        client_id=TOPICS.gateway_client,
        clean_start=False,
        session_expiry=3_600,
    )
    async with link.connected(same) as connection:
        await connection.subscribe(TOPICS.run("flow"), 1, number=77)
    async with backend.connected(edge.project.root) as center:
        (row,) = await center.store.members("filters")
        filters = json.loads(row.info)
        assert sorted(filters) == ["doors/+/open", "far/+", "fp/v1/main/run/+"]
        filters = json.dumps([*filters, TOPICS.run("flow")]).encode()
        await center.store.saw(msgspec.structs.replace(row, info=filters), 3_600)
    entries = (
        "run:\n  flow: {on: 'any:*', overrides: [inputs, final_vars]}\n"
        "triggers:\n  one: {topic: 'doors/#', pipeline: flow, final_vars: [reading], on: 'any:*',\n"
        "        inputs: {value: 1, sensor: $topic}}\n"
    )
    (edge.project.root / "conf" / "mqtt.yml").write_text(conf(edge.broker.port, GATEWAY + entries))
    edge.flock.start_gateway("g1")
    await until_online(edge)
    publish(edge, "doors/d1/open", "{}")
    publish(edge, TOPICS.run("flow"), '{"inputs": {"count": 1}, "final_vars": ["doubled"]}')
    publish(edge, "doors/last", "{}")
    with anyio.fail_after(20):
        while len(jobs := await edge.project.list_jobs(states=("succeeded",))) < 3:
            await anyio.sleep(0.05)
    assert sorted(job.trigger for job in jobs) == ["one", "one", "run"]
    assert len(await edge.project.list_jobs()) == 3


async def test_e27_a_gateway_with_triggers_loads_no_pipelines(triggered):
    """Not to begin with, and not for a message; it would take three times the memory."""
    edge = triggered
    await until_online(edge)
    publish(edge, "far/d1", json.dumps({"to": "agent:pi-7"}))
    publish(edge, "fp/v1/main/run/flow", '{"inputs":{"count":21},"final_vars":["doubled"]}')
    with anyio.fail_after(20):
        while not await edge.project.list_jobs(states=("succeeded",)):
            await anyio.sleep(0.05)
    maps = Path(f"/proc/{edge.flock.processes['g1'].pid}/maps").read_text()
    assert "_sqlite3" in maps, "what is loaded is seen"
    assert not {name for name in ("pandas", "numpy", "pyarrow") if f"/{name}/" in maps}


async def until_online(edge):
    """Until the gateway that was started last has subscribed: it says so after that."""
    options = ["-p", str(edge.broker.port), "-t", "fp/v1/main/gateway/state", "-C", "1", "-W", "1"]
    with anyio.fail_after(20):
        while True:
            done = subprocess.run(
                [services.program("mosquitto_sub"), *options], capture_output=True
            )
            if b'"online":true' in done.stdout:
                return
            await anyio.sleep(0.05)


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        ("fp/v1/main/run/flow", "{nonsense", "malformed"),
        ("fp/v1/main/run/flow", '{"inpts": {}}', "inpts"),
        ("fp/v1/main/run/flow", '{"environment": "prod"}', "'environment' may not be given"),
        ("fp/v1/main/run/flow", '{"target": "all:*"}', "target 'all:\\*' is not allowed"),
        ("fp/v1/main/run/flwo", "{}", "unknown pipeline 'flwo'.*did you mean 'flow'"),
        ("fp/v1/main/run/work", "{}", "may not be run by a message .*run.work"),
        ("far/x", '{"to": "all:*"}', "'all:\\*' would be a job for each agent"),
        ("doors/d1/open", "{", "no json"),
        ("doors/d1/open", "1", "no \\$user.id"),
    ],
)
async def test_what_makes_no_job_is_a_dead_letter(triggered, topic, payload, reason):
    publish(triggered, topic, payload)
    with anyio.fail_after(10):
        while not (letters := await triggered.project.list_letters()):
            await anyio.sleep(0.05)
    assert re.search(reason, letters[0].reason), letters[0].reason
    assert letters[0].topic == topic
    assert not await triggered.project.list_jobs()


async def test_a_response_topic_hears_the_id_then_the_outcome(triggered):
    address = Link(host="127.0.0.1", port=triggered.broker.port)
    async with link.connected(address) as connection:
        await connection.subscribe("me/answers", 1)
        heard = []
        for turn in (1, 2):  # the same request again gives the same job, and its outcome again
            await connection.publish(
                "fp/v1/main/run/flow",
                b'{"inputs": {"count": 3}, "final_vars": ["doubled"]}',
                qos=1,
                response_topic="me/answers",
                correlation=b"\x01",
            )
            with anyio.fail_after(20):
                while len(heard) < 2 * turn:
                    heard += await connection.receive()
    bodies = [json.loads(message.payload) for message in heard]
    assert [body["type"] for body in bodies] == ["JobQueued", "JobOutcome"] * 2
    assert len({body["id"] for body in bodies}) == 1
    assert bodies[1]["result"] == {"doubled": 6}
    assert all(message.correlation == b"\x01" for message in heard)
    assert len(await triggered.project.list_jobs()) == 1


# Ends -----------------------------------------------------------------------------------------


async def test_a_stopped_agent_ends_its_job_though_the_network_hangs(edge):
    """It cannot say that it drains, and loses the connection while it tries to."""
    async with Proxy(edge.broker.port) as proxy:
        agent = edge.flock.start_agent("pi-7", proxy.port)
        await until_known(edge.project, "pi-7")
        id = await edge.project.add_job("work", on="agent:pi-7", inputs=edge.flock.inputs(1, 3.0))
        with anyio.fail_after(20):
            while not edge.flock.lines():
                await anyio.sleep(0.02)
        proxy.stall()
        agent.terminate()
        store = edge.device("pi-7") / "fp-agent.db"
        with anyio.fail_after(5):
            while control.ask(str(store), "status")["status"] != "draining":
                await anyio.sleep(0.02)
        await proxy.cut()
        assert await asyncio.to_thread(agent.wait, 30) == 0
    with contextlib.closing(sqlite3.connect(store)) as db:
        assert db.execute("SELECT state FROM jobs WHERE id = ?", (id,)).fetchone() == ("succeeded",)


# Ghosts -------------------------------------------------------------------------------------


async def text(command, folder):
    done = await anyio.run_process(command, cwd=folder, check=False)
    return (done.stdout + done.stderr).decode()


async def test_two_agents_with_one_name_are_quarantined(edge, tmp_path):
    await edge.agent("pi-7")
    other = tmp_path / "devices" / "other"
    shutil.copytree(edge.device("pi-7") / "pipelines", other / "pipelines")
    edge.flock.spawn(
        "ghost",
        [
            *(AGENT, "run", "--broker", f"mqtt://127.0.0.1:{edge.broker.port}"),
            *("--name", "pi-7", "--project", str(other)),
        ],
    )
    with anyio.fail_after(40):
        while True:
            (agent,) = await edge.project.agents()
            if agent.state == "quarantined":
                break
            await anyio.sleep(0.2)
    assert "two devices use this name" in agent.problem
    edge.flock.stop("ghost")
    command = [AGENT, "doctor", "--name", "pi-7", "--project", str(edge.device("pi-7"))]
    command += ["--broker", f"mqtt://127.0.0.1:{edge.broker.port}"]
    said = (
        "FAILED  gateway: it gives this agent no jobs: two devices use this name, with the stores"
    )
    with anyio.fail_after(40):
        while said not in (heard := await text(command, edge.device("pi-7"))):
            assert "FAILED  broker" in heard, heard  # it has yet to come back
    assert "flowerpower agent pi-7 --readmit" in heard
    await edge.project.readmit_agent("pi-7")
    ask = {"inputs": {"count": 2}, "final_vars": ["doubled"]}
    with anyio.fail_after(20):
        assert await edge.project.run_job("flow", on="agent:pi-7", **ask) == {"doubled": 4}


async def test_g1_a_broken_connection_is_noticed_each_time(edge):
    """It hears at each start what is kept of its last life, and its will must not get old by it."""
    for _ in range(3):
        await edge.agent("pi-7")
        edge.flock.kill("pi-7")
        await until_known(edge.project, "pi-7", state="away", timeout=3)  # silence takes 4 s


async def test_g2_another_gateway_takes_nobody_for_present_who_does_not_answer(edge):
    """The broker has kept the state of both; one of them is there no more, and left no will."""
    from fp_async import wire
    from fp_async.link import Link, connected
    from fp_async.messages import AgentState

    await edge.agent("pi-7", "--heartbeat", "60")
    with anyio.fail_after(5):
        while (await edge.project.agents())[0].free is None:  # the first one comes at once
            await anyio.sleep(0.05)
    state = AgentState(status="ready", store="s", starts=1, n=1)
    async with connected(Link(host="127.0.0.1", port=edge.broker.port)) as connection:
        topic = "fp/v1/main/agent/pi-8/state"
        await connection.publish(topic, wire.encode(state), qos=1, retain=True)
        await until_known(edge.project, "pi-8")
    edge.flock.stop("g1")
    before = {each.name: each.seen_at for each in await edge.project.agents()}
    alone = await text([COMMAND, "agents"], edge.project.root)
    assert "no gateway is running" in alone
    edge.flock.start_gateway("g2")
    ask = {"inputs": {"count": 2}, "final_vars": ["doubled"]}
    for _ in range(4):
        id = await edge.project.add_job("flow", on="any:*", **ask)
        assert await edge.project.get_result(id, wait=60) == {"doubled": 4}
    await until_known(edge.project, "pi-8", state="away", timeout=12)
    after = {each.name: each.seen_at for each in await edge.project.agents()}
    assert after["pi-8"] == before["pi-8"]
    assert after["pi-7"] > before["pi-7"]
    edge.broker.kill()
    with anyio.fail_after(10):
        while "cannot reach its broker" not in await text([COMMAND, "agents"], edge.project.root):
            await anyio.sleep(0.2)


async def test_g5_an_agent_that_is_forgotten_is_new_when_it_comes_again(edge):
    await edge.agent("pi-7")
    with pytest.raises(UsageError, match="'pi-7' is ready"):
        await edge.project.forget_agent("pi-7")
    edge.flock.kill("pi-7")
    await until_known(edge.project, "pi-7", state="away")
    said = await text([COMMAND, "agent", "pi-7", "--forget"], edge.project.root)
    assert "pi-7 is forgotten" in said
    log = edge.project.root / "fleet.log"
    with anyio.fail_after(5):
        while "agent 'pi-7' is forgotten (was away)" not in log.read_text():
            await anyio.sleep(0.05)
    edge.flock.stop("g1")
    edge.flock.start_gateway("g2")
    await edge.agent("pi-8")
    assert [each.name for each in await edge.project.agents()] == ["pi-8"]
    await edge.agent("pi-7")
    ask = {"inputs": {"count": 2}, "final_vars": ["doubled"]}
    assert await edge.project.run_job("flow", on="agent:pi-7", **ask) == {"doubled": 4}


async def test_an_agent_that_hears_old_states_of_its_own_mends_them_and_is_quiet(edge):
    """Each of its own answers comes back to it, too: that must not be answered again."""
    await edge.agent("pi-7")
    from fp_async.link import Link, connected

    topic = "fp/v1/main/agent/pi-7/state"
    async with connected(Link(host="127.0.0.1", port=edge.broker.port)) as connection:
        await connection.subscribe(topic, 1)
        (kept,) = await connection.receive()
        stale = kept.payload.replace(b'"status":"ready"', b'"status":"lost"')
        for _ in range(3):
            connection.publish_soon(topic, stale, qos=1, retain=True)
        heard = []
        with anyio.move_on_after(2):  # nothing tells that nothing more comes
            while True:
                heard += await connection.receive()
    assert 4 <= len(heard) <= 6
    assert json.loads(heard[-1].payload)["status"] == "ready"
    edge.flock.stop("pi-7")
    async with connected(Link(host="127.0.0.1", port=edge.broker.port)) as connection:
        await connection.subscribe(topic, 1)
        (kept,) = await connection.receive()
        assert json.loads(kept.payload)["status"] == "offline"
