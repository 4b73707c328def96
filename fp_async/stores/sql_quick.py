"""The verbs of every job on PostgreSQL, in the plain case, as one statement each: see `sql_direct`.

One round trip instead of four or seven, and no transaction around it. What is not plain (a key
that is taken, a job that needs a place, an outcome that is no success) is left to the same verb
in `sql_claiming`; what these statements set is what `rules` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fp_async.jobs import Job, Report
from fp_async.stores import sql_tables
from fp_async.stores.sql_direct import Steps
from fp_async.stores.sql_tables import (
    ALL,
    INSERTED,
    QUEUED,
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


def add(jobs: Sequence[Job]) -> Steps[list[str | None]]:
    """Insert what is new: the ids; None where something stood in the way."""
    done = set[str]()
    for part in parts([sql_tables.inserted(job) for job in jobs]):
        done.update(id for (id,) in (yield _ADD, lists(INSERTED, part)))
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


def finish(reports: Sequence[Report]) -> Steps[list[bool | None]]:
    """Store successes of running jobs: True; None where it is something else."""
    counts = Counter(report.id for report in reports)
    plain = [r for r in reports if r.plain and counts[r.id] == 1]
    rows = [{name: getattr(report, name) for name in _SUCCESS} for report in plain]
    done = set[str]()
    for part in parts(rows) if rows else ():
        done.update(id for (id,) in (yield _SUCCEED, lists(_SUCCESS, part)))
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


def claim(owner: str, queue: str, limit: int, lease: float) -> Steps[tuple[list[Job], bool]]:
    """(jobs, whether there may be more for the full verb to find)."""
    rows = yield _CLAIM, {"queue": queue, "owner": owner, "limit": limit, "lease": lease}
    found = [(row[2], sql_tables.job(row[3:])) for row in rows if row[2] is not None]
    jobs = [job for _, job in sorted(found, key=lambda pair: (pair[1].run_at, pair[0]))]
    placed, lower = rows[0][0], rows[0][1]
    return jobs, bool(placed or (lower and len(jobs) < limit))


# From one priority of a queue to the next one below it, by the index.
_OPEN = "state = 'queued' AND target IS NULL AND queue = each.queue"
_NEXT = (
    "WITH RECURSIVE each (queue, priority) AS ("
    "SELECT named.queue, (SELECT max(priority) FROM fp_jobs WHERE state = 'queued' "
    "AND target IS NULL AND queue = named.queue) "
    "FROM unnest(CAST(:queues AS text[])) AS named (queue) UNION ALL "
    f"SELECT queue, (SELECT max(priority) FROM fp_jobs WHERE {_OPEN} "
    "AND priority < each.priority) FROM each WHERE priority IS NOT NULL) "
    f"SELECT min((SELECT min(run_at) FROM fp_jobs WHERE {_OPEN} "
    "AND priority = each.priority)) FROM each WHERE priority IS NOT NULL"
)


def next_run_at(queues: Sequence[str]) -> Steps[float | None]:
    """The smallest `run_at` of the queued jobs."""
    ((time,),) = yield _NEXT, {"queues": list(queues)}
    return None if time is None else float(time)


_GET = f"SELECT {ALL} FROM fp_jobs WHERE id = :id AND pruned = FALSE"


def get(id: str) -> Steps[Job | None]:
    """All of one job."""
    rows = yield _GET, {"id": id}
    return sql_tables.job(rows[0]) if rows else None
