"""A gateway for a project: its broker, and its place beside a worker."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from fp_async import config as configs
from fp_async import topic_triggers
from fp_async.backend import Backend, connected
from fp_async.config import EventBroker, MqttBroker, MqttFile, SchedulerFile
from fp_async.errors import ConfigError, UsageError
from fp_async.flows import Flows
from fp_async.gateway import Gateway
from fp_async.link import Link
from fp_async.patience import Patience
from fp_async.topics import checked_name


def address(flows: Flows, file: MqttFile) -> Link:
    """The broker of conf/mqtt.yml, else `event_broker` if it is one. Raises ConfigError."""
    broker: MqttBroker | EventBroker | None = file.broker
    if broker is None:
        scheduler: SchedulerFile = configs.read(flows.root, "scheduler.yml")
        broker = scheduler.event_broker
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
        raise ConfigError(f"conf/mqtt.yml: broker: {error}") from error


def check(flows: Flows, file: MqttFile) -> None:
    """Raises ConfigError for what the types of the file do not show."""
    if file.site is not None:
        checked_name("site", file.site)
    names = flows.names()
    for name, trigger in (file.triggers or {}).items():
        if wrong := topic_triggers.problem(trigger):
            raise ConfigError(f"conf/mqtt.yml: triggers.{name}.{wrong}")
        if trigger.pipeline not in names:
            raise ConfigError(
                f"conf/mqtt.yml: triggers.{name}.pipeline: there is no '{trigger.pipeline}'"
            )
    for name in file.run or {}:
        if name not in names:
            raise ConfigError(f"conf/mqtt.yml: run.{name}: there is no such pipeline")


def make(flows: Flows, backend: Backend) -> Gateway:
    """The gateway of a project whose backend is connected. Raises ConfigError, UsageError."""
    if not backend.store.shared:
        raise UsageError(
            "a gateway needs a data store that outlives it; set one in conf/scheduler.yml"
        )
    file: MqttFile = configs.read(flows.root, "mqtt.yml")
    check(flows, file)
    return Gateway(flows, backend, file, address(flows, file))


async def serve(flows: Flows) -> None:
    """See `Project.start_gateway`."""
    async with AsyncExitStack() as stack:
        backend = await Patience()(lambda: stack.enter_async_context(connected(flows.root)))
        await make(flows, backend).run()
