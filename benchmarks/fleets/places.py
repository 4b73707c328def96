"""Where the edge is measured: a broker, a project with its gateway, devices with their agents.

All of it are processes on this machine, each in a folder of its own.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import psutil

HERE = Path(__file__).parent
NOOP = "async def done() -> int:\n    return 1\n"
SQLITE = "data_store:\n  type: sqlite\n  uri: sqlite:///jobs.db\n"
FILES = 20_000  # open files that a broker, a gateway or a simulator may have
_PATIENCE = 30.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def until(done: Any, what: str, seconds: float = _PATIENCE, pause: float = 0.02) -> None:
    """Wait until `done()`."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:.0f} s")
        time.sleep(pause)


def more_files() -> None:
    """As many open files as 10,000 connections need, in this process and what it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


# The broker ---------------------------------------------------------------------------------


class Mosquitto:
    """A broker that keeps nothing on disk; `tls` adds a listener with certificates of its own.

    Its queues are large enough for a storm, so that what is measured is us, not what it drops.
    """

    def __init__(self, folder: Path, *, tls: bool = False) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.port, self.tls_port = free_port(), free_port() if tls else 0
        lines = [
            f"listener {self.port} 127.0.0.1",
            *("user root", "allow_anonymous true", "set_tcp_nodelay true"),
            *("persistence false", "max_connections -1", "max_packet_size 262144"),
            *("max_queued_messages 100000", "max_inflight_messages 1000", "log_type error"),
        ]
        if tls:
            self.ca_file = certificates(folder)
            lines += [
                f"listener {self.tls_port} 127.0.0.1",
                *("max_connections -1", f"certfile {folder}/server.pem"),
                f"keyfile {folder}/key",
            ]
        (folder / "conf").write_text("\n".join((*lines, "")))

    def start(self) -> None:
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        with (self._folder / "log").open("ab") as log:
            self.process = psutil.Popen(
                [program, "-c", str(self._folder / "conf")], stdout=log, stderr=log
            )
        until(lambda: answers(self.port), "the broker listens")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def certificates(folder: Path) -> Path:
    """An authority and a server certificate of it, by openssl; the authority's file."""
    names = folder / "names"
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    ca, signed, key, asked = (folder / name for name in ("ca.pem", "server.pem", "key", "csr"))
    ca_key, more = folder / "ca.key", f"-extfile {names} -out {signed}"
    fresh = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    for command in (
        f"req -x509 {fresh} -days 7 -subj /CN=benchmark -keyout {ca_key} -out {ca}",
        f"req -new {fresh} -subj /CN=localhost -keyout {key} -out {asked}",
        f"x509 -req -days 7 -in {asked} -CA {ca} -CAkey {ca_key} -CAcreateserial {more}",
    ):
        subprocess.run(["openssl", *command.split()], check=True, capture_output=True)
    return ca


# The center and devices ---------------------------------------------------------------------


class Place:
    """A project with `conf/mqtt.yml` for a broker; processes run until the block ends."""

    def __init__(self, folder: Path, broker: Mosquitto, conf: str = "") -> None:
        self.root, self.broker = folder / "center", broker
        (self.root / "conf").mkdir(parents=True)
        self._pipelines(self.root)
        (self.root / "conf" / "scheduler.yml").write_text(SQLITE)
        uri = f"mqtt://127.0.0.1:{broker.port}"
        (self.root / "conf" / "mqtt.yml").write_text(f"broker:\n  uri: {uri}\n{conf}")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _pipelines(self, root: Path) -> None:
        (root / "pipelines").mkdir(parents=True)
        (root / "pipelines" / "noop.py").write_text(NOOP)

    def device(self, name: str) -> Path:
        """The folder of a device, with the project's pipelines."""
        folder = self.root.parent / name
        if not folder.exists():
            self._pipelines(folder)
        return folder

    def gateway(self) -> psutil.Process:
        """An active gateway with a watch on its loop: `stalls` reads what that has seen."""
        command = [sys.executable, str(HERE / "watched.py"), str(self.root)]
        process = self._stack.enter_context(running(command, self.root / "gateway.log"))
        until(lambda: "active" in (self.root / "gateway.log").read_text(), "the gateway is active")
        return process

    def stalls(self, process: psutil.Process) -> dict[str, float]:
        """The longest stall of the gateway's loop since the last call, in ms."""
        path = self.root / "stalls.json"
        path.unlink(missing_ok=True)
        process.send_signal(signal.SIGUSR1)
        until(path.exists, "the gateway tells its stalls")
        return json.loads(path.read_text())

    def agent(self, name: str, *arguments: str, tls: bool = False) -> psutil.Process:
        """`fp-agent run`, whose process becomes the daemon."""
        folder, broker = self.device(name), self.broker
        uri = f"mqtt://127.0.0.1:{broker.port}"
        if tls:
            uri = f"mqtts://localhost:{broker.tls_port}"
            arguments = (*arguments, "--ca-file", str(broker.ca_file))
        program = str(Path(sys.executable).with_name("fp-agent"))
        command = [program, "run", "--broker", uri, "--name", name, "--project", str(folder)]
        return self._stack.enter_context(running([*command, *arguments], folder / "agent.log"))


@contextmanager
def running(command: Sequence[str], log: Path, **options: Any) -> Iterator[psutil.Popen]:
    """A process that is asked to end with the block."""
    with log.open("ab") as file:
        options = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file, **options}
        process = psutil.Popen(command, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except psutil.TimeoutExpired:
            process.kill()


# Meters -------------------------------------------------------------------------------------


def cpu(process: psutil.Process) -> float:
    """Seconds of the process alone."""
    times = process.cpu_times()
    return float(times.user + times.system)


def children_cpu(process: psutil.Process) -> float:
    """Seconds of those that it has started, ended ones included."""
    times = process.cpu_times()
    live = sum(map(cpu, process.children(recursive=True)))
    return float(times.children_user + times.children_system + live)


class Shares:
    """What share of a core each process had in a `with` block: `shares` by name."""

    def __init__(self, **processes: psutil.Process) -> None:
        self._processes = processes
        self.shares: dict[str, float] = {}
        self.seconds = 0.0

    def _read(self) -> dict[str, float]:
        found = {name: cpu(process) for name, process in self._processes.items()}
        if "agent" in self._processes:
            found["child"] = children_cpu(self._processes["agent"])
        return found

    def __enter__(self) -> Self:
        self._before, self._began = self._read(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        after = self._read()
        self.shares = {n: 100 * (after[n] - self._before[n]) / self.seconds for n in after}


def rss(process: psutil.Process) -> float:
    """MiB."""
    return float(process.memory_info().rss / 2**20)


def private(process: psutil.Process) -> float:
    """MiB that are of this process alone."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    sizes = [int(line.split()[1]) for line in lines if line.startswith("Private_")]
    return sum(sizes) / 1024


def switches(process: psutil.Process) -> int:
    """How often its threads have gone to sleep, and so were woken."""
    found = 0
    for status in Path(f"/proc/{process.pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                found += int(line.split()[1])
    return found
