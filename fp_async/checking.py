"""`flowerpower check`: everything that can be found wrong in a project without running it."""

from __future__ import annotations

import time
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fp_async import backend, config, executors, schedule_entries, tracked_places
from fp_async.annotations import fits, type_name
from fp_async.callbacks import KINDS
from fp_async.errors import FlowerPowerError, InputError, MissingExtraError, suggestion
from fp_async.flow import Request
from fp_async.params import was_read

if TYPE_CHECKING:
    from fp_async.flow import Flow
    from fp_async.project import Project


class Problem(msgspec.Struct, frozen=True):
    """One finding: an error stops a run, a warning does not."""

    level: Literal["error", "warning"]
    where: str
    message: str


class Report(msgspec.Struct, frozen=True):
    """What `check` found, errors first; `pipelines` are those that were looked at."""

    pipelines: list[str]
    problems: list[Problem]

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.level == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.level == "warning"]


def check(project: Project) -> Report:
    """Validate the configuration, import the pipelines, build and plan every environment."""
    names = project.list()
    problems = list(_check_files(project.root))
    if not problems:
        told = _told(project.configuration)
        names = [name for name in names if name not in told]
    if not any(problem.where == "conf/pipelines.yml" for problem in problems):
        problems += _check_names(project.configuration, names)
        for name in names:
            problems += _check_pipeline(project, name)
        problems += _check_schedules(project)
        problems += _check_triggers(project)
        problems += _check_tracker(project, names)
    problems += _check_places(project.root)
    return Report(names, sorted(dict.fromkeys(problems), key=lambda p: (p.level, p.where)))


def _check_files(root: Path) -> Iterator[Problem]:
    for file in config.FILES:
        try:
            config.read(root, file)
        except FlowerPowerError as error:
            yield Problem("error", f"conf/{file}", str(error))


def _check_places(root: Path) -> Iterator[Problem]:
    """Whether data store and event broker can be what they are said to be; connects to none."""
    where = "conf/scheduler.yml"
    try:
        backend.check(root, config.read(root, "scheduler.yml"))
    except MissingExtraError as error:  # where it runs, it may be there
        yield Problem("warning", where, str(error))
    except FlowerPowerError as error:
        yield Problem("error", where, str(error))


def _told(file: config.PipelinesFile) -> set[str]:
    """Modules that only have functions that are told how runs went: no pipelines."""
    found: set[str] = set()
    for entries in (file.run or {}).values():
        for settings in (entries or {}).values():
            for kind in KINDS:
                names = getattr(settings, f"on_{kind}", None) or ()
                paths = (names,) if isinstance(names, str) else names
                found |= {path.partition(":")[0] for path in paths}
    return found - {*(file.run or {}), *(file.params or {})}


def _check_names(file: config.PipelinesFile, names: list[str]) -> Iterator[Problem]:
    for section, entries in (("params", file.params), ("run", file.run)):
        for name in entries or {}:
            if name not in names:
                text = f"there is no pipelines/{name}.py{suggestion(name, names)}"
                yield Problem("warning", f"{section}.{name}", text)


def _check_pipeline(project: Project, name: str) -> Iterator[Problem]:
    environments = (project.configuration.run or {}).get(name) or {}
    for environment in dict.fromkeys((config.DEFAULT_ENVIRONMENT, *environments)):
        where = f"run.{name}.{environment}"
        try:
            flow = project.flow(name, environment=environment)
            yield from _check_flow(flow, where)
            for text in project.flows.hearing(name, environment).problems:
                yield Problem("error", where, text)
        except FlowerPowerError as error:
            yield Problem("error", where, str(error))


def _check_schedules(project: Project) -> Iterator[Problem]:
    for where, make in schedule_entries.entries_of(project.flows, time.time()):
        try:
            make()
        except FlowerPowerError as error:
            yield Problem("error", where, str(error))


def _check_triggers(project: Project) -> Iterator[Problem]:
    from fp_async import gateway_serving  # with the MQTT client, which nothing else here needs

    try:
        file = config.read(project.root, "mqtt.yml")
    except FlowerPowerError:
        return  # told with the other files
    for error in gateway_serving.mistakes(project.flows, file):
        yield Problem("error", "conf/mqtt.yml", str(error))


def _check_tracker(project: Project, names: list[str]) -> Iterator[Problem]:
    where = "conf/tracker.yml"
    try:
        file = config.read(project.root, "tracker.yml")
    except FlowerPowerError:
        return  # told with the other files
    for place, text in tracked_places.problems(file):
        yield Problem("error", where, str(config.mistake(project.root, "tracker.yml", place, text)))
    for name in file.pipeline or {}:
        if name not in names:
            text = f"there is no pipelines/{name}.py{suggestion(name, names)}"
            yield Problem("warning", f"{where}: pipeline.{name}", text)
    for name in names:
        environments = (project.configuration.run or {}).get(name) or {}
        wanted = any(settings and settings.with_tracker for settings in environments.values())
        if wanted and (lack := tracked_places.missing(file, name)) is not None:
            yield Problem("error", where, lack)


def _check_flow(flow: Flow, where: str) -> Iterator[Problem]:
    wanted = flow.settings.final_vars or ()
    final_vars = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    executor = config.ExecutorSettings()
    try:
        executor = executors.resolve(flow.settings.executor)
    except MissingExtraError as error:  # where it runs, it may be there
        yield Problem("warning", where, str(error))
    try:
        flow.plan(Request({}, final_vars, {}, executor, None, None))
    except InputError as error:
        yield Problem("warning", where, str(error))
    unused = set(flow.configured) - flow.graph.nodes.keys()
    for name in sorted(unused):
        text = f"no node reads this input{suggestion(name, flow.graph.inputs)}"
        yield Problem("warning", f"{where}.inputs.{name}", text)
    yield from _check_params(flow)


def _check_params(flow: Flow) -> Iterator[Problem]:
    for function, values in flow.params.items():
        where = f"params.{flow.name}.{function}"
        if function not in flow.functions:
            text = f"the pipeline has no such function{suggestion(function, flow.functions)}"
            yield Problem("warning", where, text)
            continue
        read = flow.namespace.params[function]
        hints = _hints(flow, function)
        for argument, value in config.given(values).items():
            if argument in hints or not was_read(read, argument):
                yield from _check_param(f"{where}.{argument}", argument, value, hints)


def _hints(flow: Flow, function: str) -> dict[str, Any]:
    for module in flow.graph.modules:
        if function in vars(module):
            return typing.get_type_hints(vars(module)[function])
    return {}


def _check_param(
    where: str, argument: str, value: Any, hints: Mapping[str, Any]
) -> Iterator[Problem]:
    if argument not in hints:
        valid = [name for name in hints if name != "return"]
        yield Problem("warning", where, f"no such argument{suggestion(argument, valid)}")
    elif not fits(value, hints[argument]):
        wanted, got = type_name(hints[argument]), type(value).__name__
        yield Problem("warning", where, f"the function says {wanted}, the value is {got}")
