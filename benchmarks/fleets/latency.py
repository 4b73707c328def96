"""From a message to its outcome on the response topic, beside the hops and fsyncs within it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fleets.places import Mosquitto, Place

from fp_async.link import Connection, Link, connected

CONF = "run:\n  noop: {on: 'agent:pi'}\n"
HOPS = 4  # in a row: client -> gateway -> agent -> gateway -> client
COMMITS = 4  # in a row: job and offer; accepted and claimed; ended at the agent; ended
WARM = 20
Times = dict[str, list[float]]


def measure(folder: Path, rounds: int) -> Times:
    """Seconds of each round: `trigger` to outcome, and the bare `hops`, `commits`."""
    with Mosquitto(folder / "broker") as broker, Place(folder / "fleet", broker, CONF) as place:
        place.gateway()
        place.agent("pi")
        return asyncio.run(_measure(place, rounds))


async def _measure(place: Place, rounds: int) -> Times:
    link = Link(host="127.0.0.1", port=place.broker.port)
    db = _database(place.root / "floor.db")
    times: Times = {"trigger": [], "hops": [], "commits": []}
    async with connected(link) as client, _echoed(link) as echo:
        await client.subscribe("bench/answer", 1)
        await _ready(client)
        for number in range(WARM + rounds):
            took = {
                "trigger": await _triggered(client, number),
                "hops": await _hopped(client, echo, number),
                "commits": _committed(db, number),
            }
            for name, seconds in took.items():
                times[name] += [seconds] if number >= WARM else []
    db.close()
    return times


async def _ready(client: Connection) -> None:
    """Until the agent has run a job: what was refused before is asked for again."""
    async with asyncio.timeout(30):
        while not await _once(client, b"first", 1.0):
            pass


async def _once(client: Connection, mark: bytes, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await _ask(client, mark)
    except TimeoutError:
        return False
    return True


async def _ask(client: Connection, mark: bytes) -> None:
    topic = "fp/v1/main/run/noop"
    ask = {"qos": 1, "response_topic": "bench/answer", "correlation": mark}
    await client.publish(topic, b"{}", **ask)
    while True:
        for message in await client.receive():
            if message.correlation == mark and b'"JobOutcome"' in message.payload:
                body = json.loads(message.payload)
                assert body["outcome"] == "succeeded", body
                return


async def _triggered(client: Connection, number: int) -> float:
    began = time.perf_counter()
    await _ask(client, b"%d" % number)
    return time.perf_counter() - began


async def _hopped(client: Connection, echo: Connection, number: int) -> float:
    """As many hops through the broker, at QoS 1, between two connections of this process."""
    body = b"%d" % number
    began = time.perf_counter()
    for _ in range(HOPS // 2):
        echo.publish_soon("bench/answer", body, qos=1)
        await _heard(client, body)
        client.publish_soon("bench/echo", body, qos=1)
        await _heard(echo, body)
    return time.perf_counter() - began


async def _heard(connection: Connection, body: bytes) -> None:
    """Until it has come; an answer to an earlier question may come before it."""
    while all(message.payload != body for message in await connection.receive()):
        pass


@asynccontextmanager
async def _echoed(link: Link) -> AsyncIterator[Connection]:
    async with connected(link) as echo:
        await echo.subscribe("bench/echo", 1)
        yield echo


def _database(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    db.execute("CREATE TABLE t (id TEXT PRIMARY KEY, body BLOB)")
    return db


def _committed(db: sqlite3.Connection, number: int) -> float:
    began = time.perf_counter()
    for commit in range(COMMITS):
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO t VALUES (?, ?)", (f"{number}.{commit}", b"x" * 300))
        db.execute("COMMIT")
    return time.perf_counter() - began


def sums(times: Times) -> list[float]:
    """Of each round: what would be left if nothing had to be computed."""
    return [hops + commits for hops, commits in zip(times["hops"], times["commits"], strict=True)]
