"""`start-gateway`, `agents`, `agent`, `drain`, `letters`: the fleet as the center sees it."""

from __future__ import annotations

import logging
import time
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from fp_async.cli import base_dir
from fp_async.cli.daemons import Daemon, Serving, of_gateway, serve, serving_options
from fp_async.cli.following import output_option
from fp_async.cli.jobs import with_client
from fp_async.cli.saying import echo, style
from fp_async.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from fp_async.client import JobClient
    from fp_async.fleet import AgentInfo
    from fp_async.job_values import DeadLetter
    from fp_async.project import Project
    from fp_async.strangers import Stranger

log: logging.Logger = logging.getLogger("fp_async.gateway")
_COLORS = {"ready": "green", "away": "yellow", "quarantined": "red", "unadmitted": "red"}


@click.command("start-gateway")
@serving_options
@base_dir
def start_gateway(base_dir: str | None, serving: Serving) -> None:
    """Move jobs between the data store and agents, and messages into jobs, until a signal comes.

    The broker is that of conf/mqtt.yml, else `event_broker` where it is of type mqtt. Any number
    may run for a site; one is active, and another takes over within 15 s.
    """
    serve(base_dir, _gateway, serving, "flowerpower-gateway")


async def _gateway(daemon: Daemon) -> None:
    from fp_async.gateway_serving import make

    async with daemon.connected() as backend:
        gateway = make(daemon.project.flows, backend)
        log.info("gateway of site '%s': %s", gateway.topics.site, gateway.address)
        try:
            async with daemon.measured(backend, partial(of_gateway, gateway)):
                await gateway.run()
        finally:
            log.info("gateway of site '%s' has ended", gateway.topics.site)


@click.command()
@click.option("--unknown", is_flag=True, help="Those that speak as agents and are not admitted.")
@output_option
@base_dir
def agents(output: str, base_dir: str | None, *, unknown: bool) -> None:
    """List the agents that are known, present or not."""
    if unknown:
        _list_strangers(output, base_dir)
        return
    from fp_async.cli.columns import Column, echo_columns
    from fp_async.cli.output import echo_json

    async def main(
        project: Project,
        client: JobClient,  # noqa: ARG001
    ) -> tuple[list[AgentInfo], str | None]:
        from fp_async import fleet
        from fp_async.backend import connected

        async with connected(project.root) as backend:
            return await project.agents(), await fleet.gateway_trouble(backend.store)

    def show(told: tuple[list[AgentInfo], str | None]) -> None:
        found, trouble = told
        if found and trouble:
            mark = style("warning:", fg="yellow", bold=True)
            echo(f"{mark} {trouble}; agents are shown as they were before", err=True)
        if output == "json":
            echo_json([_as_json(each) for each in found])
        elif found:
            columns = (
                Column("name"),
                Column("state"),
                Column("seen", rank=1),
                Column("tags", rank=3, cut=16),
                Column("slots", rank=4),
                Column("jobs", rank=2),
                Column("untold", rank=1),
                Column("pipelines", rank=5, cut=16),
            )
            echo_columns([_row(each) for each in found], columns)
        else:
            echo(
                "no agents are known; start one with: fp-agent run --broker mqtt://HOST, and "
                "the gateway with: flowerpower start-gateway",
                err=True,
            )

    with_client(base_dir, main, show)


def _list_strangers(output: str, base_dir: str | None) -> None:
    from fp_async.cli.columns import Column, echo_columns
    from fp_async.cli.output import echo_json

    def show(found: list[Stranger]) -> None:
        if output == "json":
            echo_json([_as_json(each, "first_seen_at", "seen_at") for each in found])
            return
        columns = (
            Column("name"),
            Column("seen"),
            Column("messages"),
            Column("version", rank=2),
            Column("tags", rank=1, cut=16),
        )
        echo_columns([_stranger_row(each) for each in found], columns)
        hint = "admit one with: flowerpower agent NAME --admit"
        echo(hint if found else "nobody has spoken as an agent without being admitted", err=True)

    with_client(base_dir, lambda project, _: project.unknown_agents(), show)


def _stranger_row(each: Stranger) -> dict[str, Any]:
    from fp_async.cli.shown import ago

    return {
        "name": each.name,
        "seen": ago(_epoch(each.seen_at)),
        "messages": each.messages,
        "version": each.version,
        "tags": _pairs(each.tags),
    }


def _as_json(info: AgentInfo | Stranger, *moments: str) -> dict[str, Any]:
    import msgspec

    from fp_async.cli.shown import stamp

    names = moments or ("seen_at", "away_since")
    times = {name: stamp(_epoch(getattr(info, name))) for name in names}
    return {**msgspec.structs.asdict(info), **times}


def _epoch(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()


def _row(info: AgentInfo) -> dict[str, Any]:
    from fp_async.cli.shown import ago

    return {
        "name": info.name,
        "state": info.state,
        "seen": ago(_epoch(info.seen_at)) or "never",
        "tags": _pairs(info.tags),
        "slots": info.slots,
        "jobs": info.jobs,
        "untold": info.untold or "",
        "pipelines": ", ".join(info.pipelines),
    }


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


@click.command()
@click.argument("name")
@click.option("--readmit", is_flag=True, help="Believe it again after a quarantine.")
@click.option("--forget", is_flag=True, help="It is gone for good: forget it, give up its jobs.")
@click.option("--admit", is_flag=True, help="Put it on the list of those that belong to the fleet.")
@click.option("--bar", is_flag=True, help="Take it from that list.")
@click.option(
    "--tags",
    metavar="T=V,..",
    help="With --admit: the tags that it may bear, * for any value; none with ''. Default: all.",
)
@click.option(
    "--window",
    type=click.IntRange(1, 500),
    help="With --admit: the most jobs at once. Default: as many as it asks for.",
)
@output_option
@base_dir
def agent(
    name: str, output: str, base_dir: str | None, tags: str | None, window: int | None, **do: bool
) -> None:
    """Show all about the agent NAME."""
    given = [option for option, wanted in do.items() if wanted]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(f'--{each}' for each in given)} exclude each other")
    if (tags is not None or window is not None) and not do["admit"]:
        raise UsageError("--tags and --window go with --admit")
    if do["admit"] or do["bar"]:
        _list_or_not(name, base_dir, _tags(tags), window, admit=do["admit"])
        return
    readmit, forget = do["readmit"], do["forget"]
    if forget:
        gone = f"{name} is forgotten; what it had is given up (flowerpower jobs)"
        with_client(base_dir, lambda p, _: p.forget_agent(name), lambda _: echo(gone))
        return
    from fp_async.cli.output import echo_json

    async def main(project: Project, client: JobClient) -> AgentInfo:  # noqa: ARG001
        if readmit:
            await project.readmit_agent(name)
        found = {each.name: each for each in await project.agents()}
        if name not in found:
            raise UnknownNameError("agent", name, found)
        return found[name]

    with_client(base_dir, main, lambda i: echo_json(_as_json(i)) if output == "json" else _show(i))


def _list_or_not(
    name: str,
    base_dir: str | None,
    tags: dict[str, str] | None,
    window: int | None,
    *,
    admit: bool,
) -> None:
    async def main(project: Project, client: JobClient) -> str:  # noqa: ARG001
        if admit:
            await project.admit_agent(name, tags=tags, window=window)
            return f"{name} is admitted; others are not, unless they are on the list, too"
        if left := await project.bar_agent(name):
            return f"{name} is admitted no more; {len(left)} are"
        return f"{name} is admitted no more, and the list is empty: the fleet is open to everybody"

    with_client(base_dir, main, echo)


def _tags(text: str | None) -> dict[str, str] | None:
    """Tags as they are given. Raises UsageError."""
    if text is None:
        return None
    found = [each.partition("=") for each in text.split(",") if each]
    for tag, equals, _ in found:
        if not tag or not equals:
            raise UsageError(f"--tags {text!r}: tag=value, with commas between, as in site=berlin")
    return {tag: value for tag, _, value in found}


def _show(info: AgentInfo) -> None:
    from fp_async.cli.shown import ago, local

    echo(f"agent      {style(info.name, bold=True)}")
    echo(f"state      {style(info.state, fg=_COLORS.get(info.state))}")
    at = _epoch(info.seen_at)
    seen = f"{local(at)}  {ago(at, time.time())}" if at else "never"
    free = "" if info.disk_free is None else f"{info.disk_free // 2**20:,} MiB free"
    rows = {
        "problem": info.problem,
        "seen": seen,
        "away since": local(_epoch(info.away_since)),
        "tags": _pairs(info.tags),
        "ignored": info.ignored and f"{_pairs(info.ignored)}  (not among the tags it may bear)",
        "slots": f"{info.slots}, free: {'not told yet' if info.free is None else info.free}",
        "jobs": f"{info.jobs} bound to it of {info.window} at most, "
        f"{info.untold} outcomes waiting there",
        "disk": free,
        "clock": f"{-info.clock_offset:+.3f} s against ours",
        "version": info.version,
        "store": info.store,
        "dropped": ", ".join(f"{n:,} {what}" for what, n in sorted(info.dropped.items())),
    }
    for label, value in rows.items():
        if value:
            echo(f"{label.ljust(10)} {value}")
    for pipeline, version in info.pipelines.items():
        echo(f"pipeline   {pipeline}  {version}")


@click.command()
@click.argument("name")
@click.option("--off", is_flag=True, help="Offer it jobs again.")
@base_dir
def drain(name: str, base_dir: str | None, *, off: bool) -> None:
    """Offer the agent NAME no more jobs; what it has it ends."""

    async def main(project: Project, client: JobClient) -> None:  # noqa: ARG001
        await project.drain_agent(name, drained=not off)

    text = f"{name} gets jobs again" if off else f"{name} gets no more jobs"
    with_client(base_dir, main, lambda _: echo(text))


@click.command()
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@output_option
@base_dir
def letters(limit: int, output: str, base_dir: str | None) -> None:
    """List messages that made no job, and late outcomes: topic, reason, payload."""
    from fp_async.cli.columns import LETTER_COLUMNS, echo_columns
    from fp_async.cli.output import echo_json
    from fp_async.cli.shown import ago, stamp

    async def main(project: Project, client: JobClient) -> list[DeadLetter]:  # noqa: ARG001
        return await project.list_letters(limit)

    def show(found: list[DeadLetter]) -> None:
        rows = [(x, x.at.timestamp(), x.payload.decode(errors="replace")) for x in found]
        if output == "json":
            entries = [
                {
                    "at": stamp(at),
                    "topic": x.topic,
                    "reason": x.reason,
                    "payload": text,
                }
                for x, at, text in rows
            ]
            echo_json(entries)
        elif rows:
            lines = [
                {"at": ago(at), "topic": x.topic, "reason": x.reason, "payload": text}
                for x, at, text in rows
            ]
            echo_columns(lines, LETTER_COLUMNS)
        else:
            echo("no dead letters", err=True)

    with_client(base_dir, main, show)
