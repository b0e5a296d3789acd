# SPDX-License-Identifier: GPL-2.0-only
"""Write what the registry knows into the documents: docs/protocols.md whole, README.md's table of protocols.

`document_protocols.py` writes them; `make docs` calls it. docs/protocols.md.in has the text around; a protocol's own
text is the docstring of its module. The reasons for which a parser refuses packets are read from bpf/decap.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from mptm.errors import InvalidIntent
from mptm.facts import Path as NetworkPath
from mptm.fields import Field, fields_of, show_value
from mptm.intent import Tunnel, tunnel_from_dict
from mptm.protocols import PROTOCOLS, IpOptions, Protocol, UdpOptions
from mptm.protocols.base import Listener, ListenerKind, Parser
from mptm.reasons import caption_of
from mptm.template import InnerFamily, Template

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "docs" / "protocols.md.in"
DOCUMENT = ROOT / "docs" / "protocols.md"
README = ROOT / "README.md"
NOTE = "<!-- Made by `make docs` from protocols.md.in and src/mptm/protocols: edit those. -->"
INTEROP = ROOT / "docs" / "interop.md"
TABLE_BEGIN, TABLE_END = "<!-- protocols: `make docs` makes the table -->", "<!-- end -->"

EGRESS_MTU = 1500
LINE = 120
ENDS = {4: ("10.30.30.1", "10.30.30.2"), 6: ("fd00:30::1", "fd00:30::2")}
TUNNEL_FIELDS = ("remote", "local", "remote_mac", "local_mac", "egress", "split_horizon", "accept")
KINDS = {ListenerKind.UDP: "UDP", ListenerKind.IP: "IP", ListenerKind.ETHERTYPE: "EtherType"}


# ---- a protocol with options -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A tunnel of a protocol over an underlay, and its header."""

    tunnel: Tunnel
    template: Template


def make(protocol: Protocol[Any], version: int, options: dict[str, Any]) -> Made:
    """A tunnel with these options, and the first example of each that must be given. InvalidIntent: it can't be."""
    local, remote = ENDS[version]
    required = {field.name: field.examples[0] for field in fields_of(protocol.options) if field.required}
    values = {"name": "t", "network": "n", "protocol": protocol.name, "remote": remote}
    tunnel = tunnel_from_dict(values | required | options)
    path = NetworkPath(1, ip_address(local), bytes(6), None, bytes(6), EGRESS_MTU)
    return Made(tunnel, protocol.build(tunnel, path))


def versions_of(protocol: Protocol[Any]) -> tuple[int, ...]:
    """IP versions that it is shown over; without an outer IP header any will do."""
    return protocol.underlays or (4,)


def own_fields(protocol: Protocol[Any]) -> list[Field]:
    """The options that not every protocol like it has, or whose default is its own."""
    shared = {(field.name, repr(field.default)) for field in fields_of(shared_options(protocol))}
    return [
        field
        for field in fields_of(protocol.options)
        if field.name == "port" or (field.name, repr(field.default)) not in shared
    ]


def shared_options(protocol: Protocol[Any]) -> type[Any]:
    """What its options derive from."""
    return UdpOptions if issubclass(protocol.options, UdpOptions) else IpOptions


def settings_of(protocol: Protocol[Any]) -> Iterator[tuple[Field, Any]]:
    """Each option of its own with each example that isn't the default."""
    for field in own_fields(protocol):
        if not field.examples:
            raise SystemExit(
                f"{protocol.name}: option {field.name} has no examples; give its Meta some (examples=[...])"
            )
        default = field.examples[0] if field.required else field.default
        for value in field.examples:
            if value != default and value != field.default:
                yield field, value


# ---- words -------------------------------------------------------------------------------------------------


def table(*rows: tuple[str, ...]) -> str:
    """A table in Markdown; the first row is its heading."""
    lines = ["|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def flag(field: Field) -> str:
    """How an option is written on the command line."""
    words = field.name.replace("_", "-")
    if isinstance(field.default, bool) and field.expected != "on or off":
        return f"`--{words}`, `--no-{words}`"
    return f"`--{words}`"


def with_value(field: Field, value: Any) -> str:
    """An option with a value as it is typed."""
    words = field.name.replace("_", "-")
    if isinstance(value, bool):
        return f"`--{words}`" if value else f"`--no-{words}`"
    shown = ",".join(map(str, value)) if isinstance(value, list) else shown_value(field, value)
    return f"`--{words} {shown}`"


def shown_value(field: Field, value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return show_value(value, field.hexadecimal) if isinstance(value, int) else str(value)


def default_of(field: Field) -> str:
    """The default in words; "" where the description has it."""
    if field.required:
        return "required"
    return "" if field.default in (None, (), "") else shown_value(field, field.default)


def takes(field: Field) -> str:
    """What an option takes, in words."""
    expected = field.expected.removeprefix("a whole number from ")
    return "a switch" if expected == "true or false" else escape(expected)


def wrap(text: str) -> str:
    """A paragraph in lines."""
    return "\n".join(textwrap.wrap(text, LINE, break_long_words=False, break_on_hyphens=False))


def escape(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|")


def option_table(fields: list[Field] | tuple[Field, ...]) -> str:
    """Options with what they take, their defaults, and what they are for."""
    rows = [(flag(each), takes(each), default_of(each), escape(each.description)) for each in fields]
    return table(("option", "takes", "default", ""), *rows)


def listener_text(listener: Listener) -> str:
    """Where packets arrive."""
    kind = ListenerKind(listener.kind)
    number = f"{listener.number:#06x}" if kind is ListenerKind.ETHERTYPE else str(listener.number)
    return f"{KINDS[kind]} {number}"


def listeners_of(protocol: Protocol[Any]) -> list[str]:
    """Where packets arrive with the defaults, and with other options, each once."""
    version = versions_of(protocol)[0]
    if any(field.required and field.name == "port" for field in fields_of(protocol.options)):
        return ["UDP, by `--port`"]
    found: dict[str, None] = {}
    tried = [(field, value) for field, value in settings_of(protocol) if field.name != "port"]
    for options in [{}, *({field.name: value} for field, value in tried)]:
        try:
            made = make(protocol, version, options)
        except InvalidIntent:
            continue
        found |= dict.fromkeys(map(listener_text, protocol.listeners(made.tunnel.options)))
    return list(found)


def told_apart_by(protocol: Protocol[Any]) -> str:
    """What tells two tunnels of the same ends apart: the docstring of `tunnel_id`."""
    text = (inspect.getdoc(protocol.tunnel_id) or "").rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def payload_text(families: InnerFamily | None) -> str:
    """What a tunnel carries."""
    if families is None:
        return "Ethernet"
    names = {InnerFamily.IPV4: "IPv4", InnerFamily.IPV6: "IPv6"}
    return names.get(families, "IP")


def made_in_all_ways(protocol: Protocol[Any]) -> Iterator[Made]:
    """What it makes by default, and with each setting that goes alone."""
    version = versions_of(protocol)[0]
    for options in [{}, *({field.name: value} for field, value in settings_of(protocol))]:
        with contextlib.suppress(InvalidIntent):
            yield make(protocol, version, options)


def payloads_of(protocol: Protocol[Any]) -> str:
    """What it carries by default, and what else."""
    found: dict[str, None] = {}
    for made in made_in_all_ways(protocol):
        found[payload_text(protocol.inner_families(made.tunnel.options))] = None
    if "IP" in found:
        found = {name: None for name in found if name not in ("IPv4", "IPv6")}
    return " or ".join(found)


def underlays_of(protocol: Protocol[Any]) -> str:
    """What it runs over."""
    return ", ".join(f"IPv{version}" for version in protocol.underlays) or "Ethernet"


def pair(protocol: Protocol[Any], values: dict[int, str]) -> str:
    """A value for IPv4 and one for IPv6; one alone without an outer IP header."""
    return ", ".join(values.get(v, "-") for v in (4, 6)) if protocol.underlays else values[4]


def in_order() -> list[Protocol[Any]]:
    """The protocols by title."""
    return sorted(PROTOCOLS.values(), key=lambda protocol: protocol.title.lower())


def anchor(protocol: Protocol[Any]) -> str:
    """Where its section is."""
    return "#" + re.sub(r"[^\w -]", "", protocol.title.lower()).replace(" ", "-")


# ---- tables of all protocols -------------------------------------------------------------------------------


def summary() -> str:
    """All protocols, a row each."""
    heading = (
        "protocol", "`--protocol`", "specified in", "over", "arrives at", "told apart by", "carries",
        "overhead over IPv4, IPv6", "inner MTU", "GSO at TC",
    )  # fmt: skip
    rows = []
    for protocol in in_order():
        made = {version: make(protocol, version, {}) for version in versions_of(protocol)}
        apart = told_apart_by(protocol)
        rows.append(
            (
                f"[{protocol.title}]({anchor(protocol)})",
                f"`{protocol.name}`",
                protocol.reference,
                underlays_of(protocol),
                ", ".join(listeners_of(protocol)),
                apart if apart.startswith("none") else re.split(r"[;:,]", apart)[0],
                payloads_of(protocol),
                pair(protocol, {v: str(each.template.overhead()) for v, each in made.items()}),
                pair(protocol, {v: str(each.template.inner_mtu(EGRESS_MTU)) for v, each in made.items()}),
                pair(protocol, {v: each.template.gso_text for v, each in made.items()}),
            )
        )
    return table(heading, *rows)


def seen_with() -> dict[str, str]:
    """Which implementations a protocol was seen working with, by docs/interop.md, by the protocol's name."""
    lines = (
        INTEROP.read_text(encoding="utf-8").partition("\n## Protocols and peers\n")[2].strip().splitlines()
    )
    heading, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    peers = [
        re.sub("^The running kernel", "Linux", peer).replace(", userspace datapath", "")
        for peer in heading[2:]
    ]
    found: dict[str, str] = {}
    for row in rows:
        if len(row) != len(heading):
            break
        works = (
            peer if cell == "yes" else f"{peer} (partly)"
            for peer, cell in zip(peers, row[2:], strict=True)
            if cell.startswith(("yes", "partly"))
        )
        found[row[1].strip("`")] = ", ".join(works)
    return found


def readme_table() -> str:
    """The table of README.md."""
    seen = seen_with()
    heading = (
        "protocol",
        "what",
        "specified in",
        "over",
        "carries",
        "overhead over IPv4, IPv6",
        "seen working with",
    )
    rows = []
    for protocol in in_order():
        made = {version: make(protocol, version, {}) for version in versions_of(protocol)}
        rows.append(
            (
                f"[{protocol.title}](docs/protocols.md{anchor(protocol)})",
                module_text(protocol).what,
                protocol.reference,
                underlays_of(protocol),
                payloads_of(protocol),
                pair(protocol, {v: str(each.template.overhead()) for v, each in made.items()}),
                seen.get(protocol.name, ""),
            )
        )
    return table(heading, *rows)


# ---- what refuses packets ----------------------------------------------------------------------------------

FUNCTION = re.compile(
    r"^(?:static __always_inline|__noinline) [^;{]*?(\w+)\([^;{]*\)\n\{\n(.*?)^\}", re.M | re.S
)
REASON = re.compile(r"\b(?:REASON|REFUSED)_[A-Z0-9_]+\b")


@cache
def c_functions() -> dict[str, tuple[Path, str]]:
    """The functions of the data plane that read tunnel headers: name -> file, body."""
    found: dict[str, tuple[Path, str]] = {}
    for path in (ROOT / "bpf" / "decap.h", *sorted((ROOT / "bpf" / "decap").glob("*.h"))):
        found |= {name: (path, body) for name, body in FUNCTION.findall(path.read_text())}
    return found


@cache
def parse_functions() -> dict[str, str]:
    """Which function reads what a listener's parser gets: PARSER_... -> name."""
    body = c_functions()["parse_tunnel_header"][1]
    return dict(re.findall(r"case (PARSER_\w+):\s+return (\w+)\(", body))


def reasons_from(function: str) -> dict[str, None]:
    """The reasons that a function gives, and those that it calls."""
    seen: dict[str, None] = {}
    found: dict[str, None] = {}

    def walk(name: str) -> None:
        if name in seen or name not in c_functions():
            return
        seen[name] = None
        body = c_functions()[name][1]
        found.update(dict.fromkeys(REASON.findall(body)))
        for called in re.findall(r"\b(\w+)\(", body):
            walk(called)

    walk(function)
    return found


def parsers_of(protocol: Protocol[Any]) -> dict[str, None]:
    """The functions that read its headers."""
    found: dict[str, None] = {}
    for made in made_in_all_ways(protocol):
        for listener in protocol.listeners(made.tunnel.options):
            found[parse_functions()[f"PARSER_{Parser(listener.parser).name}"]] = None
    return found


def reasons_of(protocol: Protocol[Any]) -> list[str]:
    """Why packets that arrive where its do are refused, beside what every protocol has: names as in C."""
    found: dict[str, None] = {}
    for function in parsers_of(protocol):
        found |= reasons_from(function)
        if "checksum_at =" in c_functions()[function][1]:
            found["REASON_GRE_CHECKSUM"] = None
        if function == "parse_l2tp":
            found |= reasons_from("parse_l2tp_cookie")
    if protocol.name == "nvgre":
        found["REASON_INNER_TAG"] = None
    return [name for name in found if name not in ("REASON_NONE", "REASON_BAD_INNER")]


# ---- one protocol ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModuleText:
    """The docstring of a protocol's module: what it is, where that stands, the header as drawn, and the rest."""

    what: str
    source: str
    wire: str
    paragraphs: tuple[str, ...]


def module_text(protocol: Protocol[Any]) -> ModuleText:
    """The docstring in its parts."""
    module = importlib.import_module(type(protocol).__module__)
    first, wire, *rest = (inspect.getdoc(module) or "").split("\n\n")
    match = re.fullmatch(rf"{re.escape(protocol.title)}: (.*) \((.*)\)\.", " ".join(first.split()))
    if match is None:
        raise SystemExit(
            f"{module.__name__}: the docstring doesn't begin with `{protocol.title}: what it is (source).`"
        )
    return ModuleText(match[1], match[2], wire, tuple(" ".join(each.split()) for each in rest))


def sizes(protocol: Protocol[Any]) -> str:
    """Overhead and inner MTU with the defaults, and with each option that changes them."""
    versions = versions_of(protocol)
    columns = [f"over IPv{v}: " for v in versions] if protocol.underlays else [""]
    heading = tuple(f"{column}{what}" for column in columns for what in ("overhead", "inner MTU"))
    plain = {version: make(protocol, version, {}).template.overhead() for version in versions}

    def cells(found: dict[int, int]) -> tuple[str, ...]:
        return tuple(str(n) for v in versions for n in (found[v], EGRESS_MTU - found[v]))

    rows: dict[tuple[str, ...], None] = {}
    for field, value in settings_of(protocol):
        try:
            found = {v: make(protocol, v, {field.name: value}).template.overhead() for v in versions}
        except InvalidIntent:
            continue
        if found == plain:
            continue
        same_number = (
            isinstance(value, int) and not isinstance(value, bool) and not isinstance(field.default, int)
        )
        shown = f"{flag(field)}" if same_number else with_value(field, value)
        rows[shown, *cells(found)] = None
    return table(("", *heading), ("defaults", *cells(plain)), *rows)


def section(protocol: Protocol[Any]) -> str:
    """All about a protocol."""
    text = module_text(protocol)
    module = type(protocol).__module__.rpartition(".")[2]
    files = dict.fromkeys(c_functions()[name][0] for name in parsers_of(protocol))
    readers = ", ".join(f"[{file.name}](../bpf/decap/{file.name})" for file in files)
    fields = own_fields(protocol)
    reasons = [(f"`{name}`", caption_of(name)) for name in reasons_of(protocol)]
    lead = (
        f"`--protocol {protocol.name}`: {text.what} ({text.source}). "
        f"[{module}.py](../src/mptm/protocols/{module}.py) makes the header, {readers} reads it."
    )
    parts = [
        f"### {protocol.title}",
        wrap(lead),
        f"```text\n{text.wire}\n```",
        *map(wrap, text.paragraphs),
        table(
            ("", ""),
            ("specified in", protocol.reference),
            ("over", underlays_of(protocol)),
            ("arrives at", ", ".join(listeners_of(protocol))),
            ("told apart by", told_apart_by(protocol)),
            ("carries", payloads_of(protocol)),
        ),
        option_table(fields) if fields else "It has no options of its own.",
        sizes(protocol),
        table(("reason", "when"), *reasons) if reasons else "Its parser has no reasons of its own.",
    ]
    return "\n\n".join(parts)


# ---- the documents -----------------------------------------------------------------------------------------


def shared_udp_fields() -> list[Field]:
    """Options that those over UDP have beyond those over IP."""
    known = {field.name for field in fields_of(IpOptions)}
    return [field for field in fields_of(UdpOptions) if field.name not in known]


def protocols_document() -> str:
    """docs/protocols.md."""
    tunnel = {field.name: field for field in fields_of(Tunnel)}
    parts = {
        "summary": summary(),
        "tunnel": option_table([tunnel[name] for name in TUNNEL_FIELDS]),
        "ip": option_table(fields_of(IpOptions)),
        "udp": option_table(shared_udp_fields()),
        "protocols": "\n\n".join(map(section, in_order())),
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], TEMPLATE.read_text(encoding="utf-8"))
    return f"{NOTE}\n\n{text}"


def readme(old: str) -> str:
    """README.md with its table of protocols as it should be."""
    before, begin, rest = old.partition(TABLE_BEGIN)
    _, end, after = rest.partition(TABLE_END)
    if not begin or not end:
        raise SystemExit(f"README.md has no {TABLE_BEGIN} ... {TABLE_END}")
    return f"{before}{begin}\n{readme_table()}\n{end}{after}"


def main() -> None:
    """Write the documents that differ, and say which."""
    for path, text in (
        (DOCUMENT, protocols_document()),
        (README, readme(README.read_text(encoding="utf-8"))),
    ):
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
