"""`PARAMS`: the parameters of `conf/pipelines.yml` as a pipeline module sees them.

`@parameterize(**PARAMS.add_int_col)` expands to `add_int_col={"col_name": value("foo")}` (one
node, named after the function), and `PARAMS.add_int_col.col_name` is the plain value. A module gets
those of the run that loads it, by a context variable; in a process that a node has started those
of its run (`handing_on`); imported by other means (a unit test, a notebook) those that the project
configures which its file lies in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fp_async import config, config_files, copies, handing_on
from fp_async.errors import ConfigError, MissingParameterError, suggestion
from fp_async.values.coerce import guided


class FunctionParams:
    """The parameters of one function: unpacks for `@parameterize`, attributes give the values.

    No method but `keys`, which `**` needs: every other name is the user's. `_given` is what was
    configured or given, `_values` what the modules see of it.
    """

    def __init__(
        self, flow: str, function: str, given: Mapping[str, Any], guide: Mapping[str, Any]
    ) -> None:
        self._read: Counter[str] = Counter()
        self._unpacked = False
        self._typed: set[str] = set()  # those that have an annotation
        self._flow = flow
        self._function = function
        self._given = dict(given)
        self._values = {name: guided(value, guide.get(name)) for name, value in given.items()}
        self._literals: dict[str, list[Any]] = {}
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

        self._unpacked = True
        made = {name: literal(value) for name, value in self._values.items()}
        for name, each in made.items():
            self._literals.setdefault(name, []).append(each)
        return made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._read[name] += 1
        try:
            return self._values[name]
        except KeyError:
            where = f"params.{self._flow}.{self._function}.{name}"
            raise _missing(where, name, self._values) from None

    def __repr__(self) -> str:
        return f"PARAMS.{self._function}({self._values})"


class Params:
    """The parameters of one pipeline; `PARAMS.<function>` and `PARAMS["<function>"]`.

    No methods: every name is a function's. A text is read like the one in `guide`.
    """

    def __init__(
        self,
        flow: str,
        functions: Mapping[str, Mapping[str, Any] | None],
        guide: Mapping[str, Mapping[str, Any] | None] = {},
    ) -> None:
        self._read: set[str] = set()
        self._asked = False  # whether some module has called `load_params`
        self._flow = flow
        self._functions = {
            name: FunctionParams(flow, name, config.given(values), guide.get(name) or {})
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


def given(params: Params) -> dict[str, dict[str, Any]]:
    """The values that the modules get, by function."""
    return {name: dict(entry._values) for name, entry in params._functions.items()}


def entries_read(params: Params) -> set[str]:
    """The functions that the modules have asked `PARAMS` for."""
    return set(params._read)


def was_read(function: FunctionParams, name: str) -> bool:
    """Whether the modules have asked for this value by name."""
    return name in function._read


def _missing(where: str, name: str, valid: Mapping[str, object]) -> MissingParameterError:
    return MissingParameterError(f"no entry {where} in conf/pipelines.yml{suggestion(name, valid)}")


def load_params(file: str) -> Params:
    """The parameters for the pipeline module at `file` (pass `__file__`).

    Raises ConfigError where `conf/pipelines.yml` is wrong, CopyError in a process that a run has
    started where it cannot be known which parameters are meant.
    """
    running = copies.current.get()
    if running is not None:
        found: Params = running.namespace.reads_params()
        found._asked = True
        return found
    path = Path(file).resolve()
    told = handing_on.told(path)
    if told is None:
        return Params(path.stem, configured(path.parent.parent, path.stem, ""))
    if told.values is None:
        return Params(told.pipeline, configured(told.root, told.pipeline, told.environment))
    return Params(told.pipeline, told.values)


def is_configured(root: Path, flow: str) -> bool:
    """Return whether `conf/pipelines.yml` has entries of a pipeline."""
    return any(flow in names for names in config_files.of(root).pipelines().named.values())


def configured(root: Path, flow: str, environment: str) -> dict[str, Any]:
    """The parameters of a pipeline in an environment, or in `dev` where it does not have that."""
    pipelines = config_files.of(root).pipelines()
    if environment not in pipelines.environments(flow):
        environment = config.DEFAULT_ENVIRONMENT
    return pipelines.parameters(flow, environment)
