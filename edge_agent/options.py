"""Every key of agent.yml as a flag, for each command that needs to know the agent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edge_agent.config import AgentSettings, flag, read, strange
from fp_async.cli.saying import echo

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
    "version": "Of MQTT at the broker: 5, or 311 for 3.1.1. Default: it is found out.",
    "slots": "Jobs at once. Default: 1.",
    "window": "Jobs that it takes from the gateway at once. Default: max(2 x slots, 16).",
    "keepalive": "Seconds. Default: 30.",
    "heartbeat": "Seconds between two signs of life. Default: 30.",
    "grace": "Seconds that running jobs get to end when the agent is stopped. Default: 30.",
    "idle_timeout": "Seconds until a process without a job is ended. Default: 60.",
    "memory_limit": "MiB for each job's process. Default: no limit.",
    "max_jobs_per_child": "Jobs after which a process gives way to a fresh one. Default: no limit.",
    "outbox": "MiB of results that may wait for the network. Default: 64.",
    "disk_floor": "MiB that have to stay free on the disk. Default: 200.",
    "log_level": "debug, info, warning or error. Default: info.",
    "log_format": "text or json. Default: text.",
    "metrics_port": "Serve metrics to Prometheus there. Default: do not.",
    "metrics_host": "Its address. Default: 127.0.0.1.",
    "triggers_broker": "Broker for local triggers, if not the same.",
    "triggers_version": "Of MQTT at triggers_broker.",
    "pipelines": "Those that may be run from afar. Default: all that are here.",
    "executors": "Those that a job from afar may name. Default: all but ray and dask.",
    "executor_options": "What it may say of one; address and options let it load any code.",
}


_SHAPES = {
    "URI": ("broker", "triggers_broker"),
    "NAME": ("name", "username", "site"),
    "PASSWORD": ("password",),
    "FILE": ("ca_file", "cert_file", "key_file", "store"),
    "TOPIC": ("prefix",),
    "DIR": ("project",),
    "K=V": ("tags",),
    "N": ("slots", "window", "max_jobs_per_child"),
    "SECONDS": ("keepalive", "heartbeat", "grace", "idle_timeout"),
    "MIB": ("memory_limit", "outbox", "disk_floor"),
    "LEVEL": ("log_level",),
    "text|json": ("log_format",),
    "5|311": ("version", "triggers_version"),
    "PORT": ("metrics_port",),
    "HOST": ("metrics_host",),
    "A,B": ("pipelines", "executors", "executor_options"),
}
_SHAPE = {name: shape for shape, names in _SHAPES.items() for name in names}


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--config, and every key of agent.yml as a flag; help shows them for `run` alone."""
    hidden = command.__name__ != "run"
    for name in reversed(HELP):
        options: dict[str, Any] = {"multiple": True} if name == "tags" else {}
        options |= {"help": HELP[name], "metavar": _SHAPE.get(name), "hidden": hidden}
        command = click.option(flag(name), name, **options)(command)
    kind = click.Path(dir_okay=False, path_type=Path)
    about = "agent.yml; that of this folder is read without being named."
    about += " Its keys are flags, too: fp-agent run --help." if hidden else ""
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
        echo(f"warning: {text}", err=True)
    return read(file_of(config_file), given(flags))
