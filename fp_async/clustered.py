"""Runs a plan on a cluster: its stages as tasks there, its coroutine functions on this loop.

The plan is compiled once more, over stages: one whose nodes run on the cluster is a coroutine
function that submits it and awaits its report, so that order, structure and cancelling are those
of every other run (`execution.py`). Between stages a value is a reference. `name@there` sends a
value of this process, `name@here` fetches one, each once, and only where somebody needs it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from fp_async import executors, remote
from fp_async.bridge import Bridge
from fp_async.config import ExecutorSettings, NodePolicy
from fp_async.contexts import Scope, adopt
from fp_async.current import current_job
from fp_async.engines import Engine
from fp_async.errors import ClusterError, FlowerPowerError, UsageError, describe
from fp_async.execution import Execution
from fp_async.node_events import NodeEvent
from fp_async.node_watch import Hooks, tell_of_hook
from fp_async.nodes import AttemptTimeoutError, Setup
from fp_async.onsite import Errand, Report, cut
from fp_async.parcels import Parcel
from fp_async.plan import NodeSpec, Plan, compile_plan
from fp_async.remote import ProcessDiedError
from fp_async.stages import EXPAND, Stage, divide
from fp_async.threads import in_thread

Fail = Callable[[str, dict[str, str], BaseException], Exception]
_HERE, _THERE = "@here", "@there"
_TRIVIAL = frozenset({type(None), bool, int, float, str, bytes})


class Reference(NamedTuple):
    """A value on the cluster; `chunks` are the parts of the items of a Parallelizable."""

    value: Any
    chunks: int = 0


class StageError(Exception):
    """A node of a stage failed; `cause` is what it raised, `inputs` the names and types."""

    def __init__(self, node: str, inputs: dict[str, str], cause: BaseException) -> None:
        super().__init__(describe(cause))
        self.node = node
        self.inputs = inputs
        self.cause = cause


class ClusterRun:
    """One run on a cluster."""

    def __init__(
        self,
        engine: Engine,
        spec: remote.GraphSpec,
        plan: Plan,
        roles: Mapping[str, str],
        settings: ExecutorSettings,
        policies: Mapping[str, NodePolicy],
        hooks: Hooks | None,
        progress: Callable[[NodeEvent], None] | None,
        fail: Fail,
    ) -> None:
        self._engine = engine
        self._spec = spec
        self._plan = plan
        self._roles = roles
        self._settings = settings
        self._policies = policies
        self._hooks = hooks
        self._fail = fail
        self._progress = progress
        self._bridge = Bridge(asyncio.get_running_loop(), progress)
        self._level = logging.getLogger().getEffectiveLevel()
        alone = plan.names if hooks else [n for n, p in policies.items() if p.resources]
        self.stages: list[Stage] = divide(plan, roles, alone)
        self._on_cluster = {s.name for s in self.stages if not s.local}
        self._running: set[str] = set()
        for stage in self.stages:
            self._check(self._resources(stage))

    @property
    def running(self) -> tuple[str, ...]:
        """The stages that the cluster has been given, and that have not ended."""
        return tuple(sorted(self._running))

    async def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The final variables' values. A failing node, and cancelling, end what runs there."""
        self._sent_spec = await self._ship(self._spec)
        specs, plainly = self._specs()
        wanted = {name: self._here(name) for name, _ in self._plan.finals}
        plan = compile_plan(specs, list(wanted.values()), values.keys() & self._given())
        setup = Setup(
            aside=executors.threads(None),
            hooks=self._hooks,
            progress=self._progress,
            policies={n: p for n, p in self._policies.items() if n not in plainly},
            plainly=plainly,
        )
        execution = Execution(_named_as_written(plan, plainly), values, setup, self._failed)
        results = await execution.run()
        return {name: results[source] for name, source in wanted.items()}

    # The plan over stages -------------------------------------------------------------------

    def _given(self) -> set[str]:
        return set(self._plan.names[: self._plan.given])

    def _here(self, name: str) -> str:
        return name + _HERE if name in self._on_cluster else name

    def _there(self, name: str) -> str:
        return name if name in self._on_cluster else name + _THERE

    def _specs(self) -> tuple[dict[str, NodeSpec], frozenset[str]]:
        """What is executed, and which of it are no nodes of the user's."""
        specs = {name: NodeSpec(name, (), None) for name in self._given()}
        nodes = dict(specs)
        for stage in self.stages:
            if stage.local:
                slot = self._plan.names.index(stage.name)
                sources = map(self._here, dict(stage.nodes[0][1]).values())
                call = self._plan.calls[slot]
                nodes[stage.name] = NodeSpec(stage.name, _required(sources), call, is_async=True)
            else:
                needs = [self._there(source) for source in self._needs(stage)]
                needs += [self._here(source) for source in self._watched_sources(stage)]
                call = partial(self._stage, stage)
                specs[stage.name] = NodeSpec(stage.name, _required(needs), call, is_async=True)
        for name in (*nodes, *self._on_cluster):
            there, here = name + _THERE, name + _HERE
            expands = self._roles.get(name) == EXPAND
            send, fetch = partial(self._send, name, expands), partial(self._fetch, name)
            specs[there] = NodeSpec(there, _required([name]), send, is_async=True)
            specs[here] = NodeSpec(here, _required([name]), fetch, is_async=True)
        return {**specs, **nodes}, frozenset(specs.keys() - nodes.keys())

    def _needs(self, stage: Stage) -> list[str]:
        needs = [stage.item, *stage.sources] if stage.item else list(stage.sources)
        return [*needs, stage.gathers[0]] if stage.gathers else needs

    def _watched_sources(self, stage: Stage) -> Sequence[str]:
        """What hooks around the stage's node want to see."""
        return stage.sources if self._hooks else ()

    def _failed(self, name: str, kwargs: dict[str, Any], error: BaseException) -> Exception:
        if isinstance(error, StageError):
            return self._fail(error.node, error.inputs, error.cause)
        if isinstance(error, FlowerPowerError) and not isinstance(error, AttemptTimeoutError):
            return error
        node, way, _ = name.partition("@")
        known = {} if way else kwargs  # what is sent or fetched has no inputs
        inputs = {argument: type(value).__name__ for argument, value in known.items()}
        return self._fail(node, inputs, error)

    # Values ---------------------------------------------------------------------------------

    async def _ship(self, value: Any) -> Any:
        if type(value) in _TRIVIAL:
            return self._packed_and_sent(value)
        pack = partial(self._packed_and_sent, value)
        return await in_thread(executors.threads(None), pack)

    def _packed_and_sent(self, value: Any) -> Any:
        return self._engine.send(Parcel(value).packed(thoroughly=True))

    async def _send(self, name: str, expands: bool, **values: Any) -> Reference:
        value = values[name]
        parts = cut(value) if expands else None
        sent = await self._ship(value if parts is None else parts)
        return Reference(sent, len(parts or ()))

    async def _fetch(self, name: str, **values: Reference) -> Any:
        parcel = await self._engine.fetch(values[name].value)
        return await in_thread(executors.threads(None), parcel.open)

    # Stages ---------------------------------------------------------------------------------

    async def _stage(self, stage: Stage, **values: Any) -> Any:
        """Run a stage; a reference to its output, or those of all parts by output."""
        sources = [values[self._there(source)].value for source in stage.sources]
        if stage.item:
            items = values[self._there(stage.item)]
            return await self._for_each(stage, items, sources)
        if stage.gathers:
            sources += values[stage.gathers[0]][stage.gathers[1]]
        if self._hooks is None:
            report, outputs = await self._perform(stage, sources)
            return Reference(outputs[0], report.chunks)
        return await self._watched(stage, self._hooks, sources, values)

    async def _for_each(
        self, stage: Stage, items: Reference, sources: Sequence[Any]
    ) -> dict[str, list[Any]]:
        inputs = [items.value, *sources]
        try:
            async with asyncio.TaskGroup() as group:
                work = [self._perform(stage, inputs, chunk) for chunk in range(items.chunks)]
                tasks = [group.create_task(one) for one in work]
        except BaseExceptionGroup as group_error:
            raise group_error.exceptions[0] from None
        parts = [task.result()[1] for task in tasks]
        return {name: [p[at] for p in parts] for at, name in enumerate(stage.outputs)}

    async def _perform(
        self, stage: Stage, sources: Sequence[Any], chunk: int = 0
    ) -> tuple[Report, Sequence[Any]]:
        """Submit a stage and await its end. Cancelling ends it there."""
        errand, inputs = self._errand(stage, chunk), [self._sent_spec, *sources]
        limits = [p.timeout for n, p in errand.policies.items() if p.timeout is not None]
        retries = 0 if limits and self._engine.ends_stuck else self._settings.retries
        since = time.monotonic()
        self._begun(stage)
        task = self._engine.submit(
            errand, inputs, resources=self._resources(stage), retries=retries
        )
        self._running.add(errand.token)
        try:
            report = await task.report()
        except ProcessDiedError as error:
            if limits and time.monotonic() - since >= min(limits):
                text = f"took longer than its timeout of {min(limits):g} s"
                raise self._lost(stage, AttemptTimeoutError(text)) from None
            raise self._lost(stage, error) from error.__cause__
        except asyncio.CancelledError:
            await _to_its_end(task.cancel())
            self._cancelled(stage, time.monotonic() - since)
            raise
        finally:
            self._running.discard(errand.token)
        self._hear(stage, report)
        return report, task.outputs

    def _resources(self, stage: Stage) -> dict[str, float] | None:
        """What its nodes ask for, the most of each; else what the executor asks for."""
        policies = [self._policies[name] for name, _ in stage.nodes if name in self._policies]
        asked = [policy.resources for policy in policies if policy.resources is not None]
        if not asked:
            return self._settings.resources
        return {name: max(of.get(name, 0.0) for of in asked) for of in asked for name in of}

    def _check(self, resources: dict[str, float] | None) -> None:
        for name, number in (resources or {}).items():
            if self._engine.has is not None and number > self._engine.has.get(name, 0.0):
                raise UsageError(
                    f"no task of executor '{self._engine.name}' can ever get {name} {number:g}: "
                    f"there is {self._engine.has.get(name, 0.0):g}"
                )

    def _errand(self, stage: Stage, chunk: int) -> Errand:
        names = {name for name, _ in stage.nodes}
        return Errand(
            stage=stage,
            policies={n: p for n, p in self._policies.items() if n in names},
            token=uuid.uuid4().hex,
            chunk=chunk,
            level=self._level,
            alone=self._engine.private,
            ends_stuck=self._engine.ends_stuck,
            packs=self._engine.packs,
            job=current_job(),
        )

    async def _watched(
        self, stage: Stage, hooks: Hooks, sources: Sequence[Any], values: Mapping[str, Any]
    ) -> Reference:
        """Run a stage of one node with hooks around it, which see its values here."""
        ((name, arguments),) = stage.nodes
        kwargs = {a: values[self._here(s)] for a, s in arguments if self._here(s) in values}
        entered, told = contextvars.copy_context(), _Told(hooks, name, kwargs)
        try:
            await told.before()
            try:
                report, outputs = await self._perform(stage, sources)
                value = (await self._engine.fetch(outputs[0])).open()
            except BaseException as error:
                await told.error(error.cause if isinstance(error, StageError) else error)
                raise
            await told.after(value, None)
        except (StageError, FlowerPowerError):
            raise
        except Exception as error:  # a hook's
            inputs = {argument: type(value).__name__ for argument, value in kwargs.items()}
            raise StageError(name, inputs, error) from error
        adopt(told.scope.context, entered)
        return Reference(outputs[0], report.chunks)

    # Telling --------------------------------------------------------------------------------

    def _tell(self, event: NodeEvent) -> None:
        if self._progress is not None:
            self._bridge.deliver(event)

    def _begun(self, stage: Stage) -> None:
        if stage.nodes:
            self._tell(NodeEvent(stage.nodes[0][0], "started"))

    def _lost(self, stage: Stage, error: BaseException) -> StageError:
        """The error of a stage that never reported: which of its nodes it was is not known."""
        names = [name for name, _ in stage.nodes] or [stage.name]
        self._tell(NodeEvent(names[0], "failed", 0.0, describe(error)))
        return StageError(", ".join(names), {}, error)

    def _cancelled(self, stage: Stage, seconds: float) -> None:
        if stage.nodes:
            told = (stage.nodes[0][0], "cancelled", seconds)
            self._tell(NodeEvent(*told, items=0 if stage.item else None))

    def _hear(self, stage: Stage, report: Report) -> None:
        """Tell what a stage has told; raise what broke it."""
        begun, items = {stage.nodes[0][0]} if stage.nodes else set(), 0 if stage.item else None
        for node, status, seconds, error, at in report.nodes:
            if node not in begun:
                self._tell(NodeEvent(node, "started", at=at))
            begun.discard(node) if status != "retrying" else begun.add(node)
            told = (node, status, seconds, error, at)
            self._tell(NodeEvent(*told, place=report.place, items=items))
        for name, level, text in report.log:
            _repeat(name, level, text)
        if report.broken is not None:
            node, inputs, failure = report.broken
            where = f"a worker of {self._engine.name} ({report.place})"
            cause = remote.raised(failure, where)
            if not node:
                raise ClusterError(f"{where} cannot run the pipeline: {describe(cause)}") from cause
            raise StageError(node, inputs, cause)


def _required(names: Any) -> tuple[tuple[str, bool], ...]:
    return tuple((name, True) for name in dict.fromkeys(names))


def _named_as_written(plan: Plan, plainly: frozenset[str]) -> Plan:
    """Have the user's coroutine functions called with their own arguments' names."""
    arguments = [
        pairs
        if name in plainly
        else tuple((argument.removesuffix(_HERE), slot) for argument, slot in pairs)
        for name, pairs in zip(plan.names, plan.arguments, strict=True)
    ]
    return replace(plan, arguments=tuple(arguments))


async def _to_its_end(work: Any) -> None:
    """Await something to its end, even when cancelled again."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            continue
    if error := task.exception():
        logging.getLogger("fp_async").warning("could not end a task: %s", describe(error))


class _Told:
    """The hooks around a node, in one context: async ones here, around sync ones in threads."""

    def __init__(self, hooks: Hooks, name: str, kwargs: dict[str, Any]) -> None:
        self.scope = Scope()
        self._hooks = hooks
        self._name = name
        self._kwargs = kwargs

    async def before(self) -> None:
        """Call those before the node."""
        if self._hooks.before_async is not None:
            await self.scope.awaited(self._hooks.before_async(self._name, self._kwargs))
        if self._hooks.before is not None:
            before = partial(self._hooks.before, self._name, self._kwargs)
            await self.scope.in_thread(executors.threads(None), before)

    async def after(self, value: Any, error: BaseException | None) -> None:
        """Call those after it."""
        told = (self._name, self._kwargs, value, error)
        if self._hooks.after is not None:
            after = partial(self._hooks.after, *told)
            await self.scope.in_thread(executors.threads(None), after)
        if self._hooks.after_async is not None:
            await self.scope.awaited(self._hooks.after_async(*told))

    async def error(self, error: BaseException) -> None:
        """Tell of an error, which no error of a hook hides."""
        try:
            await self.after(None, error)
        except Exception as failed:
            tell_of_hook(self._name, failed)


def _repeat(name: str, level: int, text: str) -> None:
    """Print or log here what was printed or logged there."""
    if not level:
        getattr(sys, name).write(text)
        return
    logger = logging.getLogger(name)
    if logger.isEnabledFor(level):
        logger.handle(logger.makeRecord(name, level, "(cluster)", 0, text, (), None))
