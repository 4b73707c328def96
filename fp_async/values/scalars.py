"""Single values: how each type reads text, and which data it takes in place of itself.

`Scalar.text` reads at a level: `EXACT` takes only what no other type would be written like, `LOOSE`
all that the type can be written as, `LAST` what is guesswork. A union asks its members level by
level, so that in `float | int` 2 is an int, and in `bool | int` 1 is one, too.
"""

from __future__ import annotations

import datetime as dt
import fractions
import ipaddress
import re
import uuid
import zoneinfo
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

import msgspec

from fp_async.values.misfit import MisfitError
from fp_async.values.secret import Secret
from fp_async.values.text import Numeral, Text

EXACT, LOOSE, LAST = range(3)
_BOOLS = {"true": True, "yes": True, "on": True, "1": True}
_BOOLS |= {"false": False, "no": False, "off": False, "0": False}
_INT = re.compile(r"[+-]?[0-9]+")
_PLAIN_INT = re.compile(r"-?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_CLOCK = re.compile(r"(?:(-?[0-9]+) days?, )?([0-9]+):([0-9]{2})(?::([0-9]{2}(?:\.[0-9]{1,6})?))?")
_OF_DIGITS = (Decimal, fractions.Fraction)
_UNITS = re.compile(  # 1h30m, 90 s, 1.5d
    r"\s*".join(
        rf"(?:(?P<{unit}>[0-9]+(?:\.[0-9]+)?)\s?{short})?"
        for unit, short in (
            *(("weeks", "w"), ("days", "d"), ("hours", "h"), ("minutes", "m(?:in)?")),
            *(("seconds", "s"), ("milliseconds", "ms")),
        )
    )
)
_WAYS = "seconds, 1h30m, 1:30:00 or PT1H30M"
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
Read = Callable[[str, int], Any]


class Scalar(NamedTuple):
    """One type that is written as one value.

    `read(text, level)` and `make(data)` raise ValueError (or TypeError, OverflowError) for what
    does not fit; `made_of` are the types of data that `make` takes.
    """

    kind: Any
    read: Read
    made_of: tuple[type, ...] = ()
    make: Callable[[Any], Any] | None = None
    hint: str = ""

    @property
    def atoms(self) -> frozenset[type]:
        """The types whose values pass as they are."""
        return frozenset({self.kind})

    def data(self, value: Any) -> Any:
        """A value that keeps its type. Raises MisfitError."""
        if isinstance(value, self.kind):
            return value
        if self.make is None or not isinstance(value, self.made_of) or isinstance(value, bool):
            raise MisfitError(self.kind, value)
        return self._tried(self.make, value)

    def text(self, text: Text, level: int) -> Any:
        """A text that is read as this type. Raises MisfitError."""
        if isinstance(text, Numeral) and self.kind not in _OF_DIGITS:
            return self.data(float(text))
        return self._tried(self.read, str(text), level)

    def _tried(self, function: Callable[..., Any], value: Any, *more: Any) -> Any:
        try:
            return function(value, *more)
        except (ValueError, TypeError, ArithmeticError, msgspec.ValidationError, KeyError):
            problem = MisfitError(self.kind, value)
            if self.hint:
                problem.problem = f"{problem.expected()} ({self.hint})"
            raise problem from None


def _matched(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(text)
    return text


def _read_int(text: str, level: int) -> int:
    return int(_matched(_PLAIN_INT if level == EXACT else _INT, text))


def _read_float(text: str, level: int) -> float:
    if _NO_NUMBER.fullmatch(text):
        return float(text)
    if level == EXACT and _INT.fullmatch(text):
        raise ValueError(text)
    return float(_matched(_FLOAT, text))


def read_bool(text: str, level: int) -> bool:
    if level == EXACT and text.lower() not in ("true", "false"):
        raise ValueError(text)
    return _BOOLS[text.lower()]


def _read_none(text: str, level: int) -> None:
    if text not in ("null", "None") and (text or level == EXACT):
        raise ValueError(text)


def _read_datetime(text: str, level: int) -> dt.datetime:
    if level == EXACT:
        _matched(re.compile(r"[0-9-]+W?[0-9-]*[T ].+"), text)
    return dt.datetime.fromisoformat(text)


def _read_time(text: str, _: int) -> dt.time:
    if ":" not in text:
        raise ValueError(text)
    return dt.time.fromisoformat(text)


def _read_timedelta(text: str, level: int) -> dt.timedelta:
    if (found := _UNITS.fullmatch(text)) and any(found.groups()):
        parts = {unit: float(part) for unit, part in found.groupdict().items() if part}
        return dt.timedelta(**parts)
    if clock := _CLOCK.fullmatch(text):
        days, hours, minutes, seconds = (float(part or 0) for part in clock.groups())
        return dt.timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if level != EXACT and _FLOAT.fullmatch(text):
        return dt.timedelta(seconds=float(text))
    return msgspec.convert(text, dt.timedelta)


def _read_decimal(text: str, level: int) -> Decimal:
    if level == EXACT:
        raise ValueError(text)
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(text) from None


def _at_least(least: int, make: Callable[[str], Any]) -> Read:
    """`make`, at this level and those after it."""

    def read(text: str, level: int) -> Any:
        if level < least:
            raise ValueError(text)
        return make(text)

    return read


def _called(kind: Callable[[str], Any]) -> Read:
    return lambda text, _: kind(text)


def _read_bytes(text: str) -> bytes:
    return msgspec.convert(text, bytes)


def _midnight(value: Any) -> dt.datetime:
    if isinstance(value, str):
        return _read_datetime(value, LOOSE)
    return dt.datetime.combine(value, dt.time())


def _from_number(make: Callable[[Any], Any], read: Read) -> Callable[[Any], Any]:
    """Exactly the number that a person sees: 0.1 is a tenth."""

    def made(value: Any) -> Any:
        if isinstance(value, str):
            return read(value, LOOSE)
        return make(repr(value)) if isinstance(value, float) else make(value)

    return made


def _seconds(value: Any) -> dt.timedelta:
    if isinstance(value, str):
        return _read_timedelta(value, EXACT)
    return dt.timedelta(seconds=value)


def _of_text(kind: type, read: Read, hint: str = "") -> Scalar:
    """A type that data has no form for but text."""
    return Scalar(kind, read, (str,), lambda text: read(text, LAST), hint)


_fraction = _at_least(LOOSE, fractions.Fraction)
_BASE64 = "text in base64"
SCALARS: dict[type, Scalar] = {
    each.kind: each
    for each in (
        Scalar(str, _at_least(LAST, str)),
        Scalar(int, _read_int),
        Scalar(float, _read_float, (int,), float),
        Scalar(complex, _at_least(LOOSE, complex), (int, float, str), complex),
        Scalar(bool, read_bool),
        Scalar(type(None), _read_none),
        Scalar(dt.datetime, _read_datetime, (str, dt.date), _midnight),
        _of_text(dt.date, lambda text, _: dt.date.fromisoformat(_matched(_DATE, text))),
        _of_text(dt.time, _read_time),
        Scalar(dt.timedelta, _read_timedelta, (str, int, float), _seconds, _WAYS),
        Scalar(Decimal, _read_decimal, (str, int, float), _from_number(Decimal, _read_decimal)),
        Scalar(
            fractions.Fraction,
            _fraction,
            (str, int, float),
            _from_number(fractions.Fraction, _fraction),
        ),
        _of_text(uuid.UUID, lambda text, _: uuid.UUID(text)),
        _of_text(bytes, _at_least(LAST, _read_bytes), _BASE64),
        _of_text(bytearray, _at_least(LAST, lambda text: bytearray(_read_bytes(text))), _BASE64),
        _of_text(Secret, _at_least(LAST, Secret)),
        _of_text(zoneinfo.ZoneInfo, _at_least(LOOSE, zoneinfo.ZoneInfo)),
        _of_text(re.Pattern, _at_least(LOOSE, re.compile)),
        *(
            _of_text(kind, _called(kind))
            for kind in (
                *(ipaddress.IPv4Address, ipaddress.IPv4Network, ipaddress.IPv4Interface),
                *(ipaddress.IPv6Address, ipaddress.IPv6Network, ipaddress.IPv6Interface),
            )
        ),
    )
}
