"""What the Hamilton UI is told, as far as it is pure, and what is kept while nobody listens."""

from __future__ import annotations

import datetime
import decimal
import json

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import services
from hypothesis import given
from hypothesis import strategies as st

from fp_async import job_tracking
from fp_async import tracker as trackers
from fp_async.attempt import Drawn, Template
from fp_async.jobs import Job, NodeTiming, Record
from fp_async.summaries import brief, summary
from fp_async.tracked_places import Place
from fp_async.tracker import Tracker
from fp_async.tracking import NODES_KEPT, Run, bare

PLACE = Place("http://127.0.0.1:1", "http://127.0.0.1:2", "me", "", 1, "flow", (("v", "1"),))


class Exploding:
    def __len__(self):
        raise AssertionError("nobody asks")

    __repr__ = __str__ = __iter__ = __len__


FRAME = {"a": [1, 2], "b": ["x", "y"]}
VALUES = [
    (3, "int", 3),
    (True, "bool", True),
    (None, "NoneType", None),
    (float("nan"), "float", "nan"),
    (2**300, "int", "a large integer"),
    ("x" * 300, "str", "x" * 200 + "..."),
    ({"a": [1, (2, 3)]}, "dict", {"a": [1, [2, 3]]}),
    (list(range(1000)), "list", {"length": 1000, "first": list(range(20))}),
    ({i: i for i in range(1000)}, "dict", {"length": 1000, "keys": [str(i) for i in range(20)]}),
    ({"deep": Exploding()}, "dict", {"length": 1, "keys": ["deep"]}),
    (b"\0" * 9, "bytes", {"length": 9}),
    (datetime.date(2026, 1, 31), "datetime.date", "2026-01-31"),
    (decimal.Decimal("1.50"), "decimal.Decimal", "1.50"),
    (np.zeros((2, 3)), "numpy.ndarray", {"shape": [2, 3], "dtype": "float64"}),
    (pd.Series([1], name="s"), "pandas.Series", {"rows": 1, "name": "s", "dtype": "int64"}),
    (
        pl.DataFrame(FRAME),
        "polars.DataFrame",
        {"rows": 2, "columns": 2, "types": {"a": "Int64", "b": "String"}},
    ),
    (
        pa.table(FRAME),
        "pyarrow.Table",
        {"rows": 2, "columns": 2, "types": {"a": "int64", "b": "string"}},
    ),
]


@pytest.mark.parametrize(("value", "kind", "shown"), VALUES, ids=[kind for _, kind, _ in VALUES])
def test_a_summary_says_a_little(value, kind, shown):
    assert json.loads(summary(value)) == {"type": kind, "value": shown}
    assert brief(value) == shown


def test_of_what_is_unknown_the_type_is_said():
    assert json.loads(summary(Exploding())) == {"type": "test_tracking.Exploding"}
    assert brief(Exploding()) == "test_tracking.Exploding"
    told = json.loads(summary(pd.DataFrame(FRAME)))["value"]
    assert (told["rows"], told["columns"], list(told["types"])) == (2, 2, ["a", "b"])


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=200,
)


@given(JSONISH)
def test_a_summary_is_small_and_json(value):
    text = summary(value)
    assert len(text) <= 2400
    json.loads(text)


def make_run(**more) -> Run:
    return Run(PLACE, "flow", 100.0, token="t", tags={"environment": "dev"}, **more)


def told(run: Run) -> tuple[dict, dict]:
    """(nodes by name, attributes by node) of all that there is to tell."""
    nodes, attributes = {}, {}
    while (batch := run.batch())[0]:
        nodes |= {update["node_name"]: update for update in batch[1]["task_updates"]}
        attributes |= {each["node_name"]: each for each in batch[1]["attributes"]}
    return nodes, attributes


def test_a_run_tells_what_is_new_and_only_that():
    run = make_run(job="j")
    template = Template("d" * 64, "c" * 64, {"a": [], "b": ["a"]}, b"{}")
    run.drawn(Drawn(template, ["a", "b", "c"], {"x": 1}, ["b"]))
    creation = run.creation()
    assert creation["tags"] == {
        "pipeline": "flow",
        "environment": "dev",
        "v": "1",
        "run": "t",
        "job": "j",
    }
    assert (creation["inputs"], creation["outputs"]) == ({"x": 1}, ["b"])
    run.node(NodeTiming("a", "started", at=101.0), 101.0)
    nodes, attributes = told(run)
    assert (nodes["a"]["status"], nodes["a"]["end_time"], attributes) == ("RUNNING", None, {})
    run.node(NodeTiming("a", "succeeded", 1.0, at=101.0, summary=summary(3)), 102.0)
    run.node(NodeTiming("b", "started", at=102.0), 102.0)
    nodes, attributes = told(run)
    assert {name: node["status"] for name, node in nodes.items()} == {
        "a": "SUCCESS",
        "b": "RUNNING",
    }
    assert nodes["b"]["realized_dependencies"] == ["a"]
    assert nodes["a"]["end_time"] == "1970-01-01T00:01:42+00:00"
    assert attributes["a"]["value"] == {"type": "int", "value": "3"}
    run.id = 7
    assert not run.news
    run.end("crashed", 110.0, "killed")
    nodes, attributes = told(run)
    assert {name: node["status"] for name, node in nodes.items()} == {
        "b": "FAILURE",
        "c": "UNINITIALIZED",
    }
    assert attributes["b"]["value"] == {"stack_trace": ["it had not ended: the run crashed"]}
    ending = run.ending()
    assert ending["run_status"] == "FAILURE"
    assert ending["upsert_tags"] == {"outcome": "crashed", "error": "killed"}


@pytest.mark.parametrize("unclear", [True, False])
def test_what_may_have_arrived_is_told_again_without_attributes(unclear):
    run = make_run()
    run.node(NodeTiming("a", "succeeded", 1.0, at=1.0, summary=summary(3)), 2.0)
    names, first = run.batch()
    run.untold(names, unclear=unclear)
    _, again = run.batch()
    assert again["task_updates"] == first["task_updates"]
    assert again["attributes"] == ([] if unclear else first["attributes"])


@pytest.mark.parametrize(
    "odd", ["", "x", "[]", "{}", '{"type": 3}', "[" * 10_000, '{"type": "a", "value": "\\ud800"}']
)
def test_a_summary_that_is_none_does_no_harm(odd):
    run = make_run()
    run.node(NodeTiming("a", "succeeded", 1.0, at=1.0, summary=odd), 2.0)
    msgspec.json.encode(run.batch()[1])


NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.just(1.0)  # as JSON has them
TIMINGS = st.builds(
    NodeTiming, st.text(min_size=1), st.text(), NUMBERS, st.text(), NUMBERS, st.text()
)


@given(st.lists(TIMINGS, max_size=5), st.floats(1, 1e10), st.floats(0, 1e6))
def test_whatever_an_agent_tells_can_be_told(timings, began, took):
    record = msgspec.json.encode(Record(nodes=timings))
    job = Job(
        id="j",
        pipeline="flow",
        state="succeeded",
        started_at=began,
        ended_at=began + took,
        record=record,
    )
    noted = []

    class Noting(Tracker):
        def begin(self, run):
            noted.append(run)
            return super().begin(run)

        def heard(self, run, within):
            """Told by nobody."""

    job_tracking.tell(PLACE, job, Drawn(bare(())), Noting())
    (run,) = noted
    for body in (run.creation(), run.batch()[1], run.ending()):
        msgspec.json.encode(body)


def test_the_traceback_is_that_of_the_node_that_failed():
    run = make_run()
    run.node(NodeTiming("a", "cancelled", 1.0, at=1.0), 2.0)
    run.node(NodeTiming("b", "failed", 1.0, "ValueError: no", at=1.0), 2.0)
    run.end("failed", 3.0, "no", "Traceback ...\nValueError: no")
    _, attributes = told(run)
    assert attributes["a"]["value"]["stack_trace"] == ["cancelled"]
    assert attributes["b"]["value"]["stack_trace"] == ["Traceback ...", "ValueError: no"]


def test_errors_may_have_characters_that_no_encoding_has():
    run = make_run()
    run.node(NodeTiming("a", "failed", 1.0, "no file '\udce4'", at=1.0), 2.0)
    run.end("failed", 3.0, "no file '\udce4'", "no file '\udce4'")
    msgspec.json.encode(run.batch()[1])
    assert run.ending()["upsert_tags"]["error"] == "no file '\\udce4'"


def test_of_a_run_with_many_nodes_the_first_are_told():
    run = make_run()
    for number in range(NODES_KEPT + 5):
        run.node(NodeTiming(f"n{number}", "succeeded", at=1.0), 1.0)
    run.end("succeeded", 2.0)
    nodes, _ = told(run)
    assert len(nodes) == NODES_KEPT
    assert run.ending()["upsert_tags"]["nodes left out"] == "5"


def test_what_waits_for_a_dead_server_is_bounded(monkeypatch, caplog):
    monkeypatch.setattr(trackers, "_RUNS", 50)
    place = Place(f"http://127.0.0.1:{services.free_port()}", "", "me", "", 1, "flow")
    tracker = Tracker()
    for number in range(200):
        run = Run(place, "flow", 1.0, token=str(number), tags={})
        told = tracker.begin(run)
        told.drawn(Drawn(bare(["a"])))
        told.node(NodeTiming("a", "succeeded", at=1.0))
        told.end("succeeded")
    assert 0 < tracker.flush(5) <= 50
    assert caplog.text.count("does not answer") == 1
    assert caplog.text.count("oldest runs first") == 1


@pytest.mark.parametrize("inputs", [b'{"v":1,"plain":[1,2]}', b'{"v":1,"plain":7}', b'{"v":1}'])
def test_inputs_that_an_agent_has_told_and_are_none(inputs):
    assert job_tracking._inputs(Job(id="j", pipeline="p", inputs=inputs)) == {}
