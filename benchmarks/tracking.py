"""What tracking costs a run: tracked and untracked ones, with the Hamilton UI up, killed, hanging.

    python benchmarks/tracking.py [--quick] [--json FILE]

Needs the extra [ui]. One process, one loop; the two of a pair follow one another, and take turns at
being the first. What is told is told before the next pair begins (`pairs`), or while the next runs
are made (`in a row`). `command` is the whole of `flowerpower run`, its end included. Times are
milliseconds, p50 and p99; ratios are of p50s, tracked / untracked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from fp_async import Project
from fp_async.tracker import tracker
from fp_async.tracker_setup import setup

ROOT = Path(__file__).parent.parent
COMMAND = str(Path(sys.executable).with_name("flowerpower"))
SLEEPER = """
import asyncio


async def first() -> int:
    await asyncio.sleep(0.01)
    return 1


async def second(first: int) -> int:
    await asyncio.sleep(0.01)
    return first
"""
CHAIN = "\n".join(
    ["def n0() -> int:\n    return 1\n"]
    + [f"def n{i}(n{i - 1}: int) -> int:\n    return n{i - 1}\n" for i in range(1, 100)]
)
PIPELINES = ("sales_etl", "sleeper", "chain")  # pandas; two nodes of 10 ms; 100 trivial nodes


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class UI:
    """The UI as a process that can be killed and stopped."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [COMMAND, "hamilton-ui", "--no-open", "--port", str(self.port)]
        with (self._folder / "ui.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--base-dir", str(self._folder / "db")], stdout=log, stderr=log
            )
        for _ in range(300):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            time.sleep(0.1)
        raise SystemExit((self._folder / "ui.log").read_text())

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait()


@contextlib.contextmanager
def project_of(folder: Path, ui: UI) -> Iterator[Project]:
    root = folder / "project"
    shutil.copytree(ROOT / "examples" / "sales_etl", root)
    (root / "pipelines" / "sleeper.py").write_text(SLEEPER)
    (root / "pipelines" / "chain.py").write_text(CHAIN)
    with contextlib.chdir(root):  # its data is below
        for name in PIPELINES:
            setup(root, name, username="me@example.com", api_url=f"http://127.0.0.1:{ui.port}")
        yield Project(root)


async def timed(run: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await run()
    return 1000 * (time.perf_counter() - began)


async def pairs(project: Project, name: str, count: int) -> dict[str, Any]:
    times: dict[bool, list[float]] = {False: [], True: []}
    for index in range(count + 1):
        for tracked in (index % 2 == 0, index % 2 == 1):
            took = await timed(lambda: project.run(name, with_tracker=tracked))  # noqa: B023
            await asyncio.to_thread(tracker().flush)
            if index:  # the first pair loads
                times[tracked].append(took)
    return compared(times[True], times[False])


async def in_a_row(project: Project, name: str, count: int) -> dict[str, Any]:
    times: dict[bool, list[float]] = {False: [], True: []}
    for index in range(4):
        for tracked in (index % 2 == 0, index % 2 == 1):
            for _ in range(count // 2):
                times[tracked].append(await timed(lambda: project.run(name, with_tracker=tracked)))  # noqa: B023
            await asyncio.to_thread(tracker().flush)
    return compared(times[True], times[False])


def commands(root: Path, count: int) -> dict[str, Any]:
    times: dict[bool, list[float]] = {False: [], True: []}
    for index in range(count):
        for tracked in (index % 2 == 0, index % 2 == 1):
            option = "--with-tracker" if tracked else "--no-tracker"
            began = time.perf_counter()
            subprocess.run(
                [COMMAND, "run", "sales_etl", "--quiet", option],
                cwd=root,
                check=True,
                capture_output=True,
                timeout=60,
            )
            times[tracked].append(1000 * (time.perf_counter() - began))
    return compared(times[True], times[False])


def compared(tracked: list[float], untracked: list[float]) -> dict[str, Any]:
    result = {}
    for name, times in (("tracked", tracked), ("untracked", untracked)):
        ordered = sorted(times)
        result[name] = {
            "p50": round(ordered[len(ordered) // 2], 3),
            "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 3),
        }
    result["ratio"] = round(result["tracked"]["p50"] / result["untracked"]["p50"], 3)
    return result


async def measured(project: Project, count: int, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in PIPELINES:
        found[name] = {"pairs": await pairs(project, name, count)}
        found[name]["in a row"] = await in_a_row(project, name, count)
    if not quick:
        found["command"] = {"whole": await asyncio.to_thread(commands, project.root, 10)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    count = 4 if options.quick else 20
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        ui = UI(Path(folder))
        ui.start()
        try:
            with project_of(Path(folder), ui) as project:
                figures["up"] = asyncio.run(measured(project, count, options.quick))
                ui.send(signal.SIGSTOP)  # connections are taken, and nobody answers
                figures["hanging"] = asyncio.run(measured(project, count, options.quick))
                ui.send(signal.SIGKILL)
                figures["killed"] = asyncio.run(measured(project, count, options.quick))
        finally:
            ui.send(signal.SIGKILL)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


def show(figures: dict[str, Any]) -> None:
    row = "{:8} {:10} {:9} {:>10} {:>10} {:>10} {:>10} {:>7}"
    print(row.format("UI", "pipeline", "", "tracked", "p99", "untracked", "p99", "ratio"))
    for state, parts in figures.items():
        for name, kinds in parts.items():
            for kind, told in kinds.items():
                times = [told[who][p] for who in ("tracked", "untracked") for p in ("p50", "p99")]
                print(row.format(state, name, kind, *times, told["ratio"]))


if __name__ == "__main__":
    main()
