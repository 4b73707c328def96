"""What the gateway has in mind: who has room, who gets which job, what is said again and when."""

from __future__ import annotations

import gc
import time
import tracemalloc

import pytest
from fleet import scale
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fp_async import board as boards
from fp_async.board import Board, lost
from fp_async.gateway_log import GatewayLog
from fp_async.jobs import Job, Letter, Offer, Spec
from fp_async.messages import AgentState
from fp_async.presence import Known
from fp_async.wire import encode


def known(*, slots=2, window=16, status="ready", tags=None, starts=1, **more):
    state = AgentState(
        status=status, store="s", starts=starts, n=1, slots=slots, window=window, tags=tags or {}
    )
    return Known(state=state, seen_at=1.0, **more)


def made(**agents):
    """A board with these agents."""
    board = Board()
    for name, each in agents.items():
        board.believe(name, each)
    return board


def job(id="j", target="any:*", *, state="queued", attempt=0, agent=None, spec=None, **more):
    return Job(
        id=id,
        pipeline="p",
        target=target,
        state=state,
        attempt=attempt,
        agent=agent,
        spec=encode(spec or Spec()),
        **more,
    )


def offered(id, agent, attempt=1, **more):
    return job(id, f"agent:{agent}", state="offered", attempt=attempt, agent=agent, **more)


def bind(board, *jobs, now=0.0, chance=0.5):
    for each in jobs:
        board.bind(each, now, chance=chance)


def ids(found):
    return sorted(each.job.id for each in found)


# Room -------------------------------------------------------------------------------------------


def test_credit_is_the_window_without_what_the_agent_has():
    board = made(a=known(window=3))
    assert board.credit("a", 0.0) == 3
    bind(board, offered("1", "a"), replace(offered("2", "a"), state="running"))
    assert board.credit("a", 0.0) == 1
    bind(board, offered("3", "a"), offered("4", "a"))
    assert board.credit("a", 0.0) == 0, "never less than nothing"
    board.release("4")
    board.release("3")
    assert board.credit("a", 0.0) == 1


def test_what_may_go_elsewhere_does_not_queue_up_behind_slots():
    board = made(a=known(slots=2, window=16), b=known(slots=8, window=3))
    assert (board.spare("a", 0.0), board.spare("b", 0.0)) == (4, 3)
    bind(board, *(offered(str(n), "a") for n in range(5)))
    assert (board.spare("a", 0.0), board.credit("a", 0.0)) == (0, 11)


@pytest.mark.parametrize(
    "each",
    [
        known(status="draining"),
        known(status="lost"),
        known(away_since=1.0),
        known(quarantine="two"),
        known(came_at=1.0),
    ],
)
def test_who_may_not_work_has_no_room(each):
    board = made(a=each)
    assert board.credit("a", 0.0) == board.spare("a", 0.0) == 0
    assert board.credit("nobody", 0.0) == board.spare("nobody", 0.0) == 0
    board.believe("a", known())
    assert board.assign([job()], 0.0) == [Offer("j", 0, "a")]


def test_who_is_drained_gets_nothing_until_that_is_over():
    board = made(a=known())
    board.drained = {"a"}
    assert board.assign([job()], 0.0) == []
    board.drained = set()
    assert board.assign([job()], 0.0) == [Offer("j", 0, "a")]


def test_who_is_full_gets_nothing_for_a_while_or_until_it_comes_anew():
    board = made(a=known(), b=known(tags={"x": ""}))
    board.pause("a", 60.0)
    assert board.assign([job("1", "agent:a"), job("2")], 59.9) == [Offer("2", 0, "b")]
    assert board.servable({"agent:a": 0.0}, 1.0, 59.9) == []
    assert board.servable({"agent:a": 0.0}, 1.0, 60.0) == ["agent:a"]
    board.pause("a", 120.0)
    board.believe("a", known())
    assert board.credit("a", 70.0) == 0, "the same connection as before"
    board.believe("a", known(starts=2))
    assert board.credit("a", 70.0) == 16


# Assigning --------------------------------------------------------------------------------------


def test_jobs_go_to_who_has_most_room_in_their_order():
    board = made(a=known(slots=1), b=known(slots=2), c=known(slots=4))
    offers = board.assign([job(str(n)) for n in range(20)], 0.0)
    assert [offer.id for offer in offers] == [str(n) for n in range(14)], "2 x slots each"
    given_to = [offer.agent for offer in offers]
    assert {name: given_to.count(name) for name in "abc"} == {"a": 2, "b": 4, "c": 8}
    assert given_to[:4] == ["c"] * 4, "until others have as much room"


def test_rows_without_room_do_not_hold_up_those_behind():
    board = made(a=known(window=1), b=known())
    jobs = [job("1", "agent:a"), job("2", "agent:a"), job("3", "agent:b"), job("4", "agent:gone")]
    assert board.assign(jobs, 0.0) == [Offer("1", 0, "a"), Offer("3", 0, "b")]


def test_offers_expect_the_attempt_that_was_seen():
    assert made(a=known()).assign([job(attempt=7)], 0.0) == [Offer("j", 7, "a")]


def test_tags_choose():
    board = made(
        a=known(tags={"site": "berlin"}),
        b=known(tags={"site": "berlin", "gpu": "yes"}),
        c=known(tags={"site": "rome", "gpu": "no"}),
    )
    wanted = {
        "any:gpu=yes": "b",
        "any:site=rome": "c",
        "any:site=berlin,gpu": "b",
        "any:gpu,site=rome": "c",
        "any:site=paris": None,
        "any:site=rome,gpu=yes": None,
    }
    for target, name in wanted.items():
        offers = board.assign([job(target=target)], 0.0)
        assert [offer.agent for offer in offers] == ([name] if name else []), target
        assert board.servable({target: 0.0}, 1.0, 0.0) == ([target] if name else [])
    assert board.candidates("any:gpu") == ["b", "c"]
    board.believe("c", known(tags={"gpu": "yes"}))
    assert board.assign([job(target="any:site=rome")], 0.0) == []
    assert board.candidates("any:gpu=yes") == ["b", "c"]
    assert board.candidates("any:*") == ["a", "b", "c"]
    assert board.candidates("agent:a") == ["a"]
    assert board.candidates("agent:z") == []


def test_servable_are_due_targets_that_somebody_has_room_for():
    board = made(a=known(window=1), b=known(slots=1, tags={"x": ""}))
    wanted = {"agent:a": 10.0, "agent:b": 11.0, "any:x": 5.0, "any:*": 5.0, "agent:z": 1.0}
    assert board.servable(wanted, 10.0, 0.0) == ["agent:a", "any:x", "any:*"]
    bind(board, offered("1", "a"), offered("2", "b"), offered("3", "b"))
    assert board.servable(wanted, 20.0, 0.0) == ["agent:b"], "beyond its slots it gets its own"
    board.release("3")
    assert board.servable(wanted, 20.0, 0.0) == ["agent:b", "any:x", "any:*"]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 10), st.sampled_from("xyz")), max_size=50),
    st.lists(st.sampled_from(["any:*", "any:t=x", "any:t=y", "any:t", "agent:3"]), max_size=120),
)
@settings(max_examples=scale(1000), deadline=None)
def test_nobody_gets_more_than_its_room_and_no_room_stays_empty(agents, wanted):
    fleet = {
        str(n): known(slots=slots, window=window, tags={"t": tag})
        for n, (slots, window, tag) in enumerate(agents)
    }
    board = made(**fleet)
    jobs = [job(str(n), target) for n, target in enumerate(wanted)]
    offers = board.assign(jobs, 0.0)
    for offer in offers:
        target = jobs[int(offer.id)].target
        assert offer.agent in board.candidates(target)
        bind(board, offered(offer.id, offer.agent))
    for name, each in fleet.items():
        own = sum(o.agent == name and jobs[int(o.id)].target.startswith("any") for o in offers)
        assert own <= 2 * each.state.slots
        assert len(board.of(name)) <= each.state.window
    left = [each for each in jobs if each.id not in {offer.id for offer in offers}]
    assert board.assign(left, 0.0) == []


def test_room_is_what_could_be_offered_now():
    board = made(a=known(slots=2), b=known(slots=3, tags={"x": ""}), c=known(window=5))
    assert board.room(["agent:a"], 100, 0.0) == 16
    assert board.room(["any:x"], 100, 0.0) == 6
    assert board.room(["any:*"], 100, 0.0) == 4 + 6 + 4
    assert board.room(["agent:a", "any:x"], 100, 0.0) == 22, "of each target"
    assert board.room(["agent:a", "any:x"], 20, 0.0) == 20
    bind(board, *(offered(str(n), "c") for n in range(5)))
    assert board.room(["agent:c", "any:*", "agent:nobody"], 100, 0.0) == 10
    board.pause("b", 60.0)
    assert board.room(["any:x"], 100, 59.0) == 0


# Refusals ---------------------------------------------------------------------------------------


def test_who_has_refused_a_job_is_not_asked_again():
    board = made(a=known(slots=9), b=known(), c=known())
    each = job()
    for name in "abc":
        assert not board.nobody_left(each)
        assert board.assign([each], 0.0)[0].agent == name
        board.refuse("j", name, 0.0)
    assert board.nobody_left(each)
    assert board.assign([each], 0.0) == []
    assert board.assign([job("other")], 0.0) != []
    board.believe("d", known())
    assert not board.nobody_left(each)


def test_nobody_is_left_among_those_that_are_meant_away_or_not():
    board = made(a=known(tags={"x": ""}), b=known(tags={"x": ""}, away_since=1.0), c=known())
    each = job(target="any:x")
    board.refuse("j", "a", 0.0)
    board.refuse("j", "c", 0.0)
    assert not board.nobody_left(each), "b may come back"
    board.refuse("j", "b", 0.0)
    assert board.nobody_left(each)
    assert not board.nobody_left(job("k", "any:unknown")), "nobody has said no"
    both = job("j", "any:x,y")
    assert not board.nobody_left(both)


def test_refusals_are_forgotten_with_the_job_or_after_an_hour():
    board = made(a=known())
    board.refuse("1", "a", 0.0)
    board.refuse("2", "a", 10.0)
    board.forget("1")
    assert board.assign([job("1")], 0.0) != []
    assert board.assign([job("2")], 0.0) == []
    board.refuse("3", "a", 3610.0)
    assert board.assign([job("2")], 0.0) != [], "nobody told that it has ended"
    assert board.assign([job("3")], 0.0) == []


# Saying it again --------------------------------------------------------------------------------


def said_again(board, until, *, step=0.25, chance=0.5):
    """(when, id) of all that is repeated."""
    found = []
    for tick in range(int(until / step) + 1):
        found += [(tick * step, each.job.id) for each in board.repeats(tick * step, chance)]
    return found


def test_an_unanswered_offer_is_said_again_later_and_later():
    board = made(a=known())
    bind(board, offered("1", "a"))
    times = [at for at, _ in said_again(board, 400)]
    pauses = [later - at for at, later in zip([0.0, *times], times, strict=False)]
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60, 60, 60]


@pytest.mark.parametrize(("chance", "first"), [(0.0, 1.5), (0.999, 2.5)])
def test_jitter_is_a_quarter(chance, first):
    board = made(a=known())
    bind(board, offered("1", "a"), chance=chance)
    assert board.next_repeat() == pytest.approx(first, abs=0.01)


def test_what_is_repeated_at_once_is_spread_the_next_time():
    board = made(a=known(window=100))
    bind(board, *(offered(str(n), "a") for n in range(100)))
    assert len(board.repeats(2.0, 0.5)) == 100
    times = sorted(each.due for each in board.open.values())
    assert times[0] >= 5.0
    assert times[-1] <= 7.0
    assert len({round(at, 1) for at in times}) > 15


def test_answered_offers_are_not_repeated_but_cancels_are():
    board = made(a=known())
    bind(board, offered("1", "a"), offered("2", "a"))
    board.answered("1", offered("1", "a"))
    assert {id for _, id in said_again(board, 10)} == {"2"}
    asked = board.cancel("1", replace(offered("1", "a"), cancel_at=1.0), 100.0)
    assert asked.cancelling
    assert board.cancel("1", offered("1", "a"), 100.0) is None, "asked before"
    assert board.cancel("z", offered("z", "a"), 100.0) is None
    board.release("2")
    assert ids(board.repeats(102.0, 0.5)) == ["1"]
    assert board.repeats(102.0, 0.5) == []
    assert ids(board.repeats(106.0, 0.5)) == ["1"]


@pytest.mark.parametrize("doubt", [{"came_at": 1.0}, {"quarantine": "two devices"}])
def test_nothing_is_offered_again_while_two_may_hear_it(doubt):
    """What the one has begun, the other would begin again; a cancel harms neither."""
    board = made(a=known())
    bind(board, offered("1", "a"), replace(offered("2", "a"), cancel_at=1.0))
    board.believe("a", known(**doubt))
    assert {id for _, id in said_again(board, 100)} == {"2"}
    board.believe("a", known())
    assert {each.job.id for each in board.repeats(300.0, 0.5)} == {"1", "2"}


def test_what_comes_from_the_store_with_a_wish_to_cancel_is_cancelled_again():
    board = made(a=known())
    bind(board, replace(offered("1", "a"), state="running", cancel_at=1.0))
    assert ids(board.repeats(3.0, 0.5)) == ["1"]


def test_hurry_says_it_at_once_and_in_one_line_of_repeats():
    """However often an agent comes back, its offers are not repeated more often for that."""
    board = made(a=known())
    bind(board, offered("1", "a"), offered("2", "a"))
    board.answered("2", offered("2", "a"))
    for _ in range(5):
        board.hurry(["1", "2", "unknown"], 1.0)
        assert board.next_repeat() <= 1.0
        assert ids(board.repeats(1.0, 0.5)) == ["1", "2"]
        assert board.repeats(1.0, 0.5) == []
    board.answered("2", offered("2", "a"))
    assert [id for _, id in said_again(board, 20)] == ["1", "1", "1"]


def test_an_offer_of_a_new_attempt_replaces_the_one_before():
    board = made(a=known(), b=known())
    bind(board, offered("1", "a"))
    bind(board, offered("1", "b", attempt=2), now=1.0)
    assert board.of("a") == []
    assert [each.job.attempt for each in board.of("b")] == [2]
    assert [(each.agent, each.job.attempt) for each in board.repeats(10.0, 0.5)] == [("b", 2)]
    assert board.repeats(10.0, 0.5) == []


def test_large_inputs_are_left_in_the_store():
    board = made(a=known())
    bind(board, replace(offered("1", "a"), inputs=b"x" * 60_000))
    assert board.open["1"].job.inputs == b""
    assert board.open["1"].job.attempt == 1


# Agents that stay away --------------------------------------------------------------------------

AWAY = known(away_since=100.0)


@pytest.mark.parametrize(
    ("target", "spec", "wall", "becomes"),
    [
        ("any:*", Spec(), 399.9, None),
        ("any:*", Spec(), 400.0, "reassign"),
        ("any:*", Spec(lost_after=10.0), 110.0, "reassign"),
        ("any:*", Spec(lost_after=0.0), 100.0, "reassign"),
        ("any:*", Spec(on_lost="wait"), 9999.0, None),
        ("any:*", Spec(on_lost="fail"), 400.0, "fail"),
        ("agent:a", Spec(), 9999.0, None),
        ("agent:a", Spec(on_lost="fail"), 399.0, None),
        ("agent:a", Spec(on_lost="fail"), 400.0, "fail"),
        ("agent:a", Spec(on_lost="reassign"), 9999.0, None),
    ],
)
def test_what_becomes_of_jobs_of_agents_that_stay_away(target, spec, wall, becomes):
    each = boards.Open(job(target=target, state="running", agent="a", spec=spec), "a")
    assert lost(each, AWAY, wall, 300.0) == becomes
    assert lost(each, known(), wall, 300.0) is None
    assert lost(each, None, wall, 300.0) is None


# Size -------------------------------------------------------------------------------------------


def containers(board):
    return {
        name: len(value) for name, value in vars(board).items() if name != "agents" and len(value)
    }


def test_nothing_is_left_of_jobs_that_have_ended():
    board = made(a=known(window=500), b=known(tags={"x": "y"}))
    empty = containers(board)
    tracemalloc.start()
    for turn in range(2):
        for n in range(scale(100_000)):
            id = f"{turn}-{n}"
            now = (turn * scale(100_000) + n) * 0.01
            bind(board, offered(id, "a"), now=now)
            board.hurry([id], now)
            board.nobody_left(board.open[id].job)
            if n % 3 == 0:
                board.refuse(id, "a", now)
                board.pause("b", now)
            if n % 5 == 0:
                board.cancel(id, offered(id, "a"), now)
                board.repeats(now, 0.5)
            (board.forget if n % 2 or n % 3 == 0 else board.release)(id)
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
        if turn == 0:
            first = size
    tracemalloc.stop()
    assert size - first < 300_000, "the second turn has left something behind"
    board.repeats(1e9, 0.5)
    assert board.next_repeat() is None
    assert board.credit("b", 1e9) == 16
    assert len(board._refusals) <= 1001
    for n in range(2):  # an hour later
        board.refuse("last", "a", 1e9 + n * 4000)
    assert containers(board) == empty | {"_refused": 1, "_refusals": 1}
    board.forget("last")
    board.refuse("other", "a", 1e9 + 9000)
    board.forget("other")
    assert containers(board) == empty | {"_refusals": 1}


def test_the_queue_of_repeats_is_no_longer_than_the_jobs_it_is_about():
    board = made(a=known())
    bind(board, offered("1", "a"))
    for n in range(10_000):
        board.hurry(["1"], 1000.0 + n)
    assert len(board._due) < 1100


def seconds_for(work, least=3):
    times = []
    for _ in range(least):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def large(count):
    return made(
        **{
            f"pi-{n}": known(tags={"site": f"s{n % 100}", "n": str(n), "all": "yes"})
            for n in range(count)
        }
    )


def test_work_for_one_agent_does_not_grow_with_the_fleet():
    small, big = large(100), large(10_000)
    own = [job(str(n), f"agent:pi-{n % 100}") for n in range(1000)]
    cost = [seconds_for(lambda b=b: b.assign(own, 0.0)) for b in (small, big)]
    wanted = {each.target: 0.0 for each in own}
    asked = [seconds_for(lambda b=b: b.servable(wanted, 1.0, 0.0)) for b in (small, big)]
    print(f"1,000 jobs for agents: {1e3 * cost[1]:.1f} ms; 100 targets: {1e3 * asked[1]:.2f} ms")
    assert cost[1] < 5 * cost[0]
    assert asked[1] < 5 * asked[0]


@pytest.mark.parametrize(
    "target", ["any:*", "any:all", "any:site=s7", "any:n=7777", "any:all,n=42"]
)
@pytest.mark.alone
def test_work_for_any_of_ten_thousand_costs_little_more_than_for_any_of_a_hundred(target):
    small, big = large(100), large(10_000)
    one = [job("1", target)]
    cost = [seconds_for(lambda b=b: b.assign(one, 0.0), 20) for b in (small, big)]
    print(f"one job for {target}: {1e6 * cost[1]:.0f} us of 10,000 agents")
    assert cost[1] < 1e-3 + 5 * cost[0]


def test_a_full_fleet_says_so_quickly():
    board = large(10_000)
    for n in range(10_000):
        bind(board, *(offered(f"{n}-{slot}", f"pi-{n}") for slot in range(4)))
    began = time.perf_counter()
    assert board.servable({"any:*": 0.0}, 1.0, 0.0) == []
    first = time.perf_counter() - began
    again = seconds_for(lambda: board.servable({"any:*": 0.0, "any:all": 0.0}, 1.0, 0.0))
    board.release("4711-0")
    assert board.assign([job("1"), job("2", "any:all")], 0.0) == [Offer("1", 0, "pi-4711")]
    print(f"full: {1e3 * first:.1f} ms, then {1e6 * again:.0f} us")
    assert again < first


def test_all_of_a_large_fleet_get_some_of_the_work():
    board = large(1000)
    offers = board.assign([job(str(n), "any:all") for n in range(4000)], 0.0)
    assert len(offers) == 4000
    counts = {}
    for offer in offers[:1000]:
        counts[offer.agent] = counts.get(offer.agent, 0) + 1
    assert max(counts.values()) == 1, "nobody gets a second one before all have one"


# What changes -----------------------------------------------------------------------------------


def test_g4_who_can_run_something_else_now_is_asked_again():
    before, other = known(), known()
    board = made(a=before, b=other)
    for name in "ab":
        board.refuse("j", name, 0.0)
    assert board.nobody_left(job())
    board.believe("a", replace(before, state=replace(before.state, n=2)))
    assert board.nobody_left(job()), "a new connection alone changes nothing"
    board.believe("a", replace(before, state=replace(before.state, pipelines={"p": "1"})))
    assert [offer.agent for offer in board.assign([job()], 0.0)] == ["a"]


def test_g5_of_who_is_forgotten_nothing_is_left():
    board = made(a=known(tags={"site": "berlin"}), b=known(tags={"site": "berlin"}))
    bind(board, offered("1", "a"), offered("2", "b"))
    board.pause("a", 100.0)
    board.drop("a")
    board.drop("a")
    assert (list(board.agents), list(board.open)) == (["b"], ["2"])
    assert board.candidates("all:site=berlin") == ["b"]
    assert board.credit("a", 0.0) == 0
    board.drop("b")
    assert board.candidates("all:site") == []
    board.believe("a", known())
    assert [offer.agent for offer in board.assign([job()], 0.0)] == ["a"], "it is new"


# What is logged ---------------------------------------------------------------------------------


def test_g10_agents_that_come_and_go_are_a_line_each_and_many_at_once_are_one():
    log = GatewayLog()
    log.knew("pi-7", "away")
    for state in ("ready", "ready", "away"):
        log.sees("pi-7", state)
    log.sees("pi-8", "ready")
    log.forgets("pi-8")
    log.forgets("pi-8")
    assert list(log.lines()) == [
        "agent 'pi-7' is ready (was away)",
        "agent 'pi-7' is away (was ready)",
        "agent 'pi-8' is ready (was unknown)",
        "agent 'pi-8' is forgotten (was ready)",
    ]
    assert list(log.lines()) == []
    for number in range(300):
        log.sees(f"p{number}", "ready")
    assert list(log.lines()) == ["300 agents are ready (were unknown): p0, p1, p2, p3, p4 ..."]


def test_g10_dead_letters_and_waiting_jobs_are_counted():
    log = GatewayLog()
    log.buried([Letter(id=str(n), topic=f"t/{n}", reason="no") for n in range(7)])
    for number in range(3):
        log.waits("pi-7", f"job-{number}", "configuration: no")
    log.waits("pi-8", "job-9", "configuration: no")
    assert list(log.lines()) == [
        "agent 'pi-7': 3 jobs wait: configuration: no",
        "agent 'pi-8': job job-9 waits: configuration: no",
        *(f"dead letter on t/{n}: no" for n in range(5)),
        "2 more dead letters; see: flowerpower letters",
    ]
