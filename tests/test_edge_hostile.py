"""One agent floods each of its topics, as an insider with its login can: it hurts no other agent,
and neither the center's disk nor its memory. `scripts/chaos` does it in full.
"""

from __future__ import annotations

import time
from itertools import count

import anyio
import psutil
import pytest
from edge_kit import Broker, conf, edge_fleet, until_gateway, until_known
from fleet import make, scale

from fp_async import link, messages, wire
from fp_async.backend import connected
from fp_async.hearing import own_id
from fp_async.jobs import RESULT_TTL, identity
from fp_async.link import Link
from fp_async.topics import Topics

SQLITE = "data_store:\n  type: sqlite\n  uri: sqlite:///jobs.db\n"
SECONDS = 60  # of all floods together, at full size
TOPICS = Topics("fp/v1", "main")
MIB = 2**20


def unreadable(number):
    return b"[%d" % number + b"x" * 4_000


def unreadable_parts(number):
    return b'{"type":"Reports","v":1,"reports":[' + b",".join([b'{"type":7}'] * 300) + b"]}"


def schedule_state(number):
    return wire.encode(messages.ScheduleState(id=f"unknown-{number}", revision=1))


def part(number):
    body = messages.ResultChunk(id=f"unknown-{number}", attempt=1, index=0, data="AAAA" * 8_000)
    return wire.encode(body)


def stray(number):
    said = messages.Finished(
        id=f"stray-{number}", attempt=1, outcome="succeeded", ended_at=1.0, sent_at=2.0
    )
    return next(wire.batches([said] * 1))


def page(number):
    jobs = [(f"{number}-{n}", 1, "running") for n in range(500)]
    return wire.encode(messages.Sync(page=1 + number % 1_999, pages=2_000, jobs=jobs))


def ping(number):
    return wire.encode(messages.Ping(nonce=str(number)))


def pong(number):
    return wire.encode(messages.Pong(nonce=str(number), clock=0.0))


def progress(number):
    return wire.encode(messages.Progress(id=f"unknown-{number}", attempt=1, log="x" * 1_000))


FLOODS = (
    unreadable,
    unreadable_parts,
    schedule_state,
    part,
    stray,
    page,
    ping,
    pong,
    progress,
)


async def flood(broker, bodies, name, seconds):
    """Say so much as the broker takes."""
    address = Link(host="127.0.0.1", port=broker.port, client_id=f"flood-{name}")
    until, topic = time.monotonic() + seconds, TOPICS.agent(name, "report")
    async with link.connected(address) as connection:
        for number in count():
            if time.monotonic() >= until:
                break
            if number % 50:
                connection.publish_soon(topic, bodies(number), qos=1)
            else:
                await connection.publish(topic, bodies(number), qos=1)


async def job_times(project, flock, name, number):
    times = []
    for each in range(number):
        began = time.monotonic()
        await project.run_job("work", on=f"agent:{name}", inputs=flock.inputs(each))
        times.append(time.monotonic() - began)
    return sorted(times)


def disk(root):
    return sum(path.stat().st_size for path in root.glob("jobs.db*"))


@pytest.mark.slow
async def test_e7_an_agent_that_floods_hurts_no_other(tmp_path, capsys):
    seconds = max(scale(SECONDS) / len(FLOODS), 1.0)
    with Broker() as broker:
        project = make(tmp_path / "center", SQLITE)
        (project.root / "conf" / "mqtt.yml").write_text(conf(broker.port))
        with edge_fleet(project.root) as flock:
            gateway = psutil.Process(flock.start_gateway("g1").pid)
            async with project:
                await until_gateway(project, timeout=90)
                for name in ("good", "bad"):
                    flock.start_agent(name, broker.port)
                    await until_known(project, name, timeout=90)
                alone = await job_times(project, flock, "good", 20)
                size, memory = disk(project.root), gateway.memory_info().rss
                lines = []
                for bodies in FLOODS:
                    times: list[float] = []
                    async with anyio.create_task_group() as group:
                        group.start_soon(flood, broker, bodies, "bad", seconds)
                        until = time.monotonic() + seconds
                        while time.monotonic() < until:
                            times += await job_times(project, flock, "good", 1)
                    usual, now = alone[len(alone) // 2], sorted(times)[len(times) // 2]
                    lines.append(f"{bodies.__name__}: {now * 1e3:.0f} of {usual * 1e3:.0f} ms")
                    times.clear()
                grown = disk(project.root) - size
                more = gateway.memory_info().rss - memory
                with capsys.disabled():
                    print("\n ", "; ".join(lines), f"; {grown / MIB:.1f}, {more / MIB:.1f} MiB")
                assert grown < 20 * MIB
                assert more < 50 * MIB
                dropped = {a.name: a.dropped for a in await project.agents()}
                assert "good" not in {name for name, each in dropped.items() if each}
                async with connected(project.root) as backend:
                    assert not await backend.store.members("agent-schedule")
                    letters = await backend.store.fleet.letters(5_000)
                    assert len(letters) <= 1_100


async def test_e7_own_outcomes_are_never_lost_to_a_budget_nor_kept_for_ever(tmp_path):
    """Results of the device's own jobs, said to be kept for 3,000 years."""
    with Broker() as broker:
        project = make(tmp_path / "center", SQLITE)
        (project.root / "conf" / "mqtt.yml").write_text(conf(broker.port))
        with edge_fleet(project.root) as flock:
            flock.start_gateway("g1")
            async with project:
                await until_gateway(project, timeout=90)
                origin = messages.Origin(
                    pipeline="work", created_at=1.0, inputs=wire.to_wire(b"{}"), result_ttl=1e11
                )
                id = identity("own", 1)
                said = messages.Finished(
                    id=id,
                    attempt=1,
                    outcome="succeeded",
                    ended_at=1.0,
                    sent_at=2.0,
                    origin=origin,
                )
                address = Link(host="127.0.0.1", port=broker.port, client_id="bad")
                async with link.connected(address) as connection:
                    await connection.subscribe(TOPICS.agent("bad", "do"), 1)
                    topic = TOPICS.agent("bad", "report")
                    await connection.publish(topic, wire.encode(said), qos=1)
                    with anyio.fail_after(30):
                        async for message in connection:
                            answer = wire.do(message.payload)
                            if isinstance(answer, messages.Acknowledge):
                                break
                assert answer.ids == [id]
                async with connected(project.root) as backend:
                    assert (await backend.store.get(own_id("bad", id))).result_ttl == RESULT_TTL
