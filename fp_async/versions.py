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
    rb"^[ \t]*(?:from[ \t]+([.\w]+)[ \t]+import[ \t]+(\([^)]*\)|[\w, \t]*)"
    rb"|import[ \t]+([\w., \t]+))",
    re.MULTILINE,
)
_COMMENT = re.compile(rb"#.*")
_SECONDS = 1.0
_recent: dict[tuple[Path, str], tuple[float, str]] = {}
_stamped: dict[Path, tuple[tuple[int, int], bytes]] = {}


def names(root: Path) -> list[str]:
    """The pipelines of the project at `root`, sorted."""
    folder = root / "pipelines"
    found = (path.stem for path in folder.glob("*.py") if not path.name.startswith("_"))
    return sorted(found)


def version(root: Path, pipeline: str) -> str | None:
    """16 hexadecimal digits; None where there is no such pipeline, or it cannot be read."""
    folder = root / "pipelines"
    if not (folder / f"{pipeline}.py").is_file():
        return None
    digest = hashlib.blake2b(digest_size=8)
    try:
        for path in family(folder, pipeline):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + _text(path))
    except OSError:  # it is being replaced, say
        return None
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


def family(folder: Path, pipeline: str) -> list[Path]:
    """Return the files of a pipeline in its folder: its own and those of siblings it imports."""
    pending, found, seen = [pipeline], set[Path](), set[str]()
    while pending:
        if (name := pending.pop()) in seen:
            continue
        seen.add(name)
        for path in _files(folder, name):
            found.add(path)
            pending += _imported(_text(path))
    return sorted(found)


def _files(folder: Path, name: str) -> list[Path]:
    """The file of a sibling; of one that is a package all files, whichever of them is imported."""
    if (file := folder / f"{name}.py").is_file():
        return [file]
    package = folder / name
    return sorted(package.rglob("*.py")) if (package / "__init__.py").is_file() else []


def _imported(text: bytes) -> set[str]:
    """The names that may be siblings: `import a, b`, `from a import x`, `from . import a`."""
    found: set[bytes] = set()
    for module, names, plain in _IMPORT.findall(text):
        own = _below_pipelines(module.lstrip(b"."))
        listed = plain or own or _COMMENT.sub(b"", names).strip(b"()")
        for part in listed.split(b","):
            found.add(_below_pipelines(part.split(b" as ")[0].strip()).partition(b".")[0])
    names = {name.decode(errors="replace") for name in found}
    return {name for name in names if name.isidentifier()}


def _below_pipelines(module: bytes) -> bytes:
    top, _, rest = module.partition(b".")
    return rest if top == b"pipelines" else module


def _text(path: Path) -> bytes:
    """The file's bytes, read again only when it was changed."""
    stat = path.stat()
    stamp = (stat.st_mtime_ns, stat.st_size)
    known = _stamped.get(path)
    if known is None or known[0] != stamp:
        known = _stamped[path] = stamp, path.read_bytes()
    return known[1]
