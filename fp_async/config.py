"""`conf/*.yml` as frozen Structs, and how environments lie over each other.

A mistake in a file is a `ConfigError` that names file, line, key path and the nearest valid key
(`documents.py`). `null` means "not given" everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from fp_async.errors import ConfigError, FileAccessError, UnknownNameError

if TYPE_CHECKING:
    from fp_async.documents import Document

DEFAULT_ENVIRONMENT = "dev"

FOREVER = 1e11  # seconds: later than any calendar, and still a number everywhere
MOST = 2**31 - 1  # what every store can hold

Seconds = Annotated[float, msgspec.Meta(gt=0, lt=FOREVER)]
SecondsOrZero = Annotated[float, msgspec.Meta(ge=0, lt=FOREVER)]
Count = Annotated[int, msgspec.Meta(ge=1, le=MOST)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e18)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Queue = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[^,\x00-\x1f\x7f-\x9f]{1,191}(?![\s\S])",
        description="the name of one queue: 1 to 191 printable characters, without a comma",
    ),
]
Scalar = str | int | float | bool | None


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When an error is tried again: `max_attempts` in all, waiting `backoff` * 2**n seconds."""

    max_attempts: Count = 3
    backoff: SecondsOrZero = 1.0
    max_backoff: SecondsOrZero = 60.0
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    on: list[str] = []

    def wants(self, error: BaseException, failures: int) -> bool:
        """Whether the attempt after `failures` failed ones should be made."""
        return self.allows([kind.__name__ for kind in type(error).__mro__], failures)

    def allows(self, kinds: Sequence[str], failures: int) -> bool:
        """As `wants`, for the names of an error's class and its bases."""
        listed = not self.on or any(kind in self.on for kind in kinds)
        return failures < self.max_attempts and listed

    def delay(self, failures: int, chance: float) -> float:
        """Seconds before the next attempt; `chance` in [0, 1) spreads it by the jitter."""
        pause = min(self.backoff * 2.0 ** (failures - 1), self.max_backoff)
        return pause * (1 + self.jitter * (2 * chance - 1))


class NodePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be set for one node: `timeout` in seconds for each attempt, `retry`, and the
    `resources` that it needs on a cluster, in place of the executor's.
    """

    timeout: Seconds | None = None
    retry: Retry | None = None
    resources: dict[str, Amount] | None = None


class ExecutorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where sync nodes run. `max_workers` bounds threads, processes, or the workers of a cluster
    that is started on this machine.

    For ray and dask: `address` of a cluster that is there already, `resources` that each task
    needs (num_cpus, num_gpus, memory or names of your own), `retries` of a task whose worker died,
    and `options` of the engine's own (`ray.init`; `LocalCluster`, with an address `Client`).
    """

    type: str = "threadpool"
    max_workers: Count | None = None
    address: str | None = None
    resources: dict[str, Amount] | None = None
    retries: Annotated[int, msgspec.Meta(ge=0, le=MOST)] = 3
    options: dict[str, Any] | None = None


class ScheduleEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`schedule:` of a pipeline in an environment; applied by `flowerpower schedule --all`."""

    type: Literal["interval", "cron", "crontab", "date", "calendarinterval", "and", "or"]
    params: dict[str, Any] = {}
    crontab: str | None = None
    timezone: str | None = None
    id: str | None = None
    paused: bool = False
    overlap: Literal["allow", "skip", "queue"] = "allow"
    misfire_grace_time: Seconds | None = None
    coalesce: Literal["earliest", "latest", "all"] = "latest"
    max_catch_up: Count = 100
    max_jitter: SecondsOrZero = 0.0
    on: str | None = None
    offline: bool = False


class RunSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`run.<pipeline>.<environment>` in `conf/pipelines.yml`."""

    inputs: dict[str, Any] | None = None
    final_vars: list[str] | str | None = None
    config: dict[str, Any] | None = None
    params: dict[str, dict[str, Any] | None] | None = None
    executor: str | ExecutorSettings | None = None
    timeout: Seconds | None = None
    retry: Retry | None = None
    nodes: dict[str, NodePolicy] | None = None
    modules: list[str] | None = None
    module_overrides: bool | None = None
    cache: bool | str | None = None
    with_tracker: bool | None = None
    # Functions that hear how it went, as "module:function", the module in pipelines/:
    on_success: list[str] | str | None = None
    on_failure: list[str] | str | None = None
    on_retry: list[str] | str | None = None
    # Of its jobs:
    queue: Queue | None = None
    priority: Annotated[int, msgspec.Meta(ge=-32768, le=32767)] | None = None
    concurrency: Count | None = None
    on_crash: Literal["retry", "fail"] | None = None
    max_crashes: Count | None = None
    expires: Seconds | None = None
    result_ttl: Seconds | None = None
    schedule: ScheduleEntry | list[ScheduleEntry] | None = None


class PipelinesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`conf/pipelines.yml`."""

    params: dict[str, dict[str, dict[str, Any] | None] | None] | None = None
    run: dict[str, dict[str, RunSettings | None] | None] | None = None


class DataStore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where jobs are kept: `data_store` in `conf/scheduler.yml`."""

    type: Literal["memory", "sqlite", "postgres", "mysql", "mongodb", "sqlalchemy"] = "sqlite"
    uri: str | None = None


class EventBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What wakes workers up: `event_broker` in `conf/scheduler.yml`."""

    type: Literal["memory", "postgres", "redis", "mqtt"] = "memory"
    uri: str | None = None
    host: str | None = None
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    username: str | None = None
    password: str | None = None


class WorkerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How `start-worker` works: `worker` in `conf/scheduler.yml`. Times in seconds.

    `concurrency` is how many jobs run at once: the number of processors with the runner
    `process`, 200 with `inline`. `grace` is what running jobs get to end when the worker is
    told to; `idle_timeout` ends processes that have had nothing to do. `memory_limit` (MiB) is
    for each process, `max_result_size` (bytes) for each result.
    """

    queues: Annotated[list[Queue], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["default"]
    )
    concurrency: Count | None = None
    runner: Literal["process", "inline"] = "process"
    poll_interval: Seconds = 1.0
    grace: SecondsOrZero = 30.0
    idle_timeout: Seconds = 60.0
    memory_limit: Annotated[int, msgspec.Meta(ge=64, le=MOST)] | None = None
    max_result_size: Annotated[int, msgspec.Meta(ge=1024, le=MOST)] = 15_000_000
    schedules: bool = True


class SchedulerFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`conf/scheduler.yml`."""

    data_store: DataStore | None = None
    event_broker: EventBroker | None = None
    worker: WorkerSettings | None = None


class TrackedPipeline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`pipeline.<name>` in `conf/tracker.yml`."""

    project_id: int | None = None
    tags: dict[str, Scalar] | None = None
    dag_name: str | None = None


class TrackerFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`conf/tracker.yml`."""

    username: str | None = None
    api_url: str | None = None
    ui_url: str | None = None
    api_key: str | None = None
    pipeline: dict[str, TrackedPipeline | None] | None = None


class MqttBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The broker that agents and gateway meet at: `broker` in `conf/mqtt.yml`.

    Files are PEM, relative to the project: the authority's certificates, and the client's own
    certificate and key.
    """

    uri: str | None = None
    host: str | None = None
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    keepalive: Annotated[int, msgspec.Meta(ge=5, le=65535)] = 30


class TopicTrigger(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`triggers.<name>`: a message on a topic of the filter `topic` makes a job of `pipeline`.

    How it becomes inputs is told in `topic_triggers`. `rate` is messages a second; what the
    broker had kept from before (`retained`) is dropped unless asked for.
    """

    topic: str
    pipeline: str
    payload: Literal["json", "msgpack", "text", "bytes"] = "json"
    inputs: dict[str, Any] | None = None
    key: str | None = None
    environment: str | None = None
    final_vars: list[str] | None = None
    on: str | None = None
    rate: Rate | None = None
    retained: Literal["drop", "run"] = "drop"


Override = Literal["inputs", "final_vars", "environment", "key"]


class Runnable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`run.<pipeline>`: what a message on the topic run/<pipeline> may ask for.

    `targets` are patterns (`agent:*`, `any:gpu=yes`) of the targets it may name, `overrides`
    the other parts of its body that it may have.
    """

    targets: list[str] = []
    overrides: list[Override] = msgspec.field(default_factory=lambda: ["inputs", "key"])
    on: str | None = None
    rate: Rate | None = None


class GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`gateway` in `conf/mqtt.yml`. Times in seconds.

    `away_after` is how long after its last sign of life an agent counts as away, `lost_after`
    how long it has to be away before `on_lost: reassign` or `fail` applies.
    """

    away_after: Seconds = 90.0
    lost_after: Seconds = 300.0
    queue: Queue = "default"


class MqttFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`conf/mqtt.yml`."""

    broker: MqttBroker | None = None
    prefix: str | None = None
    site: str | None = None
    gateway: GatewaySettings | None = None
    run: dict[str, Runnable | None] | None = None
    triggers: dict[str, TopicTrigger] | None = None


FILES: dict[str, type[msgspec.Struct]] = {
    "pipelines.yml": PipelinesFile,
    "scheduler.yml": SchedulerFile,
    "tracker.yml": TrackerFile,
    "mqtt.yml": MqttFile,
}


def read(root: Path, file: str, env: Mapping[str, str] | None = None) -> Any:
    """The Struct of `conf/<file>` below `root`; an absent or empty file gives the defaults.

    Raises ConfigError for a mistake in it, FileAccessError where it cannot be read.
    """
    from fp_async import documents  # with PyYAML: an agent is told its settings otherwise

    return documents.validate(_document(root, file, env), FILES[file])


def mistake(root: Path, file: str, path: Sequence[str | int], text: str) -> ConfigError:
    """What is wrong with a key of `conf/<file>` that its type does not show, with the line."""
    return _document(root, file, None).error(tuple(path), text)


def _document(root: Path, file: str, env: Mapping[str, str] | None) -> Document:
    from fp_async import documents

    try:
        text = (root / "conf" / file).read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileAccessError(f"cannot read conf/{file}: {reason}") from error
    return documents.parse(text, f"conf/{file}", os.environ if env is None else env)


def schema() -> dict[str, Any]:
    """JSON Schema of every configuration file, by file name."""
    return {name: msgspec.json.schema(struct) for name, struct in FILES.items()}


# What an environment adds to, by name, instead of replacing it; parameters by function and name.
_MERGED = {"inputs": 1, "config": 1, "params": 2, "nodes": 1}


def run_settings(file: PipelinesFile, pipeline: str, environment: str) -> RunSettings:
    """The settings of `run.<pipeline>.<environment>`, laid over those of `dev`.

    An environment other than `dev` must exist somewhere in the file, for this pipeline if the
    pipeline has any; otherwise UnknownNameError lists those that do.
    """
    entries = (file.run or {}).get(pipeline) or {}
    if environment not in entries and environment != DEFAULT_ENVIRONMENT:
        valid = {DEFAULT_ENVIRONMENT, *entries}
        where = f" of pipeline '{pipeline}' (conf/pipelines.yml, run.{pipeline})"
        raise UnknownNameError("environment", environment, valid, where=where)
    base = entries.get(DEFAULT_ENVIRONMENT) or RunSettings()
    return _overlay(base, entries.get(environment) or RunSettings())


def _overlay(base: RunSettings, over: RunSettings) -> RunSettings:
    if base is over:
        return base
    changes: dict[str, Any] = {}
    for name in RunSettings.__struct_fields__:
        below, above = getattr(base, name), getattr(over, name)
        if above is None:
            continue
        depth = _MERGED.get(name)
        changes[name] = merged(below or {}, above, depth) if depth else above
    return msgspec.structs.replace(base, **changes)


def merged(below: Mapping[str, Any], above: Mapping[str, Any], depth: int = 1) -> dict[str, Any]:
    """Two mappings laid over each other, `depth` levels deep; a null above changes nothing."""
    result = dict(below)
    for key, value in above.items():
        lower = result.get(key)
        if depth > 1 and isinstance(value, Mapping) and isinstance(lower, Mapping):
            result[key] = merged(lower, value, depth - 1)
        elif value is not None:
            result[key] = value
        else:
            result.setdefault(key, None)
    return result


def given(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries that are not null: null means not given."""
    return {name: value for name, value in (values or {}).items() if value is not None}
