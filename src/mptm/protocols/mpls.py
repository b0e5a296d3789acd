# SPDX-License-Identifier: GPL-2.0-only
"""MPLS-in-UDP: labelled IP packets over UDP (RFC 7510 §3; a label stack entry is RFC 3032 §2.1).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|                 Label                 |  TC |S|      TTL      |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6, UDP to port 6635; one such entry per label, the last with S set; behind them an
IPv4 or IPv6 packet.

Received: up to eight labels, of which the last, at the bottom of the stack, tells the tunnel; other labels, TC and TTL
aren't looked at. Behind them an IPv4 or IPv6 packet, told apart by its first four bits.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from mptm.protocols.base import Parser, UdpOptions, UdpPort, UdpProtocol
from mptm.template import ANY_FAMILY, InnerFamily

LABELS_MAX = 8
"""What the data plane looks through (MPLS_LABELS_MAX)."""
BOTTOM = 0x100

Label = Annotated[int, Meta(ge=16, le=2**20 - 1)]


class MplsOptions(UdpOptions, frozen=True, kw_only=True):
    """What an operator sets on an MPLS-in-UDP tunnel."""

    labels: Annotated[
        tuple[Label, ...],
        Meta(
            min_length=1,
            max_length=LABELS_MAX,
            description="labels that are sent, the outermost first",
            examples=[[16], [16, 2**20 - 1]],
        ),
    ]
    local_label: Annotated[
        Label | None,
        Meta(description="innermost label of what is accepted; default: the one that is sent"),
    ] = None
    tc: Annotated[int, Meta(ge=0, le=7, description="traffic class in every label stack entry")] = 0
    label_ttl: Annotated[int, Meta(ge=1, le=255, description="TTL in every label stack entry")] = 64
    port: UdpPort = 6635


class Mpls(UdpProtocol[MplsOptions]):
    """The protocol; stateless."""

    name = "mpls"
    title = "MPLS-in-UDP"
    reference = "RFC 7510"
    parser = Parser.MPLS
    options = MplsOptions

    def header(self, options: MplsOptions) -> bytes:
        """The label stack."""
        entries = [label << 12 | options.tc << 9 | options.label_ttl for label in options.labels]
        entries[-1] |= BOTTOM
        return b"".join(entry.to_bytes(4, "big") for entry in entries)

    def inner_families(self, options: MplsOptions) -> InnerFamily | None:
        """See Protocol."""
        return ANY_FAMILY

    def tunnel_id(self, options: MplsOptions) -> int:
        """The innermost label of what comes in."""
        return options.labels[-1] if options.local_label is None else options.local_label

    def describe_header(self, options: MplsOptions) -> str:
        """See IpProtocol."""
        return ",".join(
            f"mpls(label={label},tc={options.tc},ttl={options.label_ttl},bos={int(place == len(options.labels))})"
            for place, label in enumerate(options.labels, 1)
        )


PROTOCOL = Mpls()
