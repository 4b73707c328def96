"""The files of a project's configuration, `.env` included, as this process last read them.

Each file is looked at when it is asked for, and read again when it was changed. A process that
lasts (a worker, a held-open project) goes on with what a file said before it was broken.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import msgspec

from fp_async.config import FILES, MqttFile, Pipelines, Runnable, TopicTrigger
from fp_async.errors import FileAccessError, FlowerPowerError, MisconfiguredError

if TYPE_CHECKING:
    from fp_async.documents import Document
    from fp_async.values.mismatch import KeyPath

log: logging.Logger = logging.getLogger("fp_async")
T = TypeVar("T")
DOTENV = ".env"
PROJECT = "PROJECT"  # the variable that means the folder of the project, if it is not set
ENV_FILES = "FLOWERPOWER_ENV_FILE"  # those of --env-file, for this process and its children
_EXPORTED = "FLOWERPOWER_DOTENV"  # which variables of this process come from such files: "A,B;root"
_Stamp = tuple[int, int, int]


def stamp(path: Path) -> _Stamp:
    """What changes when a file is written or replaced."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0, 0
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


class Trouble(NamedTuple):
    """Why a pipeline cannot run, by its configuration. `missing`: there is no such pipeline or
    environment.
    """

    message: str
    missing: bool


class Source(Generic[T]):
    """One file, and what it said. `read` makes a value of its text, which is "" without a file.

    `shown` is how messages name it. It raises again what was wrong as long as nothing changes.
    """

    def __init__(self, path: Path, shown: str, read: Callable[[str], T]) -> None:
        self.path = path
        self.shown = shown
        self.text: str | None = None  # of the last version that could be read
        self._read = read
        self._value: T
        self._stamp: _Stamp | None = None
        self._error: FlowerPowerError | None = None
        self._failing = False  # and that was said

    def recall(self, text: str) -> None:
        """What the file said when another process could read it, in case it is broken now."""
        self._value, self.text = self._read(text), text

    def current(self, *, lasting: bool) -> T:
        """What it says now, or, `lasting`, what it said before it was broken.

        Raises MisconfiguredError, and FileAccessError where the file cannot be read.
        """
        self._look()
        if self._error is None:
            self._say_good()
            return self._value
        if not lasting or self.text is None:
            raise self._error.with_traceback(None)
        if not self._failing:
            self._failing = True
            log.error("going on with what %s said before: %s", self.shown, self._error)
        return self._value

    def _look(self) -> None:
        now = stamp(self.path)
        if now == self._stamp:
            return
        try:
            text = self._text()
            value = self._read(text)
        except FlowerPowerError as error:
            self._error = error
        else:
            self._error, self._value, self.text = None, value, text
        self._stamp = now

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FileAccessError(f"cannot read {self.shown}: {reason}") from error

    def _say_good(self) -> None:
        if self._failing:
            self._failing = False
            log.warning("%s can be read again", self.shown)


class Variables(Mapping[str, str]):
    """The environment, over the files of --env-file, over `.env`.

    A name that the environment lacks raises MisconfiguredError where a file cannot be read: it
    may be the one that has it.
    """

    def __init__(self, root: Path) -> None:
        self.exported: bool = False
        self.version: int = 0  # changes when one of the files says something else
        self._root = root
        self._sources: dict[Path, Source[dict[str, str]]] = {}
        self._given: str | None = None  # ENV_FILES, when these were listed
        self._listed: list[Source[dict[str, str]]] = []
        self._found: dict[str, str] = {}
        self._error: FlowerPowerError | None = None

    @property
    def sources(self) -> list[Source[dict[str, str]]]:
        """The files, the later ones over the earlier ones."""
        given = os.environ.get(ENV_FILES, "")
        if given != self._given:
            self._given = given
            more = [Path(each) for each in given.split(os.pathsep) if each]
            self._listed = [self._source(path) for path in (self._root / DOTENV, *more)]
        return self._listed

    def _source(self, path: Path) -> Source[dict[str, str]]:
        if path not in self._sources:
            own = path.parent == self._root
            shown = path.name if own else str(path)

            def read(text: str) -> dict[str, str]:
                from fp_async import dotenv

                return dotenv.parse(text, shown, {**self._found, **self._real()}) if text else {}

            self._sources[path] = Source(path, shown, read)
        return self._sources[path]

    def look(self, *, lasting: bool) -> None:
        """Read the files again where they were changed; a mistake is raised where it matters."""
        found: dict[str, str] = {}
        self._error = None
        for source in self.sources:
            try:
                found |= source.current(lasting=lasting)
            except FlowerPowerError as error:
                self._error = self._error or error
        if found == self._found:
            return
        self._found = found
        self.version += 1
        if self.exported:
            self._export()

    def check(self) -> None:
        """Raises MisconfiguredError, FileAccessError where a file cannot be read."""
        if self._error is not None:
            raise self._error.with_traceback(None)

    def export(self) -> None:
        """Have them in the environment of this process, and of those that it starts."""
        self.exported = True
        self._export()

    def _export(self) -> None:
        before = self._own()
        for name in before - self._found.keys():
            os.environ.pop(name, None)
        own = {name for name in self._found if name in before or name not in os.environ}
        os.environ.update({name: self._found[name] for name in own})
        if own or before:
            os.environ[_EXPORTED] = f"{','.join(sorted(own))};{self._root}"

    def _own(self) -> set[str]:
        """The names that the environment has from the files of this project."""
        names, _, root = os.environ.get(_EXPORTED, "").partition(";")
        return set(filter(None, names.split(","))) if root == str(self._root) else set()

    def _real(self) -> dict[str, str]:
        """The environment without what it has from the files."""
        own = self._own()
        return {name: value for name, value in os.environ.items() if name not in own}

    def __getitem__(self, name: str) -> str:
        value = None if name in self._own() else os.environ.get(name)
        if value is None:
            value = self._found.get(name)
        if value is None and name == PROJECT:
            return str(self._root)
        if value is None and self._error is not None:
            raise self._error.with_traceback(None)
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter({**self._found, **os.environ})

    def __len__(self) -> int:
        return len({**self._found, **os.environ})


class Files:
    """`conf/*.yml` and the variables of the project at `root`. May be used from several threads.

    `lasting` counts those in this process that go on when a file is broken.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lasting: int = 0
        self.variables: Variables = Variables(root)
        self._lock = threading.RLock()
        self._sources = {name: self._source(name) for name in FILES}

    def _source(self, name: str) -> Source[Document]:
        shown = f"conf/{name}"

        def read(text: str) -> Document:
            from fp_async import documents  # with PyYAML: an agent is told its settings otherwise

            document = documents.parse(text, shown, self.variables)
            document.check(FILES[name])
            return document

        return Source(self.root / "conf" / name, shown, read)

    def document(self, name: str) -> Document:
        """`conf/<name>`: its syntax and sections are right; entries are read when they are used.

        Raises MisconfiguredError, FileAccessError.
        """
        with self._lock:
            lasting = self.lasting > 0
            self.variables.look(lasting=lasting)
            return self._sources[name].current(lasting=lasting)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within the block, a file that is broken means what it meant before."""
        self.lasting += 1
        try:
            yield
        finally:
            self.lasting -= 1

    def pipelines(self) -> Pipelines:
        """`conf/pipelines.yml`. Raises as `document` does."""
        return Pipelines(self.document("pipelines.yml"))

    def export(self) -> None:
        """Have the variables of `.env` in the environment, from now on, as they change.

        Raises MisconfiguredError, FileAccessError where a file of them cannot be read.
        """
        with self._lock:
            self.variables.exported = True
            self.variables.look(lasting=self.lasting > 0)
            self.variables.export()
        self.variables.check()

    def recall(self, texts: Mapping[str, str]) -> None:
        """What files said when the process that started this one could read them."""
        for source in self._all():
            if str(source.path) in texts:
                source.recall(texts[str(source.path)])

    def texts(self) -> dict[str, str]:
        """What the files said when they could be read, by path."""
        return {str(each.path): each.text for each in self._all() if each.text is not None}

    def stamps(self) -> object:
        """What changes when one of the files does, or a pipeline comes or goes."""
        return [stamp(each.path) for each in self._all()], stamp(self.root / "pipelines")

    def _all(self) -> list[Source[Any]]:
        return [*self.variables.sources, *self._sources.values()]


_files: dict[Path, Files] = {}
_tell: Callable[[FlowerPowerError], object] | None = None  # in a process of ours


def own_process(tell: Callable[[FlowerPowerError], object]) -> None:
    """Take this process as one for pipelines alone: their `.env` is its environment from now on.

    `tell` is told, where a project is opened, why its `.env` cannot be read; it may raise that.
    """
    global _tell
    _tell = tell


def of(root: Path) -> Files:
    """The files of the project at `root`."""
    if root not in _files:
        files = Files(root)
        if _tell is not None:
            try:
                files.export()
            except FlowerPowerError as error:
                _tell(error)
        _files[root] = files
    return _files[root]


def add_env_files(paths: Iterable[str]) -> None:
    """Read these files of variables, too, here and in processes that this one starts; the last
    one counts most. Raises FileAccessError for one that is not there.
    """
    found = [os.environ[ENV_FILES]] if os.environ.get(ENV_FILES) else []
    for path in paths:
        absolute = Path(path).expanduser().absolute()
        if not absolute.is_file():
            raise FileAccessError(f"--env-file: there is no file {absolute}")
        found.append(str(absolute))
    os.environ[ENV_FILES] = os.pathsep.join(found)


def section(root: Path, name: str, key: str, kind: type[T]) -> T | None:
    """One section of `conf/<name>`, which the others do not concern; None where it is not there.

    Raises MisconfiguredError, FileAccessError.
    """
    document = of(root).document(name)
    return None if document.raw((key,)) is None else document.at((key,), kind)


def read(root: Path, name: str) -> Any:
    """The whole of `conf/<name>` as its Struct; without a file the defaults.

    Raises MisconfiguredError for the first mistake, FileAccessError.
    """
    return of(root).document(name).at((), FILES[name])


def mistake(root: Path, name: str, path: KeyPath, text: str) -> MisconfiguredError:
    """What is wrong with a key of `conf/<name>` that its type does not show, with the line."""
    return of(root).document(name).error(path, text)


def mqtt(root: Path) -> tuple[MqttFile, list[MisconfiguredError]]:
    """`conf/mqtt.yml` with those entries of `run` and `triggers` that are right, and what is wrong
    with the others. Raises MisconfiguredError for a mistake in the rest, FileAccessError.
    """
    document = of(root).document("mqtt.yml")
    rest = {key: value for key, value in document.data.items() if key not in _ENTRIES}
    file: MqttFile = document.converted(rest, MqttFile, lambda path: path)
    found: dict[str, dict[str, Any]] = {section: {} for section in _ENTRIES}
    wrong: list[MisconfiguredError] = []
    for section, kind in _ENTRIES.items():
        for name in document.raw((section,)) or {}:
            try:
                found[section][name] = document.at((section, name), kind)
            except MisconfiguredError as error:
                wrong.append(error)
    return msgspec.structs.replace(file, **found), wrong


_ENTRIES: dict[str, Any] = {"run": Runnable | None, "triggers": TopicTrigger}
