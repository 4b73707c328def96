"""A loaded pipeline as the template that the Hamilton UI shows: its DAG, and its code."""

from __future__ import annotations

import hashlib
import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fp_async import copies, summaries
from fp_async.attempt import Drawn, Template
from fp_async.tracking import node_template

if TYPE_CHECKING:
    from fp_async.dag import Graph
    from fp_async.flow import Flow, Request

_LARGEST = 2**20  # characters of code that are shown
_INPUTS = 100
_made: weakref.WeakKeyDictionary[Flow, Template] = weakref.WeakKeyDictionary()


def template(flow: Flow) -> Template:
    """The template of a pipeline, made once for each time that it is loaded."""
    if flow not in _made:
        _made[flow] = _template(flow)
    return _made[flow]


def drawn(flow: Flow, request: Request) -> Drawn:
    """What a run is going to do. Raises as `Flow.plan` does."""
    plan = flow.plan(request)
    values = {**flow.configured, **request.inputs, **request.overrides}
    inputs = {name: summaries.brief(value) for name, value in list(values.items())[:_INPUTS]}
    outputs = [name for name, _ in plan.finals]
    return Drawn(template(flow), list(plan.names[plan.given :]), inputs, outputs)


def _template(flow: Flow) -> Template:
    graph, root = flow.graph, flow.folder.parent
    artifacts = _Artifacts(root)
    nodes = [_node(graph, name, artifacts) for name in graph.nodes]
    files = _files(root, flow.namespace.files)
    config = {name: summaries.brief(value) for name, value in graph.config.items()}
    body = {
        "nodes": nodes,
        "code_artifacts": list(artifacts.found.values()),
        "code_log": {"files": files},
        "config": config,
    }
    shape = [(n["name"], n["output"], n["dependencies"]) for n in nodes]
    return Template(
        dag_hash=_digest((shape, config)),
        code_hash=_digest(files),
        nodes={node["name"]: node["dependencies"] for node in nodes},
        body=msgspec.json.encode(body),
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


def _node(graph: Graph, name: str, artifacts: _Artifacts) -> dict[str, Any]:
    known = graph.hamilton[name]
    sources = [source for source, _ in graph.nodes[name].parameters if source in graph.nodes]
    return node_template(
        name,
        [(source, graph.type_name(source)) for source in sources],
        graph.type_name(name),
        (known.documentation or "").strip(),
        tags={str(key): summaries.brief(value) for key, value in known.tags.items()},
        kind=_kind(graph, name, known.tags),
        code=[artifacts.named(function) for function in known.originating_functions or ()],
    )


def _kind(graph: Graph, name: str, tags: Mapping[str, Any]) -> str:
    if graph.nodes[name].call is None:
        return "input"
    if tags.get("hamilton.data_loader") and tags.get("hamilton.data_loader.has_metadata", True):
        return "data_loader"
    return "data_saver" if tags.get("hamilton.data_saver") else "transform"


class _Artifacts:
    """The functions that nodes come from, by name, each with its lines."""

    def __init__(self, root: Path) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self._root = root

    def named(self, function: Callable[..., Any]) -> str:
        """The name of a function, which is noted."""
        module = copies.plainly(function.__module__ or "")
        own = inspect.unwrap(function)
        name = f"{module}.{getattr(own, '__name__', 'unnamed')}"
        if name not in self.found:
            self.found[name] = self._artifact(name, own)
        return name

    def _artifact(self, name: str, function: Callable[..., Any]) -> dict[str, Any]:
        try:
            path = _relative(self._root, Path(inspect.getsourcefile(function) or ""))
            lines, start = inspect.getsourcelines(function)
        except (OSError, TypeError):  # made by a decorator, or its file is gone
            path, lines, start = "", [], 1
        return {
            "name": name,
            "type": "p_function",
            "path": path,
            "start": start - 1,
            "end": start - 1 + len(lines),
            "url": "Error: No repository to link to.",
        }


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _files(root: Path, paths: Iterable[Path]) -> list[dict[str, str]]:
    found, left = [], _LARGEST
    for path in sorted(paths):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:  # it was removed since
            continue
        left -= len(text)
        if left >= 0:
            found.append({"path": _relative(root, path), "contents": text})
    return found
