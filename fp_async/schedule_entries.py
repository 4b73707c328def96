"""The `schedule:` entries of conf/pipelines.yml as the rows that they mean."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import msgspec

from fp_async import orders
from fp_async.config import ScheduleEntry
from fp_async.errors import FlowerPowerError, MisconfiguredError
from fp_async.flows import Flows
from fp_async.jobs import Schedule
from fp_async.values.mismatch import KeyPath


class Entry(NamedTuple):
    """A `schedule:` entry: where it stands, its id, and what makes the row of it."""

    where: str
    id: str
    make: Callable[[], Schedule]


def entries_of(flows: Flows, now: float) -> list[Entry]:
    """The `schedule:` entries, none of which is read before its row is made.

    Of two with the same id the second raises MisconfiguredError when its row is made. Raises that,
    too, where conf/pipelines.yml cannot be read.
    """
    flows.refresh()
    entries: list[Entry] = []
    places: dict[str, str] = {}
    for path, read in flows.pipelines.schedules():
        where, id = _written(path), _id(flows, path)
        make = partial(_from_entry, flows, path, read, id, now)
        if id in places:
            make = partial(_refuse, flows, path, id, places[id])
        entries.append(Entry(where, id, make))
        places.setdefault(id, where)
    return entries


def made(flows: Flows, now: float) -> tuple[list[Schedule], dict[str, FlowerPowerError]]:
    """(the rows of the entries that are right, what is wrong with the others by their ids).

    Raises MisconfiguredError where conf/pipelines.yml cannot be read.
    """
    rows: list[Schedule] = []
    wrong: dict[str, FlowerPowerError] = {}
    for entry in entries_of(flows, now):
        try:
            rows.append(entry.make())
        except FlowerPowerError as error:
            wrong[entry.id] = error
    return rows, wrong


def _id(flows: Flows, path: KeyPath) -> str:
    """The id of an entry, as far as it can be told while nothing else of it is read."""
    entry = flows.pipelines.raw(path)
    given = entry.get("id") if isinstance(entry, dict) else None
    if isinstance(given, str) and given:
        return str(given)
    number = path[4] if len(path) > 4 else 0
    return f"{path[1]}.{path[2]}" + (f".{int(number) + 1}" if number else "")


def _written(path: KeyPath) -> str:
    """A key path as messages have it: run.flow.dev.schedule[1]."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]


def _refuse(flows: Flows, path: KeyPath, id: str, other: str) -> Schedule:
    text = f"a schedule of pipeline '{path[1]}' has the id '{id}', as {other} has; each has its own"
    raise flows.pipelines.error((*path, "id"), text)


def _from_entry(
    flows: Flows, path: KeyPath, read: Callable[[], ScheduleEntry], id: str, now: float
) -> Schedule:
    entry = read()
    given = msgspec.structs.asdict(entry)
    params = dict(given.pop("params"))
    del given["type"]
    if (crontab := given.pop("crontab")) is not None:
        params["crontab"] = crontab
    options = {**given, **params, "id": entry.id or id, "environment": path[2]}
    try:
        return orders.schedule(
            flows, str(path[1]), entry.type, (), options, now, origin=orders.FROM_CONF
        )
    except MisconfiguredError:
        raise
    except Exception as error:
        raise MisconfiguredError(f"conf/pipelines.yml: {_written(path)}: {error}") from error
