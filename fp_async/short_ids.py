"""Ids that are given shortened: the beginning of one, as far as it is unambiguous."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec.structs import replace

from fp_async.errors import AmbiguousIdError, UnknownNameError
from fp_async.jobs import Find, Schedule
from fp_async.stores import IdColumn, Store
from fp_async.watching import unknown

LEAST = 8  # characters that are shown of an id
_WHOLE = 36
_LISTED = 10
_BEGINNING = re.compile(r"[0-9a-f][0-9a-f-]*")


async def job(store: Store, text: str) -> str:
    """Return the id of the job that begins with `text`; a whole id is not looked up.

    Raises UnknownNameError where no job has such an id, AmbiguousIdError where several have.
    """
    if len(text) >= _WHOLE:
        return text
    found = await _beginning(store, text, "id")
    if not found:
        raise unknown(text)
    return _only("job", text, found)


async def group(store: Store, text: str) -> str:
    """Return the id of the group that begins with `text`, or `text` where there is none.

    Raises AmbiguousIdError.
    """
    if len(text) >= _WHOLE:
        return text
    found = await _beginning(store, text, "group_id")
    return _only("group", text, found) if found else text


async def schedule(store: Store, text: str) -> Schedule:
    """Return the schedule whose id is `text`, or else begins with it.

    Raises UnknownNameError, AmbiguousIdError.
    """
    if (row := await store.schedule(text)) is not None:
        return row
    rows = {row.id: row for row in await store.schedules()}
    found = [id for id in rows if text and id.startswith(text)]
    if not found:
        raise UnknownNameError("schedule", text, rows)
    return rows[_only("schedule", text, found)]


async def completed(store: Store, query: Find) -> Find:
    """Return the query with whole ids. One of a schedule that is gone stays as it is: its jobs
    are there. Raises AmbiguousIdError.
    """
    if query.group_id is not None:
        query = replace(query, group_id=await group(store, query.group_id))
    if query.schedule_id is not None:
        try:
            row = await schedule(store, query.schedule_id)
        except UnknownNameError:
            return query
        query = replace(query, schedule_id=row.id)
    return query


async def shown_length(store: Store, ids: Sequence[str]) -> int:
    """Return how many characters of these jobs' ids tell each of them from all others."""
    length = LEAST
    while length < _WHOLE:
        found = await store.ids([id[:length] for id in ids])
        needed = max((_distinct(*two) for two in found if len(two) > 1), default=0)
        if needed <= length:
            return length
        length = needed
    return length


def _distinct(one: str, other: str) -> int:
    """Return how many characters of two ids tell them apart."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other))) + 1


async def _beginning(store: Store, text: str, of: IdColumn) -> list[str]:
    text = text.lower()
    if _BEGINNING.fullmatch(text) is None:
        return []
    (found,) = await store.ids([text], _LISTED, of=of)
    return found


def _only(kind: str, text: str, found: Sequence[str]) -> str:
    if len(found) > 1:
        raise AmbiguousIdError(kind, text, found)
    return found[0]
