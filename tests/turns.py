"""Turns of the tests in a run with several processes (pytest-xdist): they run side by side, but one
that is marked `alone`, because it measures time or kills by the clock, runs while no other does.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

DOOR, ROOM = Path(__file__), Path(__file__).with_name("conftest.py")  # any two files will do


@contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """Hold the lock of a file. It is given up explicitly: a forked child may have the file open."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, how)
        yield
        fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        os.close(file)


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Wait until a test may run. One that waits to be alone keeps the door shut for others."""
    with ExitStack() as room:
        with locked(DOOR, fcntl.LOCK_EX):
            room.enter_context(locked(ROOM, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        yield
