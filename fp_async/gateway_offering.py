"""What the gateway says to agents: offers, their repetition, cancels."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fp_async import messages, wire
from fp_async.board import BOUND, Open
from fp_async.errors import TooLargeError
from fp_async.gateway_schedules import kept_elsewhere
from fp_async.hearing import plain
from fp_async.jobs import UNREADABLE, Job, Offer, Report

if TYPE_CHECKING:
    from fp_async.gateway import Gateway
    from fp_async.link import Connection

log = logging.getLogger("fp_async.gateway")
_POLL = 5.0
_OFFERS = 1000
_RECHECK = 60.0
_UNREADABLE = "its rules cannot be read by this release"


class Offering:
    """The sending half of one connection. An offer is a row before it is a message."""

    def __init__(self, gateway: Gateway, connection: Connection) -> None:
        self._gateway = gateway
        self._connection = connection
        self._store = gateway.store
        self._board = gateway.board
        self._patience = gateway.patience
        self._hub = gateway.hub
        self._topics = gateway.topics
        self._unsayable: list[Report] = []  # offers that the broker does not take

    async def dispatch(self) -> None:
        """Offer what is due to whoever has room."""
        with self._hub.listen("on:*", "agents", "cancel:*") as listener:
            hearing = asyncio.create_task(self._hear(listener.wait))
            try:
                while True:
                    self._gateway.news.clear()
                    await self._refuse_unsayable()
                    wanted = await self._patience(self._store.fleet.wanted)
                    while await self._offer_some(wanted):
                        pass
                    await self._until(min(wanted.values(), default=None))
            finally:
                hearing.cancel()

    async def _hear(self, wait: Callable[[], Any]) -> None:
        while True:
            topics = await wait()
            if "agents" in topics or "*" in topics:
                await self._patience(self._gateway.load)
            self._gateway.wake()

    async def _until(self, due: float | None) -> None:
        """Until something is to be offered, or a while has passed."""
        left = _POLL
        if due is not None:
            wait = due - await self._patience(self._store.now)
            left = min(left, wait + 0.001) if wait > 0 else left
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._gateway.news.wait()

    async def _offer_some(self, wanted: dict[str, float]) -> bool:
        """Offer a batch; whether there may be more."""
        wall = await self._patience(self._store.now)
        targets = self._board.servable(wanted, wall, time.monotonic())
        if not targets:
            return False
        room = self._board.room(targets, _OFFERS, time.monotonic())
        jobs, offers = await self._assigned(targets, room)
        if len(offers) < room == len(jobs):  # some of them nobody may have now
            jobs, offers = await self._assigned(targets, _OFFERS + self._board.refused())
        bound = await self._patience(lambda: self._store.fleet.offer(offers)) if offers else []
        for job in bound:
            if job is not None:
                self.say(job)
        return bool(offers) and len(jobs) >= room

    async def _assigned(self, targets: list[str], limit: int) -> tuple[list[Job], list[Offer]]:
        """The next jobs for these targets, as many as there is room for, and who gets which."""
        jobs = await self._patience(lambda: self._store.fleet.waiting(targets, limit))
        fit: list[Job] = []
        for job in jobs:
            if job.rules is UNREADABLE:
                await self._patience(lambda: self._store.cancel(job.id, _UNREADABLE))  # noqa: B023
            else:
                fit.append(job)
        return jobs, self._board.assign(fit, time.monotonic())

    def say(self, job: Job) -> None:
        """Publish an offer that is in the store; it is repeated until it is answered."""
        self._board.bind(job, time.monotonic(), chance=random.random())
        self._gateway.count("offers")
        self._publish_offer(job)

    def _publish_offer(self, job: Job) -> None:
        assert job.agent is not None
        text = "job %s of '%s' is offered to agent '%s', attempt %d"
        log.debug(text, job.id, job.pipeline, job.agent, job.attempt, extra={"job": job.id})
        left = None
        if job.expires_at is not None and job.started_at is None:
            left = max(job.expires_at - time.time(), 0.0)
        body = messages.RunJob(
            id=job.id,
            attempt=job.attempt,
            pipeline=job.pipeline,
            inputs=wire.to_wire(job.inputs),
            spec=plain(job.rules),
            priority=job.priority,
            expires_in=left,
            result_ttl=job.result_ttl,
        )
        expiry = 60 if left is None else max(min(60, int(left) + 1), 1)
        topic = self._topics.agent(job.agent, "do")
        try:
            self._connection.publish_soon(topic, wire.encode(body), qos=1, expiry=expiry)
        except TooLargeError as error:
            self._unsayable.append(
                Report(id=job.id, attempt=job.attempt, event="refuse", reason=error.why)
            )
            self._gateway.wake()

    async def _refuse_unsayable(self) -> None:
        """Reject what no agent can be told: the next try would end as this one did."""
        reports, self._unsayable = self._unsayable, []
        for report in reports:
            log.warning("job %s: %s", report.id, report.reason, extra={"job": report.id})
        await self._patience(lambda: self._gateway.end(reports))

    async def repeat(self) -> None:
        """Say again what was not answered."""
        while True:
            await self._gateway.clear_forgotten(self._connection)
            now = time.monotonic()
            while self._gateway.readmitted:
                body = messages.AskSync(state=True)
                self._ask(self._gateway.readmitted.pop(), wire.encode(body))
            for each in self._board.repeats(now, random.random()):
                await self._patience(lambda: self._say_again(each))  # noqa: B023
            after = self._board.next_repeat()
            await asyncio.sleep(min(max((after or now + 1.0) - now, 0.02), 1.0))

    async def _say_again(self, each: Open) -> None:
        job = await self._store.get(each.job.id)
        if job is None or job.state not in BOUND or job.attempt != each.job.attempt:
            self._board.release(each.job.id)
            self._gateway.wake()
            return
        if job.cancel_at is not None:
            self._publish_cancel(job)
        if not each.answered:
            self._gateway.count("repeats")
            self._publish_offer(job)

    # Schedules --------------------------------------------------------------------------------

    async def schedules(self) -> None:
        """Ask agents what schedules they keep, when one that agents keep was changed."""
        with self._hub.listen("schedules") as listener:
            seen = await self._patience(lambda: kept_elsewhere(self._store))
            while True:
                await listener.wait(_RECHECK)
                now = await self._patience(lambda: kept_elsewhere(self._store))
                if now != seen:
                    seen = now
                    self._gateway.kept.changed()
                    self._ask_everybody()

    def _ask_everybody(self) -> None:
        body = wire.encode(messages.AskSync())
        for name, known in self._board.agents.items():
            if known.away_since is None:
                self._ask(name, body)

    def _ask(self, name: str, body: bytes) -> None:
        self._connection.publish_soon(self._topics.agent(name, "do"), body, qos=1, expiry=60)

    # Cancels ----------------------------------------------------------------------------------

    async def cancels(self) -> None:
        """Tell agents at once what somebody wants cancelled."""
        with self._hub.listen("cancel:*") as listener:
            while True:
                for topic in await listener.wait():
                    id = topic.removeprefix("cancel:")
                    if id in self._board.open:
                        await self._patience(lambda: self._cancel(id))  # noqa: B023

    async def _cancel(self, id: str) -> None:
        job = await self._store.get(id)
        if job is not None and job.cancel_at is not None and job.state in BOUND:
            self._board.cancel(id, job, time.monotonic())
            self._publish_cancel(job)

    def _publish_cancel(self, job: Job) -> None:
        assert job.agent is not None
        body = messages.CancelJob(id=job.id, attempt=job.attempt, reason=job.reason)
        topic = self._topics.agent(job.agent, "do")
        self._connection.publish_soon(topic, wire.encode(body), qos=1, expiry=60)
