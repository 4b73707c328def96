"""What gateway, agents and everybody else say to each other over MQTT: bodies and limits.

Bodies are JSON with a version `v` and the name of their type. What agents and gateways say to each
other may have more fields than a reader knows, so that they need not be upgraded on one day; what
people send (`RunRequest`) may not. Delivery is never relied upon: whoever sends something that
matters has it in a row, and repeats it until it is answered.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from fp_async.jobs import Failure, NodeTiming, Record, Spec

VERSION = 1
PACKET_BYTES = 262_144  # the largest message; brokers are configured for it
BATCH_BYTES = 65_536
INPUT_BYTES = 65_536
INLINE_BYTES = 65_536  # a larger result travels in chunks
CHUNK_BYTES = 32_768
RESULT_BYTES = 8 * 2**20
LOG_CHARACTERS = 16_384  # of a log, as it travels
PAGE = 500  # ids in one message

Outcome = Literal["succeeded", "failed", "cancelled", "expired", "rejected"]
Status = Literal["ready", "draining", "offline", "lost"]


class Message(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True, tag_field="type"
):
    """What all bodies share. (A factory, because a plain default would be left out.)"""

    v: int = msgspec.field(default_factory=lambda: VERSION)


# Gateway to agent, on agent/<name>/do ---------------------------------------------------------


class RunJob(Message, frozen=True):
    """Run this, under attempt `attempt`. `expires_in` seconds are left to begin it."""

    id: str
    attempt: int
    pipeline: str
    inputs: Raw
    spec: Spec = Spec()
    priority: int = 0
    expires_in: float | None = None
    result_ttl: float | None = None


class CancelJob(Message, frozen=True):
    """Stop it, or never begin it."""

    id: str
    attempt: int
    reason: str | None = None


class Acknowledge(Message, frozen=True):
    """These outcomes are stored: up to 500 ids."""

    ids: list[str]


class Missing(Message, frozen=True):
    """Of the result of this job these chunks have not arrived."""

    id: str
    attempt: int
    chunks: list[int]


class PutSchedule(Message, frozen=True):
    """Keep this schedule, and fire it whether there is a network or not."""

    id: str
    revision: int
    pipeline: str
    trigger: Raw
    policy: Raw
    template: Raw
    paused: bool = False


class DeleteSchedule(Message, frozen=True):
    """Forget this schedule."""

    id: str
    revision: int


class AskSync(Message, frozen=True):
    """Say what you have."""


class Ping(Message, frozen=True):
    """Answered by a Pong, through whoever it was sent to."""

    nonce: str


class Pong(Message, frozen=True):
    """The answer to a Ping."""

    nonce: str
    clock: float


Do = (
    RunJob
    | CancelJob
    | Acknowledge
    | Missing
    | PutSchedule
    | DeleteSchedule
    | AskSync
    | Ping
    | Pong
)

# Agent to gateway, on agent/<name>/report -----------------------------------------------------


class Accepted(Message, frozen=True):
    """The job is in the agent's own store."""

    id: str
    attempt: int


class Rejected(Message, frozen=True):
    """The agent does not take it: not before `retry_after` seconds, or never."""

    id: str
    attempt: int
    reason: str
    retry_after: float | None = None


class Started(Message, frozen=True):
    """It runs; `at` is the device's clock, `sent_at` the same clock now."""

    id: str
    attempt: int
    at: float
    sent_at: float


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a job comes from that the agent began by itself."""

    pipeline: str
    created_at: float
    inputs: Raw
    spec: Spec = Spec()
    schedule_id: str | None = None
    nominal_at: float | None = None
    trigger: str | None = None
    result_ttl: float | None = None


class Finished(Message, frozen=True):
    """How a job ended: repeated until it is acknowledged. Times are the device's clock.

    A result above 64 KiB comes in `chunks` messages, and has that `sha256` when put together;
    `dropped` says that it could not be sent.
    """

    id: str
    attempt: int
    outcome: Outcome
    ended_at: float
    sent_at: float
    started_at: float | None = None
    reason: str | None = None
    result: Raw | UnsetType = UNSET
    chunks: int = 0
    sha256: str = ""
    dropped: bool = False
    error: Failure | None = None
    record: Record | None = None
    tries: int = 1
    errors: int = 0
    crashes: int = 0
    origin: Origin | None = None


class ResultChunk(Message, frozen=True):
    """A part of a result, in base64."""

    id: str
    attempt: int
    index: int
    data: str


class ScheduleState(Message, frozen=True):
    """The agent has this revision of a schedule, or has it no more; `error` says why not."""

    id: str
    revision: int
    error: str | None = None
    gone: bool = False
    next_fire_time: float | None = None


class Sync(Message, frozen=True):
    """A page of what the agent has: [id, attempt, state] of what is not acknowledged yet, and
    the revisions of its schedules (on the first page).
    """

    page: int
    pages: int
    jobs: list[tuple[str, int, str]] = []
    schedules: dict[str, int] | None = None


class Progress(Message, frozen=True):
    """What a running job has done and logged since the last one. May be lost."""

    id: str
    attempt: int
    nodes: list[NodeTiming] = []
    log: str = ""


class Heartbeat(Message, frozen=True):
    """A sign of life, every 30 s. May be lost."""

    free: int
    clock: float
    disk_free: int | None = None
    outbox: int = 0
    clock_steps: int = 0


class Malformed(Message, frozen=True):
    """So many messages could not be read so far, the last one for this reason."""

    reason: str
    count: int = 1


Report = (
    Accepted
    | Rejected
    | Started
    | Finished
    | ResultChunk
    | ScheduleState
    | Sync
    | Progress
    | Heartbeat
    | Ping
    | Pong
    | Malformed
)


class Reports(Message, frozen=True):
    """Several reports in one message of up to 64 KiB."""

    reports: list[Report]


# Presence, retained -----------------------------------------------------------------------------


class AgentState(Message, frozen=True):
    """On agent/<name>/state. (`starts`, `n`) orders what one store says: an older pair is not
    believed. `pipelines` are names and versions, `window` is how many jobs it may have at once.
    """

    status: Status
    store: str
    starts: int
    n: int
    boot: str = ""
    version: str = ""
    tags: dict[str, str] = {}
    pipelines: dict[str, str] = {}
    slots: int = 1
    window: int = 16
    clock: float = 0.0


class GatewayState(Message, frozen=True):
    """On gateway/state: agents keep their reports at home while no gateway is there."""

    online: bool
    owner: str = ""
    clock: float = 0.0


# Everybody ----------------------------------------------------------------------------------------


class RunRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """On run/<pipeline>: run it. Which targets and overrides are allowed, conf/mqtt.yml says."""

    inputs: dict[str, Any] = {}
    target: str | None = None
    final_vars: list[str] | None = None
    environment: str | None = None
    key: str | None = None


class JobQueued(Message, frozen=True):
    """The first answer to a trigger with a response topic."""

    id: str
    pipeline: str


class JobOutcome(Message, frozen=True):
    """How a job ended, for whoever triggered it. `result` is plain JSON where it can be said in
    that, else `codec`'s document (`encoded`).
    """

    id: str
    pipeline: str
    outcome: Outcome
    key: str | None = None
    result: Raw | UnsetType = UNSET
    encoded: bool = False
    dropped: bool = False
    reason: str | None = None
    error: Failure | None = None
    agent: str | None = None
    attempt: int = 0
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None


class Refused(Message, frozen=True):
    """The answer to a trigger that makes no job, where it gave a response topic."""

    reason: str
