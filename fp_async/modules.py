"""Loads the modules of `pipelines/`: once for each project where no parameters reach them.

A `Library` is such a folder in this process. Modules that neither call `load_params` nor import a
sibling that does are loaded once, for all pipelines and parameters. The others belong to a
`Namespace`, one for each pipeline and set of parameters. All of them stand in `sys.modules` under
their plain names where they can; `copies` says where they cannot, and what becomes of them then.

Modules find their siblings (`import helpers`, `from pipelines.helpers import x`, `from . import
helpers`) through the `__import__` that their namespace gives them, at import time and later, so
that two projects never get each other's. Bytecode is not cached: a `.pyc` is stamped in whole
seconds, so an edit right after a run could go unseen.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import pickle
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from fp_async import copies, frames, handing_on, params
from fp_async.build_errors import hint
from fp_async.copies import Current
from fp_async.errors import (
    FlowerPowerError,
    GraphError,
    PipelineImportError,
    UnknownNameError,
    UsageError,
    describe,
)
from fp_async.params import Params, given

_UNUSED = 8  # libraries that are kept when no project uses them any more
_READS = b"load_params"
_lock = threading.RLock()
_libraries: OrderedDict[Path, Library] = OrderedDict()
_owner: Library | None = None  # whose modules may have plain names
_modules: dict[str, Namespace] = {}  # by the full name of a copy


class Library:
    """The modules below `folder` in this process, whoever uses them.

    `sources` are the files of the folder, by relative path, where it is the folder of another
    machine. `one_at_a_time`: the process makes one run after the other, so that each may have the
    plain names while it goes on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sources: Mapping[str, bytes] | None = None
        self.one_at_a_time = False
        self.settled = False  # whether the process is there for the project, in its folder
        self.users: int = 0
        self.holders: dict[str, Namespace] = {}  # of the plain names
        self.edited: set[str] = set()  # modules that are not what had their plain name first
        self.executing: list[str] = []  # shared modules whose import goes on
        self.shared: Namespace = Namespace(self, "", {})
        self._reading: set[str] = set()  # modules found to call `load_params` by their doing so
        self._namespaces: weakref.WeakValueDictionary[Hashable, Namespace] = (
            weakref.WeakValueDictionary()
        )
        self._foreign: list[Namespace] = []  # which no flow holds
        self._texts: dict[Path, tuple[Hashable, _Text]] = {}
        self._elsewhere: dict[str, bool] = {}

    def namespace(
        self,
        flow: str,
        values: Mapping[str, Any],
        modules: Collection[str] = (),
        guide: Mapping[str, Mapping[str, Any]] = {},
    ) -> Namespace:
        """The namespace of a pipeline with these parameters, made of `modules`. Release it.

        For `guide` see `params.Params`.
        """
        with _lock:
            key = _key(flow, {**values, "": guide} if guide else values)
            found = self._namespaces.get(key)
            if found is None or found.changed():
                found = Namespace(self, flow, values, guide)
                if key is not None:
                    self._namespaces[key] = found
            found.family |= self.family(modules)
            found.users += 1
            return found

    def imported_by_others(self) -> set[str]:
        """Modules that another one of the folder imports."""
        heads = {path.name.removesuffix(".py") for path in self.folder.glob("*")}
        found = {head: {n for t in self._read((head,)) for n in t.imports} for head in heads}
        return {name for head, names in found.items() for name in names - {head}}

    def family(self, modules: Iterable[str]) -> set[str]:
        """These modules and the siblings that they import, however deep, also in functions."""
        found: set[str] = set()
        waiting = [module.partition(".")[0] for module in modules]
        while waiting:
            head = waiting.pop()
            if head not in found and self.exists(head):
                found.add(head)
                waiting += [n for text in self._read((head,)) for n in text.imports]
        return found

    def reached(self, head: str) -> bool:
        """Whether parameters reach a module: it, or a sibling that it imports, reads them."""
        if not self._reading.isdisjoint(family := self.family((head,))):
            return True
        return any(text.reads for text in self._read(family))

    def home(self, head: str, asking: Namespace) -> Namespace:
        """The namespace that a module belongs to where `asking` wants it."""
        if head in asking.names or not self.reached(head):
            return asking if head in asking.names else self.shared
        if asking is not self.shared and (head in asking.family or not self._is_pipeline(head)):
            return asking
        return self._as_pipeline(head)

    def _is_pipeline(self, head: str) -> bool:
        return self.sources is None and params.is_configured(self.folder.parent, head)

    def _as_pipeline(self, head: str) -> Namespace:
        """Of a pipeline that is imported by another one, or by nobody's run: its own."""
        running = copies.current.get()
        environment = running.environment if running else ""
        values = params.configured(self.folder.parent, head, environment)
        found = self.namespace(head, values, (head,))
        if found not in self._foreign:
            self._foreign.append(found)
        return found

    def notice_reading(self, asking: Namespace) -> None:
        """`load_params` was called. Shared modules that are being imported are not shared."""
        self._reading.update(self.executing)
        if self.executing and asking is not self.shared:
            asking.family.update(self.executing)

    # Files --------------------------------------------------------------------------------------

    def exists(self, dotted: str) -> bool:
        """Return whether the folder has a module, a package or a folder of this name."""
        base = self.folder.joinpath(*dotted.split("."))
        return bool(dotted) and (
            self.is_file(base.with_name(f"{base.name}.py")) or self.is_folder(base)
        )

    def read(self, path: Path) -> bytes:
        """The source at `path`, which lies in the folder."""
        if self.sources is None:
            return path.read_bytes()
        return self.sources[self._name(path)]

    def is_file(self, path: Path) -> bool:
        if self.sources is None:
            return path.is_file()
        return self._name(path) in self.sources

    def is_folder(self, path: Path) -> bool:
        if self.sources is None:
            return path.is_dir()
        inside = f"{self._name(path)}/"
        return path == self.folder or any(name.startswith(inside) for name in self.sources)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix() if self.folder in path.parents else ""

    def files(self, head: str) -> list[Path]:
        """The file of a module; of a package all files, whichever of them is imported."""
        if self.is_file(file := self.folder / f"{head}.py"):
            return [file]
        if self.sources is None:
            return sorted((self.folder / head).rglob("*.py"))
        return [self.folder / name for name in self.sources if name.startswith(f"{head}/")]

    def stamp(self, path: Path) -> Hashable:
        """What changes when a file does."""
        return stamp(path) if self.sources is None else self.sources.get(self._name(path))

    def _read(self, heads: Iterable[str]) -> Iterator[_Text]:
        for path in (path for head in heads for path in self.files(head)):
            now = self.stamp(path)
            known = self._texts.get(path)
            if known is None or known[0] != now:
                known = self._texts[path] = now, _text(self, path)
            yield known[1]

    def refresh(self) -> None:
        """Forget shared modules that were edited, and those that import them."""
        with _lock:
            changed = {path for path, seen in self.shared.files.items() if self.stamp(path) != seen}
            for head in self.shared.importing(changed) if changed else ():
                self.shared.forget(head)
                self.note_edit(head)

    def changed(self) -> bool:
        """Whether the file of a module that is loaded was edited, replaced or removed since."""
        homes = [self.shared, *self._namespaces.values()]
        return any(home.changed() for home in homes)

    def note_edit(self, head: str) -> None:
        """What is loaded under this name from now on is other code."""
        if not self.one_at_a_time:
            self.edited.add(head)

    # Names --------------------------------------------------------------------------------------

    def why_not(self, head: str, home: Namespace) -> str:
        """Why a module of `home` may not have its plain name; empty if it may."""
        _claim(self)
        if _owner is not self:
            return "project"
        if self.is_elsewhere(head):
            return "name"
        if head in self.edited:
            return "edited"
        holder = self.holders.get(head)
        if holder is None or holder is home or (self.one_at_a_time and not holder.runs.count):
            return ""
        return "parameters"

    def take(self, head: str, home: Namespace) -> None:
        """Give the plain name of a module to `home`, in place of who has it."""
        self.holders[head] = home
        for name in [n for n in sys.modules if n == head or n.startswith(f"{head}.")]:
            del sys.modules[name]
        sys.modules.update(home.loaded_as(head))

    def is_elsewhere(self, head: str) -> bool:
        """Whether the name is one of the standard library's, of an installed package, or of what
        the program has imported by itself.
        """
        if head in sys.modules and head not in self.holders:
            return True
        if head not in self._elsewhere:
            self._elsewhere[head] = head in sys.stdlib_module_names or self._is_found(head)
        return self._elsewhere[head]

    def _is_found(self, head: str) -> bool:
        others = [entry for entry in sys.path if not _same(entry or ".", self.folder)]
        for finder in sys.meta_path:
            if finder is _Finder or not hasattr(finder, "find_spec"):
                continue
            with _looking():
                path = others if finder is PathFinder else None
                spec = finder.find_spec(head, path, None)
            if spec and spec.loader and not _same(spec.origin or "", self.folder / f"{head}.py"):
                return not _same(spec.origin or "", self.folder / head / "__init__.py")
        return False

    def unload(self) -> None:
        """Forget all modules and the claim to plain names."""
        global _owner
        with _lock:
            for namespace in [self.shared, *self._namespaces.values()]:
                namespace.unload()
            self._foreign.clear()
            if _owner is self:
                _owner = None
                _take_off_path(self.folder)


class Namespace:
    """Modules of a library that belong together: the shared ones, or those of one pipeline with
    one set of parameters.

    `names` are the full names of its modules by their plain ones, `files` the files that its
    pipeline is made of, shared ones too, each with its stamp. `users` hold it.
    """

    def __init__(
        self,
        library: Library,
        flow: str,
        values: Mapping[str, Any],
        guide: Mapping[str, Mapping[str, Any]] = {},
    ) -> None:
        self.library = library
        self.folder: Path = library.folder
        self.flow = flow
        self.values = values
        self.params: Params = Params(flow, values, guide)
        self.family: set[str] = set()
        self.names: dict[str, str] = {}
        self.files: dict[Path, Hashable] = {}
        self.users: int = 0
        self.runs: _Runs = _Runs(self)
        self._loaded: dict[str, ModuleType] = {}
        self._paths: dict[str, set[Path]] = {}  # of each module
        self._families: dict[str, set[Path]] = {}  # of each module and its siblings
        self._guarded: dict[str, list[type]] = {}
        self.imports: _Imports = _Imports(self)

    def __repr__(self) -> str:
        return f"<Namespace {self.flow or 'shared'} of {self.folder}: {', '.join(self.names)}>"

    def load(self, name: str) -> ModuleType:
        """Import `<folder>/<name>.py` or the package `<folder>/<name>/`, once.

        Raises PipelineImportError, with the user's own line, whatever the module's code raised.
        """
        try:
            module = self.get(name)
        except FlowerPowerError:
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if "is not empty. Must have only one line" in str(error):
                raise GraphError(_not_empty(name, error)) from frames.trim(error)
            line = frames.user_line(error, self.folder)
            text = hint(copies.plainly(describe(error)))
            at = f"\n  at {line}" if line else ""
            message = f"cannot import pipeline module '{name}': {text}{at}"
            raise PipelineImportError(message) from frames.trim(error)
        self.files.update(self.library.shared.files_of(self.family))
        return module

    def get(self, dotted: str) -> ModuleType:
        """The module of this name that the pipeline has. Raises what its code raises."""
        with _lock, self.provided():  # one lock for all, or two nodes that import deadlock
            known = self._loaded.get(dotted) or self.library.shared.holds(dotted)
            if known is not None:
                return known
            return self.library.home(dotted.partition(".")[0], self).imported(dotted)

    @contextmanager
    def provided(self) -> Iterator[None]:
        """In this block, modules that are imported belong to this namespace."""
        running = copies.current.get()
        if self is self.library.shared or (running is not None and running.namespace is self):
            yield
            return
        environment = running.environment if running else ""
        token = copies.current.set(Current(self, environment))
        try:
            yield
        finally:
            copies.current.reset(token)

    def reads_params(self) -> Params:
        """The parameters, for the module that calls `load_params`."""
        self.library.notice_reading(self)
        return self.params

    def release(self) -> None:
        """One user less; the last one takes the modules along."""
        with _lock:
            self.users -= 1
            if self.users <= 0:
                self.unload()

    def unload(self) -> None:
        """Forget the modules; functions that are still running keep working."""
        with _lock:
            edited = self.changed()
            for head in list(self.names):
                self.forget(head)
                if edited:
                    self.library.note_edit(head)

    def forget(self, head: str) -> None:
        """Forget a module, with all modules of it if it is a package."""
        fullname = self.names.pop(head)
        for dotted in _below(self._loaded, head):
            module = self._loaded.pop(dotted)
            name = fullname + dotted[len(head) :]
            copies.forget(name, self)
            copies.unguard(self._guarded.pop(dotted, []))
            if sys.modules.get(name) is module:
                del sys.modules[name]
        _modules.pop(fullname, None)
        self._families.pop(head, None)
        for path in self._paths.pop(head, ()):
            self.files.pop(path, None)
        if self.library.holders.get(head) is self:
            del self.library.holders[head]

    def changed(self) -> bool:
        """Whether a file of the pipeline was edited, replaced or removed since it was loaded."""
        return any(self.library.stamp(path) != seen for path, seen in self.files.items())

    def importing(self, changed: Collection[Path]) -> list[str]:
        """Its modules that consist of one of these files, or import one that does."""
        return [head for head, paths in self._families.items() if not paths.isdisjoint(changed)]

    def files_of(self, heads: Collection[str]) -> dict[Path, Hashable]:
        """The files of these modules and of their siblings, as far as they are loaded."""
        paths = set[Path]().union(*(self._families.get(head, ()) for head in heads))
        return {path: seen for path, seen in self.files.items() if path in paths}

    # Loading ------------------------------------------------------------------------------------

    def imported(self, dotted: str) -> ModuleType:
        """See `copies.Home`."""
        with _lock, self.provided():
            if (known := self._loaded.get(dotted)) is not None:
                return known
            head = dotted.partition(".")[0]
            fullname = self.name(head) + dotted[len(head) :]
            module = self._loaded.get(dotted) or importlib.import_module(fullname)
            home = self.library.home(head, self)  # it may have turned out to read parameters
            if home._loaded.get(dotted) is not module:  # a folder, or it has replaced itself
                home._loaded[dotted] = module
                copies.register(fullname, home, dotted)
            return module

    def name(self, head: str) -> str:
        """The full name of a module, found when it is first wanted."""
        if head not in self.names:
            self._families[head] = {
                path for each in self.library.family((head,)) for path in self.library.files(each)
            }
            why = "" if self._adopt(head) else self.library.why_not(head, self)
            self.names[head] = copies.name(head, why) if why else head
            if why:
                _modules[self.names[head]] = self
            elif head not in self._loaded:
                self.library.take(head, self)
        return self.names[head]

    def _adopt(self, head: str) -> bool:
        """Take what the program itself has imported from this file, if no parameters reach it."""
        module = sys.modules.get(head)
        path = self.folder / f"{head}.py"
        if self is not self.library.shared or head in self.library.holders or module is None:
            return False
        if not _same(getattr(module, "__file__", None) or "", path):
            return False
        self._loaded[head] = module
        self.files[path] = self.library.stamp(path)
        self._paths[head] = {path}
        self.library.holders[head] = self
        copies.register(head, self, head)
        return True

    def holds(self, dotted: str) -> ModuleType | None:
        """See `copies.Home`."""
        return self._loaded.get(dotted)

    def loaded_as(self, head: str) -> dict[str, ModuleType]:
        """What is loaded of a module, by plain name."""
        return {dotted: self._loaded[dotted] for dotted in _below(self._loaded, head)}

    def spec(self, fullname: str, head: str) -> ModuleSpec | None:
        """The finder's answer for a module of this namespace."""
        dotted = head + fullname[len(self.names[head]) :]
        base = self.folder.joinpath(*dotted.split("."))
        for path in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
            if self.library.is_file(path):
                loader = _Loader(fullname, path, self, dotted)
                return spec_from_file_location(fullname, path, loader=loader)
        if not self.library.is_folder(base):
            return None
        spec = ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(base)]
        return spec

    def begin(self, module: ModuleType, path: Path, dotted: str) -> None:
        """Called before a module of this namespace runs."""
        vars(module)["__builtins__"] = self.imports.builtins
        self._loaded[dotted] = module
        copies.register(module.__name__, self, dotted)
        self.files[path] = seen = self.library.stamp(path)
        self._paths.setdefault(dotted.partition(".")[0], set()).add(path)
        running = copies.current.get()
        if running is not None and running.namespace.library is self.library:
            running.namespace.files[path] = seen
        if self is self.library.shared:
            self.library.executing.append(dotted.partition(".")[0])

    def end(self, module: ModuleType, dotted: str, *, failed: bool) -> None:
        """Called when it has run."""
        head = dotted.partition(".")[0]
        if self is self.library.shared:
            self.library.executing.pop()
        if failed:
            self._loaded.pop(dotted, None)
            copies.forget(module.__name__, self)
            return
        if self.names.get(head) != head:
            self._guarded[dotted] = copies.guard(module)
        running = copies.current.get()
        if self is self.library.shared and running is not None and self.library.reached(head):
            self._hand_over(head, running.namespace)

    def _hand_over(self, head: str, heir: Namespace) -> None:
        """A shared module has called `load_params`: it is one of the pipeline's own."""
        if heir.library is not self.library or heir is self:
            return
        heir.names[head] = fullname = self.names.pop(head)
        heir._families[head] = self._families.pop(head)
        heir._paths[head] = self._paths.pop(head)
        for path in heir._paths[head]:
            heir.files[path] = self.files.pop(path)
        if self.library.holders.get(head) is self:
            self.library.holders[head] = heir
        if fullname in _modules:
            _modules[fullname] = heir
        for dotted in _below(self._loaded, head):
            module = heir._loaded[dotted] = self._loaded.pop(dotted)
            vars(module)["__builtins__"] = heir.imports.builtins
            copies.forget(module.__name__, self)
            copies.register(module.__name__, heir, dotted)
            heir._guarded[dotted] = self._guarded.pop(dotted, [])

    # Pickles ------------------------------------------------------------------------------------

    def key(self) -> copies.Key:
        """See `copies.Home`."""
        return copies.Key(str(self.folder), self.flow, pickle.dumps(self.values))

    def is_part_of(self, other: Namespace) -> bool:
        """See `copies.Home`."""
        return other is self or self is other.library.shared


class _Runs:
    """The runs of a namespace that go on."""

    def __init__(self, namespace: Namespace) -> None:
        self.count: int = 0
        self._namespace = namespace
        self._told: dict[str, str] = {}

    def begin(self, environment: str) -> None:
        """Give a run the plain names, where the process makes one at a time, and tell the processes
        that it starts its parameters.
        """
        namespace = self._namespace
        if namespace.library.one_at_a_time and namespace.names:
            self._take_names()
        self.count += 1
        _builtins.look()
        namespace.imports.refresh()
        namespace.library.shared.imports.refresh()
        if namespace.names:
            handing_on.add(self._description(environment))

    def end(self, environment: str) -> None:
        """Undo what `begin` has done for those processes."""
        self.count -= 1
        if self._namespace.names:
            handing_on.remove(self._description(environment))

    def doubt(self, environment: str) -> str:
        """Why a process that a run has started may not know its parameters, or nothing."""
        names = self._namespace.names
        return handing_on.doubt(self._description(environment)) if names else ""

    def _take_names(self) -> None:
        namespace, library = self._namespace, self._namespace.library
        with _lock:
            for head, name in namespace.names.items():
                held = library.holders.get(head) is namespace
                if head == name and not held and not library.why_not(head, namespace):
                    library.take(head, namespace)

    def _description(self, environment: str) -> str:
        if environment not in self._told:
            namespace = self._namespace
            root, modules = namespace.folder.parent, sorted(namespace.names)
            self._told[environment] = handing_on.described(
                root, namespace.flow, environment, modules, given(namespace.params)
            )
        return self._told[environment]


class _Builtins:
    """The builtins as they were when a run last began."""

    def __init__(self) -> None:
        self.state = dict(vars(builtins))

    def look(self) -> None:
        """Take note of them as they are now, in another `state` if they have changed."""
        try:
            same = self.state == vars(builtins)
        except Exception:  # of values that have their own idea of being equal
            same = False
        if not same:
            self.state = dict(vars(builtins))


_builtins = _Builtins()


class _Imports:
    """What import statements in the modules of a namespace find: siblings, and then the rest.

    `facade` is what they are given as `pipelines`, or as `.`.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._library = namespace.library
        self.facade: ModuleType = ModuleType(namespace.folder.name)
        vars(self.facade)["__getattr__"] = self._of_facade
        self._state: dict[str, Any] = {}
        self._importing = self._import
        self.builtins: dict[str, Any] = {**vars(builtins), "__import__": self._importing}

    def refresh(self) -> None:
        """Take over what the program has patched, added and removed among the builtins since."""
        if self._state is _builtins.state:
            return
        self._state = _builtins.state
        for name in self.builtins.keys() - self._state.keys():
            del self.builtins[name]
        self.builtins.update({**self._state, "__import__": self._importing})

    def _import(
        self,
        name: str,
        globals: dict[str, Any] | None = None,
        locals: dict[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if type(fromlist) is list and not fromlist:  # by pickle, not by a statement
            self._look_up(name)
            return builtins.__import__(name, globals, locals, (), level)
        dotted, below = self._sibling(name, globals or {}, level)
        if dotted is None:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        return self._asking().imports.given(dotted, fromlist or (), below=below)

    def _asking(self) -> Namespace:
        """The namespace that runs, where this is the shared one."""
        running = copies.current.get()
        if self._namespace is not self._library.shared or running is None:
            return self._namespace
        namespace: Namespace = running.namespace
        return namespace if namespace.library is self._library else self._namespace

    def _sibling(self, name: str, importer: dict[str, Any], level: int) -> tuple[str | None, bool]:
        """What `name` means below this folder, None if nothing; and whether it is said to be
        below, as in `pipelines.helpers`.

        A module never imports itself: `import requests` in `requests.py` means the package.
        """
        own: str = getattr(getattr(importer.get("__spec__"), "loader", None), "dotted", "")
        if level:
            return _relative(name, own, level, is_package="__path__" in importer), False
        head, _, rest = name.partition(".")
        folder = self._library.folder
        if head == folder.name and not self._library.is_file(folder / f"{head}.py"):
            return rest, True
        itself = own == head and not (rest and self._library.exists(name))
        if itself or head in sys.stdlib_module_names or not self._library.exists(head):
            return None, False
        return name, False

    def given(self, dotted: str, wanted: Sequence[str], *, below: bool) -> ModuleType:
        """What an import statement is given."""
        if not dotted:
            for name in wanted:
                if self._library.exists(name):
                    setattr(self.facade, name, self._namespace.get(name))
            return self.facade
        module = self._namespace.get(dotted)
        if wanted:
            self._load_parts(module, dotted, wanted)
            return module
        head = self._namespace.get(dotted.partition(".")[0])
        if below:
            setattr(self.facade, dotted.partition(".")[0], head)
        return self.facade if below else head

    def _load_parts(self, module: ModuleType, dotted: str, wanted: Sequence[str]) -> None:
        """Import the modules of a package that `from package import module` names."""
        if not hasattr(module, "__path__"):
            return
        names = getattr(module, "__all__", ()) if "*" in wanted else wanted
        for name in names:
            if not hasattr(module, name) and self._library.exists(f"{dotted}.{name}"):
                setattr(module, name, self._namespace.get(f"{dotted}.{name}"))

    def _look_up(self, name: str) -> None:
        """Plain pickle looks a module up. Raises CopyError where it would find another copy."""
        head, asking = name.partition(".")[0], self._asking()
        if copies.reason(name):
            raise copies.refusal(name)
        if not self._library.exists(head):
            return
        with _lock:
            if copies.reason(self._library.home(head, asking).name(head)) == "name":
                return  # it means the package
        module = asking.get(name)
        if sys.modules.get(name) is not module:
            raise copies.refusal(module.__name__)

    def _of_facade(self, name: str) -> ModuleType:
        if name.startswith("__") or not self._library.exists(name):
            raise AttributeError(f"{self._library.folder} has no module '{name}'")
        return self._namespace.get(name)


class _Text(NamedTuple):
    """What the text of a file says: the top-level names that it imports, and whether it mentions
    `load_params`.
    """

    imports: frozenset[str]
    reads: bool


class _Loader(SourceFileLoader):
    """Compiles from source every time, and hands the module its namespace's import."""

    def __init__(self, fullname: str, path: Path, namespace: Namespace, dotted: str) -> None:
        super().__init__(fullname, str(path))
        self.dotted = dotted
        self._namespace = namespace

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code

    def get_data(self, path: str) -> bytes:
        return self._namespace.library.read(Path(path))

    def exec_module(self, module: ModuleType) -> None:
        namespace = self._namespace
        with namespace.provided():
            namespace.begin(module, Path(self.path), self.dotted)
            try:
                super().exec_module(module)
            except BaseException:
                namespace.end(module, self.dotted, failed=True)
                raise
            namespace.end(module, self.dotted, failed=False)


class _Finder:
    """The first entry of `sys.meta_path`: modules of pipelines under the names that they have."""

    @staticmethod
    def find_spec(fullname: str, *_: object) -> ModuleSpec | None:
        owner, head = _owner, fullname.partition(".")[0]
        if head == "fp_async":
            token = ".".join(fullname.split(".")[:3])
            found = _modules.get(token)
            return found.spec(fullname, copies.plainly(token)) if found else None
        if owner is None or head not in owner.holders:
            return None
        holder = owner.holders[head]
        return holder.spec(fullname, head) if holder.names.get(head) == head else None


class _Entry:
    """The finder of the last entry of `sys.path`, `pipelines/`: what is imported from there by
    other code than pipelines, or by pickle.
    """

    def __init__(self, folder: str) -> None:
        if _owner is None or folder != str(_owner.folder):
            raise ImportError

    def find_spec(self, fullname: str, target: object = None) -> ModuleSpec | None:
        del target
        owner = _owner
        if owner is None or _search.looking or "." in fullname or not owner.exists(fullname):
            return None
        with _lock:
            asking = owner.shared
            running = copies.current.get()
            if running is not None and running.namespace.library is owner:
                asking = running.namespace
            home = owner.home(fullname, asking)
            if (name := home.name(fullname)) != fullname:
                if copies.reason(name) == "name":
                    return None
                raise copies.refusal(name)
            return home.spec(fullname, fullname)


class _Search(threading.local):
    looking = False


_search = _Search()


@contextmanager
def _looking() -> Iterator[None]:
    """While this thread looks for a name elsewhere, `pipelines/` does not answer."""
    _search.looking = True
    try:
        yield
    finally:
        _search.looking = False


def library(folder: Path, sources: Mapping[str, bytes] | None = None) -> Library:
    """The library of a folder: one for all who ask in this process. Held by `users`."""
    with _lock:
        found = _libraries.pop(folder, None)
        if found is None:
            found = Library(folder)
            _evict()
        _libraries[folder] = found
        if sources is not None:
            found.sources = sources
            found.refresh()
        return found


def _evict() -> None:
    unused = [each for each in _libraries.values() if not each.users]
    gone = [each for each in unused if each.sources is None and not each.folder.is_dir()]
    for each in {*unused[:-_UNUSED], *gone}:
        del _libraries[each.folder]
        each.unload()


def claim(folder: Path, *, one_at_a_time: bool) -> None:
    """Give the plain names of this process to one project, as it is there for that alone."""
    with _lock:
        found = library(folder)
        found.users += 1
        _claim(found)
        if _owner is found:
            found.one_at_a_time = one_at_a_time
            found.settled = True
    handing_on.forget_inherited()


def _claim(library: Library) -> None:
    global _owner
    if _owner is None:
        _owner = library
        entry = str(library.folder)
        if _Entry not in sys.path_hooks:
            sys.path_hooks.insert(0, _Entry)
        sys.path[:] = [*(each for each in sys.path if each != entry), entry]
        sys.path_importer_cache.pop(entry, None)


def _take_off_path(folder: Path) -> None:
    entry = str(folder)
    sys.path[:] = [each for each in sys.path if each != entry]
    sys.path_importer_cache.pop(entry, None)


def _home(key: copies.Key) -> Namespace:
    """The copy that a pickle of another process names."""
    with _lock:
        found = library(Path(key.folder))
        if not key.flow:
            return found.shared
        values: Mapping[str, Any] = pickle.loads(key.params)  # noqa: S301 - our own, see `copies`
        namespace = found.namespace(key.flow, values, (key.flow,))
        if namespace not in found._foreign:
            found._foreign.append(namespace)
        return namespace


copies.find[:] = [_home]
if _Finder not in sys.meta_path:
    sys.meta_path.insert(0, _Finder)


def _new_lock() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_new_lock)  # it may be held by a thread that is not there


def _key(flow: str, values: Mapping[str, Any]) -> Hashable:
    try:
        return flow, frozen(values)
    except TypeError:
        return None


def frozen(value: Any) -> Hashable:
    """A hashable image of plain data; raises TypeError for what has none."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return tuple((key, frozen(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(frozen(item) for item in value)
    hash(value)
    return (type(value), value)


def _below(loaded: Iterable[str], head: str) -> list[str]:
    return [dotted for dotted in loaded if dotted == head or dotted.startswith(f"{head}.")]


def _same(entry: str | Path, path: Path) -> bool:
    try:
        return bool(entry) and Path(entry).samefile(path)
    except (OSError, ValueError):
        return False


def _relative(name: str, own: str, level: int, *, is_package: bool) -> str:
    parts = own.split(".") if is_package else own.split(".")[:-1]
    if level - 1 > len(parts):
        raise ImportError("attempted relative import beyond top-level package")
    return ".".join([*parts[: len(parts) - level + 1], *([name] if name else [])])


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
    namespace.family |= namespace.library.family((module,))
    functions = {n: f for n, f in vars(namespace.load(module)).items() if callable(f)}
    if name not in functions:
        own = [n for n in functions if not n.startswith("__")]
        raise UnknownNameError("function", name, own, where=f" in pipelines/{module}.py{where}")
    found: Callable[..., Any] = functions[name]
    return found


_IMPORTERS = frozenset({"import_module", "__import__"})


def _text(library: Library, path: Path) -> _Text:
    try:
        source = library.read(path)
        tree = ast.parse(source)
    except (SyntaxError, ValueError, OSError):
        return _Text(frozenset(), reads=False)
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""}
            if node.module in (None, library.folder.name):
                names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            named = node.args[0]
            if called in _IMPORTERS and isinstance(named, ast.Constant):
                names |= {str(named.value)}
    below = f"{library.folder.name}."
    heads = {name.removeprefix(below).lstrip(".").partition(".")[0] for name in names}
    return _Text(frozenset(heads - {""}), _READS in source)


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
