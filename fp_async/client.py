"""Handing in jobs and asking for them: what `Project` and the command do with a backend."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import anyio
import msgspec

from fp_async import (
    admission,
    admission_rows,
    config_files,
    firing,
    fleet,
    orders,
    outcomes,
    schedule_entries,
    short_ids,
    targets,
    watching,
)
from fp_async import backend as backends
from fp_async.backend import Backend, Where, check_kept, connected
from fp_async.config import WorkerSettings
from fp_async.errors import (
    FileAccessError,
    FlowerPowerError,
    JobNotFinishedError,
    MisconfiguredError,
    StoreUnavailableError,
    UnknownNameError,
    UsageError,
)
from fp_async.flow import Progress
from fp_async.flows import Flows
from fp_async.job_values import result_of, template_of
from fp_async.jobs import Job, Schedule
from fp_async.node_events import NodeEvent
from fp_async.patience import Patience
from fp_async.values import mismatch
from fp_async.watching import Change
from fp_async.worker import Worker
from fp_async.workers import make_worker

log: logging.Logger = logging.getLogger("fp_async")
_LOOK_AGAIN = 1.0
_PATIENCE = 3.0  # seconds without anybody to run it before `run` says so


class JobClient:
    """The jobs and schedules of one data store, as rows. Connects for each call, unless it is held.

    `flows` are the pipelines of the project that the store belongs to; None where that is not
    here, and what needs it is refused.
    """

    def __init__(self, where: Where, flows: Flows | None = None) -> None:
        self.where = where
        self._flows = flows

    @classmethod
    def of(cls, flows: Flows) -> JobClient:
        """Return that of a project."""
        return cls(flows.root, flows)

    # Jobs -----------------------------------------------------------------------------------

    async def add(self, name: str, options: Mapping[str, Any]) -> str:
        """See `Project.add_job`."""
        async with self.connected() as backend:
            check_kept(backend)
            job = await self._job(backend, name, options)
            if is_group(job.target):
                await _stored_group(backend, job)
                return job.id
            return await _stored(backend, job)

    async def run(self, name: str, progress: Progress | None, options: Mapping[str, Any]) -> Any:
        """See `Project.run_job`."""
        async with self.connected() as backend:
            flows = self._flows
            if flows is None or backend.store.shared or backends.is_kept(backend):
                return await self._run(backend, name, progress, options)
            async with _implied_worker(flows, backend, options.get("queue")):
                return await self._run(backend, name, progress, options)

    async def _run(
        self, backend: Backend, name: str, progress: Progress | None, options: Mapping[str, Any]
    ) -> Any:
        job = await self._job(backend, name, options)
        if is_group(job.target):
            rows = await _stored_group(backend, job)
            return outcomes.GroupResults(self.where, job.id, rows)
        with watching.Waiter(backend, job.id) as waiter:
            id = await _stored(backend, job)
            if id == job.id:
                return result_of(await _attended(backend, waiter, progress, look=False))
        with watching.Waiter(backend, id) as waiter:  # of the job that bears the same key
            return result_of(await _attended(backend, waiter, progress))

    async def attend(self, id: str, progress: Progress | None = None) -> Any:
        """The result of a job that was added, as `run` waits for it and tells of it."""
        async with self.connected() as backend:
            with watching.Waiter(backend, id) as waiter:
                return result_of(await _attended(backend, waiter, progress))

    async def get(self, id: str) -> Job:
        """See `Project.get_job`."""
        async with self.connected() as backend:
            id = await short_ids.job(backend.store, id)
            job = await backend.store.get(id)
            if job is None and (own := await fleet.own_job(backend.store, id)) is not None:
                job = await backend.store.get(own)
        if job is None:
            raise watching.unknown(id)
        return job

    async def result(self, id: str, wait: float | bool | None) -> Any:
        """See `Project.get_result`."""
        patience = None if wait is True else targets.seconds("wait", wait or 0.0, least=0.0)
        async with self.connected() as backend:
            id = await short_ids.job(backend.store, id)
            try:
                with watching.Waiter(backend, id) as waiter:
                    return result_of(await waiter.outcome(patience))
            except UnknownNameError:
                if (own := await fleet.own_job(backend.store, id)) is None:
                    raise
            with watching.Waiter(backend, own) as waiter:
                return result_of(await waiter.outcome(patience))

    async def cancel(self, id: str, reason: str | None) -> Job:
        """See `Project.cancel_job`."""
        async with self.connected() as backend:
            id = await short_ids.job(backend.store, id)
            if await backend.store.cancel(id, reason) is None:
                if await fleet.own_job(backend.store, id) is not None:
                    raise UsageError(f"job {id} has ended: an agent began it by itself")
                raise watching.unknown(id)
            backend.hub.publish(f"cancel:{id}", f"job:{id}")
            job = await backend.store.get(id)
        if job is None:
            raise watching.unknown(id)
        return job

    async def retry(self, id: str) -> str:
        """See `Project.retry_job`."""
        async with self.connected() as backend:
            id = await short_ids.job(backend.store, id)
            old = await backend.store.get(id)
            if old is None and (own := await fleet.own_job(backend.store, id)) is not None:
                old = await backend.store.get(own)
            if old is None:
                raise watching.unknown(id)
            if not old.finished:
                raise UsageError(f"job {id} is {old.state}: only a job that has ended is retried")
            return await _stored(backend, orders.again(old))

    async def find(self, query: Mapping[str, Any]) -> list[Job]:
        """See `Project.list_jobs`."""
        find = orders.find(query, time.time())
        async with self.connected() as backend:
            return await backend.store.find(await short_ids.completed(backend.store, find))

    async def watch(self, id: str) -> AsyncIterator[Change]:
        """See `Project.watch`."""
        async with self.connected() as backend:
            id = await short_ids.job(backend.store, id)
            async for event in watching.changes(backend, id):
                yield event

    # Schedules ------------------------------------------------------------------------------

    async def schedule(
        self, name: str, trigger: Any, args: tuple[Any, ...], options: Mapping[str, Any]
    ) -> Schedule:
        """See `Project.schedule`."""
        async with self.connected() as backend:
            check_kept(backend)
            if self._flows is not None:
                await self._flows.prepared()
            now = await backend.store.now()
            new = orders.schedule(self._flows, name, trigger, args, options, now)
            await _check_admitted(self._flows, backend, template_of(new).target)
            return await _put(backend, new)

    async def apply_schedules(self) -> list[Schedule]:
        """See `Project.apply_schedules`."""
        async with self.connected() as backend:
            check_kept(backend)
            if self._flows is None:
                raise UsageError("apply_schedules: the entries are in a project; use Project")
            return await apply(self._flows, backend)

    async def schedules(self) -> list[Schedule]:
        """See `Project.list_schedules`."""
        async with self.connected() as backend:
            return await backend.store.schedules()

    async def pause(self, id: str) -> Schedule:
        """See `Project.pause_schedule`."""
        async with self.connected() as backend:
            id = (await short_ids.schedule(backend.store, id)).id
            paused = await _known(backend, id, await backend.store.pause(id, paused=True))
            backend.hub.publish("schedules")
            return paused

    async def resume(self, id: str) -> Schedule:
        """See `Project.resume_schedule`."""
        async with self.connected() as backend:
            old = await short_ids.schedule(backend.store, id)
            if not old.paused:
                return old
            after = orders.next_fire(old, await backend.store.now())
            resumed = await backend.store.pause(old.id, paused=False, next_fire_time=after)
            backend.hub.publish("schedules")
            return await _known(backend, old.id, resumed)

    async def fire(self, id: str) -> list[str]:
        """See `Project.fire_schedule`."""
        async with self.connected() as backend:
            check_kept(backend)
            store, row = backend.store, await short_ids.schedule(backend.store, id)
            while True:
                now = await store.now()
                fire = await firing.spread(store, firing.by_hand(row, now))
                (added,) = await store.fire([fire])
                if added is not None:
                    break
                row = await _known(backend, row.id, await store.schedule(row.id))
            backend.hub.publish(*firing.topics(fire.jobs, now))
            return added

    async def remove(self, id: str) -> Schedule:
        """See `Project.remove_schedule`. What was removed."""
        async with self.connected() as backend:
            row = await short_ids.schedule(backend.store, id)
            await _delete(backend, row)
            return row

    def connected(self) -> AbstractAsyncContextManager[Backend]:
        """Return the connected store and its wake-ups, for a block."""
        return connected(self.where)

    async def _job(self, backend: Backend, name: str, options: Mapping[str, Any]) -> Job:
        if self._flows is not None:
            await self._flows.prepared()
        job = orders.job(self._flows, name, options, await backend.store.now())
        await _check_admitted(self._flows, backend, job.target)
        return job


async def _check_admitted(flows: Flows | None, backend: Backend, target: str | None) -> None:
    """Refuse what is for an agent that is not admitted, also where no gateway has written yet what
    the project's conf/mqtt.yml says. Raises UnknownNameError.
    """
    if target is None or not target.startswith("agent:"):
        return
    listed = await admission_rows.admitted(backend.store)
    if flows is not None:
        with suppress(MisconfiguredError, FileAccessError):  # `check` and the gateway say so
            listed |= admission.of_file(config_files.mqtt(flows.root)[0].agents)
    admission.check(listed, target)


async def _known(backend: Backend, id: str, schedule: Schedule | None) -> Schedule:
    if schedule is None:
        raise UnknownNameError("schedule", id, [s.id for s in await backend.store.schedules()])
    return schedule


async def _stored(backend: Backend, job: Job) -> str:
    """Store a job, and wake those who work on its queue.

    A worker in this process is woken before, where its claim shares the transaction of the add.
    """
    if job.target is not None:
        (id,) = await _added(backend, [job])
        backend.hub.publish(f"on:{job.target}")
        return id
    adding = backend.nearby.adding
    topic = f"{'later' if job.run_at else 'work'}:{job.queue}"
    adding[job.id] = False
    try:
        if backend.store.joins:
            backend.hub.publish_here(topic)
        (id,) = await _added(backend, [job])
        if backend.nearby.workers and backend.store.joins:
            await asyncio.sleep(0)  # a claim that came along with the add is heard of now
    finally:
        taken = adding.pop(job.id, False)
    if not taken:
        backend.hub.publish(topic)
    return id


async def _added(backend: Backend, jobs: list[Job]) -> list[str]:
    """Store jobs. The error of a server that has gone says that it may have stored them."""
    try:
        return await backend.store.add(jobs)
    except StoreUnavailableError as error:
        if backend.store.joins:  # in this process: what fails is not stored
            raise
        key = jobs[0].key if jobs else None
        again = f"as it has the key '{key}'," if key else "with a `key`"
        text = f"the job may be stored all the same; {again} adding it again finds it"
        raise StoreUnavailableError(f"{error}; {text} while it is active") from error


def is_group(target: str | None) -> bool:
    """Whether it means a job for each of several agents."""
    return target is not None and target.startswith("all:")


async def _stored_group(backend: Backend, job: Job) -> list[Job]:
    """Store a job for each agent that is known and meant."""
    rows = targets.spread(job, await fleet.meant(backend.store, job.target or ""))
    await _added(backend, rows)
    backend.hub.publish(*(f"on:{row.target}" for row in rows))
    return rows


async def _put(backend: Backend, new: Schedule) -> Schedule:
    """Put a schedule; one that is there already and was not changed goes on as it was."""
    old = await backend.store.schedule(new.id)
    if old is not None and orders.same(old, new):
        return old
    if old is None:
        new = await fleet.revived(backend.store, new)
    stored = await backend.store.put(new)
    backend.hub.publish("schedules")
    return stored


async def apply(flows: Flows, backend: Backend) -> list[Schedule]:
    """Put the schedules of the configuration, and delete those that came from it and are gone.

    Raises MisconfiguredError for the first entry that is wrong, when the others are put.
    """
    kept, wrong = await put_configured(flows, backend)
    for error in wrong.values():
        raise error
    return kept


async def put_configured(
    flows: Flows, backend: Backend
) -> tuple[list[Schedule], dict[str, FlowerPowerError]]:
    """As `apply`, as far as the entries are right; and what is wrong with the others, by id.

    A schedule whose entry is wrong stays as it was. Raises MisconfiguredError where
    conf/pipelines.yml cannot be read: then all of them do.
    """
    entries, wrong = schedule_entries.made(flows, await backend.store.now())
    kept: list[Schedule] = []
    for entry in entries:
        try:
            await _check_admitted(flows, backend, template_of(entry).target)
        except UnknownNameError as error:
            wrong[entry.id] = error
            continue
        kept.append(await _put(backend, entry))
    names = {schedule.id for schedule in kept} | wrong.keys()
    for old in await backend.store.schedules():
        if old.origin == orders.FROM_CONF and old.id not in names:
            await _delete(backend, old)
    return kept, wrong


@asynccontextmanager
async def applied(flows: Flows, backend: Backend) -> AsyncIterator[None]:
    """Apply the schedules of the configuration, as far as they are right, now and in the block:
    to each store that takes the place of this one, and as files change. Within the block a file
    that is broken means what it meant before.
    """
    wanted = asyncio.Event()
    with flows.files.kept():
        seen = flows.files.stamps()
        complete = await _apply_right(flows, backend)
        keeping = _keep_applied(flows, backend, wanted, seen, complete=complete)
        task = asyncio.create_task(keeping, name="fp-apply-schedules")
        backend.replaced.append(wanted.set)
        try:
            yield
        finally:
            backend.replaced.remove(wanted.set)
            task.cancel()


async def _keep_applied(
    flows: Flows, backend: Backend, wanted: asyncio.Event, seen: object, *, complete: bool
) -> None:
    patience, settings = Patience(), flows.root / "conf" / "scheduler.yml"
    begun_with = config_files.stamp(settings)
    while True:
        while not wanted.is_set() and flows.files.stamps() == seen:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN):
                    await wanted.wait()
        wanted.clear()
        if (now := config_files.stamp(settings)) != begun_with:
            log.warning("conf/scheduler.yml was changed: it counts from the next start on")
            begun_with = now
        before, seen = complete, flows.files.stamps()
        try:
            complete = await patience(lambda: _apply_right(flows, backend))
        except FlowerPowerError as error:
            log.error("the schedules of conf/ are not applied: %s", error)  # noqa: TRY400
        if complete and not before:
            log.warning("all schedules of conf/ are applied")


async def _apply_right(flows: Flows, backend: Backend) -> bool:
    """Apply what is right, and say what is not; whether all of it was."""
    try:
        _, wrong = await put_configured(flows, backend)
    except (MisconfiguredError, FileAccessError) as error:
        log.error("schedules stay as they were: %s", error)  # noqa: TRY400
        return False
    for id, mistake in wrong.items():
        stays = await backend.store.schedule(id) is not None
        log.error(
            "schedule '%s' %s: %s", id, "stays as it was" if stays else "is left out", mistake
        )
    return not wrong


async def _delete(backend: Backend, row: Schedule) -> None:
    if template_of(row).offline:
        await fleet.remember_removed(backend.store, row)
    await backend.store.delete(row.id)
    backend.hub.publish("schedules")


# Outcomes -----------------------------------------------------------------------------------


async def _attended(
    backend: Backend, waiter: watching.Waiter, progress: Progress | None, *, look: bool = True
) -> Job:
    """The outcome; `progress` hears of the nodes on the way there."""
    if progress is None:
        return await _patiently(backend, waiter, look=look)
    telling = asyncio.create_task(_tell(backend, waiter.id, progress), name="fp-progress")
    try:
        job = await _patiently(backend, waiter, look=look)
        await telling
    finally:
        telling.cancel()
    return job


async def _tell(backend: Backend, id: str, progress: Progress) -> None:
    async for event in watching.changes(backend, id):
        for node in event.nodes:
            told = (node.node, node.status, node.seconds, node.error, node.at, "", node.place)
            progress(NodeEvent(*told, item=node.item, count=node.count, cached=node.cached))


async def _patiently(backend: Backend, waiter: watching.Waiter, *, look: bool) -> Job:
    """The outcome; complains when nobody is there who would work for it."""
    job, told = await waiter.outcome(_PATIENCE, look=look), ""
    while not job.finished:
        if job.misconfigured and job.reason != told:
            told = job.reason or ""
            log.warning("job %s is %s: %s", job.id, job.state, told)
        if job.target is not None:
            await fleet.check_served(backend.store, job)
        elif job.state == "queued" and not await _served(backend, job):
            raise JobNotFinishedError(
                f"no worker serves queue '{job.queue}': {_way_out(backend, job)}"
            )
        job = await waiter.outcome(_PATIENCE)
    return job


def _way_out(backend: Backend, job: Job) -> str:
    if not backend.store.shared:
        return "with a data store of type memory the worker of this process has to (worker.queues)"
    start = f"flowerpower start-worker --queues {job.queue}"
    return f"job {job.id} stays queued; start one with: {start}"


async def _served(backend: Backend, job: Job) -> bool:
    members = await watching.alive(backend.store, "worker")
    return any(job.queue in member.get("queues", ()) for member in members)


# Workers in this process --------------------------------------------------------------------


async def work(flows: Flows, settings: WorkerSettings | None, changes: Mapping[str, Any]) -> None:
    """See `Project.start_worker`. Waits for a store that is not there yet."""
    async with AsyncExitStack() as stack:
        backend = await Patience()(lambda: stack.enter_async_context(connected(flows.root)))
        chosen = changed(settings or backend.worker, changes)
        await stack.enter_async_context(applied(flows, backend))
        await make_worker(flows, backend, chosen).run()


def changed(settings: WorkerSettings, changes: Mapping[str, Any]) -> WorkerSettings:
    """Settings with changes laid over them; None changes nothing.

    Raises UnknownNameError, and UsageError for values that are none.
    """
    valid = WorkerSettings.__struct_fields__
    for name in changes:
        if name not in valid:
            raise UnknownNameError("argument", name, valid, where=" of start_worker()")
    given = {name: value for name, value in changes.items() if value is not None}
    return mismatch.converted({**msgspec.to_builtins(settings), **given}, WorkerSettings, "worker")


@asynccontextmanager
async def held(flows: Flows, worker: WorkerSettings | bool) -> AsyncIterator[None]:
    """What an open project keeps: nothing until it is needed, unless it is to have a worker.

    With a store that only this process sees, a worker comes with the first job.
    """

    @asynccontextmanager
    async def more(backend: Backend) -> AsyncIterator[None]:
        if worker is False and backend.store.shared:
            yield
            return
        inline = msgspec.structs.replace(backend.worker, runner="inline")
        chosen = inline if isinstance(worker, bool) else worker
        async with in_background(make_worker(flows, backend, chosen)):
            yield

    async with backends.kept(flows.root, more):
        if worker is False:
            yield
            return
        async with connected(flows.root) as backend, applied(flows, backend):
            yield


def _implied_worker(
    flows: Flows, backend: Backend, queue: str | None
) -> AbstractAsyncContextManager[None]:
    """With a store that only this process sees, and no project held open, a worker."""
    queues = [*backend.worker.queues, *([queue] if queue else [])]
    changes = {"runner": "inline", "schedules": False, "queues": queues}
    settings = msgspec.structs.replace(backend.worker, **changes)
    return in_background(make_worker(flows, backend, settings))


def _say_why(worker: asyncio.Task[None]) -> None:
    """A worker that ends by itself is missed at once, not when its block ends."""
    if not worker.cancelled() and (error := worker.exception()):
        log.error("the worker in the background has ended: %s", error)


@asynccontextmanager
async def in_background(worker: Worker) -> AsyncIterator[None]:
    """The worker at work until the block ends. What it runs then may end, within its grace time;
    if the block ends by an exception, what it runs is given back at once.
    """
    task = asyncio.create_task(worker.run(), name="fp-worker")
    task.add_done_callback(_say_why)
    try:
        yield
        worker.drain()
        if count := worker.running:
            text = "waiting for %d running job(s) to end, at most %g s"
            log.warning(text, count, worker.grace)
        await asyncio.wait([task])
    finally:
        task.cancel()
        with anyio.CancelScope(shield=True):  # anyio cancels again and again
            await asyncio.wait([task])
    if not task.cancelled():
        task.result()
