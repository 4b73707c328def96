"""One data store's content in another: every kind of store into every other kind."""

from __future__ import annotations

import itertools

import msgspec
import pytest
import stores_kit
from click.testing import CliRunner
from stores_kit import A, Q, job, report, running

from fp_async import processes, store_copy
from fp_async.cli import cli
from fp_async.errors import StoreError, UsageError
from fp_async.jobs import Chunk, Fire, Letter, Member, Offer, Schedule, Template
from fp_async.stores.transfer import TABLES

HOUR = 3600.0


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    for module in ("sqlite_transfer", "sql_transfer", "mongo_transfer"):
        monkeypatch.setattr(f"fp_async.stores.{module}.PAGE_ROWS", 3)


@pytest.fixture
async def others(place, tmp_path, databases):
    """One place of each kind, but for the server that `place` is."""
    places = []
    for kind in stores_kit.KINDS:
        if kind in ("memory", "sqlite"):
            uri = f"sqlite:///{tmp_path}/other.db" if kind == "sqlite" else None
            places.append(stores_kit.Place(kind, uri))
        elif kind != place.kind:
            places.append(stores_kit.Place(kind, databases(kind)))
    yield places
    for each in places:
        await each.close()
        await each.clear()


async def filled(store):
    """Something of all that a store keeps."""
    ended = [await running(store, id=f"ended-{n}", inputs=b"in", key=f"k{n}") for n in range(4)]
    for each, event in zip(ended, ("succeed", "fail", "retry", "crash"), strict=True):
        more = {"result": b"r" * 1000, "record": b'{"log": "said"}', "error": b'{"kind": "E"}'}
        more |= {"retry_in": HOUR} if event == "retry" else {}
        await store.finish([report(each, event, **more)])
    await store.add([job(id="waits", key="mine", priority=3), job(id="later", run_at=4e9)])
    await store.add([job(id="leased", queue="other", concurrency=1)])
    assert [each.id for each in await store.claim(A, ["other"], 1, 60)] == ["leased"]
    await store.add([job(id="offered", target="agent:pi")])
    await store.fleet.offer([Offer("offered", 0, "pi")])
    await store.add([job(id="gone", identity=True, result_ttl=0.0, queue="other")])
    await store.cancel("gone")
    await store.prune()
    row = Schedule(
        id="hourly", pipeline="flow", trigger=b'{"type": "interval"}', next_fire_time=5e8
    )
    row = await store.put(msgspec.structs.replace(row, template=msgspec.json.encode(Template())))
    fire = {"id": "hourly", "revision": row.revision, "expected": 5e8, "next_fire_time": 6e8}
    await store.fire(
        [Fire(**fire, last_fire_time=5e8, jobs=[job(id="fired", schedule_id="hourly")])]
    )
    await store.put(Schedule(id="paused", pipeline="flow", trigger=b"{}", paused=True))
    await store.saw(Member(kind="agent", name="pi", info=b'{"a": 1}'), 400 * 86400)
    await store.saw(Member(kind="drained", name="pi"), 400 * 86400)
    await store.fleet.lead("gateway", A, 60)
    letters = [
        Letter(id=f"l{n}", topic="t", reason="r", payload=b"p", at=1e9 + n) for n in range(4)
    ]
    await store.fleet.bury(letters)
    await store.fleet.keep([Chunk("ended-0", 1, n, b"part") for n in range(2)])


async def content(store):
    """All rows by kind, as they are stored; without those of who is there now."""
    found = {}
    for kind in TABLES:
        rows, place = [], ()
        while place is not None:
            page = await store.transfer.page(kind, place)
            rows += page.rows
            place = page.next
        found[kind] = [row for row in rows if getattr(row, "kind", "") != "lead"]
    return found


async def same(source, target):
    wanted, found = await content(source), await content(target)
    leased = [row for row in wanted["jobs"] if row.lease_until is not None]
    assert [row.id for row in leased] == ["leased"]
    wanted["jobs"] = [
        msgspec.structs.replace(row, lease_until=0.0, slot=None) if row in leased else row
        for row in wanted["jobs"]
    ]
    return wanted == found


async def test_d8_every_row_comes_as_it_is(place, others):
    source = await place.opened()
    await filled(source)
    for other in others:
        target = await other.opened()
        told = []
        counts = await store_copy.copy(source, target, lambda kind, _: told.append(kind))
        assert {kind: count.copied for kind, count in counts.items()} == {
            "jobs": 10, "schedules": 2, "members": 2, "letters": 4, "chunks": 2,
        }  # fmt: skip
        assert told.count("jobs") > 3, "in pages"
        assert await same(source, target), f"{place.kind} to {other.kind}"
        again = await store_copy.copy(source, target)
        assert all(count.copied == 0 and not count.refused for count in again.values())
        assert {kind: count.there for kind, count in again.items()} == {
            kind: count.copied for kind, count in counts.items()
        }
        assert await same(source, target)


async def test_d8_a_copy_goes_on_as_jobs_and_schedules_do(place, tmp_path):
    """The target is a store like any other: order, keys, rescue, prune, adopt."""
    source = await stores_kit.Place("sqlite", f"sqlite:///{tmp_path}/from.db").opened()
    await filled(source)
    store = await place.opened()
    await store_copy.copy(source, store)
    await source.close()
    assert [each.id for each in await store.rescue()] == ["leased"], "as its worker is gone"
    leased = await store.get("leased")
    assert (leased.state, leased.crashes) == ("queued", 1)
    assert await store.add([job(key="mine"), job(id="gone")]) == ["waits", "gone"]
    assert [each.id for each in await store.claim(A, Q, 9, 60)] == ["waits", "ended-3", "fired"]
    assert (await store.schedule("hourly")).fired == 1
    assert [letter.id for letter in await store.fleet.letters()] == ["l3", "l2", "l1", "l0"]
    assert [part.index for part in await store.fleet.kept("ended-0", 1)] == [0, 1]


class CutOffError(Exception):
    pass


async def test_d8_one_that_was_cut_off_does_the_rest_the_next_time(place, tmp_path):
    source = await stores_kit.Place("sqlite", f"sqlite:///{tmp_path}/from.db").opened()
    await filled(source)
    store = await place.opened()
    for pages in itertools.count(1):
        left = iter(range(pages))

        def told(*_, left=left):
            if next(left, None) is None:
                raise CutOffError

        try:
            await store_copy.copy(source, store, told)
            break
        except CutOffError:
            continue
    assert pages > 8
    assert await same(source, store)
    await source.close()


async def test_d8_is_refused_while_somebody_works_on_either(store, tmp_path):
    other = await stores_kit.Place("sqlite", f"sqlite:///{tmp_path}/from.db").opened()
    await store.add([job()])
    for kind in ("worker", "gateway", "scheduler"):
        info = msgspec.json.encode({"owner": processes.owner("w")})
        member = Member(kind=kind, name="w/x", info=info)
        await other.saw(member, 30)
        for pair in ((store, other), (other, store)):
            with pytest.raises(UsageError, match=f"in use by {kind} w: stop them first"):
                await store_copy.copy(*pair)
        await other.saw(member, 0)
    dead = msgspec.json.encode({"owner": f"w/{processes.boot_id()}/{processes._namespace()}/x/1"})
    await other.saw(Member(kind="worker", name="dead", info=dead), 30)
    assert (await store_copy.copy(store, other))["jobs"].copied == 1
    await other.close()


async def test_d8_what_is_there_stays_and_a_key_that_is_taken_is_told(store, tmp_path):
    source = await stores_kit.Place("sqlite", f"sqlite:///{tmp_path}/from.db").opened()
    await source.add([job(id="1", key="k"), job(id="2"), job(id="3", queue="theirs")])
    await store.add([job(id="mine", key="k"), job(id="3", queue="ours")])
    count = (await store_copy.copy(source, store))["jobs"]
    assert (count.copied, count.there, count.refused) == (1, 1, ["1"])
    assert (await store.get("3")).queue == "ours"
    assert await store.get("1") is None
    await source.close()


async def test_d8_what_strangers_have_sent_comes_along(store, tmp_path):
    """SQLite keeps a NUL in a text, PostgreSQL refuses it."""
    source = await stores_kit.Place("sqlite", f"sqlite:///{tmp_path}/from.db").opened()
    await source.fleet.bury([Letter(id="l", topic="a\0b", reason="\0", payload=b"\0", at=1e9)])
    assert (await store_copy.copy(source, store))["letters"].copied == 1
    assert [letter.payload for letter in await store.fleet.letters()] == [b"\0"]
    await source.close()


async def test_d8_a_page_ends_with_a_large_row(store, monkeypatch):
    for module in ("sqlite_transfer", "sql_transfer", "mongo_transfer"):
        monkeypatch.setattr(f"fp_async.stores.{module}.PAGE_BYTES", 100_000)
    await store.add([job(id="1"), job(id="2", inputs=b"x" * 200_000), job(id="3")])
    first = await store.transfer.page("jobs")
    assert [row.id for row in first.rows] == ["1", "2"]
    second = await store.transfer.page("jobs", first.next)
    assert ([row.id for row in second.rows], second.next) == (["3"], None)
    assert await store.transfer.bring("jobs", []) == []


async def test_d8_a_store_that_is_gone_is_an_error(tmp_path):
    source = await stores_kit.Place("sqlite", f"sqlite:///{tmp_path}/from.db").opened()
    await source.close()
    target = await stores_kit.Place("memory", None).opened()
    with pytest.raises(StoreError):
        await store_copy.copy(source, target)
    await target.close()


def test_d8_a_store_that_is_not_there_is_not_copied_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["store", "copy", "sqlite:///typo.db", "sqlite:///to.db"])
    assert isinstance(done.exception, UsageError)
    assert f"no file {tmp_path / 'typo.db'}" in str(done.exception)
    assert list(tmp_path.iterdir()) == []
