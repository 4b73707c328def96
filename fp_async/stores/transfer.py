"""Whole rows, as they are stored: the part of the contract by which a store is copied.

`page` reads the rows of a kind in the order in which they were inserted, or of their keys; `bring`
inserts rows, but for those whose id is there already, in one transaction (in MongoDB each row is
one). So a copy that was cut off is begun again and ends as one that was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from fp_async.jobs import Job, Letter, Member, Schedule

Kind = Literal["jobs", "schedules", "members", "letters", "chunks"]
Answer = Literal["copied", "there", "refused"]  # refused: another job bears its key
Cursor = tuple[Any, ...]  # the place of a row in the order of its kind; () is before the first
PAGE_ROWS = 500
PAGE_BYTES = 8_000_000


class StoredChunk(msgspec.Struct, frozen=True):
    """A part of a result, with the time at which it came."""

    id: str
    attempt: int
    index: int
    data: bytes
    at: float


Row = Job | Schedule | Member | Letter | StoredChunk


class Page(NamedTuple):
    """Some rows, and where the next page begins; None after the last row."""

    rows: Sequence[Row]
    next: Cursor | None


class Table(NamedTuple):
    """A kind of rows: its Struct, its key, and the order of its pages."""

    struct: type[msgspec.Struct]
    key: tuple[str, ...]
    order: tuple[str, ...]
    blobs: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the fields."""
        return self.struct.__struct_fields__


TABLES: dict[Kind, Table] = {
    "jobs": Table(Job, ("id",), ("seq",), ("inputs", "result", "record", "error", "spec")),
    "schedules": Table(Schedule, ("id",), ("id",)),
    "members": Table(Member, ("kind", "name"), ("kind", "name")),
    "letters": Table(Letter, ("id",), ("seq",), ("payload",)),
    "chunks": Table(StoredChunk, ("id", "attempt", "index"), ("id", "attempt", "index"), ("data",)),
}


class Transfer(Protocol):
    """Reading and writing whole rows. Raises what a Store raises."""

    async def page(self, kind: Kind, after: Cursor = ()) -> Page:
        """Up to PAGE_ROWS rows after `after`, of about PAGE_BYTES at most, pruned ones included."""

    async def bring(self, kind: Kind, rows: Sequence[Row]) -> list[Answer]:
        """Insert; a row whose key is there already stays as it is there."""


def key_of(kind: Kind, row: Row) -> tuple[Any, ...]:
    """Return the values by which a row is known in its table."""
    return tuple(getattr(row, name) for name in TABLES[kind].key)


def size_of(values: Sequence[object]) -> int:
    """Return about how many bytes a row needs."""
    return 500 + sum(len(value) for value in values if isinstance(value, bytes))
