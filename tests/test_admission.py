"""Who belongs to a fleet: the list, what it allows, and what becomes of others (E5); ids that no
agent can take from another job (E6)."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from test_gateway_hearing import all_heard, made, outcome, own, until

from fp_async import (
    ConfigError,
    Project,
    UnknownNameError,
    UsageError,
    admission,
    admission_rows,
    fleet,
    gateway_serving,
    messages,
    wire,
)
from fp_async.config import AdmittedAgent, MqttFile
from fp_async.hearing import own_id
from fp_async.jobs import Find, Member, Schedule, Template, identity, new_id
from fp_async.messages import AgentState
from fp_async.presence import Known

__all__ = ["made"]  # a fixture
PIPELINE = "def a() -> int:\n    return 1\n"


def state(**more):
    return AgentState(status="ready", store="s", starts=1, n=2, **more)


# The list -------------------------------------------------------------------------------------


async def test_a_list_of_the_command_and_of_the_file(store):
    assert await admission_rows.admitted(store) == {}
    grant = AdmittedAgent(tags={"site": "berlin"}, window=3)
    await admission_rows.tell(store, "pi-1", grant)
    assert await admission_rows.admitted(store) == {"pi-1": grant}
    wider = AdmittedAgent(window=9)
    await admission_rows.take_over(store, "main", {"pi-1": wider, "pi-2": AdmittedAgent()})
    assert await admission_rows.admitted(store) == {"pi-1": wider, "pi-2": AdmittedAgent()}
    await admission_rows.take_over(store, "main", {})
    assert await admission_rows.admitted(store) == {"pi-1": grant}
    await admission_rows.tell(store, "pi-1", None)
    assert await admission_rows.admitted(store) == {}


async def test_each_site_takes_back_only_what_its_own_file_said(store):
    await admission_rows.take_over(store, "berlin", {"pi-1": AdmittedAgent()})
    await admission_rows.take_over(store, "paris", {"pi-2": AdmittedAgent()})
    assert set(await admission_rows.admitted(store)) == {"pi-1", "pi-2"}
    await admission_rows.take_over(store, "paris", {})
    assert set(await admission_rows.admitted(store)) == {"pi-1"}


@pytest.mark.parametrize(
    ("grant", "tags", "window"),
    [
        (AdmittedAgent(), {"site": "berlin", "gpu": "yes"}, 16),
        (AdmittedAgent(tags={}), {}, 16),
        (AdmittedAgent(tags={"site": "paris", "gpu": "*"}), {"gpu": "yes"}, 16),
        (AdmittedAgent(tags={"site": "berlin"}, window=2), {"site": "berlin"}, 2),
        (AdmittedAgent(window=99), {"site": "berlin", "gpu": "yes"}, 16),
    ],
)
def test_what_an_agent_says_counts_within_what_it_may(grant, tags, window):
    said = state(tags={"site": "berlin", "gpu": "yes"})
    cut = admission.cut(said, grant)
    assert (cut.tags, cut.window) == (tags, window)
    known = admission.believed(Known(state=cut), said)
    assert {**known.state.tags, **known.ignored} == said.tags
    assert admission.renewed(known, AdmittedAgent()).state == said


async def test_a_file_that_names_agents_wrongly_stops_the_gateway(make_project, tmp_path):
    async with make_project(flow=PIPELINE) as project:
        for text, told in {
            "agents: {}": "nobody is admitted",
            "agents: {'a b': {}}": "agent 'a b'",
            "agents: {pi: {tag: {}}}": "tag",
            "agents: {pi: {window: 0}}": "window",
        }.items():
            (project.root / "conf").mkdir(exist_ok=True)
            (project.root / "conf/mqtt.yml").write_text(text)
            with pytest.raises(ConfigError, match=told):
                gateway_serving.serving(project.flows)


def test_an_open_fleet_behind_a_network_is_a_risk_that_check_names(make_project):
    project: Project = make_project(flow=PIPELINE)
    file = project.root / "conf" / "mqtt.yml"
    file.parent.mkdir(exist_ok=True)
    for text, is_open in {
        "broker: {host: broker.example.org}": True,
        "broker: {host: localhost}": False,
        "broker: {host: broker.example.org}\nagents: {pi-7: }": False,
    }.items():
        file.write_text(text)
        found = [each.message for each in project.check().warnings]
        assert any("the fleet is open" in each for each in found) == is_open, text


# The gateway ----------------------------------------------------------------------------------


@pytest.fixture
async def closed(made):  # noqa: F811
    """A gateway to which "good" is admitted, with one tag and two jobs, and "bad" is not."""
    gateway, connection = made
    gateway.file = MqttFile(agents={"good": AdmittedAgent(tags={"site": "berlin"}, window=2)})
    await gateway.load()
    return gateway, connection


async def test_e5_others_are_neither_stored_nor_answered_and_are_shown(closed):
    gateway, connection = closed
    connection.deliver("bad", state(tags={"site": "berlin"}, version="9", window=500), kind="state")
    connection.deliver(
        "thief", own(1), b"{", messages.Sync(page=0, pages=1, jobs=[]), messages.Ping(nonce="n")
    )
    connection.deliver("good", own(2))
    await all_heard(connection)
    await until(lambda: connection.answers("good", messages.Acknowledge))
    assert [name for name, _ in connection.said] == ["good"]
    jobs = await gateway.store.find(Find(limit=10))
    assert [job.agent for job in jobs] == ["good"]
    assert await gateway.store.fleet.letters() == []
    await gateway._written(Member(kind="gateway", name="g"))
    bad, thief = await fleet.strange(gateway.store)
    assert (bad.name, bad.messages, bad.version, bad.tags) == ("bad", 1, "9", {"site": "berlin"})
    assert (thief.name, thief.messages, thief.version) == ("thief", 4, "")


async def test_e5_groups_and_offers_mean_admitted_agents_alone(closed):
    gateway, _ = closed
    board = gateway.board
    for name in ("good", "bad"):
        known = Known(state=state(tags={"site": "berlin"}), seen_at=time.time())
        gateway.believe(name, known)
    await gateway.load()
    assert board.candidates("any:site=berlin") == ["good"]
    assert board.candidates("any:*") == ["good"]
    assert board.credit("bad", 0.0) == 0
    assert board.credit("good", 0.0) == 2
    await gateway._flush()
    assert await fleet.meant(gateway.store, "all:site=berlin") == ["good"]
    states = {each.name: each.state for each in await fleet.agents(gateway.store)}
    assert states == {"good": "ready", "bad": "unadmitted"}


async def test_e5_tags_and_jobs_beyond_the_list_are_ignored_and_shown(closed):
    gateway, connection = closed
    said = state(tags={"site": "berlin", "gpu": "yes"}, window=500)
    connection.deliver("good", said, kind="state")
    await all_heard(connection)
    await gateway._flush()
    good = next(each for each in await fleet.agents(gateway.store) if each.name == "good")
    assert (good.tags, good.ignored, good.window) == ({"site": "berlin"}, {"gpu": "yes"}, 2)
    assert gateway.board.candidates("any:gpu") == []
    gateway.file = MqttFile(agents={"good": None})
    await gateway.load()
    assert gateway.board.candidates("any:gpu") == ["good"]
    assert gateway.board.credit("good", 0.0) == 500


async def test_e5_strangers_take_no_more_room_than_some(closed):
    gateway, connection = closed
    for number in range(3000):
        connection.deliver(f"x{number}", b"{}", kind="state")
    await all_heard(connection)
    await gateway._written(Member(kind="gateway", name="g"))
    assert len(await fleet.strange(gateway.store)) == 200
    assert set(gateway.board.agents) == {"good", "bad"}


async def test_who_is_admitted_later_is_heard_then(closed):
    gateway, connection = closed
    connection.deliver("bad", state(), kind="state")
    await all_heard(connection)
    await fleet.admit(gateway.store, "bad", AdmittedAgent())
    await gateway.load()
    connection.deliver("bad", own(1))
    await until(lambda: connection.answers("bad", messages.Acknowledge))
    assert await fleet.bar(gateway.store, "bad") == ["good"]
    with pytest.raises(UnknownNameError):
        await fleet.bar(gateway.store, "bad")
    with pytest.raises(UsageError, match=r"under `agents:` in conf/mqtt\.yml"):
        await fleet.bar(gateway.store, "good")


# Who adds jobs --------------------------------------------------------------------------------


@pytest.fixture
def project(make_project, tmp_path):
    made: Project = make_project(flow=PIPELINE)
    conf = made.root / "conf"
    conf.mkdir(exist_ok=True)
    uri = f"sqlite:///{tmp_path}/jobs.db"
    (conf / "scheduler.yml").write_text(f"data_store: {{type: sqlite, uri: '{uri}'}}\n")
    return made


async def test_e5_a_job_for_an_agent_that_is_not_admitted_is_refused(project):
    id = await project.add_job("flow", on="agent:pi-9")
    assert (await project.get_job(id)).state == "queued"
    await project.admit_agent("pi-7", tags={"site": "berlin"}, window=4)
    for call in (
        lambda: project.add_job("flow", on="agent:pi-9"),
        lambda: project.run_job("flow", on="agent:pi-9"),
        lambda: project.schedule("flow", "interval", seconds=9, on="agent:pi-9"),
    ):
        with pytest.raises(UnknownNameError, match="'pi-9'.*did you mean 'pi-7'"):
            await call()
    assert await project.add_job("flow", on="agent:pi-7")
    assert await project.bar_agent("pi-7") == []
    assert await project.add_job("flow", on="agent:pi-9")


async def test_e5_what_the_projects_file_says_counts_before_a_gateway_has_started(project):
    (project.root / "conf/mqtt.yml").write_text("agents: {pi-7: }\n")
    with pytest.raises(UnknownNameError, match="pi-9"):
        await project.add_job("flow", on="agent:pi-9")
    assert await project.add_job("flow", on="agent:pi-7")


def test_the_commands(project):
    def flowerpower(*arguments, code=0):
        command = [sys.executable, "-m", "fp_async", *arguments]
        done = subprocess.run(command, cwd=project.root, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "pi-7 is admitted" in flowerpower("agent", "pi-7", "--admit", "--tags", "site=berlin")
    said = flowerpower("add-job", "flow", "--on", "agent:pi-8", code=2)
    assert "did you mean 'pi-7'" in said
    assert json.loads(flowerpower("agents", "--unknown", "--output", "json")) == []
    assert "exclude each other" in flowerpower("agent", "pi-7", "--admit", "--bar", code=2)
    assert "go with --admit" in flowerpower("agent", "pi-7", "--window", "3", code=2)
    assert "tag=value" in flowerpower("agent", "pi-7", "--admit", "--tags", "berlin", code=2)
    assert "the fleet is open" in flowerpower("agent", "pi-7", "--bar")


# Ids (E6) -------------------------------------------------------------------------------------


def told(id, **origin):
    made = messages.Origin(pipeline="work", created_at=1.0, inputs=wire.to_wire(b"{}"), **origin)
    return outcome(id, origin=made)


async def test_e6_an_id_cannot_be_taken_before_its_job_is_there(made):  # noqa: F811
    gateway, connection = made
    wanted = identity("trigger", "order", "orders", "key", "77")
    connection.deliver("bad", told(wanted))
    await all_heard(connection)
    assert connection.answers("bad", messages.Acknowledge)[0].ids == [wanted]
    assert await gateway.store.get(wanted) is None
    assert await fleet.own_job(gateway.store, wanted) is None  # no row of the agent, so far
    await gateway._flush()
    row = await gateway.store.get(own_id("bad", wanted))
    assert (row.state, row.agent) == ("succeeded", "bad")


async def test_e6_two_agents_may_tell_the_same_id(made):  # noqa: F811
    gateway, connection = made
    id = new_id()
    connection.deliver("bad", told(id))
    connection.deliver("good", told(id))
    await all_heard(connection)
    for name in ("bad", "good"):
        assert connection.answers(name, messages.Acknowledge)[0].ids == [id]
        assert (await gateway.store.get(own_id(name, id))).agent == name


async def schedule(gateway, id, target):
    template = Template(target=target, offline=True)
    row = Schedule(
        id=id,
        pipeline="work",
        trigger=b"{}",
        policy=b"{}",
        template=messages.msgspec.json.encode(template),
    )
    await gateway.store.put(row)
    gateway.kept.changed()


async def test_e6_a_fire_has_the_id_of_schedule_time_and_agent(made):  # noqa: F811
    gateway, connection = made
    await schedule(gateway, "hourly", "agent:bad")
    await schedule(gateway, "others", "agent:good")
    right = identity("hourly", repr(5.0), "bad")
    swallowed = identity("others", repr(5.0))
    fire = {"schedule_id": "hourly", "nominal_at": 5.0}
    connection.deliver(
        "bad",
        told(right, **fire),
        told(new_id(), **fire),
        told(swallowed, schedule_id="others", nominal_at=5.0),
    )
    await all_heard(connection)
    assert (await gateway.store.get(right)).schedule_id == "hourly"
    assert await gateway.store.get(swallowed) is None
    foreign = await gateway.store.get(own_id("bad", swallowed))
    assert foreign.schedule_id is None
    rows = {row.id: row for row in await gateway.store.schedules()}
    assert rows["others"].fired == 0


async def test_an_outcome_told_again_is_one_job(made):  # noqa: F811
    gateway, connection = made
    seen = []
    gateway.log.tell()
    gateway.backend.observers.append(
        type("Observer", (), {"adopted": lambda _, job: seen.append(job.id)})()
    )
    connection.deliver("bad", own(1))
    await all_heard(connection)
    connection.deliver("bad", own(1))
    await all_heard(connection)
    await until(lambda: len(connection.answers("bad", messages.Acknowledge)) == 2)
    assert len(seen) == 1
    assert await gateway.store.fleet.letters() == []


async def test_another_run_under_an_id_that_is_taken_is_a_letter(made):  # noqa: F811
    gateway, connection = made
    id = new_id()
    for began in (100.0, 50_000.0):
        body = messages.msgspec.structs.replace(
            told(id), started_at=began, ended_at=began, sent_at=60_000.0, result=wire.to_wire(b"1")
        )
        connection.deliver("bad", body)
        await all_heard(connection)
    await until(lambda: len(connection.answers("bad", messages.Acknowledge)) == 2)
    (letter,) = await gateway.store.fleet.letters()
    assert "had run it before" in letter.reason
    assert letter.payload == b"1"


async def test_what_an_earlier_release_has_stored_is_not_stored_again(made):  # noqa: F811
    gateway, connection = made
    body = own(1)
    from fp_async import hearing

    earlier = messages.msgspec.structs.replace(hearing.adopted(body, "bad", 2.0), id=body.id)
    assert await gateway.store.fleet.adopt([earlier]) == [True]
    connection.deliver("bad", body)
    await until(lambda: connection.answers("bad", messages.Acknowledge))
    assert await gateway.store.get(own_id("bad", body.id)) is None


async def test_both_ids_of_an_agents_own_job_find_it(made, make_project):  # noqa: F811
    gateway, connection = made
    connection.deliver("bad", state(), kind="state")
    connection.deliver("bad", own(1))
    await all_heard(connection)
    await gateway._flush()
    id = identity("own", 1)
    assert await fleet.own_job(gateway.store, id) == own_id("bad", id)
