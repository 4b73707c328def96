"""Wake-ups between processes that share one SQLite file: Unix datagrams beside it, no server.

Each process binds one socket in the folder `<database>.wake` and sends to all others there. A
peer whose buffer is full hears `*` later; a socket that nobody holds is deleted; the folder goes
with the last process. The kernel delivers in about 50 us.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import anyio

from fp_async.errors import BrokerError
from fp_async.events import LOCAL_PATIENCE
from fp_async.events.outbox import EVERYTHING, MESSAGE_LIMIT, Outbox, packed

CHECK_SECONDS = 5.0  # between looks whether the folder is still ours
RETRY_SECONDS = 0.05  # before a peer that was full is tried again
PATH_LIMIT = 100  # bytes of a socket's path: 108 on Linux, 104 elsewhere

_NAME = re.compile(r"\d+-[0-9a-f]{8}")
_GRANULARITY = 100_000_000  # ns in which two changes of a folder may bear the same time


def wake_folder(database: Path) -> Path:
    """The folder of sockets that belongs to a database file."""
    name = database.name
    return database if name.endswith(".wake") else database.with_name(f"{name}.wake")


class SocketTransport:
    """Wake-ups through a folder of sockets beside `database`."""

    patience = LOCAL_PATIENCE

    def __init__(self, database: Path) -> None:
        self._folder = wake_folder(database)

    async def serve(
        self, hear: Callable[[bytes | str], None], outbox: Outbox, up: Callable[[], None]
    ) -> None:
        """Bind a socket and send to all others. Raises BrokerError when the folder fails us."""
        loop = asyncio.get_running_loop()
        with _told(self._folder), _Place(self._folder) as place:
            loop.add_reader(place.socket, _receive, place.socket, hear)
            try:
                up()
                await _send(place, outbox)
            finally:
                loop.remove_reader(place.socket)


async def _send(place: _Place, outbox: Outbox) -> None:
    everything = packed(outbox.sender, [EVERYTHING]).encode()
    while True:
        message = None
        with anyio.move_on_after(RETRY_SECONDS if place.behind else CHECK_SECONDS):
            message = await outbox.take()
        place.catch_up(everything)
        if message is not None:
            place.send(message.encode())
            outbox.done()
        place.check()
        await asyncio.sleep(0)  # nothing above waits while the outbox is full


def _receive(sock: socket.socket, hear: Callable[[bytes | str], None]) -> None:
    for _ in range(64):  # then others have their turn
        try:
            hear(sock.recv(MESSAGE_LIMIT + 1))
        except OSError:
            return


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BrokerError(f"{folder}: {error.strerror or error}") from error


class _Place:
    """The socket of this process among the others. Everything raises OSError; nothing blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._peers: list[str] = []
        self._listed = -1
        self._checked = time.monotonic()
        self.behind: set[str] = set()  # peers that were full

    def __enter__(self) -> Self:
        mode, owner = _rights(self._folder)
        with contextlib.ExitStack() as undo:
            self._make_folder(mode, owner)
            self._fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            undo.callback(self._leave)
            self._path = _short_path(self._folder, self._fd)
            self.socket = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            self.socket.setblocking(False)
            self.socket.bind(f"{self._path}/{self._name}")
            _give(Path(self._path, self._name), mode & 0o666, owner)
            undo.callback(self._sweep)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _make_folder(self, mode: int, owner: tuple[int, int]) -> None:
        with contextlib.suppress(FileExistsError):
            self._folder.mkdir()
            _give(self._folder, mode | (mode & 0o444) >> 2, owner)

    def _sweep(self) -> None:
        """Delete sockets of dead processes: an empty datagram, which nobody minds, tells."""
        with contextlib.suppress(OSError):
            self._listed = -1
            self.send(b"")

    def _leave(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._name, dir_fd=self._fd)
        os.close(self._fd)
        with contextlib.suppress(OSError):  # others are still there
            self._folder.rmdir()

    def send(self, message: bytes) -> None:
        """Send to every peer whose buffer has room."""
        for name in self.peers():
            self._send_to(name, message)

    def catch_up(self, everything: bytes) -> None:
        """Tell peers that missed something to look at everything."""
        for name in tuple(self.behind):
            self.behind.discard(name)
            self._send_to(name, everything)

    def _send_to(self, name: str, message: bytes) -> None:
        try:
            self.socket.sendto(message, f"{self._path}/{name}")
        except BlockingIOError:
            self.behind.add(name)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._fd)
        except OSError:
            pass  # gone, or not ours to write to: it polls

    def peers(self) -> list[str]:
        """The names of the other sockets, listed again only when the folder has changed."""
        changed = os.fstat(self._fd).st_mtime_ns
        if changed != self._listed:
            self._peers = [name for name in os.listdir(self._fd) if self._is_peer(name)]  # noqa: PTH208
            # A folder that has just changed may change again and keep its time.
            self._listed = changed if time.time_ns() - changed > _GRANULARITY else -1
        return self._peers

    def _is_peer(self, name: str) -> bool:
        return name != self._name and _NAME.fullmatch(name) is not None

    def check(self) -> None:
        """Now and then, see whether peers can still find us; raises OSError if not."""
        if time.monotonic() - self._checked > CHECK_SECONDS:
            self._checked = time.monotonic()
            (self._folder / self._name).lstat()


def _short_path(folder: Path, fd: int) -> str:
    """A path to `folder` that leaves room for a socket's name in the 108 bytes of an address."""
    linked = f"/proc/self/fd/{fd}"
    if Path(linked).is_dir():
        return linked
    if len(os.fsencode(folder)) + 32 > PATH_LIMIT:
        raise OSError(f"the path is too long for a socket, {PATH_LIMIT - 32} bytes at most")
    return str(folder)


def _rights(folder: Path) -> tuple[int, tuple[int, int]]:
    """The database's mode and owner, which its sockets share."""
    database = folder.with_name(folder.name.removesuffix(".wake"))
    try:
        found = database.stat()
    except FileNotFoundError:
        return 0o600, (os.geteuid(), os.getegid())
    return stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)


def _give(path: Path, mode: int, owner: tuple[int, int]) -> None:
    path.chmod(mode)
    with contextlib.suppress(PermissionError):
        os.chown(path, *owner)
