# SPDX-License-Identifier: GPL-2.0-only
"""VLAN: a tag behind the MAC addresses, no IP (IEEE 802.1Q-2018 §9.6; 802.1ad service tags by TPID 0x88a8).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|         TPID (0x8100)         | PCP |D|          VID          |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: the MAC addresses of the remote and of the egress interface, in place of the inner frame's own, which
are dropped; with `remote: any` the inner frame's own stay. Behind it the inner frame from its EtherType on.

Received: PCP and DEI are ignored. The TPID must be the tunnel's.
"""

from __future__ import annotations

import struct
import sys
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from msgspec import Meta

from mptm.errors import InvalidIntent
from mptm.facts import Path
from mptm.fields import MAC_LEN, Checked, mac_text
from mptm.headers import ETHERNET_LEN
from mptm.protocols.base import ANYONE, Listener, ListenerKind, Parser, Protocol, outer_macs
from mptm.template import Patch, PatchOp, Template

if TYPE_CHECKING:
    from mptm.intent import Tunnel

MACS_LEN = 2 * MAC_LEN
UNCOUNTED_LEN = ETHERNET_LEN + 4
"""What the kernel lets an XDP redirect send beyond the MTU (net/core/dev.c, VLAN_HLEN): room for one tag."""
IFINDEX_AT = 12
"""Where the destination of a termination has the interface that frames come in by, in the host's byte order."""


class VlanOptions(Checked, frozen=True, kw_only=True):
    """What an operator sets on a VLAN tunnel."""

    vid: Annotated[int, Meta(ge=1, le=4094, description="VLAN identifier")]
    pcp: Annotated[int, Meta(ge=0, le=7, description="priority code point")] = 0
    tpid: Annotated[
        Literal[0x8100, 0x88A8],
        Meta(description="tag protocol identifier: 802.1Q or 802.1ad", extra={"hexadecimal": True}),
    ] = 0x8100


AnyTagOptions = TypeVar("AnyTagOptions", bound=Checked)


class TagProtocol(Protocol[AnyTagOptions]):
    """A protocol whose header is VLAN tags."""

    parser = Parser.VLAN
    over_ip = False
    underlays = ()
    told_apart_by = ("identifier", "remote", "egress")

    @abstractmethod
    def tags(self, options: AnyTagOptions) -> bytes:
        """TPID and TCI of each tag."""

    @abstractmethod
    def describe_tags(self, options: AnyTagOptions) -> str:
        """The tags as text."""

    def build(self, tunnel: Tunnel, path: Path) -> Template:
        """See Protocol. The MTU doesn't count one tag, so an inner packet loses no bytes to it."""
        tags = self.tags(self.options_of(tunnel))
        keeps_macs = _keeps_macs(tunnel)
        macs = bytes(MACS_LEN) if keeps_macs else b"".join(outer_macs(tunnel, path))
        return Template(
            outer=macs + tags,
            patches=(Patch(PatchOp.INNER_MACS, 0),) if keeps_macs else (),
            strip=MACS_LEN,
            l2_len=min(ETHERNET_LEN + len(tags), UNCOUNTED_LEN),
            tos_mask=0,
        )

    def listeners(self, options: AnyTagOptions) -> tuple[Listener, ...]:
        """See Protocol: the TPID of the first tag."""
        tpid = int.from_bytes(self.tags(options)[:2], "big")
        return (Listener(tpid, ListenerKind.ETHERTYPE, self.parser),)

    def accepted(self, tunnel: Tunnel, path: Path | None) -> tuple[bytes, bytes] | None:
        """MAC addresses, and the egress interface: a VID says nothing beyond its own segment.

        An any-sender VLAN takes frames for any destination, too.
        """
        if path is None:
            return None
        interface = path.egress_ifindex.to_bytes(4, sys.byteorder)
        if tunnel.remote == "any":
            return ANYONE, bytes(IFINDEX_AT) + interface
        if tunnel.remote_mac is None and path.next_hop_mac is None:
            return None
        sender, own = outer_macs(tunnel, path)
        return sender.ljust(16, b"\0"), own.ljust(IFINDEX_AT, b"\0") + interface

    def check(self, tunnel: Tunnel) -> None:
        """See Protocol."""
        if tunnel.remote is None and tunnel.remote_mac is None:
            raise InvalidIntent(
                f"{self.name} needs remote (an IPv4 or IPv6 address of the neighbour, or any) or remote_mac",
                field="remote",
            )
        if tunnel.remote_address is None and tunnel.egress is None:
            raise InvalidIntent(
                f"{self.name} needs egress, the interface to send from, where remote is no address",
                field="egress",
            )
        if _keeps_macs(tunnel) and tunnel.local_mac is not None:
            raise InvalidIntent(
                f"{tunnel.local_mac} can't be used: with remote any, frames keep their own MAC addresses",
                "give remote_mac, too, or leave local_mac out",
                field="local_mac",
            )

    def describe(self, tunnel: Tunnel, template: Template) -> str:
        """See Protocol."""
        destination, source = template.outer[:MAC_LEN], template.outer[MAC_LEN:MACS_LEN]
        macs = ("inner", "inner") if template.patches else (mac_text(destination), mac_text(source))
        return f"eth(dst={macs[0]},src={macs[1]}),{self.describe_tags(self.options_of(tunnel))}"


def _keeps_macs(tunnel: Tunnel) -> bool:
    return tunnel.remote == "any" and tunnel.remote_mac is None


def tag_bytes(tpid: int, pcp: int, vid: int) -> bytes:
    """A tag: TPID and TCI, which is PCP, DEI (0) and VID."""
    return struct.pack("!HH", tpid, pcp << 13 | vid)


class Vlan(TagProtocol[VlanOptions]):
    """The protocol; stateless."""

    name = "vlan"
    title = "VLAN"
    reference = "IEEE 802.1Q"
    options = VlanOptions

    def tags(self, options: VlanOptions) -> bytes:
        """See TagProtocol."""
        return tag_bytes(options.tpid, options.pcp, options.vid)

    def tunnel_id(self, options: VlanOptions) -> int:
        """The VID."""
        return options.vid

    def describe_tags(self, options: VlanOptions) -> str:
        """See TagProtocol."""
        return f"vlan(tpid={options.tpid:#06x},vid={options.vid},pcp={options.pcp})"


PROTOCOL = Vlan()
