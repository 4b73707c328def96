"""URIs with logins: read as they are meant, shown without any part of the login (C8)."""

from __future__ import annotations

import pickle
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import pytest
import sqlalchemy as sa

from edge_agent.config import AgentSettings
from fp_async import addresses, events, stores
from fp_async.config import DataStore, EventBroker, MqttBroker, TrackerFile
from fp_async.errors import ConfigError, InputError, NodeError, StoreError, describe
from fp_async.link_values import Link
from fp_async.stores import sql_addresses

PASSWORDS = [
    "secretA",
    "pw@secretB",
    "@secretC@",
    "a:secretD",
    "100%secretE",
    "%40secretF",
    "p%zzsecretG",
]
UNCLEAR = ["x/secretH", "x#secretI", "x?secretJ", "/secretK", "a@b/secretL", "1/secretM@n"]
SCHEMES = ["postgresql", "mysql", "mongodb", "redis", "mqtt", "s3", "amqp"]


@pytest.mark.parametrize("password", PASSWORDS)
def test_c8_what_is_written_raw_is_read_as_it_is_meant(password):
    for scheme in SCHEMES:
        uri = addresses.normal(f"{scheme}://me:{password}@host:1/db?x=1")
        parts = urlsplit(uri)
        assert (parts.hostname, parts.port, parts.username) == ("host", 1, "me")
        wanted = unquote(password) if "%4" in password else password
        assert unquote(parts.password) == wanted
        assert addresses.normal(uri) == uri
    assert sa.engine.make_url(addresses.normal(f"mysql://me:{password}@host/db")).host == "host"
    link = Link.of(f"mqtt://me:{password}@host")
    assert (link.host, link.password) == ("host", wanted)


@pytest.mark.parametrize(
    "uri", ["postgresql://host/db", "sqlite:////a@b/jobs.db", "redis://h:1/0?x=a@b", "mqtt://h", ""]
)
def test_c8_what_has_no_login_stays(uri):
    assert addresses.normal(uri) == uri


@pytest.mark.parametrize("password", [*PASSWORDS, *UNCLEAR])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_c8_no_part_of_a_password_is_shown(scheme, password):
    uri = f"{scheme}://me:{password}@host:1/db?password=secretZ#secretY"
    assert addresses.place(uri) == f"{scheme}://host:1/db"
    texts = [
        addresses.hidden(f"cannot reach {uri} at all"),
        addresses.scrubbed(f"no host {password.rpartition('@')[2]}@host, password {password}", uri),
        str(InputError(f"not {uri!r}")),
        str(pickle.loads(pickle.dumps(InputError(uri)))),
        str(NodeError("flow", "a", ValueError(uri), {}, f"x = {uri!r}")),
        describe(ValueError(uri)),
        *map(
            repr,
            (
                DataStore(uri=uri),
                EventBroker(uri=uri, password=password),
                MqttBroker(uri=uri, password=password),
            ),
        ),
        repr(AgentSettings(broker=uri, password=password, triggers_broker=uri)),
        repr(TrackerFile(api_key="secretX", api_url=uri)),
        AgentSettings(broker=uri).place,
    ]
    for text in texts:
        assert "secret" not in text, text


@pytest.mark.parametrize("password", UNCLEAR)
def test_c8_what_cannot_be_read_is_an_error_that_says_how_to_write_it(password):
    uri = f"postgresql://me:{password}@host/db"
    for call in (
        lambda: stores.backend(DataStore(type="postgres", uri=uri)),
        lambda: events.address(EventBroker(type="postgres", uri=uri), None, "postgresql"),
    ):
        with pytest.raises(ConfigError, match="%2F") as caught:
            call()
        assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="%2F"):
        Link.of(uri.replace("postgresql", "mqtt"))


def test_paths_of_files_are_shown_whole():
    uri = "sqlite:////home/a@b/jobs.db"
    assert addresses.place(uri) == uri
    assert addresses.hidden(f"no {uri}") == f"no {uri}"
    assert stores.backend(DataStore(uri=uri)) == ("sqlite", uri)


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
@pytest.mark.parametrize("password", PASSWORDS)
async def test_c8_an_unreachable_store_shows_where_and_not_the_login(tmp_path, kind, password):
    scheme = {"postgres": "postgresql", "mysql": "mysql"}[kind]
    settings = DataStore(type=kind, uri=f"{scheme}://me:{password}@127.0.0.1:1/db")
    store = stores.connect(settings, tmp_path)
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:1/db") as caught:
        await store.open()
    await store.close()
    assert "secret" not in str(caught.value)
    _, uri = stores.backend(settings)
    assert sql_addresses.address(kind, uri).host == "127.0.0.1"


@pytest.mark.parametrize("command", [["check"], ["jobs"], ["start-worker"], ["store", "status"]])
@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:x@y/secretA@127.0.0.1:1/db",
        "postgresql:me:secretB@h",
        "postgresql://me:secret@C@127.0.0.1:nn/db",
    ],
)
def test_c8_no_command_shows_a_login(make_project, command, text):
    project = make_project(flow="def a() -> int:\n    return 1\n")
    (project.root / "conf").mkdir(exist_ok=True)
    for entry in (
        f"data_store: {{type: postgres, uri: '{text}'}}",
        f"data_store: '{text}'",
        f"event_broker: '{text}'",
    ):
        (project.root / "conf/scheduler.yml").write_text(entry + "\n")
        done = subprocess.run(
            [sys.executable, "-m", "fp_async", *command],
            cwd=project.root,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "secret" not in done.stdout + done.stderr, done.stdout + done.stderr
