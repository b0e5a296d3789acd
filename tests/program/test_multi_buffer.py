# SPDX-License-Identifier: GPL-2.0-only
"""Frames that don't fit one buffer: XDP sees the first few kilobytes, and the rest has to come through whole."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

import pytest
import world
from journey import travel
from packets import far_end, frame, ip, journeys, tunnel
from scapy.layers.inet import TCP, UDP
from scapy.packet import Packet, Raw
from world import HOOK, REMOTE, THEIRS, World

from mptm.intent import Route

JUMBO = 9000
PAYLOAD = random.Random(9000).randbytes(8533)
"""Odd, so that sums have a tail."""

INNER: dict[str, Packet] = {
    "udp4": frame(ip(4) / UDP(sport=1111, dport=53) / Raw(PAYLOAD)),
    "udp4 without checksum": frame(ip(4) / UDP(sport=1111, dport=53, chksum=0) / Raw(PAYLOAD)),
    "tcp6": frame(ip(6) / TCP(sport=40000, dport=80) / Raw(PAYLOAD)),
}


@pytest.fixture
def jumbo(node: World, peer: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[World, World]]:
    """Both nodes, whose links carry 9000 bytes."""
    if HOOK == "tc":
        pytest.skip("what XDP has in several buffers is one skb at TC")
    monkeypatch.setattr(world, "UPLINK_MTU", JUMBO)
    for each in (node, peer):
        links = {name: dataclasses.replace(link, mtu=JUMBO) for name, link in each.links.items()}
        monkeypatch.setattr(each, "links", links)
    yield node, peer


@pytest.mark.parametrize(("protocol", "underlay", "kind"), journeys(INNER))
def test_a_jumbo_frame_comes_out_of_every_tunnel_as_it_went_in(
    jumbo: tuple[World, World], protocol: str, underlay: int, kind: str
) -> None:
    """Receivers verify what checksums there are."""
    travel(*jumbo, protocol, underlay, INNER[kind])


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        ("gre", {"checksum": True}),
        ("vxlan", {"receive_checksum": "verify"}),
    ],
)
def test_a_byte_that_is_wrong_far_behind_the_first_buffer_is_found(
    jumbo: tuple[World, World], protocol: str, options: dict[str, object]
) -> None:
    """A datagram without a checksum of its own: every byte is summed up."""
    node, peer = jumbo
    underlay = 6 if protocol == "vxlan" else 4
    route = Route(network="blue", prefix=THEIRS[4], via="to-node2")
    node.apply(tunnel(protocol, underlay, remotes=REMOTE, **options), route)
    peer.apply(far_end(protocol, underlay, **options), Route(network="blue", prefix=THEIRS[4], port="c2"))
    wire = node.send("c1", INNER["udp4 without checksum"]).data
    assert peer.send("up0", wire).verdict == "REDIRECT"
    for at in (3000, 5000, len(wire) - 1):
        broken = bytearray(wire)
        broken[at] ^= 1
        assert peer.send("up0", bytes(broken)).verdict == "DROP", at
    assert sum(peer.drops().values()) == 3


def test_what_is_too_big_is_answered_though_it_is_in_several_buffers(jumbo: tuple[World, World]) -> None:
    from mptm.intent import Network

    node, _ = jumbo
    node.apply(
        Network(name="blue", id=1, gateway=("10.250.1.1",)),
        tunnel("geneve", remotes=REMOTE),
        Route(network="blue", prefix=THEIRS[4], via="to-node2"),
    )
    sent = frame(ip(4, flags="DF") / UDP(sport=1111, dport=53) / Raw(random.Random(1).randbytes(9100)))
    answer = node.send("c1", sent)
    assert answer.verdict == "REDIRECT"
    assert answer.packet["ICMP"].nexthopmtu == JUMBO - 50
    assert bytes(answer.packet["ICMP"].payload)[:100] == bytes(sent)[14:114]
    checked = answer.packet.copy()
    del checked["ICMP"].chksum
    assert bytes(checked) == answer.data
