"""Jobs as rows, and the rules by which a row changes: plain functions over values.

Every store keeps the fields of `Job` as columns or document fields of these names, and applies
what the functions here return within one transaction. Times are seconds since the epoch, UTC.
"""

from __future__ import annotations

import os
import time
import uuid
from typing import Annotated, Any, Literal

import msgspec

from fp_async.config import Count, ExecutorSettings, Retry
from fp_async.lifecycle import TERMINAL, Event, State

DEFAULT_QUEUE = "default"
RESULT_TTL = 7 * 86_400.0
EVER = 100 * 365 * 86_400.0  # seconds for a member that is there until it is forgotten by name
IDENTITY_TTL = 60 * 86_400.0  # how long the bare id of a pruned job with an identity is kept
LETTER_TTL = 7 * 86_400.0
CHUNK_TTL = 86_400.0
REPLY_TTL = 7 * 86_400.0  # how much longer a job is kept whose requester has no reply yet
CANCEL_DEADLINE = 60.0
MISSING_TTL = 900.0  # how long a pipeline or environment may not exist before a job is rejected
MISCONFIGURED = "configuration: "  # the reason of a queued job that workers have released
LEASE = 10.0
MAX_CRASHES = 3
_NAMESPACE = uuid.UUID("f10e57b0-5c4e-5d0b-9f0a-2f6b0d6a7c11")  # ours; any constant will do

OnCrash = Literal["retry", "fail"]
OnLost = Literal["wait", "reassign", "fail"]


class Spec(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What to run and by which rules, without the inputs: kept as JSON in `Job.spec`."""

    final_vars: list[str] | None = None
    config: dict[str, Any] | None = None
    environment: str = "dev"
    executor: str | ExecutorSettings | None = None
    params: dict[str, dict[str, Any]] | None = None
    with_tracker: bool | None = None
    timeout: float | None = None
    retry: Retry | None = None
    on_crash: OnCrash = "retry"
    max_crashes: Count = MAX_CRASHES
    on_lost: OnLost | None = None
    lost_after: float | None = None
    version: str | None = None
    require_version: bool = False
    trace: Annotated[str, msgspec.Meta(max_length=128)] | None = None  # W3C traceparent
    cache: bool | None = None


class _Retry(Retry, frozen=True, forbid_unknown_fields=False):
    """As in a row."""


class _Executor(ExecutorSettings, frozen=True, forbid_unknown_fields=False):
    """As in a row."""


class _Kept(Spec, frozen=True, omit_defaults=True, forbid_unknown_fields=False):
    """As in a row: a newer release may have written it, which must not end the older workers."""

    executor: str | _Executor | None = None
    retry: _Retry | None = None


UNREADABLE = Spec(on_crash="fail", max_crashes=1)  # such a job is not run, nor tried again


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an attempt failed: the class of the error, its text, the user's own traceback."""

    kind: str
    message: str
    traceback: str = ""
    kinds: list[str] = []  # the names of the class and its bases, for `retry: {on: [...]}`
    since: float = 0.0  # when a worker first released the job for it


class NodeTiming(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept of a node of the latest attempt; `seconds` is the time it took.

    Of a traced or tracked job also when it began (`at`, epoch seconds); of a tracked one a
    `summaries.summary`. Of nodes that ran once for each item one that failed, or was tried again,
    has the number of its `item`; all that succeeded are one, with their `count` and the seconds
    from the first begin to the last end. `cached` of its values came from the cache.
    """

    node: str
    status: str
    seconds: float = 0.0
    error: str = ""
    at: float = 0.0
    summary: str = ""
    place: str = ""  # the worker of a cluster
    item: int | None = None
    count: int = 1
    cached: int = 0


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an attempt left behind beside its result: node timings, and the end of its log."""

    nodes: list[NodeTiming] = []
    log: str = ""
    worker: str = ""
    warnings: list[str] = []
    late: float = 0.0  # seconds between its end on an agent and its arrival
    traced: bool = False  # whoever ran it has exported the spans of its nodes
    version: str = ""  # of the pipeline on the agent that ran it


class Job(msgspec.Struct, frozen=True):
    """A durable request to run a pipeline, with its outcome. All truth about it is in here.

    `attempt` is only a fence: every claim and offer increments it; what an agent has begun again by
    itself is added at the end. `lease_until` is read by the
    store's own lease clock. `slot` and `lane_held` are unique where they are set: they are the
    place that a running job has among those of its pipeline, and of its schedule. `spec` is
    JSON, `inputs` and `result` are `codec` bytes, `error` is a Failure, `record` a Record.

    In an agent's store `offer` is the attempt under which the center knows the job, and
    `unreported` says that the center has not acknowledged its outcome; `attempt` counts the
    starts there. `reply_to` is the MQTT topic that hears of the outcome.
    """

    id: str
    pipeline: str
    state: State = "queued"
    reason: str | None = None
    queue: str = DEFAULT_QUEUE
    priority: int = 0
    target: str | None = None
    agent: str | None = None
    group_id: str | None = None
    created_at: float = 0.0
    run_at: float = 0.0
    expires_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    prune_at: float | None = None
    attempt: int = 0
    errors: int = 0
    crashes: int = 0
    owner: str | None = None
    lease_until: float | None = None
    cancel_at: float | None = None
    key: str | None = None
    active_key: str | None = None
    concurrency: int | None = None
    slot: str | None = None
    lane: str | None = None
    lane_held: str | None = None
    schedule_id: str | None = None
    nominal_at: float | None = None
    retried_from: str | None = None
    identity: bool = False
    pruned: bool = False
    result_ttl: float = RESULT_TTL
    offer: int | None = None
    unreported: bool = False
    trigger: str | None = None
    reply_to: str | None = None
    correlation: bytes | None = None
    replied_at: float | None = None
    spec: bytes = b"{}"
    error: bytes | None = None
    inputs: bytes = b""
    result: bytes | None = None
    record: bytes | None = None

    @property
    def finished(self) -> bool:
        """Whether it has an outcome."""
        return self.state in TERMINAL

    @property
    def misconfigured(self) -> bool:
        """Return whether the job waits for a worker's or its agent's configuration: `reason`
        says how.
        """
        waits = self.state in ("queued", "accepted")
        return waits and (self.reason or "").startswith(MISCONFIGURED)

    @property
    def rules(self) -> Spec:
        """`spec`, decoded; `UNREADABLE` where it cannot be: a newer release knows more words."""
        try:
            return _specs.decode(self.spec)
        except msgspec.MsgspecError:
            return UNREADABLE

    @property
    def failure(self) -> Failure | None:
        """`error`, decoded."""
        return None if self.error is None else _failures.decode(self.error)

    @property
    def trace(self) -> Record:
        """`record`, decoded."""
        return Record() if self.record is None else _records.decode(self.record)


COLUMNS: tuple[str, ...] = Job.__struct_fields__
LIGHT: tuple[str, ...] = COLUMNS[:-3]  # without what may be large, which stands at the end
FLAGS: tuple[str, ...] = ("identity", "pruned", "unreported")  # numbers in some databases
CHANGING: tuple[str, ...] = (  # what a new job never has
    *("state", "reason", "agent", "started_at", "ended_at", "prune_at", "attempt", "errors"),
    *("crashes", "owner", "lease_until", "cancel_at", "slot", "lane_held", "pruned"),
    *("replied_at", "error", "result", "record"),
)
_specs = msgspec.json.Decoder(_Kept)
_failures = msgspec.json.Decoder(Failure)
_records = msgspec.json.Decoder(Record)

Changes = dict[str, Any]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker tells of the attempt that it holds. `retry_in` seconds, for `retry`.

    An agent tries again by itself: it tells its own `errors` and `crashes`, how often it has begun
    (`tries`), and its times. What `agent` tells is believed of jobs that it was offered, and of no
    others.
    """

    id: str
    attempt: int
    event: Event
    reason: str | None = None
    retry_in: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    errors: int | None = None
    crashes: int | None = None
    tries: int | None = None
    result: bytes | None = None
    error: bytes | None = None
    record: bytes | None = None
    agent: str | None = None
    owner: str | None = None  # the worker that releases it

    @property
    def plain(self) -> bool:
        """Whether it is a success that tells nothing but result and record."""
        told = (self.started_at, self.errors, self.crashes, self.agent)
        return self.event == "succeed" and told == (None, None, None, None)


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """When to add which job. `trigger` and `policy` are JSON of `triggers`, `template` a Job's.

    `revision` changes with every change by a person, so that a scheduler that has looked
    before cannot fire what was changed since.
    """

    id: str
    pipeline: str
    trigger: bytes
    policy: bytes = b"{}"
    template: bytes = b"{}"
    paused: bool = False
    next_fire_time: float | None = None
    last_fire_time: float | None = None
    fired: int = 0
    skipped: int = 0
    revision: int = 1
    created_at: float = 0.0
    origin: str = "api"


class Template(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What every job of a schedule is like: kept as JSON in `Schedule.template`.

    `expires_in` counts from the moment of firing. `digest` tells a schedule that is put again
    unchanged from one that was changed.
    """

    spec: Spec = Spec()
    inputs: bytes = b""
    queue: str = DEFAULT_QUEUE
    priority: Annotated[int, msgspec.Meta(ge=-32768, le=32767)] = 0
    key: str | None = None
    concurrency: Count | None = None
    expires_in: float | None = None
    target: str | None = None
    offline: bool = False
    result_ttl: float = RESULT_TTL
    overlap: Literal["allow", "skip", "queue"] = "allow"
    digest: str = ""


class Fire(msgspec.Struct, frozen=True, kw_only=True):
    """One firing of a schedule: add `jobs`, and go from `expected` to `next_fire_time`.

    Without `expected` somebody fires it by hand: paused or not, it stays due when it is, and has
    not fired at `last_fire_time` or later.
    """

    id: str
    revision: int
    expected: float | None
    next_fire_time: float | None
    last_fire_time: float | None
    jobs: list[Job]
    skipped: int = 0


class Offer(msgspec.Struct, frozen=True):
    """Binds a queued job, as it is at `attempt`, to an agent."""

    id: str
    attempt: int
    agent: str


class Chunk(msgspec.Struct, frozen=True):
    """A part of a result that is too large for one message."""

    id: str
    attempt: int
    index: int
    data: bytes


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that made no job, and why; of its payload only the beginning is kept."""

    id: str
    topic: str
    reason: str
    payload: bytes = b""
    at: float = 0.0


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who was seen: a worker, a scheduler, an agent, a gateway. `info` is JSON."""

    kind: str
    name: str
    info: bytes = b"{}"
    seen_at: float = 0.0
    until: float = 0.0


class Find(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to list, the newest first; what is None or empty does not narrow."""

    states: tuple[str, ...] = ()
    pipeline: str | None = None
    queue: str | None = None
    schedule_id: str | None = None
    group_id: str | None = None
    owner: str | None = None
    agent: str | None = None
    bound: bool = False  # to any agent
    since: float | None = None  # added then or later, in epoch seconds
    limit: int = 50


# Identities ---------------------------------------------------------------------------------


def new_id() -> str:
    """A UUID whose order is that of time (version 7), so that indexes grow at one end."""
    random = int.from_bytes(os.urandom(10), "big")
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (2**48 - 1)) << 80 | 0x7 << 76
    value |= (random >> 68 & 0xFFF) << 64 | 0b10 << 62 | random & (2**62 - 1)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def identity(*parts: object) -> str:
    """A deterministic id: the same parts give the same job, whoever asks and however often."""
    return str(uuid.uuid5(_NAMESPACE, "\x1f".join(map(str, parts))))
