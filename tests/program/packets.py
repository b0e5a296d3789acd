# SPDX-License-Identifier: GPL-2.0-only
"""Packets that program tests send, and what a packet is wrapped in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Padding, Raw
from world import GATEWAY_MAC, LOCAL, LOCAL_MAC, OUR_MAC, OURS, REMOTE, REMOTE_MAC, THEIRS

from model.parse import parse_frame
from mptm.intent import tunnel_from_dict
from mptm.protocols import PROTOCOLS, Protocol
from mptm.template import InnerFamily

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vlan 802.1ad": ("vlan", {"tpid": 0x88A8}),
    "geneve l3": ("geneve", {"payload": "l3"}),
    "geneve tlvs": ("geneve", {"tlvs": ["0102:01:00112233", "0103:02:", "ffff:7f:0011223344556677"]}),
    "geneve no checksum": ("geneve", {"udp_checksum": False}),
    "vxlan-gbp group": ("vxlan-gbp", {"group_policy_id": 0x1234, "dont_learn": True, "policy_applied": True}),
    "vxlan-gpe l3": ("vxlan-gpe", {"payload": "l3"}),
    "nsh l3": ("nsh", {"payload": "l3"}),
    "nsh md1": ("nsh", {"md_type": 1}),
    "gre key": ("gre", {"key": 7}),
    "gre checksum": ("gre", {"checksum": True}),
    "gre all": ("gre", {"key": 0xFFFFFFFF, "checksum": True, "sequence": True}),
    "gretap key": ("gretap", {"key": 0}),
    "gretap all": ("gretap", {"key": 9, "checksum": True, "sequence": True}),
    "gre-udp l2": ("gre-udp", {"payload": "l2"}),
    "gre-udp all": ("gre-udp", {"key": 1, "checksum": True, "sequence": True, "df": False}),
    "erspan III": ("erspan", {"version": 3, "direction": "egress", "hardware_id": 5, "sgt": 6}),
    "gue 1": ("gue", {"variant": 1}),
    "mpls stack": ("mpls", {"labels": [100, 200, 300], "tc": 5}),
    "gtpu qfi": ("gtpu", {"qfi": 9}),
    "l2tp ip": ("l2tp", {"encap": "ip"}),
    "l2tp ip cookie4": ("l2tp", {"encap": "ip", "cookie": "01020304", "l2spec_type": "none"}),
    "l2tp cookie8": ("l2tp", {"cookie": "0102030405060708"}),
    "l2tp bare": ("l2tp", {"l2spec_type": "none"}),
    "srv6 reduced": ("srv6", {"mode": "reduced"}),
    "srv6 l2": ("srv6", {"mode": "l2"}),
    "vxlan fixed": ("vxlan", {"source_port": 4789, "ttl": "inherit", "dscp": "inherit", "df": False}),
}
"""Forms of a protocol that its defaults don't make: name -> protocol, options."""


def protocol_of(variant: str) -> Protocol[Any]:
    """The protocol of a variant, or the one of that name."""
    return PROTOCOLS[VARIANTS[variant][0] if variant in VARIANTS else variant]


def required_options(variant: str) -> dict[str, Any]:
    """A value for each option that the protocol can't do without: so a new protocol needs no new test."""
    values: dict[str, Any] = {}
    for field in msgspec.inspect.type_info(protocol_of(variant).options).fields:
        kind = field.type
        while isinstance(kind, msgspec.inspect.Metadata):
            kind = kind.type
        if field.required and isinstance(kind, msgspec.inspect.VarTupleType):
            values[field.encode_name] = [0x1234]
        elif field.required:
            values[field.encode_name] = min(0x1234, kind.le)
    return values | VARIANTS.get(variant, ("", {}))[1]


def carried(variant: str, underlay: int = 4) -> InnerFamily | None:
    """IP versions that an L3 tunnel of the variant carries; None: it carries Ethernet frames."""
    made = tunnel_from_dict(tunnel(variant, underlay, remotes=REMOTE))
    return protocol_of(variant).inner_families(made.options)


def carries(variant: str, underlay: int, version: int) -> bool:
    """Whether a packet of this IP version goes through a tunnel of the variant."""
    families = carried(variant, underlay)
    return families is None or bool(families & (1 if version == 4 else 2))


def over_ip(variant: str) -> bool:
    """Whether the variant has an outer IP header."""
    return protocol_of(variant).over_ip


def tunnel(
    protocol: str, underlay: int = 4, *, name: str = "to-node2", remotes: dict[int, str], **more: Any
) -> Any:
    """Fields of a tunnel into blue."""
    return {
        "name": name,
        "protocol": protocol_of(protocol).name,
        "network": "blue",
        "remote": remotes[underlay],
        **required_options(protocol),
        **more,
    }


def far_end(protocol: str, underlay: int = 4, **more: Any) -> Any:
    """Fields of the tunnel at the other end of `tunnel`."""
    back = tunnel(protocol, underlay, name="to-node1", remotes=LOCAL, **more)
    return back if over_ip(protocol) else back | {"remote_mac": LOCAL_MAC, "local_mac": REMOTE_MAC}


def carriers() -> list[tuple[str, int]]:
    """(protocol or variant, underlay IP version) for all that there is; without an outer IP header one underlay."""
    return [
        (name, version) for name in (*PROTOCOLS, *VARIANTS) for version in protocol_of(name).underlays or (4,)
    ]


CARRIED = [
    (protocol, underlay, version)
    for protocol, underlay in carriers()
    for version in (4, 6)
    if carries(protocol, underlay, version)
]
"""(protocol or variant, underlay, inner IP version) for all that goes."""


def journeys(kinds: Iterable[str]) -> list[Any]:
    """(protocol or variant, underlay, kind of inner packet) for all that goes."""
    known = inner_kinds()
    return [
        pytest.param(protocol, underlay, kind, id=f"{protocol}-{underlay}-{kind}")
        for protocol, underlay in carriers()
        for kind in kinds
        if carries(protocol, underlay, 6 if IPv6 in known[kind] else 4)
    ]


def ip(family: int, source: str | None = None, destination: str | None = None, **fields: Any) -> Packet:
    """An IP header from our workload to theirs."""
    layer = IP if family == 4 else IPv6
    return layer(src=source or OURS[family], dst=destination or THEIRS[family], **fields)


def frame(
    payload: Packet, *, source: str = OUR_MAC, destination: str = GATEWAY_MAC, tags: Packet | None = None
) -> Packet:
    """An Ethernet frame from our workload, with VLAN tags if any."""
    ether = Ether(src=source, dst=destination)
    return Ether(bytes(ether / tags / payload if tags is not None else ether / payload))


def inner_kinds() -> dict[str, Packet]:
    """One frame of each kind that a workload sends."""
    data = Raw(bytes(range(64)))
    return {
        "udp4": frame(ip(4, ttl=17, tos=0xB9) / UDP(sport=1111, dport=53) / data),
        "tcp4": frame(ip(4) / TCP(sport=40000, dport=80, flags="PA") / data),
        "icmp4": frame(ip(4) / ICMP() / data),
        "udp6": frame(ip(6, hlim=17, tc=0xB9) / UDP(sport=1111, dport=53) / data),
        "tcp6": frame(ip(6) / TCP(sport=40000, dport=80, flags="PA") / data),
        "icmp6": frame(ip(6) / ICMPv6EchoRequest(data=b"x" * 40)),
        "fragment4": frame(ip(4, flags="MF", frag=0, id=7) / UDP(sport=1111, dport=53) / data),
        "options4": frame(ip(4, options=[IPOption_NOP()] * 4) / UDP(sport=1, dport=2) / data),
        "vlan4": frame(ip(4) / UDP(sport=1111, dport=53) / data, tags=Dot1Q(vlan=7, prio=3)),
        "qinq6": frame(ip(6) / UDP(sport=1111, dport=53) / data, tags=Dot1AD(vlan=9) / Dot1Q(vlan=7)),
        "udp4 without checksum": frame(ip(4) / UDP(sport=1111, dport=53, chksum=0) / data),
        "odd4": frame(ip(4) / UDP(sport=1111, dport=53) / Raw(b"odd")),
        "odd6": frame(ip(6) / TCP(sport=40000, dport=80, flags="PA") / Raw(b"o" * 517)),
        "fragment6": frame(ip(6) / IPv6ExtHdrFragment(m=1, nh=17, id=7) / UDP(sport=1111, dport=53) / data),
        "hopbyhop6": frame(ip(6) / IPv6ExtHdrHopByHop() / UDP(sport=1111, dport=53) / data),
        "padded4": frame(ip(4) / UDP(sport=1111, dport=53) / Raw(b"p") / Padding(b"\xee" * 17)),
        "smallest4": frame(ip(4, proto=99)),
        "largest4": frame(ip(4) / UDP(sport=1111, dport=53) / Raw(b"l" * 1340)),
    }


def as_carried(protocol: str, sent: Packet) -> bytes:
    """A frame as a tunnel for frames carries it: NVGRE without VLAN tags (RFC 7637 §3.3)."""
    parsed = parse_frame(bytes(sent))
    if protocol_of(protocol).name != "nvgre" or parsed is None:
        return bytes(sent)
    return bytes(sent)[:12] + bytes(sent)[parsed.l3 - 2 :]


def ip_packet(frame: bytes) -> bytes:
    """The IP packet of an Ethernet frame that has one, without its padding."""
    parsed = parse_frame(frame)
    assert parsed is not None
    return parsed.ip


def set_outer(packet: bytes, offset: int, value: bytes) -> bytes:
    """The packet with bytes overwritten."""
    return packet[:offset] + value + packet[offset + len(value) :]
