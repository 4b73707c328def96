"""`start-worker` and `start-scheduler`: in the foreground, until a signal ends them.

They wait for a data store that cannot be reached, however long that takes. The first SIGTERM or
Ctrl-C lets what runs end, the second gives it back at once, the third kills.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from fp_async.cli import base_dir, entered, fail_at_once
from fp_async.cli.levels import level, level_options
from fp_async.errors import StoreError, UsageError
from fp_async.runtime import process_exit, process_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fp_async.backend import Backend
    from fp_async.gateway import Gateway
    from fp_async.metrics import Source
    from fp_async.project import Project
    from fp_async.worker import Worker

log: logging.Logger = logging.getLogger("fp_async")
_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_SEEN = 10.0  # seconds between two signs of life
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Serving(NamedTuple):
    """What all daemons are told about how they are looked at."""

    metrics_host: str
    metrics_port: int | None
    log_format: str
    log_level: str


_SERVING = (
    click.option(
        "--metrics-port",
        type=click.IntRange(0, 65_535),
        envvar="FLOWERPOWER_METRICS_PORT",
        metavar="PORT",
        help="Serve metrics to Prometheus at /metrics; 0: some free port.",
    ),
    click.option(
        "--metrics-host",
        default="127.0.0.1",
        envvar="FLOWERPOWER_METRICS_HOST",
        help="Its address. Default: 127.0.0.1.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        envvar="FLOWERPOWER_LOG_FORMAT",
        help="Lines for people (default), or JSON.",
    ),
    *level_options,
)


def serving_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `Serving`, which the command gets as `serving`."""

    @wraps(command)
    def collected(*args: Any, **options: Any) -> Any:
        _check_host(options["metrics_port"])
        options["log_level"] = level(options)
        serving = Serving(**{name: options.pop(name) for name in Serving._fields})
        return command(*args, serving=serving, **options)

    for option in reversed(_SERVING):
        collected = option(collected)
    return collected


def _check_host(port: int | None) -> None:
    """An address alone would be ignored; in a variable it may be there for all daemons."""
    source = click.get_current_context().get_parameter_source("metrics_host")
    if port is None and source is ParameterSource.COMMANDLINE:
        raise UsageError("--metrics-host is nothing without --metrics-port: give the port, too")


@click.command("start-worker")
@click.option("--queues", metavar="A,B", help="Whose jobs to run. Default: default.")
@click.option("--concurrency", type=click.IntRange(1), metavar="N", help="Jobs at once.")
@click.option(
    "--runner",
    type=click.Choice(["process", "inline"]),
    help="Run jobs in processes of their own (default), or in this one.",
)
@click.option("--no-schedules", is_flag=True, help="Do not fire schedules.")
@click.option(
    "--memory-limit", type=click.IntRange(64), metavar="MIB", help="For each job's process."
)
@click.option(
    "--max-jobs-per-child",
    type=click.IntRange(1),
    metavar="N",
    help="Jobs after which a process gives way to a fresh one.",
)
@click.option("--gateway", is_flag=True, help="Be a gateway to agents, too (start-gateway).")
@serving_options
@base_dir
def start_worker(
    queues: str | None,
    base_dir: str | None,
    serving: Serving,
    *,
    no_schedules: bool,
    gateway: bool,
    **changes: Any,
) -> None:
    """Work on jobs and fire schedules until a signal comes.

    \b
      flowerpower start-worker
      flowerpower start-worker --queues big,default --concurrency 4

    The settings are those of `worker` in conf/scheduler.yml, with the options laid over them.
    Any number of workers may share a data store. SIGTERM or Ctrl-C: it takes no more jobs, and
    ends when those that run have ended, at most `grace` seconds (30) later; twice: at once, and
    unfinished jobs are given back.
    """  # noqa: D301
    if queues is not None:
        changes["queues"] = [name.strip() for name in queues.split(",") if name.strip()]
        if not changes["queues"]:
            raise UsageError(f"--queues {queues!r}: write the names of queues: default,big")
    if no_schedules:
        changes["schedules"] = False
    work = partial(_work, changes=changes, gateway=gateway)
    serve(base_dir, work, serving, "flowerpower-worker")


@click.command("start-scheduler")
@serving_options
@base_dir
def start_scheduler(base_dir: str | None, serving: Serving) -> None:
    """Fire schedules, and run no jobs, until a signal comes.

    Workers fire schedules, too; this is for a machine that should do nothing else. Any number
    may run: each time of a schedule gives one job.
    """
    serve(base_dir, _fire, serving, "flowerpower-scheduler")


class Daemon:
    """A project whose daemon runs in the current task, and what a signal does to it."""

    def __init__(self, project: Project, serving: Serving) -> None:
        from fp_async.patience import Patience

        self.project = project
        self._serving = serving
        self.log_level: str = serving.log_level
        self.patience: Patience = Patience()
        self.drain: Callable[[], object] | None = None
        self.signals: int = 0
        self.code: int = 0
        task = asyncio.current_task()
        assert task is not None
        self._task = task

    def signal(self, number: int) -> None:
        """The first drains, the next cancels, the last kills."""
        self.signals += 1
        if self.signals == 1 and self.drain is not None:
            self.drain()
        elif self.signals == 1:
            self._task.cancel()
        elif self.signals == 2 and self.drain is not None:
            log.info("giving back what runs; once more: killed")
            self.code = 128 + number
            self._task.cancel()
        else:
            fail_at_once(_WORDS[signal.Signals(number)], 128 + number)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Backend]:
        """The backend, as soon as its store can be reached; schedules of conf/ applied."""
        from fp_async.backend import connected
        from fp_async.client import applied

        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.project.aclose)
            backend = await self.patience(
                lambda: stack.enter_async_context(connected(self.project.root))
            )
            await self.patience(
                lambda: stack.enter_async_context(applied(self.project.flows, backend))
            )
            yield backend

    @asynccontextmanager
    async def measured(self, backend: Backend, *sources: Source) -> AsyncIterator[None]:
        """With metrics of the store and of `sources` served, where they are wanted."""
        host, port = self._serving.metrics_host, self._serving.metrics_port
        if port is None:
            yield
            return
        from fp_async import metrics

        sources = (partial(metrics.of_store, backend.store), *sources)
        async with metrics.served(host, port, backend.observers, *sources) as port:
            log.info("metrics: http://%s:%d/metrics", host, port)
            yield


def serve(
    base_dir: str | None,
    main: Callable[[Daemon], Coroutine[Any, Any, None]],
    serving: Serving,
    service: str,
) -> None:
    from fp_async import config_files, json_logs, log_levels, tracing

    log_levels.write(getattr(logging, serving.log_level.upper()), _FORMAT)
    if serving.log_format == "json":
        json_logs.install()
    log_levels.hush_libraries()
    traced = tracing.set_up(service)
    config_files.own_process(lambda error: log.error("no job can run: %s", error))
    project = entered(base_dir, one_at_a_time=False)
    try:
        code = asyncio.run(_until_signalled(project, main, serving))
    finally:
        if traced:
            tracing.flush()
    if code:
        raise click.exceptions.Exit(code)


async def _until_signalled(
    project: Project, main: Callable[[Daemon], Coroutine[Any, Any, None]], serving: Serving
) -> int:
    daemon = Daemon(project, serving)
    loop = asyncio.get_running_loop()
    for number in _WORDS:
        loop.add_signal_handler(number, daemon.signal, number)
    try:
        await main(daemon)
    except asyncio.CancelledError:
        if not daemon.signals:
            raise
    return daemon.code


# Worker -------------------------------------------------------------------------------------


async def _work(daemon: Daemon, *, changes: dict[str, Any], gateway: bool) -> None:
    from fp_async.client import changed
    from fp_async.workers import make_worker

    async with daemon.connected() as backend:
        settings = changed(backend.worker, changes)
        daemon.project.flows.alone = True
        if settings.runner == "process":
            _adopt()
        worker = make_worker(daemon.project.flows, backend, settings, daemon.log_level)
        daemon.drain = lambda: _drain(worker, settings.grace)
        log.info(
            "worker %s: queues %s, runner %s, schedules %s; %s",
            worker.name,
            ",".join(settings.queues),
            settings.runner,
            "yes" if settings.schedules else "no",
            await _places(daemon, backend),
        )
        async with AsyncExitStack() as stack:
            sources = []
            if gateway:
                sources.append(await stack.enter_async_context(_beside(daemon, backend)))
            await stack.enter_async_context(daemon.measured(backend, *sources))
            try:
                await worker.run()
            finally:
                process_exit.end_within(settings.grace, lambda: daemon.code)
                log.info("worker %s has ended", worker.name)


def _adopt() -> None:
    """Get the orphans of jobs' processes, and reap them."""
    if (orphans := process_tree.adopt()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, orphans.look)


@asynccontextmanager
async def _beside(daemon: Daemon, backend: Backend) -> AsyncIterator[Source]:
    """A gateway at work until the block ends; what it fails by ends the daemon."""
    from fp_async import gateway_serving

    gateway = gateway_serving.make(daemon.project.flows, backend)
    log.info("gateway of site '%s': %s", gateway.topics.site, gateway.address)
    async with gateway_serving.beside(gateway):
        yield partial(of_gateway, gateway)


async def of_gateway(gateway: Gateway) -> list[Any]:
    from fp_async import metrics

    dropped, counts = gateway.dropped, gateway.counts
    return metrics.of_board(gateway.board, active=gateway.active, counts=counts, dropped=dropped)


def _drain(worker: Worker, grace: float) -> None:
    count = worker.running
    if count:
        jobs = "1 job" if count == 1 else f"{count} jobs"
        text = "waiting for %s to end, at most %g s; once more: given back at once"
        log.info(text, jobs, grace)
    worker.drain()


async def _places(daemon: Daemon, backend: Backend) -> str:
    facts = await daemon.patience(backend.store.info)
    broker = backend.broker.type
    return f"data store {facts['type']} ({facts['place']}), event broker {broker}"


# Scheduler ----------------------------------------------------------------------------------


async def _fire(daemon: Daemon) -> None:
    from fp_async.firing import serve

    async with daemon.connected() as backend:
        if not backend.store.shared:
            raise UsageError(
                "the data store is of type memory: no worker would see what is fired; set "
                "another data_store in conf/scheduler.yml, or use start-worker"
            )
        name = f"{socket.gethostname()}-{os.getpid()}"
        log.info("scheduler %s: %s", name, await _places(daemon, backend))
        showing = asyncio.create_task(_show_up(daemon, backend, name))
        try:
            async with daemon.measured(backend):
                poll = backend.worker.poll_interval
                await serve(backend.store, backend.hub, poll, backend.observers)
        finally:
            await _gone(showing, backend, name)
            log.info("scheduler %s has ended", name)


async def _show_up(daemon: Daemon, backend: Backend, name: str) -> None:
    """Tell the store, every now and then, that this scheduler is there."""
    import time

    import msgspec

    from fp_async.jobs import Member

    facts = {"host": socket.gethostname(), "pid": os.getpid(), "started_at": time.time()}
    member = Member(kind="scheduler", name=name, info=msgspec.json.encode(facts))
    while True:
        await daemon.patience(lambda: backend.store.saw(member, 3 * _SEEN))
        await asyncio.sleep(_SEEN)


async def _gone(showing: asyncio.Task[None], backend: Backend, name: str) -> None:
    from fp_async.jobs import Member

    showing.cancel()
    with suppress(StoreError, TimeoutError):
        async with asyncio.timeout(1.0):
            await asyncio.wait([showing])
            await backend.store.saw(Member(kind="scheduler", name=name), 0)
