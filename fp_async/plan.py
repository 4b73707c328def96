"""Compiles the part of a DAG that a run needs into arrays. Pure: values in, `Plan` out.

A slot is a place for one value. The slots of what is given (inputs, configuration, overrides)
come first, then one for every node that has to be computed. The arrays say, by slot, what to
call with which slots, who waits for whom, and after how many uses a value may be dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Slots = tuple[int, ...]
Effects = tuple[Slots, Slots, Slots, Slots]


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
    is_sync: tuple[bool, ...]
    all_sync: bool
    arguments: tuple[tuple[tuple[str, int], ...], ...]
    order: tuple[int, ...]  # the computed slots, each after all that it reads
    last_uses: tuple[tuple[int, ...], ...]  # in that order, the slots nobody reads afterwards
    # When the order is not known beforehand. Most slots have one reader and wait for one other,
    # and need no counting.
    # Of every slot: what it alone reads, what it reads beside others, which slots wait for it
    # alone, and which wait for others too.
    effects: tuple[Effects, ...]
    waiting: tuple[tuple[int, int], ...]  # (slot, for how many it waits) of every join
    uses: tuple[tuple[int, int], ...]  # (slot, how many read it); one more for a final variable
    roots: tuple[int, ...]  # computed slots that wait for nothing
    sinks: int  # how many slots nobody waits for: the run ends when these have
    finals: tuple[tuple[str, int], ...]
    missing: tuple[str, ...]  # required inputs that nobody gives
    unused: tuple[str, ...]  # given names that no needed node reads


def compile_plan(
    nodes: Mapping[str, NodeSpec], final_vars: Sequence[str], given: Iterable[str]
) -> Plan:
    """Plan the computation of `final_vars` (which must exist or be given) from `given` names."""
    provided = frozenset(given)
    needed, missing = _needed(nodes, final_vars, provided)
    computed = [name for name in needed if name not in provided]
    read = sorted(name for name in needed if name in provided)
    names = (*read, *computed)
    slot = {name: index for index, name in enumerate(names)}
    first = len(read)
    arguments = tuple(_arguments(nodes, name, slot, first) for name in names)
    sources = [tuple(dict.fromkeys(source for _, source in inputs)) for inputs in arguments]
    dependents: list[list[int]] = [[] for _ in names]
    for index, slots in enumerate(sources):
        for source in slots:
            dependents[source].append(index)
    waiting = [sum(source >= first for source in slots) for slots in sources]
    finals = tuple((name, slot[name]) for name in dict.fromkeys(final_vars) if name in slot)
    kept = {index for _, index in finals}
    uses = [len(readers) + (index in kept) for index, readers in enumerate(dependents)]
    order = _topological(dependents, waiting, first)
    is_async = tuple(name in nodes and nodes[name].is_async for name in names)
    return Plan(
        names=names,
        given=first,
        calls=tuple(nodes[name].call if name in nodes else None for name in names),
        is_async=is_async,
        is_sync=tuple(not flag for flag in is_async),
        all_sync=not any(is_async),
        arguments=arguments,
        order=order,
        last_uses=_last_uses(sources, order, kept),
        effects=tuple(
            _effects(sources[index], slots if index >= first else (), uses, waiting)
            for index, slots in enumerate(dependents)
        ),
        waiting=tuple((index, number) for index, number in enumerate(waiting) if number > 1),
        uses=tuple((index, number) for index, number in enumerate(uses) if number > 1),
        roots=tuple(index for index in order if not waiting[index]),
        sinks=sum(not dependents[index] for index in order),
        finals=finals,
        missing=tuple(missing),
        unused=tuple(sorted(provided - set(read))),
    )


def _effects(
    sources: Sequence[int], dependents: Sequence[int], uses: Sequence[int], waiting: Sequence[int]
) -> Effects:
    return (
        tuple(source for source in sources if uses[source] == 1),
        tuple(source for source in sources if uses[source] > 1),
        tuple(dependent for dependent in dependents if waiting[dependent] == 1),
        tuple(dependent for dependent in dependents if waiting[dependent] > 1),
    )


def _topological(
    dependents: Sequence[Sequence[int]], waiting: Sequence[int], first: int
) -> tuple[int, ...]:
    left = list(waiting)
    order = [index for index in range(first, len(left)) if not left[index]]
    for index in order:  # grows while it is read
        for dependent in dependents[index]:
            left[dependent] -= 1
            if not left[dependent]:
                order.append(dependent)
    return tuple(order)


def _last_uses(
    sources: Sequence[Sequence[int]], order: Sequence[int], kept: Collection[int]
) -> tuple[tuple[int, ...], ...]:
    seen = set(kept)
    result: list[tuple[int, ...]] = [()] * len(sources)
    for index in reversed(order):
        result[index] = tuple(source for source in sources[index] if source not in seen)
        seen.update(sources[index])
    return tuple(result)


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
