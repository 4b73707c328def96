"""One connection of an agent to its broker: what it hears, and what it tells.

Row first, then the answer: an offer is in the store before it is accepted, a message is
acknowledged to the broker when what it asked for is done. Whatever is lost on the way is asked
for, or told, again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edge_agent import identity, permitting, telling
from edge_agent.reporting import TOGETHER, Reporter
from edge_agent.unread import Unread
from fp_async import jobs, messages, wire
from fp_async.errors import BrokerError, MessageError, OtherVersionError
from fp_async.jobs import Job
from fp_async.messages import (
    Accepted,
    Acknowledge,
    AskSync,
    CancelJob,
    DeleteSchedule,
    Heartbeat,
    Missing,
    Ping,
    Pong,
    PutSchedule,
    Rejected,
    RunJob,
    Slow,
)
from fp_async.patience import Patience

if TYPE_CHECKING:
    from edge_agent.agent import Agent
    from fp_async.link import Connection
    from fp_async.link import Message as Heard

log = logging.getLogger("fp_async.agent")
_LAST_WORDS = 2.0  # less than the daemon waits for the goodbye
_BIRTH_JITTER = 30.0
_BATCH = 200
_RETRY_FULL = 60.0
_LATER = 10.0


class _OvertakenError(Exception):
    """The agent counts as a later start from now on, which takes another connection."""


class Session:
    """From one connect to its end: a BrokerError, or that another connection has to be made."""

    def __init__(self, agent: Agent, connection: Connection) -> None:
        self._agent = agent
        self._connection = connection
        self._settings = agent.settings
        self._topics = agent.settings.topics
        self._name = agent.settings.name
        self._patience = Patience()
        self._gateway = asyncio.Event()
        self._reporter = Reporter(agent, connection, self._gateway)
        self._unread = Unread(agent, "malformed", "a message could not be read (%d so far): %s")
        self._pings: dict[str, asyncio.Future[Pong]] = {}
        self._pipelines: dict[str, str] = {}  # as they were shown
        self._shown: set[tuple[int, str]] = set()  # own states of this connection, as they echo

    async def run(self) -> None:
        """Until the connection is lost (BrokerError), this is cancelled, or the agent has to
        connect anew.
        """
        agent = self._agent
        agent.outbox.reset()
        topics = self._topics
        for topic in (
            topics.agent(self._name, "do"),
            topics.agent(self._name, "state"),
            topics.gateway,
        ):
            await self._connection.subscribe(topic, qos=1)
        await self.show()
        agent.connected, agent.session = True, self
        agent.problems.note("reports", "")
        agent.problems.note("outcomes", "")
        try:
            async with asyncio.TaskGroup() as group:
                for part in (self._receive, self._reporter.tell, self._beat):
                    group.create_task(part(), name=f"fp-agent-{part.__name__.lstrip('_')}")
        except BaseExceptionGroup as errors:
            if not isinstance(errors.exceptions[0], _OvertakenError):
                raise errors.exceptions[0] from None
        finally:
            agent.connected = agent.gateway = False
            agent.session = None

    async def show(self) -> None:
        """Say who is there."""
        state = self._agent.state()
        self._shown.add((state.n, state.status))
        self._pipelines = state.pipelines
        topic = self._topics.agent(self._name, "state")
        await self._connection.publish(topic, wire.encode(state), qos=1, retain=True)

    async def try_to_show(self) -> None:
        """As `show`, for somebody whose work a lost connection must not end."""
        with contextlib.suppress(BrokerError):
            await self.show()

    async def say_goodbye(self) -> None:
        """Tell what ended last, and that this is a clean stop: nobody has to wait for the will."""
        outbox = self._agent.outbox
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                while self._gateway.is_set() and (outbox.waits or self._agent.notices):  # noqa: ASYNC110
                    await asyncio.sleep(TOGETHER)
        self._agent.status = "offline"
        with contextlib.suppress(BrokerError):
            await self.show()

    async def ping(self, seconds: float = 5.0) -> dict[str, Any]:
        """A message to the gateway and back. Raises TimeoutError, BrokerError."""
        nonce = secrets.token_hex(8)
        answer = self._pings[nonce] = asyncio.get_running_loop().create_future()
        began = time.monotonic()
        topic = self._topics.agent(self._name, "report")
        try:
            async with asyncio.timeout(seconds):
                await self._connection.publish(topic, wire.encode(Ping(nonce=nonce)), qos=1)
                pong = await answer
        finally:
            del self._pings[nonce]
        took = time.monotonic() - began
        return {
            "milliseconds": round(1e3 * took, 1),
            "clock_offset": pong.clock - time.time(),
            "doubt": pong.doubt,
        }

    # Hearing ----------------------------------------------------------------------------------

    async def _receive(self) -> None:
        while True:
            heard = await self._connection.receive(_BATCH)
            await self._patience(lambda: self._handle(heard))  # noqa: B023
            for message in heard:
                self._connection.acknowledge(message)

    async def _handle(self, heard: Sequence[Heard]) -> None:
        """Do what a batch of messages asks for. It may be done twice."""
        asked: list[messages.Do] = []
        for message in heard:
            place = self._topics.parsed(message.topic)
            try:
                if place == ("gateway", "state"):
                    self._hear_gateway(message)
                elif place == ("agent", self._name, "state"):
                    await self._hear_self(message.payload)
                else:
                    asked.append(wire.do(message.payload))
            except OtherVersionError as error:  # a state, and no mistake of one message
                text = f"what is said on {message.topic} has {error}: update what is older"
                self._agent.problems.note("protocol", text)
            except MessageError as error:
                self._unread.note(str(error))
        if asked:
            self._agent.problems.note("protocol", "")
        await self._run([each for each in asked if isinstance(each, RunJob)])
        await self._cancel([each for each in asked if isinstance(each, CancelJob)])
        self._acknowledged([each for each in asked if isinstance(each, Acknowledge)])
        for each in asked:
            await self._do_rest(each)

    def _hear_gateway(self, message: Heard) -> None:
        online = wire.gateway_state(message.payload).online
        born = online and not self._agent.gateway
        self._agent.gateway = online
        if not online:
            self._gateway.clear()
            return
        self._gateway.set()
        if born:
            wait = 0.0 if message.retained else random.uniform(0.0, _BIRTH_JITTER)
            self._reporter.sync_within(wait)
        self._agent.noticed.set()

    async def _hear_self(self, payload: bytes) -> None:
        """Answer to what the broker has retained of this agent."""
        said, own = wire.agent_state(payload) if payload else None, self._agent.identity
        match identity.answer(own, self._shown, said):
            case "show":
                await self.show()
            case "overtake" if said is not None:
                await self._overtake(said.starts)

    async def _overtake(self, starts: int) -> None:
        """Count on from there. The connection ends, as its will would be taken for old."""
        await self._agent.overtake(starts)
        raise _OvertakenError

    async def _run(self, offers: Sequence[RunJob]) -> None:
        """Store what can be run here; then say so."""
        agent = self._agent
        if not offers:
            return
        refusals = [(offer, self._refusal(offer)) for offer in offers]
        doubtful = {offer.id: why for offer, why in refusals if why is not None}
        known = await agent.rows.known(sorted(doubtful)) if doubtful else set()
        taken = [offer for offer in offers if offer.id in known or offer.id not in doubtful]
        for offer in offers:
            if offer.id in doubtful.keys() - known:
                self._refuse(offer, *doubtful[offer.id])
        if not taken:
            return
        # The worker looks before the rows are there: its claim shares their transaction.
        agent.backend.hub.publish_here("work:default")
        rows = await agent.rows.accept([_job(offer) for offer in taken])
        agent.backend.hub.publish_here("work:default")
        agent.outbox.ended(row.id for row in rows if row.finished and not row.pruned)
        for row in rows:
            answer = telling.standing(row)
            earlier = agent.notices.get(row.id)
            if answer is not None and (earlier is None or isinstance(earlier, Accepted)):
                agent.notice(row.id, answer)
        agent.noticed.set()

    def _refusal(self, offer: RunJob) -> tuple[str, float | None] | None:
        """(why, seconds after which it may be offered again) of what is not taken.

        A job that is here already is never refused: it may be running.
        """
        agent, spec = self._agent, offer.spec
        why = permitting.against(self._settings, offer.pipeline, spec) or agent.refusal(
            offer.pipeline, spec.version, strict=spec.require_version
        )
        try:
            wire.from_wire(offer.inputs)
        except MessageError as error:
            why = f"its inputs cannot be read: {error}"
        if why is not None:
            return why[:500], None
        if agent.house.full:
            return agent.house.full, _RETRY_FULL
        if agent.status != "ready":
            return "the agent is being stopped", _LATER
        return None

    def _refuse(self, offer: RunJob, why: str, later: float | None) -> None:
        answer = Rejected(id=offer.id, attempt=offer.attempt, reason=why, retry_after=later)
        self._agent.notice(offer.id, answer)

    async def _cancel(self, cancels: Sequence[CancelJob]) -> None:
        agent = self._agent
        unknown: list[Job] = []
        for cancel in cancels:
            state = await agent.store.cancel(cancel.id, cancel.reason)
            if state is None:
                unknown.append(_unknown(cancel))
                continue
            agent.backend.hub.publish_here(f"cancel:{cancel.id}", f"job:{cancel.id}")
        rows = await agent.rows.refuse(unknown) if unknown else []
        for row in rows:
            if row.pruned:
                agent.notice(row.id, telling.lost_value(row))
        agent.outbox.ended([c.id for c in cancels])
        agent.noticed.set()

    def _tell_again(self) -> None:
        """Tell outcomes again whose acknowledgement could not be written down."""
        self._agent.outbox.backlog = True
        self._agent.noticed.set()

    def _acknowledged(self, said: Sequence[Acknowledge]) -> None:
        ids = [id for each in said for id in each.ids]
        if ids:
            self._agent.rows.acknowledged(ids, self._tell_again)
            self._agent.outbox.acknowledged(ids)
            if not self._agent.outbox.held:
                self._agent.problems.note("outcomes", "")
            self._agent.noticed.set()

    async def _do_rest(self, asked: messages.Do) -> None:
        agent = self._agent
        if isinstance(asked, Pong):
            waiting = self._pings.get(asked.nonce)
            if waiting is not None and not waiting.done():
                waiting.set_result(asked)
        elif isinstance(asked, Ping):
            agent.notice(f"ping:{asked.nonce}", Pong(nonce=asked.nonce, clock=time.time()))
        elif isinstance(asked, AskSync):
            if identity.is_overtaken(agent.identity, asked.store, asked.starts, asked.life):
                await self._overtake(asked.starts)
            if asked.state:
                await self.show()
            self._reporter.sync_within(0.0)
        elif isinstance(asked, Missing):
            await self._reporter.send_chunks(asked)
        elif isinstance(asked, Slow):
            self._reporter.slow_down(asked)
        elif isinstance(asked, PutSchedule | DeleteSchedule):
            from edge_agent import scheduling  # with the triggers: only where there are schedules

            agent.notice(f"schedule:{asked.id}", await scheduling.change(agent, asked))

    async def _beat(self) -> None:
        topic = self._topics.agent(self._name, "report")
        while True:
            await self._gateway.wait()
            agent = self._agent
            await agent.house.look_at_clock()
            body = Heartbeat(
                free=agent.free,
                clock=time.time(),
                disk_free=agent.house.disk_free,
                outbox=agent.house.untold,
                clock_steps=agent.house.clock_steps,
            )
            self._connection.publish_soon(topic, wire.encode(body))
            if permitting.pipelines(self._settings) != self._pipelines:
                await self.show()
            await asyncio.sleep(self._settings.heartbeat)


def _job(offer: RunJob) -> Job:
    """An offered job as a row of the agent's store."""
    now = time.time()
    return Job(
        id=offer.id,
        pipeline=offer.pipeline,
        priority=offer.priority,
        run_at=now,
        expires_at=None if offer.expires_in is None else now + offer.expires_in,
        result_ttl=jobs.RESULT_TTL if offer.result_ttl is None else offer.result_ttl,
        identity=True,
        offer=offer.attempt,
        unreported=True,
        spec=msgspec.json.encode(offer.spec),
        inputs=_inputs(offer),
    )


def _inputs(offer: RunJob) -> bytes:
    """What cannot be read was refused, unless the job is known: then it has its inputs."""
    try:
        return wire.from_wire(offer.inputs)
    except MessageError:
        return b""


def _unknown(cancel: CancelJob) -> Job:
    """A job of which nothing is known but that it must not run."""
    return Job(id=cancel.id, pipeline="", identity=True, offer=cancel.attempt, unreported=True)
