"""YAML text as validated values, with every mistake named by file, line, key and nearest key.

Pure. `parse` checks the syntax, records where each key stands, and leaves `${VAR}` unread;
`Document.at` reads one entry: its variables are put in, and it is turned into a msgspec type. So a
mistake in an entry, or a variable that it lacks, stops nobody but those who use that entry. This
module is the only importer of PyYAML.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
import yaml

from fp_async import variables
from fp_async.errors import MisconfiguredError, suggestion
from fp_async.values import mismatch
from fp_async.values.coerce import coerce
from fp_async.values.mismatch import KeyPath, Mismatch
from fp_async.values.text import Text
from fp_async.variables import Parts, VariableError, is_secret

T = TypeVar("T")
_EXPANDED = 100_000  # values that a file may come to by its aliases
_VARIABLE_TAG = "!fp-variable"


class Template(str):  # noqa: SLOT000
    """A scalar with `${...}` in it, as it is written; its value is read when it is used.

    `parts` is what it is made of, or the error that it is. What is `quoted` is a text for
    everybody who could take a text. `path` is where it stands.
    """

    parts: Parts | VariableError
    quoted: bool
    path: KeyPath

    @classmethod
    def of(cls, text: str, path: KeyPath, *, quoted: bool) -> Template:
        """A template; a text that is not understood is an error where it is used."""
        made = cls(text)
        made.path, made.quoted = path, quoted
        try:
            made.parts = variables.parse(text)
        except VariableError as error:
            made.parts = error
        return made

    def filled(self, env: Mapping[str, str]) -> Text | str | None:
        """With the values of its variables: text that has no type yet, None where it is empty.

        Raises VariableError.
        """
        if isinstance(self.parts, VariableError):
            raise self.parts
        value = variables.resolve(self.parts, env)
        if not any(variables.names(self.parts)):  # $${ only
            return value
        return FromVariable.of(value, self) if value or self.quoted else None

    @property
    def secret(self) -> bool:
        """Return whether its value must not be shown."""
        parts = () if isinstance(self.parts, VariableError) else self.parts
        return any(map(variables.is_secret, variables.names(parts)))


class FromVariable(Text):
    """A text that a variable had a part in. `template` is what stands in the file."""

    template: Template

    @property
    def quoted(self) -> bool:  # type: ignore[override]
        """Return whether the scalar stands in quotes."""
        return self.template.quoted

    @classmethod
    def of(cls, text: str, template: Template) -> FromVariable:
        made = cls(text)
        made.template = template
        return made


class Document(msgspec.Struct, frozen=True):
    """A parsed YAML file: its data, in which scalars with variables are `Template`s, the line where
    each key path stands, and the variables, which are looked up when an entry is read.
    """

    name: str
    data: Any
    lines: dict[KeyPath, int]
    env: Mapping[str, str] = {}

    def error(self, path: KeyPath, message: str) -> MisconfiguredError:
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line = f":{self.lines[known]}" if known in self.lines else ""
        key = ".".join(str(part) for part in path if part != "<<")
        return MisconfiguredError(f"{self.name}{line}: {key + ': ' if key else ''}{message}")

    def raw(self, path: KeyPath) -> Any:
        """The data at `path` as it is written; None where there is none.

        Raises MisconfiguredError where something above it is no mapping.
        """
        data = self.data
        for depth, part in enumerate(path):
            if isinstance(part, str) and not isinstance(data, dict | None):
                raise self.error(path[:depth], mismatch.explain(data, dict).problem)
            data = data[part] if isinstance(part, int) else (data or {}).get(part)
        return data

    def at(self, path: KeyPath, kind: type[T]) -> T:
        """What stands at `path`, as `kind`. Raises MisconfiguredError."""
        found: T = self.converted(self.raw(path), kind, lambda inner: (*path, *inner))
        return found

    def converted(self, data: Any, kind: Any, place: Callable[[KeyPath], KeyPath]) -> Any:
        """Data of this document as `kind`; `place` says where what stands at a path comes from.

        Raises MisconfiguredError.
        """
        found = self.filled(data, kind)
        try:
            return msgspec.convert(found, kind)
        except msgspec.ValidationError:
            wrong = mismatch.explain(found, kind)
            raise self.error(place(wrong.path), _without_secrets(wrong, data)) from None

    def filled(self, data: Any, kind: Any = Any) -> Any:
        """Data with its variables put in, read by the types of `kind` as far as that says one.

        Raises MisconfiguredError for one that has no value.
        """
        if isinstance(data, Template):
            try:
                return _read(data.filled(self.env), kind)
            except VariableError as error:
                raise self.error(data.path, str(error)) from None
        if isinstance(data, dict):
            return {key: self.filled(value, _inner(kind, key)) for key, value in data.items()}
        if isinstance(data, list):
            return [self.filled(value, _inner(kind, None)) for value in data]
        return data

    def check(self, struct: type[Any]) -> None:
        """Raises MisconfiguredError for a document whose sections are not those of `struct`.

        Only the keys of the first level, and whether what needs keys itself has some; what stands
        in the sections is checked when it is used.
        """
        if not isinstance(self.data, dict):
            raise self.error((), mismatch.explain(self.data, struct).problem)
        hints = _hints(struct)
        for key, value in self.data.items():
            if key not in hints:
                raise self.error((key,), f"unknown key{suggestion(key, hints)}")
            if _is_section(hints[key]) and not isinstance(value, dict | Template | None):
                raise self.error((key,), mismatch.explain(value, hints[key]).problem)


def _is_section(kind: Any) -> bool:
    """Return whether it is a mapping of keys."""
    options = [typing.get_origin(option) or option for option in _options(kind)]
    kinds = [option for option in options if isinstance(option, type)]
    return any(issubclass(each, dict | msgspec.Struct) for each in kinds)


def _without_secrets(wrong: Mismatch, data: Any) -> str:
    """The problem, which shows no value that came from a variable that may be secret."""
    for part in wrong.path:
        known = data.get(part) if isinstance(data, dict) else None
        data = data[part] if isinstance(data, list) and isinstance(part, int) else known
    secret = isinstance(data, Template) and (data.secret or is_secret(str(wrong.path[-1])))
    if not secret or "'" not in wrong.problem:
        return wrong.problem
    return f"the value of {data} is none of those that may stand here"


def parse(text: str, name: str, env: Mapping[str, str]) -> Document:
    """Parse YAML with positions. Raises MisconfiguredError for a syntax error or duplicate key.

    Top-level keys that begin with `x-` are there for their anchors, and are left out.
    """
    loader = _Loader(text)
    lines: dict[KeyPath, int] = {}
    document = Document(name, None, lines, env)
    try:
        root = loader.get_single_node()
        if root is not None:
            _check_size(document, root)
            _Preparation(document, loader).visit(root, ())
        data = {} if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        raise _syntax_error(name, text, error) from error
    except RecursionError as error:
        hint = "nested too deeply, or an alias (*name) stands inside its own anchor (&name)"
        raise MisconfiguredError(f"{name}: {hint}") from error
    finally:
        loader.dispose()
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if not key.startswith("x-")}
    return Document(name, {} if data is None else data, lines, env)


class _Loader(yaml.CSafeLoader):
    """Scalars as YAML 1.2 reads them (and the editor of `scaffold`): `on` is a word, 010 is ten.

    PyYAML follows 1.1, where `retry: {on: [...]}` has the key True and 12:30 is 750.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own
        first: [entry for entry in entries if not entry[0].endswith((":bool", ":int", ":float"))]
        for first, entries in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.places: dict[int, KeyPath] = {}  # of the scalars with variables, by node

    def construct_number(self, node: yaml.ScalarNode) -> int:
        return int(node.value, 0) if node.value[:2] in ("0x", "0o") else int(node.value)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; PyYAML raises anything for `!!bool x`, 2020-13-45 or 5,000 digits."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError):
            if not isinstance(node, yaml.ScalarNode):
                raise
            kind = node.tag.rpartition(":")[2]
            problem = f"this is no {kind}; a text stands in quotes"  # the value may be a secret
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_template(self, node: yaml.ScalarNode) -> Template | str:
        """A template; `$${` alone is a text."""
        return Template.of(node.value, self.places[id(node)], quoted=bool(node.style))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor(_VARIABLE_TAG, _Loader.construct_template)
for _tag, _pattern, _first in (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", "tTfF"),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))", "-+."),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^{_pattern}$"), list(_first)
    )


def _syntax_error(name: str, text: str, error: yaml.YAMLError) -> MisconfiguredError:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return MisconfiguredError(f"{name}:{line}: not valid YAML: {error.reason}")
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    if mark is None:
        return MisconfiguredError(f"{name}: not valid YAML: {problem}")
    before = "".join(text.splitlines()[mark.line : mark.line + 1])[: mark.column + 1]
    tab = " (a tab? YAML is indented with spaces)" if "\t" in before else ""
    place = f"{name}:{mark.line + 1}:{mark.column + 1}"
    return MisconfiguredError(f"{place}: not valid YAML: {problem}{tab}")


# Before values are built ------------------------------------------------------------------------


def _check_size(document: Document, root: yaml.Node) -> None:
    """Raises MisconfiguredError for a file whose aliases come to far more than is written.

    A few lines of aliases of aliases (a "YAML bomb") stand for billions of values.
    """
    sizes: dict[int, int] = {}
    whole = _size(root, sizes)
    if whole > _EXPANDED and whole > 10 * len(sizes):
        text = f"its aliases (*name) come to {whole:.3g} values, more than {_EXPANDED:,}"
        raise MisconfiguredError(f"{document.name}:{_line(_largest(root, sizes))}: {text}")


def _largest(node: yaml.Node, sizes: Mapping[int, int]) -> yaml.Node:
    """Return the innermost node that is too large by itself."""
    while large := [inner for inner in _children(node) if sizes[id(inner)] > _EXPANDED]:
        node = large[0]
    return node


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many nodes it stands for, aliases written out. RecursionError for an alias of itself."""
    known = sizes.get(id(node))
    if known is None:
        known = sizes[id(node)] = 1 + sum(_size(inner, sizes) for inner in _children(node))
    return known


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [inner for pair in node.value for inner in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


class _Preparation:
    """Records lines, refuses duplicate keys and marks variables, before anything is built."""

    def __init__(self, document: Document, loader: _Loader) -> None:
        self._document = document
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
            self._loader.places.setdefault(id(node), path)  # an alias is told of by its anchor
            node.tag = _VARIABLE_TAG
        if node.tag.endswith(":timestamp"):  # the only form whose value may still be wrong
            try:
                self._loader.construct_object(node)
            except ValueError as error:
                raise self._document.error(path, f"{node.value}: {error}") from error

    def _enter(self, key: yaml.Node, value: yaml.Node, path: KeyPath) -> None:
        if path in self._document.lines:
            raise self._document.error(path, f"stands twice, here and on line {_line(key)}")
        self._document.lines[path] = _line(key)
        if isinstance(key, yaml.ScalarNode) and "${" in key.value:
            raise self._document.error(path, "a key is a name: it cannot have a variable in it")
        self.visit(value, path)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


# Text by its type -------------------------------------------------------------------------------


def _read(value: Any, kind: Any) -> Any:
    """Text from variables as `kind` wants it; where that is anything, whoever uses it reads it."""
    if not isinstance(value, FromVariable):
        return value
    if _is_plain(kind):
        return untyped(value)
    options = [option for option in _options(kind) if option is not types.NoneType]
    if Any in options:
        return value
    if str in options and (value.template.quoted or not _plain(options)):
        return str(value)
    read = coerce(value, kind)
    return str(read) if isinstance(read, str) else read


def untyped(data: Any) -> Any:
    """Data with text from variables as YAML would read it: for what no type says how to."""
    if isinstance(data, FromVariable):
        return str(data) if data.template.quoted else coerce(data, Any)
    if isinstance(data, dict):
        return {key: untyped(value) for key, value in data.items()}
    return [untyped(value) for value in data] if isinstance(data, list) else data


def _plain(options: list[Any]) -> list[Any]:
    """Those that a text can be beside a text."""
    return [each for each in options if each in (int, float, bool)]


def _is_plain(kind: Any) -> bool:
    """Return whether it is `config.Plain`."""
    return any((getattr(each, "extra", None) or {}).get("plain") for each in typing.get_args(kind))


def _options(kind: Any) -> list[Any]:
    """The members of a union, without what annotates them; another type is the only one."""
    while typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [inner for member in typing.get_args(kind) for inner in _options(member)]
    return [kind]


def _inner(kind: Any, key: str | None) -> Any:
    """The type of what stands under a key, or, without one, of what a list holds."""
    if _is_plain(kind):
        return kind
    for option in _options(kind):
        origin, args = typing.get_origin(option) or option, typing.get_args(option)
        if key is None and origin is list:
            return args[0]
        if key is not None and origin is dict:
            return args[1]
        if key is not None and isinstance(option, type) and issubclass(option, msgspec.Struct):
            return _hints(option).get(key, Any)
    return Any


_known_hints: dict[type, dict[str, Any]] = {}


def _hints(struct: type) -> dict[str, Any]:
    if struct not in _known_hints:
        _known_hints[struct] = typing.get_type_hints(struct, include_extras=True)
    return _known_hints[struct]


def validate(document: Document, struct: type[T]) -> T:
    """The document as `struct`, or a MisconfiguredError that names line, key and nearest key."""
    document.check(struct)
    return document.at((), struct)
