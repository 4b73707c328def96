"""`fp-agent status|jobs|init|doctor|install-service`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_agent import looking
from edge_agent.options import settings_of, settings_options
from fp_async.errors import AlreadyExistsError

if TYPE_CHECKING:
    from edge_agent.doctor import Step

_OFFLINE, _STOPPED = 3, 4  # exit codes
_output = click.option("--output", type=click.Choice(["text", "json"]), default="text")


@click.command()
@settings_options
@_output
def status(config_file: Path | None, output: str, **flags: Any) -> None:
    """Say how the agent is: running, connected, what it does and what waits.

    A running agent is asked; else its store is read, and nothing in it is changed. Exit code 0:
    running and connected, 3: running without a connection, 4: not running.
    """
    settings = settings_of(config_file, flags)
    found = looking.status(settings)
    if output == "json":
        click.echo(looking.as_json(found))
    else:
        for label, value in looking.described(found):
            click.echo(f"{label.ljust(12)} {value}")
    if not found["running"]:
        sys.exit(_STOPPED)
    sys.exit(0 if found["connected"] else _OFFLINE)


@click.command()
@settings_options
@click.option("--state", metavar="A,B", help="queued, running, succeeded, failed, ...")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@_output
def jobs(
    config_file: Path | None, state: str | None, limit: int, output: str, **flags: Any
) -> None:
    """List the newest jobs in the device's store, beside a running agent or without one."""
    from fp_async.cli.output import echo_table

    states = tuple(part.strip() for part in state.split(",")) if state else ()
    rows = looking.jobs(settings_of(config_file, flags), states, limit)
    if output == "json":
        click.echo(looking.as_json(rows))
    elif rows:
        echo_table([looking.job_line(row) for row in rows])
    else:
        click.echo("no such jobs on this device", err=True)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
@click.option("--overwrite", is_flag=True, help="Write agent.yml anew.")
def init(folder: Path, *, overwrite: bool) -> None:
    """Write agent.yml, with every key and its default, and a first pipeline, into FOLDER."""
    from edge_agent import writing

    path = folder / "agent.yml"
    if path.exists() and not overwrite:
        raise AlreadyExistsError(f"{path} is there already; --overwrite writes it anew")
    for written in writing.project(folder):
        click.echo(f"created {written}")
    click.echo(f"next: fp-agent run --config {path}")


@click.command()
@settings_options
def doctor(config_file: Path | None, **flags: Any) -> None:
    """Try the whole way, step by step: store, pipelines, clock, broker, rights, gateway.

    A running agent is asked; only where none runs does this connect itself, since the broker
    would kick the agent off. Exit code 1 where something is wrong.
    """
    import asyncio

    from edge_agent import doctor as doctors

    settings = settings_of(config_file, flags)
    failed = 0

    def tell(step: Step) -> None:
        nonlocal failed
        mark, color = {"ok": ("ok", "green"), "note": ("note", "yellow")}.get(
            step.verdict, ("FAILED", "red")
        )
        failed += step.verdict == "failed"
        click.echo(f"{click.style(mark.ljust(7), fg=color)} {step.what}: {step.text}")

    asyncio.run(doctors.examine(settings, tell))
    sys.exit(1 if failed else 0)


@click.command("install-service")
@settings_options
@click.option("--user", help="Whom the service runs as. Default: root, locked in.")
@click.option("--print", "printed", is_flag=True, help="To standard output, and no file.")
def install_service(
    config_file: Path | None, user: str | None, *, printed: bool, **flags: Any
) -> None:
    """Write a systemd unit for the agent: restarted for ever, watched, and locked in."""
    from edge_agent import writing

    settings = settings_of(config_file, flags)
    text = writing.unit(settings, config_file, user)
    if printed:
        click.echo(text, nl=False)
        return
    path = Path("/etc/systemd/system/fp-agent.service")
    path.write_text(text, encoding="utf-8")
    click.echo(f"created {path}\nnext: systemctl daemon-reload && systemctl enable --now fp-agent")


ALL: tuple[click.Command, ...] = (status, jobs, init, doctor, install_service)
