"""`jobs` and `job`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from fp_async.cli import base_dir
from fp_async.cli.jobs import with_client
from fp_async.cli.live import MARKS, STYLES
from fp_async.errors import UnknownNameError

if TYPE_CHECKING:
    from fp_async.client import Client
    from fp_async.jobs import Job
    from fp_async.project import Project
    from fp_async.watching import JobEvent

output_option = click.option("--output", type=click.Choice(["table", "json"]), default="table")
_STATE_STYLES = {"succeeded": "green", "running": "cyan", "queued": "yellow", "failed": "red"}


@click.command()
@click.option("--state", "states", metavar="A,B", help="queued, running, succeeded, failed, ...")
@click.option("--pipeline")
@click.option("--queue")
@click.option("--schedule", "schedule_id", metavar="ID")
@click.option("--group", "group_id", metavar="ID", help="Of a job for all agents of a kind.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@output_option
@base_dir
def jobs(states: str | None, output: str, base_dir: str | None, **query: Any) -> None:
    """List jobs, the newest first."""
    from fp_async.cli.output import echo_json, echo_table
    from fp_async.cli.shown import job_json, job_row

    chosen = _states(states)

    async def main(project: Project, client: Client) -> list[Job]:  # noqa: ARG001
        return await client.find({"states": chosen, **query})

    def show(found: list[Job]) -> None:
        if output == "json":
            echo_json([job_json(job) for job in found])
        elif found:
            echo_table([job_row(job) for job in found])
        else:
            click.echo("no such jobs; add one with: flowerpower add-job NAME", err=True)

    with_client(base_dir, main, show)


def _states(text: str | None) -> tuple[str, ...]:
    from fp_async.lifecycle import STATES

    states = tuple(part.strip() for part in text.split(",")) if text else ()
    for state in states:
        if state not in STATES:
            raise UnknownNameError("state", state, STATES, where=" in --state")
    return states


@click.command()
@click.argument("id")
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

    async def main(project: Project, client: Client) -> Job:  # noqa: ARG001
        return await (_follow(client, id, output) if follow else client.get(id))

    def show(found: Job) -> None:
        if follow:
            _leave(found)
        elif output == "json":
            echo_json(job_details(found))
        else:
            _show(found)

    with_client(base_dir, main, show)


async def _follow(client: Client, id: str, output: str) -> Job:
    tell = _echo_event_json if output == "json" else _Teller()
    async for event in client.watch(id):
        tell(event)
        found = event.job
    return found


def _leave(job: Job) -> None:
    """The exit code of an outcome; the error has been shown."""
    from fp_async.outcomes import error_of

    if job.state != "succeeded":
        raise error_of(job)


def _echo_event_json(event: JobEvent) -> None:
    import msgspec

    told = ("id", "state", "attempt", "nodes", "log")
    changed = {name: msgspec.to_builtins(getattr(event, name)) for name in told}
    click.echo(msgspec.json.encode(changed).decode())


class _Teller:
    """Prints events; one that has only nodes and log does not tell the state again."""

    def __init__(self) -> None:
        self._said: tuple[str, int] | None = None

    def __call__(self, event: JobEvent) -> None:
        news = (event.state, event.attempt) != self._said
        self._said = (event.state, event.attempt)
        state = f"{_at(event.job)} {_state(event.job)}{_why(event.job)}"
        if news and not event.job.finished:
            click.echo(state)
        for node in event.nodes:
            click.echo(node_line(node))
        for line in event.log.splitlines():
            click.echo(f"  {click.style('|', dim=True)} {line}")
        if news and event.job.finished:
            click.echo(state)


def _at(job: Job) -> str:
    from fp_async.cli.shown import local

    moments = {"running": job.started_at, "queued": None}
    return local(moments.get(job.state, job.ended_at) or time.time())


def _state(job: Job) -> str:
    return click.style(job.state, fg=_STATE_STYLES.get(job.state), bold=True)


def _why(job: Job) -> str:
    from fp_async.cli.shown import ago, span

    if job.state == "running":
        return f", attempt {job.attempt}"
    if job.state == "queued":
        due = f", due {ago(job.run_at)}" if job.run_at > time.time() + 1 else ""
        return f" in '{job.queue}'{due}" + (f": {job.reason}" if job.reason else "")
    if job.started_at is not None and job.ended_at is not None:
        return f" in {span(job.ended_at - job.started_at)}"
    return ""


def node_line(node: Any) -> str:
    """A node that has come to an end, as `run` shows it."""
    mark = click.style(MARKS.get(node.status, "-"), fg=STYLES.get(node.status))
    error = f"  {node.error.partition(chr(10))[0]}" if node.error else ""
    place = f"  on {node.place}" if node.place else ""
    return f"  {mark} {node.node}  {node.seconds:.3f} s{place}{error}"


# One job ------------------------------------------------------------------------------------


def _show(job: Job) -> None:
    click.echo(f"{click.style(job.id, bold=True)}  {job.pipeline}  {_state(job)}")
    facts = {name: text for name, text in _facts(job).items() if text}
    width = max(map(len, facts))
    for name, text in facts.items():
        click.echo(f"  {name.ljust(width)}  {text}")
    trace, failure = job.trace, job.failure
    _section("nodes", [node_line(node) for node in trace.nodes])
    _section("log", [f"  {line}" for line in trace.log.splitlines()])
    if failure is not None:
        text = failure.traceback.rstrip() or failure.message
        _section("error", [f"  {line}" for line in text.splitlines()])


def _facts(job: Job) -> dict[str, str]:
    from fp_async.cli.shown import ago, local, span

    def at(moment: float | None) -> str:
        return "" if moment is None else f"{local(moment)} ({ago(moment)})"

    took = job.ended_at - job.started_at if job.ended_at and job.started_at else None
    planned = abs(job.run_at - job.created_at) > 0.001
    return {
        "reason": job.reason or "",
        "error": job.failure.message.partition("\n")[0] if job.failure else "",
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
        "options": _options(job),
        "inputs": _inputs(job),
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


def _options(job: Job) -> str:
    import msgspec

    given = {name: value for name, value in msgspec.to_builtins(job.rules).items() if value}
    return " ".join(f"{name}={value}" for name, value in given.items())


def _inputs(job: Job) -> str:
    from fp_async import codec

    values = codec.decode(job.inputs) if job.inputs else {}
    texts = (f"{name}={' '.join(f'{value!r}'.split()):.60}" for name, value in values.items())
    return ", ".join(texts)


def _section(title: str, lines: list[str]) -> None:
    if lines:
        click.echo(f"{click.style(title, bold=True)}")
        click.echo("\n".join(lines))
