"""`conf/*.yml` as frozen values.

Pure: text in, Structs out. A file is parsed with its positions, `${VAR}` and `${VAR:-default}`
are replaced, and everything is validated against the Structs below; a mistake is a
`ConfigError` that names file, line, key path and the nearest valid key. `null` means "not
given" everywhere. This module is the only importer of PyYAML.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml

from fp_async.errors import ConfigError, FileAccessError, UnknownNameError, suggestion

DEFAULT_ENVIRONMENT = "dev"

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Scalar = str | int | float | bool | None
KeyPath = tuple[str | int, ...]
T = TypeVar("T")


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When an error is tried again: `max_attempts` in all, waiting `backoff` * 2**n seconds."""

    max_attempts: Annotated[int, msgspec.Meta(ge=1)] = 3
    backoff: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    max_backoff: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    on: list[str] = []

    def wants(self, error: BaseException, failures: int) -> bool:
        """Whether the attempt after `failures` failed ones should be made."""
        names = {kind.__name__ for kind in type(error).__mro__}
        return failures < self.max_attempts and (not self.on or not names.isdisjoint(self.on))

    def delay(self, failures: int, chance: float) -> float:
        """Seconds before the next attempt; `chance` in [0, 1) spreads it by the jitter."""
        pause = min(self.backoff * 2.0 ** (failures - 1), self.max_backoff)
        return pause * (1 + self.jitter * (2 * chance - 1))


class NodePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be set for one node: `timeout` in seconds for each attempt, and `retry`."""

    timeout: Seconds | None = None
    retry: Retry | None = None


class ExecutorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where sync nodes run. `max_workers` bounds threads or processes."""

    type: str = "threadpool"
    max_workers: Annotated[int, msgspec.Meta(ge=1)] | None = None


class RunSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`run.<pipeline>.<environment>` in `conf/pipelines.yml`."""

    inputs: dict[str, Any] | None = None
    final_vars: list[str] | str | None = None
    config: dict[str, Any] | None = None
    params: dict[str, dict[str, Any] | None] | None = None
    executor: str | ExecutorSettings | None = None
    timeout: Seconds | None = None
    retry: Retry | None = None
    nodes: dict[str, NodePolicy] | None = None
    modules: list[str] | None = None
    module_overrides: bool | None = None
    cache: bool | str | None = None
    with_tracker: bool | None = None


class PipelinesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`conf/pipelines.yml`."""

    params: dict[str, dict[str, dict[str, Any] | None] | None] | None = None
    run: dict[str, dict[str, RunSettings | None] | None] | None = None


class DataStore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where jobs are kept: `data_store` in `conf/scheduler.yml`."""

    type: Literal["memory", "sqlite", "postgres", "mysql", "mongodb", "sqlalchemy"] = "sqlite"
    uri: str | None = None


class EventBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What wakes workers up: `event_broker` in `conf/scheduler.yml`."""

    type: Literal["memory", "postgres", "redis", "mqtt"] = "memory"
    uri: str | None = None
    host: str | None = None
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    username: str | None = None
    password: str | None = None


class SchedulerFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`conf/scheduler.yml`."""

    data_store: DataStore | None = None
    event_broker: EventBroker | None = None


class TrackedPipeline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`pipeline.<name>` in `conf/tracker.yml`."""

    project_id: int | None = None
    tags: dict[str, Scalar] | None = None
    dag_name: str | None = None


class TrackerFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`conf/tracker.yml`."""

    username: str | None = None
    api_url: str | None = None
    ui_url: str | None = None
    api_key: str | None = None
    pipeline: dict[str, TrackedPipeline | None] | None = None


class MqttBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The broker that agents and gateway meet at: `broker` in `conf/mqtt.yml`."""

    uri: str | None = None
    host: str | None = None
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    username: str | None = None
    password: str | None = None


class MqttFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`conf/mqtt.yml`."""

    broker: MqttBroker | None = None
    prefix: str | None = None
    site: str | None = None


FILES: dict[str, type[msgspec.Struct]] = {
    "pipelines.yml": PipelinesFile,
    "scheduler.yml": SchedulerFile,
    "tracker.yml": TrackerFile,
    "mqtt.yml": MqttFile,
}


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


def read(root: Path, file: str, env: Mapping[str, str] | None = None) -> Any:
    """The Struct of `conf/<file>` below `root`; an absent or empty file gives the defaults.

    Raises ConfigError for a mistake in it, FileAccessError where it cannot be read.
    """
    path = root / "conf" / file
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return FILES[file]()
    except (OSError, UnicodeDecodeError) as error:
        raise FileAccessError(f"cannot read conf/{file}: {error}") from error
    return validate(parse(text, f"conf/{file}", os.environ if env is None else env), FILES[file])


def schema() -> dict[str, Any]:
    """JSON Schema of every configuration file, by file name."""
    return {name: msgspec.json.schema(struct) for name, struct in FILES.items()}


def parse(text: str, name: str, env: Mapping[str, str]) -> Document:
    """Parse YAML with positions; a syntax error, a duplicate key or an unset variable raises."""
    loader = _Loader(text)
    document = Document(name, None, {})
    try:
        root = loader.get_single_node()
        if root is not None:
            _Preparation(document, env, loader.resolve).visit(root, ())
        data = None if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        raise _syntax_error(name, error) from error
    finally:
        loader.dispose()
    return Document(name, {} if data is None else data, document.lines)


class _Loader(yaml.CSafeLoader):  # type: ignore[misc]
    """Scalars as YAML 1.2 reads them (and the editor of `scaffold`): `on` is a word, 010 is ten.

    PyYAML follows 1.1, where `retry: {on: [...]}` has the key True and 12:30 is 750.
    """

    yaml_implicit_resolvers = {
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


def _syntax_error(name: str, error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    return ConfigError(f"{name}{at}: not valid YAML: {problem}")


_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class _Preparation:
    """Records lines, refuses duplicate keys and puts variables in, before anything is built."""

    def __init__(
        self, document: Document, env: Mapping[str, str], resolve: Callable[..., str]
    ) -> None:
        self._document = document
        self._env = env
        self._resolve = resolve

    def visit(self, node: yaml.Node, path: KeyPath) -> None:
        if isinstance(node, yaml.ScalarNode) and "${" in node.value:
            node.value = self._interpolate(node.value, path)
            if not node.style:  # unquoted: 1883 from a variable is a number again
                node.tag = self._resolve(yaml.ScalarNode, node.value, (True, False))
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._document.lines[(*path, index)] = _line(item)
                self.visit(item, (*path, index))
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self._enter(key, value, (*path, str(key.value)))

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


_UNKNOWN = re.compile(r"Object contains unknown field `(.+)`")


def _explain(message: str, data: Any, struct: Any) -> tuple[KeyPath, str]:
    problem, _, where = message.partition(" - at ")
    path = _concrete_path(where.strip("`"), data, struct)
    unknown = _UNKNOWN.match(problem)
    if unknown:
        valid = _fields_at(struct, path)
        return (*path, unknown[1]), f"unknown key{suggestion(unknown[1], valid)}"
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
    info = msgspec.inspect.type_info(struct)
    for part in path:
        info = _step_into(info, part)
    info = _struct_of(info)
    return [field.encode_name for field in getattr(info, "fields", ())]


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


# What an environment adds to instead of replacing.
_MERGED = ("inputs", "config", "params", "nodes")


def run_settings(file: PipelinesFile, pipeline: str, environment: str) -> RunSettings:
    """The settings of `run.<pipeline>.<environment>`, laid over those of `dev`.

    An environment other than `dev` must exist somewhere in the file, for this pipeline if the
    pipeline has any; otherwise UnknownNameError lists those that do.
    """
    entries = (file.run or {}).get(pipeline) or {}
    if environment not in entries and environment != DEFAULT_ENVIRONMENT:
        valid = {DEFAULT_ENVIRONMENT, *entries}
        where = f" of pipeline '{pipeline}' (conf/pipelines.yml, run.{pipeline})"
        raise UnknownNameError("environment", environment, valid, where=where)
    base = entries.get(DEFAULT_ENVIRONMENT) or RunSettings()
    return _overlay(base, entries.get(environment) or RunSettings())


def _overlay(base: RunSettings, over: RunSettings) -> RunSettings:
    if base is over:
        return base
    changes: dict[str, Any] = {}
    for name in RunSettings.__struct_fields__:
        below, above = getattr(base, name), getattr(over, name)
        if above is None:
            continue
        changes[name] = merged(below or {}, above) if name in _MERGED else above
    return msgspec.structs.replace(base, **changes)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings laid over each other, nested ones too; a null above changes nothing."""
    result = dict(below)
    for key, value in above.items():
        lower = result.get(key)
        if isinstance(value, Mapping) and isinstance(lower, Mapping):
            result[key] = merged(lower, value)
        elif value is not None:
            result[key] = value
        else:
            result.setdefault(key, None)
    return result


def given(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries that are not null: null means not given."""
    return {name: value for name, value in (values or {}).items() if value is not None}
