"""What a broker can and does not say: the largest message that it takes. Pure.

A broker of MQTT 5 may announce its limit; others, and all for clients of 3.1.1, close the
connection on a message that is too large. Sent again after each connect, it would be the last
message for ever.
"""

from __future__ import annotations

from collections.abc import Mapping

LEAST = 4_096  # bytes: every broker takes these
_STRIKES = 3  # connections in a row that ended on the same message
_SOON = 5.0  # seconds after which a loss is not blamed on what was sent
_ALIKE = 64  # bytes: what is said again differs by the time that is left, say
_LAPSES = 3_600.0  # seconds: the broker may have been given another limit


class Limit:
    """What connections tell of a broker's limit. Times are monotonic.

    `deaf`: it leaves MQTT 5 unanswered, and answers 3.1.1.
    """

    def __init__(self) -> None:
        self.deaf = False
        self._taken = LEAST  # the largest that was confirmed
        self._suspect = 0
        self._strikes = 0
        self._most: int | None = None
        self._until = 0.0

    def __repr__(self) -> str:
        return f"<Limit most={self._most} taken={self._taken}>"

    def at_most(self, announced: int | None, now: float) -> int | None:
        """Return the size that no message may exceed; None where nothing is known of one."""
        learned = self._most if now < self._until else None
        return min((n for n in (announced, learned) if n is not None), default=None)

    def took(self, size: int) -> None:
        """Note that the broker has confirmed a message."""
        self._taken = max(self._taken, size)
        if size >= self._suspect - _ALIKE:
            self._suspect = self._strikes = 0

    def lost(self, sent: Mapping[int, float], now: float, *, said: bool = False) -> int | None:
        """Note that the broker has hung up, and on which sizes, by when they were sent; `said`: it
        named the size as the reason. Return the limit if that is learned by it.
        """
        recent = [size for size, at in sent.items() if size > self._taken and now - at <= _SOON]
        if not recent:
            self._suspect = self._strikes = 0
            return None
        largest = max(recent)
        alike = abs(largest - self._suspect) <= _ALIKE
        self._suspect = min(largest, self._suspect) if alike else largest
        self._strikes = self._strikes + 1 if alike else 1
        if self._strikes < _STRIKES and not said:
            return None
        self._most = max(self._suspect - _ALIKE - 1, self._taken)
        self._until = now + _LAPSES
        self._suspect = self._strikes = 0
        return self._most
