"""Compiles the part of a DAG that a run needs into arrays. Pure: values in, `Plan` out.

A slot is a place for one value. The slots of what is given (inputs, configuration, overrides)
come first, then one for every node that has to be computed. The arrays say, by slot, what to
call with which slots, who waits for whom, and after how many uses a value may be dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node of the DAG. `parameters` are (name, required) in the function's own order."""

    name: str
    parameters: tuple[tuple[str, bool], ...]
    call: Callable[..., Any] | None  # None: an input
    is_async: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run executes; see the module's docstring."""

    names: tuple[str, ...]
    given: int  # slots below this one are filled before the run starts
    calls: tuple[Callable[..., Any] | None, ...]
    is_async: tuple[bool, ...]
    arguments: tuple[tuple[tuple[str, int], ...], ...]
    dependents: tuple[tuple[int, ...], ...]
    waiting: tuple[int, ...]  # computed nodes that each slot waits for
    uses: tuple[int, ...]  # readers of each slot; a final variable has one more
    roots: tuple[int, ...]  # computed slots that wait for nothing
    finals: tuple[tuple[str, int], ...]
    missing: tuple[str, ...]  # required inputs that nobody gives
    unused: tuple[str, ...]  # given names that no needed node reads


def compile_plan(
    nodes: Mapping[str, NodeSpec], final_vars: Sequence[str], given: Iterable[str]
) -> Plan:
    """Plan the computation of `final_vars` (which must exist or be given) from `given` names."""
    provided = frozenset(given)
    order, missing = _needed(nodes, final_vars, provided)
    computed = [name for name in order if name not in provided]
    read = {name for name in order if name in provided}
    names = (*sorted(read), *computed)
    slot = {name: index for index, name in enumerate(names)}
    arguments = [_arguments(nodes, name, slot, len(read)) for name in names]
    dependents: list[list[int]] = [[] for _ in names]
    uses = [0] * len(names)
    waiting = [0] * len(names)
    for index, inputs in enumerate(arguments):
        for source in dict.fromkeys(source for _, source in inputs):
            uses[source] += 1
            if source >= len(read):
                dependents[source].append(index)
                waiting[index] += 1
    finals = tuple((name, slot[name]) for name in dict.fromkeys(final_vars) if name in slot)
    for _, index in finals:
        uses[index] += 1
    return Plan(
        names=names,
        given=len(read),
        calls=tuple(nodes[name].call if name in nodes else None for name in names),
        is_async=tuple(name in nodes and nodes[name].is_async for name in names),
        arguments=tuple(arguments),
        dependents=tuple(tuple(slots) for slots in dependents),
        waiting=tuple(waiting),
        uses=tuple(uses),
        roots=tuple(i for i in range(len(read), len(names)) if not waiting[i]),
        finals=finals,
        missing=tuple(missing),
        unused=tuple(sorted(provided - read)),
    )


def _needed(
    nodes: Mapping[str, NodeSpec], final_vars: Sequence[str], provided: frozenset[str]
) -> tuple[list[str], list[str]]:
    """Names that the run touches, in the order met walking up, and the inputs nobody gives."""
    missing: dict[str, None] = {}
    seen = dict.fromkeys(final_vars)
    stack = list(reversed(seen))
    while stack:
        name = stack.pop()
        if name in provided:
            continue
        node = nodes[name]
        if node.call is None:
            missing[name] = None
            continue
        for parameter, required in reversed(node.parameters):
            absent = nodes[parameter].call is None and parameter not in provided
            if (required or not absent) and parameter not in seen:
                seen[parameter] = None
                stack.append(parameter)
    return [name for name in seen if name not in missing], list(missing)


def _arguments(
    nodes: Mapping[str, NodeSpec], name: str, slot: Mapping[str, int], given: int
) -> tuple[tuple[str, int], ...]:
    if slot[name] < given:
        return ()
    return tuple((arg, slot[arg]) for arg, _ in nodes[name].parameters if arg in slot)


def find_cycle(nodes: Mapping[str, NodeSpec]) -> list[str]:
    """The names along one cycle, the first repeated at the end, or nothing. Iterative."""
    finished: set[str] = set()
    for start in nodes:
        path: dict[str, Iterable[str]] = {}
        following = start
        while following or path:
            if following and following in path:
                names = list(path)
                return [*names[names.index(following) :], following]
            if following and following not in finished:
                path[following] = iter([name for name, _ in nodes[following].parameters])
            last = next(reversed(path), None)
            if last is None:
                break
            following = next(iter(path[last]), "")
            if not following:
                finished.add(last)
                del path[last]
    return []
