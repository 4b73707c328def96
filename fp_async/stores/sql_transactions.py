"""Transactions on the connections to one PostgreSQL, MySQL or MariaDB.

A transaction runs in a task of its own, in one go, and is tried again where it lost against
another one. Here the errors of SQLAlchemy and of its drivers become ours.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, NoReturn, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from fp_async.addresses import scrubbed
from fp_async.errors import (
    FlowerPowerError,
    StoreError,
    StoreUnavailableError,
)
from fp_async.stores.sql_addresses import ARGUMENTS, SECONDS, address
from fp_async.stores.sql_direct import Direct, Steps, Verb, through
from fp_async.stores.sql_tables import Db, MySql, Postgres, Server

T = TypeVar("T")
R = TypeVar("R")
Unit = Callable[[Db], T]

_TRIES = 6
_LARGEST_GROUP = 1000


class _Call:
    """A transaction under way: who waits for it may go away, and its commit may get lost."""

    def __init__(self) -> None:
        self.abandoned = False
        self.committing = False


class _AbandonedError(Exception):
    """Nobody waits for this transaction any more."""


class Transactions:
    """The connections to one database. Belongs to one event loop."""

    def __init__(self, kind: str, uri: str) -> None:
        self.kind = kind
        self._url = address(kind, uri)
        self._dialect = Postgres() if kind == "postgres" else MySql()
        self._engine: AsyncEngine | None = None
        self._direct: Direct | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def place(self) -> str:
        """The URI without user, password and parameters."""
        url = self._url
        kind = url.get_backend_name()
        return str(sa.URL.create(kind, host=url.host, port=url.port, database=url.database))

    def connect(self) -> None:
        """Make the pool; the first transaction connects."""
        if self._engine is None:
            self._engine = create_async_engine(
                self._url,
                connect_args=ARGUMENTS[self._url.get_driver_name()],
                isolation_level="READ COMMITTED",
                pool_size=5,
                max_overflow=5,
                pool_timeout=SECONDS,
                pool_recycle=90,
                pool_use_lifo=True,
                pool_reset_on_return=None,  # `_transaction` leaves none open
                hide_parameters=True,
            )
            if self._url.get_driver_name() == "asyncpg":
                self._direct = Direct(_autocommit(self._engine))

    async def close(self) -> None:
        """Wait for what is under way, and close every connection."""
        engine, self._engine = self._engine, None
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._direct is not None:
            await self._direct.close()
        if engine is not None:
            await engine.dispose()

    async def write(self, unit: Unit[T], seconds: float | None = None) -> T:
        """Run the unit in a transaction; again, where it lost against another one.

        It may take `seconds`. Cancelled, it is undone, unless it was being committed. Raises
        StoreError and StoreUnavailableError.
        """
        if self._engine is None:
            raise StoreError("the data store is not open")
        return await self._run(self._engine, unit, seconds or SECONDS)

    async def single(self, verb: Verb[T]) -> T:
        """Run a verb of single statements, each of which commits by itself.

        Cancelled, it is done or not done. Where the connection is lost it is done once more: it
        has to be a verb that may be called again.
        """
        if self._engine is None:
            raise StoreError("the data store is not open")
        direct = self._direct
        if direct is None:
            return await self.read(lambda db: through(db, verb()))

        async def once(_: _Call) -> T:
            async with asyncio.timeout(SECONDS):
                return await direct.run(verb)

        call = _Call()
        return await self._whole(self._attempts(once, call), call)

    async def read(self, unit: Unit[T]) -> T:
        """Run a unit that changes nothing."""
        if self._engine is None:
            raise StoreError("the data store is not open")
        if self.kind == "postgres":  # one round trip less; on MySQL it would be two more
            return await self._run(_autocommit(self._engine), unit, SECONDS)
        return await self._run(self._engine, unit, SECONDS)

    async def alone(self, unit: Unit[T]) -> T:
        """Run a unit outside of any transaction, for as long as it takes: VACUUM, say."""
        if self._engine is None:
            raise StoreError("the data store is not open")
        return await self._run(_autocommit(self._engine), unit, None)

    async def _run(self, engine: AsyncEngine, unit: Unit[T], seconds: float | None) -> T:
        call = _Call()

        async def once(call: _Call) -> T:
            async with asyncio.timeout(seconds), engine.connect() as connection:
                return await connection.run_sync(_transaction, self._dialect, unit, call)

        return await self._whole(self._attempts(once, call), call)

    async def _whole(self, work: Coroutine[Any, Any, T], call: _Call) -> T:
        """Drivers and pool do not survive a cancel at every moment; a task that ends does."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            call.abandoned = True
            task.add_done_callback(_ignore)
            raise
        return task.result()

    async def _attempts(self, once: Callable[[_Call], Awaitable[T]], call: _Call) -> T:
        for number in range(1, _TRIES + 1):
            try:
                return await once(call)
            except (FlowerPowerError, _AbandonedError):
                raise
            except Exception as error:
                lost = number == 1 and _lost(error) and not call.committing
                if number == _TRIES or not (lost or _code(error) in _COLLISIONS):
                    self._translate(error)
            await asyncio.sleep(random.uniform(0.0, 0.01 * 2**number))
        raise AssertionError

    def _translate(self, error: Exception) -> NoReturn:
        """Raise one of our errors for one of a driver's; defects of ours go through."""
        if not _foreign(error):
            raise error
        text = _said(error)
        text = scrubbed(text, self._url.render_as_string(hide_password=False))
        kind = StoreUnavailableError if _passes(error) else StoreError
        raise kind(f"data store {self.place}: {text}") from error


def _autocommit(engine: AsyncEngine) -> AsyncEngine:
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def _transaction(connection: sa.Connection, server: Server, unit: Unit[T], call: _Call) -> T:
    transaction = connection.begin()
    try:
        _check(call)
        result = unit(Db(connection, server))
        _check(call)
        call.committing = True
        transaction.commit()
    except BaseException:
        try:
            transaction.rollback()
        except Exception:
            connection.invalidate()
        raise
    call.committing = False
    return result


def _ignore(task: asyncio.Task[Any]) -> None:
    """Nobody is there to hear of its error."""
    if not task.cancelled():
        task.exception()


def _check(call: _Call) -> None:
    if call.abandoned:
        raise _AbandonedError


_Waiting = tuple["asyncio.Future[list[R]]", Sequence[T]]


class Merged(Generic[T, R]):
    """A verb on a list, of which concurrent calls share a transaction.

    Cancelled, a call is done, or not done at all. A call that fails does so alone. `quick` does
    what it can in one statement, and answers None to the rest.
    """

    def __init__(
        self,
        server: Transactions,
        verb: Callable[[Db, Sequence[T]], list[R]],
        quick: Callable[[Sequence[T]], Steps[list[R | None]]] | None = None,
    ) -> None:
        self._server = server
        self._verb = verb
        self._quick = quick
        self._waiting: deque[_Waiting[R, T]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, items: Sequence[T]) -> list[R]:
        if not items:
            return []
        future: asyncio.Future[list[R]] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, items))
        if self._task is None:
            self._task = asyncio.create_task(self._serve())
        return await future

    async def _serve(self) -> None:
        try:
            while self._waiting:
                await self._together(self._group())
        finally:
            self._task = None

    def _group(self) -> list[_Waiting[R, T]]:
        group, size = [], 0
        while self._waiting and size < _LARGEST_GROUP:
            future, items = self._waiting.popleft()
            if not future.done():
                group.append((future, items))
                size += len(items)
        return group

    async def _answers(self, items: Sequence[T]) -> Sequence[R]:
        """By one statement as far as that goes, the rest by the verb."""
        quick = self._quick
        if quick is None:
            return await self._server.write(lambda db: self._verb(db, items))
        found = await self._server.single(lambda: quick(items))
        rest = [item for item, answer in zip(items, found, strict=True) if answer is None]
        more = iter(await self._server.write(lambda db: self._verb(db, rest)) if rest else ())
        return [next(more) if answer is None else answer for answer in found]

    async def _together(self, group: list[_Waiting[R, T]]) -> None:
        items = [item for _, part in group for item in part]
        try:
            answers = iter(await self._answers(items))
        except BaseException as error:
            if len(group) > 1 and not isinstance(
                error, StoreUnavailableError | asyncio.CancelledError
            ):
                for one in group:
                    await self._together([one])
                return
            for future, _ in group:
                if not future.done():
                    future.set_exception(error)
            return
        for future, part in group:
            mine = [next(answers) for _ in part]
            if not future.done():
                future.set_result(mine)


# Errors -------------------------------------------------------------------------------------

_PACKAGES = {"sqlalchemy", "asyncpg", "psycopg", "asyncmy", "pymysql"}
_COLLISIONS = {  # another transaction was first: deadlock, serialization, lock, unique index
    *("40P01", "40001", "55P03", "23505"),
    *(1213, 1205, 1020, 1062),
}
_PASSING_CLASSES = ("08", "40", "53", "55P03", "57", "25006")  # connection, resources, shutdown
_PASSING_NUMBERS = {
    *(1021, 1040, 1053, 1114, 1129, 1203, 1205, 1213, 1226, 1290, 1317, 1836, 1927, 1969),
    *(2002, 2003, 2006, 2013, 2055, 3024, 4031),
}
_REFUSALS = ("authentication", "does not exist", "no password", "pg_hba", "denied", "role ")


def _original(error: BaseException) -> BaseException:
    """What the driver raised."""
    while isinstance(error, sa.exc.DBAPIError) and error.orig is not None:
        error = error.orig
    return error


def _code(error: BaseException) -> str | int | None:
    """PostgreSQL's SQLSTATE, or MySQL's number."""
    inner = _original(error)
    if isinstance(inner, OSError):
        return None
    if inner.args and isinstance(inner.args[0], int):
        return inner.args[0]
    return getattr(inner, "sqlstate", None) or getattr(inner.__cause__, "sqlstate", None)


def _lost(error: BaseException) -> bool:
    """Whether the connection is gone: the server has restarted, say."""
    if isinstance(error, sa.exc.PendingRollbackError):
        return True  # it went in the middle of the transaction, and a statement followed
    if isinstance(error, sa.exc.DBAPIError):
        return error.connection_invalidated
    code = _code(error)
    gone = isinstance(code, str) and code.startswith(("08", "57P"))  # as asyncpg tells it
    return gone or isinstance(error, ConnectionError | EOFError)


def _passes(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    code = _code(error)
    if isinstance(code, str):
        return code.startswith(_PASSING_CLASSES)
    if isinstance(code, int):
        return code in _PASSING_NUMBERS
    if isinstance(error, OSError | EOFError | sa.exc.TimeoutError) or _lost(error):
        return True  # TimeoutError is an OSError
    network = isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
    return network and not any(word in str(_original(error)) for word in _REFUSALS)


def _foreign(error: BaseException) -> bool:
    package = type(_original(error)).__module__.partition(".")[0]
    return package in _PACKAGES or isinstance(error, OSError | EOFError | UnicodeError)


def _said(error: BaseException) -> str:
    """What the server or the driver said, in one line and without values."""
    if isinstance(error, TimeoutError) and not str(error):
        return f"no answer within {SECONDS:.0f} seconds"
    inner = _original(error)
    code = _code(error)
    text = str(inner.args[1] if isinstance(code, int) and len(inner.args) > 1 else inner)
    text = text.partition("\n")[0]
    if code == 1406:
        text += "; MySQL keeps up to 255 characters of ids, names and keys"
    return text or type(inner).__name__
