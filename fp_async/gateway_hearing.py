"""What the gateway does with what it hears: one batch of messages is one transaction.

A batch is acknowledged to the broker when all of it is in the store; while the store is away
nothing is, and the broker holds on to it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from fp_async import admission, gateway_schedules, hearing, messages, presence, wire
from fp_async.attempt import Trail
from fp_async.board import Open
from fp_async.budgets import COMPARISON, Parts
from fp_async.config import AdmittedAgent
from fp_async.errors import (
    MessageError,
    OtherVersionError,
    StoreError,
    StoreUnavailableError,
    TooLargeError,
)
from fp_async.gateway_gate import Gate
from fp_async.gateway_pipelines import Pipelines
from fp_async.job_lines import log_adopted, log_end, log_start
from fp_async.jobs import RESULT_TTL, Chunk, Job, Letter, Report
from fp_async.lifecycle import State
from fp_async.link import Message as Heard
from fp_async.messages import (
    Accepted,
    AgentState,
    DeleteSchedule,
    Finished,
    Heartbeat,
    Malformed,
    Message,
    Ping,
    Pong,
    Progress,
    PutSchedule,
    Rejected,
    ResultChunk,
    ScheduleState,
    Started,
    Sync,
)
from fp_async.topics import NAME

if TYPE_CHECKING:
    from fp_async.budgets import What
    from fp_async.gateway import Gateway
    from fp_async.gateway_triggers import Triggers
    from fp_async.link import Connection
    from fp_async.presence import Known

log: logging.Logger = logging.getLogger("fp_async.gateway")
_PACE = 0.0005  # seconds for each of many pings
_TOGETHER = 100
_MEET = 10.0  # seconds between two questions to a stranger
_STRANGERS = 1_000
_SOME = 200  # outcomes that an agent tells together
_NO_ROOM = "the center has no such job, and no room for more letters of this agent"
_UUID = re.compile(r"[0-9a-f-]{36}")
_BEGINNINGS = ("accept", "start", "wait")  # reports of jobs that go on


class Own(NamedTuple):
    """A job that an agent began by itself: the id by which it tells of it, and the row here."""

    agent: str
    told: str
    job: Job


class Batch:
    """What a batch of messages comes to, before any of it is done."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, Report]] = []
        self.adopted: list[Own] = []
        self.chunks: list[Chunk] = []
        self.given_up: list[str] = []  # results of which the parts are not kept any longer
        self.letters: list[Letter] = []
        self.whole: list[tuple[str, Finished]] = []  # whose result came in parts
        self.later: list[tuple[str, Message]] = []
        self.acknowledged: defaultdict[str, list[str]] = defaultdict(list)
        self.homeless: defaultdict[str, list[str]] = defaultdict(list)  # no room for a letter


class Held:
    """What an agent has of the jobs that it should have, by the pages of a `Sync` that came so far:
    no more is kept than these, whatever is said.
    """

    def __init__(self, pages: int) -> None:
        self.jobs: set[tuple[str, int]] = set()
        self._missing = set(range(pages))

    def add(self, page: Sync, own: set[tuple[str, int]]) -> bool:
        """Note a page; return whether all have come."""
        self._missing.discard(page.page)
        self.jobs.update(own.intersection((id, attempt) for id, attempt, _ in page.jobs))
        return not self._missing


class Hearing:
    """The receiving half of one connection."""

    def __init__(self, gateway: Gateway, connection: Connection) -> None:
        self.triggers: Triggers | None = None
        self._gateway = gateway
        self._connection = connection
        self._topics = gateway.topics
        self._board = gateway.board
        self._trails: dict[str, Trail] = {}
        self.gate: Gate = Gate(gateway, connection)
        self._syncs: dict[str, Held] = {}
        self._pipelines = Pipelines(gateway)
        self._nonce = secrets.token_hex(8)  # an answer to an earlier ping may come from a queue
        self._to_ask: list[str] = []
        self._met: dict[str, float] = {}  # strangers, and when each was asked for its state

    async def run(self) -> None:
        """Until the connection is lost."""
        while True:
            part = await self.gate.batch()
            await self._gateway.patience(lambda: self.handle(part))  # noqa: B023
            self.gate.handled(part)

    async def handle(self, heard: Sequence[Heard]) -> None:
        """Store what a batch says, then answer. Doing it twice does no harm."""
        batch, triggering = Batch(), list[Heard]()
        for message in heard:
            match self._topics.parsed(message.topic):
                case ("agent", name, "report"):
                    self._hear_report(batch, name, message)
                case ("agent", name, "state"):
                    await self._hear_state(batch, name, message)
                case ("gateway", "state"):
                    await self._hear_gateway(message)
                case _:
                    triggering.append(message)
        assert self.triggers is not None
        await asyncio.gather(self._store(batch), self.triggers.handle(triggering))
        await self._answer(batch)

    def bury(self, batch: Batch, name: str, message: Heard, why: str) -> None:
        """A message that cannot be understood is kept, and no more is made of it."""
        self._gateway.count("malformed")
        kept = hearing.letter(message.topic, why, message.payload)
        if self._has_room(name, kept):
            batch.letters.append(kept)

    def _has_room(self, name: str, kept: Letter) -> bool:
        """Return whether an agent may leave one more letter."""
        now, may = time.monotonic(), self._gateway.may
        return may(name, "letters", now) and may(name, "letter bytes", now, len(kept.payload))

    # Agents -----------------------------------------------------------------------------------

    async def _hear_state(self, batch: Batch, name: str, message: Heard) -> None:
        if not message.payload or not NAME.fullmatch(name):
            return
        try:
            told = wire.agent_state(message.payload)
        except MessageError as error:
            if self._is_admitted(name):
                other = isinstance(error, OtherVersionError)
                (self._put_off if other else self.bury)(batch, name, message, str(error))
            return
        if not self._is_admitted(name, told):
            return
        said = admission.cut(told, self._board.admitted.get(name, AdmittedAgent()))
        known = self._board.agents.get(name)
        new = presence.heard(known, said, time.time(), retained=message.retained)
        if new is not None:
            self._believe(name, known, admission.believed(new, told))
        else:
            self._gateway.count("old states")
        if presence.is_behind(known, said, retained=message.retained):
            assert known is not None
            self._ask_state(name, known.state)
        if presence.is_doubtful(known, said, retained=message.retained):
            self._ask(name)

    def _is_admitted(self, name: str, told: AgentState | None = None) -> bool:
        """Return whether an agent belongs to the fleet. One that does not is noted, and no more is
        made of what it says: it is neither stored nor answered.
        """
        if admission.admits(self._board.admitted, name):
            return True
        self._gateway.count("unadmitted")
        if NAME.fullmatch(name) and self._gateway.strangers.note(name, time.time(), told):
            log.warning(
                "agent '%s' is not admitted: what it says counts for nothing "
                "(flowerpower agents --unknown)",
                name,
            )
        return False

    def _believe(self, name: str, known: Known | None, new: Known) -> None:
        said = new.state
        if new.quarantine and not (known and known.quarantine):
            log.error("agent '%s' is quarantined: %s", name, new.quarantine)
        self._gateway.believe(name, new)
        if said.status == "ready" and (known is None or _newer(said, known.state)):
            waiting = [each.job.id for each in self._board.of(name) if not each.answered]
            self._board.hurry(waiting, time.monotonic())

    async def ask_who_is_there(self) -> None:
        """Ping those that were there when this gateway last heard of them: at a pace, since their
        answers come all at once, and brokers drop beyond a short queue.
        """
        began, agents = time.time(), self._board.agents
        present = [name for name, known in agents.items() if known.away_since is None]
        for number, name in enumerate(present):
            self._gateway.believe(name, presence.asked(agents[name], began + number * _PACE))
            if number % _TOGETHER == 0:
                await asyncio.sleep(0)
        self._to_ask = present

    async def ask(self) -> None:
        """Send those pings."""
        for start in range(0, len(self._to_ask), _TOGETHER):
            for name in self._to_ask[start : start + _TOGETHER]:
                self._ping(name)
            await asyncio.sleep(_TOGETHER * _PACE)

    def _ask(self, name: str) -> None:
        known = self._board.agents.get(name)
        if known is not None and known.asked_at is None:
            self._gateway.believe(name, presence.asked(known, time.time()))
            self._ping(name)

    def _ask_state(self, name: str, before: AgentState | None = None) -> None:
        """Have an agent show itself: nothing is known of it, or a later start of its store."""
        asked = messages.AskSync(state=True)
        if before is not None:
            asked = replace(asked, store=before.store, starts=before.starts, life=before.life)
        self._tell(name, asked)

    def _ping(self, name: str) -> None:
        self._tell(name, Ping(nonce=self._nonce))

    async def _hear_gateway(self, message: Heard) -> None:
        """Brokers deliver the wills of connections long gone."""
        try:
            said = wire.gateway_state(message.payload)
        except MessageError:
            said = None
        if said is None or not said.online or said.owner != self._gateway.owner:
            await self._gateway.show(self._connection, online=True)

    def _hear_report(self, batch: Batch, name: str, message: Heard) -> None:
        if not self._is_admitted(name):
            return
        self._meet(name)
        explain = not self._gateway.budgets.wait(name, "letters", time.monotonic())
        try:
            told = wire.reports(message.payload, explain=explain)
        except OtherVersionError as error:
            self._put_off(batch, name, message, str(error))
            return
        except MessageError as error:
            self.bury(batch, name, message, str(error))
            return
        for each in told:
            if isinstance(each, wire.Unreadable):
                if each.v == messages.VERSION:
                    self._give_up(batch, name, message, each)
                else:
                    self._put_off(batch, name, message, each.why)
                continue
            try:
                self._sort(batch, name, each)
            except MessageError as error:
                self._give_up(batch, name, message, wire.unreadable(each, str(error)))

    def _meet(self, name: str) -> None:
        """Ask an agent that reports, and was never seen, who it is: its state may be lost, or the
        broker sends no retained ones to who subscribes by a wildcard.
        """
        now = time.monotonic()
        if self.gate.is_unseen(name):
            self._ask_state(name)
        if name in self._board.agents or not NAME.fullmatch(name):
            return
        if now - self._met.get(name, float("-inf")) < _MEET:
            return
        if len(self._met) >= _STRANGERS:
            self._met.clear()
        self._met[name] = now
        self._ask_state(name)

    def _put_off(self, batch: Batch, name: str, message: Heard, why: str) -> None:
        """A message of another version of the protocol: it is not acknowledged, so the agent says
        again what matters, until one of the two is updated. One letter tells of many.
        """
        if self._may(name, "versions"):
            self.bury(batch, name, message, why)

    def _give_up(self, batch: Batch, name: str, message: Heard, told: wire.Unreadable) -> None:
        """A report that makes no sense; an outcome has to be one nevertheless."""
        self.bury(batch, name, message, told.why)
        if told.type == Finished.__name__ and told.id is not None:
            report = hearing.unreadable(told.id, told.attempt, told.why)
            if self._may_end(name, told.id):
                batch.reports.append((name, report))

    def _sort(self, batch: Batch, name: str, told: messages.Report) -> None:
        now = time.time()
        match told:
            case Finished():
                self._sort_outcome(batch, name, told, now)
            case Accepted() | Started() | Rejected():
                if self._has(name, told.id) or self._may(name, "strays"):
                    batch.reports.append((name, self._news(name, told, now)))
            case ResultChunk():
                self._sort_part(batch, name, told)
            case Heartbeat():
                known = self._board.agents.get(name)
                if known is not None:
                    self._gateway.believe(name, presence.beaten(known, told, now))
            case Pong():
                known = self._board.agents.get(name)
                if known is not None and told.nonce == self._nonce:
                    self._gateway.believe(name, presence.answered(known, told.clock, now))
            case _:
                if self._may_ask(name, told):
                    batch.later.append((name, told))

    def _may(self, name: str, what: What, number: float = 1) -> bool:
        return self._gateway.may(name, what, time.monotonic(), number)

    def _may_ask(self, name: str, told: Message) -> bool:
        """Return whether an agent may say that once more: it makes no row of its own."""
        match told:
            case Progress():
                return self._has(name, told.id) and self._may(name, "progress")
            case ScheduleState():
                return self._may(name, "schedules")
            case Sync():
                return self._may(name, "schedules", COMPARISON if told.schedules else 1)
            case _:
                return self._may(name, "pings")

    def _has(self, name: str, id: str) -> bool:
        """Return whether the job was offered to the agent."""
        each = self._board.open.get(id)
        return each is not None and each.agent == name

    def _may_end(self, name: str, id: str, *, adopted: bool = False) -> bool:
        """Return whether an outcome can be heard now. Of jobs that the agent was offered it always
        can; others wait on the device.
        """
        if self._has(name, id):
            return True
        what: What = "outcomes" if adopted else "strays"
        if self._may(name, what):
            return True
        wait = self._gateway.budgets.wait(name, what, time.monotonic(), _SOME)
        self.gate.slow(name, wait, "it tells more outcomes than the center takes of one agent")
        return False

    def _news(self, name: str, told: Accepted | Started | Rejected, now: float) -> Report:
        match told:
            case Accepted():
                return hearing.accepted(told)
            case Started():
                return hearing.started(told, now)
        return self._rejection(name, told)

    def _sort_part(self, batch: Batch, name: str, told: ResultChunk) -> None:
        """Keep a part of a result, in the place of older ones where an agent sends too many."""
        each = self._board.open.get(told.id)
        if not hearing.may_send(each, told, name):
            self._gateway.count("refused parts")
            return
        part = hearing.chunk(told, name)
        batch.chunks.append(part)
        if each is None or each.agent != name:  # else its room bounds them
            parts = self._gateway.parts.setdefault(name, Parts())
            batch.given_up += parts.add(part.id, len(part.data))

    def _sort_outcome(self, batch: Batch, name: str, told: Finished, now: float) -> None:
        if not self._may_end(name, told.id, adopted=told.origin is not None):
            return
        if told.chunks and hearing.may_send(self._board.open.get(told.id), told, name):
            batch.whole.append((name, told))
        elif told.origin is not None:
            batch.adopted.append(Own(name, told.id, self._adopted(name, told, now)))
        else:
            batch.reports.append((name, hearing.finished(told, name, now, None)))

    def _adopted(self, name: str, told: Finished, now: float) -> Job:
        job = hearing.adopted(told, name, now)
        if job.result_ttl <= RESULT_TTL:
            return job
        return replace(job, result_ttl=min(job.result_ttl, self._pipelines.longest(job)))

    def _rejection(self, name: str, told: Rejected) -> Report:
        """Not now, or never: the next agent may take it, where there is one."""
        why = hearing.clean(told.reason)
        again = Report(id=told.id, attempt=told.attempt, event="give_back", reason=why)
        if told.retry_after is not None:
            self._board.pause(name, time.monotonic() + max(told.retry_after, 1.0))
            return again
        self._board.refuse(told.id, name, time.monotonic())
        each = self._board.open.get(told.id)
        anyone = each is not None and (each.job.target or "").startswith("any:")
        if anyone and each is not None and not self._board.nobody_left(each.job):
            return again
        return replace(again, event="refuse", reason=hearing.clean(f"agent '{name}': {why}"))

    # Storing ----------------------------------------------------------------------------------

    async def _store(self, batch: Batch) -> None:
        """All in one transaction, where the store joins what comes at the same time."""
        gateway, fleet = self._gateway, self._gateway.store.fleet
        if batch.adopted or batch.whole:
            await gateway.kept.look()  # how long the center keeps outcomes of its schedules
        await self._keep_parts(batch)
        mine = await self._placed(batch)
        own = [(name, replace(report, agent=name)) for name, report in batch.reports]
        try:
            done, adopted, _ = await asyncio.gather(
                gateway.store.finish([report for _, report in own]),
                fleet.adopt([each.job for each in mine]),
                fleet.bury(batch.letters),
            )
            gateway.log.buried(batch.letters)
        except StoreUnavailableError:
            raise
        except StoreError as error:
            done, adopted = await self._store_singly(mine, own, error)
        for (name, report), stored in zip(own, done, strict=True):
            if stored:
                self._apply(name, report)
        late = [pair for pair, stored in zip(own, done, strict=True) if not stored]
        await self._keep_late(batch, [pair for pair in late if not self._is_stale(*pair)])
        await self._take_in(batch, mine, adopted)
        for name, report in batch.reports:
            if report.event in (*_BEGINNINGS, "give_back"):
                continue
            if report.id not in batch.homeless.get(name, ()):
                batch.acknowledged[name].append(report.id)

    async def _placed(self, batch: Batch) -> list[Own]:
        """The rows of jobs that agents began by themselves: of a schedule if it is theirs to fire,
        and none of those that an earlier release has stored already, under the id that is told.
        """
        gateway, found = self._gateway, list[Own]()
        ids = [each.told for each in batch.adopted if each.told != each.job.id]
        told = [id for id in ids if _UUID.fullmatch(id)]  # as this release and all before make them
        there = {id for some in await gateway.store.ids(told) for id in some} if told else set()
        for each in batch.adopted:
            if each.told in there and await self._is_stored(each):
                batch.acknowledged[each.agent].append(each.told)
                continue
            job, known = each.job, self._board.agents.get(each.agent)
            id = job.schedule_id
            if id is not None and await gateway.kept.is_foreign(id, each.agent, known):
                text = "agent '%s' tells of a job of schedule '%s', which is not its to fire"
                log.warning(text, each.agent, id)
                job = replace(job, schedule_id=None)
            found.append(each._replace(job=job))
        return found

    async def _is_stored(self, each: Own) -> bool:
        """Return whether the row under the told id is this job."""
        row = await self._gateway.store.get(each.told)
        told_by = None if row is None or row.target != f"agent:{each.agent}" else row.agent
        return told_by == each.agent and row is not None and row.pipeline == each.job.pipeline

    async def _take_in(self, batch: Batch, mine: Sequence[Own], stored: Sequence[bool]) -> None:
        """Tell of the jobs that agents began by themselves, which are stored now."""
        gateway = self._gateway
        for each, new in zip(mine, stored, strict=True):
            name, job = each.agent, each.job
            if not new:
                await self._keep_again(batch, each)
                continue
            batch.acknowledged[name].append(each.told)
            _log_warnings(name, job.id, job.record)
            gateway.hub.publish(f"job:{job.id}")
            gateway.tracking.ended(job.id, job)
            log_adopted(log, job, name)
            for observer in gateway.backend.observers:
                observer.adopted(replace(job, pipeline=self._pipelines.shown(job.pipeline)))

    async def _keep_again(self, batch: Batch, each: Own) -> None:
        """Acknowledge what is stored already; what is another run of it is kept as a letter."""
        row = await self._gateway.store.get(each.job.id)
        topic = self._topics.agent(each.agent, "report")
        kept = None if row is None else hearing.ran_again(each.job, row, each.agent, topic)
        if kept is not None and not self._has_room(each.agent, kept):
            batch.homeless[each.agent].append(each.told)
            return
        if kept is not None:
            self._gateway.log.buried([kept])
            await self._gateway.store.fleet.bury([kept])
        batch.acknowledged[each.agent].append(each.told)

    async def _keep_parts(self, batch: Batch) -> None:
        """Keep parts of results, and make the results of them that are whole."""
        fleet = self._gateway.store.fleet
        if batch.chunks:
            await fleet.keep(batch.chunks)
        for id in batch.given_up:
            self._gateway.count("forgotten parts")
            await fleet.forget(id)
        for name, told in batch.whole:
            await self._put_together(batch, name, told)

    async def _store_singly(
        self, mine: Sequence[Own], own: Sequence[tuple[str, Report]], error: StoreError
    ) -> tuple[list[bool], list[bool]]:
        """The store refuses something of it: a result too large for it, say. What it refuses
        has failed for that reason, or an agent would tell it for ever.
        """
        log.warning("the store refuses a batch, and gets it one by one: %s", error)
        gateway, done, adopted = self._gateway, list[bool](), list[bool]()
        for _, report in own:
            try:
                done += await gateway.store.finish([report])
            except StoreUnavailableError:
                raise
            except StoreError as refused:
                done += await gateway.store.finish([hearing.refused(report, str(refused))])
        for each in mine:
            try:
                adopted += await gateway.store.fleet.adopt([each.job])
            except StoreUnavailableError:
                raise
            except StoreError as refused:
                without = hearing.without_value(each.job, str(refused))
                adopted += await gateway.store.fleet.adopt([without])
        return done, adopted

    async def _put_together(self, batch: Batch, name: str, told: Finished) -> None:
        fleet, id = self._gateway.store.fleet, hearing.parts_of(told.id, name)
        whole = hearing.put_together(told, await fleet.kept(id, told.attempt))
        if isinstance(whole, list):
            if len(whole) == told.chunks:  # parts that are kept are never replaced: not by these
                await fleet.forget(id)
            body = messages.Missing(id=told.id, attempt=told.attempt, chunks=whole)
            self._tell(name, body)
            return
        now = time.time()
        if told.origin is None:
            batch.reports.append((name, hearing.finished(told, name, now, whole)))
        else:
            job = replace(self._adopted(name, told, now), result=whole)
            batch.adopted.append(Own(name, told.id, job))
        await fleet.forget(id)
        if name in self._gateway.parts:
            self._gateway.parts[name].forget(id)

    def _is_stale(self, name: str, report: Report) -> bool:
        """Note that a report changes nothing; return whether it was of a beginning."""
        each = self._board.open.get(report.id)
        self._gateway.count("stale reports")
        if report.event not in _BEGINNINGS:
            return False
        if each is not None and each.agent == name and each.job.attempt == report.attempt:
            each.answered = True
        return True

    def _apply(self, name: str, report: Report) -> None:
        """Have in mind what the store has now, and tell whoever waits for it."""
        gateway, each = self._gateway, self._board.open.get(report.id)
        gateway.hub.publish(f"job:{report.id}")
        _log_warnings(name, report.id, report.record)
        _log_report(name, each, report)
        if report.event in _BEGINNINGS:
            if each is not None:
                self._begins(name, each.job, report)
            return
        self._trails.pop(report.id, None)
        if report.event == "give_back":
            self._board.release(report.id)
        else:
            self._board.forget(report.id)
            gateway.count("outcomes")
            gateway.tracking.ended(report.id, None if each is None else each.job)
        if each is not None:
            began = report.started_at or each.job.started_at
            for observer in gateway.backend.observers:
                job = replace(each.job, started_at=began)
                observer.reported(job, report, time.time() - (began or time.time()))
        gateway.wake()
        if self.triggers is not None and each is not None:
            self.triggers.ended(each.job, report)

    def _begins(self, name: str, job: Job, report: Report) -> None:
        if report.reason and report.reason != job.reason:
            self._gateway.log.waits(name, job.id, report.reason)
        state: State = "running" if report.event == "start" else "accepted"
        self._board.answered(job.id, replace(job, state=state, reason=report.reason))

    async def _keep_late(self, batch: Batch, late: Sequence[tuple[str, Report]]) -> None:
        """Keep outcomes that change nothing: of an attempt that was given up, of a job that this
        store does not know, or that another agent has.
        """
        get = self._gateway.store.get
        jobs = await asyncio.gather(*(get(report.id) for _, report in late))
        letters: list[Letter] = []
        for (name, report), job in zip(late, jobs, strict=True):
            kept = hearing.unplaced(report, job, name, self._topics.agent(name, "report"))
            if kept is not None and self._has_room(name, kept):
                letters.append(kept)
            elif kept is not None:
                batch.homeless[name].append(report.id)
        if letters:
            self._gateway.log.buried(letters)
            await self._gateway.store.fleet.bury(letters)

    # Answering --------------------------------------------------------------------------------

    async def _answer(self, batch: Batch) -> None:
        page = messages.page(self._connection.largest, messages.ID_BYTES)
        for name, ids in batch.acknowledged.items():
            for start in range(0, len(ids), page):
                self._tell(name, messages.Acknowledge(ids=ids[start : start + page]))
        for name, ids in batch.homeless.items():
            wait = self._gateway.budgets.wait(name, "letters", time.monotonic(), len(ids))
            self.gate.hold(name, ids, wait, _NO_ROOM)
        await self._note(batch)
        for name, told in batch.later:
            await self._do(name, told)

    async def _note(self, batch: Batch) -> None:
        """Store, at once, what was said of running jobs and of schedules."""
        ids: dict[str, tuple[str, int, bytes]] = {}
        states: dict[tuple[str, str], ScheduleState] = {}
        for name, told in batch.later:
            if isinstance(told, Progress) and (trail := self._progressed(name, told)):
                ids[told.id] = (told.id, told.attempt, trail.record())
            elif isinstance(told, ScheduleState):
                states[name, told.id] = told
        if ids:
            await self._gateway.store.note(list(ids.values()))
            self._gateway.hub.publish(*(f"job:{id}" for id in ids))
        if states:
            say = self._schedule_state
            await asyncio.gather(*(say(name, told) for (name, _), told in states.items()))

    def _tell(self, name: str, body: Message) -> None:
        topic = self._topics.agent(name, "do")
        self._connection.publish_soon(topic, wire.encode(body), qos=1, expiry=60)

    async def _do(self, name: str, told: Message) -> None:
        match told:
            case Sync():
                await self._sync(name, told)
            case Ping():
                self._tell(name, self._pong(name, told.nonce, time.time()))
            case Malformed():
                log.warning("agent '%s' cannot read %d messages: %s", name, told.count, told.reason)
            case _:
                return

    def _pong(self, name: str, nonce: str, now: float) -> messages.Pong:
        known = self._board.agents.get(name)
        doubt = "" if known is None else presence.doubt(name, known, now)
        return messages.Pong(nonce=nonce, clock=now, doubt=doubt[:500])

    def _progressed(self, name: str, told: Progress) -> Trail | None:
        each = self._board.open.get(told.id)
        if each is None or each.agent != name or each.job.attempt != told.attempt:
            return None
        trail = self._trails.setdefault(told.id, Trail(name))
        for node in told.nodes:
            trail.node(node)
        if told.log:
            trail.write(told.log)
        return trail

    async def _sync(self, name: str, told: Sync) -> None:
        """The agent says what it has: what it should have, and has not, is said again."""
        if told.schedules is not None:
            await self._sync_schedules(name, told.schedules)
        bound = self._board.of(name)
        if told.page == 0 and name in self._board.agents:
            self._syncs[name] = Held(told.pages)
        held = self._syncs.get(name)
        if held is None:  # its beginning was not heard
            return
        own = {(each.job.id, each.job.attempt) for each in bound}
        if not held.add(told, own):
            return
        del self._syncs[name]
        absent = [e.job.id for e in bound if (e.job.id, e.job.attempt) not in held.jobs]
        self._board.hurry(absent, time.monotonic())

    async def _sync_schedules(self, name: str, revisions: dict[str, int]) -> None:
        known = self._board.agents.get(name)
        if known is not None:
            for body in await self._gateway.kept.differences(name, known, revisions):
                await self._tell_schedule(name, body)

    async def _tell_schedule(self, name: str, body: PutSchedule | DeleteSchedule) -> None:
        """Tell an agent what to keep; what the broker does not take is shown as its refusal."""
        try:
            self._tell(name, body)
        except TooLargeError as error:
            log.warning("schedule '%s' for agent '%s': %s", body.id, name, error.why)
            state = ScheduleState(id=body.id, revision=body.revision, error=error.why)
            await self._schedule_state(name, state)

    async def _schedule_state(self, name: str, told: ScheduleState) -> None:
        gateway = self._gateway
        if name not in self._board.agents or not await gateway.kept.knows(told.id):
            gateway.count("unknown schedules")
            return
        await gateway_schedules.heard(gateway.store, name, told)


def _newer(said: AgentState, before: AgentState) -> bool:
    """Whether it has connected since."""
    return (said.store, said.starts, said.n) != (before.store, before.starts, before.n)


def _log_report(name: str, each: Open | None, report: Report) -> None:
    """Log that an agent has begun a job that is open, or how it has ended there."""
    if each is None or report.event in ("accept", "wait"):
        return
    if report.event == "start":
        log_start(log, each.job, name)
        return
    began, ended = report.started_at or each.job.started_at, report.ended_at or time.time()
    log_end(log, each.job, report, 0.0 if began is None else max(ended - began, 0.0), name)


def _log_warnings(name: str, id: str, record: bytes | None) -> None:
    for text in hearing.warnings(record):
        log.warning("agent '%s', job %s: %s", name, id, text, extra={"job": id})
