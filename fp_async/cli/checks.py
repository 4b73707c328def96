"""`check`."""

from __future__ import annotations

import click
import msgspec

from fp_async.cli import base_dir, entered
from fp_async.cli.saying import echo, style


@click.command()
@click.option("--schema", is_flag=True, help="Write JSON Schema of every conf/*.yml, for editors.")
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@base_dir
def check(base_dir: str | None, output: str, *, schema: bool, strict: bool) -> None:
    """Validate conf/*.yml, import every pipeline, and build and plan its DAG.

    Exits with 2 where a run would fail. Inputs that are missing (they may be given to `run`),
    configured inputs that no node reads, and parameters that do not fit their annotation are
    warnings.

    --schema writes one JSON Schema for each file into conf/.schema/, where the first line of the
    files that `init` writes has editors look for it; with --output json it prints them all.
    """
    from fp_async.cli.output import echo_json

    if schema:
        _schema(base_dir, output)
        return
    from fp_async import config_files

    config_files.own_process(lambda _: None)  # which is among what it finds
    report = entered(base_dir).check()
    if output == "json":
        echo_json(msgspec.to_builtins(report))
    else:
        for problem in report.problems:
            color = "red" if problem.level == "error" else "yellow"
            level = style(f"{problem.level}:", fg=color, bold=True)
            echo(f"{level} {told(problem.where, problem.message)}")
        counts = f"{len(report.errors)} errors, {len(report.warnings)} warnings"
        echo(f"checked {len(report.pipelines)} pipelines: {counts}")
    if report.errors or (strict and report.warnings):
        raise click.exceptions.Exit(2)


def _schema(base_dir: str | None, output: str) -> None:
    from fp_async import scaffold, schemas
    from fp_async.cli.output import echo_json
    from fp_async.project import find_root

    if output == "json":
        echo_json(schemas.schemas())
        return
    root = find_root(base_dir)
    for path in scaffold.write_schemas(root):
        echo(f"wrote {path.relative_to(root)}")
    for name in schemas.schemas():
        path = root / "conf" / name
        line = f"# yaml-language-server: $schema=.schema/{path.stem}.json"
        if path.exists() and "$schema=" not in path.read_text(encoding="utf-8", errors="replace"):
            echo(f"for editors, put above conf/{name}:  {line}")


def told(where: str, message: str) -> str:
    """A finding with its place, which is not said twice where the message begins with it."""
    return message if message.startswith(where.partition(":")[0]) else f"{where}: {message}"
