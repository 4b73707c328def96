"""Connecting to MongoDB, its collections and indexes, rows as documents, its errors as ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from msgspec.structs import replace

from fp_async.addresses import place, scrubbed
from fp_async.errors import MissingExtraError, StoreError, StoreUnavailableError
from fp_async.jobs import CANCEL_DEADLINE, COLUMNS, LIGHT, Changes, Find, Job, Member, Schedule
from fp_async.stores import SCHEMA_VERSION

try:
    import bson.errors
    import pymongo.errors
    from pymongo import ASCENDING, DESCENDING, AsyncMongoClient, IndexModel
    from pymongo.read_concern import ReadConcern
    from pymongo.read_preferences import ReadPreference
    from pymongo.write_concern import WriteConcern
except ImportError as error:
    raise MissingExtraError("data store 'mongodb'", "mongodb") from error

Document = dict[str, Any]
ID = {"_id": 1}
WITHOUT_BLOBS = dict.fromkeys((name for name in COLUMNS if name not in LIGHT), 0)
HELD_STATES = {"state": {"$in": ["offered", "accepted", "running"]}}
TEXT = {"$type": "string"}  # queries repeat it, or they could not use an index of these alone
_SELECTION_MS = 5000  # the driver's 30 s are longer than a lease
_DUPLICATE = 11000
_TOO_LARGE = 10334


class Documents:
    """A client, and the collections of ours. What is acknowledged is on the majority's disks."""

    def __init__(self, uri: str) -> None:
        options: dict[str, Any] = {"tz_aware": True, "appname": "flowerpower"}
        if "serverselectiontimeoutms" not in uri.lower():
            options["serverSelectionTimeoutMS"] = _SELECTION_MS
        try:
            self.client: AsyncMongoClient[Document] = AsyncMongoClient(uri, **options)
        except ValueError as error:  # of its parser, for a port or an option
            raise StoreError(_text(uri, error)) from error
        self.database = self.client.get_default_database("flowerpower").with_options(
            write_concern=WriteConcern("majority", j=True),
            read_concern=ReadConcern("majority"),
            read_preference=ReadPreference.PRIMARY,
        )
        self.jobs = self.database["fp_jobs"]
        self.schedules = self.database["fp_schedules"]
        self.members = self.database["fp_members"]
        self.letters = self.database["fp_letters"]
        self.chunks = self.database["fp_chunks"]
        self.meta = self.database["fp_meta"]

    async def prepare(self) -> None:
        """Make the indexes. Raises StoreError where a newer program has used the database.

        Documents of earlier versions stay as they are: what they lack is read as its default.
        """
        found = await self.meta.find_one({"_id": "schema"})
        version = 0 if found is None else found["version"]
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"the data store has schema version {version}, this program knows "
                f"{SCHEMA_VERSION}: it was used by a newer flowerpower; upgrade this one"
            )
        await self.jobs.create_indexes(_JOB_INDEXES)
        await self.schedules.create_indexes([IndexModel(_ascending("paused", "next_fire_time"))])
        await self.members.create_indexes([IndexModel(_ascending("kind", "name"))])
        await self.letters.create_indexes([IndexModel([("at", DESCENDING), _SEQ])])
        parts = _ascending("id", "attempt", "index")
        await self.chunks.create_indexes([IndexModel(parts), IndexModel(_ascending("at"))])
        await self._note_version(version)

    async def _note_version(self, found: int) -> None:
        """Once the indexes are there, so that whoever dies before this makes them again."""
        if found == 0:
            await self.insert(self.meta, [{"_id": "schema", "version": SCHEMA_VERSION}])
        elif found < SCHEMA_VERSION:
            older = {"_id": "schema", "version": {"$lt": SCHEMA_VERSION}}
            await self.meta.update_one(older, {"$set": {"version": SCHEMA_VERSION}})

    async def insert(self, collection: Any, new: Sequence[Document]) -> set[int]:
        """Insert; the positions of those that a unique index, or the id, refused."""
        if not new:
            return set()
        try:
            await collection.insert_many(new, ordered=False)
        except pymongo.errors.BulkWriteError as error:
            refused = error.details["writeErrors"]
            other = next((each for each in refused if each["code"] != _DUPLICATE), None)
            if other is not None:
                raise pymongo.errors.WriteError(other["errmsg"], other["code"]) from error
            if error.details["writeConcernErrors"]:
                raise
            return {each["index"] for each in refused}
        return set()

    async def compare_and_set(
        self, id: str, decide: Callable[[Job], Changes | None], *, whole: bool = False
    ) -> Job | None:
        """Change the job by what `decide` says of it as it is now; the job since, without blobs
        unless it is wanted `whole`.

        None for an unknown job, and where there was nothing to change. Somebody else's write
        between makes it look and decide again.
        """
        fields = None if whole else WITHOUT_BLOBS
        while True:
            found = await self.jobs.find_one({"_id": id, "pruned": False}, fields)
            before = None if found is None else job(found)
            changes = None if before is None else decide(before)
            if found is None or before is None or changes is None:
                return None
            which = {"_id": id, "rev": found["rev"]}
            done = await self.jobs.update_one(which, {"$set": changes, "$inc": {"rev": 1}})
            if done.matched_count:
                return replace(before, **changes)

    async def take(self, found: Document, changes: Changes) -> bool:
        """Write what a claim changes; False where somebody else took the job, or its place."""
        which = {"_id": found["_id"], "rev": found["rev"]}
        try:
            done = await self.jobs.update_one(which, {"$set": changes, "$inc": {"rev": 1}})
        except pymongo.errors.DuplicateKeyError:
            return False
        return bool(done.matched_count)


def _ascending(*names: str) -> list[tuple[str, int]]:
    return [(name, ASCENDING) for name in names]


def _where(filter_: Document, *keys: tuple[str, int], unique: bool = False) -> IndexModel:
    return IndexModel(list(keys), unique=unique, partialFilterExpression=filter_)


_UNIQUE = ("active_key", "slot", "lane_held")
_SEQ = ("seq", DESCENDING)
_JOB_INDEXES = [
    *(_where({name: TEXT}, (name, ASCENDING), unique=True) for name in _UNIQUE),
    _where(
        {"state": "queued"},
        ("queue", ASCENDING),
        ("priority", DESCENDING),
        ("run_at", ASCENDING),
        ("seq", ASCENDING),
        ("target", ASCENDING),
    ),
    _where({"state": "queued", "target": None}, *_ascending("queue", "run_at")),
    IndexModel([("state", ASCENDING), _SEQ]),
    IndexModel([_SEQ]),
    *(_where({name: {"$gt": 0}}, (name, ASCENDING)) for name in ("prune_at", "expires_at")),
    *(_where({name: TEXT}, (name, ASCENDING), _SEQ) for name in ("schedule_id", "group_id")),
    _where({"state": "queued", "target": TEXT}, *_ascending("target", "run_at")),
    _where({"reply_to": TEXT}, *_ascending("replied_at", "ended_at")),
]


# Rows ---------------------------------------------------------------------------------------


def document(new: Job, seq: int) -> Document:
    """A new job as it is inserted."""
    fields = msgspec.structs.asdict(new)
    return {"_id": fields.pop("id"), "seq": seq, "rev": 0, **fields}


def job(found: Document) -> Job:
    """A document, maybe without what is large, as a Job."""
    return Job(id=found["_id"], **{name: found[name] for name in COLUMNS[1:] if name in found})


def schedule(found: Document) -> Schedule:
    """A document as a Schedule."""
    return Schedule(id=found["_id"], **{n: v for n, v in found.items() if n != "_id"})


def member(found: Document) -> Member:
    """A document as a Member."""
    return Member(**{name: value for name, value in found.items() if name != "_id"})


def sought(query: Find) -> Document:
    """Which documents a query is about."""
    which: Document = {"pruned": False}
    if query.states:
        which["state"] = {"$in": list(query.states)}
    for name in ("pipeline", "queue", "schedule_id", "group_id", "owner", "agent"):
        if getattr(query, name) is not None:
            which[name] = {"$eq": getattr(query, name), **TEXT}
    if query.bound and query.agent is None:
        which["agent"] = TEXT
    if query.since is not None:
        which["created_at"] = {"$gte": query.since}
    return which


def in_time(now: float) -> Document:
    """Jobs that may begin: expiry guards the first start only."""
    started = {"started_at": {"$gt": 0}}
    return {"$or": [{"expires_at": None}, {"expires_at": {"$gt": now}}, started]}


def troubled(now: float, gone: set[str]) -> dict[str, Any]:
    """What `rescue` has to look at."""
    trouble = [
        {"owner": {"$in": list(gone)}},
        {"lease_until": {"$lt": now}},
        {"cancel_at": {"$lte": now - CANCEL_DEADLINE}},
    ]
    late = {"state": "queued", "expires_at": {"$gt": 0, "$lte": now}, "started_at": None}
    return {"pruned": False, "$or": [{**HELD_STATES, "$or": trouble}, late]}


def firsts(new: Sequence[Document]) -> list[int]:
    """Which are the first of their id and key: the server may insert in any order."""
    ids: set[str] = set()
    keys: set[str | None] = set()
    first: list[int] = []
    for index, each in enumerate(new):
        if each["_id"] not in ids and each["active_key"] not in keys:
            first.append(index)
            ids.add(each["_id"])
            keys.update({each["active_key"]} - {None})
    return first


# Errors -------------------------------------------------------------------------------------

_UNAVAILABLE = (
    pymongo.errors.ConnectionFailure,
    pymongo.errors.ExecutionTimeout,
    pymongo.errors.WTimeoutError,
    pymongo.errors.InvalidOperation,  # the client was closed meanwhile
)


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """The driver's errors as ours: what may pass is StoreUnavailableError."""
    try:
        yield
    except _UNAVAILABLE as error:
        raise StoreUnavailableError(_text(uri, error)) from error
    except pymongo.errors.DocumentTooLarge as error:
        raise StoreError(_too_large(uri)) from error
    except (pymongo.errors.PyMongoError, bson.errors.BSONError) as error:
        if getattr(error, "code", None) == _TOO_LARGE:
            raise StoreError(_too_large(uri)) from error
        if isinstance(error, pymongo.errors.PyMongoError) and error.has_error_label(
            "RetryableWriteError"
        ):
            raise StoreUnavailableError(_text(uri, error)) from error
        raise StoreError(_text(uri, error)) from error


def _text(uri: str, error: Exception) -> str:
    reason = re.split(r", full error:|, Timeout:| \(configured timeouts", str(error))[0]
    return f"data store {place(uri)}: {scrubbed(reason, uri)}"


def _too_large(uri: str) -> str:
    return f"data store {place(uri)}: a job with inputs and result must be smaller than 16 MB there"
