"""`run-job`, `add-job`, `result`, `cancel`, `retry`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fp_async.cli import base_dir, completing
from fp_async.cli.loop import run_until_signalled
from fp_async.cli.ordering import job_options, taken
from fp_async.cli.running import Seconds, ask, quiet_option, result_options, run_options
from fp_async.cli.saying import echo, style
from fp_async.errors import FlowerPowerError, JobError, StoreError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from fp_async.client import JobClient
    from fp_async.project import Project

T = TypeVar("T")


@click.command("run-job")
@click.argument("name", shell_complete=completing.pipelines)
@run_options
@job_options()
@quiet_option
@result_options
def run_job(name: str, output: str, *, quiet: bool, with_traceback: bool, **options: Any) -> None:
    """Add a job that runs pipeline NAME, wait for it, and print its result.

    \b
      flowerpower run-job my_flow
      flowerpower run-job my_flow --inputs count=3 --queue big --timeout 600

    A worker runs it: `flowerpower start-worker`. With the data store `memory` that worker is in
    this process. Ctrl-C ends the waiting, not the job.
    """  # noqa: D301
    from fp_async.cli.output import check_output, show_result

    check_output(output)
    order = taken(options)
    run_until_signalled(
        _run_job(name, order, output, quiet=quiet, with_traceback=with_traceback, **options),
        finish=lambda result: show_result(result, output),
    )


async def _run_job(
    name: str,
    order: dict[str, Any],
    output: str,
    *,
    quiet: bool,
    with_traceback: bool,
    base_dir: str | None,
    **given: Any,
) -> Any:
    from fp_async.backend import connected
    from fp_async.cli.live import Progress
    from fp_async.cli.output import check_results
    from fp_async.client import JobClient, is_group
    from fp_async.project import Project

    project = Project(base_dir)
    asked = ask(project, name, on=order.get("on"), **given)
    check_results(output, asked.kinds)
    async with project, connected(project.root) as backend:
        client = JobClient.of(project.flows)
        if is_group(order.get("on")):
            return await _run_group(client, name, {**asked.options, **order}, output, quiet=quiet)
        id = await client.add(name, {**asked.options, **order})
        if not quiet:
            echo(f"job {id}", err=True)
        title = f"{name} [{given['environment']}]"
        try:
            watched = Progress(title, asked.nodes, goes_on=backend.store.shared)
            with nullcontext() if quiet else watched as progress:
                result = client.attend(id, progress)
                return await explained(client, result, shown=with_traceback)
        except (asyncio.CancelledError, StoreError):
            if backend.store.shared:
                echo(f"the job goes on; for its result: flowerpower result {id}", err=True)
            raise
        finally:
            if order.get("on") is not None:  # only agents warn
                with suppress(StoreError, UnknownNameError):
                    _warn((await client.get(id)).trace.warnings)


def _warn(warnings: list[str], agent: str = "") -> None:
    """Print what an agent warns of: it is no part of the result."""
    for text in warnings:
        where = f"{agent}: " if agent else ""
        echo(f"{style('warning:', fg='yellow', bold=True)} {where}{text}", err=True)


async def _run_group(
    client: JobClient, name: str, options: dict[str, Any], output: str, *, quiet: bool
) -> dict[str, Any]:
    """The results by agent, told as they arrive, as are errors; once all have ended, an error of
    the first one's kind says from whom there is no result.
    """
    from fp_async.cli.output import show_result

    results = await client.run(name, None, options)
    if not quiet:
        echo(f"group {results.id}: {len(results.agents)} agents", err=True)
    ended: dict[str, Any] = {}
    async for agent, value in results:
        ended[agent] = value
        _warn(results.warnings[agent], agent)
        if isinstance(value, JobError):
            echo(f"{agent}: {style(str(value), fg='red')}", err=True)
        elif not quiet:
            echo(f"{agent}: done, {len(ended)} of {len(results.agents)}", err=True)
    done = {agent: value for agent, value in ended.items() if not isinstance(value, JobError)}
    errors = {agent: value for agent, value in ended.items() if isinstance(value, JobError)}
    for first in errors.values():
        show_result(done, output)
        text = f"no result from {', '.join(errors)} ({len(errors)} of {len(ended)} agents)"
        raise type(first)(results.id, first.outcome, text, kind=first.kind)
    return done


async def explained(client: JobClient, result: Awaitable[T], *, shown: bool) -> T:
    """Await the result of a job; show the stored traceback, if wanted, where it failed."""
    try:
        return await result
    except JobError as error:
        failure = (await client.get(error.job_id)).failure if shown else None
        if failure is not None and failure.traceback:
            echo(failure.traceback, err=True)
        raise


@click.command("add-job")
@click.argument("name", shell_complete=completing.pipelines)
@run_options
@job_options()
def add_job(name: str, base_dir: str | None, **options: Any) -> None:
    """Add a job that runs pipeline NAME, and print its id.

    \b
      flowerpower add-job my_flow
      flowerpower add-job my_flow --inputs count=3 --run-at 2027-01-31T08:00:00
      flowerpower result "$(flowerpower add-job my_flow)" --wait 60

    It is on disk when the id is printed. A wrong input is refused at once, and nothing is added.
    """  # noqa: D301

    async def main(project: Project, client: JobClient) -> str:
        order = taken(options)
        asked = ask(project, name, on=order.get("on"), **options)
        return await client.add(name, {**asked.options, **order})

    with_client(base_dir, main, echo)


@click.command()
@click.argument("id", shell_complete=completing.jobs)
@click.option(
    "--wait", type=Seconds(or_none=True), metavar="SECONDS", help="Wait so long for its outcome."
)
@click.option("--final-vars", multiple=True, metavar="A,B", help="Which values of it.")
@result_options
@base_dir
def result(
    id: str,
    wait: float | None,
    final_vars: tuple[str, ...],
    output: str,
    base_dir: str | None,
    *,
    with_traceback: bool,
) -> None:
    """Print the result of the job ID.

    Exits with 75 while it has not finished, with 1 (124 for a timeout) if it did not succeed,
    with 74 if its result could not be sent.
    """
    from fp_async.cli.output import check_output, chosen, show_result

    check_output(output)

    async def main(project: Project, client: JobClient) -> Any:  # noqa: ARG001
        found = await explained(client, client.result(id, wait), shown=with_traceback)
        job = await client.get(id)
        if job.agent is not None:
            _warn(job.trace.warnings)
        return found

    with_client(base_dir, main, lambda value: show_result(chosen(value, final_vars), output))


@click.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=completing.jobs)
@click.option("--reason", help="Is kept with the job.")
@base_dir
def cancel(ids: tuple[str, ...], reason: str | None, base_dir: str | None) -> None:
    """End the jobs ID...: at once if they wait, by their workers if they run.

    The first outcome that is stored wins, success included.
    """

    async def one(client: JobClient, id: str) -> str:
        job = await client.cancel(id, reason)
        if not job.finished:
            return f"job {job.id} is {job.state}; it was asked to end"
        return f"job {job.id}: {job.state}"

    _for_each(base_dir, ids, one)


@click.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=completing.jobs)
@base_dir
def retry(ids: tuple[str, ...], base_dir: str | None) -> None:
    """Add a job like each of the jobs ID..., which have ended, and print the new ones' ids."""

    async def one(client: JobClient, id: str) -> str:
        return await client.retry(id)

    _for_each(base_dir, ids, one)


def _for_each(
    base_dir: str | None,
    ids: tuple[str, ...],
    work: Callable[[JobClient, str], Coroutine[Any, Any, str]],
) -> None:
    """Do the work for each id, and print what it gives; what fails for one does not stop the
    others. The first error is raised in the end.
    """
    from fp_async.backend import connected

    async def main(project: Project, client: JobClient) -> list[str | FlowerPowerError]:
        told: list[str | FlowerPowerError] = []
        async with connected(project.root):
            for id in dict.fromkeys(ids):
                try:
                    text = await _unless_group(project, work(client, id))
                    told.append(text)
                except StoreError:
                    raise
                except FlowerPowerError as error:
                    told.append(error)
        return told

    def show(told: list[str | FlowerPowerError]) -> None:
        errors = [each for each in told if isinstance(each, FlowerPowerError)]
        for each in told:
            if each not in errors[:1]:
                echo(each, err=each in errors)
        for error in errors:
            raise error

    with_client(base_dir, main, show)


def with_client(
    base_dir: str | None,
    main: Callable[[Project, JobClient], Coroutine[Any, Any, T]],
    finish: Callable[[T], None],
) -> None:
    """Await `main` with the project and its client, then `finish` its value.

    Nothing is held open meanwhile, so that a job for a store in memory is refused.
    """
    from fp_async.client import JobClient
    from fp_async.project import Project

    project = Project(base_dir)
    run_until_signalled(_unless_group(project, main(project, JobClient.of(project.flows))), finish)


async def _unless_group(project: Project, work: Coroutine[Any, Any, T]) -> T:
    """Await it; say of an id that no job has, but a group, that it is one."""
    try:
        return await work
    except UnknownNameError as error:
        if error.kind == "job" and await project.list_jobs(group_id=error.name, limit=1):
            raise UsageError(
                f"{error.name} is a group of jobs, one for each agent: "
                f"flowerpower jobs --group {error.name}"
            ) from error
        raise
