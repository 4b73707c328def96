"""Whole rows of the SQL stores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from msgspec.structs import asdict

from fp_async.jobs import Job
from fp_async.stores import sql_claiming, sql_tables
from fp_async.stores.sql_tables import Db
from fp_async.stores.sql_transactions import Transactions
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
)


class SqlTransfer:
    """The contract `stores.transfer` on connections that a store has opened."""

    def __init__(self, server: Transactions) -> None:
        self._server = server

    async def page(self, kind: Kind, after: Cursor = ()) -> Page:
        return await self._server.read(partial(_page, kind=kind, after=after))

    async def bring(self, kind: Kind, rows: Sequence[Row]) -> list[Answer]:
        if not rows:
            return []
        return await self._server.write(partial(_bring, kind=kind, rows=rows))


def _page(db: Db, *, kind: Kind, after: Cursor) -> Page:
    """Look first how large the rows are: a result may have megabytes."""
    table = TABLES[kind]
    order = _names(table.order)
    sizes = [f"octet_length(coalesce({name}, ''))" for name in _names(table.blobs)]
    where, values = _after(order, after, ">", "a")
    found = db.rows(
        f"SELECT {', '.join(order)}, {' + '.join(['500', *sizes])} FROM fp_{kind}"
        f"{where} ORDER BY {', '.join(order)} LIMIT {PAGE_ROWS}",
        **values,
    )
    if not found:
        return Page([], None)
    count, total = 0, 0
    while count < len(found) and (total < PAGE_BYTES or not count):
        total += int(found[count][-1])
        count += 1
    last = tuple(found[count - 1][:-1])
    until, more = _after(order, last, "<=", "b")
    both = where + until.replace(" WHERE ", " AND ") if where else until
    rows = db.rows(
        f"SELECT {', '.join(_names(table.columns))} FROM fp_{kind}{both} "
        f"ORDER BY {', '.join(order)}",
        **values,
        **more,
    )
    end = count == len(found) < PAGE_ROWS
    return Page([_row(kind, row) for row in rows], None if end else last)


def _names(columns: Sequence[str]) -> list[str]:
    return [f'"{name}"' for name in columns]


def _after(
    order: Sequence[str], place: Cursor, sign: str, prefix: str
) -> tuple[str, dict[str, object]]:
    """Return a condition on the place of rows, and its values."""
    if not place:
        return "", {}
    values = {f"{prefix}{number}": value for number, value in enumerate(place)}
    marks = ", ".join(f":{name}" for name in values)
    return f" WHERE ({', '.join(order)}) {sign} ({marks})", values


def _row(kind: Kind, values: Sequence[Any]) -> Row:
    if kind == "jobs":
        return sql_tables.job(values)
    if kind == "schedules":
        return sql_tables.schedule(values)
    named = dict(zip(TABLES[kind].columns, values, strict=True))
    row: Row = TABLES[kind].struct(**named)  # type: ignore[assignment]
    return row


def _bring(db: Db, *, kind: Kind, rows: Sequence[Row]) -> list[Answer]:
    """Another copy that inserts the same at the same moment makes this one be tried again."""
    there, keys = _known(db, kind, rows)
    new: list[Row] = []
    answers: list[Answer] = []
    for row in rows:
        key = row.active_key if isinstance(row, Job) else None
        known = key_of(kind, row) in there
        answers.append("there" if known else "refused" if key in keys else "copied")
        if answers[-1] == "copied":
            new.append(row)
            there.add(key_of(kind, row))
            keys |= {key} - {None}
    if new and kind == "jobs":
        sql_tables.insert_whole(db, [row for row in new if isinstance(row, Job)])
    elif new:
        sql = sql_tables.insert(f"fp_{kind}", TABLES[kind].columns)
        db.many(sql, [_without_nuls(asdict(row)) for row in new])
    return answers


def _without_nuls(fields: dict[str, Any]) -> dict[str, Any]:
    """Replace NULs, which SQLite keeps and PostgreSQL refuses, as `bury` does."""
    texts = {name: value for name, value in fields.items() if isinstance(value, str)}
    return fields | {name: text.replace("\0", "\ufffd") for name, text in texts.items()}


def _known(db: Db, kind: Kind, rows: Sequence[Row]) -> tuple[set[Cursor], set[str | None]]:
    """Return the keys of those rows that there are, and the keys that active jobs bear."""
    if kind == "jobs":
        ids = sql_claiming.known(db, [row.id for row in rows if isinstance(row, Job)])
        borne = [row.active_key for row in rows if isinstance(row, Job) and row.active_key]
        sql = f"SELECT active_key FROM fp_jobs WHERE {db.server.one_of('active_key', 'each_key')}"
        found = db.rows(sql, each_key=borne) if borne else ()
        return {(id,) for id in ids}, {key for (key,) in found}
    names = TABLES[kind].key
    terms = " AND ".join(f'"{name}" = :{name}' for name in names)
    sql = f"SELECT count(*) FROM fp_{kind} WHERE {terms}"
    keys = {key_of(kind, row) for row in rows}
    there = {key for key in keys if db.rows(sql, **dict(zip(names, key, strict=True)))[0][0]}
    return there, set()
