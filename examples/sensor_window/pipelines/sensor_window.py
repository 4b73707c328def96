"""sensor_window: condenses a heating plant's raw readings into windows and alarms.

Runs where the sensors are, on a small box: the standard library only. What leaves the box is
plain data (numbers, text, lists, mappings), a few hundred bytes instead of every reading.
"""

import csv
import math
from collections import defaultdict
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from hamilton.function_modifiers import parameterize

from fp_async import load_params

PARAMS = load_params(__file__)  # params.sensor_window in conf/pipelines.yml

EARLIEST = datetime(2020, 1, 1, tzinfo=UTC)


class Reading(NamedTuple):
    """One measurement; `time` in seconds since 1970."""

    time: int
    sensor: str
    value: float


def lines(readings_path: str) -> list[dict[str, str | None]]:
    """The logger's file, line by line; a torn line lacks columns."""
    with Path(readings_path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def readings(lines: list[dict[str, str | None]]) -> list[Reading]:
    """What can be read, by sensor and time: late readings arrive out of order."""
    parsed = (_parse(line) for line in lines)
    return sorted((r for r in parsed if r is not None), key=itemgetter(1, 0))


def _parse(line: dict[str, str | None]) -> Reading | None:
    """A line as a reading; None for torn lines, error codes, and clocks that were never set."""
    sensor = line["sensor"]
    try:
        time = datetime.fromisoformat(line["timestamp"] or "")
        value = float(line["value"] or "")
    except ValueError:
        return None
    if not sensor or not math.isfinite(value) or time.tzinfo is None or time < EARLIEST:
        return None
    return Reading(int(time.timestamp()), sensor, value)


@parameterize(**PARAMS.plausible_readings)
def plausible_readings(readings: list[Reading], neighbours: int, max_jump: float) -> list[Reading]:
    """Readings without glitches: single values far from the median of their neighbourhood.

    A real rise lasts for several readings and moves the median along, so it stays.
    """
    kept: list[Reading] = []
    for _, group in groupby(readings, key=itemgetter(1)):
        series = list(group)
        for index, reading in enumerate(series):
            around = series[max(0, index - neighbours) : index + neighbours + 1]
            if abs(reading.value - median(r.value for r in around)) <= max_jump:
                kept.append(reading)
    return kept


@parameterize(**PARAMS.windows)
def windows(plausible_readings: list[Reading], window_seconds: int) -> list[dict[str, Any]]:
    """Mean, minimum, maximum and count per sensor for windows that follow on each other.

    Windows begin at whole multiples of `window_seconds`, so those of two boxes line up.
    """
    values: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for time, sensor, value in plausible_readings:
        values[sensor, time // window_seconds * window_seconds].append(value)
    return [
        {
            "sensor": sensor,
            "start": _iso(start),
            "count": len(inside),
            "mean": round(fmean(inside), 3),
            "min": min(inside),
            "max": max(inside),
        }
        for (sensor, start), inside in sorted(values.items())
    ]


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@parameterize(**PARAMS.alarms)
def alarms(
    windows: list[dict[str, Any]], limits: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """One entry per sensor and excursion, however many windows it lasts."""

    def sensor_and_breach(window: dict[str, Any]) -> tuple[str, str | None]:
        sensor = window["sensor"]
        return sensor, _breach(window["mean"], **limits.get(sensor, {}))

    return [
        _alarm(sensor, breach, list(group))
        for (sensor, breach), group in groupby(windows, key=sensor_and_breach)
        if breach is not None
    ]


def _breach(mean: float, low: float = -math.inf, high: float = math.inf) -> str | None:
    """Which limit the mean of a window is beyond, if any."""
    if mean > high:
        return "high"
    return "low" if mean < low else None


def _alarm(sensor: str, limit: str, excursion: list[dict[str, Any]]) -> dict[str, Any]:
    means = [window["mean"] for window in excursion]
    return {
        "sensor": sensor,
        "limit": limit,
        "first_window": excursion[0]["start"],
        "windows": len(excursion),
        "worst_mean": max(means) if limit == "high" else min(means),
    }


def skipped(
    lines: list[dict[str, str | None]],
    readings: list[Reading],
    plausible_readings: list[Reading],
) -> dict[str, int]:
    """How much was thrown away; a rising number means a failing sensor or cable."""
    return {
        "lines": len(lines),
        "unreadable": len(lines) - len(readings),
        "glitches": len(readings) - len(plausible_readings),
    }
