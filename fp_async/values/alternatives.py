"""One of several: unions, Literals, Enums."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Collection, Sequence
from typing import Any

from fp_async.values.converter import NOTHING, Converter, convert
from fp_async.values.misfit import MisfitError
from fp_async.values.scalars import EXACT, LAST, LOOSE, SCALARS
from fp_async.values.text import Text


class Union:
    """One of several: the first that fits exactly, else the first in written order.

    A text that one of the others reads is not kept as `str`, but a quoted one is.
    """

    def __init__(self, kind: Any, members: Sequence[Converter]) -> None:
        self._kind = kind
        self._members = members
        self._str = SCALARS[str] in members
        self._others = [each for each in members if each is not SCALARS[str]]
        self.atoms = frozenset().union(*(each.atoms for each in members))

    def data(self, value: Any) -> Any:
        problems: list[MisfitError] = []
        made: list[Any] = []
        for member in self._members:
            try:
                made.append(convert(value, member))
            except MisfitError as error:
                problems.append(error)
                continue
            if made[-1] is value:
                return value
        if made:
            return made[0]
        raise _deepest(problems) or MisfitError(self._kind, value)

    def text(self, text: Text, level: int) -> Any:
        if self._str and (text.quoted or not text):
            return str(text)
        problems: list[MisfitError] = []
        for step in range(EXACT, min(level, LOOSE if self._str else LAST) + 1):
            for member in self._others:
                try:
                    return member.text(text, step)
                except MisfitError as error:
                    problems.append(error)
        if self._str and level == LAST:
            return str(text)
        raise _deepest(problems) or MisfitError(self._kind, text)


def _deepest(problems: Collection[MisfitError]) -> MisfitError | None:
    """The one that tells of a part of the value, where only one does."""
    inner = {problem.told(""): problem for problem in problems if problem.path or problem.problem}
    return next(iter(inner.values())) if len(inner) == 1 else None


class Choice:
    """One of a few values: of a `Literal`, or of an Enum by value or by name."""

    atoms = NOTHING

    def __init__(self, kind: Any, values: Sequence[Any]) -> None:
        self._kind = kind
        self._values = values
        self._enum: Any = kind if isinstance(kind, type) else None
        self.atoms = frozenset({kind}) if self._enum else NOTHING

    def data(self, value: Any) -> Any:
        for each in self._values:
            if each is value or (type(each) is type(value) and each == value):
                return value
        for each in self._values:
            if isinstance(each, enum.Enum) and _same(each.value, value):
                return each
        for each in self._members():
            if type(value) is str and each.name == value:
                return each
        if self._enum and issubclass(self._enum, enum.Flag) and type(value) is int:
            with contextlib.suppress(ValueError):
                return self._enum(value)
        raise self._mismatch(value)

    def text(self, text: Text, level: int) -> Any:  # noqa: ARG002 - exact or not at all
        for each in self._values:
            meant = each.value if isinstance(each, enum.Enum) else each
            kind = type(meant)
            if kind is str and meant == text:
                return each
            if not (kind is str or text.quoted) and kind in SCALARS:
                with contextlib.suppress(MisfitError):
                    if _same(SCALARS[kind].text(text, LOOSE), meant):
                        return each
        for each in self._members():
            if each.name == text:
                return each
        raise self._mismatch(text)

    def _members(self) -> list[enum.Enum]:
        named = [*self._enum.__members__.values()] if self._enum else []  # with aliases
        return named or [each for each in self._values if isinstance(each, enum.Enum)]

    def _mismatch(self, value: Any) -> MisfitError:
        error = MisfitError(self._kind, value)
        if self._enum and len(self._values) <= 12:
            names = ", ".join(each.name for each in self._values)
            error.problem = f"{error.expected(brief=isinstance(value, Text))} (one of {names})"
        return error


def _same(one: Any, other: Any) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)
