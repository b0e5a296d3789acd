# SPDX-License-Identifier: GPL-2.0-only
"""What the data plane's reasons mean, in words: a caption for every `enum reason` of bpf/abi.h (a test compares)."""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """Mirrors `enum reason` of bpf/abi.h."""

    REASON_NONE = 0
    REASON_ROUTE_DROP = 1
    REASON_TOO_BIG = 2
    REASON_PORT_TOO_BIG = 3
    REASON_TUNNEL_DOWN = 4
    REASON_EGRESS_GONE = 5
    REASON_PORT_GONE = 6
    REASON_NO_HEADROOM = 7
    REASON_NO_ROUTE = 8
    REASON_ECN_CE = 9
    REASON_NO_RELAY = 10
    REASON_BAD_OUTER_IP = 11
    REASON_BAD_OUTER_UDP = 12
    REASON_BAD_INNER = 13
    REASON_GENEVE_TRUNCATED = 14
    REASON_GENEVE_VERSION = 15
    REASON_GENEVE_OPTION_LENGTH = 16
    REASON_GENEVE_CRITICAL = 17
    REASON_GENEVE_CONTROL = 18
    REASON_GENEVE_PROTOCOL = 19
    REASON_VXLAN_TRUNCATED = 20
    REASON_VXLAN_FLAGS = 21
    REASON_VLAN_TRUNCATED = 22
    REFUSED_SENDER_OR_ID = 64
    REFUSED_FRAGMENT = 65


CAPTIONS: dict[str, str] = {
    "REASON_NONE": "no reason",
    "REASON_ROUTE_DROP": "the route or flow says drop",
    "REASON_TOO_BIG": "larger than the egress MTU once encapsulated",
    "REASON_PORT_TOO_BIG": "larger than the MTU of the local port",
    "REASON_TUNNEL_DOWN": "the tunnel can't send: its neighbour isn't resolved, or it only receives",
    "REASON_EGRESS_GONE": "the interface to send from no longer exists",
    "REASON_PORT_GONE": "the local port no longer exists",
    "REASON_NO_HEADROOM": "the driver left no room for the outer header",
    "REASON_NO_ROUTE": "decapsulated, but the network doesn't know the destination",
    "REASON_ECN_CE": "congestion was marked on the way, but the inner packet can't say so (RFC 6040)",
    "REASON_NO_RELAY": "came out of a tunnel and would go into a tunnel",
    "REASON_BAD_OUTER_IP": "outer IP header with a wrong version, length or checksum",
    "REASON_BAD_OUTER_UDP": "outer UDP header with a wrong length",
    "REASON_BAD_INNER": "the inner frame is cut short, or no frame at all",
    "REASON_GENEVE_TRUNCATED": "GENEVE header cut short",
    "REASON_GENEVE_VERSION": "GENEVE version other than 0",
    "REASON_GENEVE_OPTION_LENGTH": "GENEVE options run over the end of their area",
    "REASON_GENEVE_CRITICAL": "GENEVE option that must be understood, and isn't (RFC 8926 §3.5)",
    "REASON_GENEVE_CONTROL": "GENEVE control packet, not data",
    "REASON_GENEVE_PROTOCOL": "GENEVE payload that is no Ethernet frame",
    "REASON_VXLAN_TRUNCATED": "VXLAN header cut short",
    "REASON_VXLAN_FLAGS": "VXLAN without a valid VNI (I flag not set)",
    "REASON_VLAN_TRUNCATED": "VLAN tag cut short",
    "REFUSED_SENDER_OR_ID": "no tunnel accepts this sender, identifier and port",
    "REFUSED_FRAGMENT": "a fragment of an outer packet",
}
"""One sentence per reason, by its name in C."""

LEFT_TO_KERNEL = "REFUSED_"
"""How the names of reasons begin whose packets aren't dropped: they went on untouched."""


def name_of(number: int) -> str:
    """The name of a reason as in C; of one that only a newer data plane knows, `REASON_<number>`."""
    return Reason(number).name if number in set(Reason) else f"REASON_{number}"


def caption_of(name: str) -> str:
    """The sentence for a reason."""
    return CAPTIONS.get(name, f"{name}: counted by a data plane that is newer than this program")


def is_refusal(name: str) -> bool:
    """Whether packets with this reason were left to the kernel untouched, not dropped."""
    return name.startswith(LEFT_TO_KERNEL)
