"""Hamilton's lifecycle adapters during one run of ours.

Each kind of hook is called where Hamilton's drivers call it, with the graph that was announced, raw
errors, and in one context for the run. See `node_watch.Hooks` for those around nodes.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fp_async import current
from fp_async.awaitables import awaitable
from fp_async.bridge import Bridge
from fp_async.contexts import Scope
from fp_async.errors import AdapterError, FlowerPowerError, NodeError, describe
from fp_async.node_watch import Hooks, Watch
from fp_async.remote import Errand, GraphSpec, called_elsewhere, failed_node, marking


class Adapters(NamedTuple):
    """The adapters of a pipeline, and the graph that they were told of.

    `executes` says that one of them has a way of its own to call nodes, `awaits` that it is a
    coroutine function, `elsewhere` that one calls them where it likes. `expanders` are the nodes
    that give a `Parallelizable`, and `collects` says of those that collect one, which.
    """

    flow: str
    known: Any
    function_graph: Any
    executes: bool
    awaits: bool
    elsewhere: bool
    expanders: frozenset[str]
    collects: Mapping[str, str]
    calls: Mapping[str, Callable[..., Any] | None]

    @property
    def defers(self) -> bool:
        """Return whether errors of nodes may come out when the result is built."""
        return self.elsewhere or self.executes

    @property
    def watches_nodes(self) -> bool:
        """Return whether there are hooks around nodes."""
        return self.watches_nodes_async or not _AROUND.isdisjoint(self.known.sync_hooks)

    @property
    def watches_nodes_async(self) -> bool:
        """Return whether there are async hooks around nodes."""
        return not _AROUND.isdisjoint(self.known.async_hooks)


_AROUND = frozenset({"pre_node_execute", "post_node_execute"})


class RunHooks:
    """The adapters of one run; `run_id` ties their calls together, `scope` is its context.

    `spec` describes the graph to other processes, for adapters that execute nodes there. `dynamic`:
    there is a `Parallelizable` in it.
    """

    def __init__(self, adapters: Adapters, spec: Callable[[], GraphSpec], *, dynamic: bool) -> None:
        self._of = adapters
        self._dynamic = dynamic
        self._adapters = adapters.known
        self._graph = adapters.function_graph
        self._spec = spec
        self.run_id: str = str(uuid.uuid4())
        self.scope: Scope = Scope()
        self.bridge: Bridge = Bridge(asyncio.get_running_loop())
        self._waits = adapters.executes or adapters.elsewhere
        self._away: list[Watch] = []  # of nodes in other processes
        sync = self._adapters.sync_hooks
        self._pre = [a.pre_node_execute for a in sync.get("pre_node_execute", ())]
        self._post = [a.post_node_execute for a in sync.get("post_node_execute", ())]

    # Around the run -------------------------------------------------------------------------

    def started(
        self, final_vars: Sequence[str], inputs: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> None:
        """Call the sync hooks before. Raises AdapterError, as all of these."""
        self._all("pre_graph_execute", self._start(final_vars, inputs, overrides))

    async def started_async(
        self, final_vars: Sequence[str], inputs: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> None:
        """Call the async hooks before, one after the other."""
        await self._all_async("pre_graph_execute", self._start(final_vars, inputs, overrides))

    def ended(self, results: Any, error: BaseException | None) -> None:
        """Call the sync hooks after."""
        self._all("post_graph_execute", self._end(results, error))

    async def ended_async(self, results: Any, error: BaseException | None) -> None:
        """Call the async hooks after, one after the other."""
        await self._all_async("post_graph_execute", self._end(results, error))

    def has_sync(self, hook: str) -> bool:
        return hook in self._adapters.sync_hooks

    def has_async(self, hook: str) -> bool:
        return hook in self._adapters.async_hooks

    def _all(self, hook: str, told: dict[str, Any]) -> None:
        for adapter in self._adapters.sync_hooks.get(hook, ()):
            try:
                getattr(adapter, hook)(**told)
            except Exception as error:
                raise self._failure(adapter, hook, error) from error

    async def _all_async(self, hook: str, told: dict[str, Any]) -> None:
        for adapter in self._adapters.async_hooks.get(hook, ()):
            try:
                await getattr(adapter, hook)(**told)
            except Exception as error:
                raise self._failure(adapter, hook, error) from error

    def _failure(self, adapter: Any, what: str, error: Exception) -> Exception:
        if isinstance(error, FlowerPowerError):
            return error
        name = type(adapter).__name__
        return AdapterError(
            f"adapter {name} of pipeline '{self._of.flow}': {what} raised {describe(error)}"
        )

    @property
    def builds(self) -> bool:
        """Return whether one of the adapters builds the result."""
        return bool(self._adapters.does_method("do_build_result", is_async=False))

    def result(self, outputs: dict[str, Any]) -> Any:
        """The outputs, or what a result builder among the adapters makes of them."""
        if not self.builds:
            return outputs
        try:
            return self._adapters.call_lifecycle_method_sync("do_build_result", outputs=outputs)
        except Exception as error:
            if failed_node(error):
                raise
            (adapter,) = self._adapters.sync_methods["do_build_result"]
            raise self._failure(adapter, "do_build_result", error) from error

    def _start(self, final_vars: Any, inputs: Any, overrides: Any) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "graph": self._graph,
            "final_vars": list(final_vars),
            "inputs": dict(inputs),
            "overrides": dict(overrides),
        }

    def _end(self, results: Any, error: BaseException | None) -> dict[str, Any]:
        if isinstance(error, NodeError) and error.__cause__ is not None:
            error = error.__cause__
        return {
            "run_id": self.run_id,
            "graph": self._graph,
            "success": error is None,
            "error": error,
            "results": results,
        }

    # Around a node --------------------------------------------------------------------------

    def for_nodes(self) -> Hooks | None:
        """The hooks around each node; None where no adapter has one."""
        sync, awaited = self._adapters.sync_hooks, self._adapters.async_hooks
        hooks = Hooks(
            before=self._before if "pre_node_execute" in sync else None,
            after=self._after if "post_node_execute" in sync else None,
            before_async=self._before_async if "pre_node_execute" in awaited else None,
            after_async=self._after_async if "post_node_execute" in awaited else None,
            execute=self._execute if self._of.executes else None,
            waits=self._of.executes and not self._of.awaits,
            elsewhere=self._elsewhere if self._of.elsewhere else None,
        )
        return None if hooks == Hooks() else hooks

    def _before(self, name: str, kwargs: dict[str, Any]) -> None:
        node, task = self._graph.nodes[name], self._task(name)
        for hook in self._pre:
            hook(run_id=self.run_id, node_=node, kwargs=kwargs, task_id=task)

    def _after(
        self, name: str, kwargs: dict[str, Any], value: Any, error: BaseException | None
    ) -> None:
        told = self._node(name, kwargs) | _outcome(value, error)
        for hook in self._post:
            hook(**told)

    async def _before_async(self, name: str, kwargs: dict[str, Any]) -> None:
        for adapter in self._adapters.async_hooks["pre_node_execute"]:
            await adapter.pre_node_execute(**self._node(name, kwargs))

    async def _after_async(
        self, name: str, kwargs: dict[str, Any], value: Any, error: BaseException | None
    ) -> None:
        told = self._node(name, kwargs) | _outcome(value, error)
        for adapter in self._adapters.async_hooks["post_node_execute"]:
            await adapter.post_node_execute(**told)

    def _node(self, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        node = self._graph.nodes[name]
        task = self._task(name)
        return {"run_id": self.run_id, "node_": node, "kwargs": kwargs, "task_id": task}

    def _task(self, name: str) -> str | None:
        """The task that Hamilton's driver would make of a node and its item: adapters tell items
        apart by it. None without a `Parallelizable`.
        """
        if not self._dynamic:
            return None
        if block := current.item.get():
            return block
        if name in self._of.expanders:
            return f"expand-{name}"
        return f"collect-{self._of.collects[name]}" if name in self._of.collects else name

    async def close(self, error: BaseException | None) -> None:
        """Cancel what is awaited for threads; tell of nodes elsewhere that the run has ended."""
        failed = failed_node(error)
        for watch in self._away:
            hers = failed is not None and failed.node == watch.name
            watch.settle("failed" if hers else "cancelled" if error else "succeeded", error)
        if self._waits:
            await self.bridge.stop()

    # In place of a node ---------------------------------------------------------------------

    def _execute(self, name: str, kwargs: dict[str, Any]) -> Any:
        """Have an adapter call a node; a `Parallelizable` gives its items within this call."""
        told = self._node(name, kwargs)
        if self._of.awaits:
            return self._adapters.call_lifecycle_method_async("do_node_execute", **told)
        told["node_"] = self._callable(name)
        value = self._adapters.call_lifecycle_method_sync("do_node_execute", **told)
        return list(value) if name in self._of.expanders and not awaitable(value) else value

    def _callable(self, name: str) -> Any:
        """The node for an adapter that calls it: with the value of a coroutine function."""
        node = copy.copy(self._graph.nodes[name])
        call = self._of.calls[name]
        assert call is not None
        node._callable = _Call(call, self.bridge, self._spec, name)
        if name in self._of.expanders:  # as Hamilton's task-based driver gives it to adapters
            node._callable = functools.partial(_listed, _callable=node._callable)
        return node

    def _elsewhere(self, watch: Watch, observed: Callable[[Watch], Any]) -> Any:
        """Have an adapter call a node and its hooks where it likes."""
        node = self._graph.nodes[watch.name]
        watch.scope = Scope()  # what it is called in now may not have ended when that begins
        call = functools.partial(called_elsewhere, _Here(self, watch, observed))
        return self._adapters.call_lifecycle_method_sync(
            "do_remote_execute", node=node, execute_lifecycle_for_node=call, **watch.kwargs
        )

    def travelling(self, watch: Watch) -> tuple[Any, ...]:
        """Return the data by which another process calls a node with its hooks."""
        if watch not in self._away:
            self._away.append(watch)
            watch.within(watch.begin)
        hooks = [
            adapter
            for adapter in self._adapters.adapters
            if any(hasattr(adapter, part) for part in (*_AROUND, "do_node_execute"))
        ]
        return self._spec(), watch.name, tuple(hooks), self.run_id


class _Here:
    """A node that an adapter is to call; pickled, it is one for another process."""

    def __init__(self, hooks: RunHooks, watch: Watch, observed: Callable[[Watch], Any]) -> None:
        self._hooks = hooks
        self._watch = watch
        self._observed = observed

    def __call__(self, /, **kwargs: Any) -> Any:
        """Call the node and its hooks in this process, in whatever thread."""
        watch, bridge = self._watch, self._hooks.bridge
        watch.kwargs = kwargs
        bridge.check()
        with marking(watch.name, kwargs), bridge.occupied(watch.name):
            value = watch.within(self._observed, watch)
            if awaitable(value):
                return bridge.wait(value)
        watch.leave()
        return value

    def __reduce__(self) -> Any:
        return Errand, self._hooks.travelling(self._watch)


class _Call:
    """A node's function as adapters see it: with values in place of coroutines, and in another
    process, if it gets there, the same node of the same graph.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        bridge: Bridge,
        spec: Callable[[], GraphSpec],
        name: str,
    ) -> None:
        self._call = call
        self._bridge = bridge
        self._spec = spec
        self._name = name
        while isinstance(call, functools.partial):
            call = call.func
        functools.update_wrapper(self, call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with marking(self._name, kwargs):
            value = self._call(*args, **kwargs)
            if awaitable(value) and not self._bridge.is_here:
                return self._bridge.wait(value)
            return value

    def __reduce__(self) -> Any:
        return Errand, (self._spec(), self._name, (), "")


def _listed(*, _callable: Callable[..., Any], **kwargs: Any) -> list[Any]:
    return list(_callable(**kwargs))


def _outcome(value: Any, error: BaseException | None) -> dict[str, Any]:
    return {"success": error is None, "error": error, "result": value}
