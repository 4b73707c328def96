"""Messages that make jobs, and the answers to whoever sent them.

The job is a row before the message is acknowledged to the broker. What makes no job (malformed,
not allowed, too much) is a dead letter first. Whoever gave a response topic hears the job's id,
then its outcome; everybody else may listen to run/<pipeline>/outcome and job/<id>.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType
from msgspec.structs import replace

from fp_async import (
    admission,
    hearing,
    messages,
    orders,
    rules,
    targets,
    topic_triggers,
    tracing,
    wire,
)
from fp_async.config import MqttFile, Runnable, TopicTrigger
from fp_async.errors import (
    BrokerError,
    FlowerPowerError,
    MessageError,
    TooLargeError,
    UnknownNameError,
)
from fp_async.jobs import EVER, Job, Member, Offer, Report
from fp_async.link import Message as Heard
from fp_async.messages import JobOutcome, JobQueued, Message, Refused
from fp_async.topic_triggers import RUN, Filters, Rates, Told, Wanted

if TYPE_CHECKING:
    from fp_async.gateway import Gateway
    from fp_async.gateway_offering import Offering
    from fp_async.link import Connection

log: logging.Logger = logging.getLogger("fp_async.gateway")
_POLL = 5.0
_REPLIES = 100
_REMEMBERED = 1000
_STRAY = "stray"  # what asks for a pipeline that no message may run
_STRAYS = 10.0  # of these, letters a second
_FILTERS = "filters"
_PLAIN = b'{"v":1,"plain":'


class Triggers:
    """The triggers of conf/mqtt.yml on one connection."""

    def __init__(self, gateway: Gateway, connection: Connection, offering: Offering) -> None:
        self._gateway = gateway
        self._connection = connection
        self._offering = offering
        self._patience = gateway.patience
        self._topics = gateway.topics
        self._store = gateway.store
        self._to_answer: dict[str, Job] = {}
        self._answered: dict[str, None] = {}  # of late: a look at the store may be a bit older
        self._answering = asyncio.Event()
        self._set(gateway.file)

    def _set(self, file: MqttFile) -> None:
        self._settings = file.gateway
        self._named: dict[str, TopicTrigger] = file.triggers or {}
        self._runnable = {n: r or Runnable() for n, r in (file.run or {}).items()}
        limited: list[tuple[str, TopicTrigger | Runnable]] = [
            *self._runnable.items(),
            *self._named.items(),
        ]
        rates = {(type(each), name): each.rate for name, each in limited}
        self._rates = Rates({**rates, _STRAY: _STRAYS})
        named = [each.topic for each in self._named.values()]
        self.filters: Filters = Filters([self._any_run, *named])

    @property
    def _any_run(self) -> str:
        return self._topics.run("+")  # also of what may not run: its sender is told so

    async def subscribe(self) -> None:
        """Ask the broker for what the triggers hear, and for no more what its kept session hears
        since an earlier configuration: it would bring two copies. Raises BrokerError.
        """
        before = await self._remembered()
        await self._remember({*before, *self.filters.numbers})
        for topic, number in self.filters.numbers.items():
            await self._subscribe(topic, number)
        self._connection.unsubscribe_soon(before - self.filters.numbers.keys())

    async def subscribed(self) -> None:
        """Store the present filters as all that the session has, once the broker has taken them."""
        await self._remember(set(self.filters.numbers))

    async def _remembered(self) -> set[str]:
        """Return the filters that the session at the broker may have."""
        for member in await self._patience(partial(self._store.members, _FILTERS)):
            if member.name == self._topics.root:
                return set(msgspec.json.decode(member.info, type=list[str]))
        runs = {*self._runnable, *self._gateway.flows.names()}
        return {self._topics.run(name) for name in runs}  # as earlier releases subscribed

    async def _remember(self, filters: set[str]) -> None:
        info = msgspec.json.encode(sorted(filters))
        member = Member(kind=_FILTERS, name=self._topics.root, info=info)
        await self._patience(partial(self._store.saw, member, EVER))

    async def _subscribe(self, topic: str, number: int) -> None:
        kept: Literal["never", "always"] = "never" if topic in self.kept_out else "always"
        await self._connection.subscribe(topic, 1, retained=kept, number=number)

    async def renew(self, file: MqttFile) -> None:
        """Hear what the file says now; what both versions hear goes on without a gap.

        Raises BrokerError where the connection is lost; a broker that refuses a topic is told of.
        """
        before = self.filters.numbers
        self._set(file)
        await self._remember({*before, *self.filters.numbers})
        for topic, number in self.filters.numbers.items():
            if topic in before:
                continue
            try:
                await self._subscribe(topic, number)
            except BrokerError as error:
                if self._connection.lost is not None:
                    raise
                log.error("%s", error)  # noqa: TRY400 - others go on
        self._connection.unsubscribe_soon(before.keys() - self.filters.numbers.keys())

    @property
    def kept_out(self) -> set[str]:
        """Filters of which what the broker has kept is not wanted."""
        wanted = [each.topic for each in self._named.values() if each.retained == "run"]
        return {
            f
            for f in self.filters.numbers
            if not any(topic_triggers.covers(f, one) for one in wanted)
        }

    # Hearing ----------------------------------------------------------------------------------

    async def handle(self, heard: Sequence[Heard]) -> None:
        """Make jobs of these messages, all in one transaction, where an agent has room offered
        in the same one.
        """
        made: list[tuple[Heard, Job]] = []
        refused: list[tuple[Heard, str, str]] = []
        for message in heard:
            for name, trigger in self._meant(message):
                try:
                    made.append((message, self._job(name, trigger, message)))
                except FlowerPowerError as error:
                    refused.append((message, f"trigger '{name}': ", str(error)))
            if why := self._stray(message):
                refused.append((message, "", why))
        if not heard:
            return
        letters = [hearing.letter(m.topic, where + why, m.payload) for m, where, why in refused]
        jobs = [job for _, job in made]
        now = time.monotonic()
        offers = self._gateway.board.assign([job for job in jobs if job.target], now)
        # Together: what a store joins into one transaction is one, elsewhere the offer may come
        # too early, and the job is offered as any other.
        _, bound, _ = await asyncio.gather(
            self._store.add(jobs),
            self._store.fleet.offer([Offer(o.id, 0, o.agent) for o in offers]),
            self._store.fleet.bury(letters),
        )
        self._gateway.log.buried(letters)
        for job in bound:
            if job is not None:
                self._offering.say(job)
        self._rates.settle()
        for message, _, why in refused:
            self._tell_refused(message, why)
        self._gateway.count("triggers", len(made))
        await self._tell_added(made, {job.id for job in bound if job is not None})

    def _meant(self, message: Heard) -> list[tuple[str, TopicTrigger | Runnable]]:
        """The triggers that a message is for: by name, the built-in one by its pipeline."""
        found: list[tuple[str, TopicTrigger | Runnable]] = []
        numbers = message.subscriptions
        name = self._asked(message)
        if name in self._runnable:
            found.append((name, self._runnable[name]))
        if self._topics.is_ours(message.topic):
            return found  # what a trigger for # hears of us, outcomes too, must not go on and on
        for name, trigger in self._named.items():
            kept = message.retained and trigger.retained == "drop"
            if not kept and self.filters.mean(trigger.topic, message.topic, numbers):
                found.append((name, trigger))
        return found

    def _asked(self, message: Heard) -> str:
        """The pipeline of a built-in topic, whether there is one or not; empty for others."""
        place = self._topics.parsed(message.topic)
        if place is None or place[0] != RUN or len(place) != 2:
            return ""
        ours = self.filters.mean(self._any_run, message.topic, message.subscriptions)
        return place[1] if ours else ""

    def _stray(self, message: Heard) -> str:
        """Say why a message on a built-in topic has no pipeline; empty for others, and for those
        above a rate, which are counted: who may say anything there may fill no disk with it.
        """
        name = self._asked(message)
        if not name or name in self._runnable:
            return ""
        if not self._rates.allows(_STRAY, message):
            self._gateway.count("refused triggers")
            return ""
        if name in self._gateway.flows.names():
            return f"pipeline '{name}' may not be run by a message (conf/mqtt.yml: run.{name})"
        return str(UnknownNameError("pipeline", name, self._runnable))

    def _job(self, name: str, trigger: TopicTrigger | Runnable, message: Heard) -> Job:
        """The row that the message asks for. Raises MessageError and what `add_job` raises."""
        if not self._rates.allows((type(trigger), name), message):
            raise MessageError(f"too many: '{name}' takes {trigger.rate:g} a second")
        if message.retained and isinstance(trigger, Runnable):
            raise MessageError("a retained message runs nothing")
        told = Told(
            message.topic,
            message.payload,
            message.response_topic,
            message.correlation,
            tuple(message.user_properties),
        )
        wanted = self._wanted(name, trigger, told)
        targets.check_single(wanted.options.get("on") or "")
        with tracing.message(name, told.topic, told.user_properties):
            job = orders.job(self._gateway.flows, wanted.pipeline, wanted.options, time.time())
        admission.check(self._gateway.board.admitted, job.target)
        reply_to = told.response_topic
        if reply_to is not None and not self._may_answer(reply_to):
            raise MessageError(f"response topic '{reply_to}': not one that may be answered on")
        return replace(
            job,
            id=wanted.id,
            identity=wanted.unique,
            trigger=RUN if isinstance(trigger, Runnable) else name,
            reply_to=reply_to or self._topics.outcome(wanted.pipeline),
            correlation=told.correlation,
        )

    def _wanted(self, name: str, trigger: TopicTrigger | Runnable, told: Told) -> Wanted:
        if isinstance(trigger, TopicTrigger):
            return topic_triggers.wanted(name, trigger, told)
        request = wire.run_request(told.payload)
        for field in ("inputs", "final_vars", "environment", "key"):
            given = getattr(request, field)
            if given not in (None, UNSET, {}, []) and field not in trigger.overrides:
                raise MessageError(
                    f"'{field}' may not be given (conf/mqtt.yml: run.{name}.overrides)"
                )
        target = request.target
        if target is not None and not any(fnmatch.fnmatchcase(target, p) for p in trigger.targets):
            raise MessageError(
                f"target '{target}' is not allowed (conf/mqtt.yml: run.{name}.targets)"
            )
        chosen = msgspec.structs.replace(request, target=target or trigger.on)
        return topic_triggers.requested(name, chosen, told)

    def _may_answer(self, topic: str) -> bool:
        allowed = None if self._settings is None else self._settings.answers
        return topic_triggers.answerable(self._topics, allowed, self.filters.numbers, topic)

    def _tell_refused(self, message: Heard, why: str) -> None:
        self._gateway.count("refused triggers")
        if message.response_topic and self._may_answer(message.response_topic):
            self._say(message.response_topic, Refused(reason=why), message.correlation)

    async def _tell_added(self, made: Sequence[tuple[Heard, Job]], bound: set[str]) -> None:
        hub = self._gateway.hub
        for message, job in made:
            if message.response_topic:
                body = JobQueued(id=job.id, pipeline=job.pipeline)
                self._say(message.response_topic, body, message.correlation)
            if job.target is None:
                hub.publish(f"work:{job.queue}")
            elif job.id not in bound:
                self._gateway.wake()
            if job.identity:
                await self._answer_again(job)

    async def _answer_again(self, job: Job) -> None:
        """The same message once more: if its job has ended by now, its outcome is told again."""
        row = await self._store.get(job.id)
        if row is not None and row.finished:
            self._queue(replace(row, reply_to=job.reply_to, correlation=job.correlation))

    # Answering --------------------------------------------------------------------------------

    def ended(self, job: Job, report: Report) -> None:
        """A job that was triggered has ended on an agent: answer without reading the row."""
        if job.reply_to is not None and job.replied_at is None:
            changes = rules.reported(job, report, time.time())
            if changes is not None and changes.get("ended_at"):
                self._queue(replace(job, **changes))

    def _queue(self, job: Job) -> None:
        self._to_answer[job.id] = job
        self._answering.set()

    async def run(self) -> None:
        """Answer what has ended, also elsewhere, until the connection is lost."""
        watching = asyncio.create_task(self._watch())
        try:
            while True:
                await self._gateway.patience(self._find)
                try:
                    async with asyncio.timeout(_POLL):
                        await self._answering.wait()
                except TimeoutError:
                    continue
                finally:
                    self._answering.clear()
                await self._answer()
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        """Jobs that workers run end in the store: their wake-ups say so."""
        with self._gateway.hub.listen("job:*") as listener:
            while True:
                await listener.wait()
                await self._gateway.patience(self._find)
                await asyncio.sleep(0.005)  # what ends at the same time is read at once

    async def _find(self) -> None:
        for job in await self._store.fleet.unreplied(_REPLIES):
            if job.id not in self._answered:
                self._to_answer.setdefault(job.id, job)
        if self._to_answer:
            self._answering.set()

    async def _answer(self) -> None:
        """Say the outcomes, then note that they were said: at least once."""
        while self._to_answer:
            batch = [self._to_answer.pop(id) for id in list(self._to_answer)[:_REPLIES]]
            self._answered.update(dict.fromkeys(job.id for job in batch))
            while len(self._answered) > _REMEMBERED:
                del self._answered[next(iter(self._answered))]
            said = await asyncio.gather(*map(self._tell_outcome, batch))
            ids = [job.id for job, done in zip(batch, said, strict=True) if done]
            await self._gateway.patience(lambda: self._store.fleet.replied(ids))  # noqa: B023

    async def _tell_outcome(self, job: Job) -> bool:
        """Whether it needs no further telling."""
        body = wire.encode(outcome(job))
        if len(body) > messages.PACKET_BYTES:
            body = wire.encode(outcome(job, dropped=True))
        try:
            try:
                await self._publish_outcome(job, body)
            except TooLargeError:
                await self._publish_outcome(job, wire.encode(outcome(job, dropped=True)))
        except BrokerError as error:
            if getattr(error, "code", None) is None:
                raise
            log.warning("the broker refuses the outcome of job %s: %s", job.id, error)
        return True

    async def _publish_outcome(self, job: Job, body: bytes) -> None:
        assert job.reply_to is not None
        await self._connection.publish(job.reply_to, body, qos=1, correlation=job.correlation)
        self._connection.publish_soon(self._topics.job(job.id), body, qos=0)

    def _say(self, topic: str, body: Message, correlation: bytes | None) -> None:
        try:
            self._connection.publish_soon(topic, wire.encode(body), qos=1, correlation=correlation)
        except TooLargeError as error:
            log.warning("an answer on '%s': %s", topic, error.why)


def outcome(job: Job, *, dropped: bool = False) -> JobOutcome:
    """What is told of a job that has ended."""
    result, encoded = (UNSET, False) if dropped else _result(job.result)
    return JobOutcome(
        id=job.id,
        pipeline=job.pipeline,
        outcome=job.state,  # type: ignore[arg-type]
        key=topic_triggers.told_key(job.trigger, job.key),
        result=result,
        encoded=encoded,
        dropped=dropped,
        reason=job.reason,
        error=job.failure,
        agent=job.agent,
        attempt=job.attempt,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
    )


class _Plain(msgspec.Struct, forbid_unknown_fields=True):
    """A value that is JSON itself, as `codec` writes it; agents' values were never looked into."""

    v: Literal[1]
    plain: Raw


_plain = msgspec.json.Decoder(_Plain)


def _result(data: bytes | None) -> tuple[Raw | UnsetType, bool]:
    """The result as plain JSON where it is that, else as `codec`'s document."""
    if data is None:
        return UNSET, False
    if data.startswith(_PLAIN):
        with suppress(msgspec.MsgspecError, RecursionError):
            return _plain.decode(data).plain, False
    return wire.to_wire(data), True
