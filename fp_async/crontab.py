"""Wall-clock times: crontab(5) as Vixie cron reads it, time zones, how times become instants.

Pure computation, no scan by minutes: `at_or_after` jumps by day and looks the time of day up in
a sorted table. `walk` is the one place that knows daylight saving time. It has two kinds of
schedules, as cron(8) does:

- fixed times (neither the minute nor the hour begins with `*`): a time that the clock skips in
  spring fires right after the change (several skipped ones once), a time that happens twice in
  autumn fires the first time only;
- those that follow the clock (`*` or `*/n` in the minute or the hour): they fire whenever the
  clock shows a matching time, thus not in the skipped hour, and twice in the repeated one.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from difflib import get_close_matches
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import msgspec

from fp_async import local_timezone
from fp_async.errors import TriggerError, suggestion

NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_YEARS_AHEAD = 41  # 29 February comes back to the same day of the week within 40 years
_MINUTE = timedelta(minutes=1)


class _Field(msgspec.Struct, frozen=True):
    name: str
    lowest: int
    highest: int
    names: dict[str, int]

    @property
    def range(self) -> str:
        words = f" or {next(iter(self.names))}-{list(self.names)[-1]}" if self.names else ""
        return f"{self.lowest}-{self.highest}{words}"


_FIELDS = (
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("day of month", 1, 31, {}),
    _Field("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    _Field("day of week", 0, 7, {name: number for number, name in enumerate(_WEEKDAYS)}),
)


_DAY, _WEEKDAY = _FIELDS[2], _FIELDS[4]
_FOREIGN = re.compile(r"(\w*?)([lLwWhH#])(?:-?(\d+|[wW]|\(\S*\)))?", re.ASCII)
_ORDINALS = {"1": "1st", "2": "2nd", "3": "3rd", "4": "4th", "5": "5th"}


class Expression(msgspec.Struct, frozen=True):
    """A parsed expression. `times` are minutes of the day, sorted; `weekdays` has 0 = Sunday.

    `either`: day of month and day of week are both restricted, so that one match is enough.
    """

    text: str
    times: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool
    follows_clock: bool


@lru_cache(maxsize=1024)
def parse(text: str, *, strict: bool = False) -> Expression:
    """The expression `minute hour day-of-month month day-of-week`, or a nickname like `@daily`.

    0 and 7 are Sunday. Raises TriggerError naming the field and its valid range, and for dates
    that never exist, such as 31 February; if `strict` for steps longer than their range, too,
    which earlier releases have let into stores.
    """
    parts = _expanded(text.strip()).split()
    if len(parts) != len(_FIELDS):
        raise TriggerError(
            f"crontab '{text}' has {len(parts)} fields instead of 5 (minute, hour, day of month,"
            " month, day of week); for seconds or years use the trigger 'cron'"
        )
    minutes, hours, days, months, weekdays = (
        _values(field, part, text, strict=strict)
        for field, part in zip(_FIELDS, parts, strict=True)
    )
    either = not (parts[2].startswith("*") or parts[4].startswith("*"))
    if not either and min(days) > max(_LONGEST[month - 1] for month in months):
        raise TriggerError(f"crontab '{text}' never fires: no such month has a day {min(days)}")
    return Expression(
        text=text.strip(),
        times=tuple(sorted(60 * hour + minute for hour in hours for minute in minutes)),
        days=days,
        months=months,
        weekdays=frozenset(day % 7 for day in weekdays),
        either=either,
        follows_clock=parts[0].startswith("*") or parts[1].startswith("*"),
    )


def _expanded(text: str) -> str:
    if not text.startswith("@"):
        return text
    if text.lower() == "@reboot":
        raise TriggerError("crontab '@reboot' is no time: a schedule outlives its scheduler")
    try:
        return NICKNAMES[text.lower()]
    except KeyError:
        hint = suggestion(text, NICKNAMES)
        raise TriggerError(f"unknown crontab nickname '{text}'{hint}") from None


def _values(field: _Field, part: str, text: str, *, strict: bool) -> frozenset[int]:
    try:
        ranges = [_item(field, item) for item in part.split(",")]
        for each in ranges if strict else ():
            _check_step(*each)
        return frozenset(value for each in ranges for value in range(*each))
    except ValueError as error:
        where = f"crontab '{text}', {field.name} '{part}'"
        raise TriggerError(f"{where}: {error}; valid: {field.range}") from None


def _item(field: _Field, item: str) -> tuple[int, int, int]:
    """Return first value, the one after the last, and step."""
    if hint := _hint(field, item):
        raise ValueError(hint)
    base, slash, step = item.partition("/")
    stride = _number(step, "step") if slash else 1
    if stride < 1:
        raise ValueError("a step is at least 1")
    first, dash, last = base.partition("-")
    if base == "*":
        return field.lowest, field.highest + (field is not _WEEKDAY), stride
    low = _value(field, first)
    if not dash:
        if slash:
            raise ValueError(f"a step needs a range: write {base}-{field.highest}/{step}")
        return low, low + 1, 1
    high = _value(field, last)
    if field is _WEEKDAY and high == 0 < low:
        high = 7  # mon-sun: a week may end with Sunday, too
    if low > high:
        raise ValueError(f"{base} runs backwards: write it as two ranges")
    return low, high + 1, stride


def _check_step(low: int, end: int, step: int) -> None:
    if step > max(end - 1 - low, 1):
        raise ValueError(f"a step of {step} is longer than {low}-{end - 1}: only {low} would match")


def _hint(field: _Field, item: str) -> str | None:
    """Return what to write for what other programs have beside cron(5): `L`, `#`, `W`, `?`, `H`."""
    if item == "?":
        return "write * for '?'"
    if not (found := _FOREIGN.fullmatch(item)):
        return None
    day, mark, number = found.groups()
    if field is _WEEKDAY and mark in "lL#":
        name = day.lower() if day.lower() in _WEEKDAYS else "fri"
        which = "last" if mark in "lL" else _ORDINALS.get(number, "2nd")
        return f"cron(5) has no '{item}'; the trigger cron has: day='{which} {name}'"
    if field is _DAY and item in ("L", "l"):
        return f"cron(5) has no '{item}'; the trigger cron has: day='last'"
    return f"cron(5) has no '{item}', and no trigger here has the like"


def _value(field: _Field, text: str) -> int:
    named = field.names.get(text.lower())
    value = _number(text, "value") if named is None else named
    if not field.lowest <= value <= field.highest:
        raise ValueError(f"{value} is out of range")
    return value


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 5):
        raise ValueError(f"'{text}' is no {what}")
    return int(text)


def at_or_after(expression: Expression, wall: datetime) -> datetime | None:
    """The first matching wall-clock time at or after `wall` (both naive, no zone involved)."""
    rounded = wall.replace(second=0, microsecond=0)
    start = rounded if rounded == wall else rounded + _MINUTE
    place = bisect_left(expression.times, 60 * start.hour + start.minute)
    tomorrow = place == len(expression.times)
    found = _day(expression, start.year, start.month, start.day + tomorrow)
    if found is None:
        return None
    same_day = not tomorrow and found == (start.year, start.month, start.day)
    hour, minute = divmod(expression.times[place if same_day else 0], 60)
    return datetime(*found, hour, minute)  # noqa: DTZ001 - a wall-clock time has no zone


def _day(expression: Expression, year: int, month: int, day: int) -> tuple[int, int, int] | None:
    """The first matching date from this one on; `day` may be one past the end of the month."""
    last_year = min(year + _YEARS_AHEAD, 9999)
    while year <= last_year:
        if month in expression.months:
            days = _days(expression, year, month)
            place = bisect_left(days, day)
            if place < len(days):
                return year, month, days[place]
        year, month, day = (year + 1, 1, 1) if month == 12 else (year, month + 1, 1)
    return None


def _days(expression: Expression, year: int, month: int) -> tuple[int, ...]:
    month_is = monthrange(year, month)
    return _month_days(expression.days, expression.weekdays, expression.either, *month_is)


@lru_cache(maxsize=4096)
def _month_days(
    days: frozenset[int], weekdays: frozenset[int], either: bool, first: int, length: int
) -> tuple[int, ...]:
    """The matching days of a month of `length` days that begins on day `first` (0 = Monday)."""
    combine = any if either else all
    return tuple(
        day for day in range(1, length + 1) if combine(((first + day) % 7 in weekdays, day in days))
    )


def next_after(expression: Expression, after: datetime) -> datetime | None:
    """The first fire time strictly after `after` (aware), in the zone of `after`; None = never."""
    zone = after.tzinfo
    if zone is None:
        raise TriggerError("the time to look from needs a time zone")
    found = walk(
        lambda wall: at_or_after(expression, wall),
        zone,
        after.timestamp(),
        follows_clock=expression.follows_clock,
    )
    return None if found is None else datetime.fromtimestamp(found, zone)


NextWall = Callable[[datetime], "datetime | None"]


def walk(next_wall: NextWall, zone: tzinfo, after: float, *, follows_clock: bool) -> float | None:
    """The first instant (epoch seconds) after `after` of the wall-clock times of `next_wall`.

    `next_wall` gives the first naive time at or after a naive one, in whole seconds. None when
    it gives none, or past the year 9999.
    """
    try:
        start = datetime.fromtimestamp(math.floor(after) + 1, zone)
        if follows_clock:
            return _following(next_wall, zone, start)
        return _fixed(next_wall, zone, start)
    except (OverflowError, ValueError):  # the calendar ends
        return None


def _fixed(next_wall: NextWall, zone: tzinfo, start: datetime) -> float | None:
    wall = next_wall(start.replace(tzinfo=None, fold=0))
    while wall is not None:
        early, late = _readings(wall, zone)
        found = _change(zone, late, early) if late < early else early
        if found >= start.timestamp():
            return found
        wall = next_wall(wall + timedelta(seconds=1))  # its first reading is past: autumn
    return None


def _following(next_wall: NextWall, zone: tzinfo, start: datetime) -> float | None:
    wall = start.replace(tzinfo=None, fold=0)
    first, second = _readings(wall, zone)
    target = next_wall(wall)
    if first < second and not start.fold:  # this hour comes again: look at its end for both
        again = _change(zone, first, second)
        if target is None or _readings(target, zone)[0] >= again:
            target = next_wall(datetime.fromtimestamp(again, zone).replace(tzinfo=None, fold=0))
            start = datetime.fromtimestamp(again, zone)
    while target is not None:
        first, second = _readings(target, zone)
        if second < first:  # in spring's gap: go on at its end
            end = _change(zone, second, first)
            target = next_wall(datetime.fromtimestamp(end, zone).replace(tzinfo=None))
        elif first >= start.timestamp():
            return first
        else:
            return second
    return None


def _readings(wall: datetime, zone: tzinfo) -> tuple[float, float]:
    """The instants of a wall-clock time with fold 0 and 1: equal, later (autumn), earlier (gap)."""
    aware = wall.replace(tzinfo=zone)
    return aware.timestamp(), aware.replace(fold=1).timestamp()


def _change(zone: tzinfo, low: float, high: float) -> float:
    """The instant in (low, high] from which the zone has another offset than at `low`."""

    def offset(instant: float) -> Any:
        return datetime.fromtimestamp(instant, zone).utcoffset()

    before, bottom, top = offset(low), math.floor(low), math.ceil(high)
    while top - bottom > 1:
        middle = (bottom + top) // 2
        if offset(middle) == before:
            bottom = middle
        else:
            top = middle
    return float(top)


def next_day(
    days_from: Callable[[date], Iterator[date]], of_day: time, zone: tzinfo, after: float
) -> float | None:
    """The first instant after `after` at which the clock shows `of_day` on one of the days.

    `days_from(today)` gives dates in order. A day whose clock skips that time is left out; of a
    time that happens twice the first counts.
    """
    try:
        today = datetime.fromtimestamp(after, zone).date()
        for day in days_from(today):
            if day >= today:
                first, second = _readings(datetime.combine(day, of_day), zone)
                if first > after and first <= second:
                    return first
    except (OverflowError, ValueError):  # the calendar ends
        return None
    return None


def add_months(day: date, first: int, then: int) -> date:
    """The same day of the month `first` months later, or `then` more until it exists."""
    count = 12 * day.year + day.month - 1 + first
    while day.day > monthrange(count // 12, count % 12 + 1)[1]:
        count += then
    return day.replace(year=count // 12, month=count % 12 + 1)


@lru_cache(maxsize=1024)
def zone(name: str) -> tzinfo:
    """The zone of an IANA key or of an offset such as `+02:00`; TriggerError for another name."""
    try:
        if name[:1] in ("+", "-"):
            offset = datetime.strptime(name, "%z").utcoffset()
            assert offset is not None
            return timezone(offset)
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        hint = _zone_hint(name)
        raise TriggerError(f"unknown time zone '{name}' (timezone){hint}") from None


def _zone_hint(name: str) -> str:
    """Say what is meant: `UTC+3` is three hours behind UTC for POSIX, and ahead for people."""
    behind = local_timezone.offset(name)
    if behind is not None:
        ahead = behind.translate(str.maketrans("+-", "-+"))
        return f"; write {ahead}, or {behind} if it is meant as TZ={name}, where signs are reversed"
    keys = get_close_matches(name, available_timezones(), 5)
    return suggestion(name, keys) if keys else "; they are called Europe/Berlin, UTC, +02:00"


def zone_name(given: object) -> str:
    """The checked name of a zone, its object or, for None, of the machine's zone."""
    if given is None:
        return zone_name(local_timezone.name())
    if isinstance(given, tzinfo):
        offset = given.utcoffset(None)
        given = getattr(given, "key", None) or ("UTC" if given is UTC else _offset_name(offset))
    if not isinstance(given, str):
        raise TriggerError(f"timezone={given!r} is no name of a time zone, such as Europe/Berlin")
    zone(given)
    return given


def _offset_name(offset: timedelta | None) -> str | None:
    return None if offset is None else datetime.now(timezone(offset)).isoformat()[26:]


def instant(name: str, value: object, place: str) -> float:
    """Epoch seconds of a datetime, a date or ISO text; without a zone it is in `place`."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(moment, date) and not isinstance(moment, datetime):
            moment = datetime.combine(moment, time())
        if isinstance(moment, datetime):
            return (moment if moment.tzinfo else moment.replace(tzinfo=zone(place))).timestamp()
    except (ValueError, OverflowError) as error:
        raise TriggerError(f"{name}={value!r}: {error}") from error
    raise TriggerError(f"{name}={value!r} is no date and time, such as 2026-01-31 12:00:00")


def day(name: str, value: object, place: str) -> date:
    """The date, in `place`, of what `instant` understands."""
    return datetime.fromtimestamp(instant(name, value, place), zone(place)).date()


def joined(fields: dict[str, Any], names: Iterable[str]) -> datetime:
    """A naive datetime from its parts, which are taken out of `fields`; TriggerError if wrong."""
    parts: dict[str, Any] = {name: fields.pop(name) for name in names if name in fields}
    numbers: dict[str, Any]
    try:
        numbers = {name: int(value) for name, value in parts.items()}
        return datetime(**numbers)  # noqa: DTZ001
    except (TypeError, ValueError, OverflowError) as error:
        shown = " ".join(f"{name}={value}" for name, value in parts.items())
        text = f"date {shown}: {error}" if parts else "date needs run_date= or year=, month=, day="
        raise TriggerError(text) from error
