"""What the processes that a node starts are told of its run, by an inherited variable.

A module of a pipeline that is imported there (by joblib, by `multiprocessing` with spawn) must get
the parameters of the run that started the process. The variable describes the runs of the process
that go on and whose modules read parameters. Where they differ in what a module should get, its
import fails: the environment is the whole process's, and a child cannot tell which run it is of.
"""

from __future__ import annotations

import json
import os
import threading
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fp_async.errors import CopyError, EncodingError

VARIABLE = "FLOWERPOWER_RUN"
_LARGEST = 100_000  # Linux passes on 131,072 bytes of a variable
_TOO_LARGE = "they are too large, or no data that can be handed on"
_RIGHT = "hand the values over as arguments, or make the runs in processes of their own"
_lock = threading.Lock()
_going_on: Counter[str] = Counter()
_accompanied: set[str] = set()  # of them, those beside which another one has gone on
_ever = False
_inherited = os.environ.get(VARIABLE)


class Told(NamedTuple):
    """What a module gets: `values`, or where that is None what the project at `root` configures for
    `pipeline` in `environment`.
    """

    root: Path
    pipeline: str
    environment: str
    values: dict[str, Any] | None


class _Run(NamedTuple):
    """A run that goes on: its project's root, resolved, and the modules that read its values."""

    root: str
    pipeline: str
    environment: str
    modules: list[str]
    values: str | None


def described(
    root: Path, pipeline: str, environment: str, modules: list[str], values: Mapping[str, Any]
) -> str:
    """A run, as a part of the variable."""
    return json.dumps(_Run(str(root.resolve()), pipeline, environment, modules, _encoded(values)))


def add(description: str) -> None:
    """A run goes on from now on."""
    global _ever
    with _lock:
        _ever = True
        _going_on[description] += 1
        if _going_on[description] == 1:
            if len(_going_on) > 1:
                _accompanied.update(_going_on)
            _publish()


def has_handed_on() -> bool:
    """Return whether this process has ever had a run that its children are told of."""
    return _ever


def remove(description: str) -> None:
    """It has ended."""
    with _lock:
        _going_on[description] -= 1
        if not _going_on[description]:
            del _going_on[description]
            _accompanied.discard(description)
            _publish()


def forget_inherited() -> None:
    """Forget which run has started this process: it loads by itself what it runs."""
    global _inherited
    with _lock:
        _inherited = None
        _publish()


def _publish() -> None:
    text = f"[{','.join(_going_on)}]" if _going_on else _inherited
    if text is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = text if len(text) < _LARGEST else "[]"


def _encoded(values: Mapping[str, Any]) -> str | None:
    from fp_async import codec

    try:
        text = b64encode(codec.encode_value(dict(values))).decode()
    except EncodingError:
        return None
    return text if len(text) < _LARGEST // 2 else None


def told(path: Path) -> Told | None:
    """What the module at `path` gets in this process; None where no run of its project started it.

    Raises CopyError where that cannot be known.
    """
    text = os.environ.get(VARIABLE)
    runs = [] if text is None else _of_project(text, path)
    if not runs:
        return None
    root = Path(runs[0].root)
    module = path.relative_to(root / "pipelines").parts[0].removesuffix(".py")
    having = [run for run in runs if module in run.modules]
    if not having:
        environments = {run.environment for run in runs}
        if len(environments) > 1:
            raise _unknown(module, "runs in several environments went on when it was started")
        return Told(root, module, environments.pop(), None)
    if len({(run.pipeline, run.values) for run in having}) > 1:
        raise _unknown(module, "several runs with other parameters went on when it was started")
    _, pipeline, environment, _, values = having[0]
    if values is None:
        raise _unknown(module, _TOO_LARGE)
    from fp_async import codec

    return Told(root, pipeline, environment, codec.decode_value(b64decode(values)))


def _of_project(text: str, path: Path) -> list[_Run]:
    """The runs of the project that the file belongs to."""
    try:
        runs = [_Run(*run) for run in json.loads(text)]
        found = [run for run in runs if Path(run.root) / "pipelines" in path.parents]
    except (ValueError, TypeError) as error:
        raise CopyError(f"the variable {VARIABLE} cannot be read: {error}") from error
    if not runs:
        raise _unknown(path.stem, "too many runs went on when it was started")
    return found


def doubt(description: str) -> str:
    """Why a process that this run has started may not know its parameters; empty if it does."""
    why = ""
    if _Run(*json.loads(description)).values is None:
        why = _TOO_LARGE
    elif description in _accompanied:
        why = "other runs went on at the same time"
    return why and (
        "perhaps because a process that the node has started cannot know the parameters of the "
        f"run ({why}); its stderr says so then. {_RIGHT.capitalize()}"
    )


def _unknown(module: str, why: str) -> CopyError:
    return CopyError(
        f"module '{module}' was imported in a process that a run has started, and its parameters "
        f"are not known there: {why}; {_RIGHT}"
    )
