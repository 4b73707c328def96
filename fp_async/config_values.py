"""`config:` of a pipeline: text with the types that its `@config.when` conditions compare with.

Hamilton keeps the values of a condition in the closure of its resolver, and nowhere else.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from fp_async.errors import InputError, suggestion
from fp_async.param_types import hints
from fp_async.values.coerce import converter, guess, plain
from fp_async.values.converter import convert
from fp_async.values.misfit import MisfitError
from fp_async.values.text import Text

_VALUES = "key_value_pairs"
_GROUPS = "key_value_group_pairs"


class Condition(NamedTuple):
    """A condition of `@config.when...`: the values that one key is compared with."""

    key: str
    values: tuple[Any, ...]
    excludes: bool  # whether it is true of every other value

    def allows(self, value: Any) -> bool:
        """Return whether it is true of a value."""
        return (value in self.values) != self.excludes


def typed(config: Mapping[str, Any], modules: Sequence[ModuleType]) -> dict[str, Any]:
    """The entries that are not null, with no text left in them. Raises InputError."""
    given = {key: value for key, value in config.items() if value is not None}
    if not any(isinstance(value, Text) for value in given.values()):
        return {key: plain(value) for key, value in given.items()}
    known = list(_conditions(modules))
    return {key: _typed(key, value, known, modules) for key, value in given.items()}


def _typed(
    key: str, value: Any, conditions: Sequence[Condition], modules: Sequence[ModuleType]
) -> Any:
    if not isinstance(value, Text):
        return plain(value)
    if value.quoted:
        return str(value)
    compared = [each for one in conditions if one.key == key for each in one.values]
    if compared:
        return _like(key, value, compared)
    for kind in _annotations(key, modules):
        try:
            return convert(value, converter(kind))
        except MisfitError as error:
            raise InputError(f"config {error.told(key, brief=True)}") from None
    return guess(value)


def _like(key: str, text: Text, compared: Sequence[Any]) -> Any:
    """The text as the value that it is compared with, else of that type."""
    equal = [each for each in compared if _means(text, each)]
    kinds = {type(each) for each in equal}
    if len(kinds) > 1:
        ways = " and with ".join(sorted({repr(each) for each in equal}))
        raise InputError(
            f"config {key}: the pipeline compares it with {ways}; "
            f'for the text write \'{key}="{text}"\', for the other one JSON: {{"{key}": {text}}}'
        )
    if equal:
        return equal[0]
    if {type(each) for each in compared} == {str}:
        return str(text)
    return guess(text)


def _means(text: Text, value: Any) -> bool:
    """Return whether the text is how that value is written."""
    if type(value) is str:
        return value == text
    try:
        made = convert(text, converter(type(value)))
    except MisfitError:
        return False
    return bool(type(made) is type(value) and made == value)


def _annotations(key: str, modules: Sequence[ModuleType]) -> Iterator[Any]:
    """Those of the functions' arguments of this name, which the configuration is an input of."""
    for module in modules:
        for function in vars(module).values():
            if inspect.isfunction(function) and key in (found := hints(function)):
                yield found[key]


# What the conditions say ----------------------------------------------------------------------


def _functions(modules: Sequence[ModuleType]) -> Iterator[Any]:
    for module in modules:
        yield from filter(inspect.isfunction, vars(module).values())


def _conditions(modules: Sequence[ModuleType]) -> Iterator[Condition]:
    for function in _functions(modules):
        for resolver in getattr(function, "resolve", ()):
            yield from _of_resolver(resolver)


def _of_resolver(resolver: Any) -> Iterator[Condition]:
    resolves = getattr(getattr(resolver, "does_resolve", None), "resolves", None)
    if not inspect.isfunction(resolves):
        return
    named = inspect.getclosurevars(resolves).nonlocals
    excludes = ".when_not" in resolves.__qualname__
    for key, value in named.get(_VALUES, {}).items():
        yield Condition(key, (value,), excludes)
    for key, values in named.get(_GROUPS, {}).items():
        yield Condition(key, tuple(values), excludes)


def problems(
    config: Mapping[str, Any], modules: Sequence[ModuleType], inputs: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """(key, text) of each configured value that no condition knows, and that is no input."""
    unknown = unknown_keys(config, modules, inputs)
    conditions = list(_conditions(modules))
    for key, value in config.items():
        mine = [each for each in conditions if each.key == key]
        if key in unknown:
            valid = keys(modules, inputs)
            yield key, f"no @config.when and no node knows it{suggestion(key, valid)}"
        elif not mine or key in inputs or _custom(modules):
            continue
        elif not any(one.allows(value) for one in mine):
            yield key, _unknown(value, mine)


def unknown_keys(
    config: Iterable[str], modules: Sequence[ModuleType], inputs: Iterable[str]
) -> list[str]:
    """The keys that nothing looks at: no decorator, no function and none of `inputs`, the names
    that the nodes read.
    """
    if _custom(modules):
        return []
    named = {name for function in _functions(modules) for name in _arguments(function)}
    known = {*keys(modules, inputs), *named}
    return [key for key in config if key not in known and not key.startswith("hamilton.")]


def _arguments(function: Any) -> Iterable[str]:
    return inspect.signature(function).parameters


def keys(modules: Sequence[ModuleType], inputs: Iterable[str]) -> list[str]:
    """The keys that decorators name, then `inputs`."""
    decorators = [each for function in _functions(modules) for each in _decorators(function)]
    declared = [key for each in decorators for key in (*_required(each), *_optional(each))]
    conditions = [each.key for each in _conditions(modules)]
    return list(dict.fromkeys((*conditions, *declared, *inputs)))


def _unknown(value: Any, conditions: Sequence[Condition]) -> str:
    values = list(dict.fromkeys(repr(each) for one in conditions for each in one.values))
    text = f"no @config.when knows {value!r}; they know {', '.join(values)}"
    if isinstance(value, int | float) and repr(str(value)) in values:
        return f'{text} (a text is written in quotes: "{value}")'
    return text


def _custom(modules: Sequence[ModuleType]) -> bool:
    """Whether something looks at the configuration that does not say at what (a function of the
    user's own, `@resolve`).
    """
    return any(
        decorator.optional_config() is None or decorator.required_config() is None
        for function in _functions(modules)
        for decorator in _decorators(function)
    )


def _decorators(function: Any) -> Iterator[Any]:
    """Those of Hamilton's that are attached to a function."""
    for attached in vars(function).values():
        for each in attached if isinstance(attached, list) else ():
            if hasattr(each, "optional_config") and hasattr(each, "required_config"):
                yield each


def _required(decorator: Any) -> Iterable[str]:
    return decorator.required_config() or ()


def _optional(decorator: Any) -> Iterable[str]:
    return decorator.optional_config() or ()


# Functions of which the configuration chooses one ---------------------------------------------


def no_variant(name: str, config: Mapping[str, Any], modules: Sequence[ModuleType]) -> str | None:
    """Why no function makes the node, where some would with another configuration; else None."""
    variants = [found for each in _functions(modules) if (found := _conditions_of(each, name))]
    if not variants:
        return None
    asked = dict.fromkeys(one.key for conditions in variants for one in conditions)
    given = ", ".join(f"{key}={config[key]!r}" for key in asked if key in config)
    absent = ", ".join(key for key in asked if key not in config)
    without = f"without config {absent}" if absent else ""
    alike = len(asked) == 1 and not any(one.excludes for of in variants for one in of)
    texts = [_variant(conditions, named=not alike) for conditions in variants]
    where = " and ".join(part for part in (given and f"for {given}", without) if part)
    return f"no variant of {name} {where}; there are: {', '.join(dict.fromkeys(texts))}"


def _conditions_of(function: Any, name: str) -> list[Condition]:
    """Return what has to be true for the function to make the node of this name."""
    resolvers = getattr(function, "resolve", ())
    targets = {getattr(each, "target_name", None) or function.__name__ for each in resolvers}
    if name not in {target.partition("__")[0] for target in targets} | targets:
        return []
    return [condition for each in resolvers for condition in _of_resolver(each)]


def _variant(conditions: Sequence[Condition], *, named: bool) -> str:
    return " and ".join(
        (f"{one.key} {'not ' if one.excludes else ''}" if named else "")
        + " or ".join(map(_written, one.values))
        for one in conditions
    )


def _written(value: Any) -> str:
    return value if isinstance(value, str) and value.isidentifier() else repr(value)
