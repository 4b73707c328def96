"""What the gateway offers next, and makes of triggers, over a store of its own and no broker."""

from __future__ import annotations

import json
from types import SimpleNamespace

import msgspec
import pytest
import stores_kit as kit
from fleet import make

from fp_async import gateway_offering
from fp_async.board import Board
from fp_async.config import MqttFile, Runnable
from fp_async.errors import StoreUnavailableError
from fp_async.gateway_offering import Offering
from fp_async.gateway_triggers import Triggers
from fp_async.jobs import Find
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
    gateway.file = MqttFile(run={"work": Runnable(rate=1.0, overrides=["inputs"])})
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
