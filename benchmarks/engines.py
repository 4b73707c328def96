"""From which cost of a node on do Ray and Dask pay?

    python benchmarks/engines.py [--quick] [--json FILE]

A DAG of 16 nodes side by side and one that adds them up, each of which computes in Python for a
given time, on two workers: threads (which share one interpreter), child processes, Ray and Dask on
this machine. Then one chain of three nodes, which is a single task; the items of a
`Parallelizable`, up to 200; and an array that two nodes read. All contenders are warm, and take
turns in every round. Times are milliseconds, p50 and p99 over the rounds; ratios are of p50s,
threadpool / contender: above 1 the contender is faster.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fp_async import ExecutorSettings, Project, engines

WIDTH, WORKERS = 16, 2
COSTS = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # ms
SIZES = (0.1, 1.0, 10.0, 100.0)  # MB
EXECUTORS = {
    "threadpool": ExecutorSettings(type="threadpool", max_workers=WORKERS),
    "processpool": ExecutorSettings(type="processpool", max_workers=WORKERS),
    "ray": ExecutorSettings(
        type="ray", max_workers=WORKERS, options={"object_store_memory": 2_000_000_000}
    ),
    "dask": ExecutorSettings(type="dask", max_workers=WORKERS),
}
BURN = """
import time

def _burn(turns):
    total = 0
    for number in range(turns):
        total += number & 3
    return total

"""


def wide() -> str:
    names = [f"n{i}" for i in range(WIDTH)]
    nodes = [f"def {name}(turns: int) -> int:\n    return _burn(turns)\n" for name in names]
    arguments = ", ".join(f"{name}: int" for name in names)
    return BURN + "\n".join([*nodes, f"def total({arguments}) -> int:\n    return n0\n"])


SOURCES = {
    "wide": wide(),
    "chain": BURN
    + "def a(turns: int) -> int:\n    return _burn(turns)\n"
    + "def b(a: int, turns: int) -> int:\n    return _burn(turns)\n"
    + "def total(b: int, turns: int) -> int:\n    return _burn(turns)\n",
    "items": BURN
    + "from hamilton.htypes import Collect, Parallelizable\n"
    + "def item(count: int) -> Parallelizable[int]:\n    yield from range(count)\n"
    + "def done(item: int, turns: int) -> int:\n    return _burn(turns)\n"
    + "def total(done: Collect[int]) -> int:\n    return len(list(done))\n",
    "array": "import numpy as np\n"
    "def made(size: int) -> np.ndarray:\n    return np.ones(size)\n"
    "def left(made: np.ndarray) -> float:\n    return float(made[0])\n"
    "def right(made: np.ndarray) -> float:\n    return float(made[-1])\n"
    "def total(left: float, right: float) -> float:\n    return left + right\n",
}


def turns_in_a_millisecond() -> float:
    """How often the loop goes round; the fastest of several, with nobody beside it."""
    space: dict[str, Any] = {}
    exec(BURN, space)
    found = []
    for _ in range(20):
        began = time.perf_counter()
        space["_burn"](100_000)
        found.append(time.perf_counter() - began)
    return 100_000 / (min(found) * 1000)


async def measured(
    project: Project, name: str, inputs: dict[str, Any], contenders: list[str], rounds: int
) -> dict[str, dict[str, float]]:
    """p50 and p99 of each contender, in ms, and threadpool's p50 over its own."""
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    for turn in range(rounds + 1):
        for contender in contenders:
            began = time.perf_counter()
            await project.run(name, inputs, "total", executor=EXECUTORS[contender])
            if turn:  # the first warms up
                times[contender].append((time.perf_counter() - began) * 1000)
    peer = statistics.median(times["threadpool"])
    return {
        contender: {
            "p50": statistics.median(found),
            "p99": sorted(found)[int(0.99 * (len(found) - 1))],
            "ratio": peer / statistics.median(found),
        }
        for contender, found in times.items()
    }


def show(title: str, found: dict[str, dict[str, float]]) -> None:
    cells = [
        f"{name} {of['p50']:8.1f} ({of['p99']:7.1f}) {of['ratio']:5.2f}"
        for name, of in found.items()
    ]
    print(f"{title:<16}", " | ".join(cells), flush=True)


async def main(quick: bool, tell: Callable[[str, dict[str, dict[str, float]]], None]) -> None:
    per_ms = turns_in_a_millisecond()
    everybody = list(EXECUTORS)
    without_processes = [name for name in everybody if name != "processpool"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "pipelines").mkdir()
        for name, source in SOURCES.items():
            (root / "pipelines" / f"{name}.py").write_text(source)
        async with Project(root) as project:
            for cost in COSTS[::3] if quick else COSTS:
                rounds = 3 if quick else max(3, min(40, int(400 / (cost * WIDTH)) + 3))
                inputs = {"turns": int(cost * per_ms)}
                for name in ("wide", "chain"):
                    found = await measured(project, name, inputs, everybody, rounds)
                    tell(f"{name} {cost:g} ms", found)
                inputs["count"] = 20 if quick else max(20, min(200, int(600 / cost)))
                rounds = 2 if quick else 3
                found = await measured(project, "items", inputs, without_processes, rounds)
                tell(f"items {cost:g} ms", found)
            for size in SIZES[:2] if quick else SIZES:
                inputs = {"size": int(size * 125_000)}
                found = await measured(project, "array", inputs, everybody, 3 if quick else 15)
                tell(f"array {size:g} MB", found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    asked = parser.parse_args()
    figures: dict[str, dict[str, dict[str, float]]] = {}

    def told(title: str, found: dict[str, dict[str, float]]) -> None:
        figures[title] = found
        show(title, found)

    print(f"{os.cpu_count()} cores, {WORKERS} workers each; ms p50 (p99) ratio to threadpool")
    asyncio.run(main(asked.quick, told))
    engines.shutdown()
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2))
