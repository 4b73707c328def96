"""What a command prints or writes: tables for people, JSON for programs, files for data."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import click
import msgspec

from fp_async.codec_values import Record
from fp_async.errors import FileAccessError, UsageError, describe

_SHOWN_ROWS = 10
_PIPE_WIDTH = 10_000
_WHOLE = ("id", "added", "took", "next", "last")


def echo_json(value: Any) -> None:
    """Pretty JSON on stdout."""
    text = msgspec.json.format(_json(value), indent=2).decode()
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # escaped, so that no character is lost
        text = json.dumps(json.loads(text), indent=2)
    click.echo(text)


def echo_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same keys, as a table; ids, which are copied, and times are never cut."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0]:
        table.add_column(column, overflow="fold", no_wrap=column in _WHOLE)
    for row in rows:
        table.add_row(*(", ".join(v) if isinstance(v, list) else str(v) for v in row.values()))
    console().print(table)


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


def check_count(output: str, final_vars: Sequence[str]) -> None:
    """Refuse to write several values into a table, before anything runs."""
    if Path(output).suffix in (".csv", ".parquet") and len(final_vars) > 1:
        names = ", ".join(final_vars)
        raise UsageError(f"--output {output}: a table holds one value; choose one of: {names}")


def _echo_values(result: Any) -> None:
    width = max((len(name) for name in result), default=0)
    for name, value in result.items():
        try:
            text = _text(value)
            text.encode()  # a lone surrogate cannot be printed
        except Exception as error:
            raise UsageError(f"cannot print '{name}': {describe(error)}") from error
        gap = "\n" if "\n" in text else " " * (width - len(name) + 2)
        click.echo(f"{click.style(name, bold=True)}{gap}{text}")


def _text(value: Any) -> str:
    """A value as a person wants to see it; long ones are cut, and say so."""
    if isinstance(value, Record):  # before its fields can look like methods
        fields = ", ".join(f"{name}={item!r}" for name, item in value._asdict().items())
        return f"{value._kind.rpartition('.')[2]}({fields})"
    if hasattr(value, "head") and hasattr(value, "shape"):
        more = "" if len(value) <= _SHOWN_ROWS else f"\n({len(value)} rows)"
        return f"{value.head(_SHOWN_ROWS)}{more}"
    if _is_records(value):
        shown = "\n".join(str(row) for row in value[:_SHOWN_ROWS])
        return shown + ("" if len(value) <= _SHOWN_ROWS else f"\n({len(value)} rows)")
    text = str(value)
    return text if len(text) <= 2000 else f"{text[:2000]}... ({len(text)} characters)"


def _is_records(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(row, Mapping) for row in value[:_SHOWN_ROWS])
    )


def _json(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value, enc_hook=_plain)
    except (TypeError, ValueError, OverflowError, NotImplementedError, RecursionError) as error:
        raise UsageError(f"--output json: {error}; choose --final-vars or a FILE.csv") from error


def plain(value: Any) -> Any:
    """What JSON can hold of a value; its text where that is nothing."""
    try:
        return msgspec.json.decode(_json(value))
    except (UsageError, msgspec.DecodeError):
        return repr(value)


def _plain(value: Any) -> Any:
    """What msgspec cannot write: data frames as records, arrays and their scalars, paths."""
    if isinstance(value, Record):
        return value._asdict()
    if hasattr(value, "to_dict") and hasattr(value, "index"):
        return _with_labels(value)
    if type(value).__name__ in ("NaTType", "NAType"):  # pandas' missing values
        return None
    if hasattr(value, "tobytes") and getattr(value, "dtype", None) is not None:
        return _numpy(value)
    # polars' frames, pyarrow, pandas' timestamps, series of all kinds
    for method in ("to_dicts", "to_pylist", "isoformat", "to_list", "tolist"):
        if hasattr(value, method):
            return getattr(value, method)()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__} has no JSON form")


def _with_labels(value: Any) -> Any:
    """Pandas: a frame as records, a series as values; an index that says something goes along.

    A series with one is an object from label to value, or records where labels repeat.
    """
    frame = hasattr(value, "columns")
    if _has_plain_index(value):
        return value.to_dict(orient="records") if frame else value.to_list()
    if frame:
        return value.reset_index().to_dict(orient="records")
    if value.index.nlevels == 1 and len({str(label) for label in value.index}) == len(value):
        return value.to_dict()
    name = "value" if value.name is None else value.name
    return value.reset_index(name=name).to_dict(orient="records")


def _numpy(value: Any) -> Any:
    """Arrays and their scalars; a time by itself would give a count of nanoseconds."""
    if value.dtype.kind not in ("m", "M"):
        return value.tolist()
    if value.ndim:
        return list(value)
    if str(value) == "NaT":
        return None
    return str(value) if value.dtype.kind == "M" else value.astype("timedelta64[us]").item()


def _write(result: Any, path: Path) -> None:
    """Write beside the file and replace it in one step: what breaks off leaves nothing."""
    target = _target(path)
    part = target.with_name(f".{target.name}.part")
    try:
        _WRITERS[path.suffix](result, part)
        part.replace(target)
    except OSError as error:
        raise FileAccessError(f"cannot write {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"--output {path}: {error}") from error
    finally:
        with suppress(OSError):  # a folder that is gone has been reported by the write
            part.unlink(missing_ok=True)
    click.echo(f"wrote {path}", err=True)


def _write_json(result: Any, part: Path) -> None:
    part.write_bytes(msgspec.json.format(_json(result), indent=2) + b"\n")


def _write_csv(result: Any, part: Path) -> None:
    value = _only(result)
    if hasattr(value, "to_csv"):  # pandas; its default index says nothing
        value.to_csv(part, index=not _has_plain_index(value))
    elif hasattr(value, "write_csv"):  # polars
        value.write_csv(part)
    elif _is_records(value):
        with part.open("w", newline="", encoding="utf-8") as file:
            columns = dict.fromkeys(name for row in value for name in row)
            writer = csv.DictWriter(file, fieldnames=list(columns))
            writer.writeheader()
            writer.writerows(value)
    else:
        raise _not_tabular(value)


def _write_parquet(result: Any, part: Path) -> None:
    value = _only(result)
    if hasattr(value, "to_frame") and not hasattr(value, "columns"):
        value = value.to_frame()  # a series
    try:
        if hasattr(value, "write_parquet"):
            value.write_parquet(part)
        elif hasattr(value, "to_parquet"):
            value.to_parquet(part)
        else:
            raise _not_tabular(value)
    except ImportError as error:
        raise UsageError("--output: parquet needs pyarrow: pip install pyarrow") from error


def _has_plain_index(frame: Any) -> bool:
    index = frame.index
    return type(index).__name__ == "RangeIndex" and index.name is None


def _only(result: Any) -> Any:
    if not isinstance(result, Mapping):
        return result
    if len(result) != 1:
        raise ValueError(
            f"a table holds one value; choose one --final-vars of: {', '.join(result)}"
        )
    return next(iter(result.values()))


def _not_tabular(value: Any) -> ValueError:
    return ValueError(f"a value of type {type(value).__name__} is no table; use json")


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
