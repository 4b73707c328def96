"""One attempt at a job, as those who hand it out and hear of it see it; see also `attempting`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal

import msgspec

from fp_async.callbacks import Kind
from fp_async.config_files import Trouble
from fp_async.current import CurrentJob
from fp_async.jobs import Failure, Job, NodeTiming, Record, Spec

LOG_KEPT = 65_536  # characters of a job's log, the end of it
_NODES_KEPT = 1000
_REASON_KEPT = 1000  # characters of why a job waits


class Order(msgspec.Struct, frozen=True, tag="order"):
    """What a runner needs to know of a job. `spec` is JSON, `inputs` are `codec` bytes.

    `draw` asks for the DAG to be told before the run and for starts of nodes, or for that only.
    """

    id: str
    attempt: int
    pipeline: str
    spec: Spec
    inputs: bytes
    limit: int | None = None
    trace: str | None = None  # of the job's span, or what the job came with
    draw: Literal["no", "yes", "only"] = "no"

    @property
    def current(self) -> CurrentJob:
        """As the job's own code sees it."""
        return CurrentJob(self.id, self.attempt, self.pipeline)


class Template(msgspec.Struct, frozen=True):
    """A DAG as the Hamilton UI knows it. `nodes` has the dependencies of each, `body` is JSON."""

    dag_hash: str
    code_hash: str
    nodes: dict[str, list[str]]
    body: bytes


class Drawn(msgspec.Struct, frozen=True, tag="drawn"):
    """What a tracked run is going to do: its DAG, the nodes that will run, what is shown of its
    inputs, and its final variables.
    """

    template: Template
    planned: list[str] = []
    inputs: dict[str, Any] = {}
    outputs: list[str] = []


class Outcome(msgspec.Struct, frozen=True, tag="outcome"):
    """How an attempt ended. `dirty`: something of it still runs in its process, which is killed.
    `worn`: its process is not as it was, and is to end by itself.

    `hears` is of what the pipeline's functions want to hear; None where that is not known.
    `traced`: the process that ran it exports the spans of its nodes. `misconfigured`: nothing has
    begun, because the configuration is wrong here (`reason`), or has no such pipeline or
    environment (`missing`).
    """

    status: Literal["succeeded", "failed", "crashed", "misconfigured"]
    result: bytes | None = None
    failure: Failure | None = None
    reason: str | None = None
    dirty: bool = False
    worn: bool = False
    hears: list[Kind] | None = None
    traced: bool = False
    missing: bool = False


class Call(msgspec.Struct, frozen=True, tag="call"):
    """What a runner needs to know to tell the pipeline's functions how an attempt went."""

    order: Order
    kind: Kind
    seconds: float
    result: bytes | None = None
    failure: Failure | None = None
    retry_in: float | None = None


class Called(msgspec.Struct, frozen=True, tag="called"):
    """They have been told; what went wrong. `worn` as in `Outcome`."""

    problems: list[str]
    worn: bool = False


class Trail:
    """What an attempt leaves behind while it runs: nodes and the end of its log."""

    def __init__(self, worker: str = "") -> None:
        self.changed: bool = bool(worker)  # where it runs is news, too
        self.watch: Tell | None = None
        self.traced = False
        self._worker = worker
        self._nodes: list[NodeTiming] = []
        self._log: list[str] = []
        self._size = 0

    def tell(self, told: NodeTiming | Drawn) -> None:
        """Something that the run tells: whoever watches hears all, ends of nodes are kept."""
        if self.watch is not None:
            self.watch(told)
        if isinstance(told, NodeTiming) and told.status != "started":
            self.node(told)

    def node(self, timing: NodeTiming) -> None:
        """A node has come to an end."""
        if len(self._nodes) < _NODES_KEPT:
            self._nodes.append(timing)
            self.changed = True

    def write(self, text: str) -> None:
        """Something was logged or printed."""
        self._log.append(text := storable(text))
        self._size += len(text)
        self.changed = True
        if self._size > 2 * LOG_KEPT:
            kept = "".join(self._log)[-LOG_KEPT:]
            self._log, self._size = [kept], len(kept)

    @property
    def nodes(self) -> list[NodeTiming]:
        """Those that have come to an end."""
        return self._nodes

    @property
    def log(self) -> str:
        """The end of what was written."""
        return "".join(self._log)[-LOG_KEPT:]

    def record(self) -> bytes:
        """All of it, as it is stored."""
        self.changed = False
        return _to_json(Record(self._nodes, self.log, self._worker, traced=self.traced))


_to_json = msgspec.json.Encoder().encode
Tell = Callable[[NodeTiming | Drawn], None]


def order(
    job: Job, limit: int | None, trace: str | None = None, trail: Trail | None = None
) -> Order:
    """What the runner of a claimed job is given; the DAG is told where the trail is watched."""
    rules = job.rules
    draw: Literal["no", "yes"] = "yes" if trail and trail.watch else "no"
    context = trace or rules.trace
    return Order(job.id, job.attempt, job.pipeline, rules, job.inputs, limit, context, draw)


def storable(text: str, limit: int | None = None) -> str:
    """A text that UTF-8 can hold: a file's name in another encoding has lone surrogates."""
    if limit is not None and len(text) > limit:
        text = f"{text[:limit]}... ({len(text):,} characters)"
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def misconfigured(trouble: Trouble) -> Outcome:
    """Return the outcome of a run that the configuration does not let begin."""
    text = storable(trouble.message, _REASON_KEPT)
    return Outcome("misconfigured", reason=text, missing=trouble.missing)


def cancelled_itself() -> Outcome:
    """What becomes of a run that nobody has cancelled but its own code."""
    text = "the pipeline cancelled the task that it runs in"
    kinds = ["CancelledError", "BaseException"]
    return Outcome("failed", failure=Failure("CancelledError", text, "", kinds))


# The log of a job that runs in this process -----------------------------------------------------

_trail: ContextVar[Trail | None] = ContextVar("fp_trail", default=None)


class _Capture(logging.Handler):
    """Writes what a job logs into its trail; the context says whose it is."""

    def emit(self, record: logging.LogRecord) -> None:
        trail = _trail.get()
        if trail is not None:
            trail.write(self.format(record) + "\n")


FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def capture() -> Callable[[], None]:
    """Have jobs' logging written into their trails, until what is returned is called."""
    handler = _Capture()
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    return lambda: root.removeHandler(handler)


def captured(trail: Trail) -> None:
    """What this task logs from now on belongs to that trail."""
    _trail.set(trail)
