# SPDX-License-Identifier: GPL-2.0-only
"""Putting a frame into a tunnel: payload, tunnel header, UDP, IP, Ethernet, each with what it carries as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from model import ecn, flow, frames
from model.encap import geneve, gre, gtpu, ip, l2tp, srv6, vlan, vxlan
from model.encap.base import Fields
from model.parse import Frame, parse_frame
from model.way import Way

BOTH = frozenset((4, 6))

Header = Callable[[Any, Frame, Fields], bytes]


@dataclass(frozen=True)
class Shape:
    """How packets of a protocol look.

    header      the tunnel header, from the options, what is carried, and what no packet says
    under       by the options: what the IP header says that follows; frames.UDP: a UDP header comes between
    carries     by the options: IP versions whose packets are carried without Ethernet header; None: whole frames
    """

    header: Header
    under: Callable[[Any], int]
    carries: Callable[[Any], frozenset[int] | None]


def _always(value: Any) -> Callable[[Any], Any]:
    return lambda options: value


def _by_payload(options: Any) -> frozenset[int] | None:
    return None if options.payload == "l2" else BOTH


UDP, WHOLE_FRAMES = _always(frames.UDP), _always(None)

SHAPES: dict[str, Shape] = {
    "geneve": Shape(geneve.geneve, UDP, _by_payload),
    "vxlan": Shape(vxlan.vxlan, UDP, WHOLE_FRAMES),
    "vxlan-gbp": Shape(vxlan.vxlan_gbp, UDP, WHOLE_FRAMES),
    "vxlan-gpe": Shape(vxlan.vxlan_gpe, UDP, _by_payload),
    "nsh": Shape(vxlan.nsh, UDP, _by_payload),
    "gre": Shape(gre.gre, _always(frames.GRE), _always(BOTH)),
    "gretap": Shape(gre.gretap, _always(frames.GRE), WHOLE_FRAMES),
    "nvgre": Shape(gre.nvgre, _always(frames.GRE), WHOLE_FRAMES),
    "erspan": Shape(gre.erspan, _always(frames.GRE), WHOLE_FRAMES),
    "gre-udp": Shape(gre.gre_udp, UDP, _by_payload),
    "ipip": Shape(ip.nothing, _always(frames.IPV4), _always(frozenset((4,)))),
    "sit": Shape(ip.nothing, _always(frames.IPV6), _always(frozenset((6,)))),
    "ip4ip6": Shape(ip.nothing, _always(frames.IPV4), _always(frozenset((4,)))),
    "ip6ip6": Shape(ip.nothing, _always(frames.IPV6), _always(frozenset((6,)))),
    "etherip": Shape(ip.etherip, _always(frames.ETHERIP), WHOLE_FRAMES),
    "fou": Shape(ip.nothing, UDP, ip.carried_by_fou),
    "gue": Shape(ip.gue, UDP, _by_payload),
    "mpls": Shape(ip.mpls, UDP, _always(BOTH)),
    "gtpu": Shape(gtpu.gtpu, UDP, _always(BOTH)),
    "l2tp": Shape(l2tp.l2tp, l2tp.under, WHOLE_FRAMES),
    "srv6": Shape(srv6.srv6, srv6.under, srv6.carried),
    "vlan": Shape(vlan.vlan, _always(0), WHOLE_FRAMES),
    "qinq": Shape(vlan.qinq, _always(0), WHOLE_FRAMES),
}


def carried_by(protocol: str, options: Any) -> frozenset[int] | None:
    """IP versions whose packets a tunnel carries without their Ethernet header; None: it carries frames."""
    return SHAPES[protocol].carries(options)


def is_over_ip(protocol: str) -> bool:
    return protocol not in ("vlan", "qinq")


def untagged(protocol: str, frame: Frame) -> Frame:
    """The frame as the tunnel carries it: NVGRE takes VLAN tags away (RFC 7637 §3.3)."""
    if protocol != "nvgre" or not frame.is_tagged:
        return frame
    made = parse_frame(frame.data[:12] + frame.data[frame.l3 - 2 :])
    assert made is not None
    return made


def encapsulate(protocol: str, options: Any, way: Way, frame: Frame, fields: Fields) -> bytes:
    """The frame that goes onto the wire for an inner frame that the tunnel carries."""
    shape = SHAPES[protocol]
    header = shape.header(options, frame, fields)
    if not is_over_ip(protocol):
        macs = frame.data[:12] if way.keeps_macs else way.next_hop_mac + way.local_mac
        return macs + header + frame.data[12:]
    is_l3 = shape.carries(options) is not None
    payload = header + (frame.ip if is_l3 else frame.data)
    next_header = shape.under(options)
    if next_header == frames.UDP:
        payload = _udp(options, way, payload, header + frame.summed(is_l3=is_l3), fields)
    elif protocol == "srv6":
        next_header = srv6.next_header(options, frame)
    tos = ecn.encapsulated(frame.tos, options.dscp)
    ttl = frame.ttl if options.ttl == "inherit" else options.ttl
    if way.version == 4:
        packet = frames.ipv4(
            way.local,
            way.destination,
            next_header,
            payload,
            tos=tos,
            ttl=ttl,
            identification=0 if options.df else fields.identification,
            dont_fragment=options.df,
        )
        return frames.ethernet(way.next_hop_mac, way.local_mac, frames.ETHERTYPE_IPV4, packet)
    packet = frames.ipv6(
        way.local,
        way.destination,
        next_header,
        payload,
        traffic_class=tos,
        flow_label=flow.flow_label(fields.flow_hash),
        hop_limit=ttl,
    )
    return frames.ethernet(way.next_hop_mac, way.local_mac, frames.ETHERTYPE_IPV6, packet)


def _udp(options: Any, way: Way, payload: bytes, summed: bytes, fields: Fields) -> bytes:
    """`summed` is what the checksum is made from.

    No checksum over IPv4 (RFC 7348 §5, RFC 8926 §3.3); over IPv6 the right one, or none (RFC 6935).
    """
    source_port = options.source_port
    if source_port == "flow":
        source_port = flow.source_port(fields.flow_hash)
    checksum = 0
    if way.version == 6 and options.udp_checksum:
        datagram = frames.udp(source_port, options.port, summed)
        pseudo = frames.ipv6_pseudo_header(way.local, way.destination, len(datagram), frames.UDP)
        checksum = frames.udp_checksum(pseudo, datagram)
    return frames.udp(source_port, options.port, payload, checksum)


def overhead(protocol: str, options: Any, way: Way, frame: Frame) -> int:
    """Bytes that the egress MTU counts beside the inner IP packet: all behind the Ethernet header but one VLAN tag.

    Where frames are carried, the inner Ethernet header and its tags are among them.
    """
    header = SHAPES[protocol].header(options, frame, Fields(0, destination=way.destination))
    if not is_over_ip(protocol):
        return len(header) - frames.TAG_LEN + frame.l3 - frames.ETHERNET_LEN
    outer = 20 if way.version == 4 else 40
    outer += 8 if SHAPES[protocol].under(options) == frames.UDP else 0
    return outer + len(header) + (0 if carried_by(protocol, options) else frame.l3)
