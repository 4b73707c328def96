"""The `schedule:` entries of conf/pipelines.yml as the rows that they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from fp_async import config as configs
from fp_async import orders
from fp_async.config import ScheduleEntry
from fp_async.documents import KeyPath
from fp_async.errors import ConfigError
from fp_async.flows import Flows
from fp_async.jobs import Schedule


def configured(flows: Flows, now: float) -> list[Schedule]:
    """The rows of the `schedule:` entries in conf/pipelines.yml. Raises ConfigError."""
    rows = []
    for where, make in entries_of(flows, now):
        try:
            rows.append(make())
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"conf/pipelines.yml: {where}: {error}") from error
    return rows


def entries_of(flows: Flows, now: float) -> list[tuple[str, Callable[[], Schedule]]]:
    """(place in conf/pipelines.yml, what makes the row of it) for each `schedule:` entry.

    Of two with the same id the second raises ConfigError when its row is made.
    """
    flows.refresh()
    rows: list[tuple[str, Callable[[], Schedule]]] = []
    places: dict[str, str] = {}
    for path, id, entry in _entries(flows):
        where = _written(path)
        make = partial(_from_entry, flows, str(path[1]), str(path[2]), id, entry, now)
        if id in places:
            make = partial(_refuse, flows, path, id, places[id])
        rows.append((where, make))
        places.setdefault(id, where)
    return rows


def _entries(flows: Flows) -> Iterator[tuple[KeyPath, str, ScheduleEntry]]:
    """(key path, id, entry), in the order of the file."""
    for name, environments in (flows.configuration.run or {}).items():
        for environment, settings in (environments or {}).items():
            found = settings.schedule if settings is not None else None
            path: KeyPath = ("run", name, environment, "schedule")
            for number, entry in enumerate(found if isinstance(found, list) else [found]):
                if entry is not None:
                    id = entry.id or f"{name}.{environment}" + (f".{number + 1}" if number else "")
                    yield ((*path, number) if isinstance(found, list) else path), id, entry


def _written(path: KeyPath) -> str:
    """A key path as messages have it: run.flow.dev.schedule[1]."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]


def _refuse(flows: Flows, path: KeyPath, id: str, other: str) -> Schedule:
    text = f"a schedule of pipeline '{path[1]}' has the id '{id}', as {other} has; each has its own"
    raise configs.mistake(flows.root, "pipelines.yml", (*path, "id"), text)


def _from_entry(
    flows: Flows, name: str, environment: str, id: str, entry: ScheduleEntry, now: float
) -> Schedule:
    given = msgspec.to_builtins(entry)
    kind, params, crontab = (given.pop(key) for key in ("type", "params", "crontab"))
    if crontab is not None:
        params = {**params, "crontab": crontab}
    options = {**given, **params, "id": id, "environment": environment}
    return orders.schedule(flows, name, kind, (), options, now, origin=orders.FROM_CONF)
