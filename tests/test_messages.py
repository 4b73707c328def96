"""The wire: golden bytes, what is refused, batches, topics."""

from __future__ import annotations

import random

import pytest
from fleet import scale, seeded
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from fp_async import codec, messages, wire
from fp_async import messages as m
from fp_async.errors import MessageError, UsageError
from fp_async.jobs import Failure, NodeTiming, Record, Spec
from fp_async.topics import Topics, checked_name, matches

PLAIN = Raw(b'{"v":1,"plain":{"a":1}}')
DO = {
    '{"type":"RunJob","id":"j","attempt":2,"pipeline":"p","inputs":{"v":1,"plain":{"a":1}},'
    '"spec":{"timeout":3.0},"priority":1,"expires_in":9.5,"v":1}': m.RunJob(
        id="j", attempt=2, pipeline="p", inputs=PLAIN, spec=Spec(timeout=3.0), priority=1, expires_in=9.5
    ),
    '{"type":"CancelJob","id":"j","attempt":2,"reason":"r","v":1}': m.CancelJob(id="j", attempt=2, reason="r"),
    '{"type":"Acknowledge","ids":["j"],"v":1}': m.Acknowledge(ids=["j"]),
    '{"type":"Missing","id":"j","attempt":1,"chunks":[0,2],"v":1}': m.Missing(id="j", attempt=1, chunks=[0, 2]),
    '{"type":"PutSchedule","id":"s","revision":3,"pipeline":"p","trigger":{},"policy":{},"template":{},"v":1}':
        m.PutSchedule(id="s", revision=3, pipeline="p", trigger=Raw(b"{}"), policy=Raw(b"{}"), template=Raw(b"{}")),
    '{"type":"DeleteSchedule","id":"s","revision":3,"v":1}': m.DeleteSchedule(id="s", revision=3),
    '{"type":"AskSync","v":1}': m.AskSync(),
    '{"type":"Ping","nonce":"n","v":1}': m.Ping(nonce="n"),
    '{"type":"Pong","nonce":"n","clock":1.5,"v":1}': m.Pong(nonce="n", clock=1.5),
}  # fmt: skip
REPORTS = {
    '{"type":"Accepted","id":"j","attempt":2,"v":1}': m.Accepted(id="j", attempt=2),
    '{"type":"Rejected","id":"j","attempt":2,"reason":"r","retry_after":5.0,"v":1}':
        m.Rejected(id="j", attempt=2, reason="r", retry_after=5.0),
    '{"type":"Started","id":"j","attempt":2,"at":1.0,"sent_at":2.0,"v":1}':
        m.Started(id="j", attempt=2, at=1.0, sent_at=2.0),
    '{"type":"Finished","id":"j","attempt":2,"outcome":"failed","ended_at":1.0,"sent_at":2.0,'
    '"error":{"kind":"K","message":"m"},"record":{"nodes":[{"node":"n","status":"failed"}]},"tries":3,"errors":3,"v":1}':
        m.Finished(id="j", attempt=2, outcome="failed", ended_at=1.0, sent_at=2.0, error=Failure("K", "m"),
                   record=Record([NodeTiming("n", "failed")]), tries=3, errors=3),
    '{"type":"ResultChunk","id":"j","attempt":2,"index":0,"data":"eA==","v":1}':
        m.ResultChunk(id="j", attempt=2, index=0, data="eA=="),
    '{"type":"ScheduleState","id":"s","revision":3,"error":"e","v":1}': m.ScheduleState(id="s", revision=3, error="e"),
    '{"type":"Sync","page":0,"pages":1,"jobs":[["j",2,"running"]],"schedules":{"s":3},"v":1}':
        m.Sync(page=0, pages=1, jobs=[("j", 2, "running")], schedules={"s": 3}),
    '{"type":"Progress","id":"j","attempt":2,"log":"x","v":1}': m.Progress(id="j", attempt=2, log="x"),
    '{"type":"Heartbeat","free":1,"clock":2.0,"disk_free":3,"v":1}': m.Heartbeat(free=1, clock=2.0, disk_free=3),
    '{"type":"Malformed","reason":"r","count":2,"v":1}': m.Malformed(reason="r", count=2),
}  # fmt: skip
STATE = '{"type":"AgentState","status":"ready","store":"s","starts":1,"n":2,"boot":"b","tags":{"a":"b"},"v":1}'


@pytest.mark.parametrize("text", DO)
def test_what_the_gateway_says_has_golden_bytes(text):
    assert wire.encode(DO[text]).decode() == text
    assert wire.encode(wire.do(text.encode())).decode() == text


@pytest.mark.parametrize("text", REPORTS)
def test_what_agents_say_has_golden_bytes(text):
    assert wire.encode(REPORTS[text]).decode() == text
    assert wire.reports(text.encode()) == [REPORTS[text]]


def test_every_message_is_golden():
    assert {type(each) for each in DO.values()} == set(m.Do.__args__)
    assert {type(each) for each in REPORTS.values()} | {m.Ping, m.Pong} == set(m.Report.__args__)


def test_states_are_golden():
    state = m.AgentState(status="ready", store="s", starts=1, n=2, boot="b", tags={"a": "b"})
    assert wire.encode(state).decode() == STATE
    assert wire.agent_state(STATE.encode()) == state
    gone = m.GatewayState(online=False)
    assert wire.encode(gone) == b'{"type":"GatewayState","online":false,"v":1}'
    assert wire.gateway_state(wire.encode(gone)) == gone


def test_a_newer_program_may_say_more_and_people_may_not():
    text = b'{"type":"Accepted","id":"j","attempt":2,"v":1,"colour":"red"}'
    assert wire.reports(text) == [m.Accepted(id="j", attempt=2)]
    with pytest.raises(MessageError, match="inpts"):
        wire.run_request(b'{"inpts": {}}')
    assert wire.run_request(b"") == m.RunRequest()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "truncated|malformed"),
        (b"\xff\xfe", "malformed|UTF|invalid"),
        (b'{"type":"Accepted","id":"j","attempt":2,"v":2}', "version 2 of the protocol"),
        (b'{"type":"Nothing","v":1}', "Invalid value 'Nothing'"),
        (b'{"type":"Accepted","id":7,"attempt":2,"v":1}', "Expected `str`"),
        (b"[" * 100_000, "."),
        (b"x" * 300_000, "300,000 bytes are too many"),
    ],
)
def test_what_cannot_be_read_is_one_error(payload, reason):
    with pytest.raises(MessageError, match=reason):
        wire.reports(payload)


def test_a_fuzz_of_mutated_messages_raises_nothing_else():
    rng: random.Random = seeded()
    texts = [text.encode() for text in (*DO, *REPORTS, STATE)]
    for _ in range(scale(100_000)):
        data = bytearray(rng.choice(texts))
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(data))
            kind = rng.random()
            if kind < 0.5:
                data[at] = rng.randrange(256)
            elif kind < 0.75:
                del data[at : at + rng.randrange(8)]
            else:
                data[at:at] = rng.choice(texts)[: rng.randrange(30)]
            data = data or bytearray(b"{")
        for read in (wire.do, wire.reports, wire.agent_state, wire.gateway_state, wire.run_request):
            try:
                read(bytes(data))
            except MessageError:
                continue


def test_batches_keep_the_order_and_the_size():
    small = [m.Accepted(id=f"{n}", attempt=n) for n in range(3000)]
    large = m.Progress(id="large", attempt=1, log="x" * 100_000)
    said = [*small[:1500], large, *small[1500:]]
    packed = list(wire.batches(said))
    assert [each for payload in packed for each in wire.reports(payload)] == said
    assert sorted(len(payload) > messages.BATCH_BYTES + 100 for payload in packed)[-2:] == [
        False,
        True,
    ]
    assert list(wire.batches([])) == []


@pytest.mark.parametrize("value", [{"a": [1, None, "ü"]}, {"b": b"x" * 5000}, {"t": (1, 2)}])
def test_values_travel_as_json_where_they_are_that(value):
    data = codec.encode_value(value)
    raw = wire.to_wire(data)
    assert wire.from_wire(raw) == data
    assert (bytes(raw)[:1] == b"{") == (data[:1] == b"{")
    with pytest.raises(MessageError, match="base64"):
        wire.from_wire(Raw(b'"%%%"'))


# Topics -------------------------------------------------------------------------------------


def test_topics_below_prefix_and_site():
    topics = Topics("fp/v1", "berlin")
    assert topics.agent("+", "state") == "fp/v1/berlin/agent/+/state"
    assert topics.parsed("fp/v1/berlin/agent/pi/do") == ("agent", "pi", "do")
    assert topics.parsed("fp/v1/berlin2/agent/pi/do") is None
    assert topics.outcome("p") == "fp/v1/berlin/run/p/outcome"


@pytest.mark.parametrize(
    "topic", ["", "$SYS/x", "fp/v1/main/agent/pi/do", "a/+", "a/#", "a\0b", "x" * 1025]
)
def test_nobody_may_have_us_answer_on(topic):
    assert not Topics().may_answer(topic)
    assert Topics().may_answer("me/answers")


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "$x", "-a", "a b", "ü", "x" * 65])
def test_names_that_cannot_be_topic_levels(name):
    with pytest.raises(UsageError):
        checked_name("name", name)


level = st.sampled_from(["a", "b", "$a", ""])
part = st.sampled_from(["a", "b", "+", "$a", ""])


def by_definition(wanted: list[str], levels: list[str]) -> bool:
    """MQTT 5, 4.7: level by level; # also means the level above it."""
    if not wanted:
        return not levels
    if wanted == ["#"]:
        return True
    if not levels:
        return False
    return wanted[0] in ("+", levels[0]) and by_definition(wanted[1:], levels[1:])


@given(
    st.lists(part, min_size=1, max_size=4), st.booleans(), st.lists(level, min_size=1, max_size=4)
)
def test_filters_mean_what_mqtt_says(wanted, rest, levels):
    wanted = [*wanted, "#"] if rest else wanted
    hidden = "/".join(levels).startswith("$") and not "/".join(wanted).startswith("$")
    expected = not hidden and by_definition(wanted, levels)
    assert matches("/".join(wanted), "/".join(levels)) == expected
