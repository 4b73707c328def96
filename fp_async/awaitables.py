"""Values that have to be awaited, and those that nobody will await."""

from __future__ import annotations

from typing import Any

# Values of these types are not awaitable: seen at once, without a look-up that fails.
PLAIN = frozenset({type(None), bool, int, float, str, bytes, list, dict, tuple, set})


def awaitable(value: Any) -> bool:
    """Whether a node's value has to be awaited."""
    kind = type(value)
    return kind not in PLAIN and hasattr(kind, "__await__")


def close(value: Any) -> None:
    """A coroutine that nobody will await says so to itself, not to the user."""
    if hasattr(value, "close"):
        value.close()
