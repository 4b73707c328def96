"""Triggers: every spelling, the grid of nominal times, missed times, objects, rows."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from hypothesis import given, settings
from hypothesis import strategies as st

from fp_async import triggers
from fp_async.errors import TriggerError
from fp_async.triggers import Policy, decide, parse

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 3, 4, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0


def fires(spec, count, now=NOW, zone=BERLIN):
    times = triggers.fire_times(spec, now, float("inf"), count)
    return [
        datetime.fromtimestamp(moment, zone).strftime("%a %d %b %Y %H:%M:%S %z") for moment in times
    ]


def at(*parts, zone=BERLIN):
    return datetime(*parts, tzinfo=zone).timestamp()


@pytest.mark.parametrize("text", [str, float])
def test_the_documents_interval(text):
    spec = parse("interval", {"seconds": text(30)}, now=NOW)
    assert triggers.fire_times(spec, NOW, NOW + 100, 9) == [NOW + 30, NOW + 60, NOW + 90]
    assert triggers.describe(spec) == "every 30 s"


@pytest.mark.parametrize("text", [str, int])
def test_the_documents_date(text):
    parts = {"year": 2022, "month": 1, "day": 1, "hour": 0, "minute": 0, "second": 0}
    spec = parse(
        "date",
        {name: text(value) for name, value in parts.items()},
        timezone="Europe/Berlin",
        now=NOW,
    )
    assert spec.at == at(2022, 1, 1)
    assert triggers.first_fire(spec, NOW) is None
    assert triggers.first_fire(spec, spec.at) == spec.at
    assert triggers.describe(spec) == "once at 2022-01-01 00:00 Europe/Berlin"


@pytest.mark.parametrize("text", [str, int])
def test_the_documents_cron_has_0_for_monday(text):
    fields = {"second": 0, "minute": 0, "hour": 0, "day": 1, "month": 1, "day_of_week": 0}
    spec = parse(
        "cron", {name: text(value) for name, value in fields.items()}, timezone="UTC", now=NOW
    )
    assert fires(spec, 1, zone=UTC) == ["Mon 01 Jan 2029 00:00:00 +0000"]


def test_the_documents_crontab_has_0_for_sunday_and_either_day():
    spec = parse("cron", {"crontab": "0 0 1 1 0"}, timezone="UTC", now=NOW)
    assert (
        spec
        == parse("crontab", {"crontab": "0 0 1 1 0"}, timezone="UTC")
        == parse("crontab", args=("0 0 1 1 0",), timezone="UTC")
    )
    assert fires(spec, 2, zone=UTC) == [
        "Fri 01 Jan 2027 00:00:00 +0000",
        "Sun 03 Jan 2027 00:00:00 +0000",
    ]
    assert triggers.describe(spec) == "crontab 0 0 1 1 0"


@pytest.mark.parametrize("start", ["start_date", "start_time"])
def test_spans_are_inclusive_and_have_two_spellings(start):
    end = start.replace("start", "end")
    span = {start: "2026-03-05T00:00:00Z", end: datetime(2026, 3, 7, tzinfo=UTC)}
    for kind, rest in (
        ("interval", {"days": 1}),
        ("cron", {"hour": 0}),
        ("crontab", {"crontab": "@daily"}),
        ("calendarinterval", {"days": 1}),
    ):
        spec = parse(kind, {**rest, **span}, timezone="UTC", now=NOW)
        assert [day[4:6] for day in fires(spec, 9, zone=UTC)] == ["05", "06", "07"]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("intervall", {}, "did you mean 'interval'"),
        ("interval", {"secnds": 1}, "no argument 'secnds'; did you mean 'seconds'"),
        ("interval", {}, "give some of weeks, days, hours, minutes, seconds"),
        ("interval", {"seconds": 0}, "seconds"),
        ("interval", {"minutes": -1}, "seconds"),
        ("interval", {"minutes": "x"}, "minutes='x' is no number"),
        ("interval", {"minutes": True}, "is no number"),
        ("interval", {"minutes": "inf"}, "is no number"),
        ("interval", {"days": 10**9}, "seconds"),
        ("interval", {"days": 1, "end_date": "2020-01-01"}, "never fires"),
        ("interval", {"days": 1, "jitter": -1}, "jitter"),
        ("interval", {"days": 1, "jitter": "nan"}, "jitter"),
        ("interval", {"days": 1, "timezone": "Europe/Berln"}, "did you mean 'Europe/Berlin'"),
        ("interval", {"days": 1, "timezone": 3}, "timezone=3"),
        ("interval", {"days": 1, "start_date": "x"}, "start_date='x'"),
        ("interval", {"days": 1, "start_date": 3}, "start_date=3"),
        (
            "interval",
            {"days": 1, "start_date": "2026-01-01", "start_time": "2026-01-01"},
            "given twice",
        ),
        ("cron", {"hour": 24}, "hour=24"),
        ("cron", {"month": "janx"}, "month=janx"),
        ("cron", {"month": 2, "day": 30}, "never fires"),
        ("cron", {"crontab": "* * * * *", "hour": 1}, "no argument 'hour'"),
        ("crontab", {"crontab": "61 * * * *"}, "valid: 0-59"),
        ("date", {}, "run_date= or year="),
        ("date", {"year": 2022}, "year=2022"),
        ("date", {"year": 2022, "month": 2, "day": 30}, "day"),
        ("date", {"run_date": "2022-01-01", "year": 2022}, "year"),
        ("calendarinterval", {}, "more than 0"),
        ("calendarinterval", {"days": -1}, "days"),
        ("calendarinterval", {"days": 1, "hour": 24}, "hour"),
        ("and", {}, "triggers"),
        ("or", {"triggers": 5}, "no list"),
        ("or", {"triggers": [{"hour": 1}]}, "'type'"),
        (
            "and",
            {"triggers": [{"type": "cron", "hour": 3}, {"type": "cron", "hour": 4}]},
            "never agree",
        ),
        ("interval", {"seconds": -5}, "seconds=-5: it has to be longer than 0"),
        (
            "interval",
            {"days": 1, "start_date": "2030-01-02", "end_date": "2030-01-01"},
            r"its end \(2030-01-01 00:00 .*\) is before its start \(2030-01-02",
        ),
        ("cron", {"month": 2, "day": 30}, "month=2 and day=30 never meet"),
        ("cron", {"week": 53, "month": 6, "hour": 3}, "month=6 and week=53 never meet"),
        (
            "crontab",
            {"crontab": "0 0 1 1 *", "start_date": "2030-02-01", "end_date": "2030-03-01"},
            "no such time lies between 2030-02-01 00:00 .* and 2030-03-01",
        ),
        ("crontab", {"crontab": "*/90 * * * *"}, "a step of 90 is longer than 0-59"),
        ("crontab", {"crontab": "0 0 31 2 *"}, "no such month has a day 31"),
        (
            "and",
            {"triggers": [{"type": "cron", "hour": 3}, {"type": "cron", "hour": 4}]},
            "they fire first at .* 03:00 .* and .* 04:00 .*, and never at the same moment",
        ),
        (object(), {}, "not object"),
        (IntervalTrigger(days=1), {"days": 1}, "complete"),
    ],
)
def test_a_mistake_is_named(kind, arguments, message):
    with pytest.raises(TriggerError, match=message):
        parse(kind, arguments, now=NOW)


def test_c3_a_step_that_a_store_has_still_fires():
    spec = triggers.decode(b'{"type":"crontab","crontab":"*/90 * * * *","timezone":"UTC"}')
    assert triggers.first_fire(spec, 1.0) == 3600


def test_a_trigger_class_of_the_users_own_is_refused():
    class Own(IntervalTrigger):
        pass

    assert issubclass(Own, BaseTrigger)
    with pytest.raises(TriggerError, match="plain data"):
        parse(Own(seconds=1))


@settings(deadline=None, max_examples=200)
@given(st.floats(0.001, 1e7), st.floats(0, 2e9), st.floats(0, 1e6))
def test_an_interval_neither_drifts_nor_skips_nor_doubles(seconds, start, later):
    spec = triggers.Interval(seconds=seconds, start=start)
    times = triggers.fire_times(spec, start + later, float("inf"), 20)
    first = round((times[0] - start) / seconds)
    assert times == [start + (first + k) * seconds for k in range(20)]
    assert times[0] > start + later
    assert first == 0 or start + (first - 1) * seconds <= start + later


OBJECTS = [
    CronTrigger(hour="*/3", minute="1-50/7", timezone="Europe/Berlin"),
    CronTrigger(day="last", hour=5, timezone=UTC),
    CronTrigger(day="2nd fri", month="jan-jun", timezone="Asia/Tokyo"),
    CronTrigger(week="*/2", day_of_week="mon,wed", timezone=UTC, start_date="2027-01-01"),
    CronTrigger(second="*/20", timezone=UTC),
    CronTrigger.from_crontab("5 4 * * 1", timezone="UTC"),
    IntervalTrigger(minutes=7, start_date="2026-01-01", timezone="Europe/Berlin"),
    CalendarIntervalTrigger(months=1, hour=9, start_date="2026-03-31", timezone="Europe/Berlin"),
    CalendarIntervalTrigger(months=1, days=3, start_date="2026-03-30", timezone="UTC"),
    CalendarIntervalTrigger(
        days=1, hour=2, minute=30, start_date="2026-03-27", timezone="Europe/Berlin"
    ),
    DateTrigger("2027-01-01", timezone="Europe/Berlin"),
    AndTrigger([CronTrigger(hour=3, timezone=UTC), CronTrigger(day="1-7", hour=3, timezone=UTC)]),
    OrTrigger(
        [CronTrigger(hour=3, timezone=UTC), CronTrigger(hour=5, minute="*/30", timezone=UTC)]
    ),
]


@pytest.mark.parametrize("trigger", OBJECTS, ids=str)
def test_an_object_of_apscheduler_fires_when_it_would(trigger):
    now, expected, previous = datetime.fromtimestamp(NOW, UTC), [], None
    while len(expected) < 50 and (found := trigger.get_next_fire_time(previous, now)):
        expected.append(found.timestamp())
        now = found + timedelta(microseconds=1)
        # given a previous time, cron triggers look no further than it, and AndTrigger never ends
        previous = None if isinstance(trigger, AndTrigger) else found
    expected = [moment for moment in expected if moment >= NOW]
    count = len(expected)
    assert triggers.fire_times(parse(trigger, now=NOW), NOW - 1, float("inf"), count) == expected


@pytest.mark.parametrize("trigger", OBJECTS, ids=str)
def test_a_spec_survives_its_row(trigger):
    spec = parse(trigger, now=NOW)
    assert triggers.decode(triggers.encode(spec)) == spec
    assert parse(spec) == spec


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"type":"interval","seconds":0,"start":1}',
        '{"type":"crontab","crontab":"x","timezone":"UTC"}',
        '{"type":"date","at":1,"timezone":"../x"}',
        '{"type":"cron","timezone":"UTC","hour":"99"}',
        b"\xff",
        '{"type":"or","triggers":[' * 5000,
    ],
)
def test_a_broken_row_is_a_trigger_error(text):
    with pytest.raises(TriggerError):
        triggers.decode(text)


def test_cron_at_a_time_that_spring_skips_runs_right_after_and_in_autumn_once():
    spec = parse("cron", {"hour": 2, "minute": 30}, timezone="Europe/Berlin", now=NOW)
    assert [t[-14:] for t in fires(spec, 2, at(2026, 3, 29))] == [
        "03:00:00 +0200",
        "02:30:00 +0200",
    ]
    assert [t[-14:] for t in fires(spec, 2, at(2026, 10, 25))] == [
        "02:30:00 +0200",
        "02:30:00 +0100",
    ]
    assert triggers.fire_times(spec, at(2026, 10, 25), at(2026, 10, 26), 9) == [
        at(2026, 10, 25, 2, 30)
    ]


def test_an_interval_counts_real_hours_across_both_changes():
    for day in (at(2026, 3, 28, 12), at(2026, 10, 24, 12)):
        spec = parse("interval", {"hours": 24}, timezone="Europe/Berlin", now=day)
        assert triggers.fire_times(spec, day, day + 4 * 86400, 9) == [
            day + n * 86400 for n in (1, 2, 3, 4)
        ]


def test_calendar_days_keep_their_time_and_leave_the_skipped_one_out():
    spec = parse(
        "calendarinterval",
        {"days": 1, "hour": 2, "minute": 30, "start_date": date(2026, 3, 28)},
        timezone="Europe/Berlin",
        now=NOW,
    )
    assert [t[4:6] for t in fires(spec, 3)] == ["28", "30", "31"]
    assert triggers.fire_times(spec, at(2026, 10, 25), at(2026, 10, 26), 9) == [
        at(2026, 10, 25, 2, 30)
    ]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 31), st.integers(0, 9000))
def test_a_far_calendar_grid_is_the_near_one(months, day, days):
    spec = parse(
        "calendarinterval",
        {"months": months, "start_date": date(2000, 1, day)},
        timezone="UTC",
        now=NOW,
    )
    after = at(2000, 1, 1, zone=UTC) + days * 86400.0
    grid = triggers.fire_times(spec, at(1999, 1, 1, zone=UTC), float("inf"), 400)
    assert triggers.next_fire(spec, after, 0) == next(moment for moment in grid if moment > after)


HOURLY = triggers.Interval(seconds=HOUR, start=NOW)
LATE = NOW + 5.5 * HOUR


@pytest.mark.parametrize(
    "spec",
    [
        HOURLY,
        parse("crontab", {"crontab": "@hourly"}, timezone="UTC"),
        parse("cron", {"minute": 0}, timezone="UTC"),
    ],
)
@pytest.mark.parametrize(
    ("policy", "hours", "skipped"),
    [
        (Policy(), [5], 5),
        (Policy(coalesce="earliest"), [0], 5),
        (Policy(coalesce="all"), [0, 1, 2, 3, 4, 5], 0),
        (Policy(coalesce="all", max_catch_up=2), [4, 5], 4),
        (Policy(coalesce="all", misfire_grace_time=2.5 * HOUR), [3, 4, 5], 3),
        (Policy(coalesce="earliest", misfire_grace_time=2 * HOUR), [4], 5),
        (Policy(misfire_grace_time=60), [], 6),
    ],
)
def test_missed_times_become_what_the_policy_says(spec, policy, hours, skipped):
    decision = decide(policy, spec, NOW, LATE)
    assert decision.fires == tuple(NOW + hour * HOUR for hour in hours)
    assert (decision.skipped, decision.next, decision.exact) == (skipped, NOW + 6 * HOUR, True)


def test_what_is_not_due_is_left_alone_and_what_is_due_fires_and_goes_on():
    assert decide(Policy(), HOURLY, NOW, NOW - 1) == triggers.Decision((), 0, NOW)
    assert decide(Policy(misfire_grace_time=0), HOURLY, NOW, NOW) == triggers.Decision(
        (NOW,), 0, NOW + HOUR
    )
    once = triggers.Date(at=NOW)
    assert decide(Policy(), once, NOW, NOW + 9) == triggers.Decision((NOW,), 0, None)
    assert decide(Policy(misfire_grace_time=5), once, NOW, NOW + 9) == triggers.Decision(
        (), 1, None
    )


def test_a_million_missed_times_cost_little():
    spec = triggers.Interval(seconds=1, start=NOW)
    cron = parse("cron", {"second": "*"}, timezone="UTC")
    began = time.perf_counter()
    for coalesce, count in (("latest", 1), ("all", 100)):
        for each in (spec, cron):
            decision = decide(Policy(coalesce=coalesce), each, NOW, NOW + 1e6)
            assert decision.fires == tuple(NOW + 1e6 - n for n in reversed(range(count)))
            assert decision.next == NOW + 1e6 + 1
            assert (
                decision.skipped == 1_000_001 - count if decision.exact else decision.skipped >= 100
            )
    assert time.perf_counter() - began < 2


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["*/7 * * * *", "0 3 * * *", "*/5 3 * * mon", "0 0 1 * *"]),
    st.integers(0, 9_000_000),
    st.integers(1, 30),
)
def test_bounded_catch_up_is_the_tail_of_all(text, late, limit):
    spec = parse("crontab", {"crontab": text}, timezone="UTC")
    nominal = triggers.first_fire(spec, NOW)
    every = [nominal, *triggers.fire_times(spec, nominal, nominal + late, None)]
    decision = decide(Policy(coalesce="all", max_catch_up=limit), spec, nominal, nominal + late)
    assert list(decision.fires) == every[-limit:]
    assert decide(Policy(), spec, nominal, nominal + late).fires == (every[-1],)


@given(st.text(), st.floats(0, 4e9), st.floats(1e-6, 1e6))
def test_jitter_is_the_same_for_all_and_in_bounds(identity, nominal, most):
    offset = triggers.jitter(identity, nominal, most)
    assert 0 <= offset < most
    assert offset == triggers.jitter(identity, nominal, most)


def test_jitter_spreads_and_leaves_the_grid_alone():
    spec = parse(
        "or", {"triggers": [{"type": "cron", "hour": 3, "jitter": "60"}]}, timezone="UTC", now=NOW
    )
    assert triggers.max_jitter(Policy(max_jitter=5), spec) == 60
    assert triggers.max_jitter(Policy(max_jitter=90), spec) == 90
    assert all(t.endswith("03:00:00 +0000") for t in fires(spec, 20, zone=UTC))
    offsets = {
        triggers.jitter("s", moment, 60)
        for moment in triggers.fire_times(spec, NOW, float("inf"), 100)
    }
    assert len(offsets) == 100
    assert max(offsets) - min(offsets) > 40


def test_the_machines_zone_is_stored_by_name(monkeypatch):
    monkeypatch.setattr("tzlocal.get_localzone_name", lambda: "Asia/Tokyo")
    assert parse("cron", {"hour": 1}).timezone == "Asia/Tokyo"
    assert parse("cron", {"hour": 1}, timezone=BERLIN).timezone == "Europe/Berlin"
    assert parse("cron", {"hour": 1, "timezone": "+02:00"}).timezone == "+02:00"
    assert (
        parse(
            CronTrigger(
                hour=1, timezone=datetime.now(UTC).astimezone().tzinfo.__class__(timedelta(hours=2))
            )
        ).timezone
        == "+02:00"
    )


def test_next_fire_follows_the_previous_even_into_the_past():
    assert triggers.next_fire(HOURLY, NOW, NOW + 9 * HOUR) == NOW + HOUR
    assert triggers.next_fire(HOURLY, None, NOW + 1) == NOW + HOUR


def test_descriptions_are_short():
    parts = [
        {"type": "interval", "minutes": 90},
        {"type": "calendarinterval", "months": 2, "hour": 4},
    ]
    spec = parse("or", {"triggers": parts}, timezone="UTC", now=NOW)
    assert triggers.describe(spec) == "(every 1 h 30 min) or (every 2 months at 04:00:00)"
    assert triggers.describe(parse("cron", {"minute": 0, "hour": 0})) == "cron hour=0 minute=0"
