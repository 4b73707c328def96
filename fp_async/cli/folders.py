"""`init`, `new`, `add`, `delete`, `list`."""

from __future__ import annotations

import shlex
import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fp_async.cli import base_dir, completing
from fp_async.cli.saying import echo
from fp_async.errors import AlreadyExistsError, FileAccessError, MisconfiguredError, UsageError

if TYPE_CHECKING:
    from fp_async.project import Project

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
    echo(f"created project {created.root}")
    if services:
        _write_services(created.root, overwrite=overwrite)
    step = "" if created.root == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    echo(f"next: {step}flowerpower new my_flow && flowerpower run my_flow")


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
    echo(f"created {path}; start what you need: docker compose up postgres redis -d")


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

    project = Project(base_dir)
    before = _texts(project, name)
    path = project.new(name, overwrite=overwrite)
    entries = "its entries in conf/pipelines.yml"
    if before == _texts(project, name):
        echo(f"unchanged: {path} and {entries} are there already")
    else:
        echo(f"created {path}, with {entries}")
    echo(f"next: flowerpower run {name}")


def _texts(project: Project, name: str) -> list[bytes | None]:
    """Return what stands in the files that `new` writes; None for one that is not there."""
    paths = (f"pipelines/{name}.py", "conf/pipelines.yml")
    files = [project.root / path for path in paths]
    return [file.read_bytes() if file.is_file() else None for file in files]


@click.command()
@click.argument("name", shell_complete=completing.pipelines)
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
        echo(f"{'changed' if path.exists() else 'removed'} {path}")


@click.command("list")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@base_dir
def list_pipelines(base_dir: str | None, output: str) -> None:
    """List the pipelines, their environments and files."""
    from fp_async.cli.columns import Column, echo_columns
    from fp_async.cli.output import echo_json
    from fp_async.project import Project

    project = Project(base_dir)
    rows = [
        {
            "pipeline": name,
            "environments": _environments(project, name),
            "file": str(_file(project.root, name)),
        }
        for name in project.list()
    ]
    if output == "json":
        echo_json(rows)
    elif rows:
        columns = (Column("pipeline"), Column("environments", cut=16), Column("file", rank=1))
        echo_columns(rows, columns)
    else:
        echo("no pipelines yet; add one with: flowerpower new my_flow", err=True)


def _environments(project: Project, name: str) -> list[str]:
    """Those of a pipeline; a mistake of one hides no other pipeline."""
    from fp_async.config import DEFAULT_ENVIRONMENT

    pipelines = project.flows.pipelines
    try:
        return pipelines.environments(name) or [DEFAULT_ENVIRONMENT]
    except MisconfiguredError as error:
        echo(f"warning: {error}", err=True)
        return []


def _file(root: Path, name: str) -> Path:
    module = root / "pipelines" / f"{name}.py"
    return (module if module.exists() else module.with_suffix("")).relative_to(root)
