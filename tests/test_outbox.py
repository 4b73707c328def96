"""What an agent tells next, and how: windows and patience, parts, and outcomes that always fit."""

from __future__ import annotations

import hashlib
import random
import time

import msgspec
import pytest
from fleet import scale
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace

from edge_agent import fitting, housekeeping, scheduling, telling
from edge_agent.outbox import Outbox
from fp_async import hearing, messages, triggers, wire
from fp_async.errors import StoreError
from fp_async.jobs import Failure, Job, NodeTiming, Record, Schedule, Spec
from fp_async.messages import Finished, ResultChunk
from fp_async.moved_schedules import after_step
from fp_async.trigger_times import following

# The outbox -------------------------------------------------------------------------------------


def names(kind, count):
    return [f"{kind}{n}" for n in range(count)]


def quiet(window=8):
    """An outbox without a backlog."""
    outbox = Outbox(window)
    outbox.backlog = False
    return outbox


def tell(outbox, ids, now=0.0):
    for id in ids:
        outbox.told(id, now)


def test_at_first_there_may_be_a_backlog():
    outbox = Outbox()
    assert outbox.waits
    outbox.backlog = False
    assert not outbox.waits
    outbox.ended(["a"])
    assert outbox.waits
    assert outbox.take_live() == ["a"]


def test_new_outcomes_have_the_whole_window_where_nothing_else_waits():
    outbox = quiet(8)
    outbox.ended(names("n", 20))
    taken = outbox.take_live()
    assert taken == names("n", 8), "in their order"
    tell(outbox, taken)
    assert outbox.take_live() == []
    assert not outbox.waits
    outbox.acknowledged(taken[:3])
    assert outbox.waits
    assert outbox.take_live() == ["n8", "n9", "n10"]


def test_a_backlog_leaves_half_of_the_window_to_what_is_new():
    outbox = Outbox(8)
    assert outbox.room(live=False) == 4
    tell(outbox, names("old", 4))
    assert outbox.room(live=False) == 0
    assert not outbox.waits
    outbox.ended(names("n", 20))
    assert outbox.waits
    assert outbox.take_live() == names("n", 4)


def test_what_is_new_leaves_half_of_the_window_to_a_backlog():
    outbox = Outbox(8)
    outbox.ended(names("n", 20))
    tell(outbox, outbox.take_live())
    assert len(outbox.under_way) == 4
    assert outbox.take_live() == []
    assert outbox.room(live=False) == 4
    tell(outbox, names("old", 4))
    outbox.acknowledged(["n0", "old0"])
    assert (len(outbox.take_live()), outbox.room(live=False)) == (1, 1)


def test_with_the_backlog_told_the_new_ones_get_what_it_leaves():
    outbox = Outbox(8)
    tell(outbox, ["old0"])
    outbox.backlog = False
    outbox.ended(names("n", 20))
    assert len(outbox.take_live()) == 7


def test_both_flow_whoever_comes_more_often():
    """10,000 old ones and a stream of new ones: nobody waits for the other to end."""
    outbox, chance = Outbox(40), random.Random(7)
    old, told, waited = iter(range(10_000)), [], {}
    for tick in range(1500):
        outbox.ended([f"n{tick}-{k}" for k in range(15)])
        for id in outbox.take_live():
            outbox.told(id, tick)
            told.append(id)
            waited[id] = tick - int(id[1:].partition("-")[0])
        for _, number in zip(range(outbox.room(live=False)), old, strict=False):
            outbox.told(f"old{number:05d}", tick)
            told.append(f"old{number:05d}")
        outbox.acknowledged(chance.sample(sorted(outbox.under_way), len(outbox.under_way) * 4 // 5))
    olds = [id for id in told if id.startswith("old")]
    assert olds == sorted(olds), "oldest first"
    assert len(olds) == 10_000
    assert len(told) - len(olds) > 20_000
    assert max(waited.values()) <= 3, (
        "a new one is told at once, as long as there is a backlog, too"
    )


def test_what_is_not_acknowledged_is_told_again_with_growing_patience():
    outbox, now, patience = quiet(), 0.0, []
    for _ in range(7):
        outbox.told("a", now)
        assert not outbox.overdue(outbox.next_due() - 0.01)
        assert not outbox.backlog
        patience.append(outbox.next_due() - now)
        now = outbox.next_due()
        assert outbox.overdue(now)
        assert outbox.backlog
        assert outbox.under_way == frozenset()
        outbox.backlog = False
    assert patience == [5, 10, 20, 40, 60, 60, 60]
    for _ in range(5000):  # a day and more of it
        outbox.told("a", now)
    assert outbox.next_due() == now + 60


def test_what_is_acknowledged_leaves_nothing():
    outbox = Outbox(8)
    empty = {name: len(value) for name, value in vars(outbox).items() if hasattr(value, "__len__")}
    for turn in range(3):
        outbox.ended(names(f"n{turn}-", 6))
        taken = outbox.take_live()
        tell(outbox, [*taken, *names(f"old{turn}-", 4)])
        if turn == 1:
            outbox.overdue(1000.0)
            tell(outbox, outbox.take_live())
        for id in [*names(f"n{turn}-", 6), *names(f"old{turn}-", 4)]:
            outbox.acknowledged([id, id, "unknown"])
    outbox.take_live()
    left = {name: len(value) for name, value in vars(outbox).items() if hasattr(value, "__len__")}
    assert left == empty
    assert outbox.next_due() is None


def test_what_ends_again_while_it_is_under_way_is_not_told_twice():
    outbox = quiet()
    tell(outbox, ["a"])
    outbox.ended(["a", "b", "b"])
    assert outbox.take_live() == ["b"]


def test_a_new_connection_begins_with_all_that_waits():
    outbox = quiet()
    outbox.ended(names("n", 3))
    tell(outbox, outbox.take_live())
    outbox.ended(["later"])
    outbox.reset()
    assert outbox.backlog
    assert outbox.under_way == frozenset()
    assert outbox.take_live() == ["later"]
    outbox.told("n0", 100.0)
    assert outbox.next_due() == 105.0, "with the patience of the first time"


def test_too_many_new_ones_are_rows_of_the_backlog():
    outbox = quiet(8)
    outbox.ended(names("n", 32))
    assert not outbox.backlog
    outbox.ended(["one more"])
    assert outbox.backlog
    assert outbox.take_live() == []


@given(st.lists(st.tuples(st.sampled_from("etaorb"), st.integers(0, 12)), max_size=60))
@settings(max_examples=scale(2000))
def test_the_window_is_never_exceeded(steps):
    outbox, now, number = Outbox(8), 0.0, 0
    for step, count in steps:
        now += 1
        match step:
            case "e":
                outbox.ended([f"n{number + k}" for k in range(count)])
            case "t":
                tell(outbox, outbox.take_live(), now)
            case "b":
                tell(
                    outbox,
                    [f"o{number + k}" for k in range(min(count, outbox.room(live=False)))],
                    now,
                )
            case "a":
                outbox.acknowledged(sorted(outbox.under_way)[:count])
            case "o":
                outbox.overdue(now + count)
            case "r":
                outbox.backlog = count > 6
        number += count
        assert len(outbox.under_way) <= 8 + 4, "and half of it for a backlog that came later"
        assert outbox.room(live=True) >= 0
        assert outbox.room(live=False) >= 0
        assert outbox.waits == bool(
            (outbox._live and outbox.room(live=True))
            or (outbox.backlog and outbox.room(live=False))
        )


# Parts ------------------------------------------------------------------------------------------


def ended(**options):
    options = {"offer": 1, "attempt": 1, "ended_at": time.time(), **options}
    return Job(**{"id": "j", "pipeline": "flow", "state": "succeeded", **options})


def chunked(size):
    result = random.Random(size).randbytes(size)
    *parts, last = telling.finished(ended(result=result), None)
    assert isinstance(last, Finished)
    assert last.result is UNSET
    return result, parts, last


def received(parts):
    """The parts, through the wire."""
    return [hearing.chunk(wire.reports(wire.encode(part))[0], "pi-7") for part in parts]


@pytest.mark.parametrize("size", [65_537, 98_304, 98_305, 1_000_000, 8 * 2**20])
def test_large_results_go_in_parts(size):
    result, parts, last = chunked(size)
    assert len(parts) == last.chunks == -(-size // messages.CHUNK_BYTES)
    assert [part.index for part in parts] == list(range(last.chunks))
    assert {(part.id, part.attempt) for part in parts} == {("j", 1)}
    chunks = received(parts)
    assert {len(each.data) for each in chunks[:-1]} == {messages.CHUNK_BYTES}
    assert last.sha256 == hashlib.sha256(result).hexdigest()
    assert hearing.put_together(last, chunks) == result
    assert all(len(wire.encode(part)) < messages.BATCH_BYTES for part in parts)


@pytest.mark.parametrize("size", [0, 1, 65_536])
def test_small_results_go_inside(size):
    (body,) = telling.finished(ended(result=bytes(size)), None)
    assert hearing.value(body) == bytes(size)
    assert (body.chunks, body.dropped) == (0, False)


def test_a_result_that_is_too_large_for_parts_is_dropped():
    (body,) = telling.finished(ended(result=bytes(messages.RESULT_BYTES + 1)), None)
    assert (body.result, body.chunks, body.dropped) == (UNSET, 0, True)
    assert "could not be sent" in hearing.finished(body, "pi", 1.0, None).reason


def test_parts_may_come_twice_and_in_any_order():
    result, parts, last = chunked(300_000)
    chunks = received(parts)
    mixed = [*chunks[::-1], *chunks]
    assert hearing.put_together(last, mixed) == result


def test_what_is_missing_is_named():
    _, parts, last = chunked(300_000)
    chunks = received(parts)
    assert hearing.put_together(last, []) == list(range(10))
    assert hearing.put_together(last, [c for c in chunks if c.index not in (3, 9)]) == [3, 9]


@pytest.mark.parametrize("spoil", ["one byte", "shorter", "another's part"])
def test_parts_that_are_not_what_was_sent_are_asked_for_again(spoil):
    _, parts, last = chunked(300_000)
    chunks = received(parts)
    data = {
        "one byte": b"x" + chunks[4].data[1:],
        "shorter": chunks[4].data[:-1],
        "another's part": chunks[5].data,
    }[spoil]
    chunks[4] = replace(chunks[4], data=data)
    assert hearing.put_together(last, chunks) == list(range(10))


# Sizes ------------------------------------------------------------------------------------------

MOST = messages.PACKET_BYTES - 4096  # without the topic
NASTY = '\x01\x1b"\\'  # six bytes each, or two
LETTERS = st.sampled_from(["x", "ü", "\U0001f600", "\x01", '"', "\n", "\0"])
TEXTS = st.builds(
    lambda letters, size: ("".join(letters) or "x") * size,
    st.lists(LETTERS, max_size=4),
    st.sampled_from([0, 1, 100, 5000, 70_000]),
)
SHORT = TEXTS.map(lambda text: text[:500])
NODES = st.one_of(
    st.builds(
        lambda count, node: [replace(node, node=f"{n} {node.node}") for n in range(count)],
        st.just(count),
        st.builds(NodeTiming, texts, st.sampled_from(["succeeded", "failed"]), st.just(0.1), texts),
    )
    for count, texts in ((0, SHORT), (3, TEXTS), (1000, SHORT))
)
RECORDS = st.builds(Record, NODES, TEXTS, TEXTS, st.lists(TEXTS, max_size=5))
FAILURES = st.builds(Failure, TEXTS, TEXTS, TEXTS, st.lists(TEXTS, max_size=20))
SPECS = st.builds(
    Spec, config=st.dictionaries(st.text(max_size=5), TEXTS, max_size=3), environment=TEXTS
)
RESULTS = st.sampled_from(
    [
        *(None, b"", b'{"v":1,"plain":{"a":1}}', b"\x89FP1" + bytes(100)),
        *(b'{"v":1,"plain":"' + b"x" * 65_500 + b'"}', b"\x89" * 65_536, b"\x89" * 100_000),
    ]
)
JOBS = st.builds(
    lambda record, error, spec, **rest: ended(
        record=msgspec.json.encode(record),
        error=None if error is None else msgspec.json.encode(error),
        spec=msgspec.json.encode(spec),
        id="i" * 64,
        **rest,
    ),
    RECORDS,
    st.none() | FAILURES,
    SPECS,
    state=st.sampled_from(messages.Outcome.__args__),
    offer=st.sampled_from([None, 1, 2**31 - 1]),
    pipeline=st.just("p" * 191),
    schedule_id=st.sampled_from([None, "s" * 191]),
    trigger=st.sampled_from([None, "t" * 64]),
    nominal_at=st.sampled_from([None, 1.7e9 / 3]),
    started_at=st.sampled_from([None, 1.7e9 / 3]),
    reason=st.none() | TEXTS,
    result=RESULTS,
    inputs=st.sampled_from([b"{}", b"\x89" * 65_536, b"\x89" * 65_537, b"\x89" * 262_144]),
)


@given(JOBS, st.sampled_from([None, "0123456789abcdef"]))
@settings(max_examples=scale(1000), deadline=None)
def test_nothing_that_is_told_is_larger_than_a_packet(job, version):
    *parts, last = telling.finished(job, version)
    assert len(wire.encode(last)) <= MOST
    assert all(len(wire.encode(part)) <= messages.BATCH_BYTES for part in parts)
    assert len(wire.encode(telling.lost_value(job))) <= MOST
    small = telling.shrunk(last)
    assert len(wire.encode(small)) <= 24_000
    for body in (last, small):
        (heard,) = wire.reports(wire.encode(body))
        assert heard == body, "and the gateway can read it"
    assert last.outcome == job.state
    if job.result is not None:
        assert (last.result is not UNSET) + bool(last.chunks) + last.dropped == 1


def test_a_thousand_nodes_with_long_names_are_cut_and_the_failed_one_is_told():
    nodes = [NodeTiming(f"{n}" + "x" * 400, "succeeded", 0.1) for n in range(999)]
    nodes.append(NodeTiming("the one", "failed", 0.1, "KeyError: 'x'"))
    record = msgspec.json.encode(Record(nodes, "log", "w"))
    (body,) = telling.finished(ended(record=record, state="failed"), None)
    assert body.record.nodes[-1] == nodes[-1]
    assert 50 < len(body.record.nodes) < 200
    assert body.record.nodes[:-1] == nodes[: len(body.record.nodes) - 1], "in their order"
    assert body.record.warnings == [f"{1000 - len(body.record.nodes)} nodes more are not told"]


def test_what_fits_is_told_as_it_is():
    record = Record([NodeTiming(f"node_{n}", "succeeded", 0.25) for n in range(500)], "log\n", "w")
    error = Failure("KeyError", "'x'", "line 1\n" * 100, ["KeyError"])
    job = ended(
        record=msgspec.json.encode(record), error=msgspec.json.encode(error), state="failed"
    )
    (body,) = telling.finished(job, None)
    assert (body.record, body.error) == (record, error)


def test_a_log_keeps_its_end_and_an_error_both_of_what_matters():
    log = "\x1b[31m" * 20_000 + "the end"
    error = Failure("E" * 5000, "the beginning" + NASTY * 9000, NASTY * 9000 + "the user's line")
    job = ended(
        record=msgspec.json.encode(Record([], log)),
        error=msgspec.json.encode(error),
        state="failed",
    )
    (body,) = telling.finished(job, None)
    assert body.record.log.endswith("the end")
    assert body.error.message.startswith("the beginning")
    assert body.error.traceback.endswith("the user's line")
    assert len(body.error.traceback) > 2000


@given(TEXTS, st.integers(0, 3000))
@example("\x01" * 5000, 17)
@example("x" * 5000 + "\x01" * 5000, 3000)
@example("\x01" * 5000 + "x" * 5000, 3000)
def test_a_text_is_cut_to_its_bytes(text, most):
    for cut in (fitting.head(text, most), fitting.tail(text, most)):
        assert len(wire.encode(cut)) - 2 <= most
    assert text.startswith(fitting.head(text, most))
    assert text.endswith(fitting.tail(text, most))
    if len(wire.encode(text)) - 2 <= most:
        assert fitting.head(text, most) == fitting.tail(text, most) == text


def test_what_a_pruned_job_has_returned_is_lost():
    body = telling.lost_value(ended(result=None, state="succeeded"))
    assert (body.outcome, body.dropped, body.record) == ("succeeded", True, None)
    assert not telling.lost_value(ended(state="failed")).dropped
    assert body.reason.startswith("its result could not be sent: the device had told it before")


def test_e17_the_reason_of_a_lost_result_is_told():
    job = ended(result=bytes(messages.RESULT_BYTES + 1))
    (body,) = telling.finished(job, None)
    text = "its result could not be sent: it has 8,388,609 bytes, 8,388,608 are the most"
    assert hearing.finished(body, "pi", 1.0, None).reason == text
    (full,) = telling.finished(ended(result=b'{"v":1,"plain":1}', reason="slow"), None)
    told = hearing.finished(telling.shrunk(full), "pi", 1.0, None).reason
    assert told.startswith("slow; its result could not be sent: the broker takes no message")


def test_a_shrunk_outcome_says_so_only_where_it_had_a_value():
    (full,) = telling.finished(ended(result=b'{"v":1,"plain":1}'), None)
    (none,) = telling.finished(ended(state="failed"), None)
    assert telling.shrunk(full).dropped
    assert not telling.shrunk(none).dropped
    *_, parts = telling.finished(ended(result=bytes(70_000)), None)
    assert telling.shrunk(parts).dropped
    assert telling.shrunk(parts).chunks == 0
    assert telling.shrunk(telling.shrunk(full)) == telling.shrunk(full)


def test_other_versions_and_late_outcomes_are_told():
    spec = msgspec.json.encode(Spec(version="center"))
    late = ended(spec=spec, ended_at=time.time() - 60)
    (body,) = telling.finished(late, "device")
    assert body.record.warnings == ["the device runs version device of 'flow', not center"]
    assert 59 < body.record.late < 65
    (body,) = telling.finished(replace(late, ended_at=time.time()), "center")
    assert (body.record.warnings, body.record.late) == ([], 0.0)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"state": "queued"}, "Accepted"),
        ({"state": "running", "started_at": 5.0}, "Started"),
        ({"state": "running"}, "Accepted"),
        ({"state": "succeeded"}, None),
        ({"state": "failed", "pruned": True}, "Finished"),
    ],
)
def test_what_an_offer_of_a_known_job_is_answered_with(changes, kind):
    answer = telling.standing(ended(**{"offer": 3, **changes}))
    assert (None if answer is None else type(answer).__name__) == kind
    assert answer is None or answer.attempt == 3


# Schedules and clocks ---------------------------------------------------------------------------


def row(spec, next_fire_time, **options):
    encoded = msgspec.json.encode(spec)
    return Schedule(id="s", pipeline="p", trigger=encoded, next_fire_time=next_fire_time, **options)


def interval(**options):
    return triggers.parse("interval", {"seconds": 60, **options}, now=1.8e9, timezone="UTC")


def times(after, count=3):
    """When it fires from then on."""
    spec, found = triggers.decode(after.trigger), [after.next_fire_time]
    while len(found) < count:
        found.append(following(spec, found[-1]))
    return found


@pytest.mark.parametrize("step", [3600.0, -3600.0, 61.0, -86_400.5, 123.456789])
def test_an_interval_counts_real_seconds(step):
    before = row(interval(), 1.8e9 + 60)
    now = 1.8e9 + 20 + step  # 40 s are left
    after = after_step(before, step, now)
    assert times(after) == pytest.approx([now + 40, now + 100, now + 160], abs=1e-3)
    assert len(set(times(after, 20))) == 20
    again = after_step(after, -step, now - step + 10)
    assert again.next_fire_time == pytest.approx(now - step + 40, abs=1e-3)


def test_an_interval_that_is_due_stays_due():
    after = after_step(row(interval(), 1.8e9), 3600.0, 1.8e9 + 5 + 3600)
    assert after.next_fire_time == pytest.approx(1.8e9 + 3600, abs=1e-3)


def test_a_device_without_a_clock_does_not_wait_for_decades():
    """It boots in 1970 with an interval of the center, which begins in its far future."""
    before = row(interval(), 1.8e9 + 60)
    now, step = 1.8e9 + 500, 1.8e9
    after = after_step(before, step, now)
    assert now <= after.next_fire_time <= now + 60


def test_an_interval_that_has_not_begun_begins_when_it_was_said():
    spec = interval(start_date="2030-01-01T00:00:00Z")
    before = row(spec, spec.start)
    assert after_step(before, 3600.0, 1.8e9 + 3600) == before


def test_the_end_of_an_interval_is_a_date():
    spec = interval(end_date="2027-01-15T08:02:30Z")
    assert spec.end == 1.8e9 + 150
    after = after_step(row(spec, 1.8e9 + 60), 100.0, 1.8e9 + 20 + 100)
    assert after.next_fire_time is None, "1.8e9 + 160 is after it"


def test_times_of_day_are_worked_out_anew():
    spec = triggers.parse("cron", {"hour": 8}, timezone="UTC", now=1.8e9)
    after = after_step(row(spec, 1.8e9 + 999), 86_400.0, 1.8e9 + 86_400)
    assert after.next_fire_time == 1.8e9 + 86_400, "it is eight o'clock"
    assert after.trigger == msgspec.json.encode(spec)


@given(
    st.floats(1, 1e6), st.floats(-1e9, 1e9), st.floats(0, 1), st.sampled_from([0.0, 1.8e9, 1.9e9])
)
@settings(max_examples=scale(2000), deadline=None)
def test_an_interval_is_never_further_away_than_itself(seconds, step, phase, start):
    now = 1.8e9 + step
    spec = replace(interval(), seconds=seconds, start=start)
    before = row(spec, following(spec, 1.8e9 - phase * seconds))
    after = after_step(before, step, now)
    if start < min(now, 1.8e9):
        assert after.next_fire_time - now <= seconds + 1e-3
    one, two = times(after, 2)
    assert two - one == pytest.approx(seconds, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("noted", "daemon", "synchronized", "right"),
    [
        (0.0, False, False, True),
        (4e9, False, False, False),
        (0.0, True, False, False),
        (0.0, True, True, True),
        (4e9, True, True, True),
    ],
)
def test_whether_the_clock_can_be_right(tmp_path, monkeypatch, noted, daemon, synchronized, right):
    folder = tmp_path / "timesync"
    monkeypatch.setattr(scheduling, "_TIMESYNCD", folder)
    monkeypatch.setattr(scheduling, "_SYNCHRONIZED", folder / "synchronized")
    monkeypatch.setattr(scheduling, "_BUILT", time.time() - 60)
    if daemon:
        folder.mkdir()
    if synchronized:
        (folder / "synchronized").touch()
    clock = scheduling.Clock(noted)
    assert clock.is_right() is right
    monkeypatch.setattr(scheduling, "_BUILT", time.time() + 1e6)
    assert not scheduling.Clock(0.0).is_right(), "before the program was made"


# A store that went bad --------------------------------------------------------------------------


def test_a_corrupt_store_is_set_aside_with_all_that_belongs_to_it(tmp_path):
    path = tmp_path / "fp-agent.db"
    kept = {}
    for turn in range(3):  # within one second, too
        for tail in ("", "-wal", "-shm")[: turn + 1]:
            path.with_name(path.name + tail).write_text(f"{turn}{tail}")
        moved = housekeeping.set_aside(path)
        assert moved.name.startswith("fp-agent.db.corrupt-")
        assert moved not in kept
        kept[moved] = turn
        for tail in ("", "-wal", "-shm"):
            assert not path.with_name(path.name + tail).exists()
    for moved, turn in kept.items():
        assert moved.read_text() == f"{turn}"
        assert moved.with_name(moved.name + "-wal").exists() is (turn > 0)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_store_that_cannot_be_renamed_is_an_error_that_says_so(tmp_path, monkeypatch):
    path = tmp_path / "fp-agent.db"
    path.touch()
    (tmp_path / "fp-agent.db-wal").mkdir()  # a file cannot take its place, nor it that of a file

    def refuses(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "rename", refuses)
    with pytest.raises(StoreError, match="is corrupt, and cannot be renamed: Permission denied"):
        housekeeping.set_aside(path)


def test_a_chunk_has_its_place_in_the_protocol():
    assert ResultChunk in messages.Report.__args__
