"""Shortened ids: what they mean, how short they may be, and tables that have room for them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores_kit import job
from terminal import Terminal

from fp_async import short_ids
from fp_async.cli.columns import Column, fitted
from fp_async.errors import AmbiguousIdError, UnknownNameError
from fp_async.jobs import Find, Schedule

COMMAND = Path(sys.executable).parent / "flowerpower"
NEAR = [f"01a22dda-94{n:02x}-7000-8000-0000000000{n:02x}" for n in range(20)]
FAR = "f5e92bf0-a43a-568e-b586-69e2b8a02cd0"


async def test_d1_a_store_finds_ids_by_their_beginnings(store):
    await store.add([job(id=id, group_id=NEAR[0]) for id in [*NEAR, FAR]])
    assert await store.ids([]) == []
    assert await store.ids(["f", "01a2", NEAR[3], "01a22dda-9", "b"], 3) == [
        [FAR],
        NEAR[:3],
        [NEAR[3]],
        NEAR[:3],
        [],
    ]
    assert await store.ids(["01a", FAR], of="group_id") == [[NEAR[0]], []]


async def test_d1_jobs_are_listed_since_a_time(store):
    await store.add([job(id=FAR)])
    (found,) = await store.find(Find(since=(await store.now()) - 60))
    assert found.id == FAR
    assert await store.find(Find(since=found.created_at)) == [found]
    assert await store.find(Find(since=found.created_at + 0.01)) == []


async def test_d1_a_beginning_means_the_only_job_that_has_it(store):
    await store.add([job(id=id) for id in [*NEAR, FAR]])
    assert await short_ids.job(store, "F5E9") == FAR
    assert await short_ids.job(store, NEAR[7][:13]) == NEAR[7]
    with pytest.raises(AmbiguousIdError) as ambiguous:
        await short_ids.job(store, "01a22dda")
    assert ambiguous.value.candidates == NEAR[:10]
    assert NEAR[9] in str(ambiguous.value)
    for text in ("", "b", "01a22dda-94ff", "%", "x' OR 1"):
        with pytest.raises(UnknownNameError):
            await short_ids.job(store, text)


async def test_d1_what_is_shown_of_ids_tells_them_from_those_that_are_not_shown(store):
    await store.add([job(id=id) for id in [*NEAR, FAR]])
    assert await short_ids.shown_length(store, [FAR]) == 8
    length = await short_ids.shown_length(store, [NEAR[3], FAR])
    assert length == 13
    assert await short_ids.job(store, NEAR[3][:length]) == NEAR[3]


async def test_d1_schedules_have_short_ids_too(store):
    for id in ("night", "nightly", "noon"):
        await store.put(Schedule(id=id, pipeline="flow", trigger=b"{}"))
    assert (await short_ids.schedule(store, "no")).id == "noon"
    assert (await short_ids.schedule(store, "night")).id == "night"
    with pytest.raises(AmbiguousIdError):
        await short_ids.schedule(store, "n")
    with pytest.raises(UnknownNameError):
        await short_ids.schedule(store, "")


# Tables -------------------------------------------------------------------------------------

_COLUMNS = [Column("id"), Column("a", 2, cut=16), Column("b", 1), Column("c", 3), Column("d", 1)]


@given(st.fixed_dictionaries({c.name: st.integers(1, 90) for c in _COLUMNS}), st.integers(8, 200))
def test_d1_columns_are_left_out_by_rank_and_the_rest_fits(natural, room):
    widths = fitted(_COLUMNS, natural, room)
    taken = sum(widths.values()) + 2 * (len(widths) - 1)
    assert list(widths) == [c.name for c in _COLUMNS if c.name in widths]
    assert taken <= room or len(widths) == 1
    assert {**widths, "a": 0} == {**{name: natural[name] for name in widths}, "a": 0}
    ranks = [c.rank for c in _COLUMNS if c.name in widths]
    gone = [c.rank for c in _COLUMNS if c.name not in widths]
    assert not gone or max(ranks) <= min(gone)


async def test_d1_a_narrow_terminal_shows_a_line_a_job_with_ids_that_are_accepted(make_project):
    project = make_project(flow="def number() -> int:\n    return 1\n")
    conf = project.root / "conf" / "scheduler.yml"
    conf.parent.mkdir()
    conf.write_text("data_store: {type: sqlite, uri: 'sqlite:///jobs.db'}\n")
    async with project:
        added = [await project.add_job("flow") for _ in range(30)]
        await project.cancel_job(added[-1], "said no with many words, of which there is no end")
        with Terminal(COMMAND, "jobs", cwd=project.root, columns=80) as terminal:
            code, shown = terminal.end()
        assert code == 0, shown
        head, *rows = shown.splitlines()
        assert {"id", "pipeline", "state", "error"} <= set(head.split())
        assert max(map(len, rows)) <= 80
        assert "cancelled" in rows[0]
        assert "said no" in rows[0]
        found = [(await project.get_job(row.split()[0])).id for row in rows]
        assert found == added[:-21:-1]
