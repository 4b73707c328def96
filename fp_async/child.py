"""Child processes that run single nodes: `executor: processpool`.

The parent (`Children`) sends a frame over the child's stdin and awaits one on its stdout; a
frame is a length and a pickle. Both ends are the same code of the same installation, started by
the parent itself, and the pipes have no name, so nothing from outside is ever unpickled. What
a node prints goes to stderr.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import struct
import sys
import traceback
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from fp_async import frames
from fp_async.errors import FlowerPowerError, describe
from fp_async.nodes import awaitable

_LENGTH = struct.Struct(">Q")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from fp_async.child import main; main()"
)


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """All that a child needs to build the same DAG. `params` and `config` are pickled."""

    folder: Path
    flow: str
    package: str
    modules: tuple[str, ...]
    params: bytes
    config: bytes
    materializers: bytes
    allow_overrides: bool
    libraries: tuple[str, ...]  # whose Hamilton extensions the modules need


class ChildDiedError(FlowerPowerError):
    """The process that ran a node ended without an answer; says how."""


class RemoteTracebackError(Exception):
    """The text of a traceback that was raised in a child process, and the user's line in it."""

    def __init__(self, text: str, line: str) -> None:
        super().__init__(f"in a child process:\n{text}")
        self.line = line


class Children:
    """At most `limit` child processes, started on demand, kept warm until `close`."""

    def __init__(self, limit: int | None = None) -> None:
        self._slots = asyncio.Semaphore(limit or os.cpu_count() or 1)
        self._idle: deque[asyncio.subprocess.Process] = deque()

    async def call(self, spec: GraphSpec, node: str, kwargs: dict[str, Any]) -> Any:
        """Run one node in a child and return its value, or raise what it raised.

        Cancelling kills the child. Raises ChildDiedError if it dies by itself.
        """
        arguments = _dump(kwargs, "its inputs cannot be sent to a process")
        request = pickle.dumps((spec, node, arguments), protocol=5)
        async with self._slots:
            process = self._idle.pop() if self._idle else await _spawn()
            try:
                answer = await _exchange(process, request)
            except asyncio.IncompleteReadError:
                code = await process.wait()
                raise ChildDiedError(f"its process died ({_how(code)})") from None
            except BaseException:
                await _kill(process)
                raise
            self._idle.append(process)
        return _unpack(answer)

    async def close(self) -> None:
        """Kill all children and reap them."""
        while self._idle:
            await _kill(self._idle.pop())


async def _spawn() -> asyncio.subprocess.Process:
    import json

    pipe = asyncio.subprocess.PIPE
    path = json.dumps([str(Path(entry or os.curdir).resolve()) for entry in sys.path])
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", _START, path, stdin=pipe, stdout=pipe, start_new_session=True
    )


async def _exchange(process: asyncio.subprocess.Process, request: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.writelines((_LENGTH.pack(len(request)), request))
        await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        raise asyncio.IncompleteReadError(b"", None) from None
    (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
    return await process.stdout.readexactly(length)


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill and reap; a cancelled caller still leaves no zombie."""
    if process.returncode is None:
        process.kill()
    await asyncio.shield(process.wait())


def _how(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _dump(value: Any, problem: str) -> bytes:
    try:
        return pickle.dumps(value, protocol=5)
    except Exception as error:
        raise TypeError(f"{problem}: {error}") from error


def _unpack(answer: bytes) -> Any:
    value, failure = pickle.loads(answer)  # noqa: S301 - our own child, see the module
    if failure is None:
        return value
    pickled, text, line = failure
    raise pickle.loads(pickled) from RemoteTracebackError(text, line)  # noqa: S301


# In the child -------------------------------------------------------------------------------


def main() -> None:
    """Serve requests until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which kills us
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what nodes print must not end up among the frames
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    while (request := _read_frame(requests)) is not None:
        answer = _answer(request)
        answers.write(_LENGTH.pack(len(answer)))
        answers.write(answer)
        answers.flush()


def _die_with_parent() -> None:
    """Have Linux kill this process when its parent dies, even in the middle of a node."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _read_frame(stream: BinaryIO) -> bytes | None:
    head = stream.read(_LENGTH.size)
    return stream.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else None


def _answer(request: bytes) -> bytes:
    spec, node, arguments = pickle.loads(request)  # noqa: S301 - our own parent
    try:
        graph = _graph(spec)
        value = graph.nodes[node].call(**pickle.loads(arguments))  # noqa: S301
        if awaitable(value):
            value = asyncio.run(_await(value))
        return _dump((value, None), f"its value ({type(value).__name__}) cannot leave its process")
    except BaseException as error:
        line = frames.user_line(error, spec.folder)
        failure = (_portable(frames.trim(error)), traceback.format_exc(), line)
        return pickle.dumps((None, failure), protocol=5)


async def _await(value: Any) -> Any:
    return await value


def _portable(error: BaseException) -> bytes:
    """The exception pickled, or one with the same text where it does not survive that."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)  # noqa: S301
    except Exception:
        return pickle.dumps(RuntimeError(describe(error)))
    return data


@lru_cache(maxsize=16)
def _graph(spec: GraphSpec) -> Any:
    from fp_async import dag, modules, params

    dag.load_extensions(spec.libraries)
    values = params.Params(spec.flow, pickle.loads(spec.params))  # noqa: S301
    namespace = modules.Namespace(spec.folder, spec.flow, values, spec.package)
    loaded = [namespace.load(name) for name in spec.modules]
    config = pickle.loads(spec.config)  # noqa: S301
    return dag.Graph(
        spec.flow,
        loaded,
        config,
        materializers=pickle.loads(spec.materializers),  # noqa: S301
        allow_overrides=spec.allow_overrides,
    )
