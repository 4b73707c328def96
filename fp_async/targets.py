"""Where a job is to run, as a user says it: `on=`, and the rules that are about agents."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, get_args

import msgspec

from fp_async import jobs, messages
from fp_async.config import FOREVER
from fp_async.errors import UnknownNameError, UsageError
from fp_async.jobs import Job, Template
from fp_async.topics import checked_name, is_term

LONGEST = 191  # characters of a key, queue, target or schedule id: what every store can index
_KINDS = ("agent", "any", "all")
SPEC_LIMIT = 65_536  # bytes, encoded
INPUT_LIMITS = {True: None, False: messages.INPUT_BYTES}  # of inputs, by whether it runs here
_RULES = ("on_lost", "lost_after", "require_version")


def targeted(given: Mapping[str, Any]) -> str:
    """A target as it was given. Raises UsageError."""
    on = given["on"]
    kind, colon, rest = on.partition(":") if isinstance(on, str) else ("", "", "")
    if not _is_target(kind, rest) or len(on) > LONGEST or not on.isprintable():
        hint = f"; did you mean 'agent:{on}'?" if isinstance(on, str) and not colon else ";"
        raise UsageError(
            f"on: {on!r} is no target{hint} valid: agent:NAME, any:tag=value, all:tag=value; "
            "any:* and all:* for every agent"
        )
    if kind == "agent":
        checked_name("on: agent", rest)
    if "queue" in given:
        raise UsageError("on and queue exclude each other: agents have no queues")
    return str(on)


def check_single(on: str) -> None:
    """Refuse a group where one message makes one job. Raises UsageError."""
    if on.startswith("all:"):
        raise UsageError(
            f"{on!r} would be a job for each agent, and a message makes one; name an agent, or "
            "any:tag=value"
        )


def checked_pattern(pattern: str) -> None:
    """What targets a message may name: `agent:*`, `any:gpu=*`. Raises UsageError."""
    kind, colon, _ = pattern.partition(":")
    known = any(fnmatch.fnmatchcase(each, kind) for each in ("agent", "any"))
    if not colon or not known or "==" in pattern:
        raise UsageError(f"{pattern!r} matches no target; valid: agent:NAME, any:tag=value, and *")


def _is_target(kind: str, rest: str) -> bool:
    """Return whether a target is well formed: each term of any: and all: has one tag and value."""
    if kind == "agent" or rest == "*":
        return kind in _KINDS and bool(rest)
    return kind in _KINDS and all(map(is_term, rest.split(",")))


def rules(given: Mapping[str, Any], version: str | None) -> dict[str, Any]:
    """Return the options of a `Spec` for agents; `version`: the pipeline's here, if it is here."""
    said = {option: given[option] for option in _RULES if option in given}
    if "on" not in given:
        for option in said:
            raise UsageError(f"{option} is about jobs on agents; say which: on='agent:NAME'")
        return {}
    if "on_lost" in said:
        one_of("on_lost", said["on_lost"], get_args(jobs.OnLost))
        if said["on_lost"] == "reassign" and not given["on"].startswith("any:"):
            raise UsageError("on_lost 'reassign' is for any: targets; this one has one agent only")
    if "lost_after" in said:
        said["lost_after"] = seconds("lost_after", said["lost_after"], least=0.0)
    return {**said, "version": version}


def fitting(template: Template) -> Template:
    """For agents a job goes in one message. Raises UsageError where it does not fit."""
    size = 0 if template.target is None else len(msgspec.json.encode(template.spec))
    if size > SPEC_LIMIT:
        raise UsageError(
            f"config and params too large: {size:,} bytes, limit {SPEC_LIMIT:,} for jobs on "
            "agents; write them into the configuration on the device"
        )
    return template


def spread(job: Job, agents: Sequence[str]) -> list[Job]:
    """A job for each agent of an `all:` target; `job.id` is the id of the group."""
    if not agents:
        raise UsageError(f"on: no agent is known that '{job.target}' means (flowerpower agents)")
    longest = max(map(len, agents)) + 1
    if job.key is not None and len(job.key) + longest > LONGEST:
        most = LONGEST - longest
        raise UsageError(f"key of an all: job: {most} characters at most, each agent's is added")
    return [
        msgspec.structs.replace(
            job,
            id=jobs.identity(job.id, name),
            target=f"agent:{name}",
            group_id=job.id,
            identity=True,
            key=None if job.key is None else f"{job.key}@{name}",
        )
        for name in agents
    ]


def one_of(what: str, value: Any, valid: Sequence[str]) -> Any:
    if value not in valid:
        raise UnknownNameError(what, str(value), valid)
    return value


def seconds(what: str, value: Any, *, least: float) -> float:
    """A number of seconds, or a timedelta, as a float. Raises UsageError."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    valid = isinstance(number, int | float) and not isinstance(number, bool)
    if not valid or not least <= number < FOREVER:
        raise UsageError(f"{what} is a number of seconds or a timedelta, not {value!r}")
    return float(number)


def moment(value: Any, what: str = "run_at") -> float:
    """A datetime (naive ones are local time), ISO text or epoch seconds, as epoch seconds."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise UsageError(f"{what}: {error}; write 2027-01-31T08:00:00+01:00") from error
    if isinstance(value, datetime):
        return _epoch(value, what)
    return seconds(what, value, least=0.0)


def _epoch(at: datetime, what: str) -> float:
    """Where it is a date in every zone, and not only in its own."""
    with suppress(OverflowError, ValueError):
        if 0.0 <= (epoch := at.timestamp()) < FOREVER:
            return epoch
    raise UsageError(f"{what} is a time of the years 1970 to 5138, not {at.isoformat()}")
