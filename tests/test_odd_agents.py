"""What a gateway makes of agents that say odd things: it stands, and each job comes to an end."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest
from edge_kit import Broker, conf, edge_fleet, status, until_known
from faults import Choker
from fleet import make

from fp_async import codec, wire
from fp_async.backend import connected as connected_backend
from fp_async.errors import JobFailedError, ResultLostError
from fp_async.gateway_schedules import copies
from fp_async.link import Link, connected
from fp_async.messages import AgentState, AskSync, Heartbeat

SQLITE = "data_store:\n  type: sqlite\n  uri: sqlite:///jobs.db\n"
STATE = "fp/v1/main/agent/odd/state"
REPORT = "fp/v1/main/agent/odd/report"
GATEWAY = "fp/v1/main/gateway/state"
DO = "fp/v1/main/agent/odd/do"


class OddAgent:
    """A connection that speaks as an agent, byte by byte."""

    def __init__(self, project, connection):
        self.project, self.connection = project, connection
        self.heard = []

    async def job(self):
        """A job that it has been offered: its id and attempt."""
        id = await self.project.add_job("work", on="agent:odd", inputs={"number": 1})
        return id, (await self.until("RunJob", id))["attempt"]

    async def say(self, *reports):
        body = ",".join(r if isinstance(r, str) else json.dumps(r) for r in reports)
        text = f'{{"type":"Reports","v":1,"reports":[{body}]}}'
        await self.connection.publish(REPORT, text.encode(), qos=1)

    async def until(self, kind, id):
        """The first message of that type about that job."""
        with anyio.fail_after(20):
            while True:
                for body in self.heard:
                    if body["type"] == kind and id in (body.get("id"), *body.get("ids", ())):
                        return body
                heard = await self.connection.receive()
                new = [json.loads(m.payload) for m in heard if m.topic == DO]
                self.heard += new
                for ping in (body for body in new if body["type"] == "Ping"):
                    await self.say({"type": "Pong", "nonce": ping["nonce"], "clock": 1.0})


def outcome(id, attempt, **options):
    body = {"type": "Finished", "id": id, "attempt": attempt, "outcome": "succeeded"}
    return {**body, "ended_at": 1.0, "sent_at": 2.0, **options}


@pytest.fixture
async def odd(tmp_path):
    async with hearing_an_odd_agent(tmp_path) as odd:
        yield odd


@asynccontextmanager
async def hearing_an_odd_agent(tmp_path, kind=Broker, port=None, extra=""):
    """A gateway whose broker is of that kind, behind that port, and the agent."""
    with kind() as broker:
        project = make(tmp_path / "center", SQLITE)
        gateways = broker.port if port is None else await port(broker.port)
        (project.root / "conf" / "mqtt.yml").write_text(conf(gateways, extra))
        with edge_fleet(project.root) as flock:
            flock.start_gateway("g1")
            link = Link(host="127.0.0.1", port=broker.port, client_id="odd")
            async with project, connected(link) as connection:
                await connection.subscribe_all(((DO, 1), (GATEWAY, 1)))
                with anyio.fail_after(
                    20
                ):  # what the broker had kept of it would be no sign of life
                    await connection.receive()
                state = AgentState(status="ready", store="s", starts=1, n=1)
                await connection.publish(STATE, wire.encode(state), qos=1, retain=True)
                await until_known(project, "odd")
                yield OddAgent(project, connection)


ODD = {
    "an outcome of a later version": {"outcome": "postponed"},
    "a clock of another universe": {"ended_at": 1e300},
    "a result that is no base64": {"result": "*"},
    "a result that is none": {"result": 7},
    "more parts than there can be": {"chunks": 10**9, "sha256": "00"},
    "counts that no database holds": {"errors": 2**40},
}


@pytest.mark.parametrize("wrong", ODD.values(), ids=ODD)
async def test_an_outcome_that_cannot_be_read_ends_its_job(odd, wrong):
    id, attempt = await odd.job()
    await odd.say({"type": "Telemetry", "id": id}, outcome(id, attempt, **wrong))
    with pytest.raises(JobFailedError, match="the outcome could not be read"):
        await odd.project.get_result(id, wait=20)
    await odd.until("Acknowledge", id)
    reasons = [letter.reason for letter in await odd.project.list_letters()]
    assert len(reasons) == 2
    assert any("Telemetry" in reason for reason in reasons)


async def test_others_in_the_same_message_count(odd):
    """A newer agent says what this gateway does not know, between two outcomes."""
    (one, first), (two, second) = await odd.job(), await odd.job()
    good = {"result": {"v": 1, "plain": {"value": 2}}}
    await odd.say(
        outcome(one, first, **good),
        {"type": "Telemetry", "since": "2.0"},
        outcome(two, second, **good, since="2.0"),
    )
    for id in (one, two):
        assert await odd.project.get_result(id, wait=20) == {"value": 2}
        await odd.until("Acknowledge", id)


async def test_nothing_that_is_said_brings_the_gateway_down(odd):
    id, attempt = await odd.job()
    part = {"type": "ResultChunk", "id": id, "attempt": attempt, "index": 0}
    await odd.say(
        part | {"data": "жжжж"},
        part | {"data": "*", "index": 3},
        part | {"index": -1, "data": ""},
        {"type": "Rejected", "id": "x", "attempt": 1, "reason": "\0" * 5000},
        {"type": "Started", "id": id, "attempt": attempt, "at": -1e11, "sent_at": 1e11},
        {"type": "Sync", "page": 5, "pages": 1},
        {"type": "Heartbeat", "free": 1, "clock": -5e10, "disk_free": 2**63 - 1},
        {"type": "Ping", "nonce": ""},
        "null",
        "[" * 900 + "]" * 900,
    )
    await odd.connection.publish(REPORT, b"\xff\x00", qos=1)
    await odd.connection.publish(STATE, b'{"type":"AgentState","status":"ready"}', qos=1)
    why = "late\0" + "x" * 1000
    failed = outcome(id, attempt, outcome="failed", reason=why)
    await odd.say(failed | {"error": {"kind": "E\0", "message": "\0"}})
    with pytest.raises(JobFailedError):
        await odd.project.get_result(id, wait=20)
    job = await odd.project.get_job(id)
    assert job.reason == why.replace("\0", "\N{REPLACEMENT CHARACTER}")[:500]
    assert job.started_at.year > 2000
    (agent,) = await odd.project.agents()
    assert agent.state == "ready"


async def test_parts_that_were_spoilt_are_sent_again_and_count_then(odd):
    id, attempt = await odd.job()
    result = b'{"v":1,"plain":{"value":"' + b"x" * 70_000 + b'"}}'
    pieces = [result[n : n + 32_768] for n in range(0, len(result), 32_768)]
    last = outcome(id, attempt, chunks=len(pieces), sha256=hashlib.sha256(result).hexdigest())

    def parts(spoilt):
        return [
            {
                "type": "ResultChunk",
                "id": id,
                "attempt": attempt,
                "index": n,
                "data": base64.b64encode(b"?" * 32_768 if n == spoilt else piece).decode(),
            }
            for n, piece in enumerate(pieces)
        ]

    await odd.say(*parts(1), last)
    assert (await odd.until("Missing", id))["chunks"] == [0, 1, 2]
    await odd.say(*parts(None), last)
    assert await odd.project.get_result(id, wait=20) == {"value": "x" * 70_000}


async def test_e29_nobody_spoils_the_parts_of_anothers_result(odd):
    id, attempt = await odd.job()
    result = b'{"v":1,"plain":{"value":"' + b"x" * 40_000 + b'"}}'
    spoilt = [part(id, n, b"?" * 32_768, attempt=attempt) for n in range(2)]
    broker = Link(host="127.0.0.1", port=odd.connection.link.port, client_id="rogue")
    async with connected(broker) as rogue:
        topic = REPORT.replace("odd", "rogue")
        for body in (*spoilt, outcome(id, attempt, chunks=2, sha256="00")):
            await rogue.publish(topic, json.dumps({"v": 1, **body}).encode(), qos=1)
    last = outcome(id, attempt, chunks=2, sha256=hashlib.sha256(result).hexdigest())
    pieces = (result[:32_768], result[32_768:])
    await odd.say(*(part(id, n, each, attempt=attempt) for n, each in enumerate(pieces)), last)
    assert await odd.project.get_result(id, wait=20) == {"value": "x" * 40_000}
    assert [body["type"] for body in odd.heard if body["type"] == "Missing"] == []


async def test_e29_parts_of_jobs_that_nobody_has_are_kept_up_to_a_bound(odd):
    for number in range(520):  # 17 MB
        await odd.say(part(f"none-{number}", 0, b"?" * 32_768))
    own = outcome("own", 1, chunks=1, sha256=hashlib.sha256(b'{"v":1}').hexdigest())
    origin = {"pipeline": "work", "created_at": 1.0, "inputs": {"v": 1, "plain": {}}}
    await odd.say(part("own", 0, b'{"v":1}'), own | {"origin": origin})
    await odd.until("Acknowledge", "own")
    with sqlite3.connect(odd.project.root / "jobs.db") as db:
        (size,) = db.execute("SELECT sum(length(data)) FROM chunks").fetchone()
    assert 2**20 < size <= 12 * 2**20


def part(id, index, data, attempt=1):
    body = {"type": "ResultChunk", "id": id, "attempt": attempt, "index": index}
    return body | {"data": base64.b64encode(data).decode()}


class Narrow(Broker):
    """It takes packets of 20,000 bytes at most."""

    def prepare(self):
        super().prepare()
        with (self.folder / "conf").open("a") as file:
            file.write("max_packet_size 20000\n")


@pytest.mark.parametrize("announced", [True, False])
async def test_e4_a_job_that_the_broker_does_not_take_is_rejected_and_all_else_goes_on(
    tmp_path, announced
):
    async with AsyncExitStack() as stack:

        async def choked(port):
            return (await stack.enter_async_context(Choker(port, 20_000))).port

        kind, port = (Narrow, None) if announced else (Broker, choked)
        odd = await stack.enter_async_context(hearing_an_odd_agent(tmp_path, kind, port))
        large = {"number": 1, "starts": "x" * 60_000}
        ids = [
            await odd.project.add_job("work", on=on, inputs=large) for on in ("agent:odd", "any:*")
        ]
        await odd.project.schedule(
            "work", "interval", hours=1, id="hourly", on="agent:odd", offline=True, inputs=large
        )
        one, attempt = await odd.job()
        await odd.say(outcome(one, attempt, result={"v": 1, "plain": {"value": 2}}))
        assert await odd.project.get_result(one, wait=20) == {"value": 2}
        await odd.until("Acknowledge", one)
        for id in ids:
            with pytest.raises(JobFailedError, match="too large for the broker: 60,[0-9]{3} bytes"):
                await odd.project.get_result(id, wait=20)
            job = await odd.project.get_job(id)
            assert job.state == "rejected"
            assert not announced or job.reason.endswith("bytes, at most 20,000")
        await odd.say({"type": "Sync", "page": 0, "pages": 1, "schedules": {}})
        async with connected_backend(odd.project.root) as backend:
            with anyio.fail_after(30):
                while not (states := await copies(backend.store, "hourly")):
                    await anyio.sleep(0.05)
        assert states[0].error.startswith("too large for the broker: 80,")
        two, attempt = await odd.job()
        await odd.say(outcome(two, attempt))
        await odd.until("Acknowledge", two)


TEXT = "import time\n\n\ndef text(size: int) -> str:\n    time.sleep(2)\n    return size * 'x'\n"


async def test_a_broker_of_small_packets_costs_only_the_values_that_do_not_fit(tmp_path):
    """Several outcomes that are told together are too large, and each of them is not."""
    with Narrow() as broker:
        project = make(tmp_path / "center", SQLITE)
        (project.root / "pipelines" / "flow.py").write_text(TEXT)
        (project.root / "conf" / "mqtt.yml").write_text(conf(broker.port))
        with edge_fleet(project.root) as flock:
            flock.start_gateway("g1")
            flock.start_agent("pi-7", broker.port, "--slots", "6")
            async with project:
                await until_known(project, "pi-7")
                sizes = [5000, 5001, 5002, 5003, 40_000]
                ids = [
                    await project.add_job("flow", on="agent:pi-7", inputs={"size": size})
                    for size in sizes
                ]
                with anyio.fail_after(20):
                    while len(await project.list_jobs(states=("running",))) < len(ids):
                        await anyio.sleep(0.05)
                flock.stop("g1")
                store = flock.device("pi-7") / "fp-agent.db"
                with anyio.fail_after(20):
                    while status(store)["untold"] < len(ids):
                        await anyio.sleep(0.1)
                flock.start_gateway("g2")
                found = [await project.get_result(id, wait=30) for id in ids[:-1]]
                assert [len(each["text"]) for each in found] == sizes[:-1]
                with anyio.fail_after(30):
                    while not (job := await project.get_job(ids[-1])).finished:
                        await anyio.sleep(0.1)
                assert (job.state, job.result) == ("succeeded", None)
                assert job.reason.startswith("its result could not be sent: ")
                with pytest.raises(ResultLostError, match="could not be sent"):
                    await project.get_result(ids[-1])


async def test_e10_an_outcome_that_no_row_takes_is_a_letter_with_the_result(odd):
    """Of a job that this store does not know, of another agent's, and of one that ran again."""
    good = {"result": {"v": 1, "plain": {"value": 2}}}
    id, attempt = await odd.job()
    await odd.say(outcome(id, attempt, **good, started_at=0.5))
    assert await odd.project.get_result(id, wait=20) == {"value": 2}
    others = await odd.project.add_job("work", on="agent:other", inputs={"number": 1})
    again = {"result": {"v": 1, "plain": {"value": 3}}, "started_at": -5000.0}
    told = {
        "there is no such job here": outcome("nobody-knows", 3, **good),
        "no agent has the job": outcome(others, 0, **good),
        "the agent had run it before": outcome(id, attempt, **again),
    }
    for each in (*told.values(), *told.values()):
        await odd.say(each)
        await odd.until("Acknowledge", each["id"])
    with anyio.fail_after(20):
        while len(found := await odd.project.list_letters()) < len(told):
            await anyio.sleep(0.05)
    letters = {letter.reason: letter.payload for letter in found}
    assert len(letters) == len(told), "told twice it is one letter"
    for why in told:
        (payload,) = [payload for reason, payload in letters.items() if why in reason]
        assert codec.decode(payload) == {"value": 3 if "before" in why else 2}
    assert (await odd.project.get_job(others)).state == "queued"
    assert await odd.project.get_result(id) == {"value": 2}


async def test_e11_who_reports_and_is_unknown_is_asked_who_it_is(odd):
    """As behind a broker that has lost what was retained."""
    topic = DO.replace("/odd/", "/stranger/")
    await odd.connection.subscribe(topic, qos=1)
    beat = wire.encode(Heartbeat(free=1, clock=1.0))
    await odd.connection.publish(REPORT.replace("/odd/", "/stranger/"), beat, qos=1)
    with anyio.fail_after(10):
        while True:
            for message in await odd.connection.receive():
                odd.connection.acknowledge(message)
                if message.topic == topic and isinstance(
                    asked := wire.do(message.payload), AskSync
                ):
                    assert asked.state
                    return
