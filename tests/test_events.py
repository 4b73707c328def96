"""One suite for all event brokers, against real servers; then each one's own faults."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import anyio
import pytest
from faults import Proxy, frozen, kill9
from hypothesis import given
from hypothesis import strategies as st
from services import SERVERS, psql, require

from fp_async import events
from fp_async.config import EventBroker
from fp_async.errors import BrokerError, ConfigError, MissingExtraError, UsageError
from fp_async.events import Hub, transport
from fp_async.events.outbox import WAITING_LIMIT, Outbox, acceptable, packed, unpacked
from fp_async.events.sockets import SocketTransport
from fp_async.link import Link, connected

BROKERS = ["sockets", "postgres", "redis", "mqtt"]
REMOTE = BROKERS[1:]


def settings_for(kind: str, uri: str | None = None) -> EventBroker:
    if kind in {"memory", "sockets"}:
        return EventBroker(type="memory")
    return EventBroker(type=kind, uri=uri or require(kind))


class Channel:
    """One data store's wake-ups: hubs that hear each other, each as if in its own process."""

    def __init__(self, kind: str, folder: Path, uri: str | None = None) -> None:
        self.kind = kind
        self.settings = settings_for(kind, uri)
        self.namespace = f"test {secrets.token_hex(4)}"
        self.database = folder / "jobs.db" if kind == "sockets" else None
        self._alone = Hub() if kind == "memory" else None

    def hub(self) -> Hub:
        if self._alone is not None:
            return self._alone
        return Hub(transport(self.settings, self.namespace, folder=self.database))

    @contextlib.asynccontextmanager
    async def hubs(self, count: int = 2):
        made = [self.hub() for _ in range(count)]
        async with running(*made):
            for hub in made:
                assert await hub.wait_connected(5), hub.problem
            yield made

    def process(self, *topics: str) -> Peer:
        where = (self.settings.type, self.settings.uri or "", self.namespace)
        return Peer(*where, str(self.database or ""), *topics)


@contextlib.asynccontextmanager
async def running(*hubs: Hub):
    async with anyio.create_task_group() as group:
        for hub in hubs:
            group.start_soon(hub.run)
        yield
        group.cancel_scope.cancel()


PEER = """
import asyncio, sys
from pathlib import Path
from fp_async.config import EventBroker
from fp_async.events import Hub, transport

kind, uri, namespace, folder, *topics = sys.argv[1:]
settings = EventBroker(type=kind, uri=uri or None)
hub = Hub(transport(settings, namespace, folder=Path(folder) if folder else None))

async def obey():
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        hub.publish(*line.split())
        await hub.flush(5)

async def main():
    running = asyncio.create_task(hub.run())
    await hub.wait_connected(10)
    print("ready", flush=True)
    obeying = asyncio.create_task(obey())
    with hub.listen(*topics) as listener:
        while not obeying.done():
            for topic in await listener.wait(0.2):
                print(topic, flush=True)
    running.cancel()

asyncio.run(main())
"""


class Peer:
    """Another process: prints what it hears, publishes what it is told."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PEER, *self._arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self.process.pid
        assert await self.hears(15) == "ready"
        return self

    async def __aexit__(self, *_) -> None:
        self.process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), 5)
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        self.process._transport.close()

    async def hears(self, timeout: float = 1.0) -> str:
        async with asyncio.timeout(timeout):
            return (await self.process.stdout.readline()).decode().strip()

    def publish(self, *topics: str) -> None:
        self.process.stdin.write(" ".join(topics).encode() + b"\n")


async def heard(listener: events.Listener, wanted: set[str], timeout: float = 3.0) -> set[str]:
    """What a listener hears until it has heard all that is wanted; fails after the time-out."""
    got: set[str] = set()
    try:
        async with asyncio.timeout(timeout):
            while not wanted <= got:
                got |= await listener.wait()
    except TimeoutError:
        pytest.fail(f"not heard: {sorted(wanted - got)[:5]}")
    return got


async def until_problem(hub: Hub, *words: str, timeout: float = 5.0) -> str:
    """Wait until the hub tells a problem with these words."""
    async with asyncio.timeout(timeout):
        while not (hub.problem and all(word in hub.problem.lower() for word in words)):
            await asyncio.sleep(0.01)
    return hub.problem


@pytest.fixture(params=["memory", *BROKERS])
def channel(request, tmp_path) -> Channel:
    return Channel(request.param, tmp_path)


@pytest.fixture(params=BROKERS)
def shared(request, tmp_path) -> Channel:
    """A channel that reaches other processes."""
    return Channel(request.param, tmp_path)


@pytest.fixture(params=REMOTE)
def server(request):
    """An own server that may be killed."""
    with SERVERS[request.param]() as server:
        server.kind = request.param
        yield server


# The suite


async def test_a_wake_up_reaches_who_listens_for_it(channel):
    async with channel.hubs() as (here, there):
        with there.listen("job:1", "job:2") as listener, there.listen("job:3") as other:
            here.publish("job:2")
            assert await listener.wait(1) == {"job:2"}
            assert await other.wait(0.05) == frozenset()


async def test_a_prefix_and_a_star_hear_all_that_matches(channel):
    async with channel.hubs() as (here, there):
        with there.listen("work:*") as work, there.listen("*") as everything:
            here.publish("job:1", "work:default", "schedules")
            assert await heard(work, {"work:default"}) == {"work:default"}
            await heard(everything, {"job:1", "work:default", "schedules"})


async def test_a_burst_arrives_whole(channel):
    topics = {f"job:{number}-{'x' * 36}" for number in range(1_000)}
    async with channel.hubs() as (here, there):
        with there.listen("job:*") as listener:
            here.publish(*topics)
            assert await heard(listener, topics) == topics


async def test_many_listeners_each_hear_their_own(channel):
    async with channel.hubs() as (here, there):
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(there.listen(f"job:{n}")) for n in range(1_000)]
            here.publish(*(f"job:{n}" for n in range(1_000)))
            for number, listener in enumerate(listeners):
                assert await listener.wait(3) == {f"job:{number}"}


async def test_three_processes_worth_of_hubs_hear_each_other(channel):
    async with channel.hubs(3) as (first, second, third):
        with first.listen("a") as one, second.listen("a") as two:
            third.publish("a")
            assert await one.wait(1) == await two.wait(1) == {"a"}


async def test_flush_waits_until_the_broker_has_all(channel):
    async with channel.hubs() as (here, there):
        with there.listen("*") as listener:
            here.publish(*(f"job:{n}" for n in range(500)))
            assert await here.flush(3)
            await heard(listener, {f"job:{n}" for n in range(500)})


async def test_odd_topics_do_no_harm(channel):
    async with channel.hubs() as (here, there):
        with there.listen("work:ö ü") as listener, there.listen("*") as everything:
            here.publish("x" * 100_000, "two\nlines", "\0", "", "\ud800", "work:ö ü")
            assert "work:ö ü" in await heard(listener, {"work:ö ü"})
            await everything.wait(1)
            assert here.problem == there.problem == ""


async def test_cancelling_is_quick_and_leaves_nothing(channel):
    before = asyncio.all_tasks()
    hub = channel.hub()
    task = asyncio.create_task(hub.run())
    assert await hub.wait_connected(5)
    task.cancel()
    started = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 1
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_cancelling_at_any_moment_leaves_nothing(shared):
    before = asyncio.all_tasks()
    for steps in range(0, 60, 3):
        task = asyncio.create_task(shared.hub().run())
        for _ in range(steps):
            await asyncio.sleep(0.0002)
        task.cancel()
        async with asyncio.timeout(1):
            await asyncio.wait((task,))
        assert task.cancelled()
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == before


# Across processes


async def test_another_process_hears_within_a_second(shared):
    async with shared.process("job:*") as peer, shared.hubs(1) as (hub,):
        for number in range(20):
            started = time.monotonic()
            hub.publish(f"job:{number}")
            assert await peer.hears() == f"job:{number}"
            assert time.monotonic() - started < 1


async def test_another_process_is_heard_within_a_second(shared):
    async with shared.process("nothing") as peer, shared.hubs(1) as (hub,):
        with hub.listen("job:*") as listener:
            for number in range(20):
                peer.publish(f"job:{number}")
                assert await listener.wait(1) == {f"job:{number}"}


async def test_a_killed_process_disturbs_nobody(shared):
    async with shared.process("job:*") as peer, shared.hubs() as (here, there):
        peer.process.kill()
        await peer.process.wait()
        with there.listen("job:1") as listener:
            here.publish("job:1")
            assert await listener.wait(1) == {"job:1"}


async def test_other_namespaces_hear_nothing(tmp_path, shared):
    (tmp_path / "other").mkdir()
    other = Channel(shared.kind, tmp_path / "other")
    async with shared.hubs(1) as (here,), other.hubs(1) as (there,):
        with there.listen("*") as listener:
            here.publish("job:1")
            assert await here.flush(3)
            assert await listener.wait(0.1) == frozenset()


async def shout(channel: Channel, message: bytes) -> None:
    """Put raw bytes on the channel, past our own code."""
    match channel.kind:
        case "sockets":
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                for path in channel.database.with_name("jobs.db.wake").iterdir():
                    with contextlib.suppress(OSError):
                        sock.sendto(message, str(path))
        case "postgres":
            text = message.decode(errors="replace").replace("\0", "").replace("'", "''")
            channel_name = f"fp_wake_{channel.namespace}"
            psql(channel.settings.uri, f"SELECT pg_notify('{channel_name}', '{text[:7000]}')")
        case "redis":
            import redis.asyncio

            async with redis.asyncio.Redis.from_url(channel.settings.uri) as client:
                await client.publish(f"fp:wake:{channel.namespace}", message)
        case "mqtt":
            async with connected(Link.of(channel.settings.uri)) as link:
                topic = f"fp/v1/{channel.namespace.replace('/', '%2F')}/wake"
                await link.publish(topic, message, qos=1)


HOSTILE = [
    b"\xff\xfe\x00junk",
    b"",
    b"fp-wake-1 ",
    b"fp-wake-1 other\n\x00\x01",
    b"fp-wake-1 other\n\njob:1",
    b"fp-wake-1 other\njob:1\n" + b"x" * 30_000,
    b"A" * 100_000,
]


async def test_hostile_messages_are_ignored(shared):
    async with shared.hubs() as (here, there):
        with there.listen("*") as listener:
            for message in HOSTILE:
                await shout(shared, message)
            here.publish("job:2")
            assert await heard(listener, {"job:2"}) == {"job:2"}
        assert there.connected
        assert there.problem == ""


async def test_a_well_formed_message_of_a_stranger_is_a_wake_up(shared):
    async with shared.hubs(1) as (hub,):
        with hub.listen("job:7") as listener:
            await shout(shared, packed("stranger", ["job:7"]).encode())
            assert await listener.wait(1) == {"job:7"}


# Servers that fail


async def test_a_killed_server_comes_back_and_everybody_looks(server, tmp_path):
    channel = Channel(server.kind, tmp_path, server.uri)
    async with channel.hubs() as (here, there):
        with there.listen("job:1") as listener:
            server.kill()
            await until_problem(there)
            await until_problem(here)
            assert not there.connected
            here.publish("job:1")
            server.start()
            assert await here.wait_connected(15)
            assert await there.wait_connected(15)
            assert "*" in await listener.wait(1)
            await listener.wait(0.1)
            here.publish("job:1")
            assert await listener.wait(1) == {"job:1"}
            assert here.problem == there.problem == ""


async def test_a_server_may_come_later(server, tmp_path):
    server.kill()
    channel = Channel(server.kind, tmp_path, server.uri)
    hub = channel.hub()
    async with running(hub):
        problem = await until_problem(hub)
        assert f"127.0.0.1:{server.port}" in problem
        hub.publish("job:1")
        assert not await hub.flush(0.05)
        server.start()
        assert await hub.wait_connected(10)
        assert await hub.flush(5)


@pytest.mark.parametrize("kind", REMOTE)
async def test_a_wrong_password_is_told_while_it_retries(kind, tmp_path, caplog):
    with SERVERS[kind]("right") as server:
        uri = server.uri.replace("right", "wrong-secret")
        hub = Channel(kind, tmp_path, uri).hub()
        good = Channel(kind, tmp_path, server.uri).hub()
        async with running(hub, good):
            problem = await until_problem(hub)
            assert "wrong-secret" not in problem
            assert any(word in problem.lower() for word in ("password", "not authori"))
            assert await good.wait_connected(5), good.problem
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warnings) == 1


@pytest.mark.parametrize("kind", REMOTE)
async def test_a_network_that_breaks_is_noticed_and_mended(kind, tmp_path):
    uri = require(kind)
    port = int(uri.rpartition(":")[2].partition("/")[0])
    async with Proxy(port) as proxy:
        channel = Channel(kind, tmp_path, uri.replace(str(port), str(proxy.port)))
        direct = Channel(kind, tmp_path, uri)
        direct.namespace = channel.namespace
        async with channel.hubs(1) as (far,), direct.hubs(1) as (near,):
            for break_it in (proxy.reset, proxy.cut):
                await break_it()
                with far.listen("job:1") as listener:
                    await proxy.heal()
                    async with asyncio.timeout(10):
                        assert await listener.wait() == {"*"}
                    near.publish("job:1")
                    assert await listener.wait(1) == {"job:1"}
            proxy.stall()
            far.publish("job:2")
    # leaving the hubs while the network is silent was quick, or the next line would not be true
    assert not far.connected


@pytest.mark.parametrize("kind", REMOTE)
async def test_cancelling_in_a_silent_network_is_quick(kind, tmp_path):
    uri = require(kind)
    port = int(uri.rpartition(":")[2].partition("/")[0])
    async with Proxy(port) as proxy:
        channel = Channel(kind, tmp_path, uri.replace(str(port), str(proxy.port)))
        for stalled_from_the_start in (True, False):
            await proxy.heal()
            if stalled_from_the_start:
                proxy.stall()
            hub = channel.hub()
            task = asyncio.create_task(hub.run())
            await hub.wait_connected(0.2 if stalled_from_the_start else 5)
            proxy.stall()
            hub.publish("job:1")
            await asyncio.sleep(0.05)
            task.cancel()
            async with asyncio.timeout(1):
                await asyncio.wait((task,))
            assert task.cancelled()


@pytest.mark.parametrize("kind", ["postgres", "redis"])
async def test_a_silent_server_is_noticed(kind, tmp_path, monkeypatch):
    module = __import__(f"fp_async.events.{kind}", fromlist=["x"])
    monkeypatch.setattr(module, "KEEPALIVE_SECONDS", 0.2)
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.5)
    with SERVERS[kind]() as server:
        port = server.port
        async with Proxy(port) as proxy:
            channel = Channel(kind, tmp_path, server.uri.replace(str(port), str(proxy.port)))
            async with channel.hubs(1) as (hub,):
                await asyncio.sleep(0.5)
                assert hub.connected
                proxy.stall()
                await until_problem(hub)
                await proxy.heal()
                assert await hub.wait_connected(5)


# Sockets


def wake_folder(channel: Channel) -> Path:
    return channel.database.with_name("jobs.db.wake")


@pytest.fixture
def local(tmp_path) -> Channel:
    return Channel("sockets", tmp_path)


async def test_the_folder_has_the_databases_rights_and_goes_with_the_last(local):
    local.database.touch()
    local.database.chmod(0o640)
    async with local.hubs():
        assert stat.S_IMODE(wake_folder(local).stat().st_mode) == 0o750
        modes = {stat.S_IMODE(path.lstat().st_mode) for path in wake_folder(local).iterdir()}
        assert modes == {0o640}
    assert not wake_folder(local).exists()


async def test_a_deep_folder_is_no_problem(tmp_path):
    deep = tmp_path / ("a" * 100) / ("b" * 100)
    deep.mkdir(parents=True)
    async with Channel("sockets", deep).hubs() as (here, there):
        with there.listen("a") as listener:
            here.publish("a")
            assert await listener.wait(1) == {"a"}


async def test_sockets_of_killed_processes_are_swept(local):
    async with local.process("*") as peer:
        peer.process.kill()
        await peer.process.wait()
        assert len(list(wake_folder(local).iterdir())) == 1
        async with local.hubs(1) as (hub,):
            hub.publish("a")
            assert await hub.flush(1)
            assert len(list(wake_folder(local).iterdir())) == 1
    assert not wake_folder(local).exists()


async def test_a_folder_that_cannot_be_is_one_warning_and_later_is_there(tmp_path, caplog):
    channel = Channel("sockets", tmp_path / "missing")
    hub = channel.hub()
    async with running(hub):
        await until_problem(hub, "no such file")
        with hub.listen("a") as listener:
            hub.publish("a")  # in this process nothing is missing
            assert await listener.wait(1) == {"a"}
        await asyncio.sleep(0.3)
        (tmp_path / "missing").mkdir()
        assert await hub.wait_connected(6)
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 2
    assert told[1] == "event broker: connected again"  # as loud as what it takes back


async def test_a_folder_that_was_deleted_is_made_again(local, monkeypatch):
    monkeypatch.setattr("fp_async.events.sockets.CHECK_SECONDS", 0.05)
    async with local.hubs() as (here, there):
        with there.listen("a") as listener:
            shutil.rmtree(wake_folder(local))
            assert await listener.wait(2) == {"*"}
            assert await here.wait_connected(2)
            await asyncio.sleep(0.3)
            await listener.wait(0)
            here.publish("a")
            assert "a" in await heard(listener, {"a"})


async def test_a_peer_that_is_full_hears_a_star_later(local):
    async with local.process("*") as peer, local.hubs(1) as (hub,):
        with frozen(peer):
            for number in range(1_000):
                hub.publish(f"job:{number}")
                assert await hub.flush(1)
        said = [await peer.hears()]
        while said[-1] != "*":
            said.append(await peer.hears())
        assert 2 < len(said) < 1_002
        hub.publish("after")
        assert await peer.hears() == "after"


async def test_peers_that_come_quickly_after_each_other_are_all_found(local):
    async with local.hubs(1) as (here,):
        for _ in range(10):
            async with local.hubs(1) as (there,):
                with there.listen("a") as listener:
                    here.publish("a")
                    assert await listener.wait(1) == {"a"}


# The hub alone


async def test_a_wait_hears_what_came_before_it():
    hub = Hub()
    with hub.listen("a", "b") as listener:
        hub.publish("b")
        hub.publish("a", "a")
        assert await listener.wait(0) == {"a", "b"}
        assert await listener.wait(0) == frozenset()


async def test_nothing_is_heard_outside_the_with():
    hub = Hub()
    listener = hub.listen("a", "b:*")
    hub.publish("a")
    with listener:
        assert await listener.wait(0) == frozenset()
    hub.publish("a", "b:1")
    assert await listener.wait(0) == frozenset()
    assert not hub._exact
    assert not hub._prefixes


async def test_a_cancelled_wait_loses_nothing():
    hub = Hub()
    with hub.listen("a") as listener:
        task = asyncio.create_task(listener.wait())
        await asyncio.sleep(0)
        hub.publish("a")
        task.cancel()
        await asyncio.wait((task,))
        assert await listener.wait(0) == {"a"}


async def test_two_tasks_cannot_wait_on_one_listener():
    with Hub().listen("a") as listener:
        task = asyncio.create_task(listener.wait())
        await asyncio.sleep(0)
        with pytest.raises(UsageError):
            await listener.wait(0)
        task.cancel()


async def test_a_listener_that_never_waits_keeps_no_more_than_a_star():
    hub = Hub()
    with hub.listen("job:*") as listener:
        for number in range(WAITING_LIMIT + 1):
            hub.publish(f"job:{number}")
        assert await listener.wait(0) == {"*"}


async def test_without_a_transport_all_is_well_and_run_only_sleeps():
    hub = Hub()
    assert hub.connected
    assert hub.problem == ""
    assert await hub.flush(0)
    with anyio.move_on_after(0.01) as scope:
        await hub.run()
    assert scope.cancelled_caught


async def test_a_wake_up_costs_the_same_with_a_thousand_listeners():
    hub = Hub()
    with contextlib.ExitStack() as stack:
        for number in range(1_000):
            stack.enter_context(hub.listen(f"job:{number}"))
        started = time.perf_counter()
        for _ in range(10_000):
            hub.publish("job:5")
        assert time.perf_counter() - started < 0.2


class Broken:
    """A transport that fails as told, then works."""

    patience = 0.01

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    async def serve(self, hear, outbox, up) -> None:
        if self.errors:
            raise self.errors.pop(0)
        up()
        await anyio.sleep_forever()


async def test_an_unexpected_error_of_a_client_library_does_not_end_the_run(caplog):
    hub = Hub(Broken(BrokerError("one"), ValueError("two"), BrokerError("three")))
    async with running(hub):
        assert await hub.wait_connected(2)
    assert [record.message.split(";")[0] for record in caplog.records if record.levelno > 20] == [
        "event broker: one",
        "event broker: connected again",
    ]


async def test_each_connect_wakes_all_listeners():
    hub = Hub(Broken(BrokerError("away")))
    with hub.listen("a") as one, hub.listen("b:*") as two:
        async with running(hub):
            assert await one.wait(1) == await two.wait(1) == {"*"}


def test_pauses_are_random_and_double_up_to_the_patience():
    for failures, most in ((0, 0.05), (1, 0.1), (3, 0.4), (50, 5.0), (10_000, 5.0)):
        pauses = [events.pause(failures, 5.0) for _ in range(200)]
        assert most / 2 < max(pauses) <= most
        assert min(pauses) < most / 2


# The outbox and the wire


async def test_an_outbox_that_overflows_says_star():
    outbox = Outbox()
    for number in range(WAITING_LIMIT + 1):
        outbox.put([f"job:{number}"])
    assert len(outbox) == 1
    assert unpacked(await outbox.take(), "other") == ["*"]


async def test_overflow_reaches_other_processes_as_a_star(shared):
    here = shared.hub()
    here.publish(*(f"job:{n}" for n in range(WAITING_LIMIT + 5)))
    async with shared.hubs(1) as (there,):
        with there.listen("job:1") as listener:
            async with running(here):
                assert await listener.wait(3) == {"*"}


async def test_what_was_taken_and_not_done_is_sent_again_first():
    outbox = Outbox()
    outbox.put(["a", "b"])
    await outbox.take()
    outbox.put(["c", "a"])
    outbox.restore()
    assert unpacked(await outbox.take(), "other") == ["a", "b", "c"]
    outbox.done()
    await asyncio.wait_for(outbox.emptied(), 1)


@given(st.lists(st.text()))
async def test_every_message_is_short_and_what_peers_would_refuse_becomes_a_star(topics):
    outbox = Outbox("me")
    outbox.put(topics)
    wanted = list(dict.fromkeys(topic if acceptable(topic) else "*" for topic in topics))
    got: list[str] = []
    while len(outbox):
        message = await outbox.take()
        outbox.done()
        assert len(message.encode()) < 4_000
        assert unpacked(message.encode(), "me") == []
        got += unpacked(message.encode(), "other")
    assert set(got) == ({"*"} if "*" in topics else set(wanted))


@given(st.binary() | st.binary().map(lambda junk: b"fp-wake-1 " + junk))
def test_junk_is_never_more_than_acceptable_topics(junk):
    assert all(map(acceptable, unpacked(junk, "me")))


# Settings


def test_memory_without_a_shared_file_needs_no_transport(tmp_path):
    assert transport(EventBroker(), "x") is None
    assert isinstance(transport(EventBroker(), "x", folder=tmp_path / "a.db"), SocketTransport)


@pytest.mark.parametrize("library", ["redis", "asyncpg"])
def test_a_missing_library_names_its_extra(library, monkeypatch):
    kind = "redis" if library == "redis" else "postgres"
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.asyncio", None)
    with pytest.raises(MissingExtraError, match=rf"fp-async\[{kind}\]"):
        transport(EventBroker(type=kind), "x")


@pytest.mark.parametrize(
    ("kind", "uri", "reason"),
    [
        ("redis", "mqtt://host", "redis://"),
        ("mqtt", "redis://host", "mqtts://"),
        ("postgres", "nonsense", "postgresql://"),
        ("redis", "redis://host:port", "Port"),
        ("mqtt", "mqtt://host:99999", "port is a number up to 65535"),
    ],
)
def test_a_bad_address_is_a_mistake_in_the_configuration(kind, uri, reason):
    with pytest.raises(ConfigError, match=reason):
        transport(EventBroker(type=kind, uri=uri), "x")


@pytest.mark.parametrize("kind", REMOTE)
async def test_host_port_and_the_stores_address_work_too(kind):
    uri = require(kind)
    port = int(uri.rpartition(":")[2].partition("/")[0])
    user = "postgres" if kind == "postgres" else None
    by_host = EventBroker(type=kind, host="127.0.0.1", port=port, username=user)
    fallback = uri.replace("postgresql://", "postgresql+asyncpq://")
    first, second = transport(by_host, "x"), transport(EventBroker(type=kind), "x", uri=fallback)
    here, there = Hub(first), Hub(second)
    async with running(here, there):
        assert await here.wait_connected(5), here.problem
        assert await there.wait_connected(5), there.problem


@pytest.mark.parametrize("driver", ["", "+asyncpg", "+asyncpq", "+psycopg"])
def test_addresses_of_sqlalchemy_are_understood(driver):
    from fp_async.events.postgres import plain_dsn

    uri = f"postgresql{driver}://u:p%40@host:1/db?ssl=require&prepared_statement_cache_size=0"
    assert plain_dsn(uri) == "postgresql://u:p%40@host:1/db?sslmode=require"


# Faults


async def test_a_proxy_and_kill9_do_what_they_say():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    kill9(process)
    assert process.returncode == -9
    process.stdin.close()
