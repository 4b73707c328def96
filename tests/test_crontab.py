"""crontab(5) against a reference that looks at every minute, and daylight saving time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp_async import crontab
from fp_async.errors import TriggerError

BERLIN = ZoneInfo("Europe/Berlin")
SPRING, AUTUMN = datetime(2026, 3, 29, tzinfo=BERLIN), datetime(2026, 10, 25, tzinfo=BERLIN)


def fires(text, after, count):
    expression, found = crontab.parse(text), []
    while len(found) < count and (after := crontab.next_after(expression, after)):
        found.append(after)
    return found


def clock(times):
    return [f"{time:%d %H:%M %z}" for time in times]


def field(low, high):
    number = st.integers(low, high)
    pair = st.tuples(number, number).map(sorted)
    item = st.one_of(
        number.map(str),
        pair.map(lambda p: f"{p[0]}-{p[1]}"),
        st.tuples(pair, st.integers(1, 9)).map(lambda p: f"{p[0][0]}-{p[0][1]}/{p[1]}"),
        st.integers(1, high).map(lambda step: f"*/{step}"),
    )
    return st.one_of(st.just("*"), item, st.lists(item, min_size=1, max_size=3).map(",".join))


EXPRESSIONS = st.tuples(field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 7)).map(
    " ".join
)


def numbers(part, low, high):
    """The values of a field, read anew."""
    for item in part.split(","):
        base, _, step = item.partition("/")
        first, _, last = (f"{low}-{high}" if base == "*" else base).partition("-")
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def reference(text):
    parts = text.split()
    limits = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
    sets = [set(numbers(part, *limit)) for part, limit in zip(parts, limits, strict=True)]
    minutes, hours, days, months, weekdays = sets
    weekdays = {day % 7 for day in weekdays}
    starred = parts[2][0] == "*" or parts[4][0] == "*"

    def matches(wall):
        of_month, of_week = wall.day in days, wall.isoweekday() % 7 in weekdays
        right_day = (of_month and of_week) if starred else (of_month or of_week)
        return wall.minute in minutes and wall.hour in hours and wall.month in months and right_day

    return matches


@settings(max_examples=60, deadline=None)
@given(EXPRESSIONS, st.integers(0, 500_000))
def test_every_matching_minute_is_found_and_no_other(text, minutes):
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    matches = reference(text)
    span = [start + timedelta(minutes=n) for n in range(1, 60 * 24 * 40)]
    expected = [moment for moment in span if matches(moment)][:200]
    found = [moment for moment in fires(text, start, 200) if moment <= span[-1]]
    assert found == expected


def reference_berlin(text, start, minutes):
    """What cron(8) says, minute by minute: fixed times skipped run at the change, once."""
    matches, follows = reference(text), any(part[0] == "*" for part in text.split()[:2])
    found, shown = [], None
    for n in range(minutes):
        moment = (start.astimezone(UTC) + timedelta(minutes=n)).astimezone(BERLIN)
        wall = moment.replace(tzinfo=None, fold=0)
        step = timedelta(minutes=1) if shown is None else wall - shown
        skipped = [shown + timedelta(minutes=m) for m in range(1, int(step.total_seconds() // 60))]
        late = not follows and any(matches(time) for time in skipped)
        if late or (matches(wall) and (follows or not moment.fold)):
            found.append(moment)
        shown = wall
    return found


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(field(0, 59), st.one_of(field(0, 4), field(0, 23))).map(
        lambda p: f"{p[0]} {p[1]} * * *"
    ),
    st.sampled_from([SPRING, AUTUMN]),
    st.integers(0, 300),
)
def test_the_hours_around_both_changes_are_those_of_cron(text, day, minutes):
    start = (day.astimezone(UTC) + timedelta(minutes=minutes)).astimezone(BERLIN)
    expected = reference_berlin(text, start, 600)
    # the reference begins at `start` without knowing what came before it
    found = fires(text, (start.astimezone(UTC) - timedelta(minutes=1)).astimezone(BERLIN), 600)
    end = start.timestamp() + 600 * 60
    stamps = [moment.timestamp() for moment in found if moment.timestamp() < end]
    expected = [moment.timestamp() for moment in expected]
    if start.replace(tzinfo=None) == datetime(2026, 3, 29, 3):  # noqa: DTZ001
        stamps, expected = stamps[1:], expected[1:]
    assert [s for s in stamps if s > start.timestamp()] == [
        s for s in expected if s > start.timestamp()
    ]


def test_a_fixed_time_that_spring_skips_runs_once_right_after_the_change():
    assert clock(fires("30 2 * * *", SPRING, 2)) == ["29 03:00 +0200", "30 02:30 +0200"]
    assert clock(fires("15,30 2,3 * * *", SPRING, 3)) == [
        "29 03:00 +0200",
        "29 03:15 +0200",
        "29 03:30 +0200",
    ]


def test_a_fixed_time_that_autumn_repeats_runs_once():
    assert clock(fires("30 2 * * *", AUTUMN, 2)) == ["25 02:30 +0200", "26 02:30 +0100"]


def test_a_schedule_that_follows_the_clock_has_no_skipped_hour_and_the_repeated_one_twice():
    assert clock(fires("30 * * * *", SPRING + timedelta(hours=1), 2)) == [
        "29 01:30 +0100",
        "29 03:30 +0200",
    ]
    twice = fires("30 * * * *", AUTUMN + timedelta(hours=2), 3)
    assert clock(twice) == ["25 02:30 +0200", "25 02:30 +0100", "25 03:30 +0100"]
    assert clock(fires("*/30 2 * * *", SPRING, 1)) == ["30 02:00 +0200"]


def test_day_of_month_or_day_of_week_when_both_are_restricted():
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert [f"{t:%a %d}" for t in fires("0 0 13 * fri", start, 4)] == [
        "Fri 02",
        "Fri 09",
        "Tue 13",
        "Fri 16",
    ]


def test_a_field_that_begins_with_a_star_is_not_restricted():
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert all(t.weekday() == 0 and t.day % 2 for t in fires("0 0 */2 * 1", start, 20))


def test_0_and_7_and_sun_are_sunday():
    start = datetime(2026, 1, 1, tzinfo=UTC)
    one, two, three = (fires(f"0 0 * * {day}", start, 5) for day in ("0", "7", "SUN"))
    assert one == two == three
    assert one[0].strftime("%a") == "Sun"


@pytest.mark.parametrize("nickname", crontab.NICKNAMES)
def test_nicknames_are_their_expressions(nickname):
    start = datetime(2026, 1, 1, 0, 30, tzinfo=UTC)
    assert fires(nickname, start, 5) == fires(crontab.NICKNAMES[nickname], start, 5)


def test_leap_days_are_found_even_on_one_day_of_the_week_only():
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert [t.year for t in fires("0 0 29 2 *", start, 3)] == [2028, 2032, 2036]
    assert fires("0 0 29 2 */7", start, 1)[0].strftime("%a %d %b") == "Sun 29 Feb"
    assert fires("0 0 29 2 *", datetime(9999, 1, 1, tzinfo=UTC), 1) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("60 * * * *", "minute '60': 60 is out of range; valid: 0-59"),
        ("* 24 * * *", "hour '24'.*valid: 0-23"),
        ("* * 0 * *", "day of month '0'.*valid: 1-31"),
        ("* * * foo *", "month 'foo'.*valid: 1-12 or jan-dec"),
        ("* * * * 8", "day of week '8'.*valid: 0-7 or sun-sat"),
        ("* * * * fri-mon", "runs backwards"),
        ("0 0 L * *", "the trigger cron has: day='last'"),
        ("0 0 * * 5L", "the trigger cron has: day='last fri'"),
        ("0 0 * * MONL", "the trigger cron has: day='last mon'"),
        ("0 0 * * tue#3", "the trigger cron has: day='3rd tue'"),
        ("0 0 15W * *", "no trigger here has the like"),
        ("H H * * *", "no trigger here has the like"),
        ("0 0 ? * MON", "write \\* for"),
        ("5/15 * * * *", "write 5-59/15"),
        ("*/0 * * * *", "at least 1"),
        ("1,,2 * * * *", "'' is no value"),
        ("\u0663 * * * *", "is no value"),
        ("* * * *", "4 fields instead of 5"),
        ("0 * * * * *", "for seconds or years use"),
        ("", "0 fields"),
        ("@reboot", "no time"),
        ("@dayly", "did you mean '@daily'"),
        ("0 0 31 2 *", "never fires: no such month has a day 31"),
        ("0 0 31 4,6 *", "never fires"),
    ],
)
def test_a_mistake_names_the_field_and_what_is_valid(text, message):
    with pytest.raises(TriggerError, match=message):
        crontab.parse(text)


@given(st.text(alphabet="0123456789*/-,@ abfrinsu", max_size=20))
def test_any_text_is_an_expression_or_a_trigger_error(text):
    try:
        crontab.parse(text)
    except TriggerError:
        return


def test_a_naive_time_is_refused():
    with pytest.raises(TriggerError, match="needs a time zone"):
        crontab.next_after(crontab.parse("@daily"), datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize("days", ["MON-SUN", "mon-7", "1-7", "1-0", "0-6", "*", "sun-sat"])
def test_c3_a_week_may_end_with_sunday(days):
    assert crontab.parse(f"0 0 * * {days}").weekdays == frozenset(range(7))
    assert crontab.parse("0 0 * * fri-sun").weekdays == {5, 6, 0}
