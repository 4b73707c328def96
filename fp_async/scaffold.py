"""Creates projects and pipelines on disk, and takes pipelines away again.

Everything is read, checked and written beside the files before the first of them is replaced, so
that a mistake, a full disk or a crash leaves the old files or the new ones.
"""

from __future__ import annotations

import fcntl
import json
import keyword
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from fp_async import editing, schemas
from fp_async.config import FILES
from fp_async.errors import AlreadyExistsError, FileAccessError, UnknownNameError, UsageError

# The sections in which a pipeline has entries.
_SECTIONS = {"pipelines.yml": ("params", "run"), "tracker.yml": ("pipeline",)}

_IMPORTED = ("fp_async", "hamilton")  # by the template


def create_project(root: Path, *, overwrite: bool = False) -> list[Path]:
    """Write `conf/*.yml` and `pipelines/` below `root`; returns the files of conf/ written.

    `.gitignore` keeps secrets and data out of a repository; what it has already stays. Files of
    conf/ that exist are left alone, or replaced with `overwrite`. Raises AlreadyExistsError
    where there is a project already, FileAccessError where the folder cannot be written.
    """
    conf = root / "conf"
    if (conf / "pipelines.yml").exists() and not overwrite:
        raise AlreadyExistsError(f"{root} is a project already; --overwrite resets its conf/*.yml")
    with _file_errors(root):
        conf.mkdir(parents=True, exist_ok=True)
        (root / "pipelines").mkdir(exist_ok=True)
        missing = [name for name in FILES if overwrite or not (conf / name).exists()]
        texts = {conf / name: _template(name) for name in missing}
        with _replaced(texts | _schemas(root) | _ignoring(root / ".gitignore")):
            pass
    return [conf / name for name in missing]


def write_schemas(root: Path) -> list[Path]:
    """Write the JSON Schema of every `conf/*.yml` into `conf/.schema/`; returns the files.

    They lie in the project, so that the first line of the files that `create_project` writes names
    them for editors without a network, and after a checkout. Raises FileAccessError.
    """
    with _file_errors(root), _locked(root):
        texts = _schemas(root)
        with _replaced(texts):
            pass
    return list(texts)


def _schemas(root: Path) -> dict[Path, str]:
    folder = root / "conf" / ".schema"
    folder.mkdir(parents=True, exist_ok=True)
    return {
        folder / f"{Path(name).stem}.json": f"{json.dumps(schema, indent=1)}\n"
        for name, schema in schemas.schemas().items()
    }


def _ignoring(path: Path) -> dict[Path, str]:
    """The `.gitignore` with what never belongs into a repository; what it has already stays."""
    text = _read(path) if path.exists() else ""
    lines = text.splitlines()
    added = [line for line in _template("gitignore").splitlines() if line not in lines]
    if not [line for line in added if line and not line.startswith("#")]:
        return {}
    above = f"{text.rstrip()}\n\n" if text.strip() else ""
    return {path: above + "\n".join(added).strip() + "\n"}


def create_pipeline(root: Path, name: str, *, overwrite: bool = False) -> Path:
    """Write `pipelines/<name>.py` and merge its entries into `conf/pipelines.yml`.

    Entries that exist are kept, and a file that is still as it was written is no obstacle, so
    that a second call does no harm; `overwrite` replaces file and entries. Raises
    AlreadyExistsError, FileAccessError, UsageError for a name that is no Python identifier, or
    that of a package which the file itself imports.
    """
    if not name.isidentifier() or name.startswith("_") or keyword.iskeyword(name):
        raise UsageError(
            f"'{name}' cannot be a pipeline's name: use letters, digits and _, a letter first"
        )
    if name.lower() in ("true", "false", "null"):
        raise UsageError(f"'{name}' cannot be a pipeline's name: in YAML it is no text")
    if name in _IMPORTED:
        raise UsageError(
            f"'{name}' cannot be a pipeline's name: pipelines import {name}, and would get this "
            "file instead of the package"
        )
    path, conf = root / "pipelines" / f"{name}.py", root / "conf" / "pipelines.yml"
    source = _template("pipeline.py.txt").format(name=name)
    entries = editing.load(_template("entries.yml").format(name=name), "entries.yml")
    with _file_errors(root), _locked(root):
        if path.exists() and not overwrite and path.read_bytes() != source.encode():
            raise AlreadyExistsError(f"pipeline '{name}' exists already; --overwrite replaces it")
        text = _read(conf) if conf.exists() else _template("pipelines.yml")
        change = _Addition(name, entries, overwrite=overwrite)
        merged = editing.edit(text, f"conf/{conf.name}", change)
        path.parent.mkdir(exist_ok=True)
        conf.parent.mkdir(exist_ok=True)
        made = {} if conf.exists() else _schemas(root)
        with _replaced({path: source, conf: merged} | made):
            pass
    return path


def delete_pipeline(root: Path, name: str) -> list[Path]:
    """Remove the pipeline's file and its entries in `conf/*.yml`; returns what changed.

    Raises UnknownNameError where there is neither, UsageError for a pipeline that is a folder.
    """
    module = root / "pipelines" / f"{name}.py"
    with _file_errors(root), _locked(root):
        names = pipeline_names(root)
        if name in names and not module.exists():
            raise UsageError(f"pipelines/{name}/ is a folder; remove it yourself")
        texts = {
            path: text
            for file, sections in _SECTIONS.items()
            if (path := root / "conf" / file).exists()
            if (text := _without(path, sections, name)) is not None
        }
        if not texts and name not in names:
            raise UnknownNameError("pipeline", name, names)
        with _replaced(texts):
            if name in names:
                module.unlink()
    return [*texts, *([module] if name in names else [])]


def edit_file(root: Path, file: str, change: Callable[[Any], None]) -> Path:
    """Make a change to the mapping in `conf/<file>`, which need not exist yet; returns the path.

    Raises ConfigError, FileAccessError.
    """
    path = root / "conf" / file
    with _file_errors(root), _locked(root):
        path.parent.mkdir(exist_ok=True)
        text = _read(path) if path.exists() else ""
        with _replaced({path: editing.edit(text, f"conf/{file}", change)}):
            pass
    return path


def pipeline_names(root: Path) -> list[str]:
    """Modules and packages in `pipelines/`, but for those whose name begins with `_`."""
    folder = root / "pipelines"
    names = {path.stem for path in folder.glob("*.py")}
    names |= {path.parent.name for path in folder.glob("*/__init__.py")}
    return sorted(name for name in names if not name.startswith("_"))


class _Addition:
    """Adds a pipeline's entries to those that are there."""

    def __init__(self, name: str, entries: Any, *, overwrite: bool) -> None:
        self._name = name
        self._entries = entries
        self._overwrite = overwrite

    def __call__(self, data: Any) -> None:
        for section in _SECTIONS["pipelines.yml"]:
            if data.get(section) is None:
                data[section] = {}
            if self._overwrite or data[section].get(self._name) is None:
                data[section][self._name] = self._entries[section][self._name]


def _without(path: Path, sections: tuple[str, ...], name: str) -> str | None:
    """The file's text without the entries of a pipeline; None if it has none."""
    text, shown = _read(path), f"conf/{path.name}"
    data = editing.load(text, shown) or {}
    if not any(name in (data.get(section) or {}) for section in sections):
        return None

    def drop(data: Any) -> None:
        for section in sections:
            if (data.get(section) or {}).pop(name, None) is not None and not data[section]:
                data[section] = None

    return editing.edit(text, shown, drop)


def _template(name: str) -> str:
    return (files("fp_async") / "templates" / name).read_text(encoding="utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        shown = path.name if path.name == ".gitignore" else f"conf/{path.name}"
        raise FileAccessError(f"cannot read {shown}: {error}") from error


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One change of a project at a time: each reads what the one before has written.

    The lock is on the project's folder itself: `conf` may not exist yet, and no file is left.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # network file systems have no locks for folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _replaced(texts: dict[Path, str]) -> Iterator[None]:
    """Write all the files, or none where one of them or the block fails; links stay links."""
    with ExitStack() as stack:
        staged = {
            path: stack.enter_context(_staged(path, text))
            for path, text in ((Path(os.path.realpath(p)), text) for p, text in texts.items())
        }
        yield
        for path, temporary in staged.items():
            temporary.replace(path)


@contextmanager
def _staged(path: Path, text: str) -> Iterator[Path]:
    """The text in a temporary file beside `path`, with the permissions that `path` has."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(mode)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _file_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or root
        raise FileAccessError(f"cannot write {where}: {error.strerror or error}") from error
