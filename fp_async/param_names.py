"""Which parameters a pipeline knows, and which of them anything reads."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fp_async.errors import InputError, UnknownNameError, suggestion
from fp_async.param_types import functions, hints
from fp_async.params import Params, entries_read, was_read
from fp_async.values.annotations import type_name
from fp_async.values.coerce import fits

Given = Mapping[str, Mapping[str, Any] | None]
_NAME = "PARAMS"


class Known:
    """The parameters of one pipeline: `configured` in any environment, arguments of functions of
    its modules, or read from `PARAMS`; `files` are the sources that may read them.
    """

    def __init__(
        self,
        configured: Mapping[str, Iterable[str]],
        modules: Sequence[ModuleType],
        params: Params,
        files: Iterable[Path],
    ) -> None:
        self._configured = {name: set(arguments) for name, arguments in configured.items()}
        self._modules = modules
        self._params = params
        self._files = files
        self._found: Mentions | None = None

    def check(self, given: Given) -> None:
        """Raises UnknownNameError and InputError for what a caller gives and nothing reads."""
        for function, values in given.items():
            if values is not None and function not in (known := self._names()):
                raise UnknownNameError("function", function, known, where=" in params")
            for argument in values or ():
                self._check(function, argument)

    def _check(self, function: str, argument: str) -> None:
        known = self._arguments(function)
        if known is not None and argument not in known:
            where = f" of function '{function}' in params"
            raise UnknownNameError("argument", argument, known, where=where)
        if why := self._unread(function, argument):
            raise InputError(f"param {function}.{argument}: {why}")

    def problems(self, configured: Given) -> Iterator[tuple[str, str]]:
        """(place, text) of each configured parameter that nothing reads."""
        for function, values in configured.items():
            named = self._own_functions()
            if function not in named and not self._reads(function):
                yield function, f"the pipeline has no such function{suggestion(function, named)}"
                continue
            valid = self._own_arguments(function)
            for argument, value in (values or {}).items():
                if value is None:
                    continue
                if not (valid is None or argument in valid or self._reads(function, argument)):
                    yield f"{function}.{argument}", f"no such argument{suggestion(argument, valid)}"
                elif why := self._unread(function, argument):
                    yield f"{function}.{argument}", self._misfit(function, argument, value) + why

    def _misfit(self, function: str, argument: str, value: Any) -> str:
        """That what nothing reads would not fit, either."""
        for each in functions(function, self._modules):
            kind = hints(each).get(argument, Any)
            if not fits(value, kind):
                return (
                    f"the function says {type_name(kind)}, the value is {type_name(type(value))}; "
                )
        return ""

    def _unread(self, function: str, argument: str) -> str:
        """Why nothing reads a parameter, and how it could be read."""
        if not (self._params._asked or self._mentions.asks):
            return (
                f"no module of the pipeline reads parameters; write "
                f"{_NAME} = load_params(__file__) in it, and {_how(function, argument)}"
            )
        if self._reads(function, argument):
            return ""
        return f"nothing reads it; write {_how(function, argument)}"

    # What there is ----------------------------------------------------------------------------

    def _names(self) -> list[str]:
        return list(
            dict.fromkeys([*self._own_functions(), *self._configured, *entries_read(self._params)])
        )

    def _own_functions(self) -> list[str]:
        return [
            name
            for module in self._modules
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]

    def _arguments(self, function: str) -> set[str] | None:
        """Those that a function, or its entry, may be given; None where that cannot be known."""
        own = self._own_arguments(function)
        if own is None:
            return None
        entry = self._params._functions.get(function)
        return own | self._configured.get(function, set()) | set(entry._read if entry else ())

    def _own_arguments(self, function: str) -> set[str] | None:
        found: set[str] = set()
        for each in functions(function, self._modules):
            parameters = inspect.signature(each).parameters
            if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
                return None
            found.update(parameters)
        return found

    # What is read -----------------------------------------------------------------------------

    def _reads(self, function: str, argument: str | None = None) -> bool:
        """Return whether the modules have read it, or have a line that will."""
        entry = self._params._functions.get(function)
        if argument is None:
            return function in entries_read(self._params) or self._mentions.function(function)
        if entry is not None and (entry._unpacked or was_read(entry, argument)):
            return True
        if entry is None and function in entries_read(self._params):
            return True
        return self._mentions.argument(function, argument)

    @property
    def _mentions(self) -> Mentions:
        if self._found is None:
            self._found = Mentions(self._files)
        return self._found


def _how(function: str, argument: str) -> str:
    return (
        f"@parameterize(**{_NAME}.{function}) above `def {function}`, or "
        f"{_NAME}.{function}.{argument} where it is wanted"
    )


class Mentions:
    """What sources mention of `PARAMS`: names after a dot and in quotes, wherever they stand.

    It finds more than is read, and all of it, but for what is put together while it runs.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.asks: bool = False  # whether `load_params` is in them
        self._names: set[str] = set()
        self._dynamic = False  # whether PARAMS itself is handed on
        self._whole: set[str] = set()  # entries that are handed on
        trees = [tree for file in files if (tree := _parsed(file)) is not None]
        pairs = [
            (parent, child)
            for tree in trees
            for parent in ast.walk(tree)
            for child in ast.iter_child_nodes(parent)
        ]
        self._called = {_NAME}.union(*(_bound(parent) for parent, _ in pairs))
        for parent, child in pairs:
            self._see(parent, child)

    def function(self, name: str) -> bool:
        """Return whether the entry of this function may be read."""
        return self._dynamic or name in self._names

    def argument(self, function: str, name: str) -> bool:
        """Return whether this argument of it may be read."""
        return self._dynamic or (
            function in self._names and (name in self._names or function in self._whole)
        )

    def _see(self, parent: ast.AST, child: ast.AST) -> None:
        self.asks |= isinstance(child, ast.alias) and child.name == "load_params"
        if isinstance(child, ast.Attribute):
            self.asks |= child.attr == "load_params"
            self._names.add(child.attr)
            if not isinstance(parent, ast.Attribute) and self._is_params(child.value):
                self._whole.add(child.attr)
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            self._names.add(child.value)
        elif self._is_params(child) and not _is_plain(parent):
            self._dynamic = True

    def _is_params(self, node: ast.AST) -> bool:
        loads = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        return loads and node.id in self._called  # type: ignore[attr-defined]


def _parsed(file: Path) -> ast.Module | None:
    try:
        return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return None


def _bound(node: ast.AST) -> set[str]:
    """The names that are bound to what `load_params` returns."""
    if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
        return set()
    called = node.value.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    if name != "load_params":
        return set()
    return {target.id for target in node.targets if isinstance(target, ast.Name)}


def _is_plain(parent: ast.AST) -> bool:
    """Return whether it is `PARAMS.name` or `PARAMS["name"]`."""
    if isinstance(parent, ast.Subscript):
        return isinstance(parent.slice, ast.Constant)
    return isinstance(parent, ast.Attribute)
