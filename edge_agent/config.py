"""`agent.yml`, `FP_AGENT_*` and flags: what an agent is told about itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from fp_async import messages, topic_triggers
from fp_async.config import Seconds, TopicTrigger
from fp_async.errors import FileAccessError, UsageError, suggestion
from fp_async.link_values import Link
from fp_async.topics import Topics, checked_name, checked_prefix

PREFIX = "FP_AGENT_"
VARIABLE = "FP_AGENT_SETTINGS"  # in which the daemon is told all of them, as JSON
_MEBIBYTE = 2**20


class AgentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `agent.yml` may hold. Sizes are in MiB, times in seconds.

    `window` is how many jobs it takes from the gateway at once, `slots` how many run at once.
    `outbox` bounds what waits to be told, `disk_floor` what has to stay free on the disk.
    `triggers` are topics that run pipelines on the device itself, heard on `triggers_broker`
    where that is given: a broker on the device needs no network. With `metrics_port` it serves
    metrics to Prometheus.
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
    slots: Annotated[int, msgspec.Meta(ge=1)] = 1
    window: Annotated[int, msgspec.Meta(ge=1, le=messages.PAGE)] | None = None
    keepalive: Annotated[int, msgspec.Meta(ge=5, le=65535)] = 30
    heartbeat: Seconds = 30.0
    grace: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    idle_timeout: Seconds = 60.0
    memory_limit: Annotated[int, msgspec.Meta(ge=64)] | None = None
    outbox: Annotated[int, msgspec.Meta(ge=1)] = 64
    disk_floor: Annotated[int, msgspec.Meta(ge=0)] = 200
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    metrics_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None
    metrics_host: str = "127.0.0.1"
    triggers: dict[str, TopicTrigger] = {}
    triggers_broker: str | None = None

    @property
    def topics(self) -> Topics:
        return Topics(self.prefix, self.site)

    @property
    def place(self) -> str:
        """The broker, without the login that may stand in its address."""
        before, at, host = self.broker.rpartition("@")
        return f"{before.partition('://')[0]}://{host}" if at else self.broker

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
    settings = AgentSettings() if path is None else _from_file(path, environ)
    for name in KEYS:
        if text := environ.get(PREFIX + name.upper()):
            settings = _with(settings, name, text, PREFIX + name.upper())
    for name, value in flags.items():
        if value is not None:
            settings = _with(settings, name, value, flag(name))
    return _completed(settings, path)


def strange(env: Mapping[str, str]) -> list[str]:
    """What to say about variables that begin as ours do, and are none."""
    known = [PREFIX + name.upper() for name in KEYS]
    names = (name for name in sorted(env) if name.startswith(PREFIX))
    return [
        f"variable {name} is no setting{suggestion(name, known)}"
        for name in names
        if name not in known and name != VARIABLE
    ]


def _from_file(path: Path, env: Mapping[str, str]) -> AgentSettings:
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
    document = msgspec.structs.replace(document, data=kept)
    settings = documents.validate(document, AgentSettings)
    for which, trigger in settings.triggers.items():
        if trigger.on is not None:
            wrong = "a device runs its triggers itself: for other agents they are the gateway's"
            raise document.error(("triggers", which, "on"), wrong)
        for key, wrong in topic_triggers.problems(trigger, settings.topics):
            raise document.error(("triggers", which, *key.split(".", 1)), wrong)
    folder = path.resolve().parent
    here = {name: str(folder / getattr(settings, name)) for name in _PATHS if name in kept}
    return msgspec.structs.replace(settings, **here)


def _with(settings: AgentSettings, name: str, value: Any, source: str) -> AgentSettings:
    """With one more key, that a flag or a variable gives. Raises UsageError, which names it."""
    if name == "tags":
        value = _tags(value, source)
    elif name in _PATHS:
        value = str(Path.cwd() / value)
    given = {**msgspec.to_builtins(settings), name: value}
    try:
        return msgspec.convert(given, AgentSettings, strict=False)
    except msgspec.ValidationError as error:
        problem = str(error).partition(" - at ")[0].replace("`", "")
        raise UsageError(f"{source} {value}: {problem[0].lower()}{problem[1:]}") from error


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


def _completed(settings: AgentSettings, path: Path | None) -> AgentSettings:
    """Checked, with defaults that depend on the machine and the project."""
    folder = Path.cwd() if path is None else path.resolve().parent
    name = settings.name or socket.gethostname().partition(".")[0]
    checked_name("name", name)
    checked_name("site", settings.site)
    checked_prefix(settings.prefix)
    for key in ("broker", "triggers_broker"):
        try:
            Link.of(getattr(settings, key))
        except ValueError as error:
            raise UsageError(f"{key}: {error}; as in mqtt://host:1883") from error
    project = (folder / settings.project).resolve()
    store = (project / settings.store).resolve()
    return msgspec.structs.replace(settings, name=name, project=str(project), store=str(store))
