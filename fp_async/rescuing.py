"""Looks after jobs that nobody works on any more, and prunes what is over."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from fp_async import processes
from fp_async.events import Hub
from fp_async.jobs import LEASE, Job
from fp_async.patience import Patience
from fp_async.stores import Store

log: logging.Logger = logging.getLogger("fp_async")
_RESCUE = 2.0
_PRUNE = 60.0


async def rescue(
    store: Store,
    hub: Hub,
    patience: Patience,
    busy: asyncio.Event | None,
    rescued: Callable[[Job], None],
) -> None:
    """Rescue every 2 s and prune every minute, until cancelled; unless the store was away.

    `rescued` is told of every job that was taken from its worker.

    `busy` is for a worker that is alone with its store: while nobody holds a job there is nothing
    to look after until it is set.
    """
    pruned_at = time.monotonic()
    while True:
        held = True
        if patience.since_failure() > LEASE:
            held = await patience(lambda: _rescue_once(store, hub, rescued))
        if time.monotonic() - pruned_at > _PRUNE:
            pruned_at = time.monotonic()
            await patience(store.prune)
        if busy is not None and not held:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PRUNE):
                    await busy.wait()
        await asyncio.sleep(_RESCUE)


async def _rescue_once(store: Store, hub: Hub, rescued: Callable[[Job], None]) -> bool:
    """Whether anybody held jobs."""
    owners = await store.owners()
    dead = [owner for owner in owners if processes.has_died(owner)]
    for job in await store.rescue(dead):
        about = {"job": job.id, "pipeline": job.pipeline}
        text = "job %s of '%s': %s (%s)"
        log.warning(text, job.id, job.pipeline, job.state, job.reason, extra=about)
        hub.publish(f"job:{job.id}", f"work:{job.queue}")
        rescued(job)
    return bool(owners)
