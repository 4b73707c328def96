"""What stands behind the functions that Hamilton's decorators make of the user's.

A wrapper hides that it calls a coroutine function. Known ones are seen through by their names
and the variable that holds what they call; behind an unknown one a coroutine is found, and
awaited, when it has been called.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

# Hamilton's wrappers, and which of their variables holds the function that they call.
_WRAPPERS = {
    "parameterize.expand_node.<locals>.replacement_function": "node_",
    "parameterize_extract_columns.expand_node.<locals>.wrapper_fn": "fn",
    "extract_columns.transform_node.<locals>.df_generator": "fn",
    "extract_fields.transform_node.<locals>.dict_generator": "fn",
    "unpack_fields.transform_node.<locals>.tuple_generator": "fn",
    "subdag.add_namespace.<locals>.fn": "_callabl",
    "subdag.add_final_node.<locals>.new_function": "fn",
    "Node.reassign_inputs.<locals>.new_callable": "self",
    "does.generate_nodes.<locals>.wrapper_function": "self",
}
_FILLING = ("df_generator", "dict_generator")


def is_async(function: Any) -> bool:
    """Whether calling it gives a coroutine, seen through Hamilton's wrappers."""
    return any(inspect.iscoroutinefunction(inner) for inner in layers(function))


def uses_early(function: Any) -> bool:
    """Whether one of Hamilton's wrappers works on the value of a coroutine that it called."""
    *wrappers, innermost = layers(function)
    if not inspect.iscoroutinefunction(innermost):
        return False
    for wrapper in wrappers:
        name = wrapper.__code__.co_name
        owner: Any = inspect.getclosurevars(wrapper).nonlocals.get("self")
        if inspect.iscoroutinefunction(wrapper):
            return False
        if name == "wrapper_fn" or (name in _FILLING and owner.fill_with is not None):
            return True
    return False


def layers(function: Any) -> list[Any]:
    """A function and those that it calls, as far as they are Hamilton's wrappers."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None)
    variable = _WRAPPERS.get(code.co_qualname) if code else None
    if variable is None:
        return [function]
    signature = inspect.signature(function, follow_wrapped=False)
    defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
    inner = {**defaults, **inspect.getclosurevars(function).nonlocals}[variable]
    for attribute in ("callable", "replacing_function"):  # of a Node, of @does
        inner = getattr(inner, attribute, inner)
    return [function, *layers(inner)]
