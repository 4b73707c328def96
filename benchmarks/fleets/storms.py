"""A gateway with thousands of simulated agents: connecting, heartbeats, jobs, a broker killed."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from fleets.places import HERE, Mosquitto, Place, Shares, more_files, rss, running, until

from fp_async import Project

PROCESSES = 2
Figures = dict[str, Any]


class Swarm:
    """Simulated agents in two processes."""

    def __init__(self, stack: ExitStack, port: int, count: int, log: Path) -> None:
        self.processes: list[psutil.Popen] = []
        self.count, share = count, count // PROCESSES
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        for number in range(PROCESSES):
            first = number * share
            many = share if number < PROCESSES - 1 else count - first
            numbers = (str(port), str(first), str(many), f"127.0.0.{number + 2}")
            command = [sys.executable, str(HERE / "swarm.py"), *numbers]
            self.processes.append(stack.enter_context(running(command, log, **pipes)))

    def status(self) -> list[dict[str, Any]]:
        answers = []
        for process in self.processes:
            process.stdin.write("status\n")
            process.stdin.flush()
        for process in self.processes:
            answers.append(json.loads(process.stdout.readline()))
        return answers

    def back(self) -> list[float]:
        """When each that is connected has appeared."""
        return sorted(at for answer in self.status() for at in answer["back"])

    def wait(self, share: float, since: float, seconds: float) -> float:
        """Seconds from `since` until that share was connected. Raises AssertionError."""
        wanted = int(share * self.count)
        deadline = time.monotonic() + seconds
        while len(found := self.back()) < wanted:
            if time.monotonic() > deadline:
                raise AssertionError(f"{len(found):,} of {self.count:,} are connected")
            time.sleep(0.25)
        return found[wanted - 1] - since


def _known(root: Path, connection: int) -> int:
    """How many agents the store knows to be there, by their connection of that number or later."""
    with sqlite3.connect(f"file:{root}/jobs.db?mode=ro", uri=True) as db:
        sql = (
            "SELECT count(*) FROM members WHERE kind = 'agent' "
            "AND json_extract(CAST(info AS TEXT), '$.state.status') = 'ready' "
            "AND json_extract(CAST(info AS TEXT), '$.state.n') >= ? "
            "AND json_extract(CAST(info AS TEXT), '$.away_since') IS NULL"
        )
        return int(db.execute(sql, (connection,)).fetchone()[0])


def _unfinished(root: Path) -> int:
    with sqlite3.connect(f"file:{root}/jobs.db?mode=ro", uri=True) as db:
        sql = "SELECT count(*) FROM jobs WHERE state IN ('queued','offered','accepted','running')"
        return int(db.execute(sql).fetchone()[0])


def measure(folder: Path, count: int, steady: float, outage: float) -> Figures:
    """All of it, one after the other, in one fleet."""
    more_files()
    figures: Figures = {"agents": count}
    with ExitStack() as stack:
        broker = stack.enter_context(Mosquitto(folder / "broker"))
        place = stack.enter_context(Place(folder / "fleet", broker))
        gateway = place.gateway()
        began = time.monotonic()
        swarm = Swarm(stack, broker.port, count, folder / "swarm.log")
        figures["connected"] = swarm.wait(1.0, began, 60)
        until(lambda: _known(place.root, 1) >= count, "all are known", 60, 0.25)
        figures["known"] = time.monotonic() - began
        figures["connect"] = place.stalls(gateway)
        figures |= _heartbeats(place, gateway, swarm, steady)
        figures |= _jobs(place, gateway, swarm)
        figures |= _storm(place, gateway, swarm, outage)
        figures["gateway_mib"], figures["broker_mib"] = rss(gateway), rss(broker.process)
        figures["gateway_peak_mib"] = _peak(gateway)
    return figures


def _peak(process: psutil.Process) -> float:
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def _shares(place: Place, gateway: psutil.Process, swarm: Swarm) -> Shares:
    simulators = {f"simulator{n}": p for n, p in enumerate(swarm.processes)}
    return Shares(gateway=gateway, broker=place.broker.process, **simulators)


def _heartbeats(place: Place, gateway: psutil.Process, swarm: Swarm, steady: float) -> Figures:
    """Nothing but signs of life, from 3 s after the rush on."""
    time.sleep(3)
    place.stalls(gateway)
    with _shares(place, gateway, swarm) as shares:
        time.sleep(steady)
    return {"heartbeats": shares.shares, "heartbeats_stall": place.stalls(gateway)}


def _jobs(place: Place, gateway: psutil.Process, swarm: Swarm) -> Figures:
    """One job to each: from the call of `add_job` until all outcomes are in the store."""
    place.stalls(gateway)
    began = time.monotonic()
    with _shares(place, gateway, swarm) as shares:
        asyncio.run(Project(place.root).add_job("noop", on="all:*"))
        added = time.monotonic() - began
        until(lambda: _unfinished(place.root) == 0, "all jobs have ended", 120, 0.25)
    took = time.monotonic() - began
    stall = place.stalls(gateway)
    done = sum(answer["done"] for answer in swarm.status())
    figures = {"jobs_added": added, "jobs": took, "jobs_shares": shares.shares, "runs": done}
    return {**figures, "jobs_stall": stall}


def _storm(place: Place, gateway: psutil.Process, swarm: Swarm, outage: float) -> Figures:
    """The broker is killed, and comes back with nothing after `outage` seconds."""
    place.stalls(gateway)
    place.broker.kill()
    time.sleep(outage)
    place.broker.start()
    back = time.monotonic()
    with _shares(place, gateway, swarm) as shares:
        most = swarm.wait(0.99, back, 120)
        until(lambda: _known(place.root, 2) >= 0.99 * swarm.count, "99 % are known", 60, 0.25)
        known = time.monotonic() - back
    figures = {"outage": outage, "storm": most, "storm_known": known}
    return {**figures, "storm_shares": shares.shares, "storm_stall": place.stalls(gateway)}
