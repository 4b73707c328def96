"""Texts that are not shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

SHOWN = "***"


class Secret:
    """A text that is shown nowhere: in place of it `***` is printed, logged and listed.

    As the annotation of an input (`password: Secret`) it makes one of the text that is given, at
    every door. `reveal()` gives the text, for the call that needs it.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"a Secret is made of a str, not of {type(text).__name__}")
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return f"Secret('{SHOWN}')"

    def __str__(self) -> str:
        return SHOWN

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))


def within(value: object) -> bool:
    """Return whether a value is a Secret, or holds one."""
    if isinstance(value, Secret):
        return True
    if isinstance(value, Mapping):
        return any(map(within, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(within, value))
    kind = type(value)
    fields = getattr(kind, "__struct_fields__", ())
    names: Iterable[str] = getattr(kind, "__dataclass_fields__", fields)
    return any(within(getattr(value, name, None)) for name in names)
