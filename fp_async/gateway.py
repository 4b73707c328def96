"""The gateway: moves jobs and outcomes between the store and the agents, and messages into jobs.

Any number may run for a site, one is active, by a lease in the store; only it connects, under one
client id with a kept session, so that messages that its predecessor had not acknowledged come to
it. Row first, then the message: an offer is a row before it is published, an outcome is a row
before it is acknowledged. What the gateway has in mind (`board`) it makes anew from the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Collection
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import msgspec

from fp_async import (
    admission,
    admission_rows,
    leading,
    link,
    presence,
    processes,
    strangers,
    watching,
    wire,
)
from fp_async.backend import Backend
from fp_async.board import BOUND, Board, lost
from fp_async.budgets import Budgets, Parts, What
from fp_async.config import AdmittedAgent, GatewaySettings, MqttFile
from fp_async.errors import BrokerError, SessionTakenError, StoreError
from fp_async.flows import Flows
from fp_async.gateway_hearing import Hearing
from fp_async.gateway_log import GatewayLog
from fp_async.gateway_offering import Offering
from fp_async.gateway_schedules import Kept
from fp_async.gateway_triggers import Triggers
from fp_async.job_tracking import AgentTracking
from fp_async.jobs import LEASE, Find, Member, Report
from fp_async.link import Connection, Link, Will
from fp_async.messages import PACKET_BYTES, AgentState, GatewayState
from fp_async.patience import Patience
from fp_async.presence import Known
from fp_async.strangers import Strangers
from fp_async.topics import Topics

T = TypeVar("T")
log = logging.getLogger("fp_async.gateway")
RENEWAL = 2.5
_UNRENEWED = 8.0
_SESSION_SECONDS = 86_400
_REMEMBERED = 400 * 86_400.0  # seconds that an agent stays known after it was last heard of
_POLL = 5.0
_RELOAD = 30.0
_REREAD = 1.0
_PRESENCE = 10.0
_SELDOM = 60.0  # where the store is a file of this machine: each time costs its disk 8 KiB
_PRUNE = 60.0
_PRUNED = 1_000  # rows in one transaction
_PRUNES = 20  # pages at once: what one minute brought may be more than one page
_SEND_QUEUE = 100_000  # some messages for each of a large fleet
_AT_ONCE = 200  # agents or jobs that are written or looked at before others get their turn
_BATCH = 500
_AGENTS = 20_000  # of which it is remembered what was dropped
_HEARD_AT_QOS_0 = 5_000  # messages that wait: those may be lost
_PACKET_BYTES = 2 * PACKET_BYTES  # with topic and properties; a little too much is told why
_DROPPED = {
    "": "agent '%(agent)s' is above its budget (%(what)s): what is, is dropped",
    "versions": "agent '%(agent)s' speaks another version of the protocol: update it or "
    "this gateway; its messages wait on the device until then",
}
_LONGEST_PAUSE = 5.0  # it is the only one of its kind: no broker is rushed by it


class Gateway:
    """The gateway of one project and site. `run` works until cancelled."""

    def __init__(
        self,
        flows: Flows,
        backend: Backend,
        file: MqttFile,
        address: Link,
        changed: Callable[[], MqttFile | None] = lambda: None,
    ) -> None:
        self.flows = flows
        self.backend = backend
        self.store = backend.store
        self.hub = backend.hub
        self.file: MqttFile = file
        self._changed_file = changed  # what conf/mqtt.yml says now, if that is something else
        self.settings: GatewaySettings = file.gateway or GatewaySettings()
        self.topics: Topics = Topics(file.prefix or "fp/v1", file.site or "main")
        self.owner: str = processes.owner("gateway")
        self._leading = leading.lead(self.store, self.role, self.owner)
        self._rhythm = _PRESENCE if self.store.path is None else _SELDOM
        self.board: Board = Board()
        self.kept: Kept = Kept(self.store)
        self.log: GatewayLog = GatewayLog()
        self.patience: Patience = Patience()
        self.tracking: AgentTracking = AgentTracking(flows.root, backend.store)
        self.budgets: Budgets = Budgets()
        self.parts: dict[str, Parts] = {}  # by agent: of results that are not whole
        self.dropped: dict[str, dict[str, int]] = {}  # by agent and budget
        self.strangers: Strangers = Strangers()
        self.active: bool = False
        self.connected: bool = False
        self.counts: dict[str, int] = {}
        self.address = address
        self.news = asyncio.Event()
        self.forgotten: set[str] = set()  # agents of which the broker still knows
        self.readmitted: set[str] = set()  # agents that are to say once more who they are
        self._changed: set[str] = set()  # agents whose rows have to be written
        self._urgent = False  # some of them at once
        self._renewed = float("-inf")
        self._standing = asyncio.Event()  # it has become active

    @property
    def role(self) -> str:
        """What only one gateway of the site may be."""
        return f"gateway:{self.topics.site}"

    def count(self, what: str, number: int = 1) -> None:
        """For `statistics`: how often something has happened."""
        self.counts[what] = self.counts.get(what, 0) + number

    def may(self, agent: str, what: What, now: float, number: float = 1) -> bool:
        """Return whether an agent has so much of a budget left, which it then uses; what is not so
        is counted as dropped, and told once.
        """
        if self.budgets.take(agent, what, now, number):
            return True
        self.drop(agent, what, now)
        return False

    def drop(self, agent: str, what: str, now: float) -> None:
        """Note that something of an agent was dropped, for that reason."""
        self.count(f"dropped {what}")
        if agent not in self.dropped and len(self.dropped) >= _AGENTS:
            return
        own = self.dropped.setdefault(agent, {})
        own[what] = own.get(what, 0) + 1
        if agent in self.board.agents:
            self._changed.add(agent)
        if self.budgets.is_news(agent, what, now):
            text = _DROPPED.get(what, _DROPPED[""])
            log.warning(text, {"agent": agent, "what": what})

    # Leading ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Wait for the lease, work while it is held, for ever. Cancelling gives it back."""
        showing = asyncio.create_task(self._show_up(), name="fp-gateway-presence")
        try:
            while True:
                await self._until_leading()
                log.info("gateway of site '%s': active", self.topics.site)
                await self._lead()
                log.warning("gateway of site '%s': the lease was lost", self.topics.site)
        finally:
            self.active = False
            showing.cancel()
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._leading.give_back()
                    await self.store.saw(Member(kind="gateway", name=self.owner), 0)

    async def _until_leading(self) -> None:
        if await self.patience(self._renew):
            return
        log.info("gateway of site '%s': another one is active; waiting", self.topics.site)
        while not await self.patience(self._renew):  # noqa: ASYNC110 - a row, not an event
            await asyncio.sleep(RENEWAL)

    async def _renew(self) -> bool:
        began = time.monotonic()
        held = await self._leading.take()
        if held:
            self._renewed = began
        return held

    async def _lead(self) -> None:
        """Until the lease is lost, or another client has taken the session."""
        self.active = True
        self._standing.set()
        working = asyncio.create_task(self._work(), name="fp-gateway-work")
        keeping = asyncio.create_task(self._keep_lease(), name="fp-gateway-lease")
        try:
            await asyncio.wait((working, keeping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.active = False
            for task in (working, keeping):
                task.cancel()
            await asyncio.wait((working, keeping))
        for task in (working, keeping):
            error = None if task.cancelled() else task.exception()
            if isinstance(error, SessionTakenError):
                await self._kicked(error)
            elif error is not None:
                raise error

    async def _kicked(self, error: SessionTakenError) -> None:
        """Somebody else connects under the gateway's id: to fight for it would help nobody."""
        log.error("%s: another gateway of site '%s'? waiting", error, self.topics.site)
        await self._leading.give_back()
        await asyncio.sleep(LEASE)

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL)
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(RENEWAL):
                    if not await self._renew():
                        return
            if time.monotonic() - self._renewed > _UNRENEWED:
                return

    async def _show_up(self) -> None:
        while True:
            info = {
                "site": self.topics.site,
                "active": self.active,
                "connected": self.connected,
                "agents": len(self.board.agents),
                "open": len(self.board.open),
                "broker": str(self.address),
                "owner": self.owner,
                "counts": self.counts,
            }
            member = Member(kind="gateway", name=self.owner, info=msgspec.json.encode(info))
            await self.patience(lambda: self._written(member))  # noqa: B023
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rhythm):
                    await self._standing.wait()
            self._standing.clear()

    async def _written(self, member: Member) -> None:
        """Write that this gateway is there, in one transaction with what agents said of late."""
        flushing = [self._flush()] if self.active else []
        strangers_kept = strangers.write(self.store, self.strangers.changed())
        await asyncio.gather(self.store.saw(member, 3 * self._rhythm), strangers_kept, *flushing)

    # Connected --------------------------------------------------------------------------------

    def _link(self) -> Link:
        gone = wire.encode(GatewayState(online=False))
        return msgspec.structs.replace(
            self.address,
            client_id=self._client_id(),
            clean_start=False,
            session_expiry=_SESSION_SECONDS,
            manual_ack=True,
            send_queue=_SEND_QUEUE,
            receive_queue=_HEARD_AT_QOS_0,
            packet_bytes=_PACKET_BYTES,
            will=Will(topic=self.topics.gateway, payload=gone, qos=1, retain=True),
        )

    def _client_id(self) -> str:
        """With a login that of the user, which a broker may insist on."""
        topics = self.topics
        return topics.gateway_name if self.address.username else topics.gateway_client

    async def _work(self) -> None:
        for name in list(self.board.agents):  # another gateway knows better since
            self.board.drop(name)
        self._changed.clear()
        await self.patience(self.load)
        self._name_the_risk()
        try:
            await link.serve(self._link, self._session, longest=_LONGEST_PAUSE, told=self._told)
        finally:
            self.connected = False

    def _name_the_risk(self) -> None:
        if not self.board.admitted and not self.address.is_local:
            log.warning("%s", admission.OPEN)

    def _told(self, error: BrokerError | None) -> None:
        if self.connected != (error is None):
            self.connected = error is None
            self._standing.set()

    async def _session(self, connection: Connection) -> None:
        topics = self.topics
        hearing, offering = Hearing(self, connection), Offering(self, connection)
        triggers = Triggers(self, connection, offering)
        hearing.triggers = triggers
        wanted = [topics.agent("+", "report"), topics.agent("+", "state"), topics.gateway]
        await self.clear_forgotten(connection)
        for topic in wanted:
            await connection.subscribe(topic, 1)
        await triggers.subscribe()
        await self.show(connection, online=True)
        await triggers.subscribed()  # the broker has answered what came after it
        await hearing.ask_who_is_there()
        self.board.hurry([id for id, e in self.board.open.items() if not e.answered], 0.0)
        parts = (
            hearing.gate.read,
            hearing.run,
            hearing.ask,
            triggers.run,
            offering.dispatch,
            offering.repeat,
            offering.cancels,
            offering.schedules,
            self._look_after,
            self.tracking.run,
            partial(self._read_again, triggers),
        )
        try:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(part())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            with contextlib.suppress(BrokerError):
                await self.show(connection, online=False)

    async def _read_again(self, triggers: Triggers) -> None:
        """Follow conf/mqtt.yml as it is changed."""
        while True:
            await asyncio.sleep(_REREAD)
            if (file := self._changed_file()) is not None:
                self.file = file
                await self.patience(self._load_admitted)
                await triggers.renew(file)

    async def show(self, connection: Connection, *, online: bool) -> None:
        """Tell agents whether somebody hears them."""
        state = GatewayState(online=online, owner=self.owner, clock=time.time())
        payload = wire.encode(state)
        await connection.publish(self.topics.gateway, payload, qos=1, retain=True, timeout=5.0)

    # What is in the store ---------------------------------------------------------------------

    async def load(self) -> None:
        """Have in mind what the store says."""
        before = set(self.board.open)
        await self._load_agents()
        await self._load_admitted()
        await self._load_jobs(before)

    async def _load_admitted(self) -> None:
        """Read the list of admitted agents, and apply it to what is believed of each."""
        board, wanted = self.board, admission.of_file(self.file.agents)
        board.admitted = await admission_rows.take_over(self.store, self.topics.site, wanted)
        self.strangers.forget(board.admitted)
        async for name in _by_turns(list(board.agents)):
            known = board.agents.get(name)
            if known is not None and admission.admits(board.admitted, name):
                new = admission.renewed(known, board.admitted.get(name, AdmittedAgent()))
                if new.state != known.state:
                    self.believe(name, new)

    async def _load_agents(self) -> None:
        board = self.board
        async for member in _by_turns(await self.store.members("agent")):
            known = msgspec.json.decode(member.info, type=Known)
            if member.name not in board.agents:
                board.believe(member.name, known)
                self.dropped.setdefault(member.name, dict(known.dropped))
                self.log.knew(member.name, self._described(member.name))
                if known.anyone:
                    self.readmitted.add(member.name)
        for member in await self.store.members("forgotten"):
            self._forget(member.name)
        board.drained = {member.name for member in await self.store.members("drained")}
        for member in await self.store.members("readmitted"):
            if member.name in board.agents:
                self.believe(member.name, presence.readmitted(board.agents[member.name]))
                self.readmitted.add(member.name)
            await self.store.saw(member, 0)

    async def _load_jobs(self, before: set[str]) -> None:
        board = self.board
        rows = {
            job.id: job
            for job in await self.store.find(Find(states=BOUND, bound=True, limit=1_000_000))
        }
        for id in before - rows.keys():
            board.release(id)
        now = time.monotonic()
        async for job in _by_turns(rows.values()):
            each = board.open.get(job.id)
            if each is None or each.job.attempt != job.attempt:
                board.bind(job, now, chance=random.random())
            elif job.cancel_at is not None:
                board.cancel(job.id, job, now)

    def believe(self, name: str, known: Known) -> None:
        """Remember what was heard of an agent; it is written down soon."""
        before = self.board.agents.get(name)
        self.board.believe(name, known)
        self._changed.add(name)
        self._urgent |= before is None or _shown(before) != _shown(known)
        if before is None or _may_do(known) != _may_do(before):
            self.wake()

    def _forget(self, name: str) -> None:
        """Somebody wants nothing to be known of an agent: neither here nor at the broker."""
        self.board.drop(name)
        self.log.forgets(name)
        self.dropped.pop(name, None)
        self.parts.pop(name, None)
        self._changed.discard(name)
        self.forgotten.add(name)

    async def clear_forgotten(self, connection: Connection) -> None:
        """Have the broker forget them, too. It was said of who was there: one that is shows itself
        again when it hears of that, and is new.
        """
        for name in list(self.forgotten):
            topic = self.topics.agent(name, "state")
            await connection.publish(topic, b"", qos=1, retain=True)
            if name not in self.board.agents:  # what was written meanwhile was of the old one
                await self.patience(partial(self.store.saw, Member(kind="agent", name=name), 0))
            await self.patience(partial(self.store.saw, Member(kind="forgotten", name=name), 0))
            self.forgotten.discard(name)

    def _described(self, name: str) -> str:
        board = self.board
        return presence.describe(
            board.agents[name],
            drained=name in board.drained,
            now=time.time(),
            admitted=admission.admits(board.admitted, name),
        )

    def wake(self) -> None:
        """There may be something to offer."""
        self.news.set()

    async def _flush(self) -> None:
        """Write the agents that have changed, some at a time."""
        names, self._changed = list(self._changed), set()
        while names:
            some = names[:_AT_ONCE]
            try:
                await asyncio.gather(*map(self._write, some))
            except BaseException:
                self._changed.update(names)
                raise
            del names[:_AT_ONCE]

    async def _write(self, name: str) -> None:
        if (known := self.board.agents.get(name)) is not None:
            dropped = self.dropped.get(name) or {}
            info = msgspec.json.encode(msgspec.structs.replace(known, dropped=dropped))
            await self.store.saw(Member(kind="agent", name=name, info=info), _REMEMBERED)

    # Looking after ----------------------------------------------------------------------------

    async def _look_after(self) -> None:
        """Agents that are silent, or stay away; what nobody else notices in the store."""
        reloaded = pruned = time.monotonic()
        while True:
            await asyncio.sleep(1.0)
            now, wall = time.monotonic(), time.time()
            await self.patience(lambda: self._look_at_agents(wall))  # noqa: B023
            if self._urgent:
                self._urgent = False
                await self.patience(self._flush)
            if now - pruned >= _PRUNE:
                pruned = now
                await self.patience(self._prune)
            if self.patience.since_failure() > LEASE and now - reloaded >= _POLL:
                await self.patience(self._rescue)
                if now - reloaded >= _RELOAD or len(self.board.open) < _BATCH:
                    reloaded = now
                    await self.patience(self.load)

    async def _rescue(self) -> None:
        """As workers do it, and tell the user's functions of it: so only where there is none."""
        if await watching.alive(self.store, "worker"):
            return
        for job in await self.store.rescue():
            self.hub.publish(f"job:{job.id}", f"work:{job.queue}")

    async def _prune(self) -> None:
        """Remove what is over, where no worker does."""
        if await watching.alive(self.store, "worker"):
            return
        for _ in range(_PRUNES):
            if await self.store.prune(_PRUNED) < _PRUNED:
                return

    async def _look_at_agents(self, wall: float) -> None:
        async for name in _by_turns(list(self.board.agents)):
            known = self.board.agents.get(name)
            if known is None:  # forgotten, meanwhile
                continue
            if (new := presence.settled(known, wall)) is not None:
                await self._replaced(name)
                self.believe(name, new)
            elif (new := presence.silent(known, wall, self.settings.away_after)) is not None:
                self.believe(name, new)
            if known.away_since is not None:
                await self._away(name, known, wall)
            if name in self.board.agents:
                self.log.sees(name, self._described(name))
        self.log.tell()

    async def _replaced(self, name: str) -> None:
        """The device has a new store: what the old one had is lost, as in a crash."""
        log.warning("agent '%s' has a new store: what it had before has crashed", name)
        reason = "the agent's store is gone"
        crashed = [
            Report(id=e.job.id, attempt=e.job.attempt, event="crash", reason=reason)
            for e in self.board.of(name)
        ]
        await self.end(crashed)

    async def _away(self, name: str, known: Known, wall: float) -> None:
        reports = []
        for each in self.board.of(name):
            what = lost(each, known, wall, self.settings.lost_after)
            if what is None:
                continue
            event: Any = "lose" if what == "reassign" else "fail"
            since = datetime.fromtimestamp(known.away_since or wall, UTC)
            reason = f"agent '{name}' has been away since {since.isoformat(timespec='seconds')}"
            reports.append(
                Report(id=each.job.id, attempt=each.job.attempt, event=event, reason=reason)
            )
        await self.end(reports)

    async def end(self, reports: list[Report]) -> None:
        """Store what the gateway itself has decided of jobs."""
        if not reports:
            return
        await self.store.finish(reports)
        for report in reports:
            each = self.board.open.get(report.id)
            self.board.release(report.id)
            self.hub.publish(f"job:{report.id}")
            self.tracking.ended(report.id, None if each is None else each.job)
        self.wake()


def _shown(known: Known) -> tuple[AgentState, bool]:
    """Return what others are to see of an agent at once, not with the next of its rows."""
    return known.state, known.away_since is None


def _may_do(known: Known) -> tuple[bool, dict[str, str]]:
    return presence.may_work(known), known.state.pipelines


async def _by_turns(items: Collection[T]) -> AsyncIterator[T]:
    """All of them, others having their turn now and then."""
    for number, item in enumerate(items, 1):
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
        yield item


@contextlib.asynccontextmanager
async def in_background(gateway: Gateway) -> AsyncIterator[None]:
    """The gateway at work until the block ends."""
    task = asyncio.create_task(gateway.run(), name="fp-gateway")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
