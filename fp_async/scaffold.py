"""Creates projects and pipelines on disk, and takes pipelines away again.

Configuration files are edited with a round-trip parser: comments, order and everything else in
them stays. Files are replaced in one step, so that a crash leaves the old or the new one. This
module is the only importer of ruamel.yaml.
"""

from __future__ import annotations

import io
import keyword
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fp_async.config import FILES
from fp_async.errors import (
    AlreadyExistsError,
    ConfigError,
    FileAccessError,
    UnknownNameError,
    UsageError,
)


def create_project(root: Path, *, overwrite: bool = False) -> list[Path]:
    """Write `conf/*.yml` and `pipelines/` below `root`; returns the files written.

    Files that exist are left alone, or replaced with `overwrite`. Raises AlreadyExistsError
    where there is a project already, FileAccessError where the folder cannot be written.
    """
    conf = root / "conf"
    if (conf / "pipelines.yml").exists() and not overwrite:
        raise AlreadyExistsError(f"{root} is a project already; --overwrite resets its conf/*.yml")
    written = []
    with _file_errors(root):
        conf.mkdir(parents=True, exist_ok=True)
        (root / "pipelines").mkdir(exist_ok=True)
        for name in FILES:
            if overwrite or not (conf / name).exists():
                _replace(conf / name, _template(name))
                written.append(conf / name)
    return written


def create_pipeline(root: Path, name: str, *, overwrite: bool = False) -> Path:
    """Write `pipelines/<name>.py` and merge its entries into `conf/pipelines.yml`.

    Entries that exist are kept, and a file that is still as it was written is no obstacle, so
    that a second call does no harm; `overwrite` replaces file and entries. Raises
    AlreadyExistsError, UsageError for a name that is no Python identifier, FileAccessError.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UsageError(f"'{name}' cannot be a pipeline's name: use letters, digits and _")
    path = root / "pipelines" / f"{name}.py"
    source = _template("pipeline.py.txt").format(name=name)
    conf = root / "conf" / "pipelines.yml"
    with _file_errors(root):
        if path.exists() and not overwrite and path.read_text(encoding="utf-8") != source:
            raise AlreadyExistsError(f"pipeline '{name}' exists already; --overwrite replaces it")
        path.parent.mkdir(exist_ok=True)
        conf.parent.mkdir(exist_ok=True)
        text = conf.read_text(encoding="utf-8") if conf.exists() else _template("pipelines.yml")
        merged = _edit(text, lambda data: _add_entries(data, name, overwrite))
        _replace(path, source)
        _replace(conf, merged)
    return path


def delete_pipeline(root: Path, name: str) -> list[Path]:
    """Remove the pipeline's file and its entries in `conf/*.yml`; returns what changed.

    Raises UnknownNameError where there is neither.
    """
    changed = []
    with _file_errors(root):
        for file, sections in (
            ("pipelines.yml", ("params", "run")),
            ("tracker.yml", ("pipeline",)),
        ):
            path = root / "conf" / file
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            if text and any(name in _section(text, section) for section in sections):
                _replace(path, _edit(text, lambda data, s=sections: _drop_entries(data, s, name)))
                changed.append(path)
        module = root / "pipelines" / f"{name}.py"
        if module.exists():
            module.unlink()
            changed.append(module)
    if not changed:
        raise UnknownNameError("pipeline", name, pipeline_names(root))
    return changed


def pipeline_names(root: Path) -> list[str]:
    """Modules and packages in `pipelines/`, but for those whose name begins with `_`."""
    folder = root / "pipelines"
    names = {path.stem for path in folder.glob("*.py")}
    names |= {path.parent.name for path in folder.glob("*/__init__.py")}
    return sorted(name for name in names if not name.startswith("_"))


def _template(name: str) -> str:
    return (files("fp_async") / "templates" / name).read_text(encoding="utf-8")


def _add_entries(data: Any, name: str, overwrite: bool) -> None:
    entries = _load(_template("entries.yml").format(name=name))
    for section in ("params", "run"):
        if data.get(section) is None:
            data[section] = {}
        if overwrite or data[section].get(name) is None:
            data[section][name] = entries[section][name]


def _drop_entries(data: Any, sections: tuple[str, ...], name: str) -> None:
    for section in sections:
        if (data.get(section) or {}).pop(name, None) is not None and not data[section]:
            data[section] = None


def _section(text: str, section: str) -> Any:
    return (_load(text) or {}).get(section) or {}


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 4096  # never fold the user's long lines
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(
        type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "")
    )
    return yaml


def _load(text: str) -> Any:
    from ruamel.yaml.error import YAMLError

    try:
        return _yaml().load(text)
    except YAMLError as error:
        raise ConfigError(f"not valid YAML, left as it is: {error}") from error


def _edit(text: str, change: Any) -> str:
    data = _load(text)
    if data is None:
        data = _load("{}")
        data.fa.set_block_style()
    _settle_comments(data, 0)
    end = _detach(data, list(data)[-1]) if data else []
    change(data)
    out = io.StringIO()
    _yaml().dump(data, out)
    return out.getvalue() + "".join(f"{line}\n" for line in end)


def _settle_comments(mapping: Any, column: int) -> None:
    """Give comments that stand before a key to that key.

    ruamel hangs them on the last value before, where they would move or vanish with it.
    """
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.error import CommentMark
    from ruamel.yaml.tokens import CommentToken

    keys = list(mapping)
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        value = mapping[key]
        if isinstance(value, CommentedMap) and not value.fa.flow_style():
            _settle_comments(value, column + 2)
        lines = _detach(mapping, key) if following is not None else []
        if lines:
            tokens = [CommentToken(f"{line}\n", CommentMark(column), None) for line in lines]
            mapping.ca.items.setdefault(following, [None, None, None, None])[1] = tokens


def _detach(container: Any, key: Any) -> list[str]:
    """Take the comment lines below the last value under `key`; its own line's comment stays."""
    value = container[key]
    if hasattr(value, "ca") and value and not value.fa.flow_style():
        return _detach(value, list(value)[-1] if hasattr(value, "keys") else len(value) - 1)
    place = 2 if hasattr(container, "keys") else 0
    token = (container.ca.items.get(key) or [None] * 4)[place]
    if token is None or "\n" not in token.value:
        return []
    own, _, below = token.value.partition("\n")
    token.value = f"{own}\n"
    if not own.strip():
        container.ca.items[key][place] = None
    return [line.strip() for line in below.rstrip("\n").split("\n")] if below.strip() else []


def _replace(path: Path, text: str) -> None:
    """Write a file in one step, keeping the permissions of the one it replaces."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _file_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or root
        raise FileAccessError(f"cannot write {where}: {error.strerror or error}") from error
