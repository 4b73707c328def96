"""`schedules`: the list, and what is done with one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fp_async.cli import base_dir
from fp_async.cli.following import output_option
from fp_async.cli.jobs import with_client

if TYPE_CHECKING:
    from fp_async.client import Client
    from fp_async.jobs import Schedule
    from fp_async.project import Project


@click.group(invoke_without_command=True)
@output_option
@base_dir
@click.pass_context
def schedules(ctx: click.Context, output: str, base_dir: str | None) -> None:
    """List the schedules; or pause, resume or remove one."""
    if ctx.invoked_subcommand is not None:
        ctx.obj = base_dir
        return
    from fp_async.cli.output import echo_json, echo_table
    from fp_async.cli.shown import schedule_json, schedule_row

    async def main(project: Project, client: Client) -> list[Schedule]:  # noqa: ARG001
        return await client.schedules()

    def show(rows: list[Schedule]) -> None:
        if output == "json":
            echo_json([schedule_json(row) for row in rows])
        elif rows:
            echo_table([schedule_row(row) for row in rows])
        else:
            click.echo("no schedules; add one with: flowerpower schedule NAME", err=True)

    with_client(base_dir, main, show)


@schedules.command()
@click.argument("id")
@base_dir
@click.pass_obj
def pause(outer: str | None, id: str, base_dir: str | None) -> None:
    """Fire the schedule ID no more, until it is resumed."""

    async def main(project: Project, client: Client) -> Schedule:  # noqa: ARG001
        return await client.pause(id)

    with_client(base_dir or outer, main, lambda row: click.echo(f"{row.id} is paused"))


@schedules.command()
@click.argument("id")
@base_dir
@click.pass_obj
def resume(outer: str | None, id: str, base_dir: str | None) -> None:
    """Fire the schedule ID again, from its next time after now."""

    async def main(project: Project, client: Client) -> Schedule:  # noqa: ARG001
        return await client.resume(id)

    def show(row: Schedule) -> None:
        from fp_async.cli.shown import ago, local, state

        at = row.next_fire_time
        fires = "will not fire: its time has passed"
        if state(row) == "on agents":
            fires = "is fired by its agents again"
        elif at is not None:
            fires = f"fires next at {local(at)} ({ago(at)})"
        click.echo(f"{row.id} {fires}")

    with_client(base_dir or outer, main, show)


@schedules.command()
@click.argument("id")
@base_dir
@click.pass_obj
def remove(outer: str | None, id: str, base_dir: str | None) -> None:
    """Forget the schedule ID; its jobs stay."""

    async def main(project: Project, client: Client) -> Schedule:  # noqa: ARG001
        return await client.remove(id)

    def show(row: Schedule) -> None:
        from fp_async.orders import FROM_CONF

        again = "; conf/pipelines.yml has it, and start-worker puts it there again"
        click.echo(f"{id} is removed{again if row.origin == FROM_CONF else ''}")

    with_client(base_dir or outer, main, show)
