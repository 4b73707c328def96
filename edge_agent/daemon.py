"""The process of an agent: started by `fp-agent run`, with its settings in the environment.

A program of its own, so that it never loads what only the command needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from edge_agent import notify, starting
from edge_agent.agent import Agent
from edge_agent.config import ADOPTS, VARIABLE, AgentSettings, address
from edge_agent.control import Control
from edge_agent.session import Session
from fp_async import link, wire
from fp_async.errors import FlowerPowerError, SessionTakenError, StoreError
from fp_async.link import Connection, Link, Will
from fp_async.runtime import process_tree

log = logging.getLogger("fp_async.agent")
_GOODBYE = 3.0
_PATIENT = 2  # signals that it may take to end by itself
_TAKEN = 60.0
_TAKEN_FIRST = 10.0  # soon, so that two with one store show that they are two
_LOOKED_AT = 0.3


class Daemon:
    """An agent in this process, and what signals do to it."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._agent = Agent(settings)
        self._session: Session | None = None
        self._address = address(settings)
        self._main: asyncio.Task[None] | None = None
        self._signals = 0

    async def run(self) -> None:
        """Work until a signal comes and what runs has ended."""
        agent = self._agent
        await agent.open()
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._stop)
            if (orphans := process_tree.orphans()) is not None:
                asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, orphans.look)
            log.info(
                "agent %s: project %s, store %s, %d slots, %s",
                self._settings.name,
                self._settings.project,
                self._settings.store,
                self._settings.slots,
                self._address,
            )
            await self._work()
        finally:
            await agent.close()
            log.info("agent %s has ended", self._settings.name)

    async def _work(self) -> None:
        agent = self._agent
        linking = asyncio.create_task(self._keep_linked(), name="fp-agent-link")
        beside = [linking, asyncio.create_task(Control(agent).run(), name="fp-agent-control")]
        beside.append(asyncio.create_task(notify.keep_alive(), name="fp-agent-watchdog"))
        if self._settings.triggers:
            from edge_agent.local_triggers import listen

            beside.append(asyncio.create_task(listen(agent), name="fp-agent-triggers"))
        if self._settings.metrics_port is not None:
            from edge_agent import measuring

            beside.append(asyncio.create_task(measuring.serve(agent), name="fp-agent-metrics"))
        self._main = asyncio.create_task(agent.run(), name="fp-agent-work")
        notify.ready()
        try:
            await asyncio.wait([self._main, *beside], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._main.cancel()
            await asyncio.wait([self._main])
            await self._say_goodbye()
            for task in beside:
                task.cancel()
            await asyncio.wait(beside, timeout=_GOODBYE)
        for task in (self._main, *beside):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _keep_linked(self) -> None:
        """Connected, for ever. Another client of our name is a reason to wait, not to end."""
        agent, taken = self._agent, 0
        while True:
            try:
                await link.serve(self._link, self._serve, told=self._told)
                await asyncio.sleep(min(2.0 ** (agent.overtaken - 1) - 1, _TAKEN))  # 0, 1, 3, ...
            except SessionTakenError as error:
                self._agent.problems.note(
                    "broker", f"another client connects as this agent: {error}"
                )
                taken += 1
                await asyncio.sleep(min(_TAKEN_FIRST * taken, _TAKEN))

    async def _say_goodbye(self) -> None:
        """Tell what has ended meanwhile, and that nobody needs to wait."""
        if self._session is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE):
                    await self._session.say_goodbye()

    def _link(self) -> Link:
        """For one attempt to connect. Each has a number of its own, which its will bears, too:
        what the broker says of one that failed is not taken for the end of the next.
        """
        self._agent.n += 1
        gone = wire.encode(self._agent.state("lost"))
        topic = self._settings.topics.agent(self._settings.name, "state")
        return msgspec.structs.replace(
            self._address, will=Will(topic=topic, payload=gone, qos=1, retain=True)
        )

    async def _serve(self, connection: Connection) -> None:
        self._session = Session(self._agent, connection)
        try:
            await self._session.run()
        finally:
            self._session = None

    def _told(self, error: FlowerPowerError | None) -> None:
        self._agent.problems.note("broker", str(error or ""), logged=True)
        if error is None:
            log.info("connected to %s", self._address)

    def _stop(self) -> None:
        """The first signal lets what runs end, the second gives it back at once."""
        self._signals += 1
        agent = self._agent
        agent.status = "draining"
        agent.noticed.set()
        if self._signals == 1:
            notify.stopping()
            if self._session is not None:
                agent.soon(self._session.try_to_show())
            agent.worker.drain()
        elif self._main is not None:
            self._main.cancel()
            if self._signals > _PATIENT:  # whatever it still waits for
                os._exit(1)


@contextlib.contextmanager
def alone(store: Path) -> Iterator[None]:
    """Nobody else runs on this store; the lock goes with the process. Raises StoreError."""
    path = store.with_name(f"{store.name}.lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.fdopen(os.open(path, flags, 0o600), "r+")
    except OSError as error:
        raise StoreError(f"store {store}: cannot write {path.name}: {error.strerror}") from error
    with file:
        if not _locked(file):
            file.seek(0)
            who = f"another agent (pid {file.read().strip() or 'unknown'})"
            raise StoreError(f"{who} runs on the store {store}; give this one another --store")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _locked(file: IO[str]) -> bool:
    """Whether we have the lock now. A `status` looks at it for a moment."""
    deadline = time.monotonic() + _LOOKED_AT
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


async def _run(settings: AgentSettings) -> None:
    await Daemon(settings).run()


def main() -> None:
    """Run the agent that FP_AGENT_SETTINGS describes."""
    settings = starting.taken_over(os.environ.pop(VARIABLE))
    if os.environ.pop(ADOPTS, None):
        process_tree.adopt(already=True)
    starting.set_up_log(settings)
    try:
        with contextlib.suppress(OSError):  # the lock says what is wrong with the folder
            os.chdir(Path(settings.store).parent)
        with alone(Path(settings.store)):
            asyncio.run(_run(settings))
    except (FlowerPowerError, OSError) as error:
        log.error("%s", error)  # noqa: TRY400 - it is told what to do about it
        sys.exit(getattr(error, "exit_code", 1))
    except Exception as error:
        from fp_async.cli import bugs

        log.critical("%s", bugs.message(error))
        sys.exit(bugs.EXIT_CODE)
