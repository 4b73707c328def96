"""`agent.yml`, `FP_AGENT_*` and flags: what an agent is told about itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from fp_async import addresses, messages, topic_triggers
from fp_async.config import MOST, Count, Seconds, SecondsOrZero, TopicTrigger
from fp_async.errors import FileAccessError, FlowerPowerError, UsageError, suggestion
from fp_async.link_values import Link
from fp_async.topics import Topics, checked_name, checked_prefix, is_term

if TYPE_CHECKING:
    from fp_async.documents import Document

PREFIX = "FP_AGENT_"
VARIABLE = "FP_AGENT_SETTINGS"  # the descriptor from which the daemon reads all of them, as JSON
SECRETS = ("password", "broker", "triggers_broker")  # what may be one, or hold a login
_SESSION_SECONDS = 86_400
ADOPTS = "FP_AGENT_ADOPTS"  # in which the daemon is told that it gets the orphans of its jobs
_SLOTS = 10_000
Executor = Literal["local", "threadpool", "processpool", "hamilton", "ray", "dask"]
ExecutorOption = Literal["max_workers", "address", "resources", "retries", "options"]
_EXECUTORS: tuple[Executor, ...] = ("local", "threadpool", "processpool", "hamilton")
_OPTIONS: tuple[ExecutorOption, ...] = ("max_workers", "retries")
LISTS = ("pipelines", "executors", "executor_options")
_DISK = 2**40  # MiB: more than there is, and bytes of it fit into 64 bits


class AgentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `agent.yml` may hold. Sizes are in MiB, times in seconds.

    `window` is how many jobs it takes from the gateway at once, `slots` how many run at once.
    `outbox` bounds what waits to be told, `disk_floor` what has to stay free on the disk.
    `triggers` are topics that run pipelines on the device itself, heard on `triggers_broker`
    where that is given: a broker on the device needs no network. `version` and `triggers_version`
    are those of MQTT, 5 or 311 (3.1.1); without them a connection finds out. With
    `metrics_port` it serves metrics to Prometheus.
    `pipelines`, `executors` and `executor_options` are what jobs and
    schedules from afar may ask for.
    """

    broker: str = "mqtt://localhost:1883"
    name: str = ""
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    prefix: str = "fp/v1"
    site: str = "main"
    project: str = "."
    store: str = "fp-agent.db"
    tags: dict[str, str] = {}
    version: Literal[5, 311] | None = None
    slots: Annotated[int, msgspec.Meta(ge=1, le=_SLOTS)] = 1
    window: Annotated[int, msgspec.Meta(ge=1, le=messages.PAGE)] | None = None
    keepalive: Annotated[int, msgspec.Meta(ge=5, le=65535)] = 30
    heartbeat: Seconds = 30.0
    grace: SecondsOrZero = 30.0
    idle_timeout: Seconds = 60.0
    memory_limit: Annotated[int, msgspec.Meta(ge=64, le=MOST)] | None = None
    max_jobs_per_child: Count | None = None
    outbox: Annotated[int, msgspec.Meta(ge=1, le=_DISK)] = 64
    disk_floor: Annotated[int, msgspec.Meta(ge=0, le=_DISK)] = 200
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    metrics_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None
    metrics_host: str = "127.0.0.1"
    triggers: dict[str, TopicTrigger] = {}
    triggers_broker: str | None = None
    triggers_version: Literal[5, 311] | None = None
    pipelines: list[str] | None = None
    executors: list[Executor] = msgspec.field(default_factory=lambda: list(_EXECUTORS))
    executor_options: list[ExecutorOption] = msgspec.field(default_factory=lambda: list(_OPTIONS))

    @property
    def topics(self) -> Topics:
        return Topics(self.prefix, self.site)

    @property
    def place(self) -> str:
        """The broker, without the login that may stand in its address."""
        return addresses.place(self.broker)

    @property
    def triggers_place(self) -> str:
        """Show the triggers' broker without its login, as `place` shows the agent's own."""
        return addresses.place(self.triggers_broker or self.broker)

    def __repr__(self) -> str:
        return addresses.shown(self)

    @property
    def credit(self) -> int:
        """How many jobs it may hold at once."""
        return self.window or max(2 * self.slots, 16)


KEYS: tuple[str, ...] = tuple(
    name for name in AgentSettings.__struct_fields__ if name != "triggers"
)
_PATHS = ("project", "store", "ca_file", "cert_file", "key_file")


def flag(name: str) -> str:
    """The flag of a key."""
    return "--tag" if name == "tags" else f"--{name.replace('_', '-')}"


def read(
    path: Path | None, flags: Mapping[str, Any], env: Mapping[str, str] | None = None
) -> AgentSettings:
    """The settings: flags over environment over file over defaults; paths are absolute.

    Relative paths of the file begin at its folder, those of flags and variables at this one.
    Raises ConfigError, which names file, line and nearest key, FileAccessError, UsageError.
    """
    environ = os.environ if env is None else env
    document = None if path is None else _document(path, environ)
    settings = AgentSettings() if path is None or document is None else _from_file(path, document)
    sources: dict[str, str] = {}
    for name, value, source in _besides(flags, environ):
        settings = _with(settings, name, value, source)
        sources[name] = source
    return _completed(settings, path, partial(_mistake, document, sources))


def _besides(
    flags: Mapping[str, Any], environ: Mapping[str, str]
) -> Iterator[tuple[str, Any, str]]:
    """(key, value, where it is given) of what variables and flags say."""
    for name in KEYS:
        if text := environ.get(PREFIX + name.upper()):
            yield name, text, PREFIX + name.upper()
    for name, value in flags.items():
        if value is not None:
            yield name, value, flag(name)


def _mistake(
    document: Document | None, sources: Mapping[str, str], key: str, text: str
) -> FlowerPowerError:
    """Return the error for a value of the right type that the agent cannot use, with its place."""
    if key in sources or document is None or key not in (document.data or {}):
        return UsageError(f"{sources.get(key, key)}: {text}")
    return document.error((key,), text)


def without_secrets(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for processes that run pipelines, which need no login of the agent."""
    secrets = {PREFIX + name.upper() for name in SECRETS}
    return {name: value for name, value in env.items() if name not in secrets}


def strange(env: Mapping[str, str]) -> list[str]:
    """What to say about variables that begin as ours do, and are none."""
    known = [PREFIX + name.upper() for name in KEYS]
    names = (name for name in sorted(env) if name.startswith(PREFIX))
    return [
        f"variable {name} is no setting{suggestion(name, known)}"
        for name in names
        if name not in known and name not in (VARIABLE, ADOPTS)
    ]


def _document(path: Path, env: Mapping[str, str]) -> Document:
    from fp_async import documents  # not loaded by the daemon, which is told the outcome

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileAccessError(f"cannot read {path}: {reason}") from error
    document = documents.parse(text, str(path), env)
    kept = document.data or {}
    if isinstance(kept, dict):  # null means not given, as everywhere
        kept = {key: value for key, value in kept.items() if value is not None}
    return msgspec.structs.replace(document, data=kept)


def _from_file(path: Path, document: Document) -> AgentSettings:
    from fp_async import documents

    settings = documents.validate(document, AgentSettings)
    for which, trigger in settings.triggers.items():
        if trigger.on is not None:
            wrong = "a device runs its triggers itself: for other agents they are the gateway's"
            raise document.error(("triggers", which, "on"), wrong)
        for key, wrong in topic_triggers.problems(trigger, settings.topics):
            raise document.error(("triggers", which, *key.split(".", 1)), wrong)
    for name in _PATHS:
        if "\0" in (getattr(settings, name) or ""):
            raise document.error((name,), "no path has a NUL in it")
    folder = path.resolve().parent
    here = {name: str(folder / getattr(settings, name)) for name in _PATHS if name in document.data}
    return msgspec.structs.replace(settings, **here)


def _with(settings: AgentSettings, name: str, value: Any, source: str) -> AgentSettings:
    """With one more key, that a flag or a variable gives. Raises UsageError, which names it."""
    for text in [value] if isinstance(value, str) else value if name == "tags" else ():
        if any("\ud800" <= character <= "\udfff" for character in text):  # bytes of the system's
            raise UsageError(f"{source}: it is no UTF-8")
    if name == "tags":
        value = _tags(value, source)
    elif name in LISTS and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif name in _PATHS:
        value = str(Path.cwd() / value)
    given = {**msgspec.to_builtins(settings), name: value}
    try:
        return msgspec.convert(given, AgentSettings, strict=False)
    except msgspec.ValidationError as error:
        from fp_async.values import mismatch  # not loaded by the daemon

        wrong = mismatch.explain(given, AgentSettings, strict=False)
        raise UsageError(f"{source} {value}: {wrong.problem}") from error


def _tags(value: Any, source: str) -> dict[str, str]:
    """`site=berlin,gpu=yes`, or a sequence of `site=berlin`."""
    if isinstance(value, Mapping):
        return dict(value)
    tags = {}
    for part in value.split(",") if isinstance(value, str) else value:
        name, equals, text = part.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"{source} {part}: write name=value, as in site=berlin")
        tags[name.strip()] = text.strip()
    return tags


def _completed(
    settings: AgentSettings, path: Path | None, mistake: Callable[[str, str], FlowerPowerError]
) -> AgentSettings:
    """Checked, with defaults that depend on the machine and the project."""
    folder = Path.cwd() if path is None else path.resolve().parent
    name = settings.name or socket.gethostname().partition(".")[0]
    looks = {
        "name": partial(checked_name, "name", name),
        "site": partial(checked_name, "site", settings.site),
        "prefix": partial(checked_prefix, settings.prefix),
    }
    for key, look in looks.items():
        try:
            look()
        except UsageError as error:
            raise mistake(key, str(error)) from error
    for tag, value in settings.tags.items():
        if "=" in tag or not is_term(f"{tag}={value}"):
            text = f"'{tag}={value}': no target can name it; write site=berlin, without , * and =="
            raise mistake("tags", text)
    for key, link in (("broker", address), ("triggers_broker", triggers_address)):
        try:
            link(settings)
        except ValueError as error:
            raise mistake(getattr(error, "key", None) or key, str(error)) from error
    project = (folder / settings.project).resolve()
    store = (project / settings.store).resolve()
    return msgspec.structs.replace(settings, name=name, project=str(project), store=str(store))


def address(settings: AgentSettings) -> Link:
    """Build the link to the agent's broker. Raises ValueError."""
    return Link.of(
        settings.broker,
        username=settings.username or settings.name if settings.password else settings.username,
        password=settings.password,
        ca_file=settings.ca_file,
        cert_file=settings.cert_file,
        key_file=settings.key_file,
        keepalive=settings.keepalive,
        version=settings.version,
        client_id=settings.topics.client(settings.name),
        manual_ack=True,
    )


def triggers_address(settings: AgentSettings) -> Link:
    """The broker on the device, or the agent's own; under an id of its own, with its session.

    The files of TLS are for both where both have TLS. Raises ValueError.
    """
    near = address(settings)
    if settings.triggers_broker:
        near = Link.of(
            settings.triggers_broker,
            keepalive=settings.keepalive,
            version=settings.triggers_version,
        )
        if near.tls:
            names = ("ca_file", "cert_file", "key_file")
            files = {each: getattr(settings, each) for each in names}
            near = msgspec.structs.replace(near, **files)
    return msgspec.structs.replace(
        near,
        client_id=settings.topics.client(f"{settings.name}-triggers"),
        clean_start=False,
        session_expiry=_SESSION_SECONDS,
        manual_ack=True,
        purpose="triggers",
    )
