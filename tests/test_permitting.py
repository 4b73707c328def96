"""What a device lets others have run on it: agent.yml says so, and nobody at the broker does."""

from __future__ import annotations

import json

import msgspec
import pytest
from fleet import make
from msgspec import Raw

from edge_agent import config, permitting, scheduling, starting
from edge_agent.agent import Agent
from edge_agent.session import Session
from fp_async import triggers, wire
from fp_async.config import ExecutorSettings
from fp_async.errors import ConfigError
from fp_async.jobs import Spec, Template
from fp_async.messages import PutSchedule, Rules, RunJob

FAR = "tcp://198.51.100.7:8786"
FORBIDDEN = {
    "dask:" + FAR: "executor 'dask'",
    "ray": "executor 'ray'",
    "threadpool:" + FAR: "address of an executor",
    "sideways": "executor 'sideways'",
}


async def opened(tmp_path, **own):
    if not (tmp_path / "device").exists():
        make(tmp_path / "device", "")
    (tmp_path / "device" / "agent.yml").write_text(json.dumps({"name": "pi", **own}))
    agent = Agent(config.read(tmp_path / "device" / "agent.yml", {}, {}))
    await agent.open()
    return agent


def offer(spec=Rules(), pipeline="work", id="j"):
    """As it comes over the wire."""
    inputs = Raw(b'{"v":1,"plain":{"number":1}}')
    said = RunJob(id=id, attempt=1, pipeline=pipeline, inputs=inputs, spec=spec)
    return wire.do(wire.encode(said))


async def answered(agent, *offers):
    """What is refused, by job; the jobs that are in the store then."""
    await Session(agent, None)._run(offers)
    said = {each.id: each for each in agent.take_notices()}
    return said, set(await agent.rows.known([each.id for each in offers]))


async def test_e14_an_offer_brings_no_executor_of_its_own(tmp_path):
    agent = await opened(tmp_path)
    preload = ExecutorSettings(type="dask", address=FAR, options={"preload": "http://evil/x.py"})
    asked = [*FORBIDDEN, preload, ExecutorSettings(type="processpool", options={"a": "b"})]
    offers = [offer(Rules(executor=each), id=f"j{n}") for n, each in enumerate(asked)]
    said, stored = await answered(agent, *offers)
    assert stored == set()
    reasons = [said[each.id].reason for each in offers]
    expected = [*FORBIDDEN.values(), "executor 'dask'", "options of an executor"]
    for reason, what in zip(reasons, expected, strict=True):
        assert reason.startswith(f"agent.yml allows no {what} from afar; it allows: ")
    assert {said[each.id].retry_after for each in offers} == {None}
    await agent.close()


async def test_e14_what_agent_yml_allows_is_taken(tmp_path):
    own = {"executors": ["dask", "threadpool"], "executor_options": ["address"]}
    agent = await opened(tmp_path, **own)
    far = ExecutorSettings(type="dask", address=FAR, options={"preload": "x.py"})
    said, stored = await answered(
        agent,
        offer(Rules(executor=f"dask:{FAR}"), id="far"),
        offer(Rules(executor=far), id="preload"),
        offer(Rules(executor="local"), id="local"),
        offer(Rules(executor=ExecutorSettings(max_workers=3)), id="wide"),
        offer(id="plain"),
    )
    assert stored == {"far", "plain"}
    assert "no options of an executor from afar; it allows: address" in said["preload"].reason
    assert "no executor 'local' from afar; it allows: dask, threadpool" in said["local"].reason
    assert "no max_workers of an executor" in said["wide"].reason
    await agent.close()


async def test_e14_pipelines_that_may_be_run_from_afar(tmp_path):
    agent = await opened(tmp_path, pipelines=["other"])
    (agent.root / "pipelines" / "other.py").write_text("def total(number: int) -> int: ...\n")
    said, stored = await answered(agent, offer(), offer(pipeline="other", id="k"))
    assert stored == {"k"}
    assert said["j"].reason == (
        "agent.yml allows no jobs of pipeline 'work' from afar; it allows: other (pipelines)"
    )
    assert list(agent.state().pipelines) == ["other"], "nobody chooses it for the others"
    await agent.close()


async def test_e14_a_list_of_none_allows_none(tmp_path):
    agent = await opened(tmp_path, pipelines=[])
    said, stored = await answered(agent, offer())
    assert (stored, "it allows: none" in said["j"].reason) == (set(), True)
    await agent.close()


def put(spec, pipeline="work"):
    trigger = triggers.parse("interval", {"seconds": 60}, now=1e9, timezone="UTC")
    template = msgspec.json.encode(Template(spec=spec, offline=True))
    body = {"trigger": Raw(msgspec.json.encode(trigger)), "policy": Raw(b"{}")}
    return PutSchedule(id="tick", revision=1, pipeline=pipeline, template=Raw(template), **body)


async def test_e14_a_schedule_may_ask_for_no_more_than_an_offer(tmp_path):
    agent = await opened(tmp_path)
    state = await scheduling.change(agent, put(Spec(executor=f"dask:{FAR}")))
    assert "agent.yml allows no executor 'dask' from afar" in state.error
    assert await agent.store.schedules() == []
    await agent.close()


async def test_e14_a_schedule_is_dropped_that_agent_yml_allows_no_more(tmp_path):
    agent = await opened(tmp_path)
    assert (await scheduling.change(agent, put(Spec()))).error is None
    await agent.close()
    agent = await opened(tmp_path, pipelines=[])
    await scheduling.drop_forbidden(agent)
    assert await agent.store.schedules() == []
    state = await scheduling.change(agent, put(Spec()))
    assert "allows no jobs of pipeline 'work'" in state.error
    await agent.close()


def test_e14_what_is_allowed_has_the_names_that_there_are(tmp_path):
    file = tmp_path / "agent.yml"
    file.write_text("name: pi\nexecutors: [dsak]\n")
    with pytest.raises(ConfigError, match=r"yml:2: executors\.0: unknown value 'dsak'.*'dask'"):
        config.read(file, {}, {})
    make(tmp_path, "")
    file.write_text("name: pi\npipelines: [wrok]\n")
    (said,) = starting.unknown_pipelines(config.read(file, {}, {}))
    assert said == "pipelines: there is no pipeline 'wrok'; did you mean 'work'? valid: work"


def test_e14_nothing_that_is_usual_is_refused():
    settings = config.AgentSettings(name="pi")
    usual = ["local", "threadpool", "processpool", "hamilton", ExecutorSettings(max_workers=4)]
    for executor in [None, *usual]:
        assert permitting.against(settings, "work", Spec(executor=executor)) is None
