"""Three days without a network, in short: what waits on the device arrives, once, oldest first, and
what is new does not stand behind it."""

from __future__ import annotations

import time

import anyio
import pytest
from edge_kit import Broker, conf, edge_fleet, until_known
from fleet import make, scale

from edge_agent.store import AgentStore
from fp_async import codec
from fp_async.jobs import Find, Job, identity
from fp_async.stores import tables
from fp_async.stores.sqlite import SqliteStore

OUTCOMES = 50_000
SQLITE = "data_store:\n  type: sqlite\n  uri: sqlite:///jobs.db\n"


async def three_days(path, count):
    """The store of an agent that has run a schedule all the time, and has told nobody."""
    store = SqliteStore(path)
    await store.open()
    await AgentStore(store).begin()
    began = time.time() - 3 * 86_400
    rows = [
        Job(
            id=identity("watch", repr(began + number), "pi-7"),
            pipeline="work",
            state="succeeded",
            created_at=began + number,
            run_at=began + number,
            started_at=began + number,
            ended_at=began + number + 0.5,
            attempt=1,
            schedule_id="watch",
            nominal_at=began + number,
            identity=True,
            unreported=True,
            inputs=codec.encode({"number": number}),
            result=codec.encode({"value": 2 * number}),
        )
        for number in range(count)
    ]
    await store.units.write(
        lambda db: db.executemany(tables.INSERT_WHOLE, [tables.whole(row) for row in rows])
    )
    await store.close()
    return {row.id: 2 * number for number, row in enumerate(rows)}


async def arrived(project, count):
    return await project.list_jobs(schedule_id="watch", limit=count + 1)


@pytest.mark.slow
async def test_a_backlog_arrives_once_and_starves_nobody(tmp_path, capsys):
    count = scale(OUTCOMES)
    with Broker() as broker:
        project = make(tmp_path / "center", SQLITE)
        (project.root / "conf" / "mqtt.yml").write_text(conf(broker.port))
        with edge_fleet(project.root) as flock:
            expected = await three_days(flock.device("pi-7") / "fp-agent.db", count)
            flock.start_gateway("g1")
            began = time.monotonic()
            flock.start_agent("pi-7", broker.port)
            async with project:
                await until_known(project, "pi-7")
                ahead = 0
                for number in range(5):  # new jobs, while the old ones arrive
                    inputs = flock.inputs(number)
                    assert await project.run_job("work", on="agent:pi-7", inputs=inputs) == {
                        "value": 2 * number
                    }
                    ahead += len(await arrived(project, count)) < count
                with anyio.fail_after(120):
                    while len(rows := await arrived(project, count)) < count:
                        await anyio.sleep(0.1)
                took = time.monotonic() - began
                assert ahead or count < 20_000, "new jobs stood behind the old ones"
                assert {row.id for row in rows} == expected.keys()
                assert {row.state for row in rows} == {"succeeded"}
                assert [row.nominal_at for row in reversed(rows)] == sorted(
                    row.nominal_at for row in rows
                ), "not the oldest first"
                for row in rows[:: max(count // 50, 1)]:
                    assert await project.get_result(row.id) == {"value": expected[row.id]}
                    assert (await project.get_job(row.id))._row.trace.late > 10
                await told(flock.device("pi-7") / "fp-agent.db")
    with capsys.disabled():
        print(f"\n  {count} outcomes in {took:.1f} s, {ahead} of 5 new jobs ended before them")


async def told(path):
    """Wait until the device knows that all of it is stored."""
    store = SqliteStore(path)
    await store.open()
    try:
        with anyio.fail_after(30):
            while (await AgentStore(store).waiting())[0]:
                await anyio.sleep(0.1)
        assert await store.find(Find(limit=1))
    finally:
        await store.close()
