"""Every key of agent.yml as a flag, for each command that needs to know the agent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edge_agent.config import AgentSettings, read

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
    "project": "Folder with pipelines/ and conf/. Default: this one.",
    "store": "File for jobs and results. Default: fp-agent.db in the project.",
    "tags": "name=value; may be given several times.",
    "slots": "Jobs at once.",
    "window": "Jobs that it takes from the gateway at once. Default: max(2 x slots, 16).",
    "keepalive": "Seconds.",
    "heartbeat": "Seconds between two signs of life.",
    "grace": "Seconds that running jobs get to end when the agent is stopped.",
    "idle_timeout": "Seconds until a process without a job is ended.",
    "memory_limit": "MiB for each job's process.",
    "outbox": "MiB of results that may wait for the network.",
    "disk_floor": "MiB that have to stay free on the disk.",
    "log_level": "debug, info, warning or error.",
    "triggers_broker": "Broker for local triggers, if not the same.",
}


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--config, and every key of agent.yml as a flag."""
    for name in reversed(HELP):
        flags = ["--tag" if name == "tags" else f"--{name.replace('_', '-')}", name]
        options: dict[str, Any] = {"multiple": True} if name == "tags" else {}
        command = click.option(*flags, help=HELP[name], **options)(command)
    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option("--config", "config_file", type=kind, help="agent.yml")(command)


def settings_of(config_file: Path | None, flags: dict[str, Any]) -> AgentSettings:
    """Flags over FP_AGENT_* over the file; agent.yml of this folder without --config."""
    if config_file is None and Path("agent.yml").is_file():
        config_file = Path("agent.yml")
    return read(config_file, {name: value or None for name, value in flags.items()})
