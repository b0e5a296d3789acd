# SPDX-License-Identifier: GPL-2.0-only
"""A tunnel's outer header, complete but for what depends on the packet.

The control plane builds the bytes once; the data plane copies them in front of each packet and applies
the patches (`bpf/encap.h`). A protocol is whatever a `Template` can say: nothing in C knows its name.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

OUTER_SIZE = 128
"""Capacity of an outer header in bytes, Ethernet included (MPTM_OUTER_SIZE)."""

SUM_MAX = 1 << 14
"""Bytes of a frame over which the data plane can make a checksum (bpf/checksum.h)."""

INNER_ETHERNET_LEN = 14

PATCHES = 8
"""Patches that one template may have (MPTM_PATCHES)."""


class PatchOp(enum.IntEnum):
    """Mirrors `enum patch_op` of bpf/abi.h, where each is explained; a unit test compares the two by BTF."""

    LEN16 = 1
    IPV4 = 2
    IPV6 = 3
    FLOW16 = 4
    IPV4_ID = 5
    INNER_MACS = 6
    FLOW8 = 7
    INNER_ETHERTYPE = 8
    INNER_PROTOCOL = 9
    INNER_GPE = 10
    SEQUENCE = 11
    ERSPAN_TIME = 12
    CHECKSUM = 13
    UDP6_CHECKSUM = 14


class InnerFamily(enum.IntFlag):
    """IP versions that an L3 tunnel carries; mirrors `enum inner_family` of bpf/abi.h."""

    IPV4 = 1
    IPV6 = 2


class GsoKind(enum.IntEnum):
    """Mirrors `enum gso_kind` of bpf/abi.h, where each is explained."""

    SEGMENTS = 0
    UDP = 1
    GRE = 2
    IP = 3
    LINK = 4


class FixedPatch(enum.IntFlag):
    """Mirrors `enum fixed_patch` of bpf/abi.h, where each is explained."""

    IPV4 = 1
    IPV6 = 2
    UDP_LEN = 4
    FLOW16 = 8


ANY_FAMILY = InnerFamily.IPV4 | InnerFamily.IPV6


_ETHERTYPE_AT = 12
_VERSIONS = {b"\x08\x00": 4, b"\x86\xdd": 6}
_PROTOCOL_AT = {4: INNER_ETHERNET_LEN + 9, 6: INNER_ETHERNET_LEN + 6}
_UDP, _GRE = 17, 47
_UDP_LEN_AT = 4
_DIFFERS_PER_SEGMENT = frozenset(
    (PatchOp.SEQUENCE, PatchOp.CHECKSUM, PatchOp.UDP6_CHECKSUM, PatchOp.ERSPAN_TIME)
)


@dataclass(frozen=True)
class Patch:
    """One field that the data plane fills in: `offset` in bytes from the start of `Template.outer`.

    `bias` is added to the length of the whole outgoing frame (LEN16, IPV4, IPV6); for CHECKSUM it leads from the
    field to the first byte that is summed; else it is 0.
    """

    op: PatchOp
    offset: int
    bias: int = 0


@dataclass(frozen=True)
class Template:
    """What encapsulation puts in front of a packet.

    outer       the header from the outer destination MAC to the last byte before the inner packet;
                patched length, TOS (masked bits), TTL (if inherited), port and flow label fields are zero,
                an IPv4 checksum is the right one for exactly these bytes. Even length, at most OUTER_SIZE.
    patches     at most PATCHES.
    strip       bytes of the inner frame that are dropped first (12 for VLAN: its MAC addresses).
    l2_len      bytes of `outer` that the egress MTU doesn't count (14, or 18 with a VLAN tag).
    tos_mask    bits of TOS / traffic class taken from the inner packet: 0x03 ECN only, 0xff DSCP too.
    ttl_mask    0xff: TTL / hop limit taken from the inner packet; 0: the template's.
    untagged    VLAN tags of the inner frame are dropped; a patch INNER_MACS right behind `outer` moves its MAC
                addresses.
    inner_families  None: the payload is an Ethernet frame. Else it is an IP packet of these versions; the inner
                Ethernet header and its VLAN tags are dropped.
    """

    outer: bytes
    patches: tuple[Patch, ...]
    strip: int = 0
    l2_len: int = 14
    tos_mask: int = 0x03
    ttl_mask: int = 0
    untagged: bool = False
    inner_families: InnerFamily | None = None

    @property
    def is_l3(self) -> bool:
        """Whether IP packets are carried, not Ethernet frames."""
        return self.inner_families is not None

    @property
    def outer_version(self) -> int:
        """Version of the outer IP header; 0: there is none."""
        return _VERSIONS.get(self.outer[_ETHERTYPE_AT : _ETHERTYPE_AT + 2], 0)

    def fixed(self) -> dict[Patch, FixedPatch]:
        """Those of the patches that the data plane has a place for beforehand; the others come after them.

        An identification goes into the checksum of its IPv4 header, which then can't be finished before it.
        """
        version = self.outer_version
        has_id = any(patch.op == PatchOp.IPV4_ID for patch in self.patches)
        if not version or has_id:
            return {}
        ip_end = INNER_ETHERNET_LEN + (20 if version == 4 else 40)
        header = Patch(PatchOp.IPV4, INNER_ETHERNET_LEN, -INNER_ETHERNET_LEN)
        if version == 6:
            header = Patch(PatchOp.IPV6, INNER_ETHERNET_LEN, -ip_end)
        known = {header: FixedPatch.IPV4 if version == 4 else FixedPatch.IPV6}
        if self.outer[_PROTOCOL_AT[version]] == _UDP:
            known[Patch(PatchOp.LEN16, ip_end + _UDP_LEN_AT, -ip_end)] = FixedPatch.UDP_LEN
            known[Patch(PatchOp.FLOW16, ip_end)] = FixedPatch.FLOW16
        found = {patch: known[patch] for patch in self.patches if patch in known}
        return found if header in found else {}

    @property
    def gso(self) -> GsoKind:
        """What the kernel can be told of this header, so that a GSO packet goes whole behind it.

        It writes lengths of IP and UDP headers and IPv4 identifications anew in each segment, and copies the rest: a
        further length, a sequence number or a checksum would be wrong (Linux, Documentation/networking/
        segmentation-offloads.rst).
        """
        version = self.outer_version
        if not version:
            return GsoKind.LINK
        ip_end = INNER_ETHERNET_LEN + (20 if version == 4 else 40)
        protocol = self.outer[_PROTOCOL_AT[version]]
        for patch in self.patches:
            is_udp_len = protocol == _UDP and patch.offset == ip_end + _UDP_LEN_AT
            if patch.op in _DIFFERS_PER_SEGMENT or (patch.op == PatchOp.LEN16 and not is_udp_len):
                return GsoKind.SEGMENTS
        if protocol == _UDP:
            return GsoKind.UDP
        if protocol == _GRE:
            return GsoKind.GRE
        return GsoKind.IP if self.is_l3 and len(self.outer) == ip_end else GsoKind.SEGMENTS

    @property
    def gso_text(self) -> str:
        """What becomes of a GSO packet at TC: "whole", or "segments" that are made before."""
        return "segments" if self.gso == GsoKind.SEGMENTS else "whole"

    def overhead(self) -> int:
        """Bytes of the egress MTU that are not the inner IP packet's (an inner Ethernet header is counted)."""
        inner_ethernet = 0 if self.is_l3 else INNER_ETHERNET_LEN - self.strip
        return len(self.outer) - self.l2_len + inner_ethernet

    def max_len(self, egress_mtu: int) -> int:
        """Longest outgoing frame; one whose checksum may have to be added up byte by byte is no longer than SUM_MAX."""
        longest = egress_mtu + self.l2_len
        is_summed = any(patch.op in (PatchOp.CHECKSUM, PatchOp.UDP6_CHECKSUM) for patch in self.patches)
        return min(longest, SUM_MAX) if is_summed else longest

    def inner_mtu(self, egress_mtu: int) -> int:
        """Largest inner IP packet, in bytes, that fits an egress interface of `egress_mtu`."""
        return self.max_len(egress_mtu) - self.l2_len - self.overhead()
