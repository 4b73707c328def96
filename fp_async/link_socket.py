"""The socket to a broker: TCP, TLS or a websocket, opened without a thread that waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fp_async.errors import describe
from fp_async.link_values import Link
from fp_async.link_websocket import Frames, frame, handshake
from fp_async.threads import Threads, in_thread

READ_SIZE = 32_768
SEND_LIMIT = 65_536  # bytes that wait here for the system's own buffer
HEAD_LIMIT = 16_384
CLOSED = "closed at the other end"

NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

T = TypeVar("T")
_resolvers = Threads(4, idle_seconds=1.0)


class Stream:
    """What paho takes for its socket: many small packets in few system calls.

    `recv` and `send` raise BlockingIOError when there is nothing, and when too much waits to be
    sent. `heard` and `said` are when bytes last came and went, `problem` is why they ended, and
    `hung_up` tells that the other end wanted that.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._in = b""
        self._at = 0
        self._out = bytearray()
        self.heard: float = time.monotonic()
        self.said: float = self.heard
        self.problem: str = ""
        self.hung_up: bool = False

    def recv(self, size: int) -> bytes:
        """At most `size` bytes; none at the end of the stream. Raises OSError."""
        if self._at == len(self._in):
            self._in = self._more()
            self._at = 0
        data = self._in[self._at : self._at + size]
        self._at += len(data)
        return data

    def _more(self) -> bytes:
        with self._noting_problems():
            data = self._sock.recv(READ_SIZE)
        self.heard = time.monotonic()
        if not data:
            self.problem, self.hung_up = CLOSED, True
        return data

    def pending(self) -> int:
        """Bytes that `recv` has without waiting, and that no selector knows of."""
        sock = self._sock
        return len(self._in) - self._at + (sock.pending() if isinstance(sock, ssl.SSLSocket) else 0)

    def send(self, data: bytes | bytearray) -> int:
        """Take all of `data`; `flush` sends it."""
        if len(self._out) >= SEND_LIMIT:
            raise BlockingIOError
        self._put(data)
        return len(data)

    def _put(self, data: bytes | bytearray) -> None:
        self._out += data

    def flush(self) -> bool:
        """Whether the system has taken all that was sent. Raises OSError."""
        try:
            with self._noting_problems():
                while self._out:
                    del self._out[: self._sock.send(self._out)]
                    self.said = time.monotonic()
        except NOT_NOW:
            return False
        return True

    @contextlib.contextmanager
    def _noting_problems(self) -> Iterator[None]:
        try:
            yield
        except NOT_NOW:
            raise
        except OSError as error:
            self.problem = describe(error)
            self.hung_up = isinstance(error, ConnectionError | ssl.SSLEOFError)
            raise

    def unsent(self) -> int:
        """Bytes that `flush` has not passed on."""
        return len(self._out)

    def close(self) -> None:
        """Pass on what can be without waiting, and close."""
        with contextlib.suppress(OSError):
            if not self.problem:
                self.flush()
        self._in = b""
        self._at = 0
        self._sock.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, _flag: bool) -> None:
        """It never blocks."""


class WebSocketStream(Stream):
    """The same in the frames of a websocket; `rest` came after the handshake."""

    def __init__(self, sock: socket.socket, rest: bytes) -> None:
        super().__init__(sock)
        self._frames = Frames()
        self._in = self._frames.feed(rest)

    def _more(self) -> bytes:
        raw = super()._more()
        data = self._frames.feed(raw)
        self._out += self._frames.replies()
        if self._frames.closed:
            self.problem = self.problem or "the server closed the websocket"
            self.hung_up = True
        elif raw and not data:
            self.flush()
            raise BlockingIOError
        return data

    def _put(self, data: bytes | bytearray) -> None:
        self._out += frame(data)


async def open_stream(link: Link) -> Stream:
    """A connection to the broker of `link`. Raises OSError.

    Each address has `link.timeout` seconds. Cancelling leaves no socket; a thread that looks up
    a name ends by itself, and nobody waits for it.
    """
    problem = OSError(f"no address for '{link.host}'")
    for family, kind, _, _, place in await _addresses(link):
        try:
            return await _reach(link, socket.socket(family, kind), place)
        except OSError as error:
            problem = error
    raise problem


async def _addresses(link: Link) -> list[Any]:
    look_up = functools.partial(socket.getaddrinfo, link.host, link.port, type=socket.SOCK_STREAM)
    try:
        return look_up(flags=socket.AI_NUMERICHOST)  # which needs no thread
    except socket.gaierror:
        async with _limit(link):
            found: list[Any] = await in_thread(_resolvers, look_up)
            return found


@contextlib.asynccontextmanager
async def _limit(link: Link) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(link.timeout):
            yield
    except TimeoutError:
        raise TimeoutError(f"no answer within {link.timeout:g} s") from None


async def _reach(link: Link, sock: socket.socket, place: Any) -> Stream:
    try:
        sock.setblocking(False)
        async with _limit(link):
            await _connect(sock, place)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if link.tls:
                sock = await _with_tls(link, sock)
            if link.path is None:
                return Stream(sock)
            return WebSocketStream(sock, await _upgrade(link, sock, link.path))
    except BaseException:
        sock.close()
        raise


async def _connect(sock: socket.socket, place: Any) -> None:
    try:
        await asyncio.get_running_loop().sock_connect(sock, place)
    except OSError as error:  # asyncio leaves the reason out
        raise OSError(error.errno, os.strerror(error.errno or 0)) from None


async def _with_tls(link: Link, sock: socket.socket) -> ssl.SSLSocket:
    """The socket after a TLS handshake; on an error it is closed."""
    wrapped = _tls_context(link).wrap_socket(
        sock, server_hostname=link.host, do_handshake_on_connect=False
    )
    try:
        await _without_blocking(wrapped, wrapped.do_handshake)
    except BaseException:
        wrapped.close()
        raise
    return wrapped


async def _upgrade(link: Link, sock: socket.socket, path: str) -> bytes:
    """Make a websocket of it; what the server said after its answer."""
    request, check = handshake(link.host, link.port, path)
    await _without_blocking(sock, functools.partial(sock.send, request))
    head = bytearray()
    while b"\r\n\r\n" not in head:
        data = await _without_blocking(sock, functools.partial(sock.recv, READ_SIZE))
        head += data
        if not data or len(head) > HEAD_LIMIT:
            raise OSError("no websocket: the server closed the connection")
    answer, _, rest = bytes(head).partition(b"\r\n\r\n")
    check(answer)
    return rest


async def _without_blocking(sock: socket.socket, work: Callable[[], T]) -> T:
    loop = asyncio.get_running_loop()
    while True:
        try:
            return work()
        except (BlockingIOError, ssl.SSLWantReadError):
            await _ready(sock, loop.add_reader, loop.remove_reader)
        except ssl.SSLWantWriteError:
            await _ready(sock, loop.add_writer, loop.remove_writer)


async def _ready(
    sock: socket.socket, add: Callable[..., object], remove: Callable[..., object]
) -> None:
    ready = asyncio.Event()
    add(sock, ready.set)
    try:
        await ready.wait()
    finally:
        remove(sock)


def _tls_context(link: Link) -> ssl.SSLContext:
    """Kept as long as the files stay as they are: the system's authorities cost 20 ms to read."""
    files = (link.ca_file, link.cert_file, link.key_file)
    try:
        return _context(files, tuple(Path(file).stat().st_mtime for file in files if file))
    except OSError as error:
        named = ", ".join(file for file in files if file)
        raise OSError(f"the TLS files {named}: {describe(error)}") from error


@functools.lru_cache(maxsize=4)
def _context(files: tuple[str | None, ...], _changed: tuple[float, ...]) -> ssl.SSLContext:
    ca_file, cert_file, key_file = files
    context = ssl.create_default_context(cafile=ca_file)
    if cert_file:
        context.load_cert_chain(cert_file, key_file)
    return context
