"""`flowerpower check`: everything that can be found wrong in a project without running it."""

from __future__ import annotations

import difflib
import time
import typing
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fp_async import (
    backend,
    config,
    config_files,
    config_values,
    executors,
    schedule_entries,
    tracked_places,
)
from fp_async.errors import (
    FlowerPowerError,
    InputError,
    MisconfiguredError,
    MissingExtraError,
    UnknownNameError,
    suggestion,
)
from fp_async.flow import Request
from fp_async.param_types import portable

if TYPE_CHECKING:
    from fp_async.config import Pipelines
    from fp_async.config_files import Files
    from fp_async.documents import Document
    from fp_async.flow import Flow
    from fp_async.project import Project
    from fp_async.values.mismatch import KeyPath


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
    files, names = project.flows.files, project.list()
    problems = [*_check_environment(project), *_check_files(files)]
    if not any(problem.where == _PIPELINES for problem in problems):
        pipelines = files.pipelines()
        problems += _check_names(pipelines, names)
        for name in names:
            problems += _check_pipeline(project, name)
        problems += _check_unused(pipelines, names)
        problems += _check_schedules(project)
        problems += _check_triggers(project)
        problems += _check_tracker(project, names)
    problems += _check_places(project.root)
    return Report(names, sorted(_once(problems), key=lambda p: (p.level, p.where)))


_PIPELINES = "conf/pipelines.yml"


def _once(problems: list[Problem]) -> list[Problem]:
    """Each problem, and each mistake with a place in a file, once: `prod` shares those of `dev`."""
    found: dict[object, Problem] = {}
    for problem in problems:
        placed = problem.message.startswith(("conf/", ".env"))
        found.setdefault(problem.message if placed else problem, problem)
    return list(found.values())


def _check_environment(project: Project) -> Iterator[Problem]:
    """What is wrong with `.env` and the like."""
    variables = project.flows.files.variables
    variables.look(lasting=False)
    try:
        variables.check()
    except FlowerPowerError as error:
        yield Problem("error", config_files.DOTENV, str(error))


def _check_files(files: Files) -> Iterator[Problem]:
    """Syntax and sections; the entries of conf/pipelines.yml are looked at by pipeline."""
    for file in config.FILES:
        try:
            document = files.document(file)
        except FlowerPowerError as error:
            yield Problem("error", f"conf/{file}", str(error))
            continue
        for place, kind in _entries(file, document):
            try:
                document.at(place, kind)
            except FlowerPowerError as error:
                yield Problem("error", f"conf/{file}: {'.'.join(map(str, place))}", str(error))


def _entries(file: str, document: Document) -> Iterator[tuple[KeyPath, Any]]:
    """(place, type) of what is read by itself, but for pipelines."""
    hints = typing.get_type_hints(config.FILES[file], include_extras=True)
    parts = {"tracker.yml": ("pipeline",), "mqtt.yml": ("run", "triggers")}.get(file, ())
    for key in document.data if file != "pipelines.yml" else ():
        if key not in parts:
            yield (key,), hints[key]
    for section in parts:
        kinds = [typing.get_args(kind) for kind in typing.get_args(hints[section])]
        kind = next(args[1] for args in kinds if args)
        for name in document.raw((section,)) or {}:
            yield (section, name), kind


def _check_places(root: Path) -> Iterator[Problem]:
    """Whether data store and event broker can be what they are said to be; connects to none."""
    where = "conf/scheduler.yml"
    try:
        backend.check(root)
    except MissingExtraError as error:  # where it runs, it may be there
        yield Problem("warning", where, str(error))
    except FlowerPowerError as error:
        yield Problem("error", where, str(error))


def _settings(pipelines: Pipelines) -> Iterator[tuple[str, str, config.RunSettings]]:
    """(pipeline, environment, settings) of all entries that are right."""
    for name in pipelines.named["run"]:
        with suppress(FlowerPowerError):
            for environment in pipelines.environments(name):
                with suppress(FlowerPowerError):
                    yield name, environment, pipelines.settings(name, environment)


def _check_names(pipelines: Pipelines, names: list[str]) -> Iterator[Problem]:
    for section, entries in pipelines.named.items():
        for name in entries:
            if name not in names:
                text = f"there is no pipelines/{name}.py{suggestion(name, names)}"
                yield Problem("warning", f"{section}.{name}", text)


def _check_unused(pipelines: Pipelines, names: list[str]) -> Iterator[Problem]:
    """Entries of pipelines that are not there: the rest of the file must be right all the same."""
    for name in {name for section in pipelines.named.values() for name in section} - set(names):
        yield from _check_entry(pipelines, name)


def _check_entry(pipelines: Pipelines, name: str) -> Iterator[Problem]:
    try:
        environments = pipelines.environments(name)
    except FlowerPowerError as error:
        yield Problem("error", f"run.{name}", str(error))
        return
    for environment in dict.fromkeys((config.DEFAULT_ENVIRONMENT, *environments)):
        for read in (pipelines.settings, pipelines.parameters):
            try:
                read(name, environment)
            except FlowerPowerError as error:
                yield Problem("error", f"run.{name}.{environment}", str(error))


def _check_pipeline(project: Project, name: str) -> Iterator[Problem]:
    try:
        environments = project.flows.pipelines.environments(name)
    except FlowerPowerError as error:
        yield Problem("error", f"run.{name}", str(error))
        return
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
    for entry in schedule_entries.entries_of(project.flows, time.time()):
        try:
            entry.make()
        except FlowerPowerError as error:
            yield Problem("error", entry.where, str(error))


def _check_triggers(project: Project) -> Iterator[Problem]:
    from fp_async import gateway_serving  # with the MQTT client, which nothing else here needs

    try:
        for error in gateway_serving.mistakes(project.flows):
            yield Problem("error", "conf/mqtt.yml", str(error))
        if text := gateway_serving.risk(project.flows):
            yield Problem("warning", "conf/mqtt.yml", text)
    except FlowerPowerError as error:
        yield Problem("error", "conf/mqtt.yml", str(error))


def _check_tracker(project: Project, names: list[str]) -> Iterator[Problem]:
    where, root = "conf/tracker.yml", project.root
    try:
        entries = list(project.flows.files.document("tracker.yml").raw(("pipeline",)) or {})
    except FlowerPowerError:
        return  # told with the other files
    for name in entries:
        if name not in names:
            text = f"there is no pipelines/{name}.py{suggestion(name, names)}"
            yield Problem("warning", f"{where}: pipeline.{name}", text)
    tracked = {name for name, _, found in _settings(project.flows.pipelines) if found.with_tracker}
    for name in dict.fromkeys((*entries, *names, "")):
        with suppress(MisconfiguredError):  # told with the other files
            file = tracked_places.settings(root, name)
            for place, text in tracked_places.problems(file):
                error = config_files.mistake(root, "tracker.yml", place, text)
                yield Problem("error", where, str(error))
            lack = tracked_places.missing(file, name) if name in tracked else None
            if name in names and lack is not None:
                yield Problem("error", where, lack)


def _check_flow(flow: Flow, where: str) -> Iterator[Problem]:
    wanted = flow.settings.final_vars or ()
    final_vars = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    executor = config.ExecutorSettings()
    try:
        executor = executors.resolve(flow.settings.executor)
    except MissingExtraError as error:  # where it runs, it may be there
        executor = executors.described(flow.settings.executor)
        yield Problem("warning", where, str(error))
    for name, text in flow.unfit.items():
        yield Problem("error", f"{where}.inputs.{name}", text)
    try:
        flow.plan(Request(dict.fromkeys(flow.unfit), final_vars, {}, executor, None, None))
    except InputError as error:
        yield Problem("warning", where, str(error))
    if refusal := _refusal(flow, final_vars, executor):
        yield Problem("error", where, refusal)
    unused = set(flow.configured) - flow.graph.nodes.keys()
    for name in sorted(unused):
        text = f"no node reads this input{suggestion(name, flow.graph.inputs)}"
        yield Problem("warning", f"{where}.inputs.{name}", text)
    yield from _check_retries(flow.settings, where)
    for place, text in flow.known.problems(portable(flow.namespace.params)):
        yield Problem("warning", f"params.{flow.name}.{place}", text)
    graph = flow.graph
    for key, text in config_values.problems(graph.config, graph.modules, graph.read):
        yield Problem("warning", f"{where}.config.{key}", text)


def _refusal(flow: Flow, final_vars: tuple[str, ...], executor: config.ExecutorSettings) -> str:
    """Why its executor cannot run it, whatever the inputs."""
    request = Request(dict.fromkeys(flow.graph.inputs), final_vars, {}, executor, None, None)
    with suppress(InputError, UnknownNameError):  # told already
        plan = flow.graph.plan(final_vars, request.inputs, {})
        return flow.refusal(plan, request)
    return ""


def _check_retries(settings: config.RunSettings, where: str) -> Iterator[Problem]:
    """Names of `retry.on` that no class of errors has: such a retry would never happen."""
    retries = {f"{where}.retry": settings.retry}
    for node, policy in (settings.nodes or {}).items():
        retries[f"{where}.nodes.{node}.retry"] = policy.retry
    wanted = [(place, name) for place, each in retries.items() if each for name in each.on]
    known = _errors() if wanted else []
    for place, name in wanted:
        only = config.Retry(on=[name])
        if not any(only.allows(names, 0) for names in known):
            near = difflib.get_close_matches(name, {n for names in known for n in names}, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            text = f"no class of errors is called '{name}': such an error is not tried again{hint}"
            yield Problem("warning", f"{place}.on", text)


def _errors() -> list[list[str]]:
    """The names of every class of errors that Python, the pipelines and what they import have."""
    found: dict[type[BaseException], None] = {}
    pending: list[type[BaseException]] = [BaseException]
    while pending:
        kind = pending.pop()
        if kind not in found:
            found[kind] = None
            pending += kind.__subclasses__()
    return [config.names_of(kind) for kind in found]
