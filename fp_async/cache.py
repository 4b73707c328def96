"""The cache of nodes' values: what was computed before by the same code from the same values.

A value is kept under a key made of the node's code (`node_code.py`) and the versions of what it
reads. The version of a computed value is the digest of its pickle, so a node that gives the same
value as before, by other code, leaves the nodes behind it in the cache; that of an input, a
configured value or an override is its fingerprint. What cannot be pickled is computed in every
run, and so is what depends on it: a value is never taken for another.

`@cache(behavior=...)` of Hamilton counts: `recompute` computes a node in every run, `disable`
those that read it, too, and `ignore` leaves the node's value out of their keys. Loaders, savers and
`Parallelizable` depend on what is outside, and are computed in every run unless they say otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import pickle
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fp_async import copies, executors
from fp_async.awaitables import awaitable
from fp_async.errors import FileAccessError, describe
from fp_async.fingerprints import SIZE, UnknownValueError, digest, fingerprint
from fp_async.node_code import NodeCode
from fp_async.plan import Plan
from fp_async.threads import in_thread

log: logging.Logger = logging.getLogger("fp_async")
FOLDER = ".hamilton_cache"
_LAYOUT = "flowerpower-1"  # a folder of its own: entries of other releases are never read
_IGNORED = b"ignored"
Source = tuple[str, str]  # (argument, whose value it gets)


class Entry(NamedTuple):
    """A kept value and its version."""

    value: Any
    version: bytes


class Store:
    """The values below a folder, a file each: a pickle, and its digest."""

    def __init__(self, folder: Path) -> None:
        """Raises FileAccessError where the folder cannot be made or written."""
        self.folder: Path = folder / _LAYOUT
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileAccessError(
                f"cannot use the cache in {folder}: {error.strerror or error}"
            ) from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise FileAccessError(f"cannot use the cache in {folder}: it cannot be written")

    def get(self, key: bytes) -> Entry | None:
        """The value of a key; None where there is none, or it is damaged or of no known class."""
        try:
            data = memoryview(self._path(key).read_bytes())
        except OSError:
            return None
        body, version = data[:-SIZE], bytes(data[-SIZE:])
        if len(data) <= SIZE or hashlib.blake2b(body, digest_size=SIZE).digest() != version:
            return None
        try:
            return Entry(pickle.loads(body), version)  # noqa: S301 - written by `put`
        except Exception as error:
            log.debug("an entry of the cache cannot be read: %s", describe(error))
            return None

    def put(self, key: bytes, value: Any) -> bytes | None:
        """Keep a value and return its version; None where it cannot be pickled or written."""
        path = self._path(key)
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        try:
            path.parent.mkdir(exist_ok=True)
            with part.open("wb") as file:
                version = _pickled(value, file)
                file.write(version)
            part.replace(path)
        except OSError as error:
            log.warning("cannot write to the cache in %s: %s", self.folder.parent, error)
            return None
        except Exception as error:
            log.debug("a value of type %s is not cached: %s", type(value).__name__, error)
            return None
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        return version

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self.folder / name[:2] / name[2:]


class _Hashing(io.RawIOBase):
    """A file to write to that takes the digest of all that passes."""

    def __init__(self, file: Any) -> None:
        self.hashed = hashlib.blake2b(digest_size=SIZE)
        self._file = file

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.hashed.update(view)
        if self._file is not None:
            self._file.write(view)
        return len(view)


def _pickled(value: Any, file: Any) -> bytes:
    """Write the pickle of a value to `file`, if that is one; its digest."""
    hashing = _Hashing(file)
    copies.Pickler(hashing, protocol=5).dump(value)
    return hashing.hashed.digest()


def _unique() -> bytes:
    """A version that no other value has."""
    return uuid.uuid4().bytes


def version_of(value: Any) -> bytes:
    """The version of a value that is not kept."""
    try:
        return fingerprint(value)
    except UnknownValueError:
        return _unique()


class RunCache:
    """The cache during one run, or for one item of a `Parallelizable` in it (`part`)."""

    def __init__(
        self,
        store: Store,
        code: NodeCode,
        behaviors: Mapping[str, str],
        given: Mapping[str, Any],
        outer: RunCache | None = None,
    ) -> None:
        self._store = store
        self._code = code
        self._behaviors = behaviors
        self._given = given
        self._outer = outer
        self._versions: dict[str, bytes] = {}
        self._hits: set[str] = set()

    def hit(self, name: str) -> bool:
        """Return whether the node's value was taken from the cache."""
        return name in self._hits

    def part(self, given: Mapping[str, Any]) -> RunCache:
        """For nodes that run for one item: `given` are the values that differ between items."""
        return RunCache(self._store, self._code, self._behaviors, given, self)

    def version(self, name: str) -> bytes:
        """The version of a value that is there by now."""
        found = self._versions.get(name)
        if found is not None:
            return found
        if name in self._given:
            found = self._versions[name] = version_of(self._given[name])
            return found
        assert self._outer is not None, name
        return self._outer.version(name)

    def gathered(self, name: str, parts: Sequence[bytes]) -> None:
        """Note the version of a list of values by those of its items."""
        self._versions[name] = digest(b"gathered", *parts)

    def plan(self, plan: Plan) -> Plan:
        """The same plan, with calls that look into the cache first."""
        calls = [
            call if call is None or slot < plan.given else self._call(plan, slot, call)
            for slot, call in enumerate(plan.calls)
        ]
        return replace(plan, calls=tuple(calls))

    def _call(self, plan: Plan, slot: int, call: Callable[..., Any]) -> Callable[..., Any]:
        name = plan.names[slot]
        if name not in self._behaviors:
            return call
        sources = [(argument, plan.names[at]) for argument, at in plan.arguments[slot]]
        cached = self._awaited if plan.is_async[slot] else self._called
        return partial(cached, name, sources, call)

    def elsewhere(
        self, plan: Plan, call: Callable[[str, dict[str, Any]], Any]
    ) -> Callable[[str, dict[str, Any]], Any]:
        """`call`, which runs a node by its name in another process, behind the cache."""
        slots = {name: slot for slot, name in enumerate(plan.names)}

        async def cached(name: str, kwargs: dict[str, Any]) -> Any:
            sources = [(arg, plan.names[at]) for arg, at in plan.arguments[slots[name]]]
            return await self._awaited(name, sources, lambda **given: call(name, given), **kwargs)

        return cached

    # One node -------------------------------------------------------------------------------

    def _called(
        self, name: str, sources: list[Source], call: Callable[..., Any], /, **kwargs: Any
    ) -> Any:
        key, entry = self._look(name, sources)
        if entry is not None:
            return entry.value
        value = call(**kwargs)
        if awaitable(value):  # behind a decorator that is not seen through
            return self._rest(name, key, value)
        self._keep(name, key, value)
        return value

    async def _rest(self, name: str, key: bytes, value: Any) -> Any:
        result = await value
        await self._aside(self._keep, name, key, result)
        return result

    async def _awaited(
        self, name: str, sources: list[Source], call: Callable[..., Any], /, **kwargs: Any
    ) -> Any:
        key, entry = await self._aside(self._look, name, sources)
        if entry is not None:
            return entry.value
        return await self._rest(name, key, call(**kwargs))

    async def _aside(self, function: Callable[..., Any], *args: Any) -> Any:
        """In a thread: files and pickles would hold the loop up."""
        return await in_thread(executors.threads(None), partial(function, *args))

    def _look(self, name: str, sources: list[Source]) -> tuple[bytes, Entry | None]:
        key = self._key(name, sources)
        return key, self._found(name, key)

    def _key(self, name: str, sources: list[Source]) -> bytes:
        if self._behaviors[name] in ("disable", "ignore"):
            return b""
        parts = [digest(a.encode(), self.version(source)) for a, source in sorted(sources)]
        return digest(self._code.of(name), *parts)

    def _found(self, name: str, key: bytes) -> Entry | None:
        if self._behaviors[name] != "default":
            return None
        entry = self._store.get(key)
        if entry is not None:
            self._versions[name] = entry.version
            self._hits.add(name)
        return entry

    def _keep(self, name: str, key: bytes, value: Any) -> None:
        """Keep a value that was computed, as far as the node wants it, and note its version."""
        how = self._behaviors[name]
        if how == "ignore":
            self._versions[name] = _IGNORED
        elif how == "default":
            self._versions[name] = self._store.put(key, value) or _unique()
        else:
            self._versions[name] = _unique() if how == "disable" else version_of(value)
