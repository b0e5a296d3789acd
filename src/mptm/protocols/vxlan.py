# SPDX-License-Identifier: GPL-2.0-only
"""VXLAN: Ethernet frames over UDP with a 24-bit network identifier (RFC 7348 §5).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|R|R|R|R|I|R|R|R|            Reserved                           |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|                VXLAN Network Identifier (VNI) |   Reserved    |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6, UDP to port 4789 (older Linux: 8472); behind it the inner Ethernet frame.

Received: the I flag must be set; all other flags and reserved bits are ignored (§5), so VXLAN-GBP is read as well.
"""

from __future__ import annotations

import struct

from mptm.protocols.base import Parser, UdpOptions, UdpPort, UdpProtocol, Vni

VNI_VALID = 0x08
"""The I flag: the VNI field is valid (RFC 7348 §5)."""


class VxlanOptions(UdpOptions, frozen=True, kw_only=True):
    """What an operator sets on a VXLAN tunnel."""

    vni: Vni
    port: UdpPort = 4789


class Vxlan(UdpProtocol[VxlanOptions]):
    """The protocol; stateless."""

    name = "vxlan"
    title = "VXLAN"
    reference = "RFC 7348"
    parser = Parser.VXLAN
    options = VxlanOptions

    def header(self, options: VxlanOptions) -> bytes:
        """All reserved bits are zero."""
        return struct.pack("!B3xI", VNI_VALID, self.tunnel_id(options) << 8)

    def tunnel_id(self, options: VxlanOptions) -> int:
        """The VNI."""
        return options.vni

    def describe_header(self, options: VxlanOptions) -> str:
        """See IpProtocol."""
        return f"vxlan(flags={VNI_VALID:#04x},vni={self.tunnel_id(options):#x})"


PROTOCOL = Vxlan()
