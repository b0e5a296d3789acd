# SPDX-License-Identifier: GPL-2.0-only
"""A workload's frame through a tunnel, from one node to the other."""

from __future__ import annotations

from packets import as_carried, carried, far_end, ip_packet, tunnel
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet
from world import GATEWAY_MAC, NEIGHBOUR_MAC, REMOTE, THEIRS, World

from mptm.intent import Route


def travel(node: World, peer: World, protocol: str, underlay: int, sent: Packet) -> None:
    """What comes out at the far end is what went in, and both ends have counted the same."""
    version = 6 if IPv6 in sent else 4
    node.apply(
        tunnel(protocol, underlay, remotes=REMOTE),
        Route(network="blue", prefix=THEIRS[version], via="to-node2"),
    )
    peer.apply(far_end(protocol, underlay), Route(network="blue", prefix=THEIRS[version], port="c2"))
    wire = node.send("c1", sent)
    got = peer.send("up0", wire.data)
    assert (wire.verdict, got.verdict) == ("REDIRECT", "REDIRECT"), (node.drops(), peer.drops())
    if carried(protocol, underlay) is None:
        assert got.data[12:] == as_carried(protocol, sent)[12:]
    else:
        assert (got.packet.dst, got.packet.src) == (NEIGHBOUR_MAC, GATEWAY_MAC)
        assert got.data[12:] == (b"\x08\0" if version == 4 else b"\x86\xdd") + ip_packet(bytes(sent))
    assert (
        peer.tunnel_counters("to-node1")["decap_bytes"]
        == node.tunnel_counters("to-node2")["encap_bytes"]
        == len(got.data)
    )
