"""`device-files`: what one device of the fleet needs, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fp_async.cli import base_dir
from fp_async.cli.saying import echo
from fp_async.errors import FileAccessError, UsageError

if TYPE_CHECKING:
    from fp_async.device_files import Done, Wanted

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("device-files")
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--agent", metavar="NAME", help="The device's agent.")
@click.option("--pipelines", metavar="A,B", help="Default: those of its agent.yml, else all.")
@click.option("--include", multiple=True, metavar="PATH", help="More of the project; repeat.")
@click.option("--keys", type=_FOLDER, metavar="DIR", help="Default: broker/agents/NAME.")
@click.option("--overwrite", is_flag=True, help="Replace agent.yml and keys that were changed.")
@click.option("--back", is_flag=True, help="Put the version before into use again.")
@base_dir
def device_files(
    folder: Path,
    agent: str | None,
    pipelines: str | None,
    include: tuple[str, ...],
    keys: Path | None,
    base_dir: str | None,
    *,
    overwrite: bool,
    back: bool,
) -> None:
    """Write the files of one device into DIR, or bring them up to date.

    Its pipelines, their part of conf/pipelines.yml, its agent.yml and keys. A new version takes the
    place of the one before by one rename: no job sees half of it, and --back returns to it. What
    else is in DIR stays.
    """
    from fp_async import device_files as files
    from fp_async.project import Project

    if back and (agent or pipelines or include or keys or overwrite):
        raise UsageError("--back goes alone")
    if not back and not agent:
        raise UsageError("say for which device: --agent NAME")
    try:
        if back:
            echo(f"{folder / 'project'}: version {files.back(folder)} is in use again")
            return
        root = Project(base_dir).root
        wanted = _wanted(root, str(agent), pipelines, include, keys)
        _tell(folder, wanted, files.write(root, folder, wanted, overwrite=overwrite))
    except OSError as error:
        raise FileAccessError(f"{error.filename or folder}: {error.strerror}") from error


def _wanted(
    root: Path, agent: str, pipelines: str | None, include: tuple[str, ...], keys: Path | None
) -> Wanted:
    from fp_async import device_files as files
    from fp_async import versions
    from fp_async.topics import checked_name

    checked_name("agent", agent)
    if keys is None:
        keys = files.keys_of(root, agent)
    elif not (keys / "agent.yml").is_file():
        raise UsageError(f"--keys {keys}: there is no agent.yml in it")
    names = [each.strip() for each in pipelines.split(",")] if pipelines else files.allowed(keys)
    return files.Wanted(agent, versions.names(root) if names is None else names, [*include], keys)


def _tell(folder: Path, wanted: Wanted, done: Done) -> None:
    for name in done.files:
        echo(f"{folder / name}")
    for name, why in done.left_out.items():
        echo(f"left out: {name} ({why})")
    how = "in use" if done.changed else "in use already"
    echo(f"{folder / 'project'}: version {done.version} is {how}")
    for name in done.kept:
        echo(
            f"{folder / name} was changed by hand and is left as it is; --overwrite replaces it",
            err=True,
        )
    if wanted.keys is None:
        text = (
            f"no agent.yml: there is no broker/agents/{wanted.agent}/ (flowerpower broker-config)"
        )
        echo(text, err=True)
    if done.variables:
        names = ", ".join(done.variables)
        echo(f"its configuration needs, in {folder / 'project' / '.env'}: {names}", err=True)
