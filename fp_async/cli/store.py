"""`store`: what the data store holds, and cleaning it up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fp_async.cli import base_dir
from fp_async.cli.following import output_option
from fp_async.cli.loop import run_until_signalled

if TYPE_CHECKING:
    from fp_async.stores import Store

T = TypeVar("T")


@click.group()
def store() -> None:
    """Look at the data store of conf/scheduler.yml, or clean it up."""


@store.command()
@output_option
@base_dir
def info(output: str, base_dir: str | None) -> None:
    """Show its type, place, schema version, size and rows."""
    from fp_async.cli.output import echo_json

    def show(facts: dict[str, Any]) -> None:
        if output == "json":
            echo_json(facts)
            return
        width = max(map(len, facts))
        for name, value in facts.items():
            click.echo(f"{name.replace('_', ' ').ljust(width)}  {_text(name, value)}")

    _with_store(base_dir, lambda store: store.info(), show)


def _text(name: str, value: Any) -> str:
    if "bytes" not in name or not isinstance(value, int):
        return str(value)
    return f"{value:,} ({value / 2**20:.1f} MiB)" if value >= 2**20 else f"{value:,}"


@store.command()
@base_dir
def prune(base_dir: str | None) -> None:
    """Remove ended jobs that are older than their result_ttl, all at once.

    Workers do so, too, a few every minute.
    """

    async def main(store: Store) -> int:
        total = 0
        while count := await store.prune():
            total += count
        return total

    _with_store(
        base_dir, main, lambda count: click.echo(f"{count} job{'' if count == 1 else 's'} removed")
    )


@store.command()
@base_dir
def vacuum(base_dir: str | None) -> None:
    """Give unused space back to the system, where the store knows how."""

    async def main(store: Store) -> tuple[Any, Any]:
        before = (await store.info()).get("bytes")
        await store.vacuum()
        return before, (await store.info()).get("bytes")

    def show(sizes: tuple[Any, Any]) -> None:
        before, after = (_text("bytes", size) for size in sizes)
        click.echo("done" if sizes[0] is None else f"bytes  {before} -> {after}")

    _with_store(base_dir, main, show)


def _with_store(
    base_dir: str | None, main: Callable[[Store], Awaitable[T]], finish: Callable[[T], None]
) -> None:
    from fp_async.backend import connected
    from fp_async.project import find_root

    root = find_root(base_dir)

    async def run() -> T:
        async with connected(root) as backend:
            return await main(backend.store)

    run_until_signalled(run(), finish)
