"""The wear of a flash card: bytes written and fsyncs, of a job on a device and of idling.

    python benchmarks/wear.py [--quick] [--json FILE] [--folder DIR]

Needs Mosquitto, and strace, which counts the writes to files of the store and the fsyncs of one
process (shared memory, sockets and logs do not count). Beside it stand the bytes that the kernel
sent to the disk for that process (`write_bytes` of /proc/PID/io), which come in whole pages.

| name | what is measured |
|---|---|
| job | an agent that gets a job each second from its gateway; a job's share |
| idle agent | an agent that has nothing to do, an hour's worth |
| idle gateway | a gateway with a connected agent that has nothing to do, an hour's worth |
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HAMILTON_AUTOLOAD_EXTENSIONS", "0")

import psutil
from fleets.places import Mosquitto, Place, running, until

from fp_async import Project

_WRITE = re.compile(r"(?:pwrite64|write|pwritev)\(\d+<([^>]*)>.*= (\d+)$")
_SYNC = re.compile(r"(?:fdatasync|fsync)\(\d+<([^>]*)>")
_STORE = re.compile(r"\.db(?:-wal|-journal)?$")
_UNFINISHED = re.compile(r"^(\d+)\s+(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+)\s+<\.\.\. \w+ resumed>(.*)$")
Figures = dict[str, float]


def whole_calls(lines: list[str]) -> Iterator[str]:
    """The calls of a trace, those of two lines put together."""
    begun: dict[str, str] = {}
    for line in lines:
        if found := _UNFINISHED.match(line):
            begun[found[1]] = found[2]
        elif found := _RESUMED.match(line):
            yield begun.pop(found[1], "") + found[2]
        else:
            yield line


def counted(trace: str) -> Figures:
    """Bytes and writes to the store, and fsyncs of it, in a trace."""
    sizes: list[int] = []
    syncs = 0
    for call in whole_calls(trace.splitlines()):
        if (found := _WRITE.search(call)) and _STORE.search(found[1]):
            sizes.append(int(found[2]))
        elif (found := _SYNC.search(call)) and _STORE.search(found[1]):
            syncs += 1
    return {"bytes": sum(sizes), "writes": len(sizes), "syncs": syncs}


def to_disk(process: psutil.Process) -> int:
    """Bytes that the kernel has sent to the disk for a process so far."""
    return int(process.io_counters().write_bytes)


@contextmanager
def traced(process: psutil.Process, file: Path) -> Iterator[Figures]:
    """Count the writes of a process in the block; the figures are there when it ends."""
    figures: Figures = {}
    calls = "trace=pwrite64,pwritev,write,fdatasync,fsync"
    command = ["strace", "-f", "-y", "-s", "0", "-e", calls, "-o", str(file)]
    with running([*command, "-p", str(process.pid)], file.with_suffix(".log")) as strace:
        until(lambda: "attached" in file.with_suffix(".log").read_text(), "strace is attached")
        before, began = to_disk(process), time.monotonic()
        yield figures
        figures |= {"seconds": time.monotonic() - began, "disk": to_disk(process) - before}
        strace.send_signal(signal.SIGINT)
        strace.wait(20)
    figures |= counted(file.read_text())


async def _each_second(project: Project, count: int) -> None:
    for _ in range(count):
        began = time.monotonic()
        await project.run_job("noop", on="agent:pi")
        await asyncio.sleep(max(0.0, began + 1 - time.monotonic()))


async def _jobs(root: Path, count: int, agent: psutil.Process, file: Path) -> Figures:
    async with Project(root) as project:
        await project.run_job("noop", on="agent:pi")  # which starts a child
        with traced(agent, file) as figures:
            await _each_second(project, count)
    names = ("bytes", "writes", "syncs", "disk")
    return {name: figures[name] / count for name in names}


def _idle(process: psutil.Process, seconds: float, file: Path) -> Figures:
    with traced(process, file) as figures:
        time.sleep(seconds)
    names = ("bytes", "writes", "syncs", "disk")
    return {name: figures[name] * 3600 / figures["seconds"] for name in names}


def measure(folder: Path, *, quick: bool) -> dict[str, Figures]:
    count, seconds = (20, 20.0) if quick else (300, 120.0)
    with Mosquitto(folder / "broker") as broker, Place(folder / "fleet", broker) as place:
        gateway, agent = place.gateway(), place.agent("pi")
        figures = {"job": asyncio.run(_jobs(place.root, count, agent, folder / "jobs"))}
        time.sleep(5)
        figures["idle agent"] = _idle(agent, seconds, folder / "agent")
        figures["idle gateway"] = _idle(gateway, seconds, folder / "gateway")
    return figures


def shown(figures: dict[str, Figures]) -> Iterator[str]:
    yield "| | goal | written to the store | pages or less, written | fsyncs | sent to the disk |"
    yield "|---|---|---|---|---|---|"
    goals = {"job": "16 KiB, 2 fsyncs", "idle gateway": "1 MiB an hour"}
    for name, one in figures.items():
        sizes = (f"{one[key] / 1024:,.1f} KiB" for key in ("bytes", "disk"))
        written, disk = sizes
        counts = f"{one['writes']:,.1f} | {one['syncs']:,.1f}"
        yield f"| {name} | {goals.get(name, '')} | {written} | {counts} | {disk} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured")
    options: Any = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="wear-") as folder:
        figures = measure(Path(folder), quick=options.quick)
    print("\n".join(shown(figures)))
    if options.json:
        options.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main())
