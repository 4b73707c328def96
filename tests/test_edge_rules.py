"""What gateway and agents decide: presence, credits, repeats, triggers, the outbox. No awaiting."""

from __future__ import annotations

import hashlib

import pytest
from msgspec.structs import replace

from edge_agent import telling
from edge_agent.outbox import Outbox
from fp_async import hearing, messages, presence, topic_triggers, wire
from fp_async.board import Board, lost
from fp_async.config import TopicTrigger
from fp_async.errors import MessageError
from fp_async.jobs import Job, NodeTiming, Record, Spec, new_id
from fp_async.messages import AgentState, Heartbeat
from fp_async.presence import CONTEST, heard
from fp_async.topic_triggers import Told

# Presence -----------------------------------------------------------------------------------


def state(**fields):
    return AgentState(
        **{"status": "ready", "store": "s1", "starts": 1, "n": 1, "boot": "b1", **fields}
    )


def test_an_older_word_is_not_believed():
    known = heard(None, state(starts=3, n=5), 100.0)
    for older in (state(starts=3, n=4), state(starts=2, n=9), state(starts=2, n=9, status="lost")):
        assert heard(known, older, 101.0) is None
    assert heard(known, state(starts=3, n=5, status="lost"), 101.0).away_since == 101.0
    assert heard(known, state(starts=4, n=1), 101.0).state.starts == 4


def test_goodbye_and_back():
    known = heard(None, state(), 100.0)
    assert presence.may_work(known)
    gone = heard(known, state(status="offline"), 110.0)
    assert not presence.may_work(gone)
    assert heard(gone, state(status="lost"), 120.0).away_since == 110.0
    back = heard(gone, state(n=2), 130.0)
    assert presence.may_work(back)
    assert back.away_since is None


def test_a_new_store_waits_a_minute_and_then_is_the_device():
    known = heard(None, state(), 100.0)
    new = heard(known, state(store="s2"), 200.0)
    assert not presence.may_work(new)
    assert presence.settled(new, 200.0 + CONTEST - 1) is None
    settled = presence.settled(new, 200.0 + CONTEST)
    assert presence.may_work(settled)
    assert presence.settled(settled, 999.0) is None


def test_the_old_store_may_contradict():
    new = heard(heard(None, state(), 100.0), state(store="s2"), 200.0)
    contested = heard(new, state(n=2), 210.0)
    assert "two devices use this name" in contested.quarantine
    assert not presence.may_work(contested)
    assert presence.settled(contested, 999.0) is None
    assert heard(new, state(n=2, status="lost"), 210.0) is None  # a will proves nothing


def test_one_store_with_two_boots_is_a_clone():
    known = heard(None, state(), 100.0)
    assert "same store" in heard(known, state(n=2, boot="b2"), 101.0).quarantine
    assert heard(known, state(starts=2, boot="b2"), 101.0).quarantine is None


def test_silence_is_being_away_and_a_heartbeat_ends_it():
    known = heard(None, state(clock=95.0), 100.0)
    assert known.clock_offset == 5.0
    assert presence.silent(known, 189.0, 90.0) is None
    away = presence.silent(known, 191.0, 90.0)
    assert away.away_since == 100.0
    assert presence.silent(away, 999.0, 90.0) is None
    assert presence.beaten(away, Heartbeat(free=1, clock=200.0), 200.0).away_since is None


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("agent:pi", True), ("agent:pi2", False), ("any:*", True), ("all:site=berlin", True),
        ("any:site=rome", False), ("any:gpu", True), ("any:gpu,site=berlin", True),
        ("any:gpu,site=rome", False), ("any:cpu", False),
    ],
)  # fmt: skip
def test_targets_mean_names_and_tags(target, wanted):
    assert presence.matches(target, "pi", {"site": "berlin", "gpu": ""}) is wanted


# Board --------------------------------------------------------------------------------------


def board(**windows):
    made = Board()
    for name, window in windows.items():
        made.agents[name] = heard(None, state(window=window, slots=2), 100.0)
    return made


def job(target="any:*", agent=None, state="queued", **fields):
    return Job(id=new_id(), pipeline="p", target=target, agent=agent, state=state, **fields)


def test_offers_go_to_who_has_most_room_within_the_window():
    made = board(a=16, b=16)
    offers = made.assign([job() for _ in range(20)], 0.0)
    assert {name: sum(o.agent == name for o in offers) for name in "ab"} == {"a": 4, "b": 4}
    offers = made.assign([job("agent:a") for _ in range(20)], 0.0)
    assert len(offers) == 16
    made.drained.add("a")
    assert {o.agent for o in made.assign([job() for _ in range(9)], 0.0)} == {"b"}
    assert made.assign([job("agent:a"), job("agent:nobody")], 0.0) == []


def test_what_an_agent_has_counts_against_its_credit():
    made = board(a=3)
    rows = [job("agent:a", "a", "offered", attempt=1) for _ in range(3)]
    for row in rows:
        made.bind(row, 0.0, chance=0.5)
    assert made.credit("a") == 0
    assert made.servable({"agent:a": 0.0}, 1.0) == []
    made.release(rows[0].id)
    assert made.servable({"agent:a": 0.0, "agent:b": 0.0}, 1.0) == ["agent:a"]
    assert made.servable({"agent:a": 5.0}, 1.0) == []


def test_who_refuses_is_not_asked_again():
    made = board(a=9, b=9)
    row = job()
    made.avoid(row.id, "a", None)
    assert [o.agent for o in made.assign([row], 0.0)] == ["b"]
    made.avoid(row.id, "b", 10.0)
    assert made.assign([row], 9.0) == []
    assert [o.agent for o in made.assign([row], 10.0)] == ["b"]
    assert not made.nobody_left(row)
    made.avoid(row.id, "b", None)
    assert made.nobody_left(row)


def test_an_offer_is_said_again_until_it_is_answered():
    made = board(a=9)
    row = job("agent:a", "a", "offered", attempt=1)
    made.bind(row, 0.0, chance=0.5)
    times, now = [], 0.0
    while len(times) < 7:
        now = made.next_repeat()
        assert [each.job.id for each in made.repeats(now, 0.5)] == [row.id]
        times.append(now)
    gaps = [round(b - a) for a, b in zip([0, *times], times, strict=False)]
    assert gaps == [2, 4, 8, 16, 32, 60, 60]
    made.answered(row.id, replace(row, state="accepted"))
    assert made.repeats(now + 999, 0.5) == []
    made.hurry([row.id], 5000.0)
    assert [each.job.id for each in made.repeats(5000.0, 0.5)] == [row.id]


def test_a_cancel_is_said_again_also_when_the_offer_was_answered():
    made = board(a=9)
    row = job("agent:a", "a", "running", attempt=1)
    made.bind(row, 0.0, chance=0.5)
    assert made.repeats(999.0, 0.5) == []
    assert made.cancel(row.id, replace(row, cancel_at=1.0), 1000.0)
    assert made.cancel(row.id, row, 1000.0) is None
    assert [each.job.id for each in made.repeats(1002.0, 0.5)] == [row.id]
    assert made.cancel("unknown", row, 0.0) is None


def test_many_jobs_leave_nothing_in_mind():
    made = board(a=100)
    for _ in range(20_000):
        row = job("agent:a", "a", "offered", attempt=1)
        made.bind(row, 0.0, chance=0.5)
        made.avoid(row.id, "a", None)
        made.forget(row.id)
    made.repeats(1e9, 0.5)
    assert (made.open, made.of("a"), made._due, dict(made._refused)) == ({}, [], [], {})


@pytest.mark.parametrize(
    ("target", "spec", "away", "expected"),
    [
        ("any:*", {}, 299, None), ("any:*", {}, 301, "reassign"), ("agent:a", {}, 1e6, None),
        ("agent:a", {"on_lost": "fail"}, 301, "fail"), ("any:*", {"on_lost": "wait"}, 1e6, None),
        ("agent:a", {"on_lost": "fail", "lost_after": 5.0}, 6, "fail"),
    ],
)  # fmt: skip
def test_what_becomes_of_jobs_whose_agent_stays_away(target, spec, away, expected):
    import msgspec

    made = board(a=9)
    row = job(target, "a", "running", attempt=1, spec=msgspec.json.encode(Spec(**spec)))
    made.bind(row, 0.0, chance=0.5)
    known = replace(made.agents["a"], away_since=1000.0)
    assert lost(made.open[row.id], known, 1000.0 + away, 300.0) == expected
    assert lost(made.open[row.id], made.agents["a"], 1e9, 300.0) is None


# Triggers -----------------------------------------------------------------------------------


def told(topic="doors/d1/open", payload=b'{"a": {"b": [1, 2]}}', **fields):
    return Told(topic, payload, **fields)


def test_a_message_becomes_inputs():
    trigger = TopicTrigger(
        topic="doors/+/open", pipeline="p", key="$user.id", on="any:site=x",
        inputs={"x": "$payload.a.b.1", "t": "$topic", "d": "$topic.1", "c": 7, "u": "$user.id"},
    )  # fmt: skip
    wanted = topic_triggers.wanted("doors", trigger, told(user_properties=(("id", "k"),)))
    assert wanted.options["inputs"] == {"x": 2, "t": "doors/d1/open", "d": "d1", "c": 7, "u": "k"}
    assert (wanted.options["on"], wanted.options["key"]) == ("any:site=x", "doors:k")
    assert wanted.unique


def test_the_same_key_or_correlation_is_the_same_job_for_ever():
    trigger = TopicTrigger(topic="#", pipeline="p", key="$payload.a.b.0")
    one, two = (topic_triggers.wanted("t", trigger, told()) for _ in range(2))
    assert one.id == two.id
    plain = TopicTrigger(topic="#", pipeline="p")
    asked = told(response_topic="me", correlation=b"1")
    one, two = (topic_triggers.wanted("t", plain, asked) for _ in range(2))
    assert one.id == two.id
    one, two = (topic_triggers.wanted("t", plain, told()) for _ in range(2))
    assert one.id != two.id


@pytest.mark.parametrize(
    ("trigger", "message", "reason"),
    [
        ({}, told(payload=b"["), "no json"),
        ({}, told(payload=b"[1]"), "has to be an object"),
        ({"payload": "text"}, told(payload=b"\xff"), "no text"),
        ({"payload": "msgpack"}, told(payload=b"\xc1"), "no msgpack"),
        ({"inputs": {"x": "$payload.z"}}, told(), r"no \$payload\.z"),
        ({"inputs": {"x": "$topic.9"}}, told(), r"no \$topic\.9"),
        ({"key": "$payload.a"}, told(payload=b'{"a": ""}'), "key: 0 characters"),
    ],
)
def test_what_makes_no_job_says_why(trigger, message, reason):
    with pytest.raises(MessageError, match=reason):
        topic_triggers.wanted("t", TopicTrigger(topic="#", pipeline="p", **trigger), message)


# Outcomes on their way ------------------------------------------------------------------------


def test_what_is_new_keeps_half_the_window():
    outbox = Outbox(10)
    assert outbox.room(live=False) == 10
    outbox.ended(f"new{n}" for n in range(8))
    assert outbox.room(live=False) == 5
    for n in range(5):
        outbox.told(f"old{n}", 0.0)
    assert (outbox.room(live=False), outbox.room(live=True)) == (0, 5)
    assert outbox.take_live() == [f"new{n}" for n in range(5)]


def test_what_is_not_acknowledged_is_told_again_later_and_later():
    outbox = Outbox()
    outbox.backlog = False
    outbox.told("a", 0.0)
    waits = []
    now = 0.0
    for _ in range(5):
        assert outbox.overdue(outbox.next_due() - 0.01) is False
        due = outbox.next_due()
        assert outbox.overdue(due)
        waits.append(due - now)
        now = due
        assert outbox.backlog
        outbox.told("a", now)
    assert waits == [5, 10, 20, 40, 60]
    outbox.acknowledged(["a"])
    assert (outbox.next_due(), outbox.under_way, outbox._tried) == (None, frozenset(), {})


def test_too_much_that_is_new_is_found_as_old():
    outbox = Outbox(10)
    outbox.backlog = False
    outbox.ended(f"{n}" for n in range(100))
    assert outbox.backlog
    assert outbox.take_live() == []


def test_a_large_result_goes_in_parts_and_comes_together():
    value = bytes(range(256)) * 1000
    row = job(state="succeeded", offer=3, result=value, ended_at=1.0)
    *parts, last = telling.finished(row, None)
    assert (len(parts), last.chunks) == (8, 8)
    assert last.sha256 == hashlib.sha256(value).hexdigest()
    chunks = [hearing.chunk(part) for part in parts]
    assert hearing.put_together(last, chunks) == value
    assert hearing.put_together(last, chunks[::2]) == [1, 3, 5, 7]
    wrong = [replace(chunks[0], data=b"x"), *chunks[1:]]
    assert hearing.put_together(last, wrong) == list(range(8))
    with pytest.raises(MessageError, match="part 999"):
        hearing.chunk(replace(parts[0], index=999))


def test_an_outcome_fits_into_a_packet_whatever_it_has():
    import msgspec

    nodes = [NodeTiming(f"{'n' * 190}{n}", "failed", 1.0, "e" * 4000) for n in range(1000)]
    record = msgspec.json.encode(Record(nodes, "ü" * 65_000, "w"))
    failure = msgspec.json.encode({"kind": "K", "message": "m" * 4096, "traceback": "t" * 16_384})
    row = job(
        state="failed", offer=1, record=record, error=failure, ended_at=1.0, result=b"x" * 60_000
    )
    for body in telling.finished(row, None):
        assert len(wire.encode(body)) < messages.PACKET_BYTES
