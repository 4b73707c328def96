"""The one way of the commands to stdout and stderr.

Whatever is printed is escaped, but for the styles that are made here: they bear a number that is
drawn anew in each process, so that no text from elsewhere can contain one.
"""

from __future__ import annotations

import os
import re
from typing import Any

import click

from fp_async.escapes import escaped

_OURS = str(int.from_bytes(os.urandom(6), "big"))
_STYLE = re.compile(rf"\x1b\[([\d;]+);{_OURS}m")


def style(text: object, **how: Any) -> str:
    """A text in a color (`fg`), `bold` or `dim`, for `echo`."""
    begin, end = click.style("\0", **how).split("\0")
    return f"{_marked(begin)}{text}{_marked(end)}"


def _marked(code: str) -> str:
    return code.replace("m", f";{_OURS}m")


def echo(message: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text. Control characters in it, but for line breaks and tabs, are shown escaped."""
    click.echo(safe(str(message)), err=err, nl=nl)


def safe(text: str) -> str:
    """Return what may be written to a terminal: the text escaped, with its styles."""
    parts = _STYLE.split(text)  # a text, the code of a style, a text, ...
    return "".join(f"\x1b[{x}m" if n % 2 else escaped(x) for n, x in enumerate(parts))


def plain(text: str) -> str:
    """Return the text escaped, without its styles."""
    return escaped(_STYLE.sub("", text))


def cell(value: object, **how: Any) -> Any:
    """A text for Rich, which reads no markup in it either."""
    from rich.text import Text

    return Text(escaped(str(value)), **how)
