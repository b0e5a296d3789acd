# SPDX-License-Identifier: GPL-2.0-only
"""The terms of the matrix: what is tried with whom (plain data), and what a peer must be able to do.

    Case     one protocol, in one form, over one underlay, with one peer: a row of the table
    Place    a case in a lab: its number, and all that follows from it (addresses, MACs, the tunnel of our node)
    Peer     another implementation, which has all of its places set up at once

A lab has one node of ours (node1) and one peer. Our workloads all live in the namespace of node1-c1: place N has the
interface wN there, in a network nN of its own, with a route to the peer's end by a tunnel of its own.

       our workload                     our node                        the peer                    its workload
    10.251.N.1      wN ────── wN   node1   eth0 ═══ underlay ═══                     wN       wN     10.251.N.2
    fd00:251:N::1                10.31.N.1                  10.31.N.2                               fd00:251:N::2
                                 fd00:31:N::1               fd00:31:N::2

Outer addresses are per place, so that protocols without an identifier can be told apart, each pair in a subnet of its
own, so that either end chooses the right one as its source.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, ClassVar

from mptm.facts import Path
from mptm.intent import Tunnel, tunnel_from_dict
from mptm.lab.topology import UNDERLAY_MTU, Lab, Topology
from mptm.protocols import PROTOCOLS

ETHERNET = 0
"""Underlay of a protocol without an outer IP header."""
CHECKS = ("ping4", "ping6", "tcp4", "tcp6", "largest4", "largest6", "too big4", "too big6", "fragments")
"""What is tried of every case, in this order; see checks.py. Those that end in 4 or 6 have inner packets of that
IP version."""
UNDERLAY = "underlay"
NODE = "node1"
WORKLOADS = "node1-c1"
"""Where the bridge between node and peer, our node and its workloads are, as the lab names it."""
WORKLOAD_LINK_MTU = 1600
"""Bytes of the links to workloads, at both ends: more than fits any tunnel, so that too much can be sent."""


@dataclass(frozen=True)
class Case:
    """One row. `options` are those of our tunnel beside name, network and remote; text in them may have names of a
    place in braces, as {peer_sid}."""

    peer: str
    protocol: str
    underlay: int
    """4, 6, or ETHERNET."""
    options: Mapping[str, Any] = field(default_factory=dict)
    form: str = ""
    """What is special, as the table shows it: unique among the cases of peer, protocol and underlay."""
    at_peer: Mapping[str, Any] = field(default_factory=dict)
    """What the peer needs to know, in its own terms; only the peer reads it."""
    inner: tuple[int, ...] = (4, 6)
    """IP versions of inner packets that are tried."""
    explained: Mapping[str, str] = field(default_factory=dict)
    """Check -> why it fails. It is run all the same, and must fail."""
    refused: str = ""
    """The peer sends what our node must drop: the reason's name in C. Nothing else is tried then."""
    unanswered: str = ""
    """Why nothing that we send arrives at the peer's workload. Nothing else is tried then."""
    complaint: str = ""
    """What the peer's log says of it: see Peer.complaints."""
    answers_with: str = ""
    """Hexadecimal: what the peer's outer packets have in them when it answers, as it read it from ours."""
    until: str = ""
    """Version of the peer that is better: the case isn't tried from there on."""
    quick: bool = False
    """Part of the small matrix, which `make test` runs."""

    @property
    def id(self) -> str:
        """Name of the case in tests and results."""
        over = {4: "v4", 6: "v6", ETHERNET: "ethernet"}[self.underlay]
        return "-".join(
            (self.peer, self.protocol, *([self.form.replace(" ", "_")] if self.form else []), over)
        )

    def checks(self) -> list[str]:
        """The checks that apply, in order."""
        if self.refused or self.unanswered:
            return ["refused"] if self.refused else ["unanswered"]
        return [check for check in CHECKS if not check[-1].isdigit() or int(check[-1]) in self.inner]


def srv6_case(
    peer: str,
    form: str,
    mode: str,
    mine: Mapping[str, Any],
    segments: Mapping[str, str],
    inner: tuple[int, ...],
    **more: Any,
) -> Case:
    """One with a Linux kernel: its mode of encapsulation, our further options, and what its segments do."""
    return Case(
        peer=peer,
        protocol="srv6",
        underlay=6,
        form=form,
        options={"segments": ["{peer_sid}"], "local_sid": "{node_sid}", **mine},
        at_peer={"mode": mode, "segments": segments},
        inner=inner,
        **more,
    )


@dataclass(frozen=True)
class Unable:
    """A protocol that a peer doesn't speak. The proof: `attempt`, run at the peer, fails and says `says`."""

    protocol: str
    reason: str
    """As the table shows it."""
    attempt: tuple[str, ...]
    """A command, in the peer's terms."""
    says: str
    until: str = ""
    """Version of the peer that has it: nothing to prove from there on."""


@dataclass(frozen=True)
class Place:
    """A case in a lab. Addresses are without prefix length; inner ones by IP version."""

    case: Case
    number: int
    """1 to 200, unique in the lab; also the network's id."""

    @property
    def network(self) -> str:
        """The network and, as a tunnel of the same name leads into it, the tunnel of our node."""
        return f"n{self.number}"

    @property
    def interface(self) -> str:
        """Name of the workload's link, at both of its ends, of our node; a peer may use it, too."""
        return f"w{self.number}"

    @property
    def node_outer(self) -> str:
        """Our node's address in the underlay; prefix lengths are 24 and 64."""
        return f"fd00:31:{self.number:x}::1" if self.case.underlay == 6 else f"10.31.{self.number}.1"

    @property
    def peer_outer(self) -> str:
        """The peer's, in the same subnet."""
        return f"fd00:31:{self.number:x}::2" if self.case.underlay == 6 else f"10.31.{self.number}.2"

    def outer_commands(self, address: str, device: str) -> list[str]:
        """`ip` commands that give a device one of the two outer addresses."""
        return [f"address add {address}{'/64 nodad' if self.case.underlay == 6 else '/24'} dev {device}"]

    @property
    def node_inner(self) -> dict[int, str]:
        """Our workload's addresses; prefix lengths are 24 and 64."""
        return {4: f"10.251.{self.number}.1", 6: f"fd00:251:{self.number:x}::1"}

    @property
    def peer_inner(self) -> dict[int, str]:
        """Those of the peer's workload."""
        return {4: f"10.251.{self.number}.2", 6: f"fd00:251:{self.number:x}::2"}

    @property
    def gateway(self) -> dict[int, str]:
        """Our node's addresses in the network: it tells workloads from there what is too big."""
        return {4: f"10.251.{self.number}.253", 6: f"fd00:251:{self.number:x}::fd"}

    @property
    def node_mac(self) -> str:
        """MAC of our workload's interface."""
        return f"02:00:00:01:00:{self.number:02x}"

    @property
    def peer_mac(self) -> str:
        """MAC that the peer's workload must have in a protocol that carries Ethernet: our routes name it."""
        return f"02:00:00:02:00:{self.number:02x}"

    @property
    def node_sid(self) -> str:
        """Our SRv6 segment, in `node_sids`."""
        return f"fd00:31:{self.number:x}:0:1::1"

    @property
    def node_sids(self) -> str:
        """Prefix of our segments: the peer has a route there, they are addresses of no interface."""
        return f"fd00:31:{self.number:x}:0:1::/80"

    @property
    def peer_sid(self) -> str:
        """The peer's segment that decapsulates."""
        return f"fd00:31:{self.number:x}:0:2::1"

    @property
    def transit_sid(self) -> str:
        """The peer's segment that only sends on to the next."""
        return f"fd00:31:{self.number:x}:0:2::2"

    @property
    def peer_sids(self) -> str:
        """Prefix of the peer's segments."""
        return f"fd00:31:{self.number:x}:0:2::/80"

    def tunnel(self) -> Tunnel:
        """Our node's tunnel."""
        names = {
            name: getattr(self, name)
            for name in ("node_outer", "peer_outer", "node_sid", "peer_sid", "transit_sid", "peer_mac")
        }
        common = {
            "name": self.network,
            "protocol": self.case.protocol,
            "network": self.network,
            "remote": self.peer_outer,
        }
        fields = common | _filled_in(dict(self.case.options), names)
        return tunnel_from_dict({name: value for name, value in fields.items() if value is not None})

    @property
    def is_l3(self) -> bool:
        """Whether packets are carried without an Ethernet header."""
        return PROTOCOLS[self.case.protocol].inner_families(self.tunnel().options) is not None

    @property
    def mtu(self) -> int:
        """Largest inner IP packet, in bytes, that fits: what routes at both ends should say."""
        tunnel, macs = self.tunnel(), b"\x02\0\0\0\0\1"
        path = Path(0, ip_address(self.node_outer), macs, None, macs, UNDERLAY_MTU)
        return PROTOCOLS[self.case.protocol].build(tunnel, path).inner_mtu(UNDERLAY_MTU)


def _filled_in(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return value.format(**names)
    if isinstance(value, Mapping):
        return {key: _filled_in(each, names) for key, each in value.items()}
    return [_filled_in(each, names) for each in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Transferred:
    """What one end of a TCP connection saw: SHA-256 of what it sent, bytes and SHA-256 of what it received."""

    sent: str
    received_bytes: int
    received: str


class Server(ABC):
    """The peer's workload, listening: takes one connection, sends and receives at once until both are done."""

    port: int

    @abstractmethod
    def result(self, timeout_seconds: float) -> Transferred:
        """Wait for the end of the connection. Raises what went wrong, TimeoutError among it."""


class Peer(ABC):
    """Another implementation in the lab, attached to the bridge br0 of the lab's underlay namespace.

    Once: `start`, `set_up` with every place, then the rest any number of times, at last `stop`, which takes everything
    away, also after a failure half way, and is harmless twice. What goes wrong is raised.
    """

    name: ClassVar[str]
    """As in `Case.peer`."""
    title: ClassVar[str]
    """As the table has it."""
    transfer_bytes: ClassVar[int] = 50_000_000
    """Each way, in the whole matrix."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @classmethod
    def topology(cls, topology: Topology) -> Topology:
        """What its lab has beside the two nodes."""
        return topology

    @classmethod
    @abstractmethod
    def cases(cls) -> list[Case]:
        """All that is tried with it."""

    @classmethod
    @abstractmethod
    def unable(cls) -> list[Unable]:
        """The protocols of the registry that it hasn't got: with `cases` it is all of them."""

    @abstractmethod
    def start(self) -> None:
        """Bring it up, nothing of any place configured."""

    @abstractmethod
    def stop(self) -> None:
        """End it."""

    @abstractmethod
    def version(self) -> str:
        """Of what is tried, as the table shows it: no dates, no names of machines."""

    @abstractmethod
    def set_up(self, places: Sequence[Place]) -> None:
        """Configure all places: outer addresses that answer ARP and ND, tunnels, workloads.

        Workloads have the place's inner addresses, over Ethernet its MAC, links of WORKLOAD_LINK_MTU, and a route to
        the prefixes with the place's MTU.
        """

    @abstractmethod
    def attempt(self, unable: Unable) -> str:
        """Run what can't work; what it said. Raises AssertionError when it worked."""

    @abstractmethod
    def ping(self, place: Place, version: int, *options: str, count: int = 3) -> str:
        """Ping our workload from the peer's (`options` are those of ping); its output, whatever came of it."""

    @abstractmethod
    def serving(self, place: Place, version: int, size: int) -> AbstractContextManager[Server]:
        """A TCP server at the peer's inner address that sends `size` random bytes; gone at the end."""

    def complaints(self, place: Place) -> str:
        """What the peer has logged so far, if it logs."""
        return ""

    @abstractmethod
    def send_oversized(self, place: Place, data: bytes) -> None:
        """Send our workload one UDP datagram, as one inner IPv4 packet (IPv6 where that is all there is) of more than
        the place's MTU, at most WORKLOAD_LINK_MTU, that begins with `data`; what comes of it the test sees."""
