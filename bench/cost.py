# SPDX-License-Identifier: GPL-2.0-only
"""What a packet costs: nanoseconds of encapsulation and decapsulation over adjust_head + redirect_map.

The programs run by BPF_PROG_TEST_RUN on one packet, again and again; bench.bpf.c undoes what they did in between.
Every program is measured between two runs of its floor, in turns with all others, and the medians count. On a shared
machine somebody else's work can slow everything down for seconds: a sample is undisturbed when both floors around it
are near the lowest that was seen for its case. Samples are chosen by their floors only, never by what is measured.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, cast

import msgspec
from frames import udp_frame
from namespaces import Namespaces, ip
from settings import variables

from mptm import sync
from mptm.compile import Allocations, compile_tables
from mptm.errors import MptmError
from mptm.facts import Facts, Link, Path
from mptm.intent import Intent, Network, Port, Route, Tunnel, tunnel_from_dict
from mptm.kernel import libbpf, netns, testrun
from mptm.kernel.hashtable import open_maps
from mptm.kernel.objects import DATA_PLANE, object_path
from mptm.protocols import PROTOCOLS

BENCH = "bench.o"
ENCAP, DECAP = "encap", "decap"
XDP_REDIRECT = 4
RESTORED_LEN = 16  # bytes that bench.bpf.c puts back
UNDISTURBED = 1.1  # times the least floor
ENOUGH = 5

NEAR, FAR = "near", "far"
UNDERLAY = {4: {NEAR: "10.30.30.1", FAR: "10.30.30.2"}, 6: {NEAR: "fd00:30:30::1", FAR: "fd00:30:30::2"}}
INNER = {4: {NEAR: "10.250.1.100", FAR: "10.250.1.101"}, 6: {NEAR: "fd00:250:1::100", FAR: "fd00:250:1::101"}}
UPLINK_MAC = {NEAR: bytes.fromhex("020000300001"), FAR: bytes.fromhex("020000300002")}
WORKLOAD_MAC = {NEAR: bytes.fromhex("02000000c101"), FAR: bytes.fromhex("02000000c102")}
GATEWAY_MAC = bytes.fromhex("020000009901")
IFINDEX = {(NEAR, "c1"): 10, (NEAR, "up0"): 11, (FAR, "c1"): 12, (FAR, "up0"): 13}
MTU = 1500


@dataclass(frozen=True)
class Case:
    """A direction of a protocol over an underlay (IP version, or None without IP) with an inner IP version."""

    protocol: str
    underlay: int | None
    inner: int
    direction: str


@dataclass(frozen=True)
class Cost:
    """Nanoseconds per packet, medians of the undisturbed samples (at least of the ENOUGH best), without the undoing.

    `over_ns` is the median of the differences of neighbours in time, `low_ns` and `high_ns` are their quartiles;
    `over_all_ns` is the median of all samples, the disturbed ones too.
    """

    case: Case
    program_ns: float
    floor_ns: float
    over_ns: float
    low_ns: float
    high_ns: float
    over_all_ns: float
    samples: int
    undisturbed: int


def all_cases() -> list[Case]:
    """Every protocol that carries Ethernet frames.

    One that carries IP packets writes over the Ethernet header that it drops, and QinQ over more of the frame than
    bench.bpf.c puts back.
    """
    return [
        Case(name, underlay, inner, direction)
        for direction in (ENCAP, DECAP)
        for name, protocol in PROTOCOLS.items()
        if name != "qinq"
        for underlay in (protocol.underlays or (None,))
        if protocol.inner_families(_tunnel(name, UNDERLAY[underlay or 4][FAR]).options) is None
        for inner in (4, 6)
    ]


def _tunnel(protocol: str, remote: str) -> Tunnel:
    fields = {"name": "tunnel", "protocol": protocol, "network": "blue", "remote": remote}
    return tunnel_from_dict(fields | _required_options(protocol))


def measure(
    rounds: int, samples: int, repeat: int, deadline: float, progress: Callable[[str], None]
) -> list[Cost]:
    """Every case in `rounds`, with `samples` of `repeat` packets each time; no round begins after the deadline.

    `deadline` is a reading of time.monotonic().
    Raises MptmError when a program doesn't do with each packet what it is measured for.
    """
    with Namespaces() as namespaces:
        namespace = namespaces.add("cost")
        ip(
            namespace,
            [
                f"link add {side}-{port} index {index} type veth peer name {side}-{port}-far"
                for (side, port), index in IFINDEX.items()
            ],
        )
        with netns.inside(namespace):
            bench = Bench(repeat)
            found: dict[Case, list[_Sample]] = {case: [] for case in all_cases()}
            for number in range(rounds):
                if number and time.monotonic() > deadline:
                    progress("out of time: no further rounds")
                    break
                progress(
                    f"round {number + 1} of {rounds}: {len(found)} cases, {samples} x {repeat} packets each"
                )
                for case, sampled in found.items():
                    sampled += bench.sample(case, samples)
    return [_summary(case, sampled) for case, sampled in found.items()]


@dataclass(frozen=True)
class _Sample:
    program_ns: int
    floors_ns: tuple[int, int]
    undo_ns: int

    @property
    def floor_ns(self) -> float:
        return sum(self.floors_ns) / 2

    @property
    def over_ns(self) -> float:
        return self.program_ns - self.floor_ns


def _summary(case: Case, samples: Sequence[_Sample]) -> Cost:
    least = min(min(sample.floors_ns) for sample in samples)
    chosen = [sample for sample in samples if max(sample.floors_ns) <= least * UNDISTURBED]
    undisturbed = len(chosen)
    if undisturbed < ENOUGH:
        chosen = sorted(samples, key=lambda sample: max(sample.floors_ns))[:ENOUGH]
    undo = statistics.median(sample.undo_ns for sample in chosen)
    low, middle, high = statistics.quantiles((sample.over_ns for sample in chosen), n=4)
    return Cost(
        case,
        program_ns=statistics.median(sample.program_ns for sample in chosen) - undo,
        floor_ns=statistics.median(sample.floor_ns for sample in chosen) - undo,
        over_ns=middle,
        low_ns=low,
        high_ns=high,
        over_all_ns=statistics.median(sample.over_ns for sample in samples),
        samples=len(samples),
        undisturbed=undisturbed,
    )


class Bench:
    """Two nodes, whose tables hold one tunnel at a time. The process must be in the namespace of their links."""

    def __init__(self, repeat: int) -> None:
        self._repeat = repeat
        self._nodes = {NEAR: _Node(NEAR), FAR: _Node(FAR)}

    def sample(self, case: Case, count: int) -> list[_Sample]:
        """Measurements of a case and its floor. Raises MptmError when a packet takes another way."""
        near, far = self._nodes[NEAR], self._nodes[FAR]
        frame = udp_frame(
            GATEWAY_MAC,
            WORKLOAD_MAC[NEAR],
            ip_address(INNER[case.inner][NEAR]),
            ip_address(INNER[case.inner][FAR]),
        )
        near.configure(case)
        wire = near.run("mptm_encap_xdp", "c1", frame).data
        if case.direction == ENCAP:
            near.set_floor(len(frame) - len(wire), IFINDEX[NEAR, "up0"])
            return self._samples(case, near, "c1", frame, count)
        far.configure(case)
        far.set_floor(len(wire) - len(frame), IFINDEX[FAR, "c1"])
        return self._samples(case, far, "up0", wire, count)

    def _samples(self, case: Case, node: _Node, port: str, packet: bytes, count: int) -> list[_Sample]:
        def run(program: str) -> int:
            return node.run(program, port, packet, repeat=self._repeat).duration_ns

        undo_ns = run("bench_undo") - run("bench_pass")
        floors, programs = [run("bench_floor")], []
        for _ in range(count):
            programs.append(self._run_program(case, node, port, packet))
            floors.append(run("bench_floor"))
        return [
            _Sample(program, around, undo_ns)
            for program, around in zip(programs, itertools.pairwise(floors), strict=True)
        ]

    def _run_program(self, case: Case, node: _Node, port: str, packet: bytes) -> int:
        """Nanoseconds per packet, of packets that were all counted for the tunnel and came back as they were."""
        counter = f"{case.direction}_packets"
        before = node.tunnel_counters()[counter]
        run = node.run(f"bench_{case.direction}", port, packet, repeat=self._repeat)
        counted = node.tunnel_counters()[counter] - before
        if run.verdict != XDP_REDIRECT or counted != self._repeat:
            raise MptmError(
                f"{case}: of {self._repeat} packets {counted} went through the tunnel, the last one with verdict "
                f"{run.verdict}: it isn't the fast path that was measured"
            )
        if len(run.data) != len(packet) or run.data[:RESTORED_LEN] != packet[:RESTORED_LEN]:
            raise MptmError(f"{case}: the packet wasn't put back as it was")
        return run.duration_ns


class _Node:
    """The tables of one node, without anything attached."""

    upgrade_needed = False

    def __init__(self, side: str) -> None:
        self.side = side
        self.peer = FAR if side == NEAR else NEAR
        self._allocations = Allocations()
        with libbpf.Object(object_path(DATA_PLANE)) as real:
            real.load()
            self._programs = real.program_fds()
            self.maps = open_maps(real.map_fds())
        with libbpf.Object(object_path(BENCH)) as bench:
            for declared in bench.maps():
                bench.reuse_map(declared, self.maps[declared.name].fd)
            bench.load()
            self._programs |= bench.program_fds()
        self._variables = variables(self._programs["bench_floor"])
        self._links = {
            "c1": Link(IFINDEX[side, "c1"], "c1", GATEWAY_MAC, MTU, "veth", peer_mac=WORKLOAD_MAC[side]),
            "up0": Link(IFINDEX[side, "up0"], "up0", UPLINK_MAC[side], MTU, "veth"),
        }

    def configure(self, case: Case) -> None:
        """One tunnel of the case's kind to the other node, and both workloads known."""
        tunnel = _tunnel(case.protocol, UNDERLAY[case.underlay or 4][self.peer])
        bits = {4: 32, 6: 128}[case.inner]
        intent = Intent.of(
            [
                Network(name="blue", id=1),
                Port(name="c1", role="access", network="blue"),
                Port(name="up0", role="uplink"),
                tunnel,
                Route(network="blue", prefix=f"{INNER[case.inner][self.side]}/{bits}", port="c1"),
                Route(network="blue", prefix=f"{INNER[case.inner][self.peer]}/{bits}", via="tunnel"),
            ]
        )
        path = Path(
            egress_ifindex=IFINDEX[self.side, "up0"],
            local=ip_address(UNDERLAY[case.underlay or 4][self.side]),
            local_mac=UPLINK_MAC[self.side],
            gateway=None,
            next_hop_mac=UPLINK_MAC[self.peer],
            mtu=MTU,
        )
        compiled = compile_tables(intent, Facts(self._links, {"tunnel": path}), self._allocations)
        sync.apply(cast(Any, self), dataclasses.replace(compiled, attachments=[]), self._allocations)
        self._allocations = compiled.allocations

    def run(self, program: str, port: str, packet: bytes, *, repeat: int = 1) -> testrun.Run:
        """Packets that come in at a port."""
        return testrun.run(self._programs[program], packet, ifindex=IFINDEX[self.side, port], repeat=repeat)

    def set_floor(self, head_delta: int, egress_ifindex: int) -> None:
        """What bench_floor does from now on."""
        value = head_delta.to_bytes(4, "little", signed=True) + egress_ifindex.to_bytes(4, "little")
        self._variables.update({bytes(4): value})

    def tunnel_counters(self) -> dict[str, int]:
        """Packets and bytes of the tunnel."""
        table = self.maps["tunnel_counters"]
        return table.totals(table.key.pack(self._allocations.tunnels["tunnel"].counter))

    def attachments(self) -> list[Any]:
        """Asked by `sync`: nothing is attached."""
        return []


def _required_options(protocol: str) -> dict[str, Any]:
    """A value for each option that the protocol can't do without."""
    values = {}
    options: Any = msgspec.inspect.type_info(PROTOCOLS[protocol].options)
    for option in options.fields:
        kind = option.type
        while isinstance(kind, msgspec.inspect.Metadata):
            kind = kind.type
        if option.required and isinstance(kind, msgspec.inspect.VarTupleType):
            values[option.encode_name] = [0x1234]
        elif option.required:
            values[option.encode_name] = min(0x1234, kind.le)
    return values
