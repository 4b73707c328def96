"""`${NAME}` and `${NAME:-default}` in a text. Pure.

A default may hold variables again, to any depth, and braces in pairs. `$${` is a literal `${`.
Whatever else begins with `${` is an error: a typo must never become part of a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HINT = "write ${NAME} or ${NAME:-default}, and $${ for a literal ${"
_SECRET = re.compile(
    r"(?:^|_)(?:pw|pwd|pass|keys?|dsn)(?:_|$)|passw|passphrase|secret|token|credential|apikey",
    re.IGNORECASE,
)
_SHOWN = 40  # characters of a text that is not understood


class VariableError(ValueError):
    """A text has a `${` that means nothing, or names a variable that has no value."""


class Variable(NamedTuple):
    """`${name}` or `${name:-default}`; `default` is None where there is none."""

    name: str
    default: tuple[str | Variable, ...] | None


Parts = tuple[str | Variable, ...]


def parse(text: str) -> Parts:
    """Literal texts and variables, in their order. Raises VariableError."""
    reader = _Reader(text)
    return reader.read()


class _Reader:
    """Reads one text from left to right; `_at` is the position of the next character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self, opened: int | None = None) -> Parts:
        """Everything up to the end, or up to the brace that closes what was `opened` there."""
        nested = opened is not None
        found: list[str | Variable] = []
        literal, depth = "", 0
        while self._at < len(self._text):
            if self._skip("$${"):
                literal, depth = literal + "${", depth + nested
            elif self._text.startswith("${", self._at):
                found += [literal] if literal else []
                literal = ""
                found.append(self._variable())
            else:
                char = self._text[self._at]
                if nested and char == "}" and depth == 0:
                    break
                depth += (char == "{") - (char == "}")
                literal += char
                self._at += 1
        return (*found, literal) if literal else tuple(found)

    def _variable(self) -> Variable:
        start = self._at
        self._at += 2
        name = _NAME.match(self._text, self._at)
        if name is None:
            raise self._wrong(start, "names no variable")
        self._at = name.end()
        default = None
        if self._skip(":-"):
            default = self.read(start)
        if not self._skip("}"):
            closed = "}" in self._text[self._at :]
            raise self._wrong(start, "is not understood" if closed else "is not closed by a }")
        return Variable(name[0], default)

    def _skip(self, what: str) -> bool:
        found = self._text.startswith(what, self._at)
        self._at += len(what) if found else 0
        return found

    def _wrong(self, start: int, why: str) -> VariableError:
        end = self._text.find("}", start) + 1
        shown = self._text[start : end or None]
        shown = f"{shown[:_SHOWN]}..." if len(shown) > _SHOWN else shown
        return VariableError(f"'{shown}' {why}: {_HINT}")


def resolve(parts: Parts, env: Mapping[str, str]) -> str:
    """The text with the values put in. Raises VariableError for a variable without a value."""
    return "".join(part if isinstance(part, str) else _value(part, env) for part in parts)


def _value(variable: Variable, env: Mapping[str, str]) -> str:
    name, default = variable
    value = env.get(name)
    if value:
        return value
    if default is not None:
        return resolve(default, env)
    if value is None:
        text = f"is not set (export {name}, write it in .env, or write ${{{name}:-default}})"
    else:
        text = f"is set, but empty (give it a value, or write ${{{name}:-}} where it may be empty)"
    raise VariableError(f"environment variable {name} {text}")


def names(parts: Parts) -> Iterator[str]:
    """The names of all variables, those of defaults included."""
    for part in parts:
        if isinstance(part, Variable):
            yield part.name
            yield from names(part.default or ())


def is_secret(name: str) -> bool:
    """Return whether the name of a variable or key suggests that its value must not be shown."""
    return _SECRET.search(name) is not None
