"""Child processes that run single nodes: `executor: processpool`.

The parent (`Children`) sends messages over the child's stdin and awaits one on its stdout; a
message is a pickle and the memory of the arrays in it. Both ends are the same code of the same
installation, started by the parent itself, and the pipes have no name, so nothing from outside is
ever unpickled. What a node prints goes to stderr.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import pickle
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

from fp_async import copies, log_levels, remote
from fp_async.awaitables import awaitable
from fp_async.processes import die_with_parent, ended, how, kill, wait
from fp_async.runtime import process_exit
from fp_async.runtime.surroundings import Surroundings
from fp_async.threads import Threads, in_thread

log: logging.Logger = logging.getLogger("fp_async")
_LENGTH = struct.Struct(">Q")
_pipes = Threads(limit=1000)  # each waits for one child; `Children` bounds them
Child = subprocess.Popen[bytes]
Message = list[memoryview]
_LARGE = 2**20
_LOOK = 0.005  # seconds between two looks at whether children have ended
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from fp_async.child import main; main()"
)


class Children:
    """At most `limit` child processes, started on demand, kept warm until `close`.

    Belongs to one event loop. Pickling and the pipes are left to threads: a large value would
    hold the loop up. `users` counts the runs that have it.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.users = 0
        self._slots = asyncio.Semaphore(limit or os.cpu_count() or 1)
        self._idle: deque[Child] = deque()
        self._closed = False

    async def call(self, spec: remote.GraphSpec, node: str, kwargs: dict[str, Any]) -> Any:
        """Run one node in a child and return its value, or raise what it raised.

        Cancelling kills the child. Raises ProcessDiedError if it dies by itself.
        """
        problem = "its inputs cannot be sent to a process"
        arguments = await in_thread(_pipes, partial(_dump, kwargs, problem))
        async with self._slots:
            value, failure = await self._asked(spec, node, arguments)
        if failure is None:
            return value
        raise remote.raised(failure, "a child process")

    async def _asked(self, spec: remote.GraphSpec, node: str, arguments: Message) -> Any:
        """The answer of a child that has the code as it is now."""
        while True:
            child = self._idle.pop() if self._idle else _spawn()
            try:
                answer = await in_thread(_pipes, partial(_ask, child, spec, node, arguments))
            except BaseException:
                kill(child)
                raise
            if self._closed or answer is None:
                kill(child)
            else:
                self._idle.append(child)
            if answer is not None:
                return answer

    def idle(self) -> list[int]:
        """The processes that wait."""
        return [child.pid for child in self._idle]

    async def close(self, within: float | None) -> None:
        """Let the children that wait end as Python does, with threads and exit functions; kill
        them after `within` seconds (None: never), and the others as soon as they have answered.

        Cancelling kills them.
        """
        self._closed = True
        waiting = list(self._idle)
        self._idle.clear()
        try:
            for child in waiting if within != 0 else ():
                _let_end(child)
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    while any(ended(child) is None for child in waiting):  # noqa: ASYNC110
                        await asyncio.sleep(_LOOK)
        finally:
            for child in waiting:
                kill(child)


def _let_end(child: Child) -> None:
    assert child.stdin is not None
    with suppress(BrokenPipeError):
        child.stdin.close()


def _spawn() -> Child:
    import json

    path = json.dumps([str(Path(entry or os.curdir).resolve()) for entry in sys.path])
    # By the loop's own thread: Linux kills a child when the thread that made it ends.
    return subprocess.Popen(
        [sys.executable, "-c", _START, path, str(os.getpid()), str(logging.getLogger().level)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def _ask(child: Child, spec: remote.GraphSpec, node: str, arguments: Message) -> Any:
    """In a thread: send the request and wait for (value, failure); None from a child that has
    loaded code which was edited since.
    """
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        _write(child.stdin, _dump((spec, node), "the pipeline cannot be sent to a process"))
        _write(child.stdin, arguments)
        answer = _read(child.stdout)
    except BrokenPipeError:
        answer = None
    if answer is None:
        raise remote.ProcessDiedError(f"its process died ({how(wait(child))})")
    return _load(answer)


def _dump(value: Any, problem: str) -> Message:
    """Pickled, with the memory of arrays beside it instead of copied into it."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = copies.dumps(value, buffer_callback=buffers.append)
    except Exception as error:
        raise TypeError(f"{problem}: {error}") from error
    return [memoryview(data), *(buffer.raw() for buffer in buffers)]


def _load(message: Message) -> Any:
    return pickle.loads(message[0], buffers=message[1:])  # noqa: S301 - our own, see the module


def _write(stream: IO[bytes], message: Message) -> None:
    stream.write(_LENGTH.pack(len(message)))
    for part in message:
        stream.write(_LENGTH.pack(part.nbytes))
        stream.write(part)
    stream.flush()


def _read(stream: IO[bytes]) -> Message | None:
    """The next message, or None where the other end has gone."""
    count = _read_length(stream)
    lengths_and_parts = (_read_part(stream) for _ in range(count or 0))
    message = [part for part in lengths_and_parts if part is not None]
    return message if count and len(message) == count else None


def _read_length(stream: IO[bytes]) -> int | None:
    head = stream.read(_LENGTH.size)
    return int(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else None


def _read_part(stream: IO[bytes]) -> memoryview | None:
    length = _read_length(stream)
    if length is None:
        return None
    # Anonymous memory is cleared page by page as it is filled, without the interpreter's lock.
    part = memoryview(mmap.mmap(-1, length) if length > _LARGE else bytearray(length))
    return part if cast("BufferedReader", stream).readinto(part) == length else None


# In the child -------------------------------------------------------------------------------


def main() -> None:
    """Serve requests until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which kills us
    die_with_parent(int(sys.argv[2]))
    log_levels.show(int(sys.argv[3]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what nodes print must not end up among the frames
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    surroundings: Surroundings | None = None
    while (request := _read(requests)) and (arguments := _read(requests)):
        spec, node = _load(request)
        if surroundings is None:
            remote.settle(spec)
            surroundings = Surroundings()
        answer = _answer(spec, node, arguments, surroundings)
        surroundings.settle()
        _write(answers, answer)
        surroundings.restore()
    process_exit.wait_for_threads(_tell_of_threads)
    process_exit.call_exit_functions()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def _tell_of_threads(names: list[str]) -> None:
    log.warning("a child process waits for threads of its nodes: %s", ", ".join(names[:5]))


def _answer(
    spec: remote.GraphSpec, node: str, arguments: Message, surroundings: Surroundings
) -> Message:
    try:
        loaded = remote.loaded(spec)
        surroundings.keep()
        with loaded.running():
            expands = loaded.graph.roles.get(node) == "expand"
            return _called(loaded.graph.nodes[node].call, arguments, expands=expands)
    except remote.EditedError:
        return _dump(None, "")
    except BaseException as error:
        failure = remote.failure(error, spec.folder)
        return _dump((None, failure), "its error cannot leave its process")


def _called(call: Callable[..., Any], arguments: Message, *, expands: bool) -> Message:
    value = call(**_load(arguments))
    if awaitable(value):
        value = asyncio.run(_await(value))
    if expands:  # a generator stays in its process
        value = list(value)
    return _dump((value, None), f"its value ({type(value).__name__}) cannot leave its process")


async def _await(value: Any) -> Any:
    return await value
