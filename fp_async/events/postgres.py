"""Wake-ups through PostgreSQL's LISTEN and NOTIFY. The only importer of asyncpg."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import anyio

from fp_async.config import EventBroker
from fp_async.errors import BrokerError, MissingExtraError, describe
from fp_async.events import address, patience_for, until_one_ends
from fp_async.events.outbox import Outbox

ANSWER_SECONDS = 10.0
KEEPALIVE_SECONDS = 20.0
_NAME_LIMIT = 63  # bytes of a PostgreSQL identifier


def make(settings: EventBroker, namespace: str, fallback: str | None) -> PostgresTransport:
    """The transport for these settings. Raises MissingExtraError, ConfigError, ValueError."""
    _asyncpg()
    uri = address(settings, fallback, "postgresql", "postgres")
    where = {
        "host": settings.host,
        "port": settings.port,
        "user": settings.username,
        "password": settings.password,
    }
    return PostgresTransport(plain_dsn(uri) if uri else None, channel(namespace), where)


def _asyncpg() -> Any:
    try:
        import asyncpg
    except ImportError as error:
        raise MissingExtraError("event broker 'postgres'", "postgres") from error
    return asyncpg


def channel(namespace: str) -> str:
    """The name to listen on; a long namespace is told by its hash."""
    name = f"fp_wake_{namespace}"
    if len(name.encode()) <= _NAME_LIMIT and name.isprintable():
        return name
    return f"fp_wake_{hashlib.sha256(namespace.encode()).hexdigest()[:32]}"


def plain_dsn(uri: str) -> str:
    """A SQLAlchemy address (`postgresql+asyncpg://`) as PostgreSQL's own clients know it."""
    parts = urlsplit(uri)
    query = urlencode([_option(*pair) for pair in parse_qsl(parts.query) if _is_known(pair[0])])
    return parts._replace(scheme="postgresql", query=query).geturl()


def _option(name: str, value: str) -> tuple[str, str]:
    return ("sslmode" if name == "ssl" else name), value


def _is_known(name: str) -> bool:
    """SQLAlchemy's own arguments would reach the server as settings, and be refused."""
    return not name.startswith(("prepared_statement_", "async_"))


class PostgresTransport:
    """One connection that listens and notifies; `where` lies over what `dsn` says."""

    def __init__(self, dsn: str | None, channel: str, where: dict[str, Any]) -> None:
        self._dsn = dsn
        self._channel = channel
        self._where = {name: value for name, value in where.items() if value is not None}
        parts = urlsplit(dsn or "")
        host = self._where.get("host") or parts.hostname
        port = self._where.get("port") or parts.port or 5432
        self._told = f"PostgreSQL at {host or 'localhost'}:{port}"
        self.patience: float = patience_for(host)

    async def serve(
        self, hear: Callable[[bytes | str], None], outbox: Outbox, up: Callable[[], None]
    ) -> None:
        """Listen and notify until the connection breaks: BrokerError."""
        lost = asyncio.Event()

        def heard(_connection: object, _pid: int, _channel: str, message: object) -> None:
            hear(str(message))

        async with self._connected() as connection:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(self._channel, heard)
            up()
            await until_one_ends(lost.wait, lambda: self._notify(connection, outbox))
            raise ConnectionError("the connection was lost")

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        """A connection; inside, the client's errors become BrokerError."""
        asyncpg = _asyncpg()
        try:
            connection = await asyncpg.connect(
                self._dsn, **self._where, timeout=ANSWER_SECONDS, command_timeout=ANSWER_SECONDS
            )
            try:
                yield connection
            finally:
                await _close(connection)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise BrokerError(f"{self._told}: {describe(error)}") from error

    async def _notify(self, connection: Any, outbox: Outbox) -> None:
        """Send what comes; after a while without, ask whether the server is still there."""
        while True:
            message = None
            with anyio.move_on_after(KEEPALIVE_SECONDS):
                message = await outbox.take()
            if message is None:
                await connection.execute("SELECT 1")
            else:
                await connection.execute("SELECT pg_notify($1, $2)", self._channel, message)
                outbox.done()


async def _close(connection: Any) -> None:
    """Say goodbye where that is quick; a connection is closed in any case."""
    with anyio.move_on_after(0.5, shield=True), contextlib.suppress(Exception):
        await connection.close()
    if not connection.is_closed():
        connection.terminate()
