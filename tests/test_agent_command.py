"""The `fp-agent` command: settings, status, jobs, doctor, init, the service; real processes."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
import services
from edge_kit import AGENT, Broker
from fleet import PIPELINE

from edge_agent import config, writing
from fp_async.errors import ConfigError, UsageError


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
    "disk_floor": 11, "log_level": "debug", "triggers_broker": "mqtt://t",
}  # fmt: skip


def test_every_key_is_tried_here():
    assert set(GIVEN) == set(config.KEYS)


@pytest.mark.parametrize("key", GIVEN)
def test_flag_over_variable_over_file(key, tmp_path):
    value = GIVEN[key]
    text = "a=b" if key == "tags" else str(value)
    (tmp_path / "agent.yml").write_text(json.dumps({key: value}))
    assert getattr(config.read(tmp_path / "agent.yml", {}, {}), key) == value
    env = {f"FP_AGENT_{key.upper()}": text}
    assert getattr(config.read(None, {}, env), key) == value
    assert getattr(config.read(None, {key: text}, {}), key) == value
    other = {"tags": "c=d", "name": "other", "site": "other"}.get(key)
    if other is not None:
        wanted = {"c": "d"} if key == "tags" else other
        assert getattr(config.read(tmp_path / "agent.yml", {key: other}, env), key) == wanted


def test_a_mistake_in_the_file_names_line_key_and_the_nearest(tmp_path):
    (tmp_path / "agent.yml").write_text("name: pi\nslot: 3\n")
    with pytest.raises(ConfigError, match=r"agent\.yml:2: slot.*did you mean 'slots'"):
        config.read(tmp_path / "agent.yml", {}, {})
    (tmp_path / "agent.yml").write_text("triggers: {t: {topic: 'a/#/b', pipeline: work}}\n")
    with pytest.raises(ConfigError, match=r"triggers\.t\.topic: 'a/#/b' is no topic filter"):
        config.read(tmp_path / "agent.yml", {}, {})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"name": "a/b"}, "name 'a/b': use letters"),
        ({"site": "+"}, "site '\\+'"),
        ({"slots": "0"}, "slots"),
        ({"tags": ["site"]}, "write name=value"),
        ({"slots": "many"}, "slots"),
    ],
)
def test_wrong_settings_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        config.read(None, flags, {})


def test_paths_are_beside_the_file(tmp_path):
    (tmp_path / "agent.yml").write_text("{project: device, ca_file: ca.pem}")
    found = config.read(tmp_path / "agent.yml", {}, {})
    assert found.project == str(tmp_path / "device")
    assert found.store == str(tmp_path / "device" / "fp-agent.db")
    assert found.ca_file == str(tmp_path / "ca.pem")


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
        with Running(device, "--broker", f"mqtt://127.0.0.1:{broker.port}") as agent:
            agent.until("connected to")
            text = fp_agent("status", cwd=device).stdout
            assert "nobody hears us" in text
            again = fp_agent("run", cwd=device, code=3)
            assert "another agent runs on the store" in again.stderr
            agent.process.kill()
            agent.process.wait()
        with Running(device, "--broker", f"mqtt://127.0.0.1:{broker.port}") as agent:
            agent.until("agent ")  # the lock has gone with the killed process


def test_a_corrupt_store_is_set_aside(device):
    (device / "fp-agent.db").write_bytes(b"SQLite format 3\0" + b"nonsense" * 1000)
    port = services.free_port()
    with Running(device, "--broker", f"mqtt://127.0.0.1:{port}") as agent:
        agent.until("the store is corrupt")
        agent.until("trying again")
    assert list(device.glob("fp-agent.db.corrupt-*"))
    found = json.loads(fp_agent("status", "--output", "json", cwd=device, code=4).stdout)
    assert "corrupt" in found["set_aside"]


def test_a_folder_without_pipelines_is_no_project(tmp_path):
    assert "no pipelines/" in fp_agent("run", cwd=tmp_path, code=2).stderr


def test_a_read_only_folder_is_told(device):
    store = device / "kept"
    store.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "none", store], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting needs rights")
    try:
        done = fp_agent("run", "--store", str(store / "x.db"), cwd=device, code=1)
        assert "Read-only file system" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", store], check=True)


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


# Doctor -------------------------------------------------------------------------------------


def test_the_doctor_finds_what_is_wrong(device):
    port = services.free_port()
    done = fp_agent("doctor", "--broker", f"mqtt://127.0.0.1:{port}", cwd=device, code=1)
    assert "ok      pipelines: work" in done.stdout
    assert f"FAILED  broker: MQTT broker at 127.0.0.1:{port}" in done.stdout
    shutil.rmtree(device / "pipelines")
    with Broker() as broker:
        where = ("--broker", f"mqtt://127.0.0.1:{broker.port}")
        done = fp_agent("doctor", *where, "--disk-floor", "99999999", cwd=device, code=1)
    assert "FAILED  pipelines: none in" in done.stdout
    assert "FAILED  disk:" in done.stdout
    assert "ok      own topics:" in done.stdout
    assert "note    foreign topics: allowed" in done.stdout
    assert "FAILED  gateway: no answer from a gateway" in done.stdout


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


def test_the_unit_locks_the_agent_in(tmp_path):
    settings = config.read(None, {"project": str(tmp_path), "name": "pi"}, {})
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read_string(writing.unit(settings, tmp_path / "agent.yml", "edge"))
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["User"] == "edge"
    assert service["ReadWritePaths"] == str(tmp_path)
    assert service["ProtectSystem"] == "strict"
    assert f"--config {tmp_path}/agent.yml" in service["ExecStart"]
    assert "network-online" not in unit["Unit"]["After"]
