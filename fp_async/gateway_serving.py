"""A gateway for a project: its broker, and its place beside a worker."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import msgspec

from fp_async import admission, config_files, targets, topic_triggers
from fp_async import config as configs
from fp_async.backend import Backend, connected
from fp_async.config import (
    EventBroker,
    MqttBroker,
    MqttFile,
    Runnable,
    TopicTrigger,
)
from fp_async.errors import (
    ConfigError,
    FlowerPowerError,
    MisconfiguredError,
    UsageError,
    suggestion,
)
from fp_async.flows import Flows
from fp_async.gateway import Gateway
from fp_async.link import Link
from fp_async.patience import Patience
from fp_async.topics import Topics, checked_name, checked_prefix

VARIABLE = "FLOWERPOWER_BROKER"
log: logging.Logger = logging.getLogger("fp_async.gateway")


def address(flows: Flows, file: MqttFile) -> Link:
    """The broker of conf/mqtt.yml, else `event_broker` if it is one, else that of the variable
    FLOWERPOWER_BROKER (which `flowerpower up` sets). Raises ConfigError.
    """
    broker: MqttBroker | EventBroker | None = file.broker
    place = ("mqtt.yml", "broker")
    if broker is None:
        broker = config_files.section(flows.root, "scheduler.yml", "event_broker", EventBroker)
        place = ("scheduler.yml", "event_broker")
        if VARIABLE in os.environ and (broker is None or broker.type != "mqtt"):
            return _from_variable(os.environ[VARIABLE])
        if broker is None or broker.type != "mqtt":
            raise ConfigError(
                "there is no MQTT broker: set `broker` in conf/mqtt.yml, or an `event_broker` of "
                "type mqtt in conf/scheduler.yml (for a first try: flowerpower broker --dev)"
            )
    files: dict[str, Any] = {}
    if isinstance(broker, MqttBroker):
        for name in ("ca_file", "cert_file", "key_file"):
            if (path := getattr(broker, name)) is not None:
                files[name] = str(flows.root / path)
        files |= {"keepalive": broker.keepalive, "version": broker.version}
    try:
        return Link.of(
            broker.uri,
            host=broker.host,
            port=broker.port,
            username=broker.username,
            password=broker.password,
            **files,
        )
    except ValueError as error:
        key = getattr(error, "key", None)
        path = place[1:] if key is None else (*place[1:], key)
        raise config_files.mistake(flows.root, place[0], path, str(error)) from error


def _from_variable(uri: str) -> Link:
    try:
        return Link.of(uri, keepalive=MqttBroker().keepalive)
    except ValueError as error:
        raise ConfigError(f"{VARIABLE}: {error}") from error


def mistakes(flows: Flows) -> Iterator[FlowerPowerError]:
    """Everything that is wrong with conf/mqtt.yml, each with its line."""
    file, wrong = config_files.mqtt(flows.root)
    yield from wrong
    for path, text in (*_of_site(file), *_of_entries(file), *_of_project(flows, file)):
        yield config_files.mistake(flows.root, "mqtt.yml", path, text)
    if file.broker is not None:
        try:
            address(flows, file)
        except ConfigError as error:
            yield error


def risk(flows: Flows) -> str:
    """What anybody at the broker could do to a fleet without a list of agents; empty where the
    broker is on this machine, or there is a list in conf/mqtt.yml.
    """
    try:
        file, _ = config_files.mqtt(flows.root)
        is_open = file.broker is not None and not file.agents
        return admission.OPEN if is_open and not address(flows, file).is_local else ""
    except FlowerPowerError:
        return ""  # it is told as what it is


def serving(flows: Flows, before: MqttFile | None = None) -> MqttFile:
    """conf/mqtt.yml without the entries that are wrong in themselves, which the log names; they
    mean what they meant `before`, if they did.

    What an entry means may come later: without its pipeline, a message is a dead letter. Whether
    its inputs fit is for `check`: pipelines are not imported, which would take three times the
    memory. Raises ConfigError for a mistake that concerns all of them.
    """
    file, wrong = config_files.mqtt(flows.root)
    names = _names(flows)
    for path, text in _of_site(file):
        raise config_files.mistake(flows.root, "mqtt.yml", path, text)
    left_out: set[tuple[str, ...]] = set()
    for path, text in _of_entries(file):
        wrong.append(config_files.mistake(flows.root, "mqtt.yml", path, text))
        left_out.add(path[:2])
    for error in wrong:
        log.error("%s: %s", "left out" if before is None else "not taken", error)
    for path, text in _of_names(flows, file):
        log.error("%s", config_files.mistake(flows.root, "mqtt.yml", path, text))
    kept: dict[str, dict[str, Any]] = {}
    for section in ("run", "triggers"):
        right: dict[str, Any] = getattr(file, section) or {}
        right = {n: each for n, each in right.items() if (section, n) not in left_out}
        old: dict[str, Any] = getattr(before, section, None) or {}
        wrongly = {n: each for n, each in old.items() if n in names[section] and n not in right}
        kept[section] = {**right, **wrongly}
    return msgspec.structs.replace(file, **kept)


def _names(flows: Flows) -> dict[str, set[str]]:
    """The entries that stand in the file, right or wrong."""
    document = config_files.of(flows.root).document("mqtt.yml")
    return {name: set(document.raw((name,)) or {}) for name in ("run", "triggers")}


_AT_START = ("broker", "prefix", "site", "gateway")


class Reader:
    """conf/mqtt.yml of a gateway that runs. What is wrong in it means what it meant before."""

    def __init__(self, flows: Flows, file: MqttFile) -> None:
        self._flows = flows
        self._file = file
        self._read = file  # also what counts from the next start on
        self._seen = self._mark()
        self._told = ""  # why it cannot be read

    def __call__(self) -> MqttFile | None:
        """Return the file's content if it has changed since the last call, else None. Log once
        what is wrong in it, and what counts from the next start on.
        """
        try:
            seen = self._mark()
            if seen == self._seen:
                return None
            self._seen = seen
            found = serving(self._flows, self._file)
        except FlowerPowerError as error:
            if str(error) != self._told:
                self._told = str(error)
                text = "going on with what conf/mqtt.yml said before: %s"
                log.error(text, error)  # noqa: TRY400 - it says where the mistake is
            return None
        self._told = ""
        other = [name for name in _AT_START if getattr(found, name) != getattr(self._read, name)]
        if other:
            names = ", ".join(other)
            log.warning("conf/mqtt.yml: %s: counts from the next start of the gateway on", names)
        self._read = found
        same = {name: getattr(self._file, name) for name in _AT_START}
        found = msgspec.structs.replace(found, **same)
        if found == self._file:
            return None
        self._file = found
        log.info("conf/mqtt.yml is read again: its triggers count from now on")
        return found

    def _mark(self) -> tuple[object, int]:
        """Return a mark that changes with the file and the variables in it."""
        files = self._flows.files
        return _Same(files.document("mqtt.yml")), files.variables.version


class _Same:
    """Equal to what holds the very same thing, which it keeps alive."""

    def __init__(self, held: object) -> None:
        self._held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._held is other._held

    __hash__ = None  # type: ignore[assignment]


_Mistakes = Iterator[tuple[tuple[str, ...], str]]


def _of_site(file: MqttFile) -> _Mistakes:
    """(place, text) of mistakes in the site, the prefix and the list of agents."""
    for key, look in (("site", partial(checked_name, "site")), ("prefix", checked_prefix)):
        if (value := getattr(file, key)) is not None:
            yield from _raised((key,), look, value)
    for name in file.agents or {}:
        yield from _raised(("agents", name), partial(checked_name, "agent"), name)
    if file.agents is not None and not file.agents:
        text = "nobody is admitted; name agents, or leave the key out: then everybody is"
        yield ("agents",), text


def _of_entries(file: MqttFile) -> _Mistakes:
    """(place, text) of what is wrong with entries, whatever the project has."""
    for answer in (file.gateway and file.gateway.answers) or ():
        if not topic_triggers.is_filter(answer):
            yield ("gateway", "answers"), f"'{answer}' is no topic filter"
    wrong = any(_of_site(file))
    topics = None if wrong else Topics(file.prefix or "fp/v1", file.site or "main")
    for name, trigger in (file.triggers or {}).items():
        place = ("triggers", name)
        yield from _raised(place, partial(checked_name, "the name of a trigger,"), name)
        for key, text in topic_triggers.problems(trigger, topics):
            yield (*place, *key.split(".", 1)), text
        yield from _on(place, trigger)
    for name, each in (file.run or {}).items():
        runnable, place = each or Runnable(), ("run", name)
        yield from _on(place, runnable)
        for pattern in runnable.targets:
            yield from _raised((*place, "targets"), targets.checked_pattern, pattern)


def _on(place: tuple[str, ...], aim: TopicTrigger | Runnable) -> _Mistakes:
    if aim.on is not None and not aim.on.startswith("$"):
        yield from _raised((*place, "on"), _target, aim.on)


def _of_names(flows: Flows, file: MqttFile) -> _Mistakes:
    """(place, text) of the pipelines and environments that entries mean and the project does not
    have.
    """
    names = flows.names()
    aims = [
        (("triggers", name, "pipeline"), t.pipeline) for name, t in (file.triggers or {}).items()
    ]
    for place, pipeline in (*aims, *((("run", name), name) for name in file.run or {})):
        if pipeline not in names:
            yield place, f"there is no pipeline '{pipeline}'{suggestion(pipeline, names)}"
    for name, trigger in (file.triggers or {}).items():
        if trigger.pipeline in names:
            yield from _unknown_environment(flows, ("triggers", name), trigger)


def _of_project(flows: Flows, file: MqttFile) -> _Mistakes:
    """(place, text) of what entries mean and the project does not have; pipelines are imported."""
    yield from _of_names(flows, file)
    names = flows.names()
    for name, trigger in (file.triggers or {}).items():
        if trigger.pipeline in names:
            yield from _unfit_values(flows, ("triggers", name), trigger)


def _environment(flows: Flows, pipeline: str, environment: str) -> None:
    """Raises UnknownNameError where there is none; its own mistakes are told by others."""
    with suppress(MisconfiguredError):
        flows.settings(pipeline, environment)


def _target(on: str) -> None:
    targets.targeted({"on": on})
    targets.check_single(on)


def unfit(flows: Flows, place: tuple[str, ...], aim: TopicTrigger) -> _Mistakes:
    """What of the environment, inputs and final variables the pipeline has not; imports it."""
    yield from _unknown_environment(flows, place, aim)
    yield from _unfit_values(flows, place, aim)


def _unknown_environment(flows: Flows, place: tuple[str, ...], aim: TopicTrigger) -> _Mistakes:
    if aim.environment is not None:
        look = partial(_environment, flows, aim.pipeline)
        yield from _raised((*place, "environment"), look, aim.environment)


def _unfit_values(flows: Flows, place: tuple[str, ...], aim: TopicTrigger) -> _Mistakes:
    try:
        flow = flows.flow(aim.pipeline, environment=aim.environment or configs.DEFAULT_ENVIRONMENT)
    except FlowerPowerError:
        return  # the pipeline's own mistakes are told by others
    for name in aim.inputs or {}:
        if name not in flow.graph.nodes:
            hint = suggestion(name, flow.graph.inputs)
            yield (*place, "inputs", name), f"no node of '{aim.pipeline}' reads this input{hint}"
    fixed = {n: v for n, v in (aim.inputs or {}).items() if not str(v).startswith("$")}
    for name, text in flow.graph.converted(fixed)[1].items():
        yield (*place, "inputs", name), text.removeprefix(f"{name}: ")
    for name in aim.final_vars or ():
        if name not in flow.graph.nodes:
            hint = suggestion(name, flow.graph.nodes)
            yield (*place, "final_vars"), f"there is no node '{name}'{hint}"


def _raised(place: tuple[str, ...], look: Callable[[Any], object], value: Any) -> _Mistakes:
    try:
        look(value)
    except FlowerPowerError as error:
        yield place, str(error)


def make(flows: Flows, backend: Backend) -> Gateway:
    """The gateway of a project whose backend is connected. Raises ConfigError, UsageError."""
    if not backend.store.shared:
        raise UsageError(
            "a gateway needs a data store that outlives it; set one in conf/scheduler.yml"
        )
    file = serving(flows)
    return Gateway(flows, backend, file, address(flows, file), Reader(flows, file))


@asynccontextmanager
async def beside(gateway: Gateway) -> AsyncIterator[None]:
    """The gateway at work until the block ends. If it fails the block is cancelled, and that is
    raised.
    """
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(gateway.run(), name="fp-gateway")
            try:
                yield
            finally:
                task.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def serve(flows: Flows) -> None:
    """See `Project.start_gateway`."""
    async with AsyncExitStack() as stack:
        backend = await Patience()(lambda: stack.enter_async_context(connected(flows.root)))
        await make(flows, backend).run()
