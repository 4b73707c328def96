"""`demo`: a fleet on this machine, and what happens to it. `up`: the same for the own project."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp_async.cli import base_dir
from fp_async.cli.saying import echo, style

if TYPE_CHECKING:
    from fp_async.ensemble import Ensemble, Network
    from fp_async.project import Project

_AGENTS = {"berlin-1": "site=berlin", "oslo-1": "site=oslo"}
_PATIENCE = 30.0
_CUT = 4  # seconds
_SILENT = 2.0  # seconds after which it is said that something is waited for
_CONF = {
    "pipelines.yml": "{}\n",
    "scheduler.yml": "data_store: {type: sqlite, uri: sqlite:///center.db}\n",
    "mqtt.yml": "broker: {uri: 'mqtt://127.0.0.1:PORT'}\n"
    "gateway: {away_after: 5}\n"
    "run: {greenhouse: {on: 'any:*', overrides: [inputs, final_vars, key]}}\n",
}


@click.command()
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Kept there, to look at.")
def demo(folder: Path | None) -> None:
    """Show a fleet at work: a broker, a gateway, a worker and two agents, all on this machine.

    It runs a pipeline on an agent, starts one by an MQTT message, lets an agent keep a schedule,
    cuts that agent's network, and shows that nothing is lost. It takes half a minute, needs
    nothing but `pip install "fp-async[broker]"`, and leaves nothing behind.
    """
    asyncio.run(_until_signalled(_in_folder(folder)))


async def _until_signalled(main: Any) -> None:
    task = asyncio.ensure_future(main)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        raise click.exceptions.Exit(130) from None


async def _in_folder(folder: Path | None) -> None:
    place = folder or Path(tempfile.mkdtemp(prefix="flowerpower-demo-"))
    try:
        await Theatre(place).play()
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)


class Theatre:
    """The demo in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._began = self._said = time.monotonic()

    def say(self, text: str, *, bold: bool = False) -> None:
        """A line of the story, with the time since the beginning."""
        self._said = time.monotonic()
        stamp = style(f"{time.monotonic() - self._began:5.1f} s ", dim=True)
        echo(stamp + style(text, bold=bold))

    def done(self, text: str) -> None:
        """Something that has come out well."""
        self.say(f"  {style('✓', fg='green')} {text}")

    async def play(self) -> None:
        """All acts, in their order."""
        self.say("FlowerPower: a fleet on this machine", bold=True)
        from fp_async.broker import embedded
        from fp_async.ensemble import Ensemble, network
        from fp_async.project import Project

        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.telling())
            broker = await stack.enter_async_context(embedded())
            self.done(f"an MQTT broker on {broker.uri}")
            wire = await stack.enter_async_context(network(broker.port))
            center = self._write(broker.port)
            log = stack.enter_context((self._folder / "log").open("a"))
            ensemble = Ensemble(lambda name, line: log.write(f"{name}: {line}\n"))
            await stack.enter_async_context(ensemble)
            await self._start(ensemble, center, {"berlin-1": broker.port, "oslo-1": wire.port})
            project = await stack.enter_async_context(Project(center))
            await self._known(project)
            await self._on_an_agent(project)
            await self._by_message(broker.uri)
            await self._schedule(project, wire)
        self.say("that was all; nothing is left running", bold=True)

    def _write(self, port: int) -> Path:
        """The center's project, and a copy of its pipelines for each device."""
        center = self._folder / "center"
        (center / "conf").mkdir(parents=True, exist_ok=True)
        source = files("fp_async") / "templates" / "demo" / "greenhouse.py.txt"
        text = source.read_text(encoding="utf-8")
        for name, content in _CONF.items():
            (center / "conf" / name).write_text(
                content.replace("PORT", str(port)), encoding="utf-8"
            )
        for home in (center, *(self._folder / name for name in _AGENTS)):
            (home / "pipelines").mkdir(parents=True, exist_ok=True)
            (home / "pipelines" / "greenhouse.py").write_text(text, encoding="utf-8")
        return center

    async def _start(self, ensemble: Ensemble, center: Path, ports: dict[str, int]) -> None:
        await ensemble.start("gateway", "fp_async", "start-gateway", cwd=center)
        await ensemble.start("worker", "fp_async", "start-worker", cwd=center)
        for name, tag in _AGENTS.items():
            flags = ("--broker", f"mqtt://127.0.0.1:{ports[name]}", "--name", name, "--tag", tag)
            home = self._folder / name
            await ensemble.start(name, "edge_agent", "run", *flags, "--heartbeat", "1", cwd=home)

    async def _known(self, project: Project) -> None:
        self.say("a gateway, a worker, and two agents start", bold=True)
        told: set[str] = set()

        async def ready() -> bool:
            found = {agent.name for agent in await project.agents() if agent.state == "ready"}
            for name in sorted(found - told):
                self.done(f"agent {name} is there")
            told.update(found)
            return told.issuperset(_AGENTS)

        await self.until(ready, "the agents do not come up")

    async def until(self, condition: Callable[[], Any], why: str) -> None:
        """Wait for a condition. Raises ClickException, with `why`, where it does not come."""
        deadline = time.monotonic() + _PATIENCE
        while not await condition():
            if time.monotonic() > deadline:
                raise click.ClickException(f"{why}; see the log with --dir")
            await asyncio.sleep(0.1)

    @contextlib.asynccontextmanager
    async def telling(self) -> AsyncIterator[None]:
        """Say, while the block runs, that something is waited for where nothing else is said."""

        async def tell() -> None:
            while True:
                await asyncio.sleep(_SILENT / 4)
                if time.monotonic() - self._said > _SILENT:
                    self.say(style("    ...", dim=True))

        task = asyncio.create_task(tell(), name="fp-demo")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _on_an_agent(self, project: Project) -> None:
        self.say('run_job("greenhouse", on="any:site=berlin")', bold=True)
        result = await project.run_job(
            "greenhouse",
            on="any:site=berlin",
            progress=lambda event: self.say(f"    {event.node}: {event.status} on the device"),
        )
        self.done(f"the agent's result: {result}")

    async def _by_message(self, uri: str) -> None:
        """Somebody who knows nothing but MQTT."""
        from fp_async.link import Link, connected

        self.say("a message on fp/v1/main/run/greenhouse, from any MQTT client", bold=True)
        async with connected(Link.of(uri)) as client:
            await client.subscribe("fp/v1/main/run/greenhouse/outcome", 1)
            body = b'{"inputs": {"count": 9}, "final_vars": ["mean"], "key": "demo-1"}'
            await client.publish("fp/v1/main/run/greenhouse", body, qos=1)
            (outcome, *_) = await client.receive()
        self.done(f"its outcome: {outcome.payload.decode()[:150]} ...")

    async def _schedule(self, project: Project, wire: Network) -> None:
        self.say("oslo-1 keeps a schedule: every second, with or without a network", bold=True)
        await project.schedule(
            "greenhouse",
            "interval",
            seconds=1,
            id="watch",
            on="agent:oslo-1",
            offline=True,
            final_vars=["mean"],
        )

        async def arrived(count: int) -> int:
            async def enough() -> bool:
                return len(await project.list_jobs(schedule_id="watch", limit=1000)) >= count

            await self.until(enough, "what the schedule made does not arrive")
            return len(await project.list_jobs(schedule_id="watch", limit=1000))

        before = await arrived(2)
        self.done(f"{before} results have arrived")
        await wire.cut()
        self.say("the network of oslo-1 is cut", bold=True)

        async def away() -> bool:
            return any(agent.state == "away" for agent in await project.agents())

        await self.until(away, "nobody notices that the agent is away")
        kept = len(await project.list_jobs(schedule_id="watch", limit=1000))
        self.done(f"the center knows that it is away; still {kept} results")
        for second in range(_CUT):  # it has to have something to bring
            await asyncio.sleep(1)
            self.say(f"    oslo-1 works on alone: {second + 1} s more, nothing is heard of it")
        await wire.open()
        self.say("the network is back: oslo-1 brings what it has", bold=True)
        after = await arrived(kept + 5)
        rows = await project.list_jobs(schedule_id="watch", limit=1000)
        times = {row.nominal_at for row in rows}
        self.done(f"{after} results, one for each of {len(times)} seconds: nothing was lost")
        await project.remove_schedule("watch")


# The own project ------------------------------------------------------------------------------


@click.command()
@click.option("--agents", type=click.IntRange(0), default=1, show_default=True, metavar="N")
@base_dir
def up(agents: int, base_dir: str | None) -> None:
    """Run gateway, worker and agents for this project on this machine, until Ctrl-C.

    With the broker of conf/mqtt.yml, or with the embedded one if there is none. The agents are
    agent-1, agent-2 ... and keep their stores in .agents/ of the project.
    """
    from fp_async.project import Project

    project = Project(base_dir)
    asyncio.run(_until_signalled(_up(project, agents)))


async def _up(project: Project, agents: int) -> None:
    from fp_async.ensemble import EndedError, Ensemble

    async with _broker(project) as uri, Ensemble(_echo) as ensemble:
        flags = ("--broker", uri, *_of_fleet(project))
        await ensemble.start("gateway", "fp_async", "start-gateway", cwd=project.root)
        await ensemble.start("worker", "fp_async", "start-worker", cwd=project.root)
        for number in range(1, agents + 1):
            name = f"agent-{number}"
            store = project.root / ".agents" / f"{name}.db"
            store.parent.mkdir(exist_ok=True)
            own = ("--name", name, "--project", str(project.root), "--store", str(store))
            await ensemble.start(name, "edge_agent", "run", *flags, *own, cwd=project.root)
        name = await ensemble.wait_any()
        raise EndedError(f"{name} has ended")


def _of_fleet(project: Project) -> Iterator[str]:
    """What agents have to know beside the address, as conf/mqtt.yml has it for the gateway."""
    from fp_async import config, config_files

    file, _ = config_files.mqtt(project.root)
    broker = file.broker or config.MqttBroker()
    said = {"site": file.site, "prefix": file.prefix}
    said |= {name: getattr(broker, name) for name in ("username", "password")}
    for name in ("ca_file", "cert_file", "key_file"):
        if (path := getattr(broker, name)) is not None:
            said[name] = str(project.root / path)
    for name, value in said.items():
        if value is not None:
            yield from (f"--{name.replace('_', '-')}", value)


@contextlib.asynccontextmanager
async def _broker(project: Project) -> AsyncIterator[str]:
    """The URI of the project's broker; where it has none, that of the embedded one."""
    from fp_async import config_files
    from fp_async.broker import embedded
    from fp_async.gateway_serving import VARIABLE

    file, _ = config_files.mqtt(project.root)
    if file.broker is not None and (file.broker.uri or file.broker.host):
        yield file.broker.uri or f"mqtt://{file.broker.host}:{file.broker.port or 1883}"
        return
    async with embedded(1883) as running:
        os.environ[VARIABLE] = running.uri  # for the gateway
        _echo("broker", f"embedded, on {running.uri}; another one: `broker` in conf/mqtt.yml")
        yield running.uri


def _echo(name: str, line: str) -> None:
    echo(f"{style(name.ljust(9), fg='cyan')} {line}", err=True)
