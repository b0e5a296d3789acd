# SPDX-License-Identifier: GPL-2.0-only
"""Debian's kernels as peers: their tunnel devices, in a guest whose network card is on the lab's underlay bridge.

Place N's tunnel device wN has the workload's addresses itself. For srv6 it is the guest's end of a link to a network
namespace "behind", where the workload is: the guest routes between that and the underlay.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ground import set_offloads, srv6_commands, workload_commands
from kernels import Unavailable, get_kernel
from machine import Machine, Tap
from matrix import (
    ETHERNET,
    UNDERLAY,
    WORKLOAD_LINK_MTU,
    Case,
    Peer,
    Place,
    Server,
    Transferred,
    Unable,
    srv6_case,
)

from mptm.lab.topology import UNDERLAY_MTU, Lab, configure

TAP, CARD = "guest", "eth0"
CARD_MAC = "02:00:00:03:00:01"
BEHIND = "behind"
GTP = {4: "gtp4", 6: "gtp6"}
"""The gtp devices, one for each IP version of the underlay: all sessions arrive at one socket."""
DISCARD_PORT = 9
HEADER_LEN = {4: 28, 6: 48}
"""IP and UDP."""
GTP_SCRIPT = Path(__file__).with_name("gtp.py")
MPLS_PORT, MPLS_IN_IP = 6635, 137
MPLS_LABELS = (1000, 1001, 1002)
"""Those that the guest takes off, all of MPLS-in-UDP, which the kernel makes of MPLS-in-IP and FOU."""
MODULES = ("virtio_net", "fou", "fou6", "mpls_router", "mpls_iptunnel", "l2tp_ip", "l2tp_ip6", "l2tp_eth")
"""Those that aren't loaded when they are first needed."""


class GuestServer(Server):
    """A TCP server in the guest's agent."""

    def __init__(self, guest: Machine, port: int) -> None:
        self._guest = guest
        self.port = port

    def result(self, timeout_seconds: float) -> Transferred:
        found = self._guest.ask("received", timeout_seconds + 10, port=self.port, timeout=timeout_seconds)
        return Transferred(found["sent"], found["received_bytes"], found["received"])


class GuestPeer(Peer):
    """One kernel; a subclass says which."""

    series: ClassVar[str]

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._guest: Machine | None = None
        self._refused: dict[int, str] = {}
        """By number of the place: why it couldn't be set up."""

    @classmethod
    def cases(cls) -> list[Case]:
        return [
            replace(case, peer=cls.name)
            for case in CASES
            if cls.series in case.at_peer.get("only", (cls.series,))
        ]

    @classmethod
    def unable(cls) -> list[Unable]:
        return UNABLE

    # ---- life ----

    def start(self) -> None:
        try:
            kernel = get_kernel(self.series)
        except Unavailable as reason:
            pytest.skip(f"Linux {self.series}: {reason}")
        underlay = self.lab.namespace(UNDERLAY)
        configure(
            underlay, [f"tuntap add dev {TAP} mode tap", f"link set {TAP} master br0 addrgenmode none up"]
        )
        self._guest = Machine(kernel, taps=[Tap(TAP, CARD_MAC)], namespace=underlay)
        set_offloads(underlay, TAP)
        self.guest.run("modprobe", "-a", *MODULES, timeout=60).check()
        self._set("net.mpls.platform_labels=1048575", "net.mpls.conf.lo.input=1")
        self.guest.ip([f"link set {CARD} addrgenmode none up", f"netns add {BEHIND}"])
        # Until our node has its tunnels, its kernel complains of what the guest's devices send by themselves. They
        # would remember that for half a minute, and send nothing for each complaint.
        complaints = [
            "protocol ip flower ip_proto icmp type 3",
            "protocol ipv6 flower ip_proto icmpv6 type 4",
        ]
        self.guest.run(*f"tc qdisc add dev {CARD} ingress".split()).check()
        for complaint in complaints:
            self.guest.run(*f"tc filter add dev {CARD} ingress {complaint} action drop".split()).check()
        self.guest.python(GTP_SCRIPT, "device", GTP[4]).check()
        for options in ((), ("-6",)):
            self.guest.run(
                "ip", *options, "fou", "add", *f"port {MPLS_PORT} ipproto {MPLS_IN_IP}".split()
            ).check()
        for label in MPLS_LABELS:
            self.guest.run(*f"ip -f mpls route add {label} dev lo".split()).check()
        self._set(
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            # Answers and accepted connections belong to the group (VXLAN-GBP) of what came.
            "net.ipv4.fwmark_reflect=1",
            "net.ipv6.fwmark_reflect=1",
            "net.ipv4.tcp_fwmark_accept=1",
        )

    def _check(self, place: Place) -> None:
        assert place.number not in self._refused, self._refused[place.number]

    def stop(self) -> None:
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.shut_down()

    def version(self) -> str:
        return self.series

    @property
    def guest(self) -> Machine:
        """It has been started."""
        assert self._guest is not None, "the guest isn't started"
        return self._guest

    def _set(self, *switches: str) -> None:
        self.guest.run("sysctl", "-qw", *switches).check()

    # ---- places ----

    def set_up(self, places: Sequence[Place]) -> None:
        """A place that the guest refuses to set up fails when it is tried, alone."""
        plans = [plan_of(place) for place in places]
        for stage in STAGES:
            for tool in dict.fromkeys(step.tool for plan in plans for step in plan if step.stage == stage):
                self._run_all(
                    [step for plan in plans for step in plan if (step.stage, step.tool) == (stage, tool)]
                )

    def _run_all(self, steps: Sequence[Step]) -> None:
        """Run steps of one tool, in one batch where the tool has batches."""
        tool = steps[0].tool
        if tool in UNBATCHED:
            for step in steps:
                done = self.guest.run(*tool, *step.command.split())
                if done.status:
                    self._refused.setdefault(step.place, f"{step.command}: {done.stderr}")
            return
        batch = "\n".join(step.command for step in steps) + "\n"
        done = self.guest.run(*tool, "-force", "-batch", "-", input=batch, timeout=120)
        for line in re.findall(r"^Command failed .*?:(\d+)$", done.stderr, re.MULTILINE):
            step = steps[int(line) - 1]
            self._refused.setdefault(step.place, f"{step.command}: {done.stderr}")

    # ---- what is tried ----

    def attempt(self, unable: Unable) -> str:
        """`attempt` is a command."""
        done = self.guest.run(*unable.attempt)
        assert done.status, f"{unable.protocol}: {' '.join(unable.attempt)} worked"
        return done.stdout + done.stderr

    def ping(self, place: Place, version: int, *options: str, count: int = 3) -> str:
        self._check(place)
        if "mark" in place.case.at_peer:
            options = ("-m", str(place.case.at_peer["mark"]), *options)
        source, destination = place.peer_inner[version], place.node_inner[version]
        command = [
            "ping",
            "-n",
            "-I",
            source,
            "-c",
            str(count),
            "-i",
            "0.05",
            "-w",
            "2",
            *options,
            destination,
        ]
        end = _end(place)
        inside = ("nsenter", f"--net=/run/netns/{end}") if end else ()
        return self.guest.run(*inside, *command).stdout

    @contextlib.contextmanager
    def serving(self, place: Place, version: int, size: int) -> Iterator[Server]:
        self._check(place)
        listening = self.guest.ask(
            "listen", namespace=_end(place), address=place.peer_inner[version], size=size
        )
        yield GuestServer(self.guest, listening["port"])

    def send_oversized(self, place: Place, data: bytes) -> None:
        self._check(place)
        version = place.case.inner[0]
        size = WORKLOAD_LINK_MTU - HEADER_LEN[version]
        self.guest.ask(
            "send-datagram",
            namespace=_end(place),
            source=place.peer_inner[version],
            destination=place.node_inner[version],
            port=DISCARD_PORT,
            data=data.ljust(size, b"\0").hex(),
        )


# ---- how a place is set up ---------------------------------------------------------------------------------------

INSIDE = ("nsenter", f"--net=/run/netns/{BEHIND}")
IP, IN_BEHIND = ("ip",), (*INSIDE, "ip")
ETHTOOL, ETHTOOL_IN_BEHIND = ("ethtool",), (*INSIDE, "ethtool")
L2TP = ("ip", "l2tp")
UNBATCHED = (L2TP, ("sysctl", "-qw"), ETHTOOL, ETHTOOL_IN_BEHIND, (sys.executable,))
"""Tools without batches, and ip-l2tp(8) of iproute2 6.1, which gets things wrong in one."""
STAGES = ("outer", "device", "workload", "after")


@dataclass(frozen=True)
class Step:
    """One command of a tool, for a place by its number."""

    place: int
    stage: str
    tool: tuple[str, ...]
    command: str


def plan_of(place: Place) -> list[Step]:
    """What sets a place up."""
    steps = [Step(place.number, "outer", IP, command) for command in outer_commands(place)]
    steps += srv6_steps(place) if place.case.protocol == "srv6" else device_steps(place)
    return steps


def outer_commands(place: Place) -> list[str]:
    """The guest's addresses in the underlay."""
    return [] if place.case.underlay == ETHERNET else place.outer_commands(place.peer_outer, CARD)


def device_steps(place: Place) -> list[Step]:
    """Of a case whose `at_peer` has

    device   commands that make it
    name     its name, where it isn't wN
    inner6   device for IPv6, where it is another than wN
    encap    what the routes to our workload say
    after    commands to run then
    gtp      TEIDs: accepted, sent
    """
    number, options = place.number, place.case.at_peer
    name = options.get("name", place.interface)
    words = words_of(place)
    workload = workload_commands(name, place.peer_mac, place.peer_inner, place.node_inner, place.mtu)
    if place.case.underlay == ETHERNET:  # no larger than the card
        workload = [
            command.replace(f"mtu {WORKLOAD_LINK_MTU}", f"mtu {UNDERLAY_MTU}") for command in workload
        ]
    has_mac = not place.is_l3 and "gpe" not in "".join(options["device"])
    if not has_mac:
        workload = [command.replace(f"address {place.peer_mac} ", "") for command in workload]
    if "encap" in options:
        how = f"encap {options['encap'].format(**words)}"
        workload = [command.replace(f"dev {name} src", f"{how} dev {name} src") for command in workload]
        if has_mac:
            workload += [
                f"neighbour add {address} lladdr {place.node_mac} nud permanent dev {name}"
                for address in place.node_inner.values()
            ]
    if "inner6" in options:
        other = options["inner6"].format(**words)
        workload = [
            command.replace(f"dev {name}", f"dev {other}") if "fd00:" in command else command
            for command in workload
        ]
        workload.insert(0, f"link set {other} mtu {WORKLOAD_LINK_MTU} addrgenmode none up")
    steps = [step_of(number, "device", command.format(**words)) for command in options["device"]]
    steps += [Step(number, "workload", IP, command) for command in workload if _is_tried(command, place)]
    steps += [step_of(number, "after", command.format(**words)) for command in options.get("after", ())]
    if name == GTP[6]:
        python = f"{GTP_SCRIPT} device {name} {place.peer_outer}"
        steps.insert(0, Step(number, "device", (sys.executable,), python))
    if "gtp" in options:
        accepted, sent = options["gtp"]
        contexts = " ".join(
            json.dumps(
                {
                    "peer": place.node_outer,
                    "workload": place.node_inner[inner],
                    "accepted": accepted,
                    "sent": sent,
                },
                separators=(",", ":"),
            )
            for inner in place.case.inner
        )
        steps.append(Step(number, "after", (sys.executable,), f"{GTP_SCRIPT} context {name} {contexts}"))
    return steps


def srv6_steps(place: Place) -> list[Step]:
    """Of a case whose `at_peer` has how packets are encapsulated and, by SID, what is done at our segments."""
    name = place.interface
    commands, behind = srv6_commands(place, CARD, BEHIND, words_of(place))
    return [
        *(Step(place.number, "device", IP, command) for command in commands),
        *(Step(place.number, "workload", IN_BEHIND, command) for command in behind),
        # What is joined, by the sender or by GRO, is lost in the kernel's l2encap, which can't cut it again.
        Step(place.number, "after", ETHTOOL_IN_BEHIND, f"-K {name} tx off"),
        Step(place.number, "after", ETHTOOL, f"-K {name} tx off gro off"),
    ]


def step_of(place: int, stage: str, command: str) -> Step:
    """A command with its tool in front, but for ip(8), as `fou add port 5555 ipproto 4` or `-6 fou ...`."""
    for tool in (L2TP[1:], ("sysctl", "-qw"), ("tc",), ("-6",), ("-f", "mpls")):
        words = " ".join(tool) + " "
        if command.startswith(words):
            full = tool if tool[0] in ("sysctl", "tc") else (*IP, *tool)
            return Step(place, stage, full, command.removeprefix(words))
    return Step(place, stage, IP, command)


class Linux61(GuestPeer):
    """Of Debian 12."""

    name = "linux-6.1"
    title = "Debian 12's Linux"
    series = "6.1"


class Linux612(GuestPeer):
    """Of Debian 13."""

    name = "linux-6.12"
    title = "Debian 13's Linux"
    series = "6.12"


def _end(place: Place) -> str:
    """The guest's network namespace where the workload is; "" for its first."""
    return BEHIND if place.case.protocol == "srv6" else ""


def words_of(place: Place) -> dict[str, str]:
    """What may stand in braces in a case."""
    return {
        "w": place.interface,
        "local": place.peer_outer,
        "remote": place.node_outer,
        "number": str(place.number),
        "peer4": place.peer_inner[4],
        "peer6": place.peer_inner[6],
        "node4": place.node_inner[4],
        "node6": place.node_inner[6],
        "card": CARD,
    }


def _is_tried(command: str, place: Place) -> bool:
    """Whether a workload's command is about an IP version that the case has inside."""
    return not any(
        address in command
        for version in {4, 6} - set(place.case.inner)
        for address in (place.peer_inner[version], place.node_inner[version])
    )


# ---- the cases ---------------------------------------------------------------------------------------------------

ENDS = "local {local} remote {remote}"
AT_PEER = ("name", "inner6", "encap", "after", "gtp", "mark", "only")


def _device(
    protocol: str,
    device: str | Mapping[int, str],
    mine: Mapping[str, Any] | None = None,
    *more_devices: str,
    underlays: Sequence[int] = (4, 6),
    **more: Any,
) -> list[Case]:
    """A case per underlay. `device` is what stands behind `link add wN` (by underlay where they differ); the other
    keywords are Case's, or keys of `at_peer`."""
    at_peer = {name: more.pop(name) for name in AT_PEER if name in more}
    return [
        Case(
            peer="",
            protocol=protocol,
            underlay=underlay,
            options=dict(mine or {}),
            at_peer={
                "device": (
                    *([f"link add {{w}} type {kind}"] if (kind := _for(device, underlay)) else []),
                    *more_devices,
                ),
                **at_peer,
            },
            **more,
        )
        for underlay in underlays
    ]


def _for(device: str | Mapping[int, str], underlay: int) -> str:
    return device if isinstance(device, str) else device[underlay]


def _gre(options: str, kind: str = "gre", more6: str = "") -> dict[int, str]:
    return {
        4: f"{kind} {ENDS} {options}",
        6: f"ip6{kind} {ENDS} encaplimit none {options} {more6}",
    }


_srv6 = partial(srv6_case, "")


def _l2tp(form: str, encap: str, port: str, mine: dict[str, Any], session: str = "") -> list[Case]:
    made = []
    for underlay in (4, 6):
        tunnel = f"l2tp add tunnel tunnel_id {{number}} peer_tunnel_id {{number}} encap {encap} {ENDS}"
        if encap == "udp":
            tunnel += f" udp_sport {port} udp_dport {port} udp6_csum_tx on udp6_csum_rx on"
        ids = len(form) * 10 + underlay + 500
        options = {"session_id": ids + 100, "peer_session_id": ids, **mine}
        if encap == "udp":
            options |= {"port": int(port), "source_port": int(port)}
        made.append(
            Case(
                peer="",
                protocol="l2tp",
                underlay=underlay,
                form=form,
                options=options,
                at_peer={
                    "device": (
                        tunnel,
                        "l2tp add session name {w} tunnel_id {number} "
                        f"session_id {ids} peer_session_id {ids + 100} {session}",
                    )
                },
            )
        )
    return made


def _gtpu(
    form: str, mine: dict[str, Any], underlay: int, inner: tuple[int, ...], *series: str, **more: str
) -> list[Case]:
    return _device(
        "gtpu",
        "",
        mine,
        form=form,
        underlays=[underlay],
        inner=inner,
        name=GTP[underlay],
        gtp=(mine["teid"], mine["local_teid"]),
        only=series,
        **more,
    )


def _tagged(protocol: str, mine: dict[str, Any], *device: str, **more: Any) -> list[Case]:
    return [
        Case(
            peer="",
            protocol=protocol,
            underlay=ETHERNET,
            options={"remote": "any", "egress": "eth0", **mine},
            at_peer={"device": device},
            **more,
        )
    ]


MPLS = ("sysctl -qw net.mpls.conf.{w}.input=1",)
OURS8, THEIRS8 = "0102030405060708", "1112131415161718"
COOKIES8 = f"cookie {THEIRS8} peer_cookie {OURS8}"
DX4, DX6 = "End.DX4 nh4 {peer4}", "End.DX6 nh6 {peer6}"
IN_FOU = "encap fou encap-sport auto encap-udp6-csum encap-dport"
IN_GUE = "encap gue encap-sport auto encap-udp6-csum encap-dport"

CASES = [
    *_device("vxlan", f"vxlan id 100 {ENDS} dstport 4789", {"vni": 100}, quick=True),
    *_device(
        "vxlan",
        f"vxlan id 101 {ENDS} dstport 4795 udp6zerocsumtx udp6zerocsumrx",
        {"vni": 101, "port": 4795, "udp_checksum": False},
        form="zero checksum",
        underlays=[6],
    ),
    *_device(
        "vxlan-gbp",
        f"vxlan id 103 {ENDS} dstport 4799 gbp",
        {"vni": 103, "port": 4799, "group_policy_id": 0x1234},
        mark=0x1234,
        after=[
            "tc qdisc add dev {w} ingress",
            "tc filter add dev {w} ingress protocol all prio 1 handle 0x1234 fw action ok",
            "tc filter add dev {w} ingress protocol all prio 2 matchall action drop",
        ],
    ),
    *_device(
        "vxlan-gpe",
        "vxlan external gpe dstport 4790",
        {"vni": 104, "payload": "l3"},
        form="IP",
        underlays=[4],
        encap="ip id 104 dst {remote}",
    ),
    *_device(
        "vxlan-gpe",
        "vxlan external gpe dstport 4791",
        {"vni": 104, "payload": "l3", "port": 4791},
        form="IP",
        underlays=[6],
        encap="ip6 id 104 dst {remote}",
    ),
    *_device(
        "vxlan-gpe",
        "vxlan external gpe dstport 4792",
        {"vni": 105, "port": 4792},
        form="Ethernet",
        underlays=[4],
        encap="ip id 105 dst {remote}",
        unanswered="a gpe device of the kernel takes IP packets only",
    ),
    *_device(
        "nsh",
        "vxlan external gpe dstport 4794",
        {"vni": 106, "port": 4794, "payload": "l3", "spi": 7},
        underlays=[4],
        encap="ip id 106 dst {remote}",
        unanswered="a gpe device of the kernel hands NSH on, but nothing takes it",
    ),
    *_device("geneve", "geneve id 200 remote {remote}", {"vni": 200}, quick=True),
    *_device(
        "geneve",
        "geneve id 201 remote {remote} dstport 6083 innerprotoinherit",
        {"vni": 201, "payload": "l3", "port": 6083},
        form="IP",
    ),
    *_device(
        "geneve",
        "geneve external dstport 6084",
        {"vni": 202, "port": 6084, "tlvs": ["0102:01:00112233", "0103:02:0123456789abcdef"]},
        form="options both ways",
        underlays=[4],
        encap="ip id 202 dst {remote} geneve_opts 258:4:deadbeef",
    ),
    *_device("gre", _gre(""), quick=True),
    *_device("gre", _gre("key 0xffffffff csum"), {"key": 0xFFFFFFFF, "checksum": True}, form="key, checksum"),
    *_device("gre", _gre("key 5 seq"), {"key": 5, "sequence": True}, form="key, sequence"),
    *_device(
        "gre",
        _gre("key 6 csum seq"),
        {"key": 6, "checksum": True, "sequence": True},
        form="key, checksum, sequence",
    ),
    *_device("gretap", _gre("", "gretap")),
    *_device(
        "gretap",
        _gre("key 7 csum seq", "gretap"),
        {"key": 7, "checksum": True, "sequence": True},
        form="key, checksum, sequence",
    ),
    *_device(
        "nvgre",
        "gretap external",
        {"vsid": 0x123456},
        underlays=[4],
        encap="ip id 0x12345600 dst {remote} key",
    ),
    *_device(
        "nvgre",
        "ip6gretap external",
        {"vsid": 0x123456},
        underlays=[6],
        encap="ip6 id 0x12345600 dst {remote} key",
    ),
    # With sequence numbers GRO leaves it alone: what it joins of GRE in FOU the kernel drops as not meant for a tunnel.
    *_device(
        "gre-udp",
        f"gre {ENDS} key 8 seq {IN_FOU} 4754",
        {"key": 8, "sequence": True},
        underlays=[4],
        form="key, sequence",
        after=["fou add port 4754 ipproto 47"],
    ),
    *_device(
        "gre-udp",
        f"ip6gre {ENDS} encaplimit none key 8 seq {IN_FOU} 4754",
        {"key": 8, "sequence": True},
        underlays=[6],
        form="key, sequence",
        after=["-6 fou add port 4754 ipproto 47"],
    ),
    *_device(
        "erspan",
        _gre("seq key 301 erspan_ver 1 erspan 123", "erspan"),
        {"session": 301, "index": 77},
        form="II",
    ),
    *_device(
        "erspan",
        _gre("seq key 302 erspan_ver 2 erspan_dir egress erspan_hwid 9", "erspan"),
        {"session": 302, "version": 3},
        form="III",
    ),
    *_device("ipip", f"ipip {ENDS}", underlays=[4], inner=(4,), quick=True),
    *_device("sit", f"sit {ENDS}", underlays=[4], inner=(6,)),
    *_device("ip4ip6", f"ip6tnl mode ipip6 {ENDS} encaplimit none", underlays=[6], inner=(4,)),
    *_device("ip6ip6", f"ip6tnl mode ip6ip6 {ENDS} encaplimit none", underlays=[6], inner=(6,)),
    *_device(
        "ip4ip6",
        f"ip6tnl mode ipip6 {ENDS}",
        underlays=[6],
        inner=(4,),
        form="encapsulation limit",
        quick=True,
    ),
    *_device("ip6ip6", f"ip6tnl mode ip6ip6 {ENDS}", underlays=[6], inner=(6,), form="encapsulation limit"),
    *_device("gre", f"ip6gre {ENDS} key 9", {"key": 9}, underlays=[6], form="key, encapsulation limit"),
    *_device(
        "fou",
        f"ipip {ENDS} {IN_FOU} 5555",
        {"port": 5555, "inner": "ipv4"},
        underlays=[4],
        inner=(4,),
        after=["fou add port 5555 ipproto 4"],
    ),
    *_device(
        "fou",
        f"sit {ENDS} {IN_FOU} 5556",
        {"port": 5556, "inner": "ipv6"},
        underlays=[4],
        inner=(6,),
        form="IPv6",
        after=["fou add port 5556 ipproto 41"],
    ),
    *_device(
        "fou",
        f"ip6tnl mode ipip6 {ENDS} encaplimit none {IN_FOU} 5557",
        {"port": 5557, "inner": "ipv4"},
        underlays=[6],
        inner=(4,),
        after=["-6 fou add port 5557 ipproto 4"],
    ),
    *_device(
        "fou",
        f"ip6tnl mode ip6ip6 {ENDS} encaplimit none {IN_FOU} 5558",
        {"port": 5558, "inner": "ipv6"},
        underlays=[6],
        inner=(6,),
        form="IPv6",
        after=["-6 fou add port 5558 ipproto 41"],
    ),
    *_device(
        "gue",
        f"ipip {ENDS} {IN_GUE} 6080",
        {},
        f"link add {{w}}s type sit {ENDS} {IN_GUE} 6080",
        underlays=[4],
        inner6="{w}s",
        after=["fou add port 6080 gue"],
    ),
    *_device(
        "gue",
        f"ip6tnl mode any {ENDS} encaplimit none {IN_GUE} 6080",
        {},
        underlays=[6],
        after=["-6 fou add port 6080 gue"],
    ),
    *_device(
        "gue",
        f"ipip {ENDS} {IN_GUE} 6090",
        {"variant": 1, "port": 6090},
        f"link add {{w}}s type sit {ENDS} {IN_GUE} 6090",
        underlays=[4],
        form="variant 1",
        inner6="{w}s",
        after=["fou add port 6090 gue"],
    ),
    *_device(
        "gue",
        f"ip6tnl mode any {ENDS} encaplimit none {IN_GUE} 6090",
        {"variant": 1, "port": 6090},
        underlays=[6],
        form="variant 1",
        after=["-6 fou add port 6090 gue"],
    ),
    *_device(
        "mpls",
        {
            4: f"ipip mode mplsip {ENDS} {IN_FOU} 6635",
            6: f"ip6tnl mode any {ENDS} encaplimit none {IN_FOU} 6635",
        },
        {"labels": [1000], "local_label": 2000},
        encap="mpls 2000",
        after=MPLS,
        form="FOU",
    ),
    *_device(
        "mpls",
        f"ipip mode mplsip {ENDS} {IN_FOU} 6635",
        {"labels": [1001, 1002], "local_label": 2002, "tc": 3},
        underlays=[4],
        encap="mpls 2001/2002",
        after=MPLS,
        form="FOU, two labels",
    ),
    *_gtpu("", {"teid": 401, "local_teid": 402}, 4, (4,), "6.1"),
    *_gtpu("", {"teid": 401, "local_teid": 402}, 4, (4, 6), "6.12"),
    *_gtpu("", {"teid": 401, "local_teid": 402}, 6, (4, 6), "6.12"),
    *_gtpu("QFI", {"teid": 403, "local_teid": 404, "qfi": 9}, 4, (4,), "6.12"),
    *_gtpu(
        "QFI",
        {"teid": 403, "local_teid": 404, "qfi": 9},
        4,
        (4,),
        "6.1",
        unanswered="it takes an extension header for the packet",
    ),
    *_l2tp("", "udp", "1701", {}),
    *_l2tp("cookies", "udp", "1702", {"cookie": OURS8, "peer_cookie": THEIRS8}, COOKIES8),
    *_l2tp("IP", "ip", "", {"encap": "ip"}),
    *_l2tp(
        "IP, cookies, no sublayer",
        "ip",
        "",
        {"encap": "ip", "l2spec_type": "none", "cookie": "01020304", "peer_cookie": "11121314"},
        "cookie 11121314 peer_cookie 01020304 l2spec_type none",
    ),
    *_tagged("vlan", {"vid": 42}, "link add {w} link {card} type vlan id 42", quick=True),
    *_tagged(
        "vlan",
        {"vid": 43, "tpid": 0x88A8},
        "link add {w} link {card} type vlan protocol 802.1ad id 43",
        form="802.1ad",
    ),
    *_tagged(
        "qinq",
        {"outer_vid": 300, "inner_vid": 44},
        "link add {w}s link {card} type vlan protocol 802.1ad id 300",
        "link set {w}s addrgenmode none up",
        "link add {w} link {w}s type vlan id 44",
    ),
    _srv6("H.Encaps, End.DX4", "encap", {}, {"peer_sid": DX4}, (4,)),
    _srv6("H.Encaps, End.DX6", "encap", {}, {"peer_sid": DX6}, (6,)),
    _srv6("H.Encaps.Red, End.DX4", "encap.red", {"mode": "reduced"}, {"peer_sid": DX4}, (4,)),
    _srv6("H.Encaps.Red, End.DX6", "encap.red", {"mode": "reduced"}, {"peer_sid": DX6}, (6,)),
    _srv6(
        "two segments, End, End.DX6",
        "encap",
        {"segments": ["{transit_sid}", "{peer_sid}"]},
        {"transit_sid": "End", "peer_sid": DX6},
        (6,),
    ),
    _srv6("H.Encaps.L2, End.DX2", "l2encap", {"mode": "l2"}, {"peer_sid": "End.DX2 oif {w}"}, (4, 6)),
    _srv6("H.Encaps.L2.Red, End.DX2", "l2encap.red", {"mode": "l2"}, {"peer_sid": "End.DX2 oif {w}"}, (4, 6)),
]

UNABLE = [
    Unable(
        "etherip",
        "Linux has no EtherIP",
        ("ip", "link", "add", "x0", "type", "etherip"),
        "Unknown device type",
    ),
]
