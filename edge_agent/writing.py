"""Files that `fp-agent` writes: agent.yml, a first pipeline, a systemd unit."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.config import KEYS, AgentSettings, flag
from edge_agent.options import HELP
from fp_async import schemas
from fp_async.errors import UsageError

SECRETS = "/etc/fp-agent/environment"
_SCHEMA = ".agent.schema.json"
_OWN_MEMORY = 128  # MiB: four times what the agent needs when nothing runs
_PLAIN = re.compile(r"[A-Za-z0-9_./:=,@%$+-]+")

_PIPELINE = '''"""What this device does: functions are nodes, their parameters nodes or inputs."""

import os


def load() -> float:
    """The system's load of the last minute."""
    return os.getloadavg()[0]


def busy(load: float, limit: float = 1.0) -> bool:
    """Whether that is much."""
    return load > limit
'''
_TRIGGERS = """
# Topics that run pipelines on the device itself, with or without a network:
# triggers:
#   readings:
#     topic: sensors/+/temperature
#     pipeline: device
#     inputs: {value: $payload.value, sensor: $topic.1}
"""


_UNIT = """[Unit]
Description=FlowerPower agent {name}
# Not network-online: it works without a network.
After=network.target
# It is started again for ever.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
EnvironmentFile=-{secrets}
{user}Restart=always
RestartSec=2
# Pauses of up to a minute, where systemd knows of that (from version 254 on).
RestartSteps=5
RestartMaxDelaySec=60
WatchdogSec=60
TimeoutStopSec={stop}
KillMode=mixed

# A job that takes too much memory is killed, and the agent goes on.
OOMPolicy=continue
{memory}

# It writes the store's folder, and nothing else. Devices stay visible, for sensors.
UMask=0077
ProtectSystem=strict
ReadWritePaths="{folder}"
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


def project(folder: Path) -> list[Path]:
    """Write agent.yml, and a first pipeline where there is none; what was written."""
    pipelines = folder / "pipelines"
    pipelines.mkdir(parents=True, exist_ok=True)
    written = [folder / "agent.yml", schema(folder)]
    written[0].write_text(settings_file(), encoding="utf-8")
    if not any(pipelines.glob("*.py")):
        written.append(pipelines / "device.py")
        written[-1].write_text(_PIPELINE, encoding="utf-8")
    return written


def schema(folder: Path) -> Path:
    """Write the JSON Schema of agent.yml, for editors; returns its file."""
    words = {**HELP, "triggers": "Topics that run pipelines on the device itself, by name."}
    path = folder / _SCHEMA
    text = json.dumps(schemas.schema(AgentSettings, "agent.yml", words), indent=1)
    path.write_text(f"{text}\n", encoding="utf-8")
    return path


def settings_file() -> str:
    """agent.yml with every key, its default and what it means."""
    defaults = AgentSettings()
    lines = [
        f"# yaml-language-server: $schema={_SCHEMA}",
        "# The agent of this device; `fp-agent run --help` says the same.",
        "",
    ]
    for key in KEYS:
        value = msgspec.to_builtins(getattr(defaults, key))
        shown = "" if value in (None, "") else f" {_shown(value)}"
        lines += [f"# {HELP[key]}", f"{'' if key == 'broker' else '# '}{key}:{shown}"]
    return "\n".join([*lines, _TRIGGERS.rstrip(), ""])


def _shown(value: Any) -> Any:
    """A default as YAML has it."""
    if isinstance(value, list):
        return f"[{', '.join(value)}]"
    return value if value != {} else "{site: berlin}"


def place(settings: AgentSettings) -> Path:
    """The folder of the store: all that the agent writes is there."""
    return Path(settings.store).parent


def unit(
    settings: AgentSettings, config: Path | None, flags: Mapping[str, Any], user: str | None
) -> str:
    """A systemd unit that runs the agent with this file and these flags."""
    return _UNIT.format(
        name=settings.name,
        command=" ".join(map(_quoted, _command(settings, config, flags))),
        user=f"User={user}\n" if user else "",
        stop=f"{settings.grace + 15:g}",
        folder=str(place(settings)).replace("%", "%%"),
        secrets=SECRETS,
        memory=_memory(settings),
    )


def _command(
    settings: AgentSettings, config: Path | None, flags: Mapping[str, Any]
) -> Iterator[str]:
    yield from (sys.executable, "-m", "edge_agent", "run")
    if config is not None:
        yield from ("--config", str(config.resolve()))
    for key in ("broker", "triggers_broker"):
        if key in flags and "@" in (getattr(settings, key) or ""):
            raise UsageError(
                f"{flag(key)}: a login would stand in the unit, which everybody can read; give the "
                "address alone, and username and password in agent.yml or the environment file"
            )
    settled = {"project": settings.project, "store": settings.store}
    given = {key: getattr(settings, key) for key in flags if key != "password"}
    for key, value in {**settled, **given}.items():
        for text in _texts(value):
            yield from (flag(key), text)


def _texts(value: Any) -> list[str]:
    """A value as its flag takes it, which may have to be given more than once."""
    if isinstance(value, Mapping):
        return [f"{name}={text}" for name, text in value.items()]
    return [",".join(value) if isinstance(value, list) else str(value)]


def _quoted(word: str) -> str:
    """As systemd reads it: with % and $ for themselves."""
    word = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    return word if _PLAIN.fullmatch(word) else '"' + word.replace('"', '\\"') + '"'


def _memory(settings: AgentSettings) -> str:
    if settings.memory_limit is None:
        return "# Jobs count as well, so leave them room:\n# MemoryMax=512M"
    return f"MemoryMax={_OWN_MEMORY + settings.slots * settings.memory_limit}M"
