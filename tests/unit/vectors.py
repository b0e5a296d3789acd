# SPDX-License-Identifier: GPL-2.0-only
"""Headers byte for byte as their specifications draw them, written down by hand: what is sent, what is accepted.

A header is lines of hexadecimal, each followed by two spaces or more and what the bytes are. What is in front of it is
made by scapy, which nobody here wrote; what is behind it is one of the inner packets below. Node 1 (10.30.30.1,
fd00:30:30::1) sends to node 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

LOCAL = {4: "10.30.30.1", 6: "fd00:30:30::1"}
REMOTE = {4: "10.30.30.2", 6: "fd00:30:30::2"}
LOCAL_MAC, REMOTE_MAC = "02:00:00:30:00:01", "02:00:00:30:00:02"
SOURCE_PORT = 50000
"""Of every tunnel here that has a UDP header: 0xc350."""

SEQUENCE, TIME, FLOW_HASH = 0x01020304, 0x55667788, 0x89ABCDEF
"""What a sequence number, a timestamp and the hash of the inner flow are in these headers."""


def octets(text: str) -> bytes:
    """The bytes of lines `HEX  comment`."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return b"".join(bytes.fromhex(re.split(r"\s{2,}", line)[0].replace(" ", "")) for line in lines)


IPV4 = octets("""
    45 00 0022  RFC 791 §3.1: version 4, IHL 5, type of service 0, total length 34
    1234 0000   identification, no flags, no offset
    40 11 4fdb  TTL 64, UDP, header checksum
    0afa0164    10.250.1.100
    0afa0165    10.250.1.101
    0457 0035   RFC 768: ports 1111 and 53
    000e 993d   length 14, checksum
    766563746f72  "vector"
""")
IPV6 = octets("""
    60000000    RFC 8200 §3: version 6, traffic class 0, flow label 0
    000e 11 40  payload length 14, UDP, hop limit 64
    fd00025000010000 0000000000000100  fd00:250:1::100
    fd00025000010000 0000000000000101  fd00:250:1::101
    0457 0035   RFC 768: ports 1111 and 53
    000e b155   length 14, checksum
    766563746f72  "vector"
""")
MACS = octets("""
    020000009901  destination: what our workloads are told
    02000000c101  source: the workload
""")
INNER = {
    "ipv4": IPV4,
    "ipv6": IPV6,
    "ethernet": MACS + bytes.fromhex("0800") + IPV4,
    "ethernet ipv6": MACS + bytes.fromhex("86dd") + IPV6,
}
"""What a tunnel carries. What the workload sent for it is FRAMES."""
FRAMES = {
    "ipv4": INNER["ethernet"],
    "ipv6": INNER["ethernet ipv6"],
    "ethernet": INNER["ethernet"],
    "ethernet ipv6": INNER["ethernet ipv6"],
}


@dataclass(frozen=True)
class Vector:
    """A header of a protocol, between what scapy makes in front of it and an inner packet."""

    claim: str
    """What it shows, with the place in the specification."""
    protocol: str
    options: dict[str, Any]
    header: str
    over: tuple[str, int] | None = None
    """("udp", destination port) or ("ip", protocol number); None: behind the MAC addresses."""
    inner: str = "ethernet"
    underlay: int = 4
    is_sent: bool = True
    """Whether a tunnel with these options sends it; else it is only received."""
    arrives: bool = True
    """Whether the node at the other end of such a tunnel is where it is decapsulated."""
    reason: str = ""
    """Why it is dropped there, or left to the kernel (without REASON_, REFUSED_ in front); "": it is accepted."""
    destination: str = ""
    """The outer destination where it isn't the remote."""

    @property
    def wire(self) -> bytes:
        """The whole frame."""
        header, payload = octets(self.header) if self.header else b"", INNER[self.inner]
        ether = Ether(src=LOCAL_MAC, dst=REMOTE_MAC)
        if self.over is None:
            return bytes(ether)[:12] + header + payload[14:]
        layer, number = self.over
        protocol = 17 if layer == "udp" else number
        destination = self.destination or REMOTE[self.underlay]
        if self.underlay == 4:
            ip = IP(src=LOCAL[4], dst=destination, proto=protocol, flags="DF", id=0, ttl=64)
        else:
            ip = IPv6(src=LOCAL[6], dst=destination, nh=protocol, hlim=64, fl=FLOW_HASH & 0xFFFFF)
        if layer == "ip":
            return bytes(ether / ip / Raw(header + payload))
        checksum = {"chksum": 0} if self.underlay == 4 else {}
        return bytes(ether / ip / UDP(sport=SOURCE_PORT, dport=number, **checksum) / Raw(header + payload))

    @property
    def header_at(self) -> int:
        """Where the header begins in the frame."""
        if self.over is None:
            return 12
        return 14 + (20 if self.underlay == 4 else 40) + (8 if self.over[0] == "udp" else 0)


def received(
    claim: str,
    protocol: str,
    options: dict[str, Any],
    header: str,
    over: tuple[str, int] | None = None,
    **more: Any,
) -> Vector:
    """A header that is accepted or refused, but never sent."""
    return Vector(claim, protocol, options, header, over, is_sent=False, **more)


GENEVE, VXLAN, GPE, GTPU, MPLS, GUE, GRE_UDP, L2TP = (
    ("udp", port) for port in (6081, 4789, 4790, 2152, 6635, 6080, 4754, 1701)
)
GRE, L2TP_IP, ETHERIP = ("ip", 47), ("ip", 115), ("ip", 97)
SEGMENTS = ["fd00:9::1", "fd00:9::2", REMOTE[6]]

VECTORS = [
    # ---- GENEVE: RFC 8926 ------------------------------------------------------------------------------------
    Vector("§3.4: an Ethernet frame, no options", "geneve", {"vni": 0x123456}, """
        00 00 6558  Ver 0, Opt Len 0; O 0, C 0, Rsvd; Protocol Type: transparent Ethernet bridging
        123456 00   VNI, Reserved
    """, GENEVE),
    Vector("§3.4: the same over IPv6, whose UDP checksum counts it all", "geneve", {"vni": 0x123456}, """
        00 00 6558  Ver 0, Opt Len 0; O 0, C 0, Rsvd; Protocol Type
        123456 00   VNI, Reserved
    """, GENEVE, inner="ethernet ipv6", underlay=6),
    Vector("§3.4: an IPv4 packet", "geneve", {"vni": 1, "payload": "l3"}, """
        00 00 0800  Protocol Type: the EtherType of IPv4
        000001 00   VNI, Reserved
    """, GENEVE, inner="ipv4"),
    Vector("§3.4: an IPv6 packet", "geneve", {"vni": 1, "payload": "l3"}, """
        00 00 86dd  Protocol Type: the EtherType of IPv6
        000001 00   VNI, Reserved
    """, GENEVE, inner="ipv6", underlay=6),
    Vector("§3.5: options of no, one and two words", "geneve",
        {"vni": 0xFFFFFF, "tlvs": ["0102:01:", "0103:7f:00112233", "ffff:02:0011223344556677"]}, """
        06 00 6558  Ver 0, Opt Len 6 words; O 0, C 0
        ffffff 00   VNI, Reserved
        0102 01 00  Option Class, Type, R R R Length 0
        0103 7f 01  Option Class, Type, R R R Length 1
        00112233    data
        ffff 02 02  Option Class, Type, R R R Length 2
        0011223344556677  data
    """, GENEVE),
    Vector("§3.5.1: a critical option sets the C bit, and is refused by who doesn't know it", "geneve",
        {"vni": 2, "tlvs": ["0102:80:00112233"]}, """
        02 40 6558  Opt Len 2 words; O 0, C 1
        000002 00   VNI, Reserved
        0102 80 01  Option Class, Type with its high-order bit (critical), Length 1
        00112233    data
    """, GENEVE, reason="GENEVE_CRITICAL"),
    received("§3.4: the C bit without a critical option is no reason for a drop", "geneve", {"vni": 2}, """
        01 40 6558  Opt Len 1; C 1
        000002 00   VNI, Reserved
        0102 7f e0  Option Class, Type; R R R set, which is ignored (§3.5); Length 0
    """, GENEVE),
    received("§3.4: reserved fields are ignored", "geneve", {"vni": 2}, """
        00 3f 6558  O 0, C 0, all of Rsvd set
        000002 ff   VNI, all of Reserved set
    """, GENEVE),
    received("§3.4: a control packet isn't data", "geneve", {"vni": 2}, """
        00 80 6558  O 1
        000002 00   VNI, Reserved
    """, GENEVE, reason="GENEVE_CONTROL"),
    received("§3.4: an unknown version", "geneve", {"vni": 2}, """
        40 00 6558  Ver 1
        000002 00   VNI, Reserved
    """, GENEVE, reason="GENEVE_VERSION"),
    received("§3.5: an option longer than Opt Len says", "geneve", {"vni": 2}, """
        01 00 6558  Opt Len 1
        000002 00   VNI, Reserved
        0102 01 01  Length 1: one word more than there is
    """, GENEVE, reason="GENEVE_OPTION_LENGTH"),
    # ---- VXLAN: RFC 7348; GBP: draft-smith-vxlan-group-policy; GPE: draft-ietf-nvo3-vxlan-gpe ----------------
    Vector("RFC 7348 §5", "vxlan", {"vni": 0x123456}, """
        08 000000   R R R R I R R R: I alone; Reserved
        123456 00   VNI, Reserved
    """, VXLAN),
    Vector("RFC 7348 §5, over IPv6", "vxlan", {"vni": 0xFFFFFF}, """
        08 000000   I alone; Reserved
        ffffff 00   VNI, Reserved
    """, VXLAN, inner="ethernet ipv6", underlay=6),
    received("RFC 7348 §5: reserved fields are ignored", "vxlan", {"vni": 0x123456}, """
        ff ffffff   I among the rest
        123456 ff   VNI, Reserved
    """, VXLAN),
    received("RFC 7348 §5: without I there is no VNI", "vxlan", {"vni": 0x123456}, """
        f7 000000   all but I
        123456 00   VNI, Reserved
    """, VXLAN, reason="VXLAN_FLAGS"),
    Vector("group policy §2.1: G and I, D and A, the group", "vxlan-gbp",
        {"vni": 5, "group_policy_id": 0xABCD, "dont_learn": True, "policy_applied": True}, """
        88          G R R R I R R R
        48 abcd     R D R R A R R R; Group Policy ID
        000005 00   VNI, Reserved
    """, VXLAN),
    Vector("group policy §2.1: A alone", "vxlan-gbp", {"vni": 5, "group_policy_id": 1, "policy_applied": True}, """
        88 08 0001  G and I; A; Group Policy ID
        000005 00   VNI, Reserved
    """, VXLAN, underlay=6),
    received("group policy §2: a VXLAN tunnel reads it", "vxlan", {"vni": 5}, """
        88 40 0001  G and I; D; Group Policy ID
        000005 00   VNI, Reserved
    """, VXLAN),
    Vector("GPE §3.1: an Ethernet frame", "vxlan-gpe", {"vni": 0x123456}, """
        0c 0000 03  R R Ver Ver I P B O: I and P; Reserved; Next Protocol 3
        123456 00   VNI, Reserved
    """, GPE),
    Vector("GPE §3.1: an IPv4 packet", "vxlan-gpe", {"vni": 5, "payload": "l3"}, """
        0c 0000 01  I and P; Reserved; Next Protocol 1
        000005 00   VNI, Reserved
    """, GPE, inner="ipv4"),
    Vector("GPE §3.1: an IPv6 packet", "vxlan-gpe", {"vni": 5, "payload": "l3"}, """
        0c 0000 02  I and P; Reserved; Next Protocol 2
        000005 00   VNI, Reserved
    """, GPE, inner="ipv6", underlay=6),
    received("GPE §3.1: without P it is VXLAN", "vxlan-gpe", {"vni": 5}, """
        08 0000 00  I alone
        000005 00   VNI, Reserved
    """, GPE),
    received("GPE §3.1: B says how the frame was sent, reserved bits nothing", "vxlan-gpe", {"vni": 5}, """
        ce ffff 03  R R, I, P and B; Reserved; Next Protocol 3
        000005 ff   VNI, Reserved
    """, GPE),
    received("GPE §3.1: an OAM packet isn't data", "vxlan-gpe", {"vni": 5}, """
        0d 0000 03  I, P and O
        000005 00   VNI, Reserved
    """, GPE, reason="GPE_FLAGS"),
    received("GPE §3.1: an unknown version", "vxlan-gpe", {"vni": 5}, """
        1c 0000 03  Ver 1, I and P
        000005 00   VNI, Reserved
    """, GPE, reason="GPE_FLAGS"),
    # ---- NSH: RFC 8300, over VXLAN-GPE (next protocol 4) ------------------------------------------------------
    Vector("§2.2, §2.3, §2.5: base and service path header, MD type 2 without context", "nsh",
        {"vni": 9, "spi": 0x123456, "si": 200, "nsh_ttl": 5}, """
        0c 0000 04  GPE: I and P; Next Protocol 4: NSH
        000009 00   VNI, Reserved
        0142        Ver 0, O 0, U 0, TTL 5 (6 bits), Length 2 words (6 bits)
        02 03       U U U U, MD Type 2; Next Protocol 3: Ethernet
        123456 c8   SPI, SI 200
    """, GPE),
    Vector("§2.4: MD type 1 has four words of context", "nsh",
        {"vni": 9, "spi": 1, "md_type": 1, "payload": "l3"}, """
        0c 0000 04  GPE
        000009 00   VNI
        0fc6        TTL 63, Length 6 words
        01 01       MD Type 1; Next Protocol 1: IPv4
        000001 ff   SPI, SI 255
        00000000 00000000 00000000 00000000  context
    """, GPE, inner="ipv4"),
    Vector("§2.2: next protocol 2 is IPv6", "nsh", {"spi": 1, "payload": "l3"}, """
        0c 0000 04  GPE
        000000 00   VNI 0
        0fc2 02 02  TTL 63, Length 2; MD Type 2; Next Protocol 2
        000001 ff   SPI, SI
    """, GPE, inner="ipv6", underlay=6),
    received("§2.5.1: context of MD type 2 is skipped", "nsh", {"vni": 9, "spi": 1}, """
        0c 0000 04  GPE
        000009 00   VNI
        0fc5 02 03  TTL 63, Length 5 words
        777777 01   another SPI and SI: service functions change them
        0102 03 05  Metadata Class, Type, U Length 5 bytes
        0011223344 000000  metadata and its padding
    """, GPE),
    received("§2.2: unassigned bits are ignored", "nsh", {"vni": 9, "spi": 1}, """
        0c 0000 04  GPE
        000009 00   VNI
        1fc2 f2 03  U 1; U U U U all set, MD Type 2
        000001 ff   SPI, SI
    """, GPE),
    received("§2.2: a TTL of 0 counts as 64", "nsh", {"vni": 9, "spi": 1}, """
        0c 0000 04  GPE
        000009 00   VNI
        0002 02 03  TTL 0, Length 2
        000001 ff   SPI, SI
    """, GPE),
    received("§2.2: an OAM packet isn't data", "nsh", {"vni": 9, "spi": 1}, """
        0c 0000 04  GPE
        000009 00   VNI
        2fc2 02 03  O 1
        000001 ff   SPI, SI
    """, GPE, reason="NSH_HEADER"),
    received("§2.4: MD type 1 of another length", "nsh", {"vni": 9, "spi": 1}, """
        0c 0000 04  GPE
        000009 00   VNI
        0fc2 01 03  Length 2, MD Type 1
        000001 ff   SPI, SI
    """, GPE, reason="NSH_HEADER"),
    # ---- tags: IEEE 802.1Q-2018 §9.6 --------------------------------------------------------------------------
    Vector("§9.6: TPID, PCP, DEI, VID", "vlan", {"vid": 0xABC, "pcp": 5}, """
        8100 aabc   TPID 802.1Q; PCP 5 (101), DEI 0, VID 0xabc
        0800        the frame goes on with its EtherType
    """),
    Vector("§9.6: a service tag", "vlan", {"vid": 1, "pcp": 7, "tpid": 0x88A8}, """
        88a8 e001   TPID 802.1ad; PCP 7, DEI 0, VID 1
        86dd        EtherType
    """, inner="ethernet ipv6"),
    received("§9.6: PCP and DEI of what comes say nothing of where it goes", "vlan", {"vid": 0xABC}, """
        8100 fabc   PCP 7, DEI 1, VID 0xabc
        0800        EtherType
    """),
    Vector("802.1ad: a service tag in front of a customer tag", "qinq",
        {"outer_vid": 0x123, "inner_vid": 0xFFE, "pcp": 2}, """
        88a8 4123   TPID 802.1ad; PCP 2, DEI 0, VID 0x123
        8100 4ffe   TPID 802.1Q; PCP 2, DEI 0, VID 0xffe
        0800        EtherType
    """),
    Vector("802.1Q: two customer tags", "qinq", {"outer_vid": 1, "inner_vid": 2, "tpid": 0x8100}, """
        8100 0001   VID 1
        8100 0002   VID 2
        86dd        EtherType
    """, inner="ethernet ipv6"),
    # ---- GRE: RFC 2784, RFC 2890 ------------------------------------------------------------------------------
    Vector("RFC 2784 §2: an IPv4 packet", "gre", {}, """
        0000 0800   C 0, Reserved0, Ver 0; Protocol Type IPv4
    """, GRE, inner="ipv4"),
    Vector("RFC 2784 §2, RFC 7676: an IPv6 packet over IPv6", "gre", {}, """
        0000 86dd   C 0, Reserved0, Ver 0; Protocol Type IPv6
    """, GRE, inner="ipv6", underlay=6),
    Vector("RFC 2890 §2.1: a key", "gre", {"key": 0x12345678}, """
        2000 0800   K
        12345678    Key
    """, GRE, inner="ipv4"),
    Vector("RFC 2890 §2.2: a sequence number", "gre", {"sequence": True}, """
        1000 0800   S
        01020304    Sequence Number
    """, GRE, inner="ipv4"),
    Vector("RFC 2784 §2.2, §2.5: a checksum of header and payload", "gre", {"checksum": True}, """
        8000 0800   C
        90db 0000   Checksum, Reserved1
    """, GRE, inner="ipv4"),
    Vector("RFC 2890 §2: checksum, key, sequence number, in this order", "gre",
        {"checksum": True, "key": 0x12345678, "sequence": True}, """
        b000 0800   C, K and S
        f428 0000   Checksum, Reserved1
        12345678    Key
        01020304    Sequence Number
    """, GRE, inner="ipv4"),
    received("RFC 2784 §2.3: bits 6 to 12 are ignored", "gre", {}, """
        03f8 0800   Reserved0 but for bits 1 to 5
    """, GRE, inner="ipv4"),
    received("RFC 2784 §2.3: bit 1", "gre", {}, "4000 0800  routing present", GRE, inner="ipv4", reason="GRE_FLAGS"),
    received("RFC 2784 §2.3: bit 4", "gre", {}, "0800 0800  strict source route", GRE, inner="ipv4",
        reason="GRE_FLAGS"),
    received("RFC 2784 §2.3: bit 5", "gre", {}, "0400 0800  recursion", GRE, inner="ipv4", reason="GRE_FLAGS"),
    received("RFC 2784 §2.5: a wrong checksum", "gre", {}, """
        8000 0800   C
        90dc 0000   Checksum, one too many
    """, GRE, inner="ipv4", reason="GRE_CHECKSUM"),
    received("RFC 2637 §4.1: version 1 is PPTP's", "gre", {}, """
        3001 880b   K and S, Ver 1; Protocol Type PPP
        00220001    Payload Length, Call ID
        00000001    Sequence Number
    """, GRE, inner="ipv4", reason="CONTROL"),
    Vector("RFC 2784 §2, RFC 2890 §2.1: an Ethernet frame with a key", "gretap", {"key": 0xFFFFFFFF}, """
        2000 6558   K; Protocol Type: transparent Ethernet bridging
        ffffffff    Key
    """, GRE),
    Vector("RFC 2784 §2: an Ethernet frame over IPv6", "gretap", {}, """
        0000 6558   Protocol Type
    """, GRE, inner="ethernet ipv6", underlay=6),
    Vector("RFC 7637 §3.2: K and nothing else; VSID and FlowID", "nvgre", {"vsid": 0x123456}, """
        2000 6558   C 0, K 1, S 0, Ver 0; Protocol Type
        123456 89   VSID, FlowID: of the inner flow
    """, GRE),
    Vector("RFC 7637 §3.2: the same over IPv6", "nvgre", {"vsid": 0xFFFFFE}, """
        2000 6558   K
        fffffe 89   VSID, FlowID
    """, GRE, inner="ethernet ipv6", underlay=6),
    received("RFC 7637 §3.2: no FlowID", "nvgre", {"vsid": 0x123456}, """
        2000 6558   K
        123456 00   VSID, FlowID 0
    """, GRE, underlay=6),
    received("RFC 7637 §3.2: with a sequence number it is none", "nvgre", {"vsid": 0x123456}, """
        3000 6558   K and S
        123456 89   VSID, FlowID
        00000001    Sequence Number
    """, GRE, reason="SENDER_OR_ID"),
    Vector("RFC 8086 §3: GRE behind UDP", "gre-udp", {"key": 7}, """
        2000 0800   K; Protocol Type IPv4
        00000007    Key
    """, GRE_UDP, inner="ipv4"),
    Vector("RFC 8086 §3: over IPv6, with a checksum of its own", "gre-udp", {"checksum": True}, """
        8000 86dd   C; Protocol Type IPv6
        87f2 0000   Checksum, Reserved1
    """, GRE_UDP, inner="ipv6", underlay=6),
    Vector("RFC 8086 §3: an Ethernet frame", "gre-udp", {"payload": "l2"}, """
        0000 6558   Protocol Type
    """, GRE_UDP),
    # ---- ERSPAN: draft-foschiano-erspan-03 --------------------------------------------------------------------
    Vector("§4.1, §4.2: type II", "erspan", {"session": 0x2CD, "index": 0xABCDE, "cos": 6, "vlan": 0x345}, """
        1000 88be   GRE: S alone; Protocol Type of ERSPAN II
        01020304    Sequence Number
        1345        Ver 1, VLAN
        dacd        COS 6 (110), En 3 (11: tags stayed in the frame), T 0, Session ID 0x2cd
        000abcde    Reserved, Index (20 bits)
    """, GRE),
    Vector("§4.3: type III", "erspan",
        {"session": 0x2CD, "version": 3, "cos": 6, "vlan": 0x345, "sgt": 0x1234, "hardware_id": 0x2A,
         "direction": "egress"}, """
        1000 22eb   GRE: S alone; Protocol Type of ERSPAN III
        01020304    Sequence Number
        2345        Ver 2, VLAN
        c2cd        COS 6 (110), BSO 0, T 0, Session ID 0x2cd
        55667788    Timestamp
        1234        SGT
        82aa        P 1 (Ethernet), FT 0, Hw ID 0x2a, D 1 (egress), Gra 01 (100 ns), O 0
    """, GRE),
    Vector("§4.2: type II over IPv6", "erspan", {"session": 1}, """
        1000 88be   GRE
        01020304    Sequence Number
        1000 1801   Ver 1, VLAN 0; COS 0, En 3, T 0, Session ID 1
        00000000    Index
    """, GRE, inner="ethernet ipv6", underlay=6),
    received("§4.2: fields of type II that say nothing of where it goes", "erspan", {"session": 1}, """
        1000 88be   GRE
        00000000    Sequence Number
        1fff ec01   Ver 1, VLAN; COS 7, En 1, T 1, Session ID 1
        fffabcde    Reserved, Index
    """, GRE, underlay=6),
    received("§4.3: a platform specific subheader", "erspan", {"session": 1}, """
        1000 22eb   GRE
        00000000    Sequence Number
        2000 0001   Ver 2, VLAN; Session ID 1
        00000000    Timestamp
        0000 8001   SGT; P 1, O 1
        1400000000000000  Platf ID and its info: 8 bytes
    """, GRE),
    received("§4.2: type III's version in a type II header", "erspan", {"session": 1}, """
        1000 88be   GRE
        00000000    Sequence Number
        2000 0001   Ver 2
        00000000    Index
    """, GRE, reason="ERSPAN_HEADER"),
    # ---- IP in IP: RFC 2003, RFC 4213, RFC 2473 ---------------------------------------------------------------
    Vector("RFC 2003 §3.1: IPv4 in IPv4, protocol 4", "ipip", {}, "", ("ip", 4), inner="ipv4"),
    Vector("RFC 4213 §3.5: IPv6 in IPv4, protocol 41", "sit", {}, "", ("ip", 41), inner="ipv6"),
    Vector("RFC 2473 §3.1: IPv4 in IPv6, next header 4", "ip4ip6", {}, "", ("ip", 4), inner="ipv4", underlay=6),
    Vector("RFC 2473 §3.1: IPv6 in IPv6, next header 41", "ip6ip6", {}, "", ("ip", 41), inner="ipv6", underlay=6),
    received("RFC 2473 §4.1.1: a tunnel encapsulation limit", "ip4ip6", {}, """
        04 00       Next Header IPv4, Hdr Ext Len 0
        04 01 04    Tunnel Encapsulation Limit, Opt Data Len 1, limit 4
        01 01 00    PadN of 3 bytes
    """, ("ip", 60), inner="ipv4", underlay=6),
    received("RFC 2473 §4.1.1: the same in front of IPv6", "ip6ip6", {}, """
        29 00       Next Header IPv6
        04 01 00    Tunnel Encapsulation Limit, Opt Data Len 1, limit 0
        01 01 00    PadN
    """, ("ip", 60), inner="ipv6", underlay=6),
    received("RFC 2473 §4.1.1: the same in front of GRE", "gre", {}, """
        2f 00       Next Header GRE
        04 01 04    Tunnel Encapsulation Limit
        01 01 00    PadN
        0000 86dd   GRE
    """, ("ip", 60), inner="ipv6", underlay=6),
    received("RFC 2003 §3.1: IPv6 behind protocol 4", "ipip", {}, "", ("ip", 4), inner="ipv6",
        reason="INNER_VERSION"),
    received("RFC 4213 §3.5: IPv4 behind protocol 41", "sit", {}, "", ("ip", 41), inner="ipv4",
        reason="INNER_VERSION"),
    # ---- FOU, GUE, EtherIP, MPLS ------------------------------------------------------------------------------
    Vector("Linux fou: an IPv4 packet straight behind UDP", "fou", {"port": 5555}, "", ("udp", 5555),
        inner="ipv4"),
    Vector("Linux fou: an IPv6 packet, over IPv6", "fou", {"port": 5556}, "", ("udp", 5556), inner="ipv6",
        underlay=6),
    Vector("GUE §3.1: variant 0 with IPv4", "gue", {}, """
        00 04 0000  variant 0, C 0, Hlen 0; proto 4; flags
    """, GUE, inner="ipv4"),
    Vector("GUE §3.1: variant 0 with IPv6", "gue", {}, """
        00 29 0000  variant 0, C 0, Hlen 0; proto 41; flags
    """, GUE, inner="ipv6", underlay=6),
    Vector("GUE §3.1, RFC 3378: variant 0 with EtherIP", "gue", {"payload": "l2"}, """
        00 61 0000  variant 0, C 0, Hlen 0; proto 97; flags
        3000        EtherIP version 3
    """, GUE),
    Vector("GUE §3.2: variant 1 has no header", "gue", {"variant": 1}, "", GUE, inner="ipv4"),
    Vector("GUE §3.2: nor with IPv6", "gue", {"variant": 1}, "", GUE, inner="ipv6", underlay=6),
    received("GUE §3.1.1: private data", "gue", {}, """
        02 04 0000  Hlen 2
        0011223344556677  private data
    """, GUE, inner="ipv4"),
    received("GUE §3.1: a control message", "gue", {}, "20 04 0000  C 1", GUE, inner="ipv4", reason="GUE_HEADER"),
    received("GUE §3.1: flags of an extension", "gue", {}, "00 04 8000  flags", GUE, inner="ipv4",
        reason="GUE_HEADER"),
    received("GUE §3: variant 2", "gue", {}, "80 04 0000  variant 2", GUE, inner="ipv4", reason="GUE_HEADER"),
    Vector("RFC 3378 §3: version 3", "etherip", {}, "3000  Version 3, Reserved", ETHERIP),
    Vector("RFC 3378 §3, over IPv6", "etherip", {}, "3000  Version 3, Reserved", ETHERIP, inner="ethernet ipv6",
        underlay=6),
    received("RFC 3378 §3: another version", "etherip", {}, "4000  Version 4", ETHERIP, reason="ETHERIP_HEADER"),
    Vector("RFC 7510 §3, RFC 3032 §2.1: two labels", "mpls",
        {"labels": [0xABCDE, 0x12345], "tc": 5, "label_ttl": 9}, """
        abcde a 09  Label, TC 5 (101) S 0, TTL
        12345 b 09  Label, TC 5 (101) S 1: the bottom, TTL
    """, MPLS, inner="ipv4"),
    Vector("RFC 7510 §3: one label, over IPv6", "mpls", {"labels": [16]}, """
        00010 1 40  Label 16, TC 0 S 1, TTL 64
    """, MPLS, inner="ipv6", underlay=6),
    received("RFC 3032 §2.1: the label at the bottom tells the tunnel", "mpls", {"labels": [16]}, """
        00003 0 ff  Label 3 (implicit null), S 0
        fffff e 01  Label, TC 7 S 0, TTL 1
        00010 f 00  Label 16, TC 7 S 1, TTL 0
    """, MPLS, inner="ipv6"),
    # ---- GTP-U: 3GPP TS 29.281; PDU session container: TS 38.415 ------------------------------------------------
    Vector("TS 29.281 §5.1: a G-PDU", "gtpu", {"teid": 0x12345678}, """
        30 ff       Version 1, PT 1, E 0, S 0, PN 0; Message Type 255: G-PDU
        0022        Length: 34 bytes behind the mandatory header
        12345678    TEID
    """, GTPU, inner="ipv4"),
    Vector("TS 29.281 §5.2.2.7, TS 38.415 §5.5.2.1: downlink PDU session information", "gtpu",
        {"teid": 1, "qfi": 9}, """
        34 ff 002a  E 1; G-PDU; Length 34 + 8
        00000001    TEID
        0000 00 85  Sequence Number and N-PDU Number, not valid; Next Extension Header Type: PDU session container
        01          Extension Header Length: 1 word
        00 09       PDU Type 0 (DL), QMP 0, SNP 0, MSNP 0, spare; PPP 0, RQI 0, QFI 9
        00          Next Extension Header Type: none
    """, GTPU, inner="ipv4"),
    Vector("TS 29.281 §5.2.2.7, TS 38.415 §5.5.2.2: uplink PDU session information", "gtpu",
        {"teid": 1, "qfi": 63, "pdu_type": "ul"}, """
        34 ff 003e  E 1; G-PDU; Length 54 + 8
        00000001    TEID
        0000 00 85  Next Extension Header Type: PDU session container
        01          Extension Header Length: 1 word
        10 3f       PDU Type 1 (UL), no delays, no sequence number; QFI 63
        00          Next Extension Header Type: none
    """, GTPU, inner="ipv6", underlay=6),
    received("TS 29.281 §5.1: a sequence number", "gtpu", {"teid": 1}, """
        32 ff 0026  S 1; G-PDU; Length 34 + 4
        00000001    TEID
        1234 00 85  Sequence Number; N-PDU Number and Next Extension Header Type, not valid as E and PN are 0
    """, GTPU, inner="ipv4"),
    received("TS 29.281 §5.1: an N-PDU number; the spare bit is not looked at", "gtpu", {"teid": 1}, """
        39 ff 0026  spare bit, PN 1
        00000001    TEID
        0000 77 00  N-PDU Number
    """, GTPU, inner="ipv4"),
    received("TS 38.415 §5.5.2.1: a container with a paging policy is longer", "gtpu", {"teid": 1}, """
        34 ff 002e  E 1; Length 34 + 12
        00000001    TEID
        0000 00 85  Next Extension Header Type: PDU session container
        02          Extension Header Length: 2 words
        00 89       PDU Type 0; PPP 1, RQI 0, QFI 9
        e0 000000   PPI 7, spare; padding
        00          Next Extension Header Type: none
    """, GTPU, inner="ipv4"),
    received("TS 29.281 §5.2.1, §5.2.2.1: a UDP port needs no comprehension, a container follows", "gtpu",
        {"teid": 1}, """
        34 ff 002e  E 1; Length 34 + 12
        00000001    TEID
        0000 00 40  Next Extension Header Type: UDP port (bits 8 and 7: 01)
        01 0868 85  1 word; port 2152; Next Extension Header Type
        01 0009 00  PDU session container
    """, GTPU, inner="ipv4"),
    received("TS 29.281 §5.2.1: comprehension required by the endpoint, which is us", "gtpu", {"teid": 1}, """
        34 ff 002a  E 1
        00000001    TEID
        0000 00 84  Next Extension Header Type: NR RAN container (bits 8 and 7: 10)
        01 0000 00  1 word
    """, GTPU, inner="ipv4", reason="GTPU_EXTENSION"),
    received("TS 29.281 §5.2.1: comprehension required by everybody", "gtpu", {"teid": 1}, """
        34 ff 002a  E 1
        00000001    TEID
        0000 00 c0  Next Extension Header Type: PDCP PDU number (bits 8 and 7: 11)
        01 0000 00  1 word
    """, GTPU, inner="ipv4", reason="GTPU_EXTENSION"),
    received("TS 29.281 §7.3.1: an error indication is for the host", "gtpu", {"teid": 1}, """
        32 1a 0026  S 1; Message Type 26
        00000000    TEID 0
        0001 00 00  Sequence Number
    """, GTPU, inner="ipv4", reason="CONTROL"),
    received("TS 29.281 §5.1: version 1, but GTP'", "gtpu", {"teid": 1}, """
        20 ff 0022  PT 0
        00000001    TEID
    """, GTPU, inner="ipv4", reason="CONTROL"),
    # ---- L2TPv3: RFC 3931, RFC 4719 ---------------------------------------------------------------------------
    Vector("§4.1.2.1, §4.6: over UDP, a cookie of 8 bytes, the default sublayer", "l2tp",
        {"session_id": 0x12345678, "cookie": "0011223344556677", "source_port": SOURCE_PORT}, """
        0003 0000   T 0, x, Ver 3; Reserved
        12345678    Session ID
        0011223344556677  Cookie
        00000000    x S x x x x x x: S 0; Sequence Number
    """, L2TP),
    Vector("§4.1.2.1: over UDP and IPv6, neither cookie nor sublayer", "l2tp",
        {"session_id": 1, "l2spec_type": "none", "source_port": SOURCE_PORT}, """
        0003 0000   T 0, Ver 3; Reserved
        00000001    Session ID
    """, L2TP, inner="ethernet ipv6", underlay=6),
    Vector("§4.1.1.1: over IP, a cookie of 4 bytes", "l2tp",
        {"encap": "ip", "session_id": 0xFFFFFFFF, "cookie": "00112233", "l2spec_type": "none"}, """
        ffffffff    Session ID
        00112233    Cookie
    """, L2TP_IP),
    Vector("§4.1.1.1, §4.6: over IP, the default sublayer", "l2tp", {"encap": "ip", "session_id": 5}, """
        00000005    Session ID
        00000000    S 0; Sequence Number
    """, L2TP_IP, underlay=6),
    received("§4.6: a sequence number in the sublayer", "l2tp", {"encap": "ip", "session_id": 5}, """
        00000005    Session ID
        40 123456   S 1; Sequence Number
    """, L2TP_IP),
    received("§4.1.2.1: reserved bits of the UDP form are ignored", "l2tp", {"session_id": 5}, """
        7ff3 ffff   T 0, x, Ver 3; Reserved
        00000005    Session ID
        00000000    sublayer
    """, L2TP),
    received("§4.1.2.2: T makes it a control message", "l2tp", {"session_id": 5}, """
        c803 0054   T, L and S, Ver 3; Length
        00000005    Control Connection ID
        00000000    Ns, Nr
    """, L2TP, reason="CONTROL"),
    received("§4.1.1.2: session 0 is the control connection", "l2tp", {"encap": "ip", "session_id": 5}, """
        00000000    no session
        c803 0054   T, L and S, Ver 3; Length
        00000005    Control Connection ID
    """, L2TP_IP, reason="CONTROL"),
    received("§4.1.1: another cookie", "l2tp", {"encap": "ip", "session_id": 5, "cookie": "00112233"}, """
        00000005    Session ID
        00112234    Cookie
        00000000    sublayer
    """, L2TP_IP, reason="L2TP_COOKIE"),
    # ---- SRv6: RFC 8754, RFC 8986 -------------------------------------------------------------------------------
    Vector("RFC 8754 §2, RFC 8986 §5.1: H.Encaps, the segments from the last to the first", "srv6",
        {"segments": SEGMENTS}, """
        04 06 04 02  Next Header IPv4, Hdr Ext Len 6 (x 8 bytes), Routing Type 4, Segments Left 2
        02 00 0000   Last Entry 2, Flags, Tag
        fd00003000300000 0000000000000002  Segment List[0]: the last segment
        fd00000900000000 0000000000000002  Segment List[1]
        fd00000900000000 0000000000000001  Segment List[2]: the first, where the packet goes now
    """, ("ip", 43), inner="ipv4", underlay=6, destination=SEGMENTS[0], arrives=False),
    Vector("RFC 8754 §4.1.1, RFC 8986 §5.2: H.Encaps.Red leaves the first segment out", "srv6",
        {"segments": SEGMENTS, "mode": "reduced"}, """
        29 04 04 02  Next Header IPv6, Hdr Ext Len 4, Routing Type 4, Segments Left 2
        01 00 0000   Last Entry 1: two are listed
        fd00003000300000 0000000000000002  Segment List[0]
        fd00000900000000 0000000000000002  Segment List[1]
    """, ("ip", 43), inner="ipv6", underlay=6, destination=SEGMENTS[0], arrives=False),
    Vector("RFC 8986 §5.1: H.Encaps to one segment, the remote", "srv6", {}, """
        29 02 04 00  Next Header IPv6, Hdr Ext Len 2, Routing Type 4, Segments Left 0
        00 00 0000   Last Entry 0, Flags, Tag
        fd00003000300000 0000000000000002  Segment List[0]
    """, ("ip", 43), inner="ipv6", underlay=6),
    Vector("RFC 8986 §5.2: H.Encaps.Red to one segment needs no header", "srv6", {"mode": "reduced"}, "",
        ("ip", 4), inner="ipv4", underlay=6),
    Vector("RFC 8986 §5.3: H.Encaps.L2", "srv6", {"mode": "l2"}, """
        8f 02 04 00  Next Header 143: Ethernet
        00 00 0000   Last Entry 0, Flags, Tag
        fd00003000300000 0000000000000002  Segment List[0]
    """, ("ip", 43), underlay=6),
    received("RFC 8986 §5.4, §4.9: H.Encaps.L2.Red has none", "srv6", {"mode": "l2"}, "", ("ip", 143),
        underlay=6),
    received("RFC 8754 §2.1: flags, tag and TLVs are skipped at the end of the path", "srv6", {}, """
        04 05 04 00  Next Header IPv4, Hdr Ext Len 5: 40 bytes
        01 ff abcd   Last Entry 1, Flags, Tag
        fd00003000300000 0000000000000002  Segment List[0]
        fd00000900000000 0000000000000001  Segment List[1]
        04 06 000000000000  PadN of 8 bytes
    """, ("ip", 43), inner="ipv4", underlay=6),
    received("RFC 8754 §4.3.1: segments that are left are not ours to pop", "srv6", {}, """
        04 04 04 01  Segments Left 1
        01 00 0000   Last Entry 1
        fd00000900000000 0000000000000001  Segment List[0]
        fd00003000300000 0000000000000002  Segment List[1]
    """, ("ip", 43), inner="ipv4", underlay=6, reason="CONTROL"),
    received("RFC 8754 §2: another next header than Ethernet or IP", "srv6", {}, """
        11 02 04 00  Next Header UDP
        00 00 0000   Last Entry 0
        fd00003000300000 0000000000000002  Segment List[0]
    """, ("ip", 43), inner="ipv4", underlay=6, reason="SRV6_HEADER"),
]  # fmt: skip


def label(vector: Vector) -> str:
    """The name of a test."""
    return f"{vector.protocol}: {vector.claim}"
