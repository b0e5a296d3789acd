# SPDX-License-Identifier: GPL-2.0-only
"""Two nodes with a workload each, in throw-away namespaces, joined by veths, and what may be between the workloads.

    left            node1                  node2            right
    eth0 ────────── port   eth0 ────────── eth0   port ──── eth0

Chains of different kinds stand side by side, alike but for what the nodes run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pyroute2 import IPRoute

from mptm.errors import MptmError, NotSupported
from mptm.intent import Intent, Network, Port, Route, tunnel_from_dict
from mptm.kernel import libbpf, netns
from mptm.kernel.hashtable import open_maps
from mptm.kernel.maps import Map
from mptm.kernel.objects import EXTRAS, object_path
from mptm.lab.topology import run_in
from mptm.node import Node

from .namespaces import Namespaces, ethtool, instance_name, ip
from .ovs import Switch

XDP, TC, REDIRECT, VXLAN, ROUTING, OVS = "mptm-xdp", "mptm-tc", "redirect", "vxlan", "routing", "ovs"
ORIGINAL = "original"
TC_REDIRECT = "redirect-tc"
KINDS = (XDP, TC, REDIRECT, TC_REDIRECT, VXLAN, ROUTING, OVS)
TITLES = {
    XDP: "MPTM at XDP, VXLAN",
    TC: "MPTM at TC, VXLAN",
    REDIRECT: "plain redirect in XDP, no tunnel",
    TC_REDIRECT: "plain redirect at TC, no tunnel",
    VXLAN: "kernel vxlan and bridge",
    ROUTING: "kernel routing, no tunnel",
    OVS: "Open vSwitch in user space, VXLAN",
    ORIGINAL: "the program that MPTM started from, GENEVE",
}

SMOKE_KINDS = (XDP, TC, VXLAN)
"""Enough to see that the benchmark works."""

NODES = ("node1", "node2")
WORKLOADS = ("left", "right")
OUTER = {"node1": "10.30.30.1", "node2": "10.30.30.2"}
INNER = {"left": "10.250.1.100", "right": "10.250.1.101"}
ROUTED = {"left": "10.250.1.100", "right": "10.250.2.100"}
"""Addresses where the kernel routes between the workloads: each node is the gateway of its own, at .1."""
MAC = {
    "left": "02:00:00:00:c1:01",
    "node1": "02:00:00:30:00:01",
    "node2": "02:00:00:30:00:02",
    "right": "02:00:00:00:c1:02",
}
PORT_MAC = {"node1": "02:00:00:99:00:01", "node2": "02:00:00:99:00:02"}
WORKLOAD_OF = dict(zip(NODES, WORKLOADS, strict=True))
NODE_OF = dict(zip(WORKLOADS, NODES, strict=True))
OTHER = {"node1": "node2", "node2": "node1", "left": "right", "right": "left"}
OVERHEAD = 100
"""Bytes of MTU that workloads leave to the tunnel."""
QUEUES = 2
"""Of each veth: so that two CPUs don't wait for one another."""
VNI = 100
INGRESS = 0xFFFFFFF2
"""TC_H_MIN_INGRESS of the clsact qdisc (linux/pkt_sched.h)."""
SEGMENTATION = (
    "tso",
    "gso",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-gre-segmentation",
    "tx-udp-segmentation",
)


@dataclass(frozen=True)
class Underlay:
    """What is between the nodes: MTU in bytes; whether it takes GSO packets whole."""

    mtu: int = 1500
    whole: bool = True

    def __str__(self) -> str:
        return f"MTU {self.mtu}, {'GSO whole' if self.whole else 'segmented'}"


class Chain:
    """Four namespaces in a row; what is between the ends is up to `kind`.

    Programs come off when `stack` is closed, the namespaces go with `namespaces`. Raises MptmError when a chain of
    this kind can't be had here.
    """

    def __init__(
        self,
        kind: str,
        namespaces: Namespaces,
        stack: contextlib.ExitStack,
        underlay: Underlay,
        original: Path | None = None,
    ) -> None:
        self.kind = kind
        self.underlay = underlay
        self.address = ROUTED if kind == ROUTING else INNER
        prefix = f"{kind}-{underlay.mtu}{'' if underlay.whole else 's'}"
        self._namespaces = namespaces
        self._prefix = prefix
        self._stack = stack
        self._build: Callable[[], None] = {
            XDP: lambda: self._build_tunnel("xdp"),
            TC: lambda: self._build_tunnel("tc"),
            REDIRECT: self._build_redirect,
            TC_REDIRECT: self._build_tc_redirect,
            VXLAN: self._build_vxlan,
            ROUTING: self._build_routing,
            OVS: self._build_ovs,
            ORIGINAL: lambda: self._build_original(original),
        }[kind]
        self.switches: list[Switch] = []
        self.namespace = {name: namespaces.add(f"{prefix}-{name}") for name in MAC}
        self.ifindex: dict[tuple[str, str], int] = {}
        self._build_links()
        self._build()

    @property
    def workload_mtu(self) -> int:
        """Bytes."""
        return self.underlay.mtu - OVERHEAD

    @property
    def is_xdp(self) -> bool:
        """Whether frames go through the chain without becoming an skb."""
        return self.kind in (XDP, REDIRECT, ORIGINAL)

    def destination_mac(self) -> bytes:
        """Where the left workload sends to, to reach the right one."""
        mac = PORT_MAC["node1"] if self.kind == ROUTING else MAC["right"]
        return bytes.fromhex(mac.replace(":", ""))

    def attach_xdp(self, name: str, interface: str, program_fd: int) -> None:
        """Run a program natively in XDP, until the chain goes. Raises KernelError."""
        with netns.inside(self.namespace[name]):
            fd = libbpf.check(
                libbpf.create_xdp_link(program_fd, self.ifindex[name, interface], libbpf.XDP_FLAGS_DRV_MODE),
                f"no program can be attached to {interface} of {name}",
            )
        self._stack.callback(os.close, fd)

    def attach_tc(self, name: str, interface: str, program_fd: int) -> None:
        """Run a program at TC on ingress, until the namespace goes."""
        index = self.ifindex[name, interface]
        with netns.inside(self.namespace[name]), IPRoute() as netlink:
            netlink.tc("add", "clsact", index)
            netlink.tc(
                "add-filter",
                "bpf",
                index,
                fd=program_fd,
                name="bench",
                parent=INGRESS,
                classid=1,
                direct_action=True,
            )

    def fit_for_stacks(self) -> None:
        """Offloads that suit the kind, for workloads whose stack sends and receives.

        In XDP and in user space frames have no place for what is left to hardware: checksums are filled in before.
        A veth takes frames that XDP sends only when its end has NAPI.
        """
        for name in WORKLOADS:
            if self.is_xdp:
                ethtool(self.namespace[name], "-K", "eth0", "tx", "off", "gro", "on")
            elif self.kind == OVS:
                ethtool(self.namespace[name], "-K", "eth0", "tx", "off")

    def _build_links(self) -> None:
        node1, node2 = (self.namespace[name] for name in NODES)
        left, right = (self.namespace[name] for name in WORKLOADS)
        queues = f"numtxqueues {QUEUES} numrxqueues {QUEUES}"
        for node, interface, peer in ((node1, "port", left), (node1, "eth0", node2), (node2, "port", right)):
            ip(node, [f"link add {interface} {queues} type veth peer name eth0 {queues} netns {peer}"])
        for name, namespace in self.namespace.items():
            is_node = name in NODES
            mtu = self.underlay.mtu if is_node else self.workload_mtu
            commands = [f"link set eth0 address {MAC[name]} mtu {mtu} up"]
            if is_node:
                commands.append(f"link set port address {PORT_MAC[name]} mtu {self.workload_mtu} up")
                if self.kind != OVS:
                    commands += self._outer_commands(name, "eth0")
            else:
                commands.append(f"address add {self.address[name]}/24 dev eth0")
                commands += self._neighbour_commands(name)
            ip(namespace, commands)
            with netns.inside(namespace):
                for interface in ("eth0", "port") if is_node else ("eth0",):
                    self.ifindex[name, interface] = socket.if_nametoindex(interface)
            if is_node and not self.underlay.whole:
                words = [word for feature in SEGMENTATION for word in (feature, "off")]
                ethtool(namespace, "-K", "eth0", *words, "gro", "on")

    @staticmethod
    def _outer_commands(name: str, interface: str) -> list[str]:
        other = OTHER[name]
        return [
            f"address add {OUTER[name]}/24 dev {interface}",
            f"neighbour add {OUTER[other]} lladdr {MAC[other]} dev {interface}",
        ]

    def _neighbour_commands(self, name: str) -> list[str]:
        """A workload knows the MAC address that leads to the other one: nobody has to ask."""
        other = OTHER[name]
        if self.kind != ROUTING:
            return [f"neighbour add {self.address[other]} lladdr {MAC[other]} dev eth0"]
        gateway = self._gateway(name)
        return [
            f"neighbour add {gateway} lladdr {PORT_MAC[NODE_OF[name]]} dev eth0",
            f"route add {self.address[other]}/32 via {gateway}",
        ]

    def _gateway(self, workload: str) -> str:
        return self.address[workload].rsplit(".", 1)[0] + ".1"

    def _build_tunnel(self, hook: str) -> None:
        for name in NODES:
            node = Node(instance_name(f"{self._prefix}-{name}"), netns=self.namespace[name])
            self._stack.callback(node.purge)
            tunnel = {
                "name": "tunnel",
                "protocol": "vxlan",
                "network": "blue",
                "remote": OUTER[OTHER[name]],
                "vni": VNI,
            }
            here, there = INNER[WORKLOAD_OF[name]], INNER[WORKLOAD_OF[OTHER[name]]]
            node.apply(
                Intent.of(
                    [
                        Network(name="blue", id=1),
                        Port(name="port", role="access", network="blue", **_at(hook)),
                        Port(name="eth0", role="uplink", **_at(hook)),
                        tunnel_from_dict(tunnel),
                        Route(network="blue", prefix=f"{here}/32", port="port"),
                        Route(network="blue", prefix=f"{there}/32", via="tunnel"),
                    ]
                )
            )

    def _build_redirect(self) -> None:
        for name in NODES:
            programs, maps = load(EXTRAS)
            port, uplink = (
                self.ifindex[name, interface].to_bytes(4, "little") for interface in ("port", "eth0")
            )
            with netns.inside(self.namespace[name]):
                maps["redirect_ports"].update({port: uplink, uplink: port})
            for interface in ("port", "eth0"):
                self.attach_xdp(name, interface, programs["mptm_redirect"])

    def _build_tc_redirect(self) -> None:
        for name in NODES:
            programs, maps = load(TRAFFIC)
            port, uplink = (self.ifindex[name, interface] for interface in ("port", "eth0"))
            to_uplink, to_peer = struct.pack("<II", uplink, 0), struct.pack("<II", port, 1)
            maps["targets"].update({struct.pack("<I", port): to_uplink, struct.pack("<I", uplink): to_peer})
            for interface in ("port", "eth0"):
                self.attach_tc(name, interface, programs["bench_redirect_tc"])

    def _build_vxlan(self) -> None:
        """As fast as it gets: known MAC addresses, no learning, no checksum."""
        for name in NODES:
            namespace, other = self.namespace[name], OTHER[name]
            ip(
                namespace,
                [
                    f"link add vxlan0 type vxlan id {VNI} local {OUTER[name]} remote {OUTER[other]} dstport 4789 "
                    "dev eth0 nolearning noudpcsum",
                    "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                    "link set port master br0",
                    f"link set vxlan0 master br0 mtu {self.workload_mtu} up",
                    "link set br0 up",
                ],
            )
            for workload, interface in ((WORKLOAD_OF[name], "port"), (WORKLOAD_OF[other], "vxlan0")):
                run_in(
                    namespace,
                    ["bridge", "fdb", "replace", MAC[workload], "dev", interface, "master", "static"],
                )

    def _build_routing(self) -> None:
        for name in NODES:
            workload, far = WORKLOAD_OF[name], WORKLOAD_OF[OTHER[name]]
            run_in(self.namespace[name], ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
            ip(
                self.namespace[name],
                [
                    f"address add {self._gateway(workload)}/24 dev port",
                    f"neighbour add {self.address[workload]} lladdr {MAC[workload]} dev port",
                    f"route add {self.address[far]}/32 via {OUTER[OTHER[name]]}",
                ],
            )

    def _build_ovs(self) -> None:
        for name in NODES:
            other = OTHER[name]
            namespace = self.namespace[name]
            for interface in ("eth0", "port"):
                ethtool(namespace, "-K", interface, "tx", "off", "gro", "off")
            switch = Switch(namespace, self._stack)
            self.switches.append(switch)
            switch.add_bridges(MAC[name], "eth0")
            ip(namespace, [f"link set {switch.physical} up", *self._outer_commands(name, switch.physical)])
            switch.add_tunnel("port", OUTER[name], OUTER[other], MAC[other], VNI)

    def _build_original(self, path: Path | None) -> None:
        """The object's programs on port and uplink, and one tunnel in its tables.

        Raises MptmError when its programs or tables aren't those that its README describes.
        """
        if path is None:
            raise NotSupported("not in this run: --original names its object")
        for name in NODES:
            programs, maps = load_path(path, are_xdp=True)
            for needed in (*ORIGINAL_PROGRAMS, *ORIGINAL_MAPS):
                if needed not in programs and needed not in maps:
                    raise NotSupported(f"{path} has no {needed}: it isn't the version that is known here")
            tunnels, redirects = (maps[each] for each in ORIGINAL_MAPS)
            if (tunnels.info.key_size, tunnels.info.value_size) != (8, ORIGINAL_VALUE_SIZE):
                raise NotSupported(f"{path}: the table {tunnels.name} has another layout than is known here")
            port, uplink = self.ifindex[name, "port"], self.ifindex[name, "eth0"]
            value = self._original_tunnel(name, port, uplink)
            here, there = (packed(INNER[end]) for end in (WORKLOAD_OF[name], WORKLOAD_OF[OTHER[name]]))
            with netns.inside(self.namespace[name]):
                tunnels.update({here + there: value, there + here: value})
                indexes = [index.to_bytes(4, "little") for index in (port, uplink)]
                redirects.update({indexes[0]: indexes[1], indexes[1]: indexes[0]})
            for interface, program in zip(("port", "eth0"), ORIGINAL_PROGRAMS, strict=True):
                self.attach_xdp(name, interface, programs[program])

    @staticmethod
    def _original_tunnel(name: str, port: int, uplink: int) -> bytes:
        """A GENEVE tunnel, as the README shows one that `bpftool map dump` has read."""
        other = OTHER[name]
        value = struct.pack("<BBBHIIxxx", 0, 3, 1, 0, uplink, port) + bytes(8)
        value += struct.pack(">HH", 51234, 0) + packed(OUTER[other]) + packed(OUTER[name])
        for mac in (MAC[WORKLOAD_OF[other]], MAC[name], MAC[other]):
            value += bytes.fromhex(mac.replace(":", ""))
        return value.ljust(ORIGINAL_VALUE_SIZE, b"\0")


def _at(hook: str) -> dict[str, str]:
    """Fields of a port at a hook."""
    return {"hook": hook} | ({"mode": "native"} if hook == "xdp" else {})


TRAFFIC = "traffic.o"
ORIGINAL_PROGRAMS = ("mptm_encap_xdp", "mptm_decap_xdp")
ORIGINAL_MAPS = ("mptm_tunnel_info_map", "mptm_redirect_if_devmap")
ORIGINAL_VALUE_SIZE = 64
PROGRAM_TYPE_XDP = 6  # enum bpf_prog_type


def load(name: str) -> tuple[dict[str, int], dict[str, Map]]:
    """Programs and maps of an object, alive as long as this process."""
    return load_path(object_path(name))


def load_path(path: Path, *, are_xdp: bool = False) -> tuple[dict[str, int], dict[str, Map]]:
    """The same for an object anywhere; `are_xdp`: its programs are, whatever their sections are called.

    Raises KernelError.
    """
    with libbpf.Object(path) as loading:
        if are_xdp:
            _take_for_xdp(loading)
        loading.load()
        return loading.program_fds(), open_maps(loading.map_fds())


def _take_for_xdp(loading: libbpf.Object) -> None:
    """Programs whose sections libbpf doesn't know have no type of their own (`bpftool prog loadall ... type xdp`)."""
    library = libbpf.library()
    set_type = library.bpf_program__set_type
    set_type.restype, set_type.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_int)
    program = library.bpf_object__next_program(loading._handle, None)
    while program:
        libbpf.check(set_type(program, PROGRAM_TYPE_XDP), "a program can't be taken for one of XDP")
        program = library.bpf_object__next_program(loading._handle, program)


def addresses(chain: Chain) -> tuple[str, str]:
    """Of the left and of the right workload."""
    return chain.address["left"], chain.address["right"]


def packed(address: str) -> bytes:
    """An address as it goes on the wire."""
    return ip_address(address).packed


def try_to_build(
    kinds: tuple[str, ...],
    namespaces: Namespaces,
    stack: contextlib.ExitStack,
    underlay: Underlay,
    original: Path | None = None,
) -> dict[str, Chain | str]:
    """A chain of each kind, or the reason why there is none."""
    built: dict[str, Chain | str] = {}
    for kind in kinds:
        try:
            built[kind] = Chain(kind, namespaces, stack, underlay, original)
        except (MptmError, OSError) as error:
            built[kind] = " ".join(str(error).split())
    return built
