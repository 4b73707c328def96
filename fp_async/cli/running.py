"""`run`."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fp_async.cli import base_dir, completing, enter, of_shell
from fp_async.cli.levels import level, level_options
from fp_async.cli.loop import run_until_signalled
from fp_async.cli.saying import echo
from fp_async.config import DEFAULT_ENVIRONMENT, FOREVER
from fp_async.errors import FlowerPowerError, InputError, NodeError, UsageError
from fp_async.values.text import parse_assignments

if TYPE_CHECKING:
    from fp_async.flow import Flow
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


def _with_files(_: object, __: object, texts: tuple[str, ...]) -> tuple[str, ...]:
    """`@file` means the shell's folder; the command goes to the project's."""
    return tuple(f"@{of_shell(t[1:])}" if t[:1] == "@" and t != "@-" else t for t in texts)


def _with_file(_: object, __: object, output: str) -> str:
    return output if output in ("table", "json") else of_shell(output)


class _Misspelt(click.Option):
    """An option that is also known as --enviroment, as the user's document writes it."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Add both names; help and completion have the right one."""
        super().add_to_parser(parser, ctx)
        parser.add_option(obj=self, opts=["--enviroment"], dest=self.name, nargs=1)


environment_option = click.option(
    "--environment",
    "-e",
    cls=_Misspelt,
    shell_complete=completing.environments,
    default=DEFAULT_ENVIRONMENT,
    show_default=True,
    help="Which settings of conf/pipelines.yml to use.",
)


def run_options(function: Callable[..., Any]) -> Any:
    """The options of every command that runs a pipeline."""
    options = (
        click.option(
            "--inputs",
            multiple=True,
            metavar="K=V,K=V",
            callback=_with_files,
            shell_complete=completing.inputs,
            help="Inputs, typed by the functions' annotations; or a JSON object, or @file.json.",
        ),
        click.option(
            "--final-vars",
            multiple=True,
            metavar="A,B",
            shell_complete=completing.final_vars,
            help="What to compute.",
        ),
        click.option("--config", "config_", multiple=True, metavar="K=V", help="For @config.when."),
        click.option(
            "--param", multiple=True, metavar="F.P=V", help="Parameter P of function F; repeat."
        ),
        environment_option,
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
        click.option(
            "--no-cache",
            "cache",
            flag_value=False,
            default=None,
            help="Compute all values, and keep none.",
        ),
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
            callback=_with_file,
            help="How to show the result; FILE.csv, FILE.parquet or FILE.json to write it.",
        ),
        click.option("--traceback", "with_traceback", is_flag=True, help="Your code's traceback."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _leveled(function: Callable[..., Any]) -> Any:
    for option in reversed(level_options):
        function = option(function)
    return function


def _show_logs(name: str) -> None:
    """Show what pipelines log; of our own, warnings: the progress has the rest."""
    import logging

    from fp_async import log_levels

    log_levels.show(getattr(logging, name.upper()))
    if name != "debug":
        logging.getLogger("fp_async").setLevel(logging.WARNING)


quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")


@click.command()
@click.argument("name", shell_complete=completing.pipelines)
@run_options
@quiet_option
@_leveled
@result_options
def run(name: str, output: str, *, quiet: bool, with_traceback: bool, **options: Any) -> None:
    """Run pipeline NAME in this process and print its final variables.

    \b
      flowerpower run my_flow
      flowerpower run my_flow --inputs count=3 --final-vars scaled,total
      flowerpower run my_flow --inputs '{"count": 3}' --environment prod
      flowerpower run my_flow --inputs @inputs.json --param scaled.factor=5
      flowerpower run my_flow --final-vars table --output table.csv

    The result goes to stdout, progress to stderr, and so does what is logged: from INFO on, with
    --quiet warnings. What nodes print is printed, with --output json to stderr.
    """  # noqa: D301
    _show_logs(level(options, "warning" if quiet else "info"))
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
            echo("".join(traceback.format_exception(error.__cause__)), err=True)
        raise


async def _run(name: str, *, output: str, quiet: bool, base_dir: str | None, **given: Any) -> Any:
    from fp_async import tracing
    from fp_async.cli.live import Progress
    from fp_async.cli.output import check_results, prints_aside, streams_kept
    from fp_async.project import Project

    traced = tracing.set_up("flowerpower")
    async with Project(base_dir) as project:
        asked = ask(project, name, **given)
        check_results(output, asked.kinds)
        title = f"{name} [{given['environment']}]"
        try:
            with (
                nullcontext() if quiet else Progress(title, asked.nodes) as progress,
                streams_kept(),
                prints_aside() if output == "json" else nullcontext(),
            ):
                return await project.run(name, progress=progress, **asked.options)
        finally:
            if traced:
                await asyncio.to_thread(tracing.flush)


def _check_paths(values: Iterator[tuple[str, Any]], root: Path, shell: Path) -> None:
    """Refuse a relative path that means nothing in the project, but a file of the shell's folder.

    Raises InputError.
    """
    from fp_async.values import paths

    for name, value in values:
        for path in paths.relative(value):
            if (shell / path).exists() and not (root / path).exists():
                raise InputError(
                    f"{name}: a relative path means the project, where there is no {root / path}; "
                    f"for the one of this folder write its whole path: {shell / path}"
                )


def _as_nodes_get(
    flow: Flow, inputs: Mapping[str, Any], params: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """The inputs, parameters and configuration that were given, typed, and how they are called."""
    from fp_async.params import given

    yield from ((f"input '{name}'", value) for name, value in flow.converted(inputs).items())
    typed = given(flow.namespace.params)
    for function, values in params.items():
        for name in values:
            yield f"param {function}.{name}", typed.get(function, {}).get(name)
    yield from ((f"config '{name}'", value) for name, value in flow.graph.config.items())


class Asked(NamedTuple):
    """What the options ask for: those of `Project.run`, the nodes that it would compute, and the
    types of the final variables among them.
    """

    options: dict[str, Any]
    nodes: list[str]
    kinds: dict[str, Any]


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
    cache: bool | None,
    on: str | None = None,
) -> Asked:
    """The options of `run_options`, which fit the pipeline, on the agents of `on` or here.

    Raises before anything has started, or was stored, what a run would raise.
    """
    from fp_async import tracked_places

    shell = Path.cwd()
    enter(project)
    params = _params(param)
    config = assigned(config_, "--config")
    given = assigned(inputs, "--inputs")
    flow = project.flow(name, environment=environment, config=config, params=params)
    wanted: dict[str, Any] = {
        "inputs": given,
        "final_vars": [v.strip() for text in final_vars for v in text.split(",") if v.strip()],
        "executor": _executor(executor, executor_option, flow.settings.executor),
        "timeout": timeout,
        "cache": cache,
    }
    nodes, finals = project.planned(flow, **wanted)
    if on is None and shell != project.root:
        _check_paths(_as_nodes_get(flow, given, params), project.root, shell)
    if flow.settings.with_tracker if with_tracker is None else with_tracker:
        tracked_places.place(project.root, name)  # before anything is shown
    settings = {"environment": environment, "config": config, "params": params}
    kinds = {name: flow.graph.kind(name) for name in finals}
    options = {**wanted, **settings, "with_tracker": with_tracker}
    return Asked(options, nodes, kinds)


def _executor(name: str | None, texts: tuple[str, ...], configured: Any) -> Any:
    """The executor by name, or in full where there are options, laid over the configured ones."""
    if not texts:
        return name
    import msgspec

    from fp_async import executors
    from fp_async.config import ExecutorSettings
    from fp_async.values.coerce import converted
    from fp_async.values.misfit import MisfitError

    values: dict[str, Any] = msgspec.to_builtins(executors.described(name, configured))
    for path, value in assigned(texts, "--executor-option").items():
        option, dot, key = path.partition(".")
        values[option] = {**(values.get(option) or {}), key: value} if dot else value
    try:
        return converted(values, ExecutorSettings)
    except MisfitError as error:
        text = error.told("", brief=True).lstrip(".")
        raise UsageError(f"--executor-option: {text}") from error


def assigned(texts: tuple[str, ...], option: str) -> dict[str, Any]:
    """All values of a repeatable `k=v` option; later ones win."""
    result: dict[str, Any] = {}
    for text in texts:
        if not text.startswith("@"):
            _check_encoding(text, option)
        result.update(parse_assignments(text, option))
    return result


def _check_encoding(text: str, option: str) -> None:
    """Raises UsageError for bytes on the command line that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        given = os.fsencode(text)
        raise UsageError(f"{option}: {given!r} is no UTF-8, at byte {error.start}") from None


def _params(texts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """`f.p=v` as nested mappings; the function's annotation says what the text means."""
    result: dict[str, dict[str, Any]] = {}
    for path, value in assigned(texts, "--param").items():
        function, dot, argument = path.partition(".")
        if not dot or not argument:
            raise UsageError(f"--param {path}: write FUNCTION.PARAMETER=value")
        result.setdefault(function, {})[argument] = value
    return result
