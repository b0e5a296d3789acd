# SPDX-License-Identifier: GPL-2.0-only
"""GRE: IP packets behind a header with optional key, checksum and sequence number (RFC 2784; RFC 2890).

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

In front of it: Ethernet, IPv4 or IPv6 (protocol 47); behind it IPv4 (protocol type 0x0800) or IPv6 (0x86dd).

Received: bits 1, 4 and 5 must be zero (RFC 2784 §2.3); versions other than 0, such as PPTP's, are left to the kernel.
A checksum that is there must be right, unless `verify_checksum` is off; the sequence number isn't looked at. A packet
with a key is for a tunnel with that key, one without a key for a tunnel without.
"""

from __future__ import annotations

import struct
from typing import Annotated, Protocol, TypeVar

from msgspec import Meta

from mptm.headers import ETHERTYPE_BRIDGED, IP_PROTOCOL_GRE
from mptm.protocols.base import HeaderProtocol, IpOptions, Parser, Shadow, Verification
from mptm.template import ANY_FAMILY, InnerFamily, Patch, PatchOp

CHECKSUM_PRESENT, KEY_PRESENT, SEQUENCE_PRESENT = 0x8000, 0x2000, 0x1000
PROTOCOL_TYPE_OFFSET = 2
CHECKSUM_OFFSET = 4
FLOW_ID_BITS = 8
"""Of a key, the lower ones, where it is NVGRE's (RFC 7637 §3.2)."""


Key = Annotated[
    Annotated[int, Meta(ge=0, le=2**32 - 1)] | None,
    Meta(description="key, sent and accepted; without one, packets have none"),
]
SendChecksum = Annotated[bool, Meta(description="send a checksum of header and payload")]
VerifyChecksum = Annotated[bool, Meta(description="drop packets whose checksum is there, but wrong")]
Sequence = Annotated[bool, Meta(description="number the packets that are sent")]


class GreOptions(IpOptions, frozen=True, kw_only=True):
    """What an operator sets on a GRE or GRETAP tunnel."""

    key: Key = None
    checksum: SendChecksum = False
    verify_checksum: VerifyChecksum = True
    sequence: Sequence = False


class GreFields(Protocol):
    """Options that make the fields of a GRE header."""

    @property
    def key(self) -> int | None:
        """None: no key."""

    @property
    def checksum(self) -> bool:
        """Whether there is one."""

    @property
    def sequence(self) -> bool:
        """Whether packets are numbered."""


AnyGreOptions = TypeVar("AnyGreOptions", bound=GreOptions)


class GreBase(HeaderProtocol[AnyGreOptions]):
    """What GRE and its relatives over IP have in common."""

    parser = Parser.GRE
    ip_protocol = IP_PROTOCOL_GRE

    def accepted_parser(self, options: AnyGreOptions) -> Parser:
        """See Protocol."""
        return gre_parser(options)

    def tunnel_id(self, options: AnyGreOptions) -> int:
        """The key; 0 without one."""
        return options.key or 0

    def shadow(self, options: AnyGreOptions) -> Shadow | None:
        """Of the flows of an NVGRE tunnel, those whose FlowID makes its VSID this key."""
        if options.key is None:
            return None
        return Shadow(Parser.NVGRE, options.key >> FLOW_ID_BITS, "or key and VSID in the upper 24 bits")

    def verification(self, options: AnyGreOptions) -> Verification:
        """See Protocol."""
        return Verification(ignores_checksum=not options.verify_checksum)

    def header(self, options: AnyGreOptions) -> bytes:
        """See IpProtocol."""
        return gre_header(options, self.inner_families(options))

    def header_patches(self, options: AnyGreOptions) -> tuple[Patch, ...]:
        """See IpProtocol."""
        return gre_patches(options, self.inner_families(options))

    def describe_header(self, options: AnyGreOptions) -> str:
        """See IpProtocol."""
        return describe_gre(options, self.inner_families(options))


class Gre(GreBase[GreOptions]):
    """The protocol; stateless."""

    name = "gre"
    title = "GRE"
    reference = "RFC 2784"
    options = GreOptions

    def inner_families(self, options: GreOptions) -> InnerFamily | None:
        """See Protocol."""
        return ANY_FAMILY


def gre_parser(fields: GreFields) -> Parser:
    """What a tunnel with these fields accepts: a packet with a key is none without."""
    return Parser.GRE if fields.key is None else Parser.GRE_KEY


def _flags(fields: GreFields) -> int:
    return (
        CHECKSUM_PRESENT * fields.checksum
        | KEY_PRESENT * (fields.key is not None)
        | SEQUENCE_PRESENT * fields.sequence
    )


def gre_header(fields: GreFields, inner_families: InnerFamily | None) -> bytes:
    """A GRE header for Ethernet frames, or for IP packets of these versions."""
    header = struct.pack("!HH", _flags(fields), 0 if inner_families else ETHERTYPE_BRIDGED)
    if fields.checksum:
        header += bytes(4)
    if fields.key is not None:
        header += fields.key.to_bytes(4, "big")
    if fields.sequence:
        header += bytes(4)
    return header


def gre_patches(fields: GreFields, inner_families: InnerFamily | None) -> tuple[Patch, ...]:
    """What of `gre_header` depends on the packet."""
    patches = []
    if inner_families:
        patches.append(Patch(PatchOp.INNER_ETHERTYPE, PROTOCOL_TYPE_OFFSET))
    if fields.sequence:
        patches.append(Patch(PatchOp.SEQUENCE, len(gre_header(fields, inner_families)) - 4))
    if fields.checksum:
        patches.append(Patch(PatchOp.CHECKSUM, CHECKSUM_OFFSET, -CHECKSUM_OFFSET))
    return tuple(patches)


def describe_gre(fields: GreFields, inner_families: InnerFamily | None) -> str:
    """A GRE header as text."""
    text = f"gre(flags={_flags(fields):#06x},proto={'inner' if inner_families else hex(ETHERTYPE_BRIDGED)}"
    text += ",csum=packet" if fields.checksum else ""
    text += f",key={fields.key:#x}" if fields.key is not None else ""
    return text + (",seq=count)" if fields.sequence else ")")


PROTOCOL = Gre()
