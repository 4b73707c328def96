"""Child processes that run single nodes: `executor: processpool`.

The parent (`Children`) sends messages over the child's stdin and awaits one on its stdout; a
message is a pickle and the memory of the arrays in it. Both ends are the same code of the same
installation, started by the parent itself, and the pipes have no name, so nothing from outside is
ever unpickled. What a node prints goes to stderr.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import pickle
import signal
import struct
import subprocess
import sys
from collections import deque
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

from fp_async import remote
from fp_async.awaitables import awaitable
from fp_async.processes import die_with_parent, how, kill
from fp_async.threads import Threads, in_thread

_LENGTH = struct.Struct(">Q")
_pipes = Threads(limit=1000)  # each waits for one child; `Children` bounds them
Child = subprocess.Popen[bytes]
Message = list[memoryview]
_LARGE = 2**20
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
            child = self._idle.pop() if self._idle else _spawn()
            try:
                value, failure = await in_thread(
                    _pipes, partial(_ask, child, spec, node, arguments)
                )
            except BaseException:
                kill(child)
                raise
            if self._closed:
                kill(child)
            else:
                self._idle.append(child)
        if failure is None:
            return value
        raise remote.raised(failure, "a child process")

    def close(self) -> None:
        """Kill the children that wait, and the others as soon as they have answered."""
        self._closed = True
        while self._idle:
            kill(self._idle.pop())


def _spawn() -> Child:
    import json

    path = json.dumps([str(Path(entry or os.curdir).resolve()) for entry in sys.path])
    # By the loop's own thread: Linux kills a child when the thread that made it ends.
    return subprocess.Popen(
        [sys.executable, "-c", _START, path, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def _ask(child: Child, spec: remote.GraphSpec, node: str, arguments: Message) -> tuple[Any, Any]:
    """In a thread: send the request and wait for (value, failure)."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        _write(child.stdin, _dump((spec, node), "the pipeline cannot be sent to a process"))
        _write(child.stdin, arguments)
        answer = _read(child.stdout)
    except BrokenPipeError:
        answer = None
    if answer is None:
        raise remote.ProcessDiedError(f"its process died ({how(child.wait())})")
    outcome: tuple[Any, Any] = _load(answer)
    return outcome


def _dump(value: Any, problem: str) -> Message:
    """Pickled, with the memory of arrays beside it instead of copied into it."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
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
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what nodes print must not end up among the frames
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    while (request := _read(requests)) and (arguments := _read(requests)):
        _write(answers, _answer(request, arguments))


def _answer(request: Message, arguments: Message) -> Message:
    spec, node = _load(request)
    try:
        graph = remote.graph(spec)
        value = graph.nodes[node].call(**_load(arguments))
        if awaitable(value):
            value = asyncio.run(_await(value))
        return _dump((value, None), f"its value ({type(value).__name__}) cannot leave its process")
    except BaseException as error:
        failure = remote.failure(error, spec.folder)
        return _dump((None, failure), "its error cannot leave its process")


async def _await(value: Any) -> Any:
    return await value
