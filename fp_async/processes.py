"""Who a process is, so that others can tell whether it still lives; and how one ends.

A name that a worker writes beside what it holds: `label@host/boot id/PID namespace/pid/start
time`. Only somebody of the same boot and the same PID namespace can judge by the process itself;
everybody else has to wait for the lease.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from fp_async.runtime import process_tree

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_count = itertools.count(1)


@cache
def boot_id() -> str:
    """The identity of the machine's current boot; of the host where the system has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{socket.gethostname()}-{int(time.time() - time.monotonic())}"


def lease_clock() -> float:
    """Seconds since the boot, counted through suspends, and never set back."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def owner(label: str) -> str:
    """The name of somebody in this process. Each call gives another one."""
    pid = os.getpid()
    name = f"{label}-{next(_count)}@{socket.gethostname()}".replace("/", "_")
    return "/".join((name, boot_id(), _namespace(), str(pid), _started(pid) or ""))


def has_died(name: str) -> bool:
    """Whether that owner's process is certainly gone; False where it cannot be told from here."""
    parts = name.split("/")
    if len(parts) != 5 or parts[1] != boot_id() or parts[2] != _namespace() or not parts[2]:
        return False
    if not parts[3].isdigit():
        return True
    pid = int(parts[3])
    started = _started(pid)
    return started != parts[4] if started else not _may_live(pid)


@cache
def _namespace() -> str:
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    return ""


def _may_live(pid: int) -> bool:
    """Of a process of which `/proc` shows nothing: it may be hidden (hidepid, ProtectProc)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not Path(f"/proc/{pid}").exists()  # there after all: a zombie


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since the boot; None where there is none."""
    facts = process_tree.stat(pid)
    return None if facts is None or facts.ended else facts.started


def kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the child with all that it has started, and reap it: a matter of milliseconds."""
    if child.returncode is None:  # once it is reaped, its number may be another process's
        process_tree.kill_tree(child.pid)
        child.wait()
    if (orphans := process_tree.orphans()) is not None:
        orphans.ended(child.pid)
    for pipe in (child.stdin, child.stdout):
        with suppress(BrokenPipeError):
            if pipe is not None:
                pipe.close()


def ended(child: subprocess.Popen[bytes]) -> int | None:
    """Return the exit code of a child that has ended, without reaping it: so its number, and that
    of its process group, are not given to others before `kill`. None while it lives.
    """
    if child.returncode is not None:
        return child.returncode
    try:
        found = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # another thread of the program has reaped it
        return child.poll()
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def wait(child: subprocess.Popen[bytes]) -> int:
    """Return the exit code of a child once it has ended; as `ended`, it is not reaped."""
    if child.returncode is None:
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    code = ended(child)
    assert code is not None
    return code


def how(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def die_with_parent(parent: int) -> None:
    """Have Linux kill this process when its parent dies, even in the middle of a node.

    A parent that has died before we asked for that would never be noticed: then we end here.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
