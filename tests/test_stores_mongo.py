"""What only the MongoDB store has: compare-and-set, the driver's errors, a server that goes."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
import services
import stores_kit as kit
from stores_kit import A, job

from fp_async.errors import StoreError, StoreUnavailableError
from fp_async.jobs import Fire, Report, Schedule, identity

kit.need("mongodb")
from fp_async.addresses import place as safe_place  # noqa: E402
from fp_async.stores.mongo import MongoStore  # noqa: E402

FAST = "serverSelectionTimeoutMS=300"
# A connection that the server has cut is left to the garbage collector by pymongo.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored.*<socket:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def server():
    with kit.SecantusDB() as server:
        yield server


@pytest.fixture
async def store(server):
    store = MongoStore(server.uri)
    await store.open()
    yield store
    await store._connection.require().client.drop_database("flowerpower_test")
    await store.close()


async def test_a_server_that_is_not_there_is_unavailable():
    store = MongoStore(f"mongodb://me:secret@127.0.0.1:{services.free_port()}/x?{FAST}")
    with pytest.raises(StoreUnavailableError) as caught:
        await store.open()
    assert "secret" not in str(caught.value)
    assert "Connect call failed" in str(caught.value)
    with pytest.raises(StoreError, match="not open"):
        await store.counts()


@pytest.mark.parametrize("uri", ["mongodb://", "mongodb://h:port/x", "mongodb://u:p@ss:w@h/x"])
async def test_a_uri_that_is_wrong_is_refused(uri):
    with pytest.raises(StoreError) as caught:
        await MongoStore(uri).open()
    assert "p@ss" not in str(caught.value)


def test_a_uri_is_shown_without_its_password():
    assert safe_place("mongodb://u:p@h:1,g:2/db?authSource=x") == "mongodb://h:1,g:2/db"
    assert safe_place("mongodb+srv://u:p%40@h/db") == "mongodb+srv://h/db"


async def test_a_wrong_password_is_refused_without_being_shown():
    with kit.SecantusDB() as server:
        store = MongoStore(server.uri)
        await store.open()
        user = {"createUser": "u", "pwd": "right", "roles": ["root"]}
        await store._connection.require().client.admin.command(user)
        await store.close()
        server.stop()
        server.options = ["--auth"]
        server.start()
        uri = server.uri.replace("//", "//u:wrong-one@") + "?authSource=admin"
        with pytest.raises(StoreError) as caught:
            await MongoStore(uri).open()
        assert not isinstance(caught.value, StoreUnavailableError)
        assert "uthentication" in str(caught.value)
        assert "wrong-one" not in str(caught.value)
        right = MongoStore(uri.replace("wrong-one", "right"))
        await right.open()
        assert await right.counts() == {}
        assert "right" not in (await right.info())["place"]
        await right.close()


async def test_a_job_beyond_the_size_of_a_document_is_refused(store):
    with pytest.raises(StoreError, match="16 MB"):
        await store.add([job(inputs=bytes(17_000_000))])
    (id,) = await store.add([job()])
    (held,) = await store.claim(A, ["default"], 1, 60)
    report = Report(id=id, attempt=1, event="succeed", result=bytes(17_000_000))
    with pytest.raises(StoreError, match="16 MB"):
        await store.finish([report])
    assert await store.get(id) == held


async def test_inputs_and_result_that_are_too_large_together_are_refused(store):
    (id,) = await store.add([job(inputs=bytes(9_000_000))])
    (held,) = await store.claim(A, ["default"], 1, 60)
    with pytest.raises(StoreError, match="16 MB"):
        await store.finish([Report(id=id, attempt=1, event="succeed", result=bytes(9_000_000))])
    assert await store.get(id) == held


async def test_a_server_that_was_killed_is_found_again():
    with kit.SecantusDB() as server:
        store = MongoStore(f"{server.uri}?{FAST}")
        await store.open()
        (id,) = await store.add([job()])
        server.kill()
        with pytest.raises(StoreUnavailableError):
            await store.add([job()])
        server.start()

        async def back():
            try:
                return await store.get(id) is not None
            except StoreUnavailableError:
                return False

        await kit.eventually(back, 20)
        assert [each.id for each in await store.claim(A, ["default"], 9, 60)][:1] == [id]
        await store.close()


async def test_writers_that_collide_decide_again(store):
    ids = await store.add([job() for _ in range(5)])
    held = await store.claim(A, ["default"], 5, 60)
    for each in held:
        renewals = (store.renew(A, [(each.id, 1)], 60) for _ in range(5))
        cancels = (store.cancel(each.id, f"{n}") for n in range(5))
        ends = (store.finish([Report(id=each.id, attempt=1, event="retry")]) for _ in range(3))
        done = await asyncio.gather(*renewals, *cancels, *ends)
        assert sum(answer == [True] for answer in done) == 1
    assert {(await store.get(id)).state for id in ids} <= {"cancelled", "queued"}


async def test_a_fire_cut_off_after_its_jobs_counts_them_whatever_became_of_them(store):
    """Its job has ended, and another one bears the key since: it was added all the same."""
    row = await store.put(Schedule(id="s", pipeline="flow", trigger=b"{}", next_fire_time=5.0))
    one = job(id=identity("s", 5.0), identity=True, key="k")
    await store.add([one])
    await store.cancel(one.id)
    await store.add([job(key="k")])
    fire = Fire(
        id="s",
        revision=row.revision,
        expected=5.0,
        next_fire_time=6.0,
        last_fire_time=5.0,
        jobs=[one],
    )
    assert await store.fire([fire]) == [[one.id]]
    assert ((await store.schedule("s")).fired, (await store.schedule("s")).skipped) == (1, 0)


async def test_indexes_hold_what_must_be_unique(store):
    indexes = await store._connection.require().jobs.index_information()
    unique = {name for name, index in indexes.items() if index.get("unique")}
    assert unique == {"active_key_1", "slot_1", "lane_held_1"}


def test_without_pymongo_the_error_names_the_extra():
    code = """
import sys
sys.modules["pymongo"] = None
try:
    import fp_async.stores.mongo
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fp-async[mongodb]" in done.stdout
