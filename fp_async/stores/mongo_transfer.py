"""Whole documents of the MongoDB store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import asdict

from fp_async.jobs import Job
from fp_async.stores import mongo_documents
from fp_async.stores.mongo_connection import Connection
from fp_async.stores.mongo_documents import Document, translated
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


class MongoTransfer:
    """The contract `stores.transfer` on a connection that a store has opened."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def page(self, kind: Kind, after: Cursor = ()) -> Page:
        order = _order(kind)
        rows: list[Row] = []
        size = 0
        with translated(self._connection.uri):
            collection = getattr(self._connection.require(), kind)
            found = collection.find(_after(order, after)).sort([(name, 1) for name in order])
            async for each in found.limit(PAGE_ROWS):
                rows.append(_row(kind, each))
                size += size_of(list(each.values()))
                if size >= PAGE_BYTES or len(rows) == PAGE_ROWS:
                    return Page(rows, tuple(each[name] for name in order))
        return Page(rows, None)

    async def bring(self, kind: Kind, rows: Sequence[Row]) -> list[Answer]:
        """Cancelled, it may have inserted some of them."""
        documents = self._connection.require()
        with translated(self._connection.uri):
            collection = getattr(documents, kind)
            now = await self._connection.now()
            new = [_document(kind, row, self._connection.seq(now)) for row in rows]
            kept_out = await documents.insert(collection, new)
            ids = [new[i]["_id"] for i in kept_out]
            there = [each["_id"] async for each in collection.find({"_id": {"$in": ids}})]
        return [
            "copied" if i not in kept_out else "there" if each["_id"] in there else "refused"
            for i, each in enumerate(new)
        ]


def _order(kind: Kind) -> tuple[str, ...]:
    """Return the fields that order documents; of two processes `seq` may be the same."""
    if "seq" in TABLES[kind].order:
        return ("seq", "_id")
    return ("_id",) if TABLES[kind].order == ("id",) else TABLES[kind].order


def _after(order: Sequence[str], place: Cursor) -> Document:
    if not place:
        return {}
    terms: list[Document] = []
    for end in range(len(order)):
        same = dict(zip(order[:end], place[:end], strict=True))
        terms.append({**same, order[end]: {"$gt": place[end]}})
    return {"$or": terms}


def _row(kind: Kind, found: Document) -> Row:
    if kind == "jobs":
        return mongo_documents.job(found)
    if kind == "schedules":
        return mongo_documents.schedule(found)
    fields = {**found, "id": found.get("id", found["_id"])}
    named: dict[str, Any] = {name: fields[name] for name in TABLES[kind].columns}
    row: Row = TABLES[kind].struct(**named)  # type: ignore[assignment]
    return row


def _document(kind: Kind, row: Row, seq: int) -> Document:
    if isinstance(row, Job):
        return mongo_documents.document(row, seq)
    key, fields = key_of(kind, row), asdict(row)
    if len(key) > 1:
        return {"_id": dict(zip(TABLES[kind].key, key, strict=True)), **fields}
    del fields["id"]
    return {"_id": key[0], **({"seq": seq} if kind == "letters" else {}), **fields}
