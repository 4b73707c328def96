"""Kill -9 at each step of a delivery, on both sides: one outcome, and no second start without need."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest
import services
from edge_kit import Broker, check, conf, edge_fleet, until_known
from fleet import make, until_ended

from edge_agent import config

SQLITE = "data_store:\n  type: sqlite\n  uri: sqlite:///jobs.db\n"
RUN = "gateway:\n  away_after: 6\nrun:\n  work: {on: 'agent:pi-7'}\n"
STEPS = str(Path(__file__).with_name("edge_steps.py"))

GATEWAY = {
    "a trigger has come and is no row yet": ("fp_async.gateway_triggers:Triggers.handle", "before"),
    "its row is stored and the broker does not know": ("fp_async.link:Connection.acknowledge", "before"),
    "an offer is stored and not said": ("fp_async.gateway_offering:Offering.say", "before"),
    "an offer is said": ("fp_async.gateway_offering:Offering.say", "after"),
    "an answer has come and is not stored": ("fp_async.gateway_hearing:Hearing._store", "before"),
    "an answer is stored and not acknowledged": ("fp_async.gateway_hearing:Hearing._answer", "before"),
    "an answer is acknowledged": ("fp_async.gateway_hearing:Hearing._answer", "after"),
    "an outcome is stored and nobody was told": ("fp_async.gateway_triggers:Triggers.ended", "before"),
    "the outcome was told and that is not noted": ("fp_async.stores.sqlite_fleet:SqliteFleet.replied", "before"),
}  # fmt: skip
AGENT = {
    "an offer has come and is no row yet": ("edge_agent.store:AgentStore.accept", "before"),
    "the row is there and nobody knows": ("edge_agent.store:AgentStore.accept", "after"),
    "the job is claimed and has not begun": ("edge_agent.agent:_Watched.claimed", "before"),
    "it has ended and that is no row yet": ("fp_async.ending:Ending.report", "before"),
    "its outcome is stored and not told": ("fp_async.ending:Ending.report", "after"),
    "its outcome is about to be told": ("edge_agent.outbox:Outbox.told", "after"),
    "its outcome was told": ("edge_agent.reporting:Reporter._publish", "after"),
    "the acknowledgement has come and is not stored": ("edge_agent.store:AgentStore.acknowledged", "before"),
    "the acknowledgement is stored": ("edge_agent.store:AgentStore.acknowledged", "after"),
}  # fmt: skip


@pytest.fixture
def world(tmp_path):
    with Broker() as broker:
        project = make(tmp_path / "center", SQLITE)
        (project.root / "conf" / "mqtt.yml").write_text(conf(broker.port, RUN))
        with edge_fleet(project.root) as flock:
            yield broker, project, flock


def start_doomed_gateway(flock, step, when):
    command = [sys.executable, STEPS, "gateway", step, when, "--base-dir", str(flock.root)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_ARMED", armed(flock))
        return flock.spawn("doomed", command)


def start_doomed_agent(flock, port, step, when):
    flags = {"broker": f"mqtt://127.0.0.1:{port}", "name": "pi-7", "heartbeat": "2"}
    settings = config.read(None, {**flags, "project": str(flock.device("pi-7"))}, {})
    text = msgspec.json.encode(settings).decode()
    command = [sys.executable, STEPS, "agent", step, when]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_SETTINGS", text)
        patch.setenv("EDGE_ARMED", armed(flock))
        return flock.spawn("doomed", command)


def armed(flock):
    return str(flock.root / "armed")


async def has_died(flock):
    """Wait until the doomed one has been killed by its step, and know it as killed."""
    process = flock.processes.pop("doomed")
    with anyio.fail_after(25):
        while process.poll() is None:
            await anyio.sleep(0.02)
    assert process.returncode == -signal.SIGKILL
    flock.killed.add(process.pid)


def trigger(flock, broker, key):
    body = {"inputs": flock.inputs(21), "key": key}
    place = ["-p", str(broker.port), "-q", "1", "-i", "somebody"]
    topic = ["-t", "fp/v1/main/run/work", "-m", json.dumps(body)]
    services.run([services.program("mosquitto_pub"), *place, *topic])


@asynccontextmanager
async def heard(broker):
    """A client that hears outcomes: the process, as soon as it listens."""
    async with await anyio.open_process(
        ["stdbuf", "-oL", services.program("mosquitto_sub"), "-p", str(broker.port), "-d"]
        + ["-q", "1", "-C", "1", "-W", "60", "-t", "fp/v1/main/run/work/outcome"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as sub:
        seen = b""
        while b"SUBACK" not in seen:
            seen += await sub.stdout.receive()
        yield sub


async def outcome(sub):
    text = b""
    with anyio.fail_after(60):
        async for data in sub.stdout:
            text += data
    (told,) = [json.loads(line) for line in text.decode().splitlines() if line.startswith("{")]
    return told


@pytest.mark.slow
@pytest.mark.parametrize("step", GATEWAY)
async def test_a_gateway_killed_at_a_step(world, step):
    broker, project, flock = world
    start_doomed_gateway(flock, *GATEWAY[step])
    flock.start_agent("pi-7", broker.port)
    async with project:
        await until_known(project, "pi-7")
        async with heard(broker) as sub:
            Path(armed(flock)).touch()
            trigger(flock, broker, "only")
            await has_died(flock)
            flock.start_gateway("g1")
            jobs = await until_ended(project, 1, 60)
            assert {job.state for job in jobs.values()} == {"succeeded"}
            assert check(jobs, flock)["second starts"] == 0
            told = await outcome(sub)
    assert (told["outcome"], told["result"]) == ("succeeded", {"value": 42})


@pytest.mark.slow
@pytest.mark.parametrize("step", AGENT)
async def test_an_agent_killed_at_a_step(world, step):
    broker, project, flock = world
    flock.start_gateway("g1")
    start_doomed_agent(flock, broker.port, *AGENT[step])
    async with project:
        await until_known(project, "pi-7")
        Path(armed(flock)).touch()
        id = await project.add_job("work", on="agent:pi-7", inputs=flock.inputs(21))
        await has_died(flock)
        flock.start_agent("pi-7", broker.port)
        jobs = await until_ended(project, 1, 60)
        assert {job.state for job in jobs.values()} == {"succeeded"}
        check(jobs, flock)
        assert await project.get_result(id) == {"value": 42}
