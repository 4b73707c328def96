"""`conf/*.yml` as frozen Structs, and how environments lie over each other.

A mistake in a file is a `MisconfiguredError` that names file, line, key path and the nearest valid
key (`documents.py`). `null` means "not given" everywhere. The files are read in `config_files`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from fp_async import addresses, copies
from fp_async.errors import MisconfiguredError, UnknownNameError

if TYPE_CHECKING:
    from fp_async.documents import Document
    from fp_async.values.mismatch import KeyPath

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
# Words that are no folder: to YAML 1.1 they were true, false and null, and people write them so.
Folder = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(?!(?i:|y|n|yes|no|on|off|true|false|null|none|~)$)",
        description="a folder (a switch is true or false; a folder of this name is ./...)",
    ),
]
Scalar = str | int | float | bool | None
# A value that no annotation types: what a variable puts in is read as YAML would read it.
Plain = Annotated[Any, msgspec.Meta(extra={"plain": True})]


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rule for trying errors again: `max_attempts` in all, waiting `backoff` * 2**n seconds.

    max_attempts: attempts in all, the first one included
    backoff: seconds before the second attempt; each further pause is twice as long
    max_backoff: seconds of the longest pause
    jitter: share by which a pause may be longer or shorter, from 0 to 1
    on: classes of errors that are tried again, plainly or with their package
        (requests.Timeout); all if empty
    """

    max_attempts: Count = 3
    backoff: SecondsOrZero = 1.0
    max_backoff: SecondsOrZero = 60.0
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    on: list[str] = []

    def wants(self, error: BaseException, failures: int) -> bool:
        """Whether the attempt after `failures` failed ones should be made."""
        return self.allows(names_of(type(error)), failures)

    def allows(self, kinds: Sequence[str], failures: int) -> bool:
        """As `wants`, for the names of an error's class and its bases (`names_of`)."""
        listed = not self.on or any(_means(name, kinds) for name in self.on)
        return failures < self.max_attempts and listed

    def delay(self, failures: int, chance: float) -> float:
        """Seconds before the next attempt; `chance` in [0, 1) spreads it by the jitter."""
        pause = min(self.backoff * 2.0 ** (failures - 1), self.max_backoff)
        return pause * (1 + self.jitter * (2 * chance - 1))


def names_of(kind: type[BaseException]) -> list[str]:
    """The names by which `retry.on` knows a class of errors: its own and those of its bases, each
    plain and with its module.
    """
    kinds = kind.__mro__[:-1]
    dotted = [copies.plainly(f"{each.__module__}.{each.__qualname__}") for each in kinds]
    return [*(each.__name__ for each in kinds), *dotted]


def _means(name: str, kinds: Sequence[str]) -> bool:
    """Whether a name of `retry.on` is among those of an error. Of a dotted one, `requests.Timeout`,
    package and class count: it may be defined deeper in there, as requests.exceptions.Timeout.
    """
    package, dot, last = name.partition(".")[0], *name.rpartition(".")[1:]
    if not dot:
        return name in kinds
    dotted = (kind.split(".") for kind in kinds if "." in kind)
    return any(last == parts[-1] and package in parts[:-1] for parts in dotted)


class NodePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be set for one node: `timeout` in seconds for each attempt, `retry`, and the
    `resources` that it needs on a cluster, in place of the executor's.

    timeout: seconds for each attempt of the node
    retry: when the node is tried again
    resources: what the node needs on a cluster, in place of the executor's resources
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

    type: local, threadpool, processpool, hamilton, ray or dask
    max_workers: most threads or processes, or workers of a cluster on this machine
    address: address of a Ray or Dask cluster that is there already
    resources: what each task needs on a cluster: num_cpus, num_gpus, memory or names of your
        own
    retries: attempts more of a task whose worker on the cluster died
    options: options of the engine's own: of ray.init, LocalCluster or Client
    """

    type: str = "threadpool"
    max_workers: Count | None = None
    address: str | None = None
    resources: dict[str, Amount] | None = None
    retries: Annotated[int, msgspec.Meta(ge=0, le=MOST)] = 3
    options: dict[str, Plain] | None = None


class ScheduleEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`schedule:` of a pipeline in an environment; applied by `flowerpower schedule --all`.

    type: kind of the trigger
    params: arguments of the trigger, as in {minutes: 15}
    crontab: crontab expression, as in "30 6 * * 1-5"
    timezone: name of the time zone, as in Europe/Berlin; the machine's if not given
    id: id of the schedule; <pipeline>.<environment> if not given
    paused: true to fire only after `schedules resume`
    overlap: while the job before still waits or runs: allow both, skip this time, or queue it
    misfire_grace_time: seconds after which a missed time is dropped; none is dropped if not
        given
    coalesce: which of several missed times run: the latest, the earliest, or all
    max_catch_up: with coalesce all: most times that are made up for
    max_jitter: seconds by which each job may start later
    on: agents that run its jobs: agent:NAME, any:tag=value or all:tag=value
    offline: true to have the agents keep the schedule, and fire it without a network
    """

    type: Literal["interval", "cron", "crontab", "date", "calendarinterval", "and", "or"]
    params: dict[str, Plain] = {}
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
    """`run.<pipeline>.<environment>` in `conf/pipelines.yml`.

    inputs: inputs of the functions, by name
    final_vars: nodes to compute and return; all leaves of the DAG if empty
    config: values for Hamilton's @config.when, by name
    params: parameters in this environment, by function and argument
    executor: where functions run: a name, or a mapping with its settings
    timeout: seconds for a whole run, or for each attempt of a job
    retry: when a run or job that has failed is tried again
    nodes: timeout, retry and resources of single nodes, by name
    modules: several files of pipelines/ that make one DAG
    module_overrides: true to let a later module replace functions of an earlier one
    cache: true or a folder to keep values of nodes for the next run
    with_tracker: true to track runs in the Hamilton UI
    on_success: functions that are called after a success, as module:function in pipelines/
    on_failure: functions that are called after a failure, as module:function in pipelines/
    on_retry: functions that are called before another attempt, as module:function in pipelines/
    queue: queue of its jobs
    priority: priority of its jobs: higher is sooner
    concurrency: most jobs of the pipeline at once, over all workers
    on_crash: what becomes of a job whose process or machine died: retry, or fail
    max_crashes: crashes after which a job has failed
    expires: seconds within which a job must have started
    result_ttl: seconds that an ended job is kept
    schedule: when the pipeline runs as a job: one entry, or several
    """

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
    cache: bool | Folder | None = None
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
    """`conf/pipelines.yml`.

    params: parameters by pipeline, function and argument, for all environments
    run: how pipelines run, by pipeline and environment; `dev` is below all others
    """

    params: dict[str, dict[str, dict[str, Any] | None] | None] | None = None
    run: dict[str, dict[str, RunSettings | None] | None] | None = None


class DataStore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The data store, which keeps jobs: `data_store` in `conf/scheduler.yml`.

    type: kind of the data store; sqlalchemy for any URI of SQL
    uri: its URI, as in postgresql://user:password@host/db or sqlite:///flowerpower.db
    """

    type: Literal["memory", "sqlite", "postgres", "mysql", "mongodb", "sqlalchemy"] = "sqlite"
    uri: str | None = None

    def __repr__(self) -> str:
        return addresses.shown(self)


class EventBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The event broker, which wakes workers up: `event_broker` in `conf/scheduler.yml`.

    type: kind of the event broker; memory for this machine
    uri: its URI, as in redis://localhost:6379
    host: its host, in place of a URI
    port: its port, with host
    username: user name, for MQTT
    password: password, for MQTT
    """

    type: Literal["memory", "postgres", "redis", "mqtt"] = "memory"
    uri: str | None = None
    host: str | None = None
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return addresses.shown(self)


class WorkerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How `start-worker` works: `worker` in `conf/scheduler.yml`. Times in seconds.

    `concurrency` is how many jobs run at once: the number of processors with the runner
    `process`, 200 with `inline`. `grace` is what running jobs get to end when the worker is
    told to; `idle_timeout` ends processes that have had nothing to do. `memory_limit` (MiB) is
    for each process, `max_result_size` (bytes) for each result. After `max_jobs_per_child` jobs
    a process ends, and another one takes its place.

    queues: queues whose jobs it runs
    concurrency: most jobs at once; the number of processors, with runner inline 200
    runner: process: each job in a process of its own; inline: in the worker's event loop
    poll_interval: seconds after which it looks for jobs where nothing wakes it
    grace: seconds that running jobs get to end when the worker is told to
    idle_timeout: seconds after which a process without a job ends
    memory_limit: MiB of each process
    max_jobs_per_child: jobs after which a process gives way to a fresh one
    max_result_size: bytes of a result at most
    schedules: false to leave the firing of schedules to others
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
    max_jobs_per_child: Count | None = None
    max_result_size: Annotated[int, msgspec.Meta(ge=1024, le=MOST)] = 15_000_000
    schedules: bool = True


class SchedulerFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`conf/scheduler.yml`.

    data_store: where jobs and schedules are kept
    event_broker: what wakes workers up
    worker: how start-worker works; its options are laid over this
    """

    data_store: DataStore | None = None
    event_broker: EventBroker | None = None
    worker: WorkerSettings | None = None


class TrackedPipeline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`pipeline.<name>` in `conf/tracker.yml`.

    project_id: id of the project in the Hamilton UI
    tags: tags of its runs
    dag_name: name of the DAG in the Hamilton UI
    """

    project_id: int | None = None
    tags: dict[str, Scalar] | None = None
    dag_name: str | None = None


class TrackerFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`conf/tracker.yml`.

    username: user name or e-mail in the Hamilton UI
    api_url: URL of the API, as in http://localhost:8241
    ui_url: URL of the pages, as in http://localhost:8242
    api_key: key of the API, where one is needed
    pipeline: projects and tags, by pipeline
    """

    username: str | None = None
    api_url: str | None = None
    ui_url: str | None = None
    api_key: str | None = None
    pipeline: dict[str, TrackedPipeline | None] | None = None

    def __repr__(self) -> str:
        return addresses.shown(self)


class MqttBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The broker that agents and gateway meet at: `broker` in `conf/mqtt.yml`.

    Files are PEM, relative to the project: the authority's certificates, and the client's own
    certificate and key.

    uri: URI of the broker, as in mqtts://host:8883
    host: its host, in place of a URI
    port: its port, with host
    username: user name
    password: password
    ca_file: PEM file with the authority's certificates
    cert_file: PEM file with the client's certificate
    key_file: PEM file with the client's key
    keepalive: seconds between signs of life to the broker
    version: of MQTT, 5 or 311 (3.1.1); without it the gateway finds out
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
    version: Literal[5, 311] | None = None

    def __repr__(self) -> str:
        return addresses.shown(self)


class TopicTrigger(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`triggers.<name>`: a message on a topic of the filter `topic` makes a job of `pipeline`.

    How it becomes inputs is told in `topic_triggers`. `rate` is messages a second; what the
    broker had kept from before (`retained`) is dropped unless asked for.

    topic: filter of topics, as in sensors/+/temperature
    pipeline: pipeline that runs
    payload: format of the payload
    inputs: inputs, from $payload, $topic.N and values
    key: key of the job, with the same words; at most one active job bears it
    environment: environment of the job
    final_vars: nodes to compute
    on: agents that run it: agent:NAME or any:tag=value
    rate: messages a second that make jobs; more are dead letters
    retained: what becomes of messages that the broker had kept from before
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

    targets: patterns of the targets that a message may name, as in any:gpu=*
    overrides: parts of its body that a message may have
    on: agents that run it where the message does not say
    rate: messages a second that make jobs; more are dead letters
    """

    targets: list[str] = []
    overrides: list[Override] = msgspec.field(default_factory=lambda: ["inputs", "key"])
    on: str | None = None
    rate: Rate | None = None


class GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`gateway` in `conf/mqtt.yml`. Times in seconds.

    `away_after` is how long after its last sign of life an agent counts as away, `lost_after`
    how long it has to be away before `on_lost: reassign` or `fail` applies.

    away_after: seconds without a sign of life after which an agent counts as away
    lost_after: seconds that an agent has to be away before on_lost applies
    queue: queue of jobs that messages make
    answers: filters of the response topics that messages may name
    """

    away_after: Seconds = 90.0
    lost_after: Seconds = 300.0
    queue: Queue = "default"
    answers: list[str] | None = None


class AdmittedAgent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An agent of the fleet: an entry of `agents` in `conf/mqtt.yml`.

    tags: those that it may bear, with their values, "*" for any value; all if not given
    window: the most jobs that it may have at once; as many as it asks for if not given
    """

    tags: dict[str, str] | None = None
    window: Annotated[int, msgspec.Meta(ge=1, le=500)] | None = None


class MqttFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`conf/mqtt.yml`.

    broker: broker at which agents and the gateway meet
    prefix: beginning of all topics; fp/v1 if not given
    site: name of the site, the second part of all topics; main if not given
    gateway: how the gateway works
    run: pipelines that a message on run/<pipeline> may ask for
    triggers: topics whose messages make jobs, by a name of your own
    agents: agents that are admitted, by name; without it each one that the broker lets in
    """

    broker: MqttBroker | None = None
    prefix: str | None = None
    site: str | None = None
    gateway: GatewaySettings | None = None
    run: dict[str, Runnable | None] | None = None
    triggers: dict[str, TopicTrigger] | None = None
    agents: dict[str, AdmittedAgent | None] | None = None


def is_folder(value: Any) -> bool:
    """Return whether a value is the text of a `Folder`."""
    try:
        msgspec.convert(value, Folder)
    except msgspec.ValidationError:
        return False
    return True


FILES: dict[str, type[msgspec.Struct]] = {
    "pipelines.yml": PipelinesFile,
    "scheduler.yml": SchedulerFile,
    "tracker.yml": TrackerFile,
    "mqtt.yml": MqttFile,
}


# What an environment adds to, by name, instead of replacing it; parameters by function and name.
_MERGED = {"inputs": 1, "config": 1, "params": 2, "nodes": 1}


class Pipelines:
    """`conf/pipelines.yml` as it is used: each entry is read, and checked, when it is asked for.

    Raises MisconfiguredError for an entry that is broken, or a variable of it that has no value.
    """

    def __init__(self, document: Document) -> None:
        self.document = document

    def environments(self, pipeline: str) -> list[str]:
        """Those that have an entry, in the order of the file."""
        return list(self._mapping(("run", pipeline)))

    @property
    def named(self) -> dict[str, list[str]]:
        """The pipelines that have entries, by the section that these stand in."""
        return {name: list(self.document.raw((name,)) or {}) for name in ("params", "run")}

    def settings(self, pipeline: str, environment: str) -> RunSettings:
        """The settings of `run.<pipeline>.<environment>`, laid over those of `dev`.

        What it sets itself `dev` need not have right. An environment other than `dev` must exist,
        otherwise UnknownNameError lists those that do.
        """
        entries = self.environments(pipeline)
        if environment not in entries and environment != DEFAULT_ENVIRONMENT:
            where = f" of pipeline '{pipeline}' (conf/pipelines.yml, run.{pipeline})"
            valid = {DEFAULT_ENVIRONMENT, *entries}
            raise UnknownNameError("environment", environment, valid, where=where)
        own: KeyPath = ("run", pipeline, environment)
        base: KeyPath = ("run", pipeline, DEFAULT_ENVIRONMENT)
        data = _overlay(self._mapping(base), self._mapping(own))
        data.pop("schedule", None)  # whose entries are read one by one
        settings: RunSettings = self._converted(data, RunSettings, own, base)
        return settings

    def parameters(self, pipeline: str, environment: str) -> dict[str, Any]:
        """The parameters of `params.<pipeline>`, with those of the environment laid over them."""
        own: KeyPath = ("run", pipeline, environment, "params")
        base: KeyPath = ("run", pipeline, DEFAULT_ENVIRONMENT, "params")
        common: KeyPath = ("params", pipeline)
        data = merged(self._mapping(common), self._mapping(base), 2)
        data = merged(data, self._mapping(own), 2)
        found: dict[str, Any] = self._converted(data, _Parameters, own, base, common)
        return found

    def schedules(self) -> Iterator[tuple[KeyPath, Callable[[], ScheduleEntry]]]:
        """(place, what reads it) for each `schedule:` entry, in the order of the file."""
        for pipeline, environments in (self.document.raw(("run",)) or {}).items():
            for environment, entry in _pairs(environments):
                if not isinstance(entry, dict):  # a mistake of that entry alone
                    continue
                found = entry.get("schedule")
                path: KeyPath = ("run", pipeline, environment, "schedule")
                numbers = range(len(found)) if isinstance(found, list) else None
                for place in [path] if numbers is None else [(*path, i) for i in numbers]:
                    if self.raw(place) is not None:
                        yield place, partial(self.document.at, place, ScheduleEntry)

    def raw(self, path: KeyPath) -> Any:
        """An entry as it is written, whatever is wrong with it; None where there is none."""
        return self.document.raw(path)

    def whole(self) -> PipelinesFile:
        """All of it at once. Raises MisconfiguredError for the first mistake."""
        return self.document.at((), PipelinesFile)

    def error(self, path: Sequence[str | int], text: str) -> MisconfiguredError:
        """What is wrong with an entry that its type does not show, with the line."""
        return self.document.error(tuple(path), text)

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        found = self.document.raw(path)
        if not isinstance(found, dict | None):
            self.document.at(path, dict[str, Any])  # raises
        return found or {}

    def _converted(self, data: Any, kind: Any, *places: KeyPath) -> Any:
        """Data that was laid over each other; a mistake is shown in the first place that has it."""
        lines = self.document.lines

        def place(path: KeyPath) -> KeyPath:
            for end in range(len(path), 0, -1):
                for above in places:
                    if (*above, *path[:end]) in lines:
                        return (*above, *path)
            return (*places[0], *path)

        return self.document.converted(data, kind, place)


_Parameters = dict[str, dict[str, Any] | None]


def _pairs(data: Any) -> list[tuple[str, Any]]:
    return list(data.items()) if isinstance(data, dict) else []


def _overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for name, value in above.items():
        under, depth = below.get(name), _MERGED.get(name)
        if depth and isinstance(value, Mapping) and isinstance(under, Mapping):
            result[name] = merged(under, value, depth)
        elif value is not None:
            result[name] = value
    return result


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
