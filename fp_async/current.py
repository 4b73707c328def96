"""What the calling code belongs to: the job and the node that run it. Set where they are begun."""

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


job: ContextVar[CurrentJob | None] = ContextVar("fp_current_job", default=None)
item: ContextVar[str] = ContextVar("fp_current_item", default="")  # of a Parallelizable, in hooks
node: ContextVar[str | None] = ContextVar("fp_current_node", default=None)  # of watched runs


def current_job() -> CurrentJob | None:
    """The job that the calling node belongs to; None in a run that is no job."""
    return job.get()
