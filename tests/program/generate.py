# SPDX-License-Identifier: GPL-2.0-only
"""Raw packets by the thousand: what workloads send and what tunnels carry, right, odd and broken.

Everything comes out of a `Random`, so a seed is a packet. Written apart from the model: what one of them gets wrong the
other shows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any

from world import GATEWAY_MAC, OUR_MAC, REMOTE_MAC, STRANGER

from model import encap
from model.encap.base import Fields
from model.forwarding import Model
from model.node import Acceptance
from model.parse import parse_frame, parse_ip_packet
from mptm.intent import Tunnel

LONGEST = 3400
"""Bytes: what BPF_PROG_TEST_RUN takes in one page."""
SHORTEST = 14

MACS = [bytes.fromhex(mac.replace(":", "")) for mac in (GATEWAY_MAC, OUR_MAC, REMOTE_MAC)]
BROADCAST = b"\xff" * 6
GROUP_MACS = [BROADCAST, bytes.fromhex("01005e000005"), bytes.fromhex("3333ff000101")]
PORTS = [0, 1, 53, 80, 1111, 4789, 6081, 49152, 65535]


def mixed(random: Random, *weighted: tuple[int, Any]) -> Any:
    """One of (weight, value)."""
    return random.choices([value for _, value in weighted], [weight for weight, _ in weighted])[0]


def checksum(data: bytes) -> int:
    """RFC 1071, by adding up words."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass
class Places:
    """Addresses that mean something to a network: packed, by IP version.

    behind_tunnels   those that lead into a tunnel which can send
    behind_ports     those that lead to a workload
    """

    known: dict[int, list[bytes]] = field(default_factory=lambda: {4: [], 6: []})
    flows: dict[int, list[tuple[bytes, bytes]]] = field(default_factory=lambda: {4: [], 6: []})
    behind_tunnels: dict[int, list[bytes]] = field(default_factory=lambda: {4: [], 6: []})
    behind_ports: dict[int, list[bytes]] = field(default_factory=lambda: {4: [], 6: []})

    def version(self, random: Random, wanted: dict[int, list[bytes]]) -> int:
        """One that the network has such addresses of, mostly."""
        return random.choice([version for version in (4, 6) if wanted[version]] * 4 + [4, 6])


SPECIAL = {
    4: [
        ip_address(text).packed
        for text in ("224.0.0.5", "255.255.255.255", "169.254.1.1", "127.0.0.1", "0.0.0.0")
    ],
    6: [ip_address(text).packed for text in ("ff02::5", "fe80::1", "::1", "::", "ff02::1:ff00:101")],
}


def places(model: Model) -> dict[str, Places]:
    """What each network of a node has, and a few addresses around it."""
    found = {name: Places() for name in model.networks}
    for route in model.intent.routes.values():
        prefix = ip_network(route.prefix)
        known = found[route.network].known[prefix.version]
        known += [prefix.network_address.packed, prefix.broadcast_address.packed]
    for name, network in model.networks.items():
        for version, address in network.gateways.items():
            found[name].known[version] += [address] * 2
    for flow in model.intent.flows.values():
        ends = ip_address(flow.source).packed, ip_address(flow.destination).packed
        version = 4 if len(ends[0]) == 4 else 6
        found[flow.network].flows[version].append(ends)
        found[flow.network].known[version] += ends
    for name, network in model.networks.items():
        for version in (4, 6):
            for address in found[name].known[version]:
                hop = network.lookup(address)
                if hop is not None and hop.kind == "port":
                    found[name].behind_ports[version].append(address)
                elif hop is not None and (
                    hop.kind == "group" or (hop.kind == "tunnel" and model.ways[hop.name])
                ):
                    found[name].behind_tunnels[version].append(address)
    return found


# ---- inner frames ----------------------------------------------------------------------------------------


Wanted = dict[int, list[bytes]]
"""Destinations that are wanted most, by IP version."""


def inner_frame(random: Random, place: Places, wanted: Wanted, *, edges: Sequence[int] = ()) -> bytes:
    """A frame of a workload. `edges`: lengths of IP packets around which it becomes interesting."""
    kind = random.random()
    if kind < 0.08:
        return _arp(random, place)
    if kind < 0.16:
        return _solicitation(random, place)
    if kind < 0.18:
        ethertype = random.choice([0x88CC, 0x0842, 0x8847, 0x05DC, 0x0806, random.getrandbits(16)])
        return _ethernet(random, ethertype, random.randbytes(random.randrange(80)))
    version = place.version(random, wanted)
    packet = ip_packet(random, place, version, wanted, edges)
    frame = _ethernet(random, 0x0800 if version == 4 else 0x86DD, packet)
    return frame if random.random() < 0.9 else spoiled(random, frame)


def ip_packet(
    random: Random, place: Places, version: int, wanted: Wanted, edges: Sequence[int] = ()
) -> bytes:
    """An IP packet between addresses that a network may know."""
    source, destination = _ends(random, place, version)
    if wanted[version] and random.random() < 0.6:
        destination = random.choice(wanted[version])
    tos = random.choice((0, 1, 2, 3, 0xB8, 0xB9, random.getrandbits(8)))
    ttl = random.choice((64, 64, 1, 0, 255, random.getrandbits(8)))
    size = _size(random, edges) - (20 if version == 4 else 40)
    protocol, transport = _transport(random, version, source, destination, max(0, size))
    if version == 4:
        return ipv4(
            source,
            destination,
            protocol,
            transport,
            tos=tos,
            ttl=ttl,
            identification=random.getrandbits(16),
            fragment=mixed(random, (6, 0x4000), (4, 0), (1, 0x2000), (1, random.getrandbits(16) & 0x3FFF)),
            options=b"\1" * mixed(random, (12, 0), (1, 4), (1, 40)),
        )
    for _ in range(mixed(random, (12, 0), (2, 1), (1, 2))):
        protocol, transport = _extension(random, protocol, transport)
    return ipv6(source, destination, protocol, transport, tos=tos, label=random.getrandbits(20), ttl=ttl)


def _ends(random: Random, place: Places, version: int) -> tuple[bytes, bytes]:
    if place.flows[version] and random.random() < 0.3:
        return random.choice(place.flows[version])
    return _address(random, place, version), _address(random, place, version)


def _address(random: Random, place: Places, version: int) -> bytes:
    chosen = random.random()
    if chosen < 0.85 and place.known[version]:
        known = random.choice(place.known[version])
        # A neighbour of a known address is behind the same prefix, or not.
        return known if random.random() < 0.8 else known[:-1] + bytes([known[-1] ^ 1 << random.randrange(8)])
    if chosen < 0.95:
        return random.choice(SPECIAL[version])
    return random.randbytes(4 if version == 4 else 16)


def _size(random: Random, edges: Sequence[int]) -> int:
    """Of an IP packet, in bytes."""
    if edges and random.random() < 0.15:
        return random.choice(edges) + random.randint(-3, 3)
    return min(
        LONGEST - 200, mixed(random, (12, random.randint(20, 120)), (2, random.randint(20, 1600)), (1, 3100))
    )


def _transport(
    random: Random, version: int, source: bytes, destination: bytes, size: int
) -> tuple[int, bytes]:
    """(protocol, `size` bytes of it or a few more)."""
    protocol = random.choice((17, 17, 17, 6, 6, 1 if version == 4 else 58, 132, 58, 1, 47, 50, 255))
    ports = struct.pack("!HH", random.choice(PORTS), random.choice(PORTS))
    payload = random.randbytes(16) * (size // 16 + 1)
    if protocol == 17:
        data = bytearray(ports + struct.pack("!HH", size, 0) + payload)[: max(8, size)]
        data[4:6] = struct.pack("!H", len(data))
    elif protocol == 6:
        data = bytearray(ports + random.randbytes(8) + b"\x50\x10\xff\xff\0\0\0\0" + payload)[: max(20, size)]
    else:
        data = bytearray(bytes([random.choice((8, 0, 128, 129, 135, 3)), 0, 0, 0]) + payload)[: max(8, size)]
    at = {17: 6, 6: 16, 1: 2, 58: 2}.get(protocol)
    state = random.random()
    if at is None or (protocol == 17 and state < 0.1):
        return protocol, bytes(data)
    summed = pseudo_header(source, destination, protocol, len(data)) if protocol != 1 else b""
    right = checksum(summed + data)
    if state > 0.95:
        right ^= 1 << random.randrange(16)
    data[at : at + 2] = struct.pack("!H", right or (0xFFFF if protocol == 17 else 0))
    if state > 0.9:
        del data[max(1, len(data) - random.randrange(24)) :]
    return protocol, bytes(data)


def pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    if len(source) == 4:
        return source + destination + struct.pack("!BBH", 0, protocol, length)
    return source + destination + struct.pack("!II", length, protocol)


def _extension(random: Random, protocol: int, payload: bytes) -> tuple[int, bytes]:
    """An IPv6 extension header: hop-by-hop, destination options, routing or fragment."""
    kind = random.choice((0, 60, 43, 44))
    if kind == 44:
        return kind, struct.pack("!BBHI", protocol, 0, random.choice((1, 0, 8, 0xFFF9)), 7) + payload
    words = random.choice((0, 0, 1, 3))
    return kind, bytes([protocol, words]) + b"\1\4" + bytes(4 + 8 * words) + payload


def _encapsulation_limit(random: Random, protocol: int) -> bytes:
    """RFC 2473 §4.1.1, as Linux sends it, or nearly so."""
    made = bytearray([protocol, 0, 4, 1, random.getrandbits(8), 1, 1, 0])
    if random.random() < 0.2:
        made[random.randrange(1, 8)] ^= 1 << random.randrange(8)
    return bytes(made)


def ipv4(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
    *,
    tos: int = 0,
    ttl: int = 64,
    identification: int = 0,
    fragment: int = 0x4000,
    options: bytes = b"",
) -> bytes:
    words = 5 + len(options) // 4
    length = words * 4 + len(payload)
    header = bytearray(
        struct.pack("!BBHHHBBH", 4 << 4 | words, tos, length, identification, fragment, ttl, protocol, 0)
        + source
        + destination
        + options
    )
    header[10:12] = struct.pack("!H", checksum(bytes(header)))
    return bytes(header) + payload


def ipv6(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
    *,
    tos: int = 0,
    label: int = 0,
    ttl: int = 64,
) -> bytes:
    first = 6 << 28 | tos << 20 | label
    return struct.pack("!IHBB", first, len(payload), protocol, ttl) + source + destination + payload


def _ethernet(random: Random, ethertype: int, payload: bytes) -> bytes:
    destination = mixed(random, (16, MACS[0]), (4, random.choice(MACS)), (1, random.choice(GROUP_MACS)))
    tags = b""
    for _ in range(mixed(random, (12, 0), (3, 1), (2, 2), (1, 3))):
        tags += struct.pack("!HH", random.choice((0x8100, 0x88A8)), random.getrandbits(16))
    padding = random.randbytes(mixed(random, (9, 0), (1, random.randint(1, 46))))
    return destination + MACS[1] + tags + struct.pack("!H", ethertype) + payload + padding


def _arp(random: Random, place: Places) -> bytes:
    asker, target = _address(random, place, 4), _address(random, place, 4)
    asker = mixed(random, (8, asker), (2, bytes(4)), (1, target))
    start = bytearray(struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1))
    if random.random() < 0.2:
        start[random.randrange(8)] ^= 1 << random.randrange(3)
    mac = random.choice(MACS)
    packet = bytes(start) + mac + asker + bytes(6) + target
    if random.random() < 0.05:
        packet = packet[: random.randrange(29)]
    return _ethernet(random, 0x0806, packet)


def _solicitation(random: Random, place: Places) -> bytes:
    asker, target = _address(random, place, 6), _address(random, place, 6)
    is_probe = random.random() < 0.2
    source = bytes(16) if is_probe else asker
    group = bytes.fromhex("ff0200000000000000000001ff") + target[13:]
    destination = mixed(random, (8, group), (1, target), (1, SPECIAL[6][0]))
    options = [
        b"\1\1" + MACS[1],
        b"\x0e\1nonce!",
        b"\3\2" + bytes(14),
        b"\1\0" + MACS[1],
        b"\x19\x40" + bytes(510),
    ]
    usual = [] if is_probe else options[:1]
    several = random.choices(options[:3], k=random.randrange(6))
    chosen = mixed(random, (8, usual), (2, several), (1, [random.choice(options)]))
    kind, code = mixed(random, (20, 135), (1, 136), (1, 133)), mixed(random, (20, 0), (1, 1))
    message = bytearray(bytes([kind, code, 0, 0, 0, 0, 0, 0]) + target + b"".join(chosen))
    if random.random() < 0.1:
        del message[random.randrange(8, len(message)) :]
    total = checksum(pseudo_header(source, destination, 58, len(message)) + message)
    if random.random() < 0.05:
        total ^= 1 << random.randrange(16)
    message[2:4] = struct.pack("!H", total)
    packet = ipv6(
        source,
        destination,
        58,
        bytes(message),
        tos=random.choice((0, 0, 0, 2, 0xC0)),
        ttl=mixed(random, (20, 255), (1, 64)),
    )
    return _ethernet(random, 0x86DD, packet)


def spoiled(random: Random, packet: bytes) -> bytes:
    """Cut, lengthened, or with a few bytes of the first hundred changed."""
    made = bytearray(packet)
    for _ in range(random.randint(1, 3)):
        way = random.random()
        if way < 0.25 and len(made) > SHORTEST:
            del made[random.randrange(SHORTEST, len(made)) :]
        elif way < 0.35:
            made += random.randbytes(random.randint(1, 60))
        elif way < 0.65:
            made[random.randrange(min(len(made), 120))] ^= 1 << random.randrange(8)
        else:
            made[random.randrange(min(len(made), 120))] = random.choice((0, 1, 0xFF, random.getrandbits(8)))
    return bytes(made)


# ---- tunnel headers --------------------------------------------------------------------------------------

Wrap = Callable[[Random, int, Tunnel, bytes, bytes], bytes]
"""(random, identifier, tunnel, inner frame, inner IP packet) -> tunnel header and payload."""


def _version(packet: bytes) -> int:
    return packet[0] >> 4 if packet else 0


def _protocol_number(packet: bytes) -> int:
    return 41 if _version(packet) == 6 else 4


def _is_l3(random: Random, tunnel: Tunnel) -> bool:
    """Whether a packet carries IP without Ethernet: as the tunnel has it, mostly."""
    has_it = encap.carried_by(tunnel.protocol, tunnel.options) is not None
    return has_it != (random.random() < 0.1)


def _ethertype(packet: bytes) -> int:
    return 0x86DD if _version(packet) == 6 else 0x0800


def _geneve(random: Random, vni: int, tunnel: Tunnel, frame: bytes, packet: bytes) -> bytes:
    area = b""
    for _ in range(mixed(random, (6, 0), (3, 1), (2, 3), (1, 12))):
        words = mixed(random, (5, random.randrange(4)), (1, 31))
        kind = mixed(random, (30, random.randrange(128)), (1, 0x80 | random.randrange(128)))
        option = struct.pack("!HBB", random.getrandbits(16), kind, random.choice((0, 0x20)) | words)
        if len(area) + 4 + words * 4 <= 252:
            area += option + random.randbytes(4 * words)
    words = len(area) // 4
    if random.random() < 0.03:
        words = random.randrange(64)
    version = mixed(random, (40, 0), (1, random.randrange(4)))
    flags = mixed(random, (20, 0), (2, 0x40), (1, 0x80), (2, random.randrange(64)))
    is_l3 = _is_l3(random, tunnel)
    ethertype = mixed(random, (40, _ethertype(packet) if is_l3 else 0x6558), (1, 0x0806), (1, 0x86DD))
    header = struct.pack("!BBH", version << 6 | words, flags, ethertype)
    return header + _vni(random, vni) + area + (packet if is_l3 else frame)


def _vni(random: Random, vni: int) -> bytes:
    return struct.pack("!I", vni << 8 | mixed(random, (9, 0), (1, random.getrandbits(8))))


def _vxlan(random: Random, vni: int, tunnel: Tunnel, frame: bytes, packet: bytes) -> bytes:
    flags = mixed(
        random, (10, 0x08), (3, 0x88), (2, 0x08 | random.getrandbits(8)), (1, random.getrandbits(8))
    )
    rest = mixed(random, (4, b"\0\0\0"), (1, random.randbytes(3)))
    return bytes([flags]) + rest + _vni(random, vni) + frame


def _gpe(random: Random, vni: int, tunnel: Tunnel, frame: bytes, packet: bytes) -> bytes:
    is_l3 = _is_l3(random, tunnel)
    following = (2 if _version(packet) == 6 else 1) if is_l3 else 3
    return _gpe_header(random, vni, following) + (packet if is_l3 else frame)


def _gpe_header(random: Random, vni: int, following: int) -> bytes:
    flags = mixed(random, (20, 0x0C), (2, 0x08), (1, 0x0E), (1, 0x0D), (1, random.getrandbits(8)))
    following = mixed(random, (30, following), (1, random.randrange(8)))
    return bytes([flags, 0, 0, following]) + _vni(random, vni)


def _nsh(random: Random, vni: int, tunnel: Tunnel, frame: bytes, packet: bytes) -> bytes:
    is_l3 = _is_l3(random, tunnel)
    kind = mixed(random, (4, 2), (4, 1), (1, random.randrange(16)))
    context = random.randbytes(16 if kind == 1 else 4 * mixed(random, (4, 0), (2, 2), (1, 20)))
    words = 2 + len(context) // 4
    words = mixed(random, (30, words), (1, random.randrange(64)))
    ttl = mixed(random, (8, 63), (1, 1), (1, 0))
    first = (
        mixed(random, (30, 0), (1, random.randrange(4) << 14), (1, 0x2000), (1, 0x1000)) | ttl << 6 | words
    )
    following = mixed(
        random, (30, (2 if _version(packet) == 6 else 1) if is_l3 else 3), (1, random.randrange(8))
    )
    base = struct.pack("!HBB", first, kind, following) + random.randbytes(4)
    return _gpe_header(random, vni, 4) + base + context + (packet if is_l3 else frame)


def _gre(with_key: bool) -> Wrap:
    def wrap(random: Random, key: int, tunnel: Tunnel, frame: bytes, packet: bytes) -> bytes:
        is_l3 = _is_l3(random, tunnel)
        ethertype = _ethertype(packet) if is_l3 else 0x6558
        ethertype = mixed(random, (40, ethertype), (1, random.choice((0x88BE, 0x22EB, 0x8847, 0x880B))))
        has_key = with_key != (random.random() < 0.03)
        return gre_packet(
            random, ethertype, packet if is_l3 else frame, key=key if has_key else None,
            has_checksum=random.random() < 0.3, has_sequence=random.random() < 0.3,
        )  # fmt: skip

    return wrap


def gre_packet(
    random: Random, ethertype: int, payload: bytes, *, key: int | None, has_checksum: bool, has_sequence: bool
) -> bytes:
    flags = 0x8000 * has_checksum | 0x2000 * (key is not None) | 0x1000 * has_sequence
    flags ^= mixed(random, (40, 0), (1, 0x0008), (1, 1 << random.randrange(16)), (1, 1))
    fields = b"" if key is None else struct.pack("!I", key)
    fields += random.randbytes(4) if has_sequence else b""
    start = struct.pack("!HH", flags, ethertype)
    if not has_checksum:
        return start + fields + payload
    total = checksum(start + bytes(4) + fields + payload)
    total ^= mixed(random, (9, 0), (1, 1 << random.randrange(16)))
    return start + struct.pack("!HH", total, 0) + fields + payload


def _nvgre(random: Random, vsid: int, tunnel: Tunnel, frame: bytes, packet: bytes) -> bytes:
    return gre_packet(
        random, mixed(random, (20, 0x6558), (1, 0x0800)), frame, key=vsid << 8 | random.getrandbits(8),
        has_checksum=random.random() < 0.05, has_sequence=random.random() < 0.05,
    )  # fmt: skip


def _erspan(random: Random, session: int, tunnel: Tunnel, frame: bytes, packet: bytes) -> bytes:
    version = random.choice((1, 2))
    first = mixed(random, (30, version), (1, random.randrange(16))) << 12 | random.getrandbits(12)
    header = struct.pack("!HHI", first, random.getrandbits(6) << 10 | session, random.getrandbits(32))
    if version == 2:
        last = mixed(random, (6, 0x8002), (2, 0x8003), (1, random.getrandbits(16)))
        header += struct.pack("!HH", random.getrandbits(16), last)
        header += random.randbytes(8) if last & 1 else b""
    return gre_packet(
        random, {1: 0x88BE, 2: 0x22EB}[version], header + frame, key=mixed(random, (9, None), (1, 5)),
        has_checksum=random.random() < 0.1, has_sequence=random.random() < 0.95,
    )  # fmt: skip


def _nothing(random: Random, identifier: int, tunnel: Tunnel, frame: bytes, packet: bytes) -> bytes:
    return packet


def _etherip(random: Random, identifier: int, tunnel: Tunnel, frame: bytes, packet: bytes) -> bytes:
    return mixed(random, (20, b"\x30\0"), (1, b"\x20\0"), (1, b"\x30\1")) + frame


def _gue(random: Random, identifier: int, tunnel: Tunnel, frame: bytes, packet: bytes) -> bytes:
    if random.random() < 0.2:
        return packet
    words = mixed(random, (8, 0), (2, random.randrange(4)), (1, 31))
    flags = mixed(random, (12, 0), (1, 1), (1, random.getrandbits(16)))
    usual = _protocol_number(packet) if _is_l3(random, tunnel) else 97
    protocol = mixed(random, (20, usual), (1, 97), (1, 47), (1, 4), (1, 41))
    first = mixed(random, (30, 0), (1, 0x20), (1, 0x80), (1, 0xC0)) | words
    payload = b"\x30\0" + frame if protocol == 97 else packet
    return struct.pack("!BBH", first, protocol, flags) + random.randbytes(4 * words) + payload


def _mpls(random: Random, label: int, tunnel: Tunnel, frame: bytes, packet: bytes) -> bytes:
    stack = b"".join(
        struct.pack("!I", random.getrandbits(32) & ~0x100)
        for _ in range(mixed(random, (6, 0), (3, 2), (1, 7), (1, 8)))
    )
    return (
        stack
        + struct.pack("!I", label << 12 | 0x100 | random.getrandbits(8) | random.getrandbits(3) << 9)
        + packet
    )


def srv6_parts(random: Random, tunnel: Tunnel, frame: bytes, packet: bytes) -> tuple[int, bytes]:
    """(next header of the IPv6 header, what follows it)."""
    is_l2 = not _is_l3(random, tunnel)
    following = 143 if is_l2 else _protocol_number(packet)
    payload = frame if is_l2 else packet
    if random.random() < 0.25:
        return following, payload
    following = mixed(random, (30, following), (1, 17), (1, 59))
    units = 2 * mixed(random, (6, 1), (4, 2), (2, 5), (1, random.randrange(0, 80)))
    units += mixed(random, (8, 0), (1, 1))
    left = mixed(random, (20, 0), (1, 1))
    kind = mixed(random, (20, 4), (1, 0), (1, 3))
    header = struct.pack("!BBBBI", following, units, kind, left, random.getrandbits(32))
    return 43, header + random.randbytes(16) * (units // 2) + bytes(units % 2 * 8) + payload


def _gtpu(random: Random, teid: int, tunnel: Tunnel, frame: bytes, packet: bytes) -> bytes:
    flags = 0x30 | mixed(random, (4, 0), (4, 4), (1, 2), (1, 1), (1, 7), (1, 8))
    flags ^= mixed(random, (40, 0), (1, 0x10), (1, 0x20), (1, 0x40))
    optional = b""
    if flags & 7:
        kinds = [
            mixed(random, (8, 0x85), (2, 0x40), (1, 0xC0), (1, 0x84), (1, 0x20), (1, random.getrandbits(8)))
            for _ in range(mixed(random, (2, 0), (6, 1), (2, 2), (1, 4), (1, 5)))
        ]
        optional = random.randbytes(3) + bytes([kinds[0] if kinds else 0])
        for following in [*kinds[1:], 0][: len(kinds)]:
            words = mixed(random, (20, 1), (3, 2), (1, 200), (1, 0))
            content = random.randbytes(max(0, 4 * words - 2))
            optional += bytes([words]) + content + (bytes([following]) if words else b"")
    length = len(optional) + len(packet)
    length = mixed(random, (30, length), (1, length - random.randrange(min(length, 8) + 1)), (1, length + 5))
    message = mixed(random, (30, 255), (1, 1), (1, 26), (1, 254))
    return struct.pack("!BBHI", flags, message, length & 0xFFFF, teid) + optional + packet


def _gtpu_echo(random: Random, identifier: int, tunnel: Tunnel, frame: bytes, packet: bytes) -> bytes:
    flags = mixed(random, (12, 0x32), (1, 0x30), (1, 0x36), (1, 0x33), (1, 0x12))
    optional = random.randbytes(4) if flags & 7 else b""
    more = mixed(random, (8, b""), (1, b"\x0e\x07"), (1, random.randbytes(40)))
    message = mixed(random, (20, 1), (1, 2))
    teid = mixed(random, (8, 0), (1, random.getrandbits(32)))
    return struct.pack("!BBHI", flags, message, len(optional + more), teid) + optional + more


def _l2tp(over_udp: bool) -> Wrap:
    def wrap(random: Random, session: int, tunnel: Tunnel, frame: bytes, packet: bytes) -> bytes:
        start = b""
        if over_udp:
            flags = mixed(
                random, (30, 3), (1, 0x8003), (1, 2), (1, 0x4FF3), (1, 1 << random.randrange(16) | 3)
            )
            start = struct.pack("!HH", flags, mixed(random, (9, 0), (1, random.getrandbits(16))))
        session = mixed(random, (30, session), (1, 0))
        options: Any = tunnel.options
        cookie = bytes.fromhex(options.cookie if options.peer_cookie is None else options.peer_cookie)
        if cookie and random.random() < 0.1:
            cookie = mixed(
                random, (1, random.randbytes(len(cookie))), (1, cookie[:-1] + bytes([cookie[-1] ^ 1]))
            )
        sublayer = (
            b"" if options.l2spec_type == "none" else mixed(random, (8, bytes(4)), (2, random.randbytes(4)))
        )
        return start + struct.pack("!I", session) + cookie + sublayer + frame

    return wrap


def _as_modelled(random: Random, identifier: int, tunnel: Tunnel, frame: bytes, packet: bytes) -> bytes:
    """What the tunnel itself sends: for headers that nobody made odd ones of."""
    is_l3 = encap.carried_by(tunnel.protocol, tunnel.options) is not None
    inner = parse_ip_packet(packet) if is_l3 else parse_frame(frame)
    if inner is None:
        return random.randbytes(40)
    header = encap.SHAPES[tunnel.protocol].header(tunnel.options, inner, Fields(random.getrandbits(32)))
    return header + (packet if is_l3 else frame)


WRAPS: dict[str, Wrap] = {
    "geneve": _geneve,
    "vxlan": _vxlan,
    "vxlan-gpe": _gpe,
    "nsh": _nsh,
    "gre": _gre(False),
    "gre with key": _gre(True),
    "nvgre": _nvgre,
    "erspan": _erspan,
    "ip": _nothing,
    "etherip": _etherip,
    "gue": _gue,
    "mpls": _mpls,
    "gtpu": _gtpu,
    "gtpu echo": _gtpu_echo,
    "l2tp over ip": _l2tp(False),
    "l2tp over udp": _l2tp(True),
}


# ---- packets of the underlay -----------------------------------------------------------------------------


def tunnel_packet(
    random: Random, model: Model, acceptance: Acceptance, place: Places, edges: Sequence[int]
) -> bytes:
    """A frame that a tunnel of the node takes, or one that differs from it in a thing or two."""
    tunnel = acceptance.tunnel
    wanted = random.choice((place.behind_ports, place.behind_ports, place.behind_tunnels))
    frame = inner_frame(random, place, wanted, edges=edges)
    version = (
        place.version(random, wanted)
        if acceptance.header != "ip"
        else _version_wanted(random, acceptance, place)
    )
    packet = ip_packet(random, place, version, wanted, edges)
    identifier = acceptance.identifier
    if random.random() < 0.04:
        identifier ^= random.choice((1, 0x10, 0x100))
    if acceptance.arrival[0] == "ethertype":
        return _tagged(random, acceptance, identifier, frame, model)
    kind, number = acceptance.arrival
    if acceptance.header == "srv6":
        number, payload = srv6_parts(random, tunnel, frame, packet)
    else:
        payload = WRAPS.get(acceptance.header, _as_modelled)(random, identifier, tunnel, frame, packet)
    payload += random.randbytes(mixed(random, (20, 0), (1, random.randint(1, 30))))
    if random.random() < 0.04:
        payload = payload[: random.randrange(28)]  # outer lengths agree: only what is inside is cut short
    own = acceptance.own
    assert own is not None
    family = 4 if len(own) == 4 else 6
    sender = acceptance.sender or _somebody(random, family)
    if random.random() < 0.03:
        sender = _somebody(random, family)
    if kind == "udp":
        payload = _udp(random, sender, own, number, payload)
        number = 17
    return _underlay_packet(random, model, sender, own, number, payload)


def _version_wanted(random: Random, acceptance: Acceptance, place: Places) -> int:
    """Of the inner packet: mostly what the outer protocol says."""
    if acceptance.arrival[0] == "udp" or random.random() < 0.1:
        return place.version(random, place.behind_ports)
    return 6 if acceptance.arrival[1] == 41 else 4


def _somebody(random: Random, family: int) -> bytes:
    return ip_address(STRANGER[family]).packed[:-1] + random.randbytes(1)


def _udp(random: Random, source: bytes, destination: bytes, port: int, payload: bytes) -> bytes:
    length = 8 + len(payload)
    length = mixed(
        random, (60, length), (1, length - random.randrange(min(20, length))), (1, length + 1), (1, 7)
    )
    port = mixed(random, (60, port), (1, random.getrandbits(16)))
    datagram = struct.pack("!HHHH", 49152 | random.getrandbits(14), port, length, 0) + payload
    state = random.random()
    if state < 0.5:
        return datagram
    right = checksum(pseudo_header(source, destination, 17, len(datagram)) + datagram) or 0xFFFF
    if state > 0.95:
        right ^= 1 << random.randrange(16)
    return datagram[:6] + struct.pack("!H", right) + payload


def _underlay_packet(
    random: Random, model: Model, source: bytes, destination: bytes, protocol: int, payload: bytes
) -> bytes:
    uplink = random.choice([port for port in model.ports.values() if port.role == "uplink"])
    mac = mixed(random, (40, uplink.mac), (1, MACS[0]), (1, BROADCAST))
    tos = random.choice((0, 1, 2, 3, 0xB8, random.getrandbits(8)))
    if len(destination) == 4:
        fragment = mixed(random, (30, 0x4000), (10, 0), (1, 0x2000), (1, random.getrandbits(13)), (1, 0x8000))
        packet = ipv4(
            source,
            destination,
            protocol,
            payload,
            tos=tos,
            ttl=random.choice((64, 1, 0)),
            identification=random.getrandbits(16),
            fragment=fragment,
            options=b"\1" * mixed(random, (60, 0), (1, 4)),
        )
        ethertype = 0x0800
    else:
        chosen = random.random()
        if chosen < 0.02:
            protocol, payload = _extension(random, protocol, payload)
        elif chosen < 0.06:
            protocol, payload = 60, _encapsulation_limit(random, protocol) + payload
        packet = ipv6(source, destination, protocol, payload, tos=tos, label=random.getrandbits(20))
        ethertype = 0x86DD
    padding = random.randbytes(mixed(random, (9, 0), (1, random.randint(1, 46))))
    return mac + MACS[2] + struct.pack("!H", ethertype) + packet + padding


def _tagged(random: Random, acceptance: Acceptance, identifier: int, frame: bytes, model: Model) -> bytes:
    sender = acceptance.sender or random.choice(MACS)
    own = acceptance.own or random.choice([*MACS, *GROUP_MACS, *(port.mac for port in model.ports.values())])
    if random.random() < 0.03:
        sender = random.choice(MACS)
    bits = random.getrandbits(4) << 12
    tags = struct.pack("!HH", acceptance.arrival[1], bits | identifier & 0xFFF)
    if acceptance.header == "qinq":
        second = mixed(random, (20, 0x8100), (1, 0x88A8))
        tags = struct.pack(
            "!HHHH", acceptance.arrival[1], bits | identifier >> 12, second, identifier & 0xFFF
        )
    made = own + sender + tags + frame[12:]
    # Now and then one that ends within its first tag, which random cuts seldom come to.
    return made[: random.randint(SHORTEST, 17)] if random.random() < 0.02 else made


def from_workload(
    random: Random, model: Model, found: dict[str, Places], edges: Sequence[int]
) -> tuple[str, bytes]:
    """(port, frame)."""
    access = [port for port in model.ports.values() if port.role == "access"]
    busy = [port for port in access if any(found[str(port.network)].behind_tunnels.values())]
    port = random.choice(busy if busy and random.random() < 0.8 else access)
    place = found[str(port.network)]
    return port.name, inner_frame(random, place, place.behind_tunnels, edges=edges)[:LONGEST]


def from_underlay(
    random: Random, model: Model, found: dict[str, Places], edges: Sequence[int]
) -> tuple[str, bytes]:
    """(port, frame)."""
    if not model.acceptances or random.random() < 0.02:
        port = random.choice([port for port in model.ports.values() if port.role == "uplink"])
        nowhere = Places({4: SPECIAL[4], 6: SPECIAL[6]})
        return port.name, inner_frame(random, nowhere, nowhere.known)[:LONGEST]
    acceptance = random.choice(list(model.acceptances.values()))
    frame = tunnel_packet(random, model, acceptance, found[acceptance.tunnel.network], edges)
    if random.random() < 0.1:
        frame = spoiled(random, frame)
    return _uplink_of(random, model, acceptance, frame), frame[:LONGEST]


def _uplink_of(random: Random, model: Model, acceptance: Acceptance, frame: bytes) -> str:
    """Where it would come in: the interface of a VLAN, or the one that has the destination MAC."""
    uplinks = [port for port in model.ports.values() if port.role == "uplink"]
    for port in uplinks:
        if (port.ifindex == acceptance.interface or port.mac == frame[:6]) and random.random() < 0.97:
            return port.name
    return random.choice(uplinks).name
