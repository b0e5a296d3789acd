# SPDX-License-Identifier: GPL-2.0-only
"""QinQ: a service tag and a customer tag behind the MAC addresses, no IP (IEEE 802.1ad; IEEE 802.1Q-2018 §9.6).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|         TPID (0x88a8)         | PCP |D|       Outer VID       |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|         TPID (0x8100)         | PCP |D|       Inner VID       |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: the MAC addresses of the remote and of the egress interface, in place of the inner frame's own, which
are dropped; with `remote: any` the inner frame's own stay. Behind it the inner frame from its EtherType on.

Received: PCP and DEI are ignored. The first TPID must be the tunnel's, the second 0x8100. What no QinQ tunnel takes may
be a VLAN tunnel's by its first tag.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from mptm.fields import Checked
from mptm.protocols.base import Parser
from mptm.protocols.vlan import TagProtocol, tag_bytes

INNER_TPID = 0x8100
VID_BITS = 12

Vid = Annotated[int, Meta(ge=1, le=4094)]


class QinqOptions(Checked, frozen=True, kw_only=True):
    """What an operator sets on a QinQ tunnel."""

    outer_vid: Annotated[Vid, Meta(description="VLAN identifier of the first tag, the service's")]
    inner_vid: Annotated[Vid, Meta(description="VLAN identifier of the second tag, the customer's")]
    pcp: Annotated[int, Meta(ge=0, le=7, description="priority code point")] = 0
    tpid: Annotated[
        Literal[0x8100, 0x88A8],
        Meta(description="tag protocol identifier: 802.1Q or 802.1ad", extra={"hexadecimal": True}),
    ] = 0x88A8


class Qinq(TagProtocol[QinqOptions]):
    """The protocol; stateless."""

    name = "qinq"
    title = "QinQ"
    reference = "IEEE 802.1ad"
    options = QinqOptions

    def accepted_parser(self, options: QinqOptions) -> Parser:
        """See Protocol."""
        return Parser.QINQ

    def tags(self, options: QinqOptions) -> bytes:
        """See TagProtocol."""
        return tag_bytes(options.tpid, options.pcp, options.outer_vid) + tag_bytes(
            INNER_TPID, options.pcp, options.inner_vid
        )

    def tunnel_id(self, options: QinqOptions) -> int:
        """Both VIDs."""
        return options.outer_vid << VID_BITS | options.inner_vid

    def describe_tags(self, options: QinqOptions) -> str:
        """See TagProtocol."""
        return (
            f"vlan(tpid={options.tpid:#06x},vid={options.outer_vid},pcp={options.pcp}),"
            f"vlan(tpid={INNER_TPID:#06x},vid={options.inner_vid},pcp={options.pcp})"
        )


PROTOCOL = Qinq()
