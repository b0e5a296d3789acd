# SPDX-License-Identifier: GPL-2.0-only
"""The running kernel, in the namespace of node2: its vxlan devices and its segment routing.

vxlan    wN is the device itself, with the workload's addresses
srv6     node2 routes between the underlay and a workload in node2-c1: it encapsulates by a route to our workload,
         and decapsulates by a route to a segment of its own
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import local
from ground import set_offloads, srv6_commands, workload_commands
from matrix import Case, Peer, Place, Server, Unable, srv6_case

from mptm.lab.topology import configure

HOST, BEHIND = "node2", "node2-c1"
GROUP, OTHER_GROUP = 0x1234, 0x4321
"""VXLAN-GBP: ours, and the one that node2 asks with."""


class KernelPeer(Peer):
    """Everything in one namespace, whose switches are set for it."""

    name = "kernel"
    title = "The running kernel"

    @classmethod
    def cases(cls) -> list[Case]:
        return CASES

    @classmethod
    def unable(cls) -> list[Unable]:
        return UNABLE

    def start(self) -> None:
        switches = [
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            # Answers, and connections that are accepted, are of the group of what came.
            "net.ipv4.fwmark_reflect=1",
            "net.ipv6.fwmark_reflect=1",
            "net.ipv4.tcp_fwmark_accept=1",
        ]
        self.lab.exec(HOST, ["sysctl", "-qw", *switches])

    def stop(self) -> None:
        """The lab has it all."""

    def version(self) -> str:
        release = Path("/proc/sys/kernel/osrelease").read_text()
        return ".".join(release.split(".")[:2])

    def set_up(self, places: Sequence[Place]) -> None:
        for place in places:
            configure(self.lab.namespace(HOST), place.outer_commands(place.peer_outer, "eth0"))
            if place.case.protocol == "srv6":
                self._set_up_srv6(place)
            else:
                self._set_up_vxlan(place)

    def _set_up_vxlan(self, place: Place) -> None:
        """`at_peer` has the arguments of the device and, if it is an external one, the VNI for the routes to it."""
        name, options = place.interface, place.case.at_peer
        words = str(options["device"]).format(local=place.peer_outer, remote=place.node_outer)
        commands = [f"link add {name} type vxlan {words}"]
        workload = workload_commands(name, place.peer_mac, place.peer_inner, place.node_inner, place.mtu)
        if "vni" in options:
            how = f"encap ip{'6' * (place.case.underlay == 6)} id {options['vni']} dst {place.node_outer}"
            workload = [command.replace(f"dev {name} src", f"{how} dev {name} src") for command in workload]
        if "gpe" in words:
            workload = [command.replace(f"address {place.peer_mac} ", "") for command in workload]
        elif "vni" in options:
            workload += [
                f"neighbour add {address} lladdr {place.node_mac} nud permanent dev {name}"
                for address in place.node_inner.values()
            ]
        configure(self.lab.namespace(HOST), [*commands, *workload])

    def _set_up_srv6(self, place: Place) -> None:
        """`at_peer` has how packets are encapsulated and, by SID, what is done at our segments."""
        name = place.interface
        words = {"interface": name, "peer4": place.peer_inner[4], "peer6": place.peer_inner[6]}
        commands, behind = srv6_commands(place, "eth0", self.lab.namespace(BEHIND), words)
        configure(self.lab.namespace(HOST), commands)
        configure(self.lab.namespace(BEHIND), behind)
        set_offloads(self.lab.namespace(BEHIND), name)
        # What GRO has joined is lost in the kernel's l2encap, which can't cut it again.
        self.lab.exec(HOST, ["ethtool", "-K", name, "tx", "off", "gro", "off"])

    def attempt(self, unable: Unable) -> str:
        """`attempt` is a command."""
        done = self.lab.exec(HOST, list(unable.attempt), check=False)
        assert done.returncode, f"{unable.protocol}: {' '.join(unable.attempt)} worked"
        return done.stdout + done.stderr

    def ping(self, place: Place, version: int, *options: str, count: int = 3) -> str:
        mark = place.case.at_peer.get("mark")
        options = options if mark is None else ("-m", str(mark), *options)
        return local.ping(
            self.lab, _end(place), place.peer_inner[version], place.node_inner[version], *options, count=count
        )

    def serving(self, place: Place, version: int, size: int) -> AbstractContextManager[Server]:
        return local.serving(self.lab, _end(place), place.peer_inner[version], version, size)

    def send_oversized(self, place: Place, data: bytes) -> None:
        local.send_oversized(self.lab, _end(place), place, data)


def _end(place: Place) -> str:
    """Where the peer's workload is."""
    return BEHIND if place.case.protocol == "srv6" else HOST


# ---- what is tried -----------------------------------------------------------------------------------------------


def _vxlan(
    protocol: str, device: str, mine: dict[str, Any], *, underlays: Sequence[int] = (4, 6), **more: Any
) -> list[Case]:
    at_peer = {name: more.pop(name) for name in ("vni", "mark") if name in more}
    made = []
    for underlay in underlays:
        # An external device has its port for itself.
        port = int(mine["port"]) + (1 if underlay == 6 and "external" in device else 0)
        ends = "" if "external" in device else " local {local} remote {remote}"
        zero_checksum = " udp6zerocsumrx" if underlay == 6 and mine.get("udp_checksum") is False else ""
        words = f"{device}{ends} dstport {port}{zero_checksum}"
        made.append(
            Case(
                peer="kernel",
                protocol=protocol,
                underlay=underlay,
                options={**mine, "port": port},
                at_peer={"device": words, **at_peer},
                **more,
            )
        )
    return made


_srv6 = partial(srv6_case, "kernel")

DX4, DX6 = "End.DX4 nh4 {peer4}", "End.DX6 nh6 {peer6}"
CASES = [
    *_vxlan("vxlan", "id 100", {"vni": 100, "port": 4789}, quick=True),
    *_vxlan(
        "vxlan",
        "id 101",
        {"vni": 101, "port": 4788, "udp_checksum": False},
        form="zero checksum",
        underlays=[6],
    ),
    *_vxlan("vxlan", "external", {"vni": 102, "port": 8472}, form="external device", vni=102),
    *_vxlan(
        "vxlan-gbp",
        "id 103 gbp",
        {"vni": 103, "port": 4799, "group_policy_id": GROUP},
        mark=OTHER_GROUP,
        answers_with=f"8800{GROUP:04x}000067",
    ),
    *_vxlan(
        "vxlan-gpe",
        "external gpe",
        {"vni": 104, "port": 4790, "payload": "l3"},
        form="IP",
        vni=104,
    ),
    *_vxlan(
        "vxlan-gpe",
        "external gpe",
        {"vni": 105, "port": 4792, "payload": "l2"},
        form="Ethernet",
        vni=105,
        unanswered="a gpe device of the kernel takes IP packets only",
    ),
    *_vxlan(
        "nsh",
        "external gpe",
        {"vni": 106, "port": 4794, "payload": "l3", "spi": 7},
        vni=106,
        unanswered="a gpe device of the kernel hands NSH on, but nothing takes it",
    ),
    _srv6("H.Encaps, End.DX4", "encap", {}, {"peer_sid": DX4}, (4,), quick=True),
    _srv6("H.Encaps, End.DX6", "encap", {}, {"peer_sid": DX6}, (6,)),
    _srv6("H.Encaps, End.DT6", "encap", {}, {"peer_sid": "End.DT6 table 254"}, (6,)),
    _srv6("H.Encaps.Red, End.DX4", "encap.red", {"mode": "reduced"}, {"peer_sid": DX4}, (4,)),
    _srv6("H.Encaps.Red, End.DX6", "encap.red", {"mode": "reduced"}, {"peer_sid": DX6}, (6,)),
    _srv6(
        "two segments, End, End.DX6",
        "encap",
        {"segments": ["{transit_sid}", "{peer_sid}"]},
        {"transit_sid": "End", "peer_sid": DX6},
        (6,),
    ),
    _srv6(
        "two segments reduced, End, End.DX4",
        "encap.red",
        {"mode": "reduced", "segments": ["{transit_sid}", "{peer_sid}"]},
        {"transit_sid": "End", "peer_sid": DX4},
        (4,),
    ),
    _srv6("H.Encaps.L2, End.DX2", "l2encap", {"mode": "l2"}, {"peer_sid": "End.DX2 oif {interface}"}, (4, 6)),
]

NO_DEVICE = "Unknown device type"
LINK = ("ip", "link", "add", "x0", "type")
ENDS = ("local", "10.30.30.2", "remote", "10.30.30.1")
UNABLE = [
    Unable(
        "vlan",
        "no VLAN devices, and bridges without VLAN filtering",
        (*LINK, "bridge", "vlan_filtering", "1"),
        "not supported",
    ),
    Unable(
        "qinq",
        "no VLAN devices, and bridges without VLAN filtering",
        (*LINK, "bridge", "vlan_protocol", "802.1ad", "vlan_filtering", "1"),
        "not supported",
    ),
    Unable(
        "geneve",
        "no geneve device in this kernel",
        (*LINK, "geneve", "id", "1", "remote", "10.30.30.1"),
        NO_DEVICE,
    ),
    Unable("gre", "no gre device in this kernel", (*LINK, "gre", *ENDS), NO_DEVICE),
    Unable("gretap", "no gretap device in this kernel", (*LINK, "gretap", *ENDS), NO_DEVICE),
    Unable("nvgre", "no gretap device in this kernel", (*LINK, "gretap", *ENDS, "key", "1"), NO_DEVICE),
    Unable(
        "erspan",
        "no erspan device in this kernel",
        (*LINK, "erspan", *ENDS, "seq", "key", "1", "erspan_ver", "1"),
        NO_DEVICE,
    ),
    Unable("ipip", "no ipip device in this kernel", (*LINK, "ipip", *ENDS), NO_DEVICE),
    Unable("sit", "no sit device in this kernel", (*LINK, "sit", *ENDS), NO_DEVICE),
    Unable(
        "ip4ip6",
        "no ip6tnl device in this kernel",
        (*LINK, "ip6tnl", "mode", "ipip6", "local", "::2", "remote", "::3"),
        NO_DEVICE,
    ),
    Unable(
        "ip6ip6",
        "no ip6tnl device in this kernel",
        (*LINK, "ip6tnl", "mode", "ip6ip6", "local", "::2", "remote", "::3"),
        NO_DEVICE,
    ),
    Unable(
        "fou", "no FOU in this kernel", ("ip", "fou", "add", "port", "5555", "ipproto", "4"), "No such file"
    ),
    Unable("gue", "no GUE in this kernel", ("ip", "fou", "add", "port", "6080", "gue"), "No such file"),
    Unable(
        "gre-udp",
        "no FOU in this kernel",
        ("ip", "fou", "add", "port", "4754", "ipproto", "47"),
        "No such file",
    ),
    Unable(
        "mpls",
        "no bareudp device in this kernel",
        (*LINK, "bareudp", "dstport", "6635", "ethertype", "mpls_uc"),
        NO_DEVICE,
    ),
    Unable("gtpu", "no gtp device in this kernel", (*LINK, "gtp", "role", "sgsn"), NO_DEVICE),
    Unable(
        "l2tp",
        "no L2TP in this kernel",
        ("ip", "l2tp", "add", "tunnel", "tunnel_id", "1", "peer_tunnel_id", "1", "encap", "ip", *ENDS),
        "No such file",
    ),
    Unable("etherip", "Linux has no EtherIP", (*LINK, "etherip"), NO_DEVICE),
]
