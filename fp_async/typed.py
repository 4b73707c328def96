"""Values given as text (command line, YAML) turned into what a function's annotation says."""

from __future__ import annotations

import enum
import types
import typing
from pathlib import Path
from typing import Any

import msgspec

from fp_async.errors import FileAccessError, UsageError

_OPENING, _CLOSING, _QUOTES = "[{(", "]})", "'\""


def parse_assignments(text: str, option: str) -> dict[str, Any]:
    """`k=v,k=v`, a JSON object, or `@file.json`, as a mapping; values of pairs stay text.

    Commas inside quotes or brackets belong to the value. Raises UsageError, FileAccessError.
    """
    if text.startswith("@"):
        return _json_object(_read(Path(text[1:]), option), option, text[1:])
    if text.lstrip().startswith("{"):
        return _json_object(text.encode(), option, "the value")
    result: dict[str, Any] = {}
    for part in _split(text):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            hint = 'write name=value,name=value, a JSON object, or @file.json; quote "a,b"'
            raise UsageError(f"{option}: cannot read '{part.strip() or text}': {hint}")
        if name.strip() in result:
            raise UsageError(f"{option}: '{name.strip()}' is given twice in '{text}'")
        result[name.strip()] = Text(_unquote(value.strip()))
    return result


class Text(str):
    """A value typed on a command line, which still has to get the type of its annotation."""

    __slots__ = ()


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileAccessError(f"{option}: cannot read {path}: {reason}") from error


def _json_object(data: bytes, option: str, what: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{option}: {what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{option}: {what} must be a JSON object of names and values")
    return value


def _split(text: str) -> list[str]:
    parts, depth, quote, start = [], 0, "", 0
    for index, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in _QUOTES:
            quote = char
        elif char in _OPENING + _CLOSING:
            depth += 1 if char in _OPENING else -1
        elif char == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _unquote(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES else text


def coerce(value: Any, kind: Any) -> Any:
    """`value` as `kind` where text or plain YAML data can mean it, else unchanged.

    Whether the result then fits is checked by whoever uses it.
    """
    if isinstance(value, Text):
        return _from_text(str(value), kind)
    try:
        return msgspec.convert(value, kind, strict=False, dec_hook=_special)
    except (msgspec.ValidationError, TypeError, NotImplementedError, ValueError):
        return value


def _from_text(text: str, kind: Any) -> Any:
    if kind is Any or kind is object or isinstance(kind, typing.TypeVar):
        return _guess(text)
    if _is_optional(kind) and text in ("", "null", "None"):
        return None
    for candidate in _readings(text, kind):
        try:
            return msgspec.convert(candidate, kind, strict=False, dec_hook=_special)
        except (msgspec.ValidationError, TypeError, NotImplementedError, ValueError):
            continue
    return text


def _readings(text: str, kind: Any) -> list[Any]:
    """What a text may mean: JSON first for containers, the text itself first for the rest."""
    guess = _guess(text)
    inner = text[1:-1] if text[:1] in _OPENING and text[-1:] in _CLOSING else text
    items = [_unquote(item.strip()) for item in _split(inner)] if inner.strip() else []
    container = typing.get_origin(kind) in (list, tuple, set, frozenset, dict)
    return [guess, text, items] if container else [text, guess]


def _guess(text: str) -> Any:
    try:
        return msgspec.json.decode(text.encode())
    except msgspec.DecodeError:
        return text


def _is_optional(kind: Any) -> bool:
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return union and type(None) in typing.get_args(kind)


def _special(kind: type, value: Any) -> Any:
    """What msgspec does not convert by itself: paths, and enums by name."""
    if isinstance(kind, type) and issubclass(kind, Path) and isinstance(value, str):
        return kind(value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum) and value in kind.__members__:
        return kind[value]
    raise NotImplementedError(kind)
