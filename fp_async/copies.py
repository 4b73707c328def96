"""Modules of pipelines that a process has more than once: their names, and pickles of their parts.

A module of a pipeline stands in `sys.modules` under its plain name, `train`, wherever it can. Where
it cannot (a second project in an application, a second set of parameters, code that was edited, a
name that an installed package has) its copy has a name of its own below this module:
`fp_async.copies.train_parameters_1a2b3c4d`. Such a name means nothing in another process. So plain
pickle is refused with the reason, and our own pickles (`dumps`) write module and name beside the
copy that they belong to, which the reader looks up.

This module is a package without files: an import below it that this process does not know, by
`pickle.load` in another process, ends here, and says why.
"""

from __future__ import annotations

import copyreg
import importlib
import io
import logging
import os
import pickle
import re
import sys
from collections.abc import Callable
from contextvars import ContextVar
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any, NamedTuple, Protocol

from fp_async.errors import CopyError

__path__: list[str] = []
_PREFIX = f"{__name__}."
_REASONS = {  # and what would be right
    "project": (
        "its process has another project, whose modules have the plain names",
        "run each project in a process of its own (`flowerpower run`, a worker)",
    ),
    "parameters": (
        "its process has loaded it with other parameters before",
        (
            "run it in a process of its own (`flowerpower run`, a worker), or pickle what a module "
            "that does not read PARAMS defines"
        ),
    ),
    "edited": ("it was edited after its process had loaded it", "start the process again"),
    "name": (
        "the standard library, an installed package or the program itself has this name",
        "give the file another name",
    ),
}
_COPY = re.compile(rf"\b{re.escape(__name__)}\.(\w+)_({'|'.join(_REASONS)})_[0-9a-f]{{8}}\b")

_TOLD = re.compile(rf"^{CopyError.__module__}\.{CopyError.__name__}: (.+)$", re.MULTILINE)


class Key(NamedTuple):
    """A copy, as another process can make it: project, pipeline and its pickled parameters.

    `flow` is empty for the modules that no parameters reach.
    """

    folder: str
    flow: str
    params: bytes


class Home(Protocol):
    """The copy that a module belongs to."""

    def imported(self, dotted: str) -> ModuleType:
        """Its module of this name, loaded if need be."""

    def holds(self, dotted: str) -> ModuleType | None:
        """Its module of this name, as far as it is loaded."""

    def key(self) -> Key:
        """What another process needs to make the same copy."""

    def is_part_of(self, other: Any) -> bool:
        """Return whether a run with the copy `other` has these modules."""


class Current(NamedTuple):
    """The copy that the calling code runs with, and the environment of its run."""

    namespace: Any
    environment: str


current: ContextVar[Current | None] = ContextVar("fp_async_copy", default=None)
find: list[Callable[[Key], Home]] = []  # set by `modules`, which makes copies
_homes: dict[str, list[tuple[Home, str]]] = {}  # by the module's full name


# Names ------------------------------------------------------------------------------------------


def name(head: str, why: str) -> str:
    """A name for a copy of module `head`, which no other process has."""
    return f"{_PREFIX}{head}_{why}_{os.urandom(4).hex()}"


def plainly(text: str) -> str:
    """The text with modules named as their author knows them."""
    return _COPY.sub(r"\1", text) if _PREFIX in text else text


def reason(fullname: str) -> str:
    """Why a module has a name of its own, in a word; empty where it has its plain one."""
    match = _COPY.match(fullname)
    return match[2] if match else ""


def refusal(fullname: str) -> CopyError:
    """What is said to plain pickle, and to processes started by spawn, of a copy."""
    why, right = _REASONS[reason(fullname)]
    return CopyError(
        f"'{plainly(fullname)}' belongs to a copy of its module that only one process knows: "
        f"{why}. Plain pickle, and processes that are started by spawn, cannot find it; {right}"
    )


def register(fullname: str, home: Home, dotted: str) -> None:
    """A module of this name belongs to `home`, where it is called `dotted`."""
    _homes.setdefault(fullname, []).append((home, dotted))
    if fullname.startswith(_PREFIX):  # logging.getLogger(__name__) means the plain name
        logging.Logger.manager.loggerDict[fullname] = logging.getLogger(dotted)


def forget(fullname: str, home: Home) -> None:
    """The module is unloaded. Its name stays known, so that what is left of it is refused."""
    kept = [entry for entry in _homes.get(fullname, ()) if entry[0] is not home]
    if fullname.startswith(_PREFIX):
        logging.Logger.manager.loggerDict.pop(fullname, None)
        globals().pop(fullname.removeprefix(_PREFIX), None)  # as the import has set it
        if not kept:
            _homes.pop(fullname, None)
            return
    if fullname in _homes:
        _homes[fullname] = kept


def told(error: BaseException) -> str:
    """The reason that a process has given for an import of a copy, in a traceback of its that is
    among the causes of the error; empty where there is none.
    """
    cause = error.__cause__
    while cause is not None:
        if found := _TOLD.findall(str(cause)):
            return str(found[-1])
        cause = cause.__cause__
    return ""


# Pickles of ours --------------------------------------------------------------------------------


def _override(obj: Any) -> Any:
    if (type(obj) is FunctionType or isinstance(obj, type)) and obj.__module__ in _homes:
        return _written(obj)
    return NotImplemented


def _written(obj: Any) -> Any:
    """A class or function of a pipeline, by the copy that it belongs to.

    Raises CopyError for one that is not found there under its name.
    """
    running = current.get()
    for home, dotted in _homes[obj.__module__]:
        module = home.holds(dotted)
        if module is not None and _part(module, obj.__qualname__) is obj:
            own = running is not None and home.is_part_of(running.namespace)
            return _found, (None if own else tuple(home.key()), dotted, obj.__qualname__)
    if "<locals>" in obj.__qualname__:
        return NotImplemented  # pickle says what is wrong with it
    raise CopyError(
        f"'{plainly(obj.__module__)}.{obj.__qualname__}' cannot be pickled: it is not what its "
        "module has under this name (it was made before an edit of the module, or replaced)"
    )


def _part(module: ModuleType, qualname: str) -> Any:
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _found(key: tuple[str, str, bytes] | None, dotted: str, qualname: str) -> Any:
    """The reader's half of `_written`: of the copy that runs, or of the one that `key` names."""
    running = current.get()
    if key is not None:
        if not find:
            raise CopyError(f"'{dotted}.{qualname}' of {key[0]} is not loaded in this process")
        module = find[0](Key(*key)).imported(dotted)
    elif running is not None:
        module = running.namespace.get(dotted)
    else:
        module = importlib.import_module(dotted)
    found = _part(module, qualname)
    if found is None:
        raise CopyError(f"module '{dotted}' has no '{qualname}' any more, which was pickled")
    return found


class Pickler(pickle.Pickler):
    """Pickles classes and functions of pipelines by the copy that they belong to."""

    def reducer_override(self, obj: Any) -> Any:
        return _override(obj)


def dumps(value: Any, protocol: int = 5, *, buffer_callback: Any = None) -> bytes:
    """`pickle.dumps` for what only our own processes read, with `pickle.loads`."""
    return _dumped(Pickler, value, protocol, buffer_callback)


def dumping(base: type[pickle.Pickler]) -> Callable[..., bytes]:
    """`dumps` by a pickler that can do more: cloudpickle's, an engine's."""

    class Mixed(base):  # type: ignore[misc, valid-type]
        def reducer_override(self, obj: Any) -> Any:
            found = _override(obj)
            return super().reducer_override(obj) if found is NotImplemented else found

    def dumps(value: Any, protocol: int = 5, *, buffer_callback: Any = None) -> bytes:
        return _dumped(Mixed, value, protocol, buffer_callback)

    return dumps


def _dumped(kind: type[pickle.Pickler], value: Any, protocol: int, buffers: Any) -> bytes:
    with io.BytesIO() as file:
        kind(file, protocol=protocol, buffer_callback=buffers).dump(value)
        return file.getvalue()


# Plain pickle -----------------------------------------------------------------------------------

# Who may pickle an instance by its copy's name: what stays in this process, what a forked child
# reads (a spawned one is told when it looks the name up), and our own picklers.
_TRUSTED = frozenset({"copy", "multiprocessing", "fp_async", "cloudpickle", "ray"})


def guard(module: ModuleType) -> list[type]:
    """Have plain pickle refuse the instances of the classes of a copy; returns the classes.

    A file that nobody can read would be written otherwise, and missed much later.
    """
    classes = _classes(module)
    for kind in classes:
        copyreg.dispatch_table.setdefault(kind, _refuse)
    return classes


def unguard(classes: list[type]) -> None:
    """The classes are unloaded."""
    for kind in classes:
        if copyreg.dispatch_table.get(kind) is _refuse:
            del copyreg.dispatch_table[kind]


def _classes(module: ModuleType) -> list[type]:
    """The classes that a module defines, and those within them."""
    found: dict[type, None] = {}
    pending = list(vars(module).values())
    while pending:
        kind = pending.pop()
        if isinstance(kind, type) and kind.__module__ == module.__name__ and kind not in found:
            found[kind] = None
            pending += vars(kind).values()
    return list(found)


def _refuse(instance: Any) -> Any:
    asking = sys._getframe(1).f_globals.get("__name__", "")
    if asking.partition(".")[0] in _TRUSTED and not asking.startswith(_PREFIX):
        return instance.__reduce_ex__(4)
    kind = type(instance)
    raise refusal(f"{kind.__module__}.{kind.__qualname__}")


class _Stranger:
    """The last finder: a copy of another process was pickled, and is looked for here."""

    @staticmethod
    def find_spec(fullname: str, *_: object) -> ModuleSpec | None:
        if not fullname.startswith(_PREFIX):
            return None
        if _is_started_by_multiprocessing():
            stubs: Any = _Stubs()
            return ModuleSpec(fullname, stubs)
        raise refusal(fullname)


def _is_started_by_multiprocessing() -> bool:
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


class _Stubs:
    """Loads a module of stubs: `multiprocessing.Pool` waits for ever for a task that its child
    cannot read, so it reads one, and calling that raises.

    A loader by its methods: `importlib.abc` would load tempfile, shutil, bz2, lzma on every device.
    """

    def create_module(self, spec: ModuleSpec) -> None:
        del spec

    def exec_module(self, module: ModuleType) -> None:
        fullname = module.__name__
        vars(module)["__getattr__"] = lambda part: _stub(f"{fullname}.{part}")


class _Stub(type):
    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise refusal(cls.__name__)


def _stub(fullname: str) -> Any:
    if fullname.rpartition(".")[2].startswith("__"):
        raise AttributeError(fullname)

    def missing(_: Any, part: str) -> Any:
        if part.startswith("__"):
            raise AttributeError(part)
        raise refusal(fullname)

    return _Stub(fullname, (), {"__getattr__": missing, "__setstate__": lambda *_: None})


if _Stranger not in sys.meta_path:
    sys.meta_path.append(_Stranger)
