"""The folder that `flowerpower broker-config` writes, and writes again.

```
broker-config.json   what it was asked for, and what it has written
mosquitto.conf  acl  passwords  data/        for the broker (EMQX: emqx.conf acl.conf users.csv)
ca.crt  server.crt  server.key               with TLS; ca.key should not stay here
gateway/mqtt.yml  ca.crt client.crt client.key    the gateway's part of conf/mqtt.yml
agents/NAME/agent.yml  ca.crt client.crt client.key    to be copied to the device
clients/NAME/client.yml  ca.crt client.crt client.key    for who is no agent
sites/SITE/                                  the clients' files of another site on this broker
```
Passwords are only in the clients' files. A second time, users keep theirs, and what others have
written in a file stays: see `broker_merging`.
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

from fp_async import broker_certificates, broker_files, broker_merging, documents
from fp_async.broker_files import Plan
from fp_async.errors import AlreadyExistsError, ConfigError, FileAccessError
from fp_async.link import Link
from fp_async.values import mismatch

STATE = "broker-config.json"
_SHARED = ("kind", "host", "port", "tls", "at")  # what is the broker's, and not a site's


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`written` maps files to the hash of what was written there."""

    plan: Plan
    written: dict[str, str] = {}


class Done(msgspec.Struct):
    """Result of writing: new users, files that were left as they had been changed, with the
    lines that they lack, and users whose password is not known here (their files have been moved).
    """

    new: list[str] = []
    left: dict[str, list[str]] = {}
    unknown: list[str] = []


class _PlanKept(Plan, frozen=True, forbid_unknown_fields=True, kw_only=True):
    plain: tuple[str, ...] | None = None


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    plan: _PlanKept
    written: dict[str, str] = {}


def read(folder: Path) -> State | None:
    """What the folder was made for; None where it was not made yet. Raises ConfigError."""
    path = folder / STATE
    if not path.exists():
        return None
    found = mismatch.decoded(path.read_bytes(), _Kept, lambda why: ConfigError(f"{path}: {why}"))
    plan = found.plan
    if plan.plain is None:  # an earlier release: its users had the names of their agents
        plain = plan.agents if plan.names.client("a") != "a" else ()
        plan = msgspec.structs.replace(plan, plain=plain)
    return State(plan, found.written)


def place_of(folder: Path, site: str | None) -> Path:
    """Where a site has the files of its clients: the first one of a broker in `folder` itself."""
    first = read(folder)
    if first is None or site in (None, first.plan.site):
        return folder
    return folder / "sites" / (site or "")


def beside(folder: Path, plan: Plan) -> Plan:
    """A plan with what is the broker's, as the first site of `folder` has it."""
    first = read(folder)
    if first is None:
        return plan
    shared = {name: getattr(first.plan, name) for name in _SHARED}
    return msgspec.structs.replace(plan, **shared)


def write(folder: Path, plan: Plan, *, overwrite: bool = False) -> Done:
    """Make the folder as planned; users that it knew and are not in the plan any more are gone.

    Where it is another site's already, the files of the clients stand below it. Raises
    AlreadyExistsError where other files are in the way, and then nothing was written;
    FileAccessError; UsageError without `openssl` where that is needed.
    """
    place = place_of(folder, plan.site)
    try:
        done = _Writing(folder, place, plan, overwrite=overwrite).all()
        for other in _others(folder) if place == folder else ():
            plan = beside(folder, other.plan)
            more = _Writing(folder, place_of(folder, plan.site), plan, overwrite=overwrite).all()
            done.left |= more.left
            done.unknown += more.unknown
    except OSError as error:
        where = error.filename or folder
        raise FileAccessError(f"cannot write {where}: {error.strerror or error}") from error
    return done


def _others(folder: Path) -> list[State]:
    """The further sites of the broker."""
    found = (read(path.parent) for path in sorted(folder.glob(f"sites/*/{STATE}")))
    return [state for state in found if state is not None]


class _Writing:
    """Secrets first, then what depends on them, so that a second try mends an interrupted one."""

    def __init__(self, top: Path, folder: Path, plan: Plan, *, overwrite: bool) -> None:
        self._top = top
        self._folder = folder
        self._plan = plan
        self._overwrite = overwrite
        before = read(folder)
        self._known_before = before is not None
        self._before = before.plan if before else Plan()
        self._written = dict(before.written) if before else {}
        self._users = top / broker_files.users_file(plan)
        self._done = Done()
        if before is None and not overwrite:
            self._refuse_foreign()

    def _refuse_foreign(self) -> None:
        names = ["gateway", "agents", "clients"]
        if self._folder == self._top:
            names += [*broker_files.texts(self._plan), self._users.name]
            names += ["ca.crt", "ca.key", "server.crt", "server.key"] if self._plan.tls else []
        there = [name for name in names if (self._folder / name).exists()]
        if there:
            raise AlreadyExistsError(
                f"{self._folder} has {', '.join(there)}, not written by broker-config: take "
                "another folder with --out, or --overwrite"
            )

    def all(self) -> Done:
        plan = self._plan
        (self._top / "data").mkdir(parents=True, exist_ok=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        if not (self._top / ".gitignore").exists():
            _replace(self._top / ".gitignore", "# Passwords and keys\n*\n", 0o644)
        self._keep_state(self._before if self._known_before else plan)
        if plan.tls:
            self._certify()
        self._write_users()
        self._write_rights()
        if self._folder == self._top:
            for name, text in self._configuration(plan).items():
                self._put(name, text, self._configuration(self._before)[name], 0o644)
        self._forget()
        self._keep_state(plan)
        return self._done

    def _configuration(self, plan: Plan) -> dict[str, str]:
        """The broker's configuration, which is the same for all sites."""
        plan = msgspec.structs.replace(plan, kind=self._plan.kind)
        texts = broker_files.texts(plan)
        del texts[broker_files.rights_file(plan)]
        return texts

    def _write_rights(self) -> None:
        path = self._top / broker_files.rights_file(self._plan)
        fresh = not path.exists() or (not self._known_before and self._folder == self._top)
        kept = "" if fresh else path.read_text(encoding="utf-8")
        if _hash(kept.encode()) == self._written.pop(path.name, None):
            kept = ""  # an earlier release, which made no marks, has written all of it
        before = self._before if self._known_before else None
        text = broker_files.rights(self._plan, kept, before)
        if text != kept:
            _replace(path, text, 0o644)

    # Users --------------------------------------------------------------------------------------

    def _write_users(self) -> None:
        plan = self._plan
        kept = self._kept_lines()
        lines = dict(kept)
        passwords = {user: self._password(user, kept) for user in plan.users}
        self._write_gateway(passwords[plan.gateway])
        for name in plan.agents:
            self._write_agent(name, passwords)
        for name in plan.clients:
            self._write_client(name, passwords[plan.names.client(name)])
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
        before = self._before.users if self._known_before else ()
        gone = set(before) - set(self._plan.users) | {"user_id"}
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
        names = self._plan.names
        client = next((each for each in self._plan.clients if user == names.client(each)), None)
        if client is not None:
            return _text_at(self._folder / "clients" / client / "client.yml", "password")
        name = next(name for name in self._plan.agents if user in self._plan.users_of(name))
        if user == self._plan.user(name):
            return _text_at(self._folder / "agents" / name / "agent.yml", "password")
        uri = _text_at(self._folder / "agents" / name / "agent.yml", "triggers_broker")
        return Link.of(uri).password if uri else None

    def _write_gateway(self, password: str | None) -> None:
        folder = str((self._folder / "gateway").resolve())
        if password is not None:
            file = self._folder / "gateway" / "mqtt.yml"
            listed = file.exists() and "\nagents:\n" in file.read_text(encoding="utf-8")
            new = broker_files.mqtt_yml(self._plan, password, folder)
            old = broker_files.mqtt_yml(self._before, password, folder, listed=listed)
            self._put("gateway/mqtt.yml", new, old, 0o600)

    def _write_agent(self, name: str, passwords: dict[str, str | None]) -> None:
        plan, before = self._plan, self._before
        password = passwords[plan.user(name)]
        second = passwords.get(plan.listener(name))
        if password is not None:
            new = broker_files.agent_yml(plan, name, password, second)
            old = broker_files.agent_yml(
                before, name, password, second if before.local_topics else None
            )
            self._put(f"agents/{name}/agent.yml", new, old, 0o600)

    def _write_client(self, name: str, password: str | None) -> None:
        if password is not None:
            new, old = (
                broker_files.client_yml(plan, name, password) for plan in (self._plan, self._before)
            )
            self._put(f"clients/{name}/client.yml", new, old, 0o600)

    # Certificates -------------------------------------------------------------------------------

    def _certify(self) -> None:
        folder, top, plan = self._folder, self._top, self._plan
        if folder == top:
            site = f"FlowerPower {plan.site}"
            broker_certificates.authority(top / "ca.crt", top / "ca.key", site)
            self._certify_server()
        clients = {plan.gateway: folder / "gateway"}
        clients |= {plan.user(name): folder / "agents" / name for name in plan.agents}
        clients |= {plan.names.client(name): folder / "clients" / name for name in plan.clients}
        for user, place in clients.items():
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            broker_certificates.client(place, top, user)
            shutil.copyfile(top / "ca.crt", place / "ca.crt")

    def _certify_server(self) -> None:
        """With the names by which clients reach it; anew for another one, if it is ours."""
        top, plan = self._top, self._plan
        path = top / "server.crt"
        if path.exists() and self._before.tls and self._before.host != plan.host:
            if self._written.get(path.name) == _hash(path.read_bytes()):
                path.unlink()
            else:
                self._done.left[path.name] = [f"the name {plan.host}"]
        mine = not path.exists()
        hosts = dict.fromkeys((plan.host, "localhost", "127.0.0.1"))
        broker_certificates.server(top, top, hosts)
        if mine:
            self._written[path.name] = _hash(path.read_bytes())

    # Files --------------------------------------------------------------------------------------

    def _put(self, name: str, text: str, before: str, mode: int) -> None:
        """Write it. Where somebody has changed what was written for the plan `before`, change
        what is another now; where that cannot be done, leave it and say what it lacks.
        """
        path = self._folder / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = _hash(text.encode())
        if path.exists() and not self._overwrite:
            data = path.read_bytes()
            if _hash(data) not in (new, self._written.get(name)):
                now = data.decode(errors="replace")
                self._merge(name, now, text, before, mode)
                return
        _replace(path, text, mode)
        self._written[name] = new

    def _merge(self, name: str, now: str, text: str, before: str, mode: int) -> None:
        if self._written.get(name) == _hash(text.encode()):
            return  # nothing of it has changed
        merged = None
        if self._written.get(name) == _hash(before.encode()):
            merged = broker_merging.patched(now, before, text)
        if merged is None:
            self._done.left[str((self._folder / name).relative_to(self._top))] = (
                broker_merging.lacking(now, before, text)
            )
            return
        _replace(self._folder / name, merged, mode)
        self._written[name] = _hash(text.encode())

    def _forget(self) -> None:
        """The files of agents that are gone."""
        for name in set(self._before.agents) - set(self._plan.agents):
            shutil.rmtree(self._folder / "agents" / name, ignore_errors=True)
            self._written.pop(f"agents/{name}/agent.yml", None)
        for name in set(self._before.clients) - set(self._plan.clients):
            shutil.rmtree(self._folder / "clients" / name, ignore_errors=True)
            self._written.pop(f"clients/{name}/client.yml", None)

    def _keep_state(self, plan: Plan) -> None:
        state = State(plan, self._written)
        text = msgspec.json.format(msgspec.json.encode(state)).decode()
        _replace(self._folder / STATE, f"{text}\n", 0o644)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
