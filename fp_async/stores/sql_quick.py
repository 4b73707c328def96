"""The verbs of every job on PostgreSQL, in the plain case, as one statement each.

One round trip instead of four or seven, and no transaction around it. What is not plain (a key
that is taken, a job that needs a place, an outcome that is no success) is left to the same verb
in `sql_claiming`; what these statements set is what `rules` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fp_async.jobs import Job, Report
from fp_async.stores import sql_tables
from fp_async.stores.sql_tables import (
    ALL,
    INSERTED,
    QUEUED,
    Db,
    lists,
    parts,
    quoted,
    unnested,
)

# One moment for the whole statement; Postgres.clock is another one at every mention.
_CLOCK = "CAST(extract(epoch FROM statement_timestamp()) AS double precision)"

# `rules.added`: `run_at` 0 means now.
_ADDED = {
    "created_at": _CLOCK,
    "run_at": f"CASE WHEN v.run_at = 0 THEN {_CLOCK} ELSE v.run_at END",
    "active_key": 'v."key"',
}


def _added(name: str) -> str:
    return _ADDED.get(name, f'v."{name}"')


_ADD = (
    f"INSERT INTO fp_jobs ({quoted(INSERTED)}) SELECT {', '.join(map(_added, INSERTED))} "
    f"FROM {unnested(INSERTED)} AS v ({quoted(INSERTED)}) ON CONFLICT DO NOTHING RETURNING id"
)


def add(db: Db, jobs: Sequence[Job]) -> list[str | None]:
    """Insert what is new: the ids; None where something stood in the way."""
    rows = [sql_tables.inserted(job) for job in jobs]
    done = {id for part in parts(rows) for (id,) in db.rows(_ADD, **lists(INSERTED, part))}
    return [job.id if job.id in done else None for job in jobs]


# `rules.ended` for a success.
_SUCCESS = ("id", "attempt", "reason", "result", "record")
_SUCCEED = (
    "UPDATE fp_jobs AS j SET state = 'succeeded', reason = v.reason, result = v.result, "
    f"record = v.record, error = NULL, ended_at = {_CLOCK}, prune_at = {_CLOCK} + j.result_ttl, "
    "active_key = NULL, owner = NULL, lease_until = NULL, slot = NULL, lane_held = NULL "
    f"FROM {unnested(_SUCCESS)} AS v (id, attempt, reason, result, record) "
    "WHERE j.id = v.id AND j.attempt = v.attempt AND j.state = 'running' RETURNING j.id"
)


def finish(db: Db, reports: Sequence[Report]) -> list[bool | None]:
    """Store successes of running jobs: True; None where it is something else."""
    counts = Counter(report.id for report in reports)
    plain = [r for r in reports if r.plain and counts[r.id] == 1]
    rows = [{name: getattr(report, name) for name in _SUCCESS} for report in plain]
    found = (db.rows(_SUCCEED, **lists(_SUCCESS, part)) for part in parts(rows)) if rows else ()
    done = {id for part in found for (id,) in part}
    return [True if report.id in done else None for report in reports]


# `rules.claimed`. Only the highest priority is looked at, and only where no job of the queue needs
# a place: it may not be overtaken by those that do not.
_CLAIMED = ", ".join(f"claimed.{name}" for name in ALL.split(", "))
_CLAIM = (
    "WITH top AS (SELECT max(priority) AS most, min(priority) AS least FROM fp_jobs "
    f"WHERE {QUEUED}), placed AS (SELECT EXISTS (SELECT 1 FROM fp_jobs WHERE {QUEUED} "
    "AND (concurrency IS NOT NULL OR lane IS NOT NULL)) AS any), "
    "due AS (SELECT seq FROM fp_jobs, placed WHERE NOT placed.any AND "
    f"{QUEUED} AND priority = (SELECT most FROM top) AND run_at <= {_CLOCK} "
    f"AND (expires_at IS NULL OR expires_at > {_CLOCK} OR started_at IS NOT NULL) "
    "ORDER BY run_at, seq LIMIT :limit FOR UPDATE OF fp_jobs SKIP LOCKED), "
    "claimed AS (UPDATE fp_jobs AS j SET state = 'running', reason = NULL, owner = :owner, "
    f"lease_until = {_CLOCK} + :lease, attempt = attempt + 1, "
    f"started_at = COALESCE(started_at, {_CLOCK}) FROM due WHERE j.seq = due.seq RETURNING j.*) "
    f"SELECT placed.any, top.least < top.most, claimed.seq, {_CLAIMED} "
    "FROM top CROSS JOIN placed LEFT JOIN claimed ON TRUE"
)


def claim(db: Db, *, owner: str, queue: str, limit: int, lease: float) -> tuple[list[Job], bool]:
    """(jobs, whether there may be more for the full verb to find)."""
    rows = db.rows(_CLAIM, queue=queue, owner=owner, limit=limit, lease=lease)
    found = [(row[2], sql_tables.job(row[3:])) for row in rows if row[2] is not None]
    jobs = [job for _, job in sorted(found, key=lambda pair: (pair[1].run_at, pair[0]))]
    placed, lower = rows[0][0], rows[0][1]
    return jobs, bool(placed or (lower and len(jobs) < limit))
