# SPDX-License-Identifier: GPL-2.0-only
"""The peers of the matrix, in the order of the table."""

from __future__ import annotations

from guest_peer import Linux61, Linux612
from kernel_peer import KernelPeer
from matrix import Peer
from ovs_peer import OvsPeer

PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (KernelPeer, OvsPeer, Linux61, Linux612)}
"""By name. Another one is a module with a subclass of Peer, and its place in this line."""
