"""YAML text as validated values, with every mistake named by file, line, key and nearest key.

Pure. `parse` records where each key stands and puts `${VAR}` and `${VAR:-default}` in; `validate`
turns the data into a msgspec Struct. This module is the only importer of PyYAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import yaml

from fp_async.errors import ConfigError, UsageError, suggestion

KeyPath = tuple[str | int, ...]
T = TypeVar("T")


class Document(msgspec.Struct, frozen=True):
    """A parsed YAML file: its plain data, and the line where each key path stands."""

    name: str
    data: Any
    lines: dict[KeyPath, int]

    def error(self, path: KeyPath, message: str) -> ConfigError:
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line = f":{self.lines[known]}" if known in self.lines else ""
        key = ".".join(str(part) for part in path)
        return ConfigError(f"{self.name}{line}: {key + ': ' if key else ''}{message}")


def parse(text: str, name: str, env: Mapping[str, str]) -> Document:
    """Parse YAML with positions; a syntax error, a duplicate key or an unset variable raises."""
    loader = _Loader(text)
    document = Document(name, None, {})
    try:
        root = loader.get_single_node()
        if root is not None:
            _Preparation(document, env, loader).visit(root, ())
        data = None if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        raise _syntax_error(name, text, error) from error
    except RecursionError as error:
        hint = "nested too deeply, or an alias (*name) stands inside its own anchor (&name)"
        raise ConfigError(f"{name}: {hint}") from error
    finally:
        loader.dispose()
    return Document(name, {} if data is None else data, document.lines)


class _Loader(yaml.CSafeLoader):
    """Scalars as YAML 1.2 reads them (and the editor of `scaffold`): `on` is a word, 010 is ten.

    PyYAML follows 1.1, where `retry: {on: [...]}` has the key True and 12:30 is 750.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own
        first: [entry for entry in entries if not entry[0].endswith((":bool", ":int", ":float"))]
        for first, entries in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_number(self, node: yaml.ScalarNode) -> int:
        return int(node.value, 0) if node.value[:2] in ("0x", "0o") else int(node.value)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
for _tag, _pattern, _first in (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", "tTfF"),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))", "-+."),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^{_pattern}$"), list(_first)
    )


def _syntax_error(name: str, text: str, error: yaml.YAMLError) -> ConfigError:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return ConfigError(f"{name}:{line}: not valid YAML: {error.reason}")
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    if mark is None:
        return ConfigError(f"{name}: not valid YAML: {problem}")
    before = "".join(text.splitlines()[mark.line : mark.line + 1])[: mark.column + 1]
    tab = " (a tab? YAML is indented with spaces)" if "\t" in before else ""
    return ConfigError(f"{name}:{mark.line + 1}:{mark.column + 1}: not valid YAML: {problem}{tab}")


_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class _Preparation:
    """Records lines, refuses duplicate keys and puts variables in, before anything is built."""

    def __init__(self, document: Document, env: Mapping[str, str], loader: Any) -> None:
        self._document = document
        self._env = env
        self._loader = loader

    def visit(self, node: yaml.Node, path: KeyPath) -> None:
        if isinstance(node, yaml.ScalarNode):
            self._visit_scalar(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._document.lines[(*path, index)] = _line(item)
                self.visit(item, (*path, index))
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                    key.tag = "tag:yaml.org,2002:str"  # every key is a name: 1, true, 2024-01-01
                self._enter(key, value, (*path, str(key.value)))

    def _visit_scalar(self, node: yaml.ScalarNode, path: KeyPath) -> None:
        if "${" in node.value:
            node.value = self._interpolate(node.value, path)
            if not node.style:  # unquoted: 1883 from a variable is a number again
                node.tag = self._loader.resolve(yaml.ScalarNode, node.value, (True, False))
        if node.tag.endswith(":timestamp"):  # the only form whose value may still be wrong
            try:
                self._loader.construct_object(node)
            except ValueError as error:
                raise self._document.error(path, f"{node.value}: {error}") from error

    def _enter(self, key: yaml.Node, value: yaml.Node, path: KeyPath) -> None:
        if path in self._document.lines:
            raise self._document.error(path, f"stands twice, here and on line {_line(key)}")
        self._document.lines[path] = _line(key)
        self.visit(value, path)

    def _interpolate(self, text: str, path: KeyPath) -> str:
        def replace(match: re.Match[str]) -> str:
            name, default = match[1], match[2]
            if name is None:  # $${ is a literal ${
                return "${"
            if self._env.get(name):
                return self._env[name]
            if default is None:
                hint = f"export {name}, or write ${{{name}:-default}}"
                text = f"environment variable {name} is not set ({hint})"
                raise self._document.error(path, text)
            return str(default)

        return _VARIABLE.sub(replace, text)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def validate(document: Document, struct: type[T]) -> T:
    """The document as `struct`, or a ConfigError that names line, key and nearest valid key."""
    if not isinstance(document.data, dict):
        kind = type(document.data).__name__
        raise document.error((), f"expected a mapping of keys, got {kind}")
    try:
        return msgspec.convert(document.data, struct, strict=False)
    except msgspec.ValidationError as error:
        path, message = _explain(str(error), document.data, struct)
        raise document.error(path, message) from None


def explained(error: Exception, data: Any, struct: Any) -> str:
    """An error of msgspec about values of a caller: `key: what is wrong with it`."""
    path, message = _explain(str(error), data, struct)
    return ": ".join([".".join(map(str, path)), message] if path else [message])


def converted(values: Any, struct: type[T], what: str) -> T:
    """Values of a caller as `struct`; UsageError says what of `what` is wrong."""
    try:
        return msgspec.convert(values, struct)
    except msgspec.ValidationError as error:
        raise UsageError(f"{what}: {explained(error, values, struct)}") from error


_UNKNOWN = re.compile(r"Object contains unknown field `(.+)`")


def _explain(message: str, data: Any, struct: Any) -> tuple[KeyPath, str]:
    problem, _, where = message.partition(" - at ")
    path = _concrete_path(where.strip("`"), data, struct)
    unknown = _UNKNOWN.match(problem)
    if unknown:
        valid = _fields_at(struct, path)
        return (*path, unknown[1]), f"unknown key{suggestion(unknown[1], valid)}"
    if problem.startswith("Invalid enum value"):
        wrong = str(_at(data, path))
        return path, f"unknown value '{wrong}'{suggestion(wrong, _values_at(struct, path))}"
    if "matching regex" in problem and (words := _words_at(struct, path)):
        return path, f"{_at(data, path)!r} is not {words}"
    return path, problem[0].lower() + problem[1:].replace("`", "")


def _concrete_path(where: str, data: Any, struct: Any) -> KeyPath:
    """For any key of a mapping msgspec writes `[...]`; find the one that is really meant."""
    path: KeyPath = ()
    for attribute, index in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", where):
        inner = _at(data, path)
        if attribute:
            path = (*path, attribute)
        elif index.isdigit():
            path = (*path, int(index))
        else:
            path = (*path, next(k for k in inner if _fails(_only(data, path, k), struct)))
    return path


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def _only(data: Any, path: KeyPath, key: object) -> Any:
    """`data` with the mapping at `path` reduced to `key`."""
    if not path:
        return {key: data[key]}
    return {**data, path[0]: _only(data[path[0]], path[1:], key)}


def _fails(data: Any, struct: Any) -> bool:
    try:
        msgspec.convert(data, struct, strict=False)
    except msgspec.ValidationError:
        return True
    return False


def _fields_at(struct: Any, path: KeyPath) -> list[str]:
    """The keys that are valid at `path`, read from msgspec's own description of the type."""
    info = _struct_of(_info_at(struct, path))
    return [field.encode_name for field in getattr(info, "fields", ())]


def _values_at(struct: Any, path: KeyPath) -> list[str]:
    """The values that are valid at `path`, where there is a list of them."""
    return [str(value) for value in getattr(_info_at(struct, path), "values", ())]


def _words_at(struct: Any, path: KeyPath) -> str:
    """What a value at `path` is, where its type says so."""
    info = _info_at(struct, path)
    for option in getattr(info, "types", (info,)):
        if isinstance(option, msgspec.inspect.Metadata):
            return str((option.extra_json_schema or {}).get("description", ""))
    return ""


def _info_at(struct: Any, path: KeyPath) -> Any:
    info = msgspec.inspect.type_info(struct)
    for part in path:
        info = _step_into(info, part)
    return info


def _step_into(info: Any, part: str | int) -> Any:
    info = _struct_of(info)
    for field in getattr(info, "fields", ()):
        if field.encode_name == part:
            return field.type
    return getattr(info, "value_type", getattr(info, "item_type", info))


def _struct_of(info: Any) -> Any:
    """The Struct or mapping among the alternatives of a union."""
    kinds = (msgspec.inspect.StructType, msgspec.inspect.DictType, msgspec.inspect.ListType)
    options = getattr(info, "types", (info,))
    return next((option for option in options if isinstance(option, kinds)), info)
