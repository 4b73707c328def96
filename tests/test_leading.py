"""Which of several gateways leads, where the store is a file and where it is none."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fp_async import leading
from fp_async.errors import StoreUnavailableError
from fp_async.stores.sqlite import SqliteStore

ROLE = "gateway:main"
LEADER = """
import asyncio, sys
from pathlib import Path
from fp_async.leading import lead
from fp_async.stores.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    print(await lead(store, "gateway:main", "other").take(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def store(tmp_path):
    opened = SqliteStore(tmp_path / "jobs.db")
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def elsewhere(tmp_path):
    """Start another process that takes the lead, where it is free; says whether it was."""
    running = []

    def start(expected):
        command = [sys.executable, "-c", textwrap.dedent(LEADER), str(tmp_path / "jobs.db")]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert running[-1].stdout.readline().strip() == str(expected)
        return running[-1]

    yield start
    for each in running:
        each.kill()
        each.communicate()


def lock_of(store):
    return Path(f"{store.path}.gateway%3Amain.lock")


async def test_one_process_leads_until_it_is_killed(store, elsewhere):
    other = elsewhere(True)
    mine = leading.lead(store, ROLE, "me")
    assert await mine.take() is False
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert await mine.take() is True
    elsewhere(False)


async def test_one_process_leads_until_it_gives_back(store, elsewhere):
    mine = leading.lead(store, ROLE, "me")
    assert await mine.take() is True
    await mine.give_back()
    elsewhere(True)
    assert await mine.take() is False


async def test_roles_are_led_apart(store):
    first, second = (leading.lead(store, role, "me") for role in ("gateway:a", "gateway:b"))
    assert [await first.take(), await second.take()] == [True, True]


async def test_to_go_on_leading_writes_nothing(store):
    mine = leading.lead(store, ROLE, "me")
    await mine.take()
    log = Path(f"{store.path}-wal")
    before = log.stat().st_size, log.stat().st_mtime_ns
    for _ in range(100):
        assert await mine.take() is True
    assert (log.stat().st_size, log.stat().st_mtime_ns) == before


async def test_a_release_that_knows_no_lock_sees_that_someone_leads(store):
    assert await leading.lead(store, ROLE, "me").take() is True
    assert await store.fleet.lead(ROLE, "of an older release", 10) is False


async def test_who_leads_by_a_row_alone_is_waited_for(store):
    assert await store.fleet.lead(ROLE, "of an older release", 10) is True
    mine = leading.lead(store, ROLE, "me")
    assert await mine.take() is False
    await store.fleet.lead(ROLE, "of an older release", 0)
    assert await mine.take() is True


async def test_the_row_of_a_killed_leader_keeps_no_one_out(store, elsewhere):
    other = elsewhere(True)
    other.kill()
    other.wait()
    (row,) = await store.members("lead")
    assert row.until > await store.now() + 3000
    assert await leading.lead(store, ROLE, "me").take() is True


async def test_a_lock_whose_file_was_removed_is_taken_anew(store, elsewhere):
    mine = leading.lead(store, ROLE, "me")
    await mine.take()
    lock_of(store).unlink()
    elsewhere(True)
    assert await mine.take() is False


async def test_where_files_have_no_locks_a_row_says_who_leads(store, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    mine, other = (leading.lead(store, ROLE, name) for name in ("me", "other"))
    assert [await mine.take(), await other.take()] == [True, False]
    await mine.give_back()
    assert await other.take() is True


async def test_a_link_in_the_place_of_the_lock_is_not_followed(store, tmp_path):
    target = tmp_path / "precious"
    target.write_text("kept")
    lock_of(store).symlink_to(target)
    with pytest.raises(StoreUnavailableError, match=r"gateway%3Amain\.lock"):
        await leading.lead(store, ROLE, "me").take()
    assert target.read_text() == "kept"


async def test_only_its_user_may_open_the_lock(store):
    before = os.umask(0)
    try:
        await leading.lead(store, ROLE, "me").take()
    finally:
        os.umask(before)
    assert lock_of(store).stat().st_mode & 0o777 == 0o600


async def test_in_memory_a_row_says_who_leads():
    store = SqliteStore(None)
    await store.open()
    try:
        mine, other = (leading.lead(store, ROLE, name) for name in ("me", "other"))
        assert [await mine.take(), await other.take()] == [True, False]
        await mine.give_back()
        assert await other.take() is True
    finally:
        await store.close()
