"""What the gateway makes of what agents say, and what it does not, over a store and no broker."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import anyio
import pytest
import stores_kit as kit

from fp_async import messages, wire
from fp_async.budgets import Budgets, Rate
from fp_async.config import MqttFile
from fp_async.events import Hub
from fp_async.gateway import Gateway
from fp_async.gateway_hearing import Hearing
from fp_async.hearing import own_id
from fp_async.jobs import RESULT_TTL, Offer, identity
from fp_async.link import Link, Message
from fp_async.messages import AgentState
from fp_async.presence import Known
from fp_async.stores.sqlite import SqliteStore


class Connection:
    """A broker's connection, which hears and says what a test wants."""

    largest = None

    def __init__(self):
        self.said, self.acknowledged, self.heard = [], [], []
        self.news = asyncio.Event()
        self.packet = 0

    def deliver(self, name, *bodies, qos=1, kind="report"):
        for body in bodies:
            self.packet += 1
            payload = body if isinstance(body, bytes) else wire.encode(body)
            topic = f"fp/v1/main/agent/{name}/{kind}"
            self.heard.append(Message(topic, payload, qos=qos, packet=self.packet))
        self.news.set()

    async def receive(self, limit):
        while not self.heard:
            self.news.clear()
            await self.news.wait()
        some, self.heard = self.heard[:limit], self.heard[limit:]
        return some

    def acknowledge(self, message):
        self.acknowledged.append(message.packet)

    def publish_soon(self, topic, payload, **options):
        self.said.append((topic.split("/")[-2], wire.do(payload)))

    def answers(self, name, kind):
        return [said for to, said in self.said if to == name and isinstance(said, kind)]


async def nothing(_):
    """No triggers come."""


@pytest.fixture
async def made(tmp_path):
    store = SqliteStore(":memory:")
    await store.open()
    flows = SimpleNamespace(root=tmp_path, names=lambda: ["work"])
    flows.settings = lambda *_: SimpleNamespace(result_ttl=None)
    backend = SimpleNamespace(store=store, hub=Hub(None), observers=[])
    gateway = Gateway(flows, backend, MqttFile(), Link())
    for name in ("good", "bad"):
        state = AgentState(status="ready", store="s", starts=1, n=1)
        gateway.board.believe(name, Known(state=state, seen_at=1.0))
    connection = Connection()
    hearing = Hearing(gateway, connection)
    hearing.triggers = SimpleNamespace(handle=nothing, ended=lambda *_: None)
    async with anyio.create_task_group() as group:
        group.start_soon(hearing.gate.read)
        group.start_soon(hearing.run)
        yield gateway, connection
        group.cancel_scope.cancel()
    await store.close()


async def until(condition):
    with anyio.fail_after(30):
        while not condition():
            await asyncio.sleep(0.005)


async def all_heard(connection):
    await until(lambda: len(connection.acknowledged) == connection.packet)
    assert connection.acknowledged == sorted(connection.acknowledged), "not in their order"


def outcome(id, **more):
    return messages.Finished(
        id=id, attempt=1, outcome="succeeded", ended_at=1.0, sent_at=2.0, **more
    )


def own(number, **more):
    origin = messages.Origin(pipeline="work", created_at=1.0, inputs=wire.to_wire(b"{}"), **more)
    return outcome(identity("own", number), origin=origin)


async def test_e7_another_agent_is_heard_between_the_messages_of_a_flood(made):
    gateway, connection = made
    connection.deliver("bad", *(own(number) for number in range(450)))
    connection.deliver("good", own("good"))
    await until(lambda: connection.answers("good", messages.Acknowledge))
    acknowledged = sum(len(a.ids) for a in connection.answers("bad", messages.Acknowledge))
    assert acknowledged <= 200
    await all_heard(connection)


async def test_e7_what_cannot_be_read_makes_a_bounded_number_of_letters(made):
    gateway, connection = made
    for _ in range(10):
        connection.deliver("bad", *(b"[" + b"x" * 20_000 for _ in range(200)))
        await all_heard(connection)
    letters = await gateway.store.fleet.letters(5_000)
    assert 900 <= len(letters) <= 1_001
    assert gateway.dropped["bad"]["letters"] >= 900
    assert "good" not in gateway.dropped


async def test_e25_messages_of_another_version_wait_on_the_device(made, caplog):
    gateway, connection = made
    id = await gateway.store.add([kit.job(target="agent:bad")])
    (job,) = await gateway.store.fleet.offer([Offer(id[0], 0, "bad")])
    gateway.board.bind(job, time.monotonic(), chance=0.5)
    newer = [
        wire.encode(outcome(job.id)).replace(b'"v":1', b'"v":2'),
        b'{"type":"Reports","v":3,"reports":[{"type":"Soon","v":3}]}',
        b'{"type":"Reports","v":1,"reports":[{"type":"Finished","v":2,"id":"%s"}]}'
        % job.id.encode(),
    ]
    for _ in range(6):
        connection.deliver("bad", *newer)
        connection.deliver("bad", b'{"type":"AgentState","v":2}', kind="state")
    await all_heard(connection)
    assert connection.answers("bad", messages.Acknowledge) == []
    assert (await gateway.store.get(job.id)).state == "offered"
    (letter,) = await gateway.store.fleet.letters(10)
    assert "version 2 of the protocol, and this program knows 1" in letter.reason
    assert caplog.text.count("update it or this gateway") == 1
    connection.deliver("bad", outcome(job.id))
    await until(lambda: connection.answers("bad", messages.Acknowledge))
    assert (await gateway.store.get(job.id)).state == "succeeded"


async def test_e7_an_outcome_without_room_for_its_letter_stays_on_the_device(made):
    gateway, connection = made
    now = time.monotonic()
    while gateway.budgets.take("bad", "letters", now):
        pass
    connection.deliver("bad", outcome("unknown"))
    connection.deliver("good", outcome("elsewhere"))
    await all_heard(connection)
    await until(lambda: connection.answers("bad", messages.Slow))
    (answer,) = connection.answers("bad", messages.Slow)
    assert answer.ids == ["unknown"]
    assert "no room" in answer.reason
    assert not connection.answers("bad", messages.Acknowledge)
    assert connection.answers("good", messages.Acknowledge)[0].ids == ["elsewhere"]
    (letter,) = await gateway.store.fleet.letters()
    assert "elsewhere" in letter.reason


async def test_e7_outcomes_above_the_budget_wait_and_are_told_again(made):
    gateway, connection = made
    gateway.budgets = Budgets({"outcomes": Rate(50, 0.001)})
    connection.deliver("bad", *(own(number) for number in range(100)))
    await all_heard(connection)
    await until(lambda: connection.answers("bad", messages.Slow))
    stored = {id for a in connection.answers("bad", messages.Acknowledge) for id in a.ids}
    assert len(stored) == 50
    told = [identity("own", number) for number in range(100)]
    kept = {id for id in told if await gateway.store.get(own_id("bad", id))}
    assert kept == stored, "acknowledged and not kept, or kept in vain"
    assert connection.answers("bad", messages.Slow)[0].ids == []


async def test_e7_too_many_messages_are_not_even_read(made):
    gateway, connection = made
    gateway.budgets = Budgets({"messages": Rate(50, 0.001)})
    connection.deliver("bad", *(b"x" for _ in range(5_000)))
    await all_heard(connection)
    assert gateway.dropped["bad"]["messages"] == 4_950
    assert len(connection.answers("bad", messages.Slow)) == 1, "told once"


async def test_e7_states_of_unknown_schedules_and_pings_make_nothing(made):
    gateway, connection = made
    connection.deliver(
        "bad",
        *(messages.ScheduleState(id=f"s{n}", revision=1) for n in range(300)),
        *(messages.Ping(nonce=str(n)) for n in range(100)),
        *(messages.Progress(id=f"j{n}", attempt=1, log="x") for n in range(100)),
    )
    await all_heard(connection)
    assert not await gateway.store.members("agent-schedule")
    assert len(connection.answers("bad", messages.Pong)) <= 25
    assert gateway.counts["unknown schedules"] == 300


async def test_e7_pages_of_a_sync_wait_for_none_that_never_came(made):
    gateway, connection = made
    jobs = [(f"job-{n}", 1, "running") for n in range(500)]
    connection.deliver(
        "bad", *(messages.Sync(page=n, pages=2_000, jobs=jobs) for n in range(1, 50))
    )
    await all_heard(connection)
    assert gateway.dropped.get("bad") is None


async def test_e7_results_of_own_jobs_are_not_kept_longer_than_those_of_the_center(made):
    gateway, connection = made
    connection.deliver("bad", own(1, result_ttl=1e11), own(2, result_ttl=60.0))
    await all_heard(connection)
    rows = [await gateway.store.get(own_id("bad", identity("own", n))) for n in (1, 2)]
    assert [row.result_ttl for row in rows] == [RESULT_TTL, 60.0]


async def test_e7_metrics_count_unknown_pipelines_as_one(made):
    gateway, connection = made
    seen = []
    gateway.backend.observers.append(SimpleNamespace(adopted=lambda job: seen.append(job.pipeline)))
    strange = messages.Origin(pipeline="x" * 100, created_at=1.0, inputs=wire.to_wire(b"{}"))
    connection.deliver("bad", own(1), outcome(identity("own", 2), origin=strange))
    await all_heard(connection)
    assert sorted(seen) == ["other", "work"]


def test_e31_the_gateway_announces_the_largest_packet_that_it_takes(tmp_path):
    backend = SimpleNamespace(store=SqliteStore(":memory:"), hub=None)
    gateway = Gateway(SimpleNamespace(root=tmp_path), backend, MqttFile(), Link())
    assert messages.PACKET_BYTES < gateway._link().packet_bytes <= 2 * messages.PACKET_BYTES
