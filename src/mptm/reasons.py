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
    REASON_INNER_FAMILY = 23
    REASON_GRE_TRUNCATED = 24
    REASON_GRE_FLAGS = 25
    REASON_GRE_CHECKSUM = 26
    REASON_GRE_PROTOCOL = 27
    REASON_ERSPAN_HEADER = 28
    REASON_GPE_TRUNCATED = 29
    REASON_GPE_FLAGS = 30
    REASON_GPE_PROTOCOL = 31
    REASON_NSH_HEADER = 32
    REASON_ETHERIP_HEADER = 33
    REASON_GTPU_TRUNCATED = 34
    REASON_GTPU_HEADER = 35
    REASON_GTPU_EXTENSION = 36
    REASON_L2TP_TRUNCATED = 37
    REASON_L2TP_COOKIE = 38
    REASON_GUE_HEADER = 39
    REASON_MPLS_STACK = 40
    REASON_SRV6_HEADER = 41
    REASON_INNER_VERSION = 42
    REASON_UDP_CHECKSUM = 43
    REASON_SPLIT_HORIZON = 44
    REASON_HOP_LIMIT = 45
    REASON_GROUP_EMPTY = 46
    REASON_GSO = 47
    REASON_INNER_TAG = 48
    REASON_CHECKSUM_SPAN = 49
    REASON_ANSWER = 50
    REFUSED_SENDER_OR_ID = 64
    REFUSED_FRAGMENT = 65
    REFUSED_CONTROL = 66


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
    "REASON_NO_RELAY": "came out of a tunnel and would go into one, but the route doesn't relay",
    "REASON_BAD_OUTER_IP": "outer IP header with a wrong version, length or checksum",
    "REASON_BAD_OUTER_UDP": "outer UDP header with a wrong length",
    "REASON_BAD_INNER": "the inner frame is cut short, or no frame at all",
    "REASON_GENEVE_TRUNCATED": "GENEVE header cut short",
    "REASON_GENEVE_VERSION": "GENEVE version other than 0",
    "REASON_GENEVE_OPTION_LENGTH": "GENEVE options run over the end of their area",
    "REASON_GENEVE_CRITICAL": "GENEVE option that must be understood, and isn't (RFC 8926 §3.5)",
    "REASON_GENEVE_CONTROL": "GENEVE control packet, not data",
    "REASON_GENEVE_PROTOCOL": "GENEVE payload that is neither an Ethernet frame nor an IP packet",
    "REASON_VXLAN_TRUNCATED": "VXLAN header cut short",
    "REASON_VXLAN_FLAGS": "VXLAN without a valid VNI (I flag not set)",
    "REASON_VLAN_TRUNCATED": "VLAN tag cut short",
    "REASON_INNER_FAMILY": "the tunnel carries no packets of this IP version, or the packet is no IP packet",
    "REASON_GRE_TRUNCATED": "GRE header cut short",
    "REASON_GRE_FLAGS": "GRE with flags that must be zero (RFC 2784 §2.3)",
    "REASON_GRE_CHECKSUM": "GRE checksum is wrong",
    "REASON_GRE_PROTOCOL": "GRE payload that no tunnel here carries",
    "REASON_ERSPAN_HEADER": "ERSPAN header with a wrong version or length, or without a sequence number",
    "REASON_GPE_TRUNCATED": "VXLAN-GPE header cut short",
    "REASON_GPE_FLAGS": "VXLAN-GPE without a valid VNI, of another version, or an OAM packet",
    "REASON_GPE_PROTOCOL": "VXLAN-GPE payload that no tunnel here carries",
    "REASON_NSH_HEADER": "NSH header with a wrong version, MD type, length or payload, or an OAM packet",
    "REASON_ETHERIP_HEADER": "EtherIP header cut short, or of another version than 3",
    "REASON_GTPU_TRUNCATED": "GTP-U header cut short",
    "REASON_GTPU_HEADER": "GTP-U length runs over the end of the packet",
    "REASON_GTPU_EXTENSION": "GTP-U extension header that must be understood and isn't, or of a wrong length",
    "REASON_L2TP_TRUNCATED": "L2TPv3 header, cookie or sublayer cut short",
    "REASON_L2TP_COOKIE": "L2TPv3 cookie is not the one that this session has",
    "REASON_GUE_HEADER": "GUE header with a wrong length, variant, flags or payload, or a control message",
    "REASON_MPLS_STACK": "MPLS label stack without a bottom, or cut short",
    "REASON_SRV6_HEADER": "segment routing header with a wrong length or payload",
    "REASON_INNER_VERSION": "the inner packet is of another IP version than the tunnel header says",
    "REASON_UDP_CHECKSUM": "outer UDP checksum is wrong, or missing where the tunnel requires one",
    "REASON_SPLIT_HORIZON": "would be relayed into the tunnel it came by, or one of the same split horizon",
    "REASON_HOP_LIMIT": "the TTL or hop limit of a packet to be relayed is used up",
    "REASON_GROUP_EMPTY": "the group has no tunnel that could take the flow",
    "REASON_GSO": "a GSO packet that has to become segments before it is encapsulated, and can't",
    "REASON_INNER_TAG": "the inner frame has a VLAN tag, which the tunnel's protocol forbids (RFC 7637 §3.3)",
    "REASON_CHECKSUM_SPAN": "a checksum that is to be verified is of a packet longer than 16 KB",
    "REASON_ANSWER": "an answer could not be completed in the packet's place",
    "REFUSED_SENDER_OR_ID": "no tunnel accepts this sender, identifier and port",
    "REFUSED_FRAGMENT": "a fragment of an outer packet",
    "REFUSED_CONTROL": "a control message of a tunnel protocol, for a daemon here",
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
