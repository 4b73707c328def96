"""Hamilton's lifecycle adapters during one run of ours.

They are called where Hamilton's drivers call them, sync and async ones, with real values. A
sync hook around a sync node runs in that node's thread, around a coroutine function on the
event loop (as in Hamilton's AsyncDriver): what waits belongs into an async hook.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fp_async.nodes import Hooks


class RunHooks:
    """The adapters of one run; `run_id` ties their calls together."""

    def __init__(self, adapters: Any, function_graph: Any, run_id: str) -> None:
        self._adapters = adapters
        self._graph = function_graph
        self.run_id = run_id
        self._pre = [a.pre_node_execute for a in adapters.sync_hooks.get("pre_node_execute", ())]
        self._post = [a.post_node_execute for a in adapters.sync_hooks.get("post_node_execute", ())]

    # Around the run -------------------------------------------------------------------------

    def started(
        self, final_vars: Sequence[str], inputs: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> None:
        self._adapters.call_all_lifecycle_hooks_sync(
            "pre_graph_execute", **self._start(final_vars, inputs, overrides)
        )

    async def started_async(
        self, final_vars: Sequence[str], inputs: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> None:
        for adapter in self._adapters.async_hooks.get("pre_graph_execute", ()):
            await adapter.pre_graph_execute(**self._start(final_vars, inputs, overrides))

    def ended(self, results: Mapping[str, Any] | None, error: BaseException | None) -> None:
        self._adapters.call_all_lifecycle_hooks_sync(
            "post_graph_execute", **self._end(results, error)
        )

    async def ended_async(
        self, results: Mapping[str, Any] | None, error: BaseException | None
    ) -> None:
        for adapter in self._adapters.async_hooks.get("post_graph_execute", ()):
            await adapter.post_graph_execute(**self._end(results, error))

    def has_sync(self, hook: str) -> bool:
        return hook in self._adapters.sync_hooks

    def result(self, outputs: dict[str, Any]) -> Any:
        """The outputs, or what a result builder among the adapters makes of them."""
        if self._adapters.does_method("do_build_result", is_async=False):
            return self._adapters.call_lifecycle_method_sync("do_build_result", outputs=outputs)
        return outputs

    def _start(self, final_vars: Any, inputs: Any, overrides: Any) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "graph": self._graph,
            "final_vars": list(final_vars),
            "inputs": dict(inputs),
            "overrides": dict(overrides),
        }

    def _end(self, results: Any, error: BaseException | None) -> dict[str, Any]:
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
        methods = {**self._adapters.sync_methods, **self._adapters.async_methods}
        hooks = Hooks(
            before=self._before if "pre_node_execute" in sync else None,
            after=self._after if "post_node_execute" in sync else None,
            before_async=self._before_async if "pre_node_execute" in awaited else None,
            after_async=self._after_async if "post_node_execute" in awaited else None,
            execute=self._execute if "do_node_execute" in methods else None,
        )
        return None if hooks == Hooks() else hooks

    def _before(self, name: str, kwargs: dict[str, Any]) -> None:
        node = self._graph.nodes[name]
        for hook in self._pre:
            hook(run_id=self.run_id, node_=node, kwargs=kwargs, task_id=None)

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

    def _execute(self, name: str, kwargs: dict[str, Any]) -> Any:
        awaited = "do_node_execute" in self._adapters.async_methods
        call = (
            self._adapters.call_lifecycle_method_async
            if awaited
            else self._adapters.call_lifecycle_method_sync
        )
        return call("do_node_execute", **self._node(name, kwargs))

    def _node(self, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        node = self._graph.nodes[name]
        return {"run_id": self.run_id, "node_": node, "kwargs": kwargs, "task_id": None}


def _outcome(value: Any, error: BaseException | None) -> dict[str, Any]:
    return {"success": error is None, "error": error, "result": value}


def guard(
    adapters: Any, users: Collection[Any], remember: Callable[[Mapping[str, Any]], None]
) -> None:
    """Have `remember` called with the node and the error when a user's hook around it raises.

    Changes the adapter set. Hamilton tells nobody of those errors.
    """
    ours = {id(adapter) for adapter in users}
    for guarded, hooks in ((_Guard, adapters.sync_hooks), (_AsyncGuard, adapters.async_hooks)):
        for name in {"pre_node_execute", "post_node_execute"} & hooks.keys():
            hooks[name] = [
                guarded(adapter, name, remember) if id(adapter) in ours else adapter
                for adapter in hooks[name]
            ]


class _Guard:
    """A hook of an adapter, whose errors are remembered."""

    def __init__(
        self, adapter: Any, name: str, remember: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._hook = getattr(adapter, name)
        self._remember = remember
        setattr(self, name, self._call)

    def _call(self, **told: Any) -> Any:
        try:
            return self._hook(**told)
        except Exception as error:
            self._remember({**told, "error": error})
            raise


class _AsyncGuard(_Guard):
    async def _call(self, **told: Any) -> Any:
        try:
            return await self._hook(**told)
        except Exception as error:
            self._remember({**told, "error": error})
            raise
