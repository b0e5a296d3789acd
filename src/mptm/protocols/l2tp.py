# SPDX-License-Identifier: GPL-2.0-only
"""L2TPv3: Ethernet frames of a session, over IP or UDP (RFC 3931 §4.1; Ethernet is RFC 4719).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|T|   UDP only: Flags   | Ver 3 |       UDP only: Reserved      |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|                           Session ID                          |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|                Cookie (optional, 32 or 64 bits)               |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|         Default L2-Specific Sublayer (optional, zero)         |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6 (protocol 115), or UDP to port 1701; behind it an Ethernet frame. Names of
options are those of `ip l2tp`.

Received: the cookie must be the session's; the sublayer is skipped. Control messages (T set, or session 0) and other
versions than 3 are left to the kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from mptm.facts import Path
from mptm.fields import hex_bytes
from mptm.headers import IP_PROTOCOL_L2TP, Composer
from mptm.protocols.base import (
    HeaderProtocol,
    Listener,
    ListenerKind,
    Parser,
    UdpOptions,
    UdpPort,
    Verification,
)

if TYPE_CHECKING:
    from mptm.intent import Tunnel

UDP_DATA = bytes([0, 3, 0, 0])
"""T = 0: data; version 3."""
SUBLAYER_LEN = {"none": 0, "default": 4}

Session = Annotated[int, Meta(ge=1, le=2**32 - 1)]
Cookie = Annotated[str, hex_bytes(0, 4, 8)]


class L2tpOptions(UdpOptions, frozen=True, kw_only=True):
    """What an operator sets on an L2TPv3 tunnel."""

    encap: Annotated[Literal["udp", "ip"], Meta(description="what carries it: udp, or ip (protocol 115)")] = (
        "udp"
    )
    session_id: Annotated[Session, Meta(description="session that is accepted: ours")]
    peer_session_id: Annotated[
        Session | None, Meta(description="session that is sent: the other end's; default: the same")
    ] = None
    cookie: Annotated[Cookie, Meta(description="cookie that is sent: 0, 4 or 8 bytes in hexadecimal")] = ""
    peer_cookie: Annotated[
        Cookie | None, Meta(description="cookie that is accepted; default: the one that is sent")
    ] = None
    l2spec_type: Annotated[
        Literal["none", "default"], Meta(description="sublayer in front of the frame: default has 4 bytes")
    ] = "default"
    port: UdpPort = 1701
    source_port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | Literal["flow"],
        Meta(description="UDP source port; flow: 49152-65535 from a hash of the inner flow"),
    ] = 1701


class L2tp(HeaderProtocol[L2tpOptions]):
    """The protocol; stateless."""

    name = "l2tp"
    title = "L2TPv3"
    reference = "RFC 3931"
    parser = Parser.L2TP_UDP
    ip_protocol = IP_PROTOCOL_L2TP
    options = L2tpOptions

    def accepted_parser(self, options: L2tpOptions) -> Parser:
        """See Protocol."""
        return Parser.L2TP_UDP if options.encap == "udp" else Parser.L2TP_IP

    def listeners(self, options: L2tpOptions) -> tuple[Listener, ...]:
        """See Protocol."""
        if options.encap == "udp":
            return (Listener(options.port, ListenerKind.UDP, Parser.L2TP_UDP),)
        return (Listener(IP_PROTOCOL_L2TP, ListenerKind.IP, Parser.L2TP_IP),)

    def verification(self, options: L2tpOptions) -> Verification:
        """See Protocol."""
        cookie = options.cookie if options.peer_cookie is None else options.peer_cookie
        return Verification(bytes.fromhex(cookie), SUBLAYER_LEN[options.l2spec_type])

    def start(self, tunnel: Tunnel, path: Path) -> Composer:
        """See HeaderProtocol."""
        options = self.options_of(tunnel)
        return (
            self.compose_udp(tunnel, path, options)
            if options.encap == "udp"
            else self.compose(tunnel, path, IP_PROTOCOL_L2TP)
        )

    def header(self, options: L2tpOptions) -> bytes:
        """The sublayer is zero: it says that the sequence number is not valid (§4.6)."""
        session = options.peer_session_id or options.session_id
        return (
            (UDP_DATA if options.encap == "udp" else b"")
            + session.to_bytes(4, "big")
            + bytes.fromhex(options.cookie)
            + bytes(SUBLAYER_LEN[options.l2spec_type])
        )

    def tunnel_id(self, options: L2tpOptions) -> int:
        """The session of what comes in."""
        return options.session_id

    def describe_header(self, options: L2tpOptions) -> str:
        """See IpProtocol."""
        text = f"l2tpv3(session={options.peer_session_id or options.session_id:#x}"
        text += f",cookie={options.cookie}" if options.cookie else ""
        return f"{text},l2spec={options.l2spec_type})"


PROTOCOL = L2tp()
