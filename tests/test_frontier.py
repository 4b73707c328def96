"""The rules of what is next in a run: any DAG, any order, shared at any moment."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fp_async.frontier import Frontier
from fp_async.plan import NodeSpec, compile_plan, find_cycle


@st.composite
def plans(draw):
    """A plan over inputs and computed nodes, and which final variables were asked for."""
    inputs = draw(st.integers(0, 3))
    size = draw(st.integers(1, 12))
    nodes = {f"i{n}": NodeSpec(f"i{n}", (), None) for n in range(inputs)}
    for n in range(size):
        names = (
            draw(st.lists(st.sampled_from(list(nodes)), unique=True, max_size=4)) if nodes else []
        )
        nodes[f"n{n}"] = NodeSpec(f"n{n}", tuple((name, True) for name in names), int)
    finals = draw(st.lists(st.sampled_from(list(nodes)), min_size=1, unique=True))
    return nodes, compile_plan(nodes, finals, [name for name in nodes if name.startswith("i")])


def expected(nodes, name):
    return (name, *(expected(nodes, parent) for parent, _ in nodes[name].parameters))


def compute(plan, frontier, slot):
    """A node's value: its name and its inputs' values, none of which may have been dropped."""
    inputs = [frontier.values[source] for _, source in plan.arguments[slot]]
    assert None not in inputs
    return (plan.names[slot], *inputs)


@given(plans(), st.data())
def test_any_order_and_any_moment_of_sharing_give_the_same(made, data):
    nodes, plan = made
    values = [(name,) for name in plan.names[: plan.given]] + [None] * len(plan.order)
    alone = data.draw(st.booleans())
    frontier = Frontier(plan, values, [True] * len(plan.names), alone=alone)
    begun = []
    running = {}
    if alone and plan.order:
        position = data.draw(st.integers(0, len(plan.order) - 1))
        for slot in plan.order[:position]:
            begun.append(slot)
            frontier.advance(slot, compute(plan, frontier, slot))
        current = plan.order[position]
        begun.append(current)
        running[current] = compute(plan, frontier, current)
        frontier.share()
        assert not frontier.alone
    while running or frontier.queued:
        if frontier.queued and (not running or data.draw(st.booleans())):
            slot = frontier.queued.popleft()
            begun.append(slot)
            running[slot] = compute(plan, frontier, slot)
        else:
            slot = data.draw(st.sampled_from(sorted(running)))
            frontier.complete(slot, running.pop(slot))
    assert sorted(begun) == sorted(plan.order)
    assert not frontier.unfinished
    assert frontier.results() == {name: expected(nodes, name) for name, _ in plan.finals}
    kept = {slot for _, slot in plan.finals}
    read = {source for arguments in plan.arguments for _, source in arguments}
    assert all(frontier.values[slot] is None for slot in read - kept)


@given(plans())
def test_the_plans_own_order_needs_no_counts(made):
    nodes, plan = made
    values = [(name,) for name in plan.names[: plan.given]] + [None] * len(plan.order)
    frontier = Frontier(plan, values, [True] * len(plan.names), alone=True)
    for slot in plan.order:
        frontier.advance(slot, compute(plan, frontier, slot))
    assert frontier.results() == {name: expected(nodes, name) for name, _ in plan.finals}


def test_missing_unused_and_optional_inputs():
    nodes = {
        "x": NodeSpec("x", (), None),
        "y": NodeSpec("y", (), None),
        "a": NodeSpec("a", (("x", True), ("y", False)), int),
    }
    assert compile_plan(nodes, ["a"], []).missing == ("x",)
    plan = compile_plan(nodes, ["a"], ["x", "z"])
    assert (plan.missing, plan.unused) == ((), ("z",))
    assert [name for name, _ in plan.arguments[plan.order[0]]] == ["x"]
    assert [name for name, _ in compile_plan(nodes, ["a"], ["x", "y"]).arguments[-1]] == ["x", "y"]


def test_cycles_are_found_however_deep():
    def chain(size, last):
        nodes = {"n0": NodeSpec("n0", ((last, True),), int)}
        return nodes | {
            f"n{i}": NodeSpec(f"n{i}", ((f"n{i - 1}", True),), int) for i in range(1, size)
        }

    assert find_cycle(chain(3, "n2")) == ["n0", "n2", "n1", "n0"]
    assert len(find_cycle(chain(20_000, "n19999"))) == 20_001
    assert find_cycle({"a": NodeSpec("a", (("a", True),), int)}) == ["a", "a"]
    assert find_cycle({"a": NodeSpec("a", (), int)}) == []
