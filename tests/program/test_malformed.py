# SPDX-License-Identifier: GPL-2.0-only
"""Good packets of every protocol, cut, lengthened, flipped, nested: each goes whole, stays as it came, or is counted.

What the program does is compared with the model for each; on top of that holds, whatever both say: never an abort, a
packet that is passed on is unchanged, one that is dropped is counted with exactly one reason, and what is delivered is
the frame that was sent, or a packet that the mutation made out of it as a whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import cache
from ipaddress import ip_address
from random import Random

import pytest
from differential import Bench
from generate import checksum, spoiled
from packets import (
    carriers,
    carries,
    far_end,
    frame,
    inner_kinds,
    ip,
    ip_packet,
    over_ip,
    tunnel,
)
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q
from scapy.packet import Raw
from scenario import Scenario
from world import OURS, REMOTE, THEIRS, World, can_be_run

from model import Model, encap
from model.encap.base import Fields
from model.parse import parse_frame
from mptm.intent import Route

INNER = {name: bytes(packet) for name, packet in inner_kinds().items()}
ROUTES = [Route(network="blue", prefix=THEIRS[version], via="to-node2") for version in (4, 6)]
MINIMUM = 14
"""Bytes: the kernel runs no shorter packet."""
WIDE_MTU = 3000
"""Of the far end, so that a tunnel in a tunnel fits."""


def receiver(protocol: str, underlay: int) -> Scenario:
    """A node with a tunnel of the protocol, whose workload c2 has both of their addresses."""
    made = {"kind": "tunnel", **tunnel(protocol, underlay, remotes=REMOTE)}
    routes = [
        {"kind": "route", "network": "blue", "prefix": THEIRS[version], "port": "c2"} for version in (4, 6)
    ]
    return Scenario((made, *routes), mtus={"c2": WIDE_MTU})


@cache
def sender(protocol: str, underlay: int) -> Model:
    """The far end of that tunnel: a model only, as all that it does is to make good packets."""
    made = {"kind": "tunnel", **far_end(protocol, underlay)}
    routes = [
        {"kind": "route", "network": "blue", "prefix": THEIRS[version], "via": "to-node1"}
        for version in (4, 6)
    ]
    far = Scenario((made, *routes), paths={"to-node1": {"mtu": WIDE_MTU}}, is_far=True)
    return Model(far.intent, far.facts)


def wire(protocol: str, underlay: int, inner: bytes) -> bytes:
    """What the far end sends for a frame of its workload."""
    sent = sender(protocol, underlay).receive("c1", inner)
    assert sent.verdict == "REDIRECT", f"no good packet: {sent}"
    return sent.data


def kinds_of(protocol: str, underlay: int) -> list[str]:
    return [
        kind for kind in ("udp4", "tcp6", "qinq6") if carries(protocol, underlay, 4 if kind == "udp4" else 6)
    ]


def headers_len(protocol: str, underlay: int, kind: str, packet: bytes) -> int:
    """Bytes of a wire packet up to where the inner transport header begins, and a few more."""
    return len(packet) - len(ip_packet(INNER[kind])) + 48


def assert_all_agree(node: World, scenario: Scenario, packets: Iterable[bytes]) -> Bench:
    """Each comes in at up0."""
    bench = Bench(node)
    bench.set_up(scenario)
    found = bench.run(("up0", packet) for packet in packets)
    assert found is None, f"program and model differ:\n\n{found.as_test()}"
    return bench


def cut(packet: bytes) -> Iterator[bytes]:
    for length in range(MINIMUM, len(packet)):
        yield packet[:length]


def mended(packet: bytes, underlay: int) -> bytes:
    """With IP and UDP lengths for the packet as it is, so that only the tunnel header and the inner frame are short."""
    made = bytearray(packet)
    start = 34 if underlay == 4 else 54
    if underlay == 4:
        made[16:18] = struct.pack("!H", len(packet) - 14)
        made[24:26] = b"\0\0"
        made[24:26] = struct.pack("!H", checksum(bytes(made[14:34])))
    else:
        made[18:20] = struct.pack("!H", len(packet) - start)
    if made[23 if underlay == 4 else 20] == 17 and len(packet) >= start + 8:
        made[start + 4 : start + 6] = struct.pack("!H", len(packet) - start)
        made[start + 6 : start + 8] = b"\0\0"
    return bytes(made)


def flipped(packet: bytes, end: int) -> Iterator[bytes]:
    """Each bit of the headers."""
    for at in range(min(end, len(packet))):
        for bit in range(8):
            yield packet[:at] + bytes([packet[at] ^ 1 << bit]) + packet[at + 1 :]


def refilled(packet: bytes, end: int) -> Iterator[bytes]:
    """Each pair of bytes as a number, such as a length, that is out of bounds or just beside the right one."""
    for at in range(min(end, len(packet) - 1)):
        number = int.from_bytes(packet[at : at + 2], "big")
        for other in (0, 1, number - 1, number + 1, number + 4, 0x7FFF, 0xFFFF):
            yield packet[:at] + struct.pack("!H", other & 0xFFFF) + packet[at + 2 :]


def lengthened(packet: bytes, random: Random) -> Iterator[bytes]:
    """With junk behind it."""
    for size in range(1, 65):
        yield packet + random.randbytes(size)
    yield packet + bytes(1000)


CARRIERS = carriers()


@pytest.mark.parametrize(("protocol", "underlay"), CARRIERS)
def test_a_tunnel_packet_cut_at_every_length(node, protocol, underlay):
    for kind in kinds_of(protocol, underlay):
        whole = wire(protocol, underlay, INNER[kind])
        bench = assert_all_agree(node, receiver(protocol, underlay), [*cut(whole), whole])
        assert bench.happened["verdict", "REDIRECT"] == 1, "only the whole packet is delivered"


@pytest.mark.parametrize(("protocol", "underlay"), [each for each in CARRIERS if over_ip(each[0])])
def test_a_tunnel_packet_whose_lengths_agree_with_where_it_was_cut(node, protocol, underlay):
    shortest = 34 if underlay == 4 else 54
    for kind in kinds_of(protocol, underlay):
        whole = wire(protocol, underlay, INNER[kind])
        packets = [mended(packet, underlay) for packet in cut(whole) if len(packet) >= shortest]
        bench = assert_all_agree(node, receiver(protocol, underlay), packets)
        assert bench.happened["verdict", "REDIRECT"] == 0


@pytest.mark.parametrize(("protocol", "underlay"), CARRIERS)
def test_a_tunnel_packet_with_a_bit_flipped_or_a_length_changed(node, protocol, underlay):
    for kind in kinds_of(protocol, underlay):
        whole = wire(protocol, underlay, INNER[kind])
        end = headers_len(protocol, underlay, kind, whole)
        assert_all_agree(node, receiver(protocol, underlay), [*flipped(whole, end), *refilled(whole, end)])


@pytest.mark.parametrize(("protocol", "underlay"), CARRIERS)
def test_a_tunnel_packet_with_junk_behind_it(node, protocol, underlay):
    random = Random(f"{protocol} {underlay}")
    for kind in kinds_of(protocol, underlay):
        whole = wire(protocol, underlay, INNER[kind])
        packets = list(lengthened(whole, random))
        if over_ip(protocol):
            packets += [mended(packet, underlay) for packet in packets]
        bench = assert_all_agree(node, receiver(protocol, underlay), packets)
        assert bench.happened["verdict", "REDIRECT"] >= len(packets) // 2


@pytest.mark.parametrize(("protocol", "underlay"), CARRIERS)
def test_a_tunnel_packet_mangled_in_several_places(node, protocol, underlay):
    random = Random(f"mangled {protocol} {underlay}")
    whole = [wire(protocol, underlay, INNER[kind]) for kind in kinds_of(protocol, underlay)]
    packets = (spoiled(random, random.choice(whole)) for _ in range(1500))
    assert_all_agree(
        node, receiver(protocol, underlay), [packet for packet in packets if len(packet) >= MINIMUM]
    )


@pytest.mark.parametrize(("protocol", "underlay"), CARRIERS)
def test_a_tunnel_in_a_tunnel(node, protocol, underlay):
    """What is inside is a frame like any other: it goes whole to whom it is addressed, and isn't opened."""
    packets = []
    for inner_protocol, inner_underlay in CARRIERS:
        if not over_ip(inner_protocol) or not carries(protocol, underlay, inner_underlay):
            continue
        kind = kinds_of(inner_protocol, inner_underlay)[0]
        inside = wire(inner_protocol, inner_underlay, INNER[kind])
        packets.append(wire(protocol, underlay, readdressed(inside, inner_underlay)))
    bench = assert_all_agree(node, receiver(protocol, underlay), packets)
    assert bench.happened["verdict", "REDIRECT"] == len(packets) > 10


def readdressed(packet: bytes, underlay: int) -> bytes:
    """An outer header that leads to their workload, so that the tunnel around it carries it there."""
    made = bytearray(packet)
    if underlay == 4:
        made[26:34] = ip_address(OURS[4]).packed + ip_address(THEIRS[4]).packed
        made[24:26] = b"\0\0"
        made[24:26] = struct.pack("!H", checksum(bytes(made[14:34])))
    else:
        made[22:54] = ip_address(OURS[6]).packed + ip_address(THEIRS[6]).packed
        if made[20] == 17:
            made[60:62] = b"\0\0"  # the checksum counted the addresses
    return bytes(made)


@pytest.mark.parametrize(("protocol", "underlay"), CARRIERS)
def test_a_tunnel_in_itself_is_opened_once(node, protocol, underlay):
    """The inner tunnel packet is for an address of the underlay, which the network doesn't know."""
    if over_ip(protocol) and not carries(protocol, underlay, underlay):
        return  # it can't hold itself
    inside = wire(protocol, underlay, INNER[kinds_of(protocol, underlay)[0]])
    far = sender(protocol, underlay)
    way = far.ways["to-node1"]
    made = far.intent.tunnels["to-node1"]
    parsed = parse_frame(inside)
    assert parsed is not None and way is not None
    twice = encap.encapsulate(
        made.protocol, made.options, way, parsed, Fields(0, destination=way.destination)
    )
    bench = assert_all_agree(node, receiver(protocol, underlay), [twice])
    if over_ip(protocol):
        assert bench.happened["drop", "NO_ROUTE"] == 1


@pytest.mark.parametrize("kind", INNER)
def test_a_workloads_packet_cut_at_every_length(node, kind):
    node.apply(tunnel("geneve", remotes=REMOTE), *ROUTES)
    whole = INNER[kind]
    needed = len(whole) - len(whole[whole.index(ip_packet(whole)) :]) + len(ip_packet(whole))
    for length in range(MINIMUM, min(needed, 200)):
        if not can_be_run(whole[:length]):
            continue
        got = node.send("c1", whole[:length])
        assert (got.verdict, got.data) == ("PASS", whole[:length]), (
            f"cut to {length} bytes it is the kernel's"
        )


def test_a_workloads_packet_mangled_in_several_places(node):
    made = {"kind": "tunnel", **tunnel("geneve", remotes=REMOTE)}
    routes = [
        {"kind": "route", "network": "blue", "prefix": THEIRS[version], "via": "to-node2"}
        for version in (4, 6)
    ]
    random = Random("workload")
    frames = [packet[:200] for packet in INNER.values()]
    bench = Bench(node)
    bench.set_up(Scenario((made, *routes)))
    packets = (("c1", spoiled(random, random.choice(frames))) for _ in range(10_000))
    found = bench.run((port, packet) for port, packet in packets if len(packet) >= MINIMUM)
    assert found is None, f"program and model differ:\n\n{found.as_test()}"
    assert bench.happened["verdict", "REDIRECT"] > 1000


def test_tags_deeper_than_we_look_are_the_kernels(node):
    node.apply(tunnel("geneve", remotes=REMOTE), *ROUTES)
    packet = frame(ip(4) / UDP() / Raw(b"x" * 20), tags=Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3))
    got = node.send("c1", packet)
    assert (got.verdict, got.data) == ("PASS", bytes(packet))
    assert IPv6 not in got.packet
