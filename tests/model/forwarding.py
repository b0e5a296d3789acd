# SPDX-License-Identifier: GPL-2.0-only
"""What becomes of a frame that comes in at a port of a node."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from model import decap, ecn, encap, icmp, neighbour
from model.decap.l2tp import strip_cookie
from model.encap.base import Fields
from model.flow import hash_flow
from model.frames import ETHERNET_LEN, is_summed_right, updated_checksum
from model.node import FRAMES, Acceptance, Access, NextHop, Node
from model.parse import Frame, parse_frame, parse_ip_packet
from model.way import Way
from mptm.intent import Tunnel

__all__ = ["Count", "Model", "Outcome"]

Count = tuple[str, ...]
"""("port", name, "rx" or "tx"), ("tunnel", name, "encap" or "decap"), ("drop", reason, "port" or "tunnel", name)."""


@dataclass
class Outcome:
    """What became of a frame.

    verdict    PASS: to the kernel; DROP; REDIRECT: out of `egress`
    data       the frame as it leaves; of a dropped one nothing is said, so it is as it came
    clock      the time that the packet carries, in units of 100 ns; None: it carries none
    identification  that the packet carries where it has to be random
    error_at   the port that used up one of its ICMP errors
    counts     what was counted: packets and bytes
    """

    verdict: str
    data: bytes
    egress: int | None = None
    clock: int | None = None
    identification: int | None = None
    error_at: str | None = None
    counts: dict[Count, tuple[int, int]] = field(default_factory=dict)

    @property
    def reasons(self) -> list[str]:
        """Names of the reasons that were counted."""
        return [count[1] for count in self.counts if count[0] == "drop"]


@dataclass(frozen=True)
class Arrived:
    """An inner frame that came out of a tunnel, by way of an uplink.

    tunnel     as if it sent what came: its protocol and options
    is_frame   it came as an Ethernet frame; else as an IP packet, and its MAC addresses are zero
    """

    tunnel: Tunnel
    frame: Frame
    port: Access
    is_frame: bool


class Model(Node):
    """One node's data plane. From packet to packet it keeps sequence numbers and nothing else.

    ICMP errors are limited in rate; the model takes it that there is one left.
    """

    sequences: dict[str, int]

    def receive(self, port: str, frame: bytes, *, seen: bytes = b"") -> Outcome:
        """What becomes of a frame. `seen`: what left, for fields that are random or the clock's."""
        if not hasattr(self, "sequences"):
            self.sequences = defaultdict(int)
        access = self.ports[port]
        self._seen = seen
        self._outcome = outcome = Outcome("PASS", frame)
        self._count(("port", port, "rx"), len(frame))
        if access.role == "access":
            self._from_workload(access, frame)
        else:
            self._from_underlay(access, frame)
        return outcome

    # ---- verdicts ----

    def _count(self, count: Count, size: int) -> None:
        packets, total = self._outcome.counts.get(count, (0, 0))
        self._outcome.counts[count] = packets + 1, total + size

    def _drop(self, reason: str, scope: str, name: str, size: int) -> None:
        self._outcome.verdict = "DROP"
        self._count(("drop", reason, scope, name), size)

    def _send(self, ifindex: int, data: bytes) -> None:
        outcome = self._outcome
        outcome.verdict, outcome.data, outcome.egress = "REDIRECT", data, ifindex
        if ifindex in self.by_ifindex:
            self._count(("port", self.by_ifindex[ifindex].name, "tx"), len(data))

    def _pass(self, data: bytes, port: Access) -> None:
        """To the kernel, addressed to the port that it came by."""
        self._outcome.verdict, self._outcome.data = "PASS", port.mac + data[6:]

    def _deliver(self, frame: Frame, hop: NextHop) -> None:
        """To a local workload, at its own MAC."""
        self._send(self.ports[hop.name].ifindex, (hop.mac or b"") + frame.data[6:])

    # ---- into a tunnel ----

    def _choose(self, hop: NextHop, frame: Frame) -> str | None:
        """The tunnel of a next hop; None: its group has nobody."""
        if hop.kind == "tunnel":
            return hop.name
        return self.choose_member(self.intent.groups[hop.name], hash_flow(frame))

    def _encapsulate(self, frame: Frame, name: str, mac: bytes | None, port: Access) -> int | None:
        """Send a frame through a tunnel. A number: it is too big and was counted; this many bytes of IP would fit."""
        size = len(frame.data)
        reason, inner_mtu = self._problem(frame, name)
        if reason:
            self._drop(reason, "tunnel", name, size)
            return inner_mtu
        if mac is not None:
            frame = with_macs(frame, mac + frame.data[6:12])
        tunnel, way = self.intent.tunnels[name], self.ways[name]
        assert way is not None
        options: Any = tunnel.options
        frame = encap.untagged(tunnel.protocol, frame)
        fields = self._fields(name, way, frame)
        wire = encap.encapsulate(tunnel.protocol, options, way, frame, fields)
        self.sequences[name] += 1
        if tunnel.protocol == "erspan" and options.version == 3:
            self._outcome.clock = fields.time
        if way.version == 4 and not getattr(options, "df", True):
            self._outcome.identification = fields.identification
        # Both ends count the inner frame; of an IP packet alone that is the packet and an Ethernet header.
        is_l3 = encap.carried_by(tunnel.protocol, options) is not None
        self._count(("tunnel", name, "encap"), ETHERNET_LEN + len(frame.ip) if is_l3 else len(frame.data))
        if getattr(options, "to_stack", False):
            self._pass(wire, port)
        else:
            self._send(way.egress, wire)
        return None

    def _problem(self, frame: Frame, name: str) -> tuple[str, int | None]:
        """Why a frame can't go through a tunnel, a reason; and, if it is too big, how many bytes of IP would fit."""
        tunnel, way = self.intent.tunnels[name], self.ways[name]
        if way is None:
            return "TUNNEL_DOWN", None
        carries = encap.carried_by(tunnel.protocol, tunnel.options)
        if carries is not None and frame.version not in carries:
            return "INNER_FAMILY", None
        frame = encap.untagged(tunnel.protocol, frame)
        overhead = encap.overhead(tunnel.protocol, tunnel.options, way, frame)
        size = len(frame.ip) if carries else len(frame.data) - frame.l3
        return ("TOO_BIG", way.mtu - overhead) if size + overhead > way.mtu else ("", None)

    def _fields(self, name: str, way: Way, frame: Frame) -> Fields:
        time_at = ETHERNET_LEN + (20 if way.version == 4 else 40) + 12
        return Fields(
            flow_hash=hash_flow(frame),
            destination=way.destination,
            sequence=self.sequences[name],
            identification=int.from_bytes(self._seen[18:20], "big"),
            time=int.from_bytes(self._seen[time_at : time_at + 4], "big"),
        )

    def _error(self, frame: Frame, mtu: int, network: str, port: Access) -> bytes | None:
        """What the sender of a packet that was too big is told, from the gateway address; None: nothing."""
        gateway = self.networks[network].gateways.get(frame.version)
        made = icmp.too_big(frame, mtu, gateway, port.mac) if gateway else None
        if made is not None:
            self._outcome.error_at = port.name
        return made

    # ---- from a workload ----

    def _from_workload(self, port: Access, data: bytes) -> None:
        frame = parse_frame(data)
        if frame is None:
            return
        network = self.networks[str(port.network)]
        question = neighbour.parse_question(frame)
        if question is not None:
            self._answer_workload(frame, question, port)
            return
        hop = network.next_hop(frame)
        if hop is None or hop.kind == "pass" or (hop.kind == "port" and hop.name == port.name):
            return
        if hop.kind == "drop":
            self._drop("ROUTE_DROP", "port", port.name, len(data))
        elif hop.kind == "gateway":
            reply = icmp.echo_reply(frame, port.mac)
            if reply is not None:
                self._send(port.ifindex, reply)
        elif hop.kind == "port" and self.ports[hop.name].fits(frame):
            self._deliver(frame, hop)
        elif hop.kind == "port":
            self._drop("PORT_TOO_BIG", "port", hop.name, len(data))
            self._answer_too_big(frame, self.ports[hop.name].mtu, port)
        else:
            self._send_into(hop, frame, port)

    def _answer_workload(self, frame: Frame, question: neighbour.Question, port: Access) -> None:
        """What is elsewhere is answered for: by its MAC where that is known, else by the port's."""
        hop = self.networks[str(port.network)].lookup(question.target, by_prefix=not question.is_probe)
        is_elsewhere = hop is not None and (
            hop.kind in ("tunnel", "group", "gateway") or (hop.kind == "port" and hop.name != port.name)
        )
        if hop is not None and is_elsewhere:
            is_own = hop.kind == "gateway"
            self._send(port.ifindex, neighbour.answer(frame, question, hop.mac or port.mac, is_own=is_own))

    def _send_into(self, hop: NextHop, frame: Frame, port: Access) -> None:
        name = self._choose(hop, frame)
        if name is None:
            self._drop("GROUP_EMPTY", "port", port.name, len(frame.data))
            return
        mtu = self._encapsulate(frame, name, hop.mac, port)
        if mtu is not None:
            self._answer_too_big(frame, mtu, port)

    def _answer_too_big(self, frame: Frame, mtu: int, port: Access) -> None:
        """Back out of the access port."""
        error = self._error(frame, mtu, str(port.network), port)
        if error is not None:
            self._send(port.ifindex, error)

    # ---- from the underlay ----

    def _from_underlay(self, port: Access, data: bytes) -> None:
        outer = decap.read_outer(data, self.arrivals)
        if outer is None or (outer.version and data[:6] != port.mac):
            return
        if outer.is_fragment:
            self._refuse(outer, "FRAGMENT", port)
            return
        if outer.problem:
            self._reject(outer, outer.problem, port)
            return
        try:
            reading = decap.read(outer)
        except decap.Control:
            self._refuse(outer, "CONTROL", port)
            return
        except decap.Unreadable as fault:
            self._reject(outer, fault.reason, port)
            return
        found = self._find_tunnel(outer, reading, port)
        if found is None:
            self._refuse(outer, "SENDER_OR_ID" if reading.echo is None else "CONTROL", port)
            return
        accepted, payload = found
        reason = reading.fault or self._checksum_problem(accepted, outer)
        if not reason and reading.echo is not None:
            if outer.has_extension:
                self._refuse(outer, "CONTROL", port)  # the host's
            else:
                self._send(port.ifindex, decap.echo_response(data, outer, reading.echo))
            return
        arrived = reason or self._open(accepted, outer, reading, payload, port)
        if isinstance(arrived, str):
            self._drop(arrived, "tunnel", accepted.tunnel.name, len(data))
        else:
            self._forward(arrived)

    def _is_ours(self, outer: decap.Outer, port: Access) -> bool:
        """Whether we are addressed: by IP or, where there is none, by MAC."""
        return outer.destination in self.locals if outer.version else outer.destination == port.mac

    def _refuse(self, outer: decap.Outer, reason: str, port: Access) -> None:
        """Not taken, and left as it came; counted where we are addressed."""
        if self._is_ours(outer, port):
            self._count(("drop", reason, "port", port.name), len(self._outcome.data))

    def _reject(self, outer: decap.Outer, reason: str, port: Access) -> None:
        """Broken: dropped where we are addressed, else somebody else's."""
        if self._is_ours(outer, port):
            self._drop(reason, "port", port.name, len(self._outcome.data))

    def _find_tunnel(
        self, outer: decap.Outer, reading: decap.Reading, port: Access
    ) -> tuple[Acceptance, decap.Payload | None] | None:
        """Who accepts the packet: by the more specific name first, and the known sender before anyone."""
        interface = 0 if outer.version else port.ifindex
        own_of_anyone = outer.destination if outer.version else None
        for header, identifier, payload in reading.names:
            for sender, own in ((outer.source, outer.destination), (None, own_of_anyone)):
                key = outer.arrival, header, identifier, sender, own, interface
                if key in self.acceptances:
                    return self.acceptances[key], payload
        return None

    def _checksum_problem(self, accepted: Acceptance, outer: decap.Outer) -> str:
        """What the tunnel wants of the outer UDP checksum."""
        wanted = getattr(accepted.tunnel.options, "receive_checksum", "ignore")
        if not outer.udp_datagram or wanted == "ignore":
            return ""
        return decap.udp_checksum_problem(outer, is_required=wanted == "require")

    def _open(
        self,
        accepted: Acceptance,
        outer: decap.Outer,
        reading: decap.Reading,
        payload: decap.Payload | None,
        port: Access,
    ) -> Arrived | str:
        """What is in the tunnel; or the reason why it goes no further."""
        assert payload is not None
        data, says = payload
        options: Any = accepted.tunnel.options
        if accepted.tunnel.protocol == "l2tp":
            data, fault = strip_cookie(options, data)
            if fault:
                return fault
        verifies = getattr(options, "verify_checksum", True)  # ERSPAN has no such option
        if reading.summed and verifies and not outer.is_in_span():
            return "CHECKSUM_SPAN"
        if reading.summed and verifies and not is_summed_right(reading.summed):
            return "GRE_CHECKSUM"
        frame = parse_frame(data) if says is None else parse_ip_packet(data)
        if frame is None:
            return "BAD_INNER"
        if says is not None:
            frame = replaced(frame, frame.data[: frame.end])  # what is behind the packet is nobody's
        if accepted.header == "nvgre" and frame.is_tagged:
            return "INNER_TAG"  # RFC 7637 §3.3
        if says and frame.version != says:
            return "INNER_VERSION"
        if (FRAMES if says is None else frame.version) not in accepted.carried:
            return "INNER_FAMILY"
        if frame.version:
            leaving = ecn.LEAVING[frame.tos & ecn.ECN_MASK, outer.tos & ecn.ECN_MASK]
            if leaving is None:
                return "ECN_CE"
            frame = replaced(frame, ecn.set_ecn(frame, leaving))
        return Arrived(accepted.tunnel, frame, port, is_frame=says is None)

    def _forward(self, arrived: Arrived) -> None:
        """An inner frame in its network."""
        tunnel, frame, port = arrived.tunnel, arrived.frame, arrived.port
        network, came_by = self.networks[tunnel.network], ("tunnel", tunnel.name, len(self._outcome.data))
        question = neighbour.parse_question(frame) if arrived.is_frame else None
        if question is not None:
            hop = network.lookup(question.target, by_prefix=not question.is_probe)
        else:
            hop = network.next_hop(frame)
        if hop is None and not encap.is_over_ip(tunnel.protocol) and frame.data[:6] != port.mac:
            return  # another station's, on a segment that we share
        if hop is None or hop.kind == "gateway":
            self._drop("NO_ROUTE", *came_by)
        elif hop.kind == "drop":
            self._drop("ROUTE_DROP", *came_by)
        elif hop.kind == "port" and not self.ports[hop.name].fits(frame):
            self._drop("PORT_TOO_BIG", "port", hop.name, len(frame.data))
        elif hop.kind == "pass":
            self._count(("tunnel", tunnel.name, "decap"), len(frame.data))
            self._pass(frame.data if arrived.is_frame else with_macs(frame, port.mac * 2).data, port)
        elif hop.kind == "port":
            if question is not None:
                self._answer_through(arrived, question, hop)
                return
            self._count(("tunnel", tunnel.name, "decap"), len(frame.data))
            gateway_mac = self.ports[hop.name].mac
            self._deliver(frame if arrived.is_frame else with_macs(frame, gateway_mac * 2), hop)
        else:
            self._relay(arrived, question, hop)

    def _answer_through(self, arrived: Arrived, question: neighbour.Question, hop: NextHop) -> None:
        """The asker is behind the tunnel that the question came by: the answer goes back through it."""
        tunnel, frame, port = arrived.tunnel, arrived.frame, arrived.port
        if self.ways[tunnel.name] is None:
            self._drop("NO_ROUTE", "tunnel", tunnel.name, len(self._outcome.data))
            return
        self._count(("tunnel", tunnel.name, "decap"), len(frame.data))
        answer = parse_frame(neighbour.answer(frame, question, hop.mac or port.mac, is_own=False))
        assert answer is not None
        self._encapsulate(answer, tunnel.name, None, port)

    def _relay(self, arrived: Arrived, question: neighbour.Question | None, hop: NextHop) -> None:
        """Out of one tunnel into another: as by a router, the TTL goes down (RFC 1812 §5.3.1, RFC 8200 §3)."""
        tunnel, frame, port = arrived.tunnel, arrived.frame, arrived.port
        came_by = "tunnel", tunnel.name, len(self._outcome.data)
        name = self._choose(hop, frame) if hop.relays else None
        if not hop.relays:
            self._drop("NO_RELAY", *came_by)
        elif name is None:
            self._drop("GROUP_EMPTY", *came_by)
        elif name == tunnel.name or self._same_horizon(tunnel, self.intent.tunnels[name]):
            self._drop("SPLIT_HORIZON", *came_by)
        elif question is not None:
            self._answer_through(arrived, question, hop)
        elif frame.ttl <= 1:
            self._drop("HOP_LIMIT", *came_by)
        else:
            self._count(("tunnel", tunnel.name, "decap"), len(frame.data))
            if not arrived.is_frame:
                frame = with_macs(frame, port.mac * 2)
            frame = one_hop_less(frame)
            mtu = self._encapsulate(frame, name, hop.mac, port)
            error = self._error(frame, mtu, tunnel.network, port) if mtu is not None else None
            answer = parse_frame(error) if error is not None else None
            # An error that can't go isn't counted: what it is about was.
            if answer is not None and not self._problem(answer, tunnel.name)[0]:
                self._encapsulate(answer, tunnel.name, None, port)

    def _same_horizon(self, one: Tunnel, other: Tunnel) -> bool:
        return one.split_horizon is not None and one.split_horizon == other.split_horizon


def replaced(frame: Frame, data: bytes) -> Frame:
    """The same frame with other bytes."""
    made = parse_frame(data)
    assert made is not None
    return made


def with_macs(frame: Frame, macs: bytes) -> Frame:
    """The same frame with other MAC addresses."""
    return replaced(frame, macs + frame.data[12:])


def one_hop_less(frame: Frame) -> Frame:
    """With TTL or hop limit less one; an IPv4 checksum that was right stays right (RFC 1624)."""
    data, at = bytearray(frame.data), frame.l3
    if frame.version == 6:
        data[at + 7] -= 1
        return replaced(frame, bytes(data))
    before = bytes(data[at + 8 : at + 10])
    data[at + 8] -= 1
    data[at + 10 : at + 12] = updated_checksum(
        bytes(data[at + 10 : at + 12]), before, bytes(data[at + 8 : at + 10])
    )
    return replaced(frame, bytes(data))
