# SPDX-License-Identifier: GPL-2.0-only
"""Who answers ARP and neighbour solicitations, and how."""

from __future__ import annotations

from socket import IPPROTO_UDP

import pytest
from packets import carried, carriers, far_end, frame, over_ip, tunnel
from patching import encapsulate
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from world import (
    GATEWAY_MAC,
    NEIGHBOUR,
    NEIGHBOUR_MAC,
    OUR_MAC,
    OURS,
    REMOTE,
    REMOTE_MAC,
    THEIR_MAC,
    THEIRS,
    can_be_run,
)

from model.frames import ones_complement
from mptm.headers import checksum
from mptm.intent import Route
from mptm.tables import Tunnel
from mptm.template import Patch, PatchOp, Template

BROADCAST = "ff:ff:ff:ff:ff:ff"


def arp(target: str = THEIRS[4], sender: str = OURS[4], mac: str = OUR_MAC) -> Packet:
    request = ARP(op=1, hwsrc=mac, psrc=sender, hwdst="00:00:00:00:00:00", pdst=target)
    return Ether(src=mac, dst=BROADCAST) / request


def solicit(
    target: str = THEIRS[6], sender: str = OURS[6], mac: str = OUR_MAC, option: bool = True, **ip
) -> Packet:
    packet = IPv6(**({"src": sender, "dst": "ff02::1:ff00:101", "hlim": 255} | ip)) / ICMPv6ND_NS(tgt=target)
    if option:
        packet /= ICMPv6NDOptSrcLLAddr(lladdr=mac)
    return Ether(src=mac, dst="33:33:ff:00:01:01") / packet


def geneve(**more):
    return tunnel("geneve", remotes=REMOTE, **more)


def remote(version: int, **more) -> Route:
    return Route(network="blue", prefix=THEIRS[version], **({"via": "to-node2"} | more))


def assert_is_arp_reply(packet: Packet, mac: str, of: str, to_mac: str, to: str) -> None:
    assert (packet.src, packet.dst) == (mac, to_mac)
    reply = packet[ARP]
    assert (reply.op, reply.hwsrc, reply.psrc, reply.hwdst, reply.pdst) == (2, mac, of, to_mac, to)


def assert_is_advert(
    packet: Packet, mac: str, of: str, to_mac: str, to: str, *, solicited: bool = True
) -> None:
    assert (packet.src, packet.dst) == (mac, to_mac)
    ip, advert = packet[IPv6], packet[ICMPv6ND_NA]
    assert (ip.src, ip.dst, ip.hlim, ip.plen) == (of, to, 255, 32)
    assert (advert.tgt, advert.R, advert.S, advert.O) == (of, 0, int(solicited), 0)
    assert packet[ICMPv6NDOptDstLLAddr].lladdr == mac
    raw = bytes(packet)
    at = raw.index(bytes.fromhex("86dd")) + 2
    pseudo = raw[at + 8 : at + 40] + (32).to_bytes(4, "big") + (58).to_bytes(4, "big")
    assert checksum(pseudo + raw[at + 40 : at + 72]) == 0


@pytest.mark.parametrize(("mac", "answer"), [(None, GATEWAY_MAC), (THEIR_MAC, THEIR_MAC)])
def test_a_workload_learns_the_next_hops_mac_or_the_gateways(node, mac, answer):
    node.apply(geneve(), remote(4, mac=mac), remote(6, mac=mac))
    got = node.send("c1", arp())
    assert (got.verdict, len(got.data)) == ("REDIRECT", len(arp()))
    assert_is_arp_reply(got.packet, answer, THEIRS[4], OUR_MAC, OURS[4])
    got = node.send("c1", solicit())
    assert got.verdict == "REDIRECT"
    assert_is_advert(got.packet, answer, THEIRS[6], OUR_MAC, OURS[6])
    assert node.port_counters("c1")["tx_packets"] == 2


def test_a_local_neighbour_is_known_by_its_own_mac(node):
    node.apply(*(Route(network="blue", prefix=NEIGHBOUR[v], port="c2") for v in (4, 6)))
    assert_is_arp_reply(
        node.send("c1", arp(NEIGHBOUR[4])).packet, NEIGHBOUR_MAC, NEIGHBOUR[4], OUR_MAC, OURS[4]
    )
    assert_is_advert(
        node.send("c1", solicit(NEIGHBOUR[6])).packet, NEIGHBOUR_MAC, NEIGHBOUR[6], OUR_MAC, OURS[6]
    )


def test_solicitations_with_and_without_options_are_answered_at_the_right_length(node):
    node.apply(geneve(), remote(6))
    nonce = solicit() / ICMPv6NDOptUnknown(type=14, len=1, data=b"nonce!")
    for packet in (solicit(option=False), nonce):
        got = node.send("c1", packet)
        assert len(got.data) == 14 + 40 + 32
        assert_is_advert(got.packet, GATEWAY_MAC, THEIRS[6], OUR_MAC, OURS[6])


def test_a_tagged_question_gets_a_tagged_answer(node):
    node.apply(geneve(), remote(4), remote(6))
    tag = Dot1Q(vlan=7, prio=2)
    got = node.send("c1", frame(arp().payload, destination=BROADCAST, tags=tag))
    assert got.packet[Dot1Q].vlan == 7
    assert_is_arp_reply(got.packet, GATEWAY_MAC, THEIRS[4], OUR_MAC, OURS[4])
    got = node.send("c1", frame(solicit().payload, tags=tag))
    assert got.packet[Dot1Q].vlan == 7
    assert_is_advert(got.packet, GATEWAY_MAC, THEIRS[6], OUR_MAC, OURS[6])


def test_addresses_behind_a_prefix_are_answered_for(node):
    node.apply(geneve(), Route(network="blue", prefix="10.250.0.0/16", via="to-node2"))
    assert node.send("c1", arp("10.250.77.7")).verdict == "REDIRECT"


UNANSWERED = {
    "an unknown address": arp("10.250.1.77"),
    "an unknown IPv6 address": solicit("fd00:250:1::77"),
    "the asker's own address": arp(OURS[4], OURS[4]),
    "the asker's own address, probing": arp(OURS[4], "0.0.0.0"),
    "the asker's own IPv6 address, probing": solicit(OURS[6], "::", option=False),
    "an address left to the kernel": arp("10.9.0.1"),
    "an address that is dropped": arp("10.8.0.1"),
    "a probe for an address that only a prefix covers": arp("10.7.0.1", "0.0.0.0"),
    "a solicitation from off the link": solicit(hlim=64),
    "a solicitation for a group": solicit("ff02::1"),
    "a reply": Ether(src=OUR_MAC, dst=BROADCAST) / ARP(op=2, hwsrc=OUR_MAC, psrc=OURS[4], pdst=THEIRS[4]),
    "an announcement of somebody's address": arp(THEIRS[4], THEIRS[4]),
    "another hardware type": Ether(src=OUR_MAC, dst=BROADCAST)
    / ARP(op=1, hwtype=6, psrc=OURS[4], pdst=THEIRS[4]),
}


def nd(payload: bytes, sender: str = OURS[6], to: str = "ff02::1:ff00:101", checksum: bool = True) -> Packet:
    """A solicitation for their address with raw options behind it."""
    packet = IPv6(src=sender, dst=to, hlim=255) / ICMPv6ND_NS(tgt=THEIRS[6]) / Raw(payload)
    if not checksum:
        packet[ICMPv6ND_NS].cksum = 0xDEAD
    return Ether(src=OUR_MAC, dst="33:33:ff:00:01:01") / packet


# RFC 4861 §7.1.1: these MUST be discarded; who does it is the kernel.
INVALID_SOLICITATIONS = {
    "a wrong checksum": nd(b"", checksum=False),
    "an option of length 0": nd(b"\x01\x00" + b"\0" * 6),
    "an option beyond the end": nd(b"\x01\x02" + b"\0" * 6),
    "half an option": nd(b"\x01"),
    "from nobody, to one address": nd(b"", sender="::", to="fd00:250:1::77"),
    "from nobody, with a source MAC": nd(b"\x01\x01" + b"\2" * 6, sender="::"),
    "no payload by its length": solicit(plen=0),
    "more options than we look at": nd((b"\x0e\x01" + b"\0" * 6) * 5),
}


@pytest.mark.parametrize("packet", INVALID_SOLICITATIONS.values(), ids=INVALID_SOLICITATIONS)
def test_a_solicitation_that_must_not_be_answered_is_left_to_the_kernel(node, packet):
    node.apply(geneve(), remote(6))
    assert node.send("c1", nd(b"")).verdict == "REDIRECT"
    got = node.send("c1", packet)
    assert (got.verdict, got.data) == ("PASS", bytes(packet))


@pytest.mark.parametrize("target", ["127.0.0.1", "169.254.1.1", "224.0.0.251", "255.255.255.255"])
def test_addresses_that_nobody_routes_are_not_answered_for_by_a_default_route(node, target):
    node.apply(
        geneve(), *(Route(network="blue", prefix=prefix, via="to-node2") for prefix in ("0.0.0.0/0", "::/0"))
    )
    assert node.send("c1", arp("192.0.2.1")).verdict == "REDIRECT"
    assert node.send("c1", arp(target)).verdict == "PASS"
    assert node.send("c1", solicit("fe80::1")).verdict == "PASS"


@pytest.mark.parametrize("packet", UNANSWERED.values(), ids=UNANSWERED)
def test_other_questions_are_left_to_the_kernel_as_they_came(node, packet):
    node.apply(
        geneve(),
        remote(4),
        remote(6),
        *(Route(network="blue", prefix=OURS[version], port="c1") for version in (4, 6)),
        Route(network="blue", prefix="10.9.0.0/16", pass_=True),
        Route(network="blue", prefix="10.8.0.0/16", drop=True),
        Route(network="blue", prefix="10.7.0.0/16", via="to-node2"),
    )
    got = node.send("c1", packet)
    assert (got.verdict, got.data) == ("PASS", bytes(packet))


def test_a_probe_for_somebody_elses_address_is_told_that_it_is_taken(node):
    node.apply(geneve(), remote(4), remote(6))
    got = node.send("c1", arp(THEIRS[4], "0.0.0.0"))
    assert_is_arp_reply(got.packet, GATEWAY_MAC, THEIRS[4], OUR_MAC, "0.0.0.0")
    got = node.send("c1", solicit(THEIRS[6], "::", option=False))
    assert_is_advert(got.packet, GATEWAY_MAC, THEIRS[6], "33:33:00:00:00:01", "ff02::1", solicited=False)


@pytest.mark.parametrize(
    ("protocol", "underlay"), [carrier for carrier in carriers() if carried(*carrier) is None]
)
@pytest.mark.parametrize("question", ["arp", "solicit"])
def test_a_question_from_a_tunnel_is_answered_through_it(node, peer, protocol, underlay, question):
    """Node 2, which can't know our workload's MAC, asks; what it gets back is a well-formed answer."""
    version = 4 if question == "arp" else 6
    node.apply(
        tunnel(protocol, underlay, remotes=REMOTE), Route(network="blue", prefix=OURS[version], port="c1")
    )
    asker = Route(network="blue", prefix=THEIRS[version], port="c1")
    compiled = peer.apply(far_end(protocol, underlay), asker)
    asked = arp(OURS[4], THEIRS[4], THEIR_MAC) if version == 4 else solicit(OURS[6], THEIRS[6], THEIR_MAC)
    record = compiled.tables.tunnels[compiled.allocations.tunnels["to-node1"].slot]
    got = node.send("up0", wrap(record, bytes(asked)))
    assert got.verdict == "REDIRECT"
    has_ip = over_ip(protocol)
    inner = got.data[record.outer_len :]
    if not has_ip:
        assert Ether(got.data).dst == REMOTE_MAC
        inner = bytes(Ether(src=OUR_MAC, dst=REMOTE_MAC))[:12] + inner
    answer = Ether(inner)
    asker_mac = THEIR_MAC if has_ip else REMOTE_MAC
    if version == 4:
        answer[ARP].hwdst = asker_mac
        assert_is_arp_reply(answer, OUR_MAC, OURS[4], asker_mac, THEIRS[4])
    else:
        assert_is_advert(answer, OUR_MAC, OURS[6], asker_mac, THEIRS[6])
    if underlay == 4 and has_ip:
        assert checksum(got.data[14:34]) == 0
        assert int.from_bytes(got.data[16:18], "big") == len(got.data) - 14
    if underlay == 6 and got.data[20] == IPPROTO_UDP and protocol != "geneve no checksum":
        pseudo = got.data[22:54] + got.data[58:60] + bytes([0, 17])
        assert ones_complement(pseudo + got.data[54:]) == 0


def wrap(record: Tunnel, inner: bytes) -> bytes:
    """What node 2 sends, by the model."""
    template = Template(
        outer=record.outer,
        patches=tuple(Patch(PatchOp(patch.op), patch.offset, patch.bias) for patch in record.patches),
        strip=record.strip,
    )
    return encapsulate(template, inner)


def test_a_question_from_a_tunnel_for_an_unknown_or_remote_address_gets_no_answer(node):
    compiled = node.apply(geneve(), remote(4))
    record = compiled.tables.tunnels[compiled.allocations.tunnels["to-node2"].slot]
    outer = record.outer
    swapped = record._replace(
        outer=outer[6:12] + outer[:6] + outer[12:26] + outer[30:34] + outer[26:30] + outer[34:]
    )
    for target, reason in ((THEIRS[4], "NO_RELAY"), ("10.250.1.77", "NO_ROUTE")):
        wire = wrap(swapped, bytes(arp(target, "10.250.1.88", THEIR_MAC)))
        assert node.send("up0", wire).verdict == "DROP"
        assert reason in node.drops()


def test_a_short_question_is_left_to_the_kernel(node):
    node.apply(geneve(), remote(4), remote(6))
    for whole in (bytes(arp()), bytes(solicit())):
        for length in range(14, len(whole)):
            if not can_be_run(whole[:length]):
                continue
            got = node.send("c1", whole[:length])
            if got.verdict != "REDIRECT":
                assert (got.verdict, got.data) == ("PASS", whole[:length])
    assert node.send("c1", bytes(arp()) + bytes(Raw(b"\0" * 18))).verdict == "REDIRECT"
