"""What the verbs of the SQL stores do within their transactions: claiming, and all other changes.

Plain functions of a `Db`. Rows are locked in the order of their ids, so that no two verbs wait
for each other; claims skip what somebody else has locked.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from fp_async import rules
from fp_async.errors import StoreUnavailableError
from fp_async.jobs import (
    CANCEL_DEADLINE,
    CHUNK_TTL,
    LETTER_TTL,
    REPLY_TTL,
    Changes,
    Fire,
    Job,
    Report,
    Schedule,
)
from fp_async.stores import CANCEL, HELD, LOST, sql_tables
from fp_async.stores.sql_tables import ALL, HELD_STATES, QUEUED, SCHEDULE, WITHOUT_BLOBS, Db

_Found = tuple[int, Job]  # (seq, job)
_TRIES = 5

# Claiming -----------------------------------------------------------------------------------


def claim(
    db: Db,
    *,
    owner: str,
    queues: Sequence[str],
    limit: int,
    lease: float,
    without: Sequence[str] = (),
) -> list[Job]:
    """Take due jobs, in order, as far as they have a place, but for those `without`."""
    now = db.now()
    places = rules.Places(lambda: _taken(db))
    claimed: list[Job] = []
    changed: list[tuple[int, Changes]] = []
    for seq, job in _merged(db, queues, now, limit, places, without) if limit > 0 else ():
        held = places.take(job)
        if held is None:
            continue
        changes = {**rules.claimed(job, owner, now, now + lease), **held}
        changed.append((seq, changes))
        claimed.append(replace(job, **changes))
        if len(claimed) == limit:
            break
    sql_tables.change(db, changed)
    return claimed


def _taken(db: Db) -> set[str]:
    """The places that are held. Claims that need places go one after the other from here on."""
    db.rows("SELECT version FROM fp_schema FOR UPDATE")
    rows = db.rows(
        "SELECT slot FROM fp_jobs WHERE slot IS NOT NULL UNION ALL "
        "SELECT lane_held FROM fp_jobs WHERE lane_held IS NOT NULL"
    )
    return {name for (name,) in rows}


def _merged(
    db: Db,
    queues: Sequence[str],
    now: float,
    limit: int,
    places: rules.Places,
    without: Sequence[str],
) -> Iterator[_Found]:
    """The due jobs of all the queues in the order in which they are claimed."""
    each = [_due(db, queue, now, limit, places, without) for queue in dict.fromkeys(queues)]
    if len(each) == 1:
        return each[0]
    return heapq.merge(*each, key=lambda pair: (-pair[1].priority, pair[1].run_at, pair[0]))


_DUE = (
    f"SELECT {ALL}, seq FROM {{queued}} WHERE {QUEUED} AND priority = :priority "
    "AND run_at <= :now AND run_at >= :last_at AND (run_at > :last_at OR seq > :last) "
    "AND (expires_at IS NULL OR expires_at > :now OR started_at IS NOT NULL) "
    "AND (concurrency IS NULL OR NOT ({pipelines})) AND (lane IS NULL OR NOT ({lanes})) "
    "AND NOT ({without}) "
    "ORDER BY run_at, seq LIMIT :limit FOR UPDATE SKIP LOCKED"
)


def _due(
    db: Db, queue: str, now: float, limit: int, places: rules.Places, without: Sequence[str]
) -> Iterator[_Found]:
    """Due jobs of a queue, a page at a time; a page leaves out what is known to have no place."""
    sql = _DUE.format(
        queued=db.server.queued,
        pipelines=db.server.one_of("pipeline", "each_pipeline"),
        lanes=db.server.one_of("lane", "each_lane"),
        without=db.server.one_of("id", "each_without"),
    )
    for priority in _priorities(db, queue):
        last_at, last = -1e300, 0
        while True:
            rows = db.rows(
                sql,
                queue=queue,
                priority=priority,
                now=now,
                limit=limit,
                last_at=last_at,
                last=last,
                each_pipeline=sorted(places.pipelines),
                each_lane=sorted(places.lanes),
                each_without=list(without),
            )
            found = [(row[-1], sql_tables.job(row[:-1])) for row in rows]
            yield from found
            if len(rows) < limit:
                break
            last_at, last = found[-1][1].run_at, found[-1][0]


def _priorities(db: Db, queue: str) -> Iterator[int]:
    """Those that queued jobs of the queue have, the highest first; each is one look-up."""
    sql = f"SELECT max(priority) FROM fp_jobs WHERE {QUEUED}"
    ((priority,),) = db.rows(sql, queue=queue)
    while priority is not None:
        yield priority
        ((priority,),) = db.rows(f"{sql} AND priority < :last", queue=queue, last=priority)


def next_run_at(db: Db, *, queues: Sequence[str], without: Sequence[str] = ()) -> float | None:
    """The smallest `run_at` of the queued jobs, but for those `without`."""
    sql = f"SELECT min(run_at) FROM fp_jobs WHERE {QUEUED} AND priority = :priority"
    sql += f" AND NOT ({db.server.one_of('id', 'each_without')})"
    times = (
        db.rows(sql, queue=queue, priority=priority, each_without=list(without))[0][0]
        for queue in queues
        for priority in _priorities(db, queue)
    )
    return min((float(time) for time in times if time is not None), default=None)


# Jobs ---------------------------------------------------------------------------------------


def add(db: Db, jobs: Sequence[Job]) -> list[str]:
    """Insert; the ids of the jobs, or of those that bear their keys."""
    now = db.now()
    waiting = new = [rules.added(job, now) for job in jobs]
    bearers: dict[str | None, str] = {}
    for _ in range(_TRIES):
        refused = db.server.insert(db, waiting)
        if not refused:
            break
        bearers |= _bearers(db, [job.key for job in refused if job.key is not None])
        rest = [job for job in refused if job.key not in bearers]
        ids = known(db, [job.id for job in rest])
        waiting = [job for job in rest if job.id not in ids]  # its bearer has ended meanwhile
        if not waiting:
            break
    else:
        raise StoreUnavailableError("the jobs that bear the same keys end again and again")
    return [bearers.get(job.key, job.id) for job in new]


def _bearers(db: Db, keys: list[str]) -> dict[str | None, str]:
    sql = "SELECT active_key, id FROM fp_jobs WHERE " + db.server.one_of("active_key", "each_key")
    return dict(map(tuple, db.rows(sql, each_key=keys))) if keys else {}


def known(db: Db, ids: list[str]) -> set[str]:
    """Those of the ids that there are, pruned ones included."""
    sql = "SELECT id FROM fp_jobs WHERE " + db.server.one_of("id", "each_id")
    return {id for (id,) in db.rows(sql, each_id=ids)} if ids else set()


def locked(
    db: Db, ids: Sequence[str], columns: str = WITHOUT_BLOBS
) -> tuple[float, dict[str, _Found]]:
    """(the time, (seq, job) by id) of those that there are; nobody else has them."""
    sql = (
        f"SELECT {columns}, seq, {db.server.clock} FROM fp_jobs "
        f"WHERE {db.server.one_of('id', 'each_id')} AND pruned = FALSE ORDER BY id FOR UPDATE"
    )
    rows = db.rows(sql, each_id=sorted(set(ids)))
    now = max((row[-1] for row in rows), default=0.0)
    return now, {row[0]: (row[-2], sql_tables.job(row[:-2])) for row in rows}


def finish(db: Db, reports: Sequence[Report]) -> list[bool]:
    """Apply each report to what the one before has left."""
    now, rows = locked(db, [report.id for report in reports])
    changed: dict[int, Changes] = {}
    outcomes: list[bool] = []
    for report in reports:
        seq, job = rows.get(report.id, (0, None))
        changes = None if job is None else rules.reported(job, report, now)
        outcomes.append(changes is not None)
        if job is not None and changes is not None:
            rows[report.id] = seq, replace(job, **changes)
            changed[seq] = {**changed.get(seq, {}), **changes}
    sql_tables.change(db, changed.items())
    return outcomes


def renew(db: Db, *, owner: str, held: Sequence[tuple[str, int]], lease: float) -> list[str]:
    """Lease anew what is still held."""
    now, rows = locked(db, [id for id, _ in held])
    answers: list[str] = []
    changed: dict[int, Changes] = {}
    for id, attempt in held:
        seq, job = rows.get(id, (0, None))
        if job is None or (job.attempt, job.owner, job.state) != (attempt, owner, "running"):
            answers.append(LOST)
            continue
        answers.append(HELD if job.cancel_at is None else CANCEL)
        changed[seq] = {"lease_until": now + lease}
    sql_tables.change(db, changed.items())
    return answers


def note(db: Db, records: Sequence[tuple[str, int, bytes]]) -> None:
    """Store records of what still runs."""
    _, rows = locked(db, [id for id, _, _ in records])
    changed: dict[int, Changes] = {}
    for id, attempt, record in records:
        seq, job = rows.get(id, (0, None))
        if job is not None and job.attempt == attempt and job.state == "running":
            changed[seq] = {"record": record}
    sql_tables.change(db, changed.items())


def cancel(db: Db, *, id: str, reason: str | None) -> str | None:
    """Ask for an end; the state afterwards."""
    now, rows = locked(db, [id])
    if id not in rows:
        return None
    seq, job = rows[id]
    changes = rules.cancelled(job, now, reason)
    if changes is None:
        return job.state
    sql_tables.change(db, [(seq, changes)])
    return str(changes.get("state", job.state))


def troubled(db: Db, *, dead: Sequence[str]) -> list[str]:
    """The ids of all that `rescue` has to look at, found without locking anything."""
    gone, values = _gone(db, dead)
    now = db.server.clock
    held = f"SELECT id FROM fp_jobs WHERE {HELD_STATES} AND ({gone} OR cancel_at <= {now} - :late)"
    queued = (
        f"SELECT id FROM fp_jobs WHERE state = 'queued' AND expires_at <= {now} "
        "AND started_at IS NULL"
    )
    rows = db.rows(f"{held} UNION ALL {queued}", late=CANCEL_DEADLINE, **values)
    return [id for (id,) in rows]


def _gone(db: Db, dead: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A condition, whether whoever holds a job is gone, and its values."""
    expired = f"lease_until < {db.server.clock}"
    if not dead:
        return expired, {}
    return f"({expired} OR {db.server.one_of('owner', 'each_dead')})", {"each_dead": list(dead)}


def rescue(db: Db, *, ids: Sequence[str], dead: Sequence[str]) -> list[Job]:
    """Change those of the troubled jobs that still need it, and that nobody is changing."""
    gone, values = _gone(db, dead)
    sql = (
        f"SELECT {WITHOUT_BLOBS}, seq, {db.server.clock}, COALESCE({gone}, FALSE) FROM fp_jobs "
        f"WHERE {db.server.one_of('id', 'each_id')} ORDER BY id FOR UPDATE SKIP LOCKED"
    )
    changed: list[tuple[int, Changes]] = []
    rescued: list[Job] = []
    for *row, seq, now, gone_now in db.rows(sql, each_id=ids, **values):
        job = sql_tables.job(row)
        changes = rules.rescued(job, now, dead=bool(gone_now))
        if changes is not None:
            changed.append((seq, changes))
            rescued.append(replace(job, **changes))
    sql_tables.change(db, changed)
    return rescued


def prune(db: Db, *, limit: int) -> int:
    """Remove, or leave the bare id of, jobs whose time is over; and old letters and chunks."""
    clock = db.server.clock
    db.run(f'DELETE FROM fp_letters WHERE "at" <= {clock} - :ttl', ttl=LETTER_TTL)
    db.run(f'DELETE FROM fp_chunks WHERE "at" <= {clock} - :ttl', ttl=CHUNK_TTL)
    sql = (
        f'SELECT seq, "identity", pruned, {clock} FROM fp_jobs WHERE prune_at <= {clock} '
        "AND unreported = FALSE AND (reply_to IS NULL OR replied_at IS NOT NULL "
        f"OR prune_at <= {clock} - :reply_ttl) LIMIT :limit FOR UPDATE SKIP LOCKED"
    )
    rows = db.rows(sql, limit=limit, reply_ttl=REPLY_TTL)
    bare = [(seq, now) for seq, has_identity, pruned, now in rows if has_identity and not pruned]
    sql_tables.change(db, ((seq, rules.pruned(now)) for seq, now in bare))
    kept = {seq for seq, _ in bare}
    gone = [{"seq": seq} for seq, *_ in rows if seq not in kept]
    if gone:
        db.many("DELETE FROM fp_jobs WHERE seq = :seq", gone)
    return len(rows)


# Schedules ----------------------------------------------------------------------------------


def put(db: Db, *, schedule: Schedule) -> Schedule:
    """Insert or replace; the row as it is now."""
    new = schedule if schedule.created_at else replace(schedule, created_at=db.now())
    again = "revision = fp_schedules.revision + 1"
    tail = db.server.upsert("id", sql_tables.REPLACED, again)
    db.run(sql_tables.PUT_SCHEDULE + tail, **sql_tables.scheduled(new))
    (row,) = db.rows(f"SELECT {SCHEDULE} FROM fp_schedules WHERE id = :id", id=schedule.id)
    return sql_tables.schedule(row)


def pause(db: Db, *, id: str, paused: bool, next_fire_time: float | None) -> Schedule | None:
    """Pause or resume; the row as it is now."""
    db.run(
        "UPDATE fp_schedules SET paused = :paused, next_fire_time = :time, "
        "revision = revision + 1 WHERE id = :id",
        paused=paused,
        time=next_fire_time,
        id=id,
    )
    rows = db.rows(f"SELECT {SCHEDULE} FROM fp_schedules WHERE id = :id", id=id)
    return sql_tables.schedule(rows[0]) if rows else None


def fire(db: Db, fires: Sequence[Fire]) -> list[list[str] | None]:
    """Add the jobs of those firings that are still right, and move their schedules on."""
    right = _right(db, fires)
    jobs = [job for fire, after in zip(fires, right, strict=True) if after for job in fire.jobs]
    ids = iter(add(db, jobs) if jobs else ())
    answers: list[list[str] | None] = []
    moves: list[dict[str, Any]] = []
    for fire, after in zip(fires, right, strict=True):
        if after is None:
            answers.append(None)
            continue
        added = [job.id for job in fire.jobs if next(ids) == job.id]
        answers.append(added)
        skipped = fire.skipped + len(fire.jobs) - len(added)
        moves.append(_move(after, len(added), skipped))
    if moves:
        db.many(_MOVE, moves)
    return answers


_MOVE = (
    "UPDATE fp_schedules SET next_fire_time = :next, last_fire_time = :last, "
    "fired = fired + :fired, skipped = skipped + :skipped WHERE id = :id"
)


def _move(after: Schedule, fired: int, skipped: int) -> dict[str, Any]:
    times = {"next": after.next_fire_time, "last": after.last_fire_time}
    return {**times, "fired": fired, "skipped": skipped, "id": after.id}


def _right(db: Db, fires: Sequence[Fire]) -> list[Schedule | None]:
    """Return each schedule as it will be after its firing, with those before it done; None where
    it is not as the firing expects it.
    """
    sql = (
        f"SELECT {SCHEDULE} FROM fp_schedules "
        f"WHERE {db.server.one_of('id', 'each_id')} ORDER BY id FOR UPDATE"
    )
    rows = db.rows(sql, each_id=sorted({fire.id for fire in fires}))
    known = {row.id: row for row in map(sql_tables.schedule, rows)}
    right: list[Schedule | None] = []
    for fire in fires:
        row = known.get(fire.id)
        right.append(rules.fired(row, fire) if row and rules.may_fire(row, fire) else None)
        if right[-1] is not None:
            known[fire.id] = right[-1]
    return right
