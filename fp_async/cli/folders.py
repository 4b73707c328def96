"""`init`, `new`, `add`, `delete`, `list`."""

from __future__ import annotations

import shlex
import sys
from importlib.resources import files
from pathlib import Path

import click

from fp_async.cli import base_dir
from fp_async.errors import AlreadyExistsError, FileAccessError, UsageError

_SERVICES = "docker-compose.yml"


@click.command()
@click.argument("name", default=".")
@click.option("--overwrite", is_flag=True, help="Reset the conf/*.yml of an existing project.")
@click.option("--services", is_flag=True, help="Also write docker-compose.yml, for development.")
@base_dir
def init(name: str, base_dir: str | None, *, overwrite: bool, services: bool) -> None:
    """Create a project in the folder NAME (default: the working directory).

    Writes conf/pipelines.yml, conf/scheduler.yml, conf/tracker.yml, conf/mqtt.yml, each with
    comments that explain it, and an empty pipelines/. --services, which an existing project
    takes, too, writes a docker-compose.yml with the data stores and event brokers that
    conf/scheduler.yml shows.
    """
    from fp_async import api

    folder = Path(base_dir or ".") / name
    if services and not overwrite and (folder / "conf" / "pipelines.yml").exists():
        _write_services(folder, overwrite=False)
        return
    created = api.init(folder, overwrite=overwrite)
    click.echo(f"created project {created.root}")
    if services:
        _write_services(created.root, overwrite=overwrite)
    step = "" if created.root == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    click.echo(f"next: {step}flowerpower new my_flow && flowerpower run my_flow")


def _write_services(folder: Path, *, overwrite: bool) -> None:
    text = (files("fp_async") / "templates" / _SERVICES).read_bytes()
    path = folder / _SERVICES
    try:
        with path.open("wb" if overwrite else "xb") as file:
            file.write(text)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{path} exists already; --overwrite replaces it") from error
    except OSError as error:
        raise FileAccessError(f"cannot write {path}: {error.strerror or error}") from error
    click.echo(f"created {path}; start what you need: docker compose up postgres redis -d")


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
