"""The life of a job: the table, the one step, and the rules by which a row changes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp_async import rules
from fp_async.errors import TransitionError
from fp_async.jobs import (
    CANCEL_DEADLINE,
    CHANGING,
    COLUMNS,
    IDENTITY_TTL,
    Job,
    Offer,
    Report,
    identity,
    new_id,
)
from fp_async.lifecycle import (
    ACTIVE,
    EVENTS,
    REPORTS,
    STALE,
    STATES,
    TABLE,
    TERMINAL,
    diagram,
    step,
)

ORDERS = ("claim", "offer", "cancel")  # what only our own code asks for
ALL = [(s, e, c) for s in STATES for e in EVENTS for c in (True, False)]


def answer(state, event, current=True):
    try:
        return step(state, event, current=current)
    except TransitionError:
        return "raises"


def test_every_state_is_active_or_terminal():
    assert set(STATES) == {*ACTIVE, *TERMINAL} == TABLE.keys()
    assert not {*ACTIVE} & {*TERMINAL}
    assert set(EVENTS) == REPORTS | set(ORDERS)


def test_the_table_names_only_states_and_events():
    for moves in TABLE.values():
        assert moves.keys() <= set(EVENTS)
        assert set(moves.values()) <= set(STATES)


@pytest.mark.parametrize("state", TERMINAL)
def test_no_way_leads_out_of_a_terminal_state(state):
    assert TABLE[state] == {}
    for event in EVENTS:
        for current in (True, False):
            assert answer(state, event, current) in (STALE, "raises")


@pytest.mark.parametrize("state", STATES)
def test_every_state_is_reached_and_every_active_one_can_end(state):
    seen = {"queued"}
    while more := {after for s in seen for after in TABLE[s].values()} - seen:
        seen |= more
    assert state in seen
    ways = {state}
    while more := {after for s in ways for after in TABLE[s].values()} - ways:
        ways |= more
    assert ways & set(TERMINAL)


@given(st.sampled_from(ALL))
def test_a_step_is_what_the_table_says_or_stale_or_illegal(case):
    state, event, current = case
    found = answer(state, event, current)
    if event in REPORTS and (not current or state in TERMINAL):
        assert found is STALE
    elif event in TABLE[state]:
        assert found == TABLE[state][event]
    elif event in ("claim", "offer"):
        assert found == "raises"
    else:
        assert found is STALE


@pytest.mark.parametrize("state", STATES)
def test_an_old_attempt_reports_in_vain(state):
    assert {answer(state, event, current=False) for event in REPORTS} == {STALE}


@pytest.mark.parametrize("event", ["claim", "offer"])
@pytest.mark.parametrize("state", [s for s in STATES if s != "queued"])
def test_only_what_is_queued_can_be_taken(state, event):
    with pytest.raises(TransitionError, match=f"{state} cannot {event}"):
        step(state, event)


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.booleans()), max_size=40))
def test_any_life_has_at_most_one_outcome(events):
    state, outcomes = "queued", 0
    for event, current in events:
        after = answer(state, event, current)
        if after in (STALE, "raises"):
            continue
        outcomes += after in TERMINAL
        state = after
    assert outcomes <= 1
    assert (state in TERMINAL) == (outcomes == 1)


def test_reports_may_skip_forward_and_never_go_back():
    assert step("offered", "succeed") == "succeeded"
    assert step("offered", "start") == "running"
    assert step("accepted", "accept") is STALE
    assert step("running", "start") is STALE
    assert step("running", "accept") is STALE


def edges():
    return {
        (state, after, event) for state, moves in TABLE.items() for event, after in moves.items()
    }


def test_the_diagram_shows_every_edge_and_no_other():
    drawn = set()
    for line in diagram().splitlines()[2:]:
        ends, _, events = line.strip().partition(": ")
        before, after = ends.split(" --> ")
        drawn |= {(before, after, event) for event in events.split(", ") if after != "[*]"}
    assert drawn == edges()
    assert all(f"    {state} --> [*]\n" in diagram() for state in TERMINAL)
    assert "    [*] --> queued\n" in diagram()


def test_the_diagram_in_the_documentation_is_this_one():
    page = Path(__file__).parent.parent / "docs" / "jobs.md"
    if not page.exists():
        pytest.skip("docs/jobs.md is not written yet")
    assert f"```mermaid\n{diagram()}```" in page.read_text(encoding="utf-8")


# Rules --------------------------------------------------------------------------------------

NOW = 1_000.0


def job(state="running", **fields):
    held = {"owner": "w", "lease_until": 5.0, "slot": "p#0", "lane_held": "l", "started_at": 900.0}
    fields = {
        "attempt": 3,
        "key": "k",
        "active_key": "k",
        **(held if state == "running" else {}),
        **fields,
    }
    return Job(id="j", pipeline="p", state=state, **fields)


def after(row, changes):
    return msgspec.structs.replace(row, **changes)


def told(event, **fields):
    return Report(id="j", attempt=fields.pop("attempt", 3), event=event, **fields)


def unbound(row):
    return (row.owner, row.lease_until, row.slot, row.lane_held) == (None,) * 4


def spec(**fields):
    return msgspec.json.encode(fields)


EVERY = [
    (s, e, c, a)
    for s in STATES
    for e in sorted(REPORTS)
    for c in (True, False)
    for a in (True, False)
]


@pytest.mark.parametrize(("state", "event", "current", "asked"), EVERY)
def test_what_a_report_changes_agrees_with_the_table(state, event, current, asked):
    row = job(state, agent="pi", cancel_at=990.0 if asked else None, reason="asked")
    owner = row.owner if event == "release" else None
    changes = rules.reported(row, told(event, attempt=3 if current else 2, owner=owner), NOW)
    expected = STALE if state == "queued" else step(state, event, current=current)
    if expected is STALE:
        assert changes is None
        return
    assert changes.keys() <= set(COLUMNS)
    if expected == "queued" and asked:
        expected = "cancelled"
    new = after(row, changes)
    released = event == "release" and new.state == "queued"  # as if it had not been claimed
    assert (new.state, new.attempt) == (expected, row.attempt - released)
    assert (new.ended_at is not None) == (new.active_key is None) == new.finished
    assert (new.prune_at is not None) == new.finished
    assert new.agent == (None if expected == "queued" else "pi")
    if expected not in ("accepted", "running"):
        assert unbound(new)
    if expected == "cancelled":
        assert new.reason == "asked"


@pytest.mark.parametrize("event", sorted(REPORTS))
def test_of_an_attempt_that_was_given_back_nothing_is_heard(event):
    """`expire` above all: the job is free, and somebody else may begin it."""
    assert rules.reported(job("queued", expires_at=1.0), told(event), NOW) is None


def test_that_an_agent_has_a_job_changes_nothing_else():
    assert rules.reported(job("offered"), told("accept"), NOW) == {"state": "accepted"}


@pytest.mark.parametrize("state", ["offered", "accepted"])
@pytest.mark.parametrize(
    ("before", "said", "started_at"),
    [(None, None, NOW), (None, 7.0, 7.0), (5.0, 7.0, 5.0), (5.0, None, 5.0)],
)
def test_a_start_is_as_told_or_now_and_the_first_one_stays(state, before, said, started_at):
    row = job(state, started_at=before)
    changes = rules.reported(row, told("start", started_at=said), NOW)
    assert changes == {"state": "running", "started_at": started_at}


@pytest.mark.parametrize("event", ["succeed", "fail", "refuse", "expire", "confirm_cancel"])
@pytest.mark.parametrize("before", [None, 5.0])
def test_an_agent_counts_for_itself(event, before):
    row = job("offered", errors=1, crashes=1, started_at=before)
    new = after(row, rules.reported(row, told(event, errors=4, crashes=0, started_at=7.0), NOW))
    assert (new.errors, new.crashes, new.started_at) == (4, 0, before or 7.0)
    new = after(row, rules.reported(row, told(event), NOW))
    assert (new.errors, new.crashes) == (2 if event == "fail" else 1, 1)
    assert new.started_at == before


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("attempt", [2, 3, 4])
def test_an_offer_takes_what_is_queued_at_its_attempt(state, attempt):
    row = job(state, reason="old", agent=None)
    changes = rules.offered(row, Offer("j", attempt, "pi"))
    if (state, attempt) != ("queued", 3):
        assert changes is None
        return
    new = after(row, changes)
    assert (new.state, new.agent, new.attempt, new.reason) == ("offered", "pi", 4, None)


@pytest.mark.parametrize("state", STATES)
def test_only_what_has_ended_is_adopted(state):
    row = job(state, unreported=True, slot="p#0", lane_held="l", owner="w", lease_until=1.0)
    if state in ACTIVE:
        with pytest.raises(TransitionError, match=f"{state} cannot be adopted"):
            rules.adopted(row, NOW)
        return
    new = rules.adopted(row, NOW)
    assert unbound(new)
    assert (new.active_key, new.unreported, new.identity) == (None, False, True)
    assert new.prune_at == NOW + row.result_ttl


def test_an_outcome_frees_the_key_and_sets_the_time_of_pruning():
    new = after(job(), rules.reported(job(result_ttl=7.0), told("succeed", result=b"r"), NOW))
    assert (new.state, new.result, new.ended_at, new.prune_at) == ("succeeded", b"r", NOW, NOW + 7)
    assert (new.key, new.active_key) == ("k", None)


def test_errors_and_crashes_are_counted_apart():
    for event, counts in {
        "fail": (1, 0),
        "retry": (1, 0),
        "crash": (0, 1),
        "give_back": (0, 0),
    }.items():
        new = after(job(), rules.reported(job(), told(event), NOW))
        assert (new.errors, new.crashes) == counts, event


def test_a_retry_is_due_after_its_pause():
    assert rules.reported(job(), told("retry", retry_in=30.0), NOW)["run_at"] == NOW + 30
    assert rules.reported(job(), told("give_back"), NOW)["run_at"] == NOW


def test_giving_back_keeps_the_error_of_the_attempt_before():
    row = job(error=b"old")
    assert after(row, rules.reported(row, told("give_back"), NOW)).error == b"old"
    assert after(row, rules.reported(row, told("succeed"), NOW)).error is None


@pytest.mark.parametrize(
    ("fields", "state", "reason"),
    [
        ({}, "queued", "why"),
        ({"crashes": 1}, "queued", "why"),
        ({"crashes": 2}, "failed", "crashed 3 times, the last time: why"),
        ({"spec": spec(max_crashes=1)}, "failed", "crashed 1 times, the last time: why"),
        ({"spec": spec(on_crash="fail")}, "failed", "why"),
        ({"cancel_at": 1.0, "reason": "asked"}, "cancelled", "asked"),
        ({"cancel_at": 1.0, "spec": spec(on_crash="fail")}, "cancelled", None),
        ({"cancel_at": 1.0, "crashes": 9}, "cancelled", None),
    ],
)
def test_a_crash(fields, state, reason):
    new = after(job(**fields), rules.crashed(job(**fields), NOW, "why"))
    assert (new.state, new.reason) == (state, reason)
    assert new.crashes == fields.get("crashes", 0) + 1
    assert unbound(new)


@pytest.mark.parametrize(
    ("row", "dead", "state"),
    [
        (job("queued"), False, None),
        (job("queued", expires_at=NOW + 1), False, None),
        (job("queued", expires_at=NOW), False, "expired"),
        (job("queued", expires_at=NOW, started_at=1.0), False, None),
        (job(), False, None),
        (job(), True, "queued"),
        (job(crashes=2), True, "failed"),
        (job(cancel_at=NOW - CANCEL_DEADLINE + 1), False, None),
        (job(cancel_at=NOW - CANCEL_DEADLINE), False, "cancelled"),
        (job(cancel_at=NOW), True, "cancelled"),
        (job("offered", cancel_at=NOW - CANCEL_DEADLINE), False, "cancelled"),
        (job("accepted", cancel_at=NOW - CANCEL_DEADLINE), False, "cancelled"),
        (job("offered"), False, None),
        *((job(state, expires_at=1.0, cancel_at=1.0), True, None) for state in TERMINAL),
    ],
)
def test_what_rescue_does(row, dead, state):
    changes = rules.rescued(row, NOW, dead=dead)
    assert (changes and changes["state"]) == state
    if changes:
        assert unbound(after(row, changes))


@pytest.mark.parametrize("state", STATES)
def test_a_cancel(state):
    changes = rules.cancelled(job(state), NOW, "stop")
    if state in TERMINAL:
        assert changes is None
    elif state == "queued":
        new = after(job(state), changes)
        assert (new.state, new.reason, new.cancel_at, new.active_key) == (
            "cancelled",
            "stop",
            NOW,
            None,
        )
    else:
        assert changes == {"cancel_at": NOW, "reason": "stop"}
        assert rules.cancelled(job(state, cancel_at=1.0), NOW, "again") is None


def test_a_claim_takes_the_next_attempt():
    row = job("queued", reason="old")
    new = after(row, rules.claimed(row, "w2", NOW, 77.0))
    assert (new.state, new.attempt, new.owner, new.lease_until) == ("running", 4, "w2", 77.0)
    assert (new.reason, new.started_at) == (None, NOW)
    with pytest.raises(TransitionError):
        rules.claimed(new, "w3", NOW, 78.0)


def test_places_are_taken_as_far_as_there_are_any():
    looks = []

    def look():
        looks.append(1)
        return {"p#0", "lane"}

    places = rules.Places(look)
    assert places.take(job("queued")) == {}
    assert looks == []
    two = job("queued", concurrency=2)
    assert places.take(two) == {"slot": "p#1", "lane_held": None}
    assert places.take(two) is None
    assert places.pipelines == {"p"}
    assert places.take(job("queued", lane="lane")) is None
    assert places.lanes == {"lane"}
    assert places.take(job("queued", lane="other")) == {"slot": None, "lane_held": "other"}
    assert places.take(job("queued", lane="other")) is None
    assert looks == [1]


def test_a_lane_that_is_taken_costs_no_slot():
    places = rules.Places(lambda: {"lane"})
    assert places.take(job("queued", lane="lane", concurrency=1)) is None
    assert places.take(job("queued", concurrency=1)) == {"slot": "p#0", "lane_held": None}


def test_a_new_job_starts_with_its_key_and_its_time():
    new = rules.added(Job(id="j", pipeline="p", key="k"), NOW)
    assert (new.created_at, new.run_at, new.active_key) == (NOW, NOW, "k")
    assert rules.added(Job(id="j", pipeline="p", run_at=5.0), NOW).run_at == 5.0


def test_what_is_left_of_a_pruned_job_is_little():
    row = after(job("succeeded", result=b"r", inputs=b"i"), rules.pruned(NOW))
    assert (row.pruned, row.prune_at) == (True, NOW + IDENTITY_TTL)
    assert (row.inputs, row.result, row.spec, row.error, row.record) == (
        b"",
        None,
        b"{}",
        None,
        None,
    )


def test_ids_are_ordered_by_time_and_identities_by_nothing():
    assert new_id() != new_id()
    assert len({new_id()[:8] for _ in range(100)}) == 1
    assert new_id()[14] == "7"
    assert identity("s", 1.0) == identity("s", 1.0) != identity("s", 2.0)
    assert identity("a", "b") != identity("ab")


def test_columns_that_change_are_columns():
    assert set(CHANGING) < set(COLUMNS)
