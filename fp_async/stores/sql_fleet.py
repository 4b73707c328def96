"""What the SQL stores keep for jobs on agents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from msgspec.structs import asdict, replace

from fp_async import rules
from fp_async.jobs import Changes, Chunk, Job, Letter, Offer
from fp_async.stores import sql_claiming, sql_tables
from fp_async.stores.sql_tables import ALL, WITHOUT_BLOBS, Db
from fp_async.stores.sql_transactions import Merged, Transactions


class SqlFleet:
    """The contract `stores.fleet` on connections that a store has opened."""

    def __init__(self, server: Transactions) -> None:
        self._server = server
        self._offering = Merged(server, _offer)
        self._adopting = Merged(server, _adopt)

    async def lead(self, role: str, owner: str, seconds: float) -> bool:
        unit = partial(_lead, role=role, owner=owner, seconds=seconds)
        return await self._server.write(unit)

    async def wanted(self) -> dict[str, float]:
        return await self._server.read(_wanted)

    async def waiting(self, targets: Sequence[str], limit: int) -> list[Job]:
        if not targets or limit <= 0:
            return []
        return await self._server.read(partial(_waiting, targets=targets, limit=limit))

    async def offer(self, offers: Sequence[Offer]) -> list[Job | None]:
        return await self._offering(offers)

    async def adopt(self, jobs: Sequence[Job]) -> list[bool]:
        return await self._adopting(jobs)

    async def unreplied(self, limit: int) -> list[Job]:
        return await self._server.read(partial(_unreplied, limit=max(limit, 0)))

    async def replied(self, ids: Sequence[str]) -> None:
        if ids:
            await self._server.write(partial(_replied, ids=ids))

    async def bury(self, letters: Sequence[Letter]) -> None:
        if letters:
            await self._server.write(partial(_bury, letters=letters))

    async def letters(self, limit: int = 50) -> list[Letter]:
        return await self._server.read(partial(_letters, limit=max(limit, 0)))

    async def keep(self, chunks: Sequence[Chunk]) -> None:
        if chunks:
            await self._server.write(partial(_keep, chunks=chunks))

    async def kept(self, id: str, attempt: int) -> list[Chunk]:
        return await self._server.read(partial(_kept, id=id, attempt=attempt))

    async def forget(self, id: str) -> None:
        sql = "DELETE FROM fp_chunks WHERE id = :id"
        await self._server.write(lambda db: db.run(sql, id=id))


# Units of work ------------------------------------------------------------------------------


def _lead(db: Db, *, role: str, owner: str, seconds: float) -> bool:
    """Lock the row of the role, made free where there is none; then take it if it may be had."""
    who = {"role": role, "me": json.dumps(owner).encode()}
    if seconds <= 0:
        db.run("DELETE FROM fp_members WHERE kind = 'lead' AND name = :role AND info = :me", **who)
        return False
    free = "INSERT INTO fp_members (kind, name, info, seen_at, until) VALUES ('lead', :role, :no"
    db.run(f"{free}, 0, 0) {db.server.upsert('kind, name', ('name',))}", role=role, no=b"")
    now = db.server.clock
    taken = db.run(
        f"UPDATE fp_members SET info = :me, seen_at = {now}, until = {now} + :seconds "
        f"WHERE kind = 'lead' AND name = :role AND (info = :me OR until <= {now})",
        seconds=float(seconds),
        **who,
    )
    return taken == 1


def _wanted(db: Db) -> dict[str, float]:
    server = db.server
    sql = f"SELECT {server.wanted}, min(run_at) FROM fp_jobs WHERE {server.queued_for_agents}"
    return dict(map(tuple, db.rows(f"{sql} GROUP BY {server.wanted}")))


def _waiting(db: Db, *, targets: Sequence[str], limit: int) -> list[Job]:
    server = db.server
    sql = (
        f"SELECT {WITHOUT_BLOBS} FROM fp_jobs WHERE {server.queued_for_agents} "
        f"AND {server.one_of(server.wanted, 'each_target')} AND run_at <= {server.clock} "
        f"AND (expires_at IS NULL OR expires_at > {server.clock} OR started_at IS NOT NULL) "
        "ORDER BY priority DESC, run_at, seq LIMIT :limit"
    )
    rows = db.rows(sql, each_target=list(targets), limit=limit)
    return [sql_tables.job(row) for row in rows]


def _offer(db: Db, offers: Sequence[Offer]) -> list[Job | None]:
    _, rows = sql_claiming.locked(db, [offer.id for offer in offers], ALL)
    changed: list[tuple[int, Changes]] = []
    answers: list[Job | None] = []
    for offer in offers:
        seq, job = rows.get(offer.id, (0, None))
        changes = None if job is None else rules.offered(job, offer)
        if job is None or changes is None:
            answers.append(None)
            continue
        changed.append((seq, changes))
        rows[offer.id] = seq, replace(job, **changes)
        answers.append(rows[offer.id][1])
    sql_tables.change(db, changed)
    return answers


def _adopt(db: Db, jobs: Sequence[Job]) -> list[bool]:
    """Somebody who adopts the same at the same moment makes this one be tried again."""
    now = db.now()
    there = sql_claiming.known(db, [job.id for job in jobs])
    new: dict[str, Job] = {}
    answers: list[bool] = []
    for job in jobs:
        answers.append(job.id not in there and job.id not in new)
        if answers[-1]:
            new[job.id] = rules.adopted(job, now)
    if new:
        sql_tables.insert_whole(db, [new[id] for id in sorted(new)])
    fired = rules.fired_elsewhere(new.values())
    for id, (count, last) in fired.items():  # by id: others wait for these rows, too
        db.run(_FIRED, id=id, count=count, last=last)
    return answers


_FIRED = (
    "UPDATE fp_schedules SET fired = fired + :count, last_fire_time = CASE "
    "WHEN last_fire_time > :last THEN last_fire_time ELSE :last END WHERE id = :id"
)


def _unreplied(db: Db, *, limit: int) -> list[Job]:
    server = db.server
    sql = (
        f"SELECT {ALL} FROM fp_jobs WHERE {server.unreplied} AND pruned = FALSE "
        f"ORDER BY {server.reply_order} LIMIT :limit"
    )
    return [sql_tables.job(row) for row in db.rows(sql, limit=limit)]


def _replied(db: Db, *, ids: Sequence[str]) -> None:
    now, rows = sql_claiming.locked(db, ids)
    sql_tables.change(db, [(seq, {"replied_at": now}) for seq, _ in rows.values()])


_LETTER = Letter.__struct_fields__
_CHUNK = Chunk.__struct_fields__


def _bury(db: Db, *, letters: Sequence[Letter]) -> None:
    now = db.now()
    sql = f"{sql_tables.insert('fp_letters', _LETTER)} {db.server.untouched}"
    db.many(sql, [_buried(letter, now) for letter in letters])


def _buried(letter: Letter, now: float) -> dict[str, Any]:
    """Without NULs, which PostgreSQL refuses: what strangers send must not make this fail."""
    topic, reason = (text.replace("\0", "\ufffd") for text in (letter.topic, letter.reason))
    return {**asdict(letter), "topic": topic, "reason": reason, "at": letter.at or now}


def _letters(db: Db, *, limit: int) -> list[Letter]:
    names = ", ".join(f'"{name}"' for name in _LETTER)
    sql = f'SELECT {names} FROM fp_letters ORDER BY "at" DESC, seq DESC LIMIT :limit'
    rows = db.rows(sql, limit=limit)
    return [Letter(**dict(zip(_LETTER, row, strict=True))) for row in rows]


def _keep(db: Db, *, chunks: Sequence[Chunk]) -> None:
    now = db.now()
    sql = f"{sql_tables.insert('fp_chunks', (*_CHUNK, 'at'))} {db.server.untouched}"
    db.many(sql, [{**asdict(chunk), "at": now} for chunk in chunks])


def _kept(db: Db, *, id: str, attempt: int) -> list[Chunk]:
    names = ", ".join(f'"{name}"' for name in _CHUNK)
    where = 'id = :id AND attempt = :attempt ORDER BY "index"'
    rows = db.rows(f"SELECT {names} FROM fp_chunks WHERE {where}", id=id, attempt=attempt)
    return [Chunk(*row) for row in rows]
