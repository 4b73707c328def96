"""The `fp-agent` command. `run` becomes the daemon; the rest asks a running one, or its store."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from edge_agent.options import settings_of, settings_options
from fp_async import __version__
from fp_async.cli import debug_option
from fp_async.cli.saying import echo
from fp_async.errors import FlowerPowerError, UsageError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fp-agent", message="%(prog)s %(version)s")
@debug_option
def cli() -> None:
    """A worker on a small device: keeps its jobs and results in a file, hears and tells by MQTT."""


@cli.command()
@settings_options
@click.option("-v", "--verbose", is_flag=True, help="The same as --log-level debug.")
def run(config_file: Path | None, *, verbose: bool, **flags: Any) -> None:
    """Run the agent until a signal comes.

    \b
      fp-agent run --broker mqtt://broker:1883 --name pi-7 --tag site=berlin
      fp-agent run --config /etc/fp-agent/agent.yml

    Every flag is also a key of agent.yml and a variable: FP_AGENT_BROKER, FP_AGENT_NAME and so on.
    It works without a network and without a broker; what came of its jobs is told when there is
    one. SIGTERM or Ctrl-C: it takes no more jobs and ends when those that run have ended, at most
    `grace` seconds later; twice: at once. Unfinished jobs are begun again when it starts again.

    Exit code 0: stopped by a signal, 1: it has failed otherwise, 2: wrong settings, 3: the store
    cannot be used (its disk cannot be written, or is full), or another agent uses it, 70: a bug.
    """  # noqa: D301
    from edge_agent import starting
    from edge_agent.config import ADOPTS, VARIABLE, without_secrets
    from edge_agent.lean import ALLOCATION
    from fp_async.runtime import process_tree

    settings = settings_of(config_file, {**flags, **({"log_level": "debug"} if verbose else {})})
    if not (Path(settings.project) / "pipelines").is_dir():
        raise UsageError(f"{settings.project} is no project: it has no pipelines/")
    starting.set_up_log(settings)
    starting.warn(settings)
    environ = {**ALLOCATION, **without_secrets(os.environ)}
    environ[VARIABLE] = starting.handed_over(settings)
    if process_tree.become_subreaper():  # here: for that, the daemon would have to load ctypes
        environ[ADOPTS] = "1"
    command = [sys.executable, "-c", "from edge_agent.lean import main; main()"]
    os.execve(sys.executable, command, environ)  # noqa: S606 - this process becomes the daemon


def main() -> None:
    """The entry point."""
    from edge_agent import commands

    for command in commands.ALL:
        cli.add_command(command)
    try:
        cli()
    except FlowerPowerError as error:
        echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        from fp_async.cli import bugs

        echo(f"error: {bugs.message(error)}", err=True)
        sys.exit(bugs.EXIT_CODE)


if __name__ == "__main__":
    main()
