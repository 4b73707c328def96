"""The peers of the benchmark: their rows of the table, their environments, and how one is run."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
POSTGRES = "postgresql://postgres@127.0.0.1:5432"
LIMIT = 90.0  # seconds for each measurement

MEMORY = "no: Redis keeps nothing on disk here"
AOF = "yes: Redis appendfsync always"
FULL = "yes: synchronous=FULL"
COMMIT = "yes: synchronous_commit=on"

PACKAGES = {
    "huey": ["huey"],
    "taskiq": ["taskiq", "taskiq-redis"],
    "celery": ["celery[redis]"],
    "procrastinate": ["procrastinate", "psycopg[binary,pool]"],
    "apscheduler": [
        "apscheduler==4.0.0a6",
        "sniffio",  # which it forgets to declare
        "aiosqlite",
        "asyncpg",
        "psycopg[binary]",
        "sqlalchemy[asyncio]",
    ],
}


@dataclass(frozen=True)
class Row:
    """One peer with one choice of settings. `service` is what it is given: redis, postgres."""

    peer: str
    store: str
    settings: str
    durable: str
    jobs: int
    service: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def _quick(number: int, kind: str) -> list[str]:
    """huey's consumer with a short poll."""
    return ["-w", str(number), "-k", kind, "-d", "0.001", "-m", "0.001", "-b", "1", "-q", "-n"]


_TASKIQ = ["--workers", "2", "--max-prefetch", "200", "--max-async-tasks", "200", "--no-parse"]
_CELERY = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"]
_UNBOUND: dict[str, Any] = {
    "wal": True,
    "task": {"max_running_jobs": None, "job_executor": "async"},
}

ROWS = [
    Row("huey", "SQLite", "default: 1 thread, polls 0.1 to 10 s, client too", FULL, 2000),
    Row(
        *("huey", "SQLite", "best: 2 threads, client and consumer poll every 1 ms", FULL, 4000),
        options={"consumer": _quick(2, "thread"), "look": 0.001},
    ),
    Row(
        *("huey", "SQLite", "best, fsync=False: as above", "no: synchronous=OFF", 4000),
        options={"consumer": _quick(2, "thread"), "look": 0.001, "fsync": False},
    ),
    Row(
        "taskiq", "Redis", "default: stream, 2 processes, looks every 0.2 s", MEMORY, 4000, "redis"
    ),
    Row(
        *("taskiq", "Redis", "best: list, 2 processes, prefetch 200, looks every 1 ms", MEMORY),
        *(8000, "redis"),
        options={"broker": "list", "worker": _TASKIQ, "look": 0.001},
    ),
    Row(
        *("taskiq", "Redis", "best and durable: stream of 200, else as above", AOF, 4000, "aof"),
        options={"prefetch": 200, "worker": _TASKIQ, "look": 0.001},
    ),
    Row("celery", "Redis", "default: prefork, a process per core", MEMORY, 2000, "redis"),
    Row(
        *("celery", "Redis", "best: prefork of 2, prefetch x64, no gossip or heartbeat", MEMORY),
        *(4000, "redis"),
        options={"worker": ["-c", "2", "--prefetch-multiplier", "64", *_CELERY]},
    ),
    Row(
        *("celery", "Redis", "best: solo, prefetch x64, no gossip or heartbeat", MEMORY),
        *(4000, "redis"),
        options={"worker": ["-P", "solo", "--prefetch-multiplier", "64", *_CELERY]},
    ),
    Row(
        *("procrastinate", "PostgreSQL", "default: 1 at once, LISTEN/NOTIFY; state looked for"),
        *(COMMIT, 1000, "postgres"),
    ),
    Row(
        *("procrastinate", "PostgreSQL", "best: 20 at once, pool of 20; state looked for"),
        *(COMMIT, 2000, "postgres"),
        options={
            "pool": {"min_size": 20, "max_size": 20},
            "worker": ["--concurrency", "20", "--fetch-job-polling-interval", "0.1"],
        },
    ),
    Row("apscheduler", "SQLite", "default: 1 job at once, rollback journal, embedded", FULL, 300),
    Row(
        *("apscheduler", "SQLite", "best: async executor, 100 at once, WAL, embedded", FULL, 500),
        options=_UNBOUND,
    ),
    Row(
        *("apscheduler", "PostgreSQL", "default: 1 job at once, embedded", COMMIT),
        *(300, "postgres"),
        options={"store": "postgres"},
    ),
    Row(
        *("apscheduler", "PostgreSQL", "best: async executor, 100 at once, pool of 20, embedded"),
        *(COMMIT, 500, "postgres"),
        options={"store": "postgres", **_UNBOUND},
    ),
]


# Environments -------------------------------------------------------------------------------


def environment(cache: Path, peer: str) -> Path:
    """The interpreter of the peer's own environment; made once. Raises RuntimeError."""
    folder = cache / peer
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists() and done.read_text() == " ".join(PACKAGES[peer]):
        return python
    venv.create(folder, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "-q", *PACKAGES[peer]]
    installed = _asked(command, 300)
    if installed.returncode:
        raise RuntimeError(f"pip: {installed.stderr.strip().splitlines()[-1]}")
    done.write_text(" ".join(PACKAGES[peer]))
    return python


def version(python: Path, peer: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({peer!r}))"
    return _asked([str(python), "-c", code]).stdout.strip()


def _asked(command: list[str], seconds: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)


# Services -----------------------------------------------------------------------------------


@contextmanager
def redis(folder: Path, *, durable: bool) -> Iterator[str]:
    """The URI of a Redis of our own, empty: in memory only, or with every write fsynced."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise RuntimeError("redis-server is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = ["--appendonly", "yes", "--appendfsync", "always"] if durable else ["--appendonly", "no"]
    where = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    process = subprocess.Popen([program, *where, *kept], stdout=subprocess.DEVNULL)
    try:
        _answers(port)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError("redis-server does not answer")


@contextmanager
def postgres() -> Iterator[str]:
    """The URI of a new database, dropped at the end."""
    name = f"fp_bench_{secrets.token_hex(4)}"
    _psql(f"CREATE DATABASE {name}")
    try:
        yield f"{POSTGRES}/{name}"
    finally:
        _psql(f"DROP DATABASE {name} WITH (FORCE)")


def _psql(statement: str) -> None:
    command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement, f"{POSTGRES}/postgres"]
    done = _asked(command)
    if done.returncode:
        raise RuntimeError(f"PostgreSQL: {done.stderr.strip()}")


# Measuring ----------------------------------------------------------------------------------


def figures(
    row: Row, python: Path, rounds: int, scale: float, work: Path, repeat: int
) -> dict[str, Any]:
    """What a row measures: drain, add, p50, p99, a list of each; `error`s say what went wrong."""
    measured: dict[str, Any] = {}
    for measure in ("drain", "latency"):
        for _ in range(repeat):
            try:
                one = _run(row, python, measure, rounds // repeat, scale, work)
            except (RuntimeError, OSError) as error:
                one = {"error": str(error)}
            if "error" in one:
                measured[f"{measure}_error"] = one["error"]
                break
            for name, value in one.items():
                measured.setdefault(name, []).append(value)
    return measured


def _run(
    row: Row, python: Path, measure: str, rounds: int, scale: float, work: Path
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=work, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        services = {
            "redis": lambda: redis(folder, durable=False),
            "aof": lambda: redis(folder, durable=True),
            "postgres": postgres,
        }
        with services.get(row.service, nullcontext)() as uri:
            task = {
                "measure": measure,
                "options": row.options,
                "jobs": max(100, int(row.jobs * scale) // 100 * 100),
                "rounds": rounds,
                "limit": LIMIT,
                "folder": name,
                "uri": uri,
            }
            return _ask(python, row.peer, task, folder)


def _ask(python: Path, peer: str, task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run the peer's module in a session of its own; its last line is the answer."""
    env = {**os.environ, "FP_PEER": json.dumps(task), "PYTHONPATH": str(HERE)}
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    env["C_FORCE_ROOT"] = "1"  # Celery's
    # Imported, and not run as __main__: tasks are known by the name of their module.
    command = [str(python), "-c", f"import {peer}_peer; {peer}_peer.main()"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=LIMIT * 1.5)
    except subprocess.TimeoutExpired:
        _end(process)
        raise RuntimeError(f"nothing within {LIMIT * 1.5:.0f} s") from None
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        log = folder / "worker.log"
        said = errors.strip() or (log.read_text(errors="replace").strip() if log.exists() else "")
        raise RuntimeError(said.splitlines()[-1][:200] if said else "it said nothing")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def _end(process: subprocess.Popen[str]) -> None:
    """The script, and the worker that it has started in a session of its own."""
    import psutil

    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        try:
            os.kill(member.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def measure_all(
    cache: Path, names: list[str], rounds: int, scale: float, work: Path, repeat: int
) -> Iterator[tuple[Row, str, dict[str, Any]]]:
    """(row, the peer's version, figures) of every row of these peers, as they are measured."""
    for row in ROWS:
        if row.peer not in names:
            continue
        try:
            python = environment(cache, row.peer)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            yield row, "", {"drain_error": f"not installed: {error}"}
            continue
        print(f"  {row.peer}, {row.store}, {row.settings} ...", file=sys.stderr, flush=True)
        yield row, version(python, row.peer), figures(row, python, rounds, scale, work, repeat)
