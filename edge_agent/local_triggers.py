"""Topics that run pipelines on the device itself: a sensor needs no network for that."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from edge_agent.config import triggers_address
from edge_agent.unread import Unread
from fp_async import codec, hearing, jobs, link, topic_triggers
from fp_async.errors import FlowerPowerError, MessageError, SessionTakenError
from fp_async.jobs import Job, Letter, Spec, identity
from fp_async.link import Connection, Message
from fp_async.patience import Patience
from fp_async.topic_triggers import Filters, Rates, Told

if TYPE_CHECKING:
    from edge_agent.agent import Agent

log = logging.getLogger("fp_async.agent")
_BATCH = 200
_TAKEN = 60.0


async def listen(agent: Agent) -> None:
    """Hear the topics and make jobs, until cancelled; the broker is connected to for ever."""
    place, listening = triggers_address(agent.settings), Listening(agent)

    def told(error: FlowerPowerError | None) -> None:
        agent.hears = agent.hears and error is None
        agent.problems.note("triggers", str(error or ""), logged=True)

    while True:
        try:
            await link.serve(place, listening.run, told=told)
        except SessionTakenError as error:
            agent.hears = False
            agent.problems.note("triggers", f"another client connects for its triggers: {error}")
            await asyncio.sleep(_TAKEN)


class Listening:
    """Row first, then the acknowledgement."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._triggers = agent.settings.triggers
        self._filters = Filters(each.topic for each in self._triggers.values())
        self._rates = Rates({name: each.rate for name, each in self._triggers.items()})
        self._patience = Patience()
        self._unread = Unread(agent, "letters", "a message made no job (%d so far): %s")

    async def run(self, connection: Connection) -> None:
        """Until the connection is lost."""
        for topic, number in self._filters.numbers.items():
            await connection.subscribe(topic, qos=1, retained="never", number=number)
        if not self._agent.hears:
            log.info("connected to %s", connection.link)
        self._agent.hears = True
        while True:
            heard = await connection.receive(_BATCH)
            await self._patience(lambda: self._handle(heard))  # noqa: B023
            for message in heard:
                connection.acknowledge(message)

    async def _handle(self, heard: Sequence[Message]) -> None:
        agent = self._agent
        new: list[Job] = []
        letters: list[Letter] = []
        for message in heard:
            if agent.settings.topics.is_ours(message.topic):
                continue  # what is told of a job must not begin the next one
            for name, trigger in self._triggers.items():
                kept = message.retained and trigger.retained == "drop"
                if kept or not self._filters.mean(
                    trigger.topic, message.topic, message.subscriptions
                ):
                    continue
                try:
                    new.append(await self._job(name, message))
                except FlowerPowerError as error:
                    why = f"trigger '{name}': {error}"
                    letters.append(hearing.letter(message.topic, why, message.payload))
        agent.backend.hub.publish_here("work:default")
        await agent.rows.born(new)
        if letters:
            await agent.rows.bury(letters)
        for letter in letters:
            self._unread.note(letter.reason)
        self._rates.settle()
        agent.backend.hub.publish_here("work:default")

    async def _job(self, name: str, message: Message) -> Job:
        agent, trigger = self._agent, self._triggers[name]
        if not self._rates.allows(name, message):
            raise MessageError(f"too many: it takes {trigger.rate:g} a second")
        if agent.house.full:
            agent.house.skipped(f"trigger '{name}': {agent.house.full}")
            raise MessageError(agent.house.full)
        if why := agent.refusal(trigger.pipeline, None, strict=False):
            raise MessageError(why)
        told = Told(message.topic, message.payload, None, None, tuple(message.user_properties))
        wanted = topic_triggers.wanted(name, trigger, told)
        options = wanted.options
        spec = Spec(
            final_vars=options.get("final_vars"), environment=options.get("environment", "dev")
        )
        store = agent.identity.store
        if wanted.unique:
            number = json.dumps(options["key"])
        else:  # a store that was restored gives its numbers once more
            number = f"{agent.identity.life} {await agent.rows.next_number()}"
        return Job(
            id=identity(store, "trigger", name, number),
            pipeline=trigger.pipeline,
            run_at=time.time(),
            identity=True,
            trigger=name,
            spec=msgspec.json.encode(spec),
            inputs=codec.encode(options["inputs"], what="input"),
            result_ttl=jobs.RESULT_TTL,
        )
