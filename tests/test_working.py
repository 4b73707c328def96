"""A worker on this event loop, over a store that hesitates: outcomes and claims are not lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import SimpleNamespace

import msgspec
import pytest
import stores_kit as kit
from fleet import make

from fp_async import keeper as keepers
from fp_async.attempt import Outcome
from fp_async.backend import Backend
from fp_async.config import DataStore, EventBroker, WorkerSettings
from fp_async.errors import StoreUnavailableError
from fp_async.jobs import Spec
from fp_async.keeper import Keeper, KeeperThread
from fp_async.patience import Patience
from fp_async.worker import Worker


class Runner:
    """Runs nothing; `begun` and `go` are the two ends of every run."""

    def __init__(self):
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.runs = 0

    async def run(self, order, trail):
        self.runs += 1
        self.begun.set()
        await self.go.wait()
        return Outcome("succeeded", result=b"r")

    async def close(self, within=0.0):
        pass

    def stamps(self):
        return None

    def trouble(self, job):
        return None


class Hesitating:
    """A store of which one verb does what `how` says around the real one."""

    def __init__(self, store, verb, how):
        self._store, self._verb, self._how = store, verb, how

    def __getattr__(self, name):
        real = getattr(self._store, name)
        return (lambda *a, **k: self._how(real, *a, **k)) if name == self._verb else real


@pytest.fixture
async def backend(tmp_path):
    project = make(tmp_path, "data_store:\n  type: memory\n")
    backend = Backend(project.root, DataStore(type="memory"), EventBroker())
    await backend.acquire()
    yield backend
    await backend.release()


@contextlib.asynccontextmanager
async def working(backend, store=None):
    real, runner = backend.store, Runner()
    backend.store = store or real
    worker = Worker(backend, WorkerSettings(runner="inline", schedules=False), runner, None)
    task = asyncio.create_task(worker.run())
    try:
        yield worker, runner, task
    finally:
        runner.go.set()
        task.cancel()
        await asyncio.wait([task])
        backend.store = real


async def ended(store, id):
    async with asyncio.timeout(20):
        while not (job := await store.get(id)).finished:
            await asyncio.sleep(0.01)
    return job


async def ending(worker):
    """Until the worker has heard that it is to end."""
    async with asyncio.timeout(5):
        while not worker._draining:
            await asyncio.sleep(0)
    for _ in range(10):  # what it does about that at once is done
        await asyncio.sleep(0)


@pytest.mark.parametrize("why", ["lost", "cancel", "drain"])
async def test_an_outcome_that_waits_for_the_store_is_not_given_up(backend, why):
    """Its attempt is over: the store says whether it counts, whoever wants to end it meanwhile."""
    away = asyncio.Event()

    async def finish(real, reports):
        if not away.is_set():
            raise StoreUnavailableError("away")
        return await real(reports)

    real = backend.store
    async with working(backend, Hesitating(real, "finish", finish)) as (worker, runner, _):
        (id,) = await real.add([kit.job()])
        await runner.begun.wait()
        runner.go.set()
        async with asyncio.timeout(5):
            while worker._patience.since_failure() > 1:
                await asyncio.sleep(0.01)
        worker._stop(id, 1, why)
        await asyncio.sleep(0)
        away.set()
        job = await ended(real, id)
    assert (job.state, job.attempt, job.crashes, runner.runs) == ("succeeded", 1, 0, 1)


async def test_a_worker_that_is_cancelled_stores_what_is_over(backend):
    storing, go = asyncio.Event(), asyncio.Event()

    async def finish(real, reports):
        storing.set()
        await go.wait()
        return await real(reports)

    real = backend.store
    async with working(backend, Hesitating(real, "finish", finish)) as (worker, runner, task):
        (id,) = await real.add([kit.job(spec=msgspec.json.encode(Spec(on_crash="fail")))])
        runner.go.set()
        await storing.wait()
        task.cancel()
        await ending(worker)
        assert not task.done()
        go.set()
        await asyncio.wait([task])
    assert (await real.get(id)).state == "succeeded"


async def test_what_a_claim_brings_to_a_worker_that_ends_is_given_back(backend):
    claimed, go = asyncio.Event(), asyncio.Event()

    async def claim(real, *args):
        jobs = await real(*args)
        if jobs:
            claimed.set()
            await go.wait()
        return jobs

    real = backend.store
    async with working(backend, Hesitating(real, "claim", claim)) as (worker, _, task):
        (id,) = await real.add([kit.job(spec=msgspec.json.encode(Spec(on_crash="retry")))])
        await claimed.wait()
        task.cancel()
        await ending(worker)
        go.set()
        await asyncio.wait([task])
    job = await real.get(id)
    assert (job.state, job.crashes, job.reason) == ("queued", 0, "its worker was ended")


async def test_observers_hear_of_an_attempt_that_was_taken_away(backend):
    heard = []
    look = SimpleNamespace(
        claimed=lambda jobs: None,
        trace=lambda job: None,
        lost=lambda job: heard.append(("lost", job.attempt)),
        reported=lambda job, report, _: heard.append((report.event, job.attempt)),
    )
    backend.observers.append(look)
    async with working(backend) as (worker, runner, _):
        (id,) = await backend.store.add([kit.job()])
        await runner.begun.wait()
        await backend.store.rescue([worker.owner])
        runner.go.set()
        assert (await ended(backend.store, id)).state == "succeeded"
    assert sorted(heard) == [("lost", 1), ("succeed", 2)]


NEWER = {
    "a rule": {"warp": 9},
    "a part of a rule": {"retry": {"max_attempts": 2, "warp": 9}},
    "an option of an executor": {"executor": {"type": "local", "warp": 9}},
}


@pytest.mark.parametrize("spec", NEWER.values(), ids=NEWER)
async def test_rules_of_a_newer_release_are_taken_as_far_as_they_are_known(backend, spec):
    async with working(backend) as (_, runner, _):
        (id,) = await backend.store.add([kit.job(spec=msgspec.json.encode(spec))])
        runner.go.set()
        assert (await ended(backend.store, id)).state == "succeeded"


async def test_a_job_whose_rules_nobody_can_read_fails_alone(backend):
    async with working(backend) as (_, runner, task):
        ids = await backend.store.add([kit.job(spec=b'{"retry":{"backoff":null}}'), kit.job()])
        runner.go.set()
        bad, good = [await ended(backend.store, id) for id in ids]
        assert not task.done()
    assert bad.state == "failed"
    assert "cannot read what the job asks for" in bad.failure.message
    assert good.state == "succeeded"


# Leases -----------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    for name, value in {"RENEWAL": 0.25, "UNRENEWED": 0.8, "_AGAIN": 0.05}.items():
        monkeypatch.setattr(keepers, name, value)


class Leases:
    """What a keeper renews with; `hangs` once the first renewal has got through."""

    def __init__(self, *, opens=True):
        self.opens, self.renewed_at = opens, None

    async def open(self):
        if not self.opens:
            raise StoreUnavailableError("too many connections")

    async def close(self):
        pass

    async def renew(self, owner, held, lease):
        if self.renewed_at is not None:
            await asyncio.Event().wait()
        await asyncio.sleep(0.2)
        self.renewed_at = time.monotonic()
        return ["held"] * len(held)


async def test_renewals_that_hang_are_given_up_before_the_lease_is(quick):
    """Its lease is 10 s from the renewal that got through, of which 8 s have gone by then."""
    stopped, patience, leases = asyncio.Event(), Patience(), Leases()
    keeper = Keeper("me", lambda: [("id", 1)], lambda *_: stopped.set(), patience)
    task = asyncio.create_task(keeper.run(leases))
    async with asyncio.timeout(5):
        await stopped.wait()
    assert time.monotonic() - leases.renewed_at < keepers.UNRENEWED
    assert patience.since_failure() < 5
    task.cancel()
    await asyncio.wait([task])


async def test_without_a_store_to_renew_with_attempts_are_given_up_in_time(quick):
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()

    def stop(*_):
        loop.call_soon_threadsafe(stopped.set)

    keeper = Keeper("me", lambda: [("id", 1)], stop, Patience())
    thread = KeeperThread(keeper, lambda: Leases(opens=False))
    thread.start()
    async with asyncio.timeout(5):
        await stopped.wait()
    await thread.stop()
