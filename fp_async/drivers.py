"""Hamilton's own AsyncDriver, `executor: hamilton`: a second opinion on what runs when.

It walks a second build of the graph, whose nodes lead back here: what is around a node is ours, as
with every executor.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

from hamilton import async_driver

from fp_async.awaitables import awaitable
from fp_async.bridge import StopError, is_hamiltons
from fp_async.dag import Graph
from fp_async.errors import FlowerPowerError, GraphError, describe
from fp_async.nodes import Caller, Setup
from fp_async.plan import Plan

Fail = Callable[[str, dict[str, Any], BaseException], Exception]
_run: ContextVar[DriverRun] = ContextVar("fp_async_driver_run")


class SecondOpinion:
    """An AsyncDriver over a graph, for one run after the other, or beside each other."""

    def __init__(self, graph: Graph) -> None:
        self.flow: str = graph.flow
        built, nodes = graph.again(), graph.nodes
        for node in built.nodes.values():
            if nodes[node.name].call is not None:
                node._callable = partial(_led_back, node.name)
        self.driver = async_driver.Builder().with_config(graph.config).build_without_init()
        self.driver.graph = type(built)(built.nodes, built.config, self.driver.adapter)


class DriverRun:
    """One run of a plan by it."""

    def __init__(
        self,
        second: SecondOpinion,
        plan: Plan,
        values: Mapping[str, Any],
        setup: Setup,
        fail: Fail,
        overrides: Mapping[str, Any],
    ) -> None:
        self._second = second
        self._plan = plan
        self._fail = fail
        self._overrides = overrides
        self._given = {name: values[name] for name in plan.names[: plan.given]}
        self._values = [*self._given.values(), *(None for _ in plan.order)]
        self._caller = Caller(plan, setup, self._values)
        self._begin = self._caller.chosen()
        self._slots = {name: slot for slot, name in enumerate(plan.names)}
        self._failure: Exception | None = None

    async def run(self) -> dict[str, Any]:
        """Run to the end; sync functions block the loop, as they do there."""
        self._caller.attach(asyncio.get_running_loop())
        token = _run.set(self)
        try:
            results = await self._driven()
        except Exception as error:
            meaning = self._meaning(error)
            raise meaning from meaning.__cause__
        finally:
            _run.reset(token)
            self._caller.close()
        return {name: results[name] for name, _ in self._plan.finals}

    async def _driven(self) -> dict[str, Any]:
        """The final variables; those that are given are none of the driver's."""
        driver, config = self._second.driver, self._second.driver.config
        finals = [name for name, _ in self._plan.finals if name not in self._given]
        inputs = {
            name: value
            for name, value in self._given.items()
            if name not in self._overrides and name not in config
        }
        computed: dict[str, Any] = {}
        if finals:
            computed = await driver.raw_execute(
                finals, overrides=dict(self._overrides), inputs=inputs
            )
        return {**self._given, **computed}

    async def node(self, name: str, kwargs: Mapping[str, Any]) -> Any:
        """Call a node with what the driver gives it."""
        slot = self._slots[name]
        for argument, source in self._plan.arguments[slot]:
            self._values[source] = kwargs[argument]
        try:
            value = self._begin(slot)
            return await value if awaitable(value) else value
        except BaseException as error:
            if _is_cut(error):
                raise
            self._failure = self._failure or self._fail(name, dict(kwargs), error)
            if isinstance(error, Exception):
                raise
            raise StopError(error) from error  # asyncio would end the loop with it

    def _meaning(self, error: Exception) -> Exception:
        if self._failure is not None:
            return self._failure
        if isinstance(error, RecursionError) and is_hamiltons(error):
            limit = sys.getrecursionlimit()
            return GraphError(
                f"pipeline '{self._second.flow}' is too deep for Hamilton's own driver: it "
                f"recurses along a chain of nodes, and Python's limit is {limit} calls; use "
                "another executor, split the pipeline, or raise the limit with "
                "sys.setrecursionlimit()"
            )
        failure = FlowerPowerError(
            f"Hamilton's driver failed in pipeline '{self._second.flow}': {describe(error)}"
        )
        failure.__cause__ = error
        return failure


def _is_cut(error: BaseException) -> bool:
    """Return whether the run was cancelled or interrupted, as against a node that raised."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return isinstance(error, KeyboardInterrupt | GeneratorExit)


async def _led_back(node: str, /, **kwargs: Any) -> Any:
    return await _run.get().node(node, kwargs)
