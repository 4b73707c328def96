"""The first lines of an agent's log: how it logs, and mistakes that jobs will fail of."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge_agent.config import AgentSettings
from fp_async import json_logs, log_levels, versions
from fp_async.errors import FlowerPowerError, suggestion

FORMAT = "%(asctime)s %(levelname)s %(message)s"
log = logging.getLogger("fp_async.agent")


def set_up_log(settings: AgentSettings) -> None:
    """Log to standard error, as the settings say."""
    level = getattr(logging, settings.log_level.upper())
    log_levels.write(max(level, logging.WARNING), FORMAT)
    if settings.log_format == "json":
        json_logs.install(agent=settings.name)
    logging.getLogger("fp_async").setLevel(level)  # aiosqlite tells of every statement


def handed_over(settings: AgentSettings) -> str:
    """Return the number of a descriptor from which the program that this process becomes reads the
    settings: its environment could be read by every process of the same user.
    """
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("fp-agent-settings")
    else:
        import tempfile  # with all that it loads, for systems without

        with tempfile.TemporaryFile() as kept:
            file = os.dup(kept.fileno())
    os.write(file, msgspec.json.encode(settings))
    os.lseek(file, 0, os.SEEK_SET)
    os.set_inheritable(file, True)
    return str(file)


def taken_over(descriptor: str) -> AgentSettings:
    """Return the settings that were handed over."""
    with os.fdopen(int(descriptor), "rb") as file:
        return msgspec.json.decode(file.read(), type=AgentSettings)


def warn(settings: AgentSettings) -> None:
    """Log each thing that jobs will fail of; in the process of the command, which may load YAML."""
    for text in _wrong(settings):
        log.warning("%s", text)


def _wrong(settings: AgentSettings) -> Iterator[str]:
    from fp_async import config_files

    root = Path(settings.project)
    try:
        config_files.of(root).pipelines().whole()
    except FlowerPowerError as error:
        yield str(error)
    yield from unknown_pipelines(settings)


def unknown_pipelines(settings: AgentSettings) -> Iterator[str]:
    """Return the warnings about pipelines that agent.yml names and that are not on the device."""
    found = versions.names(Path(settings.project))
    for name, trigger in settings.triggers.items():
        if trigger.pipeline not in found:
            hint = suggestion(trigger.pipeline, found)
            yield f"trigger '{name}': there is no pipeline '{trigger.pipeline}'{hint}"
    for name in settings.pipelines or ():
        if name not in found:
            yield f"pipelines: there is no pipeline '{name}'{suggestion(name, found)}"
