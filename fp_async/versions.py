"""Versions of pipelines: whether two machines have the same code for one.

A version is a hash of the pipeline's file and of the siblings that it imports, however deep. It
is read from the text: nothing is imported for it.
"""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path

_IMPORT = re.compile(
    rb"^[ \t]*(?:from[ \t]+([.\w]+)[ \t]+import[ \t]+\(?([\w, \t]*)|import[ \t]+([\w., \t]+))",
    re.MULTILINE,
)
_SECONDS = 1.0
_recent: dict[tuple[Path, str], tuple[float, str]] = {}
_stamped: dict[Path, tuple[tuple[int, int], bytes]] = {}


def names(root: Path) -> list[str]:
    """The pipelines of the project at `root`, sorted."""
    folder = root / "pipelines"
    found = (path.stem for path in folder.glob("*.py") if not path.name.startswith("_"))
    return sorted(found)


def version(root: Path, pipeline: str) -> str | None:
    """16 hexadecimal digits; None where there is no such pipeline."""
    folder = root / "pipelines"
    if not (folder / f"{pipeline}.py").is_file():
        return None
    digest = hashlib.blake2b(digest_size=8)
    for path in _family(folder, pipeline):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + _text(path))
    return digest.hexdigest()


def recent(root: Path, pipeline: str) -> str | None:
    """As `version`, of a second ago at most: for each of many jobs."""
    now, key = time.monotonic(), (root, pipeline)
    until, text = _recent.get(key, (0.0, ""))
    if now < until:
        return text
    found = version(root, pipeline)
    if found is not None:  # a pipeline that comes is there at once
        _recent[key] = now + _SECONDS, found
    return found


def versions(root: Path) -> dict[str, str]:
    """The version of every pipeline by name."""
    found = {name: version(root, name) for name in names(root)}
    return {name: text for name, text in found.items() if text is not None}


def _family(folder: Path, pipeline: str) -> list[Path]:
    pending, found = [pipeline], dict[str, Path]()
    while pending:
        name = pending.pop()
        if name in found or (path := _file(folder, name)) is None:
            continue
        found[name] = path
        pending += _imported(_text(path))
    return sorted(found.values())


def _file(folder: Path, name: str) -> Path | None:
    for path in (folder / f"{name}.py", folder / name / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imported(text: bytes) -> set[str]:
    """The names that may be siblings: `import a, b`, `from a import x`, `from . import a`."""
    found: set[str] = set()
    for module, names, plain in _IMPORT.findall(text):
        own = module.lstrip(b".").removeprefix(b"pipelines").lstrip(b".")
        parts = plain.split(b",") if plain else [own] if own else names.split(b",")
        for part in parts:
            name = part.split(b" as ")[0].strip().removeprefix(b"pipelines.").partition(b".")[0]
            found.add(name.decode())
    return {name for name in found if name.isidentifier()}


def _text(path: Path) -> bytes:
    """The file's bytes, read again only when it was changed."""
    stat = path.stat()
    stamp = (stat.st_mtime_ns, stat.st_size)
    known = _stamped.get(path)
    if known is None or known[0] != stamp:
        known = _stamped[path] = stamp, path.read_bytes()
    return known[1]
