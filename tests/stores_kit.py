"""Every kind of store for the tests: where it is, how to look behind it, how to cut a verb off.

Run as a program it is a process that works on a store: `python stores_kit.py claim TYPE URI`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import re
import signal
import sqlite3
import subprocess
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import services
from msgspec.structs import asdict

from fp_async import processes
from fp_async.config import DataStore
from fp_async.jobs import Job, Offer, Report, new_id
from fp_async.stores import Store, connect

KINDS = ("memory", "sqlite", "postgres", "mysql", "mongodb")
SHARED = KINDS[1:]
SQL = ("sqlite", "postgres", "mysql")
A, B = processes.owner("a"), processes.owner("b")
Q = ["default"]
shared = pytest.mark.parametrize("place", SHARED, indirect=True)
_MODULES = {"postgres": "sql", "mysql": "sql", "mongodb": "mongo"}


def job(**fields: Any) -> Job:
    return Job(
        id=fields.pop("id", None) or new_id(), pipeline=fields.pop("pipeline", "flow"), **fields
    )


async def other(place, store):
    """The store as another process sees it; itself where nobody else can."""
    return await place.opened() if store.shared else store


async def running(store, owner=A, lease=60.0, **fields):
    (id,) = await store.add([job(**fields)])
    (claimed,) = await store.claim(owner, Q, 1, lease)
    assert claimed.id == id
    return claimed


def report(job, event="succeed", **fields):
    return Report(id=job.id, attempt=fields.pop("attempt", job.attempt), event=event, **fields)


async def state(store, id):
    return (await store.get(id)).state


def many(place, count):
    """As many as need several statements; the stand-in for MongoDB takes 10 ms for each job."""
    return count if place.kind != "mongodb" else count // 10


class Place:
    """One database of one kind, and what the contract has no verb for."""

    def __init__(self, kind: str, uri: str | None) -> None:
        self.kind = kind
        self.settings = DataStore(type=kind, uri=uri)
        self._opened: list[Store] = []

    def store(self) -> Store:
        """Another one, not opened yet; closed at the end of the test."""
        self._opened.append(connect(self.settings, Path("/")))
        return self._opened[-1]

    async def opened(self) -> Store:
        store = self.store()
        await store.open()
        return store

    async def close(self) -> None:
        for store in self._opened:
            await store.close()

    async def clear(self) -> None:
        """Forget the rows that an earlier test has left on a server."""
        if self.kind in ("postgres", "mysql"):
            for table in TABLES:
                await self.sql(f"DELETE FROM {table}")
        elif self.kind == "mongodb":
            async with _mongo(self.settings.uri) as database:
                for name in TABLES:
                    await database[name].delete_many({})

    async def drop(self) -> None:
        """As before the first time that anybody opened it."""
        if self.kind in ("postgres", "mysql"):
            for table in (*TABLES, SCHEMA_TABLE):
                await self.sql(f"DROP TABLE IF EXISTS {table}")
        elif self.kind == "mongodb":
            async with _mongo(self.settings.uri) as database:
                await database.client.drop_database(database)

    async def change(self, store: Store, id: str, **fields: Any) -> None:
        """Write into the row of a job, whatever the rules say."""
        if self.kind in ("memory", "sqlite"):
            from fp_async.stores import tables

            await store._units.write(lambda db: tables.change(db, id, fields))
        elif self.kind == "mongodb":
            async with _mongo(self.settings.uri) as database:
                await database.fp_jobs.update_one({"_id": id}, {"$set": fields})
        else:
            names = ", ".join(f"{name} = :{name}" for name in fields)
            await self.sql(f"UPDATE fp_jobs SET {names} WHERE id = :the_id", the_id=id, **fields)

    async def age(self, store: Store, table: str, seconds: float) -> None:
        """Make all letters or chunks older."""
        if self.kind in ("memory", "sqlite"):
            sql = f"UPDATE {table} SET at = at - {seconds}"
            await store._units.write(lambda db: db.execute(sql).rowcount)
        elif self.kind == "mongodb":
            async with _mongo(self.settings.uri) as database:
                await database[f"fp_{table}"].update_many({}, {"$inc": {"at": -seconds}})
        else:
            await self.sql(f"UPDATE fp_{table} SET at = at - :seconds", seconds=seconds)

    async def make_version_1(self, jobs: Sequence[Job]) -> None:
        """A database as schema version 1 made it, with these jobs in it."""
        await self.drop()
        rows = [
            {name: value for name, value in asdict(job).items() if name not in SINCE_2}
            for job in jobs
        ]
        make = {"sqlite": _sqlite_version_1, "mongodb": _mongo_version_1}
        await make.get(self.kind, _sql_version_1)(self, rows)

    async def set_schema(self, store: Store, version: int) -> None:
        """Make the store look as if another version of the program had used it."""
        if self.kind == "sqlite":
            await store._units.alone(lambda db: db.execute(f"PRAGMA user_version = {version}"))
        elif self.kind == "mongodb":
            async with _mongo(self.settings.uri) as database:
                await database.fp_meta.update_one({"_id": "schema"}, {"$set": {"version": version}})
        else:
            await self.sql(f"UPDATE {SCHEMA_TABLE} SET version = {version}")

    async def states_checked(self, store: Store) -> set[str]:
        """The states that the database itself lets a job have."""
        if self.kind == "sqlite":
            sql = "SELECT sql FROM sqlite_master WHERE name = 'jobs'"
            text = (await store._units.read(lambda db: db.execute(sql).fetchone()))[0]
        elif self.kind == "postgres":
            rows = await self.sql(
                "SELECT pg_get_constraintdef(oid) FROM pg_constraint "
                "WHERE contype = 'c' AND conrelid = 'fp_jobs'::regclass"
            )
            text = " ".join(f"CHECK {row[0]}" for row in rows)
        else:
            rows = await self.sql(
                "SELECT check_clause FROM information_schema.check_constraints "
                "WHERE constraint_schema = database() AND table_name = 'fp_jobs'"
            )
            text = " ".join(f"CHECK {row[0]}" for row in rows)
        found = re.findall(r"CHECK.*?\bstate\b.*?(?:IN|ANY)\s*\(+(.*?)\)", text, re.S | re.I)
        return {state for clause in found for state in re.findall(r"'(\w+)'", clause)}

    async def sql(self, statement: str, **values: Any) -> list[Any]:
        from sqlalchemy import text
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine(_sqlalchemy_url(self.settings.uri))
        try:
            async with engine.begin() as connection:
                result = await connection.execute(text(statement), values)
                return list(result.fetchall()) if result.returns_rows else []
        finally:
            await engine.dispose()


SINCE_2 = ("offer", "unreported", "trigger", "reply_to", "correlation", "replied_at")


async def _sqlite_version_1(place: Place, rows: Sequence[dict[str, Any]]) -> None:
    from fp_async.stores import sqlite_path, tables

    path = sqlite_path(place.settings.uri, Path("/"))
    names = ", ".join(f'"{name}"' for name in rows[0])
    values = ", ".join("?" * len(rows[0]))
    with closing(sqlite3.connect(path)) as db, db:
        for statement in tables.MIGRATIONS[1]:
            db.execute(statement)
        db.execute("PRAGMA user_version = 1")
        every = [tuple(row.values()) for row in rows]
        db.executemany(f"INSERT INTO jobs ({names}) VALUES ({values})", every)


async def _sql_version_1(place: Place, rows: Sequence[dict[str, Any]]) -> None:
    from fp_async.stores import sql_tables
    from fp_async.stores.sql_transactions import Transactions

    def make(db: sql_tables.Db) -> None:
        if isinstance(db.server, sql_tables.MySql):
            db.server.learn(db)
        for statement in db.server.create(1):
            db.run(statement)
        db.run(f"CREATE TABLE {SCHEMA_TABLE} (version BIGINT NOT NULL PRIMARY KEY)")
        db.run(f"INSERT INTO {SCHEMA_TABLE} VALUES (1)")
        db.many(sql_tables.insert("fp_jobs", tuple(rows[0])), rows)

    server = Transactions(place.kind, place.settings.uri)
    server.connect()
    try:
        await server.write(make)
    finally:
        await server.close()


async def _mongo_version_1(place: Place, rows: Sequence[dict[str, Any]]) -> None:
    numbered = ({"seq": seq, "rev": 0, **row} for seq, row in enumerate(rows))
    async with _mongo(place.settings.uri) as database:
        await database.fp_jobs.insert_many([{"_id": row.pop("id"), **row} for row in numbered])
        await database.fp_meta.insert_one({"_id": "schema", "version": 1})


class _Any:
    """Equal to whatever it is compared with."""

    def __eq__(self, _: object) -> bool:
        return True

    __hash__ = None


ANY = _Any()
TABLES = ("fp_jobs", "fp_schedules", "fp_members", "fp_letters", "fp_chunks")
SCHEMA_TABLE = "fp_schema"


def _sqlalchemy_url(uri: str) -> str:
    drivers = {"postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
    drivers |= {"mysql": "mysql+asyncmy", "mariadb": "mariadb+asyncmy"}
    scheme, _, rest = uri.partition("://")
    return f"{drivers.get(scheme, scheme)}://{rest}"


class _mongo:
    """The database itself, for as long as the block lasts."""

    def __init__(self, uri: str) -> None:
        import pymongo

        self._client = pymongo.AsyncMongoClient(uri)

    async def __aenter__(self) -> Any:
        return self._client.get_default_database("flowerpower")

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()


# Servers ------------------------------------------------------------------------------------


def need(kind: str) -> None:
    """Skip a store whose module does not exist yet."""
    module = _MODULES.get(kind)
    if module and importlib.util.find_spec(f"fp_async.stores.{module}") is None:
        services.missing(f"fp_async/stores/{module}.py is not written yet")


class SecantusDB(services.Server):
    """What speaks MongoDB's protocol where there is no MongoDB: a package of PyPI."""

    options: tuple[str, ...] | list[str] = ()

    @property
    def uri(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/flowerpower_test"

    def command(self) -> list[str]:
        program = Path(sys.executable).parent / "secantusd-py"
        if not program.exists():
            services.missing("no MongoDB: set FP_MONGODB_URI, or pip install --pre secantusdb")
        where = ["--host", "127.0.0.1", "--port", str(self.port)]
        return [str(program), *where, "--storage-path", str(self.folder / "data"), *self.options]


@contextmanager
def databases() -> Iterator[Callable[[str], str]]:
    """Makes the URI of an empty database of a kind, the same one each time."""
    with ExitStack() as stack:

        @cache
        def uri(kind: str) -> str:
            if kind == "mongodb":
                given = os.environ.get("FP_MONGODB_URI")
                return given or stack.enter_context(SecantusDB()).uri
            fresh = {"postgres": services.fresh_postgres, "mysql": services.fresh_mysql}[kind]
            if services.reachable(services.PORTS[kind]):
                return stack.enter_context(fresh())
            server = stack.enter_context(services.SERVERS[kind]())
            return stack.enter_context(fresh(server.uri))

        yield uri


# Cutting off --------------------------------------------------------------------------------


@types.coroutine
def _stepped(work: Coroutine[Any, Any, Any], n: int, late: bool) -> Any:
    task = asyncio.current_task()
    error: BaseException | None = None
    for i in itertools.count():
        try:
            future = work.send(None) if error is None else work.throw(error)
        except StopIteration as stop:
            return stop.value
        if i == n and late and future is not None:
            future.add_done_callback(lambda _: task.cancel())
        elif i == n:
            task.cancel()
        try:
            error = None
            yield future
        except BaseException as raised:
            error = raised


async def cut_off(work: Coroutine[Any, Any, Any], n: int, *, late: bool = False) -> bool:
    """Run `work`, cancelled where it waits for the n-th time; False if it ended before that.

    `late` cancels it when what it waits for has come, but before it has heard of it.
    """

    async def run() -> None:
        await _stepped(work, n, late)

    task = asyncio.create_task(run())
    await asyncio.wait([task], timeout=30)
    if not task.cancelled():
        task.result()  # raises what went wrong
    return task.cancelled()


def leaves_sockets(test):
    """pymongo leaves the socket of a connection that was cancelled to the garbage collector."""
    warning = "ignore:Exception ignored.*<socket:pytest.PytestUnraisableExceptionWarning"
    return pytest.mark.usefixtures("_collected")(pytest.mark.filterwarnings(warning)(test))


def shape(row):
    """What of a job says how far it has come."""
    if row is None:
        return None
    unset = ("owner", "lease_until", "slot", "lane_held", "ended_at", "cancel_at", "started_at")
    values = (row.state, row.attempt, row.errors, row.crashes, row.active_key is not None)
    return (*values, *(getattr(row, name) is not None for name in unset), row.result, row.record)


class Verb:
    """A verb, a row to try it on, and what of the row it changes."""

    def __init__(self, name, prepare, call, look=None):
        self.name, self.prepare, self.call = name, prepare, call
        self.look = look or _shape_of

    def __repr__(self):
        return self.name


async def _shape_of(store: Store, id: str) -> Any:
    return shape(await store.get(id))


async def leaves_before_or_after(store: Store, verb: Verb) -> None:
    """Cancelled at any await, the verb has done nothing or all; called again, it has done all."""
    await verb.prepare(store, "whole")
    before = await verb.look(store, "whole")
    await verb.call(store, "whole")
    after = await verb.look(store, "whole")
    assert before != after
    for late in (False, True):
        for n in range(1000):
            id = f"{n}-{late}"
            await verb.prepare(store, id)
            cut = await cut_off(verb.call(store, id), n, late=late)
            assert await verb.look(store, id) in (before, after)

            async def done(id: str = id) -> bool:
                await verb.call(store, id)  # again, as whoever was cut off may
                return bool(await verb.look(store, id) == after)

            await eventually(done)
            if not cut:
                break
        else:
            pytest.fail("it never ends")


async def eventually(look: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    """Wait until the server is done with what nobody waits for any more."""
    async with asyncio.timeout(seconds):
        while not await look():
            await asyncio.sleep(0.01)


# Processes ----------------------------------------------------------------------------------


class Worker:
    """A process that works on a store; its lines are what it has done for certain."""

    def __init__(self, command: str, place: Place, *args: str) -> None:
        line = [sys.executable, __file__, command, place.kind, place.settings.uri or "", *args]
        self.process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def kill(self) -> list[str]:
        """kill -9; the whole lines that it has written."""
        self.process.send_signal(signal.SIGKILL)
        text = self._left()
        return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def rest(self) -> list[str]:
        """Wait for its end; all that it has written since."""
        text = self._left()
        assert self.process.returncode == 0
        return text.split("\n")[:-1]

    def _left(self) -> str:
        """All that it has written since, once it has ended. `communicate` would leave out what
        `line` has read ahead, and begin in the middle of a line.
        """
        with self.process:
            return self.process.stdout.read()


def _say(*words: object) -> None:
    print(*words, flush=True)


async def _ready(store: Store) -> None:
    await store.open()
    _say("ready")
    await asyncio.to_thread(sys.stdin.readline)


async def _open(store: Store) -> None:
    _say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    await store.open()
    await store.add([job()])


async def _claim(store: Store, limit: str) -> None:
    """Claim until nothing is left."""
    await _ready(store)
    while jobs := await store.claim(processes.owner("worker"), ["default"], int(limit), 60):
        for each in jobs:
            _say(each.id)


async def _add(store: Store) -> None:
    await _ready(store)
    while True:
        for id in await store.add([job() for _ in range(3)]):
            _say(id)


async def _lead(store: Store, count: str) -> None:
    """Take so many roles, as far as they are free."""
    await _ready(store)
    me = processes.owner("leader")
    for n in range(int(count)):
        if await store.fleet.lead(f"role-{n}", me, 60):
            _say(n)


async def _offer(store: Store, agent: str) -> None:
    """Bind to an agent whatever waits for any one, which others do at the same time."""
    await _ready(store)
    ids = [each.id for each in await store.fleet.waiting(["any:x=y"], 1000)]
    for start in range(0, len(ids), 3):
        offers = [Offer(id, 0, agent) for id in ids[start : start + 3]]
        for bound in await store.fleet.offer(offers):
            if bound is not None:
                _say(bound.id)


async def _adopt(store: Store, count: str) -> None:
    await _ready(store)
    for start in range(0, int(count), 3):
        jobs = [job(id=f"from-an-agent-{start + n}", state="failed") for n in range(3)]
        done = await store.fleet.adopt(jobs)
        for each, own in zip(jobs, done, strict=True):
            if own:
                _say(each.id)


async def _churn(store: Store) -> None:
    """Add, claim, end, for ever."""
    await _ready(store)
    owner = processes.owner("churn")
    while True:
        await store.add([job(concurrency=5, lane="lane") for _ in range(2)])
        for each in await store.claim(owner, ["default"], 4, 60):
            await store.finish(
                [Report(id=each.id, attempt=each.attempt, event="succeed", result=b"r")]
            )
            _say(each.id)


_COMMANDS: dict[str, Callable[..., Awaitable[None]]] = {
    "open": _open,
    "claim": _claim,
    "add": _add,
    "churn": _churn,
    "lead": _lead,
    "offer": _offer,
    "adopt": _adopt,
}


async def _main(command: str, kind: str, uri: str, *args: str) -> None:
    store = connect(DataStore(type=kind, uri=uri or None), Path("/"))
    try:
        await _COMMANDS[command](store, *args)
    finally:
        await store.close()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
