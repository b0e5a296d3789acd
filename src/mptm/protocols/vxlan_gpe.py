# SPDX-License-Identifier: GPL-2.0-only
"""VXLAN-GPE: VXLAN that says what it carries (draft-ietf-nvo3-vxlan-gpe-13 §3.1).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|R|R|Ver|I|P|B|O|            Reserved           | Next Protocol |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|         VXLAN Network Identifier (VNI)        |    Reserved   |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6, UDP to port 4790; behind it an Ethernet frame (3) or IPv4 (1) or IPv6 (2).

Received: the I flag must be set and the version 0; an OAM packet (O) and other next protocols are refused; without the
P flag an Ethernet frame follows. Next protocol 4 is NSH's, and a tunnel of its own.
"""

from __future__ import annotations

import struct

from mptm.protocols.base import Parser, Payload, UdpOptions, UdpPort, UdpProtocol, Vni
from mptm.template import ANY_FAMILY, InnerFamily, Patch, PatchOp

VNI_AND_PROTOCOL = 0x0C
"""The flags I (the VNI is valid) and P (the next protocol is)."""
ETHERNET, NSH = 3, 4
"""Next protocols (§3.3); IPv4 and IPv6 are written per packet."""
NEXT_PROTOCOL_OFFSET = 3


class VxlanGpeOptions(UdpOptions, frozen=True, kw_only=True):
    """What an operator sets on a VXLAN-GPE tunnel."""

    vni: Vni
    payload: Payload = "l2"
    port: UdpPort = 4790


class VxlanGpe(UdpProtocol[VxlanGpeOptions]):
    """The protocol; stateless."""

    name = "vxlan-gpe"
    title = "VXLAN-GPE"
    reference = "draft-ietf-nvo3-vxlan-gpe"
    parser = Parser.VXLAN_GPE
    options = VxlanGpeOptions

    def header(self, options: VxlanGpeOptions) -> bytes:
        """Version 0, neither BUM nor OAM."""
        return gpe_header(options.vni, ETHERNET if options.payload == "l2" else 0)

    def header_patches(self, options: VxlanGpeOptions) -> tuple[Patch, ...]:
        """The next protocol of an IP packet."""
        return () if options.payload == "l2" else (Patch(PatchOp.INNER_GPE, NEXT_PROTOCOL_OFFSET),)

    def inner_families(self, options: VxlanGpeOptions) -> InnerFamily | None:
        """See Protocol."""
        return None if options.payload == "l2" else ANY_FAMILY

    def tunnel_id(self, options: VxlanGpeOptions) -> int:
        """The VNI."""
        return options.vni

    def describe_header(self, options: VxlanGpeOptions) -> str:
        """See IpProtocol."""
        return describe_gpe(options.vni, str(ETHERNET) if options.payload == "l2" else "inner")


def gpe_header(vni: int, next_protocol: int) -> bytes:
    """A VXLAN-GPE header."""
    return struct.pack("!BHBI", VNI_AND_PROTOCOL, 0, next_protocol, vni << 8)


def describe_gpe(vni: int, next_protocol: str) -> str:
    """A VXLAN-GPE header as text."""
    return f"vxlan(flags={VNI_AND_PROTOCOL:#04x},vni={vni:#x},next={next_protocol})"


PROTOCOL = VxlanGpe()
