"""Where a worker's jobs run: in child processes that can be killed, or in the worker's own loop.

A child gets orders over a socket pair and answers with node timings and the outcome: msgpack of
known Structs, never pickle. What the job prints and logs comes through a pipe. A child runs one
job at a time, is kept warm, is killed with all that it started when its job is cancelled or
takes too long, and dies with the worker.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from fp_async.attempt import Order, Outcome, Trail, captured
from fp_async.jobs import Failure, NodeTiming
from fp_async.processes import how, kill

if TYPE_CHECKING:
    from fp_async.flows import Flows

LENGTH = struct.Struct(">I")
_ENDING = 5.0  # seconds that a child gets to end its work on a cluster
_STRICTLY = 2.0  # seconds after its timeout that a run may take to say so by itself
_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
_MAIN = "from fp_async.runner_child import main; main()"


class NodeDone(msgspec.Struct, frozen=True, tag="node"):
    """A node has come to an end."""

    timing: NodeTiming


class Connected(msgspec.Struct, frozen=True, tag="connected"):
    """The child has work on a cluster, which it ends when it gets SIGTERM."""


class Settings(msgspec.Struct, frozen=True, tag="settings"):
    """What a child is told first."""

    root: str
    memory_limit: int | None


Answer = NodeDone | Connected | Outcome
Request = Settings | Order
_encode = msgspec.msgpack.Encoder().encode
_answers = msgspec.msgpack.Decoder(Answer)


class Runner(Protocol):
    """Runs attempts; several at once."""

    async def run(self, order: Order, trail: Trail) -> Outcome:
        """Cancelling stops the attempt for good, as far as its kind can be stopped."""

    async def close(self) -> None:
        """End what was kept warm."""


class InlineRunner:
    """Runs jobs on the worker's event loop. Sync nodes in threads cannot be killed there."""

    def __init__(self, flows: Flows) -> None:
        self._flows = flows

    async def run(self, order: Order, trail: Trail) -> Outcome:
        """Run in this process. Cancelling cancels what waits on the loop, abandons threads."""
        from fp_async.attempting import attempt  # an agent's worker has no use for it

        self._flows.refresh(within=1.0)
        captured(trail)
        return await attempt(self._flows, order, trail.node)

    async def close(self) -> None:
        """Let child processes of `executor: processpool` go."""
        await self._flows.aclose()


class ProcessRunner:
    """Runs each job in a child process; as many as there are jobs at once."""

    def __init__(self, root: Path, memory_limit: int | None, idle_timeout: float) -> None:
        self._settings = Settings(str(root), memory_limit)
        self._idle_timeout = idle_timeout
        self._idle: deque[_Child] = deque()
        self._closed = False
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self, order: Order, trail: Trail) -> Outcome:
        """Run in a child. Cancelling kills it, with all that it has started."""
        child = self._take()
        child.trail = trail
        try:
            outcome = await child.ask(order, trail)
        except BaseException:
            await self._end(child)
            raise
        child.trail = None
        if outcome.status == "crashed" or outcome.dirty or self._closed:
            await self._end(child)
        else:
            self._keep(child)
        return outcome

    def _take(self) -> _Child:
        while self._idle:
            child = self._idle.pop()  # the warmest
            child.retire.cancel()
            if child.alive():
                return child
            child.kill()
        return _Child(self._settings)

    def _keep(self, child: _Child) -> None:
        loop = asyncio.get_running_loop()
        child.retire = loop.call_later(self._idle_timeout, self._retire, child)
        self._idle.append(child)

    def _retire(self, child: _Child) -> None:
        self._idle.remove(child)
        self._begin_end(child)

    def _begin_end(self, child: _Child) -> asyncio.Task[None] | None:
        """Kill it now, or, if it has work on a cluster, as soon as it has ended that."""
        if not child.connected:
            child.kill()
            return None
        task = asyncio.get_running_loop().create_task(child.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _end(self, child: _Child) -> None:
        if task := self._begin_end(child):
            await asyncio.wait([task])

    async def close(self) -> None:
        """Kill the children that wait; the others as soon as they have answered."""
        self._closed = True
        while self._idle:
            child = self._idle.pop()
            child.retire.cancel()
            self._begin_end(child)
        if self._ending:
            await asyncio.wait(self._ending)


class _Child:
    """One process. Belongs to the loop's thread: Linux kills a child when its maker ends."""

    retire: asyncio.TimerHandle

    def __init__(self, settings: Settings) -> None:
        import json

        self.trail: Trail | None = None
        self.connected = False  # to a cluster
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
        ours.setblocking(False)
        os.set_blocking(self._log, False)
        self._socket = ours
        self._buffer = bytearray()
        self._greeting = _frame(settings)
        self._loop.add_reader(self._log, self._read_log)

    def alive(self) -> bool:
        return self._process.poll() is None

    async def ask(self, order: Order, trail: Trail) -> Outcome:
        timeout = order.spec.timeout
        try:
            async with asyncio.timeout(None if timeout is None else timeout + _STRICTLY):
                await self._loop.sock_sendall(self._socket, self._greeting + _frame(order))
                self._greeting = b""
                outcome = await self._outcome(trail)
        except TimeoutError:
            text = f"the run took longer than its timeout of {timeout:g} s, and was killed"
            failure = Failure("RunTimeoutError", text, "", ["RunTimeoutError", "TimeoutError"])
            return Outcome("failed", failure=failure, dirty=True)
        except (BrokenPipeError, ConnectionResetError, EOFError):
            outcome = await self._crash()
        self._read_log()
        return outcome

    async def _outcome(self, trail: Trail) -> Outcome:
        while True:
            answer = _answers.decode(await self._read_frame())
            if isinstance(answer, Outcome):
                return answer
            if isinstance(answer, Connected):
                self.connected = True
            else:
                trail.node(answer.timing)

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
            if self._process.poll() is not None:
                break
            await asyncio.sleep(0.01)
        code = self._process.poll()
        text = "closed its socket" if code is None else how(code)
        return Outcome("crashed", reason=f"its process died: {text}")

    def _read_log(self) -> None:
        try:
            data = os.read(self._log, 65_536)
            while data:
                if self.trail is not None:
                    self.trail.write(data.decode(errors="replace"))
                data = os.read(self._log, 65_536)
            self._loop.remove_reader(self._log)  # the other end is closed
        except BlockingIOError:
            return
        except OSError:
            self._loop.remove_reader(self._log)

    async def end(self) -> None:
        """Have it end what it has on a cluster; kill it when it has, or takes too long."""
        self._process.terminate()
        deadline = self._loop.time() + _ENDING
        while self.alive() and self._loop.time() < deadline:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
        self.kill()

    def kill(self) -> None:
        self._loop.remove_reader(self._log)
        os.close(self._log)
        self._socket.close()
        kill(self._process)


def _frame(message: Any) -> bytes:
    data = _encode(message)
    return LENGTH.pack(len(data)) + data
