# SPDX-License-Identifier: GPL-2.0-only
"""GENEVE: Ethernet frames or IP packets over UDP, with an identifier and options (RFC 8926 §3.4, §3.5).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|Ver|  Opt Len  |O|C|    Rsvd.  |          Protocol Type        |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|        Virtual Network Identifier (VNI)       |    Reserved   |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|          Option Class         |      Type     |R|R|R| Length  |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|                      Variable-Length Option Data              |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6, UDP to port 6081; behind it an Ethernet frame (protocol type 0x6558), IPv4
(0x0800) or IPv6 (0x86dd).

Received: a version other than 0, a control packet (O), an option with the critical bit, options that run over their
area, and a protocol type other than these are refused; other options are skipped. The C bit by itself refuses nothing,
as the options are gone through anyhow (§3.4); reserved bits are ignored.
"""

from __future__ import annotations

import struct
from typing import Annotated

from msgspec import Meta

from mptm.errors import InvalidIntent
from mptm.fields import written_as
from mptm.headers import ETHERTYPE_BRIDGED
from mptm.protocols.base import Parser, Payload, UdpOptions, UdpPort, UdpProtocol, Vni
from mptm.template import ANY_FAMILY, InnerFamily, Patch, PatchOp

CRITICAL_PRESENT = 0x40
"""The C flag: an option has the critical bit."""
OPTION_CRITICAL = 0x80
OPTION_DATA_MAX = 124
"""Bytes: 31 words."""
OPTIONS_MAX = 252
"""Bytes: 63 words."""
PROTOCOL_TYPE_OFFSET = 2


def _normalise_option(text: str) -> str:
    kind, type_, data = (part.strip().lower().removeprefix("0x") for part in text.split(":"))
    class_number, type_number, raw = int(kind, 16), int(type_, 16), bytes.fromhex(data)
    if not (0 <= class_number <= 0xFFFF and 0 <= type_number <= 0xFF):
        raise ValueError
    if len(raw) % 4 or len(raw) > OPTION_DATA_MAX:
        raise InvalidIntent(
            f"an option's data is whole words of 4 bytes, {OPTION_DATA_MAX} bytes at most; {text} has {len(raw)} bytes"
        )
    return f"{class_number:04x}:{type_number:02x}:{raw.hex()}"


GeneveOption = Annotated[
    str, written_as(_normalise_option, "an option CLASS:TYPE:DATA in hexadecimal such as 0102:80:00112233")
]


class GeneveOptions(UdpOptions, frozen=True, kw_only=True):
    """What an operator sets on a GENEVE tunnel."""

    vni: Vni
    payload: Payload = "l2"
    tlvs: Annotated[
        tuple[GeneveOption, ...],
        Meta(
            description="options that are sent: CLASS:TYPE:DATA in hexadecimal",
            examples=[["0102:01:00112233"], ["0102:80:00112233", "0103:02:", "ffff:7f:0011223344556677"]],
        ),
    ] = ()
    port: UdpPort = 6081

    def check(self) -> None:
        """See Checked."""
        if len(_option_bytes(self)) > OPTIONS_MAX:
            raise InvalidIntent(
                f"tlvs take {len(_option_bytes(self))} bytes; {OPTIONS_MAX} is the most", field="tlvs"
            )


class Geneve(UdpProtocol[GeneveOptions]):
    """The protocol; stateless."""

    name = "geneve"
    title = "GENEVE"
    reference = "RFC 8926"
    parser = Parser.GENEVE
    options = GeneveOptions

    def header(self, options: GeneveOptions) -> bytes:
        """Version 0, not a control packet (O = 0)."""
        data = _option_bytes(options)
        flags = CRITICAL_PRESENT if _has_critical(options) else 0
        protocol = ETHERTYPE_BRIDGED if options.payload == "l2" else 0
        return struct.pack("!BBHI", len(data) // 4, flags, protocol, options.vni << 8) + data

    def header_patches(self, options: GeneveOptions) -> tuple[Patch, ...]:
        """The protocol type of an IP packet."""
        return () if options.payload == "l2" else (Patch(PatchOp.INNER_ETHERTYPE, PROTOCOL_TYPE_OFFSET),)

    def inner_families(self, options: GeneveOptions) -> InnerFamily | None:
        """See Protocol."""
        return None if options.payload == "l2" else ANY_FAMILY

    def tunnel_id(self, options: GeneveOptions) -> int:
        """The VNI."""
        return options.vni

    def describe_header(self, options: GeneveOptions) -> str:
        """See IpProtocol."""
        text = "crit," if _has_critical(options) else ""
        text += f"vni={options.vni:#x},proto={hex(ETHERTYPE_BRIDGED) if options.payload == 'l2' else 'inner'}"
        shown = (
            f"{{class=0x{kind},type=0x{type_},len={len(data) // 2},0x{data}}}"
            for kind, type_, data in (option.split(":") for option in options.tlvs)
        )
        text += f",options({''.join(shown)})" if options.tlvs else ""
        return f"geneve({text})"


def _has_critical(options: GeneveOptions) -> bool:
    return any(int(option.split(":")[1], 16) & OPTION_CRITICAL for option in options.tlvs)


def _option_bytes(options: GeneveOptions) -> bytes:
    made = b""
    for kind, type_, data in (option.split(":") for option in options.tlvs):
        raw = bytes.fromhex(data)
        made += struct.pack("!HBB", int(kind, 16), int(type_, 16), len(raw) // 4) + raw
    return made


PROTOCOL = Geneve()
