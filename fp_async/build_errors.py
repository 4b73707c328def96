"""What Hamilton's errors mean when it builds a graph, in words about the user's functions."""

from __future__ import annotations

import inspect
import re
import traceback
import typing
from collections.abc import Sequence
from types import ModuleType

# Where Hamilton's messages turn to advice of its own.
_ADVICE = ("If you believe they are equivalent", " In case you want to override")
UNKNOWN_FRAME = "does not output a type we know about"
_POWER_USER = "hamilton.enable_power_user_mode"
_IMPORT_IT = "; import the library of that type in the pipeline's module"
_ADDRESS = re.compile(r"<(function [\w.<>]+) at 0x\w+>")


def explain(error: Exception, modules: Sequence[ModuleType]) -> str:
    """The error's message without advert, addresses and our packages' names, and with a way out."""
    if isinstance(error, KeyError):  # whose text is nothing but the key
        return _missing_key(error)
    text = str(error)
    for advice in _ADVICE:
        text = text.partition(advice)[0].strip()
    text = hint(text)
    for module in modules:
        text = text.replace(f"{module.__name__.partition('.')[0]}.", "")
    if text.startswith("Cannot define function"):
        text += "; module_overrides: true lets the later module's replace the earlier"
    if isinstance(error, NameError):
        text += f" (in the annotations of {', '.join(_unresolved(modules))})"
    if "pipe_output.transform_node.<locals>.async_function" in text:
        return (
            f"function '{_compiled(error)}' is an `async def`, which Hamilton's @pipe_output and "
            "@mutate cannot take; use `def`, or apply the steps with @pipe_input to the function "
            "that reads it"
        )
    return text


def _missing_key(error: KeyError) -> str:
    key = error.args[0] if error.args else ""
    if key == _POWER_USER:
        return (
            f"@resolve and @resolve_from_config need `{_POWER_USER}: true` in the `config` of the "
            "pipeline (run.<pipeline>.<environment>.config, or --config)"
        )
    return f"KeyError: {error}"


def hint(text: str) -> str:
    """A message of Hamilton's without addresses, and with a way out where we know one."""
    text = _ADDRESS.sub(r"\1", text).strip()
    if UNKNOWN_FRAME in text and not text.endswith(_IMPORT_IT):
        text = text.replace(". Is it a dataframe type we support?", "") + _IMPORT_IT
    return text


def _unresolved(modules: Sequence[ModuleType]) -> list[str]:
    """The functions with an annotation that names nothing."""
    names = []
    for function in (member for module in modules for member in vars(module).values()):
        if inspect.isfunction(function):
            try:
                typing.get_type_hints(function)
            except NameError:
                names.append(function.__name__)
    return names


def _compiled(error: BaseException) -> str:
    """The name of the function that Hamilton was making nodes of when it raised `error`."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "resolve_nodes":
            return str(frame.f_locals["fn"].__name__)
    return "?"
