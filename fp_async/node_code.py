"""What the nodes of a pipeline compute by, as fingerprints: code, and the values that it reads.

Of a node count: the source of its function with its decorators; what these hold (arguments of
`@parameterize`, `value(...)`, defaults, closures); the values of the globals that its function
and the functions called by it read, `PARAMS` included; all else in the pipeline's modules and in
the project's modules that they import; the versions of Python and of the imported libraries.
Comments do not count. Where the value of a global has no fingerprint (a lock, a connection), all
parameters of the pipeline count in its place, since they may have made it.
"""

from __future__ import annotations

import ast
import dis
import functools
import logging
import sys
import sysconfig
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from fp_async import copies
from fp_async.errors import describe
from fp_async.fingerprints import Recurse, UnknownValueError, digest, fingerprint
from fp_async.params import FunctionParams, Params

log: logging.Logger = logging.getLogger("fp_async")
_FORMAT = b"1"  # counts in every fingerprint: of this module's rules
_OURS = ("fp_async", "hamilton")
_LIBRARIES = tuple(
    Path(path).resolve()
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
    if (path := sysconfig.get_path(name))
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_others: dict[Path, bytes] = {}  # texts outside of pipelines/, as they were when first read


class NodeCode:
    """The fingerprints of a pipeline's nodes.

    `unchanged` says whether the files are still what was loaded: of others nothing is known, and
    every node gets a fingerprint that will not be met again.
    """

    def __init__(
        self,
        folder: Path,
        modules: Sequence[ModuleType],
        params: Params,
        nodes: Mapping[str, Any],
        unchanged: Callable[[], bool],
    ) -> None:
        self._nodes = nodes
        self._all_params = fingerprint_of_params(params)
        self._files = {Path(str(m.__file__)): m for m in modules if m.__file__}
        self._family = family(folder, self._files)
        self._functions = {path: _functions(self._family[path]) for path in self._files}
        self._everything = digest(self._all_params, *self._family.values())
        self._common = self._common_part(folder)
        if not unchanged():
            self._common = uuid.uuid4().bytes
        self._known: dict[str, bytes] = {}

    def of(self, name: str) -> bytes:
        """The fingerprint of the node `name`."""
        found = self._known.get(name)
        if found is None:
            node = self._nodes[name]
            functions = tuple(node.originating_functions or ())
            parts = (self._walked(node.callable), *map(self._walked, functions))
            found = self._known[name] = digest(self._common, name.encode(), *parts)
        return found

    def _common_part(self, folder: Path) -> bytes:
        texts = [
            (
                path.relative_to(folder.parent).as_posix()
                if folder.parent in path.parents
                else path.name
            ).encode()
            + b"\0"
            + (_without_functions(text) if path in self._files else text)
            for path, text in sorted(self._family.items())
        ]
        libraries = sorted(_versions(self._family))
        return digest(_FORMAT, sys.version.encode(), fingerprint(libraries), *texts)

    def _walked(self, value: Any) -> bytes:
        try:
            return fingerprint(value, self._special)
        except UnknownValueError:  # nested too deep
            return self._everything

    # What a pickle does not know -------------------------------------------------------------

    def _special(self, value: Any, of: Recurse) -> bytes | None:
        """The fingerprint of a value that is more than data, None for data.

        An object of a library may raise anything when it is looked at (a proxy of Flask's outside
        of a request does): then all texts and parameters of the pipeline count in its place.
        """
        try:
            return self._code_of(value, of)
        except (UnknownValueError, RecursionError):
            raise
        except Exception as error:
            log.debug("a %s has no fingerprint: %s", type(value).__qualname__, describe(error))
            return digest(b"unknown", type(value).__qualname__.encode(), self._everything)

    def _code_of(self, value: Any, of: Recurse) -> bytes | None:
        for kinds, walk in _SPECIAL:
            if isinstance(value, kinds):
                return walk(self, value, of)
        if type(value).__module__ == "hamilton.node" and type(value).__name__ == "Node":
            return digest(b"node", value.name.encode(), of(value.callable), of(value.type))
        return self._wrapper(value, of)

    def _wrapper(self, value: Any, of: Recurse) -> bytes | None:
        """Of what stands around a function: that of both; all parameters for what has no parts."""
        inner = getattr(value, "__wrapped__", None) or getattr(value, "__func__", None)
        if callable(inner):
            owner = getattr(value, "__self__", None)
            return digest(b"wrapped", type(value).__qualname__.encode(), of(inner), of(owner))
        if type(value) in _CONTAINERS:
            return None
        try:
            value.__reduce_ex__(4)
        except Exception:
            return digest(b"unknown", type(value).__qualname__.encode(), self._all_params)
        return None

    def _property(self, value: property, of: Recurse) -> bytes:
        return digest(b"property", *map(of, (value.fget, value.fset, value.fdel)))

    def _params(self, value: Params | FunctionParams, _: Recurse) -> bytes:
        return fingerprint_of_params(value)

    def _function(self, function: FunctionType, of: Recurse) -> bytes:
        module = copies.plainly(function.__module__).rpartition(".")[2]
        name = f"{module}:{function.__qualname__}".encode()
        cells = [_content(cell) for cell in function.__closure__ or ()]
        held = (function.__defaults__, function.__kwdefaults__, cells)
        parts = [name, self._source(function.__code__), of(held)]
        if self._is_own(function.__code__.co_filename):
            parts += [
                digest(name.encode(), self._global(function, name, value, of))
                for name, value in _globals(function)
            ]
        return digest(b"function", *parts)

    def _source(self, code: CodeType) -> bytes:
        """Of a function of the pipeline's modules its source; of other files of the project
        nothing more than counts anyway; of all others the compiled code.
        """
        path = Path(code.co_filename)
        for first, last, text in self._functions.get(path, ()):
            if first <= code.co_firstlineno <= last:
                return text
        if path in self._family:
            return b""
        if not self._is_own(code.co_filename):
            return code.co_qualname.encode()
        return _compiled(code)

    def _is_own(self, file: str) -> bool:
        return Path(file) in self._family or not _is_library(Path(file))

    def _global(self, function: FunctionType, name: str, value: Any, of: Recurse) -> bytes:
        if not isinstance(value, Params):
            return of(value)
        read = _attributes(function.__code__, name)
        if read is None or not all(each in value for each in read):
            return fingerprint_of_params(value)
        return digest(*(fingerprint_of_params(value[each]) for each in sorted(read)))

    def _module(self, module: ModuleType, of: Recurse) -> bytes:
        file = getattr(module, "__file__", None)  # a built-in module has none
        if file is None or not self._is_own(file):
            return digest(b"module", module.__name__.encode())
        members = {n: v for n, v in vars(module).items() if not n.startswith("__")}
        return digest(b"module", *(digest(n.encode(), of(v)) for n, v in members.items()))

    def _class(self, kind: type, of: Recurse) -> bytes:
        name = f"{copies.plainly(kind.__module__).rpartition('.')[2]}:{kind.__qualname__}".encode()
        module = sys.modules.get(kind.__module__)
        file = getattr(module, "__file__", None)
        if file is None or not self._is_own(file):
            return digest(b"class", kind.__module__.encode(), name)
        members = {n: v for n, v in vars(kind).items() if n not in _NO_MEMBERS}
        bases = [of(base) for base in kind.__bases__]
        parts = (digest(n.encode(), of(v)) for n, v in members.items())
        return digest(b"class", name, *bases, *parts)


_CONTAINERS = (list, tuple, dict, set, frozenset, bytearray)
_SPECIAL: tuple[tuple[Any, Callable[[NodeCode, Any, Recurse], bytes]], ...] = (
    (FunctionType, NodeCode._function),
    (Params | FunctionParams, NodeCode._params),
    (ModuleType, NodeCode._module),
    (type, NodeCode._class),
    (property, NodeCode._property),
)
_NO_MEMBERS = {"__dict__", "__weakref__", "__module__", "__doc__", "__annotations__"} | {
    "__firstlineno__",
    "__static_attributes__",
    "__annotations_cache__",
    "__annotate_func__",
}


def fingerprint_of_params(params: Params | FunctionParams) -> bytes:
    """The fingerprint of parameters. They come from YAML or are given in Python: one that has
    none counts as one that was never met.
    """
    values = (
        params._values
        if isinstance(params, FunctionParams)
        else {name: each._values for name, each in params._functions.items()}
    )
    try:
        return fingerprint(values)
    except UnknownValueError:
        return uuid.uuid4().bytes


# Files --------------------------------------------------------------------------------------


def family(folder: Path, modules: Mapping[Path, Any]) -> dict[Path, bytes]:
    """The texts of `modules`, of their siblings in `folder` and of other modules that are no
    library's, as far as one of these imports them; of a package all files.
    """
    found: dict[Path, bytes] = {}
    waiting = list(modules)
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = _text(path, folder)
        for name in _imports(found[path]):
            waiting += _files(name, folder)
    return found


def _text(path: Path, folder: Path) -> bytes:
    if folder in path.parents:
        return path.read_bytes()
    if path not in _others:  # what is loaded is not loaded again when it is edited
        _others[path] = path.read_bytes()
    return _others[path]


def _files(name: str, folder: Path) -> list[Path]:
    for place in (folder, folder.parent):
        if (file := place / f"{name}.py").is_file():
            return [file]
        if (place / name).is_dir() and (place != folder.parent or name != folder.name):
            return sorted((place / name).rglob("*.py"))
    module = sys.modules.get(name)
    if name in _OURS or name in sys.stdlib_module_names or module is None:
        return []
    source = getattr(module, "__file__", None)
    if source is None or _is_library(Path(source)) or not source.endswith(".py"):
        return []
    whole = hasattr(module, "__path__")  # a package
    return sorted(Path(source).parent.rglob("*.py")) if whole else [Path(source)]


@functools.lru_cache(4096)
def _is_library(path: Path) -> bool:
    if not path.suffix or str(path).startswith("<"):
        return str(path).startswith("<frozen")
    if "site-packages" in path.parts or "dist-packages" in path.parts:
        return True
    resolved = path.resolve()
    ours = Path(__file__).resolve().parent
    return any(place in resolved.parents for place in (*_LIBRARIES, ours))


def _imports(text: bytes) -> set[str]:
    """The top-level names, and those below `pipelines` or a dot, that a source imports."""
    names: set[str] = set()
    for node in ast.walk(_parsed(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            if node.level or node.module == "pipelines":
                names.update(alias.name for alias in node.names)
    tops = {name.removeprefix("pipelines.").partition(".")[0] for name in names}
    return tops - {""}


def _parsed(text: bytes) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


def _versions(files: Mapping[Path, bytes]) -> Iterator[tuple[str, str]]:
    """The versions of the libraries that `files` import, as far as these say one."""
    for name in {name for text in files.values() for name in _imports(text)}:
        version = getattr(sys.modules.get(name), "__version__", None)
        if isinstance(version, str):
            yield name, version


def _is_node(node: ast.stmt) -> bool:
    return isinstance(node, _FUNCTIONS) and not node.name.startswith("_")


def _functions(text: bytes) -> list[tuple[int, int, bytes]]:
    """The functions of a pipeline's module that may be nodes: first line, last line, source."""
    return [
        (
            min([node.lineno, *(each.lineno for each in node.decorator_list)]),
            node.end_lineno or node.lineno,
            _dumped(node),
        )
        for node in _parsed(text).body
        if isinstance(node, _FUNCTIONS) and _is_node(node)
    ]


def _without_functions(text: bytes) -> bytes:
    return b"\0".join(_dumped(node) for node in _parsed(text).body if not _is_node(node))


def _dumped(node: ast.stmt) -> bytes:
    """The source without comments, docstring and line numbers."""
    if isinstance(node, _FUNCTIONS) and ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(node).encode(errors="surrogatepass")


# Functions ----------------------------------------------------------------------------------


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _globals(function: FunctionType) -> list[tuple[str, Any]]:
    """The globals that a function may read, its inner functions included, by name."""
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    known = function.__globals__
    return [(name, known[name]) for name in sorted(names) if name in known]


def _attributes(code: CodeType, name: str) -> set[str] | None:
    """The attributes of the global `name` that are read; None where it is used in another way."""
    found: set[str] = set()
    for each in _codes(code):
        steps = list(dis.get_instructions(each))
        for step, then in zip(steps, [*steps[1:], None], strict=True):
            if not step.opname.startswith(("LOAD_GLOBAL", "LOAD_NAME")) or step.argval != name:
                continue
            if then is None or then.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                return None
            found.add(str(then.argval))
    return found


def _compiled(code: CodeType) -> bytes:
    constants = [each for each in code.co_consts if not isinstance(each, CodeType)]
    inner = [_compiled(each) for each in code.co_consts if isinstance(each, CodeType)]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount, code.co_flags)
    head = fingerprint([code.co_code, *names, *counts])
    return digest(head, fingerprint(repr(constants)), *inner)
