"""The one tree of errors. Everything this package raises on purpose is a `FlowerPowerError`.

A message says what is wrong, where (file, line, key), and what would be right; `exit_code` is
what the `flowerpower` command ends with when the error reaches it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from fp_async.addresses import hidden


class FlowerPowerError(Exception):
    """Base of all errors of this package. They survive pickling, whatever they are made from."""

    exit_code = 2

    def __str__(self) -> str:
        return hidden(super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, vars(self))


class ConfigError(FlowerPowerError):
    """A configuration file, key or value is wrong; the message names file, line and key."""


class MisconfiguredError(ConfigError):
    """A configuration file, or an entry or variable of it, is broken on this machine.

    What does not use it goes on; a job that needs it waits (`queued: configuration: ...`).
    """


class ProjectNotFoundError(ConfigError):
    """The folder is no project: it has neither `conf/pipelines.yml` nor `pipelines/`."""


class UnknownNameError(ConfigError):
    """A name (pipeline, environment, executor, variable, input ...) that does not exist.

    `name` is what was asked for, `valid` lists what exists.
    """

    def __init__(self, kind: str, name: str, valid: Iterable[str], *, where: str = "") -> None:
        self.kind = kind
        self.name = name
        self.valid: list[str] = sorted(valid)
        super().__init__(f"unknown {kind} '{name}'{where}{suggestion(name, self.valid)}")


class AmbiguousIdError(ConfigError):
    """A shortened id is the beginning of several; `candidates` lists them, or the first ten."""

    def __init__(self, kind: str, name: str, candidates: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.candidates: list[str] = list(candidates)
        listed = "".join(f"\n  {id}" for id in self.candidates)
        super().__init__(f"'{name}' is the beginning of more than one {kind}'s id:{listed}")


class UnknownEntryError(UnknownNameError, MisconfiguredError):
    """A name in a configuration file (of a module, node, executor ...) that does not exist."""


class MissingParameterError(ConfigError, AttributeError):
    """A pipeline asks `PARAMS` for an entry that the configuration does not have."""


class CopyError(FlowerPowerError, ImportError):
    """A copy of a pipeline's module, which one process has, is not found by its name."""


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


class NodeError(FlowerPowerError):
    """A node raised. `__cause__` is the user's exception with the user's own traceback.

    `pipeline` and `node` say where, `inputs` maps the node's parameters to their types' names,
    `line` is `file:line: source` of the innermost line of the user's code, or empty. `reason` is
    what the exception does not say and FlowerPower knows, or empty.
    """

    exit_code = 1

    def __init__(
        self,
        pipeline: str,
        node: str,
        cause: BaseException,
        inputs: dict[str, str],
        line: str,
        reason: str = "",
    ) -> None:
        self.pipeline = pipeline
        self.node = node
        self.inputs = inputs
        self.line = line
        given = ", ".join(f"{name}: {kind}" for name, kind in inputs.items()) or "none"
        text = f"node '{node}' of pipeline '{pipeline}' raised {describe(cause)}"
        if line:
            text += f"\n  at {line}"
        text += f"\n  inputs: {given}"
        super().__init__(f"{text}\n  {reason}" if reason else text)


class NodeCrashedError(NodeError):
    """The child process that ran a node died (killed, out of memory, hard crash)."""


class NodeTimeoutError(NodeError):
    """A node took longer than its own timeout."""

    exit_code = 124


class AdapterError(FlowerPowerError):
    """An adapter's hook around a run, or its result builder, raised: see `__cause__`.

    An error of a hook around a node is that node's NodeError.
    """

    exit_code = 1


ABANDONED = "; abandoned in threads: "  # and then the nodes that a run has left behind


class RunTimeoutError(FlowerPowerError, TimeoutError):
    """A run took longer than its timeout; `running` names the nodes it left behind."""

    exit_code = 124

    def __init__(self, message: str, running: tuple[str, ...] = ()) -> None:
        self.running = running
        super().__init__(message)


class EncodingError(FlowerPowerError, TypeError):
    """A value cannot be written as an input or result of a job, or its bytes cannot be read."""


class TriggerError(FlowerPowerError):
    """The times of a schedule are wrong: an unknown trigger, argument, or crontab field."""


class StoreError(FlowerPowerError):
    """The data store refused: wrong password, missing rights, a newer schema, a full disk."""

    exit_code = 3


class StoreUnavailableError(StoreError):
    """The data store cannot be reached now; the same call may succeed later."""


class TrackerError(FlowerPowerError):
    """The Hamilton UI does not answer, or refuses what it is told.

    `status` is that of its answer, 0 without one; `unclear` says that it may have done what it
    was asked for all the same.
    """

    exit_code = 3

    def __init__(self, message: str, *, status: int = 0, unclear: bool = False) -> None:
        self.status = status
        self.unclear = unclear
        super().__init__(message)

    @property
    def refused(self) -> bool:
        """Whether asking again would not help."""
        return 200 <= self.status < 500


class ClusterError(FlowerPowerError):
    """Ray or Dask cannot be started or reached, or has gone in the middle of a run."""

    exit_code = 3


class BrokerError(FlowerPowerError):
    """The event broker cannot be reached or refused. Jobs still run: polling finds them."""

    exit_code = 3


class ConnectRefusedError(BrokerError):
    """The broker answered, and did not let us in. `code` is the reason code of MQTT 5, or the
    return code of MQTT 3.1.1.
    """

    def __init__(self, message: str, code: int) -> None:
        self.code = code
        super().__init__(message)


class MessageError(FlowerPowerError):
    """A message cannot be read: malformed, unknown, too large, of another version."""


class OtherVersionError(MessageError):
    """A message is of another version of the protocol: one of the two has to be updated."""


class PublishRefusedError(BrokerError):
    """The broker did not take a message. `code` is the reason code of MQTT 5.

    0x87 is not authorized, 0x95 too large; what is not worth sending again is for the caller.
    """

    def __init__(self, message: str, code: int) -> None:
        self.code = code
        super().__init__(message)


class TooLargeError(PublishRefusedError):
    """A message is larger than the broker takes: it has announced that, or hangs up on such ones.

    `why` says so without the broker's address.
    """

    def __init__(self, place: str, size: int, most: int) -> None:
        self.size = size
        self.most = most
        self.why = f"too large for the broker: {size:,} bytes, at most {most:,}"
        super().__init__(f"{place}: {self.why}", 0x95)


class SessionTakenError(BrokerError):
    """Another client connected under the same client id: to connect again would kick it off."""


class TransitionError(FlowerPowerError):
    """Our own code asked for a move that the life of a job does not have: a defect."""


class JobError(FlowerPowerError):
    """A job did not succeed. `job_id` and `outcome` say which and how, `error` why."""

    exit_code = 1

    def __init__(self, job_id: str, outcome: str, error: str, *, kind: str = "") -> None:
        self.job_id = job_id
        self.outcome = outcome
        self.error = error
        self.kind = kind
        super().__init__(f"job {job_id} {outcome}: {error}")


class JobFailedError(JobError):
    """The pipeline of a job raised, or its process died too often; `kind` is the error's class."""


class JobTimeoutError(JobError, TimeoutError):
    """A job took longer than its timeout."""

    exit_code = 124


class JobCancelledError(JobError):
    """A job was cancelled before it had another outcome."""


class JobExpiredError(JobError):
    """A job was not started before it expired."""


class ResultLostError(JobError):
    """A job succeeded on an agent, and its result never arrived: `error` is the reason."""

    exit_code = 74  # EX_IOERR of sysexits.h: nothing brings it any more


class JobNotFinishedError(FlowerPowerError):
    """A job has no outcome yet, or nobody is there to work on it."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: ask again later


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


def headline(text: str) -> str:
    """The first line of a message; where it only announces what follows, with the first of that."""
    first, _, rest = text.strip().partition("\n")
    if not first.rstrip().endswith(":"):
        return first
    return f"{first.rstrip()} {rest.strip().partition(chr(10))[0].strip()}".rstrip()


def describe(error: BaseException) -> str:
    """`ValueError: text`, in one line where the text is one line."""
    try:
        text = str(error)
    except Exception:  # an exception class of the user's, with a mistake in its __str__
        text = ""
    return hidden(f"{type(error).__name__}: {text}") if text else type(error).__name__
