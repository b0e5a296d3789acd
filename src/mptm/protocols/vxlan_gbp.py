# SPDX-License-Identifier: GPL-2.0-only
"""VXLAN-GBP: VXLAN that carries the sender's group (draft-smith-vxlan-group-policy-05 §2.1).

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|G|R|R|R|I|R|R|R|R|D|R|R|A|R|R|R|        Group Policy ID        |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|         VXLAN Network Identifier (VNI)        |    Reserved   |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

In front of it: Ethernet, IPv4 or IPv6, UDP to port 4789; behind it the inner Ethernet frame. Whoever speaks plain
VXLAN reads it as such, and so the same tunnel accepts both.

Received: as VXLAN; the group isn't looked at.
"""

from __future__ import annotations

import struct
from typing import Annotated

from msgspec import Meta

from mptm.protocols.base import Parser, UdpOptions, UdpPort, UdpProtocol, Vni

GROUP_AND_VNI = 0x88
"""The flags G (a group is there) and I (the VNI is valid)."""
DONT_LEARN = 0x40
POLICY_APPLIED = 0x08


class VxlanGbpOptions(UdpOptions, frozen=True, kw_only=True):
    """What an operator sets on a VXLAN-GBP tunnel."""

    vni: Vni
    group_policy_id: Annotated[int, Meta(ge=0, le=2**16 - 1, description="group of the sender")] = 0
    dont_learn: Annotated[
        bool, Meta(description="the D flag: the receiver shouldn't learn the sender's address")
    ] = False
    policy_applied: Annotated[
        bool, Meta(description="the A flag: the group's policy was applied already")
    ] = False
    port: UdpPort = 4789


class VxlanGbp(UdpProtocol[VxlanGbpOptions]):
    """The protocol; stateless."""

    name = "vxlan-gbp"
    title = "VXLAN-GBP"
    reference = "draft-smith-vxlan-group-policy"
    parser = Parser.VXLAN
    options = VxlanGbpOptions

    def header(self, options: VxlanGbpOptions) -> bytes:
        """All reserved bits are zero."""
        return struct.pack(
            "!BBHI", GROUP_AND_VNI, _policy_flags(options), options.group_policy_id, options.vni << 8
        )

    def tunnel_id(self, options: VxlanGbpOptions) -> int:
        """The VNI; the group is not looked at."""
        return options.vni

    def describe_header(self, options: VxlanGbpOptions) -> str:
        """See IpProtocol."""
        return (
            f"vxlan(flags={GROUP_AND_VNI:#04x},vni={options.vni:#x}),"
            f"gbp(id={options.group_policy_id:#x},flags={_policy_flags(options):#04x})"
        )


def _policy_flags(options: VxlanGbpOptions) -> int:
    return DONT_LEARN * options.dont_learn | POLICY_APPLIED * options.policy_applied


PROTOCOL = VxlanGbp()
