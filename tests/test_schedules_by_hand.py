"""Schedules that are fired by hand, and how the command shows them."""

from __future__ import annotations

import json
import signal

import msgspec
import pytest
from click.testing import CliRunner

from fp_async import firing
from fp_async.cli import cli
from fp_async.jobs import Find, Schedule, Template

DAILY = b'{"type":"crontab","crontab":"0 7 * * *","timezone":"Europe/Berlin"}'
FLOW = "def number(count: int = 1) -> int:\n    return count\n"
SQLITE = "data_store: {type: sqlite, uri: 'sqlite:///jobs.db'}\n"


def daily(overlap="allow", **fields):
    template = msgspec.json.encode(Template(overlap=overlap))
    return Schedule(id="daily", pipeline="flow", trigger=DAILY, template=template, **fields)


async def test_d2_a_fire_by_hand_adds_a_job_and_leaves_the_next_time(store):
    row = await store.put(daily(paused=True, next_fire_time=9e9))
    fire = firing.by_hand(row, await store.now())
    ((id,),) = await store.fire([fire])
    job = await store.get(id)
    assert (job.schedule_id, job.nominal_at) == ("daily", fire.last_fire_time)
    after = await store.schedule("daily")
    assert (after.paused, after.next_fire_time, after.revision) == (True, 9e9, row.revision)
    assert (after.last_fire_time, after.fired, after.skipped) == (fire.last_fire_time, 1, 0)


async def test_d2_the_same_fire_by_hand_again_is_done_once(store):
    row = await store.put(daily(next_fire_time=9e9))
    fire = firing.by_hand(row, await store.now())
    ((id,),) = await store.fire([fire])
    assert await store.fire([fire]) == [None]
    again = firing.by_hand(await store.schedule("daily"), fire.last_fire_time)  # no later moment
    ((other,),) = await store.fire([again])
    assert {job.id for job in await store.find(Find())} == {id, other}
    assert (await store.schedule("daily")).fired == 2


async def test_d2_a_schedule_that_was_changed_is_looked_at_again(store):
    row = await store.put(daily(next_fire_time=9e9))
    await store.put(daily(next_fire_time=8e9))
    assert await store.fire([firing.by_hand(row, await store.now())]) == [None]
    assert await store.find(Find()) == []
    assert await store.delete("daily")
    assert await store.fire([firing.by_hand(row, await store.now())]) == [None]


async def test_d2_overlap_counts_for_fires_by_hand(store):
    row = await store.put(daily("skip", next_fire_time=None))
    now = await store.now()
    ((_,),) = await store.fire([firing.by_hand(row, now)])
    row = await store.schedule("daily")
    assert await store.fire([firing.by_hand(row, now)]) == [[]]
    assert len(await store.find(Find())) == 1
    after = await store.schedule("daily")
    assert (after.fired, after.skipped, after.next_fire_time) == (1, 1, None)


async def test_d2_due_times_go_on_after_a_fire_by_hand(store):
    now = await store.now()
    row = await store.put(daily(next_fire_time=now - 1.0))
    fires = [firing.by_hand(row, now), firing.decide(row, now)]
    by_hand, due = await store.fire(fires)
    assert len(by_hand) == len(due) == 1
    after = await store.schedule("daily")
    assert after.next_fire_time == fires[1].next_fire_time > now
    assert after.fired == 2


# The command ------------------------------------------------------------------------------------


@pytest.fixture
def flowerpower(make_project):
    """Runs the command in this process, on a project with a data store; gives what it prints."""
    root = make_project(flow=FLOW).root
    (root / "conf").mkdir()
    (root / "conf" / "scheduler.yml").write_text(SQLITE)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments, error=None):
        base = ["--base-dir", str(root)]
        done = CliRunner().invoke(cli, [*arguments, *base], standalone_mode=False)
        assert str(done.exception or "") == (error or ""), done.output
        return done.output

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_d2_schedules_say_zone_environment_inputs_and_target(flowerpower):
    berlin = ("--crontab", "0 7 * * *", "--timezone", "Europe/Berlin", "--inputs", "count=3")
    told = flowerpower("schedule", "flow", "--type", "cron", *berlin, "--id", "morning-report")
    assert "T07:00:00+0" in told
    flowerpower(
        "schedule", "flow", "--interval-params", "hours=1", "--id", "often", "--overlap", "skip"
    )
    head, morning, often = flowerpower("schedules").splitlines()
    assert head.split()[:4] == ["id", "pipeline", "trigger", "next"]
    for text in ("T07:00:00+0", "Europe/Berlin", "dev", "count=3"):
        assert text in morning
    assert "every 1 h" in often
    shown = flowerpower("schedules", "show", "morn")
    assert shown.count("T07:00:00+0") == 3
    assert "count=3" in shown
    (id,) = flowerpower("schedules", "run-now", "ofte").split()
    assert flowerpower("schedules", "run-now", "often", error=(
        "schedule 'often' added no job: its job before still runs (overlap: skip), or no agent is "
        "known that it is for"
    )) == ""  # fmt: skip
    found = json.loads(flowerpower("schedules", "show", "often", "--output", "json"))
    assert [job["id"] for job in found["jobs"]] == [id]
    assert (found["environment"], found["overlap"], found["fired"]) == ("dev", "skip", 1)
    assert id in flowerpower("cancel", id[:8])
