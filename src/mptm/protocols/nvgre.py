# SPDX-License-Identifier: GPL-2.0-only
"""NVGRE: Ethernet frames behind a GRE header whose key is a virtual subnet and a flow (RFC 7637 §3.2).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|0|0|1|0|    Reserved0    | Ver |      Protocol Type 0x6558     |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|            Virtual Subnet ID (VSID)           |     FlowID    |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6 (protocol 47); behind it an Ethernet frame.

Sent: without the VLAN tags of the inner frame (RFC 7637 §3.3).

Received: a key, and neither checksum nor sequence number; the FlowID isn't looked at. A GRE or GRETAP tunnel of the
same remote may not have a key whose upper 24 bits are the VSID: flows whose FlowID is its lower 8 would be its own. An
inner frame with a VLAN tag is a drop (RFC 7637 §3.3).
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from mptm.facts import Path
from mptm.headers import ETHERTYPE_BRIDGED, IP_PROTOCOL_GRE
from mptm.protocols.base import HeaderProtocol, IpOptions, Parser
from mptm.protocols.gre import KEY_PRESENT
from mptm.template import Patch, PatchOp, Template

if TYPE_CHECKING:
    from mptm.intent import Tunnel

FLOW_ID_OFFSET = 7
HEADER_LEN = 8


class NvgreOptions(IpOptions, frozen=True, kw_only=True):
    """What an operator sets on an NVGRE tunnel."""

    vsid: Annotated[
        int, Meta(ge=0x1000, le=2**24 - 2, description="virtual subnet identifier (the rest is reserved)")
    ]


class Nvgre(HeaderProtocol[NvgreOptions]):
    """The protocol; stateless."""

    name = "nvgre"
    title = "NVGRE"
    reference = "RFC 7637"
    parser = Parser.GRE
    ip_protocol = IP_PROTOCOL_GRE
    options = NvgreOptions

    def accepted_parser(self, options: NvgreOptions) -> Parser:
        """See Protocol."""
        return Parser.NVGRE

    def header(self, options: NvgreOptions) -> bytes:
        """A key, neither checksum nor sequence number."""
        return struct.pack("!HHI", KEY_PRESENT, ETHERTYPE_BRIDGED, options.vsid << 8)

    def header_patches(self, options: NvgreOptions) -> tuple[Patch, ...]:
        """The FlowID; and the MAC addresses of the inner frame, whose tags were behind them."""
        return (Patch(PatchOp.FLOW8, FLOW_ID_OFFSET), Patch(PatchOp.INNER_MACS, HEADER_LEN))

    def build(self, tunnel: Tunnel, path: Path) -> Template:
        """See Protocol."""
        return replace(super().build(tunnel, path), untagged=True)

    def tunnel_id(self, options: NvgreOptions) -> int:
        """The VSID, whatever the flow."""
        return options.vsid

    def describe_header(self, options: NvgreOptions) -> str:
        """See IpProtocol."""
        return f"nvgre(vsid={options.vsid:#x},flowid=flow)"


PROTOCOL = Nvgre()
