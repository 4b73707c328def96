"""From which level on a program of ours shows what is logged.

One rule everywhere: INFO and above, of the pipeline's loggers and of all others; `--log-level` and
FLOWERPOWER_LOG_LEVEL say otherwise. What a pipeline sets for a logger of its own counts.
"""

from __future__ import annotations

import logging
import sys

from fp_async import escapes

LEVELS = ("debug", "info", "warning", "error")
FORMAT = "%(levelname)s %(name)s: %(message)s"
_TALKATIVE = ("aiosqlite", "asyncio", "pymongo")  # at DEBUG, of every statement that we make


class Formatter(logging.Formatter):
    """Formats lines for people: a terminal obeys none, and only a record begins one."""

    def format(self, record: logging.LogRecord) -> str:
        return escapes.indented(super().format(record))


def write(level: int, form: str) -> None:
    """Write what is logged from `level` on to stderr, in the form that is given."""
    logging.basicConfig(level=level, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Formatter(form))


class _OnStderr(logging.Handler):
    """Writes to stderr as it is at the moment: a live view takes its place for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")
        sys.stderr.flush()

    def format(self, record: logging.LogRecord) -> str:
        """Return a line; a warning of ours looks as one of the command."""
        if record.levelno != logging.WARNING or record.name.partition(".")[0] != "fp_async":
            return escapes.escaped(super().format(record))
        mark = "\x1b[33m\x1b[1mwarning:\x1b[0m" if sys.stderr.isatty() else "warning:"
        return f"{mark} {escapes.escaped(record.getMessage())}"


def show(level: int) -> None:
    """Show on stderr what is logged from `level` on, as long as nothing else has a handler.

    A pipeline that calls `logging.basicConfig` has it its own way, as in any script: the last
    resort of `logging` is no handler of the root logger.
    """
    handler = _OnStderr(level)
    handler.setFormatter(logging.Formatter(FORMAT))
    logging.lastResort = handler
    logging.getLogger().setLevel(level)
    hush_libraries()


def show_ours() -> None:
    """Have warnings of ours look as such in a command that shows no others."""
    if not isinstance(logging.lastResort, _OnStderr):
        logging.lastResort = _OnStderr(logging.WARNING)


def hush_libraries() -> None:
    """Leave out what libraries log about themselves, in places where it is not about a run."""
    logging.getLogger("hamilton").setLevel(logging.WARNING)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.INFO)
