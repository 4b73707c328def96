"""What a device's store says, read beside a running agent or without one: nothing is changed."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from edge_agent import control
from edge_agent.config import AgentSettings
from fp_async.errors import StoreError

Row = dict[str, Any]
_MEBIBYTE = 2**20
_COUNTS = "SELECT state, count(*) FROM jobs WHERE pruned = 0 GROUP BY state"
_JOBS = (
    'SELECT id, pipeline, state, reason, offer, schedule_id, "trigger", attempt, errors, '
    "crashes, created_at, started_at, ended_at, unreported FROM jobs WHERE pruned = 0 "
)


@contextlib.contextmanager
def opened(path: str) -> Iterator[sqlite3.Connection]:
    """The store, to be read. Raises StoreError where it cannot be."""
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)
    except sqlite3.Error as error:
        raise StoreError(f"store {path}: {error}") from error
    db.row_factory = sqlite3.Row
    try:
        yield db
    except sqlite3.Error as error:
        raise StoreError(f"store {path}: {error}") from error
    finally:
        db.close()


def status(settings: AgentSettings) -> Row:
    """How the agent is, by itself if it runs."""
    answer = control.ask(settings.store, "status")
    if answer is not None:
        return {"running": True, **answer}
    found: Row = {"running": False, "connected": False, "name": settings.name}
    if not Path(settings.store).exists():
        return {**found, "problem": f"it has never run here: no {settings.store}"}
    with opened(settings.store) as db:
        counts = dict(tuple(row) for row in db.execute(_COUNTS))
        untold = "SELECT count(*) FROM jobs WHERE unreported = 1 AND ended_at IS NOT NULL"
        facts = dict(tuple(row) for row in db.execute("SELECT name, value FROM facts"))
        return {
            **found,
            "jobs": counts,
            "untold": db.execute(untold).fetchone()[0],
            "store": facts.get("store"),
            "starts": int(facts.get("starts", 0)),
            "set_aside": facts.get("set aside"),
        }


def described(found: Row) -> Iterator[tuple[str, str]]:
    """Lines for a person: (label, value)."""
    yield "agent", str(found["name"])
    if not found["running"]:
        yield "state", "not running"
        for state, number in sorted(found.get("jobs", {}).items()):
            yield state, f"{number} jobs"
    else:
        yield "state", f"{found['status']}, pid {found['pid']}, since {_local(found['since'])}"
        yield (
            "broker",
            f"{found['broker']}: {'connected' if found['connected'] else 'no connection'}",
        )
        yield "gateway", "there" if found["gateway"] else "nobody hears us"
        yield "busy", f"{found['busy']} of {found['slots']} slots"
        yield "disk", f"{found['disk_free'] // _MEBIBYTE:,} MiB free"
    if "untold" in found:
        yield "untold", f"{found['untold']} outcomes wait for the center"
    for label in ("problem", "full", "set_aside"):
        if found.get(label):
            yield label.replace("_", " "), str(found[label])


def jobs(settings: AgentSettings, states: Sequence[str], limit: int) -> list[Row]:
    """The newest jobs, without inputs and results."""
    where = f"AND state IN ({', '.join('?' * len(states))}) " if states else ""
    if not Path(settings.store).exists():
        return []
    with opened(settings.store) as db:
        sql = f"{_JOBS}{where}ORDER BY seq DESC LIMIT ?"
        return [_job(row) for row in db.execute(sql, (*states, limit))]


def _job(row: sqlite3.Row) -> Row:
    found = dict(row)
    by = {"schedule": found.pop("schedule_id"), "trigger": found.pop("trigger")}
    offer = found.pop("offer")
    own = next((f"{kind} {name}" for kind, name in by.items() if name), "here")
    found["from"] = own if offer is None else f"center, attempt {offer}"
    found["told"] = not found.pop("unreported") and found["ended_at"] is not None
    return found


def job_line(row: Row) -> Row:
    """A job's line in a table."""
    took = (row["ended_at"] or 0) - (row["started_at"] or 0)
    return {
        "id": row["id"],
        "pipeline": row["pipeline"],
        "state": row["state"],
        "from": row["from"],
        "added": _local(row["created_at"]),
        "took": f"{took:.3f} s" if row["ended_at"] and row["started_at"] else "",
        "tries": row["attempt"],
        "told": "yes" if row["told"] else "",
    }


def _local(moment: float) -> str:
    return datetime.fromtimestamp(moment).isoformat(timespec="seconds")  # noqa: DTZ006


def as_json(value: Any) -> str:
    """For programs."""
    return json.dumps(value, indent=2)
