"""The files of one device: its pipelines, their configuration, agent.yml and keys, and no more.

```
agent.yml  ca.crt  client.crt  client.key       from broker/agents/NAME/
device-files.json                               what was written here, and the version before
store/                                          empty: the agent's store
project/pipelines  project/conf                 links into project/.files
project/.files -> .files-<digest>               the version in use
```
A new version is written beside the one in use; then one rename of a link puts it in its place. So
no job sees half of it; what jobs and the operator keep in `project/` (.env, caches, data) stays.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from fp_async import config_files, documents, editing, variables, versions
from fp_async.documents import Template
from fp_async.errors import AlreadyExistsError, ConfigError, UnknownNameError, UsageError
from fp_async.values import mismatch
from fp_async.variables import Variable

_STATE = "device-files.json"
_LINK = ".files"
_KEYS = ("ca.crt", "client.crt", "client.key")
_CONFIGURATION = Path("conf", "pipelines.yml")
_SECRET = {".env", "broker", "conf", ".git"}  # what --include does not take
_CENTER = {
    ".env": "variables of this machine, passwords among them",
    "broker": "passwords and keys of the whole fleet",
    "conf/mqtt.yml": "the gateway's login",
    "conf/scheduler.yml": "the center's store and its login",
    "conf/tracker.yml": "the center's tracker",
}


class Written(msgspec.Struct, frozen=True):
    """State of a device's folder: `files` maps those beside `project/` to the hash of what was
    written there; `versions` are digests with the paths that are links, the one in use first.
    """

    agent: str
    files: dict[str, str] = {}
    versions: list[tuple[str, list[str]]] = []


class Done(msgspec.Struct):
    """Result of writing. `version` is the digest of what is in use, `changed` whether it is new;
    `kept` are files that were changed by hand and stay, `left_out` maps what is not on the device
    to the reason, `variables` are those that its configuration needs there.
    """

    version: str
    changed: bool
    files: list[str]
    kept: list[str]
    left_out: dict[str, str]
    variables: list[str]


class Wanted(msgspec.Struct, frozen=True):
    """What a device is to have: `keys` is the folder with its agent.yml, None without any."""

    agent: str
    pipelines: list[str]
    include: list[str] = []
    keys: Path | None = None


def keys_of(root: Path, agent: str) -> Path | None:
    """Return the folder that `broker-config` has written for an agent; None where there is none.

    Raises UsageError where two sites have an agent of that name.
    """
    broker = root / "broker"
    found = [broker / "agents" / agent, *sorted(broker.glob(f"sites/*/agents/{agent}"))]
    found = [each for each in found if (each / "agent.yml").is_file()]
    if len(found) > 1:
        names = ", ".join(str(each.relative_to(root)) for each in found)
        raise UsageError(f"there are several agents '{agent}': {names}; choose one by --keys")
    return found[0] if found else None


def allowed(keys: Path | None) -> list[str] | None:
    """Return the pipelines that its agent.yml allows others and its triggers to run; None for all.
    Raises ConfigError.
    """
    if keys is None:
        return None
    path = keys / "agent.yml"
    document = documents.parse(path.read_text(encoding="utf-8"), str(path), os.environ)
    names, triggers = document.raw(("pipelines",)), document.raw(("triggers",)) or {}
    if not isinstance(names, list):
        return None
    return sorted({*map(str, names), *(str(each["pipeline"]) for each in triggers.values())})


def write(root: Path, folder: Path, wanted: Wanted, *, overwrite: bool = False) -> Done:
    """Write the device's folder, or bring it up to date. Raises ConfigError, UsageError,
    AlreadyExistsError; OSError.
    """
    state = _state(folder)
    if state is not None and state.agent != wanted.agent:
        raise AlreadyExistsError(f"{folder} has the files of agent '{state.agent}'")
    texts = dict(_project_files(root, wanted))
    for link in _links(wanted):
        _refuse_foreign(folder / "project" / link)
    before = state or Written(wanted.agent)
    (folder / "store").mkdir(parents=True, exist_ok=True, mode=0o700)
    written, kept = _write_keys(folder, wanted, before.files, overwrite=overwrite)
    version = _digest(texts)
    changed = [digest for digest, _ in before.versions[:1]] != [version]
    others = [each for each in before.versions if each[0] != version]
    after = Written(
        wanted.agent, {**before.files, **written}, [(version, _links(wanted)), *others[:1]]
    )
    _place(folder / "project", texts, version)
    _use(folder, after)
    _tidy(folder / "project", after)
    files = [*written, *(f"project/{path}" for path in sorted(texts))]
    left_out = dict(_left_out(root, wanted, texts))
    return Done(version, changed, files, kept, left_out, _variables(root, wanted))


def back(folder: Path) -> str:
    """Put the version before into use again; return its digest. Raises UsageError."""
    state = _state(folder)
    if state is None or len(state.versions) < 2:
        raise UsageError(f"{folder} has no version before the present one")
    _use(folder, msgspec.structs.replace(state, versions=state.versions[::-1]))
    return state.versions[1][0]


def _use(folder: Path, state: Written) -> None:
    """Put the first version of a state into use, and keep the state. A second call after a crash
    does the rest.
    """
    version, links = state.versions[0]
    _switch(folder / "project", version)
    _link(folder / "project", links)
    _keep(folder, state)


# What belongs to it -----------------------------------------------------------------------------


def _project_files(root: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    for path in sorted(_sources(root, wanted)):
        yield path.relative_to(root).as_posix(), path.read_bytes()
    yield _CONFIGURATION.as_posix(), _configuration(root, wanted).encode()


def _sources(root: Path, wanted: Wanted) -> set[Path]:
    """All of pipelines/; of some pipelines only their modules, with the siblings that these import.
    And what was asked for besides.
    """
    folder, names = root / "pipelines", versions.names(root)
    for name in wanted.pipelines:
        if name not in names:
            raise UnknownNameError("pipeline", name, names)
    found = set[Path]()
    if set(wanted.pipelines) == set(names):
        found.update(_useful(root, folder))
    for name in {*wanted.pipelines, *_further_modules(root, wanted)}:
        found.update(versions.family(folder, name))
    for text in wanted.include:
        found.update(_useful(root, _included(root, text)))
    return found


def _further_modules(root: Path, wanted: Wanted) -> Iterator[str]:
    """Modules that the configuration names: `modules`, and functions that hear of a run."""
    for name in wanted.pipelines:
        for run in _runs(root, name):
            yield from run.get("modules") or ()
            for key in ("on_success", "on_failure", "on_retry"):
                given = run.get(key) or ()
                for text in (given,) if isinstance(given, str) else given:
                    yield str(text).partition(":")[0].partition(".")[0]


def _runs(root: Path, name: str) -> list[dict[str, Any]]:
    document = config_files.of(root).document("pipelines.yml")
    runs = document.raw(("run", name)) or {}
    return [each for each in runs.values() if isinstance(each, dict)]


def _useful(root: Path, place: Path) -> Iterator[Path]:
    """The files at a place but caches and hidden ones. Raises UsageError."""
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        if path.is_file() and not _is_waste(path.relative_to(root)):
            if not path.resolve().is_relative_to(root.resolve()):
                raise UsageError(f"{path} is a link that leads out of the project")
            yield path


def _included(root: Path, text: str) -> Path:
    place = Path(os.path.normpath(root / text))
    if not place.is_relative_to(root) or place == root:
        raise UsageError(f"--include {text}: name a file or a folder of the project")
    if place.relative_to(root).parts[0] in _SECRET or place.suffix == ".db":
        raise UsageError(f"--include {text}: this stays at the center")
    if not place.exists():
        raise UsageError(f"--include {text}: there is no {place}")
    return place


def _is_waste(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _configuration(root: Path, wanted: Wanted) -> str:
    """conf/pipelines.yml with the device's pipelines alone, and without their schedules, which the
    center keeps.
    """
    path = root / _CONFIGURATION
    text = path.read_text(encoding="utf-8") if path.exists() else ""

    def cut(document: Any) -> None:
        for section in ("params", "run"):
            entries = document.get(section)
            for name in [each for each in entries or () if each not in wanted.pipelines]:
                del entries[name]
        for environments in (document.get("run") or {}).values():
            for run in (environments or {}).values():
                if run is not None and "schedule" in run:
                    del run["schedule"]

    return editing.edit(text, str(path), cut) if text.strip() else ""


def _variables(root: Path, wanted: Wanted) -> list[str]:
    """The variables without a default in that configuration."""
    document = config_files.of(root).document("pipelines.yml")
    found = set[str]()
    for name in wanted.pipelines:
        kept = [{k: v for k, v in run.items() if k != "schedule"} for run in _runs(root, name)]
        for template in _templates([document.raw(("params", name)), kept]):
            if not isinstance(template.parts, variables.VariableError):
                found.update(_needed(template.parts))
    return sorted(found)


def _needed(parts: variables.Parts) -> Iterator[str]:
    for part in parts:
        if isinstance(part, Variable):
            yield from [part.name] if part.default is None else _needed(part.default)


def _templates(data: Any) -> Iterator[Template]:
    if isinstance(data, Template):
        yield data
    elif isinstance(data, dict):
        for each in data.values():
            yield from _templates(each)
    elif isinstance(data, list):
        for each in data:
            yield from _templates(each)


def _left_out(root: Path, wanted: Wanted, texts: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    for name, why in _CENTER.items():
        if (root / name).exists():
            yield name, why
    for name in versions.names(root):
        if (module := f"pipelines/{name}.py") not in texts:
            yield module, "not among --pipelines"
    included = {Path(os.path.normpath(each)).parts[0] for each in wanted.include}
    for path in sorted(root.iterdir()):
        name = path.name
        known = name in {"pipelines", "conf", "broker", *included}
        if known or name.startswith("."):
            continue
        store = name.partition(".db")[1]
        yield name, "a store, of this machine" if store else "not asked for (--include)"


# Writing ----------------------------------------------------------------------------------------


def _links(wanted: Wanted) -> list[str]:
    """The paths of the project that are links into the version in use."""
    asked = sorted({Path(os.path.normpath(each)) for each in wanted.include})
    inner = [each for each in asked if not {Path("pipelines"), *asked} & set(each.parents)]
    return ["pipelines", "conf", *(each.as_posix() for each in inner)]


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not path.is_symlink():
        text = f"{path} was copied by hand: move it away, and its place is taken by a link"
        raise AlreadyExistsError(text)


def _write_keys(
    folder: Path, wanted: Wanted, before: dict[str, str], *, overwrite: bool
) -> tuple[dict[str, str], list[str]]:
    """Write agent.yml and keys; return hashes of what was written, and files that stay since they
    were changed by hand.
    """
    written: dict[str, str] = {}
    kept: list[str] = []
    for name, data in _own(wanted):
        path, new = folder / name, _hash(data)
        now = _hash(path.read_bytes()) if path.exists() else None
        if now not in (None, new, before.get(name)) and not overwrite:
            kept.append(name)
            continue
        if now != new:
            _replace(path, data, 0o600)
        written[name] = new
    return written, kept


def _own(wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    if wanted.keys is None:
        return
    for name in _KEYS:
        if (path := wanted.keys / name).is_file():
            yield name, path.read_bytes()
    path = wanted.keys / "agent.yml"

    def settle(document: Any) -> None:
        document.setdefault("project", "project")
        document.setdefault("store", "store/fp-agent.db")

    yield "agent.yml", editing.edit(path.read_text(encoding="utf-8"), str(path), settle).encode()


def _place(project: Path, texts: dict[str, bytes], version: str) -> None:
    """Write a version beside the one in use, complete before it has its name."""
    place = project / f"{_LINK}-{version}"
    if place.is_dir():
        return
    project.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=project, prefix=f"{_LINK}-new-"))
    try:
        for name, data in texts.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            with (new / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        new.chmod(0o755)
        new.rename(place)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _switch(project: Path, version: str) -> None:
    """Put a version into use, by one rename."""
    new = project / f"{_LINK}-next"
    new.unlink(missing_ok=True)
    new.symlink_to(f"{_LINK}-{version}")
    new.replace(project / _LINK)


def _link(project: Path, links: Iterable[str]) -> None:
    wanted = list(links)
    for name in wanted:
        path = project / name
        target = os.path.relpath(project / _LINK / name, path.parent)
        if not path.is_symlink() or path.readlink() != Path(target):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to(target)
    for path in list(project.rglob("*")):  # of what is included no more
        if path.is_symlink() and not path.exists() and _LINK in path.readlink().parts:
            path.unlink()


def _tidy(project: Path, state: Written) -> None:
    kept = {f"{_LINK}-{version}" for version, _ in state.versions}
    for path in project.glob(f"{_LINK}-*"):
        if path.name not in kept and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _state(folder: Path) -> Written | None:
    path = folder / _STATE
    if not path.exists():
        return None
    return mismatch.decoded(path.read_bytes(), Written, lambda why: ConfigError(f"{path}: {why}"))


def _keep(folder: Path, state: Written) -> None:
    data = msgspec.json.format(msgspec.json.encode(state)) + b"\n"
    _replace(folder / _STATE, data, 0o600)


def _replace(path: Path, data: bytes, mode: int) -> None:
    """Write a file, all of it or nothing."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(texts: dict[str, bytes]) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for name, data in sorted(texts.items()):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()
