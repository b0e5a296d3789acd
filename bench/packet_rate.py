# SPDX-License-Identifier: GPL-2.0-only
"""Section 2, packets per second end to end: a generator at the left end of each chain, a sink at the right one.

The generator sends live frames into the first veth, in batches; the sink counts and drops. Where frames arrive as XDP
frames the sink is an XDP program, where they arrive as skbs it is one at TC: in both cases the first that can be.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from mptm import headers
from mptm.errors import MptmError
from mptm.kernel import netns, testrun

from .chains import (
    KINDS,
    MAC,
    NODES,
    ORIGINAL,
    ROUTING,
    TITLES,
    TRAFFIC,
    VXLAN,
    Chain,
    Underlay,
    load,
    try_to_build,
)
from .frames import DESTINATION_PORT, SMALLEST_FRAME, udp_frame
from .measurement import (
    Budget,
    Contestant,
    Effort,
    Part,
    Progress,
    Row,
    Settings,
    missing,
    take_turns,
)
from .namespaces import Namespaces, ethtool
from .settings import variables

NAME, TITLE, WEIGHT = "rate", "Packets per second", 3.0

RATE = "rate"
PARTS = (
    Part(
        RATE,
        "Through two nodes and a tunnel",
        "million packets per second",
        "One CPU, or two, do everything: generator, both nodes, sink. UDP over IPv4, 1024 flows for each CPU. Open "
        "vSwitch gets its packets from a socket, no more than 64 on the way at once: a flood would leave it no time.",
        heading="chain",
        digits=3,
        baseline=TITLES[VXLAN],
    ),
)

SIZES = (SMALLEST_FRAME, 1400)
CPUS = (1, 2)
RUN_SECONDS = {Effort.FULL: 0.3, Effort.QUICK: 0.15, Effort.SMOKE: 0.02}
ROUNDS = {Effort.FULL: 60, Effort.QUICK: 12, Effort.SMOKE: 1}

IP_AT = headers.ETHERNET_LEN
ADDRESSES_AT = IP_AT + 12
SOURCE_PORT_AT = IP_AT + headers.IPV4_LEN
NUMBER_AT = SOURCE_PORT_AT + headers.UDP_LEN
NUMBER_LEN = 8
COMPARED_LEN = 64
FIRST_PORT, FLOWS = 1024, 1024  # of traffic.bpf.c
ENOUGH_TO_TIME = 8192
SETTLE_SECONDS = 0.02
WINDOW = 64
"""Packets on the way at once through a switch in user space: the buffers of its sockets hold more than that."""
WINDOW_POLL_SECONDS, STALLED_SECONDS = 0.0002, 0.1


def column_of(size: int, cpus: int) -> str:
    """The column of a frame length and a number of CPUs."""
    return f"{size} B, {cpus} CPU{'s' * (cpus > 1)}"


def measure(budget: Budget, settings: Settings, progress: Progress) -> list[Row]:
    """See Section."""
    available = sorted(os.sched_getaffinity(0))
    rows = []
    with Namespaces() as namespaces, contextlib.ExitStack() as stack:
        kinds = (*KINDS, ORIGINAL) if settings.original else KINDS
        built = try_to_build(kinds, namespaces, stack, Underlay(), settings.original)
        ends: dict[str, Ends | str] = {}
        for kind, chain in built.items():
            try:
                ends[kind] = chain if isinstance(chain, str) else Ends(chain)
            except MptmError as error:
                ends[kind] = str(error)
        progress(f"chains: {', '.join(kind for kind, each in ends.items() if not isinstance(each, str))}")
        contestants = []
        smoke = settings.effort is Effort.SMOKE
        for count in CPUS[:1] if smoke else CPUS:
            cpus = available[-count:]
            for size in SIZES[:1] if smoke else SIZES:
                for kind, each in ends.items():
                    where = RATE, TITLES[kind], column_of(size, count)
                    if isinstance(each, str):
                        rows.append(missing(*where, each))
                    elif len(cpus) < count:
                        rows.append(missing(*where, f"this machine has {len(available)} CPU"))
                    else:
                        contestants.append(_contestant(where, each, cpus, size, RUN_SECONDS[settings.effort]))
        return rows + take_turns(contestants, budget, rounds=ROUNDS[settings.effort], progress=progress)


def _contestant(
    where: tuple[str, str, str], ends: Ends, cpus: Sequence[int], size: int, seconds: float
) -> Contestant:
    details: dict[str, Any] = {"sent": 0, "lost": 0, "compared": 0}
    counts: list[int] = []

    def once() -> float:
        if not counts:
            counts.append(ends.packets_in(seconds, cpus, size))
        sent, arrived, rate = ends.send(counts[0], cpus, size)
        details["sent"] += sent
        details["lost"] += sent - arrived
        details["compared"] += ends.check_samples(size)
        return rate / 1e6

    return Contestant(*where, once, details=details)


class Ends:
    """A generator at the left end of a chain and a sink at the right one."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._programs, self._maps = load(TRAFFIC)
        if chain.is_xdp:
            chain.attach_xdp("right", "eth0", self._programs["bench_sink"])
        else:
            # A veth takes frames that XDP sends only when its end has NAPI.
            for name in NODES:
                ethtool(chain.namespace[name], "-K", "port", "gro", "on")
            chain.attach_tc("right", "eth0", self._programs["bench_sink_tc"])
        self._variables = variables(self._programs["bench_generate"])
        self._frames = {size: self._frame(size) for size in SIZES}

    def _frame(self, size: int) -> bytes:
        left, right = (ip_address(self._chain.address[name]) for name in ("left", "right"))
        source = bytes.fromhex(MAC["left"].replace(":", ""))
        return udp_frame(self._chain.destination_mac(), source, left, right, size=size)

    def send(self, count: int, cpus: Sequence[int], size: int) -> tuple[int, int, float]:
        """Send about `count` packets from these CPUs together, and wait until no more arrive.

        Returns how many were sent, how many arrived, and packets per second at the sink. Raises MptmError when too
        few arrive to tell a rate.
        """
        frame = self._frames[size]
        value = frame[:COMPARED_LEN] + DESTINATION_PORT.to_bytes(2, "big")
        self._variables.update({bytes(4): value.ljust(self._variables.info.value_size, b"\0")})
        received = self._maps["received"]
        received.update({bytes(4): bytes(received.value.size)})
        if self._chain.switches:
            return self._send_in_window(count, cpus, frame)
        failures: list[BaseException] = []
        each = max(1, count // len(cpus))
        threads = [threading.Thread(target=self._generate, args=(cpu, each, frame, failures)) for cpu in cpus]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        counts = self._received()
        while True:
            time.sleep(SETTLE_SECONDS)
            before, counts = counts, self._received()
            if sum(cpu["packets"] for cpu in counts) == sum(cpu["packets"] for cpu in before):
                break
        sent = each * len(cpus)
        arrived = sum(cpu["packets"] for cpu in counts)
        timed = [cpu for cpu in counts if cpu["last_ns"] > cpu["first_ns"]]
        if not timed:
            raise MptmError(f"of {sent} packets through {self._chain.kind}, {arrived} arrived")
        seconds = (max(cpu["last_ns"] for cpu in timed) - min(cpu["first_ns"] for cpu in timed)) / 1e9
        return sent, arrived, sum(cpu["packets_between"] for cpu in timed) / seconds

    def _send_in_window(self, count: int, cpus: Sequence[int], frame: bytes) -> tuple[int, int, float]:
        """The same for what a flood would starve: by a socket, with never more than WINDOW packets on the way."""
        for switch in self._chain.switches:
            switch.pin(set(cpus))
        with netns.inside(self._chain.namespace["left"]):
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        sent = arrived = 0
        with sender:
            sender.bind(("eth0", 0))
            began = progress_at = time.monotonic()
            while arrived < count and time.monotonic() < progress_at + STALLED_SECONDS:
                while sent < min(count, arrived + WINDOW):
                    number = sent.to_bytes(NUMBER_LEN, "little")
                    port = (FIRST_PORT + sent % FLOWS).to_bytes(2, "big")
                    sender.send(
                        frame[:SOURCE_PORT_AT]
                        + port
                        + frame[SOURCE_PORT_AT + 2 : NUMBER_AT]
                        + number
                        + frame[NUMBER_AT + NUMBER_LEN :]
                    )
                    sent += 1
                time.sleep(WINDOW_POLL_SECONDS)
                before, arrived = arrived, sum(cpu["packets"] for cpu in self._received())
                if arrived > before:
                    progress_at = time.monotonic()
        if not arrived:
            raise MptmError(f"of {sent} packets through {self._chain.kind}, none arrived")
        return sent, arrived, arrived / (progress_at - began)

    def _generate(self, cpu: int, count: int, frame: bytes, failures: list[BaseException]) -> None:
        try:
            os.sched_setaffinity(0, {cpu})  # of this thread
            with netns.inside(self._chain.namespace["left"]):
                testrun.send(
                    self._programs["bench_generate"],
                    frame,
                    ifindex=self._chain.ifindex["left", "eth0"],
                    count=count,
                )
        except MptmError as error:
            failures.append(error)

    def packets_in(self, seconds: float, cpus: Sequence[int], size: int) -> int:
        """About how many packets the chain carries in some time."""
        enough = 8 * WINDOW if self._chain.switches else ENOUGH_TO_TIME
        self.send(enough, cpus, size)
        return max(enough, int(self.send(enough, cpus, size)[2] * seconds))

    def check_samples(self, size: int) -> int:
        """Compare the sampled packets with what was sent; returns how many. Raises MptmError for a broken one.

        What a router changes is left out where one is on the way: MAC addresses, TTL and checksum.
        """
        samples = list(self._maps["samples"].items().values())
        frame = self._frames[size]
        compared = ADDRESSES_AT if self._chain.kind == ROUTING else 0
        for sample in samples:
            number = sample[NUMBER_AT : NUMBER_AT + NUMBER_LEN]
            port = FIRST_PORT + int.from_bytes(number, "little") % FLOWS
            expected = (
                frame[:SOURCE_PORT_AT]
                + port.to_bytes(2, "big")
                + frame[SOURCE_PORT_AT + 2 : NUMBER_AT]
                + number
                + frame[NUMBER_AT + NUMBER_LEN : COMPARED_LEN]
            )
            if sample[compared:] != expected[compared:]:
                raise MptmError(
                    f"a packet arrived broken through {self._chain.kind}: {sample.hex()}, not {expected.hex()}"
                )
        self._maps["samples"].delete(list(self._maps["samples"].items()))
        return len(samples)

    def _received(self) -> list[Mapping[str, int]]:
        """What the sink counted, on each CPU."""
        received = self._maps["received"]
        return [received.value.unpack(value) for value in received.percpu(bytes(4))]
