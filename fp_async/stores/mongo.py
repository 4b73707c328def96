"""Jobs in MongoDB: the truth about a job is in one document, so no transaction spans two.

Whatever is read, decided and written is written by compare-and-set on `rev`, which every write
that a decision could depend on increments. Where two documents change (`fire`), the jobs come
first, under ids that are the same at every try. Times are by the server's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict, replace

from fp_async import rules
from fp_async.addresses import place
from fp_async.jobs import MISCONFIGURED, Changes, Find, Fire, Job, Member, Report, Schedule
from fp_async.stores import (
    AFTER_HEX,
    CANCEL,
    HELD,
    LOST,
    SCHEMA_VERSION,
    IdColumn,
    mongo_claiming,
    mongo_pruning,
)
from fp_async.stores.mongo_claiming import each_of, in_turn
from fp_async.stores.mongo_connection import Connection
from fp_async.stores.mongo_documents import (
    HELD_STATES,
    ID,
    TEXT,
    WITHOUT_BLOBS,
    Document,
    Documents,
    document,
    firsts,
    job,
    member,
    schedule,
    sought,
    translated,
    troubled,
)
from fp_async.stores.mongo_fleet import MongoFleet

if TYPE_CHECKING:
    from fp_async.stores.mongo_transfer import MongoTransfer

_INSERTED_AT_ONCE = 1000


class MongoStore:
    """The store contract (`stores`) on the database that the path of `uri` names.

    Raises MissingExtraError without pymongo. Belongs to one event loop.
    """

    shared = True
    path = None
    joins = False

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._connection = Connection(uri)
        self.fleet: MongoFleet = MongoFleet(self._connection)

    @property
    def transfer(self) -> MongoTransfer:
        from fp_async.stores.mongo_transfer import MongoTransfer

        return MongoTransfer(self._connection)

    async def open(self) -> None:
        await self._connection.open()

    async def close(self) -> None:
        await self._connection.close()

    def _require(self) -> Documents:
        return self._connection.require()

    async def now(self) -> float:
        with translated(self.uri):
            return await self._now()

    async def _now(self) -> float:
        return await self._connection.now()

    # Jobs -----------------------------------------------------------------------------------

    async def add(self, jobs: Sequence[Job]) -> list[str]:
        with translated(self.uri):
            return [id for id, _ in await self._add(self._require(), jobs)]

    async def _add(self, documents: Documents, jobs: Sequence[Job]) -> list[tuple[str, bool]]:
        """(id that stands for it, whether it is there under its own) of each job."""
        now = await self._now()
        new = [document(rules.added(job, now), self._connection.seq(now)) for job in jobs]
        first = firsts(new)
        refused: set[int] = set(range(len(new))).difference(first)
        for start in range(0, len(first), _INSERTED_AT_ONCE):
            page = first[start : start + _INSERTED_AT_ONCE]
            failed = await documents.insert(documents.jobs, [new[i] for i in page])
            refused.update(page[i] for i in failed)
        answers: list[tuple[str, bool]] = []
        for index, given in enumerate(new):
            holder = await self._holder(documents, given) if index in refused else None
            answers.append((holder or given["_id"], holder is None))
        return answers

    @staticmethod
    async def _holder(documents: Documents, given: Document) -> str | None:
        """Who stands for a job that could not be inserted; None where it is there itself."""
        while True:
            if await documents.jobs.find_one({"_id": given["_id"]}, ID) is not None:
                return None
            which = {"active_key": {"$eq": given["active_key"], **TEXT}}
            found = await documents.jobs.find_one(which, ID)
            if found is not None:
                return str(found["_id"])
            if not await documents.insert(documents.jobs, [given]):  # its holder has ended
                return None

    async def claim(
        self,
        owner: str,
        queues: Sequence[str],
        limit: int,
        lease: float,
        without: Sequence[str] = (),
    ) -> list[Job]:
        """Cancelled, it may have claimed some: their leases run out."""
        documents = self._require()
        with translated(self.uri):
            now = await self._now()
            until = (now, now + lease)
            return await mongo_claiming.claim(documents, owner, queues, limit, until, without)

    async def renew(self, owner: str, held: Sequence[tuple[str, int]], lease: float) -> list[str]:
        documents = self._require()

        async def one(pair: tuple[str, int]) -> str:
            which = {"_id": pair[0], "attempt": pair[1], "owner": owner, "state": "running"}
            change = {"$set": {"lease_until": until}, "$inc": {"rev": 1}}
            found = await documents.jobs.find_one_and_update(which, change, {"cancel_at": 1})
            return LOST if found is None else HELD if found["cancel_at"] is None else CANCEL

        with translated(self.uri):
            until = await self._now() + lease
            return await each_of(one, held)

    async def note(self, records: Sequence[tuple[str, int, bytes]]) -> None:
        documents = self._require()

        async def one(note: tuple[str, int, bytes]) -> None:
            which = {"_id": note[0], "attempt": note[1], "state": "running"}
            await documents.jobs.update_one(which, {"$set": {"record": note[2]}})

        with translated(self.uri):
            await each_of(one, records)

    async def finish(self, reports: Sequence[Report]) -> list[bool]:
        documents = self._require()

        async def one(i: int) -> None:
            decide = _reported(reports[i], now)
            done[i] = await documents.compare_and_set(reports[i].id, decide) is not None

        done = [False] * len(reports)
        with translated(self.uri):
            now = await self._now()
            await in_turn(one, [report.id for report in reports])
        return done

    async def cancel(self, id: str, reason: str | None = None) -> str | None:
        documents = self._require()
        seen: list[str] = []

        def decide(job: Job) -> Changes | None:
            changes = rules.cancelled(job, now, reason)
            seen.append((changes or {}).get("state", job.state))
            return changes

        with translated(self.uri):
            now = await self._now()
            await documents.compare_and_set(id, decide)
        return seen[-1] if seen else None

    async def rescue(self, dead: Sequence[str] = ()) -> list[Job]:
        documents = self._require()
        gone = set(dead)

        def decide(job: Job) -> Changes | None:
            late = job.lease_until is not None and job.lease_until < now
            return rules.rescued(job, now, dead=late or job.owner in gone)

        async def one(id: str) -> Job | None:
            return await documents.compare_and_set(id, decide)

        with translated(self.uri):
            now = await self._now()
            found = [each["_id"] async for each in documents.jobs.find(troubled(now, gone), ID)]
            return [job for job in await each_of(one, found) if job is not None]

    async def owners(self) -> list[str]:
        which = {**HELD_STATES, "owner": {"$type": "string"}}
        with translated(self.uri):
            return list(await self._require().jobs.distinct("owner", which))

    async def get(self, id: str) -> Job | None:
        with translated(self.uri):
            found = await self._require().jobs.find_one({"_id": id, "pruned": False})
        return None if found is None else job(found)

    async def find(self, query: Find) -> list[Job]:
        if query.limit <= 0:
            return []
        with translated(self.uri):
            found = self._require().jobs.find(sought(query), WITHOUT_BLOBS).sort("seq", -1)
            return [job(each) async for each in found.limit(query.limit)]

    async def ids(
        self, beginnings: Sequence[str], limit: int = 2, *, of: IdColumn = "id"
    ) -> list[list[str]]:
        documents, field = self._require(), "_id" if of == "id" else of

        async def one(text: str) -> list[str]:
            within = {"$gte": text, "$lt": text + AFTER_HEX}
            stages: list[dict[str, Any]] = [
                {"$match": {field: within, "pruned": False}},
                {"$group": {"_id": f"${field}"}},
                {"$sort": {"_id": 1}},
                {"$limit": limit},
            ]
            found = await (await documents.jobs.aggregate(stages)).to_list()
            return [each["_id"] for each in found]

        with translated(self.uri):
            return await each_of(one, beginnings)

    async def counts(self) -> dict[tuple[str, str], int]:
        stages: list[dict[str, Any]] = [
            {"$match": {"pruned": False}},
            {"$group": {"_id": {"queue": "$queue", "state": "$state"}, "n": {"$sum": 1}}},
        ]
        with translated(self.uri):
            found = await (await self._require().jobs.aggregate(stages)).to_list()
        return {(each["_id"]["queue"], each["_id"]["state"]): each["n"] for each in found}

    async def misconfigured(self) -> dict[tuple[str, str, str], int]:
        names, why = ("queue", "pipeline", "reason"), {"$regex": f"^{MISCONFIGURED}"}
        stages: list[dict[str, Any]] = [
            {"$match": {"state": {"$in": ["queued", "accepted"]}, "reason": why}},
            {"$group": {"_id": {name: f"${name}" for name in names}, "n": {"$sum": 1}}},
        ]
        with translated(self.uri):
            found = await (await self._require().jobs.aggregate(stages)).to_list()
        return {tuple(each["_id"][name] for name in names): each["n"] for each in found}

    async def next_run_at(self, queues: Sequence[str], without: Sequence[str] = ()) -> float | None:
        which: dict[str, Any] = {
            "state": "queued",
            "target": None,
            "queue": {"$in": list(queues)},
        }
        if without:
            which["_id"] = {"$nin": list(without)}
        with translated(self.uri):
            found = await self._require().jobs.find_one(which, {"run_at": 1}, sort=[("run_at", 1)])
        return None if found is None else float(found["run_at"])

    async def prune(self, limit: int = 1000) -> int:
        with translated(self.uri):
            return await mongo_pruning.prune(self._require(), await self._now(), limit)

    # Schedules ------------------------------------------------------------------------------

    async def put(self, schedule_: Schedule) -> Schedule:
        schedules = self._require().schedules
        kept = ("id", "created_at", "last_fire_time", "fired", "skipped", "revision")
        given = asdict(schedule_)
        change = {
            "$set": {name: value for name, value in given.items() if name not in kept},
            "$inc": {"revision": 1},
        }
        with translated(self.uri):
            if not schedule_.created_at:
                given["created_at"] = await self._now()
            which = {"_id": given.pop("id")}
            while True:
                found = await schedules.find_one_and_update(which, change, return_document=True)
                if found is not None:
                    return schedule(found)
                if not await self._require().insert(schedules, [{**which, **given}]):
                    return schedule({**which, **given})

    async def schedule(self, id: str) -> Schedule | None:
        with translated(self.uri):
            found = await self._require().schedules.find_one({"_id": id})
        return None if found is None else schedule(found)

    async def schedules(self) -> list[Schedule]:
        with translated(self.uri):
            return [schedule(each) async for each in self._require().schedules.find().sort("_id")]

    async def pause(
        self, id: str, *, paused: bool, next_fire_time: float | None = None
    ) -> Schedule | None:
        values = {"paused": paused, "next_fire_time": next_fire_time}
        change = {"$set": values, "$inc": {"revision": 1}}
        with translated(self.uri):
            found = await self._require().schedules.find_one_and_update(
                {"_id": id}, change, return_document=True
            )
        return None if found is None else schedule(found)

    async def delete(self, id: str) -> bool:
        with translated(self.uri):
            return bool((await self._require().schedules.delete_one({"_id": id})).deleted_count)

    async def due(self, until: float, limit: int = 500) -> list[Schedule]:
        which = {"paused": False, "next_fire_time": {"$lte": until}}
        with translated(self.uri):
            found = self._require().schedules.find(which).sort("next_fire_time").limit(limit)
            return [schedule(each) async for each in found]

    async def next_due(self) -> float | None:
        which = {"paused": False, "next_fire_time": {"$type": "number"}}
        order = [("next_fire_time", 1)]
        with translated(self.uri):
            found = await self._require().schedules.find_one(which, sort=order)
        return None if found is None else float(found["next_fire_time"])

    async def fire(self, fires: Sequence[Fire]) -> list[list[str] | None]:
        """Cancelled between the two, the same fire again finds its jobs and moves the schedule."""
        documents = self._require()
        with translated(self.uri):
            return [await self._fire(documents, fire) for fire in fires]

    async def _fire(self, documents: Documents, fire: Fire) -> list[str] | None:
        found = await documents.schedules.find_one({"_id": fire.id})
        if found is None or not rules.may_fire(before := schedule(found), fire):
            return None  # before the jobs: they must not come from what was changed long ago
        names = ("revision", "next_fire_time", "last_fire_time", "paused")
        which = {"_id": fire.id, **{name: found[name] for name in names}}
        added = [id for id, own in await self._add(documents, fire.jobs) if own]
        skipped = fire.skipped + len(fire.jobs) - len(added)
        after = rules.fired(before, fire)
        change = {
            "$set": {
                "next_fire_time": after.next_fire_time,
                "last_fire_time": after.last_fire_time,
            },
            "$inc": {"fired": len(added), "skipped": skipped},
        }
        moved = await documents.schedules.update_one(which, change)
        return added if moved.matched_count else None

    # Members --------------------------------------------------------------------------------

    async def saw(self, member: Member, seconds: float) -> None:
        documents = self._require()
        which = {"_id": {"kind": member.kind, "name": member.name}}
        with translated(self.uri):
            if seconds <= 0:
                await documents.members.delete_one(which)
                return
            now = await self._now()
            seen = asdict(replace(member, seen_at=now, until=now + seconds))
            await documents.members.replace_one(which, {**which, **seen}, upsert=True)

    async def members(self, kind: str) -> list[Member]:
        documents = self._require()
        with translated(self.uri):
            which = {"kind": kind, "until": {"$gt": await self._now()}}
            return [member(each) async for each in documents.members.find(which).sort("name")]

    # Housekeeping ---------------------------------------------------------------------------

    async def info(self) -> dict[str, Any]:
        documents = self._require()
        with translated(self.uri):
            sizes = await documents.database.command("dbStats")
            return {
                "type": "mongodb",
                "place": place(self.uri),
                "schema": SCHEMA_VERSION,
                "server": f"MongoDB {(await documents.client.server_info())['version']}",
                "bytes": int(sizes["storageSize"]) + int(sizes["indexSize"]),
                "jobs": await documents.jobs.count_documents({}),
                "schedules": await documents.schedules.count_documents({}),
                "members": await documents.members.count_documents({}),
            }

    async def vacuum(self) -> None:
        """Nothing: WiredTiger uses the space of removed documents again by itself."""
        self._require()


def _reported(report: Report, now: float) -> Callable[[Job], Changes | None]:
    return lambda job: rules.reported(job, report, now)
