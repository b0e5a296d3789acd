# SPDX-License-Identifier: GPL-2.0-only
"""The programs in the kernel beside the model: the same packet to both, and every difference in words.

Cheap enough for hundreds of thousands of packets: the namespace is entered once for many of them, packets are bytes,
and after each one only those counters are read that the model says have moved. At the end of a batch all of them are.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

import generate
from scenario import Scenario
from world import VERDICTS, World, can_be_run, run_one

from model import encap
from model.forwarding import Count, Model, Outcome
from model.parse import parse_frame
from mptm.errors import MptmError
from mptm.kernel import netns
from mptm.kernel.maps import Map, possible_cpus

TIME_UNIT_NS = 100


@dataclass(frozen=True)
class Difference:
    """A packet about which the program and the model don't agree, and in what."""

    scenario: Scenario
    port: str
    packet: bytes
    problems: tuple[str, ...]

    def as_test(self, name: str = "found_by_fuzzing") -> str:
        """To be pasted into tests/program/test_differential.py."""
        packet = "\n        ".join(
            f'"{self.packet[at : at + 32].hex()}"' for at in range(0, len(self.packet), 32)
        )
        what = "\n".join(f"    # {line}" for problem in self.problems for line in problem.splitlines())
        return (
            f"def test_{name}(node):\n{what}\n"
            f"    scenario = {self.scenario.as_code(indent=4)}\n"
            f"    packet = bytes.fromhex(\n        {packet}\n    )\n"
            f'    assert_agreement(node, scenario, "{self.port}", packet)\n'
        )


class DifferenceFound(AssertionError):
    """The message is a test to paste."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(f"program and model differ:\n\n{difference.as_test()}")
        self.difference = difference


class Counters:
    """What the data plane counted, read by key."""

    def __init__(self, node: World) -> None:
        self._maps: dict[str, Map] = node.data_plane.maps
        types = node.types
        self._reasons = {number: name.partition("_")[2] for name, number in types.enum("reason").items()}
        self._numbers = {name: number for number, name in self._reasons.items()}
        allocations = node.allocations
        self._tunnels = {name: held.counter for name, held in allocations.tunnels.items()}
        self._slots = {name: held.slot for name, held in allocations.ports.items()}
        self._ifindexes = {name: held.ifindex for name, held in allocations.ports.items()}
        self._places: dict[Count, tuple[Map, bytes, int]] = {}
        self._cpus = possible_cpus()
        self._parsers = {words: struct.Struct(f"={words * self._cpus}Q") for words in (2, 4)}

    def value(self, count: Count) -> tuple[int, int]:
        """(packets, bytes)."""
        place = self._places.get(count) or self._places.setdefault(count, self._place(count))
        table, key, at = place
        raw = table.get(key)
        if raw is None:
            return 0, 0
        words = len(raw) // 8 // self._cpus
        numbers = self._parsers[words].unpack(raw)
        return sum(numbers[at::words]), sum(numbers[at + 1 :: words])

    def _place(self, count: Count) -> tuple[Map, bytes, int]:
        match count:
            case ("port", name, direction):
                return self._maps["port_counters"], _u32(self._slots[name]), 2 * (direction == "tx")
            case ("tunnel", name, direction):
                return self._maps["tunnel_counters"], _u32(self._tunnels[name]), 2 * (direction == "decap")
            case ("drop", reason, "port", name):
                key = struct.pack("=HHI", self._numbers[reason], 1, self._ifindexes[name])
            case ("drop", reason, _, name):
                key = struct.pack("=HHI", self._numbers[reason], 2, self._tunnels[name])
        return self._maps["drops"], key, 0

    def all(self) -> dict[Count, tuple[int, int]]:
        """Everything that isn't zero."""
        found: dict[Count, tuple[int, int]] = {}
        for name in self._slots:
            found |= {("port", name, way): self.value(("port", name, way)) for way in ("rx", "tx")}
        for name in self._tunnels:
            found |= {("tunnel", name, way): self.value(("tunnel", name, way)) for way in ("encap", "decap")}
        names = {(1, number): name for name, number in self._ifindexes.items()}
        names |= {(2, number): name for name, number in self._tunnels.items()}
        for raw, totals in self._maps["drops"].all_totals().items():
            reason, scope, number = struct.unpack("=HHI", raw)
            where = {1: "port", 2: "tunnel"}.get(scope, "other")
            count = ("drop", self._reasons[reason], where, names.get((scope, number), str(number)))
            found[count] = totals["packets"], totals["bytes"]
        return {count: value for count, value in found.items() if any(value)}


def _u32(number: int) -> bytes:
    return struct.pack("=I", number)


class Bench:
    """A node and its model, brought to one scenario after the other.

    cases      packets so far
    happened   how often: ("encap" or "decap", protocol), ("drop", reason), and ("verdict", verdict)
    identifications  that outer IPv4 packets without DF had
    """

    def __init__(self, node: World) -> None:
        self.node = node
        self.cases = 0
        self.happened: Counter[tuple[str, str]] = Counter()
        self.identifications: set[int] = set()

    def set_up(self, scenario: Scenario) -> Model:
        """Both are where they would be before the first packet."""
        self.scenario = scenario
        self.node.bring(scenario.intent, scenario.facts)
        self.model = Model(scenario.intent, scenario.facts)
        self.counters = Counters(self.node)
        self.expected: dict[Count, tuple[int, int]] = {}
        sequences = self.node.data_plane.maps["sequences"]
        sequences.delete([_u32(held.counter) for held in self.node.allocations.tunnels.values()])
        return self.model

    def run(self, packets: Iterable[tuple[str, bytes]]) -> Difference | None:
        """Every (port, packet) to both; the first difference, if any."""
        with netns.inside(self.node.namespace):
            for port, packet in packets:
                if not can_be_run(packet):
                    continue
                problems = self._compare(port, packet)
                if problems:
                    return Difference(self.scenario, port, packet, tuple(problems))
            counted = self.counters.all()
        wrong = {count for count in counted | self.expected if counted.get(count) != self.expected.get(count)}
        if wrong:
            return Difference(self.scenario, "", b"", tuple(map(str, sorted(wrong))))
        return None

    def run_one(self, port: str, packet: bytes) -> tuple[Outcome, list[str]]:
        """One packet to both, and all counters after it: what the model says, and what differs."""
        with netns.inside(self.node.namespace):
            problems = self._compare(port, packet)
            counted = self.counters.all()
        for count in sorted(counted.keys() | self.expected.keys()):
            if counted.get(count) != self.expected.get(count):
                told = _show_count(count, self.expected.get(count, (0, 0)), counted.get(count, (0, 0)))
                if told not in problems:
                    problems.append(told)
        return self.outcome, problems

    def _compare(self, port: str, packet: bytes) -> list[str]:
        self.cases += 1
        access = self.model.ports[port]
        before = time.monotonic_ns() // TIME_UNIT_NS
        run = run_one(self.node.data_plane, access.role, packet, access.ifindex)
        after = time.monotonic_ns() // TIME_UNIT_NS
        self.outcome = outcome = self.model.receive(port, packet, seen=run.data)
        verdict = VERDICTS[run.verdict]
        self._note(outcome)
        answer_times = self.node.data_plane.maps["answer_times"]
        problems = []
        if verdict != outcome.verdict:
            problems.append(f"verdict: the model says {outcome.verdict}, the program {verdict}")
        elif verdict != "DROP" and run.data != outcome.data:
            problems.append(f"bytes: {_show_bytes(outcome.data, run.data)}")
        if outcome.error_at is not None:
            # There is always one left: how fast they may go is not the model's business.
            answer_times.update({_u32(self.node.allocations.ports[outcome.error_at].slot): bytes(8)})
        if outcome.clock is not None and not _is_between(before, outcome.clock, after):
            problems.append(f"time: {outcome.clock} isn't between {before} and {after}")
        for count, (packets, size) in outcome.counts.items():
            held_packets, held_size = self.expected.get(count, (0, 0))
            wanted = self.expected[count] = held_packets + packets, held_size + size
            got = self.counters.value(count)
            if got != wanted:
                problems.append(_show_count(count, wanted, got))
        return problems

    def _note(self, outcome: Outcome) -> None:
        """Also what holds for every outcome, whatever the packet."""
        self.happened["verdict", outcome.verdict] += 1
        if outcome.identification is not None:
            self.identifications.add(outcome.identification)
        for count in outcome.counts:
            if count[0] == "tunnel":
                self.happened[count[2], self.model.intent.tunnels[count[1]].protocol] += 1
        for reason in outcome.reasons:
            self.happened["drop", reason] += 1
        assert len(outcome.reasons) == 1 if outcome.verdict == "DROP" else len(outcome.reasons) <= 1, outcome


def _is_between(before: int, time_field: int, after: int) -> bool:
    """In 32 bits that overflow."""
    return (time_field - before) % 2**32 <= after - before


def _show_count(count: Count, wanted: tuple[int, int], got: tuple[int, int]) -> str:
    return f"{' '.join(count)}: the model counts {wanted[0]} ({wanted[1]} bytes), the program {got[0]} ({got[1]})"


def _show_bytes(wanted: bytes, got: bytes) -> str:
    at = next(
        (at for at in range(min(len(wanted), len(got))) if wanted[at] != got[at]), min(len(wanted), len(got))
    )
    return (
        f"from byte {at} on, of {len(wanted)} (the model) and {len(got)} (the program)\n"
        f"the model:   {wanted[:at].hex()[-40:]} | {wanted[at : at + 40].hex()}\n"
        f"the program: {got[:at].hex()[-40:]} | {got[at : at + 40].hex()}"
    )


# ---- packets for a scenario ------------------------------------------------------------------------------

BURST = 6
"""Packets that come of one number."""


def traffic(model: Model, numbers: Iterable[int]) -> list[tuple[str, bytes]]:
    """(port, packet): what a node in some scenario may meet."""
    places, edges = generate.places(model), sorted(_edges(model))
    made = []
    for number in numbers:
        random = Random(number)
        for _ in range(BURST):
            source = generate.from_workload if random.random() < 0.45 else generate.from_underlay
            made.append(source(random, model, places, edges))
    return made


def _edges(model: Model) -> Iterable[int]:
    """Lengths of IP packets that just fit somewhere."""
    for port in model.ports.values():
        if port.mtu <= generate.LONGEST:
            yield port.mtu
    for name, way in model.ways.items():
        tunnel = model.intent.tunnels[name]
        carries = encap.carried_by(tunnel.protocol, tunnel.options)
        version = 6 if carries == {6} else 4
        packet = (
            generate.ipv4(bytes(4), bytes(4), 99, b"")
            if version == 4
            else generate.ipv6(bytes(16), bytes(16), 59, b"")
        )
        frame = parse_frame(bytes(12) + (b"\x08\0" if version == 4 else b"\x86\xdd") + packet)
        if way is not None and frame is not None:
            yield way.mtu - encap.overhead(tunnel.protocol, tunnel.options, way, frame)


# ---- a smaller example -----------------------------------------------------------------------------------


def minimised(bench: Bench, found: Difference, history: list[tuple[str, bytes]]) -> Difference:
    """The same difference with as little around it as possible: `history` are the packets before it."""
    alone = _retry(bench, found.scenario, found.port, found.packet) if found.packet else None
    if alone is None:
        found = _locate(bench, found, history) or found
        alone = _retry(bench, found.scenario, found.port, found.packet) if found.packet else None
    if alone is None:
        return found  # only after the packets that came before
    found = alone
    for obj in reversed(found.scenario.objects):  # what refers to others comes after them
        fewer = tuple(other for other in found.scenario.objects if other is not obj)
        found = _retry(bench, replace(found.scenario, objects=fewer), found.port, found.packet) or found
    for field in ("mtus", "paths", "macs", "gateways", "missing"):
        plainer = replace(found.scenario, **{field: () if field == "missing" else {}})
        found = _retry(bench, plainer, found.port, found.packet) or found
    for number, obj in enumerate(found.scenario.objects):
        for name in [name for name in obj if name not in ("kind", "name", "protocol", "network")]:
            objects = list(found.scenario.objects)
            objects[number] = {key: value for key, value in objects[number].items() if key != name}
            plainer = replace(found.scenario, objects=tuple(objects))
            found = _retry(bench, plainer, found.port, found.packet) or found
    return _shortened(bench, found)


def _locate(bench: Bench, found: Difference, history: list[tuple[str, bytes]]) -> Difference | None:
    """Which packet it was, of which only the counters at the end are known."""
    bench.set_up(found.scenario)
    for port, packet in history:
        problems = bench.run_one(port, packet)[1]
        if problems:
            return Difference(found.scenario, port, packet, tuple(problems))
    return None


def _retry(bench: Bench, scenario: Scenario, port: str, packet: bytes) -> Difference | None:
    try:
        scenario.intent.validate()
        bench.set_up(scenario)
        problems = bench.run_one(port, packet)[1]
    except (MptmError, KeyError):
        return None
    return Difference(scenario, port, packet, tuple(problems)) if problems else None


def _shortened(bench: Bench, found: Difference) -> Difference:
    bench.set_up(found.scenario)
    size = len(found.packet) // 2
    while size:
        length = len(found.packet) - size
        problems = bench.run_one(found.port, found.packet[:length])[1] if length >= generate.SHORTEST else []
        if problems:
            found = replace(found, packet=found.packet[:length], problems=tuple(problems))
            bench.set_up(found.scenario)
        else:
            size //= 2
            bench.set_up(found.scenario)
    return found


def assert_agreement(node: World, scenario: Scenario, port: str, packet: bytes) -> Outcome:
    """The program does with a packet what the model says."""
    bench = Bench(node)
    bench.set_up(scenario)
    outcome, problems = bench.run_one(port, packet)
    assert not problems, "\n".join(problems)
    return outcome


def check(bench: Bench, scenario: Scenario, numbers: list[int]) -> None:
    """Raises DifferenceFound: about one of the packets that these numbers make program and model differ."""
    packets = traffic(bench.set_up(scenario), numbers)
    found = bench.run(packets)
    if found is not None:
        raise DifferenceFound(minimised(bench, found, packets))
