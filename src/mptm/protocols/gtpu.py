# SPDX-License-Identifier: GPL-2.0-only
"""GTP-U: IP packets of mobile subscribers over UDP (3GPP TS 29.281 §5; PDU session container TS 38.415 §5.5).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|Versi|1|0|E|S|P|   Type 0xff   |             Length            |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|               Tunnel Endpoint Identifier (TEID)               |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|     Sequence (if E: zero)     |  N-PDU (zero) | Next Ext. 0x85|
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
| Ext. Length 1 |PDU Typ|   0   | 0 |    QFI    |  Next Ext. 0  |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6, UDP to port 2152; behind it an IPv4 or IPv6 packet. The last two words are
there where a QFI is set.

Received: version 1 with PT set, a G-PDU whose length fits. Sequence and N-PDU number are skipped, extension headers as
well, up to four of them; one that isn't known and whose type has the top bit, which says that the endpoint must
comprehend it (TS 29.281 §5.2.1), is refused. An echo request of a remote is answered (§7.2), or left to the kernel
where `echo` says pass, as are other messages, other versions and GTP'.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal

from msgspec import Meta

from mptm.protocols.base import Parser, UdpOptions, UdpPort, UdpProtocol
from mptm.template import ANY_FAMILY, InnerFamily, Patch, PatchOp

VERSION_1_GTP = 0x30
EXTENSION = 0x04
G_PDU = 255
LENGTH_OFFSET = 2
MANDATORY_LEN = 8
"""Bytes that the length doesn't count."""
PDU_SESSION_CONTAINER = 0x85
PDU_TYPES = {"dl": 0, "ul": 1}

Teid = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class GtpuOptions(UdpOptions, frozen=True, kw_only=True):
    """What an operator sets on a GTP-U tunnel."""

    teid: Annotated[Teid, Meta(description="tunnel endpoint identifier that is sent: the other end's")]
    local_teid: Annotated[
        Teid | None, Meta(description="the one that is accepted: ours; default: the same")
    ] = None
    qfi: Annotated[
        Annotated[int, Meta(ge=0, le=63)] | None,
        Meta(description="QoS flow identifier; with one, packets have a PDU session container"),
    ] = None
    pdu_type: Annotated[
        Literal["dl", "ul"], Meta(description="direction in the PDU session container: down or up")
    ] = "dl"
    echo: Annotated[
        Literal["answer", "pass"],
        Meta(description="echo requests of the remote: answer: at once, pass: left to the host"),
    ] = "answer"
    port: UdpPort = 2152


class Gtpu(UdpProtocol[GtpuOptions]):
    """The protocol; stateless."""

    name = "gtpu"
    title = "GTP-U"
    reference = "3GPP TS 29.281"
    parser = Parser.GTPU
    options = GtpuOptions

    def header(self, options: GtpuOptions) -> bytes:
        """A G-PDU; no sequence number (§5.1)."""
        flags = VERSION_1_GTP if options.qfi is None else VERSION_1_GTP | EXTENSION
        header = struct.pack("!BBHI", flags, G_PDU, 0, options.teid)
        if options.qfi is None:
            return header
        container = struct.pack("!BBBB", 1, PDU_TYPES[options.pdu_type] << 4, options.qfi, 0)
        return header + struct.pack("!HBB", 0, 0, PDU_SESSION_CONTAINER) + container

    def header_patches(self, options: GtpuOptions) -> tuple[Patch, ...]:
        """The length of what follows the mandatory header."""
        return (Patch(PatchOp.LEN16, LENGTH_OFFSET, -MANDATORY_LEN),)

    def inner_families(self, options: GtpuOptions) -> InnerFamily | None:
        """See Protocol."""
        return ANY_FAMILY

    def tunnel_id(self, options: GtpuOptions) -> int:
        """The TEID of what comes in."""
        return options.teid if options.local_teid is None else options.local_teid

    def echo_parser(self, options: GtpuOptions) -> Parser | None:
        """See Protocol (3GPP TS 29.281 §7.2.1: a path has one echo, whatever the tunnels in it)."""
        return Parser.GTPU_ECHO if options.echo == "answer" else None

    def describe_header(self, options: GtpuOptions) -> str:
        """See IpProtocol."""
        text = f"gtpu(teid={options.teid:#x},msgtype={G_PDU}"
        return text + (")" if options.qfi is None else f",qfi={options.qfi},pdu={options.pdu_type})")


PROTOCOL = Gtpu()
