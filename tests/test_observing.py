"""What can be read of running processes: metrics as Prometheus parses them, and logs in JSON."""

from __future__ import annotations

import json
import logging
import re
import time
import urllib.request
from collections import defaultdict

import anyio
import pytest
from edge_kit import Broker, conf, edge_fleet, until_known
from fleet import make
from prometheus_client.parser import text_string_to_metric_families

from fp_async import UsageError, json_logs, metrics
from fp_async.board import Board
from fp_async.current import CurrentJob
from fp_async.messages import AgentState, Heartbeat
from fp_async.presence import Known

SQLITE = "data_store:\n  type: sqlite\n  uri: sqlite:///jobs.db\n"
SAYS = """
import logging
import time


def value(number: int) -> int:
    logging.getLogger("mine").warning("number %s", number)
    print("printed")
    if number < 0:
        raise ValueError("negative")
    return number * 2


async def twice(value: int) -> int:
    logging.getLogger("mine").info("again")
    return value * 2
"""


class Scraped:
    """The samples of one look at an endpoint."""

    def __init__(self, url: str) -> None:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        self.samples = defaultdict(list)
        for family in text_string_to_metric_families(text):
            assert family.documentation or not family.name.startswith("flowerpower")
            for sample in family.samples:
                self.samples[sample.name].append((sample.labels, sample.value))

    def __call__(self, name: str, **labels: str) -> float | None:
        """The value with these labels, among others; None where there is none."""
        for found, value in self.samples.get(f"flowerpower_{name}", []):
            if labels.items() <= found.items():
                return value
        return None


async def endpoint(log, start=0) -> str:
    """The address that a daemon says in its log, from its line `start` on."""
    with anyio.fail_after(20):
        while True:
            text = log.read_text()[start:]
            if found := re.search(r"metrics: (http://127\.0\.0\.1:\d+/metrics)", text):
                return found[1]
            await anyio.sleep(0.05)


async def scraped(url: str) -> Scraped:
    return await anyio.to_thread.run_sync(Scraped, url)


async def until(url, condition):
    with anyio.fail_after(20):
        while not condition(seen := await scraped(url)):
            await anyio.sleep(0.1)
    return seen


@pytest.fixture
def place(tmp_path):
    project = make(tmp_path / "center", SQLITE)
    (project.root / "pipelines" / "says.py").write_text(SAYS)
    return project


# Metrics ------------------------------------------------------------------------------------


async def test_a_worker_tells_of_queues_attempts_and_outcomes(place):
    with edge_fleet(place.root) as flock:
        flock.start("w", "start-worker", "--metrics-port", "0")
        url = await endpoint(place.root / "fleet.log")
        async with place:
            for number in (1, 2):
                await place.run_job("says", inputs={"number": number})
            retry = {"max_attempts": 2, "backoff": 0.0}
            await place.add_job("says", inputs={"number": -1}, retry=retry)
            await place.add_job("says", inputs={"number": 1}, queue="other")
            await place.schedule("says", "interval", seconds=0.2, id="tick", inputs={"number": 1})
            seen = await until(
                url,
                lambda s: (
                    s("outcomes_total", pipeline="says", outcome="failed")
                    and (s("fires_total", schedule="tick") or 0) >= 2
                ),
            )
    assert seen("outcomes_total", pipeline="says", queue="default", outcome="succeeded") >= 2
    assert seen("outcomes_total", pipeline="says", outcome="retried") == 1
    assert seen("attempts_total", pipeline="says") >= 4
    assert seen("attempt_seconds_count", pipeline="says") >= 4
    assert 0 < seen("attempt_seconds_sum", pipeline="says") < 60
    assert seen("wait_seconds_bucket", pipeline="says", le="+Inf") >= 4
    assert seen("fire_late_seconds_count") >= 2
    assert seen("jobs", queue="other", state="queued") == 1
    assert 0 < seen("queue_oldest_seconds", queue="other") < 60
    assert seen("store_up") == seen("workers") == 1
    assert seen.samples["process_resident_memory_bytes"]


async def test_a_scheduler_and_a_lost_store(place):
    with edge_fleet(place.root) as flock:
        flock.start("s", "start-scheduler", "--metrics-port", "0")
        url = await endpoint(place.root / "fleet.log")
        async with place:
            await place.schedule("says", "interval", seconds=0.1, id="tick", inputs={"number": 1})
            await until(url, lambda s: (s("fires_total", schedule="tick") or 0) >= 3)


async def test_a_gateway_beside_a_worker_and_an_agent(place):
    with Broker() as broker:
        (place.root / "conf" / "mqtt.yml").write_text(conf(broker.port))
        with edge_fleet(place.root) as flock:
            log = place.root / "fleet.log"
            flock.start("w", "start-worker", "--gateway", "--metrics-port", "0")
            center = await endpoint(log)
            start = len(log.read_text())
            flock.start_agent("pi-7", broker.port, "--metrics-port", "0")
            device = await endpoint(log, start)
            async with place:
                await until_known(place, "pi-7")
                for number in range(3):
                    await place.run_job("says", on="agent:pi-7", inputs={"number": number})
                await place.run_job("says", inputs={"number": 1})
            seen = await until(center, lambda s: s("gateway_events_total") or s("agents"))
            assert seen("agents", state="ready") == 1
            assert seen("gateway_active") == 1
            assert seen("gateway_events", event="outcomes") == 3
            assert seen("outcomes_total", pipeline="says", outcome="succeeded") == 4
            told = await until(device, lambda s: s("outbox") == 0)
            assert told("attempts_total", pipeline="says") == 3
            assert (told("slots"), told("running"), told("connected")) == (1, 0, 1)
            assert told("disk_free_bytes") > 0
            assert flock.stop("pi-7") == 0
            assert flock.stop("w") == 0


async def test_nothing_is_observed_when_the_block_has_ended():
    observers = []
    async with metrics.served("127.0.0.1", 0, observers) as port:
        assert len(observers) == 1
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}"):
            async with metrics.served("127.0.0.1", port, observers):
                pass
        assert len(observers) == 1
    assert observers == []
    with pytest.raises(OSError, match="refused"):
        await scraped(f"http://127.0.0.1:{port}/metrics")


# Logs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", ["process", "inline"])
async def test_every_line_is_json_and_says_whose_it_is(place, runner):
    with edge_fleet(place.root) as flock:
        flock.start("w", "start-worker", "--log-format", "json", "--runner", runner)
        async with place:
            id = await place.add_job("says", inputs={"number": 3})
            assert await place.get_result(id, wait=20) == {"twice": 12}
            bad = await place.add_job("says", inputs={"number": -3})
            with anyio.fail_after(20):
                while (await place.get_job(bad)).state != "failed":
                    await anyio.sleep(0.05)
            job = await place.get_job(id)
        flock.stop("w")
        written = (place.root / "fleet.log").read_text().splitlines()
        lines = [json.loads(line) for line in written if runner == "process" or line != "printed"]
    found = {line["message"]: line for line in lines}
    about = {"job": id, "pipeline": "says", "attempt": 1}
    said = found["number 3"]
    assert said == {
        "time": said["time"], "level": "warning", "logger": "mine", "message": "number 3", **about,
        "node": "value",
    }  # fmt: skip
    assert found["again"]["node"] == "twice"
    if runner == "process":
        assert found["printed"]["logger"] == "stdout"
        assert found["printed"]["job"] in (id, bad)
    assert "WARNING mine: number 3\n" in job.log
    failed = next(line for line in lines if "failed" in line["message"])
    assert (failed["job"], failed["pipeline"]) == (bad, "says")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z", line["time"]) for line in lines)


async def test_an_agent_says_its_name_in_every_line(place):
    with Broker() as broker:
        (place.root / "conf" / "mqtt.yml").write_text(conf(broker.port))
        with edge_fleet(place.root) as flock:
            flock.start("g", "start-gateway", "--log-format", "json")
            flock.start_agent("pi-7", broker.port, "--log-format", "json")
            async with place:
                await until_known(place, "pi-7")
                await place.run_job("says", on="agent:pi-7", inputs={"number": 5})
            flock.stop("pi-7")
            lines = [
                json.loads(line) for line in (place.root / "fleet.log").read_text().splitlines()
            ]
    (said,) = [line for line in lines if line["message"] == "number 5"]
    assert (said["agent"], said["pipeline"], said["node"]) == ("pi-7", "says", "value")
    ends = [line for line in lines if line.get("outcome")]
    assert {(line["logger"], line["outcome"], line["agent"]) for line in ends} == {
        ("fp_async", "succeeded", "pi-7"),
        ("fp_async.gateway", "succeeded", "pi-7"),
    }
    assert len({line["job"] for line in ends}) == 1
    assert {line.get("agent") for line in lines} == {"pi-7", None}


def test_an_error_is_a_field_of_its_line():
    formatter = json_logs.Formatter(agent="pi")
    record = logging.LogRecord("a", logging.ERROR, "f", 1, "it %s", ("broke",), None)
    try:
        raise ValueError("no")
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    line = json.loads(formatter.format(record))
    assert (line["message"], line["agent"], line["level"]) == ("it broke", "pi", "error")
    assert line["error"].endswith("ValueError: no")


def test_what_a_process_logs_is_read_again_and_written_on(capsys):
    formatter = json_logs.Formatter()
    record = logging.LogRecord("a", logging.INFO, "f", 1, "text", (), None)
    job = CurrentJob("7", 2, "p")
    shown = formatter.relay(job, json_logs.Formatter().format(record))
    assert shown.endswith(" INFO a: text")
    assert formatter.relay(job, "{not json") == "{not json"
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["job"], first["attempt"], first["message"]) == ("7", 2, "text")
    assert (second["logger"], second["message"]) == ("stdout", "{not json")
    assert time.strptime(first["time"][:19], "%Y-%m-%dT%H:%M:%S")


def test_d12_agents_are_shown_by_name_and_no_more_than_some():
    board = Board()
    said = AgentState(status="ready", store="s", starts=1, n=1)
    for number in range(500):
        beat = Heartbeat(free=1, clock=1.0, outbox=number if number == 7 else 0)
        away = 1.0 if number == 450 else None
        board.believe(f"pi-{number:03}", Known(state=said, seen_at=1.0, away_since=away, beat=beat))
    families = {each.name: each for each in metrics.of_board(board, active=True, counts={})}
    up = [(each.labels["agent"], each.value) for each in families["flowerpower_agent_up"].samples]
    assert up[:3] == [("pi-007", 1), ("pi-450", 0), ("pi-000", 1)]
    assert len(up) == 200
    untold = families["flowerpower_agent_untold"].samples
    assert (untold[0].labels, untold[0].value) == ({"agent": "pi-007"}, 7)
