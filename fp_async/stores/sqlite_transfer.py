"""Whole rows of the SQLite store."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import Any

from msgspec.structs import astuple

from fp_async.jobs import Job
from fp_async.stores import tables
from fp_async.stores.transfer import (
    PAGE_BYTES,
    PAGE_ROWS,
    TABLES,
    Answer,
    Cursor,
    Kind,
    Page,
    Row,
    key_of,
    size_of,
)
from fp_async.stores.units import Units

_Db = sqlite3.Connection


class SqliteTransfer:
    """The contract `stores.transfer` on a connection that a store has opened."""

    def __init__(self, units: Units) -> None:
        self._units = units

    async def page(self, kind: Kind, after: Cursor = ()) -> Page:
        return await self._units.read(partial(_page, kind=kind, after=after))

    async def bring(self, kind: Kind, rows: Sequence[Row]) -> list[Answer]:
        if not rows:
            return []
        return await self._units.write(partial(_bring, kind=kind, rows=rows))


def _page(db: _Db, *, kind: Kind, after: Cursor) -> Page:
    table = TABLES[kind]
    order = [_quoted(_column(kind, name)) for name in table.order]
    columns = [*map(_quoted, table.columns), *order]
    sql = f"SELECT {', '.join(columns)} FROM {kind}"
    if after:
        sql += f" WHERE ({', '.join(order)}) > ({', '.join('?' * len(order))})"
    rows: list[Row] = []
    size = 0
    for values in db.execute(f"{sql} ORDER BY {', '.join(order)}", after):
        own = values[: len(table.columns)]
        rows.append(_row(kind, own))
        size += size_of(own)
        if len(rows) == PAGE_ROWS or size >= PAGE_BYTES:
            return Page(rows, values[len(table.columns) :])
    return Page(rows, None)


def _column(kind: Kind, name: str) -> str:
    return "rowid" if (kind, name) == ("letters", "seq") else name


def _quoted(name: str) -> str:
    return f'"{name}"'


def _row(kind: Kind, values: tuple[Any, ...]) -> Row:
    if kind == "jobs":
        return tables.job(values)
    if kind == "schedules":
        return tables.schedule(values)
    named = dict(zip(TABLES[kind].columns, values, strict=True))
    row: Row = TABLES[kind].struct(**named)  # type: ignore[assignment]
    return row


def _bring(db: _Db, *, kind: Kind, rows: Sequence[Row]) -> list[Answer]:
    table = TABLES[kind]
    names = ", ".join(map(_quoted, table.columns))
    marks = ", ".join("?" * len(table.columns))
    sql = f"INSERT INTO {kind} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING"
    return [
        "copied" if db.execute(sql, astuple(row)).rowcount == 1 else _why(db, kind, row)
        for row in rows
    ]


def _why(db: _Db, kind: Kind, row: Row) -> Answer:
    """Return what has kept a row out: its own key, or a unique index on something else."""
    if not isinstance(row, Job):
        return "there"
    found = db.execute("SELECT 1 FROM jobs WHERE id = ?", key_of(kind, row)).fetchone()
    return "refused" if found is None else "there"
