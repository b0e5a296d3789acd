# SPDX-License-Identifier: GPL-2.0-only
"""What is different at TC: packets are skbs. The rest of this directory is run at TC by MPTM_TEST_HOOK=tc."""

from __future__ import annotations

import socket
import struct

import pytest
from packets import carriers, carries, far_end, over_ip, tunnel
from patching import encapsulate
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw
from world import OUR_MAC, OURS, REMOTE, THEIR_MAC, THEIRS, VERDICTS, Result, World, ip

from mptm.intent import Network, Route
from mptm.kernel import netns, testrun
from mptm.kernel.dataplane import TC_PROGRAM_OF_ROLE

CHECKSUM_COMPLETE = 1 << 2
"""BPF_F_TEST_SKB_CHECKSUM_COMPLETE (Linux 6.16): the sum of a driver, which has to be right afterwards."""


ECT_0, CE = 2, 3


@pytest.fixture
def here(node: World) -> World:
    node.data_plane.require_tc()
    return node


@pytest.fixture
def peer(peer: World) -> World:
    peer.data_plane.require_tc()
    return peer


def send(
    node: World, port: str, packet: bytes, *, gso_size: int = 0, gso_segs: int = 0, flags: int = 0
) -> Result:
    """A packet comes in at a port at TC."""
    program = TC_PROGRAM_OF_ROLE["uplink" if port in node.UPLINKS else "access"]
    with netns.inside(node.namespace):
        run = testrun.run_at_tc(
            node.data_plane.program_fd(program),
            packet,
            ifindex=node.links[port].ifindex,
            gso_size=gso_size,
            gso_segs=gso_segs,
            flags=flags,
        )
    return Result(VERDICTS[run.verdict], run.data)


def tcp(size: int, version: int = 4) -> bytes:
    """A frame of a workload with so many bytes of TCP payload."""
    ip = IP if version == 4 else IPv6
    header = ip(src=OURS[version], dst=THEIRS[version], **({"flags": "DF"} if version == 4 else {}))
    return bytes(Ether(src=OUR_MAC, dst=THEIR_MAC) / header / TCP(sport=1, dport=2) / Raw(bytes(size)))


def routes(version: int) -> list[Route]:
    host = {4: 32, 6: 128}[version]
    return [
        Route(network="blue", prefix=f"{THEIRS[version]}/{host}", via="to-node2"),
        Route(network="blue", prefix=f"{OURS[version]}/{host}", port="c1"),
    ]


def segmenter(node: World, ifindex: int | None) -> None:
    table = node.data_plane.maps["segmenter"]
    with netns.inside(node.namespace):
        if ifindex is None:
            table.delete([table.key.pack(0)])
        else:
            table.update({table.key.pack(0): table.value.pack(ifindex)})


@pytest.mark.parametrize("version", [4, 6])
def test_a_gso_packet_is_as_long_as_its_segments(here: World, version: int) -> None:
    """A VLAN's header needs no notes of the kernel: the packet goes whole, and each of its segments fits."""
    here.apply(tunnel("vlan", remotes=REMOTE), *routes(version))
    packet = tcp(3000, version)
    assert send(here, "c1", packet).verdict == "DROP", "it isn't a GSO packet"
    assert here.drops() == {"TOO_BIG": 1}
    got = send(here, "c1", packet, gso_size=1400)
    assert (got.verdict, len(got.data)) == ("REDIRECT", len(packet) + 4)


@pytest.mark.parametrize(("version", "largest"), [(4, 1460), (6, 1440)])
def test_segments_that_are_too_big_are_answered(here: World, version: int, largest: int) -> None:
    here.apply(
        Network(name="blue", id=1, gateway=("10.250.1.1", "fd00:250:1::1")),
        tunnel("vlan", remotes=REMOTE),
        *routes(version),
    )
    assert send(here, "c1", tcp(3000, version), gso_size=largest).verdict == "REDIRECT"
    assert here.drops() == {}
    got = send(here, "c1", tcp(3000, version), gso_size=largest + 1)
    assert here.drops() == {"TOO_BIG": 1}
    assert got.verdict == "REDIRECT"
    assert got.packet.dst == OUR_MAC
    if version == 4:
        assert (got.packet[ICMP].type, got.packet[ICMP].code, got.packet[ICMP].nexthopmtu) == (3, 4, 1500)
    else:
        assert got.data[54] == 2, "packet too big"


@pytest.mark.parametrize("segments", [0, 3])
@pytest.mark.parametrize("version", [4, 6])
def test_a_gso_packet_counts_as_its_segments(here: World, version: int, segments: int) -> None:
    """With all headers in each, as they are on the wire; of a VM the kernel hasn't counted them."""
    headers = {4: 54, 6: 74}[version]
    inner = {"packets": 3, "bytes": 2500 + 3 * headers}
    outer = {"packets": 3, "bytes": 2500 + 3 * (headers + 4)}
    nothing = {"packets": 0, "bytes": 0}

    def counted(what: dict[str, int], one: str, other: str) -> tuple[dict[str, int], dict[str, int]]:
        return tuple({each: what[f"{way}_{each}"] for each in ("packets", "bytes")} for way in (one, other))  # type: ignore[return-value]

    here.apply(tunnel("vlan", remotes=REMOTE), *routes(version))
    got = send(here, "c1", tcp(2500, version), gso_size=1000, gso_segs=segments)
    assert got.verdict == "REDIRECT"
    assert counted(here.port_counters("c1"), "rx", "tx") == (inner, nothing)
    assert counted(here.tunnel_counters("to-node2"), "encap", "decap") == (inner, nothing)
    assert counted(here.port_counters("up0"), "rx", "tx") == (nothing, outer)


def test_headers_that_say_they_are_longer_than_their_packet_count_once(here: World) -> None:
    """As a VM may send them: there is no telling how many segments they become."""
    here.apply(tunnel("vlan", remotes=REMOTE), *routes(4))
    packet = bytearray(tcp(4))
    packet[14 + 20 + 12] = 15 << 4
    assert send(here, "c1", bytes(packet), gso_size=1).verdict == "REDIRECT"
    assert here.port_counters("c1")["rx_packets"] == 1
    assert here.tunnel_counters("to-node2")["encap_packets"] == 1


@pytest.mark.parametrize("version", [4, 6])
def test_a_received_gso_packet_counts_as_its_segments(here: World, peer: World, version: int) -> None:
    headers = {4: 54, 6: 74}[version]
    here.apply(tunnel("vlan", remotes=REMOTE), *routes(version))
    sent = send(here, "c1", tcp(2500, version), gso_size=1000)
    peer.apply(far_end("vlan", 4), Route(network="blue", prefix=THEIRS[version], port="c1"))
    assert send(peer, "up0", sent.data, gso_size=1000).verdict == "REDIRECT"
    assert peer.drops() == {}
    (tunnels,) = [peer.tunnel_counters(name) for name in peer.allocations.tunnels]
    assert (tunnels["decap_packets"], tunnels["decap_bytes"]) == (3, 2500 + 3 * headers)
    up0, c1 = peer.port_counters("up0"), peer.port_counters("c1")
    assert (up0["rx_packets"], up0["rx_bytes"]) == (3, 2500 + 3 * (headers + 4))
    assert (c1["tx_packets"], c1["tx_bytes"]) == (3, 2500 + 3 * headers)


def without_length(packet: bytes, version: int, *, jumbo: bool = False) -> bytes:
    """A frame of BIG TCP: its IP header says 0; until Linux 6.18 with a jumbo header in the case of IPv6."""
    if version == 4:
        return packet[:16] + bytes(2) + packet[18:]
    header = packet[:18] + bytes(2) + packet[20:54]
    if not jumbo:
        return header + packet[54:]
    length = struct.pack(">I", len(packet) - 54 + 8)
    return header[:20] + b"\0" + header[21:] + b"\x06\0\xc2\x04" + length + packet[54:]


@pytest.mark.parametrize(("version", "jumbo"), [(4, False), (6, False), (6, True)])
@pytest.mark.parametrize("variant", ["vlan", "ipip", "sit", "gre"])
def test_without_a_length_a_gso_packet_of_tcp_goes_to_its_end(
    here: World, variant: str, version: int, jumbo: bool
) -> None:
    if not carries(variant, 4, version):
        pytest.skip("not a packet of this tunnel")
    here.apply(tunnel(variant, remotes=REMOTE), *routes(version))
    packet = without_length(tcp(3000, version), version, jumbo=jumbo)
    segmenter(here, here.links["c2"].ifindex)
    try:
        got = send(here, "c1", packet, gso_size=1300)
    finally:
        segmenter(here, None)
    assert (got.verdict, here.drops()) == ("REDIRECT", {})
    if jumbo:
        assert got.data == packet, "it goes where segments are made, with which the jumbo header goes"
    else:
        assert len(got.data) > len(packet) - 14
    if version == 4:
        assert send(here, "c1", packet).verdict == "PASS", "it isn't a GSO packet, but a broken one"


def test_what_can_not_go_whole_goes_where_segments_are_made(here: World) -> None:
    here.apply(tunnel("etherip", remotes=REMOTE), *routes(4))
    packet = tcp(3000)
    segmenter(here, None)
    assert send(here, "c1", packet, gso_size=1300).verdict == "DROP"
    assert here.drops() == {"GSO": 1}
    segmenter(here, here.links["c2"].ifindex)
    try:
        got = send(here, "c1", packet, gso_size=1300)
    finally:
        segmenter(here, None)
    assert (got.verdict, got.data) == ("REDIRECT", packet), "nothing is in front of it yet"
    assert here.drops() == {"GSO": 1}
    assert here.tunnel_counters("to-node2")["encap_packets"] == 0, "counted when it is encapsulated"


def test_where_segments_were_made_may_be_gone(here: World) -> None:
    here.apply(tunnel("etherip", remotes=REMOTE), *routes(4))
    ip("-n", here.namespace, "link", "add", "gone0", "type", "veth", "peer", "name", "gone1")
    with netns.inside(here.namespace):
        segmenter(here, socket.if_nametoindex("gone0"))
    assert send(here, "c1", tcp(3000), gso_size=1300).verdict == "REDIRECT"
    ip("-n", here.namespace, "link", "del", "gone0")
    assert send(here, "c1", tcp(3000), gso_size=1300).verdict == "DROP"
    assert here.drops() == {"GSO": 1}


@pytest.mark.parametrize("underlay", [4, 6])
@pytest.mark.parametrize("variant", ["vxlan", "geneve", "gretap"])
@pytest.mark.parametrize("tags", [0, 1])
def test_arp_is_answered_through_the_tunnel(
    here: World, peer: World, variant: str, underlay: int, tags: int
) -> None:
    """28 bytes are less than the kernel wants to be left behind an IPv6 header; and ARP is no IP."""
    here.apply(tunnel(variant, underlay, remotes=REMOTE), Route(network="blue", prefix=OURS[4], port="c1"))
    template = peer.apply(far_end(variant, underlay)).templates["to-node1"]
    request = Ether(src=THEIR_MAC, dst="ff:ff:ff:ff:ff:ff")
    for _ in range(tags):
        request /= Dot1Q(vlan=7)
    request /= ARP(op=1, hwsrc=THEIR_MAC, psrc=THEIRS[4], pdst=OURS[4])
    got = send(here, "up0", encapsulate(template, bytes(request)))
    assert (got.verdict, here.drops()) == ("REDIRECT", {})
    answer = Ether(got.data[-len(request) :])
    assert (answer[ARP].op, answer[ARP].hwsrc, answer.dst) == (2, OUR_MAC, THEIR_MAC)
    assert (Dot1Q in answer) == bool(tags)


def knows_sums(node: World) -> bool:
    try:
        send(node, "c1", tcp(100), flags=CHECKSUM_COMPLETE)
    except testrun.KernelError:
        return False
    return True


@pytest.mark.parametrize(("variant", "underlay"), carriers())
def test_the_sum_of_a_driver_stays_right(here: World, peer: World, variant: str, underlay: int) -> None:
    if not knows_sums(here):
        pytest.skip("BPF_PROG_TEST_RUN of this kernel knows no CHECKSUM_COMPLETE (Linux 6.16)")
    for version in (4, 6):
        if not carries(variant, underlay, version):
            continue
        here.apply(tunnel(variant, underlay, remotes=REMOTE), *routes(version))
        got = send(here, "c1", tcp(301, version), flags=CHECKSUM_COMPLETE)
        assert got.verdict == "REDIRECT"
        if not over_ip(variant):
            continue  # BPF_PROG_TEST_RUN doesn't say how long the MAC header is, which the kernel's vlan_pop reads
        peer.apply(far_end(variant, underlay), Route(network="blue", prefix=THEIRS[version], port="c1"))
        back = send(peer, "up0", got.data, flags=CHECKSUM_COMPLETE)
        assert (back.verdict, peer.drops()) == ("REDIRECT", {})


@pytest.mark.parametrize("underlay", [4, 6])
def test_the_sum_of_a_driver_stays_right_where_congestion_is_marked(
    here: World, peer: World, underlay: int
) -> None:
    """The inner traffic class changes, and IPv6 has no checksum of its own to level that out."""
    if not knows_sums(here):
        pytest.skip("BPF_PROG_TEST_RUN of this kernel knows no CHECKSUM_COMPLETE (Linux 6.16)")
    here.apply(tunnel("vxlan", underlay, remotes=REMOTE), *routes(6))
    template = peer.apply(far_end("vxlan", underlay)).templates["to-node1"]
    ip = IPv6(src=THEIRS[6], dst=OURS[6], tc=ECT_0)
    inner = bytes(Ether(src=THEIR_MAC, dst=OUR_MAC) / ip / TCP() / Raw(bytes(50)))
    got = send(here, "up0", encapsulate(template, inner, tos=CE), flags=CHECKSUM_COMPLETE)
    assert (got.verdict, got.packet[IPv6].tc, here.drops()) == ("REDIRECT", CE, {})
