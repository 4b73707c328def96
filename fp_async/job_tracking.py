"""Jobs, told to the Hamilton UI: by the worker that has them run, and by the gateway for agents.

Each attempt on a worker is a run there, which the worker's own process tells, so that a killed
one has an end. Of a job on an agent the gateway tells the outcome with the timings of its nodes,
which is all that it knows of it: the device needs neither the UI nor a way to it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from fp_async import summaries, tracked_places, tracking, versions
from fp_async.attempt import Drawn, Order, Trail
from fp_async.config import WorkerSettings
from fp_async.errors import FlowerPowerError
from fp_async.held import Attempt, Heard
from fp_async.jobs import Failure, Job, NodeTiming, Report
from fp_async.runner import ProcessRunner
from fp_async.stores import Store
from fp_async.tracked_places import Place
from fp_async.tracker import TrackedRun, Tracker, tracker
from fp_async.tracking import Outcome, Run

log: logging.Logger = logging.getLogger("fp_async")
_WAITING = 1000  # outcomes that wait to be told
_DRAWINGS = 64
_DRAWING_TIME = 60.0  # seconds that loading a pipeline may take
_IDLE = 5.0
_INPUTS = 16_384  # bytes of inputs that are looked at
_TIMEOUTS = ("RunTimeoutError", "NodeTimeoutError")


class Places:
    """Where the runs of each pipeline are shown."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._warned: set[str] = set()

    def of(self, pipeline: str) -> Place | None:
        """None, with a warning once, where `conf/tracker.yml` does not say it."""
        try:
            return tracked_places.place(self._root, pipeline)
        except FlowerPowerError as error:
            if str(error) not in self._warned:
                self._warned.add(str(error))
                log.warning("jobs of '%s' are not tracked: %s", pipeline, error)
            return None


# On a worker --------------------------------------------------------------------------------


class JobTracking:
    """Tells the attempts that a worker makes."""

    def __init__(self, root: Path) -> None:
        self._places = Places(root)

    def watch(self, attempt: Attempt) -> Heard | None:
        """An attempt begins; what is to hear of its end, if it is tracked."""
        job = attempt.job
        if not job.rules.with_tracker or (place := self._places.of(job.pipeline)) is None:
            return None
        run = Run(
            place,
            job.pipeline,
            time.time(),
            token=f"{job.id}/{job.attempt}",
            tags=_tags(job) | {"worker": attempt.worker, "attempt": str(job.attempt)},
            job=job.id,
            follows_crash=job.attempt > 1,
        )
        told = tracker().begin(run)
        attempt.trail.watch = told.tell
        return partial(ended, told)


def ended(run: TrackedRun, report: Report) -> None:
    """What its worker reports of an attempt."""
    failure = msgspec.json.decode(report.error, type=Failure) if report.error else None
    run.end(*_told(_OUTCOMES.get(report.event, "failed"), failure, report.reason))


_OUTCOMES: dict[str, Outcome] = {
    "succeed": "succeeded",
    "confirm_cancel": "cancelled",
    "give_back": "interrupted",
    "release": "interrupted",
    "crash": "crashed",
}


def _told(
    outcome: Outcome, failure: Failure | None, reason: str | None
) -> tuple[Outcome, str, str]:
    """(outcome, error, traceback), as `TrackedRun.end` takes them."""
    if failure is None:
        return outcome, reason or "", ""
    if outcome == "failed" and failure.kind in _TIMEOUTS:
        outcome = "timed out"
    return outcome, failure.message, failure.traceback


def _tags(job: Job) -> dict[str, str]:
    tags = {"environment": job.rules.environment}
    for name in ("schedule_id", "trigger"):
        if (value := getattr(job, name)) is not None:
            tags[name.removesuffix("_id")] = value
    return tags


# For agents ---------------------------------------------------------------------------------


class AgentTracking:
    """Tells the outcomes of jobs on agents, from what the store has of them."""

    def __init__(self, root: Path, store: Store) -> None:
        self._root = root
        self._store = store
        self._places = Places(root)
        self._waiting: asyncio.Queue[str] = asyncio.Queue(_WAITING)
        self._drawings: dict[Any, Drawn | None] = {}

    def ended(self, id: str, job: Job | None) -> None:
        """A job has its outcome in the store. None where its row is not at hand."""
        if job is not None and not job.rules.with_tracker:
            return
        try:
            self._waiting.put_nowait(id)
        except asyncio.QueueFull:
            log.warning("tracking: too many outcomes at once; that of job %s is not shown", id)

    async def run(self) -> None:
        """Tell them, one by one, for ever. Cancelling leaves those that wait for the next time."""
        runner = ProcessRunner(self._root, WorkerSettings(idle_timeout=_IDLE))
        try:
            while True:
                id = await self._waiting.get()
                try:
                    await self._tell(runner, id)
                except FlowerPowerError as error:
                    log.warning("tracking: job %s is not shown: %s", id, error)
                except Exception:  # of what an agent has told, too: it ends no gateway
                    log.exception("tracking: job %s is not shown", id)
        finally:
            await runner.close()

    async def _tell(self, runner: ProcessRunner, id: str) -> None:
        job = await self._store.get(id)
        if job is None or not job.finished or job.started_at is None:
            return  # pruned, to be tried again, or never begun
        place = self._places.of(job.pipeline) if job.rules.with_tracker else None
        if place is None:
            return
        drawn = await self._drawn(runner, job)
        tell(place, job, drawn, tracker())

    async def _drawn(self, runner: ProcessRunner, job: Job) -> Drawn:
        """The DAG of the pipeline as it is here; its nodes alone where it is not."""
        rules = job.rules
        shape = replace(rules, timeout=None, retry=None)
        version = versions.recent(self._root, job.pipeline)
        key = (job.pipeline, msgspec.json.encode(shape), version)
        if key not in self._drawings:
            if len(self._drawings) >= _DRAWINGS:
                self._drawings.clear()
            self._drawings[key] = await draw(runner, job) if version else None
        found = self._drawings[key]
        if found is None:
            names = [timing.node for timing in job.trace.nodes]
            return Drawn(tracking.bare(names), names)
        return replace(found, inputs=_inputs(job))


async def draw(runner: ProcessRunner, job: Job) -> Drawn | None:
    """What a job would do with the code that is here, found out in a child process."""
    told: list[Drawn] = []

    def watch(said: NodeTiming | Drawn) -> None:
        if isinstance(said, Drawn):
            told.append(said)

    trail = Trail()
    trail.watch = watch
    spec = replace(job.rules, timeout=_DRAWING_TIME, executor=None)
    order = Order(job.id, job.attempt, job.pipeline, spec, job.inputs, draw="only")
    outcome = await runner.run(order, trail)
    if not told:
        why = outcome.failure.message if outcome.failure else outcome.reason
        log.warning("tracking: the DAG of '%s' is not shown: %s", job.pipeline, why)
    return told[0] if told else None


def tell(place: Place, job: Job, drawn: Drawn, teller: Tracker) -> None:
    """A job that has ended, with its nodes. Its times are the center's, theirs the device's."""
    assert job.started_at is not None
    record = job.trace
    tags = _tags(job) | {"agent": job.agent or "", "attempt": str(job.errors + 1)}
    run = teller.begin(
        Run(place, job.pipeline, job.started_at, token=job.id, tags=tags, job=job.id)
    )
    run.drawn(drawn)
    ended = job.ended_at or time.time()
    for timing in record.nodes:
        run.node(_within(timing, job.started_at, ended))
    outcome: Outcome = _STATES.get(job.state, "failed")
    run.end(*_told(outcome, job.failure, job.reason), at=ended)


def _within(timing: NodeTiming, began: float, ended: float) -> NodeTiming:
    """Times that the device may have got wrong, within those of the job."""
    at = timing.at if began <= timing.at <= ended else began
    seconds = timing.seconds if 0 <= timing.seconds <= ended - at else 0.0
    return replace(timing, at=at, seconds=seconds)


_STATES: dict[str, Outcome] = {"succeeded": "succeeded", "cancelled": "cancelled"}


def _inputs(job: Job) -> dict[str, Any]:
    """What is shown of the inputs that are plain JSON."""
    if len(job.inputs) > _INPUTS or not job.inputs.startswith(b"{"):
        return {}
    values = msgspec.json.decode(job.inputs).get("plain")
    if not isinstance(values, dict):
        return {}
    return {str(name): summaries.brief(value) for name, value in values.items()}
