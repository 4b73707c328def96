"""What happens to devices: a clock that is set, a new card, a copied one. Real processes."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections import Counter
from pathlib import Path

import anyio
import pytest
import services
from edge_kit import AGENT, Broker, check, conf, edge_fleet, until_known
from fleet import make, until_ended

SQLITE = "data_store:\n  type: sqlite\n  uri: sqlite:///jobs.db\n"
TEN_YEARS = 10 * 365 * 86_400


@pytest.fixture
async def center(tmp_path):
    """(broker, project, flock), with a gateway."""
    with Broker() as broker:
        project = make(tmp_path / "center", SQLITE)
        work = project.root / "pipelines" / "work.py"  # libfaketime breaks time.sleep
        work.write_text(
            "import select\n"
            + work.read_text().replace("time.sleep(", "select.select([], [], [], ")
        )
        (project.root / "conf" / "mqtt.yml").write_text(conf(broker.port))
        with edge_fleet(project.root) as flock:
            flock.start_gateway("g1")
            async with project:
                yield broker, project, flock


# Presence -----------------------------------------------------------------------------------


async def until(project, name, state, seconds):
    """Wait for a state of an agent, for at most so long."""
    with anyio.fail_after(seconds):
        while next((a.state for a in await project.agents() if a.name == name), "") != state:
            await asyncio.sleep(0.05)


async def test_e1_every_death_is_known_at_once(center):
    broker, project, flock = center
    for number in range(3):
        flock.start_agent("pi-7", broker.port)
        await until_known(project, "pi-7")
        flock.kill("pi-7")
        await until(project, "pi-7", "away", 5)
        flock.start_agent("pi-7", broker.port)
        await until_known(project, "pi-7")
        if number < 2:
            flock.stop("pi-7")
            await until(project, "pi-7", "away", 5)


async def test_e2_a_store_that_was_restored_is_believed(center):
    """The backup counts two starts less, and has a job that has run since."""
    broker, project, flock = center
    store, backup = flock.device("pi-7") / "fp-agent.db", flock.root / "backup.db"
    flock.start_agent("pi-7", broker.port)
    await until_known(project, "pi-7")
    flock.stop("pi-7")
    shutil.copy(store, backup)
    for _ in range(2):
        flock.start_agent("pi-7", broker.port)
        await until_known(project, "pi-7")
        flock.kill("pi-7")
        await until(project, "pi-7", "away", 5)
    for file in store.parent.glob("fp-agent.db*"):
        file.unlink()
    shutil.copy(backup, store)
    flock.start_agent("pi-7", broker.port)
    await until_known(project, "pi-7", timeout=10)
    id = await project.add_job("work", on="agent:pi-7", inputs=flock.inputs(1))
    assert await project.get_result(id, wait=20) == {"value": 2}
    flock.kill("pi-7")
    await until(project, "pi-7", "away", 5)  # by a will that counts as the agent does
    assert "an older backup" in (flock.root / "fleet.log").read_text()


async def test_e9_a_store_that_was_copied_while_its_device_ran(center):
    broker, project, flock = center
    flock.start_agent("pi-7", broker.port)
    await until_known(project, "pi-7")
    copy = flock.device("pi-7").with_name("copy")
    shutil.copytree(flock.device("pi-7"), copy, ignore=shutil.ignore_patterns("*.sock"))
    command = [AGENT, "run", "--broker", f"mqtt://127.0.0.1:{broker.port}", "--name", "pi-7"]
    flock.spawn("copy", [*command, "--project", str(copy), "--heartbeat", "2"])
    await until(project, "pi-7", "quarantined", 60)
    (agent,) = await project.agents()
    assert "two devices use the same store" in agent.problem


# Clocks -------------------------------------------------------------------------------------


class Clock:
    """The wall clock of a process, which may be set while it runs."""

    def __init__(self, file: Path) -> None:
        found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not found:
            services.missing("libfaketime is not installed (Debian: faketime)")
        self._file = file
        self._library = found[0]
        self.set_by(0)

    def set_by(self, seconds: float) -> None:
        """What it shows more than the real one, from now on."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.rename(self._file)  # an empty file would be another time

    @property
    def command(self) -> list[str]:
        """What to put before a command so that it has this clock."""
        return [
            "env",
            f"LD_PRELOAD={self._library}",
            f"FAKETIME_TIMESTAMP_FILE={self._file}",
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
        ]


def start(flock, broker, clock, *arguments):
    command = [*clock.command, AGENT, "run", "--broker", f"mqtt://127.0.0.1:{broker.port}"]
    command += ["--name", "pi-7", "--project", str(flock.device("pi-7"))]
    return flock.spawn("pi-7", [*command, "--heartbeat", "1", "--slots", "1", *arguments])


async def set_and_noticed(flock, clock, seconds, times):
    clock.set_by(seconds)
    with anyio.fail_after(20):
        while (flock.root / "fleet.log").read_text().count("the clock was set") < times:
            await anyio.sleep(0.1)


async def test_a_clock_that_is_set_by_ten_years_and_back(center, tmp_path):
    """Queued, running and scheduled work goes on, and no time of it is the device's."""
    broker, project, flock = center
    clock = Clock(tmp_path / "clock")
    start(flock, broker, clock)
    await until_known(project, "pi-7")
    began = time.time()
    await project.schedule(
        *("work", "interval"),
        id="tick",
        seconds=1,
        on="agent:pi-7",
        offline=True,
        inputs=flock.inputs(-1),
    )
    ids = [
        await project.add_job("work", on="agent:pi-7", expires=60, inputs=flock.inputs(n, 0.5))
        for n in range(12)
    ]
    with anyio.fail_after(20):
        while len(flock.lines()) < 2:
            await anyio.sleep(0.05)
    await set_and_noticed(flock, clock, -TEN_YEARS, 1)
    fired = len(await project.list_jobs(schedule_id="tick"))
    with anyio.fail_after(30):
        results = [await project.get_result(id, wait=30) for id in ids]
        while len(await project.list_jobs(schedule_id="tick")) < fired + 3:
            await anyio.sleep(0.1)
    assert results == [{"value": 2 * n} for n in range(12)]
    await set_and_noticed(flock, clock, 0, 2)
    fired = len(await project.list_jobs(schedule_id="tick"))
    with anyio.fail_after(30):
        while len(await project.list_jobs(schedule_id="tick")) < fired + 3:
            await anyio.sleep(0.1)
    await project.remove_schedule("tick")
    rows = await project.list_jobs(limit=1000)
    assert {row.state for row in rows} == {"succeeded"}
    for row in rows:
        assert began - 1 <= row.started_at.timestamp() <= row.ended_at.timestamp()
        assert row.ended_at.timestamp() <= time.time() + 1
    starts = Counter(id for id, *_ in flock.lines())
    assert max(starts.values()) == 1
    assert starts.keys() >= {*ids, *(row.id for row in rows)}


async def test_a_device_that_boots_ten_years_ago_runs_what_it_has(center, tmp_path):
    """No network, no battery: what was queued before it went off is run at once."""
    broker, project, flock = center
    clock = Clock(tmp_path / "clock")
    start(flock, broker, clock)
    await until_known(project, "pi-7")
    ids = [
        await project.add_job("work", on="agent:pi-7", inputs=flock.inputs(n, 1.0))
        for n in range(4)
    ]
    with anyio.fail_after(20):
        while not flock.lines():
            await anyio.sleep(0.05)
    flock.kill("pi-7")
    broker.kill()
    clock.set_by(-TEN_YEARS)
    with sqlite3.connect(flock.device("pi-7") / "fp-agent.db") as db:  # it was another boot
        db.execute('UPDATE facts SET value = replace(value, \'"boot":"\', \'"boot":"not \')')
    start(flock, broker, clock)
    with anyio.fail_after(20):
        while len(flock.lines()) < 5:
            await anyio.sleep(0.1)
    clock.set_by(0)
    broker.start()
    jobs = await until_ended(project, len(ids), 90)
    assert {job.state for job in jobs.values()} == {"succeeded"}
    check(jobs, flock)


# Cards --------------------------------------------------------------------------------------


async def test_a_reflashed_device_gets_its_jobs_again_after_a_minute(center):
    broker, project, flock = center
    flock.start_agent("pi-7", broker.port, "--slots", "1")
    await until_known(project, "pi-7")
    begun = {
        policy: await project.add_job(
            "work", on="agent:pi-7", on_crash=policy, inputs=flock.inputs(n, 30.0 * (1 - n))
        )
        for n, policy in enumerate(("fail", "retry"))
    }
    waiting = [
        await project.add_job("work", on="agent:pi-7", inputs=flock.inputs(n)) for n in (2, 3)
    ]
    with anyio.fail_after(20):
        while (await project.get_job(begun["fail"])).state != "running":
            await anyio.sleep(0.05)
        while (await project.get_job(waiting[-1])).state != "accepted":
            await anyio.sleep(0.05)
    flock.kill("pi-7")
    for file in flock.device("pi-7").glob("fp-agent.db*"):
        file.unlink()
    flock.start_agent("pi-7", broker.port)
    await until_known(project, "pi-7", state="new")
    jobs = await until_ended(project, 4, 100)
    assert jobs.pop(begun["fail"]).state == "failed"
    assert {job.state for job in jobs.values()} == {"succeeded"}
    assert [await project.get_result(id) for id in waiting] == [{"value": 4}, {"value": 6}]
    starts = Counter(id for id, *_ in flock.lines())
    assert [starts[id] for id in waiting] == [1, 1], "what had not begun is no second start"


async def test_a_copied_card_is_a_clone_until_it_has_a_store_of_its_own(center):
    """Both have one store and have started as often: two machines, since the boots differ."""
    broker, project, flock = center
    flock.start_agent("pi-7", broker.port)
    await until_known(project, "pi-7")
    flock.stop("pi-7")
    copy = flock.device("pi-7").with_name("copy")
    shutil.copytree(flock.device("pi-7"), copy)
    flock.start_agent("pi-7", broker.port)
    await until_known(project, "pi-7")
    other = (copy / "boot-id").absolute()
    other.write_text("another-machine\n")
    command = ["unshare", "--mount", "sh", "-c"]
    command.append(f'mount --bind "{other}" /proc/sys/kernel/random/boot_id && exec "$0" "$@"')
    command += [AGENT, "run", "--broker", f"mqtt://127.0.0.1:{broker.port}", "--name", "pi-7"]
    ghost = flock.spawn("ghost", [*command, "--project", str(copy)])
    with anyio.fail_after(30):
        while True:
            (agent,) = await project.agents()
            if agent.state == "quarantined":
                break
            if ghost.poll() is not None:
                services.missing("a file of /proc cannot be mounted over: that needs rights")
            await asyncio.sleep(0.1)
    assert "two devices use the same store" in agent.problem
