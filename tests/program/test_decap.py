# SPDX-License-Identifier: GPL-2.0-only
"""What mptm_decap_xdp does with a packet of the underlay."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import pytest
from journey import travel
from packets import (
    frame,
    inner_kinds,
    ip,
    journeys,
    set_outer,
    tunnel,
)
from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw
from world import (
    GATEWAY_MAC,
    LOCAL,
    LOCAL_MAC,
    OUR_MAC,
    OURS,
    REMOTE,
    REMOTE_MAC,
    STRANGER,
    THEIR_MAC,
    THEIRS,
)

from mptm.headers import checksum
from mptm.intent import Route

VNI = 0x1234


class DropKey(NamedTuple):
    reason: int
    scope: int
    id: int


INNER = inner_kinds()


def here(version: int = 4, **more: Any) -> Route:
    """The route to our own workload."""
    return Route(network="blue", prefix=OURS[version], **({"port": "c1"} | more))


def geneve_tunnel(underlay: int = 4, **more: Any) -> dict[str, Any]:
    return tunnel("geneve", underlay, remotes=REMOTE, **more)


def inner(version: int = 4, size: int = 64, **fields: Any) -> Packet:
    """A frame from their workload to ours."""
    packet = (
        ip(version, THEIRS[version], OURS[version], **fields) / UDP(sport=53, dport=1111) / Raw(b"d" * size)
    )
    return frame(packet, source=THEIR_MAC)


def underlay_ip(version: int = 4, **fields: Any) -> Packet:
    layer = IP if version == 4 else IPv6
    ether = Ether(src=REMOTE_MAC, dst=LOCAL_MAC)
    return ether / layer(**({"src": REMOTE[version], "dst": LOCAL[version]} | fields))


def geneve(
    payload: Packet | None = None, underlay: int = 4, outer: dict[str, Any] | None = None, **fields: Any
) -> bytes:
    header = GENEVE(**({"vni": VNI, "proto": 0x6558} | fields))
    packet = underlay_ip(underlay, **(outer or {})) / UDP(sport=50000, dport=6081, chksum=0) / header
    return bytes(packet / Raw(bytes(payload if payload is not None else inner())))


def vxlan(payload: Packet | None = None, **fields: Any) -> bytes:
    header = VXLAN(**({"vni": VNI, "flags": 8} | fields))
    packet = underlay_ip() / UDP(sport=50000, dport=4789, chksum=0) / header
    return bytes(packet / Raw(bytes(payload if payload is not None else inner())))


def fix_ipv4_checksum(packet: bytes) -> bytes:
    cleared = set_outer(packet, 24, b"\0\0")
    return set_outer(cleared, 24, struct.pack("!H", checksum(cleared[14:34])))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("underlay", [4, 6])
def test_a_packet_of_a_known_sender_is_delivered_to_the_workload(node, underlay, version):
    node.apply(geneve_tunnel(underlay), here(version))
    sent = inner(version)
    got = node.send("up0", geneve(sent, underlay))
    assert got.verdict == "REDIRECT"
    assert got.data[12:] == bytes(sent)[12:]
    assert (got.packet.dst, got.packet.src) == (OUR_MAC, THEIR_MAC)
    assert node.tunnel_counters("to-node2")["decap_packets"] == 1
    assert node.tunnel_counters("to-node2")["decap_bytes"] == len(sent)
    assert node.port_counters("c1")["tx_packets"] == node.port_counters("up0")["rx_packets"] == 1


@pytest.mark.parametrize(("protocol", "underlay", "kind"), journeys(INNER))
def test_what_one_end_encapsulates_the_other_end_delivers(node, peer, protocol, underlay, kind):
    travel(node, peer, protocol, underlay, INNER[kind])


FOREIGN = {
    "another UDP port": bytes(underlay_ip() / UDP(sport=1, dport=6082) / Raw(b"x" * 80)),
    "ssh": bytes(underlay_ip() / TCP(dport=22) / Raw(b"x" * 40)),
    "icmp": bytes(underlay_ip() / ICMP() / Raw(b"x" * 40)),
    "arp": bytes(Ether(src=REMOTE_MAC, dst=LOCAL_MAC) / ARP(pdst=LOCAL[4])),
    "ipv6 udp": bytes(underlay_ip(6) / UDP(dport=53) / Raw(b"x" * 40)),
    "vlan of another": bytes(Ether(src=REMOTE_MAC, dst="02:00:00:00:77:77") / Dot1Q(vlan=5) / ip(4) / UDP()),
    "lldp": bytes(Ether(src=REMOTE_MAC, dst=LOCAL_MAC, type=0x88CC) / Raw(b"x" * 50)),
    "in transit": geneve(outer={"dst": "10.99.0.1"}),
    "in transit and broken": geneve(outer={"dst": "10.99.0.1"}, version=3),
    "later fragment": bytes(underlay_ip(frag=10, proto=17) / Raw(b"x" * 80)),
    "ipv4 options": set_outer(geneve(), 14, b"\x46"),
}


@pytest.mark.parametrize("packet", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_ours_stays_as_it_came_and_is_not_counted(node, packet):
    node.apply(geneve_tunnel(), tunnel("vlan", name="v", remotes=REMOTE), here())
    got = node.send("up0", packet)
    assert (got.verdict, got.data, node.drops()) == ("PASS", packet, {})


REFUSED = {
    "unknown sender": (geneve(outer={"src": STRANGER[4]}), "SENDER_OR_ID"),
    "unknown vni": (geneve(vni=VNI + 1), "SENDER_OR_ID"),
    "options of somebody else's tunnel": (geneve(vni=VNI + 1, critical=1), "SENDER_OR_ID"),
    "the other protocol's vni": (vxlan(vni=VNI), "SENDER_OR_ID"),
    "first fragment": (geneve(outer={"flags": "MF"}), "FRAGMENT"),
    "unknown vlan": (
        bytes(Ether(src=REMOTE_MAC, dst=LOCAL_MAC) / Dot1Q(vlan=5) / ip(4) / UDP()),
        "SENDER_OR_ID",
    ),
}


@pytest.mark.parametrize(("packet", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_nobody_may_send_us_is_counted_and_left_to_the_kernel_as_it_came(node, packet, reason):
    others = tunnel("vxlan", name="other", remotes=REMOTE, vni=99), tunnel("vlan", name="v", remotes=REMOTE)
    node.apply(geneve_tunnel(), *others, here())
    got = node.send("up0", packet)
    assert (got.verdict, got.data) == ("PASS", packet)
    assert node.drop_scopes() == {(reason, "SCOPE_PORT", node.links["up0"].ifindex)}


def with_options(data: bytes, words: int | None = None, critical: int = 0) -> bytes:
    header = struct.pack("!BBHI", len(data) // 4 if words is None else words, critical << 6, 0x6558, VNI << 8)
    packet = underlay_ip() / UDP(sport=50000, dport=6081, chksum=0) / Raw(header + data + bytes(inner()))
    return bytes(packet)


def option(kind: int, words: int, klass: int = 0x0102) -> bytes:
    return struct.pack("!HBB", klass, kind, words) + b"o" * (4 * words)


@pytest.mark.parametrize(
    "data",
    [
        option(1, 0),
        option(1, 31),
        option(1, 1) + option(2, 0) + option(3, 5),
        option(1, 0) * 63,
        option(1, 30) * 2,
    ],
    ids=len,
)
@pytest.mark.parametrize("flag", [0, 1])
def test_geneve_options_that_need_not_be_understood_are_skipped(node, data, flag):
    """The C flag makes a receiver look at the options (RFC 8926 §3.4); that is done anyway."""
    node.apply(geneve_tunnel(), here())
    got = node.send("up0", with_options(data, critical=flag))
    assert got.verdict == "REDIRECT"
    assert got.data[12:] == bytes(inner())[12:]


BAD_HEADERS = {
    "critical option": (with_options(option(0x81, 1)), "GENEVE_CRITICAL"),
    "critical option after others": (with_options(option(1, 2) + option(0x80, 0)), "GENEVE_CRITICAL"),
    "option beyond the area": (with_options(option(1, 3), words=2), "GENEVE_OPTION_LENGTH"),
    "area beyond the packet": (geneve(Raw(b"x" * 34), optionlen=63), "GENEVE_TRUNCATED"),
    "control": (geneve(oam=1), "GENEVE_CONTROL"),
    "neither ethernet nor ip inside": (geneve(proto=0x8847), "GENEVE_PROTOCOL"),
}


@pytest.mark.parametrize(("packet", "reason"), BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_tunnel_header_we_must_not_take_is_counted_on_its_tunnel(node, packet, reason):
    compiled = node.apply(geneve_tunnel(), here())
    got = node.send("up0", packet)
    assert (got.verdict, got.data) == ("DROP", packet)
    assert node.drop_scopes() == {(reason, "SCOPE_TUNNEL", compiled.allocations.tunnels["to-node2"].counter)}


BROKEN = {
    "geneve version": (geneve(version=1), "GENEVE_VERSION"),
    "vxlan without I": (vxlan(flags=0), "VXLAN_FLAGS"),
    "outer checksum": (set_outer(geneve(), 24, b"\xde\xad"), "BAD_OUTER_IP"),
    "outer length": (fix_ipv4_checksum(set_outer(geneve(), 16, b"\x40\x00")), "BAD_OUTER_IP"),
    "outer version": (fix_ipv4_checksum(set_outer(geneve(), 14, b"\x55")), "BAD_OUTER_IP"),
    "udp length beyond": (set_outer(geneve(), 38, b"\x40\x00"), "BAD_OUTER_UDP"),
    "udp length below": (set_outer(geneve(), 38, b"\x00\x07"), "BAD_OUTER_UDP"),
    "no room for geneve": (
        bytes(underlay_ip() / UDP(sport=1, dport=6081) / Raw(b"\0" * 7)),
        "GENEVE_TRUNCATED",
    ),
    "no room for vxlan": (
        bytes(underlay_ip() / UDP(sport=1, dport=4789) / Raw(b"\x08" * 7)),
        "VXLAN_TRUNCATED",
    ),
}


@pytest.mark.parametrize(("packet", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_packet_to_us_that_is_broken_is_counted_on_the_uplink(node, packet, reason):
    node.apply(geneve_tunnel(), tunnel("vxlan", name="other", remotes=REMOTE), here())
    got = node.send("up0", packet)
    assert (got.verdict, got.data) == ("DROP", packet)
    assert node.drop_scopes() == {(reason, "SCOPE_PORT", node.links["up0"].ifindex)}


BAD_INNER = {
    "nothing": Raw(b""),
    "half an ethernet header": Raw(b"\x02" * 13),
    "half an ip header": Raw(bytes(inner())[:30]),
    "ip length beyond": Raw(set_outer(bytes(inner()), 16, b"\x40\x00")),
    "ip version": Raw(set_outer(bytes(inner()), 14, b"\x55")),
    "ipv6 length beyond": Raw(set_outer(bytes(inner(6)), 18, b"\x40\x00")),
    "half a vlan tag": Raw(bytes(inner())[:12] + b"\x81\x00\x00"),
}


@pytest.mark.parametrize("payload", BAD_INNER.values(), ids=BAD_INNER)
def test_an_inner_frame_that_is_none_is_counted_on_its_tunnel(node, payload):
    node.apply(geneve_tunnel(), here(), here(6))
    assert node.send("up0", geneve(payload)).verdict == "DROP"
    assert node.drops() == {"BAD_INNER": 1}


# RFC 6040 §4.2: rows inner Not-ECT, ECT(1), ECT(0), CE; columns outer the same; None: drop.
NOT_ECT, ECT_1, ECT_0, CE = range(4)
RFC_6040 = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT_0: NOT_ECT, ECT_1: NOT_ECT, CE: None},
    ECT_0: {NOT_ECT: ECT_0, ECT_0: ECT_0, ECT_1: ECT_1, CE: CE},
    ECT_1: {NOT_ECT: ECT_1, ECT_0: ECT_1, ECT_1: ECT_1, CE: CE},
    CE: {NOT_ECT: CE, ECT_0: CE, ECT_1: CE, CE: CE},
}


@pytest.mark.parametrize("underlay", [4, 6])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("outer_ecn", range(4))
@pytest.mark.parametrize("inner_ecn", range(4))
def test_ecn_leaves_as_rfc_6040_says(node, underlay, version, inner_ecn, outer_ecn):
    node.apply(geneve_tunnel(underlay), here(version))
    field = {4: "tos", 6: "tc"}
    sent = inner(version, **{field[version]: 10 << 2 | inner_ecn})
    got = node.send("up0", geneve(sent, underlay, {field[underlay]: 3 << 2 | outer_ecn}))
    expected = RFC_6040[inner_ecn][outer_ecn]
    if expected is None:
        assert (got.verdict, node.drops()) == ("DROP", {"ECN_CE": 1})
        return
    wanted = frame(
        ip(version, THEIRS[version], OURS[version], **{field[version]: 10 << 2 | expected})
        / UDP(sport=53, dport=1111)
        / Raw(b"d" * 64)
    )
    assert got.data[14:] == bytes(wanted)[14:]


def test_a_tagged_inner_frame_keeps_its_tag_and_gets_its_ecn(node):
    node.apply(geneve_tunnel(), here())
    packet = ip(4, THEIRS[4], OURS[4], tos=2) / UDP() / Raw(b"d" * 30)
    got = node.send("up0", geneve(frame(packet, tags=Dot1Q(vlan=7, prio=3)), outer={"tos": 3}))
    assert (got.packet[Dot1Q].vlan, got.packet[Dot1Q].prio, got.packet[IP].tos) == (7, 3, 3)
    assert checksum(got.data[18:38]) == 0


def test_padding_of_the_outer_frame_is_not_delivered(node):
    node.apply(geneve_tunnel(), here())
    got = node.send("up0", geneve() + b"\xee" * 13)
    assert (got.verdict, got.data[12:]) == ("REDIRECT", bytes(inner())[12:])


def test_an_unknown_destination_is_counted_on_its_tunnel(node):
    node.apply(geneve_tunnel(), here(6))
    assert node.send("up0", geneve()).verdict == "DROP"
    assert node.drops() == {"NO_ROUTE": 1}


def test_what_came_out_of_a_tunnel_does_not_go_into_one(node):
    node.apply(geneve_tunnel(), here(port=None, via="to-node2"))
    assert node.send("up0", geneve()).verdict == "DROP"
    assert node.drops() == {"NO_RELAY": 1}


def test_a_route_that_says_drop_holds_for_what_comes_by_tunnel(node):
    node.apply(geneve_tunnel(), here(port=None, drop=True))
    assert node.send("up0", geneve()).verdict == "DROP"
    assert node.drops() == {"ROUTE_DROP": 1}


def test_a_route_that_says_pass_gives_the_inner_packet_to_the_nodes_own_stack(node):
    node.apply(geneve_tunnel(), here(port=None, pass_=True))
    got = node.send("up0", geneve())
    assert (got.verdict, got.packet.dst) == ("PASS", LOCAL_MAC)
    assert got.data[6:] == bytes(inner())[6:]


def test_a_packet_too_big_for_the_port_is_counted_on_the_port(node):
    node.apply(geneve_tunnel(), here())
    assert node.send("up0", geneve(inner(size=1472))).verdict == "REDIRECT"
    assert node.send("up0", geneve(inner(size=1473))).verdict == "DROP"
    assert node.drop_scopes() == {("PORT_TOO_BIG", "SCOPE_PORT", node.links["c1"].ifindex)}


def test_a_tunnel_from_anyone_takes_packets_of_anyone_but_a_known_sender_keeps_his_own(node):
    anyone = {
        "name": "anyone",
        "protocol": "geneve",
        "network": "green",
        "remote": "any",
        "local": LOCAL[4],
        "vni": VNI,
    }
    node.apply(geneve_tunnel(), anyone, here(), Route(network="green", prefix=OURS[4], port="c3"))
    assert node.send("up0", geneve()).verdict == "REDIRECT"
    assert node.send("up0", geneve(outer={"src": STRANGER[4]})).verdict == "REDIRECT"
    assert node.tunnel_counters("to-node2")["decap_packets"] == 1
    assert node.tunnel_counters("anyone")["decap_packets"] == 1


def test_vlan_takes_frames_of_the_neighbour_only(node):
    node.apply(tunnel("vlan", remotes=REMOTE, vid=100), here())
    tagged = Dot1Q(vlan=100, prio=6) / ip(4, THEIRS[4], OURS[4]) / UDP() / Raw(b"d" * 40)
    ours = bytes(Ether(src=REMOTE_MAC, dst=LOCAL_MAC) / tagged)
    got = node.send("up0", ours)
    assert (got.verdict, got.packet.dst, got.packet.src) == ("REDIRECT", OUR_MAC, REMOTE_MAC)
    assert got.data[12:] == ours[16:]
    for packet in (
        bytes(Ether(src=THEIR_MAC, dst=LOCAL_MAC) / tagged),
        bytes(Ether(src=REMOTE_MAC, dst=GATEWAY_MAC) / tagged),
        set_outer(ours, 14, b"\x00\x65"),
        set_outer(ours, 12, b"\x88\xa8"),
    ):
        got = node.send("up0", packet)
        assert (got.verdict, got.data) == ("PASS", packet)


def test_vlan_for_anyone_takes_frames_of_anyone(node):
    fields = {"name": "v", "protocol": "vlan", "network": "blue", "remote": "any", "egress": "up0", "vid": 7}
    node.apply(fields, here())
    packet = Ether(src=THEIR_MAC, dst=OUR_MAC) / Dot1Q(vlan=7) / ip(4, THEIRS[4], OURS[4]) / UDP()
    got = node.send("up0", packet)
    assert (got.verdict, got.packet.dst, got.packet.src) == ("REDIRECT", OUR_MAC, THEIR_MAC)


def test_ten_thousand_terminations_are_each_found_and_their_neighbours_are_not(node):
    vnis = range(5000, 15000, 2)
    tunnels = [geneve_tunnel(name=f"t{vni}", vni=vni) for vni in vnis]
    node.apply(*tunnels, here())
    for vni in range(5000, 15000, 97):
        got = node.send("up0", geneve(vni=vni))
        assert got.verdict == ("PASS" if vni % 2 else "REDIRECT"), vni


def test_a_packet_to_our_address_but_not_our_mac_passes_by(node):
    node.apply(geneve_tunnel(), here())
    for mac in (OUR_MAC, "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"):
        packet = bytes.fromhex(mac.replace(":", "")) + geneve()[6:]
        got = node.send("up0", packet)
        assert (got.verdict, got.data, node.drops()) == ("PASS", packet, {})


def test_a_vlan_is_that_of_its_interface_only(node):
    anyone = {"name": "v", "protocol": "vlan", "network": "blue", "remote": "any", "egress": "up0", "vid": 7}
    known = tunnel("vlan", remotes=REMOTE, vid=100)
    node.apply(anyone, known, here())
    tail = ip(4, THEIRS[4], OURS[4]) / UDP() / Raw(b"d" * 40)
    for vid in (7, 100):
        packet = bytes(Ether(src=REMOTE_MAC, dst=LOCAL_MAC) / Dot1Q(vlan=vid) / tail)
        assert node.send("up0", packet).verdict == "REDIRECT"
        got = node.send("up1", packet)
        assert (got.verdict, got.data) == ("PASS", packet)


def test_frames_of_others_on_a_vlan_for_anyone_are_theirs(node):
    fields = {"name": "v", "protocol": "vlan", "network": "blue", "remote": "any", "egress": "up0", "vid": 7}
    node.apply(fields, here())
    tail = Dot1Q(vlan=7) / ip(4, THEIRS[4], "10.99.0.1") / UDP() / Raw(b"d" * 40)
    others = bytes(Ether(src=THEIR_MAC, dst=OUR_MAC) / tail)
    got = node.send("up0", others)
    assert (got.verdict, got.data, node.drops()) == ("PASS", others, {})
    assert node.send("up0", bytes(Ether(src=THEIR_MAC, dst=LOCAL_MAC) / tail)).verdict == "DROP"
    assert node.drops() == {"NO_ROUTE": 1}


def test_a_frame_with_two_tags_that_the_port_would_not_carry_is_counted(node):
    node.apply(geneve_tunnel(), here())
    tags = Dot1Q(vlan=7) / Dot1Q(vlan=8)
    for size, verdict in ((1496, "REDIRECT"), (1497, "DROP")):
        packet = ip(4, THEIRS[4], OURS[4]) / UDP() / Raw(b"d" * (size - 28))
        assert node.send("up0", geneve(frame(packet, source=THEIR_MAC, tags=tags))).verdict == verdict
    assert node.drops() == {"PORT_TOO_BIG": 1}


def test_a_full_drop_table_still_counts_by_reason(node):
    node.apply(geneve_tunnel(), here(6))
    drops = node.data_plane.maps["drops"]
    number = node.reason_number("NO_ROUTE")
    other = drops.key.pack(DropKey(number, 0, 0))
    empty = bytes(drops.value.size)
    drops.update(
        {other: empty}
        | {drops.key.pack(DropKey(1, 1, 1 << 20 | i)): empty for i in range(drops.max_entries - 1)}
    )
    try:
        assert node.send("up0", geneve()).verdict == "DROP"
        assert drops.totals(other)["packets"] == 1
    finally:
        drops.delete(list(drops.items()))
