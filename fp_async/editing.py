"""Edits YAML files as a careful person would: comments, order and all else in them stays.

This module is the only importer of ruamel.yaml.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from fp_async.documents import parse
from fp_async.errors import ConfigError


def load(text: str, name: str) -> Any:
    """The document as ruamel's nested mappings; None where it is empty.

    Raises ConfigError where it is not a mapping of mappings. `name` is for messages.
    """
    from ruamel.yaml.error import YAMLError

    document = parse(text, name, _AnyVariable())
    if not isinstance(document.data, dict):
        raise document.error((), "expected a mapping of keys")
    for section, entries in document.data.items():
        if section in ("params", "run", "pipeline") and not isinstance(entries, dict | None):
            raise document.error((section,), "expected a mapping of pipelines")
    try:
        return _yaml().load(text)
    except YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML, left as it is: {error}") from error


def edit(text: str, name: str, change: Callable[[Any], None]) -> str:
    """The text after `change` has been made to its mapping. Raises ConfigError."""
    data = load(text, name)
    above = ""
    if data is None:  # but for comments, which come first
        above = f"{text.rstrip()}\n\n" if text.strip() else ""
        data = _yaml().load("{}")
        data.fa.set_block_style()
    _settle_comments(data, 0)
    end = _detach(data, list(data)[-1]) if data else []
    change(data)
    out = io.StringIO()
    _yaml().dump(data, out)
    return above + out.getvalue() + "".join(f"{line}\n" for line in end)


class _AnyVariable(dict[str, str]):
    """Editing needs no variable to be set."""

    def get(self, key: str, default: object = None) -> str:
        del key, default
        return "0"

    def __getitem__(self, key: str) -> str:
        return "0"


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


def _settle_comments(mapping: Any, column: int) -> None:
    """Give comments that stand before a key to that key.

    ruamel hangs them on the last value before, where they would move or vanish with it.
    """
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.error import CommentMark
    from ruamel.yaml.tokens import CommentToken

    keys = list(mapping)
    for key, following in zip(keys, [*keys[1:], None], strict=False):  # there may be none
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
