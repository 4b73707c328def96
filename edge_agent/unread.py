"""Messages that the agent can make nothing of: counted, and told in the log and to the center."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from fp_async.messages import Malformed

if TYPE_CHECKING:
    from edge_agent.agent import Agent

log = logging.getLogger("fp_async.agent")
_BURST = 60.0  # they are told of once in so many seconds
_REASON = 500


class Unread:
    """Unreadable messages of one kind. `text` is the line of the log, with their number and the
    last reason.
    """

    def __init__(self, agent: Agent, kind: str, text: str) -> None:
        self.count = 0
        self._agent = agent
        self._kind = kind
        self._text = text
        self._told_at = float("-inf")

    def note(self, why: str) -> None:
        """One more, for this reason."""
        self.count += 1
        now = time.monotonic()
        if now - self._told_at <= _BURST:
            return
        self._told_at = now
        log.warning(self._text, self.count, why)
        self._agent.notice(self._kind, Malformed(reason=why[:_REASON], count=self.count))
