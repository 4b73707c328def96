"""What is special to PostgreSQL and MySQL: servers that die, refuse, hang, and collide."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets

import pytest
import services
import sqlalchemy

from fp_async.errors import ConfigError, MissingExtraError, StoreError, StoreUnavailableError
from fp_async.jobs import Find, Job, Member, Report, new_id
from fp_async.stores import SCHEMA_VERSION, sql_addresses, sql_tables, sql_transactions
from fp_async.stores.sql import SqlStore
from fp_async.stores.sql_transactions import Transactions

Q = ["default"]
FRESH = {"postgres": services.fresh_postgres, "mysql": services.fresh_mysql}
SERVERS = {"postgres": services.Postgres, "mysql": services.MariaDB}
SECRET = "hunter2-never-shown"


def job(**fields):
    return Job(
        id=fields.pop("id", None) or new_id(), pipeline=fields.pop("pipeline", "flow"), **fields
    )


def ended(job, **fields):
    return Report(id=job.id, attempt=job.attempt, event="succeed", **fields)


@pytest.fixture(scope="module", params=["postgres", "psycopg", "mysql"])
def place(request):
    """(kind, URI) of a database of this module's own."""
    kind = "mysql" if request.param == "mysql" else "postgres"
    if request.param == "psycopg":
        pytest.importorskip("psycopg")
    with FRESH[kind]() as uri:
        yield (
            kind,
            uri.replace("postgresql:", "postgresql+psycopg:")
            if request.param == "psycopg"
            else uri,
        )


@pytest.fixture
async def opened(place):
    """Opens stores on the same database; the rows are forgotten at the end."""
    async with contextlib.AsyncExitStack() as stack:

        async def make():
            store = SqlStore(*place)
            stack.push_async_callback(store.close)
            await store.open()
            return store

        yield make
        await statement(await make(), "DELETE FROM fp_jobs")


@pytest.fixture
async def store(opened):
    return await opened()


async def statement(store, sql, **values):
    return await store._server.write(lambda db: db.run(sql, **values))


async def free(store):
    """Wait until nothing is under way, and the pool has every connection but those at hand."""
    pool, direct = store._server._engine.pool, store._server._direct
    async with asyncio.timeout(10):
        while store._server._tasks or pool.checkedout() > (direct.idle if direct else 0):
            await asyncio.sleep(0.01)


# Addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "scheme", "driver"),
    [
        ("postgres", "postgresql+asyncpg", "postgresql+asyncpg"),
        ("postgres", "postgresql+asyncpq", "postgresql+asyncpg"),
        ("postgres", "postgresql", "postgresql+asyncpg"),
        ("postgres", "postgres", "postgresql+asyncpg"),
        ("postgres", "postgresql+psycopg", "postgresql+psycopg"),
        ("mysql", "mysql+aiomysql", "mysql+asyncmy"),
        ("mysql", "mysql", "mysql+asyncmy"),
        ("mysql", "mariadb", "mysql+asyncmy"),
        ("mysql", "mysql+asyncmy", "mysql+asyncmy"),
    ],
)
def test_every_spelling_of_a_uri_finds_its_driver(kind, scheme, driver):
    url = Transactions(kind, f"{scheme}://u:p%40ss@host:1/db")._url
    assert (url.drivername, url.password, url.host, url.database) == (driver, "p@ss", "host", "db")


def test_psycopg_is_taken_where_asyncpg_is_not_installed(monkeypatch):
    monkeypatch.setattr(sql_addresses, "find_spec", lambda name: name == "psycopg" or None)
    assert Transactions("postgres", "postgresql://h/d")._url.drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    ("kind", "uri"),
    [
        ("postgres", "postgres://h/d"),
        ("postgres", "postgresql+asyncpg://h/d"),
        ("mysql", "mysql://h/d"),
    ],
)
def test_a_missing_driver_names_the_extra(monkeypatch, kind, uri):
    monkeypatch.setattr(sql_addresses, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=f"data store '{kind}'.*fp-async.{kind}"):
        SqlStore(kind, uri)


def test_the_sslmode_of_postgres_is_understood():
    url = Transactions("postgres", "postgresql://h/d?sslmode=require")._url
    assert dict(url.query) == {"ssl": "require"}


def test_a_uri_that_cannot_be_read_is_not_repeated():
    with pytest.raises(ConfigError) as caught:
        SqlStore("postgres", f"postgresql://me:{SECRET}@host:port/db")
    assert SECRET not in str(caught.value)


def test_the_password_is_shown_nowhere():
    store = SqlStore("postgres", f"postgresql://me:{SECRET}@host/db?password={SECRET}")
    assert SECRET not in repr(store)
    assert "postgresql://host/db" in repr(store)


# Values -------------------------------------------------------------------------------------


async def test_what_half_a_claim_has_taken_is_the_callers(opened, place, monkeypatch):
    """The quick half takes the highest priority; the server goes before the other half."""
    if place[0] != "postgres":
        pytest.skip("MySQL claims in one piece")
    store = await opened()
    high, low = job(priority=5), job()
    await store.add([high, low])

    async def write(*_):
        raise StoreUnavailableError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(store._server, "write", write)
        claimed = await store.claim("me", Q, 10, 60)
        assert [each.id for each in claimed] == [high.id]
        with pytest.raises(StoreUnavailableError):
            await store.claim("me", ["default", "other"], 10, 60)
    assert [each.id for each in await store.claim("me", Q, 10, 60)] == [low.id]


async def test_any_bytes_come_back_as_they_were(store):
    blob = bytes(range(256)) * 300
    (id,) = await store.add([job(inputs=blob)])
    (held,) = await store.claim("o", Q, 1, 60)
    assert held.inputs == blob
    assert await store.finish([ended(held, result=blob[::-1], record=b"\0'\"\\%s:x")]) == [True]
    found = await store.get(id)
    assert (found.result, found.record) == (blob[::-1], b"\0'\"\\%s:x")


async def test_a_text_with_a_nul_is_refused_by_postgres_for_that_job_only(store, place):
    if place[0] == "mysql":
        pytest.skip("MySQL takes it")
    calls = [store.add([job(id=name)]) for name in ("a", "b\0", "c")]
    first, bad, last = await asyncio.gather(*calls, return_exceptions=True)
    assert (first, last) == (["a"], ["c"])
    assert isinstance(bad, StoreError)
    assert not isinstance(bad, StoreUnavailableError)
    assert await store.counts() == {("default", "queued"): 2}


async def test_a_key_that_is_too_long_is_refused_not_cut(store, place):
    key = "k" * 300
    if place[0] == "postgres":
        assert (await store.get((await store.add([job(key=key)]))[0])).key == key
        return
    good, bad = await asyncio.gather(
        store.add([job(id="good")]), store.add([job(key=key)]), return_exceptions=True
    )
    assert good == ["good"]
    with pytest.raises(StoreError, match="255 characters"):
        raise bad


async def test_keys_differ_by_case_accents_and_spaces_at_the_end(store):
    ids = await store.add([job(key=key) for key in ("a", "A", "á", "a ", "a  ", "🌼")])
    assert len(set(ids)) == 6
    assert await store.add([job(key="a ")]) == [ids[3]]


async def test_jobs_larger_than_one_statement_go_in_parts(store):
    ids = await store.add([job(inputs=bytes([65 + n]) * 9_000_000) for n in range(4)])
    assert [(await store.get(id)).inputs[0] for id in ids] == [65, 66, 67, 68]


async def test_a_job_larger_than_the_servers_packet_says_what_to_raise(store, place):
    if place[0] == "postgres":
        pytest.skip("PostgreSQL takes it")
    with pytest.raises(StoreError, match="max_allowed_packet"):
        await store.add([job(inputs=b"x" * 2**25)])
    (id,) = await store.add([job()])
    (held,) = await store.claim("o", Q, 1, 60)
    with pytest.raises(StoreError, match="max_allowed_packet"):
        await store.finish([ended(held, result=b"'" * (2**23 + 1))])
    assert await store.finish([ended(held)]) == [True]


async def test_a_member_and_a_find_with_colons_and_percents(store):
    await store.saw(Member(kind="worker", name=":x%s'\"\\", info=b"{}"), 60)
    assert [member.name for member in await store.members("worker")] == [":x%s'\"\\"]
    assert await store.find(Find(pipeline="100% :x")) == []


# Together and against each other ------------------------------------------------------------


async def test_calls_that_come_together_share_transactions(store):
    jobs = [job() for _ in range(200)]
    ids = await asyncio.gather(*(store.add([each]) for each in jobs))
    assert ids == [[each.id] for each in jobs]
    assert len({each.created_at for each in await store.find(Find(limit=1000))}) < 20
    held = await store.claim("o", Q, 200, 60)
    assert await asyncio.gather(*(store.finish([ended(each)]) for each in held)) == [[True]] * 200
    assert len({each.ended_at for each in await store.find(Find(limit=1000))}) < 20


async def test_two_processes_that_add_the_same_keys_at_once_get_the_same_ids(opened):
    keys = [f"key-{n}" for n in range(40)]

    async def add(store):
        random.shuffle(mine := keys.copy())
        return dict(zip(mine, await store.add([job(key=key) for key in mine]), strict=True))

    stores = [await opened() for _ in range(4)]
    answers = await asyncio.gather(*(add(store) for store in stores))
    assert all(answer == answers[0] for answer in answers)
    assert await stores[0].counts() == {("default", "queued"): 40}


async def test_a_key_that_comes_and_goes_never_gets_lost(opened):
    stores = [await opened() for _ in range(3)]

    async def work(store, name):
        for _ in range(15):
            (id,) = await store.add([job(key="the key")])
            assert await store.get(id) is not None
            for held in await store.claim(name, Q, 1, 60):
                await store.finish([ended(held)])

    await asyncio.gather(*(work(store, f"w{n}") for n, store in enumerate(stores)))


async def test_places_are_never_taken_twice(opened):
    stores = [await opened() for _ in range(3)]
    await stores[0].add([job(concurrency=3, lane=f"lane-{n % 4}") for n in range(40)])
    most, done = 0, 0

    async def work(store, name):
        nonlocal most, done
        while done < 40:
            for held in await store.claim(name, Q, 5, 60):
                running = await store.find(Find(states=("running",)))
                most = max(most, len(running))
                lanes = [each.lane_held for each in running]
                assert len(set(lanes)) == len(lanes)
                await store.finish([ended(held)])
                done += 1

    async with asyncio.timeout(30):
        await asyncio.gather(*(work(store, f"w{n}") for n, store in enumerate(stores)))
    assert 1 <= most <= 3


async def test_verbs_that_cross_each_other_all_succeed(opened):
    one, two = await opened(), await opened()
    await one.add([job(result_ttl=-1) for _ in range(60)])
    held = await one.claim("o", Q, 60, 60)

    async def shuffled(verb, store):
        for _ in range(5):
            await verb(store, random.sample(held, 40))

    async def renew(store, some):
        await store.renew("o", [(each.id, each.attempt) for each in some], 60)

    async def note(store, some):
        await store.note([(each.id, each.attempt, b"{}") for each in some])

    async def finish(store, some):
        await store.finish([ended(each) for each in some[:9]])

    async def tidy(store, some):
        await store.cancel(some[0].id)
        await store.rescue(["nobody"])
        await store.prune(10)

    verbs = (renew, note, finish, tidy)
    async with asyncio.timeout(60):
        await asyncio.gather(*(shuffled(verb, store) for verb in verbs for store in (one, two)))
    await free(one)
    await free(two)


async def test_calls_cancelled_at_any_moment_leave_no_connection_behind(store):
    await store.add([job(concurrency=8) for _ in range(50)])

    async def work():
        held = await store.claim("o", Q, 2, 60)
        await store.renew("o", [(each.id, each.attempt) for each in held], 60)
        await store.finish([ended(each) for each in held])
        await store.add([job(key=f"k{random.randrange(5)}")])
        await store.get("unknown")

    tasks = []
    for _ in range(150):
        tasks.append(asyncio.create_task(work()))
        await asyncio.sleep(random.uniform(0, 0.004))
        random.choice(tasks).cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [o for o in outcomes if isinstance(o, Exception)]
    await free(store)
    for each in await store.find(Find(limit=1000)):
        assert (each.owner is not None) == (each.state == "running")
        assert (each.ended_at is not None) == (each.state == "succeeded")
        assert each.state == "running" or each.slot is None
    lost = [
        (each.id, each.attempt) for each in await store.find(Find(states=("running",), limit=100))
    ]
    assert await store.renew("o", lost, 60) == ["held"] * len(lost)  # no lock was left behind


async def test_an_upgrade_that_was_cut_short_is_done_again(opened, place):
    """MySQL commits each statement of it by itself; PostgreSQL all of them together."""
    if place[0] == "postgres":
        pytest.skip("PostgreSQL keeps no half of it")
    store = await opened()
    await store.add([job(id="kept")])
    await statement(store, "DROP TABLE fp_chunks")
    await statement(store, "UPDATE fp_schema SET version = 1")
    again = await opened()
    assert (await again.get("kept")).state == "queued"
    assert await again.fleet.kept("kept", 1) == []
    assert (await again.info())["schema"] == SCHEMA_VERSION


async def test_an_upgrade_that_lasts_is_told(opened, place, monkeypatch):
    if place[0] == "postgres":
        pytest.skip("PostgreSQL waits for as long as a statement may take")
    store = await opened()
    monkeypatch.setattr(sql_tables.MySql, "lock", sql_tables.MySql.lock.replace("20", "0"))
    async with store._server._engine.connect() as upgrading:
        await upgrading.exec_driver_sql(sql_tables.MySql.lock)
        await statement(store, "UPDATE fp_schema SET version = 1")
        with pytest.raises(StoreUnavailableError, match="still upgrading"):
            await opened()
        await upgrading.exec_driver_sql(sql_tables.MySql.unlock)
    await opened()


async def test_what_agents_need_is_found_by_an_index(store, place):
    """And nothing else is: a look every second must not read all that has ever ended."""
    jobs = [job(id=f"{n}", reply_to="a/b") for n in range(2000)]
    await store.add([*jobs, *(job(target=f"agent:{n % 50}") for n in range(1000))])
    await statement(store, "UPDATE fp_jobs SET replied_at = 1, ended_at = 1 WHERE target IS NULL")
    await statement(store, "UPDATE fp_jobs SET replied_at = NULL WHERE id = '7'")
    await store.vacuum()
    server = store._server._dialect
    wanted = f"SELECT {server.wanted}, min(run_at) FROM fp_jobs WHERE {server.queued_for_agents} GROUP BY {server.wanted}"
    unreplied = f"SELECT id FROM fp_jobs WHERE {server.unreplied} AND pruned = FALSE ORDER BY {server.reply_order} LIMIT 10"
    for sql, index in ((wanted, "fp_jobs_wanted"), (unreplied, "fp_jobs_unreplied")):
        rows = await store._server.read(lambda db, sql=sql: db.rows(f"EXPLAIN {sql}"))
        plan = " ".join(map(str, rows))
        assert index in plan
        assert "filesort" not in plan.lower()
        assert "Sort" not in plan
    assert [each.id for each in await store.fleet.unreplied(10)] == ["7"]


async def test_closing_waits_for_what_is_under_way(opened):
    store, other = await opened(), await opened()
    task = asyncio.create_task(store.add([job(id="last")]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await store.close()
    await task
    assert await other.get("last") is not None
    with pytest.raises(StoreError, match="not open"):
        await store.now()


# Servers that die, refuse and hang ----------------------------------------------------------


async def test_connections_that_the_server_has_closed_go_unnoticed(store, place):
    kind, uri = place
    uri = uri.replace("+psycopg", "")
    await asyncio.gather(*(store.now() for _ in range(4)))
    if kind == "postgres":
        name = uri.rpartition("/")[2]
        sql = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        services.psql(uri, sql)
    else:
        name = uri.rpartition("/")[2]
        ids = services.mysql(
            uri, f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"
        )
        for id in ids.split():
            services.mysql(uri, f"KILL {id}")
    assert await asyncio.gather(*(store.add([job(id=f"{n}")]) for n in range(3))) == [
        ["0"],
        ["1"],
        ["2"],
    ]
    assert len(await store.claim("o", Q, 9, 60)) == 3


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
async def test_a_server_that_was_killed_is_used_again_when_it_is_back(kind):
    with SERVERS[kind]() as server, FRESH[kind](server.uri) as uri:
        store = SqlStore(kind, uri)
        await store.open()
        try:
            await store.add([job(id="kept")])
            server.kill()
            for call in (lambda: store.add([job()]), lambda: store.claim("o", Q, 1, 60), store.now):
                with pytest.raises(StoreUnavailableError, match="data store"):
                    await call()
            server.start()
            assert [each.id for each in await store.claim("o", Q, 9, 60)] == ["kept"]
            await free(store)
        finally:
            await store.close()


async def test_a_wrong_password_and_a_missing_database_are_told_without_the_password():
    with services.Postgres(SECRET) as server:
        wrong = server.uri.replace(SECRET, SECRET + "x")
        for scheme in ("postgresql+asyncpg:", "postgresql+psycopg:"):
            for uri, text in (
                (wrong, "password authentication failed"),
                (
                    server.uri.replace("/postgres", "/nowhere").replace("//nowhere", "//postgres"),
                    "nowhere",
                ),
            ):
                store = SqlStore("postgres", uri.replace("postgresql:", scheme))
                with pytest.raises(StoreError, match=text) as caught:
                    await store.open()
                assert not isinstance(caught.value, StoreUnavailableError)
                assert SECRET not in str(caught.value) + repr(store)
        async with contextlib.AsyncExitStack() as stack:
            store = SqlStore("postgres", server.uri)
            stack.push_async_callback(store.close)
            await store.open()
            assert SECRET not in str(await store.info())


async def test_mysql_refuses_with_a_clear_text():
    uri = services.require("mysql")
    for wrong, text in (
        (uri.replace("root@", f"nobody:{SECRET}@") + "/test", "(?i)access denied"),
        (f"{uri}/fp_{secrets.token_hex(4)}", "(?i)unknown database"),
    ):
        with pytest.raises(StoreError, match=text) as caught:
            await SqlStore("mysql", wrong).open()
        assert not isinstance(caught.value, StoreUnavailableError)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
async def test_nobody_there_is_unavailable(kind):
    store = SqlStore(kind, f"{kind}://me:{SECRET}@127.0.0.1:{services.free_port()}/db")
    with pytest.raises(StoreUnavailableError) as caught:
        await store.open()
    assert SECRET not in str(caught.value)


class Wire:
    """A proxy that can stop carrying anything, as a dead network does."""

    def __init__(self, port):
        self.target = port
        self.open = asyncio.Event()
        self.open.set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks = set()
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        there = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            await asyncio.gather(self._carry(reader, there[1]), self._carry(there[0], writer))
        except OSError:
            pass
        finally:
            writer.close()
            there[1].close()

    async def _carry(self, reader, writer):
        while data := await reader.read(65536):
            await self.open.wait()
            writer.write(data)
            await writer.drain()
        writer.close()


async def test_a_dead_network_is_unavailable_after_a_while(place, monkeypatch):
    kind, uri = place
    monkeypatch.setattr(sql_transactions, "SECONDS", 1.0)
    async with Wire(services.PORTS[kind]) as wire:
        store = SqlStore(kind, uri.replace(str(services.PORTS[kind]), str(wire.port)))
        await store.open()
        try:
            await store.add([job(id="before", queue="wire")])
            wire.open.clear()
            async with asyncio.timeout(15):
                calls = (store.add([job(id="during")]), store.claim("o", Q, 1, 60), store.now())
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(each) for each in outcomes] == [StoreUnavailableError] * 3
            await free(store)
            wire.open.set()
            assert [each.id for each in await store.claim("o", ["wire"], 1, 60)] == ["before"]
        finally:
            await store.close()


def test_a_connection_that_goes_in_the_middle_of_a_transaction_may_come_back():
    """SQLAlchemy then refuses the next statement in words of its own, without the driver's error."""
    error = sqlalchemy.exc.PendingRollbackError("Can't reconnect")
    assert sql_transactions._lost(error)
    assert sql_transactions._passes(error)
