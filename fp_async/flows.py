"""The pipelines of one folder, loaded: modules, DAGs and plans kept between runs.

What a project, a worker's child process and a worker inside an application run pipelines with.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from fp_async import callbacks, config_files, config_values, executors, param_types, scaffold
from fp_async import config as configs
from fp_async.callbacks import Callback, Callbacks
from fp_async.child import Children
from fp_async.config_files import Trouble
from fp_async.errors import (
    FileAccessError,
    FlowerPowerError,
    GraphError,
    MisconfiguredError,
    PipelineImportError,
    UnknownEntryError,
    UnknownNameError,
    UsageError,
)
from fp_async.flow import Flow, Progress, Request
from fp_async.param_names import Known
from fp_async.runtime.imports import imported
from fp_async.values import arguments

if TYPE_CHECKING:
    from fp_async.modules import Library, Namespace

_KEPT_FLOWS = 64
_Loop = asyncio.AbstractEventLoop
Params = Mapping[str, Mapping[str, Any]]


class Hearing(NamedTuple):
    """What is loaded of a pipeline's configured functions."""

    namespace: Namespace
    callbacks: Callbacks
    problems: list[str]


class Flows:
    """The pipelines below `root`. May be used from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.held = False  # whether child processes are kept after the last run
        self._patience: float | None = 30.0  # seconds that child processes of nodes get to end
        self.alone = False  # whether the process is there for these pipelines alone
        self.callbacks: Callbacks = (
            callbacks.NONE
        )  # which hear of all of them, before the configured ones
        self._flows: OrderedDict[Hashable, Flow] = OrderedDict()
        self._looked = float("-inf")
        self._known: set[str] = set()  # names of pipelines, as of the latest refresh
        self._folder: object = None  # its stamp, when what follows was found
        self._sound: set[tuple[str, str]] = set()  # those without trouble, likewise
        self.files: config_files.Files = config_files.of(root)
        self._read: configs.Pipelines | None = None
        self._variables = 0  # the version of those that it was read with
        self._settings: dict[tuple[str, str], configs.RunSettings] = {}
        self._hearing: dict[tuple[str, str], Hearing] = {}
        self._children: weakref.WeakKeyDictionary[_Loop, dict[int | None, Children]] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.RLock()
        self._library: Library | None = None
        weakref.finalize(self, _unload, self._flows, self._hearing).atexit = False

    def __len__(self) -> int:
        return len(self._flows)

    def names(self) -> list[str]:
        """The names of the pipelines, sorted: the modules that are configured, or that are part of
        no other: none imports them, and no entry names them as a module or for a function.
        """
        modules = scaffold.pipeline_names(self.root)
        try:
            pipelines = self.pipelines
        except FlowerPowerError:  # told by what reads an entry
            return modules
        configured = {name for section in pipelines.named.values() for name in section}
        parts = self.library.imported_by_others() | _named(pipelines.document.raw(("run",)))
        return [name for name in modules if name in configured or name not in parts]

    async def aclose(self) -> None:
        """End the child processes that this event loop's runs have used."""
        await self._close_pools(self._patience)

    async def _close_pools(self, within: float | None) -> None:
        pools = self._children.pop(asyncio.get_running_loop(), {}).values()
        await asyncio.gather(*(children.close(within) for children in pools))

    async def prepared(self) -> None:
        """Import Hamilton, once in a process, while the event loop goes on."""
        await imported("fp_async.dag")

    def flow(
        self,
        name: str,
        *,
        environment: str = configs.DEFAULT_ENVIRONMENT,
        config: Mapping[str, Any] | None = None,
        params: Params | None = None,
        adapters: Sequence[Any] = (),
        materializers: Sequence[Any] = (),
    ) -> Flow:
        """The pipeline, loaded; cached as long as its arguments can be compared.

        Raises UsageError for arguments of another type, and what is wrong with the pipeline.
        """
        asked = (
            arguments.text("the name of a pipeline", name),
            arguments.text("environment", environment),
            arguments.mapping("config", config),
            arguments.nested("params", params),
            arguments.several("adapters", adapters),
            arguments.several("materializers", materializers),
        )
        try:
            key = _key(*asked)
        except TypeError:  # a value that cannot be hashed: build it anew
            return self._load(*asked)
        with self._lock:
            if key in self._flows:
                self._flows.move_to_end(key)
                return self._flows[key]
            flow = self._load(*asked)
            flow.kept = True
            if self.alone and not gc.get_freeze_count():
                gc.freeze()  # pandas and its like: going through them takes 50 ms each time
            self._flows[key] = flow
            if len(self._flows) > _KEPT_FLOWS:
                self._flows.popitem(last=False)[1].namespace.release()
            return flow

    def _load(
        self,
        name: str,
        environment: str,
        extra_config: Mapping[str, Any],
        extra_params: Params,
        adapters: Sequence[Any],
        materializers: Sequence[Any],
    ) -> Flow:
        from fp_async import dag

        configured = self.parameters(name, environment)
        values = configs.merged(configured, extra_params, 2)
        settings = self.settings(name, environment)
        folder = self.root / "pipelines"
        names = self._modules(name, environment, folder)
        guide = param_types.guide(extra_params, configured)
        namespace = self.library.namespace(name, values, names, guide)
        root = None if self.library.settled else self.root
        try:
            loaded = self._imported(namespace, names, name, environment, extra_params, root)
            known = self._parameters_of(name, namespace, loaded)
            known.check(extra_params)
            graph = dag.Graph(
                name,
                loaded,
                config_values.typed(configs.merged(settings.config or {}, extra_config), loaded),
                adapters=adapters,
                materializers=materializers,
                allow_overrides=bool(settings.module_overrides),
                root=root,
            )
            graph.check_config(extra_config)
            return Flow(name, folder, settings, namespace, graph, known, environment)
        except GraphError as error:
            namespace.release()
            if name in self.names():
                raise
            text = f"'{name}' is no pipeline, but a module that other ones use: {error}"
            raise GraphError(text) from error
        except BaseException:
            namespace.release()
            raise

    def _imported(
        self,
        namespace: Namespace,
        names: Sequence[str],
        name: str,
        environment: str,
        extra_params: Params,
        root: Path | None,
    ) -> list[ModuleType]:
        """The modules; where they cannot be imported with parameters that the pipeline does not
        know, that is why.
        """
        from fp_async import dag

        try:
            return dag.load_modules(namespace, names, root)
        except PipelineImportError as error:
            if extra_params:
                self._without(name, environment, error).check(extra_params)
            raise

    def _without(self, name: str, environment: str, error: PipelineImportError) -> Known:
        """What the pipeline knows without the parameters of a call; raises `error` where it
        cannot be imported without them, either.
        """
        try:
            return self.flow(name, environment=environment).known
        except FlowerPowerError:
            raise error from error.__cause__

    def _parameters_of(
        self, name: str, namespace: Namespace, loaded: Sequence[ModuleType]
    ) -> Known:
        """The parameters that the pipeline knows, those of all environments among them."""
        places = [("run", name, each, "params") for each in self.pipelines.environments(name)]
        found: dict[str, set[str]] = {}
        for params in (self.pipelines.raw(place) for place in (("params", name), *places)):
            for function, values in (params or {}).items():
                found.setdefault(function, set()).update(values or ())
        return Known(found, loaded, namespace.params, namespace.files)

    @property
    def library(self) -> Library:
        """The modules of the project in this process, which other projects there share."""
        if self._library is None:
            from fp_async import modules

            self._library = modules.library(self.root / "pipelines")
            self._library.refresh()  # another project may have loaded what was edited since
            self._library.users += 1
            weakref.finalize(self, _leave, self._library).atexit = False
        return self._library

    def settle(self, *, one_at_a_time: bool) -> None:
        """Make this process one for the project alone: in its folder, with the plain names of
        its modules. `one_at_a_time`: it makes one run after the other.
        """
        from fp_async import modules

        self._patience = None  # as Python itself waits, until a signal comes or a parent has enough
        os.chdir(self.root)
        modules.claim(self.root / "pipelines", one_at_a_time=one_at_a_time)

    def pooled(self) -> set[int]:
        """The child processes that are kept for nodes."""
        pools = [pool for pools in self._children.values() for pool in pools.values()]
        return {pid for pool in pools for pid in pool.idle()}

    def edited(self) -> bool:
        """Return whether code was edited, replaced or removed since this process has loaded it."""
        return self._library is not None and self._library.changed()

    def _modules(self, name: str, environment: str, folder: Path) -> list[str]:
        """Those of a pipeline. Raises UnknownNameError for one that is not there."""
        from fp_async import modules

        names = self.settings(name, environment).modules or [name]
        for module in names:
            if not modules.exists(folder, module):
                where = f" in {folder} (run.{name}.{environment}.modules)"
                raise UnknownEntryError("module", module, self.names(), where=where)
        return names

    def parameters(self, name: str, environment: str) -> dict[str, Any]:
        """The configured parameters of a pipeline in an environment, by function."""
        self.require(name)
        self.settings(name, environment)  # raises for an environment that there is not
        return self.pipelines.parameters(name, environment)

    def settings(self, name: str, environment: str) -> configs.RunSettings:
        """`run.<name>.<environment>` of the configuration. Raises UnknownNameError."""
        found = self._settings.get((name, environment))
        if found is None:
            found = self.pipelines.settings(name, environment)
            self._settings[name, environment] = found
        return found

    def trouble(self, name: str, environment: str) -> Trouble | None:
        """Why no job of the pipeline can begin in this process, as far as files show it."""
        try:
            if self.files.variables.exported:
                self.files.variables.check()
            if (name, environment) in self._sound:
                return None
            self.parameters(name, environment)
            self._modules(name, environment, self.root / "pipelines")
        except (UnknownNameError, MisconfiguredError, FileAccessError) as error:
            return Trouble(str(error), missing=type(error) is UnknownNameError)
        self._sound.add((name, environment))
        return None

    def hears(self, name: str, environment: str) -> list[callbacks.Kind]:
        """Of what some function wants to hear, by the configuration."""
        try:
            settings = self.settings(name, environment)
        except FlowerPowerError:
            return []  # whoever runs the pipeline says so
        return callbacks.heard(settings)

    def hearing(self, name: str, environment: str) -> Hearing:
        """The configured functions, loaded, and what is wrong with those that cannot be.

        Apart from the pipeline: they hear, too, that it cannot be imported.
        """
        with self._lock:
            found = self._hearing.get((name, environment))
            if found is None:
                found = self._hearing[name, environment] = self._load_hearing(name, environment)
            return found

    def _load_hearing(self, name: str, environment: str) -> Hearing:
        from fp_async import modules

        settings = self.settings(name, environment)
        values = self.parameters(name, environment)
        namespace = self.library.namespace(name, values)
        loaded: dict[callbacks.Kind, list[Callback]] = {kind: [] for kind in callbacks.KINDS}
        problems: list[str] = []
        for kind, found in loaded.items():
            where = f" (run.{name}.{environment}.on_{kind})"
            for path in _several(getattr(settings, f"on_{kind}")):
                try:
                    found.append(modules.function(namespace, path, where=where))
                except FlowerPowerError as error:  # the others are to hear of it all the same
                    problems.append(str(error))
        return Hearing(namespace, Callbacks(*map(tuple, loaded.values())), problems)

    def planned(self, flow: Flow, **options: Any) -> tuple[list[str], list[str]]:
        """The nodes that a run with these options would compute, and the final ones among them.

        Raises as `run` would.
        """
        defaults = dict.fromkeys(
            ("inputs", "final_vars", "overrides", "executor", "timeout", "progress")
        )
        plan = flow.plan(self.request(flow, **{**defaults, **options}))
        return [*plan.names[plan.given :]], [name for name, _ in plan.finals]

    def require(self, name: str) -> None:
        """Raises UnknownNameError where there is no such pipeline."""
        if arguments.text("the name of a pipeline", name) in self._known:
            return
        modules = scaffold.pipeline_names(self.root)
        self._known.update(modules)
        if name not in modules:
            where = f" in {self.root / 'pipelines'}"
            raise UnknownNameError("pipeline", name, self.names(), where=where)

    @property
    def pipelines(self) -> configs.Pipelines:
        """`conf/pipelines.yml`, looked at once. Raises MisconfiguredError, FileAccessError."""
        if self._read is None:
            self._read = self.files.pipelines()
            self._variables = self.files.variables.version
        return self._read

    def _outdated(self) -> bool:
        """Return whether the configuration is another one than that which was read."""
        if self._read is None:
            return False
        try:
            document = self.files.document("pipelines.yml")
        except FlowerPowerError:
            return True  # which is raised where it is used
        changed = self._variables != self.files.variables.version
        return changed or document is not self._read.document

    def reload(self) -> None:
        """Forget modules, DAGs and configuration; the next run reads the files again."""
        with self._lock:
            _unload(self._flows)
            self._flows.clear()
            self._known.clear()
            self._sound.clear()
            self._settings.clear()
            for hearing in self._hearing.values():
                hearing.namespace.release()
            self._hearing.clear()
            self._read = None
            if self._library is not None:
                self._library.refresh()

    def refresh(self, within: float = 0.0) -> None:
        """Reload what was edited since it was loaded; nothing if that was looked at just now,
        `within` so many seconds.
        """
        clock = time.monotonic()
        if clock - self._looked < within:
            return
        self._looked = clock
        with self._lock:
            self.refresh_configuration()
            _unload_changed(self._flows)
            _unload_changed(self._hearing)
            self.library.refresh()

    def refresh_configuration(self) -> None:
        """Reload all if the configuration was changed. Enough where no module was (`edited`)."""
        folder = config_files.stamp(self.root / "pipelines")
        if folder != self._folder:  # a pipeline may have come or gone
            self._folder = folder
            self._known.clear()
            self._sound.clear()
        if self._outdated():
            self.reload()

    def request(
        self,
        flow: Flow,
        inputs: Mapping[str, Any] | None,
        final_vars: Sequence[str] | str | None,
        overrides: Mapping[str, Any] | None,
        executor: Any,
        timeout: float | None,
        progress: Progress | None,
        cache: bool | str | Path | None = None,
    ) -> Request:
        """What a run asks for, with the flow's settings below what is given.

        Raises UsageError, InputError.
        """
        settings = flow.settings
        if progress is not None and not callable(progress):
            raise UsageError(f"progress is a function of one argument, not {progress!r}")
        if (
            cache is not None
            and not isinstance(cache, bool | Path)
            and not configs.is_folder(cache)
        ):
            raise UsageError(f"cache is True, False or a folder, not {cache!r}")
        return Request(
            inputs=flow.converted(arguments.mapping("inputs", inputs)),
            final_vars=arguments.names("final_vars", final_vars or settings.final_vars),
            overrides=arguments.mapping("overrides", overrides),
            executor=executors.resolve(executor, settings.executor),
            timeout=settings.timeout if timeout is None else seconds(timeout),
            progress=progress,
            cache=cache if cache is None or isinstance(cache, bool) else str(cache),
        )

    async def run(self, flow: Flow, request: Request) -> Any:
        """Run once, with child processes where the executor asks for them."""
        if request.executor.type != "processpool":
            return await flow.run(request)
        children = self._pool(request.executor.max_workers)
        children.users += 1
        within = self._patience
        try:
            return await flow.run(request, children)
        except asyncio.CancelledError:
            within = 0.0
            raise
        finally:
            children.users -= 1
            if not children.users and not self.held:
                await self._close_pools(within)

    def _pool(self, workers: int | None) -> Children:
        pools = self._children.setdefault(asyncio.get_running_loop(), {})
        if workers not in pools:
            pools[workers] = Children(workers)
        return pools[workers]


def _named(run: Any) -> set[str]:
    """The modules that entries of `run` name: `modules`, and those of functions that are told."""
    found: set[str] = set()
    for name, entries in (run if isinstance(run, dict) else {}).items():
        for entry in (entries if isinstance(entries, dict) else {}).values():
            if isinstance(entry, dict):
                found |= {str(each) for each in entry.get("modules") or ()} - {name}
                told = [entry.get(f"on_{kind}") for kind in callbacks.KINDS]
                paths = [str(each) for names in told for each in _several(names)]
                found |= {path.partition(":")[0] for path in paths}
    return {name.partition(".")[0] for name in found}


def _several(names: list[str] | str | None) -> Sequence[str]:
    return (names,) if isinstance(names, str) else names or ()


def seconds(timeout: float) -> float:
    """A timeout that is one. Raises UsageError."""
    if not isinstance(timeout, int | float) or not 0 < timeout < configs.FOREVER:
        raise UsageError(f"timeout is a number of seconds, more than 0, not {timeout!r}")
    return timeout


def _key(
    name: str,
    environment: str,
    config: Mapping[str, Any],
    params: Params,
    adapters: Sequence[Any],
    materializers: Sequence[Any],
) -> Hashable:
    objects = (tuple(map(id, adapters)), tuple(map(id, materializers)))  # the flow holds them
    given = (_frozen(config), _frozen(params)) if config or params else ()
    return (name, environment, given, *objects)


def _frozen(value: Any) -> Hashable:
    """A hashable image of plain data; raises TypeError for what has none."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return tuple((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    hash(value)
    return (type(value), value)


def _unload_changed(loaded: dict[Any, Any]) -> None:
    for key in [key for key, each in loaded.items() if each.namespace.changed()]:
        loaded.pop(key).namespace.release()


def _unload(*loaded: Mapping[Any, Flow | Hearing]) -> None:
    for each in (each for held in loaded for each in held.values()):
        each.namespace.release()


def _leave(library: Library) -> None:
    library.users -= 1
