"""Brokers for the edge: the embedded one, and a Mosquitto as `broker-config` sets it up."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import psutil
import pytest
import services
import yaml
from edge_kit import AGENT, conf, edge_fleet, until_known
from fleet import COMMAND, make
from services import answers, free_port, program

from edge_agent import config as agent_config
from edge_agent.config import AgentSettings
from fp_async import broker, broker_files, documents, link, scaffold
from fp_async.broker_files import Plan
from fp_async.errors import BrokerError, MissingExtraError, PublishRefusedError, UsageError
from fp_async.link import Link, Will, connected

ROOT = Path(__file__).parent.parent
SQLITE = "data_store:\n  type: sqlite\n  uri: sqlite:///jobs.db\n"
TOP = "fp/v1/main"
SECONDS = 15


def flowerpower(*arguments, cwd, code=0):
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done


class Fenced(services.Server):
    """A Mosquitto that runs with what `broker-config` has written, as a user of its own."""

    user = "mosquitto"
    options = ("--tls",)

    @property
    def place(self):
        return self.folder / "broker"

    def configure(self, *options):
        """Run the command, and let the broker read what it wrote."""
        done = flowerpower("broker-config", "--out", self.place, *options, cwd=self.folder)
        if self.identity():
            for path in (self.place, *self.place.rglob("*")):
                os.chown(path, self.identity()["user"], self.identity()["group"])
        return done

    def prepare(self):
        program("openssl")
        topics = ("--answers", "answers/#", "--answers", "sensors/#", "--local-topics", "sensors/#")
        names = ("--agents", "pi-7,pi-8,pi-9", "--port", str(self.port))
        self.configure(*names, *self.options, *topics)

    def command(self):
        return [program("mosquitto"), "-c", str(self.place / "mosquitto.conf")]

    def reload(self):
        """SIGHUP, and wait until it is done."""
        before = self.log().count("Reloading config")
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while self.log().count("Reloading config") == before:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def link(self, name, **changes):
        """As that agent, or as the gateway, would connect."""
        folder = self.place / ("gateway" if name == "gateway" else f"agents/{name}")
        file = "mqtt.yml" if name == "gateway" else "agent.yml"
        said = yaml.safe_load((folder / file).read_text())
        said = said.get("broker") if name == "gateway" else said
        settings = {
            "username": said["username"],
            "password": said["password"],
            "client_id": said["username"],
            "ca_file": str(folder / "ca.crt"),
            "cert_file": str(folder / "client.crt"),
            "key_file": str(folder / "client.key"),
            **changes,
        }
        return Link.of(said.get("uri") or said["broker"], **settings)


@pytest.fixture(scope="module")
def fenced():
    with Fenced() as server:
        yield server


async def until(connection, last):
    """What is heard up to and without the message `last`."""
    heard = []
    with anyio.fail_after(SECONDS):
        while True:
            for message in await connection.receive():
                if message.payload == last:
                    return heard
                heard.append((message.topic, message.payload))


async def say(connection, topic, payload=b"x"):
    """Publish and wait for the answer; whether it was refused is not asked."""
    try:
        await connection.publish(topic, payload, qos=1)
    except PublishRefusedError as error:
        assert error.code == 0x87


# Rights -------------------------------------------------------------------------------------

OTHERS = [
    f"{TOP}/agent/pi-7/state",
    f"{TOP}/agent/pi-7/do",
    f"{TOP}/agent/pi-7/report",
    f"{TOP}/run/flow",
    f"{TOP}/run/flow/outcome",
    f"{TOP}/job/1234",
    "fp/v1/other/agent/pi-8/do",
    "answers/1",
]
FORBIDDEN_TO_SAY = [*OTHERS, f"{TOP}/agent/pi-8/do", f"{TOP}/gateway/state", "sensors/s1"]
FORBIDDEN_TO_HEAR = [each for each in OTHERS if "other" not in each] + [
    f"{TOP}/agent/pi-8/report",
    "sensors/s1",
]


@pytest.mark.parametrize("topic", FORBIDDEN_TO_HEAR)
async def test_an_agent_cannot_hear_what_is_not_its_own(fenced, topic):
    async with (
        connected(fenced.link("gateway")) as gateway,
        connected(fenced.link("pi-8")) as agent,
    ):
        await agent.subscribe_all([(topic, 1), (f"{TOP}/agent/pi-8/do", 1)])
        await gateway.publish(topic, b"secret", qos=1)
        await gateway.publish(f"{TOP}/agent/pi-8/do", b"last", qos=1)
        assert await until(agent, b"last") == []


@pytest.mark.parametrize("topic", ["#", "fp/#", f"{TOP}/agent/+/do", f"{TOP}/agent/+/state", "+/#"])
async def test_wildcards_show_an_agent_only_its_own(fenced, topic):
    async with (
        connected(fenced.link("gateway")) as gateway,
        connected(fenced.link("pi-8")) as agent,
    ):
        await agent.subscribe(topic, 1)
        await agent.subscribe(f"{TOP}/gateway/state", 1)
        for each in FORBIDDEN_TO_HEAR:
            await gateway.publish(each, b"secret", qos=1)
        await gateway.publish(f"{TOP}/gateway/state", b"last", qos=1)
        assert await until(agent, b"last") == []


@pytest.mark.parametrize("topic", FORBIDDEN_TO_SAY)
async def test_an_agent_cannot_say_what_is_not_its_own(fenced, topic):
    """Somebody who may hear it does not: pi-7 its own, the gateway all below the prefix."""
    listener = {
        "sensors/s1": lambda: sensors(fenced),
        f"{TOP}/agent/pi-7/do": lambda: fenced.link("pi-7"),
    }.get(topic, lambda: fenced.link("gateway"))()
    async with connected(listener) as other, connected(fenced.link("pi-8")) as agent:
        mine = "sensors/last" if topic == "sensors/s1" else f"{TOP}/agent/pi-8/report"
        mine = f"{TOP}/agent/pi-7/do" if topic.endswith("pi-7/do") else mine
        await other.subscribe_all({(topic, 1), (mine, 1)})
        await say(agent, topic)
        if mine.endswith("report"):
            await agent.publish(mine, b"last", qos=1)
        else:
            async with connected(fenced.link("gateway")) as gateway:
                await gateway.publish(mine, b"last", qos=1)
        assert await until(other, b"last") == []


def sensors(fenced):
    """As pi-7 connects for the topics of its own triggers."""
    text = yaml.safe_load((fenced.place / "agents/pi-7/agent.yml").read_text())["triggers_broker"]
    files = {key: getattr(fenced.link("pi-7"), key) for key in ("ca_file", "cert_file", "key_file")}
    return Link.of(text, client_id="pi-7-triggers", **files)


async def test_each_says_and_hears_what_is_its_own(fenced):
    """Without it the tests above would pass at a broker that delivers nothing at all."""
    async with (
        connected(fenced.link("gateway")) as gateway,
        connected(fenced.link("pi-8")) as agent,
        connected(sensors(fenced)) as local,
    ):
        await gateway.subscribe(f"{TOP}/#", 1)
        await local.subscribe("sensors/#", 1)
        own = [f"{TOP}/agent/pi-8/{what}" for what in ("do", "state")] + [f"{TOP}/gateway/state"]
        await agent.subscribe_all([(topic, 1) for topic in own])
        for topic in own:
            await gateway.publish(topic, b"from gateway", qos=1)
        for what in ("state", "report"):
            await agent.publish(f"{TOP}/agent/pi-8/{what}", b"from agent", qos=1)
        await gateway.publish("sensors/s1", b"21", qos=1)
        await gateway.publish("sensors/s1", b"last", qos=1)
        await gateway.publish(own[0], b"last", qos=1)
        expected = [(topic, b"from gateway") for topic in own]
        assert await until(agent, b"last") == [*expected, (own[1], b"from agent")]
        told = [(f"{TOP}/agent/pi-8/{what}", b"from agent") for what in ("state", "report")]
        assert await until(gateway, b"last") == [*expected, *told]
        assert await until(local, b"last") == [("sensors/s1", b"21")]


async def test_a_will_says_nothing_that_the_agent_may_not(fenced):
    async with connected(fenced.link("gateway")) as gateway:
        await gateway.subscribe(f"{TOP}/agent/+/state", 1)
        for victim, expected in (("pi-7", []), ("pi-8", [(f"{TOP}/agent/pi-8/state", b"will")])):
            will = Will(f"{TOP}/agent/{victim}/state", b"will", retain=False)
            async with connected(fenced.link("pi-8", will=will)) as dying:
                dying._session.close()  # the socket, without a goodbye
                async with connected(fenced.link("pi-8")) as agent:
                    await agent.publish(f"{TOP}/agent/pi-8/state", b"last", qos=1)
                    assert await until(gateway, b"last") == expected


# Who may connect ----------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["gateway", "pi-7"])
async def test_nobody_takes_a_session_by_its_client_id(fenced, victim):
    topic = f"{TOP}/agent/pi-7/{'report' if victim == 'gateway' else 'do'}"
    stolen = fenced.link(victim).client_id
    async with connected(fenced.link(victim)) as owner:
        await owner.subscribe(topic, 1)
        async with connected(fenced.link("pi-8", client_id=stolen, clean_start=False)) as thief:
            assert not thief.session_present
            sender = fenced.link("pi-7" if victim == "gateway" else "gateway")
            async with connected(sender) as other:
                await other.publish(topic, b"last", qos=1)
                assert await until(owner, b"last") == []
        assert owner.lost is None


class TwoSites(Fenced):
    """One broker for two sites, with one authority."""

    @property
    def second(self):
        return self.place / "sites/berlin"

    def prepare(self):
        program("openssl")
        names = ("--agents", "pi-7", "--local-topics", "sensors/#")
        self.configure(*names, "--port", str(self.port), "--tls")
        self.configure(*names, "--site", "berlin")

    def agent(self, folder):
        """As the agent itself connects, by the agent.yml that was written for it."""
        return agent_config.address(agent_config.read(folder / "agents/pi-7/agent.yml", {}, {}))


async def test_b6_agents_of_one_name_in_two_sites_share_a_broker():
    with TwoSites() as server:
        main, berlin = server.agent(server.place), server.agent(server.second)
        assert (main.client_id, berlin.client_id) == ("pi-7", "pi-7@berlin")
        gateway = yaml.safe_load((server.second / "gateway/mqtt.yml").read_text())["broker"]
        gateway = Link.of(gateway.pop("uri"), **gateway)
        async with (
            connected(main) as ours,
            connected(berlin) as theirs,
            connected(gateway) as boss,
        ):
            await boss.subscribe("fp/v1/berlin/#", 1)
            await theirs.subscribe("fp/v1/berlin/agent/pi-7/do", 1)
            await ours.subscribe("fp/v1/berlin/agent/pi-7/do", 1)  # granted, and nothing comes
            await ours.subscribe("fp/v1/main/agent/pi-7/do", 1)
            await say(ours, "fp/v1/berlin/agent/pi-7/report", b"not mine")
            await theirs.publish("fp/v1/berlin/agent/pi-7/report", b"mine", qos=1)
            await say(theirs, "fp/v1/main/agent/pi-7/report", b"not mine")
            await boss.publish("fp/v1/berlin/agent/pi-7/do", b"for berlin", qos=1)
            await boss.publish("fp/v1/berlin/agent/pi-7/do", b"last", qos=1)
            assert await until(theirs, b"last") == [("fp/v1/berlin/agent/pi-7/do", b"for berlin")]
            assert await until(boss, b"for berlin") == [("fp/v1/berlin/agent/pi-7/report", b"mine")]
            assert (ours.lost, theirs.lost) == (None, None)
        near = agent_config.read(server.second / "agents/pi-7/agent.yml", {}, {})
        async with connected(agent_config.triggers_address(near)) as local:
            await local.subscribe("sensors/#", 1)


async def test_b6_without_rights_they_do_not_throw_each_other_off():
    with services.Mosquitto() as server:
        sites = ("main", "berlin", "paris")
        settings = [AgentSettings(name="pi-7", broker=server.uri, site=site) for site in sites]
        settings.append(AgentSettings(name="pi-7", broker=server.uri, prefix="other"))
        async with contextlib.AsyncExitStack() as stack:
            links = [agent_config.address(each) for each in settings]
            opened = [await stack.enter_async_context(connected(link)) for link in links]
            for each in opened:
                await each.subscribe("ping", 1)
            await opened[0].publish("ping", b"last", qos=1)
            for each in opened:
                assert await until(each, b"last") == []
            assert [each.lost for each in opened] == [None] * 4


def test_b6_a_site_that_was_configured_before_keeps_its_users(tmp_path):
    make_it = ("broker-config", "--agents", "pi-7", "--site", "berlin")
    flowerpower(*make_it, cwd=tmp_path)
    place = tmp_path / "broker"
    assert "username: pi-7@berlin" in (place / "agents/pi-7/agent.yml").read_text()
    shutil.rmtree(place / "agents")
    (place / "passwords").unlink()
    state = json.loads((place / "broker-config.json").read_text())
    del state["plan"]["plain"]  # as an earlier release has written it
    (place / "broker-config.json").write_text(json.dumps({**state, "written": {}}))
    flowerpower("broker-config", "--agents", "pi-8", "--overwrite", cwd=tmp_path)
    users = [line.partition(":")[0] for line in (place / "passwords").read_text().splitlines()]
    assert users == ["fp-gateway-berlin", "pi-7", "pi-8@berlin"]
    acl = (place / "acl").read_text()
    assert "user pi-7\ntopic write fp/v1/berlin/agent/pi-7/state" in acl
    assert "user pi-8@berlin\ntopic write fp/v1/berlin/agent/pi-8/state" in acl
    flowerpower("broker-config", "--revoke", "pi-7", cwd=tmp_path)
    flowerpower("broker-config", "--agents", "pi-7", cwd=tmp_path)
    users = [line.partition(":")[0] for line in (place / "passwords").read_text().splitlines()]
    assert sorted(users) == ["fp-gateway-berlin", "pi-7@berlin", "pi-8@berlin"]
    assert "pattern" not in (place / "acl").read_text()


async def test_without_that_option_a_session_is_taken(tmp_path):
    """What `use_username_as_clientid` is for."""
    with Fenced() as server:
        path = server.place / "mosquitto.conf"
        text = path.read_text()
        path.write_text(text.replace("use_username_as_clientid true", ""))
        assert path.read_text() != text
        server.kill()
        server.start()
        async with (
            connected(server.link("gateway")) as gateway,
            connected(server.link("pi-8", client_id="fp-gateway-main")),
        ):
            with anyio.fail_after(SECONDS):
                await gateway.wait_lost()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"password": "wrong"}, id="wrong password"),
        pytest.param({"username": "nobody"}, id="unknown user"),
        pytest.param({"username": None, "password": None}, id="anonymous"),
        pytest.param({"cert_file": None, "key_file": None}, id="no certificate"),
        pytest.param({"tls": False}, id="no TLS"),
        pytest.param({"ca_file": None}, id="does not know the authority"),
    ],
)
async def test_who_is_refused(fenced, changes):
    made = fenced.link("pi-7")
    import msgspec

    with pytest.raises(BrokerError):
        async with connected(msgspec.structs.replace(made, timeout=5.0, **changes)):
            pass
    async with connected(made):
        pass


async def test_a_certificate_of_another_authority_is_refused(fenced, tmp_path):
    flowerpower("broker-config", "--agents", "pi-7", "--tls", "--out", "other", cwd=tmp_path)
    other = tmp_path / "other/agents/pi-7"
    files = {"cert_file": str(other / "client.crt"), "key_file": str(other / "client.key")}
    with pytest.raises(BrokerError):
        async with connected(fenced.link("pi-7", **files)):
            pass


async def test_a_revoked_agent_is_out_and_the_others_stay():
    with Fenced() as server:
        revoked, other = server.link("pi-8"), server.link("pi-7")
        async with connected(revoked) as connection, connected(other) as staying:
            server.configure("--revoke", "pi-8", "--agents", "pi-10")
            server.reload()
            with anyio.fail_after(SECONDS):
                await connection.wait_lost()
            with pytest.raises(BrokerError):
                async with connected(revoked):
                    pass
            async with connected(server.link("pi-10")) as new:
                await new.publish(f"{TOP}/agent/pi-10/report", b"x", qos=1)
            await staying.publish(f"{TOP}/agent/pi-7/report", b"x", qos=1)
            assert staying.lost is None


async def test_a_session_and_its_messages_survive_a_restart():
    """And kill -9 loses what was said last, which is why nothing relies on it."""
    with Fenced() as server:
        kept = server.link("gateway", clean_start=False, session_expiry=600)
        async with connected(kept) as gateway:
            await gateway.subscribe(f"{TOP}/agent/+/report", 1)
        async with connected(server.link("pi-7")) as agent:
            await agent.publish(f"{TOP}/agent/pi-7/report", b"kept", qos=1)
        server.stop()
        server.start()
        async with connected(kept) as gateway:
            assert gateway.session_present
            with anyio.fail_after(SECONDS):
                assert [each.payload for each in await gateway.receive()] == [b"kept"]


# The real gateway and agent --------------------------------------------------------------------


@pytest.fixture
async def center(tmp_path):
    project = make(tmp_path / "center", SQLITE)
    with edge_fleet(project.root) as flock:
        async with project:
            yield project, flock


def fenced_agent(flock, server, name, extra=""):
    """`fp-agent run` on a device to which its folder was copied."""
    device = flock.device(name)
    shutil.copytree(server.place / "agents" / name, device, dirs_exist_ok=True)
    with (device / "agent.yml").open("a") as file:
        file.write(f"heartbeat: 2\n{extra}")
    flock.spawn(name, [AGENT, "run", "--config", str(device / "agent.yml")])


async def test_gateway_and_agent_work_over_mtls(fenced, center):
    project, flock = center
    shutil.copy(fenced.place / "gateway/mqtt.yml", project.root / "conf/mqtt.yml")
    flock.start_gateway("g1")
    fenced_agent(flock, fenced, "pi-7")
    await until_known(project, "pi-7")
    inputs = flock.inputs(21)
    assert await project.run_job("work", on="agent:pi-7", inputs=inputs) == {"value": 42}
    assert flock.stop("pi-7") == 0
    await until_known(project, "pi-7", state="away")


async def test_triggers_of_an_agent_have_a_user_of_their_own(fenced, center):
    project, flock = center
    shutil.copy(fenced.place / "gateway/mqtt.yml", project.root / "conf/mqtt.yml")
    flock.start_gateway("g1")
    trigger = (
        "triggers:\n  readings:\n    topic: sensors/+/temperature\n    pipeline: work\n"
        f"    inputs: {{number: $payload, seconds: 0, starts: {json.dumps(str(flock.starts))}}}\n"
    )
    fenced_agent(flock, fenced, "pi-9", trigger)
    await until_known(project, "pi-9")
    with anyio.fail_after(60):
        while not (rows := await project.list_jobs(states=("succeeded",))):
            with contextlib.suppress(BrokerError):  # the gateway has the same user, and comes back
                async with connected(fenced.link("gateway", client_id="tester")) as sender:
                    await say(sender, "sensors/s1/temperature", b"4")
            await anyio.sleep(0.5)
    assert (rows[0].agent, rows[0].trigger) == ("pi-9", "readings")
    assert await project.get_result(rows[0].id) == {"value": 8}


# The files ----------------------------------------------------------------------------------


def test_the_files_in_the_repository_are_those_that_the_command_writes():
    folder = ROOT / "broker_conf"
    assert (folder / "mosquitto-dev.conf").read_text() == broker_files.dev(1883)
    for kind in ("mosquitto", "emqx"):
        plan = Plan(agents=("pi-7",), tls=True, kind=kind, at=f"/etc/{kind}/flowerpower")
        for name, text in broker_files.texts(plan).items():
            assert (folder / name).read_text() == text, name


def test_passwords_are_hashed_as_mosquitto_passwd_does(tmp_path):
    path = tmp_path / "passwords"
    path.touch(0o600)
    services.run([program("mosquitto_passwd"), "-b", str(path), "pi-7", "secret"])
    (line,) = path.read_text().splitlines()
    salt = base64.b64decode(line.split("$")[3])
    assert broker_files.mosquitto_user("pi-7", "secret", salt) == line
    assert broker_files.mosquitto_user("pi-7", "other", salt) != line


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_second_time_everything_stays_and_the_new_are_added(tmp_path):
    flowerpower("broker-config", "--agents", "pi-7,pi-8", "--tls", cwd=tmp_path)
    before = contents(tmp_path / "broker")
    flowerpower("broker-config", cwd=tmp_path)
    assert contents(tmp_path / "broker") == before
    done = flowerpower("broker-config", "--agents", "pi-9", cwd=tmp_path)
    after = contents(tmp_path / "broker")
    assert {name for name, data in before.items() if after[name] != data} == {
        "acl",
        "broker-config.json",
        "ca.srl",
        "gateway/mqtt.yml",
        "passwords",
    }
    assert after["passwords"].startswith(before["passwords"])
    assert "agents/pi-9/" in done.stdout
    assert "pi-7" not in done.stdout


def test_secrets_are_for_their_owner_only(tmp_path):
    flowerpower("broker-config", "--agents", "pi-7", "--tls", cwd=tmp_path)
    modes = {
        path.name: path.stat().st_mode & 0o777
        for path in (tmp_path / "broker").rglob("*")
        if path.is_file()
    }
    public = {
        ".gitignore",
        "mosquitto.conf",
        "acl",
        "broker-config.json",
        "ca.crt",
        "server.crt",
        "client.crt",
    }
    assert {name for name, mode in modes.items() if mode != 0o600} == public


def test_revoking_removes_users_and_files(tmp_path):
    options = ("--agents", "pi-7,pi-8", "--local-topics", "x/#")
    flowerpower("broker-config", *options, cwd=tmp_path)
    with (tmp_path / "broker/passwords").open("a") as file:
        file.write("shop:$7$101$abc$def\n")
    flowerpower("broker-config", "--revoke", "pi-8", cwd=tmp_path)
    lines = (tmp_path / "broker/passwords").read_text().splitlines()
    users = [line.partition(":")[0] for line in lines]
    assert users == ["fp-gateway-main", "pi-7", "pi-7-triggers", "shop"]
    assert not (tmp_path / "broker/agents/pi-8").exists()
    assert "pi-8" not in (tmp_path / "broker/acl").read_text()


def test_an_agents_folder_that_was_moved_away_keeps_its_user(tmp_path):
    flowerpower("broker-config", "--agents", "pi-7", cwd=tmp_path)
    before = (tmp_path / "broker/passwords").read_bytes()
    shutil.rmtree(tmp_path / "broker/agents/pi-7")
    done = flowerpower("broker-config", "--agents", "pi-8", cwd=tmp_path)
    assert "only the broker knows them: pi-7" in done.stderr
    assert (tmp_path / "broker/passwords").read_bytes().startswith(before)


def test_g5_lines_of_others_in_the_rights_stay_and_ours_are_renewed(tmp_path):
    place = tmp_path / "broker"
    flowerpower("broker-config", "--agents", "pi-7", cwd=tmp_path)
    path = place / "acl"
    mine = "\nuser shop\ntopic write orders/#\n"
    among = "topic readwrite fp/v1/main/#\n"
    path.write_text(path.read_text().replace(among, f"{among}topic read extra/#\n") + mine)
    for options in (
        ("--client", "c", "--publish", "c/#"),
        ("--topics", "doors/#"),
        ("--overwrite",),
    ):
        done = flowerpower("broker-config", *options, cwd=tmp_path)
        assert "by hand" not in done.stderr
    text = path.read_text()
    assert text.endswith(f"user fp-gateway-main\ntopic read extra/#\n{mine}")
    assert "topic read doors/#" in text
    assert "user pi-7\ntopic write fp/v1/main/agent/pi-7/state\n" in text, "listed, for the client"
    assert "user c\ntopic write c/#\n" in text
    flowerpower("broker-config", "--revoke", "c", cwd=tmp_path)
    assert path.read_text().endswith(f"user fp-gateway-main\ntopic read extra/#\n{mine}")
    assert "topic write c/#" not in path.read_text()
    assert not (place / "clients/c").exists()


@pytest.mark.parametrize("kind", ["mosquitto", "emqx"])
def test_g5_rights_that_an_earlier_release_wrote_get_their_marks(kind):
    plan = Plan(agents=("pi-7",), kind=kind)
    ours = broker_files.rights(plan)
    unmarked = "".join(
        x for x in ours.splitlines(True) if "> broker-config" not in x and "<<<" not in x
    )
    strange = '{allow, {username, "x"}, all, ["a"]}.' if kind == "emqx" else "user x\ntopic read a"
    after = broker_files.rights(plan, f"{unmarked}{strange}\n", plan)
    deny = "{deny, all}.\n" if kind == "emqx" else ""
    assert after == ours.removesuffix(deny) + f"{strange}\n{deny}"
    assert broker_files.rights(plan, after, plan) == after


def test_g5_a_line_without_a_user_keeps_the_one_that_it_stood_under():
    plan = Plan(agents=("a",), site="berlin")
    text = broker_files.rights(plan) + "topic read mine/#\n"
    more = msgspec.structs.replace(plan, agents=("a", "b"))
    after = broker_files.rights(more, text, plan)
    assert after.endswith("user a@berlin\ntopic read mine/#\n")


def test_g5_what_changes_is_changed_in_files_that_others_have_edited(tmp_path):
    place = tmp_path / "broker"
    flowerpower("broker-config", "--agents", "pi-7", cwd=tmp_path)
    agent, conf = place / "agents/pi-7/agent.yml", place / "mosquitto.conf"
    agent.write_text(f"# mine\n{agent.read_text()}tags: {{a: b}}\n")
    conf.write_text(conf.read_text().replace("autosave_interval 1", "autosave_interval 9"))
    before = contents(place)
    assert "by hand" not in flowerpower("broker-config", cwd=tmp_path).stderr, "all is as it was"
    assert contents(place) == before
    options = ("--host", "new.example", "--port", "1999", "--local-topics", "s/#")
    assert "by hand" not in flowerpower("broker-config", *options, cwd=tmp_path).stderr
    said = yaml.safe_load(agent.read_text())
    assert (said["broker"], said["tags"]) == ("mqtt://new.example:1999", {"a": "b"})
    assert said["triggers_broker"].startswith("mqtt://pi-7-triggers:")
    assert "listener 1999" in conf.read_text()
    assert "autosave_interval 9" in conf.read_text()
    agent.write_text("name: pi-7\npassword: x\n")
    done = flowerpower("broker-config", "--port", "2000", cwd=tmp_path)
    assert (
        "agent.yml was changed by hand and is left as it is, and lacks: broker: mqtt://"
        in done.stderr
    )
    assert agent.read_text() == "name: pi-7\npassword: x\n"
    flowerpower("broker-config", "--overwrite", cwd=tmp_path)
    assert "broker: mqtt://new.example:2000" in agent.read_text()


def test_g5_another_host_gets_a_certificate_of_its_own(tmp_path):
    flowerpower("broker-config", "--agents", "pi-7", "--tls", cwd=tmp_path)
    path = tmp_path / "broker/server.crt"
    before = path.read_bytes()
    flowerpower("broker-config", "--host", "new.example", cwd=tmp_path)
    assert path.read_bytes() != before
    shown = services.run(["openssl", "x509", "-in", str(path), "-noout", "-ext", "subjectAltName"])
    assert "DNS:new.example" in shown
    path.write_bytes(before)
    done = flowerpower("broker-config", "--host", "other.example", cwd=tmp_path)
    assert "server.crt was changed by hand and is left as it is, and lacks: the name" in done.stderr


def test_g2_what_concerns_the_broker_is_said_of_all_its_sites(tmp_path):
    flowerpower("broker-config", "--agents", "pi-7", cwd=tmp_path)
    flowerpower("broker-config", "--agents", "pi-7", "--site", "berlin", cwd=tmp_path)
    flowerpower("broker-config", "--host", "new.example", cwd=tmp_path)
    place = tmp_path / "broker/sites/berlin"
    assert "mqtt://new.example:1883" in (place / "gateway/mqtt.yml").read_text()
    assert "mqtt://new.example:1883" in (place / "agents/pi-7/agent.yml").read_text()
    flowerpower("broker-config", "--revoke", "pi-7", "--site", "berlin", cwd=tmp_path)
    users = [x.partition(":")[0] for x in (tmp_path / "broker/passwords").read_text().splitlines()]
    assert users == ["fp-gateway-main", "pi-7", "fp-gateway-berlin"]


def test_g14_the_folder_keeps_itself_out_of_a_repository(tmp_path):
    flowerpower("broker-config", "--agents", "pi-7", "--tls", "--out", "x", cwd=tmp_path)
    flowerpower("broker-config", "--agents", "pi-7", "--site", "berlin", "--out", "x", cwd=tmp_path)
    services.run(["git", "init", "-q", str(tmp_path)])
    git = ["git", "-C", str(tmp_path)]
    assert services.run([*git, "status", "--porcelain", "--untracked-files=all"]) == ""
    scaffold.create_project(tmp_path)
    assert "broker/" in (tmp_path / ".gitignore").read_text().splitlines()


async def test_g7_a_client_has_its_rights_and_a_certificate():
    with Fenced() as server:
        server.configure("--client", "shop", "--publish", "orders/#", "--subscribe", "answers/#")
        server.reload()
        folder = server.place / "clients/shop"
        said = yaml.safe_load((folder / "client.yml").read_text())
        files = {key: str(folder / said.pop(key)) for key in ("ca_file", "cert_file", "key_file")}
        shop = Link.of(said.pop("uri"), client_id="whatever", **said, **files)
        async with connected(shop) as client, connected(server.link("gateway")) as boss:
            await client.subscribe("answers/#", 1)
            await client.subscribe("sensors/#", 1)
            assert await refused(client, "sensors/s1")
            assert await refused(client, f"{TOP}/agent/shop/state")
            assert not await refused(client, "orders/1")
            await boss.publish("sensors/s1", b"not for it", qos=1)
            await boss.publish("answers/1", b"last", qos=1)
            assert await until(client, b"last") == []
        async with connected(server.link("pi-7")) as agent:
            assert not await refused(agent, f"{TOP}/agent/pi-7/report")
            assert await refused(agent, f"{TOP}/agent/pi-8/report")
        text = (folder / "client.yml").read_text()
        assert "one user is one connection" in text
        (command,) = [line[2:] for line in text.splitlines() if line.startswith("# mosquitto_pub")]
        command = command.replace("TOPIC", "orders/2")
        subprocess.run(command, shell=True, cwd=folder, check=True, timeout=20)


async def refused(connection, topic):
    """Whether the broker says no to a message."""
    try:
        await connection.publish(topic, b"x", qos=1)
    except PublishRefusedError:
        return True
    return False


def test_files_of_others_stop_it_before_anything_is_written(tmp_path):
    (tmp_path / "mosquitto.conf").write_text("foreign\n")
    done = flowerpower("broker-config", "--agents", "a", "--out", ".", cwd=tmp_path, code=2)
    assert "has mosquitto.conf, not written by broker-config" in done.stderr
    assert contents(tmp_path) == {"mosquitto.conf": b"foreign\n"}


def test_emqx_gets_its_users_and_rights(tmp_path):
    options = ("--agents", "pi-7", "--emqx", "--tls", "--topics", "doors/+/open")
    flowerpower("broker-config", *options, cwd=tmp_path)
    folder = tmp_path / "broker"
    head, gateway, agent = (folder / "users.csv").read_text().splitlines()
    assert head == "user_id,password_hash,salt,is_superuser"
    assert gateway.startswith("fp-gateway-main,")
    assert re.fullmatch(r"pi-7,[0-9a-f]{64},[0-9a-f]{24},false", agent)
    rights = (folder / "acl.conf").read_text()
    assert '{allow, {username, "fp-gateway-main"}, subscribe, ["doors/+/open"]}.' in rights
    assert rights.endswith("{deny, all}.\n")
    assert f'certfile = "{folder}/server.crt"' in (folder / "emqx.conf").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "for whom? --agents pi-7,pi-8"),
        ("--agents pi-7,", "write names with commas between them"),
        ("--agents pi/7", "agent 'pi/7': use letters, digits"),
        ("--agents fp-gateway-x", "names that begin with fp-gateway- are gateways'"),
        ("--agents a,a-triggers --local-topics x/#", "'a-triggers' would be two users"),
        ("--agents a --site x/y", "site 'x/y': use letters"),
        ("--agents a --prefix fp/#", "prefix 'fp/#': topic levels"),
        ("--agents a --host mqtt://b", "host 'mqtt://b': a name or an address"),
        ("--agents a --topics a/#/b", "topic filter 'a/#/b'"),
        ("--agents a --topics doors+", "topic filter 'doors+'"),
        ("--agents a --local-topics #", "agents would hear what is said to others"),
        ("--agents a --local-topics fp/v1/main/agent/+/do", "agents would hear what is said"),
        ("--revoke b", "unknown agent 'b'"),
        ("--agents c --revoke kept", "unknown agent 'kept'"),
        ("--agents a --port 0", "0 is not in the range"),
    ],
)
def test_bad_input_of_broker_config(tmp_path, arguments, message):
    done = flowerpower("broker-config", *arguments.split(), cwd=tmp_path, code=2)
    assert message in done.stderr
    assert not contents(tmp_path)


@pytest.mark.parametrize("kind", ["--emqx", "--mosquitto"])
@pytest.mark.parametrize("evil", ["\n", "\r", "\0", '"', "\\", "\x7f", "\x85", "\u2028"])
@pytest.mark.parametrize(
    "option", ["at", "host", "site", "prefix", "agents", "topics", "answers", "local_topics"]
)
def test_e28_nothing_ends_its_line_in_a_file_of_the_broker(option, evil, kind):
    text = f"x{evil}allow_anonymous"
    value = (text,) if option in ("agents", "topics", "answers", "local_topics") else text
    given = {"agents": ("a",), "kind": kind.strip("-"), option: value}
    with pytest.raises(UsageError):
        broker_files.check(broker_files.Plan(**given))


@pytest.mark.parametrize("field", ["publish", "subscribe"])
def test_e28_nor_a_filter_of_a_client(field):
    client = broker_files.Client(**{field: ("a\ntopic readwrite #",)})
    with pytest.raises(UsageError, match="topic filter"):
        broker_files.check(broker_files.Plan(clients={"shop": client}))
    with pytest.raises(UsageError, match="client 'a\\nb'"):
        broker_files.check(broker_files.Plan(clients={"a\nb": broker_files.Client(("x",))}))


def test_e28_a_folder_of_any_name_is_a_text_in_yaml():
    plan = broker_files.Plan(agents=("a",), tls=True)
    text = broker_files.mqtt_yml(plan, "p", "/srv/a: b #1\n")
    found = documents.parse(text, "mqtt.yml", {}).data
    assert found["broker"]["ca_file"] == "/srv/a: b #1\n/ca.crt"
    assert "  ca_file: /srv/a/ca.crt\n" in broker_files.mqtt_yml(plan, "p", "/srv/a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--site other --port 1",
            "shares the broker of broker: say what concerns the broker (port)",
        ),
        ("--publish a", "whose? --client NAME"),
        ("--client shop", "--client shop: what may it do?"),
        ("--client pi-7 --publish a", "'pi-7' would be two users"),
        ("--client shop --publish a/#/b", "topic filter 'a/#/b'"),
        ("--client shop --publish fp/#", "client 'shop' could speak as gateway or agent"),
        ("--client fp-gateway-x --publish a", "names that begin with fp-gateway- are gateways'"),
        ("--emqx", "is for kind 'mosquitto'"),
        ("--agents pi-8 --revoke pi-7,pi-8", "unknown agent 'pi-8'"),
        ("--agents pi-7 --revoke pi-7", "stands in both"),
    ],
)
def test_bad_input_of_a_second_broker_config(tmp_path, arguments, message):
    flowerpower("broker-config", "--agents", "pi-7", cwd=tmp_path)
    before = contents(tmp_path)
    done = flowerpower("broker-config", *arguments.split(), cwd=tmp_path, code=2)
    assert message in done.stderr
    assert contents(tmp_path) == before


def test_a_broken_state_file_is_named(tmp_path):
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker/broker-config.json").write_text("{")
    done = flowerpower("broker-config", "--agents", "pi-7", cwd=tmp_path, code=2)
    assert "broker/broker-config.json:" in done.stderr


# The broker for development --------------------------------------------------------------------

needs_iotcore = pytest.mark.skipif(
    broker.find_spec("iotcore") is None and os.environ.get("FP_REQUIRE_SERVICES") != "1",
    reason="iotcore is not installed",
)


@asynccontextmanager
async def dev(*arguments):
    """`flowerpower broker --dev` on a port, when it answers."""
    port = free_port()
    command = [COMMAND, "broker", "--dev", "--port", str(port), *arguments]
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
    try:
        with anyio.fail_after(SECONDS):
            while not answers(port):
                assert process.returncode is None
                await anyio.sleep(0.02)
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def gone(port):
    with anyio.fail_after(SECONDS):
        while answers(port):
            await anyio.sleep(0.02)


async def echo(port, version):
    """A message there and back, in this version of MQTT only."""
    session = await link._try(Link(host="127.0.0.1", port=port), version, None)
    try:
        connection = link.Connection(session)
        await connection.subscribe("x", 1)
        await connection.publish("x", b"last", qos=1)
        assert await until(connection, b"last") == []
    finally:
        await session.leave()


@needs_iotcore
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_embedded_broker_runs_until_a_signal(number):
    async with dev() as (process, port):
        line = (await process.stderr.readline()).decode()
        assert f"embedded broker on mqtt://127.0.0.1:{port}, for development" in line
        assert "nothing survives its end" in line
        await echo(port, 5)
        with pytest.raises((link.OtherVersionError, BrokerError)):
            await echo(port, 4)
        await echo(port, 5)
        (child,) = psutil.Process(process.pid).children()
        process.send_signal(number)
        assert await process.wait() == 0
        assert not child.is_running()
        assert not answers(port)


@needs_iotcore
async def test_the_embedded_broker_does_not_outlive_a_killed_parent():
    async with dev() as (process, port):
        (child,) = psutil.Process(process.pid).children()
        process.kill()
        await process.wait()
        await gone(port)
        with anyio.fail_after(SECONDS):
            while child.is_running():
                await anyio.sleep(0.02)


@needs_iotcore
async def test_the_command_says_when_its_broker_has_died():
    async with dev() as (process, port):
        (child,) = psutil.Process(process.pid).children()
        child.kill()
        _, text = await process.communicate()
        assert process.returncode == 3
        assert b"broker" in text
        assert b"ended" in text
        assert b"(-9)" in text


async def test_mosquitto_for_development():
    program("mosquitto")
    async with dev("--mosquitto") as (process, port):
        await echo(port, 5)
        await echo(port, 4)
        assert psutil.Process(process.pid).name() == "mosquitto"
        process.terminate()
        assert await process.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        ("", "this broker is for development: say so with --dev", 2),
        ("--dev --port 99999", "not in the range", 2),
    ],
)
def test_bad_input_of_broker(tmp_path, arguments, message, code):
    done = flowerpower("broker", *arguments.split(), cwd=tmp_path, code=code)
    assert message in done.stderr


@needs_iotcore
@pytest.mark.parametrize("which", ["", "--mosquitto"])
async def test_a_port_that_is_taken(tmp_path, which):
    async with dev() as (_, port):
        options = ["--dev", "--port", port, *which.split()]
        done = flowerpower("broker", *options, cwd=tmp_path, code=3)
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr


def test_with_neither_broker_installed_the_extra_is_named(monkeypatch):
    from fp_async.cli import brokers

    monkeypatch.setattr(broker, "find_spec", lambda _: None)
    monkeypatch.setattr(brokers.shutil, "which", lambda *_, **__: None)
    run = brokers.broker.callback
    with pytest.raises(MissingExtraError, match=r'pip install "fp-async\[broker\]"'):
        run(free_port(), dev=True, mosquitto=False)
    with pytest.raises(UsageError, match=r'fp-async\[broker\]"'):
        run(free_port(), dev=True, mosquitto=True)


@needs_iotcore
async def test_embedded_ends_with_its_block_and_when_cancelled():
    async with broker.embedded() as running:
        await echo(running.port, 5)
        with pytest.raises(BrokerError, match="Address already in use"):
            async with broker.embedded(running.port):
                pass
    assert not answers(running.port)
    before = psutil.Process().children()
    for steps in range(12):  # before, while and after it starts
        scope = anyio.CancelScope()

        async def start(scope=scope):
            with scope:
                async with broker.embedded():
                    await anyio.sleep_forever()

        task = asyncio.create_task(start())
        for _ in range(steps):
            await anyio.sleep(0)
        scope.cancel()
        await task
    with anyio.fail_after(5):  # a killed one may not be gone yet
        while psutil.Process().children() != before:
            await anyio.sleep(0.02)


@needs_iotcore
async def test_a_job_runs_through_the_embedded_broker_also_after_it_was_killed(center):
    """It has forgotten sessions, retained states and what was under way."""
    project, flock = center
    async with broker.embedded() as first:
        (project.root / "conf/mqtt.yml").write_text(conf(first.port, "gateway:\n  away_after: 6\n"))
        flock.start_gateway("g1")
        flock.start_agent("pi-7", first.port)
        await until_known(project, "pi-7")
        run = project.run_job
        assert await run("work", on="agent:pi-7", inputs=flock.inputs(1)) == {"value": 2}
        id = await project.add_job("work", on="agent:pi-7", inputs=flock.inputs(2, 1.0))
        with anyio.fail_after(20):
            while len(flock.lines()) < 2:
                await anyio.sleep(0.02)
        first.process.kill()
        await first.process.wait()
        late = await project.add_job("work", on="agent:pi-7", inputs=flock.inputs(3))
        async with broker.embedded(first.port):
            assert await project.get_result(id, wait=40) == {"value": 4}
            assert await project.get_result(late, wait=40) == {"value": 6}
            await until_known(project, "pi-7")
            assert await run("work", on="agent:pi-7", inputs=flock.inputs(4)) == {"value": 8}
            flock.kill("pi-7")
            await until_known(project, "pi-7", state="away")  # by its will
    assert len(flock.lines()) == 4
