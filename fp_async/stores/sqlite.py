"""Jobs in a SQLite file, or in memory: the default, and what an agent keeps its jobs in.

Every verb is one unit of work (`units.py`). Leases are read by CLOCK_BOOTTIME: nothing sets it
back, and those of an earlier boot are over. One machine only: SQLite's locks do not hold on
network file systems.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from fp_async import rules
from fp_async.jobs import (
    CHUNK_TTL,
    LETTER_TTL,
    MISCONFIGURED,
    REPLY_TTL,
    Find,
    Fire,
    Job,
    Member,
    Report,
    Schedule,
)
from fp_async.stores import AFTER_HEX, SCHEMA_VERSION, IdColumn, claiming, reporting, tables
from fp_async.stores.sqlite_fleet import SqliteFleet
from fp_async.stores.tables import ALL, HELD_STATES, SCHEDULE, WITHOUT_BLOBS
from fp_async.stores.units import Units

if TYPE_CHECKING:
    from fp_async.stores.sqlite_transfer import SqliteTransfer

_Db = sqlite3.Connection


class SqliteStore:
    """The store contract (`stores`) on the file `path`, or in memory."""

    joins = True

    def __init__(self, path: Path | None, replaced: Callable[[], object] = lambda: None) -> None:
        self._units = Units(path, tables.check, tables.migrate, replaced)
        self.units: Units = self._units
        self.fleet: SqliteFleet = SqliteFleet(self._units)

    @property
    def shared(self) -> bool:
        return self._units.path is not None

    @property
    def path(self) -> Path | None:
        return self._units.path

    @property
    def transfer(self) -> SqliteTransfer:
        from fp_async.stores.sqlite_transfer import SqliteTransfer

        return SqliteTransfer(self._units)

    async def open(self) -> None:
        await self._units.open()

    async def close(self) -> None:
        await self._units.close()

    async def now(self) -> float:
        return time.time()

    # Jobs -----------------------------------------------------------------------------------

    async def add(self, jobs: Sequence[Job]) -> list[str]:
        return await self._units.together(_add, jobs)

    async def claim(
        self,
        owner: str,
        queues: Sequence[str],
        limit: int,
        lease: float,
        without: Sequence[str] = (),
    ) -> list[Job]:
        unit = partial(
            claiming.claim, owner=owner, queues=queues, limit=limit, lease=lease, without=without
        )
        return await self._units.write(unit)

    async def renew(self, owner: str, held: Sequence[tuple[str, int]], lease: float) -> list[str]:
        unit = partial(reporting.renew, owner=owner, held=held, lease=lease)
        return await self._units.write(unit)

    async def note(self, records: Sequence[tuple[str, int, bytes]]) -> None:
        rows = [(record, id, attempt) for id, attempt, record in records]
        sql = "UPDATE jobs SET record = ? WHERE id = ? AND attempt = ? AND state = 'running'"
        await self._units.write(lambda db: db.executemany(sql, rows).rowcount)

    async def finish(self, reports: Sequence[Report]) -> list[bool]:
        return await self._units.together(reporting.finish, reports)

    async def cancel(self, id: str, reason: str | None = None) -> str | None:
        return await self._units.write(partial(reporting.cancel, id=id, reason=reason))

    async def rescue(self, dead: Sequence[str] = ()) -> list[Job]:
        if not await self._units.read(partial(reporting.needs_rescue, dead=dead)):
            return []  # a look every two seconds must not cost a commit
        return await self._units.write(partial(reporting.rescue, dead=dead))

    async def owners(self) -> list[str]:
        sql = f"SELECT DISTINCT owner FROM jobs WHERE {HELD_STATES} AND owner IS NOT NULL"
        return [owner for (owner,) in await self._units.read(partial(_rows, sql=sql))]

    async def get(self, id: str) -> Job | None:
        sql = f"SELECT {ALL} FROM jobs WHERE id = ? AND pruned = 0"
        rows = await self._units.read(partial(_rows, sql=sql, values=(id,)))
        return tables.job(rows[0]) if rows else None

    async def find(self, query: Find) -> list[Job]:
        return await self._units.read(partial(_find, query=query))

    async def ids(
        self, beginnings: Sequence[str], limit: int = 2, *, of: IdColumn = "id"
    ) -> list[list[str]]:
        unit = partial(_ids, beginnings=beginnings, limit=limit, of=of)
        return await self._units.read(unit)

    async def counts(self) -> dict[tuple[str, str], int]:
        sql = "SELECT queue, state, count(*) FROM jobs WHERE pruned = 0 GROUP BY queue, state"
        rows = await self._units.read(partial(_rows, sql=sql))
        return {(queue, state): count for queue, state, count in rows}

    async def next_run_at(self, queues: Sequence[str], without: Sequence[str] = ()) -> float | None:
        unit = partial(claiming.next_run_at, queues=queues, without=without)
        return await self._units.read(unit)

    async def misconfigured(self) -> dict[tuple[str, str, str], int]:
        sql = (
            "SELECT queue, pipeline, reason, count(*) FROM jobs "
            f"WHERE state IN ('queued', 'accepted') AND reason LIKE '{MISCONFIGURED}%' "
            "GROUP BY queue, pipeline, reason"
        )
        rows = await self._units.read(partial(_rows, sql=sql))
        return {(queue, pipeline, reason): count for queue, pipeline, reason, count in rows}

    async def prune(self, limit: int = 1000) -> int:
        return await self._units.write(partial(_prune, limit=limit))

    # Schedules ------------------------------------------------------------------------------

    async def put(self, schedule: Schedule) -> Schedule:
        new = schedule if schedule.created_at else replace(schedule, created_at=time.time())
        values = tables.scheduled(new)
        unit = partial(_rows, sql=tables.PUT_SCHEDULE, values=values)
        return tables.schedule((await self._units.write(unit))[0])

    async def schedule(self, id: str) -> Schedule | None:
        sql = f"SELECT {SCHEDULE} FROM schedules WHERE id = ?"
        rows = await self._units.read(partial(_rows, sql=sql, values=(id,)))
        return tables.schedule(rows[0]) if rows else None

    async def schedules(self) -> list[Schedule]:
        sql = f"SELECT {SCHEDULE} FROM schedules ORDER BY id"
        return [tables.schedule(row) for row in await self._units.read(partial(_rows, sql=sql))]

    async def pause(
        self, id: str, *, paused: bool, next_fire_time: float | None = None
    ) -> Schedule | None:
        sql = (
            "UPDATE schedules SET paused = ?, next_fire_time = ?, revision = revision + 1 "
            f"WHERE id = ? RETURNING {SCHEDULE}"
        )
        unit = partial(_rows, sql=sql, values=(paused, next_fire_time, id))
        rows = await self._units.write(unit)
        return tables.schedule(rows[0]) if rows else None

    async def delete(self, id: str) -> bool:
        sql = "DELETE FROM schedules WHERE id = ? RETURNING id"
        return bool(await self._units.write(partial(_rows, sql=sql, values=(id,))))

    async def due(self, until: float, limit: int = 500) -> list[Schedule]:
        sql = (
            f"SELECT {SCHEDULE} FROM schedules WHERE paused = 0 AND next_fire_time <= ? "
            "ORDER BY next_fire_time LIMIT ?"
        )
        rows = await self._units.read(partial(_rows, sql=sql, values=(until, limit)))
        return [tables.schedule(row) for row in rows]

    async def next_due(self) -> float | None:
        sql = (
            "SELECT min(next_fire_time) FROM schedules "
            "WHERE paused = 0 AND next_fire_time IS NOT NULL"
        )
        value: float | None = (await self._units.read(partial(_rows, sql=sql)))[0][0]
        return value

    async def fire(self, fires: Sequence[Fire]) -> list[list[str] | None]:
        return await self._units.write(partial(_fire, fires=fires))

    # Members --------------------------------------------------------------------------------

    async def saw(self, member: Member, seconds: float) -> None:
        now = time.time()
        who = (member.kind, member.name)
        sql = "DELETE FROM members WHERE kind = ? AND name = ?"
        values: tuple[object, ...] = who
        if seconds > 0:
            sql = "INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?)"
            values = (*who, member.info, now, now + seconds)
        await self._units.write(partial(_rows, sql=sql, values=values))

    async def members(self, kind: str) -> list[Member]:
        sql = "SELECT * FROM members WHERE kind = ? AND until > ? ORDER BY name"
        rows = await self._units.read(partial(_rows, sql=sql, values=(kind, time.time())))
        return [
            Member(kind=kind, name=name, info=info, seen_at=seen_at, until=until)
            for kind, name, info, seen_at, until in rows
        ]

    # Housekeeping ---------------------------------------------------------------------------

    async def info(self) -> dict[str, Any]:
        path = self._units.path
        rows = await self._units.read(_sizes)
        return {
            "type": "memory" if path is None else "sqlite",
            "place": str(path or "this process"),
            "schema": SCHEMA_VERSION,
            "server": f"SQLite {sqlite3.sqlite_version}",
            **rows,
        }

    async def vacuum(self) -> None:
        def unit(db: _Db) -> None:
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

        await self._units.alone(unit)


# Units of work ------------------------------------------------------------------------------


def _rows(db: _Db, *, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
    return db.execute(sql, values).fetchall()


def _add(db: _Db, jobs: Sequence[Job], now: float | None = None) -> list[str]:
    now = now or time.time()
    return [id for part in reporting.parts(jobs) for id in _add_part(db, part, now)]


def _add_part(db: _Db, new: Sequence[Job], now: float) -> list[str]:
    rows = [rules.added(job, now) for job in new]
    values = [value for row in rows for value in tables.inserted(row)]
    if db.execute(tables.insert_jobs(len(rows)), values).rowcount == len(rows):
        return [job.id for job in rows]
    return [_id_of(db, job) for job in rows]


def _id_of(db: _Db, job: Job) -> str:
    """The id under which a job is stored: its own, or that of the one that bears its key."""
    if job.key is None:
        return job.id
    own = "SELECT id FROM jobs WHERE id = ?"
    if db.execute(own, (job.id,)).fetchone() is not None:
        return job.id
    (id,) = db.execute("SELECT id FROM jobs WHERE active_key = ?", (job.key,)).fetchone()
    return str(id)


def _find(db: _Db, *, query: Find) -> list[Job]:
    """Made to jobs here, on the thread: it may be a hundred thousand."""
    sql, values = _query(query)
    return [tables.job(row) for row in db.execute(sql, values)]


def _query(query: Find) -> tuple[str, tuple[object, ...]]:
    terms, values = ["pruned = 0"], list[object]()
    if query.states:
        terms.append(f"state IN ({', '.join('?' * len(query.states))})")
        values += query.states
    for name in ("pipeline", "queue", "schedule_id", "group_id", "owner", "agent"):
        if getattr(query, name) is not None:
            terms.append(f"{name} = ?")
            values.append(getattr(query, name))
    if query.bound:
        terms.append("agent IS NOT NULL")
    if query.since is not None:
        terms.append("created_at >= ?")
        values.append(query.since)
    where = " AND ".join(terms)
    sql = f"SELECT {WITHOUT_BLOBS} FROM jobs WHERE {where} ORDER BY seq DESC LIMIT ?"
    return sql, (*values, query.limit)


def _ids(db: _Db, *, beginnings: Sequence[str], limit: int, of: IdColumn) -> list[list[str]]:
    sql = (
        f"SELECT DISTINCT {of} FROM jobs WHERE {of} >= ? AND {of} < ? AND pruned = 0 "
        f"ORDER BY {of} LIMIT ?"
    )
    ranges = [(text, text + AFTER_HEX, limit) for text in beginnings]
    return [[id for (id,) in db.execute(sql, values)] for values in ranges]


def _prune(db: _Db, *, limit: int) -> int:
    now = time.time()
    db.execute("DELETE FROM letters WHERE at <= ?", (now - LETTER_TTL,))
    db.execute("DELETE FROM chunks WHERE at <= ?", (now - CHUNK_TTL,))
    sql = (
        "SELECT id, identity, pruned FROM jobs WHERE prune_at <= ? AND unreported = 0 "
        "AND (reply_to IS NULL OR replied_at IS NOT NULL OR prune_at <= ?) LIMIT ?"
    )
    rows = db.execute(sql, (now, now - REPLY_TTL, limit)).fetchall()
    for id, has_identity, was_pruned in rows:
        if has_identity and not was_pruned:
            tables.change(db, id, rules.pruned(now))
        else:
            db.execute("DELETE FROM jobs WHERE id = ?", (id,))
    return len(rows)


def _fire(db: _Db, *, fires: Sequence[Fire]) -> list[list[str] | None]:
    now = time.time()
    return [_fire_one(db, fire, now) for fire in fires]


def _fire_one(db: _Db, fire: Fire, now: float) -> list[str] | None:
    sql = f"SELECT {SCHEDULE} FROM schedules WHERE id = ?"
    found = db.execute(sql, (fire.id,)).fetchone()
    if found is None or not rules.may_fire(before := tables.schedule(found), fire):
        return None
    ids = _add(db, fire.jobs, now)
    added = [id for id, job in zip(ids, fire.jobs, strict=True) if id == job.id]
    skipped = fire.skipped + len(fire.jobs) - len(added)
    after = rules.fired(before, fire)
    db.execute(
        "UPDATE schedules SET next_fire_time = ?, last_fire_time = ?, fired = fired + ?, "
        "skipped = skipped + ? WHERE id = ?",
        (after.next_fire_time, after.last_fire_time, len(added), skipped, fire.id),
    )
    return added


def _sizes(db: _Db) -> dict[str, Any]:
    pages, size = (db.execute(f"PRAGMA {n}").fetchone()[0] for n in ("page_count", "page_size"))
    free = db.execute("PRAGMA freelist_count").fetchone()[0]
    counts = {
        table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        for table in ("jobs", "schedules", "members")
    }
    return {"bytes": pages * size, "free_bytes": free * size, **counts}
