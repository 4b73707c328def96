"""Jobs in a SQLite file, or in memory: the default, and what an agent keeps its jobs in.

Every verb is one unit of work (`units.py`). Leases are read by CLOCK_BOOTTIME: nothing sets it
back, and those of an earlier boot are over. One machine only: SQLite's locks do not hold on
network file systems.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fp_async import processes, rules
from fp_async.jobs import CANCEL_DEADLINE, Find, Fire, Job, Member, Report, Schedule
from fp_async.stores import CANCEL, HELD, LOST, SCHEMA_VERSION, claiming, tables
from fp_async.stores.tables import ALL, HELD_STATES, SCHEDULE, WITHOUT_BLOBS
from fp_async.stores.units import Units

_Db = sqlite3.Connection
_AT_ONCE = 500  # rows in one statement


class SqliteStore:
    """The store contract (`stores`) on the file `path`, or in memory."""

    def __init__(self, path: Path | None) -> None:
        self._units = Units(path, tables.check)

    @property
    def shared(self) -> bool:
        return self._units.path is not None

    async def open(self) -> None:
        await self._units.open()
        try:
            await self._units.write(tables.migrate)
        except BaseException:
            await self._units.close()
            raise

    async def close(self) -> None:
        await self._units.close()

    async def now(self) -> float:
        return time.time()

    # Jobs -----------------------------------------------------------------------------------

    async def add(self, jobs: Sequence[Job]) -> list[str]:
        return await self._units.together(_add, jobs)

    async def claim(self, owner: str, queues: Sequence[str], limit: int, lease: float) -> list[Job]:
        unit = partial(claiming.claim, owner=owner, queues=queues, limit=limit, lease=lease)
        return await self._units.write(unit)

    async def renew(self, owner: str, held: Sequence[tuple[str, int]], lease: float) -> list[str]:
        unit = partial(_renew, owner=owner, held=held, lease=lease)
        return await self._units.write(unit)

    async def note(self, records: Sequence[tuple[str, int, bytes]]) -> None:
        rows = [(record, id, attempt) for id, attempt, record in records]
        sql = "UPDATE jobs SET record = ? WHERE id = ? AND attempt = ? AND state = 'running'"
        await self._units.write(lambda db: db.executemany(sql, rows).rowcount)

    async def finish(self, reports: Sequence[Report]) -> list[bool]:
        return await self._units.together(_finish, reports)

    async def cancel(self, id: str, reason: str | None = None) -> str | None:
        return await self._units.write(partial(_cancel, id=id, reason=reason))

    async def rescue(self, dead: Sequence[str] = ()) -> list[Job]:
        if not await self._units.read(partial(_needs_rescue, dead=dead)):
            return []  # a look every two seconds must not cost a commit
        return await self._units.write(partial(_rescue, dead=dead))

    async def owners(self) -> list[str]:
        sql = f"SELECT DISTINCT owner FROM jobs WHERE {HELD_STATES} AND owner IS NOT NULL"
        return [owner for (owner,) in await self._units.read(partial(_rows, sql=sql))]

    async def get(self, id: str) -> Job | None:
        sql = f"SELECT {ALL} FROM jobs WHERE id = ? AND pruned = 0"
        rows = await self._units.read(partial(_rows, sql=sql, values=(id,)))
        return tables.job(rows[0]) if rows else None

    async def find(self, query: Find) -> list[Job]:
        sql, values = _query(query)
        return [
            tables.job(row)
            for row in await self._units.read(partial(_rows, sql=sql, values=values))
        ]

    async def counts(self) -> dict[tuple[str, str], int]:
        sql = "SELECT queue, state, count(*) FROM jobs WHERE pruned = 0 GROUP BY queue, state"
        rows = await self._units.read(partial(_rows, sql=sql))
        return {(queue, state): count for queue, state, count in rows}

    async def next_run_at(self, queues: Sequence[str]) -> float | None:
        return await self._units.read(partial(claiming.next_run_at, queues=queues))

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
        names = Member.__struct_fields__
        return [Member(**dict(zip(names, row, strict=True))) for row in rows]

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


def _light(db: _Db, id: str) -> Job | None:
    sql = f"SELECT {WITHOUT_BLOBS} FROM jobs WHERE id = ? AND pruned = 0"
    row = db.execute(sql, (id,)).fetchone()
    return None if row is None else tables.job(row)


def _add(db: _Db, jobs: Sequence[Job]) -> list[str]:
    now = time.time()
    return [id for part in _parts(jobs) for id in _add_part(db, part, now)]


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Pieces that one statement can take: SQLite allows 32,766 variables."""
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))


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


def _renew(db: _Db, *, owner: str, held: Sequence[tuple[str, int]], lease: float) -> list[str]:
    until = processes.lease_clock() + lease
    sql = (
        "UPDATE jobs SET lease_until = ? WHERE id = ? AND attempt = ? AND owner = ? "
        "AND state = 'running' RETURNING cancel_at"
    )
    rows = [db.execute(sql, (until, *pair, owner)).fetchone() for pair in held]
    return [LOST if row is None else HELD if row[0] is None else CANCEL for row in rows]


def _finish(db: _Db, reports: Sequence[Report]) -> list[bool]:
    now = time.time()
    return [answer for part in _parts(reports) for answer in _finish_part(db, part, now)]


def _finish_part(db: _Db, reports: Sequence[Report], now: float) -> list[bool]:
    """Successes in one statement, as `rules.reported` has them; the others one by one."""
    current = _running(db, [report.id for report in reports])
    first = {report.id: report for report in reversed(reports)}  # the first outcome wins
    good = (r for r in first.values() if r.event == "succeed" and current.get(r.id) == r.attempt)
    best = {report.id: report for report in good}
    if best:
        values = [v for r in best.values() for v in (r.id, r.result, r.record, r.reason)]
        db.execute(tables.succeed(len(best)), (*values, now, now))
    return [best.get(r.id) is r or _finish_one(db, r, now) for r in reports]


def _running(db: _Db, ids: Sequence[str]) -> dict[str, int]:
    """The attempts that are running, by id."""
    sql = (
        "SELECT id, attempt FROM jobs WHERE state = 'running' "
        "AND id IN (SELECT value FROM json_each(?))"
    )
    return dict(db.execute(sql, (json.dumps(ids),)).fetchall())


def _finish_one(db: _Db, report: Report, now: float) -> bool:
    job = _light(db, report.id)
    changes = None if job is None else rules.reported(job, report, now)
    if changes is None:
        return False
    tables.change(db, report.id, changes)
    return True


def _cancel(db: _Db, *, id: str, reason: str | None) -> str | None:
    job = _light(db, id)
    if job is None:
        return None
    changes = rules.cancelled(job, time.time(), reason)
    if changes is None:
        return job.state
    tables.change(db, id, changes)
    return str(changes.get("state", job.state))


def _needs_rescue(db: _Db, *, dead: Sequence[str]) -> bool:
    return next(_troubled(db, dead), None) is not None


def _troubled(db: _Db, dead: Sequence[str]) -> Iterator[tuple[Job, bool]]:
    """(job, whether whoever holds it is gone) for all that `rescue` has to look at."""
    now, clock = time.time(), processes.lease_clock()
    here = f"%/{processes.boot_id()}/%"
    sql = (
        f"SELECT {WITHOUT_BLOBS}, (owner IN (SELECT value FROM json_each(?)) "
        "OR lease_until < ? OR owner NOT LIKE ?) AS gone FROM jobs "
        f"WHERE {HELD_STATES} AND (gone OR cancel_at <= ?)"
    )
    values = (json.dumps(list(dead)), clock, here, now - CANCEL_DEADLINE)
    for row in db.execute(sql, values):
        yield tables.job(row[:-1]), bool(row[-1])
    sql = f"SELECT {WITHOUT_BLOBS} FROM jobs WHERE state = 'queued' AND expires_at <= ?"
    for row in db.execute(f"{sql} AND started_at IS NULL", (now,)):
        yield tables.job(row), False


def _rescue(db: _Db, *, dead: Sequence[str]) -> list[Job]:
    now = time.time()
    rescued: list[Job] = []
    for job, gone in list(_troubled(db, dead)):
        changes = rules.rescued(job, now, dead=gone)
        if changes is not None:
            tables.change(db, job.id, changes)
            rescued.append(replace(job, **changes))
    return rescued


def _query(query: Find) -> tuple[str, tuple[object, ...]]:
    terms, values = ["pruned = 0"], list[object]()
    if query.states:
        terms.append(f"state IN ({', '.join('?' * len(query.states))})")
        values += query.states
    for name in ("pipeline", "queue", "schedule_id", "group_id", "owner"):
        if getattr(query, name) is not None:
            terms.append(f"{name} = ?")
            values.append(getattr(query, name))
    where = " AND ".join(terms)
    sql = f"SELECT {WITHOUT_BLOBS} FROM jobs WHERE {where} ORDER BY seq DESC LIMIT ?"
    return sql, (*values, query.limit)


def _prune(db: _Db, *, limit: int) -> int:
    now = time.time()
    sql = "SELECT id, identity, pruned FROM jobs WHERE prune_at <= ? LIMIT ?"
    rows = db.execute(sql, (now, limit)).fetchall()
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
    sql = (
        "UPDATE schedules SET next_fire_time = ?, last_fire_time = ?, fired = fired + ?, "
        "skipped = skipped + ? WHERE id = ? AND revision = ? AND next_fire_time = ? AND paused = 0"
    )
    known = (
        "SELECT 1 FROM schedules WHERE id = ? AND revision = ? AND next_fire_time = ? "
        "AND paused = 0"
    )
    which = (fire.id, fire.revision, fire.expected)
    if db.execute(known, which).fetchone() is None:
        return None
    ids = _add_part(db, fire.jobs, now) if fire.jobs else []
    added = [id for id, job in zip(ids, fire.jobs, strict=True) if id == job.id]
    skipped = fire.skipped + len(fire.jobs) - len(added)
    moved = (fire.next_fire_time, fire.last_fire_time, len(added), skipped)
    db.execute(sql, (*moved, *which))
    return added


def _sizes(db: _Db) -> dict[str, Any]:
    pages, size = (db.execute(f"PRAGMA {n}").fetchone()[0] for n in ("page_count", "page_size"))
    free = db.execute("PRAGMA freelist_count").fetchone()[0]
    counts = {
        table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        for table in ("jobs", "schedules", "members")
    }
    return {"bytes": pages * size, "free_bytes": free * size, **counts}
