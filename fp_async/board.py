"""What the gateway has in mind: agents, the jobs bound to them, and what to say when. Pure.

All of it can be made anew from the store at any time. Clocks are passed in: `now` is monotonic.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping

import msgspec

from fp_async import presence
from fp_async.jobs import Job, Offer
from fp_async.presence import Known

_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0
_TARGETS = 100  # of which is remembered who is meant
BOUND = ("offered", "accepted", "running")


class Open(msgspec.Struct):
    """A job that an agent has, or is about to get. `pause` seconds until it is said again."""

    job: Job
    agent: str
    pause: float = _FIRST_PAUSE
    answered: bool = False
    cancelling: bool = False


class Board:
    """Who is there, who has what, who has room."""

    def __init__(self) -> None:
        self.agents: dict[str, Known] = {}
        self.drained: set[str] = set()
        self.open: dict[str, Open] = {}
        self._of: defaultdict[str, set[str]] = defaultdict(set)
        self._due: list[tuple[float, str, int]] = []
        self._avoid: dict[tuple[str, str], float] = {}
        self._refused: defaultdict[str, set[str]] = defaultdict(set)
        self._candidates: dict[str, list[str]] = {}  # by target, until tags change

    def __repr__(self) -> str:
        return f"<Board {len(self.agents)} agents, {len(self.open)} open jobs>"

    def know(self, name: str, known: Known) -> None:
        """What is believed of an agent from now on."""
        before = self.agents.get(name)
        self.agents[name] = known
        if before is None or before.state.tags != known.state.tags:
            self._candidates.clear()

    # Jobs -------------------------------------------------------------------------------------

    def bind(self, job: Job, now: float, *, chance: float) -> None:
        """An agent has been offered it, or has it; unanswered offers are said again."""
        assert job.agent is not None
        self.release(job.id)
        each = Open(job, job.agent, answered=job.state != "offered")
        each.cancelling = job.cancel_at is not None
        self.open[job.id] = each
        self._of[job.agent].add(job.id)
        if not each.answered or each.cancelling:
            self._later(each, now, chance)

    def release(self, id: str) -> Open | None:
        """No agent has it any more."""
        each = self.open.pop(id, None)
        if each is not None:
            self._of[each.agent].discard(id)
        return each

    def of(self, agent: str) -> list[Open]:
        """What an agent has."""
        return [self.open[id] for id in self._of.get(agent, ())]

    def forget(self, id: str) -> None:
        """The job has ended: who did not want it matters no more."""
        self.release(id)
        self._refused.pop(id, None)

    def answered(self, id: str, job: Job) -> None:
        """The agent has it: the offer need not be said again."""
        each = self.open.get(id)
        if each is not None:
            each.job, each.answered = job, True

    def cancel(self, id: str, job: Job, now: float) -> Open | None:
        """Somebody wants it cancelled; None where no agent has it, or it was asked before."""
        each = self.open.get(id)
        if each is None or each.cancelling:
            return None
        each.job, each.cancelling, each.pause = job, True, _FIRST_PAUSE
        heapq.heappush(self._due, (now + each.pause, id, job.attempt))
        return each

    def hurry(self, ids: Iterable[str], now: float) -> None:
        """Say it again at once: whoever should have heard it has just come back."""
        for id in ids:
            each = self.open.get(id)
            if each is not None:
                each.pause = _FIRST_PAUSE
                each.answered = False
                heapq.heappush(self._due, (now, id, each.job.attempt))

    def _later(self, each: Open, now: float, chance: float) -> None:
        pause = each.pause * (0.75 + 0.5 * chance)
        heapq.heappush(self._due, (now + pause, each.job.id, each.job.attempt))
        each.pause = min(2.0 * each.pause, _LONGEST_PAUSE)

    def repeats(self, now: float, chance: float) -> list[Open]:
        """What to say again now; each is due once more, later."""
        found: dict[str, Open] = {}
        while self._due and self._due[0][0] <= now:
            _, id, attempt = heapq.heappop(self._due)
            each = self.open.get(id)
            if each is None or each.job.attempt != attempt or id in found:
                continue
            if not each.answered or each.cancelling:
                found[id] = each
        for each in found.values():
            self._later(each, now, chance)
        return list(found.values())

    def next_repeat(self) -> float | None:
        """When something may have to be said again."""
        return self._due[0][0] if self._due else None

    # Offers -----------------------------------------------------------------------------------

    def credit(self, name: str) -> int:
        """How many more jobs an agent may get."""
        known = self.agents.get(name)
        if known is None or name in self.drained or not presence.may_work(known):
            return 0
        return max(known.state.window - len(self._of.get(name, ())), 0)

    def spare(self, name: str) -> int:
        """As `credit`, for jobs that could as well go to another agent: these do not queue up."""
        known = self.agents.get(name)
        if known is None:
            return 0
        return max(min(self.credit(name), 2 * known.state.slots - len(self._of.get(name, ()))), 0)

    def avoid(self, id: str, agent: str, until: float | None) -> None:
        """Do not offer it to this agent: until then, or (None) ever again."""
        if until is None:
            self._refused[id].add(agent)
        else:
            self._avoid[id, agent] = until

    def candidates(self, target: str) -> list[str]:
        """Agents that are meant by a target, whether they are there or not."""
        if target not in self._candidates:
            if len(self._candidates) >= _TARGETS:
                self._candidates.clear()
            self._candidates[target] = [
                name
                for name, known in self.agents.items()
                if presence.matches(target, name, known.state.tags)
            ]
        return self._candidates[target]

    def nobody_left(self, job: Job) -> bool:
        """Whether every agent that is meant has refused the job."""
        target = job.target or ""
        meant = self.candidates(target)
        return bool(meant) and self._refused[job.id].issuperset(meant)

    def servable(self, wanted: Mapping[str, float], wall: float) -> list[str]:
        """Those targets of due jobs that somebody could take now."""
        return [
            target
            for target, due in wanted.items()
            if due <= wall and any(self._room(name, target) for name in self._meant(target))
        ]

    def room(self, targets: Iterable[str], most: int) -> int:
        """How many jobs for these targets could be offered now, counted up to `most`."""
        total = 0
        for target in targets:
            for name in self._meant(target):
                total += self._room(name, target)
                if total >= most:
                    return most
        return total

    def assign(self, jobs: Iterable[Job], now: float) -> list[Offer]:
        """To whom each job is offered: the agent with most room, in the order of the jobs."""
        given: defaultdict[str, int] = defaultdict(int)
        pools: dict[str, list[tuple[int, int, str]]] = {}
        offers: list[Offer] = []
        for job in jobs:
            target = job.target or ""
            if target not in pools:
                pools[target] = self._pool(target)
            best = self._best(job, pools[target], given, now)
            if best is not None:
                given[best] += 1
                offers.append(Offer(job.id, job.attempt, best))
        return offers

    def _pool(self, target: str) -> list[tuple[int, int, str]]:
        """A heap of those who have room, the one with most on top."""
        rooms = ((self._room(name, target), name) for name in self._meant(target))
        pool = [(-room, place, name) for place, (room, name) in enumerate(rooms) if room > 0]
        heapq.heapify(pool)
        return pool

    def _best(
        self, job: Job, pool: list[tuple[int, int, str]], given: Mapping[str, int], now: float
    ) -> str | None:
        """Who gets the job. What a heap says is corrected when it comes to the top."""
        target, passed, best = job.target or "", [], None
        while pool and best is None:
            room, place, name = heapq.heappop(pool)
            left = self._room(name, target) - given.get(name, 0)
            if left <= 0:
                continue
            if left < -room:
                heapq.heappush(pool, (-left, place, name))
                continue
            passed.append((room, place, name))
            if self._may_have(job.id, name, now):
                best = name
        for each in passed:
            heapq.heappush(pool, each)
        return best

    def _meant(self, target: str) -> list[str]:
        kind, _, rest = target.partition(":")
        if kind == "agent":
            return [rest] if rest in self.agents else []
        return self.candidates(target)

    def _room(self, name: str, target: str) -> int:
        return self.spare(name) if target.startswith("any:") else self.credit(name)

    def _may_have(self, id: str, name: str, now: float) -> bool:
        if name in self._refused.get(id, ()):
            return False
        until = self._avoid.get((id, name))
        if until is not None and until <= now:
            del self._avoid[id, name]
            return True
        return until is None


def lost(each: Open, known: Known | None, wall: float, lost_after: float) -> str | None:
    """What becomes of a job whose agent stays away: "reassign", "fail"; None for waiting on."""
    if known is None or known.away_since is None:
        return None
    rules = each.job.rules
    any_ = (each.job.target or "").startswith("any:")
    policy = rules.on_lost or ("reassign" if any_ else "wait")
    if policy == "wait" or wall - known.away_since < (rules.lost_after or lost_after):
        return None
    return policy if policy == "fail" or any_ else None
