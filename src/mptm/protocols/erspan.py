# SPDX-License-Identifier: GPL-2.0-only
"""ERSPAN: mirrored frames behind GRE with a sequence number, types II and III (draft-foschiano-erspan-03 §4).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|  Ver  |          VLAN         | COS |En/|T|     Session ID    |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|      II: Reserved     |               II: Index               |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|                         III: Timestamp                        |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|            III: SGT           |P|    FT   |   Hw ID   |D|Gra|O|
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6 (protocol 47), GRE with S set (protocol type 0x88be for II, 0x22eb for III);
behind it the Ethernet frame, its VLAN tags inside.

Received: either type, whatever `version` says, with a sequence number, which isn't looked at; a platform specific
subheader (O) is skipped, all other fields but version and session are ignored.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal

from msgspec import Meta

from mptm.headers import IP_PROTOCOL_GRE
from mptm.protocols.base import HeaderProtocol, IpOptions, Parser
from mptm.protocols.gre import SEQUENCE_PRESENT
from mptm.template import Patch, PatchOp

ETHERTYPES = {2: 0x88BE, 3: 0x22EB}
WIRE_VERSIONS = {2: 1, 3: 2}
TAG_IN_FRAME = 3
"""En of type II: VLAN tags, if any, stayed in the frame."""
ETHERNET_FRAME = 0x8000
"""P of type III, with frame type 0."""
GRANULARITY_100_NS = 1
GRE_LEN = 8
SEQUENCE_OFFSET = 4
TIME_OFFSET = GRE_LEN + 4


class ErspanOptions(IpOptions, frozen=True, kw_only=True):
    """What an operator sets on an ERSPAN tunnel."""

    session: Annotated[int, Meta(ge=0, le=1023, description="session identifier")]
    version: Annotated[Literal[2, 3], Meta(description="2: type II, 3: type III")] = 2
    index: Annotated[
        int, Meta(ge=0, le=2**20 - 1, description="type II: port and direction at the sender")
    ] = 0
    vlan: Annotated[int, Meta(ge=0, le=4095, description="VLAN that the frames were mirrored from")] = 0
    cos: Annotated[int, Meta(ge=0, le=7, description="class of service of the mirrored frames")] = 0
    direction: Annotated[
        Literal["ingress", "egress"], Meta(description="type III: how the frames passed the mirrored port")
    ] = "ingress"
    hardware_id: Annotated[int, Meta(ge=0, le=63, description="type III: engine that mirrored them")] = 0
    sgt: Annotated[int, Meta(ge=0, le=2**16 - 1, description="type III: security group tag")] = 0


class Erspan(HeaderProtocol[ErspanOptions]):
    """The protocol; stateless."""

    name = "erspan"
    title = "ERSPAN"
    reference = "draft-foschiano-erspan"
    parser = Parser.GRE
    ip_protocol = IP_PROTOCOL_GRE
    options = ErspanOptions

    def accepted_parser(self, options: ErspanOptions) -> Parser:
        """See Protocol; both types are accepted."""
        return Parser.ERSPAN

    def header(self, options: ErspanOptions) -> bytes:
        """GRE and ERSPAN header; frames are whole (T = 0)."""
        gre = struct.pack("!HHI", SEQUENCE_PRESENT, ETHERTYPES[options.version], 0)
        first = (
            WIRE_VERSIONS[options.version] << 28 | options.vlan << 16 | options.cos << 13 | options.session
        )
        if options.version == 2:
            return gre + struct.pack("!II", first | TAG_IN_FRAME << 11, options.index)
        last = (
            ETHERNET_FRAME
            | options.hardware_id << 4
            | (options.direction == "egress") << 3
            | GRANULARITY_100_NS << 1
        )
        return gre + struct.pack("!IIHH", first, 0, options.sgt, last)

    def header_patches(self, options: ErspanOptions) -> tuple[Patch, ...]:
        """The sequence number and, of type III, the time."""
        sequence = Patch(PatchOp.SEQUENCE, SEQUENCE_OFFSET)
        return (sequence,) if options.version == 2 else (sequence, Patch(PatchOp.ERSPAN_TIME, TIME_OFFSET))

    def tunnel_id(self, options: ErspanOptions) -> int:
        """The session."""
        return options.session

    def describe_header(self, options: ErspanOptions) -> str:
        """See IpProtocol."""
        text = f"gre(flags={SEQUENCE_PRESENT:#06x},proto={ETHERTYPES[options.version]:#06x},seq=count),"
        text += f"erspan(ver={WIRE_VERSIONS[options.version]},sid={options.session:#x}"
        if options.version == 2:
            return f"{text},idx={options.index:#x})"
        return f"{text},time=clock,dir={options.direction},hwid={options.hardware_id:#x})"


PROTOCOL = Erspan()
