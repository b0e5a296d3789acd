# SPDX-License-Identifier: GPL-2.0-only
"""Taking a frame out of a tunnel: where packets of a protocol arrive, who reads them, and what names a tunnel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model import frames
from model.decap import geneve, gre, gtpu, ip, l2tp, vlan, vxlan
from model.decap.base import Control, Payload, Reading, Unreadable
from model.decap.gtpu import ECHO, echo_response
from model.decap.underlay import Outer, read_outer, udp_checksum_problem

__all__ = [
    "ECHO",
    "Control",
    "Outer",
    "Payload",
    "Reading",
    "Unreadable",
    "arrivals",
    "echo_response",
    "name",
    "read",
    "read_outer",
    "udp_checksum_problem",
]

READERS: dict[str, Callable[[Outer], Reading]] = {
    "geneve": geneve.read,
    "vxlan": vxlan.read_vxlan,
    "vxlan-gpe": vxlan.read_gpe,
    "gre": gre.read,
    "ip": ip.read_ip,
    "etherip": ip.read_etherip,
    "gue": ip.read_gue,
    "mpls": ip.read_mpls,
    "srv6": ip.read_srv6,
    "gtpu": gtpu.read,
    "l2tp over ip": l2tp.read_over_ip,
    "l2tp over udp": l2tp.read_over_udp,
    "vlan": vlan.read,
}

OVER_UDP = {
    "geneve": "geneve",
    "vxlan": "vxlan",
    "vxlan-gbp": "vxlan",
    "vxlan-gpe": "vxlan-gpe",
    "nsh": "vxlan-gpe",
    "gre-udp": "gre",
    "fou": "ip",
    "gue": "gue",
    "mpls": "mpls",
    "gtpu": "gtpu",
}
"""Protocol -> who reads it."""

OVER_IP = {
    "gre": (frames.GRE, "gre"),
    "gretap": (frames.GRE, "gre"),
    "nvgre": (frames.GRE, "gre"),
    "erspan": (frames.GRE, "gre"),
    "ipip": (frames.IPV4, "ip"),
    "ip4ip6": (frames.IPV4, "ip"),
    "sit": (frames.IPV6, "ip"),
    "ip6ip6": (frames.IPV6, "ip"),
    "etherip": (frames.ETHERIP, "etherip"),
}
"""Protocol -> IP protocol number, who reads it."""


def arrivals(protocol: str, options: Any) -> dict[tuple[str, int], str]:
    """Where packets of a tunnel arrive -> who reads them."""
    if protocol in OVER_UDP:
        return {("udp", options.port): OVER_UDP[protocol]}
    if protocol in OVER_IP:
        number, reader = OVER_IP[protocol]
        return {("ip", number): reader}
    if protocol in ("vlan", "qinq"):
        return {("ethertype", options.tpid): "vlan"}
    if protocol == "l2tp":
        if options.encap == "udp":
            return {("udp", options.port): "l2tp over udp"}
        return {("ip", frames.L2TP): "l2tp over ip"}
    assert protocol == "srv6", f"the model knows no protocol {protocol}"
    found = {("ip", frames.ROUTING): "srv6"}
    if options.mode == "l2":
        return found | {("ip", frames.ETHERNET): "srv6"}
    return found | {("ip", frames.IPV4): "ip", ("ip", frames.IPV6): "ip"}


def name(protocol: str, options: Any) -> tuple[str, int]:
    """Which header and identifier a tunnel accepts."""
    match protocol:
        case "geneve" | "vxlan" | "vxlan-gpe" | "nsh":
            return protocol, options.vni
        case "vxlan-gbp":
            return "vxlan", options.vni
        case "gre" | "gretap" | "gre-udp":
            return ("gre", 0) if options.key is None else ("gre with key", options.key)
        case "nvgre":
            return "nvgre", options.vsid
        case "erspan":
            return "erspan", options.session
        case "ipip" | "sit" | "ip4ip6" | "ip6ip6" | "fou":
            return "ip", 0
        case "etherip" | "gue" | "srv6":
            return protocol, 0
        case "mpls":
            return "mpls", options.labels[-1] if options.local_label is None else options.local_label
        case "gtpu":
            return "gtpu", options.teid if options.local_teid is None else options.local_teid
        case "l2tp":
            return f"l2tp over {options.encap}", options.session_id
        case "vlan":
            return "vlan", options.vid
        case "qinq":
            return "qinq", options.outer_vid << 12 | options.inner_vid
    raise AssertionError(f"the model knows no protocol {protocol}")


def read(outer: Outer) -> Reading:
    """The tunnel header. Raises Unreadable and Control."""
    return READERS[outer.family](outer)
