"""Rules of agent.yml for what the center may run on the device: pipelines, executors, options.

Pure. The broker is no authority: the agent refuses an offer or a schedule that asks for more.
What the device's own files say of executors is the device's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge_agent.config import AgentSettings
from fp_async import versions
from fp_async.config import ExecutorSettings
from fp_async.jobs import Spec

_USUAL = ExecutorSettings()


def pipelines(settings: AgentSettings) -> dict[str, str]:
    """Return the pipelines that may be run from afar, with their versions."""
    found, allowed = versions.versions(Path(settings.project)), settings.pipelines
    if allowed is None:
        return found
    return {name: version for name, version in found.items() if name in allowed}


def against(settings: AgentSettings, pipeline: str, spec: Spec) -> str | None:
    """Say why agent.yml forbids a job; None where it allows it."""
    allowed = settings.pipelines
    if allowed is not None and pipeline not in allowed:
        return _refusal(f"jobs of pipeline '{pipeline}'", "pipelines", allowed)
    return None if spec.executor is None else _against_executor(settings, spec.executor)


def _against_executor(settings: AgentSettings, asked: str | ExecutorSettings) -> str | None:
    executor = _read(asked)
    if executor.type not in settings.executors:
        return _refusal(f"executor '{executor.type}'", "executors", settings.executors)
    for option, value in msgspec.structs.asdict(executor).items():
        usual = option == "type" or value == getattr(_USUAL, option)
        if not usual and option not in settings.executor_options:
            return _refusal(
                f"{option} of an executor", "executor_options", settings.executor_options
            )
    return None


def _read(asked: str | ExecutorSettings) -> ExecutorSettings:
    """Read an executor as `executors.resolve` does, which the daemon does not load."""
    if isinstance(asked, ExecutorSettings):
        return asked
    name, _, address = asked.partition(":")
    return ExecutorSettings(type=name, address=address or None)


def _refusal(what: str, key: str, allowed: Sequence[str]) -> str:
    return (
        f"agent.yml allows no {what} from afar; it allows: {', '.join(allowed) or 'none'} ({key})"
    )
