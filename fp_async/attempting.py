"""Making an attempt, wherever that is: decode, run the pipeline, encode, and say how it went."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from typing import Any, get_args

from msgspec.structs import replace

from fp_async import callbacks, codec, current, summaries, tracing
from fp_async.attempt import (
    Call,
    Drawn,
    Order,
    Outcome,
    Tell,
    misconfigured,
    storable,
)
from fp_async.callbacks import Callbacks, RunEvent
from fp_async.codec_values import type_name
from fp_async.config import names_of
from fp_async.config_files import Trouble
from fp_async.errors import (
    FlowerPowerError,
    MisconfiguredError,
    NodeError,
    RunTimeoutError,
    describe,
)
from fp_async.flow import Flow, Request
from fp_async.flows import Flows
from fp_async.jobs import Failure, NodeTiming
from fp_async.node_events import NodeEvent, NodeObserver, Repeats
from fp_async.runtime import process_tree

_TRACEBACK_KEPT = 16_384
_MESSAGE_KEPT = 4_096


Loaded = Callable[[], None]


def _nothing() -> None:
    pass


async def attempt(flows: Flows, order: Order, tell: Tell, loaded: Loaded = _nothing) -> Outcome:
    """Run the pipeline once; `loaded` is called between the import of its modules and the run.

    Cancelling cancels the run; it raises nothing else.
    """
    dated = order.trace is not None or order.spec.with_tracker

    def progress(event: NodeEvent) -> None:
        if event.status != "started" or order.draw == "yes":
            error = event.error and storable(event.error, _MESSAGE_KEPT)
            seconds = round(event.seconds, 6)
            at = (event.at or time.time() - seconds) if dated else 0.0
            told = (event.node, event.status, seconds, error, round(at, 6), event.summary)
            more = (event.place, event.item, event.count, event.cached)
            tell(NodeTiming(*told, *more))

    # The Hamilton UI sums up by itself, from what began and ended when.
    repeats = Repeats(progress)
    current.job.set(order.current)
    about: dict[str, Any] = {
        "hears": flows.hears(order.pipeline, order.spec.environment),
        "traced": tracing.active() is not None,
    }
    if (trouble := flows.trouble(order.pipeline, order.spec.environment)) is not None:
        return misconfigured(trouble)
    try:
        with tracing.within(order.trace):
            try:
                told = progress if order.draw == "yes" else repeats
                result = await _run(flows, order, tell, told, loaded)
            finally:
                repeats.flush()
        return Outcome("succeeded", codec.encode_value(result, limit=order.limit), **about)
    except RunTimeoutError as error:
        left = set(process_tree.children(os.getpid())) - flows.pooled()
        dirty = bool(error.running or left)
        return Outcome("failed", failure=failure(error), dirty=dirty, **about)
    except MisconfiguredError as error:  # a node's own would be the cause of a NodeError
        return misconfigured(Trouble(str(error), missing=False))
    except Exception as error:
        return Outcome("failed", failure=failure(error), **about)


async def hear(flows: Flows, call: Call, loaded: Loaded = _nothing) -> list[str]:
    """Tell the pipeline's own functions, and those of the project; what went wrong."""
    try:
        found = flows.hearing(call.order.pipeline, call.order.spec.environment)
    except FlowerPowerError as error:
        return [str(error), *await hear_own(flows.callbacks, call)]
    loaded()
    return [*found.problems, *await hear_own(flows.callbacks.then(found.callbacks), call)]


async def hear_own(functions: Callbacks, call: Call) -> list[str]:
    """Tell those of these functions that want to hear of it; what went wrong."""
    wanted = functions.of(call.kind)
    return await callbacks.call(wanted, _event(call)) if wanted else []


def _event(call: Call) -> RunEvent:
    order = call.order
    return RunEvent(
        kind=call.kind,
        pipeline=order.pipeline,
        environment=order.spec.environment,
        job_id=order.id,
        attempt=order.attempt,
        seconds=call.seconds,
        inputs=codec.decode(order.inputs),
        result=None if call.result is None else codec.decode_value(call.result),
        error=call.failure,
        retry_in=call.retry_in,
    )


async def _run(
    flows: Flows,
    order: Order,
    tell: Tell,
    progress: Callable[[NodeEvent], None],
    loaded: Loaded,
) -> Any:
    spec = order.spec
    flow = flows.flow(
        order.pipeline, environment=spec.environment, config=spec.config, params=spec.params
    )
    loaded()
    if not spec.final_vars:
        flow.check_final_vars()
    inputs = codec.decode(order.inputs, lambda name: _known(flow).get(name))
    request = flows.request(
        flow, inputs, spec.final_vars, None, spec.executor, spec.timeout, progress, spec.cache
    )
    flow.check_configured(request)
    if spec.with_tracker:
        request = replace(request, observer=NodeObserver(summaries.summary))
    try:
        if order.draw != "no":
            tell(_drawn(flow, request))
        return None if order.draw == "only" else await flows.run(flow, request)
    finally:
        if not flow.kept:
            flow.namespace.release()


def _drawn(flow: Flow, request: Request) -> Drawn:
    from fp_async import drawing  # for tracked jobs only

    return drawing.drawn(flow, request)


def _known(flow: Flow) -> dict[str, type]:
    """The classes that the pipeline's own annotations name: these, inputs are made of again."""
    found: dict[str, type] = {}
    pending: list[Any] = list(flow.graph.inputs.values())
    while pending:
        kind = pending.pop()
        pending += get_args(kind)
        if isinstance(kind, type):
            found[type_name(kind)] = kind
    return found


def failure(error: BaseException) -> Failure:
    """What is told of an error: of the user's own, where a node raised it."""
    cause = error.__cause__ if isinstance(error, NodeError) else None
    raised = error if cause is None else cause
    kinds = names_of(type(raised))
    if cause is not None:
        kinds.append(type(error).__name__)
    text = str(error) if isinstance(error, FlowerPowerError) else describe(error)
    own = isinstance(raised, FlowerPowerError) and cause is None
    lines = "" if own else storable("".join(traceback.format_exception(raised)))  # ours say it all
    shown = type(error) if isinstance(error, TimeoutError) else type(raised)
    message = storable(text, _MESSAGE_KEPT)
    return Failure(shown.__name__, message, lines[-_TRACEBACK_KEPT:], kinds)
