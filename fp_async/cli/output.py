"""What a command prints or writes: tables for people, JSON for programs, files for data."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import msgspec

from fp_async.cli import tables, text_form
from fp_async.cli.json_form import Form, encoded
from fp_async.cli.result_types import never_json, never_table
from fp_async.cli.saying import echo, style
from fp_async.errors import FileAccessError, UnknownNameError, UsageError, describe
from fp_async.values.annotations import type_name

_SHOWN_ROWS = 10
_PIPE_WIDTH = 10_000


def echo_json(value: Any) -> None:
    """Pretty JSON on stdout."""
    text = msgspec.json.format(_noted(value), indent=2).decode()
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # escaped, so that no character is lost
        text = json.dumps(json.loads(text), indent=2)
    echo(text)


def console() -> Any:
    """Rich's view of stdout; lines in a pipe are as long as they want to be."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, width=_PIPE_WIDTH)


def show_result(result: Any, output: str) -> None:
    """Print a run's result as `output`: table, json, or into a FILE.{csv,parquet,json}."""
    if output == "table":
        _echo_values(result if isinstance(result, Mapping) else {"": result})
    elif output == "json":
        echo_json(result)
    else:
        _write(result, Path(output))


def check_output(output: str) -> None:
    """Refuse an unknown or unwritable output before anything runs."""
    if output in ("table", "json"):
        return
    path = Path(output)
    if path.suffix not in _WRITERS:
        valid = ", ".join(f"FILE{ending}" for ending in _WRITERS)
        raise UsageError(f"--output {output}: use table, json, {valid}")
    try:
        problem = _obstacle(_target(path))
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise FileAccessError(f"--output: cannot write {output}: {problem}")


def _obstacle(target: Path) -> str:
    """Why a file cannot be put there; empty where it can."""
    if not target.parent.is_dir():
        return f"there is no folder {target.parent}"
    if not os.access(target.parent, os.W_OK | os.X_OK):
        return f"the folder {target.parent} cannot be written"
    if target.exists() and not target.is_file():
        return "Is a directory" if target.is_dir() else f"{target} is no regular file"
    return ""


def _target(path: Path) -> Path:
    """The file that is replaced: a symbolic link to it stays one."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_results(output: str, kinds: Mapping[str, Any]) -> None:
    """Refuse, before anything runs, to write what cannot be written: by the types of the values."""
    table = Path(output).suffix in (".csv", ".parquet")
    if table and len(kinds) > 1:
        names = ", ".join(kinds)
        raise UsageError(
            f"--output {output}: a table holds one value; choose one with --final-vars: {names}"
        )
    for name, kind in kinds.items():
        if table and never_table(kind):
            what = "is no table; use json"
        elif output.endswith("json") and never_json(kind):
            what = "has no JSON form"
        else:
            continue
        raise UsageError(f"--output {output}: '{name}' is {type_name(kind)}, which {what}")


def chosen(result: Any, final_vars: Sequence[str]) -> Any:
    """Those values of a result that `--final-vars` names. Raises UnknownNameError, UsageError."""
    names = [name.strip() for text in final_vars for name in text.split(",") if name.strip()]
    if not names:
        return result
    if not isinstance(result, Mapping):
        raise UsageError(f"--final-vars: the result is one value, of type {type(result).__name__}")
    for name in names:
        if name not in result:
            raise UnknownNameError("final variable", name, result, where=" of the result")
    return {name: result[name] for name in names}


def _echo_values(result: Any) -> None:
    width = max((len(name) for name in result), default=0)
    for name, value in result.items():
        try:
            text = _text(value)
            text.encode()  # a lone surrogate cannot be printed
        except Exception as error:
            raise UsageError(f"cannot print '{name}': {describe(error)}") from error
        gap = "\n" if "\n" in text else " " * (width - len(name) + 2)
        echo(f"{style(name, bold=True)}{gap}{text}")


def _text(value: Any) -> str:
    """A value as a person wants to see it; long ones are cut, and say so."""
    value = text_form.stood_in(value)  # before the fields of a record can look like methods
    if hasattr(value, "head") and hasattr(value, "shape"):
        more = "" if len(value) <= _SHOWN_ROWS else f"\n({len(value)} rows)"
        return f"{_with_stand_ins(value.head(_SHOWN_ROWS))}{more}"
    if _is_records(value):
        shown = "\n".join(str(row) for row in value[:_SHOWN_ROWS])
        return shown + ("" if len(value) <= _SHOWN_ROWS else f"\n({len(value)} rows)")
    text = str(value)
    return text if len(text) <= 2000 else f"{text[:2000]}... ({len(text)} characters)"


def _with_stand_ins(frame: Any) -> Any:
    return tables.with_cells(frame, text_form.stood_in) if hasattr(frame, "iloc") else frame


def _is_records(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(row, Mapping) for row in value[:_SHOWN_ROWS])
    )


def plain(value: Any) -> Any:
    """What JSON can hold of a value; its text where that is nothing."""
    try:
        return msgspec.json.decode(encoded(value))
    except (UsageError, msgspec.DecodeError):
        return repr(value)


def _noted(value: Any) -> bytes:
    """A value as JSON; what has to be said of it is said on stderr."""
    form = Form()
    text = encoded(value, form)
    _say(form.notes)
    return text


def _say(notes: Iterable[str]) -> None:
    for note in notes:
        echo(f"note: {note}", err=True)


def _write(result: Any, path: Path) -> None:
    """Write beside the file and replace it in one step: what breaks off leaves nothing."""
    target = _target(path)
    part = target.with_name(f".{target.name}.part")
    try:
        _WRITERS[path.suffix](result, part)
        part.replace(target)
    except OSError as error:
        raise FileAccessError(f"cannot write {path}: {error.strerror or error}") from error
    except UsageError:
        raise
    except Exception as error:  # of any library that writes such a file
        text = error if isinstance(error, ValueError) else describe(error)
        raise UsageError(f"--output {path}: {text}") from error
    finally:
        with suppress(OSError):  # a folder that is gone has been reported by the write
            part.unlink(missing_ok=True)
    echo(f"wrote {path}", err=True)


def _write_json(result: Any, part: Path) -> None:
    part.write_bytes(msgspec.json.format(_noted(result), indent=2) + b"\n")


def _write_csv(result: Any, part: Path) -> None:
    notes: dict[str, None] = {}
    tables.write_csv(_only(result), part, notes)
    _say(notes)


def _write_parquet(result: Any, part: Path) -> None:
    notes: dict[str, None] = {}
    try:
        tables.write_parquet(_only(result), part, notes)
    except ImportError as error:
        raise UsageError("--output: parquet needs pyarrow: pip install pyarrow") from error
    _say(notes)


def _only(result: Any) -> Any:
    if not isinstance(result, Mapping):
        return result
    if len(result) != 1:
        raise ValueError(
            f"a table holds one value; choose one with --final-vars: {', '.join(result)}"
        )
    return next(iter(result.values()))


_WRITERS = {".csv": _write_csv, ".parquet": _write_parquet, ".json": _write_json}


@contextmanager
def prints_aside() -> Iterator[None]:
    """Have what is printed meanwhile on stderr, by child processes too: stdout is for a result."""
    if sys.stdout is None:  # closed by whoever started us
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def streams_kept() -> Iterator[None]:
    """Have stdout and stderr afterwards as they were, whatever a node has done to them.

    A node that closes one only flushes it: what is logged and told meanwhile needs them.
    """
    streams = {n: s for n in ("stdout", "stderr") if (s := getattr(sys, n)) is not None}
    kept = {stream.fileno(): os.dup(stream.fileno()) for stream in streams.values()}
    for stream in streams.values():
        stream.close = stream.flush
    try:
        yield
    finally:
        for name, stream in streams.items():
            del stream.close
            setattr(sys, name, stream)
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
