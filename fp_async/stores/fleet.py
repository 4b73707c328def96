"""What a store keeps for jobs that run on agents: the second half of the contract (`stores`).

The same promises: each verb is one statement or one transaction, may be cut off at any moment,
and may be called again. In MongoDB, of a verb over several items each item is one: cut off, it
has done some of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fp_async.jobs import Chunk, Job, Letter, Offer


class Fleet(Protocol):
    """Offers, outcomes from elsewhere, replies, dead letters. Raises what a Store raises."""

    async def lead(self, role: str, owner: str, seconds: float) -> bool:
        """Take or keep the lease of a role that only one may have; whether `owner` has it now.

        By the store's clock. 0 seconds give it back, where `owner` has it. Cut off, whether it
        was taken is not known: asking again tells.
        """

    async def wanted(self) -> dict[str, float]:
        """The targets of queued jobs, and when the first job of each becomes due."""

    async def waiting(self, targets: Sequence[str], limit: int) -> list[Job]:
        """Due jobs for any of these targets, without blobs, in the order of `claim`.

        A `limit` of 0 or less gives none.
        """

    async def offer(self, offers: Sequence[Offer]) -> list[Job | None]:
        """Bind each queued job to its agent, with the next attempt number: the whole row.

        None where the job is no longer as the offer expects it. Where several offers name one
        job, the first that is right wins.
        """

    async def adopt(self, jobs: Sequence[Job]) -> list[bool]:
        """Insert jobs that have ended elsewhere; False where the id exists: that row stays.

        They are pruned `result_ttl` seconds after now, and their bare ids stay known after that.
        Schedules of which they are have fired so much more often.
        Raises TransitionError for a job that has not ended.
        """

    async def unreplied(self, limit: int) -> list[Job]:
        """Ended jobs whose `reply_to` has not heard of it, the whole rows, the oldest first."""

    async def replied(self, ids: Sequence[str]) -> None:
        """Their reply topics have heard."""

    async def bury(self, letters: Sequence[Letter]) -> None:
        """Keep messages that made no job, for 7 days; `at` 0 means now. Known ids stay."""

    async def letters(self, limit: int = 50) -> list[Letter]:
        """The newest first."""

    async def keep(self, chunks: Sequence[Chunk]) -> None:
        """Keep parts of results, for a day; a part that is there stays as it is."""

    async def kept(self, id: str, attempt: int) -> list[Chunk]:
        """The parts of one result, in their order."""

    async def forget(self, id: str) -> None:
        """Remove all parts of a job's results."""
