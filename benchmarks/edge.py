"""The edge: triggers, jobs, backlogs and idling of agents, and thousands of them on one gateway.

    python benchmarks/edge.py [--quick] [--json FILE] [--folder DIR] [--only NAME ...]

One script, one run, one machine: broker (Mosquitto), gateway, agents and simulators share its
cores, and the share that each had stands beside the figures. Every row on both sides is durable:
SQLite, synchronous=FULL. The broker keeps nothing on disk, and nothing depends on it. Figures are
medians of three with (least..most), of one run where it says so. A goal is what DESIGN.md sets.

| name | what is measured |
|---|---|
| latency | from a message on run/<pipeline> to the outcome on its response topic, agent warm |
| jobs | no-op jobs through one gateway and one agent, handed in by concurrent `add_job` |
| swarm1000 | so many simulated agents: heartbeats, one job to each, the broker killed |
| swarm10000 | the same, ten times larger |
| idle | memory, CPU, wake-ups and start of an agent, plain and over TLS |
| growth | memory of an agent after 100,000 jobs |
| backlog | 100,000 outcomes of a device that was offline, and jobs that run meanwhile |
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HAMILTON_AUTOLOAD_EXTENSIONS", "0")

from fleets import idle, latency, storms, throughput

Figures = dict[str, Any]
Rows = list[tuple[str, str, str]]  # what, goal, measured
SLOTS = {
    "2 slots": ("--slots", "2"),
    "8 slots, window 200": ("--slots", "8", "--window", "200"),
}


class Run:
    """What this run was asked for, and a new folder for each measurement."""

    def __init__(self, work: Path, *, quick: bool) -> None:
        self.work = work
        self.quick = quick
        self.repeat = 1 if quick else 3
        self._count = 0

    def of(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def folder(self) -> Path:
        self._count += 1
        folder = self.work / f"e{self._count}"
        folder.mkdir()
        return folder


def percentile(times: list[float], share: float) -> float:
    return sorted(times)[min(int(len(times) * share), len(times) - 1)]


def spread(values: list[float], digits: int = 1, unit: str = "") -> str:
    """The median, and least and most where there are several."""
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) > 1:
        middle += f" ({min(values):,.{digits}f}..{max(values):,.{digits}f})"
    return f"{middle} {unit}".rstrip()


def shares(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0f} %" for name, share in found.items())


# What is measured ---------------------------------------------------------------------------


def latencies(run: Run) -> tuple[Rows, Figures]:
    """Triggers, beside the hops and commits in a row that one consists of."""
    found = [latency.measure(run.folder(), run.of(500, 50)) for _ in range(run.repeat)]
    goals = {"trigger": ("5 (must 8)", "15")}
    words = {
        "trigger": "trigger to outcome",
        "hops": f"of these {latency.HOPS} hops over the broker, QoS 1",
        "commits": f"and {latency.COMMITS} fsynced commits",
    }
    rows = []
    for name, what in words.items():
        for number, (label, share) in enumerate((("p50", 0.5), ("p99", 0.99))):
            values = [1e3 * percentile(each[name], share) for each in found]
            goal = goals.get(name, ("", ""))[number]
            rows.append((f"{what}, {label}", goal, spread(values, 2, "ms")))
    return rows, {"rounds": found}


def jobs(run: Run) -> tuple[Rows, Figures]:
    """As they come, and when they have waited; the most that a job costs is its child."""
    rows: Rows = []
    figures: Figures = {}
    goal = "3,000 (must 1,000)"
    for label, arguments in SLOTS.items():
        count = run.of(5_000, 300)
        found = [
            throughput.jobs_per_second(run.folder(), count, *arguments) for _ in range(run.repeat)
        ]
        for name, what in (("live", "added and ended"), ("drain", "drained")):
            key = {"live": "shares", "drain": "drained"}[name]
            text = spread([each[name] for each in found], 0, "/s")
            rows.append((f"{what}, {label}", goal, f"{text}; {shares(found[-1][key])}"))
        figures[label] = found
    return rows, figures


def swarm(run: Run, full: int) -> tuple[Rows, Figures]:
    """One run."""
    count, steady, outage = run.of(full, full // 20), run.of(35, 3), run.of(20, 1)
    one = storms.measure(run.folder(), count, steady, outage)
    return [(f"{count:,} agents, {what}", goal, text) for what, goal, text in _swarm(one)], one


def _swarm(one: Figures) -> Rows:
    def stall(name: str) -> str:
        found = one[name]
        return f"longest stall {found['ms']:.0f} ms, of it computing {found['its_cpu']:.0f}"

    outage = f"broker gone for {one['outage']:.0f} s, 99 % back"
    return [
        ("connected", "", f"{one['connected']:.1f} s; {stall('connect')}"),
        ("heartbeats every 30 s", "", shares(one["heartbeats"])),
        ("heartbeats, loop", "100 ms", stall("heartbeats_stall")),
        (
            "one job to each, all in the store",
            "",
            f"{one['jobs']:.1f} s; {shares(one['jobs_shares'])}",
        ),
        ("one job to each, loop", "100 ms", stall("jobs_stall")),
        (outage, "60 s", f"{one['storm']:.1f} s; known {one['storm_known']:.1f} s"),
        ("reconnecting", "", f"{shares(one['storm_shares'])}"),
        ("reconnecting, loop", "100 ms", stall("storm_stall")),
        (
            "gateway",
            "150 MB",
            f"{one['gateway_mib']:.0f} MiB, at most {one['gateway_peak_mib']:.0f}",
        ),
        ("broker", "", f"{one['broker_mib']:.0f} MiB"),
    ]


def idling(run: Run) -> tuple[Rows, Figures]:
    """Two agents beside each other, each without a child process."""
    found = idle.measure(run.folder(), run.of(60, 3), run.of(5, 1))
    rows: Rows = []
    for name, goals in (("tls", ("32", "18", "0.1", "0.2")), ("plain", ("", "", "", ""))):
        one = found[name]
        label = {"tls": "idle agent over TLS", "plain": "idle agent, plain"}[name]
        rows += [
            (f"{label}, RSS", goals[0], f"{one['rss']:.1f} MiB"),
            (f"{label}, private", goals[1], f"{one['private']:.1f} MiB"),
            (f"{label}, CPU", goals[2], f"{one['cpu']:.2f} %; {one['wakeups']:.1f} wake-ups/s"),
            (f"{label}, exec to ready", goals[3], spread(one["ready"], 2, "s")),
        ]
    return rows, found


def growing(run: Run) -> tuple[Rows, Figures]:
    """One run."""
    one = throughput.growth(run.folder(), run.of(100_000, 2_000), *SLOTS["8 slots, window 200"])
    text = f"{one['private']:+.2f} MiB private, {one['rss']:+.2f} RSS, in {one['seconds']:.0f} s"
    return [(f"growth of the agent over {one['jobs']:,} jobs", "2 MiB", text)], one


def backlogs(run: Run) -> tuple[Rows, Figures]:
    """One run; once each, oldest first: else it fails."""
    count = run.of(100_000, 2_000)
    one = throughput.backlog(run.folder(), count)
    what = f"backlog of {count:,} outcomes, once each, oldest first"
    rows = [(what, "5,000/s", f"{one['rate']:,.0f} /s; {shares(one['shares'])}")]
    for name, words in (("live", "a job run meanwhile"), ("alone", "afterwards")):
        times = [1e3 * value for value in one[name]]
        text = f"p50 {percentile(times, 0.5):.1f} ms, p99 {percentile(times, 0.99):.1f} ms"
        rows.append((f"backlog, {words}", "", f"{text} of {len(times)}"))
    return rows, one


PARTS: dict[str, Callable[[Run], tuple[Rows, Figures]]] = {
    "latency": latencies,
    "jobs": jobs,
    "swarm1000": partial(swarm, full=1_000),
    "swarm10000": partial(swarm, full=10_000),
    "idle": idling,
    "growth": growing,
    "backlog": backlogs,
}


# Printing -----------------------------------------------------------------------------------


def print_rows(rows: Rows) -> None:
    print("\n| what (SQLite on both sides, FULL) | goal | measured |")
    print("|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: small, once")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--folder", type=Path, help="where the stores are: not on a tmpfs")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="measure these alone")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    all_figures: Figures = {}
    print(
        f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} "
        f"cores, load average {os.getloadavg()[0]:.1f} at the start",
        flush=True,
    )
    rows: Rows = []
    with tempfile.TemporaryDirectory(dir=chosen.folder, ignore_cleanup_errors=True) as name:
        run = Run(Path(name), quick=chosen.quick)
        for part in chosen.only or PARTS:
            print(f"  {part} ...", file=sys.stderr, flush=True)
            found, all_figures[part] = PARTS[part](run)
            rows += found
    print_rows(rows)
    print(f"\nload average at the end: {os.getloadavg()[0]:.1f}")
    if chosen.json:
        chosen.json.write_text(json.dumps(all_figures, indent=2))


if __name__ == "__main__":
    main()
