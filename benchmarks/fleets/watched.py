"""The gateway of a project, beside a task that looks how late the loop is.

A stall is how much longer than asked a sleep of 10 ms has taken, by the wall; `cpu` is what the
loop's own thread has computed in that time: the rest it has waited for a core, or for the thread
of the store to let go of the interpreter. SIGUSR1 writes the longest one to stalls.json.

    python watched.py <project>
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from pathlib import Path

from fp_async import Project

_STEP = 0.01


class Watch:
    """The longest stalls since they were last told."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._longest = self._cpu = self._most = 0.0

    async def run(self) -> None:
        while True:
            began, computed = time.perf_counter(), time.thread_time()
            await asyncio.sleep(_STEP)
            late = time.perf_counter() - began - _STEP
            own = time.thread_time() - computed
            self._most = max(self._most, own)
            if late > self._longest:
                self._longest, self._cpu = late, min(own, late)

    def tell(self) -> None:
        figures = {"ms": 1e3 * self._longest, "its_cpu": 1e3 * self._cpu, "cpu": 1e3 * self._most}
        self._longest = self._cpu = self._most = 0.0
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(figures))
        new.rename(self._path)


async def main(root: Path) -> None:
    watch = Watch(root / "stalls.json")
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGUSR1, watch.tell)
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    watching = asyncio.create_task(watch.run())
    try:
        await Project(root).start_gateway()
    finally:
        watching.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        asyncio.run(main(Path(sys.argv[1])))
    except asyncio.CancelledError:
        sys.exit(0)
