"""One suite for every data store: each sentence of the contract in `fp_async/stores`."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections import Counter

import msgspec
import pytest
import stores_kit as kit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores_kit import (
    A,
    B,
    Q,
    Verb,
    job,
    leaves_sockets,
    many,
    other,
    report,
    running,
    shared,
    state,
)

from fp_async import lifecycle
from fp_async.errors import StoreError
from fp_async.jobs import (
    CANCEL_DEADLINE,
    COLUMNS,
    IDENTITY_TTL,
    Failure,
    Find,
    Fire,
    Member,
    NodeTiming,
    Offer,
    Record,
    Report,
    Schedule,
    identity,
)
from fp_async.stores import CANCEL, HELD, LOST, SCHEMA_VERSION, tables

SOON, LATER = 2e9, 3e9  # far ahead of any clock of these tests


# Adding -------------------------------------------------------------------------------------


async def test_a_new_job_keeps_all_that_it_was_given(store):
    before = time.time()
    given_job = job(
        pipeline="päipline",
        queue="q",
        priority=-3,
        group_id="g",
        run_at=SOON + 1 / 3,
        expires_at=LATER + 0.1,
        key="k",
        concurrency=4,
        lane="lane",
        schedule_id="s",
        nominal_at=1.0 / 7,
        retried_from="other",
        identity=True,
        result_ttl=12.5,
        spec=b'{"timeout": 3}',
        inputs=bytes(range(256)),
    )
    assert await store.add([given_job]) == [given_job.id]
    found = await store.get(given_job.id)
    assert before - 5 <= found.created_at <= time.time() + 5
    expected = msgspec.structs.replace(given_job, active_key="k", created_at=found.created_at)
    assert found == expected
    assert [type(getattr(found, n)) for n in COLUMNS] == [
        type(getattr(expected, n)) for n in COLUMNS
    ]


async def test_run_at_zero_means_now(store):
    (id,) = await store.add([job()])
    found = await store.get(id)
    assert found.run_at == found.created_at
    assert abs(found.run_at - await store.now()) < 5


async def test_nothing_is_added_by_an_empty_list(store):
    assert await store.add([]) == []
    assert await store.finish([]) == []
    assert await store.renew(A, [], 10) == []
    assert await store.fire([]) == []
    await store.note([])
    assert await store.claim(A, [], 10, 10) == []
    assert await store.claim(A, Q, 0, 10) == []
    assert await store.next_run_at([]) is None


async def test_an_id_that_exists_is_left_as_it_is(store):
    first = job(priority=1)
    await store.add([first])
    assert await store.add([msgspec.structs.replace(first, priority=2)]) == [first.id]
    assert (await store.get(first.id)).priority == 1
    assert await store.add([first, job(id="new"), first]) == [first.id, "new", first.id]
    assert await store.counts() == {("default", "queued"): 2}


async def test_a_job_that_has_ended_is_not_begun_again_by_its_id(store):
    held = await running(store)
    await store.finish([report(held)])
    assert await store.add([job(id=held.id)]) == [held.id]
    assert await state(store, held.id) == "succeeded"


async def test_the_active_job_that_bears_the_key_stands_for_the_second(store):
    first, second = job(key="k"), job(key="k")
    assert await store.add([first]) == [first.id]
    assert await store.add([second, job(key="other", id="o")]) == [first.id, "o"]
    assert await store.get(second.id) is None
    (held,) = await store.claim(A, Q, 1, 60)
    assert await store.add([second]) == [held.id]


async def test_one_call_may_bring_a_key_twice(store):
    first, second = job(key="k"), job(key="k")
    assert await store.add([first, second, first]) == [first.id, first.id, first.id]
    assert await store.counts() == {("default", "queued"): 1}


@pytest.mark.parametrize("event", ["succeed", "fail", "confirm_cancel"])
async def test_a_key_is_free_again_after_the_end(store, event):
    held = await running(store, key="k")
    await store.finish([report(held, event)])
    assert (await store.get(held.id)).active_key is None
    assert (await store.get(held.id)).key == "k"
    second = job(key="k")
    assert await store.add([second]) == [second.id]


async def test_a_key_stays_taken_through_a_retry(store):
    held = await running(store, key="k")
    await store.finish([report(held, "retry", retry_in=100)])
    assert await store.add([job(key="k")]) == [held.id]


async def test_keys_ids_and_queues_are_compared_letter_for_letter(store):
    names = ["k", "K", "k ", " k", "ḱ", "é", "e", "É", "ß", "ss", "🙂", "x" * 200]
    jobs = [job(id=f"id-{name}", key=name, queue=name, run_at=1) for name in names]
    assert await store.add(jobs) == [each.id for each in jobs]
    assert (await store.get("ID-k")) is None
    for each in jobs:
        (claimed,) = await store.claim(A, [each.queue], 10, 60)
        assert claimed.id == each.id
        assert (await store.find(Find(queue=each.queue)))[0].id == each.id


async def test_two_processes_that_add_one_key_at_once_add_one_job(place, store):
    second = await other(place, store)
    jobs = [[job(key=f"k{n}") for n in range(10)] for _ in range(4)]
    added = await asyncio.gather(
        *((store, second)[i % 2].add(jobs[i][:: 1 if i % 3 else -1]) for i in range(4))
    )
    ids = {id for each in added for id in each}
    assert len(ids) == 10
    assert await store.counts() == {("default", "queued"): 10}


async def test_many_jobs_are_added_at_once_in_their_order(place, store):
    jobs = [job(run_at=1, inputs=b"x" * 100) for _ in range(many(place, 1500))]
    assert await store.add(jobs) == [each.id for each in jobs]
    claimed = await store.claim(A, Q, 1000, 60)
    claimed += await store.claim(A, Q, 1000, 60)
    assert [each.id for each in claimed] == [each.id for each in jobs]
    assert claimed[0].inputs == b"x" * 100


async def test_large_values_come_back_whole(store):
    held = await running(store, inputs=bytes(2_000_000))
    assert len(held.inputs) == 2_000_000
    await store.finish([report(held, result=b"r" * 3_000_000)])
    assert (await store.get(held.id)).result == b"r" * 3_000_000


# Claiming -----------------------------------------------------------------------------------


async def test_a_claim_takes_priority_then_time_then_insertion(store):
    order = [(0, 1.0), (0, 1.0), (5, 3.0), (-1, 0.5), (5, 2.0), (0, 0.5), (5, 2.0)]
    jobs = [job(id=f"{n}", priority=p, run_at=t) for n, (p, t) in enumerate(order)]
    await store.add(jobs[:4])
    await store.add(jobs[4:])
    first = await store.claim(A, Q, 3, 60)
    rest = await store.claim(B, Q, 30, 60)
    assert [each.id for each in first] == ["4", "6", "2"]
    assert [each.id for each in rest] == ["5", "0", "1", "3"]


async def test_a_claimed_job_is_running_with_its_owner_attempt_and_lease(store):
    held = await running(store, inputs=b"in", key="k")
    assert (held.state, held.owner, held.attempt, held.inputs) == ("running", A, 1, b"in")
    assert held.lease_until is not None
    assert held.started_at is not None
    assert held.reason is None
    assert held == await store.get(held.id)
    assert await store.owners() == [A]


async def test_a_job_waits_for_its_time(store):
    now = await store.now()
    await store.add([job(run_at=now + 1000), job(id="due", run_at=now - 1)])
    assert [each.id for each in await store.claim(A, Q, 10, 60)] == ["due"]
    assert await store.claim(A, Q, 10, 60) == []


async def test_only_the_queues_asked_for_are_looked_at(store):
    await store.add(
        [job(id="a", queue="a", priority=1, run_at=2), job(id="b", queue="b", run_at=1)]
    )
    await store.add([job(id="c", queue="c"), job(id="a2", queue="a", priority=0, run_at=0.5)])
    claimed = await store.claim(A, ["b", "a"], 10, 60)
    assert [each.id for each in claimed] == ["a", "a2", "b"]
    assert [each.id for each in await store.claim(A, ["none"], 10, 60)] == []


async def test_a_claim_over_queues_merges_their_insertion_order(store):
    jobs = [job(id=f"{n}", queue="ab"[n % 2], run_at=1) for n in range(6)]
    await store.add(jobs)
    assert [each.id for each in await store.claim(A, ["a", "b"], 4, 60)] == ["0", "1", "2", "3"]


async def test_jobs_for_agents_are_not_claimed(store):
    await store.add([job(target="agent:pi-7", priority=9), job(id="mine")])
    assert [each.id for each in await store.claim(A, Q, 10, 60)] == ["mine"]


async def test_a_job_that_has_expired_is_not_claimed(store):
    await store.add([job(id="late", expires_at=time.time() - 1, priority=1), job(id="good")])
    assert [each.id for each in await store.claim(A, Q, 10, 60)] == ["good"]


async def test_expiry_guards_the_first_start_only(store, place):
    held = await running(store, expires_at=time.time() + 1000)
    await place.change(store, held.id, expires_at=1.0)
    await store.finish([report(held, "retry")])
    assert await store.rescue() == []
    assert [each.id for each in await store.claim(A, Q, 1, 60)] == [held.id]


async def test_two_claimers_at_once_never_take_the_same_job(place, store):
    second = await other(place, store)
    await store.add([job() for _ in range(60)])
    taken = []

    async def work(view, owner):
        while jobs := await view.claim(owner, Q, 7, 60):
            taken.extend(each.id for each in jobs)

    await asyncio.gather(work(store, A), work(second, B), work(store, A), work(second, B))
    await work(store, A)
    assert len(taken) == len(set(taken)) == 60


async def test_attempt_numbers_are_never_used_twice(store):
    held = await running(store)
    seen = [held.attempt]
    for event in ("give_back", "retry", "crash", "give_back"):
        await store.finish([report(held, event)])
        assert (await store.get(held.id)).attempt == held.attempt
        (held,) = await store.claim(B, Q, 1, 60)
        seen.append(held.attempt)
    assert seen == [1, 2, 3, 4, 5]
    assert (held.errors, held.crashes) == (1, 1)


async def test_the_first_start_stays_the_start(store):
    held = await running(store)
    await store.finish([report(held, "give_back")])
    (again,) = await store.claim(A, Q, 1, 60)
    assert again.started_at == held.started_at


# Places -------------------------------------------------------------------------------------


async def test_no_more_jobs_of_a_pipeline_run_than_it_has_slots(store):
    await store.add([job(pipeline="p", concurrency=2) for _ in range(5)])
    await store.add([job(pipeline="q", concurrency=1) for _ in range(3)])
    await store.add([job(pipeline="free")])
    claimed = await store.claim(A, Q, 100, 60)
    assert Counter(each.pipeline for each in claimed) == {"p": 2, "q": 1, "free": 1}
    assert len({each.slot for each in claimed if each.slot}) == 3
    assert await store.claim(B, Q, 100, 60) == []
    await store.finish([report(claimed[0])])
    again = await store.claim(B, Q, 100, 60)
    assert [each.pipeline for each in again] == [claimed[0].pipeline]


async def test_a_full_pipeline_does_not_stand_in_the_way_of_others(store):
    await running(store, pipeline="p", concurrency=1)
    await store.add([job(pipeline="p", concurrency=1, priority=5) for _ in range(25)])
    await store.add([job(id="behind", pipeline="q")])
    assert [each.id for each in await store.claim(A, Q, 2, 60)] == ["behind"]


async def test_a_job_without_a_limit_runs_beside_limited_ones_of_its_pipeline(store):
    await store.add([job(concurrency=1), job(concurrency=1), job(id="unlimited")])
    assert len(await store.claim(A, Q, 10, 60)) == 2


async def test_one_job_runs_in_a_lane(store):
    await store.add([job(id=f"{n}", lane="one", run_at=1 + n) for n in range(3)])
    await store.add([job(id="x", lane="two")])
    claimed = await store.claim(A, Q, 10, 60)
    assert [each.id for each in claimed] == ["0", "x"]
    assert [each.lane_held for each in claimed] == ["one", "two"]
    assert await store.claim(A, Q, 10, 60) == []
    await store.finish([report(claimed[0], "fail")])
    assert [each.id for each in await store.claim(A, Q, 10, 60)] == ["1"]


async def test_a_job_needs_its_slot_and_its_lane(store):
    await running(store, pipeline="p", concurrency=1)
    await store.add([job(id="both", pipeline="p", concurrency=1, lane="l")])
    await store.add([job(id="lane", pipeline="q", lane="l")])
    assert [each.id for each in await store.claim(A, Q, 10, 60)] == ["lane"]


@pytest.mark.parametrize("event", ["succeed", "fail", "retry", "crash", "give_back"])
async def test_whatever_ends_an_attempt_frees_its_places(store, event):
    held = await running(store, concurrency=1, lane="l")
    assert (held.slot, held.lane_held) != (None, None)
    await store.finish([report(held, event, retry_in=1000)])
    found = await store.get(held.id)
    assert (found.slot, found.lane_held, found.owner, found.lease_until) == (None,) * 4


async def test_many_claimers_at_once_keep_to_the_slots(place, store):
    second = await other(place, store)
    await store.add([job(concurrency=3) for _ in range(12)])
    await store.add([job(lane="l", pipeline="q") for _ in range(12)])
    for _ in range(4):
        claims = (view.claim(A, Q, 2, 60) for view in (store, second) * 3)
        claimed = [each for jobs in await asyncio.gather(*claims) for each in jobs]
        assert len({each.id for each in claimed}) == len(claimed)
        held = await store.find(Find(states=("running",)))
        assert sum(each.pipeline == "flow" for each in held) <= 3
        assert sum(each.pipeline == "q" for each in held) <= 1
        await store.finish([report(each) for each in claimed])


# Renewing and noting ------------------------------------------------------------------------


async def test_renew_tells_held_from_asked_to_cancel_from_lost(store):
    one, two, three = [await running(store) for _ in range(3)]
    await store.cancel(two.id)
    await store.finish([report(three)])
    held = [(each.id, each.attempt) for each in (one, two, three)]
    held += [(one.id, one.attempt + 1), ("unknown", 1)]
    assert await store.renew(A, held, 60) == [HELD, CANCEL, LOST, LOST, LOST]
    assert await store.renew(B, held[:1], 60) == [LOST]


async def test_a_renewed_lease_holds(store):
    held = await running(store, lease=-1)
    assert await store.renew(A, [(held.id, held.attempt)], 60) == [HELD]
    assert (await store.get(held.id)).lease_until > held.lease_until
    assert await store.rescue() == []


async def test_a_lease_that_ran_out_may_be_renewed_until_it_is_rescued(store):
    held = await running(store, lease=-1)
    assert [each.id for each in await store.rescue()] == [held.id]
    assert await store.renew(A, [(held.id, held.attempt)], 60) == [LOST]
    (again,) = await store.claim(A, Q, 1, 60)
    assert await store.renew(A, [(held.id, held.attempt), (again.id, again.attempt)], 60) == [
        LOST,
        HELD,
    ]


async def test_a_note_is_kept_while_its_attempt_runs(store):
    held = await running(store)
    note = msgspec.json.encode(Record(nodes=[NodeTiming("n", "ok", 0.5)], log="so far"))
    await store.note([(held.id, held.attempt, note), ("unknown", 1, note)])
    assert (await store.get(held.id)).trace.log == "so far"
    await store.note([(held.id, held.attempt + 1, b"{}")])
    assert (await store.get(held.id)).record == note
    await store.finish([report(held, record=b'{"log": "end"}')])
    await store.note([(held.id, held.attempt, note)])
    assert (await store.get(held.id)).trace.log == "end"


# Finishing ----------------------------------------------------------------------------------


async def test_success_keeps_result_record_and_times(store):
    held = await running(store, result_ttl=100)
    now = await store.now()
    assert await store.finish([report(held, result=b"r", record=b'{"log": "l"}')]) == [True]
    found = await store.get(held.id)
    assert (found.state, found.result, found.trace.log) == ("succeeded", b"r", "l")
    assert abs(found.ended_at - now) < 5
    assert found.prune_at == pytest.approx(found.ended_at + 100)
    assert await store.owners() == []


async def test_failure_keeps_the_error_and_counts_it(store):
    held = await running(store)
    error = msgspec.json.encode(Failure("ValueError", "nö", kinds=["ValueError"]))
    await store.finish([report(held, "fail", reason="wrong", error=error)])
    found = await store.get(held.id)
    assert (found.state, found.errors, found.reason) == ("failed", 1, "wrong")
    assert found.failure.message == "nö"


async def test_a_retry_waits_and_counts(store):
    held = await running(store)
    await store.finish([report(held, "retry", retry_in=500, error=b'{"kind":"E","message":"m"}')])
    found = await store.get(held.id)
    assert (found.state, found.errors, found.crashes) == ("queued", 1, 0)
    assert 490 < found.run_at - await store.now() <= 501
    assert found.failure.kind == "E"
    assert await store.claim(A, Q, 1, 60) == []


async def test_a_job_that_is_given_back_counts_nothing(store):
    held = await running(store)
    await store.finish([report(held, "give_back", reason="draining")])
    found = await store.get(held.id)
    assert (found.state, found.errors, found.crashes) == ("queued", 0, 0)
    assert found.reason == "draining"


async def test_b1_a_released_job_is_as_if_it_had_not_been_claimed(store):
    """B1: its configuration is broken on the worker that has claimed it."""
    before = job(run_at=5.0, concurrency=1, lane="l", key="k")
    await store.add([before])
    (held,) = await store.claim(A, Q, 1, 60)
    why = msgspec.json.encode(Failure("MisconfiguredError", "no", since=7.0))
    released = report(held, "release", owner=A, reason="configuration: no", error=why)
    assert await store.finish([released, released]) == [True, False]
    found = await store.get(held.id)
    assert (found.state, found.reason, found.failure.since) == ("queued", "configuration: no", 7.0)
    assert (found.attempt, found.errors, found.crashes, found.started_at) == (0, 0, 0, None)
    assert (found.run_at, found.active_key) == (5.0, "k")
    assert (found.slot, found.lane_held, found.owner, found.lease_until) == (None,) * 4
    (again,) = await store.claim(B, Q, 1, 60)
    assert (again.attempt, again.reason, again.failure.since) == (1, None, 7.0)
    assert await store.finish([released]) == [False], "the attempt of that number is another's now"
    await store.finish([report(again)])
    assert (await store.get(held.id)).failure is None


async def test_b1_a_later_attempt_that_is_released_keeps_what_it_has_behind_it(store):
    held = await running(store)
    await store.finish([report(held, "retry", record=b"{}")])
    (again,) = await store.claim(A, Q, 1, 60)
    await store.finish([report(again, "release", owner=A)])
    found = await store.get(held.id)
    assert (found.attempt, found.errors, found.started_at) == (1, 1, held.started_at)


async def test_b1_a_job_that_is_to_be_cancelled_is_not_queued_again_by_a_release(store):
    held = await running(store)
    await store.cancel(held.id, "why")
    await store.finish([report(held, "release", owner=A)])
    assert await state(store, held.id) == "cancelled"


async def test_b1_what_does_not_exist_for_too_long_is_rejected(store):
    held = await running(store)
    await store.finish([report(held, "refuse", reason="unknown pipeline 'x'", owner=A)])
    found = await store.get(held.id)
    assert (found.state, found.reason) == ("rejected", "unknown pipeline 'x'")


async def test_b1_a_claim_leaves_jobs_alone_and_takes_those_behind_them(store):
    await store.add([job(id=f"{n:04}", run_at=float(n)) for n in range(1, 40)])
    await store.add([job(id="high", priority=5, run_at=100.0), job(id="good", run_at=101.0)])
    left = [*(f"{n:04}" for n in range(1, 40)), "high"]
    assert await store.next_run_at(Q, left) == 101.0
    assert [each.id for each in await store.claim(A, Q, 3, 60, left)] == ["good"]
    assert await store.next_run_at(Q, left) is None
    assert await store.claim(A, Q, 3, 60, left) == []
    assert [each.id for each in await store.claim(B, Q, 2, 60)] == ["high", "0001"]


async def test_b1_what_waits_for_its_configuration_is_counted_with_the_reason(store):
    await store.add([job(id=str(n), pipeline="ab"[n > 1]) for n in range(4)])
    for held in await store.claim(A, Q, 9, 60):
        if held.id != "0":
            why = f"configuration: {held.pipeline} 100% no"
            await store.finish([report(held, "release", owner=A, reason=why)])
    assert await store.misconfigured() == {
        ("default", "a", "configuration: a 100% no"): 1,
        ("default", "b", "configuration: b 100% no"): 2,
    }
    assert (await store.counts())["default", "queued"] == 3


async def test_a_crash_is_tried_again_until_there_were_too_many(store):
    held = await running(store, spec=b'{"max_crashes": 2}')
    await store.finish([report(held, "crash", reason="signal 9")])
    assert await state(store, held.id) == "queued"
    (held,) = await store.claim(A, Q, 1, 60)
    await store.finish([report(held, "crash", reason="signal 9")])
    found = await store.get(held.id)
    assert (found.state, found.crashes) == ("failed", 2)
    assert "signal 9" in found.reason


async def test_a_crash_ends_a_job_that_must_not_run_twice(store):
    held = await running(store, spec=b'{"on_crash": "fail"}')
    await store.finish([report(held, "crash", reason="died")])
    assert await state(store, held.id) == "failed"


@pytest.mark.parametrize("event", ["succeed", "fail", "retry", "crash", "give_back", "lose"])
async def test_a_stale_report_changes_nothing(store, event):
    old = await running(store)
    await store.finish([report(old, "give_back")])
    (held,) = await store.claim(B, Q, 1, 60)
    assert await store.finish([report(old, event, result=b"late")]) == [False]
    assert await store.get(held.id) == held
    assert await store.finish([report(held)]) == [True]
    before = await store.get(held.id)
    assert await store.finish([report(held, event, result=b"late")]) == [False]
    assert await store.get(held.id) == before


async def test_a_report_of_a_job_that_nobody_knows_is_stale(store):
    assert await store.finish([Report(id="unknown", attempt=1, event="succeed")]) == [False]


async def test_the_first_of_two_reports_in_one_call_wins(store):
    one, two = [await running(store) for _ in range(2)]
    reports = [report(one), report(one, "fail"), report(two, "fail"), report(two)]
    assert await store.finish(reports) == [True, False, True, False]
    assert [await state(store, each.id) for each in (one, two)] == ["succeeded", "failed"]


async def test_of_reports_at_once_exactly_one_wins(place, store):
    second = await other(place, store)
    for _ in range(5):
        held = await running(store, spec=b'{"max_crashes": 9}')
        done = await asyncio.gather(
            *(
                view.finish([report(held, event)])
                for view in (store, second)
                for event in ("succeed", "fail")
            ),
            store.cancel(held.id),
        )
        assert sorted(map(str, done[:4])) == ["[False]", "[False]", "[False]", "[True]"]


async def test_many_attempts_end_in_one_call(place, store):
    count = many(place, 700)
    await store.add([job() for _ in range(count)])
    claimed = await store.claim(A, Q, count, 60)
    assert await store.finish([report(each, result=b"r") for each in claimed]) == [True] * count
    assert await store.counts() == {("default", "succeeded"): count}


# Cancelling ---------------------------------------------------------------------------------


async def test_cancel_of_an_unknown_job_is_none(store):
    assert await store.cancel("unknown") is None


async def test_a_queued_job_is_cancelled_at_once(store):
    (id,) = await store.add([job(key="k")])
    assert await store.cancel(id, "no need") == "cancelled"
    found = await store.get(id)
    assert (found.state, found.reason, found.active_key) == ("cancelled", "no need", None)
    assert found.ended_at is not None
    assert await store.claim(A, Q, 1, 60) == []
    assert await store.cancel(id, "again") == "cancelled"
    assert (await store.get(id)).reason == "no need"


@pytest.mark.parametrize("state", ["running", "offered", "accepted"])
async def test_whoever_has_a_job_is_asked_to_cancel_it(place, store, state):
    held = await running(store)
    await place.change(store, held.id, state=state)
    assert await store.cancel(held.id, "stop") == state
    found = await store.get(held.id)
    assert (found.state, found.reason) == (state, "stop")
    assert abs(found.cancel_at - await store.now()) < 5
    assert await store.cancel(held.id, "again") == state
    assert await store.get(held.id) == found
    assert await store.finish([report(held, "confirm_cancel", reason="stop")]) == [True]
    assert (await store.get(held.id)).state == "cancelled"


@pytest.mark.parametrize("state", lifecycle.TERMINAL)
async def test_an_outcome_is_not_cancelled(place, store, state):
    held = await running(store)
    await store.finish([report(held)])
    await place.change(store, held.id, state=state)
    before = await store.get(held.id)
    assert await store.cancel(held.id, "too late") == state
    assert await store.get(held.id) == before


@pytest.mark.parametrize("event", ["succeed", "fail"])
async def test_the_first_outcome_wins_over_the_wish_to_cancel(store, event):
    held = await running(store)
    await store.cancel(held.id)
    await store.finish([report(held, event)])
    assert await state(store, held.id) == {"succeed": "succeeded", "fail": "failed"}[event]


@pytest.mark.parametrize("event", ["retry", "crash", "give_back", "lose"])
async def test_a_job_to_be_cancelled_is_not_begun_again(store, event):
    held = await running(store, key="k")
    await store.cancel(held.id, "stop")
    await store.finish([report(held, event)])
    found = await store.get(held.id)
    assert (found.state, found.reason, found.active_key) == ("cancelled", "stop", None)


# Rescuing -----------------------------------------------------------------------------------


async def test_rescue_leaves_what_is_well(store):
    held = await running(store)
    await store.add([job(), job(run_at=SOON), job(expires_at=SOON)])
    assert await store.rescue() == []
    assert await store.rescue([B]) == []
    assert await store.get(held.id) == held


async def test_a_lease_that_has_run_out_is_a_crash(store):
    held = await running(store, lease=-1, inputs=b"in", concurrency=1, lane="l")
    (rescued,) = await store.rescue()
    assert (rescued.id, rescued.state, rescued.crashes, rescued.owner) == (
        held.id,
        "queued",
        1,
        None,
    )
    found = await store.get(held.id)
    assert (found.state, found.crashes, found.errors, found.attempt) == ("queued", 1, 0, 1)
    assert (found.slot, found.lane_held, found.lease_until) == (None, None, None)
    assert found.failure.kind == "WorkerDied"
    assert await store.rescue() == []
    (again,) = await store.claim(B, Q, 1, 60)
    assert (again.id, again.attempt, again.inputs) == (held.id, 2, b"in")
    assert await store.finish([report(held)]) == [False]


async def test_the_jobs_of_the_dead_are_rescued_at_once(store):
    mine, theirs = await running(store, A), await running(store, B)
    assert sorted(await store.owners()) == sorted([A, B])
    assert [each.id for each in await store.rescue([B, "nobody"])] == [theirs.id]
    assert await store.get(mine.id) == mine


async def test_a_poison_job_is_stopped_after_max_crashes(store):
    (id,) = await store.add([job()])
    for _ in range(3):
        assert await state(store, id) == "queued"
        await store.claim(A, Q, 1, 60)
        await store.rescue([A])
    found = await store.get(id)
    assert (found.state, found.crashes) == ("failed", 3)
    assert "3 times" in found.reason


async def test_a_job_that_must_not_run_twice_fails_with_its_worker(store):
    held = await running(store, spec=b'{"on_crash": "fail"}')
    (rescued,) = await store.rescue([A])
    assert (rescued.id, rescued.state) == (held.id, "failed")


async def test_a_cancelled_job_of_a_dead_worker_ends_cancelled(store):
    held = await running(store)
    await store.cancel(held.id, "stop")
    (rescued,) = await store.rescue([A])
    assert (rescued.state, rescued.reason) == ("cancelled", "stop")


async def test_a_job_that_was_not_started_in_time_expires(store):
    (id,) = await store.add([job(expires_at=time.time() - 1, key="k")])
    (rescued,) = await store.rescue()
    assert (rescued.id, rescued.state) == (id, "expired")
    assert (await store.get(id)).active_key is None
    assert await store.rescue() == []


@pytest.mark.parametrize("state", ["running", "offered", "accepted"])
async def test_a_cancel_that_nobody_confirms_ends_after_its_deadline(place, store, state):
    held = await running(store)
    await place.change(store, held.id, state=state)
    await store.cancel(held.id)
    assert await store.rescue() == []
    now = await store.now()
    await place.change(store, held.id, cancel_at=now - CANCEL_DEADLINE + 20)
    assert await store.rescue() == []
    await place.change(store, held.id, cancel_at=now - CANCEL_DEADLINE - 1)
    (rescued,) = await store.rescue()
    assert (rescued.state, rescued.reason) == ("cancelled", "unconfirmed")


async def test_agents_have_no_lease_that_could_run_out(place, store):
    (id,) = await store.add([job(target="agent:pi")])
    await place.change(store, id, state="offered", agent="pi", attempt=1)
    assert await store.rescue([A]) == []
    assert await store.owners() == []
    assert await state(store, id) == "offered"


async def test_two_rescuers_at_once_count_one_crash(place, store):
    second = await other(place, store)
    await store.add([job() for _ in range(10)])
    await store.claim(A, Q, 10, -1)
    rescued = await asyncio.gather(*(view.rescue() for view in (store, second) * 2))
    assert sum(map(len, rescued)) == 10
    assert {each.crashes for each in await store.find(Find())} == {1}


# Looking ------------------------------------------------------------------------------------


async def test_get_of_an_unknown_job_is_none(store):
    assert await store.get("unknown") is None


async def test_find_lists_the_newest_first_without_blobs(store):
    for n in range(5):
        await store.add([job(id=f"{n}", inputs=b"in", spec=b'{"timeout": 1}')])
    found = await store.find(Find(limit=3))
    assert [each.id for each in found] == ["4", "3", "2"]
    assert [(each.inputs, each.result, each.record) for each in found] == [(b"", None, None)] * 3
    assert found[0].rules.timeout == 1


async def test_find_narrows_by_what_it_is_given(store):
    await store.add(
        [job(id="p", pipeline="p"), job(id="q", queue="q"), job(id="s", schedule_id="s")]
    )
    await store.add([job(id="g", group_id="g"), job(id="r", priority=9)])
    await store.claim(A, Q, 1, 60)

    async def ids(**query):
        return [each.id for each in await store.find(Find(**query))]

    assert await ids(pipeline="p") == ["p"]
    assert await ids(queue="q") == ["q"]
    assert await ids(schedule_id="s") == ["s"]
    assert await ids(group_id="g") == ["g"]
    assert await ids(owner=A) == ["r"]
    assert await ids(states=("running",)) == ["r"]
    assert await ids(states=("running", "queued"), pipeline="flow") == ["r", "g", "s", "q"]
    assert await ids(states=("failed",)) == []


async def test_counts_are_by_queue_and_state(store):
    await store.add([job(), job(), job(queue="q"), job(target="agent:x")])
    await store.claim(A, Q, 1, 60)
    expected = {("default", "queued"): 2, ("default", "running"): 1, ("q", "queued"): 1}
    assert await store.counts() == expected


async def test_next_run_at_is_that_of_the_first_job_that_waits(store):
    assert await store.next_run_at(Q) is None
    await store.add([job(run_at=LATER), job(run_at=SOON, priority=-5), job(run_at=1e9, queue="q")])
    await store.add([job(run_at=1.9e9, target="agent:x")])
    assert await store.next_run_at(Q) == SOON
    assert await store.next_run_at(["default", "q"]) == 1e9
    assert await store.next_run_at(["none"]) is None


async def test_the_store_has_a_clock(store):
    assert abs(await store.now() - time.time()) < 5
    assert isinstance(await store.now(), float)


# Pruning ------------------------------------------------------------------------------------


async def test_ended_jobs_are_removed_when_their_time_is_over(store):
    await store.add([job(result_ttl=-1), job(result_ttl=1000), job(result_ttl=-1, run_at=SOON)])
    claimed = await store.claim(A, Q, 10, 60)
    await store.finish([report(each, result=b"r") for each in claimed])
    assert await store.prune() == 1
    assert await store.prune() == 0
    assert await store.counts() == {("default", "succeeded"): 1, ("default", "queued"): 1}


async def test_prune_removes_no_more_than_it_is_told(store):
    await store.add([job(result_ttl=-1) for _ in range(7)])
    claimed = await store.claim(A, Q, 10, 60)
    await store.finish([report(each) for each in claimed])
    assert [await store.prune(3) for _ in range(4)] == [3, 3, 1, 0]


async def test_a_pruned_identity_never_comes_again(place, store):
    id = identity("s", 1.0)
    held = await running(store, id=id, identity=True, result_ttl=-1, inputs=b"in", key="k")
    await store.finish([report(held, result=b"r")])
    assert await store.prune() == 1
    assert await store.get(id) is None
    assert await store.find(Find()) == []
    assert await store.counts() == {}
    assert await store.cancel(id) is None
    assert await store.add([job(id=id, identity=True, key="k")]) == [id]
    assert await store.get(id) is None
    assert await store.claim(A, Q, 10, 60) == []
    assert await store.prune() == 0
    assert await store.finish([report(held)]) == [False]


async def test_the_bare_identity_goes_after_sixty_days(place, store):
    id = identity("s", 2.0)
    held = await running(store, id=id, identity=True, result_ttl=-1)
    await store.finish([report(held)])
    await store.prune()
    assert await store.prune() == 0
    assert IDENTITY_TTL == 60 * 86_400
    await place.change(store, id, prune_at=await store.now() - 1)
    assert await store.prune() == 1
    await store.add([job(id=id, identity=True)])
    assert await state(store, id) == "queued"


# Schedules ----------------------------------------------------------------------------------


def schedule(id="s", **fields):
    defaults = {"trigger": b'{"t": 1}', "next_fire_time": 1000.5, "created_at": 0.0}
    return Schedule(id=id, pipeline=fields.pop("pipeline", "flow"), **{**defaults, **fields})


def fire(row, *jobs, to: float | None = 2000.0, **fields):
    return Fire(
        id=row.id,
        revision=fields.pop("revision", row.revision),
        expected=fields.pop("expected", row.next_fire_time),
        next_fire_time=to,
        last_fire_time=fields.pop("last", row.next_fire_time),
        jobs=list(jobs),
        **fields,
    )


@pytest.mark.parametrize("place", ("memory", "sqlite"), indirect=True)
async def test_a_fire_for_a_large_fleet_is_more_than_one_statement_takes(store):
    row = await store.put(schedule())
    (fired,) = await store.fire([fire(row, *(job() for _ in range(10_000)))])
    assert len(fired) == 10_000
    assert (await store.schedule("s")).fired == 10_000


async def test_put_inserts_a_schedule(store):
    given_one = schedule(
        policy=b'{"p": 1}', template=b'{"x": 2}', origin="conf", next_fire_time=1 / 3
    )
    row = await store.put(given_one)
    assert abs(row.created_at - await store.now()) < 5
    assert row == msgspec.structs.replace(given_one, created_at=row.created_at)
    assert await store.schedule("s") == row
    assert await store.schedules() == [row]
    assert await store.schedule("unknown") is None


async def test_put_replaces_and_keeps_the_counters(store):
    first = await store.put(schedule())
    await store.fire([fire(first, job())])
    changed = schedule(
        pipeline="q", trigger=b"{}", next_fire_time=5000.0, origin="conf", paused=True
    )
    second = await store.put(changed)
    assert (second.pipeline, second.trigger, second.origin) == ("q", b"{}", "conf")
    assert (second.paused, second.next_fire_time) == (True, 5000.0)
    assert (second.revision, second.fired, second.last_fire_time) == (2, 1, 1000.5)
    assert second.created_at == first.created_at
    assert await store.schedules() == [second]


async def test_schedules_are_listed_by_id(store):
    for id in ("b", "a", "B", "ä"):
        await store.put(schedule(id))
    assert [each.id for each in await store.schedules()] == ["B", "a", "b", "ä"]


async def test_pause_and_resume(store):
    await store.put(schedule())
    paused = await store.pause("s", paused=True)
    assert (paused.paused, paused.next_fire_time, paused.revision) == (True, None, 2)
    assert await store.due(SOON) == []
    resumed = await store.pause("s", paused=False, next_fire_time=77.0)
    assert (resumed.paused, resumed.next_fire_time, resumed.revision) == (False, 77.0, 3)
    assert await store.due(SOON) == [resumed]
    assert await store.pause("unknown", paused=True) is None


async def test_delete_says_whether_there_was_one(store):
    await store.put(schedule())
    assert await store.delete("s") is True
    assert await store.delete("s") is False
    assert await store.schedules() == []


async def test_due_lists_the_earliest_first(store):
    for id, at, paused in (
        ("late", 300.0, False),
        ("early", 100.0, False),
        ("paused", 50.0, True),
        ("never", None, False),
        ("later", 301.0, False),
    ):
        await store.put(schedule(id, next_fire_time=at, paused=paused))
    assert [each.id for each in await store.due(300.0)] == ["early", "late"]
    assert [each.id for each in await store.due(SOON, limit=1)] == ["early"]
    assert await store.due(99.0) == []
    assert await store.next_due() == 100.0


async def test_next_due_is_none_where_nothing_fires(store):
    assert await store.next_due() is None
    await store.put(schedule(paused=True))
    await store.put(schedule("t", next_fire_time=None))
    assert await store.next_due() is None


async def test_a_fire_adds_its_jobs_and_moves_the_schedule(store):
    row = await store.put(schedule(next_fire_time=1000 + 1 / 3))
    jobs = [job(schedule_id="s", nominal_at=1.5), job(schedule_id="s")]
    assert await store.fire([fire(row, *jobs, skipped=4)]) == [[each.id for each in jobs]]
    moved = await store.schedule("s")
    assert (moved.next_fire_time, moved.last_fire_time) == (2000.0, 1000 + 1 / 3)
    assert (moved.fired, moved.skipped, moved.revision) == (2, 4, 1)
    assert (await store.get(jobs[0].id)).nominal_at == 1.5


async def test_a_schedule_may_end_with_its_last_fire(store):
    row = await store.put(schedule())
    assert await store.fire([fire(row, job(), to=None)]) == [[kit.ANY]]
    assert (await store.schedule("s")).next_fire_time is None
    assert await store.next_due() is None


async def test_a_fire_of_a_schedule_that_has_moved_or_changed_does_nothing(store):
    row = await store.put(schedule())
    for wrong in (
        fire(row, job(), revision=2),
        fire(row, job(), expected=999.0),
        fire(schedule("unknown"), job()),
    ):
        assert await store.fire([wrong]) == [None]
    await store.pause("s", paused=True, next_fire_time=1000.5)
    assert await store.fire([fire(row, job(), revision=2)]) == [None]
    assert await store.counts() == {}
    assert (await store.schedule("s")).fired == 0


async def test_the_same_fire_again_does_nothing(store):
    row = await store.put(schedule())
    one = job(id=identity("s", 1000.5), identity=True)
    assert await store.fire([fire(row, one)]) == [[one.id]]
    assert await store.fire([fire(row, one)]) == [None]
    assert (await store.schedule("s")).fired == 1


async def test_a_fire_that_was_cut_off_gives_the_same_ids_again(store):
    """Its job is there already; it is counted as added, not as skipped."""
    row = await store.put(schedule())
    one = job(id=identity("s", 1000.5), identity=True, key="k")
    await store.add([one])
    assert await store.fire([fire(row, one)]) == [[one.id]]
    assert ((await store.schedule("s")).fired, (await store.schedule("s")).skipped) == (1, 0)
    assert await store.counts() == {("default", "queued"): 1}


async def test_a_job_whose_key_is_taken_is_skipped_and_counted(store):
    await store.add([job(id="holder", key="k")])
    row = await store.put(schedule())
    assert await store.fire([fire(row, job(key="k"), job(id="free"), skipped=1)]) == [["free"]]
    moved = await store.schedule("s")
    assert (moved.fired, moved.skipped, moved.next_fire_time) == (1, 2, 2000.0)


async def test_several_schedules_fire_in_one_call(store):
    rows = [await store.put(schedule(f"{n}")) for n in range(30)]
    await store.pause("7", paused=True)
    fired = await store.fire([fire(row, job(id=f"job-{row.id}")) for row in rows])
    assert fired == [None if n == 7 else [f"job-{n}"] for n in range(30)]
    assert await store.counts() == {("default", "queued"): 29}


async def test_one_call_may_fire_a_schedule_twice(store):
    row = await store.put(schedule())
    fires = [fire(row, job(id="1")), fire(row, job(id="2"), expected=2000.0, to=3000.0)]
    assert await store.fire(fires) == [["1"], ["2"]]
    assert ((await store.schedule("s")).fired, await store.next_due()) == (2, 3000.0)


async def test_two_schedulers_at_once_fire_once(place, store):
    second = await other(place, store)
    rows = [await store.put(schedule(f"{n}")) for n in range(10)]
    fires = [fire(r, job(id=identity(r.id, 1000.5), identity=True, key=r.id)) for r in rows]
    calls = (view.fire(fires) for view in (store, second) * 2)
    fired = [each for answer in await asyncio.gather(*calls) for each in answer if each is not None]
    assert sorted(fired) == sorted([each.id] for f in fires for each in f.jobs)
    assert {(each.fired, each.skipped) for each in await store.schedules()} == {(1, 0)}
    assert await store.counts() == {("default", "queued"): 10}


# Members ------------------------------------------------------------------------------------


async def test_members_are_listed_by_name_while_their_time_lasts(store):
    for name in ("b", "a"):
        await store.saw(Member(kind="worker", name=name, info=b'{"n": 1}'), 60)
    await store.saw(Member(kind="scheduler", name="c"), 60)
    await store.saw(Member(kind="worker", name="gone"), 60)
    await store.saw(Member(kind="worker", name="gone"), 0)
    found = await store.members("worker")
    assert [(each.name, each.info) for each in found] == [("a", b'{"n": 1}'), ("b", b'{"n": 1}')]
    assert abs(found[0].seen_at - await store.now()) < 5
    assert found[0].until == pytest.approx(found[0].seen_at + 60, abs=1)


async def test_a_member_seen_again_is_one_member(store):
    await store.saw(Member(kind="worker", name="a"), 10)
    await store.saw(Member(kind="worker", name="a", info=b'{"new": 1}'), 100)
    (found,) = await store.members("worker")
    assert found.info == b'{"new": 1}'
    assert found.until - found.seen_at == pytest.approx(100, abs=1)


async def test_a_member_whose_time_is_over_is_not_listed(store):
    await store.saw(Member(kind="worker", name="a"), 0.001)
    await asyncio.sleep(0.01)  # its time itself is what is tested
    assert await store.members("worker") == []


async def test_forgetting_somebody_unknown_is_nothing(store):
    await store.saw(Member(kind="worker", name="nobody"), 0)
    assert await store.members("worker") == []


# Opening, closing, housekeeping -------------------------------------------------------------


async def test_info_tells_what_the_store_is(place, store):
    await store.add([job(), job()])
    await store.put(schedule())
    info = await store.info()
    assert info["type"] == place.kind
    assert info["schema"] == SCHEMA_VERSION
    assert (info["jobs"], info["schedules"], info["members"]) == (2, 1, 0)
    assert info["server"]
    password = (place.settings.uri or "").partition("@")[0].rpartition(":")[2]
    assert "@" not in (place.settings.uri or "") or password not in str(info)


async def test_vacuum_loses_nothing(store):
    await store.add([job(id="a")])
    await store.vacuum()
    assert await state(store, "a") == "queued"


async def test_closing_twice_is_nothing_more(place):
    store = await place.opened()
    await store.close()
    await store.close()
    with pytest.raises(StoreError):
        await store.get("x")


async def test_closing_what_was_never_opened_is_nothing(place, store):
    await place.store().close()


@shared
async def test_a_store_keeps_its_rows_when_it_is_opened_again(place, store):
    await store.add([job(id="a")])
    await store.close()
    await store.open()
    assert await state(store, "a") == "queued"
    again = await place.opened()
    assert await state(again, "a") == "queued"
    assert store.shared


@shared
async def test_a_schema_newer_than_the_program_is_refused(place, store):
    await place.set_schema(store, 99)
    await store.close()
    try:
        with pytest.raises(StoreError, match="99"):
            await place.opened()
    finally:
        if place.kind == "sqlite":
            return
        await place.set_schema(store, SCHEMA_VERSION)
    assert await (await place.opened()).counts() == {}


@pytest.mark.parametrize("place", kit.SQL, indirect=True)
async def test_the_database_itself_knows_the_states(place, store):
    assert await place.states_checked(store) == set(lifecycle.STATES)


@pytest.mark.parametrize("place", kit.SQL, indirect=True)
async def test_the_database_refuses_a_state_that_there_is_not(place, store):
    await store.add([job(id="a")])
    with pytest.raises(Exception, match=r"(?i)check|constraint"):
        await place.change(store, "a", state="lost")
    assert await state(store, "a") == "queued"


# Cancelled at every await -------------------------------------------------------------------


async def _new(store, id):
    return None


async def _queued(store, id):
    await store.add([job(id=id, key=f"k{id}", queue=id, lane=id, pipeline=id, concurrency=1)])


async def _running(store, id):
    await _queued(store, id)
    await store.claim(A, [id], 1, 60)


async def _expired(store, id):
    await _queued(store, id)
    await store.claim(f"{A}-{id}", [id], 1, -1)


async def _ended(store, id):
    await store.add([job(id=id, queue=id, result_ttl=-1, identity=True)])
    await store.claim(A, [id], 1, 60)
    await store.finish([Report(id=id, attempt=1, event="succeed", result=b"r")])


AGES = 1e12  # beyond any clock


async def _for_ages(store, id):
    return (await store.get(id)).lease_until > AGES / 2


VERBS = [
    Verb("add", _new, lambda store, name: store.add([job(id=name, queue=name, key=f"k{name}")])),
    Verb("claim", _queued, lambda store, name: store.claim(A, [name], 1, 60)),
    Verb("renew", _running, lambda store, name: store.renew(A, [(name, 1)], AGES), _for_ages),
    Verb("note", _running, lambda store, name: store.note([(name, 1, b"{}")])),
    Verb(
        "finish",
        _running,
        lambda store, name: store.finish([Report(id=name, attempt=1, event="retry", record=b"{}")]),
    ),
    Verb("cancel", _queued, lambda store, name: store.cancel(name)),
    Verb("rescue", _expired, lambda store, name: store.rescue()),
    Verb("prune", _ended, lambda store, name: store.prune()),
]


@leaves_sockets
@pytest.mark.parametrize("verb", VERBS, ids=repr)
async def test_a_verb_cancelled_at_any_await_leaves_the_row_before_or_after(store, verb):
    await kit.leaves_before_or_after(store, verb)


@leaves_sockets
@pytest.mark.parametrize("late", [False, True])
async def test_a_fire_cancelled_at_any_await_fires_once(store, late):
    for n in range(1000):
        row = await store.put(schedule(f"{n}"))
        one = job(id=identity(n, late), identity=True, queue=f"{n}-{late}", key=f"key-{n}")
        cut = await kit.cut_off(store.fire([fire(row, one)]), n, late=late)

        async def moved(n=n, row=row, one=one):
            await store.fire([fire(row, one)])
            return (await store.schedule(f"{n}")).next_fire_time == 2000.0

        await kit.eventually(moved)
        found = await store.schedule(f"{n}")
        assert (found.fired, found.skipped) == (1, 0)
        assert await state(store, one.id) == "queued"
        await store.delete(f"{n}")
        if not cut:
            return
    pytest.fail("it never ends")


@leaves_sockets
async def test_an_open_cancelled_at_any_await_can_be_done_again(place, store):
    for n in range(1000):
        another = place.store()
        cut = await kit.cut_off(another.open(), n)
        if cut:
            await another.open()
        await another.add([job(id=f"{n}")])
        assert await state(another, f"{n}") == "queued"
        await another.close()
        if not cut:
            return


@leaves_sockets
async def test_a_store_works_on_after_many_cancelled_calls(store):
    await store.add([job(id=f"{n}") for n in range(20)])
    calls = [asyncio.create_task(store.claim(A, Q, 1, -1)) for _ in range(20)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)

    async def all_back():
        await store.rescue([A])
        return await store.counts() == {("default", "queued"): 20}

    await kit.eventually(all_back)
    assert len(await store.claim(B, Q, 50, 60)) == 20


# Several processes --------------------------------------------------------------------------


@shared
async def test_no_job_is_claimed_by_two_processes(place, store):
    ids = await store.add([job(priority=n % 3) for n in range(many(place, 300))])
    workers = [kit.Worker("claim", place, "5") for _ in range(3)]
    assert [worker.line() for worker in workers] == ["ready"] * 3
    for worker in workers:
        worker.go()
    claimed = [id for worker in workers for id in await asyncio.to_thread(worker.rest)]
    claimed += [each.id for each in await store.claim(A, Q, 500, 60)]
    assert sorted(claimed) == sorted(ids)
    assert {each.attempt for each in await store.find(Find(limit=500))} == {1}


@shared
async def test_many_processes_open_a_store_at_once(place):
    await place.drop()
    workers = [kit.Worker("open", place) for _ in range(4)]
    assert [worker.line() for worker in workers] == ["ready"] * 4
    for worker in workers:
        worker.go()
    for worker in workers:
        await asyncio.to_thread(worker.rest)
    assert await (await place.opened()).counts() == {("default", "queued"): 4}


def test_a_file_whose_tables_are_made_at_this_moment_is_no_foreign_one(tmp_path):
    """Between the look at its version and the look at its tables, another process makes both."""
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "f", isolation_level=None)) as first,
        contextlib.closing(sqlite3.connect(tmp_path / "f", isolation_level=None)) as second,
    ):
        first.execute("PRAGMA journal_mode = WAL")
        made = []

        def between(statement):
            if "sqlite_schema" in statement and not made:
                made.append(first.execute("BEGIN IMMEDIATE"))
                tables.migrate(first)
                first.execute("COMMIT")

        second.set_trace_callback(between)
        tables.check(second)
        assert made
        assert not second.in_transaction
        tables.check(second)
        first.execute("PRAGMA user_version = 0")
        with pytest.raises(StoreError, match="something else"):
            tables.check(second)
        assert not second.in_transaction


async def test_a_file_that_cannot_be_opened_leaves_no_thread(tmp_path):
    """One that is left speaks to a loop that may be gone."""
    before = set(threading.enumerate())
    store = kit.Place("sqlite", f"sqlite:///{tmp_path}").store()
    with pytest.raises(StoreError, match=f"data store {tmp_path}"):
        await store.open()
    left = set(threading.enumerate()) - before
    assert [thread for thread in left if "asyncio" not in thread.name] == []


@shared
async def test_what_a_killed_process_has_been_told_is_there(place, store):
    worker = kit.Worker("add", place)
    assert worker.line() == "ready"
    worker.go()
    told = [worker.line() for _ in range(50)]
    told += [line.strip() for line in worker.kill()]
    again = await place.opened()
    for id in told:
        assert await state(again, id) == "queued"


@shared
async def test_a_process_killed_in_the_middle_leaves_whole_rows(place, store):
    for _ in range(3):
        worker = kit.Worker("churn", place)
        assert worker.line() == "ready"
        worker.go()
        done = [worker.line() for _ in range(10)]
        done += [line.strip() for line in worker.kill()]
        again = await place.opened()
        for id in done:
            assert (await again.get(id)).result == b"r"
        assert_whole(await again.find(Find(limit=10_000)))
        held = await again.owners()

        async def let_go(again=again, held=held):
            await again.rescue(held)
            return not await again.owners()

        await kit.eventually(let_go, 30)
        while claimed := await again.claim(A, Q, 50, 60):
            await again.finish([report(each) for each in claimed])
        assert {key[1] for key in await again.counts()} <= {"succeeded", "failed"}


def assert_whole(rows):
    for row in rows:
        held = row.state == "running" and row.agent is None
        assert (row.owner is not None) == (row.lease_until is not None) == held
        assert (row.slot is not None) == (row.lane_held is not None) == held
        assert (row.ended_at is not None) == (row.state in lifecycle.TERMINAL)
        assert (row.active_key is None) or row.state in lifecycle.ACTIVE
        assert row.agent is not None or row.state not in ("offered", "accepted")


# A model ------------------------------------------------------------------------------------

index = st.integers(0, 30)
EVENTS = sorted(lifecycle.REPORTS)
operation = st.one_of(
    st.tuples(st.just("add"), st.sampled_from([None, None, "k", "l"]), st.integers(0, 2)),
    st.tuples(st.just("claim"), st.sampled_from([A, B]), st.integers(1, 3)),
    st.tuples(st.just("offer"), index, st.sampled_from(["pi", "po"]), st.sampled_from([0, 0, 1])),
    st.tuples(st.just("report"), index, st.sampled_from(EVENTS), st.sampled_from([0, 0, 0, 1])),
    st.tuples(st.just("cancel"), index),
    st.tuples(st.just("renew"), index, st.sampled_from([A, B])),
    st.tuples(st.just("rescue"), st.sampled_from([A, B])),
)


class Model:
    """What a store should hold, in the simplest way."""

    def __init__(self):
        self.rows, self.clock = [], 0

    def holder(self, key):
        active = (r for r in self.rows if r["key"] == key and r["state"] in lifecycle.ACTIVE)
        return next(active, None) if key else None

    def add(self, id, key, priority):
        self.clock += 1
        if row := self.holder(key):
            return row["id"]
        self.rows.append({
            "id": id, "key": key, "priority": priority, "state": "queued", "attempt": 0,
            "crashes": 0, "owner": None, "agent": None, "cancel": False, "time": self.clock, "seq": len(self.rows),
        })  # fmt: skip
        return id

    def claim(self, owner, limit):
        waiting = [row for row in self.rows if row["state"] == "queued"]
        waiting.sort(key=lambda row: (-row["priority"], row["time"], row["seq"]))
        for row in waiting[:limit]:
            row.update(state="running", owner=owner, attempt=row["attempt"] + 1)
        return [row["id"] for row in waiting[:limit]]

    def offer(self, row, agent, attempt):
        if row["state"] != "queued" or attempt != row["attempt"]:
            return False
        row.update(state="offered", agent=agent, attempt=attempt + 1)
        return True

    def report(self, row, event, attempt):
        self.clock += 1
        state = lifecycle.TABLE[row["state"]].get(event)
        if row["state"] == "queued" or attempt != row["attempt"] or state is None:
            return False
        if event == "wait" and row["agent"] is None:
            return False
        row["crashes"] += event == "crash"
        if event in ("accept", "start", "wait"):
            row["state"] = state
            return True
        row["owner"] = None
        if state == "queued" and row["cancel"]:
            row["state"] = "cancelled"
        elif row["crashes"] >= 3 and event == "crash":
            row["state"] = "failed"
        elif state == "queued":
            row.update(state="queued", agent=None)
            if event == "release":
                row["attempt"] -= 1
            else:
                row["time"] = self.clock
        else:
            row["state"] = state
        return True

    def cancel(self, row):
        if row["state"] == "queued":
            row["state"] = "cancelled"
        elif row["state"] in lifecycle.ACTIVE:
            row["cancel"] = True
        return row["state"]

    def renew(self, row, owner):
        held = row["state"] == "running" and row["owner"] == owner
        return (CANCEL if row["cancel"] else HELD) if held else LOST

    def rescue(self, owner):
        gone = [row for row in self.rows if row["owner"] == owner]
        for row in gone:
            self.report(row, "crash", row["attempt"])
        for row in gone:
            row["time"] = self.clock
        return sorted(row["id"] for row in gone)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(operations=st.lists(operation, max_size=30))
async def test_any_sequence_of_verbs_does_what_the_model_does(store, operations):
    queue = kit.new_id()
    model = Model()
    for name, *args in operations:
        row = None
        if name in ("offer", "report", "cancel", "renew"):
            if not model.rows:
                continue
            row = model.rows[args.pop(0) % len(model.rows)]
        if name == "add":
            key, priority = args
            id = kit.new_id()
            new = job(id=id, queue=queue, priority=priority, key=key and queue + key)
            assert await store.add([new]) == [model.add(id, key, priority)]
        elif name == "claim":
            claimed = await store.claim(args[0], [queue], args[1], 60)
            assert [each.id for each in claimed] == model.claim(*args)
        elif name == "offer":
            agent, off = args
            attempt = row["attempt"] - off
            (bound,) = await store.fleet.offer([Offer(row["id"], attempt, agent)])
            assert (bound is not None) == model.offer(row, agent, attempt)
        elif name == "report":
            event, off = args
            attempt = row["attempt"] - off
            owner = row["owner"] if event == "release" else None
            told = Report(id=row["id"], attempt=attempt, event=event, owner=owner)
            answer = await store.finish([told])
            assert answer == [model.report(row, event, attempt)]
        elif name == "cancel":
            assert await store.cancel(row["id"]) == model.cancel(row)
        elif name == "renew":
            held = [(row["id"], row["attempt"])]
            assert await store.renew(args[0], held, 60) == [model.renew(row, args[0])]
        else:
            rescued = await store.rescue(args)
            assert sorted(each.id for each in rescued) == model.rescue(args[0])
        rows = await store.find(Find(queue=queue, limit=100))
        names = ("id", "state", "attempt", "crashes", "owner", "agent")
        assert [tuple(getattr(each, n) for n in names) for each in reversed(rows)] == [
            tuple(each[n] for n in names) for each in model.rows
        ]
        assert [each.active_key is not None for each in reversed(rows)] == [
            bool(each["key"]) and each["state"] in lifecycle.ACTIVE for each in model.rows
        ]
        assert_whole([msgspec.structs.replace(r, slot=r.owner, lane_held=r.owner) for r in rows])
    await store.rescue([A, B])  # leave nobody's jobs to the next example
