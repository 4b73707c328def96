"""The tables of the SQL stores, their rows, and in what PostgreSQL and MySQL differ.

Statements are text with `:names`; a name that begins with `each_` is a list. Double quotes quote
names on both, because every MySQL connection is in ANSI_QUOTES mode.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa

from fp_async.errors import StoreError
from fp_async.jobs import CHANGING, COLUMNS, FLAGS, LIGHT, Changes, Job, Schedule
from fp_async.lifecycle import STATES

Values = Mapping[str, Any]
Row = Sequence[Any]

_BLOBS = {"spec", "error", "inputs", "result", "record"}
_INTEGERS = {"seq", "priority", "attempt", "errors", "crashes", "concurrency"}
_REALS = {
    *("created_at", "run_at", "expires_at", "started_at", "ended_at", "prune_at"),
    *("lease_until", "cancel_at", "nominal_at", "result_ttl"),
}
_REAL = "DOUBLE PRECISION"
_STATES = ", ".join(f"'{state}'" for state in STATES)
_LONGEST_NAME = 255  # of a name on MySQL, in characters: its indexes hold 3,072 bytes
_STATEMENT_BYTES = 16 * 2**20  # about what one PostgreSQL statement carries at most

# What each version adds to the one before. Never edit one that was released: add the next.
_JOBS = f"""CREATE TABLE IF NOT EXISTS fp_jobs (
    seq {{serial}} PRIMARY KEY,
    id {{name}} NOT NULL,
    pipeline {{name}} NOT NULL,
    state {{word}} NOT NULL CHECK (state IN ({_STATES})),
    reason {{text}},
    queue {{name}} NOT NULL,
    priority BIGINT NOT NULL,
    target {{name}}, agent {{name}}, group_id {{name}},
    created_at {{real}} NOT NULL, run_at {{real}} NOT NULL, expires_at {{real}},
    started_at {{real}}, ended_at {{real}}, prune_at {{real}},
    attempt BIGINT NOT NULL DEFAULT 0,
    errors BIGINT NOT NULL DEFAULT 0,
    crashes BIGINT NOT NULL DEFAULT 0,
    owner {{name}}, lease_until {{real}}, cancel_at {{real}},
    "key" {{name}}, active_key {{name}},
    concurrency BIGINT, slot {{long_name}},
    lane {{name}}, lane_held {{name}},
    schedule_id {{name}}, nominal_at {{real}},
    retried_from {{name}},
    "identity" BOOLEAN NOT NULL DEFAULT FALSE,
    pruned BOOLEAN NOT NULL DEFAULT FALSE,
    result_ttl {{real}} NOT NULL,
    spec {{blob}} NOT NULL, error {{blob}},
    inputs {{blob}} NOT NULL, result {{blob}}, record {{blob}},
    UNIQUE (id){{indexes}}
){{options}}"""
_SCHEDULES = """CREATE TABLE IF NOT EXISTS fp_schedules (
    id {name} NOT NULL PRIMARY KEY,
    pipeline {name} NOT NULL,
    "trigger" {blob} NOT NULL, policy {blob} NOT NULL, template {blob} NOT NULL,
    paused BOOLEAN NOT NULL,
    next_fire_time {real}, last_fire_time {real},
    fired BIGINT NOT NULL, skipped BIGINT NOT NULL, revision BIGINT NOT NULL,
    created_at {real} NOT NULL,
    origin {name} NOT NULL{schedule_indexes}
){options}"""
_MEMBERS = """CREATE TABLE IF NOT EXISTS fp_members (
    kind {name} NOT NULL, name {name} NOT NULL,
    info {blob} NOT NULL,
    seen_at {real} NOT NULL, until {real} NOT NULL,
    PRIMARY KEY (kind, name)
){options}"""
_POSTGRES_INDEXES = (
    "CREATE UNIQUE INDEX fp_jobs_active_key ON fp_jobs (active_key) WHERE active_key IS NOT NULL",
    "CREATE UNIQUE INDEX fp_jobs_slot ON fp_jobs (slot) WHERE slot IS NOT NULL",
    "CREATE UNIQUE INDEX fp_jobs_lane_held ON fp_jobs (lane_held) WHERE lane_held IS NOT NULL",
    """CREATE INDEX fp_jobs_queued ON fp_jobs (queue, priority, run_at, seq)
        WHERE state = 'queued' AND target IS NULL""",
    """CREATE INDEX fp_jobs_held ON fp_jobs (state)
        WHERE state IN ('offered', 'accepted', 'running')""",
    """CREATE INDEX fp_jobs_expires ON fp_jobs (expires_at)
        WHERE expires_at IS NOT NULL AND state = 'queued'""",
    "CREATE INDEX fp_jobs_prune ON fp_jobs (prune_at) WHERE prune_at IS NOT NULL",
    "CREATE INDEX fp_jobs_schedule ON fp_jobs (schedule_id) WHERE schedule_id IS NOT NULL",
    "CREATE INDEX fp_jobs_group ON fp_jobs (group_id) WHERE group_id IS NOT NULL",
    """CREATE INDEX fp_schedules_due ON fp_schedules (next_fire_time)
        WHERE next_fire_time IS NOT NULL AND NOT paused""",
)
_MYSQL_INDEXES = """,
    UNIQUE KEY fp_jobs_active_key (active_key),
    UNIQUE KEY fp_jobs_slot (slot),
    UNIQUE KEY fp_jobs_lane_held (lane_held),
    KEY fp_jobs_queued (state, target, queue, priority, run_at),
    KEY fp_jobs_expires (expires_at),
    KEY fp_jobs_prune (prune_at),
    KEY fp_jobs_schedule (schedule_id),
    KEY fp_jobs_group (group_id)"""

_SCHEDULE_COLUMNS = Schedule.__struct_fields__
_INSERTED = (*(name for name in COLUMNS if name not in CHANGING), "state")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


ALL = _quoted(COLUMNS)
WITHOUT_BLOBS = _quoted(LIGHT)
SCHEDULE = _quoted(_SCHEDULE_COLUMNS)
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
    lists = [name for name in clause._bindparams if name.startswith("each_")]
    return clause.bindparams(*(sa.bindparam(name, expanding=True) for name in lists))


class Postgres:
    """PostgreSQL takes a whole list as one value, so that no statement depends on its length."""

    kind = "postgres"
    clock = "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
    queued = "fp_jobs"
    here = "current_schema()"
    version = "SELECT 'PostgreSQL ' || current_setting('server_version')"
    size = "SELECT pg_total_relation_size(CAST(:table AS regclass))"
    clean = "VACUUM (ANALYZE) {table}"
    lock = "SELECT pg_advisory_xact_lock(728364519)"
    unlock = "SELECT 1"  # the end of the transaction does it

    def one_of(self, column: str, name: str) -> str:
        """A condition: the column is in the list `:name`."""
        return f"{column} = ANY(CAST(:{name} AS text[]))"

    def insert(self, db: Db, jobs: Sequence[Job]) -> list[Job]:
        """Insert what is new; those jobs of which something may have been there already."""
        done: set[str] = set()
        for part in _parts([inserted(job) for job in jobs]):
            found = db.rows(_POSTGRES_INSERT, **_lists(_INSERTED, part))
            done.update(id for (id,) in found)
        return [] if len(done) == len(jobs) else [job for job in jobs if job.id not in done]

    def update(self, db: Db, columns: tuple[str, ...], rows: Sequence[Values]) -> None:
        """Set the columns of the jobs with these `seq`."""
        for part in _parts(rows):
            db.run(_postgres_update(columns), **_lists((*columns, "seq"), part))

    def upsert(self, conflict: str, changes: Sequence[str], *extra: str) -> str:
        """The tail of an INSERT that replaces these columns of the row with the same key."""
        moves = [*(f'"{name}" = excluded."{name}"' for name in changes), *extra]
        return f"ON CONFLICT ({conflict}) DO UPDATE SET {', '.join(moves)}"

    def create(self, version: int) -> list[str]:
        assert version == 1
        name = 'TEXT COLLATE "C"'
        types = {"serial": "BIGINT GENERATED ALWAYS AS IDENTITY", "blob": "BYTEA", "real": _REAL}
        names = {"name": name, "long_name": name, "word": name, "text": "TEXT"}
        kept = {"indexes": "", "schedule_indexes": "", "options": ""}
        # Rows are changed often, and soon after one another: leave room, and clean up early.
        often = " WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05)"
        jobs = _JOBS.format(**types, **names, **{**kept, "options": often})
        rest = (table.format(**types, **names, **kept) for table in (_SCHEDULES, _MEMBERS))
        return [jobs, *rest, *_POSTGRES_INDEXES]


def _array(column: str) -> str:
    if column in _REALS:
        return "double precision[]"
    if column in _INTEGERS:
        return "bigint[]"
    return "boolean[]" if column in FLAGS else "bytea[]" if column in _BLOBS else "text[]"


def _unnested(columns: Iterable[str]) -> str:
    return f"unnest({', '.join(f'CAST(:{name} AS {_array(name)})' for name in columns)})"


_POSTGRES_INSERT = (
    f"INSERT INTO fp_jobs ({_quoted(_INSERTED)}) SELECT * FROM {_unnested(_INSERTED)} "
    "ON CONFLICT DO NOTHING RETURNING id"
)


@cache
def _postgres_update(columns: tuple[str, ...]) -> str:
    moves = ", ".join(f'"{name}" = v."{name}"' for name in columns)
    given = (*columns, "seq")
    source = f"{_unnested(given)} AS v({_quoted(given)})"
    return f"UPDATE fp_jobs AS j SET {moves} FROM {source} WHERE j.seq = v.seq"


def _lists(columns: Iterable[str], rows: Sequence[Values]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in columns}


def _parts(rows: Sequence[Values]) -> Iterable[Sequence[Values]]:
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

    def __init__(self) -> None:
        self.collation = "utf8mb4_bin"
        self.packet = 2**24

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
        self._check(rows)
        db.many(_MYSQL_INSERT, rows)
        return [job for job in jobs if job.key is not None]

    def update(self, db: Db, columns: tuple[str, ...], rows: Sequence[Values]) -> None:
        few = self._check(rows) < self.packet // 2
        start = 0
        while start < len(rows):  # in powers of two, or there would be too many statements
            count = 1 << min((len(rows) - start).bit_length() - 1, 6 if few else 0)
            part = rows[start : start + count]
            moving = tuple(c for c in columns if any(row[c] != part[0][c] for row in part))
            fixed = {c: part[0][c] for c in columns if c not in moving}
            each = {f"{c}_{i}": row[c] for i, row in enumerate(part) for c in ("seq", *moving)}
            db.run(_mysql_update(tuple(fixed), moving, count), **fixed, **each)
            start += count

    def _check(self, rows: Sequence[Values]) -> int:
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
        assert version == 1
        name = f"VARCHAR({_LONGEST_NAME})"
        types = {
            "serial": "BIGINT AUTO_INCREMENT",
            "blob": "LONGBLOB",
            "text": "TEXT",
            "real": _REAL,
            "name": name,
            "word": "VARCHAR(16)",
            "long_name": f"VARCHAR({_LONGEST_NAME + 16})",
            "indexes": _MYSQL_INDEXES,
            "schedule_indexes": ",\n    KEY fp_schedules_due (paused, next_fire_time)",
            "options": f" ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE={self.collation}",
        }
        return [table.format(**types) for table in (_JOBS, _SCHEDULES, _MEMBERS)]


# INSERT IGNORE would swallow other errors too.
_MYSQL_INSERT = (
    f"INSERT INTO fp_jobs ({_quoted(_INSERTED)}) "
    f"VALUES ({', '.join(f':{name}' for name in _INSERTED)}) "
    'ON DUPLICATE KEY UPDATE "id" = "id"'
)


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
    return {name: getattr(job, name) for name in _INSERTED}


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


PUT_SCHEDULE = (
    f"INSERT INTO fp_schedules ({SCHEDULE}) "
    f"VALUES ({', '.join(f':{name}' for name in _SCHEDULE_COLUMNS)}) "
)
REPLACED = ("pipeline", "trigger", "policy", "template", "paused", "next_fire_time", "origin")


def scheduled(schedule: Schedule) -> dict[str, Any]:
    """The values for PUT_SCHEDULE."""
    return msgspec.structs.asdict(schedule)
