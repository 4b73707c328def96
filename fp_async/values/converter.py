"""What makes a value fit one annotation, whatever it is."""

from __future__ import annotations

from typing import Any, Protocol

from fp_async.values.misfit import MisfitError
from fp_async.values.scalars import LAST
from fp_async.values.text import Text

NOTHING: frozenset[Any] = frozenset()


class Converter(Protocol):
    """Makes values fit one annotation. `atoms` are the types whose values pass as they are."""

    @property
    def atoms(self) -> frozenset[type]: ...

    def data(self, value: Any) -> Any:
        """A value that keeps its type. Raises MisfitError."""

    def text(self, text: Text, level: int) -> Any:
        """A text that is read; see `scalars` for the levels. Raises MisfitError."""


def convert(value: Any, to: Converter) -> Any:
    """The value as the annotation wants it. Raises MisfitError."""
    if type(value) in to.atoms:
        return value
    return to.text(value, LAST) if isinstance(value, Text) else to.data(value)


def part(step: str | int, value: Any, to: Converter) -> Any:
    """A part of a value, converted; `step` is its field, key or index."""
    try:
        return convert(value, to)
    except MisfitError as error:
        raise error.within(step) from None
