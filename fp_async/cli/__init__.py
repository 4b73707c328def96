"""The `flowerpower` command. Each command lives in a module that is imported when it is used."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fp_async import __version__
from fp_async.cli.saying import echo, safe, style
from fp_async.errors import FlowerPowerError

if TYPE_CHECKING:
    from fp_async.project import Project

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
        "cancel": ("jobs", "cancel", "End jobs."),
        "retry": ("jobs", "retry", "Hand in jobs that have ended once more."),
    },
    "Schedules": {
        "schedule": ("scheduling", "schedule", "Run a pipeline at set times."),
        "schedules": ("schedules", "schedules", "List schedules; show, fire, pause, remove one."),
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
        "device-files": ("devices", "device_files", "Write what one device needs, and no more."),
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
_LISTS = ("jobs", "schedules", "agents", "letters")


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

        if ctx.resilient_parsing:
            return self._completed(ctx, args)
        if args[1:2] == ["list"] and args[0] in _LISTS:  # which they do anyway
            args = [args[0], *args[2:]]
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no such command '{args[0]}'{suggestion(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def _completed(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve what is being typed. An option whose value is to come goes: click's parser would
        give up at it, and know nothing of what stands before.
        """
        if not args or args[0] not in _COMMANDS:
            return None, None, args
        name, command, rest = super().resolve_command(ctx, args)
        return name, command, rest[:-1] if rest and rest[-1].startswith("-") else rest


_ERROR = style("error:", fg="red", bold=True)
_SIGNALLED = 128  # exit codes above are those of a process that a signal has ended
_STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}

_EPILOG = """\b
A first project:
  flowerpower init my-project && cd my-project
  flowerpower new my_flow
  flowerpower run my_flow
  flowerpower run my_flow --inputs count=3 --final-vars total --output json

\b
On workers, and at set times:
  flowerpower start-worker
  flowerpower run-job my_flow
  flowerpower schedule my_flow --type interval --interval-params seconds=30

\b
Exit codes: 0 done, 1 the pipeline or job failed, 2 wrong input or
configuration, 3 data store or event broker, 70 a bug of FlowerPower, 74 the
result was lost on its way, 75 not finished yet, 124 timed out, 130
interrupted, 143 terminated.

\b
Completion of commands, options and names; bash (zsh: zsh_source):
  eval "$(_FLOWERPOWER_COMPLETE=bash_source flowerpower)"
fish, in ~/.config/fish/completions/flowerpower.fish:
  _FLOWERPOWER_COMPLETE=fish_source flowerpower | source
"""


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001
    if value:
        os.environ["FLOWERPOWER_DEBUG"] = "1"


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_debug,
    help="Print the traceback of a bug of FlowerPower; also FLOWERPOWER_DEBUG=1.",
)


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name="flowerpower")
@debug_option
def cli() -> None:
    """FlowerPower: pipelines of plain Python functions.

    A pipeline is a file pipelines/NAME.py; every function in it is a node, its parameters are
    other nodes or inputs. `flowerpower COMMAND --help` explains each command.
    """


def main() -> NoReturn:
    """The console script: errors become one message on stderr and an exit code."""
    global _here
    _here = True
    _settle_streams()
    if "_FLOWERPOWER_COMPLETE" in os.environ:
        from fp_async.cli import shells

        shells.register()
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
        if error.filename is not None:
            fail(f"cannot use {error.filename}: {error.strerror or error}", 2)
        fail(f"cannot write the output: {error.strerror or error}", 2)
    except Exception as error:
        from fp_async.cli import bugs

        fail(bugs.message(error), bugs.EXIT_CODE)
    _leave(code if isinstance(code, int) else 0)  # click returns the code of an Exit


def fail(message: str, code: int) -> NoReturn:
    """Print the message and leave."""
    echo(f"{_ERROR} {message}", err=True)
    _leave(code)


def fail_at_once(message: str, code: int) -> NoReturn:
    """`fail` for a signal handler or another thread: takes no lock that the main thread may hold.

    A live view that nobody ends any more is left behind, and the cursor that it hid is shown.
    """
    terminal = os.isatty(2)
    text = safe(f"{_ERROR} {message}")
    start, end = ("\r\n\x1b[?25h", "\r") if terminal else ("", "")
    with suppress(OSError):
        os.write(2, f"{start}{text if terminal else click.unstyle(text)}{end}\n".encode())
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
    """End as Python ends a script: with the program's own threads and what it has registered with
    `atexit`. A signal ends the waiting: the threads are left behind then, as is an abandoned node.
    """
    from fp_async.runtime import process_exit

    _flush()  # what was printed is there before anything is waited for
    try:
        if code <= _SIGNALLED:
            process_exit.wait_for_threads(_tell_of_threads)
        if "fp_async.engines" in sys.modules:
            sys.modules["fp_async.engines"].shutdown()
        process_exit.call_exit_functions()
    except KeyboardInterrupt:
        fail_at_once("interrupted", 130)
    _flush()
    os._exit(code)


def _tell_of_threads(names: list[str]) -> None:
    text = f"waiting for {len(names)} thread(s) of the pipeline: {', '.join(names[:5])}"
    echo(f"{text}; Ctrl-C leaves them behind", err=True)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def of_shell(path: str) -> str:
    """A file as the shell means it, whatever folder the command goes to."""
    return os.path.join(os.getcwd(), os.path.expanduser(path))  # noqa: PTH109, PTH111, PTH118 - lean


def entered(base_dir: str | None, *, one_at_a_time: bool = True) -> Any:
    """The project, for a command that loads its code."""
    from fp_async.project import Project

    project = Project(base_dir)
    enter(project, one_at_a_time=one_at_a_time)
    return project


def enter(project: Project, *, one_at_a_time: bool = True) -> None:
    """Make this process one for the project alone: in its folder, so that relative paths mean the
    project. Its own packages can be imported, as under `python -m`.
    """
    if str(project.root) not in sys.path:
        sys.path.insert(0, str(project.root))
    project.flows.settle(one_at_a_time=one_at_a_time)


def base_dir(function: Callable[..., Any]) -> Any:
    """`--base-dir` and `--env-file`, which every command has."""
    env_file = click.option(
        "--env-file",
        metavar="FILE",
        multiple=True,
        expose_value=False,
        callback=_add_env_files,
        help="Variables over those of the project's .env, under the environment's; repeat.",
    )
    return click.option(
        "--base-dir",
        metavar="DIR",
        default=None,
        help="The project's folder. Default: the working directory or the nearest above it.",
    )(env_file(function))


_here = False  # whether this process is the command's own


def _add_env_files(_: object, __: object, paths: tuple[str, ...]) -> None:
    from fp_async import config_files

    if paths:
        config_files.add_env_files(paths)
    if _here:
        config_files.own_process(_raise)


def _raise(error: FlowerPowerError) -> None:
    raise error
