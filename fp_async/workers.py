"""A project's workers, as its settings say."""

from __future__ import annotations

from fp_async import json_logs
from fp_async.backend import Backend
from fp_async.config import WorkerSettings
from fp_async.flows import Flows
from fp_async.job_tracking import JobTracking
from fp_async.runner import InlineRunner, ProcessRunner
from fp_async.worker import Worker


def make_worker(
    flows: Flows, backend: Backend, settings: WorkerSettings, log_level: str = "info"
) -> Worker:
    """A worker on this event loop, with the runner that its settings say. Jobs in processes of
    their own log from `log_level` on; in this one its logging says so.
    """
    watch = JobTracking(flows.root).watch
    if settings.runner == "inline":
        connect = backend.another_store if backend.store.shared else None
        return Worker(backend, settings, InlineRunner(flows), connect, watch=watch)
    runner = ProcessRunner(
        flows.root, settings, flows.callbacks, json_logs.installed(), flows, log_level
    )
    return Worker(backend, settings, runner, None, watch=watch)
