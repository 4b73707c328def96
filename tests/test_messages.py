"""What gateway and agents say to each other: exact bytes, limits, and what is refused of it."""

from __future__ import annotations

import base64
import json
import random
import string
import time
from datetime import UTC, datetime

import msgspec
import pytest
from fleet import scale, seeded
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from fp_async import codec, hearing, jobs, messages, rules, topic_triggers, wire
from fp_async.config import Retry
from fp_async.errors import MessageError, UsageError
from fp_async.jobs import Chunk, Failure, Job, NodeTiming, Record, Spec
from fp_async.messages import (
    Accepted,
    Acknowledge,
    AgentState,
    AskSync,
    CancelJob,
    DeleteSchedule,
    Finished,
    GatewayState,
    Heartbeat,
    JobOutcome,
    JobQueued,
    Malformed,
    Missing,
    Origin,
    Ping,
    Pong,
    Progress,
    PutSchedule,
    Refused,
    Rejected,
    ResultChunk,
    Rules,
    RunJob,
    RunRequest,
    ScheduleState,
    Slow,
    Started,
    Sync,
)
from fp_async.topics import Topics, checked_name, checked_prefix, matches

ID = "01926f3a-1111-7000-8000-000000000001"
EMPTY = Raw(b'{"v":1,"plain":{}}')

# The exact bytes of each body: old agents and gateways read and write these --------------------

DO = {
    "RunJob, the least": (
        RunJob(id=ID, attempt=1, pipeline="etl", inputs=EMPTY),
        b'{"type":"RunJob","id":"%s","attempt":1,"pipeline":"etl","inputs":{"v":1,"plain":{}},"v":1}',
    ),
    "RunJob, all of it": (
        RunJob(
            id=ID,
            attempt=2,
            pipeline="etl",
            inputs=Raw(b'"iVBORw=="'),
            spec=Rules(
                final_vars=["a"],
                config={"k": 1},
                environment="prod",
                timeout=5.0,
                retry=messages.Again(max_attempts=2, on=["OSError"]),
                on_crash="fail",
                max_crashes=1,
                version="0123456789abcdef",
                require_version=True,
            ),
            priority=-3,
            expires_in=1.5,
            result_ttl=60.0,
        ),
        (
            b'{"type":"RunJob","id":"%s","attempt":2,"pipeline":"etl","inputs":"iVBORw==",'
            b'"spec":{"final_vars":["a"],"config":{"k":1},"environment":"prod","timeout":5.0,'
            b'"retry":{"max_attempts":2,"backoff":1.0,"max_backoff":60.0,"jitter":0.1,"on":["OSError"]},'
            b'"on_crash":"fail","max_crashes":1,"version":"0123456789abcdef","require_version":true},'
            b'"priority":-3,"expires_in":1.5,"result_ttl":60.0,"v":1}'
        ),
    ),
    "CancelJob": (
        CancelJob(id=ID, attempt=1, reason="enough"),
        b'{"type":"CancelJob","id":"%s","attempt":1,"reason":"enough","v":1}',
    ),
    "Acknowledge": (Acknowledge(ids=[ID]), b'{"type":"Acknowledge","ids":["%s"],"v":1}'),
    "Missing": (
        Missing(id=ID, attempt=1, chunks=[0, 255]),
        b'{"type":"Missing","id":"%s","attempt":1,"chunks":[0,255],"v":1}',
    ),
    "Slow": (
        Slow(seconds=2.5, ids=[ID], reason="no room"),
        b'{"type":"Slow","seconds":2.5,"ids":["%s"],"reason":"no room","v":1}',
    ),
    "PutSchedule": (
        PutSchedule(
            id="tick",
            revision=3,
            pipeline="etl",
            trigger=Raw(b'{"type":"interval","seconds":1.0,"start":0.0}'),
            policy=Raw(b"{}"),
            template=Raw(b"{}"),
            paused=True,
        ),
        (
            b'{"type":"PutSchedule","id":"tick","revision":3,"pipeline":"etl","trigger":'
            b'{"type":"interval","seconds":1.0,"start":0.0},"policy":{},"template":{},"paused":true,"v":1}'
        ),
    ),
    "DeleteSchedule": (
        DeleteSchedule(id="tick", revision=3),
        b'{"type":"DeleteSchedule","id":"tick","revision":3,"v":1}',
    ),
    "AskSync": (AskSync(), b'{"type":"AskSync","v":1}'),
    "Ping": (Ping(nonce="n"), b'{"type":"Ping","nonce":"n","v":1}'),
    "Pong": (Pong(nonce="n", clock=2.5), b'{"type":"Pong","nonce":"n","clock":2.5,"v":1}'),
}
REPORTS = {
    "Accepted": (Accepted(id=ID, attempt=1), b'{"type":"Accepted","id":"%s","attempt":1,"v":1}'),
    "Rejected": (
        Rejected(id=ID, attempt=1, reason="full", retry_after=60.0),
        b'{"type":"Rejected","id":"%s","attempt":1,"reason":"full","retry_after":60.0,"v":1}',
    ),
    "Started": (
        Started(id=ID, attempt=1, at=10.0, sent_at=11.0),
        b'{"type":"Started","id":"%s","attempt":1,"at":10.0,"sent_at":11.0,"v":1}',
    ),
    "Finished, the least": (
        Finished(id=ID, attempt=1, outcome="cancelled", ended_at=2.0, sent_at=3.0),
        (
            b'{"type":"Finished","id":"%s","attempt":1,"outcome":"cancelled","ended_at":2.0,'
            b'"sent_at":3.0,"v":1}'
        ),
    ),
    "Finished, all of it": (
        Finished(
            id=ID,
            attempt=1,
            outcome="failed",
            ended_at=2.0,
            sent_at=3.0,
            started_at=1.0,
            reason="why",
            result=Raw(b'{"v":1,"plain":{"a":1}}'),
            chunks=2,
            sha256="00ff",
            dropped=True,
            error=Failure("KeyError", "'x'", "line 1", ["KeyError", "LookupError"]),
            record=Record(
                [NodeTiming("a", "failed", 0.5, "KeyError: 'x'")], "log", "w", ["w"], 9.5
            ),
            tries=3,
            errors=2,
            crashes=1,
            origin=Origin(
                "etl", 0.5, EMPTY, Rules(environment="prod"), "tick", 0.25, "doors", 60.0
            ),
        ),
        (
            b'{"type":"Finished","id":"%s","attempt":1,"outcome":"failed","ended_at":2.0,'
            b'"sent_at":3.0,"started_at":1.0,"reason":"why","result":{"v":1,"plain":{"a":1}},"chunks":2,'
            b'"sha256":"00ff","dropped":true,"error":{"kind":"KeyError","message":"\'x\'","traceback":'
            b'"line 1","kinds":["KeyError","LookupError"]},"record":{"nodes":[{"node":"a","status":'
            b'"failed","seconds":0.5,"error":"KeyError: \'x\'"}],"log":"log","worker":"w","warnings":["w"],'
            b'"late":9.5},"tries":3,"errors":2,"crashes":1,"origin":{"pipeline":"etl","created_at":0.5,'
            b'"inputs":{"v":1,"plain":{}},"spec":{"environment":"prod"},"schedule_id":"tick",'
            b'"nominal_at":0.25,"trigger":"doors","result_ttl":60.0},"v":1}'
        ),
    ),
    "ResultChunk": (
        ResultChunk(id=ID, attempt=1, index=0, data="AAEC"),
        b'{"type":"ResultChunk","id":"%s","attempt":1,"index":0,"data":"AAEC","v":1}',
    ),
    "ScheduleState": (
        ScheduleState(id="tick", revision=3, error="no", gone=True, next_fire_time=7.0),
        (
            b'{"type":"ScheduleState","id":"tick","revision":3,"error":"no","gone":true,'
            b'"next_fire_time":7.0,"v":1}'
        ),
    ),
    "Sync": (
        Sync(page=0, pages=1, jobs=[(ID, 1, "running")], schedules={"tick": 3}),
        (
            b'{"type":"Sync","page":0,"pages":1,"jobs":[["%s",1,"running"]],'
            b'"schedules":{"tick":3},"v":1}'
        ),
    ),
    "Progress": (
        Progress(id=ID, attempt=1, nodes=[NodeTiming("a", "succeeded", 0.5)], log="hello"),
        (
            b'{"type":"Progress","id":"%s","attempt":1,"nodes":[{"node":"a","status":"succeeded",'
            b'"seconds":0.5}],"log":"hello","v":1}'
        ),
    ),
    "Heartbeat": (
        Heartbeat(free=2, clock=1.5, disk_free=2**40, outbox=3, clock_steps=1),
        (
            b'{"type":"Heartbeat","free":2,"clock":1.5,"disk_free":1099511627776,"outbox":3,'
            b'"clock_steps":1,"v":1}'
        ),
    ),
    "Ping": (Ping(nonce="n"), b'{"type":"Ping","nonce":"n","v":1}'),
    "Pong": (Pong(nonce="n", clock=2.5), b'{"type":"Pong","nonce":"n","clock":2.5,"v":1}'),
    "Malformed": (
        Malformed(reason="what?", count=7),
        b'{"type":"Malformed","reason":"what?","count":7,"v":1}',
    ),
}
STATES = {
    "AgentState": (
        AgentState(
            status="ready",
            store="s",
            starts=2,
            n=5,
            boot="b",
            version="1.0",
            tags={"site": "berlin"},
            pipelines={"etl": "0123456789abcdef"},
            slots=4,
            window=8,
            clock=1.5,
        ),
        (
            b'{"type":"AgentState","status":"ready","store":"s","starts":2,"n":5,"boot":"b",'
            b'"version":"1.0","tags":{"site":"berlin"},"pipelines":{"etl":"0123456789abcdef"},"slots":4,'
            b'"window":8,"clock":1.5,"v":1}'
        ),
        wire.agent_state,
    ),
    "GatewayState": (
        GatewayState(online=True, owner="g", clock=1.5),
        b'{"type":"GatewayState","online":true,"owner":"g","clock":1.5,"v":1}',
        wire.gateway_state,
    ),
}
TOLD = {
    "JobQueued": (
        JobQueued(id=ID, pipeline="etl"),
        b'{"type":"JobQueued","id":"%s","pipeline":"etl","v":1}',
    ),
    "JobOutcome": (
        JobOutcome(id=ID, pipeline="etl", outcome="succeeded", result=Raw(b'{"a":1}'), agent="pi"),
        (
            b'{"type":"JobOutcome","id":"%s","pipeline":"etl","outcome":"succeeded",'
            b'"result":{"a":1},"agent":"pi","v":1}'
        ),
    ),
    "Refused": (Refused(reason="no"), b'{"type":"Refused","reason":"no","v":1}'),
}


def with_id(data):
    return data.replace(b"%s", ID.encode())


@pytest.mark.parametrize(("said", "data"), DO.values(), ids=DO)
def test_the_bytes_of_what_gateways_ask(said, data):
    assert wire.encode(said) == with_id(data)
    assert wire.do(with_id(data)) == said


@pytest.mark.parametrize(("said", "data"), REPORTS.values(), ids=REPORTS)
def test_the_bytes_of_what_agents_tell(said, data):
    assert wire.encode(said) == with_id(data)
    assert wire.reports(with_id(data)) == [said]
    together = b'{"type":"Reports","v":1,"reports":[%b,%b]}' % (with_id(data), with_id(data))
    assert wire.reports(together) == [said, said]


@pytest.mark.parametrize(("said", "data", "read"), STATES.values(), ids=STATES)
def test_the_bytes_of_presence(said, data, read):
    assert wire.encode(said) == data
    assert read(data) == said


@pytest.mark.parametrize(("said", "data"), TOLD.values(), ids=TOLD)
def test_the_bytes_of_what_everybody_is_told(said, data):
    assert wire.encode(said) == with_id(data)


def test_every_type_of_the_protocol_has_its_bytes_here():
    tested = {type(said) for table in (DO, REPORTS) for said, _ in table.values()}
    assert set(messages.Do.__args__) | set(messages.Report.__args__) == tested


def test_a_request_by_a_person_needs_no_type_and_no_version():
    assert wire.run_request(b"") == wire.run_request(b" \n") == RunRequest()
    data = b'{"inputs":{"a":[1,null]},"target":"any:*","final_vars":["x"],"key":"k"}'
    told = RunRequest(inputs={"a": [1, None]}, target="any:*", final_vars=["x"], key="k")
    assert wire.run_request(data) == told


# What is ignored, and what is refused -----------------------------------------------------------


@pytest.mark.parametrize(("said", "data"), [*DO.values()], ids=DO)
def test_fields_of_a_later_version_are_ignored_by_agents(said, data):
    assert wire.do(with_id(data)[:-1] + b',"since":{"v2":[1]}}') == said


@pytest.mark.parametrize(("said", "data"), REPORTS.values(), ids=REPORTS)
def test_fields_of_a_later_version_are_ignored_by_gateways(said, data):
    assert wire.reports(with_id(data)[:-1] + b',"since":{"v2":[1]}}') == [said]


def test_fields_inside_of_bodies_may_be_of_a_later_version_too():
    """Or an agent would refuse all jobs of a gateway that was upgraded before it, for ever."""
    body = (
        b'{"type":"RunJob","id":"a","attempt":1,"pipeline":"p","inputs":{},"spec":{"timeout":2.5,'
        b'"since":1,"retry":{"max_attempts":7,"since":1}}}'
    )
    spec = wire.do(body).spec
    assert (spec.timeout, spec.retry.max_attempts) == (2.5, 7)
    stored = msgspec.json.decode(msgspec.json.encode(spec), type=Spec)
    assert stored == Spec(timeout=2.5, retry=Retry(max_attempts=7))


def test_rules_are_told_as_they_are():
    spec = Spec(
        timeout=2.5,
        params={"f": {"x": 1}},
        retry=Retry(on=["OSError"]),
        on_lost="wait",
        version="v",
    )
    assert msgspec.json.encode(messages.rules(spec)) == msgspec.json.encode(spec)
    assert hearing.plain(spec) == messages.rules(msgspec.structs.replace(spec, on_lost=None))


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (wire.do, b'{"type":"AskSync","v":2}'),
        (wire.do, b'{"v":2,"type":"RunJob","id":7}'),
        (wire.do, b'{"type":"AskSync","v":0}'),
        (wire.reports, b'{"type":"Accepted","v":2,"id":"a","attempt":1}'),
        (wire.reports, b'{"type":"Reports","v":2,"reports":[{"type":"Ping","nonce":"n"}]}'),
        (wire.agent_state, b'{"type":"AgentState","v":2,"status":"ready"}'),
        (wire.gateway_state, b'{"type":"GatewayState","v":2}'),
    ],
)
def test_other_versions_are_refused(read, data):
    with pytest.raises(
        MessageError, match=r"version [02] of the protocol, and this program knows 1"
    ):
        read(data)


def test_a_version_that_is_none_is_refused():
    with pytest.raises(MessageError, match="version"):
        wire.do(b'{"type":"AskSync","v":"one"}')


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"inpts":{}}', "inpts: unknown key; did you mean 'inputs'"),
        (b'{"enviroment":"prod"}', "did you mean 'environment'"),
        (b'{"zzz":1}', "zzz: unknown key; valid: inputs, target, final_vars, environment, key"),
        (b'{"inputs":5}', "inputs: expected a mapping, got int"),
        (b"[]", "expected a mapping, got a list"),
        (b"{", "truncated"),
        (b"{'key': 1}", "not valid JSON: malformed at line 1, column 2"),
        (b"\xff", "not valid JSON: no UTF-8 at byte 0"),
        (b'{"key":"\xff"}', "no UTF-8 at byte 8"),
        (b'{"inputs":{"x":' + b"[" * 120_000 + b"]" * 120_000 + b"}}", "nested too deeply"),
    ],
)
def test_requests_of_people_are_refused_with_the_nearest_name(data, text):
    with pytest.raises(MessageError, match=text):
        wire.run_request(data)


READERS = [wire.do, wire.reports, wire.agent_state, wire.gateway_state, wire.run_request]


@pytest.mark.parametrize("read", READERS)
def test_the_size_is_looked_at_before_anything_else(read):
    data = b'{"type":"AskSync","x":"' + b"a" * 300_000 + b'"}'
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        with pytest.raises(MessageError, match=r"300,025 bytes are too many: 262,144 is the limit"):
            read(data)
        seconds.append(time.perf_counter() - began)
    decoding = time.perf_counter()
    json.loads(data)
    assert min(seconds) < time.perf_counter() - decoding, "longer than it takes to decode it"


ODD = {
    "an id with NUL": ("id", '"a\\u0000"'),
    "an empty id": ("id", '""'),
    "a long id": ("id", '"' + "a" * 65 + '"'),
    "an id with a line feed": ("id", '"a\\n"'),
    "an id of other letters": ("id", '"jób"'),
    "an attempt below 0": ("attempt", "-1"),
    "an attempt that no database holds": ("attempt", str(2**31)),
    "an attempt of 30 digits": ("attempt", "9" * 30),
    "an attempt that is a fraction": ("attempt", "1.5"),
    "a time that is not finite": ("ended_at", "1e999"),
    "a time of another universe": ("ended_at", "1e12"),
    "too many chunks": ("chunks", "1000000000"),
    "a negative number of chunks": ("chunks", "-1"),
    "errors below 0": ("errors", "-1"),
    "an outcome that is none": ("outcome", '"maybe"'),
    "a pipeline with NUL": ("origin.pipeline", '"a\\u0000"'),
    "a long pipeline": ("origin.pipeline", '"' + "a" * 192 + '"'),
    "a result ttl below 0": ("origin.result_ttl", "-1"),
}


@pytest.mark.parametrize(("field", "value"), ODD.values(), ids=ODD)
def test_what_no_store_can_hold_is_refused(field, value):
    body = {"type": "Finished", "id": "a", "attempt": 1, "outcome": "failed"}
    body |= {"ended_at": 1, "sent_at": 1, "chunks": 0, "errors": 0}
    body["origin"] = {"pipeline": "p", "created_at": 1, "inputs": {}, "result_ttl": 1}
    place = body
    *path, name = field.split(".")
    for part in path:
        place = place[part]
    place[name] = "HERE"
    (told,) = wire.reports(json.dumps(body).replace('"HERE"', value).encode())
    assert isinstance(told, wire.Unreadable)
    assert told.why.startswith(f"{field}: ") or "1e999 is no finite number" in told.why


def test_one_unreadable_report_spoils_no_other():
    """A newer agent tells something new in the same message as an outcome: that has to count."""
    parts = [
        b'{"type":"Telemetry","since":2}',
        with_id(REPORTS["Finished, the least"][1]),
        b'{"type":"Finished","id":"b","attempt":3,"outcome":"postponed","ended_at":1,"sent_at":1}',
        b"5",
        b'{"type":"Accepted","v":2,"id":"c","attempt":1}',
    ]
    told = wire.reports(b'{"type":"Reports","reports":[' + b",".join(parts) + b"]}")
    assert told[1] == REPORTS["Finished, the least"][0]
    unreadable = [each for each in told if isinstance(each, wire.Unreadable)]
    assert [(each.type, each.id, each.attempt) for each in unreadable] == [
        ("Telemetry", None, 0),
        ("Finished", "b", 3),
        ("", None, 0),
        ("Accepted", "c", 1),
    ]
    assert "Telemetry" in unreadable[0].why
    assert "postponed" in unreadable[1].why
    assert "version 2" in unreadable[3].why


def test_an_outcome_that_cannot_be_read_is_a_failure_that_says_so():
    report = hearing.unreadable("b", 3, "unknown value 'postponed'")
    job = Job(id="b", pipeline="p", state="running", attempt=3, agent="pi")
    row = msgspec.structs.replace(job, **rules.reported(job, report, 9.0))
    assert row.state == "failed"
    assert "could not be read: unknown value 'postponed'" in row.failure.message


# Batches ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 120_000), max_size=12))
@example([65_000, 400, 65_500, 65_536, 1])
@settings(deadline=None, max_examples=50)
def test_batches_keep_the_order_and_their_size(sizes):
    said = [Progress(id=str(n), attempt=1, log="x" * size) for n, size in enumerate(sizes)]
    packed = list(wire.batches(said))
    assert [each for data in packed for each in wire.reports(data)] == said
    for data in packed:
        assert len(data) <= messages.BATCH_BYTES or len(wire.reports(data)) == 1
    for one, two in zip(packed, packed[1:], strict=False):
        first = wire.reports(two)[0]
        joined = list(wire.batches([*wire.reports(one), first]))
        assert len(joined) > 1, "it had room in the message before"


def test_one_report_goes_as_it_is():
    said = Accepted(id="a", attempt=1)
    assert list(wire.batches([said])) == [wire.encode(said)]
    assert list(wire.batches([])) == []


# Values -----------------------------------------------------------------------------------------

VALUES = {
    "plain": {"a": [1, 2.5, None, True, "ü", {"b": {}}]},
    "tagged": {"a": datetime(2026, 1, 31, tzinfo=UTC), "b": {1: (2, 3)}, "c": {4, 5}},
    "small bytes": {"a": b"\x00\xff"},
    "attachments": {"a": bytes(range(256)) * 20, "b": bytes(5000)},
    "empty": {},
    "a key that looks like a tag": {"$": "date"},
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_values_survive_the_wire(value):
    data = codec.encode(value)
    body = Finished(
        id="a", attempt=1, outcome="succeeded", ended_at=1, sent_at=1, result=wire.to_wire(data)
    )
    (told,) = wire.reports(wire.encode(body))
    assert wire.from_wire(told.result) == hearing.value(told) == data
    assert codec.decode(hearing.value(told)) == value
    is_text = data.startswith(b"{")
    assert wire.encode(body).isascii() or is_text
    assert bytes(wire.to_wire(data)).startswith(b"{" if is_text else b'"')


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b'"*"', "no base64"),
        (b'"abc"', "no base64"),
        (b'"YWJj\\n"', "no base64"),
        ('"жжжж"'.encode(), "no base64"),
        (b"5", "not a number"),
        (b"null", "not null"),
        (b"[1]", "not a list"),
        (b"true", "not true"),
        (b'{"v":1,"plain":"\xff"}', "no UTF-8"),
    ],
)
def test_what_is_no_value_is_refused(raw, text):
    with pytest.raises(MessageError, match=text):
        wire.from_wire(Raw(raw))
    body = b'{"type":"Finished","id":"a","attempt":1,"outcome":"succeeded","ended_at":1,"sent_at":1'
    (told,) = wire.reports(body + b',"result":' + raw + b"}")
    with pytest.raises(MessageError, match=text):
        hearing.finished(told, "pi", 1.0, None)


@pytest.mark.parametrize("data", ["***", "жжжж", "abc", "YQ==\n"])
def test_a_chunk_that_is_no_base64_is_refused(data):
    with pytest.raises(MessageError, match="part 3 of a result: no base64"):
        hearing.chunk(ResultChunk(id="a", attempt=1, index=3, data=data), "pi")


def test_a_chunk_is_no_larger_than_it_may_be():
    most = base64.b64encode(bytes(messages.CHUNK_BYTES)).decode()
    body = ResultChunk(id="a", attempt=1, index=255, data=most)
    (told,) = wire.reports(wire.encode(body))
    kept = Chunk(hearing.parts_of("a", "pi"), 1, 255, bytes(messages.CHUNK_BYTES))
    assert hearing.chunk(told, "pi") == kept
    assert hearing.parts_of("a", "pi") != hearing.parts_of("a", "po")
    for wrong in ({"data": most + "AAAA"}, {"index": 256}, {"index": -1}):
        data = wire.encode(msgspec.structs.replace(body, **wrong))
        assert isinstance(wire.reports(data)[0], wire.Unreadable)


# Topics -----------------------------------------------------------------------------------------

TOPICS = Topics("fp/v1", "main")


def test_names_of_topics():
    assert TOPICS.agent("pi-7", "do") == "fp/v1/main/agent/pi-7/do"
    assert TOPICS.agent("+", "report") == "fp/v1/main/agent/+/report"
    assert (TOPICS.gateway, TOPICS.run("etl")) == ("fp/v1/main/gateway/state", "fp/v1/main/run/etl")
    assert TOPICS.outcome("etl") == "fp/v1/main/run/etl/outcome"
    assert TOPICS.job(ID) == f"fp/v1/main/job/{ID}"


@pytest.mark.parametrize(
    ("topic", "parsed"),
    [
        ("fp/v1/main/agent/pi-7/state", ("agent", "pi-7", "state")),
        ("fp/v1/main/", ("",)),
        ("fp/v1/main//x", ("", "x")),
        ("fp/v1/main", None),
        ("fp/v1/mainly/agent", None),
        ("fp/v1/other/agent/pi-7/state", None),
        ("x/fp/v1/main/agent", None),
        ("", None),
    ],
)
def test_topics_are_taken_apart_below_the_root(topic, parsed):
    assert TOPICS.parsed(topic) == parsed


@pytest.mark.parametrize(
    ("topic", "may"),
    [
        ("me/answers", True),
        ("fpx/v1/y", True),
        ("x" * 1024, True),
        ("ü" * 512, True),
        ("", False),
        ("x" * 1025, False),
        ("ü" * 513, False),
        ("fp/v1/main/agent/pi-7/do", False),
        ("fp/v1/other/x", False),
        ("fp/v1", False),
        ("$SYS/x", False),
        ("a/+/b", False),
        ("a/#", False),
        ("a+b", False),
        ("a\0b", False),
    ],
)
def test_where_a_stranger_may_be_answered(topic, may):
    assert TOPICS.may_answer(topic) is may


@pytest.mark.parametrize(
    ("topic", "allowed", "may"),
    [
        ("answers/shop/1", None, True),
        ("fp/v1/main/reply/shop", None, True),
        ("fp/v1/main/reply", None, False),
        ("fp/v1/other/reply/shop", None, False),
        ("doors/1/open", None, False),
        ("answers/shop/1", ["answers/shop/#"], True),
        ("answers/bank/1", ["answers/shop/#"], False),
        ("fp/v1/main/reply/shop", ["answers/shop/#"], False),
        ("fp/v1/main/run/climate", ["#"], False),
    ],
)
def test_e26_a_client_is_answered_where_it_may_be_and_starts_nothing_by_it(topic, allowed, may):
    heard = ["doors/+/open", "fp/v1/main/run/climate"]
    assert topic_triggers.answerable(TOPICS, allowed, heard, topic) is may


@pytest.mark.parametrize("name", ["pi-7", "a", "A.b_c-d", "7", "x" * 64])
def test_names(name):
    assert checked_name("agent", name) == name


@pytest.mark.parametrize(
    "name", ["", "x" * 65, "-a", ".a", "a/b", "a+", "#", "a b", "ä", "a\n", "$a"]
)
def test_what_is_no_name(name):
    with pytest.raises(UsageError, match="use letters, digits, '_', '-', '.', at most 64"):
        checked_name("agent", name)


@pytest.mark.parametrize("prefix", ["fp/v1", "a", "a/b/c/d", "A-b_c.d"])
def test_prefixes(prefix):
    assert checked_prefix(prefix) == prefix


@pytest.mark.parametrize("prefix", ["", "/a", "a/", "a//b", "a/+/b", "#", "$a", "a b", "a\n"])
def test_what_is_no_prefix(prefix):
    with pytest.raises(UsageError, match="as in fp/v1"):
        checked_prefix(prefix)


def by_the_book(wanted, levels):
    """MQTT 5, 4.7, level by level: # is any number of levels, the parent's too; + is one."""
    if not wanted:
        return not levels
    head, *rest = wanted
    if head == "#":
        return True
    return bool(levels) and head in ("+", levels[0]) and by_the_book(rest, levels[1:])


def reference(topic_filter, topic):
    """Wildcards in the first place mean no topic with $."""
    if topic[:1] == "$" and topic_filter[:1] in ("+", "#"):
        return False
    return by_the_book(topic_filter.split("/"), topic.split("/"))


LEVEL = st.sampled_from(["", "a", "b", "ab", "$a", "$SYS"])
FILTERS = st.lists(LEVEL | st.just("+"), min_size=1, max_size=4).flatmap(
    lambda levels: st.sampled_from(["/".join(levels), "/".join([*levels, "#"]), "#"])
)


@given(FILTERS, st.lists(LEVEL, min_size=1, max_size=5).map("/".join))
@example("#", "$SYS/x")
@example("+/x", "$SYS/x")
@example("$SYS/#", "$SYS/x")
@example("a/#", "a")
@example("+/+", "/a")
@example("+", "/a")
@example("a/+", "a/")
@example("a", "$a")
@settings(max_examples=1000)
def test_filters_match_as_the_standard_says(topic_filter, topic):
    assert matches(topic_filter, topic) == reference(topic_filter, topic)


# Anything else ----------------------------------------------------------------------------------

BODIES = [wire.encode(said) for table in (DO, REPORTS) for said, _ in table.values()]
BODIES += [data for _, data, _ in STATES.values()]
BODIES.append(b'{"inputs":{"a":[1,{"b":null}]},"target":"any:*","final_vars":["x"],"key":"k"}')
BODIES.append(b'{"type":"Reports","v":1,"reports":[' + b",".join(BODIES[11:14]) + b"]}")
ODDITIES = [
    *(b"null", b"-1", b"0", b"2147483648", b"9223372036854775808", b"1e308", b"-1e308", b"1e999"),
    *(
        b"9" * 400,
        b"9" * 5000,
        b"NaN",
        b"-Infinity",
        b'""',
        b'"\\u0000"',
        b'"\\ud800"',
        b"[]",
        b"{}",
    ),
    *(
        b"[" * 400 + b"]" * 400,
        b'{"":' * 600 + b"1" + b"}" * 600,
        b"true",
        b'"' + b"x" * 10**5 + b'"',
    ),
    *('"\u202e\U0001f600"'.encode(), b'"\xed\xa0\x80"', b"[null,null]", b"1.5", b"1e-400"),
]


def mutated(chance: random.Random, body: bytes) -> bytes:
    """The body with a few things changed: bytes, values of fields, its length."""
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(body) + 1)
        match chance.randrange(6):
            case 0:
                body = body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :]
            case 1:
                body = body[:at]
            case 2:
                body = body[:at] + body[chance.randrange(len(body) + 1) :]
            case 3:
                body = body[:at] + chance.choice(BODIES) + body[at:]
            case _:
                body = other_value(chance, body)
    return body


def other_value(chance, body):
    """One value that stands behind a name becomes something odd."""
    places = [i for i, byte in enumerate(body) if byte == ord(":")]
    if not places:
        return body
    start = chance.choice(places) + 1
    try:
        _, end = json.JSONDecoder().raw_decode(body[start:].decode("latin-1"))
    except (ValueError, RecursionError):
        return body
    return body[:start] + chance.choice(ODDITIES) + body[start + end :]


def test_mutated_messages_are_refused_or_can_be_stored():
    chance = seeded()
    counts = {"read": 0, "refused": 0}
    slowest, tried = 0.0, b""
    for _ in range(scale(100_000)):
        data = mutated(chance, chance.choice(BODIES))
        for read in READERS:
            began = time.perf_counter()
            try:
                told = read(data)
            except MessageError as error:
                assert str(error), data
                counts["refused"] += 1
            else:
                counts["read"] += 1
                check_told(told)
            if (took := time.perf_counter() - began) > slowest:
                slowest, tried = took, data
    print(counts, f"slowest {1e3 * slowest:.1f} ms for {len(tried):,} bytes: {tried[:80]}")
    assert min(counts.values()) > 0
    assert slowest < 1.0, tried


def check_told(told):
    for each in told if isinstance(told, list) else [told]:
        if isinstance(each, wire.Unreadable):
            assert each.why
        else:
            wire.encode(each)
            check_heard(each)


def check_heard(told):
    """Whatever was read becomes something that every store can hold, or is refused."""
    try:
        match told:
            case Finished(chunks=0, origin=None):
                storable_report(hearing.finished(told, "pi", 1e9, None))
            case Finished(chunks=0):
                storable_job(hearing.adopted(told, "pi", 1e9))
            case Finished():
                whole = hearing.put_together(told, [Chunk(told.id, told.attempt, 0, b"x")])
                assert len(whole) <= messages.RESULT_BYTES // messages.CHUNK_BYTES
            case Started():
                storable_report(hearing.started(told, 1e9))
            case ResultChunk():
                assert len(hearing.chunk(told, "pi").data) <= messages.CHUNK_BYTES
    except MessageError as error:
        assert str(error)


def storable_report(report):
    storable_text(report.id, 64)
    storable_text(report.reason, 500)
    storable_number(report.attempt, report.errors, report.crashes)
    storable_time(report.started_at)
    storable_blob(report.error, report.record, report.result)


def storable_job(job):
    for text in (job.id, job.pipeline, job.target, job.agent, job.schedule_id, job.trigger):
        storable_text(text, 191)
    storable_text(job.reason, 500)
    storable_number(job.attempt, job.errors, job.crashes)
    storable_time(job.created_at, job.run_at, job.started_at, job.ended_at, job.nominal_at)
    storable_time(job.result_ttl)
    storable_blob(job.error, job.record, job.result, job.inputs, job.spec)
    assert isinstance(job.rules, Spec)
    assert rules.adopted(job, 1e9).prune_at < 2e11


def storable_text(text, most):
    if text is not None:
        assert 0 < len(text) <= most
        assert "\0" not in text
        text.encode()


def storable_number(*numbers):
    assert all(number is None or 0 <= number < 2**31 for number in numbers)


def storable_time(*times):
    assert all(at is None or -1e12 < at < 1e12 for at in times)


def storable_blob(*blobs):
    assert all(blob is None or len(blob) <= 2 * messages.PACKET_BYTES for blob in blobs)


TEXTS = st.text(max_size=700) | st.sampled_from(["\0", "a\0b", "\U0001f600" * 300, "x" * 100_000])
TIMES = st.floats(-1e11, 1e11)
COUNTS = st.integers(0, 2**31 - 1)
FAILURES = st.builds(Failure, TEXTS, TEXTS, TEXTS, st.lists(TEXTS, max_size=60))
NODES = st.builds(NodeTiming, TEXTS, TEXTS, st.floats(allow_nan=False, allow_infinity=False), TEXTS)
RECORDS = st.builds(Record, st.lists(NODES, max_size=3), TEXTS, TEXTS, st.lists(TEXTS, max_size=3))
DEEP = Raw(b'{"v":1,"plain":' + b"[" * 800 + b"]" * 800 + b"}")
RAWS = st.sampled_from(
    [EMPTY, DEEP, Raw(b'"AAAA"'), Raw(b'"*"'), Raw(b"null"), Raw(b"[]"), Raw(b"9")]
)
NAMES = st.text(string.printable.translate(dict.fromkeys(range(32))), min_size=1, max_size=191)
ORIGINS = st.builds(
    Origin,
    *(NAMES, TIMES, RAWS),
    spec=st.just(Rules()),
    schedule_id=st.none() | NAMES,
    nominal_at=st.none() | TIMES,
    trigger=st.none() | NAMES,
    result_ttl=st.none() | st.floats(0, 1e11),
)
FINISHED = st.builds(
    Finished,
    id=st.just(ID),
    attempt=COUNTS,
    outcome=st.sampled_from(messages.Outcome.__args__),
    ended_at=TIMES,
    sent_at=TIMES,
    started_at=st.none() | TIMES,
    reason=st.none() | TEXTS,
    result=st.just(msgspec.UNSET) | RAWS,
    dropped=st.booleans(),
    error=st.none() | FAILURES,
    record=st.none() | RECORDS,
    tries=COUNTS,
    errors=COUNTS,
    crashes=COUNTS,
    origin=st.none() | ORIGINS,
)


@given(FINISHED)
@settings(max_examples=scale(2000), deadline=None)
def test_odd_outcomes_can_be_stored(told):
    assume(len(msgspec.json.encode(told)) <= messages.PACKET_BYTES)  # no broker lets more through
    check_heard(told)


def test_the_time_is_the_centers_and_only_distances_are_believed():
    told = Finished(
        id="a", attempt=1, outcome="failed", ended_at=90.0, sent_at=100.0, started_at=40.0
    )
    assert hearing.finished(told, "pi", 5000.0, None).started_at == 4940.0
    ahead = msgspec.structs.replace(told, started_at=200.0)  # the clock was set back in between
    assert hearing.finished(ahead, "pi", 5000.0, None).started_at == 5000.0
    never = msgspec.structs.replace(told, started_at=None)
    assert hearing.finished(never, "pi", 5000.0, None).started_at is None
    reset = Started(id="a", attempt=1, at=-1e11, sent_at=1e11)
    assert hearing.started(reset, 1.8e9).started_at > 1e9


def test_an_adopted_job_has_all_that_its_origin_says():
    origin = Origin("etl", 60.0, Raw(b'{"v":1,"plain":{"a":1}}'), Rules(), "tick", 0.0, None, 0.0)
    told = Finished(
        id="a", attempt=1, outcome="succeeded", ended_at=90.0, sent_at=100.0, origin=origin
    )
    job = hearing.adopted(told, "pi", 1000.0)
    assert (job.pipeline, job.state, job.target, job.agent) == (
        "etl",
        "succeeded",
        "agent:pi",
        "pi",
    )
    assert (job.created_at, job.ended_at) == (960.0, 990.0)
    assert (job.nominal_at, job.run_at) == (0.0, 0.0), "the epoch is a time"
    assert job.result_ttl == 0.0
    assert job.identity
    plain = msgspec.structs.replace(told, origin=Origin("etl", 60.0, EMPTY))
    assert hearing.adopted(plain, "pi", 1000.0).result_ttl == jobs.RESULT_TTL


@pytest.mark.parametrize("outcome", messages.Outcome.__args__)
def test_a_value_that_a_store_refuses_is_a_failure(outcome):
    told = Finished(id="a", attempt=1, outcome=outcome, ended_at=1, sent_at=1, result=EMPTY)
    report = hearing.refused(hearing.finished(told, "pi", 9.0, None), "x" * 10_000)
    assert report.event == {"succeeded": "fail"}.get(outcome, hearing._EVENTS[outcome])
    assert report.result is None
    assert len(report.error) < 1000
