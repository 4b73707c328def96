"""Triggers: plain data from which the fire times of a schedule are computed.

A `Spec` is a frozen Struct, kept as JSON in the schedule's row (`encode`, `decode`). Its nominal
times (`trigger_times.py`) are a fixed grid: they depend neither on when somebody asks, nor on
jitter. All times are epoch seconds (UTC). Time zones are stored by name when a spec is made, so
that moving the machine does not move the schedule.

Jitter belongs to the fire, not to the grid; a spec only carries it. Whoever fires a nominal time
adds `jitter(identity, nominal, max_jitter(policy, spec))` to it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, time, tzinfo
from hashlib import blake2b
from itertools import combinations
from time import time as clock
from typing import Any, Literal

import msgspec

from fp_async import crontab
from fp_async.config import Count
from fp_async.crontab import zone
from fp_async.errors import TriggerError, suggestion
from fp_async.trigger_times import (
    CRON_FIELDS,
    And,
    CalendarInterval,
    Cron,
    Crontab,
    Date,
    Interval,
    Or,
    Seconds,
    Spec,
    Trigger,
    compiled,
    date_words,
    duration,
    fire_times,
    first_fire,
    following,
    just_before,
    next_fire,
    outside_calendar,
)
from fp_async.values import mismatch

__all__ = [
    "And",
    "CalendarInterval",
    "Cron",
    "Crontab",
    "Date",
    "Decision",
    "Interval",
    "Or",
    "Policy",
    "Spec",
    "decide",
    "decode",
    "describe",
    "encode",
    "fire_times",
    "first_fire",
    "jitter",
    "max_jitter",
    "next_fire",
    "parse",
]

_UNITS = {"weeks": 604800, "days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
_COUNTED = 100  # skipped times beyond it are not counted one by one


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of missed times. By default any number of them is one run, at once.

    Times more than `misfire_grace_time` seconds ago are dropped (None: never). Of the others the
    earliest, the latest or, at most the latest `max_catch_up`, all are fired.
    """

    misfire_grace_time: Seconds | None = None
    coalesce: Literal["earliest", "latest", "all"] = "latest"
    max_catch_up: Count = 100
    max_jitter: Seconds = 0


class Decision(msgspec.Struct, frozen=True):
    """Nominal times to fire now, oldest first; how many are not fired; the next one.

    Where not `exact`, `skipped` is a lower bound.
    """

    fires: tuple[float, ...]
    skipped: int
    next: float | None
    exact: bool = True


def decide(policy: Policy, spec: Spec, nominal: float, now: float) -> Decision:
    """What a schedule whose next nominal time is `nominal` has to do at `now`."""
    if nominal > now:
        return Decision((), 0, nominal)
    fires = _chosen(policy, spec, nominal, now)
    count, exact = _count(spec, nominal, now, len(fires) + _COUNTED)
    return Decision(fires, count - len(fires), following(spec, now), exact)


def _chosen(policy: Policy, spec: Spec, nominal: float, now: float) -> tuple[float, ...]:
    grace = policy.misfire_grace_time
    late = grace is not None and nominal < now - grace
    first = first_fire(spec, now - grace) if grace is not None and late else nominal
    if first is None or first > now:
        return ()
    if policy.coalesce == "earliest":
        return (first,)
    if policy.coalesce == "latest":
        return (_latest(spec, first, now),)
    return _newest(spec, first, now, policy.max_catch_up)


def _latest(spec: Spec, low: float, high: float) -> float:
    """The last nominal time up to `high`, by halving; `low` is an earlier one."""
    while (later := following(spec, low)) is not None and later <= high:
        middle = later + (high - later) / 2
        probe = following(spec, middle)
        if probe is None or probe > high:
            low, high = later, middle
        else:
            low = probe
    return low


def _newest(spec: Spec, first: float, now: float, limit: int) -> tuple[float, ...]:
    """The latest `limit` nominal times of [first, now], found in windows that double."""
    times = [first, *fire_times(spec, first, now, limit)]
    if len(times) <= limit:
        return tuple(times)
    last = _latest(spec, first, now)
    width, edge, found = times[1] - first, just_before(last), [last]
    while len(found) < limit:
        start = last - width
        found = fire_times(spec, start, edge, None) + found
        width, edge = width * 2, start
    return tuple(found[-limit:])


def _count(spec: Spec, nominal: float, now: float, limit: int) -> tuple[int, bool]:
    """How many nominal times are in [nominal, now], and whether that is exact."""
    if type(spec) is Interval:
        second = following(spec, nominal)
        if second is None or second > now:
            return 1, True
        return 2 + round((_latest(spec, second, now) - second) / spec.seconds), True
    times = fire_times(spec, nominal, now, limit)
    return (1 + len(times), True) if len(times) < limit else (limit, False)


def jitter(identity: str, nominal: float, most: float) -> float:
    """Seconds in [0, most) to fire after `nominal`: the same for every scheduler that asks."""
    digest = blake2b(f"{identity}\0{nominal!r}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 12) / 2**52 * most


def max_jitter(policy: Policy, spec: Spec) -> float:
    """The larger of the policy's jitter and the trigger's own, or that of its parts."""
    parts = spec.triggers if isinstance(spec, And | Or) else ()
    return max([policy.max_jitter, spec.jitter, *(max_jitter(policy, part) for part in parts)])


def encode(spec: Spec) -> str:
    """The spec as JSON text, for a row."""
    return msgspec.json.encode(spec).decode()


def decode(text: str | bytes) -> Spec:
    """The spec of `encode`, checked; TriggerError where it is none."""
    try:
        spec: Spec = msgspec.json.decode(text, type=Spec)
        return _checked(spec)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        why = mismatch.explain_json(text.encode() if isinstance(text, str) else text, Spec)
        raise TriggerError(f"not a stored trigger: {why}") from error


def _checked(spec: Spec) -> Spec:
    if isinstance(spec, CalendarInterval) and not any(
        (spec.years, spec.months, spec.weeks, spec.days)
    ):
        raise TriggerError("calendarinterval: years, months, weeks or days must be more than 0")
    for part in spec.triggers if isinstance(spec, And | Or) else ():
        _checked(part)
    compiled(spec)
    return spec


_SPAN = ("start_date", "end_date", "timezone", "jitter")
_PARTS = ("year", "month", "day", "hour", "minute", "second")
_CALENDAR = ("years", "months", "weeks", "days", "hour", "minute", "second")
_ARGUMENTS = {
    "interval": (*_UNITS, *_SPAN),
    "cron": (*CRON_FIELDS, "crontab", *_SPAN),
    "crontab": ("crontab", *_SPAN),
    "date": ("run_date", *_PARTS, "timezone", "jitter"),
    "calendarinterval": (*_CALENDAR, *_SPAN),
    "and": ("triggers", "timezone", "jitter"),
    "or": ("triggers", "timezone", "jitter"),
}
_EXAMPLES = {"crontab": '"0 3 * * 1-5"', "run_date": '"2027-01-31 03:00"'}
_ALIASES = {"start_time": "start_date", "end_time": "end_date"}


def parse(
    kind: object,
    arguments: Mapping[str, Any] | None = None,
    *,
    args: Sequence[Any] = (),
    timezone: str | tzinfo | None = None,
    now: float | None = None,
) -> Spec:
    """The spec of a trigger: a kind and its arguments, an APScheduler trigger, or a spec.

    Values may be text, as on a command line. The only positional argument, in `args`, is the
    expression of a crontab or the date of a date. None means not given. `timezone` is for a
    trigger that names none; otherwise it is the machine's. An interval without a start begins one
    interval after `now`. Raises TriggerError for what is unknown or wrong, and for what can never
    fire; a date in the past is right (`first_fire` tells).
    """
    if not isinstance(kind, str):
        if args or arguments:
            raise TriggerError(f"a {type(kind).__name__} is complete: give no arguments with it")
        if isinstance(kind, Trigger):
            return _checked(kind)  # type: ignore[arg-type]
        kind, arguments = _read(kind)
    kind, values = _given(kind, arguments or {}, args)
    now = clock() if now is None else now
    place = crontab.zone_name(values.pop("timezone", timezone))
    try:
        spec = _spec({"type": kind, **_fields(kind, values, place, now)})
    except (OverflowError, RecursionError) as error:
        raise TriggerError(f"{kind}: {error}") from error
    _refuse_idle(_checked(spec), now)
    return spec


def _spec(fields: dict[str, Any]) -> Spec:
    try:
        spec: Spec = msgspec.convert(fields, Spec, strict=False)
    except msgspec.ValidationError as error:
        wrong = mismatch.explain(fields, Spec, strict=False)
        example = _EXAMPLES.get(wrong.missing, "...")
        problem = f"it needs {wrong.missing}=..., as in {example}" if wrong.missing else wrong
        raise TriggerError(f"{fields['type']}: {problem}") from error
    return spec


def _given(
    kind: str, arguments: Mapping[str, Any], args: Sequence[Any] = ()
) -> tuple[str, dict[str, Any]]:
    if kind not in _ARGUMENTS:
        raise TriggerError(f"unknown trigger '{kind}'{suggestion(kind, _ARGUMENTS)}")
    if args:
        first = {"date": "run_date", "crontab": "crontab"}.get(kind)
        if first is None or len(args) > 1 or arguments.get(first) is not None:
            raise TriggerError(f"{kind}: too many positional arguments: {args!r}")
        arguments = {**arguments, first: args[0]}
    values: dict[str, Any] = {}
    for given, value in arguments.items():
        name = _ALIASES.get(given, given)
        if name not in _ARGUMENTS[kind]:
            hint = suggestion(str(name), _ARGUMENTS[kind])
            raise TriggerError(f"{kind} has no argument '{given}'{hint}")
        if value is not None and name in values:
            raise TriggerError(f"{kind}: {name} is given twice")
        if value is not None:
            values[name] = value
    if kind == "cron" and "crontab" in values:
        return _given("crontab", values)
    return kind, values


def _fields(kind: str, values: dict[str, Any], place: str, now: float) -> dict[str, Any]:
    """The fields of the Struct from the arguments."""
    if "jitter" in values:
        values["jitter"] = _number("jitter", values["jitter"])
    if kind in ("and", "or"):
        parts = values.pop("triggers", ())
        if not isinstance(parts, list | tuple):
            raise TriggerError(f"{kind}: triggers={parts!r} is no list of triggers")
        triggers = [_part(kind, part, place, now) for part in parts]
        return {**values, "triggers": triggers}
    fields = {**values, "timezone": place}
    if kind == "date":
        at = fields.pop("run_date", None)
        at = crontab.joined(fields, _PARTS) if at is None else at
        return {**fields, "at": crontab.instant("run_date", at, place)}
    for name, field in (("start_date", "start"), ("end_date", "end")):
        if (value := fields.pop(name, None)) is not None:
            exact = kind != "calendarinterval"
            fields[field] = (crontab.instant if exact else crontab.day)(name, value, place)
    if kind == "calendarinterval":
        fields.setdefault("start", datetime.fromtimestamp(now, zone(place)).date())
    elif kind == "interval":
        seconds = _length(_some(kind, fields, _UNITS))
        fields = {**fields, "seconds": seconds, "start": fields.get("start", now + seconds)}
    elif kind == "cron":
        fields |= {name: str(v) for name, v in _some(kind, fields, CRON_FIELDS).items()}
    return fields


def _length(given: Mapping[str, Any]) -> float:
    seconds = sum(_UNITS[name] * _number(name, value) for name, value in given.items())
    if seconds <= 0:
        words = " ".join(f"{name}={value}" for name, value in given.items())
        raise TriggerError(f"interval {words}: it has to be longer than 0 seconds")
    return seconds


def _some(kind: str, fields: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """What is given of these, taken out of `fields`: at least one."""
    given = {name: fields.pop(name) for name in names if name in fields}
    if not given:
        raise TriggerError(f"{kind}: when? give some of {', '.join(names)}")
    return given


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise TriggerError(f"{name}={value!r} is no number")
    return number


def _part(kind: str, part: Any, place: str, now: float) -> Any:
    if not isinstance(part, Mapping):
        return parse(part, timezone=place, now=now)
    if "type" not in part:
        raise TriggerError(f"{kind}: each of its triggers needs a 'type'")
    arguments = {name: value for name, value in part.items() if name != "type"}
    return parse(part["type"], arguments, timezone=place, now=now)


def _refuse_idle(spec: Spec, now: float) -> None:
    """Raise for what has never fired and never will; what has only ended is right."""
    if outside_calendar(spec, now):
        raise TriggerError(f"{describe(spec)}: a time of a schedule is one of the years 68 to 8941")
    if isinstance(spec, Crontab):
        crontab.parse(spec.crontab, strict=True)
    if isinstance(spec, Date | Or):
        return
    since = now if isinstance(spec, And) else 0.0
    since = min(since, spec.start) if isinstance(spec, Interval) else since
    if first_fire(spec, since) is None:
        raise TriggerError(f"this trigger never fires: {describe(spec)}: {_why_never(spec, since)}")


def _why_never(spec: Spec, since: float) -> str:
    if isinstance(spec, And):
        return _why_they_never_agree(spec, since)
    start, end = getattr(spec, "start", None), getattr(spec, "end", None)
    if start is not None and end is not None and end < start:
        return f"its end ({_moment(end, spec)}) is before its start ({_moment(start, spec)})"
    if isinstance(spec, Cron) and (fields := _never_met(spec)):
        return f"{' and '.join(fields)} never meet" if len(fields) > 1 else f"{fields[0]} never is"
    return f"no such time lies between {_moment(start, spec)} and {_moment(end, spec)}"


def _moment(at: Any, spec: Any) -> str:
    """Return a start or end in words."""
    if at is None:
        return "now"
    if not isinstance(at, float | int):
        return str(at)
    return date_words(Date(at=at, timezone=spec.timezone))


def _never_met(spec: Cron) -> list[str]:
    """Return the fewest fields that are never true at once, as text."""
    given = [name for name in CRON_FIELDS if getattr(spec, name) is not None]
    for count in range(1, len(given) + 1):
        for names in combinations(given, count):
            fields = {name: getattr(spec, name) for name in names}
            if first_fire(Cron(timezone=spec.timezone, **fields), 0.0) is None:
                return [f"{name}={text}" for name, text in fields.items()]
    return []


def _why_they_never_agree(spec: And, since: float) -> str:
    firsts = [(part, first_fire(part, since)) for part in spec.triggers]
    ended = [part for part, first in firsts if first is None]
    if ended:
        return f"({describe(ended[0])}) fires no more"
    times = " and ".join(
        date_words(Date(at=first, timezone=getattr(part, "timezone", "UTC")))
        for part, first in firsts[:2]
        if first is not None
    )
    hint = "; an interval counts from its start_date" if _has_interval(spec) else ""
    return (
        f"its triggers never agree: they fire first at {times}, and never at the same moment{hint}"
    )


def _has_interval(spec: And) -> bool:
    return any(isinstance(part, Interval) for part in spec.triggers)


def _read(trigger: object) -> tuple[str, dict[str, Any]]:
    """The kind and arguments of an APScheduler trigger; its private fields are its only record."""
    from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
    from apscheduler.triggers.combining import AndTrigger, OrTrigger
    from apscheduler.triggers.cron import CronTrigger
    from apscheduler.triggers.date import DateTrigger
    from apscheduler.triggers.interval import IntervalTrigger

    # A subclass may compute other times, and only these classes are known to keep none.
    a: Any = trigger
    if type(a) in (AndTrigger, OrTrigger):
        kind = "and" if type(a) is AndTrigger else "or"
        return kind, {"triggers": a.triggers, "jitter": a.jitter}
    if type(a) is DateTrigger:
        return "date", {"run_date": a.run_date, "timezone": a.run_date.tzinfo}
    if type(a) not in (IntervalTrigger, CronTrigger, CalendarIntervalTrigger):
        raise TriggerError(
            f"a trigger is a name ({', '.join(_ARGUMENTS)}) or an object of APScheduler 3's"
            f" trigger classes, not {type(a).__name__}: its times must be known from plain data"
        )
    span = {name: getattr(a, name) for name in _SPAN}
    if type(a) is IntervalTrigger:
        return "interval", {**span, "seconds": a.interval_length}
    if type(a) is CronTrigger:
        return "cron", span | {field.name: str(field) for field in a.fields if not field.is_default}
    of_day = dict(zip(("hour", "minute", "second"), a.__getstate__()["time"], strict=True))
    return "calendarinterval", span | of_day | {name: getattr(a, name) for name in _CALENDAR[:4]}


def describe(spec: Spec) -> str:
    """The trigger in a few words: `every 30 s`, `cron hour=0`, `once at 2022-01-01 00:00 UTC`."""
    match spec:
        case Interval():
            return f"every {duration(spec.seconds)}"
        case Cron():
            fields = ((name, getattr(spec, name)) for name in CRON_FIELDS)
            return " ".join(["cron", *(f"{name}={text}" for name, text in fields if text)])
        case Crontab():
            return f"crontab {spec.crontab}"
        case Date():
            return f"once at {date_words(spec)}"
        case CalendarInterval():
            amounts = ((getattr(spec, name), name) for name in _CALENDAR[:4])
            every = " ".join(f"{n} {name if n > 1 else name[:-1]}" for n, name in amounts if n)
            return f"every {every} at {time(spec.hour, spec.minute, spec.second)}"
        case And() | Or():
            word = " and " if isinstance(spec, And) else " or "
            return word.join(f"({describe(part)})" for part in spec.triggers)
