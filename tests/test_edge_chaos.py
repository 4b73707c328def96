"""Agents, gateways, brokers and networks that fail at random: every job has one right outcome.

A tenth of it by default; `scripts/chaos` runs all. The broker keeps nothing and drops beyond 50
queued messages, agents and gateways are processes of the installed commands.
"""

from __future__ import annotations

import asyncio
import time

import pytest
from edge_kit import Broker, check, conf, edge_fleet, until_known
from faults import Jumble, Proxy
from fleet import make, scale, seeded, until_ended

JOBS = 3000
AGENTS = ("a1", "a2", "a3")
GATEWAYS = ("g1", "g2")
SQLITE = "data_store:\n  type: sqlite\n  uri: sqlite:///jobs.db\n"
GATEWAY = "gateway:\n  away_after: 8\n"
TIMEOUT = 420.0


async def storm(tmp_path, capsys, fault, *, what, proxied=False):
    """All jobs on three agents with two gateways, while `fault(world)` does its worst."""
    count, rng = scale(JOBS), seeded()
    began = time.monotonic()
    with Broker() as broker:
        jumbled = fault is World.nothing
        async with Jumble(broker.port, rng) if jumbled else Proxy(broker.port) as proxy:
            port = proxy.port if proxied else broker.port
            project = make(tmp_path / "center", SQLITE)
            (project.root / "conf" / "mqtt.yml").write_text(conf(port, GATEWAY))
            with edge_fleet(project.root) as flock:
                world = World(flock, broker, proxy, port, rng)
                for name in GATEWAYS:
                    flock.start_gateway(name)
                for name in AGENTS:
                    flock.start_agent(name, port, "--slots", "2")
                await until_known(project, *AGENTS)
                done = asyncio.Event()
                async with asyncio.TaskGroup() as group:
                    group.create_task(world.until(done, fault))
                    async with project:
                        jobs, values = await work(project, flock, rng, count)
                    done.set()
                figures = check(jobs, flock)
                await drained(flock, project)
            if jumbled:
                assert proxy.repeated and proxy.delayed and proxy.lost
                figures |= {"repeated": proxy.repeated, "delayed": proxy.delayed}
    assert {job.state for job in jobs.values()} == {"succeeded"}
    assert values
    with capsys.disabled():
        print(f"\n  {what}: {figures | {'seconds': round(time.monotonic() - began, 1)}}")


async def work(project, flock, rng, count):
    """Hand in the jobs, wait for all of them; the jobs, and whether every value is right."""
    numbers = {}
    for number in range(count):
        inputs = flock.inputs(number, rng.random() * 0.02)
        on = rng.choice((*(f"agent:{name}" for name in AGENTS), "any:*"))
        options = {"on": on, "on_lost": "wait", "max_crashes": 100, "inputs": inputs}
        numbers[await project.add_job("work", **options)] = number
        if number % 50 == 0:
            await asyncio.sleep(0.05)
    jobs = await until_ended(project, count, TIMEOUT)
    assert numbers.keys() == jobs.keys()
    values = {id: await project.get_result(id) for id in numbers}
    assert values == {id: {"value": 2 * number} for id, number in numbers.items()}
    return jobs, True


async def drained(flock, project):
    """Every outcome is acknowledged: nothing waits on any device."""
    import sqlite3

    deadline = time.monotonic() + 60
    while True:
        waiting = 0
        for name in AGENTS:
            path = flock.device(name) / "fp-agent.db"
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
                sql = "SELECT count(*) FROM jobs WHERE unreported = 1"
                waiting += db.execute(sql).fetchone()[0]
        if not waiting:
            return
        assert time.monotonic() < deadline, f"{waiting} outcomes were never acknowledged"
        await asyncio.sleep(0.2)


class World:
    """What a fault may do."""

    def __init__(self, flock, broker, proxy, port, rng):
        self.flock, self.broker, self.proxy, self.port, self.rng = flock, broker, proxy, port, rng

    async def until(self, done, fault):
        """The fault every few seconds, while there is work for twice as many; then all is well.

        Not every second for ever: whoever loses a connection soon after it was made waits longer
        each time, up to a minute, and that is right.
        """
        for _ in range(6 + scale(JOBS) // 50):
            try:
                async with asyncio.timeout(1 + 3 * self.rng.random()):
                    await done.wait()
                    break
            except TimeoutError:
                await fault(self)
        await self.proxy.heal()

    async def kill_agent(self):
        name = self.rng.choice(AGENTS)
        self.flock.kill(name)
        self.flock.start_agent(name, self.port, "--slots", "2")

    async def kill_gateway(self):
        name = self.rng.choice(GATEWAYS)
        self.flock.kill(name)
        self.flock.start_gateway(name)

    async def kill_broker(self):
        await asyncio.to_thread(self.broker.kill)
        await asyncio.to_thread(self.broker.start)

    async def reset(self):
        await self.proxy.reset()

    async def cut(self):
        await self.proxy.cut()
        await asyncio.sleep(self.rng.random() * 3)
        await self.proxy.heal()

    async def stall(self):
        self.proxy.stall()
        await asyncio.sleep(self.rng.random() * 3)
        await self.proxy.heal()

    async def nothing(self):
        """The network itself does it, all the time."""

    async def anything(self):
        faults = (self.kill_agent, self.kill_gateway, self.kill_broker, self.reset, self.cut)
        await self.rng.choice(faults)()


FAULTS = {
    "agents killed": World.kill_agent,
    "gateways killed": World.kill_gateway,
    "broker killed": World.kill_broker,
    "connections reset": World.reset,
    "network cut": World.cut,
    "network stalled": World.stall,
    "messages jumbled": World.nothing,
    "anything": World.anything,
}


@pytest.mark.slow
@pytest.mark.parametrize("what", FAULTS)
async def test_whatever_fails_every_job_has_one_outcome(what, tmp_path, capsys):
    proxied = what.startswith(("connections", "network", "messages", "anything"))
    await storm(tmp_path, capsys, FAULTS[what], what=what, proxied=proxied)
