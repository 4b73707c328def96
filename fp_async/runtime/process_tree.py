"""All that a child process has started: found by parentage, stopped, killed.

Process groups and sessions are left behind by `start_new_session` and by daemons; parentage is
not, as long as each parent lives. A child of a process that ends becomes the child of the nearest
ancestor that is a subreaper, or of pid 1. So a worker's command is a subreaper, and the processes
of its jobs are: what a job has started stays below the process of the job.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_PASSES = 20  # over the tree until nothing new is found in it
_ENDED = "ZX"


class Stat(NamedTuple):
    """The facts of `/proc/PID/stat` that are needed here."""

    state: str
    parent: int
    group: int
    session: int
    started: str  # clock ticks since the boot

    @property
    def ended(self) -> bool:
        """Return whether it is a zombie, which runs nothing."""
        return self.state in _ENDED


def stat(pid: int) -> Stat | None:
    """Return the facts of a process; None where there is none, or no `/proc`."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name in brackets may hold anything
    return Stat(fields[0], int(fields[1]), int(fields[2]), int(fields[3]), fields[19])


def children(pid: int) -> list[int]:
    """Return the children of a process, zombies included; none where there is no `/proc`."""
    return _listed(pid) if _lists_children() else _searched(pid)


@cache
def _lists_children() -> bool:
    """Return whether this kernel lists children (CONFIG_PROC_CHILDREN)."""
    return Path(f"/proc/self/task/{os.getpid()}/children").exists()


def _listed(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError), (thread / "children").open("rb") as file:
                found += map(int, file.read().split())
    return found


def _searched(pid: int) -> list[int]:
    with suppress(OSError):
        pids = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
        return [each for each in pids if (facts := stat(each)) and facts.parent == pid]
    return []


def descendants(root: int) -> list[int]:
    """Return all that descends from a process, without zombies."""
    found: list[int] = []
    pending = [root]
    while pending:
        for pid in children(pending.pop()):
            facts = stat(pid)
            if facts is not None and not facts.ended:
                found.append(pid)
            pending.append(pid)  # a zombie has threads at most, and no children
    return found


def kill_tree(root: int) -> None:
    """Kill a child of this process that was not reaped yet, with all that descends from it.

    All are stopped first, so that none starts another one while they are looked for.
    """
    with suppress(ProcessLookupError):
        os.kill(root, signal.SIGSTOP)
    with _stopped(root) as found:
        for send in found.values():
            send(signal.SIGKILL)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(root, signal.SIGKILL)  # all that there is without /proc
        with suppress(ProcessLookupError):
            os.kill(root, signal.SIGKILL)


Send = Callable[[int], None]


@contextmanager
def _stopped(root: int) -> Iterator[dict[int, Send]]:
    found: dict[int, Send] = {}
    handles: list[int] = []
    try:
        for _ in range(_PASSES):
            new = [pid for pid in descendants(root) if pid not in found]
            for pid in new:
                if (send := _sender(pid, {root, *found}, handles)) is not None:
                    send(signal.SIGSTOP)
                    found[pid] = send
            if not new:
                break
        yield found
    finally:
        for handle in handles:
            os.close(handle)


def _sender(pid: int, parents: set[int], handles: list[int]) -> Send | None:
    """Return what sends signals to a process, to that one only: its number may be given to
    another process at any time. None where its parent is not among `parents`.
    """
    try:
        handle = os.pidfd_open(pid)
    except (AttributeError, OSError):
        return _unsure_sender(pid, parents)
    handles.append(handle)
    facts = stat(pid)  # of the process that the handle means, or of none
    if facts is None or facts.parent not in parents:
        return None

    def send(number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(handle, number)

    return send


def _unsure_sender(pid: int, parents: set[int]) -> Send | None:
    """As `_sender`, where the kernel has no handles of processes: look before each signal."""
    first = stat(pid)
    if first is None or first.parent not in parents:
        return None

    def send(number: int) -> None:
        facts = stat(pid)
        if facts is not None and facts.started == first.started:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    return send


def become_subreaper() -> bool:
    """Have Linux give this process the orphans among its descendants; False elsewhere."""
    if sys.platform != "linux":
        return False
    import ctypes

    done: int = ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return done == 0


class Orphans:
    """The processes that this one adopts as a subreaper: reaped when they end, and killed if they
    come from a child that was killed or died. What a child that ended by itself has left on
    purpose lives on.

    `own` are the children that this process has started with a session of their own. For the
    thread of the event loop.
    """

    def __init__(self) -> None:
        self.own: set[int] = set()
        self._ending: set[int] = set()  # of its own: what they leave behind lives on
        self._spared: dict[int, str] = {}  # and when they were started

    def started(self, pid: int) -> None:
        """Know a child of our own."""
        self.own.add(pid)

    def spare(self, pid: int) -> None:
        """Let live what a child, which is about to end by itself, leaves behind."""
        self._ending.add(pid)
        self._spare(descendants(pid))

    def ended(self, pid: int) -> None:
        """Forget a child of our own that was reaped, and kill the orphans that it has left."""
        self.own.discard(pid)
        if pid in self._ending:
            self._ending.discard(pid)
        else:
            for orphan in self._living():
                if not self._is_spared(orphan):
                    kill_tree(orphan)
        self.look()

    def look(self) -> None:
        """Reap the adopted that have ended; spare new ones, unless a child of ours has died."""
        living = self._living()
        if not any(_died(pid) for pid in self.own - self._ending):  # then `ended` is to be called
            self._spared = {pid: at for pid, at in self._spared.items() if self._is_spared(pid)}
            self._spare(living)

    def _spare(self, pids: list[int]) -> None:
        self._spared |= {pid: facts.started for pid in pids if (facts := stat(pid)) is not None}

    def _is_spared(self, pid: int) -> bool:
        facts = stat(pid)
        return facts is not None and self._spared.get(pid) == facts.started

    def _living(self) -> list[int]:
        """Return the adopted, after reaping those that have ended."""
        living = []
        session = os.getsid(0)  # what this process itself starts is in it, and no job is
        for pid in children(os.getpid()):
            facts = stat(pid)
            if pid in self.own or facts is None or facts.session == session:
                continue
            if facts.ended:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            else:
                living.append(pid)
        return living


def _died(pid: int) -> bool:
    facts = stat(pid)
    return facts is not None and facts.ended


_here: list[Orphans] = []


def adopt(*, already: bool = False) -> Orphans | None:
    """Make this process a subreaper, unless it is one `already` (it stays one over `execve`), and
    return what it adopts; None where that cannot be.
    """
    if not _here and (already or become_subreaper()):
        _here.append(Orphans())
    return orphans()


def orphans() -> Orphans | None:
    """Return what this process adopts; None where it is no subreaper."""
    return _here[0] if _here else None
