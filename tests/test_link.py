"""The link to an MQTT broker, against Mosquitto: what it promises, and each trap beneath it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import secrets
import socket
import threading
import time
import weakref
from pathlib import Path

import pytest
from faults import Choker, Proxy, frozen
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import _WebsocketWrapper
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from services import Mosquitto, free_port, program, require, run

from fp_async.errors import BrokerError, PublishRefusedError, SessionTakenError, TooLargeError
from fp_async.link import Connection, Link, Message, Will, connected, pause, serve
from fp_async.link_limits import Limit
from fp_async.link_packets import publish_properties, read_publish
from fp_async.link_websocket import Frames, frame, handshake


def shared() -> Link:
    """The broker that runs on this machine."""
    return Link.of(require("mqtt"))


def through(proxy: Proxy, **settings) -> Link:
    return Link(host="127.0.0.1", port=proxy.port, **settings)


def fresh_topic() -> str:
    return f"test/{secrets.token_hex(4)}"


@pytest.fixture
def broker():
    """An own server that may be killed."""
    with Mosquitto() as server:
        yield server


@pytest.fixture
async def proxy():
    async with Proxy(shared().port) as proxy:
        yield proxy


async def received(connection: Connection, count: int = 1, seconds: float = 3.0) -> list[Message]:
    """This many messages; fails when they do not come in time."""
    messages: list[Message] = []
    try:
        async with asyncio.timeout(seconds):
            while len(messages) < count:
                messages += await connection.receive(count - len(messages))
    except TimeoutError:
        pytest.fail(f"{len(messages)} of {count} messages came")
    return messages


async def nothing_comes(connection: Connection, topic: str) -> None:
    """Nothing was on the way to `topic`: the broker keeps the order of what we publish."""
    end = secrets.token_bytes(8)
    await connection.publish(topic, end, qos=1)
    assert [message.payload for message in await received(connection)] == [end]


async def until(condition, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def quietly(work) -> Exception | None:
    try:
        await work
    except BrokerError as error:
        return error


@contextlib.asynccontextmanager
async def listening(handle):
    """The port of a server of ours; what it still does at the end is cancelled."""
    lanes = set()

    async def accept(reader, writer):
        lanes.add(asyncio.current_task())
        try:
            await handle(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # a server's task that ends as cancelled is reported by asyncio
        finally:
            writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1") as server:
        yield server.sockets[0].getsockname()[1]
        for lane in lanes:
            lane.cancel()
        if lanes:
            await asyncio.wait(lanes)


@contextlib.asynccontextmanager
async def leaving_nothing():
    """No task, socket or thread is there afterwards that was not there before."""

    tasks, threads, sockets = asyncio.all_tasks(), threading.active_count(), open_sockets()
    yield
    await until(lambda: asyncio.all_tasks() <= tasks)
    await until(lambda: open_sockets() <= sockets)
    await until(lambda: threading.active_count() <= threads)


def open_sockets() -> set[str]:
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # of iterdir itself
            found.add(str(path.readlink()))
    return {name for name in found if name.startswith("socket:")}


# Messages


async def test_the_link_publishes_and_receives():
    topic = fresh_topic()
    async with connected(shared()) as link:
        assert link.version == 5
        await link.subscribe(topic, qos=1)
        await link.publish(topic, b"\x00payload", qos=1)
        (message,) = await received(link)
        assert (message.topic, message.payload, message.qos) == (topic, b"\x00payload", 1)
        assert not message.retained
        assert not message.duplicate


async def test_expiry_response_topic_correlation_and_user_properties_arrive():
    topic = fresh_topic()
    extra = {
        "response_topic": "a/ö",
        "correlation": b"\x00\xff",
        "user_properties": (("a", "1"), ("a", "2")),
        "content_type": "application/json",
    }
    async with connected(shared()) as link:
        await link.subscribe(topic, qos=1)
        await link.publish(topic, b"x", qos=1, expiry=60, **extra)
        link.publish_soon(topic, b"y", expiry=60, **extra)
        for message in await received(link, 2):
            assert {name: getattr(message, name) for name in extra} == extra
            assert 55 <= message.expiry <= 60


async def test_an_expired_message_is_not_delivered():
    topic = fresh_topic()
    link = shared_session()
    async with connected(link) as away:
        await away.subscribe(topic, qos=1)
    async with connected(shared()) as other:
        await other.publish(topic, b"stale", qos=1, expiry=1)
        await other.publish(topic, b"fresh", qos=1, expiry=60)
    expired = asyncio.get_running_loop().time() + 2.1
    await until(lambda: asyncio.get_running_loop().time() > expired)
    async with connected(link) as back:
        assert [message.payload for message in await received(back)] == [b"fresh"]


def shared_session(**settings) -> Link:
    """A link whose session the broker keeps."""
    kept = {"client_id": f"test-{secrets.token_hex(4)}", "clean_start": False}
    return Link.of(require("mqtt"), session_expiry=60, **kept, **settings)


async def test_all_that_has_arrived_is_received_at_once_and_in_order():
    topic = fresh_topic()
    async with connected(shared()) as link:
        await link.subscribe(topic)
        for number in range(500):
            link.publish_soon(topic, str(number).encode())
        await until(lambda: len(link._session.arrived) == 500)
        assert len(await link.receive(limit=200)) == 200
        assert [message.payload for message in await link.receive()][-1] == b"499"


async def test_a_cancelled_receive_loses_nothing():
    topic = fresh_topic()
    async with connected(shared()) as link:
        await link.subscribe(topic)
        got: list[Message] = []
        for number in range(100):
            receiving = asyncio.create_task(link.receive())
            link.publish_soon(topic, str(number).encode())
            for _ in range(number % 7):
                await asyncio.sleep(0)
            receiving.cancel()
            await asyncio.wait((receiving,))
            if not receiving.cancelled():
                got += receiving.result()
        got += await received(link, 100 - len(got)) if len(got) < 100 else []
        assert [message.payload for message in got] == [str(n).encode() for n in range(100)]


async def test_what_arrived_before_the_end_is_still_received(broker):
    async with connected(Link.of(broker.uri)) as link:
        await link.subscribe("a")
        link.publish_soon("a", b"x")
        await until(lambda: link._session.arrived)
        broker.kill()
        await link.wait_lost()
        assert [message.payload for message in await link.receive()] == [b"x"]
        with pytest.raises(BrokerError):
            await link.receive()


async def test_a_full_receive_queue_drops_qos_0_and_never_qos_1():
    topic = fresh_topic()
    async with connected(Link.of(require("mqtt"), receive_queue=10)) as link:
        await link.subscribe(f"{topic}/+", qos=1)
        for _ in range(50):
            link.publish_soon(f"{topic}/0", b"")
            link.publish_soon(f"{topic}/1", b"", qos=1)
        await link.publish(f"{topic}/1", b"end", qos=1)
        messages = await received(link, 51)
        while messages[-1].payload != b"end":
            messages += await received(link)
        assert sum(message.qos for message in messages) == 51
        assert sum(not message.qos for message in messages) <= 10


async def test_retained_messages_come_as_asked():
    topic = fresh_topic()
    async with connected(shared()) as link:
        await link.publish(topic, b"kept", qos=1, retain=True)
        try:
            await link.subscribe(topic, retained="never")
            await nothing_comes(link, topic)
            await link.subscribe(topic, retained="new")  # is no new subscription
            await nothing_comes(link, topic)
            await link.subscribe(topic)
            (message,) = await received(link)
            assert message.retained
            assert message.payload == b"kept"
        finally:
            await link.publish(topic, b"", qos=1, retain=True)


async def test_without_own_there_is_no_echo_and_several_topics_go_at_once():
    one, two = fresh_topic(), fresh_topic()
    async with connected(shared()) as link, connected(shared()) as other:
        await link.subscribe_all([(one, 0), (two, 1)], own=False)
        await link.publish(one, b"own", qos=1)
        await other.publish(one, b"1", qos=1)
        await other.publish(two, b"2", qos=1)
        assert [message.payload for message in await received(link, 2)] == [b"1", b"2"]


# Acknowledging


async def test_what_is_not_acknowledged_is_delivered_again_and_the_rest_is_not():
    topic = fresh_topic()
    link = shared_session(manual_ack=True)
    async with connected(link) as first:
        assert not first.session_present
        await first.subscribe(topic, qos=1)
        for payload in (b"1", b"2", b"3"):
            await first.publish(topic, payload, qos=1)
        one, _, three = await received(first, 3)
        first.acknowledge(one)
        first.acknowledge(three)
        first.acknowledge(three)
    async with connected(link) as second:
        assert second.session_present
        (again,) = await received(second)
        assert again.payload == b"2"
        assert again.duplicate
        second.acknowledge(again)
        await nothing_comes(second, topic)


async def test_a_message_of_an_ended_connection_cannot_be_acknowledged():
    topic = fresh_topic()
    link = shared_session(manual_ack=True)
    async with connected(link) as first:
        await first.subscribe(topic, qos=1)
        await first.publish(topic, b"x", qos=1)
        (old,) = await received(first)
    with pytest.raises(BrokerError):
        first.acknowledge(old)
    async with connected(link) as second:
        (again,) = await received(second)
        with pytest.raises(BrokerError, match="has ended"):
            second.acknowledge(old)
        assert again.packet in second._session.unacknowledged


async def test_at_qos_0_acknowledging_does_nothing():
    topic = fresh_topic()
    async with connected(Link.of(require("mqtt"), manual_ack=True)) as link:
        await link.subscribe(topic)
        await link.publish(topic, b"x")
        link.acknowledge((await received(link))[0])
        assert link.lost is None


async def test_the_receive_maximum_bounds_what_waits_to_be_acknowledged():
    topic = fresh_topic()
    with Mosquitto(lines=["max_queued_messages 0"]) as server:
        link = Link.of(server.uri, manual_ack=True, receive_maximum=30)
        async with connected(link) as reader, connected(Link.of(server.uri)) as writer:
            await reader.subscribe(topic, qos=1)
            for _ in range(100):
                writer.publish_soon(topic, b"", qos=1)
            await writer.publish(topic, b"", qos=1)
            held = await received(reader, 30)
            await reader.publish("other", b"", qos=1)  # the broker has had its turn
            assert not reader._session.arrived
            for message in held:
                reader.acknowledge(message)
            assert len(await received(reader, 30)) == 30


def test_a_receive_maximum_under_20_is_refused():
    with pytest.raises(ValueError, match="receive_maximum"):
        Link(receive_maximum=19)


# Publishing


def with_rules(folder: Path, *rules: str) -> list[str]:
    (folder / "rules").write_text("\n".join((*rules, "")))
    return [f"acl_file {folder / 'rules'}"]


async def test_a_denied_publish_is_an_error(tmp_path):
    with Mosquitto(lines=with_rules(tmp_path, "topic readwrite free/#")) as server:
        async with connected(Link.of(server.uri)) as link:
            await link.publish("free/a", b"", qos=1)  # 0x10, nobody listens: a success
            with pytest.raises(PublishRefusedError) as refused:
                await link.publish("denied", b"", qos=1)
            assert refused.value.code == 0x87
            assert "'denied'" in str(refused.value)
            assert link.lost is None


async def test_a_denied_subscription_may_be_granted_and_deliver_nothing(tmp_path):
    with Mosquitto(lines=with_rules(tmp_path, "topic write a", "topic readwrite b")) as server:
        async with connected(Link.of(server.uri)) as link:
            await link.subscribe_all([("a", 1), ("b", 1)])
            await link.publish("a", b"", qos=1)
            await nothing_comes(link, "b")


async def test_a_message_that_is_too_large_is_refused_before_it_breaks_the_connection():
    with Mosquitto(lines=["max_packet_size 2000"]) as server:
        async with connected(Link.of(server.uri)) as link:
            await link.subscribe("a", qos=1)
            with pytest.raises(PublishRefusedError) as refused:
                await link.publish("a", bytes(2000))
            assert refused.value.code == 0x95
            with pytest.raises(PublishRefusedError):
                link.publish_soon("a", bytes(1500), user_properties=[("a", "b" * 500)])
            await link.publish("a", bytes(1900), qos=1)
            assert len((await received(link))[0].payload) == 1900


async def test_e4_a_message_on_which_the_broker_hangs_up_is_too_large_the_fourth_time():
    async with Choker(shared().port, 20_000) as proxy:
        topic, connects, why = fresh_topic(), [], []

        async def body(connection):
            connects.append(connection)
            await connection.publish(topic, bytes(9_000), qos=1)
            try:
                await connection.publish(topic, bytes(60_000), qos=1)
            except TooLargeError as error:
                why.append(error)
            await connection.publish(topic, bytes(9_001), qos=1)

        async with asyncio.timeout(20):
            await serve(through(proxy), body, longest=0.01)
        assert (len(connects), proxy.choked) == (4, 3)
        assert why[0].why.startswith("too large for the broker: 60,0")
        assert 9_000 < why[0].most < 60_100


def test_e4_a_network_that_breaks_is_not_taken_for_a_limit():
    limit = Limit()
    for _ in range(5):  # a smaller one beside it each time, then nothing large at all
        assert limit.lost({60_000: 10.0}, 10.1) is None
        assert limit.lost({9_000: 10.0}, 10.1) is None
    for _ in range(5):  # it was sent long before
        assert limit.lost({60_000: 10.0}, 16.0) is None
    for _ in range(2):
        assert limit.lost({60_000: 10.0}, 10.1) is None
    limit.took(60_000)
    for _ in range(5):
        assert limit.lost({60_000: 10.0}, 10.1) is None
    assert limit.at_most(None, 11.0) is None
    assert limit.at_most(20_000, 11.0) == 20_000


def test_e4_a_learned_limit_lapses_and_a_named_reason_counts_at_once():
    limit = Limit()
    most = limit.lost({60_000: 10.0, 8_000: 10.0}, 10.1, said=True)
    assert 8_000 < most < 60_000
    assert limit.at_most(None, 10.2) == most
    assert limit.at_most(10_000, 10.2) == 10_000
    assert limit.at_most(None, 10.2 + 3600) is None


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\0b", "x" * 70_000, "\ud800"])
async def test_a_topic_that_is_none_is_an_error_and_nothing_else(topic):
    async with connected(shared()) as link:
        with pytest.raises(BrokerError):
            await link.publish(topic, b"", qos=1)
        with pytest.raises(BrokerError):
            link.publish_soon(topic, b"")
        await link.publish("test/x", b"", qos=1)


async def test_a_publish_in_flight_fails_at_once_when_the_connection_breaks(proxy):
    with pytest.raises(BrokerError, match="the connection was lost"):
        async with connected(through(proxy)) as link:
            proxy.stall()
            async with asyncio.timeout(2), asyncio.TaskGroup() as group:
                publishing = group.create_task(quietly(link.publish("test/x", b"", qos=1)))
                await until(lambda: link._session._confirmations)
                await proxy.reset()
            raise publishing.result()


async def test_a_publish_has_a_time_limit(proxy):
    async with connected(through(proxy)) as link:
        proxy.stall()
        with pytest.raises(BrokerError, match="timed out"):
            await link.publish("test/x", b"", qos=1, timeout=0.1)
        assert not link._session._confirmations


async def test_what_the_network_does_not_take_is_an_error_when_the_queue_is_full(proxy):
    async with connected(through(proxy, send_queue=50)) as link:
        proxy.stall()
        with pytest.raises(BrokerError, match="50 messages wait"):
            for _ in range(2000):
                link.publish_soon("test/x", bytes(100_000))
                await asyncio.sleep(0)
        with pytest.raises(BrokerError, match="50 messages wait"):
            link.publish_soon("test/x", b"", qos=0)
        with pytest.raises(BrokerError, match="timed out|wait to be sent"):
            await link.publish("test/x", b"", timeout=0.05)
    await proxy.heal()
    async with connected(through(proxy, send_queue=5)) as link:
        proxy.stall()
        with pytest.raises(BrokerError, match="5 messages wait"):
            for _ in range(6):
                link.publish_soon("test/x", b"", qos=1)


async def test_a_slow_network_holds_up_a_publish_of_qos_0_and_loses_nothing(proxy):
    topic = fresh_topic()
    async with connected(shared()) as reader, connected(through(proxy)) as link:
        await reader.subscribe(topic)
        proxy.stall()
        sending = asyncio.create_task(send_all(link, topic, 100, bytes(200_000)))
        await until(lambda: link._session._blocked)
        assert not sending.done()
        await proxy.heal()
        assert len(await received(reader, 100, seconds=10)) == 100
        await sending


async def send_all(link: Connection, topic: str, count: int, payload: bytes) -> None:
    for _ in range(count):
        await link.publish(topic, payload)


async def test_publish_soon_on_a_lost_connection_is_an_error(broker):
    async with connected(Link.of(broker.uri)) as link:
        broker.kill()
        assert "the connection was lost" in str(await link.wait_lost())
        with pytest.raises(BrokerError, match="the connection was lost"):
            link.publish_soon("a", b"")


async def test_leaving_sends_what_publish_soon_took():
    topic = fresh_topic()
    async with connected(shared()) as reader:
        await reader.subscribe(topic, qos=1)
        async with connected(shared()) as link:
            for _ in range(50):
                link.publish_soon(topic, b"x" * 1000)
        assert len(await received(reader, 50)) == 50


async def test_no_more_is_in_flight_than_the_broker_allows():
    with Mosquitto(lines=["max_inflight_messages 20"]) as server:
        async with connected(Link.of(server.uri, max_inflight=1000)) as link:
            assert link._session._client.max_inflight_messages == 20
            with frozen(server.process):
                for _ in range(100):
                    link.publish_soon("a", b"", qos=1)
                assert link._session._client._inflight_messages == 20
            await until(lambda: not link._session._client._out_messages)
            assert link.lost is None


async def test_packet_ids_begin_anew_and_answers_do_not_get_mixed_up():
    async with connected(shared()) as link:
        link._session._client._last_mid = 65_530
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(link.publish("test/x", b"", qos=1))
                link.publish_soon("test/x", b"")
        assert not link._session._client._out_messages


# The end of a connection


async def test_a_broken_link_ends_what_waits(broker):
    async with connected(Link.of(broker.uri)) as link:
        receiving = asyncio.create_task(quietly(link.receive()))
        lost = asyncio.create_task(link.wait_lost())
        await asyncio.sleep(0)
        broker.kill()
        assert "closed at the other end" in str(await asyncio.wait_for(receiving, 2))
        assert await lost is link.lost
        with pytest.raises(BrokerError):
            async for _ in link:
                pass
        assert "lost" in repr(link)


async def test_a_reset_has_its_reason(proxy):
    async with connected(through(proxy)) as link:
        await proxy.reset()
        assert "reset by peer" in str(await link.wait_lost())


async def test_a_silent_network_is_noticed_in_one_and_a_half_keepalives(proxy):
    async with connected(through(proxy, keepalive=2)) as link:
        proxy.stall()
        started = time.monotonic()
        async with asyncio.timeout(5):
            error = await link.wait_lost()
        assert "nothing was heard" in str(error)
        assert time.monotonic() - started < 3.3  # 1.5 keepalives, and a busy machine


async def test_a_quiet_connection_is_kept_and_wakes_rarely(monkeypatch):
    looks = []
    from fp_async.link_session import Session

    real = Session._look_after
    monkeypatch.setattr(Session, "_look_after", lambda self: looks.append(1) or real(self))
    async with connected(Link.of(require("mqtt"), keepalive=1)) as link:
        started = time.monotonic()
        await until(lambda: time.monotonic() - started > 2.5)
        assert link.lost is None
        assert 8 <= len(looks) <= 12
        assert link._session.stream.heard > started + 1


async def test_a_broker_that_does_not_answer_is_noticed(proxy):
    proxy.stall()
    with pytest.raises(BrokerError, match="timed out"):
        async with connected(through(proxy, timeout=0.2)):
            pass


@contextlib.asynccontextmanager
async def scripted(*packets: bytes, **settings):
    """A link to a broker that answers each thing it hears with the next of these, then listens."""

    async def play(reader, writer):
        for packet in packets:
            await reader.read(4_096)
            writer.write(packet)
        await reader.read()

    async with listening(play) as port:
        yield Link(host="127.0.0.1", port=port, **settings)


WELCOME = b"\x20\x03\x00\x00\x00"
TAKEN = b"\xe0\x01\x8e"
SHUTTING_DOWN = b"\xe0\x02\x8b\x00"


async def test_a_session_that_was_taken_is_told_from_other_ends():
    async with scripted(WELCOME + TAKEN) as link, connected(link) as first:
        receiving = asyncio.create_task(quietly(first.receive()))
        assert isinstance(await first.wait_lost(), SessionTakenError)
        assert isinstance(await receiving, SessionTakenError)
        assert isinstance(await quietly(first.publish("a", b"", qos=1)), SessionTakenError)
    async with scripted(WELCOME + SHUTTING_DOWN) as link, connected(link) as first:
        error = await first.wait_lost()
        assert type(error) is BrokerError
        assert "Server shutting down" in str(error)


async def test_a_second_client_with_the_same_id_ends_the_first():
    """Mosquitto 2.0.11 closes without the DISCONNECT that would say why."""
    link = shared_session()
    async with connected(link) as first, connected(link) as second:
        assert isinstance(await first.wait_lost(), BrokerError)
        assert second.session_present
        await second.publish("a", b"", qos=1)


async def test_a_will_is_published_when_the_process_is_killed_and_not_on_a_goodbye():
    topic = fresh_topic()
    link = Link.of(require("mqtt"), will=Will(topic, b"gone", retain=False))
    async with connected(shared()) as watcher:
        await watcher.subscribe(topic, qos=1)
        async with connected(link):
            pass
        await nothing_comes(watcher, topic)
        async with connected(link) as dying:
            dying._session.stream._sock.shutdown(socket.SHUT_RDWR)
            assert [message.payload for message in await received(watcher)] == [b"gone"]


@pytest.mark.parametrize("nonsense", [b"\x30\x03\x00\x20a", b"\x40\x01\x00", b"\xf0\x00"])
async def test_a_broker_that_sends_nonsense_ends_the_connection(nonsense):
    async with scripted(WELCOME + nonsense) as link, connected(link) as connection:
        async with asyncio.timeout(2):
            assert isinstance(await connection.wait_lost(), BrokerError)


async def test_the_keepalive_of_the_broker_counts():
    welcome = b"\x20\x06\x00\x00\x03\x13\x00\x01"  # Server Keep Alive: 1 s
    async with scripted(welcome, keepalive=60) as link, connected(link) as connection:
        async with asyncio.timeout(3):
            assert "nothing was heard" in str(await connection.wait_lost())


# Connecting


async def test_a_wrong_password_is_a_clear_error():
    with Mosquitto("right") as server:
        with pytest.raises(BrokerError, match=r"[Nn]ot authori[sz]ed") as refused:
            async with connected(Link.of(server.uri.replace("right", "wrong"))):
                pass
        assert "wrong" not in str(refused.value)
        async with connected(Link.of(server.uri)):
            pass


async def test_an_unreachable_broker_is_a_clear_error():
    port = free_port()
    with pytest.raises(BrokerError, match=f"127.0.0.1:{port}.*refused"):
        async with connected(Link(host="127.0.0.1", port=port)):
            pass
    with pytest.raises(BrokerError, match="no.such.host"):
        async with connected(Link(host="no.such.host.invalid")):
            pass


async def test_the_link_falls_back_to_mqtt_3_1_1():
    for refusal in (b"\x20\x02\x00\x01", b""):
        async with old_broker(refusal) as link, connected(link) as connection:
            topic = fresh_topic()
            assert connection.version == 4
            await connection.subscribe(topic, own=False, retained="never")
            await connection.publish(topic, b"x", expiry=3, response_topic="left out")
            (message,) = await received(connection)
            assert (message.payload, message.response_topic) == (b"x", None)


@contextlib.asynccontextmanager
async def deaf_broker(swallowed: set[int], most: int, **settings):
    """A link to a broker that leaves the first `most` CONNECTs of these versions unanswered, and
    the versions that it was asked for.
    """
    asked: list[int] = []

    async def serve_some(reader, writer):
        first = await reader.read(4_096)
        asked.append(first[8])
        if first[8] in swallowed and sum(each in swallowed for each in asked) <= most:
            await reader.read()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", shared().port)
        far_writer.write(first)
        await both_ways(reader, writer, far_reader, far_writer)

    async with listening(serve_some) as port:
        yield Link(host="127.0.0.1", port=port, timeout=0.2, **settings), asked


async def test_e13_a_broker_that_leaves_mqtt_5_unanswered_is_asked_in_3_1_1(caplog):
    versions = []

    async def once(connection):
        versions.append(connection.version)
        if len(versions) == 1:
            raise BrokerError("lost")

    async with deaf_broker({5}, 99) as (link, asked):
        await serve(link, once, longest=0.01)
    assert versions == [4, 4]
    assert asked == [5, 4, 5, 4, 4], "what was found out is known for the next connection"
    assert sum("`version: 311`" in text for text in caplog.messages) == 1


async def test_e13_a_broker_that_was_only_slow_keeps_mqtt_5():
    async with deaf_broker({5}, 1) as (link, asked), connected(link) as connection:
        assert connection.version == 5
    assert asked == [5, 4, 5]


async def test_e13_the_version_may_be_given():
    async with deaf_broker({5}, 99, version=311) as (link, asked), connected(link) as connection:
        assert connection.version == 4
    assert asked == [4]
    async with deaf_broker({5}, 99, version=5) as (link, asked):
        with pytest.raises(BrokerError, match="CONNECT timed out"):
            async with connected(link):
                pass
    assert asked == [5]
    async with old_broker(b"", version=5) as link:
        with pytest.raises(BrokerError, match="does not take MQTT 5, which `version` asks for"):
            async with connected(link):
                pass


@contextlib.asynccontextmanager
async def old_broker(refusal: bytes, **settings):
    """A link to a broker that answers MQTT 5 with `refusal` and hangs up."""

    async def serve_old(reader, writer):
        first = await reader.read(4_096)
        if first[8] == 5:  # the version, after `MQTT` in CONNECT
            writer.write(refusal)
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", shared().port)
        far_writer.write(first)
        await both_ways(reader, writer, far_reader, far_writer)

    async with listening(serve_old) as port:
        yield Link(host="127.0.0.1", port=port, **settings)


async def both_ways(reader, writer, far_reader, far_writer) -> None:
    async def pump(source, sink):
        try:
            while data := await source.read(65_536):
                sink.write(data)
        finally:
            sink.close()

    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))


async def test_acknowledging_and_a_kept_session_work_in_mqtt_3_1_1():
    topic = fresh_topic()
    kept = {"client_id": f"test-{secrets.token_hex(4)}", "clean_start": False, "manual_ack": True}
    async with old_broker(b"", **kept) as link:
        async with connected(link) as first:
            await first.subscribe(topic, qos=1)
            await first.publish(topic, b"1", qos=1)
            await first.publish(topic, b"2", qos=1)
            first.acknowledge((await received(first, 2))[0])
        async with connected(link) as second:
            assert second.session_present
            assert [message.payload for message in await received(second)] == [b"2"]
    async with connected(Link.of(require("mqtt"), client_id=kept["client_id"])):
        pass  # a clean start ends the session


def certificates(folder: Path) -> dict[str, str]:
    """An authority, and a certificate of it for localhost and one for a client."""
    openssl = program("openssl")
    authority = ["-keyout", str(folder / "ca.key"), "-out", str(folder / "ca")]
    new = ["-nodes", "-newkey", "rsa:2048"]
    run([openssl, "req", "-x509", *new, *authority, "-subj", "/CN=authority"])
    for name in ("localhost", "pi-7"):
        key, cert, asked = (str(folder / f"{name}{end}") for end in (".key", "", ".csr"))
        (folder / "names").write_text(f"subjectAltName=DNS:{name}\n")
        run([openssl, "req", *new, "-keyout", key, "-out", asked, "-subj", f"/CN={name}"])
        signer = ["-CA", str(folder / "ca"), "-CAkey", str(folder / "ca.key"), "-CAcreateserial"]
        names = ["-extfile", str(folder / "names")]
        run([openssl, "x509", "-req", "-in", asked, "-out", cert, *signer, *names])
    return {"ca_file": str(folder / "ca")}


@pytest.fixture(scope="module")
def signed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    certificates(folder)
    folder.chmod(0o755)
    return folder


def secured(folder: Path, port: int, *lines: str) -> list[str]:
    files = [f"certfile {folder / 'localhost'}", f"keyfile {folder / 'localhost.key'}"]
    return [f"listener {port} 127.0.0.1", f"cafile {folder / 'ca'}", *files, *lines]


async def test_with_client_certificates_only_who_has_one_comes_in(signed):
    port = free_port()
    ours = {"cert_file": str(signed / "pi-7"), "key_file": str(signed / "pi-7.key")}
    with Mosquitto(lines=secured(signed, port, "require_certificate true")):
        uri, ca_file = f"mqtts://localhost:{port}", str(signed / "ca")
        async with connected(Link.of(uri, ca_file=ca_file, **ours)) as link:
            await link.subscribe("a")
            await link.publish("a", bytes(50_000), qos=1)
            assert len((await received(link))[0].payload) == 50_000
        with pytest.raises(BrokerError, match="certificate"):
            async with connected(Link.of(uri, ca_file=ca_file)):
                pass
        with pytest.raises(BrokerError, match="certificate"):
            async with connected(Link.of(uri, **ours)):  # the broker is a stranger
                pass


async def test_a_certificate_that_is_not_there_is_named():
    with pytest.raises(BrokerError, match="/no/such/file"):
        async with connected(Link.of(require("mqtt"), cert_file="/no/such/file", tls=True)):
            pass


def web_listener(port: int) -> list[str]:
    return [f"listener {port} 127.0.0.1", "protocol websockets"]


async def test_a_websocket_carries_it_all():
    port = free_port()
    with Mosquitto(lines=web_listener(port)):
        async with connected(Link.of(f"ws://127.0.0.1:{port}/mqtt")) as link:
            await link.subscribe("a", qos=1)
            sizes = (0, 1, 100, 125, 126, 5_000, 66_000)  # Mosquitto reads 4 KiB each 0.1 s
            for size in sizes:
                await link.publish("a", bytes(size), qos=1)
            assert [len(m.payload) for m in await received(link, len(sizes))] == list(sizes)
            for _ in range(1000):
                link.publish_soon("a", b"x")
            assert len(await received(link, 1000)) == 1000


async def test_a_websocket_over_tls(signed):
    port = free_port()
    with Mosquitto(lines=secured(signed, port, "protocol websockets")):
        link = Link.of(f"wss://localhost:{port}/mqtt", ca_file=str(signed / "ca"))
        async with connected(link) as connection:
            await connection.subscribe("a")
            await connection.publish("a", bytes(20_000), qos=1)
            assert len((await received(connection))[0].payload) == 20_000


async def test_where_no_websocket_is_the_error_says_so():
    async def http(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with listening(http) as port:
        with pytest.raises(BrokerError, match="no websocket at '/mqtt': HTTP/1.1 404"):
            async with connected(Link.of(f"ws://127.0.0.1:{port}")):
                pass
    with pytest.raises(BrokerError):
        async with connected(Link(host="127.0.0.1", port=shared().port, path="/")):
            pass


def test_an_address_gives_all_of_a_link():
    assert Link.of("mqtts://u:p%40ss@host") == Link("host", 8883, "u", "p@ss", tls=True)
    assert Link.of("mqtt://a:1", host="b", port=2) == Link("b", 2)
    assert Link.of("ws://a") == Link("a", 80, path="/mqtt")
    assert Link.of("wss://a/b?c=d") == Link("a", 443, tls=True, path="/b?c=d")
    assert Link.of(None) == Link()
    link = Link.of("mqtt://u:p%40ss@host")
    assert "p@ss" not in f"{link} {link!r}"
    with pytest.raises(ValueError, match="http"):
        Link.of("http://a")


# Cancelling


async def test_cancelling_at_any_moment_leaves_nothing(signed):
    tls, web = free_port(), free_port()
    with Mosquitto(lines=[*secured(signed, tls), *web_listener(web)]) as server:
        links = [
            Link.of(server.uri, will=Will("gone", b"")),
            Link.of(f"mqtts://localhost:{tls}", ca_file=str(signed / "ca")),
            Link.of(f"ws://127.0.0.1:{web}"),
        ]
        async with leaving_nothing():
            for link in links:
                for steps in range(40):
                    await cancelled_after(steps, use(link))
                task = asyncio.create_task(use(link))
                await task  # it is not only cancelled: left alone it works


async def use(link: Link) -> None:
    async with connected(link) as connection:
        await connection.subscribe("a", qos=1)
        await connection.publish("a", b"x", qos=1)
        await connection.receive()
        await connection.publish("a", b"y")


async def cancelled_after(steps: int, work) -> None:
    task = asyncio.create_task(work)
    for _ in range(steps):
        await asyncio.sleep(0 if steps % 2 else 0.0002)
    task.cancel()
    await asyncio.wait((task,), timeout=2)
    assert task.done()
    if not task.cancelled():
        task.result()


async def test_cancelling_in_a_silent_network_is_quick(proxy):
    async with leaving_nothing():
        proxy.stall()
        await cancelled_after(10, use(through(proxy)))
        web = through(proxy, path="/mqtt")
        await cancelled_after(10, use(web))
        await proxy.heal()
        async with connected(through(proxy)) as link:
            proxy.stall()
            link.publish_soon("test/x", bytes(10_000_000))
            started = time.monotonic()
        assert time.monotonic() - started < 1
        await proxy.cut()


async def test_a_cancelled_publish_leaves_nothing_to_wait_for():
    async with connected(shared()) as link:
        for steps in range(4):
            await cancelled_after(steps, link.publish("test/x", b"", qos=1))
            await cancelled_after(steps, link.subscribe("test/x"))
        await link.publish("test/x", b"", qos=1)
        assert not link._session._confirmations
        assert not link._session._pending_subscribes


async def test_a_refused_connection_leaves_nothing():
    with Mosquitto("right") as server:
        async with leaving_nothing():
            for _ in range(3):
                with pytest.raises(BrokerError):
                    async with connected(Link.of(server.uri.replace("right", "wrong"))):
                        pass


async def test_a_connection_that_ended_is_garbage_at_most():
    async with connected(shared()) as link:
        session = weakref.ref(link._session)
    del link
    await asyncio.sleep(0)  # what the loop was to call
    gc.collect()
    assert session() is None


# Serving


class Visits:
    """A body for `serve` that counts its connections and waits in each for its end."""

    def __init__(self) -> None:
        self.open: Connection | None = None
        self.count = 0
        self.problems: list[BrokerError | None] = []

    async def __call__(self, connection: Connection) -> None:
        self.open = connection
        self.count += 1
        try:
            await connection.receive()
        finally:
            self.open = None

    async def reach(self, count: int) -> None:
        await until(lambda: self.open and self.count >= count, 20)


@contextlib.asynccontextmanager
async def serving(link, body, **settings):
    task = asyncio.create_task(serve(link, body, **settings))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait((task,))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("fp_async.link.FIRST_PAUSE", 0.05)


async def test_serve_connects_again_after_every_fault(proxy, caplog):
    caplog.set_level(logging.INFO)
    visits = Visits()
    link = through(proxy, keepalive=1, timeout=1)
    async with serving(link, visits, longest=0.1, told=visits.problems.append):
        await visits.reach(1)
        await proxy.reset()
        await visits.reach(2)
        await proxy.cut()
        await until(lambda: len(visits.problems) >= 6)
        await proxy.heal()
        await visits.reach(3)
        proxy.stall()
        await until(lambda: visits.open is None)
        await proxy.heal()
        await visits.reach(4)
    warnings = [record.message for record in caplog.records if record.name == "fp_async"]
    ends = [text for text in warnings if "connected again" in text]
    assert len(ends) == 3
    begun = [text for text in warnings if text.endswith("; trying again")]
    assert len(begun) == len(set(begun)) == len(warnings) - 3  # each reason of an outage once
    assert "refused" in "".join(begun)
    assert visits.problems[-1] is None
    assert "refused" in str(visits.problems)


async def test_serve_outlives_a_killed_broker(broker):
    visits = Visits()
    async with serving(Link.of(broker.uri), visits, longest=0.1):
        await visits.reach(1)
        broker.kill()
        await until(lambda: visits.open is None)
        broker.start()
        await visits.reach(2)


async def test_serve_asks_for_a_new_link_each_time(proxy):
    wills = (Will("test/will", str(number).encode()) for number in range(10))
    visits = Visits()
    async with serving(lambda: through(proxy, will=next(wills)), visits):
        await visits.reach(1)
        assert visits.open._link.will.payload == b"0"
        await proxy.reset()
        await visits.reach(2)
        assert visits.open._link.will.payload == b"1"


async def test_serve_cancels_a_body_that_waits_for_something_else(proxy):
    entered = []

    async def body(connection):
        entered.append(connection)
        if len(entered) == 1:
            await asyncio.Event().wait()

    async with asyncio.timeout(5):
        serve_task = asyncio.create_task(serve(through(proxy), body))
        await until(lambda: entered)
        await proxy.reset()
        await serve_task  # ends when the body returns, the second time
    assert len(entered) == 2


async def test_serve_takes_the_errors_of_a_task_group_for_what_they_are(proxy):
    bodies = []

    async def body(connection):
        bodies.append(connection)
        if len(bodies) == 3:
            raise KeyError("a defect")
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(connection.receive())
            await proxy.reset()

    async with asyncio.timeout(5):
        with pytest.raises(KeyError):
            await serve(through(proxy), body)
    assert len(bodies) == 3


async def test_serve_raises_a_group_with_another_error():
    async def body(_connection):
        raise ExceptionGroup("both", [BrokerError("a"), ValueError("b")])

    with pytest.raises(ExceptionGroup):
        await serve(shared(), body)


async def test_cancelling_serve_as_the_connection_is_lost_ends_it(proxy):
    """A task group with a failed child forgets that it was cancelled in the same moment."""
    inside = asyncio.Event()

    async def fails(ends):
        await ends.wait()
        raise BrokerError("lost")

    async def body(connection):
        ends = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(fails(ends))
            asyncio.get_running_loop().call_soon(lambda: (ends.set(), task.cancel()))
            inside.set()

    task = asyncio.create_task(serve(through(proxy), body, longest=0.001))
    await inside.wait()
    await asyncio.wait([task], timeout=3)
    assert task.cancelled()


@pytest.mark.parametrize("uri", ["mqtt://h", "ws://h"])
def test_files_of_tls_without_tls_are_refused(uri):
    with pytest.raises(ValueError, match="ca_file is for TLS: write mqtts://"):
        Link.of(uri, ca_file="ca.crt")
    assert Link.of("mqtts://h", ca_file="ca.crt").tls


@pytest.mark.parametrize("in_group", [False, True])
async def test_serve_does_not_fight_for_a_session_that_was_taken(in_group):
    visits = Visits()

    async def grouped(connection):
        async with asyncio.TaskGroup() as group:
            group.create_task(visits(connection))
            group.create_task(connection.receive())

    async with scripted(WELCOME + TAKEN) as link:
        with pytest.raises(SessionTakenError):
            await asyncio.wait_for(serve(link, grouped if in_group else visits), 3)
    assert visits.count == 1


async def test_cancelling_serve_at_any_moment_leaves_nothing(proxy):
    async with leaving_nothing():
        for steps in range(40):
            await cancelled_after(steps, serve(through(proxy), Visits()))
        await proxy.cut()
        for steps in range(20):
            await cancelled_after(steps, serve(through(proxy), Visits(), longest=0.001))


def test_pauses_are_random_and_double_up_to_the_longest(monkeypatch):
    monkeypatch.setattr("fp_async.link.FIRST_PAUSE", 1.0)
    for failures, most in ((0, 1.0), (1, 2.0), (3, 8.0), (50, 60.0), (10_000, 60.0)):
        pauses = [pause(failures, 60.0) for _ in range(200)]
        assert most / 2 < max(pauses) <= most
        assert min(pauses) < most / 2


# The bytes


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50)


@given(
    st.none() | st.integers(0, 2**32 - 1),
    st.none() | texts,
    st.none() | st.binary(max_size=300),
    st.lists(st.tuples(texts, texts), max_size=4),
    st.none() | texts,
)
def test_properties_are_written_and_read_as_paho_does(expiry, response, correlation, pairs, kind):
    packed = publish_properties(expiry, response, correlation, pairs, kind)
    theirs = Properties(PacketTypes.PUBLISH)
    theirs.unpack(packed)
    assert getattr(theirs, "MessageExpiryInterval", None) == expiry
    assert getattr(theirs, "ResponseTopic", None) == response
    assert getattr(theirs, "CorrelationData", None) == correlation
    assert getattr(theirs, "UserProperty", []) == pairs
    assert getattr(theirs, "ContentType", None) == kind
    theirs.PayloadFormatIndicator = 1
    theirs.SubscriptionIdentifier = 300
    read = read_publish(0x3B, b"\x00\x01t\x12\x34" + theirs.pack() + b"body", 5, 9)
    assert read == Message(
        *("t", b"body", True, 1, True, 0x1234, 9),
        *(response, correlation, tuple(pairs), kind, expiry, (300,)),
    )


@given(st.integers(0x30, 0x3F), st.binary(max_size=60), st.sampled_from([4, 5]))
def test_a_packet_that_is_cut_or_random_is_a_message_or_a_value_error(header, body, version):
    with contextlib.suppress(ValueError):
        assert isinstance(read_publish(header, body, version, 0), Message)


def test_a_property_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="65,535"):
        publish_properties(correlation=bytes(65_536))
    with pytest.raises(ValueError, match="NUL"):
        publish_properties(user_properties=[("a", "\0")])


@given(st.lists(st.binary(max_size=70_000), min_size=1, max_size=4), st.integers(1, 5_000))
def test_frames_are_read_however_they_are_cut(payloads, size):
    wire = b"".join(server_frame(payload) for payload in payloads)
    frames = Frames()
    got = b"".join(frames.feed(wire[at : at + size]) for at in range(0, len(wire), size))
    assert got == b"".join(payloads)


def server_frame(payload: bytes, kind: int = 2) -> bytes:
    """A frame as a server sends it: without a mask."""
    masked = frame(payload, kind)
    head = len(masked) - len(payload) - 4
    return bytes((masked[0], masked[1] & 0x7F)) + masked[2:head] + payload


@given(st.binary(max_size=70_000))
def test_our_frames_are_masked_as_paho_masks_them(payload):
    ours = frame(payload)
    start = len(ours) - len(payload)
    mask = ours[start - 4 : start]
    assert bytes(byte ^ mask[n % 4] for n, byte in enumerate(ours[start:])) == payload
    theirs = _WebsocketWrapper._create_frame(None, 2, bytearray(payload))
    assert ours[: start - 4] == theirs[: start - 4]


def test_pings_are_answered_and_a_close_ends_it():
    frames = Frames()
    wire = server_frame(b"ping", 9) + server_frame(b"a") + server_frame(b"\x03\xe8bye", 8)
    assert frames.feed(wire + server_frame(b"after")) == b"a"
    assert frames.closed
    pong, close = frame(b"ping", 10), frame(b"\x03\xe8", 8)
    assert len(frames.replies()) == len(pong) + len(close)
    assert frames.replies() == b""
    with pytest.raises(OSError, match="masked"):
        Frames().feed(frame(b"a"))
    with pytest.raises(OSError, match="kind 1"):
        Frames().feed(server_frame(b"text", 1))


def test_a_handshake_has_to_be_the_answer_to_ours():
    _, check = handshake("::1", 80, "/mqtt")
    with pytest.raises(OSError, match="not to our request"):
        check(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x")
