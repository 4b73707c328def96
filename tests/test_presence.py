"""What the gateway believes of agents: who speaks, who is there, and whom a target means."""

from __future__ import annotations

import msgspec
import pytest
from fleet import scale
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from edge_agent import config as agent_config
from fp_async import job_lines, orders, presence, targets
from fp_async.errors import ConfigError, MisconfiguredError, UsageError, headline
from fp_async.jobs import Failure, Job, Report
from fp_async.messages import AgentState, Heartbeat
from fp_async.presence import CONTEST, Known
from fp_async.schedule_entries import entries_of


def said(status="ready", starts=1, n=1, *, store="A", boot="b1", clock=0.0):
    return AgentState(status=status, store=store, starts=starts, n=n, boot=boot, clock=clock)


def beat(clock=0.0):
    return Heartbeat(free=1, clock=clock)


def told(*states, known=None, start=100.0, step=1.0):
    """What is believed after these, one a second; what is not believed changes nothing."""
    for number, state in enumerate(states):
        new = presence.heard(known, state, start + number * step)
        known = known if new is None else new
    return known


def test_a_first_state_is_believed_at_once():
    known = told(said())
    assert (known.seen_at, known.away_since, known.quarantine) == (100.0, None, None)
    assert presence.may_work(known)
    assert presence.describe(known, drained=False, now=100.0) == "ready"
    assert presence.describe(known, drained=True, now=100.0) == "draining"


BEFORE = said("ready", 3, 5)
ORDER = {
    "the same again": (said("ready", 3, 5), "ready"),
    "a later connection": (said("draining", 3, 6), "draining"),
    "a later start": (said("draining", 4, 1, boot="b2"), "draining"),
    "an earlier connection": (said("draining", 3, 4), None),
    "the will of an earlier connection": (said("lost", 3, 4), None),
    "the goodbye of an earlier start": (said("offline", 2, 99, boot="b0"), None),
    "an earlier start": (said("ready", 2, 99, boot="b0"), None),
    "the will of this connection": (said("lost", 3, 5), "lost"),
    "the goodbye of this connection": (said("offline", 3, 5), "offline"),
    "another device goes": (said("lost", 9, 9, store="B"), None),
    "another device says goodbye": (said("offline", 9, 9, store="B"), None),
}


@pytest.mark.parametrize(("after", "status"), ORDER.values(), ids=ORDER)
def test_order(after, status):
    new = presence.heard(told(BEFORE), after, 200.0)
    assert (None if new is None else new.state.status) == status


@pytest.mark.parametrize("gone", ["lost", "offline"])
def test_a_connection_that_has_ended_says_no_more(gone):
    """A broker may deliver its last state once more, after its will."""
    known = told(said(n=5), said(gone, n=5))
    assert known.away_since == 101.0
    assert presence.heard(known, said(n=5), 110.0) is None
    assert presence.may_work(told(said(n=6), known=known))


def test_offline_then_lost_is_away_since_the_first():
    known = told(said(), said("offline"), said("lost"))
    assert (known.away_since, known.state.status) == (101.0, "lost")
    assert presence.describe(known, drained=False, now=150.0) == "away"
    assert not presence.may_work(known)


def test_missed_heartbeats_and_the_return():
    known = told(said())
    assert presence.silent(known, 190.0, 90.0) is None
    away = presence.silent(known, 190.1, 90.0)
    assert away.away_since == 100.0, "away since it was last heard of"
    assert presence.silent(away, 500.0, 90.0) is None, "known to be away"
    assert not presence.may_work(away)
    back = presence.beaten(away, beat(), 200.0)
    assert presence.may_work(back)
    assert (back.seen_at, back.away_since) == (200.0, None)


def test_the_clocks_are_compared_by_heartbeats_alone():
    """A state may have lain at the broker for hours."""
    known = told(said(clock=50.0))
    assert known.clock_offset == 0.0
    known = presence.beaten(known, beat(clock=80.0), 100.0)
    assert known.clock_offset == 20.0
    assert told(said(clock=10.0), known=known, start=300.0).clock_offset == 20.0


# A broker's word is no sign of life ------------------------------------------------------------


def test_g2_what_a_broker_kept_makes_nobody_present():
    """An agent that was known to be away stays away, and one that nobody knew begins so."""
    away = replace(told(said()), away_since=150.0)
    assert presence.heard(away, said(), 200.0, retained=True) is None, "that was known"
    newer = presence.heard(away, said(n=2), 200.0, retained=True)
    assert (newer.state.n, newer.seen_at, newer.away_since) == (2, 100.0, 150.0)
    first = presence.heard(None, said(), 200.0, retained=True)
    assert (first.seen_at, first.away_since) == (0.0, 200.0)
    replaced = presence.heard(told(said()), said(store="B"), 200.0, retained=True)
    assert (replaced.seen_at, replaced.away_since) == (0.0, 200.0)
    for known in (newer, first):
        assert presence.is_doubtful(known, known.state, retained=True)
        assert presence.may_work(presence.answered(known, 7.0, 210.0))


def test_g2_who_is_asked_gets_nothing_until_it_answers():
    known = presence.asked(told(said()), 500.0)
    assert not presence.may_work(known)
    assert presence.silent(known, 500.0 + presence.ANSWER, 90.0) is None
    away = presence.silent(known, 500.1 + presence.ANSWER, 90.0)
    assert (away.away_since, away.asked_at) == (500.0, None), "nobody could hear it before"
    assert presence.asked(away, 600.0) == away
    for back in (
        presence.answered(known, 450.0, 501.0),
        presence.beaten(known, beat(450.0), 501.0),
        presence.heard(known, said(), 501.0),
    ):
        assert presence.may_work(back)
        assert (back.seen_at, back.asked_at) == (501.0, None)
    assert presence.answered(known, 450.0, 501.0).clock_offset == 51.0


def test_g2_a_will_is_the_brokers_word():
    known = told(said(), said("lost"))
    assert (known.seen_at, known.away_since) == (100.0, 101.0)
    goodbye = told(said(), said("offline"))
    assert goodbye.seen_at == 101.0


def test_g1_the_will_of_an_earlier_connection_is_a_reason_to_ask():
    """Agents of earlier releases count on without a new will."""
    known = told(said(), said(n=2))
    assert presence.heard(known, said("lost"), 200.0) is None
    assert presence.is_doubtful(known, said("lost"), retained=False)
    for other in (said("lost", 0), said("lost", store="B"), said("lost", n=2), said()):
        assert not presence.is_doubtful(known, other, retained=False)
    gone = replace(known, away_since=150.0)
    assert not presence.is_doubtful(gone, said("lost"), retained=False)


# A new store ------------------------------------------------------------------------------------


def test_a_reflashed_device_gets_nothing_for_a_minute_and_then_all():
    known = told(said(starts=40, n=7), said(store="B"), start=100.0)
    assert not presence.may_work(known)
    assert (known.before, known.came_at) == ("A", 101.0)
    assert presence.describe(known, drained=False, now=160.9) == "new"
    assert presence.settled(known, 101.0 + CONTEST - 0.1) is None
    settled = presence.settled(known, 101.0 + CONTEST)
    assert presence.may_work(settled)
    assert presence.settled(settled, 1000.0) is None, "once"


@pytest.mark.parametrize("store", ["A", "B", "C"])
def test_whom_a_person_lets_in_is_whoever_speaks_next(store):
    contested = told(said(), said(store="B"), said(n=2))
    assert contested.quarantine
    known = presence.readmitted(contested)
    assert presence.may_work(known)
    known = told(said(store=store, n=3), known=known, start=200.0)
    assert presence.may_work(known)
    assert known.state.store == store
    other = told(said(store="D"), known=known, start=300.0)
    assert presence.describe(other, drained=False, now=301.0) == "new", "once"


@pytest.mark.parametrize("speaks", [said(n=2), said("draining", n=2), said(starts=2, boot="b2")])
def test_two_devices_that_share_a_name_are_quarantined(speaks):
    known = told(said(), said(store="B"), speaks)
    assert "two devices use this name, with the stores B and A" in known.quarantine
    assert known.state.store == "B"
    assert not presence.may_work(known)
    assert presence.describe(known, drained=False, now=110.0) == "quarantined"
    assert presence.settled(known, 1000.0) is None
    later = told(said(store="B", n=2), said(n=3), known=known, start=200.0)
    assert later.quarantine, "until a person lets it in again"


GHOSTS = {
    "its last state, once more": said(n=5),
    "an earlier one": said(n=4),
    "its will": said("lost", n=5),
    "the will of an earlier connection": said("lost", n=2),
}


@pytest.mark.parametrize("ghost", GHOSTS.values(), ids=GHOSTS)
@pytest.mark.parametrize("when", [130.0, 500.0])
def test_what_the_old_device_had_said_before_is_no_contradiction(ghost, when):
    known = told(said(n=5), said(store="B"))
    known = presence.settled(known, when) or known
    assert presence.heard(known, ghost, when) is None


def test_the_old_device_in_its_place_again_is_a_new_one():
    known = presence.settled(told(said(n=5), said(store="B")), 400.0)
    back = presence.heard(known, said(n=6), 500.0)
    assert (back.state.store, back.before, back.came_at, back.quarantine) == ("A", "B", 500.0, None)


def test_a_new_device_is_away_when_it_goes_in_its_first_minute():
    known = told(said(), said(store="B"), said("lost", store="B"))
    assert known.away_since == 102.0
    assert known.came_at == 101.0
    assert not presence.may_work(presence.settled(known, 300.0))


# A copied store ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 9])
def test_one_store_with_two_boots_is_a_clone(n):
    known = told(said(starts=3, n=5), said(starts=3, n=n, boot="b2"))
    assert "two devices use the same store (A)" in known.quarantine
    assert known.state.n == max(n, 5), "an older pair is not believed, but that there are two is"
    assert not presence.may_work(known)


def test_a_reboot_is_none():
    assert told(said(starts=3), said(starts=4, boot="b2")).quarantine is None


@pytest.mark.parametrize("boots", [("", "b1"), ("b1", ""), ("", "")])
def test_without_boot_ids_nothing_is_said_of_clones(boots):
    assert told(said(boot=boots[0]), said(n=2, boot=boots[1])).quarantine is None


def test_quarantined_agents_are_still_seen():
    known = told(said(starts=3), said(starts=3, n=2, boot="b2"))
    known = presence.beaten(known, beat(), 150.0)
    assert known.seen_at == 150.0
    assert presence.silent(known, 400.0, 90.0).away_since == 150.0
    assert known.quarantine


def test_what_is_known_can_be_kept():
    known = told(said(n=5), said(store="B"), said("lost", store="B"))
    assert msgspec.json.decode(msgspec.json.encode(known), type=Known) == known
    before = b'{"state":{"type":"AgentState","v":1,"status":"ready","store":"A","starts":1,"n":1}}'
    assert msgspec.json.decode(before, type=Known).before_said == (0, 0)


# Anything in any order --------------------------------------------------------------------------


class Devices(RuleBasedStateMachine):
    """Two devices under one name, a broker that delivers what was said late and twice, and time.

    The model keeps what each has truly said; what is believed has to follow from that.
    """

    @initialize()
    def nothing_yet(self):
        self.now = 1000.0
        self.known: Known | None = None
        self.sent: list[AgentState] = []
        self.pairs = {"A": (0, 0), "B": (0, 0)}
        self.status = {"A": "offline", "B": "offline"}
        self.speakers: list[str] = []

    def say(self, store, status):
        starts, n = self.pairs[store]
        self.status[store] = status
        state = said(status, starts, n, store=store, boot=f"{store}{starts}")
        self.sent.append(state)
        return self.hear(state)

    def hear(self, state):
        new = presence.heard(self.known, state, self.now)
        changed = new is not None
        self.known = new if changed else self.known
        return changed

    @rule(store=st.sampled_from("AB"))
    def starts(self, store):
        self.pairs[store] = (self.pairs[store][0] + 1, 1)
        assert self.say(store, "ready"), "who has just started is heard"
        assert self.known.state.store == store or self.known.quarantine

    @precondition(lambda self: any(status == "ready" for status in self.status.values()))
    @rule(store=st.sampled_from("AB"), how=st.sampled_from(["lost", "offline"]))
    def goes(self, store, how):
        if self.status[store] != "ready":
            return
        self.say(store, how)
        if self.known.state.store == store:
            assert self.known.away_since is not None

    @rule(store=st.sampled_from("AB"))
    def connects_again(self, store):
        starts, n = self.pairs[store]
        if starts:
            self.pairs[store] = (starts, n + 1)
            self.say(store, "ready")

    @precondition(lambda self: bool(self.sent))
    @rule(data=st.data())
    def a_ghost_speaks(self, data):
        """Anything said before what was said last by that device: believed by nobody."""
        ghost = data.draw(st.sampled_from(self.sent))
        latest = [s for s in self.sent if s.store == ghost.store][-1]
        if ghost == latest and ghost.store == self.known.state.store:
            return  # the same again tells the same
        before = self.known
        self.hear(ghost)
        assert self.known == before, f"{ghost} changed {before}"

    @precondition(lambda self: self.known is not None)
    @rule(seconds=st.sampled_from([1.0, 30.0, 61.0, 100.0]))
    def time_passes(self, seconds):
        self.now += seconds
        for look in (presence.settled(self.known, self.now),):
            self.known = look or self.known
        away = presence.silent(self.known, self.now, 90.0)
        assert (away is None) or away.away_since == self.known.seen_at
        self.known = away or self.known

    @precondition(lambda self: self.known is not None)
    @rule()
    def beats(self):
        if self.status[self.known.state.store] == "ready":
            self.known = presence.beaten(self.known, beat(self.now - 3), self.now)
            assert self.known.away_since is None
            assert self.known.clock_offset == 3

    @invariant()
    def only_who_is_there_alone_may_work(self):
        known = getattr(self, "known", None)
        if known is not None and presence.may_work(known):
            assert known.state.status == "ready"
            assert known.quarantine is None
            assert known.came_at is None

    @invariant()
    def the_latest_of_a_store_is_believed(self):
        known = getattr(self, "known", None)
        if known is not None:
            own = (known.state.starts, known.state.n)
            assert own == self.pairs[known.state.store] or known.quarantine


Devices.TestCase.settings = settings(max_examples=scale(500), stateful_step_count=40, deadline=None)
TestDevices = Devices.TestCase


# Targets ----------------------------------------------------------------------------------------

TAGS = {"site": "berlin", "gpu": "", "size": "a=b"}


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("agent:pi-7", True),
        ("agent:pi-8", False),
        ("agent:*", False),
        ("any:*", True),
        ("all:*", True),
        ("any:site=berlin", True),
        ("all:site=berlin", True),
        ("any:site=rome", False),
        ("any:site", True),
        ("any:rack", False),
        ("any:gpu", True),
        ("any:gpu=", True),
        ("any:gpu=yes", False),
        ("any:site=", False),
        ("any:size=a=b", True),
        ("any:site=berlin,gpu", True),
        ("any:site=berlin,rack", False),
        ("any:rack,site=berlin", False),
        ("any:site=berlin,site=rome", False),
        ("any:", False),
        ("", False),
    ],
)
def test_whom_a_target_means(target, meant):
    assert presence.matches(target, "pi-7", TAGS) is meant


@pytest.mark.parametrize(
    "on", ["agent:pi-7", "any:*", "all:*", "any:site=berlin", "all:site", "any:a=1,b,c="]
)
def test_targets_that_users_may_give(on):
    assert targets.targeted({"on": on}) == on


MALFORMED = ("site==berlin", "a,site==berlin", "site=berlin, gpu", "site =x", "gpu=*", "*,a")


def test_g13_a_tag_that_no_target_can_name_is_refused(tmp_path):
    for tag in ("site==berlin", "a,b=c", "a=b,c==d", "a=x*"):
        with pytest.raises(UsageError, match="no target can name it|write name=value"):
            agent_config.read(None, {"name": "x", "tags": tag}, {})
    assert agent_config.read(None, {"name": "x", "tags": ("b=x=y",)}, {}).tags == {"b": "x=y"}
    (tmp_path / "agent.yml").write_text("tags: {'site=': berlin}")
    with pytest.raises(ConfigError, match="agent.yml:1: tags: 'site==berlin': no target"):
        agent_config.read(tmp_path / "agent.yml", {}, {})
    for pattern in ("any:site==berlin", "any:site==*"):
        with pytest.raises(UsageError, match="matches no target"):
            targets.checked_pattern(pattern)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("one", "one"),
        ("NodeError in a: x\n  at b.py", "NodeError in a: x"),
        ("inputs of the wrong type for pipeline 'c':\n  n: expected int\n  m: y",
         "inputs of the wrong type for pipeline 'c': n: expected int"),
        ("nothing follows:\n", "nothing follows:"),
        ("", ""),
    ],
)  # fmt: skip
def test_g11_a_line_about_an_error_has_the_first_finding(message, line):
    assert headline(message) == line
    error = msgspec.json.encode(Failure("InputError", message))
    report = Report(id="1", attempt=1, event="fail", error=error)
    assert job_lines._why(report) == line


@pytest.mark.parametrize(
    ("on", "text"),
    [
        ("pi-7", "did you mean 'agent:pi-7'"),
        ("agent:", "is no target"),
        ("agent:a/b", "use letters, digits"),
        ("any:", "is no target"),
        ("any:,", "is no target"),
        ("any:=x", "is no target"),
        ("any:a=1,", "is no target"),
        ("some:a", "is no target"),
        ("any:a\0", "is no target"),
        ("any:" + "a" * 190, "is no target"),
        (7, "is no target"),
        *((f"{kind}:{terms}", "is no target") for kind in ("any", "all") for terms in MALFORMED),
    ],
)
def test_what_is_no_target(on, text):
    with pytest.raises(UsageError, match=text):
        targets.targeted({"on": on})


@pytest.mark.parametrize("door", ["schedule", "conf"])
def test_g6_agents_without_a_network_cannot_agree_who_fires(make_project, door):
    conf = "{type: interval, params: {seconds: 60}, on: 'any:site=berlin', offline: true}"
    conf = f"run: {{flow: {{dev: {{schedule: {conf}}}}}}}" if door == "conf" else ""
    project = make_project(conf, flow="def out() -> int:\n    return 1\n")
    given = {"seconds": 60, "on": "any:site=berlin", "offline": True}
    text = r"any:site=berlin.*cannot agree.*agent:NAME.*all:tag=value"
    if door == "schedule":
        with pytest.raises(UsageError, match=text):
            orders.schedule(project.flows, "flow", "interval", (), given, 1.0)
        return
    with pytest.raises(MisconfiguredError, match=text):
        [entry.make() for entry in entries_of(project.flows, 1.0)]


def test_g7_the_options_of_agents_are_options_of_the_commands():
    from click.testing import CliRunner

    from fp_async.cli import cli

    for name in ("run-job", "add-job", "schedule"):
        text = CliRunner().invoke(cli, [name, "--help"]).output
        assert {"--on-lost", "--lost-after", "--require-version"} <= set(text.split())


def test_what_an_agent_is_sent_fits_into_a_packet(make_project):
    project = make_project(
        "params: {flow: {out: {x: y}}}",
        flow="from fp_async import load_params\nPARAMS = load_params(__file__)\n"
        "def out() -> str:\n    return PARAMS.out.x\n",
    )
    large = {"params": {"out": {"x": "y" * 66_000}}}
    orders.job(project.flows, "flow", large, 1.0)
    with pytest.raises(UsageError, match="config and params too large: 66,.* limit 65,536"):
        orders.job(project.flows, "flow", {**large, "on": "any:*"}, 1.0)


def test_keys_of_all_jobs_leave_room_for_the_agents_name():
    each = Job(id="g", pipeline="p", target="all:*", key="k" * 180)
    names = ["a" * 10, "b"]
    assert [job.key for job in targets.spread(each, names)] == [f"{each.key}@{n}" for n in names]
    with pytest.raises(UsageError, match="180 characters at most"):
        targets.spread(replace(each, key="k" * 181), names)


@given(st.text(max_size=12), st.dictionaries(st.text(max_size=3), st.text(max_size=3)))
def test_any_text_is_a_target_or_not(text, tags):
    assert presence.matches(f"any:{text}", "pi", tags) in (True, False)


def test_known_is_a_value():
    known = told(said())
    assert replace(known) == known
