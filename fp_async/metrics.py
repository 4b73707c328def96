"""What Prometheus reads of a worker, a scheduler, a gateway or an agent.

The server is the client library's own, in a thread; what stands in the store is read when it is
asked for. Needs the extra `metrics`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fp_async import admission, presence, watching
from fp_async.errors import FlowerPowerError, MissingExtraError, UsageError
from fp_async.jobs import Fire, Job, Report
from fp_async.observing import OUTCOMES

if TYPE_CHECKING:
    from fp_async.board import Board
    from fp_async.observing import Observer
    from fp_async.presence import Known
    from fp_async.stores import Store

Family = Any
Source = Callable[[], Awaitable[Iterable[Family]]]
_NAMED = 200  # agents that are shown by name
_LONGEST = 5.0  # seconds that a scrape waits for the store
_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 1800.0)


def _client() -> Any:
    try:
        import prometheus_client
    except ImportError as error:
        raise MissingExtraError("a metrics endpoint", "metrics") from error
    return prometheus_client


def gauge(name: str, text: str, values: Iterable[tuple[dict[str, str], float]]) -> Family:
    """A family of gauges as it is now; all its values have the same labels."""
    from prometheus_client.core import GaugeMetricFamily

    rows = list(values)
    labels = list(rows[0][0]) if rows else []
    family = GaugeMetricFamily(f"flowerpower_{name}", text, labels=labels)
    for given, value in rows:
        family.add_metric(list(given.values()), value)
    return family


class Counters:
    """An observer that counts. Raises MissingExtraError."""

    def __init__(self) -> None:
        client = _client()
        self.registry: Any = client.CollectorRegistry()
        client.ProcessCollector(registry=self.registry)
        more = {"registry": self.registry, "namespace": "flowerpower"}
        spread = {**more, "buckets": _SECONDS}
        labels = ("pipeline", "queue")
        self._attempts = client.Counter("attempts", "Attempts begun here.", labels, **more)
        self._waits = client.Histogram(
            "wait_seconds", "From when a job was due to when it was begun here.", labels, **spread
        )
        self._outcomes = client.Counter(
            "outcomes", "How attempts ended.", ("pipeline", "queue", "outcome"), **more
        )
        self._times = client.Histogram(
            "attempt_seconds", "How long attempts took.", labels, **spread
        )
        self._fires = client.Counter("fires", "Times of schedules fired.", ("schedule",), **more)
        self._late = client.Histogram(
            "fire_late_seconds", "From a schedule's time to its job.", **spread
        )

    def claimed(self, jobs: Sequence[Job]) -> None:
        now = time.time()
        for job in jobs:
            self._attempts.labels(job.pipeline, job.queue).inc()
            self._waits.labels(job.pipeline, job.queue).observe(max(now - job.run_at, 0.0))

    def trace(self, job: Job) -> str | None:
        """It has none."""

    def reported(self, job: Job, report: Report, seconds: float) -> None:
        outcome = OUTCOMES.get(report.event)
        if outcome is not None:
            self._ended(job, outcome, seconds)

    def lost(self, job: Job) -> None:
        self._ended(job, "lost", 0.0)

    def adopted(self, job: Job) -> None:
        self._ended(job, job.state, (job.ended_at or 0.0) - (job.started_at or 0.0))

    def _ended(self, job: Job, outcome: str, seconds: float) -> None:
        self._outcomes.labels(job.pipeline, job.queue, outcome).inc()
        if job.started_at is not None and outcome in ("succeeded", "failed", "retried"):
            self._times.labels(job.pipeline, job.queue).observe(max(seconds, 0.0))

    def fired(self, fire: Fire, late: float) -> None:
        self._fires.labels(fire.id).inc(len(fire.jobs))
        self._late.observe(max(late, 0.0))


# What stands in the store -----------------------------------------------------------------------


async def of_store(store: Store) -> list[Family]:
    """Queues, the oldest that waits in each, and workers. `store_up` is 0 where it is away."""
    try:
        counts = await store.counts()
        queues = sorted({queue for queue, state in counts if state == "queued"})
        due = {queue: await store.next_run_at([queue]) for queue in queues}
        now = await store.now()
        workers = len(await watching.alive(store, "worker"))
        misconfigured = await store.misconfigured()
    except FlowerPowerError:
        return [gauge("store_up", "Whether the data store can be reached.", [({}, 0)])]
    return [
        gauge("store_up", "Whether the data store can be reached.", [({}, 1)]),
        gauge(
            "jobs",
            "Jobs in the data store.",
            [({"queue": q, "state": s}, n) for (q, s), n in sorted(counts.items())],
        ),
        gauge(
            "queue_oldest_seconds",
            "How long the oldest job that a worker could begin has waited.",
            [({"queue": q}, max(now - at, 0.0)) for q, at in due.items() if at is not None],
        ),
        gauge(
            "jobs_misconfigured",
            "Queued jobs that wait until the configuration of a worker is right.",
            [
                ({"queue": queue, "pipeline": pipeline, "state": f"queued: {reason}"}, count)
                for (queue, pipeline, reason), count in sorted(misconfigured.items())
            ],
        ),
        gauge("workers", "Workers that are there.", [({}, workers)]),
    ]


def of_board(
    board: Board,
    *,
    active: bool,
    counts: dict[str, int],
    dropped: Mapping[str, Mapping[str, int]] | None = None,
) -> list[Family]:
    """Agents by state, what they hold and have not told, as the active gateway knows it."""
    now = time.time()
    states = dict.fromkeys(("ready", "away", "new", "draining", "quarantined"), 0)
    for name, known in list(board.agents.items()):
        state = presence.describe(
            known,
            drained=name in board.drained,
            now=now,
            admitted=admission.admits(board.admitted, name),
        )
        states[state] = states.get(state, 0) + 1
    named = _by_name(board)
    beats = [known.beat for known in list(board.agents.values()) if known.beat is not None]
    return [
        gauge("gateway_active", "Whether this gateway is the active one.", [({}, active)]),
        gauge("agents", "Agents.", [({"state": s}, n) for s, n in states.items()]),
        gauge("agent_jobs", "Jobs that agents were offered or have.", [({}, len(board.open))]),
        gauge(
            "agent_outbox",
            "Outcomes that agents have not told, by their heartbeats.",
            [({}, sum(beat.outbox for beat in beats))],
        ),
        gauge(
            "agent_up",
            "Whether an agent is there and believed.",
            [({"agent": name}, _present(known)) for name, known in named],
        ),
        gauge(
            "agent_untold",
            "Outcomes that an agent has not told, by its heartbeat.",
            [({"agent": name}, known.beat.outbox) for name, known in named if known.beat],
        ),
        gauge(
            "agent_dropped",
            "What of an agent was above a budget and dropped.",
            [
                ({"agent": name, "budget": what.replace(" ", "_")}, number)
                for name, known in named
                for what, number in sorted((dropped or {}).get(name, known.dropped).items())
            ],
        ),
        gauge(
            "gateway_events",
            "What has happened at this gateway since it began.",
            [({"event": what.replace(" ", "_")}, n) for what, n in sorted(counts.items())],
        ),
    ]


def _by_name(board: Board) -> list[tuple[str, Known]]:
    """The agents that are shown by name: those with most untold first, those that are away next."""

    def urgency(entry: tuple[str, Known]) -> tuple[int, bool, str]:
        name, known = entry
        return -(known.beat.outbox if known.beat else 0), known.away_since is None, name

    return sorted(board.agents.items(), key=urgency)[:_NAMED]


def _present(known: Known) -> bool:
    return known.away_since is None and known.quarantine is None


# Serving ----------------------------------------------------------------------------------------


class _Asked:
    """Asks its sources on their event loop, from the thread that serves."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._loop = asyncio.get_running_loop()

    def describe(self) -> list[Family]:
        return []  # not asked before it is served

    def collect(self) -> list[Family]:
        asked = asyncio.run_coroutine_threadsafe(self._all(), self._loop)
        try:
            return asked.result(_LONGEST)
        except TimeoutError:
            asked.cancel()
            return []

    async def _all(self) -> list[Family]:
        return [family for source in self._sources for family in await source()]


@asynccontextmanager
async def served(
    host: str, port: int, observers: list[Observer], *sources: Source
) -> AsyncIterator[int]:
    """Serve http://host:port/metrics until the block ends; the port, which may be given as 0.

    Raises MissingExtraError, and UsageError where nothing can listen there.
    """
    counters = Counters()
    counters.registry.register(_Asked(sources))
    try:
        server, thread = _client().start_http_server(port, host, counters.registry)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"metrics cannot be served at {host}:{port}: {reason}") from error
    observers.append(counters)
    try:
        yield int(server.server_port)
    finally:
        observers.remove(counters)
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join(1.0)
