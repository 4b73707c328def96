"""A fleet of agents and gateways as processes of the installed commands, and a broker of their own.

Jobs leave a trace outside of every store, as in `fleet.py`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import anyio
import fleet
import services

from fp_async.backend import connected
from fp_async.fleet import gateway_trouble

AGENT = str(Path(sys.executable).with_name("fp-agent"))
QUICK = "  away_after: 6\n"


class Broker(services.Mosquitto):
    """A Mosquitto that forgets everything when it is killed, and drops beyond a short queue."""

    def prepare(self) -> None:
        lines = [
            f"listener {self.port} 127.0.0.1",
            *("user root", "allow_anonymous true", "set_tcp_nodelay true"),
            *("persistence false", "max_queued_messages 50"),
        ]
        (self.folder / "conf").write_text("\n".join((*lines, *self.lines, "")))


def conf(port: int, extra: str = "") -> str:
    """conf/mqtt.yml for a broker on that port."""
    return f"broker:\n  uri: mqtt://127.0.0.1:{port}\n{extra}"


class EdgeFleet(fleet.Fleet):
    """Beside workers and schedulers: gateways of the project, and agents, each with its device."""

    def device(self, name: str) -> Path:
        """The folder of a device, with the project's pipelines."""
        folder = self.root.parent / "devices" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            shutil.copytree(self.root / "pipelines", folder / "pipelines")
        return folder

    def start_agent(self, name: str, port: int, *arguments: str) -> subprocess.Popen:
        command = [AGENT, "run", "--broker", f"mqtt://127.0.0.1:{port}", "--name", name]
        command += ["--project", str(self.device(name)), "--heartbeat", "2", *arguments]
        return self.spawn(name, command)

    def start_gateway(self, name: str) -> subprocess.Popen:
        return self.start(name, "start-gateway")


@contextmanager
def edge_fleet(root: Path):
    """Nothing of it is left afterwards; on an error the end of the log is shown."""
    made = EdgeFleet(root)
    try:
        yield made
    except BaseException:
        made.log.flush()
        print((root / "fleet.log").read_text(errors="replace")[-6000:])
        raise
    finally:
        made.close()


async def until_known(project, *names: str, state: str = "ready", timeout: float = 20) -> None:
    """Wait until the center knows these agents to be in that state."""
    deadline = time.monotonic() + timeout
    while True:
        found = {each.name: each.state for each in await project.agents()}
        if all(found.get(name) == state for name in names):
            return
        assert time.monotonic() < deadline, f"{found}, and not {names} {state}"
        await asyncio.sleep(0.1)


async def until_gateway(project, timeout: float = 20) -> None:
    """Wait until a gateway is active and has reached its broker."""
    with anyio.fail_after(timeout):
        async with connected(project.root) as backend:
            while await gateway_trouble(backend.store):
                await anyio.sleep(0.05)


def check(jobs: dict, flock: EdgeFleet) -> dict:
    """One outcome each, and every further start explained by a kill of the agent that ran it."""
    starts = defaultdict(list)
    for id, tries, _, pid in flock.lines():
        starts[id].append((tries, pid))
    assert starts.keys() <= jobs.keys(), "a job ran that is in no store"
    for id, job in jobs.items():
        began = starts[id]
        assert began, f"{id} has an outcome ({job.state}, {job.reason}) and never ran"
        assert len(began) == len(set(began)), f"{id} used a number twice on one device: {began}"
        unexplained = [pid for _, pid in began[:-1] if pid not in flock.killed]
        assert not unexplained, f"{id} ran again though {unexplained} lived: {began}"
    reruns = sum(len(began) - 1 for began in starts.values())
    return {"jobs": len(jobs), "kills": len(flock.killed), "second starts": reruns}


def status(store: Path) -> dict:
    """What `fp-agent status` says of the agent on that store."""
    done = subprocess.run(
        [AGENT, "status", "--store", str(store), "--output", "json"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    return json.loads(done.stdout)
