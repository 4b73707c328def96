"""A run in this process, told to the Hamilton UI as it goes."""

from __future__ import annotations

import asyncio
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from msgspec.structs import replace

from fp_async import drawing, summaries
from fp_async.errors import NodeCrashedError, NodeError, RunTimeoutError, describe
from fp_async.flow import Flow, Request
from fp_async.node_events import NodeObserver
from fp_async.tracked_places import Place
from fp_async.tracker import tracker
from fp_async.tracking import Outcome, Run


@contextmanager
def tracked(
    place: Place, flow: Flow, request: Request, tags: Mapping[str, str]
) -> Iterator[Request]:
    """In this block the run of the request that it gives is told. Raises as `Flow.plan` does."""
    drawn = drawing.drawn(flow, request)
    run = tracker().begin(Run(place, flow.name, time.time(), token=uuid.uuid4().hex, tags=tags))
    run.drawn(drawn)
    try:
        yield replace(request, observer=NodeObserver(summaries.summary, run.node))
    except BaseException as error:
        run.end(outcome(error), describe(error), _traceback(error))
        raise
    run.end("succeeded")


def outcome(error: BaseException) -> Outcome:
    """What to call the end of a run that raised this."""
    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | GeneratorExit):
        return "cancelled"
    if isinstance(error, RunTimeoutError):
        return "timed out"
    return "crashed" if isinstance(error, NodeCrashedError) else "failed"


def _traceback(error: BaseException) -> str:
    """The user's own, of a node's error."""
    cause = error.__cause__ if isinstance(error, NodeError) else None
    return "" if cause is None else "".join(traceback.format_exception(cause))
