"""What the gateway has in mind: agents, the jobs bound to them, and what to say when. Pure.

All of it can be made anew from the store at any time. Clocks are passed in: `now` is monotonic,
`wall` epoch seconds; `chance` in [0, 1) spreads what would otherwise be said at one moment.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping

import msgspec
from msgspec.structs import replace

from fp_async import admission, presence
from fp_async.admission import Admitted
from fp_async.jobs import Job, Offer, OnLost
from fp_async.presence import Known

_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0
_REFUSED_FOR = 3600.0  # a job that nobody has told the end of must not be remembered for ever
_LOOKED_AT = 32  # agents with room that are compared: among thousands any of them will do
_GOLDEN = 0.6180339887498949
_LIGHT_BYTES = 1024  # of inputs: more is read again from the store when it is said again
BOUND = ("offered", "accepted", "running")
_Ring = OrderedDict[str, None]  # agents in the order in which they are asked


class Open(msgspec.Struct):
    """A job that an agent has, or is about to get. It is said again at `due` (0 for never),
    `pause` seconds after that once more.
    """

    job: Job
    agent: str
    pause: float = _FIRST_PAUSE
    due: float = 0.0
    answered: bool = False
    cancelling: bool = False


class Board:
    """Who is there, who has what, who has room."""

    def __init__(self) -> None:
        self.agents: dict[str, Known] = {}
        self.open: dict[str, Open] = {}
        self._drained: set[str] = set()
        self._admitted: Admitted = {}
        self._of: defaultdict[str, set[str]] = defaultdict(set)
        self._due: list[tuple[float, str]] = []
        self._paused: dict[str, float] = {}
        self._refused: dict[str, set[str]] = {}
        self._refusals: deque[tuple[float, str]] = deque()
        self._roomy: _Ring = OrderedDict()  # all that may have room, and some that have none
        self._bearing: dict[tuple[str, str | None], _Ring] = {}  # agents by tag and value

    def __repr__(self) -> str:
        return f"<Board {len(self.agents)} agents, {len(self.open)} open jobs>"

    # Agents -----------------------------------------------------------------------------------

    def believe(self, name: str, known: Known) -> None:
        """What is known of an agent from now on."""
        before = self.agents.get(name)
        self.agents[name] = known
        if before is None or before.state.tags != known.state.tags:
            self._index(name, before, known)
        if before is None or _connection(before) != _connection(known):
            self._paused.pop(name, None)  # it has come anew
        if before is not None and _abilities(before) != _abilities(known):
            for refused in self._refused.values():
                refused.discard(name)
        self._roomy.setdefault(name)

    def _index(self, name: str, before: Known | None, known: Known) -> None:
        for term in _terms(before):
            self._unindex(name, term)
        for term in _terms(known):
            self._bearing.setdefault(term, OrderedDict())[name] = None

    def _unindex(self, name: str, term: tuple[str, str | None]) -> None:
        ring = self._bearing[term]
        del ring[name]
        if not ring:
            del self._bearing[term]

    def drop(self, name: str) -> None:
        """Nothing is known of an agent any more, nor of what it has."""
        before = self.agents.pop(name, None)
        for each in self.of(name):
            self.release(each.job.id)
        for term in _terms(before):
            self._unindex(name, term)
        self._roomy.pop(name, None)
        self._paused.pop(name, None)

    @property
    def drained(self) -> set[str]:
        """Agents that somebody wants to get nothing."""
        return self._drained

    @drained.setter
    def drained(self, names: set[str]) -> None:
        for name in self._drained - names:
            self._roomy.setdefault(name)
        self._drained = names

    @property
    def admitted(self) -> Admitted:
        """The agents of the fleet; none where each one that speaks belongs to it."""
        return self._admitted

    @admitted.setter
    def admitted(self, agents: Admitted) -> None:
        if agents != self._admitted:
            self._admitted = agents
            self._roomy.update(dict.fromkeys(self.agents))

    # Jobs -------------------------------------------------------------------------------------

    def bind(self, job: Job, now: float, *, chance: float) -> None:
        """An agent has been offered it, or has it; unanswered offers are said again."""
        assert job.agent is not None
        self.release(job.id)
        each = Open(_light(job), job.agent, answered=job.state != "offered")
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
            if not self._of[each.agent]:
                del self._of[each.agent]
            self._roomy.setdefault(each.agent)
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
        each.job, each.cancelling, each.pause = _light(job), True, _FIRST_PAUSE
        self._push(each, now + each.pause)
        return each

    # Saying it again --------------------------------------------------------------------------

    def hurry(self, ids: Iterable[str], now: float) -> None:
        """Say it again at once: whoever should have heard it has just come back."""
        for id in ids:
            each = self.open.get(id)
            if each is not None:
                each.pause, each.answered = _FIRST_PAUSE, False
                self._push(each, now)

    def _later(self, each: Open, now: float, chance: float) -> None:
        self._push(each, now + each.pause * (0.75 + 0.5 * chance))
        each.pause = min(2.0 * each.pause, _LONGEST_PAUSE)

    def _push(self, each: Open, due: float) -> None:
        """It is due then, and no more when it was due before."""
        each.due = due
        heapq.heappush(self._due, (due, each.job.id))
        if len(self._due) > 2 * len(self.open) + 1000:  # most of them are of jobs long gone
            self._due = [(e.due, id) for id, e in self.open.items() if e.due]
            heapq.heapify(self._due)

    def repeats(self, now: float, chance: float) -> list[Open]:
        """What to say again now; each is due once more, later."""
        found: list[Open] = []
        while self._due and self._due[0][0] <= now:
            due, id = heapq.heappop(self._due)
            each = self.open.get(id)
            if each is None or each.due != due:
                continue
            each.due = 0.0
            if not each.answered or each.cancelling:
                found.append(each)
        for number, each in enumerate(found):
            self._later(each, now, (chance + number * _GOLDEN) % 1.0)
        return [each for each in found if each.cancelling or not self._doubtful(each.agent)]

    def _doubtful(self, agent: str) -> bool:
        """Whether it is not known which device would hear it: what the one has begun, the other
        would begin again. Or the agent is not admitted.
        """
        if not admission.admits(self._admitted, agent):
            return True
        known = self.agents.get(agent)
        return known is not None and (known.came_at is not None or known.quarantine is not None)

    def next_repeat(self) -> float | None:
        """When something may have to be said again."""
        return self._due[0][0] if self._due else None

    # Room -------------------------------------------------------------------------------------

    def pause(self, agent: str, until: float) -> None:
        """Offer nothing to an agent until then: it has said that it takes nothing now."""
        self._paused[agent] = until

    def refuse(self, id: str, agent: str, now: float) -> None:
        """Do not offer a job to this agent again: it never takes it."""
        while self._refusals and self._refusals[0][0] <= now - _REFUSED_FOR:
            self._refused.pop(self._refusals.popleft()[1], None)
        if id not in self._refused:
            self._refused[id] = set()
            self._refusals.append((now, id))
            if len(self._refusals) > 2 * len(self._refused) + 1000:  # the others have ended
                self._refusals = deque(e for e in self._refusals if e[1] in self._refused)
        self._refused[id].add(agent)

    def refused(self) -> int:
        """How many jobs were refused by some agent, and may stand before others."""
        return len(self._refused)

    def nobody_left(self, job: Job) -> bool:
        """Whether every agent that is meant has refused the job."""
        target, refused = job.target or "", self._refused.get(job.id, set())
        ring = self._ring(target)
        if len(presence.terms(target)) <= 1 and len(refused) < len(ring):
            return False
        meant = self.candidates(target)
        return bool(meant) and refused.issuperset(meant)

    def candidates(self, target: str) -> list[str]:
        """Agents that are meant by a target, whether they are there or not."""
        if target.startswith("agent:"):
            return [name] if (name := target[6:]) in self.agents else []
        return [name for name in self._ring(target) if self._is_meant(target, name)]

    def _is_meant(self, target: str, name: str) -> bool:
        tags = self.agents[name].state.tags
        return admission.admits(self._admitted, name) and presence.matches(target, name, tags)

    def _ring(self, target: str) -> _Ring | dict[str, Known]:
        """The fewest agents among whom are all that a target means."""
        terms = presence.terms(target)
        if not terms:
            return self.agents
        return min((self._bearing.get(term, OrderedDict()) for term in terms), key=len)

    def credit(self, name: str, now: float) -> int:
        """How many more jobs an agent may get."""
        known = self.agents.get(name)
        if known is None or name in self._drained or not presence.may_work(known):
            return 0
        if not admission.admits(self._admitted, name):
            return 0
        if name in self._paused:
            if now < self._paused[name]:
                return 0
            del self._paused[name]
        return max(known.state.window - len(self._of.get(name, ())), 0)

    def spare(self, name: str, now: float) -> int:
        """As `credit`, for jobs that could as well go to another agent: these do not queue up."""
        credit = self.credit(name, now)
        if not credit:
            return 0
        slots = 2 * self.agents[name].state.slots - len(self._of.get(name, ()))
        return max(min(credit, slots), 0)

    # Offers -----------------------------------------------------------------------------------

    def servable(self, wanted: Mapping[str, float], wall: float, now: float) -> list[str]:
        """Those targets of due jobs that somebody could take now."""
        return [
            target
            for target, due in wanted.items()
            if due <= wall and self._best(target, "", {}, now, 1) is not None
        ]

    def room(self, targets: Iterable[str], most: int, now: float) -> int:
        """How many jobs for these targets could be offered now, counted up to `most`."""
        total = 0
        for target in targets:
            for left in self._rooms(target, now):
                total += left
                if total >= most:
                    return most
        return total

    def _rooms(self, target: str, now: float) -> Iterator[int]:
        if target.startswith("agent:"):
            yield self.credit(target[6:], now)
            return
        for name in self._asked(target):
            if self._is_meant(target, name):
                yield self.spare(name, now)

    def assign(self, jobs: Iterable[Job], now: float) -> list[Offer]:
        """To whom each job is offered, in the order of the jobs: the agent with most room of
        those that were not asked for longest.
        """
        given: defaultdict[str, int] = defaultdict(int)
        offers: list[Offer] = []
        for job in jobs:
            target = job.target or ""
            best = self._best(target, job.id, given, now, _LOOKED_AT)
            if best is None:
                continue
            given[best] += 1
            offers.append(Offer(job.id, job.attempt, best))
            for ring in (self._roomy, self._ring(target)):
                if isinstance(ring, OrderedDict) and best in ring:
                    ring.move_to_end(best)
        return offers

    def _best(
        self, target: str, id: str, given: Mapping[str, int], now: float, enough: int
    ) -> str | None:
        """The agent with most room for a job, of the first that have some."""
        refused = self._refused.get(id, ())
        if target.startswith("agent:"):
            name = target[6:]
            room = self.credit(name, now) - given.get(name, 0)
            return name if room > 0 and name not in refused else None
        best, most, full = None, 0, list[str]()
        for name in self._asked(target):
            room = self.spare(name, now)
            if not room and name not in self._paused:
                full.append(name)
            room -= given.get(name, 0)
            if room <= 0 or name in refused or not self._is_meant(target, name):
                continue
            best, most = (name, room) if room > most else (best, most)
            enough -= 1
            if not enough:
                break
        for name in full:
            del self._roomy[name]
        return best

    def _asked(self, target: str) -> Iterable[str]:
        """Those that may have room among those that may be meant."""
        ring = self._ring(target)
        if len(self._roomy) <= len(ring):
            return self._roomy
        return (name for name in ring if name in self._roomy)


def _light(job: Job) -> Job:
    return replace(job, inputs=b"") if len(job.inputs) > _LIGHT_BYTES else job


def _connection(known: Known) -> tuple[str, int, int]:
    return known.state.store, known.state.starts, known.state.n


def _abilities(known: Known) -> tuple[dict[str, str], str]:
    """Return an agent's pipelines and version: when they change, its refusals lapse."""
    return known.state.pipelines, known.state.version


def _terms(known: Known | None) -> list[tuple[str, str | None]]:
    """What a target may ask for that an agent bears."""
    tags = {} if known is None else known.state.tags
    return [term for tag, value in tags.items() for term in ((tag, value), (tag, None))]


def lost(each: Open, known: Known | None, wall: float, lost_after: float) -> OnLost | None:
    """What becomes of a job whose agent stays away: "reassign", "fail"; None for waiting on."""
    if known is None or known.away_since is None:
        return None
    rules, policy = each.job.rules, when_lost(each.job)
    patience = lost_after if rules.lost_after is None else rules.lost_after
    return None if policy == "wait" or wall - known.away_since < patience else policy


def when_lost(job: Job) -> OnLost:
    """Return the policy for a job whose agent does not come back."""
    if (job.target or "").startswith("any:"):
        return job.rules.on_lost or "reassign"
    return "fail" if job.rules.on_lost == "fail" else "wait"
