"""The kinds of triggers, and the fire times of each, as plain data and functions over it.

Cron fields are APScheduler's (its day_of_week 0 is Monday; in a crontab 0 is Sunday), read on
the wall clock; `crontab.py` says what daylight saving time does to them, the same for both.
Calendar intervals leave out a date whose time the clock skips, as APScheduler documents.
Intervals count real seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache, partial
from typing import Annotated, Any

import msgspec

from fp_async import crontab
from fp_async.config import FOREVER
from fp_async.crontab import zone
from fp_async.errors import TriggerError

CRON_FIELDS = ("year", "month", "day", "week", "day_of_week", "hour", "minute", "second")
_CRON_ITEM = re.compile(
    r"\*(/\d+)?|\d+(-\d+)?(/\d+)?|[a-z]{3}(-[a-z]{3})?|(1st|2nd|3rd|4th|5th|last) +[a-z]{3}|last",
    re.IGNORECASE | re.ASCII,
)
_LAST_INSTANT = 253402214400.0  # 9999-12-31: later ones are no datetime in every zone
_CALENDAR = (-6e10, 2.2e11)  # the years 68 to 8941: dates in every zone
_SHORT = {"d": 86400, "h": 3600, "min": 60}
_TRIES = 10_000  # steps in which the parts of an "and" must agree

Seconds = Annotated[float, msgspec.Meta(ge=0, lt=FOREVER)]
Whole = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Next = Callable[[float], "float | None"]


class Trigger(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag_field="type",
    tag=str.lower,
    omit_defaults=True,
    forbid_unknown_fields=True,
):
    jitter: Seconds = 0


class Interval(Trigger, frozen=True, kw_only=True):
    """At `start` + k * `seconds`, until `end`."""

    seconds: Annotated[float, msgspec.Meta(ge=0.001, le=3.2e9)]
    start: Annotated[float, msgspec.Meta(ge=-1e11, le=1e12)]  # or floats would have no next one
    end: float | None = None
    timezone: str = "UTC"


class Cron(Trigger, frozen=True, kw_only=True):
    """APScheduler's cron fields; None where nothing was given."""

    year: str | None = None
    month: str | None = None
    day: str | None = None
    week: str | None = None
    day_of_week: str | None = None
    hour: str | None = None
    minute: str | None = None
    second: str | None = None
    start: float | None = None
    end: float | None = None
    timezone: str


class Crontab(Trigger, frozen=True, kw_only=True):
    """A crontab(5) expression."""

    crontab: str
    start: float | None = None
    end: float | None = None
    timezone: str


class Date(Trigger, frozen=True, kw_only=True):
    """Once, at `at`."""

    at: float
    timezone: str = "UTC"


class CalendarInterval(Trigger, frozen=True, kw_only=True):
    """Every so many calendar months and days from `start`, at the same time of day."""

    years: Whole = 0
    months: Whole = 0
    weeks: Whole = 0
    days: Whole = 0
    hour: Annotated[int, msgspec.Meta(ge=0, le=23)] = 0
    minute: Annotated[int, msgspec.Meta(ge=0, le=59)] = 0
    second: Annotated[int, msgspec.Meta(ge=0, le=59)] = 0
    start: date
    end: date | None = None
    timezone: str


class And(Trigger, frozen=True, kw_only=True):
    """When all of `triggers` fire at the same moment."""

    triggers: Annotated[tuple[Spec, ...], msgspec.Meta(min_length=1)]


class Or(Trigger, frozen=True, kw_only=True):
    """Whenever one of `triggers` fires."""

    triggers: Annotated[tuple[Spec, ...], msgspec.Meta(min_length=1)]


Spec = Interval | Cron | Crontab | Date | CalendarInterval | And | Or


def next_fire(spec: Spec, previous: float | None, now: float) -> float | None:
    """The nominal time that follows `previous`; without one the first from `now` on.

    It may be in the past (`decide` says what then). None = never again.
    """
    return first_fire(spec, now) if previous is None else following(spec, previous)


def following(spec: Spec, after: float) -> float | None:
    """The first nominal time later than `after`; None = never again."""
    if type(spec) is Interval:
        return _next_interval(spec, after)
    return compiled(spec)(after)


def first_fire(spec: Spec, now: float) -> float | None:
    """The first nominal time from `now` on; None tells that a new schedule will never fire."""
    return following(spec, just_before(now))


def just_before(moment: float) -> float:
    """The next smaller number: `following` it may be the moment itself."""
    return math.nextafter(moment, -math.inf)


def outside_calendar(spec: Spec, now: float) -> bool:
    """Whether its first time, in the past or not, is no date in some zone."""
    moment = spec.at if isinstance(spec, Date) else first_fire(spec, now)
    return moment is not None and not _CALENDAR[0] < moment < _CALENDAR[1]


def duration(seconds: float) -> str:
    """A length of time in words: 1 h 30 min."""
    words = []
    for unit, length in _SHORT.items():
        if amount := int(seconds // length):
            words.append(f"{amount} {unit}")
            seconds -= amount * length
    if seconds or not words:
        words.append(f"{seconds:.12g} s")
    return " ".join(words)


def date_words(spec: Date) -> str:
    """When it fires, on the clock of its zone; a time that no calendar has as epoch seconds."""
    try:
        at = datetime.fromtimestamp(spec.at, zone(spec.timezone)).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        return f"{spec.at:.12g} s since 1970 UTC"
    whole = at.second == at.microsecond == 0
    return f"{at.isoformat(' ', 'minutes' if whole else 'auto')} {spec.timezone}"


def _next_interval(spec: Interval, after: float) -> float | None:
    start, seconds = spec.start, spec.seconds
    found = start
    if after >= start:
        steps = (after - start) // seconds
        found = start + steps * seconds
        while found <= after:  # a floor of floats may be one off
            steps += 1
            found = start + steps * seconds
    return None if found > (_LAST_INSTANT if spec.end is None else spec.end) else found


@lru_cache(maxsize=4096)
def compiled(spec: Spec) -> Next:
    """What gives the fire times of a trigger that is no interval."""
    if isinstance(spec, And | Or):
        combine = _agreed if isinstance(spec, And) else _soonest
        return partial(combine, [compiled(part) for part in spec.triggers])
    place = zone(spec.timezone)
    match spec:
        case Interval():
            following: Next = partial(_next_interval, spec)
        case Date():
            following = partial(_once, spec.at)
        case CalendarInterval():
            of_day = time(spec.hour, spec.minute, spec.second)
            following = partial(crontab.next_day, partial(_days_of, spec), of_day, place)
        case Crontab():
            parsed = crontab.parse(spec.crontab)
            wall = partial(crontab.at_or_after, parsed)
            walk = _walker(wall, place, follows_clock=parsed.follows_clock)
            following = _bounded(walk, spec.start, spec.end)
        case Cron():
            following = _bounded(_cron(spec, place), spec.start, spec.end)
    return following


def _once(at: float, after: float) -> float | None:
    return at if at > after else None


def _walker(wall: crontab.NextWall, zone: tzinfo, *, follows_clock: bool) -> Next:
    return lambda after: crontab.walk(wall, zone, after, follows_clock=follows_clock)


def _bounded(following: Next, start: float | None, end: float | None) -> Next:
    low = -math.inf if start is None else just_before(start)
    high = math.inf if end is None else end

    def bounded(after: float) -> float | None:
        found = following(max(after, low))
        return None if found is None or found > high else found

    return bounded


def _cron(spec: Cron, place: tzinfo) -> Next:
    given = {name: getattr(spec, name) for name in CRON_FIELDS}
    fields = {name: value for name, value in given.items() if value is not None}
    for name, value in fields.items():
        _cron_trigger({name: value})
    trigger = _cron_trigger(fields)
    texts = {field.name: str(field) for field in trigger.fields}
    follows = texts["hour"].startswith("*") or texts["minute"].startswith("*")

    def wall(at: datetime) -> datetime | None:
        found: datetime | None = trigger.get_next_fire_time(None, at.replace(tzinfo=UTC))
        return None if found is None else found.replace(tzinfo=None)

    return _walker(wall, place, follows_clock=follows)


def _cron_trigger(fields: dict[str, str]) -> Any:
    """APScheduler's trigger on a clock without daylight saving time, as the wall's clock is."""
    from apscheduler.triggers.cron import CronTrigger

    given = " ".join(f"{name}={text}" for name, text in fields.items())
    for text in fields.values():
        if not all(_CRON_ITEM.fullmatch(item.strip()) for item in text.split(",")):
            raise TriggerError(f"cron {given}: not understood")  # APScheduler reads 'janx' as 'jan'
    try:
        return CronTrigger(**fields, timezone=UTC)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise TriggerError(f"cron {given}: {error}") from error


def _days_of(spec: CalendarInterval, today: date) -> Iterator[date]:
    """The dates of the grid, up to the end; at first some before `today` may come."""
    day, step = spec.start, 7 * spec.weeks + spec.days
    months = 12 * spec.years + spec.months
    behind = 12 * (today.year - day.year) + today.month - day.month - months
    if months and not step and behind >= months:
        day = crontab.add_months(day, behind // months * months, months)
    if not months and day < today:
        day += timedelta((today - day).days // step * step)
    while spec.end is None or day <= spec.end:
        yield day
        if months:
            day = crontab.add_months(day, months, months)
        day += timedelta(step)


def _agreed(parts: list[Next], after: float) -> float | None:
    for _ in range(_TRIES):
        times = [moment for part in parts if (moment := part(after)) is not None]
        if len(times) < len(parts):
            return None
        if min(times) == max(times):
            return times[0]
        after = just_before(max(times))
    return None


def _soonest(parts: list[Next], after: float) -> float | None:
    times = (part(after) for part in parts)
    return min((moment for moment in times if moment is not None), default=None)


def fire_times(spec: Spec, after: float, until: float, limit: int | None) -> list[float]:
    """The nominal times in (after, until], at most the first `limit`."""
    times: list[float] = []
    moment = following(spec, after)
    while moment is not None and moment <= until and (limit is None or len(times) < limit):
        times.append(moment)
        moment = following(spec, moment)
    return times
