# SPDX-License-Identifier: GPL-2.0-only
"""What the control plane knows of the machine when it compiles: links, and the way to each remote.

Plain data. `mptm.kernel.netlink.gather_facts` reads it from the kernel; tests write it by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Link:
    """A network interface. `mac` is 6 bytes (empty where the link has none), `mtu` in bytes.

    `peer_mac` is the MAC of a veth's other end, where it can be read; `master` the ifindex of a bridge or bond.
    """

    ifindex: int
    name: str
    mac: bytes
    mtu: int
    kind: str = ""
    up: bool = True
    peer_mac: bytes | None = None
    xdp_prog_id: int | None = None
    has_far_peer: bool = False
    """Whether it is a veth whose other end is in another network namespace."""
    detour: str = ""
    """What packets to that end must not be spared, in words, such as a qdisc here: they aren't handed over to it."""
    gro_port: int = 0
    """UDP port whose packets the kernel joins because this is a tunnel device of its own there; 0: none."""

    @property
    def hands_over(self) -> bool:
        """Whether packets may be received by its other end at once, without being sent here."""
        return self.has_far_peer and not self.detour


@dataclass(frozen=True)
class Path:
    """How a packet leaves for a remote: from the routing table (RFC 1122 §3.3.1) and the neighbour table."""

    egress_ifindex: int
    local: IPAddress
    local_mac: bytes
    gateway: IPAddress | None
    next_hop_mac: bytes | None
    """None: the neighbour didn't answer; `problem` says so in words."""
    mtu: int
    """Bytes of an IP packet that fit: the interface's MTU, or the route's where that is smaller."""
    problem: str | None = None


@dataclass(frozen=True)
class Facts:
    """`links` by name; `paths` by tunnel name, with `problems` (one sentence) for tunnels that have no path."""

    links: dict[str, Link] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    addresses: frozenset[IPAddress] | None = None
    """Those of this node; None: not known."""
