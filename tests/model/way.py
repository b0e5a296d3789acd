# SPDX-License-Identifier: GPL-2.0-only
"""How a tunnel's packets leave the node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """Interface, addresses (packed) and MAC addresses of outgoing packets; `mtu` as of an IP packet.

    keeps_macs: a VLAN's frames keep their own MAC addresses.
    """

    egress: int
    mtu: int
    next_hop_mac: bytes
    local_mac: bytes
    local: bytes = b""
    destination: bytes = b""
    keeps_macs: bool = False

    @property
    def version(self) -> int:
        """Of IP."""
        return 4 if len(self.local) == 4 else 6
