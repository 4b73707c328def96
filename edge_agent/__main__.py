"""The `fp-agent` command. `run` becomes the daemon; the rest asks a running one, or its store."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp_async import __version__
from fp_async.errors import FlowerPowerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agent.config import AgentSettings

_HELP = {
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
    for name in reversed(_HELP):
        flags = ["--tag" if name == "tags" else f"--{name.replace('_', '-')}", name]
        options: dict[str, Any] = {"multiple": True} if name == "tags" else {}
        command = click.option(*flags, help=_HELP[name], **options)(command)
    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option("--config", "config_file", type=kind, help="agent.yml")(command)


def settings_of(config_file: Path | None, flags: dict[str, Any]) -> AgentSettings:
    """Flags over FP_AGENT_* over the file; agent.yml of this folder without --config."""
    from edge_agent.config import read

    if config_file is None and Path("agent.yml").is_file():
        config_file = Path("agent.yml")
    return read(config_file, {name: value or None for name, value in flags.items()})


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fp-agent", message="%(prog)s %(version)s")
def cli() -> None:
    """A worker on a small device: keeps its jobs and results in a file, hears and tells by MQTT."""


@cli.command()
@settings_options
def run(config_file: Path | None, **flags: Any) -> None:
    """Run the agent until a signal comes.

    \b
      fp-agent run --broker mqtt://broker:1883 --name pi-7 --tag site=berlin
      fp-agent run --config /etc/fp-agent/agent.yml

    Every flag is also a key of agent.yml and a variable: FP_AGENT_BROKER, FP_AGENT_NAME and so on.
    It works without a network and without a broker; what came of its jobs is told when there is
    one. SIGTERM or Ctrl-C: it takes no more jobs and ends when those that run have ended, at most
    `grace` seconds later; twice: at once. Unfinished jobs are begun again when it starts again.
    """  # noqa: D301
    import msgspec

    from edge_agent.daemon import VARIABLE

    settings = settings_of(config_file, flags)
    if not (Path(settings.project) / "pipelines").is_dir():
        raise click.UsageError(f"{settings.project} is no project: it has no pipelines/")
    environ = {**os.environ, VARIABLE: msgspec.json.encode(settings).decode()}
    command = [sys.executable, "-c", "from edge_agent.daemon import main; main()"]
    os.execve(sys.executable, command, environ)  # noqa: S606 - this process becomes the daemon


def main() -> None:
    """The entry point."""
    from edge_agent import commands

    for command in commands.ALL:
        cli.add_command(command)
    try:
        cli()
    except FlowerPowerError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
