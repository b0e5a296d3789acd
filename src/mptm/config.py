# SPDX-License-Identifier: GPL-2.0-only
"""The node file: an intent as YAML (or JSON, which is YAML), read with the line of every mistake.

    networks:
    - {name: blue, id: 1}
    ports:
    - {name: eth0, role: uplink}
    - {name: veth-node1, role: access, network: blue}
    tunnels:
    - {name: to-node2, protocol: geneve, network: blue, remote: 10.30.30.2, vni: 100}
    routes:
    - {network: blue, prefix: 10.250.1.101/32, via: to-node2}

Plain words mean what YAML 1.2 says: `on` and `no` are text, and 10:20:30:40:50:55 is a MAC address, not a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mptm.errors import InvalidIntent
from mptm.fields import Checked, fields_of, parts_of, show_value, suggestion
from mptm.intent import KINDS, Encapsulation, Intent, Object, Tunnel, object_from_dict
from mptm.memory import without_collection
from mptm.progress import Advance

SECTIONS: dict[str, str] = {f"{kind}s": kind for kind in KINDS}
"""Top-level key -> kind of its objects, in the order of the file."""

_TAG = "tag:yaml.org,2002:"
_TOLD_EVERY = 1000
_SHORT = 1 << 17
"""Characters that are read again at leisure when there is a mistake in them."""
_DEEPEST = 8
"""Levels of nesting that are read; the format itself has four."""


_PLAIN_WORDS = (
    (f"{_TAG}null", re.compile(r"(?:~|null|)$"), ["~", "n", ""]),
    (f"{_TAG}bool", re.compile(r"(?:true|false)$"), ["t", "f"]),
    (f"{_TAG}int", re.compile(r"(?:[-+]?[0-9]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
)
"""YAML 1.2's idea of plain words."""


class _Loader(yaml.SafeLoader):
    """Plain words of YAML 1.2, and no aliases (a small file could mean a huge one)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """As the base class, but refusing aliases."""
        if self.check_event(yaml.AliasEvent):
            parser: Any = self
            event = parser.peek_event()
            raise yaml.MarkedYAMLError(None, None, "aliases (*name) are not supported here", event.start_mark)
        return super().compose_node(parent, index)


class _FastLoader(getattr(yaml, "CSafeLoader", _Loader)):  # type: ignore[misc]  # there or not, by the wheel
    """The same by libyaml, ten times as fast; for text that can't have aliases."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Writes numbers that standards write in hexadecimal so, and indents lists."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """As the base class, but list items are indented below their key."""
        super().increase_indent(flow, False)


class _Hexadecimal(int):
    pass


def _represent_hexadecimal(dumper: yaml.SafeDumper, value: _Hexadecimal) -> ScalarNode:
    return dumper.represent_scalar(f"{_TAG}int", hex(value))


_Dumper.add_representer(_Hexadecimal, _represent_hexadecimal)

for _reads_or_writes in (
    _Loader,
    _FastLoader,
    _Dumper,
):  # that text like 099 is quoted, which YAML 1.1 wouldn't
    for _word in _PLAIN_WORDS:
        _reads_or_writes.add_implicit_resolver(*_word)


def load(text: str, source_name: str = "the file", advance: Advance | None = None) -> Intent:
    """The intent that a node file describes. InvalidIntent: names the line and field of the first mistake."""
    with without_collection():
        return _Reader(source_name, advance).read(text)


def dump(intent: Intent) -> str:
    """The node file of an intent: YAML, in a stable order; `load` reads the same intent from it."""
    document = {
        section: [_written(intent.of_kind(kind)[key]) for key in sorted(intent.of_kind(kind))]
        for section, kind in SECTIONS.items()
        if intent.of_kind(kind)
    }
    if not document:
        return f"{next(iter(SECTIONS))}: []\n"
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=110)


def _written(obj: Checked) -> dict[str, Any]:
    fields = list(fields_of(type(obj)))
    if isinstance(obj, Encapsulation | Tunnel):
        fields += fields_of(type(obj.options))
    hexadecimal = {field.name for field in fields if field.hexadecimal}
    parts = {name: list(map(_written, items)) for name, items in parts_of(obj).items()}
    return {
        name: _Hexadecimal(value) if name in hexadecimal else parts.get(name, value)
        for name, value in obj.to_dict().items()
    }


class _Told:
    """Text as a file that tells how far it was read."""

    def __init__(self, text: str, name: str, advance: Advance | None) -> None:
        self.name = name  # the parser's messages have it
        self._text = text
        self._advance = advance
        self._at = 0

    def read(self, size: int = -1) -> str:
        """As of a file."""
        part = self._text[self._at :] if size < 0 else self._text[self._at : self._at + size]
        self._at += len(part)
        if self._advance is not None:
            self._advance(f"reading {self.name}", self._at, len(self._text))
        return part


class _Reader:
    """Reads one file; knows where each object stood."""

    def __init__(self, source_name: str, advance: Advance | None = None) -> None:
        self.source_name = source_name
        self.advance = advance
        self.places: dict[tuple[str, str], tuple[int, MappingNode]] = {}

    def read(self, text: str) -> Intent:
        root = self._compose(text)
        if root is None or (isinstance(root, ScalarNode) and root.tag == f"{_TAG}null"):
            raise InvalidIntent(
                f"{self.source_name} is empty: that would remove everything",
                f"to mean it, write {next(iter(SECTIONS))}: [] or use `mptm purge`",
            )
        if not isinstance(root, MappingNode):
            raise self._error(
                root, None, f"the file must be a mapping of {', '.join(SECTIONS)}; found {_shown(root)}"
            )
        objects: list[Object] = []
        for section, node in self._pairs(root, ""):
            if section not in SECTIONS:
                key = next(key for key, _ in root.value if key.value == section)
                message = f"there is no section {section}; there are {', '.join(SECTIONS)}"
                raise self._error(key, section, message, suggestion(section, SECTIONS))
            objects += self._read_section(section, node)
        intent = Intent.of(objects)
        for problem in intent.problems():
            index, node = self.places[problem.kind, problem.key]
            label = intent.get(problem.kind, problem.key).label()
            where = f"{problem.kind}s[{index}].{problem.field}"
            raise self._error(
                _place_of(node, problem.field), where, f"{label}: {problem.message}", problem.hint
            )
        return intent

    def _compose(self, text: str) -> Node | None:
        text = _without_tabs(text)
        # libyaml takes aliases, and no half of a surrogate pair; on a mistake, the other has the better words.
        if "*" not in text and "\\u" not in text:
            try:
                return self._composed(text, _FastLoader)
            except InvalidIntent:
                if len(text) > _SHORT:
                    raise
        return self._composed(text, _Loader)

    def _composed(self, text: str, loader: Any) -> Node | None:
        try:
            return yaml.compose(_Told(text, self.source_name, self.advance), Loader=loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else None
            context = f" {error.context}" if error.context else ""
            raise InvalidIntent(
                f"{self.source_name} is no YAML or JSON: {error.problem}{context}", line=line
            ) from None
        except yaml.YAMLError as error:
            raise InvalidIntent(f"{self.source_name} is no text: {' '.join(str(error).split())}") from None
        except RecursionError:
            raise InvalidIntent(f"{self.source_name} is nested too deep to be a node file") from None

    def _read_section(self, section: str, node: Node) -> Iterator[Object]:
        if not isinstance(node, SequenceNode):
            raise self._error(
                node, section, f"{section} must be a list; found {_shown(node)}", "each begins with a dash"
            )
        for index, item in enumerate(node.value):
            if self.advance is not None and index % _TOLD_EVERY == 0:
                self.advance(f"checking {section}", index, len(node.value))
            where = f"{section}[{index}]"
            if not isinstance(item, MappingNode):
                raise self._error(
                    item, where, f"a {SECTIONS[section]} must be a mapping of fields; found {_shown(item)}"
                )
            yield self._read_object(SECTIONS[section], index, item)

    def _read_object(self, kind: str, index: int, node: MappingNode) -> Object:
        where = f"{kind}s[{index}]"
        values = {name: self._value(value, f"{where}.{name}") for name, value in self._pairs(node, where)}
        try:
            obj = object_from_dict(kind, values)
        except InvalidIntent as error:
            at = _place_of(node, error.field) if error.field else node
            raise self._error(
                at, f"{where}.{error.field}" if error.field else where, error.message, error.hint
            ) from None
        if (kind, obj.key) in self.places:
            first, first_node = self.places[kind, obj.key]
            raise self._error(
                node,
                where,
                f"{obj.label()} is there twice: first as {kind}s[{first}] in line {_line(first_node)}",
            )
        self.places[kind, obj.key] = index, node
        return obj

    def _pairs(self, node: MappingNode, where: str) -> Iterator[tuple[str, Node]]:
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise self._error(key, where or None, f"a field's name must be a word; found {_shown(key)}")
            name = str(key.value)
            if name in lines:
                raise self._error(
                    key, f"{where}.{name}".lstrip("."), f"{name} is given twice, first in line {lines[name]}"
                )
            lines[name] = _line(key)
            yield name, value

    def _value(self, node: Node, where: str, depth: int = 0) -> Any:
        if depth > _DEEPEST:
            raise self._error(node, where, "nested too deep")
        if isinstance(node, MappingNode):
            return {
                name: self._value(value, f"{where}.{name}", depth + 1)
                for name, value in self._pairs(node, where)
            }
        if isinstance(node, SequenceNode):
            return [self._value(value, f"{where}[{i}]", depth + 1) for i, value in enumerate(node.value)]
        text = str(node.value)
        if not text.isascii():  # JSON writes what is beyond 16 bits as two surrogates
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        match node.tag.removeprefix(_TAG):
            case "str":
                return text
            case "null":
                return None
            case "bool" if text in ("true", "false"):
                return text == "true"
            case "int" if re.fullmatch(r"[-+]?[0-9]{1,40}|0x[0-9a-fA-F]{1,32}", text):
                return int(text, 16 if text.startswith("0x") else 10)
        raise self._error(
            node, where, f"{show_value(text)} is no value of this format (type {show_value(node.tag)})"
        )

    def _error(self, node: Node, field: str | None, message: str, hint: str | None = None) -> InvalidIntent:
        return InvalidIntent(message, hint, field=field, line=_line(node))


def _without_tabs(text: str) -> str:
    """JSON may be indented with tabs, which YAML forbids; within its strings there are none (RFC 8259 §7)."""
    if "\t" not in text or not text.lstrip().startswith("{"):
        return text
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text.replace("\t", " ")


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _place_of(node: MappingNode, field: str) -> Node:
    """Where a field is written, or the whole object where it isn't written."""
    return next((key for key, _ in node.value if key.value == field), node)


def _shown(node: Node) -> str:
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    return show_value(node.value or None)
