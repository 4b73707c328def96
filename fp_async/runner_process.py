"""A child process that runs jobs, and what is said between it and the worker.

It gets orders over a socket pair and answers with node timings and the outcome: msgpack of known
Structs, never pickle. What the job prints and logs comes through a pipe.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from fp_async.attempt import Call, Called, Drawn, Order, Outcome, Trail
from fp_async.jobs import Failure, NodeTiming
from fp_async.processes import ended, how, kill
from fp_async.runtime import process_tree

LENGTH = struct.Struct(">I")
GONE = (BrokenPipeError, ConnectionResetError, EOFError)
_ENDING = 5.0  # seconds that a child gets to end its work on a cluster
_QUICK, _SLOW = 0.005, 0.1  # seconds between two looks at whether it has ended
_STRICTLY = 2.0  # seconds after its timeout that a run may take to say so by itself
_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
_MAIN = "from fp_async.runner_child import main; main()"
Write = Callable[[str], None]


class NodeDone(msgspec.Struct, frozen=True, tag="node"):
    """A node has come to an end; of a tracked job also that it has begun."""

    timing: NodeTiming


class Connected(msgspec.Struct, frozen=True, tag="connected"):
    """The child has work on a cluster, which it ends when it gets SIGTERM."""


class Edited(msgspec.Struct, frozen=True, tag="edited"):
    """The child has loaded code that was edited since, and has not begun: another one must."""


class EditedError(Exception):
    """The child has answered `Edited`."""


class Settings(msgspec.Struct, frozen=True, tag="settings"):
    """What a child is told first."""

    root: str
    memory_limit: int | None
    json: bool = False  # what it logs
    grace: float = 30.0  # seconds that threads which a job leaves at work get to end
    adopts: bool = False  # whether it keeps what its jobs start below it
    log_level: str = "info"  # from which on what jobs log is kept
    files: dict[str, str] = {}  # of the configuration, as they were when they could be read


Answer = NodeDone | Drawn | Connected | Edited | Outcome | Called
Request = Settings | Order | Call
_encode = msgspec.msgpack.Encoder().encode
_answers = msgspec.msgpack.Decoder(Answer)


class RunnerProcess:
    """One process. Belongs to the loop's thread: Linux kills a child when its maker ends."""

    retire: asyncio.TimerHandle

    def __init__(self, settings: Settings) -> None:
        import json

        self._write: Write | None = None
        self.connected: bool = False  # to a cluster
        self.jobs: int = 0  # that it has run
        self.latest: str = ""  # of them
        self._loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        self._log, log = os.pipe()
        path = json.dumps([str(Path(entry or os.curdir).resolve()) for entry in sys.path])
        try:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _START + _MAIN,
                    path,
                    str(os.getpid()),
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except BaseException:
            os.close(self._log)
            ours.close()
            raise
        finally:
            os.close(log)
            theirs.close()
        if (orphans := process_tree.orphans()) is not None:
            orphans.started(self._process.pid)
        ours.setblocking(False)
        os.set_blocking(self._log, False)
        self._socket = ours
        self._buffer = bytearray()
        self._greeting = _frame(settings)
        self._loop.add_reader(self._log, self._read_log)

    def hears(self, write: Write | None) -> None:
        """Where what is printed and logged goes from now on."""
        self._write = write

    def alive(self) -> bool:
        return ended(self._process) is None

    async def ask(self, order: Order, trail: Trail) -> Outcome:
        timeout = order.spec.timeout
        self.jobs += 1
        self.latest = order.id
        try:
            async with asyncio.timeout(None if timeout is None else timeout + _STRICTLY):
                await self._send(order)
                outcome = await self._outcome(trail)
        except TimeoutError:
            text = f"the run took longer than its timeout of {timeout:g} s, and was killed"
            failure = Failure("RunTimeoutError", text, "", ["RunTimeoutError", "TimeoutError"])
            return Outcome("failed", failure=failure, dirty=True)
        except GONE:
            outcome = await self._crash()
        self._read_log()
        return outcome

    async def tell(self, call: Call) -> Called:
        """Raises as a socket does when the process is gone."""
        await self._send(call)
        answer = _answers.decode(await self._read_frame())
        if isinstance(answer, Edited):
            raise EditedError
        assert isinstance(answer, Called)
        self._read_log()
        return answer

    async def _send(self, request: Order | Call) -> None:
        await self._loop.sock_sendall(self._socket, self._greeting + _frame(request))
        self._greeting = b""

    async def _outcome(self, trail: Trail) -> Outcome:
        while True:
            answer = _answers.decode(await self._read_frame())
            if isinstance(answer, Outcome):
                return answer
            if isinstance(answer, Edited):
                raise EditedError
            if isinstance(answer, Connected):
                self.connected = True
            elif isinstance(answer, NodeDone):
                trail.tell(answer.timing)
            elif isinstance(answer, Drawn):
                trail.tell(answer)

    async def _read_frame(self) -> bytes:
        head = await self._read(LENGTH.size)
        return await self._read(LENGTH.unpack(head)[0])

    async def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = await self._loop.sock_recv(self._socket, max(65_536, size - len(self._buffer)))
            if not data:
                raise EOFError
            self._buffer += data
        part = bytes(self._buffer[:size])
        del self._buffer[:size]
        return part

    async def _crash(self) -> Outcome:
        """How it died; it has closed its socket, so it is dead or about to be."""
        for _ in range(100):
            if not self.alive():
                break
            await asyncio.sleep(0.01)
        code = ended(self._process)
        text = "closed its socket" if code is None else how(code)
        return Outcome("crashed", reason=f"its process died: {text}")

    def _read_log(self) -> None:
        try:
            data = os.read(self._log, 65_536)
            while data:
                if self._write is not None:
                    self._write(data.decode(errors="replace"))
                data = os.read(self._log, 65_536)
            self._loop.remove_reader(self._log)  # the other end is closed
        except BlockingIOError:
            return
        except OSError:
            self._loop.remove_reader(self._log)

    async def interrupt(self) -> None:
        """Have it end what it has on a cluster; kill it when it has, or takes too long."""
        self._process.terminate()
        await self._wait(_ENDING)
        self.kill()

    async def end(self, within: float) -> bool:
        """Let it end as Python does, with threads and exit functions; False if it was killed
        after `within` seconds. Cancelled, it kills it.
        """
        try:
            if (orphans := process_tree.orphans()) is not None:
                orphans.spare(self._process.pid)
            self._part()
            await self._wait(within)
            return not self.alive()
        finally:
            self._read_log()
            self.kill()

    def _part(self) -> None:
        with suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_WR)

    async def _wait(self, seconds: float) -> None:
        deadline, pause = self._loop.time() + seconds, _QUICK
        while self.alive() and (left := deadline - self._loop.time()) > 0:
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, _SLOW)

    def kill(self) -> None:
        self._loop.remove_reader(self._log)
        os.close(self._log)
        self._socket.close()
        kill(self._process)


def _frame(message: Any) -> bytes:
    data = _encode(message)
    return LENGTH.pack(len(data)) + data
