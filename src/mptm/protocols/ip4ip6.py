# SPDX-License-Identifier: GPL-2.0-only
"""IPv4-in-IPv6: IPv4 in IPv6, without a tunnel encapsulation limit (RFC 2473 §3).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|Version| Traffic Class |               Flow Label              |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|         Payload Length        |   Next Hdr 4  |   Hop Limit   |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

It is the outer IPv6 header that says what follows: there is no other. Behind it the inner IPv4 packet.

Received: the inner packet must be IPv4. A destination option with the tunnel encapsulation limit (§4.1.1) may be in
front of it, and is skipped.
"""

from __future__ import annotations

from mptm.headers import IP_PROTOCOL_IPV4
from mptm.protocols.base import HeaderlessProtocol
from mptm.template import InnerFamily


class Ip4Ip6(HeaderlessProtocol):
    """The protocol; stateless."""

    name = "ip4ip6"
    title = "IPv4-in-IPv6"
    reference = "RFC 2473"
    ip_protocol = IP_PROTOCOL_IPV4
    underlays = (6,)
    family = InnerFamily.IPV4


PROTOCOL = Ip4Ip6()
