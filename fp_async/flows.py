"""The pipelines of one folder, loaded: modules, DAGs and plans kept between runs.

What a project, a worker's child process and a worker inside an application run pipelines with.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fp_async import arguments, callbacks, executors, scaffold
from fp_async import config as configs
from fp_async.callbacks import Callback, Callbacks
from fp_async.child import Children
from fp_async.errors import FlowerPowerError, UnknownNameError, UsageError
from fp_async.flow import Flow, Progress, Request

if TYPE_CHECKING:
    from fp_async.modules import Namespace

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
        self.alone = False  # whether the process is there for these pipelines alone
        self.callbacks = callbacks.NONE  # which hear of all of them, before the configured ones
        self._flows: OrderedDict[Hashable, Flow] = OrderedDict()
        self._stamps: dict[Path, tuple[int, int]] = {}
        self._looked = float("-inf")
        self._known: set[str] = set()  # names of pipelines, as of the latest refresh
        self._file: configs.PipelinesFile | None = None
        self._settings: dict[tuple[str, str], configs.RunSettings] = {}
        self._hearing: dict[tuple[str, str], Hearing] = {}
        self._children: weakref.WeakKeyDictionary[_Loop, dict[int | None, Children]] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.RLock()
        weakref.finalize(self, _unload, self._flows).atexit = False

    def __len__(self) -> int:
        return len(self._flows)

    def names(self) -> list[str]:
        """The names of the pipelines, sorted."""
        return scaffold.pipeline_names(self.root)

    async def aclose(self) -> None:
        """End the child processes that this event loop's runs have used."""
        for children in self._children.pop(asyncio.get_running_loop(), {}).values():
            children.close()

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
                self._flows.popitem(last=False)[1].namespace.unload()
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
        from fp_async import dag, modules
        from fp_async.params import Params as PipelineParams
        from fp_async.params import check_names

        values = configs.merged(self.parameters(name, environment), extra_params, 2)
        settings = self.settings(name, environment)
        folder = self.root / "pipelines"
        names = self._modules(name, environment, folder)
        libraries = modules.libraries(folder, names)
        dag.load_extensions(libraries)
        params = PipelineParams(name, values)
        namespace = modules.Namespace(folder, name, params, identity=repr(values))
        try:
            graph = dag.Graph(
                name,
                dag.load_modules(namespace, names),
                configs.given(configs.merged(settings.config or {}, extra_config)),
                adapters=adapters,
                materializers=materializers,
                allow_overrides=bool(settings.module_overrides),
            )
            flow = Flow(name, folder, settings, namespace, graph, values, libraries)
            check_names(extra_params, flow.functions, graph.modules, params)
        except BaseException:
            namespace.unload()
            raise
        return flow

    def _modules(self, name: str, environment: str, folder: Path) -> list[str]:
        """Those of a pipeline. Raises UnknownNameError for one that is not there."""
        from fp_async import modules

        names = self.settings(name, environment).modules or [name]
        for module in names:
            if not modules.exists(folder, module):
                where = f" in {folder} (run.{name}.{environment}.modules)"
                raise UnknownNameError("module", module, self.names(), where=where)
        return names

    def parameters(self, name: str, environment: str) -> dict[str, Any]:
        """The configured parameters of a pipeline in an environment, by function."""
        self.require(name)
        base = (self.configuration.params or {}).get(name) or {}
        over = self.settings(name, environment).params or {}
        return configs.merged(base, over, 2)

    def settings(self, name: str, environment: str) -> configs.RunSettings:
        """`run.<name>.<environment>` of the configuration. Raises UnknownNameError."""
        found = self._settings.get((name, environment))
        if found is None:
            found = configs.run_settings(self.configuration, name, environment)
            self._settings[name, environment] = found
        return found

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
        from fp_async.params import Params as PipelineParams

        params = PipelineParams(name, self.parameters(name, environment))
        settings = self.settings(name, environment)
        namespace = modules.Namespace(self.root / "pipelines", name, params, identity="callbacks")
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
        names = self.names()
        self._known.update(names)
        if name not in names:
            raise UnknownNameError("pipeline", name, names, where=f" in {self.root / 'pipelines'}")

    @property
    def configuration(self) -> configs.PipelinesFile:
        """`conf/pipelines.yml`, read once. Raises ConfigError."""
        if self._file is None:
            self._file = configs.read(self.root, "pipelines.yml")
        return self._file

    def reload(self) -> None:
        """Forget modules, DAGs and configuration; the next run reads the files again."""
        with self._lock:
            _unload(self._flows)
            self._flows.clear()
            self._known.clear()
            self._settings.clear()
            for hearing in self._hearing.values():
                hearing.namespace.unload()
            self._hearing.clear()
            self._file = None

    def refresh(self, within: float = 0.0) -> None:
        """Reload what was edited since it was loaded; nothing if that was looked at just now,
        `within` so many seconds.
        """
        from fp_async.modules import stamp

        clock = time.monotonic()
        if clock - self._looked < within:
            return
        self._looked = clock
        self._known.clear()
        conf = self.root / "conf" / "pipelines.yml"
        with self._lock:
            if self._stamps.get(conf, now := stamp(conf)) != now:
                self.reload()
            self._stamps[conf] = now
            _unload_changed(self._flows)
            _unload_changed(self._hearing)

    def request(
        self,
        flow: Flow,
        inputs: Mapping[str, Any] | None,
        final_vars: Sequence[str] | str | None,
        overrides: Mapping[str, Any] | None,
        executor: Any,
        timeout: float | None,
        progress: Progress | None,
    ) -> Request:
        """What a run asks for, with the flow's settings below what is given. Raises UsageError."""
        settings = flow.settings
        if progress is not None and not callable(progress):
            raise UsageError(f"progress is a function of one argument, not {progress!r}")
        return Request(
            inputs=arguments.mapping("inputs", inputs),
            final_vars=arguments.names("final_vars", final_vars or settings.final_vars),
            overrides=arguments.mapping("overrides", overrides),
            executor=executors.resolve(executor, settings.executor),
            timeout=settings.timeout if timeout is None else seconds(timeout),
            progress=progress,
        )

    async def run(self, flow: Flow, request: Request) -> Any:
        """Run once, with child processes where the executor asks for them."""
        if request.executor.type != "processpool":
            return await flow.run(request)
        children = self._pool(request.executor.max_workers)
        children.users += 1
        try:
            return await flow.run(request, children)
        finally:
            children.users -= 1
            if not children.users and not self.held:
                await self.aclose()

    def _pool(self, workers: int | None) -> Children:
        pools = self._children.setdefault(asyncio.get_running_loop(), {})
        if workers not in pools:
            pools[workers] = Children(workers)
        return pools[workers]


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
        loaded.pop(key).namespace.unload()


def _unload(flows: OrderedDict[Hashable, Flow]) -> None:
    for flow in flows.values():
        flow.namespace.unload()
