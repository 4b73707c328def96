"""Runs the nodes between a `Parallelizable` and its `Collect`, once for each item.

The plan is compiled once more: the nodes of a block are a plan of their own, of which the plan
around it knows one node, `NAME@each`. That runs the block's plan for each item, several at a time,
by the same execution as all other nodes: in threads, in child processes or inline, with hooks,
retries, timeouts and the cache. `NAME@items` is the list of what a node in the block gave.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from fp_async import current
from fp_async.awaitables import awaitable
from fp_async.errors import NodeError
from fp_async.execution import Execution
from fp_async.nodes import Setup
from fp_async.plan import NodeSpec, Plan, compile_plan
from fp_async.stages import EXPAND, Arguments, Stage, divide

if TYPE_CHECKING:
    from fp_async.cache import RunCache

Fail = Callable[..., Exception]  # of (node, arguments, error), and the item's number with `item`
_EACH, _ITEMS = "@each", "@items"


@dataclass(frozen=True, slots=True)
class Block:
    """The nodes that run for each item of the node `item`, as a plan; `outputs` are collected."""

    name: str
    item: str
    plan: Plan | None  # None: the items themselves are collected
    outputs: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Blocks:
    """A plan with blocks, divided: what does not differ between its runs."""

    blocks: tuple[Block, ...]
    specs: tuple[NodeSpec, ...]  # of the plan around the blocks
    finals: tuple[str, ...]


def blocks(plan: Plan, roles: Mapping[str, str]) -> Blocks:
    """Divide a plan. `roles` says of nodes that they expand or collect."""
    stages = divide(plan, roles, alone=plan.names)
    slots = {name: slot for slot, name in enumerate(plan.names)}

    def spec(name: str, arguments: Arguments, gathered: str = "") -> NodeSpec:
        slot = slots[name]
        call = plan.calls[slot]
        assert call is not None
        if roles.get(name) == EXPAND:
            call = partial(_listed, call)
        names = [source + _ITEMS if source == gathered else source for _, source in arguments]
        return NodeSpec(name, _required(names), call, plan.is_async[slot])

    found = tuple(_block(stage, spec) for stage in stages if stage.item)
    specs = [NodeSpec(name, (), None) for name in plan.names[: plan.given]]
    specs += [
        spec(*stage.nodes[0], gathered=stage.gathers[1] if stage.gathers else "")
        for stage in stages
        if not stage.item
    ]
    return Blocks(found, tuple(specs), tuple(name for name, _ in plan.finals))


def _block(stage: Stage, spec: Callable[[str, Arguments], NodeSpec]) -> Block:
    outputs = [name for name in stage.outputs if name != stage.item]
    plan = None
    if outputs:
        given = (stage.item, *stage.sources)
        nodes = {name: NodeSpec(name, (), None) for name in given}
        nodes |= {name: spec(name, arguments) for name, arguments in stage.nodes}
        plan = compile_plan(nodes, outputs, given)
    return Block(stage.name, stage.item, plan, stage.outputs, stage.sources)


class FanOut:
    """One run of a plan with blocks; at most `width` items of a block run at once."""

    def __init__(
        self, divided: Blocks, setup: Setup, fail: Fail, width: int, cache: RunCache | None
    ) -> None:
        self._divided = divided
        self._inner = setup
        self._fail = fail
        self._width = width
        self._cache = cache
        self._parts: set[Execution] = set()
        plan = self._outer_plan()
        plainly = frozenset(name for name in plan.names if name.endswith((_EACH, _ITEMS)))
        outer = msgspec.structs.replace(setup, plainly=plainly)
        self._plan, self._outer = self._cached(cache, plan, outer)

    async def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Run to the end. As `Execution.run`, and the same for what runs for the items."""
        current.item.set("")
        given = {name: values[name] for name in self._plan.names[: self._plan.given]}
        self._whole = Execution(self._plan, given, self._outer, self._failed)
        return await self._whole.run()

    @property
    def running(self) -> tuple[str, ...]:
        """Names of the nodes that are running now."""
        names = {name for part in (self._whole, *self._parts) for name in part.running}
        return tuple(sorted(name for name in names if "@" not in name))

    def _outer_plan(self) -> Plan:
        specs = {spec.name: spec for spec in self._divided.specs}
        given = [name for name, spec in specs.items() if spec.call is None]
        for block in self._divided.blocks:
            needs = _required([block.item, *block.sources])
            specs[block.name] = NodeSpec(block.name, needs, partial(self._each, block), True)
            for output in block.outputs:
                name, pick = output + _ITEMS, partial(_pick, output)
                specs[name] = NodeSpec(name, _required([block.name]), pick, is_async=True)
        return _named_as_written(compile_plan(specs, self._divided.finals, given))

    def _cached(self, cache: RunCache | None, plan: Plan, setup: Setup) -> tuple[Plan, Setup]:
        if cache is None:
            return plan, setup
        remote = setup.remote and cache.elsewhere(plan, setup.remote)
        return cache.plan(plan), msgspec.structs.replace(setup, remote=remote, cached=cache.hit)

    def _failed(self, name: str, kwargs: dict[str, Any], error: BaseException) -> Exception:
        if "@" in name and isinstance(error, NodeError):  # of a node in the block
            return error
        return self._fail(name.partition("@")[0], kwargs, error)

    # One block ------------------------------------------------------------------------------

    async def _each(self, block: Block, /, **values: Any) -> dict[str, list[Any]]:
        """Run a block for each item; lists of what its nodes gave, in the order of the items."""
        items = list(values.pop(block.item))
        caches = [self._cache and self._cache.part({block.item: item}) for item in items]
        results: list[dict[str, Any]] = [{} for _ in items]
        waiting = deque(range(len(items)))

        async def work() -> None:
            while waiting:
                at = waiting.popleft()
                current.item.set(f"expand-{block.item}.{at}.block-{block.item}")
                given = {**values, block.item: items[at]}
                results[at] = await self._item(block, given, caches[at], (at, len(items)))

        if block.plan is not None and items:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._width, len(items))):
                        group.create_task(work())
            except BaseExceptionGroup as errors:
                first = errors.exceptions[0]
                raise first from first.__cause__
        for name in block.outputs if self._cache else ():
            parts = [cache.version(name) for cache in caches if cache]
            assert self._cache is not None
            self._cache.gathered(name + _ITEMS, parts)
        found = {n: [result.get(n) for result in results] for n in block.outputs}
        return {**found, block.item: items}

    async def _item(
        self,
        block: Block,
        given: Mapping[str, Any],
        cache: RunCache | None,
        number: tuple[int, int],
    ) -> dict[str, Any]:
        assert block.plan is not None
        plan, setup = self._cached(cache, block.plan, self._inner)
        setup = msgspec.structs.replace(setup, item=number)
        part = Execution(plan, given, setup, partial(self._fail, item=number))
        self._parts.add(part)
        result = await part.run()
        self._parts.discard(part)  # one that was cut still names what it has abandoned
        return result


async def _pick(_output: str, /, **values: Any) -> Any:
    (found,) = values.values()
    return found[_output]


def _listed(call: Callable[..., Any], /, **kwargs: Any) -> Any:
    """The items now: what a generator raises belongs to its node."""
    value = call(**kwargs)
    return _awaited(value) if awaitable(value) else list(value)


async def _awaited(value: Any) -> list[Any]:
    return list(await value)


def _required(names: list[str]) -> tuple[tuple[str, bool], ...]:
    return tuple((name, True) for name in dict.fromkeys(names))


def _named_as_written(plan: Plan) -> Plan:
    """Have the user's functions called with their own arguments' names."""
    arguments = tuple(
        tuple((argument.removesuffix(_ITEMS), slot) for argument, slot in pairs)
        for pairs in plan.arguments
    )
    return replace(plan, arguments=arguments)
