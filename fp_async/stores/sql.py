"""Jobs in PostgreSQL, MySQL or MariaDB, for workers on many machines.

Every verb is one READ COMMITTED transaction, and a task of its own: cancelled before its commit
it is undone, later it is done. Calls of `add` and of `finish` that come while one is under way
share the next transaction. All times are by the database's clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fp_async import processes
from fp_async.errors import MissingExtraError, StoreError, StoreUnavailableError
from fp_async.jobs import MISCONFIGURED, Find, Fire, Job, Member, Report, Schedule
from fp_async.stores import AFTER_HEX, SCHEMA_VERSION, IdColumn

try:
    from fp_async.stores import sql_claiming, sql_quick, sql_tables
    from fp_async.stores.sql_fleet import SqlFleet
    from fp_async.stores.sql_tables import HELD_STATES, WITHOUT_BLOBS, Db
    from fp_async.stores.sql_transactions import Merged, Transactions
except ImportError as error:
    if error.name is None or error.name.partition(".")[0] not in ("sqlalchemy", "greenlet"):
        raise
    raise MissingExtraError("a data store in PostgreSQL or MySQL", "postgres,mysql") from error


if TYPE_CHECKING:
    from fp_async.stores.sql_transfer import SqlTransfer

_CLOCK_SECONDS = 10.0  # how long a look at the server's clock is counted on from


class SqlStore:
    """The store contract (`stores`) on a server: `kind` is postgres or mysql."""

    joins = False
    path = None

    def __init__(self, kind: str, uri: str) -> None:
        self._server = Transactions(kind, uri)
        self._quick = kind == "postgres"
        quick = (sql_quick.add, sql_quick.finish) if self._quick else (None, None)
        self._adding = Merged(self._server, sql_claiming.add, quick[0])
        self._finishing = Merged(self._server, sql_claiming.finish, quick[1])
        self.fleet: SqlFleet = SqlFleet(self._server)
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")
        self._ahead = 0.0

    def __repr__(self) -> str:
        return f"<SqlStore {self._server.place}>"

    @property
    def shared(self) -> bool:
        return True

    @property
    def transfer(self) -> SqlTransfer:
        from fp_async.stores.sql_transfer import SqlTransfer

        return SqlTransfer(self._server)

    async def open(self) -> None:
        self._server.connect()
        try:
            if await self._server.read(_schema) != SCHEMA_VERSION:
                await self._server.write(_migrate, _MIGRATION_SECONDS)
        except BaseException:
            await self._server.close()
            raise

    async def close(self) -> None:
        await self._server.close()

    async def now(self) -> float:
        """The server's clock, counted on by the machine's, which nothing sets back."""
        if self._is_old():
            async with self._looking:  # one of all who come at once
                if self._is_old():
                    await self._look()
        return processes.lease_clock() + self._ahead

    def _is_old(self) -> bool:
        return processes.lease_clock() - self._looked_at > _CLOCK_SECONDS

    async def _look(self) -> None:
        before = processes.lease_clock()
        time = await self._server.read(lambda db: db.now())
        self._looked_at = processes.lease_clock()
        self._ahead = time - (before + self._looked_at) / 2

    # Jobs -----------------------------------------------------------------------------------

    async def add(self, jobs: Sequence[Job]) -> list[str]:
        return await self._adding(jobs)

    async def claim(
        self,
        owner: str,
        queues: Sequence[str],
        limit: int,
        lease: float,
        without: Sequence[str] = (),
    ) -> list[Job]:
        """Cancelled, it may have claimed some: their leases run out."""
        claimed: list[Job] = []
        if self._quick and len(queues) == 1 and limit > 0 and not without:
            claimed, more = await self._server.single(
                lambda: sql_quick.claim(owner, queues[0], limit, lease)
            )
            if not more:
                return claimed
        left = limit - len(claimed)
        unit = partial(
            sql_claiming.claim,
            owner=owner,
            queues=queues,
            limit=left,
            lease=lease,
            without=without,
        )
        try:
            return claimed + await self._server.write(unit)
        except StoreUnavailableError:
            if claimed:  # they are the caller's
                return claimed
            raise

    async def renew(self, owner: str, held: Sequence[tuple[str, int]], lease: float) -> list[str]:
        unit = partial(sql_claiming.renew, owner=owner, held=held, lease=lease)
        return await self._server.write(unit) if held else []

    async def note(self, records: Sequence[tuple[str, int, bytes]]) -> None:
        if records:
            await self._server.write(partial(sql_claiming.note, records=records))

    async def finish(self, reports: Sequence[Report]) -> list[bool]:
        return await self._finishing(reports)

    async def cancel(self, id: str, reason: str | None = None) -> str | None:
        return await self._server.write(partial(sql_claiming.cancel, id=id, reason=reason))

    async def rescue(self, dead: Sequence[str] = ()) -> list[Job]:
        ids = await self._server.read(partial(sql_claiming.troubled, dead=dead))
        if not ids:
            return []
        return await self._server.write(partial(sql_claiming.rescue, ids=ids, dead=dead))

    async def owners(self) -> list[str]:
        return await self._server.read(_owners)

    async def get(self, id: str) -> Job | None:
        return await self._server.single(lambda: sql_quick.get(id))

    async def find(self, query: Find) -> list[Job]:
        return await self._server.read(partial(_find, query=query))

    async def ids(
        self, beginnings: Sequence[str], limit: int = 2, *, of: IdColumn = "id"
    ) -> list[list[str]]:
        unit = partial(_ids, beginnings=beginnings, limit=limit, of=of)
        return await self._server.read(unit)

    async def counts(self) -> dict[tuple[str, str], int]:
        return await self._server.read(_counts)

    async def next_run_at(self, queues: Sequence[str], without: Sequence[str] = ()) -> float | None:
        if self._quick and not without:
            return await self._server.single(lambda: sql_quick.next_run_at(queues))
        unit = partial(sql_claiming.next_run_at, queues=queues, without=without)
        return await self._server.read(unit)

    async def misconfigured(self) -> dict[tuple[str, str, str], int]:
        return await self._server.read(_misconfigured)

    async def prune(self, limit: int = 1000) -> int:
        return await self._server.write(partial(sql_claiming.prune, limit=limit))

    # Schedules ------------------------------------------------------------------------------

    async def put(self, schedule: Schedule) -> Schedule:
        return await self._server.write(partial(sql_claiming.put, schedule=schedule))

    async def schedule(self, id: str) -> Schedule | None:
        found = await self._schedules("id = :id", id=id)
        return found[0] if found else None

    async def schedules(self) -> list[Schedule]:
        return await self._schedules("1 = 1 ORDER BY id")

    async def pause(
        self, id: str, *, paused: bool, next_fire_time: float | None = None
    ) -> Schedule | None:
        unit = partial(sql_claiming.pause, id=id, paused=paused, next_fire_time=next_fire_time)
        return await self._server.write(unit)

    async def delete(self, id: str) -> bool:
        sql = "DELETE FROM fp_schedules WHERE id = :id"
        return await self._server.write(lambda db: db.run(sql, id=id) > 0)

    async def due(self, until: float, limit: int = 500) -> list[Schedule]:
        where = "paused = FALSE AND next_fire_time <= :until ORDER BY next_fire_time LIMIT :limit"
        return await self._schedules(where, until=until, limit=limit)

    async def next_due(self) -> float | None:
        sql = "SELECT min(next_fire_time) FROM fp_schedules WHERE paused = FALSE"
        value: float | None = (await self._server.read(lambda db: db.rows(sql)))[0][0]
        return value

    async def fire(self, fires: Sequence[Fire]) -> list[list[str] | None]:
        if not fires:
            return []
        return await self._server.write(partial(sql_claiming.fire, fires=fires))

    async def _schedules(self, where: str, **values: object) -> list[Schedule]:
        sql = f"SELECT {sql_tables.SCHEDULE} FROM fp_schedules WHERE {where}"
        rows = await self._server.read(lambda db: db.rows(sql, **values))
        return [sql_tables.schedule(row) for row in rows]

    # Members --------------------------------------------------------------------------------

    async def saw(self, member: Member, seconds: float) -> None:
        await self._server.write(partial(_saw, member=member, seconds=seconds))

    async def members(self, kind: str) -> list[Member]:
        return await self._server.read(partial(_members, kind=kind))

    # Housekeeping ---------------------------------------------------------------------------

    async def info(self) -> dict[str, Any]:
        facts = await self._server.read(_sizes)
        place = self._server.place
        return {"type": self._server.kind, "place": place, "schema": SCHEMA_VERSION, **facts}

    async def vacuum(self) -> None:
        await self._server.alone(_vacuum)


# Units of work ------------------------------------------------------------------------------


_MIGRATION_SECONDS = 600.0  # it may have to copy a table


def _schema(db: Db) -> int:
    """The version of the tables, on a server that is known from here on."""
    if isinstance(db.server, sql_tables.MySql):
        db.server.learn(db)
    return _version(db)


def _migrate(db: Db) -> None:
    """Bring the tables to this version. Raises StoreError where they are newer."""
    if db.rows(db.server.lock)[0][-1] != 1:  # processes that start together wait here
        raise StoreUnavailableError("another process is still upgrading the tables")
    try:
        _bring(db, _version(db))
    finally:
        db.rows(db.server.unlock)


def _bring(db: Db, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"the data store has schema version {version}, this program knows {SCHEMA_VERSION}: "
            "it was used by a newer flowerpower; upgrade this one"
        )
    for number in range(version + 1, SCHEMA_VERSION + 1):
        for statement in db.server.create(number):
            db.server.make(db, statement)
    if version == 0:
        db.run("CREATE TABLE IF NOT EXISTS fp_schema (version BIGINT NOT NULL PRIMARY KEY)")
        db.run("INSERT INTO fp_schema VALUES (:version)", version=SCHEMA_VERSION)
    elif version < SCHEMA_VERSION:
        db.run("UPDATE fp_schema SET version = :version", version=SCHEMA_VERSION)


def _version(db: Db) -> int:
    known = db.rows(
        "SELECT 1 FROM information_schema.tables "
        f"WHERE table_name = 'fp_schema' AND table_schema = {db.server.here}"
    )
    rows = db.rows("SELECT version FROM fp_schema") if known else []
    return int(rows[0][0]) if rows else 0


def _owners(db: Db) -> list[str]:
    sql = f"SELECT DISTINCT owner FROM fp_jobs WHERE {HELD_STATES} AND owner IS NOT NULL"
    return [owner for (owner,) in db.rows(sql)]


def _find(db: Db, *, query: Find) -> list[Job]:
    terms, values = ["pruned = FALSE"], dict[str, object]()
    if query.states:
        terms.append(db.server.one_of("state", "each_state"))
        values["each_state"] = list(query.states)
    for name in ("pipeline", "queue", "schedule_id", "group_id", "owner", "agent"):
        if getattr(query, name) is not None:
            terms.append(f"{name} = :{name}")
            values[name] = getattr(query, name)
    if query.bound:
        terms.append("agent IS NOT NULL")
    if query.since is not None:
        terms.append("created_at >= :since")
        values["since"] = query.since
    where = " AND ".join(terms)
    sql = f"SELECT {WITHOUT_BLOBS} FROM fp_jobs WHERE {where} ORDER BY seq DESC LIMIT :limit"
    return [sql_tables.job(row) for row in db.rows(sql, limit=query.limit, **values)]


def _ids(db: Db, *, beginnings: Sequence[str], limit: int, of: IdColumn) -> list[list[str]]:
    sql = (
        f"SELECT DISTINCT {of} FROM fp_jobs WHERE {of} >= :first AND {of} < :after "
        f"AND pruned = FALSE ORDER BY {of} LIMIT :limit"
    )
    found = (db.rows(sql, first=text, after=text + AFTER_HEX, limit=limit) for text in beginnings)
    return [[id for (id,) in rows] for rows in found]


def _counts(db: Db) -> dict[tuple[str, str], int]:
    sql = "SELECT queue, state, count(*) FROM fp_jobs WHERE pruned = FALSE GROUP BY queue, state"
    return {(queue, state): count for queue, state, count in db.rows(sql)}


def _misconfigured(db: Db) -> dict[tuple[str, str, str], int]:
    sql = (
        "SELECT queue, pipeline, reason, count(*) FROM fp_jobs "
        "WHERE state IN ('queued', 'accepted') AND reason LIKE :begins "
        "GROUP BY queue, pipeline, reason"
    )
    rows = db.rows(sql, begins=f"{MISCONFIGURED}%")
    return {(queue, pipeline, reason): count for queue, pipeline, reason, count in rows}


def _saw(db: Db, *, member: Member, seconds: float) -> None:
    if seconds <= 0:
        sql = "DELETE FROM fp_members WHERE kind = :kind AND name = :name"
        db.run(sql, kind=member.kind, name=member.name)
        return
    now = db.now()
    db.run(
        "INSERT INTO fp_members (kind, name, info, seen_at, until) "
        "VALUES (:kind, :name, :info, :now, :until) "
        + db.server.upsert("kind, name", ("info", "seen_at", "until")),
        kind=member.kind,
        name=member.name,
        info=member.info,
        now=now,
        until=now + seconds,
    )


def _members(db: Db, *, kind: str) -> list[Member]:
    names = Member.__struct_fields__
    sql = (
        f"SELECT {', '.join(names)} FROM fp_members "
        f"WHERE kind = :kind AND until > {db.server.clock} ORDER BY name"
    )
    return [Member(**dict(zip(names, row, strict=True))) for row in db.rows(sql, kind=kind)]


_COUNTED = ("jobs", "schedules", "members")
_TABLES = (*_COUNTED, "letters", "chunks")


def _sizes(db: Db) -> dict[str, Any]:
    sizes = [db.rows(db.server.size, table=f"fp_{table}")[0][0] for table in _TABLES]
    counts = {name: db.rows(f"SELECT count(*) FROM fp_{name}")[0][0] for name in _COUNTED}
    ((version,),) = db.rows(db.server.version)
    return {"server": str(version), "bytes": sum(map(int, sizes)), **counts}


def _vacuum(db: Db) -> None:
    for table in _TABLES:
        db.do(db.server.clean.format(table=f"fp_{table}"))
