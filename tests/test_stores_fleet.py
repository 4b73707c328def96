"""What every data store keeps for jobs on agents: each sentence of `fp_async/stores/fleet.py`."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
import stores_kit as kit
from msgspec.structs import replace
from stores_kit import A, B, Q, Verb, job, leaves_sockets, many, other, report, shared, state

from fp_async import fleet, lifecycle
from fp_async.errors import TransitionError, UnknownNameError, UsageError
from fp_async.jobs import (
    CANCEL_DEADLINE,
    CHUNK_TTL,
    LETTER_TTL,
    REPLY_TTL,
    Chunk,
    Failure,
    Find,
    Letter,
    Member,
    Offer,
    Report,
    Schedule,
    identity,
)
from fp_async.messages import AgentState
from fp_async.presence import Known
from fp_async.stores import SCHEMA_VERSION

on_servers = pytest.mark.parametrize("place", ("postgres", "mysql", "mongodb"), indirect=True)
on_sqlite = pytest.mark.parametrize("place", ("memory", "sqlite"), indirect=True)
PI = "agent:pi"


async def offered(store, agent="pi", **fields):
    """A job that has been added for an agent, and offered to it."""
    (id,) = await store.add([job(**{"target": PI, **fields})])
    (bound,) = await store.fleet.offer([Offer(id, 0, agent)])
    return bound


async def tell(store, bound, *events, **fields):
    """What an agent tells of its attempt, one thing after the other; what was heard."""
    answers = [await store.finish([report(bound, event, **fields)]) for event in events]
    return [answer for (answer,) in answers]


def ended(id="born-there", **fields):
    """A job that an agent began and ended by itself."""
    defaults = {"state": "succeeded", "agent": "pi", "ended_at": 2000.0, "result": b"r"}
    return job(id=id, **{**defaults, **fields})


# What an agent tells ------------------------------------------------------------------------


async def test_g3_what_waits_on_an_agent_says_why_until_it_begins(store):
    bound = await offered(store)
    assert await tell(store, bound, "accept", "start") == [True, True]
    why = "configuration: no X"
    assert await tell(store, bound, "wait", reason=why, agent="pi") == [True]
    found = await store.get(bound.id)
    assert (found.state, found.reason, found.started_at) == ("accepted", why, None)
    assert found.misconfigured
    assert await store.misconfigured() == {("default", "flow", why): 1}
    assert await tell(store, bound, "start", started_at=50.0, agent="pi") == [True]
    found = await store.get(bound.id)
    assert (found.state, found.reason, found.started_at) == ("running", None, 50.0)


async def test_g3_why_it_waits_does_not_hide_why_it_is_cancelled(store):
    bound = await offered(store)
    await store.cancel(bound.id, "enough")
    assert await tell(store, bound, "wait", reason="configuration: no X") == [True]
    assert (await store.get(bound.id)).reason == "enough"


async def test_g8_what_an_agent_began_again_counts_as_attempts_once_it_has_ended(store):
    bound = await offered(store)
    told = {"agent": "pi", "tries": 3, "errors": 1, "crashes": 1}
    assert await tell(store, bound, "accept", "succeed", "succeed", **told) == [True, True, False]
    found = await store.get(bound.id)
    assert (found.state, found.attempt, found.errors, found.crashes) == ("succeeded", 3, 1, 1)


async def test_g5_who_is_forgotten_leaves_no_open_job_and_nothing_of_itself(store):
    said = AgentState(status="ready", store="s", starts=1, n=1)
    here = msgspec.json.encode(Known(state=said, seen_at=1.0))
    await store.saw(Member(kind="agent", name="pi", info=here), 60)
    with pytest.raises(UsageError, match="'pi' is ready"):
        await fleet.forget(store, "pi")
    gone = msgspec.json.encode(Known(state=said, seen_at=1.0, away_since=2.0))
    await store.saw(Member(kind="agent", name="pi", info=gone), 60)
    await store.saw(Member(kind="drained", name="pi"), 60)
    info = b'{"agent": "pi", "schedule": "tick"}'
    await store.saw(Member(kind="agent-schedule", name="tick@pi", info=info), 60)
    waits, moves, stays = (
        await offered(store, target=PI),
        await offered(store, target="any:*"),
        await offered(store, target="any:*", spec=b'{"on_lost":"wait"}'),
    )
    elsewhere = await offered(store, "other", target="any:*")
    await tell(store, waits, "accept", "start")
    done = await fleet.forget(store, "pi")
    assert set(done.failed) == {waits.id, stays.id}
    assert [job.id for job in done.queued] == [moves.id]
    for bound, expected in (
        (waits, "failed"),
        (stays, "failed"),
        (moves, "queued"),
        (elsewhere, "offered"),
    ):
        assert await state(store, bound.id) == expected
    assert "'pi' was forgotten" in (await store.get(waits.id)).reason
    for kind in ("agent", "drained", "agent-schedule"):
        assert await store.members(kind) == []
    assert [member.name for member in await store.members("forgotten")] == ["pi"]
    with pytest.raises(UnknownNameError):
        await fleet.forget(store, "pi")


async def test_g9_schedules_that_agents_fire_count_what_is_heard_of_once(store):
    row = Schedule(id="tick", pipeline="flow", trigger=b"{}", template=b'{"offline":true}')
    await store.put(row)
    born = [
        ended(f"j{n}", schedule_id="tick", created_at=1000.0 + n, run_at=5.0) for n in (2, 0, 1)
    ]
    others = [ended("k"), ended("l", schedule_id="unknown")]
    assert await store.fleet.adopt([*born[:2], *others]) == [True] * 4
    assert await store.fleet.adopt(born) == [False, False, True]
    found = await store.schedule("tick")
    assert (found.fired, found.last_fire_time, found.next_fire_time) == (3, 1002.0, None)


# Leading ------------------------------------------------------------------------------------


async def test_one_leads_until_it_gives_back(store):
    assert await store.fleet.lead("gateway", A, 60) is True
    assert await store.fleet.lead("gateway", B, 60) is False
    assert await store.fleet.lead("gateway", A, 60) is True
    assert await store.fleet.lead("gateway", A, 0) is False
    assert await store.fleet.lead("gateway", B, 60) is True
    assert await store.fleet.lead("gateway", A, 60) is False


async def test_nobody_gives_back_what_another_has(store):
    await store.fleet.lead("gateway", A, 60)
    assert await store.fleet.lead("gateway", B, 0) is False
    assert await store.fleet.lead("gateway", B, 60) is False
    assert await store.fleet.lead("gateway", A, 60) is True
    assert await store.fleet.lead("unknown", A, 0) is False


async def test_roles_are_led_apart(store):
    assert await store.fleet.lead("gateway/a", A, 60) is True
    assert await store.fleet.lead("gateway/b", B, 60) is True
    await store.fleet.lead("gateway/a", A, 0)
    assert await store.fleet.lead("gateway/b", A, 60) is False


async def test_a_lease_that_has_run_out_is_anybodys(store):
    await store.fleet.lead("gateway", A, 0.001)

    async def taken():
        return await store.fleet.lead("gateway", B, 60)

    await kit.eventually(taken)
    assert await store.fleet.lead("gateway", A, 60) is False


async def test_a_leader_that_comes_again_leads_for_longer(store):
    await store.fleet.lead("gateway", A, 5)
    await store.fleet.lead("gateway", A, 500)
    (leader,) = await store.members("lead")
    assert leader.name == "gateway"
    assert leader.until - leader.seen_at == pytest.approx(500, abs=1)
    assert leader.seen_at == pytest.approx(await store.now(), abs=5)


@on_servers
async def test_whose_clock_goes_wrong_takes_nothing(store, monkeypatch):
    await store.fleet.lead("gateway", A, 60)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    assert await store.fleet.lead("gateway", B, 60) is False
    (leader,) = await store.members("lead")
    assert leader.until < now + 300


@on_sqlite
@pytest.mark.parametrize(("ahead", "free"), [(3600, True), (30, False)])
async def test_a_clock_that_was_set_back_far_frees_the_lease(store, monkeypatch, ahead, free):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + ahead)
    await store.fleet.lead("gateway", A, 60)
    monkeypatch.setattr(time, "time", lambda: now)
    assert await store.fleet.lead("gateway", B, 60) is free
    assert await store.fleet.lead("gateway", A, 60) is not free


async def test_of_many_at_once_one_leads(place, store):
    second = await other(place, store)
    for role in map(str, range(20)):
        calls = (view.fleet.lead(role, f"{n}", 60) for n in range(4) for view in (store, second))
        answers = await asyncio.gather(*calls)  # of each owner two, which must agree
        assert sorted(zip(answers[::2], answers[1::2], strict=True)) == [
            *[(False, False)] * 3,
            (True, True),
        ]


# What waits for agents ----------------------------------------------------------------------


async def test_wanted_are_the_targets_and_their_first_times(store):
    assert await store.fleet.wanted() == {}
    await store.add([job(target=PI, run_at=5.5), job(target=PI, run_at=3.25), job(run_at=1)])
    await store.add([job(target="any:gpu=yes", run_at=9e9)])
    assert await store.fleet.wanted() == {PI: 3.25, "any:gpu=yes": 9e9}


async def test_what_is_offered_or_has_ended_is_not_wanted(store):
    await offered(store)
    await store.cancel((await store.add([job(target="agent:x")]))[0])
    assert await store.fleet.wanted() == {}


async def ids_waiting(store, *targets, limit=100):
    return [each.id for each in await store.fleet.waiting(targets, limit)]


async def test_waiting_is_in_the_order_of_claims(store):
    order = [(0, 1.0), (0, 1.0), (5, 3.0), (-1, 0.5), (5, 2.0), (0, 0.5), (5, 2.0)]
    targets = (PI, "any:x=y")
    for n, (priority, run_at) in enumerate(order):
        one = job(id=f"{n}", priority=priority, run_at=run_at, target=targets[n % 2])
        await store.add([one])
    assert await ids_waiting(store, *targets) == ["4", "6", "2", "5", "0", "1", "3"]
    assert await ids_waiting(store, *targets, limit=3) == ["4", "6", "2"]
    assert await ids_waiting(store, PI) == ["4", "6", "2", "0"]
    assert await ids_waiting(store, PI, "unknown", PI, limit=1) == ["4"]


async def test_nothing_waits_for_nobody(store):
    await store.add([job(target=PI), job()])
    assert await ids_waiting(store) == []
    assert await ids_waiting(store, "agent:other") == []
    assert await ids_waiting(store, PI, limit=0) == []
    assert await ids_waiting(store, PI, limit=-3) == []


async def test_only_what_is_due_and_queued_waits(store):
    now = await store.now()
    await store.add([job(target=PI, run_at=now + 1000), job(id="due", target=PI, run_at=now - 1)])
    await offered(store)
    assert await ids_waiting(store, PI) == ["due"]


async def test_what_was_not_started_in_time_does_not_wait(place, store):
    now = await store.now()
    await store.add([job(id=id, target=PI, expires_at=now - 1) for id in ("late", "begun")])
    await store.add([job(id="in time", target=PI, expires_at=now + 1000)])
    await place.change(store, "begun", started_at=now - 10)
    assert sorted(await ids_waiting(store, PI)) == ["begun", "in time"]


async def test_what_waits_comes_without_its_blobs(store):
    new = job(target=PI, inputs=b"in", spec=b'{"timeout": 1}', reply_to="a/b", correlation=b"c")
    await store.add([new])
    (found,) = await store.fleet.waiting([PI], 1)
    assert (found.inputs, found.rules.timeout, found.reply_to) == (b"", 1, "a/b")
    assert found == replace(await store.get(new.id), inputs=b"")


async def test_a_new_job_keeps_what_the_edge_needs(store):
    new = job(
        target=PI, trigger="door", reply_to="té/x", correlation=b"\0\xff", offer=3, unreported=True
    )
    await store.add([new])
    found = await store.get(new.id)
    assert found == replace(new, created_at=found.created_at, run_at=found.run_at)
    assert isinstance(found.unreported, bool)


# Offering -----------------------------------------------------------------------------------


async def test_an_offer_binds_and_gives_the_whole_row(store):
    (id,) = await store.add([job(target=PI, inputs=b"in", key="k")])
    (bound,) = await store.fleet.offer([Offer(id, 0, "pi")])
    assert (bound.state, bound.agent, bound.attempt, bound.inputs) == ("offered", "pi", 1, b"in")
    assert (bound.owner, bound.lease_until, bound.started_at) == (None, None, None)
    assert bound == await store.get(id)


@pytest.mark.parametrize("attempt", [-1, 1, 2])
async def test_an_offer_of_another_attempt_does_nothing(store, attempt):
    (id,) = await store.add([job(target=PI)])
    before = await store.get(id)
    assert await store.fleet.offer([Offer(id, attempt, "pi")]) == [None]
    assert await store.get(id) == before


async def test_nothing_and_what_nobody_knows_is_not_offered(store):
    assert await store.fleet.offer([]) == []
    assert await store.fleet.offer([Offer("unknown", 0, "pi")]) == [None]


@pytest.mark.parametrize("attempt", [0, 1])
async def test_what_another_has_is_not_offered(store, attempt):
    bound = await offered(store)
    assert await store.fleet.offer([Offer(bound.id, attempt, "other")]) == [None]
    assert await store.get(bound.id) == bound
    held = await kit.running(store)
    assert await store.fleet.offer([Offer(held.id, attempt, "other")]) == [None]
    assert await store.get(held.id) == held


async def test_what_has_ended_is_not_offered(store):
    (cancelled,) = await store.add([job(target=PI)])
    await store.cancel(cancelled)
    done = await offered(store)
    await tell(store, done, "succeed")
    gone = await offered(store, id=identity("gone"), identity=True, result_ttl=-1)
    await tell(store, gone, "succeed")
    await store.prune()
    offers = [
        Offer(id, attempt, "pi") for id in (cancelled, done.id, gone.id) for attempt in (0, 1)
    ]
    assert await store.fleet.offer(offers) == [None] * 6
    assert await state(store, cancelled) == "cancelled"


async def test_of_several_offers_of_a_job_the_first_that_is_right_wins(store):
    one, two = await store.add([job(target=PI), job(target=PI)])
    offers = [Offer(one, 7, "wrong"), Offer(two, 0, "b"), Offer(one, 0, "a"), Offer(one, 0, "c")]
    offers += [Offer(two, 1, "d")]
    answers = await store.fleet.offer(offers)
    assert [each and (each.id, each.agent) for each in answers] == [
        *(None, (two, "b"), (one, "a"), None, None)
    ]
    assert [(await store.get(id)).attempt for id in (one, two)] == [1, 1]


async def test_many_jobs_are_offered_in_one_call(place, store):
    ids = await store.add([job(target=PI, inputs=b"%d" % n) for n in range(many(place, 600))])
    bound = await store.fleet.offer([Offer(id, 0, "pi") for id in ids])
    assert [(each.id, each.inputs) for each in bound] == [
        (id, b"%d" % n) for n, id in enumerate(ids)
    ]
    assert await store.counts() == {("default", "offered"): len(ids)}


async def test_two_gateways_at_once_never_bind_a_job_twice(place, store):
    second = await other(place, store)
    ids = await store.add([job(target=PI) for _ in range(30)])
    calls = (
        view.fleet.offer([Offer(id, 0, agent) for id in ids[:: 1 if view is store else -1]])
        for agent in ("a", "b", "c")
        for view in (store, second)
    )
    bound = [each for answer in await asyncio.gather(*calls) for each in answer if each]
    assert sorted(each.id for each in bound) == sorted(ids)
    assert {each.attempt for each in bound} == {1}
    for each in bound:
        assert await store.get(each.id) == each


async def test_an_offer_and_a_cancel_at_once_leave_one_of_both_orders(place, store):
    second = await other(place, store)
    for _ in range(5):
        (id,) = await store.add([job(target=PI)])
        calls = (store.fleet.offer([Offer(id, 0, "pi")]), second.cancel(id, "stop"))
        (bound,), after = await asyncio.gather(*calls)
        found = await store.get(id)
        assert (found.state, found.cancel_at is not None) == (after, True)
        assert after == ("cancelled" if bound is None else "offered")


# What agents tell ---------------------------------------------------------------------------

LIVES = {
    "accept": "accepted",
    "start": "running",
    "accept start": "running",
    "succeed": "succeeded",
    "accept succeed": "succeeded",
    "start succeed": "succeeded",
    "accept start succeed": "succeeded",
    "fail": "failed",
    "accept start fail": "failed",
    "refuse": "rejected",
    "expire": "expired",
    "accept expire": "expired",
    "confirm_cancel": "cancelled",
    "accept start confirm_cancel": "cancelled",
    "give_back": "queued",
    "start give_back": "queued",
    "lose": "queued",
    "accept lose": "queued",
    "start lose": "queued",
    "crash": "queued",
    "accept crash": "queued",
    "start crash": "queued",
}


@pytest.mark.parametrize("life", LIVES)
async def test_the_life_of_an_offered_job(store, life):
    bound = await offered(store, key="k", inputs=b"in")
    assert set(await tell(store, bound, *life.split())) == {True}
    found = await store.get(bound.id)
    assert found.state == LIVES[life]
    assert (found.agent, found.attempt) == (None if found.state == "queued" else "pi", 1)
    assert (found.ended_at is not None) == (found.active_key is None) == found.finished
    assert (found.owner, found.lease_until, found.inputs) == (None, None, b"in")
    assert found.crashes == ("crash" in life)
    assert found.errors == ("fail" in life)


@pytest.mark.parametrize("life", [life for life, end in LIVES.items() if end == "queued"])
async def test_what_comes_back_is_offered_again_with_the_next_attempt(store, life):
    bound = await offered(store)
    await tell(store, bound, *life.split())
    assert await store.fleet.offer([Offer(bound.id, 0, "other")]) == [None]
    (again,) = await store.fleet.offer([Offer(bound.id, 1, "other")])
    assert (again.agent, again.attempt) == ("other", 2)
    assert await tell(store, bound, *lifecycle.REPORTS) == [False] * len(lifecycle.REPORTS)
    assert await store.get(bound.id) == again


LATE = {
    "accept": ("accept", "give_back", "retry"),
    "start": ("accept", "start", "expire"),
    "": ("retry",),
    **dict.fromkeys(
        ("succeed", "fail", "refuse", "expire", "confirm_cancel", "give_back", "lose", "crash"),
        tuple(sorted(lifecycle.REPORTS)),
    ),
}


@pytest.mark.parametrize("life", LATE)
async def test_what_comes_too_late_or_twice_changes_nothing(store, life):
    bound = await offered(store)
    await tell(store, bound, *life.split())
    before = await store.get(bound.id)
    for event in LATE[life]:
        assert await tell(store, bound, event, result=b"late", errors=9) == [False]
    assert await store.get(bound.id) == before


async def test_a_start_is_kept_as_the_agent_tells_it(store):
    bound = await offered(store)
    await tell(store, bound, "start", started_at=1234.5)
    assert (await store.get(bound.id)).started_at == 1234.5
    await tell(store, bound, "succeed", started_at=99.0)
    assert (await store.get(bound.id)).started_at == 1234.5


async def test_a_start_without_a_time_is_now(store):
    bound = await offered(store)
    await tell(store, bound, "start")
    assert (await store.get(bound.id)).started_at == pytest.approx(await store.now(), abs=5)


@pytest.mark.parametrize("before", ["", "accept", "start", "accept start"])
@pytest.mark.parametrize("event", ["succeed", "fail"])
async def test_what_an_agent_counts_itself_is_kept(store, before, event):
    bound = await offered(store)
    await tell(store, bound, *before.split(), started_at=1000.5)
    error = msgspec.json.encode(Failure("ValueError", "no"))
    told = {"errors": 4, "crashes": 2, "started_at": 1000.5, "error": error}
    await tell(store, bound, event, result=b"r", record=b'{"log": "l"}', **told)
    found = await store.get(bound.id)
    assert (found.errors, found.crashes, found.started_at) == (4, 2, 1000.5)
    assert (found.result, found.trace.log, found.failure.message) == (b"r", "l", "no")


@pytest.mark.parametrize("event", ["accept", "start", "succeed", "fail", "give_back", "crash"])
async def test_nobody_speaks_for_another_agent_nor_for_a_worker(store, event):
    bound = await offered(store)
    assert await tell(store, bound, event, agent="pj") == [False]
    assert await state(store, bound.id) == "offered"
    assert await tell(store, bound, event, agent="pi") == [True]
    await store.add([job()])
    (held,) = await store.claim(A, Q, 1, 60)
    assert await tell(store, held, event, agent="pi") == [False]
    assert await store.get(held.id) == held


async def test_several_reports_of_a_job_in_one_call_are_heard_in_their_order(store):
    one, two = [await offered(store) for _ in range(2)]
    events = [(one, "accept"), (two, "start"), (one, "start"), (two, "accept"), (one, "succeed")]
    answers = await store.finish([report(bound, event) for bound, event in events])
    assert answers == [True, True, True, False, True]
    assert [await state(store, each.id) for each in (one, two)] == ["succeeded", "running"]


async def test_giving_back_may_ask_for_a_pause(store):
    bound = await offered(store)
    await tell(store, bound, "give_back", retry_in=500, reason="no room")
    found = await store.get(bound.id)
    assert (found.state, found.reason) == ("queued", "no room")
    assert found.run_at - await store.now() == pytest.approx(500, abs=5)
    assert await ids_waiting(store, PI) == []
    assert await store.fleet.wanted() == {PI: found.run_at}


@pytest.mark.parametrize(
    ("spec", "before", "expected"),
    [
        (b"{}", 1, ("queued", 2)),
        (b"{}", 2, ("failed", 3)),
        (b'{"on_crash": "fail"}', 0, ("failed", 1)),
    ],
)
async def test_a_crash_of_a_device_follows_the_policy(place, store, spec, before, expected):
    bound = await offered(store, spec=spec)
    await place.change(store, bound.id, crashes=before)
    await tell(store, bound, "start", "crash", reason="the device was set up anew")
    found = await store.get(bound.id)
    assert (found.state, found.crashes) == expected


async def test_attempt_numbers_are_never_used_twice(store):
    (id,) = await store.add([job()])
    seen = []
    for event in ("give_back", "lose", "crash"):
        (bound,) = await store.fleet.offer([Offer(id, len(seen), "pi")])
        seen.append(bound.attempt)
        await tell(store, bound, event)
        (held,) = await store.claim(A, Q, 1, 60)
        seen.append(held.attempt)
        assert held.agent is None
        await tell(store, held, "give_back")
    assert seen == [1, 2, 3, 4, 5, 6]


async def test_an_agents_job_has_no_lease_and_no_owner_to_rescue(store):
    bound = await offered(store, expires_at=1.0)
    for event in ("accept", "start"):
        await tell(store, bound, event)
        assert await store.rescue([A, "pi"]) == []
        assert await store.renew("pi", [(bound.id, 1)], 60) == ["lost"]
    assert await store.owners() == []


@pytest.mark.parametrize("life", ["", "accept", "start"])
async def test_a_cancel_of_what_an_agent_has_waits_for_its_word(place, store, life):
    bound = await offered(store, key="k")
    await tell(store, bound, *life.split())
    before = await store.get(bound.id)
    assert await store.cancel(bound.id, "stop") == before.state
    found = await store.get(bound.id)
    assert (found.state, found.agent, found.reason) == (before.state, "pi", "stop")
    assert found.cancel_at == pytest.approx(await store.now(), abs=5)
    assert await store.rescue() == []
    await place.change(store, bound.id, cancel_at=found.cancel_at - CANCEL_DEADLINE - 1)
    (rescued,) = await store.rescue()
    assert (rescued.state, rescued.reason) == ("cancelled", "unconfirmed")
    assert (await store.get(bound.id)).active_key is None


@pytest.mark.parametrize("event", ["give_back", "lose", "crash"])
async def test_what_is_to_be_cancelled_does_not_come_back(store, event):
    bound = await offered(store)
    await store.cancel(bound.id, "stop")
    await tell(store, bound, event)
    found = await store.get(bound.id)
    assert (found.state, found.reason) == ("cancelled", "stop")


# Adopting -----------------------------------------------------------------------------------


async def test_what_ended_elsewhere_is_kept_with_all_that_it_has(store):
    born = ended(
        pipeline="p",
        reason="why",
        created_at=1000.0,
        run_at=1001.0,
        started_at=1002.5,
        result_ttl=500.0,
        attempt=2,
        errors=3,
        crashes=1,
        schedule_id="s",
        nominal_at=1001.0,
        trigger="door",
        spec=b'{"timeout": 1}',
        error=b'{"kind":"E","message":"m"}',
        inputs=b"in",
        record=b'{"log": "l"}',
        identity=True,
    )
    now = await store.now()
    assert await store.fleet.adopt([born]) == [True]
    found = await store.get(born.id)
    assert found.prune_at == pytest.approx(now + 500, abs=5)
    assert found == replace(born, prune_at=found.prune_at)


async def test_an_id_that_is_known_is_not_adopted(store):
    (queued,) = await store.add([job()])
    before = await store.get(queued)
    born = ended()
    assert await store.fleet.adopt([]) == []
    assert await store.fleet.adopt([born, ended(queued), born]) == [True, False, False]
    assert await store.fleet.adopt([replace(born, result=b"other")]) == [False]
    assert (await store.get(born.id)).result == b"r"
    assert await store.get(queued) == before
    assert await store.add([job(id=born.id)]) == [born.id]
    assert await state(store, born.id) == "succeeded"


async def test_what_was_adopted_stays_known_when_it_is_pruned(store):
    born = ended(result_ttl=-1.0, identity=False)
    assert await store.fleet.adopt([born]) == [True]
    assert await store.prune() == 1
    assert await store.get(born.id) is None
    assert await store.fleet.adopt([born]) == [False]
    assert await store.get(born.id) is None


async def test_an_adopted_job_takes_nobodys_key_or_place(store):
    held = await kit.running(store, key="k", concurrency=1, lane="l")
    born = ended(
        key="k",
        active_key="k",
        slot=held.slot,
        lane_held="l",
        owner="there",
        lease_until=5.0,
        unreported=True,
    )
    assert await store.fleet.adopt([born]) == [True]
    found = await store.get(born.id)
    assert (found.key, found.active_key, found.slot, found.lane_held) == ("k", None, None, None)
    assert (found.owner, found.lease_until, found.unreported) == (None, None, False)
    assert await store.get(held.id) == held


async def test_only_what_has_ended_is_adopted(store):
    for wrong in lifecycle.ACTIVE:
        with pytest.raises(TransitionError, match=f"{wrong} cannot be adopted"):
            await store.fleet.adopt([ended(state=wrong)])
    assert await store.counts() == {}


async def test_many_jobs_are_adopted_by_two_at_once_only_once(place, store):
    second = await other(place, store)
    jobs = [ended(f"{n}", inputs=b"x" * 1000) for n in range(many(place, 300))]
    calls = (view.fleet.adopt(jobs[::step]) for view in (store, second) for step in (1, -1))
    answers = await asyncio.gather(*calls)
    assert sum(map(sum, answers)) == len(jobs)
    assert await store.counts() == {("default", "succeeded"): len(jobs)}


# Replies ------------------------------------------------------------------------------------


async def answered(store, id, **fields):
    """A job that ended, and that somebody waits for."""
    bound = await offered(store, id=id, **{"reply_to": "a/b", "inputs": b"in", **fields})
    await tell(store, bound, "succeed", result=b"r")


async def test_replies_are_due_for_what_has_ended_the_oldest_first(store):
    for id in ("1", "2", "3"):
        await answered(store, id, correlation=b"c")
    await offered(store, reply_to="a/b")
    await store.add([job(reply_to="a/b")])
    await answered(store, "silent", reply_to=None)
    due = await store.fleet.unreplied(10)
    assert [each.id for each in due] == ["1", "2", "3"]
    assert due[0] == await store.get("1")
    assert (due[0].inputs, due[0].result, due[0].correlation) == (b"in", b"r", b"c")
    assert [each.id for each in await store.fleet.unreplied(2)] == ["1", "2"]
    assert await store.fleet.unreplied(0) == await store.fleet.unreplied(-1) == []


async def test_who_has_heard_is_not_told_again(store):
    for id in ("1", "2", "3"):
        await answered(store, id)
    await store.fleet.replied(["1", "3", "unknown"])
    await store.fleet.replied([])
    assert [each.id for each in await store.fleet.unreplied(10)] == ["2"]
    assert (await store.get("1")).replied_at == pytest.approx(await store.now(), abs=5)


async def test_a_bare_id_has_nothing_to_reply(store):
    await answered(store, identity("x"), identity=True, result_ttl=-1 - REPLY_TTL)
    await store.prune()
    assert await store.fleet.unreplied(10) == []


async def test_what_was_not_replied_yet_is_not_pruned(store):
    await answered(store, "1", result_ttl=-1)
    assert await store.prune() == 0
    assert [each.id for each in await store.fleet.unreplied(10)] == ["1"]
    await store.fleet.replied(["1"])
    assert await store.prune() == 1
    assert await store.get("1") is None


# Dead letters -------------------------------------------------------------------------------


def letter(id, **fields):
    defaults = {"topic": "fp/v1/main/run/x", "reason": "no such pipeline: ü", "payload": b"\0{"}
    return Letter(id=id, **{**defaults, **fields})


async def test_letters_are_kept_the_newest_first(store):
    now = await store.now()
    first, second = letter("a", at=now - 5.5), letter("b", at=now - 7.5)
    await store.fleet.bury([first, second])
    await store.fleet.bury([letter("c"), letter("d")])
    found = await store.fleet.letters()
    assert [each.id for each in found] == ["d", "c", "a", "b"]
    assert found[2:] == [first, second]
    assert found[0].at == pytest.approx(now, abs=5)
    assert [each.id for each in await store.fleet.letters(1)] == ["d"]
    assert await store.fleet.letters(0) == await store.fleet.letters(-1) == []


async def test_a_letter_that_is_known_stays_as_it_is(store):
    await store.fleet.bury([letter("a", reason="first"), letter("a", reason="second")])
    await store.fleet.bury([letter("b"), letter("a", reason="third")])
    await store.fleet.bury([])
    reasons = {each.id: each.reason for each in await store.fleet.letters()}
    assert reasons.keys() == {"a", "b"}
    assert reasons["a"] in ("first", "second")


async def test_a_letter_may_hold_what_is_no_text_for_a_database(store):
    await store.fleet.bury([letter("a", topic="a\0b", reason="unknown field 'x\0'")])
    (found,) = await store.fleet.letters()
    assert found.topic in ("a\0b", "a\ufffdb")


async def test_old_letters_are_pruned(place, store):
    await store.fleet.bury([letter("old"), letter("older", at=await store.now() - 60)])
    await place.age(store, "letters", LETTER_TTL - 30)
    await store.fleet.bury([letter("new")])
    assert await store.prune() == 0
    assert [each.id for each in await store.fleet.letters()] == ["new", "old"]


# Parts of results ---------------------------------------------------------------------------


def chunks(id="j", attempt=1, count=3, data=b"%d"):
    return [Chunk(id, attempt, n, data % n) for n in range(count)]


async def test_parts_are_kept_in_their_order(store):
    await store.fleet.keep(chunks(count=12)[::-1])
    await store.fleet.keep(chunks(attempt=2, data=b"other %d"))
    await store.fleet.keep(chunks("k", count=1))
    await store.fleet.keep([])
    assert await store.fleet.kept("j", 1) == chunks(count=12)
    assert await store.fleet.kept("j", 2) == chunks(attempt=2, data=b"other %d")
    assert await store.fleet.kept("j", 3) == await store.fleet.kept("unknown", 1) == []


async def test_a_part_that_is_there_stays_as_it_is(store):
    await store.fleet.keep(chunks(count=2))
    await store.fleet.keep(chunks(count=3, data=b"again %d"))
    assert [each.data for each in await store.fleet.kept("j", 1)] == [b"0", b"1", b"again 2"]


async def test_parts_hold_any_bytes(store):
    data = bytes(range(256)) * 128  # 32 KiB, as they come
    await store.fleet.keep([Chunk("j", 1, n, data[n:] + data[:n]) for n in range(20)])
    assert [each.data[0] for each in await store.fleet.kept("j", 1)] == list(range(20))


async def test_forgetting_removes_the_parts_of_all_attempts(store):
    await store.fleet.keep([*chunks(), *chunks(attempt=2), *chunks("k")])
    await store.fleet.forget("j")
    await store.fleet.forget("unknown")
    assert await store.fleet.kept("j", 1) == await store.fleet.kept("j", 2) == []
    assert await store.fleet.kept("k", 1) == chunks("k")


async def test_old_parts_are_pruned(place, store):
    await store.fleet.keep(chunks("old"))
    await place.age(store, "chunks", CHUNK_TTL - 60)
    await store.fleet.keep(chunks("new"))
    await store.prune()
    assert await store.fleet.kept("old", 1) == chunks("old")
    await place.age(store, "chunks", 70)
    await store.prune()
    assert await store.fleet.kept("old", 1) == []
    assert await store.fleet.kept("new", 1) == chunks("new")


# Finding and pruning ------------------------------------------------------------------------


async def test_find_knows_who_has_what(store):
    one, two = await offered(store, "pi"), await offered(store, "po")
    await tell(store, two, "succeed")
    back = await offered(store)
    await tell(store, back, "give_back")
    await store.add([job(), job(target="agent:po")])

    async def ids(**query):
        return [each.id for each in await store.find(Find(**query))]

    assert await ids(agent="pi") == [one.id]
    assert await ids(agent="po", bound=True) == [two.id]
    assert await ids(bound=True) == [two.id, one.id]
    assert await ids(bound=True, states=lifecycle.ACTIVE) == [one.id]
    assert await ids(agent="nobody") == []


async def test_what_the_center_has_not_heard_of_is_not_pruned(place, store):
    bound = await offered(store, unreported=True, result_ttl=-1, inputs=b"in")
    await tell(store, bound, "succeed", result=b"r")
    before = await store.get(bound.id)
    assert await store.prune() == 0
    assert await store.get(bound.id) == before
    await place.change(store, bound.id, unreported=False)
    assert await store.prune() == 1
    assert await store.get(bound.id) is None


async def test_vacuum_loses_no_letter_and_no_part(store):
    await store.fleet.bury([letter("a")])
    await store.fleet.keep(chunks())
    await store.vacuum()
    assert [each.id for each in await store.fleet.letters()] == ["a"]
    assert await store.fleet.kept("j", 1) == chunks()


# Cancelled at every await -------------------------------------------------------------------


async def _new(store, id):
    return None


async def _waiting(store, id):
    await store.add([job(id=id, key=f"k{id}", target=PI, inputs=b"in")])


async def _kept(store, id):
    await store.fleet.keep(chunks(id))


async def _led(store, id):
    await store.fleet.lead(id, A, 60)


async def _agent(store, id):
    row = await store.get(id)
    return kit.shape(row), row.agent, row.inputs


async def _leader(store, id):
    return {each.name: each.info for each in await store.members("lead")}.get(id)


async def _replied(store, id):
    return (await store.get(id)).replied_at is not None


async def _buried(store, id):
    return id in {each.id for each in await store.fleet.letters(10_000)}


async def _parts(store, id):
    return [each.data for each in await store.fleet.kept(id, 1)]


VERBS = [
    Verb("offer", _waiting, lambda store, name: store.fleet.offer([Offer(name, 0, "pi")]), _agent),
    Verb("adopt", _new, lambda store, name: store.fleet.adopt([ended(name)])),
    Verb("lead", _new, lambda store, name: store.fleet.lead(name, A, 60), _leader),
    Verb("give-back", _led, lambda store, name: store.fleet.lead(name, A, 0), _leader),
    Verb("replied", answered, lambda store, name: store.fleet.replied([name]), _replied),
    Verb("bury", _new, lambda store, name: store.fleet.bury([letter(name)]), _buried),
    Verb("keep", _new, lambda store, name: store.fleet.keep(chunks(name, count=1)), _parts),
    Verb("forget", _kept, lambda store, name: store.fleet.forget(name), _parts),
]


@leaves_sockets
@pytest.mark.parametrize("verb", VERBS, ids=repr)
async def test_a_verb_cancelled_at_any_await_has_done_nothing_or_all(store, verb):
    await kit.leaves_before_or_after(store, verb)


@leaves_sockets
@pytest.mark.parametrize("late", [False, True])
async def test_many_items_of_a_call_that_was_cut_off_are_whole_each(store, late):
    for n in range(1000):
        ids = await store.add([job(target=PI, inputs=b"in") for _ in range(3)])
        born = [ended(f"{n}-{i}") for i in range(3)]
        cut = await kit.cut_off(store.fleet.offer([Offer(id, 0, "pi") for id in ids]), n, late=late)
        cut |= await kit.cut_off(store.fleet.adopt(born), n, late=late)
        rows = [await store.get(id) for id in ids]
        assert {(row.state, row.attempt, row.agent) for row in rows} <= {
            ("queued", 0, None),
            ("offered", 1, "pi"),
        }
        await store.fleet.adopt(born)
        assert [(await store.get(each.id)).result for each in born] == [b"r"] * 3
        if not cut:
            return
    pytest.fail("it never ends")


# Several processes --------------------------------------------------------------------------


async def race(place, command, *arguments):
    """What each of several processes says that set off at the same moment."""
    workers = [kit.Worker(command, place, *args) for args in arguments]
    assert [worker.line() for worker in workers] == ["ready"] * len(workers)
    for worker in workers:
        worker.go()
    return [await asyncio.to_thread(worker.rest) for worker in workers]


@shared
async def test_no_role_is_led_by_two_processes(place, store):
    said = await race(place, "lead", *[["20"]] * 3)
    assert sorted(int(role) for each in said for role in each) == list(range(20))
    assert len(await store.members("lead")) == 20


@shared
async def test_no_job_is_bound_by_two_processes(place, store):
    ids = await store.add([job(target="any:x=y") for _ in range(many(place, 200))])
    said = await race(place, "offer", ["a"], ["b"], ["c"])
    assert sorted(id for each in said for id in each) == sorted(ids)
    for agent, told in zip("abc", said, strict=True):
        found = await store.find(Find(agent=agent, limit=500))
        assert {(each.id, each.state, each.attempt) for each in found} == {
            (id, "offered", 1) for id in told
        }


@shared
async def test_no_job_is_adopted_by_two_processes(place, store):
    count = many(place, 150)
    said = await race(place, "adopt", *[[str(count)]] * 3)
    assert len([id for each in said for id in each]) == count
    assert await store.counts() == {("default", "failed"): count}


# Databases of schema version 1 ---------------------------------------------------------------


def of_version_1(now):
    held = {"owner": B, "lease_until": now + 1e12, "started_at": 5.0, "attempt": 1}
    done = {"attempt": 1, "ended_at": 6.0, "result": b"r", "record": b"{}"}
    return [
        job(id="for-pi", target=PI, run_at=1.5, inputs=b"in", key="k", active_key="k"),
        job(id="queued", run_at=2.5, priority=3),
        job(id="held", run_at=1.0, state="running", slot="flow#0", concurrency=1, **held),
        job(id="kept", state="succeeded", prune_at=now + 1e6, **done),
        job(id="over", state="succeeded", prune_at=7.0, **done),
        job(id="bare", state="failed", prune_at=now + 1e6, pruned=True, identity=True),
    ]


@shared
async def test_a_database_of_version_1_is_upgraded_with_its_rows(place):
    rows = of_version_1(time.time())
    await place.make_version_1(rows)
    store = await place.opened()
    for row in rows[:-1]:
        assert await store.get(row.id) == row
    assert (await store.info())["schema"] == SCHEMA_VERSION
    assert [each.id for each in await store.find(Find())] == [
        "over",
        "kept",
        "held",
        "queued",
        "for-pi",
    ]
    again = await place.opened()
    assert await again.get("kept") == rows[3]


@shared
async def test_rows_of_version_1_are_like_any_others(place):
    rows = of_version_1(time.time())
    await place.make_version_1(rows)
    store = await place.opened()
    assert await store.fleet.wanted() == {PI: 1.5}
    assert await ids_waiting(store, PI) == ["for-pi"]
    assert await store.fleet.unreplied(10) == []
    (bound,) = await store.fleet.offer([Offer("for-pi", 0, "pi")])
    assert bound.inputs == b"in"
    assert await tell(store, bound, "accept", "start", "succeed", crashes=1) == [True] * 3
    assert await store.fleet.adopt([ended("bare"), ended("kept"), ended("new")]) == [
        False,
        False,
        True,
    ]
    await answered(store, "answered")
    assert [each.id for each in await store.fleet.unreplied(10)] == ["answered"]
    assert await store.prune() == 1
    assert await store.get("over") is None
    assert [each.id for each in await store.claim(A, Q, 9, 60)] == ["queued"]
    assert await store.finish([Report(id="held", attempt=1, event="succeed")]) == [True]
    await store.fleet.keep(chunks())
    await store.fleet.bury([letter("a")])
    assert await store.fleet.lead("gateway", A, 60) is True


@shared
async def test_many_processes_upgrade_a_database_at_once(place):
    rows = of_version_1(time.time())
    await place.make_version_1(rows)
    await race(place, "open", [], [], [])
    store = await place.opened()
    assert (await store.counts())["default", "queued"] == 2 + 3
    assert await store.get("for-pi") == rows[0]
    assert await store.fleet.wanted() == {PI: 1.5}
