"""The tables of the SQL stores, by schema version: what each adds to the one before.

Never edit a version that was released: add the next. On PostgreSQL a version is made in one
transaction. MySQL commits each statement by itself, so there each can be run again.
"""

from __future__ import annotations

from fp_async.lifecycle import STATES

_STATES = ", ".join(f"'{state}'" for state in STATES)
_REAL = "DOUBLE PRECISION"
_LONGEST_NAME = 255  # of a name on MySQL, in characters: its indexes hold 3,072 bytes

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
_LETTERS = """CREATE TABLE IF NOT EXISTS fp_letters (
    seq {serial} PRIMARY KEY,
    id {name} NOT NULL,
    topic {text} NOT NULL, reason {text} NOT NULL, payload {blob} NOT NULL,
    "at" {real} NOT NULL,
    UNIQUE (id){letter_indexes}
){options}"""
_CHUNKS = """CREATE TABLE IF NOT EXISTS fp_chunks (
    id {name} NOT NULL, attempt BIGINT NOT NULL, "index" BIGINT NOT NULL,
    data {blob} NOT NULL,
    "at" {real} NOT NULL,
    PRIMARY KEY (id, attempt, "index"){chunk_indexes}
){options}"""
_JOBS_2 = """ALTER TABLE fp_jobs
    ADD COLUMN offer BIGINT,
    ADD COLUMN unreported BOOLEAN NOT NULL DEFAULT FALSE,
    ADD COLUMN "trigger" {name},
    ADD COLUMN reply_to {text},
    ADD COLUMN correlation {blob},
    ADD COLUMN replied_at {real}{indexes}"""
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
_POSTGRES_INDEXES_2 = (
    """CREATE INDEX fp_jobs_wanted ON fp_jobs (target, run_at)
        WHERE state = 'queued' AND target IS NOT NULL""",
    """CREATE INDEX fp_jobs_unreplied ON fp_jobs (ended_at)
        WHERE reply_to IS NOT NULL AND replied_at IS NULL""",
    """CREATE INDEX fp_jobs_placed ON fp_jobs (queue) WHERE state = 'queued'
        AND target IS NULL AND (concurrency IS NOT NULL OR lane IS NOT NULL)""",
    'CREATE INDEX fp_letters_at ON fp_letters ("at")',
    'CREATE INDEX fp_chunks_at ON fp_chunks ("at")',
)
# What a partial index leaves out is NULL here. Stored, because indexes on columns that are not
# have broken tables of MariaDB.
_MYSQL_INDEXES_2 = """,
    ADD COLUMN wanted {name} AS (CASE WHEN state = 'queued' THEN target END) STORED,
    ADD COLUMN unreplied {real} AS (
        CASE WHEN reply_to IS NOT NULL AND replied_at IS NULL THEN ended_at END) STORED,
    ADD KEY fp_jobs_wanted (wanted, run_at),
    ADD KEY fp_jobs_unreplied (unreplied)"""


def postgres(version: int) -> list[str]:
    """The statements of a version for PostgreSQL."""
    name = 'TEXT COLLATE "C"'
    types = {"serial": "BIGINT GENERATED ALWAYS AS IDENTITY", "blob": "BYTEA", "real": _REAL}
    types |= {"name": name, "long_name": name, "word": name, "text": "TEXT"}
    own = ("indexes", "schedule_indexes", "letter_indexes", "chunk_indexes", "options")
    types |= dict.fromkeys(own, "")
    if version == 2:
        made = [table.format(**types) for table in (_LETTERS, _CHUNKS, _JOBS_2)]
        return [*made, *_POSTGRES_INDEXES_2]
    # Rows are changed often, and soon after one another: leave room, and clean up early.
    often = " WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05)"
    jobs = _JOBS.format(**{**types, "options": often})
    return [jobs, _SCHEDULES.format(**types), _MEMBERS.format(**types), *_POSTGRES_INDEXES]


def mysql(version: int, collation: str) -> list[str]:
    """The statements of a version for MySQL and MariaDB."""
    name = f"VARCHAR({_LONGEST_NAME})"
    types = {
        "serial": "BIGINT AUTO_INCREMENT",
        "blob": "LONGBLOB",
        "text": "TEXT",
        "real": _REAL,
        "name": name,
        "word": "VARCHAR(16)",
        "long_name": f"VARCHAR({_LONGEST_NAME + 16})",
        "schedule_indexes": ",\n    KEY fp_schedules_due (paused, next_fire_time)",
        "letter_indexes": ',\n    KEY fp_letters_at ("at")',
        "chunk_indexes": ',\n    KEY fp_chunks_at ("at")',
        "options": f" ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE={collation}",
    }
    if version == 2:
        indexes = _MYSQL_INDEXES_2.format(**types)
        return [t.format(**types, indexes=indexes) for t in (_LETTERS, _CHUNKS, _JOBS_2)]
    return [t.format(**types, indexes=_MYSQL_INDEXES) for t in (_JOBS, _SCHEDULES, _MEMBERS)]
