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
from fp_async.errors import FileAccessError, UsageError
from fp_async.topics import Topics, checked_name, checked_prefix

PREFIX = "FP_AGENT_"
_MEBIBYTE = 2**20


class AgentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `agent.yml` may hold. Sizes are in MiB, times in seconds.

    `window` is how many jobs it takes from the gateway at once, `slots` how many run at once.
    `outbox` bounds what waits to be told, `disk_floor` what has to stay free on the disk.
    `triggers` are topics that run pipelines on the device itself, heard on `triggers_broker`
    where that is given: a broker on the device needs no network.
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
    triggers: dict[str, TopicTrigger] = {}
    triggers_broker: str | None = None

    @property
    def topics(self) -> Topics:
        return Topics(self.prefix, self.site)

    @property
    def credit(self) -> int:
        """How many jobs it may hold at once."""
        return self.window or max(2 * self.slots, 16)


KEYS: tuple[str, ...] = tuple(
    name for name in AgentSettings.__struct_fields__ if name != "triggers"
)


def read(
    path: Path | None, flags: Mapping[str, Any], env: Mapping[str, str] | None = None
) -> AgentSettings:
    """The settings: flags over environment over file over defaults; paths are absolute.

    Raises ConfigError, which names file, line and nearest key, FileAccessError, UsageError.
    """
    environ = os.environ if env is None else env
    settings = AgentSettings() if path is None else _from_file(path, environ)
    given = {**_from_env(environ), **{k: v for k, v in flags.items() if v is not None}}
    return _completed(_laid_over(settings, given), path)


def _from_file(path: Path, env: Mapping[str, str]) -> AgentSettings:
    from fp_async import documents  # not loaded by the daemon, which is told the outcome

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileAccessError(f"cannot read {path}: {reason}") from error
    document = documents.parse(text, str(path), env)
    if isinstance(document.data, dict):  # null means not given, as everywhere
        kept = {key: value for key, value in document.data.items() if value is not None}
        document = msgspec.structs.replace(document, data=kept)
    settings = documents.validate(document, AgentSettings)
    for name, trigger in settings.triggers.items():
        for key, text in topic_triggers.problems(trigger, settings.topics):
            raise document.error(("triggers", name, *key.split(".", 1)), text)
    return settings


def _from_env(env: Mapping[str, str]) -> dict[str, Any]:
    found = {name: env.get(PREFIX + name.upper()) for name in KEYS}
    return {name: value for name, value in found.items() if value}


def _laid_over(settings: AgentSettings, given: Mapping[str, Any]) -> AgentSettings:
    changes = {
        name: _tags(value) if name == "tags" and not isinstance(value, Mapping) else value
        for name, value in given.items()
    }
    try:
        return msgspec.convert(
            {**msgspec.to_builtins(settings), **changes}, AgentSettings, strict=False
        )
    except msgspec.ValidationError as error:
        raise UsageError(str(error).replace("`$.", "`")) from error


def _tags(value: Any) -> dict[str, str]:
    """`site=berlin,gpu=yes`, or a sequence of `site=berlin`."""
    parts = value.split(",") if isinstance(value, str) else value
    tags = {}
    for part in parts:
        name, equals, text = part.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"tag '{part}': write name=value, as in site=berlin")
        tags[name.strip()] = text.strip()
    return tags


def _completed(settings: AgentSettings, path: Path | None) -> AgentSettings:
    """Defaults that depend on the machine, and absolute paths: those of the file are beside it."""
    folder = Path.cwd() if path is None else path.resolve().parent
    name = settings.name or socket.gethostname().partition(".")[0]
    checked_name("name", name)
    checked_name("site", settings.site)
    checked_prefix(settings.prefix)
    project = (folder / settings.project).resolve()
    files = {
        key: str((folder / value).resolve())
        for key in ("ca_file", "cert_file", "key_file")
        if (value := getattr(settings, key))
    }
    store = str((project / settings.store).resolve())
    return msgspec.structs.replace(settings, name=name, project=str(project), store=store, **files)
