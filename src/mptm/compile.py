# SPDX-License-Identifier: GPL-2.0-only
"""From what is wanted and what the machine is to the tables of the data plane: a pure function.

What has a slot in a table keeps it for as long as it stays the same (`Allocations`), so the data plane never
sees an entry half changed: a tunnel whose template changes gets a new slot, and keeps its counter.
"""

from __future__ import annotations

import functools
import hashlib
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from mptm import hashing, tables
from mptm.errors import MptmError, TableFull
from mptm.facts import Facts, Link, Path
from mptm.fields import mac_bytes
from mptm.hooks import choose_hook
from mptm.intent import Bundle, Flow, Group, Intent, Network, NextHop, Port, Route, Tunnel, find_protocol
from mptm.protocols.base import IpOptions, Listener, ListenerKind, Parser, Protocol, UdpOptions
from mptm.tables import Attachment, Tables
from mptm.template import InnerFamily, Template

if TYPE_CHECKING:
    from mptm.bundles import BundleFlows, Records

PORT_SLOTS = 4096
PORT_PROBES = 8
LISTEN_ROW = 8
TERMINATION_SLOTS = 1 << 16
TERMINATION_PROBES = 4
TUNNEL_SLOTS = 1 << 14
GROUP_SLOTS = 256
"""Capacities; a unit test compares them with bpf/abi.h and bpf/maps.h."""

IPV4_MTU_MIN, IPV6_MTU_MIN = 68, 1280
"""Of every link: RFC 791 §3.2, RFC 8200 §5."""

IPV4_LEN = 4
NO_MAC = bytes(6)
UP = "up"
RECEIVE_ONLY = "receive-only"


class PortRole(IntEnum):
    """Mirrors `enum port_role` of bpf/abi.h, as the next three mirror theirs; a unit test compares them."""

    ACCESS = 1
    UPLINK = 2


class LookupFlag(IntEnum):
    """Which tables a network uses."""

    FLOWS = 1
    PREFIXES = 2


class NextHopKind(IntEnum):
    """Where a packet goes."""

    PORT = 1
    TUNNEL = 2
    PASS = 3
    DROP = 4
    GROUP = 5
    GATEWAY = 6


DROPPED = tables.NextHop(NextHopKind.DROP, 0, NO_MAC, 0)


class NextHopFlag(IntEnum):
    """What is special about a next hop."""

    MAC = 1
    RELAY = 2


class PortFlag(IntEnum):
    """Mirrors `enum port_flag` of bpf/abi.h."""

    HAS_PEER = 1


class TunnelFlag(IntEnum):
    """What is special about a tunnel."""

    TO_STACK = 1
    L3 = 2
    UNTAGGED = 4
    CANT_SEND = 128


class TerminationFlag(IntEnum):
    """What is special about what a tunnel accepts."""

    ACCEPT_BAD_CHECKSUM = 1
    VERIFY_UDP_CHECKSUM = 2
    REQUIRE_UDP_CHECKSUM = 4
    ACCEPT_ETHERNET = 8
    ACCEPT_IPV4 = 16
    ACCEPT_IPV6 = 32


SteeringChange = tuple[Route | Flow | Bundle | None, Route | Flow | Bundle | None]
"""What was and what is."""

NO_FLOWS: Mapping[str, BundleFlows] = MappingProxyType({})
ECHO_PARSERS = frozenset((Parser.GTPU_ECHO,))
ACCEPT_ANY = TerminationFlag.ACCEPT_ETHERNET | TerminationFlag.ACCEPT_IPV4 | TerminationFlag.ACCEPT_IPV6


class TunnelAllocation(msgspec.Struct, frozen=True):
    """Slots of a tunnel in `tunnels` and `tunnel_counters`; `digest` is that of the entry in the first."""

    slot: int
    counter: int
    digest: str


class PortAllocation(msgspec.Struct, frozen=True):
    """Slot of a port in `ports` and `port_counters`, and the interface that it was given for."""

    ifindex: int
    slot: int


class TableUse(msgspec.Struct, frozen=True):
    """How many entries a network has in tables that are only looked at where there are any."""

    flows: int = 0
    prefixes: int = 0
    bundles: int = 0
    """How many bundles have flows of the network."""

    @property
    def lookups(self) -> int:
        """The flags that stand in its ports and terminations."""
        return (LookupFlag.FLOWS if self.flows or self.bundles else 0) | (
            LookupFlag.PREFIXES if self.prefixes else 0
        )


class Allocations(msgspec.Struct, frozen=True, kw_only=True):
    """Which slot everything has, and how much stands where. Plain data, stored between commands.

    tunnels, groups, ports
                         by name
    terminations         by the hexadecimal key (`termination_key`)
    next_slot            tunnel slots are given out round and round, so that a freed one is used last
    next_counter, next_group
                         the same for tunnel_counters and groups
    uses                 by network; None: an older version stored it
    """

    tunnels: dict[str, TunnelAllocation] = {}
    groups: dict[str, int] = {}
    ports: dict[str, PortAllocation] = {}
    terminations: dict[str, int] = {}
    next_slot: int = 0
    next_counter: int = 0
    next_group: int = 0
    uses: dict[str, TableUse] | None = None


@dataclass(frozen=True)
class CompiledBundle:
    """The flows of a bundle: `records` (mptm.bundles.RECORDS) by IP version, and what their numbers mean."""

    networks: tuple[int, ...]
    next_hops: tuple[tables.NextHop, ...]
    records: Mapping[int, Records]


@dataclass(frozen=True)
class Unread:
    """Bundles whose flows can't be read: what may be theirs in the tables stays there.

    next_hops   by the number of a network: what their flows lead to there, as it was or is -> as it is; a port's
                without a MAC address, where it was found out, stands for it with any
    removed     keys of flows that are certainly no bundle's any more, by table
    unbundled   further ones, of bundles that are no more
    """

    next_hops: Mapping[int, Mapping[tables.NextHop, tables.NextHop]]
    removed: Mapping[str, set[Any]]
    unbundled: Sequence[CompiledBundle]


@dataclass(frozen=True)
class CompiledSteering:
    """What a change of routes, flows and bundles comes to.

    tables      entries that are there from now on, of flows, hosts and prefixes
    removed     keys of entries that aren't any more, by table
    bundled     flows of bundles that are there from now on
    unbundled   flows that are in no bundle any more
    kept        keys of flows that aren't touched by the last two, by table
    The rest is as in Compiled, for what changed.
    """

    tables: Tables
    removed: dict[str, list[Any]]
    bundled: list[CompiledBundle]
    unbundled: list[CompiledBundle]
    kept: dict[str, set[Any]]
    allocations: Allocations
    warnings: list[str]
    states: dict[tuple[str, str], str]


@dataclass(frozen=True)
class Compiled:
    """What an intent comes to on this machine.

    warnings    sentences on what can't be as wanted
    templates   by the name of each tunnel that can send
    states      by (kind, key) for all but networks: "up", "receive-only", or what is the matter: "missing interface",
                "down: ...", "degraded: ...", "conflict: ..."
    bundled     the flows of bundles; those in `tables` go before them
    unread      what else may be of bundles; None: all could be read
    """

    tables: Tables
    attachments: list[Attachment]
    allocations: Allocations
    warnings: list[str]
    states: dict[tuple[str, str], str]
    templates: dict[str, Template]
    bundled: list[CompiledBundle]
    unread: Unread | None = None


@dataclass(frozen=True)
class _Acceptance:
    """What a tunnel accepts at one listener: packets with this header, from and to these ends (16 bytes each)."""

    tunnel: Tunnel
    """As if it sent what is accepted (`Tunnel.variants`)."""
    listener: Listener
    parser: Parser
    tunnel_id: int
    source: bytes
    destination: bytes
    flags: int

    @property
    def is_echo(self) -> bool:
        """Whether these packets are answered, and carry nothing."""
        return self.parser in ECHO_PARSERS

    @property
    def key(self) -> str:
        """The termination's key in hexadecimal."""
        return termination_key(
            self.source, self.destination, self.tunnel_id, self.listener.number, self.parser
        ).hex()


@dataclass(frozen=True)
class _Way:
    """How a tunnel stands: `template` None where it can't send, `state` then says why."""

    path: Path | None
    template: Template | None
    state: str


def compile_tables(
    intent: Intent,
    facts: Facts,
    previous: Allocations,
    flows: Mapping[str, BundleFlows] = NO_FLOWS,
    held: Sequence[tuple[Intent, Allocations]] = (),
) -> Compiled:
    """The tables for a valid intent. What the machine lacks is left out, with a warning. Raises TableFull.

    flows   those of the bundles, also of the ones in `held`, by content
    held    what the tables may have been made of so far: needed where flows can't be read
    """
    compilation = _Compilation(intent, facts, previous, flows)
    compiled = compilation.run()
    return replace(compiled, unread=compilation.find_unread(held)) if compilation.unread else compiled


def compile_steering(
    intent: Intent,
    changes: Iterable[SteeringChange],
    facts: Facts,
    previous: Allocations,
    flows: Mapping[str, BundleFlows] = NO_FLOWS,
    find_bundled: Callable[[Flow], NextHop | None] = lambda _: None,
) -> CompiledSteering | None:
    """What routes, flows and bundles come to that changed, where `previous` holds for the rest of a valid intent.

    changes         each as it was and as it is, None: it wasn't or isn't there; of each key one
    facts           need only have the links
    flows           those of the bundles that changed, before and after, by content
    find_bundled    yields what the intent's bundles say of a flow; MptmError: one can't be read
    None: more has to be done than that, `compile_tables` knows what.
    """
    return _SteeringCompilation(intent, facts, previous, flows).run(list(changes), find_bundled)


def allocate(
    intent: Intent, facts: Facts, templates: Mapping[str, Template], previous: Allocations
) -> Allocations:
    """The slots for an intent; `templates` by tunnel, without those that can't send. Raises TableFull."""
    ways = {name: _way(tunnel, facts) for name, tunnel in intent.tunnels.items()}
    ways = {name: _Way(way.path, templates.get(name), way.state) for name, way in ways.items()}
    counters, next_counter = _allocate_counters(intent.tunnels, previous)
    records = {
        name: tunnel_record(tunnel, ways[name].template, ways[name].path, counters[name])
        for name, tunnel in intent.tunnels.items()
    }
    allocated, next_slot = _allocate_tunnels(records, previous)
    groups, next_group = _take_round_robin(
        intent.groups,
        previous.groups,
        set(previous.groups.values()),
        previous.next_group,
        "groups",
        GROUP_SLOTS,
    )
    return Allocations(
        tunnels=allocated,
        groups=groups,
        ports=_allocate_ports(intent, facts, previous),
        terminations=_allocate_terminations(_acceptances(intent, ways)[0], previous),
        next_slot=next_slot,
        next_counter=next_counter,
        next_group=next_group,
        uses=_table_uses(intent),
    )


# ---- how a tunnel stands ---------------------------------------------------------------------------------


def _way(tunnel: Tunnel, facts: Facts) -> _Way:
    protocol = find_protocol(tunnel.protocol)
    path = facts.paths.get(tunnel.name)
    if tunnel.remote_address is None and protocol.over_ip:
        return _Way(path or _path_by_link(tunnel, facts), None, RECEIVE_ONLY)
    if path is None and tunnel.remote_address is None:
        path = _path_by_link(tunnel, facts)
    if path is None:
        problem = facts.problems.get(tunnel.name) or _missing_path(tunnel)
        return _Way(None, None, f"down: {problem}")
    if (too_far := _too_far(tunnel, path)) is not None:
        return _Way(path, None, f"down: {too_far}")
    if path.next_hop_mac is None and tunnel.remote_mac is None and tunnel.remote_address is not None:
        return _Way(path, None, f"down: {path.problem or 'the next hop has no MAC address'}")
    return _Way(path, protocol.build(tunnel, path), UP)


def _too_far(tunnel: Tunnel, path: Path) -> str | None:
    """Why a protocol without IP can't reach the remote, in words."""
    protocol = find_protocol(tunnel.protocol)
    if protocol.over_ip or tunnel.remote_mac is not None or path.gateway in (None, tunnel.remote_address):
        return None
    return f"{tunnel.remote} is behind {path.gateway}; {protocol.name} reaches neighbours only"


def _path_by_link(tunnel: Tunnel, facts: Facts) -> Path | None:
    """A path without addresses, for a tunnel that has an egress and no IP header."""
    link = facts.links.get(tunnel.egress or "")
    if link is None:
        return None
    remote_mac = mac_bytes(tunnel.remote_mac) if tunnel.remote_mac else None
    return Path(
        egress_ifindex=link.ifindex,
        local=IPv4Address(0),
        local_mac=link.mac,
        gateway=None,
        next_hop_mac=remote_mac,
        mtu=link.mtu,
    )


def _missing_path(tunnel: Tunnel) -> str:
    if tunnel.egress:
        return f"there is no way to {tunnel.remote or tunnel.remote_mac} through {tunnel.egress}"
    return f"there is no route to {tunnel.remote}"


def tunnel_record(
    tunnel: Tunnel, template: Template | None, path: Path | None, counter: int
) -> tables.Tunnel:
    """The entry of a tunnel; with outer_len 0 where it can't send."""
    split_horizon = tunnel.split_horizon or 0
    if template is None or path is None:
        flags = int(TunnelFlag.CANT_SEND)
        return tables.Tunnel(b"", (), 0, 0, 0, 0, 0, counter, flags, 0, 0, 0, split_horizon)
    to_stack = isinstance(tunnel.options, IpOptions) and tunnel.options.to_stack
    flags = (TunnelFlag.TO_STACK if to_stack else 0) | (TunnelFlag.L3 if template.is_l3 else 0)
    flags |= TunnelFlag.UNTAGGED if template.untagged else 0
    fixed = template.fixed()
    patches = (*fixed, *(patch for patch in template.patches if patch not in fixed))
    return tables.Tunnel(
        outer=template.outer,
        patches=tuple(tables.Patch(int(patch.op), patch.offset, patch.bias) for patch in patches),
        outer_len=len(template.outer),
        strip=template.strip,
        patch_count=len(patches),
        max_len=template.max_len(path.mtu),
        egress_ifindex=path.egress_ifindex,
        counter=counter,
        flags=flags,
        tos_mask=template.tos_mask,
        ttl_mask=template.ttl_mask,
        inner_families=int(template.inner_families or 0),
        split_horizon=split_horizon,
        gso=int(template.gso),
        outer_version=template.outer_version,
        fixed_patches=sum(fixed.values()),
        fixed_count=len(fixed),
    )


# ---- slots -----------------------------------------------------------------------------------------------

Key = TypeVar("Key")


def _allocate_counters(names: Iterable[str], previous: Allocations) -> tuple[dict[str, int], int]:
    kept = {name: held.counter for name, held in previous.tunnels.items()}
    occupied = set(kept.values())
    return _take_round_robin(
        names, kept, occupied, previous.next_counter, "tunnel_counters", TUNNEL_SLOTS, "tunnels"
    )


def _allocate_tunnels(
    records: Mapping[str, tables.Tunnel], previous: Allocations
) -> tuple[dict[str, TunnelAllocation], int]:
    digests = {
        name: hashlib.sha256(repr(tuple(record)).encode()).hexdigest()[:32]
        for name, record in records.items()
    }
    kept = {name: held.slot for name, held in previous.tunnels.items() if held.digest == digests.get(name)}
    occupied = {held.slot for held in previous.tunnels.values()}
    slots, next_slot = _take_round_robin(records, kept, occupied, previous.next_slot, "tunnels", TUNNEL_SLOTS)
    return {
        name: TunnelAllocation(slots[name], record.counter, digests[name]) for name, record in records.items()
    }, next_slot


def _take_round_robin(
    names: Iterable[str],
    kept: Mapping[str, int],
    occupied: set[int],
    start: int,
    table: str,
    size: int,
    what: str | None = None,
) -> tuple[dict[str, int], int]:
    """A slot for each name: the one it has, else the next that nothing has or just had.

    `what` is in the slots: in words, where it isn't the table's name.
    """
    occupied = set(occupied)
    taken: dict[str, int] = {}
    for name in names:
        if name in kept:
            taken[name] = kept[name]
            continue
        if len(occupied) >= size:
            raise TableFull(f"table {table} is full: it has room for {size} {what or table}")
        while start % size in occupied:
            start += 1
        taken[name] = start % size
        occupied.add(taken[name])
        start = (start + 1) % size
    return taken, start


def _place(
    keys: Iterable[Key],
    held: Mapping[Key, int],
    runs_of: Callable[[Key], Sequence[range]],
    table: str,
    size: int,
) -> dict[Key, int]:
    """A slot for each key: the one it has, else one of its runs (modulo `size`) that nothing has or just had.

    Of several runs the emptiest is taken: at first sight of a full one, much of the table would still be free.
    """
    occupied: set[int] = set(held.values())
    placed: dict[Key, int] = {}
    for key in keys:
        slot = held.get(key)
        if slot is None:
            free = max(
                ([at % size for at in run if at % size not in occupied] for run in runs_of(key)), key=len
            )
            if not free:
                raise TableFull(
                    f"table {table} has no room left where one more entry belongs; it holds {len(occupied)} of {size}"
                )
            slot = free[0]
            occupied.add(slot)
        placed[key] = slot
    return placed


def _allocate_ports(intent: Intent, facts: Facts, previous: Allocations) -> dict[str, PortAllocation]:
    ifindexes = {name: facts.links[name].ifindex for name in intent.ports if name in facts.links}
    held = {port.ifindex: port.slot for port in previous.ports.values()}

    def runs_of(ifindex: int) -> list[range]:
        return [range(ifindex, ifindex + PORT_PROBES)]

    slots = _place(ifindexes.values(), held, runs_of, "ports", PORT_SLOTS)
    return {name: PortAllocation(ifindex, slots[ifindex]) for name, ifindex in ifindexes.items()}


def _listener_rows(intent: Intent) -> dict[int, tables.ListenerRow]:
    rows: dict[int, bytearray] = {}
    for tunnel in intent.tunnels.values():
        for variant in tunnel.variants():
            for listener in find_protocol(variant.protocol).listeners(variant.options):
                row, at = divmod(listener.kind * 65536 + listener.number, LISTEN_ROW)
                rows.setdefault(row, bytearray(LISTEN_ROW))[at] = int(listener.parser)
    return {row: tables.ListenerRow(bytes(parsers)) for row, parsers in rows.items()}


def termination_key(source: bytes, destination: bytes, tunnel_id: int, number: int, parser: int) -> bytes:
    """The 40 bytes by which a termination is found: the start of `struct termination`, can_reply as 0."""
    return struct.pack("<16s16sIHBx", source, destination, tunnel_id, number, parser)


def termination_homes(key: bytes) -> tuple[int, int]:
    """The slots where look-ups of a termination begin, the second after the first (lookup.h has the same hash)."""
    words = struct.unpack("<5Q", key)
    factors = (
        0x9E3779B97F4A7C15,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x27D4EB2F165667C5,
        0x85EBCA77C2B2AE63,
    )
    mask = 2**64 - 1
    number = sum(word * factor for word, factor in zip(words, factors, strict=True)) & mask
    number ^= number >> 32
    number = number * factors[0] & mask
    return number >> 16 & (TERMINATION_SLOTS - 1), number >> 40 & (TERMINATION_SLOTS - 1)


def _accepted_by(tunnel: Tunnel, way: _Way) -> dict[str, _Acceptance]:
    """What a tunnel accepts by key, the protocol that it sends first; nothing while its own address isn't known.

    Echo requests of a remote that is known are accepted, too, to be answered.
    """
    found: dict[str, _Acceptance] = {}
    for variant in tunnel.variants():
        protocol = find_protocol(variant.protocol)
        ends = protocol.accepted(variant, way.path)
        if ends is None or (way.path is not None and _too_far(variant, way.path)):
            continue
        for listener in protocol.listeners(variant.options):
            parser, number = protocol.accepted_parser(variant.options), protocol.tunnel_id(variant.options)
            flags = _termination_flags(protocol, variant, listener)
            accepted = _Acceptance(variant, listener, parser, number, *ends, flags)
            if (known := found.get(accepted.key)) is not None:
                # Headers that can't be told apart may carry what either of them may.
                accepted = replace(known, flags=known.flags | accepted.flags & ACCEPT_ANY)
            found[accepted.key] = accepted
            echo_parser = protocol.echo_parser(variant.options)
            if echo_parser is not None and variant.remote_address is not None:
                echo = replace(accepted, parser=echo_parser, tunnel_id=0)
                found.setdefault(echo.key, echo)
    return found


def _acceptances(
    intent: Intent, ways: Mapping[str, _Way]
) -> tuple[dict[str, _Acceptance], list[tuple[_Acceptance, _Acceptance]]]:
    """What is accepted by key; and where several tunnels would accept the same, who doesn't get it and who does.

    The first tunnel (by name) does. Echo requests are nobody's in particular: any tunnel of the same ends will do.
    """
    kept: dict[str, _Acceptance] = {}
    lost: list[tuple[_Acceptance, _Acceptance]] = []
    for name in sorted(intent.tunnels):
        for key, accepted in _accepted_by(intent.tunnels[name], ways[name]).items():
            if (first := kept.setdefault(key, accepted)) is not accepted and not accepted.is_echo:
                lost.append((accepted, first))
    return kept, lost


def _allocate_terminations(keys: Iterable[str], previous: Allocations) -> dict[str, int]:
    def runs_of(key: str) -> list[range]:
        return [range(home, home + TERMINATION_PROBES) for home in termination_homes(bytes.fromhex(key))]

    return _place(keys, previous.terminations, runs_of, "terminations", TERMINATION_SLOTS)


# ---- tables ----------------------------------------------------------------------------------------------


class _Steering:
    """What routes and flows come to, where slots and the states of tunnels and groups are known."""

    def __init__(
        self, intent: Intent, facts: Facts, allocations: Allocations, flows: Mapping[str, BundleFlows]
    ) -> None:
        self.intent = intent
        self.facts = facts
        self.allocations = allocations
        self.flows = flows
        self.bundled: list[CompiledBundle] = []
        self.unread: list[Bundle] = []
        self.tables = Tables()
        self.warnings: list[str] = []
        self.states: dict[tuple[str, str], str] = {}

    def _network_id(self, name: str | None) -> int:
        return self.intent.networks[name].id if name is not None else 0

    def _network_ids(self, flows: BundleFlows) -> tuple[int, ...]:
        return tuple(map(self._network_id, flows.networks))

    def _add_bundle(self, bundle: Bundle) -> None:
        flows = self.flows.get(bundle.content)
        if flows is None:
            self._set_state(
                bundle,
                "degraded: its flows can't be read",
                f"{bundle.label()}: the file of its {bundle.flows} flows is damaged or gone; those that are in the "
                f"tables stay, but can't be put there: `mptm flow load FILE --name {bundle.name}` makes them whole",
            )
            self.unread.append(bundle)
            return
        next_hops = tuple(map(self._next_hop, flows.next_hops))
        states = [self.states.pop((each.kind, each.key)) for each in flows.next_hops]
        problems = [state for state in states if state != UP]
        self._set_state(bundle, UP)
        if problems:
            all_down = len(problems) == len(states)
            self._set_state(bundle, problems[0] if all_down else problems[0].replace("down", "degraded", 1))
        self.bundled.append(CompiledBundle(self._network_ids(flows), next_hops, flows.records))

    def _add(self, obj: Route | Flow) -> None:
        table, key = self._place(obj)
        getattr(self.tables, table)[key] = self._next_hop(obj)

    def _place(self, obj: Route | Flow) -> tuple[str, Any]:
        """The table that a route or flow stands in, and its key there."""
        network = self._network_id(obj.network)
        if isinstance(obj, Flow):
            source, destination = _packed(obj.source), _packed(obj.destination)
            if len(source) == IPV4_LEN:
                return "flows_v4", tables.FlowKeyV4(network, source, destination)
            return "flows_v6", tables.FlowKeyV6(network, source, destination)
        text, _, length = obj.prefix.partition("/")
        address, prefix_len = _packed(text), int(length)
        if prefix_len == 8 * len(address):
            if len(address) == IPV4_LEN:
                return "hosts_v4", tables.HostKeyV4(network, address)
            return "hosts_v6", tables.HostKeyV6(network, address)
        if len(address) == IPV4_LEN:
            return "prefixes_v4", tables.PrefixKeyV4(prefix_len, network, address)
        return "prefixes_v6", tables.PrefixKeyV6(prefix_len, network, address)

    def _add_gateway_hosts(self, network: Network) -> None:
        """The gateway's addresses, where no route for just one of them goes before it."""
        next_hop = tables.NextHop(NextHopKind.GATEWAY, 0, NO_MAC, 0)
        for version, address in network.gateways.items():
            if version == 4:
                key = tables.HostKeyV4(network.id, address.packed)
                self.tables.hosts_v4.setdefault(key, next_hop)
            else:
                self.tables.hosts_v6.setdefault(tables.HostKeyV6(network.id, address.packed), next_hop)

    def _next_hop(self, obj: Route | Flow | NextHop) -> tables.NextHop:
        mac = mac_bytes(obj.mac) if obj.mac else None
        self._set_state(obj, UP)
        if obj.via is not None:
            if self._is_down("tunnel", obj.via):
                self._set_state(obj, f"down: tunnel {obj.via} is down")
            slot = self.allocations.tunnels[obj.via].slot
            return tables.NextHop(NextHopKind.TUNNEL, _flags_of(obj), mac or NO_MAC, slot)
        if obj.group is not None:
            if self._is_down("group", obj.group):
                self._set_state(obj, f"down: group {obj.group} is down")
            slot = self.allocations.groups[obj.group]
            return tables.NextHop(NextHopKind.GROUP, _flags_of(obj), mac or NO_MAC, slot)
        if obj.port is not None:
            link = self.facts.links.get(obj.port)
            if link is None:
                self._set_state(
                    obj,
                    f"down: missing interface {obj.port}",
                    f"{obj.label()} drops its packets: there is no interface {obj.port}",
                )
                return DROPPED
            mac = mac or link.peer_mac
            if mac is None:
                problem = f"the MAC address of the workload behind {obj.port} can't be found out"
                self._set_state(
                    obj,
                    f"down: {problem}",
                    f"{obj.label()} drops its packets: {problem} (give it with --mac)",
                )
                return DROPPED
            return tables.NextHop(NextHopKind.PORT, NextHopFlag.MAC, mac, link.ifindex)
        kind = NextHopKind.DROP if obj.drop else NextHopKind.PASS
        return tables.NextHop(kind, 0, NO_MAC, 0)

    def _set_state(
        self,
        obj: Port | Tunnel | Group | Route | Flow | Bundle | NextHop,
        state: str,
        warning: str | None = None,
    ) -> None:
        self.states[obj.kind, obj.key] = state
        if warning is not None:
            self.warnings.append(warning)

    def _is_down(self, kind: str, name: str) -> bool:
        """Whether a tunnel or group, where its state is known, leads nowhere."""
        return self.states.get((kind, name), UP).startswith("down")


class _SteeringCompilation(_Steering):
    """One run of `compile_steering`."""

    def run(
        self, changes: Sequence[SteeringChange], find_bundled: Callable[[Flow], NextHop | None]
    ) -> CompiledSteering | None:
        """See there."""
        uses = self._uses_after(changes)
        ports = {each.port for _, after in changes if after for each in _next_hops_of(after)}
        if uses is None or not all(map(self._is_where_it_was, ports)):
            return None
        bundles = [obj for pair in changes for obj in pair if isinstance(obj, Bundle)]
        if any(bundle.content not in self.flows for bundle in bundles):
            return None  # what isn't known can't be taken away
        arriving = [self.flows[after.content] for _, after in changes if isinstance(after, Bundle)]
        removed: dict[str, list[Any]] = {}
        unbundled: list[CompiledBundle] = []
        for before, after in changes:
            if isinstance(before, Bundle):
                gone = self.flows[before.content]
                for flows in arriving:
                    gone = gone.without(flows)
                unbundled.append(CompiledBundle(self._network_ids(gone), (), gone.records))
            if isinstance(after, Bundle):
                self._add_bundle(after)
            elif after is not None:
                self._add(after)
            elif before is not None and not isinstance(before, Bundle):
                table, key = self._place(before)
                try:
                    bundled = find_bundled(before) if isinstance(before, Flow) else None
                except MptmError:
                    return None
                if bundled is None:
                    removed.setdefault(table, []).append(key)
                else:
                    getattr(self.tables, table)[key] = self._next_hop(bundled)
                    del self.states[bundled.kind, bundled.key]
        for network in {
            before.network for before, after in changes if isinstance(before, Route) and not after
        }:
            self._add_gateway_hosts(self.intent.networks[network])
        self._keep_gateways_of(removed)
        kept: dict[str, set[Any]] = {}
        if self.bundled or unbundled:
            for table, key in map(self._place, self.intent.flows.values()):
                kept.setdefault(table, set()).add(key)
        allocations = msgspec.structs.replace(self.allocations, uses=uses)
        return CompiledSteering(
            self.tables,
            removed,
            self.bundled,
            unbundled,
            kept,
            allocations,
            self.warnings,
            self.states,
        )

    def _uses_after(self, changes: Iterable[SteeringChange]) -> dict[str, TableUse] | None:
        """The use of tables from now on; None: not known, or ports and terminations have to be told."""
        if self.allocations.uses is None:
            return None
        uses = dict(self.allocations.uses)
        for before, after in changes:
            for obj, more in ((before, -1), (after, 1)):
                if obj is not None:
                    _add_use(uses, obj, more)
        none, were = TableUse(), self.allocations.uses
        told = any(uses.get(name, none).lookups != were.get(name, none).lookups for name in {*uses, *were})
        return None if told else uses

    def _is_where_it_was(self, port: str | None) -> bool:
        """Whether an interface that something leads to is the one that the tables know."""
        if port is None:
            return True
        link, held = self.facts.links.get(port), self.allocations.ports.get(port)
        return link is not None and held is not None and link.ifindex == held.ifindex

    def _keep_gateways_of(self, removed: dict[str, list[Any]]) -> None:
        """A gateway is there for its address again where a route for just that went, else nothing changes for it."""
        for table in ("hosts_v4", "hosts_v6"):
            entries = getattr(self.tables, table)
            for key in [key for key in entries if self._is_gateway(entries[key])]:
                if key in removed.get(table, ()):
                    removed[table].remove(key)
                else:
                    del entries[key]

    @staticmethod
    def _is_gateway(next_hop: tables.NextHop) -> bool:
        return next_hop.kind == NextHopKind.GATEWAY


class _Compilation(_Steering):
    """One run of `compile_tables`."""

    def __init__(
        self, intent: Intent, facts: Facts, previous: Allocations, flows: Mapping[str, BundleFlows]
    ) -> None:
        self.ways = {name: _way(tunnel, facts) for name, tunnel in intent.tunnels.items()}
        self.templates = {name: way.template for name, way in self.ways.items() if way.template is not None}
        super().__init__(intent, facts, allocate(intent, facts, self.templates, previous), flows)
        self.lookups = {name: use.lookups for name, use in (self.allocations.uses or {}).items()}

    def run(self) -> Compiled:
        """All tables, ports first: what refers to them comes after."""
        attachments = [
            attachment
            for port in self.intent.ports.values()
            if (attachment := self._add_port(port)) is not None
        ]
        for tunnel in self.intent.tunnels.values():
            self._add_tunnel(tunnel)
        for group in self.intent.groups.values():
            self._add_group(group)
        self.tables.listeners = _listener_rows(self.intent)
        self._add_terminations()
        for route in self.intent.routes.values():
            self._add(route)
        for network in self.intent.networks.values():
            self._add_gateway(network)
        for flow in self.intent.flows.values():
            self._add(flow)
        for bundle in self.intent.bundles.values():
            self._add_bundle(bundle)
        return Compiled(
            self.tables,
            attachments,
            self.allocations,
            self.warnings,
            self.states,
            self.templates,
            self.bundled,
        )

    def find_unread(self, held: Sequence[tuple[Intent, Allocations]]) -> Unread:
        """What may be of the bundles whose flows can't be read, in tables that were made of `held`.

        An entry doesn't say whose it is. It may be theirs where it leads to one of their next hops, is in one of their
        networks, and is known to be nobody else's.
        """
        networks = {name: network.id for name, network in self.intent.networks.items()}
        foreign: set[str] = set()  # networks with entries that can't be told from theirs
        removed: dict[str, set[Any]] = {}
        unbundled: list[CompiledBundle] = []
        contents = {bundle.content for bundle in self.intent.bundles.values()}
        for intent, _ in held:
            before = {name: network.id for name, network in intent.networks.items()}
            foreign |= {name for name in networks if before.get(name) != networks[name]}
            for flow in intent.flows.values():
                if flow.key not in self.intent.flows and flow.network in networks:
                    table, key = self._place(flow)
                    removed.setdefault(table, set()).add(key)
            for bundle in intent.bundles.values():
                if bundle.content in contents:
                    continue
                if (flows := self.flows.get(bundle.content)) is None:
                    foreign |= bundle.networks
                    continue
                ids = tuple(networks.get(name, 0) for name in flows.networks)
                unbundled.append(CompiledBundle(ids, (), flows.records))
        found: dict[int, dict[tables.NextHop, set[tables.NextHop]]] = {}
        for next_hop in dict.fromkeys(each for bundle in self.unread for each in bundle.next_hops):
            if next_hop.network in foreign:
                continue
            now = self._next_hop(next_hop)
            del self.states[next_hop.kind, next_hop.key]
            in_network = found.setdefault(networks[next_hop.network], {})
            for allocations in (self.allocations, *(each for _, each in held)):
                for was in _as_it_was(next_hop, now, allocations):
                    in_network.setdefault(was, set()).add(now)
        certain = {}
        for network, meanings in found.items():
            if len(meanings.get(DROPPED, ())) > 1:
                meanings[DROPPED] = {DROPPED}  # whose it is can't be told; where it is is harmless
            certain[network] = {was: now for was, (now, *others) in meanings.items() if not others}
        return Unread(certain, removed, unbundled)

    def _add_port(self, port: Port) -> Attachment | None:
        link = self.facts.links.get(port.name)
        if link is None:
            self._set_state(
                port, "missing interface", f"there is no interface {port.name}; its port is left out"
            )
            return None
        mac = mac_bytes(port.mac) if port.mac else link.mac
        self.tables.ports[self.allocations.ports[port.name].slot] = tables.Port(
            ifindex=link.ifindex,
            network=self._network_id(port.network),
            mtu=link.mtu,
            role=PortRole[port.role.upper()],
            lookups=self.lookups.get(port.network or "", 0),
            mac=mac or NO_MAC,
            flags=PortFlag.HAS_PEER if link.hands_over else 0,
        )
        self.tables.tx_ports[link.ifindex] = link.ifindex
        if link.up:
            self._set_state(port, UP)
        else:
            self._set_state(port, "down: the interface is down", f"interface {port.name} is down")
        choice = choose_hook(port, self.intent, self.facts)
        return Attachment(link.ifindex, port.name, port.role, port.mode, choice.hook)

    def _add_tunnel(self, tunnel: Tunnel) -> None:
        way, held = self.ways[tunnel.name], self.allocations.tunnels[tunnel.name]
        record = tunnel_record(tunnel, way.template, way.path, held.counter)
        self.tables.tunnels[held.slot] = record
        if record.egress_ifindex:
            self.tables.tx_ports[record.egress_ifindex] = record.egress_ifindex
            self._check_egress(tunnel, record.egress_ifindex)
        for variant in tunnel.variants():
            protocol = find_protocol(variant.protocol)
            ends = protocol.accepted(variant, way.path) if protocol.over_ip else None
            if ends is not None:
                self.tables.locals[tables.LocalKey(ends[1])] = 1
            if variant is not tunnel and way.path is not None and (problem := _too_far(variant, way.path)):
                self.warnings.append(f"tunnel {tunnel.name} accepts no {variant.protocol}: {problem}")
        if way.template is not None and way.path is not None:
            self._check_mtu(tunnel, way.template, way.path)
        own = self.facts.addresses
        if own is not None and tunnel.local_address is not None and tunnel.local_address not in own:
            self.warnings.append(
                f"tunnel {tunnel.name}: {tunnel.local} is no address of this node; answers won't reach it"
            )
        is_up = way.state in (UP, RECEIVE_ONLY)
        self._set_state(tunnel, way.state, None if is_up else f"tunnel {tunnel.name} is {way.state}")

    def _check_mtu(self, tunnel: Tunnel, template: Template, path: Path) -> None:
        """A sender is never told of less than every link has, so it can't make its packets small enough."""
        carries_v6 = template.inner_families is None or InnerFamily.IPV6 in template.inner_families
        least, inner_mtu = IPV6_MTU_MIN if carries_v6 else IPV4_MTU_MIN, template.inner_mtu(path.mtu)
        if inner_mtu < least:
            self.warnings.append(
                f"tunnel {tunnel.name} has room for inner packets of {max(inner_mtu, 0)} bytes, "
                f"but IPv{6 if carries_v6 else 4} needs {least}: "
                f"give its egress interface an MTU of {path.mtu + least - inner_mtu} at least, not {path.mtu}"
            )

    def _add_group(self, group: Group) -> None:
        """Who gets which slot; the slots of a member that can't send are the others', so a flow is never without."""
        sending = {
            member.tunnel: member.weight
            for member in group.members
            if self.ways[member.tunnel].template is not None
        }
        slot_of: dict[str | None, int] = {
            name: self.allocations.tunnels[name].slot + 1 for name in sending
        } | {None: 0}
        self.tables.groups[self.allocations.groups[group.name]] = tables.Group(
            tuple(slot_of[name] for name in hashing.share_out(sending.items()))
        )
        missing = [member.tunnel for member in group.members if member.tunnel not in sending]
        if not sending:
            self._set_state(group, "down: all members are down")
        elif missing:
            shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            self._set_state(group, f"degraded: {shown} {'is' if len(missing) == 1 else 'are'} down")
        else:
            self._set_state(group, UP)

    def _check_egress(self, tunnel: Tunnel, ifindex: int) -> None:
        link = self._links_by_ifindex.get(ifindex)
        port = self.intent.ports.get(link.name) if link else None
        if link is not None and (port is None or port.role != "uplink"):
            self.warnings.append(
                f"tunnel {tunnel.name} sends through {link.name}, which is no uplink: "
                f"nothing that comes back is decapsulated (`mptm port add {link.name} --role uplink`)"
            )

    @functools.cached_property
    def _links_by_ifindex(self) -> dict[int, Link]:
        return {link.ifindex: link for link in self.facts.links.values()}

    def _add_terminations(self) -> None:
        kept, lost = _acceptances(self.intent, self.ways)
        for key, accepted in kept.items():
            tunnel = accepted.tunnel
            held = self.allocations.tunnels[tunnel.name]
            verification = find_protocol(tunnel.protocol).verification(tunnel.options)
            self.tables.terminations[self.allocations.terminations[key]] = tables.Termination(
                source=accepted.source,
                destination=accepted.destination,
                tunnel_id=accepted.tunnel_id,
                number=accepted.listener.number,
                parser=int(accepted.parser),
                can_reply=int(self.ways[tunnel.name].template is not None),
                network=self._network_id(tunnel.network),
                tunnel=held.slot,
                counter=held.counter,
                lookups=self.lookups.get(tunnel.network, 0),
                cookie_len=len(verification.cookie),
                sublayer_len=verification.sublayer_len,
                flags=accepted.flags,
                cookie=verification.cookie,
            )
        for accepted, first in lost:
            self._note_conflict(accepted, first)

    def _note_conflict(self, accepted: _Acceptance, first: _Acceptance) -> None:
        """Two tunnels turned out to have the same ends, which the intent alone doesn't show."""
        tunnel = self.intent.tunnels[accepted.tunnel.name]
        of_protocol = "" if accepted.tunnel.protocol == tunnel.protocol else f" of {accepted.tunnel.protocol}"
        problem = f"accepts the same packets{of_protocol} as tunnel {first.tunnel.name}, which gets them"
        if not self.states["tunnel", tunnel.name].startswith("conflict"):
            self._set_state(tunnel, f"conflict: {problem}", f"tunnel {tunnel.name} {problem}")

    def _add_gateway(self, network: Network) -> None:
        """Whoever is at the address is asked for it: a route for just the address goes before the gateway."""
        gateways = network.gateways
        if not gateways:
            return
        v4, v6 = gateways.get(4), gateways.get(6)
        self.tables.gateways[network.id] = tables.Gateway(
            address_v4=v4.packed if v4 else bytes(4),
            address_v6=v6.packed if v6 else bytes(16),
            has_v4=int(v4 is not None),
            has_v6=int(v6 is not None),
        )
        self._add_gateway_hosts(network)


def _packed(address: str) -> bytes:
    """The 4 or 16 bytes of an address that was checked before; `ipaddress` takes ten times as long."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _flags_of(obj: Route | Flow | NextHop) -> int:
    return (NextHopFlag.MAC if obj.mac else 0) | (NextHopFlag.RELAY if obj.relay else 0)


UDP_CHECKSUM_FLAGS = {
    "ignore": 0,
    "verify": TerminationFlag.VERIFY_UDP_CHECKSUM,
    "require": TerminationFlag.VERIFY_UDP_CHECKSUM | TerminationFlag.REQUIRE_UDP_CHECKSUM,
}


def _termination_flags(protocol: Protocol[Any], tunnel: Tunnel, listener: Listener) -> int:
    """Flags of a termination: what its tunnel carries, and which checksums are looked at."""
    families = protocol.inner_families(tunnel.options)
    if families is None:
        flags = int(TerminationFlag.ACCEPT_ETHERNET)
    else:
        flags = TerminationFlag.ACCEPT_IPV4 if families & InnerFamily.IPV4 else 0
        flags |= TerminationFlag.ACCEPT_IPV6 if families & InnerFamily.IPV6 else 0
    if protocol.verification(tunnel.options).ignores_checksum:
        flags |= TerminationFlag.ACCEPT_BAD_CHECKSUM
    if isinstance(tunnel.options, UdpOptions) and listener.kind == ListenerKind.UDP:
        flags |= UDP_CHECKSUM_FLAGS[tunnel.options.receive_checksum]
    return flags


def _table_uses(intent: Intent) -> dict[str, TableUse]:
    flows = Counter(flow.network for flow in intent.flows.values())
    uses = {network: TableUse(number) for network, number in flows.items()}
    for route in intent.routes.values():
        if not _is_host(route):
            _add_use(uses, route, 1)
    for bundle in intent.bundles.values():
        _add_use(uses, bundle, 1)
    return uses


def _add_use(uses: dict[str, TableUse], obj: Route | Flow | Bundle, more: int) -> None:
    """Count a route or flow of a network, or a bundle of several."""
    for network in obj.networks if isinstance(obj, Bundle) else (obj.network,):
        use = uses.get(network, TableUse())
        uses[network] = TableUse(
            use.flows + (more if isinstance(obj, Flow) else 0),
            use.prefixes + (more if isinstance(obj, Route) and not _is_host(obj) else 0),
            use.bundles + (more if isinstance(obj, Bundle) else 0),
        )
        if uses[network] == TableUse():
            del uses[network]


def _as_it_was(obj: NextHop, now: tables.NextHop, allocations: Allocations) -> list[tables.NextHop]:
    """What a next hop may be in tables that were made with these allocations."""
    if obj.via is not None:
        held = allocations.tunnels.get(obj.via)
        return [] if held is None else [now._replace(id=held.slot)]
    if obj.group is not None:
        slot = allocations.groups.get(obj.group)
        return [] if slot is None else [now._replace(id=slot)]
    if obj.port is not None:
        there = allocations.ports.get(obj.port)
        mac = mac_bytes(obj.mac) if obj.mac else NO_MAC
        was = [tables.NextHop(NextHopKind.PORT, NextHopFlag.MAC, mac, there.ifindex)] if there else []
        return [*was, DROPPED, now]
    return [now]


def _next_hops_of(obj: Route | Flow | Bundle) -> Sequence[Route | Flow | NextHop]:
    return obj.next_hops if isinstance(obj, Bundle) else (obj,)


def _is_host(route: Route) -> bool:
    address, _, prefix_len = route.prefix.partition("/")
    return int(prefix_len) == (128 if ":" in address else 32)
