# SPDX-License-Identifier: GPL-2.0-only
"""Our node and implementations that nobody here wrote, through every protocol that both have."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import local
import pytest
from ground import Ground
from matrix import NODE, UNDERLAY, WORKLOADS, Case, Place, Unable
from peers import PEERS
from results import Recorder, Result
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from traffic import Capture, checksum_errors, drops, mac_of, packet_of

from mptm.protocols import PROTOCOLS

EXPLAINABLE = (AssertionError, OSError, TimeoutError)
SECOND_VERSION_SHARE = 5
"""The second inner IP version has a transfer of this part of the first's: a header is all that differs."""
IPV6_FRAGMENT_HEADER = 44


def case_parameters() -> list[object]:
    return [
        pytest.param(name, case, check, id=f"{case.id}-{check.replace(' ', '_')}")
        for name, peer in PEERS.items()
        for case in peer.cases()
        for check in case.checks()
    ]


@pytest.mark.parametrize(("ground", "case", "check"), case_parameters(), indirect=["ground"])
def test_matrix(ground: Ground, case: Case, check: str, record: Recorder, transfer_bytes: int) -> None:
    place = ground.places[case.id]
    result = Result(case.protocol, case.form, case.underlay, check, "failed")
    record(result)
    try:
        note = run_check(ground, place, check, transfer_bytes)
    except EXPLAINABLE:
        if check not in case.explained:
            raise
        record(replace(result, outcome="explained", note=case.explained[check]))
    else:
        assert check not in case.explained, f"it works, though the case says: {case.explained[check]}"
        record(replace(result, outcome="passed", note=note))


@pytest.mark.parametrize(
    ("ground", "unable"),
    [
        pytest.param(name, unable, id=f"{name}-{unable.protocol}")
        for name, peer in PEERS.items()
        for unable in peer.unable()
    ],
    indirect=["ground"],
)
def test_what_a_peer_is_said_to_lack_it_lacks(ground: Ground, unable: Unable) -> None:
    version = ground.peer.version()
    if unable.until and numbers(version) >= numbers(unable.until):
        pytest.skip(
            f"{ground.peer.title} {version} has {unable.protocol}; no case has been written for it yet"
        )
    assert unable.says in ground.peer.attempt(unable)


def numbers(version: str) -> list[int]:
    """A version so that it compares."""
    return [int(number) for number in re.findall(r"\d+", version)]


def run_check(ground: Ground, place: Place, check: str, transfer_bytes: int) -> str:
    """Try one thing; the note that the table shall have. Raises one of EXPLAINABLE when it doesn't work."""
    name, version = (check[:-1], int(check[-1])) if check[-1].isdigit() else (check, 0)
    match name:
        case "ping":
            ping_both_ways(ground, place, version)
            return ""
        case "tcp":
            share = 1 if version == place.case.inner[0] else SECOND_VERSION_SHARE
            transfer(ground, place, version, transfer_bytes // share)
            return ""
        case "largest":
            said = ping_from_node(ground, place, version, *packet_of(version, place.mtu), count=2)
            assert answers(said) >= 2, said
            return ""
        case "too big":
            too_big(ground, place, version)
            return ""
        case "fragments":
            return outer_fragments(ground, place)
        case "refused":
            return refused(ground, place)
        case "unanswered":
            return unanswered(ground, place)
    raise ValueError(f"there is no check {check}")


# ---- the checks --------------------------------------------------------------------------------------------------


def ping_from_node(ground: Ground, place: Place, version: int, *options: str, count: int = 3) -> str:
    addresses = place.node_inner[version], place.peer_inner[version]
    return local.ping(ground.lab, WORKLOADS, *addresses, *options, count=count)


def answers(said: str) -> int:
    """How many pings were answered: more than asked for, if some were so late that more were sent."""
    found = re.search(r"(\d+) received", said)
    assert found is not None, said
    return int(found[1])


def ping_both_ways(ground: Ground, place: Place, version: int) -> None:
    ping_from_node(ground, place, version, "-W", "3", count=1)  # neighbours on the way are found
    with Capture(ground.lab, UNDERLAY, NODE) as to_node:
        said = ping_from_node(ground, place, version)
        assert answers(said) >= 3, said
        answer = bytes.fromhex(place.case.answers_with)
        assert not answer or to_node.find(lambda frame: answer in frame)
    said = ground.peer.ping(place, version)
    assert answers(said) >= 3, said


def transfer(ground: Ground, place: Place, version: int, size: int) -> None:
    errors = checksum_errors(ground.lab, WORKLOADS)
    with ground.peer.serving(place, version, size) as server:
        far = place.peer_inner[version], server.port
        with local.connect(ground.lab, WORKLOADS, place.node_inner[version], far, version) as end:
            ours = local.exchange(end, size)
        theirs = server.result(local.TRANSFER_TIMEOUT_SECONDS)
    assert (theirs.received_bytes, theirs.received) == (size, ours.sent)
    assert (ours.received_bytes, ours.received) == (size, theirs.sent)
    assert checksum_errors(ground.lab, WORKLOADS) == errors


def too_big(ground: Ground, place: Place, version: int) -> None:
    """A packet of one byte too many, that nobody may fragment."""
    data = os.urandom(16)
    layer = IP(flags="DF") if version == 4 else IPv6()
    layer.src, layer.dst = place.node_inner[version], place.peer_inner[version]
    packet = layer / UDP(sport=7777, dport=9)
    packet /= Raw(data.ljust(place.mtu + 1 - len(bytes(packet)), b"\0"))
    to_gateway = Ether(src=place.node_mac, dst=mac_of(ground.lab, NODE, place.interface))
    before = drops(ground.node, "REASON_TOO_BIG", place.network)
    with Capture(ground.lab, WORKLOADS, place.interface) as workload:
        workload.send(to_gateway / packet)
        answer = workload.find(lambda frame: is_too_big(Ether(frame), data))
    assert drops(ground.node, "REASON_TOO_BIG", place.network) == before + 1
    assert answer is not None, "dropped, but not answered"
    error = Ether(answer)
    assert error[layer.__class__].src == place.gateway[version]
    assert (error[ICMP].nexthopmtu if version == 4 else error[ICMPv6PacketTooBig].mtu) == place.mtu


def is_too_big(frame: Packet, data: bytes) -> bool:
    """Whether it is an ICMP error about a packet that has these bytes in it."""
    fragmentation_needed = ICMP in frame and (frame[ICMP].type, frame[ICMP].code) == (3, 4)
    return (fragmentation_needed or ICMPv6PacketTooBig in frame) and data in bytes(frame)


def outer_fragments(ground: Ground, place: Place) -> str:
    """What becomes of an inner packet that is too large for the tunnel when the peer sends it: a peer may put it into
    several outer packets. We leave fragments to the kernel, and count the first where it can be told (IPv4).
    """
    data = os.urandom(16)
    before = drops(ground.node, "REFUSED_FRAGMENT", "eth0")
    with (
        Capture(ground.lab, UNDERLAY, NODE) as underlay,
        Capture(ground.lab, WORKLOADS, place.interface) as workload,
    ):
        try:
            ground.peer.send_oversized(place, data)
        except OSError as error:
            return f"none sent: {error.strerror}"
        sent = underlay.find(lambda frame: data in frame, wait_seconds=0.5)
        arrived = workload.find(lambda frame: data in frame, wait_seconds=0.2 if sent else 0)
    assert arrived is None, "a fragment was taken for a packet"
    refused = drops(ground.node, "REFUSED_FRAGMENT", "eth0") - before
    if sent is None:
        assert not refused
        return "none sent"
    outer = Ether(sent).payload
    assert outer.flags.MF if isinstance(outer, IP) else outer.nh == IPV6_FRAGMENT_HEADER
    version = place.case.inner[0]
    ping_both_ways(ground, place, version)
    assert refused == 1
    return "left to the kernel, counted"


def refused(ground: Ground, place: Place) -> str:
    """What the peer sends is dropped with the case's reason, and nothing comes through."""
    reason = place.case.refused
    for version in place.case.inner:
        before = drops(ground.node, reason, place.network)
        said = ground.peer.ping(place, version)
        assert "0 received" in said, said
        assert drops(ground.node, reason, place.network) > before, said
    return f"counted as {reason}"


def unanswered(ground: Ground, place: Place) -> str:
    """What our node sends the peer doesn't take."""
    for version in place.case.inner:
        before = ground.node.counters().tunnels[place.network].encap_packets
        said = ping_from_node(ground, place, version, count=2)
        assert "0 received" in said, said
        assert ground.node.counters().tunnels[place.network].encap_packets >= before + 2
    assert place.case.complaint in ground.peer.complaints(place)
    return place.case.unanswered


# ---- the matrix itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_has_or_lacks_every_protocol_and_each_case_one_name(name: str) -> None:
    cases, unable = PEERS[name].cases(), [each.protocol for each in PEERS[name].unable()]
    assert {case.protocol for case in cases} | set(unable) == set(PROTOCOLS)
    assert not {case.protocol for case in cases} & set(unable)
    assert len(set(unable)) == len(unable)
    assert len({case.id for case in cases}) == len(cases)
    assert all(case.peer == name for case in cases)
