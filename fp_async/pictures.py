"""Pictures of a DAG: a tree for the terminal, mermaid and dot as text, svg and png as bytes."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fp_async.errors import FlowerPowerError, MissingExtraError, UnknownNameError

if TYPE_CHECKING:
    from fp_async.dag import Graph
    from fp_async.flow import Flow

IMAGES = ("svg", "png")
_LONGEST = 60  # characters of a default
_DEEPEST = 20  # levels that the tree indents; below, a mark says that it goes on deeper


def draw(flow: Flow, format: str) -> str | bytes:
    """The DAG of `flow` as `format`: text for tree, mermaid and dot, bytes for svg and png.

    Raises UnknownNameError for another format, MissingExtraError where nothing can draw.
    """
    if format in IMAGES:
        return _render(dot(flow.graph), format)
    if format not in TEXTS:
        raise UnknownNameError("format", format, (*TEXTS, *IMAGES))
    return TEXTS[format](flow.graph)


def tree(graph: Graph) -> str:
    """Each result with what it is computed from below it; a repeated node is not unfolded.

    Below level 20 the indentation stays, and a line begins with its level.
    """
    lines: list[str] = []
    seen: set[str] = set()
    stack = [(name, "", "", 0) for name in reversed(graph.leaves)]
    while stack:
        name, lead, indent, level = stack.pop()
        parents = [parameter for parameter, _ in graph.nodes[name].parameters]
        again = name in seen and bool(parents)
        lines.append(f"{lead}{_describe(graph, name)}{' (see above)' if again else ''}")
        if again:
            continue
        seen.add(name)
        for position, parent in enumerate(reversed(parents)):
            if level >= _DEEPEST:
                stack.append((parent, f"{indent}… {level + 1}: ", indent, level + 1))
                continue
            branch, below = ("└── ", "    ") if position == 0 else ("├── ", "│   ")
            stack.append((parent, indent + branch, indent + below, level + 1))
    return "\n".join(lines)


def _describe(graph: Graph, name: str) -> str:
    spec = graph.nodes[name]
    text = f"{name}: {graph.type_name(name)}"
    if spec.call is None:
        return f"{text}{_default(graph, name)} [{'config' if name in graph.config else 'input'}]"
    doc = graph.doc(name)
    return f"{'async ' if spec.is_async else ''}{text}{f'  # {doc}' if doc else ''}"


def _default(graph: Graph, name: str) -> str:
    """An input's default, as it is written in a function; empty where it has to be given."""
    needed = {of for spec in graph.nodes.values() for of in spec.parameters}
    if name in graph.config or (name, False) not in needed or (name, True) in needed:
        return ""
    text = " ".join(repr(graph.default(name)).split())
    return f" = {text if len(text) <= _LONGEST else f'{text[:_LONGEST]}…'}"


def mermaid(graph: Graph) -> str:
    """A mermaid flowchart, as Markdown renderers show it."""
    lines = ["flowchart TD"]
    for name in graph.nodes:
        label = f"{name}<br/><i>{_escape(graph.type_name(name))}</i>"
        opening, closing = ("([", "])") if graph.nodes[name].call is None else ("[", "]")
        lines.append(f'    {_id(name)}{opening}"{label}"{closing}')
    lines += [f"    {_id(source)} --> {_id(target)}" for source, target in _edges(graph)]
    return "\n".join(lines)


def dot(graph: Graph) -> str:
    """Graphviz's language."""
    lines = ["digraph {", '    node [shape=box, style="rounded", fontname="Helvetica"];']
    for name in graph.nodes:
        kind = _escape(graph.type_name(name))
        dashed = ', style="rounded,dashed"' if graph.nodes[name].call is None else ""
        lines.append(f'    "{name}" [label=<<b>{_escape(name)}</b><br/><i>{kind}</i>>{dashed}];')
    lines += [f'    "{source}" -> "{target}";' for source, target in _edges(graph)]
    return "\n".join([*lines, "}"])


TEXTS: dict[str, Callable[[Graph], str]] = {"tree": tree, "mermaid": mermaid, "dot": dot}


def _edges(graph: Graph) -> Iterator[tuple[str, str]]:
    for name, spec in graph.nodes.items():
        yield from ((parameter, name) for parameter, _ in spec.parameters)


def _id(name: str) -> str:
    return f"n_{name.replace('.', '__')}"  # `end` and the like are words of mermaid


def _escape(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace('"', "&quot;")


def _render(source: str, format: str) -> bytes:
    program = _program()
    done = subprocess.run(
        [program, f"-T{format}"], input=source.encode(), capture_output=True, check=False
    )
    if done.returncode != 0:
        raise FlowerPowerError(f"{program} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _program() -> str:
    """`graphviz-pure` of this environment, or a `dot` on the path."""
    own = Path(sysconfig.get_path("scripts")) / "graphviz-pure"
    found = str(own) if own.exists() else shutil.which("graphviz-pure") or shutil.which("dot")
    if not found:
        raise MissingExtraError("drawing svg and png (or Graphviz's `dot`)", "viz")
    return found
