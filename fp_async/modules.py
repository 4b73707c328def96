"""Loads a pipeline's modules, each pipeline and parameter set in a namespace of its own.

Two projects may both have `pipelines/etl.py` and `pipelines/helpers.py`; neither ever gets the
other's. Every `Namespace` is a package with a name of its own, and the modules in it import
their siblings (`import helpers`, `from pipelines.helpers import x`, `from . import helpers`)
through it, at import time and later. Bytecode is not cached: a `.pyc` is stamped in whole
seconds, so an edit right after a run could go unseen.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from fp_async import frames
from fp_async.build_errors import hint
from fp_async.errors import (
    FlowerPowerError,
    GraphError,
    PipelineImportError,
    UnknownNameError,
    UsageError,
    describe,
)
from fp_async.params import Params, provided

PREFIX = "fp_pipelines_"
_lock = threading.RLock()
_taken: set[str] = set()
_namespaces: weakref.WeakValueDictionary[str, Namespace] = weakref.WeakValueDictionary()


class Namespace:
    """The modules of one pipeline with one set of parameters, from the folder `folder`.

    `package` is the name under which they stand in `sys.modules`. It follows from folder, pipeline
    and `identity` (the parameters), so that another process finds the classes of what was pickled
    here; a child process is told the name. `sources` are the files of the folder, by relative
    path, where it is the folder of another machine.
    """

    def __init__(
        self,
        folder: Path,
        flow: str,
        params: Params,
        *,
        identity: str = "",
        package: str | None = None,
        sources: Mapping[str, bytes] | None = None,
    ) -> None:
        self.folder = folder
        self.flow = flow
        self.files: dict[Path, tuple[int, int]] = {}
        self.params = params
        self._sources = sources
        self._builtins = {**vars(builtins), "__import__": self._import}
        with _lock:
            self.package = package or _free_name(folder, flow, identity)
            _namespaces[self.package] = self
            _taken.add(self.package)
            _install_finder()

    def load(self, name: str) -> ModuleType:
        """Import `<folder>/<name>.py` or the package `<folder>/<name>/`, once.

        Raises PipelineImportError, with the user's own line, whatever the module's code raised.
        """
        try:
            with _lock, provided(self.params):
                return importlib.import_module(f"{self.package}.{name}")
        except FlowerPowerError:
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if "is not empty. Must have only one line" in str(error):
                raise GraphError(_not_empty(name, error)) from frames.trim(error)
            line = frames.user_line(error, self.folder)
            text = hint(describe(error).replace(f"{self.package}.", ""))
            at = f"\n  at {line}" if line else ""
            message = f"cannot import pipeline module '{name}': {text}{at}"
            raise PipelineImportError(message) from frames.trim(error)

    def unload(self) -> None:
        """Forget the modules; functions that are still running keep working."""
        with _lock:
            for name in [name for name in sys.modules if name.startswith(f"{self.package}.")]:
                del sys.modules[name]
            sys.modules.pop(self.package, None)
            _taken.discard(self.package)

    def changed(self) -> bool:
        """Whether a loaded file was edited, replaced or removed since."""
        return any(stamp(path) != seen for path, seen in self.files.items())

    def spec(self, fullname: str) -> ModuleSpec | None:
        """The finder's answer for a module of this namespace."""
        base = self.folder.joinpath(*fullname.split(".")[1:])
        for path in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
            if self._is_file(path) and base != self.folder:
                return spec_from_file_location(fullname, path, loader=_Loader(fullname, path, self))
        if not self._is_folder(base):
            return None
        spec = ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(base)]
        return spec

    def prepare(self, module: ModuleType, path: Path) -> None:
        """Called before a module of this namespace runs."""
        if self._sources is None:
            self.files[path] = stamp(path)
        vars(module)["__builtins__"] = self._builtins

    def read(self, path: Path) -> bytes:
        """The source at `path`, which lies in the folder."""
        if self._sources is None:
            return path.read_bytes()
        return self._sources[self._name(path)]

    def _is_file(self, path: Path) -> bool:
        if self._sources is None:
            return path.is_file()
        return self._name(path) in self._sources

    def _is_folder(self, path: Path) -> bool:
        if self._sources is None:
            return path.is_dir()
        inside = f"{self._name(path)}/"
        return path == self.folder or any(name.startswith(inside) for name in self._sources)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix() if self.folder in path.parents else ""

    def _import(
        self,
        name: str,
        globals: dict[str, Any] | None = None,
        locals: dict[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        local = self._sibling(name, globals or {}) if level == 0 else name
        if local is None:
            return builtins.__import__(name, globals, locals, fromlist or (), 0)
        with _lock, provided(self.params):  # one lock for both, or two nodes deadlock
            module = builtins.__import__(local, globals, locals, fromlist or (), level)
        if level:
            return module
        if fromlist or name.partition(".")[0] == self.folder.name:
            return module
        return sys.modules[f"{self.package}.{name.partition('.')[0]}"]

    def _sibling(self, name: str, importer: dict[str, Any]) -> str | None:
        """The full name where `name` means a module of this folder, else None.

        A module never imports itself: `import requests` in `requests.py` means the package.
        """
        head, _, rest = name.partition(".")
        if head == self.folder.name and not self._is_file(self.folder / f"{head}.py"):
            return f"{self.package}.{rest}" if rest else self.package
        if importer.get("__name__") == f"{self.package}.{head}" or head in sys.stdlib_module_names:
            return None
        exists = self._is_file(self.folder / f"{head}.py") or self._is_folder(self.folder / head)
        return f"{self.package}.{name}" if exists else None


class _Loader(SourceFileLoader):
    """Compiles from source every time, and hands the module its namespace's import."""

    def __init__(self, fullname: str, path: Path, namespace: Namespace) -> None:
        super().__init__(fullname, str(path))
        self._namespace = namespace

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code

    def get_data(self, path: str) -> bytes:
        return self._namespace.read(Path(path))

    def exec_module(self, module: ModuleType) -> None:
        self._namespace.prepare(module, Path(self.path))
        super().exec_module(module)


class _Finder:
    """The `sys.meta_path` entry for all namespaces."""

    @staticmethod
    def find_spec(fullname: str, *_: object) -> ModuleSpec | None:
        if not fullname.startswith(PREFIX):
            return None
        namespace = _namespaces.get(fullname.partition(".")[0])
        return namespace.spec(fullname) if namespace else None


def _free_name(folder: Path, flow: str, identity: str) -> str:
    """A package name that is the same in the next process, so that what was pickled there by a
    cache or by a node is found; only the second namespace of the same at once has another.
    """
    seen = repr((str(folder), flow, identity)).encode()
    name = f"{PREFIX}{flow}_{hashlib.blake2b(seen, digest_size=4).hexdigest()}"
    again = (f"{name}_{number}" for number in itertools.count(2))
    return name if name not in _taken else next(other for other in again if other not in _taken)


def _new_lock() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_new_lock)  # it may be held by a thread that is not there


def _install_finder() -> None:
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


def stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is edited: modification time in ns, and size; (0, 0) if gone."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


def exists(folder: Path, name: str) -> bool:
    """Whether `folder` has a module or a package of this name."""
    base = folder.joinpath(*name.split("."))
    return name.replace(".", "").isidentifier() and (
        base.with_name(f"{base.name}.py").is_file() or base.is_dir()
    )


def function(namespace: Namespace, path: str, *, where: str) -> Callable[..., Any]:
    """What `module:function` names, the module one of the namespace's folder.

    Raises PipelineImportError, UnknownNameError, UsageError.
    """
    module, colon, name = path.partition(":")
    if not colon or not name:
        raise UsageError(f"'{path}' is not module:function{where}")
    if not exists(namespace.folder, module):
        known = sorted(each.stem for each in namespace.folder.glob("*.py"))
        raise UnknownNameError("module", module, known, where=f" in {namespace.folder}{where}")
    functions = {n: f for n, f in vars(namespace.load(module)).items() if callable(f)}
    if name not in functions:
        own = [n for n in functions if not n.startswith("__")]
        raise UnknownNameError("function", name, own, where=f" in pipelines/{module}.py{where}")
    found: Callable[..., Any] = functions[name]
    return found


def libraries(folder: Path, modules: Sequence[str]) -> set[str]:
    """Top-level names imported by modules of `folder`, and by the siblings that they import.

    Read from the sources without running them; a file that cannot be parsed is passed over
    here, its import will say why.
    """
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        for path in (folder / f"{name}.py", folder / name / "__init__.py"):
            if path.is_file():
                fresh = _imports(path) - found
                found |= fresh
                waiting.extend(fresh)
    return found


def _imports(path: Path) -> set[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {alias.name for alias in node.names if not node.module}
            names |= {alias.name for alias in node.names if node.module == path.parent.name}
    return {part for name in names for part in (name.partition(".")[0],) if part}


def _not_empty(module: str, error: BaseException) -> str:
    """Hamilton compares bytecode, and that of an empty `async def` differs."""
    return (
        f"cannot build the DAG of module '{module}': {error}; it cannot be an `async def` either, "
        "but what @does calls instead of it may be one"
    )


def sources(folder: Path) -> dict[str, bytes]:
    """The modules of `folder`, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*.py"))
    }
