"""`run-job`, `add-job`, `result`, `cancel`, `retry`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fp_async.cli import base_dir
from fp_async.cli.loop import run_until_signalled
from fp_async.cli.ordering import job_options, taken
from fp_async.cli.running import Seconds, ask, quiet_option, result_options, run_options
from fp_async.errors import JobError, StoreError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from fp_async.client import Client
    from fp_async.project import Project

T = TypeVar("T")


@click.command("run-job")
@click.argument("name")
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
    from fp_async.cli.output import check_count
    from fp_async.client import Client, is_group
    from fp_async.project import Project

    project = Project(base_dir)
    asked = ask(project, name, **given)
    check_count(output, asked.final_vars)
    async with project, connected(project.root) as backend:
        client = Client(project.flows)
        if is_group(order.get("on")):
            return await _run_group(client, name, {**asked.options, **order}, output, quiet=quiet)
        id = await client.add(name, {**asked.options, **order})
        if not quiet:
            click.echo(f"job {id}", err=True)
        title = f"{name} [{given['environment']}]"
        try:
            with nullcontext() if quiet else Progress(title, asked.nodes) as progress:
                return await explained(client, client.attend(id, progress), shown=with_traceback)
        except (asyncio.CancelledError, StoreError):
            if backend.store.shared:
                click.echo(f"the job goes on; for its result: flowerpower result {id}", err=True)
            raise


async def _run_group(
    client: Client, name: str, options: dict[str, Any], output: str, *, quiet: bool
) -> dict[str, Any]:
    """The results by agent, told as they arrive; the first error once all have ended."""
    from fp_async.cli.output import show_result

    results = await client.run(name, None, options)
    if not quiet:
        click.echo(f"group {results.id}: {len(results.agents)} agents", err=True)
    ended: dict[str, Any] = {}
    async for agent, value in results:
        ended[agent] = value
        if isinstance(value, JobError):
            click.echo(f"{agent}: {click.style(str(value), fg='red')}", err=True)
        elif not quiet:
            click.echo(f"{agent}: done, {len(ended)} of {len(results.agents)}", err=True)
    done = {agent: value for agent, value in ended.items() if not isinstance(value, JobError)}
    for error in ended.values():
        if isinstance(error, JobError):
            show_result(done, output)
            raise error
    return done


async def explained(client: Client, result: Awaitable[T], *, shown: bool) -> T:
    """Await the result of a job; show the stored traceback, if wanted, where it failed."""
    try:
        return await result
    except JobError as error:
        failure = (await client.get(error.job_id)).failure if shown else None
        if failure is not None and failure.traceback:
            click.echo(failure.traceback, err=True)
        raise


@click.command("add-job")
@click.argument("name")
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

    async def main(project: Project, client: Client) -> str:
        order = taken(options)
        return await client.add(name, {**ask(project, name, **options).options, **order})

    with_client(base_dir, main, click.echo)


@click.command()
@click.argument("id")
@click.option(
    "--wait", type=Seconds(or_none=True), metavar="SECONDS", help="Wait so long for its outcome."
)
@result_options
@base_dir
def result(
    id: str, wait: float | None, output: str, base_dir: str | None, *, with_traceback: bool
) -> None:
    """Print the result of the job ID.

    Exits with 75 while it has not finished, with 1 (124 for a timeout) if it did not succeed.
    """
    from fp_async.cli.output import check_output, show_result

    check_output(output)

    async def main(project: Project, client: Client) -> Any:  # noqa: ARG001
        return await explained(client, client.result(id, wait), shown=with_traceback)

    with_client(base_dir, main, lambda value: show_result(value, output))


@click.command()
@click.argument("id")
@click.option("--reason", help="Is kept with the job.")
@base_dir
def cancel(id: str, reason: str | None, base_dir: str | None) -> None:
    """End the job ID: at once if it waits, by its worker if it runs.

    The first outcome that is stored wins, success included.
    """

    async def main(project: Project, client: Client) -> str:  # noqa: ARG001
        job = await client.cancel(id, reason)
        if not job.finished:
            return f"job {id} is {job.state}; it was asked to end"
        return f"job {id}: {job.state}"

    with_client(base_dir, main, click.echo)


@click.command()
@click.argument("id")
@base_dir
def retry(id: str, base_dir: str | None) -> None:
    """Add a job like the job ID, which has ended, and print the new one's id."""

    async def main(project: Project, client: Client) -> str:  # noqa: ARG001
        return await client.retry(id)

    with_client(base_dir, main, click.echo)


def with_client(
    base_dir: str | None,
    main: Callable[[Project, Client], Coroutine[Any, Any, T]],
    finish: Callable[[T], None],
) -> None:
    """Await `main` with the project and its client, then `finish` its value.

    Nothing is held open meanwhile, so that a job for a store in memory is refused.
    """
    from fp_async.client import Client
    from fp_async.project import Project

    project = Project(base_dir)
    run_until_signalled(_unless_group(project, main(project, Client(project.flows))), finish)


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
