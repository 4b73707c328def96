"""No-op jobs from add to outcome: FlowerPower on SQLite and PostgreSQL beside its peers.

    python benchmarks/jobs.py [--quick] [--json FILE] [--cache DIR] [--only NAME ...]

One script, one run, one machine. Every peer has an environment of its own, made with pip in the
cache folder and kept there, and is measured at its default and at its best settings, by the
command that it brings. Drained: jobs are added first, then a worker starts; counted from the first
outcome to the last, results kept. Latency: from add to result, jobs one after another, worker
idle. Figures are medians of three with (least..most). What is durable differs and stands in a
column: a figure without an fsync is no rival of one with it. "best" are the settings that should
be best by the peer's documentation; where its default comes out ahead, that is its best here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("HAMILTON_AUTOLOAD_EXTENSIONS", "0")

import psutil
from peers import ours, running

Figures = dict[str, Any]
RUNNERS = {
    "embedded": "default, runner inline, in the client's process",
    "inline": "start-worker --runner inline, another process",
    "process": "start-worker --runner process (default), another process",
}
GOAL = "goal, SQLite, embedded | | | | 8,000 (must 4,000) | | 1.0 | 3"


class Run:
    """What this run was asked for, and a new folder for each measurement."""

    def __init__(self, work: Path, *, quick: bool) -> None:
        self.work = work
        self.quick = quick
        self.repeat = 1 if quick else 3
        self.jobs = 500 if quick else 5000
        self.rounds = 50 if quick else 300
        self._count = 0

    def folder(self) -> Path:
        self._count += 1
        return self.work / f"p{self._count}"


def spread(values: list[float]) -> Figures:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def percentile(times: list[float], share: float) -> float:
    return sorted(times)[min(int(len(times) * share), len(times) - 1)]


# Ours ---------------------------------------------------------------------------------------


def _stores() -> dict[str, Callable[[], AbstractContextManager[str | None]]]:
    return {"SQLite": nullcontext, "PostgreSQL": running.postgres}


def _conf(uri: str | None) -> str:
    return ours.postgres_conf(uri) if uri else ours.SQLITE


async def our_row(run: Run, store: str, runner: str) -> Figures:
    """Drain, add and latency of our worker, each on new stores."""
    count = run.jobs // (1 if runner != "process" and store == "SQLite" else 2)
    adds, drains, p50s, p99s = [], [], [], []
    for _ in range(run.repeat):
        with _stores()[store]() as uri:
            root = ours.project(run.folder(), _conf(uri))
            adds.append(await ours.added(root, count))
            drains.append(await ours.drained(root, count, runner))
        with _stores()[store]() as uri:
            root = ours.project(run.folder(), _conf(uri))
            times = await ours.latencies(root, run.rounds, runner)
        p50s.append(percentile(times, 0.5))
        p99s.append(percentile(times, 0.99))
    figures = {"drain": spread(drains), "add": spread(adds), "p50": spread(p50s)}
    return {**figures, "p99": spread(p99s), "jobs": count}


async def our_rows(run: Run) -> list[Figures]:
    rows = []
    for store in _stores():
        for runner, settings in RUNNERS.items():
            print(f"  FlowerPower, {store}, {settings} ...", file=sys.stderr, flush=True)
            durable = running.FULL if store == "SQLite" else running.COMMIT
            row = {"who": "FlowerPower", "store": store, "settings": settings, "durable": durable}
            try:
                rows.append({**row, **await our_row(run, store, runner)})
            except Exception as error:
                rows.append({**row, "drain_error": _line(error)})
    return rows


def _line(error: BaseException) -> str:
    """The first line of an error, or its class where it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


async def our_others(run: Run) -> list[Figures]:
    """Concurrent runs, schedules and idle workers, with the goals for them."""
    conf, rows = ours.SQLITE, list[Figures]()

    def note(what: str, goal: str, unit: str, values: list[float]) -> None:
        rows.append({"what": what, "goal": goal, "unit": unit, **spread(values)})

    count = 200 if run.quick else 1000
    rates = [
        await ours.concurrent(ours.project(run.folder(), conf), count) for _ in range(run.repeat)
    ]
    note(f"{count:,} concurrent durable runs", "8,000 (must 3,000)", "/s", rates)
    count = 1000 if run.quick else 10_000
    bursts = [
        await ours.due_at_once(ours.project(run.folder(), conf), count) for _ in range(run.repeat)
    ]
    note(f"{count:,} schedules due at once, all stored", "2", "s", [took for took, _ in bursts])
    rate = 100 if run.quick else 1000
    lates = []
    for _ in range(run.repeat):
        root = ours.project(run.folder(), conf)
        try:
            lates.append(await ours.fires(root, rate, 3 if run.quick else 10))
        except AssertionError as error:
            print(f"  {error}", file=sys.stderr)
    if lates:
        label = f"{rate:,} fires/s, late"
        note(f"{label}, p50", "", "ms", [1e3 * percentile(late, 0.5) for late in lates])
        note(f"{label}, p99", "5", "ms", [1e3 * percentile(late, 0.99) for late in lates])
    else:
        rows.append({"what": f"{rate:,} fires/s, late, p99", "goal": "5", "error": "not kept up"})
    runners = ("SQLite inline", "SQLite process")
    roots = {name: ours.project(run.folder(), conf) for name in runners}
    shares = await ours.idle(roots, 3 if run.quick else 20, run.repeat)
    for name, values in shares.items():
        note(f"idle worker, {name}, CPU", "0.2", "% of a core", [100 * share for share in values])
    return rows


# The floor ----------------------------------------------------------------------------------


def floor(run: Run, when: str) -> list[Figures]:
    """A row inserted and committed alone by the bare driver, WAL and FULL; two and three of them,
    in turns. A disk is not the same all the time: so twice, around our rows.
    """
    db = sqlite3.connect(run.folder(), isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    db.execute("CREATE TABLE t (id TEXT PRIMARY KEY, body BLOB)")
    p50s, p99s = defaultdict[int, list[float]](list), defaultdict[int, list[float]](list)
    for turn in range(run.repeat):
        times = defaultdict[int, list[float]](list)
        for i in range(run.rounds):
            for commits in (1, 2, 3):
                times[commits].append(_committed(db, f"{commits}.{turn}.{i}", commits))
        for commits, taken in times.items():
            p50s[commits].append(1e3 * percentile(taken, 0.5))
            p99s[commits].append(1e3 * percentile(taken, 0.99))
    db.close()
    return [
        {"what": f"floor {when}: {commits} fsynced commits, {name}", "goal": "", "unit": "ms"}
        | spread(values[commits])
        for commits in p50s
        for name, values in (("p50", p50s), ("p99", p99s))
    ]


def _committed(db: sqlite3.Connection, id: str, commits: int) -> float:
    began = time.perf_counter()
    for commit in range(commits):
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO t VALUES (?, ?)", (f"{id}.{commit}", b"x" * 300))
        db.execute("COMMIT")
    return time.perf_counter() - began


# The peers ----------------------------------------------------------------------------------


def peer_rows(run: Run, cache: Path, names: list[str], scale: float) -> list[Figures]:
    rows = []
    for row, version, figures in running.measure_all(
        cache, names, run.rounds, scale, run.work, run.repeat
    ):
        spreads = {n: spread(v) if isinstance(v, list) else v for n, v in figures.items()}
        described = {"who": f"{row.peer} {version}", "store": row.store, "settings": row.settings}
        rows.append({**described, "durable": row.durable, **spreads})
    return rows


# Printing -----------------------------------------------------------------------------------


def cell(row: Figures, name: str, scale: float, digits: int) -> str:
    """A figure, with its spread where there is one, or a dash."""
    value = row.get(name)
    if value is None:
        return "-"
    if not isinstance(value, dict):
        return f"{value * scale:,.{digits}f}"
    return spread_text({key: number * scale for key, number in value.items()}, digits)


def spread_text(value: Figures, digits: int) -> str:
    return (
        f"{value['median']:,.{digits}f} ({value['least']:,.{digits}f}..{value['most']:,.{digits}f})"
    )


def print_jobs(rows: list[Figures]) -> None:
    print("\n| who | store | settings | durable | drained/s | added/s | p50 ms | p99 ms |")
    print("|---|---|---|---|---|---|---|---|")
    print(f"| {GOAL} |")
    for row in rows:
        figures = [cell(row, "drain", 1, 0), cell(row, "add", 1, 0)]
        figures += [cell(row, "p50", 1e3, 2), cell(row, "p99", 1e3, 2)]
        words = [row[name] for name in ("who", "store", "settings", "durable")]
        print(f"| {' | '.join([*words, *figures])} |")
    for row in rows:
        for name in ("drain_error", "latency_error"):
            if name in row:
                measure = name.removesuffix("_error")
                print(f"\n{row['who']}, {row['store']}, {row['settings']}: {measure}: {row[name]}")


def print_others(rows: list[Figures]) -> None:
    print("\n| what (SQLite, FULL) | goal | measured |")
    print("|---|---|---|")
    for row in rows:
        measured = row.get("error") or f"{spread_text(row, 2)} {row['unit']}"
        print(f"| {row['what']} | {row['goal']} | {measured} |")


def machine(work: Path) -> str:
    """What the figures depend on beside the programs."""
    mounts = [m for m in psutil.disk_partitions(all=True) if work.is_relative_to(m.mountpoint)]
    kind = max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else "?"
    return (
        f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}, "
        f"{os.cpu_count()} cores, files on {kind}, "
        f"load average {os.getloadavg()[0]:.1f} at the start"
    )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: small, no peers")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--cache", type=Path, help="folder for the peers' environments")
    parser.add_argument("--folder", type=Path, help="where the stores are: not on a tmpfs")
    parser.add_argument("--scale", type=float, default=1.0, help="times the peers' jobs")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=["fp_async", *running.PACKAGES],
        help="measure these alone",
    )
    return parser.parse_args()


def main() -> None:
    chosen = options()
    logging.disable(logging.ERROR)
    names = chosen.only or ["fp_async", *([] if chosen.quick else running.PACKAGES)]
    cache = chosen.cache or Path(tempfile.gettempdir()) / "fp-bench-peers"
    with tempfile.TemporaryDirectory(dir=chosen.folder, ignore_cleanup_errors=True) as name:
        run = Run(Path(name), quick=chosen.quick)
        print(machine(run.work), flush=True)
        others = floor(run, "before")
        jobs: list[Figures] = []
        if "fp_async" in names:
            jobs += asyncio.run(our_rows(run))
            others += floor(run, "between")
            others += asyncio.run(our_others(run))
        jobs += peer_rows(run, cache, names, chosen.scale)
    print_jobs(jobs)
    print_others(others)
    load = os.getloadavg()
    print(f"\nload average at the end: {load[0]:.1f} (1 min), {load[2]:.1f} (15 min)")
    if chosen.json:
        chosen.json.write_text(json.dumps({"jobs": jobs, "others": others, "load": load}, indent=2))


if __name__ == "__main__":
    main()
