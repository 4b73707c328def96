"""Where jobs and schedules are kept: the contract that every store fulfils.

Each verb is one statement or one transaction, and may be called again after it was cut off:
cancelling the coroutine or killing the process leaves the rows before or after it, never
between. What a row changes by is decided in `jobs`. The same tests run against all of them
(`tests/test_stores.py`, `tests/test_stores_fleet.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fp_async import addresses
from fp_async.config import DataStore
from fp_async.errors import ConfigError
from fp_async.jobs import Find, Fire, Job, Member, Report, Schedule
from fp_async.stores.fleet import Fleet

if TYPE_CHECKING:
    from fp_async.stores.transfer import Transfer

SCHEMA_VERSION = 2
IdColumn = Literal["id", "group_id"]
AFTER_HEX = "g"  # sorts after all that a UUID is made of, in every collation
LOST, HELD, CANCEL = "lost", "held", "cancel"


class Store(Protocol):
    """Jobs, schedules and members. Raises StoreUnavailableError and StoreError."""

    @property
    def shared(self) -> bool:
        """Whether other processes can see it."""

    @property
    def path(self) -> Path | None:
        """The file of this machine that it is; None where it is none."""

    @property
    def joins(self) -> bool:
        """Whether calls that come at the same time share a transaction, in their order."""

    @property
    def fleet(self) -> Fleet:
        """The part of the contract that is about jobs on agents."""

    @property
    def transfer(self) -> Transfer:
        """The part of the contract that copies whole rows."""

    async def open(self) -> None:
        """Connect; make or migrate the tables. Raises StoreError where they are newer."""

    async def close(self) -> None:
        """Let go of every connection. Called twice, it does nothing more."""

    async def now(self) -> float:
        """The time by the store's clock, in seconds since the epoch."""

    # Jobs -----------------------------------------------------------------------------------

    async def add(self, jobs: Sequence[Job]) -> list[str]:
        """Insert; for each job its id, or that of the active job that bears its key already.

        A job whose id exists (pruned ones included) is left as it is. `run_at` 0 means now.
        """

    async def claim(
        self,
        owner: str,
        queues: Sequence[str],
        limit: int,
        lease: float,
        without: Sequence[str] = (),
    ) -> list[Job]:
        """Take up to `limit` due jobs, by priority (high first), `run_at`, order of insertion.

        They are running afterwards, with the next attempt number and a lease of `lease`
        seconds. Jobs for agents, and jobs whose pipeline or schedule has no free place, stay, and
        so do those with the ids `without`.
        """

    async def renew(self, owner: str, held: Sequence[tuple[str, int]], lease: float) -> list[str]:
        """For each (id, attempt): HELD and leased anew, CANCEL likewise and asked for, or LOST."""

    async def note(self, records: Sequence[tuple[str, int, bytes]]) -> None:
        """Store the record so far of (id, attempt, record), where that still runs."""

    async def finish(self, reports: Sequence[Report]) -> list[bool]:
        """Store what became of attempts; False where a report is stale and changed nothing."""

    async def cancel(self, id: str, reason: str | None = None) -> str | None:
        """Ask for an end; the state afterwards, None for an unknown id."""

    async def rescue(self, dead: Sequence[str] = ()) -> list[Job]:
        """Do what nobody else would: end expired leases and those of `dead` owners as crashes,
        expire jobs, end cancels that nobody confirms. The jobs that changed, without blobs.
        """

    async def owners(self) -> list[str]:
        """Who holds running jobs."""

    async def get(self, id: str) -> Job | None:
        """The whole row; None for an unknown or pruned id."""

    async def find(self, query: Find) -> list[Job]:
        """Rows without their blobs, the newest first."""

    async def ids(
        self, beginnings: Sequence[str], limit: int = 2, *, of: IdColumn = "id"
    ) -> list[list[str]]:
        """For each beginning of an id up to `limit` ids that begin so, in order.

        A beginning is made of the characters of a UUID, in lower case.
        """

    async def counts(self) -> dict[tuple[str, str], int]:
        """How many jobs there are by (queue, state)."""

    async def next_run_at(self, queues: Sequence[str], without: Sequence[str] = ()) -> float | None:
        """When the next job that waits for its time becomes due, but for those ids."""

    async def misconfigured(self) -> dict[tuple[str, str, str], int]:
        """Return how many jobs workers have released, or wait on agents for their configuration, by
        (queue, pipeline, reason).
        """

    async def prune(self, limit: int = 1000) -> int:
        """Remove up to `limit` ended jobs whose time is over; ids with an identity stay.

        Jobs that are `unreported` stay whole, and so do those whose requester has no reply yet, for
        seven days more. Old dead letters and parts of results go, too.
        """

    # Schedules ------------------------------------------------------------------------------

    async def put(self, schedule: Schedule) -> Schedule:
        """Insert or replace by id; counters stay, `revision` goes up. The row as it is now."""

    async def schedule(self, id: str) -> Schedule | None:
        """One schedule."""

    async def schedules(self) -> list[Schedule]:
        """All of them, by id."""

    async def pause(
        self, id: str, *, paused: bool, next_fire_time: float | None = None
    ) -> Schedule | None:
        """Pause, or resume from `next_fire_time`; None for an unknown id."""

    async def delete(self, id: str) -> bool:
        """Whether there was such a schedule."""

    async def due(self, until: float, limit: int = 500) -> list[Schedule]:
        """Schedules that are not paused and fire at `until` or before, the earliest first."""

    async def next_due(self) -> float | None:
        """When the next schedule that is not paused fires."""

    async def fire(self, fires: Sequence[Fire]) -> list[list[str] | None]:
        """Add the jobs and move the schedules on, together; the ids of the jobs added.

        None where the schedule has moved since, was changed, or has fired at that moment already.
        A job whose key an active job bears is counted as skipped.
        """

    # Members --------------------------------------------------------------------------------

    async def saw(self, member: Member, seconds: float) -> None:
        """Remember a member for so many seconds; 0 forgets it."""

    async def members(self, kind: str) -> list[Member]:
        """Those that were seen and whose time is not over, by name."""

    # Housekeeping ---------------------------------------------------------------------------

    async def info(self) -> dict[str, Any]:
        """What `flowerpower store info` shows: kind, place, schema, size, rows."""

    async def vacuum(self) -> None:
        """Give space back to the system, where the store knows how."""


_SCHEMES = {
    "sqlite": "sqlite",
    "postgresql": "postgres",
    "postgres": "postgres",
    "mysql": "mysql",
    "mariadb": "mysql",
    "mongodb": "mongodb",
    "mongodb+srv": "mongodb",
}
_DEFAULT_URIS = {
    "sqlite": "sqlite:///flowerpower.db",
    "postgres": "postgresql://localhost:5432/flowerpower",
    "mysql": "mysql://localhost:3306/flowerpower",
    "mongodb": "mongodb://localhost:27017/flowerpower",
}


def connect(
    settings: DataStore, folder: Path, replaced: Callable[[], object] = lambda: None
) -> Store:
    """The store of a configuration, not opened yet; paths are relative to `folder`. `replaced` is
    called where another file has taken the place of a store that is a file.

    Raises ConfigError for a URI that does not fit its type, MissingExtraError.
    """
    kind, uri = backend(settings)
    if kind in ("memory", "sqlite"):
        from fp_async.stores.sqlite import SqliteStore

        return SqliteStore(None if kind == "memory" else sqlite_path(uri, folder), replaced)
    if kind == "mongodb":
        from fp_async.stores.mongo import MongoStore

        return MongoStore(uri)
    from fp_async.stores.sql import SqlStore

    return SqlStore(kind, uri)


def module(settings: DataStore) -> str:
    """Return the name of the module that `connect` needs. Raises ConfigError."""
    kind = backend(settings)[0]
    names = {"memory": "sqlite", "sqlite": "sqlite", "mongodb": "mongo"}
    return f"fp_async.stores.{names.get(kind, 'sql')}"


def backend(settings: DataStore) -> tuple[str, str]:
    """(memory | sqlite | postgres | mysql | mongodb, URI) of a configuration."""
    if settings.type == "memory":
        return "memory", ""
    try:
        found, uri = kind_of(settings.uri or _DEFAULT_URIS.get(settings.type, ""))
    except ValueError as error:
        raise ConfigError(f"conf/scheduler.yml: data_store.uri: {error}") from None
    if settings.type not in ("sqlalchemy", found):
        raise ConfigError(
            f"conf/scheduler.yml: data_store: type '{settings.type}' does not fit the URI, "
            f"which is of type '{found}'"
        )
    return found, uri


def kind_of(uri: str) -> tuple[str, str]:
    """Return (sqlite | postgres | mysql | mongodb, the URI as every parser reads it).

    Raises ValueError for a URI of something else.
    """
    uri = addresses.normal(uri)
    scheme, colon, _ = uri.partition("://")
    found = _SCHEMES.get(scheme.partition("+")[0] if scheme not in _SCHEMES else scheme)
    if not colon or found is None:
        schemes = ", ".join(dict.fromkeys(_SCHEMES))
        raise ValueError(
            f"{addresses.place(uri)!r} is no URI of a data store; begin it with one of: {schemes}"
        )
    return found, uri


def sqlite_path(uri: str, folder: Path) -> Path | None:
    """The file of `sqlite:///relative` or `sqlite:////absolute`; None for one in memory."""
    place = uri.partition("://")[2].partition("?")[0].removeprefix("/")
    if place in ("", ":memory:"):
        return None
    return (folder / place).resolve()


def namespace(settings: DataStore, folder: Path) -> str:
    """What the processes that share a store call their channel of the event broker."""
    kind, uri = backend(settings)
    if kind == "memory":
        return "memory"
    path = sqlite_path(uri, folder) if kind == "sqlite" else None
    name = path.stem if path else uri.rpartition("/")[2].partition("?")[0]
    return name or "flowerpower"
