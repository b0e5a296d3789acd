# SPDX-License-Identifier: GPL-2.0-only
"""What the data plane does with a packet, step by step and in words: `Node.trace`, `mptm trace`.

The steps are recorded by the data plane's own programs (bpf/trace.h); here they get the names that the intent has.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TYPE_CHECKING, Any, Protocol

from mptm import headers, reasons
from mptm.compile import NextHopKind, PortRole, TunnelFlag
from mptm.errors import InvalidPacket
from mptm.facts import IPAddress, Link
from mptm.intent import find_protocol
from mptm.protocols.base import IpProtocol, Parser
from mptm.sync import SCOPE_PORT, SCOPE_TUNNEL

if TYPE_CHECKING:
    from mptm.compile import Allocations
    from mptm.intent import Intent, Port
    from mptm.kernel.tracing import Record, TracedRun
    from mptm.packets.description import Defaults
    from mptm.sync import Table

PACKET_MIN = headers.ETHERNET_LEN
PACKET_MAX = os.sysconf("SC_PAGE_SIZE") - 256 - 320
"""Bytes of a packet that BPF_PROG_TEST_RUN runs in one piece: a page without XDP's headroom and tailroom."""


class TraceStep(IntEnum):
    """Mirrors `enum trace_step` of bpf/abi.h, where each says what its values are; a unit test compares the two."""

    NO_PORT = 1
    PORT = 2
    UNPARSED = 3
    PACKET = 4
    QUESTION = 5
    NEXT_HOP = 6
    GROUP = 7
    TUNNEL = 8
    TOO_BIG = 9
    ENCAPSULATED = 10
    TO_STACK = 11
    DELIVERED = 12
    ANSWERED = 13
    NOT_LISTENING = 14
    NOT_FOR_US = 15
    OUTER = 16
    HEADER = 17
    TERMINATION = 18
    ECN = 19
    STRIPPED = 20
    RELAYED = 21
    REASON = 22
    SOURCE = 23
    OUTER_DESTINATION = 24
    ANSWERED_BACK = 25
    UNANSWERED = 26


class TraceTable(IntEnum):
    """Mirrors `enum trace_table` of bpf/abi.h."""

    NONE = 0
    FLOWS = 1
    HOSTS = 2
    PREFIXES = 3


VERDICTS = ("aborted", "drop", "pass", "tx", "redirect")
"""By number: `enum xdp_action` (linux/bpf.h)."""

_ECN = ("not-ECT", "ECT(1)", "ECT(0)", "CE")
_IP_PROTOCOLS = {
    headers.IP_PROTOCOL_ICMP: "ICMP",
    2: "IGMP",
    headers.IP_PROTOCOL_IPV4: "IPv4",
    headers.IP_PROTOCOL_TCP: "TCP",
    headers.IP_PROTOCOL_UDP: "UDP",
    headers.IP_PROTOCOL_IPV6: "IPv6",
    headers.IP_PROTOCOL_ROUTING: "routing header",
    44: "fragment",
    headers.IP_PROTOCOL_GRE: "GRE",
    50: "ESP",
    headers.IP_PROTOCOL_ICMPV6: "ICMPv6",
    headers.IP_PROTOCOL_ETHERIP: "EtherIP",
    headers.IP_PROTOCOL_L2TP: "L2TPv3",
    132: "SCTP",
}
_ETHERTYPES = {headers.ETHERTYPE_ARP: "ARP", 0x88CC: "LLDP"}
_PARSERS: dict[Parser, tuple[str, str]] = {
    Parser.GENEVE: ("GENEVE", "VNI"),
    Parser.VXLAN: ("VXLAN", "VNI"),
    Parser.VLAN: ("VLAN", "VID"),
    Parser.VXLAN_GPE: ("VXLAN-GPE", "VNI"),
    Parser.GRE: ("GRE", ""),
    Parser.GRE_KEY: ("GRE", "key"),
    Parser.NVGRE: ("NVGRE", "VSID"),
    Parser.ERSPAN: ("ERSPAN", "session"),
    Parser.IP: ("IP in IP", ""),
    Parser.ETHERIP: ("EtherIP", ""),
    Parser.GTPU: ("GTP-U", "TEID"),
    Parser.L2TP_IP: ("L2TPv3 over IP", "session"),
    Parser.L2TP_UDP: ("L2TPv3 over UDP", "session"),
    Parser.GUE: ("GUE", ""),
    Parser.MPLS: ("MPLS", "label"),
    Parser.SRV6: ("SRv6", ""),
    Parser.QINQ: ("QinQ", "VIDs"),
    Parser.NSH: ("NSH over VXLAN-GPE", "VNI"),
    Parser.GTPU_ECHO: ("GTP-U echo request", ""),
}
"""What a header is called, and what its identifier is; a parser that isn't here is called as in C."""
_ACCEPTED_SHOWN = 5


class Programs(Protocol):
    """The programs that record what they do (`mptm.kernel.tracing.TracedPrograms`)."""

    def run(self, role: str, packet: bytes, *, ifindex: int, slot: int) -> TracedRun:
        """Run a packet that came in at a port."""


@dataclass(frozen=True)
class Step:
    """A thing that the data plane found out or did: its name, a sentence, and the same as data."""

    step: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    """Why a packet that went no further is the kernel's, where it is this step that made it so."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"step": self.step, "text": self.text, **self.fields}


@dataclass(frozen=True)
class Trace:
    """What became of a packet that came in at a port; nothing was sent or counted.

    `verdict` is aborted, drop, pass, tx or redirect, `sentence` says the same in words. `interface` is where the packet
    would leave. `leaves` is the packet as it leaves, or is handed to the kernel; None: it was dropped. `reason` is what
    it would be counted for, by its name in C.
    """

    port: str
    packet: bytes
    steps: tuple[Step, ...]
    verdict: str
    sentence: str
    reason: str | None
    interface: str | None
    leaves: bytes | None
    summary: str | None
    """Of the packet that leaves."""
    warnings: tuple[str, ...] = ()

    @property
    def packet_summary(self) -> str:
        """The packet that came in, as text."""
        return headers.describe_frame(self.packet)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; packets in hexadecimal."""
        return {
            "port": self.port,
            "packet": {"hex": self.packet.hex(), "summary": self.packet_summary},
            "steps": [step.to_dict() for step in self.steps],
            "verdict": self.verdict,
            "sentence": self.sentence,
            "reason": self.reason,
            "caption": reasons.caption_of(self.reason) if self.reason else None,
            "interface": self.interface,
            "leaves": None if self.leaves is None else {"hex": self.leaves.hex(), "summary": self.summary},
            "warnings": list(self.warnings),
        }


class Tracer:
    """Traces packets that come in at one port of a node. Made by `Node.tracer`."""

    def __init__(
        self,
        port: Port,
        *,
        intent: Intent,
        allocations: Allocations,
        links: Mapping[str, Link],
        tables: Mapping[str, Table],
        programs: Programs,
        warnings: Sequence[str] = (),
    ) -> None:
        self.port = port
        self.warnings = tuple(warnings)
        self._programs = programs
        self._link = links[port.name]
        self._slot = allocations.ports[port.name].slot
        self._names = _Names(intent, allocations, links, tables)

    def trace(self, packet: bytes) -> Trace:
        """Run an Ethernet frame as it comes in. Raises InvalidPacket for one that can't be run, and KernelError."""
        if not PACKET_MIN <= len(packet) <= PACKET_MAX:
            raise InvalidPacket(
                f"a packet of {len(packet)} bytes can't be traced: it needs {PACKET_MIN} to {PACKET_MAX}",
                "frames are traced as they are on the wire, after segmentation"
                if len(packet) > PACKET_MAX
                else "a frame begins with two MAC addresses and the EtherType",
            )
        run = self._programs.run(self.port.role, packet, ifindex=self._link.ifindex, slot=self._slot)
        story = _Story(self._names, self.port.name)
        steps = tuple(story.tell(run.records))
        verdict = VERDICTS[run.verdict] if run.verdict < len(VERDICTS) else f"verdict {run.verdict}"
        leaves = run.data if verdict in ("pass", "tx", "redirect") else None
        lost = (f"{run.lost} further steps had no room in the record",) if run.lost else ()
        return Trace(
            port=self.port.name,
            packet=packet,
            steps=steps,
            verdict=verdict,
            sentence=story.sentence(verdict, steps, is_changed=run.data != packet),
            reason=story.reason,
            interface=story.interface if verdict in ("redirect", "tx") else None,
            leaves=leaves,
            summary=None if leaves is None else story.summary(leaves),
            warnings=(*self.warnings, *lost),
        )

    @property
    def defaults(self) -> Defaults:
        """What a described packet may leave out here: the addresses of who sends to this port."""
        from mptm.packets.description import SOMEBODY, Defaults

        own_mac = self._names.port_mac(self._slot) or self._link.mac
        if self.port.role != "access":
            return Defaults(SOMEBODY, own_mac)
        workload_mac, sources = self._names.workload(self.port.name)
        return Defaults(self._link.peer_mac or workload_mac or SOMEBODY, own_mac, sources)


class _Names:
    """What things of the data plane are called, and what their entries say."""

    def __init__(
        self, intent: Intent, allocations: Allocations, links: Mapping[str, Link], tables: Mapping[str, Table]
    ) -> None:
        self.intent = intent
        self._tables = tables
        self._networks = {network.id: network.name for network in intent.networks.values()}
        self._interfaces = {link.ifindex: link.name for link in links.values()}
        self._interfaces |= {held.ifindex: name for name, held in allocations.ports.items()}
        self._groups = {slot: name for name, slot in allocations.groups.items()}
        self._tunnels = {held.slot: name for name, held in allocations.tunnels.items()}
        self._counters = {held.counter: name for name, held in allocations.tunnels.items()}
        self._prefixes: dict[tuple[str, IPAddress], str | None] = {}

    def network(self, number: int) -> str:
        return self._networks.get(number, f"number {number}")

    def interface(self, ifindex: int) -> str:
        return self._interfaces.get(ifindex, f"interface {ifindex}")

    def group(self, slot: int) -> str:
        return self._groups.get(slot, f"in slot {slot}")

    def tunnel(self, slot: int) -> str:
        return self._tunnels.get(slot, f"in slot {slot}")

    def tunnel_of_counter(self, counter: int) -> str:
        return self._counters.get(counter, f"with counter {counter}")

    def tunnel_entry(self, slot: int) -> dict[str, Any]:
        """The entry of a slot in `tunnels`."""
        return self._entry("tunnels", slot)

    def port_mac(self, slot: int) -> bytes | None:
        """The MAC address in a port's entry; None: it has none."""
        mac: bytes = self._entry("ports", slot)["mac"]
        return mac if any(mac) else None

    def _entry(self, name: str, slot: int) -> dict[str, Any]:
        table = self._tables[name]
        entry: dict[str, Any] = table.value.unpack(table.get(table.key.pack(slot)) or bytes(table.value.size))
        return entry

    def workload(self, port: str) -> tuple[bytes | None, dict[int, str]]:
        """MAC address and addresses of who is behind an access port, as far as routes for single addresses say."""
        mac: bytes | None = None
        sources: dict[int, str] = {}
        for route in self.intent.routes.values():
            prefix = ip_network(route.prefix)
            if route.port != port or prefix.num_addresses > 1:
                continue
            sources.setdefault(prefix.version, str(prefix.network_address))
            if route.mac and mac is None:
                mac = bytes.fromhex(route.mac.replace(":", ""))
        return mac, sources

    def prefix(self, network: str, address: IPAddress) -> str | None:
        """The longest prefix of a network's routes that an address is in, single addresses aside."""
        known = self._prefixes
        if (network, address) not in known:
            found = [
                prefix
                for route in self.intent.routes.values()
                if route.network == network
                and (prefix := ip_network(route.prefix)).version == address.version
                and prefix.num_addresses > 1
                and address in prefix
            ]
            known[network, address] = str(max(found, key=lambda each: each.prefixlen)) if found else None
        return known[network, address]

    def accepted(self, number: int) -> Iterator[str]:
        """What the terminations of a listener accept, in words."""
        table = self._tables["terminations"]
        for value in table.items().values():
            entry = table.value.unpack(value)
            if entry["parser"] and entry["number"] == number:
                what = _header_text(entry["parser"], entry["tunnel_id"])
                source = _outer_address(entry["source"], is_mac=entry["parser"] in (Parser.VLAN, Parser.QINQ))
                sender = "anyone" if not any(entry["source"]) else source
                yield f"{what} from {sender} (tunnel {self.tunnel_of_counter(entry['counter'])})"


class _Story:
    """The steps of one packet, told in order."""

    def __init__(self, names: _Names, port: str) -> None:
        self._names = names
        self._port = port
        self._network = ""
        self._source: IPAddress | None = None
        self._sought: IPAddress | None = None
        """The address that is looked up next."""
        self._number = 0
        self._tunnel: dict[str, Any] | None = None
        self._tunnel_name = ""
        self._outer_len = 0
        self._interface = 0
        self._is_answer = False
        self.reason: str | None = None

    @property
    def interface(self) -> str:
        """Where the packet leaves."""
        return self._names.interface(self._interface)

    def tell(self, records: Iterable[Record]) -> Iterator[Step]:
        """The steps in words. What a record adds to the one before is told with it."""
        held = list(records)
        for at, record in enumerate(held):
            following = held[at + 1] if at + 1 < len(held) else None
            try:
                kind = TraceStep(record.step)
            except ValueError:
                yield Step(f"step {record.step}", "a step that only a newer build knows")
                continue
            if kind in (TraceStep.SOURCE, TraceStep.OUTER_DESTINATION):
                continue
            yield from getattr(self, f"_tell_{kind.name.lower()}")(record, following)

    def sentence(self, verdict: str, steps: Sequence[Step], *, is_changed: bool) -> str:
        """The verdict in words."""
        why = next((step.why for step in reversed(steps) if step.why), "")
        if verdict == "redirect":
            return f"{'an answer is ' if self._is_answer else ''}sent out of {self.interface}"
        if verdict == "drop":
            return f"dropped: {reasons.caption_of(self.reason)}" if self.reason else "dropped"
        if verdict == "pass":
            what = "handed to the kernel, changed" if is_changed else "left to the kernel as it came"
            return f"{what}: {why}" if why else what
        return f"{verdict}: what the programs never say"

    def summary(self, frame: bytes) -> str:
        """The packet that leaves, from its outermost header to what is in the tunnel."""
        if self._tunnel is None or not self._outer_len:
            return headers.describe_frame(frame)
        inner = frame[self._outer_len :]
        if self._tunnel["flags"] & TunnelFlag.L3:
            inside = headers.describe_ip(inner)
        elif self._tunnel["strip"]:  # the outer addresses are the inner ones (VLAN)
            return headers.describe_frame(frame)
        else:
            inside = headers.describe_frame(inner)
        tunnel = self._names.intent.tunnels.get(self._tunnel_name)
        protocol = find_protocol(tunnel.protocol) if tunnel is not None else None
        header = (
            protocol.describe_header(tunnel.options)
            if isinstance(protocol, IpProtocol) and tunnel is not None
            else ""
        )
        outer = headers.describe_frame(frame[: self._outer_len])
        return ",".join(filter(None, (outer, header, inside)))

    # ---- where it came in, and what it is ----

    def _tell_no_port(self, record: Record, _: Record | None) -> Iterator[Step]:
        name = self._names.interface(record.values[0])
        why = "the loaded tables don't have its interface as a port of this role"
        yield Step(
            "no_port", f"{name} is no such port in the loaded tables: `mptm restore`", {"port": name}, why
        )

    def _tell_port(self, record: Record, _: Record | None) -> Iterator[Step]:
        name, role = self._names.interface(record.values[0]), record.values[1]
        if role == PortRole.ACCESS:
            self._network = self._names.network(record.values[2])
            text = f"{name} is an access port of network {self._network}"
            yield Step("port", text, {"port": name, "role": "access", "network": self._network})
        else:
            yield Step("port", f"{name} is an uplink", {"port": name, "role": "uplink", "network": None})

    def _tell_unparsed(self, record: Record, _: Record | None) -> Iterator[Step]:
        yield Step(
            "unparsed",
            f"its headers say more than the {record.values[0]} bytes that it has",
            {"length": record.values[0]},
            "it is cut short",
        )

    def _tell_packet(self, record: Record, following: Record | None) -> Iterator[Step]:
        version, protocol, length = record.values
        fields: dict[str, Any] = {"version": version or None, "length": length}
        ports = ethertype = 0
        if following is not None and following.step == TraceStep.SOURCE:
            ports, ethertype = following.values[0], _wire16(following.values[1])
            fields |= {"ethertype": ethertype, "tos": following.values[2]}
        if not version:
            kind = _ETHERTYPES.get(ethertype, f"EtherType {ethertype:#06x}")
            yield Step(
                "packet",
                f"a frame of {length} bytes that is no IP packet: {kind}",
                fields,
                "it is no IP packet",
            )
            return
        self._sought = destination = _address(version, record.address)
        named = _IP_PROTOCOLS.get(protocol, f"protocol {protocol}")
        fields |= {"protocol": protocol, "destination": str(destination)}
        sender, receiver = "", str(destination)
        if following is not None and following.step == TraceStep.SOURCE:
            self._source = _address(version, following.address)
            fields["source"] = str(self._source)
            sender = f" from {self._source}"
            if ports:
                source_port, destination_port = struct.unpack("!HH", struct.pack("=I", ports))
                fields |= {"source_port": source_port, "destination_port": destination_port}
                sender, receiver = f"{sender} port {source_port}", f"{receiver} port {destination_port}"
        yield Step(
            "packet", f"IPv{version}, {named},{sender} to {receiver}, in a frame of {length} bytes", fields
        )

    def _tell_question(self, record: Record, _: Record | None) -> Iterator[Step]:
        version, is_probe, _unused = record.values
        self._sought = target = _address(version, record.address)
        kind = "ARP" if version == 4 else "neighbour solicitation"
        asks = f"whether somebody else has {target}" if is_probe else f"who has {target}"
        yield Step(
            "question",
            f"asks by {kind} {asks}",
            {"kind": kind, "target": str(target), "is_probe": bool(is_probe)},
            "nobody answers for that address here",
        )

    # ---- where it goes ----

    def _tell_next_hop(self, record: Record, _: Record | None) -> Iterator[Step]:
        table, kind, number = record.values
        address, network = self._sought, self._network
        fields: dict[str, Any] = {"network": network, "address": str(address)}
        if table == TraceTable.NONE:
            text = f"network {network} has no flow, route or gateway address for {address}"
            why = f"network {network} doesn't know {address}"
            yield Step("next_hop", text, {**fields, "table": None, "to": None}, why)
            return
        name, leads, why = self._target(kind, number)
        by = self._entry(table, kind)
        fields |= {
            "table": _member(TraceTable, table),
            "entry": by,
            "kind": _member(NextHopKind, kind),
            "to": name,
        }
        yield Step("next_hop", f"{by} {leads}", fields, why)

    def _target(self, kind: int, number: int) -> tuple[str | None, str, str]:
        """Name, words, and why it is the kernel's if it is."""
        match kind:
            case NextHopKind.TUNNEL:
                name = self._names.tunnel(number)
                return name, f"leads to tunnel {name}", ""
            case NextHopKind.GROUP:
                name = self._names.group(number)
                return name, f"leads to group {name}", ""
            case NextHopKind.PORT:
                name = self._names.interface(number)
                if name == self._port:
                    why = "the address is behind the port that it came in by"
                    return name, f"leads to port {name}, where it came in", why
                return name, f"leads to port {name}", ""
            case NextHopKind.PASS:
                return None, "passes it to the kernel", "the route or flow says pass"
            case NextHopKind.DROP:
                return None, "drops it", ""
            case _:
                return None, "is this node's own", "it is for the gateway address, and no ping"

    def _entry(self, table: int, kind: int) -> str:
        """The flow or route that a next hop was found by."""
        address, network = self._sought, self._network
        if table == TraceTable.FLOWS:
            return f"flow {self._source} -> {address} of {network}"
        if kind == NextHopKind.GATEWAY:
            return f"gateway address {address} of {network}"
        if table == TraceTable.HOSTS or address is None:
            return f"route {address}/{address.max_prefixlen if address else 0} of {network}"
        return f"route {self._names.prefix(network, address) or f'for {address}'} of {network}"

    def _tell_group(self, record: Record, _: Record | None) -> Iterator[Step]:
        group, at, slot = record.values
        name = self._names.group(group)
        tunnel = self._names.tunnel(slot - 1) if slot else None
        whose = f"tunnel {tunnel}'s" if tunnel else "nobody's"
        yield Step(
            "group",
            f"group {name}: by its hash the flow is in slot {at}, which is {whose}",
            {"group": name, "hash_slot": at, "tunnel": tunnel},
        )

    def _tell_tunnel(self, record: Record, _: Record | None) -> Iterator[Step]:
        slot, _counter, length = record.values
        self._tunnel = self._names.tunnel_entry(slot)
        self._tunnel_name = name = self._names.tunnel(slot)
        tunnel = self._names.intent.tunnels.get(name)
        what = f" ({tunnel.protocol} to {tunnel.remote or tunnel.remote_mac})" if tunnel else ""
        max_len = self._tunnel["max_len"]
        yield Step(
            "tunnel",
            f"tunnel {name}{what}: the frame comes to {length} bytes, {max_len} fit",
            {
                "tunnel": name,
                "protocol": tunnel.protocol if tunnel else None,
                "length": length,
                "max_length": max_len,
            },
        )

    def _tell_too_big(self, record: Record, _: Record | None) -> Iterator[Step]:
        (mtu, *_rest) = record.values
        self._tunnel = None
        yield Step("too_big", f"an IP packet of at most {mtu} bytes fits", {"mtu": mtu})

    def _tell_unanswered(self, _: Record, __: Record | None) -> Iterator[Step]:
        network = self._names.intent.networks.get(self._network)
        version = self._source.version if self._source else None
        if network is not None and version is not None and version not in network.gateways:
            text = f"its sender isn't told: network {self._network} has no IPv{version} gateway address to tell it from"
        else:
            text = "its sender isn't told: it may be fragmented, is an error or a later fragment, or can't be reached"
        yield Step("unanswered", text)

    def _tell_encapsulated(self, record: Record, _: Record | None) -> Iterator[Step]:
        self._interface, self._outer_len, flow_hash = record.values
        yield Step(
            "encapsulated",
            f"{self._outer_len} bytes of outer header are put in front; out of {self.interface}",
            {"interface": self.interface, "outer_bytes": self._outer_len, "flow_hash": flow_hash},
        )

    def _tell_to_stack(self, record: Record, _: Record | None) -> Iterator[Step]:
        self._outer_len = record.values[0]
        before = f"{self._outer_len} bytes of outer header are put in front; " if self._outer_len else ""
        why = "the kernel routes it on" if self._outer_len else "the route or flow says pass"
        yield Step(
            "to_stack",
            f"{before}handed to the kernel's stack, addressed to {self._port}",
            {"outer_bytes": self._outer_len},
            why,
        )

    def _tell_delivered(self, record: Record, _: Record | None) -> Iterator[Step]:
        self._interface, length, _unused = record.values
        self._tunnel = None
        yield Step("delivered", f"out of {self.interface}", {"interface": self.interface, "length": length})

    def _tell_answered(self, record: Record, _: Record | None) -> Iterator[Step]:
        self._interface, self._is_answer = record.values[0], True
        yield Step(
            "answered",
            f"an answer is written in its place; out of {self.interface}",
            {"interface": self.interface},
        )

    def _tell_answered_back(self, record: Record, _: Record | None) -> Iterator[Step]:
        self._is_answer = True
        name = self._names.tunnel_of_counter(record.values[0])
        yield Step(
            "answered",
            f"an answer is written in its place, and goes back through tunnel {name}",
            {"tunnel": name},
        )

    def _tell_relayed(self, record: Record, _: Record | None) -> Iterator[Step]:
        yield Step(
            "relayed",
            f"relayed from one tunnel into another: its TTL or hop limit is {record.values[0]} now",
            {"ttl": record.values[0]},
        )

    # ---- the underlay's side ----

    def _tell_not_listening(self, record: Record, _: Record | None) -> Iterator[Step]:
        protocol, number, version = record.values
        fields = {"version": version or None, "protocol": protocol if version else None, "number": number}
        named = _IP_PROTOCOLS.get(protocol, f"protocol {protocol}")
        if version and protocol == headers.IP_PROTOCOL_UDP:
            what = f"UDP port {number}" if number else "UDP without a port, as in later fragments"
        elif version:
            what = f"IPv{version} with {named}" if number else f"a later fragment of {named}"
        elif number in (0, headers.ETHERTYPE_IPV4, headers.ETHERTYPE_IPV6):
            what = "an IP header that is cut short or has options"
        else:
            what = f"EtherType {number:#06x}"
        yield Step(
            "not_listening", f"no tunnel here takes {what}", fields, "it is no packet for a tunnel here"
        )

    def _tell_not_for_us(self, _: Record, __: Record | None) -> Iterator[Step]:
        text = f"the frame is for another MAC address than that of {self._port}"
        yield Step("not_for_us", text, {}, text)

    def _tell_outer(self, record: Record, following: Record | None) -> Iterator[Step]:
        version, self._number, parser = record.values
        source = _outer_address(record.address)
        fields: dict[str, Any] = {
            "version": version or None,
            "number": self._number,
            "listener": _parser_name(parser),
            "source": source,
        }
        receiver, at = "", ""
        if following is not None and following.step == TraceStep.OUTER_DESTINATION:
            destination = _outer_address(following.address, is_mac=not version)
            protocol = following.values[0]
            fields |= {"destination": destination, "protocol": protocol or None, "tos": following.values[1]}
            receiver = f" to {destination}"
            is_udp = version and protocol == headers.IP_PROTOCOL_UDP
            at = f"UDP port {self._number}" if is_udp else f"IP protocol {self._number}"
        at = at if version else f"EtherType {self._number:#06x}"
        if not version:
            fields["source"] = source = _outer_address(record.address, is_mac=True)
        what = f"IPv{version}" if version else "a frame"
        yield Step(
            "outer",
            f"{what} from {source}{receiver}, {at}: {_parser_name(parser)} is listened for there",
            fields,
            f"{_outer_end(fields)} is no address of a tunnel here",
        )

    def _tell_header(self, record: Record, _: Record | None) -> Iterator[Step]:
        parser, tunnel_id, reason = record.values
        name = reasons.name_of(reason)
        wrong = f": {reasons.caption_of(name)}" if reason else ""
        if parser:
            text, header = _header_text(parser, tunnel_id), _parser_name(parser)
        else:
            text, header = "a tunnel header that doesn't say which tunnel it is of", None
        yield Step(
            "header",
            f"{text}{wrong}",
            {"header": header, "id": tunnel_id if header else None, "reason": name if reason else None},
        )

    def _tell_termination(self, record: Record, _: Record | None) -> Iterator[Step]:
        network, counter, parser = record.values
        self._network = self._names.network(network)
        name = self._names.tunnel_of_counter(counter)
        yield Step(
            "termination",
            f"tunnel {name} takes {_parser_name(parser)} from there, into network {self._network}",
            {"tunnel": name, "network": self._network, "header": _parser_name(parser)},
            "a host answers such an echo request itself" if parser == Parser.GTPU_ECHO else "",
        )

    def _tell_ecn(self, record: Record, following: Record | None) -> Iterator[Step]:
        if following is not None and following.step == TraceStep.PACKET and not following.values[0]:
            return  # no IP packet, no ECN field
        inner, outer, leaves = (_ECN[value & 3] for value in record.values)
        text = f"ECN: outer {outer}, inner {inner}, leaves as {leaves}"
        yield Step("ecn", text, {"outer": outer, "inner": inner, "leaves": leaves})

    def _tell_stripped(self, record: Record, _: Record | None) -> Iterator[Step]:
        length, kind, _unused = record.values
        length -= (length & 0x80000000) << 1
        what = "an IP packet, which gets an Ethernet header" if kind else "an Ethernet frame"
        cut = f"{length} bytes are cut off" if length >= 0 else f"{-length} bytes are added"
        yield Step(
            "stripped",
            f"{cut} in front; what is left is {what}",
            {"bytes": length, "payload": "ip" if kind else "ethernet"},
        )

    # ---- why it went no further ----

    def _tell_reason(self, record: Record, _: Record | None) -> Iterator[Step]:
        reason, scope, number = record.values
        self.reason = name = reasons.name_of(reason)
        caption = reasons.caption_of(name)
        at: tuple[str, str] | None = {
            SCOPE_PORT: ("port", self._names.interface(number)),
            SCOPE_TUNNEL: ("tunnel", self._names.tunnel_of_counter(number)),
        }.get(scope)
        yield Step(
            "reason",
            f"{caption} ({name}{f' at {at[0]} {at[1]}' if at else ''})",
            {
                "reason": name,
                "caption": caption,
                "scope": at and at[0],
                "name": at and at[1],
            },
            caption if reasons.is_refusal(name) else "",
        )
        if reason == reasons.Reason.REFUSED_SENDER_OR_ID:
            accepted = list(self._names.accepted(self._number))
            rest = len(accepted) - _ACCEPTED_SHOWN
            shown = accepted[:_ACCEPTED_SHOWN] + ([f"and {rest} more"] if rest > 0 else [])
            text = f"accepted there: {', '.join(shown) or 'nothing'}"
            yield Step("accepted", text, {"accepted": accepted})


def _address(version: int, data: bytes) -> IPAddress:
    return IPv4Address(data[:4]) if version == 4 else IPv6Address(data)


def _outer_address(data: bytes, *, is_mac: bool = False) -> str:
    """An address as in a termination: IPv6, IPv4 as ::ffff:a.b.c.d, or a MAC address and zeroes."""
    if is_mac:
        return data[:6].hex(":")
    address = IPv6Address(data)
    return str(address.ipv4_mapped or address)


def _outer_end(fields: Mapping[str, Any]) -> str:
    return str(fields.get("destination", "its destination"))


def _wire16(value: int) -> int:
    """A __be16 that was recorded as a number of this machine."""
    return int(struct.unpack("!H", struct.pack("=H", value))[0])


def _member(kind: type[IntEnum], number: int) -> str:
    return kind(number).name.lower() if number in set(kind) else str(number)


def _parser_name(parser: int) -> str:
    try:
        known = Parser(parser)
    except ValueError:
        return f"parser {parser}"
    return _PARSERS.get(known, (known.name, ""))[0]


def _header_text(parser: int, tunnel_id: int) -> str:
    """`VXLAN with VNI 200`."""
    identifier = _PARSERS[Parser(parser)][1] if parser in set(Parser) and Parser(parser) in _PARSERS else "id"
    if not identifier:
        return _parser_name(parser)
    shown = f"{tunnel_id >> 12}, {tunnel_id & 0xFFF}" if parser == Parser.QINQ else str(tunnel_id)
    return f"{_parser_name(parser)} with {identifier} {shown}"
