# SPDX-License-Identifier: GPL-2.0-only
"""FOU: IP packets straight behind UDP, as the kernel's fou module has them (Linux net/ipv4/fou_core.c).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|   Source Port (of the flow)   |        Destination Port       |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|           UDP Length          |          UDP Checksum         |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

There is no header of its own: a UDP port is given to it, behind which an IPv4 or IPv6 packet begins.

Received: what `inner` says; IPv4 and IPv6 are told apart by the first four bits.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from mptm.protocols.base import Parser, UdpOptions, UdpProtocol
from mptm.template import ANY_FAMILY, InnerFamily

FAMILIES = {"ipv4": InnerFamily.IPV4, "ipv6": InnerFamily.IPV6, "any": ANY_FAMILY}


class FouOptions(UdpOptions, frozen=True, kw_only=True):
    """What an operator sets on a FOU tunnel."""

    inner: Annotated[
        Literal["ipv4", "ipv6", "any"],
        Meta(description="what is sent; a kernel at the other end takes one of them per port"),
    ] = "any"


class Fou(UdpProtocol[FouOptions]):
    """The protocol; stateless."""

    name = "fou"
    title = "FOU"
    reference = "Linux net/ipv4/fou_core.c"
    told_apart_by = ("remote", "local", "port")
    parser = Parser.IP
    options = FouOptions

    def header(self, options: FouOptions) -> bytes:
        """None."""
        return b""

    def inner_families(self, options: FouOptions) -> InnerFamily | None:
        """See Protocol."""
        return FAMILIES[options.inner]

    def tunnel_id(self, options: FouOptions) -> int:
        """None: the port alone tells."""
        return 0

    def describe_header(self, options: FouOptions) -> str:
        """See IpProtocol."""
        return ""


PROTOCOL = Fou()
