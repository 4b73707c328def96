"""Making an attempt, wherever that is: decode, run the pipeline, encode, and say how it went."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, get_args

from fp_async import codec
from fp_async.attempt import Order, Outcome, Tell, storable
from fp_async.current import CurrentJob, current
from fp_async.errors import FlowerPowerError, NodeError, RunTimeoutError, describe
from fp_async.flow import Flow
from fp_async.flows import Flows
from fp_async.jobs import Failure, NodeTiming
from fp_async.nodes import NodeEvent

_TRACEBACK_KEPT = 16_384
_MESSAGE_KEPT = 4_096


async def attempt(flows: Flows, order: Order, tell: Tell) -> Outcome:
    """Run the pipeline once. Cancelling cancels the run; it raises nothing else."""

    def progress(event: NodeEvent) -> None:
        if event.status != "started":
            error = event.error and storable(event.error, _MESSAGE_KEPT)
            seconds = round(event.seconds, 6)
            tell(NodeTiming(event.node, event.status, seconds, error, event.place))

    current.set(CurrentJob(order.id, order.attempt, order.pipeline))
    try:
        result = await _run(flows, order, progress)
        return Outcome("succeeded", codec.encode_value(result, limit=order.limit))
    except RunTimeoutError as error:
        return Outcome("failed", failure=_failure(error), dirty=bool(error.running))
    except Exception as error:
        return Outcome("failed", failure=_failure(error))


async def _run(flows: Flows, order: Order, progress: Callable[[NodeEvent], None]) -> Any:
    spec = order.spec
    flow = flows.flow(
        order.pipeline, environment=spec.environment, config=spec.config, params=spec.params
    )
    inputs = codec.decode(order.inputs, lambda name: _known(flow).get(name))
    request = flows.request(
        flow, inputs, spec.final_vars, None, spec.executor, spec.timeout, progress
    )
    try:
        return await flows.run(flow, request)
    finally:
        if not flow.kept:
            flow.namespace.unload()


def _known(flow: Flow) -> dict[str, type]:
    """The classes that the pipeline's own annotations name: these, inputs are made of again."""
    found: dict[str, type] = {}
    pending: list[Any] = list(flow.graph.inputs.values())
    while pending:
        kind = pending.pop()
        pending += get_args(kind)
        if isinstance(kind, type):
            found[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return found


def _failure(error: BaseException) -> Failure:
    cause = error.__cause__ if isinstance(error, NodeError) else None
    raised = error if cause is None else cause
    kinds = [kind.__name__ for kind in type(raised).__mro__[:-1]]
    if cause is not None:
        kinds.append(type(error).__name__)
    text = str(error) if isinstance(error, FlowerPowerError) else describe(error)
    own = isinstance(raised, FlowerPowerError) and cause is None
    lines = "" if own else storable("".join(traceback.format_exception(raised)))  # ours say it all
    shown = type(error) if isinstance(error, TimeoutError) else type(raised)
    message = storable(text, _MESSAGE_KEPT)
    return Failure(shown.__name__, message, lines[-_TRACEBACK_KEPT:], kinds)
