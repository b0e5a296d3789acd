# SPDX-License-Identifier: GPL-2.0-only
"""GRE-in-UDP: GRE behind a UDP header that spreads flows (RFC 8086 §2).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|   Source Port (of the flow)   |     Destination Port 4754     |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|           UDP Length          |          UDP Checksum         |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|C|0|K|S|    Reserved0    | Ver |         Protocol Type         |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|        Checksum (if C)        |        Reserved1 (if C)       |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|                           Key (if K)                          |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|                     Sequence Number (if S)                    |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6; behind it an Ethernet frame (protocol type 0x6558), IPv4 (0x0800) or IPv6
(0x86dd).

Received: as GRE; what `payload` says is taken, and nothing else.
"""

from __future__ import annotations

from mptm.protocols.base import Parser, Payload, UdpOptions, UdpPort, UdpProtocol
from mptm.protocols.gre import GreHeader, Key, SendChecksum, Sequence, VerifyChecksum
from mptm.template import ANY_FAMILY, InnerFamily


class GreUdpOptions(UdpOptions, frozen=True, kw_only=True):
    """What an operator sets on a GRE-in-UDP tunnel."""

    key: Key = None
    checksum: SendChecksum = False
    verify_checksum: VerifyChecksum = True
    sequence: Sequence = False
    payload: Payload = "l3"
    port: UdpPort = 4754


class GreUdp(GreHeader, UdpProtocol[GreUdpOptions]):
    """The protocol; stateless."""

    name = "gre-udp"
    title = "GRE-in-UDP"
    reference = "RFC 8086"
    parser = Parser.GRE
    options = GreUdpOptions

    def inner_families(self, options: GreUdpOptions) -> InnerFamily | None:
        """See Protocol."""
        return None if options.payload == "l2" else ANY_FAMILY


PROTOCOL = GreUdp()
