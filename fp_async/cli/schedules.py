"""`schedules`: the list, and what is done with one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import click
import msgspec

from fp_async.cli import base_dir, completing
from fp_async.cli.following import output_option, shown_length
from fp_async.cli.jobs import with_client
from fp_async.cli.saying import echo, style
from fp_async.errors import JobNotFinishedError

if TYPE_CHECKING:
    from fp_async.client import JobClient
    from fp_async.gateway_schedules import Copy
    from fp_async.jobs import Job, Schedule
    from fp_async.project import Project

    _Found: TypeAlias = tuple[Schedule, list[Job], int | None, list[Copy]]

_LATEST = 5
_NEXT = 3


@click.group(invoke_without_command=True)
@output_option
@base_dir
@click.pass_context
def schedules(ctx: click.Context, output: str, base_dir: str | None) -> None:
    """List the schedules; or show, fire, pause, resume or remove one.

    Times are those of each schedule's zone. A terminal shows the columns that it has room for,
    `schedules show ID` all there is.
    """
    if ctx.invoked_subcommand is not None:
        ctx.obj = base_dir
        return
    from fp_async.cli.columns import echo_columns
    from fp_async.cli.output import echo_json
    from fp_async.cli.shown import SCHEDULE_COLUMNS, schedule_json, schedule_row

    async def main(project: Project, client: JobClient) -> list[Schedule]:  # noqa: ARG001
        return await client.schedules()

    def show(rows: list[Schedule]) -> None:
        if output == "json":
            echo_json([schedule_json(row) for row in rows])
        elif rows:
            echo_columns([schedule_row(row) for row in rows], SCHEDULE_COLUMNS)
        else:
            echo("no schedules; add one with: flowerpower schedule NAME", err=True)

    with_client(base_dir, main, show)


@schedules.command()
@click.argument("id", shell_complete=completing.schedules)
@output_option
@base_dir
@click.pass_obj
def show(outer: str | None, id: str, output: str, base_dir: str | None) -> None:
    """Show all about the schedule ID.

    Its times in its zone, what it runs and how, and its latest jobs.
    """
    from fp_async.backend import connected
    from fp_async.cli.output import echo_json
    from fp_async.cli.shown import in_zone, job_json, next_times, schedule_json, stamp

    async def main(project: Project, client: JobClient) -> _Found:
        from fp_async import gateway_schedules, short_ids

        async with connected(project.root) as backend:
            row = await short_ids.schedule(backend.store, id)
            latest = await client.find({"schedule_id": row.id, "limit": _LATEST})
            length = await shown_length(backend.store, latest)
            return row, latest, length, await gateway_schedules.copies(backend.store, row.id)

    def tell(found: _Found) -> None:
        row, latest, length, copies = found
        if output == "json":
            times = [in_zone(moment, row) for moment in next_times(row, _NEXT)]
            jobs = [job_json(job) for job in latest]
            agents = [
                {**msgspec.to_builtins(copy), "next_fire_time": stamp(copy.next_fire_time)}
                for copy in copies
            ]
            found_json = {**schedule_json(row), "next_fire_times": times, "jobs": jobs}
            echo_json(found_json | ({"agents": agents} if agents else {}))
        else:
            _show(row, latest, length, copies)

    with_client(base_dir or outer, main, tell)


def _show(row: Schedule, latest: list[Job], length: int | None, copies: list[Copy]) -> None:
    from fp_async.cli.columns import echo_columns, echo_facts
    from fp_async.cli.shown import JOB_COLUMNS, job_row, state, words

    head = f"{style(row.id, bold=True)}  {row.pipeline}  {words(row)}  {state(row)}"
    echo(head)
    echo_facts({**_facts(row), **{copy.agent: _copy(row, copy) for copy in copies}})
    if latest:
        echo(style("latest jobs", bold=True))
        columns = [each for each in JOB_COLUMNS if each.name not in ("pipeline", "trigger")]
        echo_columns([job_row(job, length) for job in latest], columns)


def _facts(row: Schedule) -> dict[str, str]:
    from fp_async.cli.shown import ago, in_zone, inputs_in, local, next_times, pairs, zone
    from fp_async.job_values import template_of
    from fp_async.orders import FROM_CONF

    template = template_of(row)
    options = msgspec.to_builtins(template.spec)
    options.pop("environment", None)
    times = [f"{in_zone(moment, row)}  {ago(moment)}" for moment in next_times(row, _NEXT)]
    last = row.last_fire_time
    return {
        "zone": zone(row),
        **{"next" if not n else f"then {n}": text for n, text in enumerate(times)},
        "last": "" if last is None else f"{in_zone(last, row)}  {ago(last)}",
        "fired": f"{row.fired}, {row.skipped} skipped" if row.skipped else str(row.fired),
        "environment": template.spec.environment,
        "inputs": inputs_in(template.inputs),
        "options": pairs(options),
        "on": f"{template.target or ''}{', kept by the agents' if template.offline else ''}",
        "queue": "" if template.target else template.queue,
        "key": template.key or "",
        "overlap": template.overlap,
        "policy": pairs(_policy(row)),
        "from": "conf/pipelines.yml" if row.origin == FROM_CONF else "",
        "made": f"{local(row.created_at)}  {ago(row.created_at)}",
    }


def _copy(row: Schedule, copy: Copy) -> str:
    """Return what an agent said of the schedule."""
    from fp_async.cli.shown import ago, in_zone

    if copy.error is not None:
        return f"refused: {copy.error}"
    old = "" if copy.revision >= row.revision else "an earlier version of it; "
    if (moment := copy.next_fire_time) is None:
        return f"{old}does not fire there"
    return f"{old}next {in_zone(moment, row)}  {ago(moment)}"


def _policy(row: Schedule) -> dict[str, Any]:
    """Return words for the rule on missed times; empty for the default."""
    from fp_async.triggers import Policy

    usual = msgspec.to_builtins(Policy())
    given = msgspec.json.decode(row.policy)
    return {name: value for name, value in given.items() if value != usual.get(name)}


@schedules.command("run-now")
@click.argument("id", shell_complete=completing.schedules)
@base_dir
@click.pass_obj
def run_now(outer: str | None, id: str, base_dir: str | None) -> None:
    """Fire the schedule ID now as well.

    Prints the ids of its jobs, which are as if its time had come: the same inputs and options,
    and its overlap counts. It may be paused, and its next time stays.
    """

    async def main(project: Project, client: JobClient) -> list[str]:  # noqa: ARG001
        return await client.fire(id)

    def tell(ids: list[str]) -> None:
        if not ids:
            raise JobNotFinishedError(
                f"schedule '{id}' added no job: its job before still runs (overlap: skip), or no "
                "agent is known that it is for"
            )
        echo("\n".join(ids))

    with_client(base_dir or outer, main, tell)


@schedules.command()
@click.argument("id", shell_complete=completing.schedules)
@base_dir
@click.pass_obj
def pause(outer: str | None, id: str, base_dir: str | None) -> None:
    """Fire the schedule ID no more, until it is resumed."""

    async def main(project: Project, client: JobClient) -> Schedule:  # noqa: ARG001
        return await client.pause(id)

    with_client(base_dir or outer, main, lambda row: echo(f"{row.id} is paused"))


@schedules.command()
@click.argument("id", shell_complete=completing.schedules)
@base_dir
@click.pass_obj
def resume(outer: str | None, id: str, base_dir: str | None) -> None:
    """Fire the schedule ID again, from its next time after now."""

    async def main(project: Project, client: JobClient) -> Schedule:  # noqa: ARG001
        return await client.resume(id)

    def show(row: Schedule) -> None:
        from fp_async.cli.shown import ago, in_zone, state

        at = row.next_fire_time
        fires = "will not fire: its time has passed"
        if state(row) == "on agents":
            fires = "is fired by its agents again"
        elif at is not None:
            fires = f"fires next at {in_zone(at, row)} ({ago(at)})"
        echo(f"{row.id} {fires}")

    with_client(base_dir or outer, main, show)


@schedules.command()
@click.argument("id", shell_complete=completing.schedules)
@base_dir
@click.pass_obj
def remove(outer: str | None, id: str, base_dir: str | None) -> None:
    """Forget the schedule ID; its jobs stay."""

    async def main(project: Project, client: JobClient) -> Schedule:  # noqa: ARG001
        return await client.remove(id)

    def show(row: Schedule) -> None:
        from fp_async.orders import FROM_CONF

        again = "; conf/pipelines.yml has it, and start-worker puts it there again"
        echo(f"{row.id} is removed{again if row.origin == FROM_CONF else ''}")

    with_client(base_dir or outer, main, show)
