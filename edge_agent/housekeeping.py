"""What keeps an agent well for years: disk, sizes, clocks, a store that went bad."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from edge_agent.config import AgentSettings
from edge_agent.problems import Problem, Problems
from edge_agent.store import AgentStore
from fp_async import clock_steps
from fp_async.errors import StoreError
from fp_async.patience import Patience
from fp_async.stores.sqlite import SqliteStore
from fp_async.stores.units import corrupt

log = logging.getLogger("fp_async.agent")
_LOOK = 30.0
_LATE = 5.0  # seconds that looking may take
_CLEAN = 600.0
_MEBIBYTE = 2**20


class Housekeeping:
    """Looks after the disk, the outbox and the clock. `full` says why nothing may be accepted."""

    def __init__(self, settings: AgentSettings, rows: AgentStore) -> None:
        self.full: str | None = None
        self.untold = 0
        self.disk_free = 0
        self.clock_steps = 0
        self.refused: dict[str, int] = {}
        self._settings = settings
        self._rows = rows
        self._patience = Patience()
        self._ahead = clock_steps.read().ahead
        self.clock_moved: list[Callable[[float], None]] = []

    async def open(self, store: SqliteStore) -> None:
        """Open the store; one that is corrupt is set aside first, and a new one is made.

        Raises StoreError for what that does not mend; SQLite calls a full disk many names.
        """
        try:
            await store.open()
            await self._rows.fact("store")
        except StoreError as error:
            free = free_bytes(Path(self._settings.store).parent)
            if free < _MEBIBYTE:
                raise StoreError(
                    f"{error} (the disk is full: {free // 1024} KiB are free)"
                ) from None
            if not corrupt(error):
                raise
            await store.close()
            moved = set_aside(Path(self._settings.store))
            text = "the store is corrupt (%s); it is now %s, and a new one is made"
            log.error(text, error, moved)  # noqa: TRY400 - no traceback: it is SQLite's own word
            await store.open()
            await self._rows.note("set aside", f"{moved}: {error}")

    async def run(self, problems: Problems) -> None:
        """Look every 30 s until cancelled; `problems` hears of what is found, and is kept."""
        cleaned = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK)
            await self.look_at_clock()
            await self._patience(self.look)
            problems.note("room", self.full or "")
            await self._patience(lambda: self.save(problems))
            if time.monotonic() - cleaned > _CLEAN:
                cleaned = time.monotonic()
                await self._patience(self._rows.forget)
                await self._patience(self._note_time)

    async def look(self) -> None:
        """See how much room there is."""
        self.disk_free = free_bytes(Path(self._settings.store).parent)
        self.full = no_room(self._settings, self.disk_free, 0)  # known, even if no row can be read
        self.untold, size = await self._rows.waiting()
        self.full = no_room(self._settings, self.disk_free, size)

    async def begin_anew(self, problems: Problems) -> None:
        """What was wrong when an agent ran here last is over, unless it is noted again."""
        kept = await self._rows.fact("problem")
        if kept is not None:
            last = msgspec.json.decode(kept, type=Problem)
            if last.over is None:
                last = msgspec.structs.replace(last, over=time.time())
                await self._rows.note("problem", msgspec.json.encode(last).decode())
        problems.note("room", self.full or "")

    async def save(self, problems: Problems) -> None:
        """Keep the last problem, for a status that finds no agent. A write only for a change."""
        if problems.unsaved and problems.last is not None:
            problems.unsaved = False
            await self._rows.note("problem", msgspec.json.encode(problems.last).decode())

    def skipped(self, what: str) -> None:
        """Count something that was not begun for want of room."""
        self.refused[what] = self.refused.get(what, 0) + 1

    async def look_at_clock(self) -> None:
        """Notice when the clock was set. As often as one likes: it costs nothing."""
        ahead = clock_steps.read().ahead
        if abs(ahead - self._ahead) > clock_steps.STEP:
            await self._patience(lambda: self.set_clock(_LOOK + _LATE))
        self._ahead = ahead

    async def set_clock(self, unseen: float = 0.0) -> float:
        """By how much the wall clock was set since it was noted last; then everybody is told.

        `unseen`: for how many seconds nobody may have seen it, while jobs went on.
        """
        step = await self._rows.set_clock(clock_steps.read(), unseen)
        if step:
            self.clock_steps += 1
            log.warning("the clock was set by %+.0f s", step)
            for moved in self.clock_moved:
                moved(step)
        return step

    async def _note_time(self) -> None:
        """A clock that shows less than this is wrong."""
        await self.set_clock(_LOOK + _LATE)
        known = float(await self._rows.fact("time") or 0)
        if time.time() > known:
            await self._rows.note("time", repr(time.time()))


def no_room(settings: AgentSettings, disk_free: int, outbox: int) -> str | None:
    """Return why nothing may be accepted, given the bytes that are free and those that wait."""
    if outbox > settings.outbox * _MEBIBYTE:
        return f"the outbox is full: {outbox // _MEBIBYTE} MiB wait to be told"
    if disk_free < _MEBIBYTE:  # whatever the floor: the store cannot grow
        return f"the disk is full: {disk_free // 1024} KiB are free"
    if disk_free < settings.disk_floor * _MEBIBYTE:
        return f"the disk is nearly full: {disk_free // _MEBIBYTE} MiB are free"
    return None


def free_bytes(folder: Path) -> int:
    """What is left on the disk for whoever is not root. (Without shutil, which loads bz2, lzma.)"""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def set_aside(path: Path) -> Path:
    """Rename a store with what belongs to it; never delete it. The new name. Raises StoreError.

    What belongs to it goes first: a log that stayed behind would be played into the new store.
    """
    mark = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    names = (f"{path.name}.corrupt-{mark}{more}" for more in ("", *(f"-{n}" for n in range(1000))))
    moved = next(new for name in names if not (new := path.with_name(name)).exists())
    try:
        for tail in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                path.with_name(path.name + tail).rename(moved.with_name(moved.name + tail))
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"the store {path} is corrupt, and cannot be renamed: {reason}") from error
    return moved
