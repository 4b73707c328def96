"""A pipeline's functions as Hamilton's DAG, described in values that the rest understands.

This module and `drivers.py` are the only importers of Hamilton. Hamilton gives functions,
decorators, graph, types and hooks; the execution is ours (`plan.py`, `execution.py`), except
for what `drivers.py` hands to Hamilton's own drivers.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fp_async.annotations import fits, shown, type_name
from fp_async.build_errors import UNKNOWN_FRAME, explain
from fp_async.errors import (
    FlowerPowerError,
    GraphError,
    InputError,
    PipelineImportError,
    UnknownNameError,
)
from fp_async.hooks import RunHooks
from fp_async.plan import NodeSpec, Plan, compile_plan, find_cycle
from fp_async.wrappers import is_async, layers, uses_early

if TYPE_CHECKING:
    from fp_async.modules import Namespace

# Autoloading imports every data library that is installed (3 to 5 s, 300 MB); we load the
# extensions of the libraries that a pipeline imports. Set before the import, as Hamilton asks.
os.environ.setdefault("HAMILTON_AUTOLOAD_EXTENSIONS", "0")
try:
    from hamilton import driver, node, registry
    from hamilton.function_modifiers import value as _hamilton_value
except ImportError as error:
    raise FlowerPowerError(
        f"Hamilton is broken or missing ({error}). Upgrading from sf-hamilton deletes files that "
        "both packages share; mend it with: pip install --force-reinstall --no-deps "
        '"apache-hamilton>=1.90,<2"'
    ) from error

EXTENSIONS = {
    "pandas": ("pandas",),
    "polars": ("polars", "polars_lazyframe"),
    "numpy": ("numpy",),
    "dask": ("dask",),
    "geopandas": ("geopandas",),
    "pyspark": ("pyspark_pandas", "spark"),
    "vaex": ("vaex",),
    "ibis": ("ibis",),
    "matplotlib": ("matplotlib",),
    "plotly": ("plotly",),
    "xgboost": ("xgboost",),
    "lightgbm": ("lightgbm",),
    "sklearn": ("sklearn_plot",),
    "datasets": ("huggingface",),
    "pydantic": ("pydantic",),
    "mlflow": ("mlflow",),
    "kedro": ("kedro",),
    "dlt": ("dlt",),
    "yaml": ("yaml",),
}

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


def load_extensions(libraries: Iterable[str]) -> None:
    """Load Hamilton's extensions for those of the `libraries` (import names) that have one."""
    for library in EXTENSIONS.keys() & set(libraries):
        for extension in EXTENSIONS[library]:
            _load_extension(extension)


def load_all_extensions() -> None:
    """Load the extensions of every library that this process has imported, by whatever way."""
    load_extensions(tuple(sys.modules))


def load_modules(namespace: Namespace, names: Sequence[str]) -> list[ModuleType]:
    """Import a pipeline's modules, with the Hamilton extensions that their decorators need.

    Which ones is read from the sources beforehand; a library that only an installed package
    imports shows when a decorator does not know its types, and then the import is tried again.
    """
    try:
        return [namespace.load(name) for name in names]
    except PipelineImportError as error:
        if UNKNOWN_FRAME not in str(error):
            raise
    load_all_extensions()
    return [namespace.load(name) for name in names]


@functools.cache
def _load_extension(name: str) -> None:
    try:
        registry.load_extension(name)
    except (ImportError, NotImplementedError):
        logging.getLogger("fp_async").debug("no Hamilton extension %s", name, exc_info=True)


class Graph:
    """The DAG of one pipeline for one set of modules, configuration and adapters.

    Raises GraphError where the functions make no valid DAG.
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
    ) -> None:
        self.flow = flow
        self.modules = tuple(modules)
        self.config = dict(config)
        self.adapters = tuple(adapters)
        self.materializers = tuple(materializers)
        self.allow_overrides = allow_overrides
        built = self._build()
        self.function_graph = built.graph
        self.adapter_set = built.adapter
        self.hamilton: dict[str, Any] = built.graph.nodes
        if not any(not n.user_defined for n in self.hamilton.values()):
            raise GraphError(f"pipeline '{flow}' has no functions that could be nodes")
        self.nodes = {name: self._spec(node_) for name, node_ in self.hamilton.items()}
        cycle = find_cycle(self.nodes)
        if cycle:
            raise GraphError(f"pipeline '{flow}' has a cycle: {' -> '.join(cycle)}")
        special = {node.NodeType.EXPAND: "expand", node.NodeType.COLLECT: "collect"}
        kinds = {name: node_.node_role for name, node_ in self.hamilton.items()}
        self.roles = {name: special[kind] for name, kind in kinds.items() if kind in special}
        self._repeated = self._find_repeated()
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._told = not adapters

    def builder(self) -> Any:
        """Hamilton's own builder with everything of this graph in it."""
        builder = driver.Builder().with_modules(*self.modules).with_config(self.config)
        if self.adapters:
            builder = builder.with_adapters(*self.adapters)
        if self.materializers:
            builder = builder.with_materializers(*self.materializers)
        return builder.allow_module_overrides() if self.allow_overrides else builder

    def _build(self) -> Any:
        try:
            with Quiet():
                return self.builder().build()
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
        return NodeSpec(node_.name, parameters, node_.callable, is_async(node_.callable))

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

    def type_name(self, name: str) -> str:
        """A node's type as a person would write it."""
        return type_name(self.hamilton[name].type)

    def doc(self, name: str) -> str:
        """The first line of a node's documentation."""
        return (self.hamilton[name].documentation or "").strip().partition("\n")[0]

    def dynamic(self, names: Collection[str]) -> bool:
        """Whether one of the nodes is `Parallelizable` or `Collect`."""
        return bool(self.roles) and not self.roles.keys().isdisjoint(names)

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
                raise UnknownNameError("final variable", name, self.nodes, where=where)
            if name in self._repeated:
                raise InputError(
                    f"'{name}'{where} has a value for each item of its Parallelizable, so it "
                    "cannot be a final variable; ask for the node that collects them"
                )
        for name in overrides:
            if name not in self.nodes:
                raise UnknownNameError("override", name, self.nodes, where=where)
        for name in strict:
            self._check_known_input(name, wanted, where)
        plan = compile_plan(self.nodes, wanted, {*inputs, *self.config, *overrides})
        if plan.missing:
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

    def _readers(self, name: str) -> list[str]:
        specs = self.nodes.values()
        return [s.name for s in specs if any(name == parameter for parameter, _ in s.parameters)]

    def check_types(self, inputs: Mapping[str, Any], names: Iterable[str]) -> None:
        """Compare the inputs `names` with the annotations of the functions that read them."""
        wrong = [
            f"  {name}: expected {self.type_name(name)}, got {shown(inputs[name])}"
            for name in names
            if name in inputs and name in self.hamilton and not self._fits(name, inputs[name])
        ]
        if wrong:
            text = "\n".join(wrong)
            raise InputError(f"inputs of the wrong type for pipeline '{self.flow}':\n{text}")

    def _fits(self, name: str, value: Any) -> bool:
        kind = self.hamilton[name].type
        adapters = self.adapter_set
        if value is None:
            return True
        if adapters.does_method("do_validate_input", is_async=False):
            return bool(
                adapters.call_lifecycle_method_sync(
                    "do_validate_input", node_type=kind, input_value=value
                )
            )
        return fits(value, kind)

    def wants_driver(self) -> bool:
        """Whether an adapter needs Hamilton's own driver (it executes nodes elsewhere)."""
        return bool(self.adapter_set.does_method("do_remote_execute", is_async=False))

    def hooks(self) -> RunHooks | None:
        """The adapters' hooks for one run; None where there is no adapter."""
        return (
            RunHooks(self.adapter_set, self.function_graph, str(uuid.uuid4()))
            if (self.adapters)
            else None
        )

    async def prepare(self) -> None:
        """Initialise the adapters that ask for it and tell async ones of the graph, once."""
        if not self._told:
            self._told = True
            await self.adapter_set.ainit()
            for adapter in self.adapter_set.async_hooks.get("post_graph_construct", ()):
                await adapter.post_graph_construct(
                    graph=self.function_graph, modules=list(self.modules), config=self.config
                )


def _is_static(call: Any) -> bool:
    """Whether a node is a value in the `config` or `inputs` of a `@subdag`."""
    code = getattr(layers(call)[-1], "__code__", None)
    return code is not None and code.co_qualname == "create_static_node.<locals>.node_fn"
