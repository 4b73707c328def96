"""The embedded MQTT broker: rumqttd, from PyPI's `iotcore`, in a child process of its own.

For development, demonstrations and tests. It keeps nothing on disk: what it had (sessions,
retained messages, what was under way) is gone with it, and it takes every user and password. It
listens on 127.0.0.1 only, and speaks MQTT 5 only: its listener for 3.1.1 panics, and is dead for
all, when a message with properties (an offer with its expiry) is for a client of 3.1.1.

What it does not do (0.4, rumqttd 0.20): Retain Handling, No Local, Receive Maximum and the expiry
of sessions are ignored; who is kicked is not told why; a subscription to `$...` closes the
connection, and so does a message above the limit. Retained messages, wills, kept sessions, and
properties and expiry of messages work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from importlib.util import find_spec

import msgspec

from fp_async.errors import BrokerError, MissingExtraError
from fp_async.link import Link, connected

HOST = "127.0.0.1"
_START_SECONDS = 15.0
_LOOK = 0.02
_TRIES = 5  # another process may take a free port first
_PACKET_BYTES = 262_144

_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from fp_async.broker import main; main()"
)

# A log is kept for every topic filter: 8 segments of 1 MiB, of which the oldest goes first.
_CONFIG = """
id = 0
[router]
id = 0
max_connections = 2000
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 8
[v5.1]
name = "v5"
listen = "{host}:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = {size}
max_inflight_count = 100
dynamic_filters = true
"""


class Embedded(msgspec.Struct, frozen=True):
    """A broker that runs: its port, and its process."""

    port: int
    process: asyncio.subprocess.Process

    @property
    def uri(self) -> str:
        return f"mqtt://{HOST}:{self.port}"


@contextlib.asynccontextmanager
async def embedded(port: int = 0) -> AsyncIterator[Embedded]:
    """A broker on this port of 127.0.0.1, which answers; 0 takes a free one.

    It ends with the block, with this process (also by kill -9), and when it is cancelled. Raises
    MissingExtraError without `iotcore`; BrokerError when the port is taken or it does not start.
    """
    if find_spec("iotcore") is None:
        raise MissingExtraError("the embedded MQTT broker", "broker")
    for tries in range(_TRIES):
        number = available(port)
        process = await _spawn(number)
        try:
            if await _answers(process, number):
                yield Embedded(number, process)
                return
        finally:
            await _end(process)
        if port or tries == _TRIES - 1:
            raise BrokerError(f"the embedded MQTT broker ended at once ({process.returncode})")


def available(port: int) -> int:
    """The port itself if it can be had, for 0 a free one. Raises BrokerError."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError as error:
            raise BrokerError(
                f"cannot listen on {HOST}:{port}: {error.strerror}; to use what listens there set "
                f"`broker: {{uri: mqtt://{HOST}:{port}}}` in conf/mqtt.yml, else choose a --port"
            ) from error
        return int(sock.getsockname()[1])


async def _spawn(port: int) -> asyncio.subprocess.Process:
    """The child, out of reach of the terminal's Ctrl-C; it ends when its stdin does."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _START,
        json.dumps(sys.path),
        str(os.getpid()),
        str(port),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )


async def _answers(process: asyncio.subprocess.Process, port: int) -> bool:
    """Wait until it takes an MQTT client; False when it has ended. Raises BrokerError."""
    link = Link(host=HOST, port=port, timeout=2.0)
    try:
        async with asyncio.timeout(_START_SECONDS):
            while process.returncode is None:
                with contextlib.suppress(BrokerError):
                    async with connected(link):
                        return True
                await asyncio.sleep(_LOOK)
    except TimeoutError:
        raise BrokerError(
            f"the embedded MQTT broker does not answer on {HOST}:{port} after {_START_SECONDS:g} s"
        ) from None
    return False


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill it: it has nothing to save. Waits for its end even while being cancelled."""
    # Or asyncio leaves the pipe to the garbage collector, on a loop that may be closed by then.
    process._transport.close()  # type: ignore[attr-defined]
    await asyncio.shield(process.wait())


# In the child -----------------------------------------------------------------------------------


def config(port: int) -> str:
    """The TOML of rumqttd: with its keywords `iotcore` binds 0.0.0.0 and speaks only 3.1.1."""
    return _CONFIG.format(host=HOST, port=port, size=_PACKET_BYTES)


def main() -> None:
    """The child: parent's pid, port."""
    import logging

    from iotcore import IotCoreBroker

    parent, port = map(int, sys.argv[1:])
    logging.basicConfig(level=logging.CRITICAL)  # it logs an ERROR for every packet
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(config(port))
        file.flush()
        server = IotCoreBroker(config_path=file.name)
    try:
        server.check_ports()
    except OSError as error:
        sys.exit(f"the embedded MQTT broker: {error}")
    server.run_forever()


def _leave_with(parent: int) -> None:
    """End with the parent: its end of the pipe may live on in another child of it."""
    while os.getppid() == parent:
        if select.select([0], [], [], 1.0)[0]:
            break
    os._exit(0)
