# SPDX-License-Identifier: GPL-2.0-only
"""Section 1, what a packet costs: nanoseconds of encapsulation and decapsulation over adjust_head + redirect_map.

The programs run by BPF_PROG_TEST_RUN on one packet, again and again; bench.bpf.c undoes what they did in between, and
makes packets of many flows or tunnels of it where that is asked for. Every program is measured between two runs of its
floor, in turns with all others, and the medians count. On a shared machine somebody else's work can slow everything
down for seconds: a sample is undisturbed when both floors around it are near the lowest that was seen for its case.
Samples are chosen by their floors only, never by what is measured.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, cast

import msgspec
import numpy as np

from mptm import sync
from mptm.compile import Allocations, compile_tables
from mptm.errors import MptmError
from mptm.facts import Facts, Link, Path
from mptm.intent import Flow, Intent, Network, Object, Port, Route, Tunnel, tunnel_from_dict
from mptm.kernel import libbpf, netns, testrun
from mptm.kernel.dataplane import DataPlane
from mptm.kernel.objects import object_path
from mptm.protocols import PROTOCOLS
from mptm.template import InnerFamily

from .frames import SMALLEST_FRAME, udp_frame
from .measurement import (
    FAILURES,
    OUT_OF_TIME,
    Budget,
    Effort,
    Part,
    Progress,
    Row,
    Settings,
    missing,
    say,
)
from .namespaces import Namespaces, instance_name, ip, on_one_cpu
from .profile import profile
from .settings import variables

NAME, TITLE, WEIGHT = "cost", "Nanoseconds per packet", 3.0

COST, SIZE, CONFIGURED, WHERE = "cost", "cost-size", "cost-configured", "cost-where"
PROFILE = "cost-profile"
OVER = "ns over the floor"
PARTS = (
    Part(
        COST,
        "Every protocol, one tunnel",
        OVER,
        "The floor is adjust_head + redirect_map and nothing else. Protocols that carry IP packets, and QinQ, run on "
        "frames of 80 bytes, the others on 64.",
        heading="protocol / underlay / inner",
        digits=0,
        better="less",
    ),
    Part(
        SIZE,
        "Against the number of flows and tunnels",
        OVER,
        "Each packet is of another one of them, in an order that no cache foresees; the floor changes the same bytes "
        "of the packet. GENEVE over IPv4.",
        heading="what there are many of",
        digits=0,
        better="less",
        plot="lines",
    ),
    Part(
        CONFIGURED,
        "Against the number of protocols configured",
        OVER,
        "GENEVE over IPv4, with tunnels of so many protocols configured beside it.",
        heading="direction",
        digits=0,
        better="less",
        plot="lines",
    ),
    Part(
        WHERE,
        "Where the nanoseconds go",
        "ns over an empty program",
        "The same program, on packets that leave it at different places: the difference of two lines is what lies "
        "between. GENEVE over IPv4, IPv4 inside.",
        heading="how far the packet gets",
        digits=0,
        better="less",
        plot="",
    ),
    Part(
        PROFILE,
        "Which functions they go to",
        "% of the samples",
        "perf's samples of the CPU's clock in the program and in what it calls, by the source function that the "
        "instruction came from; the wrapper's own (bench.bpf.c) are left out. GENEVE over IPv4, IPv4 inside.",
        heading="function",
        digits=1,
        plot="",
    ),
)

BENCH = "bench.o"
ENCAP, DECAP = "encap", "decap"
XDP_PASS, XDP_REDIRECT = 2, 4
RESTORED_LEN = 16  # bytes that bench.bpf.c puts back, unless it restores all
LONG_FRAME = 80  # where all SAVED_WORDS of bench.bpf.c are restored
UNDISTURBED = 1.1  # times the least floor
ENOUGH = 5

NEAR, FAR = "near", "far"
UNDERLAY = {4: {NEAR: "10.30.30.1", FAR: "10.30.30.2"}, 6: {NEAR: "fd00:30:30::1", FAR: "fd00:30:30::2"}}
INNER = {4: {NEAR: "10.250.1.100", FAR: "10.250.1.101"}, 6: {NEAR: "fd00:250:1::100", FAR: "fd00:250:1::101"}}
UPLINK_MAC = {NEAR: bytes.fromhex("020000300001"), FAR: bytes.fromhex("020000300002")}
WORKLOAD_MAC = {NEAR: bytes.fromhex("02000000c101"), FAR: bytes.fromhex("02000000c102")}
GATEWAY_MAC = bytes.fromhex("020000009901")
IFINDEX = {(NEAR, "c1"): 10, (NEAR, "up0"): 11, (FAR, "c1"): 12, (FAR, "up0"): 13}
NO_PORT = 1
"""The loopback interface, which is no port of ours."""
MTU = 1500
OVERHEAD = 50
"""Bytes that GENEVE adds over IPv4."""
MANY_FIRST = int(ip_address("10.128.0.0"))
"""The first of many inner addresses; there is room for 4 million."""
VNI_FIRST = 0x100000
MANY = 1000
"""From so many on, what filling in takes grows with their number."""
INNER_DESTINATION_AT = 30
"""Bytes into an IPv4 frame."""
VNI_AT = 14 + 20 + 8 + 4
"""Bytes into a GENEVE packet over IPv4: the VNI, and a reserved byte."""
SIZE_LINES = (
    "flows, one tunnel: encap",
    "routes (/32), one tunnel: encap",
    "tunnels, a route each: encap",
    "tunnels, one inner address: decap",
)
FLOOR_EXIT = "adjust_head + redirect_map: the floor"
EXITS = {
    "encap": (
        "not one of our ports",
        "port looked up and counted, no IP inside",
        "IP parsed, next hop looked up: left to the kernel",
        "into the tunnel",
    ),
    "decap": (
        "not one of our ports",
        "outer headers parsed, nobody listens",
        "accepted and stripped, handed to the kernel",
        "delivered to the port",
    ),
}
"""Where a packet may leave the programs, those that go furthest last."""
SIZES = (1, 1_000, 10_000, 100_000, 1_000_000)
SIZE_NAMES = {1: "1", 10: "10", 1_000: "1 k", 10_000: "10 k", 100_000: "100 k", 1_000_000: "1 M"}


@dataclass(frozen=True)
class Amount:
    """How often things are measured: rounds of `samples` runs of `repeat` packets."""

    rounds: int
    samples: int
    repeat: int


AMOUNTS = {
    Effort.FULL: Amount(40, 3, 50_000),
    Effort.QUICK: Amount(10, 2, 20_000),
    Effort.SMOKE: Amount(1, 1, 2_000),
}


PROFILE_SECONDS = {Effort.FULL: 4.0, Effort.QUICK: 1.0, Effort.SMOKE: 0.3}
PROFILE_LEAST = 1.0
"""Percent from which on a function has a line of its own."""
OTHERS = "all others"
PROFILE_REPEAT = 100_000
"""Packets between two looks at the clock: what is between them isn't the program's."""


@dataclass(frozen=True)
class Case:
    """A direction of a protocol over an underlay (IP version, or None without IP) with an inner IP version."""

    protocol: str
    underlay: int | None
    inner: int
    direction: str

    def __str__(self) -> str:
        return f"{self.protocol} / {f'v{self.underlay}' if self.underlay else '-'} / v{self.inner}"

    @property
    def restores_all(self) -> bool:
        """Whether the program may write over more than the first RESTORED_LEN bytes."""
        return self.protocol == "qinq" or families_of(self.protocol) is not None


REFERENCE = {direction: Case("geneve", 4, 4, direction) for direction in (ENCAP, DECAP)}


def families_of(protocol: str) -> InnerFamily | None:
    """The inner IP versions of a protocol that carries IP packets; None where it carries frames."""
    underlay = (PROTOCOLS[protocol].underlays or (4,))[0]
    return PROTOCOLS[protocol].inner_families(tunnel_of(protocol, UNDERLAY[underlay][FAR]).options)


def all_cases() -> list[Case]:
    """Every protocol, both ways, over each underlay, with each inner IP version that it carries."""
    return [
        Case(name, underlay, inner, direction)
        for name, protocol in PROTOCOLS.items()
        for underlay in (protocol.underlays or (None,))
        for inner, family in ((4, InnerFamily.IPV4), (6, InnerFamily.IPV6))
        if (families := families_of(name)) is None or family in families
        for direction in (ENCAP, DECAP)
    ]


def tunnel_of(protocol: str, remote: str, name: str = "tunnel", **options: Any) -> Tunnel:
    """A tunnel with the options that it can't do without."""
    fields = {"name": name, "protocol": protocol, "network": "blue", "remote": remote}
    return tunnel_from_dict(fields | _required_options(protocol) | options)


def measure(budget: Budget, settings: Settings, progress: Progress) -> list[Row]:
    """See Section. Raises MptmError when the data plane can't be loaded at all."""
    amount = AMOUNTS[settings.effort]
    cases = all_cases()
    if settings.effort is not Effort.FULL:
        cases = [case for case in cases if case == _first(case, cases)]
    if settings.effort is Effort.SMOKE:
        cases = [case for case in cases if case.protocol in ("geneve", "ipip")]
    counts = (1, 4) if settings.effort is Effort.SMOKE else (1, 4, 12, len(PROTOCOLS))
    shares = budget.shares((10, 5, 2, 2, 1))  # each begins when it is asked for
    with workbench(amount.repeat) as bench:
        return [
            *_measure_cases(bench, cases, amount, next(shares), progress),
            *_measure_sizes(bench, amount, next(shares), settings, progress),
            *_measure_configured(bench, counts, amount, next(shares), progress),
            *_measure_exits(bench, amount, next(shares), progress),
            *_measure_profile(bench, PROFILE_SECONDS[settings.effort], progress),
        ]


def _first(case: Case, cases: Sequence[Case]) -> Case:
    """The first of the cases of its protocol and direction: IPv4 where there is a choice."""
    return next(each for each in cases if (each.protocol, each.direction) == (case.protocol, case.direction))


@contextmanager
def workbench(repeat: int) -> Iterator[Bench]:
    """Two nodes' tables, in a namespace with the links that they name, on one CPU."""
    with Namespaces() as namespaces, ExitStack() as stack, on_one_cpu():
        namespace = namespaces.add("cost")
        ip(
            namespace,
            [
                f"link add {side}-{port} index {index} type veth peer name {side}-{port}-far"
                for (side, port), index in IFINDEX.items()
            ],
        )
        with netns.inside(namespace):
            yield Bench(repeat, stack)


# ---- the four parts ---------------------------------------------------------------------------------------------


def _measure_cases(
    bench: Bench, cases: Sequence[Case], amount: Amount, budget: Budget, progress: Progress
) -> list[Row]:
    found: dict[Case, list[_Sample]] = {case: [] for case in cases}
    reasons: dict[Case, str] = {}
    for number in range(amount.rounds):
        before = budget.left()
        for case in cases:
            if case in reasons or budget.is_out():
                continue
            try:
                found[case] += bench.sample(case, amount.samples)
            except FAILURES as error:
                reasons[case] = say(error)
        progress(f"every protocol: {len(cases)} cases, round {number + 1}")
        if budget.left() < before - budget.left():
            break
    return [_row(COST, str(case), case.direction, found[case], reasons.get(case, "")) for case in cases]


def _measure_sizes(
    bench: Bench, amount: Amount, budget: Budget, settings: Settings, progress: Progress
) -> list[Row]:
    sizes = {Effort.FULL: SIZES, Effort.QUICK: (1, 1_000, 100_000), Effort.SMOKE: (1, 10)}[settings.effort]
    lines = tuple(
        zip(
            SIZE_LINES,
            (ENCAP, ENCAP, ENCAP, DECAP),
            (bench.many_flows, bench.many_routes, bench.many_tunnels, bench.many_tunnels),
            strict=True,
        )
    )
    rows = []
    filled: dict[Callable[[int], None], float] = {}  # seconds for each of them, last time
    cells = [(size, line) for size in sizes for line in lines]
    cells.sort(key=lambda cell: cell[1][2] == bench.many_tunnels)  # what takes long to fill in comes last
    for share, (size, (name, direction, fill)) in zip(budget.shares([1] * len(cells)), cells, strict=True):
        column = SIZE_NAMES[size]
        if budget.is_out():
            rows.append(missing(SIZE, name, column, OUT_OF_TIME))
            continue
        samples: list[_Sample] = []
        reason = ""
        expected = filled.get(fill, 0.0) * size if bench.takes_long(fill, size) else 0.0
        if expected > budget.left():
            reason = f"there was no time: filling them in was expected to take {expected:.0f} s"
            rows.append(missing(SIZE, name, column, reason))
            continue
        began = time.monotonic()
        try:
            fill(size)
            if size >= MANY and time.monotonic() - began > 0.01:  # not those that were there already
                filled[fill] = (time.monotonic() - began) / size
            for _ in range(amount.rounds):
                samples += bench.sample_many(direction, size, amount.samples)
                if share.is_out():
                    break
        except FAILURES as error:
            reason = say(error)
        rows.append(_row(SIZE, name, column, samples, reason))
    progress("flows and tunnels: done")
    bench.clear()
    return rows


def _measure_configured(
    bench: Bench, counts: Sequence[int], amount: Amount, budget: Budget, progress: Progress
) -> list[Row]:
    others = [name for name in PROTOCOLS if name != "geneve"]
    found: dict[tuple[int, str], list[_Sample]] = {
        (count, direction): [] for count in counts for direction in (ENCAP, DECAP)
    }
    reasons: dict[tuple[int, str], str] = {}
    for _ in range(amount.rounds):
        for count, direction in found:
            beside = others[: count - 1]
            try:
                found[count, direction] += bench.sample(REFERENCE[direction], amount.samples, beside)
            except FAILURES as error:
                reasons[count, direction] = say(error)
        if budget.is_out() or reasons:
            break
    progress("number of protocols: done")
    return [
        _row(CONFIGURED, direction, str(count), samples, reasons.get((count, direction), ""))
        for (count, direction), samples in found.items()
    ]


def _measure_exits(bench: Bench, amount: Amount, budget: Budget, progress: Progress) -> list[Row]:
    exits = bench.exits()
    found: dict[tuple[str, str], list[float]] = {(each.direction, each.name): [] for each in exits}
    reasons: dict[tuple[str, str], str] = {}
    for _ in range(amount.rounds):
        for each in exits:
            key = each.direction, each.name
            if key in reasons:
                continue
            try:
                found[key] += bench.time_exit(each, amount.samples)
            except FAILURES as error:
                reasons[key] = say(error)
        if budget.is_out():
            break
    progress("where the nanoseconds go: done")
    return [
        Row(WHERE, name, direction, tuple(samples), reasons.get((direction, name), ""))
        for (direction, name), samples in found.items()
    ]


def _measure_profile(bench: Bench, seconds: float, progress: Progress) -> list[Row]:
    found: dict[str, dict[str, float]] = {}
    reasons: dict[str, str] = {}
    for direction in (ENCAP, DECAP):
        try:
            shares = bench.profile(direction, seconds)
        except FAILURES as error:
            reasons[direction] = say(error)
            continue
        ours = {name: share for name, share in shares.items() if "bench.bpf.c" not in name}
        found[direction] = {name: 100 * share / sum(ours.values()) for name, share in ours.items()}
    progress("profile: done")
    rows = [missing(PROFILE, "-", direction, reason) for direction, reason in reasons.items()]
    told = dict.fromkeys(
        name for shares in found.values() for name, share in shares.items() if share >= PROFILE_LEAST
    )
    for direction, shares in found.items():
        rows += [Row(PROFILE, name, direction, (shares.get(name, 0.0),)) for name in told]
        rest = sum(share for name, share in shares.items() if name not in told)
        rows.append(Row(PROFILE, OTHERS, direction, (rest,)))
    return rows


# ---- measuring --------------------------------------------------------------------------------------------------


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


def _row(part: str, line: str, column: str, samples: Sequence[_Sample], reason: str) -> Row:
    """The undisturbed samples, or the ENOUGH best; floor and program, medians, without the undoing."""
    if not samples:
        return missing(part, line, column, reason or OUT_OF_TIME)
    least = min(min(sample.floors_ns) for sample in samples)
    chosen = [sample for sample in samples if max(sample.floors_ns) <= least * UNDISTURBED]
    undisturbed = len(chosen)
    if undisturbed < ENOUGH:
        chosen = sorted(samples, key=lambda sample: max(sample.floors_ns))[:ENOUGH]
    undo = statistics.median(sample.undo_ns for sample in chosen)
    return Row(
        part,
        line,
        column,
        tuple(sample.over_ns for sample in chosen),
        reason,
        {
            "floor_ns": statistics.median(sample.floor_ns for sample in chosen) - undo,
            "program_ns": statistics.median(sample.program_ns for sample in chosen) - undo,
            "over_all_ns": statistics.median(sample.over_ns for sample in samples),
            "undisturbed": undisturbed,
            "samples": len(samples),
        },
    )


@dataclass(frozen=True)
class Exit:
    """A packet that leaves a program at a known place, if the network has such a route for what is inside."""

    direction: str
    name: str
    port: str
    packet: bytes
    verdict: int
    inner_route: str = "port"
    program: str = ""


@dataclass(frozen=True)
class _Change:
    """Which field of a packet bench.bpf.c changes."""

    count: int
    offset: int
    base: int
    shift: int


UNCHANGED = _Change(0, 0, 0, 0)


class Bench:
    """Two nodes, whose tables hold one tunnel at a time. The process must be in the namespace of their links."""

    def __init__(self, repeat: int, stack: ExitStack) -> None:
        self._repeat = repeat
        self._nodes = {side: _Node(side, stack) for side in (NEAR, FAR)}
        self._tunnels = 0
        """How many `many_tunnels` has filled in last, as long as they are still there."""

    def sample(self, case: Case, count: int, beside: Sequence[str] = ()) -> list[_Sample]:
        """Measurements of a case and its floor, with tunnels of other protocols `beside`.

        Raises MptmError when a packet takes another way.
        """
        near, far = self._nodes[NEAR], self._nodes[FAR]
        frame = self._frame(case.inner, LONG_FRAME if case.restores_all else SMALLEST_FRAME)
        near.configure(_one_tunnel(case, near, beside))
        wire = near.run("mptm_encap_xdp", "c1", frame).data
        if case.direction == ENCAP:
            near.set(len(frame) - len(wire), IFINDEX[NEAR, "up0"], case.restores_all)
            return self._samples(case, near, "c1", frame, count, "tunnel")
        far.configure(_one_tunnel(case, far, beside))
        far.set(len(wire) - len(frame), IFINDEX[FAR, "c1"], case.restores_all)
        return self._samples(case, far, "up0", wire, count, "tunnel")

    def sample_many(self, direction: str, size: int, count: int) -> list[_Sample]:
        """The same with `size` flows, routes or tunnels, as one of the `many_` methods has filled them in."""
        case = REFERENCE[direction]
        near, far = self._nodes[NEAR], self._nodes[FAR]
        frame = self._frame(4, SMALLEST_FRAME + 16)
        at = INNER_DESTINATION_AT
        first = MANY_FIRST.to_bytes(4, "big")
        frame = frame[:at] + first + frame[at + 4 :]
        wire = near.run("mptm_encap_xdp", "c1", frame).data
        if direction == ENCAP:
            near.set(
                len(frame) - len(wire),
                IFINDEX[NEAR, "up0"],
                False,
                _Change(size, INNER_DESTINATION_AT, MANY_FIRST, 0),
            )
            return self._samples(case, near, "c1", frame, count, None)
        far.set(len(wire) - len(frame), IFINDEX[FAR, "c1"], False, _Change(size, VNI_AT, VNI_FIRST, 8))
        return self._samples(case, far, "up0", wire, count, None)

    def many_flows(self, size: int) -> None:
        """So many flows into one tunnel."""
        self._tunnels = 0
        near = self._nodes[NEAR]
        destination = ip_address(MANY_FIRST)
        flow = Flow(network="blue", source=INNER[4][NEAR], destination=str(destination), via="tunnel")
        near.configure([tunnel_of("geneve", UNDERLAY[4][FAR]), flow])
        near.multiply("flows_v4", destination.packed, size)

    def many_routes(self, size: int) -> None:
        """So many /32 routes into one tunnel."""
        self._tunnels = 0
        near = self._nodes[NEAR]
        destination = ip_address(MANY_FIRST)
        route = Route(network="blue", prefix=f"{destination}/32", via="tunnel")
        near.configure([tunnel_of("geneve", UNDERLAY[4][FAR]), route])
        near.multiply("hosts_v4", destination.packed, size)

    def many_tunnels(self, size: int) -> None:
        """So many tunnels with a /32 route each, on both nodes."""
        if self._tunnels == size:
            return
        self._tunnels = 0
        for node in self._nodes.values():
            node.check_room("tunnels", size)
        for node in self._nodes.values():
            objects: list[Object] = []
            for number in range(size):
                name = f"t{number}"
                objects.append(tunnel_of("geneve", UNDERLAY[4][node.peer], name, vni=VNI_FIRST + number))
                if node.side == NEAR:
                    destination = ip_address(MANY_FIRST + number)
                    objects.append(Route(network="blue", prefix=f"{destination}/32", via=name))
            if node.side == FAR:
                objects.append(Route(network="blue", prefix=f"{ip_address(MANY_FIRST)}/32", port="c1"))
            node.configure(objects)
        self._tunnels = size

    def takes_long(self, fill: Callable[[int], None], size: int) -> bool:
        """Whether so many have to be filled in: they aren't there already, and there is room for them."""
        if fill != self.many_tunnels:
            return True
        return self._tunnels != size and size <= self._nodes[NEAR].maps["tunnels"].max_entries

    def clear(self) -> None:
        """Empty the tables."""
        for node in self._nodes.values():
            node.configure([])

    def exits(self) -> list[Exit]:
        """Packets that leave the programs at different places, those that go furthest last."""
        near = self._nodes[NEAR]
        frame = self._frame(4, SMALLEST_FRAME)
        near.configure(_one_tunnel(REFERENCE[ENCAP], near, ()))
        wire = near.run("mptm_encap_xdp", "c1", frame).data
        other_port = wire[:36] + (5555).to_bytes(2, "big") + wire[38:]
        foreign = frame[:12] + b"\x88\xb5" + frame[14:]
        no_port, no_ip, passed, sent = EXITS[ENCAP]
        no_uplink, not_listening, stripped, delivered = EXITS[DECAP]
        return [
            Exit(ENCAP, no_port, "", frame, XDP_PASS),
            Exit(ENCAP, no_ip, "c1", foreign, XDP_PASS),
            Exit(ENCAP, passed, "c1", frame, XDP_PASS, "pass"),
            Exit(ENCAP, sent, "c1", frame, XDP_REDIRECT, "tunnel"),
            Exit(ENCAP, FLOOR_EXIT, "c1", frame, XDP_REDIRECT, "tunnel", "bench_floor"),
            Exit(DECAP, no_uplink, "", wire, XDP_PASS),
            Exit(DECAP, not_listening, "up0", other_port, XDP_PASS),
            Exit(DECAP, stripped, "up0", wire, XDP_PASS, "pass"),
            Exit(DECAP, delivered, "up0", wire, XDP_REDIRECT, "port"),
            Exit(DECAP, FLOOR_EXIT, "up0", wire, XDP_REDIRECT, "port", "bench_floor"),
        ]

    def profile(self, direction: str, seconds: float) -> dict[str, float]:
        """Percent of the time by function, the wrapper's included. Raises what `profile` raises."""
        case = REFERENCE[direction]
        self.sample(case, 1)
        near = self._nodes[NEAR]
        packet, port, node = self._frame(4, SMALLEST_FRAME), "c1", near
        if direction == DECAP:
            packet = near.run("mptm_encap_xdp", "c1", packet).data
            port, node = "up0", self._nodes[FAR]
        program = f"bench_{direction}"

        def work() -> None:
            node.run(program, port, packet, repeat=PROFILE_REPEAT)

        return profile(node.program_fd(program), work, seconds)

    def time_exit(self, exit_: Exit, count: int) -> list[float]:
        """Nanoseconds over a program that does nothing. Raises MptmError for a packet that leaves elsewhere."""
        node = self._nodes[NEAR if exit_.direction == ENCAP else FAR]
        case = REFERENCE[exit_.direction]
        leads = {"pass": {"pass_": True}, "tunnel": {"via": "tunnel"}, "port": {"port": "c1"}}
        node.configure(
            [
                tunnel_of(case.protocol, UNDERLAY[4][node.peer]),
                Route(network="blue", prefix=f"{INNER[4][FAR]}/32", **leads[exit_.inner_route]),
            ]
        )
        egress = "up0" if exit_.direction == ENCAP else "c1"
        head_delta = -OVERHEAD if exit_.direction == ENCAP else OVERHEAD
        node.set(head_delta, IFINDEX[node.side, egress], False)
        program = exit_.program or f"bench_{exit_.direction}"
        found = []
        for _ in range(count):
            empty = node.run("bench_undo", exit_.port, exit_.packet, repeat=self._repeat).duration_ns
            run = node.run(program, exit_.port, exit_.packet, repeat=self._repeat)
            if run.verdict != exit_.verdict:
                raise MptmError(f"{exit_.name}: the verdict is {run.verdict}, not {exit_.verdict}")
            found.append(float(run.duration_ns - empty))
        return found

    @staticmethod
    def _frame(inner: int, size: int) -> bytes:
        source, destination = (ip_address(INNER[inner][side]) for side in (NEAR, FAR))
        return udp_frame(GATEWAY_MAC, WORKLOAD_MAC[NEAR], source, destination, size=size)

    def _samples(
        self, case: Case, node: _Node, port: str, packet: bytes, count: int, tunnel: str | None
    ) -> list[_Sample]:
        def run(program: str) -> int:
            return node.run(program, port, packet, repeat=self._repeat).duration_ns

        undo_ns = run("bench_undo") - run("bench_pass")
        floors, programs = [run("bench_floor")], []
        for _ in range(count):
            programs.append(self._run_program(case, node, port, packet, tunnel))
            floors.append(run("bench_floor"))
        return [
            _Sample(program, around, undo_ns)
            for program, around in zip(programs, itertools.pairwise(floors), strict=True)
        ]

    def _run_program(self, case: Case, node: _Node, port: str, packet: bytes, tunnel: str | None) -> int:
        """Nanoseconds per packet, of packets that were all counted for the tunnel and came back as they were."""
        counter = f"{case.direction}_packets"
        before = node.tunnel_packets(counter, tunnel)
        run = node.run(f"bench_{case.direction}", port, packet, repeat=self._repeat)
        counted = node.tunnel_packets(counter, tunnel) - before
        if run.verdict != XDP_REDIRECT or counted != self._repeat:
            raise MptmError(
                f"{case}: of {self._repeat} packets {counted} went through the tunnel, the last one with verdict "
                f"{run.verdict}: it isn't the fast path that was measured"
            )
        restored = len(packet) if case.restores_all else RESTORED_LEN
        if len(run.data) != len(packet) or run.data[:restored] != packet[:restored]:
            raise MptmError(f"{case}: the packet wasn't put back as it was")
        return run.duration_ns


def _one_tunnel(case: Case, node: _Node, beside: Sequence[str]) -> list[Object]:
    """A tunnel of the case's kind to the other node, and both workloads known; others stand beside it."""
    bits = {4: 32, 6: 128}[case.inner]
    remote = UNDERLAY[case.underlay or 4][node.peer]
    return [
        *(_other_tunnel(protocol, node, number) for number, protocol in enumerate(beside)),
        tunnel_of(case.protocol, remote),
        Route(network="blue", prefix=f"{INNER[case.inner][node.side]}/{bits}", port="c1"),
        Route(network="blue", prefix=f"{INNER[case.inner][node.peer]}/{bits}", via="tunnel"),
    ]


def _other_tunnel(protocol: str, node: _Node, number: int) -> Tunnel:
    """A tunnel to somebody else, so that no two of them take each other's packets."""
    underlay = 4 if 4 in (PROTOCOLS[protocol].underlays or (4,)) else 6
    remote = {4: f"10.30.30.{100 + number}", 6: f"fd00:30:30::{100 + number}"}[underlay]
    return tunnel_of(protocol, remote, f"other-{protocol}")


class _Node:
    """The tables of one node, without anything attached."""

    upgrade_needed = False

    def __init__(self, side: str, stack: ExitStack) -> None:
        self.side = side
        self.peer = FAR if side == NEAR else NEAR
        self._allocations = Allocations()
        self._multiplied: tuple[str, Any] | None = None
        data_plane = DataPlane.open(instance_name(f"cost-{side}"), load=True)
        assert data_plane is not None, "it is loaded where it wasn't"
        stack.callback(data_plane.remove)
        self.maps = data_plane.maps
        with libbpf.Object(object_path(BENCH)) as bench:
            for declared in bench.maps():
                bench.reuse_map(declared, self.maps[declared.name].fd)
            bench.load()
            self._programs = bench.program_fds()
        self._programs["mptm_encap_xdp"] = data_plane.program_fd("mptm_encap_xdp")
        self._variables = variables(self._programs["bench_floor"])
        self._links = {
            "c1": Link(IFINDEX[side, "c1"], "c1", GATEWAY_MAC, MTU, "veth", peer_mac=WORKLOAD_MAC[side]),
            "up0": Link(IFINDEX[side, "up0"], "up0", UPLINK_MAC[side], MTU, "veth"),
        }

    def configure(self, objects: Sequence[Object]) -> None:
        """Two ports, network blue and these objects, in place of what there was."""
        self._forget_multiplied()
        intent = Intent.of(
            [
                Network(name="blue", id=1),
                Port(name="c1", role="access", network="blue"),
                Port(name="up0", role="uplink"),
                *objects,
            ]
        )
        paths = {each.name: self._path(each) for each in objects if isinstance(each, Tunnel)}
        compiled = compile_tables(intent, Facts(self._links, paths), self._allocations)
        sync.apply(cast(Any, self), replace(compiled, attachments=[]), self._allocations)
        self._allocations = compiled.allocations

    def _path(self, tunnel: Tunnel) -> Path:
        version = 6 if ":" in str(tunnel.remote) else 4
        return Path(
            egress_ifindex=IFINDEX[self.side, "up0"],
            local=ip_address(UNDERLAY[version][self.side]),
            local_mac=UPLINK_MAC[self.side],
            gateway=None,
            next_hop_mac=UPLINK_MAC[self.peer],
            mtu=MTU,
        )

    def multiply(self, table: str, address: bytes, size: int) -> None:
        """Of the one entry of a table with this address in its key, as many with the addresses that follow."""
        self.check_room(table, size)
        first = int.from_bytes(address, "big")
        ((key, value),) = (
            (key, value) for key, value in self.maps[table].items().items() if key.count(address) == 1
        )
        at = key.index(address)
        keys = np.tile(np.frombuffer(key, np.uint8), (size - 1, 1))
        addresses = np.arange(first + 1, first + size, dtype=np.uint32).astype(">u4")
        keys[:, at : at + 4] = addresses.view(np.uint8).reshape(-1, 4)
        self._multiplied = table, keys
        self.maps[table].update_many(keys, np.tile(np.frombuffer(value, np.uint8), (size - 1, 1)))

    def check_room(self, table: str, size: int) -> None:
        """Raise MptmError where the table has fewer places."""
        if size > (places := self.maps[table].max_entries):
            raise MptmError(f"not available: the table {table} has room for {places} entries")

    def _forget_multiplied(self) -> None:
        if self._multiplied is not None:
            table, keys = self._multiplied
            self.maps[table].delete_many(keys)
            self._multiplied = None

    def run(self, program: str, port: str, packet: bytes, *, repeat: int = 1) -> testrun.Run:
        """Packets that come in at a port; "" is an interface that isn't one."""
        ifindex = IFINDEX[self.side, port] if port else NO_PORT
        return testrun.run(self._programs[program], packet, ifindex=ifindex, repeat=repeat)

    def program_fd(self, program: str) -> int:
        """Descriptor of a program; it stays the node's."""
        return self._programs[program]

    def set(
        self, head_delta: int, egress_ifindex: int, restores_all: bool, change: _Change = UNCHANGED
    ) -> None:
        """What the programs of bench.bpf.c do from now on: `settings` there."""
        value = struct.pack(
            "=iIIIIIII",
            head_delta,
            egress_ifindex,
            restores_all,
            change.count,
            change.offset,
            change.base,
            change.shift,
            0,
        )
        before = self._variables.get(bytes(4)) or b""
        self._variables.update({bytes(4): value + before[len(value) :]})

    def tunnel_packets(self, counter: str, tunnel: str | None) -> int:
        """Packets of the tunnel, or of all tunnels."""
        table = self.maps["tunnel_counters"]
        if tunnel is not None:
            return table.totals(table.key.pack(self._allocations.tunnels[tunnel].counter))[counter]
        return sum(total[counter] for total in table.all_totals().values())

    def attachments(self) -> list[Any]:
        """Asked by `sync`: nothing is attached."""
        return []


@functools.cache
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
