"""What an agent tells over one connection: outcomes, news of jobs, and all that it holds.

Nothing leaves while no gateway is there. What is not acknowledged in time is told again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from edge_agent import fitting, telling
from fp_async import messages, versions, wire
from fp_async.errors import PublishRefusedError, TooLargeError
from fp_async.events import Listener
from fp_async.jobs import Job, NodeTiming
from fp_async.messages import Finished, Message, Missing, Progress, ResultChunk, Slow, Sync
from fp_async.patience import Patience

if TYPE_CHECKING:
    from edge_agent.agent import Agent
    from fp_async.link import Connection

TOGETHER = 0.01  # seconds that small news wait for more of it
_DENIED = 60.0
_SYNC_EVERY = 900.0
_BATCH = 200
_SLOWEST = 3_600.0
_TOO_LARGE = 0x95  # reason code "packet too large" of MQTT 5


class Reporter:
    """The telling half of a session; `gateway` is set while one is there to hear it."""

    def __init__(self, agent: Agent, connection: Connection, gateway: asyncio.Event) -> None:
        self._sync_at = 0.0  # when all that is held is said next; 0 for not yet
        self._agent = agent
        self._connection = connection
        self._gateway = gateway
        self._topic = agent.settings.topics.agent(agent.settings.name, "report")
        self._patience = Patience()
        self._chunks = True  # until the broker refuses one as too large
        self._slow_until = 0.0
        self._seen: dict[str, tuple[int, int]] = {}  # nodes and characters of log told of a job

    def sync_within(self, seconds: float) -> None:
        """Say all that is held, so much later at most."""
        self._sync_at = min(self._sync_at or float("inf"), time.monotonic() + seconds)
        self._agent.noticed.set()

    def slow_down(self, asked: Slow) -> None:
        """Wait with all, or keep some outcomes here, as the gateway asks."""
        outbox, until = self._agent.outbox, time.monotonic() + min(asked.seconds, _SLOWEST)
        if asked.ids:
            outbox.hold(asked.ids, until)
            text = f"{outbox.held} outcomes stay here: {asked.reason}"
            self._agent.problems.note("outcomes", text)
        else:
            outbox.again()
            self._slow_until = until
        self._agent.noticed.set()

    async def send_chunks(self, asked: Missing) -> None:
        """Tell parts of a result again that the gateway has not got."""
        for row in await self._agent.rows.ended([asked.id]):
            *parts, last = self._finished(row)
            chosen = [parts[i] for i in sorted(set(asked.chunks)) if i < len(parts)]
            await self._publish([*chosen, last])

    async def tell(self) -> None:
        """Tell what is new, and what waits; nothing leaves while no gateway is there."""
        agent, outbox = self._agent, self._agent.outbox
        with agent.backend.hub.listen("job:*") as listener:
            hearing = asyncio.create_task(self._hear_jobs(listener))
            try:
                while True:
                    await self._gateway.wait()
                    await self._until_news()
                    agent.noticed.clear()
                    outbox.overdue(time.monotonic())
                    if not self._gateway.is_set():
                        continue
                    if (left := self._slow_until - time.monotonic()) > 0:
                        await asyncio.sleep(left)
                        continue
                    await self._tell_once()
            finally:
                hearing.cancel()

    async def _tell_once(self) -> None:
        """One round: small news, then outcomes, so that an outcome is never overtaken."""
        agent = self._agent
        if self._sync_at and time.monotonic() >= self._sync_at:
            self._sync_at = time.monotonic() + _SYNC_EVERY
            await self._sync()
        ended = await self._ended_by_this_clock()
        over = {row.id for row in ended}
        said: list[Message] = [
            each for each in agent.take_notices() if getattr(each, "id", None) not in over
        ]
        for row in ended:
            said += self._finished(row)
            agent.outbox.told(row.id, time.monotonic())
            self._seen.pop(row.id, None)
        await self._publish(said)

    def _finished(self, row: Job) -> list[Message]:
        """How it ended, in parts where the broker takes them."""
        *parts, last = telling.finished(row, self._version(row))
        assert isinstance(last, Finished)
        return [telling.shrunk(last)] if parts and not self._chunks else [*parts, last]

    async def _ended_by_this_clock(self) -> list[Job]:
        """Outcomes to tell now; read again when the clock was set meanwhile, since what is told of
        a time is its distance from now.
        """
        house = self._agent.house
        steps = house.clock_steps
        rows = await self._ended()
        await house.look_at_clock()
        while steps != house.clock_steps:
            steps = house.clock_steps
            rows = await self._patience(partial(self._agent.rows.ended, [row.id for row in rows]))
            await house.look_at_clock()
        return rows

    async def _ended(self) -> list[Job]:
        """Outcomes to tell now: new ones, and as many old ones as have room beside them."""
        agent, outbox = self._agent, self._agent.outbox
        ids = outbox.take_live()
        rows = await self._patience(lambda: agent.rows.ended(ids)) if ids else []
        room = min(outbox.room(live=False), _BATCH)
        if outbox.backlog and room > 0:
            known = outbox.under_way | {row.id for row in rows}
            old = await self._patience(lambda: agent.rows.untold(room, known))
            outbox.backlog = bool(old)
            rows += old
        return rows

    def _version(self, row: Job) -> str | None:
        return versions.recent(self._agent.root, row.pipeline) if row.rules.version else None

    async def _publish(self, said: Sequence[Message]) -> None:
        """Tell it in as few messages as they fit into, and wait until the broker has them."""
        for payload in wire.batches(said):
            try:
                await self._connection.publish(self._topic, payload, qos=1)
            except PublishRefusedError as error:
                await self._denied(error, payload)

    async def _denied(self, error: PublishRefusedError, payload: bytes) -> None:
        """The broker does not want it: without its value if that is too large, else later."""
        agent, said = self._agent, [m for m in wire.reports(payload) if isinstance(m, Message)]
        agent.problems.note("reports", f"the broker refuses reports: {error}")
        if error.code == _TOO_LARGE and len(said) > 1:
            for each in said:
                await self._publish([each])
            return
        if error.code == _TOO_LARGE:
            self._chunks &= not isinstance(said[0], ResultChunk)
            small = [telling.shrunk(m) for m in said if isinstance(m, Finished)]
            if small and small != said:
                await self._publish(small)
            return
        await asyncio.sleep(_DENIED)
        agent.outbox.backlog = True

    async def _hear_jobs(self, listener: Listener) -> None:
        """What happens to jobs here: most of it is an outcome, or progress of what runs."""
        agent = self._agent
        while True:
            topics = await listener.wait()
            ids = [topic.removeprefix("job:") for topic in topics if topic != "*"]
            if "*" in topics:
                agent.outbox.backlog = True
            running = [id for id in ids if agent.worker.trail(id) is not None]
            agent.outbox.ended(id for id in ids if id not in running)
            for id in running:
                self._progress(id)
            agent.noticed.set()

    def _progress(self, id: str) -> None:
        """Tell what a running job has done since: at QoS 0, for whoever watches."""
        agent = self._agent
        trail, offer = agent.worker.trail(id), agent.worker.offer(id)
        if trail is None or offer is None or not self._gateway.is_set():
            return
        nodes, log_size = self._seen.get(id, (0, 0))
        new: list[NodeTiming] = trail.nodes[nodes:]
        text = trail.log
        more = text[log_size:] if len(text) >= log_size else text
        if not new and not more:
            return
        self._seen[id] = len(trail.nodes), len(text)
        body = fitting.progress(Progress(id=id, attempt=offer, nodes=new, log=more))
        with contextlib.suppress(TooLargeError):  # it may be lost
            self._connection.publish_soon(self._topic, wire.encode(body))

    async def _until_news(self) -> None:
        """Return at once for an outcome, a little later for less."""
        agent, outbox = self._agent, self._agent.outbox
        if outbox.waits:
            return
        now = time.monotonic()
        times = [t for t in (outbox.next_due(), self._sync_at or None) if t is not None]
        left = max(min(times, default=now + _SYNC_EVERY) - now, 0.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await agent.noticed.wait()
                agent.noticed.clear()
                if not outbox.waits:
                    await _soon(agent.noticed, TOGETHER)

    async def _sync(self) -> None:
        """Say all that is not acknowledged, and the schedules, in pages."""
        agent = self._agent
        held = await self._patience(agent.rows.holdings)
        known = [(h.id, h.offer, h.state) for h in held if h.offer is not None]
        size = messages.page(self._connection.largest, messages.HELD_BYTES)
        pages = [known[i : i + size] for i in range(0, len(known), size)] or [[]]
        rows = await self._patience(agent.store.schedules)
        revisions = {row.id: rev for row in rows if (rev := _revision(row.origin)) is not None}
        for number, page in enumerate(pages):
            body = Sync(
                page=number,
                pages=len(pages),
                jobs=page,
                schedules=revisions if number == 0 else None,
            )
            await self._connection.publish(self._topic, wire.encode(body), qos=1)


async def _soon(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _revision(origin: str) -> int | None:
    """The center's revision of a schedule that came from there."""
    kind, _, number = origin.partition("#")
    return int(number) if kind == "center" and number.isdigit() else None
