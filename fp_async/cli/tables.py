"""Values as tables in files: CSV and Parquet. Cells that a format lacks are written as text."""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import Any

from fp_async.cli.json_form import (
    Form,
    columns_of,
    encoded,
    fields_of,
    has_plain_index,
    is_lazy,
    label,
    value_of_member,
)
from fp_async.cli.text_form import in_order
from fp_async.errors import UsageError

Notes = dict[str, None]
_NESTED = (list, tuple, Mapping, AbstractSet)


def write_csv(value: Any, part: Path, notes: Notes) -> None:
    """Write a table as CSV. Raises ValueError for what is none."""
    value = _collected(value)
    if hasattr(value, "to_csv"):  # pandas; its default index says nothing
        plain = with_cells(value, partial(_csv_cell, notes))
        plain.to_csv(part, index=not has_plain_index(value))
        return
    if _is_polars(value):
        try:
            value.write_csv(part)
        except Exception:  # a duration, a list, a struct: polars writes none of them
            notes["cells that CSV cannot hold are written as JSON texts"] = None
        else:
            return
    _write_rows(*_table(value), part)


def write_parquet(value: Any, part: Path, notes: Notes) -> None:
    """Write a table as Parquet. Raises ValueError for what is none."""
    value = _collected(value)
    if hasattr(value, "to_frame") and not hasattr(value, "columns"):
        value = value.to_frame()  # a series
    if hasattr(value, "write_parquet"):
        value.write_parquet(part)
    elif hasattr(value, "to_parquet"):
        _refuse_twins(value.columns)
        _write_pandas(with_cells(value, bare), part, notes)
    else:
        _write_arrow(value, part, notes)


def _collected(value: Any) -> Any:
    value = value.collect() if is_lazy(value) else value
    series = hasattr(value, "to_frame") and not hasattr(value, "columns")
    if not series or hasattr(value, "to_csv"):
        return value
    return value.to_frame(index=False) if hasattr(value, "nlevels") else value.to_frame()


def with_cells(frame: Any, cell: Callable[[Any], Any]) -> Any:
    """A frame or series of pandas with what `cell` makes of its objects and labels; what else is
    written as one, as it is.
    """
    pandas = sys.modules.get("pandas")
    if pandas is None or not isinstance(frame, pandas.DataFrame | pandas.Series):
        return frame
    if frame.ndim > 1:
        changed = frame.copy(deep=False)
        for at in range(frame.shape[1]):
            if (made := _with_cells(frame.iloc[:, at], cell)) is not None:
                changed.isetitem(at, made)
        if _has_objects(changed.columns):
            changed.columns = [*map(cell, changed.columns)]
    else:
        made = _with_cells(frame, cell)
        changed = frame.copy(deep=False) if made is None else made
    if _has_objects(frame.index):
        changed.index = type(frame.index)([*map(cell, frame.index)], name=frame.index.name)
    return changed


def _has_objects(labels: Any) -> bool:
    return labels.nlevels == 1 and labels.dtype == object and type(labels).__name__ == "Index"


def _with_cells(column: Any, cell: Callable[[Any], Any]) -> Any:
    """The column with its cells made anew; None where they are as they were."""
    categories = getattr(column.dtype, "categories", None)
    if (column if categories is None else categories).dtype != object:
        return None
    values = column.to_list()
    made = [cell(value) for value in values]
    if all(new is old for new, old in zip(made, values, strict=True)):
        return None
    return type(column)(made, index=column.index, name=column.name, dtype=object)


def bare(value: Any) -> Any:
    """A value with the values of Enum members, and mappings for records, at every depth."""
    if (member := value_of_member(value)) is not value:
        return bare(member)
    if (fields := fields_of(value)) is not None:
        return {name: bare(item) for name, item in fields.items()}
    kind = type(value)
    if kind is dict:
        return {bare(key): bare(item) for key, item in value.items()}
    if kind in (set, frozenset):
        return in_order(map(bare, value))
    return [*map(bare, value)] if kind in (list, tuple) else value


def _csv_cell(notes: Notes, value: Any) -> Any:
    """A cell of pandas, which would write what Python's repr makes of a nested one."""
    value = value_of_member(value)
    if not isinstance(value, _NESTED) and fields_of(value) is None:
        return value
    notes["cells that CSV cannot hold are written as JSON texts"] = None
    return _cell(value)


def _is_polars(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "polars" and hasattr(value, "write_csv")


def _refuse_twins(names: Iterable[Any]) -> None:
    seen: dict[str, Any] = {}
    for name in names:
        text = label(name)
        if text in seen:
            both = repr(name) if seen[text] == name else f"{seen[text]!r} and {name!r}"
            raise ValueError(f"Parquet has one column of a name, and here are two: {both}; use csv")
        seen[text] = name


def _write_pandas(frame: Any, part: Path, notes: Notes) -> None:
    """A frame of pandas; columns and index levels that Parquet lacks become texts."""
    try:
        frame.to_parquet(part)
    except ImportError:
        raise
    except Exception:
        readable = _as_texts(frame, notes)
        readable.to_parquet(part)


def _as_texts(frame: Any, notes: Notes) -> Any:
    arrow = importlib.import_module("pyarrow")
    changed = frame.copy(deep=False)
    if not all(isinstance(name, str) for name in changed.columns):
        changed.columns = [label(name) for name in changed.columns]
        notes["names of columns are written as texts"] = None
    for at, name in enumerate(changed.columns):
        if not _holds(arrow, changed.iloc[:, at]):
            changed[name] = changed.iloc[:, at].map(_readable).astype(object)
            notes[f"column '{name}' is written as text: Parquet has no such type"] = None
    if not has_plain_index(frame):
        levels = [frame.index.get_level_values(n) for n in range(frame.index.nlevels)]
        if not all(_holds(arrow, level.to_series()) for level in levels):
            changed.index = frame.index.map(_readable)
            notes["the index is written as text: Parquet has no such type"] = None
    return changed


def _holds(arrow: Any, column: Any) -> bool:
    try:
        table = arrow.Table.from_pandas(column.reset_index(drop=True).to_frame("column"))
        importlib.import_module("pyarrow.parquet").write_table(table, arrow.BufferOutputStream())
    except Exception:
        return False
    return True


def _readable(value: Any) -> str | None:
    missing = value is None or type(value).__name__ in ("NaTType", "NAType", "float")
    return None if missing and str(value) in ("None", "nan", "NaT", "<NA>") else str(_cell(value))


def _write_arrow(value: Any, part: Path, notes: Notes) -> None:
    names, rows = _table(value)
    _refuse_twins(names)
    try:
        arrow, parquet = map(importlib.import_module, ("pyarrow", "pyarrow.parquet"))
    except ImportError as error:
        raise UsageError("--output: parquet needs pyarrow: pip install pyarrow") from error
    if type(value).__module__.partition(".")[0] == "pyarrow":
        table = value if isinstance(value, arrow.Table) else arrow.Table.from_batches([value])
    else:
        columns = list(zip(*rows, strict=True)) or [()] * len(names)
        cells = {name: [*map(bare, of)] for name, of in zip(names, columns, strict=True)}
        table = arrow.table({name: _array(arrow, name, of, notes) for name, of in cells.items()})
    parquet.write_table(table, part)


def _array(arrow: Any, name: str, cells: list[Any], notes: Notes) -> Any:
    """A column of Parquet, of texts where it has no such type."""
    try:
        array = arrow.array(cells)
        importlib.import_module("pyarrow.parquet").write_table(
            arrow.table({name: array.slice(0, 0)}), arrow.BufferOutputStream()
        )
    except Exception:  # of pyarrow's many
        notes[f"column '{name}' is written as text: Parquet has no such type"] = None
        return arrow.array([_readable(cell) for cell in cells])
    return array


# Rows ---------------------------------------------------------------------------------------


def _table(value: Any) -> tuple[list[str], list[Sequence[Any]]]:
    """Names and rows. Raises ValueError for what is no table."""
    if (found := columns_of(value)) is not None:
        names, columns = found
        lists = [
            each.to_pylist() if hasattr(each, "to_pylist") else each.to_list() for each in columns
        ]
        return names, list(zip(*lists, strict=True))
    if getattr(getattr(value, "dtype", None), "names", None):
        return list(value.dtype.names), [tuple(row) for row in value.tolist()]
    records = _records(value)
    if records is None:
        raise ValueError(f"a value of type {type(value).__name__} is no table; use json")
    names = list(dict.fromkeys(name for row in records for name in row))
    texts = [label(name) for name in names]
    if len(set(texts)) < len(texts):
        raise ValueError("two keys of the rows are the same text; use json")
    return texts, [[row.get(name) for name in names] for row in records]


def _records(value: Any) -> list[Mapping[Any, Any]] | None:
    """A list of rows as mappings: dicts, dataclasses, named tuples, models; None for others."""
    if not isinstance(value, list | tuple) or hasattr(value, "_fields"):
        return None
    rows = [_row(each) for each in value]
    return None if any(row is None for row in rows) else [row for row in rows if row is not None]


def _row(value: Any) -> Mapping[Any, Any] | None:
    return value if isinstance(value, Mapping) else fields_of(value)


def _write_rows(names: list[str], rows: Iterable[Sequence[Any]], part: Path) -> None:
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    """A value as it stands in a cell: nested ones as JSON."""
    value = value_of_member(value)
    if value is None or isinstance(value, str | int | float):
        return value
    found = Form().of(value)
    return found if isinstance(found, str) else encoded(found).decode()
