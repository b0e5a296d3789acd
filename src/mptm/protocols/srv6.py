# SPDX-License-Identifier: GPL-2.0-only
"""SRv6: packets that visit segments, in IPv6 with a segment routing header (RFC 8754 §2; behaviours RFC 8986 §4, §5).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|  Next Header  |  Hdr Ext Len  | Routing Type 4| Segments Left |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|   Last Entry  |     Flags     |              Tag              |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|          Segment List[0]: the last segment (128 bits)         |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet and IPv6 to the first segment; behind it IPv4 (next header 4), IPv6 (41) or an Ethernet frame
(143). `reduced` leaves the first segment out of the list, and the header out where that was the only one.

Received: packets whose segments are used up (Segments Left 0), with or without a segment routing header; its TLVs,
flags and tag are skipped. Packets with segments left and other routing types are left to the kernel. Beside an
IPv4-in-IPv6 or IPv6-in-IPv6 tunnel of the same ends, whose packets look as those without a header, it takes a
`local_sid` of its own.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from mptm.errors import InvalidIntent
from mptm.facts import IPAddress, Path
from mptm.fields import UnicastAddress
from mptm.headers import IP_PROTOCOL_ETHERNET, IP_PROTOCOL_IPV4, IP_PROTOCOL_IPV6, IP_PROTOCOL_ROUTING
from mptm.protocols.base import IpOptions, IpProtocol, Listener, ListenerKind, Parser
from mptm.template import ANY_FAMILY, InnerFamily, Patch, PatchOp, Template

if TYPE_CHECKING:
    from mptm.intent import Tunnel

ROUTING_TYPE = 4
SEGMENTS_MAX = 8


class Srv6Options(IpOptions, frozen=True, kw_only=True):
    """What an operator sets on an SRv6 tunnel."""

    segments: Annotated[
        tuple[UnicastAddress, ...],
        Meta(
            max_length=SEGMENTS_MAX,
            description="segments that packets visit, in order, the last one decapsulates; default: the remote",
            examples=[["fd00:9::1"], ["fd00:9::1", "fd00:9::2"]],
        ),
    ] = ()
    mode: Annotated[
        Literal["encaps", "reduced", "l2"],
        Meta(description="H.Encaps, H.Encaps.Red (both for IP packets) or H.Encaps.L2 (for Ethernet frames)"),
    ] = "encaps"
    local_sid: Annotated[
        UnicastAddress | None,
        Meta(description="own segment that is decapsulated; default: local", examples=[None, "fd00:9::7"]),
    ] = None


class Srv6(IpProtocol[Srv6Options]):
    """The protocol; stateless."""

    name = "srv6"
    title = "SRv6"
    reference = "RFC 8754"
    parser = Parser.SRV6
    ip_protocol = IP_PROTOCOL_ROUTING
    underlays = (6,)
    options = Srv6Options
    told_apart_by = ("remote", "local", "local_sid")

    def check(self, tunnel: Tunnel) -> None:
        """See Protocol."""
        options = self.options_of(tunnel)
        for field, addresses in (("segments", options.segments), ("local_sid", [options.local_sid])):
            for address in addresses:
                if address is not None and ipaddress.ip_address(address).version != 6:
                    raise InvalidIntent(f"{address} is no IPv6 address, as a segment is", field=field)
        super().check(tunnel)

    def destination(self, tunnel: Tunnel) -> IPAddress | None:
        """The first segment."""
        segments = _segments(tunnel, self.options_of(tunnel))
        return segments[0] if segments else None

    def own_address(self, tunnel: Tunnel) -> IPAddress | None:
        """See Protocol: what comes is addressed to our segment."""
        own = self.options_of(tunnel).local_sid
        return tunnel.local_address if own is None else ipaddress.ip_address(own)

    def build(self, tunnel: Tunnel, path: Path) -> Template:
        """See Protocol."""
        options = self.options_of(tunnel)
        segments = _segments(tunnel, options)
        listed = segments[1:] if options.mode == "reduced" else segments
        following = IP_PROTOCOL_ETHERNET if options.mode == "l2" else 0
        composer = self.compose(tunnel, path, IP_PROTOCOL_ROUTING if listed else following)
        if not listed:
            return composer.patch_next_header().template(self.inner_families(options))
        header = struct.pack(
            "!BBBBBBH", following, 2 * len(listed), ROUTING_TYPE, len(segments) - 1, len(listed) - 1, 0, 0
        )
        header += b"".join(segment.packed for segment in reversed(listed))
        patches = () if options.mode == "l2" else (Patch(PatchOp.INNER_PROTOCOL, 0),)
        return composer.append(header, patches).template(self.inner_families(options))

    def listeners(self, options: Srv6Options) -> tuple[Listener, ...]:
        """With a segment routing header or, of one segment and reduced, without."""
        plain = (
            [(IP_PROTOCOL_ETHERNET, Parser.SRV6)]
            if options.mode == "l2"
            else [(IP_PROTOCOL_IPV4, Parser.IP), (IP_PROTOCOL_IPV6, Parser.IP)]
        )
        return tuple(
            Listener(number, ListenerKind.IP, parser)
            for number, parser in [(IP_PROTOCOL_ROUTING, Parser.SRV6), *plain]
        )

    def inner_families(self, options: Srv6Options) -> InnerFamily | None:
        """See Protocol."""
        return None if options.mode == "l2" else ANY_FAMILY

    def tunnel_id(self, options: Srv6Options) -> int:
        """None: the segment is the destination."""
        return 0

    def describe_header(self, options: Srv6Options) -> str:
        """See IpProtocol."""
        if options.mode == "reduced" and len(options.segments) < 2:
            return ""
        segments = ";".join(options.segments) or "remote"
        following = IP_PROTOCOL_ETHERNET if options.mode == "l2" else "inner"
        return f"srh(mode={options.mode},segs={segments},next={following})"


def _segments(tunnel: Tunnel, options: Srv6Options) -> list[IPAddress]:
    if options.segments:
        return [ipaddress.ip_address(segment) for segment in options.segments]
    return [tunnel.remote_address] if tunnel.remote_address is not None else []


PROTOCOL = Srv6()
