"""Telling systemd how the daemon is: sd_notify(3), without its library."""

from __future__ import annotations

import asyncio
import os
import socket


def _send(text: str) -> None:
    place = os.environ.get("NOTIFY_SOCKET")
    if not place:
        return
    name = "\0" + place[1:] if place.startswith("@") else place
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(text.encode(), name)
        except OSError:
            return  # systemd is not there any more: its own watchdog will tell


def ready() -> None:
    """The daemon works."""
    _send("READY=1")


def stopping() -> None:
    """The daemon has been told to end."""
    _send("STOPPING=1")


async def keep_alive() -> None:
    """Tell the watchdog, as often as it wants to hear it, that the event loop turns."""
    microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    if not microseconds:
        await asyncio.Event().wait()
    while True:
        _send("WATCHDOG=1")
        await asyncio.sleep(microseconds / 2e6)
