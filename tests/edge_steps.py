"""A gateway or an agent that is killed at one step of a delivery: `python edge_steps.py SIDE STEP WHEN ...`.

STEP is `module:Class.method`. As soon as the file that EDGE_ARMED names exists, the first call of it
is the last thing that the process does, before or after it: kill -9, nothing flushed. What follows
is given to the command.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import sys
from pathlib import Path

import msgspec

from edge_agent.config import AgentSettings


def die() -> None:
    if Path(os.environ["EDGE_ARMED"]).exists():
        os.kill(os.getpid(), signal.SIGKILL)


def deadly(function, when):
    """The function, as it is called by a process that dies there."""

    @functools.wraps(function)
    async def waiting(*args, **kwargs):
        if when == "before":
            die()
        result = await function(*args, **kwargs)
        if when == "after":
            die()
        return result

    @functools.wraps(function)
    def plain(*args, **kwargs):
        if when == "before":
            die()
        result = function(*args, **kwargs)
        if when == "after":
            die()
        return result

    return waiting if inspect.iscoroutinefunction(function) else plain


def arm(step: str, when: str) -> None:
    module, _, path = step.partition(":")
    owner, _, method = path.partition(".")
    kind = getattr(importlib.import_module(module), owner)
    setattr(kind, method, deadly(getattr(kind, method), when))


def main() -> None:
    side, step, when, *arguments = sys.argv[1:]
    arm(step, when)
    if side == "gateway":
        from fp_async.cli import main as command

        sys.argv = ["flowerpower", "start-gateway", *arguments]
        command()
    else:
        from edge_agent import daemon, starting

        settings = msgspec.json.decode(os.environ.pop("EDGE_SETTINGS"), type=AgentSettings)
        os.environ[daemon.VARIABLE] = starting.handed_over(settings)
        daemon.main()


if __name__ == "__main__":
    main()
