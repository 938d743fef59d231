"""Strict YAML: a small, unsurprising subset that remembers the line of every key.

PyYAML follows YAML 1.1, where `on` is a boolean, `1:30` is ninety, `010` is eight, `1e-4` is text and the
last of two equal keys wins. Here booleans are `true` and `false`, whole numbers are decimal, an exponent
needs a decimal point, and equal keys are a problem. A `Document` collects its problems instead of raising
at the first, so that the loader can report them all together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hpdm_core.errors import ConfigError

KeyPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_BARE_EXPONENT = "!bare-exponent"
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)
_EXPONENT = re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$")
_RARE_BREAKS = re.compile("[\\x85\\u2028\\u2029]")


@dataclass
class Document:
    """A parsed mapping: its plain data, where each key stands, and what is wrong with it.

    `marks` maps a key path to text such as `presets/demo.yaml:12`; the empty path is the file itself.
    """

    data: dict[str, Any] = field(default_factory=dict)
    marks: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def where(self, path: KeyPath) -> str:
        """The place of `path`, or of its nearest ancestor that has one."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.marks:
                return self.marks[path[:length]]
        return ""

    def value(self, path: KeyPath) -> Any:
        """The value at `path`, which must exist."""
        node: Any = self.data
        for key in path:
            node = node[key]
        return node

    def merge(self, child: Document) -> Document:
        """This document with `child` laid over it: mappings merge, everything else is replaced."""
        marks = {path: mark for path, mark in self.marks.items() if not _replaced(path, child)}
        return Document(
            merge_mappings(self.data, child.data), {**marks, **child.marks}, [*self.problems, *child.problems]
        )


def merge_mappings(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """A new mapping: `child` over `parent`, recursively where both hold mappings."""
    merged = dict(parent)
    for key, value in child.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = merge_mappings(old, value)
        else:
            merged[key] = value
    return merged


def _replaced(path: KeyPath, child: Document) -> bool:
    """Whether `path` lies inside a list or scalar that `child` replaces."""
    node: Any = child.data
    for key in path:
        if not isinstance(node, Mapping):
            return True
        if key not in node:
            return False
        node = node[key]
    return False


class _Loader(yaml.SafeLoader):
    """SafeLoader whose plain scalars resolve by the rules in the module's docstring."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own attribute)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes what `_Loader` would not read back as text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal objects twice instead of as anchor and alias."""
        return True

    def represent_text(self, text: str) -> yaml.Node:
        """Text; with rare line breaks in it escaped, since only quoted escapes survive reading."""
        return self.represent_scalar(_TAG + "str", text, style='"' if _RARE_BREAKS.search(text) else None)

    def represent_row(self, items: list[Any]) -> yaml.Node:
        """A list on one line."""
        return self.represent_sequence(_TAG + "seq", items, flow_style=True)


_NUMERIC = list("-+.0123456789")
_Loader.add_implicit_resolver(_TAG + "null", _NULL, ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_TAG + "bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver(_TAG + "int", _INT, _NUMERIC)
for _cls in (_Loader, _Dumper):
    _cls.add_implicit_resolver(_TAG + "float", _FLOAT, _NUMERIC)
    _cls.add_implicit_resolver(_BARE_EXPONENT, _EXPONENT, _NUMERIC)
_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(list, _Dumper.represent_row)


class _Reader:
    """Turns the nodes of one file into plain data, collecting marks and problems on the way."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.document = Document(marks={(): where})
        self.open: set[int] = set()

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        """The plain value of `node`, which stands at `path`."""
        if id(node) in self.open:
            self.problem(node, path, "an alias refers to its own parent")
            return None
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.read(item, (*path, i)) for i, item in enumerate(node.value)]
            return self.scalar(node, path)
        finally:
            self.open.discard(id(node))

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        """A mapping with text keys, each once."""
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(key_node, path, "a key must be plain text")
                continue
            here = (*path, key)
            if key in result:
                first = self.document.marks[here].rpartition(":")[2]
                self.problem(key_node, here, f"the key appears twice, first on line {first}")
            self.document.marks[here] = f"{self.where}:{key_node.start_mark.line + 1}"
            result[key] = self.read(value_node, here)
        return result

    def scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        """A scalar by its tag; explicit tags other than YAML's plain ones are problems."""
        if node.tag == _BARE_EXPONENT:
            fixed = re.sub(r"[eE]", ".0e", node.value)
            self.problem(node, path, f"{node.value} has an exponent and no decimal point; write {fixed}")
            return float(node.value)
        try:
            return _scalar(node.tag, node.value)
        except ValueError:
            self.problem(node, path, f"{node.value!r} cannot be read as {node.tag}; remove the tag")
            return None

    def problem(self, node: yaml.Node, path: KeyPath, text: str) -> None:
        """Note what is wrong at `node`."""
        key = f"key {dotted(path)}: " if path else ""
        self.document.problems.append(f"{self.where}:{node.start_mark.line + 1}: {key}{text}")


def _scalar(tag: str, text: str) -> Any:
    """The value of plain scalar `text` under `tag`; ValueError where they do not fit."""
    match tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool" if _BOOL.match(text):
            return text.lower() == "true"
        case "int" if _INT.match(text):
            return int(text)
        case "float" if _FLOAT.match(text):
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        case "str":
            return text
    raise ValueError(tag)


def dotted(path: KeyPath) -> str:
    """A key path as people write it: `model.levels[1].patch`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def read_document(path: Path) -> Document:
    """Read a YAML file whose top is a mapping. ConfigError if it is absent, unreadable or not YAML."""
    where = _display(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not a text file in UTF-8: {error.reason}") from error
    except OSError as error:
        raise ConfigError(
            f"{where}: cannot read config file: {error.strerror}", hint="see `hpdm presets list` for presets"
        ) from error
    return parse_document(text, where)


def parse_document(text: str, where: str) -> Document:
    """Parse YAML text whose top is a mapping; `where` names it in messages."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    reader = _Reader(where)
    if node is None:
        return reader.document
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{where}: a config file holds `key: value` lines at its top")
    reader.document.data = reader.read(node, ())
    return reader.document


def parse_value(text: str) -> Any:
    """The value of command-line text: YAML flow syntax in which `1e-4` is a number; else the text itself."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError:
        return text
    if node is None:
        return None
    reader = _Reader("")
    value = reader.read(node, ())
    exponents_only = all("has an exponent" in problem for problem in reader.document.problems)
    return value if exponents_only else text


def dump_document(data: Mapping[str, Any]) -> str:
    """YAML text that `parse_document` reads back to the same data; lists stay on one line."""
    return yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=False
    )


def _display(path: Path) -> str:
    """`path` relative to the working directory where it lies below it."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(path)
