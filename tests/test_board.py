"""Who gets which job: the gateway's choice, without a gateway."""

from __future__ import annotations

from msgspec.structs import replace

from fp_async import hearing
from fp_async.board import Board
from fp_async.jobs import Job
from fp_async.link import Message
from fp_async.messages import AgentState
from fp_async.presence import Known


def board(**rooms: int) -> Board:
    """Agents by name, with so many slots, and twice as much window."""
    made = Board()
    for name, slots in rooms.items():
        made.know(name, known(slots))
    return made


def known(slots: int = 1, status: str = "ready", **tags: str) -> Known:
    said = AgentState(status=status, store="s", starts=1, n=1, slots=slots, window=2 * slots)
    return Known(state=said if not tags else replace(said, tags=tags))


def job(number: int, target: str, agent: str | None = None) -> Job:
    state = "queued" if agent is None else "offered"
    return Job(id=f"j{number}", pipeline="p", target=target, agent=agent, state=state)


def given(made: Board, jobs: list[Job], now: float = 0.0) -> list[tuple[str, str]]:
    return [(offer.id, offer.agent) for offer in made.assign(jobs, now)]


def test_the_agent_with_most_room_is_next():
    made = board(a=1, b=2)
    jobs = [job(number, "any:*") for number in range(8)]
    agents = [agent for _, agent in given(made, jobs)]
    assert agents == ["b", "b", "a", "b", "a", "b"], "and two wait: nobody has room for them"


def test_what_an_agent_has_takes_its_room_from_all_targets():
    made = board(a=2)
    made.bind(job(9, "agent:a", agent="a"), 0.0, chance=0.5)
    mixed = [job(0, "any:*"), job(1, "agent:a"), job(2, "any:*"), job(3, "agent:a")]
    assert given(made, mixed) == [("j0", "a"), ("j1", "a"), ("j2", "a")]
    assert made.room(["any:*", "agent:a"], 100) == 6, "counted for each target"
    assert made.room(["any:*"], 2) == 2


def test_who_has_refused_a_job_gets_the_next_one():
    made = board(a=1, b=1)
    made.avoid("j0", "a", None)
    made.avoid("j1", "a", 10.0)
    made.avoid("j1", "b", None)
    jobs = [job(0, "any:*"), job(1, "any:*"), job(2, "any:*")]
    assert given(made, jobs, now=5.0) == [("j0", "b"), ("j2", "a")]
    assert given(made, jobs, now=10.0) == [("j0", "b"), ("j1", "a"), ("j2", "a")]


def test_new_agents_and_new_tags_are_seen_at_once():
    made = board(a=1)
    assert given(made, [job(0, "any:gpu")]) == []
    made.know("b", known(1, gpu="yes"))
    assert given(made, [job(0, "any:gpu")]) == [("j0", "b")]
    made.know("b", known(1))
    assert given(made, [job(0, "any:gpu")]) == []
    assert made.candidates("any:gpu") == []


def test_nobody_is_offered_anything_who_is_not_ready():
    made = board(a=1)
    made.know("a", known(1, "draining"))
    assert given(made, [job(0, "agent:a"), job(1, "any:*")]) == []
    assert made.servable({"agent:a": 0.0, "any:*": 0.0}, 1.0) == []


def test_a_batch_is_bounded_by_its_bytes():
    sizes = (3, 3, 3, 20, 1)
    heard = [Message("t", b"x" * size) for size in sizes]
    found = [[len(m.payload) for m in part] for part in hearing.in_parts(heard, 7)]
    assert found == [[3, 3], [3], [20], [1]]
