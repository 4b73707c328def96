"""An idle agent: memory, CPU, wake-ups, and how soon it is there; plain and over TLS."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import psutil
from fleets.places import Mosquitto, Place, cpu, private, rss, switches

from fp_async import wire
from fp_async.link import Connection, Link, connected

Figures = dict[str, Any]


def measure(folder: Path, seconds: float, starts: int) -> dict[str, Figures]:
    """Two agents beside each other, `plain` and `tls`, idle for that long."""
    broker = Mosquitto(folder / "broker", tls=True)
    with broker, Place(folder / "fleet", broker) as place:
        place.gateway()
        agents = {name: place.agent(name, tls=name == "tls") for name in ("plain", "tls")}
        time.sleep(5)
        figures = _idle(agents, seconds)
        for name in agents:
            figures[name]["ready"] = asyncio.run(_starts(place, name, starts))
    return figures


def _idle(agents: dict[str, psutil.Process], seconds: float) -> dict[str, Figures]:
    before = {name: (cpu(each), switches(each)) for name, each in agents.items()}
    time.sleep(seconds)
    figures = {}
    for name, each in agents.items():
        used, woken = cpu(each) - before[name][0], switches(each) - before[name][1]
        figures[name] = {"cpu": 100 * used / seconds, "wakeups": woken / seconds}
        figures[name] |= {"rss": rss(each), "private": private(each)}
        figures[name]["threads"] = each.num_threads()
    return figures


async def _starts(place: Place, name: str, count: int) -> list[float]:
    """Seconds from the start of `fp-agent run` until its state is at the broker."""
    times = []
    async with connected(Link(host="127.0.0.1", port=place.broker.port)) as client:
        await client.subscribe("fp/v1/main/agent/+/state", 1, retained="never")
        for number in range(count):
            agent = f"{name}-{number}"
            place.device(agent)
            began = time.perf_counter()
            process = place.agent(agent, tls=name == "tls")
            async with asyncio.timeout(20):
                await _until_ready(client, agent)
            times.append(time.perf_counter() - began)
            process.terminate()
            await asyncio.to_thread(process.wait, 20)
    return times


async def _until_ready(client: Connection, name: str) -> None:
    while True:
        for message in await client.receive():
            mine = f"/{name}/" in message.topic and message.payload
            if mine and wire.agent_state(message.payload).status == "ready":
                return
