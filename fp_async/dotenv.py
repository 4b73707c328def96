r"""`.env` files as python-dotenv and Docker Compose read them. Pure.

Our own, because a mistake is an error that names the line, and `${...}` means what it means in
`conf/*.yml`: python-dotenv skips what it cannot read, and leaves unknown variables empty.

    NAME=value  # a comment              export NAME=value
    NAME="a \"quoted\" text\n"            NAME='as it stands: ${NOT} replaced'

Quoted values may have several lines. The last of two entries with one name counts.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping

from fp_async import variables
from fp_async.errors import MisconfiguredError
from fp_async.variables import VariableError

_BLANK = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_ENTRY = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.\-]*)[ \t]*=")
_QUOTED = re.compile(
    r"""[ \t]*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")[ \t]*(?:#[^\n]*)?(?:\n|\Z)""", re.DOTALL
)
_REST = re.compile(r"([^\n]*)(?:\n|\Z)")
_COMMENT = re.compile(r"(?:^|[ \t]+)#.*")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def parse(text: str, name: str, env: Mapping[str, str]) -> dict[str, str]:
    """The entries of a file. `env` has the variables that `${...}` means besides those above.

    Raises MisconfiguredError, which names the file `name` and the line, and shows no value.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    found: dict[str, str] = {}
    known = ChainMap(dict(env), found)
    at = 0
    while at < len(text):
        blank = _BLANK.match(text, at)
        if blank:
            at = blank.end()
            continue
        try:
            key, value, at = _entry(text, at, known)
        except ValueError as error:
            line = text.count("\n", 0, at) + 1
            raise MisconfiguredError(f"{name}:{line}: {error}") from None
        found[key] = value
    return found


def _entry(text: str, at: int, env: Mapping[str, str]) -> tuple[str, str, int]:
    """(name, value, where the next line begins). Raises ValueError."""
    start = _ENTRY.match(text, at)
    if start is None:
        raise ValueError("not a line of the form NAME=value")
    value, end = _value(text, start.end(), env)
    if "\0" in value:
        raise ValueError(f"{start[1]}: a variable cannot have a NUL character")
    return start[1], value, end


def _value(text: str, at: int, env: Mapping[str, str]) -> tuple[str, int]:
    quoted = _QUOTED.match(text, at)
    if quoted and quoted[1] is not None:
        return re.sub(r"\\([\\'])", r"\1", quoted[1]), quoted.end()
    if quoted:
        return _put_in(_ESCAPED.sub(_unescaped, quoted[2]), env), quoted.end()
    rest = _REST.match(text, at)
    assert rest is not None
    value = rest[1].lstrip(" \t")
    if value[:1] in ("'", '"'):
        raise ValueError(f"the {value[0]} before the value has no counterpart at its end")
    return _put_in(_COMMENT.sub("", rest[1]).strip(" \t"), env), rest.end()


def _unescaped(match: re.Match[str]) -> str:
    char = match[1]
    return _ESCAPES.get(char, char if char in "\\\"'" else match[0])


def _put_in(value: str, env: Mapping[str, str]) -> str:
    try:
        return variables.resolve(variables.parse(value), env) if "${" in value else value
    except VariableError as error:
        raise ValueError(error) from None
