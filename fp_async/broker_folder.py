"""The folder that `flowerpower broker-config` writes, and writes again.

```
broker-config.json   what it was asked for, and what it has written
mosquitto.conf  acl  passwords  data/        for the broker (EMQX: emqx.conf acl.conf users.csv)
ca.crt  server.crt  server.key               with TLS; ca.key should not stay here
gateway/mqtt.yml  ca.crt client.crt client.key    the gateway's part of conf/mqtt.yml
agents/NAME/agent.yml  ca.crt client.crt client.key    to be copied to the device
```
Passwords are only in the clients' files. A second time, users keep theirs, and files that somebody
has changed stay as they are.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from fp_async import broker_certificates, broker_files, documents
from fp_async.broker_files import Plan, listener
from fp_async.errors import AlreadyExistsError, ConfigError, FileAccessError
from fp_async.link import Link

STATE = "broker-config.json"


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`written` maps files to the hash of what was written there."""

    plan: Plan
    written: dict[str, str] = {}


class Done(msgspec.Struct):
    """What came of it: users that are new, files that were left as somebody changed them, and
    users whose password is not known here (their files have been moved).
    """

    new: list[str] = []
    left: list[str] = []
    unknown: list[str] = []


def read(folder: Path) -> State | None:
    """What the folder was made for; None where it was not made yet. Raises ConfigError."""
    path = folder / STATE
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: {error}") from error


def write(folder: Path, plan: Plan, *, overwrite: bool = False) -> Done:
    """Make the folder as planned; users that it knew and are not in the plan any more are gone.

    Raises AlreadyExistsError where other files are in the way, and then nothing was written;
    FileAccessError; UsageError without `openssl` where that is needed.
    """
    try:
        return _Writing(folder, plan, overwrite=overwrite).all()
    except OSError as error:
        where = error.filename or folder
        raise FileAccessError(f"cannot write {where}: {error.strerror or error}") from error


class _Writing:
    """Secrets first, then what depends on them, so that a second try mends an interrupted one."""

    def __init__(self, folder: Path, plan: Plan, *, overwrite: bool) -> None:
        self._folder = folder
        self._plan = plan
        self._overwrite = overwrite
        before = read(folder)
        self._before = before.plan if before else Plan()
        self._written = dict(before.written) if before else {}
        self._users = folder / broker_files.users_file(plan)
        self._done = Done()
        if before is None and not overwrite:
            self._refuse_foreign()

    def _refuse_foreign(self) -> None:
        names = [*broker_files.texts(self._plan), self._users.name, "gateway", "agents"]
        names += ["ca.crt", "ca.key", "server.crt", "server.key"] if self._plan.tls else []
        there = [name for name in names if (self._folder / name).exists()]
        if there:
            raise AlreadyExistsError(
                f"{self._folder} has {', '.join(there)}, not written by broker-config: take "
                "another folder with --out, or --overwrite"
            )

    def all(self) -> Done:
        plan = self._plan
        (self._folder / "data").mkdir(parents=True, exist_ok=True)
        self._keep_state()
        if plan.tls:
            self._certify()
        self._write_users()
        for name, text in broker_files.texts(plan).items():
            self._put(name, text, 0o644)
        self._forget()
        self._keep_state()
        return self._done

    # Users --------------------------------------------------------------------------------------

    def _write_users(self) -> None:
        plan = self._plan
        kept = self._kept_lines()
        lines = dict(kept)
        passwords = {user: self._password(user, kept) for user in plan.users}
        self._write_gateway(passwords[plan.gateway])
        for name in plan.agents:
            self._write_agent(name, passwords)
        entry = broker_files.emqx_user if plan.kind == "emqx" else broker_files.mosquitto_user
        for user, password in passwords.items():
            if password is not None and user not in kept:
                lines[user] = entry(user, password, secrets.token_bytes(12))
                self._done.new.append(user)
        head = ["user_id,password_hash,salt,is_superuser"] if plan.kind == "emqx" else []
        _replace(self._users, "\n".join((*head, *lines.values(), "")), 0o600)

    def _kept_lines(self) -> dict[str, str]:
        """Lines of users that stay: of the plan, and those that somebody has added."""
        text = self._users.read_text(encoding="utf-8") if self._users.exists() else ""
        gone = set(self._before.users) - set(self._plan.users) | {"user_id"}
        separator = "," if self._plan.kind == "emqx" else ":"
        lines = {line.partition(separator)[0]: line for line in text.splitlines() if line}
        return {user: line for user, line in lines.items() if user not in gone}

    def _password(self, user: str, kept: dict[str, str]) -> str | None:
        """That of the client's file; a new one for a new user; None for one that was moved."""
        found = self._known(user)
        if found is None and user not in kept:
            return secrets.token_urlsafe(24)
        if found is None:
            self._done.unknown.append(user)
        return found

    def _known(self, user: str) -> str | None:
        if user == self._plan.gateway:
            return _text_at(self._folder / "gateway" / "mqtt.yml", "broker", "password")
        if user in self._plan.agents:
            return _text_at(self._folder / "agents" / user / "agent.yml", "password")
        name = user.removesuffix("-triggers")
        uri = _text_at(self._folder / "agents" / name / "agent.yml", "triggers_broker")
        return Link.of(uri).password if uri else None

    def _write_gateway(self, password: str | None) -> None:
        folder = self._folder / "gateway"
        if password is not None:
            text = broker_files.mqtt_yml(self._plan, password, str(folder.resolve()))
            self._put("gateway/mqtt.yml", text, 0o600)

    def _write_agent(self, name: str, passwords: dict[str, str | None]) -> None:
        password, second = passwords[name], passwords.get(listener(name))
        if password is not None:
            text = broker_files.agent_yml(self._plan, name, password, second)
            self._put(f"agents/{name}/agent.yml", text, 0o600)

    # Certificates -------------------------------------------------------------------------------

    def _certify(self) -> None:
        folder, plan = self._folder, self._plan
        site = f"FlowerPower {plan.site}"
        broker_certificates.authority(folder / "ca.crt", folder / "ca.key", site)
        hosts = dict.fromkeys((plan.host, "localhost", "127.0.0.1"))
        broker_certificates.server(folder, folder, hosts)
        clients = {plan.gateway: folder / "gateway"}
        clients |= {name: folder / "agents" / name for name in plan.agents}
        for user, place in clients.items():
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            broker_certificates.client(place, folder, user)
            shutil.copyfile(folder / "ca.crt", place / "ca.crt")

    # Files --------------------------------------------------------------------------------------

    def _put(self, name: str, text: str, mode: int) -> None:
        """Write it, unless somebody has changed what was written there before."""
        path = self._folder / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = hashlib.sha256(text.encode()).hexdigest()
        if path.exists() and not self._overwrite:
            now = hashlib.sha256(path.read_bytes()).hexdigest()
            if now not in (new, self._written.get(name)):
                self._done.left.append(name)
                return
        _replace(path, text, mode)
        self._written[name] = new

    def _forget(self) -> None:
        """The files of agents that are gone."""
        for name in set(self._before.agents) - set(self._plan.agents):
            shutil.rmtree(self._folder / "agents" / name, ignore_errors=True)
            self._written.pop(f"agents/{name}/agent.yml", None)

    def _keep_state(self) -> None:
        state = State(self._plan, self._written)
        text = msgspec.json.format(msgspec.json.encode(state)).decode()
        _replace(self._folder / STATE, f"{text}\n", 0o644)


def _text_at(path: Path, *keys: str) -> str | None:
    """What stands there in a YAML file; None where there is no such thing."""
    if not path.exists():
        return None
    found: Any = documents.parse(path.read_text(encoding="utf-8"), str(path), os.environ).data
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def _replace(path: Path, text: str, mode: int) -> None:
    """All of it or nothing, never readable for others than `mode` says, of the owner as before."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(mode)
        if path.exists() and os.geteuid() == 0:
            before = path.stat()
            os.chown(name, before.st_uid, before.st_gid)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
