"""The machine's time zone by a name that other machines know, too.

`TZ` may be what POSIX calls a zone (`CET-1CEST,M3.5.0,M10.5.0/3`, `UTC+3`), and `/etc/localtime` a
copy. An offset becomes one, rules become a zone of the database that has the same; what no zone
has is refused: the system takes UTC for it without a word.
"""

from __future__ import annotations

import os
import re
import zoneinfo
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from fp_async.errors import TriggerError, suggestion

LOCALTIME = Path("/etc/localtime")
_NAME = r"(?:<[+\-\w]+>|[A-Za-z]{3,})"
_OFFSET = r"[+-]?\d{1,3}(?::\d\d(?::\d\d)?)?"
_POSIX = re.compile(rf"({_NAME})({_OFFSET})(?:({_NAME})({_OFFSET})?(?:,([^,]+),([^,]+))?)?")
_CLOCK = re.compile(r"([+-]?)(\d{1,3})(?::(\d\d))?(?::(\d\d))?")


_REGIONS = ("Europe", "America", "Asia", "Africa", "Australia", "Pacific", "Atlantic", "Indian")


class Posix(NamedTuple):
    """A zone as POSIX writes it; offsets in seconds east of UTC, `rules` as (day, second)."""

    standard: str
    offset: int
    summer: int | None = None
    rules: tuple[tuple[str, int], ...] = ()


def name(environment: Mapping[str, str] = os.environ, localtime: Path = LOCALTIME) -> str:
    """Return the name of the machine's zone. Raises TriggerError where it has none."""
    given = environment.get("TZ")
    if given is None:
        return _of_machine(localtime)
    text = given.removeprefix(":")
    if not text:
        return "UTC"  # as the system has it
    return _of_file(Path(text), f"TZ={given}") if text.startswith("/") else _of_text(text)


def offset(text: str) -> str | None:
    """Return `+03:00` for the text of a zone without summer time, as POSIX has it; else None."""
    posix = parse(text)
    return None if posix is None or posix.summer is not None else _offset(posix.offset)


def parse(text: str) -> Posix | None:
    """Return what POSIX says a text means; None where it is none of its zones."""
    found = _POSIX.fullmatch(text)
    if found is None:
        return None
    standard, clock, summer, ahead, *rules = found.groups()
    west = _seconds(clock)
    if not summer:
        return Posix(standard, -west)
    east = 3600 - west if ahead is None else -_seconds(ahead)
    return Posix(standard, -west, east, tuple(_rule(rule) for rule in rules if rule))


def _rule(text: str) -> tuple[str, int]:
    day, _, clock = text.partition("/")
    return day, _seconds(clock) if clock else 7200


def _seconds(clock: str) -> int:
    found = _CLOCK.fullmatch(clock)
    if found is None:
        return 0
    sign, hours, minutes, seconds = found.groups()
    total = 3600 * int(hours) + 60 * int(minutes or 0) + int(seconds or 0)
    return -total if sign == "-" else total


def _offset(seconds: int) -> str:
    minutes, rest = divmod(abs(seconds), 60)
    tail = f":{rest:02d}" if rest else ""
    return f"{'-' if seconds < 0 else '+'}{minutes // 60:02d}:{minutes % 60:02d}{tail}"


def _of_text(text: str) -> str:
    if _data(text) is not None:
        return text
    posix = parse(text)
    if posix is None:
        known = suggestion(text, get_close_matches(text, zoneinfo.available_timezones(), 5))
        raise _unclear(f"TZ={text} is no time zone, and the system takes UTC for it{known}")
    if posix.summer is None:
        return _offset(posix.offset)
    found = _alike(posix)
    if found is None:
        what = "no zone has these rules" if posix.rules else "it has no rules for summer time"
        raise _unclear(f"TZ={text}: {what}")
    return found


def _of_machine(localtime: Path) -> str:
    from tzlocal import get_localzone_name

    try:
        found = get_localzone_name()
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        found = None  # where the files of the system contradict each other, the clock's counts
    if found and (localtime.is_symlink() or _agrees(found, localtime)):
        return found
    return _of_file(localtime, str(localtime)) if localtime.exists() else found or "UTC"


def _agrees(name: str, localtime: Path) -> bool:
    """Return whether a file that is no link holds that zone: `/etc/timezone` may be older."""
    return not localtime.exists() or _footer(localtime.read_bytes()) == _footer(_data(name) or b"")


def _of_file(path: Path, what: str) -> str:
    for folder in map(Path, zoneinfo.TZPATH):
        if path.resolve().is_relative_to(folder.resolve()):
            key = str(path.resolve().relative_to(folder.resolve()))
            return key.removeprefix("posix/")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unclear(f"{what}: {error.strerror}") from error
    same = [key for key in _keys() if _data(key) == data]
    if same:
        return same[0]
    return _of_text(_footer(data))


def _alike(posix: Posix) -> str | None:
    """Return a zone with the same offsets and rules, one of that name first; None if none has."""
    alike = [key for key in _keys() if _same(parse(_footer(_data(key) or b"")), posix)]
    named = [key for key in alike if key.startswith(posix.standard)]
    return next(iter([*named, *alike]), None)


def _same(one: Posix | None, other: Posix) -> bool:
    return one is not None and one[1:] == other[1:]


@lru_cache(maxsize=1)
def _keys() -> list[str]:
    """Return the zones' names, those of well-known places first."""
    places = {f"{region}/": place for place, region in enumerate(_REGIONS)}

    def rank(key: str) -> tuple[int, str]:
        return places.get(key[: key.find("/") + 1], len(places)), key

    return sorted(zoneinfo.available_timezones(), key=rank)


def _data(key: str) -> bytes | None:
    try:
        for folder in zoneinfo.TZPATH:
            if (path := Path(folder, key)).is_file():
                return path.read_bytes()
        return resources.files("tzdata").joinpath("zoneinfo", *key.split("/")).read_bytes()
    except (OSError, ValueError, ModuleNotFoundError):
        return None


def _footer(data: bytes) -> str:
    """Return the rules that a file of the database ends with: what holds from now on."""
    lines = data.rstrip(b"\n").rsplit(b"\n", 1)
    return lines[-1].decode("ascii", "replace") if len(lines) > 1 else ""


def _unclear(why: str) -> TriggerError:
    return TriggerError(
        f"the machine's time zone is unclear, give timezone= or set TZ=Europe/Berlin, say: {why}"
    )
