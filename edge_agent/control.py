"""The local socket of a running agent: `fp-agent status` and `doctor` ask it, nobody else needs it.

One request a line, one answer a line, both JSON. It is beside the store: there the agent may
write, whoever it runs as and however locked in, and there everybody looks who knows the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_agent.config import address, triggers_address
from fp_async.errors import BrokerError, describe

if TYPE_CHECKING:
    from edge_agent.agent import Agent

log = logging.getLogger("fp_async.agent")
_LONGEST = 4096
_LONGEST_ADDRESS = 100  # bytes: the system's limit for the name of a socket is 107


def socket_path(store: str) -> Path:
    """Where an agent on that store listens."""
    return Path(f"{store}.sock")


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name for the socket that is short enough, however long its path is."""
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class Control:
    """Answers while it runs."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._path = socket_path(agent.settings.store)
        self._began = time.time()

    async def run(self) -> None:
        """Serve until cancelled. An agent that cannot be asked works all the same."""
        with contextlib.suppress(OSError), _address(self._path) as address:
            try:
                self._path.unlink(missing_ok=True)
                server = await asyncio.start_unix_server(self._answer, address, limit=_LONGEST)
            except OSError as error:
                log.warning("`fp-agent status` cannot ask this agent: %s", error)
            else:
                await self._serve(server)
        await asyncio.Event().wait()

    async def _serve(self, server: asyncio.Server) -> None:
        self._path.chmod(0o600)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            self._path.unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError):
            line = await reader.readline()
            answer = self._ping if b'"ping"' in line else self.status
            writer.write(msgspec.json.encode(await answer()) + b"\n")
            await writer.drain()
        writer.close()

    async def status(self) -> dict[str, Any]:
        """What the agent knows of itself now."""
        agent = self._agent
        with contextlib.suppress(OSError):  # what was seen at the last look may be 30 s old
            await agent.house.look()
        agent.problems.note("room", agent.house.full or "")
        number, size = await agent.rows.waiting()
        counts = await agent.store.counts()
        return {
            "name": agent.settings.name,
            "status": standing(agent.status, agent.house.full),
            "pid": os.getpid(),
            "since": self._began,
            "broker": agent.settings.place,
            "user": address(agent.settings).username,
            "connected": agent.connected,
            "broker_problem": agent.problems.of("broker") or None,
            "gateway": agent.gateway,
            "triggers": self._triggers(),
            "problem": str(agent.problems) or None,
            "problem_since": agent.problems.since,
            "busy": agent.worker.running,
            "slots": agent.settings.slots,
            "jobs": {state: count for (_, state), count in counts.items()},
            "untold": number,
            "untold_bytes": size,
            "disk_free": agent.house.disk_free,
            "full": agent.house.full,
            "skipped": agent.house.refused,
            "letters": await agent.rows.buried(),
            "set_aside": await agent.rows.fact("set aside"),
            "store": agent.identity.store,
            "starts": agent.identity.starts,
            "connections": agent.n,
            "clock_steps": agent.house.clock_steps,
        }

    def _triggers(self) -> dict[str, Any] | None:
        """The connection of its triggers; None where there are none."""
        agent, settings = self._agent, self._agent.settings
        if not settings.triggers:
            return None
        link = triggers_address(settings)
        return {
            "broker": settings.triggers_place,
            "user": link.username,
            "connected": agent.hears,
            "problem": agent.problems.of("triggers") or None,
        }

    async def _ping(self) -> dict[str, Any]:
        """A message to the gateway and back, over the agent's own connection."""
        session = self._agent.session
        if session is None:
            return {"error": str(self._agent.problems) or "the agent is not connected"}
        try:
            return await session.ping()
        except (BrokerError, TimeoutError) as error:
            return {"error": str(error) or "the gateway did not answer"}


def standing(status: str, full: str | None) -> str:
    """Return how an agent is: one that has no room for jobs is not ready for any."""
    return "full" if full and status == "ready" else status


def ask(store: str, what: str, seconds: float = 10.0) -> dict[str, Any] | None:
    """Ask the agent on that store: `status` or `ping`. None where none listens.

    {"error": why} where one does, but does not answer, or may not be asked by this user.
    """
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        try:
            with _address(socket_path(store)) as address:
                sock.connect(address)
        except PermissionError as error:
            return {"error": f"may not ask it: {error.strerror}; be its user, or root"}
        except OSError:
            return None
        try:
            sock.sendall(msgspec.json.encode({"ask": what}) + b"\n")
            data = b"".join(iter(lambda: sock.recv(65_536), b""))
            answer: dict[str, Any] = msgspec.json.decode(data)
        except (OSError, msgspec.DecodeError) as error:
            return {"error": f"it does not answer: {describe(error)}"}
        return answer
