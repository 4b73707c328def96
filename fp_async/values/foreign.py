"""Single values of libraries, which are known by the names of their classes: none is imported."""

from __future__ import annotations

import datetime as dt
from typing import Any

from fp_async.values.scalars import EXACT, SCALARS, Scalar, read_bool

_PANDAS = {
    "Timestamp": (str, dt.date),
    "Timedelta": (str, int, float, dt.timedelta),
    "Period": (str,),
}


def scalar(kind: type) -> Scalar | None:
    """How a class of pandas or numpy is read, if it is one of a single value."""
    if kind.__module__.partition(".")[0] == "pandas" and kind.__name__ in _PANDAS:
        return _pandas(kind)
    names = {each.__name__ for each in kind.__mro__ if each.__module__ == "numpy"}
    return _numpy(kind, names) if "generic" in names else None


def _pandas(kind: Any) -> Scalar:
    def make(value: Any) -> Any:
        if isinstance(value, int | float):
            return kind(value, unit="s")
        made = kind(value)
        if str(made) == "NaT":
            raise ValueError(value)
        return made

    def read(text: str, level: int) -> Any:
        if level == EXACT and text.isalnum():
            raise ValueError(text)
        return make(text)

    return Scalar(kind, read, _PANDAS[kind.__name__], make)


def _numpy(kind: Any, names: set[str]) -> Scalar | None:
    for name, base in (("integer", int), ("floating", float), ("complexfloating", complex)):
        if name in names and "timedelta64" not in names:
            return _number(kind, base)
    if names & {"bool", "bool_"}:
        return Scalar(kind, lambda text, level: kind(read_bool(text, level)), (bool,), kind)
    if names & {"datetime64", "timedelta64", "str_"}:

        def read(text: str, level: int) -> Any:
            if level == EXACT:
                raise ValueError(text)
            return kind(text)

        return Scalar(kind, read, (str, dt.date, dt.timedelta), kind)
    return None


def _number(kind: Any, base: type) -> Scalar:
    """A number of numpy's, from one of Python's that it can hold."""

    def make(value: Any) -> Any:
        made = kind(value)
        if base is int and int(made) != value:
            raise OverflowError(value)
        return made

    def read(text: str, level: int) -> Any:
        return make(SCALARS[base].read(text, level))

    return Scalar(kind, read, (int,) if base is int else (int, float), make)
