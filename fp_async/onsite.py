"""What a worker of a cluster does with a stage: runs its nodes, and reports how it went.

Nothing raises past `perform`: an error of a node is part of the report, with its traceback, so
that engines retry only what they themselves have lost. What nodes print and log is collected by
thread, and travels back with the report.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fp_async import current, remote
from fp_async.awaitables import awaitable
from fp_async.config import NodePolicy
from fp_async.current import CurrentJob
from fp_async.errors import FlowerPowerError, describe
from fp_async.onsite_threads import Interruptible, Listening, Log, StuckError, awaited, within
from fp_async.parcels import Parcel, SpoiltError
from fp_async.stages import Stage

MOST_CHUNKS = 1000  # tasks of one Parallelizable; of more items, several go together
_STUCK = 124


@dataclass(frozen=True, slots=True)
class Errand:
    """A stage, and how to run it.

    `token` names it for `interrupt`, `chunk` says which items are its own. `alone`: it has its
    process for itself. `ends_stuck`: a node that nothing else ends takes its
    process with it. `packs`: what it gives is packed at once, and not only if it has to travel.
    """

    stage: Stage
    policies: Mapping[str, NodePolicy]
    token: str
    chunk: int = 0
    level: int = logging.WARNING
    alone: bool = False
    ends_stuck: bool = False
    packs: bool = False
    job: CurrentJob | None = None


class NodeReport(NamedTuple):
    """Something that happened to a node: see `NodeEvent`."""

    node: str
    status: str
    seconds: float
    error: str
    at: float


class Broken(NamedTuple):
    """Which node failed, with which inputs (names and types), and how. Without a node: what came
    before any of them.
    """

    node: str
    inputs: dict[str, str]
    failure: remote.Failure


class Report(NamedTuple):
    """How a stage went. `chunks`: into how many parts its items were cut; `stuck`: a node of it
    still runs.
    """

    nodes: list[NodeReport]
    log: list[tuple[str, int, str]]  # (logger's name or stream, level or 0, text)
    chunks: int = 0
    broken: Broken | None = None
    stuck: bool = False
    place: str = ""


def perform(errand: Errand, spec: Parcel, *inputs: Parcel) -> tuple[Any, ...]:
    """Run a stage; the report, then a parcel for each of its outputs (None if it failed).

    `inputs`: the items of a Parallelizable, the stage's sources, then the parts that it gathers,
    as far as it has them.
    """
    log = Log()
    work = _Work(errand)
    outputs: list[Parcel | None] = [None] * len(errand.stage.outputs)
    current.job.set(errand.job)
    with Interruptible(errand.token), Listening(log, errand.level):
        try:
            outputs = work.run(spec, inputs)
        except _FailedError:
            pass
        except BaseException as error:
            work.broke("", {}, error)
    return (Report(work.nodes, log.lines, work.chunks, work.broken, work.stuck), *outputs)


def cut(items: Iterable[Any], most: int = MOST_CHUNKS) -> list[Parcel]:
    """Items in at most so many lists, each of which is opened by itself."""
    all_items = list(items)
    size = -(-len(all_items) // most) or 1
    return [Parcel(all_items[at : at + size]) for at in range(0, len(all_items), size)]


class _FailedError(Exception):
    """A node has failed, and that is written down."""


class _Work:
    """One stage being run."""

    def __init__(self, errand: Errand) -> None:
        self.nodes: list[NodeReport] = []
        self.chunks = 0
        self.broken: Broken | None = None
        self.stuck = False
        self._errand = errand
        self._stage = errand.stage
        self._folder = Path()

    def broke(self, node: str, inputs: dict[str, str], error: BaseException) -> None:
        """The error being handled is the node's."""
        self.broken = Broken(node, inputs, remote.failure(error, self._folder))

    def run(self, spec: Parcel, inputs: Sequence[Parcel]) -> list[Parcel | None]:
        opened: remote.GraphSpec = spec.open()
        self._folder = opened.folder
        if self._errand.alone:
            remote.settle(opened)
        loaded = remote.loaded(opened)
        self._calls = {name: loaded.graph.nodes[name].call for name, _ in self._stage.nodes}
        with loaded.running():
            return self._run(inputs)

    def _run(self, inputs: Sequence[Parcel]) -> list[Parcel | None]:
        stage, given = self._stage, list(inputs)
        items = None
        if stage.item:
            chunk = given.pop(0).open()[self._errand.chunk]
            items = self._opened(stage.item, chunk)
        values = {source: self._opened(source, given.pop(0)) for source in stage.sources}
        if stage.gathers:
            name = stage.gathers[1]
            values[name] = [value for part in given for value in self._opened(name, part)]
        del given, inputs
        if items is not None:
            found = self._for_each(items, values)
            return [*map(self._closed, stage.outputs, found)]
        self._nodes(values)
        value = values[stage.outputs[0]]
        if stage.expands:
            value = cut(value)
            self.chunks = len(value)
        return [self._closed(stage.outputs[0], value)]

    def _opened(self, source: str, parcel: Parcel) -> Any:
        try:
            return parcel.open()
        except SpoiltError as error:
            self.broke(source, {}, error)
            raise _FailedError from error

    def _closed(self, output: str, value: Any) -> Parcel:
        parcel = Parcel(value)
        try:
            return parcel.packed() if self._errand.packs else parcel
        except SpoiltError as error:
            self.broke(output, {}, error)
            raise _FailedError from error

    def _for_each(self, items: Sequence[Any], shared: Mapping[str, Any]) -> list[list[Any]]:
        collected: list[list[Any]] = [[] for _ in self._stage.outputs]
        for item in items:
            values = {**shared, self._stage.item: item}
            self._nodes(values)
            for output, into in zip(self._stage.outputs, collected, strict=True):
                into.append(values[output])
        return collected

    def _nodes(self, values: dict[str, Any]) -> None:
        for name, arguments in self._stage.nodes:
            kwargs = {argument: values[source] for argument, source in arguments}
            values[name] = self._node(name, kwargs)

    def _node(self, name: str, kwargs: dict[str, Any]) -> Any:
        policy = self._errand.policies.get(name) or NodePolicy()
        failures, since = 0, time.perf_counter()
        while True:
            try:
                value = self._attempt(name, kwargs, policy.timeout)
            except BaseException as error:
                failures += 1
                again = isinstance(error, Exception) and policy.retry is not None
                if not again or not policy.retry.wants(error, failures):  # type: ignore[union-attr]
                    self._fail(name, kwargs, since, error)
                self._tell(name, "retrying", since, describe(error))
            else:
                self._tell(name, "succeeded", since)
                return value
            assert policy.retry is not None
            time.sleep(policy.retry.delay(failures, random.random()))

    def _fail(self, name: str, kwargs: dict[str, Any], since: float, error: BaseException) -> None:
        self._tell(name, "failed", since, describe(error))
        self.broke(name, {key: type(value).__name__ for key, value in kwargs.items()}, error)
        self.stuck = isinstance(error, StuckError)
        if self.stuck and self._errand.ends_stuck:
            os._exit(_STUCK)
        raise _FailedError

    def _tell(self, name: str, status: str, since: float, error: str = "") -> None:
        seconds = time.perf_counter() - since
        self.nodes.append(NodeReport(name, status, seconds, error, time.time() - seconds))

    def _attempt(self, name: str, kwargs: dict[str, Any], timeout: float | None) -> Any:
        call = partial(self._calls[name], **kwargs)
        expands = self._stage.expands and name == self._stage.outputs[0]
        work = partial(_called, call, listed=expands)
        return work() if timeout is None else within(work, timeout, self._errand.token)


def _called(call: Callable[[], Any], *, listed: bool) -> Any:
    """A node's value; its items now, if it is a generator: they are part of its work."""
    value = call()
    if awaitable(value):
        value = awaited(value)
    return list(value) if listed else value


def missing_code(error: BaseException) -> FlowerPowerError | None:
    """What to say of a worker that does not have this package."""
    if "No module named 'fp_async" not in str(error):
        return None
    return FlowerPowerError(
        "a worker of the cluster has no fp_async: install the same version there, with the same "
        "Python, as here"
    )
