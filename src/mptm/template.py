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


@dataclass(frozen=True)
class Patch:
    """One field that the data plane fills in: `offset` in bytes from the start of `Template.outer`.

    `bias` is added to the length of the whole outgoing frame (LEN16, IPV4, IPV6), else 0.
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
    """

    outer: bytes
    patches: tuple[Patch, ...]
    strip: int = 0
    l2_len: int = 14
    tos_mask: int = 0x03
    ttl_mask: int = 0

    def overhead(self) -> int:
        """Bytes of the egress MTU that are not the inner IP packet's (inner Ethernet header counted)."""
        return len(self.outer) - self.l2_len + 14 - self.strip

    def inner_mtu(self, egress_mtu: int) -> int:
        """Largest inner IP packet, in bytes, that fits an egress interface of `egress_mtu`."""
        return egress_mtu - self.overhead()
