"""Units of work on one SQLite connection, committed in groups.

A unit is a function of the raw connection, run on aiosqlite's connection thread, to which it
crosses as one call. All that wait when the thread is free share one transaction: durable work
costs one fsync a group, not one a statement. A unit that fails fails alone: its group is undone
and its units run again, each by itself. So a unit changes nothing but the database.

Each statement lets go of the interpreter's lock and has to wait for it again, so what matters
beside the fsyncs is the number of statements: a verb over items (`together`) gets the items of
all who call it at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from fp_async.errors import StoreError, StoreUnavailableError

log: logging.Logger = logging.getLogger("fp_async")
T = TypeVar("T")
Item = TypeVar("Item")
Answer = TypeVar("Answer")
Verb = Callable[[sqlite3.Connection, Sequence[Item]], list[Answer]]
_Done = tuple["asyncio.Future[Any]", Any, BaseException | None]


@dataclass(slots=True)
class _Work:
    """What waits for the thread: a unit, or one call of a verb over `items`."""

    future: asyncio.Future[Any]
    run: Callable[..., Any]
    items: Sequence[Any] | None
    write: bool


_Files = list[tuple[int, int] | None]  # device and inode of the database, its log, and the index


class _FileMovedError(Exception):
    """The file of the connection is no longer the one at its path; nothing was done."""


_LARGEST_GROUP = 500
_LOG = 2**22  # bytes of the log that are carried over into the database at once
_LATER = 2.0  # seconds that what may come later waits for others to share a commit with
_BUSY_SECONDS = 10.0
_PRAGMAS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA journal_size_limit = 16777216",
    "PRAGMA temp_store = MEMORY",
)


class Units:
    """One connection to a SQLite file, or to a database in memory. Belongs to one event loop.

    `check` looks at the file before anything is done to it, `migrate` makes or changes its tables.
    A file that was removed or replaced meanwhile is noticed before the next group: the connection
    would work on in the deleted one. Then the file that is there now is opened and `replaced` is
    called; where the units do not `reopen`, all that is submitted fails with StoreError.
    """

    def __init__(
        self,
        path: Path | None,
        check: Callable[[sqlite3.Connection], None],
        migrate: Callable[[sqlite3.Connection], None],
        replaced: Callable[[], object] = lambda: None,
    ) -> None:
        self.path = path
        self.reopen = True
        self.page_size = 4096  # bytes, of a new file: one that is there keeps its own
        self._check = check
        self._migrate = migrate
        self._replaced = replaced
        self._files: _Files = []
        self._wanted = False  # from `open` to `close`
        self._reopening = asyncio.Lock()
        self._pending: deque[_Work] = deque()
        self._waking = False  # whether the thread has been told that something is pending
        self._later: asyncio.TimerHandle | None = None  # when it is told at the latest
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: aiosqlite.Connection | None = None

    async def open(self) -> None:
        """Connect. Raises StoreError where the file is none of ours, or cannot be opened."""
        self._loop = asyncio.get_running_loop()
        self._wanted = True
        try:
            await self._connect()
        except BaseException:
            self._wanted = False
            raise

    async def _connect(self) -> None:
        _make_private(self.path)
        connection = aiosqlite.connect(
            self.path or ":memory:",
            isolation_level=None,
            timeout=_BUSY_SECONDS,
            cached_statements=200,
        )
        connection._thread.daemon = True  # a store that nobody closed must not keep us alive
        try:
            prepared = _prepared(connection, self._check, self._migrate, self.page_size)
            self._connection = await _whole(prepared)
        except sqlite3.Error as error:
            raise translated(error, self.path) from error
        self._files = _files(self.path)

    async def close(self) -> None:
        """Finish what is pending and close."""
        self._wanted = False
        self._wake_for_later()
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._let_go(connection)

    async def _let_go(self, connection: aiosqlite.Connection) -> None:
        """Close a connection, unless that would do harm: SQLite writes the log of a database back
        into it and removes it by its name, where another one may be by now. Then it is left to its
        thread, which waits for ever.
        """
        if _is_another_log(self._files, self.path):
            connection._tx.put_nowait((None, lambda: _keep_for_ever(connection)))
        else:
            await _whole(connection.close())

    async def _open_again(self, stale: aiosqlite.Connection | None) -> None:
        """Open the file that is there now, unless another call has. Raises StoreError where this
        process must not go on with it.
        """
        async with self._reopening:
            if self._connection is not stale or not self._wanted:
                return
            if stale is not None:
                await self._leave(stale)
            await self._connect()
        self._replaced()

    async def _leave(self, stale: aiosqlite.Connection) -> None:
        if _is_another_log(self._files, self.path):
            raise StoreError(
                f"data store {self.path}: its log (-wal, -shm) was replaced under this process, "
                "and what was written since is lost; end this process, and start it again"
            )
        if not self.reopen:
            raise StoreError(f"data store {self.path}: its file was removed or replaced")
        self._say_so()
        if _files(self.path)[:1] == self._files[:1]:  # only the log has gone: all is at hand still
            await stale.execute_fetchall("PRAGMA wal_checkpoint(RESTART)")
        self._connection = None
        await self._let_go(stale)

    def _say_so(self) -> None:
        assert self.path is not None
        same = _files(self.path)[:1] == self._files[:1]
        what = "replaced" if self.path.exists() else "removed"
        if same:
            log.warning("data store %s: its log was removed under this process", self.path)
            return
        log.warning(
            "data store %s was %s under this process, which goes on with %s; jobs of the old one "
            "that run are ended",
            self.path,
            what,
            "the file that is there now" if what == "replaced" else "a new one",
        )

    async def write(self, unit: Callable[[sqlite3.Connection], T]) -> T:
        """Run the unit in a transaction; returns when that is on disk.

        Cancelled, the unit is still run, or not run at all. Raises StoreError and
        StoreUnavailableError.
        """
        result: T = await self._submit(unit, None, write=True)
        return result

    async def together(self, verb: Verb[Item, Answer], items: Sequence[Item]) -> list[Answer]:
        """As `write`, for a verb over items: calls that wait at the same time run as one."""
        if not items:
            return []
        answers: list[Answer] = await self._submit(verb, items, write=True)
        return answers

    def later(
        self, verb: Verb[Item, Answer], items: Sequence[Item], failed: Callable[[], object]
    ) -> None:
        """As `together`, without a commit of its own: with the next group that comes, within two
        seconds. Until then a crash undoes it. What is read afterwards is read after it.

        `failed` is called on the loop where it could not be done. Raises StoreError where the
        store is not open.
        """
        if self._loop is None or self._connection is None:
            raise StoreError("the data store is not open")
        future: asyncio.Future[Any] = self._loop.create_future()
        future.add_done_callback(
            lambda done: failed() if done.cancelled() or done.exception() else None
        )
        self._pending.append(_Work(future, verb, items, write=True))
        if self._later is None:
            self._later = self._loop.call_later(_LATER, self._wake_for_later)

    def _wake_for_later(self) -> None:
        if self._later is not None:
            self._later.cancel()
        self._later = None
        if self._pending and not self._waking and self._connection is not None:
            self._waking = True
            self._wake(self._connection)

    async def read(self, unit: Callable[[sqlite3.Connection], T]) -> T:
        """Run a unit that changes nothing."""
        result: T = await self._submit(unit, None, write=False)
        return result

    async def alone(self, unit: Callable[[sqlite3.Connection], T]) -> T:
        """Run a unit outside of any transaction: VACUUM, say."""
        connection = await self._require()
        try:
            result: T = await connection._execute(unit, connection._conn)  # type: ignore[no-untyped-call]
        except sqlite3.Error as error:
            raise translated(error, self.path) from error
        return result

    async def _require(self) -> aiosqlite.Connection:
        if self._wanted and self._connection is None:
            await self._open_again(None)  # the first try of that has failed
        if self._connection is None:
            raise StoreError("the data store is not open")
        return self._connection

    async def _submit(
        self, run: Callable[..., Any], items: Sequence[Any] | None, *, write: bool
    ) -> Any:
        while True:
            connection = self._connection or await self._require()
            try:
                return await self._queue(connection, run, items, write=write)
            except _FileMovedError:
                await self._open_again(connection)

    def _queue(
        self,
        connection: aiosqlite.Connection,
        run: Callable[..., Any],
        items: Sequence[Any] | None,
        *,
        write: bool,
    ) -> asyncio.Future[Any]:
        assert self._loop is not None
        future: asyncio.Future[Any] = self._loop.create_future()
        self._pending.append(_Work(future, run, items, write))
        if not self._waking:
            self._waking = True
            # Not at once: what is about to be submitted in this turn of the loop comes along.
            self._loop.call_soon(self._wake, connection)
        return future

    def _wake(self, connection: aiosqlite.Connection) -> None:
        raw = connection._connection
        if raw is not None:
            connection._tx.put_nowait((None, lambda: self._run_pending(raw)))

    # On the thread --------------------------------------------------------------------------

    def _run_pending(self, db: sqlite3.Connection) -> None:
        self._waking = False  # before looking: what comes now may be looked at twice
        while self._pending:
            group: list[_Work] = []
            done = self._refused() if _have_moved(self._files, self.path) else None
            if done is None:
                done = self._run_group(db, group)
            if done is None:
                done = [self._run_alone(db, work) for work in group]
            assert self._loop is not None
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(_deliver, done)

    def _refused(self) -> list[_Done]:
        works = [self._pending.popleft() for _ in range(len(self._pending))]
        return [(work.future, None, _FileMovedError()) for work in works]

    def _run_group(self, db: sqlite3.Connection, group: list[_Work]) -> list[_Done] | None:
        """Run what waits, also what comes meanwhile, in one transaction; None if one failed."""
        done: list[_Done] = []
        try:
            while self._pending and len(group) < _LARGEST_GROUP:
                works = [self._pending.popleft() for _ in range(len(self._pending))]
                group += works
                if not db.in_transaction and any(work.write for work in works):
                    db.execute("BEGIN IMMEDIATE")
                done += _run_works(db, works)
            if db.in_transaction:
                db.execute("COMMIT")
        except BaseException:
            _roll_back(db)
            return None
        return done

    def _run_alone(self, db: sqlite3.Connection, work: _Work) -> _Done:
        try:
            if work.write:
                db.execute("BEGIN IMMEDIATE")
            (done,) = _run_works(db, [work])
            if work.write:
                db.execute("COMMIT")
        except BaseException as error:
            _roll_back(db)
            known = isinstance(error, sqlite3.Error)
            return work.future, None, translated(error, self.path) if known else error
        return done


def _make_private(path: Path | None) -> None:
    """Make a file that is not there yet, for its user alone: inputs and results are in it. SQLite
    gives its log the same rights. What is wrong with the place is told by SQLite.
    """
    if path is not None:
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


async def _prepared(
    connecting: aiosqlite.Connection,
    check: Callable[[sqlite3.Connection], None],
    migrate: Callable[[sqlite3.Connection], None],
    page_size: int,
) -> aiosqlite.Connection:
    try:
        connection = await connecting
    except BaseException:  # aiosqlite stops its thread, but does not wait for that
        await asyncio.to_thread(connecting._thread.join)
        raise
    try:
        await connection._execute(check, connection._conn)  # type: ignore[no-untyped-call]
        await connection.execute_fetchall(f"PRAGMA page_size = {page_size}")
        await connection._execute(_log_ahead, connection._conn)  # type: ignore[no-untyped-call]
        for pragma in (*_PRAGMAS, f"PRAGMA wal_autocheckpoint = {_LOG // page_size}"):
            await connection.execute_fetchall(pragma)
        await connection._execute(_migrated, connection._conn, migrate)  # type: ignore[no-untyped-call]
    except BaseException:
        await connection.close()
        raise
    return connection


def _migrated(db: sqlite3.Connection, migrate: Callable[[sqlite3.Connection], None]) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        migrate(db)
        db.execute("COMMIT")
    except BaseException:
        _roll_back(db)
        raise


def _log_ahead(db: sqlite3.Connection) -> None:
    """Turn the file to WAL. Where several processes do so to a new file, SQLite tells all but
    one "locked" at once, whatever the busy timeout says: both read, and both want to write.
    """
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL").fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


async def _whole(work: Coroutine[Any, Any, T]) -> T:
    """Await something to its end, whoever cancels: half opened or half closed, aiosqlite leaves
    its thread behind, which then calls a loop that is gone.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            result = task.result()
            if isinstance(result, aiosqlite.Connection):
                await result.close()
        raise
    return task.result()


def _run_works(db: sqlite3.Connection, works: list[_Work]) -> list[_Done]:
    """Run the units in order; a verb once, over the items of all its calls, at its first."""
    done: list[_Done] = []
    joint: dict[Callable[..., Any], list[_Work]] = {}
    for work in works:
        if work.items is not None:
            joint.setdefault(work.run, []).append(work)
    for work in works:
        if work.items is None:
            done.append((work.future, work.run(db), None))
        elif joint[work.run]:
            done += _run_joint(db, joint[work.run])
            joint[work.run] = []
    return done


def _run_joint(db: sqlite3.Connection, calls: list[_Work]) -> list[_Done]:
    answers = calls[0].run(db, [item for call in calls for item in call.items or ()])
    done: list[_Done] = []
    start = 0
    for call in calls:
        end = start + len(call.items or ())
        done.append((call.future, answers[start:end], None))
        start = end
    return done


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        db.execute("ROLLBACK")


def _deliver(done: list[_Done]) -> None:
    for future, result, error in done:
        if future.done():
            continue  # whoever waited was cancelled
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def _keep_for_ever(connection: aiosqlite.Connection) -> None:
    """Hold a connection that must not be closed, on its own thread: not even the end of the
    interpreter takes it from there.
    """
    threading.Event().wait()
    del connection


def _files(path: Path | None) -> _Files:
    return [] if path is None else [_identity(f"{path}{tail}") for tail in ("", "-wal", "-shm")]


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - at each commit: a Path costs as much as the call
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _have_moved(files: _Files, path: Path | None) -> bool:
    return any(
        old is not None and old != new for old, new in zip(files, _files(path), strict=False)
    )


def _is_another_log(files: _Files, path: Path | None) -> bool:
    """Return whether the database is the same, and its log is another one by now."""
    if path is None or not files:
        return False
    now = _files(path)
    return now[0] == files[0] and any(
        old is not None and new is not None and old != new
        for old, new in zip(files[1:], now[1:], strict=True)
    )


_TRANSIENT = (
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN),
)
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def translated(error: BaseException, path: Path | None) -> StoreError:
    """SQLite's error as one of ours: what may pass is StoreUnavailableError."""
    text = f"data store {path or 'in memory'}: {error}"
    if path is not None and not path.parent.is_dir():
        text += f" (there is no folder {path.parent})"
    elif _code(error) == sqlite3.SQLITE_READONLY:
        text += " (the file or its folder may only be read)"
    kind = StoreUnavailableError if _code(error) in _TRANSIENT else StoreError
    ours = kind(text)
    ours.__cause__ = error
    return ours


def corrupt(error: StoreError) -> bool:
    """Return whether SQLite cannot read the file any more."""
    return _code(error.__cause__) in _CORRUPT


def _code(error: BaseException | None) -> int:
    """SQLite's primary result code: its words differ from release to release."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
