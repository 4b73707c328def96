"""What two processes of ours need to run each other's nodes: the DAG there, and errors back here.

The child processes of `executor: processpool` and the workers of a cluster build the same DAG as
the process that asks, from a `GraphSpec`. Both ends are the same code, started or chosen by the
user: nothing from outside is ever unpickled.
"""

from __future__ import annotations

import pickle
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fp_async import frames
from fp_async.errors import FlowerPowerError, describe

_KEPT = 16
_lock = threading.RLock()
_graphs: OrderedDict[GraphSpec, tuple[Any, Any]] = OrderedDict()


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """All that another process needs to build the same DAG. `params` and `config` are pickled.

    `sources` are the files of `folder` by relative path, for where the folder is not there;
    `path` is where modules are looked for, as far as that exists there.
    """

    folder: Path
    flow: str
    package: str
    modules: tuple[str, ...]
    params: bytes
    config: bytes
    materializers: bytes
    allow_overrides: bool
    libraries: tuple[str, ...]  # whose Hamilton extensions the modules need
    sources: tuple[tuple[str, bytes], ...] | None = None
    path: tuple[str, ...] = ()


class Failure(NamedTuple):
    """An error that was raised elsewhere: pickled, its traceback as text, the user's line in it."""

    pickled: bytes
    text: str
    line: str


class ProcessDiedError(FlowerPowerError):
    """The process that ran a node ended without an answer; says how."""


class RemoteTracebackError(Exception):
    """The text of a traceback that was raised elsewhere, and the user's line in it."""

    def __init__(self, text: str, line: str, where: str) -> None:
        super().__init__(f"in {where}:\n{text}")
        self.line = line


def failure(error: BaseException, folder: Path) -> Failure:
    """The error being handled, so that it can be told to another process."""
    line = frames.user_line(error, folder)
    return Failure(_portable(frames.trim(error)), traceback.format_exc(), line)


def raised(failure: Failure, where: str) -> BaseException:
    """The error of a failure, for raising it here; its cause is the traceback from `where`."""
    error: BaseException = pickle.loads(failure.pickled)  # noqa: S301 - our own, see the module
    error.__cause__ = RemoteTracebackError(failure.text, failure.line, where)
    return error


def _portable(error: BaseException) -> bytes:
    """The exception pickled, or one with the same text where it does not survive that."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)  # noqa: S301
    except Exception:
        return pickle.dumps(RuntimeError(describe(error)))
    return data


def graph(spec: GraphSpec) -> Any:
    """The DAG of a spec, built once in this process; the latest 16 are kept."""
    with _lock:
        if spec in _graphs:
            _graphs.move_to_end(spec)
            return _graphs[spec][1]
        _forget_older(spec)
        _graphs[spec] = _built(spec)
        if len(_graphs) > _KEPT:
            _graphs.popitem(last=False)[1][0].unload()
        return _graphs[spec][1]


def _forget_older(spec: GraphSpec) -> None:
    """Unload other versions of an edited pipeline: their modules have the same names."""
    others = [other for other in _graphs if other.package == spec.package]
    for other in others:
        if other.sources != spec.sources:
            _graphs.pop(other)[0].unload()


def _built(spec: GraphSpec) -> tuple[Any, Any]:
    from fp_async import dag, modules, params

    sys.path += [p for p in spec.path if p not in sys.path and Path(p).is_dir()]
    dag.load_extensions(spec.libraries)
    values = params.Params(spec.flow, pickle.loads(spec.params))  # noqa: S301
    sources: Mapping[str, bytes] | None = None if spec.sources is None else dict(spec.sources)
    namespace = modules.Namespace(
        spec.folder, spec.flow, values, package=spec.package, sources=sources
    )
    loaded = dag.load_modules(namespace, spec.modules)
    config = pickle.loads(spec.config)  # noqa: S301
    materializers = pickle.loads(spec.materializers)  # noqa: S301
    return namespace, dag.Graph(
        spec.flow,
        loaded,
        config,
        materializers=materializers,
        allow_overrides=spec.allow_overrides,
    )
