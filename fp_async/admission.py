"""Who is admitted to a fleet, with which tags and how many jobs at once.

The list is rows of the store, one for each agent, over which `agents:` of conf/mqtt.yml is laid:
the active gateway writes what the file says into the rows, so that all who add jobs go by the same
list, with the project's files or without. Without any entry the fleet is open: each client that
the broker lets speak as an agent is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from fp_async.config import AdmittedAgent
from fp_async.errors import UnknownNameError, UsageError
from fp_async.jobs import Member
from fp_async.messages import AgentState
from fp_async.presence import Known

if TYPE_CHECKING:
    from fp_async.stores import Store

Admitted = Mapping[str, AdmittedAgent]  # by name; empty in an open fleet
ANY = "*"  # any value of a tag
OPEN = (
    "the fleet is open: each client that the broker lets speak as an agent is one, reads the jobs "
    "that it is offered and tells their results; name the agents under `agents:` in conf/mqtt.yml, "
    "or: flowerpower agent NAME --admit"
)
_KIND = "admitted"
_EVER = 100 * 365 * 86_400.0


class _Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an agent is admitted: by a command, by the file of a site's gateway, or by both."""

    told: AdmittedAgent | None = None
    files: dict[str, AdmittedAgent] = {}

    @property
    def grant(self) -> AdmittedAgent | None:
        return next(iter(self.files.values()), self.told)


async def admitted(store: Store) -> dict[str, AdmittedAgent]:
    """Return all agents that are admitted, by name; none where the fleet is open."""
    rows = (await _rows(store)).items()
    return {name: row.grant for name, row in rows if row.grant is not None}


async def _rows(store: Store) -> dict[str, _Row]:
    members = await store.members(_KIND)
    return {member.name: msgspec.json.decode(member.info, type=_Row) for member in members}


async def tell(store: Store, name: str, grant: AdmittedAgent | None) -> dict[str, AdmittedAgent]:
    """Admit an agent, or with None no more; return who is admitted then. One that the file names
    stays so.
    """
    rows = await _rows(store)
    rows[name] = replace(rows.get(name, _Row()), told=grant)
    await _write(store, name, rows[name])
    return {name: row.grant for name, row in rows.items() if row.grant is not None}


async def take_over(store: Store, site: str, agents: Admitted) -> dict[str, AdmittedAgent]:
    """Have the rows say what the file of a site says; return who is admitted then."""
    rows = await _rows(store)
    for name in {*rows, *agents}:
        row = rows.get(name, _Row())
        files = {where: each for where, each in row.files.items() if where != site}
        if name in agents:
            files = {**files, site: agents[name]}
        if files != row.files:
            rows[name] = replace(row, files=files)
            await _write(store, name, rows[name])
    return {name: row.grant for name, row in rows.items() if row.grant is not None}


async def _write(store: Store, name: str, row: _Row) -> None:
    info = msgspec.json.encode(row)
    await store.saw(Member(kind=_KIND, name=name, info=info), 0 if row.grant is None else _EVER)


def grant(tags: Mapping[str, str] | None, window: int | None) -> AdmittedAgent:
    """Return what an agent may. Raises UsageError."""
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
    """Return what an agent says of itself within what it may: its tags and its window."""
    tags = {tag: value for tag, value in said.tags.items() if _bears(grant, tag, value)}
    window = said.window if grant.window is None else min(said.window, grant.window)
    if len(tags) == len(said.tags) and window == said.window:
        return said
    return replace(said, tags=tags, window=window)


def believed(known: Known, said: AgentState) -> Known:
    """Return the belief with what the agent says beyond what it may, as people are shown it."""
    ignored = {tag: value for tag, value in said.tags.items() if tag not in known.state.tags}
    return replace(known, ignored=ignored, wanted=said.window)


def renewed(known: Known, grant: AdmittedAgent) -> Known:
    """Return the belief after the list has changed."""
    tags = {**known.state.tags, **known.ignored}
    said = replace(known.state, tags=tags, window=known.wanted or known.state.window)
    return believed(replace(known, state=cut(said, grant)), said)


def _bears(grant: AdmittedAgent, tag: str, value: str) -> bool:
    return grant.tags is None or grant.tags.get(tag) in (ANY, value)
