"""Jobs that a worker has released, because its configuration is wrong for them, and leaves alone.

Pure, but for `stamps`. Jobs wait by pipeline and environment: one of them shows, after 1 s and then
after twice as long each time, up to 60 s, whether the others may be claimed again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fp_async.jobs import Job

log: logging.Logger = logging.getLogger("fp_async")
_FIRST, _LONGEST = 1.0, 60.0

Key = tuple[str, str]


class Entry:
    """The jobs of one pipeline and environment; `until` is when one of them is tried again."""

    def __init__(self, message: str, now: float) -> None:
        self.message = message
        self.since = now
        self.pause = _FIRST
        self.until: float = now + _FIRST
        self.ids: dict[str, None] = {}
        self.probe: str | None = None


class Waiting(NamedTuple):
    """What waits, as metrics show it."""

    pipeline: str
    environment: str
    message: str
    jobs: int


class MisconfiguredJobs:
    """What one worker leaves alone. `stamps` changes with the files that may mend it.

    Times are those of one clock that never goes back.
    """

    def __init__(self, stamps: Callable[[], object]) -> None:
        self._stamps = stamps
        self._seen: object = None
        self._entries: dict[Key, Entry] = {}
        self._doubtful: dict[Key, float] = {}  # since when they may be claimed again

    def add(self, job: Job, message: str, now: float) -> None:
        """The configuration is wrong for a job that was claimed. Until `left` says otherwise, the
        job is left alone.
        """
        if not self._entries:
            self._seen = self._stamps()
        key = (job.pipeline, job.rules.environment)
        entry = self._entries.get(key)
        if entry is None or entry.message != message:
            log.error("jobs of '%s' (%s) stay queued: %s", *key, message)
        self._doubtful.pop(key, None)
        if entry is None:
            entry = self._entries[key] = Entry(message, now)
        entry.message = message
        if entry.probe == job.id:
            entry.pause = min(2 * entry.pause, _LONGEST)
            entry.until, entry.probe = now + entry.pause, None
        entry.ids[job.id] = None

    def begun(self, job: Job, at: float) -> None:
        """A job that was claimed `at` that moment has begun: so may the others of its kind."""
        key = (job.pipeline, job.rules.environment)
        entry = self._entries.get(key)
        since = self._doubtful.get(key) if entry is None else entry.since
        if since is not None and at > since:
            self._entries.pop(key, None)
            self._doubtful.pop(key, None)
            log.warning("jobs of '%s' (%s) run again", *key)

    def left(self, now: float) -> Sequence[str]:
        """The ids that a claim has to leave alone now."""
        if not self._entries:
            return ()
        if (seen := self._stamps()) != self._seen:  # mended, perhaps
            self._seen = seen
            self._doubtful |= dict.fromkeys(self._entries, now)
            self._entries.clear()
            return ()
        for entry in self._entries.values():
            if entry.until <= now and entry.ids:
                entry.probe = next(iter(entry.ids))
                del entry.ids[entry.probe]  # claimed by this claim, or by another worker
                entry.until = now + entry.pause
        return self.known()

    def known(self) -> Sequence[str]:
        """The ids of all that wait."""
        return [id for entry in self._entries.values() for id in entry.ids]

    def next(self, now: float) -> float | None:
        """Seconds until one of them is tried again."""
        times = [entry.until - now for entry in self._entries.values() if entry.ids]
        return max(min(times), 0.0) if times else None

    def waiting(self) -> list[Waiting]:
        """What waits now."""
        return [Waiting(*key, each.message, len(each.ids)) for key, each in self._entries.items()]
