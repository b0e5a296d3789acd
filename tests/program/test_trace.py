# SPDX-License-Identifier: GPL-2.0-only
"""The traced programs do what the real ones do, and leave no mark on what the real ones have."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from packets import (
    carriers,
    carries,
    far_end,
    frame,
    inner_kinds,
    ip,
    journeys,
    tunnel,
)
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from test_neighbour import solicit
from world import (
    LOCAL,
    LOCAL_MAC,
    OUR_MAC,
    OURS,
    REMOTE,
    REMOTE_MAC,
    STRANGER,
    THEIRS,
    VERDICTS,
    Result,
    World,
)

from mptm.errors import MptmError
from mptm.intent import Flow, Group, Member, Network, Route
from mptm.kernel import libbpf, netns, tracing
from mptm.kernel.dataplane import DataPlane
from mptm.kernel.tracing import SHARED, TracedPrograms, TracedRun
from mptm.reasons import Reason
from mptm.template import PatchOp
from mptm.trace import PACKET_MAX, TraceStep

INNER = inner_kinds()
BLUE = Network(name="blue", id=1, gateway=("10.250.1.1", "fd00:250:1::1"))
ROUTES = [Route(network="blue", prefix=THEIRS[version], via="to-node2") for version in (4, 6)]
HOSTS = [Route(network="blue", prefix=THEIRS[version], port="c2") for version in (4, 6)]
HERE = [Route(network="blue", prefix=OURS[version], port="c1") for version in (4, 6)]
MANGLED = 10
"""Mutations of a packet."""


@dataclass
class Bench:
    """A node and its traced programs."""

    world: World
    traced: TracedPrograms

    def trace(self, port: str, packet: Packet | bytes) -> TracedRun:
        role = "uplink" if port in World.UPLINKS else "access"
        ifindex = self.world.links[port].ifindex
        self.traced.take_sequences(self.world.data_plane)
        with netns.inside(self.world.namespace):
            return self.traced.run(
                role, bytes(packet), ifindex=ifindex, slot=self.world.allocations.ports[port].slot
            )

    def marks(self) -> dict[str, Any]:
        """What a packet would leave: the values of a few slots, where there are many and none is used."""
        maps = self.world.data_plane.maps
        slots = [held.slot for held in self.world.allocations.ports.values()]
        counters = [held.counter for held in self.world.allocations.tunnels.values()]
        used = {
            "port_counters": slots,
            "answer_times": slots,
            "tunnel_counters": counters,
            "sequences": counters,
        }
        found: dict[str, Any] = {
            name: [maps[name].get(maps[name].key.pack(slot)) for slot in at] for name, at in used.items()
        }
        return found | {"drops": maps["drops"].items()}

    def both(self, port: str, packet: Packet | bytes) -> tuple[TracedRun, Result]:
        """A packet is traced, then run: with one outcome, and without a mark by the first."""
        before = self.marks()
        traced = self.trace(port, packet)
        between = self.marks()
        assert between == before, "a trace left a mark"
        real = self.world.send(port, packet)
        assert VERDICTS[traced.verdict] == real.verdict
        assert self.comparable(traced.data) == self.comparable(real.data)
        drops = self.world.data_plane.maps["drops"]
        counted = [
            Reason(drops.key.unpack(key)["reason"]).name
            for key, value in drops.items().items()
            if value != between["drops"].get(key)
        ]
        assert reasons_of(traced) == counted
        assert not traced.lost
        return traced, real

    def comparable(self, frame_: bytes) -> bytes:
        """Without what differs from run to run: random identifications and the time."""
        data = bytearray(frame_)
        table = self.world.data_plane.maps["tunnels"]
        for held in self.world.allocations.tunnels.values():
            record = table.value.unpack(table.get(table.key.pack(held.slot)) or b"")
            if record["outer_len"] and data[:14] == record["outer"][:14]:
                for patch in record["patches"][: record["patch_count"]]:
                    at = patch["offset"]
                    if patch["op"] == PatchOp.IPV4_ID:
                        data[at : at + 2] = data[at + 6 : at + 8] = b"\0\0"
                    elif patch["op"] == PatchOp.ERSPAN_TIME:
                        data[at : at + 4] = bytes(4)
        return bytes(data)


def reasons_of(traced: TracedRun) -> list[str]:
    return [Reason(each.values[0]).name for each in traced.records if each.step == TraceStep.REASON]


def steps_of(traced: TracedRun) -> list[TraceStep]:
    """Without what only says more of the step before."""
    more = (TraceStep.SOURCE, TraceStep.OUTER_DESTINATION)
    return [TraceStep(each.step) for each in traced.records if each.step not in more]


@contextlib.contextmanager
def bench(world: World) -> Iterator[Bench]:
    with TracedPrograms.load(world.data_plane) as traced:
        yield Bench(world, traced)


@pytest.fixture(scope="module")
def here(node: World) -> Iterator[Bench]:
    with bench(node) as made:
        yield made


@pytest.fixture(scope="module")
def there(peer: World) -> Iterator[Bench]:
    with bench(peer) as made:
        yield made


# ---- every protocol ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("protocol", "underlay", "kind"), journeys(["udp4", "tcp6", "qinq6"]))
def test_every_protocol_is_traced_as_it_goes_both_ways(here, there, protocol, underlay, kind):
    here.world.apply(BLUE, tunnel(protocol, underlay, remotes=REMOTE), *ROUTES)
    there.world.apply(BLUE, far_end(protocol, underlay), *HOSTS)
    traced, sent = here.both("c1", INNER[kind])
    assert sent.verdict == "REDIRECT"
    assert steps_of(traced) == [
        TraceStep.PORT, TraceStep.PACKET, TraceStep.NEXT_HOP, TraceStep.TUNNEL, TraceStep.ENCAPSULATED,
    ]  # fmt: skip
    arrived, received = there.both("up0", sent.data)
    assert received.verdict == "REDIRECT"
    assert steps_of(arrived) == [
        TraceStep.PORT, TraceStep.OUTER, TraceStep.HEADER, TraceStep.TERMINATION, TraceStep.ECN,
        TraceStep.PACKET, TraceStep.NEXT_HOP, TraceStep.STRIPPED, TraceStep.DELIVERED,
    ]  # fmt: skip
    (taken,) = (each for each in arrived.records if each.step == TraceStep.TERMINATION)
    assert taken.values[:2] == (1, there.world.allocations.tunnels["to-node1"].counter)


@pytest.mark.parametrize(("protocol", "underlay"), carriers())
def test_mangled_packets_of_every_protocol_have_the_verdict_and_reason_of_the_real_program(
    here, there, protocol, underlay
):
    kind = "udp6" if carries(protocol, underlay, 6) else "udp4"
    here.world.apply(tunnel(protocol, underlay, remotes=REMOTE), *ROUTES)
    there.world.apply(far_end(protocol, underlay), *HOSTS)
    whole = here.world.send("c1", INNER[kind]).data
    chance = random.Random(f"{protocol} {underlay}")
    for _ in range(MANGLED):
        packet = bytearray(whole[: chance.choice((len(whole), chance.randrange(14, len(whole))))])
        for _ in range(chance.choice((0, 1, 1, 2))):
            packet[chance.randrange(12, len(packet))] = chance.randrange(256)
        there.both("up0", bytes(packet))


# ---- what else happens to packets --------------------------------------------------------------------------


def vxlan(inner: Packet, *, source: str = REMOTE[4], vni: int = 0x1234) -> bytes:
    """What node 2 sends."""
    from scapy.layers.vxlan import VXLAN

    outer = Ether(src=REMOTE_MAC, dst=LOCAL_MAC) / IP(src=source, dst=LOCAL[4])
    return bytes(outer / UDP(sport=50000, dport=4789) / VXLAN(vni=vni, flags=8) / inner)


def from_them(destination: str, **fields: Any) -> Packet:
    return frame(ip(4, THEIRS[4], destination, **fields) / UDP(sport=1, dport=2) / Raw(b"x" * 40))


def to_gateway(kind: Packet) -> Packet:
    return frame(ip(4, None, "10.250.1.1") / kind)


BIG = frame(ip(4, flags="DF") / UDP() / Raw(bytes(1472)))
ON = tunnel("geneve", name="on", remotes={4: "10.30.30.9"})
SCENES: dict[str, tuple[Sequence[Any], str, Packet | bytes, str, list[str]]] = {
    "no route": ((), "c1", INNER["udp4"], "PASS", ["NEXT_HOP"]),
    "no IP": ((), "c1", frame(Raw(bytes(46))), "PASS", ["PACKET"]),
    "cut short": ((), "c1", bytes(INNER["udp4"])[:30], "PASS", ["UNPARSED"]),
    "ARP": (ROUTES, "c1", frame(ARP(hwsrc=OUR_MAC, psrc=OURS[4], pdst=THEIRS[4])), "REDIRECT",
            ["QUESTION", "NEXT_HOP", "ANSWERED"]),
    "solicitation": (ROUTES, "c1", solicit(THEIRS[6]), "REDIRECT", ["QUESTION", "NEXT_HOP", "ANSWERED"]),
    "solicitation for nobody": (ROUTES, "c1", solicit("fd00:250:1::77"), "PASS", ["QUESTION", "NEXT_HOP"]),
    "ping of the gateway": ((), "c1", to_gateway(ICMP()), "REDIRECT", ["NEXT_HOP", "ANSWERED"]),
    "too big": (ROUTES, "c1", BIG, "REDIRECT", ["NEXT_HOP", "TUNNEL", "TOO_BIG", "REASON", "ANSWERED"]),
    "too big and may be fragmented": (ROUTES, "c1", frame(ip(4) / UDP() / Raw(bytes(1472))), "DROP",
                                      ["TUNNEL", "TOO_BIG", "REASON", "UNANSWERED"]),
    "too big for a port": (HOSTS, "c1", frame(ip(4, flags="DF") / UDP() / Raw(bytes(1480))), "REDIRECT",
                           ["NEXT_HOP", "TOO_BIG", "REASON", "ANSWERED"]),
    "to another port": (HOSTS, "c1", INNER["udp6"], "REDIRECT", ["NEXT_HOP", "DELIVERED"]),
    "route that drops": ([Route(network="blue", prefix=THEIRS[4], drop=True)], "c1", INNER["udp4"], "DROP", ["REASON"]),
    "flow": ([Flow(network="blue", source=OURS[4], destination=THEIRS[4], via="to-node2")], "c1", INNER["udp4"],
             "REDIRECT", ["NEXT_HOP", "TUNNEL", "ENCAPSULATED"]),
    "prefix": ([Route(network="blue", prefix="10.250.0.0/16", via="to-node2")], "c1", INNER["udp4"], "REDIRECT",
               ["NEXT_HOP", "TUNNEL", "ENCAPSULATED"]),
    "group": ([Group(name="g", network="blue", members=(Member(tunnel="to-node2"),)),
               Route(network="blue", prefix=THEIRS[4], group="g")], "c1", INNER["udp4"], "REDIRECT",
              ["NEXT_HOP", "GROUP", "TUNNEL", "ENCAPSULATED"]),
    "relay": ([ON, Route(network="blue", prefix="10.9.9.9/32", via="on", relay=True)], "up0",
              vxlan(from_them("10.9.9.9")), "REDIRECT",
              [ "ECN", "PACKET", "NEXT_HOP", "STRIPPED", "RELAYED", "TUNNEL", "ENCAPSULATED"]),
    "relay without leave": ([ON,
                             Route(network="blue", prefix="10.9.9.9/32", via="on")], "up0",
                            vxlan(from_them("10.9.9.9")), "DROP", ["NEXT_HOP", "REASON"]),
    "relay that is too big": ([ON, *ROUTES,
                               Route(network="blue", prefix="10.9.9.9/32", via="on", relay=True)], "up0",
                              vxlan(frame(ip(4, THEIRS[4], "10.9.9.9", flags="DF") / UDP() / Raw(bytes(1430)))),
                              "REDIRECT", ["RELAYED", "TUNNEL", "TOO_BIG", "REASON", "ANSWERED_BACK", "TUNNEL",
                                           "ENCAPSULATED"]),
    "unknown sender": (HERE, "up0", vxlan(from_them(OURS[4]), source=STRANGER[4]), "PASS",
                       ["OUTER", "HEADER", "REASON"]),
    "unknown VNI": (HERE, "up0", vxlan(from_them(OURS[4]), vni=9), "PASS", ["OUTER", "HEADER", "REASON"]),
    "unknown destination": (HERE, "up0", vxlan(from_them("10.250.1.77")), "DROP", ["NEXT_HOP", "REASON"]),
    "solicitation out of a tunnel": ([*HERE, *ROUTES], "up0", vxlan(Ether(bytes(solicit(OURS[6], sender=THEIRS[6])))),
                                     "REDIRECT", ["QUESTION", "NEXT_HOP", "STRIPPED", "ANSWERED_BACK", "TUNNEL",
                                                  "ENCAPSULATED"]),
    "for another MAC": (HERE, "up0", b"\x02\xee" + vxlan(from_them(OURS[4]))[2:], "PASS", ["HEADER", "NOT_FOR_US"]),
    "no tunnel packet": (HERE, "up0", Ether(src=REMOTE_MAC, dst=LOCAL_MAC) / INNER["tcp4"][IP], "PASS",
                         ["NOT_LISTENING"]),
    "to the kernel": ([Route(network="blue", prefix=OURS[4], pass_=True)], "up0", vxlan(from_them(OURS[4])), "PASS",
                      ["NEXT_HOP", "STRIPPED", "TO_STACK"]),
    "into a tunnel that the kernel routes": ([tunnel("geneve", name="on", remotes={4: "10.30.30.9"}, to_stack=True),
                                                Route(network="blue", prefix=THEIRS[4], via="on")], "c1", INNER["udp4"],
                                               "PASS", ["NEXT_HOP", "TUNNEL", "TO_STACK"]),
}  # fmt: skip
"""Name -> what is configured beside VXLAN to node 2, where what comes in, verdict, the last steps."""


@pytest.mark.parametrize("scene", SCENES)
def test_scenes_are_traced_as_they_happen(here, scene):
    objects, port, packet, verdict, steps = SCENES[scene]
    here.world.apply(BLUE, tunnel("vxlan", remotes=REMOTE), *objects)
    traced, real = here.both(port, packet)
    assert real.verdict == verdict
    assert [step.name for step in steps_of(traced)[-len(steps) :]] == steps


def sequence_of(data: bytes) -> int:
    """Of GRE over IPv4 with checksum and key, which stand before it (RFC 2890 §2)."""
    at = 14 + 20 + 12
    return int.from_bytes(data[at : at + 4])


def next_sequence(here: Bench) -> int:
    table = here.world.data_plane.maps["sequences"]
    held = table.get(table.key.pack(here.world.allocations.tunnels["to-node2"].counter))
    return int(table.value.unpack(held or b"")["value"])


def test_the_sequence_number_is_the_next_real_one_and_stays_it(here):
    here.world.apply(tunnel("gre all", remotes=REMOTE), *ROUTES)
    first = next_sequence(here)
    for expected in range(first, first + 3):
        for _ in range(3):
            assert sequence_of(here.trace("c1", INNER["udp4"]).data) == expected
        assert sequence_of(here.world.send("c1", INNER["udp4"]).data) == expected


def test_in_a_row_of_traced_packets_sequence_numbers_go_on(here):
    here.world.apply(tunnel("gre all", remotes=REMOTE), *ROUTES)
    here.traced.take_sequences(here.world.data_plane)
    slot = here.world.allocations.ports["c1"].slot
    found = []
    with netns.inside(here.world.namespace):
        for _ in range(3):
            run = here.traced.run(
                "access", bytes(INNER["udp4"]), ifindex=here.world.links["c1"].ifindex, slot=slot
            )
            found.append(sequence_of(run.data))
    first = next_sequence(here)
    assert found == [first, first + 1, first + 2]


def test_every_traced_packet_that_is_too_big_is_answered(here):
    """Where the real ones have a limit; that of the port isn't used up by traces."""
    here.world.apply(BLUE, tunnel("vxlan", remotes=REMOTE), *ROUTES)
    assert {VERDICTS[here.trace("c1", BIG).verdict] for _ in range(40)} == {"REDIRECT"}
    assert here.world.send("c1", BIG).verdict == "REDIRECT"


def test_a_packet_says_nothing_of_the_one_before(here):
    here.world.apply(BLUE, tunnel("vxlan", remotes=REMOTE), *ROUTES)
    alone = here.trace("c1", frame(Raw(bytes(46))))
    here.trace("c1", INNER["udp6"])
    assert here.trace("c1", frame(Raw(bytes(46)))) == alone


@pytest.mark.parametrize("size", [14, 60, PACKET_MAX])
def test_packets_of_every_size_run(here, size):
    here.world.apply(BLUE)
    packet = frame(Raw(bytes(size - 14)))
    traced, real = here.both("c1", packet)
    assert (real.verdict, traced.data) == ("PASS", bytes(packet))


def test_tables_that_change_are_traced_as_they_are_then(here):
    here.world.apply(BLUE)
    assert VERDICTS[here.trace("c1", INNER["udp4"]).verdict] == "PASS"
    here.world.apply(BLUE, tunnel("vxlan", remotes=REMOTE), *ROUTES)
    assert VERDICTS[here.trace("c1", INNER["udp4"]).verdict] == "REDIRECT"


def test_no_table_of_the_node_changes_in_any_entry(here):
    here.world.apply(BLUE, tunnel("gre all", remotes=REMOTE), *ROUTES, *HERE)
    maps = here.world.data_plane.maps
    before = {name: each.items() for name, each in maps.items()}
    for packet in (*INNER.values(), BIG, solicit(THEIRS[6])):
        here.trace("c1", packet)
        here.trace("up0", here.trace("c1", packet).data)
    assert {name: each.items() for name, each in maps.items()} == before


def test_nothing_of_it_is_pinned_and_nothing_stays(node):
    root = f"/sys/fs/bpf/mptm/{node.instance}"
    before = sorted(os.listdir(f"{root}/maps") + os.listdir(f"{root}/progs"))
    with TracedPrograms.load(node.data_plane) as traced:
        programs = [libbpf.program_info(fd).id for fd in traced._programs.values()]
        assert all(libbpf.program_info_by_id(each) for each in programs)
    assert sorted(os.listdir(f"{root}/maps") + os.listdir(f"{root}/progs")) == before
    assert not any(libbpf.program_info_by_id(each) for each in programs)


def test_what_the_programs_write_is_their_own(node):
    with TracedPrograms.load(node.data_plane) as traced:
        for name, each in traced._maps.items():
            theirs = node.data_plane.maps.get(name)
            is_shared = theirs is not None and theirs.info.id == each.info.id
            assert is_shared == (name in SHARED), name


def test_tables_of_another_layout_are_refused_with_what_to_do(dataplane: DataPlane, monkeypatch):
    monkeypatch.setattr(
        tracing, "compatible_maps", lambda shared, *_: {each.name for each in shared} - {"groups"}
    )
    with pytest.raises(MptmError, match="another build, whose table groups this one can't read") as error:
        TracedPrograms.load(dataplane)
    assert error.value.hint == "`mptm restore` switches to this build"
