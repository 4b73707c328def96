"""`check`."""

from __future__ import annotations

import click
import msgspec

from fp_async.cli import base_dir


@click.command()
@click.option("--schema", is_flag=True, help="Print JSON Schema of every conf/*.yml, for editors.")
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@base_dir
def check(base_dir: str | None, output: str, *, schema: bool, strict: bool) -> None:
    """Validate conf/*.yml, import every pipeline, and build and plan its DAG.

    Exits with 2 where a run would fail. Inputs that are missing (they may be given to `run`),
    configured inputs that no node reads, and parameters that do not fit their annotation are
    warnings.
    """
    from fp_async.cli.output import echo_json

    if schema:
        from fp_async import config

        echo_json(config.schema())
        return
    from fp_async.project import Project

    report = Project(base_dir).check()
    if output == "json":
        echo_json(msgspec.to_builtins(report))
    else:
        for problem in report.problems:
            color = "red" if problem.level == "error" else "yellow"
            level = click.style(f"{problem.level}:", fg=color, bold=True)
            text = problem.message
            where = "" if text.startswith(problem.where) else f" {problem.where}:"
            click.echo(f"{level}{where} {text}")
        counts = f"{len(report.errors)} errors, {len(report.warnings)} warnings"
        click.echo(f"checked {len(report.pipelines)} pipelines: {counts}")
    if report.errors or (strict and report.warnings):
        raise click.exceptions.Exit(2)
