"""Jobs on an agent: from a message to its outcome, through one gateway, and the agent at rest.

    python benchmarks/edge.py [--quick] [--json FILE] [--folder DIR]

One script, one run, one machine: a Mosquitto of its own (set_tcp_nodelay), the gateway and the
agent as processes of the installed commands, SQLite with synchronous=FULL on both sides. Beside the
figures stand what they are made of: an MQTT round trip at QoS 1, and a commit. Medians of three
runs with (least..most).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from peers import ours

from edge_agent.store import AgentStore
from fp_async import Project, codec
from fp_async.jobs import Job, identity
from fp_async.link import Connection, Link, connected
from fp_async.stores import tables
from fp_async.stores.sqlite import SqliteStore

_AGENT = str(Path(sys.executable).with_name("fp-agent"))
_PATIENCE = 120.0
_MOSQUITTO = """listener {port} 127.0.0.1
allow_anonymous true
user root
set_tcp_nodelay true
max_inflight_messages 0
max_queued_messages 100000
"""


class Edge:
    """A broker, a project with its gateway, and one agent, in a folder of their own."""

    def __init__(self, folder: Path, slots: int) -> None:
        self.port = ours_free_port()
        self.center = ours.project(folder / "center", ours.SQLITE)
        self.device = folder / "device"
        self._folder = folder
        self._slots = slots
        (self.center / "conf" / "mqtt.yml").write_text(
            f"broker: {{uri: 'mqtt://127.0.0.1:{self.port}'}}\nrun: {{noop: {{on: 'agent:one'}}}}\n"
        )
        shutil.copytree(self.center / "pipelines", self.device / "pipelines")

    @property
    def link(self) -> Link:
        return Link(host="127.0.0.1", port=self.port)

    @contextmanager
    def broker(self) -> Iterator[None]:
        conf = self._folder / "mosquitto.conf"
        conf.write_text(_MOSQUITTO.format(port=self.port))
        program = (
            shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin") or "mosquitto"
        )
        process = subprocess.Popen([program, "-c", str(conf)], stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.terminate()
            process.wait()

    @contextmanager
    def agent(self) -> Iterator[psutil.Process]:
        flags = ["--broker", f"mqtt://127.0.0.1:{self.port}", "--name", "one"]
        with (self._folder / "agent.log").open("ab") as log:
            process = psutil.Popen(
                [_AGENT, "run", *flags, "--slots", str(self._slots), "--window", "500"],
                cwd=self.device,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def ours_free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def until_ready(project: Project) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not any(agent.state == "ready" for agent in await project.agents()):
        assert time.monotonic() < deadline, "the agent does not come up"
        await asyncio.sleep(0.1)


# Measures -----------------------------------------------------------------------------------


async def round_trips(link: Link, rounds: int) -> list[float]:
    """A message to the broker and back, at QoS 1."""
    times = []
    async with connected(link) as connection:
        await connection.subscribe("bare", 1)
        for _ in range(rounds):
            began = time.perf_counter()
            await connection.publish("bare", b"x", qos=1)
            await connection.receive()
            times.append(time.perf_counter() - began)
    return times


async def triggers(link: Link, rounds: int) -> list[float]:
    """From a message on run/noop to its outcome on the response topic, one after another."""
    times = []
    async with connected(link) as connection:
        await connection.subscribe("me", 1)
        for number in range(rounds + 10):
            began = time.perf_counter()
            mark = f"{time.time_ns()}".encode()
            await connection.publish(
                "fp/v1/main/run/noop", b"", qos=1, response_topic="me", correlation=mark
            )
            await _outcome(connection, mark)
            if number >= 10:
                times.append(time.perf_counter() - began)
    return times


async def _outcome(connection: Connection, mark: bytes) -> None:
    while True:
        for message in await connection.receive():
            if message.correlation == mark and b'"JobOutcome"' in message.payload:
                return


async def throughput(project: Project, count: int) -> float:
    """Jobs a second through gateway and agent, from the first outcome to the last."""
    await asyncio.gather(*(project.add_job("noop", on="agent:one") for _ in range(count)))
    deadline = time.monotonic() + _PATIENCE
    while await project.list_jobs(states=("queued", "offered", "accepted", "running"), limit=1):
        assert time.monotonic() < deadline, "the jobs do not end"
        await asyncio.sleep(0.1)
    rows = await project.list_jobs(limit=count)
    ended = sorted(row.ended_at for row in rows if row.ended_at is not None)
    return (len(ended) - 1) / (ended[-1] - ended[0])


async def backlog(edge: Edge, count: int) -> float:
    """Outcomes a second that waited on the device, from the first that arrives to the last."""
    store = SqliteStore(edge.device / "fp-agent.db")
    await store.open()
    await AgentStore(store).begin()
    rows = [tables.whole(_waiting(number)) for number in range(count)]
    await store.units.write(lambda db: db.executemany(tables.INSERT_WHOLE, rows))
    await store.close()
    with ours.command(edge.center, "start-gateway"), edge.agent():
        async with Project(edge.center) as project:
            await _arrived(project, 1)
            began, first = time.perf_counter(), len(await _found(project, count))
            await _arrived(project, count)
            return (count - first) / (time.perf_counter() - began)


def _waiting(number: int) -> Job:
    return Job(
        id=identity("bench", number),
        pipeline="noop",
        state="succeeded",
        created_at=float(number),
        run_at=float(number),
        started_at=float(number),
        ended_at=float(number + 1),
        attempt=1,
        schedule_id="bench",
        identity=True,
        unreported=True,
        inputs=codec.encode({}),
        result=codec.encode({"done": 1}),
    )


async def _found(project: Project, count: int) -> list[Any]:
    return await project.list_jobs(schedule_id="bench", limit=count)


async def _arrived(project: Project, count: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while len(await _found(project, count)) < count:
        assert time.monotonic() < deadline, "the backlog does not arrive"
        await asyncio.sleep(0.2)


def at_rest(process: psutil.Process, seconds: float) -> dict[str, float]:
    """MiB of RSS and private memory, percent of a core, wake-ups a second."""
    before, woken = process.cpu_times(), process.num_ctx_switches().voluntary
    time.sleep(seconds)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    memory = process.memory_full_info()
    return {
        "RSS, MiB": memory.rss / 2**20,
        "private, MiB": memory.uss / 2**20,
        "CPU, % of a core": 100 * used / seconds,
        "wake-ups a second": (process.num_ctx_switches().voluntary - woken) / seconds,
    }


def commits(folder: Path, rounds: int) -> list[float]:
    """A row inserted and committed, WAL and FULL."""
    db = sqlite3.connect(folder / "floor.db", isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    db.execute("CREATE TABLE t (body BLOB)")
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO t VALUES (?)", (b"x" * 300,))
        db.execute("COMMIT")
        times.append(time.perf_counter() - began)
    db.close()
    return times


# The whole ----------------------------------------------------------------------------------


async def once(folder: Path, *, quick: bool) -> dict[str, float]:
    """All measures, on new stores."""
    found: dict[str, float] = {}
    edge = Edge(folder, slots=2)
    rounds, count = (50, 200) if quick else (500, 3000)
    with edge.broker(), ours.command(edge.center, "start-gateway"), edge.agent() as process:
        async with Project(edge.center) as project:
            await until_ready(project)
            _note(found, "MQTT round trip, QoS 1", await round_trips(edge.link, rounds))
            _note(found, "commit", commits(folder, rounds))
            _note(found, "message to outcome", await triggers(edge.link, rounds))
            found["jobs/s, one agent with 2 slots"] = await throughput(project, count)
            await asyncio.sleep(1.0)
        found |= await asyncio.to_thread(at_rest, process, 3 if quick else 30)
    other = Edge(folder / "backlog", slots=1)
    with other.broker():
        found["outcomes/s of a backlog"] = await backlog(other, 2000 if quick else 100_000)
    return found


def _note(found: dict[str, float], what: str, times: list[float]) -> None:
    times = sorted(times)
    found[f"{what}, p50 ms"] = 1e3 * statistics.median(times)
    found[f"{what}, p99 ms"] = 1e3 * times[min(int(len(times) * 0.99), len(times) - 1)]


GOALS = {
    "message to outcome, p50 ms": "5 (must 8)",
    "message to outcome, p99 ms": "15",
    "jobs/s, one agent with 2 slots": "3,000 (must 1,000)",
    "outcomes/s of a backlog": "5,000",
    "RSS, MiB": "32",
    "private, MiB": "18",
    "CPU, % of a core": "0.1",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run, once")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--folder", type=Path, help="where the stores are: not on a tmpfs")
    chosen = parser.parse_args()
    logging.disable(logging.ERROR)
    runs = []
    for _ in range(1 if chosen.quick else 3):
        with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
            runs.append(asyncio.run(once(Path(name), quick=chosen.quick)))
    print("| what | goal | measured |\n|---|---|---|")
    for what in runs[0]:
        values = [run[what] for run in runs]
        text = f"{statistics.median(values):,.2f} ({min(values):,.2f}..{max(values):,.2f})"
        print(f"| {what} | {GOALS.get(what, '')} | {text} |")
    if chosen.json:
        chosen.json.write_text(json.dumps(runs, indent=2))


if __name__ == "__main__":
    main()
