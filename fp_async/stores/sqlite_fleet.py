"""What the SQLite store keeps for jobs on agents."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from fp_async import rules
from fp_async.jobs import Chunk, Job, Letter, Offer
from fp_async.lifecycle import TERMINAL
from fp_async.stores import tables
from fp_async.stores.tables import ALL, WITHOUT_BLOBS
from fp_async.stores.units import Units

_Db = sqlite3.Connection
_ENDED = f"state IN {TERMINAL}"


class SqliteFleet:
    """The contract `stores.fleet` on a connection that a store has opened."""

    def __init__(self, units: Units) -> None:
        self._units = units

    async def lead(self, role: str, owner: str, seconds: float) -> bool:
        return await self._units.write(partial(_lead, role=role, owner=owner, seconds=seconds))

    async def wanted(self) -> dict[str, float]:
        return await self._units.read(_wanted)

    async def waiting(self, targets: Sequence[str], limit: int) -> list[Job]:
        if not targets or limit <= 0:  # a negative limit would be none
            return []
        return await self._units.read(partial(_waiting, targets=targets, limit=limit))

    async def offer(self, offers: Sequence[Offer]) -> list[Job | None]:
        return await self._units.together(_offer, offers)

    async def adopt(self, jobs: Sequence[Job]) -> list[bool]:
        return await self._units.together(_adopt, jobs)

    async def unreplied(self, limit: int) -> list[Job]:
        return await self._units.read(partial(_unreplied, limit=max(limit, 0)))

    async def replied(self, ids: Sequence[str]) -> None:
        await self._units.together(_replied, ids)

    async def bury(self, letters: Sequence[Letter]) -> None:
        await self._units.together(bury, letters)

    async def letters(self, limit: int = 50) -> list[Letter]:
        return await self._units.read(partial(_letters, limit=max(limit, 0)))

    async def keep(self, chunks: Sequence[Chunk]) -> None:
        await self._units.together(_keep, chunks)

    async def kept(self, id: str, attempt: int) -> list[Chunk]:
        return await self._units.read(partial(_kept, id=id, attempt=attempt))

    async def forget(self, id: str) -> None:
        await self._units.write(lambda db: db.execute("DELETE FROM chunks WHERE id = ?", (id,)))


# Units of work ------------------------------------------------------------------------------

_TAKE = (
    "INSERT INTO members (kind, name, info, seen_at, until) VALUES ('lead', ?, ?, ?, ?) "
    "ON CONFLICT (kind, name) DO UPDATE SET info = excluded.info, seen_at = excluded.seen_at, "
    "until = excluded.until WHERE members.info = excluded.info "
    "OR members.until <= excluded.seen_at OR members.seen_at > excluded.until"
)


def _lead(db: _Db, *, role: str, owner: str, seconds: float) -> bool:
    """A lease that begins after this one's end is from before the clock was set back: it is
    free. A clock that was set back by less only makes it last longer.
    """
    now, name = time.time(), json.dumps(owner).encode()
    if seconds <= 0:
        gone = "DELETE FROM members WHERE kind = 'lead' AND name = ? AND info = ?"
        db.execute(gone, (role, name))
        return False
    return db.execute(_TAKE, (role, name, now, now + seconds)).rowcount == 1


# From one target to the next by the index: the queue may be long, the targets are few.
_WANTED = (
    "WITH RECURSIVE each (target) AS ("
    "SELECT min(target) FROM jobs WHERE state = 'queued' AND target IS NOT NULL UNION ALL "
    "SELECT (SELECT min(target) FROM jobs WHERE state = 'queued' AND target > each.target) "
    "FROM each WHERE target IS NOT NULL) "
    "SELECT target, (SELECT min(run_at) FROM jobs WHERE state = 'queued' "
    "AND target = each.target) FROM each WHERE target IS NOT NULL"
)


def _wanted(db: _Db) -> dict[str, float]:
    return dict(db.execute(_WANTED).fetchall())


# The first of each target in the order of an index, so that nothing has to be sorted but these.
_WAITING = (
    f"SELECT {', '.join(f'jobs.{name}' for name in WITHOUT_BLOBS.split(', '))} "
    "FROM json_each(?) AS meant, jobs WHERE seq IN ("
    "SELECT due.seq FROM jobs AS due INDEXED BY jobs_waiting "
    "WHERE due.state = 'queued' AND due.target = meant.value AND due.run_at <= ? "
    "AND (due.expires_at IS NULL OR due.expires_at > ? OR due.started_at IS NOT NULL) "
    "ORDER BY due.priority DESC, due.run_at, due.seq LIMIT ?) "
    "ORDER BY jobs.priority DESC, jobs.run_at, jobs.seq LIMIT ?"
)


def _waiting(db: _Db, *, targets: Sequence[str], limit: int) -> list[Job]:
    now, meant = time.time(), json.dumps(list(dict.fromkeys(targets)))
    rows = db.execute(_WAITING, (meant, now, now, limit, limit))
    return [tables.job(row) for row in rows]


def _offer(db: _Db, offers: Sequence[Offer]) -> list[Job | None]:
    ids = json.dumps([offer.id for offer in offers])
    sql = f"SELECT {ALL} FROM jobs WHERE pruned = 0 AND id IN (SELECT value FROM json_each(?))"
    rows = {job.id: job for job in map(tables.job, db.execute(sql, (ids,)))}
    bound: list[Job] = []
    answers: list[Job | None] = []
    for offer in offers:
        job = rows.get(offer.id)
        changes = None if job is None else rules.offered(job, offer)
        if job is None or changes is None:
            answers.append(None)
            continue
        rows[job.id] = replace(job, **changes)
        bound.append(rows[job.id])
        answers.append(rows[job.id])
    db.executemany(_BIND, [(job.state, job.agent, job.attempt, job.id) for job in bound])
    return answers


_BIND = "UPDATE jobs SET state = ?, agent = ?, attempt = ?, reason = NULL WHERE id = ?"


def _adopt(db: _Db, jobs: Sequence[Job]) -> list[bool]:
    now = time.time()
    rows = (tables.whole(rules.adopted(job, now)) for job in jobs)
    new = [db.execute(tables.INSERT_WHOLE, row).rowcount == 1 for row in rows]
    fired = rules.fired_elsewhere(job for job, own in zip(jobs, new, strict=True) if own)
    db.executemany(_FIRED, [(count, last, id) for id, (count, last) in fired.items()])
    return new


_FIRED = (
    "UPDATE schedules SET fired = fired + ?, last_fire_time = max(ifnull(last_fire_time, 0), ?) "
    "WHERE id = ?"
)


def _unreplied(db: _Db, *, limit: int) -> list[Job]:
    sql = (
        f"SELECT {ALL} FROM jobs WHERE reply_to IS NOT NULL AND replied_at IS NULL "
        f"AND {_ENDED} AND pruned = 0 ORDER BY ended_at LIMIT ?"
    )
    return [tables.job(row) for row in db.execute(sql, (limit,))]


def _replied(db: _Db, ids: Sequence[str]) -> list[None]:
    now = time.time()
    db.executemany("UPDATE jobs SET replied_at = ? WHERE id = ?", [(now, id) for id in ids])
    return [None] * len(ids)


_LETTER = ", ".join(Letter.__struct_fields__)
_CHUNK = '"id", "attempt", "index", "data"'


def bury(db: _Db, letters: Sequence[Letter]) -> list[None]:
    """Store them, in a unit of work."""
    now = time.time()
    sql = f"INSERT INTO letters ({_LETTER}) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
    rows = [(x.id, x.topic, x.reason, x.payload, x.at or now) for x in letters]
    db.executemany(sql, rows)
    return [None] * len(letters)


def _letters(db: _Db, *, limit: int) -> list[Letter]:
    sql = f"SELECT {_LETTER} FROM letters ORDER BY at DESC, rowid DESC LIMIT ?"
    names = Letter.__struct_fields__
    return [Letter(**dict(zip(names, row, strict=True))) for row in db.execute(sql, (limit,))]


def _keep(db: _Db, chunks: Sequence[Chunk]) -> list[None]:
    now = time.time()
    sql = f"INSERT INTO chunks ({_CHUNK}, at) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
    db.executemany(sql, [(c.id, c.attempt, c.index, c.data, now) for c in chunks])
    return [None] * len(chunks)


def _kept(db: _Db, *, id: str, attempt: int) -> list[Chunk]:
    sql = f'SELECT {_CHUNK} FROM chunks WHERE id = ? AND attempt = ? ORDER BY "index"'
    return [Chunk(*row) for row in db.execute(sql, (id, attempt))]
