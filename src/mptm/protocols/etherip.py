# SPDX-License-Identifier: GPL-2.0-only
"""EtherIP: Ethernet frames over IP (RFC 3378 §3).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|Version|        Reserved       |       Ethernet frame ...      |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6 (protocol 97); behind its two bytes the inner Ethernet frame.

Received: version 3 with reserved bits zero.
"""

from __future__ import annotations

from mptm.headers import IP_PROTOCOL_ETHERIP
from mptm.protocols.base import HeaderProtocol, IpOptions, Parser

HEADER = bytes([0x30, 0x00])
"""Version 3, reserved bits zero."""


class Etherip(HeaderProtocol[IpOptions]):
    """The protocol; stateless."""

    name = "etherip"
    title = "EtherIP"
    reference = "RFC 3378"
    told_apart_by = ("remote", "local")
    parser = Parser.ETHERIP
    ip_protocol = IP_PROTOCOL_ETHERIP
    options = IpOptions

    def header(self, options: IpOptions) -> bytes:
        """See IpProtocol."""
        return HEADER

    def tunnel_id(self, options: IpOptions) -> int:
        """None: the addresses alone tell."""
        return 0

    def describe_header(self, options: IpOptions) -> str:
        """See IpProtocol."""
        return "etherip(version=3)"


PROTOCOL = Etherip()
