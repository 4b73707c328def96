"""What one data store holds, brought into another: `flowerpower store copy`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from fp_async import watching
from fp_async.errors import UsageError
from fp_async.jobs import Job, Member
from fp_async.stores import Store
from fp_async.stores.transfer import TABLES, Answer, Kind, Row

_WORKING = ("worker", "scheduler", "gateway")  # kinds of members that change rows
_PRESENT = (*_WORKING, "lead")  # those that say who is there now, and mean nothing elsewhere
_SHOWN = 5


class Copied(msgspec.Struct):
    """Counts of a kind's rows that were copied, or there already; the ids of jobs that were refused
    because an active job there bears their key.
    """

    copied: int = 0
    there: int = 0
    refused: list[str] = []


Told = Callable[[Kind, Copied], None]


async def copy(source: Store, target: Store, told: Told = lambda _, __: None) -> dict[Kind, Copied]:
    """Bring all rows of `source` into `target`; what is there already stays as it is there.

    Cut off, it is done in part, and doing it again does the rest. `told` is called after every
    page. A job that a dead worker has left running is copied without its lease, so that it is
    rescued there as it would be here. Raises UsageError while workers of either store live.
    """
    counts: dict[Kind, Copied] = {kind: Copied() for kind in TABLES}
    for kind, count in counts.items():
        place: tuple[Any, ...] | None = ()
        while place is not None:
            await _check_idle(source, "the store to copy from")
            await _check_idle(target, "the store to copy to")
            page = await source.transfer.page(kind, place)
            rows = [fit for row in page.rows if (fit := _fitting(row)) is not None]
            for row, answer in zip(rows, await target.transfer.bring(kind, rows), strict=True):
                _add(count, row, answer)
            told(kind, count)
            place = page.next
    return counts


def _add(count: Copied, row: Row, answer: Answer) -> None:
    if answer == "copied":
        count.copied += 1
    elif answer == "there":
        count.there += 1
    elif isinstance(row, Job):
        count.refused.append(row.id)


def _fitting(row: Row) -> Row | None:
    """Return a row as it is right in another store; None for what means nothing there.

    Leases are measured by the clock of their store, and places are held with them.
    """
    if isinstance(row, Member):
        return None if row.kind in _PRESENT or row.until <= time.time() else row
    if isinstance(row, Job) and row.lease_until is not None:
        return replace(row, lease_until=0.0, slot=None, lane_held=None)
    return row


async def _check_idle(store: Store, which: str) -> None:
    names = [
        f"{kind} {each['name'].partition('/')[0]}"
        for kind in _WORKING
        for each in await watching.alive(store, kind)
    ]
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise UsageError(
            f"{which} is in use by {', '.join(names[:_SHOWN])}{more}: stop them first (one that "
            "was killed on another machine counts as alive for 30 s)"
        )
