"""What one agent may ask of a gateway, and whose turn it is: pure, so tested by properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.outbox import Outbox
from fp_async.budgets import RATES, Bucket, Budgets, Rate
from fp_async.turns import Turns

steps = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 30)), max_size=60)
rates = st.builds(Rate, st.integers(1, 100), st.floats(0.1, 50))


@given(rates, steps)
def test_e7_no_more_is_taken_than_the_burst_and_the_rate(rate, asked):
    bucket, now, taken, start = Bucket(rate, 0.0), 0.0, 0.0, 0.0
    largest = 0
    for later, number in asked:
        now += later
        largest = max(largest, number)
        taken += number * bucket.take(number, now)
        # what is larger than a bucket is taken from a full one, which is empty for longer
        assert taken <= rate.burst + rate.second * (now - start) + largest + 1e-6


@given(rates, steps)
def test_e7_after_its_wait_an_agent_may_go_on(rate, asked):
    bucket, now = Bucket(rate, 0.0), 0.0
    for later, number in asked:
        now += later
        if not bucket.take(number, now):
            now += bucket.wait(number, now) + 1e-6
            assert bucket.take(number, now)


@given(st.lists(st.sampled_from("ab"), max_size=200))
def test_e7_an_agent_uses_only_its_own_budget(names):
    budgets = Budgets({"pings": Rate(5, 1.0)})
    used = {"a": 0, "b": 0}
    for name in names:
        assert budgets.take(name, "pings", 0.0) == (used[name] < 5)
        used[name] += 1


def test_e7_an_outbox_of_a_device_comes_at_once():
    budgets = Budgets()
    size = 64 * 1024
    assert all(budgets.take("pi", "bytes", 0.0, size) for _ in range(64 * 2**20 // size))
    assert RATES["outcomes"].burst >= 100_000


def test_e7_being_above_a_budget_is_told_once():
    budgets = Budgets()
    news = [budgets.is_news("pi", "letters", now) for now in (0.0, 1.0, 2.0)]
    assert news == [True, False, False]


# Turns ------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 400)), max_size=100))
def test_e7_turns_lose_nothing_and_keep_the_order_of_each(items):
    turns: Turns[tuple[str, int, int]] = Turns(20, 2_000, 5_000)
    put = [
        (name, number, size)
        for number, (name, size) in enumerate(items)
        if turns.put(name, (name, number, size), size)
    ]
    taken = []
    while turns:
        batch = turns.take(5, 1_000)
        assert batch
        assert sum(size for _, _, size in batch) <= 1_000 or len(batch) == 1
        taken += batch
    assert sorted(taken) == sorted(put)
    for name in "abc":
        assert [x for x in taken if x[0] == name] == [x for x in put if x[0] == name]


@given(st.integers(0, 400), st.integers(0, 300))
def test_e7_one_agent_stands_before_another_with_one_message_at_most(waiting, size):
    turns: Turns[str] = Turns(500, 2**20, 2**22)
    for _ in range(waiting):
        turns.put("flood", "flood", size)
    assert turns.put("pi", "pi", size)
    assert "pi" in turns.take(100, 1_000)[:2]


def test_e7_the_queue_of_an_agent_is_bounded_and_another_has_room():
    turns: Turns[int] = Turns(10, 1_000, 10_000)
    assert [turns.put("flood", n, 10) for n in range(11)] == [True] * 10 + [False]
    assert turns.put("pi", 0, 10)
    assert not turns.put("pi", 0, 1_000)
    assert turns.put("pi", 0, 1_000, bounded=False)


# The device ---------------------------------------------------------------------------------------


def test_e7_a_device_that_is_told_to_be_slow_tells_all_of_it_again():
    outbox = Outbox()
    outbox.backlog = False
    outbox.ended(["a", "b"])
    for id in outbox.take_live():
        outbox.told(id, 0.0)
    outbox.again()
    assert outbox.backlog
    assert not outbox.under_way


def test_e7_outcomes_without_room_at_the_center_wait_and_hold_up_nothing():
    outbox = Outbox(window=4)
    for id in "abcd":
        outbox.told(id, 0.0)
    outbox.hold("abcd", until=100.0)
    assert outbox.held == 4
    assert outbox.under_way == frozenset("abcd")  # not read again from the backlog
    assert outbox.room(live=False) > 0
    assert outbox.next_due() == 100.0
    assert not outbox.overdue(99.0)
    assert outbox.overdue(100.0)
    assert outbox.backlog
    assert not outbox.held


def test_e7_what_is_held_is_over_when_it_is_acknowledged():
    outbox = Outbox()
    outbox.told("a", 0.0)
    outbox.hold("a", until=100.0)
    outbox.acknowledged(["a"])
    assert not outbox.held
