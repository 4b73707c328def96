"""Where a worker's jobs run: in child processes that can be killed, or in the worker's own loop.

A child runs one job at a time, is kept warm, is killed with all that it started when its job is
cancelled or takes too long, and dies with the worker; see `runner_process`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fp_async import tracing
from fp_async.attempt import Call, Order, Outcome, Trail, captured
from fp_async.callbacks import LIMIT, NONE, Callbacks
from fp_async.runner_process import GONE, RunnerProcess, Settings, Write

if TYPE_CHECKING:
    from fp_async.flows import Flows
    from fp_async.json_logs import Relay

log = logging.getLogger("fp_async")
_LONGEST_CALL = 2 * LIMIT  # seconds for all of a pipeline's functions
_PARTING = 4.0  # seconds; an export may take three of them


_LONGEST_LINE = 65_536


class Runner(Protocol):
    """Runs attempts; several at once. `callbacks` are functions of this process."""

    callbacks: Callbacks

    async def run(self, order: Order, trail: Trail) -> Outcome:
        """Cancelling stops the attempt for good, as far as its kind can be stopped."""

    async def hear(self, call: Call) -> list[str]:
        """Tell the user's functions how an attempt went, where it was made; what went wrong."""

    async def close(self) -> None:
        """End what was kept warm."""


class InlineRunner:
    """Runs jobs on the worker's event loop. Sync nodes in threads cannot be killed there."""

    def __init__(self, flows: Flows) -> None:
        self._flows = flows
        self.callbacks = flows.callbacks

    async def run(self, order: Order, trail: Trail) -> Outcome:
        """Run in this process. Cancelling cancels what waits on the loop, abandons threads."""
        from fp_async.attempting import attempt  # an agent's worker has no use for it

        self._flows.refresh(within=1.0)
        captured(trail)
        return await attempt(self._flows, order, trail.tell)

    async def hear(self, call: Call) -> list[str]:
        """On the worker's loop, sync functions in threads."""
        from fp_async.attempting import hear

        return await hear(self._flows, call)

    async def close(self) -> None:
        """Let child processes of `executor: processpool` go."""
        await self._flows.aclose()


class ProcessRunner:
    """Runs each job in a child process; as many as there are jobs at once.

    `callbacks` are functions of this process, which hear of jobs as well. `relay` writes on what
    jobs log, line by line, and gives back what is kept of it.
    """

    def __init__(
        self,
        root: Path,
        memory_limit: int | None,
        idle_timeout: float,
        callbacks: Callbacks = NONE,
        relay: Relay | None = None,
    ) -> None:
        self._settings = Settings(str(root), memory_limit, json=relay is not None)
        self._relay = relay
        self.callbacks = callbacks
        self._idle_timeout = idle_timeout
        self._idle: deque[RunnerProcess] = deque()
        self._closed = False
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self, order: Order, trail: Trail) -> Outcome:
        """Run in a child. Cancelling kills it, with all that it has started."""
        child = self._take()
        written = self._log(order, trail)
        child.hears(written.write)
        try:
            outcome = await child.ask(order, trail)
        except BaseException:
            await self._end(child)
            raise
        child.hears(None)
        written.flush()
        if outcome.status == "crashed" or outcome.dirty:
            await self._end(child)
        else:
            self._keep(child)
        return outcome

    async def hear(self, call: Call) -> list[str]:
        """In a child, which is killed where that takes too long; own functions here."""
        problems = await self._hear_in_child(call)
        if self.callbacks.of(call.kind):
            from fp_async.attempting import hear_own

            problems += await hear_own(self.callbacks, call)
        return problems

    async def _hear_in_child(self, call: Call) -> list[str]:
        child = self._take()
        trail = Trail()
        heard = self._log(call.order, trail)
        child.hears(heard.write)
        try:
            async with asyncio.timeout(_LONGEST_CALL):
                called = await child.tell(call)
        except (TimeoutError, *GONE) as error:
            child.kill()
            what = "takes too long" if isinstance(error, TimeoutError) else "its process died"
            return [f"on_{call.kind}, job {call.order.id} of '{call.order.pipeline}': {what}"]
        except BaseException:
            child.kill()
            raise
        child.hears(None)
        heard.flush()
        if called.dirty:
            child.kill()
        else:
            self._keep(child)
        for line in trail.log.splitlines() if self._relay is None else ():
            log.info("on_%s of job %s: %s", call.kind, call.order.id, line)
        return called.problems

    def _log(self, order: Order, trail: Trail) -> Log:
        relay = self._relay and partial(self._relay, order.current)
        return Log(trail.write, relay)

    def _take(self) -> RunnerProcess:
        while self._idle:
            child = self._idle.pop()  # the warmest
            child.retire.cancel()
            if child.alive():
                return child
            child.kill()
        return RunnerProcess(self._settings)

    def _keep(self, child: RunnerProcess) -> None:
        if self._closed:
            self._begin_end(child)
            return
        loop = asyncio.get_running_loop()
        child.retire = loop.call_later(self._idle_timeout, self._retire, child)
        self._idle.append(child)

    def _retire(self, child: RunnerProcess) -> None:
        self._idle.remove(child)
        self._begin_end(child)

    def _begin_end(self, child: RunnerProcess) -> asyncio.Task[None] | None:
        """Kill it now, or, if it has work on a cluster, as soon as it has ended that."""
        if not child.connected:
            child.kill()
            return None
        task = asyncio.get_running_loop().create_task(child.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _end(self, child: RunnerProcess) -> None:
        if task := self._begin_end(child):
            await asyncio.wait([task])

    async def close(self) -> None:
        """Kill the children that wait; the others as soon as they have answered."""
        self._closed = True
        children = list(self._idle)
        self._idle.clear()
        for child in children:
            child.retire.cancel()
        if tracing.asked_for():  # what they have not exported is lost with them
            for child in children:
                child.part()
            with suppress(TimeoutError):
                async with asyncio.timeout(_PARTING):
                    while any(child.alive() for child in children):  # noqa: ASYNC110 - processes
                        await asyncio.sleep(0.01)
        for child in children:
            self._begin_end(child)
        if self._ending:
            await asyncio.wait(self._ending)


class Log:
    """What a job prints and logs: written to `keep` as it comes, or by lines, as `relay` has it."""

    def __init__(self, keep: Write, relay: Callable[[str], str] | None) -> None:
        self._keep = keep
        self._relay = relay
        self._rest = ""

    def write(self, text: str) -> None:
        if self._relay is None:
            self._keep(text)
            return
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest)
            self._rest = ""
        for line in lines:
            self._keep(self._relay(line) + "\n")

    def flush(self) -> None:
        """Nothing more comes."""
        if self._relay is not None and self._rest:
            self._keep(self._relay(self._rest))
            self._rest = ""
