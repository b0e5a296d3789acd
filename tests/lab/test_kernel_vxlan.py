# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own vxlan device: as the other end of a tunnel, and as a neighbour on the same interface and port.

Node 1 runs MPTM. On node 2 a bridge joins the container with a vxlan device, and nothing of MPTM runs.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.vxlan import VXLAN
from traffic import (
    MEGABYTE,
    NODES,
    Capture,
    Datagrams,
    address_of,
    carried_by,
    drops,
    iperf3,
    kept,
    mac_of,
    packet_of,
    ping,
    transfer,
    with_outer_ecn,
)

from mptm.intent import Intent, Route
from mptm.lab.topology import Lab, configure

VNI, OTHER_VNI = 100, 300
PORT = 4789
CONTAINERS = ("node1-c1", "node2-c1")
OVERHEAD = {4: 50, 6: 70}
TUNNEL = "blue-to-node2"
VXLAN_HEADER = bytes.fromhex("08000000") + VNI.to_bytes(3, "big") + b"\0"

both_versions = pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])
both_ways = pytest.mark.parametrize(
    ("asker", "asked"), [CONTAINERS, CONTAINERS[::-1]], ids=["mptm asks", "kernel asks"]
)


def vxlan_device(lab: Lab, node: str, underlay: int, *, name: str, vni: int, options: str = "") -> list[str]:
    """Commands that make a vxlan device towards the other node."""
    peer = NODES[1 - NODES.index(node)]
    return [
        f"link add {name} type vxlan id {vni} local {address_of(lab, node, underlay)} "
        f"remote {address_of(lab, peer, underlay)} dev eth0 dstport {PORT} {options}",
        f"link set {name} addrgenmode none up",
    ]


def towards_kernel(lab: Lab, underlay: int, **options: Any) -> Intent:
    """Node 1's file, with VXLAN to a node that doesn't rewrite inner MACs: so the routes name the container's."""
    intent = carried_by(lab, "node1", "vxlan", underlay, vni=VNI, **options)
    for version, prefix_len in ((4, 32), (6, 128)):
        prefix = f"{address_of(lab, 'node2-c1', version)}/{prefix_len}"
        route = Route(network="blue", prefix=prefix, via=TUNNEL, mac=mac_of(lab, "node2-c1"))
        intent = intent.replace(route)
    return intent


@pytest.fixture(scope="module", params=[4, 6], ids=["over-v4", "over-v6"])
def underlay(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def lab(lab_prefix: Callable[[], str], underlay: int) -> Iterator[Lab]:
    built = Lab(lab_prefix())
    try:
        built.up(bare=True)
        mtu = built.topology.underlay_mtu - OVERHEAD[underlay]
        configure(
            built.namespace("node2"),
            [
                "link add br1 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                *vxlan_device(
                    built, "node2", underlay, name="vx1", vni=VNI, options="ttl inherit tos inherit"
                ),
                f"link set vx1 mtu {mtu} master br1",
                f"link set veth-c1 mtu {mtu} master br1 addrgenmode none",
                "link set br1 addrgenmode none up",
            ],
        )
        # So that what is captured, and sent again, is what a wire would carry: with checksums.
        for node in NODES:
            built.exec(node, ["ethtool", "-K", "eth0", "tx", "off"])
        configure(built.namespace("node1"), [f"link set veth-c1 mtu {mtu}"])
        for container in CONTAINERS:
            configure(built.namespace(container), [f"link set eth0 mtu {mtu}"])
        built.node("node1").apply(towards_kernel(built, underlay))
        yield built
    finally:
        built.down()


def forget_neighbours(lab: Lab) -> None:
    for container in CONTAINERS:
        lab.exec(container, ["ip", "neigh", "flush", "all"])


def known_mac(lab: Lab, container: str, address: str) -> str:
    shown = json.loads(lab.exec(container, ["ip", "-json", "neigh", "show", address]).stdout)
    assert [each for each in shown if "PERMANENT" not in each["state"]], shown
    return str(shown[0]["lladdr"])


def test_nothing_of_ours_runs_on_the_kernels_node(lab: Lab) -> None:
    shown = json.loads(lab.exec("node2", ["ip", "-json", "-details", "link", "show"]).stdout)
    assert {"vx1", "br1", "eth0"} <= {link["ifname"] for link in shown}
    assert not [link["ifname"] for link in shown if "xdp" in link]


# ---- the other end -------------------------------------------------------------------------------------------


@both_versions
@both_ways
def test_pings_are_answered(lab: Lab, asker: str, asked: str, version: int) -> None:
    """Neighbours included: each end asks the other through the tunnel, or the data plane for it."""
    forget_neighbours(lab)
    ping(lab, asker, address_of(lab, asked, version), count=5)


QUESTION = {
    4: re.compile(rb"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01"),
    6: re.compile(rb"\x3a\xff.{32}\x87\x00", re.DOTALL),
}
"""ARP requests (RFC 826) and neighbour solicitations (RFC 4861 §4.3), by inner IP version."""


@both_versions
def test_a_question_from_the_tunnel_is_answered_for_the_container(lab: Lab, version: int) -> None:
    """The kernel's container learns the MAC of ours, which is never asked itself."""
    address, own = address_of(lab, "node1-c1", version), mac_of(lab, "node1-c1")
    forget_neighbours(lab)
    with Capture(lab, "underlay", "node2") as from_kernel, Capture(lab, "node1-c1") as container:
        ping(lab, "node2-c1", address, count=1)
        assert from_kernel.find(lambda frame: VXLAN_HEADER in frame and bool(QUESTION[version].search(frame)))
        received = [frame for frame in container.frames(wait_seconds=0.2) if frame[6:12].hex(":") != own]
    assert known_mac(lab, "node2-c1", address) == own
    assert received
    assert not [frame for frame in received if QUESTION[version].search(frame) and frame[0] & 1]


@both_versions
@both_ways
def test_tcp_arrives_as_it_was_sent_both_ways(lab: Lab, asker: str, asked: str, version: int) -> None:
    transfer(lab, asker, asked, version)


@both_ways
def test_iperf3_moves_data(lab: Lab, asker: str, asked: str) -> None:
    assert iperf3(lab, asker, asked) > 10 * MEGABYTE


@both_versions
@both_ways
def test_the_largest_packet_passes(lab: Lab, underlay: int, asker: str, asked: str, version: int) -> None:
    mtu = lab.topology.underlay_mtu - OVERHEAD[underlay]
    assert lab.node("node1").inner_mtu("blue") == mtu
    ping(lab, asker, address_of(lab, asked, version), *packet_of(version, mtu))


@both_versions
def test_source_ports_differ_by_flow(lab: Lab, version: int) -> None:
    ports = set()
    with Capture(lab, "underlay", "node1") as captured:
        for number in range(16):
            with Datagrams(lab, *CONTAINERS, version, port=7000 + number) as datagrams:
                data = os.urandom(16)
                datagrams.send(data)
                assert datagrams.receive() == (data, 0)
                outer = captured.carrying(data)
                assert outer[VXLAN].vni == VNI
                ports.add(outer[UDP].sport)
    assert len(ports) > 8
    assert all(49152 <= port <= 65535 for port in ports)


def outer_header(lab: Lab, source: str, destination: str, tos: int, ttl: int) -> tuple[int, int]:
    """(TOS, TTL) of the outer packet that carries a datagram which arrives."""
    data, interface = os.urandom(16), source.split("-")[0]
    with Capture(lab, "underlay", interface) as captured, Datagrams(lab, source, destination) as datagrams:
        datagrams.send(data, tos=tos, ttl=ttl)
        assert datagrams.receive() == (data, tos)
        header = captured.carrying(data).getlayer(1)
    return (header.tos, header.ttl) if isinstance(header, IP) else (header.tc, header.hlim)


@pytest.mark.parametrize(("tos", "ttl"), [(0xB8, 33), (0x2A, 7), (0x01, 200)])
def test_both_ends_inherit_tos_and_ttl_alike(lab: Lab, underlay: int, tos: int, ttl: int) -> None:
    node = lab.node("node1")
    with kept(node):
        node.apply(towards_kernel(lab, underlay, ttl="inherit", dscp="inherit"))
        by_mptm = outer_header(lab, *CONTAINERS, tos, ttl)
    assert by_mptm == (tos, ttl)
    by_kernel = outer_header(lab, *CONTAINERS[::-1], tos, ttl)
    assert by_kernel == by_mptm


def test_congestion_marked_on_the_way_reaches_both_containers(lab: Lab) -> None:
    """A packet of each end is sent again with its outer ECN field set to CE (RFC 6040 §4.2)."""
    for source, destination in (CONTAINERS, CONTAINERS[::-1]):
        data = os.urandom(16)
        near, far = source.split("-")[0], destination.split("-")[0]
        with (
            Capture(lab, "underlay", near) as sent,
            Capture(lab, "underlay", far) as marked,
            Datagrams(lab, source, destination) as datagrams,
        ):
            datagrams.send(data, tos=0x02)
            assert datagrams.receive() == (data, 0x02)
            marked.send(with_outer_ecn(bytes(sent.carrying(data)), 3))
            assert datagrams.receive() == (data, 0x03)


# ---- beside us -----------------------------------------------------------------------------------------------


@pytest.fixture
def neighbour_device(lab: Lab, underlay: int) -> Iterator[dict[str, dict[int, str]]]:
    """A vxlan device of another VNI on each node, same port, same uplink; gives its addresses by node."""
    addresses = {node: {4: f"10.99.0.{n}", 6: f"fd00:99::{n}"} for n, node in enumerate(NODES, 1)}
    mtu = lab.topology.underlay_mtu - OVERHEAD[underlay]
    made = []
    try:
        for node in NODES:
            made.append(node)
            configure(
                lab.namespace(node),
                [
                    *vxlan_device(lab, node, underlay, name="vx3", vni=OTHER_VNI),
                    f"link set vx3 mtu {mtu}",
                    f"address add {addresses[node][4]}/24 dev vx3",
                    f"address add {addresses[node][6]}/64 dev vx3 nodad",
                ],
            )
        yield addresses
    finally:
        for node in made:
            lab.exec(node, ["ip", "link", "delete", "vx3"], check=False)


@both_versions
def test_a_kernel_device_of_another_vni_keeps_working_beside_us(
    lab: Lab, neighbour_device: dict[str, dict[int, str]], version: int
) -> None:
    node = lab.node("node1")
    before = drops(node, "REFUSED_SENDER_OR_ID", "eth0")
    counted = node.counters().tunnels[TUNNEL]
    ping(lab, "node1", neighbour_device["node2"][version])
    ping(lab, "node2", neighbour_device["node1"][version])
    transfer(lab, "node1", "node2", version, address=neighbour_device["node2"][version], size=5 * MEGABYTE)
    assert node.counters().tunnels[TUNNEL] == counted
    assert drops(node, "REFUSED_SENDER_OR_ID", "eth0") > before + 100
    assert all(drop.left_to_kernel for drop in node.drops() if drop.reason == "REFUSED_SENDER_OR_ID")


def test_both_are_busy_at_once(lab: Lab, neighbour_device: dict[str, dict[int, str]]) -> None:
    failed: list[BaseException] = []

    def by_kernel() -> None:
        try:
            address = neighbour_device["node2"][4]
            transfer(lab, "node1", "node2", address=address, size=10 * MEGABYTE)
        except BaseException as error:
            failed.append(error)

    other = threading.Thread(target=by_kernel)
    other.start()
    try:
        transfer(lab, *CONTAINERS, size=10 * MEGABYTE)
    finally:
        other.join(60)
    assert not other.is_alive()
    assert not failed
