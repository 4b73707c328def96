"""The `fp-agent` command: settings, status, jobs, doctor, init, the service; real processes."""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import click
import msgspec
import pytest
import services
from click.testing import CliRunner
from edge_kit import AGENT, Broker, conf, edge_fleet
from fleet import COMMAND, PIPELINE, make

from edge_agent import checking, config, control, doctor, housekeeping, local_triggers, looking
from edge_agent import store as agent_store
from edge_agent.agent import Agent
from edge_agent.config import AgentSettings
from edge_agent.control import Control
from edge_agent.daemon import alone
from edge_agent.options import HELP, settings_of, settings_options
from edge_agent.store import AgentStore
from fp_async import codec, link
from fp_async.config import TopicTrigger
from fp_async.errors import ConfigError, FileAccessError, UsageError
from fp_async.jobs import Find, Job
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
    "heartbeat": 4.5, "grace": 6.0, "idle_timeout": 7.0, "memory_limit": 99, "max_jobs_per_child": 3, "outbox": 5,
    "disk_floor": 11, "log_level": "debug", "log_format": "json",
    "metrics_port": 9, "metrics_host": "::1", "triggers_broker": "mqtt://t",
    "version": 5, "triggers_version": 311,
    "pipelines": ["a", "b"], "executors": ["dask"], "executor_options": ["address", "options"],
}  # fmt: skip


def test_every_key_is_tried_here():
    assert set(GIVEN) == set(config.KEYS)


OTHER = {
    **{key: f"{value}0" for key, value in GIVEN.items() if isinstance(value, str)},
    **{key: value * 2 for key, value in GIVEN.items() if isinstance(value, int | float)},
    "broker": "mqtt://other", "triggers_broker": "mqtt://other", "log_level": "error",
    "log_format": "text", "tags": {"c": "d"}, "version": 311, "triggers_version": 5,
    "pipelines": ["c"], "executors": ["local", "ray"], "executor_options": ["resources"],
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


def as_flag(value):
    if isinstance(value, dict):
        return ",".join(f"{name}={text}" for name, text in value.items())
    return ",".join(value) if isinstance(value, list) else str(value)


@pytest.mark.parametrize("key", GIVEN)
def test_flag_over_variable_over_file_over_default(key, tmp_path, monkeypatch):
    if key.endswith("_file"):  # certificates are for TLS
        monkeypatch.setenv("FP_AGENT_BROKER", "mqtts://b")
    value, other = GIVEN[key], OTHER[key]
    file = tmp_path / "agent.yml"
    file.write_text(json.dumps({key: value}))
    named = {key: as_flag(value), "other": as_flag(other)}
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
        ({"broker": "http://b"}, "^--broker: not an MQTT broker's address: 'http://'"),
        ({"broker": "mqtt://b:x"}, "^--broker: the port is a number"),
    ],
)
def test_wrong_settings_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        config.read(None, flags, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("broker: mqtt://h\nca_file: ca.crt", "2: ca_file: ca_file is for TLS: write mqtts://"),
        ("broker: mqtt://h\nkey_file: k", "2: key_file: key_file is for TLS"),
        ("broker: localhost:28883", "1: broker: .*'localhost:28883' has no scheme, as in mqtt://"),
        ("broker: u:secret@h:1", "1: broker: .*'h:1' has no scheme"),
        ("broker: mqtt://h:x", "1: broker: the port is a number"),
        ("name: p\ntriggers_broker: mqtt://[", "2: triggers_broker: "),
        ("name: p\nsite: '#'", "2: site: site '#': use letters"),
        ("prefix: a//b", "1: prefix: prefix 'a//b'"),
        ('name: p\nproject: "\\0"', "2: project: no path has a NUL in it"),
        ("grace: .inf", "1: grace: expected float < "),
        ("outbox: 99999999999999999999", "1: outbox: expected int <="),
        ("memory_limit: 99999999999999999999", "1: memory_limit: expected int <="),
        ("slots: 2147483647", "1: slots: expected int <= 10000"),
    ],
)
def test_g1_what_no_type_shows_names_file_line_and_key(text, said, tmp_path):
    file = tmp_path / "agent.yml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"agent\.yml:{said}") as raised:
        config.read(file, {}, {})
    assert "secret" not in str(raised.value)


def test_g1_the_source_of_a_wrong_value_is_named_where_the_file_has_another(tmp_path):
    file = tmp_path / "agent.yml"
    file.write_text("broker: mqtts://h\nca_file: ca.crt")
    with pytest.raises(UsageError, match="^FP_AGENT_BROKER: not an MQTT"):
        config.read(file, {}, {"FP_AGENT_BROKER": "http://h"})
    with pytest.raises(UsageError, match="^FP_AGENT_PASSWORD: it is no UTF-8"):
        config.read(file, {}, {"FP_AGENT_PASSWORD": "\udcff"})
    with pytest.raises(UsageError, match="^--name: name 'a/b'"):
        config.read(file, {"name": "a/b"}, {})


def test_g1_a_plain_broker_on_the_device_takes_no_files_of_tls(tmp_path):
    file = tmp_path / "agent.yml"
    own = "broker: mqtts://h\nca_file: ca.crt\ntriggers_broker: {}://u:p@l"
    file.write_text(own.format("mqtt"))
    assert config.triggers_address(config.read(file, {}, {})).ca_file is None
    file.write_text(own.format("mqtts"))
    near = config.triggers_address(config.read(file, {}, {}))
    assert near.ca_file == str(tmp_path / "ca.crt")


def test_g1_wrong_settings_end_run_and_doctor_with_2(device):
    (device / "agent.yml").write_text("broker: mqtt://localhost:28883\nca_file: ca.crt\n")
    for command in ("run", "doctor"):
        said = fp_agent(command, cwd=device, code=2).stderr
        assert said.startswith("error: agent.yml:2: ca_file: ")


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
    file.write_text("{project: device, broker: 'mqtts://b', ca_file: ca.pem}")
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
            assert json.loads(found.stdout)["full"].startswith("the disk is ")
            assert json.loads(found.stdout)["status"] == "full"


# Secrets ------------------------------------------------------------------------------------

TELLS = """
import os
from pathlib import Path

def done(number: int, seconds: float, starts: str) -> int:
    environs = [dict(os.environ), Path(f"/proc/{os.getppid()}/environ").read_text()]
    Path(starts).write_text(str(environs))
    return number
"""


def test_e16_no_process_of_a_job_sees_a_login_of_the_agent(device):
    (device / "pipelines" / "work.py").write_text(TELLS)
    port = services.free_port()
    secrets = {
        "FP_AGENT_PASSWORD": "hush-1",
        "FP_AGENT_BROKER": f"mqtt://pi:hush-2@127.0.0.1:{port}",
        "FP_AGENT_TRIGGERS_BROKER": f"mqtt://pi:hush-3@127.0.0.1:{port}",
    }
    put(device, number=4, seconds=0)
    with Running(device, env={**secrets, "FP_AGENT_NAME": "pi-7", "HARMLESS": "shown"}) as agent:
        deadline = time.monotonic() + 20
        while not (device / "starts").exists() or the_job(device)["state"] != "succeeded":
            assert time.monotonic() < deadline, agent.log.read_text()
        own = Path(f"/proc/{agent.process.pid}/environ").read_text()
    seen = (device / "starts").read_text()
    assert "'HARMLESS': 'shown'" in seen
    assert "HARMLESS=shown" in own
    assert "hush" not in seen + own


def test_e16_the_doctor_imports_pipelines_without_a_login(device):
    (device / "pipelines" / "tells.py").write_text(
        "import os\nfrom pathlib import Path\n"
        f"Path({str(device / 'seen')!r}).write_text(str(dict(os.environ)))\n"
    )
    env = {"FP_AGENT_PASSWORD": "hush", "HARMLESS": "shown"}
    where = ("--broker", f"mqtt://127.0.0.1:{services.free_port()}")
    done = subprocess.run(
        [AGENT, "doctor", *where], cwd=device, capture_output=True, timeout=60, check=False,
        env={**os.environ, **env},
    )  # fmt: skip
    seen = (device / "seen").read_text()
    assert "'HARMLESS': 'shown'" in seen, done.stdout
    assert "hush" not in seen


def test_e19_what_an_agent_keeps_is_for_its_user(device):
    before = os.umask(0o022)
    try:
        with WithJob(device, seconds=5):
            names = [f"fp-agent.db{end}" for end in ("", "-wal", "-shm", ".lock")]
            rights = [(device / name).stat().st_mode & 0o777 for name in names]
    finally:
        os.umask(before)
    assert rights == [0o600] * 4


def test_e19_a_link_in_the_place_of_the_lock_is_not_followed(device):
    precious = device / "precious"
    precious.write_text("kept")
    (device / "fp-agent.db.lock").symlink_to(precious)
    done = fp_agent("run", cwd=device, code=3)
    assert "cannot write fp-agent.db.lock" in done.stderr
    assert precious.read_text() == "kept"


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
    assert "nothing listens there: is the broker running" in done.stdout
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
    assert "FAILED  triggers: trigger 't': there is no pipeline 'wrok'; did you mean 'work'" in said
    own["triggers"]["t"] = {"topic": "a", "pipeline": "work", "on": "agent:x"}
    (device / "agent.yml").write_text(json.dumps(own))
    assert "a device runs its triggers itself" in fp_agent("run", cwd=device, code=2).stderr


def test_two_connections_with_one_login_are_noted(device):
    nobody = f"mqtt://127.0.0.1:{services.free_port()}"
    own = {"broker": nobody, "password": "p", "triggers": {"t": {"topic": "a", "pipeline": "work"}}}
    (device / "agent.yml").write_text(json.dumps(own))
    assert "note    triggers: " in fp_agent("doctor", cwd=device, code=1).stdout
    (device / "agent.yml").write_text(json.dumps({**own, "triggers_broker": nobody}))
    assert "note    triggers: " not in fp_agent("doctor", cwd=device, code=1).stdout


def test_g4_a_broker_that_refuses_the_triggers_is_seen_everywhere(device):
    with Broker() as broker, services.Mosquitto("secret") as other:
        own = {
            "broker": f"mqtt://127.0.0.1:{broker.port}",
            "name": "pi",
            "triggers_broker": f"mqtt://near:wrong@127.0.0.1:{other.port}",
            "triggers": {"t": {"topic": "a", "pipeline": "work"}},
        }
        (device / "agent.yml").write_text(json.dumps(own))
        said = fp_agent("doctor", cwd=device, code=1).stdout
        near = f"MQTT broker at 127.0.0.1:{other.port} (as near, for triggers)"
        assert f"FAILED  triggers broker: {near}" in said
        with Running(device) as agent:
            agent.until(f"{near}: ")
            agent.until(f"connected to MQTT broker at 127.0.0.1:{broker.port}")
            shown = fp_agent("status", cwd=device, code=3).stdout
            assert f"triggers     mqtt://127.0.0.1:{other.port}: no connection" in shown
            assert f"broker       mqtt://127.0.0.1:{broker.port}: connected" in shown
            assert near in shown, "it is a problem"
            said = fp_agent("doctor", cwd=device, code=1).stdout
            assert f"FAILED  triggers broker: mqtt://127.0.0.1:{other.port} as near: {near}" in said
            assert f"ok      broker: mqtt://127.0.0.1:{broker.port}" in said
            assert agent.log.read_text().count("trying again") == 1
        own["triggers_broker"] = other.uri
        (device / "agent.yml").write_text(json.dumps(own))
        with Running(device) as agent:
            agent.until("(as fp, for triggers)")
            found = json.loads(fp_agent("status", "--output", "json", cwd=device).stdout)
            assert found["triggers"]["connected"]
            assert found["triggers"]["user"] == "fp"
            said = fp_agent("doctor", cwd=device, code=1).stdout
            assert f"ok      triggers broker: mqtt://127.0.0.1:{other.port} as fp" in said


async def test_g4_a_broker_that_says_no_after_an_outage_is_logged(caplog):
    with services.Mosquitto("secret") as broker:
        broker.kill()
        place = link.Link(port=broker.port, username="u", password="x", timeout=2.0)
        heard = []

        def told(error):
            heard.append(str(error))
            if len(heard) == 2:
                broker.start()
            if len(set(heard)) == 2:
                task.cancel()

        task = asyncio.ensure_future(link.serve(place, None, longest=0.01, told=told))
        await asyncio.wait([task])
    said = [text for text in caplog.messages if "trying again" in text]
    assert said == [f"{text}; trying again" for text in dict.fromkeys(heard)]


async def test_g4_each_reason_of_an_outage_is_logged_once(caplog):
    with services.Mosquitto("secret") as broker:
        place = link.Link(port=broker.port, username="u", password="x", timeout=2.0)
        heard = []

        def told(error):
            heard.append(str(error))
            if len(heard) == 2:
                broker.kill()
            if len(heard) == 5:
                task.cancel()

        task = asyncio.ensure_future(link.serve(place, None, longest=0.01, told=told))
        await asyncio.wait([task])
    said = [text for text in caplog.messages if "trying again" in text]
    assert said == [f"{text}; trying again" for text in dict.fromkeys(heard)]
    assert len(said) < len(heard), "the same reason is no news"
    assert all(f"MQTT broker at localhost:{broker.port} (as u)" in text for text in said)


async def test_e18_a_lost_connection_then_a_refusal_then_the_end_of_an_outage(caplog, tmp_path):
    class Guarded(services.Mosquitto):
        """Takes everyone, or without `open` nobody."""

        open = True

        def prepare(self):
            lines = [f"listener {self.port} 127.0.0.1", "user root", "persistence false"]
            lines.append(f"allow_anonymous {str(self.open).lower()}")
            (self.folder / "conf").write_text("\n".join((*lines, "")))

    with Guarded() as broker:
        visits, heard = [], []

        async def stay(connection):
            visits.append(connection)
            if len(visits) == 2:
                return
            broker.kill()
            broker.open = False
            broker.prepare()
            broker.start()
            await connection.wait_lost()

        def told(error):
            heard.append(str(error))
            if "uthori" in str(error) and broker.open is False:
                broker.kill()
                broker.open = True
                broker.prepare()
                broker.start()

        place = link.Link(host="127.0.0.1", port=broker.port, timeout=2.0)
        await link.serve(place, stay, longest=0.01, told=told)
    said = [text for text in caplog.messages if "trying again" in text]
    assert any("the connection was lost" in text for text in said)
    assert sum("uthori" in text for text in said) == 1
    assert re.search(r"connected again after \d+ s$", caplog.messages[-1])


async def heard(agent, *payloads):
    """What the triggers of an agent make of messages."""
    listening = local_triggers.Listening(agent)
    messages = [link.Message("sensors/s1/count", each) for each in payloads]
    await listening._handle(messages)
    return await agent.store.find(Find())


async def test_g3_what_makes_no_job_on_a_device_is_kept_counted_and_told(
    device, caplog, monkeypatch
):
    own = {
        "name": "pi",
        "broker": f"mqtt://127.0.0.1:{services.free_port()}",
        "triggers": {
            "counts": {
                "topic": "sensors/+/count",
                "pipeline": "work",
                "inputs": {"number": "$payload.value"},
            }
        },
    }
    (device / "agent.yml").write_text(json.dumps(own))
    settings = config.read(device / "agent.yml", {}, {})
    agent = Agent(settings)
    await agent.open()
    large = b'"' + b"x" * 70_000 + b'"'
    jobs = await heard(agent, b"xx", b'{"valu": 1}', b"[]", large, b'{"value": 1}')
    assert len(jobs) == 1
    found = looking.letters(settings, 20)
    assert [each["payload"][:4] for each in found] == ['"xxx', "[]", '{"va', "xx"]
    assert "trigger 'counts': the message has no $payload.value" in found[1]["reason"]
    assert "trigger 'counts': the payload is no json" in found[3]["reason"]
    assert "its 70,002 bytes are kept up to 4,096" in found[0]["reason"]
    assert (await Control(agent).status())["letters"] == 4
    (told,) = agent.take_notices()
    assert told.reason.startswith("trigger 'counts': ")
    (said,) = [text for text in caplog.messages if "made no job" in text]
    assert "a message made no job (1 so far): trigger 'counts': " in said
    monkeypatch.setattr(agent_store, "_BURIED", 5)
    await heard(agent, *[b"yy"] * 20)
    assert len(looking.letters(settings, 50)) == 5
    await agent.close()
    listed = json.loads(fp_agent("letters", "--output", "json", cwd=device).stdout)
    assert [each["payload"] for each in listed] == ["yy"] * 5
    assert "sensors/s1/count" in fp_agent("letters", cwd=device).stdout
    assert "letters      5 messages made no job" in fp_agent("status", cwd=device, code=4).stdout
    assert "note    letters: 5 messages" in fp_agent("doctor", cwd=device, code=1).stdout


def test_g8_a_doubtful_clock_is_named_where_tls_fails(tmp_path):
    settings = AgentSettings(broker="mqtts://h", name="pi")
    failed = doctor.Step("broker", "failed", "certificate is not yet valid", "is it running?")
    assert "the clock is in doubt" in doctor._with_clock(settings, failed).remedy
    plain = AgentSettings(broker="mqtt://h", name="pi")
    assert doctor._with_clock(plain, failed) == failed


def test_g12_each_error_of_the_project_is_a_finding_with_its_remedy(device):
    nobody = f"mqtt://127.0.0.1:{services.free_port()}"
    (device / "conf").mkdir()
    text = "run:\n  work:\n    dev: {inpts: {}}\n"
    (device / "conf" / "pipelines.yml").write_text(text)
    (device / "pipelines" / "other.py").write_text("import no_such_module\n")
    own = {"broker": nobody, "triggers": {"t": {"topic": "a", "pipeline": "wrok"}}}
    (device / "agent.yml").write_text(json.dumps(own))
    said = fp_agent("doctor", cwd=device, code=1).stdout
    assert re.search(r"FAILED  project: conf/pipelines.yml:3: .*inpts.*\n +correct it there", said)
    assert re.search(
        r"FAILED  imports: .*no_such_module.*\n +at .*\n +correct .* or install on this", said
    )
    with Running(device) as agent:
        agent.until("trying again")
    said = agent.log.read_text()
    assert "WARNING conf/pipelines.yml:3: " in said
    assert "WARNING trigger 't': there is no pipeline 'wrok'; did you mean 'work'" in said
    assert said.count("WARNING conf/") == said.count("WARNING trigger") == 1


def test_g12_an_input_that_no_node_reads_is_a_finding(device):
    triggers = {"t": TopicTrigger(topic="a", pipeline="work", inputs={"nmae": "$payload"})}
    report = checking.examined(AgentSettings(project=str(device), triggers=triggers))
    (problem,) = report.errors
    assert "triggers.t.inputs.nmae: no node of 'work' reads this input" in problem.message
    (step,) = doctor._imported(report)
    assert step.remedy == "correct it in agent.yml"


async def test_g12_the_status_shows_the_disk_as_it_is(device, monkeypatch):
    agent = Agent(config.read(None, {"name": "x", "project": str(device)}, {}))
    await agent.open()
    monkeypatch.setattr(housekeeping, "free_bytes", lambda _: 0)
    found = await Control(agent).status()
    assert found["disk_free"] == 0
    assert found["status"] == "full"
    assert found["full"] == "the disk is full: 0 KiB are free"
    assert "the disk is full" in found["problem"]
    await agent.close()


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
        assert "are username and password right?" in done.stdout
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


@pytest.mark.parametrize(
    ("free", "outbox", "why"),
    [
        (300 * 2**20, 0, None),
        (100 * 2**20, 0, "the disk is nearly full: 100 MiB are free"),
        (4096, 0, "the disk is full: 4 KiB are free"),
        (300 * 2**20, 65 * 2**20, "the outbox is full: 65 MiB wait to be told"),
    ],
)
def test_e23_a_device_without_room_says_why(free, outbox, why):
    assert housekeeping.no_room(AgentSettings(), free, outbox) == why
    floorless = AgentSettings(disk_floor=0)
    full = housekeeping.no_room(floorless, free, outbox)
    assert full == (None if free == 100 * 2**20 else why)


def test_e23_a_full_agent_is_not_ready():
    assert control.standing("ready", None) == "ready"
    assert control.standing("ready", "the disk is full") == "full"
    assert control.standing("draining", "the disk is full") == "draining"
