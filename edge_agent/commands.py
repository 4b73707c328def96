"""`fp-agent status|jobs|letters|init|doctor|install-service`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_agent.options import file_of, given, settings_of, settings_options
from fp_async.cli.saying import echo, style
from fp_async.errors import AlreadyExistsError, FileAccessError

if TYPE_CHECKING:
    from edge_agent.doctor import Step

_OFFLINE, _STOPPED = 3, 4  # exit codes of status
_UNIT = Path("/etc/systemd/system/fp-agent.service")
_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "failed": ("FAILED", "red")}
_output = click.option("--output", type=click.Choice(["text", "json"]), default="text")


@click.command()
@settings_options
@_output
def status(config_file: Path | None, output: str, **flags: Any) -> None:
    """Say how the agent is: running, connected, what it does and what waits.

    A running agent is asked; else its store is read, and nothing in it is changed. Exit code 0:
    running and connected, 3: running without a connection (its own, or that of its triggers),
    4: not running.
    """
    from edge_agent import looking

    found = looking.status(settings_of(config_file, flags))
    if output == "json":
        echo(json.dumps(found, indent=2))
    else:
        for label, value, color in looking.described(found):
            echo(f"{label.ljust(12)} {style(value, fg=color) if color else value}")
    if not found["running"]:
        sys.exit(_STOPPED)
    sys.exit(0 if looking.is_linked(found) else _OFFLINE)


@click.command()
@settings_options
@click.option("--state", metavar="A,B", help="queued, running, succeeded, failed, ...")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@_output
def jobs(
    config_file: Path | None, state: str | None, limit: int, output: str, **flags: Any
) -> None:
    """List the newest jobs in the device's store, beside a running agent or without one.

    `acknowledged` says whether the center has the outcome; until then it stays on the device.
    """
    from edge_agent import looking

    states = tuple(part.strip() for part in state.split(",")) if state else ()
    rows = looking.jobs(settings_of(config_file, flags), states, limit)
    if output == "json":
        echo(json.dumps(rows, indent=2))
    elif rows:
        from fp_async.cli.columns import Column, echo_columns

        columns = (
            Column("id"),
            Column("pipeline", cut=12),
            Column("state"),
            Column("from", rank=3, cut=16),
            Column("added", rank=2),
            Column("took", rank=4),
            Column("tries", rank=5),
            Column("acknowledged", rank=6),
            Column("why", rank=1, cut=16),
        )
        echo_columns([looking.job_line(row) for row in rows], columns)
    else:
        echo("no such jobs on this device", err=True)


@click.command()
@settings_options
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@_output
def letters(config_file: Path | None, limit: int, output: str, **flags: Any) -> None:
    """List messages that the triggers of agent.yml made no job of: topic, reason, payload."""
    from edge_agent import looking

    rows = looking.letters(settings_of(config_file, flags), limit)
    if output == "json":
        echo(json.dumps(rows, indent=2))
    elif rows:
        from fp_async.cli.columns import LETTER_COLUMNS, echo_columns

        echo_columns([looking.letter_line(row) for row in rows], LETTER_COLUMNS)
    else:
        echo("no dead letters on this device", err=True)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
@click.option("--overwrite", is_flag=True, help="Write agent.yml anew.")
@click.option("--schema", is_flag=True, help="Write only its JSON Schema, for editors.")
def init(folder: Path, *, overwrite: bool, schema: bool) -> None:
    """Write agent.yml, with every key and its default, and a first pipeline, into FOLDER."""
    from edge_agent import writing

    path = folder / "agent.yml"
    if path.exists() and not (overwrite or schema):
        raise AlreadyExistsError(f"{path} is there already; --overwrite writes it anew")
    try:
        if schema:
            echo(f"wrote {writing.schema(folder)}")
            return
        for written in writing.project(folder):
            echo(f"created {written}")
    except OSError as error:
        raise FileAccessError(f"cannot write {error.filename}: {error.strerror}") from error
    echo(f"next: fp-agent doctor --config {path}; fp-agent run --config {path}")


@click.command()
@settings_options
def doctor(config_file: Path | None, **flags: Any) -> None:
    """Try the whole way, step by step: pipelines, store, clock, broker, gateway, rights.

    A running agent is asked; only where none runs does this connect itself, since the broker
    would kick the agent off. Exit code 1 where something is wrong.
    """
    import asyncio

    from edge_agent.doctor import examine

    settings = settings_of(config_file, flags)
    failed = 0

    def tell(step: Step) -> None:
        nonlocal failed
        failed += step.verdict == "failed"
        mark, color = _MARKS[step.verdict]
        text = step.text.replace("\n", "\n        ")
        echo(f"{style(mark.ljust(7), fg=color)} {step.what}: {text}")
        if step.remedy:
            echo(f"        {step.remedy}")

    asyncio.run(examine(settings, tell))
    sys.exit(1 if failed else 0)


@click.command("install-service")
@settings_options
@click.option("--user", help="Whom the service runs as. Default: root, without its powers.")
@click.option("--print", "printed", is_flag=True, help="To standard output, and no file.")
def install_service(
    config_file: Path | None, user: str | None, *, printed: bool, **flags: Any
) -> None:
    """Write a systemd unit for the agent: restarted for ever, watched, and locked in.

    It runs the agent with the settings file and the flags that this is given; a password does not
    get into it, since everybody can read it.
    """
    from edge_agent import writing

    settings = settings_of(config_file, flags)
    text = writing.unit(settings, file_of(config_file), given(flags), user)
    if printed:
        echo(text, nl=False)
        return
    try:
        _UNIT.write_text(text, encoding="utf-8")
    except OSError as error:
        text = f"cannot write {_UNIT}: {error.strerror}; be root, or take --print"
        raise FileAccessError(text) from error
    echo(f"created {_UNIT}")
    if settings.password:
        echo(f"put FP_AGENT_PASSWORD=... into {writing.SECRETS}, readable by root alone")
    if user:
        echo(f"the store's folder has to be {user}'s: chown {user} {writing.place(settings)}")
    echo("next: systemctl daemon-reload && systemctl enable --now fp-agent")
    echo("then: fp-agent status")


ALL: tuple[click.Command, ...] = (status, jobs, letters, init, doctor, install_service)
