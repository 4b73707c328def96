"""`fp-agent doctor`: the way from the device to the gateway, tried step by step."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from edge_agent import control, looking
from edge_agent.config import AgentSettings
from edge_agent.daemon import address
from fp_async import messages, versions, wire
from fp_async.errors import BrokerError, FlowerPowerError, MessageError
from fp_async.link import Connection, connected
from fp_async.messages import Ping, Pong

_MEBIBYTE = 2**20
_WAIT = 5.0
_OFFSET = 5.0  # seconds between the clocks of device and gateway that need a word


class Step(NamedTuple):
    """What was tried, and what came of it."""

    what: str
    verdict: Literal["ok", "note", "failed"]
    text: str


Tell = Callable[[Step], None]


async def examine(settings: AgentSettings, tell: Tell) -> None:
    """Try everything; `tell` hears of each step when it is done."""
    tell(_pipelines(settings))
    tell(_store(settings))
    tell(_disk(settings))
    running = await asyncio.to_thread(control.ask, settings.store, "status")
    if running is None:
        tell(Step("agent", "note", "none runs on this store, so this connects itself"))
        await _connect(settings, tell)
        return
    tell(Step("agent", "ok", f"runs as pid {running['pid']}"))
    problem = running["problem"] or "no connection"
    tell(
        Step(
            "broker",
            "ok" if running["connected"] else "failed",
            f"{settings.broker}" if running["connected"] else f"{settings.broker}: {problem}",
        )
    )
    answer = await asyncio.to_thread(control.ask, settings.store, "ping")
    tell(_answer(answer or {"error": "the agent has just ended"}))


def _pipelines(settings: AgentSettings) -> Step:
    found = versions.names(Path(settings.project))
    if not found:
        return Step("pipelines", "failed", f"none in {settings.project}/pipelines: copy them there")
    return Step("pipelines", "ok", ", ".join(found))


def _store(settings: AgentSettings) -> Step:
    path = Path(settings.store)
    if not path.exists():
        there = path.parent.is_dir()
        text = f"{path} will be made" if there else f"there is no folder {path.parent}"
        return Step("store", "ok" if there else "failed", text)
    try:
        with looking.opened(settings.store) as db:
            said = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    except FlowerPowerError as error:
        return Step("store", "failed", str(error))
    return Step("store", "ok" if said == "ok" else "failed", f"{path}: {said}")


def _disk(settings: AgentSettings) -> Step:
    free = shutil.disk_usage(Path(settings.store).parent).free // _MEBIBYTE
    enough = free >= settings.disk_floor
    text = f"{free:,} MiB free, {settings.disk_floor} have to be (disk_floor)"
    return Step("disk", "ok" if enough else "failed", text)


def _answer(answer: dict[str, object]) -> Step:
    if "error" in answer:
        return Step(
            "gateway", "failed", f"{answer['error']}; is `flowerpower start-gateway` running?"
        )
    offset = float(str(answer["clock_offset"]))
    text = f"answered in {answer['milliseconds']} ms, its clock is {offset:+.1f} s against ours"
    return Step("gateway", "note" if abs(offset) > _OFFSET else "ok", text)


# Without a running agent ------------------------------------------------------------------------


async def _connect(settings: AgentSettings, tell: Tell) -> None:
    try:
        async with connected(address(settings)) as connection:
            tell(Step("broker", "ok", f"{settings.broker}, MQTT {_version(connection)}"))
            tell(await _own_topics(settings, connection))
            tell(await _foreign_topics(settings, connection))
            tell(await _ping(settings, connection))
    except BrokerError as error:
        tell(Step("broker", "failed", str(error)))


def _version(connection: Connection) -> str:
    return "5" if connection.version == 5 else "3.1.1"


async def _own_topics(settings: AgentSettings, connection: Connection) -> Step:
    """Whether what is published on the agent's own state topic comes back."""
    topic = settings.topics.agent(settings.name, "state")
    await connection.subscribe(topic, 1)
    body = messages.AgentState(
        status="offline",
        store="doctor",
        starts=0,
        n=0,
        boot=secrets.token_hex(4),
        clock=time.time(),
    )
    try:
        await connection.publish(topic, wire.encode(body), qos=1)
        arrived = await _heard(connection, topic, body.boot.encode())
    except (BrokerError, TimeoutError) as error:
        return Step(
            "own topics", "failed", f"{topic}: {error or 'nothing comes back'}; see its ACL"
        )
    return Step(
        "own topics", "ok", f"{topic} at {datetime.now(UTC):%H:%M:%S}, {len(arrived)} bytes"
    )


async def _foreign_topics(settings: AgentSettings, connection: Connection) -> Step:
    """Whether the broker keeps this agent from hearing what others are told: a subscription that
    is denied may be granted and deliver nothing, so what counts is what arrives.
    """
    topic = settings.topics.agent("fp-doctor-nobody", "do")
    mark = secrets.token_hex(8).encode()
    try:
        await connection.subscribe(topic, 1)
        await connection.publish(topic, mark, qos=1)
        await _heard(connection, topic, mark, seconds=1.0)
    except (BrokerError, TimeoutError):
        return Step("foreign topics", "ok", "refused, as they should be")
    return Step("foreign topics", "note", "allowed: this broker protects nothing")


async def _heard(connection: Connection, topic: str, mark: bytes, seconds: float = _WAIT) -> bytes:
    async with asyncio.timeout(seconds):
        while True:
            for message in await connection.receive():
                if message.topic == topic and mark in message.payload:
                    return message.payload


async def _ping(settings: AgentSettings, connection: Connection) -> Step:
    topics, nonce = settings.topics, secrets.token_hex(8)
    await connection.subscribe(topics.agent(settings.name, "do"), 1)
    began = time.monotonic()
    report = topics.agent(settings.name, "report")
    try:
        await connection.publish(report, wire.encode(Ping(nonce=nonce)), qos=1)
        payload = await _heard(connection, topics.agent(settings.name, "do"), nonce.encode())
        pong = wire.do(payload)
    except (BrokerError, TimeoutError, MessageError) as error:
        return _answer({"error": str(error) or "no answer from a gateway"})
    took = round(1e3 * (time.monotonic() - began), 1)
    clock = pong.clock if isinstance(pong, Pong) else time.time()
    return _answer(msgspec.to_builtins({"milliseconds": took, "clock_offset": clock - time.time()}))
