# SPDX-License-Identifier: GPL-2.0-only
"""A node whose programs are run packet by packet: the real objects, the real compile and sync, no wire.

Interfaces are veths in a namespace of the node's own, because a redirect needs an interface to point at. Facts
are written by hand, so that a test says exactly what the tables are made from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address
from typing import ClassVar

from scapy.config import conf
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from mptm import sync
from mptm.compile import Allocations, Compiled, compile_tables
from mptm.facts import Facts, Link, Path
from mptm.intent import Intent, Network, Object, Port, tunnel_from_dict
from mptm.kernel import netns, testrun
from mptm.kernel.btf import Types, load_types
from mptm.kernel.dataplane import PROGRAM_OF_ROLE, TC_PROGRAM_OF_ROLE, DataPlane
from mptm.kernel.objects import object_path

HOOK = os.environ.get("MPTM_TEST_HOOK", "xdp")
"""The hook whose programs are tried: xdp or tc."""

VERDICTS = ("ABORTED", "DROP", "PASS", "TX", "REDIRECT")

LOCAL = {4: "10.30.30.1", 6: "fd00:30:30::1"}
REMOTE = {4: "10.30.30.2", 6: "fd00:30:30::2"}
STRANGER = {4: "10.30.30.66", 6: "fd00:30:30::66"}
LOCAL_MAC = "02:00:00:30:00:01"
REMOTE_MAC = "02:00:00:30:00:02"

OURS = {4: "10.250.1.100", 6: "fd00:250:1::100"}
NEIGHBOUR = {4: "10.250.1.110", 6: "fd00:250:1::110"}
THEIRS = {4: "10.250.1.101", 6: "fd00:250:1::101"}
OUR_MAC = "02:00:00:00:c1:01"
NEIGHBOUR_MAC = "02:00:00:00:c2:01"
THEIR_MAC = "02:00:00:00:c1:02"
GATEWAY_MAC = "02:00:00:00:99:01"
"""Of every access port: what a workload addresses when no next hop has a MAC of its own."""

UPLINK_MTU = 1500


def _refuse_to_ask(*_: object) -> str:
    raise AssertionError(
        "a test packet needs its MAC addresses: nobody on this machine's networks is asked for them"
    )


conf.neighbor.resolve = _refuse_to_ask  # scapy would send ARP requests out of the machine's interfaces


def can_be_run(packet: bytes) -> bool:
    """Whether BPF_PROG_TEST_RUN takes the packet: at TC none whose IP header is cut short."""
    return HOOK != "tc" or len(packet) >= least_len(packet)


def least_len(packet: bytes) -> int:
    """Bytes of a frame that BPF_PROG_TEST_RUN wants at TC, by its EtherType."""
    return 14 + {b"\x08\x00": 20, b"\x86\xdd": 40}.get(packet[12:14], 1)


def run_one(data_plane: DataPlane, role: str, packet: bytes, ifindex: int) -> testrun.Run:
    """One packet through the program of a role at the hook that is tried; verdicts are XDP's."""
    if HOOK == "tc":
        return testrun.run_at_tc(data_plane.program_fd(TC_PROGRAM_OF_ROLE[role]), packet, ifindex=ifindex)
    return testrun.run(data_plane.program_fd(PROGRAM_OF_ROLE[role]), packet, ifindex=ifindex)


@dataclass(frozen=True)
class Result:
    """What a program said of a packet, and the packet as it left."""

    verdict: str
    data: bytes

    @property
    def packet(self) -> Packet:
        """Dissected by scapy."""
        return Ether(self.data)


class World:
    """One node: ports c1 and c2 (access, network blue), c3 (access, network green), up0 and up1 (uplinks)."""

    PORTS = ("c1", "c2", "c3", "up0", "up1")
    UPLINKS = ("up0", "up1")
    IFINDEX: ClassVar = {name: 10 + number for number, name in enumerate(PORTS)}

    def __init__(self, name: str, *, is_far: bool = False) -> None:
        self.instance = self.namespace = f"mptm-t-{name}-{os.getpid()}"
        self.local, self.remote = (REMOTE, LOCAL) if is_far else (LOCAL, REMOTE)
        self.mac, self.remote_mac = (REMOTE_MAC, LOCAL_MAC) if is_far else (LOCAL_MAC, REMOTE_MAC)
        self.allocations = Allocations()
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            ip("netns", "add", self.namespace)
            stack.callback(ip, "netns", "delete", self.namespace)
            self._build_links()
            data_plane = DataPlane.open(self.instance, load=True)
            assert data_plane is not None
            if HOOK == "tc":
                data_plane.require_tc()
            stack.callback(data_plane.remove)
            self.data_plane = data_plane
            self._stack = stack.pop_all()

    def _build_links(self) -> None:
        for port, ifindex in self.IFINDEX.items():
            ip(
                "-n",
                self.namespace,
                "link",
                "add",
                port,
                "index",
                str(ifindex),
                "type",
                "veth",
                "peer",
                f"{port}p",
            )
            ip("-n", self.namespace, "link", "set", port, "up")
        macs = {"c1": OUR_MAC, "c2": NEIGHBOUR_MAC, "c3": OUR_MAC}
        self.links = {
            port: Link(
                ifindex,
                port,
                _mac(self.mac if port in self.UPLINKS else GATEWAY_MAC),
                UPLINK_MTU,
                "veth",
                peer_mac=_mac(macs[port]) if port in macs else None,
            )
            for port, ifindex in self.IFINDEX.items()
        }

    def close(self) -> None:
        """Take away all that was made."""
        self._stack.close()

    # ---- what the node is told ----

    def apply(
        self, *objects: Object | dict[str, object], down: Sequence[str] = (), keep_counters: bool = False
    ) -> Compiled:
        """Bring the tables to these objects (a dict is a tunnel) and nothing else; counters start at zero.

        Networks blue and green and the ports are there anyhow; one of `objects` of the same key takes the place.
        Tunnels in `down` have no neighbour. With `keep_counters` those of tunnels that stay go on.
        """
        tunnels = [tunnel_from_dict(dict(each)) for each in objects if isinstance(each, dict)]
        rest = [each for each in objects if not isinstance(each, dict)]
        always: list[Object] = [
            Network(name="blue", id=1),
            Network(name="green", id=0x01020304),
            Port(name="c1", role="access", network="blue"),
            Port(name="c2", role="access", network="blue"),
            Port(name="c3", role="access", network="green"),
            *(Port(name=uplink, role="uplink") for uplink in self.UPLINKS),
        ]
        given = {(each.kind, each.key) for each in rest}
        intent = Intent.of(
            [*(each for each in always if (each.kind, each.key) not in given), *tunnels, *rest]
        )
        intent.validate()
        paths = {
            tunnel.name: Path(
                egress_ifindex=self.links["up0"].ifindex,
                local=ip_address(self.local[tunnel.remote_address.version]),
                local_mac=_mac(self.mac),
                gateway=None,
                next_hop_mac=None if tunnel.name in down else _mac(self.remote_mac),
                mtu=UPLINK_MTU,
            )
            for tunnel in tunnels
            if tunnel.remote_address is not None
        }
        return self.bring(intent, Facts(self.links, paths), keep_counters=keep_counters)

    def bring(self, intent: Intent, facts: Facts, *, keep_counters: bool = False) -> Compiled:
        """Bring the tables to a valid intent; counters start at zero, but with `keep_counters` only new ones."""
        self.intent, self.facts = intent, facts
        compiled = compile_tables(intent, facts, self.allocations)
        compiled = dataclasses.replace(compiled, attachments=[])
        with netns.inside(self.namespace):
            sync.apply(self.data_plane, compiled, self.allocations if keep_counters else None)
        self.allocations = compiled.allocations
        self.data_plane.maps["drops"].delete(list(self.data_plane.maps["drops"].items()))
        return compiled

    # ---- packets ----

    def send(self, port: str, packet: Packet | bytes) -> Result:
        """A packet comes in at a port."""
        role = "uplink" if port in self.UPLINKS else "access"
        with netns.inside(self.namespace):
            run = run_one(self.data_plane, role, bytes(packet), self.links[port].ifindex)
        return Result(VERDICTS[run.verdict], run.data)

    def drops(self) -> dict[str, int]:
        """Packets by reason, without the REASON_ or REFUSED_ in front."""
        drops = self.data_plane.maps["drops"]
        reasons = {number: name for name, number in self.types.enum("reason").items()}
        found: dict[str, int] = {}
        for key, totals in drops.all_totals().items():
            name = reasons[drops.key.unpack(key)["reason"]].partition("_")[2]
            found[name] = found.get(name, 0) + totals["packets"]
        return found

    def reason_number(self, name: str) -> int:
        """Of a reason, named without the REASON_ in front."""
        return self.types.enum("reason")[f"REASON_{name}"]

    def drop_scopes(self) -> set[tuple[str, str, int]]:
        """(reason, scope, id) of every drop counter."""
        drops = self.data_plane.maps["drops"]
        reasons = {number: name for name, number in self.types.enum("reason").items()}
        scopes = {number: name for name, number in self.types.enum("drop_scope").items()}
        keys = [drops.key.unpack(key) for key in drops.items()]
        return {(reasons[key["reason"]].partition("_")[2], scopes[key["scope"]], key["id"]) for key in keys}

    def tunnel_counters(self, name: str) -> dict[str, int]:
        """Packets and bytes of a tunnel, both directions."""
        table = self.data_plane.maps["tunnel_counters"]
        return table.totals(table.key.pack(self.allocations.tunnels[name].counter))

    def port_counters(self, name: str) -> dict[str, int]:
        """Packets and bytes of a port, both directions."""
        table = self.data_plane.maps["port_counters"]
        return table.totals(table.key.pack(self.allocations.ports[name].slot))

    @cached_property
    def types(self) -> Types:
        """Of the loaded object."""
        return load_types(object_path("mptm.o"))


@contextlib.contextmanager
def world(name: str, *, is_far: bool = False) -> Iterator[World]:
    """A node, or its remote, that is gone afterwards, whatever happens."""
    made = World(name, is_far=is_far)
    try:
        yield made
    finally:
        made.close()


def ip(*arguments: str) -> str:
    """Run ip(8). `-n NAMESPACE` is done by nsenter: ip's own needs a mount point at /, which a chroot isn't."""
    command = ["ip", *arguments]
    if arguments[0] == "-n":
        command = ["nsenter", f"--net=/run/netns/{arguments[1]}", "ip", *arguments[2:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
