"""The list of the agents that belong to a fleet: rows of the store, one for each agent, over which
`agents:` of conf/mqtt.yml is laid.

The active gateway writes what the file says into the rows, so that all who add jobs go by the same
list, with the project's files or without.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from fp_async.admission import Admitted
from fp_async.config import AdmittedAgent
from fp_async.jobs import EVER, Member
from fp_async.stores import Store

_KIND = "admitted"


class _Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """The entry of an agent: told by a command, or by the file of each site's gateway."""

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
    """Admit an agent, or with None no more; return all that are admitted then. An agent that the
    file names stays admitted.
    """
    rows = await _rows(store)
    rows[name] = replace(rows.get(name, _Row()), told=grant)
    await _write(store, name, rows[name])
    return {name: row.grant for name, row in rows.items() if row.grant is not None}


async def take_over(store: Store, site: str, agents: Admitted) -> dict[str, AdmittedAgent]:
    """Have the rows say what the file of a site says; return all that are admitted then."""
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
    await store.saw(Member(kind=_KIND, name=name, info=info), 0 if row.grant is None else EVER)
