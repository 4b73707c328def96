"""A gateway for a project: its broker, and its place beside a worker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from fp_async import config as configs
from fp_async import targets, topic_triggers
from fp_async.backend import Backend, connected
from fp_async.config import (
    EventBroker,
    MqttBroker,
    MqttFile,
    Runnable,
    SchedulerFile,
    TopicTrigger,
)
from fp_async.errors import ConfigError, FlowerPowerError, UsageError, suggestion
from fp_async.flows import Flows
from fp_async.gateway import Gateway
from fp_async.link import Link
from fp_async.patience import Patience
from fp_async.topics import Topics, checked_name, checked_prefix

VARIABLE = "FLOWERPOWER_BROKER"


def address(flows: Flows, file: MqttFile) -> Link:
    """The broker of conf/mqtt.yml, else `event_broker` if it is one, else that of the variable
    FLOWERPOWER_BROKER (which `flowerpower up` sets). Raises ConfigError.
    """
    broker: MqttBroker | EventBroker | None = file.broker
    place = ("mqtt.yml", "broker")
    if broker is None:
        scheduler: SchedulerFile = configs.read(flows.root, "scheduler.yml")
        broker, place = scheduler.event_broker, ("scheduler.yml", "event_broker")
        if VARIABLE in os.environ and (broker is None or broker.type != "mqtt"):
            broker = MqttBroker(uri=os.environ[VARIABLE])
        elif broker is None or broker.type != "mqtt":
            raise ConfigError(
                "there is no MQTT broker: set `broker` in conf/mqtt.yml, or an `event_broker` of "
                "type mqtt in conf/scheduler.yml (for a first try: flowerpower broker --dev)"
            )
    files: dict[str, Any] = {}
    if isinstance(broker, MqttBroker):
        for name in ("ca_file", "cert_file", "key_file"):
            if (path := getattr(broker, name)) is not None:
                files[name] = str(flows.root / path)
        files["keepalive"] = broker.keepalive
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
        raise configs.mistake(flows.root, place[0], place[1:], str(error)) from error


def check(flows: Flows, file: MqttFile) -> None:
    """Raises ConfigError for what the types of the file do not show."""
    for error in mistakes(flows, file):
        raise error


def mistakes(flows: Flows, file: MqttFile) -> Iterator[ConfigError]:
    """What the types of the file do not show, each with its line."""
    for path, text in _mistakes(flows, file):
        yield configs.mistake(flows.root, "mqtt.yml", path, text)
    if file.broker is not None:
        try:
            address(flows, file)
        except ConfigError as error:
            yield error


_Mistakes = Iterator[tuple[tuple[str, ...], str]]


def _mistakes(flows: Flows, file: MqttFile) -> _Mistakes:
    """(place, text) of each."""
    for key, look in (("site", partial(checked_name, "site")), ("prefix", checked_prefix)):
        if (value := getattr(file, key)) is not None:
            yield from _raised((key,), look, value)
    topics = Topics(file.prefix or "fp/v1", file.site or "main")
    for name, trigger in (file.triggers or {}).items():
        place = ("triggers", name)
        yield from _raised(place, partial(checked_name, "the name of a trigger,"), name)
        for key, text in topic_triggers.problems(trigger, topics):
            yield (*place, *key.split(".", 1)), text
        yield from _aims(flows, place, trigger, trigger.pipeline)
    for name, runnable in (file.run or {}).items():
        yield from _aims(flows, ("run", name), runnable or Runnable(), name)


def _aims(
    flows: Flows, place: tuple[str, ...], aim: TopicTrigger | Runnable, pipeline: str
) -> _Mistakes:
    """What is wrong with the pipeline, the environment and the target."""
    names = flows.names()
    if pipeline not in names:
        where = (*place, "pipeline") if isinstance(aim, TopicTrigger) else place
        yield where, f"there is no pipeline '{pipeline}'{suggestion(pipeline, names)}"
    elif isinstance(aim, TopicTrigger) and aim.environment is not None:
        yield from _raised(
            (*place, "environment"), partial(flows.settings, pipeline), aim.environment
        )
    if aim.on is not None and not aim.on.startswith("$"):
        yield from _raised((*place, "on"), _target, aim.on)
    if isinstance(aim, Runnable):
        for pattern in aim.targets:
            yield from _raised((*place, "targets"), targets.checked_pattern, pattern)
    elif pipeline in names:
        yield from _wanted(flows, place, aim)


def _target(on: str) -> None:
    targets.targeted({"on": on})
    targets.check_single(on)


def _wanted(flows: Flows, place: tuple[str, ...], aim: TopicTrigger) -> _Mistakes:
    """Inputs and final variables that the pipeline has not."""
    try:
        flow = flows.flow(aim.pipeline, environment=aim.environment or configs.DEFAULT_ENVIRONMENT)
    except FlowerPowerError:
        return  # the pipeline's own mistakes are told by others
    for name in aim.inputs or {}:
        if name not in flow.graph.nodes:
            hint = suggestion(name, flow.graph.inputs)
            yield (*place, "inputs", name), f"no node of '{aim.pipeline}' reads this input{hint}"
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
    file: MqttFile = configs.read(flows.root, "mqtt.yml")
    check(flows, file)
    return Gateway(flows, backend, file, address(flows, file))


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
