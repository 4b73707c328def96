"""OpenTelemetry: a span for each job, run and node, and the trace context that goes with jobs.

A program that has imported OpenTelemetry is traced with whatever it has set up; commands set it up
by themselves where the variables OTEL_* ask for it, with the extra `otel`. Elsewhere all of this
costs one look-up.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import msgspec

from fp_async.jobs import Failure, Fire, Job, NodeTiming, Record, Report
from fp_async.observing import OUTCOMES

if TYPE_CHECKING:
    from fp_async.node_events import NodeEvent
    from fp_async.observing import Observer

log: logging.Logger = logging.getLogger("fp_async")
_API = "opentelemetry.trace"
_LAST = 3.0  # seconds that the end of a process may take longer for its traces
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_BAD = {"failed", "retried", "crashed", "expired", "rejected", "lost"}
_spans: ContextVar[Spans | None] = ContextVar("fp_spans", default=None)


def active() -> Any:
    """OpenTelemetry's `trace`, if this program uses it."""
    return sys.modules.get(_API)


def _tracer() -> Any:
    from fp_async import __version__

    return active().get_tracer("fp_async", __version__)


# Context ----------------------------------------------------------------------------------------


def current() -> str | None:
    """The calling context as W3C `traceparent`, for what goes on elsewhere."""
    api = active()
    return None if api is None else _traceparent(api.get_current_span())


def _traceparent(span: Any) -> str | None:
    found = span.get_span_context()
    if not found.is_valid:
        return None
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


def _context(traceparent: str | None) -> Any:
    """The context that a `traceparent` means; of nothing, where it is none: a new trace."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {} if traceparent is None else {"traceparent": traceparent}
    return TraceContextTextMapPropagator().extract(carrier, Context())


@contextmanager
def within(traceparent: str | None) -> Iterator[None]:
    """Let the block go on with that trace."""
    if active() is None or traceparent is None:
        yield
        return
    from opentelemetry import context

    token = context.attach(_context(traceparent))
    try:
        yield
    finally:
        context.detach(token)


@contextmanager
def message(name: str, topic: str, properties: Sequence[tuple[str, str]]) -> Iterator[None]:
    """A span for a message that asks for something, which its own `traceparent` may lead to."""
    api = active()
    if api is None:
        yield
        return
    given = dict(properties).get("traceparent")
    about = {"messaging.system": "mqtt", "messaging.destination.name": topic}
    with _tracer().start_as_current_span(
        f"trigger {name}", _context(given), api.SpanKind.CONSUMER, about
    ):
        yield


# Runs and nodes ---------------------------------------------------------------------------------


class Spans:
    """The spans of the nodes of one run."""

    def __init__(self, context: Any) -> None:
        self._tracer = _tracer()
        self._context = context

    def begin(self, name: str, *, within: bool) -> Any:
        """A node begins; what its code does from now on in this context belongs to it.

        `within`: the context is the node's own, and what hooks have set in it counts.
        """
        from opentelemetry import context

        before = context.get_current() if within else self._context
        span = self._tracer.start_span(f"node {name}", before, attributes={"fp.node": name})
        context.attach(active().set_span_in_context(span, before))
        return span, before

    def end(self, begun: Any, error: BaseException | None) -> None:
        """A node has come to an end."""
        from opentelemetry import context

        span, before = begun
        context.attach(before)
        if error is not None:
            _failed(span, error)
        span.end()

    def told(self, others: Callable[[NodeEvent], None] | None) -> Callable[[NodeEvent], None]:
        """Spans by what is told of nodes that others call."""

        def tell(event: NodeEvent) -> None:
            if event.status in ("succeeded", "failed", "cancelled"):
                timing = NodeTiming(event.node, event.status, event.seconds, event.error)
                began = event.at or time.time() - event.seconds
                _node(self._tracer, self._context, timing, began)
            if others is not None:
                others(event)

        return tell


def spans() -> Spans | None:
    """Those of the run that the calling code belongs to."""
    return _spans.get()


@contextmanager
def run(pipeline: str) -> Iterator[None]:
    """A span for a run, which ends with the block."""
    from opentelemetry import context

    span = _tracer().start_span(f"run {pipeline}", attributes={"fp.pipeline": pipeline})
    inner = active().set_span_in_context(span)
    token, mine = context.attach(inner), _spans.set(Spans(inner))
    try:
        yield
    except BaseException as error:
        _failed(span, error)
        raise
    finally:
        _spans.reset(mine)
        context.detach(token)
        span.end()


def _failed(span: Any, error: BaseException) -> None:
    span.record_exception(error)
    span.set_status(active().StatusCode.ERROR, str(error) or type(error).__name__)


def _node(tracer: Any, parent: Any, timing: NodeTiming, began: float) -> None:
    span = tracer.start_span(
        f"node {timing.node}",
        parent,
        attributes={"fp.node": timing.node},
        start_time=_nanoseconds(began),
    )
    if timing.count > 1:
        span.set_attribute("fp.count", timing.count)
    if timing.status != "succeeded":
        span.set_status(active().StatusCode.ERROR, timing.error or timing.status)
    span.end(_nanoseconds(began + timing.seconds))


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)


# Jobs -------------------------------------------------------------------------------------------


class JobSpans:
    """An observer that makes a span of each attempt: while it lasts, where it is made here, and
    afterwards, with its nodes, of what agents tell.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], Any] = {}

    def claimed(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._open[job.id, job.attempt] = self._start(job)

    def trace(self, job: Job) -> str | None:
        span = self._open.get((job.id, job.attempt))
        return None if span is None else _traceparent(span)

    def reported(self, job: Job, report: Report, seconds: float) -> None:
        outcome = OUTCOMES.get(report.event)
        if outcome is None:
            return
        now = time.time()
        span = self._open.pop((job.id, job.attempt), None)
        if span is None:
            span = self._start(job, now - seconds)
            if report.agent is not None:
                span.set_attribute("fp.agent", report.agent)
        if report.record is not None:
            self._nodes(span, msgspec.json.decode(report.record, type=Record))
        self._end(span, outcome, now, _text(report.error) or report.reason)

    def lost(self, job: Job) -> None:
        span = self._open.pop((job.id, job.attempt), None)
        if span is not None:
            self._end(span, "lost", time.time(), "its outcome does not count")

    def adopted(self, job: Job) -> None:
        began = job.started_at or job.created_at
        span = self._start(job, began)
        if job.agent is not None:
            span.set_attribute("fp.agent", job.agent)
        self._nodes(span, job.trace)
        self._end(span, job.state, job.ended_at or began, _text(job.error) or job.reason)

    def fired(self, fire: Fire, late: float) -> None:
        """A schedule's jobs begin traces of their own."""

    def _start(self, job: Job, at: float | None = None) -> Any:
        about = {
            "fp.job": job.id,
            "fp.pipeline": job.pipeline,
            "fp.queue": job.queue,
            "fp.attempt": job.attempt,
        }
        return _tracer().start_span(
            f"job {job.pipeline}",
            _context(job.rules.trace),
            active().SpanKind.CONSUMER,
            about,
            start_time=None if at is None else _nanoseconds(at),
        )

    def _nodes(self, span: Any, record: Record) -> None:
        parent = active().set_span_in_context(span)
        for timing in () if record.traced else record.nodes:
            if timing.at:
                _node(_tracer(), parent, timing, timing.at)

    def _end(self, span: Any, outcome: str, at: float, text: str | None) -> None:
        span.set_attribute("fp.outcome", outcome)
        if outcome in _BAD:
            span.set_status(active().StatusCode.ERROR, text or outcome)
        span.end(_nanoseconds(at))


def _text(error: bytes | None) -> str | None:
    return None if error is None else msgspec.json.decode(error, type=Failure).message


def observers() -> list[Observer]:
    """Those of jobs, where this program is traced."""
    return [] if active() is None else [JobSpans()]


# Setting up -------------------------------------------------------------------------------------


def asked_for(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the variables of OpenTelemetry's specification ask for traces."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "")
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none":
        return False
    return bool(exporter) or any(environ.get(name) for name in _ENDPOINTS)


def set_up(service: str) -> bool:
    """Export traces from this process as the variables say; whether it does.

    `service` is its name unless OTEL_SERVICE_NAME gives one. What cannot be set up is logged.
    """
    if not asked_for():
        return False
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter(os.environ.get("OTEL_TRACES_EXPORTER") or "otlp")
    except ImportError as error:
        log.warning('nothing is traced: %s (pip install "fp-async[otel]")', error)
        return False
    except ValueError as error:
        log.warning("nothing is traced: %s", error)
        return False
    os.environ.setdefault("OTEL_SERVICE_NAME", service)  # of our children, too
    # We say when it is flushed: its own way at exit may wait for a dead collector.
    provider = TracerProvider(resource=Resource.create(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    active().set_tracer_provider(provider)
    return True


def _exporter(name: str) -> Any:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr)
    if name != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER is otlp, console or none, not {name!r}")
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    if protocol != "http/protobuf":
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL is http/protobuf, not {protocol!r}")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def flush(seconds: float = _LAST) -> None:
    """Have what is finished exported, waiting for it so long. Blocks."""
    provider = active() and active().get_tracer_provider()
    if hasattr(provider, "force_flush"):  # it does not keep to a timeout of its own
        thread = threading.Thread(target=provider.force_flush, name="fp-traces", daemon=True)
        thread.start()
        thread.join(seconds)
