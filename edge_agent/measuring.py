"""What Prometheus reads of an agent, where `metrics_port` is set."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from edge_agent.agent import Agent
from fp_async import metrics

log = logging.getLogger("fp_async.agent")


async def serve(agent: Agent) -> None:
    """Serve until cancelled. Raises MissingExtraError, UsageError."""
    settings = agent.settings
    assert settings.metrics_port is not None

    async def source() -> list[Any]:
        return await families(agent)

    place = (settings.metrics_host, settings.metrics_port)
    async with metrics.served(*place, agent.backend.observers, source) as port:
        log.info("metrics: http://%s:%d/metrics", settings.metrics_host, port)
        await asyncio.Event().wait()


async def families(agent: Agent) -> list[Any]:
    """Its jobs, its outbox, its disk and its link, as they are now."""
    number, size = await agent.rows.waiting()
    counts = await agent.store.counts()
    return [
        metrics.gauge(
            "jobs",
            "Jobs in the agent's store.",
            [({"state": s}, n) for (_, s), n in counts.items()],
        ),
        metrics.gauge("outbox", "Outcomes that wait to be told.", [({}, number)]),
        metrics.gauge("outbox_bytes", "Their size.", [({}, size)]),
        metrics.gauge("running", "Jobs that run.", [({}, agent.worker.running)]),
        metrics.gauge("slots", "Jobs at once.", [({}, agent.settings.slots)]),
        metrics.gauge("connected", "Whether the broker can be reached.", [({}, agent.connected)]),
        metrics.gauge(
            "problems", "What fp-agent status complains of.", [({}, len(agent.problems))]
        ),
        metrics.gauge("disk_free_bytes", "Beside the store.", [({}, agent.house.disk_free)]),
    ]
