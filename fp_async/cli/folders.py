"""`init`, `new`, `add`, `delete`, `list`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from fp_async.cli import base_dir
from fp_async.errors import UsageError


@click.command()
@click.argument("name", default=".")
@click.option("--overwrite", is_flag=True, help="Reset the conf/*.yml of an existing project.")
@base_dir
def init(name: str, base_dir: str | None, *, overwrite: bool) -> None:
    """Create a project in the folder NAME (default: the working directory).

    Writes conf/pipelines.yml, conf/scheduler.yml, conf/tracker.yml, conf/mqtt.yml, each with
    comments that explain it, and an empty pipelines/.
    """
    from fp_async import api

    folder = Path(base_dir or ".") / name
    created = api.init(folder, overwrite=overwrite)
    click.echo(f"created project {created.root}")
    step = "" if created.root == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    click.echo(f"next: {step}flowerpower new my_flow && flowerpower run my_flow")


@click.command()
@click.argument("name")
@click.option("--overwrite", is_flag=True, help="Replace an existing pipeline and its entries.")
@base_dir
def new(name: str, base_dir: str | None, *, overwrite: bool) -> None:
    """Write pipelines/NAME.py, a small pipeline that runs at once.

    Its entries are merged into conf/pipelines.yml; everything else in the file, comments
    included, stays as it is.
    """
    from fp_async.project import Project

    path = Project(base_dir).new(name, overwrite=overwrite)
    click.echo(f"created {path}, with its entries in conf/pipelines.yml")
    click.echo(f"next: flowerpower run {name}")


@click.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@base_dir
def delete(name: str, base_dir: str | None, *, yes: bool) -> None:
    """Remove pipelines/NAME.py and its entries in conf/*.yml. Asks first."""
    from fp_async.project import Project

    project = Project(base_dir)
    if not yes and not sys.stdin.isatty():
        raise UsageError(f"delete asks before it removes '{name}'; without a terminal pass --yes")
    if not yes:
        click.confirm(f"remove pipeline '{name}' from {project.root}?", abort=True)
    for path in project.delete(name):
        click.echo(f"{'changed' if path.exists() else 'removed'} {path}")


@click.command("list")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@base_dir
def list_pipelines(base_dir: str | None, output: str) -> None:
    """List the pipelines, their environments and files."""
    from fp_async.cli.output import echo_json, echo_table
    from fp_async.config import DEFAULT_ENVIRONMENT
    from fp_async.project import Project

    project = Project(base_dir)
    entries = project.configuration.run or {}
    rows = [
        {
            "pipeline": name,
            "environments": list(entries.get(name) or {}) or [DEFAULT_ENVIRONMENT],
            "file": str(_file(project.root, name)),
        }
        for name in project.list()
    ]
    if output == "json":
        echo_json(rows)
    elif rows:
        echo_table(rows)
    else:
        click.echo("no pipelines yet; add one with: flowerpower new my_flow", err=True)


def _file(root: Path, name: str) -> Path:
    module = root / "pipelines" / f"{name}.py"
    return (module if module.exists() else module.with_suffix("")).relative_to(root)
