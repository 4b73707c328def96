"""How a daemon takes a data store that cannot be reached: it tries again, for ever."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fp_async.errors import StoreUnavailableError

T = TypeVar("T")
log: logging.Logger = logging.getLogger("fp_async")
_FIRST, _LONGEST = 0.05, 5.0


class Patience:
    """Awaits calls of the store until they succeed. `failed_at` is when one last did not."""

    def __init__(self) -> None:
        self.failed_at: float = float("-inf")
        self._told = False

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        """The value of `call()`, which is called again as long as the store is unavailable.

        Cancelling ends the waiting. Raises StoreError for what waiting does not mend.
        """
        failures = 0
        while True:
            try:
                value = await call()
            except StoreUnavailableError as error:
                self.failed(error)
            else:
                if self._told:
                    log.warning("the data store answers again")
                    self._told = False
                return value
            await asyncio.sleep(pause(failures))
            failures += 1

    def failed(self, error: StoreUnavailableError) -> None:
        """Remember, and say so once an outage."""
        self.failed_at = time.monotonic()
        if not self._told:
            log.warning("the data store is unavailable, trying again: %s", error)
            self._told = True

    def since_failure(self) -> float:
        """Seconds since a call last failed."""
        return time.monotonic() - self.failed_at


def pause(failures: int) -> float:
    """Seconds before the next try: doubling, with full jitter above a tenth."""
    longest = min(_FIRST * 2.0 ** min(failures, 10), _LONGEST)
    return longest * (0.1 + 0.9 * random.random())
