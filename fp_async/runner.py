"""Where a worker's jobs run: in child processes that can be killed, or in the worker's own loop.

A child gets orders over a socket pair and answers with node timings and the outcome: msgpack of
known Structs, never pickle. What the job prints and logs comes through a pipe. A child runs one
job at a time, is kept warm, is killed with all that it started when its job is cancelled or
takes too long, and dies with the worker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from fp_async import tracing
from fp_async.attempt import Call, Called, Drawn, Order, Outcome, Trail, captured
from fp_async.callbacks import LIMIT, NONE, Callbacks
from fp_async.jobs import Failure, NodeTiming
from fp_async.processes import how, kill

if TYPE_CHECKING:
    from fp_async.flows import Flows
    from fp_async.json_logs import Relay

log = logging.getLogger("fp_async")
LENGTH = struct.Struct(">I")
_GONE = (BrokenPipeError, ConnectionResetError, EOFError)
_LONGEST_CALL = 2 * LIMIT  # seconds for all of a pipeline's functions
_PARTING = 4.0  # seconds; an export may take three of them
_STRICTLY = 2.0  # seconds after its timeout that a run may take to say so by itself
_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
_MAIN = "from fp_async.runner_child import main; main()"


class NodeDone(msgspec.Struct, frozen=True, tag="node"):
    """A node has come to an end; of a tracked job also that it has begun."""

    timing: NodeTiming


class Settings(msgspec.Struct, frozen=True, tag="settings"):
    """What a child is told first."""

    root: str
    memory_limit: int | None
    json: bool = False  # what it logs


Write = Callable[[str], None]
_LONGEST_LINE = 65_536
Answer = NodeDone | Drawn | Outcome | Called
Request = Settings | Order | Call
_encode = msgspec.msgpack.Encoder().encode
_answers = msgspec.msgpack.Decoder(Answer)


class Runner(Protocol):
    """Runs attempts; several at once. `callbacks` are functions of this process."""

    callbacks: Callbacks

    async def run(self, order: Order, trail: Trail) -> Outcome:
        """Cancelling stops the attempt for good, as far as its kind can be stopped."""

    async def hear(self, call: Call) -> list[str]:
        """Tell the user's functions how an attempt went, where it was made; what went wrong."""

    async def close(self) -> None:
        """End what was kept warm."""


class InlineRunner:
    """Runs jobs on the worker's event loop. Sync nodes in threads cannot be killed there."""

    def __init__(self, flows: Flows) -> None:
        self._flows = flows
        self.callbacks = flows.callbacks

    async def run(self, order: Order, trail: Trail) -> Outcome:
        """Run in this process. Cancelling cancels what waits on the loop, abandons threads."""
        from fp_async.attempting import attempt  # an agent's worker has no use for it

        self._flows.refresh(within=1.0)
        captured(trail)
        return await attempt(self._flows, order, trail.tell)

    async def hear(self, call: Call) -> list[str]:
        """On the worker's loop, sync functions in threads."""
        from fp_async.attempting import hear

        return await hear(self._flows, call)

    async def close(self) -> None:
        """Let child processes of `executor: processpool` go."""
        await self._flows.aclose()


class ProcessRunner:
    """Runs each job in a child process; as many as there are jobs at once.

    `callbacks` are functions of this process, which hear of jobs as well. `relay` writes on what
    jobs log, line by line, and gives back what is kept of it.
    """

    def __init__(
        self,
        root: Path,
        memory_limit: int | None,
        idle_timeout: float,
        callbacks: Callbacks = NONE,
        relay: Relay | None = None,
    ) -> None:
        self._settings = Settings(str(root), memory_limit, json=relay is not None)
        self._relay = relay
        self.callbacks = callbacks
        self._idle_timeout = idle_timeout
        self._idle: deque[_Child] = deque()
        self._closed = False

    async def run(self, order: Order, trail: Trail) -> Outcome:
        """Run in a child. Cancelling kills it, with all that it has started."""
        child = self._take()
        written = self._log(order, trail)
        child.hears(written.write)
        try:
            outcome = await child.ask(order, trail)
        except BaseException:
            child.kill()
            raise
        child.hears(None)
        written.flush()
        if outcome.status == "crashed" or outcome.dirty:
            child.kill()
        else:
            self._keep(child)
        return outcome

    async def hear(self, call: Call) -> list[str]:
        """In a child, which is killed where that takes too long; own functions here."""
        problems = await self._hear_in_child(call)
        if self.callbacks.of(call.kind):
            from fp_async.attempting import hear_own

            problems += await hear_own(self.callbacks, call)
        return problems

    async def _hear_in_child(self, call: Call) -> list[str]:
        child = self._take()
        trail = Trail()
        heard = self._log(call.order, trail)
        child.hears(heard.write)
        try:
            async with asyncio.timeout(_LONGEST_CALL):
                called = await child.tell(call)
        except (TimeoutError, *_GONE) as error:
            child.kill()
            what = "takes too long" if isinstance(error, TimeoutError) else "its process died"
            return [f"on_{call.kind}, job {call.order.id} of '{call.order.pipeline}': {what}"]
        except BaseException:
            child.kill()
            raise
        child.hears(None)
        heard.flush()
        if called.dirty:
            child.kill()
        else:
            self._keep(child)
        for line in trail.log.splitlines() if self._relay is None else ():
            log.info("on_%s of job %s: %s", call.kind, call.order.id, line)
        return called.problems

    def _log(self, order: Order, trail: Trail) -> Log:
        relay = self._relay and partial(self._relay, order.current)
        return Log(trail.write, relay)

    def _take(self) -> _Child:
        while self._idle:
            child = self._idle.pop()  # the warmest
            child.retire.cancel()
            if child.alive():
                return child
            child.kill()
        return _Child(self._settings)

    def _keep(self, child: _Child) -> None:
        if self._closed:
            child.kill()
            return
        loop = asyncio.get_running_loop()
        child.retire = loop.call_later(self._idle_timeout, self._end, child)
        self._idle.append(child)

    def _end(self, child: _Child) -> None:
        self._idle.remove(child)
        child.kill()

    async def close(self) -> None:
        """Kill the children that wait; the others as soon as they have answered."""
        self._closed = True
        children = list(self._idle)
        self._idle.clear()
        for child in children:
            child.retire.cancel()
        if tracing.asked_for():  # what they have not exported is lost with them
            for child in children:
                child.part()
            with suppress(TimeoutError):
                async with asyncio.timeout(_PARTING):
                    while any(child.alive() for child in children):  # noqa: ASYNC110 - processes
                        await asyncio.sleep(0.01)
        for child in children:
            child.kill()


class Log:
    """What a job prints and logs: written to `keep` as it comes, or by lines, as `relay` has it."""

    def __init__(self, keep: Write, relay: Callable[[str], str] | None) -> None:
        self._keep = keep
        self._relay = relay
        self._rest = ""

    def write(self, text: str) -> None:
        if self._relay is None:
            self._keep(text)
            return
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest)
            self._rest = ""
        for line in lines:
            self._keep(self._relay(line) + "\n")

    def flush(self) -> None:
        """Nothing more comes."""
        if self._relay is not None and self._rest:
            self._keep(self._relay(self._rest))
            self._rest = ""


class _Child:
    """One process. Belongs to the loop's thread: Linux kills a child when its maker ends."""

    retire: asyncio.TimerHandle

    def __init__(self, settings: Settings) -> None:
        import json

        self._write: Write | None = None
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

    def hears(self, write: Write | None) -> None:
        """Where what is printed and logged goes from now on."""
        self._write = write

    def part(self) -> None:
        """Let it end by itself."""
        self._socket.shutdown(socket.SHUT_WR)

    def alive(self) -> bool:
        return self._process.poll() is None

    async def ask(self, order: Order, trail: Trail) -> Outcome:
        timeout = order.spec.timeout
        try:
            async with asyncio.timeout(None if timeout is None else timeout + _STRICTLY):
                await self._send(order)
                outcome = await self._outcome(trail)
        except TimeoutError:
            text = f"the run took longer than its timeout of {timeout:g} s, and was killed"
            failure = Failure("RunTimeoutError", text, "", ["RunTimeoutError", "TimeoutError"])
            return Outcome("failed", failure=failure, dirty=True)
        except _GONE:
            outcome = await self._crash()
        self._read_log()
        return outcome

    async def tell(self, call: Call) -> Called:
        """Raises as a socket does when the process is gone."""
        await self._send(call)
        answer = _answers.decode(await self._read_frame())
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
            assert isinstance(answer, NodeDone | Drawn)
            trail.tell(answer if isinstance(answer, Drawn) else answer.timing)

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
                if self._write is not None:
                    self._write(data.decode(errors="replace"))
                data = os.read(self._log, 65_536)
            self._loop.remove_reader(self._log)  # the other end is closed
        except BlockingIOError:
            return
        except OSError:
            self._loop.remove_reader(self._log)

    def kill(self) -> None:
        self._loop.remove_reader(self._log)
        os.close(self._log)
        self._socket.close()
        kill(self._process)


def _frame(message: Any) -> bytes:
    data = _encode(message)
    return LENGTH.pack(len(data)) + data
