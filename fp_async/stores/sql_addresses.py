"""Where a server of the SQL stores is, and how its sessions are set up."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import sqlalchemy as sa

from fp_async.errors import ConfigError, MissingExtraError

CONNECT_SECONDS = 5
SECONDS = 30.0  # for a transaction, so that a dead network holds nobody for ever
_DRIVERS = {
    "postgres": {"asyncpg": "postgresql+asyncpg", "psycopg": "postgresql+psycopg"},
    "mysql": {"asyncmy": "mysql+asyncmy"},
}
_LIMITS = {"lock_timeout": "10000", "idle_in_transaction_session_timeout": "60000"}
_MYSQL_SESSION = (
    # UTC, because the hour that comes twice in other zones has no single time as a number.
    "SET SESSION time_zone = '+00:00', "
    "sql_mode = 'ANSI_QUOTES,STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', "
    # The server ends a transaction whose client has vanished; the pool lets go before that.
    "innodb_lock_wait_timeout = 10, wait_timeout = 180"
)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "asyncpg": {"timeout": CONNECT_SECONDS, "server_settings": _LIMITS},
    "psycopg": {
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": int(SECONDS * 1000),
        "options": " ".join(f"-c {name}={value}" for name, value in _LIMITS.items()),
    },
    "asyncmy": {
        "connect_timeout": CONNECT_SECONDS,
        "init_command": _MYSQL_SESSION,
        "charset": "utf8mb4",
        "binary_prefix": True,
    },
}


def address(kind: str, uri: str) -> sa.URL:
    """The URI for SQLAlchemy, with a driver that is installed."""
    drivers = _DRIVERS[kind]
    asked = uri.partition("://")[0].partition("+")[2].replace("asyncpq", "asyncpg")
    usable = [asked] if asked in drivers else list(drivers)
    found = next((name for name in usable if find_spec(name) is not None), None)
    if found is None:
        raise MissingExtraError(f"data store '{kind}'", kind)
    try:
        url = sa.make_url(uri).set(drivername=drivers[found])
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigError(
            f"data_store.uri is no valid URI; write {kind}://user:password@host/database, and "
            "special characters in the password as %40 and the like"
        ) from None
    mode = url.query.get("sslmode")
    if found == "asyncpg" and mode is not None:
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})
    return url
