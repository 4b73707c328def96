"""The classes of docs/values.md. This file is also the beginning of the pipelines that have an
input of each type; `told` is what their nodes say of the value that they were given.
"""

import dataclasses
import enum
import typing
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional, TypedDict, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pandas as pd
import pydantic


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Place:
    host: str
    port: int = 80


class Struct(msgspec.Struct):
    host: str
    port: int = 80


class Typed(TypedDict, total=False):
    host: typing.Required[str]
    port: int


class Named(NamedTuple):
    host: str
    port: int = 80


class Model(pydantic.BaseModel):
    host: str
    port: int = 80


NAMES = {
    each.__name__: each
    for each in (
        *(deque, Iterable, Sequence, date, datetime, time, timedelta, Decimal, Fraction),
        *(IPv4Address, Path, UUID, ZoneInfo, Color, Level, Place, Struct, Typed, Named, Model),
    )
} | {"Literal": Literal, "Optional": Optional, "Union": Union, "np": np, "pd": pd}


def _told(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, set | frozenset):
        return f"{kind}{sorted(map(_told, value))}"
    if isinstance(value, dict):
        return f"{kind}{[(_told(key), _told(item)) for key, item in value.items()]}"
    if isinstance(value, list | tuple | deque):
        return f"{kind}{[_told(item) for item in value]}"
    return f"{kind} {value!r}"
