# SPDX-License-Identifier: GPL-2.0-only
"""Packets that are cut off or mangled: never an abort, never a packet that is half changed."""

from __future__ import annotations

from socket import IPPROTO_UDP

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model import ip_packet, l3_offset
from packets import carriers, carries, far_end, frame, inner_kinds, ip, journeys, over_ip, tunnel
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q
from scapy.packet import Raw
from world import OURS, REMOTE, THEIRS, World

from mptm.intent import Route

INNER = inner_kinds()
ROUTES = [Route(network="blue", prefix=THEIRS[version], via="to-node2") for version in (4, 6)]
HOSTS = [Route(network="blue", prefix=THEIRS[version], port="c2") for version in (4, 6)]
MINIMUM = 14
"""Bytes: the kernel runs no shorter packet."""


def wire(node: World, peer: World, protocol: str, underlay: int, kind: str) -> bytes:
    """A good packet of node 1 for node 2, both set up."""
    node.apply(tunnel(protocol, underlay, remotes=REMOTE), *ROUTES)
    peer.apply(far_end(protocol, underlay), *HOSTS)
    sent = node.send("c1", INNER[kind])
    assert sent.verdict == "REDIRECT"
    return sent.data


def assert_sane(packet: bytes, verdict: str, data: bytes) -> None:
    """A packet goes whole, or it stays as it came."""
    assert verdict in ("PASS", "DROP", "REDIRECT")
    if verdict in ("PASS", "DROP"):
        assert data == packet


@pytest.mark.parametrize("kind", INNER)
def test_a_workloads_packet_cut_at_every_length(node, kind):
    node.apply(tunnel("geneve", remotes=REMOTE), *ROUTES)
    whole = bytes(INNER[kind])
    needed = l3_offset(whole) + len(ip_packet(whole))
    for length in range(MINIMUM, min(needed, 200)):
        got = node.send("c1", whole[:length])
        assert_sane(whole[:length], got.verdict, got.data)
        assert got.verdict == "PASS", f"an IP packet cut to {length} bytes is the kernel's"


@pytest.mark.parametrize(("protocol", "underlay", "kind"), journeys(["udp4", "tcp6", "qinq6"]))
def test_a_tunnel_packet_cut_at_every_length(node, peer, protocol, underlay, kind):
    whole = wire(node, peer, protocol, underlay, kind)
    for length in range(MINIMUM, len(whole)):
        got = peer.send("up0", whole[:length])
        assert_sane(whole[:length], got.verdict, got.data)
        assert got.verdict in ("PASS", "DROP"), f"a tunnel packet cut to {length} bytes was delivered"
    assert peer.send("up0", whole).verdict == "REDIRECT"


@pytest.mark.parametrize(("protocol", "underlay"), carriers())
def test_a_tunnel_packet_whose_lengths_agree_with_where_it_was_cut(node, peer, protocol, underlay):
    """Outer lengths are mended, so that only the tunnel header and the inner frame are short."""
    whole = wire(node, peer, protocol, underlay, "udp6" if carries(protocol, underlay, 6) else "udp4")
    record = next(
        iter(node.apply(tunnel(protocol, underlay, remotes=REMOTE), *ROUTES).tables.tunnels.values())
    )
    has_ip = over_ip(protocol)
    shortest = MINIMUM if not has_ip else (42 if underlay == 4 else 62)
    for length in range(shortest, len(whole)):
        packet = mend(whole[:length], underlay) if has_ip else whole[:length]
        got = peer.send("up0", packet)
        assert_sane(packet, got.verdict, got.data)
        assert got.verdict != "REDIRECT", f"cut to {length} bytes of {len(whole)}, outer {record.outer_len}"


def mend(packet: bytes, underlay: int) -> bytes:
    """IP and UDP lengths for the packet as it is."""
    from mptm.headers import checksum

    mended = bytearray(packet)
    if underlay == 4:
        mended[16:18] = (len(packet) - 14).to_bytes(2, "big")
        mended[24:26] = b"\0\0"
        mended[24:26] = checksum(bytes(mended[14:34])).to_bytes(2, "big")
        if mended[23] == IPPROTO_UDP:
            mended[38:40] = (len(packet) - 34).to_bytes(2, "big")
    else:
        mended[18:20] = (len(packet) - 54).to_bytes(2, "big")
        if mended[20] == IPPROTO_UDP:
            mended[58:60] = (len(packet) - 54).to_bytes(2, "big")
    return bytes(mended)


@pytest.mark.parametrize(("protocol", "underlay"), carriers())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mangled_tunnel_packet(node, peer, protocol, underlay, data):
    whole = bytearray(wire_once(node, peer, protocol, underlay))
    headers = min(len(whole), 130)
    for at, value in data.draw(
        st.lists(st.tuples(st.integers(0, headers - 1), st.integers(0, 255)), min_size=1, max_size=4)
    ):
        whole[at] = value
    packet = bytes(whole[: data.draw(st.integers(MINIMUM, len(whole)))])
    got = peer.send("up0", packet)
    assert_sane(packet, got.verdict, got.data)


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mangled_packet_of_a_workload(node, data):
    global _ready
    if _ready != "access":
        node.apply(
            tunnel("geneve", remotes=REMOTE), *ROUTES, Route(network="blue", prefix=OURS[4], port="c1")
        )
        _ready = "access"
    kind = data.draw(st.sampled_from(sorted(INNER)))
    whole = bytearray(bytes(INNER[kind])[:200])
    for at, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    ):
        whole[at] = value
    packet = bytes(whole)
    got = node.send("c1", packet)
    assert_sane(packet, got.verdict, got.data)
    if got.verdict == "REDIRECT":
        assert got.data[50:] == packet


_ready: object = None
_wire = b""


def wire_once(node: World, peer: World, protocol: str, underlay: int) -> bytes:
    """`wire`, set up once for all examples of a test."""
    global _ready, _wire
    if _ready != (protocol, underlay):
        _wire = wire(node, peer, protocol, underlay, "udp4" if carries(protocol, underlay, 4) else "udp6")
        _ready = (protocol, underlay)
    return _wire


def test_tags_deeper_than_we_look_are_the_kernels(node):
    node.apply(tunnel("geneve", remotes=REMOTE), *ROUTES)
    packet = frame(ip(4) / UDP() / Raw(b"x" * 20), tags=Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3))
    got = node.send("c1", packet)
    assert (got.verdict, got.data) == ("PASS", bytes(packet))
    assert IPv6 not in got.packet
