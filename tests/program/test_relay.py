# SPDX-License-Identifier: GPL-2.0-only
"""Out of one tunnel and into another, groups of tunnels that share flows, and what keeps packets from going round."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from packets import CARRIED, far_end, frame, inner_kinds, ip, tunnel
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw
from test_neighbour import arp
from world import (
    GATEWAY_MAC,
    LOCAL,
    LOCAL_MAC,
    REMOTE,
    REMOTE_MAC,
    THEIR_MAC,
    THEIRS,
    World,
)

from mptm.intent import Group, Member, Network, Route

THIRD = {4: "10.30.30.3", 6: "fd00:30:30::3"}
BEYOND = {4: "10.250.1.103", 6: "fd00:250:1::103"}
VNI, OTHER_VNI = 100, 300


def incoming(**more: Any) -> dict[str, Any]:
    """The tunnel that packets come by, from node 2."""
    return tunnel("vxlan", remotes=REMOTE, name="in", vni=VNI, **more)


def outgoing(protocol: str = "geneve", underlay: int = 4, **more: Any) -> dict[str, Any]:
    """The tunnel that they are to go into, to a third node."""
    return tunnel(protocol, underlay, remotes=THIRD, name="out", **more)


def beyond(version: int = 4, **more: Any) -> Route:
    """The route to a workload behind the third node."""
    return Route(network="blue", prefix=BEYOND[version], **({"via": "out", "relay": True} | more))


def back(version: int = 4, **more: Any) -> Route:
    """The route to their workload behind node 2."""
    return Route(network="blue", prefix=THEIRS[version], **({"via": "in", "relay": True} | more))


def passing(
    version: int = 4, payload: Packet | None = None, tos: int = 0, ttl: int = 64, **more: Any
) -> Packet:
    """A frame of their workload to the one beyond."""
    fields = {"tos": tos, "ttl": ttl} if version == 4 else {"tc": tos, "hlim": ttl}
    header = ip(version, THEIRS[version], BEYOND[version], **fields, **more)
    return frame(header / (payload or UDP(sport=7, dport=9) / Raw(b"r" * 64)), source=THEIR_MAC)


def by_vxlan(inner: Packet, tos: int = 0) -> bytes:
    """What node 2 sends."""
    outer = Ether(src=REMOTE_MAC, dst=LOCAL_MAC) / IP(src=REMOTE[4], dst=LOCAL[4], tos=tos)
    return bytes(outer / UDP(sport=50000, dport=4789, chksum=0) / VXLAN(vni=VNI, flags="Instance") / inner)


def inner_ip(packet: Packet) -> Packet:
    """The innermost IP header."""
    layers = [layer for layer in (IP, IPv6) if packet.getlayer(layer)]
    found = max((packet.getlayer(layer, nb) for layer in layers for nb in (1, 2) if packet.getlayer(layer, nb)),
                key=lambda each: len(bytes(packet)) - len(bytes(each)))  # fmt: skip
    return found


# ---- relay -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("protocol", "underlay", "version"), CARRIED, ids=str)
def test_what_came_by_vxlan_goes_on_by_any_protocol(node: World, peer: World, protocol, underlay, version):
    """The third node is played by node 2's world, which is asked to decapsulate."""
    through = tunnel(protocol, underlay, remotes=REMOTE, name="out")
    node.apply(incoming(remote=THIRD[4]), through, beyond(version), back(version))
    sent = passing(version, ttl=9)
    outer = Ether(src=REMOTE_MAC, dst=LOCAL_MAC) / IP(src=THIRD[4], dst=LOCAL[4])
    wire = outer / UDP(sport=5, dport=4789, chksum=0) / VXLAN(vni=VNI, flags="Instance") / sent
    got = node.send("up0", bytes(wire))
    assert (got.verdict, node.drops()) == ("REDIRECT", {})
    assert node.tunnel_counters("in")["decap_packets"] == 1
    assert node.tunnel_counters("out")["encap_packets"] == 1

    peer.apply(far_end(protocol, underlay), Route(network="blue", prefix=BEYOND[version], port="c1"))
    arrived = peer.send("up0", got.data)
    assert (arrived.verdict, peer.drops()) == ("REDIRECT", {})
    expected = passing(version, ttl=8)
    assert arrived.data[14:] == bytes(expected)[14:]


@pytest.mark.parametrize("version", [4, 6])
def test_a_route_that_does_not_relay_drops_it(node: World, version):
    node.apply(incoming(), outgoing(), beyond(version, relay=False))
    wire = by_vxlan(passing(version))
    got = node.send("up0", wire)
    assert (got.verdict, got.data, node.drops()) == ("DROP", wire, {"NO_RELAY": 1})


@pytest.mark.parametrize("ttl", [0, 1])
@pytest.mark.parametrize("version", [4, 6])
def test_a_packet_whose_hops_are_used_up_ends(node: World, version, ttl):
    node.apply(incoming(), outgoing(), beyond(version))
    wire = by_vxlan(passing(version, ttl=ttl))
    got = node.send("up0", wire)
    assert (got.verdict, got.data, node.drops()) == ("DROP", wire, {"HOP_LIMIT": 1})


def test_nothing_goes_back_into_the_tunnel_it_came_by(node: World):
    node.apply(incoming(), beyond(via="in"))
    wire = by_vxlan(passing())
    got = node.send("up0", wire)
    assert (got.verdict, got.data, node.drops()) == ("DROP", wire, {"SPLIT_HORIZON": 1})


@pytest.mark.parametrize(
    ("ours", "other", "goes"), [(1, 1, False), (1, 2, True), (1, None, True), (None, None, True)]
)
def test_tunnels_of_one_split_horizon_do_not_relay_to_each_other(node: World, ours, other, goes):
    node.apply(incoming(split_horizon=ours), outgoing(split_horizon=other), beyond())
    got = node.send("up0", by_vxlan(passing()))
    assert got.verdict == ("REDIRECT" if goes else "DROP")
    assert node.drops() == ({} if goes else {"SPLIT_HORIZON": 1})


def test_congestion_marked_on_the_first_tunnel_is_told_on_the_second(node: World):
    """RFC 6040: the inner field takes the mark, and the next outer header has the inner field."""
    node.apply(incoming(), outgoing(), beyond())
    got = node.send("up0", by_vxlan(passing(tos=2), tos=3))
    assert got.verdict == "REDIRECT"
    assert (got.packet[IP].tos & 3, inner_ip(got.packet).tos & 3) == (3, 3)


def test_a_relayed_packet_that_is_too_big_is_answered_through_the_tunnel_it_came_by(node: World):
    gateway = Network(name="blue", id=1, gateway=("10.250.1.1", "fd00:250:1::1"))
    node.apply(gateway, incoming(), outgoing("geneve", 6), beyond(), beyond(6), back(), back(6))
    for version, room in ((4, 1500 - 70), (6, 1500 - 70)):
        size = room + 1 - (20 if version == 4 else 40) - 8
        flags = {"flags": "DF"} if version == 4 else {}
        got = node.send("up0", by_vxlan(passing(version, UDP(sport=7, dport=9) / Raw(bytes(size)), **flags)))
        assert got.verdict == "REDIRECT"
        answer = got.packet[VXLAN].payload
        assert (got.packet[IP].dst, got.packet[VXLAN].vni) == (REMOTE[4], VNI)
        assert answer.dst == THEIR_MAC
        if version == 4:
            assert (answer[IP].src, answer[IP].dst) == ("10.250.1.1", THEIRS[4])
            assert (answer[ICMP].type, answer[ICMP].nexthopmtu) == (3, room)
        else:
            assert (answer[IPv6].src, answer[IPv6].dst) == ("fd00:250:1::1", THEIRS[6])
            assert answer[ICMPv6PacketTooBig].mtu == room
    assert node.drops() == {"TOO_BIG": 2}


def test_a_question_for_what_is_relayed_is_answered(node: World):
    node.apply(incoming(), outgoing(), beyond())
    got = node.send("up0", by_vxlan(arp(BEYOND[4], THEIRS[4], THEIR_MAC)))
    assert (got.verdict, node.drops()) == ("REDIRECT", {})
    reply = got.packet[ARP]
    assert (reply.op, reply.hwsrc, reply.psrc, reply.hwdst) == (2, LOCAL_MAC, BEYOND[4], THEIR_MAC)
    node.apply(incoming(), outgoing(), beyond(relay=False))
    assert node.send("up0", by_vxlan(arp(BEYOND[4], THEIRS[4], THEIR_MAC))).verdict == "DROP"


# ---- groups ------------------------------------------------------------------------------------------------

MEMBERS = {f"t{number}": f"10.30.30.{10 + number}" for number in range(4)}


def members(protocol: str = "vxlan", *names: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "protocol": protocol, "network": "blue", "remote": MEMBERS[name], "vni": 7}
        for name in (names or MEMBERS)
    ]


def group(*names: str, **weights: int) -> Group:
    return Group(
        name="all",
        network="blue",
        members=tuple(Member(tunnel=name, weight=weights.get(name, 1)) for name in (names or MEMBERS)),
    )


def to_group(version: int = 4, **more: Any) -> Route:
    return Route(network="blue", prefix=THEIRS[version], group="all", **more)


def flow(number: int, version: int = 4, **fields: Any) -> Packet:
    return frame(ip(version, **fields) / UDP(sport=1024 + number, dport=53) / Raw(b"g" * 32))


def remote_of(node: World, packet: Packet, port: str = "c1") -> str:
    got = node.send(port, packet)
    assert got.verdict == "REDIRECT", node.drops()
    return got.packet[IP].dst


@pytest.mark.parametrize("version", [4, 6])
def test_a_group_spreads_flows_and_keeps_each_where_it_is(node: World, version):
    node.apply(*members(), group(), to_group(version))
    first = [remote_of(node, flow(number, version)) for number in range(400)]
    assert set(first) == set(MEMBERS.values())
    assert min(first.count(remote) for remote in MEMBERS.values()) > 60
    assert first == [remote_of(node, flow(number, version)) for number in range(400)]
    assert sum(node.tunnel_counters(name)["encap_packets"] for name in MEMBERS) == 800


def test_only_the_flows_of_a_member_that_goes_move(node: World):
    node.apply(*members(), group(), to_group())
    before = [remote_of(node, flow(number)) for number in range(400)]
    node.apply(*members(), group(), to_group(), down=["t2"])
    after = [remote_of(node, flow(number)) for number in range(400)]
    gone = MEMBERS["t2"]
    assert gone not in after
    assert all(was == now for was, now in zip(before, after, strict=True) if was != gone)
    node.apply(*members(), group(), to_group())
    assert before == [remote_of(node, flow(number)) for number in range(400)]


def test_weights_count(node: World):
    node.apply(*members(), group("t0", "t1", t0=3), to_group())
    found = [remote_of(node, flow(number)) for number in range(800)]
    assert 0.65 < found.count(MEMBERS["t0"]) / 800 < 0.85


def test_every_fragment_follows_the_first(node: World):
    """Only the first has ports: none of them is looked at."""
    node.apply(*members(), group(), to_group(4), to_group(6))
    for ident in range(20):
        source = f"10.250.1.{ident + 120}"
        whole = UDP(sport=1000 + ident, dport=53) / Raw(b"f" * 64)
        four = [
            frame(ip(4, source, flags="MF", id=ident) / whole),
            frame(ip(4, source, flags="MF", frag=9, id=ident, proto=17) / Raw(b"f" * 72)),
            frame(ip(4, source, frag=18, id=ident, proto=17) / Raw(b"f" * 31)),
        ]
        source = f"fd00:250:1::{ident + 120}"
        six = [
            frame(ip(6, source) / IPv6ExtHdrFragment(nh=17, id=ident, m=1) / whole),
            frame(ip(6, source) / IPv6ExtHdrFragment(nh=17, id=ident, offset=9, m=0) / Raw(b"f" * 31)),
        ]
        for fragments in (four, six):
            outers = [node.send("c1", fragment).packet for fragment in fragments]
            assert len({(outer[IP].dst, outer[UDP].sport) for outer in outers}) == 1


def test_source_ports_of_one_member_still_differ(node: World):
    """The member and the source port come from different bits of the hash."""
    node.apply(*members(), group(), to_group())
    ports = {name: set() for name in MEMBERS.values()}
    for number in range(400):
        outer = node.send("c1", flow(number)).packet
        ports[outer[IP].dst].add(outer[UDP].sport)
    assert all(len(found) > 50 for found in ports.values())
    spread = [(max(found) - min(found)) / 0x4000 for found in ports.values()]
    assert min(spread) > 0.9


def test_a_group_without_anybody_drops_with_that_reason(node: World):
    node.apply(*members(), group(), to_group(), down=list(MEMBERS))
    packet = flow(1)
    got = node.send("c1", packet)
    assert (got.verdict, got.data, node.drops()) == ("DROP", bytes(packet), {"GROUP_EMPTY": 1})


def test_neighbours_behind_a_group_are_answered_for(node: World):
    node.apply(*members(), group(), to_group())
    got = node.send("c1", arp())
    assert (got.verdict, got.packet[ARP].hwsrc) == ("REDIRECT", GATEWAY_MAC)


def test_a_relay_into_a_group_takes_the_flows_member(node: World):
    node.apply(
        incoming(),
        *members("geneve"),
        group(),
        Route(network="blue", prefix=BEYOND[4], group="all", relay=True),
    )
    found = set()
    for number in range(60):
        got = node.send("up0", by_vxlan(passing(4, TCP(sport=number, dport=80))))
        assert got.verdict == "REDIRECT"
        found.add(got.packet[IP].dst)
    assert found == set(MEMBERS.values())


@pytest.mark.parametrize("kind", inner_kinds())
def test_a_group_carries_every_kind_of_packet(node: World, kind):
    packet = inner_kinds()[kind]
    node.apply(*members(), group(), to_group(4), to_group(6))
    got = node.send("c1", packet)
    assert (got.verdict, node.drops()) == ("REDIRECT", {})
    assert got.data[50:] == bytes(packet)


def test_struct_group_holds_what_the_control_plane_says(node: World):
    compiled = node.apply(*members(), group(), to_group())
    ((slot, value),) = compiled.tables.groups.items()
    table = node.data_plane.maps["groups"]
    stored = table.get(table.key.pack(slot))
    assert struct.unpack(f"<{len(value.tunnels)}H", stored) == tuple(value.tunnels)
