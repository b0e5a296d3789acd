# SPDX-License-Identifier: GPL-2.0-only
"""For which UDP ports the kernel is to join tunnel packets (GRO) before a program at TC sees them.

The kernel does so only for ports that a tunnel device of its own listens on; `mptm.kernel.gro` makes idle ones.
"""

from __future__ import annotations

from collections.abc import Iterable

from mptm.intent import Intent, find_protocol
from mptm.protocols.base import ListenerKind
from mptm.tables import Attachment

PREFIX = "mgro-"
"""What the names of idle tunnel devices begin with; the UDP port follows."""

PROTOCOLS = ("vxlan", "vxlan-gbp", "geneve")
"""Those that the kernel's GRO for VXLAN joins: a header of 8 bytes, and an Ethernet frame behind it."""


def device_of(port: int) -> str:
    """The name of the idle tunnel device of a UDP port."""
    return f"{PREFIX}{port}"


def wanted_ports(intent: Intent, attachments: Iterable[Attachment]) -> set[int]:
    """UDP ports that uplinks at TC want GRO for; none where these are to be left alone (`offloads: false`)."""
    if not any(
        each.hook == "tc" and each.role == "uplink" and intent.ports[each.name].offloads
        for each in attachments
    ):
        return set()
    found = set()
    for tunnel in intent.tunnels.values():
        for each in tunnel.variants():
            protocol = find_protocol(each.protocol)
            has_frames = protocol.inner_families(each.options) is None
            if each.protocol in PROTOCOLS and has_frames and not getattr(each.options, "tlvs", ()):
                listeners = protocol.listeners(each.options)
                found |= {listener.number for listener in listeners if listener.kind is ListenerKind.UDP}
    return found
