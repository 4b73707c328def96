"""The one tree of errors. Everything this package raises on purpose is a `FlowerPowerError`.

A message says what is wrong, where (file, line, key), and what would be right; `exit_code` is
what the `flowerpower` command ends with when the error reaches it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class FlowerPowerError(Exception):
    """Base of all errors of this package. They survive pickling, whatever they are made from."""

    exit_code = 2

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, vars(self))


class ConfigError(FlowerPowerError):
    """A configuration file, key or value is wrong; the message names file, line and key."""


class ProjectNotFoundError(ConfigError):
    """The folder is no project: it has neither `conf/pipelines.yml` nor `pipelines/`."""


class UnknownNameError(ConfigError):
    """A name (pipeline, environment, executor, variable, input ...) that does not exist.

    `name` is what was asked for, `valid` lists what exists.
    """

    def __init__(self, kind: str, name: str, valid: Iterable[str], *, where: str = "") -> None:
        self.name = name
        self.valid = sorted(valid)
        super().__init__(f"unknown {kind} '{name}'{where}{suggestion(name, self.valid)}")


class MissingParameterError(ConfigError, AttributeError):
    """A pipeline asks `PARAMS` for an entry that the configuration does not have."""


class AlreadyExistsError(FlowerPowerError):
    """Something would be overwritten; pass `overwrite=True` or `--overwrite` to allow it."""


class FileAccessError(FlowerPowerError):
    """A file cannot be read or written; the message gives the operating system's reason."""


class MissingExtraError(FlowerPowerError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f'{what} needs an extra: pip install "fp-async[{extra}]"')


class PipelineImportError(FlowerPowerError):
    """A pipeline's module cannot be imported; the cause is the exception that its code raised."""


class GraphError(FlowerPowerError):
    """The functions of a pipeline do not make a valid DAG (cycle, type mismatch, decorator)."""


class InputError(FlowerPowerError):
    """The inputs of a run are missing, unknown or of the wrong type. Nothing was started."""


class UsageError(FlowerPowerError):
    """Arguments that contradict each other or cannot be parsed."""


class NotAvailableError(FlowerPowerError):
    """A documented function whose part of the library is not in this version yet."""

    def __init__(self, function: str, *_: object) -> None:
        super().__init__(f"{function}: jobs, schedules and workers are not in this version yet")


class NodeError(FlowerPowerError):
    """A node raised. `__cause__` is the user's exception with the user's own traceback.

    `pipeline` and `node` say where, `inputs` maps the node's parameters to their types' names,
    `line` is `file:line: source` of the innermost line of the user's code, or empty.
    """

    exit_code = 1

    def __init__(
        self, pipeline: str, node: str, cause: BaseException, inputs: dict[str, str], line: str
    ) -> None:
        self.pipeline = pipeline
        self.node = node
        self.inputs = inputs
        self.line = line
        given = ", ".join(f"{name}: {kind}" for name, kind in inputs.items()) or "none"
        text = f"node '{node}' of pipeline '{pipeline}' raised {describe(cause)}"
        if line:
            text += f"\n  at {line}"
        super().__init__(f"{text}\n  inputs: {given}")


class NodeCrashedError(NodeError):
    """The child process that ran a node died (killed, out of memory, hard crash)."""


class NodeTimeoutError(NodeError):
    """A node took longer than its own timeout."""

    exit_code = 124


class RunTimeoutError(FlowerPowerError, TimeoutError):
    """A run took longer than its timeout; `running` names the nodes it left behind."""

    exit_code = 124

    def __init__(self, message: str, running: tuple[str, ...] = ()) -> None:
        self.running = running
        super().__init__(message)


def _rebuild(
    kind: type[FlowerPowerError], args: tuple[Any, ...], state: dict[str, Any]
) -> FlowerPowerError:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error


def suggestion(name: str, valid: Iterable[str], *, at_most: int = 12) -> str:
    """The tail of a message about an unknown name: the nearest valid one, and what is valid."""
    names = list(valid)
    if not names:
        return "; there is none"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return f"{hint} valid: {', '.join(names[:at_most])}{more}"


def describe(error: BaseException) -> str:
    """`ValueError: text`, in one line where the text is one line."""
    try:
        text = str(error)
    except Exception:  # an exception class of the user's, with a mistake in its __str__
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
