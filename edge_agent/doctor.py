"""`fp-agent doctor`: the way from the device to the gateway, tried step by step.

A running agent is asked; only where none runs does this connect itself: the broker would kick off
an agent of the same name. What it leaves behind is nothing: of its own topics it says only empty
messages, which brokers do not keep and gateways do not read, and pings.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from edge_agent import checking, control, looking, starting
from edge_agent.broker_remedies import remedy
from edge_agent.config import AgentSettings, address, triggers_address, without_secrets
from edge_agent.housekeeping import free_bytes
from fp_async import versions, wire
from fp_async.checking import Problem, Report
from fp_async.errors import BrokerError, MessageError, PublishRefusedError, StoreError
from fp_async.link import Connection, Message, connected
from fp_async.messages import Ping, Pong

_MEBIBYTE = 2**20
_WAIT = 5.0
_FOREIGN_WAIT = 1.0
_IMPORTS = 120.0
_OFFSET = 5.0  # seconds between the clocks of device and gateway that need a word
_RIGHTS = "give this user the agent's rights on its own topics (flowerpower broker-config)"
_LOGIN = "are username and password right? They are in the broker's own users file"
_TRIGGERS_LOGIN = "are user and password in triggers_broker right?"
_LETTERS = "what they were, and why: fp-agent letters"
_SHOWN = 10  # errors of the project
_NO_GATEWAY = "start one in the project: flowerpower start-gateway"


class Step(NamedTuple):
    """What was tried, what came of it, and what to do about it."""

    what: str
    verdict: Literal["ok", "note", "failed"]
    text: str
    remedy: str = ""


Tell = Callable[[Step], None]


async def examine(settings: AgentSettings, tell: Tell) -> None:
    """Try everything; `tell` hears of each step when it is done."""
    for step in (*_project(settings), *await _importable(settings)):
        tell(step)
    running = await asyncio.to_thread(control.ask, settings.store, "status")
    held = running is not None or looking.is_held(settings.store)
    doubted = False
    for step in _storage(settings, held=held):
        doubted |= step.what == "clock" and step.verdict != "ok"
        tell(step)
    if running is not None and "error" not in running:
        steps = _by_the_agent(settings, running)
    elif held:
        why = (running or {}).get("error") or "it does not listen on its local socket"
        tell(Step("agent", "failed", f"one runs on this store: {why}", "restart it"))
        return
    else:
        tell(Step("agent", "note", "none runs on this store, so this connects itself"))
        steps = _by_ourselves(settings)
    async for step in steps:
        tell(_with_clock(settings, step) if doubted else step)


def _with_clock(settings: AgentSettings, step: Step) -> Step:
    """A connection that fails of a clock fails for a reason that the broker does not know."""
    if step.verdict != "failed" or step.what not in ("broker", "triggers broker"):
        return step
    if not (triggers_address if step.what != "broker" else address)(settings).tls:
        return step
    first = "the clock is in doubt (above): with TLS a certificate is valid from a time on; set it"
    return step._replace(remedy=f"{first}. {step.remedy}")


# On the device ----------------------------------------------------------------------------------


def _project(settings: AgentSettings) -> Iterator[Step]:
    yield Step("configuration", "ok", f"agent {settings.name}, site {settings.site}")
    found = versions.versions(Path(settings.project))
    if found:
        named = ", ".join(f"{name} ({version[:8]})" for name, version in found.items())
        yield Step("pipelines", "ok", named)
    else:
        text = f"none in {settings.project}/pipelines"
        yield Step("pipelines", "failed", text, "copy the project's pipelines/ there")
    for text in starting.unknown_pipelines(settings) if found else ():
        remedy = "copy it into the project's pipelines/, or correct agent.yml"
        yield Step("triggers", "failed", text, remedy)
    if settings.triggers and settings.password and not settings.triggers_broker:
        remedy = (
            "a broker that takes the user for the client id (flowerpower broker-config) would "
            "kick off one by the other: set triggers_broker, with a login of its own"
        )
        yield Step("triggers", "note", "their connection has the agent's own login", remedy)


async def _importable(settings: AgentSettings) -> list[Step]:
    """Whether they can be imported here, asked of a process that may load all that they need."""
    process = await asyncio.create_subprocess_exec(
        *checking.COMMAND,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=without_secrets(os.environ),
    )
    try:
        async with asyncio.timeout(_IMPORTS):
            said, noise = await process.communicate(msgspec.json.encode(settings))
    except TimeoutError:
        return [Step("imports", "note", f"not known: it takes longer than {_IMPORTS:g} s")]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    try:
        report = msgspec.json.decode(said, type=Report)
    except msgspec.MsgspecError:
        lines = noise.decode(errors="replace").strip().splitlines() or [""]
        text = f"the process that imports them has ended ({process.returncode}): {lines[-1]}"
        return [Step("imports", "failed", text, "run: flowerpower check")]
    return list(_imported(report))


def _imported(report: Report) -> Iterator[Step]:
    """A step for each error; those of files and those of what is not installed have other ends."""
    for problem in report.errors[:_SHOWN]:
        yield _found(problem)
    if (more := len(report.errors) - _SHOWN) > 0:
        yield Step("imports", "failed", f"{more} more errors", "run: flowerpower check")
    if not report.errors:
        counts = f"0 errors, {len(report.warnings)} warnings"
        yield Step("imports", "ok", f"checked {len(report.pipelines)} pipelines: {counts}")


def _found(problem: Problem) -> Step:
    if problem.where.startswith("triggers."):
        return Step("triggers", "failed", problem.message, "correct it in agent.yml")
    if problem.message.startswith(("conf/", ".env")):
        return Step("project", "failed", problem.message, "correct it there: no job of it can run")
    text = f"{problem.where}: {problem.message}"
    remedy = "correct the pipeline, or install on this device what it imports"
    return Step("imports", "failed", text, remedy)


def _storage(settings: AgentSettings, *, held: bool) -> Iterator[Step]:
    path = Path(settings.store)
    yield _writable(path, held=held)
    if path.exists():
        yield _sound(path)
        with contextlib.suppress(StoreError), looking.opened(str(path)) as db:
            if number := db.execute(looking.LETTERS).fetchone()[0]:
                yield Step("letters", "note", f"{number} messages made no job", _LETTERS)
    yield _disk(settings)
    yield _clock(path)


def _writable(path: Path, *, held: bool) -> Step:
    remedy = "give the agent's user the right to write there, or set another `store`"
    try:
        if held or not path.exists():
            with tempfile.TemporaryFile(dir=path.parent):
                text = f"{path}{'' if path.exists() else ' will be made'}"
                return Step("store", "ok", text)
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True)) as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("CREATE TABLE doctor (x)")  # SQLite opens what it cannot write, and reads
            db.execute("ROLLBACK")
    except (OSError, sqlite3.Error) as error:
        return Step("store", "failed", f"{path}: {error}", remedy)
    return Step("store", "ok", f"{path} can be written")


def _sound(path: Path) -> Step:
    remedy = "the agent sets a corrupt store aside when it starts; is the disk well?"
    try:
        with looking.opened(str(path)) as db:
            said = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    except StoreError as error:
        return Step("integrity", "failed", str(error), remedy)
    if said != "ok":
        return Step("integrity", "failed", said, remedy)
    return Step("integrity", "ok", f"SQLite {sqlite3.sqlite_version} finds nothing wrong")


def _disk(settings: AgentSettings) -> Step:
    try:
        free = free_bytes(Path(settings.store).parent) // _MEBIBYTE
    except OSError as error:
        return Step("disk", "failed", str(error), "make the store's folder, or set another `store`")
    text = f"{free:,} MiB free, {settings.disk_floor:,} have to be (disk_floor)"
    if free >= settings.disk_floor:
        return Step("disk", "ok", text)
    return Step("disk", "failed", text, "nothing new is accepted until there is room")


def _clock(store: Path) -> Step:
    """Whether schedules by time of day may fire; the agent decides it in the same way."""
    from edge_agent.scheduling import Clock

    noted = 0.0
    with contextlib.suppress(StoreError):
        if store.exists():
            with looking.opened(str(store)) as db:
                row = db.execute("SELECT value FROM facts WHERE name = 'time'").fetchone()
                noted = float(row[0]) if row else 0.0
    clock = Clock(noted)
    shown = datetime.now(UTC).isoformat(" ", timespec="seconds")
    if clock.is_right(tell=False):
        return Step("clock", "ok", shown)
    remedy = "set it, or wait for time synchronization; until then schedules by time of day wait"
    return Step("clock", "note", f"{shown} cannot be right, or is not synchronized", remedy)


# By a running agent -----------------------------------------------------------------------------


async def _by_the_agent(settings: AgentSettings, running: dict[str, Any]) -> AsyncIterator[Step]:
    yield Step("agent", "ok", f"runs as pid {running['pid']}, {running['status']}")
    if running["name"] != settings.name or running["broker"] != settings.place:
        told = (
            f"it runs as {running['name']} with {running['broker']}, and not with the settings here"
        )
        yield Step("settings", "note", told, "give doctor the same flags or agent.yml")
    if near := running.get("triggers"):
        yield _connection("triggers broker", near, near["problem"])
    if not running["connected"]:
        yield _connection("broker", running, running["broker_problem"] or running["problem"])
        return
    yield _connection("broker", running, None)
    answer = await asyncio.to_thread(control.ask, settings.store, "ping")
    answer = answer or {"error": "the agent has just ended"}
    if "error" in answer:
        if running["full"]:
            text = f"not known, as the agent waits: {running['full']}"
            yield Step("gateway", "note", text, "make room; then run the doctor again")
            return
        text = str(answer["error"]) if running["gateway"] else "no gateway is there"
        yield Step("gateway", "failed", text, _NO_GATEWAY)
        return
    yield _answered(answer["milliseconds"], answer["clock_offset"], answer["doubt"])


def _connection(what: str, told: dict[str, Any], problem: str | None) -> Step:
    """One of a running agent's, as it tells of it."""
    user = f" as {told['user']}" if told["user"] else ""
    if told["connected"]:
        return Step(what, "ok", f"{told['broker']}{user}")
    text = f"{told['broker']}{user}: {problem or 'no connection'}"
    return Step(what, "failed", text, _LOGIN if what == "broker" else _TRIGGERS_LOGIN)


def _answered(milliseconds: float, offset: float, doubt: str) -> Step:
    if doubt:
        return Step("gateway", "failed", f"it gives this agent no jobs: {doubt}")
    text = f"answered in {milliseconds} ms, its clock is {offset:+.1f} s against ours"
    if abs(offset) <= _OFFSET:
        return Step("gateway", "ok", text)
    return Step("gateway", "note", text, "set the clocks; the center counts with its own")


# By ourselves -----------------------------------------------------------------------------------


async def _by_ourselves(settings: AgentSettings) -> AsyncIterator[Step]:
    if settings.triggers:
        yield await _triggers_broker(settings)
    try:
        async with connected(address(settings)) as connection:
            yield Step("broker", "ok", _reached(settings.place, connection))
            for part in (_own_topics, _gateway, _foreign_topics):
                yield await part(settings, connection)
    except BrokerError as error:
        yield Step("broker", "failed", str(error), remedy(error, _LOGIN))


async def _triggers_broker(settings: AgentSettings) -> Step:
    """Connect to the broker of the triggers, and leave the session that it keeps alone."""
    link = triggers_address(settings)
    try:
        async with connected(link) as connection:
            kept, text = connection.session_present, _reached(settings.triggers_place, connection)
        if not kept:  # so this has made one: away with it
            async with connected(msgspec.structs.replace(link, clean_start=True, session_expiry=0)):
                pass
    except BrokerError as error:
        return Step("triggers broker", "failed", str(error), remedy(error, _TRIGGERS_LOGIN))
    return Step("triggers broker", "ok", text)


def _reached(place: str, connection: Connection) -> str:
    user = f" as {connection.link.username}" if connection.link.username else ""
    asked = "" if connection.link.version is None else " (version)"
    return f"{place}{user}, {'MQTT 5' if connection.version == 5 else 'MQTT 3.1.1'}{asked}"


async def _own_topics(settings: AgentSettings, connection: Connection) -> Step:
    """Whether what is published on the agent's own state topic comes back."""
    topic = settings.topics.agent(settings.name, "state")
    try:
        await connection.subscribe(topic, 1)
        await connection.publish(topic, b"", qos=1)
        await _heard(connection, lambda m: m.topic == topic and not m.payload)
    except TimeoutError:
        return Step("own topics", "failed", f"{topic}: nothing comes back", _RIGHTS)
    except PublishRefusedError as error:
        return Step("own topics", "failed", str(error), _RIGHTS)
    return Step("own topics", "ok", f"{topic} can be written and heard")


async def _gateway(settings: AgentSettings, connection: Connection) -> Step:
    """Whether a gateway hears the agent's reports and is heard by it."""
    topics, nonce = settings.topics, secrets.token_hex(8)
    do = topics.agent(settings.name, "do")
    began = time.monotonic()
    try:
        await connection.subscribe_all(((do, 1), (topics.gateway, 1)))
        report = topics.agent(settings.name, "report")
        await connection.publish(report, wire.encode(Ping(nonce=nonce)), qos=1)
        heard = await _heard(connection, lambda m: m.topic == do and _answers(m, nonce))
        pong = wire.do(heard.payload)
    except TimeoutError:
        remedy = f"{_NO_GATEWAY}; if one runs: {_RIGHTS}"
        return Step("gateway", "failed", "no gateway answers", remedy)
    except PublishRefusedError as error:
        return Step("gateway", "failed", str(error), _RIGHTS)
    took = round(1e3 * (time.monotonic() - began), 1)
    assert isinstance(pong, Pong)
    return _answered(took, pong.clock - time.time(), pong.doubt)


def _answers(message: Message, nonce: str) -> bool:
    try:
        said = wire.do(message.payload)
    except MessageError:
        return False
    return isinstance(said, Pong) and said.nonce == nonce


async def _foreign_topics(settings: AgentSettings, connection: Connection) -> Step:
    """Whether the broker keeps this agent from what is said to others. A subscription that is
    denied may be granted and deliver nothing, so what counts is what arrives.
    """
    topic = settings.topics.agent(f"fp-doctor-{secrets.token_hex(4)}", "do")
    mark = secrets.token_hex(8).encode()
    try:
        await connection.subscribe(topic, 1)
        await connection.publish(topic, mark, qos=1)
        await _heard(connection, lambda m: m.payload == mark, _FOREIGN_WAIT)
    except PublishRefusedError:
        return Step("foreign topics", "ok", "the broker refuses what this agent says there")
    except TimeoutError:
        return Step("foreign topics", "ok", "nothing that this agent says there arrives")
    except BrokerError as error:
        return Step("foreign topics", "ok", f"the broker refuses: {error}")
    remedy = "anybody can tell any agent what to run; for rights: flowerpower broker-config"
    return Step("foreign topics", "note", "allowed: this broker protects nothing", remedy)


async def _heard(
    connection: Connection, meant: Callable[[Message], bool], seconds: float = _WAIT
) -> Message:
    """The first message that is meant. Raises TimeoutError, BrokerError."""
    async with asyncio.timeout(seconds):
        while True:
            for message in await connection.receive():
                connection.acknowledge(message)
                if meant(message):
                    return message
