r"""Text that came from elsewhere, without any character that a terminal would obey.

A reason, an error, a tag or a payload may hold sequences that clear the screen, set the title or
write over what stands above. They are shown as Python and JSON write them: \x1b, \u202e.
"""

from __future__ import annotations

import re

# Control characters, and those that turn the direction of the text around them.
_OBEYED = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_ALL = re.compile(f"[{_OBEYED}]")
_BUT_LAYOUT = re.compile(f"(?![\n\t])[{_OBEYED}]")


def escaped(text: str) -> str:
    """Return a text whose line breaks and tabs are the only control characters in it."""
    return _BUT_LAYOUT.sub(_written, text)


def in_line(text: str) -> str:
    """Return a text in one line: line breaks and tabs are escaped, too."""
    return _ALL.sub(_written, text)


def indented(text: str) -> str:
    """Return a text of a log, of which no line but the first can be taken for another record."""
    first, *more = escaped(text).split("\n")
    return "\n".join([first, *(line if line[:1] in ("", " ") else f"    {line}" for line in more)])


def _written(found: re.Match[str]) -> str:
    code = ord(found[0])
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return named.get(found[0]) or (f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}")
