"""Fingerprints of values: equal ones mean that the values are equal in all that a pickle keeps.

Plain data, containers and NumPy's arrays are walked by their structure; every other object by
what it gives a pickle (`__reduce_ex__`), so that frames, series, indexes, dataclasses and objects
of libraries that are not known here differ wherever a copy of them would. Sets are sorted, and
which of several equal objects is the same one does not count. A value that has no pickle has no
fingerprint (`UnknownValueError`): it is equal to nothing, itself included.
"""

from __future__ import annotations

import hashlib
import marshal
import struct
import sys
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from fp_async import copies

SIZE = 20
Recurse = Callable[[Any], bytes]
# Gives the fingerprint of a value that a caller knows better; None for any other.
Special = Callable[[Any, Recurse], bytes | None]

_NAMELESS = (type(None), type(...), type(NotImplemented))
_MEMO = ("_cache", "_readonly")
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})


class UnknownValueError(TypeError):
    """A value, or one within it, has no fingerprint."""


def digest(*parts: bytes) -> bytes:
    """One fingerprint of several texts, of which none can pass for two."""
    lengths = struct.pack(f">{len(parts)}Q", *map(len, parts))
    return hashlib.blake2b(b"".join((lengths, *parts)), digest_size=SIZE).digest()


def fingerprint(value: Any, special: Special | None = None) -> bytes:
    """The fingerprint of a value. Raises UnknownValueError."""
    try:
        return _Walk(special).of(value)
    except RecursionError as error:
        raise UnknownValueError("the value is nested too deep") from error


class _Walk:
    """One walk through a value; remembers the objects that it is within."""

    def __init__(self, special: Special | None) -> None:
        self._special = special
        self._within: dict[int, int] = {}
        self._known: dict[int, tuple[bytes, Any]] = {}  # the object too: its id stays its own

    def of(self, value: Any) -> bytes:
        kind = type(value)
        if kind in _PLAIN:
            return digest(b"plain", marshal.dumps(value, 0))  # version 0: nothing is interned
        if id(value) in self._known:
            return self._known[id(value)][0]
        if id(value) in self._within:
            return digest(b"cycle", str(self._within[id(value)]).encode())
        self._within[id(value)] = len(self._within)
        try:
            found = self._of_object(value)
        finally:
            del self._within[id(value)]
        self._known[id(value)] = found, value
        return found

    def _of_object(self, value: Any) -> bytes:
        if self._special is not None:
            known = self._special(value, self.of)
            if known is not None:
                return known
        walk = _STRUCTURED.get(type(value))
        if walk is not None:
            return walk(self, value)
        try:
            return self._array(value) if _is_array(value) else self._reduced(value)
        except (UnknownValueError, RecursionError):
            raise
        except Exception as error:  # the object's own code, which may raise anything
            raise UnknownValueError(f"a {type(value).__name__} raised {error!r}") from error

    def _set(self, value: set[Any] | frozenset[Any]) -> bytes:
        return digest(type(value).__name__.encode(), *sorted(map(self.of, value)))

    def _sequence(self, items: list[Any] | tuple[Any, ...]) -> bytes:
        kind = type(items).__name__.encode()
        if _PLAIN.issuperset(map(type, items)):
            return digest(kind, b"plain", marshal.dumps(tuple(items), 0))
        return digest(kind, b"", *map(self.of, items))

    def _dict(self, value: dict[Any, Any]) -> bytes:
        keys, values = tuple(value), tuple(value.values())
        if _PLAIN.issuperset(map(type, keys)) and _PLAIN.issuperset(map(type, values)):
            return digest(b"dict", marshal.dumps((keys, values), 0))
        return digest(b"dict", self._sequence(keys), self._sequence(values))

    def _array(self, array: Any) -> bytes:
        """Of an array of NumPy's without objects in it: type, shape, order and the memory."""
        order = b"F" if array.flags.fnc and not array.flags.c_contiguous else b"C"
        flat = array.reshape(-1, order=order.decode())
        raw = flat.view("u1").data if array.size and array.itemsize else b""
        head = self.of((array.shape, array.dtype.str)), self.of(array.dtype)
        return digest(b"array", order, *head, hashlib.blake2b(raw, digest_size=SIZE).digest())

    def _reduced(self, value: Any) -> bytes:
        name = _global_name(value)
        if name is not None:
            return digest(b"global", name.encode())
        try:
            reduced = value.__reduce_ex__(4)
        except UnknownValueError:
            raise
        except Exception as error:
            raise UnknownValueError(f"{type(value).__name__} has no pickle: {error}") from error
        if isinstance(reduced, str):
            module = getattr(value, "__module__", None) or type(value).__module__
            return digest(b"global", f"{module}:{reduced}".encode())
        parts = [*reduced, *(None,) * (6 - len(reduced))]
        parts[2:5] = _without_memo(value, parts[2]), _listed(parts[3]), _listed(parts[4])
        return digest(b"object", *map(self.of, parts))


_STRUCTURED: dict[type, Callable[[_Walk, Any], bytes]] = {
    list: _Walk._sequence,
    tuple: _Walk._sequence,
    dict: _Walk._dict,
    set: _Walk._set,
    frozenset: _Walk._set,
    bytearray: lambda _, value: digest(b"bytearray", bytes(value)),
}


def _without_memo(value: Any, state: Any) -> Any:
    """The state without what pandas' arrays note of how they were looked at so far."""
    if type(value).__module__.partition(".")[0] != "pandas":
        return state
    if isinstance(state, tuple):
        parts = (_without_memo(value, each) for each in state)
        return tuple(part for part in parts if type(part) is not dict or part)
    if isinstance(state, dict):
        return {name: each for name, each in state.items() if name not in _MEMO}
    return state


def _listed(items: Iterable[Any] | None) -> list[Any] | None:
    return None if items is None else list(items)


def _is_array(value: Any) -> bool:
    kind = type(value)
    return kind.__module__ == "numpy" and kind.__name__ == "ndarray" and not value.dtype.hasobject


def _global_name(value: Any) -> str | None:
    """`module:name` of a class or function that a pickle would hold by name; else None.

    Raises UnknownValueError for one that is not found by its name: a lambda, a local class.
    """
    name = getattr(value, "__qualname__", None)
    if not isinstance(value, type) and not (callable(value) and isinstance(name, str)):
        return None
    owner = None if isinstance(value, type) else getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, ModuleType):
        return None  # a bound method: its object counts, too
    module = getattr(value, "__module__", None)
    found: Any = sys.modules.get(str(module))
    for part in str(name).split("."):
        found = getattr(found, part, None)
    if found is value or value in _NAMELESS:
        return f"{copies.plainly(str(module))}:{name}"
    if not isinstance(value, type | FunctionType | BuiltinFunctionType):
        return None
    raise UnknownValueError(f"{module}.{name} is not found by its name")
