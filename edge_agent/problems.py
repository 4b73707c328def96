"""What is wrong with an agent at present, and what was last: for whoever asks for its status."""

from __future__ import annotations

import logging
import time

import msgspec

log = logging.getLogger("fp_async.agent")


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is, or was, wrong. Times are the device's, in seconds since the epoch."""

    text: str
    since: float
    over: float | None = None


class Problems:
    """One for each part of the agent. `last` is the latest, solved or not.

    `unsaved`: `last` is not what the store says.
    """

    def __init__(self) -> None:
        self.last: Problem | None = None
        self.unsaved = False
        self._now: dict[str, Problem] = {}

    def note(self, part: str, text: str, *, logged: bool = False) -> None:
        """Something is wrong with a part of the agent; an empty text: nothing any more.

        Said once in the log, unless somebody has `logged` it.
        """
        before = self._now.get(part)
        if text == (before.text if before else ""):
            return
        now = time.time()
        if not text:
            over = self._now.pop(part)
            self.last = msgspec.structs.replace(over, over=now)
        else:  # another text of the same trouble: it began with the first
            self._now[part] = self.last = Problem(text, before.since if before else now)
            if not logged:
                log.warning("%s", text)
        self.unsaved = True

    def of(self, part: str) -> str:
        """Return the present problem of a part; empty where it has none."""
        return self._now[part].text if part in self._now else ""

    def __len__(self) -> int:
        return len(self._now)

    def __str__(self) -> str:
        return "; ".join(each.text for each in self._now.values())

    @property
    def since(self) -> float | None:
        """When the oldest that is not solved began."""
        return min((each.since for each in self._now.values()), default=None)
