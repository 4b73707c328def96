"""Some thousand simulated agents in one process: each has a connection of its own.

They speak the protocol as an agent does (retained state with a will, Sync, heartbeats, reports
until they are acknowledged, full-jitter backoff), keep no store, and "run" a job at once. Asked on
stdin for a `status`, the process answers with a line of JSON.

    python swarm.py <port> <first number> <count> <source address>
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
import uuid
from typing import Any

from mqtt5 import Client
from places import more_files

from fp_async import messages, wire
from fp_async.link import pause
from fp_async.messages import (
    Accepted,
    Acknowledge,
    AgentState,
    AskSync,
    Finished,
    Heartbeat,
    Ping,
    Pong,
    RunJob,
    Started,
    Sync,
)
from fp_async.topics import Topics

TOPICS = Topics()
BOOT = uuid.uuid4().hex
HEARTBEAT, LONGEST, STEADY, BIRTH_JITTER = 30.0, 60.0, 5.0, 30.0
REPEAT = 5.0
RESULT = wire.to_wire(b'{"v":1,"plain":{"done":1}}')
ROOM = 256  # connects at once in a process: what a listen queue holds


class Simulated:
    """One agent without a store."""

    def __init__(self, swarm: Swarm, number: int) -> None:
        self.swarm, self.name = swarm, f"s{number}"
        self.store, self.n = uuid.uuid4().hex, 0
        self.back_at = 0.0  # when its state was last acknowledged, monotonic
        self.done = 0
        self.untold: dict[str, tuple[float, Finished]] = {}
        self.online = False
        self.client: Client | None = None
        self._timers: list[asyncio.TimerHandle] = []

    async def run(self) -> None:
        """Connect for ever, as `link.serve` does."""
        failures = 0
        while True:
            began = time.monotonic()
            try:
                async with self.swarm.room:
                    self.client = client = await Client.connect(
                        self.swarm.address, self.name, self._hear, self._will()
                    )
                    await self._appear(client)
                await client.lost
            except (OSError, TimeoutError):
                began = time.monotonic()
            self._gone()
            failures = 0 if time.monotonic() - began > STEADY else failures
            await asyncio.sleep(pause(failures, LONGEST))
            failures += 1

    def _will(self) -> tuple[str, bytes]:
        return TOPICS.agent(self.name, "state"), self._state("lost", self.n + 1)

    async def _appear(self, client: Client) -> None:
        self.n += 1
        for topic in ("do", "state"):
            await client.subscribe(TOPICS.agent(self.name, topic))  # type: ignore[arg-type]
        await client.subscribe(TOPICS.gateway)
        state = self._state("ready", self.n)
        await client.publish(TOPICS.agent(self.name, "state"), state, retain=True)
        self.back_at = time.monotonic()
        self._beat(random.uniform(0.0, HEARTBEAT))

    def _state(self, status: Any, n: int) -> bytes:
        said = AgentState(status=status, store=self.store, starts=1, n=n, boot=BOOT)
        clock, pipelines = time.time(), {"noop": "simulated"}
        return wire.encode(messages.msgspec.structs.replace(said, clock=clock, pipelines=pipelines))

    def _gone(self) -> None:
        self.back_at, self.online, self.client = 0.0, False, None
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    # Hearing and telling ----------------------------------------------------------------------

    def _hear(self, topic: str, payload: bytes, retained: bool) -> None:
        if topic.endswith("/do"):
            self._do(wire.do(payload))
        elif topic == TOPICS.gateway:
            online = wire.gateway_state(payload).online
            if online and not self.online:
                self._later(0.0 if retained else random.uniform(0.0, BIRTH_JITTER), self._sync)
            self.online = online
            if online:
                self._repeat()

    def _do(self, asked: messages.Do) -> None:
        now = time.time()
        if isinstance(asked, RunJob):
            if asked.id not in self.untold:
                self.done += 1
            which = {"id": asked.id, "attempt": asked.attempt}
            ended = Finished(**which, outcome="succeeded", ended_at=now, sent_at=now, result=RESULT)
            self.untold[asked.id] = (time.monotonic(), ended)
            self._tell(Accepted(**which), Started(**which, at=now, sent_at=now), ended)
            self._later(REPEAT, self._repeat)
        elif isinstance(asked, Acknowledge):
            for id in asked.ids:
                self.untold.pop(id, None)
        elif isinstance(asked, AskSync):
            self._sync()
        elif isinstance(asked, Ping):
            self._tell(Pong(nonce=asked.nonce, clock=now))

    def _repeat(self) -> None:
        late = time.monotonic() - 0.9 * REPEAT
        if self.online and (told := [body for at, body in self.untold.values() if at < late]):
            self._tell(*told)
            self._later(REPEAT, self._repeat)

    def _sync(self) -> None:
        jobs = [(id, body.attempt, "succeeded") for id, (_, body) in self.untold.items()]
        self._tell(Sync(page=0, pages=1, jobs=jobs, schedules={}))

    def _beat(self, first: float) -> None:
        def beat() -> None:
            if self.online and self.client is not None:
                body = Heartbeat(free=1, clock=time.time(), disk_free=2**33)
                self.client.publish_soon(TOPICS.agent(self.name, "report"), wire.encode(body), 0)
            self._later(HEARTBEAT, beat)

        self._later(first, beat)

    def _tell(self, *said: messages.Message) -> None:
        if self.client is not None:
            for payload in wire.batches(said):
                self.client.publish_soon(TOPICS.agent(self.name, "report"), payload, 1)

    def _later(self, seconds: float, work: Any) -> None:
        now = asyncio.get_running_loop().time()
        self._timers = [timer for timer in self._timers if timer.when() > now]
        self._timers.append(asyncio.get_running_loop().call_later(seconds, work))


class Swarm:
    """All of this process."""

    def __init__(self, port: int, first: int, count: int, source: str) -> None:
        self.address = (port, source)
        self.room = asyncio.Semaphore(ROOM)
        self.agents = [Simulated(self, number) for number in range(first, first + count)]

    async def run(self) -> None:
        """Until stdin is closed."""
        tasks = [asyncio.create_task(agent.run()) for agent in self.agents]
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while await reader.readline():
            print(json.dumps(self.status()), flush=True)
        for task in tasks:
            task.cancel()

    def status(self) -> dict[str, Any]:
        return {
            "back": sorted(agent.back_at for agent in self.agents if agent.back_at),
            "done": sum(agent.done for agent in self.agents),
            "untold": sum(len(agent.untold) for agent in self.agents),
        }


async def main() -> None:
    port, first, count, source = sys.argv[1:]
    more_files()
    await Swarm(int(port), int(first), int(count), source).run()


if __name__ == "__main__":
    asyncio.run(main())
