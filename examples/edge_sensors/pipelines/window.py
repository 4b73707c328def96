"""On the device, on a schedule: the readings of the last `seconds`, by sensor."""

import time
from pathlib import Path
from statistics import fmean

FILE = Path(__file__).parent.parent / "readings.csv"


def recent(seconds: float) -> list[tuple[str, float]]:
    """(sensor, value) of the last seconds; none before the first reading."""
    if not FILE.exists():
        return []
    since = time.time() - seconds
    rows = (line.split(",") for line in FILE.read_text().splitlines())
    return [(sensor, float(value)) for at, sensor, value in rows if float(at) >= since]


def sensors(recent: list[tuple[str, float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for sensor, value in recent:
        found.setdefault(sensor, []).append(value)
    return found


def window(sensors: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        sensor: {"count": len(values), "mean": round(fmean(values), 2), "max": max(values)}
        for sensor, values in sensors.items()
    }
