# SPDX-License-Identifier: GPL-2.0-only
"""GUE: IP packets over UDP behind a short header, or none (draft-ietf-intarea-gue-09 §3).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|Ver|C|   Hlen  |  Proto/ctype  |             Flags             |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6, UDP to port 6080. Behind the header of variant 0 an IPv4 (protocol 4) or IPv6
(41) packet; variant 1 has no header: the first bits of an IP version stand where the variant would.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from mptm.protocols.base import Parser, UdpOptions, UdpPort, UdpProtocol
from mptm.template import ANY_FAMILY, InnerFamily, Patch, PatchOp

HEADER_LEN = 4
PROTOCOL_OFFSET = 1


class GueOptions(UdpOptions, frozen=True, kw_only=True):
    """What an operator sets on a GUE tunnel."""

    variant: Annotated[
        Literal[0, 1], Meta(description="what is sent: 0: with a header, 1: without; both are accepted")
    ] = 0
    port: UdpPort = 6080


class Gue(UdpProtocol[GueOptions]):
    """The protocol; stateless."""

    name = "gue"
    title = "GUE"
    reference = "draft-ietf-intarea-gue"
    parser = Parser.GUE
    options = GueOptions

    def header(self, options: GueOptions) -> bytes:
        """No control message, no optional fields."""
        return bytes(HEADER_LEN) if options.variant == 0 else b""

    def header_patches(self, options: GueOptions) -> tuple[Patch, ...]:
        """The protocol of the inner packet."""
        return (Patch(PatchOp.INNER_PROTOCOL, PROTOCOL_OFFSET),) if options.variant == 0 else ()

    def inner_families(self, options: GueOptions) -> InnerFamily | None:
        """See Protocol."""
        return ANY_FAMILY

    def tunnel_id(self, options: GueOptions) -> int:
        """None: the port alone tells."""
        return 0

    def describe_header(self, options: GueOptions) -> str:
        """See IpProtocol."""
        return f"gue(variant={options.variant},proto=inner)" if options.variant == 0 else "gue(variant=1)"


PROTOCOL = Gue()
