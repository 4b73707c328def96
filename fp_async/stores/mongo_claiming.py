"""Claiming from MongoDB: candidates in order, then each by compare-and-set."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

from fp_async import rules
from fp_async.jobs import Changes, Job
from fp_async.stores.mongo_documents import TEXT, Document, Documents, in_time, job

T = TypeVar("T")
R = TypeVar("R")
_AT_ONCE = 32
_LARGEST_PAGE = 200
_LOST_IN_A_ROW = 10  # others are at it: what is left, they will take
ORDER = [("priority", -1), ("run_at", 1), ("seq", 1)]


async def claim(
    documents: Documents,
    owner: str,
    queues: Sequence[str],
    limit: int,
    lease: tuple[float, float],
    without: Sequence[str] = (),
) -> list[Job]:
    """Take due jobs, in order, as far as they have a place; `lease` is from now until then."""
    now, until = lease
    claimed: list[Job] = []
    places, lost = rules.Places(set), 0
    while len(claimed) < limit and lost < _LOST_IN_A_ROW:
        size = min(limit - len(claimed), _LARGEST_PAGE)
        found = await _page(documents, _due(queues, now, places, without), size)
        if not found:
            break
        if any(each["concurrency"] is not None or each["lane"] is not None for each in found):
            places = _known_full(places, await _taken(documents))
        chosen = _choose([(each, job(each)) for each in found], places, owner, now, until)
        done = await each_of(lambda one: documents.take(one[0], one[2]), chosen)
        taken = [replace(j, **c) for (_, j, c), own in zip(chosen, done, strict=True) if own]
        claimed += taken
        if len(taken) < len(chosen):  # its place may be free for all we know
            places = rules.Places(set)
            lost = 0 if taken else lost + 1
    return claimed


def _choose(
    found: Sequence[tuple[Document, Job]],
    places: rules.Places,
    owner: str,
    now: float,
    until: float,
) -> list[tuple[Document, Job, Changes]]:
    """What to change in those that have a place."""
    chosen = []
    for each, candidate in found:
        held = places.take(candidate)
        if held is not None:
            changes = {**rules.claimed(candidate, owner, now, until), **held}
            chosen.append((each, candidate, changes))
    return chosen


def _known_full(places: rules.Places, taken: set[str]) -> rules.Places:
    """Places as they are now; what was found full stays so, or the pages would not move on."""
    fresh = rules.Places(lambda: taken)
    fresh.pipelines, fresh.lanes = places.pipelines, places.lanes
    return fresh


def _due(
    queues: Sequence[str], now: float, places: rules.Places, without: Sequence[str]
) -> Document:
    """The jobs that may be claimed, without those that are known to have no place."""
    terms = [in_time(now)]
    if without:
        terms.append({"_id": {"$nin": list(without)}})
    if places.pipelines:
        full = {"pipeline": {"$nin": sorted(places.pipelines)}}
        terms.append({"$or": [{"concurrency": None}, full]})
    if places.lanes:
        terms.append({"lane": {"$nin": sorted(places.lanes)}})
    return {
        "state": "queued",
        "target": None,
        "queue": {"$in": list(queues)},
        "run_at": {"$lte": now},
        "$and": terms,
    }


async def _page(documents: Documents, which: Document, size: int) -> list[Document]:
    return await documents.jobs.find(which).sort(ORDER).limit(size).to_list()


async def _taken(documents: Documents) -> set[str]:
    """The slots and lanes that running jobs hold."""
    names: set[str] = set()
    for field in ("slot", "lane_held"):
        async for found in documents.jobs.find({field: TEXT}, {field: 1}):
            names.add(found[field])
    return names


async def in_turn(work: Callable[[int], Awaitable[None]], ids: Sequence[str]) -> None:
    """`work` of every position: of one id one after the other, of several ids at once."""

    async def one(positions: Sequence[int]) -> None:
        for position in positions:
            await work(position)

    of_one_id: dict[str, list[int]] = {}
    for position, id in enumerate(ids):
        of_one_id.setdefault(id, []).append(position)
    await each_of(one, list(of_one_id.values()))


async def each_of(work: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
    """`work` of every item, some at once; nothing of it runs on when this ends."""
    if len(items) == 1:
        return [await work(items[0])]
    results: dict[int, Any] = {}
    waiting = iter(range(len(items)))

    async def take() -> None:
        for index in waiting:
            results[index] = await work(items[index])

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_AT_ONCE, len(items))):
                group.create_task(take())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [results[index] for index in range(len(items))]
