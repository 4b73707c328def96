"""What a device's store says, read beside a running agent or without one: nothing is changed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from edge_agent import control
from edge_agent.config import AgentSettings
from fp_async.errors import StoreError, UnknownNameError, headline
from fp_async.lifecycle import STATES

Row = dict[str, Any]
_MEBIBYTE = 2**20
_COUNTS = "SELECT state, count(*) FROM jobs WHERE pruned = 0 GROUP BY state"
_UNTOLD = "SELECT count(*) FROM jobs WHERE unreported = 1 AND ended_at IS NOT NULL"
LETTERS = "SELECT count(*) FROM letters"
_JOBS = (
    'SELECT id, pipeline, state, reason, offer, schedule_id, "trigger", attempt, errors, '
    "crashes, created_at, started_at, ended_at, unreported FROM jobs WHERE pruned = 0 "
)


@contextlib.contextmanager
def opened(path: str) -> Iterator[sqlite3.Connection]:
    """The store, to be read. Raises StoreError where it cannot be.

    Without a write-ahead log nobody has it open, and only an immutable file is read without
    making one.
    """
    mode = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
    place = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    try:
        db = sqlite3.connect(f"file:{place}?{mode}", uri=True, timeout=5.0)
        db.row_factory = sqlite3.Row
        with contextlib.closing(db):
            yield db
    except sqlite3.Error as error:
        raise StoreError(f"cannot read the store {path}: {error}") from error


def is_held(store: str) -> bool:
    """Whether a process has the lock of a store."""
    try:
        with Path(f"{store}.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


# Status -----------------------------------------------------------------------------------------


def status(settings: AgentSettings) -> Row:
    """How the agent is, by itself if it runs."""
    answer = control.ask(settings.store, "status")
    if answer is not None and "error" not in answer:
        return {"running": True, **answer}
    found: Row = {"running": is_held(settings.store), "connected": False, "name": settings.name}
    if not Path(settings.store).exists():
        return {**found, "problem": f"it has never run here: no {settings.store}"}
    with opened(settings.store) as db:
        counts = dict(map(tuple, db.execute(_COUNTS)))
        facts = dict(map(tuple, db.execute("SELECT name, value FROM facts")))
        untold = db.execute(_UNTOLD).fetchone()[0]
        buried = db.execute(LETTERS).fetchone()[0]
    found |= {"jobs": counts, "untold": untold, "letters": buried, **_known(settings.store, facts)}
    if found["running"]:
        found["problem"] = (answer or {}).get("error") or "it does not listen on its local socket"
    return found


def _known(store: str, facts: Mapping[str, str]) -> Row:
    """What the facts in a store say of the last time that an agent ran on it."""
    last = json.loads(facts.get("problem") or "{}")
    ended = facts.get("ended")
    return {
        "store": facts.get("store"),
        "starts": int(facts.get("starts", 0)),
        "began": float(facts["began"]) if facts.get("began") else None,
        "since": float(ended) if ended else _last_write(store),
        "clean": bool(ended),
        "problem": last.get("text"),
        "problem_since": last.get("since"),
        "problem_over": last.get("over"),
        "set_aside": facts.get("set aside"),
    }


def _last_write(store: str) -> float:
    paths = (Path(store), Path(f"{store}-wal"))
    return max(path.stat().st_mtime for path in paths if path.exists())


def is_linked(found: Row) -> bool:
    """Return whether each connection of the agent to a broker is there."""
    near = found.get("triggers")
    return bool(found["connected"] and (near is None or near["connected"]))


Line = tuple[str, str, str | None]  # label, value, color


def described(found: Row) -> Iterator[Line]:
    """Lines for a person."""
    yield "agent", str(found["name"]), None
    if "pid" in found:
        yield from _running(found)
    elif found["running"]:
        yield "state", "running", "yellow"
    elif "since" in found:
        how = "stopped" if found["clean"] else "it was killed, or has crashed; last heard of"
        yield "state", f"not running; {how} {_local(found['since'])}", "red"
    else:
        yield "state", "not running", "red"
    yield from _counted(found)
    yield from _wrong(found)


def _running(found: Row) -> Iterator[Line]:
    color = "green" if found["status"] == "ready" else "yellow"
    since = _local(found["since"])
    yield "state", f"{found['status']}, pid {found['pid']}, since {since}", color
    there = found["connected"]
    text = f"{found['broker']}: {'connected' if there else 'no connection'}"
    yield "broker", text, "green" if there else "red"
    if near := found.get("triggers"):
        text = f"{near['broker']}: {'connected' if near['connected'] else 'no connection'}"
        yield "triggers", text, "green" if near["connected"] else "red"
    heard = found["gateway"]
    yield "gateway", "there" if heard else "nobody hears us", "green" if heard else "yellow"
    yield "busy", f"{found['busy']} of {found['slots']} slots", None
    yield "disk", f"{found['disk_free'] // _MEBIBYTE:,} MiB free", None


def _counted(found: Row) -> Iterator[Line]:
    jobs = found.get("jobs")
    if jobs is not None:
        counts = [f"{jobs[state]} {state}" for state in STATES if jobs.get(state)]
        yield "jobs", ", ".join(counts) or "none", None
    if "untold" in found:
        yield "untold", f"{found['untold']} outcomes wait for the center", None


def _wrong(found: Row) -> Iterator[Line]:
    if problem := found.get("problem"):
        since, over = found.get("problem_since"), found.get("problem_over")
        when = f" (since {_local(since)})" if since else ""
        when = f" ({_local(since)} to {_local(over)})" if since and over else when
        yield "last problem" if over else "problem", f"{problem}{when}", None if over else "red"
    if number := found.get("letters"):
        yield "letters", f"{number} messages made no job: fp-agent letters", "yellow"
    for what, number in (found.get("skipped") or {}).items():
        yield "skipped", f"{number} of {what}", "yellow"
    if aside := found.get("set_aside"):
        yield "set aside", str(aside), "yellow"


# Jobs -------------------------------------------------------------------------------------------


def jobs(settings: AgentSettings, states: Sequence[str], limit: int) -> list[Row]:
    """The newest jobs, without inputs and results. Raises UnknownNameError for a state."""
    for state in states:
        if state not in STATES:
            raise UnknownNameError("state", state, STATES)
    where = f"AND state IN ({', '.join('?' * len(states))}) " if states else ""
    if not Path(settings.store).exists():
        return []
    with opened(settings.store) as db:
        sql = f"{_JOBS}{where}ORDER BY seq DESC LIMIT ?"
        return [_job(row) for row in db.execute(sql, (*states, limit))]


def _job(row: sqlite3.Row) -> Row:
    found = dict(row)
    by = {"schedule": found.pop("schedule_id"), "trigger": found.pop("trigger")}
    offer, untold = found.pop("offer"), found.pop("unreported")
    own = next((f"{kind} {name}" for kind, name in by.items() if name), "here")
    found["from"] = own if offer is None else f"center, attempt {offer}"
    found["tries"] = found.pop("attempt")
    began, ended = found["started_at"], found["ended_at"]
    running = found["state"] == "running"
    until = ended or (time.time() if running else None)
    found["took"] = round(until - began, 3) if began and until else None
    found["acknowledged"] = ended is not None and not untold
    return found


def letters(settings: AgentSettings, limit: int) -> list[Row]:
    """The newest messages that made no job; of a large one only the beginning is kept."""
    if not Path(settings.store).exists():
        return []
    sql = "SELECT at, topic, reason, payload FROM letters ORDER BY at DESC, rowid DESC LIMIT ?"
    with opened(settings.store) as db:
        return [_letter(row) for row in db.execute(sql, (limit,))]


def _letter(row: sqlite3.Row) -> Row:
    found = dict(row)
    found["payload"] = found["payload"].decode(errors="replace")
    return found


def letter_line(row: Row) -> Row:
    """A letter's line in a table."""
    return {**row, "at": _local(row["at"])}


def job_line(row: Row) -> Row:
    """A job's line in a table."""
    told = "yes" if row["acknowledged"] else "not yet" if row["ended_at"] else ""
    return {
        "id": row["id"],
        "pipeline": row["pipeline"],
        "state": row["state"],
        "from": row["from"],
        "added": _local(row["created_at"]),
        "took": "" if row["took"] is None else f"{row['took']:.3f} s",
        "tries": row["tries"],
        "acknowledged": told,
        "why": headline(row["reason"] or ""),
    }


def _local(moment: float) -> str:
    return datetime.fromtimestamp(moment).isoformat(" ", timespec="seconds")  # noqa: DTZ006
