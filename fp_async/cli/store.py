"""`store`: what the data store holds, and cleaning it up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from fp_async.cli import base_dir
from fp_async.cli.following import output_option
from fp_async.cli.loop import run_until_signalled
from fp_async.cli.saying import echo
from fp_async.errors import UsageError

if TYPE_CHECKING:
    from fp_async.backend import Where
    from fp_async.store_copy import Copied
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
            echo(f"{name.replace('_', ' ').ljust(width)}  {_text(name, value)}")

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
        base_dir, main, lambda count: echo(f"{count} job{'' if count == 1 else 's'} removed")
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
        echo("done" if sizes[0] is None else f"bytes  {before} -> {after}")

    _with_store(base_dir, main, show)


@store.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@output_option
def copy(source: str, target: str, output: str) -> None:
    """Copy all that the data store FROM holds into the data store TO.

    \b
      flowerpower store copy . postgresql://me:secret@host/flowerpower
      flowerpower store copy sqlite:///flowerpower.db mongodb://host/flowerpower

    Each is a URI, or the folder of a project. Jobs with their results and logs, schedules, agents,
    dead letters and parts of results are copied; what TO has already stays as it is. Stop workers,
    schedulers and gateways of both first. Cut off, it is done again, and does the rest. Exits with
    1 if there are jobs that TO cannot take, since an active job there bears the same key.
    """  # noqa: D301
    from fp_async.cli.output import echo_json

    def show(counts: dict[str, Copied]) -> None:
        if output == "json":
            echo_json(msgspec.to_builtins(counts))
        else:
            for kind, count in counts.items():
                there = f", {count.there:,} already there" if count.there else ""
                echo(f"{kind.ljust(9)} {count.copied:,} copied{there}")
        refused = counts["jobs"].refused
        if refused:
            echo(f"not copied: {', '.join(refused)}: active jobs there bear their keys", err=True)
            raise click.exceptions.Exit(1)

    run_until_signalled(_copy(_place(source), _place(target)), show)


def _place(text: str) -> Where:
    """The folder of a project, or the address of a URI."""
    from fp_async.backend import address
    from fp_async.project import find_root

    return address(text) if "://" in text else find_root(text)


async def _copy(source: Where, target: Where) -> dict[Any, Copied]:
    from fp_async import store_copy
    from fp_async.backend import connected, file_of

    file = file_of(source)
    if file is not None and not file.exists():  # to open it would make it
        raise UsageError(f"store copy: there is nothing to copy from: no file {file}")
    async with connected(source) as one, connected(target) as other:
        facts = [await backend.store.info() for backend in (one, other)]
        if not (one.store.shared and other.store.shared):
            raise UsageError("store copy: a store in memory belongs to its process")
        if len({(fact["type"], fact["place"]) for fact in facts}) == 1:
            raise UsageError("store copy: FROM and TO are the same store")
        return await store_copy.copy(one.store, other.store)


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
