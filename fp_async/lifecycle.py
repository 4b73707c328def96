"""The life of a job: states, events, and the one table of what follows what.

The stores repeat the states as a CHECK; `tests/test_lifecycle.py` compares the two, and the
diagram in `docs/jobs.md` is `diagram()`.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, get_args

from fp_async.errors import TransitionError

State = Literal[
    "queued",
    "offered",
    "accepted",
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "expired",
    "rejected",
]
Event = Literal[
    "claim",  # a worker takes it, with a lease
    "offer",  # the gateway binds it to an agent
    "accept",  # the agent has it in its own store
    "start",  # the agent runs it
    "wait",  # the agent has it, and what it needs is wrong in the configuration there
    "succeed",
    "fail",  # for good: an error without a retry, or one crash too many
    "retry",  # an error that is tried again
    "crash",  # its process or device died; queued again
    "give_back",  # not run after all: a worker drains, an agent has no room
    "release",  # not begun: what it needs is wrong in the configuration of its worker
    "refuse",  # the agent never will, or its pipeline does not exist
    "cancel",  # asked for: an end only while nobody has it
    "confirm_cancel",  # whoever had it has stopped, or the deadline has passed
    "expire",  # nobody started it in time
    "lose",  # its agent stays away, and it is free to go elsewhere
]

STATES: tuple[State, ...] = get_args(State)
EVENTS: tuple[Event, ...] = get_args(Event)
TERMINAL: tuple[State, ...] = ("succeeded", "failed", "cancelled", "expired", "rejected")
ACTIVE: tuple[State, ...] = ("queued", "offered", "accepted", "running")

_OUTCOMES: dict[Event, State] = {
    "succeed": "succeeded",
    "fail": "failed",
    "confirm_cancel": "cancelled",
    "expire": "expired",
}
TABLE: dict[State, dict[Event, State]] = {
    "queued": {
        "claim": "running",
        "offer": "offered",
        "cancel": "cancelled",
        "expire": "expired",
    },
    "offered": {
        "accept": "accepted",
        "start": "running",
        "wait": "accepted",
        "give_back": "queued",
        "refuse": "rejected",
        "lose": "queued",
        "cancel": "offered",
        "crash": "queued",
        **_OUTCOMES,
    },
    "accepted": {
        "start": "running",
        "wait": "accepted",
        "refuse": "rejected",
        "lose": "queued",
        "cancel": "accepted",
        "crash": "queued",
        **_OUTCOMES,
    },
    "running": {
        "succeed": "succeeded",
        "fail": "failed",
        "retry": "queued",
        "crash": "queued",
        "give_back": "queued",
        "release": "queued",
        "wait": "accepted",
        "refuse": "rejected",
        "lose": "queued",
        "cancel": "running",
        "confirm_cancel": "cancelled",
    },
    **{state: {} for state in TERMINAL},
}

# What somebody else tells about an attempt: it may come late, twice, or out of order.
REPORTS: frozenset[Event] = frozenset(EVENTS) - {"claim", "offer", "cancel"}


class Stale(Enum):
    """The answer to a report that changes nothing any more."""

    STALE = "stale"


STALE = Stale.STALE


def step(state: State, event: Event, *, current: bool = True) -> State | Stale:
    """The state after `event`, or STALE for a report that comes too late.

    `current` says whether the report is of the job's current attempt. Raises TransitionError
    for what only our own code can have asked for: a claim of a job that is not queued, say.
    """
    if event in REPORTS and (not current or state in TERMINAL):
        return STALE
    after = TABLE[state].get(event)
    if after is not None:
        return after
    if event in REPORTS or event == "cancel":
        return STALE  # backward, or of an attempt that has been taken away; or it has ended
    raise TransitionError(f"a job that is {state} cannot {event}")


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> queued"]
    for state, moves in TABLE.items():
        after: dict[State, list[str]] = {}
        for event, target in moves.items():
            after.setdefault(target, []).append(event)
        lines += [f"    {state} --> {target}: {', '.join(e)}" for target, e in after.items()]
    lines += [f"    {state} --> [*]" for state in TERMINAL]
    return "\n".join(lines) + "\n"
