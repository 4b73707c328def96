"""Faults, each by its name: a killed process, a network that is cut, silent, resets or jumbles."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
from typing import Self


def kill9(process: subprocess.Popen) -> None:
    """Kill like the out-of-memory killer: no goodbye, nothing flushed. Waits for the end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait(10)


@contextlib.contextmanager
def frozen(process: subprocess.Popen):
    """A process that is alive and does nothing, until the end of the `with`."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


class Proxy:
    """A TCP proxy on `port` of this machine in front of a server.

    `cut` closes all connections and refuses new ones, `reset` breaks the open ones with RST,
    `stall` keeps everything open and lets no byte through, `heal` ends any of these.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._lanes: set[asyncio.Task] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.accepted = 0

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_) -> None:
        await self.cut()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Close all connections; nobody listens any more."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._drop()

    async def reset(self) -> None:
        """Break all open connections with RST; new ones are welcome."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self._drop()

    def stall(self) -> None:
        """Let nothing through any more, and close nothing."""
        self._flowing.clear()

    async def heal(self) -> None:
        """Be a good network again; what was stalled arrives."""
        self._flowing.set()
        if self._server is None:
            await self._listen()

    async def _drop(self) -> None:
        for writer in tuple(self._writers):
            writer.transport.abort()
        for lane in tuple(self._lanes):
            lane.cancel()
        if self._lanes:
            await asyncio.wait(tuple(self._lanes), timeout=5)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        lane = asyncio.current_task()
        self._lanes.add(lane)
        self._writers.add(writer)
        try:
            await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # a server's task that ends as cancelled is reported by asyncio
        finally:
            self._lanes.discard(lane)
            self._writers.discard(writer)
            writer.close()

    async def _join(self, reader, writer) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers.add(far_writer)
        try:
            async with asyncio.TaskGroup() as group:
                ways = (self._pump(reader, far_writer), self._pump(far_reader, writer))
                tasks = [group.create_task(way) for way in ways]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
        finally:
            self._writers.discard(far_writer)
            far_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()


class Jumble(Proxy):
    """A proxy in front of an MQTT broker that repeats, delays and loses what is published.

    Of ten messages one comes a second time, up to a second later, when its packet id may be in use
    for another; one comes late, so that others overtake it; and of those of QoS 0 one is lost.
    """

    def __init__(self, port: int, rng: random.Random) -> None:
        super().__init__(port)
        self._rng = rng
        self.repeated = self.delayed = self.lost = 0

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                packet = await _packet(reader)
                if packet[0] >> 4 != _PUBLISH or not self._jumbled(packet, writer):
                    writer.write(packet)
                    await writer.drain()

    def _jumbled(self, packet: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the packet must not be sent now."""
        dice = self._rng.random()
        if dice < 0.2:
            self._later(packet, writer)
            self.repeated += dice < 0.1
            self.delayed += dice >= 0.1
            return dice >= 0.1
        lost = dice < 0.3 and packet[0] & 0b110 == 0
        self.lost += lost
        return lost

    def _later(self, packet: bytes, writer: asyncio.StreamWriter) -> None:
        def send() -> None:
            if not writer.transport.is_closing():
                writer.write(packet)

        asyncio.get_running_loop().call_later(self._rng.random(), send)


class Choker(Proxy):
    """A proxy in front of an MQTT broker that announces no limit, and hangs up on a larger packet."""

    def __init__(self, port: int, most: int) -> None:
        super().__init__(port)
        self._most = most
        self.choked = 0

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while len(packet := await _packet(reader)) <= self._most:
                writer.write(packet)
                await writer.drain()
            self.choked += 1


_PUBLISH = 3


async def _packet(reader: asyncio.StreamReader) -> bytes:
    """A whole MQTT packet: its type, its length in 7 bits a byte, and the rest."""
    head = await reader.readexactly(2)
    length = head[1] & 0x7F
    while head[-1] & 0x80:
        head += await reader.readexactly(1)
        length |= (head[-1] & 0x7F) << 7 * (len(head) - 2)
    return head + await reader.readexactly(length)
