"""What goes onto a device: what it needs, whole versions, and no secret of the center."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest
from edge_kit import AGENT, Broker, conf, edge_fleet, until_known
from fleet import COMMAND, make
from services import run

from fp_async import device_files, editing
from fp_async.device_files import Wanted
from fp_async.errors import AlreadyExistsError, UnknownNameError, UsageError

SQLITE = "data_store:\n  type: sqlite\n  uri: sqlite:///jobs.db\n"
CONFIGURATION = """\
params:
  flow: {value: {step: 2}}
  other: {value: {step: "${OTHER_SECRET}"}}
run:
  flow:
    # where it runs
    dev:
      inputs: {name: "${PLACE}", unit: "${UNIT:-C}"}
      on_failure: [alarms:ring]
      schedule: {type: interval, params: {seconds: "${EVERY}"}}
  other: {dev: {inputs: {a: 1}}}
"""


@pytest.fixture
def center(tmp_path):
    root = tmp_path / "center"
    project = make(root, SQLITE)
    pipelines = root / "pipelines"
    for path in pipelines.glob("*.py"):
        path.unlink()
    (pipelines / "flow.py").write_text(
        "import helper\n\n\ndef value(name: str, unit: str) -> str:\n    return helper.VERSION\n"
    )
    (pipelines / "helper.py").write_text('VERSION = "one"\n')
    (pipelines / "alarms.py").write_text("def ring(**told: object) -> None:\n    pass\n")
    (pipelines / "other.py").write_text("def value(a: int) -> int:\n    return a\n")
    (pipelines / "__pycache__").mkdir(exist_ok=True)
    (root / "conf" / "pipelines.yml").write_text(CONFIGURATION)
    (root / "conf" / "mqtt.yml").write_text("broker: {uri: 'mqtt://u:geheim@h'}\n")
    (root / ".env").write_text("OTHER_SECRET=geheim\nPLACE=geheim\n")
    (root / "models" / "deep").mkdir(parents=True)
    (root / "models" / "deep" / "weights.bin").write_bytes(b"\0weights")
    (root / "notes.txt").write_text("mine")
    keys = root / "broker" / "agents" / "pi-7"
    keys.mkdir(parents=True)
    (root / "broker" / "ca.key").write_text("geheim")
    (keys / "agent.yml").write_text("broker: mqtt://h\nname: pi-7\npassword: own\n")
    (keys / "client.key").write_text("own key")
    return project


def wanted(root, *pipelines, include=()):
    return Wanted("pi-7", list(pipelines), list(include), device_files.keys_of(root, "pi-7"))


def everything(folder):
    """The content of each file, by its path; links are followed."""
    found = {}
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = Path(place) / name
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def test_a_device_gets_its_pipelines_their_configuration_and_its_keys(center, tmp_path):
    folder = tmp_path / "pi-7"
    ask = wanted(center.root, "flow", include=["models"])
    done = device_files.write(center.root, folder, ask)
    found = everything(folder)
    seen = {name for name in found if "/.files" not in name}
    assert seen == {
        "agent.yml",
        "client.key",
        "device-files.json",
        "project/conf/pipelines.yml",
        "project/models/deep/weights.bin",
        "project/pipelines/alarms.py",
        "project/pipelines/flow.py",
        "project/pipelines/helper.py",
    }
    assert not [name for name, data in found.items() if b"geheim" in data or b"OTHER" in data]
    text = found["project/conf/pipelines.yml"].decode()
    assert editing.load(text, "t")["run"].keys() == {"flow"}
    assert "schedule" not in text
    assert "# where it runs" in text
    settings = editing.load(found["agent.yml"].decode(), "t")
    assert (settings["password"], settings["project"]) == ("own", "project")
    assert settings["store"] == "store/fp-agent.db"
    assert done.variables == ["PLACE"]
    assert done.left_out.keys() == {
        *(".env", "broker", "conf/mqtt.yml", "conf/scheduler.yml"),
        *("pipelines/other.py", "notes.txt"),
    } | ({"conf/tracker.yml"} if (center.root / "conf" / "tracker.yml").exists() else set())
    for name in ("agent.yml", "client.key"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600


def test_again_is_an_update_that_keeps_what_is_the_devices(center, tmp_path):
    folder = tmp_path / "pi-7"
    ask = wanted(center.root, "flow", include=["models/deep/weights.bin"])
    assert device_files.write(center.root, folder, ask).changed
    assert not device_files.write(center.root, folder, ask).changed
    (folder / "project" / ".env").write_text("PLACE=berlin\n")
    (folder / "project" / "models" / "made_here.txt").write_text("result")
    (folder / "agent.yml").write_text("name: pi-7\nslots: 3\n")
    (center.root / "pipelines" / "helper.py").write_text('VERSION = "two"\n')
    done = device_files.write(center.root, folder, wanted(center.root, "flow"))
    assert (done.changed, done.kept) == (True, ["agent.yml"])
    assert (folder / "project" / "pipelines" / "helper.py").read_text() == 'VERSION = "two"\n'
    assert (folder / "project" / ".env").read_text() == "PLACE=berlin\n"
    assert (folder / "project" / "models" / "made_here.txt").read_text() == "result"
    assert not os.path.lexists(folder / "project" / "models" / "deep" / "weights.bin")
    assert (folder / "agent.yml").read_text() == "name: pi-7\nslots: 3\n"
    device_files.write(center.root, folder, wanted(center.root, "flow"), overwrite=True)
    assert "password: own" in (folder / "agent.yml").read_text()
    device_files.back(folder)
    assert (folder / "project" / "pipelines" / "helper.py").read_text() == 'VERSION = "one"\n'
    assert (folder / "project" / "models" / "deep" / "weights.bin").read_bytes() == b"\0weights"
    device_files.back(folder)
    assert (folder / "project" / "pipelines" / "helper.py").read_text() == 'VERSION = "two"\n'
    assert len(list((folder / "project").glob(".files-*"))) == 2


def test_a_reader_never_meets_half_a_version(center, tmp_path):
    """Two modules of one version, read through the links by another thread, belong together."""
    folder, pipelines = tmp_path / "pi-7", center.root / "pipelines"
    ask = wanted(center.root, "flow")
    device_files.write(center.root, folder, ask)
    stop, missing = threading.Event(), []

    def read():
        while not stop.is_set():
            try:
                for name in ("flow", "helper", "alarms"):
                    (folder / "project" / "pipelines" / f"{name}.py").read_text()
            except FileNotFoundError as error:
                missing.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(30):
        (pipelines / "helper.py").write_text(f'VERSION = "{number}"\n')
        device_files.write(center.root, folder, ask)
        if number % 7 == 3:
            device_files.back(folder)
            device_files.back(folder)
    stop.set()
    reader.join()
    assert missing == []


@pytest.mark.parametrize(
    "include", [".env", "broker", "broker/ca.key", "conf/mqtt.yml", "../x", ".", "jobs.db", "none"]
)
def test_what_stays_at_the_center_cannot_be_included(center, tmp_path, include):
    with pytest.raises(UsageError, match="--include"):
        device_files.write(center.root, tmp_path / "d", wanted(center.root, include=[include]))


def test_a_link_out_of_the_project_is_refused(center, tmp_path):
    (center.root / "models" / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match="leads out of the project"):
        device_files.write(center.root, tmp_path / "d", wanted(center.root, include=["models"]))


def test_mistakes_write_nothing(center, tmp_path):
    folder = tmp_path / "d"
    with pytest.raises(UnknownNameError, match="did you mean 'flow'"):
        device_files.write(center.root, folder, wanted(center.root, "flwo"))
    assert not folder.exists()
    with pytest.raises(UsageError, match="no version before"):
        device_files.back(folder)
    (folder / "project" / "pipelines").mkdir(parents=True)
    with pytest.raises(AlreadyExistsError, match="copied by hand"):
        device_files.write(center.root, folder, wanted(center.root, "flow"))
    other = tmp_path / "e"
    device_files.write(center.root, other, wanted(center.root, "flow"))
    with pytest.raises(AlreadyExistsError, match="agent 'pi-7'"):
        device_files.write(center.root, other, Wanted("pi-8", ["flow"]))


def test_agents_of_two_sites_are_told_apart(center):
    other = center.root / "broker" / "sites" / "rome" / "agents" / "pi-7"
    other.mkdir(parents=True)
    (other / "agent.yml").write_text("name: pi-7\n")
    with pytest.raises(UsageError, match=r"broker/sites/rome/agents/pi-7; choose one by --keys"):
        device_files.keys_of(center.root, "pi-7")


def test_the_pipelines_that_agent_yml_names_are_the_default(center):
    keys = center.root / "broker" / "agents" / "pi-7"
    assert device_files.allowed(keys) is None
    more = "pipelines: [flow]\ntriggers: {t: {topic: a, pipeline: other, inputs: {}}}\n"
    (keys / "agent.yml").write_text(f"name: pi-7\n{more}")
    assert device_files.allowed(keys) == ["flow", "other"]


async def test_an_agent_runs_from_it_and_follows_an_update(center, tmp_path):
    folder = tmp_path / "pi-7"
    with Broker() as broker:
        (center.root / "conf" / "mqtt.yml").write_text(conf(broker.port))
        keys = center.root / "broker" / "agents" / "pi-7"
        (keys / "agent.yml").write_text(f"broker: mqtt://127.0.0.1:{broker.port}\nname: pi-7\n")

        def update():
            line = [COMMAND, "device-files", folder, "--agent", "pi-7", "--pipelines", "flow"]
            return run([*map(str, line), "--base-dir", str(center.root)])

        update()
        (folder / "project" / ".env").write_text("PLACE=berlin\n")
        with edge_fleet(center.root) as flock:
            flock.start_gateway("g1")
            process = subprocess.Popen([AGENT, "run", "--config", folder / "agent.yml"])
            try:
                async with center:
                    await until_known(center, "pi-7")
                    ask = {"on": "agent:pi-7", "final_vars": ["value"]}
                    assert await center.run_job("flow", **ask) == {"value": "one"}
                    (center.root / "pipelines" / "helper.py").write_text('VERSION = "two"\n')
                    update()
                    assert await center.run_job("flow", **ask) == {"value": "two"}
                    device_files.back(folder)
                    assert await center.run_job("flow", **ask) == {"value": "one"}
                    assert (folder / "store" / "fp-agent.db").is_file()
            finally:
                process.terminate()
                assert process.wait(30) == 0
