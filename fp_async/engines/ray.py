"""Ray: a local cluster, one at an address, or the one that the process is connected to already."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray
from ray import cloudpickle, exceptions

from fp_async import copies, parcels
from fp_async.config import ExecutorSettings
from fp_async.engines import SMALL
from fp_async.errors import ClusterError, describe
from fp_async.onsite import Errand, Report, missing_code, perform
from fp_async.parcels import Parcel
from fp_async.remote import ProcessDiedError

_CONNECTING = 10.0  # seconds for the port of a cluster to answer
_GRACE = 1.0  # seconds that a cancelled node gets to end by itself
_KILLED = 5.0  # seconds after which a killed one is given up
_OWN = ("num_cpus", "num_gpus", "memory")  # resources that are options of their own
_DIED = (
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.OutOfMemoryError,
    exceptions.ObjectLostError,
)
_LOCAL = {
    "address": "local",
    "include_dashboard": False,
    "log_to_driver": False,
    "logging_level": logging.ERROR,
}

parcels.use(copies.dumping(cloudpickle.CloudPickler))


def start(settings: ExecutorSettings) -> RayEngine:
    """Connect, or start a cluster on this machine. Blocks for seconds; raises what Ray raises."""
    if ray.is_initialized():
        return RayEngine(ours=False)
    options = dict(settings.options or {})
    if settings.address:
        _knock(settings.address)
        options = {"address": settings.address, "log_to_driver": False, **options}
    else:
        options = {**_LOCAL, "num_cpus": settings.max_workers, **options}
    told = logging.getLogger("ray._private.worker")
    level = told.level
    told.setLevel(logging.ERROR)  # it warns that this thread has no signal handlers: it must not
    try:
        ray.init(**options)
    except ConnectionError as error:
        if settings.address and not os.environ.get("RAY_AUTH_MODE"):
            text = (
                f"{error}; a cluster of Ray 2.60 or newer asks for a token: set RAY_AUTH_MODE=token"
            )
            raise ConnectionError(text) from error
        raise
    finally:
        told.setLevel(level)
    return RayEngine(ours=True, has=None if settings.address else _resources())


def _resources() -> dict[str, float]:
    """Those of the machine, by the names that tasks ask by."""
    found = dict(ray.cluster_resources())
    named = {"num_cpus": found.pop("CPU", 0.0), "num_gpus": found.pop("GPU", 0.0)}
    return {**found, **named}


def _knock(address: str) -> None:
    """Ray itself tries for minutes. Raises OSError."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECTING).close()


def _perform(errand: Errand, spec: Parcel, *inputs: Parcel) -> tuple[Any, ...]:
    report, *outputs = perform(errand, spec, *inputs)
    return (report._replace(place=f"{_address()}/{os.getpid()}"), *outputs)


def _address() -> str:
    return str(ray.util.get_node_ip_address())


class RayTask:
    """A stage as a task of Ray's; the first of its results is the report."""

    def __init__(self, engine: RayEngine, references: Sequence[Any]) -> None:
        self._engine = engine
        self._report, *self.outputs = references

    async def report(self) -> Report:
        report: Report = await self._engine.awaited(self._report)
        return report

    async def cancel(self) -> None:
        """Interrupt it, then kill its process."""
        for force, seconds in ((False, _GRACE), (True, _KILLED)):
            with suppress(Exception):  # gone, or never begun
                ray.cancel(self._report, force=force)
            try:
                async with asyncio.timeout(seconds):
                    await asyncio.wrap_future(self._report.future())
            except TimeoutError:
                continue
            except Exception:  # it has ended, with whatever
                return
            return


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class RayEngine:
    """The connection of this process to Ray."""

    name = "ray"
    private = True
    ends_stuck = True
    packs = True

    def __init__(self, *, ours: bool, has: dict[str, float] | None = None) -> None:
        self.has = has
        self._ours = ours
        self._broken = False
        self._remote = ray.remote(_perform)

    def alive(self) -> bool:
        return not self._broken and bool(ray.is_initialized())

    def send(self, parcel: Parcel) -> Any:
        return parcel if parcel.size <= SMALL else ray.put(parcel)

    async def fetch(self, reference: Any) -> Parcel:
        if isinstance(reference, Parcel):
            return reference
        parcel: Parcel = await self.awaited(reference)
        return parcel

    async def awaited(self, reference: Any) -> Any:
        """What is behind a reference. Raises ProcessDiedError, ClusterError."""
        try:
            return await asyncio.wrap_future(reference.future())
        except _DIED as error:
            raise ProcessDiedError(f"its worker died ({_first_line(error)})") from error
        except exceptions.RayError as error:
            self._broken = isinstance(error, exceptions.LocalRayletDiedError)
            raise missing_code(error) or ClusterError(f"Ray failed: {describe(error)}") from error

    def submit(
        self,
        errand: Errand,
        inputs: Sequence[Any],
        *,
        resources: dict[str, float] | None,
        retries: int,
    ) -> RayTask:
        options = self._options(errand, resources or {})
        count = 1 + len(errand.stage.outputs)
        task = self._remote.options(num_returns=count, max_retries=retries, **options)
        return RayTask(self, task.remote(errand, *inputs))

    @staticmethod
    def _options(errand: Errand, resources: dict[str, float]) -> dict[str, Any]:
        options: dict[str, Any] = {key: resources[key] for key in _OWN if key in resources}
        others = {key: value for key, value in resources.items() if key not in _OWN}
        return {"name": errand.stage.name, **options, **({"resources": others} if others else {})}

    def close(self) -> None:
        if self._ours:
            ray.shutdown()
