# SPDX-License-Identifier: GPL-2.0-only
"""IPIP: IPv4 in IPv4 (RFC 2003 §3.1).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|Version|  IHL  |      TOS      |          Total Length         |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|         Identification        |Flags|     Fragment Offset     |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|      TTL      |   Protocol 4  |        Header Checksum        |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

It is the outer IPv4 header that says what follows: there is no other. Behind it the inner IPv4 packet.

Received: the inner packet must be IPv4.
"""

from __future__ import annotations

from mptm.headers import IP_PROTOCOL_IPV4
from mptm.protocols.base import HeaderlessProtocol
from mptm.template import InnerFamily


class Ipip(HeaderlessProtocol):
    """The protocol; stateless."""

    name = "ipip"
    title = "IPIP"
    reference = "RFC 2003"
    ip_protocol = IP_PROTOCOL_IPV4
    underlays = (4,)
    family = InnerFamily.IPV4


PROTOCOL = Ipip()
