"""The `schedule:` entries of conf/pipelines.yml as the rows that they mean."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from fp_async import orders
from fp_async.config import ScheduleEntry
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
    """(place in conf/pipelines.yml, what makes the row of it) for each `schedule:` entry."""
    flows.refresh()
    rows: list[tuple[str, Callable[[], Schedule]]] = []
    for name, environments in (flows.configuration.run or {}).items():
        for environment, settings in (environments or {}).items():
            found = settings.schedule if settings is not None else None
            entries = found if isinstance(found, list) else [found] if found else []
            for number, entry in enumerate(entries):
                id = entry.id or f"{name}.{environment}" + (f".{number + 1}" if number else "")
                where = f"run.{name}.{environment}.schedule"
                where += f"[{number}]" if isinstance(found, list) else ""
                rows.append((where, partial(_from_entry, flows, name, environment, id, entry, now)))
    return rows


def _from_entry(
    flows: Flows, name: str, environment: str, id: str, entry: ScheduleEntry, now: float
) -> Schedule:
    given = msgspec.to_builtins(entry)
    kind, params, crontab = (given.pop(key) for key in ("type", "params", "crontab"))
    if crontab is not None:
        params = {**params, "crontab": crontab}
    options = {**given, **params, "id": id, "environment": environment}
    return orders.schedule(flows, name, kind, (), options, now, origin=orders.FROM_CONF)
