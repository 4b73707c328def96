"""What the gateway offers next, and makes of triggers, over a store of its own and no broker."""

from __future__ import annotations

import json
from collections import defaultdict
from types import SimpleNamespace

import msgspec
import pytest
import stores_kit as kit
from fleet import make

from fp_async import gateway_offering, triggers
from fp_async.board import Board
from fp_async.cli import top
from fp_async.cli.jobs import _run_group
from fp_async.config import MqttFile, Runnable
from fp_async.errors import JobFailedError, StoreUnavailableError
from fp_async.gateway import Gateway
from fp_async.gateway_log import GatewayLog
from fp_async.gateway_offering import Offering
from fp_async.gateway_triggers import Triggers
from fp_async.job_values import error_of
from fp_async.jobs import Find, Member, Schedule
from fp_async.link import Message
from fp_async.messages import AgentState
from fp_async.patience import Patience
from fp_async.presence import Known
from fp_async.stores.sqlite import SqliteStore
from fp_async.topics import Topics


@pytest.fixture
async def offering():
    store = SqliteStore(":memory:")
    await store.open()
    said = []
    gateway = SimpleNamespace(
        store=store,
        board=Board(),
        patience=Patience(),
        hub=None,
        topics=Topics("fp/v1", "main"),
        count=lambda *_: None,
        log=GatewayLog(),
    )
    connection = SimpleNamespace(publish_soon=lambda *args, **options: said.append(args))
    yield Offering(gateway, connection), gateway, said
    await store.close()


def ready(**more):
    state = AgentState(status="ready", store="s", starts=1, n=1, slots=1, window=2)
    return Known(state=state, seen_at=1.0, **more)


@pytest.mark.parametrize("refused", [2, 5, 40])
async def test_what_all_that_are_there_have_refused_holds_up_nobody(offering, monkeypatch, refused):
    """It waits for the one that is away; what comes after it does not."""
    monkeypatch.setattr(gateway_offering, "_OFFERS", 3)
    offering, gateway, said = offering
    gateway.board.believe("here", ready())
    gateway.board.believe("away", ready(away_since=1.0))
    ids = await gateway.store.add([kit.job(target="any:*") for _ in range(refused + 1)])
    for id in ids[:-1]:
        gateway.board.refuse(id, "here", 0.0)
    wanted = await gateway.store.fleet.wanted()
    while await offering._offer_some(wanted):
        pass
    assert [ids.index(id) for id in gateway.board.open] == [refused]
    assert [topic for topic, _ in said] == ["fp/v1/main/agent/here/do"]


async def test_what_cannot_be_read_is_offered_to_nobody(offering):
    offering, gateway, said = offering
    gateway.board.believe("here", ready())
    spec = b'{"on_crash":"perhaps"}'
    bad, good = await gateway.store.add(
        [kit.job(target="agent:here", spec=spec), kit.job(target="agent:here")]
    )
    wanted = await gateway.store.fleet.wanted()
    while await offering._offer_some(wanted):
        pass
    assert list(gateway.board.open) == [good]
    assert len(said) == 1
    job = await gateway.store.get(bad)
    assert (job.state, job.reason) == ("cancelled", "its rules cannot be read by this release")


async def test_a_store_that_hiccups_costs_no_message_its_place_in_the_rate(offering, tmp_path):
    offering, gateway, said = offering
    project = make(tmp_path, "")
    gateway.flows, gateway.wake = project.flows, lambda: None
    gateway.hub = SimpleNamespace(publish=lambda *_: None)
    gateway.file = MqttFile(run={"work": Runnable(rate=0.001, overrides=["inputs"])})
    connection = SimpleNamespace(publish_soon=lambda *args, **_: said.append(args))
    triggers = Triggers(gateway, connection, offering)
    real, failures = gateway.store.add, [StoreUnavailableError("away")]

    async def add(jobs):
        if failures:
            raise failures.pop()
        return await real(jobs)

    gateway.store.add = add
    body = b'{"inputs":{"number":1,"seconds":0,"starts":"x"}}'
    heard = [Message("fp/v1/main/run/work", body, response_topic="me/reply")]
    heard.append(msgspec.structs.replace(heard[0]))
    await Patience()(lambda: triggers.handle(heard))
    assert len(await gateway.store.find(Find())) == 1
    letter, *_ = await gateway.store.fleet.letters(10)
    assert "too many" in letter.reason
    assert sorted(json.loads(payload)["type"] for _, payload in said) == ["JobQueued", "Refused"]


async def test_e8_a_gateway_prunes_where_no_worker_does(offering):
    _, gateway, _ = offering
    jobs = [
        kit.job(state="succeeded", result_ttl=0.0, target="agent:here", agent="here")
        for _ in range(2)
    ]
    await gateway.store.fleet.adopt(jobs[:1])
    await Gateway._prune(gateway)
    assert await gateway.store.get(jobs[0].id) is None
    await gateway.store.fleet.adopt(jobs[1:])
    await gateway.store.saw(Member(kind="worker", name="w"), 60)
    await Gateway._prune(gateway)
    assert await gateway.store.get(jobs[1].id) is not None, "that is the worker's"


# What callers see -------------------------------------------------------------------------------


async def test_g9_top_shows_the_schedules_that_agents_keep(offering):
    _, gateway, _ = offering
    spec = triggers.encode(triggers.parse("interval", {"seconds": 60}, now=1.0)).encode()
    for id, paused in (("kept", False), ("paused", True)):
        row = Schedule(id=id, pipeline="flow", trigger=spec, template=b'{"offline":true}')
        await gateway.store.put(msgspec.structs.replace(row, paused=paused))
    for agent, error in (("a", None), ("b", None), ("c", "no such pipeline")):
        info = msgspec.json.encode({"agent": agent, "schedule": "kept", "error": error})
        await gateway.store.saw(Member(kind="agent-schedule", name=f"kept@{agent}", info=info), 60)
    facts = await top.snapshot(gateway.store)
    assert [(row["id"], row["agents"]) for row in facts["on_agents"]] == [("kept", 2)]
    (line,) = top._schedule_rows(facts, 1.0)
    assert (line["id"], line["at"], line["in"]) == ("kept", "on agents", "2 agents keep it")


def test_g11_a_cancel_without_a_reason_says_who_wanted_it():
    asked = kit.job(state="cancelled", cancel_at=1.0)
    assert str(error_of(asked)).endswith("cancelled: somebody asked for it")
    assert str(error_of(msgspec.structs.replace(asked, reason="enough"))).endswith("enough")


async def test_g11_each_error_of_a_group_is_told_once(capsys):
    class Results:
        id, agents, warnings = "g", ["a", "b", "c"], defaultdict(list)

        async def __aiter__(self):
            yield "a", JobFailedError("1", "failed", "no such thing", kind="KeyError")
            yield "b", {"x": 1}
            yield "c", JobFailedError("2", "failed", "not there either")

    async def run(*_):
        return Results()

    client = SimpleNamespace(run=run)
    with pytest.raises(JobFailedError, match=r"no result from a, c \(2 of 3 agents\)") as raised:
        await _run_group(client, "flow", {}, "json", quiet=False)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"b": {"x": 1}}
    for text in ("no such thing", "not there either"):
        assert (shown.err + str(raised.value)).count(text) == 1
