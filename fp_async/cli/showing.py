"""`show`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from fp_async.cli import base_dir, completing, entered, of_shell
from fp_async.cli.running import environment_option
from fp_async.cli.saying import echo
from fp_async.errors import FileAccessError, UsageError, suggestion


@click.command()
@click.argument("name", shell_complete=completing.pipelines)
@click.option(
    "--format",
    "form",
    default=None,
    help="tree (default), mermaid, dot, svg or png; a FILE's ending decides otherwise.",
)
@click.option("--file", "-o", type=click.Path(path_type=Path), help="Write to this file.")
@environment_option
@base_dir
def show(
    name: str, form: str | None, file: Path | None, environment: str, base_dir: str | None
) -> None:
    """Print the DAG of pipeline NAME as a tree, or draw it.

    \b
      flowerpower show my_flow
      flowerpower show my_flow --format mermaid
      flowerpower show my_flow -o my_flow.svg
    """  # noqa: D301
    ending = file.suffix if file else ""
    if form is None and ending and ending not in _ENDINGS:
        raise UsageError(f"-o {file}: unknown ending{suggestion(ending, _ENDINGS)}")
    target = Path(of_shell(str(file)))
    form = form or _ENDINGS.get(ending, "tree")
    picture = entered(base_dir).show(name, form, environment)
    if file is None and isinstance(picture, bytes):
        if sys.stdout.isatty():
            raise UsageError(f"{form} is not for a terminal; write it to a file: -o {name}.{form}")
        sys.stdout.buffer.write(picture)
    elif file is None:
        echo(_fitted(str(picture)) if form == "tree" else picture)
    else:
        _write(target, picture if isinstance(picture, bytes) else f"{picture}\n".encode())
        echo(f"wrote {file}", err=True)


def _fitted(text: str) -> str:
    """Lines cut at the terminal's width; whole in a pipe."""
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(x if len(x) <= width else f"{x[: width - 1]}…" for x in text.splitlines())


_ENDINGS = {".svg": "svg", ".png": "png", ".dot": "dot", ".mmd": "mermaid", ".txt": "tree"}


def _write(file: Path, data: bytes) -> None:
    try:
        file.write_bytes(data)
    except OSError as error:
        raise FileAccessError(f"cannot write {file}: {error.strerror or error}") from error
