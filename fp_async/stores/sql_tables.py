"""The tables of the SQL stores, their rows, and in what PostgreSQL and MySQL differ.

Statements are text with `:names`; a name that begins with `each_` is a list. Double quotes quote
names on both, because every MySQL connection is in ANSI_QUOTES mode.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa

from fp_async.errors import StoreError
from fp_async.jobs import CHANGING, COLUMNS, FLAGS, LIGHT, Changes, Job, Schedule
from fp_async.stores import sql_schema

Values = Mapping[str, Any]
Row = Sequence[Any]

_BLOBS = {"spec", "error", "inputs", "result", "record", "correlation"}
_INTEGERS = {"seq", "priority", "attempt", "errors", "crashes", "concurrency", "offer"}
_REALS = {
    *("created_at", "run_at", "expires_at", "started_at", "ended_at", "prune_at"),
    *("lease_until", "cancel_at", "nominal_at", "result_ttl", "replied_at"),
}
_STATEMENT_BYTES = 16 * 2**20  # about what one PostgreSQL statement carries at most
_DUPLICATE_COLUMN = 1060  # of MySQL

_SCHEDULE_COLUMNS = Schedule.__struct_fields__
INSERTED = (*(name for name in COLUMNS if name not in CHANGING), "state")


def quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def insert(table: str, columns: Sequence[str]) -> str:
    """A statement for rows with these columns."""
    values = ", ".join(f":{name}" for name in columns)
    return f"INSERT INTO {table} ({quoted(columns)}) VALUES ({values})"


ALL = quoted(COLUMNS)
WITHOUT_BLOBS = quoted(LIGHT)
SCHEDULE = quoted(_SCHEDULE_COLUMNS)
QUEUED = "state = 'queued' AND target IS NULL AND queue = :queue"
HELD_STATES = "state IN ('offered', 'accepted', 'running')"


class Db:
    """A transaction."""

    def __init__(self, connection: sa.Connection, server: Server) -> None:
        self.connection = connection
        self.server = server

    def rows(self, sql: str, **values: object) -> Sequence[Row]:
        return self.connection.execute(_text(sql, self.server.kind), values).all()

    def run(self, sql: str, **values: object) -> int:
        """The number of rows that it found."""
        return self.connection.execute(_text(sql, self.server.kind), values).rowcount

    def do(self, sql: str) -> None:
        """A statement that may or may not return rows."""
        self.connection.exec_driver_sql(sql)

    def many(self, sql: str, rows: Sequence[Values]) -> None:
        self.connection.execute(_text(sql, self.server.kind), [dict(row) for row in rows])

    def now(self) -> float:
        return float(self.rows(f"SELECT {self.server.clock}")[0][0])


@cache
def _text(sql: str, kind: str) -> sa.TextClause:
    clause = sa.text(sql)
    if kind == "postgres":
        return clause
    lists = dict.fromkeys(_LISTS.findall(sql))
    return clause.bindparams(*(sa.bindparam(name, expanding=True) for name in lists))


_LISTS = re.compile(r":(each_\w+)")


class Postgres:
    """PostgreSQL takes a whole list as one value, so that no statement depends on its length."""

    kind = "postgres"
    clock = "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
    queued = "fp_jobs"
    here = "current_schema()"
    version = "SELECT 'PostgreSQL ' || current_setting('server_version')"
    size = "SELECT pg_total_relation_size(CAST(:table AS regclass))"
    clean = "VACUUM (ANALYZE) {table}"
    lock = "SELECT pg_advisory_xact_lock(728364519), 1"
    unlock = "SELECT 1"  # the end of the transaction does it
    untouched = "ON CONFLICT DO NOTHING"  # the tail of an INSERT that leaves what is there
    wanted = "target"  # the target of a job that is queued
    queued_for_agents = "state = 'queued' AND target IS NOT NULL"
    unreplied = "reply_to IS NOT NULL AND replied_at IS NULL AND ended_at IS NOT NULL"
    reply_order = "ended_at"

    def one_of(self, column: str, name: str) -> str:
        """A condition: the column is in the list `:name`."""
        return f"{column} = ANY(CAST(:{name} AS text[]))"

    def insert(self, db: Db, jobs: Sequence[Job]) -> list[Job]:
        """Insert what is new; those jobs of which something may have been there already."""
        done: set[str] = set()
        for part in parts([inserted(job) for job in jobs]):
            found = db.rows(_POSTGRES_INSERT, **lists(INSERTED, part))
            done.update(id for (id,) in found)
        return [] if len(done) == len(jobs) else [job for job in jobs if job.id not in done]

    def update(self, db: Db, columns: tuple[str, ...], rows: Sequence[Values]) -> None:
        """Set the columns of the jobs with these `seq`."""
        for part in parts(rows):
            db.run(_postgres_update(columns), **lists((*columns, "seq"), part))

    def check(self, rows: Sequence[Values]) -> int:
        """Raises StoreError for a row that is too large."""
        return len(rows)

    def upsert(self, conflict: str, changes: Sequence[str], *extra: str) -> str:
        """The tail of an INSERT that replaces these columns of the row with the same key."""
        moves = [*(f'"{name}" = excluded."{name}"' for name in changes), *extra]
        return f"ON CONFLICT ({conflict}) DO UPDATE SET {', '.join(moves)}"

    def create(self, version: int) -> list[str]:
        """What this version adds to the one before; see `sql_schema`."""
        return sql_schema.postgres(version)

    def make(self, db: Db, statement: str) -> None:
        """Run a statement of `create`."""
        db.run(statement)


def _array(column: str) -> str:
    if column in _REALS:
        return "double precision[]"
    if column in _INTEGERS:
        return "bigint[]"
    return "boolean[]" if column in FLAGS else "bytea[]" if column in _BLOBS else "text[]"


def unnested(columns: Iterable[str]) -> str:
    return f"unnest({', '.join(f'CAST(:{name} AS {_array(name)})' for name in columns)})"


_POSTGRES_INSERT = (
    f"INSERT INTO fp_jobs ({quoted(INSERTED)}) SELECT * FROM {unnested(INSERTED)} "
    "ON CONFLICT DO NOTHING RETURNING id"
)


@cache
def _postgres_update(columns: tuple[str, ...]) -> str:
    moves = ", ".join(f'"{name}" = v."{name}"' for name in columns)
    given = (*columns, "seq")
    source = f"{unnested(given)} AS v({quoted(given)})"
    return f"UPDATE fp_jobs AS j SET {moves} FROM {source} WHERE j.seq = v.seq"


def lists(columns: Iterable[str], rows: Sequence[Values]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in columns}


def parts(rows: Sequence[Values]) -> Iterable[Sequence[Values]]:
    """The rows in parts of a size that fits into one statement."""
    start, size = 0, 0
    for index, row in enumerate(rows):
        size += sum(len(row[name] or b"") for name in _BLOBS & row.keys()) + 1000
        if size > _STATEMENT_BYTES and index > start:
            yield rows[start:index]
            start, size = index, 0
    yield rows[start:]


class MySql:
    """MySQL 8 and MariaDB. The driver joins the rows of an INSERT into few statements."""

    kind = "mysql"
    clock = "(UNIX_TIMESTAMP(NOW(6)) + 0e0)"
    queued = "fp_jobs FORCE INDEX (fp_jobs_queued)"  # any other order would lock every row
    here = "DATABASE()"
    version = "SELECT VERSION()"
    size = (
        "SELECT data_length + index_length FROM information_schema.tables "
        "WHERE table_schema = DATABASE() AND table_name = :table"
    )
    clean = "OPTIMIZE TABLE {table}"
    lock = "SELECT GET_LOCK(CONCAT('fp.', MD5(DATABASE())), 20)"
    unlock = "SELECT RELEASE_LOCK(CONCAT('fp.', MD5(DATABASE())))"
    untouched = 'ON DUPLICATE KEY UPDATE "id" = "id"'  # INSERT IGNORE would swallow other errors
    wanted = "wanted"
    queued_for_agents = "wanted IS NOT NULL"
    unreplied = "unreplied IS NOT NULL"
    reply_order = "unreplied"

    def __init__(self) -> None:
        self.collation: str = "utf8mb4_bin"
        self.packet: int = 2**24

    def learn(self, db: Db) -> None:
        """Ask for what depends on the server."""
        ((packet, version),) = db.rows("SELECT @@max_allowed_packet, VERSION()")
        # utf8mb4_bin takes 'a' and 'a ' for the same key; these do not.
        known = "utf8mb4_nopad_bin" if "maria" in str(version).lower() else "utf8mb4_0900_bin"
        self.collation, self.packet = known, int(packet)

    def one_of(self, column: str, name: str) -> str:
        return f"{column} IN :{name}"

    def insert(self, db: Db, jobs: Sequence[Job]) -> list[Job]:
        rows = [inserted(job) for job in jobs]
        self.check(rows)
        db.many(_MYSQL_INSERT, rows)
        return [job for job in jobs if job.key is not None]

    def update(self, db: Db, columns: tuple[str, ...], rows: Sequence[Values]) -> None:
        few = self.check(rows) < self.packet // 2
        start = 0
        while start < len(rows):  # in powers of two, or there would be too many statements
            count = 1 << min((len(rows) - start).bit_length() - 1, 6 if few else 0)
            part = rows[start : start + count]
            moving = tuple(c for c in columns if any(row[c] != part[0][c] for row in part))
            fixed = {c: part[0][c] for c in columns if c not in moving}
            each = {f"{c}_{i}": row[c] for i, row in enumerate(part) for c in ("seq", *moving)}
            db.run(_mysql_update(tuple(fixed), moving, count), **fixed, **each)
            start += count

    def check(self, rows: Sequence[Values]) -> int:
        """How many bytes they need. For a row too large the server would just hang up."""
        total = 0
        for row in rows:
            total += (size := sum(_escaped(row[name]) for name in _BLOBS & row.keys()))
            if size > self.packet - 2**16:
                raise StoreError(
                    f"a job needs a statement of {size:,} bytes, and the data store takes "
                    f"{self.packet:,}: raise max_allowed_packet of the server"
                )
        return total

    def upsert(self, conflict: str, changes: Sequence[str], *extra: str) -> str:
        del conflict
        moves = [*(f'"{name}" = VALUES("{name}")' for name in changes), *extra]
        return f"ON DUPLICATE KEY UPDATE {', '.join(moves)}"

    def create(self, version: int) -> list[str]:
        return sql_schema.mysql(version, self.collation)

    def make(self, db: Db, statement: str) -> None:
        """It commits by itself: whoever died before noting the version may have run it."""
        try:
            db.run(statement)
        except sa.exc.DBAPIError as error:
            if error.orig is None or error.orig.args[:1] != (_DUPLICATE_COLUMN,):
                raise


_MYSQL_INSERT = f"{insert('fp_jobs', INSERTED)} {MySql.untouched}"


@cache
def _mysql_update(fixed: tuple[str, ...], moving: tuple[str, ...], count: int) -> str:
    names = ("seq", *moving)
    rows = (", ".join(f':{name}_{i} AS "{name}"' for name in names) for i in range(count))
    moves = [f'j."{name}" = :{name}' for name in fixed]
    moves += [f'j."{name}" = v."{name}"' for name in moving]
    # In this order and by this index, or the server might lock every row on its way.
    return (
        f"UPDATE (SELECT {' UNION ALL SELECT '.join(rows)}) AS v STRAIGHT_JOIN fp_jobs AS j "
        f"FORCE INDEX (PRIMARY) ON j.seq = v.seq SET {', '.join(moves)}"
    )


def _escaped(value: bytes | None) -> int:
    if value is None or len(value) < 2**16:
        return len(value or b"")
    return len(value) + sum(value.count(mark) for mark in b"\0\n\r\x1a\"'\\")


Server = Postgres | MySql

# Rows ---------------------------------------------------------------------------------------


def inserted(job: Job) -> dict[str, Any]:
    """What is stored of a new job."""
    return {name: getattr(job, name) for name in INSERTED}


def insert_whole(db: Db, jobs: Sequence[Job]) -> None:
    """Insert jobs with all that they have. An id that is there already is an error."""
    rows = [msgspec.structs.asdict(job) for job in jobs]
    db.server.check(rows)
    db.many(_INSERT_WHOLE, rows)


def change(db: Db, changes: Iterable[tuple[int, Changes]]) -> None:
    """Write what rules have decided, in one statement for each set of columns."""
    groups: defaultdict[tuple[str, ...], list[Values]] = defaultdict(list)
    for seq, changed in changes:
        groups[tuple(changed)].append({**changed, "seq": seq})
    for columns, rows in groups.items():
        db.server.update(db, columns, rows)


_FLAGS = tuple(COLUMNS.index(name) for name in FLAGS)


def job(row: Row) -> Job:
    """A row of ALL, or of WITHOUT_BLOBS, as a Job."""
    values = list(row)
    for index in _FLAGS:
        values[index] = bool(values[index])
    return Job(*values)


def schedule(row: Row) -> Schedule:
    """A row of SCHEDULE as a Schedule."""
    values = dict(zip(_SCHEDULE_COLUMNS, row, strict=True))
    return Schedule(**{**values, "paused": bool(values["paused"])})


_INSERT_WHOLE = insert("fp_jobs", COLUMNS)
PUT_SCHEDULE = f"{insert('fp_schedules', _SCHEDULE_COLUMNS)} "
REPLACED = ("pipeline", "trigger", "policy", "template", "paused", "next_fire_time", "origin")


def scheduled(schedule: Schedule) -> dict[str, Any]:
    """The values for PUT_SCHEDULE."""
    return msgspec.structs.asdict(schedule)
