# SPDX-License-Identifier: GPL-2.0-only
"""The gateway address of a network: it answers neighbours and pings, and tells senders of packets that are too big."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from packets import CARRIED, carried, frame, inner_kinds, ip, tunnel
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6ND_NA, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scenario import Scenario
from test_neighbour import solicit
from world import GATEWAY_MAC, OUR_MAC, OURS, REMOTE, THEIRS, UPLINK_MTU, World

from mptm.intent import Network, Route, tunnel_from_dict

GATEWAY = {4: "10.250.1.1", 6: "fd00:250:1::1"}
BURST, INTERVAL_SECONDS = 10, 0.01
"""ANSWER_BURST and ANSWER_INTERVAL_NS of bpf/too_big.h."""
BLUE = Network(name="blue", id=1, gateway=tuple(GATEWAY.values()))


def to_them(version: int, **more: Any) -> Route:
    return Route(network="blue", prefix=THEIRS[version], **({"via": "to-node2"} | more))


def big(version: int, size: int, *, tags: Packet | None = None, **fields: Any) -> Packet:
    """A frame with an IP packet of `size` bytes."""
    header = ip(version, **({"flags": "DF"} if version == 4 else {}) | fields)
    return frame(header / UDP(sport=1111, dport=53) / Raw(bytes(size - len(header) - 8)), tags=tags)


def assert_checksums_right(packet: Packet) -> None:
    """As scapy computes them."""
    again = packet.copy()
    for layer in (IP, ICMP, ICMPv6PacketTooBig, ICMPv6EchoReply):
        if layer in again:
            del again[layer].fields["cksum" if "6" in layer.__name__ and layer is not IP else "chksum"]
    assert bytes(again) == bytes(packet)


# ---- too big -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("protocol", "underlay", "version"), CARRIED, ids=str)
def test_the_sender_is_told_the_mtu_that_is_left_in_the_tunnel(node: World, protocol, underlay, version):
    fields = tunnel(protocol, underlay, remotes=REMOTE)
    node.apply(BLUE, fields, to_them(version))
    made = tunnel_from_dict(fields)
    l2 = 14 if carried(protocol, underlay) is None else 0
    record = node.data_plane.maps["tunnels"].items()
    (held,) = [node.data_plane.maps["tunnels"].value.unpack(value) for value in record.values()]
    mtu = held["max_len"] - held["outer_len"] - (l2 - held["strip"] if l2 else 0)
    assert made.protocol == fields["protocol"]
    assert node.send("c1", big(version, mtu)).verdict == "REDIRECT"

    packet = big(version, mtu + 1)
    got = node.send("c1", packet)
    assert (got.verdict, node.drops()) == ("REDIRECT", {"TOO_BIG": 1})
    assert (got.packet.src, got.packet.dst) == (GATEWAY_MAC, OUR_MAC)
    if version == 4:
        answer, quoted = got.packet[IP], 548
        assert (answer.src, answer.dst, answer.ttl) == (GATEWAY[4], OURS[4], 64)
        assert (answer[ICMP].type, answer[ICMP].code, answer[ICMP].nexthopmtu) == (3, 4, mtu)
        assert len(got.data) == 14 + 576
    else:
        answer, quoted = got.packet[IPv6], 1232
        assert (answer.src, answer.dst, answer.hlim) == (GATEWAY[6], OURS[6], 64)
        assert answer[ICMPv6PacketTooBig].mtu == mtu
        assert len(got.data) == 14 + 1280
    assert got.data[-quoted:] == bytes(packet)[14 : 14 + quoted]
    assert_checksums_right(got.packet)


@pytest.mark.parametrize("version", [4, 6])
def test_a_tag_stays_on_the_answer(node: World, version):
    node.apply(BLUE, tunnel("geneve", remotes=REMOTE), to_them(version))
    got = node.send("c1", big(version, 1500, tags=Dot1Q(vlan=7)))
    assert got.verdict == "REDIRECT"
    assert got.packet[Dot1Q].vlan == 7
    mtu = UPLINK_MTU - 50 - 4
    told = got.packet[ICMP].nexthopmtu if version == 4 else got.packet[ICMPv6PacketTooBig].mtu
    assert told == mtu
    assert node.send("c1", big(version, mtu, tags=Dot1Q(vlan=7))).verdict == "REDIRECT"


@pytest.mark.parametrize(("version", "least"), [(4, 68), (6, 1280)])
@pytest.mark.parametrize("mtu", [0, 40, 50, 100])
@pytest.mark.parametrize("protocol", ["geneve", "gue"])
def test_nobody_is_told_of_less_than_every_link_has(node: World, protocol, mtu, version, least):
    """RFC 791 §3.2; RFC 8200 §5, RFC 8201 §4: a sender ignores what is below."""
    scenario = Scenario(
        (
            {"kind": "tunnel", **tunnel(protocol, remotes=REMOTE)},
            {"kind": "route", "network": "blue", "prefix": f"{THEIRS[version]}/{32 if version == 4 else 128}",
             "via": "to-node2"},
        ),
        paths={"to-node2": {"mtu": mtu}},
        gateways={"blue": list(GATEWAY.values())},
    )  # fmt: skip
    made = node.bring(scenario.intent, scenario.facts)
    assert any("has room for inner packets of" in warning for warning in made.warnings)
    got = node.send("c1", big(version, 1300))
    assert (got.verdict, node.drops()) == ("REDIRECT", {"TOO_BIG": 1})
    told = got.packet[ICMP].nexthopmtu if version == 4 else got.packet[ICMPv6PacketTooBig].mtu
    assert told == least
    assert_checksums_right(got.packet)


SILENT = {
    "may be fragmented": big(4, 1500, flags=0),
    "an ICMP error": frame(ip(4, flags="DF") / ICMP(type=3, code=1) / Raw(bytes(1472))),
    "a later fragment": big(4, 1500, flags="DF", frag=10),
    "from nobody": frame(IP(src="0.0.0.0", dst=THEIRS[4], flags="DF") / UDP() / Raw(bytes(1472))),
    "an ICMPv6 error": frame(ip(6) / ICMPv6PacketTooBig() / Raw(bytes(1452))),
}


@pytest.mark.parametrize("packet", SILENT.values(), ids=SILENT)
def test_who_deserves_no_answer_gets_none(node: World, packet):
    node.apply(BLUE, tunnel("geneve", remotes=REMOTE), to_them(4), to_them(6))
    got = node.send("c1", packet)
    assert (got.verdict, got.data, node.drops()) == ("DROP", bytes(packet), {"TOO_BIG": 1})


def test_a_network_without_a_gateway_answers_nothing(node: World):
    node.apply(tunnel("geneve", remotes=REMOTE), to_them(4))
    packet = big(4, 1500)
    got = node.send("c1", packet)
    assert (got.verdict, got.data, node.drops()) == ("DROP", bytes(packet), {"TOO_BIG": 1})


def test_answers_are_limited(node: World):
    """On each CPU a burst, then as many as the time that passes allows."""
    node.apply(BLUE, tunnel("geneve", remotes=REMOTE), to_them(4))
    allowed_on = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed_on)})
    try:
        began = time.monotonic()
        verdicts = [node.send("c1", big(4, 1500)).verdict for _ in range(400)]
        passed = time.monotonic() - began
    finally:
        os.sched_setaffinity(0, allowed_on)
    assert verdicts[0] == "REDIRECT"
    assert 0 < verdicts.count("REDIRECT") <= BURST + 1 + passed / INTERVAL_SECONDS
    assert node.drops() == {"TOO_BIG": 400}


def test_a_packet_too_big_for_a_port_of_the_node_is_answered_too(node: World):
    node.apply(
        BLUE,
        Route(network="blue", prefix=THEIRS[4], port="c2"),
        Route(network="blue", prefix=OURS[4], port="c1"),
    )
    got = node.send("c1", big(4, 1501))
    assert (got.verdict, node.drops()) == ("REDIRECT", {"PORT_TOO_BIG": 1})
    assert (got.packet[IP].src, got.packet[ICMP].nexthopmtu) == (GATEWAY[4], 1500)


# ---- neighbours and pings ----------------------------------------------------------------------------------


def test_arp_for_the_gateway_is_answered_with_the_ports_mac(node: World):
    node.apply(BLUE)
    asked = Ether(src=OUR_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=OUR_MAC, psrc=OURS[4], pdst=GATEWAY[4])
    got = node.send("c1", asked)
    assert got.verdict == "REDIRECT"
    reply = got.packet[ARP]
    assert (reply.op, reply.hwsrc, reply.psrc, reply.pdst) == (2, GATEWAY_MAC, GATEWAY[4], OURS[4])


def test_a_solicitation_for_the_gateway_is_answered_with_override(node: World):
    node.apply(BLUE)
    got = node.send("c1", solicit(GATEWAY[6]))
    assert got.verdict == "REDIRECT"
    advert = got.packet[ICMPv6ND_NA]
    assert (advert.tgt, advert.S, advert.O, got.packet.src) == (GATEWAY[6], 1, 1, GATEWAY_MAC)


@pytest.mark.parametrize("size", [0, 1, 56, 1400])
@pytest.mark.parametrize("version", [4, 6])
def test_the_gateway_answers_pings(node: World, version, size):
    node.apply(BLUE)
    data = bytes(range(256)) * 6
    if version == 4:
        asked = frame(ip(4, None, GATEWAY[4], ttl=3) / ICMP(id=7, seq=9) / Raw(data[:size]))
    else:
        asked = frame(ip(6, None, GATEWAY[6], hlim=3) / ICMPv6EchoRequest(id=7, seq=9, data=data[:size]))
    got = node.send("c1", asked)
    assert got.verdict == "REDIRECT"
    assert (got.packet.src, got.packet.dst) == (GATEWAY_MAC, OUR_MAC)
    network = got.packet[IP if version == 4 else IPv6]
    echo = got.packet[ICMP if version == 4 else ICMPv6EchoReply]
    assert (network.src, network.dst) == (GATEWAY[version], OURS[version])
    assert (echo.type, echo.id, echo.seq) == (0 if version == 4 else 129, 7, 9)
    assert got.data.endswith(data[:size])
    assert_checksums_right(got.packet)


OTHERS = {
    "tcp": frame(ip(4, None, GATEWAY[4]) / TCP(dport=22)),
    "a fragment of a ping": frame(ip(4, None, GATEWAY[4], flags="MF") / ICMP() / Raw(bytes(64))),
    "a reply": frame(ip(4, None, GATEWAY[4]) / ICMP(type=0)),
    "udp6": frame(ip(6, None, GATEWAY[6]) / UDP(dport=53)),
}


@pytest.mark.parametrize("packet", OTHERS.values(), ids=OTHERS)
def test_what_else_is_for_the_gateway_is_left_to_the_kernel(node: World, packet):
    node.apply(BLUE)
    got = node.send("c1", packet)
    assert (got.verdict, got.data, node.drops()) == ("PASS", bytes(packet), {})


def test_a_route_for_the_gateways_address_goes_before_it(node: World):
    node.apply(BLUE, Route(network="blue", prefix=f"{GATEWAY[4]}/32", drop=True))
    got = node.send("c1", frame(ip(4, None, GATEWAY[4]) / ICMP()))
    assert (got.verdict, node.drops()) == ("DROP", {"ROUTE_DROP": 1})


def test_other_networks_dont_have_it(node: World):
    node.apply(BLUE)
    packet = frame(ip(4, None, GATEWAY[4]) / ICMP())
    assert node.send("c3", packet).verdict == "PASS"


def test_kinds_of_frames_still_pass_untouched(node: World):
    node.apply(BLUE)
    for packet in inner_kinds().values():
        assert node.send("c1", packet).verdict == "PASS"
