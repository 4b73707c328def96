"""`hamilton-ui` and `tracker`, and what other commands show of tracked runs."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from fp_async.cli import base_dir
from fp_async.cli.loop import run_until_signalled
from fp_async.cli.saying import echo

log: logging.Logger = logging.getLogger("fp_async")


@click.command("hamilton-ui")
@click.option("--port", type=click.IntRange(0, 65535), default=8241, show_default=True)
@click.option(
    "--base-dir",
    metavar="DIR",
    default=None,
    help="Where its database is. Default: ~/.hamilton/db.",
)
@click.option("--no-migration", is_flag=True, help="Leave the database's schema as it is.")
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
@click.option(
    "--settings-file",
    type=click.Choice(["mini", "deploy"]),
    default="mini",
    show_default=True,
    help="deploy: PostgreSQL, as --config-file says.",
)
@click.option("--config-file", metavar="INI", help="Variables of `deploy`, in a section [deploy].")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on. Whoever reaches it is whoever they say they are.",
)
def hamilton_ui(
    base_dir: str | None,
    config_file: str | None,
    *,
    no_migration: bool,
    no_open: bool,
    **given: Any,
) -> None:
    """Serve the Hamilton UI until a signal comes (extra: fp-async[ui]).

    \b
      flowerpower hamilton-ui --no-open
      flowerpower tracker setup my_flow --username me@example.com
      flowerpower run my_flow --with-tracker

    It listens on this machine only: it asks nobody for a password.
    """  # noqa: D301
    import signal

    from fp_async import hamilton_ui as ui

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    log.setLevel(logging.INFO)

    def ready(address: str) -> None:
        log.info("Hamilton UI: %s", address)
        if not no_open:
            ui.open_browser(address)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(base_dir).absolute() if base_dir else Path.home() / ".hamilton" / "db"
    with suppress(KeyboardInterrupt):
        ui.serve(
            folder,
            host=given["host"],
            port=given["port"],
            settings=given["settings_file"],
            config_file=Path(config_file) if config_file else None,
            migrate=not no_migration,
            ready=ready,
        )


@click.group()
def tracker() -> None:
    """Show runs in the Hamilton UI."""


@tracker.command()
@click.argument("name")
@click.option("--username", metavar="EMAIL", help="Default: that of conf/tracker.yml.")
@click.option("--api-url", metavar="URL", help="Default: conf/tracker.yml, http://localhost:8241.")
@click.option("--ui-url", metavar="URL", help="Where its pages are, if not there.")
@base_dir
def setup(name: str, base_dir: str | None, **given: Any) -> None:
    """Make a project in the UI for pipeline NAME, and write its id into conf/tracker.yml.

    \b
      flowerpower tracker setup my_flow --username me@example.com
      flowerpower tracker setup my_flow --api-url http://localhost:8241 \\
          --ui-url http://localhost:8242          # the UI in Docker

    A project that there is already, of that id or of the pipeline's name, is used.
    """  # noqa: D301
    import asyncio

    from fp_async.project import Project
    from fp_async.tracker_setup import setup as set_up

    async def main() -> Any:
        return await asyncio.to_thread(set_up, Project(base_dir).root, name, **given)

    def show(done: Any) -> None:
        verb = "made" if done.made else "found"
        echo(f"{verb} project {done.project_id}: {done.address}")
        echo(f"next: flowerpower run {name} --with-tracker", err=True)

    run_until_signalled(main(), finish=show)


def show_tracked(*, quiet: bool) -> None:
    """Wait until what ran here has been told, and show where it can be seen."""
    if "fp_async.tracker" not in sys.modules:
        return
    from fp_async.tracker import tracker as of_this_process

    told = of_this_process()
    told.flush()
    if not quiet:
        for _, address in told.addresses:
            echo(f"tracked: {address}", err=True)
