# SPDX-License-Identifier: GPL-2.0-only
"""tshark and scapy, which nobody here wrote, read what is sent: nothing malformed, no wrong length or checksum.

Each protocol with each value of each option that its fields know, over each underlay, with each kind of inner packet.
Among the packets that tshark gets are some that were broken on purpose: about those it must complain.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from packets import VARIANTS, inner_kinds, required_options, set_outer, tunnel
from scapy.contrib.erspan import ERSPAN
from scapy.contrib.etherip import EtherIP
from scapy.contrib.geneve import GENEVE
from scapy.contrib.gtp import GTP_U_Header
from scapy.contrib.mpls import MPLS
from scapy.contrib.nsh import NSH
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrSegmentRouting
from scapy.layers.l2 import GRE, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, bind_layers
from scapy.utils import wrpcap
from world import OURS, REMOTE, THEIRS, World

from mptm.errors import InvalidIntent
from mptm.fields import fields_of
from mptm.intent import Route
from mptm.protocols import PROTOCOLS

TSHARK = shutil.which("tshark")
INNER = {
    name: packet
    for name, packet in inner_kinds().items()
    if name not in ("fragment4", "fragment6", "smallest4", "padded4")
}
"""Fragments and what has no transport header have nothing that could be verified."""
FEW = ("udp4", "tcp6", "odd4", "qinq6")
"""Kinds that are enough for one option more."""
ELSEWHERE = 40000
"""A port that no protocol has by default."""

SETTINGS = {
    "ip.check_checksum": "TRUE",
    "udp.check_checksum": "TRUE",
    "tcp.check_checksum": "TRUE",
    "tcp.analyze_sequence_numbers": "FALSE",
}
WORKLOADS = ("4 NOP in a row - a router may have removed some options",)
"""What tshark wonders about, and the workload really sent."""
WARNING = 6291456
"""The severity of a warning of tshark's expert; that of an error is more."""


# ---- what is sent ------------------------------------------------------------------------------------------


def option_sets(name: str) -> dict[str, dict[str, Any]]:
    """Each variant of the protocol, and each of its options with each value that its field has for an example."""
    sets: dict[str, dict[str, Any]] = {name: {}}
    sets |= {variant: options for variant, (owner, options) in VARIANTS.items() if owner == name}
    for field in fields_of(PROTOCOLS[name].options):
        if field.name == "to_stack":
            continue  # the kernel sends it, or doesn't
        examples = (ELSEWHERE,) if field.name == "port" else field.examples
        for value in examples:
            if value != field.default:
                sets[f"{name} {field.name}={value}"] = {field.name: value}
    return sets


@dataclass(frozen=True)
class Case:
    """A packet, how tshark is to read it, and whether it is to complain."""

    label: str
    protocol: str
    options: dict[str, Any]
    """All that aren't at their default."""
    version: int
    """IP version of the inner packet."""
    wire: bytes
    header_len: int
    """Bytes in front of the inner frame or packet."""
    broken: bool = False

    @property
    def reading(self) -> tuple[str, ...]:
        """Arguments for tshark: what the packet doesn't say."""
        options = self.options
        port = options.get("port")
        inner = {4: "ip", 6: "ipv6"}[self.version]
        decode = {
            "fou": f"udp.port=={port},{inner}",
            "gre-udp": f"udp.port=={port or 4754},gre",
            "gue": f"udp.port=={port or 6080},{'data' if self.is_unreadable else inner}",
            "l2tp": f"udp.port=={port or 1701},l2tp",
        }
        names = {"vxlan-gbp": "vxlan", "nsh": "vxlan_gpe", "vxlan-gpe": "vxlan_gpe", "gtpu": "gtp"}
        if self.protocol in decode:
            read = ["-d", decode[self.protocol]]
        else:
            read = ["-d", f"udp.port=={port},{names.get(self.protocol, self.protocol)}"] if port else []
        settings = SETTINGS | {
            "udp.ignore_ipv6_zero_checksum": "FALSE" if options.get("udp_checksum", True) else "TRUE"
        }
        if self.protocol == "l2tp":
            read += ["-d", "l2tp.pw_type==0,eth"]
            settings |= {
                "l2tp.cookie_size": COOKIES[len(options.get("cookie", "")) // 2],
                "l2tp.l2_specific": SUBLAYERS[options.get("l2spec_type", "default")],
            }
        return (*read, *(word for key, value in settings.items() for word in ("-o", f"{key}:{value}")))

    @property
    def is_unreadable(self) -> bool:
        """Whether tshark has nobody for the header, and judges what is in front of it."""
        return self.protocol == "gue" and not self.options.get("variant")

    @property
    def layers(self) -> tuple[str, ...]:
        """What tshark must have found, by the names that it has for it."""
        if self.is_unreadable:
            return ("udp",)
        layer = LAYERS.get(self.protocol, "eth")
        if (self.protocol, self.options.get("tpid")) in (("vlan", 0x88A8), ("qinq", None)):
            layer = "ieee8021ad"
        if (
            self.protocol == "srv6"
            and self.options.get("mode") == "reduced"
            and "segments" not in self.options
        ):
            layer = "ipv6"
        return layer, "ip.src" if self.version == 4 else "ipv6.src"


COOKIES = {0: "0 Byte Cookie (None)", 4: "4 Byte Cookie", 8: "8 Byte Cookie"}
SUBLAYERS = {"default": "Default L2-Specific", "none": "None"}
LAYERS = {
    "erspan": "erspan", "etherip": "etherip", "fou": "udp", "geneve": "geneve", "gre": "gre", "gre-udp": "gre",
    "gretap": "gre", "gtpu": "gtp", "gue": "udp", "ip4ip6": "ipv6", "ip6ip6": "ipv6", "ipip": "ip", "l2tp": "l2tp",
    "mpls": "mpls", "nsh": "nsh", "nvgre": "gre", "qinq": "vlan", "sit": "ipv6", "srv6": "ipv6.routing.type",
    "vlan": "vlan", "vxlan": "vxlan", "vxlan-gbp": "vxlan", "vxlan-gpe": "vxlan",
}  # fmt: skip


def cases(node: World, name: str) -> Iterator[Case]:
    """Everything that a protocol sends."""
    for label, options in option_sets(name).items():
        kinds = INNER if not options or label in VARIANTS else {kind: INNER[kind] for kind in FEW}
        for underlay in PROTOCOLS[name].underlays or (4,):
            fields = tunnel(label if label in VARIANTS else name, underlay, remotes=REMOTE, **options)
            routes = [Route(network="blue", prefix=THEIRS[version], via="to-node2") for version in (4, 6)]
            try:
                (record,) = node.apply(fields, *routes).tables.tunnels.values()
            except InvalidIntent as error:
                assert "outer header of" in error.message, label
                continue
            for kind, packet in kinds.items():
                version = 6 if IPv6 in packet else 4
                if record.inner_families and not record.inner_families & {4: 1, 6: 2}[version]:
                    continue
                sent = node.send("c1", packet)
                assert sent.verdict == "REDIRECT", (label, underlay, kind)
                case = Case(
                    f"{label} over IPv{underlay}, {kind}",
                    name,
                    required_options(name) | options,
                    version,
                    sent.data,
                    record.outer_len,
                )
                yield case
                if case.is_unreadable:
                    yield peeled(case, is_frame=not record.inner_families)


def peeled(case: Case, *, is_frame: bool) -> Case:
    """What is inside of a packet, for a reader that can't look there."""
    wire = case.wire[case.header_len :]
    if not is_frame:
        wire = case.wire[:12] + (b"\x08\0" if case.version == 4 else b"\x86\xdd") + wire
    inside = "ipip" if case.version == 4 else "ip6ip6"
    return Case(f"{case.label}, inside", inside, {}, case.version, wire, 14)


def broken(case: Case) -> Iterator[Case]:
    """The packet with one fault each, of which any reader should complain."""
    wire = case.wire

    def faulty(what: str, data: bytes) -> Case:
        return Case(
            f"{case.label}: {what}",
            case.protocol,
            case.options,
            case.version,
            data,
            case.header_len,
            broken=True,
        )

    is_summed = wire[12:14] == b"\x86\xdd" and case.options.get("udp_checksum", True)
    if is_summed or not case.is_unreadable:
        yield faulty("another last byte", wire[:-1] + bytes([wire[-1] ^ 0x55]))
    yield faulty("cut short", wire[:-3])
    if wire[12:14] == b"\x08\x00":
        yield faulty("IPv4 checksum", set_outer(wire, 24, bytes([wire[24] ^ 1])))
    if PROTOCOLS[case.protocol].over_ip:
        at = 34 if wire[12:14] == b"\x08\x00" else 54
        is_udp = wire[23 if at == 34 else 20] == 17
        if is_udp:
            longer = int.from_bytes(wire[at + 4 : at + 6]) + 1
            yield faulty("UDP length", set_outer(wire, at + 4, longer.to_bytes(2)))
        if is_udp and at == 54 and case.options.get("udp_checksum", True):
            yield faulty("UDP checksum", set_outer(wire, at + 6, bytes([wire[at + 6] ^ 1])))
            yield faulty("no UDP checksum", set_outer(wire, at + 6, bytes(2)))
    if case.options.get("checksum"):
        at = case.header_len - 4 * sum(
            map(bool, (True, case.options.get("key"), case.options.get("sequence")))
        )
        yield faulty("GRE checksum", set_outer(wire, at, bytes([wire[at] ^ 1])))


# ---- tshark ------------------------------------------------------------------------------------------------


def dissect(path: Path, reading: tuple[str, ...]) -> list[dict[str, Any]]:
    command = [str(TSHARK), "-r", str(path), "-T", "json", "--no-duplicate-keys", "-n"]
    command += ["--disable-protocol", "dns", *reading]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [packet["_source"]["layers"] for packet in json.loads(done.stdout)]


def complaints(layers: Any, where: str = "") -> list[str]:
    """Names of fields that say that something is wrong."""
    found: list[str] = []
    if isinstance(layers, dict):
        for name, value in layers.items():
            if "malformed" in name or name == "_ws.short":
                found.append(name)
            if name.endswith(".checksum.status"):
                found += [f"{where}.{name}" for each in listed(value) if each not in (GOOD, NOT_PRESENT)]
            if name == "_ws.expert":
                found += [
                    f"{where}: {each['_ws.expert.message']}"
                    for each in listed(value)
                    if int(each["_ws.expert.severity"]) >= WARNING
                    and each["_ws.expert.message"] not in WORKLOADS
                ]
            found += complaints(value, name)
    elif isinstance(layers, list):
        for each in layers:
            found += complaints(each, where)
    return found


GOOD, NOT_PRESENT = "1", "3"


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def holds(layers: Any, name: str) -> bool:
    if isinstance(layers, dict):
        return name in layers or any(holds(value, name) for value in layers.values())
    return isinstance(layers, list) and any(holds(each, name) for each in layers)


@pytest.mark.skipif(TSHARK is None, reason="tshark is not installed")
@pytest.mark.parametrize("name", PROTOCOLS)
def test_tshark_finds_nothing_wrong_but_what_was_broken(node: World, tmp_path: Path, name: str):
    sent = list(cases(node, name))
    groups: dict[tuple[str, ...], list[Case]] = {}
    for case in sent:
        groups.setdefault(case.reading, []).append(case)
    wrong: list[str] = []
    unnoticed: list[str] = []
    for reading, group in groups.items():
        summed = [case for case in group if not case.label.endswith("without checksum")]
        one_of_each = {(str(case.options), case.wire[12:14]): case for case in summed}.values()
        everything = [*group, *(each for case in one_of_each for each in broken(case))]
        path = tmp_path / "sent.pcap"
        wrpcap(str(path), [Ether(case.wire) for case in everything])
        for case, layers in zip(everything, dissect(path, reading), strict=True):
            found = complaints(layers)
            found += [f"no {layer}" for layer in case.layers if not holds(layers, layer) and not case.broken]
            if found and not case.broken:
                wrong.append(f"{case.label}: {found}\n{case.wire.hex()}")
            if case.broken and not found:
                unnoticed.append(case.label)
    assert not wrong, "\n".join(wrong[:5])
    assert not unnoticed, "tshark takes these packets for good:\n" + "\n".join(unnoticed)


# ---- scapy -------------------------------------------------------------------------------------------------

bind_layers(IPv6, EtherIP, nh=97)  # scapy expects it over IPv4 only
bind_layers(IPv6ExtHdrSegmentRouting, Ether, nh=143)

SCAPY = {
    "erspan": ERSPAN, "etherip": EtherIP, "geneve": GENEVE, "gre": GRE, "gretap": GRE, "nvgre": GRE,
    "gtpu": GTP_U_Header, "ip4ip6": IPv6, "ip6ip6": IPv6, "ipip": IP, "sit": IPv6, "mpls": MPLS, "nsh": NSH,
    "srv6": IPv6, "vlan": Dot1Q, "qinq": Dot1Q, "vxlan": VXLAN, "vxlan-gbp": VXLAN, "vxlan-gpe": VXLAN,
}  # fmt: skip
"""Who reads the header, of those protocols that scapy has."""
COMPUTED = {
    IP: ("len", "chksum"), IPv6: ("plen",), UDP: ("len", "chksum"), TCP: ("chksum",), ICMP: ("chksum",),
    ICMPv6EchoRequest: ("cksum",), GRE: ("chksum",), GTP_U_Header: ("length",), GENEVE: ("optionlen",),
    IPv6ExtHdrSegmentRouting: ("len",),
}  # fmt: skip
"""Fields that scapy fills in itself where they aren't given."""


def rebuilt(packet: Packet) -> bytes:
    """The packet as scapy would have made it: lengths and checksums are its own."""
    copy = packet.copy()
    for layer in layers_of(copy):
        for field in COMPUTED.get(type(layer), ()):
            if field != "chksum" or layer.fields.get(field):
                layer.delfieldval(field)
        layer.raw_packet_cache = None
    return bytes(copy)


def layers_of(packet: Packet) -> Iterator[Packet]:
    """The layers that scapy found, outermost first."""
    while packet:
        yield packet
        packet = packet.payload


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name in SCAPY])
def test_scapy_makes_the_same_packet_of_what_it_reads(node: World, name: str):
    wrong: list[str] = []
    for case in cases(node, name):
        if "port" in case.options and PROTOCOLS[name].over_ip:
            continue  # scapy knows a header by its port
        read = Ether(case.wire)
        found = list(layers_of(read))
        has_header = any(isinstance(layer, SCAPY[name]) for layer in found)
        has_inner = any(getattr(layer, "src", None) == OURS[case.version] for layer in found)
        if not has_header or not has_inner or rebuilt(read) != case.wire:
            wrong.append(f"{case.label}\n{read!r}\n{case.wire.hex()}\n{rebuilt(read).hex()}")
    assert not wrong, f"{len(wrong)}\n" + "\n".join(wrong[:3])
