"""What is removed from MongoDB when its time is over."""

from __future__ import annotations

from fp_async import rules
from fp_async.jobs import CHUNK_TTL, LETTER_TTL, REPLY_TTL
from fp_async.stores.mongo_documents import Documents


async def prune(documents: Documents, now: float, limit: int) -> int:
    """Remove, or leave the bare id of, up to `limit` jobs; and old letters and chunks."""
    await documents.letters.delete_many({"at": {"$lte": now - LETTER_TTL}})
    await documents.chunks.delete_many({"at": {"$lte": now - CHUNK_TTL}})
    jobs = documents.jobs
    over = {
        "prune_at": {"$gt": 0, "$lte": now},
        "unreported": {"$ne": True},
        "$or": [
            {"reply_to": None},
            {"replied_at": {"$ne": None}},
            {"prune_at": {"$lte": now - REPLY_TTL}},
        ],
    }
    found = await jobs.find(over, {"identity": 1, "pruned": 1}).limit(limit).to_list()
    bare = [each["_id"] for each in found if each["identity"] and not each["pruned"]]
    whole = [each["_id"] for each in found if not each["identity"] or each["pruned"]]
    if bare:
        change = {"$set": rules.pruned(now), "$inc": {"rev": 1}}
        await jobs.update_many({"_id": {"$in": bare}, "pruned": False, **over}, change)
    if whole:
        await jobs.delete_many({"_id": {"$in": whole}, **over})
    return len(found)
