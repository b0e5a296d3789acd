# SPDX-License-Identifier: GPL-2.0-only
"""IPv6-in-IPv6: IPv6 in IPv6, without a tunnel encapsulation limit (RFC 2473 §3).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|Version| Traffic Class |               Flow Label              |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|         Payload Length        |  Next Hdr 41  |   Hop Limit   |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

It is the outer IPv6 header that says what follows: there is no other. Behind it the inner IPv6 packet.

Received: the inner packet must be IPv6. A destination option with the tunnel encapsulation limit (§4.1.1) may be in
front of it, and is skipped.
"""

from __future__ import annotations

from mptm.headers import IP_PROTOCOL_IPV6
from mptm.protocols.base import HeaderlessProtocol
from mptm.template import InnerFamily


class Ip6Ip6(HeaderlessProtocol):
    """The protocol; stateless."""

    name = "ip6ip6"
    title = "IPv6-in-IPv6"
    reference = "RFC 2473"
    ip_protocol = IP_PROTOCOL_IPV6
    underlays = (6,)
    family = InnerFamily.IPV6


PROTOCOL = Ip6Ip6()
