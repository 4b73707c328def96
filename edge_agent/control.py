"""The local socket of a running agent: `fp-agent status` and `doctor` ask it, nobody else needs it.

One request a line, one answer a line, both JSON. The socket is the owner's alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fp_async.errors import BrokerError

if TYPE_CHECKING:
    from edge_agent.agent import Agent

_LONGEST = 4096


def socket_paths(store: str) -> list[Path]:
    """Where an agent on that store may listen, the best place first: short names, since the
    system limits their length. systemd gives a service /run/fp-agent.
    """
    name = f"fp-agent-{hashlib.blake2b(store.encode(), digest_size=8).hexdigest()}.sock"
    own = os.environ.get("RUNTIME_DIRECTORY", "/run/fp-agent").partition(":")[0]
    return [Path(folder) / name for folder in (own, "/run", tempfile.gettempdir())]


def socket_path(store: str) -> Path:
    """The first of them in a folder that can be written to."""
    paths = socket_paths(store)
    return next((path for path in paths if os.access(path.parent, os.W_OK)), paths[-1])


class Control:
    """Answers while it runs."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._path = socket_path(agent.settings.store)
        self._began = time.time()

    async def run(self) -> None:
        """Serve until cancelled."""
        self._path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._answer, self._path, limit=_LONGEST)
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
        number, size = await agent.rows.waiting()
        return {
            "name": agent.settings.name,
            "status": agent.status,
            "pid": os.getpid(),
            "since": self._began,
            "broker": agent.settings.broker,
            "connected": agent.connected,
            "gateway": agent.gateway,
            "problem": agent.problem or None,
            "busy": agent.worker.running,
            "slots": agent.settings.slots,
            "untold": number,
            "untold_bytes": size,
            "disk_free": agent.house.disk_free,
            "full": agent.house.full,
            "skipped": agent.house.refused,
            "store": agent.identity.store,
            "starts": agent.identity.starts,
            "connections": agent.n,
            "clock_steps": agent.house.clock_steps,
        }

    async def _ping(self) -> dict[str, Any]:
        """A message to the gateway and back, over the agent's own connection."""
        session = self._agent.session
        if session is None:
            return {"error": self._agent.problem or "the agent is not connected"}
        try:
            return await session.ping()
        except (BrokerError, TimeoutError) as error:
            return {"error": str(error) or "the gateway did not answer"}


def ask(store: str, what: str, seconds: float = 10.0) -> dict[str, Any] | None:
    """Ask the agent on that store; None where none runs."""
    import socket

    for path in socket_paths(store):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(seconds)
            try:
                sock.connect(str(path))
            except OSError:
                continue
            sock.sendall(msgspec.json.encode({"ask": what}) + b"\n")
            data = b"".join(iter(lambda: sock.recv(65_536), b""))
            answer: dict[str, Any] = msgspec.json.decode(data)
            return answer
    return None
