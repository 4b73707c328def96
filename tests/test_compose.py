"""`docker-compose.yml` against the schema of compose files, and against what conf/*.yml say.

`data/compose-spec.json` is schema/compose-spec.json of github.com/compose-spec/compose-spec,
commit 170098ba07d9 (Apache License 2.0). Nothing is started here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

import fp_async
from fp_async import config

ROOT = Path(__file__).parent.parent
FILE = ROOT / "broker_conf" / "docker-compose.yml"
TEMPLATES = ROOT / "fp_async" / "templates"
COMPOSE = yaml.safe_load(FILE.read_text())
SERVICES = COMPOSE["services"]
CONF = (TEMPLATES / "scheduler.yml").read_text()
IMAGE = re.compile(r"[a-z0-9/._-]+:\d+\.\d+[a-z0-9.-]*")


def host_ports(service):
    """container port -> host ports"""
    found = {}
    for text in SERVICES[service]["ports"]:
        address, host, inside = text.split(":")
        assert address == "127.0.0.1"
        found.setdefault(int(inside), []).append(int(host))
    return found


def uris(kind):
    """The addresses that conf/scheduler.yml shows for a type."""
    blocks = re.findall(rf"type: {kind}\n#   uri: (\S+)", CONF)
    assert blocks
    return [urlsplit(text) for text in blocks]


def test_it_is_a_valid_compose_file():
    schema = json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(COMPOSE)


def test_the_file_is_the_one_that_init_writes():
    assert FILE.read_bytes() == (TEMPLATES / "docker-compose.yml").read_bytes()


def test_it_has_the_services_of_the_document():
    assert {"mqtt", "redis", "mongodb", "postgres"} < SERVICES.keys()
    assert set(SERVICES) == {
        *("mqtt", "redis", "mongodb", "postgres", "mysql", "mosquitto", "hamilton-ui")
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_local_checked_and_keeps_its_data(name):
    service = SERVICES[name]
    assert IMAGE.fullmatch(service["image"])
    assert host_ports(name)
    assert service["healthcheck"]["test"][0] == "CMD"
    volumes = [text.partition(":")[0] for text in service["volumes"]]
    assert volumes
    assert set(volumes) <= COMPOSE["volumes"].keys()
    assert {entry["source"] for entry in service.get("configs", [])} <= COMPOSE["configs"].keys()


def test_all_services_can_run_beside_each_other():
    ports = [p for name in SERVICES for hosts in host_ports(name).values() for p in hosts]
    assert len(ports) == len(set(ports))


@pytest.mark.parametrize(
    ("name", "kind", "port", "prefix"),
    [("postgres", "postgres", 5432, "POSTGRES"), ("mysql", "mysql", 3306, "MARIADB")],
)
def test_databases_are_those_of_the_configuration(name, kind, port, prefix):
    assert host_ports(name) == {port: [port]}
    environment = SERVICES[name]["environment"]
    for uri in uris(kind):
        assert (uri.hostname, uri.port) == ("localhost", port)
        assert environment[f"{prefix}_USER"] == uri.username == "user"
        assert environment[f"{prefix}_PASSWORD"] == uri.password == "password"
        assert environment[f"{prefix}_DB" if name == "postgres" else f"{prefix}_DATABASE"] == (
            uri.path.removeprefix("/")
        )


@pytest.mark.parametrize(("name", "port"), [("mongodb", 27017), ("redis", 6379)])
def test_open_services_are_those_of_the_configuration(name, port):
    assert host_ports(name) == {port: [port]}
    assert [(uri.hostname, uri.port) for uri in uris(name)] == [("localhost", port)]


def test_mqtt_is_that_of_the_configuration():
    block = CONF.partition("type: mqtt")[2]
    settings = dict(re.findall(r"#   (\w+): (\S+)", block.partition("worker:")[0]))
    assert host_ports("mqtt")[1883] == [int(settings["port"])] == [1883]
    user, password = settings["username"], "edge"
    assert settings["password"] == "${MQTT_PASSWORD:-edge}"
    users = COMPOSE["configs"]["mqtt-users"]["content"].splitlines()
    assert users == ["user_id,password,is_superuser", f"{user},{password},true"]
    target = SERVICES["mqtt"]["configs"][0]["target"]
    assert SERVICES["mqtt"]["environment"]["EMQX_AUTHENTICATION__1__BOOTSTRAP_FILE"] == target
    assert f"mosquitto_passwd -b -c /mosquitto/users {user} {password}" in str(
        SERVICES["mosquitto"]["command"]
    )
    assert host_ports("mosquitto") == {1883: [1884]}


def test_the_tracker_is_that_of_the_configuration():
    urls = re.findall(r"http://localhost:(\d+)", (TEMPLATES / "tracker.yml").read_text())
    assert sorted(host_ports("hamilton-ui")[8241]) == sorted(map(int, urls))


def test_the_commented_worker_section_has_all_settings_with_their_defaults():
    block = CONF.partition("# worker:\n")[2]
    text = "worker:\n" + "".join(f"{line.removeprefix('# ')}\n" for line in block.splitlines())
    shown = yaml.safe_load(text)["worker"]
    defaults = config.WorkerSettings()
    assert list(shown) == list(config.WorkerSettings.__struct_fields__)
    assert shown == {name: getattr(defaults, name) for name in shown}


# init --services


def init(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "fp_async", "init", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ,
        timeout=60,
    )


def test_init_writes_the_services(tmp_path):
    done = init("shop", "--services", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "shop" / "docker-compose.yml").read_bytes() == FILE.read_bytes()
    assert "docker compose up" in done.stdout


def test_an_existing_project_gets_the_services_too(tmp_path):
    fp_async.init(tmp_path)
    conf = tmp_path / "conf" / "pipelines.yml"
    conf.write_text("run: {}\n")
    assert init("--services", cwd=tmp_path).returncode == 0
    assert conf.read_text() == "run: {}\n"
    assert (tmp_path / "docker-compose.yml").exists()


def test_services_that_exist_are_kept_unless_told(tmp_path):
    fp_async.init(tmp_path)
    mine = tmp_path / "docker-compose.yml"
    mine.write_text("services: {}\n")
    done = init("--services", cwd=tmp_path)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    assert mine.read_text() == "services: {}\n"
    assert init("--services", "--overwrite", cwd=tmp_path).returncode == 0
    assert mine.read_bytes() == FILE.read_bytes()
