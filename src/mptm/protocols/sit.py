# SPDX-License-Identifier: GPL-2.0-only
"""SIT: IPv6 in IPv4, also called 6in4 (RFC 4213 §3).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|Version|  IHL  |      TOS      |          Total Length         |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|         Identification        |Flags|     Fragment Offset     |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|      TTL      |  Protocol 41  |        Header Checksum        |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

It is the outer IPv4 header that says what follows: there is no other. Behind it the inner IPv6 packet.

Received: the inner packet must be IPv6.
"""

from __future__ import annotations

from mptm.headers import IP_PROTOCOL_IPV6
from mptm.protocols.base import HeaderlessProtocol
from mptm.template import InnerFamily


class Sit(HeaderlessProtocol):
    """The protocol; stateless."""

    name = "sit"
    title = "SIT"
    reference = "RFC 4213"
    ip_protocol = IP_PROTOCOL_IPV6
    underlays = (4,)
    family = InnerFamily.IPV6


PROTOCOL = Sit()
