"""Where sync nodes run: which executors there are, and what each needs.

`local` runs them on the event loop (for trivial nodes, and for code bound to the loop's
thread), `threadpool` in worker threads, `processpool` in child processes, `hamilton` through
Hamilton's own AsyncDriver, `ray` and `dask` on a cluster. Coroutine functions always run on the
event loop.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import msgspec

from fp_async.config import ExecutorSettings
from fp_async.errors import MissingExtraError, UnknownNameError, UsageError
from fp_async.threads import Threads
from fp_async.values import mismatch

DEFAULT = "threadpool"
NAMES = ("local", "threadpool", "processpool", "hamilton")
CLUSTERS = {"ray": "ray", "dask": "distributed"}  # and the package of each
_FOR_CLUSTERS = ("address", "resources", "options")
_ADDRESS = re.compile(r"(?:\w+://)?[^/]+:(\d{1,5})(?:/.*)?")


class Attached(ExecutorSettings, frozen=True):
    """An executor whose connection is the user's own."""

    client: Any = None


def resolve(executor: Any, settings: str | ExecutorSettings | None = None) -> ExecutorSettings:
    """The settings of an executor given by name, as "ray:ADDRESS", in full (a mapping, too), or
    by a Dask client.

    A name alone takes the rest from the configured `settings`, if they are for the same one.
    Raises UnknownNameError for a name that does not exist, MissingExtraError for one whose
    engine is not there, UsageError for options that it does not have, and for anything else.
    """
    found = described(executor, settings)
    if found.type in CLUSTERS and find_spec(CLUSTERS[found.type]) is None:
        raise MissingExtraError(f"executor '{found.type}'", found.type)
    return found


def described(executor: Any, settings: str | ExecutorSettings | None = None) -> ExecutorSettings:
    """As `resolve`, of one that may be installed only where it is to be used."""
    plain = executor is None or isinstance(executor, str)
    if plain and (settings is None or isinstance(settings, str)):
        return _by_name(executor, settings)  # what most runs ask for, and it costs them time
    configured = _named(settings)
    found = configured if executor is None else _named(executor)
    if isinstance(executor, str) and executor == configured.type:
        found = configured
    return _checked(found)


@functools.lru_cache(maxsize=128)
def _by_name(executor: str | None, settings: str | None) -> ExecutorSettings:
    configured = _named(settings)
    if executor is None or executor == configured.type:
        return _checked(configured)
    return _checked(_named(executor))


def check_name(executor: Any) -> None:
    """Raises UnknownNameError, UsageError for what is no executor; the machine that runs it may
    have more.
    """
    name = _named(executor).type
    if name not in NAMES and name not in CLUSTERS:
        raise UnknownNameError("executor", name, (*NAMES, *CLUSTERS))


def _named(executor: Any) -> ExecutorSettings:
    if isinstance(executor, ExecutorSettings):
        return executor if isinstance(executor, Attached) else _typed(executor)
    if executor is None or isinstance(executor, str):
        name, _, address = (executor or DEFAULT).partition(":")
        return ExecutorSettings(type=name, address=address or None)
    if isinstance(executor, Mapping):
        return _converted(executor)
    if any(kind.__module__.partition(".")[0] == "distributed" for kind in type(executor).__mro__):
        return Attached(type="dask", client=executor)
    raise UsageError(
        f"executor is a name ({', '.join((*NAMES, *CLUSTERS))}), a mapping of its options, "
        f"ExecutorSettings, or a distributed.Client, not {executor!r}"
    )


def _typed(settings: ExecutorSettings) -> ExecutorSettings:
    """What was made in Python has not been validated."""
    _converted(msgspec.structs.asdict(settings))
    return settings


def _converted(values: Mapping[str, Any]) -> ExecutorSettings:
    return mismatch.converted(dict(values), ExecutorSettings, "executor")


def _checked(settings: ExecutorSettings) -> ExecutorSettings:
    check_name(settings)
    if settings.type in CLUSTERS:
        _check_address(settings)
        return settings
    for field in _FOR_CLUSTERS:
        if getattr(settings, field) is not None:
            raise UsageError(f"executor '{settings.type}' has no {field}; ray and dask have")
    return settings


def _check_address(settings: ExecutorSettings) -> None:
    address = settings.address
    if not address or address in ("auto", "local") or address.startswith("inproc://"):
        return
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found[1]) < 65_536:
        raise UsageError(
            f"executor '{settings.type}': an address is HOST:PORT, or a scheme and that, "
            f"not '{address}'"
        )


@functools.cache
def threads(max_workers: int | None) -> Threads:
    """The process-wide threads with this limit; runs share them."""
    return Threads(max_workers)
