"""Errors that nobody meant to be raised: a message that says so, and a traceback to report."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
import traceback
from importlib import metadata

from fp_async import __version__
from fp_async.addresses import hidden
from fp_async.errors import describe

EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
VARIABLE = "FLOWERPOWER_DEBUG"


def message(error: BaseException) -> str:
    """What to print for an error that no part of FlowerPower has foreseen.

    The traceback goes to a file; into the message with `--debug` or FLOWERPOWER_DEBUG.
    """
    text = _report(error)
    start = f"a bug of FlowerPower: {describe(error)}"
    if os.environ.get(VARIABLE):
        return f"{start}\n{text}please report it {_place()}"
    try:
        file, path = tempfile.mkstemp(prefix="flowerpower-bug-", suffix=".txt")
        with os.fdopen(file, "w", encoding="utf-8", errors="replace") as report:
            report.write(text)
    except OSError:  # no room for a file
        return f"{start}\n{text}please report it {_place()}"
    return f"{start}\nplease report it {_place()}, with the traceback in {path}"


def _report(error: BaseException) -> str:
    """What says where it happened; logins in addresses are left out."""
    command = " ".join(sys.argv[1:2])
    head = f"fp-async {__version__}, Python {platform.python_version()}, {platform.platform()}"
    lines = "".join(traceback.format_exception(error))
    return hidden(f"{head}\ncommand: {command}\n\n{lines}")


def _place() -> str:
    """Where the package says that its issues are."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for entry in metadata.metadata("fp-async").get_all("Project-URL") or ():
            name, _, url = entry.partition(",")
            if name.strip().lower() in ("issues", "bug tracker", "repository"):
                return f"at {url.strip()}"
    return "as an issue, where fp-async was installed from"
