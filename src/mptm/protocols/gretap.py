# SPDX-License-Identifier: GPL-2.0-only
"""GRETAP: Ethernet frames behind a GRE header (RFC 2784; key and sequence number RFC 2890).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|C|0|K|S|    Reserved0    | Ver |         Protocol Type         |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|        Checksum (if C)        |        Reserved1 (if C)       |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|                           Key (if K)                          |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|                     Sequence Number (if S)                    |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6 (protocol 47); behind it an Ethernet frame (protocol type 0x6558).

Received: as GRE.
"""

from __future__ import annotations

from mptm.protocols.gre import GreBase, GreOptions


class Gretap(GreBase[GreOptions]):
    """The protocol; stateless."""

    name = "gretap"
    title = "GRETAP"
    reference = "RFC 2784"
    options = GreOptions


PROTOCOL = Gretap()
