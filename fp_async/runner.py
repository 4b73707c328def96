"""Where a worker's jobs run: in child processes that can be killed, or in the worker's own loop.

A child runs one job at a time, is kept warm, is killed with all that it started when its job is
cancelled or takes too long, and dies with the worker; see `runner_process`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import replace

from fp_async import config_files
from fp_async.attempt import Call, Order, Outcome, Trail, captured
from fp_async.callbacks import LIMIT, NONE, Callbacks
from fp_async.config import WorkerSettings
from fp_async.runner_process import GONE, EditedError, RunnerProcess, Settings, Write
from fp_async.runtime import process_tree

if TYPE_CHECKING:
    from fp_async.config_files import Trouble
    from fp_async.flows import Flows
    from fp_async.jobs import Job
    from fp_async.json_logs import Relay

log: logging.Logger = logging.getLogger("fp_async")
_LONGEST_CALL = 2 * LIMIT  # seconds for all of a pipeline's functions
_LONGEST_LINE = 65_536


class Runner(Protocol):
    """Runs attempts; several at once. `callbacks` are functions of this process."""

    callbacks: Callbacks

    def stamps(self) -> object:
        """What changes when files of the configuration do."""

    def trouble(self, job: Job) -> Trouble | None:
        """Why the configuration does not let a job begin, as far as this process knows."""

    async def run(self, order: Order, trail: Trail) -> Outcome:
        """Cancelling stops the attempt for good, as far as its kind can be stopped."""

    async def hear(self, call: Call) -> list[str]:
        """Tell the user's functions how an attempt went, where it was made; what went wrong."""

    async def close(self, within: float = 0.0) -> None:
        """End what was kept warm: processes get `within` seconds to end as Python does."""


class InlineRunner:
    """Runs jobs on the worker's event loop. Sync nodes in threads cannot be killed there."""

    def __init__(self, flows: Flows) -> None:
        self._flows = flows
        self.callbacks: Callbacks = flows.callbacks
        self.stamps = flows.files.stamps

    def trouble(self, job: Job) -> Trouble | None:
        """By the files as they are."""
        self._flows.refresh(within=1.0)
        return self._flows.trouble(job.pipeline, job.rules.environment)

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

    async def close(self, within: float = 0.0) -> None:  # noqa: ARG002 - nothing of it is warm
        """Let child processes of `executor: processpool` go."""
        await self._flows.aclose()


class ProcessRunner:
    """Runs each job in a child process; as many as there are jobs at once.

    `callbacks` are functions of this process, which hear of jobs as well. `relay` writes on what
    jobs log, line by line, and gives back what is kept of it. With `flows` a job that the
    configuration does not let begin needs no child, and children know what was right before.
    """

    def __init__(
        self,
        root: Path,
        settings: WorkerSettings,
        callbacks: Callbacks = NONE,
        relay: Relay | None = None,
        flows: Flows | None = None,
        log_level: str = "info",
    ) -> None:
        self._settings = Settings(
            str(root),
            settings.memory_limit,
            json=relay is not None,
            grace=settings.grace,
            adopts=process_tree.orphans() is not None,
            log_level=log_level,
        )
        self._most = settings.max_jobs_per_child or sys.maxsize
        self._flows = flows
        self.stamps = config_files.of(root).stamps
        self._relay = relay
        self.callbacks = callbacks
        self._idle_timeout = settings.idle_timeout
        self._idle: deque[RunnerProcess] = deque()
        self._closed = False
        self._ending: set[asyncio.Task[None]] = set()

    def trouble(self, job: Job) -> Trouble | None:
        """By the files as they are; without `flows` its child says so."""
        if self._flows is None:
            return None
        self._flows.refresh(within=1.0)
        return self._flows.trouble(job.pipeline, job.rules.environment)

    async def run(self, order: Order, trail: Trail) -> Outcome:
        """Run in a child. Cancelling kills it, with all that it has started."""
        while True:
            with suppress(EditedError):
                return await self._run(order, trail)

    async def _run(self, order: Order, trail: Trail) -> Outcome:
        child = self._take()
        written = self._log(order, trail)
        child.hears(written.write)
        try:
            outcome = await child.ask(order, trail)
        except EditedError:
            self._end_aside(child)
            raise
        except BaseException:
            await self._kill(child)
            raise
        if outcome.status == "crashed" or outcome.dirty:
            await self._kill(child)
        elif outcome.worn or child.jobs >= self._most:
            await self._end_with_job(child, written)
        else:
            child.hears(None)
            self._keep(child)
        written.flush()
        return outcome

    async def hear(self, call: Call) -> list[str]:
        """In a child, which is killed where that takes too long; own functions here."""
        problems = None
        while problems is None:
            with suppress(EditedError):
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
        except EditedError:
            self._end_aside(child)
            raise
        except BaseException:
            child.kill()
            raise
        child.hears(None)
        heard.flush()
        if called.worn:
            self._end_aside(child)
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
        texts = {} if self._flows is None else self._flows.files.texts()
        return RunnerProcess(replace(self._settings, files=texts))

    def _keep(self, child: RunnerProcess) -> None:
        if self._closed:
            self._end_aside(child)
            return
        loop = asyncio.get_running_loop()
        child.retire = loop.call_later(self._idle_timeout, self._retire, child)
        self._idle.append(child)

    def _retire(self, child: RunnerProcess) -> None:
        self._idle.remove(child)
        self._end_aside(child)

    async def _kill(self, child: RunnerProcess) -> None:
        """Kill it now, or, if it has work on a cluster, as soon as it has ended that."""
        if not child.connected:
            child.kill()
            return
        await asyncio.wait([self._aside(child.interrupt())])

    async def _end_with_job(self, child: RunnerProcess, written: Log) -> None:
        """Have it end before the job does, whose log has what it says meanwhile."""
        grace = self._settings.grace
        if not await child.end(grace):
            written.write(f"its process was killed: it had not ended {grace:g} s after the job\n")

    def _end_aside(self, child: RunnerProcess, within: float | None = None) -> None:
        self._aside(self._end(child, self._settings.grace if within is None else within))

    async def _end(self, child: RunnerProcess, within: float) -> None:
        said = Log(lambda text: _log_end(child.latest, text), lambda line: line)
        child.hears(said.write)
        if not await child.end(within):
            text = "the process of job %s was killed: it had not ended within %g s"
            log.warning(text, child.latest, within)
        said.flush()

    def _aside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def close(self, within: float = 0.0) -> None:
        """End the children that wait; the others as soon as they have answered.

        Cancelling kills those that have not ended.
        """
        self._closed = True
        children = list(self._idle)
        self._idle.clear()
        for child in children:
            child.retire.cancel()
            self._end_aside(child, within)
        try:
            if self._ending:
                await asyncio.wait(self._ending)
        except asyncio.CancelledError:
            for task in self._ending:
                task.cancel()
            await asyncio.wait(self._ending)
            raise


def _log_end(job: str, text: str) -> None:
    log.info("the process of job %s, ending: %s", job, text.rstrip("\n"))


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
