"""What the MongoDB store keeps for jobs on agents."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress

import pymongo.errors
from msgspec.structs import asdict, replace

from fp_async import rules
from fp_async.jobs import Changes, Chunk, Job, Letter, Offer
from fp_async.stores.mongo_claiming import ORDER, in_turn
from fp_async.stores.mongo_connection import Connection
from fp_async.stores.mongo_documents import (
    TEXT,
    WITHOUT_BLOBS,
    Document,
    document,
    firsts,
    in_time,
    job,
    translated,
)

_CLOCK = {"$divide": [{"$toLong": "$$NOW"}, 1000.0]}
_WANTED = {"state": "queued", "target": TEXT}
_LETTER = Letter.__struct_fields__
_CHUNK = Chunk.__struct_fields__


class MongoFleet:
    """The contract `stores.fleet` on a connection that a store has opened."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._uri = connection.uri

    async def lead(self, role: str, owner: str, seconds: float) -> bool:
        members = self._connection.require().members
        me = json.dumps(owner).encode()
        which: Document = {"_id": {"kind": "lead", "name": role}}
        with translated(self._uri):
            if seconds <= 0:
                await members.delete_one({**which, "info": me})
                return False
            take = _take(role, me, seconds)
            found = None
            while found is None:  # somebody else has made the document at the same moment
                with suppress(pymongo.errors.DuplicateKeyError):
                    found = await members.find_one_and_update(
                        which, take, upsert=True, return_document=True
                    )
            return bool(found["info"] == me)

    async def wanted(self) -> dict[str, float]:
        stages: list[Document] = [
            {"$match": _WANTED},
            {"$group": {"_id": "$target", "at": {"$min": "$run_at"}}},
        ]
        with translated(self._uri):
            found = await self._connection.require().jobs.aggregate(stages)
            return {each["_id"]: each["at"] async for each in found}

    async def waiting(self, targets: Sequence[str], limit: int) -> list[Job]:
        jobs = self._connection.require().jobs
        if not targets or limit <= 0:  # to the server, 0 is no limit
            return []
        with translated(self._uri):
            now = await self._connection.now()
            which = {
                "$and": [_WANTED, {"target": {"$in": list(targets)}}],
                "run_at": {"$lte": now},
                **in_time(now),
            }
            found = jobs.find(which, WITHOUT_BLOBS).sort(ORDER).limit(limit)
            return [job(each) async for each in found]

    async def offer(self, offers: Sequence[Offer]) -> list[Job | None]:
        """Cancelled, it may have bound some of them."""
        documents = self._connection.require()

        async def one(i: int) -> None:
            decide = _offered(offers[i])
            answers[i] = await documents.compare_and_set(offers[i].id, decide, whole=True)

        answers: list[Job | None] = [None] * len(offers)
        with translated(self._uri):
            await in_turn(one, [offer.id for offer in offers])
        return answers

    async def adopt(self, jobs: Sequence[Job]) -> list[bool]:
        """Cancelled, it may have inserted some of them."""
        documents = self._connection.require()
        with translated(self._uri):
            now = await self._connection.now()
            new = [document(rules.adopted(job, now), self._connection.seq(now)) for job in jobs]
            first = firsts(new)
            refused = await documents.insert(documents.jobs, [new[i] for i in first])
            done = {i for position, i in enumerate(first) if position not in refused}
            fired = rules.fired_elsewhere(jobs[i] for i in sorted(done))
            for id, (count, last) in fired.items():
                change = {"$inc": {"fired": count}, "$max": {"last_fire_time": last}}
                await documents.schedules.update_one({"_id": id}, change)
        return [i in done for i in range(len(jobs))]

    async def unreplied(self, limit: int) -> list[Job]:
        jobs = self._connection.require().jobs
        which = {"reply_to": TEXT, "replied_at": None, "ended_at": {"$gt": 0}, "pruned": False}
        if limit <= 0:
            return []
        with translated(self._uri):
            return [job(each) async for each in jobs.find(which).sort("ended_at").limit(limit)]

    async def replied(self, ids: Sequence[str]) -> None:
        jobs = self._connection.require().jobs
        with translated(self._uri):
            change = {"$set": {"replied_at": await self._connection.now()}}
            await jobs.update_many({"_id": {"$in": list(ids)}}, change)

    async def bury(self, letters: Sequence[Letter]) -> None:
        documents = self._connection.require()
        with translated(self._uri):
            now = await self._connection.now()
            new = [_buried(letter, now, self._connection.seq(now)) for letter in letters]
            await documents.insert(documents.letters, new)

    async def letters(self, limit: int = 50) -> list[Letter]:
        letters = self._connection.require().letters
        if limit <= 0:
            return []
        with translated(self._uri):
            found = letters.find().sort([("at", -1), ("seq", -1)]).limit(limit)
            return [_letter(each) async for each in found]

    async def keep(self, chunks: Sequence[Chunk]) -> None:
        documents = self._connection.require()
        with translated(self._uri):
            now = await self._connection.now()
            await documents.insert(documents.chunks, [_kept(chunk, now) for chunk in chunks])

    async def kept(self, id: str, attempt: int) -> list[Chunk]:
        chunks = self._connection.require().chunks
        with translated(self._uri):
            found = chunks.find({"id": id, "attempt": attempt}).sort("index")
            return [Chunk(**{name: each[name] for name in _CHUNK}) async for each in found]

    async def forget(self, id: str) -> None:
        with translated(self._uri):
            await self._connection.require().chunks.delete_many({"id": id})


# Documents ----------------------------------------------------------------------------------


def _take(role: str, me: bytes, seconds: float) -> list[Document]:
    """An update that takes the lease if it may be had: decided and timed by the server."""
    over = {"$lte": [{"$ifNull": ["$until", 0.0]}, _CLOCK]}
    mine = {
        "kind": "lead",
        "name": {"$literal": role},
        "info": me,
        "seen_at": _CLOCK,
        "until": {"$add": [_CLOCK, float(seconds)]},
    }
    kept = {name: {"$cond": ["$free", value, f"${name}"]} for name, value in mine.items()}
    free = {"$or": [over, {"$eq": ["$info", me]}]}
    return [{"$set": {"free": free}}, {"$set": kept}, {"$unset": "free"}]


def _offered(offer: Offer) -> Callable[[Job], Changes | None]:
    return lambda job: rules.offered(job, offer)


def _buried(letter: Letter, now: float, seq: int) -> Document:
    fields = asdict(replace(letter, at=letter.at or now))
    return {"_id": fields.pop("id"), "seq": seq, **fields}


def _letter(found: Document) -> Letter:
    return Letter(id=found["_id"], **{name: found[name] for name in _LETTER[1:]})


def _kept(chunk: Chunk, now: float) -> Document:
    which = {"id": chunk.id, "attempt": chunk.attempt, "index": chunk.index}
    return {"_id": which, **asdict(chunk), "at": now}
