# SPDX-License-Identifier: GPL-2.0-only
"""What a node is told, in the terms of packets: where networks have addresses, what tunnels accept, how they send."""

from __future__ import annotations

import hashlib
import ipaddress
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from model import decap, encap
from model.frames import ETHERNET_LEN, TAG_LEN
from model.parse import Frame
from model.way import Way
from mptm.facts import Facts, Path
from mptm.intent import Flow, Group, Intent, Port, Route, Tunnel

UNROUTABLE = tuple(
    ipaddress.ip_network(text)
    for text in ("127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "fe80::/10", "ff00::/8")
)
"""What no prefix covers: loopback, link-local, groups and broadcast (RFC 1122 §3.2.1.3, 3927, 4291 §2.4)."""

GROUP_SLOTS = 4096


@dataclass(frozen=True)
class NextHop:
    """Where a packet goes.

    kind     tunnel, group, port, gateway, pass or drop
    name     of the tunnel, group or port
    mac      inner destination MAC to write
    relays   packets that came out of a tunnel may go there, too
    """

    kind: str
    name: str = ""
    mac: bytes | None = None
    relays: bool = False


GATEWAY = NextHop("gateway")


@dataclass
class Network:
    """Where an overlay has what, by packed addresses; prefixes longest first; `gateways` by IP version."""

    flows: dict[tuple[bytes, bytes], NextHop] = field(default_factory=dict)
    hosts: dict[bytes, NextHop] = field(default_factory=dict)
    prefixes: list[tuple[Any, NextHop]] = field(default_factory=list)
    gateways: dict[int, bytes] = field(default_factory=dict)

    def next_hop(self, frame: Frame) -> NextHop | None:
        """By flow, else by destination; what is meant for everybody on the link follows no prefix."""
        if not frame.version:
            return None
        found = self.flows.get((frame.source, frame.destination))
        return found or self.lookup(frame.destination, by_prefix=not frame.data[0] & 1)

    def lookup(self, address: bytes, *, by_prefix: bool = True) -> NextHop | None:
        """By the very address, else by the longest prefix."""
        if address in self.hosts:
            return self.hosts[address]
        if not by_prefix:
            return None
        wanted = ipaddress.ip_address(address)
        if any(wanted in network for network in UNROUTABLE if network.version == wanted.version):
            return None
        return next((hop for prefix, hop in self.prefixes if wanted in prefix), None)


@dataclass(frozen=True)
class Access:
    """A port as the data plane knows it."""

    name: str
    ifindex: int
    role: str
    network: str | None
    mtu: int
    mac: bytes

    def fits(self, frame: Frame) -> bool:
        """The kernel lets a redirect send one VLAN tag beyond the MTU (net/core/dev.c)."""
        return len(frame.data) - frame.l3 <= self.mtu and len(frame.data) <= self.mtu + ETHERNET_LEN + TAG_LEN


FRAMES = 0
"""In `Acceptance.carried`: Ethernet frames; 4 and 6: IP packets."""


@dataclass(frozen=True)
class Acceptance:
    """What a tunnel takes.

    tunnel       as if it sent what is accepted here: its protocol and options
    sender       None: anyone
    interface    for frames without IP: where they come in
    carried      what may be inside
    """

    tunnel: Tunnel
    arrival: tuple[str, int]
    header: str
    identifier: int
    sender: bytes | None
    own: bytes | None
    interface: int
    carried: frozenset[int]

    @property
    def key(self) -> tuple[Any, ...]:
        """By what a packet says."""
        return self.arrival, self.header, self.identifier, self.sender, self.own, self.interface


class Node:
    """Everything of an intent that packets are steered by."""

    def __init__(self, intent: Intent, facts: Facts) -> None:
        self.intent = intent
        self.facts = facts
        self.ports = {
            port.name: _access(port, facts) for port in intent.ports.values() if port.name in facts.links
        }
        self.by_ifindex = {port.ifindex: port for port in self.ports.values()}
        self.ways = {tunnel.name: _way(tunnel, facts) for tunnel in intent.tunnels.values()}
        self.networks = self._build_networks()
        self.arrivals: dict[tuple[str, int], str] = {}
        self.locals: set[bytes] = set()
        self.acceptances: dict[tuple[Any, ...], Acceptance] = {}
        for name in sorted(intent.tunnels):
            self._add_acceptances(intent.tunnels[name])

    def _build_networks(self) -> dict[str, Network]:
        networks = {name: Network() for name in self.intent.networks}
        for name, made in self.intent.networks.items():
            networks[name].gateways = {version: each.packed for version, each in made.gateways.items()}
            networks[name].hosts = dict.fromkeys(networks[name].gateways.values(), GATEWAY)
        for route in self.intent.routes.values():
            network, prefix = networks[route.network], ipaddress.ip_network(route.prefix)
            if prefix.prefixlen == prefix.max_prefixlen:
                network.hosts[prefix.network_address.packed] = self._next_hop(route)
            else:
                network.prefixes.append((prefix, self._next_hop(route)))
        for flow in self.intent.flows.values():
            ends = ipaddress.ip_address(flow.source).packed, ipaddress.ip_address(flow.destination).packed
            networks[flow.network].flows[ends] = self._next_hop(flow)
        for network in networks.values():
            network.prefixes.sort(key=lambda held: -held[0].prefixlen)
        return networks

    def _next_hop(self, steered: Route | Flow) -> NextHop:
        mac = mac_bytes(steered.mac) if steered.mac else None
        if steered.via is not None:
            return NextHop("tunnel", steered.via, mac, steered.relay)
        if steered.group is not None:
            return NextHop("group", steered.group, mac, steered.relay)
        if steered.port is not None:
            link = self.facts.links.get(steered.port)
            mac = mac or (link.peer_mac if link else None)
            return NextHop("port", steered.port, mac) if link and mac else NextHop("drop")
        return NextHop("drop" if steered.drop else "pass")

    def choose_member(self, group: Group, flow_hash: int) -> str | None:
        """Which tunnel of a group a flow takes: of those that can send; None: none can."""
        slot = (flow_hash * 0x9E3779B1 & 0xFFFFFFFF) >> 16 & GROUP_SLOTS - 1
        sending = [(each.tunnel, each.weight) for each in group.members if self.ways[each.tunnel]]
        return highest_weighted(sending, slot)

    # ---- what tunnels accept ----

    def _add_acceptances(self, tunnel: Tunnel) -> None:
        """What it sends, and what else it accepts; what another tunnel has is not accepted twice."""
        found: dict[tuple[Any, ...], Acceptance] = {}
        for variant in tunnel.variants():
            for made in self._acceptances_of(variant):
                known = found.setdefault(made.key, made)
                # Headers that can't be told apart may carry what either of them may.
                found[made.key] = replace(known, carried=known.carried | made.carried)
        self.acceptances = found | self.acceptances

    def _acceptances_of(self, variant: Tunnel) -> Iterable[Acceptance]:
        arrivals = decap.arrivals(variant.protocol, variant.options)
        self.arrivals |= arrivals
        is_over_ip = encap.is_over_ip(variant.protocol)
        ends = self._packet_ends(variant) if is_over_ip else self._frame_ends(variant)
        if ends is None:
            return
        carried = encap.carried_by(variant.protocol, variant.options)
        for arrival in arrivals:
            made = Acceptance(
                variant,
                arrival,
                *decap.name(variant.protocol, variant.options),
                *ends,
                frozenset({FRAMES} if carried is None else carried),
            )
            yield made
            options: Any = variant.options
            if variant.protocol == "gtpu" and options.echo == "answer" and ends[0] is not None:
                yield replace(made, header=decap.ECHO, identifier=0)

    def _packet_ends(self, variant: Tunnel) -> tuple[bytes | None, bytes, int] | None:
        """From the remote, to our address."""
        path = self.facts.paths.get(variant.name)
        local = variant.local_address or (path.local if path else None)
        if local is None:
            return None
        options: Any = variant.options
        if variant.protocol == "srv6" and options.local_sid is not None:
            local = ipaddress.ip_address(options.local_sid)
        self.locals.add(local.packed)
        remote = variant.remote_address
        return remote.packed if remote else None, local.packed, 0

    def _frame_ends(self, variant: Tunnel) -> tuple[bytes | None, bytes | None, int] | None:
        """Without IP the MAC addresses tell, at the interface that the tunnel sends from."""
        path = _path_on_segment(variant, self.facts)
        if path is None:
            return None
        if variant.remote == "any":
            return None, None, path.egress_ifindex
        remote_mac = mac_bytes(variant.remote_mac) if variant.remote_mac else path.next_hop_mac
        local_mac = mac_bytes(variant.local_mac) if variant.local_mac else path.local_mac
        return None if remote_mac is None else (remote_mac, local_mac, path.egress_ifindex)


def highest_weighted(members: Iterable[tuple[str, int]], slot: int) -> str | None:
    """Weighted rendezvous hashing, the draws as src/mptm/hashing.py states them: no standard says which."""

    def score(member: tuple[str, int]) -> float:
        name, weight = member
        drawn = hashlib.shake_128(name.encode()).digest(8 * (slot + 1))[-8:]
        draw = ((int.from_bytes(drawn, "little") >> 12) + 0.5) / 2**52
        return -math.log(draw) / weight

    best = min(members, key=score, default=None)
    return best[0] if best else None


def _access(port: Port, facts: Facts) -> Access:
    link = facts.links[port.name]
    mac = mac_bytes(port.mac) if port.mac else link.mac
    return Access(port.name, link.ifindex, port.role, port.network, link.mtu, mac)


# ---- how tunnels send ----


def _path_on_segment(tunnel: Tunnel, facts: Facts) -> Path | None:
    """How to reach a station of our own segment; None: there is no way, or only one through a router."""
    path = facts.paths.get(tunnel.name)
    if path is not None:
        is_behind_router = path.gateway not in (None, tunnel.remote_address)
        return None if is_behind_router and tunnel.remote_mac is None else path
    link = facts.links.get(tunnel.egress or "")
    if link is None or tunnel.remote_address is not None:
        return None
    # Without an IP address of the remote, through the interface that the operator named.
    return Path(link.ifindex, ipaddress.IPv4Address(0), link.mac, None, None, link.mtu)


def _way(tunnel: Tunnel, facts: Facts) -> Way | None:
    """None: the tunnel can't send."""
    is_over_ip = encap.is_over_ip(tunnel.protocol)
    path = facts.paths.get(tunnel.name) if is_over_ip else _path_on_segment(tunnel, facts)
    if path is None or (is_over_ip and tunnel.remote_address is None):
        return None
    keeps_macs = not is_over_ip and tunnel.remote == "any" and tunnel.remote_mac is None
    remote_mac = mac_bytes(tunnel.remote_mac) if tunnel.remote_mac else path.next_hop_mac
    if remote_mac is None and not keeps_macs:
        return None
    way = Way(
        egress=path.egress_ifindex,
        mtu=path.mtu,
        next_hop_mac=remote_mac or b"",
        local_mac=mac_bytes(tunnel.local_mac) if tunnel.local_mac else path.local_mac,
        keeps_macs=keeps_macs,
    )
    if not is_over_ip:
        return way
    destination: Any = tunnel.remote_address
    options: Any = tunnel.options
    if tunnel.protocol == "srv6" and options.segments:
        destination = ipaddress.ip_address(options.segments[0])
    local = tunnel.local_address or path.local
    return replace(way, local=local.packed, destination=destination.packed)


def mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
