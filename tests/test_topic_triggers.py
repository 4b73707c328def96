"""From a topic and a payload to a job: sources, identities, rates; and what is wrong in mqtt.yml."""

from __future__ import annotations

import random
import re

import msgspec
import pytest
from fleet import scale, seeded
from hypothesis import example, given
from hypothesis import strategies as st

from edge_agent import config as agent_config
from fp_async import checking, codec, gateway_serving, orders, topic_triggers, tracked_places, wire
from fp_async.cli import checks
from fp_async.config import Runnable, TopicTrigger
from fp_async.errors import ConfigError, FlowerPowerError, MessageError
from fp_async.topic_triggers import Filters, Rate, Told, covers, problems, wanted, widest
from fp_async.topics import Topics, matches

TOPIC = "sensors/s3/temperature"


def trigger(**options):
    return TopicTrigger(**{"topic": "sensors/+/temperature", "pipeline": "flow", **options})


def told(payload=b"{}", topic=TOPIC, **options):
    return Told(topic, payload, **options)


def inputs(payload=b"{}", /, *, user=(), **options):
    found = wanted("t", trigger(**options), told(payload, user_properties=user))
    return found.options["inputs"]


# Payloads and sources ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "payload", "value"),
    [
        ("json", b' {"a": [1, null]} ', {"a": [1, None]}),
        ("json", b"21.5", 21.5),
        ("json", '"ü"'.encode(), "ü"),
        ("msgpack", msgspec.msgpack.encode({"a": [b"\x00"]}), {"a": [b"\x00"]}),
        ("text", "21,5 °C".encode(), "21,5 °C"),
        ("text", b"", ""),
        ("bytes", b"\xff\x00", b"\xff\x00"),
    ],
)
def test_kinds_of_payload(kind, payload, value):
    assert inputs(payload, payload=kind, inputs={"x": "$payload"}) == {"x": value}


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("json", b""),
        ("json", b"{"),
        ("json", b"\xff"),
        ("json", b"NaN"),
        ("json", b"1e999"),
        ("json", b"9" * 5000),
        ("json", b"[" * 5000 + b"]" * 5000),
        ("msgpack", b"\xc1"),
        ("msgpack", b"\x81\x80\x01"),
        ("msgpack", b"\x91" * 5000),
        ("msgpack", b"\xa1\xff"),
        ("text", b"\xff"),
    ],
)
def test_payloads_of_another_kind(kind, payload):
    with pytest.raises(MessageError, match=f"the payload is no {kind}: ."):
        inputs(payload, payload=kind, inputs={"x": "$payload"})


def test_without_inputs_the_payload_is_the_inputs():
    assert inputs(b'{"a": 1, "b": [2]}') == {"a": 1, "b": [2]}
    packed = msgspec.msgpack.encode({1: 2})
    for payload, kind in ((b"[1]", "json"), (b"1", "json"), (b'"x"', "json"), (packed, "msgpack")):
        with pytest.raises(MessageError, match="without `inputs` it has to be an object of inputs"):
            inputs(payload, payload=kind)


SOURCES = {
    "$payload": {"a": {"b": [10, {"c": None}]}, "0": "zero", "x y": 1},
    "$payload.a": {"b": [10, {"c": None}]},
    "$payload.a.b": [10, {"c": None}],
    "$payload.a.b.0": 10,
    "$payload.a.b.1.c": None,
    "$payload.0": "zero",
    "$payload.x y": 1,
    "$topic": TOPIC,
    "$topic.0": "sensors",
    "$topic.2": "temperature",
    "$user.site": "berlin",
    "$user.a.b": "dotted",
    "plain": "plain",
    "": "",
    7: 7,
    None: None,
}


@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_sources(source):
    payload = b'{"a":{"b":[10,{"c":null}]},"0":"zero","x y":1}'
    user = (("site", "rome"), ("site", "berlin"), ("a.b", "dotted"))
    found = inputs(payload, user=user, inputs={"x": source})
    assert found == {"x": SOURCES[source]}


@pytest.mark.parametrize(
    "source",
    [
        "$payload.z",
        "$payload.a.z",
        "$payload.b.2",
        "$payload.b.-1",
        "$payload.b.x",
        "$payload.b.²",
        "$payload.b.9999999999",
        "$payload.t.0",
        "$payload.n.x",
        "$payload.n.0",
        "$topic.3",
        "$topic.x",
        "$user.z",
    ],
)
def test_what_a_message_does_not_have(source):
    with pytest.raises(MessageError, match="the message has no " + source.replace("$", "\\$")):
        inputs(b'{"a":{},"b":[1,2],"t":"text","n":1.5}', inputs={"x": source})


# Identities -------------------------------------------------------------------------------------


def id_of(key=None, **message):
    found = wanted("t", trigger(key=key, inputs={}), told(**message))
    return found.id, found.unique


def test_the_same_key_is_the_same_job_for_ever():
    one = id_of("$payload.n", payload=b'{"n": 7}')
    assert one == id_of("$payload.n", payload=b'{"n": 7, "more": 1}')
    assert one == id_of("$payload.n", payload=b'{"n": "7"}')
    assert one[1]
    others = [
        id_of("$payload.n", payload=b'{"n": 8}'),
        id_of("$payload.n", payload=b'{"n": 7}', topic="sensors/s4/temperature"),
        id_of("7x", payload=b'{"n": 7}'),
    ]
    assert len({one[0], *(id for id, _ in others)}) == 4
    named = wanted("other", trigger(key="7", inputs={}), told())
    assert named.id != wanted("t", trigger(key="7", inputs={}), told()).id


def test_identities_are_pinned():
    """Messages that were sent before an upgrade must not run again after it."""
    assert wanted("t", trigger(key="7", inputs={}), told()).id == PINNED[0]
    answered = told(response_topic="me", correlation=b"\x01")
    assert wanted("t", trigger(inputs={}), answered).id == PINNED[1]


PINNED = ["cc14d643-2269-5760-a347-b0c599b0e17a", "e9644c1a-7d20-51f6-ac33-88ddc369c5e1"]


def test_the_same_correlation_data_is_the_same_job():
    one = id_of(response_topic="me", correlation=b"\x01")
    assert one == id_of(response_topic="me", correlation=b"\x01", payload=b'{"a":1}')
    assert one[1]
    assert one != id_of(response_topic="me", correlation=b"\x02")
    assert one != id_of(response_topic="you", correlation=b"\x01")


def test_a_key_is_never_taken_for_correlation_data():
    keyed = topic_triggers.requested("flow", wire.RunRequest(key="01"), told())
    answered = told(response_topic="key", correlation=b"\x01")
    assert topic_triggers.requested("flow", wire.RunRequest(), answered).id != keyed.id


@pytest.mark.parametrize(
    "message", [{}, {"response_topic": "me"}, {"correlation": b"1"}, {"payload": b'{"a":1}'}]
)
def test_with_neither_each_message_is_a_job(message):
    one, two = id_of(**message), id_of(**message)
    assert one[0] != two[0]
    assert not one[1]


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b'{"n": null}', "is null, and has to be a text or a number"),
        (b'{"n": {}}', "is a dict"),
        (b'{"n": [1]}', "is a list"),
        (b'{"n": true}', "is a bool"),
        (b'{"n": ""}', "0 characters, and it has 1 to 120"),
        (b'{"n": "%s"}' % (b"x" * 121), "121 characters"),
        (b'{"n": "a\\u0000b"}', "cannot be printed"),
        (b'{"n": "a\\nb"}', "cannot be printed"),
        (b"{}", "the message has no \\$payload.n"),
    ],
)
def test_what_is_no_key(payload, text):
    """A null key would make one job of all messages without one."""
    with pytest.raises(MessageError, match=text):
        id_of("$payload.n", payload=payload)


@pytest.mark.parametrize(
    ("number", "key"),
    [
        *[(text, "1") for text in ("1", "1.0", "1.00", '"1"', "1e0", "10e-1")],
        *[(text, "1.1") for text in ("1.1", "1.10", '"1.1"')],
        ("-0.50", "-0.5"),
        ("12345678901234567890.12", "12345678901234567890.12"),
        ("12345678901234567890", "12345678901234567890"),
        ("1e300", "1e+300"),
        ("1.0e5", "100000"),
        ("0", "0"),
        ("0.00", "0"),
        ('"1.0"', "1.0"),
    ],
)
def test_g10_a_number_is_the_same_key_at_every_door(number, key):
    found = wanted("t", trigger(key="$payload.n", inputs={}), told(b'{"n": %s}' % number.encode()))
    assert found.options["key"] == f"t:{key}"
    request = wire.run_request(b'{"key": %s}' % number.encode())
    assert topic_triggers.requested("flow", request, told()).options["key"] == f"run:{key}"


@pytest.mark.parametrize("key", ["null", "true", "{}", "[1]", '""'])
def test_g10_what_is_no_key_in_a_request_is_a_dead_letter(key):
    with pytest.raises(MessageError, match="key"):
        topic_triggers.requested("f", wire.run_request(b'{"key": %s}' % key.encode()), told())


def test_g10_a_request_without_a_key_has_none():
    assert not topic_triggers.requested("f", wire.run_request(b"{}"), told()).unique


def test_a_key_is_told_as_it_came():
    found = wanted("t", trigger(key="$payload.n", inputs={}), told(b'{"n": 7}'))
    assert found.options["key"] == "t:7"
    assert topic_triggers.told_key("t", "t:7") == "7"
    assert topic_triggers.told_key("t", None) is None


def test_options_of_the_job():
    options = trigger(environment="prod", final_vars=["x"], on="$user.where", inputs={})
    user = (("where", "agent:pi-7"),)
    found = wanted("t", options, told(user_properties=user))
    expected = {"inputs": {}, "environment": "prod", "final_vars": ["x"], "on": "agent:pi-7"}
    assert (found.pipeline, found.options) == ("flow", expected)
    request = wire.run_request(b'{"inputs":{"a":1},"target":"any:*","final_vars":["x"],"key":"k"}')
    asked = topic_triggers.requested("etl", request, told())
    expected = {"inputs": {"a": 1}, "on": "any:*", "final_vars": ["x"], "key": "run:k"}
    assert (asked.pipeline, asked.options, asked.unique) == ("etl", expected, True)


def test_any_message_becomes_a_job_or_is_refused(make_project):
    """Whatever stands in it: never anything but a row, or an error that says why there is none."""
    project = make_project(flow="def out(x: int = 0) -> int:\n    return x\n")
    chance = seeded()
    sources = ["$payload", "$payload.a", "$payload.a.b.0", "$topic.1", "$user.x", "plain", None]
    bodies = [b'{"a":{"b":[1,2]}}', b'"x"', b"[" * 90 + b"]" * 90, b"9" * 300, b'{"a":"\\u0000"}']
    bodies += [msgspec.msgpack.encode(msgspec.json.decode(b)) for b in bodies[:3]]
    bodies += [b"\x81\x91\x01\x02", b"\xd4\x05\x00", b"\xd6\xff\xff\xff\xff\xff", b"", b"\xff"]
    made = refused = 0
    for _ in range(scale(20_000)):
        given_ = trigger(
            payload=chance.choice(["json", "msgpack", "text", "bytes"]),
            inputs=chance.choice([None, {"x": chance.choice(sources)}]),
            key=chance.choice(sources),
            on=chance.choice([None, "any:*", "$payload", "$user.x"]),
        )
        message = told(garbled(chance, chance.choice(bodies)), user_properties=(("x", "agent:pi"),))
        try:
            found = wanted("t", given_, message)
            row = orders.job(project.flows, found.pipeline, found.options, 1e9)
        except FlowerPowerError as error:
            assert str(error)
            refused += 1
        else:
            codec.decode(row.inputs)
            assert len(row.key or "") <= 191
            assert "\0" not in f"{row.key}{row.target}"
            made += 1
    assert made
    assert refused


def garbled(chance: random.Random, body: bytes) -> bytes:
    if body and chance.random() < 0.3:
        at = chance.randrange(len(body))
        return body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :]
    return body


# Rates ------------------------------------------------------------------------------------------


def allowed(rate, *times):
    return [rate.allows(now) for now in times]


def test_a_rate_has_a_burst_and_then_its_pace():
    rate = Rate(2.0)
    assert allowed(rate, 100.0, 100.0, 100.0, 100.4) == [True, True, False, False]
    assert allowed(rate, 100.5, 100.5, 101.0, 101.0) == [True, False, True, False]
    assert allowed(rate, 1000.0, 1000.0, 1000.0) == [True, True, False], "no more for a long wait"


def test_a_rate_below_one_a_second():
    rate = Rate(0.1)
    assert allowed(rate, 0.0, 5.0, 9.9, 10.1, 19.0, 20.2) == [True, False, False, True, False, True]


@given(st.floats(0.01, 1000), st.lists(st.floats(0, 5), max_size=200))
def test_no_more_than_the_rate(per_second, pauses):
    rate, now, taken = Rate(per_second), 0.0, 0
    for pause in pauses:
        now += pause
        taken += rate.allows(now)
    assert taken <= max(per_second, 1.0) + now * per_second + 1e-6


def test_a_rate_looks_at_the_clock_by_itself():
    rate = Rate(1.0)
    assert (rate.allows(), rate.allows()) == (True, False)


# Filters over each other ------------------------------------------------------------------------

LEVEL = st.sampled_from(["a", "b", "", "$x"])
FILTER = st.lists(LEVEL | st.just("+"), min_size=1, max_size=3).flatmap(
    lambda levels: st.sampled_from(["/".join(levels), "/".join([*levels, "#"]), "#"])
)


@given(FILTER, FILTER, st.lists(LEVEL, min_size=1, max_size=4).map("/".join))
@example("a/#", "a", "a")
@example("+/#", "#", "$x/a")
@example("#", "$x/#", "$x/a")
def test_a_filter_that_covers_another_means_all_of_its_topics(wider, narrower, topic):
    if covers(wider, narrower) and matches(narrower, topic):
        assert matches(wider, topic)


def test_of_copies_each_trigger_hears_its_own():
    filters = Filters(["a/+", "+/b", "a/b", "c/#"])
    left, right, below = (filters.numbers[each] for each in ("a/+", "+/b", "c/#"))
    assert len({left, right, below, *filters.numbers.values()}) == 3, "a/b is covered by a/+"
    for topic, number in (("a/+", left), ("+/b", right), ("a/b", left)):
        other = right if number == left else left
        assert filters.mean(topic, "a/b", [number])
        assert not filters.mean(topic, "a/b", [other]), "the copy of another subscription"
        assert filters.mean(topic, "a/b", [left, right]), "one message for both"
        assert filters.mean(topic, "a/b", []), "the broker does not tell"
        assert filters.mean(topic, "a/b", [12345]), "kept since before a change of the triggers"
        assert not filters.mean(topic, "c/d", [below])
    assert Filters(["+/b", "a/+"]).numbers == {"+/b": right, "a/+": left}, "by the filter alone"


@given(st.lists(FILTER, max_size=6), st.lists(LEVEL, min_size=1, max_size=4).map("/".join))
def test_the_widest_filters_mean_the_same_topics(filters, topic):
    kept = widest(filters)
    assert any(matches(f, topic) for f in kept) == any(matches(f, topic) for f in filters)
    assert not any(a != b and covers(a, b) for a in kept for b in kept)


# What is wrong in a file ------------------------------------------------------------------------

TOPICS = Topics()


@pytest.mark.parametrize(
    ("options", "key", "text"),
    [
        ({"topic": ""}, "topic", "is no topic filter: \\+ stands for a level, # for the rest"),
        ({"topic": "a/#/b"}, "topic", "is no topic filter"),
        ({"topic": "a+"}, "topic", "is no topic filter"),
        ({"topic": "a/b#"}, "topic", "is no topic filter"),
        ({"topic": "a\0"}, "topic", "is no topic filter"),
        ({"topic": "x" * 65_536}, "topic", "is no topic filter"),
        ({"topic": "$share/g/a"}, "topic", "shared subscriptions lose messages"),
        ({"topic": "fp/v1/main/run/+/outcome"}, "topic", "below fp/v1/ triggers nothing"),
        ({"payload": "text"}, "payload", "say `inputs: {x: \\$payload}`"),
        ({"payload": "bytes"}, "payload", "say `inputs: {x: \\$payload}`"),
        ({"inputs": {"x": "$paylod.a"}}, "inputs.x", "did you mean '\\$payload'"),
        ({"inputs": {"x": "$"}}, "inputs.x", "no part of a message"),
        ({"inputs": {"x": "$topic.a"}}, "inputs.x", "a level of the topic is a number"),
        ({"inputs": {"x": "$topic."}}, "inputs.x", "a level of the topic is a number"),
        ({"inputs": {"x": "$topic.-1"}}, "inputs.x", "a level of the topic is a number"),
        ({"inputs": {"x": "$payload."}}, "inputs.x", "a name is missing"),
        ({"inputs": {"x": "$payload.a..b"}}, "inputs.x", "a name is missing"),
        ({"key": "$user"}, "key", "say which user property"),
        ({"key": "$user."}, "key", "say which user property"),
        ({"on": "$agent"}, "on", "no part of a message"),
    ],
)
def test_problems_of_a_trigger(options, key, text):
    ((found, said),) = problems(trigger(**options), TOPICS)
    assert found == key
    assert re.search(text, said), said


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"topic": "#"},
        {"topic": "+/+/#"},
        {"topic": "/"},
        {"topic": "$SYS/broker/uptime"},
        {
            "payload": "text",
            "inputs": {"x": "$payload", "y": 1, "z": "$topic.12", "w": "$user.a.b"},
        },
        {"key": "$payload.a.0", "on": "any:*"},
        {"key": "order"},
    ],
)
def test_no_problems(options):
    assert list(problems(trigger(**options), TOPICS)) == []


FLOW = "def out(x: int = 0) -> int:\n    return x\n"
CONF = "run:\n  flow:\n    prod:\n      inputs: {x: 1}\n"
OK = "triggers:\n  doors:\n    topic: doors/+\n    pipeline: flow\n"
MISTAKES = {
    "an unknown key": ("brokr: {}\n", "conf/mqtt.yml:1: brokr: unknown key; did you mean 'broker'"),
    "an unknown key of a trigger": (
        OK + "    paylod: text\n",
        "conf/mqtt.yml:5: triggers.doors.paylod: unknown key; did you mean 'payload'",
    ),
    "an unknown kind": (
        OK + "    payload: xml\n",
        "conf/mqtt.yml:5: triggers.doors.payload: unknown value 'xml'",
    ),
    "a rate of nothing": (OK + "    rate: 0\n", "conf/mqtt.yml:5: triggers.doors.rate: expected"),
    "an unknown override": (
        "run:\n  flow: {overrides: [input]}\n",
        "conf/mqtt.yml:2: run.flow.overrides.0: unknown value 'input'; did you mean 'inputs'",
    ),
    "no topic": (
        "triggers:\n  doors:\n    pipeline: flow\n",
        "conf/mqtt.yml:2: triggers.doors: the key 'topic' is missing",
    ),
    "a bad filter": (
        "triggers:\n  doors:\n    pipeline: flow\n    topic: a/#/b\n",
        "conf/mqtt.yml:4: triggers.doors.topic: 'a/#/b' is no topic filter",
    ),
    "a topic of ours": (
        "prefix: x/y\ntriggers:\n  doors:\n    pipeline: flow\n    topic: x/y/main/#\n",
        "conf/mqtt.yml:5: triggers.doors.topic: 'x/y/main/#': what is said below x/y/ triggers",
    ),
    "a bad source": (
        OK + "    inputs:\n      x: $paylod.a\n",
        "conf/mqtt.yml:6: triggers.doors.inputs.x: $paylod.a: no part of a message; did you mean",
    ),
    "an unknown pipeline": (
        "triggers:\n  doors:\n    topic: doors/+\n    pipeline: flwo\n",
        "conf/mqtt.yml:4: triggers.doors.pipeline: there is no pipeline 'flwo'; did you mean 'flow'",
    ),
    "an unknown environment": (
        OK + "    environment: prd\n",
        "conf/mqtt.yml:5: triggers.doors.environment: unknown environment 'prd'",
    ),
    "a target that is none": (
        OK + "    on: pi-7\n",
        "conf/mqtt.yml:5: triggers.doors.on: on: 'pi-7' is no target; did you mean 'agent:pi-7'",
    ),
    "a name of a trigger": (
        "triggers:\n  my doors: {topic: a, pipeline: flow}\n",
        "conf/mqtt.yml:2: triggers.my doors: the name of a trigger, 'my doors': use letters",
    ),
    "an unknown pipeline to run": (
        "run:\n  flwo: {}\n",
        "conf/mqtt.yml:2: run.flwo: there is no pipeline 'flwo'; did you mean 'flow'",
    ),
    "a target of run": (
        "run:\n  flow: {on: 'some:x'}\n",
        "conf/mqtt.yml:2: run.flow.on: on: 'some",
    ),
    "a group as a target": (
        OK + "    on: 'all:*'\n",
        "conf/mqtt.yml:5: triggers.doors.on: 'all:*' would be a job for each agent",
    ),
    "a pattern that matches no target": (
        "run:\n  flow: {targets: ['agnt:*']}\n",
        "conf/mqtt.yml:2: run.flow.targets: 'agnt:*' matches no target",
    ),
    "an input that nobody reads": (
        OK + "    inputs:\n      valeu: $payload\n",
        "conf/mqtt.yml:6: triggers.doors.inputs.valeu: no node of 'flow' reads this input",
    ),
    "an unknown final variable": (
        OK + "    final_vars: [nope]\n",
        "conf/mqtt.yml:5: triggers.doors.final_vars: there is no node 'nope'",
    ),
    "a site": ("site: a/b\n", "conf/mqtt.yml:1: site: site 'a/b': use letters"),
    "a prefix": ("prefix: /fp\n", "conf/mqtt.yml:1: prefix: prefix '/fp': write levels"),
    "an address": (
        "broker:\n  uri: http://x\n",
        "conf/mqtt.yml:1: broker: ",
    ),
}


def with_mqtt(make_project, text):
    project = make_project(CONF, flow=FLOW)
    (project.root / "conf" / "mqtt.yml").write_text(text)
    return project


@pytest.mark.parametrize(("text", "said"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_mqtt_yml_are_named_with_their_line(make_project, text, said, caplog):
    """A gateway serves what is right: it leaves such an entry out, or does not begin. What only the
    pipeline's code can tell is for `check`.
    """
    project = with_mqtt(make_project, text)
    (found,) = [problem.message for problem in checking.check(project).errors]
    assert found.startswith(said)
    try:
        served = gateway_serving.serving(project.flows)
        gateway_serving.address(project.flows, served) if served.broker else None
    except ConfigError as error:
        assert str(error) == found
    else:
        of_the_code = "reads this input" in found or "there is no node" in found
        assert (found in caplog.text) is not of_the_code


def test_check_tells_all_mistakes_of_the_file(make_project):
    text = "site: a/b\n" + OK + "    on: pi-7\n    key: $user\nrun: {flwo: {}}\n"
    found = checking.check(with_mqtt(make_project, text)).errors
    assert sorted(problem.message.split(":")[1] for problem in found) == ["1", "6", "7", "8"]


def test_a_file_without_mistakes(make_project):
    text = (
        "broker: {uri: 'mqtt://localhost'}\nsite: berlin-2\nprefix: plant/fp\n"
        "gateway: {away_after: 10}\nrun:\n  flow:\ntriggers:\n"
        "  doors: {topic: doors/#, pipeline: flow, environment: prod, on: 'any:*', key: $payload.n,\n"
        "          rate: 5, retained: run, final_vars: [out], payload: msgpack}\n"
    )
    project = with_mqtt(make_project, text)
    assert checking.check(project).errors == []
    file = gateway_serving.serving(project.flows)
    assert file.run == {"flow": None}
    assert file.triggers["doors"].rate == 5
    assert Runnable().overrides == ["inputs", "key"]


def test_g6_a_running_gateway_reads_its_file_again(make_project, caplog):
    caplog.set_level("INFO")
    project = with_mqtt(make_project, "broker: {uri: 'mqtt://a'}\n" + OK)
    path = project.root / "conf" / "mqtt.yml"

    def say(text):
        path.write_text(text)
        found = reader()
        assert reader() is None, "once"
        said, caplog.records[:] = [r.message for r in caplog.records], []
        return found, "\n".join(said)

    with project.flows.files.kept():
        before = gateway_serving.serving(project.flows)
        reader = gateway_serving.Reader(project.flows, before)
        assert reader() is None
        more = "  new: {topic: new, pipeline: flow}\n"
        found, said = say("broker: {uri: 'mqtt://b'}\n" + OK + more)
        assert set(found.triggers) == {*before.triggers, "new"}
        assert found.broker == before.broker
        assert "conf/mqtt.yml: broker: counts from the next start" in said
        found, said = say("broker: {uri: 'mqtt://b'}\n" + OK + "  new: {topic: a+}\n")
        assert found is None, "a broken entry means what it meant"
        assert said.startswith("not taken: conf/mqtt.yml:")
        found, said = say("broker: [")
        assert found is None
        assert said.count("going on with what conf/mqtt.yml said before") == 1
        found, said = say("site: a/b\n" + OK)
        assert found is None
        assert said.count("going on with what conf/mqtt.yml said before") == 1
        found, said = say("broker: {uri: 'mqtt://a'}\n" + OK)
        assert found.triggers == before.triggers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("triggers:\n  a: {topic: a+, pipeline: p}\n", ":2: triggers.a.topic: 'a+' is no topic"),
        (
            "triggers:\n  a:\n    topic: a\n    pipeline: p\n    key: $usr.x\n",
            ":5: triggers.a.key: ",
        ),
        ("triggers:\n  a: {topic: fp/v1/#, pipeline: p}\n", ":2: triggers.a.topic: 'fp/v1/#'"),
        ("prefix: fp//x\n", "prefix 'fp//x': write levels"),
        ("slots: 0\n", ":1: slots: expected int >= 1"),
        ("windw: 5\n", ":1: windw: unknown key; did you mean 'window'"),
        ("window: 501\n", ":1: window: expected int <= 500"),
        ("tags: [a]\n", ":1: tags: expected"),
        ("name: a/b\n", "name 'a/b': use letters"),
        ("site: '#'\n", "site '#': use letters"),
        ("log_level: loud\n", ":1: log_level: unknown value 'loud'"),
    ],
)
def test_mistakes_in_agent_yml(tmp_path, text, said):
    path = tmp_path / "agent.yml"
    path.write_text(text)
    with pytest.raises(FlowerPowerError) as raised:
        agent_config.read(path, {}, {})
    assert said in str(raised.value)
    assert str(raised.value).startswith((str(path), said))


def test_flags_stand_over_the_environment_over_the_file(tmp_path):
    path = tmp_path / "agent.yml"
    path.write_text("name: file\nslots: 2\nwindow: 9\nsite:\ntags: {a: '1'}\nproject: here\n")
    env = {"FP_AGENT_SLOTS": "3", "FP_AGENT_WINDOW": "8", "FP_AGENT_TAGS": "b=2, c=3"}
    settings = agent_config.read(path, {"window": 7, "site": None}, env)
    assert (settings.name, settings.slots, settings.window) == ("file", 3, 7)
    assert settings.tags == {"b": "2", "c": "3"}
    assert settings.site == "main", "null is not given"
    assert settings.project == str(tmp_path / "here")
    assert settings.store == str(tmp_path / "here" / "fp-agent.db")
    assert agent_config.read(None, {"name": "x", "slots": 20}, {}).credit == 40
    assert agent_config.read(None, {"name": "x", "tags": ("a=1", "b=x=y")}, {}).tags["b"] == "x=y"


@pytest.mark.parametrize(
    ("flags", "env", "said"),
    [
        ({"slots": "many"}, {}, "--slots many: expected int, got str"),
        ({}, {"FP_AGENT_KEEPALIVE": "1"}, "FP_AGENT_KEEPALIVE 1: expected int >= 5"),
        ({"tags": ("site",)}, {}, "--tag site: write name=value"),
        ({}, {"FP_AGENT_TAGS": "=x"}, "FP_AGENT_TAGS =x: write name=value"),
        ({"name": "ä"}, {}, "name 'ä'"),
    ],
)
def test_mistakes_in_flags_and_the_environment(flags, env, said):
    with pytest.raises(FlowerPowerError) as raised:
        agent_config.read(None, {"name": "pi", **flags}, env)
    assert said in str(raised.value)


def test_g15_a_place_is_said_once():
    mistake = "conf/mqtt.yml:3: broker.user: unknown key"
    assert checks.told("conf/mqtt.yml: broker", mistake) == mistake
    assert checks.told("conf/mqtt.yml", mistake) == mistake
    assert checks.told("run.a.dev", "conf/x.yml:1: y") == "run.a.dev: conf/x.yml:1: y"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "broker: {uri: 'mqtt://h', ca_file: x}",
            "conf/mqtt.yml:1: broker.ca_file: ca_file is for",
        ),
        ("broker: {uri: 'h:1'}", "conf/mqtt.yml:1: broker: .*'h:1' has no scheme"),
        ("broker: {uri: 'mqtt://h:x'}", "conf/mqtt.yml:1: broker: the port is a number"),
        ("broker: {password: %s}" % ("x" * 70_000), "broker.password: password is longer than"),
    ],
)
def test_g1_what_is_wrong_with_a_broker_names_its_key(make_project, text, said):
    project = with_mqtt(make_project, text)
    with pytest.raises(ConfigError, match=said):
        gateway_serving.address(project.flows, gateway_serving.serving(project.flows))


def test_g1_a_wrong_variable_is_named_and_not_the_file(make_project, monkeypatch):
    project = with_mqtt(make_project, "")
    monkeypatch.setenv("FLOWERPOWER_BROKER", "localhost:1")
    with pytest.raises(ConfigError, match="^FLOWERPOWER_BROKER: .*has no scheme"):
        gateway_serving.address(project.flows, gateway_serving.serving(project.flows))


@pytest.mark.parametrize("url", ["http://[", "http://h:x", "http://", "http://h:99999"])
def test_g1_an_address_of_the_tracker_that_cannot_be_one_is_named(make_project, url):
    project = make_project(CONF, flow=FLOW)
    text = f"username: u\napi_url: '{url}'\npipeline: {{flow: {{project_id: 1}}}}\n"
    (project.root / "conf" / "tracker.yml").write_text(text)
    with pytest.raises(ConfigError, match=r"conf/tracker\.yml:2: api_url: "):
        tracked_places.place(project.root, "flow")
