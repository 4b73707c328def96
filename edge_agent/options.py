"""Every key of agent.yml as a flag, for each command that needs to know the agent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edge_agent.config import AgentSettings, flag, read, strange

HELP = {
    "broker": "mqtt://host:1883, mqtts://host, ws://, wss://.",
    "name": "Of this agent, unique in its site. Default: the host's name.",
    "username": "At the broker. Default with a password: the agent's name.",
    "password": "At the broker; better in FP_AGENT_PASSWORD.",
    "ca_file": "PEM of the authority that the broker's certificate is from.",
    "cert_file": "PEM of this agent's certificate.",
    "key_file": "PEM of this agent's key.",
    "prefix": "Topics begin with it. Default: fp/v1.",
    "site": "Which fleet it belongs to. Default: main.",
    "project": "Folder with pipelines/ and conf/. Default: that of agent.yml, or this one.",
    "store": "File for jobs and results. Default: fp-agent.db in the project.",
    "tags": "name=value; may be given several times.",
    "slots": "Jobs at once. Default: 1.",
    "window": "Jobs that it takes from the gateway at once. Default: max(2 x slots, 16).",
    "keepalive": "Seconds. Default: 30.",
    "heartbeat": "Seconds between two signs of life. Default: 30.",
    "grace": "Seconds that running jobs get to end when the agent is stopped. Default: 30.",
    "idle_timeout": "Seconds until a process without a job is ended. Default: 60.",
    "memory_limit": "MiB for each job's process. Default: no limit.",
    "outbox": "MiB of results that may wait for the network. Default: 64.",
    "disk_floor": "MiB that have to stay free on the disk. Default: 200.",
    "log_level": "debug, info, warning or error. Default: info.",
    "log_format": "text or json. Default: text.",
    "metrics_port": "Serve metrics to Prometheus there. Default: do not.",
    "metrics_host": "Its address. Default: 127.0.0.1.",
    "triggers_broker": "Broker for local triggers, if not the same.",
}


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--config, and every key of agent.yml as a flag."""
    for name in reversed(HELP):
        options: dict[str, Any] = {"multiple": True} if name == "tags" else {}
        command = click.option(flag(name), name, help=HELP[name], **options)(command)
    kind = click.Path(dir_okay=False, path_type=Path)
    about = "agent.yml; that of this folder is read without being named."
    return click.option("--config", "config_file", type=kind, help=about)(command)


def file_of(config_file: Path | None) -> Path | None:
    """The settings file: agent.yml of this folder without --config."""
    here = Path("agent.yml")
    return here if config_file is None and here.is_file() else config_file


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in flags.items() if value not in (None, ())}


def settings_of(config_file: Path | None, flags: dict[str, Any]) -> AgentSettings:
    """Flags over FP_AGENT_* over the file. Variables that are none of ours are told about."""
    for text in strange(os.environ):
        click.echo(f"warning: {text}", err=True)
    return read(file_of(config_file), given(flags))
