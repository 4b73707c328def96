"""What an agent keeps beside its jobs: what it has told, what it must not run, who it is.

Over the same SQLite file and the same units of work as its jobs.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from edge_agent import clock
from edge_agent.identity import Identity
from fp_async import clock_steps, rules
from fp_async.clock_steps import Reading
from fp_async.jobs import Job, Letter
from fp_async.lifecycle import TERMINAL
from fp_async.stores import sqlite_fleet, tables
from fp_async.stores.sqlite import SqliteStore
from fp_async.stores.tables import ALL, WITHOUT_BLOBS

_Db = sqlite3.Connection
_ENDED = f"state IN {TERMINAL}"
_KNOWN_AT_LEAST = 86_400.0  # seconds that the id of a finished job stays known, however many
_KNOWN_AT_MOST = 30 * 86_400.0
_KNOWN = 100_000  # ids that stay known after the first day
_BURIED = 1_000  # messages that made no job, of which the newest are kept
_LETTERS = "SELECT count(*) FROM letters"
_AT_ONCE = 2**20  # bytes of outcomes that are read from the store at once


class Holding(NamedTuple):
    """A job that the center has not heard the end of: `offer` is its attempt there, or None."""

    id: str
    offer: int | None
    state: str


class AgentStore:
    """The verbs of an agent over the open store of its jobs. Each is one transaction."""

    def __init__(self, store: SqliteStore) -> None:
        self._units = store.units

    async def begin(self) -> Identity:
        """Count this start; the store gets its id at the first."""
        return await self._units.write(_begin)

    async def overtake(self, starts: int) -> int:
        """Count on from a start that this store does not know of: the number that follows."""
        return await self._units.write(partial(_overtake, starts=starts))

    async def renamed(self, name: str) -> str:
        """Return what is wrong where the store has jobs of another agent's name; else it is known
        by this one from now on.
        """
        return await self._units.write(partial(_renamed, name=name))

    async def accept(self, jobs: Sequence[Job]) -> list[Job]:
        """Store offered jobs; each row as it is now, without blobs, a pruned one too.

        A job that is known stays as it is, but for the offer, which becomes the newer one; if
        it has ended, its outcome is told (again), since whoever offers it does not have it.
        """
        return await self._units.together(_accept, jobs)

    async def known(self, ids: Sequence[str]) -> set[str]:
        """Those of these ids that are in the store, pruned ones too."""
        return {job.id for job in await self._units.read(partial(_found, ids=ids))}

    async def refuse(self, jobs: Sequence[Job]) -> list[Job]:
        """Store jobs that were cancelled before they came, so that they are never begun."""
        return await self._units.together(_accept, [_tombstone(job) for job in jobs])

    async def born(self, jobs: Sequence[Job]) -> None:
        """Store jobs that began here."""
        await self._units.together(_accept, [replace(job, unreported=True) for job in jobs])

    async def untold(self, limit: int, after: frozenset[str] = frozenset()) -> list[Job]:
        """Ended jobs that are not acknowledged, the oldest first, without those of `after`.

        No more at once than fit into some memory; one at least, where there is one.
        """
        return await self._units.read(partial(_untold, limit=limit, without=after))

    async def ended(self, ids: Sequence[str]) -> list[Job]:
        """Those of these jobs that have ended and are not acknowledged."""
        return await self._units.read(partial(_ended, ids=ids))

    def acknowledged(self, ids: Sequence[str], failed: Callable[[], object]) -> None:
        """The center has the outcomes of these: they may be pruned. Written with what comes next;
        what is forgotten in a crash, or has `failed`, is told and acknowledged once more.
        """
        self._units.later(_acknowledged, ids, failed)

    async def holdings(self) -> list[Holding]:
        """All that the center has not heard the end of, the oldest first."""
        return await self._units.read(_holdings)

    async def waiting(self) -> tuple[int, int]:
        """(number, bytes) of outcomes that are not acknowledged."""
        return await self._units.read(_waiting)

    async def active(self) -> int:
        """How many jobs of the center are not at their end."""
        return await self._units.read(_active)

    async def next_number(self) -> int:
        """A number that was never given before."""
        return await self._units.write(partial(_count, name="sequence"))

    async def fact(self, name: str) -> str | None:
        """What was noted under a name."""
        return await self._units.read(partial(_fact, name=name))

    async def note(self, name: str, value: str) -> None:
        """Note something under a name."""
        await self._units.write(partial(_note, name=name, value=value))

    async def bury(self, letters: Sequence[Letter]) -> None:
        """Keep messages that made no job: the newest thousand, as a device has little room."""
        await self._units.together(_bury, letters)

    async def buried(self) -> int:
        """Return the number of dead letters on the device."""
        return await self._units.read(lambda db: int(db.execute(_LETTERS).fetchone()[0]))

    async def forget(self) -> int:
        """Forget the ids of long finished jobs; how many."""
        return await self._units.write(_forget)

    async def set_clock(self, now: Reading, unseen: float) -> float:
        """Note what the clocks show. By how many seconds the wall clock was set since it was noted
        last: all jobs were moved along, but for what was written in the last `unseen` seconds.
        """
        return await self._units.write(partial(_set_clock, now=now, unseen=unseen))


def _tombstone(job: Job) -> Job:
    reason = "cancelled before it arrived"
    return replace(job, state="cancelled", reason=reason, ended_at=time.time())


# Units of work ------------------------------------------------------------------------------


def _begin(db: _Db) -> Identity:
    store = _fact(db, name="store")
    if store is None:
        store = uuid.uuid4().hex
        _note(db, name="store", value=store)
    _note(db, name="began", value=repr(time.time()))
    _note(db, name="ended", value="")
    return Identity(store, _count(db, name="starts"), secrets.token_hex(8))


def _renamed(db: _Db, *, name: str) -> str:
    before = _fact(db, name="name")
    if before not in (None, name) and (left := len(_holdings(db))):
        return (
            f"the store has {left} jobs that the center gave to agent '{before}', and this one is "
            f"'{name}': their results are letters there (flowerpower letters)"
        )
    _note(db, name="name", value=name)
    return ""


def _overtake(db: _Db, *, starts: int) -> int:
    number = max(int(_fact(db, name="starts") or 0), starts) + 1
    _note(db, name="starts", value=str(number))
    _note(db, name="restored", value=repr(time.time()))
    return number


def _accept(db: _Db, jobs: Sequence[Job]) -> list[Job]:
    now = time.time()
    for job in jobs:
        row = replace(
            rules.added(job, now), prune_at=now + job.result_ttl if job.ended_at else None
        )
        db.execute(tables.INSERT_WHOLE, tables.whole(row))
    newer = (
        f"UPDATE jobs SET offer = ?, unreported = CASE WHEN {_ENDED} AND pruned = 0 THEN 1 "
        "ELSE unreported END WHERE id = ? AND offer <= ?"
    )
    db.executemany(newer, [(job.offer, job.id, job.offer) for job in jobs if job.offer])
    rows = {job.id: job for job in _rows(db, "1 = 1", [job.id for job in jobs])}
    return [rows[job.id] for job in jobs]


def _rows(db: _Db, where: str, ids: Sequence[str], columns: str = WITHOUT_BLOBS) -> list[Job]:
    sql = (
        f"SELECT {columns} FROM jobs WHERE {where} AND id IN (SELECT value FROM json_each(?)) "
        "ORDER BY ended_at"
    )
    return [tables.job(row) for row in db.execute(sql, (json.dumps(list(ids)),))]


def _found(db: _Db, *, ids: Sequence[str]) -> list[Job]:
    return _rows(db, "1 = 1", ids)


def _untold(db: _Db, *, limit: int, without: frozenset[str]) -> list[Job]:
    sql = (
        f"SELECT {ALL} FROM jobs WHERE unreported = 1 AND {_ENDED} "
        "AND id NOT IN (SELECT value FROM json_each(?)) ORDER BY ended_at, seq LIMIT ?"
    )
    found, size = list[Job](), 0
    for row in db.execute(sql, (json.dumps(list(without)), limit)):
        found.append(job := tables.job(row))
        size += len(job.result or b"") + len(job.record or b"") + len(job.inputs)
        if size > _AT_ONCE:
            break
    return found


def _ended(db: _Db, *, ids: Sequence[str]) -> list[Job]:
    return _rows(db, f"unreported = 1 AND {_ENDED}", ids, ALL)


def _acknowledged(db: _Db, ids: Sequence[str]) -> list[None]:
    now = time.time()
    sql = (
        "UPDATE jobs SET unreported = 0, prune_at = CASE WHEN pruned = 1 THEN prune_at "
        f"ELSE ? + result_ttl END WHERE id = ? AND unreported = 1 AND {_ENDED}"
    )
    db.executemany(sql, [(now, id) for id in ids])
    return [None] * len(ids)


def _holdings(db: _Db) -> list[Holding]:
    sql = (
        f"SELECT id, offer, state FROM jobs WHERE unreported = 1 OR (NOT {_ENDED} AND pruned = 0) "
        "ORDER BY seq"
    )
    return [Holding(*row) for row in db.execute(sql)]


def _waiting(db: _Db) -> tuple[int, int]:
    sql = (
        "SELECT count(*), total(ifnull(length(result), 0) + ifnull(length(record), 0) "
        f"+ ifnull(length(error), 0) + length(inputs)) FROM jobs WHERE unreported = 1 AND {_ENDED}"
    )
    number, size = db.execute(sql).fetchone()
    return int(number), int(size)


def _active(db: _Db) -> int:
    sql = f"SELECT count(*) FROM jobs WHERE offer IS NOT NULL AND NOT {_ENDED}"
    return int(db.execute(sql).fetchone()[0])


def _fact(db: _Db, *, name: str) -> str | None:
    row = db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def _note(db: _Db, *, name: str, value: str) -> None:
    sql = "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
    db.execute(sql, (name, value))


def _count(db: _Db, *, name: str) -> int:
    number = int(_fact(db, name=name) or 0) + 1
    _note(db, name=name, value=str(number))
    return number


def _set_clock(db: _Db, *, now: Reading, unseen: float) -> float:
    step = clock_steps.step(_last_reading(db), now)
    if step:
        db.execute(f"UPDATE jobs SET {clock.moves(step, now.wall, unseen)}")
    _note(db, name="clock", value=msgspec.json.encode(now).decode())
    return step


def _last_reading(db: _Db) -> Reading:
    """What was noted last; the newest job proves that it was later since, in an unknown boot."""
    noted = _fact(db, name="clock")
    last = Reading("", 0.0, 0.0) if noted is None else msgspec.json.decode(noted, type=Reading)
    newest = db.execute("SELECT created_at FROM jobs ORDER BY seq DESC LIMIT 1").fetchone()
    return last if newest is None else replace(last, wall=max(last.wall, *newest))


def _bury(db: _Db, letters: Sequence[Letter]) -> list[None]:
    done = sqlite_fleet.bury(db, letters)
    sql = (
        "DELETE FROM letters WHERE rowid <= "
        "(SELECT rowid FROM letters ORDER BY rowid DESC LIMIT 1 OFFSET ?)"
    )
    db.execute(sql, (_BURIED,))
    return done


def _forget(db: _Db) -> int:
    now = time.time()
    sql = (
        "DELETE FROM jobs WHERE pruned = 1 AND unreported = 0 AND (ended_at < ? OR (ended_at < ? "
        "AND seq <= (SELECT seq FROM jobs WHERE pruned = 1 ORDER BY seq DESC LIMIT 1 OFFSET ?)))"
    )
    found = db.execute(sql, (now - _KNOWN_AT_MOST, now - _KNOWN_AT_LEAST, _KNOWN))
    return found.rowcount
