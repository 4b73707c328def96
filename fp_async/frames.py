"""Tracebacks as the user should see them: their own lines, without ours and without Hamilton's."""

from __future__ import annotations

import importlib
import linecache
import os
from pathlib import Path
from types import TracebackType

_OURS = str(Path(__file__).resolve().parent) + os.sep
_IMPORTLIB = str(Path(importlib.__file__).parent) + os.sep
_HAMILTON = f"{os.sep}hamilton{os.sep}"


def trim(error: BaseException) -> BaseException:
    """Drop the leading frames that lie in this package or in Hamilton; returns the error."""
    frame = error.__traceback__
    while frame is not None and _is_machinery(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    return error.with_traceback(frame or error.__traceback__)


def user_line(error: BaseException, folder: Path) -> str:
    """`file:line: source` of the innermost frame below `folder`, else of the first user frame.

    A syntax error has no frame of its own; its position is used instead.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return _format(error.filename, error.lineno or 0, folder)
    places = list(_places(error.__traceback__))
    inside = [place for place in places if place[0].startswith(str(folder) + os.sep)]
    outside = [place for place in places if not _is_machinery(place[0])]
    best = inside[-1:] or outside[:1]
    return _format(*best[0], folder) if best else ""


def _places(traceback: TracebackType | None) -> list[tuple[str, int]]:
    places = []
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        linecache.lazycache(file, traceback.tb_frame.f_globals)  # it may be in memory only
        places.append((file, traceback.tb_lineno))
        traceback = traceback.tb_next
    return places


def _format(file: str, line: int, folder: Path) -> str:
    source = linecache.getline(file, line).strip()
    try:
        shown = Path(file).relative_to(folder.parent)
    except ValueError:
        shown = Path(file)
    return f"{shown}:{line}{': ' + source if source else ''}"


def _is_machinery(file: str) -> bool:
    return file.startswith((_OURS, "<frozen importlib", _IMPORTLIB)) or _HAMILTON in file
