"""What came from elsewhere is shown escaped: no text of an agent is obeyed by a terminal (E15)."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import logging
import sqlite3
import sys
import time
from pathlib import Path

import msgspec
import pytest
import stores_kit as kit
from fleet import COMMAND, make
from terminal import Terminal

from fp_async import codec, gateway_schedules, json_logs, log_levels, triggers
from fp_async.cli import live, saying, top
from fp_async.cli.columns import Column, echo_columns
from fp_async.cli.output import echo_json
from fp_async.escapes import escaped, in_line, indented
from fp_async.jobs import Failure, Letter, Member, NodeTiming, Record, Schedule
from fp_async.messages import AgentState, ScheduleState
from fp_async.presence import Known
from fp_async.stores.sqlite import SqliteStore

ROOT = Path(__file__).parent.parent
# Clears the screen, sets the title, and writes over the line; the same in one byte, and backwards.
EVIL = "\x1b[2J\x1b]0;owned\x07\r\x9b31mfake\u202e"
SHOWN = r"\x1b[2J\x1b]0;owned\x07\r\u009b31mfake\u202e"
OBEYED = ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\u202e")


def safe(text: str) -> bool:
    return not any(each in text for each in OBEYED)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 🎉\n\tnext", "plain ä 🎉\n\tnext"),
        (EVIL, SHOWN),
        ("a\r\nb\x00\x7f", "a\\r\nb\\x00\\u007f"),
    ],
)
def test_e15_a_text_is_escaped(text, shown):
    assert escaped(text) == shown
    assert safe(in_line(text))
    assert "\n" not in in_line(text)


def test_e15_a_line_of_a_log_cannot_be_forged():
    assert indented("one\n2026 INFO two\n  three\n") == "one\n    2026 INFO two\n  three\n"


def test_e15_only_styles_of_ours_are_styles(capsys):
    ours = saying.style("state", fg="red", bold=True)
    assert saying.safe(f"{ours} {EVIL}") == f"\x1b[31m\x1b[1mstate\x1b[0m {SHOWN}"
    assert saying.plain(f"{ours} {EVIL}") == f"state {SHOWN}"
    assert saying.safe(saying.style("\x1b[31mred", fg="green")) == "\x1b[32m\\x1b[31mred\x1b[0m"
    saying.echo(f"{ours}\x1b[31m")
    assert capsys.readouterr().out == "state\\x1b[31m\n"  # no terminal: without styles


def test_e15_json_stays_json(capsys):
    echo_json({"a": EVIL})
    text = capsys.readouterr().out
    assert safe(text)
    assert json.loads(text) == {"a": EVIL}


def test_e15_tables_have_neither_escapes_nor_markup(capsys):
    rows = [{"topic": f"[bold]{EVIL}[/bold]", EVIL: [EVIL]}]
    echo_columns(rows, [Column("topic"), Column(EVIL)])
    text = capsys.readouterr().out
    assert safe(text)
    assert f"[bold]{SHOWN}[/bold]" in text


def test_e15_the_progress_of_a_job(capsys):
    with live.Progress(EVIL, ["a"]) as progress:
        progress._tell(NodeTiming(node=EVIL, status="failed", error=EVIL))
    assert safe(capsys.readouterr().err)


def rendered(view) -> str:
    from rich.console import Console

    console = Console(width=400, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(view)
    return captured.get()


def test_e15_top():
    row = {"id": EVIL, "pipeline": EVIL, "trigger": EVIL, "in_zone": EVIL, "at": 1.0}
    running = {**row, "queue": EVIL, "attempt": 1, "worker": EVIL, "started_at": 1.0}
    worker = {"name": EVIL, "queues": [EVIL], "runner": EVIL, "host": EVIL, "pid": EVIL}
    facts = {
        "at": 1.0,
        "problem": EVIL,
        "schedulers": [],
        "workers": [worker],
        "queues": [{"queue": EVIL, EVIL: 1}],
        "running": [running],
        "schedules": [row],
        "on_agents": [{**row, "agents": 1}],
    }
    text = rendered(top._view(facts, 400))
    assert safe(text)
    assert SHOWN in text


@pytest.mark.parametrize("form", ["text", "json"])
def test_e15_log_lines(form):
    formatter = log_levels.Formatter("%(levelname)s %(message)s")
    record = logging.makeLogRecord(
        {"levelno": 20, "levelname": "INFO", "msg": "dead letter on %s", "args": (f"a\n{EVIL}",)}
    )
    text = (json_logs.Formatter() if form == "json" else formatter).format(record)
    assert safe(text)
    if form == "text":
        assert text == f"INFO dead letter on a\n    {SHOWN}"
    else:
        assert json.loads(text)["message"] == f"dead letter on a\n{EVIL}"


@pytest.mark.parametrize("name", ["fp_async/cli", "edge_agent"])
def test_e15_there_is_one_door(name):
    """Whatever else writes to a terminal would not escape."""
    for path in (ROOT / name).rglob("*.py"):
        if path.name == "saying.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                whole = ast.unparse(node)
                assert whole not in ("click.echo", "click.secho", "click.style"), path
            called = isinstance(node, ast.Call) and ast.unparse(node.func)
            assert called not in ("print", "sys.stdout.write", "sys.stderr.write"), path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A project in whose store an agent has left such texts everywhere."""
    root = tmp_path_factory.mktemp("hostile")
    make(root, "data_store: {type: sqlite}\n")
    asyncio.run(fill(root / "flowerpower.db"))
    return root


async def fill(path: Path) -> None:
    store = SqliteStore(str(path))
    await store.open()
    now = time.time()
    nodes = [NodeTiming(node=EVIL, status="failed", error=EVIL)]
    record = Record(nodes=nodes, log=f"{EVIL}\n", worker=EVIL, warnings=[EVIL], version=EVIL)
    common = {
        "pipeline": EVIL,
        "reason": EVIL,
        "trigger": EVIL,
        "agent": "pi",
        "key": EVIL,
        "inputs": codec.encode({EVIL: EVIL}),
        "record": msgspec.json.encode(record),
        "started_at": now,
        "ended_at": now,
        "target": "agent:pi",
        "queue": EVIL,
    }
    failure = msgspec.json.encode(Failure(kind="ValueError", message=EVIL, traceback=EVIL))
    done = kit.job(id="d0", state="succeeded", result=codec.encode({EVIL: EVIL}), **common)
    failed = kit.job(id="fa", state="failed", error=failure, **common)
    assert await store.fleet.adopt([done, failed]) == [True, True]
    said = AgentState(
        status="ready", store="s", starts=1, n=1, tags={"site": EVIL}, pipelines={"p": "1"}
    )
    known = Known(state=said, seen_at=now, quarantine=EVIL)
    info = msgspec.json.encode(known)
    await store.saw(Member(kind="agent", name="pi", info=info), 1000)
    await store.fleet.bury([Letter(id="l", topic=EVIL, reason=EVIL, payload=EVIL.encode())])
    spec = triggers.encode(triggers.parse("interval", {"seconds": 60}, now=now)).encode()
    await store.put(Schedule(id="s", pipeline="p", trigger=spec, template=b'{"offline":true}'))
    refused = ScheduleState(id="s", revision=1, error=EVIL)
    await gateway_schedules.heard(store, "pi", refused)
    await store.close()


@pytest.mark.parametrize(
    "line",
    [
        *("jobs", "job d0", "job fa", "job d0 --output json", "agents", "agent pi"),
        *("letters", "letters --output json", "result d0", "result fa --traceback"),
        *("schedules show s", "schedules show s --output json"),
        *("result d0 --output json", "top --once", "jobs --output json"),
    ],
)
def test_e15_commands(hostile, line):
    with Terminal(COMMAND, *line.split(), cwd=hostile, columns=300) as terminal:
        terminal.end()
    assert safe(terminal.text)
    assert line.startswith("top") or SHOWN in terminal.text or r"\u009b31mfake" in terminal.text


@pytest.mark.parametrize("command", ["jobs", "letters", "status"])
def test_e15_commands_of_the_device(tmp_path, command):
    path = tmp_path / "fp-agent.db"

    async def device() -> None:
        store = SqliteStore(path)
        await store.open()
        await store.fleet.adopt([kit.job(state="failed", pipeline=EVIL, reason=EVIL, ended_at=1.0)])
        await store.close()

    asyncio.run(device())
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        row = ("l", 1.0, EVIL, EVIL, EVIL.encode())
        db.execute("INSERT INTO letters (id, at, topic, reason, payload) VALUES (?,?,?,?,?)", row)
        problem = json.dumps({"text": EVIL, "since": 1.0})
        db.execute("INSERT INTO facts (name, value) VALUES ('problem', ?)", (problem,))
    agent = Path(sys.executable).with_name("fp-agent")
    flags = ("--name", "pi", "--broker", "mqtt://127.0.0.1:1", "--store", str(path))
    (tmp_path / "pipelines").mkdir()
    with Terminal(agent, command, *flags, cwd=tmp_path, columns=300) as terminal:
        terminal.end()
    assert safe(terminal.text)
    assert SHOWN in terminal.text
