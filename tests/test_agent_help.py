"""What `fp-agent` says of itself, and of a broker that does not let it in; in this process."""

from __future__ import annotations

import socket
import ssl

import pytest
from click.testing import CliRunner

from edge_agent import broker_remedies, commands
from edge_agent.__main__ import run
from fp_async.errors import BrokerError, ConnectRefusedError


@pytest.mark.parametrize("command", commands.ALL, ids=lambda command: command.name)
def test_d13_only_run_lists_the_keys_of_agent_yml(command):
    help = CliRunner().invoke(command, ["--help"]).output
    assert "--keepalive" not in help
    assert " TEXT" not in help.replace("--user TEXT", "")
    assert len(help.splitlines()) < 35


def test_d13_run_says_of_what_shape_each_key_is():
    help = " ".join(CliRunner().invoke(run, ["--help"]).output.split())
    assert " TEXT" not in help
    for text in ("--broker URI", "--keepalive SECONDS", "--slots N", "--log-level LEVEL", "-v,"):
        assert text in help


def caused(error):
    told = BrokerError("MQTT broker at x: no")
    told.__cause__ = error
    return told


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (caused(ConnectionRefusedError(111, "refused")), "nothing listens there"),
        (caused(socket.gaierror(-2, "unknown")), "no name server"),
        (caused(TimeoutError("no answer")), "nothing answers"),
        (caused(OSError(113, "no route")), "no way there"),
        (caused(ssl.SSLCertVerificationError(1, "self-signed")), "`ca_file`"),
        (caused(ssl.SSLError(1, "wrong version number")), "mqtts:// does (8883)"),
        (caused(FileNotFoundError(2, "no such file")), "paths of ca_file"),
        (caused(None), "does not answer as an MQTT broker"),
        (ConnectRefusedError("no", 0x86), "the login"),
        (ConnectRefusedError("no", 4), "the login"),
        (ConnectRefusedError("no", 0x87), "was it revoked?"),
        (ConnectRefusedError("no", 0x85), "client id"),
        (ConnectRefusedError("no", 0x88), "at the moment"),
        (ConnectRefusedError("no", 0xFF), "the login"),
    ],
)
def test_d13_each_kind_of_broker_error_has_its_remedy(error, words):
    assert words in broker_remedies.remedy(error, "the login")
