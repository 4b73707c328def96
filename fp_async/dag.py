"""A pipeline's functions as Hamilton's DAG, described in values that the rest understands.

This module and `drivers.py` are the only importers of Hamilton. Hamilton gives functions,
decorators, graph, types and hooks; the execution is ours (`plan.py`, `execution.py`), except
for what `drivers.py` hands to Hamilton's own drivers.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from fp_async import config_values, extensions, param_types
from fp_async.build_errors import explain
from fp_async.errors import (
    FlowerPowerError,
    GraphError,
    InputError,
    UnknownNameError,
)
from fp_async.hooks import Adapters, RunHooks
from fp_async.plan import NodeSpec, Plan, compile_plan, find_cycle
from fp_async.stages import check_blocks
from fp_async.values import paths
from fp_async.values.annotations import type_name
from fp_async.values.coerce import converter
from fp_async.values.converter import Converter, convert
from fp_async.values.misfit import MisfitError
from fp_async.wrappers import is_async, layers, uses_early

if TYPE_CHECKING:
    from fp_async.modules import Namespace
    from fp_async.remote import GraphSpec

extensions.prepare()  # before the import of what would load them all

from hamilton import base, driver, node  # noqa: E402
from hamilton.function_modifiers import datasaver  # noqa: E402
from hamilton.function_modifiers import value as _hamilton_value  # noqa: E402
from hamilton.htypes import Collect, Parallelizable  # noqa: E402
from hamilton.lifecycle.default import NoEdgeAndInputTypeChecking  # noqa: E402


def _validate_saver(self: Any, function: Any) -> None:
    """`@datasaver`'s own check, which compares the annotation as it is written with `dict`: under
    `from __future__ import annotations` that is a text (apache-hamilton 1.90).
    """
    written = function.__annotations__.get("return")
    if isinstance(written, str):
        alone = SimpleNamespace(__annotations__={"return": written})
        found = typing.get_type_hints(alone, function.__globals__)["return"]
        function.__annotations__["return"] = found
    _own_validate(self, function)


_own_validate = datasaver.validate
datasaver.validate = _validate_saver

_quiet: ContextVar[bool] = ContextVar("fp_async_quiet", default=False)


class _Silence(logging.Filter):
    """Drops the errors that Hamilton logs while we drive it: we raise the same, without adverts."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (_quiet.get() and record.levelno >= logging.ERROR)


for _name in (
    "driver",
    "async_driver",
    "execution.graph_functions",
    "execution.executors",
    "function_modifiers.base",
    "data_quality.base",
):
    logging.getLogger(f"hamilton.{_name}").addFilter(_Silence())


class Quiet:
    """In this block, and in the tasks and threads begun in it, Hamilton logs no errors."""

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        self._token = _quiet.set(True)

    def __exit__(self, *_: object) -> None:
        _quiet.reset(self._token)


def literal(value: Any) -> Any:
    """Hamilton's `value(...)`, for `PARAMS`."""
    return _hamilton_value(value)


def cache_behavior(tags: Mapping[str, Any], *, expands: bool) -> str:
    """What `@cache` says of a node by its tags, or what goes without saying."""
    said = tags.get("cache.behavior")
    if said is not None:
        return str(said)
    outside = expands or "hamilton.data_loader" in tags or "hamilton.data_saver" in tags
    return "recompute" if outside else "default"


def load_modules(
    namespace: Namespace, names: Sequence[str], root: Path | None = None
) -> list[ModuleType]:
    """Import a pipeline's modules.

    Parameters get the types of their annotations, and their relative paths mean `root`, as in
    `Graph`. Raises PipelineImportError, InputError.
    """
    modules = [namespace.load(name) for name in names]
    if param_types.settle(namespace.params, modules, root):
        param_types.forget_reads(namespace.params)
        namespace.unload()
        modules = [namespace.load(name) for name in names]
        param_types.settle(namespace.params, modules, root)
    return modules


class Graph:
    """The DAG of one pipeline for one set of modules, configuration and adapters.

    Relative paths that are defaults of arguments mean the project's folder, `root`; None where the
    process is in it. `checked`: another process has found the types of its edges to match, as its
    adapters see them. Raises GraphError where the functions make no valid DAG.
    """

    def __init__(
        self,
        flow: str,
        modules: Sequence[ModuleType],
        config: Mapping[str, Any],
        *,
        adapters: Sequence[Any] = (),
        materializers: Sequence[Any] = (),
        allow_overrides: bool = False,
        root: Path | None = None,
        checked: bool = False,
    ) -> None:
        self.flow = flow
        self._checked = checked
        self.modules: tuple[ModuleType, ...] = tuple(modules)
        self.config: dict[str, Any] = dict(config)
        self.adapters: tuple[Any, ...] = tuple(adapters)
        self.materializers: tuple[Any, ...] = tuple(materializers)
        self.allow_overrides = allow_overrides
        self._root = root
        built = self._build()
        self._function_graph = built.graph
        self.adapter_set: Any = built.adapter
        self.hamilton: dict[str, Any] = built.graph.nodes
        if not any(not n.user_defined for n in self.hamilton.values()):
            raise GraphError(f"pipeline '{flow}' has no functions that could be nodes")
        self.nodes: dict[str, NodeSpec] = {
            name: self._spec(node_) for name, node_ in self.hamilton.items()
        }
        cycle = find_cycle(self.nodes)
        if cycle:
            raise GraphError(f"pipeline '{flow}' has a cycle: {' -> '.join(cycle)}")
        special = {node.NodeType.EXPAND: "expand", node.NodeType.COLLECT: "collect"}
        kinds = {name: node_.node_role for name, node_ in self.hamilton.items()}
        self.roles: dict[str, str] = {
            name: special[kind] for name, kind in kinds.items() if kind in special
        }
        self._check_blocks()
        self._repeated = self._find_repeated()
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._converters: dict[str, Converter] = {}  # of inputs, by name
        self._told = not adapters

    def again(self) -> Any:
        """A second graph of Hamilton's, for a driver that calls its nodes in another way."""
        with Quiet():
            return self._builder(NoEdgeAndInputTypeChecking()).build().graph

    def _builder(self, *adapters: Any) -> Any:
        builder = driver.Builder().with_modules(*self.modules).with_config(self.config)
        if adapters:
            builder = builder.with_adapters(*adapters)
        if self.materializers:
            builder = builder.with_materializers(*self.materializers)
        return builder.allow_module_overrides() if self.allow_overrides else builder

    def _build(self) -> Any:
        try:
            with Quiet():
                unchecked = (NoEdgeAndInputTypeChecking(),) if self._checked else ()
                return self._builder(*self.adapters, *unchecked).build()
        except FlowerPowerError:
            raise
        except Exception as error:
            text = explain(error, self.modules)
            raise GraphError(f"cannot build the DAG of pipeline '{self.flow}': {text}") from error

    def _spec(self, node_: Any) -> NodeSpec:
        parameters = tuple(
            (name, kind is node.DependencyType.REQUIRED)
            for name, (_, kind) in node_.input_types.items()
        )
        if node_.user_defined:
            return NodeSpec(node_.name, (), None)
        if any(map(inspect.isasyncgenfunction, layers(node_.callable))):
            raise GraphError(
                f"node '{node_.name}' of pipeline '{self.flow}' is an async generator; "
                "return a list from an `async def`, or use a plain generator"
            )
        if uses_early(node_.callable):
            raise GraphError(
                f"node '{node_.name}' of pipeline '{self.flow}' is an `async def`, whose value a "
                "decorator of Hamilton's uses before it can be awaited "
                "(@parameterize_extract_columns; fill_with on top of @inject or @parameterize); "
                "use `def`, or split it into two functions"
            )
        return NodeSpec(node_.name, parameters, self.call(node_), is_async(node_.callable))

    def call(self, node_: Any) -> Any:
        """The function of a node, of this or another build, with its defaults in the project."""
        values = node_.default_parameter_values or {}
        located = {
            argument: paths.below(value, self._root)
            for argument, value in values.items()
            if self._root is not None and paths.relative(value)
        }
        return functools.partial(node_.callable, **located) if located else node_.callable

    # What is in it --------------------------------------------------------------------------

    @property
    def inputs(self) -> dict[str, Any]:
        """Names and types of the inputs that are not set by the configuration."""
        return {
            name: self.hamilton[name].type
            for name, spec in self.nodes.items()
            if spec.call is None and name not in self.config
        }

    @property
    def leaves(self) -> list[str]:
        """The computed nodes that no other node reads, in the order of their definition.

        Values that a `@subdag` was given are no results, even if nothing reads them.
        """
        read = {name for spec in self.nodes.values() for name, _ in spec.parameters}
        calls = {n: spec.call for n, spec in self.nodes.items() if n not in read}
        return [n for n, call in calls.items() if call is not None and not _is_static(call)]

    def kind(self, name: str) -> Any:
        """A node's type; Any for an input that no node reads."""
        return self.hamilton[name].type if name in self.hamilton else Any

    def type_name(self, name: str) -> str:
        """A node's type as a person would write it."""
        return type_name(self.hamilton[name].type)

    def default(self, name: str) -> Any:
        """The default of an input that need not be given: of the first function that reads it."""
        values = [each.default_parameter_values for each in self.hamilton[name].depended_on_by]
        return next((each[name] for each in values if name in each), None)

    def doc(self, name: str) -> str:
        """The first line of a node's documentation."""
        return (self.hamilton[name].documentation or "").strip().partition("\n")[0]

    def dynamic(self, names: Collection[str]) -> bool:
        """Whether one of the nodes is `Parallelizable` or `Collect`."""
        return bool(self.roles) and not self.roles.keys().isdisjoint(names)

    @functools.cached_property
    def cache_behaviors(self) -> dict[str, str]:
        """How the cache treats each computed node."""
        return {
            name: cache_behavior(self.hamilton[name].tags, expands=self.roles.get(name) == "expand")
            for name, spec in self.nodes.items()
            if spec.call is not None
        }

    def _check_blocks(self) -> None:
        """Raise GraphError for shapes of `Parallelizable` and `Collect` that there are not."""
        if not self.roles:
            return
        plan = compile_plan(self.nodes, list(self.nodes), self._user_defined())
        ordered = [plan.names[slot] for slot in plan.order]
        kinds = {name: self.hamilton[name].input_types for name in ordered}
        check_blocks(
            {name: [source for source, _ in self.nodes[name].parameters] for name in ordered},
            {
                n: [s for s, (kind, _) in of.items() if _is(kind, Collect)]
                for n, of in kinds.items()
            },
            {name for name in ordered if _is(self.hamilton[name].type, Parallelizable)},
        )

    def _user_defined(self) -> list[str]:
        return [name for name, spec in self.nodes.items() if spec.call is None]

    def _find_repeated(self) -> set[str]:
        """The nodes that run once for each item, from a `Parallelizable` to its `Collect`."""
        found: set[str] = set()
        waiting = [name for name, role in self.roles.items() if role == "expand"]
        while waiting:
            name = waiting.pop()
            found.add(name)
            readers = [reader.name for reader in self.hamilton[name].depended_on_by]
            waiting += [name for name in readers if self.roles.get(name) != "collect"]
        return found

    @property
    def _collected(self) -> set[str]:
        """The nodes in blocks whose values a `Collect` reads."""
        inner = {name for name in self._repeated if self.roles.get(name) != "expand"}
        readers = {
            name: {reader.name for reader in self.hamilton[name].depended_on_by} for name in inner
        }
        return {n for n, of in readers.items() if any(self.roles.get(r) == "collect" for r in of)}

    quietly = Quiet

    # Planning -------------------------------------------------------------------------------

    def plan(
        self,
        final_vars: Sequence[str],
        inputs: Mapping[str, Any],
        overrides: Mapping[str, Any],
        *,
        strict: Collection[str] = (),
    ) -> Plan:
        """The plan for `final_vars` (all leaves if empty), cached by names.

        Names in `strict` must be inputs of the DAG. Raises UnknownNameError and InputError.
        """
        key = (tuple(final_vars), tuple(inputs), tuple(overrides), tuple(strict))
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(final_vars, inputs, overrides, strict)
        return plan

    def _plan(
        self,
        final_vars: Sequence[str],
        inputs: Mapping[str, Any],
        overrides: Mapping[str, Any],
        strict: Collection[str],
    ) -> Plan:
        where = f" of pipeline '{self.flow}'"
        wanted = list(final_vars) or self.leaves
        known = {*self.nodes, *inputs}
        for name in wanted:
            if name not in known:
                self._check_variants([name])
                raise UnknownNameError("final variable", name, self.nodes, where=where)
            if name in self._repeated:
                raise InputError(
                    f"'{name}'{where} has a value for each item of its Parallelizable, so it "
                    "cannot be a final variable; ask for the node that collects them"
                )
        for name in overrides:
            if name not in self.nodes:
                raise UnknownNameError("override", name, self.nodes, where=where)
            if name in self._repeated and name in self._collected:
                raise InputError(
                    f"'{name}'{where} has a value for each item of its Parallelizable, so no one "
                    "value can replace what is collected; override the Parallelizable (a list), or "
                    "the node that collects"
                )
        for name in strict:
            self._check_known_input(name, wanted, where)
        plan = compile_plan(self.nodes, wanted, {*inputs, *self.config, *overrides})
        if plan.missing:
            self._check_variants(plan.missing)
            raise InputError(self._missing(plan.missing))
        return plan

    def _check_known_input(self, name: str, wanted: Sequence[str], where: str) -> None:
        if name in self.config:
            raise InputError(f"input '{name}'{where} is set by its configuration already")
        if name in self.nodes and self.nodes[name].call is not None:
            raise InputError(
                f"'{name}'{where} is computed by a function, not an input; "
                f"use overrides={{'{name}': ...}} to replace its value"
            )
        if name not in self.nodes and name not in wanted:
            raise UnknownNameError("input", name, self.inputs, where=where)

    def _missing(self, names: Iterable[str]) -> str:
        lines = [
            f"  {name}: {self.type_name(name)} (for {', '.join(self._readers(name))})"
            for name in names
        ]
        return f"pipeline '{self.flow}' needs inputs that were not given:\n" + "\n".join(lines)

    def _check_variants(self, names: Iterable[str]) -> None:
        """Raise InputError for nodes that other values of the configuration would make."""
        texts = (config_values.no_variant(name, self.config, self.modules) for name in names)
        if problems := [text for text in texts if text]:
            raise InputError(f"pipeline '{self.flow}': {'; '.join(problems)}")

    def check_config(self, keys: Collection[str]) -> None:
        """Raise UnknownNameError for a key of the configuration that nothing looks at."""
        read = self.read
        for key in config_values.unknown_keys(keys, self.modules, read):
            if not self._replaces_node(key):
                valid, where = (
                    config_values.keys(self.modules, self.inputs),
                    f" of pipeline '{self.flow}'",
                )
                raise UnknownNameError("config key", key, valid, where=where)

    def _replaces_node(self, key: str) -> bool:
        """Return whether without the key the DAG has a node of that name."""
        others = {name: value for name, value in self.config.items() if name != key}
        try:
            without = Graph(
                self.flow,
                self.modules,
                others,
                adapters=self.adapters,
                materializers=self.materializers,
                allow_overrides=self.allow_overrides,
            )
        except GraphError:
            return True  # it does something
        return key in without.nodes

    @property
    def read(self) -> list[str]:
        """The names that nodes read, sorted."""
        return sorted({name for spec in self.nodes.values() for name, _ in spec.parameters})

    def _readers(self, name: str) -> list[str]:
        specs = self.nodes.values()
        return [s.name for s in specs if any(name == parameter for parameter, _ in s.parameters)]

    def converted(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """Inputs as the annotations of the functions that read them want them, and, by name, what
        is wrong with those that do not fit.
        """
        made, wrong = dict(inputs), {}
        for name, value in inputs.items():
            try:
                made[name] = self._converted(name, value)
            except MisfitError as error:
                wrong[name] = error.told(name)
        return made, wrong

    def _converted(self, name: str, value: Any) -> Any:
        to = self._converters.get(name)
        if to is None:
            to = self._converters[name] = self._converter(name)
        if value is None and name in self.hamilton and self._has_default_none(name):
            return None
        if not self.adapter_set.does_method("do_validate_input", is_async=False):
            return convert(value, to)
        return self._validated(name, value, to)

    def _converter(self, name: str) -> Converter:
        spec = self.nodes.get(name)
        is_input = spec is not None and spec.call is None and name not in self.config
        return converter(self.hamilton[name].type if is_input else Any)

    def _has_default_none(self, name: str) -> bool:
        """Return whether a function that reads the input has None as its default."""
        readers = self.hamilton[name].depended_on_by
        return any(each.default_parameter_values.get(name, ...) is None for each in readers)

    def _validated(self, name: str, value: Any, to: Converter) -> Any:
        """An adapter that validates inputs has the last word."""
        with contextlib.suppress(MisfitError):
            value = convert(value, to)
        if name not in self.hamilton or value is None:
            return value
        kind = self.hamilton[name].type
        if not self.adapter_set.call_lifecycle_method_sync(
            "do_validate_input", node_type=kind, input_value=value
        ):
            raise MisfitError(kind, value)
        return value

    def misfits(self, wrong: Iterable[str]) -> InputError:
        """The error for inputs that do not fit their annotations."""
        text = "\n".join(f"  {each}" for each in wrong)
        return InputError(f"inputs of the wrong type for pipeline '{self.flow}':\n{text}")

    @functools.cached_property
    def adapted(self) -> Adapters:
        """The adapters and what they can do."""
        known = self.adapter_set
        return Adapters(
            flow=self.flow,
            known=known,
            function_graph=self._function_graph,
            executes=_executes(known),
            awaits="do_node_execute" in known.async_methods,
            elsewhere=known.does_method("do_remote_execute", is_async=False),
            expanders=frozenset(n for n, role in self.roles.items() if role == "expand"),
            collects=self._collects(),
            calls={name: spec.call for name, spec in self.nodes.items()},
        )

    def _collects(self) -> dict[str, str]:
        """The `Parallelizable` of each node that collects one."""
        found: dict[str, str] = {}
        for expander in (name for name, role in self.roles.items() if role == "expand"):
            waiting = [expander]
            while waiting:
                for reader in self.hamilton[waiting.pop()].depended_on_by:
                    if self.roles.get(reader.name) == "collect":
                        found[reader.name] = expander
                    else:
                        waiting.append(reader.name)
        return found

    def hooks(self, spec: Callable[[], GraphSpec], plan: Plan) -> RunHooks | None:
        """The adapters' hooks for one run of a plan; None where there is no adapter."""
        if not self.adapters:
            return None
        dynamic = self.dynamic(plan.names[plan.given :])
        return RunHooks(self.adapted, spec, dynamic=dynamic)

    async def prepare(self) -> None:
        """Initialise the adapters that ask for it and tell async ones of the graph, once."""
        if not self._told:
            self._told = True
            await self.adapter_set.ainit()
            for adapter in self.adapter_set.async_hooks.get("post_graph_construct", ()):
                await adapter.post_graph_construct(
                    graph=self._function_graph, modules=list(self.modules), config=self.config
                )


def _executes(adapters: Any) -> bool:
    """Return whether an adapter calls nodes its own way. Hamilton's former defaults only call."""
    methods = {**adapters.sync_methods, **adapters.async_methods}
    default = base.SimplePythonDataFrameGraphAdapter.execute_node
    found = methods.get("do_node_execute", ())
    return any(getattr(type(each), "execute_node", None) is not default for each in found)


def _is(kind: Any, generic: Any) -> bool:
    return kind is generic or typing.get_origin(kind) is generic


def _is_static(call: Any) -> bool:
    """Whether a node is a value in the `config` or `inputs` of a `@subdag`."""
    code = getattr(layers(call)[-1], "__code__", None)
    return code is not None and code.co_qualname == "create_static_node.<locals>.node_fn"
