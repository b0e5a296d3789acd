# SPDX-License-Identifier: GPL-2.0-only
"""GENEVE: Ethernet frames over UDP with a 24-bit network identifier (RFC 8926 §3.4).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|Ver|  Opt Len  |O|C|    Rsvd.  |          Protocol Type        |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|        Virtual Network Identifier (VNI)       |    Reserved   |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6, UDP to port 6081; behind it the inner Ethernet frame (protocol type 0x6558).
"""

from __future__ import annotations

import struct
from typing import Annotated

from msgspec import Meta

from mptm.protocols.base import UdpOptions, UdpProtocol

ETHERNET_BRIDGING = 0x6558
"""Protocol type of an Ethernet frame (RFC 8926 §3.4)."""


class GeneveOptions(UdpOptions, frozen=True, kw_only=True):
    """What an operator sets on a GENEVE tunnel."""

    vni: Annotated[int, Meta(ge=0, le=2**24 - 1, description="virtual network identifier")]
    port: Annotated[int, Meta(ge=1, le=65535, description="UDP destination port, also listened on")] = 6081


class Geneve(UdpProtocol[GeneveOptions]):
    """The protocol; stateless."""

    name = "geneve"
    title = "GENEVE"
    reference = "RFC 8926"
    parser = 1
    options = GeneveOptions

    def header(self, options: GeneveOptions) -> bytes:
        """Version 0, no options, not a control packet (O = 0), nothing critical (C = 0)."""
        return struct.pack("!BBHI", 0, 0, ETHERNET_BRIDGING, self.tunnel_id(options) << 8)

    def tunnel_id(self, options: GeneveOptions) -> int:
        """The VNI."""
        return options.vni

    def describe_header(self, options: GeneveOptions) -> str:
        """See UdpProtocol."""
        return f"geneve(vni={self.tunnel_id(options):#x},proto={ETHERNET_BRIDGING:#x})"


PROTOCOL = Geneve()
