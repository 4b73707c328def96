"""The machine's time zone, however it says so, and the names of zones that people write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zoneinfo
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fp_async import crontab, local_timezone
from fp_async.errors import TriggerError
from fp_async.triggers import first_fire, parse

ZONES = next(Path(folder) for folder in zoneinfo.TZPATH if Path(folder, "Europe/Berlin").is_file())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "UTC"),
        ("Europe/Berlin", "Europe/Berlin"),
        (":Europe/Berlin", "Europe/Berlin"),
        (f"{ZONES}/Europe/Berlin", "Europe/Berlin"),
        (f":{ZONES}/Asia/Tokyo", "Asia/Tokyo"),
        ("UTC+3", "-03:00"),  # POSIX counts to the west
        ("UTC-3", "+03:00"),
        ("<+03>-3", "+03:00"),
        ("<-0330>3:30", "-03:30"),
        ("IST-5:30", "+05:30"),
        ("Etc/GMT+3", "Etc/GMT+3"),
        ("CET-1CEST,M3.5.0,M10.5.0/3", "CET"),
        ("MEZ-1MESZ,M3.5.0/02:00,M10.5.0/03:00", "Europe/Amsterdam"),
        ("EST5EDT,M3.2.0,M11.1.0", "EST5EDT"),
        ("EST5EDT", "EST5EDT"),
    ],
)
def test_c4_tz_means_what_the_system_takes_it_for(text, name):
    assert local_timezone.name({"TZ": text}) == name
    winter, summer = (datetime(2027, month, 1, 12, tzinfo=UTC) for month in (1, 7))
    zone = crontab.zone(name)
    script = (
        "import time; print([time.localtime(at).tm_gmtoff for at in "
        f"({winter.timestamp()}, {summer.timestamp()})])"
    )
    environment = {**os.environ, "TZ": text}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    offsets = [at.astimezone(zone).utcoffset().total_seconds() for at in (winter, summer)]
    assert done.stdout.decode().strip() == str([int(each) for each in offsets])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Europe/Berln", "did you mean 'Europe/Berlin'"),
        ("CET-1CEST", "no rules for summer time"),
        ("XYZ-1ABC,M1.1.0,M2.1.0", "no zone has these rules"),
        ("/nowhere/at/all", "No such file"),
    ],
)
def test_c4_what_no_zone_is_counts_as_no_utc(text, why):
    with pytest.raises(TriggerError, match="the machine's time zone is unclear") as raised:
        local_timezone.name({"TZ": text})
    assert why in str(raised.value)


def test_c4_a_copy_of_a_zones_file_is_known_again(tmp_path):
    copy = tmp_path / "localtime"
    shutil.copy(ZONES / "Australia/Lord_Howe", copy)
    assert local_timezone.name({}, copy) in ("Australia/Lord_Howe", "Australia/LHI")
    assert local_timezone.name({"TZ": str(copy)}) in ("Australia/Lord_Howe", "Australia/LHI")


def test_c4_schedules_are_kept_under_that_name(monkeypatch):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    spec = parse("crontab", {"crontab": "0 7 * * *"}, now=1_790_000_000)  # September 2026
    assert datetime.fromtimestamp(first_fire(spec, 1_790_000_000), UTC).hour == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [("UTC+3", "write +03:00, or -03:00"), ("GMT-2", "write -02:00, or +02:00")],
)
def test_c11_an_offset_is_not_taken_for_utc(text, words):
    with pytest.raises(TriggerError) as raised:
        parse("interval", {"hours": 1, "timezone": text})
    assert words in str(raised.value)
