"""Files that `fp-agent` writes: agent.yml, a first pipeline, a systemd unit."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from edge_agent.config import KEYS, AgentSettings
from edge_agent.options import HELP

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


def project(folder: Path) -> list[Path]:
    """Write agent.yml, and a first pipeline where there is none; what was written."""
    pipelines = folder / "pipelines"
    pipelines.mkdir(parents=True, exist_ok=True)
    written = [folder / "agent.yml"]
    written[0].write_text(settings_file(), encoding="utf-8")
    if not any(pipelines.glob("*.py")):
        written.append(pipelines / "device.py")
        written[1].write_text(_PIPELINE, encoding="utf-8")
    return written


def settings_file() -> str:
    """agent.yml with every key, its default and what it means."""
    defaults = AgentSettings()
    lines = ["# The agent of this device; `fp-agent run --help` says the same.", ""]
    for key in KEYS:
        value = msgspec.to_builtins(getattr(defaults, key))
        shown = "" if value in (None, "") else f" {value}" if value != {} else " {site: berlin}"
        lines += [f"# {HELP[key]}", f"{'' if key == 'broker' else '# '}{key}:{shown}"]
    return "\n".join([*lines, _TRIGGERS.rstrip(), ""])


def unit(settings: AgentSettings, config: Path | None, user: str | None) -> str:
    """A systemd unit. Only the store's folder can be written, and nothing else can be done."""
    chosen = f" --config {config.resolve()}" if config is not None else ""
    place = f"--project {settings.project} --store {settings.store}"
    who = f"User={user}\n" if user else ""
    return f"""[Unit]
Description=FlowerPower agent {settings.name}
# Not network-online: it works without a network.
After=network.target

[Service]
Type=notify
ExecStart={sys.executable} -m edge_agent run{chosen} {place}
{who}Restart=always
RestartSec=2
WatchdogSec=60
TimeoutStopSec={settings.grace + 15:g}
KillMode=mixed
RuntimeDirectory=fp-agent
ReadWritePaths={Path(settings.store).parent}
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
LockPersonality=yes
CapabilityBoundingSet=
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""
