"""Single statements on PostgreSQL, given to asyncpg as they are.

Around one statement, SQLAlchemy's check-out, greenlet and result cost six times what the statement
does (0.9 ms in place of 0.15). So the verbs of every job go past them, on connections of its pool
that are kept at hand; all other verbs, and all other drivers, are SQLAlchemy's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Mapping
from functools import cache
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from fp_async.stores.sql_tables import Db, Row

T = TypeVar("T")
Rows = list[Row]
# A verb that asks for one statement after another, (text, values), and is sent the rows of each.
Steps = Generator[tuple[str, Mapping[str, object]], Rows, T]
Verb = Callable[[], Steps[T]]

_KEPT = 4  # connections at hand
_KEPT_SECONDS = 60.0  # then the pool decides whether it is still good


class _Held:
    """A connection of the pool, and the driver's own below it."""

    def __init__(self, connection: AsyncConnection, driver: Any) -> None:
        self.connection = connection
        self.driver = driver
        self.until = time.monotonic() + _KEPT_SECONDS

    def is_good(self) -> bool:
        return time.monotonic() < self.until and not self.driver.is_closed()

    async def let_go(self) -> None:
        """Give it back to the pool, which must not hand out again what is closed."""
        if self.driver.is_closed() and not self.connection.invalidated:
            await self.connection.invalidate()
        await self.connection.close()


class Direct:
    """The connections at hand for one engine, which commits every statement by itself."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._idle: list[_Held] = []

    @property
    def idle(self) -> int:
        """How many connections of the pool are kept here."""
        return len(self._idle)

    async def run(self, verb: Verb[T]) -> T:
        """Run a verb. After any error its connection is thrown away, whatever state it was in.

        Raises what asyncpg raises, and ConnectionError where the connection is gone.
        """
        held = await self._take()
        try:
            result = await _driven(held.driver, verb())
        except BaseException as error:
            gone = _is_gone(held.driver, error)
            await held.connection.invalidate()
            await held.let_go()
            if gone:
                raise ConnectionError(str(error) or "the connection was lost") from error
            raise
        if len(self._idle) < _KEPT:
            self._idle.append(held)
        else:
            await held.let_go()
        return result

    async def close(self) -> None:
        """Give all of them back to the pool."""
        while self._idle:
            await self._idle.pop().let_go()

    async def _take(self) -> _Held:
        while self._idle:
            held = self._idle.pop()
            if held.is_good():
                return held
            await held.let_go()
        while True:  # the pool may have several that the server has closed
            connection = await self._engine.connect()
            try:
                driver = (await connection.get_raw_connection()).driver_connection
            except BaseException:
                await connection.close()
                raise
            held = _Held(connection, driver)
            if held.is_good():
                return held
            await held.let_go()


def _is_gone(driver: Any, error: BaseException) -> bool:
    """A connection that breaks just now looks like a busy one to asyncpg."""
    busy = type(error).__name__ == "InternalClientError"
    return isinstance(error, Exception) and (busy or driver.is_closed())


async def _driven(driver: Any, steps: Steps[T]) -> T:
    rows: Rows | None = None
    try:
        while True:
            sql, values = next(steps) if rows is None else steps.send(rows)
            text, names = _positional(sql)
            rows = await driver.fetch(text, *(values[name] for name in names))
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()


def through(db: Db, steps: Steps[T]) -> T:
    """The same by SQLAlchemy, in the transaction that it is in."""
    rows: Rows | None = None
    try:
        while True:
            sql, values = next(steps) if rows is None else steps.send(rows)
            rows = list(db.rows(sql, **values))
    except StopIteration as done:
        result: T = done.value
        return result


@cache
def _positional(sql: str) -> tuple[str, tuple[str, ...]]:
    """`:name` as `$1`, and the names in their order."""
    names: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return f"${names.setdefault(match[1], len(names) + 1)}"

    return re.sub(r"(?<![:\w]):(\w+)", number, sql), tuple(names)
