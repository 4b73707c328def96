"""The tables of the SQLite store, by schema version, and its statements."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from functools import cache

from fp_async.errors import StoreError
from fp_async.jobs import CHANGING, COLUMNS, FLAGS, LIGHT, Changes, Job, Schedule
from fp_async.lifecycle import STATES
from fp_async.stores import SCHEMA_VERSION

_STATES = ", ".join(f"'{state}'" for state in STATES)

# What each version adds to the one before. Never edit one that was released: add the next.
MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        f"""CREATE TABLE jobs (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            pipeline TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ({_STATES})),
            reason TEXT,
            queue TEXT NOT NULL,
            priority INTEGER NOT NULL,
            target TEXT,
            agent TEXT,
            group_id TEXT,
            created_at REAL NOT NULL,
            run_at REAL NOT NULL,
            expires_at REAL,
            started_at REAL,
            ended_at REAL,
            prune_at REAL,
            attempt INTEGER NOT NULL DEFAULT 0,
            errors INTEGER NOT NULL DEFAULT 0,
            crashes INTEGER NOT NULL DEFAULT 0,
            owner TEXT,
            lease_until REAL,
            cancel_at REAL,
            key TEXT,
            active_key TEXT,
            concurrency INTEGER,
            slot TEXT,
            lane TEXT,
            lane_held TEXT,
            schedule_id TEXT,
            nominal_at REAL,
            retried_from TEXT,
            identity INTEGER NOT NULL DEFAULT 0,
            pruned INTEGER NOT NULL DEFAULT 0,
            result_ttl REAL NOT NULL,
            spec BLOB NOT NULL,
            error BLOB,
            inputs BLOB NOT NULL,
            result BLOB,
            record BLOB
        ) STRICT""",
        "CREATE UNIQUE INDEX jobs_active_key ON jobs (active_key) WHERE active_key IS NOT NULL",
        "CREATE UNIQUE INDEX jobs_slot ON jobs (slot) WHERE slot IS NOT NULL",
        "CREATE UNIQUE INDEX jobs_lane_held ON jobs (lane_held) WHERE lane_held IS NOT NULL",
        """CREATE INDEX jobs_queued ON jobs (queue, priority DESC, run_at)
            WHERE state = 'queued' AND target IS NULL""",
        """CREATE INDEX jobs_held ON jobs (state)
            WHERE state IN ('offered', 'accepted', 'running')""",
        """CREATE INDEX jobs_expires ON jobs (expires_at)
            WHERE expires_at IS NOT NULL AND state = 'queued'""",
        "CREATE INDEX jobs_prune ON jobs (prune_at) WHERE prune_at IS NOT NULL",
        "CREATE INDEX jobs_schedule ON jobs (schedule_id) WHERE schedule_id IS NOT NULL",
        "CREATE INDEX jobs_group ON jobs (group_id) WHERE group_id IS NOT NULL",
        """CREATE TABLE schedules (
            id TEXT PRIMARY KEY,
            pipeline TEXT NOT NULL,
            "trigger" BLOB NOT NULL,
            policy BLOB NOT NULL,
            template BLOB NOT NULL,
            paused INTEGER NOT NULL,
            next_fire_time REAL,
            last_fire_time REAL,
            fired INTEGER NOT NULL,
            skipped INTEGER NOT NULL,
            revision INTEGER NOT NULL,
            created_at REAL NOT NULL,
            origin TEXT NOT NULL
        ) STRICT, WITHOUT ROWID""",
        """CREATE INDEX schedules_due ON schedules (next_fire_time)
            WHERE next_fire_time IS NOT NULL AND paused = 0""",
        """CREATE TABLE members (
            kind TEXT NOT NULL,
            name TEXT NOT NULL,
            info BLOB NOT NULL,
            seen_at REAL NOT NULL,
            until REAL NOT NULL,
            PRIMARY KEY (kind, name)
        ) STRICT, WITHOUT ROWID""",
    ),
    2: (
        "ALTER TABLE jobs ADD COLUMN offer INTEGER",
        "ALTER TABLE jobs ADD COLUMN unreported INTEGER NOT NULL DEFAULT 0",
        'ALTER TABLE jobs ADD COLUMN "trigger" TEXT',
        "ALTER TABLE jobs ADD COLUMN reply_to TEXT",
        "ALTER TABLE jobs ADD COLUMN correlation BLOB",
        "ALTER TABLE jobs ADD COLUMN replied_at REAL",
        """CREATE INDEX jobs_wanted ON jobs (target, run_at)
            WHERE state = 'queued' AND target IS NOT NULL""",
        """CREATE INDEX jobs_waiting ON jobs (target, priority DESC, run_at)
            WHERE state = 'queued' AND target IS NOT NULL""",
        """CREATE INDEX jobs_unreplied ON jobs (ended_at)
            WHERE reply_to IS NOT NULL AND replied_at IS NULL""",
        "CREATE INDEX jobs_unreported ON jobs (ended_at) WHERE unreported = 1",
        """CREATE TABLE letters (
            id TEXT NOT NULL UNIQUE,
            topic TEXT NOT NULL,
            reason TEXT NOT NULL,
            payload BLOB NOT NULL,
            at REAL NOT NULL
        ) STRICT""",
        "CREATE INDEX letters_at ON letters (at)",
        """CREATE TABLE chunks (
            id TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            "index" INTEGER NOT NULL,
            data BLOB NOT NULL,
            at REAL NOT NULL,
            PRIMARY KEY (id, attempt, "index")
        ) STRICT""",
        "CREATE INDEX chunks_at ON chunks (at)",
        "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
    ),
}

_SCHEDULE_COLUMNS = Schedule.__struct_fields__
_INSERTED = (*(name for name in COLUMNS if name not in CHANGING), "state")
ALL = ", ".join(f'"{name}"' for name in COLUMNS)
WITHOUT_BLOBS = ", ".join(f'"{name}"' for name in LIGHT)
SCHEDULE = ", ".join(f'"{name}"' for name in _SCHEDULE_COLUMNS)


@cache
def insert_jobs(count: int) -> str:
    """The statement that inserts so many jobs, but for those that are there already."""
    row = f"({', '.join('?' * (len(_INSERTED) + 1))})"
    names = ", ".join(f'"{name}"' for name in (*_INSERTED, "active_key"))
    return f"INSERT INTO jobs ({names}) VALUES {', '.join([row] * count)} ON CONFLICT DO NOTHING"


@cache
def succeed(count: int) -> str:
    """The statement by which so many running jobs succeed; what it sets is `rules.ended`."""
    rows = ", ".join(["(?, ?, ?, ?)"] * count)
    return (
        f"WITH report (id, result, record, reason) AS (VALUES {rows}) "
        "UPDATE jobs SET state = 'succeeded', result = report.result, record = report.record, "
        "reason = report.reason, error = NULL, ended_at = ?, prune_at = ? + result_ttl, "
        "active_key = NULL, owner = NULL, lease_until = NULL, slot = NULL, lane_held = NULL "
        "FROM report WHERE jobs.id = report.id"
    )


INSERT_WHOLE = (
    f"INSERT INTO jobs ({ALL}) VALUES ({', '.join('?' * len(COLUMNS))}) ON CONFLICT DO NOTHING"
)
PUT_SCHEDULE = f"""INSERT INTO schedules ({SCHEDULE})
    VALUES ({", ".join("?" * len(_SCHEDULE_COLUMNS))})
    ON CONFLICT (id) DO UPDATE SET pipeline = excluded.pipeline, "trigger" = excluded."trigger",
    policy = excluded.policy, template = excluded.template, paused = excluded.paused,
    next_fire_time = excluded.next_fire_time, origin = excluded.origin,
    revision = schedules.revision + 1
    RETURNING {SCHEDULE}"""
QUEUED = "state = 'queued' AND target IS NULL AND queue = ?"
HELD_STATES = "state IN ('offered', 'accepted', 'running')"


def inserted(job: Job) -> tuple[object, ...]:
    """The values of one row of `insert_jobs`."""
    return (*(getattr(job, name) for name in _INSERTED), job.active_key)


def whole(job: Job) -> tuple[object, ...]:
    """The values of INSERT_WHOLE."""
    return tuple(getattr(job, name) for name in COLUMNS)


def scheduled(schedule: Schedule) -> tuple[object, ...]:
    """The values for PUT_SCHEDULE."""
    return tuple(getattr(schedule, name) for name in _SCHEDULE_COLUMNS)


@cache
def update(columns: tuple[str, ...]) -> str:
    """The statement that changes these columns of the job with an id."""
    moves = ", ".join(f'"{name}" = ?' for name in columns)
    return f"UPDATE jobs SET {moves} WHERE id = ?"


def change(db: sqlite3.Connection, id: str, changes: Changes) -> None:
    """Write what a rule has decided."""
    db.execute(update(tuple(changes)), (*changes.values(), id))


def change_all(db: sqlite3.Connection, changes: Mapping[str, Changes]) -> None:
    """As `change` for many jobs by id: one statement for all that change alike."""
    alike: dict[tuple[str, ...], list[tuple[object, ...]]] = {}
    for id, each in changes.items():
        alike.setdefault(tuple(each), []).append((*each.values(), id))
    for columns, rows in alike.items():
        db.executemany(update(columns), rows)


_FLAGS = tuple(COLUMNS.index(name) for name in FLAGS)


def job(row: tuple[object, ...]) -> Job:
    """A row of ALL, or of WITHOUT_BLOBS, as a Job."""
    values = list(row)
    for index in _FLAGS:
        values[index] = bool(values[index])
    return Job(*values)  # type: ignore[arg-type]


def schedule(row: tuple[object, ...]) -> Schedule:
    """A row of SCHEDULE as a Schedule."""
    values = dict(zip(_SCHEDULE_COLUMNS, row, strict=True))
    return Schedule(**{**values, "paused": bool(values["paused"])})  # type: ignore[arg-type]


def check(db: sqlite3.Connection) -> None:
    """Raises StoreError where the file is another program's, before anything is done to it."""
    db.execute("BEGIN")  # both are seen at one moment: somebody may just be making the tables
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        foreign = version == 0 and db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
    finally:
        db.execute("ROLLBACK")
    if foreign:
        raise StoreError("the file is a SQLite database of something else; choose another path")


def migrate(db: sqlite3.Connection) -> None:
    """Bring the tables to this version. Raises StoreError where they are newer."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"the data store has schema version {version}, this program knows {SCHEMA_VERSION}: "
            "it was used by a newer flowerpower; upgrade this one"
        )
    for number in range(version + 1, SCHEMA_VERSION + 1):
        for statement in MIGRATIONS[number]:
            db.execute(statement)
    if version < SCHEMA_VERSION:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION:d}")
