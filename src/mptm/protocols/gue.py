# SPDX-License-Identifier: GPL-2.0-only
"""GUE: IP packets over UDP behind a short header, or none (draft-ietf-intarea-gue-09 §3).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|Ver|C|   Hlen  |  Proto/ctype  |             Flags             |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6, UDP to port 6080. Behind the header of variant 0 an IPv4 (protocol 4) or IPv6
(41) packet, or an Ethernet frame in EtherIP (97, RFC 3378); variant 1 has no header: the first bits of an IP version
stand where the variant would.

Received: both variants, whatever `variant` says. Control messages (C) and flags other than zero are refused, as both
may mean that no packet follows; private fields that Hlen counts are skipped.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from mptm.errors import InvalidIntent
from mptm.headers import IP_PROTOCOL_ETHERIP
from mptm.protocols import etherip
from mptm.protocols.base import Parser, Payload, UdpOptions, UdpPort, UdpProtocol
from mptm.template import ANY_FAMILY, InnerFamily, Patch, PatchOp

HEADER_LEN = 4
PROTOCOL_OFFSET = 1


class GueOptions(UdpOptions, frozen=True, kw_only=True):
    """What an operator sets on a GUE tunnel."""

    variant: Annotated[
        Literal[0, 1], Meta(description="what is sent: 0: with a header, 1: without; both are accepted")
    ] = 0
    port: UdpPort = 6080
    payload: Payload = "l3"

    def check(self) -> None:
        """See Checked."""
        if self.payload == "l2" and self.variant == 1:
            raise InvalidIntent(
                "gue variant 1 carries IP packets only; payload l2 needs variant 0", field="payload"
            )


class Gue(UdpProtocol[GueOptions]):
    """The protocol; stateless."""

    name = "gue"
    title = "GUE"
    reference = "draft-ietf-intarea-gue"
    told_apart_by = ("remote", "local", "port")
    parser = Parser.GUE
    options = GueOptions

    def header(self, options: GueOptions) -> bytes:
        """No control message, no optional fields; in front of an Ethernet frame EtherIP (RFC 3378)."""
        if options.payload == "l2":
            return bytes([0, IP_PROTOCOL_ETHERIP, 0, 0]) + etherip.HEADER
        return bytes(HEADER_LEN) if options.variant == 0 else b""

    def header_patches(self, options: GueOptions) -> tuple[Patch, ...]:
        """The protocol of the inner packet."""
        if options.variant == 1 or options.payload == "l2":
            return ()
        return (Patch(PatchOp.INNER_PROTOCOL, PROTOCOL_OFFSET),)

    def inner_families(self, options: GueOptions) -> InnerFamily | None:
        """See Protocol."""
        return ANY_FAMILY if options.payload == "l3" else None

    def tunnel_id(self, options: GueOptions) -> int:
        """None: the port alone tells."""
        return 0

    def describe_header(self, options: GueOptions) -> str:
        """See IpProtocol."""
        if options.variant == 1:
            return "gue(variant=1)"
        return (
            "gue(variant=0,proto=inner)"
            if options.payload == "l3"
            else "gue(variant=0,proto=97),etherip(version=3)"
        )


PROTOCOL = Gue()
