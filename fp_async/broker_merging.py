"""Files of a broker that others write in, too: our lines are renewed, theirs stay. Pure.

In the file of rights, where a line means something by what stands above it, ours are between two
marks, one pair for each site. Elsewhere what has changed from one plan to the next is changed in
the file as it is now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from typing import NamedTuple

_DENY = "{deny, all}."  # what EMQX asks last


class _Right(NamedTuple):
    """A line of rights, and the user that it is for by the lines above; None for everybody."""

    user: str | None
    text: str


def marked(site: str, text: str, comment: str = "#") -> str:
    """Our lines between their marks."""
    first, last = _marks(site, comment)
    return f"{first} (written anew each time; your own lines stand outside)\n{text}{last}\n"


def _marks(site: str, comment: str) -> tuple[str, str]:
    return f"{comment} >>> broker-config, site '{site}'", f"{comment} <<< broker-config '{site}'"


def renewed(kept: str, site: str, ours: str, before: str | None, comment: str = "#") -> str:
    """A file of rights with `ours` in place of what was written there for `before`.

    `before` is None where nothing was. Lines of others stay, also those that stand among ours:
    these come to stand behind them, under the user that they are for.
    """
    head, block, tail = _divided(kept, site, before, comment)
    known = {*_rights(before or "", None), *_rights(ours, None)}
    texts = {right.text for right in known}
    before_block = _last_user(head, None)
    strange = [
        right
        for right in _rights(block, before_block)
        if (right.text not in texts if right.text.startswith(comment) else right not in known)
    ]
    for_all = [right.text for right in strange if _for_all(right, comment)]
    named = [right for right in strange if not _for_all(right, comment)]
    user = _last_user(block, before_block)
    if comment == "#" and user is not None and _begins_with_topic(tail):
        tail = f"user {user}\n{tail}"
    parts = (head, *_with_ends(for_all), marked(site, ours, comment), *_with_ends(_under(named)))
    text = "".join((*parts, tail))
    return text if comment == "#" else _denying_last(text)


def _divided(kept: str, site: str, before: str | None, comment: str) -> tuple[str, str, str]:
    """Split a file into the lines before our block, the block, and the lines behind it.

    An earlier release made no marks: all that it wrote was the whole file.
    """
    lines = kept.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    first, last = _marks(site, comment)
    begin = next((i for i, line in enumerate(lines) if line.startswith(first)), None)
    if begin is None:
        whole = "".join(lines)
        marks = any(line.startswith(f"{comment} >>> broker-config, ") for line in lines)
        return ("", whole, "") if before is not None and not marks else (whole, "", "")
    ends = (i for i in range(begin, len(lines)) if lines[i].startswith(last))
    end = next(ends, len(lines))
    return "".join(lines[:begin]), "".join(lines[begin + 1 : end]), "".join(lines[end + 1 :])


def _rights(text: str, user: str | None) -> Iterator[_Right]:
    """Its lines, but for empty ones and those that only name a user."""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("user "):
            user = line.removeprefix("user ").strip()
        elif line and line != _DENY:
            yield _Right(user if line.startswith("topic ") else None, line)


def _last_user(text: str, user: str | None) -> str | None:
    """Whose the next line would be."""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("user "):
            user = line.removeprefix("user ").strip()
    return user


def _for_all(right: _Right, comment: str) -> bool:
    """Return whether a line is for clients without a name: it has to stand before any user."""
    return comment == "#" and right.user is None and right.text.startswith("topic ")


def _begins_with_topic(text: str) -> bool:
    lines = (line.strip() for line in text.splitlines())
    return next((x for x in lines if x and not x.startswith("#")), "").startswith("topic ")


def _under(rights: Iterable[_Right]) -> Iterator[str]:
    user = None
    for right in rights:
        if right.user is not None and right.user != user:
            user = right.user
            yield f"user {user}"
        yield right.text


def _with_ends(lines: Iterable[str]) -> Iterator[str]:
    return (f"{line}\n" for line in lines)


def _denying_last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() != _DENY]
    return "\n".join((*lines, _DENY, ""))


# Other files ------------------------------------------------------------------------------------


def patched(now: str, before: str, after: str) -> str | None:
    """A file with the change from `before` to `after`, as somebody has changed it.

    None where the place of a change is not to be found in it.
    """
    lines, old, new = (text.splitlines() for text in (now, before, after))
    for kind, begin, end, i, j in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        anchor = old[max(begin - 1, 0) : begin] if begin == end else []
        place = _place(lines, [*anchor, *old[begin:end]])
        if place is None:
            return None
        place += len(anchor)
        lines[place : place + end - begin] = new[i:j]
    return "\n".join((*lines, ""))


def _place(lines: list[str], wanted: list[str]) -> int | None:
    """Where lines stand one after the other; None where they do not, or at several places."""
    if not wanted:
        return 0
    places = range(len(lines) - len(wanted) + 1)
    found = [i for i in places if lines[i : i + len(wanted)] == wanted]
    return found[0] if len(found) == 1 else None


def lacking(now: str, before: str, after: str) -> list[str]:
    """The lines that are new in `after` and that a file does not have."""
    there = {line.strip() for line in (*now.splitlines(), *before.splitlines())}
    return [line.strip() for line in after.splitlines() if line.strip() not in there]
