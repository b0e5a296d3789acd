# SPDX-License-Identifier: GPL-2.0-only
"""Packets end to end: generator -> node 1 -> underlay -> node 2 -> sink, over veths in throw-away namespaces.

    left            node1                  node2            right
    eth0 ────────── port   eth0 ────────── eth0   port ──── eth0
    generator       encapsulation          decapsulation    sink (XDP_DROP, counts)

Three chains stand side by side and take turns: MPTM's XDP tunnel; mptm_redirect at the same places and no tunnel;
the kernel's vxlan device, bridged to the workloads. Generator and sink are the same in all of them. One CPU does
everything, from the generator to the sink.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from frames import DESTINATION_PORT, udp_frame
from namespaces import Namespaces, ethtool, instance_name, ip
from settings import variables

from mptm import headers
from mptm.errors import MptmError
from mptm.intent import Intent, Network, Port, Route, tunnel_from_dict
from mptm.kernel import libbpf, netns, testrun
from mptm.kernel.hashtable import open_maps
from mptm.kernel.maps import Map
from mptm.kernel.objects import EXTRAS, object_path
from mptm.lab.topology import run_in
from mptm.node import Node

TRAFFIC = "traffic.o"
TUNNEL, REDIRECT, VXLAN = "mptm", "redirect", "vxlan"
KINDS = (TUNNEL, REDIRECT, VXLAN)

NODES = ("node1", "node2")
WORKLOADS = ("left", "right")
ADDRESS = {"left": "10.250.1.100", "node1": "10.30.30.1", "node2": "10.30.30.2", "right": "10.250.1.101"}
MAC = {
    "left": "02:00:00:00:c1:01",
    "node1": "02:00:00:30:00:01",
    "node2": "02:00:00:30:00:02",
    "right": "02:00:00:00:c1:02",
}
WORKLOAD_OF = dict(zip(NODES, WORKLOADS, strict=True))
OTHER = {"node1": "node2", "node2": "node1"}
UNDERLAY_MTU, WORKLOAD_MTU = 1500, 1400
VNI = 100

SOURCE_PORT_AT = headers.ETHERNET_LEN + headers.IPV4_LEN
NUMBER_AT = SOURCE_PORT_AT + headers.UDP_LEN
NUMBER_LEN = 8
FIRST_PORT, FLOWS = 1024, 1024  # of traffic.bpf.c
ENOUGH_TO_TIME = 8192
SETTLE_SECONDS = 0.02


@dataclass(frozen=True)
class Run:
    """One run through a chain: packets sent and counted at the sink, packets per second at the sink."""

    sent: int
    arrived: int
    packets_per_second: float


@dataclass(frozen=True)
class Throughput:
    """What a chain carries: the median of its rounds with the quartiles, and packets that were sent and got lost.

    `samples` is how many packets were compared byte by byte on arrival.
    """

    kind: str
    packets_per_second: float
    low: float
    high: float
    sent: int
    lost: int
    samples: int


@dataclass(frozen=True)
class Comparison:
    """The chains, and ratios: medians over the rounds of what was measured right after one another."""

    chains: tuple[Throughput, ...]
    of_redirect: float
    of_vxlan: float


def compare(rounds: int, seconds: float, deadline: float, progress: Callable[[str], None]) -> Comparison:
    """All chains in turns, each about `seconds` of sending per round; no round begins after the deadline.

    `deadline` is a reading of time.monotonic(). Raises MptmError when a packet arrives broken.
    """
    with Namespaces() as namespaces, contextlib.ExitStack() as stack:
        chains = [PacketChain(kind, namespaces, stack) for kind in KINDS]
        counts = {chain.kind: chain.packets_in(seconds) for chain in chains}
        runs: dict[str, list[Run]] = {chain.kind: [] for chain in chains}
        for number in range(rounds):
            if number > 1 and time.monotonic() > deadline:
                progress("out of time: no further rounds")
                break
            for chain in chains:
                runs[chain.kind].append(chain.send(counts[chain.kind]))
            rates = ", ".join(
                f"{kind} {found[-1].packets_per_second / 1e6:.2f}" for kind, found in runs.items()
            )
            progress(f"round {number + 1} of {rounds}, million packets per second: {rates}")
        samples = {chain.kind: chain.check_samples() for chain in chains}
    return Comparison(
        tuple(_throughput(kind, found, samples[kind]) for kind, found in runs.items()),
        _ratio(runs[TUNNEL], runs[REDIRECT]),
        _ratio(runs[TUNNEL], runs[VXLAN]),
    )


def _throughput(kind: str, runs: Sequence[Run], samples: int) -> Throughput:
    rates = [run.packets_per_second for run in runs]
    low, middle, high = statistics.quantiles(rates, n=4)
    sent = sum(run.sent for run in runs)
    return Throughput(kind, middle, low, high, sent, sent - sum(run.arrived for run in runs), samples)


def _ratio(ours: Sequence[Run], theirs: Sequence[Run]) -> float:
    return statistics.median(
        one.packets_per_second / other.packets_per_second for one, other in zip(ours, theirs, strict=True)
    )


class Chain:
    """Four namespaces in a row; what is between the ends is up to `kind`.

    Programs come off when `stack` is closed, the namespaces go with `namespaces`.
    """

    def __init__(self, kind: str, namespaces: Namespaces, stack: contextlib.ExitStack) -> None:
        self.kind = kind
        self.namespace = {name: namespaces.add(f"{kind}-{name}") for name in ADDRESS}
        self._stack = stack
        self._ifindex: dict[tuple[str, str], int] = {}
        self._build_links()
        {TUNNEL: self._build_tunnel, REDIRECT: self._build_redirect, VXLAN: self._build_vxlan}[kind]()

    def _build_links(self) -> None:
        node1, node2 = (self.namespace[name] for name in NODES)
        left, right = (self.namespace[name] for name in WORKLOADS)
        ip(node1, [f"link add port type veth peer name eth0 netns {left}"])
        ip(node1, [f"link add eth0 type veth peer name eth0 netns {node2}"])
        ip(node2, [f"link add port type veth peer name eth0 netns {right}"])
        for name, namespace in self.namespace.items():
            mtu = UNDERLAY_MTU if name in NODES else WORKLOAD_MTU
            commands = [
                f"link set eth0 address {MAC[name]} mtu {mtu} up",
                f"address add {ADDRESS[name]}/24 dev eth0",
            ]
            if name in NODES:
                other = OTHER[name]
                commands += [
                    f"link set port mtu {WORKLOAD_MTU} up",
                    f"neighbour add {ADDRESS[other]} lladdr {MAC[other]} dev eth0",
                ]
            ip(namespace, commands)
            with netns.inside(namespace):
                for interface in ("eth0", "port") if name in NODES else ("eth0",):
                    self._ifindex[name, interface] = socket.if_nametoindex(interface)

    def _attach(self, name: str, interface: str, program_fd: int) -> int:
        """Descriptor of a link: native XDP until it is closed, at the end at the latest."""
        with netns.inside(self.namespace[name]):
            fd = libbpf.check(
                libbpf.create_xdp_link(program_fd, self._ifindex[name, interface], libbpf.XDP_FLAGS_DRV_MODE),
                f"no program can be attached to {interface} of {name}",
            )
        self._stack.callback(os.close, fd)
        return fd

    def _build_tunnel(self) -> None:
        for name in NODES:
            node = Node(instance_name(name), netns=self.namespace[name])
            self._stack.callback(node.purge)
            tunnel = {
                "name": "tunnel",
                "protocol": "vxlan",
                "network": "blue",
                "remote": ADDRESS[OTHER[name]],
                "vni": VNI,
            }
            here, there = ADDRESS[WORKLOAD_OF[name]], ADDRESS[WORKLOAD_OF[OTHER[name]]]
            node.apply(
                Intent.of(
                    [
                        Network(name="blue", id=1),
                        Port(name="port", role="access", network="blue", mode="native"),
                        Port(name="eth0", role="uplink", mode="native"),
                        tunnel_from_dict(tunnel),
                        Route(network="blue", prefix=f"{here}/32", port="port"),
                        Route(network="blue", prefix=f"{there}/32", via="tunnel"),
                    ]
                )
            )

    def _build_redirect(self) -> None:
        for name in NODES:
            programs, maps = _load(EXTRAS)
            port, uplink = (
                self._ifindex[name, interface].to_bytes(4, "little") for interface in ("port", "eth0")
            )
            with netns.inside(self.namespace[name]):
                maps["redirect_ports"].update({port: uplink, uplink: port})
            for interface in ("port", "eth0"):
                self._attach(name, interface, programs["mptm_redirect"])

    def _build_vxlan(self) -> None:
        """As fast as it gets: known MAC addresses, no learning, no checksum."""
        for name in NODES:
            namespace, other = self.namespace[name], OTHER[name]
            ip(
                namespace,
                [
                    f"link add vxlan0 type vxlan id {VNI} local {ADDRESS[name]} remote {ADDRESS[other]} dstport 4789 "
                    "dev eth0 nolearning noudpcsum",
                    "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                    "link set port master br0",
                    f"link set vxlan0 master br0 mtu {WORKLOAD_MTU} up",
                    "link set br0 up",
                ],
            )
            for workload, interface in ((WORKLOAD_OF[name], "port"), (WORKLOAD_OF[other], "vxlan0")):
                run_in(
                    namespace,
                    ["bridge", "fdb", "replace", MAC[workload], "dev", interface, "master", "static"],
                )


class PacketChain(Chain):
    """A chain with a packet generator at the left end and a sink at the right one."""

    def __init__(self, kind: str, namespaces: Namespaces, stack: contextlib.ExitStack) -> None:
        super().__init__(kind, namespaces, stack)
        if kind == VXLAN:
            # A veth takes frames that XDP sends only when its end has NAPI.
            for name in NODES:
                ethtool(self.namespace[name], "-K", "port", "gro", "on")
        self._programs, self._maps = _load(TRAFFIC)
        self._attach("right", "eth0", self._programs["bench_sink"])
        self._frame = udp_frame(
            _mac("right"), _mac("left"), ip_address(ADDRESS["left"]), ip_address(ADDRESS["right"])
        )
        settings = variables(self._programs["bench_generate"])
        value = self._frame + bytes(NUMBER_LEN) + DESTINATION_PORT.to_bytes(2, "big")
        settings.update({bytes(4): value.ljust(settings.info.value_size, b"\0")})

    def send(self, count: int) -> Run:
        """Send `count` packets and wait until no more arrive. Raises MptmError when too few do to tell a rate."""
        received = self._maps["received"]
        received.update({bytes(4): bytes(received.value.size)})
        with netns.inside(self.namespace["left"]):
            testrun.send(
                self._programs["bench_generate"],
                self._frame,
                ifindex=self._ifindex["left", "eth0"],
                count=count,
            )
        seen = self._received()
        while True:
            time.sleep(SETTLE_SECONDS)
            before, seen = seen, self._received()
            if before["packets"] == seen["packets"]:
                break
        nanoseconds = seen["last_ns"] - seen["first_ns"]
        if not nanoseconds:
            raise MptmError(f"of {count} packets through {self.kind}, {seen['packets']} arrived")
        return Run(count, seen["packets"], seen["packets_between"] * 1e9 / nanoseconds)

    def packets_in(self, seconds: float) -> int:
        """About how many packets the chain carries in some time."""
        self.send(ENOUGH_TO_TIME)
        return max(ENOUGH_TO_TIME, int(self.send(4 * ENOUGH_TO_TIME).packets_per_second * seconds))

    def check_samples(self) -> int:
        """Compare the sampled packets with what was sent; returns how many. Raises MptmError for a broken one."""
        samples = self._maps["samples"].items().values()
        for sample in samples:
            number = sample[NUMBER_AT : NUMBER_AT + NUMBER_LEN]
            port = FIRST_PORT + int.from_bytes(number, "little") % FLOWS
            expected = (
                self._frame[:SOURCE_PORT_AT]
                + port.to_bytes(2, "big")
                + self._frame[SOURCE_PORT_AT + 2 : NUMBER_AT]
                + number
                + self._frame[NUMBER_AT + NUMBER_LEN :]
            )
            if sample != expected:
                raise MptmError(
                    f"a packet arrived broken through {self.kind}", f"{sample.hex()}\n  {expected.hex()}"
                )
        return len(samples)

    def _received(self) -> Mapping[str, int]:
        """What the sink counted: on one CPU, as everything is done by one."""
        received = self._maps["received"]
        values = [received.value.unpack(value) for value in received.percpu(bytes(4))]
        busy = [value for value in values if value["packets"]]
        if len(busy) > 1:
            raise MptmError("packets arrived on more than one CPU: receive packet steering has to be off")
        return busy[0] if busy else values[0]


def _load(name: str) -> tuple[dict[str, int], dict[str, Map]]:
    """Programs and maps of an object, alive as long as this process."""
    with libbpf.Object(object_path(name)) as loading:
        loading.load()
        return loading.program_fds(), open_maps(loading.map_fds())


def _mac(name: str) -> bytes:
    return bytes.fromhex(MAC[name].replace(":", ""))
