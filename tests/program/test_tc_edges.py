# SPDX-License-Identifier: GPL-2.0-only
"""What only TC meets: GSO packets that say something odd of themselves, and what stays with a packet."""

from __future__ import annotations

import dataclasses

import pytest
from packets import frame, ip, tunnel
from scapy.layers.inet import TCP
from scapy.packet import Packet, Raw
from world import REMOTE, THEIRS, World

from mptm.intent import Route
from mptm.kernel import netns, testrun

DROP, REDIRECT = 1, 4
PADDING = b"padding!"


@pytest.fixture
def at_tc(node: World) -> World:
    node.data_plane.require_tc()
    return node


def run(node: World, packet: Packet | bytes, *, gso_size: int = 0, mark: int = 0) -> testrun.Run:
    """A packet comes in at c1."""
    program, ifindex = node.data_plane.program_fd("mptm_encap_tc"), node.links["c1"].ifindex
    with netns.inside(node.namespace):
        return testrun.run_at_tc(program, bytes(packet), ifindex=ifindex, gso_size=gso_size, mark=mark)


def test_a_gso_packet_with_padding_goes_nowhere(at_tc: World) -> None:
    """Cut, it would be no GSO packet any more, but a frame longer than any link takes."""
    at_tc.apply(tunnel("ipip", remotes=REMOTE), Route(network="blue", prefix=THEIRS[4], via="to-node2"))
    sent = bytes(frame(ip(4) / TCP(sport=1, dport=2) / Raw(bytes(3000))))
    ran = run(at_tc, sent + PADDING, gso_size=1000)
    assert (ran.verdict, at_tc.drops()) == (DROP, {"BAD_INNER": 1}), len(ran.data)
    assert run(at_tc, bytes(frame(ip(4) / TCP(sport=1, dport=2))) + PADDING).verdict == REDIRECT


def test_a_mark_stays_in_its_namespace(at_tc: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a packet that is handed over to another one without going through the veth."""
    links = {**at_tc.links, "c2": dataclasses.replace(at_tc.links["c2"], has_far_peer=True)}
    monkeypatch.setattr(at_tc, "links", links)
    at_tc.apply(Route(network="blue", prefix=THEIRS[4], port="c2"))
    ran = run(at_tc, frame(ip(4) / TCP(sport=1, dport=2)), mark=0xC0FFEE)
    assert (ran.verdict, ran.mark) == (REDIRECT, 0)
