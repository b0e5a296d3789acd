# SPDX-License-Identifier: GPL-2.0-only
"""A pair of nodes goes from one protocol to another, by the commands of docs/protocols.md, while datagrams flow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from traffic import NODES, Arrived, Capture, Stream, carried_by, kept, mptm, peer_of

from mptm.lab.topology import Lab
from mptm.node import Node

PAUSE_SECONDS = 0.3
"""Between two commands: enough datagrams for what they changed to show."""

STREAMS = (("node1-c1", "node2-c1"), ("node2-c1", "node1-c1"))


@pytest.fixture
def nodes(lab: Lab) -> Iterator[list[Node]]:
    """Both nodes, which are afterwards as they were."""
    both = [lab.node(name) for name in NODES]
    with kept(*both):
        yield both


def begin_with(lab: Lab, protocol: str, underlay: int, **options: object) -> None:
    for name in NODES:
        lab.node(name).apply(carried_by(lab, name, protocol, underlay, **options))


def on_both(lab: Lab, *arguments: str) -> None:
    """A `tunnel set` on one node and then on the other, while the streams go on."""
    for name in NODES:
        done = mptm(lab, name, "tunnel", "set", f"blue-to-{peer_of(name)}", *arguments)
        assert done.returncode == 0, done.stderr
        time.sleep(PAUSE_SECONDS)


def on_the_wire(lab: Lab, number: int) -> set[str]:
    """From which nodes data frames of this UDP port, IP protocol or VID come, of what each sends now."""
    found = set()
    for name in NODES:
        with Capture(lab, "underlay", name) as capture:
            frame = capture.find(lambda frame: number in _numbers(frame), wait_seconds=1)
        if frame is not None:
            found.add(name)
    return found


def _numbers(frame: bytes) -> Iterator[int]:
    packet = Ether(frame)
    if len(frame) < Stream.PAYLOAD_BYTES:
        return
    if Dot1Q in packet:
        yield packet[Dot1Q].vlan
    if UDP in packet and packet[UDP].dport != 7778:
        yield packet[UDP].dport
    for layer in (IP, IPv6):
        if layer in packet:
            yield packet[layer].proto if layer is IP else packet[layer].nh


@contextlib.contextmanager
def streams(lab: Lab, version: int = 4) -> Iterator[list[Stream]]:
    """Datagrams both ways."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Stream(lab, *ends, version)) for ends in STREAMS]


def finish(running: Sequence[Stream]) -> list[Arrived]:
    return [stream.finish() for stream in running]


@pytest.mark.parametrize(
    ("old", "new", "underlay", "version"),
    [
        (("vxlan", {"vni": 100}, 4789), ("geneve", {"vni": 100}, 6081), 4, 4),
        (("geneve", {"vni": 7}, 6081), ("gre", {"key": 9}, 47), 6, 6),
        (("vlan", {"vid": 42}, 42), ("vxlan", {"vni": 5, "port": 8472}, 8472), 4, 4),
    ],
    ids=["vxlan-geneve", "geneve-gre-over-v6", "vlan-vxlan"],
)
def test_a_pair_changes_its_protocol_and_not_a_packet_is_lost(
    lab: Lab,
    nodes: list[Node],
    old: tuple[str, dict[str, int], int],
    new: tuple[str, dict[str, int], int],
    underlay: int,
    version: int,
) -> None:
    (before, options_before, number_before), (after, options, number_after) = old, new
    begin_with(lab, before, underlay, **options_before)
    written = ",".join(f"{name}={value}" for name, value in options.items())
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with streams(lab, version) as running:
        time.sleep(PAUSE_SECONDS)
        assert on_the_wire(lab, number_before) == set(NODES)
        on_both(lab, "--accept", f"{after},{written}")
        assert on_the_wire(lab, number_before) == set(NODES)
        on_both(lab, "--protocol", after, *flags)
        assert on_the_wire(lab, number_after) == set(NODES)
        on_both(lab, "--no-accept", before)
        arrived = finish(running)
    for each in arrived:
        assert each.sent > 2000 * 2, "too few to show anything"
        assert (each.lost, each.duplicated) == (0, 0), each
    for node in nodes:
        (tunnel,) = (each for each in node.intent.tunnels.values() if each.network == "blue")
        assert (tunnel.protocol, tunnel.accept) == (after, ())
        details = node.tunnel_details(tunnel.name)
        assert details.counters is not None
        assert details.counters.encap_packets >= arrived[0].sent, "the counters go on through the change"


def test_a_pair_changes_its_vni_and_not_a_packet_is_lost(lab: Lab, nodes: list[Node]) -> None:
    begin_with(lab, "vxlan", 4, vni=100)
    with streams(lab) as running:
        time.sleep(PAUSE_SECONDS)
        on_both(lab, "--accept", "vxlan,vni=300")
        on_both(lab, "--vni", "300", "--accept", "vxlan,vni=100")
        on_both(lab, "--no-accept", "vxlan")
        arrived = finish(running)
    assert [(each.lost, each.duplicated) for each in arrived] == [(0, 0), (0, 0)]
    blue = [each for node in nodes for each in node.intent.tunnels.values() if each.network == "blue"]
    assert {each.options.to_dict()["vni"] for each in blue} == {300}
    assert [each.accept for each in blue] == [(), ()]


def test_without_accepting_the_new_protocol_first_packets_are_lost(lab: Lab, nodes: list[Node]) -> None:
    """What the tests above would see if something was missing for a moment."""
    begin_with(lab, "vxlan", 4, vni=100)
    with streams(lab) as running:
        time.sleep(PAUSE_SECONDS)
        on_both(lab, "--protocol", "geneve", "--vni", "100")
        arrived = finish(running)
    assert arrived[0].lost > 0
    assert arrived[1].lost == 0, "node 2 began to send what node 1 accepted by then"
