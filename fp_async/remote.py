"""What two processes of ours need to run each other's nodes: the DAG there, and errors back here.

The child processes of `executor: processpool` and the workers of a cluster build the same DAG as
the process that asks, from a `GraphSpec`. Both ends are the same code, started or chosen by the
user: nothing from outside is ever unpickled.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fp_async import copies, frames
from fp_async.awaitables import awaitable
from fp_async.copies import Current
from fp_async.errors import FlowerPowerError, describe

_KEPT = 16
_lock = threading.RLock()
_settled: set[Path] = set()
_graphs: OrderedDict[GraphSpec, Loaded] = OrderedDict()


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """All that another process needs to build the same DAG. `params` and `config` are pickled.

    `sources` are the files of `folder` by relative path, for where the folder is not there;
    `path` is where modules are looked for, as far as that exists there.
    """

    folder: Path
    flow: str
    environment: str
    modules: tuple[str, ...]
    params: bytes
    config: bytes
    materializers: bytes
    allow_overrides: bool
    code: str = ""  # what changes when a file does
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
        data = copies.dumps(error)
        pickle.loads(data)  # noqa: S301
    except Exception:
        return pickle.dumps(RuntimeError(describe(error)))
    return data


class EditedError(FlowerPowerError):
    """The code that this process has loaded is not what it is asked to run."""


class Loaded(NamedTuple):
    """A DAG and the modules that it is made of."""

    namespace: Any
    graph: Any
    environment: str

    @contextmanager
    def running(self) -> Iterator[None]:
        """In this block, what is imported and unpickled is of these modules."""
        token = copies.current.set(Current(self.namespace, self.environment))
        self.namespace.runs.begin(self.environment)
        try:
            yield
        finally:
            self.namespace.runs.end(self.environment)
            copies.current.reset(token)


def settle(spec: GraphSpec) -> None:
    """Make this process one for the project alone: in its folder, with the plain names."""
    from fp_async import modules

    with suppress(OSError):  # of another machine
        os.chdir(spec.folder.parent)
    if spec.folder not in _settled:
        _settled.add(spec.folder)
        modules.claim(spec.folder, one_at_a_time=True)


def loaded(spec: GraphSpec) -> Loaded:
    """The DAG of a spec, built once in this process; the latest 16 are kept.

    Raises EditedError where files were edited after this process had loaded them: code that
    registers something would do so twice.
    """
    with _lock:
        known = _graphs.pop(spec, None)
        if known is not None and spec.sources is not None and known.namespace.changed():
            known.namespace.release()  # another driver has sent other code since
            known = None
        _graphs[spec] = known or _built(spec)
        if len(_graphs) > _KEPT:
            _graphs.popitem(last=False)[1].namespace.release()
        return _graphs[spec]


def _built(spec: GraphSpec) -> Loaded:
    from fp_async import dag, modules

    sys.path += [p for p in spec.path if p not in sys.path and Path(p).is_dir()]
    sources: Mapping[str, bytes] | None = None if spec.sources is None else dict(spec.sources)
    library = modules.library(spec.folder, sources)
    if sources is None and library.changed():
        raise EditedError(f"files in {spec.folder} were edited")
    values = pickle.loads(spec.params)  # noqa: S301
    namespace = library.namespace(spec.flow, values, spec.modules)
    root = None if sources is None else spec.folder.parent  # clusters work anywhere
    found = dag.load_modules(namespace, spec.modules, root)
    token = copies.current.set(Current(namespace, spec.environment))
    try:
        config = pickle.loads(spec.config)  # noqa: S301
        materializers = pickle.loads(spec.materializers)  # noqa: S301
    finally:
        copies.current.reset(token)
    graph = dag.Graph(
        spec.flow,
        found,
        config,
        materializers=materializers,
        allow_overrides=spec.allow_overrides,
        root=root,
        checked=True,
    )
    return Loaded(namespace, graph, spec.environment)


# Nodes that adapters of the user's carry about ----------------------------------------------------


class FailedNode(NamedTuple):
    """The node that an error comes from, with its inputs (names and types), and the user's line
    in its traceback where that is in another process.
    """

    node: str
    inputs: dict[str, str]
    error: BaseException
    line: str = ""


class Errand:
    """A node of a graph in another process than the run's, with the hooks around it."""

    def __init__(self, spec: GraphSpec, name: str, hooks: Sequence[Any], run_id: str) -> None:
        self._packed = (spec, name, hooks, run_id)
        self._hooks = hooks
        self._loaded = loaded(spec)  # now: what else comes along may be of its modules
        self._told = {"run_id": run_id, "node_": self._loaded.graph.hamilton[name], "task_id": None}
        self._call = self._loaded.graph.nodes[name].call
        self._name = name

    def __reduce__(self) -> Any:
        return Errand, self._packed

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the node and its hooks here."""
        with self._loaded.running(), marking(self._name, kwargs, self._packed[0].folder):
            return self._around(kwargs) if self._hooks else self._awaited(*args, **kwargs)

    def _around(self, kwargs: dict[str, Any]) -> Any:
        told = {**self._told, "kwargs": kwargs}
        self._hear("pre_node_execute", told)
        result, error = None, None
        try:
            result = self._executed(told)
        except Exception as raised:
            error = raised
            raise
        finally:
            outcome = {"success": error is None, "error": error, "result": result}
            self._hear("post_node_execute", {**told, **outcome})
        return result

    def _hear(self, hook: str, told: dict[str, Any]) -> None:
        for adapter in self._hooks:
            if hasattr(adapter, hook):
                getattr(adapter, hook)(**told)

    def _executed(self, told: dict[str, Any]) -> Any:
        for adapter in self._hooks:
            if hasattr(adapter, "do_node_execute"):
                return adapter.do_node_execute(**told)
        return self._awaited(**told["kwargs"])

    def _awaited(self, *args: Any, **kwargs: Any) -> Any:
        value = self._call(*args, **kwargs)
        return asyncio.run(_await(value)) if awaitable(value) else value


async def _await(value: Any) -> Any:
    return await value


def called_elsewhere(errand: Callable[..., Any], /, **kwargs: Any) -> Any:
    """Call a node for an adapter, wherever that likes; of this module, so that pickle finds it."""
    return errand(**kwargs)


_MARK = "__fp_node__"


@contextmanager
def marking(node: str, kwargs: Mapping[str, Any], folder: Path | None = None) -> Iterator[None]:
    """In this block, errors are those of a node, and say so wherever they come out; with the line
    in `folder`, in case that is another process.
    """
    try:
        yield
    except Exception as error:
        inputs = {name: type(value).__name__ for name, value in kwargs.items()}
        line = "" if folder is None else frames.user_line(error, folder)
        if not hasattr(error, _MARK):
            with suppress(AttributeError, TypeError):
                setattr(error, _MARK, (node, inputs, line))
        raise


def failed_node(error: BaseException | None) -> FailedNode | None:
    """The node that is marked in an error or, rather, in its causes: what another process raised
    comes wrapped.
    """
    found: FailedNode | None = None
    seen: set[int] = set()
    while isinstance(error, BaseException) and id(error) not in seen:
        seen.add(id(error))
        if hasattr(error, _MARK):
            node, inputs, line = getattr(error, _MARK)
            found = FailedNode(node, inputs, error, line)
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__  # Ray: cause
    return found
