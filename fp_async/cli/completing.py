"""What can stand at the cursor: names of this project, for the completion of shells.

Each function is a `shell_complete` of click's. Where a name cannot be found out, the shell offers
none: an error between two keys would be in the way of what is being typed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from fp_async.project import Project
    from fp_async.stores import Store

T = TypeVar("T")
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
_SECONDS = 3.0  # for a data store that is far away
_JOBS = 100


def _quiet(function: Complete) -> Complete:
    """Offer nothing where something goes wrong, and keep what a pipeline prints to itself."""

    @wraps(function)
    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from fp_async.cli.output import prints_aside

        _silence()
        try:
            with prints_aside():
                found = function(ctx, param, incomplete)
        except Exception:  # whatever it is: `flowerpower check` says it, a completion cannot
            return []
        return [item for item in found if item.value.startswith(incomplete)]

    return complete


def _silence() -> None:
    """Have nothing on stderr, where the shell would show it in the middle of a line."""
    if "_FLOWERPOWER_COMPLETE" in os.environ:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)


def _project(ctx: click.Context) -> Project:
    from fp_async.cli import enter
    from fp_async.project import Project

    project = Project(_given(ctx, "base_dir"))
    enter(project)
    return project


def _given(ctx: click.Context, name: str) -> Any:
    """Return what was given for a parameter, to this command or to the group that it is in."""
    place: click.Context | None = ctx
    while place is not None:
        if (value := place.params.get(name)) is not None:
            return value
        place = place.parent
    return None


def _items(names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(names)]


# Of the project's files -------------------------------------------------------------------------


@_quiet
def pipelines(ctx: click.Context, _: click.Parameter, __: str) -> list[CompletionItem]:
    """Offer the pipelines."""
    return _items(_project(ctx).list())


@_quiet
def environments(ctx: click.Context, _: click.Parameter, __: str) -> list[CompletionItem]:
    """Offer the environments of the pipeline that is named, or of all."""
    from fp_async.config import DEFAULT_ENVIRONMENT

    project = _project(ctx)
    name = _given(ctx, "name")
    known = project.flows.pipelines.environments
    found = {env for each in ([name] if name else project.list()) for env in known(each)}
    return _items(found | {DEFAULT_ENVIRONMENT})


@_quiet
def inputs(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the inputs of the pipeline that is named, after those that are there already."""
    if incomplete.startswith(("{", "@")):
        return []
    flow = _project(ctx).flow(_given(ctx, "name"), environment=_given(ctx, "environment") or "dev")
    return _after_commas(incomplete, [f"{name}=" for name in flow.graph.inputs])


@_quiet
def final_vars(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the nodes of the pipeline that is named."""
    flow = _project(ctx).flow(_given(ctx, "name"), environment=_given(ctx, "environment") or "dev")
    return _after_commas(incomplete, flow.graph.nodes)


@_quiet
def zones(_: click.Context, __: click.Parameter, ___: str) -> list[CompletionItem]:
    """Offer the time zones."""
    from zoneinfo import available_timezones

    return _items(available_timezones())


@_quiet
def states(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the states of jobs."""
    from fp_async.lifecycle import STATES

    return _after_commas(incomplete, STATES)


def _after_commas(incomplete: str, names: Iterable[str]) -> list[CompletionItem]:
    """Offer names for the last part of a list, but for those that it has already."""
    before, comma, _ = incomplete.rpartition(",")
    there = {part.partition("=")[0] for part in before.split(",")}
    left = (name for name in names if name.rstrip("=") not in there)
    return _items(f"{before}{comma}{name}" for name in left)


# Of the data store ------------------------------------------------------------------------------


@_quiet
def jobs(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the ids of the newest jobs, for a command that ends them those that it can end."""
    from fp_async.cli.shown import roughly
    from fp_async.jobs import Find
    from fp_async.lifecycle import STATES, TERMINAL

    active = tuple(state for state in STATES if state not in TERMINAL)
    fitting = {"cancel": active, "retry": tuple(TERMINAL)}.get(ctx.info_name or "", ())
    there = _given(ctx, "ids") or ()
    found = _of_store(ctx, lambda store: store.find(Find(states=fitting, limit=_JOBS)))
    return [
        CompletionItem(job.id, help=f"{job.pipeline} {job.state} {roughly(job.created_at)}")
        for job in found or ()
        if job.id.startswith(incomplete) and job.id not in there
    ]


@_quiet
def groups(ctx: click.Context, _: click.Parameter, __: str) -> list[CompletionItem]:
    """Offer the ids of the groups of the newest jobs."""
    from fp_async.jobs import Find

    found = _of_store(ctx, lambda store: store.find(Find(limit=_JOBS)))
    return _items({job.group_id for job in found or () if job.group_id is not None})


@_quiet
def schedules(ctx: click.Context, _: click.Parameter, __: str) -> list[CompletionItem]:
    """Offer the ids of the schedules."""
    from fp_async.cli.shown import words

    found = _of_store(ctx, lambda store: store.schedules())
    return [CompletionItem(row.id, help=f"{row.pipeline} {words(row)}") for row in found or ()]


def _of_store(ctx: click.Context, read: Callable[[Store], Awaitable[T]]) -> T | None:
    """Return what the data store says; None where there is none yet, which stays so."""
    from fp_async import config_files, stores
    from fp_async.backend import connected
    from fp_async.config import DataStore
    from fp_async.project import find_root

    root = find_root(_given(ctx, "base_dir"))
    settings = config_files.section(root, "scheduler.yml", "data_store", DataStore) or DataStore()
    kind, uri = stores.backend(settings)
    path = stores.sqlite_path(uri, root) if kind == "sqlite" else None
    if kind == "memory" or (path is not None and not path.exists()):
        return None

    async def asked() -> T:
        async with asyncio.timeout(_SECONDS), connected(root) as backend:
            return await read(backend.store)

    return asyncio.run(asked())
