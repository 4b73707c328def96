"""Gateway, worker and agents on one machine, as processes that end with this one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Self

from fp_async.errors import FlowerPowerError

_GRACE = 10.0
Hear = Callable[[str, str], object]
_START = (
    "import sys, os, json; from fp_async.processes import die_with_parent; "
    "die_with_parent(int(sys.argv.pop(1))); sys.path[:] = json.loads(sys.argv.pop(1)); "
    "import runpy; name = sys.argv.pop(1); sys.argv[0] = name; "
    "runpy.run_module(name, run_name='__main__', alter_sys=True)"
)


class Ensemble:
    """Processes by name; `hear` gets (name, line) of what they log. Use as a context manager."""

    def __init__(self, hear: Hear) -> None:
        self._hear = hear
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._readers: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def start(self, name: str, module: str, *arguments: str, cwd: Path) -> None:
        """Run `python -m module arguments` under a name."""
        import json

        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _START, str(os.getpid()), json.dumps(sys.path), module),
            *arguments,
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._processes[name] = process
        self._readers[name] = asyncio.create_task(self._read(name, process))

    async def _read(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while line := await process.stderr.readline():
            self._hear(name, line.decode(errors="replace").rstrip())

    async def wait_any(self) -> str:
        """The name of the first process that ends by itself."""
        waiting = {
            asyncio.create_task(process.wait()): name for name, process in self._processes.items()
        }
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        return waiting[next(iter(done))]

    async def end(self) -> None:
        """Tell all of them to end, the last started first; kill who has not within 10 s."""
        running = list(self._processes.items())[::-1]
        for _, process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for _, process in running:
            try:
                async with asyncio.timeout(_GRACE):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        if self._readers:
            await asyncio.wait(self._readers.values(), timeout=1.0)
        for _, process in running:
            process._transport.close()  # type: ignore[attr-defined]
        self._processes.clear()
        self._readers.clear()


class Network:
    """A TCP proxy before a broker: the network of one agent, which can be cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._lanes: set[asyncio.Task[None]] = set()
        self.port: int = 0

    async def open(self) -> None:
        """Let it through, on the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Break what is open, and refuse what comes."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for lane in tuple(self._lanes):
            lane.cancel()
        if self._lanes:
            await asyncio.wait(tuple(self._lanes))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lane = asyncio.current_task()
        assert lane is not None
        self._lanes.add(lane)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            ways = (_pump(reader, far_writer), _pump(far_reader, writer))
            tasks = [asyncio.create_task(way) for way in ways]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                far_writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # a server's task that ends as cancelled is reported by asyncio
        finally:
            self._lanes.discard(lane)
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def network(port: int) -> AsyncIterator[Network]:
    """A network before the broker on that port, gone with the block."""
    made = Network(port)
    await made.open()
    try:
        yield made
    finally:
        await made.cut()


class EndedError(FlowerPowerError):
    """A process of the ensemble has ended by itself."""

    exit_code = 1
