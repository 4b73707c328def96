"""Keeps the leases of the jobs that a worker holds, from a place that user code cannot block.

With child processes that is the worker's own event loop, which runs no user code. A worker that
runs jobs on its loop gets a thread for it, with a loop and a store connection of its own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Literal

from fp_async.errors import StoreUnavailableError
from fp_async.jobs import LEASE
from fp_async.patience import Patience
from fp_async.stores import CANCEL, LOST, Store

RENEWAL = 2.5
_AGAIN = 0.5  # seconds after a renewal that has failed
UNRENEWED = 8.0  # seconds without a renewal after which an attempt is given up, before its lease is

Why = Literal["cancel", "lost", "drain"]
Stop = Callable[[str, int, Why], None]
Held = Callable[[], Iterable[tuple[str, int]]]


class Keeper:
    """Renews, and tells `stop` of attempts that were taken away, or that nobody wants any more.

    `held` gives (id, attempt) of all that is held; it is called from the keeper's thread.
    """

    def __init__(self, owner: str, held: Held, stop: Stop, patience: Patience) -> None:
        self._owner = owner
        self._held = held
        self._stop = stop
        self._patience = patience
        self._renewed_at: dict[tuple[str, int], float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wanted: asyncio.Event | None = None
        self._resting = False

    def look(self) -> None:
        """Renew now: somebody said that a job is to be cancelled. From any thread."""
        loop, wanted = self._loop, self._wanted
        if loop is not None and wanted is not None and not loop.is_closed():
            loop.call_soon_threadsafe(wanted.set)

    def begin(self) -> None:
        """Something is held from now on. From any thread; costs nothing while something was."""
        if self._resting:
            self._resting = False
            self.look()

    async def run(self, store: Store) -> None:
        """Renew every 2.5 s, as long as something is held, until cancelled."""
        self._loop, self._wanted = asyncio.get_running_loop(), asyncio.Event()
        while True:
            renewed = await self._renew(store, sorted(self._held()))
            self._resting = True  # before looking: who claims now sees it, or is seen
            if not any(self._held()):
                await self._wanted.wait()
                self._wanted.clear()
            self._resting = False
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEWAL if renewed else min(_AGAIN, self._left())):
                    await self._wanted.wait()
            self._wanted.clear()

    def miss(self) -> None:
        """There is no store to renew with: give up what was not renewed for too long."""
        held = sorted(self._held())
        self._know(held, time.monotonic())
        self._apply(held, [], 0.0)

    async def _renew(self, store: Store, held: list[tuple[str, int]]) -> bool:
        """Whether the store has answered."""
        now = time.monotonic()
        self._know(held, now)
        if not held:
            return True
        answers: list[str] = []
        try:
            async with asyncio.timeout(min(RENEWAL, self._left())):
                answers = await store.renew(self._owner, held, LEASE)
        except StoreUnavailableError as error:
            self._patience.failed(error)
        except TimeoutError:
            self._patience.failed(StoreUnavailableError("leases were not renewed in time"))
        self._apply(held, answers, now)
        return bool(answers)

    def _know(self, held: list[tuple[str, int]], now: float) -> None:
        self._renewed_at = {pair: self._renewed_at.get(pair, now) for pair in held}

    def _left(self) -> float:
        """Seconds until the next attempt has to be given up."""
        now = time.monotonic()
        left = [at + UNRENEWED - now for at in self._renewed_at.values()]
        return min((seconds for seconds in left if seconds > 0), default=RENEWAL)

    def _apply(self, held: list[tuple[str, int]], answers: list[str], began: float) -> None:
        for pair, answer in zip(held, answers, strict=False):
            if answer == LOST:
                self._stop(*pair, "lost")
            else:
                self._renewed_at[pair] = began
            if answer == CANCEL:
                self._stop(*pair, "cancel")
        for pair, renewed in self._renewed_at.items():
            if time.monotonic() - renewed >= UNRENEWED:
                self._stop(*pair, "lost")


class KeeperThread:
    """A keeper in a thread of its own. `connect` makes the store that it uses there."""

    def __init__(self, keeper: Keeper, connect: Callable[[], Store]) -> None:
        self._keeper = keeper
        self._connect = connect
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._main, name="fp-keeper", daemon=True)

    def start(self) -> None:
        """Begin, and return when there is something to stop."""
        self._thread.start()
        self._started.wait()

    async def stop(self) -> None:
        """End it and wait for its end."""
        assert self._loop is not None
        assert self._task is not None
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _main(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._task = self._loop.create_task(self._serve())
            self._started.set()
            try:
                self._loop.run_until_complete(self._task)
            except asyncio.CancelledError:
                return

    async def _serve(self) -> None:
        store = self._connect()
        try:
            await self._opened(store)
            await self._keeper.run(store)
        finally:
            await store.close()

    async def _opened(self, store: Store) -> None:
        """Open it, however long that takes; what is held is given up in time."""
        opening = asyncio.create_task(Patience()(store.open))
        try:
            while not (await asyncio.wait([opening], timeout=_AGAIN))[0]:
                self._keeper.miss()
        finally:
            opening.cancel()
            await asyncio.wait([opening])
        opening.result()
