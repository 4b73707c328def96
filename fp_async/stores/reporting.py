"""What becomes of jobs in SQLite: leases, reports, cancels, and what nobody looks after."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from fp_async import processes, rules
from fp_async.jobs import CANCEL_DEADLINE, Changes, Job, Report
from fp_async.stores import CANCEL, HELD, LOST, tables
from fp_async.stores.tables import HELD_STATES, WITHOUT_BLOBS

_Db = sqlite3.Connection
_AT_ONCE = 500  # rows in one statement


def parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Pieces that one statement can take: SQLite allows 32,766 variables."""
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))


def light(db: _Db, id: str) -> Job | None:
    sql = f"SELECT {WITHOUT_BLOBS} FROM jobs WHERE id = ? AND pruned = 0"
    row = db.execute(sql, (id,)).fetchone()
    return None if row is None else tables.job(row)


def renew(db: _Db, *, owner: str, held: Sequence[tuple[str, int]], lease: float) -> list[str]:
    until = processes.lease_clock() + lease
    sql = (
        "UPDATE jobs SET lease_until = ? WHERE id = ? AND attempt = ? AND owner = ? "
        "AND state = 'running' RETURNING cancel_at"
    )
    rows = [db.execute(sql, (until, *pair, owner)).fetchone() for pair in held]
    return [LOST if row is None else HELD if row[0] is None else CANCEL for row in rows]


def finish(db: _Db, reports: Sequence[Report]) -> list[bool]:
    now = time.time()
    return [answer for part in parts(reports) for answer in _finish_part(db, part, now)]


def _finish_part(db: _Db, reports: Sequence[Report], now: float) -> list[bool]:
    """Successes in one statement, as `rules.reported` has them; the others in few."""
    current = _running(db, [report.id for report in reports])
    first = {report.id: report for report in reversed(reports)}  # the first outcome wins
    best = {r.id: r for r in first.values() if _plain_success(r, current)}
    if best:
        values = [v for r in best.values() for v in (r.id, r.result, r.record, r.reason)]
        db.execute(tables.succeed(len(best)), (*values, now, now))
    others = [r for r in reports if best.get(r.id) is not r]
    done = iter(_apply(db, others, now) if others else [])
    return [best.get(r.id) is r or next(done) for r in reports]


def _plain_success(report: Report, running: dict[str, int]) -> bool:
    """Whether it changes nothing but what `tables.succeed` sets."""
    told = (report.errors, report.crashes, report.agent) != (None, None, None)
    return report.event == "succeed" and not told and running.get(report.id) == report.attempt


def _running(db: _Db, ids: Sequence[str]) -> dict[str, int]:
    """The attempts that are running, by id."""
    sql = (
        "SELECT id, attempt FROM jobs WHERE state = 'running' "
        "AND id IN (SELECT value FROM json_each(?))"
    )
    return dict(db.execute(sql, (json.dumps(ids),)).fetchall())


def _apply(db: _Db, reports: Sequence[Report], now: float) -> list[bool]:
    """Reports in their order, of which several may be of one job; each row is written once."""
    rows = _light(db, {report.id for report in reports})
    changed: dict[str, Changes] = {}
    answers = []
    for report in reports:
        job = rows.get(report.id)
        changes = None if job is None else rules.reported(job, report, now)
        answers.append(changes is not None)
        if job is not None and changes is not None:
            rows[job.id] = replace(job, **changes)
            changed[job.id] = {**changed.get(job.id, {}), **changes}
    tables.change_all(db, changed)
    return answers


def _light(db: _Db, ids: Collection[str]) -> dict[str, Job]:
    sql = (
        f"SELECT {WITHOUT_BLOBS} FROM jobs WHERE pruned = 0 "
        "AND id IN (SELECT value FROM json_each(?))"
    )
    return {job.id: job for job in map(tables.job, db.execute(sql, (json.dumps(list(ids)),)))}


def cancel(db: _Db, *, id: str, reason: str | None) -> str | None:
    job = light(db, id)
    if job is None:
        return None
    changes = rules.cancelled(job, time.time(), reason)
    if changes is None:
        return job.state
    tables.change(db, id, changes)
    return str(changes.get("state", job.state))


def needs_rescue(db: _Db, *, dead: Sequence[str]) -> bool:
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


def rescue(db: _Db, *, dead: Sequence[str]) -> list[Job]:
    now = time.time()
    rescued: list[Job] = []
    for job, gone in list(_troubled(db, dead)):
        changes = rules.rescued(job, now, dead=gone)
        if changes is not None:
            tables.change(db, job.id, changes)
            rescued.append(replace(job, **changes))
    return rescued
