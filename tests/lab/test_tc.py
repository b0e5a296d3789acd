# SPDX-License-Identifier: GPL-2.0-only
"""Ports at TC: real TCP through every protocol, GSO packets whole where the kernel can, beside nodes at XDP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace
from packets import carriers, carries, over_ip, protocol_of, required_options
from traffic import (
    MEGABYTE,
    NODES,
    Capture,
    address_of,
    carried_by,
    kept,
    packet_of,
    peer_of,
    ping,
    transfer,
)

from mptm.intent import Intent
from mptm.lab.topology import Lab, configure
from mptm.template import GsoKind

UNDERLAY_MTU = 1500
WHOLE = 3000
"""Bytes of a frame that is no single segment on a link of UNDERLAY_MTU."""
SIZE = 4 * MEGABYTE


@pytest.fixture(scope="module")
def lab(lab_prefix: Callable[[], str]) -> Iterator[Lab]:
    """The containers' links could carry more than fits a tunnel."""
    with Lab(lab_prefix(), container_mtu=1600) as built:
        yield built


def at_hook(intent: Intent, hook: str) -> Intent:
    for port in intent.ports.values():
        intent = intent.replace(replace(port, hook=hook))
    return intent


def bring_up(lab: Lab, variant: str, underlay: int, hooks: tuple[str, str]) -> None:
    """Both nodes with a tunnel of the variant at these hooks, and the containers' MTU as it fits."""
    name = protocol_of(variant).name
    for node, hook in zip(NODES, hooks, strict=True):
        options = required_options(variant)
        lab.node(node).apply(at_hook(carried_by(lab, node, name, underlay, **options), hook))
    mtu = min(lab.node(node).inner_mtu("blue") or 0 for node in NODES)
    for node in NODES:
        configure(lab.namespace(f"{node}-c1"), [f"link set eth0 mtu {mtu}"])


def goes_whole(lab: Lab, variant: str) -> bool:
    """Whether the header of node 1's tunnel is one that the kernel can be told of."""
    tunnels = lab.node("node1").compiled_tunnels()
    return tunnels["blue-to-node2"].gso != GsoKind.SEGMENTS


class Longest:
    """The longest frame with an outer IP header, or a tag, that passes the underlay while the block runs."""

    def __init__(self, lab: Lab) -> None:
        self._capture = Capture(lab, "underlay", "node1")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.len = 0

    def _watch(self) -> None:
        while not self._over.is_set():
            for frame in self._capture.frames(wait_seconds=0.2):
                self.len = max(self.len, len(frame))

    def __enter__(self) -> Longest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._capture.__exit__(None, None, None)


@pytest.mark.parametrize(("variant", "underlay"), carriers())
def test_tcp_goes_through_every_protocol(lab: Lab, variant: str, underlay: int) -> None:
    """Both nodes at TC: what is sent is what arrives, no checksum is wrong, and the packets are as long as they can."""
    bring_up(lab, variant, underlay, ("tc", "tc"))
    template = lab.node("node1").tunnel_details("blue-to-node2")
    for version in (4, 6):
        if not carries(variant, underlay, version):
            continue
        ping(lab, "node1-c1", address_of(lab, "node2-c1", version), count=2)
        with Longest(lab) as longest:
            transfer(lab, "node1-c1", "node2-c1", version, size=SIZE)
        if template.goes_whole:
            assert longest.len > WHOLE
        else:
            assert longest.len <= UNDERLAY_MTU + 18
