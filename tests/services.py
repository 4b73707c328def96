"""Real servers for tests: the ones that run on this machine, and own ones that may be killed.

A test that needs a server which is not there is skipped with a reason, and fails instead where
`FP_REQUIRE_SERVICES=1` says that all of them must be there.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import psutil
import pytest
from faults import kill9

PORTS = {"postgres": 5432, "redis": 6379, "mqtt": 1883, "mysql": 3306}
URIS = {
    "postgres": "postgresql://postgres@127.0.0.1:5432/test",
    "redis": "redis://127.0.0.1:6379",
    "mqtt": "mqtt://127.0.0.1:1883",
    "mysql": "mysql://root@127.0.0.1:3306",
}


def missing(reason: str) -> None:
    """Skip the test, or fail it where all services are required."""
    if os.environ.get("FP_REQUIRE_SERVICES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def require(name: str) -> str:
    """The URI of a service that runs on this machine: postgres, redis, mqtt, mysql."""
    if not reachable(PORTS[name]):
        missing(f"no {name} on 127.0.0.1:{PORTS[name]}")
    return URIS[name]


def program(*names: str) -> str:
    """The first of these programs that is installed."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", *postgres_folders()])
    for name in names:
        if found := shutil.which(name, path=places):
            return found
    missing(f"{' or '.join(names)} is not installed")
    raise AssertionError


def postgres_folders() -> list[str]:
    return [str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"))[::-1]]


@functools.cache
def reachable(port: int) -> bool:
    return answers(port)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# Fresh databases on the servers of this machine


@contextlib.contextmanager
def fresh_postgres(uri: str | None = None) -> Iterator[str]:
    """The URI of an empty database, dropped at the end."""
    uri = uri or require("postgres")
    name = f"fp_{secrets.token_hex(6)}"
    psql(uri, f"CREATE DATABASE {name}")
    try:
        yield f"{uri.rpartition('/')[0]}/{name}"
    finally:
        psql(uri, f"DROP DATABASE {name} WITH (FORCE)")


def psql(uri: str, statement: str) -> str:
    """Run one statement; what it printed."""
    command = [program("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement, uri]
    return run(command)


@contextlib.contextmanager
def fresh_mysql(uri: str | None = None) -> Iterator[str]:
    """The URI (`mysql://`) of an empty database, dropped at the end."""
    uri = uri or require("mysql")
    name = f"fp_{secrets.token_hex(6)}"
    mysql(uri, f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    try:
        yield f"{uri}/{name}"
    finally:
        mysql(uri, f"DROP DATABASE {name}")


def mysql(uri: str, statement: str) -> str:
    """Run one statement as root without a password; what it printed."""
    port = uri.rpartition(":")[2].partition("/")[0]
    where = ["--protocol=tcp", "-h127.0.0.1", f"-P{port}", "-uroot"]
    return run([program("mariadb", "mysql"), "--no-defaults", *where, "-N", "-e", statement])


def run(command: list[str], **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, f"{command[0]}: {done.stderr or done.stdout}"
    return done.stdout


# Own servers

_TRIES = 5


class Server:
    """An own server on a free port with its data in a temporary folder; `with` starts it.

    `kill` is kill -9, `stop` is polite, `start` after either comes back with the same data on
    the same port. `password` locks it.
    """

    user = ""  # the system's user to run as, where the server refuses root
    host = "127.0.0.1"

    def __init__(self, password: str = "", *, started: bool = True) -> None:
        self.password = password
        self.port = free_port()
        self.process: subprocess.Popen | None = None
        self._started = started

    @property
    def uri(self) -> str:
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def prepare(self) -> None:
        """Make what the first start needs in `self.folder`."""

    def start(self) -> None:
        for _ in range(_TRIES):
            if self._started_once():
                return
            time.sleep(0.3)  # a port may be taken for a moment; websockets fail now and then
        pytest.fail(f"{type(self).__name__} does not start: {self.log()[-2000:]}")

    def _started_once(self) -> bool:
        """Whether it answers; False when it has ended instead."""
        with Path(self.folder, "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, cwd=self.folder, **self.identity()
            )
        deadline = time.monotonic() + 30
        while not self.ready():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                pytest.fail(f"{type(self).__name__} does not answer: {self.log()[-2000:]}")
            time.sleep(0.02)
        return True

    def ready(self) -> bool:
        return answers(self.port)

    def kill(self) -> None:
        """Kill -9, and wait for its own children, which hold on to its data for a moment."""
        if self.process is None or self.process.poll() is not None:
            return
        children = psutil.Process(self.process.pid).children(recursive=True)
        kill9(self.process)
        psutil.wait_procs(children, 10)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT if self.user == "postgres" else signal.SIGTERM)
            self.process.wait(20)

    def log(self) -> str:
        return Path(self.folder, "log").read_text(errors="replace")

    def identity(self) -> dict:
        """Arguments of Popen that make it run as `user`, where we are root."""
        if not self.user or os.geteuid() != 0:
            return {}
        account = pwd.getpwnam(self.user)
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="fp-server-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        if self.identity():
            os.chown(self.folder, self.identity()["user"], self.identity()["group"])
        try:
            self.prepare()
            if self._started:
                self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.kill()
        self._folder.cleanup()


class Mosquitto(Server):
    """`lines` are added to its configuration."""

    def __init__(self, password: str = "", *, lines: Iterable[str] = ()) -> None:
        super().__init__(password)
        self.lines = list(lines)

    @property
    def uri(self) -> str:
        login = f"fp:{self.password}@" if self.password else ""
        return f"mqtt://{login}127.0.0.1:{self.port}"

    def ready(self) -> bool:
        """Whether all its listeners are there: websockets come last."""
        more = [line.split()[1] for line in self.lines if line.startswith("listener ")]
        return all(answers(int(port)) for port in (self.port, *more))

    def command(self) -> list[str]:
        return [program("mosquitto"), "-c", str(self.folder / "conf")]

    def prepare(self) -> None:
        lines = [f"listener {self.port} 127.0.0.1", "user root", "set_tcp_nodelay true"]
        lines.append(f"allow_anonymous {'false' if self.password else 'true'}")
        if self.password:
            passwords = self.folder / "passwords"
            passwords.touch(0o600)
            run([program("mosquitto_passwd"), "-b", str(passwords), "fp", self.password])
            lines.append(f"password_file {passwords}")
        (self.folder / "conf").write_text("\n".join((*lines, *self.lines, "")))


class Redis(Server):
    @property
    def uri(self) -> str:
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        command = [program("valkey-server", "redis-server"), "--bind", "127.0.0.1"]
        command += ["--port", str(self.port), "--dir", str(self.folder), "--appendonly", "yes"]
        return command + (["--requirepass", self.password] if self.password else [])


class Postgres(Server):
    user = "postgres"

    @property
    def uri(self) -> str:
        login = f"postgres:{self.password}" if self.password else "postgres"
        return f"postgresql://{login}@127.0.0.1:{self.port}/postgres"

    def command(self) -> list[str]:
        where = ["-D", str(self.folder / "data"), "-k", str(self.folder), "-p", str(self.port)]
        return [program("postgres"), *where, "-c", "listen_addresses=127.0.0.1"]

    def prepare(self) -> None:
        auth = ["--auth=scram-sha-256", "--pwfile=password"] if self.password else ["--auth=trust"]
        (self.folder / "password").write_text(f"{self.password}\n")
        (self.folder / "password").chmod(0o644)
        command = [program("initdb"), "-D", "data", "-U", "postgres", "--no-sync", *auth]
        run(command, cwd=self.folder, **self.identity())

    def ready(self) -> bool:
        """Whether it lets clients in: it listens before that."""
        command = [program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, timeout=10).returncode == 0


class MariaDB(Server):
    user = "mysql"

    @property
    def uri(self) -> str:
        return f"mysql://root@127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        where = [f"--datadir={self.folder / 'data'}", f"--socket={self.folder / 'sock'}"]
        place = [f"--port={self.port}", "--bind-address=127.0.0.1"]
        return [program("mariadbd", "mysqld"), "--no-defaults", *where, *place]

    def prepare(self) -> None:
        options = ["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]
        command = [program("mariadb-install-db"), *options, f"--datadir={self.folder / 'data'}"]
        run(command, cwd=self.folder, **self.identity())


SERVERS = {"postgres": Postgres, "redis": Redis, "mqtt": Mosquitto, "mysql": MariaDB}
