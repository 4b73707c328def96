"""The child process that loads Hamilton and runs what the worker hands it, one job at a time."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from fp_async import engines, tracing
from fp_async.attempt import FORMAT, Call, Called, Drawn, Order, Outcome, cancelled_itself
from fp_async.attempting import attempt, hear
from fp_async.flows import Flows
from fp_async.jobs import NodeTiming
from fp_async.processes import die_with_parent
from fp_async.runner_process import LENGTH, Answer, Connected, NodeDone, Request, Settings
from fp_async.threads import Threads

_requests = msgspec.msgpack.Decoder(Request)
_exporting = Threads(limit=1)
_encode = msgspec.msgpack.Encoder().encode


def main() -> None:
    """Serve orders until the worker closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, which decides
    die_with_parent(int(sys.argv[2]))
    logging.basicConfig(level=logging.INFO, format=FORMAT)
    logging.getLogger("hamilton").setLevel(logging.WARNING)  # its INFO is about itself
    with suppress(EOFError, BrokenPipeError, ConnectionResetError, asyncio.CancelledError):
        asyncio.run(_serve(socket.socket(fileno=int(sys.argv[3]))))
    engines.shutdown()
    tracing.flush()
    os._exit(0)  # an abandoned node in a thread must not hold us up


async def _serve(connection: socket.socket) -> None:
    os.set_inheritable(connection.fileno(), False)  # what a job starts must not keep it open
    reader, writer = await asyncio.open_connection(sock=connection)
    settings = await _read(reader)
    assert isinstance(settings, Settings)
    _limit_memory(settings.memory_limit)
    traced = tracing.set_up("flowerpower-worker")
    if settings.json:
        from fp_async import json_logs

        json_logs.install()
    sys.path.insert(0, settings.root)  # the project's own packages, as under python -m
    flows = Flows(Path(settings.root))
    flows.held = flows.alone = True
    before = Surroundings()
    serving = asyncio.current_task()
    assert serving is not None
    engines.on_connect.append(partial(_connected, writer, serving))
    while True:
        request = await _read(reader)
        flows.refresh()
        answer: Answer
        if isinstance(request, Order):
            answer = await _attempt(flows, request, writer)
            if not before.restore():
                answer = msgspec.structs.replace(answer, dirty=True)
        else:
            assert isinstance(request, Call)
            problems = await hear(flows, request)
            answer = Called(problems, dirty=not before.restore())
        _write(writer, answer)
        await writer.drain()
        if traced:  # the process may be killed whenever it has nothing to do
            _exporting.submit(tracing.flush)


async def _attempt(flows: Flows, order: Order, writer: asyncio.StreamWriter) -> Outcome:
    # a task of its own: what the job sets in its context must not be the next one's
    task = asyncio.create_task(attempt(flows, order, lambda told: _tell(writer, told)))
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:  # SIGTERM
        task.cancel()
        await asyncio.wait([task])
        raise
    return cancelled_itself() if task.cancelled() else task.result()


def _connected(writer: asyncio.StreamWriter, serving: asyncio.Task[Any]) -> None:
    """SIGTERM leaves nothing behind on the cluster; without one it ends the process at once."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
    _write(writer, Connected())


class Surroundings:
    """What belongs to the process and a job may change: the next job must find it as it was.

    Not the environment variables: what a module has set when it was imported has to stay.
    """

    def __init__(self) -> None:
        self._folder = Path.cwd()
        self._streams = (sys.stdout, sys.stderr)
        self._files = [os.fstat(number) for number in (1, 2)]

    def restore(self) -> bool:
        """Put it back as it was, and write what was printed; False where that cannot be done."""
        try:
            os.chdir(self._folder)
            sys.stdout, sys.stderr = self._streams
            for stream in self._streams:
                stream.flush()
            return all(map(os.path.samestat, self._files, map(os.fstat, (1, 2))))
        except (OSError, ValueError):  # gone, or closed
            return False


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
