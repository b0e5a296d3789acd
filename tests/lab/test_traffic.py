# SPDX-License-Identifier: GPL-2.0-only
"""Containers talk through the protocols, over every underlay that these have."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from packets import required_options
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from traffic import (
    CARRIERS,
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
    open_socket,
    packet_of,
    peer_of,
    ping,
    set_switches,
    transfer,
    try_ping,
    with_finished_sum,
    with_outer_ecn,
)

from mptm.intent import Port, Route, tunnel_from_dict
from mptm.lab.topology import Lab, configure
from mptm.protocols import PROTOCOLS

UNDERLAY_MTU = 1500
NOT_ECT, ECT_1, ECT_0, CE = 0, 1, 2, 3
OVER_IP = [carrier for carrier in CARRIERS if PROTOCOLS[carrier[0]].over_ip]


@pytest.fixture(scope="module")
def lab(lab_prefix: Callable[[], str]) -> Iterator[Lab]:
    """The containers' links could carry more than fits a tunnel; each carrier sets the MTU of blue's."""
    with Lab(lab_prefix(), container_mtu=1600) as built:
        for node in NODES:
            configure(built.namespace(f"{node}-c2"), ["link set eth0 mtu 1400"])
        yield built


@dataclass(frozen=True)
class Carrier:
    """How blue goes from node to node; `mtu` is the largest inner packet in bytes."""

    protocol: str
    underlay: int
    mtu: int

    @property
    def over_ip(self) -> bool:
        return PROTOCOLS[self.protocol].over_ip


def set_mtu(lab: Lab, mtu: int) -> None:
    for node in NODES:
        configure(lab.namespace(f"{node}-c1"), [f"link set eth0 mtu {mtu}"])


def apply_carrier(lab: Lab, protocol: str, underlay: int) -> Carrier:
    for node in NODES:
        lab.node(node).apply(carried_by(lab, node, protocol, underlay))
    mtu = lab.node("node1").inner_mtu("blue")
    assert mtu is not None
    set_mtu(lab, mtu)
    return Carrier(protocol, underlay, mtu)


@pytest.fixture(scope="module", params=CARRIERS, ids=lambda carrier: f"{carrier[0]}-over-v{carrier[1]}")
def carrier(request: pytest.FixtureRequest, lab: Lab) -> Carrier:
    return apply_carrier(lab, *request.param)


both_versions = pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])
both_ways = pytest.mark.parametrize("node", NODES)


# ---- pings ---------------------------------------------------------------------------------------------------


@both_versions
@both_ways
def test_pings_are_answered(lab: Lab, carrier: Carrier, node: str, version: int) -> None:
    tunnel = f"blue-to-{peer_of(node)}"
    before = lab.node(node).counters().tunnels[tunnel]
    ping(lab, f"{node}-c1", address_of(lab, f"{peer_of(node)}-c1", version))
    ping(lab, f"{node}-c1", address_of(lab, f"{peer_of(node)}-c1", version), "-s", "0")
    after = lab.node(node).counters().tunnels[tunnel]
    assert after.encap_packets >= before.encap_packets + 6
    assert after.decap_packets >= before.decap_packets + 6


@both_versions
def test_a_packet_fills_the_underlays_mtu_to_the_last_byte(lab: Lab, carrier: Carrier, version: int) -> None:
    remote = address_of(lab, "node2-c1", version)
    with Capture(lab, "underlay", "node1") as underlay:
        ping(lab, "node1-c1", remote, *packet_of(version, carrier.mtu), "-p", "6d70746d21", count=1)
        outer = underlay.carrying(b"mptm!" * 20)
    link_layer_len = 14 if carrier.over_ip else 18
    assert len(outer) == UNDERLAY_MTU + link_layer_len


@both_versions
def test_a_packet_one_byte_too_big_is_counted_with_its_reason(
    lab: Lab, carrier: Carrier, version: int
) -> None:
    node, remote = lab.node("node1"), address_of(lab, "node2-c1", version)
    before = drops(node, "REASON_TOO_BIG", "blue-to-node2")
    set_mtu(lab, carrier.mtu + 1)
    try:
        ping(lab, "node1-c1", remote, *packet_of(version, carrier.mtu), count=1)
        assert drops(node, "REASON_TOO_BIG", "blue-to-node2") == before
        said = try_ping(
            lab, "node1-c1", remote, *packet_of(version, carrier.mtu + 1), count=1, wait_seconds=0.3
        )
    finally:
        set_mtu(lab, carrier.mtu)
        # The gateway told the container's kernel, which would remember it.
        lab.exec("node1-c1", ["ip", f"-{version}", "route", "flush", "cache"])
    assert " 0 received" in said
    assert drops(node, "REASON_TOO_BIG", "blue-to-node2") == before + 1


@both_versions
def test_fragments_of_a_packet_pass(lab: Lab, carrier: Carrier, version: int) -> None:
    ping(lab, "node1-c1", address_of(lab, "node2-c1", version), "-s", "6000")


def test_a_packet_too_big_for_the_containers_port_is_counted_at_that_port(lab: Lab, carrier: Carrier) -> None:
    node, namespace = lab.node("node2"), lab.namespace("node2")
    before = drops(node, "REASON_PORT_TOO_BIG", "veth-c1")
    configure(namespace, ["link set veth-c1 mtu 1280"])
    try:
        node.restore()
        remote = address_of(lab, "node2-c1")
        ping(lab, "node1-c1", remote, *packet_of(4, 1280))
        said = try_ping(lab, "node1-c1", remote, *packet_of(4, 1281), count=2, wait_seconds=0.3)
    finally:
        configure(namespace, ["link set veth-c1 mtu 1600"])
        node.restore()
    assert " 0 received" in said
    assert drops(node, "REASON_PORT_TOO_BIG", "veth-c1") == before + 2
    ping(lab, "node1-c1", remote, *packet_of(4, 1281))


# ---- TCP -----------------------------------------------------------------------------------------------------


@both_versions
@both_ways
def test_tcp_arrives_as_it_was_sent_both_ways(lab: Lab, carrier: Carrier, node: str, version: int) -> None:
    transfer(lab, f"{node}-c1", f"{peer_of(node)}-c1", version)


@both_ways
def test_iperf3_moves_data(lab: Lab, carrier: Carrier, node: str) -> None:
    assert iperf3(lab, f"{node}-c1", f"{peer_of(node)}-c1") > 10 * MEGABYTE


def test_two_networks_with_the_same_addresses_are_busy_at_once(lab: Lab, carrier: Carrier) -> None:
    """Blue by the carrier, green by VXLAN: whoever got the other's segments would not have what was sent."""
    assert address_of(lab, "node1-c1") == address_of(lab, "node1-c2")
    for container in ("c1", "c2"):
        ping(lab, f"node1-{container}", address_of(lab, f"node2-{container}"), count=1)
    before = lab.node("node2").counters().tunnels
    with ThreadPoolExecutor(4) as pool:
        busy = [
            pool.submit(
                transfer, lab, f"node1-{container}", f"node2-{container}", version, size=10 * MEGABYTE
            )
            for container in ("c1", "c2")
            for version in (4, 6)
        ]
    for each in busy:
        each.result()
    after = lab.node("node2").counters().tunnels
    for tunnel in ("blue-to-node1", "green-to-node1"):
        assert after[tunnel].decap_bytes - before[tunnel].decap_bytes >= 20 * MEGABYTE


@both_versions
def test_two_containers_of_one_node_reach_each_other(lab: Lab, version: int) -> None:
    """c2 of node 1 moves into c1's network, with an address of its own; both still reach the other node."""
    moved, host_len, link_len = {4: ("10.250.1.110", 32, 24), 6: ("fd00:250:1::110", 128, 64)}[version]
    first, second = lab.node("node1"), lab.node("node2")
    old = address_of(lab, "node1-c2", version)
    to_moved = {"network": "blue", "prefix": f"{moved}/{host_len}"}
    with kept(first, second), other_address(lab, "node1-c2", f"{old}/{link_len}", f"{moved}/{link_len}"):
        intent = first.intent
        for route in [route for route in intent.routes.values() if route.port == "veth-c2"]:
            intent = intent.remove("route", route.key)
        intent = intent.replace(Port(name="veth-c2", role="access", network="blue"))
        first.apply(intent.add(Route(**to_moved, port="veth-c2")))
        second.add(Route(**to_moved, via="blue-to-node1"))

        ping(lab, "node1-c1", moved)
        ping(lab, "node1-c2", address_of(lab, "node1-c1", version))
        ping(lab, "node2-c1", moved)
        before = first.counters().ports
        transfer(lab, "node1-c1", "node1-c2", version, address=moved, size=10 * MEGABYTE)
        after = first.counters().ports
        assert after["veth-c2"].tx_bytes - before["veth-c2"].tx_bytes > 10 * MEGABYTE
        assert after["eth0"].tx_bytes - before["eth0"].tx_bytes < MEGABYTE


@contextlib.contextmanager
def other_address(lab: Lab, container: str, old: str, new: str) -> Iterator[None]:
    def change(before: str, after: str) -> None:
        nodad = " nodad" if ":" in after else ""
        commands = [f"address del {before} dev eth0", f"address add {after} dev eth0{nodad}"]
        configure(lab.namespace(container), commands)

    change(old, new)
    try:
        yield
    finally:
        change(new, old)


@both_versions
def test_vlan_tags_of_the_containers_pass(lab: Lab, carrier: Carrier, version: int) -> None:
    layer, data = {4: IP, 6: IPv6}[version], os.urandom(16)
    source, destination = (address_of(lab, f"{node}-c1", version) for node in NODES)
    ether = Ether(src=mac_of(lab, "node1-c1"), dst=mac_of(lab, "node1", "veth-c1"))
    packet = layer(src=source, dst=destination) / UDP(sport=7777, dport=7777) / data
    with Capture(lab, "node1-c1") as sender, Capture(lab, "node2-c1") as receiver:
        sender.send(ether / Dot1Q(vlan=7, prio=5) / packet)
        received = receiver.carrying(data)
    assert (received[Dot1Q].vlan, received[Dot1Q].prio) == (7, 5)
    assert received.dst == mac_of(lab, "node2-c1")
    assert bytes(received[layer]) == bytes(packet)


# ---- the outer header ----------------------------------------------------------------------------------------


def send_one(lab: Lab, version: int, *, tos: int = 0, ttl: int = 64) -> IP | IPv6:
    """The outer header of a datagram from node 1 to node 2, seen in the underlay."""
    data = os.urandom(16)
    with (
        Capture(lab, "underlay", "node1") as underlay,
        Datagrams(lab, "node1-c1", "node2-c1", version) as datagrams,
    ):
        datagrams.send(data, tos=tos, ttl=ttl)
        assert datagrams.receive() == (data, tos)
        return underlay.carrying(data).getlayer(1)


def outer_tos(header: IP | IPv6) -> int:
    return header.tos if isinstance(header, IP) else header.tc


over_ip = pytest.mark.parametrize(
    "carrier", OVER_IP, indirect=True, ids=[f"{protocol}-over-v{underlay}" for protocol, underlay in OVER_IP]
)


@over_ip
@both_versions
def test_outer_ecn_is_the_inner_one_and_dscp_and_ttl_are_the_tunnels(
    lab: Lab, carrier: Carrier, version: int
) -> None:
    for ecn in (NOT_ECT, ECT_0, ECT_1, CE):
        header = send_one(lab, version, tos=0xB8 | ecn, ttl=33)
        assert outer_tos(header) == ecn
        assert (header.ttl if carrier.underlay == 4 else header.hlim) == 64


@over_ip
@both_versions
def test_outer_dscp_and_ttl_are_the_inner_ones_when_inherited(
    lab: Lab, carrier: Carrier, version: int
) -> None:
    node = lab.node("node1")
    with kept(node):
        node.apply(
            carried_by(lab, "node1", carrier.protocol, carrier.underlay, ttl="inherit", dscp="inherit")
        )
        for tos, ttl in ((0xB8, 33), (0x2A | ECT_0, 7), (0, 255)):
            header = send_one(lab, version, tos=tos, ttl=ttl)
            assert outer_tos(header) == tos
            assert (header.ttl if carrier.underlay == 4 else header.hlim) == ttl


@over_ip
def test_outer_dscp_and_ttl_are_set(lab: Lab, carrier: Carrier) -> None:
    node = lab.node("node1")
    with kept(node):
        node.apply(carried_by(lab, "node1", carrier.protocol, carrier.underlay, ttl=9, dscp=46))
        header = send_one(lab, 4, tos=ECT_0)
        assert outer_tos(header) == 46 << 2 | ECT_0
        assert (header.ttl if carrier.underlay == 4 else header.hlim) == 9


RFC_6040 = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT_0: NOT_ECT, ECT_1: NOT_ECT, CE: None},
    ECT_0: {NOT_ECT: ECT_0, ECT_0: ECT_0, ECT_1: ECT_1, CE: CE},
    ECT_1: {NOT_ECT: ECT_1, ECT_0: ECT_1, ECT_1: ECT_1, CE: CE},
    CE: {NOT_ECT: CE, ECT_0: CE, ECT_1: CE, CE: CE},
}
"""Inner ECN -> outer ECN -> the one that leaves the tunnel (§4.2), None: dropped."""


@over_ip
@both_versions
def test_ecn_leaves_the_tunnel_by_rfc_6040(lab: Lab, carrier: Carrier, version: int) -> None:
    """A router between the nodes is played by sending a captured packet again with another outer ECN field."""
    node = lab.node("node2")
    dropped = drops(node, "REASON_ECN_CE", "blue-to-node1")
    with (
        Capture(lab, "underlay", "node1") as from_node1,
        Capture(lab, "underlay", "node2") as to_node2,
        Datagrams(lab, "node1-c1", "node2-c1", version) as datagrams,
    ):
        for inner, outcomes in RFC_6040.items():
            data = os.urandom(16)
            datagrams.send(data, tos=0xB8 | inner)
            assert datagrams.receive() == (data, 0xB8 | inner)
            packet = with_finished_sum(bytes(from_node1.carrying(data)), data, version)
            for outer, expected in outcomes.items():
                to_node2.send(with_outer_ecn(packet, outer))
                if expected is None:
                    assert datagrams.receive(wait_seconds=0.2) is None
                else:
                    assert datagrams.receive() == (data, 0xB8 | expected), f"inner {inner}, outer {outer}"
    assert drops(node, "REASON_ECN_CE", "blue-to-node1") == dropped + 1


@over_ip
@both_versions
def test_a_flow_keeps_its_outer_source_port_and_flows_differ(
    lab: Lab, carrier: Carrier, version: int
) -> None:
    def source_port(datagrams: Datagrams, underlay: Capture) -> int:
        data = os.urandom(16)
        datagrams.send(data)
        return int(underlay.carrying(data)[UDP].sport)

    ports = set()
    with Capture(lab, "underlay", "node1") as underlay:
        for _ in range(16):
            with Datagrams(lab, "node1-c1", "node2-c1", version) as datagrams:
                first = source_port(datagrams, underlay)
                assert [source_port(datagrams, underlay) for _ in range(3)] == [first] * 3
                ports.add(first)
    assert all(49152 <= port <= 65535 for port in ports)
    assert len(ports) > 8


# ---- neighbours ----------------------------------------------------------------------------------------------


@both_versions
def test_remote_neighbours_are_found_by_asking(lab: Lab, carrier: Carrier, version: int) -> None:
    """What answers has the gateway MAC of the container's port, and nothing is set by hand."""
    remote, gateway = address_of(lab, "node2-c1", version), mac_of(lab, "node1", "veth-c1")
    for node in NODES:
        lab.exec(f"{node}-c1", ["ip", "neigh", "flush", "all"])
    ping(lab, "node1-c1", remote, count=1)
    shown = json.loads(lab.exec("node1-c1", ["ip", "-json", "neigh", "show", remote]).stdout)
    assert [(each["lladdr"], "PERMANENT" in each["state"]) for each in shown] == [(gateway, False)]


@both_versions
def test_an_unknown_neighbour_is_not_answered_for(lab: Lab, version: int) -> None:
    unknown = {4: "10.250.1.77", 6: "fd00:250:1::77"}[version]
    try_ping(lab, "node1-c1", unknown, wait_seconds=0.2)
    shown = json.loads(lab.exec("node1-c1", ["ip", "-json", "neigh", "show", unknown]).stdout)
    assert shown
    assert not any("lladdr" in each for each in shown)


def ipv6_flags(lab: Lab, container: str, address: str) -> dict[str, bool]:
    command = ["ip", "-json", "-6", "address", "show", "dev", "eth0"]
    for interface in json.loads(lab.exec(container, command).stdout):
        for found in interface.get("addr_info", []):
            if found["local"] == address:
                return found
    raise AssertionError(f"{container} has no {address}")


def finish_detection(lab: Lab, container: str, address: str) -> bool:
    """Add an address, let the kernel look for duplicates, take it away again: whether it found one."""
    configure(lab.namespace(container), [f"address add {address}/64 dev eth0"])
    deadline = time.monotonic() + 5
    while (flags := ipv6_flags(lab, container, address)).get("tentative") and not flags.get("dadfailed"):
        assert time.monotonic() < deadline, flags
        time.sleep(0.05)
    return flags.get("dadfailed", False)


def test_a_container_may_have_its_own_ipv6_address(lab: Lab) -> None:
    """Duplicate address detection (RFC 4862 §5.4): nobody answers for the container's own address, nor unknown ones."""
    own, namespace = address_of(lab, "node1-c1", 6), lab.namespace("node1-c1")
    configure(namespace, [f"address del {own}/64 dev eth0"])
    assert not finish_detection(lab, "node1-c1", own)
    ping(lab, "node1-c1", address_of(lab, "node2-c1", 6), count=1)
    assert not finish_detection(lab, "node1-c1", "fd00:250:1::77")
    configure(namespace, ["address del fd00:250:1::77/64 dev eth0"])


def test_an_ipv6_address_of_another_container_is_found_to_be_a_duplicate(lab: Lab) -> None:
    other = address_of(lab, "node2-c1", 6)
    try:
        assert finish_detection(lab, "node1-c1", other)
    finally:
        configure(lab.namespace("node1-c1"), [f"address del {other}/64 dev eth0"])


@pytest.mark.parametrize(
    ("target", "is_answered"), [("node1-c1", False), ("node2-c1", True)], ids=["own address", "taken address"]
)
def test_an_arp_probe_finds_duplicates_only(lab: Lab, target: str, is_answered: bool) -> None:
    """RFC 5227 §2.1.1: the sender's address is all zeroes."""
    mac, address = mac_of(lab, "node1-c1"), address_of(lab, target)
    with Capture(lab, "node1-c1") as container:
        container.send(
            Ether(src=mac, dst="ff:ff:ff:ff:ff:ff")
            / ARP(op="who-has", hwsrc=mac, psrc="0.0.0.0", pdst=address)
        )
        answer = container.find(
            lambda frame: (
                ARP in Ether(frame) and (Ether(frame)[ARP].op, Ether(frame)[ARP].psrc) == (2, address)
            ),
            wait_seconds=1 if is_answered else 0.3,
        )
    assert (answer is not None) == is_answered


# ---- several protocols at once -------------------------------------------------------------------------------


def test_protocols_carry_one_network_at_the_same_time(lab: Lab) -> None:
    """Each protocol and underlay has an inner address of its own: what is counted at its tunnel went by it."""
    numbers = {carrier: 150 + number for number, carrier in enumerate(CARRIERS)}
    nodes = [lab.node(name) for name in NODES]
    with kept(*nodes), contextlib.ExitStack() as stack:
        for name, node in zip(NODES, nodes, strict=True):
            intent = lab.intent(name)
            for (protocol, underlay), number in numbers.items():
                tunnel = {
                    "name": f"by-{protocol}-{underlay}",
                    "protocol": protocol,
                    "network": "blue",
                    "remote": address_of(lab, peer_of(name), underlay),
                    **required_options(protocol),
                }
                intent = intent.add(tunnel_from_dict(tunnel))
                local = name == "node2"
                intent = intent.add(
                    Route(
                        network="blue",
                        prefix=f"10.250.1.{number}/32",
                        **({"port": "veth-c1"} if local else {"via": f"by-{protocol}-{underlay}"}),
                    )
                )
            node.apply(intent)
        configure(
            lab.namespace("node2-c1"),
            [f"address add 10.250.1.{number}/24 dev eth0" for number in numbers.values()],
        )
        stack.callback(
            configure,
            lab.namespace("node2-c1"),
            [f"address del 10.250.1.{number}/24 dev eth0" for number in numbers.values()],
        )
        for number in numbers.values():
            ping(lab, "node1-c1", f"10.250.1.{number}", count=5)
        sent = nodes[0].counters().tunnels
        received = nodes[1].counters().tunnels
    for protocol, underlay in numbers:
        assert sent[f"by-{protocol}-{underlay}"].encap_packets >= 5
        assert received[f"by-{protocol}-{underlay}"].decap_packets >= 5


# ---- through the node's own stack ----------------------------------------------------------------------------


def test_a_route_may_lead_a_decapsulated_packet_to_the_node_itself(lab: Lab, carrier: Carrier) -> None:
    """Route `pass`: node 2 has an address of the network, and its kernel gets what node 1's container sends there."""
    first, second = lab.node("node1"), lab.node("node2")
    address, data = "10.250.1.2", os.urandom(16)
    with kept(first, second), open_socket(lab, "node2", socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        first.add(Route(network="blue", prefix=f"{address}/32", via="blue-to-node2"))
        second.add(Route(network="blue", prefix=f"{address}/32", pass_=True))
        configure(lab.namespace("node2"), [f"address add {address}/32 dev lo"])
        try:
            receiver.bind((address, 7777))
            receiver.settimeout(2)
            with open_socket(lab, "node1-c1", socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(data, (address, 7777))
            assert receiver.recvfrom(64)[0] == data
        finally:
            configure(lab.namespace("node2"), [f"address del {address}/32 dev lo"])


@over_ip
def test_the_kernel_may_route_the_outer_packet(lab: Lab, carrier: Carrier) -> None:
    """Option `to_stack`. The kernel forwards a packet from its own address only when it is told to."""
    switches = ("ipv4.ip_forward", "ipv4.conf.veth-c1.accept_local", "ipv6.conf.all.forwarding")
    nodes = [lab.node(name) for name in NODES]
    with kept(*nodes):
        for name, node in zip(NODES, nodes, strict=True):
            node.apply(carried_by(lab, name, carrier.protocol, carrier.underlay, to_stack=True))
        set_switches(lab, switches, 1)
        try:
            sent = nodes[0].counters().ports["eth0"].tx_packets
            ping(lab, "node1-c1", address_of(lab, "node2-c1"))
            transfer(lab, "node1-c1", "node2-c1", size=MEGABYTE)
            assert nodes[0].counters().ports["eth0"].tx_packets == sent
        finally:
            set_switches(lab, switches, 0)
