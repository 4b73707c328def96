"""The child process that loads Hamilton and runs what the worker hands it, one job at a time."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from fp_async import engines, handing_on, log_levels, tracing
from fp_async.attempt import FORMAT, Call, Called, Drawn, Order, Outcome, cancelled_itself
from fp_async.attempting import attempt, hear
from fp_async.config_files import Files
from fp_async.errors import ABANDONED, FlowerPowerError
from fp_async.flows import Flows
from fp_async.jobs import NodeTiming
from fp_async.processes import die_with_parent
from fp_async.runner_process import LENGTH, Answer, Connected, Edited, NodeDone, Request, Settings
from fp_async.runtime import process_exit, process_tree
from fp_async.runtime.surroundings import Surroundings
from fp_async.threads import Threads

log: logging.Logger = logging.getLogger("fp_async")
_LOOK = 0.02  # seconds
_CROWD = 100
_requests = msgspec.msgpack.Decoder(Request)
_exporting = Threads(limit=1)
_encode = msgspec.msgpack.Encoder().encode


def main() -> None:
    """Serve orders until the worker closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, which decides
    die_with_parent(int(sys.argv[2]))
    logging.basicConfig(level=logging.INFO, format=FORMAT)
    with suppress(BrokenPipeError, ConnectionResetError, asyncio.CancelledError):
        asyncio.run(_serve(socket.socket(fileno=int(sys.argv[3]))))
    engines.shutdown()
    tracing.flush()
    process_exit.wait_for_threads(_tell_of_threads)  # killed by the worker if that takes too long
    process_exit.call_exit_functions()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # an abandoned node in a thread must not hold us up


def _tell_of_threads(names: list[str]) -> None:
    log.warning("its process waits for threads: %s", ", ".join(names[:5]))


async def _serve(connection: socket.socket) -> None:
    os.set_inheritable(connection.fileno(), False)  # what a job starts must not keep it open
    reader, writer = await asyncio.open_connection(sock=connection)
    settings = await _read(reader)
    assert isinstance(settings, Settings)
    _limit_memory(settings.memory_limit)
    logging.getLogger().setLevel(settings.log_level.upper())
    log_levels.hush_libraries()
    traced = tracing.set_up("flowerpower-worker")
    if settings.json:
        from fp_async import json_logs

        json_logs.install()
    sys.path.insert(0, settings.root)  # the project's own packages, as under python -m
    flows = Flows(Path(settings.root))
    flows.held = flows.alone = True
    flows.settle(one_at_a_time=True)
    _read_files(flows.files, settings.files)
    jobs = _Jobs(flows, writer, settings)
    serving = asyncio.current_task()
    assert serving is not None
    engines.on_connect.append(partial(jobs.connected, serving))
    while request := await _next(reader):
        if flows.edited():  # what registers something when it is imported would do so twice
            _write(writer, Edited())
            await writer.drain()
            break
        flows.refresh_configuration()
        answer: Answer
        if isinstance(request, Order):
            answer = await jobs.run(request)
        else:
            assert isinstance(request, Call)
            answer = await jobs.hear(request)
        _write(writer, answer)
        await writer.drain()
        jobs.restore()
        if traced:  # the process may be killed whenever it has nothing to do
            _exporting.submit(tracing.flush)
    await flows.aclose()


async def _next(reader: asyncio.StreamReader) -> Request | None:
    try:
        return await _read(reader)
    except EOFError:  # the worker has no more for this process
        return None


def _read_files(files: Files, before: dict[str, str]) -> None:
    """Have the variables of `.env`; what cannot be read is as it was before."""
    files.lasting += 1
    files.recall(before)
    with suppress(FlowerPowerError):  # which says so of each job
        files.export()


class _Jobs:
    """The jobs of this process, one after the other."""

    def __init__(self, flows: Flows, writer: asyncio.StreamWriter, settings: Settings) -> None:
        self._flows = flows
        self._writer = writer
        self._grace = settings.grace
        self._adopts = settings.adopts and process_tree.become_subreaper()
        self._surroundings = Surroundings()
        self._threads: frozenset[threading.Thread] = frozenset()

    async def run(self, order: Order) -> Outcome:
        """Make the attempt, and wait for threads that it has left at work."""
        outcome = await self._attempt(order)
        if left := process_exit.at_work(self._threads):
            left = await self._left_after_grace(left)
        worn = not self._surroundings.settle() or self._is_crowded() or self._has_told()
        dirty = outcome.dirty or bool(left)
        if dirty and (failure := outcome.failure) is not None:
            text = failure.message.replace(ABANDONED, "; killed with its process: ")
            outcome = msgspec.structs.replace(
                outcome, failure=msgspec.structs.replace(failure, message=text)
            )
        return msgspec.structs.replace(outcome, dirty=dirty, worn=worn) if worn or left else outcome

    async def hear(self, call: Call) -> Called:
        """Tell the user's functions."""
        problems = await hear(self._flows, call, self._loaded)
        return Called(problems, worn=not self._surroundings.settle())

    def restore(self) -> None:
        """Put all back as it was; the worker has its answer."""
        self._surroundings.restore()

    def connected(self, serving: asyncio.Task[Any]) -> None:
        """SIGTERM leaves nothing behind on the cluster; without one it ends the process at once."""
        self._surroundings.cluster = True
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
        _write(self._writer, Connected())

    async def _attempt(self, order: Order) -> Outcome:
        # a task of its own: what the job sets in its context must not be the next one's
        tell = partial(_tell, self._writer)
        task = asyncio.create_task(attempt(self._flows, order, tell, self._loaded))
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:  # SIGTERM
            task.cancel()
            await asyncio.wait([task])
            raise
        return cancelled_itself() if task.cancelled() else task.result()

    def _loaded(self) -> None:
        """Modules are imported: what they have changed, and the threads that they have, stay."""
        self._surroundings.keep()
        self._threads = frozenset(threading.enumerate())

    async def _left_after_grace(self, left: list[str]) -> list[str]:
        deadline = time.monotonic() + self._grace
        while left and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK)
            left = process_exit.at_work(self._threads)
        if left:
            text = "threads still run %g s after the job, its process is killed: %s"
            log.warning(text, self._grace, ", ".join(left[:5]))
        return left

    def _has_told(self) -> bool:
        """Whether processes live that have the parameters of a job of this process: workers of
        joblib's or a fork server, which the next job would be given.
        """
        if not handing_on.has_handed_on():
            return False
        return not self._flows.pooled().issuperset(process_tree.children(os.getpid()))

    def _is_crowded(self) -> bool:
        """Return whether so many processes were adopted that the worker had better reap them."""
        return self._adopts and len(process_tree.children(os.getpid())) > _CROWD


def _tell(writer: asyncio.StreamWriter, told: NodeTiming | Drawn) -> None:
    _write(writer, told if isinstance(told, Drawn) else NodeDone(told))


async def _read(reader: asyncio.StreamReader) -> Request:
    head = await reader.readexactly(LENGTH.size)
    request: Request = _requests.decode(await reader.readexactly(LENGTH.unpack(head)[0]))
    return request


def _write(writer: asyncio.StreamWriter, answer: Answer) -> None:
    data = _encode(answer)
    writer.write(LENGTH.pack(len(data)) + data)


def _limit_memory(mebibytes: int | None) -> None:
    """Private memory; address space would also count what threads and libraries only reserve."""
    if mebibytes is not None:
        limit = mebibytes * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
