"""The agents of a fleet: the tags that each may bear, and how many jobs it may have at once. Pure.

Without any entry the fleet is open: each client that the broker lets speak as an agent is one.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from fp_async.config import AdmittedAgent
from fp_async.errors import UnknownNameError, UsageError
from fp_async.messages import AgentState
from fp_async.presence import Known

Admitted = Mapping[str, AdmittedAgent]  # by name; empty in an open fleet
ANY = "*"  # any value of a tag
OPEN = (
    "the fleet is open: each client that the broker lets speak as an agent is one, reads the jobs "
    "that it is offered and tells their results; name the agents under `agents:` in conf/mqtt.yml, "
    "or: flowerpower agent NAME --admit"
)


def grant(tags: Mapping[str, str] | None, window: int | None) -> AdmittedAgent:
    """Build the entry of one agent. Raises UsageError."""
    try:
        return msgspec.convert({"tags": tags, "window": window}, AdmittedAgent)
    except msgspec.ValidationError as error:
        raise UsageError(f"what an agent may: {error}") from error


def of_file(agents: Mapping[str, AdmittedAgent | None] | None) -> dict[str, AdmittedAgent]:
    """Return the entries of `agents:` in conf/mqtt.yml; one without a value limits nothing."""
    return {name: entry or AdmittedAgent() for name, entry in (agents or {}).items()}


def admits(agents: Admitted, name: str) -> bool:
    """Return whether an agent belongs to the fleet."""
    return not agents or name in agents


def check(agents: Admitted, target: str | None) -> None:
    """Refuse a job for one agent that is not admitted. Raises UnknownNameError."""
    kind, _, name = (target or "").partition(":")
    if kind == "agent" and not admits(agents, name):
        raise UnknownNameError("admitted agent", name, agents)


def cut(said: AgentState, grant: AdmittedAgent) -> AgentState:
    """Cut the tags and the window in an agent's state to those that its entry allows."""
    tags = {tag: value for tag, value in said.tags.items() if _bears(grant, tag, value)}
    window = said.window if grant.window is None else min(said.window, grant.window)
    if len(tags) == len(said.tags) and window == said.window:
        return said
    return replace(said, tags=tags, window=window)


def believed(known: Known, said: AgentState) -> Known:
    """Add to the belief the tags and the window beyond the entry, which the commands show."""
    ignored = {tag: value for tag, value in said.tags.items() if tag not in known.state.tags}
    return replace(known, ignored=ignored, wanted=said.window)


def renewed(known: Known, grant: AdmittedAgent) -> Known:
    """Apply an entry that has changed to what is believed of its agent."""
    tags = {**known.state.tags, **known.ignored}
    said = replace(known.state, tags=tags, window=known.wanted or known.state.window)
    return believed(replace(known, state=cut(said, grant)), said)


def _bears(grant: AdmittedAgent, tag: str, value: str) -> bool:
    return grant.tags is None or grant.tags.get(tag) in (ANY, value)
