# SPDX-License-Identifier: GPL-2.0-only
"""Ports at TC: real TCP through every protocol, GSO packets whole where the kernel can, beside nodes at XDP."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace
from packets import carriers, carries, protocol_of, required_options
from scapy.layers.inet import TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrDestOpt, PadN
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from traffic import (
    FAMILY,
    IP_HEADER_LEN,
    MEGABYTE,
    NODES,
    SOL_PACKET,
    Capture,
    Datagrams,
    address_of,
    at_hook,
    carried_by,
    drops,
    kept,
    mac_of,
    peer_of,
    ping,
    set_switches,
    transfer,
)

from mptm.intent import Port, Route
from mptm.kernel import netns, segmenter
from mptm.lab.topology import Lab, configure

UNDERLAY_MTU = 1500
RESTORE = "mptm restore"
WHOLE = 3000
"""Bytes of a frame that is no single segment on a link of UNDERLAY_MTU."""
SIZE = 4 * MEGABYTE
PACKET_VNET_HDR = 15
NEEDS_CHECKSUM, GSO_TCP6 = 1, 4
TCP_CHECKSUM_OFFSET = 16


@pytest.fixture(scope="module")
def lab(lab_prefix: Callable[[], str]) -> Iterator[Lab]:
    """The containers' links could carry more than fits a tunnel."""
    with Lab(lab_prefix(), container_mtu=1600) as built:
        yield built


def bring_up(lab: Lab, variant: str, underlay: int, hooks: tuple[str, str]) -> None:
    """Both nodes with a tunnel of the variant at these hooks, and the containers' MTU as it fits."""
    name = protocol_of(variant).name
    for node, hook in zip(NODES, hooks, strict=True):
        options = required_options(variant)
        lab.node(node).apply(at_hook(carried_by(lab, node, name, underlay, **options), hook))
    mtu = min(lab.node(node).inner_mtu("blue") or 0 for node in NODES)
    for node in NODES:
        configure(lab.namespace(f"{node}-c1"), [f"link set eth0 mtu {mtu}"])


class Longest:
    """The longest frame (65536: or longer) that passes the underlay, or an interface, while the block runs."""

    def __init__(self, lab: Lab, target: str = "underlay", interface: str = "node1") -> None:
        self._capture = Capture(lab, target, interface)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.len = 0

    def _watch(self) -> None:
        while not self._over.is_set():
            for frame in self._capture.frames(wait_seconds=0.2):
                self.len = max(self.len, len(frame))

    def __enter__(self) -> Longest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._capture.__exit__(None, None, None)


@pytest.mark.parametrize(("variant", "underlay"), carriers())
def test_tcp_goes_through_every_protocol(lab: Lab, variant: str, underlay: int) -> None:
    """Both nodes at TC: what is sent is what arrives, no checksum is wrong, and the packets are as long as they can."""
    bring_up(lab, variant, underlay, ("tc", "tc"))
    gso = lab.node("node1").tunnel_details("blue-to-node2").found["GSO at TC"]
    for version in (4, 6):
        if not carries(variant, underlay, version):
            continue
        ping(lab, "node1-c1", address_of(lab, "node2-c1", version), count=2)
        with Datagrams(lab, "node1-c1", "node2-c1", version) as datagrams:
            datagrams.send(b"x")  # behind its IP header there is less than an IPv6 header would be
            assert datagrams.receive() == (b"x", 0)
        with Longest(lab) as longest:
            transfer(lab, "node1-c1", "node2-c1", version, size=SIZE)
        assert (longest.len > WHOLE) == (gso == "whole")
        assert gso == "whole" or longest.len <= UNDERLAY_MTU + 18


BIG = 131072
BIG_CARRIERS = [
    ("vxlan", 4),
    ("vxlan", 6),
    ("geneve l3", 4),
    ("gre", 6),
    ("vlan", 4),
    ("qinq", 4),
    ("etherip", 4),
]
IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE = 41, 58, 63, 64
RTM_SETLINK, NLM_F_REQUEST, NLM_F_ACK = 19, 1, 4


def set_sizes(lab: Lab, container: str, size: int) -> None:
    """Let the container's stack make packets of more than 64 KB, or not (rtnetlink; what is unknown is passed over)."""
    with netns.inside(lab.namespace(container)):
        attributes = b"".join(
            struct.pack("=HHI", 8, each, size)
            for each in (IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE)
        )
        body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex("eth0"), 0, 0) + attributes
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
            flags = NLM_F_REQUEST | NLM_F_ACK
            asking.send(struct.pack("=IHHII", 16 + len(body), RTM_SETLINK, flags, 1, 0) + body)
            answer = asking.recv(4096)
        (number,) = struct.unpack_from("=i", answer, 16)
        assert number == 0, os.strerror(-number)


@pytest.mark.parametrize(("variant", "underlay"), BIG_CARRIERS)
def test_tcp_of_more_than_64_kilobytes_arrives(lab: Lab, variant: str, underlay: int) -> None:
    """BIG TCP of a workload (Linux 5.19, IPv4: 6.3): segments are made of it before a header is put in front."""
    bring_up(lab, variant, underlay, ("tc", "tc"))
    for node in NODES:
        set_sizes(lab, f"{node}-c1", BIG)
    try:
        for version in (4, 6):
            if not carries(variant, underlay, version):
                continue
            with Longest(lab, "node1", "veth-c1") as longest:
                transfer(lab, "node1-c1", "node2-c1", version, size=16 * MEGABYTE)
            assert longest.len >= 65536, "the stack made none"
    finally:
        for node in NODES:
            set_sizes(lab, f"{node}-c1", 65536)
    assert not [each for node in NODES for each in lab.node(node).drops() if each.reason != "REASON_NO_ROUTE"]


OWN = ["vxlan", "geneve", "gretap"]
"""Tunnels that a workload may have itself: kinds of link."""


@pytest.fixture
def own_tunnel(lab: Lab, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A tunnel of the workloads' own, from node1-c1 to node2-c1: the addresses at its ends."""
    kind, version, options = request.param
    addresses = "192.168.77.1", "192.168.77.2"
    ends = [f"{node}-c1" for node in NODES]
    for end, far, address in zip(ends, ends[::-1], addresses, strict=True):
        remote = address_of(lab, far, version)
        words = ["local", address_of(lab, end, version)] if kind != "geneve" else []
        link = ["ip", "link", "add", "own0", "type", kind, *options, "remote", remote, *words]
        made = lab.exec(end, link, check=False)
        if made.returncode:
            pytest.skip(f"this kernel has no {kind}: {made.stderr}")
        configure(lab.namespace(end), [f"address add {address}/24 dev own0", "link set own0 up mtu 1300"])
    yield addresses
    for end in ends:
        configure(lab.namespace(end), ["link del own0"])


VXLAN = ("vxlan", 4, ["id", "7", "dstport", "4789", "noudpcsum"])
VXLAN6 = ("vxlan", 6, ["id", "7", "dstport", "4789", "udp6zerocsumtx", "udp6zerocsumrx"])
VXLAN_CHECKSUM = ("vxlan", 4, ["id", "7", "dstport", "4789", "udpcsum"])
GENEVE = ("geneve", 4, ["id", "7"])
GRETAP = ("gretap", 4, [])


@pytest.mark.parametrize(
    "own_tunnel",
    [VXLAN, VXLAN6, VXLAN_CHECKSUM, GENEVE, GRETAP],
    indirect=True,
    ids=lambda each: f"{each[0]}{each[1]}{len(each[2])}",
)
@pytest.mark.parametrize(("variant", "underlay"), [("vlan", 4), ("qinq", 4), ("vxlan", 4), ("mpls", 4)])
def test_a_workloads_own_tunnel_goes_through_ours(
    lab: Lab, own_tunnel: tuple[str, str], variant: str, underlay: int
) -> None:
    bring_up(lab, variant, underlay, ("tc", "tc"))
    ping(lab, "node1-c1", own_tunnel[1], count=1)
    with Longest(lab, "node1", "veth-c1") as longest:
        transfer(lab, "node1-c1", "node2-c1", address=own_tunnel[1], size=SIZE)
    assert longest.len > WHOLE, "the workload's stack sends no GSO packets"


VXLAN_DF = ("vxlan", 4, ["id", "7", "dstport", "4789", "df", "set"])


@pytest.mark.parametrize("own_tunnel", [VXLAN_DF], indirect=True, ids=lambda _: "")
@pytest.mark.parametrize("variant", ["vlan", "qinq", "vxlan"])
def test_the_headers_of_a_workloads_own_tunnel_count(
    lab: Lab, own_tunnel: tuple[str, str], variant: str
) -> None:
    """Its GSO packets tell how much is behind all headers: with these, segments don't fit, which it is told."""
    bring_up(lab, variant, 4, ("tc", "tc"))
    for node in NODES:
        configure(lab.namespace(f"{node}-c1"), ["link set eth0 mtu 1600", "link set own0 mtu 1480"])
    ping(lab, "node1-c1", own_tunnel[1], count=1)
    lab.node("node1").reset_counters()
    transfer(lab, "node1-c1", "node2-c1", address=own_tunnel[1], size=SIZE)
    assert drops(lab.node("node1"), "REASON_TOO_BIG", "blue-to-node2")


@pytest.mark.parametrize(("variant", "underlay"), [("vxlan", 4), ("gre", 6), ("vlan", 4), ("etherip", 4)])
@pytest.mark.parametrize("far", ["tc", "xdp"])
def test_both_ends_count_the_same(lab: Lab, variant: str, underlay: int, far: str) -> None:
    """Whether packets go whole or not: segments, with all headers in each."""
    bring_up(lab, variant, underlay, ("tc", far))
    for name in NODES:
        lab.node(name).reset_counters()
    transfer(lab, "node1-c1", "node2-c1", size=SIZE)
    near, away = (lab.node(name).counters().tunnels[f"blue-to-{peer_of(name)}"] for name in NODES)
    assert near.encap_packets > SIZE // UNDERLAY_MTU
    assert (near.encap_packets, near.encap_bytes) == (away.decap_packets, away.decap_bytes)
    assert (near.decap_packets, near.decap_bytes) == (away.encap_packets, away.encap_bytes)


MIXED = [("vxlan", 4), ("geneve", 6), ("vlan", 4), ("gre checksum", 4), ("ipip", 4), ("l2tp", 4)]


@pytest.mark.parametrize("hooks", [("tc", "xdp"), ("xdp", "tc")])
@pytest.mark.parametrize(("variant", "underlay"), MIXED)
def test_a_node_at_tc_and_one_at_xdp_understand_each_other(
    lab: Lab, variant: str, underlay: int, hooks: tuple[str, str]
) -> None:
    bring_up(lab, variant, underlay, hooks)
    for version in (4, 6):
        if carries(variant, underlay, version):
            exchange(lab, "c1", version)


def exchange(lab: Lab, container: str, version: int) -> None:
    """Pings, datagrams both ways, short ones and such as fill a packet, and TCP, whatever was sent compared."""
    ends = [f"{node}-{container}" for node in NODES]
    ping(lab, ends[0], address_of(lab, ends[1], version), count=2)
    longest = 1300 - IP_HEADER_LEN[version] - 8
    for source, destination in (ends, ends[::-1]):
        with Datagrams(lab, source, destination, version) as datagrams:
            for size in (0, 1, 17, longest):
                data = os.urandom(size)
                datagrams.send(data)
                assert datagrams.receive() == (data, 0)
    transfer(lab, *ends, version, size=SIZE)


@pytest.mark.parametrize("far", ["auto", "xdp", "tc"])
@pytest.mark.parametrize("uplink", ["auto", "tc"])
def test_both_hooks_on_one_node(lab: Lab, uplink: str, far: str) -> None:
    """On node 1 container c1 at XDP, c2 at TC, the uplink at TC, which serves both; node 2 as it likes."""
    with kept(*map(lab.node, NODES)):
        intent = at_hook(lab.intent("node1"), "auto")
        for name, hook in (("veth-c1", "xdp"), ("eth0", uplink)):
            intent = intent.replace(replace(intent.get("port", name), hook=hook))
        lab.node("node1").apply(intent)
        lab.node("node2").apply(at_hook(lab.intent("node2"), far))
        attached = lab.node("node1").status().attached
        assert (attached["veth-c1"], attached["eth0"]) == ("native", attached["veth-c2"])
        for container in ("c1", "c2"):
            configure(lab.namespace(f"node1-{container}"), ["link set eth0 mtu 1400"])
            configure(lab.namespace(f"node2-{container}"), ["link set eth0 mtu 1400"])
            for version in (4, 6):
                exchange(lab, container, version)


def test_a_container_at_tc_sends_to_its_neighbour(lab: Lab) -> None:
    """Without a tunnel: from port to port, straight into the other namespace."""
    neighbour = "10.250.1.201"
    with kept(lab.node("node1")):
        intent = at_hook(lab.intent("node1"), "tc")
        port = replace(intent.get("port", "veth-c2"), network="blue")
        intent = intent.replace(port)
        intent = intent.remove("route", "green 10.250.1.100/32").remove("route", "green fd00:250:1::100/128")
        intent = intent.add(Route(network="blue", prefix=f"{neighbour}/32", port="veth-c2"))
        # It has the address of c1, otherwise.
        configure(
            lab.namespace("node1-c2"),
            ["address flush dev eth0 scope global", f"address add {neighbour}/24 dev eth0"],
        )
        try:
            lab.node("node1").apply(intent)
            transfer(lab, "node1-c1", "node1-c2", address=neighbour, size=SIZE)
        finally:
            addresses = lab.container("node1-c2").addresses
            configure(
                lab.namespace("node1-c2"),
                [
                    "address flush dev eth0 scope global",
                    *(f"address add {each} dev eth0" for each in addresses),
                ],
            )


def sent_by_qdisc(lab: Lab) -> int:
    shown = lab.exec("node1", ["tc", "-s", "-j", "qdisc", "show", "dev", "veth-c1"]).stdout
    return sum(each["packets"] for each in json.loads(shown) if each["kind"] == "tbf")


def problems(lab: Lab, port: str) -> list[tuple[str, str]]:
    return [(each.problem, each.command) for each in lab.node("node1").examine_ports()[port]]


def test_what_is_on_the_way_to_a_container_is_not_gone_past(lab: Lab) -> None:
    """A user's qdisc at the host's end: doctor tells of it, and restore, or any change, leads packets through it."""
    bring_up(lab, "vxlan", 4, ("tc", "tc"))
    node = lab.node("node1")
    assert node.port_details("veth-c1").hand_over == "by ports at TC straight to its other end"
    limit = ["rate", "10gbit", "burst", "1m", "latency", "50ms"]
    lab.exec("node1", ["tc", "qdisc", "add", "dev", "veth-c1", "root", "tbf", *limit])
    try:
        ping(lab, "node1-c1", address_of(lab, "node2-c1"), count=10)
        assert sent_by_qdisc(lab) < 10, (
            "answers of ours, to ARP, go that way, what is for the container doesn't"
        )
        assert (
            "it has a qdisc tbf, which packets go past, as they are handed over to its other end",
            RESTORE,
        ) in (problems(lab, "veth-c1"))
        node.restore()
        assert problems(lab, "veth-c1") == []
        assert node.port_details("veth-c1").hand_over == "through the interface: it has a qdisc tbf"
        transfer(lab, "node1-c1", "node2-c1", size=SIZE)
        assert sent_by_qdisc(lab) > 0
    finally:
        lab.exec("node1", ["tc", "qdisc", "del", "dev", "veth-c1", "root"])
    ((problem, command),) = problems(lab, "veth-c1")
    assert "could be handed over" in problem and command == RESTORE
    node.restore()
    assert problems(lab, "veth-c1") == []


@pytest.mark.parametrize("harm", ["link set {} down", "link del {}"])
def test_doctor_tells_that_no_segments_are_made(lab: Lab, harm: str) -> None:
    """Nothing counts what is sent into an interface that is down."""
    bring_up(lab, "etherip", 4, ("tc", "tc"))
    node = lab.node("node1")
    assert problems(lab, "veth-c1") == []
    for name in segmenter.names(lab.topology.node("node1").instance):
        configure(lab.namespace("node1"), [harm.format(name)])
        ((problem, command),) = problems(lab, "veth-c1")
        assert "segments" in problem and command == RESTORE
        node.restore()
        assert problems(lab, "veth-c1") == []
    transfer(lab, "node1-c1", "node2-c1", size=SIZE)


def test_a_container_that_comes_back_into_the_nodes_namespace_is_told(lab: Lab) -> None:
    bring_up(lab, "vxlan", 4, ("tc", "tc"))
    node = lab.node("node1")
    inside = lab.namespace("node1-c2")
    moving = ["ip", "link", "set", "eth0", "name", "moved0", "netns", lab.namespace("node1")]
    lab.exec("node1-c2", ["ip", "link", "set", "eth0", "down"])
    lab.exec("node1-c2", moving)
    try:
        told = [each for each in node.status().warnings if "its own network namespace" in each]
        assert len(told) == 1 and "veth-c2" in told[0] and RESTORE in told[0]
        assert any("its own network namespace" in each for each, _ in problems(lab, "veth-c2"))
        node.restore()
        assert not [each for each in node.status().warnings if "its own network namespace" in each]
        assert not any("its own network namespace" in each for each, _ in problems(lab, "veth-c2"))
        assert any("moved0" in each and "is down" in each for each, _ in problems(lab, "veth-c2"))
    finally:
        lab.exec("node1", ["ip", "link", "set", "moved0", "name", "eth0", "netns", inside])
        addresses = lab.container("node1-c2").addresses
        configure(inside, ["link set eth0 up", *(f"address add {each} dev eth0" for each in addresses)])
        node.restore()
    ping(lab, "node1-c2", address_of(lab, "node2-c2"))


def test_a_container_whose_end_went_elsewhere_is_told(lab: Lab) -> None:
    bring_up(lab, "vxlan", 4, ("tc", "tc"))
    node = lab.node("node1")
    here, there = lab.namespace("node1-c2"), lab.namespace("node1-c1")
    lab.exec("node1-c2", ["ip", "link", "set", "eth0", "name", "moved0", "netns", there])
    try:
        ((problem, command),) = [each for each in problems(lab, "veth-c2") if "was in" in each[0]]
        assert f"/{here} when" in problem and f"/{there}," in problem
        assert command == RESTORE
        node.restore()
        assert not [each for each in problems(lab, "veth-c2") if "was in" in each[0]]
    finally:
        lab.exec("node1-c1", ["ip", "link", "set", "moved0", "name", "eth0", "netns", here])
        addresses = lab.container("node1-c2").addresses
        configure(here, ["link set eth0 up", *(f"address add {each} dev eth0" for each in addresses)])
        node.restore()
    ping(lab, "node1-c2", address_of(lab, "node2-c2"))


@pytest.mark.parametrize(("variant", "underlay"), [("vxlan", 4), ("vxlan", 6), ("etherip", 4)])
def test_the_kernel_routes_gso_packets_and_segments(lab: Lab, variant: str, underlay: int) -> None:
    """Option `to_stack`: what comes of a packet, whole or not, is received by the port that the packet came by."""
    switches = ("ipv4.ip_forward", "ipv4.conf.veth-c1.accept_local", "ipv6.conf.all.forwarding")
    nodes = [lab.node(name) for name in NODES]
    options = {**required_options(variant), "to_stack": True}
    with kept(*nodes):
        for name, node in zip(NODES, nodes, strict=True):
            node.apply(at_hook(carried_by(lab, name, variant, underlay, **options), "tc"))
            configure(lab.namespace(f"{name}-c1"), [f"link set eth0 mtu {node.inner_mtu('blue')}"])
        set_switches(lab, switches, 1)
        try:
            nodes[0].reset_counters()
            sent = nodes[0].counters().ports["eth0"].tx_packets
            transfer(lab, "node1-c1", "node2-c1", size=SIZE)
            counted = nodes[0].counters()
            assert counted.ports["eth0"].tx_packets == sent
            encapsulated = counted.tunnels["blue-to-node2"].encap_packets
            assert counted.ports["veth-c1"].rx_packets < 1.5 * encapsulated, "what passes is seen once more"
            assert drops(nodes[0], "REASON_GSO", "blue-to-node2") == 0
        finally:
            set_switches(lab, switches, 0)


def test_segments_whose_length_is_not_known_before_are_judged_when_they_are_there(lab: Lab) -> None:
    """TCP behind an IPv6 extension header, in a GSO packet whose segments fit no tunnel."""
    bring_up(lab, "vxlan", 4, ("tc", "tc"))
    node = lab.node("node1")
    header = IPv6(src=address_of(lab, "node1-c1", 6), dst=address_of(lab, "node2-c1", 6)) / IPv6ExtHdrDestOpt(
        options=[PadN(optdata=bytes(4))]
    )
    frame = (
        Ether(src=mac_of(lab, "node1-c1"), dst=mac_of(lab, "node2-c1"))
        / header
        / TCP(sport=7, dport=7, flags="A")
        / Raw(bytes(6000))
    )
    node.reset_counters()
    with Capture(lab, "node1-c1") as container, Longest(lab) as longest:
        with netns.inside(lab.namespace("node1-c1")):
            send_gso(bytes(frame), header_len=14 + 40 + 8 + 20, checksum_at=14 + 40 + 8, size=UNDERLAY_MTU)
        told = container.find(lambda each: each[12:14] == b"\x86\xdd" and each[20] == 58 and each[54] == 2)
        deadline = time.monotonic() + 3
        while (
            drops(node, "REASON_TOO_BIG", "blue-to-node2") < 6000 // UNDERLAY_MTU
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
    assert drops(node, "REASON_TOO_BIG", "blue-to-node2") == 6000 // UNDERLAY_MTU
    assert longest.len <= UNDERLAY_MTU + 18
    assert told is not None, "the sender has to know, or it sends segments of that size for ever"
    assert Ether(told)[ICMPv6PacketTooBig].mtu == node.inner_mtu("blue")


@pytest.mark.parametrize("mark", [0x4D50FFFF, 0x4D500001, 7])
@pytest.mark.parametrize("variant", ["etherip", "vxlan"])
def test_a_mark_is_the_users_and_stays_as_it_is(lab: Lab, variant: str, mark: int) -> None:
    """With a sender in the node's own namespace, where marks stay; through where segments are made, and past it."""
    node = lab.node("node1")
    with kept(node), Capture(lab, "node1") as uplink:
        configure(lab.namespace("node1"), ["link add veth-m type veth peer mark0", "link set mark0 up"])
        configure(lab.namespace("node1"), ["link set veth-m up mtu 1400"])
        try:
            intent = at_hook(carried_by(lab, "node1", variant, **required_options(variant)), "tc")
            node.apply(intent.add(Port(name="veth-m", role="access", network="blue", hook="tc")))
            header = IPv6(src=address_of(lab, "node1-c1", 6), dst=address_of(lab, "node2-c1", 6))
            frame = (
                Ether(src=mac_of(lab, "node1", "mark0"), dst=mac_of(lab, "node2-c1"))
                / header
                / TCP(sport=7, dport=7, flags="A")
                / Raw(bytes(6000))
            )
            node.reset_counters()
            uplink.only_marked(mark)
            with netns.inside(lab.namespace("node1")):
                send_gso(
                    bytes(frame),
                    header_len=14 + 40 + 20,
                    checksum_at=14 + 40,
                    size=1000,
                    interface="mark0",
                    mark=mark,
                )
            seen = [len(each) for each in uplink.frames(wait_seconds=1)]
            assert len(seen) == (6 if variant == "etherip" else 1)
            assert sum(seen) > len(bytes(frame))
            assert not node.drops()
        finally:
            configure(lab.namespace("node1"), ["link del veth-m"])


def classify(lab: Lab, target: str, interface: str, minor: int) -> None:
    """A filter of somebody else's takes all that is sent out, and writes its class into skb->tc_index (tc_run)."""
    lab.exec(target, ["tc", "qdisc", "add", "dev", interface, "clsact"])
    matching = ["u32", "match", "u32", "0", "0", "classid", f"1:{minor:x}"]
    lab.exec(target, ["tc", "filter", "add", "dev", interface, "egress", *matching])


@pytest.mark.parametrize("minor", [0x4D50, 0x4D53])
def test_a_workload_can_not_pass_its_packets_off_as_ours(lab: Lab, minor: int) -> None:
    """Root within the container may classify: what it sends goes into the tunnel, not past it to the node's stack."""
    bring_up(lab, "vxlan", 4, ("tc", "tc"))
    classify(lab, "node1-c1", "eth0", minor)
    try:
        ping(lab, "node1-c1", address_of(lab, "node2-c1"), count=2)
    finally:
        lab.exec("node1-c1", ["tc", "qdisc", "del", "dev", "eth0", "clsact"])


def test_segments_are_known_behind_filters_of_somebody_elses(lab: Lab) -> None:
    """What watches all interfaces at TC has classified them when they come in at the veth's end."""
    bring_up(lab, "etherip", 4, ("tc", "tc"))
    entry, _ = segmenter.names(lab.topology.node("node1").instance)
    classify(lab, "node1", entry, 0)
    try:
        transfer(lab, "node1-c1", "node2-c1", size=SIZE)
    finally:
        lab.exec("node1", ["tc", "qdisc", "del", "dev", entry, "clsact"])


@pytest.mark.parametrize("version", [4, 6])
def test_who_is_told_of_the_mtu_believes_it_though_the_checksum_was_to_be_filled_in(
    lab: Lab, version: int
) -> None:
    """By a port that fills it in itself, in what is quoted of the packet: the answer's own checksum fits that."""
    bring_up(lab, "vxlan", 4, ("tc", "tc"))
    configure(lab.namespace("node1-c1"), ["link set eth0 mtu 1500"])
    discover, level = (10, 0) if version == 4 else (23, 41)  # IP_MTU_DISCOVER, IPV6_MTU_DISCOVER
    lab.exec("node1", ["ethtool", "-K", "veth-c1", "tx", "off"])
    try:
        with (
            netns.inside(lab.namespace("node1-c1")),
            socket.socket(FAMILY[version], socket.SOCK_DGRAM) as sender,
        ):
            sender.setsockopt(level, discover, 2)  # IP_PMTUDISC_DO
            sender.connect((address_of(lab, "node2-c1", version), 999))
            sender.send(bytes(1500 - IP_HEADER_LEN[version] - 8))
            deadline = time.monotonic() + 3
            while mtu_of(sender, version) == 1500 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert mtu_of(sender, version) == lab.node("node1").inner_mtu("blue")
    finally:
        lab.exec("node1", ["ethtool", "-K", "veth-c1", "tx", "on"])


def mtu_of(connected: socket.socket, version: int) -> int:
    """What the stack knows of the way of a connected socket, in bytes (IP_MTU, IPV6_MTU)."""
    return connected.getsockopt(*((0, 14) if version == 4 else (41, 24)))


def send_gso(
    frame: bytes, *, header_len: int, checksum_at: int, size: int, interface: str = "eth0", mark: int = 0
) -> None:
    """Send a TCP segment that is to become some of `size` bytes of payload (linux/virtio_net.h)."""
    header = struct.pack(
        "=BBHHHH", NEEDS_CHECKSUM, GSO_TCP6, header_len, size, checksum_at, TCP_CHECKSUM_OFFSET
    )
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((interface, 0x86DD))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sender.send(header + frame)
