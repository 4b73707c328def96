"""A scheduler of Dask and its workers on this machine, in a process of their own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fp_async.errors import ClusterError, describe
from fp_async.processes import die_with_parent, how, kill

_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from fp_async.engines.dask_host import main; main()"
)
_ENDING = 5.0  # seconds


class Host:
    """The process. `cluster` are the options of its LocalCluster."""

    def __init__(
        self, process: subprocess.Popen[bytes], address: str, cluster: dict[str, Any]
    ) -> None:
        self.address = address
        self.private: bool = cluster["threads_per_worker"] == 1  # workers run a task at a time
        self.resources: dict[str, float] = cluster.get("resources") or {}
        self._process = process

    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Have it end its workers, then itself; or kill all of them."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            kill(self._process)


def start(workers: int | None, retries: int, options: dict[str, Any]) -> Host:
    """Start it and wait until its workers are there. `options` are those of LocalCluster."""
    wanted: dict[str, Any] = {
        "n_workers": workers or os.cpu_count() or 1,
        "threads_per_worker": 1,
        "dashboard_address": None,
        "silence_logs": logging.CRITICAL,  # its level for workers, whatever the configuration says
        **options,
    }
    if wanted["dashboard_address"] is None:  # its HTTP server would still ask for port 8787
        own = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
        wanted["scheduler_kwargs"] = {**own, **(options.get("scheduler_kwargs") or {})}
    path = json.dumps([str(Path(entry or os.curdir).resolve()) for entry in sys.path])
    settings = json.dumps({"retries": retries, "cluster": wanted})
    process = subprocess.Popen(
        [sys.executable, "-c", _START, path, str(os.getpid()), settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={"DASK_LOGGING__DISTRIBUTED": "critical", **os.environ},
    )
    assert process.stdout is not None
    with process.stdout as answers:
        answer = answers.readline().decode()
    address, error = json.loads(answer or '["", ""]')
    host = Host(process, address, wanted)
    if not address:
        host.close()
        raise ClusterError(f"Dask did not start: {error or how(process.wait())}")
    return host


# In the process -----------------------------------------------------------------------------


def main() -> None:
    """Run the cluster until stdin closes."""
    die_with_parent(int(sys.argv[2]))
    settings = json.loads(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(address: str, error: str = "") -> None:
        with answers:
            print(json.dumps([address, error]), file=answers)

    try:
        asyncio.run(_serve(settings, answer))
    except Exception as error:
        if answers.closed:
            raise
        answer("", describe(_first(error)))
        sys.exit(1)


def _first(error: BaseException) -> BaseException:
    """What led to it: the last of Dask's errors says only that something did not start."""
    while error.__cause__ is not None and not isinstance(error, ValueError | TypeError):
        error = error.__cause__
    return error


async def _serve(settings: dict[str, Any], answer: Callable[[str], None]) -> None:
    import dask
    import distributed

    dask.config.set({"distributed.scheduler.allowed-failures": settings["retries"]})
    async with distributed.LocalCluster(asynchronous=True, **settings["cluster"]) as cluster:
        answer(cluster.scheduler_address)
        await asyncio.to_thread(sys.stdin.read)
