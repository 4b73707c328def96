"""What gateway, agents and everybody else say to each other over MQTT: bodies and limits.

Bodies are JSON with a version `v` and the name of their type. What agents and gateways say to each
other may have more fields than a reader knows, so that they need not be upgraded on one day; what
people send (`RunRequest`) may not. Delivery is never relied upon: whoever sends something that
matters has it in a row, and repeats it until it is answered.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from fp_async.config import MOST, Retry
from fp_async.jobs import Failure, NodeTiming, Record, Spec

VERSION: Literal[1] = 1
PACKET_BYTES = 262_144  # the largest message; brokers are configured for it
BATCH_BYTES = 65_536
INPUT_BYTES = 65_536
INLINE_BYTES = 65_536  # a larger result travels in chunks
CHUNK_BYTES = 32_768
RESULT_BYTES = 8 * 2**20
LOG_CHARACTERS = 16_384  # of a log, as it travels
PAGE = 500  # ids in one message
PAGES = 2000  # of one Sync
REPORTS = 2000  # in one message
NAME_CHARACTERS = 191  # what every store can index

# What is not so is refused when a message is read: everything below goes into stores, of which one
# has no NUL in texts, one no integer beyond 32 bits, and one no number that is not finite.
Id = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=r"^[!-~]+\Z",
        description="an id: 1 to 64 visible ASCII characters",
    ),
]
Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=NAME_CHARACTERS,
        pattern=r"^[^\x00-\x1f\x7f]+\Z",
        description="a name: printable characters",
    ),
]
Word = Annotated[
    str,
    Meta(max_length=64, pattern=r"^[ -~]*\Z", description="a word: ASCII without control codes"),
]
Count = Annotated[int, Meta(ge=0, le=MOST)]
Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Priority = Annotated[int, Meta(ge=-32768, le=32767)]
Moment = Annotated[float, Meta(ge=-1e11, le=1e11)]  # epoch seconds, of whatever clock
Seconds = Annotated[float, Meta(ge=0, le=1e11)]

_HEAD_BYTES = 1_000  # of a message around its ids: topic, properties, the body's other keys
ID_BYTES, HELD_BYTES = 67, 110  # of an id, and of an entry of a `Sync`, at most


def page(largest: int | None, each: int) -> int:
    """Return how many ids of `each` bytes one message has, where that is the broker's limit."""
    return PAGE if largest is None else max(min((largest - _HEAD_BYTES) // each, PAGE), 1)


Outcome = Literal["succeeded", "failed", "cancelled", "expired", "rejected"]
Status = Literal["ready", "draining", "offline", "lost"]


class Message(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True, tag_field="type"
):
    """What all bodies share. (A factory, because a plain default would be left out.)"""

    v: Literal[1] = msgspec.field(default_factory=lambda: VERSION)


class Again(Retry, frozen=True, forbid_unknown_fields=False):
    """`Retry` as it is told to readers that may be older."""


class Rules(Spec, frozen=True, forbid_unknown_fields=False):
    """`Spec` as it is told to readers that may be older: what they do not know does not matter."""

    retry: Again | None = None


def rules(spec: Spec) -> Rules:
    """The same rules, to be told."""
    return msgspec.convert(spec, Rules, from_attributes=True)


# Gateway to agent, on agent/<name>/do ---------------------------------------------------------


class RunJob(Message, frozen=True):
    """Run this, under attempt `attempt`. `expires_in` seconds are left to begin it."""

    id: Id
    attempt: Count
    pipeline: Name
    inputs: Raw
    spec: Rules = Rules()
    priority: Priority = 0
    expires_in: Seconds | None = None
    result_ttl: Seconds | None = None


class CancelJob(Message, frozen=True):
    """Stop it, or never begin it."""

    id: Id
    attempt: Count
    reason: str | None = None


class Acknowledge(Message, frozen=True):
    """These outcomes are stored: up to 500 ids."""

    ids: Annotated[list[Id], Meta(max_length=PAGE)]


class Missing(Message, frozen=True):
    """Of the result of this job these chunks have not arrived."""

    id: Id
    attempt: Count
    chunks: Annotated[list[Count], Meta(max_length=RESULT_BYTES // CHUNK_BYTES)]


class Slow(Message, frozen=True):
    """Tell nothing for so long, then all that is not acknowledged once more: the gateway has not
    heard it. With `ids`: of these outcomes alone, for which it has no room, and why.
    """

    seconds: Seconds
    ids: Annotated[list[Id], Meta(max_length=PAGE)] = []
    reason: Annotated[str, Meta(max_length=500)] = ""


class PutSchedule(Message, frozen=True):
    """Keep this schedule, and fire it whether there is a network or not."""

    id: Name
    revision: Count
    pipeline: Name
    trigger: Raw
    policy: Raw
    template: Raw
    paused: bool = False


class DeleteSchedule(Message, frozen=True):
    """Forget this schedule."""

    id: Name
    revision: Count


class AskSync(Message, frozen=True):
    """Say what you have; with `state`, who you are, too.

    `store`, `starts` and `life` are of the latest state that the gateway has believed, where it
    asks because what the agent said was older: a process with another `life` counts on from there.
    """

    state: bool = False
    store: Word = ""
    starts: Count = 0
    life: Word = ""


class Ping(Message, frozen=True):
    """Answered by a Pong, through whoever it was sent to."""

    nonce: Word


class Pong(Message, frozen=True):
    """The answer to a Ping. A gateway that gives an agent no jobs because it doubts who speaks
    under that name says so.
    """

    nonce: Word
    clock: Moment
    doubt: Annotated[str, Meta(max_length=500)] = ""


Do = (
    RunJob
    | CancelJob
    | Acknowledge
    | Missing
    | Slow
    | PutSchedule
    | DeleteSchedule
    | AskSync
    | Ping
    | Pong
)

# Agent to gateway, on agent/<name>/report -----------------------------------------------------


class Accepted(Message, frozen=True):
    """The job is in the agent's own store. `reason`: it has not begun, and waits for that; empty
    where it is only its turn that it waits for.
    """

    id: Id
    attempt: Count
    reason: str | None = None


class Rejected(Message, frozen=True):
    """The agent does not take it: not before `retry_after` seconds, or never."""

    id: Id
    attempt: Count
    reason: str
    retry_after: Seconds | None = None


class Started(Message, frozen=True):
    """It runs; `at` is the device's clock, `sent_at` the same clock now."""

    id: Id
    attempt: Count
    at: Moment
    sent_at: Moment


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a job comes from that the agent began by itself."""

    pipeline: Name
    created_at: Moment
    inputs: Raw
    spec: Rules = Rules()
    schedule_id: Name | None = None
    nominal_at: Moment | None = None
    trigger: Name | None = None
    result_ttl: Seconds | None = None


class Finished(Message, frozen=True):
    """How a job ended: repeated until it is acknowledged. Times are the device's clock.

    A result above 64 KiB comes in `chunks` messages, and has that `sha256` when put together;
    `dropped` says that it could not be sent.
    """

    id: Id
    attempt: Count
    outcome: Outcome
    ended_at: Moment
    sent_at: Moment
    started_at: Moment | None = None
    reason: str | None = None
    result: Raw | UnsetType = UNSET
    chunks: Annotated[int, Meta(ge=0, le=RESULT_BYTES // CHUNK_BYTES)] = 0
    sha256: Word = ""
    dropped: bool = False
    error: Failure | None = None
    record: Record | None = None
    tries: Count = 1
    errors: Count = 0
    crashes: Count = 0
    origin: Origin | None = None


class ResultChunk(Message, frozen=True):
    """A part of a result, in base64."""

    id: Id
    attempt: Count
    index: Annotated[int, Meta(ge=0, lt=RESULT_BYTES // CHUNK_BYTES)]
    data: Annotated[str, Meta(max_length=-(-CHUNK_BYTES // 3) * 4)]


class ScheduleState(Message, frozen=True):
    """The agent has this revision of a schedule, or has it no more; `error` says why not."""

    id: Name
    revision: Count
    error: str | None = None
    gone: bool = False
    next_fire_time: Moment | None = None


class Sync(Message, frozen=True):
    """A page of what the agent has: [id, attempt, state] of what is not acknowledged yet, and
    the revisions of its schedules (on the first page).
    """

    page: Annotated[int, Meta(ge=0, lt=PAGES)]
    pages: Annotated[int, Meta(ge=1, le=PAGES)]
    jobs: Annotated[list[tuple[Id, Count, str]], Meta(max_length=PAGE)] = []
    schedules: dict[Name, Count] | None = None


class Progress(Message, frozen=True):
    """What a running job has done and logged since the last one. May be lost."""

    id: Id
    attempt: Count
    nodes: list[NodeTiming] = []
    log: str = ""


class Heartbeat(Message, frozen=True):
    """A sign of life, every 30 s. May be lost."""

    free: Count
    clock: Moment
    disk_free: Bytes | None = None
    outbox: Count = 0
    clock_steps: Count = 0


class Malformed(Message, frozen=True):
    """So many messages could not be read so far, the last one for this reason."""

    reason: str
    count: Count = 1


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
    believed. `life` is another one for each process. `pipelines` are names and versions, `window`
    is how many jobs it may have at once.
    """

    status: Status
    store: Id
    starts: Count
    n: Count
    life: Word = ""
    boot: Word = ""
    version: Word = ""
    tags: dict[str, str] = {}
    pipelines: dict[Name, Word] = {}
    slots: Count = 1
    window: Count = 16
    clock: Moment = 0.0


class GatewayState(Message, frozen=True):
    """On gateway/state: agents keep their reports at home while no gateway is there."""

    online: bool
    owner: str = ""
    clock: Moment = 0.0


# Everybody ----------------------------------------------------------------------------------------


class RunRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """On run/<pipeline>: run it. Which targets and overrides are allowed, conf/mqtt.yml says."""

    inputs: dict[str, Any] = {}
    target: str | None = None
    final_vars: list[str] | None = None
    environment: str | None = None
    key: Any = UNSET


class JobQueued(Message, frozen=True):
    """The first answer to a trigger with a response topic."""

    id: Id
    pipeline: Name


class JobOutcome(Message, frozen=True):
    """How a job ended, for whoever triggered it. `result` is plain JSON where it can be said in
    that, else `codec`'s document (`encoded`).
    """

    id: Id
    pipeline: Name
    outcome: Outcome
    key: str | None = None
    result: Raw | UnsetType = UNSET
    encoded: bool = False
    dropped: bool = False
    reason: str | None = None
    error: Failure | None = None
    agent: str | None = None
    attempt: Count = 0
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None


class Refused(Message, frozen=True):
    """The answer to a trigger that makes no job, where it gave a response topic."""

    reason: str
