"""What one `await run` costs beside Hamilton's own drivers, for DAGs of trivial nodes.

    python benchmarks/run_overhead.py [--quick] [--json FILE]

One process, one loop, every contender interleaved in every round, so that whatever else the
machine does hits all alike. Each contender is at its best: drivers are built once, fp_async's
project is held open. Times are microseconds, p50 and p99 over the rounds; ratios are of p50s,
AsyncDriver / fp_async.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HAMILTON_AUTOLOAD_EXTENSIONS", "0")

from hamilton import async_driver, driver
from hamilton.lifecycle.base import BasePostNodeExecute, BasePreNodeExecute

from fp_async import Project

Run = Callable[[], Awaitable[Any]]


class CountingHook(BasePreNodeExecute, BasePostNodeExecute):
    """The least that a hook can do."""

    def __init__(self) -> None:
        self.calls = 0

    def pre_node_execute(self, *, run_id, node_, kwargs, task_id=None):
        self.calls += 1

    def post_node_execute(self, *, run_id, node_, kwargs, success, error, result, task_id=None):
        self.calls += 1


def chain(size: int, define: str) -> str:
    """n0 -> n1 -> ... each reads the one before."""
    lines = [f"{define} n0() -> int:\n    return 1\n"]
    lines += [
        f"{define} n{i}(n{i - 1}: int) -> int:\n    return n{i - 1}\n" for i in range(1, size)
    ]
    return "\n".join(lines)


def wide(size: int, define: str) -> str:
    """size - 1 independent nodes and one that reads them all."""
    if size == 1:
        return chain(1, define)
    lines = [f"{define} n{i}() -> int:\n    return 1\n" for i in range(size - 1)]
    arguments = ", ".join(f"n{i}: int" for i in range(size - 1))
    lines.append(f"{define} n{size - 1}({arguments}) -> int:\n    return 1\n")
    return "\n".join(lines)


def write(root: Path, name: str, source: str) -> None:
    (root / "pipelines").mkdir(exist_ok=True)
    (root / "pipelines" / f"{name}.py").write_text(source)


async def contenders(project: Project, name: str, final: str, hooked: bool) -> dict[str, Run]:
    """Every way to run the pipeline, ready to be called again and again."""
    module = project.flow(name).graph.modules[0]
    adapters = [CountingHook()] if hooked else []
    is_async = (project.root / "pipelines" / f"{name}.py").read_text().startswith("async")

    def ours(executor: str) -> Run:
        async def run() -> Any:
            return await project.run(name, final_vars=final, executor=executor, adapters=adapters)

        return run

    async_builder = async_driver.Builder().with_modules(module)
    sync_builder = driver.Builder().with_modules(module)
    if adapters:
        async_builder = async_builder.with_adapters(*adapters)
        sync_builder = sync_builder.with_adapters(*adapters)
    asynchronous = await async_builder.build()
    runs: dict[str, Run] = {
        "local": ours("local"),
        "threadpool": ours("threadpool"),
        "AsyncDriver": lambda: asynchronous.execute([final]),
    }
    if not is_async:
        synchronous = sync_builder.build()

        async def run_sync() -> Any:
            return synchronous.execute([final])

        runs["sync Driver"] = run_sync
    return runs


async def measure(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds by contender, interleaved; two rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            gc.disable()
            began = time.perf_counter()
            await run()
            took = time.perf_counter() - began
            gc.enable()
            if turn >= 2:
                times[name].append(took)
    return times


def row(label: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """One printed line, and its figures."""
    result: dict[str, Any] = {"dag": label}
    base = statistics.median(times["AsyncDriver"])
    cells = []
    for name, values in times.items():
        p50, p99 = statistics.median(values), sorted(values)[int(len(values) * 0.99)]
        result[name] = {"p50_us": p50 * 1e6, "p99_us": p99 * 1e6, "ratio": base / p50}
        cells.append(f"{name} {p50 * 1e6:8.0f} ({p99 * 1e6:8.0f}) x{base / p50:5.1f}")
    print(f"{label:28} " + " | ".join(cells), flush=True)
    return result


async def overhead(root: Path, sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    """The table of DAGs: sizes by shape by kind of node, with and without hooks."""
    rows = []
    async with Project(root) as project:
        for size in sizes:
            for shape in (chain, wide):
                if size == 1 and shape is wide:
                    continue
                for define in ("def", "async def"):
                    for hooked in (False, True):
                        name = f"{shape.__name__}_{define.split()[0]}_{size}"
                        write(root, name, shape(size, define))
                        runs = await contenders(project, name, f"n{size - 1}", hooked)
                        label = f"{size} {define[:5].strip()} {shape.__name__}"
                        label += " hooks" if hooked else ""
                        count = max(20, min(rounds, rounds * 100 // size))
                        try:
                            rows.append(row(label, await measure(runs, count)))
                        except RecursionError:
                            print(f"{label:28} Hamilton: RecursionError")
                            runs = {k: v for k, v in runs.items() if k in ("local", "threadpool")}
                            times = await measure(runs, count)
                            times["AsyncDriver"] = [float("nan")]
                            rows.append(row(label, times))
    return rows


async def one_node(root: Path, rounds: int) -> dict[str, Any]:
    """`await run` of one node over the bare call of the user's function."""
    write(root, "single", "def n0() -> int:\n    return 1\n")
    async with Project(root) as project:
        function = project.flow("single").graph.nodes["n0"].call

        async def bare() -> Any:
            return function()

        async def ours() -> Any:
            return await project.run("single", executor="local")

        times = await measure({"bare": bare, "local": ours}, rounds)
    over = (statistics.median(times["local"]) - statistics.median(times["bare"])) * 1e6
    print(f"one node, local: {over:.1f} us over the user's function")
    return {"over_bare_us": over}


async def long_chain(root: Path) -> dict[str, Any]:
    """5,000 nodes deep: no recursion anywhere."""
    write(root, "deep", chain(5000, "def"))
    async with Project(root) as project:
        began = time.perf_counter()
        result = await project.run("deep", final_vars="n4999")
        first = time.perf_counter() - began
        began = time.perf_counter()
        await project.run("deep", final_vars="n4999")
        again = time.perf_counter() - began
    assert result == {"n4999": 1}
    print(f"chain of 5,000: first run {first:.2f} s, then {again * 1e3:.1f} ms")
    return {"first_s": first, "again_ms": again * 1e3}


ARRAYS = """\
import numpy as np
Array = np.ndarray

def n0() -> Array:
    return np.ones(1_000_000)
"""


async def memory(root: Path) -> dict[str, Any]:
    """The peak of a chain of twenty 8 MB arrays, beside the sync driver's."""
    body = [f"def n{i}(n{i - 1}: Array) -> Array:\n    return n{i - 1} + 1\n" for i in range(1, 20)]
    write(root, "arrays", ARRAYS + "\n".join(body))
    peaks = {}
    async with Project(root) as project:
        module = project.flow("arrays").graph.modules[0]
        synchronous = driver.Builder().with_modules(module).build()

        async def run_sync() -> Any:
            return synchronous.execute(["n19"])

        runs: dict[str, Run] = {
            "sync Driver": run_sync,
            "local": lambda: project.run("arrays", final_vars="n19", executor="local"),
            "threadpool": lambda: project.run("arrays", final_vars="n19"),
        }
        for name, run in runs.items():
            await run()
            gc.collect()
            tracemalloc.start()
            await run()
            peaks[name] = tracemalloc.get_traced_memory()[1] / 2**20
            tracemalloc.stop()
    base = peaks["sync Driver"]
    text = ", ".join(f"{name} {peak:.1f} MiB (x{peak / base:.2f})" for name, peak in peaks.items())
    print(f"chain of 20 arrays of 8 MB, peak: {text}")
    return {name: {"peak_mib": peak, "ratio": peak / base} for name, peak in peaks.items()}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds, sizes to 100")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    rounds = 60 if options.quick else 400
    sizes = [1, 10, 100] if options.quick else [1, 10, 100, 1000]
    machine = f"Python {sys.version.split()[0]}, {os.cpu_count()} cores"
    print(f"{machine}; p50 (p99) in us, xN = AsyncDriver / it")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "pipelines").mkdir()
        figures = {
            "overhead": await overhead(root, sizes, rounds),
            "one_node": await one_node(root, rounds * 5),
            "long_chain": await long_chain(root),
            "memory": await memory(root),
        }
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    asyncio.run(main())
