# SPDX-License-Identifier: GPL-2.0-only
"""Bytes of Ethernet, IPv4, IPv6 and UDP headers, and the composer that stacks them into a template.

RFC 894 and 2464 (Ethernet), 791 (IPv4), 8200 (IPv6), 768 (UDP), 1071 (checksum).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, Self

from mptm.facts import IPAddress
from mptm.template import OUTER_SIZE, PATCHES, InnerFamily, Patch, PatchOp, Template

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPES_VLAN = (0x8100, 0x88A8)
ETHERTYPE_BRIDGED = 0x6558
"""Transparent Ethernet bridging: what GRE and GENEVE say of an Ethernet frame."""

IP_PROTOCOL_ICMP = 1
IP_PROTOCOL_IPV4 = 4
IP_PROTOCOL_TCP = 6
IP_PROTOCOL_UDP = 17
IP_PROTOCOL_IPV6 = 41
IP_PROTOCOL_ROUTING = 43
IP_PROTOCOL_GRE = 47
IP_PROTOCOL_ICMPV6 = 58
IP_PROTOCOL_ETHERIP = 97
IP_PROTOCOL_L2TP = 115
IP_PROTOCOL_ETHERNET = 143

ETHERNET_LEN = 14
IPV4_LEN = 20
IPV6_LEN = 40
UDP_LEN = 8
TCP_LEN = 20
ICMP_LEN = 8
VLAN_LEN = 4
ARP_LEN = 28

IPV4_ID_OFFSET = 4
IPV6_NEXT_HEADER_OFFSET = 6
UDP_LENGTH_OFFSET = 4
DONT_FRAGMENT = 0x4000

ECN_MASK = 0x03
TOS_MASK = 0xFF
TTL_MASK = 0xFF

CHECKSUMS = (PatchOp.CHECKSUM, PatchOp.UDP6_CHECKSUM)
"""Patches that sum up what others have written: they come last, the innermost first."""


def checksum(data: bytes) -> int:
    """The Internet checksum of an even number of bytes (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ethernet(destination: bytes, source: bytes, ethertype: int) -> bytes:
    """An Ethernet II header (RFC 894)."""
    return struct.pack("!6s6sH", destination, source, ethertype)


def ipv4(
    source: IPv4Address,
    destination: IPv4Address,
    protocol: int,
    *,
    tos: int = 0,
    ttl: int = 64,
    total_len: int = 0,
    identification: int = 0,
    dont_fragment: bool = True,
) -> bytes:
    """An IPv4 header without options, its checksum right for exactly these bytes (RFC 791 §3.1)."""
    flags = DONT_FRAGMENT if dont_fragment else 0
    start = struct.pack("!BBHHHBB", 0x45, tos, total_len, identification, flags, ttl, protocol)
    addresses = source.packed + destination.packed
    return start + checksum(start + addresses).to_bytes(2, "big") + addresses


def ipv6(
    source: IPv6Address,
    destination: IPv6Address,
    next_header: int,
    *,
    traffic_class: int = 0,
    hop_limit: int = 64,
    payload_len: int = 0,
) -> bytes:
    """An IPv6 header with flow label 0 (RFC 8200 §3)."""
    first_word = 6 << 28 | traffic_class << 20
    start = struct.pack("!IHBB", first_word, payload_len, next_header, hop_limit)
    return start + source.packed + destination.packed


def udp(source_port: int, destination_port: int, length: int = 0) -> bytes:
    """A UDP header whose checksum is zero: none (RFC 768; over IPv6 for tunnels only, RFC 6935 §5)."""
    return struct.pack("!HHHH", source_port, destination_port, length, 0)


class HeaderTooLong(ValueError):
    """A header that doesn't fit an entry of the data plane."""


class Composer:
    """Stacks headers from Ethernet inwards and keeps the patches that belong to each."""

    def __init__(self, destination_mac: bytes, source_mac: bytes) -> None:
        self._macs = destination_mac, source_mac
        self._outer = b""
        self._patches: list[Patch] = []
        self._tos_mask = 0
        self._ttl_mask = 0

    def ip(
        self,
        source: IPAddress,
        destination: IPAddress,
        protocol: int,
        *,
        ttl: int | Literal["inherit"],
        dscp: int | Literal["inherit"],
        dont_fragment: bool,
    ) -> Self:
        """Ethernet and an IPv4 or IPv6 header by the addresses' family. ECN is the inner packet's (RFC 6040 §4.1)."""
        at = ETHERNET_LEN
        tos = 0 if dscp == "inherit" else dscp << 2
        fixed_ttl = 0 if ttl == "inherit" else ttl
        if isinstance(source, IPv4Address) and isinstance(destination, IPv4Address):
            self._outer = ethernet(*self._macs, ETHERTYPE_IPV4)
            self._outer += ipv4(
                source, destination, protocol, tos=tos, ttl=fixed_ttl, dont_fragment=dont_fragment
            )
            if not dont_fragment:
                # Before the header's own patch, which folds the checksum.
                self._patches.append(Patch(PatchOp.IPV4_ID, at + IPV4_ID_OFFSET))
            self._patches.append(Patch(PatchOp.IPV4, at, -at))
        elif isinstance(source, IPv6Address) and isinstance(destination, IPv6Address):
            self._outer = ethernet(*self._macs, ETHERTYPE_IPV6)
            self._outer += ipv6(source, destination, protocol, traffic_class=tos, hop_limit=fixed_ttl)
            self._patches.append(Patch(PatchOp.IPV6, at, -(at + IPV6_LEN)))
        else:
            raise ValueError(f"{source} and {destination} are of different IP versions")
        self._tos_mask = TOS_MASK if dscp == "inherit" else ECN_MASK
        self._ttl_mask = TTL_MASK if ttl == "inherit" else 0
        return self

    def udp(
        self, source_port: int | Literal["flow"], destination_port: int, *, checksum: bool = True
    ) -> Self:
        """A UDP header; source port "flow": 49152-65535 from the inner flow (RFC 7348 §5, RFC 8926 §3.3).

        `checksum` says whether there is one over IPv6; over IPv4 it is zero.
        """
        at = len(self._outer)
        if checksum and self._is_ipv6:
            self._patches.append(Patch(PatchOp.UDP6_CHECKSUM, at))
        if source_port == "flow":
            self._patches.append(Patch(PatchOp.FLOW16, at))
        self._patches.append(Patch(PatchOp.LEN16, at + UDP_LENGTH_OFFSET, -at))
        return self.append(udp(0 if source_port == "flow" else source_port, destination_port))

    def append(self, header: bytes, patches: Iterable[Patch] = ()) -> Self:
        """The bytes of a header, and what of it depends on the packet, with offsets from the header's start.

        The bias of a LEN16 is likewise minus the offset, in the header, from which on the length counts.
        """
        at = len(self._outer)
        for patch in patches:
            bias = patch.bias - at if patch.op is PatchOp.LEN16 else patch.bias
            self._patches.append(Patch(patch.op, at + patch.offset, bias))
        self._outer += header
        return self

    def patch_next_header(self) -> Self:
        """The next header of the IPv6 header is 4 or 41 by the inner packet."""
        if not self._is_ipv6:
            raise ValueError("an IPv4 header's checksum doesn't follow its protocol")
        self._patches.append(Patch(PatchOp.INNER_PROTOCOL, ETHERNET_LEN + IPV6_NEXT_HEADER_OFFSET))
        return self

    @property
    def _is_ipv6(self) -> bool:
        return self._outer[12:14] == ETHERTYPE_IPV6.to_bytes(2, "big")

    def template(self, inner_families: InnerFamily | None = None) -> Template:
        """What was stacked, for Ethernet frames or for IP packets. HeaderTooLong: the data plane can't carry it."""
        plain = [patch for patch in self._patches if patch.op not in CHECKSUMS]
        last = sorted(
            (patch for patch in self._patches if patch.op in CHECKSUMS), key=lambda patch: -patch.offset
        )
        if len(self._outer) > OUTER_SIZE or len(self._patches) > PATCHES or len(self._outer) % 2:
            raise HeaderTooLong(
                f"an outer header of {len(self._outer)} bytes, {len(self._patches)} of its fields depending on the "
                f"packet, doesn't fit: at most {OUTER_SIZE} bytes, an even number, and {PATCHES} such fields"
            )
        return Template(
            outer=self._outer,
            patches=(*plain, *last),
            l2_len=ETHERNET_LEN,
            tos_mask=self._tos_mask,
            ttl_mask=self._ttl_mask,
            inner_families=inner_families,
        )


def describe_outer(template: Template) -> str:
    """Ethernet, IP and (if any) UDP header of a template as text, the way Open vSwitch prints them.

    Fields that are patched per packet are named by what they come from: `flow`, `inherit`, `inner`, `packet`.
    """
    outer = template.outer
    destination, source, ethertype = struct.unpack_from("!6s6sH", outer)
    text = f"eth(dst={destination.hex(':')},src={source.hex(':')},type={ethertype:#06x})"
    by_inner = any(
        patch.op is PatchOp.INNER_PROTOCOL and patch.offset == ETHERNET_LEN + IPV6_NEXT_HEADER_OFFSET
        for patch in template.patches
    )
    inherits_tos, inherits_ttl = template.tos_mask == TOS_MASK, template.ttl_mask == TTL_MASK
    if ethertype == ETHERTYPE_IPV4:
        tos, flags, ttl, protocol = struct.unpack_from("!xB4xHBB", outer, ETHERNET_LEN)
        ip_source, ip_destination = struct.unpack_from("!4s4s", outer, ETHERNET_LEN + 12)
        at = ETHERNET_LEN + IPV4_LEN
        text += (
            f",ipv4(src={IPv4Address(ip_source)},dst={IPv4Address(ip_destination)},proto={protocol},"
            f"tos={'inherit' if inherits_tos else hex(tos)},ttl={'inherit' if inherits_ttl else ttl},"
            f"frag={flags:#x})"
        )
    else:
        first_word, protocol, ttl = struct.unpack_from("!I2xBB", outer, ETHERNET_LEN)
        ip_source, ip_destination = struct.unpack_from("!16s16s", outer, ETHERNET_LEN + 8)
        at = ETHERNET_LEN + IPV6_LEN
        text += (
            f",ipv6(src={IPv6Address(ip_source)},dst={IPv6Address(ip_destination)},label=flow,"
            f"proto={'inner' if by_inner else protocol},"
            f"tclass={'inherit' if inherits_tos else hex(first_word >> 20 & 0xFF)},"
            f"hlimit={'inherit' if inherits_ttl else ttl})"
        )
    if protocol != IP_PROTOCOL_UDP:
        return text
    source_port, destination_port = struct.unpack_from("!HH", outer, at)
    patched = {patch.op for patch in template.patches if patch.offset == at}
    source = "flow" if PatchOp.FLOW16 in patched else source_port
    summed = "packet" if PatchOp.UDP6_CHECKSUM in patched else "0x0"
    return f"{text},udp(src={source},dst={destination_port},csum={summed})"


def describe_frame(frame: bytes) -> str:
    """An Ethernet frame as text, from its MAC addresses to the transport header, in the style of `describe_outer`.

    What is cut short, or unknown, ends it.
    """
    if len(frame) < ETHERNET_LEN:
        return f"short({len(frame)} bytes)"
    destination, source, ethertype = struct.unpack_from("!6s6sH", frame)
    parts = [f"eth(dst={destination.hex(':')},src={source.hex(':')},type={ethertype:#06x})"]
    at = ETHERNET_LEN
    while ethertype in ETHERTYPES_VLAN and len(frame) >= at + VLAN_LEN:
        tci, ethertype = struct.unpack_from("!HH", frame, at)
        parts.append(f"vlan(vid={tci & 0xFFF},pcp={tci >> 13},type={ethertype:#06x})")
        at += VLAN_LEN
    if ethertype == ETHERTYPE_ARP:
        parts.append(_describe_arp(frame[at:]))
    elif ethertype in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
        parts.append(describe_ip(frame[at:]))
    return ",".join(filter(None, parts))


def describe_ip(packet: bytes) -> str:
    """An IP packet as text; "" where there is none."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= IPV4_LEN:
        tos, total_len, fragment, ttl, protocol = struct.unpack_from("!xBH2xHBB", packet)
        source, destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        text = (
            f"ipv4(src={source},dst={destination},proto={protocol},tos={tos:#x},ttl={ttl},frag={fragment:#x})"
        )
        header_len = max(4 * (packet[0] & 0x0F), IPV4_LEN)
        is_first = not fragment & 0x1FFF
        rest = packet[header_len:total_len] if is_first else b""
    elif version == 6 and len(packet) >= IPV6_LEN:
        first_word, payload_len, protocol, ttl = struct.unpack_from("!IHBB", packet)
        source6, destination6 = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
        text = (
            f"ipv6(src={source6},dst={destination6},label={first_word & 0xFFFFF:#x},proto={protocol},"
            f"tclass={first_word >> 20 & 0xFF:#x},hlimit={ttl})"
        )
        rest = packet[IPV6_LEN : IPV6_LEN + payload_len]
    else:
        return ""
    return ",".join(filter(None, (text, _describe_transport(protocol, rest))))


def _describe_transport(protocol: int, data: bytes) -> str:
    if protocol == IP_PROTOCOL_UDP and len(data) >= UDP_LEN:
        source, destination, checksum_ = struct.unpack_from("!HH2xH", data)
        return f"udp(src={source},dst={destination},csum={checksum_:#x})"
    if protocol == IP_PROTOCOL_TCP and len(data) >= TCP_LEN:
        source, destination, flags = struct.unpack_from("!HH8xH", data)
        return f"tcp(src={source},dst={destination},flags={flags & 0x1FF:#x})"
    if protocol in (IP_PROTOCOL_ICMP, IP_PROTOCOL_ICMPV6) and len(data) >= ICMP_LEN:
        name = "icmp" if protocol == IP_PROTOCOL_ICMP else "icmpv6"
        target = f",target={IPv6Address(data[8:24])}" if _has_target(protocol, data) else ""
        mtu = f",mtu={int.from_bytes(data[4:8])}" if _has_mtu(protocol, data) else ""
        return f"{name}(type={data[0]},code={data[1]}{target}{mtu})"
    return ""


def _has_target(protocol: int, data: bytes) -> bool:
    """Whether it is a neighbour solicitation or advertisement (RFC 4861 §4.3, §4.4)."""
    return protocol == IP_PROTOCOL_ICMPV6 and data[0] in (135, 136) and len(data) >= 24


def _has_mtu(protocol: int, data: bytes) -> bool:
    """Whether it says that a packet was too big (RFC 1191 §4, RFC 4443 §3.2)."""
    return data[:2] == b"\3\4" if protocol == IP_PROTOCOL_ICMP else data[0] == 2


def _describe_arp(data: bytes) -> str:
    """RFC 826, for IPv4 over Ethernet."""
    if len(data) < ARP_LEN or data[:6] != b"\0\1\x08\0\6\4":
        return ""
    operation, sender_mac, sender, target_mac, target = struct.unpack_from("!6xH6s4s6s4s", data)
    return (
        f"arp(op={operation},sip={IPv4Address(sender)},tip={IPv4Address(target)},"
        f"sha={sender_mac.hex(':')},tha={target_mac.hex(':')})"
    )


def hexdump(data: bytes) -> list[str]:
    """Lines of an offset and 16 bytes."""
    return [
        f"{at:04x}  {data[at : at + 8].hex(' ')}  {data[at + 8 : at + 16].hex(' ')}".rstrip()
        for at in range(0, len(data), 16)
    ]
