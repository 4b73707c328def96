"""Which of several gateways leads: by a lock of the operating system, or by a lease in the store.

Where the store is a file of this machine, the gateway that has locked a file beside it leads. The
system takes the lock back when the process ends, however it ends, it holds for containers that
share the file, and keeping it writes nothing: a lease that is renewed every few seconds would wear
a flash card out. Elsewhere a row of the store says who leads, and until when.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from fp_async.errors import StoreUnavailableError
from fp_async.jobs import LEASE
from fp_async.stores import Store

_BY_LOCK = "lock"  # the owner of the row beside a lock, the same for each that has the lock
_ROW = 3600.0  # seconds that it lasts: releases that know no lock see that someone leads


class Lead(Protocol):
    """The right to do what only one may. Both raise what a Store raises."""

    async def take(self) -> bool:
        """Take or keep it; returns whether this one has it now."""

    async def give_back(self) -> None:
        """Let another one have it, where this one has it."""


def lead(store: Store, role: str, owner: str) -> Lead:
    """The lead of a role, for `owner`, as the kind of the store has it."""
    if store.path is None:
        return RowLead(store, role, owner)
    return LockLead(store, role, owner, Path(f"{store.path}.{quote(role, safe='')}.lock"))


class RowLead:
    """A lease in the store, which has to be taken again before it ends."""

    def __init__(self, store: Store, role: str, owner: str) -> None:
        self._fleet = store.fleet
        self._role, self._owner = role, owner

    async def take(self) -> bool:
        return await self._fleet.lead(self._role, self._owner, LEASE)

    async def give_back(self) -> None:
        await self._fleet.lead(self._role, self._owner, 0)


class LockLead:
    """A locked file. A row of the store says the same, twice an hour."""

    def __init__(self, store: Store, role: str, owner: str, path: Path) -> None:
        self._fleet = store.fleet
        self._role, self._path = role, path
        self._row = RowLead(store, role, owner)  # where the file system has no locks
        self._file: int | None = None
        self._row_at = float("-inf")

    async def take(self) -> bool:
        locked = self._locked()
        if locked is None:
            return await self._row.take()
        if locked and time.monotonic() - self._row_at > _ROW / 2:
            locked = await self._take_row()
        return locked

    async def _take_row(self) -> bool:
        """Whether the row is ours: for some seconds it may be of a release that knows no lock."""
        taken = False
        try:
            taken = await self._fleet.lead(self._role, _BY_LOCK, _ROW)
        finally:
            if not taken and self._row_at == float("-inf"):
                self._unlock()
        self._row_at = time.monotonic() if taken else self._row_at
        return taken

    async def give_back(self) -> None:
        if self._file is None:
            await self._row.give_back()
            return
        try:
            await self._fleet.lead(self._role, _BY_LOCK, 0)
        finally:
            self._unlock()

    def _locked(self) -> bool | None:
        """Whether we have the lock now; None where the file system has none.

        A file that was removed is another one by now, which another process may have locked.
        """
        if self._file is not None and not _is_at(self._file, self._path):
            self._unlock()
        if self._file is not None:
            return True
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise StoreUnavailableError(f"{self._path}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            return False if isinstance(error, BlockingIOError) else None
        self._file = file
        return True

    def _unlock(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file, self._row_at = None, float("-inf")


def _is_at(file: int, path: Path) -> bool:
    """Return whether an open file is the one at that path."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))  # noqa: PTH116 - as for the other
    except OSError:
        return False
