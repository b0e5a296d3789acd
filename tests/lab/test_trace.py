# SPDX-License-Identifier: GPL-2.0-only
"""Traces on a node that carries traffic: they say what happens to real packets, and nothing comes of them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap, wrpcap
from traffic import (
    NODES,
    Capture,
    address_of,
    carried_by,
    kept,
    mac_of,
    mptm,
    ping,
)

from mptm.intent import Group, Member, Route, tunnel_from_dict
from mptm.kernel.dataplane import DataPlane
from mptm.kernel.objects import object_path
from mptm.lab.topology import Lab
from mptm.node import Node
from mptm.packets.description import build_described
from mptm.trace import Trace

ATTEMPTS = 5
FROM_NODE2 = 'IP(src="10.30.30.2",dst="10.30.30.1")/UDP(sport=50000,dport=4789)/VXLAN(vni=200)/Ether()/'
"""VXLAN of network green, to the uplink of node 1."""
INNER = 'IP(src="10.250.1.101",dst="10.250.1.100")/ICMP()/b"mptm traced"'


@pytest.fixture(scope="module")
def lab(lab_prefix: Callable[[], str]) -> Iterator[Lab]:
    with Lab(lab_prefix()) as built:
        yield built


@pytest.fixture
def node(lab: Lab) -> Iterator[Node]:
    """Node 1; both nodes are taken back to what they were."""
    with kept(*map(lab.node, NODES)):
        yield lab.node("node1")


def trace(node: Node, port: str, description: str) -> Trace:
    with node.tracer(port) as tracer:
        return tracer.trace(build_described(description, tracer.defaults))


def texts(traced: Trace) -> list[str]:
    return [step.text for step in traced.steps]


def marks(data_plane: DataPlane) -> dict[str, Any]:
    """What the data plane has counted, and where its sequence numbers and limits stand."""
    written = ("tunnel_counters", "port_counters", "drops", "sequences", "answer_times")
    return {name: data_plane.maps[name].items() for name in written}


# ---- real packets ------------------------------------------------------------------------------------------


def test_a_real_ping_is_traced_to_the_frames_that_are_on_the_wire(lab: Lab, node: Node) -> None:
    data = b"mptm traced"
    with (
        Capture(lab, "node1-c1") as workload,
        Capture(lab, "underlay", "node1") as underlay,
        Capture(lab, "node2-c1") as receiver,
    ):
        ping(lab, "node1-c1", address_of(lab, "node2-c1"), "-p", data.hex(), count=1)
        asked = bytes(workload.carrying(data))
        carried = underlay.carrying(data)
        received = bytes(receiver.carrying(data))
    assert asked[34] == 8  # an echo request
    there = node.trace("veth-c1", asked)
    assert (there.verdict, there.interface, there.leaves) == ("redirect", "eth0", bytes(carried))
    arrived = lab.node("node2").trace("eth0", bytes(carried))
    assert (arrived.verdict, arrived.interface, arrived.leaves) == ("redirect", "veth-c1", received)
    assert texts(arrived)[3] == "tunnel blue-to-node1 takes GENEVE from there, into network blue"


def test_nothing_is_sent_and_nothing_is_counted(lab: Lab, node: Node) -> None:
    for name in NODES:
        sequenced = carried_by(lab, name, "gre", key=7, checksum=True, sequence=True)
        lab.node(name).apply(sequenced)
    ping(lab, "node1-c1", address_of(lab, "node2-c1"), count=2)
    with Capture(lab, "underlay", "node1") as underlay, Capture(lab, "node1-c2") as workload:
        assert any(leaves_no_mark(node) for _ in range(ATTEMPTS))
        assert underlay.find(lambda each: b"mptm traced" in each, wait_seconds=0.3) is None
        assert workload.find(lambda each: b"mptm traced" in each, wait_seconds=0.1) is None
    sequence = trace(node, "veth-c1", 'IP(dst="10.250.1.101")/UDP()').leaves
    assert sequence is not None
    with Capture(lab, "underlay", "node1") as underlay:
        ping(lab, "node1-c1", address_of(lab, "node2-c1"), "-p", b"mptm".hex(), count=1)
        real = bytes(underlay.carrying(b"mptm"))
    assert sequence[46:50] == real[46:50]


def leaves_no_mark(node: Node) -> bool:
    """False also when the lab itself sent something in between, such as multicast listener reports."""
    with node.data_plane() as data_plane, node.tracer("veth-c1") as inside, node.tracer("eth0") as outside:
        packets = [
            (tracer, build_described(description, tracer.defaults))
            for tracer, description in (
                (inside, 'IP(dst="10.250.1.101")/UDP()/b"mptm traced"'),
                (inside, 'IP(dst="10.250.1.101",flags="DF")/UDP()/Raw(b"mptm traced" * 140)'),
                (inside, 'IP(dst="10.250.1.1")/ICMP()/b"mptm traced"'),
                (inside, 'ARP(pdst="10.250.1.101")'),
                (outside, FROM_NODE2 + INNER),
                (outside, FROM_NODE2.replace("30.2", "30.66") + INNER),
            )
        ]
        before = marks(data_plane)
        for tracer, packet in packets:
            assert tracer.trace(packet).steps
        return marks(data_plane) == before


def test_a_capture_of_the_underlay_is_traced_whole(lab: Lab, node: Node, tmp_path: Path) -> None:
    capture, left, said = (tmp_path / name for name in ("came.pcap", "left.pcap", "said"))
    command = ["tcpdump", "-ni", "node2", "-c", "6", "-w", "-", "udp", "port", "6081"]
    dumping = lab.popen("underlay", ["sh", "-c", f'exec "$@" > {capture} 2> {said}', "-", *command])
    deadline = time.monotonic() + 10
    while not said.exists() or "listening" not in said.read_text():
        assert time.monotonic() < deadline, "tcpdump doesn't begin"
        time.sleep(0.05)
    ping(lab, "node1-c1", address_of(lab, "node2-c1"), count=3)
    dumping.communicate(timeout=10)
    done = mptm(lab, "node2", "trace", "eth0", "--pcap-in", str(capture), "--pcap-out", str(left), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    documents = json.loads(done.stdout)
    there = mac_of(lab, "node2", "eth0")
    for number, (document, frame) in enumerate(zip(documents, rdpcap(str(capture)), strict=True), 1):
        assert document["number"] == number
        assert document["packet"]["hex"] == bytes(frame).hex()
        for_us = frame.dst == there
        assert document["verdict"] == ("redirect" if for_us else "pass")
        assert document["interface"] == ("veth-c1" if for_us else None)
    assert sum(document["verdict"] == "redirect" for document in documents) == 3
    assert [bytes(each).hex() for each in rdpcap(str(left))] == [each["leaves"]["hex"] for each in documents]


# ---- what happens to packets -------------------------------------------------------------------------------


def test_vxlan_comes_in_at_the_uplink_and_goes_to_the_workload(lab: Lab, node: Node) -> None:
    traced = trace(node, "eth0", FROM_NODE2 + INNER)
    assert texts(traced) == [
        "eth0 is an uplink",
        "IPv4 from 10.30.30.2 to 10.30.30.1, UDP port 4789: VXLAN is listened for there",
        "VXLAN with VNI 200",
        "tunnel green-to-node2 takes VXLAN from there, into network green",
        "ECN: outer not-ECT, inner not-ECT, leaves as not-ECT",
        "IPv4, ICMP, from 10.250.1.101 to 10.250.1.100, in a frame of 53 bytes",
        "route 10.250.1.100/32 of green leads to port veth-c2",
        "50 bytes are cut off in front; what is left is an Ethernet frame",
        "out of veth-c2",
    ]
    assert traced.sentence == "sent out of veth-c2"
    assert Ether(traced.leaves).dst == mac_of(lab, "node1-c2")


def test_an_unknown_sender_is_refused(lab: Lab, node: Node) -> None:
    traced = trace(node, "eth0", FROM_NODE2.replace("30.2", "30.66") + INNER)
    assert (traced.verdict, traced.reason) == ("pass", "REFUSED_SENDER_OR_ID")
    assert texts(traced)[-1] == "accepted there: VXLAN with VNI 200 from 10.30.30.2 (tunnel green-to-node2)"
    assert traced.leaves == traced.packet


def test_a_packet_for_nobody_is_dropped(lab: Lab, node: Node) -> None:
    traced = trace(node, "eth0", FROM_NODE2 + INNER.replace("1.100", "1.77"))
    assert (traced.verdict, traced.reason, traced.leaves) == ("drop", "REASON_NO_ROUTE", None)
    assert texts(traced)[-2:] == [
        "network green has no flow, route or gateway address for 10.250.1.77",
        "decapsulated, but the network doesn't know the destination (REASON_NO_ROUTE at tunnel green-to-node2)",
    ]


def test_a_relayed_packet_goes_from_one_tunnel_into_another(lab: Lab, node: Node) -> None:
    node.add(other_tunnel())
    node.add(Route(network="green", prefix="10.9.0.0/16", via="on", relay=True))
    traced = trace(node, "eth0", FROM_NODE2 + INNER.replace("10.250.1.100", "10.9.8.7"))
    assert texts(traced)[6:] == [
        "route 10.9.0.0/16 of green leads to tunnel on",
        "50 bytes are cut off in front; what is left is an Ethernet frame",
        "relayed from one tunnel into another: its TTL or hop limit is 63 now",
        "tunnel on (geneve to 10.30.30.2): the frame comes to 103 bytes, 1514 fit",
        "50 bytes of outer header are put in front; out of eth0",
    ]
    assert traced.summary is not None and "geneve(vni=0x12d,proto=0x6558)" in traced.summary


def test_a_group_names_the_tunnel_of_the_flow(lab: Lab, node: Node) -> None:
    node.add(other_tunnel())
    members = (Member(tunnel="on"), Member(tunnel="green-to-node2"))
    node.add(Group(name="both", network="green", members=members))
    node.add(Route(network="green", prefix="10.9.0.0/16", group="both"))
    found = set()
    with node.tracer("veth-c2") as tracer:
        for number in range(20):
            packet = build_described(f'IP(dst="10.9.8.{number}")/UDP()', tracer.defaults)
            group, tunnel = tracer.trace(packet).steps[3:5]
            assert group.fields["group"] == "both"
            assert group.fields["tunnel"] == tunnel.fields["tunnel"]
            found.add(tunnel.fields["tunnel"])
    assert found == {"on", "green-to-node2"}


def other_tunnel() -> Any:
    return tunnel_from_dict(
        {"name": "on", "protocol": "geneve", "network": "green", "remote": "10.30.30.2", "vni": 301}
    )


def test_too_big_is_told_with_the_mtu(lab: Lab, node: Node) -> None:
    traced = trace(node, "veth-c1", 'IP(dst="10.250.1.101",flags="DF")/UDP()/Raw(b"x"*1440)')
    assert (traced.verdict, traced.reason) == ("redirect", "REASON_TOO_BIG")
    assert texts(traced)[-3] == "an IP packet of at most 1450 bytes fits"
    answer = Ether(traced.leaves)
    assert (answer[IP].src, answer[IP].dst, answer[ICMP].nexthopmtu) == ("10.250.1.1", "10.250.1.100", 1450)


def test_a_neighbour_solicitation_is_answered(lab: Lab, node: Node) -> None:
    asker = mac_of(lab, "node1-c1")
    traced = trace(
        node, "veth-c1", f'IPv6()/ICMPv6ND_NS(tgt="fd00:250:1::101")/ICMPv6NDOptSrcLLAddr(lladdr="{asker}")'
    )
    assert texts(traced)[2:] == [
        "asks by neighbour solicitation who has fd00:250:1::101",
        "route fd00:250:1::101/128 of blue leads to tunnel blue-to-node2",
        "an answer is written in its place; out of veth-c1",
    ]
    answer = Ether(traced.leaves)
    assert (answer.dst, answer[ICMPv6ND_NA].tgt) == (asker, "fd00:250:1::101")


# ---- the command -------------------------------------------------------------------------------------------


def test_a_description_gets_its_addresses_from_the_port(lab: Lab) -> None:
    done = mptm(lab, "node1", "trace", "veth-c1", "--scapy", 'IP(dst="10.250.1.101")/UDP()', "--json")
    (document,) = json.loads(done.stdout)
    frame = Ether(bytes.fromhex(document["packet"]["hex"]))
    assert (frame.src, frame.dst) == (mac_of(lab, "node1-c1"), mac_of(lab, "node1", "veth-c1"))
    assert frame[IP].src == "10.250.1.100"
    done = mptm(lab, "node1", "trace", "eth0", "--scapy", 'IP(src="10.30.30.2",dst="10.30.30.1")', "--json")
    (document,) = json.loads(done.stdout)
    assert Ether(bytes.fromhex(document["packet"]["hex"])).dst == mac_of(lab, "node1", "eth0")


def test_a_description_is_not_run(lab: Lab, tmp_path: Path) -> None:
    description = f"__import__('pathlib').Path({str(tmp_path / 'made')!r}).touch()"
    done = mptm(lab, "node1", "trace", "veth-c1", "--scapy", description)
    assert (done.returncode, done.stdout) == (2, "")
    assert not (tmp_path / "made").exists()


def test_programs_of_another_build_are_told(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object with a byte more behind its end is loaded as well, but is another."""
    for name in ("mptm.o", "mptm_tc.o", "mptm_trace.o", "mptm_extras.o"):
        shutil.copy(object_path(name), tmp_path / name)
    with (tmp_path / "mptm.o").open("ab") as file:
        file.write(b"\0")
    arguments = ("trace", "veth-c1", "--scapy", 'IP(dst="10.250.1.101")/UDP()')
    assert mptm(lab, "node1", *arguments).stderr == ""
    monkeypatch.setenv("MPTM_OBJECT_DIR", str(tmp_path))
    done = mptm(lab, "node1", *arguments)
    assert done.returncode == 0
    assert done.stderr == (
        "mptm: warning: the attached programs are of another build than the one that is traced; "
        "`mptm restore` switches to this one\n"
    )
    assert "verdict: sent out of eth0 (XDP_REDIRECT)" in done.stdout


def test_a_port_without_a_program_is_told(lab: Lab, node: Node) -> None:
    with node.data_plane() as data_plane:
        data_plane.detach("veth-c1")
    done = mptm(lab, "node1", "trace", "veth-c1", "--scapy", 'IP(dst="10.250.1.101")/UDP()')
    assert done.returncode == 0
    assert done.stderr.startswith("mptm: warning: no program of ours is attached to veth-c1")
    node.restore()
    assert mptm(lab, "node1", "trace", "veth-c1", "00" * 14).stderr == ""


def test_a_frame_that_is_too_long_is_told_and_the_rest_goes_on(lab: Lab, tmp_path: Path) -> None:
    small = Ether(src=mac_of(lab, "node1-c1"), dst=mac_of(lab, "node1", "veth-c1"))
    small /= IP(src="10.250.1.100", dst="10.250.1.101") / UDP()
    wrpcap(str(tmp_path / "in.pcap"), [small, small / bytes(9000), small])
    done = mptm(lab, "node1", "trace", "veth-c1", "--pcap-in", str(tmp_path / "in.pcap"))
    assert done.returncode == 1
    assert done.stderr == "mptm: packet 2: a packet of 9042 bytes can't be traced: it needs 14 to 3520\n"
    assert done.stdout.endswith("3 packets: 2 sent, 1 not traced\n")
