"""`top`: queues, workers, running jobs and the next schedules."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from fp_async.cli import base_dir
from fp_async.cli.following import output_option
from fp_async.cli.saying import cell
from fp_async.errors import StoreUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from fp_async.backend import Backend
    from fp_async.jobs import Job
    from fp_async.stores import Store

_REFRESH = 1.0
_QUICKEST = 0.1
_SHOWN = 15
_COUNTED = 500
_ALWAYS = ("queued", "running", "succeeded", "failed")


@click.command()
@click.option("--once", is_flag=True, help="Print it once, and end.")
@output_option
@base_dir
def top(output: str, base_dir: str | None, *, once: bool) -> None:
    """Watch queues, workers, running jobs and the next schedules, until `q` or Ctrl-C.

    Where stdout is no terminal it is printed once.
    """
    from fp_async.cli.output import console, echo_json
    from fp_async.project import find_root

    root = find_root(base_dir)
    if output == "table" and not once and sys.stdout.isatty():
        asyncio.run(_watch(root))
        return
    facts = asyncio.run(_once(root, shortened=output == "table" and sys.stdout.isatty()))
    if output == "json":
        echo_json(_as_json(facts))
    else:
        screen = console()
        screen.print(_view(facts, screen.width))


async def _once(root: Path, *, shortened: bool) -> dict[str, Any]:
    from fp_async.backend import connected

    async with connected(root) as backend:
        return await (_seen(backend) if shortened else snapshot(backend.store))


# What there is to see -----------------------------------------------------------------------


async def snapshot(store: Store) -> dict[str, Any]:
    """Queues, workers, schedulers, running jobs and schedules; times in epoch seconds."""
    from fp_async.cli.shown import in_zone, words
    from fp_async.gateway_schedules import is_offline
    from fp_async.jobs import Find
    from fp_async.watching import alive

    jobs = await store.find(Find(states=("running",), limit=_COUNTED))
    running = [_running(job) for job in jobs]
    due = await store.due(float(2**40), _SHOWN)
    told = await _told_by_agents(store)
    return {
        "at": await store.now(),
        "queues": _queues(await store.counts()),
        "workers": _counted(await alive(store, "worker"), running),
        "schedulers": await alive(store, "scheduler"),
        "running": running[:_SHOWN],
        "schedules": [
            {
                "id": row.id,
                "pipeline": row.pipeline,
                "trigger": words(row),
                "at": at,
                "in_zone": in_zone(at, row),
            }
            for row in due
            if (at := row.next_fire_time) is not None
        ],
        "on_agents": [
            {"id": row.id, "pipeline": row.pipeline, "trigger": words(row), "agents": told[row.id]}
            for row in await store.schedules()
            if is_offline(row) and not row.paused
        ][:_SHOWN],
    }


async def _told_by_agents(store: Store) -> Counter[str]:
    """By how many agents each schedule is kept."""
    import msgspec

    found = [msgspec.json.decode(m.info) for m in await store.members("agent-schedule")]
    return Counter(each["schedule"] for each in found if each.get("error") is None)


def _queues(counts: dict[tuple[str, str], int]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, int]] = {}
    for (queue, state), count in sorted(counts.items()):
        found.setdefault(queue, dict.fromkeys(_ALWAYS, 0))[state] = count
    return [{"queue": queue, **states} for queue, states in found.items()]


def _counted(workers: list[dict[str, Any]], running: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Workers with the jobs that they run now, which they tell themselves only now and then."""
    if len(running) == _COUNTED:
        return workers
    counts = Counter(row["worker"] for row in running)
    return [{**worker, "running": counts[worker["name"]]} for worker in workers]


def _running(job: Job) -> dict[str, Any]:
    owner = (job.owner or "").split("/")
    worker = owner[0].rpartition("@")[2] + (f"-{owner[3]}" if len(owner) > 3 else "")
    names = ("id", "pipeline", "queue", "attempt", "started_at", "schedule_id")
    return {**{name: getattr(job, name) for name in names}, "worker": worker}


_TIMES = ("at", "seen_at", "started_at")


def _as_json(value: Any) -> Any:
    from fp_async.cli.shown import stamp

    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {k: stamp(v) if k in _TIMES else _as_json(v) for k, v in value.items()}
    return value


# The view -----------------------------------------------------------------------------------


async def _watch(root: Path) -> None:
    """Until `q` or Ctrl-C, which is how it is meant to end."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    from fp_async.backend import connected

    try:
        with _ended_by_key(task.cancel):
            async with connected(root) as backend:
                await _refresh(backend)
    except asyncio.CancelledError:
        return


@contextmanager
def _ended_by_key(end: Callable[[], object]) -> Iterator[None]:
    """Call `end` when `q` is pressed, if there is a terminal, which is afterwards as it was."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    number, loop = sys.stdin.fileno(), asyncio.get_running_loop()

    def pressed() -> None:
        keys = os.read(number, 64).lower()
        if b"q" in keys or not keys:
            loop.remove_reader(number)
            end()

    before = termios.tcgetattr(number)
    tty.setcbreak(number)
    loop.add_reader(number, pressed)
    try:
        yield
    finally:
        loop.remove_reader(number)
        termios.tcsetattr(number, termios.TCSADRAIN, before)


async def _refresh(backend: Backend) -> None:
    from rich.live import Live

    from fp_async.cli.output import console

    facts = await _seen(backend)
    topics = ("job:*", "work:*", "schedules")
    with (
        backend.hub.listen(*topics) as listener,
        Live(console=console(), screen=True, auto_refresh=False) as live,
    ):
        while True:
            try:
                facts = await _seen(backend)
            except StoreUnavailableError as error:
                facts = {**facts, "problem": str(error)}
            live.update(_view(facts, live.console.width), refresh=True)
            await asyncio.sleep(_QUICKEST)
            await listener.wait(_REFRESH - _QUICKEST)


async def _seen(backend: Backend) -> dict[str, Any]:
    """Return the contents of the screen, with job ids as short as tells them apart."""
    from fp_async import short_ids

    facts = await snapshot(backend.store)
    ids = [row["id"] for row in facts["running"]]
    length = await short_ids.shown_length(backend.store, ids)
    return {**facts, "length": length, "problem": backend.hub.problem}


def _view(facts: dict[str, Any], room: int) -> Any:
    from rich.console import Group
    from rich.text import Text

    from fp_async.cli.shown import local

    schedulers = len(facts["schedulers"])
    head = Text.assemble(("flowerpower top", "bold"), f"  {local(facts['at'])}")
    if schedulers:
        head.append(f"  {schedulers} scheduler{'s' if schedulers > 1 else ''}")
    parts: list[Any] = [head]
    if problem := facts.get("problem"):
        parts.append(cell(problem, style="red"))
    now = facts["at"]
    for title, rows, empty in (
        ("queues", _queue_rows(facts), "no jobs"),
        ("workers", _worker_rows(facts, now), "no workers: flowerpower start-worker"),
        ("running", _running_rows(facts, now), "nothing runs"),
        ("next schedules", _schedule_rows(facts, now), "none"),
    ):
        parts += [
            Text(),
            _table(title, rows, room) if rows else Text(f"{title}: {empty}", style="dim"),
        ]
    return Group(*parts)


_RANKS = {
    "pipeline": 4,
    "trigger": 1,
    "in": 3,
    "queue": 2,
    "queues": 2,
    "attempt": 5,
    "worker": 1,
    "runner": 4,
    "host": 6,
    "pid": 3,
    "up": 5,
}
_CUT = {"pipeline": 16, "trigger": 20, "queues": 12, "worker": 16}


def _table(title: str, rows: list[dict[str, Any]], room: int) -> Any:
    from rich.text import Text

    from fp_async.cli.columns import Column, lines_of

    first, *others = rows[0]
    columns = [
        Column(title, cut=24),
        *(Column(name, _RANKS.get(name, 0), _CUT.get(name, 0)) for name in others),
    ]
    head, *lines = lines_of([{title: row[first], **row} for row in rows], columns, room)
    shown = Text.assemble((title, "bold cyan"), (head.removeprefix(title), "dim"), no_wrap=True)
    for line in lines:
        shown.append(f"\n{line}")
    return shown


def _queue_rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    states = dict.fromkeys([*_ALWAYS, *(s for row in facts["queues"] for s in row if s != "queue")])
    texts = {state: [str(row.get(state, 0)) for row in facts["queues"]] for state in states}
    widths = {state: max([len(state), *map(len, texts[state])]) for state in states}
    return [
        {"queue": row["queue"], **{s: texts[s][number].rjust(widths[s]) for s in states}}
        for number, row in enumerate(facts["queues"])
    ]


def _worker_rows(facts: dict[str, Any], now: float) -> list[dict[str, Any]]:
    from fp_async.cli.shown import span

    return [
        {
            "name": row["name"],
            "queues": ",".join(row.get("queues", [])),
            "running": f"{row.get('running', '?')} of {row.get('concurrency', '?')}",
            "runner": row.get("runner", ""),
            "host": row.get("host", ""),
            "pid": str(row.get("pid", "")),
            "up": span(float(int(now - row.get("started_at", now)))).replace(".000", ""),
            "": "drains" if row.get("draining") else "",
        }
        for row in facts["workers"]
    ]


def _running_rows(facts: dict[str, Any], now: float) -> list[dict[str, Any]]:
    from fp_async.cli.shown import span

    return [
        {
            "id": row["id"][: facts.get("length")],
            "pipeline": row["pipeline"],
            "queue": row["queue"],
            "for": span(now - (row["started_at"] or now)),
            "attempt": row["attempt"],
            "worker": row["worker"],
        }
        for row in facts["running"]
    ]


def _schedule_rows(facts: dict[str, Any], now: float) -> list[dict[str, Any]]:
    from fp_async.cli.shown import ago

    return [
        {
            "id": row["id"],
            "pipeline": row["pipeline"],
            "trigger": row["trigger"],
            "at": row["in_zone"],
            "in": ago(row["at"], now),
        }
        for row in facts["schedules"]
    ] + [
        {
            **{name: row[name] for name in ("id", "pipeline", "trigger")},
            "at": "on agents",
            "in": f"{row['agents']} {'agent keeps' if row['agents'] == 1 else 'agents keep'} it",
        }
        for row in facts.get("on_agents", ())
    ]
