"""`jobs` and `job`."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from fp_async.cli import base_dir, completing
from fp_async.cli.jobs import with_client
from fp_async.cli.live import node_line
from fp_async.cli.saying import echo, style
from fp_async.errors import UnknownNameError, UsageError, headline
from fp_async.values import arguments

if TYPE_CHECKING:
    from fp_async.client import JobClient
    from fp_async.jobs import Job
    from fp_async.project import Project
    from fp_async.stores import Store
    from fp_async.watching import Change

_AGO = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def _since(_: object, __: object, text: str | None) -> float | None:
    """Return a time, or how long ago it was, in epoch seconds. Raises UsageError."""
    if text is None:
        return None
    if (found := _AGO.fullmatch(text.strip().removesuffix(" ago"))) is not None:
        return max(time.time() - float(found[1]) * _SECONDS[found[2]], 0.0)
    from fp_async import targets

    try:
        return targets.moment(text, "--since")
    except UsageError as error:
        raise UsageError(f"{error}, or how long ago: 10min, 2h, 3d") from error


output_option = click.option("--output", type=click.Choice(["table", "json"]), default="table")
_STATE_STYLES = {"succeeded": "green", "running": "cyan", "queued": "yellow", "failed": "red"}


@click.command()
@click.option(
    "--state",
    "states",
    metavar="A,B",
    shell_complete=completing.states,
    help="queued, running, succeeded, failed, ...",
)
@click.option("--pipeline", metavar="NAME", shell_complete=completing.pipelines)
@click.option("--queue", metavar="NAME")
@click.option("--schedule", "schedule_id", metavar="ID", shell_complete=completing.schedules)
@click.option(
    "--group",
    "group_id",
    metavar="ID",
    shell_complete=completing.groups,
    help="Of a job for all agents of a kind.",
)
@click.option(
    "--since",
    callback=_since,
    metavar="TIME",
    help="Added since then: 10min, 2h, 3d ago, or 2027-01-31T08:00.",
)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@output_option
@base_dir
def jobs(states: str | None, output: str, base_dir: str | None, **query: Any) -> None:
    """List jobs, the newest first.

    A terminal shows as many columns as it has room for, and of an id what tells it from all
    others; every command takes an id shortened like that. In a pipe all is there.
    """
    from fp_async.backend import connected
    from fp_async.cli.columns import echo_columns
    from fp_async.cli.output import echo_json
    from fp_async.cli.shown import JOB_COLUMNS, job_json, job_row

    chosen = _states(states)
    arguments.limit(query["limit"])  # before a store is made for it

    async def main(project: Project, client: JobClient) -> tuple[list[Job], int | None]:
        async with connected(project.root) as backend:
            found = await client.find({"states": chosen, **query})
            return found, await shown_length(backend.store, found)

    def show(found: tuple[list[Job], int | None]) -> None:
        rows, length = found
        if output == "json":
            echo_json([job_json(job) for job in rows])
        elif rows:
            echo_columns([job_row(job, length) for job in rows], JOB_COLUMNS)
        else:
            echo("no such jobs; add one with: flowerpower add-job NAME", err=True)

    with_client(base_dir, main, show)


async def shown_length(store: Store, found: list[Job]) -> int | None:
    """Return how many characters of these jobs' ids a terminal shows; None for all, in a pipe."""
    from fp_async import short_ids

    if not sys.stdout.isatty():
        return None
    return await short_ids.shown_length(store, [job.id for job in found])


def _states(text: str | None) -> tuple[str, ...]:
    from fp_async.lifecycle import STATES

    states = tuple(part.strip() for part in text.split(",")) if text else ()
    for state in states:
        if state not in STATES:
            raise UnknownNameError("state", state, STATES, where=" in --state")
    return states


@click.command()
@click.argument("id", shell_complete=completing.jobs)
@click.option("--follow", "-f", is_flag=True, help="Print what happens until its outcome.")
@output_option
@base_dir
def job(id: str, output: str, base_dir: str | None, *, follow: bool) -> None:
    """Show the job ID: state, times, nodes, log and error.

    With --follow it prints what happens as it happens, and exits as `result` does: with 0 if
    the job succeeded. --output json gives one object, with --follow one in each line.
    """
    from fp_async.cli.output import echo_json
    from fp_async.cli.shown import job_details

    async def main(project: Project, client: JobClient) -> Job:  # noqa: ARG001
        return await (_follow(client, id, output) if follow else client.get(id))

    def show(found: Job) -> None:
        if follow:
            _leave(found)
        elif output == "json":
            echo_json(job_details(found))
        else:
            _show(found)

    with_client(base_dir, main, show)


async def _follow(client: JobClient, id: str, output: str) -> Job:
    tell = _echo_event_json if output == "json" else _Teller()
    async for event in client.watch(id):
        tell(event)
        found = event.job
    return found


def _leave(job: Job) -> None:
    """The exit code of an outcome; the error has been shown."""
    from fp_async.job_values import error_of

    if job.state != "succeeded":
        raise error_of(job)


def _echo_event_json(event: Change) -> None:
    import msgspec

    told = ("id", "state", "attempt", "nodes", "log")
    changed = {name: msgspec.to_builtins(getattr(event, name)) for name in told}
    echo(msgspec.json.encode(changed).decode())


class _Teller:
    """Prints events; one that has only nodes and log does not tell the state again."""

    def __init__(self) -> None:
        self._said: tuple[str, int] | None = None

    def __call__(self, event: Change) -> None:
        news = (event.state, event.attempt) != self._said
        self._said = (event.state, event.attempt)
        state = f"{_at(event.job)} {_state(event.job)}{_why(event.job)}"
        if news and not event.job.finished:
            echo(state)
        for node in event.nodes:
            echo(node_line(node))
        for line in event.log.splitlines():
            echo(f"  {style('|', dim=True)} {line}")
        if news and event.job.finished:
            echo(state)


def _at(job: Job) -> str:
    from fp_async.cli.shown import local

    moments = {"running": job.started_at, "queued": None}
    return local(moments.get(job.state, job.ended_at) or time.time())


def _state(job: Job) -> str:
    return style(job.state, fg=_STATE_STYLES.get(job.state), bold=True)


def _why(job: Job) -> str:
    from fp_async.cli.shown import ago, span, waits_for

    if why := waits_for(job):
        return why
    if job.state == "running":
        return f", attempt {job.attempt}"
    if job.state == "queued":
        due = f", due {ago(job.run_at)}" if job.run_at > time.time() + 1 else ""
        return f" in '{job.queue}'{due}" + (f": {job.reason}" if job.reason else "")
    if job.started_at is not None and job.ended_at is not None:
        return f" in {span(job.ended_at - job.started_at)}"
    return ""


# One job ------------------------------------------------------------------------------------


def _show(job: Job) -> None:
    from fp_async.cli.columns import echo_facts, one_line
    from fp_async.cli.shown import waits_for

    state = _state(job) + waits_for(job)
    echo(f"{style(job.id, bold=True)}  {job.pipeline}  {state}")
    echo_facts(_facts(job))
    trace, failure = job.trace, job.failure
    _section("nodes", [one_line(node_line(node)) for node in trace.nodes])
    _section("log", [f"  {line}" for line in trace.log.splitlines()])
    if failure is not None and not job.misconfigured:
        text = failure.traceback.rstrip() or failure.message
        _section("error", [f"  {line}" for line in text.splitlines()])


def _error(job: Job) -> str:
    """The first line of the latest error; nothing where the state says it already."""
    failure = job.failure
    return "" if failure is None or job.misconfigured else headline(failure.message)


def _facts(job: Job) -> dict[str, str]:
    from fp_async.cli.shown import ago, inputs_in, local, span

    def at(moment: float | None) -> str:
        return "" if moment is None else f"{local(moment)} ({ago(moment)})"

    took = job.ended_at - job.started_at if job.ended_at and job.started_at else None
    planned = abs(job.run_at - job.created_at) > 0.001
    return {
        "reason": "" if job.misconfigured else job.reason or "",
        "error": _error(job),
        "environment": job.rules.environment,
        "on": _place(job),
        "group": job.group_id or "",
        "queue": _queue(job),
        "key": job.key or "",
        "schedule": job.schedule_id or "",
        "nominal time": local(job.nominal_at),
        "retried from": job.retried_from or "",
        "added": at(job.created_at),
        "due": at(job.run_at) if planned else "",
        "expires": at(job.expires_at) if job.state == "queued" else "",
        "started": at(job.started_at),
        "ended": at(job.ended_at) + (f", took {span(took)}" if took is not None else ""),
        "attempts": _attempts(job),
        "worker": job.trace.worker,
        "version": _version(job),
        "warnings": "; ".join(job.trace.warnings),
        "options": _options(job),
        "inputs": inputs_in(job.inputs),
    }


def _place(job: Job) -> str:
    if job.target is None or job.agent is None or job.target == f"agent:{job.agent}":
        return job.target or ""
    return f"{job.target}: agent {job.agent}"


def _queue(job: Job) -> str:
    priority = f"priority {job.priority}" if job.priority else ""
    return ", ".join(part for part in ("" if job.target else job.queue, priority) if part)


def _attempts(job: Job) -> str:
    counts = (("error", job.errors), ("crash", job.crashes))
    ends = {"error": "s", "crash": "es"}
    more = "".join(f", {n} {word}{ends[word] if n > 1 else ''}" for word, n in counts if n)
    return f"{job.attempt}{more}" if job.attempt else ""


def _version(job: Job) -> str:
    """Return the version of the pipeline that ran on an agent, and the wanted one if it differs."""
    ran, wanted = job.trace.version, job.rules.version
    if not ran or ran == wanted:
        return ran or (f"{wanted} is wanted" if wanted else "")
    return f"{ran} ran" + (f", {wanted} was wanted" if wanted else "")


def _options(job: Job) -> str:
    import msgspec

    from fp_async.cli.shown import pairs

    given = {name: value for name, value in msgspec.to_builtins(job.rules).items() if value}
    for shown_elsewhere in ("version", "environment"):
        given.pop(shown_elsewhere, None)
    return pairs(given)


def _section(title: str, lines: list[str]) -> None:
    if lines:
        echo(f"{style(title, bold=True)}")
        echo("\n".join(lines))
