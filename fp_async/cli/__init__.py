"""The `flowerpower` command. Each command lives in a module that is imported when it is used."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import click

from fp_async import __version__
from fp_async.errors import FlowerPowerError

# section -> name -> (module, function, one line for --help): --help imports none of them
_SECTIONS = {
    "Projects and pipelines": {
        "init": ("folders", "init", "Create a project: conf/*.yml and pipelines/."),
        "new": ("folders", "new", "Add a pipeline that runs at once."),
        "add": ("folders", "new", "The same as `new`."),
        "delete": ("folders", "delete", "Remove a pipeline and its configuration."),
        "list": ("folders", "list_pipelines", "List the pipelines and their environments."),
        "show": ("showing", "show", "Print or draw a pipeline's DAG."),
        "check": ("checks", "check", "Validate configuration and pipelines, run nothing."),
        "run": ("running", "run", "Run a pipeline in this process."),
    },
    "Jobs": {
        "run-job": ("jobs", "run_job", "Run a pipeline on a worker and print its result."),
        "add-job": ("jobs", "add_job", "Hand in a job and print its id."),
        "result": ("jobs", "result", "Print the result of a job."),
        "jobs": ("following", "jobs", "List the newest jobs."),
        "job": ("following", "job", "Show all about a job, or follow it."),
        "cancel": ("jobs", "cancel", "End a job."),
        "retry": ("jobs", "retry", "Hand in a job that has ended once more."),
    },
    "Schedules": {
        "schedule": ("scheduling", "schedule", "Run a pipeline at set times."),
        "schedules": ("schedules", "schedules", "List, pause, resume or remove schedules."),
    },
    "Agents": {
        "agents": ("fleet", "agents", "List the agents."),
        "agent": ("fleet", "agent", "Show all about an agent."),
        "drain": ("fleet", "drain", "Offer an agent no more jobs, or again."),
        "letters": ("fleet", "letters", "List messages that made no job, and why."),
        "start-gateway": ("fleet", "start_gateway", "Move jobs and results to and from agents."),
        "up": ("demo", "up", "Broker, gateway, worker and agents for this project, here."),
        "demo": ("demo", "demo", "Show a fleet at work on this machine, in half a minute."),
        "broker": ("brokers", "broker", "Run an MQTT broker, for development."),
        "broker-config": (
            "brokers",
            "broker_config",
            "Write a broker's users and rights.",
        ),
    },
    "Tracking": {
        "hamilton-ui": ("tracking", "hamilton_ui", "Serve the Hamilton UI on this machine."),
        "tracker": ("tracking", "tracker", "Make a pipeline's project in the Hamilton UI."),
    },
    "Services": {
        "start-worker": ("daemons", "start_worker", "Work on jobs and fire schedules."),
        "start-scheduler": ("daemons", "start_scheduler", "Fire schedules only."),
        "top": ("top", "top", "Watch queues, workers and running jobs."),
        "store": ("store", "store", "Look at the data store, or clean it up."),
    },
}
_COMMANDS = {name: entry for section in _SECTIONS.values() for name, entry in section.items()}


class Commands(click.Group):
    """Loads a command when it is called, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, function, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"fp_async.cli.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        width = max(map(len, _COMMANDS))
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                rows = [(name.ljust(width), text) for name, (_, _, text) in commands.items()]
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from fp_async.errors import suggestion

        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no such command '{args[0]}'{suggestion(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)


_ERROR = click.style("error:", fg="red", bold=True)
_STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}

_EPILOG = """\b
A first project:
  flowerpower init my-project && cd my-project
  flowerpower new my_flow
  flowerpower run my_flow
  flowerpower run my_flow --inputs count=3 --final-vars scaled,total --output json

\b
On workers, and at set times:
  flowerpower start-worker
  flowerpower run-job my_flow
  flowerpower schedule my_flow --type interval --interval-params seconds=30

\b
Exit codes: 0 done, 1 the pipeline or job failed, 2 wrong input or configuration,
3 data store or event broker, 75 not finished yet, 124 timed out, 130 interrupted,
143 terminated.

\b
Shell completion (bash; also zsh, fish):
  eval "$(_FLOWERPOWER_COMPLETE=bash_source flowerpower)"
"""


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name="flowerpower")
def cli() -> None:
    """FlowerPower: pipelines of plain Python functions.

    A pipeline is a file pipelines/NAME.py; every function in it is a node, its parameters are
    other nodes or inputs. `flowerpower COMMAND --help` explains each command.
    """


def main() -> NoReturn:
    """The console script: errors become one message on stderr and an exit code."""
    _settle_streams()
    try:
        code = cli.main(prog_name="flowerpower", standalone_mode=False)
    except FlowerPowerError as error:
        fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        _leave(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `| head` has had enough
        _leave(0)
    except OSError as error:  # stdout is full or gone
        fail(f"cannot write the output: {error.strerror or error}", 2)
    _leave(code if isinstance(code, int) else 0)  # click returns the code of an Exit


def fail(message: str, code: int) -> NoReturn:
    """Print the message and leave."""
    click.echo(f"{_ERROR} {message}", err=True)
    _leave(code)


def fail_at_once(message: str, code: int) -> NoReturn:
    """`fail` for a signal handler or another thread: takes no lock that the main thread may hold.

    A live view that nobody ends any more is left behind, and the cursor that it hid is shown.
    """
    terminal = os.isatty(2)
    start = f"\r\n\x1b[?25h{_ERROR}" if terminal else click.unstyle(_ERROR)
    with suppress(OSError):
        os.write(2, f"{start} {message}{chr(13) if terminal else ''}\n".encode())
    os._exit(code)


def _settle_streams() -> None:
    """Nothing that is printed can fail a command: not in a closed stream (`>&-`), which Python
    has as None, and not for a character that the terminal's encoding lacks.
    """
    for name, mode in _STREAMS.items():
        stream = getattr(sys, name)
        if stream is None:
            null = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(null, True)  # it has the closed one's number, in children too
            setattr(sys, name, os.fdopen(null, mode, encoding="utf-8"))
        elif stream.errors in ("strict", "backslashreplace") and stream.writable():
            stream.reconfigure(errors="replace")


def _leave(code: int) -> NoReturn:
    """Exit at once: an abandoned node in a thread must not hold the process up. What is tracked
    gets the time that it would have.
    """
    if (tracking := sys.modules.get("fp_async.tracker")) is not None:
        tracking.tracker().flush()
    if "fp_async.engines" in sys.modules:
        sys.modules["fp_async.engines"].shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def base_dir(function: Callable[..., Any]) -> Any:
    """`--base-dir`, which every command has."""
    return click.option(
        "--base-dir",
        metavar="DIR",
        default=None,
        help="The project's folder. Default: the working directory or the nearest above it.",
    )(function)
