# SPDX-License-Identifier: GPL-2.0-only
"""A packet from its description in scapy's syntax: `Ether()/IP(dst="10.250.1.101")/UDP(dport=53)/b"hello"`.

Nothing of it is evaluated as Python: it is parsed, and only layers with literal values, joined by `/`, are taken.
Nobody is asked for an address either, and no route is looked up: what is left out is known of the port, or is an error.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import ipaddress
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import ModuleType
from typing import Any, NoReturn

from mptm.errors import InvalidPacket, MptmError
from mptm.fields import mac_bytes

DESCRIPTION_MAX = 1 << 16
"""Characters."""

PAYLOAD_MAX = 1 << 16
"""Bytes that a repeated literal comes to."""

SOMEBODY, SOMEBODY_ELSE = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
"""MAC addresses of whom nothing is known: source and destination of frames in a tunnel."""

_BROADCAST = b"\xff" * 6
_BASIC = ("scapy.layers.l2", "scapy.layers.inet", "scapy.layers.inet6", "scapy.packet")
_FURTHER = (
    "scapy.layers.vxlan",
    "scapy.layers.dns",
    "scapy.layers.dhcp",
    "scapy.layers.dhcp6",
    "scapy.layers.sctp",
    "scapy.layers.ntp",
    "scapy.contrib.geneve",
    "scapy.contrib.mpls",
    "scapy.contrib.nsh",
    "scapy.contrib.erspan",
    "scapy.contrib.etherip",
    "scapy.contrib.gtp",
)
"""Imported one after the other until a layer is found: they take long."""

_resolving = threading.Lock()


@dataclass(frozen=True)
class Defaults:
    """What a description may leave out at one port.

    `sources` are the addresses of who sends there by IP version; empty where nobody knows.
    """

    source_mac: bytes
    destination_mac: bytes
    sources: Mapping[int, str] = field(default_factory=dict)


def build_described(text: str, defaults: Defaults) -> bytes:
    """The frame that a description says. Raises InvalidPacket; MptmError where scapy isn't installed."""
    tree = parse_description(text)
    builder = _Builder(text, {name: _find_layer(name) for name in _names(tree)})
    with _nobody_asked():
        try:
            packet = _with_ethernet(builder.layers(tree))
            _fill_in(packet, defaults)
            if packet.__iterlen__() != 1:
                raise InvalidPacket(
                    "the description says several packets: give each field one value, not a list or a range"
                )
            return bytes(packet)
        except MptmError:
            raise
        except Exception as error:  # scapy raises whatever comes up
            said = " ".join(str(error).split("\n")[:2]) or type(error).__name__
            raise InvalidPacket(f"scapy can't make the packet: {said}") from None


def parse_description(text: str) -> ast.expr:
    """The description as a tree. Raises InvalidPacket where it isn't layers joined by `/`, as far as that shows."""
    if len(text) > DESCRIPTION_MAX:
        raise InvalidPacket(f"the description is longer than {DESCRIPTION_MAX} characters")
    try:
        tree = ast.parse(_one_line(text), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or "too deep"
        raise InvalidPacket(
            f"the description can't be read: {reason}",
            """it is like 'Ether()/IP(dst="10.250.1.101")/UDP(dport=53)'""",
        ) from None
    leftmost = tree
    while isinstance(leftmost, ast.BinOp):
        leftmost = leftmost.left
    if not isinstance(leftmost, ast.Call):
        _refuse(text, leftmost, "a description begins with a layer such as Ether()")
    return tree


def require_scapy() -> None:
    """Raise MptmError where scapy isn't installed."""
    _import("scapy.config")


def dissect(frame: bytes) -> str:
    """A frame as scapy's `show` prints it. Raises MptmError where scapy isn't installed."""
    for name in (*_BASIC, *_FURTHER):
        _import(name)
    from scapy.layers.l2 import Ether

    return str(Ether(frame).show(dump=True)).rstrip()


def _import(name: str) -> ModuleType:
    logging.getLogger("scapy").setLevel(logging.ERROR)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "scapy" or name == error.name != "scapy":
            raise
        raise MptmError("this needs scapy, which isn't installed", "pip install 'mptm[trace]'") from None


def _one_line(text: str) -> str:
    """A description that was broken into lines, with a backslash at their ends or without."""
    return text.replace("\\\n", " ").replace("\n", " ").strip()


def _names(tree: ast.expr) -> list[str]:
    """What is called by a plain name."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [name.id for name in calls if isinstance(name, ast.Name)]


def _refuse(text: str, node: ast.expr, rule: str) -> NoReturn:
    segment = ast.get_source_segment(_one_line(text), node) or "that"
    shown = segment if len(segment) <= 40 else f"{segment[:37]}..."
    raise InvalidPacket(f"{shown} has no place in the description: {rule}")


class _Builder:
    """Makes scapy's layers of a parsed description; `kinds` are the layers by name."""

    def __init__(self, text: str, kinds: Mapping[str, Any]) -> None:
        self._text = text
        self._kinds = kinds

    def layers(self, node: ast.expr) -> Any:
        """A layer, or several joined by `/`."""
        if isinstance(node, ast.Call):
            return self._layer(node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            upper = self.layers(node.left)
            if isinstance(node.right, ast.Call):
                return upper / self._layer(node.right)
            payload = self._value(node.right)
            if isinstance(payload, str | bytes):
                return upper / payload
        _refuse(self._text, node, "only layers, and text or bytes as payload, are joined by /")

    def _layer(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name):
            _refuse(self._text, node.func, "a layer is called by its plain name")
        kind = self._kinds[node.func.id]
        fields = {each.name: each for each in kind.fields_desc}
        values: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg not in fields:
                shown = f"field {keyword.arg}" if keyword.arg else "room for **"
                raise InvalidPacket(
                    f"{kind.__name__} has no {shown}", f"it has {', '.join(fields) or 'no fields'}"
                )
            values[keyword.arg] = self._value(keyword.value)
            _check_address(kind, fields[keyword.arg], values[keyword.arg])
        if node.args:
            if kind.__name__ not in ("Raw", "Padding") or len(node.args) > 1 or values:
                _refuse(self._text, node.args[0], f"the fields of {kind.__name__} are given by name")
            values["load"] = self._value(node.args[0])
        return kind(**values)

    def _value(self, node: ast.expr) -> Any:
        """A literal, or layers inside of a layer."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes | int | float | bool | None):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            number = self._value(node.operand)
            if isinstance(number, int | float):
                return -number
        if isinstance(node, ast.List):
            return [self._value(each) for each in node.elts]
        if isinstance(node, ast.Tuple):
            return tuple(self._value(each) for each in node.elts)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            return self._repeated(node)
        if isinstance(node, ast.Call) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)):
            return self.layers(node)
        _refuse(self._text, node, "the value of a field is a literal")

    def _repeated(self, node: ast.BinOp) -> str | bytes:
        """`b"x" * 1400`."""
        left, right = self._value(node.left), self._value(node.right)
        if not isinstance(left, str | bytes) or type(right) is not int:
            _refuse(self._text, node, "only text or bytes are repeated")
        if len(left) * right > PAYLOAD_MAX:
            raise InvalidPacket(f"{len(left)} bytes times {right} are more than any packet has")
        return left * right


def _check_address(kind: Any, field_: Any, value: Any) -> None:
    """InvalidPacket: text that is no address, where one belongs and scapy would make something else of it."""
    from scapy.fields import IPField, MACField
    from scapy.layers.l2 import ARP

    if not isinstance(value, str):
        return
    # What an ARP packet has there depends on its other fields; for us it is Ethernet and IPv4.
    forms = [form for form, _ in getattr(field_, "flds", ())] if kind is ARP else [field_]
    expected = ""
    read: Callable[[str], object] | None = None
    if any(isinstance(getattr(form, "fld", form), MACField) for form in forms):
        expected, read = "MAC", mac_bytes
    elif kind is ARP and any(isinstance(form, IPField) for form in forms):
        expected, read = "IPv4", ipaddress.IPv4Address
    try:
        if read is not None:
            read(value)
    except ValueError:
        raise InvalidPacket(
            f"{value!r} as {field_.name} of {kind.__name__} is no {expected} address"
        ) from None


def _find_layer(name: str) -> Any:
    layer = _import("scapy.packet").Packet
    known: dict[str, str] = {}
    for module_name in (*_BASIC, *_FURTHER):
        module = _import(module_name)
        kind = getattr(module, name, None)
        if isinstance(kind, type) and issubclass(kind, layer) and kind is not layer:
            return kind
        known |= {
            each.lower(): each
            for each, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, layer) and value is not layer
        }
    close = get_close_matches(name.lower(), known, n=1)
    raise InvalidPacket(
        f"there is no layer {name}",
        f"did you mean {known[close[0]]}?" if close else "names are those of scapy",
    )


def _with_ethernet(packet: Any) -> Any:
    from scapy.layers.l2 import Dot3, Ether

    return packet if isinstance(packet, Ether | Dot3) else Ether() / packet


def _fill_in(packet: Any, defaults: Defaults) -> None:
    """Addresses that scapy would look for in the tables of this machine, or ask its networks for."""
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import ARP, Ether

    frames = addressed = 0
    for layer in packet.iterpayloads():
        if isinstance(layer, Ether):
            frames += 1
            source, destination = (
                (defaults.source_mac, defaults.destination_mac) if frames == 1 else (SOMEBODY, SOMEBODY_ELSE)
            )
            _default(layer, "src", source.hex(":"))
            _default(layer, "dst", (_group_mac(layer) or destination).hex(":"))
        elif isinstance(layer, ARP):
            _default(layer, "hwsrc", (defaults.source_mac if frames < 2 else SOMEBODY).hex(":"))
            _require(layer, "psrc", None if addressed else defaults.sources.get(4))
            _require(layer, "pdst", None)
            addressed += 1
        elif isinstance(layer, IP | IPv6):
            version = 4 if isinstance(layer, IP) else 6
            _require(layer, "src", None if addressed else defaults.sources.get(version))
            _require(layer, "dst", None)
            addressed += 1


def _default(layer: Any, name: str, value: str) -> None:
    if name not in layer.fields:
        layer.setfieldval(name, value)


def _require(layer: Any, name: str, value: str | None) -> None:
    if name in layer.fields or name in layer.overloaded_fields:
        return
    if value is None:
        raise InvalidPacket(f"{type(layer).__name__}() needs {name}: nothing here says which address that is")
    layer.setfieldval(name, value)


def _group_mac(frame: Any) -> bytes | None:
    """The group that a frame is for by what is in it (RFC 1112 §6.4, RFC 2464 §7); None: a single station."""
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import ARP, Dot1Q

    inside = frame.payload
    while isinstance(inside, Dot1Q):
        inside = inside.payload
    if isinstance(inside, ARP):
        return _BROADCAST if inside.op == 1 else None
    if not isinstance(inside, IP | IPv6):
        return None
    try:
        address = ipaddress.ip_address(str(inside.fields.get("dst") or inside.overloaded_fields.get("dst")))
    except ValueError:
        return None
    if str(address) == "255.255.255.255":
        return _BROADCAST
    if not address.is_multicast:
        return None
    if address.version == 4:
        return b"\x01\x00\x5e" + bytes((address.packed[1] & 0x7F,)) + address.packed[2:]
    return b"\x33\x33" + address.packed[-4:]


class _Nobody:
    """Stands for scapy's neighbours and routes: a layer that asks them leaves something out."""

    def resolve(self, _: Any, asking: Any) -> NoReturn:
        raise InvalidPacket("a frame of the description needs its MAC addresses")

    def route(self, *_: Any, **__: Any) -> NoReturn:
        raise InvalidPacket("a layer of the description needs its addresses")


@contextlib.contextmanager
def _nobody_asked() -> Iterator[None]:
    """Within the block scapy can't ask the network or the machine for anything: names, neighbours, routes."""
    for name in ("scapy.route", "scapy.route6", *_BASIC):
        _import(name)
    conf: Any = _import("scapy.config").conf
    net: Any = _import("scapy.base_classes").Net

    def name2addr(_: type, name: str) -> str:
        raise InvalidPacket(f"an address of the description is a name or a net ({name}): neither is taken")

    with _resolving:
        before = conf.neighbor, conf.route, conf.route6, vars(net)["name2addr"]
        conf.neighbor = conf.route = conf.route6 = _Nobody()
        net.name2addr = classmethod(name2addr)
        try:
            yield
        finally:
            conf.neighbor, conf.route, conf.route6, net.name2addr = before
