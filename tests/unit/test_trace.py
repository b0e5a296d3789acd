# SPDX-License-Identifier: GPL-2.0-only
"""What traced programs recorded, in words; and the command around it. The programs' part is scripted here."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
from c_headers import c_constant, c_enum
from fake import FakeKernel
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap, wrpcap

from mptm import cli
from mptm import trace as trace_module
from mptm.compile import NextHopKind
from mptm.errors import InvalidPacket, MptmError, NotFound
from mptm.intent import Flow, Group, Intent, Member, Network, Port, Route, tunnel_from_dict
from mptm.kernel.tracing import Record, TracedRun
from mptm.node import Node
from mptm.packets.capture import CaptureWriter
from mptm.protocols.base import Parser
from mptm.reasons import Reason, caption_of
from mptm.sync import SCOPE_PORT, SCOPE_TUNNEL
from mptm.trace import PACKET_MAX, Step, Trace, TraceStep, TraceTable

ABORTED, DROP, PASS, TX, REDIRECT = range(5)
INTENT = Intent.of(
    [
        Network(name="blue", id=1, gateway=("10.1.0.254",)),
        Network(name="green", id=2),
        Port(name="eth0", role="uplink"),
        Port(name="veth-a", role="access", network="blue"),
        Port(name="veth-b", role="access", network="green"),
        tunnel_from_dict(
            {"name": "t", "protocol": "geneve", "network": "blue", "remote": "10.30.30.2", "vni": 100}
        ),
        tunnel_from_dict(
            {"name": "u", "protocol": "vxlan", "network": "blue", "remote": "10.30.30.3", "vni": 7}
        ),
        Group(name="g", network="blue", members=(Member(tunnel="t"), Member(tunnel="u"))),
        Route(network="blue", prefix="10.1.0.1/32", via="t"),
        Route(network="blue", prefix="10.1.0.2/32", port="veth-a"),
        Route(network="blue", prefix="fd00::2/128", port="veth-a"),
        Route(network="blue", prefix="10.2.0.0/16", group="g"),
        Route(network="blue", prefix="10.2.3.0/24", via="u"),
        Flow(network="blue", source="10.1.0.2", destination="10.9.9.9", via="t"),
    ]
)
FRAME = bytes(
    Ether(src="02:00:00:00:01:0a", dst="02:00:00:00:00:0a")
    / IP(src="10.1.0.2", dst="10.1.0.1")
    / UDP(sport=1000, dport=53)
)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeKernel:
    made = FakeKernel()
    monkeypatch.setattr("mptm.node.SystemKernel", lambda: made)
    monkeypatch.setenv("MPTM_STATE_DIR", str(tmp_path / "state"))
    return made


@pytest.fixture
def node(kernel: FakeKernel) -> Node:
    node = Node(kernel=kernel)
    node.apply(INTENT)
    return node


Tell = Callable[..., Trace]


@pytest.fixture
def tell(node: Node, kernel: FakeKernel) -> Tell:
    """What is said of records; `frame` is what comes in, `data` what is left of it."""

    def told(
        *records: Record,
        port: str = "veth-a",
        verdict: int = PASS,
        frame: bytes = FRAME,
        data: bytes | None = None,
    ) -> Trace:
        kernel.traced.answers.append(TracedRun(verdict, frame if data is None else data, records))
        return node.trace(port, frame)

    return told


def record(step: TraceStep, *values: int, address: str | bytes = b"") -> Record:
    """`address` as text is an inner one; an outer IPv4 address is written as ::ffff:a.b.c.d."""
    packed = ip_address(address).packed if isinstance(address, str) else address
    return Record(step, (*values, 0, 0, 0)[:3], packed.ljust(16, b"\0"))


def slots(node: Node) -> dict[str, tuple[int, int]]:
    """Slot and counter of each tunnel."""
    return {name: (held.slot, held.counter) for name, held in node.store.read().allocations.tunnels.items()}


def texts(result: Trace) -> list[str]:
    return [step.text for step in result.steps]


def ports_on_the_wire(source: int, destination: int) -> int:
    return int(struct.unpack("=I", struct.pack("!HH", source, destination))[0])


def ethertype_on_the_wire(number: int) -> int:
    return int(struct.unpack("=H", struct.pack("!H", number))[0])


PORT = record(TraceStep.PORT, 10, 1, 1)
UPLINK = record(TraceStep.PORT, 2, 2, 0)


def packet_records(destination: str, *, source: str = "10.1.0.2") -> tuple[Record, Record]:
    return (
        record(TraceStep.PACKET, ip_address(destination).version, 17, 42, address=destination),
        record(
            TraceStep.SOURCE,
            ports_on_the_wire(1000, 53),
            ethertype_on_the_wire(0x0800),
            0xB8,
            address=source,
        ),
    )


# ---- one description of the C side ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mirror", "name", "prefix"), [(TraceStep, "trace_step", "TRACE_"), (TraceTable, "trace_table", "TABLE_")]
)
def test_enums_are_those_of_the_data_plane(mirror, name, prefix):
    theirs = {member.removeprefix(prefix): value for member, value in c_enum(name).items()}
    assert {member.name: member.value for member in mirror} == theirs


def test_every_step_is_told(tell):
    """With values that nothing has a name for: a table may change while it is traced."""
    for step in TraceStep:
        told = tell(record(step, 9, 9, 9))
        assert told.steps or step in (TraceStep.SOURCE, TraceStep.OUTER_DESTINATION), step
        json.dumps(told.to_dict())


def test_a_step_that_is_newer_than_this_program_is_not_the_end(tell):
    told = tell(Record(200, (1, 2, 3), bytes(16)), PORT)
    assert texts(told) == ["a step that only a newer build knows", "veth-a is an access port of network blue"]


def test_every_parser_has_a_name():
    names = {trace_module._parser_name(parser) for parser in Parser}
    assert len(names) == len(Parser) - 1  # GRE is GRE, with a key or without
    assert trace_module._parser_name(99) == "parser 99"
    assert trace_module._header_text(Parser.QINQ, 7 << 12 | 9) == "QinQ with VIDs 7, 9"


def test_there_is_room_for_more_steps_than_any_packet_takes():
    assert c_constant("abi.h", "MPTM_TRACE_STEPS") > 2 * len(TraceStep)


# ---- in words ----------------------------------------------------------------------------------------------


def test_a_packet_into_a_tunnel(tell, node):
    slot, counter = slots(node)["t"]
    told = tell(
        PORT,
        *packet_records("10.1.0.1"),
        record(TraceStep.NEXT_HOP, TraceTable.HOSTS, NextHopKind.TUNNEL, slot),
        record(TraceStep.TUNNEL, slot, counter, 92),
        record(TraceStep.ENCAPSULATED, 2, 50, 0x1234),
        verdict=REDIRECT,
        data=bytes(50) + FRAME,
    )
    assert texts(told) == [
        "veth-a is an access port of network blue",
        "IPv4, UDP, from 10.1.0.2 port 1000 to 10.1.0.1 port 53, in a frame of 42 bytes",
        "route 10.1.0.1/32 of blue leads to tunnel t",
        "tunnel t (geneve to 10.30.30.2): the frame comes to 92 bytes, 1514 fit",
        "50 bytes of outer header are put in front; out of eth0",
    ]
    assert (told.verdict, told.sentence) == ("redirect", "sent out of eth0")
    assert (told.interface, told.reason, told.leaves) == ("eth0", None, bytes(50) + FRAME)
    assert told.summary is not None
    assert told.summary.endswith(f"geneve(vni=0x64,proto=0x6558),{told.packet_summary}")
    document = told.to_dict()
    assert document["steps"][1] == {
        "step": "packet",
        "text": "IPv4, UDP, from 10.1.0.2 port 1000 to 10.1.0.1 port 53, in a frame of 42 bytes",
        "version": 4, "protocol": 17, "length": 42, "tos": 0xB8, "ethertype": 0x0800,
        "source": "10.1.0.2", "destination": "10.1.0.1", "source_port": 1000, "destination_port": 53,
    }  # fmt: skip
    assert document["steps"][2] | {"text": ""} == {
        "step": "next_hop", "text": "", "network": "blue", "address": "10.1.0.1", "table": "hosts",
        "entry": "route 10.1.0.1/32 of blue", "kind": "tunnel", "to": "t",
    }  # fmt: skip
    assert document["leaves"]["hex"] == (bytes(50) + FRAME).hex()


@pytest.mark.parametrize(
    ("destination", "table", "kind", "to", "text"),
    [
        ("10.1.0.1", "HOSTS", "TUNNEL", "t", "route 10.1.0.1/32 of blue leads to tunnel t"),
        ("10.2.3.4", "PREFIXES", "TUNNEL", "u", "route 10.2.3.0/24 of blue leads to tunnel u"),
        ("10.2.9.9", "PREFIXES", "GROUP", 0, "route 10.2.0.0/16 of blue leads to group g"),
        ("10.9.9.9", "FLOWS", "TUNNEL", "t", "flow 10.1.0.2 -> 10.9.9.9 of blue leads to tunnel t"),
        ("10.1.0.7", "HOSTS", "PORT", 11, "route 10.1.0.7/32 of blue leads to port veth-b"),
        ("10.1.0.2", "HOSTS", "PORT", 10, "route 10.1.0.2/32 of blue leads to port veth-a, where it came in"),
        ("10.1.0.7", "HOSTS", "DROP", 0, "route 10.1.0.7/32 of blue drops it"),
        ("10.1.0.7", "HOSTS", "PASS", 0, "route 10.1.0.7/32 of blue passes it to the kernel"),
        ("10.1.0.254", "HOSTS", "GATEWAY", 0, "gateway address 10.1.0.254 of blue is this node's own"),
        ("fd00::2", "HOSTS", "TUNNEL", "t", "route fd00::2/128 of blue leads to tunnel t"),
        ("10.77.0.1", "PREFIXES", "TUNNEL", 9999, "route for 10.77.0.1 of blue leads to tunnel in slot 9999"),
        ("10.77.0.1", "NONE", None, 0, "network blue has no flow, route or gateway address for 10.77.0.1"),
    ],
)
def test_a_next_hop_has_the_name_of_its_route_and_of_where_it_leads(
    tell, node, destination, table, kind, to, text
):
    number = slots(node)[to][0] if isinstance(to, str) else to
    found = record(
        TraceStep.NEXT_HOP, TraceTable[table], NextHopKind[kind] if kind is not None else 0, number
    )
    source = "10.1.0.2" if "." in destination else "fd00::2"
    assert texts(tell(PORT, *packet_records(destination, source=source), found))[-1] == text


def test_a_group_and_the_tunnel_of_the_flow(tell, node):
    told = tell(
        PORT, record(TraceStep.GROUP, 0, 77, slots(node)["u"][0] + 1), record(TraceStep.GROUP, 0, 5, 0)
    )
    assert texts(told)[1:] == [
        "group g: by its hash the flow is in slot 77, which is tunnel u's",
        "group g: by its hash the flow is in slot 5, which is nobody's",
    ]


def test_a_packet_out_of_a_tunnel(tell, node):
    _, counter = slots(node)["t"]
    told = tell(
        UPLINK,
        record(TraceStep.OUTER, 4, 6081, Parser.GENEVE, address="::ffff:10.30.30.2"),
        record(TraceStep.OUTER_DESTINATION, 17, 2, address="::ffff:10.30.30.1"),
        record(TraceStep.HEADER, Parser.GENEVE, 100, 0),
        record(TraceStep.TERMINATION, 1, counter, Parser.GENEVE),
        record(TraceStep.ECN, 2, 3, 3),
        *packet_records("10.1.0.2", source="10.1.0.1"),
        record(TraceStep.NEXT_HOP, TraceTable.HOSTS, NextHopKind.PORT, 10),
        record(TraceStep.STRIPPED, 50, 0),
        record(TraceStep.DELIVERED, 10, 42),
        port="eth0",
        verdict=REDIRECT,
        frame=bytes(50) + FRAME,
        data=FRAME,
    )
    assert texts(told) == [
        "eth0 is an uplink",
        "IPv4 from 10.30.30.2 to 10.30.30.1, UDP port 6081: GENEVE is listened for there",
        "GENEVE with VNI 100",
        "tunnel t takes GENEVE from there, into network blue",
        "ECN: outer CE, inner ECT(0), leaves as CE",
        "IPv4, UDP, from 10.1.0.1 port 1000 to 10.1.0.2 port 53, in a frame of 42 bytes",
        "route 10.1.0.2/32 of blue leads to port veth-a",
        "50 bytes are cut off in front; what is left is an Ethernet frame",
        "out of veth-a",
    ]
    assert (told.sentence, told.interface, told.summary) == (
        "sent out of veth-a",
        "veth-a",
        trace_module.headers.describe_frame(FRAME),
    )


def test_an_ip_packet_out_of_a_tunnel_may_grow(tell):
    shorter = record(TraceStep.STRIPPED, 20, 1)
    longer = record(TraceStep.STRIPPED, -6 & 0xFFFFFFFF, 1)
    assert texts(tell(shorter, longer, port="eth0")) == [
        "20 bytes are cut off in front; what is left is an IP packet, which gets an Ethernet header",
        "6 bytes are added in front; what is left is an IP packet, which gets an Ethernet header",
    ]


def test_a_refused_sender_is_told_beside_those_that_are_accepted(tell):
    told = tell(
        UPLINK,
        record(TraceStep.OUTER, 4, 6081, Parser.GENEVE, address="::ffff:10.30.30.66"),
        record(TraceStep.OUTER_DESTINATION, 17, 0, address="::ffff:10.30.30.1"),
        record(TraceStep.HEADER, Parser.GENEVE, 100, 0),
        record(TraceStep.REASON, Reason.REFUSED_SENDER_OR_ID, SCOPE_PORT, 2),
        port="eth0",
    )
    assert texts(told)[-2:] == [
        "no tunnel accepts this sender, identifier and port (REFUSED_SENDER_OR_ID at port eth0)",
        "accepted there: GENEVE with VNI 100 from 10.30.30.2 (tunnel t)",
    ]
    assert (told.verdict, told.reason) == ("pass", "REFUSED_SENDER_OR_ID")
    assert told.sentence == (
        "left to the kernel as it came: no tunnel accepts this sender, identifier and port"
    )


def test_a_vlan_frame_has_mac_addresses(tell):
    told = tell(
        UPLINK,
        record(TraceStep.OUTER, 0, 0x8100, Parser.VLAN, address=bytes.fromhex("020000000902")),
        record(TraceStep.OUTER_DESTINATION, 0, 0, address=bytes.fromhex("020000000002") + bytes(10)),
        record(TraceStep.HEADER, Parser.VLAN, 42, 0),
        port="eth0",
    )
    assert texts(told)[1:] == [
        "a frame from 02:00:00:00:09:02 to 02:00:00:00:00:02, EtherType 0x8100: VLAN is listened for there",
        "VLAN with VID 42",
    ]
    assert told.sentence == (
        "left to the kernel as it came: 02:00:00:00:00:02 is no address of a tunnel here"
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((17, 53, 4), "UDP port 53"),
        ((17, 0, 4), "UDP without a port, as in later fragments"),
        ((6, 6, 6), "IPv6 with TCP"),
        ((99, 99, 4), "IPv4 with protocol 99"),
        ((47, 0, 4), "a later fragment of GRE"),
        ((0, 0x88CC, 0), "EtherType 0x88cc"),
        ((0, 0, 0), "an IP header that is cut short or has options"),
    ],
)
def test_what_no_tunnel_listens_for(tell, values, text):
    told = tell(UPLINK, record(TraceStep.NOT_LISTENING, *values), port="eth0")
    assert texts(told)[-1] == f"no tunnel here takes {text}"
    assert told.sentence == "left to the kernel as it came: it is no packet for a tunnel here"


def test_questions_and_answers(tell, node):
    _, counter = slots(node)["t"]
    arp = record(TraceStep.PACKET, 0, 0, 42), record(TraceStep.SOURCE, 0, ethertype_on_the_wire(0x0806))
    told = tell(
        PORT,
        *arp,
        record(TraceStep.QUESTION, 4, 0, address="10.1.0.1"),
        record(TraceStep.NEXT_HOP, TraceTable.HOSTS, NextHopKind.TUNNEL, slots(node)["t"][0]),
        record(TraceStep.ANSWERED, 10),
        verdict=REDIRECT,
    )
    assert texts(told)[1:] == [
        "a frame of 42 bytes that is no IP packet: ARP",
        "asks by ARP who has 10.1.0.1",
        "route 10.1.0.1/32 of blue leads to tunnel t",
        "an answer is written in its place; out of veth-a",
    ]
    assert told.sentence == "an answer is sent out of veth-a"
    probe = record(TraceStep.QUESTION, 6, 1, address="fd00::2")
    back = record(TraceStep.ANSWERED_BACK, counter)
    told = tell(probe, back, record(TraceStep.ENCAPSULATED, 2, 50), port="eth0", verdict=REDIRECT)
    assert texts(told)[:2] == [
        "asks by neighbour solicitation whether somebody else has fd00::2",
        "an answer is written in its place, and goes back through tunnel t",
    ]
    assert told.sentence == "an answer is sent out of eth0"


def test_there_is_no_ecn_where_there_is_no_ip(tell):
    ecn = record(TraceStep.ECN, 0, 0, 0)
    assert not texts(tell(ecn, record(TraceStep.PACKET, 0, 0, 42)))[0].startswith("ECN")
    assert texts(tell(ecn, *packet_records("10.1.0.1")))[0].startswith("ECN")


def test_too_big(tell, node):
    slot, counter = slots(node)["t"]
    start = (
        PORT,
        *packet_records("10.1.0.1"),
        record(TraceStep.TUNNEL, slot, counter, 1600),
        record(TraceStep.TOO_BIG, 1450),
        record(TraceStep.REASON, Reason.REASON_TOO_BIG, SCOPE_TUNNEL, counter),
    )
    answer = bytes(
        Ether(dst="02:00:00:00:01:0a") / IP(src="10.1.0.254", dst="10.1.0.2") / ICMP(type=3, code=4)
    )
    told = tell(*start, record(TraceStep.ANSWERED, 10), verdict=REDIRECT, data=answer)
    assert texts(told)[-3:] == [
        "an IP packet of at most 1450 bytes fits",
        "larger than the egress MTU once encapsulated (REASON_TOO_BIG at tunnel t)",
        "an answer is written in its place; out of veth-a",
    ]
    assert (told.reason, told.sentence) == ("REASON_TOO_BIG", "an answer is sent out of veth-a")
    assert told.summary == trace_module.headers.describe_frame(answer)
    silent = record(TraceStep.UNANSWERED)
    told = tell(*start, silent, verdict=DROP)
    assert texts(told)[-1] == (
        "its sender isn't told: it may be fragmented, is an error or a later fragment, or can't be reached"
    )
    assert told.sentence == f"dropped: {caption_of('REASON_TOO_BIG')}"
    assert (told.leaves, told.interface, told.summary) == (None, None, None)
    in_green = record(TraceStep.PORT, 11, 1, 2)
    told = tell(in_green, *packet_records("10.1.0.1"), silent, port="veth-b", verdict=DROP)
    assert "network green has no IPv4 gateway address" in texts(told)[-1]


@pytest.mark.parametrize(
    ("records", "why"),
    [
        (
            (record(TraceStep.NO_PORT, 10),),
            "the loaded tables don't have its interface as a port of this role",
        ),
        ((PORT, record(TraceStep.UNPARSED, 30)), "it is cut short"),
        ((PORT, record(TraceStep.PACKET, 0, 0, 60)), "it is no IP packet"),
        (
            (PORT, *packet_records("10.5.5.5"), record(TraceStep.NEXT_HOP)),
            "network blue doesn't know 10.5.5.5",
        ),
        (
            (PORT, *packet_records("10.1.0.7"), record(TraceStep.NEXT_HOP, 2, NextHopKind.PASS)),
            "the route or flow says pass",
        ),
        (
            (PORT, record(TraceStep.QUESTION, 4, address="10.1.0.7"), record(TraceStep.NEXT_HOP, 2, 4)),
            "nobody answers for that address here",
        ),
        (
            (PORT, *packet_records("10.1.0.2"), record(TraceStep.NEXT_HOP, 2, NextHopKind.PORT, 10)),
            "the address is behind the port that it came in by",
        ),
        (
            (UPLINK, record(TraceStep.NOT_FOR_US)),
            "the frame is for another MAC address than that of veth-a",
        ),
    ],
)
def test_why_a_packet_is_left_to_the_kernel(tell, records, why):
    assert tell(*records).sentence == f"left to the kernel as it came: {why}"


def test_a_packet_that_the_kernel_routes_on_is_changed(tell, node):
    slot, counter = slots(node)["u"]
    told = tell(
        PORT,
        record(TraceStep.TUNNEL, slot, counter, 92),
        record(TraceStep.TO_STACK, 50),
        data=bytes(50) + FRAME,
    )
    assert told.sentence == "handed to the kernel, changed: the kernel routes it on"
    assert told.summary is not None and "vxlan(flags=0x08,vni=0x7)" in told.summary
    assert told.interface is None


def test_steps_that_had_no_room_are_a_warning(node, kernel):
    kernel.traced.answers.append(TracedRun(PASS, FRAME, (PORT,), lost=3))
    assert node.trace("veth-a", FRAME).warnings == ("3 further steps had no room in the record",)


def test_an_aborted_program_is_told(tell):
    assert tell(PORT, verdict=ABORTED).sentence == "aborted: what the programs never say"


# ---- Node.trace ----------------------------------------------------------------------------------------


def test_the_programs_get_the_packet_with_the_port(node, kernel):
    node.trace("eth0", FRAME)
    node.trace("veth-a", FRAME)
    slot = node.store.read().allocations.ports
    assert kernel.traced.packets == [
        ("uplink", FRAME, 2, slot["eth0"].slot),
        ("access", FRAME, 10, slot["veth-a"].slot),
    ]


@pytest.mark.parametrize("size", [0, 13, PACKET_MAX + 1, 65536])
def test_a_packet_that_cant_be_run_is_refused(node, kernel, size):
    with pytest.raises(InvalidPacket, match=f"a packet of {size} bytes can't be traced"):
        node.trace("veth-a", bytes(size))
    assert not kernel.traced.packets


def test_without_a_data_plane_or_a_port_there_is_nothing_to_trace(kernel, node):
    with pytest.raises(NotFound, match="instance other has no data plane loaded"):
        Node("other", kernel=kernel).trace("veth-a", FRAME)
    with pytest.raises(NotFound, match="there is no port veth-c"):
        node.trace("veth-c", FRAME)
    del kernel.links["veth-a"]
    with pytest.raises(NotFound, match="there is no interface veth-a"):
        node.trace("veth-a", FRAME)
    kernel.root = False
    with pytest.raises(MptmError, match="needs root"):
        node.trace("eth0", FRAME)


def test_what_makes_a_trace_doubtful_is_a_warning(node, kernel):
    assert node.trace("veth-a", FRAME).warnings == ()
    kernel.planes["default"].upgrade_needed = True
    (warning,) = node.trace("veth-a", FRAME).warnings
    assert "of another build" in warning and "`mptm restore` switches" in warning
    kernel.planes["default"].upgrade_needed = False
    del kernel.planes["default"].attached["veth-a"]
    (warning,) = node.trace("veth-a", FRAME).warnings
    assert "no program of ours is attached to veth-a" in warning
    assert node.trace("eth0", FRAME).warnings == ()


def test_what_a_description_may_leave_out_is_known_of_the_port(node, kernel):
    with node.tracer("veth-a") as tracer:
        known = tracer.defaults
    assert (known.source_mac.hex(), known.destination_mac.hex()) == ("02000000010a", "02000000000a")
    assert known.sources == {4: "10.1.0.2", 6: "fd00::2"}
    with node.tracer("eth0") as tracer:
        known = tracer.defaults
    assert (known.source_mac, known.destination_mac.hex(), known.sources) == (
        trace_module.PACKET_MIN and bytes.fromhex("020000000001"),
        "020000000002",
        {},
    )


def test_the_mac_of_a_route_is_that_of_its_workload(node, kernel):
    node.replace(Port(name="veth-a", role="access", network="blue", mac="02:00:00:00:00:fe"))
    node.replace(Route(network="blue", prefix="10.1.0.2/32", port="veth-a", mac="02:00:00:00:00:99"))
    kernel.links["veth-a"] = kernel.links["dummy0"].__class__(
        ifindex=10, name="veth-a", mac=bytes(6), mtu=1500, kind="tun"
    )
    with node.tracer("veth-a") as tracer:
        known = tracer.defaults
    assert (known.source_mac.hex(), known.destination_mac.hex()) == ("020000000099", "0200000000fe")


# ---- the command -----------------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(node: Node, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        status = cli.run(["trace", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_a_packet_is_told_as_a_list(run, kernel, node):
    slot, counter = slots(node)["t"]
    kernel.traced.answers.append(
        TracedRun(
            REDIRECT,
            bytes(50) + FRAME,
            (PORT, record(TraceStep.TUNNEL, slot, counter, 92), record(TraceStep.ENCAPSULATED, 2, 50)),
        )
    )
    status, out, err = run("veth-a", FRAME.hex(" ", 2))
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "42 bytes come in at veth-a"
    assert lines[1].startswith("  eth(dst=02:00:00:00:00:0a,")
    assert lines[2:6] == [
        "  1  port          veth-a is an access port of network blue",
        "  2  tunnel        tunnel t (geneve to 10.30.30.2): the frame comes to 92 bytes, 1514 fit",
        "  3  encapsulated  50 bytes of outer header are put in front; out of eth0",
        "verdict: sent out of eth0 (XDP_REDIRECT)",
    ]
    assert lines[6] == "92 bytes leave by eth0"
    assert lines[8] == "  0000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00"
    assert len(lines) == 8 + 6


def test_words_and_standard_input_are_a_packet_too(run, kernel, monkeypatch):
    assert run("veth-a", *FRAME.hex(" ", 2).split())[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(FRAME.hex(":")))
    assert run("veth-a", "-")[0] == 0
    assert [packet for _, packet, _, _ in kernel.traced.packets] == [FRAME, FRAME]


def test_a_description_is_built_with_what_the_port_knows(run, kernel):
    assert run("veth-a", "--scapy", 'IP(dst="10.1.0.1")/UDP(sport=1000,dport=53)')[0] == 0
    assert kernel.traced.packets[0][1] == FRAME


def test_json_is_a_list_with_an_object_per_packet(run, kernel, tmp_path):
    status, out, err = run("veth-a", FRAME.hex(), "--json")
    (document,) = json.loads(out)
    assert (status, err) == (0, "")
    assert document["packet"]["hex"] == FRAME.hex()
    assert (document["number"], document["verdict"], document["error"]) == (1, "pass", None)
    assert document["leaves"]["hex"] == FRAME.hex()
    status, out, _ = run("veth-a", FRAME.hex(), "--json", "--decode")
    assert "###[ UDP ]###" in json.loads(out)[0]["leaves"]["decoded"]


def test_a_capture_goes_through_packet_by_packet(run, kernel, tmp_path):
    big, small = bytes(PACKET_MAX + 1), bytes(13)
    frames = [FRAME, big, FRAME + b"dropped", small, FRAME]
    with (tmp_path / "in.pcap").open("wb") as file:
        writer = CaptureWriter(file, "out.pcap")
        for frame in frames:
            writer.write(frame, 0)
    kernel.traced.answers += [
        TracedRun(REDIRECT, FRAME[::-1], (PORT,)),
        TracedRun(DROP, FRAME, (PORT,)),
        TracedRun(PASS, FRAME, (PORT,)),
    ]
    status, out, err = run(
        "veth-a", "--pcap-in", str(tmp_path / "in.pcap"), "--pcap-out", str(tmp_path / "out.pcap")
    )
    assert status == 1
    assert err.splitlines() == [
        f"mptm: packet 2: a packet of {PACKET_MAX + 1} bytes can't be traced: it needs 14 to {PACKET_MAX}",
        f"mptm: packet 4: a packet of 13 bytes can't be traced: it needs 14 to {PACKET_MAX}",
    ]
    assert out.splitlines()[-1] == "5 packets: 1 sent, 2 not traced, 1 dropped, 1 handed to the kernel"
    assert "packet 3: 49 bytes come in at veth-a" in out
    assert [bytes(each) for each in rdpcap(str(tmp_path / "out.pcap"))] == [FRAME[::-1], FRAME]
    status, out, _ = run("veth-a", "--pcap-in", str(tmp_path / "in.pcap"), "--json")
    assert [(each["number"], bool(each["error"])) for each in json.loads(out)] == [
        (1, False), (2, True), (3, False), (4, True), (5, False),
    ]  # fmt: skip
    status, out, _ = run("veth-a", "--pcap-in", str(tmp_path / "in.pcap"), "--json", "--count", "1")
    assert (status, len(json.loads(out))) == (0, 1)


def test_a_capture_that_ends_in_the_middle_is_told_as_far_as_it_goes(run, tmp_path):
    path = tmp_path / "in.pcap"
    wrpcap(str(path), [Ether(FRAME)] * 2)
    path.write_bytes(path.read_bytes()[:-1])
    status, out, err = run("veth-a", "--pcap-in", str(path), "--json")
    assert (status, len(json.loads(out))) == (1, 1)
    assert err == f"mptm: error: {path} ends in the middle, behind packet 1\n"
    status, out, err = run("veth-a", "--pcap-in", str(path))
    assert (status, out.count("come in at veth-a")) == (1, 1)


def test_a_frame_of_which_not_all_was_captured_isnt_traced(run, kernel, tmp_path):
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 20, 1)
    (tmp_path / "in.pcap").write_bytes(header + struct.pack("<IIII", 1, 0, 20, len(FRAME)) + FRAME[:20])
    status, _, err = run("veth-a", "--pcap-in", str(tmp_path / "in.pcap"))
    assert (status, kernel.traced.packets) == (1, [])
    assert err == "mptm: packet 1: only 20 of 42 bytes were captured (tcpdump -s 0 captures all)\n"


def test_warnings_are_said_and_in_the_document(run, kernel):
    kernel.planes["default"].upgrade_needed = True
    status, out, err = run("veth-a", FRAME.hex(), "--json")
    assert status == 0
    assert err.startswith("mptm: warning: the attached programs are of another build")
    assert json.loads(out)[0]["warnings"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["veth-a"], "give one of PACKET, --scapy and --pcap-in"),
        (["veth-a", "00", "--scapy", "IP()"], "give one of PACKET"),
        ([], "Missing argument 'PORT'"),
        (["veth-a", "00", "--count", "3"], "--count goes with --pcap-in"),
        (["veth-a", "--pcap-in", "x", "--count", "0"], "--count"),
        (["veth-a", "123"], "half a byte is missing"),
        (["veth-a", "xyz"], "no hexadecimal digit"),
        (["veth-a", "0102"], "a packet of 2 bytes can't be traced"),
        (["veth-a", "--scapy", "os.system('x')"], "begins with a layer|has no place"),
        (["veth-a", "--scapy", "IP()"], "needs dst"),
        (["veth-a", "--scapy", 'IP(dst="10.1.0.1")/Raw(b"x"*5000)'], "a packet of 5034 bytes"),
    ],
)
def test_wrong_usage_is_status_2(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert any(each in err for each in message.split("|"))
    assert "Traceback" not in err


def test_files_that_cant_be_read_or_written_are_status_1(run, kernel, tmp_path):
    (tmp_path / "empty.pcap").write_bytes(b"")
    wrpcap(str(tmp_path / "in.pcap"), [Ether(FRAME)])
    (tmp_path / "none.pcap").write_bytes((tmp_path / "in.pcap").read_bytes()[:24])
    for arguments, message in (
        (["--pcap-in", str(tmp_path / "nothere.pcap")], "nothere.pcap can't be read: No such file"),
        (["--pcap-in", str(tmp_path)], "can't be read: Is a directory"),
        (["--pcap-in", str(tmp_path / "empty.pcap")], "empty.pcap is empty"),
        (["--pcap-in", str(tmp_path / "none.pcap")], "none.pcap has no packets in it"),
        (["--pcap-in", __file__], "is no capture file"),
        ([FRAME.hex(), "--pcap-out", str(tmp_path / "no" / "dir.pcap")], "can't be written: No such file"),
    ):
        status, out, err = run("veth-a", *arguments)
        assert (status, out) == (1, ""), arguments
        assert err.startswith("mptm: error: ") and message in err
    status, _, err = run(
        "veth-a", "--pcap-in", str(tmp_path / "in.pcap"), "--pcap-out", str(tmp_path / "in.pcap")
    )
    assert status == 2 and "would overwrite" in err
    assert not kernel.traced.packets


def test_a_full_disk_is_told(run):
    status, _, err = run("veth-a", FRAME.hex(), "--pcap-out", "/dev/full")  # a device of Linux: full(4)
    assert (status, err) == (1, "mptm: error: /dev/full can't be written: No space left on device\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["veth-z", FRAME.hex()], "there is no port veth-z"),
        (["--instance", "other", "trace", "veth-a", FRAME.hex()], "instance other has no data plane loaded"),
    ],
)
def test_a_port_or_instance_that_isnt_there_is_status_1(node, capsys, arguments, message):
    status = cli.run(arguments if "trace" in arguments else ["trace", *arguments])
    captured = capsys.readouterr()
    assert (status, captured.out) == (1, "")
    assert f"mptm: error: {message}" in captured.err.splitlines()


def test_a_long_packet_is_shown_in_part(run, kernel):
    kernel.traced.answers.append(TracedRun(REDIRECT, bytes(1000), (PORT,)))
    _, out, _ = run("veth-a", FRAME.hex())
    assert out.splitlines()[-1] == "  744 bytes more: --pcap-out and --json have all"


def test_the_command_starts_without_scapy_and_the_kernel_layer():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from mptm.cli.root import mptm\n"
            "mptm.get_command(None, 'trace')\n"
            "print([name for name in sys.modules if name.split('.')[0] in ('scapy', 'pyroute2', 'msgspec')])\n",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_a_step_is_plain_data():
    step = Step("port", "veth-a is a port", {"port": "veth-a"}, "because")
    assert step.to_dict() == {"step": "port", "text": "veth-a is a port", "port": "veth-a"}
