"""Parameters with the types that the annotations of their functions say.

`PARAMS` is needed while modules are imported, and the annotations are known only afterwards. So
what was handed out is put right where it stands: in `PARAMS`, in the values that `@parameterize`
was given, and in the defaults of the function. Only a value that the modules have read for
themselves (`LIMIT = PARAMS.f.limit`), and that is another one by its annotation, makes it
necessary to import them once more.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fp_async.errors import InputError
from fp_async.params import FunctionParams, Params
from fp_async.values import coerce, paths
from fp_async.values.coerce import converter, guided
from fp_async.values.converter import convert
from fp_async.values.misfit import MisfitError
from fp_async.values.text import Text

Given = Mapping[str, Mapping[str, Any] | None]


def settle(params: Params, modules: Sequence[ModuleType], root: Path | None) -> bool:
    """Give the parameters their types; whether the modules have to be imported once more.

    Relative paths get below `root`, the project's folder, or stay where that is None. Raises
    InputError, which tells of all that do not fit.
    """
    wrong: list[str] = []
    again = False
    if not params._asked:
        return False
    for name, entry in params._functions.items():
        for function in functions(name, modules):
            for argument, kind in hints(function).items():
                if argument not in entry._given:
                    continue
                try:
                    made = _made(entry._given[argument], kind, root)
                    again |= _settle(entry, argument, made, function, modules)
                except MisfitError as error:
                    wrong.append(error.told(f"param {name}.{argument}", brief=True))
    if wrong:
        raise InputError("\n".join(dict.fromkeys(wrong)))
    return again


def as_data(
    given: Given, modules: Sequence[ModuleType], configured: Given
) -> dict[str, dict[str, Any]]:
    """Parameters as the JSON data that a job is stored with. Raises InputError, TypeError."""
    wrong: list[str] = []
    made: dict[str, dict[str, Any]] = {}
    for name, values in given.items():
        kinds = {k: v for each in functions(name, modules) for k, v in hints(each).items()}
        guide = configured.get(name) or {}
        for argument, value in (values or {}).items():
            try:
                data = _as_data(value, kinds.get(argument, Any), guide.get(argument))
                made.setdefault(name, {})[argument] = data
            except MisfitError as error:
                wrong.append(error.told(f"param {name}.{argument}", brief=True))
    if wrong:
        raise InputError("\n".join(wrong))
    return made


def _as_data(value: Any, kind: Any, example: Any) -> Any:
    if value is None:  # not given
        return None
    typed = guided(value, example) if kind is Any else convert(value, converter(kind))
    return coerce.as_data(typed)


def functions(name: str, modules: Sequence[ModuleType]) -> list[Callable[..., Any]]:
    """The functions of that name, and its variants (`name__suffix`) for `@config.when`."""
    return [
        value
        for module in modules
        for key, value in vars(module).items()
        if inspect.isfunction(value) and (key == name or key.rpartition("__")[0] == name)
    ]


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's arguments."""
    try:
        found = typing.get_type_hints(function, include_extras=True)
    except Exception:  # whatever evaluating a user's annotation raises: Hamilton tells of it
        return {}
    return {name: kind for name, kind in found.items() if name != "return"}


def _made(given: Any, kind: Any, root: Path | None) -> Any:
    """A parameter as its annotation wants it. Raises MisfitError."""
    made = convert(given, converter(kind))
    return made if root is None or not paths.mentions(kind) else paths.below(made, root)


def _settle(
    entry: FunctionParams,
    argument: str,
    made: Any,
    function: Callable[..., Any],
    modules: Sequence[ModuleType],
) -> bool:
    """As `settle`, for one parameter."""
    entry._typed.add(argument)
    old = entry._values[argument]
    if made is old:
        return False
    entry._values[argument] = made
    for literal in entry._literals.get(argument, ()):
        literal.value = made
    elsewhere = entry._read[argument] - _put_default(function, argument, old, made)
    own = type(made).__module__ in {module.__name__ for module in modules}
    return elsewhere > 0 and not own and (type(made), repr(made)) != (type(old), repr(old))


def _put_default(function: Any, argument: str, old: Any, made: Any) -> int:
    """Put the value in the place of the argument's default, if that was read from `PARAMS`."""
    parameter = inspect.signature(function).parameters[argument]
    if parameter.default is not old:
        return 0
    if parameter.kind is parameter.KEYWORD_ONLY:
        function.__kwdefaults__ = {**function.__kwdefaults__, argument: made}
    else:
        code, defaults = function.__code__, list(function.__defaults__)
        first = code.co_argcount - len(defaults)
        defaults[code.co_varnames.index(argument) - first] = made
        function.__defaults__ = tuple(defaults)
    return 1


def forget_reads(params: Params) -> None:
    """Begin anew: the modules are about to be imported once more."""
    for entry in params._functions.values():
        entry._read.clear()
        entry._literals.clear()


def guide(given: Given, configured: Given) -> dict[str, dict[str, Any]]:
    """The configured values of those parameters that are given as text."""
    return {
        name: {key: (configured.get(name) or {}).get(key) for key in texts}
        for name, values in given.items()
        if (texts := [key for key, value in (values or {}).items() if isinstance(value, Text)])
    }


def portable(params: Params) -> dict[str, dict[str, Any]]:
    """The parameters as another process has to be told them, which settles them for itself: the
    classes that a module defines are others there.
    """
    return {
        name: {
            argument: value if argument in entry._typed else entry._values[argument]
            for argument, value in entry._given.items()
        }
        for name, entry in params._functions.items()
    }
