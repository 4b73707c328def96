"""`run`."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fp_async.cli import base_dir
from fp_async.cli.loop import run_until_signalled
from fp_async.config import DEFAULT_ENVIRONMENT, FOREVER
from fp_async.errors import FlowerPowerError, NodeError, UsageError
from fp_async.typed import coerce, parse_assignments

if TYPE_CHECKING:
    from fp_async.project import Project


class Seconds(click.FloatRange):
    """A time that is a number, and more than nothing, or no less with `or_none`."""

    def __init__(self, *, or_none: bool = False) -> None:
        super().__init__(0, min_open=not or_none)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not seconds < FOREVER:  # nor is nan
            self.fail(f"{value} is not a number of seconds.", param, ctx)
        return seconds


def run_options(function: Callable[..., Any]) -> Any:
    """The options of every command that runs a pipeline."""
    options = (
        click.option(
            "--inputs",
            multiple=True,
            metavar="K=V,K=V",
            help="Inputs, typed by the functions' annotations; or a JSON object, or @file.json.",
        ),
        click.option("--final-vars", multiple=True, metavar="A,B", help="What to compute."),
        click.option("--config", "config_", multiple=True, metavar="K=V", help="For @config.when."),
        click.option(
            "--param", multiple=True, metavar="F.P=V", help="Parameter P of function F; repeat."
        ),
        click.option(
            "--environment",
            "--enviroment",
            "-e",
            default=DEFAULT_ENVIRONMENT,
            show_default=True,
            help="Which settings of conf/pipelines.yml to use.",
        ),
        click.option(
            "--executor",
            metavar="NAME[:ADDRESS]",
            help="threadpool (default), local, processpool, hamilton, ray, dask.",
        ),
        click.option(
            "--executor-option",
            multiple=True,
            metavar="K=V",
            help="max_workers, address, resources.NAME, retries, options.NAME; repeat.",
        ),
        click.option(
            "--with-tracker/--no-tracker", default=None, help="Report to the Hamilton UI."
        ),
        click.option("--timeout", type=Seconds(), metavar="SECONDS"),
    )
    decorated: Any = base_dir(function)
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def result_options(function: Callable[..., Any]) -> Any:
    """How a command that has a result shows it, and what went wrong."""
    options = (
        click.option(
            "--output",
            default="table",
            metavar="table|json|FILE",
            help="How to show the result; FILE.csv, FILE.parquet or FILE.json to write it.",
        ),
        click.option("--traceback", "with_traceback", is_flag=True, help="Your code's traceback."),
    )
    for option in reversed(options):
        function = option(function)
    return function


quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")


@click.command()
@click.argument("name")
@run_options
@quiet_option
@result_options
def run(name: str, output: str, *, quiet: bool, with_traceback: bool, **options: Any) -> None:
    """Run pipeline NAME in this process and print its final variables.

    \b
      flowerpower run my_flow
      flowerpower run my_flow --inputs count=3 --final-vars scaled,total
      flowerpower run my_flow --inputs '{"count": 3}' --environment prod
      flowerpower run my_flow --inputs @inputs.json --param scaled.factor=5
      flowerpower run my_flow --final-vars table --output table.csv

    The result goes to stdout, progress to stderr. What nodes print is printed, with
    --output json to stderr.
    """  # noqa: D301
    from fp_async.cli.output import check_output, show_result
    from fp_async.cli.tracking import show_tracked

    check_output(output)

    def finish(result: Any) -> None:
        show_result(result, output)
        show_tracked(quiet=quiet)

    try:
        run_until_signalled(_run(name, output=output, quiet=quiet, **options), finish)
    except FlowerPowerError as error:
        show_tracked(quiet=quiet)
        if not isinstance(error, NodeError):
            raise
        if with_traceback and error.__cause__ is not None:
            click.echo("".join(traceback.format_exception(error.__cause__)), err=True)
        raise


async def _run(name: str, *, output: str, quiet: bool, base_dir: str | None, **given: Any) -> Any:
    from fp_async import tracing
    from fp_async.cli.live import Progress
    from fp_async.cli.output import check_count, prints_aside
    from fp_async.project import Project

    traced = tracing.set_up("flowerpower")
    async with Project(base_dir) as project:
        asked = ask(project, name, **given)
        check_count(output, asked.final_vars)
        title = f"{name} [{given['environment']}]"
        try:
            with (
                nullcontext() if quiet else Progress(title, asked.nodes) as progress,
                prints_aside() if output == "json" else nullcontext(),
            ):
                return await project.run(name, progress=progress, **asked.options)
        finally:
            if traced:
                await asyncio.to_thread(tracing.flush)


class Asked(NamedTuple):
    """What the options ask for: those of `Project.run`, and the nodes that it would compute."""

    options: dict[str, Any]
    nodes: list[str]
    final_vars: list[str]


def ask(
    project: Project,
    name: str,
    *,
    inputs: tuple[str, ...],
    final_vars: tuple[str, ...],
    config_: tuple[str, ...],
    param: tuple[str, ...],
    environment: str,
    executor: str | None,
    executor_option: tuple[str, ...],
    with_tracker: bool | None,
    timeout: float | None,
) -> Asked:
    """The options of `run_options`, with the types of the pipeline's annotations.

    Raises before anything has started, or was stored, what a run would raise.
    """
    from fp_async import tracked_places

    use_packages(project)
    params = _params(param, project.parameters(name, environment))
    config = {key: coerce(value, Any) for key, value in assigned(config_, "--config").items()}
    given = assigned(inputs, "--inputs")
    flow = project.flow(name, environment=environment, config=config, params=params)
    wanted: dict[str, Any] = {
        "inputs": flow.coerced(given),
        "final_vars": [v.strip() for text in final_vars for v in text.split(",") if v.strip()],
        "executor": _executor(executor, executor_option, flow.settings.executor),
        "timeout": timeout,
    }
    nodes, finals = project.planned(flow, **wanted)
    if flow.settings.with_tracker if with_tracker is None else with_tracker:
        tracked_places.place(project.root, name)  # before anything is shown
    settings = {"environment": environment, "config": config, "params": params}
    return Asked({**wanted, **settings, "with_tracker": with_tracker}, nodes, finals)


def _executor(name: str | None, texts: tuple[str, ...], configured: Any) -> Any:
    """The executor by name, or in full where there are options, laid over the configured ones."""
    if not texts:
        return name
    import msgspec

    from fp_async import documents, executors
    from fp_async.config import ExecutorSettings

    values: dict[str, Any] = msgspec.to_builtins(executors.described(name, configured))
    for path, value in assigned(texts, "--executor-option").items():
        option, dot, key = path.partition(".")
        typed = coerce(value, Any)
        values[option] = {**(values.get(option) or {}), key: typed} if dot else typed
    try:
        return msgspec.convert(values, ExecutorSettings)
    except msgspec.ValidationError as error:
        text = documents.explained(error, values, ExecutorSettings)
        raise UsageError(f"--executor-option {text}") from error


def use_packages(project: Project) -> None:
    """Let pipelines import the project's own packages, as under `python -m`."""
    if str(project.root) not in sys.path:
        sys.path.insert(0, str(project.root))


def assigned(texts: tuple[str, ...], option: str) -> dict[str, Any]:
    """All values of a repeatable `k=v` option; later ones win."""
    result: dict[str, Any] = {}
    for text in texts:
        result.update(parse_assignments(text, option))
    return result


def _params(texts: tuple[str, ...], known: Any) -> dict[str, dict[str, Any]]:
    """`f.p=v` as nested mappings, each value of the type that the configuration has for it."""
    result: dict[str, dict[str, Any]] = {}
    for path, value in assigned(texts, "--param").items():
        function, dot, argument = path.partition(".")
        if not dot or not argument:
            raise UsageError(f"--param {path}: write FUNCTION.PARAMETER=value")
        present = (known.get(function) or {}).get(argument)
        kind = Any if present is None or isinstance(value, dict) else type(present)
        result.setdefault(function, {})[argument] = coerce(value, kind)
    return result
