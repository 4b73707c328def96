"""A run in this process, again and again as its `retry` says; and who hears how it went."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from fp_async import callbacks
from fp_async.attempting import failure
from fp_async.callbacks import Callbacks, Kind, RunEvent
from fp_async.errors import FlowerPowerError, NodeError, UsageError
from fp_async.flow import Flow, Request
from fp_async.flows import Flows
from fp_async.job_lines import spelled

if TYPE_CHECKING:
    from fp_async.tracked_places import Place


log: logging.Logger = logging.getLogger("fp_async")


async def run(
    flows: Flows,
    flow: Flow,
    request: Request,
    environment: str,
    hearing: Callbacks,
    place: Place | None = None,
) -> Any:
    """Run until it succeeds or is not tried again. `hearing` is told before this returns, and each
    attempt is shown at `place`.
    """

    async def once(attempt: int) -> Any:
        if place is None:
            return await flows.run(flow, request)
        from fp_async.tracked import tracked

        tags = {"environment": environment, "attempt": str(attempt)}
        with tracked(place, flow, request, tags) as told:
            return await flows.run(flow, told)

    configured = callbacks.heard(flow.settings)
    if hearing is callbacks.NONE and not configured:
        return await _retried(flow, once, None)
    if configured:
        try:
            found = flows.hearing(flow.name, environment)
            callbacks.report(found.problems)
            hearing = hearing.then(found.callbacks)
        except FlowerPowerError as error:
            callbacks.report([str(error)])
    story = _Story(flow, request, environment, hearing)
    return await _retried(flow, once, story)


class _Story:
    """What those who hear of a run are told."""

    def __init__(self, flow: Flow, request: Request, environment: str, hearing: Callbacks) -> None:
        self._hearing = hearing
        self._event = RunEvent(
            kind="success",
            pipeline=flow.name,
            environment=environment,
            inputs={**flow.configured, **request.inputs},
        )

    async def tell(self, kind: Kind, attempt: int, began: float, **more: Any) -> None:
        functions = self._hearing.of(kind)
        if functions:
            seconds = round(time.monotonic() - began, 6)
            fields = {"kind": kind, "attempt": attempt, "seconds": seconds, **more}
            await callbacks.tell(functions, replace(self._event, **fields))


async def _retried(flow: Flow, once: Callable[[int], Awaitable[Any]], story: _Story | None) -> Any:
    attempt = 0
    while True:
        attempt += 1
        began = time.monotonic()
        try:
            result = await once(attempt)
        except Exception as error:
            pause = _pause(flow, error, attempt)
            if story is not None and not _refused(error):
                kind: Kind = "failure" if pause is None else "retry"
                await story.tell(kind, attempt, began, error=failure(error), retry_in=pause)
            if pause is None:
                raise
            text = "'%s' failed and is tried again in %s, attempt %d: %s"
            why = failure(error).message.partition("\n")[0]
            log.warning(text, flow.name, spelled(pause), attempt, why)
        else:
            if story is not None:
                await story.tell("success", attempt, began, result=result)
            return result
        await asyncio.sleep(pause)


def _refused(error: Exception) -> bool:
    """Return whether nothing has begun, because what was asked for cannot be: nobody hears of it
    but the caller. What a node raises is a NodeError.
    """
    return isinstance(error, FlowerPowerError) and error.exit_code == UsageError.exit_code


def _pause(flow: Flow, error: Exception, failures: int) -> float | None:
    """Seconds until it is tried again; None where it is not."""
    retry = flow.settings.retry
    if retry is None or not isinstance(error, NodeError | TimeoutError):
        return None
    cause = error.__cause__ if isinstance(error, NodeError) else error
    if cause is None or not retry.wants(cause, failures):
        return None
    return retry.delay(failures, random.random())
