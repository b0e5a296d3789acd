# SPDX-License-Identifier: GPL-2.0-only
"""What only TC meets: GSO packets that say something odd of themselves, and what stays with a packet."""

from __future__ import annotations

import dataclasses
import errno
import socket
import subprocess
from collections.abc import Iterator

import pytest
from packets import frame, ip, tunnel
from scapy.layers.inet import TCP
from scapy.packet import Packet, Raw
from world import REMOTE, THEIRS, World

from mptm.errors import ForeignProgram
from mptm.intent import Route
from mptm.kernel import libbpf, netns, segmenter, testrun
from mptm.kernel.dataplane import DataPlane, remove_instance
from mptm.kernel.netlink import gather_facts
from mptm.kernel.offloads import read_features
from mptm.tables import Attachment

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


@pytest.mark.parametrize("mark", [0x4D50FFFF, 0x4D500000])
def test_a_mark_is_never_taken_for_ours(at_tc: World, mark: int) -> None:
    at_tc.apply(tunnel("vxlan", remotes=REMOTE), Route(network="blue", prefix=THEIRS[4], via="to-node2"))
    ran = run(at_tc, frame(ip(4) / TCP(sport=1, dport=2)), mark=mark)
    assert (ran.verdict, ran.mark, at_tc.tunnel_counters("to-node2")["encap_packets"]) == (REDIRECT, mark, 1)


@pytest.fixture
def port(at_tc: World) -> Iterator[Attachment]:
    """c1 at TC, once it is attached there."""
    attachment = Attachment(at_tc.links["c1"].ifindex, "c1", "access", "auto", "tc")
    with netns.inside(at_tc.namespace):
        try:
            yield attachment
        finally:
            at_tc.data_plane.detach("c1")


def test_a_segmenter_that_was_only_begun_is_completed(at_tc: World, port: Attachment) -> None:
    """As a command leaves it that is killed once the veth is there."""
    entry, exit_ = segmenter.names(at_tc.instance)
    subprocess.run(["ip", "link", "add", entry, "type", "veth", "peer", exit_], check=True)
    assert at_tc.data_plane.attach(port) in ("tcx", "clsact")
    pair = segmenter.find(at_tc.instance)
    assert pair is not None
    features = read_features(pair.entry)
    assert not [name for name, each in features.items() if name.startswith("tx-checksum") and each.active]
    for ifindex in pair:
        assert gather_facts((), resolve_timeout_seconds=0).links[socket.if_indextoname(ifindex)].up


def test_the_filter_of_another_instance_is_not_replaced(
    at_tc: World, port: Attachment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 6.6, where both would be in the same place."""
    monkeypatch.setattr(libbpf, "create_tcx_link", lambda *_: -errno.EINVAL)
    other = f"{at_tc.instance}-o"
    try:
        with DataPlane.open(other, load=True) as data_plane:
            assert data_plane.attach(port) == "clsact"
            with pytest.raises(ForeignProgram, match=f"of the instance {other}"):
                at_tc.data_plane.attach(port)
            assert [each.mode for each in data_plane.attachments()] == ["clsact"]
            data_plane.remove()
        assert at_tc.data_plane.attach(port) == "clsact"
        assert at_tc.data_plane.attach(port) == "clsact"
    finally:
        remove_instance(other)
