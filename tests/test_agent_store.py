"""What an agent keeps beside its jobs, on a real SQLite file."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import pytest
import stores_kit as kit
from fleet import make
from msgspec import Raw
from msgspec.structs import replace

from edge_agent import config, scheduling
from edge_agent import store as agent_store
from edge_agent.agent import Agent
from edge_agent.session import _RETRY_FULL, Session
from edge_agent.store import AgentStore, Holding
from fp_async import triggers
from fp_async.backend import connected
from fp_async.clock_steps import Reading
from fp_async.gateway_schedules import Kept
from fp_async.jobs import Job, Report, Template
from fp_async.link_values import Message
from fp_async.messages import AgentState, DeleteSchedule, PutSchedule, RunJob
from fp_async.presence import Known
from fp_async.stores.sqlite import SqliteStore
from fp_async.stores.units import Units

DAY = 86_400.0
ME = "me"


class Both:
    """The jobs and what the agent keeps beside them, over one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.jobs = SqliteStore(path)
        self.rows = AgentStore(self.jobs)

    async def accept(self, *ids, offer=1, **options):
        return await self.rows.accept([offered(id, offer, **options) for id in ids])

    async def acknowledged(self, ids):
        """Acknowledge outcomes, and see it written: what is read is read after it."""
        self.rows.acknowledged(ids, lambda: pytest.fail("not written"))
        await self.rows.holdings()

    def unreported(self, id):
        """What another process sees."""
        with sqlite3.connect(self.path) as db:
            return db.execute("SELECT unreported FROM jobs WHERE id = ?", (id,)).fetchone()[0]

    async def end(self, *ids, event="succeed", result=b"r"):
        """Run them to their end."""
        await self.jobs.claim(ME, ["default"], 1000, 60)
        for id in ids:
            row = await self.jobs.get(id)
            report = Report(id=id, attempt=row.attempt, event=event, result=result)
            assert await self.jobs.finish([report]) == [True]

    def change(self, sql, *values):
        """What only time, or another program, can do."""
        with sqlite3.connect(self.path) as db:
            return db.execute(sql, values).fetchall()

    async def row(self, id):
        """The whole row, pruned or not."""
        found = self.change("SELECT offer, state, unreported, pruned FROM jobs WHERE id = ?", id)
        return found[0] if found else None


def offered(id, offer=1, **options):
    return Job(id=id, pipeline="flow", identity=True, offer=offer, unreported=True, **options)


@pytest.fixture
async def both(tmp_path):
    made = Both(tmp_path / "fp-agent.db")
    await made.jobs.open()
    yield made
    await made.jobs.close()


# Accepting --------------------------------------------------------------------------------------


async def test_an_offered_job_is_stored_once(both):
    (row,) = await both.accept("a", inputs=b"in", priority=3)
    assert (row.id, row.state, row.offer, row.attempt, row.unreported) == (
        "a",
        "queued",
        1,
        0,
        True,
    )
    assert row.inputs == b"", "without blobs"
    (again,) = await both.accept("a", inputs=b"other", priority=9)
    assert again == row
    assert (await both.jobs.get("a")).inputs == b"in"
    assert [row.id for row in await both.accept("b", "a", "b")] == ["b", "a", "b"]


async def test_a_newer_offer_counts_and_an_older_one_does_not(both):
    await both.accept("a", offer=3)
    assert (await both.accept("a", offer=5))[0].offer == 5
    assert (await both.accept("a", offer=4))[0].offer == 5


async def test_a_newer_offer_of_a_running_job_does_not_start_it_again(both):
    await both.accept("a")
    (claimed,) = await both.jobs.claim(ME, ["default"], 9, 60)
    (row,) = await both.accept("a", offer=2)
    assert (row.state, row.offer, row.attempt) == ("running", 2, 1)
    assert await both.jobs.claim("other", ["default"], 9, 60) == []
    assert await both.jobs.finish([Report(id="a", attempt=claimed.attempt, event="succeed")]) == [
        True
    ]
    (told,) = await both.rows.untold(9)
    assert told.offer == 2, "under the offer that counts"


@pytest.mark.parametrize("offer", [1, 2])
async def test_an_offer_of_a_job_that_has_ended_has_its_outcome_told_again(both, offer):
    await both.accept("a")
    await both.end("a")
    await both.acknowledged(["a"])
    assert await both.rows.untold(9) == []
    (row,) = await both.accept("a", offer=offer)
    assert (row.state, row.offer, row.unreported) == ("succeeded", offer, True)
    (told,) = await both.rows.untold(9)
    assert told.result == b"r"


async def test_an_offer_of_a_pruned_job_is_known_and_not_run(both):
    await both.accept("a")
    await both.end("a")
    await both.acknowledged(["a"])
    both.change("UPDATE jobs SET prune_at = 1")
    assert await both.jobs.prune() == 1
    (row,) = await both.accept("a", offer=2)
    assert (row.state, row.pruned, row.offer, row.unreported) == ("succeeded", True, 2, False)
    assert await both.rows.untold(9) == []
    assert await both.rows.known(["a", "b"]) == {"a"}
    assert await both.jobs.claim(ME, ["default"], 9, 60) == []


async def test_a_job_that_was_cancelled_before_it_came_is_never_begun(both):
    (row,) = await both.rows.refuse(
        [Job(id="a", pipeline="", identity=True, offer=4, unreported=True)]
    )
    assert (row.state, row.reason) == ("cancelled", "cancelled before it arrived")
    (late,) = await both.accept("a", offer=4)
    assert (late.state, late.unreported) == ("cancelled", True)
    assert await both.jobs.claim(ME, ["default"], 9, 60) == []
    assert [job.id for job in await both.rows.untold(9)] == ["a"]
    assert (await both.accept("a", offer=5))[0].offer == 5, "it is told under the newer offer"


async def test_refusing_a_job_that_is_here_changes_nothing(both):
    await both.accept("a")
    (row,) = await both.rows.refuse([Job(id="a", pipeline="", identity=True, offer=1)])
    assert (row.state, row.pipeline) == ("queued", "flow")


async def test_jobs_that_began_here_have_no_offer_and_are_told(both):
    await both.rows.born([Job(id="a", pipeline="flow", identity=True)])
    await both.end("a")
    (told,) = await both.rows.untold(9)
    assert (told.offer, told.unreported) == (None, True)
    assert await both.rows.holdings() == [Holding("a", None, "succeeded")]


# Telling ----------------------------------------------------------------------------------------


async def test_what_is_acknowledged_may_be_pruned_and_nothing_else_is(both):
    await both.accept("a", "b", "c", result_ttl=60.0)
    await both.end("a", "b")
    both.change("UPDATE jobs SET prune_at = 1 WHERE ended_at IS NOT NULL")
    assert await both.jobs.prune() == 0, "the center has not heard of them"
    await both.acknowledged(["a", "c", "unknown"])
    assert (await both.row("c"))[2] == 1, "it has not ended: its acknowledgement is of another try"
    assert await both.jobs.prune() == 0, "its time counts from the acknowledgement"
    ((prune_at,),) = both.change("SELECT prune_at FROM jobs WHERE id = 'a'")
    assert abs(prune_at - time.time() - 60) < 5
    both.change("UPDATE jobs SET prune_at = 1 WHERE id = 'a'")
    assert await both.jobs.prune() == 1
    assert await both.row("a") == (1, "succeeded", 0, 1)
    assert await both.row("b") == (1, "succeeded", 1, 0)


async def test_the_oldest_are_told_first_without_those_under_way(both):
    await both.accept(*"abcdef")
    await both.end(*"abcde")
    for number, id in enumerate("dbeca"):
        both.change("UPDATE jobs SET ended_at = ? WHERE id = ?", 1000.0 + number, id)
    ids = lambda found: [job.id for job in found]
    assert ids(await both.rows.untold(9)) == list("dbeca")
    assert ids(await both.rows.untold(2)) == list("db")
    assert ids(await both.rows.untold(2, frozenset("db"))) == list("ec")
    assert ids(await both.rows.untold(9, frozenset("dca"))) == list("be")
    assert await both.rows.untold(0) == []
    await both.acknowledged(["b"])
    assert ids(await both.rows.untold(9)) == list("deca")
    assert sorted(ids(await both.rows.ended([*"abf", "unknown"]))) == ["a"]
    (told,) = await both.rows.ended(["a"])
    assert told.result == b"r", "whole rows"


async def test_no_more_is_read_at_once_than_fits_into_a_small_memory(both):
    await both.accept(*(f"{n:02d}" for n in range(20)))
    await both.end(*(f"{n:02d}" for n in range(20)), result=bytes(300_000))
    found = await both.rows.untold(20)
    assert 1 <= len(found) < 6
    rest = await both.rows.untold(20, frozenset(job.id for job in found))
    assert rest[0].id == f"{len(found):02d}"
    both.change("UPDATE jobs SET result = zeroblob(8000000) WHERE id = '00'")
    assert [job.id for job in await both.rows.untold(20)] == ["00"], "one at least"


async def test_what_the_center_has_not_heard_the_end_of(both):
    await both.accept("a", "b", "c", "d", offer=2)
    await both.rows.born([Job(id="e", pipeline="flow", identity=True)])
    await both.end("a", "b")
    await both.acknowledged(["b"])
    await both.jobs.cancel("c")
    assert await both.rows.holdings() == [
        Holding("a", 2, "succeeded"),
        Holding("c", 2, (await both.jobs.get("c")).state),
        Holding("d", 2, "running"),
        Holding("e", None, "running"),
    ]
    assert await both.rows.active() == 2


async def test_how_much_waits_to_be_told(both):
    assert await both.rows.waiting() == (0, 0)
    await both.accept("a", "b", inputs=b"12345")
    await both.end("a", result=b"x" * 1000)
    assert await both.rows.waiting() == (1, 1005)
    await both.acknowledged(["a"])
    assert await both.rows.waiting() == (0, 0)


# Who it is --------------------------------------------------------------------------------------


async def test_starts_are_counted_and_the_store_has_one_id(both):
    first = await both.rows.begin()
    assert (len(first.store), first.starts) == (32, 1)
    second = await both.rows.begin()
    assert (second.store, second.starts) == (first.store, 2)
    assert len({"", first.life, second.life}) == 3, "each process has a word of its own"
    assert await both.rows.overtake(7) == 8
    assert await both.rows.overtake(3) == 9
    assert [await both.rows.next_number() for _ in range(3)] == [1, 2, 3]


BEGIN = """
    import asyncio, os, signal, sys
    from pathlib import Path
    from edge_agent.store import AgentStore
    from fp_async.stores.sqlite import SqliteStore

    async def main():
        store = SqliteStore(Path(sys.argv[1]))
        await store.open()
        rows = AgentStore(store)
        begun = await rows.begin()
        print(begun.store, begun.starts, await rows.next_number(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main())
"""


async def test_starts_and_numbers_survive_kill_9(both):
    """(starts, n) orders what an agent says: no process may have the number of another one."""
    said = []
    for _ in range(4):
        command = [sys.executable, "-c", textwrap.dedent(BEGIN), str(both.path)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        said.append(done.stdout.split())
    assert len({store for store, *_ in said}) == 1
    assert [rest for _, *rest in said] == [[str(n), str(n)] for n in (1, 2, 3, 4)]
    assert (await both.rows.begin()).starts == 5


async def test_facts(both):
    assert await both.rows.fact("time") is None
    await both.rows.note("time", "1")
    await both.rows.note("time", "2")
    assert await both.rows.fact("time") == "2"


# Clocks -----------------------------------------------------------------------------------------

TIMES = ("created_at", "run_at", "expires_at", "started_at", "ended_at", "prune_at")
YEARS = 10 * 365 * DAY


def reading(wall, *, boot="b1", set_by=0.0):
    """The clocks of a machine that booted at 1e9, whose wall clock was set by so many seconds."""
    return Reading(boot, wall + set_by, 1e9 + set_by)


async def times(both, id):
    names = ", ".join(TIMES)
    (row,) = both.change(f"SELECT {names} FROM jobs WHERE id = ?", id)
    return dict(zip(TIMES, row, strict=True))


def moved(before, step):
    return {name: None if at is None else at + step for name, at in before.items()}


@pytest.mark.parametrize("step", [-YEARS, -120.0, 120.0, YEARS])
async def test_what_waits_goes_on_waiting_when_the_clock_is_set(both, step):
    now = time.time()
    await both.accept("a", expires_at=now + 300)
    await both.accept("b")
    await both.end("b")
    await both.acknowledged(["b"])
    before = {id: await times(both, id) for id in "ab"}
    assert await both.rows.set_clock(reading(now), 0) == 0
    for expected in (step, 0):  # said twice it is done once
        assert await both.rows.set_clock(reading(now, set_by=step), 0) == expected
        assert {id: await times(both, id) for id in "ab"} == {
            id: pytest.approx(moved(before[id], step)) for id in "ab"
        }


async def test_a_clock_that_follows_moves_nothing(both):
    now = time.time()
    await both.accept("a")
    before = await times(both, "a")
    for second in range(10):
        assert await both.rows.set_clock(reading(now, set_by=30.0 * second), 0) == 0
    assert await times(both, "a") == before


@pytest.mark.parametrize("step", [-YEARS, -3600.0, 3600.0, YEARS])
async def test_what_was_written_since_the_clock_was_set_stays(both, step):
    now = time.time()
    await both.rows.set_clock(reading(now), 0)
    await both.accept("old", "ended since", "again")
    before = await times(both, "old")
    await both.accept("new", expires_at=now + step + 20)
    at = now + step - 10
    change = "UPDATE jobs SET created_at = ?, run_at = ? WHERE id = 'new'"
    both.change(change, at, at)
    both.change("UPDATE jobs SET ended_at = ?, prune_at = ? WHERE id = 'ended since'", at, at + 60)
    both.change("UPDATE jobs SET run_at = ? WHERE id = 'again'", at + 60)
    assert await both.rows.set_clock(reading(now, set_by=step), 35) == step
    assert await times(both, "old") == pytest.approx(moved(before, step))
    new = await times(both, "new")
    assert (new["created_at"], new["run_at"], new["expires_at"]) == (at, at, now + step + 20)
    ended = await times(both, "ended since")
    assert ended["created_at"] == pytest.approx(before["created_at"] + step, abs=1)
    assert (ended["ended_at"], ended["prune_at"]) == (at, at + 60)
    assert (await times(both, "again"))["run_at"] == at + 60


async def test_a_reboot_with_a_clock_that_lost_its_battery(both):
    now = time.time()
    await both.rows.set_clock(reading(now - DAY), 0)
    await both.accept("a", run_at=now + 50)  # later than what was noted
    before = await times(both, "a")
    late = now + DAY  # off for a day
    assert await both.rows.set_clock(reading(late, boot="b2"), 0) == 0
    assert await both.rows.set_clock(reading(late, boot="b3", set_by=-YEARS), 0) < DAY - YEARS
    shown = await times(both, "a")
    assert shown["run_at"] - (late - YEARS) <= 50, "it waits no longer than it had to"
    came = await both.rows.set_clock(reading(late + 30, boot="b3"), 0)  # the network is there
    assert came == pytest.approx(YEARS)
    assert (await times(both, "a"))["run_at"] <= before["run_at"]


# Forgetting -------------------------------------------------------------------------------------

FILL = """
    INSERT INTO jobs (id, pipeline, state, queue, priority, created_at, run_at, ended_at, identity,
        pruned, result_ttl, spec, inputs)
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
    SELECT ? || n, '', 'succeeded', 'default', 0, 0, 0, ?, 1, 1, 0, x'7b7d', x'' FROM numbers
"""


async def count(both, kind):
    ((number,),) = both.change("SELECT count(*) FROM jobs WHERE id GLOB ? || '*'", kind)
    return number


async def test_ids_stay_known_for_a_day_however_many(both):
    both.change(FILL, agent_store._KNOWN + 10, "a", time.time() - DAY + 60)
    assert await both.rows.forget() == 0


async def test_after_a_day_a_hundred_thousand_stay_known(both):
    both.change(FILL, 30, "old", time.time() - 2 * DAY)
    both.change(FILL, agent_store._KNOWN - 10, "new", time.time() - DAY - 60)
    assert await both.rows.forget() == 20
    assert (await count(both, "old"), await count(both, "new")) == (10, agent_store._KNOWN - 10)
    assert await both.rows.known(["old20", "old21"]) == {"old21"}, "the oldest went"
    assert await both.rows.forget() == 0


async def test_after_a_month_nothing_stays_known(both):
    both.change(FILL, 5, "old", time.time() - 30 * DAY - 60)
    both.change(FILL, 5, "new", time.time() - 30 * DAY + 60)
    assert await both.rows.forget() == 5
    assert (await count(both, "old"), await count(both, "new")) == (0, 5)


@pytest.mark.parametrize(
    "kept", ["pruned = 0", "unreported = 1", "state = 'queued', ended_at = NULL, pruned = 0"]
)
async def test_what_is_not_over_is_never_forgotten(both, kept):
    both.change(FILL, 3, "a", time.time() - 100 * DAY)
    both.change(f"UPDATE jobs SET {kept}")
    assert await both.rows.forget() == 0


# Cut off ----------------------------------------------------------------------------------------


async def _nothing(both, id):
    pass


async def _accepted(both, id):
    await both.accept(id)


async def _ended(both, id):
    await both.accept(id)
    await both.end(id)


async def _old(both, id):
    both.change(FILL, 1, id, time.time() - 40 * DAY)


async def _row(both, id):
    return await both.row(id)


async def _fact(both, id):
    return await both.rows.fact(id)


async def _known(both, id):
    return await both.rows.known([f"{id}1"]) == {f"{id}1"}


VERBS = [
    kit.Verb("accept", _nothing, lambda both, name: both.accept(name), _row),
    kit.Verb("accept-newer", _accepted, lambda both, name: both.accept(name, offer=7), _row),
    kit.Verb("refuse", _nothing, lambda both, name: both.rows.refuse([offered(name)]), _row),
    kit.Verb("born", _nothing, lambda both, name: both.rows.born([offered(name, None)]), _row),
    kit.Verb("acknowledged", _ended, lambda both, name: both.acknowledged([name]), _row),
    kit.Verb("note", _nothing, lambda both, name: both.rows.note(name, "x"), _fact),
    kit.Verb("forget", _old, lambda both, name: both.rows.forget(), _known),
]


@pytest.mark.parametrize("verb", VERBS, ids=repr)
async def test_a_verb_cancelled_at_any_await_has_done_nothing_or_all(both, verb):
    await kit.leaves_before_or_after(both, verb)


@pytest.mark.parametrize("late", [False, True])
async def test_numbers_are_given_once_whoever_is_cut_off(both, late):
    seen = set()
    for n in range(100):
        cut = await kit.cut_off(both.rows.next_number(), n, late=late)
        number = await both.rows.next_number()
        assert number not in seen
        seen.add(number)
        if not cut:
            return
    pytest.fail("it never ends")


async def test_verbs_of_many_callers_are_one_transaction_and_each_gets_its_own(both):
    calls = [both.accept(f"{n}-a", f"{n}-b", offer=n) for n in range(1, 50)]
    for n, rows in enumerate(await asyncio.gather(*calls), 1):
        assert [(row.id, row.offer) for row in rows] == [(f"{n}-a", n), (f"{n}-b", n)]
    assert isinstance(both.jobs.units, Units)


# An acknowledgement ------------------------------------------------------------------------------


async def test_an_acknowledgement_is_written_with_what_comes_next(both):
    await both.accept("a")
    await both.end("a")
    both.rows.acknowledged(["a"], lambda: pytest.fail("not written"))
    assert both.unreported("a") == 1
    await both.accept("b")
    assert both.unreported("a") == 0


async def test_an_acknowledgement_is_written_soon_where_nothing_comes(both):
    await both.accept("a")
    await both.end("a")
    both.rows.acknowledged(["a"], lambda: pytest.fail("not written"))

    async def written():
        return both.unreported("a") == 0

    await kit.eventually(written)


async def test_an_acknowledgement_is_written_when_the_store_is_closed(both):
    await both.accept("a")
    await both.end("a")
    both.rows.acknowledged(["a"], lambda: pytest.fail("not written"))
    await both.jobs.close()
    assert both.unreported("a") == 0
    await both.jobs.open()


async def test_an_acknowledgement_that_cannot_be_written_is_told(both):
    await both.accept("a")
    await both.end("a")
    failed = asyncio.Event()
    both.change("ALTER TABLE jobs RENAME TO gone")
    both.rows.acknowledged(["a"], failed.set)
    async with asyncio.timeout(10):
        await failed.wait()
    both.change("ALTER TABLE gone RENAME TO jobs")


# Schedules --------------------------------------------------------------------------------------


@pytest.fixture
async def agent(tmp_path):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "flow.py").write_text("def out() -> int:\n    return 1\n")
    made = Agent(config.read(None, {"name": "pi", "project": str(tmp_path)}, {}))
    await made.open()
    yield made
    await made.close()


def put(revision=1, *, id="tick", pipeline="flow", trigger=None, **options):
    spec = triggers.parse("interval", {"seconds": 60}, now=time.time(), timezone="UTC")
    encoded = Raw(msgspec.json.encode(spec) if trigger is None else trigger)
    template = options.pop("template", msgspec.json.encode(Template(offline=True)))
    policy = options.pop("policy", b"{}")
    body = {"trigger": encoded, "policy": Raw(policy), "template": Raw(template)}
    return PutSchedule(id=id, revision=revision, pipeline=pipeline, **body, **options)


async def test_a_schedule_of_the_center_is_kept_and_answered(agent):
    state = await scheduling.change(agent, put(3))
    assert (state.id, state.revision, state.error, state.gone) == ("tick", 3, None, False)
    assert 0 < state.next_fire_time - time.time() <= 60
    (row,) = await agent.store.schedules()
    assert (row.id, row.origin, scheduling.revision_of(row)) == ("tick", "center#3", 3)
    again = await scheduling.change(agent, put(3))
    assert again == state
    assert (await agent.store.schedules()) == [row], "the same again changes nothing"
    newer = await scheduling.change(agent, put(4, paused=True))
    assert newer.revision == 4
    (row,) = await agent.store.schedules()
    assert (row.paused, row.origin) == (True, "center#4")


async def test_a_schedule_is_deleted_and_an_old_wish_for_that_is_not_followed(agent):
    await scheduling.change(agent, put(5))
    late = await scheduling.change(agent, DeleteSchedule(id="tick", revision=4))
    assert (late.gone, late.revision) == (False, 5)
    for _ in range(2):
        state = await scheduling.change(agent, DeleteSchedule(id="tick", revision=5))
        assert (state.gone, state.revision, state.error) == (True, 5, None)
        assert await agent.store.schedules() == []


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"pipeline": "flwo"}, "this agent has no pipeline 'flwo'; it has: flow"),
        ({"trigger": b'{"type":"sometimes"}'}, "not a stored trigger"),
        ({"trigger": b"5"}, "not a stored trigger"),
        ({"trigger": b'{"type":"interval","seconds":0,"start":0}'}, "seconds"),
        ({"trigger": b'{"type":"interval","seconds":1,"start":-1e300}'}, "start"),
        ({"trigger": b'{"type":"interval","seconds":1,"start":"\xff"}'}, "no UTF-8 at byte 40"),
        (
            {"trigger": b'{"type":"and","triggers":' + b"[" * 900 + b"]" * 900 + b"}"},
            "triggers.0: expected a mapping",
        ),
        ({"policy": b'{"coalesce":"maybe"}'}, "coalesce"),
        ({"policy": b"[]"}, "expected a mapping, got a list"),
        ({"template": b'{"nonsense":1}'}, "nonsense"),
        ({"template": b'{"spec":{"timeout":"long"}}'}, "timeout"),
    ],
)
async def test_schedules_that_make_no_sense_are_answered_with_the_reason(agent, wrong, text):
    state = await scheduling.change(agent, put(2, **wrong))
    assert text in state.error
    assert len(state.error) <= 500
    assert (state.revision, state.gone) == (2, False)
    assert await agent.store.schedules() == []


async def test_a_broken_new_revision_leaves_the_one_before(agent):
    await scheduling.change(agent, put(1))
    state = await scheduling.change(agent, put(2, policy=b"[]"))
    assert state.error
    (row,) = await agent.store.schedules()
    assert scheduling.revision_of(row) == 1


async def test_a_device_that_finds_room_meanwhile_has_still_refused_for_the_moment(agent):
    agent.house.full = "the disk is nearly full"
    known = agent.rows.known

    async def found(ids):
        agent.house.full = None
        return await known(ids)

    agent.rows.known = found
    offer = RunJob(id="j", attempt=1, pipeline="flow", inputs=Raw(b'{"v":1,"plain":{}}'))
    await Session(agent, None)._run([offer])
    (answer,) = agent.take_notices()
    assert (answer.reason, answer.retry_after) == ("the disk is nearly full", _RETRY_FULL)


class Center:
    """A project whose schedules an agent is told of as a gateway would, whenever it is back."""

    def __init__(self, project, agent):
        self.project, self.agent = project, agent

    async def schedule(self, trigger=("interval",), **options):
        given = {"id": "tick", "on": "agent:pi", "offline": True, "seconds": 60, **options}
        await self.project.schedule("flow", *trigger, **given)

    async def meet(self):
        """What the agent keeps then: ids and seconds."""
        state = AgentState(status="ready", store="s", starts=1, n=1)
        async with connected(self.project.root) as backend:
            kept = Kept(backend.store)
            for _ in range(2):
                rows = await self.agent.store.schedules()
                has = {row.id: scheduling.revision_of(row) for row in rows}
                told = await kept.differences("pi", Known(state=state), has)
                for asked in told:
                    await scheduling.change(self.agent, asked)
        assert told == [], "nothing is said twice"
        rows = await self.agent.store.schedules()
        return {row.id: json.loads(row.trigger)["seconds"] for row in rows}


@pytest.fixture
def center(agent, tmp_path):
    project = make(tmp_path / "center", "data_store:\n  type: sqlite\n")
    (project.root / "pipelines" / "flow.py").write_text("def out() -> int:\n    return 1\n")
    return Center(project, agent)


async def test_a_schedule_that_was_made_anew_meanwhile_is_the_new_one(center):
    for seconds in (60, 61, 62):
        await center.schedule(seconds=seconds)
    assert await center.meet() == {"tick": 62}
    await center.project.remove_schedule("tick")
    await center.schedule(seconds=5)
    assert await center.meet() == {"tick": 5}
    await center.project.remove_schedule("tick")
    assert await center.meet() == {}


@pytest.mark.parametrize("change", [{"on": "agent:other"}, {"on": None, "offline": False}])
async def test_a_schedule_that_is_an_agents_no_more_is_forgotten_there(center, change):
    await center.schedule()
    assert await center.meet() == {"tick": 60}
    await center.schedule(**change)
    assert await center.meet() == {}
    await center.schedule(seconds=7)
    assert await center.meet() == {"tick": 7}


async def test_a_schedule_that_left_the_configuration_is_forgotten_there(center):
    conf = center.project.root / "conf" / "pipelines.yml"
    entry = "{id: tick, type: interval, params: {seconds: 60}, on: 'agent:pi', offline: true}"
    conf.write_text(f"run: {{flow: {{dev: {{schedule: {entry}}}}}}}\n")
    await center.project.apply_schedules()
    assert await center.meet() == {"tick": 60}
    conf.write_text("run: {}\n")
    center.project.reload()
    await center.project.apply_schedules()
    assert await center.meet() == {}


def test_revisions_are_those_of_the_center():
    row = replace(kit_schedule(), origin=scheduling.origin(7))
    assert scheduling.revision_of(row) == 7
    for own in ("api", "conf", "center#", "center#x", "center"):
        assert scheduling.revision_of(replace(row, origin=own)) is None


def kit_schedule():
    from fp_async.jobs import Schedule

    return Schedule(id="s", pipeline="p", trigger=b"{}")


async def test_e25_another_version_of_the_protocol_is_a_problem_and_told_once(agent, caplog):
    session = Session(agent, None)
    newer = Message("fp/v1/main/agent/pi/do", b'{"type":"Ping","v":2,"nonce":"n"}')
    for _ in range(17):
        await session._handle([newer])
    assert "has version 2 of the protocol, and this program knows 1" in str(agent.problems)
    assert caplog.text.count("version 2 of the protocol") == 1
    assert agent.take_notices() == []  # the center makes no letters of it
    acknowledged = Message(newer.topic, b'{"type":"Acknowledge","v":1,"ids":[]}')
    await session._handle([acknowledged])
    assert not agent.problems
