"""`PARAMS`: the parameters of `conf/pipelines.yml` as a pipeline module sees them.

`@parameterize(**PARAMS.add_int_col)` expands to `add_int_col={"col_name": value("foo")}` (one
node, named after the function), and `PARAMS.add_int_col.col_name` is the plain value. Which
parameters a module gets is decided by whoever loads it, never by global state: the loader sets
them for the duration of the import, and a module imported by other means (a unit test, a
notebook) gets those of the project that its file lies in.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from fp_async import config
from fp_async.errors import ConfigError, MissingParameterError, UnknownNameError, suggestion


class FunctionParams:
    """The parameters of one function: unpacks for `@parameterize`, attributes give the values.

    No method but `keys`, which `**` needs: every other name is the user's.
    """

    def __init__(self, flow: str, function: str, values: Mapping[str, Any]) -> None:
        self._read: set[str] = set()
        self._flow = flow
        self._function = function
        self._values = dict(values)
        for name in set(self._values).intersection(dir(self)):
            where = f"params.{flow}.{function}.{name}"
            raise ConfigError(f"{where}: PARAMS cannot give an argument of this name; rename it")

    def keys(self) -> list[str]:
        """The node's name, so that `**PARAMS.fn` works."""
        return [self._function]

    def __getitem__(self, function: str) -> dict[str, Any]:
        if function != self._function:
            raise KeyError(function)
        from fp_async.dag import literal

        return {name: literal(value) for name, value in self._values.items()}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._read.add(name)
        try:
            return self._values[name]
        except KeyError:
            where = f"params.{self._flow}.{self._function}.{name}"
            raise _missing(where, name, self._values) from None

    def __repr__(self) -> str:
        return f"PARAMS.{self._function}({self._values})"


class Params:
    """The parameters of one pipeline; `PARAMS.<function>` and `PARAMS["<function>"]`.

    No methods: every name is a function's.
    """

    def __init__(self, flow: str, functions: Mapping[str, Mapping[str, Any] | None]) -> None:
        self._read: set[str] = set()
        self._flow = flow
        self._functions = {
            name: FunctionParams(flow, name, config.given(values))
            for name, values in functions.items()
        }

    def __getattr__(self, name: str) -> FunctionParams:
        if name.startswith("__"):
            raise AttributeError(name)
        self._read.add(name)
        try:
            return self._functions[name]
        except KeyError:
            raise _missing(f"params.{self._flow}.{name}", name, self._functions) from None

    def __getitem__(self, name: str) -> FunctionParams:
        return self.__getattr__(name)

    def __contains__(self, name: object) -> bool:
        return name in self._functions

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __repr__(self) -> str:
        return f"PARAMS({self._flow}: {', '.join(self._functions) or 'none'})"


def entries_read(params: Params) -> set[str]:
    """The functions that the modules have asked `PARAMS` for."""
    return set(params._read)


def was_read(function: FunctionParams, name: str) -> bool:
    """Whether the modules have asked for this value by name."""
    return name in function._read


def check_names(
    given: Mapping[str, Mapping[str, Any] | None],
    functions: Sequence[str],
    modules: Sequence[ModuleType],
    params: Params,
) -> None:
    """Raises UnknownNameError for what a caller gives to a function, or an argument of one, that
    the pipeline does not have: neither its modules nor what they ask `PARAMS` for.
    """
    for function, values in given.items():
        if function not in functions:
            raise UnknownNameError("function", function, functions, where=" in params")
        known = _arguments(function, modules)
        if known is not None and function in params:
            known |= params._functions[function]._read
        for argument in values or ():
            if known is not None and argument not in known:
                where = f" of function '{function}' in params"
                raise UnknownNameError("argument", argument, known, where=where)


def _arguments(function: str, modules: Sequence[ModuleType]) -> set[str] | None:
    """Those of the function of this name; None where they cannot be known."""
    found: set[str] = set()
    for module in modules:
        if inspect.isfunction(value := vars(module).get(function)):
            parameters = inspect.signature(value).parameters
            if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
                return None
            found.update(parameters)
    return found or None


def _missing(where: str, name: str, valid: Mapping[str, object]) -> MissingParameterError:
    return MissingParameterError(f"no entry {where} in conf/pipelines.yml{suggestion(name, valid)}")


_loading: ContextVar[Params | None] = ContextVar("fp_async_params", default=None)


@contextmanager
def provided(params: Params) -> Iterator[None]:
    """While modules are imported in this block, `load_params` gives them `params`."""
    token = _loading.set(params)
    try:
        yield
    finally:
        _loading.reset(token)


def load_params(file: str) -> Params:
    """The parameters for the pipeline module at `file` (pass `__file__`).

    Raises ConfigError where `conf/pipelines.yml` is wrong.
    """
    params = _loading.get()
    if params is not None:
        return params
    path = Path(file).resolve()
    settings = config.read(path.parent.parent, "pipelines.yml")
    return resolve(settings, path.stem, config.DEFAULT_ENVIRONMENT, None)


def resolve(
    file: config.PipelinesFile,
    flow: str,
    environment: str,
    override: Mapping[str, Mapping[str, Any]] | None,
) -> Params:
    """Parameters of `flow`: the file's, overlaid by the environment's, then by the call's."""
    base = (file.params or {}).get(flow) or {}
    settings = config.run_settings(file, flow, environment)
    over = config.merged(base, settings.params or {}, 2)
    return Params(flow, config.merged(over, override or {}, 2))
