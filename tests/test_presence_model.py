"""Who is there, by the rules of both ends: what agents say, what brokers keep, what is believed.

A model of devices under one name, whose stores are copied, restored and moved, of a broker that
keeps the last state and speaks for those that vanish, and of a gateway that hears it all, late or
never. What the gateway believes must follow from what has truly happened.
"""

from __future__ import annotations

import itertools

import pytest
from fleet import scale
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from edge_agent import identity
from edge_agent.identity import Identity
from fp_async import presence
from fp_async.messages import AgentState, AskSync
from fp_async.presence import Known


class Card:
    """What a device has stored: all that an agent knows of its past."""

    def __init__(self, store: str, starts: int = 0) -> None:
        self.store, self.starts = store, starts

    def copy(self) -> Card:
        return Card(self.store, self.starts)


class Process:
    """An agent at work, as `Agent`, `Session` and `Daemon` are: connections, states and answers."""

    def __init__(self, card: Card, machine: str, life: str) -> None:
        card.starts += 1
        self.card, self.machine, self.n = card, machine, 0
        self.own = Identity(card.store, card.starts, life)
        self.connected = False
        self.shown: set[tuple[int, str]] = set()

    def state(self, status: str) -> AgentState:
        return AgentState(
            status=status,
            store=self.own.store,
            starts=self.own.starts,
            n=self.n,
            life=self.own.life,
            boot=self.machine,
        )

    def overtake(self, starts: int) -> None:
        self.card.starts = max(self.card.starts, starts) + 1
        self.own = self.own._replace(starts=self.card.starts)


class Broker:
    """Keeps the last state, and the will of who is connected: one client id, one connection."""

    def __init__(self, hear, *, retains: bool) -> None:
        self.hear, self.retains = hear, retains
        self.kept: AgentState | None = None
        self.client: Process | None = None
        self.will: AgentState | None = None

    def connect(self, process: Process) -> None:
        if self.client is not None:
            self.drop()
        process.n += 1
        process.shown = set()
        self.client, self.will = process, process.state("lost")
        process.connected = True
        kept = self.kept if self.retains else None
        self.show(process)
        self.deliver(process, kept)

    def show(self, process: Process, status: str = "ready") -> None:
        state = process.state(status)
        process.shown.add((state.n, state.status))
        self.publish(state)

    def publish(self, state: AgentState) -> None:
        self.kept = state
        self.hear(state)

    def deliver(self, process: Process, said: AgentState | None) -> None:
        if said is None or self.client is not process:
            return
        match identity.answer(process.own, process.shown, said):
            case "show":
                self.show(process)
            case "overtake":
                process.overtake(said.starts)
                self.leave(process)
                self.connect(process)

    def ask(self, asked: AskSync) -> None:
        process = self.client
        if process is None:
            return
        if identity.is_overtaken(process.own, asked.store, asked.starts, asked.life):
            process.overtake(asked.starts)
            self.leave(process)
            self.connect(process)
        else:
            self.show(process)

    def leave(self, process: Process) -> None:
        """A clean DISCONNECT: no will."""
        process.connected = False
        self.client = self.will = None

    def drop(self) -> None:
        """The connection is gone, and the will is published."""
        assert self.client is not None
        assert self.will is not None
        self.client.connected = False
        will, self.client, self.will = self.will, None, None
        self.publish(will)


class Names(RuleBasedStateMachine):
    """Everything that may happen under one name."""

    retains = True

    @initialize()
    def begin(self):
        self.now, self.lives = 1000.0, itertools.count()
        self.known: Known | None = None
        self.listens = True
        self.broker = Broker(self.hear, retains=self.retains)
        self.cards = {"pi": Card("A")}
        self.backups: list[Card] = []
        self.running: dict[str, Process] = {}
        self.copied = False

    # The gateway

    def hear(self, said: AgentState, *, retained: bool = False) -> None:
        if not self.listens:
            return
        known = self.known
        new = presence.heard(known, said, self.now, retained=retained)
        self.known = known if new is None else new
        if presence.is_behind(known, said, retained=retained):
            before = known.state
            asked = AskSync(state=True, store=before.store, starts=before.starts, life=before.life)
            self.broker.ask(asked)
        elif presence.is_doubtful(known, said, retained=retained):
            self.answer()

    def answer(self) -> None:
        """A ping goes to who is connected; nobody else answers."""
        self.known = presence.asked(self.known, self.now)
        if self.broker.client is not None:
            self.known = presence.answered(self.known, self.now, self.now)

    @rule()
    def the_gateway_is_away(self):
        self.listens = False

    @precondition(lambda self: not self.listens)
    @rule()
    def the_gateway_is_back(self):
        """It hears what was kept, and asks who was there; who reports and is unknown is asked."""
        self.listens = True
        if self.broker.kept is not None and self.retains:
            self.hear(self.broker.kept, retained=True)
        client = self.broker.client
        if client is not None:
            self.broker.ask(AskSync(state=True))
        if self.known is not None and self.known.away_since is None:
            self.answer()
            self.time_passes(100.0)

    # Devices

    @rule(name=st.sampled_from(["pi", "copy"]))
    def starts(self, name):
        if name in self.cards and name not in self.running:
            self.running[name] = Process(self.cards[name], name, f"life{next(self.lives)}")
            self.broker.connect(self.running[name])

    @rule(name=st.sampled_from(["pi", "copy"]))
    def is_killed(self, name):
        process = self.running.pop(name, None)
        if process is not None and process.connected:
            self.broker.drop()
            self.nobody_is_there()

    @rule(name=st.sampled_from(["pi", "copy"]))
    def is_stopped(self, name):
        process = self.running.pop(name, None)
        if process is not None and process.connected:
            self.broker.show(process, "offline")
            self.broker.leave(process)
            self.nobody_is_there()

    def nobody_is_there(self):
        if self.listens:
            assert self.known.away_since is not None, "known the moment the broker says so"

    @rule(name=st.sampled_from(["pi", "copy"]))
    def loses_its_connection(self, name):
        process = self.running.get(name)
        if process is not None and process.connected:
            self.broker.drop()
            self.nobody_is_there()

    @rule(name=st.sampled_from(["pi", "copy"]))
    def connects_again(self, name):
        process = self.running.get(name)
        if process is not None and not process.connected:
            self.broker.connect(process)

    @rule()
    def is_backed_up(self):
        self.backups.append(self.cards["pi"].copy())

    @precondition(lambda self: self.backups and "pi" not in self.running and not self.copied)
    @rule(data=st.data())
    def is_restored(self, data):
        self.cards["pi"] = data.draw(st.sampled_from(self.backups)).copy()

    @rule()
    def is_copied(self):
        """While it runs, or while it does not."""
        if "copy" not in self.cards:
            self.cards["copy"], self.copied = self.cards["pi"].copy(), True

    @precondition(lambda self: self.known is not None)
    @rule(seconds=st.sampled_from([1.0, 30.0, 100.0]))
    def time_passes(self, seconds):
        self.now += seconds
        if self.listens:
            client = self.broker.client
            if client is not None and self.known.state.life == client.own.life:
                self.known = presence.answered(self.known, self.now, self.now)  # its heartbeats
            self.known = presence.silent(self.known, self.now, 90.0) or self.known
            self.known = presence.settled(self.known, self.now) or self.known

    @rule()
    def two_are_found(self):
        """Both run, and take the name from each other for a while."""
        if len(self.running) < 2 or not self.listens:
            return
        for process in (*self.running.values(), *self.running.values()):
            if not process.connected:
                self.broker.connect(process)
        assert self.known.quarantine, "both have spoken in turns"
        assert "two devices use the same store" in self.known.quarantine

    @invariant()
    def what_is_believed_is_true(self):
        if not self.listens or self.known is None:
            return
        client = self.broker.client
        if client is None:
            assert self.known.away_since is not None, "nobody is there"
        if not self.copied:
            assert self.known.quarantine is None, "there is one device"
            if client is not None:
                assert presence.may_work(self.known), "it is there, and alone"
                assert self.known.state.life == client.own.life


class NothingKept(Names):
    """A broker that has lost what it kept, or keeps nothing for wildcards."""

    retains = False


@pytest.mark.parametrize("model", [Names, NothingKept])
def test_e1_e2_e9_e11_what_is_believed_of_a_name_is_true(model):
    case = model.TestCase
    case.settings = settings(max_examples=scale(600), stateful_step_count=40, deadline=None)
    case().runTest()


@pytest.mark.parametrize("model", [Names, NothingKept])
@pytest.mark.parametrize("running", [True, False])
def test_e9_a_copied_store_is_found(model, running):
    """Copied while its device ran, or before that started."""
    name = model()
    name.begin()
    if running:
        name.starts("pi")
    name.is_copied()
    name.starts("pi")
    name.starts("copy")
    name.two_are_found()
    name.what_is_believed_is_true()


@pytest.mark.parametrize("model", [Names, NothingKept])
def test_e2_a_restored_store_is_believed_at_once(model):
    name = model()
    name.begin()
    name.is_backed_up()
    for _ in range(3):
        name.starts("pi")
        name.is_killed("pi")
    name.cards["pi"] = name.backups[0].copy()
    name.starts("pi")
    name.what_is_believed_is_true()
    assert name.known.state.starts > 3


def test_an_agent_of_an_earlier_release_has_no_life():
    state = AgentState(status="ready", store="A", starts=3, n=1)
    known = presence.heard(None, state, 1.0)
    assert known is not None
    assert not presence.is_behind(known, replace(state, starts=2), retained=False)
    assert presence.heard(known, replace(state, n=2), 2.0).quarantine is None
