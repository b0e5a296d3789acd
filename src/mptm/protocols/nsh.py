# SPDX-License-Identifier: GPL-2.0-only
"""NSH: packets on a service path, over VXLAN-GPE (RFC 8300 §2).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|Ver|O|U|    TTL    |   Length  |U|U|U|U|MD Type| Next Protocol |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|         Service Path Identifier (SPI)         | Service Index |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|             Context of MD type 1: four words, zero            |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6, UDP to port 4790, VXLAN-GPE with next protocol 4; behind it an Ethernet frame
(3) or IPv4 (1) or IPv6 (2).

Received: the VXLAN-GPE header as there; then version 0, no OAM packet (O), MD type 1 with its 24 bytes or MD type 2 of
any length. Context headers are skipped; service path, service index and TTL (0 counts as 64, §2.2) aren't looked at.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal

from msgspec import Meta

from mptm.protocols.base import Parser, Payload, UdpOptions, UdpPort, UdpProtocol, Vni
from mptm.protocols.vxlan_gpe import ETHERNET, NSH, describe_gpe, gpe_header
from mptm.template import ANY_FAMILY, InnerFamily, Patch, PatchOp

BASE_LEN = 8
"""Base header and service path, in bytes."""
CONTEXT_LEN = {1: 16, 2: 0}
"""Bytes of context by MD type (§2.4, §2.5)."""
GPE_LEN = 8
NEXT_PROTOCOL_OFFSET = GPE_LEN + 3
TTL_SHIFT = 6


class NshOptions(UdpOptions, frozen=True, kw_only=True):
    """What an operator sets on an NSH tunnel."""

    vni: Vni = 0
    spi: Annotated[int, Meta(ge=0, le=2**24 - 1, description="service path identifier")]
    si: Annotated[int, Meta(ge=1, le=255, description="service index: where on the path")] = 255
    md_type: Annotated[
        Literal[1, 2], Meta(description="kind of context: 1: four words of zero, 2: of any length, here none")
    ] = 2
    nsh_ttl: Annotated[int, Meta(ge=1, le=63, description="service functions that may forward it")] = 63
    payload: Payload = "l2"
    port: UdpPort = 4790


class Nsh(UdpProtocol[NshOptions]):
    """The protocol; stateless."""

    name = "nsh"
    title = "NSH"
    reference = "RFC 8300"
    parser = Parser.VXLAN_GPE
    options = NshOptions

    def accepted_parser(self, options: NshOptions) -> Parser:
        """See Protocol."""
        return Parser.NSH

    def header(self, options: NshOptions) -> bytes:
        """Version 0, no OAM packet; the context is zero."""
        context_len = CONTEXT_LEN[options.md_type]
        base = struct.pack(
            "!HBBI",
            options.nsh_ttl << TTL_SHIFT | (BASE_LEN + context_len) // 4,
            options.md_type,
            ETHERNET if options.payload == "l2" else 0,
            options.spi << 8 | options.si,
        )
        return gpe_header(options.vni, NSH) + base + bytes(context_len)

    def header_patches(self, options: NshOptions) -> tuple[Patch, ...]:
        """The next protocol of an IP packet."""
        return () if options.payload == "l2" else (Patch(PatchOp.INNER_GPE, NEXT_PROTOCOL_OFFSET),)

    def inner_families(self, options: NshOptions) -> InnerFamily | None:
        """See Protocol."""
        return None if options.payload == "l2" else ANY_FAMILY

    def tunnel_id(self, options: NshOptions) -> int:
        """The VNI: service functions change path and index."""
        return options.vni

    def describe_header(self, options: NshOptions) -> str:
        """See IpProtocol."""
        following = ETHERNET if options.payload == "l2" else "inner"
        return (
            f"{describe_gpe(options.vni, str(NSH))},"
            f"nsh(mdtype={options.md_type},np={following},spi={options.spi:#x},si={options.si},"
            f"ttl={options.nsh_ttl})"
        )


PROTOCOL = Nsh()
