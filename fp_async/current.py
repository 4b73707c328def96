"""The job that the calling code runs in."""

from __future__ import annotations

from contextvars import ContextVar

import msgspec


class CurrentJob(msgspec.Struct, frozen=True):
    """The job that the calling code runs in; `id` and `attempt` make a key for what must happen
    once elsewhere.
    """

    id: str
    attempt: int
    pipeline: str


current: ContextVar[CurrentJob | None] = ContextVar("fp_current_job", default=None)


def current_job() -> CurrentJob | None:
    """The job that the calling node belongs to; None in a run that is no job."""
    return current.get()
