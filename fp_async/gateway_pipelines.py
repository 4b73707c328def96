"""What a gateway knows of pipelines that agents name: which there are, how long outcomes stay."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fp_async import jobs
from fp_async.errors import FlowerPowerError

if TYPE_CHECKING:
    from fp_async.gateway import Gateway
    from fp_async.jobs import Job

OTHER = "other"
_SECONDS = 30.0


class Pipelines:
    """Those of the project, as they were half a minute ago at most."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._until = 0.0
        self._names: frozenset[str] = frozenset()

    def shown(self, name: str) -> str:
        """Return the name under which a pipeline is counted: all that only agents have are one."""
        return name if name in self._known() else OTHER

    def longest(self, job: Job) -> float:
        """Return how long the outcome of a job that an agent began is kept at most: as long as one
        that was begun here.
        """
        own = self._gateway.kept.longest(job.schedule_id) if job.schedule_id else 0.0
        return max(jobs.RESULT_TTL, own, self._configured(job))

    def _configured(self, job: Job) -> float:
        if job.pipeline not in self._known():
            return 0.0
        try:
            settings = self._gateway.flows.settings(job.pipeline, job.rules.environment)
        except FlowerPowerError:  # told where that matters
            return 0.0
        return settings.result_ttl or 0.0

    def _known(self) -> frozenset[str]:
        if time.monotonic() >= self._until:
            self._names = frozenset(self._gateway.flows.names())
            self._until = time.monotonic() + _SECONDS
        return self._names
