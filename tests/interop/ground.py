# SPDX-License-Identifier: GPL-2.0-only
"""Our end of the matrix: a lab with one node of ours, that has a network, a workload and a tunnel for every place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matrix import NODE, WORKLOAD_LINK_MTU, WORKLOADS, Case, Peer, Place

from mptm.intent import Intent, Network, Object, Port, Route
from mptm.lab.topology import Lab, Topology, configure, run_in
from mptm.node import Node

HOST_LEN = {4: 32, 6: 128}
LINK_LEN = {4: 24, 6: 64}
ROUTER = {4: "10.251.{}.254", 6: "fd00:251:{:x}::fe"}
"""A peer's address towards a workload behind it that it routes to, by IP version; the blank is the place's number."""


class Ground:
    """The lab of one peer with all its cases set up: `up` and `down`, then `places` by case id.

    `hook` is that of our ports: xdp, tc or auto.
    """

    def __init__(self, prefix: str, kind: type[Peer], cases: Sequence[Case], hook: str = "auto") -> None:
        self.lab = Lab(prefix)
        self.hook = hook
        self.lab.topology = kind.topology(self.lab.topology)
        self.peer = kind(self.lab)
        self.places = {case.id: Place(case, number) for number, case in enumerate(cases, 1)}

    @property
    def node(self) -> Node:
        """Ours."""
        return self.lab.node(NODE)

    def up(self) -> None:
        """Build it; what was begun goes when something fails."""
        try:
            self.lab.up(bare=True)
            self.peer.start()
            self.peer.set_up(list(self.places.values()))
            self._set_up_node()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Take it away. Harmless when there is nothing."""
        try:
            self.peer.stop()
        finally:
            self.lab.down()

    def _set_up_node(self) -> None:
        node, workloads = self.lab.namespace(NODE), self.lab.namespace(WORKLOADS)
        at_node, at_workload = [], []
        for place in self.places.values():
            name = place.interface
            at_node += [
                f"link add {name} type veth peer name {name} netns {workloads}",
                f"link set {name} mtu {WORKLOAD_LINK_MTU} addrgenmode none up",
                *place.outer_commands(place.node_outer, "eth0"),
            ]
            if place.case.underlay == 6:
                at_node.append(f"route add {place.peer_sids} via {place.peer_outer}")
            at_workload += workload_commands(
                name, place.node_mac, place.node_inner, place.peer_inner, place.mtu
            )
        configure(node, at_node)
        configure(workloads, at_workload)
        self.node.apply(Intent.of([Port(name="eth0", role="uplink", hook=self.hook), *self._objects()]))

    def _objects(self) -> list[Object]:
        objects: list[Object] = []
        for place in self.places.values():
            network = place.network
            objects += [
                Network(name=network, id=place.number, gateway=tuple(place.gateway.values())),
                Port(name=place.interface, role="access", network=network, hook=self.hook),
                place.tunnel(),
            ]
            to_peer: dict[str, Any] = {"via": network} | ({} if place.is_l3 else {"mac": place.peer_mac})
            for version in place.case.inner:
                host_len = HOST_LEN[version]
                to_node = f"{place.node_inner[version]}/{host_len}"
                to_far = f"{place.peer_inner[version]}/{host_len}"
                objects += [
                    Route(network=network, prefix=to_node, port=place.interface),
                    Route(network=network, prefix=to_far, **to_peer),
                ]
        return objects


def with_containers(topology: Topology, node: str, names: Sequence[str]) -> Topology:
    """The topology with more containers at a node, made like those it has."""
    nodes = []
    for each in topology.nodes:
        if each.name == node:
            like = each.containers[0]
            more = [
                replace(like, name=name, namespace=f"{each.namespace}-{name}", port=f"veth-{name}")
                for name in names
            ]
            each = replace(each, containers=(*each.containers, *more))
        nodes.append(each)
    return replace(topology, nodes=tuple(nodes))


def workload_commands(
    interface: str, mac: str, own: dict[int, str], other: dict[int, str], mtu: int
) -> list[str]:
    """`ip` commands that make a link a workload's: its addresses, and a route to the other end by the tunnel's MTU."""
    commands = [f"link set {interface} address {mac} mtu {WORKLOAD_LINK_MTU} addrgenmode none up"]
    for version, link_len in LINK_LEN.items():
        nodad = " nodad" if version == 6 else ""
        route = f"route add {other[version]}/{HOST_LEN[version]} dev {interface}"
        commands += [
            f"address add {own[version]}/{link_len} dev {interface}{nodad}",
            f"{route} src {own[version]} mtu {mtu}",
        ]
    return commands


def srv6_commands(
    place: Place, card: str, behind: str, words: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """`ip` commands that make a kernel an end of SRv6 for a workload in the network namespace `behind`: its, and those.

    `at_peer` of the case has how packets are encapsulated and, by SID, what is done at its segments, `words` filled in.
    """
    name, options = place.interface, place.case.at_peer
    router = {version: text.format(place.number) for version, text in ROUTER.items()}
    commands = [
        f"link add {name} type veth peer name {name} netns {behind}",
        f"link set {name} mtu {WORKLOAD_LINK_MTU} addrgenmode none up",
        # Without a link-local address it wouldn't ask for neighbours of what it forwards.
        f"address add fe80::1/64 dev {name} nodad",
        f"route add {place.node_sids} via {place.node_outer} dev {card}",
    ]
    workload = workload_commands(name, place.peer_mac, place.peer_inner, place.node_inner, place.mtu)
    for version in (4, 6):
        commands += [
            f"address add {router[version]}/{LINK_LEN[version]} dev {name}{' nodad' * (version == 6)}",
            f"route add {place.node_inner[version]}/{HOST_LEN[version]} "
            f"encap seg6 mode {options['mode']} segs {place.node_sid} dev {card}",
        ]
        # To us by way of the kernel.
        workload = [
            command.replace(f" dev {name} src", f" via {router[version]} dev {name} src")
            if f"route add {place.node_inner[version]}" in command
            else command
            for command in workload
        ]
    commands += [
        f"route add {getattr(place, sid)}/128 encap seg6local action {action.format(**words)} dev {name}"
        for sid, action in options["segments"].items()
    ]
    return commands, workload


def set_offloads(namespace: str, interface: str) -> None:
    """Let a link that no port of ours is at hand over packets as they are on a wire."""
    words = "tx off txvlan off tx-vlan-stag-hw-insert off gro on"
    run_in(namespace, ["ethtool", "-K", interface, *words.split()])
