"""Logs with one JSON object in each line: what `--log-format json` and `log_format: json` give.

Each has `time`, `level`, `logger` and `message`; what is logged about a job or by one has `job`,
`pipeline`, `attempt` and, where one runs, `node`; that it has ended has `outcome` and `seconds`; an
agent's have `agent`. A job that runs in a
process of its own writes such lines, too; its worker writes them on.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from fp_async import current, escapes
from fp_async.current import CurrentJob

Relay = Callable[[CurrentJob, str], str]
_ABOUT = ("job", "pipeline", "attempt", "outcome", "seconds", "node", "agent")
_encode = msgspec.json.Encoder(enc_hook=repr).encode


class Line(msgspec.Struct, omit_defaults=True):
    """One line. `time` is UTC, `error` a traceback."""

    time: str
    level: str
    logger: str
    message: str
    job: str | None = None
    pipeline: str | None = None
    attempt: int | None = None
    outcome: str | None = None
    seconds: float | None = None
    node: str | None = None
    agent: str | None = None
    error: str | None = None


_decode = msgspec.json.Decoder(Line).decode


class Formatter(logging.Formatter):
    """Formats records as `Line`s, all of them with what is given as `about`."""

    def __init__(self, **about: Any) -> None:
        super().__init__()
        self._about = about

    def format(self, record: logging.LogRecord) -> str:
        line = Line(
            _stamp(record.created), record.levelname.lower(), record.name, record.getMessage()
        )
        self.complete(line, current.job.get())
        line.node = current.node.get()
        for name in _ABOUT:
            if (value := getattr(record, name, None)) is not None:
                setattr(line, name, value)
        if record.exc_info:
            line.error = self.formatException(record.exc_info)
        return escapes.escaped(_encode(line).decode())

    def complete(self, line: Line, job: CurrentJob | None) -> None:
        """Say which job it is of, and whatever all lines say."""
        if job is not None:
            line.job, line.pipeline, line.attempt = job.id, job.pipeline, job.attempt
        for name, value in self._about.items():
            setattr(line, name, value)

    def relay(self, job: CurrentJob, text: str) -> str:
        """Write a line of a job's process on; the line as people read it.

        What is no line of ours was printed.
        """
        try:
            line = _decode(text)
        except msgspec.DecodeError:
            line = Line(_stamp(time.time()), "info", "stdout", text)
            shown = text
        else:
            stamp = line.time.replace("T", " ").removesuffix("Z")
            shown = f"{stamp} {line.level.upper()} {line.logger}: {line.message}"
            shown += f"\n{line.error}" if line.error else ""
        self.complete(line, job)
        sys.stderr.write(escapes.escaped(_encode(line).decode()) + "\n")
        return shown


def _stamp(at: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
    return f"{whole}.{int(at % 1 * 1000):03d}Z"


def install(**about: Any) -> None:
    """Have all handlers of the root logger write JSON."""
    formatter = Formatter(**about)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)


def installed() -> Relay | None:
    """What writes a job's lines on, where JSON is written."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, Formatter):
            return handler.formatter.relay
    return None
