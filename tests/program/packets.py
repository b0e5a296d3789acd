# SPDX-License-Identifier: GPL-2.0-only
"""Packets that program tests send, and what a packet is wrapped in."""

from __future__ import annotations

from typing import Any

import msgspec
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from world import GATEWAY_MAC, OUR_MAC, OURS, THEIRS

from mptm.protocols import PROTOCOLS


def required_options(protocol: str) -> dict[str, int]:
    """A value for each option that the protocol can't do without: so a new protocol needs no new test."""
    values = {}
    for field in msgspec.inspect.type_info(PROTOCOLS[protocol].options).fields:
        kind = field.type
        while isinstance(kind, msgspec.inspect.Metadata):
            kind = kind.type
        if field.required:
            values[field.encode_name] = min(0x1234, kind.le)
    return values


def tunnel(
    protocol: str, underlay: int = 4, *, name: str = "to-node2", remotes: dict[int, str], **more: Any
) -> Any:
    """Fields of a tunnel into blue."""
    return {
        "name": name,
        "protocol": protocol,
        "network": "blue",
        "remote": remotes[underlay],
        **required_options(protocol),
        **more,
    }


def carriers() -> list[tuple[str, int]]:
    """(protocol, underlay IP version) for all that the registry has; a protocol without IP has one underlay."""
    return [
        (name, version)
        for name, protocol in PROTOCOLS.items()
        for version in ((4, 6) if protocol.over_ip else (4,))
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
        "smallest4": frame(ip(4, proto=99)),
        "largest4": frame(ip(4) / UDP(sport=1111, dport=53) / Raw(b"l" * 1372)),
    }


def set_outer(packet: bytes, offset: int, value: bytes) -> bytes:
    """The packet with bytes overwritten."""
    return packet[:offset] + value + packet[offset + len(value) :]
