"""The `fp-agent` command: settings, status, jobs, doctor, init, the service; real processes."""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time

import click
import msgspec
import pytest
import services
from click.testing import CliRunner
from edge_kit import AGENT, Broker, conf, edge_fleet
from fleet import COMMAND, PIPELINE, make

from edge_agent import config, looking
from edge_agent.agent import Agent
from edge_agent.config import AgentSettings
from edge_agent.daemon import alone
from edge_agent.options import HELP, settings_of, settings_options
from edge_agent.store import AgentStore
from fp_async import codec
from fp_async.errors import ConfigError, FileAccessError, UsageError
from fp_async.jobs import Job
from fp_async.stores.sqlite import SqliteStore


def fp_agent(*arguments, cwd, code=0, env=None):
    done = subprocess.run(
        [AGENT, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def device(tmp_path):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "work.py").write_text(PIPELINE)
    return tmp_path


class Running:
    """An agent as a process of its own."""

    def __init__(self, device, *arguments, env=None):
        self.log = device / "agent.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [AGENT, "run", *arguments], cwd=device, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env={**os.environ, **(env or {})},
            )  # fmt: skip

    def until(self, text, seconds=15):
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


# Settings -----------------------------------------------------------------------------------

GIVEN = {
    "broker": "mqtts://b:1", "name": "pi", "username": "u", "password": "p", "ca_file": "/a",
    "cert_file": "/c", "key_file": "/k", "prefix": "x", "site": "s", "project": "/p",
    "store": "/s.db", "tags": {"a": "b"}, "slots": 3, "window": 9, "keepalive": 33,
    "heartbeat": 4.5, "grace": 6.0, "idle_timeout": 7.0, "memory_limit": 99, "outbox": 5,
    "disk_floor": 11, "log_level": "debug", "log_format": "json",
    "metrics_port": 9, "metrics_host": "::1", "triggers_broker": "mqtt://t",
}  # fmt: skip


def test_every_key_is_tried_here():
    assert set(GIVEN) == set(config.KEYS)


OTHER = {
    **{key: f"{value}0" for key, value in GIVEN.items() if isinstance(value, str)},
    **{key: value * 2 for key, value in GIVEN.items() if isinstance(value, int | float)},
    "broker": "mqtt://other", "triggers_broker": "mqtt://other", "log_level": "error",
    "log_format": "text", "tags": {"c": "d"},
}  # fmt: skip


@click.command()
@settings_options
def shown(config_file, **flags):
    """What all commands do with their flags."""
    click.echo(msgspec.json.encode(settings_of(config_file, flags)))


def settings(*flags, env=None):
    done = CliRunner().invoke(shown, flags, env=env, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("key", GIVEN)
def test_flag_over_variable_over_file_over_default(key, tmp_path):
    value, other = GIVEN[key], OTHER[key]
    file = tmp_path / "agent.yml"
    file.write_text(json.dumps({key: value}))
    named = (
        {key: "a=b", "other": "c=d"} if key == "tags" else {key: str(value), "other": str(other)}
    )
    variable = f"FP_AGENT_{key.upper()}"
    default = settings(env={variable: ""})[key]
    assert default != value
    assert settings("--config", str(file))[key] == value
    assert settings(env={variable: named[key]})[key] == value
    assert settings(config.flag(key), named[key])[key] == value
    assert settings("--config", str(file), env={variable: named["other"]})[key] == other
    assert settings("--config", str(file), config.flag(key), named["other"])[key] == other
    both = {variable: named[key]}
    assert settings("--config", str(file), config.flag(key), named["other"], env=both)[key] == other


def test_every_key_has_a_flag_and_a_help():
    assert set(HELP) == set(config.KEYS)


def test_tags_may_be_repeated():
    assert settings("--tag", "a=b", "--tag", "site=berlin")["tags"] == {"a": "b", "site": "berlin"}
    assert settings(env={"FP_AGENT_TAGS": "a=b, c=d"})["tags"] == {"a": "b", "c": "d"}


def test_a_mistake_in_the_file_names_line_key_and_the_nearest(tmp_path):
    file = tmp_path / "agent.yml"
    file.write_text("name: pi\nslot: 3\n")
    with pytest.raises(ConfigError, match=r"agent\.yml:2: slot.*did you mean 'slots'"):
        config.read(file, {}, {})
    file.write_text("name: pi\ntriggers:\n  t: {topic: 'a/#/b', pipeline: work}\n")
    with pytest.raises(ConfigError, match=r"yml:3: triggers\.t\.topic: 'a/#/b' is no topic filter"):
        config.read(file, {}, {})
    file.write_text("log_level: loud\n")
    with pytest.raises(ConfigError, match=r"yml:1: log_level: unknown value 'loud'.*valid: debug"):
        config.read(file, {}, {})
    with pytest.raises(FileAccessError, match=r"none\.yml: No such file"):
        config.read(tmp_path / "none.yml", {}, {})


def test_a_file_of_comments_is_a_file_of_defaults(tmp_path):
    (tmp_path / "agent.yml").write_text("# name: pi\n")
    assert config.read(tmp_path / "agent.yml", {}, {}).slots == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"name": "a/b"}, "name 'a/b': use letters"),
        ({"site": "+"}, "site '\\+'"),
        ({"prefix": "fp/#"}, "prefix 'fp/#'"),
        ({"slots": "0"}, "^--slots 0: expected int >= 1"),
        ({"slots": "many"}, "^--slots many: expected int, got str"),
        ({"tags": ["site"]}, "^--tag site: write name=value"),
        ({"broker": "http://b"}, "^broker: not an MQTT broker's address: 'http://'; as in mqtt"),
        ({"broker": "mqtt://b:x"}, "^broker: Port"),
    ],
)
def test_wrong_settings_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        config.read(None, flags, {})


def test_a_wrong_variable_is_named():
    with pytest.raises(UsageError, match="^FP_AGENT_SLOTS 0: expected int >= 1"):
        config.read(None, {}, {"FP_AGENT_SLOTS": "0"})
    (said,) = config.strange({"FP_AGENT_SLOT": "3", "FP_AGENT_NAME": "pi", "OTHER": ""})
    assert said.startswith("variable FP_AGENT_SLOT is no setting; did you mean 'FP_AGENT_SLOTS'?")


def test_the_command_tells_of_variables_that_are_no_settings(device):
    done = fp_agent("status", cwd=device, code=4, env={"FP_AGENT_BROKR": "mqtt://b"})
    assert "did you mean 'FP_AGENT_BROKER'" in done.stderr


def test_relative_paths(tmp_path, monkeypatch):
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc" / "agent.yml"
    file.write_text("{project: device, ca_file: ca.pem}")
    found = config.read(file, {}, {})
    assert found.project == str(tmp_path / "etc" / "device")
    assert found.store == str(tmp_path / "etc" / "device" / "fp-agent.db")
    assert found.ca_file == str(tmp_path / "etc" / "ca.pem")
    monkeypatch.chdir(tmp_path)
    found = config.read(file, {"store": "x.db"}, {"FP_AGENT_KEY_FILE": "k.pem"})
    assert (found.store, found.key_file) == (str(tmp_path / "x.db"), str(tmp_path / "k.pem"))
    file.write_text("store: jobs.db")
    assert config.read(file, {}, {}).store == str(tmp_path / "etc" / "jobs.db")
    assert config.read(None, {}, {}).project == str(tmp_path)


def test_a_login_in_the_address_is_not_shown():
    assert AgentSettings(broker="mqtts://u:p@ss@host:1").place == "mqtts://host:1"
    assert AgentSettings().place == "mqtt://localhost:1883"


# Running ------------------------------------------------------------------------------------


def test_without_a_broker_it_runs_and_says_so(device):
    port = services.free_port()
    with Running(device, "--broker", f"mqtt://127.0.0.1:{port}", "--name", "pi-7") as agent:
        agent.until("trying again")
        done = fp_agent("status", "--output", "json", cwd=device, code=3)
        found = json.loads(done.stdout)
        assert (found["running"], found["connected"], found["name"]) == (True, False, "pi-7")
        assert "MQTT broker" in found["problem"]
        assert "no connection" in fp_agent("status", cwd=device, code=3).stdout
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(10) == 0
    found = json.loads(fp_agent("status", "--output", "json", cwd=device, code=4).stdout)
    assert (found["running"], found["starts"], found["untold"]) == (False, 1, 0)


def test_status_before_the_first_start_makes_nothing(device):
    assert "never run here" in fp_agent("status", cwd=device, code=4).stdout
    assert "no such jobs" in fp_agent("jobs", cwd=device).stderr
    assert not (device / "fp-agent.db").exists()


def test_connected_it_says_0(device):
    with Broker() as broker:
        with Running(device, "--broker", f"mqtt://u:secret@127.0.0.1:{broker.port}") as agent:
            agent.until("connected to")
            text = fp_agent("status", cwd=device).stdout
            assert "nobody hears us" in text
            assert "secret" not in text + agent.log.read_text()
            again = fp_agent("run", cwd=device, code=3)
            said = f"another agent (pid {agent.process.pid}) runs on the store"
            assert said in again.stderr
            agent.process.kill()
            agent.process.wait()
        text = fp_agent("status", cwd=device, code=4).stdout
        assert "not running; it was killed, or has crashed; last heard of 20" in text
        with Running(device, "--broker", f"mqtt://127.0.0.1:{broker.port}") as agent:
            agent.until("connected to", 2)  # the lock has gone with the killed process


def test_a_status_at_the_start_does_no_harm(tmp_path):
    """It looks at the lock for a moment."""
    with (tmp_path / "s.db.lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.1, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with alone(tmp_path / "s.db"):
            assert looking.is_held(str(tmp_path / "s.db"))
    assert not looking.is_held(str(tmp_path / "s.db"))


def test_the_last_problem_outlives_the_agent(device):
    port = services.free_port()
    began = time.time()
    with Running(device, "--broker", f"mqtt://127.0.0.1:{port}") as agent:
        agent.until("trying again")
        found = json.loads(fp_agent("status", "--output", "json", cwd=device, code=3).stdout)
        assert began < found["problem_since"] < time.time()
        agent.process.terminate()
        agent.process.wait(10)
    found = json.loads(fp_agent("status", "--output", "json", cwd=device, code=4).stdout)
    assert f"127.0.0.1:{port}" in found["problem"]
    assert began < found["problem_since"] < found["since"] < time.time()
    assert (found["clean"], found["problem_over"]) == (True, None)
    text = fp_agent("status", cwd=device, code=4).stdout
    assert "not running; stopped 20" in text
    assert "(since 20" in text


def test_an_agent_that_hangs_is_running_and_told_so(device):
    with Running(device, "--broker", f"mqtt://127.0.0.1:{services.free_port()}") as agent:
        agent.until("trying again")
        (device / "fp-agent.db.sock").unlink()
        done = fp_agent("status", "--output", "json", cwd=device, code=3)
        found = json.loads(done.stdout)
        assert (found["running"], found["jobs"]) == (True, {})
        assert found["problem"] == "it does not listen on its local socket"


def contents(folder):
    return {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_looking_changes_nothing(end, device):
    with Running(device, "--broker", f"mqtt://127.0.0.1:{services.free_port()}") as agent:
        agent.until("trying again")
        agent.process.send_signal(end)
        agent.process.wait(10)
    before = contents(device)
    assert (device / "fp-agent.db-wal" in before) == (end == signal.SIGKILL)
    fp_agent("status", cwd=device, code=4)
    fp_agent("jobs", cwd=device)
    after = contents(device)
    before.pop(device / "fp-agent.db-shm", None)  # the index of the log, which readers lock
    after.pop(device / "fp-agent.db-shm", None)
    assert before == after


def test_a_file_that_is_no_store_is_told(device):
    (device / "fp-agent.db").write_text("hello, this is a text" * 100)
    done = fp_agent("status", cwd=device, code=3)
    assert "cannot read the store" in done.stderr
    assert "file is not a database" in done.stderr


def test_a_long_path_is_no_obstacle(device):
    deep = device / ("d" * 100)
    deep.mkdir()
    store = deep / "s.db"
    port = services.free_port()
    with Running(device, "--broker", f"mqtt://127.0.0.1:{port}", "--store", str(store)) as agent:
        agent.until("trying again")
        found = fp_agent("status", "--store", store, "--output", "json", cwd=device, code=3)
        assert json.loads(found.stdout)["pid"] == agent.process.pid
        agent.process.terminate()
        assert agent.process.wait(10) == 0
    assert sorted(path.name for path in deep.iterdir()) == ["s.db", "s.db.lock"]


def test_a_corrupt_store_is_set_aside(device):
    (device / "fp-agent.db").write_bytes(b"SQLite format 3\0" + b"nonsense" * 1000)
    port = services.free_port()
    with Running(device, "--broker", f"mqtt://127.0.0.1:{port}") as agent:
        agent.until("the store is corrupt")
        agent.until("trying again")
        assert list(device.glob("fp-agent.db.corrupt-*"))
        found = json.loads(fp_agent("status", "--output", "json", cwd=device, code=3).stdout)
        assert "corrupt" in found["set_aside"]
    assert "set aside" in fp_agent("status", cwd=device, code=4).stdout


def test_a_folder_without_pipelines_is_no_project(tmp_path):
    assert "no pipelines/" in fp_agent("run", cwd=tmp_path, code=2).stderr


@contextlib.contextmanager
def mounted(folder, options):
    """A file system of its own; skipped where one cannot be mounted."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting needs rights: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [("ro", 3, "Read-only file system"), ("size=16k", 3, "is full")],
)
def test_a_disk_that_cannot_be_written_is_told(options, code, said, device):
    with mounted(device / "kept", options) as folder:
        done = fp_agent("run", "--store", str(folder / "x.db"), cwd=device, code=code)
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_a_disk_that_fills_up_is_waited_for(device):
    """Nothing is accepted, and the agent stays to say so."""
    with mounted(device / "kept", "size=2m") as folder:
        where = ("--broker", f"mqtt://127.0.0.1:{services.free_port()}", "--store", folder / "x.db")
        with Running(device, *where) as agent:
            agent.until("trying again")
            found = fp_agent("status", *where, "--output", "json", cwd=device, code=3)
            assert "nearly full" in json.loads(found.stdout)["full"]


# Stopping -----------------------------------------------------------------------------------


def made(inputs, **fields):
    data = codec.encode(inputs, what="input")
    return Job(id="1" * 32, pipeline="work", spec=b"{}", inputs=data, **fields)


def put(device, **inputs):
    """A job in the device's store, as if it had come from the center."""

    async def add():
        store = SqliteStore(device / "fp-agent.db")
        await store.open()
        job = made({"starts": str(device / "starts"), **inputs}, offer=1, unreported=True)
        await AgentStore(store).accept([job])
        await store.close()

    asyncio.run(add())


def the_job(device):
    (found,) = json.loads(fp_agent("jobs", "--output", "json", cwd=device).stdout)
    return found


class WithJob(Running):
    """An agent without a broker, whose job has begun."""

    def __init__(self, device, *arguments, seconds):
        put(device, number=4, seconds=seconds)
        super().__init__(device, "--broker", f"mqtt://127.0.0.1:{services.free_port()}", *arguments)
        deadline = time.monotonic() + 20
        while not (device / "starts").exists():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)


def test_a_signal_lets_what_runs_end(device):
    with WithJob(device, seconds=1.5) as agent:
        assert the_job(device)["state"] == "running"
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(10) == 0
    job = the_job(device)
    assert (job["state"], job["tries"], job["acknowledged"]) == ("succeeded", 1, False)
    assert job["from"] == "center, attempt 1"
    assert 1.5 < job["took"] < 10
    assert fp_agent("jobs", "--state", "failed,queued", cwd=device).stdout == ""
    text = fp_agent("jobs", "--state", "succeeded", cwd=device).stdout
    assert "not yet" in text
    wrong = fp_agent("jobs", "--state", "done", cwd=device, code=2)
    assert "unknown state 'done'" in wrong.stderr


def test_beyond_the_grace_time_a_job_is_given_back(device):
    with WithJob(device, "--grace", "0.5", seconds=60) as agent:
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(10) == 0
    job = the_job(device)
    assert (job["state"], job["tries"], job["crashes"]) == ("queued", 1, 0)
    assert "1 queued" in fp_agent("status", cwd=device, code=4).stdout


def test_the_second_signal_ends_it_at_once(device):
    with WithJob(device, "--grace", "600", seconds=60) as agent:
        agent.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while json.loads(
            fp_agent("status", "--output", "json", cwd=device, code=3).stdout
        )["status"] != "draining":  # fmt: skip
            assert time.monotonic() < deadline
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(10) == 0
    assert the_job(device)["state"] == "queued"


def test_a_killed_agent_runs_its_job_again_at_once(device):
    with WithJob(device, seconds=3) as agent:
        agent.process.kill()
        agent.process.wait()
    assert the_job(device)["state"] == "running"
    where = ("--broker", f"mqtt://127.0.0.1:{services.free_port()}")
    with Running(device, *where) as agent:
        deadline = time.monotonic() + 20
        while len((device / "starts").read_text().splitlines()) < 2:
            assert time.monotonic() < deadline, agent.log.read_text()
            time.sleep(0.02)
        assert the_job(device)["crashes"] == 1


# systemd ------------------------------------------------------------------------------------


def test_systemd_hears_how_it_is(device):
    place = device / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(place))
        sock.settimeout(15)
        env = {"NOTIFY_SOCKET": str(place), "WATCHDOG_USEC": "200000"}
        with Running(
            device, "--broker", f"mqtt://127.0.0.1:{services.free_port()}", env=env
        ) as agent:
            heard = [sock.recv(100) for _ in range(4)]
            assert b"READY=1" in heard
            assert heard.count(b"WATCHDOG=1") == 3
            agent.process.send_signal(signal.SIGTERM)
            while sock.recv(100) != b"STOPPING=1":
                pass
            assert agent.process.wait(10) == 0


# Being idle ---------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_idle_agent_sets_no_short_timers(device, monkeypatch):
    """Each wakes a small processor up. While something runs there may be any number."""
    agent = Agent(config.read(None, {"project": str(device), "name": "pi"}, {}))
    await agent.open()
    loop = asyncio.get_running_loop()
    timers, set_timer = [], loop.call_at

    def counted(when, *arguments, **options):
        timers.append(when - loop.time())
        return set_timer(when, *arguments, **options)

    async def until(what):
        async with asyncio.timeout(20):
            while not what():
                await asyncio.sleep(0.02)

    working = asyncio.create_task(agent.run())
    try:
        await asyncio.sleep(0.2)
        monkeypatch.setattr(loop, "call_at", counted)
        job = {"number": 1, "seconds": 3.0, "starts": str(device / "starts")}
        await agent.rows.born([made(job)])
        agent.backend.hub.publish_here("work:default")
        await until(lambda: agent.worker.running)
        await until(lambda: not agent.worker.running)
        assert any(2 < delay <= 2.5 for delay in timers), "nobody kept its lease"
        await asyncio.sleep(4.6)  # until the last of those that are busy has looked
        timers.clear()
        await asyncio.sleep(3)
        assert not [delay for delay in timers[1:] if delay < 20]  # the first is this sleep
    finally:
        working.cancel()
        await asyncio.wait([working])
        await agent.close()


# Doctor -------------------------------------------------------------------------------------


@contextlib.contextmanager
def center(tmp_path, port):
    """A project with its gateway, and the flowerpower command in it."""
    make(tmp_path / "center", "data_store:\n  type: sqlite\n  uri: sqlite:///jobs.db\n")
    (tmp_path / "center" / "conf" / "mqtt.yml").write_text(conf(port))
    with edge_fleet(tmp_path / "center") as flock:
        flock.start_gateway("g1")

        def asked(what):
            command = [COMMAND, what, "--output", "json"]
            return json.loads(subprocess.check_output(command, cwd=tmp_path / "center"))

        yield asked


def until_gateway(doctor, seconds=20):
    """Ask until a gateway is there; what was said then."""
    deadline = time.monotonic() + seconds
    while (done := doctor()).returncode:
        assert "FAILED  gateway" in done.stdout, done.stdout
        assert time.monotonic() < deadline, done.stdout
    return done.stdout


def test_the_doctor_finds_what_is_wrong(device):
    port = services.free_port()
    done = fp_agent("doctor", "--broker", f"mqtt://127.0.0.1:{port}", cwd=device, code=1)
    assert "ok      pipelines: work" in done.stdout
    assert "ok      imports: checked 1 pipelines: 0 errors" in done.stdout
    assert f"FAILED  broker: MQTT broker at 127.0.0.1:{port}" in done.stdout
    assert "is the broker running?" in done.stdout
    (device / "pipelines" / "work.py").write_text("import no_such_module\n")
    done = fp_agent("doctor", "--broker", f"mqtt://127.0.0.1:{port}", cwd=device, code=1)
    assert "FAILED  imports:" in done.stdout
    assert "no_such_module" in done.stdout
    shutil.rmtree(device / "pipelines")
    (device / "fp-agent.db").write_text("hello, this is a text" * 100)
    with Broker() as broker:
        where = ("--broker", f"mqtt://127.0.0.1:{broker.port}")
        done = fp_agent("doctor", *where, "--disk-floor", "99999999", cwd=device, code=1)
    assert "FAILED  pipelines: none in" in done.stdout
    assert "FAILED  integrity: cannot read the store" in done.stdout
    assert "FAILED  disk:" in done.stdout
    assert "ok      own topics:" in done.stdout
    assert "FAILED  gateway: no gateway answers" in done.stdout
    assert "note    foreign topics: allowed: this broker protects nothing" in done.stdout


def test_a_trigger_of_an_unknown_pipeline_is_a_finding(device):
    nobody = f"mqtt://127.0.0.1:{services.free_port()}"
    own = {"broker": nobody, "triggers": {"t": {"topic": "a", "pipeline": "wrok"}}}
    (device / "agent.yml").write_text(json.dumps(own))
    said = fp_agent("doctor", cwd=device, code=1).stdout
    assert "FAILED  triggers: t: there is no pipeline 'wrok'; did you mean 'work'" in said
    own["triggers"]["t"] = {"topic": "a", "pipeline": "work", "on": "agent:x"}
    (device / "agent.yml").write_text(json.dumps(own))
    assert "a device runs its triggers itself" in fp_agent("run", cwd=device, code=2).stderr


def test_two_connections_with_one_login_are_noted(device):
    nobody = f"mqtt://127.0.0.1:{services.free_port()}"
    own = {"broker": nobody, "password": "p", "triggers": {"t": {"topic": "a", "pipeline": "work"}}}
    (device / "agent.yml").write_text(json.dumps(own))
    assert "note    triggers: " in fp_agent("doctor", cwd=device, code=1).stdout
    (device / "agent.yml").write_text(json.dumps({**own, "triggers_broker": nobody}))
    assert "triggers" not in fp_agent("doctor", cwd=device, code=1).stdout


def test_a_folder_of_the_store_that_is_not_there_is_said(device):
    store = device / "nowhere" / "x.db"
    done = fp_agent("run", "--store", store, cwd=device, code=3)
    assert f"store {store}: cannot write x.db.lock: No such file or directory" in done.stderr


def test_a_store_that_may_only_be_read_is_a_finding(device):
    nobody = ("--broker", f"mqtt://127.0.0.1:{services.free_port()}")
    with mounted(device / "kept", "size=2m") as folder:
        with contextlib.closing(sqlite3.connect(folder / "x.db")) as db:
            db.execute("CREATE TABLE t (x)")
            db.commit()
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        done = fp_agent("doctor", "--store", folder / "x.db", *nobody, cwd=device, code=1)
    assert "FAILED  store:" in done.stdout


def test_a_store_that_cannot_be_written_is_a_finding(device):
    nobody = ("--broker", f"mqtt://127.0.0.1:{services.free_port()}")
    with mounted(device / "kept", "ro") as folder:
        done = fp_agent("doctor", "--store", folder / "x.db", *nobody, cwd=device, code=1)
        assert "FAILED  store:" in done.stdout
        assert "Read-only file system" in done.stdout
    done = fp_agent("doctor", "--store", device / "none" / "x.db", *nobody, cwd=device, code=1)
    assert "FAILED  store:" in done.stdout
    assert "FAILED  disk:" in done.stdout


@contextlib.contextmanager
def locked_broker(tmp_path, *rights):
    """A broker that knows the agent fp, and what it may."""
    acl = tmp_path / "acl"
    acl.write_text("".join(f"pattern {right}\n" for right in rights))
    acl.chmod(0o600)
    with services.Mosquitto("secret", lines=[f"acl_file {acl}"]) as broker:
        yield "--broker", f"mqtt://127.0.0.1:{broker.port}", "--name", "fp"


def test_rights_at_the_broker(tmp_path, device):
    own = "fp/v1/main/agent/%u"
    rights = (f"readwrite {own}/state", f"write {own}/report", f"read {own}/do")
    with locked_broker(tmp_path, *rights) as where:
        done = fp_agent("doctor", *where, "--password", "secret", cwd=device, code=1)
        assert "ok      own topics:" in done.stdout
        assert "ok      foreign topics: the broker refuses" in done.stdout
        assert "FAILED  gateway: no gateway answers" in done.stdout
        done = fp_agent("doctor", *where, "--password", "wrong", cwd=device, code=1)
        assert "FAILED  broker:" in done.stdout
        assert "username, password" in done.stdout
    with locked_broker(tmp_path, f"write {own}/state", f"read {own}/do") as where:
        done = fp_agent("doctor", *where, "--password", "secret", cwd=device, code=1)
        assert (
            f"FAILED  own topics: {own.replace('%u', 'fp')}/state: nothing comes back"
            in done.stdout
        )
        assert "FAILED  gateway: MQTT broker" in done.stdout  # refused is told apart from no answer
        assert "flowerpower broker-config" in done.stdout


def test_a_doctor_before_the_first_start_leaves_nothing_behind(tmp_path, device):
    with Broker() as broker, center(tmp_path, broker.port) as flowerpower:
        where = ("--broker", f"mqtt://127.0.0.1:{broker.port}", "--name", "pi-7")
        command = [AGENT, "doctor", *where]
        said = until_gateway(
            lambda: subprocess.run(command, cwd=device, capture_output=True, text=True)
        )
        assert "ok      gateway: answered in" in said
        assert not [*device.glob("fp-agent.db*")]
        assert (flowerpower("agents"), flowerpower("letters")) == ([], [])
        with Running(device, *where) as agent:
            agent.until("connected to")
            deadline = time.monotonic() + 10
            while not (agents := flowerpower("agents")):
                assert time.monotonic() < deadline
            assert [(each["name"], each["state"]) for each in agents] == [("pi-7", "ready")]
            done = fp_agent("doctor", *where, cwd=device)
            assert f"ok      agent: runs as pid {agent.process.pid}" in done.stdout
            assert "ok      gateway: answered in" in done.stdout
            assert agent.log.read_text().count("connected to") == 1  # nobody kicked it off
            agent.process.terminate()
            agent.process.wait(10)
        deadline = time.monotonic() + 10
        while [each["state"] for each in flowerpower("agents")] != ["away"]:  # a moment later
            assert time.monotonic() < deadline
        fp_agent("doctor", *where, cwd=device)
        assert [each["state"] for each in flowerpower("agents")] == ["away"]


# Files --------------------------------------------------------------------------------------


def test_init_writes_what_runs(tmp_path):
    done = fp_agent("init", "device", cwd=tmp_path)
    assert "created device/agent.yml" in done.stdout
    assert "already" in fp_agent("init", "device", cwd=tmp_path, code=2).stderr
    text = (tmp_path / "device" / "agent.yml").read_text()
    for key in config.KEYS:
        assert f"\n{'' if key == 'broker' else '# '}{key}:" in text
    whole = "\n".join(
        line.removeprefix("# ") for line in text.splitlines()
        if line.startswith("broker") or (line.startswith("# ") and line[2:].partition(":")[0] in config.KEYS)
    )  # fmt: skip
    (tmp_path / "device" / "all.yml").write_text(whole)
    assert config.read(tmp_path / "device" / "all.yml", {}, {}).slots == 1
    done = subprocess.run(
        [AGENT.replace("fp-agent", "flowerpower"), "run", "device", "--quiet"],
        cwd=tmp_path / "device", capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.startswith("busy")


def sections(text):
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read_string(text)
    return unit


def test_the_unit_locks_the_agent_in(device):
    (device / "agent.yml").write_text("{name: pi, grace: 5, memory_limit: 100, slots: 2}")
    printed = fp_agent("install-service", "--print", "--user", "edge", cwd=device).stdout
    unit = sections(printed)
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["User"] == "edge"
    assert service["ReadWritePaths"] == f'"{device}"'
    assert service["ProtectSystem"] == "strict"
    assert service["TimeoutStopSec"] == "20"
    assert service["MemoryMax"] == "328M"
    assert f"--config {device}/agent.yml" in service["ExecStart"]  # found in this folder
    assert "network-online" not in unit["Unit"]["After"]


def test_the_unit_refuses_an_address_with_a_login(device):
    done = fp_agent(
        "install-service", "--print", "--broker", "mqtt://u:secret@b", cwd=device, code=2
    )
    assert "--broker: a login would stand in the unit" in done.stderr
    assert "secret" not in done.stdout


def test_the_unit_keeps_flags_but_no_password(device):
    flags = ("--broker", "mqtt://b", "--tag", "a=50% $x", "--tag", "c=d", "--password", "secret")
    printed = fp_agent("install-service", "--print", *flags, cwd=device).stdout
    service = sections(printed)["Service"]
    assert service["ExecStart"].endswith(' --broker mqtt://b --tag "a=50%% $$x" --tag c=d')
    assert "secret" not in printed
    assert "User" not in service
    assert "# MemoryMax" in printed


def test_systemd_takes_the_unit(device):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    unit = device / "fp-agent.service"
    unit.write_text(fp_agent("install-service", "--print", cwd=device).stdout)
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60
    )
    about = [line for line in done.stderr.splitlines() if str(unit) in line]
    newer = ("RestartSteps", "RestartMaxDelaySec")  # passed over before version 254
    assert not [line for line in about if not any(key in line for key in newer)]


def test_colors_are_for_terminals(device):
    done = subprocess.run(
        ["script", "-qec", f"{AGENT} status", "/dev/null"],
        cwd=device,
        capture_output=True,
        text=True,
    )
    assert "\x1b[31mnot running" in done.stdout
    assert "\x1b" not in fp_agent("status", cwd=device, code=4).stdout
