"""JSON Schema of the configuration files, for editors: what keys there are, and what they mean.

The keys are those of the Structs of `config`, and the words are the lines `key: text` of their
docstrings. Beside a value of any type a variable (`${NAME}`) may stand, and null is "not given".
Draft 7, because it is the newest that all editors know.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

import msgspec

from fp_async.config import FILES

DRAFT = "http://json-schema.org/draft-07/schema#"
_KEY = re.compile(r"(\w+): (.*)")
_TYPED = frozenset({"integer", "number", "boolean"})
_VARIABLE = {"type": "string", "pattern": r"\$\{"}
_NULL = {"type": "null"}
Schema = dict[str, Any]


def schemas() -> dict[str, Schema]:
    """Return the schema of every `conf/*.yml`, by file name."""
    return {name: schema(struct, f"conf/{name}") for name, struct in FILES.items()}


def schema(struct: type[msgspec.Struct], title: str, words: dict[str, str] | None = None) -> Schema:
    """Return the schema of a file; `words` describes keys of `struct` whose docstring does not.

    Raises KeyError for a key that nothing describes.
    """
    template = "#/definitions/{name}"
    (_,), found = msgspec.json.schema_components([struct], ref_template=template)
    structs = {each.__name__: each for each in _structs(struct)}
    made = {name: _object(found[name], structs[name], words or {}) for name in structs}
    top = made.pop(struct.__name__)
    return {
        "$schema": DRAFT,
        **top,
        "type": ["object", "null"],  # a file of comments alone is null
        "title": title,
        "patternProperties": {"^x-": {"description": "kept for its anchors"}},
        "definitions": made,
    }


def described(struct: type[msgspec.Struct]) -> tuple[str, dict[str, str]]:
    """Return what the docstring of a Struct says of it, and of its keys."""
    text, keys, last = list[str](), dict[str, str](), ""
    for line in inspect.cleandoc(struct.__doc__ or "").splitlines():
        found = _KEY.fullmatch(line)
        if found is not None and found[1] in struct.__struct_fields__:
            last = found[1]
            keys[last] = found[2]
        elif last and line.startswith(" "):
            keys[last] += f" {line.strip()}"
        else:
            text.append(line)
    return " ".join(" ".join(text).split()), keys


def _structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """All Structs that a value of this type may hold, itself first."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for each in typing.get_type_hints(kind, include_extras=True).values():
            yield from _structs(each)
    for each in typing.get_args(kind):
        yield from _structs(each)


def _object(found: Schema, struct: type[msgspec.Struct], words: dict[str, str]) -> Schema:
    text, keys = described(struct)
    keys = words | keys
    properties = {
        name: {"description": keys[name], **_fitting(each, name not in found["required"])}
        for name, each in found["properties"].items()
    }
    return {**found, "description": text, "properties": properties}


def _fitting(found: Schema, optional: bool) -> Schema:
    """Return the schema of a value, with variables; and with null for one that may be left out."""
    default = {"default": found["default"]} if found.get("default") is not None else {}
    value = _with_variables({name: each for name, each in found.items() if name != "default"})
    kinds = value["anyOf"] if set(value) == {"anyOf"} else [value]
    if optional and _NULL not in kinds and value:
        kinds = [*kinds, _NULL]
    return {**default, **(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})}


def _with_variables(found: Schema) -> Schema:
    kinds = found.get("anyOf")
    if kinds is not None:
        return {"anyOf": _flat([_with_variables(each) for each in kinds])}
    if found.get("type") in _TYPED or "enum" in found or "pattern" in found:
        return {"anyOf": [found, _VARIABLE]}
    inner = {name: found[name] for name in ("items", "additionalProperties") if name in found}
    typed: Schema = {name: _entry(each) for name, each in inner.items() if isinstance(each, dict)}
    return {**found, **typed}


def _entry(found: Schema) -> Schema:
    return _with_variables(found) if found else found


def _flat(kinds: list[Schema]) -> list[Schema]:
    """Return alternatives of alternatives as one list, each once."""
    flat: list[Schema] = []
    for each in kinds:
        for kind in each["anyOf"] if set(each) == {"anyOf"} else [each]:
            if kind not in flat:
                flat.append(kind)
    return flat
