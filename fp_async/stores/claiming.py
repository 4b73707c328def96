"""Claiming from SQLite: which due jobs are next, as far as there is a place for them."""

from __future__ import annotations

import heapq
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from fp_async import processes, rules
from fp_async.jobs import Job
from fp_async.stores import tables
from fp_async.stores.tables import ALL, QUEUED


def claim(
    db: sqlite3.Connection,
    *,
    owner: str,
    queues: Sequence[str],
    limit: int,
    lease: float,
    without: Sequence[str] = (),
) -> list[Job]:
    """Take due jobs, in order, as far as they have a place, but for those `without`."""
    now = time.time()
    until = processes.lease_clock() + lease
    places = rules.Places(lambda: _taken(db))
    claimed: list[Job] = []
    for _, job in _merged(db, queues, now, limit, places, json.dumps(without)):
        held = places.take(job)
        if held is None:
            continue
        claimed.append(replace(job, **rules.claimed(job, owner, now, until), **held))
        if held:
            places_of = (claimed[-1].slot, claimed[-1].lane_held, job.id)
            db.execute("UPDATE jobs SET slot = ?, lane_held = ? WHERE id = ?", places_of)
        if len(claimed) == limit:
            break
    if claimed:
        db.execute(_CLAIM, (owner, until, now, json.dumps([job.id for job in claimed])))
    return claimed


# As `rules.claimed` has it, for many rows in one statement.
_CLAIM = (
    "UPDATE jobs SET state = 'running', reason = NULL, owner = ?, lease_until = ?, "
    "attempt = attempt + 1, started_at = coalesce(started_at, ?) "
    "WHERE id IN (SELECT value FROM json_each(?))"
)


def _taken(db: sqlite3.Connection) -> set[str]:
    sql = (
        "SELECT slot FROM jobs WHERE slot IS NOT NULL UNION ALL "
        "SELECT lane_held FROM jobs WHERE lane_held IS NOT NULL"
    )
    return {name for (name,) in db.execute(sql)}


def _merged(
    db: sqlite3.Connection,
    queues: Sequence[str],
    now: float,
    limit: int,
    places: rules.Places,
    without: str,
) -> Iterator[tuple[int, Job]]:
    """(seq, job) of the due jobs of all the queues in the order in which they are claimed."""
    each = [_due(db, queue, now, limit, places, without) for queue in queues]
    if len(each) == 1:
        return each[0]
    return heapq.merge(*each, key=lambda pair: (-pair[1].priority, pair[1].run_at, pair[0]))


_DUE = (
    f"SELECT {ALL}, seq FROM jobs WHERE {QUEUED} AND priority = ? AND run_at <= ? "
    "AND (run_at, seq) > (?, ?) "
    "AND (expires_at IS NULL OR expires_at > ? OR started_at IS NOT NULL) "
    "AND (concurrency IS NULL OR pipeline NOT IN (SELECT value FROM json_each(?))) "
    "AND (lane IS NULL OR lane NOT IN (SELECT value FROM json_each(?))) "
    "AND id NOT IN (SELECT value FROM json_each(?)) "
    "ORDER BY run_at, seq LIMIT ?"
)


def _due(
    db: sqlite3.Connection, queue: str, now: float, limit: int, places: rules.Places, without: str
) -> Iterator[tuple[int, Job]]:
    """Due jobs of a queue, a page at a time; a page leaves out what is known to have no place."""
    for priority in _priorities(db, queue):
        last: tuple[float, int] = (float("-inf"), 0)
        while True:
            full = (json.dumps(sorted(names)) for names in (places.pipelines, places.lanes))
            values = (queue, priority, now, *last, now, *full, without, limit)
            rows = db.execute(_DUE, values).fetchall()
            for row in rows:
                job = tables.job(row[:-1])
                last = (job.run_at, row[-1])
                yield row[-1], job
            if len(rows) < limit:
                break


def _priorities(db: sqlite3.Connection, queue: str) -> Iterator[int]:
    """Those that queued jobs of the queue have, the highest first; each is one look-up."""
    sql = f"SELECT max(priority) FROM jobs WHERE {QUEUED}"
    (priority,) = db.execute(sql, (queue,)).fetchone()
    while priority is not None:
        yield priority
        (priority,) = db.execute(f"{sql} AND priority < ?", (queue, priority)).fetchone()


def next_run_at(
    db: sqlite3.Connection, *, queues: Sequence[str], without: Sequence[str] = ()
) -> float | None:
    """The smallest `run_at` of the queued jobs."""
    sql = f"SELECT min(run_at) FROM jobs WHERE {QUEUED} AND priority = ?"
    values = (json.dumps(without),) if without else ()
    if without:
        sql += " AND id NOT IN (SELECT value FROM json_each(?))"
    times = (
        db.execute(sql, (queue, priority, *values)).fetchone()[0]
        for queue in queues
        for priority in _priorities(db, queue)
    )
    return min((time for time in times if time is not None), default=None)
