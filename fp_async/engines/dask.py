"""Dask: workers on this machine, a scheduler at an address, or a client of the user's own.

A client has a thread with an event loop of its own, so that runs on any loop share it. Own workers
belong to a process of their own (`dask_host`): the scheduler's work does not hold the caller up,
and `multiprocessing` would import a caller's script once more in each worker.
"""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

# Its own messages would stand between the progress and the result; what fails is raised.
os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")
import cloudpickle
import distributed
from dask.sizeof import sizeof
from distributed.scheduler import KilledWorker

from fp_async import copies, onsite, onsite_threads, parcels
from fp_async.config import ExecutorSettings
from fp_async.engines import SMALL, dask_host
from fp_async.errors import ClusterError, UsageError, describe
from fp_async.onsite import Errand, Report, missing_code
from fp_async.parcels import Parcel
from fp_async.remote import ProcessDiedError
from fp_async.threads import Threads, in_thread

_LARGE = 8 * 2**20  # bytes from which an input does not go through the scheduler
_CONNECTING = 10.0  # seconds for a scheduler to answer and to have a worker
_EMPTY = 30.0  # seconds that a cluster may be without any worker
_ANSWER = 2 * onsite_threads.GRACE  # seconds in which a worker says whether a node runs on
_DROPPING = 0.01  # seconds between looks whether the scheduler has dropped a task

_threads = Threads()  # what waits for a cluster keeps no node from running here

parcels.use(copies.dumping(cloudpickle.CloudPickler))


def _size(parcel: Parcel) -> int:
    return parcel.size or int(sizeof(parcel.open()))


sizeof.register(Parcel, _size)


def start(settings: ExecutorSettings) -> DaskEngine:
    """Connect, or start workers on this machine. Blocks for seconds; raises what Dask raises."""
    options = dict(settings.options or {})
    host = None
    if not settings.address:
        host = dask_host.start(settings.max_workers, settings.retries, options)
        client = distributed.Client(host.address, set_as_default=False, timeout=_CONNECTING)
    else:
        if isinstance(options.get("security"), dict):
            options["security"] = distributed.Security(**options["security"])
        options = {"set_as_default": False, "timeout": _CONNECTING, **options}
        client = distributed.Client(settings.address, **options)
    try:
        client.wait_for_workers(1, timeout=_CONNECTING)
    except TimeoutError:
        client.close()
        raise ClusterError(f"the Dask cluster at {settings.address} has no workers") from None
    return DaskEngine(client, host, private=host is not None and host.private)


def attached(client: Any) -> DaskEngine:
    """The engine of a user's client."""
    if not isinstance(client, distributed.Client):
        raise UsageError(f"an executor is a name, settings or a Dask client, not {client!r}")
    return DaskEngine(client, None, private=False)


class _Output(NamedTuple):
    """One of the outputs of a stage: the future of all that it gives, and which of it."""

    future: Any
    place: int


def _perform(errand: Errand, picks: tuple[int, ...], spec: Parcel, *inputs: Any) -> tuple[Any, ...]:
    """In a worker; `picks` are the indexes of what inputs are part of, 0 for a parcel itself."""
    parcels_ = [value[pick] if pick else value for pick, value in zip(picks, inputs, strict=True)]
    report, *outputs = onsite.perform(errand, spec, *parcels_)
    return (report._replace(place=distributed.get_worker().address), *outputs)


def _kill_worker(dask_worker: Any) -> None:
    os.kill(dask_worker.pid, signal.SIGKILL)


def _report(results: tuple[Any, ...]) -> Report:
    report: Report = results[0]
    return report


def _itself(parcel: Parcel) -> Parcel:
    return parcel


async def _settled(work: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
    """Dask raises CancelledError for futures that it has lost; that is no cancellation here."""
    try:
        return await work, None
    except BaseException as error:
        return None, error


class DaskTask:
    """A stage as a task of Dask's, and another one that takes the report out of its results."""

    def __init__(self, engine: DaskEngine, token: str, future: Any) -> None:
        self._engine = engine
        self._token = token
        self._future = future
        self._waiting: asyncio.Task[Any] | None = None
        key = f"report-{token}"  # Dask expects of a name's tasks that they take equally long
        self._report = engine.client.submit(_report, future, key=key, pure=False)
        count = engine.counts.pop(future.key)
        self.outputs: list[_Output] = [_Output(future, index) for index in range(1, count + 1)]

    async def report(self) -> Report:
        self._waiting = asyncio.ensure_future(self._engine.gathered(self._report))
        await asyncio.wait([self._waiting])  # not cancelled: Dask would complain
        report: Report = self._waiting.result()
        if report.stuck:
            await self._engine.end_stuck(self._future, self._report, report.place)
        return report

    async def cancel(self) -> None:
        """Interrupt its node; on workers of our own, restart what does not hear of it."""
        await self._engine.cancel(self._future, self._report, self._token)
        if self._waiting is not None:
            await asyncio.wait([self._waiting], timeout=_ANSWER)
            self._waiting.cancel()


class DaskEngine:
    """A client, and the workers behind it where they are ours."""

    name = "dask"
    ends_stuck = False
    packs = False

    def __init__(self, client: Any, host: dask_host.Host | None, *, private: bool) -> None:
        self.client = client
        self.private = private
        self.has: dict[str, float] | None = None if host is None else host.resources
        self._host = host
        self.counts: dict[str, int] = {}

    def alive(self) -> bool:
        return self.client.status == "running" and (self._host is None or self._host.alive())

    def send(self, parcel: Parcel) -> Any:
        if parcel.size <= SMALL:
            return parcel
        if parcel.size > _LARGE and not self.client.asynchronous:
            return self.client.scatter(parcel, direct=False, hash=False)
        return self.client.submit(_itself, parcel, pure=False)  # made again if its worker dies

    async def fetch(self, reference: Any) -> Parcel:
        if isinstance(reference, Parcel):
            return reference
        if not isinstance(reference, _Output):
            parcel: Parcel = await self.gathered(reference)
            return parcel
        results = await self.gathered(reference.future)
        found: Parcel = results[reference.place]
        return found

    def submit(
        self,
        errand: Errand,
        inputs: Sequence[Any],
        *,
        resources: dict[str, float] | None,
        retries: int,
    ) -> DaskTask:
        del retries  # the scheduler's setting `allowed-failures`
        spec, *rest = inputs
        picks = tuple(i.place if isinstance(i, _Output) else 0 for i in rest)
        values = [i.future if isinstance(i, _Output) else i for i in rest]
        key = f"{errand.stage.name}-{uuid.uuid4().hex}"
        self.counts[key] = len(errand.stage.outputs)
        future = self.client.submit(
            _perform, errand, picks, spec, *values, key=key, pure=False, resources=resources
        )
        return DaskTask(self, errand.token, future)

    async def gathered(self, future: Any) -> Any:
        """What a future holds, when it has it."""
        direct = self._host is not None
        waiting = asyncio.ensure_future(
            self._on_loop(self.client.gather([future], direct=direct, asynchronous=True))
        )
        try:
            while not (await asyncio.wait([waiting], timeout=_EMPTY))[0]:
                await self._check_workers()
            (value,) = waiting.result()
        except KilledWorker as error:
            text = f"its worker died, {error.allowed_failures + 1} times in a row"
            raise ProcessDiedError(text) from error
        except (ClusterError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise missing_code(error) or ClusterError(f"Dask failed: {describe(error)}") from error
        finally:
            waiting.cancel()
        return value

    async def _check_workers(self) -> None:
        known = await self._call(self.client.scheduler_info)
        if not known["workers"]:
            raise ClusterError("the Dask cluster has no workers left")

    async def cancel(self, task: Any, report: Any, token: str) -> None:
        """Drop a task; where its node runs, interrupt it."""
        with suppress(Exception):  # a cluster that is gone runs nothing any more
            processing = await self._call(self.client.processing)
            workers = [worker for worker, keys in processing.items() if task.key in keys]
            await self._call(self.client.cancel, [report, task], force=True)
            if workers:
                await self.kill([w for w in workers if await self._interrupt(w, token)])

    async def _interrupt(self, worker: str, token: str) -> bool:
        """Whether a node runs on regardless."""
        interrupt = partial(self.client.run, onsite_threads.interrupt, token, workers=[worker])
        try:
            async with asyncio.timeout(_ANSWER):
                answers = await self._call(interrupt, on_error="ignore")
        except TimeoutError:
            return True  # not even its event loop hears: the node does not let go of the GIL
        return answers.get(worker) is True

    async def end_stuck(self, task: Any, report: Any, worker: str) -> None:
        """Drop a task, then kill its worker: Dask would run it again for the results it had."""
        with suppress(Exception):
            await self._call(self.client.cancel, [report, task], force=True)
            async with asyncio.timeout(_ANSWER):
                while await self._has(worker, task.key):  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(_DROPPING)
        await self.kill([worker])

    async def _has(self, worker: str, key: str) -> bool:
        return key in (await self._call(self.client.has_what, [worker]))[worker]

    async def kill(self, workers: list[str]) -> None:
        """End what does not end by itself; only on workers that are ours and do one thing.

        Their nannies, which do it, start others at once.
        """
        if self.private:
            with suppress(Exception):
                await self._call(self.client.run, _kill_worker, workers=workers, nanny=True)

    async def _call(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a method of the client's that waits, on its loop or in a thread."""
        if self.client.asynchronous:
            return await self._on_loop(method(*args, **options))
        return await in_thread(_threads, partial(method, *args, **options))

    async def _on_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Await something on the client's loop. Raises ClusterError where a future is lost."""
        loop = self.client.loop.asyncio_loop
        future = asyncio.run_coroutine_threadsafe(_settled(work), loop)
        value, error = await asyncio.wrap_future(future)
        if isinstance(error, Exception) and not isinstance(error, asyncio.CancelledError):
            raise error
        if error is not None:
            raise ClusterError(f"the connection to Dask is lost: {describe(error)}") from error
        return value

    def close(self) -> None:
        with suppress(Exception):
            self.client.close(timeout=2)
        if self._host is not None:
            self._host.close()
