"""Divides a plan into stages: what goes to a cluster as one task. Pure: a `Plan` in, `Stage`s out.

A chain of nodes, each the only reader of the one before, is one stage: nothing could run beside
it. The nodes between a `Parallelizable` and its `Collect` are one stage that runs for each item.
Coroutine functions stay on the caller's event loop, outside of those blocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fp_async.errors import GraphError
from fp_async.plan import Plan

Arguments = tuple[tuple[str, str], ...]  # (argument, whose value it gets)
EXPAND, COLLECT = "expand", "collect"


@dataclass(frozen=True, slots=True)
class Stage:
    """Nodes that run one after the other in one place.

    `sources` are the names outside of it whose values it needs, `outputs` those whose values
    leave it. `item` names the `Parallelizable` for each of whose items it runs; `gathers` is
    (stage, output) of what a `Collect` in it collects; `expands` says that its output is cut into
    items; `local` that it is a coroutine function for the caller's loop.
    """

    name: str
    nodes: tuple[tuple[str, Arguments], ...]
    sources: tuple[str, ...]
    outputs: tuple[str, ...]
    item: str = ""
    gathers: tuple[str, str] | None = None
    expands: bool = False
    local: bool = False


@dataclass(slots=True)
class _Chain:
    """A stage that may still grow."""

    nodes: list[str]
    sources: dict[str, None]
    gathers: tuple[str, str] | None = None


@dataclass(slots=True)
class _Division:
    plan: Plan
    roles: Mapping[str, str]
    alone: Collection[str]
    arguments: dict[str, Arguments] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    item: dict[str, str] = field(default_factory=dict)  # of the nodes in blocks


def check_blocks(
    reads: Mapping[str, Collection[str]],
    collected: Mapping[str, Collection[str]],
    expands: Collection[str],
) -> None:
    """Raise GraphError for shapes of `Parallelizable` and `Collect` that no executor has.

    `reads` says in the order of the DAG what each computed node reads, `collected` which of it by
    `Collect`; `expands` are the nodes that give a `Parallelizable`.
    """
    item: dict[str, str] = {}
    for name, sources in reads.items():
        blocks = {source: item[source] for source in sources if source in item}
        gathers = collected.get(name, ())
        if gathers and name in expands:
            raise GraphError(
                f"node '{name}' collects one block and begins another; have a function collect, "
                "and another one begin"
            )
        if gathers:
            _check_collecting(name, blocks, gathers)
        elif len(set(blocks.values())) > 1 or (blocks and name in expands):
            inside = ", ".join(sorted(set(blocks.values())))
            raise GraphError(
                f"node '{name}' lies in the block of a Parallelizable ({inside}) and reads or "
                "begins another: they cannot be within each other; collect the one first, or make "
                "one Parallelizable of both"
            )
        if name in expands:
            item[name] = name
        elif blocks and not gathers:
            item[name] = next(iter(blocks.values()))


def _check_collecting(name: str, blocks: Mapping[str, str], gathers: Collection[str]) -> None:
    if len(blocks) > 1:
        raise GraphError(
            f"node '{name}' collects {', '.join(blocks)}: a node has one Collect, and what else it "
            "reads lies outside of the block; have a function return both for each item"
        )
    if blocks and not blocks.keys() & set(gathers):
        raise GraphError(
            f"node '{name}' reads '{next(iter(blocks))}', which has a value for each item, and "
            f"collects {', '.join(gathers)}, which has not"
        )


def each(expander: str) -> str:
    """The name of the stage that runs for each item of a `Parallelizable`."""
    return f"{expander}@each"


def divide(plan: Plan, roles: Mapping[str, str], alone: Collection[str] = ()) -> list[Stage]:
    """The stages of a plan. `roles` says of nodes that they expand or collect; those in `alone`
    are stages of their own.
    """
    division = _Division(plan, roles, alone)
    for slot in plan.order:
        name = plan.names[slot]
        arguments = tuple((argument, plan.names[at]) for argument, at in plan.arguments[slot])
        division.arguments[name] = arguments
        for _, source in arguments:
            division.readers[source].add(name)
        _find_item(division, name)
    for name, _ in plan.finals:
        division.readers[name].add("")
    return [*_blocks(division), *_chains(division)]


def _find_item(division: _Division, name: str) -> None:
    """Note the block that a node belongs to. That it may lie there `check_blocks` has found."""
    sources = [source for _, source in division.arguments[name]]
    found = [item for source in sources if (item := _item_of(division, source))]
    if found and division.roles.get(name) != COLLECT:
        division.item[name] = found[0]


def _item_of(division: _Division, source: str) -> str:
    return source if division.roles.get(source) == EXPAND else division.item.get(source, "")


def _blocks(division: _Division) -> list[Stage]:
    members: dict[str, list[str]] = {}
    outputs: dict[str, dict[str, None]] = {}
    for name in division.arguments:
        if name in division.item:
            members.setdefault(division.item[name], []).append(name)
        elif division.roles.get(name) == COLLECT:
            for source in _collected(division, name):
                outputs.setdefault(_item_of(division, source), {})[source] = None
    return [
        _stage(division, each(expander), members.get(expander, []), tuple(collected), expander)
        for expander, collected in outputs.items()
    ]


def _collected(division: _Division, name: str) -> list[str]:
    return [source for _, source in division.arguments[name] if _item_of(division, source)]


def _stage(
    division: _Division, name: str, nodes: list[str], outputs: tuple[str, ...], item: str
) -> Stage:
    inside = {*nodes, item}
    named = [(node, division.arguments[node]) for node in nodes]
    sources = [source for _, arguments in named for _, source in arguments if source not in inside]
    return Stage(name, tuple(named), tuple(dict.fromkeys(sources)), outputs, item)


def _chains(division: _Division) -> list[Stage]:
    plan = division.plan
    is_async = {plan.names[slot]: plan.is_async[slot] for slot in plan.order}
    finished: list[_Chain] = []
    growing: dict[str, _Chain] = {}  # by their last node
    for name in division.arguments:
        if name in division.item:
            continue
        local = is_async[name] and name not in division.roles
        chain = None if local else _predecessor(division, growing, name)
        if chain is None:
            chain = _Chain([], {})
            finished.append(chain)
        else:
            del growing[chain.nodes[-1]]
        _append(division, chain, name)
        if not local and name not in division.alone and division.roles.get(name) != EXPAND:
            growing[name] = chain
    return [_finished(division, chain, is_async) for chain in finished]


def _predecessor(division: _Division, growing: Mapping[str, _Chain], name: str) -> _Chain | None:
    """The chain that a node only continues: it waits for nothing else, nobody else waits."""
    if name in division.alone or division.roles.get(name) == COLLECT:
        return None
    computed = {s for _, s in division.arguments[name] if s in division.arguments}
    for source in computed & growing.keys():
        chain = growing[source]
        waits_for_more = computed - {source} - chain.sources.keys()
        if division.readers[source] == {name} and not waits_for_more:
            return chain
    return None


def _append(division: _Division, chain: _Chain, name: str) -> None:
    collected = _collected(division, name) if division.roles.get(name) == COLLECT else []
    for source in collected:
        chain.gathers = (each(_item_of(division, source)), source)
    for _, source in division.arguments[name]:
        if source not in chain.nodes and source not in collected:
            chain.sources[source] = None
    chain.nodes.append(name)


def _finished(division: _Division, chain: _Chain, is_async: Mapping[str, bool]) -> Stage:
    last = chain.nodes[-1]
    return Stage(
        name=last,
        nodes=tuple((name, division.arguments[name]) for name in chain.nodes),
        sources=tuple(chain.sources),
        outputs=(last,),
        gathers=chain.gathers,
        expands=division.roles.get(last) == EXPAND,
        local=is_async[last] and last not in division.roles,
    )
